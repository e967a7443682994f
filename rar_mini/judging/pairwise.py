"""A judge that compares two responses: what a response earns is the share of its comparisons that it wins.

    Pairwise(lambda pairs: torch.tensor([float(len(a) > len(b)) for _, a, b in pairs]), judge)

Each comparison is asked in both orders, so that a judge who likes the first place makes no response win.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rar_mini.data import Example
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN, Scores, finite
from rar_mini.turns import without_thoughts

Pair = tuple[Example, str, str]
"""A question and two responses to it."""

Against = Literal["reference", "group"]
"""What a response is compared with: its reference answer, or its two neighbours in the group, whose last is
beside its first. In a group half of all comparisons are won, whatever the policy: then only the scores of
another judge (--gold-judge) show what it learns. A response that is judged alone, under --eval-samples 1 or
in a conversation, is compared with its reference answer instead, and without one has no verdict."""

WINS = Rubric((Criterion("Wins", "It is the better one of two responses.", "essential", 1.0),))


class Pairwise(Wrapper):
    """A judge made of others. `compare` says of pairs how likely the first response is the better one, (Q,)
    in [0, 1], NaN if it is not known; all `judges` that it asks are named."""

    def __init__(
        self,
        compare: Callable[[Sequence[Pair]], Tensor],
        *judges: JudgeLike,
        against: Against = "reference",
    ) -> None:
        super().__init__(*judges)
        self.compare, self.against, self.consistent = compare, against, NAN

    def check(self, examples: Sequence[Example]) -> None:
        super().check(examples)
        missing = [example.id for example in examples if not example.reference]
        if missing and self.against == "reference":
            raise ValueError(f"{self.spec} compares with reference answers, and {missing[0]!r:.80} has none")

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **_: Any) -> Scores:
        responses = [[without_thoughts(text) for text in own] for own in responses]
        P, G = len(examples), len(responses[0])
        grouped = self.against == "group" and G > 1
        pairs = [
            (example, text, own[(g + 1) % G] if grouped else example.reference)
            for example, own in zip(examples, responses, strict=True)
            for g, text in enumerate(own)
        ]
        met = [grouped or bool(example.reference) for example, *_ in pairs]
        first, second = torch.full((2, P * G), NAN)  # (P G,)
        if asked := [pair for pair, meets in zip(pairs, met, strict=True) if meets]:
            first[met], second[met] = self.compare(asked), 1 - self.compare([(e, b, a) for e, a, b in asked])
        known = ~(first + second).isnan()
        self.consistent = ((first > 0.5) == (second > 0.5))[known].float().mean().item()
        wins = ((first + second) / 2).view(P, G)
        if grouped:
            wins = (wins + 1 - wins.roll(1, -1)) / 2
        return Scores(wins[..., None], torch.ones(P, 1), torch.full((P, G), NAN), [WINS] * P)

    def metrics(self) -> dict[str, float]:
        """With the share of pairs, of those judged last, that are decided alike in both orders."""
        return super().metrics() | {"pairs/consistent": finite(self.consistent)}
