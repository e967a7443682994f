"""PAPO: an advantage for being right, plus one for how well it was done, among the right answers alone.

    python train.py --domain instructions --recipe papo

Paper: PAPO, arXiv 2603.26535; official code was read. With an outcome o in {0, 1} and a process reward p in
{0, 0.5, 1}:

    A = A_outcome + lambda A_process
    A_outcome = (o - mean o) / (std o + 1e-6)         over the group
    A_process = (p - mean p) / (std p + 1e-6)         over its right answers, if they are two or more; else 0

A wrong answer gets no credit for its process, and a group in which all are right still teaches which of them
was done better. Theirs: adding beats multiplying (51.3 to 46.7), and groups without a signal fall from 69
to 44 %.

Ours: the outcome is whether the essential items hold (`need` of their weight), the process is the share of
all other items, rounded to 0, 0.5 or 1 (`levels` 3; 0 does not round). A rubric without essential items
counts every answer as right. The reward that files show and scores are made of stays RaR's.

What came out (tests/lab/test_papo.py): of answers of which one in ten is right but careless, PAPO makes more
than 95 % right in 60 steps. Multiplying outcome and process learns nothing there: it cannot tell a careless
right answer from a wrong one. With lambda 1 and theirs of 8 rollouts no right answer ever ranks below a wrong
one; from 9 rollouts on one may, so lower --recipe.process for larger groups. In the lab's world (docs/lab.md,
6 seeds), where every essential item has to hold and G is 16, it is worse than RaR: 0.79 less 0.87 [-0.12,
-0.04].
"""

from dataclasses import dataclass, replace

import torch

from rar_mini import grpo
from rar_mini.options import Share
from rar_mini.recipe import Recipe, Rollouts

CLAIM = "the process of right answers teaches what the outcome cannot"
CONDITIONS = ("clean",)


@dataclass(frozen=True)
class Papo(Recipe):
    process: float = 1.0
    """lambda, what the process advantage counts"""
    need: Share = 1.0
    """the share of the essential items' weight that makes an answer right"""
    levels: int = 3
    """how many values the process reward may take, 2 or more; 0: any"""

    def __post_init__(self) -> None:
        if self.config and (self.levels < 0 or self.levels == 1):  # without one tyro would hide the words
            raise ValueError(f"--recipe.levels {self.levels}: expected 2 or more, or 0")

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        scores, valid = rollouts.scores, grpo.scored(rollouts.reward)
        essential = scores.only("essential")
        right = ~(grpo.reward(essential) < self.need - grpo.TIE)  # (P, G), true without such items
        others = replace(scores, weight=scores.weight - essential.weight)
        process = grpo.reward(others)  # (P, G), NaN if there are no others
        if self.levels:
            process = (process * (self.levels - 1)).round() / (self.levels - 1)
        outcome = right.float().masked_fill(~valid, torch.nan)
        process = process.masked_fill(~(valid & right), torch.nan)
        scale = self.config.advantage_scale
        return grpo.advantage(outcome, scale) + self.process * grpo.advantage(process, scale)
