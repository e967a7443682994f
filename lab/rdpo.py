"""rDPO: DPO on pairs that a rubric makes of the policy's own answers.

    python train.py --domain medical --recipe rdpo --loss-norm sum --lr 5e-6

After rDPO, arXiv 2604.13029; only the abstract was read, so the rule for pairs is inferred. A rubric has
essential and additional criteria. With the reward r and the share e of the essential weight that an answer
earns, a group's pair is

    (w, l) = argmax r_w - r_l   among   e_w >= need,   e_l <= e_w,   r_w - r_l >= margin
    A_w = -A_l = beta sigmoid(-beta (m_w - m_l)) / pairs        m = logp - ref_logp        others 0

so that no loser meets more of what is essential than its winner. Without such a pair a group teaches nothing.

Ours: gate, margin, beta and the text policy; theirs sees images. Pairs are made anew in each step. A rubric
without essential items has no gate.

What came out (tests/lab/test_rdpo.py): a table that writes 20 % bare answers, with what is essential and
nothing else, and 60 % flashy ones, which miss an essential item and earn more, comes to 86 and 14 %, 3 seeds.
DPO on pop's pairs, by reward alone, makes 99 % of them flashy. Flashy answers earn more than any winner here,
so that they are in no pair: they are left behind and not unlearnt. In the lab's world (docs/lab.md, 6 seeds)
the gate keeps the hard rule, 0.82 less 0.00; under a clean judge it is worse than RaR, 0.81 less 0.87 [-0.09,
-0.03].
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from rar_mini import grpo, sequences
from rar_mini.options import Share
from rar_mini.recipe import Example, Recipe, Rollouts

CLAIM = "a gate on what is essential keeps pairs from teaching what breaks it"
CONDITIONS = ("hard-rule",)


@dataclass(frozen=True)
class RDpo(Recipe):
    needs_logp: ClassVar[bool] = True
    need: Share = 1.0
    """the share of the essential items' weight that a winner earns"""
    margin: Share = 0.1
    """how much more reward than its loser a winner has"""
    beta: float = 0.1

    def load(self, **how: Any) -> list[Example]:
        sequences.check_dpo(self.config, "rdpo")
        return super().load(**how)

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        reward, valid = rollouts.reward, grpo.scored(rollouts.reward)  # (P, G)
        essential = grpo.reward(rollouts.scores.only("essential"))  # (P, G), NaN without such items
        essential = essential.where(valid & ~essential.isnan(), 1.0)
        # Rounded, because equal rewards that were added up in another order would make another pair.
        gap = (reward[:, :, None] - reward[:, None]).round(decimals=5)  # (P, G, G), of a winner to a loser
        may = valid[:, :, None] & valid[:, None] & (gap > 0) & (gap >= self.margin)
        may &= (essential >= self.need - grpo.TIE)[:, :, None]
        may &= essential[:, :, None] >= essential[:, None] - grpo.TIE
        most, at = gap.where(may, -torch.inf).flatten(1).max(-1)  # (P,)
        G = reward.shape[1]
        return sequences.dpo(rollouts, at // G, at % G, most > 0, self.beta)
