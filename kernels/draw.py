"""The draw: one token a row from logits and one uniform number, and the token's log-probability.

    x = logits / temperature         mass = e^(x - max x)         cdf = running sum of mass
    token = the first whose cdf exceeds uniform * cdf[-1]         logp = x[token] - max x - log cdf[-1]

That is the inverse CDF, so that one number decides a token. Sums are in float64: in float32 a vocabulary of
150,000 loses its rare tokens to rounding. Temperature 0 takes the likeliest token, with its logp at 1.

Bytes, for R rows of V logits of s bytes in slices of BLOCK tokens: R V s to read each logit once, 24 R V /
BLOCK for what slices leave behind, written and read, and R BLOCK s for the one slice in which the token lies.
With R = 96, V = 151,936 and bfloat16 that is 29.2 + 0.2 + 0.4 MB: 9 us at an H100's 3.35 TB/s. Plain torch
moves 30 to 40 bytes a logit, not 2: a copy in float32, its quotient, the gaps, their exponentials, and those
again in float64, of which it makes sums.

Launches: two. A token cannot be chosen before all of its row's mass is known, and on a GPU all programs have
met only where a launch ends. One program a row would need one launch, and leave 96 rows on 96 of 132 SMs,
with 300 KB to read each; slices fill the device even for a single row.

Which token: torch's, but for ties at the last bit of a mass. Both paths round masses to float32, which moves
the places where tokens meet by some 1e-10 of the whole. In a flat distribution over 151,936 tokens, the worst
case, that decides between two neighbours for a few of 100,000 numbers.

What limits it, by arithmetic: a program issues 30 instructions a logit (sm_90), four of which go to units
that an SM has 16 of: two powers of 2, a rounding, and the conversion to float64. That is 16 us on an H100 for
R = 96, above the 9 of the bytes. A consumer's GPU has a 64th of the float64 units: 50 us on an RTX 4090,
where the bytes take 29, and the weights of a 7B model 15,000. Sums in compensated float32 would be faster
there, and harder to read.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rar_mini.kernels import bench
from rar_mini.kernels.backend import LAYER_DTYPES, WARP, jit, tl, triton, use_kernel

NEIGHBOURS = 256
"""Neighbouring tokens of a vocabulary whose probabilities the reference adds up first."""


# --- reference ----------------------------------------------------------------------------------------------


def reference(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """What `draw` returns, in torch. Only logp is rounded to float32, and not what it is made of."""
    logits = logits.float() if temperature in (0, 1) else logits.float() / temperature
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    mass = (logits - top).exp_()  # (R, V), of which the likeliest token has 1
    if math.gcd(mass.shape[-1], NEIGHBOURS) < NEIGHBOURS // 4:
        mass = F.pad(mass, (0, -mass.shape[-1] % NEIGHBOURS))  # or blocks would be almost as many as tokens
    sums = _sums(mass)
    whole = sums.sum(-1, keepdim=True)  # (R, 1)
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        tokens = _inverse(mass, sums, uniform.to(mass.device)[:, None])  # (R, 1)
    tokens = tokens.clamp_max(logits.shape[-1] - 1)  # of a policy that is broken, whose sums are NaN
    logp = logits.gather(-1, tokens).double() - top - whole.log()
    return tokens[:, 0], logp[:, 0].float()


def _sums(mass: Tensor) -> Tensor:
    """What blocks of neighbouring tokens have together: (R, V) -> (R, blocks), float64."""
    V = mass.shape[-1]
    return mass.unflatten(-1, (-1, math.gcd(V, NEIGHBOURS))).sum(-1, dtype=torch.float64)


def _inverse(mass: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum of mass (R, V) passes uniform (R, 1) of the whole -> (R, 1).

    First the block, then the token in it: a running sum over the whole vocabulary takes ten times as long.
    """
    cdf = sums.cumsum(-1)
    point = uniform * cdf[:, -1:]
    block = _passing(cdf, point)  # (R, 1)
    rest = point - (cdf - sums).gather(-1, block)
    size = mass.shape[-1] // sums.shape[-1]
    within = mass.unflatten(-1, (-1, size)).take_along_dim(block[..., None], 1)[:, 0]  # (R, size)
    # Rounding may put the rest below 0, where a first token without mass would pass it.
    return block * size + _passing(within.cumsum(-1, dtype=torch.float64), rest.clamp_min(0))


def _passing(cdf: Tensor, point: Tensor) -> Tensor:
    """Where cdf (R, n) first exceeds point (R, 1): a place with mass of its own -> (R, 1)."""
    end = cdf[:, -1:]  # which rounding may let the point reach
    point = torch.minimum(point, torch.nextafter(end, torch.zeros_like(end)))
    token = torch.searchsorted(cdf, point, right=True)
    return token.clamp_max(cdf.shape[-1] - 1)  # of a policy that is broken: nothing exceeds a NaN


# --- kernels ------------------------------------------------------------------------------------------------


@jit
def _exp(x):
    """e^x for x up to 0, to the last bit or two: 2^n times a power between -1/2 and 1/2. A GPU's instruction
    for 2^(x / ln 2) alone would carry the product's rounding, 1e-6 of the mass of a rare token."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts: n times the first is exact
    e = tl.exp2(rest * 1.4426950408889634) * tl.exp2(n)
    return tl.where(x < -87.0, 0.0, e)  # also of -inf, whose rest is NaN


@jit
def _tile(x_row, part, V, scale, BLOCK: tl.constexpr):
    """The logits of one slice over the temperature, in float32. Behind the vocabulary is -inf; a NaN counts
    as inf, because a GPU's maximum passes over a NaN and torch's does not."""
    i = part * BLOCK + tl.arange(0, BLOCK)
    if (part + 1) * BLOCK <= V:  # without a mask, so that 16 bytes are read at a time
        x = tl.load(x_row + i)
    else:
        x = tl.load(x_row + i, mask=i < V, other=float("-inf"))
    x = x.to(tl.float32) * scale
    return tl.where(x == x, x, float("inf"))


@jit
def _passing_point(mass, point, N: tl.constexpr):
    """Where the running sum of mass (N,) first exceeds the point; the last place that has mass, if rounding
    lets the point reach the end. A parallel sum may move by a last bit where nothing is added: hence the
    second condition."""
    i = tl.arange(0, N)
    passed = (tl.cumsum(mass, 0) > point) & (mass > 0.0)
    last = tl.max(tl.where(mass > 0.0, i, 0), 0)
    return tl.minimum(tl.min(tl.where(passed, i, N), 0), last)


PARTS = ["tops", "totals", "uniform", "tokens", "logp"]


# No number stands in a binary but the tile, so that any vocabulary runs the same two of each kernel: one for
# rows that lie a multiple of 16 apart, and one for others.
@jit(do_not_specialize=["V"], do_not_specialize_on_alignment=PARTS[:2])
def _slices(logits, tops, totals, stride, V, scale, BLOCK: tl.constexpr):
    """One slice of one row a program: its largest logit, and what its tokens weigh beside that one."""
    row = tl.program_id(0).to(tl.int64)  # R V passes 2^31 after 14,134 rows of 151,936
    part = tl.program_id(1)
    x = _tile(logits + row * stride, part, V, scale, BLOCK)
    top = tl.maximum(tl.max(x, 0), -1.0e38)  # finite: -inf - -inf would be NaN
    at = row * tl.num_programs(1) + part
    tl.store(tops + at, top)
    tl.store(totals + at, tl.sum(_exp(x - top).to(tl.float64), 0))


@jit(do_not_specialize=["V", "slices", "greedy"], do_not_specialize_on_alignment=PARTS)
def _choose(logits, tops, totals, uniform, tokens, logp, stride, V, slices, scale, greedy,
            BLOCK: tl.constexpr, SLICES: tl.constexpr):  # fmt: skip
    """One row a program: the slice, then the token in it, whose logits are read again."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SLICES)
    highest = tl.load(tops + row * slices + s, mask=s < slices, other=-1.0e38)
    total = tl.load(totals + row * slices + s, mask=s < slices, other=0.0)
    top = tl.max(highest, 0)
    mass = total * tl.exp(highest.to(tl.float64) - top)
    whole = tl.sum(mass, 0)
    point = tl.load(uniform + row) * whole
    likeliest = tl.min(tl.where(highest == top, s, SLICES), 0)
    part = tl.where(greedy != 0, likeliest, _passing_point(mass, point, SLICES))
    before = tl.sum(tl.where(s < part, mass, 0.0), 0)
    own = tl.load(tops + row * slices + part)
    x = _tile(logits + row * stride, part, V, scale, BLOCK)
    rest = (point - before) / tl.exp(own.to(tl.float64) - top)  # in units of the slice
    i = tl.arange(0, BLOCK)
    likeliest = tl.min(tl.where(x == top, i, BLOCK - 1), 0)
    within = _passing_point(_exp(x - own).to(tl.float64), rest, BLOCK)
    token = part * BLOCK + tl.where(greedy != 0, likeliest, within)
    broken = (whole != whole) & (greedy == 0)  # a policy that is: torch ends with the last token
    token = tl.where(broken, V - 1, tl.minimum(token, V - 1)).to(tl.int64)
    chosen = tl.load(logits + row * stride + token).to(tl.float32) * scale
    tl.store(tokens + row, token)
    tl.store(logp + row, (chosen.to(tl.float64) - top - tl.log(whole)).to(tl.float32))


# --- launcher -----------------------------------------------------------------------------------------------

BLOCK, THREADS = 2048, 128
"""Each thread has 16 logits of a slice; six programs or more fit on an SM."""

SLICES, CHOOSING = 128, 256
"""Slices that the second launch looks through, and its threads. Vocabularies of up to 262,144 tokens fit;
larger ones take torch's path."""


def _launch(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    (R, V), on = logits.shape, logits.device
    assert logits.stride(1) == 1 and uniform.is_contiguous()
    assert uniform.dtype == torch.float64 and uniform.device == on
    slices, scale = triton.cdiv(V, BLOCK), 1 / (temperature or 1.0)
    parts = [torch.empty(R, slices, dtype=dtype, device=on) for dtype in (torch.float32, torch.float64)]
    tokens = torch.empty(R, dtype=torch.int64, device=on)
    logp = torch.empty(R, dtype=torch.float32, device=on)
    common = {"BLOCK": BLOCK, "enable_fp_fusion": True}
    _slices[(R, slices)](logits, *parts, logits.stride(0), V, scale, num_warps=THREADS // WARP, **common)
    sizes = (logits.stride(0), V, slices, scale, int(temperature == 0))
    options = common | {"SLICES": SLICES, "num_warps": CHOOSING // WARP}
    _choose[(R,)](logits, *parts, uniform, tokens, logp, *sizes, **options)
    return tokens, logp


def moved(kernel: str, given: dict[str, Any]) -> int | None:
    """Bytes that a launch reads and writes, where it does not read or write all that it is given once."""
    if kernel != "_choose":
        return None
    logits = given["logits"]  # of each row a slice, the chosen logit again, and its slice's largest again
    read = len(logits) * ((BLOCK + 1) * logits.element_size() + 4)
    return read + sum(x.nbytes for x in given.values() if isinstance(x, Tensor) and x is not logits)


# --- public -------------------------------------------------------------------------------------------------


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose one token a row: logits (R, V), uniform (R,) float64 in [0, 1) -> tokens (R,) int64, logp (R,)
    float32, under the full softmax at that temperature. At 0 the likeliest token, with its logp at 1.

    A row with a NaN or an inf gets some token and a logp that is NaN: whoever reads that finds the policy
    broken, and can say more than this place.
    """
    if use_kernel(logits) and logits.dtype in LAYER_DTYPES and logits.shape[1] <= SLICES * BLOCK:
        return _launch(logits if logits.stride(1) == 1 else logits.contiguous(), uniform, temperature)
    return reference(logits, uniform, temperature)


# --- benchmark ----------------------------------------------------------------------------------------------


def benchmark(on: str) -> Iterator[bench.Row]:
    """A step of the paper's 96 rows, and a single row, over Qwen2.5's vocabulary."""
    copying = bench.copying(on)
    dtype, V = (torch.bfloat16, 151_936) if on == "cuda" else (torch.float32, 49_152)
    for R in (96, 1) if on == "cuda" else (16, 1):
        logits = (3 * torch.randn(R, V, device=on)).to(dtype)
        uniform = torch.rand(R, device=on, dtype=torch.float64)
        rivals: Any = (("draw", draw), ("torch", reference), ("torch.compile", torch.compile(reference)))
        for path, fn in rivals:
            run = partial(fn, logits, uniform, 0.7)
            yield bench.row(f"R {R}, V {V}, {str(dtype)[6:]}", path, run, on, logits.nbytes, copying)


if __name__ == "__main__":
    bench.show("draw", benchmark)
