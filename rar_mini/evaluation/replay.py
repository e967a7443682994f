"""A finished run's rollouts, read back for another judge: which of them, and what they answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rar_mini import data
from rar_mini.data import Example
from rar_mini.options import from_json
from rar_mini.rubric import Design


def spaced(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, in whole steps that lie evenly from the first to the last; the last at least."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    if not steps:
        raise ValueError("the run has no rollouts yet: expected the lines of a step in rollouts.jsonl")
    keep = max(1, min(len(steps), most * len(steps) // len(rows)))
    kept = {steps[i] for i in np.linspace(len(steps) - 1, 0, keep).round().astype(int)}
    return [row for row in rows if row["step"] in kept]


def design_of(settings: dict[str, Any]) -> Design:
    """What became of the rubrics of a run; nothing in one from before that was a choice."""
    return from_json(Design(), settings.get("design", {}))


def examples_of(run: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[Example]:
    """The question of each row. Raises ValueError where the run's data is not as it was."""
    file, revision = settings["data"], settings.get("revision")
    bad, weightless = settings.get("skip_bad_rows", False), settings.get("hygiene", False)
    source = data.load(file, settings.get("domain", ""), revision, skip_bad=bad, skip_weightless=weightless)
    known = {example.id: example for example in source}
    for row in rows:
        example = known.get(row["example_id"])
        same = example is not None and row["prompt"] == example.question
        if same and settings["method"] == "rar-explicit":
            judged = [(item["title"], item["weight"]) for item in row["verdicts"]]
            rubric = design_of(settings).apply(example.rubric, example.id)
            same = judged == [(c.title, c.weight) for c in rubric.criteria]
        if not same:
            raise ValueError(
                f"{file or settings['domain']} has changed since the run: expected {row['example_id']!r} "
                f"with the question and the items of {run}/rollouts.jsonl, got "
                f"{'others' if example else 'no such row'}; bring the data back as they were"
            )
    return [known[row["example_id"]] for row in rows]
