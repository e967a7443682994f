"""What a recipe may need of completions besides the log-probabilities of their tokens: those of whole
completions (also for the gap of `evaluate.py audit`), DPO as an advantage, which is made of them, and a
second reader's view of each token."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rar_mini import grpo, ranks
from rar_mini.config import Config
from rar_mini.model import Decoder
from rar_mini.options import flag
from rar_mini.recipe import overrides
from rar_mini.scores import Rollouts
from rar_mini.setup import Training


def logp(model: Decoder, rollouts: Rollouts, temperature: float = 1.0, **how: Any) -> Tensor:
    """Each completion's log-probability behind its prompt, (P, G): the sum over its tokens. `how` is for
    grpo.micro_batches; with `own`, other questions have 0."""
    size = len(rollouts.completions), len(rollouts.completions[0])
    plain = replace(rollouts, adv=torch.zeros(size))
    every = torch.ones(size, dtype=torch.bool)
    total = torch.zeros(size, dtype=torch.float64)
    batches = grpo.micro_batches(plain, every, loss_norm="sum", max_new_tokens=0, **how)
    for batch, each in zip(batches, grpo.logp_of_each(model, batches, temperature), strict=True):  # (N,)
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


def best_and_worst(reward: Tensor) -> tuple[Tensor, Tensor]:
    """The places (P,) of the highest and the lowest reward among the rollouts that teach; 0 if none does."""
    valid = grpo.scored(reward)
    return reward.where(valid, -torch.inf).argmax(-1), reward.where(valid, torch.inf).argmin(-1)


def dpo(rollouts: Rollouts, better: Tensor, worse: Tensor, pairs: Tensor, beta: float) -> Tensor:
    """The advantages (P, G) whose update has the gradient of DPO's loss, the mean over pairs.

    Of the groups `pairs` (P,) bool, the rollouts `better` and `worse` (P,) are a pair; all else gets 0.
    """
    m = beta * (rollouts.logp - rollouts.ref_logp)  # (P, G)
    places = torch.eye(m.shape[1])
    sign = places[better] - places[worse]  # (P, G): 1, -1, else 0
    weight = beta * (-m * sign).sum(-1).sigmoid() * pairs / max(1, pairs.sum())  # (P,)
    return weight[:, None] * sign


def check_dpo(config: Config, recipe: str) -> None:
    """Raise ValueError for settings under which the loss of a recipe with `dpo`'s advantages is not DPO's."""
    c = config
    other = c.beta or c.mismatch_cap or c.train_rollouts or c.cut_answers == "mask"
    if c.loss_norm != "sum" or c.inner_epochs > 1 or other:
        needs = "--loss-norm sum and --inner-epochs 1, without --beta, --mismatch-cap, --train-rollouts"
        raise ValueError(f"{recipe} needs {needs} and --cut-answers mask: else the loss is not DPO's")


def check_own_loss(config: Config, recipe: str) -> None:
    """Raise ValueError for settings that only RaR's loss reads, for a recipe with another."""
    unread = ("beta", "mismatch_cap", "clip_low", "clip_high")
    if any(getattr(config, name) != getattr(Config, name) for name in unread):
        raise ValueError(
            f"{recipe} has a loss of its own, which reads none of {', '.join(map(flag, unread))}: leave them "
            "out; --recipe.help shows its options"
        )


@dataclass(frozen=True)
class Views:
    """What two readers make of a batch's completion tokens: states times head are logits."""

    own: Tensor  # (N, D) by the policy, with gradient
    head: Tensor  # (V, D) the policy's
    told: Tensor  # (N, D) by the policy as it was at the start, behind what the recipe's `told` shows
    told_head: Tensor  # (V, D) that one's


def views(t: Training, batch: grpo.MicroBatch, own: Tensor) -> Views | None:
    """Both views of a batch, whose states by the policy are `own`; None if the recipe has no second one."""
    if not overrides(t.recipe, "told"):
        return None
    rollouts, P, G = t.rollouts, len(t.rollouts.completions), len(t.rollouts.completions[0])
    teaches = torch.zeros(P * G, dtype=torch.bool)
    teaches[batch.rollout.cpu()] = True
    prompts, questions = list(rollouts.prompts), teaches.view(P, G).any(-1).nonzero()[:, 0].tolist()
    for p in questions:
        example = rollouts.examples[p]
        prompts[p] = [t.actor.encode(example, t.recipe.told(example))] * G
    how = {"loss_norm": "sum", "max_new_tokens": 0, "tokens_per_batch": sys.maxsize, "own": questions}
    how |= {"device": own.device, "attention": t.config.attention}
    (second,) = grpo.micro_batches(replace(rollouts, prompts=prompts), teaches.view(P, G), **how)
    with torch.no_grad():
        told = grpo.states(t.reference.model, second)
    # Rollouts of several prompts may stand in another order in the two batches.
    place = second.rollout.argsort(stable=True)[batch.rollout.argsort(stable=True).argsort()]
    head, told_head = (model.head.to(own.device) for model in (t.actor.model, t.reference.model))
    return Views(own, head, told[place], told_head)
