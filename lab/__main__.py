"""Compare recipes with the baseline, in a world whose truth is known.

    python -m lab rvpo gdpo                    # two recipes of lab/
    python -m lab my/idea.py "rvpo --k 2"      # a file, and one with options
    python -m lab --full                       # all of lab/, into docs/lab.md and figures/lab.png
    python -m lab --matrix                     # training judge by evaluation judge

A recipe is trained under the clean condition and under those that its file names in CONDITIONS; what is
compared is the truth of fresh answers after training, the recipe's less the baseline's (RaR), seed by seed.
lab/README.md says how a file states its claim. lab/world.py has the world and the conditions.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from lab import paired, world
from lab.paired import Row
from rar_mini import recipe
from rar_mini.evaluation.agreement import correlation
from rar_mini.evaluation.matrix import by_others
from rar_mini.files import write_whole
from rar_mini.options import Within, run_command
from rar_mini.viewing.plot import DARK, GREY, LIGHT, STYLE, WARM, drawing

ROOT = Path(__file__).parents[1]
PAGE, FIGURE, KEPT = ROOT / "docs" / "lab.md", ROOT / "figures" / "lab.png", Path("runs/lab.json")
BEGIN, END = "<!-- python -m lab --full -->\n", "<!-- end -->\n"
LEVEL = 0.6
"""The truth that a training has reached when the mean of its last five steps lies above it."""


@dataclass(frozen=True)
class Form:
    """How much is done."""

    seeds: int
    steps: int
    warm: int  # steps of imitation before


SHORT = Form(seeds=3, steps=40, warm=100)
FULL = Form(seeds=6, steps=80, warm=200)


@dataclass(frozen=True)
class Arm:
    """One way to train: a recipe with its options, None for the baseline, under a condition."""

    recipe: str | None
    condition: str

    def __str__(self) -> str:
        return f"{self.recipe or 'baseline'}, {self.condition}"


@dataclass(frozen=True)
class Comparison:
    """Two arms, and the claim, if any, that the number of the first lies above that of the second."""

    arm: Arm
    other: Arm
    paper: str = ""  # its arXiv number
    claim: str = ""
    number: str = "truth"

    @property
    def against_baseline(self) -> bool:
        """Whether the other is the baseline under the same condition."""
        return self.other == Arm(None, self.arm.condition)


def comparisons(spec: str) -> list[Comparison]:
    """What a recipe's file asks for. Raises ValueError if it names a condition that does not exist."""
    file = vars(world.module(spec))
    if "LACKS" in file:
        raise ValueError(f"{spec} cannot be compared here: the world lacks {file['LACKS']}")
    paper = _paper(file)
    if "CLAIMS" in file and len(shlex.split(spec)) == 1:
        wanted = [
            Comparison(_arm(spec, *arm), _arm(spec, *other), paper, claim, number)
            for claim, number, arm, other in file["CLAIMS"]
        ]
    else:
        claim, named = file.get("CLAIM", ""), file.get("CONDITIONS", ())
        wanted = [
            Comparison(Arm(spec, name), Arm(None, name), paper, claim if name in named else "")
            for name in dict.fromkeys(("clean", *named))
        ]
    for each in wanted:
        if unknown := {each.arm.condition, each.other.condition} - world.CONDITIONS.keys():
            raise ValueError(f"{spec}: expected one of {', '.join(world.CONDITIONS)}, got {unknown.pop()}")
        if each.number not in NUMBERS:
            raise ValueError(f"{spec}: expected one of {', '.join(NUMBERS)}, got {each.number}")
    return wanted


def _paper(file: dict[str, Any]) -> str:
    """The arXiv number in a recipe's docstring; "" without one."""
    found = re.search(r"arXiv (\d{4}\.\d{5})", file["__doc__"] or "")
    return found[1] if found else ""


def _arm(spec: str, options: str, condition: str) -> Arm:
    """An arm of a file's own claims: without options it is the baseline."""
    return Arm(f"{spec} {options}" if options else None, condition)


# --- numbers of a training ----------------------------------------------------------------------------------


def truth(row: Row) -> float:
    """The truth of fresh answers after training."""
    return row["after"]["truth"]


def steps(row: Row) -> float:
    """The steps until the truth reached LEVEL; one more than there were if it never did."""
    curve = np.array(row["curve"])
    means = np.convolve(curve, np.ones(5) / 5, "valid")  # of the five steps that end at 5, 6, ...
    reached = np.flatnonzero(means >= LEVEL)
    return float(reached[0] + 5 if len(reached) else len(curve) + 1)


def auc(row: Row) -> float:
    """The AUC of the condition's judge, before what a recipe's own `judge` makes of it."""
    return row["auc"]


NUMBERS = {"truth": truth, "steps": steps, "auc": auc}


@dataclass(frozen=True)
class Result:
    """A comparison's two means, and their difference with its interval over seeds."""

    of: Comparison
    mean: float
    other: float
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the seeds say of the claim; nothing without one."""
        margin = 1.0 if self.of.number == "steps" else paired.MARGIN
        return paired.verdict(self.low, self.high, margin) if self.of.claim else ""


def results(asked: Sequence[Comparison], rows: Sequence[Row]) -> list[Result]:
    """Every comparison's result."""
    by_arm: dict[Arm, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_arm.setdefault(Arm(row["recipe"], row["condition"]), []).append(row)
    compared = []
    for each in asked:
        a, b = (np.array([NUMBERS[each.number](r) for r in by_arm[x]]) for x in (each.arm, each.other))
        compared.append(Result(each, float(a.mean()), float(b.mean()), *paired.interval(a - b)))
    return compared


def trainings(arms: Sequence[Arm], form: Form, out: Path | None, processes: int) -> list[Row]:
    """Train every arm with every seed. A training in `out` counts if the code that it ran has not changed."""
    jobs = {
        (arm.recipe, arm.condition, world.digest(arm.recipe), seed): (
            arm.recipe,
            arm.condition,
            seed,
            form.steps,
            form.warm,
        )
        for arm in arms
        for seed in range(form.seeds)
    }
    setting = {"steps": form.steps, "warm": form.warm}

    def job(row: Row) -> tuple[Any, ...]:
        return row["recipe"], row["condition"], row["digest"], row["seed"]

    return paired.trainings(world.trained, jobs, job, setting, out, processes)


# --- tables and the picture ---------------------------------------------------------------------------------

HEAD = (
    "paper",
    "claim",
    "recipe",
    "condition",
    "compared with",
    "its number",
    "the other's",
    "difference",
    "verdict",
)


def table(compared: Sequence[Result]) -> list[tuple[str, ...]]:
    """The lines of the table of comparisons."""
    lines = [HEAD]
    for each in compared:
        of, form = each.of, ".1f" if each.of.number == "steps" else ".3f"
        other = "baseline" if of.against_baseline else str(of.other)
        numbers = (f"{each.mean:{form}}", f"{each.other:{form}}")
        gap = f"{each.value:+{form}} [{each.low:+{form}}, {each.high:+{form}}]"
        name = of.arm.recipe or "baseline"
        lines.append((of.paper, of.claim, name, of.arm.condition, other, *numbers, gap, each.verdict))
    return lines


def baselines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The lines of the table of conditions: what the baseline comes to under each."""
    lines = [("condition", "what it means", "truth before", "after", f"steps to {LEVEL} in training")]
    for name, condition in world.CONDITIONS.items():
        own = [row for row in rows if row["recipe"] is None and row["condition"] == name]
        if own:
            reached = np.mean([steps(row) for row in own])
            before = np.mean([row["before"]["truth"] for row in own])
            after = np.array([truth(row) for row in own])
            mean, _, high = paired.interval(after)
            never = f"> {len(own[0]['curve'])}" if reached > len(own[0]["curve"]) else f"{reached:.0f}"
            lines.append((name, condition.says, f"{before:.3f}", f"{mean:.3f} ± {high - mean:.3f}", never))
    return lines


def crossed(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The lines of the table of judges: what each says of the policies that each has trained, what those say
    that did not train it, and the truth. The last line: how each column correlates with the truth."""
    lines, cells = [("trained by", "its AUC", *world.JUDGES, "others", "truth", "95 %")], []
    for name in world.JUDGES:
        own = [row for row in rows if row["recipe"] is None and row["condition"] == name]
        said = np.array([[row["after"]["by"][judge] for row in own] for judge in world.JUDGES])  # (J, S)
        mine = np.array([judge == name for judge in world.JUDGES])
        true, low, high = paired.interval(np.array([truth(row) for row in own]))
        others = by_others(said[None], mine[None])[0].mean()
        cells.append([np.mean([auc(row) for row in own]), *said.mean(-1), others, true])
        shown = (f"{x:.3f}" + "*" * (at == name) for at, x in zip(lines[0][1:], cells[-1], strict=False))
        lines.append((name, *shown, f"{low:.3f} to {high:.3f}"))
    table = np.array(cells)  # (J, J + 3)
    fits = (f"{correlation(column, table[:, -1]):+.2f}" for column in table.T)
    return [*lines, ("correlation with truth", *fits, "")]


def uncompared() -> list[tuple[str, ...]]:
    """The lines of the table of recipes that are not compared."""
    found = [(paper, claim, name, lacks) for name, (paper, claim, lacks) in lacking().items()]
    return [("paper", "claim", "recipe", "the world lacks"), *found]


def plain(lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for a page."""
    head, *rest = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest]) + "\n"


def page(compared: Sequence[Result], rows: Sequence[Row], form: Form) -> str:
    """The part of docs/lab.md that a command writes."""
    return (
        f"{form.seeds} seeds, {form.steps} steps of 4 x 16 answers; intervals are 95 %, over seeds. Numbers\n"
        "are truths of fresh answers to held-out questions after training, or steps until five in a row\n"
        f"have a mean truth of {LEVEL} on training questions; a training that never gets there counts as "
        f"{form.steps + 1}.\nThose of judges are the AUC of verdicts on careless answers.\n\n"
        f"The baseline under each condition:\n\n{markdown(baselines(rows))}\n"
        f"Recipes less what they are compared with:\n\n{markdown(table(compared))}\n"
        "![Truth after training, and what it is compared with](../figures/lab.png)\n\n"
        f"Not compared, because the world lacks what they need:\n\n{markdown(uncompared())}"
    )


def write_page(text: str) -> None:
    """Put a text between docs/lab.md's two marks."""
    whole = PAGE.read_text(encoding="utf-8")
    before, rest = whole.split(BEGIN)
    write_whole(PAGE, (before + BEGIN + text + END + rest.split(END)[1]).encode())


def draw(compared: Sequence[Result]) -> Any:
    """Truth after training, and its difference to the other arm's with its interval, coloured by what that
    says of the claim."""
    colors = {"holds": DARK, "does not hold": WARM, "cannot be told": GREY, "": LIGHT}
    shown = [each for each in compared if each.of.number == "truth"][::-1]
    matplotlib = drawing()
    with matplotlib.rc_context(STYLE):
        sheet = matplotlib.figure.Figure(figsize=(8.6, 1 + 0.22 * len(shown)), layout="constrained")
        truths, gaps = sheet.subplots(1, 2, sharey=True)
        for y, each in enumerate(shown):
            color = colors[each.verdict]
            truths.plot(each.other, y, "o", color=GREY, fillstyle="none")
            truths.plot(each.mean, y, "o", color=color)
            gaps.errorbar(each.value, y, xerr=each.high - each.value, marker="o", color=color)
        for verdict, color in colors.items():
            gaps.plot([], [], "o", color=color, label=verdict or "no claim")
        gaps.plot([], [], "o", color=GREY, fillstyle="none", label="what it is compared with")
        gaps.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=1)
        names = [str(of.arm) if of.against_baseline else of.claim for of in (each.of for each in shown)]
        truths.set_yticks(range(len(shown)), names)
        truths.set_ylim(-0.6, len(shown) - 0.4)
        truths.set(title="Truth after training", xlabel="mean over seeds")
        gaps.set(title="Less what it is compared with", xlabel="difference, 95 % over seeds")
        sheet.legend(loc="outside lower center", ncols=5)
    return sheet


# --- the command line ---------------------------------------------------------------------------------------


def lacking() -> dict[str, tuple[str, str, str]]:
    """The recipes after papers that the world cannot train: paper, claim, and what it lacks."""
    files = {name: vars(world.module(name)) for name in papers()}
    return {
        name: (_paper(file), file.get("CLAIM", ""), file["LACKS"])
        for name, file in files.items()
        if "LACKS" in file
    }


def papers() -> list[str]:
    """The recipes after papers: those beside this file."""
    return [name for name in recipe.names() if "/" not in name]


def main(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    full: bool = False,
    matrix: bool = False,
    seeds: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
    processes: int = 2,
) -> None:
    """Compare recipes with the baseline where the truth is known.

    Args:
        names: recipes as --recipe takes them, each with its options in quotes if it has some
        full: all recipes of lab/ with more seeds and steps, about ten minutes on 2 quiet cores by arithmetic;
            writes docs/lab.md and figures/lab.png, and keeps its trainings in runs/lab.json: it goes on where
            it was stopped
        matrix: train RaR by each of seven judges, and have each of them judge what all have trained; a star
            marks the judge by which a policy was trained
        seeds: trainings of each arm; 3, or 6 with --full
        steps: of each training; 40, or 80 with --full
        out: a JSON file of all trainings; if it is there already, it is continued
        processes: trainings at a time, of one thread each
    """
    if full + matrix + bool(names) != 1:
        raise ValueError(
            "expected names of recipes, --full or --matrix, one of the three; --help explains them"
        )
    base = FULL if full else SHORT
    form = Form(base.seeds if seeds is None else seeds, base.steps if steps is None else steps, base.warm)
    Within(2, len(paired.STUDENT) + 1).refuse("seeds", form.seeds)
    Within(1, 1e9).refuse("steps", form.steps)
    Within(1, 1e4).refuse("processes", processes)
    if full:
        drawing()  # what is missing is said before the work
        KEPT.parent.mkdir(exist_ok=True)
    elif matrix:
        arms = [Arm(None, name) for name in world.JUDGES]
        print(f"{len(arms)} judges x {form.seeds} seeds, {form.steps} steps each")
        print(f"\n{plain(crossed(trainings(arms, form, out, processes)))}")
        return
    names = names or [name for name in papers() if name not in lacking()]
    asked = sum(map(comparisons, names), [])
    arms = [arm for each in asked for arm in (each.arm, each.other)]
    arms += [Arm(None, name) for name in world.CONDITIONS] if full else []
    arms = list(dict.fromkeys(arms))
    print(f"{len(arms)} arms x {form.seeds} seeds, {form.steps} steps each")
    rows = trainings(arms, form, out or (KEPT if full else None), processes)
    compared = results(asked, rows)
    print(f"\n{plain(baselines(rows))}\n\n{plain(table(compared))}")
    if full:
        write_page(page(compared, rows, form))
        draw(compared).savefig(FIGURE, dpi=200)


if __name__ == "__main__":
    run_command(main, "python -m lab")
