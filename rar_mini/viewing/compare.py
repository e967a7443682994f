"""Runs beside each other as a Markdown table: `python -m rar_mini.viewing.compare RUN RUN...`.

First the settings that differ, then scores, time and cost. A score is the mean over questions, with a 95 %
interval by a bootstrap over questions. How far a run lies from the first one is computed on the questions
that both answered, paired, because questions differ more than runs do. What makes two rewards different
things, such as another judge, is said below the table.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from rar_mini.checkpoint import Run, each_record, records
from rar_mini.evaluation import answers, gpqa, healthbench
from rar_mini.evaluation.agreement import mean_over
from rar_mini.forms import printable
from rar_mini.options import run_command
from rar_mini.viewing.page_data import OF_GOLD, cost, described, differences
from rar_mini.viewing.plot import scores

SPLITS = {"train": "training questions", "held_out": "held-out questions"}
YARDSTICK = ("judge", "method", "recipe", "judge_prompts", "cut_answers", "max_new_tokens", "temperature")
YARDSTICK += ("design.rubric_drop", "design.weights", "design.pitfalls", "answers", "gold_judge")
YARDSTICK += ("judging.threshold", "judging.criteria_per_call")
"""Settings that change what a reward means, or how an answer is asked for."""

Score = dict[str, float]
"""A number for each question."""


@dataclass
class Column:
    """What is compared of one folder."""

    name: str
    about: dict[str, Any]
    scores: dict[str, Score]  # by what was scored; "before" is in the name of a score before training
    steps: int
    cost: dict[str, Any]


def read(folder: Path) -> Column:
    """A run's folder, or one in which evaluate.py has left rows. Raises ValueError if it is neither."""
    found: dict[str, Score] = {}
    about, metrics = {}, []
    if (folder / "config.json").exists():
        about, metrics = described(Run.reopen(folder)), records(folder, "metrics.jsonl")
        found |= evaluated(folder)
    found |= benchmarks(folder)
    if not about and not found:
        raise ValueError(
            f"{folder}: expected a run's folder, or one with healthbench.jsonl or gpqa.jsonl, got neither"
        )
    steps = max((row["step"] for row in metrics), default=0)
    return Column(folder.absolute().name, about, found, steps, cost(folder, metrics))


def evaluated(folder: Path) -> dict[str, Score]:
    """The scores of a run's first and last evaluation. A question is known by its name and its text."""
    rows = []
    for row, _ in each_record(folder, "evaluations.jsonl"):
        if called(row["split"]):
            name = f"{row['example_id']}\0{row.get('prompt', '')}"
            rows.append({"split": row["split"], "step": row["step"], "reward": row["reward"]})
            rows[-1]["example_id"] = name
    found = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        words, by_step = called(split), scores(rows, split)
        for step in list(by_step)[:1] + list(by_step)[1:][-1:]:
            found[f"{words}, before training" if step == 0 else words] = by_step[step]
    return found


def called(split: str) -> str | None:
    """A split in words, also one under a gold judge; None for the answers of the scale."""
    gold = OF_GOLD.fullmatch(split)
    return f"{SPLITS['held_out']}, gold judge {gold[1]}".rstrip() if gold else SPLITS.get(split)


def benchmarks(folder: Path) -> dict[str, Score]:
    """The scores of each question of HealthBench and GPQA that evaluate.py has left in a folder."""
    found: dict[str, Score] = {}
    if (file := folder / "healthbench.jsonl").exists():
        rows = answers.read_rows(file, healthbench.Kept)
        each = {name: healthbench.score(row["rubrics"]) for name, row in rows.items() if not row["failed"]}
        found["HealthBench, not clipped"] = {name: score for name, score in each.items() if score is not None}
    if (file := folder / "gpqa.jsonl").exists():
        right: dict[str, list[float]] = {}
        for row in answers.read_rows(file, gpqa.Kept).values():
            if not row["failed"]:
                right.setdefault(row["question"], []).append(float(row["correct"]))
        found["GPQA"] = {name: sum(each) / len(each) for name, each in right.items()}
    return found


def interval(values: Sequence[float], form: str) -> str:
    """A mean over questions with its interval."""
    import numpy as np

    numbers = np.array(values, dtype=float)
    result = mean_over(range(len(numbers)), numbers)
    shown = {name: format(value, form) for name, value in result.items()}
    return "{value} [{low}, {high}]".format_map(shown) if len(numbers) > 1 else shown["value"]


def paired(later: Score, first: Score) -> str:
    """How far a score lies from another one on the questions of both."""
    both = [name for name in later if name in first]
    if len(both) < 2:
        return f"no pairs: {len(both)} questions in common"
    return f"{interval([later[name] - first[name] for name in both], '+.3f')} ({len(both)} pairs)"


def score_rows(columns: Sequence[Column]) -> Iterator[list[str]]:
    """A line for each score, one for its change since before training, and one for how far it lies from the
    first run's."""
    names = dict.fromkeys(name for column in columns for name in column.scores)
    for name in names:
        each = [column.scores.get(name) for column in columns]
        yield [name, *(interval(list(score.values()), ".3f") if score else "-" for score in each)]
        before = [column.scores.get(f"{name}, before training") for column in columns]
        if any(before):
            pairs = zip(each, before, strict=True)
            yield ["- change by training", *(paired(a, b) if a and b else "-" for a, b in pairs)]
        if len(columns) > 1 and any(each[1:]):
            first = each[0]
            differ = (paired(score, first) if score and first else "-" for score in each[1:])
            yield [f"- less {columns[0].name}'s", "", *differ]


def cost_rows(columns: Sequence[Column]) -> Iterator[list[str]]:
    """Steps, time of their stages without evaluations, and money, evaluations included."""
    yield ["steps", *(str(column.steps) for column in columns)]
    for stage in ("sample", "judge", "train"):
        seconds = (f"{column.cost['seconds'][stage]:,.1f}" for column in columns)
        yield [f"seconds of the steps, {stage}", *seconds]
    yield ["dollars", *(f"{column.cost['dollars']:.4f}" for column in columns)]


def cell(value: Any) -> str:
    """A text for a cell of a Markdown table, in which nothing of it is markup. A bare address of the web
    may still become a link: it leads to what it says. An underscore within a word acts nowhere."""
    text = value if isinstance(value, str) else "-" if value is None else repr(value)
    return re.sub(r"[\\|<`*~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(", r"\\\g<0>", printable(text))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [list(map(cell, head)), ["---"] * len(head), *(list(map(cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(columns: Sequence[Column]) -> str:
    """Settings that differ, scores, time and cost, and what makes rewards hard to compare."""
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
        columns = [replace(column, name=name) for name, column in zip(names, columns, strict=True)]
    differ = differences([column.about for column in columns])
    parts = [table(["settings", *names], differ)] if differ else ["The settings are the same."]
    parts.append(table(["score", *names], list(score_rows(columns))))
    parts.append(table(["cost", *names], list(cost_rows(columns))))
    if other := [row[0] for row in differ if row[0] in YARDSTICK]:
        parts.append(f"Rewards of these runs are not the same thing: they differ in {', '.join(other)}.")
    return "\n\n".join(parts)


def main(runs: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
    """Print a Markdown table of runs: settings that differ, scores with intervals, time and cost.

    Args:
        runs: folders of runs, or those in which evaluate.py has left rows; all are compared with the first
    """
    if not runs:
        raise ValueError("expected a run's folder or more, got none")
    print(markdown([read(folder) for folder in runs]))


if __name__ == "__main__":
    run_command(main, "python -m rar_mini.viewing.compare")
