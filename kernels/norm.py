"""RMSNorm, and the sum before it, in one pass each way.

    h = x + delta       r = 1 / sqrt(mean(h h) + eps)       n = h r       y = w n           a row of D numbers
    g = w dy            dh = r (g - n mean(g n)) + dtotal                 dw = sum over rows of dy n

A layer of the decoder adds to the residual stream and norms the sum, twice. The gradient of that sum comes
from two sides, the norm's and the stream's own (`dtotal`). All of it happens while a row lies in registers.

Rounding is transformers': the sum once, n to the weights' dtype before the weight, all else in float32.

Bytes a number, in bfloat16, and launches:

    forward     8 in 1      read x and delta, write h and y; plain torch 42 in 9
    backward    8 in 3      read h, dy and dtotal, write dh; plain torch 98 in 17
    kept        2           h, and r, which is one number a row; plain torch 6: h in float32, and n

Every program reads the weight, from cache. The weight's gradient is a sum over all rows that must not depend
on which program ends first: each adds up ROWS rows in their order, a second launch adds the programs' sums,
and a third rounds them (a frozen weight has neither). No atomics, and the number of programs does not depend
on the GPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rar_mini.kernels import bench
from rar_mini.kernels.backend import LAYER_DTYPES, WARP, jit, tl, triton, use_kernel

WIDEST = 8192
"""Numbers of a row that the kernels take, if they are a multiple of 16: a program has all of it in registers.
Models of 70B are as wide as that; other rows take the torch path."""

ROWS = 32
"""Rows whose share of the weight's gradient one program adds up: 1.04 of the fewest bytes."""


# --- reference ----------------------------------------------------------------------------------------------


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root of the mean square over the last axis, and scale (arXiv 1910.07467)."""
    x32 = x.float()  # a mean of bfloat16 squares has two or three digits
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * x32.to(x.dtype)  # rounded before the scale, as the families do


def plain(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What one would write, and what CPUs compute."""
    total = x + delta
    return total, reference(total, weight, eps)


# --- kernels ------------------------------------------------------------------------------------------------


# N stands in masks only, and is any number: the tokens of a batch, or the rows that a sampler still writes.
@jit(do_not_specialize=["N"])
def _norm_forward(x, delta, weight, total, y, root, N, D, eps,
                  ADD: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """LINES rows a program."""
    row = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    i = tl.arange(0, BLOCK)
    at = row[:, None] * D + i[None, :]
    inside = (row < N)[:, None] & (i < D)[None, :]
    h = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        more = tl.load(delta + at, mask=inside, other=0.0)
        h = (h.to(tl.float32) + more.to(tl.float32)).to(h.dtype)
        tl.store(total + at, h, mask=inside)
    w = tl.load(weight + i, mask=i < D, other=0.0).to(tl.float32)
    h32 = h.to(tl.float32)
    r = tl.rsqrt(tl.sum(h32 * h32, 1) / D + eps)
    n = (h32 * r[:, None]).to(h.dtype).to(tl.float32)
    tl.store(y + at, (n * w[None, :]).to(h.dtype), mask=inside)
    tl.store(root + row, r, mask=row < N)


@jit(do_not_specialize=["N"])
def _norm_backward(h, weight, root, dy, dtotal, dh, sums, N, D,
                   ADD: tl.constexpr, LEARNS: tl.constexpr, ROWS: tl.constexpr,
                   LINES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """ROWS rows a program, LINES at a time. Their share of the weight's gradient adds up in registers."""
    program = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    w = tl.load(weight + i, mask=i < D, other=0.0).to(tl.float32)
    dw = tl.zeros([LINES, BLOCK], tl.float32)
    for start in range(0, ROWS, LINES):
        row = program * ROWS + start + tl.arange(0, LINES)
        at = row[:, None] * D + i[None, :]
        inside = (row < N)[:, None] & (i < D)[None, :]
        x = tl.load(h + at, mask=inside, other=0.0)
        up = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(root + row, mask=row < N, other=1.0)[:, None]
        n = x.to(tl.float32) * r
        if LEARNS:
            dw += up * n.to(x.dtype).to(tl.float32)
        g = up * w[None, :]
        down = r * (g - n * (tl.sum(g * n, 1) / D)[:, None])
        if ADD:
            down += tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dh + at, down.to(x.dtype), mask=inside)
    if LEARNS:
        tl.store(sums + program * D + i, tl.sum(dw, 0), mask=i < D)


# --- launcher -----------------------------------------------------------------------------------------------


def tile(D: int) -> dict[str, int]:
    """LINES and BLOCK: whole rows, and at least 1,024 numbers. Only eight tiles, for rows of 64 to 8,192, are
    ever compiled."""
    block = max(64, triton.next_power_of_2(D))
    return {"LINES": max(1, 1024 // block), "BLOCK": block}


def threads(LINES: int, BLOCK: int) -> int:
    """8 numbers each: in bfloat16, one access of 16 bytes. 1,024 threads or more fit on an SM, and keep 40 KB
    in flight on the way back."""
    return LINES * BLOCK // 8


def normed(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x, delta (N, D), weight (D,) -> h (N, D), y (N, D), r (N,)."""
    (N, D), how = x.shape, tile(x.shape[1])
    given = (x, weight) if delta is None else (x, delta, weight)
    assert all(t.is_contiguous() and t.dtype == x.dtype for t in given)
    y, root = torch.empty_like(x), torch.empty(N, dtype=torch.float32, device=x.device)
    add = delta is not None
    h = torch.empty_like(x) if add else x
    _norm_forward[(triton.cdiv(N, how["LINES"]),)](
        x, delta if add else x, weight, h, y, root, N, D, eps, add, **how,
        num_warps=threads(**how) // WARP, enable_fp_fusion=True,
    )  # fmt: skip
    return h, y, root


def gradients(
    h: Tensor, weight: Tensor, root: Tensor, dy: Tensor, dtotal: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """dh (N, D), and dw (D,) if the weight learns."""
    (N, D), how = h.shape, tile(h.shape[1])
    add = dtotal is not None
    dy, dtotal = dy.contiguous(), dtotal.contiguous() if add else dy
    dh, programs = torch.empty_like(h), triton.cdiv(N, ROWS)
    sums = torch.empty(programs, D, dtype=torch.float32, device=h.device) if learns else root
    _norm_backward[(programs,)](
        h, weight, root, dy, dtotal, dh, sums, N, D, add, learns, ROWS, **how,
        num_warps=threads(**how) // WARP, enable_fp_fusion=True,
    )  # fmt: skip
    return dh, sums.sum(0).to(weight.dtype) if learns else None


# --- autograd -----------------------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Any:
        h, y, root = normed(x, delta, weight, eps)
        ctx.save_for_backward(h, weight, root)
        return y if delta is None else (h, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *ups: Tensor) -> tuple[Tensor | None, ...]:
        *other, dy = ups
        dh, dw = gradients(*ctx.saved_tensors, dy, *(other or [None]), ctx.needs_input_grad[2])
        return dh, dh if other else None, dw, None


# --- public -------------------------------------------------------------------------------------------------


def _fused(x: Tensor) -> bool:
    fits = x.shape[-1] % 16 == 0 and x.shape[-1] <= WIDEST and x.numel() > 0
    return use_kernel(x) and fits and x.dtype in LAYER_DTYPES


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The RMSNorm of x (..., D) by weight (D,), in x's dtype; differentiable once in both."""
    if not _fused(x):
        return reference(x, weight, eps)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return _Norm.apply(rows, None, weight, eps).view(x.shape)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and its RMSNorm by weight (D,); x and delta (N, D). Differentiable once, through both."""
    if not _fused(x):
        return plain(x, delta, weight, eps)
    return _Norm.apply(x.contiguous(), delta.contiguous(), weight, eps)


# --- benchmark ----------------------------------------------------------------------------------------------


def late(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """By torch's own norm, which rounds once, after the weight; in float64 it is the truth."""
    total = x + delta
    return total, F.rms_norm(total, weight.shape, weight, eps)


def benchmark(on: str) -> Iterator[bench.Row]:
    """The rows of a decoding step, forward; and those of a training pass, both ways."""
    copying, dtype = bench.copying(on), torch.bfloat16 if on == "cuda" else torch.float32
    for N, D in [(96, 3584), (16_384, 3584)] if on == "cuda" else [(96, 576), (4096, 576)]:
        leaves = [torch.randn(N, D, device=on, dtype=dtype, requires_grad=True) for _ in range(2)]
        leaves.append(torch.ones(D, device=on, dtype=dtype, requires_grad=True))
        ups, size = [torch.randn(N, D, device=on, dtype=dtype) for _ in range(2)], leaves[0].nbytes

        def both(fn: Callable, leaves: list[Tensor] = leaves, ups: list[Tensor] = ups) -> None:
            torch.autograd.grad(fn(*leaves, 1e-6), leaves, ups)

        def once(fn: Callable, leaves: list[Tensor] = leaves) -> None:
            with torch.no_grad():
                fn(*leaves, 1e-6)

        rivals = (("torch", plain), ("torch.compile", torch.compile(plain)), ("torch's rms_norm", late))
        for path, fn in (("add_rms_norm", add_rms_norm), *rivals):
            run, how, times = (once, "forward", 4) if N == 96 else (both, "both ways", 8)
            case = f"N {N}, D {D}, {str(dtype)[6:]}, {how}"
            yield bench.row(case, path, partial(run, fn), on, times * size, copying)


if __name__ == "__main__":
    bench.show("norm", benchmark)
