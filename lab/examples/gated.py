"""RaR's reward, but 0 unless the response earns `need` of the essential items' weight."""

from dataclasses import dataclass

from torch import Tensor

from rar_mini import grpo
from rar_mini.recipe import Recipe, Scores


@dataclass(frozen=True)
class Gated(Recipe):
    need: float = 1.0  # a share; a rubric without essential items has no gate

    def reward(self, scores: Scores) -> Tensor:
        reward = super().reward(scores)  # (P, G), NaN where the judge failed
        earned = grpo.reward(scores.only("essential"))  # (P, G)
        return reward.masked_fill((earned < self.need - grpo.TIE) & ~reward.isnan(), 0.0)
