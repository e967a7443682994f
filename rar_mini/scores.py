"""What a step is made of: the verdicts of a judge, and the rollouts that they belong to.

judge.py makes `Scores`, train.py makes `Rollouts`, and the rooms below them compute with both.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rar_mini.data import Example
from rar_mini.forms import ABSENT, Finite, Form
from rar_mini.redact import refuse_key
from rar_mini.rubric import Criterion, Rubric

if TYPE_CHECKING:  # who chooses a judge, or makes one, needs no torch yet
    from torch import Tensor

    from rar_mini.sampler import Completion

NAN = float("nan")
DEFAULT_CHAT = "gpt-4o-mini"  # the paper's judge
LOGPS = ("logp", "ref_logp")


class ScoredRow(Form):
    """What is read again of a line that `judge.py score` has written."""

    reward: Finite | None
    failed: bool = ABSENT


@dataclass(frozen=True)
class Scores:
    """What a judge said of P x G responses. A rating also stands as one verdict, (rating - 1) / 9, of weight
    1."""

    verdict: "Tensor"  # (P, G, K) in [0, 1], NaN where the judge failed or a rubric has fewer than K items
    weight: "Tensor"  # (P, K), 0 where a rubric has fewer than K items
    rating: "Tensor"  # (P, G) in 1 .. 10, NaN where the method has none or the judge failed
    rubrics: list[Rubric]  # P; the criteria that the verdicts belong to

    def filled(self, other: "Scores") -> "Scores":
        """These scores, and where they have none, what another process was told of the same responses."""
        pairs = ((self.verdict, other.verdict), (self.rating, other.rating))
        verdict, rating = (b.where(a.isnan(), a) for a, b in pairs)
        return replace(self, verdict=verdict, rating=rating)

    def behind(self, first: "Scores") -> "Scores":
        """These scores behind others, with as many items as the longest rubric of both has."""
        from torch import cat
        from torch.nn.functional import pad

        K = max(self.weight.shape[-1], first.weight.shape[-1])
        both = (first, self)
        verdict = cat([pad(s.verdict, (0, K - s.verdict.shape[-1]), value=NAN) for s in both])
        weight = cat([pad(s.weight, (0, K - s.weight.shape[-1])) for s in both])
        return Scores(verdict, weight, cat([s.rating for s in both]), first.rubrics + self.rubrics)

    def only(self, category: str) -> "Scores":
        """These scores by the items of one category alone: all others weigh nothing."""
        return self._where(lambda item: item.category == category)

    def checked(self, yes: bool = True) -> "Scores":
        """These scores by the items with a check alone, or by those without."""
        return self._where(lambda item: bool(item.check) == yes)

    def _where(self, wanted: Callable[[Criterion], bool]) -> "Scores":
        weight = self.weight.new_zeros(self.weight.shape)
        for p, rubric in enumerate(self.rubrics):
            for k, item in enumerate(rubric.criteria):
                if wanted(item):
                    weight[p, k] = self.weight[p, k]
        return replace(self, weight=weight)

    def rows(self, p: int, g: int) -> list[dict[str, Any]]:
        """The verdicts on one response, as they stand in a file: null where there is none, `checked` if a
        rule gave it, not the judge, and the `choices` that the judge had."""
        return [
            {"title": c.title, "category": c.category, "weight": c.weight, "verdict": finite(v)}
            | ({"checked": True} if c.check else {"choices": list(c.choices)} if c.choices else {})
            for c, v in zip(self.rubrics[p].criteria, self.verdict[p, g].tolist(), strict=False)
        ]


@dataclass
class Rollouts:
    """P questions with G answers each, and what a step finds out about them, in this order."""

    examples: list[Example]  # P
    prompts: list[list[list[int]]]  # P x G token ids; equal ones are read once
    completions: list[list["Completion"]]  # P x G
    responses: list[list[str]]  # P x G, the part that the judge reads
    scores: Scores | None = None
    reward: "Tensor" = field(default_factory=lambda: _empty())  # (P, G), NaN where the judge failed
    adv: "Tensor" = field(default_factory=lambda: _empty())  # (P, G), 0 where nothing is taught
    trained: "Tensor" = field(default_factory=lambda: _empty())  # (P, G) bool, what the update reads
    turns: list[list[list[dict[str, str]]]] = field(default_factory=list)  # P x G, what was said between
    rubrics: list[Rubric] | None = None  # P, if a recipe made them for these responses
    recited: bool = False  # whether these are reference answers, which nobody sampled or judged
    logp: "Tensor" = field(default_factory=lambda: _empty())  # (P, G) of whole completions, by the policy
    ref_logp: "Tensor" = field(default_factory=lambda: _empty())  # (P, G) the same by the frozen reference

    def behind(self, first: "Rollouts | None") -> "Rollouts":
        """These rollouts behind those that the step has already; what follows from the scores is still to be
        computed."""
        if first is None:
            return self
        names = ("examples", "prompts", "completions", "responses")
        joined = Rollouts(*(getattr(first, name) + getattr(self, name) for name in names))
        joined.scores, joined.turns = self.scores.behind(first.scores), first.turns + self.turns
        if first.rubrics or self.rubrics:
            joined.rubrics = [
                rubric
                for each in (first, self)
                for rubric in each.rubrics or [example.rubric for example in each.examples]
            ]
        return joined

    def posed(self, examples: Sequence[Example]) -> list[list[Example]]:
        """What a judge reads before each response: the example, and what was said since. (P x G)"""
        turns = self.turns or [[()] * len(group) for group in self.responses]
        pairs = zip(examples, turns, strict=True)
        return [[example.after(said) if said else example for said in group] for example, group in pairs]

    def rows(self, step: int) -> list[dict[str, Any]]:
        """One record a rollout, from which its reward and its loss can be computed again."""
        return [
            {
                "step": step,
                "example_id": example.id,
                "prompt": example.question,
                "response": self.responses[p][g],
                "verdicts": self.scores.rows(p, g),
                "rating": finite(self.scores.rating[p, g].item()),
                "reward": finite(self.reward[p, g].item()),
                "advantage": self.adv[p, g].item(),
                "tokens": len(completion.ids),
                "finished": completion.finished,
                "only_thoughts": completion.only_thoughts,
                "prompt_ids": self.prompts[p][g],
                "ids": completion.ids,
                # Nine digits give a float32 back.
                "sampler_logp": [finite(float(f"{logp:.9g}")) for logp in completion.logp],
            }
            | ({name: getattr(self, name)[p, g].item() for name in LOGPS} if len(self.logp) else {})
            | ({"trained": self.trained[p, g].item()} if len(self.trained) else {})  # a score has none
            | ({"heard": [said._asdict() for said in completion.heard]} if completion.heard else {})
            | ({"unanswered": True} if completion.unanswered else {})
            | ({"turns": self.turns[p][g]} if self.turns and self.turns[p][g] else {})
            | ({"rubric": [asdict(c) for c in self.rubrics[p].criteria]} if self.rubrics else {})
            for p, example in enumerate(self.examples)
            for g, completion in enumerate(self.completions[p])
        ]


def transcript(row: dict[str, Any]) -> str:
    """What was said behind the prompt, for a person: the response, and the turns before it if there are
    any."""
    turns = row.get("turns", [])
    parts = [f"{turn['role']}: {turn['content']}" for turn in turns]
    return "\n\n".join([*parts, f"assistant: {row['response']}"]) if turns else row["response"]


def _empty() -> "Tensor":
    import torch

    return torch.empty(0)


def finite(number: float) -> float | None:
    """A number for JSON, which has no NaN: None in its place."""
    return number if math.isfinite(number) else None


def choose(spec: str, checked: bool = False) -> tuple[str, str]:
    """Resolve the judge `auto`, or `local:RUN` to a checkpoint, and say why: (spec, reason). `checked` says
    that every item has a check. Raises ValueError for a key in the place of a name, for no name at all, and
    for a run without a checkpoint."""
    if not spec.strip():
        raise ValueError(
            "the judge's name is empty: expected auto, keyword, rules, or KIND:NAME; is a variable unset?"
        )
    refuse_key("the judge's name", spec)
    kind, _, name = spec.partition(":")
    if kind == "local":
        from rar_mini.checkpoint import newest  # seconds of imports that no other judge needs

        if (found := newest(name)) != name:
            return f"local:{found}", f"the newest checkpoint of {name}"
    if spec != "auto":
        return spec, "as asked"
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        if os.environ.get(name):
            return (
                f"chat:{DEFAULT_CHAT}",
                f"{name} is set; --judge keyword needs no server, chat:NAME another model",
            )
    if checked:
        return "rules", "every item of these questions has a check, so that its verdicts are exact"
    return (
        "keyword",
        "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set; it matches words and is only a stand-in",
    )
