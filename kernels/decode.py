"""Attention of a decoding step: one new token a row, over the prompt that its group shares and its own past.

    out = softmax(q [K_prompt, K_own]^T / sqrt(d)) [V_prompt, V_own]        one softmax over both parts

A wave of R rows of P prompts keeps each prompt's keys and values once, (P, KV, n, d), and each row's own,
(R KV, capacity, d). H = KV j query heads share KV key heads. `position` is the place of the newest token in
the rows' own part. It lies on the device, because a CUDA graph repeats a launch with the arguments of its
capture: grids and shapes depend on `span`, a bound of position + 1, and keys behind `position` are not read.

A prompt's keys are read once for all of its rows: one tile holds the g j queries that its g rows have for a
key head, 112 for 16 rows of Qwen2.5-7B (up to ROWS; a larger group reads them again for every ROWS queries).
A row's own keys meet its j queries alone, in a tile of 16, the least that a matrix product of the hardware
has. In float32, which has none, all tiles have 16. Keys go in pieces, a program each, so that few rows fill a
GPU too. A piece leaves a maximum, a sum and an output of d numbers, all in float32, and a second kernel joins
the pieces of a query. Scores never reach the GPU's memory. Pieces are cut at constants, not by who runs
first, so the same inputs give the same bits, whatever `span` is. In bfloat16 the tile depends on how many
rows a prompt has: other neighbours change a row by rounding.

Bytes a layer, for numbers of s bytes, t own tokens a row and S = n / PROMPT + t / OWN pieces:

    2 KV d s (P n + R t)        keys and values, once: the bound
    8 R H (d + 2) S             what the pieces leave, written and read
    R H d s (S + 1)             queries, by each piece, and outputs

For 96 rows of Qwen2.5-7B in bfloat16, prompts of 512 and 3,072 own tokens: 610 MB, and 45 + 12 MB that an
H100's L2 has room for, in three launches. The path in torch reads the same keys and values and moves, for
scores and their softmax in float32, about 40 R H (n + t) bytes beside them, 385 MB, in 13 launches.

Keys and values in bfloat16 or float16 are multiplied as they are and added up in float32. A softmax's share
is rounded to their dtype before it meets the values, as in the path in torch, and then only the output is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rar_mini.kernels import bench, rope
from rar_mini.kernels.backend import LAYER_DTYPES, WARP, jit, plain, tl, triton, use_kernel


def grid(owner: Sequence[int], P: int, KV: int) -> tuple[Tensor, Tensor]:
    """Places for the KV heads of rows, row i of which continues prompt owner[i]: in P prompts by g, the most
    rows that one of them has. `slots` (P KV g,) picks heads of rows into them, `back` (R KV,) out of them. A
    slot that no row needs holds the first row's head, whose own slot is another."""
    place = [owner[:row].count(p) for row, p in enumerate(owner)]  # among the rows of the same prompt
    heads, g = torch.arange(KV), max(place) + 1
    slots = torch.zeros(P, KV, g, dtype=torch.long)
    back = torch.empty(len(owner), KV, dtype=torch.long)
    for row, (p, i) in enumerate(zip(owner, place, strict=True)):
        slots[p, :, i], back[row] = row * KV + heads, (p * KV + heads) * g + i
    return slots.flatten(), back.flatten()


@dataclass
class Cache:
    """What a step of decoding attends to. It is model.py's `attend`, called once a layer."""

    keys: Tensor  # (layers, R KV, capacity, d), a row's own
    values: Tensor
    shared_keys: Tensor  # (layers, P, KV, n, d)
    shared_values: Tensor
    lengths: Tensor  # (P,), of the prompts
    slots: Tensor  # (P KV g,), of `grid`
    back: Tensor  # (R KV,), of `grid`
    position: Tensor  # (1,), of the newest token among a row's own
    span: int = 0  # more than any position

    def rotate(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotate q (R, H, d) and k (R, KV, d), and keep k and v at `position`."""
        q = rope.rotate_into(q, k, v, cos, sin, self.keys[layer], self.values[layer], self.position)
        return q, k  # which is in the cache: nobody reads it here

    def __post_init__(self) -> None:
        self.fused = use_kernel(self.keys) and self.keys.dtype in LAYER_DTYPES
        if not self.fused:
            KV, n = self.shared_keys.shape[2:4]
            padding = torch.arange(n, device=self.keys.device) >= self.lengths[:, None]  # (P, n)
            self.shared_bias = hidden(padding).repeat_interleave(KV, 0)[:, None]  # (P KV, 1, n)
        self.reach(self.span)

    def reach(self, span: int) -> None:
        """To be called before each step: attend to the first `span` of a row's own places at most."""
        self.span = span
        if not self.fused:
            self.own_bias = hidden(torch.arange(span, device=self.keys.device) > self.position)  # (span,)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new token a row: q (R, H, d), whose k and v `rotate` has kept -> (R, H, d)."""
        return (_launch if self.fused else reference)(self, layer, q)


# --- reference ----------------------------------------------------------------------------------------------


def reference(cache: Cache, layer: int, q: Tensor) -> Tensor:
    """q (R, H, d) -> (R, H, d). Scores are in float32, as they are in training: Qwen2's reach hundreds, where
    a bfloat16 goes by steps of 2."""
    keys, values = (x[layer][:, : cache.span] for x in (cache.keys, cache.values))  # (R KV, span, d)
    shared_keys, shared_values = (x[layer].flatten(0, 1) for x in (cache.shared_keys, cache.shared_values))
    (R, H, d), (PKV, n, _) = q.shape, shared_keys.shape
    RKV, j = len(keys), R * H // len(keys)
    q = q.reshape(RKV, j, d)
    grid = q.flatten(1).index_select(0, cache.slots).view(PKV, -1, d)  # (P KV, g j, d)
    shared = scores(cache.shared_bias, grid, shared_keys)  # (P KV, g j, n)
    shared = shared.view(-1, j * n).index_select(0, cache.back).view(RKV, j, n)
    own = scores(cache.own_bias, q, keys)  # (R KV, j, span)
    share = torch.cat([shared, own], -1).softmax(-1).to(q.dtype)
    grid = share.flatten(1).index_select(0, cache.slots).view(PKV, -1, n + cache.span)
    read = (grid[..., :n] @ shared_values).view(-1, j * d).index_select(0, cache.back)
    return torch.baddbmm(read.view(RKV, j, d), share[..., n:], values).view(R, H, d)


def hidden(places: Tensor) -> Tensor:
    """What is added to scores to hide these places, bool."""
    return torch.zeros(places.shape, device=places.device).masked_fill(places, -torch.inf)


def scores(bias: Tensor, q: Tensor, keys: Tensor) -> Tensor:
    """bias + q keys^T / sqrt(d) in float32 (float64 of float64): q (B, m, d), keys (B, n, d), bias that
    spreads to (B, m, n)."""
    scale, wide = q.shape[-1] ** -0.5, torch.float64 if q.dtype == torch.float64 else torch.float32
    if q.is_cuda and q.element_size() == 2:  # not rounded, and no wide copy of the keys
        return torch.add(bias, torch.bmm(q, keys.mT, out_dtype=torch.float32), alpha=scale)
    return torch.baddbmm(bias.to(wide), q.to(wide), keys.to(wide).mT, alpha=scale)


# --- kernels ------------------------------------------------------------------------------------------------


@jit
def _load(x, there, inside, WHOLE: tl.constexpr):
    """A tile of rows of d numbers. Where d fills the tile, the mask is a row's own, and loads stay wide."""
    return tl.load(x, mask=there[:, None] if WHOLE else there[:, None] & inside[None, :], other=0.0)


@jit(do_not_specialize=["rows", "j", "KV", "before"])
def _pieces(q, keys, values, ends, slots, out, top, total, stride, rows, j, KV, before, scale,
            d: tl.constexpr, SHARED: tl.constexpr, PIECE: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """A piece of one key head's places a program: the maximum, sum and output of its `rows` queries there."""
    head, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = m < rows
    if SHARED:
        length = tl.load(ends + head // KV)
        row = tl.load(slots + head * (rows // j) + m // j, mask=real, other=0)
    else:
        length = tl.load(ends) + 1
        row = head + m // j
    row = row * j + m % j  # of the R H queries
    c = tl.arange(0, BLOCK_D)
    inside = c < d
    query = _load(q + row[:, None] * d + c[None, :], real, inside, BLOCK_D == d)
    keys += head * stride
    values += head * stride
    highest = tl.full([BLOCK_M], -1.0e38, tl.float32)  # finite: -inf - -inf would be NaN
    whole = tl.zeros([BLOCK_M], tl.float32)
    read = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    start = piece * PIECE
    for begin in range(start, tl.minimum(start + PIECE, length).to(tl.int32), BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        there = n < length
        place = n[:, None] * d + c[None, :]
        key = _load(keys + place, there, inside, BLOCK_D == d)
        x = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # in units of ln 2
        x = tl.where(there[None, :], x, float("-inf"))
        higher = tl.maximum(highest, tl.max(x, 1))
        share = tl.exp2(x - higher[:, None])
        shrink = tl.exp2(highest - higher)
        value = _load(values + place, there, inside, BLOCK_D == d)
        read = tl.dot(share.to(value.dtype), value, read * shrink[:, None], input_precision="ieee")
        whole = whole * shrink + tl.sum(share, 1)
        highest = higher
    # Where a row's numbers lie is the joining kernel's affair: here it would cost 120 registers a thread.
    at = before + (piece * tl.num_programs(0) + head) * rows
    tl.store(top + at + m, highest, mask=real)
    tl.store(total + at + m, whole, mask=real)
    if start < length:  # of an empty piece no output is written, and none is read
        into = out + at * d + m[:, None] * d + c[None, :]
        tl.store(into, read, mask=real[:, None] & inside[None, :])


@jit(do_not_specialize=["shared", "own", "first", "j", "S"])
def _join(out, top, total, back, into, shared, own, first, j, S,
          d: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """One query a program: its `first` pieces of the prompt and the others of its own become one softmax."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(back + row // j) * j + row % j
    c = tl.arange(0, BLOCK_D)
    highest = -1.0e38
    whole = 0.0
    read = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = tl.where(s < first, s * shared + slot, first * shared + (s - first) * own + row)
        piece = tl.load(total + at, mask=s < S, other=0.0)
        peak = tl.load(top + at, mask=s < S, other=-1.0e38)
        higher = tl.maximum(highest, tl.max(peak, 0))
        weight = tl.exp2(peak - higher)
        shrink = tl.exp2(highest - higher)
        some = (piece != 0.0)[:, None] & (c < d)[None, :]
        part = tl.load(out + at[:, None] * d + c[None, :], mask=some, other=0.0)
        read = read * shrink + tl.sum(part * weight[:, None], 0)
        whole = whole * shrink + tl.sum(piece * weight, 0)
        highest = higher
    tl.store(into + row * d + c, (read / whole).to(into.dtype.element_ty), mask=c < d)


# --- launcher -----------------------------------------------------------------------------------------------

PROMPT, OWN = 128, 256
"""Places in a piece of a prompt, and of a row's own. To write and read what a piece of 7 queries leaves is as
many bytes as 14 places in bfloat16. A prompt's pieces are shorter: they are few, and have to fill the GPU."""

ROWS = 128
"""Queries that a tile holds at most. Such a program takes 154 to 202 registers a thread and up to 96 KB: one
fits on an SM, and a layer of the case above has 96 of them, where an H100 has 132 SMs. Of a row's own keys 4
to 7 programs fit at d = 128, each with 8 KB or more on its way, where 20 KB in all hide an H100's latency."""

JOINED, THREADS = 16, 128  # pieces that are joined at a time, and the threads that do it


def tile(rows: int, d: int, size: int) -> dict[str, int]:
    """The tile for a key head of so many queries, of d numbers of `size` bytes."""
    block_d = max(16, triton.next_power_of_2(d))
    if size == 4:  # no matrix product of the hardware's, and each number takes a register
        return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": block_d}
    block_m = min(ROWS, 2**14 // block_d, max(16, triton.next_power_of_2(rows)))
    return {"BLOCK_M": block_m, "BLOCK_N": 64 if block_m == ROWS else 32, "BLOCK_D": block_d}


def options(block_m: int) -> tuple[int, int]:
    """Threads of a tile of so many queries, and Triton's `num_stages`: with 2, the next tile of keys and that
    of values are on their way."""
    return 256 if block_m > 32 else 128, 2


def _launch(cache: Cache, layer: int, q: Tensor) -> Tensor:
    (R, H, d), (_, P, KV, n, _) = q.shape, cache.shared_keys.shape
    j, g = H // KV, len(cache.slots) // (P * KV)
    first, rest = triton.cdiv(n, PROMPT), triton.cdiv(cache.span, OWN)
    shared, own = P * KV * g * j, R * H  # queries, with those of slots that no row needs
    scale, count = d**-0.5 / math.log(2), first * shared + rest * own
    q, into = q.contiguous(), torch.empty(R, H, d, dtype=q.dtype, device=q.device)
    wide = {"dtype": torch.float32, "device": q.device}
    out, top, total = (torch.empty(count, *last, **wide) for last in ((d,), (), ()))
    for common, keys, values, ends, heads, rows, pieces, before in (
        (True, cache.shared_keys, cache.shared_values, cache.lengths, P * KV, g * j, first, 0),
        (False, cache.keys, cache.values, cache.position, R * KV, j, rest, first * shared),
    ):
        keys, values = keys[layer], values[layer]
        assert keys.is_contiguous() and values.is_contiguous() and keys.dtype == values.dtype == q.dtype
        shape, piece = tile(rows, d, q.element_size()), PROMPT if common else OWN
        assert piece % shape["BLOCK_N"] == 0
        threads, stages = options(shape["BLOCK_M"])
        _pieces[heads, pieces, triton.cdiv(rows, shape["BLOCK_M"])](
            q, keys, values, ends, cache.slots, out, top, total, keys.stride(-3), rows, j, KV, before, scale,
            d=d, SHARED=common, PIECE=piece, **shape, num_warps=threads // WARP, num_stages=stages,
            enable_fp_fusion=True,
        )  # fmt: skip
    sizes = (shared, own, first, j, first + rest, d, JOINED, shape["BLOCK_D"])
    fused = {"num_warps": THREADS // WARP, "enable_fp_fusion": True}
    _join[(own,)](out, top, total, cache.back, into, *sizes, **fused)
    return into


def moved(kernel: str, given: dict[str, Any]) -> int | None:
    """Bytes that a launch reads and writes: of the results of all pieces, its own."""
    if kernel != "_pieces":
        return None
    n, d = given["keys"].shape[-2:]
    results = given["keys"].numel() // (n * d) * given["rows"] * triton.cdiv(n, given["PIECE"])
    queries = results * d * given["q"].element_size()  # each piece reads its own
    return 4 * results * (d + 2) + queries + sum(given[x].nbytes for x in ("keys", "values", "ends", "slots"))


# --- benchmark ----------------------------------------------------------------------------------------------


def drawn(
    lengths: Sequence[int],
    owner: Sequence[int],
    heads: tuple[int, int],
    d: int,
    position: int,
    span: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Cache, Tensor]:
    """A cache of one layer and queries (R, H, d), at random, for heads (H, KV)."""
    random = torch.Generator(device).manual_seed(0)
    (H, KV), P, R = heads, len(lengths), len(owner)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device, dtype=dtype)

    own = (normal(1, R * KV, span, d) for _ in range(2))
    shared = (normal(1, P, KV, max(lengths), d) for _ in range(2))
    places = (torch.tensor(lengths, device=device), *(x.to(device) for x in grid(owner, P, KV)))
    cache = Cache(*own, *shared, *places, torch.tensor([position], device=device), span)
    return cache, normal(R, H, d)


def benchmark(on: str) -> Iterator[bench.Row]:
    """A layer of Qwen2.5-7B with 96 rows, early, and at the end of answers of 3,072 tokens."""
    copying, dtype = bench.copying(on), torch.bfloat16 if on == "cuda" else torch.float32
    P, G, n, H, KV, d = (6, 16, 512, 28, 4, 128) if on == "cuda" else (2, 8, 64, 9, 3, 64)
    for t in (256, 3072) if on == "cuda" else (64, 256):
        cache, q = drawn([n] * P, [p for p in range(P) for _ in range(G)], (H, KV), d, t - 1, t, dtype, on)
        read = 2 * KV * d * q.element_size() * (P * n + P * G * t)
        with plain():
            beside = replace(cache)
        case = f"{P} x {G} rows, {n} + {t} keys, {str(dtype)[6:]}"
        for path, attend in (("decode", cache), ("torch", beside)):
            yield bench.row(case, path, partial(attend, 0, q, q, q), on, read, copying)


if __name__ == "__main__":
    bench.show("decode", benchmark)
