"""Advantages that are normalised for each criterion on its own, then averaged by the criteria's weights."""

from dataclasses import dataclass

import torch

from rar_mini import grpo
from rar_mini.recipe import Recipe, Rollouts


@dataclass(frozen=True)
class PerCriterion(Recipe):
    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        scores, valid = rollouts.scores, grpo.scored(rollouts.reward)  # valid (P, G)
        P, G, K = scores.verdict.shape
        verdict = torch.where(valid[..., None], scores.verdict, torch.nan).mT  # (P, K, G)
        each = grpo.advantage(verdict.reshape(P * K, G), self.config.advantage_scale).view(P, K, G)
        weight = scores.weight[..., None]  # (P, K, 1)
        return torch.where(valid, (weight * each).sum(1) / weight.abs().sum(1), 0.0)  # (P, G)
