"""RaR's reward, but 0 unless the response earns `need` of the essential items' weight."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rar_mini import grpo
from rar_mini.recipe import Recipe
from rar_mini.scores import Scores


@dataclass(frozen=True)
class Gated(Recipe):
    need: float = 1.0  # a share; a rubric without essential items has no gate

    def reward(self, scores: Scores) -> Tensor:
        essential = torch.zeros_like(scores.weight)  # (P, K)
        for p, rubric in enumerate(scores.rubrics):
            for k, item in enumerate(rubric.criteria):
                essential[p, k] = item.weight if item.category == "essential" else 0.0
        reward, earned = super().reward(scores), grpo.reward(replace(scores, weight=essential))  # (P, G) each
        return reward.masked_fill((earned < self.need - grpo.TIE) & ~reward.isnan(), 0.0)
