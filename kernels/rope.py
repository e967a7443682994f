"""Rotary position embedding of queries and keys in one launch, and the same with the cache's write.

    (a, b) -> (a cos - b sin, b cos + a sin)        for the channels i and i + d / 2 of a head

arXiv 2104.09864. cos and sin (T, 1, d) come in the weights' dtype, as the model families have them, with the
minus in the first half of sin. The gradient is the rotation back: sin changes its sign, and nothing but cos
and sin is kept for it.

Bytes, for T tokens and numbers of s bytes: 2 T (H + KV) d s, each query and key read once and written once,
beside d s of cos and sin for every HEADS heads of a token. In torch a rotation is three operations (product,
roll, addcmul) that move 7 T d s bytes a head, for queries and for keys. Here all is added up in float32 and
rounded once, where torch rounds twice forward and three times backward.

A step of decoding has one token a row, and its keys and values go to the cache. `rotate_into` writes them
there, at a `position` that lies on the device, in the same launch: seven operations fewer a layer.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rar_mini.kernels import bench
from rar_mini.kernels.backend import LAYER_DTYPES, WARP, jit, plain, tl, triton, use_kernel

# --- reference ----------------------------------------------------------------------------------------------


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + d / 2) of x (T, heads, d) by the angles of cos and sin (T, 1, d).

    With the minus in the first half of `sin`, three operations do all.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


# --- kernel -------------------------------------------------------------------------------------------------


@jit
def _turn(x, y, mask, c, s, half, turns: tl.constexpr):
    """The two halves of some heads: x and y point to the first."""
    a, b = tl.load(x, mask=mask), tl.load(x + half, mask=mask)
    if turns:
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        a, b = (wide_a * c - wide_b * s).to(a.dtype), (wide_b * c + wide_a * s).to(b.dtype)
    tl.store(y, a, mask=mask)
    tl.store(y + half, b, mask=mask)


@jit(do_not_specialize=["H", "KV"])
def _rotate(q, k, v, cos, sin, q_out, k_out, v_out, position, H, KV, sign, q_row, q_head, k_row, k_head,
            v_row, v_head, out_row, out_head, d: tl.constexpr, INTO: tl.constexpr, HEADS: tl.constexpr,
            HALF: tl.constexpr):  # fmt: skip
    """Some heads of one token a program: queries, then keys, and with INTO values, which do not turn."""
    t, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    last_q = tl.cdiv(H, HEADS)
    last_k = last_q + tl.cdiv(KV, HEADS)
    head = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    half: tl.constexpr = d // 2
    inside = i < half
    c = tl.load(cos + t * d + i, mask=inside).to(tl.float32)
    s = tl.load(sin + t * d + half + i, mask=inside).to(tl.float32) * sign  # the half without the minus
    to = t * out_row + i
    if INTO:
        to += tl.load(position) * d
    if block < last_q:
        head += block * HEADS
        x, y = q + t * q_row + head * q_head + i, q_out + (t * H + head) * d + i
        _turn(x, y, inside & (head < H), c, s, half, True)
    elif block < last_k:
        head += (block - last_q) * HEADS
        x, y = k + t * k_row + head * k_head + i, k_out + to + head * out_head
        _turn(x, y, inside & (head < KV), c, s, half, True)
    else:
        head += (block - last_k) * HEADS
        x, y = v + t * v_row + head * v_head + i, v_out + to + head * out_head
        _turn(x, y, inside & (head < KV), c, s, half, False)


# --- launcher -----------------------------------------------------------------------------------------------

HEADS, THREADS = 8, 64
"""Heads of a token that a program turns: at d = 128, 8 pairs a thread, whose halves are accesses of 16 bytes
in bfloat16. Few threads and few heads, so that a step of decoding has programs enough."""


def _launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """q (T, H, d) and k (T, KV, d), turned, or turned back."""
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    _run((q, k, k), cos, sin, (q_out, k_out, k_out), cos, sign)
    return q_out, k_out


def _run(
    qkv: tuple[Tensor, ...], cos: Tensor, sin: Tensor, out: tuple[Tensor, ...], position: Tensor, sign: float
) -> None:
    """`out` are (T, H, d) and (T, KV, d) twice, or for keys and values (T, KV, capacity, d)."""
    (T, H, d), KV, into = qkv[0].shape, qkv[1].shape[1], out[1].ndim == 4
    qkv = [x if x.stride(-1) == 1 else x.contiguous() for x in qkv]
    assert all(x.is_contiguous() for x in (cos, sin, *out)) and cos.shape == sin.shape == (T, 1, d)
    strides = [stride for x in (*qkv, out[1]) for stride in x.stride()[:2]]
    blocks = triton.cdiv(H, HEADS) + (2 if into else 1) * triton.cdiv(KV, HEADS)
    tile = (d, into, HEADS, triton.next_power_of_2(d // 2))
    _rotate[(T, blocks)](
        *qkv, cos, sin, *out, position, H, KV, sign, *strides, *tile,
        num_warps=max(1, THREADS // WARP), enable_fp_fusion=True,
    )  # fmt: skip


def moved(kernel: str, given: dict[str, Any]) -> int | None:
    """Bytes that a launch reads and writes: of the caches one position, as large as k and v."""
    if not given["INTO"]:  # no cache: other names stand for these
        return sum(given[x].nbytes for x in ("q", "k", "cos", "sin", "q_out", "k_out"))
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    return sum(tensors[name[0] if name in ("k_out", "v_out") else name].nbytes for name in tensors)


# --- autograd and public ------------------------------------------------------------------------------------


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _launch(q, k, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        return *_launch(dq, dk, *ctx.saved_tensors, -1.0), None, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn q (T, H, d) and k (T, KV, d) by the angles of cos and sin (T, 1, d), differentiably in q and k."""
    if use_kernel(q) and q.dtype in LAYER_DTYPES:
        return _Rotate.apply(q, k, cos, sin)
    return reference(q, cos, sin), reference(k, cos, sin)


def rotate_into(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, position: Tensor
) -> Tensor:
    """Turn q (R, H, d), and put k, turned, and v (R, KV, d) at `position` (1,) into keys and values
    (R KV, capacity, d). Returns q, turned. Not differentiable."""
    if use_kernel(q) and q.dtype in LAYER_DTYPES:
        caches = (x.unflatten(0, k.shape[:2]) for x in (keys, values))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _run((q, k, v), cos, sin, (out, *caches), position, 1.0)
        return out
    q, k = rotate(q, k, cos, sin)
    for cache, new in ((keys, k), (values, v)):
        cache.index_copy_(1, position, new.reshape(len(cache), 1, -1))
    return q


# --- benchmark ----------------------------------------------------------------------------------------------


def benchmark(on: str) -> Iterator[bench.Row]:
    """The heads of Qwen2.5-7B: tokens of a batch, both ways, and a step of 96 rows with its cache."""
    copying, dtype = bench.copying(on), torch.bfloat16 if on == "cuda" else torch.float32
    H, KV, d = 28, 4, 128
    for T, decoding in ((8192 if on == "cuda" else 512, False), (96, True)):
        q, k, v = (torch.randn(T, heads, d, device=on, dtype=dtype) for heads in (H, KV, KV))
        angles = torch.rand(T, 1, d // 2, device=on)
        cos, sin = (torch.cat(x, -1).to(dtype) for x in ([angles.cos()] * 2, [-angles.sin(), angles.sin()]))
        caches = [torch.zeros(T * KV, 64, d, device=on, dtype=dtype) for _ in range(2)]
        into = (*caches, torch.zeros(1, dtype=torch.long, device=on))
        leaves = [x.requires_grad_(not decoding) for x in (q, k)]

        def both(leaves: list[Tensor] = leaves, cos: Tensor = cos, sin: Tensor = sin) -> None:
            torch.autograd.grad(rotate(*leaves, cos, sin), leaves, leaves)

        run = partial(rotate_into, q, k, v, cos, sin, *into) if decoding else both
        moved = (2 if decoding else 4) * (q.nbytes + k.nbytes) + (2 * v.nbytes if decoding else 0)
        case = f"{T} tokens, {H} + {KV} heads of {d}" + (", kept" if decoding else ", both ways")
        yield bench.row(case, "rope", run, on, moved, copying)
        yield bench.row(case, "torch", plain()(run), on, moved, copying)


if __name__ == "__main__":
    bench.show("rope", benchmark)
