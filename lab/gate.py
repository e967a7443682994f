"""The gate: what is essential comes first, and nothing else makes up for it.

    python train.py --domain instructions --recipe gate
    python train.py --domain medical --recipe 'gate --veto essential pitfall --cap 0.3'

Paper: Reinforcement Learning with Rubric Anchors (Rubicon), arXiv 2508.12790; its summaries were read, so
this is after its veto. With r the reward of RaR and e_c the share that a response earns of category c:

    reward = r                 if e_c >= need for every category c that has a veto
           = min(r, cap)       else

With `cap` 0 a response that fails earns nothing. A cap above 0 still tells failures below it apart, which a
group in which everyone fails needs in order to teach anything.

Ours: which categories have the veto, how much of them is needed, and the cap. A rubric without items of a
category has no gate there.

What came out (tests/lab/test_gate.py, test_rvpo.py): an answer that wins four criteria and breaks the
essential one is unlearnt whether 2 or 50 % of the answers are of that kind, where RVPO fails from 50 %. Where
every answer fails, a cap of 0 learns nothing in 60 steps, and a cap of 0.3 learns to come closer. In the
lab's world (docs/lab.md, 6 seeds) the claim holds, 0.77 less 0.00; without a rule to break the gate costs
truth, 0.78 less 0.87 [-0.14, -0.05].
"""

from dataclasses import dataclass

from torch import Tensor

from rar_mini import grpo
from rar_mini.options import Share
from rar_mini.recipe import Recipe, Scores
from rar_mini.rubric import Category

CLAIM = "what breaks a hard rule is not learnt"
CONDITIONS = ("hard-rule",)


@dataclass(frozen=True)
class Gate(Recipe):
    need: Share = 1.0
    """the share of a category's weight below which the gate closes"""
    cap: float = 0.0
    """the most that a response behind a closed gate earns"""
    veto: tuple[Category, ...] = ("essential",)
    """the categories that have a gate"""

    def reward(self, scores: Scores) -> Tensor:
        reward = super().reward(scores)  # (P, G), NaN where the judge failed
        for category in self.veto:
            earned = grpo.reward(scores.only(category))  # (P, G), NaN without such items
            closed = earned < self.need - grpo.TIE
            reward = reward.where(~closed, reward.clamp_max(self.cap))
        return reward
