"""CHERRL: inject a bias that is known, so that the step at which hacking begins is known, too.

    python train.py --domain medical --recipe cherrl --recipe.bias '^(Sure|Great|Certainly)'

Paper: CHERRL, arXiv 2606.04923; official code was read. The policy learns from

    score = reward + alpha aux                        alpha = 0.5

in which aux is 1 for a response with the injected feature, else 0, so that a policy which gives up alpha of
reward for the feature breaks even, and the bias is worth taking below that.

Ours: the feature is a regular expression, and the bias enters the advantage alone, so that rewards in files
and scores are what the judge really said. metrics.jsonl has `cherrl/biased`, the share of the step's
responses with the feature, and once that has reached `onset`, the first such step as `cherrl/onset`.

What came out (tests/lab/test_cherrl.py, docs/lab.md): where the feature costs 0.4 of reward, a policy that
shows it in one of ten answers drops it at alpha 0.3 and takes it up at 0.5. The onset that is told lies
within three steps of the one at which the policy prefers the feature. In the lab's world a bias to two words
is taken up: answers of two words on average, of truth 0.51 less 0.87 [-0.45, -0.28] without the bias.
"""

import re
from dataclasses import dataclass

import torch

from rar_mini import grpo
from rar_mini.options import Share
from rar_mini.recipe import Recipe, Rollouts

SHORT = r"--bias '^\S*( \S+)?$'"  # at most two words, which hurts in the lab's world
CLAIMS = (  # a text, a number, and two arms of which the first lies higher
    ("a known bias that pays is taken up", "truth", ("", "clean"), (SHORT, "clean")),
)


@dataclass(frozen=True)
class Cherrl(Recipe):
    bias: str = r"^(Sure|Great|Certainly)"
    """a regular expression; a response in which it is found has the feature"""
    alpha: float = 0.5
    """what the feature is worth, in rewards"""
    onset: Share = 0.5
    """the share of responses with the feature at which hacking has begun"""

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        score = rollouts.reward + self.alpha * self._aux(rollouts)
        return grpo.advantage(score, self.config.advantage_scale)

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        self.state["biased"] = self._aux(rollouts).mean().item()
        if self.state["biased"] >= self.onset:
            self.state.setdefault("onset", step)

    def metrics(self) -> dict[str, float]:
        return {f"cherrl/{name}": float(value) for name, value in self.state.items()}

    def _aux(self, rollouts: Rollouts) -> torch.Tensor:
        """Which responses have the feature, (P, G), 1 or 0."""
        return torch.tensor([[float(bool(re.search(self.bias, r))) for r in g] for g in rollouts.responses])
