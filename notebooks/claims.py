"""A small world in which the truth is known, and the paper's claims tested in it.

    python notebooks/claims.py
    python notebooks/claims.py --full --out claims.json --figure figures/claims.png

The first line is the short form, a look at the machinery; the second is the one that LOG.md reports. What was
trained stays in --out: the same line goes on where it was stopped. claims.ipynb tells the story.

**The world** and its policy are those of lab/world.py: answers that state facts, rightly or wrongly, and a
small decoder that train.py's own functions train. Only the judge is this file's. All arms of a seed are
compared in pairs, and intervals are Student's over seeds, 95 %.

**The judges.** All are the truth plus Gaussian noise, fresh for each answer. One number, sigma, says how weak
a judge is: the deviation of one impression of a thing that lies between 0 and 1.

    rar-explicit      an impression of each criterion, said as yes or no: wrong with P(noise > 1/2)
    rar-implicit      impressions of all criteria in one reading, weighed and said as one rating from 1 to 10;
                      a tenth of their variance is common to all (HALO): who reads once, errs as a whole
    direct-likert     one impression of the answer, plus BIAS times its length, said as a rating
    reference-likert  the same with half the variance: it has something to compare with (an assumption)
    rar-predefined    four impressions, each said as yes or no: the share of stated facts that are right, the
                      share of essential criteria met, the share of words that neither pad nor repeat, and the
                      truth

**Equal quality** has two readings, and the claims may hinge on which is meant:

    noise             all methods get the same sigma: the same reader, asked in other ways
    accuracy          each method gets the sigma with which it orders pairs of careless answers to a question
                      as often rightly as rar-explicit does (ties count half). What is left are the length
                      bias, the scale of ten and what happens once answers are no longer careless; a second
                      direct-likert arm without the bias tells these apart

Predefined criteria measure something else, and reference-likert differs from direct-likert by its noise
alone: neither has an arm of its own in the second reading.

**Verdicts**, as lab/paired.py has them: a claim holds, does not hold, or cannot be told from these seeds.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lab/ and train.py stand there, not installed

import numpy as np
import torch
from torch import Tensor

from judge import METHODS
from lab import paired
from lab.paired import STUDENT, interval  # noqa: F401  the tests, too
from lab.world import (  # noqa: F401  claims.ipynb and the tests find all of the world here
    ROOM,
    Truth,
    Writer,
    beginner,
    careless,
    careless_answers,
    decoder,
    examined,
    pose,
    questions,
    roll,
    settings,
    training,
    true_verdicts,
    truth,
)
from rar_mini import grpo
from rar_mini.data import Example
from rar_mini.options import run_command
from rar_mini.rubric import rating_to_unit
from rar_mini.scores import Scores
from rar_mini.viewing.plot import DARK, GREY, STYLE, WARM, drawing

BIAS = 0.2
"""What an answer of full length gains in a Likert judge's eyes over one of no length."""
HALO = 0.1
"""The share of an implicit judge's noise that all criteria of an answer have in common."""
AIDED = 0.5
"""The share of its noise's variance that is left to a Likert judge who sees the reference."""


@dataclass(frozen=True)
class Form:
    """How much is done."""

    seeds: int
    levels: tuple[float, ...]  # sigma, from the strongest judge to the weakest
    steps: int
    warm: int  # steps of imitation before


SHORT = Form(seeds=3, levels=(0.5, 2.0), steps=30, warm=100)
FULL = Form(seeds=6, levels=(0.25, 0.5, 1.0, 2.0), steps=80, warm=200)

# --- judges -------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """The truth plus noise, asked by one of the paper's methods; in train.py's eyes a judge like others."""

    method: str
    sigma: float  # the deviation of one impression of a thing in [0, 1]
    bias: float = BIAS
    halo: float = HALO
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **_: Any) -> Scores:
        """As judge.Judge's, of responses[p][g]."""
        self.seen = truth(examples, responses)
        return self.opinion(self.seen)

    def opinion(self, of: Truth) -> Scores:
        """What the judge says of answers of which this is true."""
        if self.method in ("rar-explicit", "rar-predefined"):
            own = self.method == "rar-explicit"
            quality, weight = (of.verdict, of.weight) if own else (of.generic, torch.ones(len(of.weight), 4))
            said = (quality + self._noise(quality) > 0.5).float()  # (P, G, K)
            return Scores(said, weight, torch.full_like(of.value, math.nan), [])
        if self.method == "rar-implicit":
            share = of.weight / of.weight.sum(-1, keepdim=True)  # (P, K)
            single = (self._noise(of.verdict) * share[:, None]).sum(-1)  # (P, G)
            noise = self.halo**0.5 * self._noise(of.value) + (1 - self.halo) ** 0.5 * single
        else:
            aid = AIDED**0.5 if self.method == "reference-likert" else 1.0
            noise = aid * self._noise(of.value) + self.bias * (of.length - 0.5)
        rating = 1 + (9 * (of.value + noise).clamp(0, 1)).round()  # (P, G)
        return Scores(rating_to_unit(rating)[..., None], torch.ones(len(rating), 1), rating, [])

    def _noise(self, like: Tensor) -> Tensor:
        return self.sigma * torch.randn(like.shape, generator=self.random)


def pair_accuracy(judge: Judge, of: Truth) -> float:
    """How often the judge orders two answers to one question as the truth does; ties count half."""
    rewards = of.value, grpo.reward(judge.opinion(of))
    better, preferred = (x[:, :, None] - x[:, None] for x in rewards)
    right = (better * preferred > 0).float() + 0.5 * (preferred == 0)  # (P, G, G)
    return right[better.abs() > 1e-6].mean().item()


def equally_accurate(target: float, of: Truth, method: str, bias: float) -> float:
    """The sigma with which a judge reaches a pair accuracy, by bisection; the least, 1/64, where even that
    one falls short. A fresh judge draws the same noise each time, so that accuracy falls smoothly."""
    low, high = -6.0, 6.0  # in doublings
    for _ in range(16):
        middle = (low + high) / 2
        reached = pair_accuracy(Judge(method, 2**middle, bias), of) > target
        low, high = (middle, high) if reached else (low, middle)
    return 2**low


# --- one training -------------------------------------------------------------------------------------------

EQUAL = {  # arms of the second reading: method and length bias
    "direct-likert, equal accuracy": ("direct-likert", BIAS),
    "direct-likert, equal accuracy, no bias": ("direct-likert", 0.0),
    "rar-implicit, equal accuracy": ("rar-implicit", BIAS),
}


@dataclass(frozen=True)
class Arm:
    """One judge to train on."""

    name: str  # a method, or a key of EQUAL
    method: str
    level: float  # the sigma of the rar-explicit judge that it is compared with
    sigma: float
    bias: float
    accuracy: float  # on pairs of careless answers


def arms(form: Form) -> list[Arm]:
    """Every judge that is trained on, level by level."""
    answers, found = careless_answers(0, 64), []
    for level in form.levels:
        target = pair_accuracy(Judge("rar-explicit", level), answers)
        for name in (*METHODS, *EQUAL):
            method, bias = EQUAL.get(name, (name, BIAS))
            sigma = equally_accurate(target, answers, method, bias) if name in EQUAL else level
            accuracy = pair_accuracy(Judge(method, sigma, bias), answers)
            found.append(Arm(name, method, level, sigma, bias, accuracy))
    return found


def trained(arm: Arm, form: Form, seed: int) -> dict[str, Any]:
    """Train a beginner on one judge: how the policy does before, on the way and after."""
    config, known = settings(form.steps, seed), questions(seed)
    weights, before = beginner(form.warm, seed)
    actor = Writer(decoder(seed))
    actor.model.load_state_dict(weights)
    t, curve = training(config, actor), []
    t.questions, t.judge = known, Judge(arm.method, arm.sigma, arm.bias, seed=seed)
    for step in range(1, config.steps + 1):
        roll(t, step)
        curve.append(t.judge.seen.value.mean().item())
    after = examined(config, actor, known["held_out"])
    return {"arm": asdict(arm), "seed": seed, "before": before, "after": after, "curve": curve}


def trainings(form: Form, out: Path | None = None, processes: int = 1) -> list[dict[str, Any]]:
    """Train on every arm with every seed: by level, arm and seed. `out` is rewritten after each training, and
    what it holds is not done again."""
    jobs = {(arm, seed): (arm, form, seed) for arm, seed in product(arms(form), range(form.seeds))}

    def job(row: dict[str, Any]) -> tuple[Arm, int]:
        return Arm(**row["arm"]), row["seed"]

    return paired.trainings(trained, jobs, job, setting(form), out, processes)


def setting(form: Form) -> dict[str, Any]:
    """What the numbers of a file depend on, as JSON has it."""
    world = {"bias": BIAS, "halo": HALO, "aided": AIDED, "room": ROOM}
    return asdict(form) | world | {"levels": list(form.levels)}


# --- what comes out -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A number that lies above 0 if the claim is true, with its interval over seeds."""

    number: int
    text: str
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return paired.verdict(self.low, self.high)


def table(rows: Sequence[dict[str, Any]], *path: str) -> dict[str, np.ndarray]:
    """One number of every training, (seeds, levels), by arm; `path` leads to it in a row."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        cells = found.setdefault(row["arm"]["name"], {}).setdefault(row["arm"]["level"], [])
        cells.append(reduce(dict.__getitem__, path, row))
    return {name: np.array(list(cells.values())).swapaxes(0, 1) for name, cells in found.items()}


def gaps(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """How much truer rar-explicit makes a policy than each direct-likert arm does, (seeds, levels)."""
    truth = table(rows, "after", "truth")
    return {name: truth["rar-explicit"] - cells for name, cells in truth.items() if "direct" in name}


COMPARED = [  # claim, an arm, and the arm that it lies above if the claim is true
    (1, "rar-explicit", "reference-likert"),
    (1, "rar-implicit", "direct-likert"),
    (4, "rar-implicit", "rar-explicit"),
    (4, "rar-implicit, equal accuracy", "rar-explicit"),
    (5, "direct-likert", "rar-predefined"),
    (5, "rar-explicit", "rar-predefined"),
    (5, "rar-predefined", "no training"),
]


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """The paper's five claims, each in every reading that there are arms for."""
    truth = table(rows, "after", "truth")
    truth["no training"] = table(rows, "before", "truth")["rar-explicit"]
    found = [(1, f"rar-explicit less {name}", gap.mean(1)) for name, gap in gaps(rows).items()]
    for name, gap in gaps(rows).items():
        spread = truth[name].std(1) - truth["rar-explicit"].std(1)
        found.append((2, f"that at the weakest less at the strongest, {name}", gap[:, -1] - gap[:, 0]))
        found.append((3, f"spread across judges, {name} less rar-explicit", spread))
    found += [(n, f"{arm} less {other}", (truth[arm] - truth[other]).mean(1)) for n, arm, other in COMPARED]
    found.sort(key=lambda each: each[0])
    return [Claim(number, text, *interval(values)) for number, text, values in found]


def tell(rows: Sequence[dict[str, Any]]) -> str:
    """The tables that a person reads."""
    tables = {
        "the judge's own sigma": (table(rows, "arm", "sigma"), ".3f"),
        "careless pairs in the right order": (table(rows, "arm", "accuracy"), ".3f"),
        "truth after training": (table(rows, "after", "truth"), ".3f"),
        "words of an answer": (table(rows, "after", "words"), ".1f"),
        "words of padding in it": (table(rows, "after", "padding"), ".1f"),
        "truth of rar-explicit less that of": (gaps(rows), "+.3f"),
    }
    head = "".join(f"{f'sigma {level:g}':>16}" for level in sorted({row["arm"]["level"] for row in rows}))
    lines = []
    for title, (arms_of, form) in tables.items():
        lines.append(f"{title:<40}{head}")
        for name, cells in arms_of.items():
            lines.append(f"{name:<40}" + "".join(f"{_cell(each, form):>16}" for each in cells.T))
        lines.append("")
    for c in claims(rows):
        lines.append(f"{c.number}  {c.text:<80} {c.value:+.3f} [{c.low:+.3f}, {c.high:+.3f}]  {c.verdict}")
    return "\n".join(lines)


def _cell(values: np.ndarray, form: str) -> str:
    """A mean over seeds, with half of its interval where they differ."""
    mean, _, high = interval(values)
    half = f" \u00b1 {high - mean:{form.lstrip('+')}}" if high - mean > 1e-9 else ""
    return f"{mean:{form}}{half}"


COLORS = {"rar-explicit": DARK, "rar-implicit": "#4f8fc4", "direct-likert": WARM}
COLORS |= {"reference-likert": "#e3a57e", "rar-predefined": GREY}


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """Four panels: truth by judge, the gap by judge, the way there, and truth by pair accuracy."""
    matplotlib = drawing()
    accuracy, truth = table(rows, "arm", "accuracy"), table(rows, "after", "truth")
    curves, level = table(rows, "curve"), np.array(sorted({row["arm"]["level"] for row in rows}))
    middle = (len(level) - 1) // 2
    with matplotlib.rc_context(STYLE | {"lines.markersize": 3.5, "errorbar.capsize": 0}):
        sheet = matplotlib.figure.Figure(figsize=(10.8, 3.0), layout="constrained")
        by_judge, by_reading, way, by_accuracy = sheet.subplots(1, 4)
        for place, (method, color) in enumerate(COLORS.items()):
            _bars(by_judge, level * 1.05 ** (place - 2), truth[method], color=color, label=method)
            own = curves[method][:, middle].mean(0)  # (steps,)
            way.plot(range(1, len(own) + 1), own, color=color, linewidth=1.2)
        for place, (name, gap) in enumerate(gaps(rows).items()):
            look = {"color": (DARK, WARM, GREY)[place], "label": name.partition(", ")[2] or "equal noise"}
            _bars(by_reading, level * 1.05 ** (place - 1), gap, **look)
        for name, cells in truth.items():
            color = COLORS[name.partition(",")[0]]
            face = "none" if name in EQUAL else color
            by_accuracy.scatter(accuracy[name][0], cells.mean(0), s=18, edgecolor=color, facecolor=face)
        for axes in (by_judge, by_reading):
            axes.set_xscale("log", base=2)
            axes.set_xticks(level, [f"{each:g}" for each in level])
            axes.set_xlabel("sigma: how weak the judge is")
        low, high = by_reading.get_ylim()
        by_reading.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
        by_reading.legend(loc="upper left", handlelength=1.2, borderaxespad=0.2)
        by_reading.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=1)
        by_judge.set(title="After training", ylabel="truth, held-out questions")
        by_reading.set(title="Explicit less direct Likert", ylabel="difference of truth")
        way.set(
            title=f"On the way, sigma {level[middle]:g}", xlabel="step", ylabel="truth, training questions"
        )
        by_accuracy.set(title="All (hollow: equal accuracy)", xlabel="careless pairs in order")
        by_accuracy.set(ylabel="truth, held-out questions")
        sheet.legend(*by_judge.get_legend_handles_labels(), loc="outside lower left", ncols=5)
    return sheet


def _bars(axes: Any, x: np.ndarray, values: np.ndarray, **look: str) -> None:
    """Means over seeds with their intervals, of values (seeds, levels)."""
    half = [interval(each)[2] - each.mean() for each in values.T]
    axes.errorbar(x, values.mean(0), half, marker="o", linewidth=1.2, elinewidth=0.8, **look)


def main(full: bool = False, out: Path | None = None, figure: Path | None = None, processes: int = 2) -> None:
    """Test the paper's claims in a world whose truth is known.

    Args:
        full: more judges, seeds and steps; a quarter of an hour on two cores
        out: a JSON file of all trainings; if it is there already, it is continued
        figure: where the picture goes
        processes: trainings at a time, of one thread each
    """
    if figure:
        drawing()  # what is missing is said before the work
    rows = trainings(FULL if full else SHORT, out, processes)
    print(tell(rows))
    if figure:
        draw(rows).savefig(figure, dpi=200)


if __name__ == "__main__":
    run_command(main, "claims.py")
