"""RGSD: the policy of the start, which is shown the rubric, teaches the policy that is not, token by token.

    python train.py --domain medical --recipe rgsd --recipe.top 64 --max-prompt-tokens 1024

After RGSD, rubric-guided self-distillation, arXiv 2606.12507; only notes on it were read. With p the
teacher's and q the student's distribution of the next token behind what the student itself has written,

    m = beta p + (1 - beta) q
    loss = mean of  sum_v min(beta p_v ln(p_v / m_v) + (1 - beta) q_v ln(q_v / m_v), clip)

over tokens by --loss-norm; v are the `top` tokens that the teacher finds likeliest: a clipped
Jensen-Shannon divergence. It needs neither rewards nor a group. Theirs: beta 0.5, top 128, clip 0.05, one
rollout a question and no judge.

Ours: the sentence that shows the rubric; all other tokens are one more v; where the clip acts is inferred.
The judge still scores rollouts, for the record: --judge keyword costs nothing. A rollout without a reward is
left out, and a group has two at least. The advantages take no part.
What came out (tests/lab/test_rgsd.py): a tiny random policy, whose rewards are all equal, comes nearer to its
teacher; the loss falls from 0.045 to 0.018 in 30 steps (means of five). Nothing was run with a real model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rar_mini import sequences
from rar_mini.grpo import MicroBatch
from rar_mini.options import Share, Within
from rar_mini.prompts import fill, item_line
from rar_mini.recipe import Example, Recipe

CLAIM = "a policy learns a rubric from itself, shown the rubric, without a judge"
LACKS = "a policy that reads prompts"

SHOWN = "\n\nA good answer does what this list says. Do not mention the list.\n{items}"
PART = 256  # tokens whose V logits are held at once


@dataclass(frozen=True)
class RGSD(Recipe):
    beta: Share = 0.5
    """the teacher's share in the mixture that both are compared with"""
    top: Annotated[int, Within(1, 1e6)] = 128
    """how many tokens are told apart"""
    clip: Annotated[float, Within(0, 1e6)] = 0.05
    """the most that a token of the vocabulary adds to the divergence"""

    def load(self, **how: Any) -> list[Example]:
        sequences.check_own_loss(self.config, "rgsd")
        return super().load(**how)

    def told(self, example: Example) -> Sequence[dict[str, str]]:
        shown = self.messages(example, None, 0)
        items = "\n".join(item_line(c, labelled=False) for c in example.rubric.criteria if c.weight)
        return [*shown[:-1], shown[-1] | {"content": shown[-1]["content"] + fill(SHOWN, items=items)}]

    def loss(self, logp: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        v = batch.views
        part = partial(checkpoint, self._divergence, use_reentrant=False)  # logits are made again backward
        rows = zip(v.own.split(PART), v.told.split(PART), strict=True)
        each = torch.cat([part(own, v.head, told, v.told_head) for own, told in rows])  # (N,)
        loss = (batch.weight * each).sum()
        return loss, {"tokens": torch.tensor(float(len(each))), "loss": loss.detach()}

    def _divergence(self, own: Tensor, head: Tensor, told: Tensor, told_head: Tensor) -> Tensor:
        """The clipped divergence at each token, (n,), of hidden states (n, D)."""
        heat = self.config.temperature
        p = (told @ told_head.T / heat).float().log_softmax(-1)  # (n, V)
        q = (own @ head.T / heat).float().log_softmax(-1)
        chosen = p.topk(min(self.top, p.shape[-1]), -1).indices  # (n, top)
        return divergence(_lumped(p, chosen), _lumped(q, chosen), self.beta, self.clip)


def divergence(p: Tensor, q: Tensor, beta: float, clip: float) -> Tensor:
    """The clipped Jensen-Shannon divergence of log-probabilities p and q, (n, K): (n,)."""
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).clamp_max(clip).sum(-1)


def _lumped(logp: Tensor, chosen: Tensor) -> Tensor:
    """The log-probabilities of the chosen tokens, and of all others together: (n, top + 1)."""
    of = logp.gather(-1, chosen)
    rest = (1 - of.exp().sum(-1, keepdim=True)).clamp_min(1e-7)  # rounding may leave less than nothing
    return torch.cat([of, rest.log()], -1)
