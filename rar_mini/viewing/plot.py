"""A run's curves in one picture: `python -m rar_mini.viewing.plot RUN` writes RUN/plot.png.

One small panel a metric, in the order of a reader's questions: did the reward rise, did it rise on fresh
answers, or did the answers only get longer? A dot is a step and a line is the running mean, because a step's
reward depends on the questions that it drew. A metric that a run did not log has no panel. A judge's verdicts
have a picture of their own: `python evaluate.py judge --plot FILE`.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy import ndarray

from rar_mini.checkpoint import Run, records
from rar_mini.evaluation.agreement import both, share
from rar_mini.options import run_command
from rar_mini.report import paired

LIGHT, DARK, WARM, GREY = "#a8bdd0", "#1f4e79", "#c2571a", "#555555"
STYLE = {"font.size": 8, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold"}
STYLE |= {"axes.edgecolor": "#888888", "xtick.color": GREY, "ytick.color": GREY, "axes.labelcolor": GREY}
STYLE |= {"axes.grid": True, "grid.color": "#ececec", "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.06}
STYLE |= {"errorbar.capsize": 3, "lines.markersize": 4, "legend.frameon": False, "axes.axisbelow": True}
HEAD = "{policy}, {judge}, {method}, {steps} steps of {prompts_per_step} x {group_size}, lr {lr}, seed {seed}"
SERIES = {  # metric: title, unit, and values that are always in sight, with a line
    "reward": ("Reward", "mean reward", ()),
    "completions/mean_length": ("Length of answers", "tokens (mean, range)", (0,)),
    "reward_length_correlation": ("Correlation with length", "Pearson's r in groups", (-1, 0, 1)),
    "completions/clipped_ratio": ("Answers cut off", "share of answers", (0, 1)),
    "reward_std": ("Spread within groups", "std. deviation", (0,)),
    "frac_reward_zero_std": ("Groups that tie", "share of groups", (0, 1)),
    "entropy": ("Entropy", "nats per token", (0,)),
    "kl": ("KL to the start", "nats per token", (0,)),
    "judge/failures": ("Judge failures", "answers a step", (0, 1)),
    "loss": ("Loss on reference answers", "nats", ()),  # for --method sft; the loss of GRPO says little
}
SCALE = {  # the answers of rar_mini/scale.py: a label each and its place, so that none hides another
    "silence": ('"I do not know."', "left", 0.01),
    "echo": ("question", "center", 0.5),
    "reference": ("reference", "right", 0.99),
}


def points(rows: Sequence[dict[str, Any]], *names: str) -> list[tuple[float, ...]]:
    """(step, value, ...) of the rows that have all the named metrics."""
    picked = [(row["step"], *(row.get(name) for name in names)) for row in rows]
    return [p for p in picked if None not in p]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` values in all."""
    parts = [values[max(0, i - window) : i] for i in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]


def scores(rows: Sequence[dict[str, Any]], split: str) -> dict[int, dict[str, float]]:
    """The mean reward of each question of a split, by the step of its evaluation."""
    rewards: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if row["split"] == split and row["reward"] is not None:
            rewards.setdefault(row["step"], {}).setdefault(row["example_id"], []).append(row["reward"])
    return {step: {name: sum(r) / len(r) for name, r in by.items()} for step, by in sorted(rewards.items())}


def _series(rows: Sequence[dict[str, Any]], name: str, window: int, axes: Any) -> None:
    """One metric over the steps."""
    title, unit, marks = SERIES[name]
    steps, values = zip(*points(rows, name), strict=True)
    for mark in marks:
        axes.axhline(mark, color="#bbbbbb", linewidth=0.6, zorder=1)
    # Only the length has a min_ and a max_ beside its mean_; for other metrics the band has no height.
    if band := points(rows, name.replace("mean_", "min_"), name.replace("mean_", "max_")):
        axes.fill_between(*zip(*band, strict=True), color=LIGHT, alpha=0.3, linewidth=0)
    axes.plot(steps, values, ".", color=LIGHT, markersize=5 if len(steps) < 100 else 3)
    axes.plot(steps, running_mean(values, window), color=DARK, linewidth=1.6)
    axes.set(title=title, xlabel="step", ylabel=unit)


def _reward(rows: Sequence[dict[str, Any]], name: str, window: int, axes: Any) -> None:
    """The reward over the steps, and thin lines at what three answers earn that need no model."""
    _series(rows, name, window, axes)
    for fixed, (label, side, x) in SCALE.items():
        for _, value in points(rows, f"eval/train_{fixed}_reward"):
            axes.axhline(value, color=WARM, linewidth=0.7, linestyle="--", zorder=1)
            at, look = axes.get_yaxis_transform(), {"color": WARM, "fontsize": 6, "parse_math": False}
            axes.text(x, value, label, ha=side, va="bottom", transform=at, **look)


def _length(rows: Sequence[dict[str, Any]], axes: Any) -> None:
    """Reward over length: a dot a step, later steps are darker."""
    steps, lengths, rewards = zip(*points(rows, "completions/mean_length", "reward"), strict=True)
    axes.scatter(lengths, rewards, c=steps, cmap="Blues", vmin=-0.4 * max(steps), s=16, linewidth=0)
    axes.set(title="Reward over length", xlabel="mean tokens (later steps darker)", ylabel="mean reward")


def _scores(rows: Sequence[dict[str, Any]], axes: Any) -> None:
    """Fresh answers: the mean over questions, with a bar of two standard errors of its change since the first
    score, paired over questions."""
    shift = 0.012 * max(row["step"] for row in rows)  # so that bars do not hide each other
    for split, label, color, side in (("train", "training", DARK, -1), ("held_out", "held out", WARM, 1)):
        if by_step := scores(rows, split):
            first = next(iter(by_step.values()))
            later = [[rewards.get(name, math.nan) for name in first] for rewards in by_step.values()]
            changes = [paired(list(first.values()), after) or (0.0, 0.0) for after in later]
            if len(by_step) > 1:
                label += f" {changes[-1][0]:+.3f} \u00b1 {2 * changes[-1][1]:.3f}"
            means = [sum(rewards.values()) / len(rewards) for rewards in by_step.values()]
            x = [step + side * shift for step in by_step]
            axes.errorbar(x, means, [2 * e for _, e in changes], color=color, marker="o", label=label)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * (high - low), high + 0.5 * (high - low))  # room for the legend
    axes.legend(loc="upper left", handlelength=1.2, borderaxespad=0.2)
    axes.set(title="Fresh answers", xlabel="step", ylabel="mean reward")


def drawing() -> Any:
    """matplotlib without pyplot, so without a display and global state. Raises ValueError if it is not
    installed."""
    try:
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ValueError(f"plotting needs matplotlib ({error}): pip install -e '.[plot]'") from error
    return matplotlib


def draw(run: tyro.conf.Positional[Path], /, out: Path | None = None) -> Path:
    """Draw a run's curves and scores into one picture.

    Args:
        run: the run's folder
        out: the picture, RUN/plot.png if not given
    """
    matplotlib = drawing()
    settings = Run.reopen(run).written["settings"]
    rows, answers = (records(run, name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    window = max(2, min(20, len(rows) // 5))
    names = [name for name in SERIES if name != "loss" or settings.get("method") == "sft"]
    kinds = {"reward": _reward}
    panels = [partial(kinds.get(name, _series), rows, name, window) for name in names if points(rows, name)]
    if points(rows, "completions/mean_length", "reward"):
        panels.insert(2, partial(_length, rows))
    if scores(answers, "train") or scores(answers, "held_out"):
        panels.insert(1, partial(_scores, answers))
    if not panels:
        raise ValueError(f"{run} has nothing to draw yet: expected a step in metrics.jsonl")
    columns, last = 4 if len(panels) % 3 else 3, max(row["step"] for row in rows + answers)
    lines = math.ceil(len(panels) / columns)
    ticks = partial(matplotlib.ticker.MaxNLocator, 5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)
    note = f"Dots: steps. Lines: mean of the last {window}. Bars: two standard errors of the paired change."
    with matplotlib.rc_context(STYLE):
        sheet = matplotlib.figure.Figure(figsize=(2.7 * columns, 2.0 * lines + 0.8), layout="constrained")
        about = f"{run.absolute().name}: " + HEAD.format_map(defaultdict(lambda: "?", settings))
        sheet.suptitle(textwrap.fill(about, 36 * columns), x=0.01, ha="left", fontsize=10, parse_math=False)
        sheet.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
        for place, panel in enumerate(panels, 1):
            axes = sheet.add_subplot(lines, columns, place)
            panel(axes)
            if axes.get_xlabel() == "step":
                axes.set_xlim(-0.04 * max(1, last), 1.04 * max(1, last))
            axes.xaxis.set_major_locator(ticks(integer=True))
            axes.yaxis.set_major_locator(ticks(integer=axes.get_ylabel() == "answers a step"))
        out = out or run / "plot.png"
        sheet.savefig(out, dpi=200, format=out.suffix[1:] or "png")
    return out


def reliability(verdict: ndarray, label: ndarray, path: Path, title: str) -> Path:
    """Draw the share of items truly met over the verdict: an honest judge is on the diagonal. The bars are
    Wilson's intervals, the numbers count verdicts."""
    verdict, label = both(verdict, label)
    bins = np.minimum((verdict * 10).astype(int), 9)
    rows = [(verdict[bins == b].mean(), label[bins == b].sum(), (bins == b).sum()) for b in np.unique(bins)]
    shares = [share(int(met), int(n)) for _, met, n in rows]
    sheet = drawing().figure.Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = sheet.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for (p, _, n), met in zip(rows, shares, strict=True):
        axes.plot([p, p], [met["low"], met["high"]], color=LIGHT, linewidth=2)
        axes.plot(p, met["value"], "o", color=DARK, markersize=5)
        axes.annotate(f"{n}", (p, met["value"]), (6, -3), textcoords="offset points", fontsize=8)
    axes.set(xlim=(-0.04, 1.1), ylim=(-0.04, 1.04), xlabel="verdict", ylabel="share of items truly met")
    axes.set_title(f"{title}: {len(label)} verdicts, in tenths", loc="left", fontsize=10, parse_math=False)
    sheet.savefig(path, dpi=200, format=path.suffix[1:] or "png")
    return path


if __name__ == "__main__":
    print(run_command(draw, "python -m rar_mini.viewing.plot"))
