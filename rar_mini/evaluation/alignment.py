"""How often a judge rates the better of two answers strictly higher (the paper's Fig. 3): without a rubric,
by the rubric, and by a rubric that was written without the reference answer. And whether it tells the better
one if it is shown both.

A judge that gives probabilities has an expected rating, which ties less than a whole one. Both are shown. A
judge that compares is asked in both orders, because many prefer a place: what it says of a pair is the mean,
and one that names the first answer both times has tied.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from rar_mini.data import Example
from rar_mini.evaluation.agreement import in_words, interval, mean, share, wins
from rar_mini.evaluation.judged import ask
from rar_mini.evaluation.labelled import Pair
from rar_mini.files import cache_folder
from rar_mini.judging.wires import fence, fence_secret
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.rubric import Criterion, Rubric

COMPARED = Criterion("First", "Answer 1 answers the question better than answer 2.", "essential", 1.0)


class Asker(JudgeLike, Protocol):
    """A judge that can be asked by several methods, as judge.Judge can."""

    kind: str
    mass: list[float]  # the total probability of the offered answers, one entry per question

    def by(self, method: str) -> "Asker":
        """The same judge, asked by another method, with a `mass` of its own."""


def report(judge: Asker, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Measure a judge on pairs in three ways and by comparing them, print the results and return them. A way
    that cannot be measured has None."""
    unaided = [replace(p, example=replace(p.example, rubric=p.unaided)) for p in pairs if p.unaided]
    ways = [
        (
            "likert",
            "direct-likert",
            [] if judge.kind == "keyword" else pairs,
            "keyword rates by criteria only",
        ),
        ("rubric", "rar-implicit", pairs, ""),
        ("rubric_without_reference", "rar-implicit", unaided, "no pair has one"),
    ]
    result: dict[str, Any] = {"pairs": len(pairs)}
    for name, method, usable, reason in ways:
        result[name] = by_ratings(judge, name, method, usable) if usable else None
        if not usable:
            print(f"{name:<26}left out: {reason}")
    result["compared"] = None if judge.kind == "keyword" else in_both_orders(judge, pairs)
    return result


def in_both_orders(judge: Asker, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often a judge that is shown both answers says that the preferred one is better. Each order is also
    counted on its own; `consistent` is the share of pairs in which both orders name the same answer, and
    `first` how often the answer in front is named."""
    comparer = judge.by("rar-explicit")
    secret = fence_secret(cache_folder())
    shown = [both(pair, ahead, secret) for pair in pairs for ahead in (True, False)]
    verdict = ask(comparer, shown, "comparing").verdict[:, 0].reshape(-1, 2)  # (N, 2): is answer 1 better?
    gaps = (verdict[:, 0] - verdict[:, 1]) / 2
    named = verdict >= 0.5
    valid = ~np.isnan(verdict).any(1)
    alike = share(int((named[valid, 0] != named[valid, 1]).sum()), int(valid.sum()))
    first = mean(np.where(np.isnan(verdict), np.nan, named).ravel())
    each = {"preferred first": wins(verdict[:, 0] - 0.5), "preferred second": wins(0.5 - verdict[:, 1])}
    result = {"both orders": wins(gaps)} | each | {"consistent": alike, "first": first}
    for name in ("both orders", *each):
        print(f"{'compared':<26}{name:<18}{in_words(result[name])}")
    print(f"{'compared':<26}{'consistent':<18}{interval(alike)}, the first of two is named {first:.2f}")
    if comparer.mass:
        result["mass"] = mean(np.array(comparer.mass))
        judge.mass.extend(comparer.mass)
    return result


def both(pair: Pair, ahead: bool, secret: bytes) -> tuple[Example, str]:
    """A pair as one response, the preferred answer first or second, and the question which is better. Neither
    answer can forge the line on which the other begins."""
    texts = (pair.preferred, pair.worsened) if ahead else (pair.worsened, pair.preferred)
    edge = fence(secret, *texts)
    response = "\n\n".join(f"Answer {number} {edge}:\n{text}" for number, text in enumerate(texts, 1))
    return replace(pair.example, rubric=Rubric((COMPARED,))), response


def by_ratings(judge: Asker, name: str, method: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often the preferred answer has the higher rating, as a whole number and as expected."""
    rater = judge.by(method)
    answers = [(pair.example, text) for pair in pairs for text in (pair.preferred, pair.worsened)]
    rating = ask(rater, answers, name).rating  # (2 N,)
    ratings = {"integer": np.floor(rating + 0.5)}
    if judge.kind not in ("chat", "keyword"):
        ratings["expected"] = rating
    result: dict[str, Any] = {}
    for form, values in ratings.items():
        result[form] = wins(values[::2] - values[1::2])
        print(f"{name:<26}{form:<10}{in_words(result[form])}")
    if rater.mass:
        result["mass"] = mean(np.array(rater.mass))
        print(f"{name:<26}{'mass':<10}{result['mass']:.2f}")
        judge.mass.extend(rater.mass)  # for the command's last line, which counts all questions
    return result
