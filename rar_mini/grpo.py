r"""GRPO: from advantages to a loss, over packed batches. Every formula of the update stands here.

For completion i of a group, token t, with the policy that is trained $\pi$ and the one that sampled
$\pi_{old}$:

    ratio_it = exp(logp_it - old_logp_it)
    gain_it  = min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i)
    k3_it    = exp(ref_logp_it - logp_it) - (ref_logp_it - logp_it) - 1
    loss     = sum_it  w_it (-c_it gain_it + beta k3_it)

- `A_i` is the group's advantage (kernels/advantage.py); it is the same for all tokens of a completion.
- The clipped gain and the per-token KL estimate are those of DeepSeekMath (arXiv 2402.03300, eq. 3 and 4);
  the minimum is taken of the gains, so that for A < 0 a ratio that has risen keeps its gradient. k3 is
  Schulman's low-variance, never negative estimate (joschu.net/blog/kl-approx.html). Two bounds instead of
  one: DAPO (arXiv 2503.14476).
- `w_it` normalises over the *scored completions of the whole step*, whatever micro-batches it is cut into.
  With S of them, of length len_i, and N tokens in all:
      token     1 / N                     every token weighs the same (DAPO, eq. 8)
      sequence  1 / (S len_i)             every completion weighs the same (DeepSeekMath, eq. 3)
      constant  1 / (S max_new_tokens)    no length in the divisor, so no bias by length (arXiv 2503.20783)
- `c_it` = min(exp(old_logp - sampler_logp), cap) with --mismatch-cap, else 1: the truncated importance weight
  between the sampler's numerics and the trainer's (fengyao.notion.site/off-policy-rl).

`old_logp` is the trainer's own: the detached `logp` of the first inner epoch, where the ratio is therefore
exactly 1. There the loss is minus the weighted mean advantage, which is 0 under `sequence` because advantages
sum to 0 in a group. Its gradient is not: it is minus the mean of A grad logp.

Reference answers (`--method sft`) stand in the place of completions, each with A = 1. Nobody sampled them, so
there is no ratio and nothing to clip: gain_it = A_i logp_it, which has the gradient of that first epoch at
every epoch. The loss is then the weighted mean negative log-likelihood.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rar_mini.kernels.logprob import linear_logprob
from rar_mini.model import Decoder
from rar_mini.prefix import Attention, Ids, Packed, Tree, pack
from rar_mini.sampler import Completion

LOSS_NORMS = ("token", "sequence", "constant")


@dataclass
class MicroBatch:
    """One packed row of tokens, and for the N rows that predict a completion token, what the loss needs."""

    packed: Packed
    row: Tensor  # (N,) where in the packed row the hidden state that predicts the token lies
    target: Tensor  # (N,) the token
    adv: Tensor  # (N,)
    weight: Tensor  # (N,) w_it
    sampler_logp: Tensor  # (N,), or (0,) of reference answers
    old_logp: Tensor | None = None  # (N,) set in the first inner epoch, but never of reference answers
    ref_logp: Tensor | None = None  # (N,) set where there is a KL penalty


def scored(reward: Tensor) -> Tensor:
    """Which rollouts teach: (P, G) rewards -> (P, G) bool. A NaN does not, nor does a group with fewer than
    two."""
    known = ~reward.isnan()
    return known & (known.sum(-1, keepdim=True) >= 2)


def micro_batches(
    prompts: Sequence[Ids],
    completions: Sequence[Sequence[Completion]],
    adv: Tensor,
    teaches: Tensor,
    *,
    own: Sequence[int] | None = None,
    loss_norm: str,
    max_new_tokens: int,
    tokens_per_batch: int,
    device: torch.device | str = "cpu",
    attention: Attention = "auto",
) -> list[MicroBatch]:
    """Cut a step into packed batches, as few and as even as `tokens_per_batch` allows (one completion may
    exceed it).

    prompts[p], completions[p][g], adv (P, G), teaches (P, G). A prompt is read once for its whole group; a
    group too large for one batch is cut between completions, and its prompt is then read once a part.
    Rollouts that do not teach are left out, of the normalisers too. With `own`, batches are cut of these
    prompts alone, but normalised over all: what several processes make of their own adds up to the step.
    """
    lengths = torch.tensor([[len(c.ids) for c in group] for group in completions])  # (P, G)
    S, N = int(teaches.sum()), int(lengths[teaches].sum())
    same = torch.ones_like(lengths)
    divisors = {"token": N * same, "sequence": S * lengths, "constant": S * max_new_tokens * same}
    weight = 1 / divisors[loss_norm]  # (P, G)
    own = range(len(prompts)) if own is None else own
    rows = [(p, g) for p in own for g in teaches[p].nonzero()[:, 0].tolist()]
    cut = partial(_cut, rows, [len(prompt) for prompt in prompts], lengths.tolist())
    fewest = len(cut(tokens_per_batch))
    # Balanced: the smallest budget that takes no more batches. The peak of memory is the largest batch's.
    budget = bisect_left(range(tokens_per_batch), True, key=lambda budget: len(cut(budget)) <= fewest)
    packer = partial(pack, device=device, attention=attention)
    return [_micro_batch(parts, prompts, completions, adv, weight, packer) for parts in cut(budget)]


def _cut(
    rows: Sequence[tuple[int, int]], prompts: Sequence[int], lengths: Sequence[Sequence[int]], budget: int
) -> list[list[tuple[int, list[int]]]]:
    """Fill batches of `budget` tokens with rows (p, g) in their order; prompts and lengths in tokens. A batch
    is a list of prompts, each with its completions there."""
    batches: list[list[tuple[int, list[int]]]] = []
    used = budget
    for p, g in rows:
        fresh = not batches or batches[-1][-1][0] != p  # whether the batch still has to read this prompt
        cost = lengths[p][g] + fresh * prompts[p]
        if not batches or used + cost > budget:
            batches.append([])
            used, fresh, cost = 0, True, lengths[p][g] + prompts[p]
        if fresh:
            batches[-1].append((p, []))
        batches[-1][-1][1].append(g)
        used += cost
    return batches


def _micro_batch(
    parts: list[tuple[int, list[int]]],
    prompts: Sequence[Ids],
    completions: Sequence[Sequence[Completion]],
    adv: Tensor,
    weight: Tensor,
    packer: Callable[[Tree], Packed],
) -> MicroBatch:
    tree, branches = Tree(), []
    for p, rollouts in parts:
        root = tree.add(prompts[p])
        for g in rollouts:
            ids = completions[p][g].ids
            # The last token predicts nothing that was sampled, so it is never read.
            branches.append((p, g, root, tree.add(ids[:-1], root) if len(ids) > 1 else None))
    packed = packer(tree)
    device = packed.ids.device
    row, target, sampler_logp, advs, weights = [], [], [], [], []
    for p, g, root, branch in branches:
        completion = completions[p][g]
        row += [packed.last(root), *(range(*packed.spans[branch]) if branch is not None else ())]
        target += completion.ids
        sampler_logp += completion.logp
        advs += [adv[p, g].item()] * len(completion.ids)
        weights += [weight[p, g].item()] * len(completion.ids)
    numbers = (torch.tensor(x, dtype=torch.float32, device=device) for x in (advs, weights, sampler_logp))
    return MicroBatch(packed, torch.tensor(row, device=device), torch.tensor(target, device=device), *numbers)


def token_logp(model: Decoder, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a batch's completion tokens, (N,) each, at the sampling
    temperature."""
    hidden = model(batch.packed.ids, batch.packed.positions, batch.packed.attend)  # (T, D)
    head = model.head.to(hidden.device)  # of a reference on the CPU, a copy
    return linear_logprob(hidden[batch.row], head, batch.target, temperature=temperature)


def policy_loss(
    logp: Tensor,
    batch: MicroBatch,
    *,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    mismatch_cap: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the step's loss, and what the step's metrics are summed from.

    logp (N,) with gradient. The shares of all micro-batches add up to the loss of the step, so each is
    differentiated as it is.
    """
    sampled = len(batch.sampler_logp) > 0
    assert sampled == (batch.old_logp is not None), "old_logp is set in the first inner epoch"
    assert beta == 0 or batch.ref_logp is not None, "a KL penalty needs the reference's log-probabilities"
    sums = {"tokens": torch.tensor(float(len(logp)))}
    gain = batch.adv * logp
    if sampled:
        log_ratio = logp - batch.old_logp
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        gain = torch.minimum(ratio * batch.adv, clipped * batch.adv)
        gap = batch.old_logp - batch.sampler_logp  # trainer's numerics against the sampler's, same weights
        if mismatch_cap is not None:
            gain = gain * gap.exp().clamp_max(mismatch_cap)
        sums |= {
            "gap": gap.abs().sum(),
            "gap_max": gap.abs().max(),
            "clip_low": ((ratio < 1 - clip_low) & (batch.adv < 0)).sum(),
            "clip_high": ((ratio > 1 + clip_high) & (batch.adv > 0)).sum(),
        }
    per_token = -gain
    if batch.ref_logp is not None:
        toward = batch.ref_logp - logp
        k3 = toward.exp() - toward - 1
        per_token = per_token + beta * k3
        sums["kl"] = k3.detach().sum()
    loss = (batch.weight * per_token).sum()
    return loss, sums | {"loss": loss.detach()}


def token_metrics(parts: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """The step's metrics from all of its micro-batches, means over tokens and never means of means."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            number = float(value)
            totals[name] = (
                max(totals.get(name, 0.0), number) if name == "gap_max" else totals.get(name, 0.0) + number
            )
    n = totals["tokens"]
    metrics = {"loss": totals["loss"], "entropy": totals["entropy"] / n}
    if "gap" in totals:  # not of reference answers
        metrics |= {
            "sampling/sampling_logp_difference/mean": totals["gap"] / n,
            "sampling/sampling_logp_difference/max": totals["gap_max"],
            "clip_ratio/low_mean": totals["clip_low"] / n,
            "clip_ratio/high_mean": totals["clip_high"] / n,
        }
    return metrics | ({"kl": totals["kl"] / n} if "kl" in totals else {})
