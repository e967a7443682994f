"""AdamW that learns in bfloat16: weights and moments are rounded stochastically, so that no update is lost.

    g = scale grad               m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
    p = p (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

A bfloat16 has 8 significant bits. Next to 0.02 its neighbours lie 1.2e-4 apart, and an update of 5e-6, Adam's
usual size at that learning rate, is below half of that: rounded to the nearest, it is lost at every step, and
a run that looks normal learns nothing. The usual remedy is a float32 copy of the weights. The other is to
round up or down with a probability in proportion to the distance, so that the update is kept on average:
random bits are added below the cut, and then it is cut.

Bytes, per number: read p, g, m, v; write p, m, v. That is 14 in bfloat16, where float32 moments and a float32
copy beside bfloat16 weights move 28, and 6 that stay in memory instead of 14.

Gradients of bfloat16 have the same trouble: what a batch adds to a sum that is 512 times as large is lost. So
a parameter's gradients are added up by the same rounding, as they come (`AdamW` sees to it). Where the first
of 19 to 148 batches has a large gradient and the others small ones, rounding to nearest keeps 82 % of the
others' share, this all of it; where all are alike it errs by 0.7 to 2 %, and rounding to nearest by 0.5 to
1.4 (tests/test_adamw.py). Sums in float32 would err by 0.2 %, and take twice the memory of the weights.

The random bits are Philox-4x32-10 (Salmon et al., SC 2011), which has no state to save: the key is the seed,
and the counter says which pair of numbers, of which parameter, at which step, and in which of its sums. So a
resumed run rounds as the uninterrupted one would have, and the torch path below rounds exactly as the kernel
does, on any device.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from rar_mini.kernels import bench
from rar_mini.kernels.backend import WARP, jit, tl, triton, use_kernel

SLICE = 2**17  # numbers that the reference takes at a time, so that its temporaries stay in the cache

OVER_RANKS = 2**31 - 1  # the turn of a sum over processes, which no sum over batches reaches

Bits = tuple[Tensor, Tensor, Tensor]
"""Random numbers in [0, 65536), int32, for p, m and v."""


# --- reference ----------------------------------------------------------------------------------------------


def factors(
    step: int, scale: float, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> tuple[float, ...]:
    """What one step multiplies by, counted once in double precision for both paths."""
    beta1, beta2 = betas
    rate, correction = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return scale, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps, 1 - lr * weight_decay, rate


def reference(p: Tensor, g: Tensor, m: Tensor, v: Tensor, by: tuple[float, ...], bits: Bits | None) -> None:
    """One update of n numbers, in place in p, m and v. `bits` are for bfloat16; float32 takes None.

    Every operation is rounded once, in the order of the kernel: torch's own lerp and addcmul may fuse, and
    then the two would differ in a last bit. So would their roots: torch's of a float32 is off by a bit one
    time in six where MKL computes it, and its root of a float64 is never off by that much.
    """
    scale, keep1, add1, keep2, add2, correction, eps, decay, rate = by
    g = g.float() * scale
    new_m = m.float() * keep1 + g * add1
    new_v = v.float() * keep2 + g * g * add2
    root = new_v.double().sqrt().float()
    new_p = p.float() * decay - new_m / (root * correction + eps) * rate
    for i, (place, new) in enumerate(((p, new_p), (m, new_m), (v, new_v))):
        place.copy_(new if bits is None else round_stochastically(new, bits[i]))


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """float32 (n,) and random bits in [0, 65536) (n,) int32 -> bfloat16 (n,), unbiased.

    Non-finite values are cut as they are: bits added to a NaN can carry into its sign and make it -0.0. A NaN
    survives the cut, because arithmetic sets the first bit of its payload. A value so close to the largest
    finite one that the carry overflows becomes infinite, as in rounding to nearest.
    """
    raw = x.view(torch.int32) + torch.where(x.isfinite(), bits, 0)
    return (raw >> 16).to(torch.int16).view(torch.bfloat16)


def philox(seed: int, c0: Tensor, c1: int, c2: int, c3: int = 0) -> list[Tensor]:
    """Four (n,) words for each counter (c0, c1, c2, c3), as int64 of which the low 32 bits count; c0 (n,)."""
    low = 2**32 - 1
    k0, k1 = seed & low, seed >> 32 & low
    c = [c0, *(torch.full_like(c0, number) for number in (c1, c2, c3))]
    for _ in range(10):
        # Products wrap around 2^64, and what is multiplied next is masked: that makes int64 do as unsigned.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        left = (b >> 32).bitwise_xor_(c[1]).bitwise_xor_(k0).bitwise_and_(low)
        right = (a >> 32).bitwise_xor_(c[3]).bitwise_xor_(k1).bitwise_and_(low)
        c = [left, b, right, a]
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c


def random_bits(
    seed: int, step: int, index: int, start: int, n: int, device: torch.device, turn: int = 0
) -> Bits:
    """Bits for the numbers [start, start + n) of parameter `index`; start is even. Turn 0 is the update's,
    the others are those of the sums of gradients before it.

    Four words serve two neighbours: each takes 16 bits for p and m from one word, and for v from another.
    """
    pair = torch.arange(start // 2, (start + n + 1) // 2, device=device)
    words = philox(seed, pair, index, step, turn)
    pm, v = (torch.stack(words[i : i + 2], 1).view(-1)[:n].int() for i in (0, 2))  # .int() keeps the low half
    return pm & 0xFFFF, pm >> 16 & 0xFFFF, v & 0xFFFF


# --- kernel -------------------------------------------------------------------------------------------------


@jit
def _narrow(x, bits, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        raw = x.to(tl.int32, bitcast=True)
        finite = (raw & 0x7F800000) != 0x7F800000
        raw += tl.where(finite, (bits & 0xFFFF).to(tl.int32), 0)
        return (raw >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x


@jit
def _step(p, g, m, v, mask, pm, w, by):
    """One tile: p, g, m, v point to its numbers; pm and w are its random words."""
    scale, keep1, add1, keep2, add2, correction, eps, decay, rate = by
    grad = tl.load(g, mask=mask).to(tl.float32) * scale
    new_m = tl.load(m, mask=mask).to(tl.float32) * keep1 + grad * add1
    new_v = tl.load(v, mask=mask).to(tl.float32) * keep2 + grad * grad * add2
    # Division and root are rounded to nearest as torch's are; tl's defaults are off by a bit or two.
    ratio = tl.div_rn(new_m, tl.sqrt_rn(new_v) * correction + eps)
    new_p = tl.load(p, mask=mask).to(tl.float32) * decay - ratio * rate
    tl.store(p, _narrow(new_p, pm, p.dtype.element_ty), mask=mask)
    tl.store(m, _narrow(new_m, pm >> 16, p.dtype.element_ty), mask=mask)
    tl.store(v, _narrow(new_v, w, p.dtype.element_ty), mask=mask)


@jit
def _words(start, seed, index, step, turn, BLOCK: tl.constexpr):
    """A word for p and m and one for v, for each of the numbers from `start` on."""
    pair = (start // 2).to(tl.uint32) + tl.arange(0, BLOCK // 2).to(tl.uint32)
    zero = pair * 0
    r0, r1, r2, r3 = tl.philox(seed, pair, zero + index, zero + step, zero + turn)
    return tl.interleave(r0, r1), tl.interleave(r2, r3)


@jit(do_not_specialize=["n", "seed", "index", "step"])
def _adamw(p, g, m, v, n: tl.int64, seed: tl.int64, index, step,
           scale, keep1, add1, keep2, add2, correction, eps, decay, rate, BLOCK: tl.constexpr):  # fmt: skip
    """One tile a program. Triton would take a seed below 2^31 as int32, and compile again for one above."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    pm = tl.zeros([BLOCK], tl.uint32)
    w = pm
    if p.dtype.element_ty == tl.bfloat16:
        pm, w = _words(start, seed, index, step, 0, BLOCK)
    by = (scale, keep1, add1, keep2, add2, correction, eps, decay, rate)
    if start + BLOCK <= n:  # no mask, so that every access is 16 bytes wide whatever n is
        _step(p + i, g + i, m + i, v + i, None, pm, w, by)
    else:
        _step(p + i, g + i, m + i, v + i, i < n, pm, w, by)


@jit
def _sum(total, g, mask, words):
    x = tl.load(total, mask=mask).to(tl.float32) + tl.load(g, mask=mask).to(tl.float32)
    tl.store(total, _narrow(x, words, total.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["n", "seed", "index", "step", "turn"])
def _add(total, g, n: tl.int64, seed: tl.int64, index, step, turn, BLOCK: tl.constexpr):
    """One tile of a sum of bfloat16 a program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    words, _ = _words(start, seed, index, step, turn, BLOCK)
    if start + BLOCK <= n:
        _sum(total + i, g + i, None, words)
    else:
        _sum(total + i, g + i, i < n, words)


# --- launcher -----------------------------------------------------------------------------------------------

BLOCK, THREADS = 1024, 128
"""Each thread updates 8 numbers: in bfloat16, one access of 16 bytes for each of the 7 streams. At up to 80
registers, six programs or more fit on an SM and keep 48 KB in flight; triton 3.6 takes 88, 3.8 85: five."""


def _launch(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, by: tuple[float, ...], seed: int, step: int, index: int
) -> None:
    assert all(x.is_contiguous() and x.dtype == p.dtype and x.shape == p.shape for x in (p, g, m, v))
    n = p.numel()
    # Without fusing, every operation is rounded once, as in the reference.
    _adamw[(triton.cdiv(n, BLOCK),)](
        p, g, m, v, n, seed, index, step, *by, BLOCK, num_warps=THREADS // WARP, enable_fp_fusion=False
    )  # fmt: skip


def add_(total: Tensor, g: Tensor, *, seed: int, step: int, index: int, turn: int) -> None:
    """Add g, of bfloat16 or float32, to a bfloat16 total of its shape and round stochastically; in place."""
    assert total.is_contiguous() and total.dtype == torch.bfloat16 and total.shape == g.shape
    total, g = total.view(-1), g.contiguous().view(-1)
    if use_kernel(total):
        grid = (triton.cdiv(len(total), BLOCK),)
        options = {"num_warps": THREADS // WARP, "enable_fp_fusion": True}
        _add[grid](total, g, len(total), seed, index, step, turn, BLOCK, **options)
        return
    for start in range(0, len(total), SLICE):
        piece, more = (x[start : start + SLICE] for x in (total, g))
        bits, _, _ = random_bits(seed, step, index, start, len(piece), total.device, turn)
        piece.copy_(round_stochastically(piece.float() + more.float(), bits))


# --- public -------------------------------------------------------------------------------------------------


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay, for float32 and (rounding stochastically) bfloat16 parameters.

    Defaults are those of torch.optim.AdamW, except that weights do not decay. `param_groups` is read at each
    step, so a schedule sets `lr` there. `state_dict()` holds all there is: for each parameter the number of
    steps and two moments in its own dtype, and the seed in its group.

    From its making on, what backward passes add up in `grad` of a bfloat16 parameter is rounded
    stochastically, too.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed}
        positive = lr >= 0 and eps > 0 and weight_decay >= 0 and 0 <= seed < 2**63
        if not positive or not all(0 <= beta < 1 for beta in betas):
            bounds = "lr >= 0, betas in [0, 1), eps > 0, weight_decay >= 0, seed in [0, 2^63)"
            raise ValueError(f"expected {bounds}, got {options}")
        super().__init__(params, options)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"expected parameters in float32 or bfloat16, got {p.dtype}")
            if not p.is_contiguous():
                raise ValueError(f"expected contiguous parameters, got {tuple(p.shape)} at {p.stride()}")
        for index, number, p in self._keyed():
            if p.dtype == torch.bfloat16 and p.requires_grad:
                p.register_hook(self._adding(p, number, index))

    def _keyed(self) -> Iterator[tuple[int, int, Tensor]]:
        """Each parameter with the index that is its key, and the number of its group: load_state_dict makes
        new groups."""
        pairs = ((number, p) for number, group in enumerate(self.param_groups) for p in group["params"])
        return ((index, number, p) for index, (number, p) in enumerate(pairs, 1))

    def _add(self, p: Tensor, number: int, index: int, total: Tensor, g: Tensor, turn: int) -> None:
        """Add g to a sum of p's gradients, by p's key at this step."""
        seed, step = self.param_groups[number]["seed"], self.state[p].get("step", 0) + 1
        add_(total, g, seed=seed, step=step, index=index, turn=turn)

    def _adding(self, p: Tensor, number: int, index: int) -> Callable[[Tensor], Tensor]:
        """What autograd asks, with each new gradient of p, for the one to put into p.grad."""
        turn = 0

        def add(g: Tensor) -> Tensor:
            nonlocal turn
            if p.grad is None:
                turn = 0
                return g
            total, p.grad, turn = p.grad, None, turn + 1
            self._add(p, number, index, total, g, turn)
            return total

        return add

    def sum_gradients(self, add: Callable[[Tensor], object]) -> None:
        """Have `add` turn each gradient into its sum over processes, in place. One of bfloat16 is added up in
        float32 and rounded once, alike in all processes: they have the same key."""
        for index, number, p in self._keyed():
            if p.grad is not None:
                add(wide := p.grad.float())  # of float32, the gradient itself
                if p.dtype == torch.bfloat16:
                    self._add(p, number, index, p.grad.zero_(), wide, OVER_RANKS)

    def make_moments(self) -> None:
        """Take the moments' memory now: at the first step, what a wave of samples has freed is in pieces."""
        for _, _, p in self._keyed():
            if p.requires_grad:
                self._begin(p)

    def _begin(self, p: Tensor) -> None:
        if not self.state[p]:
            self.state[p].update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))

    @torch.no_grad()
    def step(self, closure: None = None, *, grad_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, as if all gradients were multiplied by `grad_scale`.

        That is how a global norm is clipped without another pass. Gradients are spent afterwards: the float32
        path on the CPU leaves them scaled.
        """
        if closure is not None:
            raise ValueError("expected no closure: compute the loss before the step")
        index = 0
        for group in self.param_groups:
            plain: list[Tensor] = []
            for p in group["params"]:
                index += 1  # parameters without a gradient count too: the key of a parameter never changes
                if p.grad is None:
                    continue
                self._begin(p)
                self.state[p]["step"] += 1
                if p.dtype == torch.float32 and p.device.type == "cpu" and not use_kernel(p):
                    plain.append(p)
                else:
                    self._update(p, group, grad_scale, index)
            if plain:
                self._update_all(plain, group, grad_scale)

    def _update(self, p: Tensor, group: dict[str, Any], grad_scale: float, index: int) -> None:
        state = self.state[p]
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        by = factors(state["step"], grad_scale, **options)
        streams = [x.view(-1) for x in (p, p.grad.contiguous(), state["m"], state["v"])]
        key = (group["seed"], state["step"], index)
        if use_kernel(p):
            _launch(*streams, by, *key)
            return
        for start in range(0, p.numel(), SLICE):
            piece = [x[start : start + SLICE] for x in streams]
            drawn = p.dtype == torch.bfloat16
            reference(*piece, by, random_bits(*key, start, len(piece[0]), p.device) if drawn else None)

    def _update_all(self, params: list[Tensor], group: dict[str, Any], grad_scale: float) -> None:
        """float32 on the CPU: torch's fused update is as fast as memory there, and needs nothing of ours."""
        states = [self.state[p] for p in params]
        torch_adamw(
            params,
            [p.grad for p in params],
            [s["m"] for s in states],
            [s["v"] for s in states],
            [],
            [torch.tensor(s["step"] - 1.0) for s in states],  # it counts the step itself
            fused=True,
            grad_scale=None if grad_scale == 1 else torch.tensor(1 / grad_scale),  # it divides
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


# --- benchmark ----------------------------------------------------------------------------------------------


def benchmark(on: str) -> Iterator[bench.Row]:
    """One step over matrices of 16 million numbers. `fused` is PyTorch's single pass, rounding to nearest."""
    copying, count = bench.copying(on), 16 if on == "cuda" else 2
    for dtype in (torch.float32, torch.bfloat16):
        params = [torch.randn(4096, 4096, device=on, dtype=dtype).mul_(0.02) for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        case, moved = f"{count} x 4096 x 4096, {str(dtype)[6:]}", 7 * sum(p.nbytes for p in params)
        yield bench.row(case, "AdamW", AdamW(params, 1e-5).step, on, moved, copying)
        for how in ("fused", "foreach"):
            optimizer = torch.optim.AdamW(params, 1e-5, **{how: True})
            yield bench.row(case, f"torch, {how}", optimizer.step, on, moved, copying)


if __name__ == "__main__":
    bench.show("adamw", benchmark)
