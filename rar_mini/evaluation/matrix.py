"""Training judge by evaluation judge: the last held-out answers of several runs, scored by several judges.

After *User simulators* (arXiv 2605.09808): a judge is as good as the policy that is trained by it. A policy
learns what its own judge likes, so that this judge is the last to ask how good it is. `others` is what those
judges say of a run that did not train it. `python -m lab --matrix` makes the same table where the truth is
known.

All runs answer the same questions under the same rubrics and method, and rewards are those of Rubrics as
Rewards whatever the run's recipe: one yardstick. Cut answers are judged as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from rar_mini import recipe
from rar_mini.checkpoint import Run, records
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.evaluation import replay
from rar_mini.evaluation.agreement import interval, mean_over
from rar_mini.evaluation.judged import ask
from rar_mini.forms import printable
from rar_mini.judging.wrappers import JudgeLike


@dataclass(frozen=True)
class Answered:
    """What a run's policy answered to held-out questions when they were last scored."""

    run: Path
    config: Config
    step: int
    answers: list[tuple[Example, str]]  # N; the example of a conversation has all that was said before
    asked: dict[str, Any]  # by name, each question as it stands in the data, and its rubric

    @property
    def yardstick(self) -> list[Any]:
        """What runs that are compared have in common."""
        return [self.config.method, self.config.design, self.asked]


def answered(run: Path) -> Answered:
    """A run's last held-out answers. Raises ValueError if it has none."""
    config = Run.reopen(run).settings()
    rows = [row for row in records(run, "evaluations.jsonl") if row["split"] == "held_out"]
    if not rows:
        raise ValueError(f"{run} has no answers to held-out questions: expected a run with --eval-every")
    rows = [row for row in rows if row["step"] == rows[-1]["step"]]
    examples = replay.examples_of(run, recipe.make(config.recipe, config), rows)
    pairs = list(zip(rows, examples, strict=True))
    answers = [(example, row["response"]) for row, example in pairs]
    asked = {row["example_id"]: (row["prompt"], example.rubric) for row, example in pairs}
    return Answered(run, config, rows[-1]["step"], answers, asked)


def read(runs: Sequence[Path]) -> list[Answered]:
    """The last held-out answers of runs that can be compared. Raises ValueError for others."""
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise ValueError(f"expected two runs or more, each once, got {', '.join(map(str, runs)) or 'none'}")
    found = list(map(answered, runs))
    for each in found[1:]:
        names = ("--method", "rubric design", "held-out questions and rubrics")
        for name, own, first in zip(names, each.yardstick, found[0].yardstick, strict=True):
            if own != first:
                raise ValueError(
                    f"{each.run} cannot be compared with {found[0].run}: expected the same {name}"
                )
    return found


def by_others(said: ndarray, own: ndarray) -> ndarray:
    """What the judges say of each run that did not train it: (R, J, ...) and whether each trained it, (R, J)
    bool -> (R, ...) the mean over these, NaN without one."""
    return np.array(
        [
            each[~mine].mean(0) if not mine.all() else each[0] * np.nan
            for each, mine in zip(said, own, strict=True)
        ]
    )


def report(runs: Sequence[Answered], judges: Sequence[JudgeLike]) -> dict[str, Any]:
    """Print and return the table. A star marks the judge by which a run was trained."""
    wide = max(len(str(each.run)) for each in runs)
    columns = [f"{printable(judge.spec):<24}" for judge in judges]  # a cell has at most 22 characters
    print(f"\n{'run':{wide}} {'step':>6}  " + "  ".join((*columns, "others")))
    result: dict[str, Any] = {}
    for each in runs:
        said = np.array(
            [ask(judge, each.answers, f"asking {judge.spec}").reward for judge in judges]
        )  # (J, N)
        own = np.array([judge.spec == each.config.judge for judge in judges])  # (J,)
        clusters = [example.id for example, _ in each.answers]
        values = [*said, by_others(said[None], own[None])[0]]
        cells = [mean_over(clusters, v) for v in values]
        shown = (interval(cell) + "*" * bool(mine) for cell, mine in zip(cells, [*own, False], strict=True))
        padded = [f"{cell:<{len(name)}}" for cell, name in zip(shown, [*columns, ""], strict=True)]
        print(f"{printable(str(each.run)):{wide}} {each.step:>6}  " + "  ".join(padded))
        by = dict(zip((judge.spec for judge in judges), cells, strict=False))
        facts = {"judge": each.config.judge, "step": each.step, "answers": len(each.answers)}
        result[str(each.run)] = facts | {"failed": int(np.isnan(said).sum()), "by": by, "others": cells[-1]}
    print()
    return result
