"""How often a judge rates the better of two answers strictly higher (the paper's Fig. 3): without a rubric,
by the rubric, and by a rubric that was written without the reference answer.

A judge that gives probabilities has an expected rating, which ties less than a whole one. Both are shown.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from rar_mini.evaluation.agreement import in_words, mean, wins
from rar_mini.evaluation.judged import ask
from rar_mini.evaluation.labelled import Pair
from rar_mini.judging.wrappers import JudgeLike


class Asker(JudgeLike, Protocol):
    """A judge that can be asked by several methods, as judge.Judge can."""

    kind: str
    mass: list[float]  # the total probability of the offered answers, one entry per question

    def by(self, method: str) -> "Asker":
        """The same judge, asked by another method, with a `mass` of its own."""


def report(judge: Asker, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Measure a judge on pairs in three ways, print the results and return them. A way that cannot be
    measured has None."""
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
    return result


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
