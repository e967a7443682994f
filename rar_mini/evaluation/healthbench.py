"""HealthBench's score, by the rules of OpenAI's simple-evals (healthbench_eval.py).

    row       points of the met items, negative ones included, over the sum of the positive points
    score     the mean over rows, clipped to [0, 1]; a row is not clipped and may be negative
    axis      the same over the items with that tag alone; rows with no positive item there are left out
    theme     the same over the rows with that tag
    std       the deviation of the clipped mean over 1,000 resamples of the rows

A row with no positive item has no score. Nor has a row without an answer, or with an item that the judge
failed at: it is left out of every mean and counted. Counting a failure as unmet would be a penalty on
positive items and a gift on negative ones. An item is met from a probability of 0.5 on.

The arithmetic is the official one; the judge's texts are ours (rar_mini/prompts.py).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from rar_mini.data import BadRow, Example, Weight
from rar_mini.evaluation import answers, labelled
from rar_mini.evaluation.answers import Answered
from rar_mini.evaluation.judged import verdicts
from rar_mini.forms import ABSENT, Form, Many, Text, Unit, printable
from rar_mini.judging.wrappers import JudgeLike

SOURCE = (
    "HealthBench is 2025-05-07-06-14-12_oss_eval.jsonl (5,000 rows; or hard_2025-05-08-21-00-10.jsonl, or "
    "consensus_2025-05-09-20-00-46.jsonl) below "
    "https://openaipublic.blob.core.windows.net/simple-evals/healthbench/ (openai/simple-evals)"
)


class Item(Form):
    """An item of a row that was kept."""

    points: Weight = ABSENT
    verdict: Unit | None
    tags: list[Text] = ABSENT


class Kept(answers.Kept):
    """A row of healthbench.jsonl."""

    rubrics: Many[Item] = ABSENT
    example_tags: list[Text] = ABSENT

    @model_validator(mode="after")
    def _failed(self) -> "Kept":
        """Without this, a verdict that somebody has struck out would count as unmet."""
        if self.failed != any(item.verdict is None and item.points for item in self.rubrics):
            raise PydanticCustomError("failed", "`failed` if and only if an item with points has no verdict")
        return self


def read(path: Path, skip_bad: bool = False) -> list[Example]:
    """HealthBench's rows. Raises ValueError for one in another form, or with `skip_bad` leaves it out."""
    examples = labelled.rows(path, _checked, skip_bad=skip_bad)
    if not examples:
        raise ValueError(f"{path} has no row in HealthBench's form. {SOURCE}")
    return examples


def _checked(example: Example) -> Example:
    if example.rubric.criteria[0].category != "literal":
        raise BadRow("expected HealthBench's form, with `rubrics` and `points`")
    # Before anyone is asked: what will be written can be read again.
    Kept.model_validate({"prompt_id": example.id, "finished": None} | row(example, []))
    return example


def grade(judge: JudgeLike, answered: Answered) -> list[dict[str, Any]]:
    """Have answers judged: what is kept of each besides its text."""
    each = verdicts(judge, answered, "grading")
    return [row(example, verdict) for (example, _), verdict in zip(answered, each, strict=True)]


def row(example: Example, verdict: Sequence[float]) -> dict[str, Any]:
    """What is kept of an answer besides its text, enough to score it again. `verdict` is empty, or has K
    numbers or more in the rubric's order, NaN if the judge failed."""
    items = []
    for item, value in zip(example.row["rubrics"], verdict or repeat(math.nan), strict=False):
        entry = {"criterion": item["criterion"], "points": item["points"], "tags": item.get("tags") or []}
        items.append(entry | {"verdict": None if math.isnan(value) else value})
    failed = any(item["verdict"] is None and item["points"] for item in items)
    return {"failed": failed, "example_tags": example.row.get("example_tags") or [], "rubrics": items}


def kept(path: Path) -> Iterable[dict[str, Any]]:
    """The rows that an evaluation left in its healthbench.jsonl. Raises ValueError if there are none, or if
    one is not as `row` makes it."""
    rows = answers.read_rows(path, Kept)
    if not rows:
        raise ValueError(f"{path} has no rows: expected the healthbench.jsonl of an evaluation's folder")
    return rows.values()


def score(items: Sequence[dict[str, Any]]) -> float | None:
    """The score of a row's items, or of those of one axis: at most 1, below 0 if penalties outweigh; None
    without a positive item."""
    full = sum(item["points"] for item in items if item["points"] > 0)
    met = sum(item["points"] for item in items if (item["verdict"] or 0.0) >= 0.5)
    return met / full if full else None


def mean(scores: Sequence[float]) -> dict[str, float]:
    """The clipped mean of rows' scores, the raw mean, the bootstrap deviation of the clipped one, and the
    number of rows."""
    if not scores:
        return {"score": math.nan, "raw": math.nan, "std": math.nan, "rows": 0}
    draws = np.random.default_rng(0).choice(scores, (1000, len(scores))).mean(-1).clip(0, 1)
    raw = float(np.mean(scores))
    return {"score": min(max(raw, 0.0), 1.0), "raw": raw, "std": float(draws.std()), "rows": len(scores)}


def summary(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The result of rows that were kept; and the means of all rows, by axis and by theme."""
    counts = {"rows": 0, "unscored": 0, "failed": 0, "cut": 0}
    scores: dict[str, list[float]] = {"score": []}
    for row in rows:
        items, whole = row["rubrics"], score(row["rubrics"])
        counts["rows"] += 1
        counts["cut"] += row["finished"] is False
        if whole is None or row["failed"]:
            counts["unscored" if whole is None else "failed"] += 1
            continue
        by_name = {"score": whole} | {tag: whole for tag in row["example_tags"] if tag.startswith("theme:")}
        for tag in {tag for item in items for tag in item["tags"] if tag.startswith("axis:")}:
            by_name[tag] = score([item for item in items if tag in item["tags"]])
        for name, value in by_name.items():
            if value is not None:
                scores.setdefault(name, []).append(value)
    means = {name: mean(scores[name]) for name in sorted(scores, key=lambda name: (name != "score", name))}
    result = {name: means["score"][name] for name in ("score", "raw", "std")}
    for name, prefix in (("axes", "axis:"), ("themes", "theme:")):
        result[name] = {tag: part["score"] for tag, part in means.items() if tag.startswith(prefix)}
    return result | counts, means


def report(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The result of rows that were kept, with a printed table."""
    result, means = summary(rows)
    print(f"\n{'':40}{'clipped':>8}{'raw':>8}{'std':>8}{'rows':>8}")
    for name, part in means.items():
        numbers = (f"{part[key]:.3f}" if part["rows"] else "-" for key in ("score", "raw", "std"))
        print(f"{printable(name):<40}{''.join(f'{number:>8}' for number in numbers)}{part['rows']:>8}")
    print("answers   " + ", ".join(f"{result[name]} {name}" for name in ("unscored", "failed", "cut")))
    return result
