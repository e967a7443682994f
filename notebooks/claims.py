"""A small world in which the truth is known, and the paper's claims tested in it.

    python notebooks/claims.py
    python notebooks/claims.py --full --out claims.json --figure figures/claims.png

The first line is the short form, a look at the machinery; the second is the one that LOG.md reports. What was
trained stays in --out: the same line goes on where it was stopped. claims.ipynb tells the story.

**The world.** The bundled questions lend their rubrics: how many criteria, of which category and weight. What
a criterion is about is one fact, `c+` or `c-`, and the question says which of the two holds. An answer is at
most 12 words: facts, right or wrong, padding (`um`), and an end. A criterion is met where its fact is stated
and the opposite is not; a pitfall is avoided where the opposite is not stated. So every criterion's true
verdict is known, and the *truth* of an answer is Eq. 1 of the true verdicts. Nothing is charged for length.

**The policy.** A decoder of one layer first imitates a careless author, who skips three facts in ten, gets
one in three wrong and pads. Then train.py's own functions train it (sampler, group advantages, loss, AdamW):
only the judge is this file's. Policies are compared by the truth of fresh answers to the 32 held-out
questions, whose rubrics and facts they never saw. All arms of a seed share its facts, its beginner, the order
of its questions and the random numbers of its sampling, so they are compared in pairs, and intervals are
Student's over seeds, 95 %.

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

**Verdicts.** A claim holds where the interval of its number lies above 0; it does not where the interval lies
below MARGIN, a difference that we would not call one; else it cannot be told from these seeds.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache, reduce
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # train.py stands there, and is not installed

import numpy as np
import torch
import tyro
from torch import Tensor
from transformers import LlamaConfig

import train
from judge import METHODS
from rar_mini import data, grpo
from rar_mini.checkpoint import environment, write_json
from rar_mini.config import PRESETS, Config
from rar_mini.data import Example
from rar_mini.kernels.adamw import AdamW
from rar_mini.model import Decoder
from rar_mini.progress import progress_bar
from rar_mini.recipe import Recipe
from rar_mini.report import Clock
from rar_mini.rubric import rating_to_unit
from rar_mini.sampler import Completion, Request, sample, uniforms
from rar_mini.scores import Rollouts, Scores
from rar_mini.setup import Training
from rar_mini.viewing.plot import DARK, GREY, STYLE, WARM, drawing

BIAS = 0.2
"""What an answer of full length gains in a Likert judge's eyes over one of no length."""
HALO = 0.1
"""The share of an implicit judge's noise that all criteria of an answer have in common."""
AIDED = 0.5
"""The share of its noise's variance that is left to a Likert judge who sees the reference."""
MARGIN = 0.02
"""A difference of truth that we would not call one."""


@dataclass(frozen=True)
class Form:
    """How much is done."""

    seeds: int
    levels: tuple[float, ...]  # sigma, from the strongest judge to the weakest
    steps: int
    warm: int  # steps of imitation before


SHORT = Form(seeds=3, levels=(0.5, 2.0), steps=30, warm=100)
FULL = Form(seeds=6, levels=(0.25, 0.5, 1.0, 2.0), steps=80, warm=200)

# --- the world ----------------------------------------------------------------------------------------------

LETTERS = "abcdefghijkl"  # the longest rubric of the sample has twelve criteria
PADDING = "um"
WORDS = ["<end>", "<answer>", PADDING, *(letter + sign for letter in LETTERS for sign in "+-")]
NUMBER = {word: i for i, word in enumerate(WORDS)}
ROOM = 12
"""Words of an answer, its end included."""


def pose(example: Example, holds: Iterable[bool]) -> Example:
    """Make an example a question of this world: for each criterion one fact, which holds or does not."""
    facts = " ".join(letter + "-+"[bool(x)] for letter, x in zip(LETTERS, holds, strict=False))
    return dataclasses.replace(example, messages=({"role": "user", "content": facts},), reference=facts)


def questions(seed: int) -> dict[str, list[Example]]:
    """The 64 training and 32 held-out questions of a seed."""
    examples = [example for domain in ("medical", "science") for example in data.sample(domain)]
    posed = [pose(e, uniforms(seed, 0, f"facts of {e.id}", 0, len(e.rubric)) < 0.5) for e in examples]
    return {split: [e for e in posed if e.split == split] for split in ("train", "held_out")}


def opposite(fact: str) -> str:
    return fact[0] + "+-"[fact[1] == "+"]


def true_verdicts(example: Example, response: str) -> list[float]:
    """For each criterion 1 where the answer is good on it, else 0: (K,)."""
    said, verdicts = set(response.split()), []
    for fact, criterion in zip(example.reference.split(), example.rubric.criteria, strict=True):
        clean = opposite(fact) not in said
        verdicts.append(float(clean and (criterion.asks_avoidance or fact in said)))
    return verdicts


def generic(example: Example, response: str, verdicts: Sequence[float]) -> list[float]:
    """How far an answer is correct, complete and concise, each in [0, 1]; nothing said is correct and
    concise."""
    words, criteria = response.split(), example.rubric.criteria
    stated = [word for word in words if word != PADDING]
    right = sum(word in example.reference.split() for word in stated)
    essential = [v for v, c in zip(verdicts, criteria, strict=True) if c.category == "essential"]
    shares = (right, len(stated)), (sum(essential), len(essential)), (len(set(stated)), len(words))
    return [part / whole if whole else 1.0 for part, whole in shares]


@dataclass(frozen=True)
class Truth:
    """What is true of P x G answers."""

    verdict: Tensor  # (P, G, K)
    weight: Tensor  # (P, K)
    value: Tensor  # (P, G) Eq. 1
    length: Tensor  # (P, G) words over ROOM
    generic: Tensor  # (P, G, 4) correct, complete, concise, useful


def truth(examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> Truth:
    """Read responses[p][g], the G answers to each of P questions."""
    P, G, K = len(examples), len(responses[0]), max(len(e.rubric) for e in examples)
    verdict, weight, shares = torch.zeros(P, G, K), torch.zeros(P, K), torch.zeros(P, G, 4)
    for p, example in enumerate(examples):
        weight[p, : len(example.rubric)] = torch.tensor(example.rubric.weights)
        for g, response in enumerate(responses[p]):
            verdicts = true_verdicts(example, response)
            verdict[p, g, : len(verdicts)] = torch.tensor(verdicts)
            shares[p, g, :3] = torch.tensor(generic(example, response, verdicts))
    unrated = torch.full((P, G), math.nan)
    value = grpo.reward(Scores(verdict, weight, unrated, []))  # (P, G)
    shares[..., 3] = value
    length = torch.tensor([[len(response.split()) / ROOM for response in group] for group in responses])
    return Truth(verdict, weight, value, length, shares)


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


# --- the policy ---------------------------------------------------------------------------------------------


class Writer:
    """A decoder over WORDS; in train.py's eyes a policy like others."""

    ends = frozenset({NUMBER["<end>"]})

    def __init__(self, model: Decoder) -> None:
        self.model = model

    def encode(self, example: Example, messages: object = None) -> list[int]:
        return [NUMBER[word] for word in (*example.question.split(), "<answer>")]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in ids if i not in self.ends)

    def sample(self, requests: Sequence[Request], *how: Any) -> list[list[Completion]]:
        return sample(self.model, requests, self.ends, *how)


def decoder(seed: int) -> Decoder:
    """One layer, 43,000 random weights."""
    sizes = {"vocab_size": len(WORDS), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, tie_word_embeddings=True)
    model, random = Decoder(config), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=config.hidden_size**-0.5, generator=random)
    return model


def careless(example: Example, random: np.random.Generator) -> list[int]:
    """An answer's ids from the careless author: padded, with facts left out or wrong, and sometimes short."""
    words: list[str] = []
    for fact in example.reference.split():
        while random.random() < 0.25:
            words.append(PADDING)
        if random.random() < 0.08:
            break
        if random.random() < 0.7:
            words.append(fact if random.random() < 0.65 else opposite(fact))
    return [*(NUMBER[word] for word in words[: ROOM - 1]), NUMBER["<end>"]]


def careless_answers(seed: int, count: int) -> Truth:
    """What is true of `count` careless answers to each training question."""
    random, examples = np.random.default_rng(seed), questions(seed)["train"]
    decode = Writer.decode
    return truth(examples, [[decode(Writer, careless(e, random)) for _ in range(count)] for e in examples])


def settings(form: Form, seed: int, **changes: Any) -> Config:
    """train.py's, with P = 4 questions x G = 16 answers a step and a rate of 1e-3."""
    sizes = {"prompts_per_step": 4, "group_size": 16, "max_new_tokens": ROOM, "tokens_per_batch": 8192}
    rates = {"steps": form.steps, "lr": 1e-3, "device": "cpu", "seed": seed}
    return dataclasses.replace(PRESETS["cpu"], **(sizes | rates | changes))


def training(config: Config, actor: Writer) -> Training:
    """What train.py's functions work with."""
    return Training(config, Recipe(config=config), actor, None, AdamW(actor.model.parameters(), config.lr))


def learn(t: Training, step: int, rollouts: Rollouts) -> None:
    """Move the weights by a batch of rollouts, as train.py does, unless it teaches nothing."""
    if grpo.teaches(rollouts).any():
        rate = t.recipe.learning_rate(step, t.config.steps)
        norm = train.loss(t, train.cut(t, rollouts))["grad_norm"]
        train.step(t.optimizer, norm, rate, t.config.max_grad_norm)


@lru_cache(maxsize=1)
def beginner(form: Form, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A policy that imitates the careless author, on questions of fresh facts: its weights, and how it does.

    Imitation is the same update with an advantage of 1 for every answer: the gradient of the likelihood.
    """
    config = settings(form, seed, steps=form.warm, lr=3e-3, prompts_per_step=16, group_size=4)
    P, G, random = config.prompts_per_step, config.group_size, np.random.default_rng(seed)
    actor, known = Writer(decoder(seed)), questions(seed)
    t = training(config, actor)
    for step in range(1, form.warm + 1):
        chosen = [known["train"][i] for i in random.integers(len(known["train"]), size=P)]
        posed = [pose(example, random.random(len(LETTERS)) < 0.5) for example in chosen]
        written = [[careless(example, random) for _ in range(G)] for example in posed]
        completions = [[Completion(ids, [0.0] * len(ids), True) for ids in group] for group in written]
        one, prompts = torch.ones(P, G), [[actor.encode(example)] * G for example in posed]
        learn(t, step, Rollouts(posed, prompts, completions, [], None, one, one))
    return actor.model.state_dict(), examined(config, actor, known["held_out"])


def examined(config: Config, actor: Writer, examples: list[Example]) -> dict[str, Any]:
    """What is true of 16 fresh answers to each question, on average."""
    judge, drawn = Judge("rar-explicit", 0.0), [(example, 0) for example in examples]
    rollouts = train.sample(training(config, actor), drawn, 16, "eval", Clock())
    judge.score(rollouts.examples, rollouts.responses)
    words = [response.split() for group in rollouts.responses for response in group]
    return {
        "truth": judge.seen.value.mean().item(),
        "words": sum(map(len, words)) / len(words),
        "padding": sum(each.count(PADDING) for each in words) / len(words),
        "generic": judge.seen.generic.mean((0, 1)).tolist(),  # correct, complete, concise, useful
    }


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
    config, known = settings(form, seed), questions(seed)
    weights, before = beginner(form, seed)
    actor, judge = Writer(decoder(seed)), Judge(arm.method, arm.sigma, arm.bias, seed=seed)
    actor.model.load_state_dict(weights)
    t, curve = training(config, actor), []
    for step in range(1, config.steps + 1):
        P = config.prompts_per_step
        drawn = data.draw(known["train"], P, (step - 1) * P, seed)
        rollouts = train.sample(t, drawn, config.group_size, step, Clock())
        rollouts.scores = train.judge(t, judge, rollouts, Clock())
        rollouts.reward = t.recipe.reward(rollouts.scores)
        rollouts.adv = t.recipe.advantage(rollouts)
        learn(t, step, rollouts)
        curve.append(judge.seen.value.mean().item())
    after = examined(config, actor, known["held_out"])
    return {"arm": asdict(arm), "seed": seed, "before": before, "after": after, "curve": curve}


def trainings(form: Form, out: Path | None = None, processes: int = 1) -> list[dict[str, Any]]:
    """Train on every arm with every seed: by level, arm and seed. `out` is rewritten after each training, and
    what it holds is not done again."""
    done = {(Arm(**row["arm"]), row["seed"]): row for row in kept(out, setting(form))}
    asked = list(product(arms(form), range(form.seeds)))
    # Seed by seed, because a process keeps its last beginner.
    left = sorted((each for each in asked if each not in done), key=lambda each: each[1])
    facts = {"setting": setting(form)} | environment()

    def keep() -> None:
        if out:
            write_json(out, facts | {"trainings": list(done.values())})

    keep()  # a file that cannot be written is found out now
    # A thread each, in processes of their own: the numbers are the same however many there are.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        futures = {pool.submit(trained, arm, form, seed): (arm, seed) for arm, seed in left}
        for future in progress_bar(as_completed(futures), desc="training", total=len(left)):
            done[futures[future]] = future.result()
            keep()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is begun
    return [done[each] for each in asked]


def setting(form: Form) -> dict[str, Any]:
    """What the numbers of a file depend on, as JSON has it."""
    world = {"bias": BIAS, "halo": HALO, "aided": AIDED, "room": ROOM}
    return asdict(form) | world | {"levels": list(form.levels)}


def kept(out: Path | None, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The trainings that a file holds already. Raises ValueError for a file of something else."""
    if out is None or not out.exists():
        return []
    try:
        written = json.loads(out.read_text(encoding="utf-8"))
        found, rows = written["setting"], written["trainings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out} holds no trainings of this program: name another file with --out") from error
    if found != wanted:
        raise ValueError(
            f"{out} holds trainings of another setting: expected {wanted}, got {found}; name another file "
            "with --out, or delete this one"
        )
    return rows


# --- what comes out -----------------------------------------------------------------------------------------

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 97.5 % point of Student's distribution with 1 to 9 degrees of freedom."""


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
        return "holds" if self.low > 0 else "does not hold" if self.high < MARGIN else "cannot be told"


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of one number a seed, and its 95 % interval: Student's, for they are few."""
    mean, half = values.mean(), STUDENT[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


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
    try:
        tyro.cli(main, prog="claims.py")
    except (ValueError, OSError) as error:
        sys.exit(f"claims.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
