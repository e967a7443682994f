"""From verdicts to rewards to advantages, in one launch.

    reward_g = sum_k w_k v_gk / sum_k max(w_k, 0)           where some weight is positive
             = 1 - sum_k |w_k| v_gk / sum_k |w_k|           where none is (ours: all weights are penalties)
    adv_g    = (reward_g - mean) / (std + 1e-6)             over the scored rollouts of the group

What a formula does not say, and what goes wrong without it:

- An item of weight 0 does not exist; its verdict may be anything, NaN included. That is also how rubrics are
  padded. Where all weights are 0 nothing was asked, and the reward is NaN.
- A NaN verdict on an item that exists makes the reward NaN. Such a rollout is not in the mean, not in the
  deviation, and its advantage is 0: a judge's failure is never a score. A group with fewer than two scored
  rollouts teaches nothing.
- Ties are exactly 0. Twelve rewards of 0.99 have, in float32, a mean that differs from 0.99 by a rounding
  residue, which over (residue + 1e-8), as others divide, is an advantage of 0.9. Rewards that are equal on
  paper differ by up to 1.2e-7 by the order of their sums. So a group whose rewards lie within 1e-6 of each
  other teaches nothing either. The deviation is the population's: the group is all there is.

Bytes: a verdict is read once, 4 P G K; all the rest is (P, G) or (P, K). For 6 groups of 16 rollouts and 12
items that is 5 KB, microseconds on any device, and what counts is the number of launches: one here, about
twenty in torch.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rar_mini.kernels import bench
from rar_mini.kernels.backend import WARP, jit, tl, triton, use_kernel

TIE = 1e-6
EPS = 1e-6
SCALES = ("group", "none")


# --- reference ----------------------------------------------------------------------------------------------


def reference(verdict: Tensor, weight: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """The rule in torch, in the dtype of its inputs: (P, G, K), (P, K) -> reward (P, G), advantage (P, G)."""
    w = weight[:, None]  # (P, 1, K)
    points = torch.where(w != 0, verdict, 0.0)  # NaN * 0 would be NaN
    positive = w.clamp_min(0).sum(-1)  # (P, 1)
    lost = (w.abs() * points).sum(-1) / w.abs().sum(-1)  # (P, G)
    reward = torch.where(positive > 0, (w * points).sum(-1) / positive, 1 - lost)
    valid = ~reward.isnan()
    count = valid.sum(-1, keepdim=True)  # (P, 1)
    mean = torch.where(valid, reward, 0.0).sum(-1, keepdim=True) / count
    off = torch.where(valid, reward - mean, 0.0)
    highest = torch.where(valid, reward, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(valid, reward, torch.inf).amin(-1, keepdim=True)
    std = (off.square().sum(-1, keepdim=True) / count).sqrt()
    advantage = off / (std + EPS) if scale == "group" else off
    # One scored rollout spreads by 0, and none by -inf: a group of fewer than two is one that ties.
    return reward, torch.where(highest - lowest > TIE, advantage, 0.0)


# --- kernel -------------------------------------------------------------------------------------------------


# One binary a tile: K is any number, so nothing could be read wider for being aligned.
@jit(
    do_not_specialize=["G", "K", "standardise"],
    do_not_specialize_on_alignment=["verdict", "weight", "reward", "advantage"],
)
def _advantage(verdict, weight, reward, advantage, G, K, standardise, tie, eps,
               BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """One group a program: all rollouts lie in one tile, the criteria pass by in tiles of BLOCK_K."""
    p = tl.program_id(0).to(tl.int64)
    verdict += p * G * K  # from here on offsets fit in 32 bits, which halves the registers of addresses
    weight += p * K
    g = tl.arange(0, BLOCK_G)
    earned = tl.zeros([BLOCK_G], tl.float32)
    lost = tl.zeros([BLOCK_G], tl.float32)
    positive = 0.0
    size = 0.0
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(weight + k, mask=k < K, other=0.0)
        exists = (g < G)[:, None] & (w != 0.0)[None, :]  # an item of weight 0 is not even read
        v = tl.load(verdict + g[:, None] * K + k[None, :], mask=exists, other=0.0)
        earned += tl.sum(v * w[None, :], 1)
        lost += tl.sum(v * tl.abs(w)[None, :], 1)
        positive += tl.sum(tl.maximum(w, 0.0), 0)
        size += tl.sum(tl.abs(w), 0)
    # 0 / 0 is NaN where all weights are 0, as it should be.
    r = tl.where(positive > 0.0, earned / tl.where(positive > 0.0, positive, 1.0), 1.0 - lost / size)
    valid = (r == r) & (g < G)
    count = tl.sum(valid.to(tl.float32), 0)
    mean = tl.sum(tl.where(valid, r, 0.0), 0) / tl.maximum(count, 1.0)
    off = tl.where(valid, r - mean, 0.0)  # 0 is also the advantage of a rollout without a reward
    spread = tl.max(tl.where(valid, r, float("-inf")), 0) - tl.min(tl.where(valid, r, float("inf")), 0)
    std = tl.sqrt(tl.sum(off * off, 0) / tl.maximum(count, 1.0))
    adv = off / tl.where(standardise != 0, std + eps, 1.0)
    tl.store(reward + p * G + g, r, mask=g < G)
    tl.store(advantage + p * G + g, tl.where(spread > tie, adv, 0.0), mask=g < G)


# --- launcher -----------------------------------------------------------------------------------------------

THREADS = 128
"""At up to 80 registers, six programs or more fit on an SM, so that all groups of a step run at once.
For groups of up to 16, triton 3.6 takes 111, and four fit."""


def tile(G: int) -> tuple[int, int]:
    """(BLOCK_G, BLOCK_K): all of G, and 1,024 verdicts in all, 8 in each thread. K passes by, so that the
    seven tiles of G, 16 to 1,024, are all that is ever compiled."""
    block = max(16, triton.next_power_of_2(G))
    return block, max(1, 1024 // block)


def _launch(verdict: Tensor, weight: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    P, G, K = verdict.shape
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (verdict, weight))
    reward = torch.empty(P, G, dtype=torch.float32, device=verdict.device)
    advantage = torch.empty_like(reward)
    sizes = (G, K, int(scale == "group"), TIE, EPS, *tile(G))
    options = {"num_warps": THREADS // WARP, "enable_fp_fusion": True}
    _advantage[(P,)](verdict, weight, reward, advantage, *sizes, **options)
    return reward, advantage


# --- public -------------------------------------------------------------------------------------------------


def group_advantage(verdict: Tensor, weight: Tensor, *, scale: str = "group") -> tuple[Tensor, Tensor]:
    """Rewards and advantages of P groups of G rollouts under K criteria, both (P, G) in float32.

    verdict (P, G, K) in [0, 1] or NaN; weight (P, K), signed, 0 where there is no item. `scale` is "group"
    (over the group's deviation, arXiv 2402.03300) or "none" (the difference to the mean, arXiv 2503.20783).
    Inputs are only read. Raises ValueError for shapes that do not fit, groups of none or of more than 1,024
    rollouts, or another scale.
    """
    if verdict.ndim != 3 or weight.shape != (verdict.shape[0], verdict.shape[2]):
        shapes = f"{tuple(verdict.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"expected verdict (P, G, K) and weight (P, K), got {shapes}")
    if not 1 <= verdict.shape[1] <= 1024:
        raise ValueError(f"expected 1 to 1024 rollouts in a group, got {verdict.shape[1]}")
    if scale not in SCALES:
        raise ValueError(f"no advantage scale {scale!r}: expected one of {', '.join(SCALES)}")
    verdict, weight = verdict.float().contiguous(), weight.float().contiguous()
    if use_kernel(verdict) and len(verdict):
        return _launch(verdict, weight, scale)
    return reference(verdict, weight, scale)


# --- benchmark ----------------------------------------------------------------------------------------------


def benchmark(on: str) -> Iterator[bench.Row]:
    """The paper's step, and the largest groups and rubrics that are taken."""
    copying = bench.copying(on)
    for P, G, K in [(6, 16, 12), (64, 1024, 512)] if on == "cuda" else [(6, 16, 12), (8, 256, 64)]:
        verdict, weight = torch.rand(P, G, K, device=on), torch.rand(P, K, device=on)
        moved = verdict.nbytes + weight.nbytes + 2 * 4 * P * G
        rivals = (("torch", reference), ("torch.compile", torch.compile(reference)))
        for path, fn in (("group_advantage", group_advantage), *rivals):
            run = partial(fn, verdict, weight, scale="group")
            yield bench.row(f"P {P}, G {G}, K {K}", path, run, on, moved, copying)


if __name__ == "__main__":
    bench.show("advantage", benchmark)
