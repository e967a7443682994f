"""One token a row by one uniform number, on every path: torch's choice, and a log-probability as exact.

The truth is in float64. Where two paths choose different tokens, the number has to lie where the two meet.
"""

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
    poisoned,
    traffic,
    under_the_interpreter,
    untouched,
)
from torch import Tensor

from rar_mini.kernels import backend
from rar_mini.kernels import draw as module
from rar_mini.kernels.backend import jit, tl
from rar_mini.kernels.draw import _exp, _passing_point, draw, reference

QWEN = 151_936
FEW = 3 if backend.INTERPRET else 24
"""Rows of a test. Interpreted, a slice takes 4 ms and a row 20: there the largest vocabulary is rarer."""


def normal(R: int, V: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(R, V, generator=torch.Generator().manual_seed(seed))


def numbers(R: int, seed: int = 0) -> Tensor:
    return torch.rand(R, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def true_cdf(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits.double() / temperature).softmax(-1).cumsum(-1)


def true_logp(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    logp = (logits.double() / (temperature or 1.0)).log_softmax(-1)
    return logp.gather(-1, tokens[:, None])[:, 0]


def from_truth(logits: Tensor, tokens: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """How far each number lies outside of what its token owns in the true distribution, (R,); 0 within it."""
    cdf = true_cdf(logits, temperature)
    above = cdf.gather(-1, tokens[:, None])[:, 0]
    below = torch.where(tokens > 0, cdf.gather(-1, (tokens - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    return torch.maximum(below - uniform, uniform - above).clamp_min(0)


# --- the token ---


@on_every_device
@pytest.mark.parametrize("temperature", [0.5] if backend.INTERPRET else [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float, device: str) -> None:
    """Inverse CDF on an even grid of numbers gives each token its share to within one in the grid."""
    n = 12 if backend.INTERPRET else 10_000
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]], device=device)
    grid = (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n
    tokens, logp = draw(logits.expand(n, -1), grid, temperature)
    share = torch.bincount(tokens, minlength=5) / n
    truth = (logits[0].double() / temperature).log_softmax(-1)
    assert (share - truth.exp()).abs().max() <= 1 / n
    assert logp.dtype == torch.float32 and (logp - truth[tokens]).abs().max() < 3e-7


@on_every_device
@pytest.mark.parametrize("V", [1, 259, 2047, 2048, 2049, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_are_those_of_one_running_sum(V: int, dtype: torch.dtype, device: str) -> None:
    """Blocks and slices are for speed alone. A token without mass is never drawn, even by the last number
    below 1."""
    logits = normal(FEW, V, 4, seed=V).to(dtype).to(device)
    if V > 3:
        logits[:, ::3] = logits[:, -2:] = -torch.inf
    uniform = torch.linspace(0, 0.999, FEW, dtype=torch.float64).to(device)
    with poisoned():
        tokens, logp = draw(logits, uniform)
    cdf = true_cdf(logits)
    assert torch.equal(tokens, torch.searchsorted(cdf, uniform[:, None], right=True)[:, 0])
    assert (logp - true_logp(logits, tokens)).abs().max() < 2e-6
    last = torch.full((1,), 1 - 2**-53, dtype=torch.float64, device=device)
    assert draw(logits[:1], last)[1].isfinite().all()


@on_every_device
@pytest.mark.parametrize("V", [255, 151_665])
def test_a_vocabulary_of_any_size_is_drawn_from_in_its_order(V: int, device: str) -> None:
    """Each token gets the numbers between the sum of those before it and its own."""
    logits = normal(1, V, 3)
    cdf = true_cdf(logits)[0]
    chosen = torch.tensor([0, V // 2, V - 1])
    below = torch.cat([torch.zeros(1, dtype=torch.float64), cdf])[chosen]
    point = (below + cdf[chosen]) / 2
    tokens, _ = draw(logits.to(device).expand(len(chosen), -1), point.to(device))
    assert tokens.tolist() == chosen.tolist()


@not_interpreted
@pytest.mark.parametrize(("V", "blocks"), [(255, 1), (259, 2), (32_064, 501), (151_665, 593), (152_064, 594)])
def test_the_references_blocks_are_few(V: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows: a size taken from the wrong axis would need no padding."""
    sums, made = module._sums, []
    monkeypatch.setattr(module, "_sums", lambda mass: made.append(sums(mass)) or made[-1])
    reference(torch.zeros(64, V), numbers(64), 1.0)
    assert made[0].shape[-1] == blocks


@on_every_device
def test_a_token_begins_where_the_one_before_it_ends(device: str) -> None:
    """A number equal to the sum of all tokens before one draws that one, within a slice and at its border."""
    for V, at, wanted in ((4, [0.0, 0.25, 0.5, 0.75], [0, 1, 2, 3]), (4096, [0.0, 0.5], [0, 2048])):
        uniform = torch.tensor(at, dtype=torch.float64, device=device)
        logits = torch.zeros(len(at), V, device=device)
        assert draw(logits, uniform)[0].tolist() == reference(logits, uniform, 1.0)[0].tolist() == wanted


@on_every_device
@pytest.mark.parametrize("likely", [70_000] if backend.INTERPRET else [0, 70_000])
def test_rare_tokens_of_a_large_vocabulary_are_drawn(likely: int, device: str) -> None:
    """Beside one token all others have 1e-10 each. In float32 a running sum that has come to 1 stays there:
    those behind the likely one, 1.5e-5 in all, would never be drawn."""
    logits = torch.full((1, QWEN), math.log(1e-10))
    logits[0, likely] = 0.0
    wanted = torch.tensor([5, 69_999, 70_001, QWEN - 1, 0, 127, 128, 70_000, 100_000][:FEW])
    mass = logits[0].exp().double()
    middles = ((mass.cumsum(0) - mass / 2) / mass.sum())[wanted]
    tokens, _ = draw(logits.to(device).expand(len(wanted), -1), middles.to(device))
    assert tokens.tolist() == wanted.tolist()


@on_every_device
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("spread", [0.3, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_paths_differ_the_number_lies_between_two_tokens(
    dtype: torch.dtype, spread: float, temperature: float, device: str
) -> None:
    """Numbers just where tokens meet, the hardest there are: the chosen token owns the number but for 1e-9 of
    the whole. That is the rounding of masses in float32, which the torch path has, too."""
    V, at = 6007, torch.tensor([0, 2046, 2047, 2048, 6004])
    logits = normal(1, V, spread).to(dtype).to(device)
    uniform = true_cdf(logits, temperature)[0][at.to(device)]
    rows = logits.expand(len(at), -1)
    for path in (draw, reference):
        tokens, _ = path(rows, uniform, temperature)
        assert from_truth(rows, tokens, uniform, temperature).max() <= 1e-9


@on_every_device
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_of_half_precision_are_read_in_float32(temperature: float, device: str) -> None:
    logits = normal(FEW, 999, 4).bfloat16().to(device)
    uniform = torch.linspace(0, 0.99, FEW, dtype=torch.float64).to(device)
    for half in (logits, logits.half()):
        for got, right in zip(
            draw(half, uniform, temperature), draw(half.float(), uniform, temperature), strict=True
        ):
            assert torch.equal(got, right)


@on_every_device
def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first(device: str) -> None:
    logits = normal(3, 5000).to(device)
    logits[0, 7] = logits[0, 4999] = 9.0
    logits[1, 2048] = logits[1, 2049] = 9.0
    tokens, logp = draw(logits, numbers(3).to(device), 0.0)
    assert tokens.tolist() == [7, 2048, logits[2].argmax()]
    assert (logp - true_logp(logits, tokens)).abs().max() < 1e-6


# --- its log-probability ---


@on_every_device
@pytest.mark.parametrize("spread", [3] if backend.INTERPRET else [1, 3])
def test_logp_errs_by_its_rounding_alone_at_the_largest_vocabulary(spread: int, device: str) -> None:
    """Of a number from 8 to 16 that is 4.8e-7. A log-softmax in float32 errs by 1e-6 and 2e-5."""
    logits = normal(24, QWEN, spread, seed=1)[-FEW:].to(device)
    tokens, logp = draw(logits, numbers(24, seed=1)[-FEW:].to(device))
    truth = true_logp(logits, tokens)
    assert (logp - truth).abs().max() < 5e-7 and -16 < truth.min() < -8


@on_every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logp_errs_no_more_than_torchs(temperature: float, dtype: torch.dtype, device: str) -> None:
    """But for half a unit in the last place, of the number itself and, where the temperature's inverse is no
    float32, of each logit times it. Torch multiplies by the inverse, too, on a GPU."""
    logits, uniform = normal(FEW, 5003, 3).to(dtype).to(device), numbers(FEW).to(device)
    tokens, ours = draw(logits, uniform, temperature)
    others, plain = reference(logits, uniform, temperature)
    assert torch.equal(tokens, others)
    truth = true_logp(logits, tokens, temperature)
    sizes = truth.abs().max() + (logits.abs().max() / temperature if temperature == 0.7 else 0)
    unit = torch.finfo(torch.float32).eps / 2 * sizes
    assert (ours - truth).abs().max() <= (plain - truth).abs().max() + unit


# --- what is broken, and what lies elsewhere ---


@on_every_device
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_a_broken_policy_does_not_stop_the_draw(temperature: float, device: str) -> None:
    """The loss is not a number then, and train.py says so, with what it came from. Rows beside it stay."""
    for V, bad in ((259, NAN), (2500, NAN), (2500, torch.inf)):
        logits = normal(4, V).to(device)
        logits[0], logits[1, 3], logits[2, V - 1] = bad, bad, bad
        uniform = torch.tensor([0.1, 0.9, 0.5, 0.5], dtype=torch.float64, device=device)
        tokens, logp = draw(logits, uniform, temperature)
        assert logp.isnan().tolist() == [True, True, True, False] and (tokens < V).all()
        assert torch.equal(tokens, reference(logits, uniform, temperature)[0])


@on_every_device
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_row_that_forbids_every_token_gets_one_and_no_logp(temperature: float, device: str) -> None:
    for V in (259, 2500):
        logits = normal(2, V).to(device)
        logits[0] = -torch.inf
        uniform = torch.tensor([0.5, 0.5], dtype=torch.float64, device=device)
        tokens, logp = draw(logits, uniform, temperature)
        assert logp.isnan().tolist() == [True, False] and (tokens < V).all()


@on_every_device
def test_slices_in_which_every_token_is_forbidden_weigh_nothing(device: str) -> None:
    """Without a finite maximum, -inf - -inf would be NaN."""
    logits = torch.full((3, 9000), -torch.inf, device=device)
    logits[:, 5000], logits[:, 8999] = 1.0, 1.0
    tokens, logp = draw(logits, torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64, device=device))
    assert tokens.tolist() == [5000, 5000, 8999]
    assert logp.tolist() == pytest.approx([-math.log(2)] * 3)


@on_every_device
def test_logits_of_any_size_neither_overflow_nor_vanish(device: str) -> None:
    logits = torch.full((2, 5000), -1e4, device=device)
    logits[0, 7] = logits[0, 4000] = 3e4
    tokens, logp = draw(logits, torch.tensor([0.7, 0.0], dtype=torch.float64, device=device), 0.5)
    assert tokens.tolist() == [4000, 0]
    assert logp.tolist() == pytest.approx([-math.log(2), -math.log(5000)])


@on_every_device
def test_logits_may_lie_anywhere_and_are_only_read(device: str) -> None:
    whole = normal(FEW, 3001).to(device)
    uniform = numbers(FEW).to(device)
    for logits in (whole[:, 1:], whole[:, :3000], whole[:, :3000].T.contiguous().T):
        before = logits.clone()
        for got, right in zip(draw(logits, uniform), reference(logits, uniform, 1.0), strict=True):
            torch.testing.assert_close(got, right, atol=1e-6, rtol=0)
        assert torch.equal(logits, before)


@on_every_device
def test_rows_may_lie_beyond_two_to_the_31(device: str) -> None:
    """Of (R, 151,936) logits row 14,134 does. Here the first columns of three rows of a buffer of which
    nothing else is ever touched."""
    V, apart = 4_097, 7_068
    logits = untouched(2 * apart + 1, QWEN, dtype=torch.bfloat16, device=device)[::apart, :V]
    assert logits.stride(0) * 2 > 2**31
    logits.copy_(normal(3, V))
    uniform = numbers(3).to(device)
    assert torch.equal(draw(logits, uniform)[0], reference(logits, uniform, 1.0)[0])


@not_interpreted
def test_rounding_draws_no_token_without_mass() -> None:
    """The number that is just where a block begins. Sums of masses as far apart as 1 and e^-30 are rounded,
    and what was left of it within its block was below 0: less than the first token's nothing."""
    mass = (-30 * torch.rand(1000, 512, generator=torch.Generator().manual_seed(0))).exp()
    mass[:, 256] = 0
    sums = module._sums(mass)
    cdf = sums.cumsum(-1)
    tokens = module._inverse(mass, sums, cdf[:, :1] / cdf[:, -1:])
    assert (mass.gather(-1, tokens) > 0).all() and (tokens > 256).any()


# --- the kernels alone ---


@jit
def powers(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, _exp(tl.load(x + i)))


@jit
def place(mass, point, out, N: tl.constexpr):
    tl.store(out, _passing_point(tl.load(mass + tl.arange(0, N)), tl.load(point), N))


@only_interpreted
def test_a_mass_errs_by_a_four_millionth() -> None:
    """That is two units in the last place just above a power of 2 and four just below: numpy's exp2 differs
    by processor. From e^-87 on, where float32 is still normal; below, 0."""
    x = torch.cat([torch.linspace(-87, 0, 1021), torch.tensor([-87.5, -100.0, -torch.inf])])
    y = torch.empty(1024)
    powers[(1,)](x, y, 1024)
    truth = x[:1021].double().exp()
    assert ((y[:1021] - truth) / truth).abs().max() < 2.4e-7 and y[1021:].tolist() == [0, 0, 0]


@only_interpreted
@pytest.mark.parametrize(
    ("mass", "point", "wanted"),
    [
        ([1, 0, 0, 0], 0.5, 0),
        ([1, 0, 0, 0], 1.0, 0),  # rounding has let the point reach the end
        ([0, 1, 0, 0], 0.0, 1),
        ([0, 1, 0, 0], -1e-17, 1),  # or left it below the start of its slice
        ([0, 1, 1, 0], 1.0, 2),
        ([0, 1, 1, 0], 2.5, 2),
    ],
)
def test_a_point_is_passed_by_a_token_that_has_mass(mass: list[float], point: float, wanted: int) -> None:
    at = torch.empty(1, dtype=torch.int64)
    place[(1,)](torch.tensor(mass, dtype=torch.float64), torch.tensor([point], dtype=torch.float64), at, 4)
    assert at.item() == wanted


@only_interpreted
def test_that_kernels_were_launched_and_read_each_logit_once() -> None:
    """Else the run under the interpreter would prove nothing. One slice and the chosen logit are read again;
    a slice leaves 12 bytes behind, read by the second launch, with the top of the chosen one once more."""
    assert type(module._slices).__name__ == "InterpretedFunction"
    R, V = 3, 5000
    logits = torch.zeros(R, V)
    logits[:, 7] = 99.0  # in the first slice, which is whole
    with traffic() as moved:
        draw(logits, numbers(R))
    parts = torch.zeros(R, 3), torch.zeros(R, 3, dtype=torch.float64)  # of three slices
    names, results = ("tops", "totals", "uniform", "tokens", "logp"), (torch.zeros(R, dtype=torch.int64),) * 2
    given = {"logits": logits} | dict(zip(names, (*parts, *results, torch.zeros(R)), strict=True))
    assert moved == [R * (4 * V + 12 * 3) + module.moved("_choose", given)]
    assert moved == [R * (4 * V + 2 * 12 * 3 + 4 * module.BLOCK + 4 + 4 + 8 + 8 + 4)]


@only_interpreted
def test_only_what_fits_is_launched_and_only_strided_rows_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: list[Tensor] = []

    def launch(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        launched.append(logits)
        return reference(logits, *rest)

    monkeypatch.setattr(module, "_launch", launch)
    most = module.SLICES * module.BLOCK
    for V in (most, most + 1):
        draw(torch.zeros(1, V), numbers(1))
    assert [logits.shape[1] for logits in launched] == [most]
    whole = torch.zeros(3, 99)
    for logits in (whole, whole[:, 1:]):
        draw(logits, numbers(3))
        assert launched[-1] is logits
    draw(whole.T.contiguous().T, numbers(3))
    assert launched[-1].is_contiguous()


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
