"""Log-probabilities of whole completions: for recipes that need them (DPO's margins, say), and for the gap of
`evaluate.py audit`."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rar_mini import grpo, ranks
from rar_mini.model import Decoder
from rar_mini.scores import Rollouts
from rar_mini.setup import Training


@torch.no_grad()
def logp(model: Decoder, rollouts: Rollouts, temperature: float = 1.0, **how: Any) -> Tensor:
    """Each completion's log-probability behind its prompt, (P, G): the sum over its tokens. `how` is for
    grpo.micro_batches; with `own`, other questions have 0."""
    size = len(rollouts.completions), len(rollouts.completions[0])
    plain = replace(rollouts, adv=torch.zeros(size))
    every = torch.ones(size, dtype=torch.bool)
    total = torch.zeros(size, dtype=torch.float64)
    for batch in grpo.micro_batches(plain, every, loss_norm="sum", max_new_tokens=0, **how):
        each, _ = grpo.token_logp(model, batch, temperature)  # (N,)
        # On the CPU, where sums of like places have one order.
        total.view(-1).index_add_(0, batch.rollout.cpu(), each.double().cpu())
    return total.float()


def both(t: Training, rollouts: Rollouts) -> list[Tensor]:
    """The completions' log-probabilities by the policy and by its reference, (P, G) each, by all ranks."""
    c = t.config
    how = {"tokens_per_batch": c.tokens_per_batch, "attention": c.attention}
    how |= {"own": ranks.share(range(len(rollouts.examples))), "device": t.actor.model.head.device}
    models = (t.actor.model, t.reference.model)
    return [sum(ranks.gather(logp(model, rollouts, c.temperature, **how))) for model in models]
