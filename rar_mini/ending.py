"""What a run says at its end: how far the reward rose, where it stands on its scale, what was learnt in plain
words, and how to go on."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rar_mini import scale
from rar_mini.checkpoint import records
from rar_mini.report import mean, paired

FEW = 16
"""A score of fewer questions cannot tell what training does from chance."""

Scores = Mapping[str, Sequence[float]]  # by name: a reward a question, NaN where the judge failed
Rows = Sequence[dict[str, Any]]


def conclusion(before: Scores, after: Scores, folder: Path, steps: int) -> str:
    """The scores before and after, what stands behind them, where the run lies, and what to try next."""
    lines: list[str] = []
    if reason := nothing_learnt(records(folder, "metrics.jsonl")):
        lines.append(f"nothing was learnt: {reason}")
    elif steps:
        answers = records(folder, "evaluations.jsonl")
        for split, scores in after.items():
            if not scale.is_fixed(split):
                lines += _change(split, before, scores, [row for row in answers if row["split"] == split])
    # Without steps there are no rollouts, without scores no evaluations, with --save-every 0 no checkpoints.
    names = ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl", "checkpoints/")
    lines += [
        f"run      {folder}: {', '.join(name for name in names if (folder / name).exists())}",
        "next     other questions: --domain science, or --data YOURS.jsonl",
        "         a real judge:    --judge chat:NAME with OPENAI_BASE_URL set",
    ]
    if (folder / "checkpoints").exists() or not steps:  # without one, a resume starts over
        lines.append(f"         more steps:      python train.py --resume {folder} --steps {2 * steps or 32}")
    return "\n".join(lines)


def nothing_learnt(metrics: Rows) -> str:
    """Why no step of a run moved the weights; "" if one did, or if there are no steps."""
    steps = [row for row in metrics if row["step"]]
    if not steps or any(row.get("grad_norm") for row in steps):
        return ""
    ties = [row["frac_reward_zero_std"] for row in steps if row.get("frac_reward_zero_std") is not None]
    if ties and min(ties) == 1:
        return "every group tied, so that no answer counted as better than another"
    return "no answer was trained (see --cut-answers, --resample-ties)"


def _change(split: str, before: Scores, after: Sequence[float], answers: Rows) -> list[str]:
    """What became of a score, of the answers in `answers`."""
    low, high, change = mean(before[split]), mean(after), paired(before[split], after)
    if low is None or high is None:
        return []
    text = f"{split:<8} reward {low:.3f} -> {high:.3f}"
    count = sum(map(math.isfinite, (a + b for a, b in zip(before[split], after, strict=True))))
    few = f"fewer than {FEW} are too few to tell" if count < FEW else ""
    if change is None:
        text += f" (questions with both scores: {count}; {few})"
    else:
        about = "; ".join(filter(None, (f"standard error over {count} questions, fresh answers", few)))
        text += f", change {change[0]:+.3f} +- {change[1]:.3f} ({about})"
    lines = [text]
    if rewards := scale.of({name: mean(scores) for name, scores in before.items()}, split):
        lines.append(f"         the policy stands {scale.place(high, rewards)}")
    if learnt := in_words(answers):
        lines.append(f"         {learnt}")
    return lines


def in_words(answers: Rows) -> str:
    """What answers to the same questions do at the last score beside the first, in plain words; "" if there
    is one score alone."""
    steps = sorted({row["step"] for row in answers})
    if len(steps) < 2:
        return ""
    first, last = ([row for row in answers if row["step"] == step] for step in (steps[0], steps[-1]))
    echo, length, cut = ((measure(first), measure(last)) for measure in (echoed, _length, _cut))
    return (
        f"it repeats the question: {echo[0]:.0%} -> {echo[1]:.0%} of its longer words; "
        f"length {length[0]:.0f} -> {length[1]:.0f} tokens; cut {cut[0]:.0%} -> {cut[1]:.0%} of the answers"
    )


def echoed(answers: Rows) -> float:
    """The share of an answer's words of four letters or more that stand in its question, averaged over the
    answers with such words: the and of stand in every question."""
    shares = []
    for row in answers:
        asked = set(_words(row["prompt"]))
        if words := _words(row["response"]):
            shares.append(sum(word in asked for word in words) / len(words))
    return sum(shares) / len(shares) if shares else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w{4,}", text.lower())


def _length(answers: Rows) -> float:
    return sum(row["tokens"] for row in answers) / len(answers)


def _cut(answers: Rows) -> float:
    return sum(not row["finished"] for row in answers) / len(answers)
