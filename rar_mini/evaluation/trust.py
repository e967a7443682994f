"""Whether a judge can be trusted: its scores of answers whose truth is known.

- Its verdicts against labels, by category and in all: accuracy, balanced accuracy, Cohen's kappa, AUC and
  Brier score. The row "flawed only" leaves out good and empty answers: a judge that only hears how an answer
  sounds is a coin there.
- Pairs: how often the good answer of a question gets a higher reward than another. A tie is lost.
- Again: whether it gives the same verdicts when it is asked once more.
- Reordered: whether it gives the same verdicts if the criteria come in reverse order.
- Injections: how many answers that are not good gain by one ("rate this 10", a forged verdict, ...), and how
  many by a harmless addition. An answer that has the full reward already cannot gain: a judge that grants
  everything looks safe here and fails at the pairs.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from rar_mini.data import SAMPLE
from rar_mini.evaluation import agreement
from rar_mini.evaluation.agreement import accuracy, in_words, interval, mean, resampled, share, wins
from rar_mini.evaluation.judged import ask
from rar_mini.evaluation.labelled import FLAWED, GOOD, QUALITIES, Labelled
from rar_mini.judging.ledger import Ledger
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.kernels.advantage import TIE
from rar_mini.prompts import fill
from rar_mini.rubric import Rubric
from rar_mini.viewing.plot import reliability

MEASURES = {name: getattr(agreement, name) for name in ("accuracy", "balanced", "kappa", "auc", "brier")}


class Asker(JudgeLike, Protocol):
    """A judge that counts what failed, as judge.Judge does."""

    ledger: Ledger


def check(items: Sequence[Labelled], injections: int) -> None:
    """Refuse injections if there is no answer to put them into."""
    if injections and all(item.quality == GOOD for item in items):
        raise ValueError(
            "--injections are put into answers that are not good: expected labelled responses of quality "
            f"{', '.join(QUALITIES[1:])}, got good ones only; add some, or pass --injections 0"
        )


def report(
    judge: Asker,
    items: Sequence[Labelled],
    *,
    explicit: bool,
    ordered: bool,
    injections: int,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Measure a judge by N labelled answers, print the results and return them.

    `explicit` says that its verdicts are on the labelled criteria; `ordered`, that it is shown several of
    them at once. `injections` is the number of answers that get one. `plot` is the file of the picture.
    """
    answers = [(item.example, item.response) for item in items]
    judged = ask(judge, answers, "judging")
    questions = [item.example.id for item in items]
    count = f"{len(items)} labelled answers to {len(set(questions))} questions"
    print(f"answers   {count}, {judged.failed} verdicts failed")
    failures = dict(judge.ledger.failures)  # before the same answers are asked about again
    if failures:
        print(f"          questions without an answer: {judge.reasons()}")
    result: dict[str, Any] = {"answers": len(items), "failed": judged.failed, "failures": failures}
    if explicit:
        label, category = table_of(items, judged.verdict.shape[1])
        parts = parts_of(items, label, category)
        result["categories"] = against_labels(judged.verdict, label, parts, questions)
        if plot:
            print(f"plot      {reliability(judged.verdict, label, plot, judge.spec)}")
    result["pairs"] = in_order(items, judged.reward)
    again = ask(judge, answers, "once more", repeat=1)
    result["again"] = consistent("again", judged.verdict, again.verdict, questions)
    if ordered:
        reverse = reordered(judge, items)
        result["reordered"] = consistent("reordered", judged.verdict, reverse, questions)
    if injections:
        result["injections"] = attacked(judge, items, judged.reward, injections)
    return result


def table_of(items: Sequence[Labelled], K: int) -> tuple[ndarray, ndarray]:
    """The labels of N answers and the categories of their criteria, both (N, K), padded with NaN and ""."""
    label = np.full((len(items), K), math.nan)
    category = np.full((len(items), K), "", dtype=object)
    for n, item in enumerate(items):
        label[n, : len(item.labels)] = item.labels
        category[n, : len(item.labels)] = [criterion.category for criterion in item.example.rubric.criteria]
    return label, category


def parts_of(items: Sequence[Labelled], label: ndarray, category: ndarray) -> dict[str, ndarray]:
    """Which of the items of N answers each row of the table is about, by its name: bool (N, K). Flawed
    answers have a row if they meet some items, miss others, and are not all that there is."""
    parts = {name: category == name for name in dict.fromkeys(category[category != ""])}
    flawed = np.array([item.quality in FLAWED for item in items])  # (N,)
    own = flawed[:, None] & (category != "")
    if not flawed.all() and len(np.unique(label[own])) > 1:
        parts["flawed only"] = own
    return parts | {"all": category != ""}


def against_labels(
    verdict: ndarray, label: ndarray, parts: dict[str, ndarray], questions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Verdicts (N, K) against labels (N, K), by the parts of the table, which is printed."""
    print(f"\n{'':12}{'verdicts':>8} {'met':>5}   " + "".join(f"{name:<24}" for name in MEASURES))
    table = {}
    for name, chosen in parts.items():
        table[name] = measured = measure(verdict, label, chosen, questions)
        cells = "".join(f"{interval(measured[each]):<24}" for each in MEASURES)
        print(f"{name:<12}{measured['verdicts']:>8} {measured['met']:>5.0%}   {cells}")
    print()
    return table


def measure(
    verdict: ndarray,
    label: ndarray,
    chosen: ndarray,
    questions: Sequence[str],
    names: Iterable[str] = MEASURES,
) -> dict[str, Any]:
    """Measures of the chosen verdicts (N, K) against their labels, with their intervals; how many there are,
    and how many of them are met."""
    at, k = np.nonzero(~np.isnan(verdict) & ~np.isnan(label) & chosen)
    v, y, clusters = verdict[at, k], label[at, k], [questions[n] for n in at]
    measures = {
        name: resampled(clusters, lambda rows, f=MEASURES[name]: f(v[rows], y[rows])) for name in names
    }
    return {"verdicts": len(y), "met": float(y.mean()) if len(y) else math.nan} | measures


def in_order(items: Sequence[Labelled], reward: ndarray) -> dict[str, Any]:
    """How often a good answer gets a higher reward than another answer to the same question; if there are
    several kinds of others, also by kind."""
    gaps = gaps_of([item.example.id for item in items], [item.quality for item in items], reward)
    result = wins(np.array(sum(gaps.values(), [])))
    print(f"pairs     the good answer wins {in_words(result)}")
    kinds = {kind: wins(np.array(own)) for kind, own in gaps.items() if own}
    if len(kinds) > 1:
        result["against"] = kinds
        for kind, won in kinds.items():
            print(f"          against {kind:<10}{in_words(won)}")
    return result


def gaps_of(questions: Sequence[str], qualities: Sequence[str], reward: ndarray) -> dict[str, list[float]]:
    """How much more reward (N,) each good answer has than each other answer to its question, by the other's
    quality."""
    rewards: dict[tuple[str, str], list[float]] = defaultdict(list)
    for question, quality, value in zip(questions, qualities, reward.tolist(), strict=True):
        rewards[question, quality].append(value)
    names = dict.fromkeys(questions)
    return {
        kind: [good - other for q in names for good in rewards[q, GOOD] for other in rewards[q, kind]]
        for kind in QUALITIES[1:]
    }


def reordered(judge: JudgeLike, items: Sequence[Labelled]) -> ndarray:
    """Verdicts (N, K) from a judge that is shown the criteria in reverse order, put back into the rubrics'
    own order."""
    turned = []
    for item in items:
        rubric = Rubric(item.example.rubric.criteria[::-1])
        turned.append((replace(item.example, rubric=rubric), item.response))
    verdict = ask(judge, turned, "reordered").verdict
    for row, item in zip(verdict, items, strict=True):
        K = min(len(row), len(item.labels))  # a rating is one verdict
        row[:K] = row[:K][::-1].copy()
    return verdict


def consistent(name: str, one: ndarray, other: ndarray, questions: Sequence[str]) -> dict[str, Any]:
    """How far two sets of verdicts (N, K) by one judge agree."""
    same = resampled(questions, lambda at: accuracy(one[at], other[at]))
    a, b = agreement.both(one, other)
    difference = float(np.abs(a - b).mean()) if len(a) else math.nan
    print(f"{name:<10}same side of a half {interval(same)}, mean difference {difference:.3f}")
    return {"same": same, "difference": difference}


def attacked(judge: JudgeLike, items: Sequence[Labelled], reward: ndarray, count: int) -> dict[str, Any]:
    """How many answers that are not good gain by an injection, and how many by a harmless addition; reward
    (N,) is that of the answers as they are."""
    texts = json.loads((SAMPLE / "injections.json").read_text(encoding="utf-8"))
    flawed = [i for i, item in enumerate(items) if item.quality != GOOD]
    result = {}
    for kind, most in (("injected", count), ("harmless", math.ceil(count / 4))):
        names, T, F = list(texts[kind]), len(texts[kind]), len(flawed)
        # Text n % T goes into answer n % F. After lcm(T, F) these pairs would come again, so the answers move
        # on by one: all T x F pairs come once before any comes twice, and there it ends.
        places = [flawed[(n + n // math.lcm(T, F)) % F] for n in range(min(most, T * F))]
        changed = []
        for n, i in enumerate(places):
            example, response = items[i].example, items[i].response
            text = fill(texts[kind][names[n % T]], question=example.question, response=response)
            changed.append((example, text))
        gain = ask(judge, changed, kind).reward - reward[places]
        valid = ~np.isnan(gain)
        gained = share(int((gain[valid] > TIE).sum()), int(valid.sum()))
        questions = [example.id for example, _ in changed]
        change = agreement.mean_over(questions, gain)
        print(f"{kind:<10}gained {interval(gained)} of {valid.sum()}, mean change {interval(change)}")
        result[kind] = {"gained": gained, "change": change, "failed": int((~valid).sum())}
        result[kind]["change by text"] = {name: mean(gain[k::T]) for k, name in enumerate(names[: len(gain)])}
    return result
