"""A small world in which the truth is known: recipes, and the paper's own claims, are compared in it.

    python -m lab rvpo gdpo            # recipes against the baseline
    python notebooks/claims.py         # the paper's claims

**The world.** The bundled questions lend their rubrics: how many criteria, of which category and weight. What
a criterion is about is one fact, `c+` or `c-`, and the question says which of the two holds. An answer is at
most 12 words: facts, right or wrong, padding (`um`), and an end. A criterion is met where its fact is stated
and the opposite is not; a pitfall is avoided where the opposite is not stated. So every criterion's true
verdict is known, and the *truth* of an answer is Eq. 1 of the true verdicts. Nothing is charged for length.

**The policy.** A decoder of one layer first imitates a careless author, who skips three facts in ten, gets
one in three wrong and pads. Then train.py's own functions train it: sampler, recipe, loss, AdamW. Policies
are compared by the truth of fresh answers to the 32 held-out questions, whose rubrics and facts they never
saw. All trainings of a seed share its facts, its initial policy, the order of its questions and the random
numbers of its sampling, so that they are compared in pairs.

**The conditions.** Each is one way in which verdicts come from the truth. In careless answers the systematic
false positives are about as frequent as the random ones.
"""

import ast
import copy
import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

import train
from lab.delay import Noisy, Rates
from lab.gcpo import GCPO
from rar_mini import data, files, grpo, recipe
from rar_mini.config import PRESETS, Config
from rar_mini.data import Example
from rar_mini.evaluation import agreement
from rar_mini.judging import rules
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.kernels.adamw import AdamW
from rar_mini.model import Decoder
from rar_mini.recipe import Recipe
from rar_mini.report import Clock
from rar_mini.rubric import Criterion, Rubric
from rar_mini.sampler import Completion, Request, sample, uniforms
from rar_mini.scores import NAN, Rollouts, Scores
from rar_mini.setup import Training

# --- the world ----------------------------------------------------------------------------------------------

LETTERS = "abcdefghijkl"  # the longest rubric of the sample has twelve criteria
PADDING = "um"
WORDS = ["<end>", "<answer>", PADDING, *(letter + sign for letter in LETTERS for sign in "+-")]
NUMBER = {word: i for i, word in enumerate(WORDS)}
ROOM = 12
"""Words of an answer, its end included."""


def pose(example: Example, holds: Iterable[bool]) -> Example:
    """Make an example a question of this world: for each criterion one fact, which holds or does not, and is
    its description."""
    facts = [letter + "-+"[bool(x)] for letter, x in zip(LETTERS, holds, strict=False)]
    items = zip(example.rubric.criteria, facts, strict=False)  # a beginner's questions have facts to spare
    rubric = Rubric(tuple(dataclasses.replace(item, description=fact, check=None) for item, fact in items))
    said = " ".join(facts)
    return dataclasses.replace(
        example, messages=({"role": "user", "content": said},), reference=said, rubric=rubric
    )


def questions(seed: int) -> dict[str, list[Example]]:
    """The 64 training and 32 held-out questions of a seed."""
    examples = [example for domain in ("medical", "science") for example in data.sample(domain)]
    posed = [pose(e, uniforms(seed, 0, f"facts of {e.id}", 0, len(e.rubric)) < 0.5) for e in examples]
    return {split: [e for e in posed if e.split == split] for split in ("train", "held_out")}


def opposite(fact: str) -> str:
    return fact[0] + "+-"[fact[1] == "+"]


def met(criterion: Criterion, said: set[str]) -> bool:
    """Whether the words of an answer are good on a criterion. One that is about a letter, not a fact, does
    not know which fact is right: either will do."""
    what = criterion.description
    stated = said & {what[:1] + "+", what[:1] + "-"}
    if criterion.asks_avoidance and not stated:
        return True
    return len(stated) == 1 if what in LETTERS else stated == {what}


def true_verdicts(example: Example, response: str) -> list[float]:
    """For each criterion 1 where the answer is good on it, else 0: (K,)."""
    said = set(response.split())
    return [
        rules.verdict(item, response) if item.check else float(met(item, said))
        for item in example.rubric.criteria
    ]


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


def settings(steps: int, seed: int, **changes: Any) -> Config:
    """train.py's, with P = 4 questions x G = 16 answers a step and a rate of 1e-3."""
    sizes = {"prompts_per_step": 4, "group_size": 16, "max_new_tokens": ROOM, "tokens_per_batch": 8192}
    rates = {"steps": steps, "lr": 1e-3, "device": "cpu", "seed": seed, "cut_answers": "train"}
    return dataclasses.replace(PRESETS["cpu"], **(sizes | rates | changes))


def training(config: Config, actor: Writer, own: Recipe | None = None) -> Training:
    """What train.py's functions work with."""
    own = own or Recipe(config=config)
    optimizer = AdamW(actor.model.parameters(), config.lr)
    reference = Writer(copy.deepcopy(actor.model)) if own.needs_logp else None
    return Training(config, own, actor, reference, optimizer, planned=config.steps)


def roll(t: Training, step: int) -> Rollouts:
    """Train for one step, as train.py does."""
    t.recipe.begin(step, t.planned)
    t.rollouts = train.explore(t, step, Clock())
    train.learn(t, t.rollouts, t.recipe.learning_rate(step, t.config.steps))
    t.recipe.schedule(step, t.rollouts)
    return t.rollouts


@lru_cache(maxsize=1)
def beginner(warm: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A policy that imitates the careless author, on questions of fresh facts: its weights, and how it does.

    Imitation is the same update with an advantage of 1 for every answer: the gradient of the likelihood.
    """
    config = settings(warm, seed, lr=3e-3, prompts_per_step=16, group_size=4)
    P, G, random = config.prompts_per_step, config.group_size, np.random.default_rng(seed)
    actor, known = Writer(decoder(seed)), questions(seed)
    t = training(config, actor)
    for step in range(1, warm + 1):
        chosen = [known["train"][i] for i in random.integers(len(known["train"]), size=P)]
        posed = [pose(example, random.random(len(LETTERS)) < 0.5) for example in chosen]
        written = [[careless(example, random) for _ in range(G)] for example in posed]
        completions = [[Completion(ids, [0.0] * len(ids), True) for ids in group] for group in written]
        one, prompts = torch.ones(P, G), [[actor.encode(example)] * G for example in posed]
        rollouts = Rollouts(posed, prompts, completions, [], None, one, one)
        train.learn(t, rollouts, t.recipe.learning_rate(step, config.steps))
    return actor.model.state_dict(), examined(config, actor, known["held_out"])


def examined(
    config: Config,
    actor: Writer,
    examples: list[Example],
    rule: Criterion | None = None,
    judges: Mapping[str, JudgeLike] | None = None,
) -> dict[str, Any]:
    """What is true of 16 fresh answers to each question, on average; and the reward that judges give them."""
    drawn = [(example, 0) for example in examples]
    rollouts = train.sample(training(config, actor), drawn, 16, "eval", Clock())
    of, kept = truth(examples, rollouts.responses), keeps(rule, rollouts.responses)
    words = [response.split() for group in rollouts.responses for response in group]
    return {
        "truth": (of.value * kept).mean().item(),
        "words": sum(map(len, words)) / len(words),
        "padding": sum(each.count(PADDING) for each in words) / len(words),
        "generic": of.generic.mean((0, 1)).tolist(),  # correct, complete, concise, useful
        "by": {
            name: grpo.reward(judge.score(examples, rollouts.responses)).mean().item()
            for name, judge in (judges or {}).items()
        },
    }


def keeps(rule: Criterion | None, responses: Sequence[Sequence[str]]) -> Tensor:
    """1 for answers that keep a hard rule, and 0 for those that break it, which are worth nothing: (P, G)."""
    return torch.tensor(
        [[rules.verdict(rule, each) if rule else 1.0 for each in group] for group in responses]
    )


# --- a judge that learns ------------------------------------------------------------------------------------


def features(item: Criterion, response: str) -> list[float]:
    """What a reader sees of an answer under an item: whether its fact and the opposite are stated, length and
    padding; once for pitfalls and once for other items."""
    words, fact = response.split(), item.description
    counts = len(words) / ROOM, words.count(PADDING) / ROOM
    seen = [1.0, float(fact in words), float(opposite(fact) in words), *counts]
    nothing = [0.0] * len(seen)
    return [*nothing, *seen] if item.asks_avoidance else [*seen, *nothing]


@dataclass(frozen=True)
class Grader:
    """A logistic judge, as a policy that says yes or no."""

    weights: Tensor  # (F,)

    def chance(self, seen: Tensor) -> Tensor:
        """The probability of a yes to features (..., F): (...,)."""
        return (seen @ self.weights).sigmoid()


def parted(example: Example, random: np.random.Generator) -> list[list[float]]:
    """The features, (2, F), of two careless answers to a question: the first is good on an item, the second
    is not."""
    while True:
        answers = [Writer.decode(Writer, careless(example, random)) for _ in range(3)]
        verdict = np.array([true_verdicts(example, answer) for answer in answers])  # (3, K)
        if len(parts := np.flatnonzero(verdict.min(0) < verdict.max(0))):
            k = random.choice(parts)
            best, worst = verdict[:, k].argmax(), verdict[:, k].argmin()
            return [features(example.rubric.criteria[k], answers[n]) for n in (best, worst)]


@lru_cache(maxsize=4)
def grader(steps: int, seed: int) -> Grader:
    """A grader that goes by length, after so many steps of gcpo on pairs of careless answers to training
    questions. It sees neither the policy that it will judge nor the held-out questions."""
    config, random = settings(steps, seed), np.random.default_rng(seed)
    P, G, own = config.prompts_per_step, config.group_size, GCPO(config=config)
    drawn, known = torch.Generator().manual_seed(seed), questions(seed)["train"]
    judge = Grader(torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0] * 2))
    for _ in range(steps):
        chosen = [known[i] for i in random.integers(len(known), size=P)]
        seen = torch.tensor([parted(example, random) for example in chosen])  # (P, 2, F)
        p = judge.chance(seen)[..., None].expand(P, 2, G // 2)
        yes = torch.bernoulli(p, generator=drawn)
        scores = Scores((1 + yes.view(P, G, 1)) / 3, torch.ones(P, 1), torch.full((P, G), NAN), [])
        rollouts = Rollouts(chosen, [], [], [], scores, own.reward(scores))
        adv = own.advantage(rollouts).view(P, 2, G // 2)
        step = (adv * (yes - p)).mean(-1, keepdim=True) * seen  # (P, 2, F), the policy gradient
        judge.weights.add_(10 * step.mean((0, 1)))
    return judge


class Trained(Wrapper):
    """A judge that is a grader."""

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **_: Any) -> Scores:
        of = truth(examples, responses)  # for its weights
        verdict = torch.full_like(of.verdict, NAN)
        for p, example in enumerate(examples):
            items = example.rubric.criteria
            seen = torch.tensor([[features(item, text) for item in items] for text in responses[p]])
            verdict[p, :, : len(items)] = self.grader.chance(seen)  # (G, K)
        return Scores(verdict, of.weight, torch.full_like(of.value, NAN), [e.rubric for e in examples])


# --- conditions ---------------------------------------------------------------------------------------------


class Witness(Wrapper):
    """A judge who tells the truth, in the trainer's eyes a judge like others."""

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **_: Any) -> Scores:
        of = truth(examples, responses)
        verdict = of.verdict.masked_fill((of.weight == 0)[:, None], NAN)
        return Scores(verdict, of.weight, torch.full_like(of.value, NAN), [e.rubric for e in examples])


class Reader(Witness):
    """A judge who learns which fact is right if what it is shown as the question holds the document."""

    def score(self, examples: Sequence[Example], *asked: Any, **how: Any) -> Scores:
        return super().score([self._informed(example) for example in examples], *asked, **how)

    def _informed(self, example: Example) -> Example:
        document = example.hidden["passage"]
        if document not in example.question:
            return example
        pairs = zip(example.rubric.criteria, document.removeprefix(DOCUMENT).split(), strict=True)
        rubric = Rubric(tuple(dataclasses.replace(item, description=fact) for item, fact in pairs))
        return dataclasses.replace(example, rubric=rubric)


class Shy(Wrapper):
    """A judge who gives essential items a quarter of what they earn."""

    def score(self, *asked: Any, **how: Any) -> Scores:
        scores = super().score(*asked, **how)
        share = torch.where(scores.only("essential").weight != 0, 0.25, 1.0)  # (P, K)
        return dataclasses.replace(scores, verdict=scores.verdict * share[:, None])


@dataclass(frozen=True)
class Condition:
    """One way in which verdicts come from the truth."""

    says: str
    noise: tuple[Rates, ...] = ()
    judge: Callable[[], JudgeLike] = Witness
    beside: Callable[[], JudgeLike] | None = None  # a second judge, whom only a recipe's own judge asks
    more: tuple[Criterion, ...] = ()  # that stand in each rubric, too
    rule: Criterion | None = None  # the same; an answer that breaks it is worth nothing
    vague: bool = False  # whether criteria leave open which fact is right; the hidden passage says it
    trained: int | None = None  # the judge is a grader, after so many steps of gcpo

    def pose(self, example: Example) -> Example:
        """A question as the trainer has it under this condition."""
        items = example.rubric.criteria
        if self.vague:
            items = tuple(dataclasses.replace(item, description=item.description[0]) for item in items)
        rubric = Rubric((*items, *self.more, *([self.rule] if self.rule else ())))
        row = {"hidden": {"passage": DOCUMENT + example.reference}}
        return dataclasses.replace(example, rubric=rubric, row=row)

    def make_judge(self, state: dict[str, Any], seed: int) -> JudgeLike:
        """The judge, whose errors are drawn anew for each `state["step"]`."""
        made = self.judge() if self.trained is None else Trained(grader(self.trained, seed))
        if self.noise:
            made = Noisy(made, *self.noise, state=state, seed=seed)
        return Wrapper(made, self.beside()) if self.beside else made


DOCUMENT = "It is known: "
THRICE = " ".join([PADDING] * 3)
RULE = Criterion("rule", f"Does not say {THRICE}.", "essential", 1.0, check={"lacks": THRICE})
NEVER = Criterion("never", "z+", "essential", 1.0)  # no word says it

CONDITIONS = {
    "clean": Condition("verdicts are the truth"),
    "false-negatives": Condition("half of what is met is not seen", (Rates(tpr=0.5),)),
    "false-positives": Condition(
        "three in ten of what is not met are credited, at random", (Rates(fpr=0.3),)
    ),
    "harmless-trigger": Condition(
        f"all is credited to answers that open with `{PADDING}`",
        (Rates(fpr=1.0, where={"starts_with": PADDING}),),
    ),
    "harmful-trigger": Condition(
        "all is credited to answers of at most 2 words", (Rates(fpr=1.0, where={"max_words": 2}),)
    ),
    "two-judges": Condition(
        "a weak judge, with a strong one beside it that a recipe may ask", (Rates(0.7, 0.3),), beside=Witness
    ),
    "hard-rule": Condition(
        f"answers that say `{THRICE}` are worth nothing, and are credited with all but that rule",
        (Rates(fpr=1.0, where={"contains": THRICE}),),
        rule=RULE,
    ),
    "scales": Condition("essential items get a quarter of what they earn", judge=lambda: Shy(Witness())),
    "unmet": Condition("one more essential item, which nobody can meet", more=(NEVER,)),
    "documents": Condition(
        "either fact is credited by a judge who is not shown the document", judge=Reader, vague=True
    ),
    "untrained-judge": Condition("by a judge who knows no facts and prefers long answers", trained=0),
    "trained-judge": Condition("by that judge after gcpo on pairs of careless answers", trained=150),
}

JUDGES = ("clean", "false-negatives", "false-positives", "harmless-trigger", "harmful-trigger")
JUDGES += ("untrained-judge", "trained-judge")
"""Conditions that differ in their judge alone. Each of them judges what policies trained by all of them
answer."""


SAID = ("CLAIM", "CLAIMS", "CONDITIONS", "LACKS")
"""What a recipe's file says of itself; it changes no training."""

SHARED = (__name__, "lab.delay", "lab.gcpo", "train", "rar_mini.judging.rules", "rar_mini.kernels.adamw")
SHARED += ("rar_mini.kernels.logprob",)
SHARED += tuple(f"rar_mini.{name}" for name in ("grpo model prefix recipe sampler scores sequences".split()))
"""Files whose code decides about the numbers of every training here."""


def digest(spec: str | None) -> str:
    """What changes with the code of SHARED and with the code and the options of a recipe, but not with the
    docstrings of these files or with claims."""
    own = code(module(spec)) if spec else []
    return files.digest([shared(), own, shlex.split(spec or "")[1:]])


@cache
def shared() -> list[list[str]]:
    """The statements of SHARED."""
    return [code(sys.modules[name]) for name in SHARED]


def code(of: ModuleType) -> list[str]:
    """The statements of a file without its docstring and its claims."""
    tree = ast.parse(Path(of.__file__).read_text(encoding="utf-8"))
    body = tree.body[ast.get_docstring(tree) is not None :]
    return [
        ast.dump(each)
        for each in body
        if not (isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) in SAID)
    ]


def module(spec: str) -> ModuleType:
    """The file of a recipe."""
    return sys.modules[type(recipe.make(spec)).__module__]


def judge_auc(condition: Condition, seed: int) -> float:
    """How often a condition's judge has the higher verdict on the good one of two items of careless answers
    to held-out questions; a tie counts half."""
    random, examples = np.random.default_rng(seed), questions(seed)["held_out"]
    answers = [[Writer.decode(Writer, careless(example, random)) for _ in range(8)] for example in examples]
    of = truth(examples, answers)
    said = condition.make_judge({"step": 0}, seed).score([condition.pose(e) for e in examples], answers)
    own = (of.weight != 0)[:, None].expand_as(of.verdict)  # without what the condition adds
    return agreement.auc(said.verdict[..., : own.shape[-1]][own].numpy(), of.verdict[own].numpy())


def trained(spec: str | None, name: str, seed: int, steps: int, warm: int) -> dict[str, Any]:
    """Train a seed's initial policy by a recipe, RaR for None, under a condition: how true its answers are
    before, on the way and after, how good the judge is, and what other judges say of RaR's."""
    condition, config, known = CONDITIONS[name], settings(steps, seed), questions(seed)
    weights, before = beginner(warm, seed)
    actor = Writer(decoder(seed))
    actor.model.load_state_dict(weights)
    own, state = recipe.make(spec, config), {}
    if own.needs_logp:  # an advantage that is DPO's: its loss is a sum
        own = dataclasses.replace(own, config=dataclasses.replace(config, loss_norm="sum"))
    t = training(own.config, actor, own)
    t.questions = {split: [condition.pose(each) for each in examples] for split, examples in known.items()}
    t.judge = t.recipe.judge(condition.make_judge(state, seed))
    plain, curve = {example.id: example for example in known["train"]}, []
    for step in range(1, steps + 1):
        state["step"] = step
        rollouts = roll(t, step)
        of = truth([plain[example.id] for example in rollouts.examples], rollouts.responses)
        curve.append((of.value * keeps(condition.rule, rollouts.responses)).mean().item())
    judges = {each: CONDITIONS[each].make_judge({"step": 0}, seed) for each in JUDGES if spec is None}
    after = examined(config, actor, known["held_out"], condition.rule, judges)
    job = {"recipe": spec, "condition": name, "digest": digest(spec), "seed": seed}
    return job | {"before": before, "after": after, "curve": curve, "auc": judge_auc(condition, seed)}
