"""From verdicts to rewards to advantages, in one launch.

    reward_g = sum_k w_k v_gk / sum_k max(w_k, 0)         where some weight is positive
             = 1 - sum_k |w_k| v_gk / sum_k |w_k|         where none is (ours: all weights are penalties)
    adv_g    = (reward_g - mean) / (std + 1e-6)           over the scored rollouts of the group, population
    std

What a formula does not say, and what goes wrong without it:

- An item of weight 0 does not exist; its verdict may be anything, NaN included. That is also how rubrics are
  padded.
- A NaN verdict on an item that exists makes the reward NaN. Such a rollout is not in the mean, not in the
  deviation, and its advantage is 0: a judge's failure is never a score.
- Ties are exactly 0. Twelve rewards of 0.99 have, in float32, a mean that differs from 0.99 by a rounding
  residue, and residue over (residue + 1e-8) is an advantage of 0.9. And rewards that are equal on paper
  differ by up to 1.2e-7 by the order of their sums. So a group whose rewards lie within 1e-6 of each other
  teaches nothing.

Bytes: a verdict is read once, 4 P G K; everything else is (P, G) or (P, K) and small. The whole of it is
microseconds on any device; it is a kernel so that the rule stands in one place and is one launch instead of
twenty.
"""

import torch
from torch import Tensor

from rar_mini.kernels.backend import jit, tl, triton, use_kernel

TIE = 1e-6
EPS = 1e-6
SCALES = ("group", "none")


# --- reference ----------------------------------------------------------------------------------------------


def reference(verdict: Tensor, weight: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """The rule in torch, in the dtype of its inputs: (P, G, K), (P, K) -> reward (P, G), advantage (P, G)."""
    exists = (weight != 0)[:, None]  # (P, 1, K)
    points = torch.where(exists, verdict, 0.0)  # NaN * 0 would be NaN
    positive = weight.clamp_min(0).sum(-1, keepdim=True)  # (P, 1)
    earned = (weight[:, None] * points).sum(-1)  # (P, G)
    lost = (weight[:, None].abs() * points).sum(-1)
    reward = torch.where(positive > 0, earned / positive, 1 - lost / weight.abs().sum(-1, keepdim=True))
    known = ~reward.isnan()
    count = known.sum(-1, keepdim=True)
    mean = torch.where(known, reward, 0.0).sum(-1, keepdim=True) / count
    off = torch.where(known, reward - mean, 0.0)
    highest = torch.where(known, reward, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(known, reward, torch.inf).amin(-1, keepdim=True)
    std = (off.square().sum(-1, keepdim=True) / count).sqrt()
    advantage = off / (std + EPS) if scale == "group" else off
    return reward, torch.where(known & (count >= 2) & (highest - lowest > TIE), advantage, 0.0)


# --- kernel -------------------------------------------------------------------------------------------------


@jit
def _advantage(verdict, weight, reward, advantage, G, K, tie, eps,
               STANDARDISE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """One group a program: the rollouts lie in one tile, the criteria pass by in tiles of BLOCK_K."""
    p = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    earned = tl.zeros([BLOCK_G], tl.float32)
    lost = tl.zeros([BLOCK_G], tl.float32)
    positive = 0.0
    total = 0.0
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(weight + p * K + k, mask=k < K, other=0.0).to(tl.float32)
        inside = (g < G)[:, None] & (w != 0.0)[None, :]  # an item of weight 0 is not even read
        v = tl.load(verdict + (p * G + g)[:, None] * K + k[None, :], mask=inside, other=0.0).to(tl.float32)
        earned += tl.sum(v * w[None, :], 1)
        lost += tl.sum(v * tl.abs(w)[None, :], 1)
        positive += tl.sum(tl.maximum(w, 0.0), 0)
        total += tl.sum(tl.abs(w), 0)
    # The divisor that is not chosen may be 0; 0 / 0 = NaN remains only where all weights are 0, as in the
    # reference.
    r = tl.where(positive > 0.0, earned / tl.where(positive > 0.0, positive, 1.0), 1.0 - lost / total)
    known = (r == r) & (g < G)
    count = tl.sum(known.to(tl.float32), 0)
    mean = tl.sum(tl.where(known, r, 0.0), 0) / tl.maximum(count, 1.0)
    off = tl.where(known, r - mean, 0.0)
    spread = tl.max(tl.where(known, r, float("-inf")), 0) - tl.min(tl.where(known, r, float("inf")), 0)
    adv = off
    if STANDARDISE:
        adv = off / (tl.sqrt(tl.sum(off * off, 0) / tl.maximum(count, 1.0)) + eps)
    spread = tl.where(count >= 2.0, spread, 0.0)  # one scored rollout has nothing to be compared with
    adv = tl.where(known, tl.where(spread > tie, adv, 0.0), 0.0)
    tl.store(reward + p * G + g, r, mask=g < G)
    tl.store(advantage + p * G + g, adv, mask=g < G)


def tile(G: int, K: int) -> tuple[int, int, int]:
    """(BLOCK_G, BLOCK_K, warps): all of G, and as much of K as leaves at most 4,096 verdicts in registers."""
    block_g = triton.next_power_of_2(G)
    block_k = max(1, min(triton.next_power_of_2(K), 4096 // block_g))
    return block_g, block_k, 4 if block_g * block_k <= 2048 else 8


def _launch(verdict: Tensor, weight: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    P, G, K = verdict.shape
    verdict, weight = verdict.contiguous(), weight.contiguous()
    reward = torch.empty(P, G, dtype=torch.float32, device=verdict.device)
    advantage = torch.empty_like(reward)
    block_g, block_k, warps = tile(G, K)
    _advantage[(P,)](
        verdict,
        weight,
        reward,
        advantage,
        G,
        K,
        TIE,
        EPS,
        scale == "group",
        block_g,
        block_k,
        num_warps=warps,
    )
    return reward, advantage


# --- public -------------------------------------------------------------------------------------------------


def group_advantage(verdict: Tensor, weight: Tensor, *, scale: str) -> tuple[Tensor, Tensor]:
    """Rewards and advantages of P groups: verdict (P, G, K), weight (P, K) -> reward (P, G), advantage (P,
    G), float32.

    `scale` is "group" (divide by the group's deviation, as in DeepSeekMath) or "none" (arXiv 2503.20783).
    Inputs are left as they are. Raises ValueError for shapes that do not fit, more than 1,024 rollouts, or
    another scale.
    """
    if verdict.ndim != 3 or weight.shape != (verdict.shape[0], verdict.shape[2]):
        raise ValueError(
            f"expected verdict (P, G, K) and weight (P, K), got {verdict.shape} and {weight.shape}"
        )
    if scale not in SCALES:
        raise ValueError(f"no advantage scale {scale!r}: expected one of {', '.join(SCALES)}")
    if verdict.shape[1] > 1024:
        raise ValueError(f"expected at most 1024 rollouts in a group, got {verdict.shape[1]}")
    if use_kernel(verdict) and verdict.numel():
        return _launch(verdict, weight, scale)
    return reference(verdict.float(), weight.float(), scale)
