"""How it is asked matters: one judge and the same labelled answers, asked in several ways.

Each row has the balanced accuracy and the seconds that the asking took. `change` is what a way does to the
balanced accuracy of the judge as it is set: the two are resampled together, by questions, because they are
about the same answers. What a judge cannot be asked in is said with the reason.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from rar_mini.evaluation import trust
from rar_mini.evaluation.agreement import balanced, interval, resampled
from rar_mini.evaluation.judged import ask
from rar_mini.evaluation.labelled import Labelled
from rar_mini.judging.wires import MOST
from rar_mini.judging.wrappers import JudgeLike

RESPONSE = "--- response"
"""How the part of a prompt begins that holds the answer."""

Way = Callable[[], ndarray] | str
"""Asks and returns verdicts (N, K), or says why it cannot."""


def report(judge: Any, items: Sequence[Labelled]) -> dict[str, Any]:
    """Ask judge.Judge about N labelled answers in every way that it has, print a table and return it."""
    questions = [item.example.id for item in items]
    verdict, seconds = _timed(lambda: _verdicts(judge, items))
    label, _ = trust.table_of(items, verdict.shape[1])

    def measured(other: ndarray) -> dict[str, float]:
        return resampled(questions, lambda at: balanced(other[at], label[at]))

    result: dict[str, Any] = {"as set": {"balanced": measured(verdict), "seconds": seconds}}
    print(f"answers   {len(items)} labelled answers to {len(set(questions))} questions\n")
    print(f"{'':18}{'balanced accuracy':<24}{'change':<26}seconds")
    print(f"{'as set':<18}{interval(result['as set']['balanced']):<24}{'':26}{seconds:.1f}")
    for name, way in ways(judge, items).items():
        if isinstance(way, str):
            print(f"{name:<18}{way}")
            result[name] = {"left_out": way}
            continue
        other, seconds = _timed(way)
        change = resampled(
            questions, lambda at, v=other: balanced(v[at], label[at]) - balanced(verdict[at], label[at])
        )
        result[name] = {"balanced": measured(other), "change": change, "seconds": seconds}
        print(f"{name:<18}{interval(result[name]['balanced']):<24}{interval(change):<26}{seconds:.1f}")
    print()
    return result


NAMES = ("one a call", "all at once", "in reverse order", "answer first", "a reason first", "no reason")


def ways(judge: Any, items: Sequence[Labelled]) -> dict[str, Way]:
    """The ways of asking by name."""
    if judge.kind not in ("chat", "systemone", "decisions", "local"):
        return dict.fromkeys(NAMES, f"{judge.spec} has no words in which it is asked")
    most, own = MOST[judge.kind], "it is set so"
    found: dict[str, Way] = dict.fromkeys(NAMES, own)
    if judge.per_call != 1:
        found["one a call"] = lambda: _verdicts(changed(judge, per_call=1), items)
    if judge.per_call != most:
        found["all at once"] = lambda: _verdicts(changed(judge, per_call=most), items)
    found["in reverse order"] = lambda: trust.reordered(changed(judge, per_call=most), items)
    if judge.kind == "local":
        found["in reverse order"] = "it reads every criterion on its own"
    question, line, response = judge.prompts.shared.partition(RESPONSE)
    swapped = replace(judge.prompts, shared=line + response + question)
    found["answer first"] = lambda: _verdicts(changed(judge, texts=swapped), items)
    if not line:
        found["answer first"] = f"its text `shared` has no line that begins with {RESPONSE!r}"
    found["no reason"] = lambda: _verdicts(changed(judge, reasoned=False), items)
    if judge.kind != "chat":
        found["a reason first"] = found["no reason"] = "it writes no words"
    return found


def changed(judge: Any, per_call: int | None = None, texts: Any = None, reasoned: bool = True) -> JudgeLike:
    """The same judge, with the same connections or weights, asked in another way."""
    other = judge.by(judge.method)
    other.per_call, other.prompts = per_call or judge.per_call, texts or judge.prompts
    other.backend.texts, other.backend.reasoned = other.prompts, reasoned
    return other


def _verdicts(judge: JudgeLike, items: Sequence[Labelled]) -> ndarray:
    return ask(judge, [(item.example, item.response) for item in items], "judging").verdict


def _timed(way: Callable[[], ndarray]) -> tuple[ndarray, float]:
    start = time.perf_counter()
    verdict = way()
    return np.asarray(verdict), time.perf_counter() - start
