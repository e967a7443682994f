"""Whether a judge is kinder to its own answers than to others'.

After *Self-Preference Bias* (arXiv 2604.06996). Policies answer questions whose items have checks, which are
the truth. A judge *overestimates* if it says that an item is met and the check says that it is not:

    bias = its rate on the judge's own answers - its rate on others'        and so for answers of its family

An answer is the judge's *own* if its model wrote it, of its *family* if a model of the same name up to the
first digit or dash did, and neither counts among *others*. A run goes by the name of the model that it began
as. `of failures` are the same rates among items that are not met: a policy that fails more leaves more to
overestimate. Cuts are by sign (pitfalls and items that cost points are negative), by length (longer than the
median), and by the `subject` of a row, if it has one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from rar_mini.checkpoint import Run, newest
from rar_mini.config import Asking
from rar_mini.data import Example
from rar_mini.evaluation import answers, labelled
from rar_mini.evaluation.agreement import interval, mean, resampled
from rar_mini.evaluation.answers import Answering
from rar_mini.evaluation.judged import ask
from rar_mini.judging import rules
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.turns import without_thoughts


@dataclass(frozen=True)
class Asked:
    """N items of answers, as arrays (N,)."""

    met: ndarray  # what the judge says, NaN if it failed
    truth: ndarray  # what the check says
    who: ndarray  # "own", "family" or "other"
    question: Sequence[str]
    cuts: dict[str, ndarray]  # names of subsets, and which items are in them


def checked(examples: Sequence[Example]) -> list[Example]:
    """The examples whose items all have a check, or weigh nothing. Raises ValueError if there is none."""
    kept = [e for e in examples if all(item.check for item in e.rubric.criteria if item.weight)]
    if not kept:
        raise ValueError("--answers-of needs questions whose items all have a check (docs/data.md), got none")
    return kept


def written(
    policy: str, judge: str, examples: Sequence[Example], tokens: int, how: Asking
) -> tuple[str, list]:
    """Whose answers a policy's are to a judge, and its answers: (example, text) pairs. `policy` is a run, a
    directory, a hub id or chat:NAME, or NAME=FILE for answers that NAME wrote elsewhere."""
    name, _, file = policy.partition("=")
    asking = Answering(name, Path(file) if file else None, max_new_tokens=tokens, long_prompts="skip")
    source = answers.source_of(asking.located()[0], asking, how)
    fitting = source.fitting(examples)
    texts = [(e, each["response"]) for e, each in zip(fitting, source.answer(fitting), strict=True)]
    return whose(judge, name), [(example, text) for example, text in texts if text is not None]


def measure(judge: JudgeLike, answered: Sequence[tuple[str, list[tuple[Example, str]]]]) -> dict[str, Any]:
    """Have the answers of `written` judged without their checks, print and return how they compare."""
    pairs = [(who, example, text) for who, texts in answered for example, text in texts]
    kinds = {who for who, *_ in pairs}
    if "other" not in kinds or len(kinds) < 2:
        raise ValueError(
            "--answers-of: expected answers by the judge's model or its family, and by another, got those of "
            f"{', '.join(sorted(kinds)) or 'nobody'}; NAME=FILE says who wrote a file"
        )
    met = ask(judge, [(labelled.unchecked(example), text) for _, example, text in pairs], "judging").verdict
    items = [(n, k) for n, (_, e, _) in enumerate(pairs) for k, c in enumerate(e.rubric.criteria) if c.weight]
    criteria = [pairs[n][1].rubric.criteria[k] for n, k in items]
    shown = [without_thoughts(text) for _, _, text in pairs]
    truth = np.array([rules.verdict(c, shown[n]) for c, (n, _) in zip(criteria, items, strict=True)])
    words = np.array([len(shown[n].split()) for n, _ in items])
    negative = np.array([c.negative for c in criteria])
    cuts = {"positive items": ~negative, "negative items": negative}
    cuts |= {"shorter answers": words <= np.median(words), "longer answers": words > np.median(words)}
    subjects = np.array([str(pairs[n][1].row.get("subject") or "") for n, _ in items])
    cuts |= {f"subject {name}": subjects == name for name in sorted(set(subjects) - {""})}
    said = np.array([met[n, k] for n, k in items])
    who = np.array([pairs[n][0] for n, _ in items])
    return report(Asked(said, truth, who, [pairs[n][1].id for n, _ in items], cuts))


def whose(judge: str, policy: str) -> str:
    """Whose answers a policy's are to a judge: "own", "family" or "other". A run means its newest checkpoint,
    and is of the family of the model that it began as."""
    mind, name = newest(judge.removeprefix("local:")), newest(policy)
    if Path(mind).resolve() == Path(name).resolve():
        return "own"
    bases = _base(mind), _base(name)
    who = relation(*bases)
    return "family" if who == "own" and bases != (mind, name) else who  # one of them was trained since


def _base(name: str) -> str:
    """The model that a run's checkpoint began as, also over several runs; any other name is its own."""
    passed = set()  # a run may have been deleted, and another one made in its place that began as this one
    while name not in passed and Path(name).parent.name == "checkpoints":
        passed.add(name)
        run = Path(name).parents[1]
        name = Run.reopen(run).settings().policy if (run / "config.json").is_file() else name
    return name


def relation(judge: str, policy: str) -> str:
    """The same by the last parts of two names alone."""
    names = [spec.split(":", 1)[-1].rstrip("/").split("/")[-1].lower() for spec in (judge, policy)]
    if names[0] == names[1]:
        return "own"
    a, b = (re.match(r"[a-z]*", name)[0] for name in names)
    return "family" if a and a == b else "other"


def bias(asked: Asked, of: str = "own", failures: bool = False) -> Callable[[ndarray], float]:
    """The bias towards answers of a kind, as a function of the numbers of items."""
    known = ~np.isnan(asked.met)
    over = ((asked.met >= 0.5) & (asked.truth < 0.5)).astype(float)
    counts = known & (asked.truth < 0.5) if failures else known

    def measure(at: ndarray) -> float:
        at = at[counts[at]]
        return mean(over[at][asked.who[at] == of]) - mean(over[at][asked.who[at] == "other"])

    return measure


def report(asked: Asked) -> dict[str, Any]:
    """Print how much kinder the judge is to its own answers and to its family's, and return the numbers."""
    result: dict[str, Any] = {"items": len(asked.met), "failed": int(np.isnan(asked.met).sum())}
    print(f"\n{'overestimates':<24}" + "".join(f"{name:<26}" for name in ("own - others", "family - others")))
    everything = {"all": np.ones(len(asked.met), dtype=bool)}
    rows = [(name, at, False) for name, at in (everything | asked.cuts).items()]
    for name, among, failures in [*rows[:1], ("of failures", everything["all"], True), *rows[1:]]:
        places, cells = np.flatnonzero(among), {}
        clusters = [asked.question[i] for i in places]
        for of in ("own", "family"):
            measure = bias(asked, of, failures)
            there = (asked.who[places] == of).any()
            nothing = {"value": math.nan, "low": math.nan, "high": math.nan}
            cells[of] = resampled(clusters, lambda at, f=measure, i=places: f(i[at])) if there else nothing
        print(f"{name:<24}" + "".join(f"{interval(each):<26}" for each in cells.values()))
        result[name] = cells
    print()
    return result
