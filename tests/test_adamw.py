"""The optimizer, on every path: bit for bit its reference, in float32 torch's AdamW, in bfloat16 unbiased."""

import copy
import math
from typing import Any

import pytest
import torch
from kernel_cases import (
    NAN,
    needs_triton,
    not_interpreted,
    on_every_device,
    only_interpreted,
    programs_from,
    traffic,
    under_the_interpreter,
    untouched,
)
from torch import Tensor

from rar_mini.kernels import adamw, backend, report
from rar_mini.kernels.adamw import BLOCK, AdamW, random_bits, round_stochastically
from rar_mini.kernels.backend import jit, tl

# One number, an odd pair's half, one below, at and above a tile, several tiles; a scalar, and nothing at all.
SHAPES = [(1,), (3,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (3, 683), (), (0,)]
DTYPES = [torch.bfloat16, torch.float32]
OPTIONS = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit: 0 and -0 differ, one NaN is like another."""
    whole = {2: torch.int16, 4: torch.int32}[a.element_size()]
    kinds = torch.equal(a.isnan(), b.isnan())
    return kinds and torch.equal(*(x.nan_to_num(0, torch.inf, -torch.inf).view(whole) for x in (a, b)))


def is_torchs_own(dtype: torch.dtype, device: str) -> bool:
    """float32 on the CPU, outside the interpreter: torch's fused update, which rounds in its own order."""
    return dtype == torch.float32 and device == "cpu" and not backend.INTERPRET


# --- one update ---


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bit_for_bit_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Three steps with decay, clipping and a schedule, of the second parameter of two."""
    p = drawn(shape, 0, dtype, device)
    n = p.numel()
    right = [p.clone().view(-1), torch.zeros(n, dtype=dtype, device=device)]  # p, m, and v
    right.append(right[1].clone())
    optimizer = AdamW([p.new_zeros(1), p], 1.0, seed=2**40 + 5, **OPTIONS)
    for step, rate in enumerate((1e-2, 1e-3, 0.0), 1):
        p.grad = drawn(shape, step, dtype, device) * 10.0 ** (3 - 2 * step)
        before = p.grad.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(grad_scale=0.7)
        by = adamw.factors(step, 0.7, rate, **OPTIONS)
        bits = random_bits(2**40 + 5, step, 2, 0, n, p.device) if dtype == torch.bfloat16 else None
        adamw.reference(right[0], before.view(-1), *right[1:], by, bits)
        if is_torchs_own(dtype, device):
            for ours, theirs in zip((p, *list(optimizer.state[p].values())[1:]), right, strict=True):
                torch.testing.assert_close(ours.view(-1), theirs, atol=1e-6, rtol=1e-6)
        else:
            state = optimizer.state[p]
            assert all(same(x.view(-1), y) for x, y in zip((p, state["m"], state["v"]), right, strict=True))
            assert torch.equal(p.grad, before), "the gradient is only read"


def test_the_reference_in_slices_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch path takes a parameter in slices, so that its temporaries stay in the cache."""
    if backend.INTERPRET:
        pytest.skip("the kernel has tiles")
    got = []
    for size in (2**17, 64):
        monkeypatch.setattr(adamw, "SLICE", size)
        p = drawn((999,), 0, torch.bfloat16)
        p.grad = torch.ones_like(p)
        AdamW([p], 1e-2).step()
        got.append(p)
    assert same(*got)


@only_interpreted
def test_numbers_may_lie_beyond_two_to_the_31() -> None:
    """The last tile of a parameter of 2^31 + 5 numbers, of whose memory hardly a page is ever touched."""
    start = 2**31
    streams = [untouched(start + 5, dtype=torch.bfloat16) for _ in range(4)]
    for i, x in enumerate(streams):
        x[start:] = drawn((5,), i, torch.bfloat16).abs()
    right = [x[start:].clone() for x in streams]
    by = adamw.factors(1, 1.0, 1e-3, **OPTIONS)
    with programs_from(start // BLOCK):
        adamw._adamw[(1,)](*streams, start + 5, 7, 1, 1, *by, BLOCK)
    adamw.reference(*right, by, random_bits(7, 1, 1, start, 5, torch.device("cpu")))
    assert all(same(x[start:], y) for x, y in zip(streams, right, strict=True))


@on_every_device
def test_float32_is_torchs_adamw(device: str) -> None:
    """To 1e-6 after 100 steps; the interpreter takes 20."""
    ours = [drawn(shape, 0, torch.float32, device).requires_grad_() for shape in ((BLOCK + 1,), (3, 5))]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    a, b = AdamW(ours, 1e-2, weight_decay=0.1), torch.optim.AdamW(theirs, 1e-2, weight_decay=0.1)
    for step in range(20 if backend.INTERPRET else 100):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = drawn(tuple(p.shape), step, torch.float32, device)
            q.grad = 0.5 * p.grad
        a.step(grad_scale=0.5)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


@on_every_device
def test_grad_scale_clips_as_clip_grad_norm_does(device: str) -> None:
    ours = [drawn(shape, 0, torch.float32, device).requires_grad_() for shape in ((65,), (3, 5))]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    a, b = AdamW(ours, 1e-2, weight_decay=0.1), torch.optim.AdamW(theirs, 1e-2, weight_decay=0.1)
    for step in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = 10.0**step * drawn(tuple(p.shape), step, torch.float32, device)
            q.grad = p.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0).item()
        a.step(grad_scale=min(1.0, 1.0 / (norm + 1e-6)))
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


# --- random bits ---


def salmon(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in whole numbers, after the paper's figure."""
    c, (k0, k1), low = counter, key, 2**32 - 1
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k0, b & low, a >> 32 ^ c[3] ^ k1, a & low]
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c


# From kat_vectors of Random123, the library of Philox's authors: counter, key, words.
PUBLISHED = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""


def test_philox_as_published() -> None:
    for line in PUBLISHED.split("\n")[1:-1]:
        words = [int(word, 16) for word in line.split()]
        assert salmon(words[:4], words[4:6]) == words[6:]
    (first,) = torch.stack(adamw.philox(0, torch.zeros(1, dtype=torch.int64), 0, 0), 1) & 0xFFFFFFFF
    assert [f"{word:08x}" for word in first.tolist()] == PUBLISHED.split()[6:10]


@jit
def _words(out, seed, c0, c1, c2, n: tl.constexpr):
    zero = tl.zeros([n], tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, zero + c0 + tl.arange(0, n).to(tl.uint32), zero + c1, zero + c2, zero)
    i = tl.arange(0, n)
    tl.store(out + 4 * i, r0)
    tl.store(out + 4 * i + 1, r1)
    tl.store(out + 4 * i + 2, r2)
    tl.store(out + 4 * i + 3, r3)


@on_every_device
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 3, 2**63 - 1])
def test_words_are_tritons_and_the_papers(seed: int, device: str) -> None:
    counters = torch.arange(2**31 - 4, 2**31 + 4, device=device)
    ours = torch.stack(adamw.philox(seed, counters, 7, 2**31 - 1), 1) & 0xFFFFFFFF
    key = [seed & 0xFFFFFFFF, seed >> 32]
    assert ours.tolist() == [salmon([c, 7, 2**31 - 1, 0], key) for c in counters.tolist()]
    if backend.use_kernel(ours):
        theirs = torch.empty(8, 4, dtype=torch.int32, device=device)
        _words[(1,)](theirs, seed, 2**31 - 4, 7, 2**31 - 1, 8)
        assert torch.equal(theirs.long() & 0xFFFFFFFF, ours)


def test_bits_are_uniform_and_go_their_own_ways() -> None:
    """Every seed, step, parameter and stream has its own; where a slice begins does not matter."""
    device = torch.device("cpu")
    n = 10_000
    keys = ((0, 1, 1), (1, 1, 1), (2**32, 1, 1), (0, 2, 1), (0, 1, 2))
    streams = [bits for key in keys for bits in random_bits(*key, 0, n, device)]
    for bits in streams:
        assert 0 <= bits.min() and bits.max() < 65536
        seen = torch.bincount(bits >> 8, minlength=256).double()
        chi = ((seen - n / 256).square() / (n / 256)).sum()  # 255 degrees of freedom: 255 +- 23
        assert 170 < chi < 350
    table = torch.stack(streams).double()
    off = torch.corrcoef(table) - torch.eye(len(table), dtype=torch.float64)
    assert off.abs().max() < 0.05  # five standard errors of 0.01
    for part, whole in zip(random_bits(0, 1, 1, 400, 77, device), streams[:3], strict=True):
        assert torch.equal(part, whole[400:477])


# --- rounding ---


@pytest.mark.parametrize("value", [0.0201, -3.3e-5, 1e30, 1e-40])
def test_stochastic_rounding_is_unbiased(value: float) -> None:
    """The mean error of 10^6 draws lies within four standard errors of 0."""
    x = torch.full((1_000_000,), value)
    bits, _, _ = random_bits(0, 1, 1, 0, len(x), x.device)
    error = round_stochastically(x, bits).double() - x.double()
    assert len(error.unique()) == 2
    assert error.mean().abs() <= 4 * error.std() / 1000


@jit
def _rounded(x, bits, out, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, adamw._narrow(tl.load(x + i), tl.load(bits + i).to(tl.uint32), tl.bfloat16))


@on_every_device
def test_values_without_a_neighbour_keep_their_kind(device: str) -> None:
    """Bits added to a NaN can carry into its sign and make it -0.0. To 0x7FFFFFFF, a GPU's NaN, any do."""
    words = [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, -0x800000, 0, -(2**31), 0x7F7FFFFF, 1]
    x = torch.tensor(words, dtype=torch.int32).view(torch.float32).to(device)
    bits = torch.tensor([1] + [65535] * (len(x) - 1), dtype=torch.int32, device=device)
    got = round_stochastically(x, bits)
    assert got[:3].isnan().all() and got[3:5].tolist() == [torch.inf, -torch.inf]
    assert got[5:7].tolist() == [0, 0] and got[5:7].signbit().tolist() == [False, True]
    assert got[7] == torch.inf and 0 < got[8] < 1e-38


@on_every_device
def test_any_bits_of_a_float_are_rounded_alike(device: str) -> None:
    """Patterns at random: normal, tiny, infinite and not a number."""
    if not backend.use_kernel(torch.zeros(1, device=device)):
        pytest.skip("no kernel here")
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (4096,), generator=generator)
    words[:1024] |= 0x7F800000
    words[:8] = torch.tensor([0x7F800000, -0x800000, 0x7F7FFFFF, -0x800001, 0, -(2**31), 1, 0x7FFFFF])
    x = words.int().view(torch.float32).to(device)
    bits = torch.randint(0, 2**32, (4096,), generator=generator).to(device)
    out = torch.empty(4096, dtype=torch.bfloat16, device=device)
    _rounded[(1,)](x, bits, out, 4096)
    assert same(out, round_stochastically(x, (bits & 0xFFFF).int()))


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_place(dtype: torch.dtype, device: str) -> None:
    p = torch.ones(BLOCK + 9, dtype=dtype, device=device)
    p.grad = torch.ones_like(p)
    p[3], p[4] = NAN, torch.inf
    p.grad[BLOCK + 5], p.grad[BLOCK + 6] = NAN, -torch.inf
    optimizer = AdamW([p], 1e-2)
    for _ in range(3):
        optimizer.step()
    assert p.isnan().nonzero().view(-1).tolist() == [3, BLOCK + 5, BLOCK + 6]  # inf over inf is NaN
    assert p[4] == torch.inf and p.isfinite().sum() == len(p) - 4


@on_every_device
def test_bfloat16_learns_at_the_papers_rate(device: str) -> None:
    """Near 0.02 neighbours lie 1.2e-4 apart: an update of 5e-6 is lost when rounded to nearest, always.
    Rounded stochastically, the mean follows float32 within four standard errors at every step."""
    n, rate, unit = 1024, 5e-6, 2.0**-13
    start = torch.full((n,), 0.0201, dtype=torch.bfloat16, device=device)
    rounded, nearest, full = start.clone(), start.clone(), start.float()
    others = [torch.optim.AdamW([p], rate, weight_decay=0.0) for p in (nearest, full)]
    optimizers = [AdamW([rounded], rate, seed=1), *others]
    steps = 40 if backend.INTERPRET else 100
    for step in range(1, steps + 1):
        for p in (rounded, nearest, full):
            p.grad = torch.ones_like(p)
        for optimizer in optimizers:
            optimizer.step()
        drift = (rounded.double() - full.double()).mean().item()
        assert abs(drift) <= 4 * math.sqrt(step * rate * unit / n)
    assert torch.equal(nearest, start)
    assert (full - start.float()).mean().item() == pytest.approx(-steps * rate, rel=1e-3)


# --- keys ---


def run(params: list[Tensor], steps: int, state: dict | None = None, seed: int = 7) -> dict[str, Any]:
    """Update `params` in place and return the optimizer's state."""
    optimizer = AdamW(params, 1e-2, seed=seed)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for _ in range(steps):
        optimizer.step()
    return optimizer.state_dict()


def with_gradient(p: Tensor) -> Tensor:
    p = p.clone()
    p.grad = torch.ones_like(p)
    return p


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resumed_optimizer_rounds_alike(dtype: torch.dtype, device: str) -> None:
    """State says all: a new optimizer with another seed and rate continues as the old one would have."""
    start = drawn((1500,), 0, dtype, device)
    whole, half, other = (with_gradient(start) for _ in range(3))
    last = run([whole], 4)
    state = run([half], 2)
    resumed = with_gradient(half)
    again = run([resumed], 2, state, seed=8)
    assert same(resumed, whole)
    assert again["state"][0]["step"] == 4
    assert all(same(again["state"][0][name], last["state"][0][name]) for name in "mv")
    run([other], 4, seed=8)
    assert same(other, whole) == (dtype == torch.float32), "another seed rounds otherwise"


@on_every_device
def test_a_parameter_without_a_gradient_takes_no_other_key(device: str) -> None:
    """Else what is frozen, or unused in one step, would change how all others are rounded."""
    a, b = (drawn((1500,), i, torch.bfloat16, device) for i in range(2))
    alone = [a.clone(), with_gradient(b)]
    both = [with_gradient(a), with_gradient(b)]
    for params in (alone, both):
        optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}], 1e-2)
        optimizer.step()
    assert same(alone[1], both[1])
    assert same(alone[0], a) and not same(both[0], a)


@on_every_device
def test_equal_parameters_are_rounded_apart(device: str) -> None:
    params = [with_gradient(drawn((1500,), 0, torch.bfloat16, device)) for _ in range(2)]
    run(params, 1)
    assert not same(*params)


# --- sums of gradients ---


@on_every_device
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_bfloat16_add_up_as_the_reference_does(shape: tuple[int, ...], device: str) -> None:
    """Bit for bit, over two steps of three batches; the first batch's is taken as it comes."""
    p = drawn(shape, 0, torch.bfloat16, device).requires_grad_()
    other = torch.zeros(1, dtype=torch.bfloat16, device=device)
    optimizer = AdamW([{"params": [other]}, {"params": [p]}], 1e-2, seed=2**40 + 5)
    for step in (1, 2):
        batches = [drawn(shape, 10 * step + b, torch.bfloat16, device) for b in range(3)]
        right = batches[0].clone().view(-1)
        for turn, g in enumerate(batches[1:], 1):
            bits, _, _ = random_bits(2**40 + 5, step, 2, 0, p.numel(), p.device, turn)
            right = round_stochastically(right.float() + g.view(-1).float(), bits)
        for g in batches:
            p.backward(g)
        assert same(p.grad.view(-1), right)
        optimizer.step()
        optimizer.zero_grad()


@on_every_device
def test_small_gradients_are_not_lost_beside_a_large_one(device: str) -> None:
    """0.01 is below half of what neighbours of 10 in bfloat16 lie apart: rounded to nearest, all batches come
    to nothing. Rounded stochastically, their mean is right within four standard errors."""
    batches = 37 if backend.INTERPRET else 148
    p = torch.zeros(BLOCK, dtype=torch.bfloat16, device=device, requires_grad=True)
    AdamW([p], 1e-2)
    for each in (10.0, *[0.01] * batches):
        p.backward(torch.full_like(p, each))
    size = torch.tensor(0.01).bfloat16().item()
    error = math.sqrt(batches * size * (2**-4 - size) / BLOCK)
    assert abs(p.grad.float().mean().item() - 10 - batches * size) <= 4 * error


def test_sums_err_as_the_file_says() -> None:
    """The file's numbers, where batches are alike and where the first is large."""
    if backend.INTERPRET:
        pytest.skip("the torch path's")
    n, random = 5000, torch.Generator().manual_seed(0)

    def add(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The truth, and x (batches, n) added up stochastically and to nearest."""
        ours, nearest = x[0].clone(), x[0].clone()
        for turn, g in enumerate(x[1:], 1):
            adamw.add_(ours, g, seed=0, step=1, index=1, turn=turn)
            nearest += g
        return x.double().sum(0), ours.double(), nearest.double()

    for batches, ours_errs, nearest_errs in ((19, 0.007, 0.005), (37, 0.010, 0.0075), (148, 0.020, 0.0144)):
        truth, ours, nearest = add(torch.randn(batches, n, generator=random).bfloat16())
        assert (ours - truth).norm() / truth.norm() == pytest.approx(ours_errs, rel=0.1)
        assert (nearest - truth).norm() / truth.norm() == pytest.approx(nearest_errs, rel=0.1)
        x = 0.02 * torch.randn(batches, n, generator=random) + 0.01
        x[0] = 10 * torch.randn(n, generator=random)
        x = x.bfloat16()
        truth, ours, nearest = (sums - x[0].double() for sums in add(x))  # what came after the first
        assert (ours @ truth) / (truth @ truth) == pytest.approx(1, abs=0.03)
        assert (nearest @ truth) / (truth @ truth) == pytest.approx(0.82, abs=0.03)


def test_a_resumed_optimizer_adds_up_by_the_saved_seed() -> None:
    p, twin = (drawn((1500,), 0, torch.bfloat16).requires_grad_() for _ in range(2))
    saved, other = AdamW([p], 1e-2, seed=5), AdamW([twin], 1e-2, seed=6)
    other.load_state_dict(saved.state_dict())
    for seed in (1, 2):
        for q in (p, twin):
            q.backward(drawn((1500,), seed, torch.bfloat16))
    assert same(p.grad, twin.grad)


def test_a_sum_over_processes_is_rounded_once() -> None:
    """Of two processes with the same gradient: a sum in bfloat16 would be exact, so that they differ by less
    than bfloat16 holds. Of float32, in place."""
    p, wide = (drawn((64,), 0, dtype).requires_grad_() for dtype in DTYPES)
    optimizer = AdamW([p, wide], 1e-2, seed=3)
    p.grad, wide.grad = drawn((64,), 1, torch.bfloat16), drawn((64,), 1, torch.float32)
    other = drawn((64,), 2, torch.float32) / 1000
    exact, place = p.grad.float() + other, wide.grad.data_ptr()
    optimizer.sum_gradients(lambda grad: grad.add_(other))
    bits, _, _ = random_bits(3, 1, 1, 0, 64, p.device, adamw.OVER_RANKS)
    assert same(p.grad, round_stochastically(exact, bits))
    assert torch.equal(wide.grad, drawn((64,), 1, torch.float32) + other) and wide.grad.data_ptr() == place


def test_gradients_of_float32_are_autograds() -> None:
    p = drawn((64,), 0, torch.float32).requires_grad_()
    AdamW([p], 1e-2)
    for seed in (1, 2, 3):
        p.backward(drawn((64,), seed, torch.float32))
    assert torch.equal(p.grad, sum(drawn((64,), seed, torch.float32) for seed in (1, 2, 3)))


def test_moments_can_be_made_before_the_first_step() -> None:
    """Of what is trained; and they change nothing."""
    params = [drawn((64,), 0, torch.bfloat16).requires_grad_(trains) for trains in (True, False)]
    twin = params[0].detach().clone().requires_grad_()
    early, late = AdamW(params, 1e-2), AdamW([twin], 1e-2)
    early.make_moments()
    assert [p in early.state for p in params] == [True, False]
    for p, optimizer in ((params[0], early), (twin, late)):
        for seed in (1, 2):
            p.backward(drawn((64,), seed, torch.bfloat16))
        optimizer.step()
    assert same(params[0].detach(), twin.detach())


# --- refusals ---


def test_what_does_not_fit_is_refused() -> None:
    for p, message in (
        (torch.zeros(2, dtype=torch.float16), "float32 or bfloat16, got torch.float16"),
        (torch.zeros(2, dtype=torch.float64), "float32 or bfloat16, got torch.float64"),
        (torch.zeros(2, 3).T, r"contiguous parameters, got \(3, 2\) at \(1, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AdamW([p], 1e-3)
    for options in (
        {"lr": -1.0},
        {"lr": NAN},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"seed": -1},
        {"seed": 2**63},
    ):
        with pytest.raises(ValueError, match=r"expected lr >= 0, betas in \[0, 1\)"):
            AdamW([torch.zeros(2)], **{"lr": 1e-3, **options})
    with pytest.raises(ValueError, match="expected no closure"):
        AdamW([torch.zeros(2)], 1e-3).step(lambda: None)


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, BLOCK, BLOCK + 7])
def test_that_the_kernel_was_launched_and_moved_each_number_once(n: int, dtype: torch.dtype) -> None:
    """Else the run under the interpreter would prove nothing. p, g, m, v are read, p, m, v written."""
    assert type(adamw._adamw).__name__ == "InterpretedFunction"
    p = with_gradient(torch.zeros(n, dtype=dtype))
    with traffic() as moved:
        run([p], 1)
    assert moved == [7 * p.nbytes]
    assert {case.excess for case in report.cases() if case.name.startswith("adamw")} == {1.0}


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
