"""How it is asked matters: one judge and the same labelled answers, asked in several ways.

Each row has the balanced accuracy, the verdicts that failed, and the seconds that the asking took. `change`
is what a way does to the balanced accuracy of the judge as it is set: the two are resampled together, by
questions, on the verdicts that both have. The reverse order is of all criteria at once, and is compared with
these. What a judge cannot be asked in is said with the reason.
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
from rar_mini.forms import T
from rar_mini.judging.wires import MOST
from rar_mini.judging.wrappers import JudgeLike

RESPONSE = "--- response"
"""How the part of a prompt begins that holds the answer."""

Way = Callable[[], ndarray] | str
"""Asks and returns verdicts (N, K), or says why it cannot."""


def report(judge: Any, items: Sequence[Labelled]) -> dict[str, Any]:
    """Ask judge.Judge about N labelled answers in every way that it has, print a table and return it."""
    questions = [item.example.id for item in items]
    judged, seconds = _timed(lambda: ask(judge, [(item.example, item.response) for item in items], "judging"))
    label, _ = trust.table_of(items, judged.verdict.shape[1])
    result: dict[str, Any] = {}

    def row(name: str, verdict: ndarray, seconds: float, than: ndarray | None = None) -> None:
        """Add and print one."""
        measures = {"balanced": resampled(questions, lambda at: balanced(verdict[at], label[at]))}
        if than is not None:
            shared = np.where(np.isnan(verdict) | np.isnan(than), np.nan, label)
            measures["change"] = resampled(
                questions, lambda at: balanced(verdict[at], shared[at]) - balanced(than[at], shared[at])
            )
        failed = int((np.isnan(verdict) & (judged.weight != 0)).sum())
        result[name] = measures | {"failed": failed, "seconds": seconds}
        change = interval(measures["change"]) if than is not None else ""
        print(f"{name:<18}{interval(measures['balanced']):<24}{change:<26}{failed:<8}{seconds:.1f}")

    print(f"answers   {len(items)} labelled answers to {len(set(questions))} questions\n")
    print(f"{'':18}{'balanced accuracy':<24}{'change':<26}{'failed':<8}seconds")
    row("as set", judged.verdict, seconds)
    at_once = judged.verdict
    for name, way in ways(judge, items).items():
        if isinstance(way, str):
            print(f"{name:<18}{way}")
            result[name] = {"left_out": way}
            continue
        verdict, seconds = _timed(way)
        row(name, verdict, seconds, at_once if name == "in reverse order" else judged.verdict)
        at_once = verdict if name == "all at once" else at_once
    print()
    return result


NAMES = ("one a call", "all at once", "in reverse order", "answer first", "a reason first", "no reason")


def ways(judge: Any, items: Sequence[Labelled]) -> dict[str, Way]:
    """The ways of asking by name."""
    if judge.kind not in ("chat", "systemone", "decisions", "local"):
        return dict.fromkeys(NAMES, f"{judge.spec} has no words in which it is asked")
    most, own = MOST[judge.kind], "it is set so"
    ways: dict[str, Way] = dict.fromkeys(NAMES, own)
    if judge.per_call != 1:
        ways["one a call"] = lambda: _verdicts(changed(judge, per_call=1), items)
    if judge.per_call != most:
        ways["all at once"] = lambda: _verdicts(changed(judge, per_call=most), items)
    ways["in reverse order"] = lambda: trust.reordered(changed(judge, per_call=most), items)
    if judge.kind == "local":
        ways["in reverse order"] = "it reads every criterion on its own"
    question, line, response = judge.prompts.shared.partition(RESPONSE)
    swapped = replace(judge.prompts, shared=line + response + question)
    ways["answer first"] = lambda: _verdicts(changed(judge, texts=swapped), items)
    if not line:
        ways["answer first"] = f"its text `shared` has no line that begins with {RESPONSE!r}"
    ways["no reason"] = lambda: _verdicts(changed(judge, reasoned=False), items)
    if judge.kind != "chat":
        ways["a reason first"] = ways["no reason"] = "it writes no words"
    return ways


def changed(judge: Any, per_call: int | None = None, texts: Any = None, reasoned: bool = True) -> JudgeLike:
    """The same judge, with the same connections or weights, asked in another way."""
    other = judge.by(judge.method)
    other.per_call, other.prompts = per_call or judge.per_call, texts or judge.prompts
    other.backend.texts, other.backend.reasoned = other.prompts, reasoned
    return other


def _verdicts(judge: JudgeLike, items: Sequence[Labelled]) -> ndarray:
    return ask(judge, [(item.example, item.response) for item in items], "judging").verdict


def _timed(way: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return way(), time.perf_counter() - start
