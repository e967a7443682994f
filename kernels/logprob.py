"""The log-probability and the entropy of each token, from hidden states, without ever holding (N, V) logits.

    x = hidden W^T / temperature      (V,) a row
    lse = log sum exp x          logp = x[target] - lse          entropy = lse - sum softmax(x) x

With N = 4,096 tokens and V = 151,936 the logits take 2.5 GB in float32, their log-softmax as much again, and
a policy loss keeps that for the backward pass. Here rows go in chunks of a byte budget, through one buffer.
Forward, a chunk's logits come from one matrix product, and a kernel reads each of them once: the maximum, the
sum below it and the entropy's sum are carried together. Backward, the logits are computed again, and the
kernel overwrites them with the gradient of the loss,

    dx_i = dlogp ([i = target] - p_i) - dentropy p_i (log p_i + entropy),

which two more products turn into the gradients of hidden and W. That is 8 N V D operations where the plain
path has 6, a third more at worst. Where one chunk holds all rows, its logits are kept and nothing is done
twice.

Memory beyond inputs and gradients, for chunks of n rows and numbers of s bytes (V_16 is V rounded up to 16):

    n V_16 s        one chunk: at most CHUNK_BYTES, and at least one row
    V D (4 + s)     only where there is more than one chunk of bfloat16: the weight's gradient adds
                    up in float32, and each chunk's product stands beside it for a moment. At V = 152,064 and
                    D = 3,584 that is 2.2 + 1.1 GB. With a chunk of 1 GB it is worth it from N = 4,800 on,
                    where it is less than the 3 N V s that the plain path holds: log-softmax, its gradient and
                    that of the logits. Below, let chunk_bytes hold all rows, and there is no such sum. (In
                    float32 there is none either: the sum is the gradient itself.)

Bytes moved over the logits, after the products: n V s forward, 2 n V s backward. Plain torch moves about 3
and 5 n V s without the entropy, and 3 more with it. Bytes are what it takes: the loop over a row issues 11
instructions a logit (sm_90, bfloat16), and an H100 issues 17 while 2 bytes arrive.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rar_mini.kernels import bench
from rar_mini.kernels.backend import WARP, jit, tl, triton, use_kernel

CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
"""The budget of one chunk of logits: 1,365 rows of 49,152 in float32, 3,533 rows of 151,936 in bfloat16. On a
GPU each further chunk reads and writes the weight's gradient once more, so chunks are larger there."""

DTYPES = (torch.bfloat16, torch.float32, torch.float64)

SLICE = 2**19  # numbers a temporary of the reference holds: 2 MB, so that it stays in a core's cache


# --- reference ----------------------------------------------------------------------------------------------


def reference(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse), each (N,), of logits (N, V) times `scale`; in float32, or float64 for float64."""
    x = _widen(logits) * scale
    top = x.amax(-1)
    x.sub_(top[:, None])
    chosen = x.gather(-1, target[:, None])[:, 0]
    e = x.exp()
    log_total = e.sum(-1).log()
    moment = e.mul_(x.clamp_min_(-1e4)).sum(-1)  # of a logit of -inf, 0 * -inf would be NaN
    return chosen - log_total, log_total - moment / log_total.exp(), top + log_total


def reference_gradient(logits: Tensor, target: Tensor, *columns: Tensor, scale: float) -> None:
    """Overwrite logits (N, V) with the gradient of the loss; columns: lse, entropy, dlogp, dentropy (N,)."""
    lse, entropy, dlogp, dentropy = columns
    log_p = (_widen(logits) * scale).sub_(lse[:, None])
    p = log_p.exp()
    if dentropy.any():
        slope = log_p.clamp_min_(-1e4).add_(entropy[:, None]).mul_(dentropy[:, None])
        p.mul_(slope.add_(dlogp[:, None]))
    else:  # the usual case, where entropy is only looked at: two passes less
        p.mul_(dlogp[:, None])
    p.scatter_add_(-1, target[:, None], -dlogp[:, None])
    logits.copy_(p.mul_(-scale))


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# --- kernels ------------------------------------------------------------------------------------------------


@jit
def _exp(x):
    """e^x by a GPU's instruction for 2^x; tl.exp spends three more on results below 1e-38, here 0."""
    return tl.exp2(x * 1.4426950408889634)


@jit
def _absorb(x, scale, top, total, moment):
    """Take a tile (lanes, LANE) into what each lane knows: its maximum, sum of e^gap, sum of gap e^gap."""
    higher = tl.maximum(top, tl.max(x, 1) * scale)
    # e^-200 is 0. The bound keeps a logit of -inf from giving 0 * -inf = NaN; one that is NaN has to stay so.
    gap = tl.maximum(x * scale - higher[:, None], -200.0, propagate_nan=tl.PropagateNan.ALL)
    e = _exp(gap)
    fall = top - higher
    shrink = _exp(fall)
    moment = shrink * (moment + total * fall) + tl.sum(e * gap, 1)
    return higher, shrink * total + tl.sum(e, 1), moment


COLUMNS = ["target", "logp", "entropy", "lse", "dlogp", "dentropy"]


# N stands in the grid only, V is not specialised on, and a chunk's columns begin anywhere: those that happen
# to begin at a multiple of 16 bytes would be binaries of their own. So any length and vocabulary run the same
# two, one for rows that lie a multiple of 16 apart, as they do here, and one for logits that lie otherwise.
@jit(do_not_specialize=["V"], do_not_specialize_on_alignment=COLUMNS)
def _statistics(logits, target, logp, entropy, lse, stride, V, scale,
                BLOCK: tl.constexpr, LANE: tl.constexpr):  # fmt: skip
    """One row a program. A tile lies so that each thread has LANE neighbours, one load of 16 bytes: nothing
    crosses threads before the row ends, and the loop has no barrier."""
    row = tl.program_id(0).to(tl.int64)  # N V passes 2^31 after 14,134 rows of 151,936
    x_row = logits + row * stride
    lanes: tl.constexpr = BLOCK // LANE
    i = tl.arange(0, lanes)[:, None] * LANE + tl.arange(0, LANE)[None, :]
    wide = lse.dtype.element_ty
    top = tl.full([lanes], -1.0e38, wide)  # finite: -inf - -inf would be NaN
    total = tl.zeros([lanes], wide)
    moment = tl.zeros([lanes], wide)
    whole = V // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        top, total, moment = _absorb(tl.load(x_row + start + i).to(wide), scale, top, total, moment)
    # The tail is peeled off: a mask of an odd V inside the loop would cut every load into single numbers.
    x = tl.load(x_row + whole + i, mask=whole + i < V, other=float("-inf")).to(wide)
    top, total, moment = _absorb(x, scale, top, total, moment)
    highest = tl.max(top, 0)
    fall = top - highest
    moment = tl.sum(_exp(fall) * (moment + total * fall), 0)
    total = tl.sum(_exp(fall) * total, 0)
    chosen = tl.load(x_row + tl.load(target + row)).to(wide) * scale
    tl.store(lse + row, highest + tl.log(total))
    tl.store(logp + row, chosen - highest - tl.log(total))
    tl.store(entropy + row, tl.log(total) - moment / total)


@jit
def _slope(x, hit, lse, entropy, dlogp, dentropy, scale):
    log_p = tl.maximum(x.to(lse.dtype) * scale - lse, -200.0)  # a NaN may be lost here: entropy is one, too
    p = _exp(log_p)
    return (tl.where(hit, dlogp, 0.0) - p * (dlogp + dentropy * (log_p + entropy))) * scale


@jit(do_not_specialize=["V"], do_not_specialize_on_alignment=COLUMNS)
def _gradient(logits, target, lse, entropy, dlogp, dentropy, stride, V, scale, BLOCK: tl.constexpr):
    """One tile of one row a program; the gradient takes the logits' place."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = logits + row * stride + i
    hit = i == tl.load(target + row)
    lse, entropy = tl.load(lse + row), tl.load(entropy + row)
    dlogp, dentropy = tl.load(dlogp + row), tl.load(dentropy + row)
    if (tl.program_id(1) + 1) * BLOCK <= V:
        tl.store(x, _slope(tl.load(x), hit, lse, entropy, dlogp, dentropy, scale).to(x.dtype.element_ty))
    else:
        inside = i < V
        tail = tl.load(x, mask=inside, other=float("-inf"))
        tail = _slope(tail, hit, lse, entropy, dlogp, dentropy, scale)
        tl.store(x, tail.to(x.dtype.element_ty), mask=inside)


# --- launcher -----------------------------------------------------------------------------------------------

BLOCK, THREADS = 2048, 256
"""Each thread has 8 logits of a tile. Smaller vocabularies leave lanes idle; no other tile is ever compiled.
At up to 40 registers a thread, six programs or more fit on an SM and keep 24 KB in flight in bfloat16."""


def statistics(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, ...]:
    """(logp, entropy, lse), each (N,), by the path that the tensor takes."""
    N, V = logits.shape
    if not use_kernel(logits):
        pieces = zip(*(x.split(max(1, SLICE // V)) for x in (logits, target)), strict=True)
        return tuple(torch.cat(x) for x in zip(*(reference(*p, scale) for p in pieces), strict=True))
    assert logits.stride(1) == 1 and target.is_contiguous() and target.dtype == torch.int64
    wide = _widen(logits[:0]).dtype
    logp, entropy, lse = (torch.empty(N, dtype=wide, device=logits.device) for _ in range(3))
    sizes = (logits.stride(0), V, scale, BLOCK, 16 // logits.element_size())
    options = {"num_warps": THREADS // WARP, "enable_fp_fusion": True}
    _statistics[(N,)](logits, target, logp, entropy, lse, *sizes, **options)
    return logp, entropy, lse


def gradient_(logits: Tensor, *columns: Tensor, scale: float) -> None:
    """Overwrite logits (N, V) with the gradient; columns: target, lse, entropy, dlogp, dentropy (N,)."""
    N, V = logits.shape
    if not use_kernel(logits):
        for piece in zip(*(x.split(max(1, SLICE // V)) for x in (logits, *columns)), strict=True):
            reference_gradient(*piece, scale=scale)
        return
    assert logits.stride(1) == 1 and all(x.is_contiguous() for x in columns)
    grid = (N, triton.cdiv(V, BLOCK))
    sizes = (logits.stride(0), V, scale, BLOCK)
    _gradient[grid](logits, *columns, *sizes, num_warps=THREADS // WARP, enable_fp_fusion=True)


# --- autograd -----------------------------------------------------------------------------------------------


def _chunks(N: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, N)) for start in range(0, N, rows))


def _padded(V: int) -> int:
    """The stride of a row of logits: a multiple of 16, so that any V can be read 16 bytes at a time."""
    return -(-V // 16) * 16


def _buffer(rows: int, weight: Tensor) -> Tensor:
    return weight.new_empty(rows, _padded(len(weight)))[:, : len(weight)]  # (rows, V)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        buffer, parts = _buffer(rows, weight), []
        for part in _chunks(len(hidden), rows):
            logits = torch.mm(hidden[part], weight.T, out=buffer[: part.stop - part.start])  # (n, V)
            parts.append(statistics(logits, target[part], scale))
        logp, entropy, lse = (torch.cat(column) for column in zip(*parts, strict=True))
        # Not among the saved tensors, because the backward pass writes into it.
        ctx.logits = buffer if len(parts) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, weight, target, lse, entropy)
        ctx.scale, ctx.rows = scale, rows
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogp: Tensor, dentropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, lse, entropy = ctx.saved_tensors
        # Kept logits serve once; a second backward pass (retain_graph) computes them again like chunks do.
        kept, ctx.logits = ctx.logits, None
        buffer = kept if kept is not None else _buffer(ctx.rows, weight)
        columns = [x.contiguous() for x in (target, lse, entropy, dlogp, dentropy)]
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dweight = None
        for part in _chunks(len(hidden), ctx.rows):
            logits = buffer[: part.stop - part.start]
            if kept is None:
                torch.mm(hidden[part], weight.T, out=logits)
            gradient_(logits, *(x[part] for x in columns), scale=ctx.scale)
            if dhidden is not None:
                torch.mm(logits, weight, out=dhidden[part])
            if ctx.needs_input_grad[1]:
                dweight = _add_product(dweight, logits.T, hidden[part], last=part.stop == len(hidden))
        return dhidden, dweight, None, None, None


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, *, last: bool) -> Tensor:
    """total + a @ b: in float32 while there are chunks to come, in the inputs' dtype after the last."""
    if total is None:
        return a @ b if last else _widen(a @ b)
    # A product of bfloat16 is summed in float32 by the hardware and rounded once; what must not be rounded
    # at every chunk is the total.
    total = total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)
    return total.to(a.dtype) if last else total


# --- public -------------------------------------------------------------------------------------------------


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row of softmax(hidden W^T / temperature).

    hidden (N, D), weight (V, D), target (N,) int64 -> logp (N,), entropy (N,) in nats, float32 (float64 for
    float64 inputs). Differentiable once in hidden and weight, through both outputs; inputs are only read.
    Peak memory beyond inputs and gradients is one chunk, see above. Raises ValueError for shapes or dtypes
    that do not fit (float16 among them, in which a logit's gradient below 6e-8 is 0), a temperature that is
    not positive, or a target outside [0, V).
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(hidden):
        shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"expected hidden (N, D) with N >= 1 and weight (V, D), got {shapes}")
    if hidden.dtype != weight.dtype or hidden.dtype not in DTYPES:
        expected = "bfloat16, float32 or float64 for both"
        raise ValueError(f"expected {expected}, got {hidden.dtype} for hidden and {weight.dtype} for weight")
    target = _checked(target, len(hidden), len(weight), temperature)
    budget = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"])
    fit = max(1, budget // (_padded(len(weight)) * weight.element_size()))
    rows = -(-len(hidden) // -(-len(hidden) // fit))  # chunks of equal size: no short last one
    return _LinearLogprob.apply(hidden, weight, target, 1 / temperature, rows)


def logprob(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse), each (N,), of logits (N, V) that exist already: read once, not differentiable.

    Raises ValueError for shapes, targets or a temperature that do not fit.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"expected logits (N, V) with N >= 1, got {tuple(logits.shape)}")
    target = _checked(target, *logits.shape, temperature)
    with torch.no_grad():
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        logp, entropy, lse = statistics(rows, target, 1 / temperature)
    return logp, entropy, lse


def _checked(target: Tensor, N: int, V: int, temperature: float) -> Tensor:
    if target.shape != (N,) or target.dtype != torch.int64:
        raise ValueError(f"expected target ({N},) of int64, got {tuple(target.shape)} of {target.dtype}")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    # On a GPU this waits for it once: the price of an error where it happens.
    low, high = (int(x) for x in torch.aminmax(target))
    if low < 0 or high >= V:
        raise ValueError(f"expected targets in [0, {V}), got {low} to {high}")
    return target.contiguous()


# --- benchmark ----------------------------------------------------------------------------------------------


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What one would write, with the entropy as a metric only."""
    log_p = (hidden @ weight.T).log_softmax(-1)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, target[:, None])[:, 0], entropy


def _rivals() -> Iterator[tuple[str, Any]]:
    yield "linear_logprob", linear_logprob
    yield "torch", plain
    yield "torch.compile", torch.compile(plain)
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        yield "Liger, no entropy", lambda h, w, t: (-liger(h, w, t, reduction="none"), None)


def benchmark(on: str) -> Iterator[bench.Row]:
    """Forward and backward of a policy loss; then the reading of logits that exist."""
    dtype = torch.bfloat16 if on == "cuda" else torch.float32
    sizes = [(4096, 3584, 151_936), (4096, 576, 49_152)] if on == "cuda" else [(512, 576, 49_152)]
    multiplying, copying = bench.multiplying(on, dtype), bench.copying(on)
    for N, D, V in sizes:
        leaves = [(torch.randn(n, D, device=on, dtype=dtype) / D**0.5).requires_grad_() for n in (N, V)]
        target, adv = torch.randint(V, (N,), device=on), torch.randn(N, device=on) / N
        case = f"N {N}, D {D}, V {V}, {str(dtype)[6:]}"

        def run(fn: Any, leaves: Any = leaves, target: Tensor = target, adv: Tensor = adv) -> None:
            torch.autograd.grad((adv * fn(*leaves, target)[0]).sum(), leaves)

        for path, fn in _rivals():
            yield bench.row(case, path, partial(run, fn), on, 6 * N * D * V, multiplying)
        with torch.no_grad():
            logits = leaves[0] @ leaves[1].T
        yield bench.row(case, "logprob", partial(logprob, logits, target), on, logits.nbytes, copying)
        alone = partial(logits.log_softmax, -1)
        yield bench.row(case, "log_softmax alone", alone, on, logits.nbytes, copying)


if __name__ == "__main__":
    bench.show("logprob", benchmark)
