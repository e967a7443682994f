"""SwiGLU's product, silu(gate) * up, and the way back, in one pass each (arXiv 2002.05202).

    y = s(gate) up                 s(a) = a / (1 + e^-a)            each of N rows of F numbers
    dgate = dy up s'(gate)         s'(a) = sigma(a) (1 + a (1 - sigma(a))),  sigma(a) = 1 / (1 + e^-a)
    dup   = dy s(gate)

Bytes a number, in bfloat16, and launches:

    forward      6 in 1      read gate and up, write y; plain torch 10 in 2
    backward    12 in 1      read dy, gate and up, write dgate, dup and y; plain torch 18 in 3
    kept         4           gate and up; plain torch 8: silu(gate) and y, too

Only the product behind it reads y. So `swiglu_linear` is both: it keeps no y for the gradient of that
product's weight, but writes y again on the way back, 2 bytes of the 12. In a layer of Qwen2.5-7B y takes
38 KB a token.

Forward, rounding is plain torch's: silu(gate) to the inputs' dtype before it meets `up`. Backward, what torch
rounds in between stays in float32.
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

# --- reference ----------------------------------------------------------------------------------------------


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


# --- kernels ------------------------------------------------------------------------------------------------


@jit
def _rounded_silu(a):
    """silu, rounded as torch rounds it, in float32."""
    a32 = a.to(tl.float32)
    return (a32 / (1.0 + tl.exp(-a32))).to(a.dtype).to(tl.float32)


@jit
def _product(gate, up, y, mask):
    a, b = tl.load(gate, mask=mask), tl.load(up, mask=mask)
    tl.store(y, (_rounded_silu(a) * b.to(tl.float32)).to(a.dtype), mask=mask)


@jit(do_not_specialize=["n"])
def _swiglu_forward(gate, up, y, n: tl.int64, BLOCK: tl.constexpr):
    """One tile a program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:  # no mask, so that every access is 16 bytes wide whatever n is
        _product(gate + i, up + i, y + i, None)
    else:
        _product(gate + i, up + i, y + i, i < n)


@jit
def _slopes(dy, gate, up, dgate, dup, y, mask, AGAIN: tl.constexpr):
    a, b, d = tl.load(gate, mask=mask), tl.load(up, mask=mask), tl.load(dy, mask=mask).to(tl.float32)
    a32, b32 = a.to(tl.float32), b.to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-a32))
    tl.store(dgate, (d * b32 * share * (1.0 + a32 * (1.0 - share))).to(a.dtype), mask=mask)
    tl.store(dup, (d * a32 * share).to(a.dtype), mask=mask)
    if AGAIN:
        tl.store(y, (_rounded_silu(a) * b32).to(a.dtype), mask=mask)


@jit(do_not_specialize=["n"])
def _swiglu_backward(dy, gate, up, dgate, dup, y, n: tl.int64, AGAIN: tl.constexpr, BLOCK: tl.constexpr):
    """One tile a program; y is written again if AGAIN."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _slopes(dy + i, gate + i, up + i, dgate + i, dup + i, y + i, None, AGAIN)
    else:
        _slopes(dy + i, gate + i, up + i, dgate + i, dup + i, y + i, i < n, AGAIN)


# --- launcher -----------------------------------------------------------------------------------------------

BLOCK, THREADS = 1024, 128
"""Each thread has 8 numbers of a tile: in bfloat16, one access of 16 bytes a stream. At up to 80 registers,
six programs or more fit on an SM."""


def product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of contiguous tensors of one shape."""
    assert all(x.is_contiguous() and x.shape == gate.shape and x.dtype == gate.dtype for x in (gate, up))
    y, n = torch.empty_like(gate), gate.numel()
    _swiglu_forward[(triton.cdiv(n, BLOCK),)](
        gate, up, y, n, BLOCK, num_warps=THREADS // WARP, enable_fp_fusion=True
    )  # fmt: skip
    return y


def gradients(dy: Tensor, gate: Tensor, up: Tensor, *, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """dgate, dup, and y `again` if asked."""
    dy, n = dy.contiguous(), gate.numel()
    dgate, dup = torch.empty_like(gate), torch.empty_like(gate)
    y = torch.empty_like(gate) if again else None
    streams = (dy, gate, up, dgate, dup, y if again else dup)
    options = {"num_warps": THREADS // WARP, "enable_fp_fusion": True}
    _swiglu_backward[(triton.cdiv(n, BLOCK),)](*streams, n, again, BLOCK, **options)
    return dgate, dup, y


# --- autograd -----------------------------------------------------------------------------------------------


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return gradients(dy, *ctx.saved_tensors, again=False)[:2]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return product(gate, up) @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        learns = ctx.needs_input_grad[2]
        dgate, dup, y = gradients(dout @ weight, gate, up, again=learns)
        return dgate, dup, dout.T @ y if learns else None


# --- public -------------------------------------------------------------------------------------------------


def _fused(gate: Tensor) -> bool:
    return use_kernel(gate) and gate.dtype in LAYER_DTYPES and gate.numel() > 0


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape and dtype; differentiable once in both."""
    if not _fused(gate):
        return reference(gate, up)
    return _SwiGLU.apply(gate.contiguous(), up.contiguous())


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """(silu(gate) * up) weight^T, of gate and up (N, F) and weight (O, F); differentiable once in all."""
    if not _fused(gate):
        return F.linear(reference(gate, up), weight)
    return _Linear.apply(gate.contiguous(), up.contiguous(), weight)


# --- benchmark ----------------------------------------------------------------------------------------------


def benchmark(on: str) -> Iterator[bench.Row]:
    """The rows of a decoding step, forward; and those of a training pass, both ways."""
    copying, dtype = bench.copying(on), torch.bfloat16 if on == "cuda" else torch.float32
    for N, width in [(96, 18_944), (8192, 18_944)] if on == "cuda" else [(96, 1536), (2048, 1536)]:
        leaves = [torch.randn(N, width, device=on, dtype=dtype, requires_grad=True) for _ in range(2)]
        dy = torch.randn_like(leaves[0])

        def both(fn: Callable, leaves: list[Tensor] = leaves, dy: Tensor = dy) -> None:
            torch.autograd.grad(fn(*leaves), leaves, dy)

        def once(fn: Callable, leaves: list[Tensor] = leaves) -> None:
            with torch.no_grad():
                fn(*leaves)

        for path, fn in (
            ("swiglu", swiglu),
            ("torch", reference),
            ("torch.compile", torch.compile(reference)),
        ):
            run, how, times = (once, "forward", 3) if N == 96 else (both, "both ways", 8)
            case = f"N {N}, F {width}, {str(dtype)[6:]}, {how}"
            yield bench.row(case, path, partial(run, fn), on, times * dy.nbytes, copying)


if __name__ == "__main__":
    bench.show("swiglu", benchmark)
