"""Advantages that are normalised for each criterion on its own, then averaged by the criteria's weights."""

from dataclasses import dataclass

import torch

from rar_mini import grpo
from rar_mini.recipe import Recipe, Rollouts


@dataclass(frozen=True)
class PerCriterion(Recipe):
    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        valid = grpo.scored(rollouts.reward)  # (P, G)
        each = grpo.item_advantage(rollouts.scores, valid, self.config.advantage_scale)  # (P, G, K)
        return grpo.item_mean(each, rollouts.scores)  # (P, G)
