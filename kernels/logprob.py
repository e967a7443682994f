"""The log-probability and the entropy of each token, from hidden states, without ever holding (N, V) logits.

    x = hidden W^T / temperature      (V,) a row
    lse = log sum exp x               logp = x[target] - lse              entropy = lse - sum softmax(x) x

With N = 4,096 tokens and V = 151,936 the logits take 2.5 GB in float32, their softmax as much again, and a
policy loss keeps both for the backward pass. Here rows go in chunks of a byte budget. Forward, a chunk's
logits come from one matrix product and a kernel reads each of them once: a running maximum, the sum below it,
and the entropy's sum are carried together. Backward, the logits are computed again and the kernel overwrites
them with their own gradient,

    d x_i = d logp ([i = target] - p_i) - d entropy p_i (log p_i + entropy),

which two more products turn into the gradients of hidden and W. So the work is 8 N V D instead of 6 N V D and
the memory one chunk instead of several N V. Where a single chunk holds all rows, its logits are kept and
nothing is done twice.

Bytes a chunk of n rows in s-byte numbers: the kernel reads n V s forward, reads and writes 2 n V s backward;
plain torch moves about 5 n V s and 6 n V s (a float32 copy, log_softmax, its exponential, their product, the
gradient). Weight gradients add up in float32 across chunks: V D 4 bytes, 2.2 GB at V = 152,064 and D = 3,584,
which is less than the logits it saves from N = 3,600 on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rar_mini.kernels.backend import jit, tl, triton, use_kernel

CHUNK_BYTES = 256 * 2**20
"""How much one chunk of logits may take, in float32: 1,365 rows at V = 49,152."""


# --- reference ----------------------------------------------------------------------------------------------


def reference(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse), each (N,), of logits (N, V) times `scale`, in float32 or the dtype of float64
    logits."""
    x = _widen(logits) * scale
    lse = x.logsumexp(-1)
    log_p = x.sub_(lse[:, None])
    logp = log_p.gather(-1, target[:, None])[:, 0]
    log_p.clamp_min_(
        torch.finfo(x.dtype).min
    )  # a logit of -inf has no probability: 0 * -inf must not become NaN
    return logp, -torch.linalg.vecdot(log_p.exp(), log_p), lse


def reference_gradient(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    dlogp: Tensor,
    dentropy: Tensor,
    scale: float,
) -> None:
    """Overwrite logits (N, V) with the gradient of the loss with respect to them."""
    log_p = (_widen(logits) * scale).sub_(lse[:, None])
    p = log_p.exp()
    if dentropy.any():
        log_p.clamp_min_(torch.finfo(log_p.dtype).min)
        slope = log_p.add_(entropy[:, None]).mul_(-dentropy[:, None]).sub_(dlogp[:, None])
        p.mul_(slope)
    else:
        p.mul_(-dlogp[:, None])
    p.scatter_add_(-1, target[:, None], dlogp[:, None].to(p.dtype))
    logits.copy_(p.mul_(scale))


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# --- kernels ------------------------------------------------------------------------------------------------


@jit(do_not_specialize=["V"])
def _statistics(logits, target, logp, entropy, lse, stride, V, scale, BLOCK: tl.constexpr):
    """One row a program; each logit is read once."""
    row = tl.program_id(0).to(tl.int64)  # N * V passes 2^31 at 14,134 rows of 151,936
    x_row = logits + row * stride
    top = -3.0e38  # finite: a first tile of nothing but -inf must not give -inf - -inf
    total = 0.0  # sum of exp(x - top)
    moment = 0.0  # sum of exp(x - top) * (x - top): relative to the maximum, so that nothing large cancels
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + i, mask=i < V, other=float("-inf")).to(tl.float32) * scale
        higher = tl.maximum(top, tl.max(x, 0))
        shrink = tl.exp(top - higher)
        e = tl.exp(x - higher)
        moment = shrink * (moment + total * (top - higher)) + tl.sum(
            tl.where(e > 0.0, e * (x - higher), 0.0), 0
        )
        total = shrink * total + tl.sum(e, 0)
        top = higher
    log_total = top + tl.log(total)
    chosen = tl.load(x_row + tl.load(target + row)).to(tl.float32) * scale
    tl.store(lse + row, log_total)
    tl.store(logp + row, chosen - log_total)
    tl.store(entropy + row, tl.log(total) - moment / total)


@jit(do_not_specialize=["V"])
def _gradient(logits, target, lse, entropy, dlogp, dentropy, stride, V, scale, BLOCK: tl.constexpr):
    """One tile of one row a program; the gradient takes the logits' place."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + i
    log_p = tl.load(place, mask=i < V, other=float("-inf")).to(tl.float32) * scale - tl.load(lse + row)
    p = tl.exp(log_p)
    d_logp = tl.load(dlogp + row)
    hit = tl.where(i == tl.load(target + row), d_logp, 0.0)
    spread = tl.where(p > 0.0, p * (log_p + tl.load(entropy + row)), 0.0)
    grad = (hit - d_logp * p - tl.load(dentropy + row) * spread) * scale
    tl.store(place, grad.to(logits.dtype.element_ty), mask=i < V)


def tile(V: int) -> tuple[int, int]:
    """(BLOCK, warps): wide tiles keep many loads in flight, and a row of 4,096 or less is one tile."""
    block = min(4096, triton.next_power_of_2(V))
    return block, 8 if block >= 2048 else 4


def _launch_statistics(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    N, V = logits.shape
    assert logits.stride(1) == 1, "rows of logits lie together"
    logp, entropy, lse = (torch.empty(N, dtype=torch.float32, device=logits.device) for _ in range(3))
    block, warps = tile(V)
    _statistics[(N,)](logits, target, logp, entropy, lse, logits.stride(0), V, scale, block, num_warps=warps)
    return logp, entropy, lse


def _launch_gradient(
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    dlogp: Tensor,
    dentropy: Tensor,
    scale: float,
) -> None:
    N, V = logits.shape
    block, warps = tile(V)
    rows = (target, lse, entropy, dlogp.float().contiguous(), dentropy.float().contiguous())
    grid = (N, triton.cdiv(V, block))
    _gradient[grid](logits, *rows, logits.stride(0), V, scale, block, num_warps=warps)


def _statistics_of(logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return (_launch_statistics if use_kernel(logits) else reference)(logits, target, scale)


def _gradient_into(logits: Tensor, *rest: Tensor, scale: float) -> None:
    (_launch_gradient if use_kernel(logits) else reference_gradient)(logits, *rest, scale)


# --- autograd -----------------------------------------------------------------------------------------------


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, scale, rows):  # noqa: ANN001
        parts = []
        for chunk, aim in zip(hidden.split(rows), target.split(rows), strict=True):
            logits = F.linear(chunk, weight, bias)  # (rows, V)
            parts.append(_statistics_of(logits, aim, scale))
        logp, entropy, lse = (torch.cat(column) for column in zip(*parts, strict=True))
        # One chunk that holds all rows is worth keeping. It is not among the saved tensors because the
        # backward pass writes into it.
        ctx.logits = logits if len(parts) == 1 and any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(hidden, weight, bias, target, lse, entropy)
        ctx.scale, ctx.rows, ctx.spent = scale, rows, False
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, dlogp, dentropy):  # noqa: ANN001
        if ctx.spent:
            raise RuntimeError(
                "linear_logprob was already differentiated; call it again instead of retain_graph"
            )
        hidden, weight, bias, target, lse, entropy = ctx.saved_tensors
        kept, ctx.logits = ctx.logits, None
        ctx.spent = kept is not None
        columns = (x.split(ctx.rows) for x in (hidden, target, lse, entropy, dlogp, dentropy))
        dhidden, dweight, dbias = [], None, None
        for chunk, *column in zip(*columns, strict=True):
            logits = kept if kept is not None else F.linear(chunk, weight, bias)
            _gradient_into(logits, *column, scale=ctx.scale)  # logits is its own gradient from here on
            if ctx.needs_input_grad[0]:
                dhidden.append(logits @ weight)
            if ctx.needs_input_grad[1]:
                dweight = _add(dweight, logits.T, chunk)
            if bias is not None and ctx.needs_input_grad[2]:
                part = _widen(logits).sum(0)
                dbias = part if dbias is None else dbias + part
        dhidden = torch.cat(dhidden) if dhidden else None
        dweight = None if dweight is None else dweight.to(weight.dtype)
        dbias = None if dbias is None else dbias.to(bias.dtype)
        return dhidden, dweight, dbias, None, None, None


def _add(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, in float32 (or float64) and in place once there is a total."""
    if total is None:
        return _widen(a @ b)
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


# --- public -------------------------------------------------------------------------------------------------


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row under softmax((hidden weight^T + bias) /
    temperature).

    hidden (N, D), weight (V, D), target (N,) int64, bias (V,) -> logp (N,), entropy (N,) in nats, float32
    (float64 for float64 inputs). Differentiable once in hidden, weight and bias, through both outputs. Peak
    memory beyond inputs and gradients is one chunk: at most `chunk_bytes` of logits counted as float32, at
    least one row. Raises ValueError for shapes that do not fit, a temperature that is not positive, or a
    target outside [0, V).
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(hidden):
        raise ValueError(
            f"expected hidden (N, D) with N >= 1 and weight (V, D), got {hidden.shape} and {weight.shape}"
        )
    _check(target, len(hidden), len(weight), temperature)
    rows = max(1, chunk_bytes // (4 * len(weight)))
    rows = -(-len(hidden) // -(-len(hidden) // rows))  # chunks of equal size: no short last one
    return _LinearLogprob.apply(hidden, weight, bias, target, 1 / temperature, rows)


def logprob(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, lse), each (N,), of logits (N, V) that already exist. Not differentiable; logits are
    only read.

    Raises ValueError as `linear_logprob` does.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"expected logits (N, V) with N >= 1, got {logits.shape}")
    _check(target, *logits.shape, temperature)
    with torch.no_grad():
        return _statistics_of(
            logits if logits.stride(1) == 1 else logits.contiguous(), target, 1 / temperature
        )


def _check(target: Tensor, N: int, V: int, temperature: float) -> None:
    if target.shape != (N,) or target.dtype != torch.int64:
        raise ValueError(f"expected target ({N},) of int64, got {tuple(target.shape)} of {target.dtype}")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    low, high = torch.aminmax(
        target
    )  # on a GPU this waits for it once: the price of an error where it happens
    if low < 0 or high >= V:
        raise ValueError(f"expected targets in [0, {V}), got {int(low)} to {int(high)}")
