r"""GRPO: from verdicts to a loss, over packed batches. Every formula of a step stands here, once.

A response's reward is the weighted share of its rubric (RaR-Explicit, arXiv 2507.17746, eq. 1), for verdicts
v_k in [0, 1] on items of weight w_k:

    reward = sum_k w_k v_k / sum_k max(w_k, 0)          if some weight is positive
           = 1 - sum_k |w_k| v_k / sum_k |w_k|          if none is (ours: every item is a penalty)

A rating is one verdict, (rating - 1) / 9, of weight 1 (RaR-Implicit, eq. 2). An item of weight 0 does not
exist. A NaN verdict on any other makes the reward NaN: a judge's failure is never a score.

A rollout's advantage is how far its reward lies above the mean of its group's scored rollouts, over their
population standard deviation (DeepSeekMath, arXiv 2402.03300):

    A = (reward - mean) / (std + 1e-6)                  0 if the group ties or has fewer than two rewards

Ties are exactly 0. Twelve rewards of 0.99 have, in float32, a mean that differs from 0.99 by a rounding
residue, which over (residue + 1e-8), as others divide, is an advantage of 0.9. Rewards that are equal on
paper differ by up to 1.2e-7 by the order of their sums. So a group whose rewards lie within TIE = 1e-6 of
each other teaches nothing. kernels/advantage.py does both formulas in one launch; the loop does not need it,
for 5 KB of verdicts.

For completion i of a group, token t, with `logp` by the policy that is trained, `old_logp` by the same policy
before the step's first update, and `ref_logp` by the frozen reference of a KL penalty:

    ratio_it     = exp(logp_it - old_logp_it)
    surrogate_it = min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i)
    k3_it        = exp(ref_logp_it - logp_it) - (ref_logp_it - logp_it) - 1
    loss         = sum_it  w_it (-c_it surrogate_it + beta k3_it)

- The clipped surrogate and the per-token KL estimate are those of DeepSeekMath (eq. 3 and 4); the minimum is
  taken of the surrogates, so that for A < 0 a ratio that has risen keeps its gradient. k3 is Schulman's
  low-variance, never negative estimate (joschu.net/blog/kl-approx.html). Two bounds instead of one: DAPO
  (arXiv 2503.14476).
- `w_it` normalises over the *scored completions of the whole step*, whatever micro-batches it is cut into.
  With S of them, of length len_i, and N tokens in all (with --train-rollouts, of those that it chose):
      token     1 / N                     every token weighs the same (DAPO, eq. 8)
      sequence  1 / (S len_i)             every completion weighs the same (DeepSeekMath, eq. 3)
      constant  1 / (S max_new_tokens)    no length in the divisor, so no bias by length (arXiv 2503.20783)
      sum       1                         for a recipe whose A are weights of whole sequences (lab/pop.py)
- `c_it` = min(exp(old_logp - sampler_logp), cap) with --mismatch-cap, else 1: the truncated importance weight
  between the sampler's numerics and the trainer's (fengyao.notion.site/off-policy-rl).

With --train-rollouts M only the M rollouts of a group that differ most in reward are in the sum (max-variance
down-sampling, arXiv 2504.13818). Their A are those of all G. S and N count the chosen alone, so that the loss
stays a mean over what is in it: M neither shrinks a step nor asks for another learning rate. The chosen lie
far from the mean, so that a step is, if anything, larger than one of all G.

With --cut-answers penalise, the reward of an answer that was cut is 0 before any advantage is computed. With
mask, such answers are not in the sum, nor in S and N; their rewards stay in their group's mean and deviation.
With --resample-ties groups that tie are left out, too; else they count.

`old_logp` is the trainer's own: the detached `logp` of the first inner epoch, where the ratio is therefore
exactly 1. There the loss is minus the weighted mean advantage, which is 0 under `sequence` because advantages
sum to 0 in a group. Its gradient is not: it is minus the mean of A grad logp.

Reference answers (`--method sft`) stand in the place of completions, each with A = 1. Nobody sampled them, so
there is no ratio and nothing to clip: surrogate_it = A_i logp_it, which has the gradient of that first epoch
at every epoch. The loss is then the weighted mean negative log-likelihood.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rar_mini.kernels.advantage import EPS, TIE
from rar_mini.kernels.logprob import linear_logprob
from rar_mini.model import Decoder
from rar_mini.prefix import Attention, Packed, Tree, pack
from rar_mini.scores import Rollouts, Scores

LOSS_NORMS = ("token", "sequence", "constant", "sum")


def reward(scores: Scores) -> Tensor:
    """The rewards of verdicts (P, G, K) under weights (P, K): (P, G), NaN if an item that weighs something
    has no verdict, or if no item weighs anything."""
    w = scores.weight[:, None]  # (P, 1, K)
    v = torch.where(w != 0, scores.verdict, 0.0)  # (P, G, K); NaN * 0 would be NaN
    most = w.clamp_min(0).sum(-1)  # (P, 1)
    penalty = (w.abs() * v).sum(-1) / w.abs().sum(-1)  # (P, G)
    return torch.where(most > 0, (w * v).sum(-1) / most, 1 - penalty)


def cut_off(rollouts: Rollouts) -> Tensor:
    """Which answers were cut at the limit of their length, (P, G) bool."""
    return torch.tensor([[not c.finished for c in group] for group in rollouts.completions])


def unanswered(rollouts: Rollouts) -> Tensor:
    """Whose next turn by the user could not be had, (P, G) bool: nobody knows how they would have ended."""
    return torch.tensor([[c.unanswered for c in group] for group in rollouts.completions])


def penalise(reward: Tensor, cut: Tensor) -> Tensor:
    """Rewards (P, G) with 0 in place of those of answers that were cut; NaN stays. Raises ValueError outside
    [0, 1], where 0 would not be the worst."""
    if ((reward < -TIE) | (reward > 1 + TIE)).any():
        raise ValueError(f"--cut-answers penalise needs rewards in [0, 1], got {reward.tolist()}")
    return reward.masked_fill(cut & ~reward.isnan(), 0.0)


def scored(reward: Tensor) -> Tensor:
    """Which rollouts teach: (P, G) rewards -> (P, G) bool. One without a reward does not, nor does a group
    with fewer than two rewards."""
    valid = ~reward.isnan()
    return valid & (valid.sum(-1, keepdim=True) >= 2)


def teaches(rollouts: Rollouts, most: int | None = None, cut: bool = True, ties: bool = True) -> Tensor:
    """Which rollouts the update reads, (P, G) bool: those with a reward, and reference answers. Without `cut`
    none that was cut, with `most` at most so many of each group, without `ties` only groups that have an
    advantage then."""
    wrote = torch.tensor([[len(c.ids) > 0 for c in group] for group in rollouts.completions])
    reads = (scored(rollouts.reward) | rollouts.recited) & wrote
    if not cut:
        reads = reads & ~cut_off(rollouts)
    if most is not None:
        reads = differ_most(rollouts.reward, reads, most)
    return reads if ties else reads & (reads & (rollouts.adv != 0)).any(-1, keepdim=True)


def differ_most(reward: Tensor, among: Tensor, most: int) -> Tensor:
    """Of each group the `most` rollouts whose rewards have the largest variance: rewards (P, G) and the
    rollouts to choose among, (P, G) bool -> (P, G) bool.

    They are some of the highest and some of the lowest (arXiv 2504.13818). If several choices vary alike, the
    one with the most low rewards is taken; of equal rewards, which is lower is decided by place.
    """
    chosen = among.clone()
    for group, own, out in zip(reward.double(), among, chosen, strict=True):
        order = [g for g in group.argsort(stable=True).tolist() if own[g]]
        if len(order) > most:
            ends = [order[: most - k] + order[len(order) - k :] for k in range(most + 1)]
            # most^2 times the variance, in which 0 and 1 are exact: choices that vary alike are equal.
            best = max(ends, key=lambda gs: most * group[gs].square().sum() - group[gs].sum().square())
            out[:] = False
            out[best] = True
    return chosen


def advantage(reward: Tensor, scale: str = "group") -> Tensor:
    """The advantages of rewards (P, G) within their groups: (P, G), 0 without a reward and in a tie.

    `scale` is "group" (over the group's deviation) or "none" (the difference to the mean, arXiv 2503.20783).
    """
    valid = ~reward.isnan()
    count = valid.sum(-1, keepdim=True)  # (P, 1)
    mean = torch.where(valid, reward, 0.0).sum(-1, keepdim=True) / count
    off = torch.where(valid, reward - mean, 0.0)  # (P, G)
    std = (off.square().sum(-1, keepdim=True) / count).sqrt()
    adv = off / (std + EPS) if scale == "group" else off
    return torch.where(tied(reward)[:, None], 0.0, adv)


def item_advantage(scores: Scores, among: Tensor, scale: str = "group") -> Tensor:
    """The advantages of each item's verdicts, as if it were the whole rubric: (P, G, K), over the rollouts
    `among`, (P, G) bool, and 0 for others. The items of a literal rubric that take away count negatively."""
    P, G, K = scores.verdict.shape
    verdict = torch.where(among[..., None], scores.verdict, torch.nan).mT  # (P, K, G)
    each = advantage(verdict.reshape(P * K, G), scale).view(P, K, G).mT
    return each * scores.weight.sign()[:, None]  # (P, G, K), 0 where an item weighs nothing


def item_mean(each: Tensor, scores: Scores) -> Tensor:
    """The mean of what items come to, (P, G, K), by their weights: (P, G)."""
    weight = scores.weight.abs()  # (P, K)
    return (weight[:, None] * each).sum(-1) / weight.sum(-1, keepdim=True)


def step_advantage(total: Tensor, among: Tensor) -> Tensor:
    """The advantages of what item advantages add up to, (P, G), normalised over the rollouts `among` of the
    whole step. A group whose totals tie teaches nothing and does not count. Items that cancel on paper leave
    differences of 1e-5, because of EPS in their deviations: these are ties, too."""
    total = total.masked_fill(~among, torch.nan)
    total = total.masked_fill(tied(total, 1e-4)[:, None], torch.nan)
    return advantage(total.view(1, -1)).view_as(total)


def tied(reward: Tensor, within: float = TIE) -> Tensor:
    """Which groups teach nothing, (P, G) -> (P,): their rewards are equal, or fewer than two."""
    valid = ~reward.isnan()
    highest = torch.where(valid, reward, -torch.inf).amax(-1)
    lowest = torch.where(valid, reward, torch.inf).amin(-1)
    return ~(highest - lowest > within)  # a single reward spreads by 0, and none by -inf


@dataclass
class MicroBatch:
    """One packed row of tokens, and for the N rows that predict a completion token, what the loss needs."""

    packed: Packed
    row: Tensor  # (N,) where in the packed row the hidden state that predicts the token lies
    target: Tensor  # (N,) the token
    rollout: Tensor  # (N,) the rollout that it is of, p G + g
    adv: Tensor  # (N,)
    weight: Tensor  # (N,) w_it
    sampler_logp: Tensor  # (N,), or (0,) of reference answers
    old_logp: Tensor | None = None  # (N,) set in the first inner epoch, but never of reference answers
    ref_logp: Tensor | None = None  # (N,) set where there is a KL penalty
    views: Any = None  # sequences.Views, set for a recipe that overrides `told`


def micro_batches(
    rollouts: Rollouts,
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

    Equal prompts of a group are read once; a group too large for one batch is cut between completions, and
    its prompt is then read once a part. Rollouts that do not teach, by teaches (P, G), are left out, of the
    normalisers too. With `own`, batches are cut of these questions alone, but normalised over all: what
    several processes make of their own adds up to the step.
    """
    prompts, completions = rollouts.prompts, rollouts.completions
    lengths = torch.tensor([[len(c.ids) for c in group] for group in completions])  # (P, G)
    read = [[len(c.ids) + sum(len(said.ids) for said in c.heard) for c in group] for group in completions]
    S, N = int(teaches.sum()), int(lengths[teaches].sum())
    divisors = {"token": N, "sequence": S * lengths, "constant": S * max_new_tokens, "sum": 1}
    weight = 1 / (divisors[loss_norm] * torch.ones_like(lengths))  # (P, G)
    own = range(len(prompts)) if own is None else own
    first = [stems(group) for group in prompts]  # P x G
    # Rollouts of one prompt lie side by side.
    order = {p: sorted(teaches[p].nonzero()[:, 0].tolist(), key=first[p].__getitem__) for p in own}
    rows = [(p, g) for p in own for g in order[p]]
    sizes = [[len(prompt) for prompt in group] for group in prompts]  # P x G
    cut = partial(_cut, rows, first, sizes, read)
    fewest = len(cut(tokens_per_batch))
    # Balanced: the smallest budget that takes no more batches. The peak of memory is the largest batch's.
    budget = bisect_left(range(tokens_per_batch), True, key=lambda budget: len(cut(budget)) <= fewest)
    packer = partial(pack, device=device, attention=attention)
    return [_micro_batch(families, rollouts, weight, packer) for families in cut(budget)]


def stems(prompts: Sequence[Any]) -> list[int]:
    """Where each rollout's prompt stands first among those of its group: equal prompts, equal stems."""
    return [prompts.index(prompt) for prompt in prompts]


Family = tuple[int, list[int]]
"""Rollouts of one question and one prompt: its p, and each one's g."""


def _cut(
    rows: Sequence[tuple[int, int]],
    first: Sequence[Sequence[int]],
    sizes: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]],
    budget: int,
) -> list[list[Family]]:
    """Fill batches of `budget` tokens with rows (p, g) in their order; `sizes` of prompts and `lengths` of
    what stands behind them in tokens, and each one's `first` as of `stems`, P x G each."""
    batches: list[list[Family]] = []
    used, last = budget, None
    for p, g in rows:
        fresh = last != (p, first[p][g])  # whether the batch still has to read this prompt
        cost = lengths[p][g] + fresh * sizes[p][g]
        if not batches or used + cost > budget:
            batches.append([])
            used, fresh, cost = 0, True, lengths[p][g] + sizes[p][g]
        if fresh:
            batches[-1].append((p, []))
        batches[-1][-1][1].append(g)
        used, last = used + cost, (p, first[p][g])
    return batches


def _micro_batch(
    families: list[Family], rollouts: Rollouts, weight: Tensor, packer: Callable[[Tree], Packed]
) -> MicroBatch:
    tree, branches, adv = Tree(), [], rollouts.adv
    for p, members in families:
        root = tree.add(rollouts.prompts[p][members[0]])
        for g in members:
            completion = rollouts.completions[p][g]
            branches.append((p, g, list(tree.turns(completion.ids, completion.heard, root))))
    packed = packer(tree)
    device = packed.ids.device
    row, target, rollout, sampler_logp, advs, weights = [], [], [], [], [], []
    for p, g, turns in branches:
        completion = rollouts.completions[p][g]
        for above, branch, count in turns:  # each of the policy's, none of what it heard
            first = packed.spans[branch][0] if branch is not None else 0
            row += [packed.last(above), *range(first, first + count - 1)][:count]
        target += completion.ids
        rollout += [p * len(rollouts.completions[p]) + g] * len(completion.ids)
        sampler_logp += completion.logp
        advs += [adv[p, g].item()] * len(completion.ids)
        weights += [weight[p, g].item()] * len(completion.ids)
    places = (torch.tensor(x, device=device) for x in (row, target, rollout))
    numbers = (torch.tensor(x, dtype=torch.float32, device=device) for x in (advs, weights, sampler_logp))
    return MicroBatch(packed, *places, *numbers)


def states(model: Decoder, batch: MicroBatch) -> Tensor:
    """The hidden states that predict a batch's completion tokens, (N, D)."""
    hidden = model(batch.packed.ids, batch.packed.positions, batch.packed.attend)  # (T, D)
    # An embedding, not an index: rows occur several times, and the gradient of an index adds them up by
    # atomics, in another order each time.
    return F.embedding(batch.row, hidden)


def token_logp(
    model: Decoder, batch: MicroBatch, temperature: float, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a batch's completion tokens, (N,) each, at the sampling temperature;
    `rows` are its `states`, if they are known."""
    rows = states(model, batch) if rows is None else rows  # (N, D)
    head = model.head.to(rows.device)  # of a reference on the CPU, a copy
    return linear_logprob(rows, head, batch.target, temperature=temperature)


@torch.no_grad()
def logp_of_each(model: Decoder, batches: Sequence[MicroBatch], temperature: float) -> Iterator[Tensor]:
    """Log-probabilities of each batch's completion tokens, (N,), without gradients. Of a model that stays on
    the CPU, weights cross the bus for all batches together (`Decoder.each`)."""
    head = None
    inputs = [(batch.packed.ids, batch.packed.positions, batch.packed.attend) for batch in batches]
    for batch, hidden in zip(batches, model.each(inputs), strict=True):
        head = model.head.to(hidden.device) if head is None else head  # not before the layers are through
        rows = F.embedding(batch.row, hidden)  # (N, D)
        logp, _ = linear_logprob(rows, head, batch.target, temperature=temperature)
        del hidden, rows  # not beside the next batch's
        yield logp


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
    surrogate = batch.adv * logp
    if sampled:
        log_ratio = logp - batch.old_logp
        ratio = log_ratio.exp()
        low, high = (ratio < 1 - clip_low) & (batch.adv < 0), (ratio > 1 + clip_high) & (batch.adv > 0)
        bound = ratio.detach().clamp(1 - clip_low, 1 + clip_high)
        # torch.minimum of both sides would do, but some versions of torch halve its gradient at a bound.
        surrogate = torch.where(low | high, bound, ratio) * batch.adv
        gap = batch.old_logp - batch.sampler_logp  # trainer's numerics against the sampler's, same weights
        if mismatch_cap is not None:
            surrogate = surrogate * gap.exp().clamp_max(mismatch_cap)
        sums |= {
            "gap": gap.abs().sum(),
            "gap_max": gap.abs().max(),
            "clip_low": low.sum(),
            "clip_high": high.sum(),
        }
    per_token = -surrogate
    if batch.ref_logp is not None:
        toward = batch.ref_logp - logp
        k3 = toward.exp() - toward - 1
        per_token = per_token + beta * k3
        sums["kl"] = k3.detach().sum()
    loss = (batch.weight * per_token).sum()
    return loss, sums | {"loss": loss.detach()}


def gradient_norm(grads: Iterable[Tensor]) -> float:
    """The norm of all gradients as one vector. In float32: torch's get_total_norm has it in their own dtype,
    where the clip of a bfloat16 gradient would be off by up to 0.5 %."""
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(norms)).item()


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
