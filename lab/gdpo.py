"""GDPO: normalise every criterion on its own before they are added up.

    python train.py --domain instructions --recipe gdpo

Paper: GDPO, arXiv 2601.05242; official code was read. With verdicts v and weights w, within a group:

    z_gk = (v_gk - mean_g v_gk) / (std_g v_gk + 1e-6)
    s_g  = sum_k w_k z_gk / sum_k |w_k|
    A    = (s - mean s) / (std s + 1e-6)              over all rollouts of the step

GRPO adds first, so that a criterion whose verdicts spread widely drowns the others, and different verdicts
with equal sums look alike. Here each criterion counts by its weight alone, on whatever scale it is judged.

Ours: the channels are the criteria of a rubric, and s divides by their weight, because rubrics differ in
length. Deviations are those of the population. The step's mean and deviation leave out groups that teach
nothing. A rollout with a verdict that could not be had has no advantage. With --advantage-scale none the
criteria are only centred.

What came out (tests/lab/test_gdpo.py): a table of four answers, two criteria of equal weight, G = 8, six
seeds. Nine answers in ten meet both after 37 to 71 steps, whether or not the second one's verdicts reach only
a third of the scale. GRPO is as fast on equal scales. On unequal ones four of its six seeds are not there
after 150 steps: what meets the wide criterion alone is good enough. In the lab's world (docs/lab.md, 6 seeds)
essential items on a quarter of the scale cost RaR nothing that can be seen: 0.860 less 0.864 [-0.05, 0.04].
"""

from dataclasses import dataclass

import torch

from rar_mini import grpo
from rar_mini.recipe import Recipe, Rollouts

CLAIM = "criteria that are judged on a smaller scale are learnt better"
CONDITIONS = ("scales",)


@dataclass(frozen=True)
class Gdpo(Recipe):
    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        valid = grpo.scored(rollouts.reward)  # (P, G)
        each = grpo.item_advantage(rollouts.scores, valid, self.config.advantage_scale)  # (P, G, K)
        return grpo.step_advantage(grpo.item_mean(each, rollouts.scores), valid)  # (P, G)
