"""A step's rollouts for a person to read: the best and the worst answer of each group side by side, and the
verdicts that tell them apart."""

import math
import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from rar_mini import grpo
from rar_mini.checkpoint import Run, records
from rar_mini.config import Config
from rar_mini.evaluation.replay import groups_of, refuse_uneven
from rar_mini.forms import printable
from rar_mini.scores import NAN, Scores, transcript


def show(folder: Path, step: int | None = None, width: int | None = None) -> str:
    """The rollouts of one step of a run, the last one if `step` is None.

    `width` is the terminal's unless given. Raises ValueError if there is no run or no such step.
    """
    width = max(60, width or shutil.get_terminal_size((100, 24)).columns)
    groups = groups_at(Run.reopen(folder), step)
    step = groups[0][0]["step"]
    head = f"step {step} of {folder}: the best and the worst answer of each group, * where verdicts differ"
    return "\n\n".join([head, *(_group(group, width) for group in groups)])


def groups_at(run: Run, step: int | None = None) -> list[list[dict[str, Any]]]:
    """The rows of each group of one step of a run, the last one if `step` is None. Raises ValueError if there
    is no such step."""
    folder, settings = run.folder, run.written["settings"]
    if settings.get("method") == "sft":
        raise ValueError(f"{folder} learnt from reference answers (--method sft): it has no rollouts to show")
    rows = records(folder, "rollouts.jsonl")
    steps = sorted({row["step"] for row in rows})
    if not steps:
        raise ValueError(f"{folder} has no rollouts yet: expected the lines of a step in rollouts.jsonl")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{folder} has no step {step}: expected one from {steps[0]} to {steps[-1]}")
    rows = [row for row in rows if row["step"] == step]
    groups = groups_of(rows, settings.get("group_size", Config.group_size))
    refuse_uneven(folder / "rollouts.jsonl", rows, groups)
    return [[rows[i] for i in group] for group in groups]


def _group(rows: list[dict[str, Any]], width: int) -> str:
    """One question and two of its answers. If fewer than two have a reward, one without is shown."""
    ranked = sorted(rows, key=lambda row: (row["reward"] is not None, row["reward"] or 0.0))
    scored = [row for row in ranked if row["reward"] is not None]
    worst, best = (scored if len(scored) > 1 else ranked)[0], ranked[-1]
    rewards = f"rewards {scored[0]['reward']:.3f} to {scored[-1]['reward']:.3f}" if scored else "no reward"
    failed = f", the judge failed on {len(rows) - len(scored)}" if len(scored) < len(rows) else ""
    lines = [f"== {printable(best['example_id'])}: {len(rows)} answers, {rewards}{failed}"]
    lines += [*textwrap.wrap(printable(best["prompt"]), width), ""]
    lines += _beside(f"best: {_reward(best)}", f"worst: {_reward(worst)}", width)
    lines += _beside(_length(best), _length(worst), width) + [""]
    answers = [printable(transcript(row)) or "(nothing)" for row in (best, worst)]
    lines += _beside(*answers, width) + [""]
    for a, b in zip(best["verdicts"], worst["verdicts"], strict=True):
        mark = "*" if a["verdict"] != b["verdict"] else " "
        weight = f"weight {a['weight']:<4g} {printable(a['category']):<10}"
        how = " (checked)" if a.get("checked") else ""
        if "choices" in a:
            how = f" ({' < '.join(map(printable, a['choices']))})"
        lines.append(f"{mark} {_verdict(a):>4} {_verdict(b):>4}  {weight} {printable(a['title'])}{how}")
    return "\n".join(lines)


def _reward(row: dict[str, Any]) -> str:
    reward = "none" if row["reward"] is None else f"{row['reward']:.3f}"
    if any(item.get("checked") for item in row["verdicts"]):
        reward += f" (checked {_part(row, True)}, judged {_part(row, False)})"
    return f"reward {reward}, advantage {row['advantage']:+.2f}"


def _part(row: dict[str, Any], checked: bool) -> str:
    """The reward by the items with a check alone, or by the judged ones alone."""
    items = [item for item in row["verdicts"] if item.get("checked", False) == checked]
    verdict = torch.tensor([[[NAN if item["verdict"] is None else item["verdict"] for item in items]]])
    weight = torch.tensor([[item["weight"] for item in items]])
    reward = grpo.reward(Scores(verdict, weight, torch.full((1, 1), NAN), [])).item()
    return "none" if math.isnan(reward) else f"{reward:.3f}"


def _length(row: dict[str, Any]) -> str:
    rating = "" if row["rating"] is None else f", rated {row['rating']:g}"
    return f"{row['tokens']} tokens, {'ended' if row['finished'] else 'cut'}{rating}"


def _verdict(item: dict[str, Any]) -> str:
    return "?" if item["verdict"] is None else f"{item['verdict']:.2f}".removesuffix(".00")


def _beside(left: str, right: str, width: int) -> list[str]:
    """Two texts in two columns."""
    column = (width - 3) // 2
    pairs = zip_longest(*(textwrap.wrap(text, column) for text in (left, right)), fillvalue="")
    return [f"{a:<{column}} | {b}".rstrip() for a, b in pairs]
