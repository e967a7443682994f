"""Log-probabilities and entropies from hidden states, on every path, against float64 truth.

The yardstick is the error of the naive form in the same dtype. A relative tolerance of a half would pass a
kernel that is half wrong.
"""

import math
from functools import partial
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rar_mini.kernels import bench, report
from rar_mini.kernels import logprob as module
from rar_mini.kernels.logprob import linear_logprob, logprob, plain

# One row, a prime number of rows, tiny and odd vocabularies, one below, at and above a tile, several tiles.
SHAPES = [(1, 8, 5), (3, 4, 1), (7, 16, 97), (2, 8, 2047), (2, 8, 2048), (13, 8, 2049), (5, 8, 8191)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(N: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden, weight, and targets that include the first and the last token of the vocabulary."""
    generator = torch.Generator().manual_seed(N * V + D)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    target = torch.randint(V, (N,), generator=generator)
    target[0], target[-1] = 0, V - 1
    return hidden, weight, target


def of_logits(logits: Tensor, target: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What one would write, in the dtype of the logits; in float64 it is the truth."""
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def gap(a: Tensor, b: Tensor) -> float:
    return (a.double().cpu() - b.double().cpu()).abs().max().item()


# --- forward ---


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D", "V"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_logprob_errs_no_more_than_the_naive_form(
    N: int, D: int, V: int, temperature: float, dtype: torch.dtype, device: str
) -> None:
    """To the naive error comes half a unit in the last place of the largest logit: a product in that dtype
    cannot avoid it, and where there is one row alone the naive form may have had luck."""
    hidden, weight, target = (x.to(device) for x in inputs(N, D, V, dtype))
    exact = of_logits(hidden.double() @ weight.double().T, target, temperature)
    naive = of_logits(hidden @ weight.T, target, temperature)
    with poisoned():
        got = linear_logprob(hidden, weight, target, temperature=temperature)
    rounding = torch.finfo(dtype).eps / 2 * (hidden @ weight.T).abs().max().item() / temperature
    for ours, theirs, right in zip(got, naive, exact, strict=True):
        assert ours.dtype == torch.float32
        assert gap(ours, right) <= gap(theirs, right) + rounding


@on_every_device
@pytest.mark.parametrize(
    ("N", "V", "dtype"),
    [(2, 151_936, torch.float32), (2, 151_937, torch.bfloat16), (1, 262_144, torch.bfloat16)],
)
def test_the_vocabularies_of_qwen_and_gemma_and_one_more(
    N: int, V: int, dtype: torch.dtype, device: str
) -> None:
    """Forward and backward, bounded as above: by half a unit of the largest logit, a unit of the gradient."""
    hidden, weight, target = (x.to(device) for x in inputs(N, 4, V, dtype))
    rounding = torch.finfo(dtype).eps / 2 * (hidden @ weight.T).abs().max().item() / 0.7
    got = differentiated(lambda h, w: linear_logprob(h, w, target, temperature=0.7), [hidden, weight])
    naive, exact = (
        differentiated(lambda h, w: of_logits(h @ w.T, target, 0.7), [x.to(wide) for x in (hidden, weight)])
        for wide in (dtype, torch.float64)
    )
    for ours, theirs, right in zip(got[0], naive[0], exact[0], strict=True):
        assert gap(ours, right) <= gap(theirs, right) + rounding
    for ours, theirs, right in zip(got[1], naive[1], exact[1], strict=True):
        unit = torch.finfo(dtype).eps * right.norm()
        assert (ours - right).norm() <= (theirs - right).norm() + unit


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_exist_are_read_in_float32(dtype: torch.dtype, device: str) -> None:
    """A log-softmax in bfloat16 errs by 3e-2. Reading bfloat16 logits need err no more than float32 does."""
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(6, 4099, generator=generator)).to(dtype).to(device)
    target = torch.tensor([0, 4098, 1, 2, 3, 4], device=device)
    before = logits.clone()
    with poisoned():
        got = logprob(logits, target, temperature=0.5)
    right = (*of_logits(logits.double(), target, 0.5), (logits.double() / 0.5).logsumexp(-1))
    for ours, truth in zip(got, right, strict=True):
        assert gap(ours, truth) <= 1e-5  # logits reach 60: two units in the last place
    assert torch.equal(logits, before)


@on_every_device
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_of_any_size_neither_overflow_nor_vanish(temperature: float, device: str) -> None:
    """Measured from anything but the largest one over the temperature, e^x is infinite or 0 for all."""
    logits = torch.full((3, 5000), -1e4, device=device)
    logits[:, 7], logits[1, 4999], logits[2] = 1e4, 1e4, -3e4
    target = torch.full((3,), 7, device=device)
    logp, entropy, lse = logprob(logits, target, temperature=temperature)
    alike = [0.0, math.log(2), math.log(5000)]
    assert entropy.tolist() == pytest.approx(alike, abs=1e-5)
    assert logp.tolist() == pytest.approx([-x for x in alike], abs=1e-5)
    largest = [x / temperature for x in (1e4, 1e4, -3e4)]
    assert lse.tolist() == pytest.approx([x + y for x, y in zip(largest, alike, strict=True)], rel=1e-6)
    ones, none = torch.ones_like(logp), torch.zeros_like(logp)
    module.gradient_(logits, target, lse, entropy, ones, none, scale=1 / temperature)
    right = torch.zeros(3, 5000, device=device)
    right[1, 7], right[1, 4999] = 0.5, -0.5
    right[2], right[2, 7] = -1 / 5000, 1 - 1 / 5000
    torch.testing.assert_close(logits, right / temperature, atol=2e-3, rtol=0)


@on_every_device
def test_forbidden_tokens_weigh_nothing(device: str) -> None:
    """Where a logit is -inf, p log p is 0, and so is the gradient: not 0 * -inf."""
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0), device="cpu")
    logits[0, 5:4990] = -torch.inf
    logits[1, :4999] = -torch.inf
    target = torch.tensor([4999, 4999, 0])
    got, target = logits.to(device), target.to(device)
    logp, entropy, lse = logprob(got, target)
    leaf = logits.double().to(device).requires_grad_()
    log_p = leaf.log_softmax(-1).masked_fill(leaf.isinf(), 0.0)
    right = log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    assert gap(logp, right[0].detach()) <= 1e-5 and gap(entropy, right[1].detach()) <= 1e-5
    module.gradient_(got, target, lse, entropy, torch.ones_like(lse), 2 * torch.ones_like(lse), scale=1.0)
    (slope,) = torch.autograd.grad((right[0] + 2 * right[1]).sum(), leaf)
    assert gap(got, slope) <= 1e-5
    assert not got[logits.isinf().to(device)].any()


@on_every_device
def test_a_logit_that_is_nan_spoils_its_own_row_only(device: str) -> None:
    """Maxima ignore NaN on a GPU, so that a broken model could look healthy."""
    logits = torch.zeros(3, 3000, device=device)
    logits[1, 2500] = NAN
    target = torch.zeros(3, dtype=torch.int64, device=device)
    logp, entropy, lse = logprob(logits, target)
    module.gradient_(logits, target, lse, entropy, logp.new_ones(3), logp.new_zeros(3), scale=1.0)
    for column in (logp, entropy, lse, *logits.T):
        assert column.isnan().tolist() == [False, True, False]


@on_every_device
def test_rows_may_lie_beyond_two_to_the_31(device: str) -> None:
    """Of (N, 151,936) logits row 14,134 does. Here the first columns of rows 0, 7,068 and 14,136, of a buffer
    of which nothing else is ever touched; read, and overwritten with their gradient."""
    V, apart = 4_097, 7_068
    buffer = untouched(2 * apart + 1, 151_936, dtype=torch.bfloat16, device=device)
    logits = buffer[::apart, :V]
    assert logits.stride(0) * 2 > 2**31
    logits.copy_(torch.randn(3, V, generator=torch.Generator().manual_seed(0)))
    target = torch.tensor([0, 50, V - 1], device=device)
    leaf = logits.double().requires_grad_()
    exact = of_logits(leaf, target)
    logp, entropy, lse = logprob(logits, target)
    assert gap(logp, exact[0].detach()) <= 1e-5 and gap(entropy, exact[1].detach()) <= 1e-5
    weights = [torch.tensor(x, device=device) for x in ([1.0, -2.0, 3.0], [0.5, 0.5, -0.5])]
    (right,) = torch.autograd.grad(sum((a * x).sum() for a, x in zip(weights, exact, strict=True)), leaf)
    module.gradient_(logits, target, lse, entropy, *weights, scale=1.0)
    assert (logits - right).norm() <= torch.finfo(torch.bfloat16).eps * right.norm()


class Copies(TorchDispatchMode):
    """Counts copies into another layout."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **kwargs or {})


@on_every_device
def test_logits_may_lie_anywhere(device: str) -> None:
    """An odd stride, a first logit at no multiple of 16 bytes, columns for rows, one row for all. Only where
    the logits of a row lie apart are they copied."""
    whole = torch.randn(5, 3001, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.tensor([0, 2999, 7, 8, 9], device=device)
    for logits, copies in (
        (whole[:, 1:], 0),
        (whole[:, :3000], 0),
        (whole[:, :3000].T.contiguous().T, 1),
        (whole[:1, 1:].expand(5, -1), 0),
    ):
        with Copies() as made:
            got = logprob(logits, target)
        assert made.count == copies
        for ours, right in zip(got, of_logits(logits.double(), target), strict=False):
            assert gap(ours, right) <= 1e-5


@on_every_device
def test_hidden_states_and_targets_may_lie_anywhere_too(device: str) -> None:
    """And what is given is only read."""
    hidden, weight, target = (x.to(device) for x in inputs(7, 16, 97))
    right = gradients(lambda h, w: linear_logprob(h, w, target), [hidden, weight])
    doubled = torch.stack([target, target], 1)[:, 0]
    for h, w in ((hidden.T.contiguous().T, weight), (hidden, weight.T.contiguous().T)):
        before = [x.clone() for x in (h, w, doubled)]
        got = gradients(lambda h, w: linear_logprob(h, w, doubled, chunk_bytes=2 * 112 * 4), [h, w])
        for ours, theirs in zip(got, right, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(x, y) for x, y in zip((h, w, doubled), before, strict=True))


# --- backward ---


def differentiated(fn: Any, leaves: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both outputs, and the gradients of a random mix of them, in which every third entropy is left out."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    logp, entropy = fn(*leaves)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(len(logp), generator=generator).to(logp) for _ in range(2))
    b[1::3] = 0
    found = torch.autograd.grad((a * logp).sum() + (0.5 * b * entropy).sum(), leaves)
    return (logp.detach(), entropy.detach()), found


def gradients(fn: Any, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return differentiated(fn, leaves)[1]


@on_every_device
@pytest.mark.parametrize("chunk_bytes", [2**28, 1], ids=["one chunk", "a row a chunk"])
@pytest.mark.parametrize(("N", "D", "V"), [s for s in SHAPES if s[2] > 1])
def test_gradients_through_both_outputs(N: int, D: int, V: int, chunk_bytes: int, device: str) -> None:
    """With kept logits and with logits that are computed again."""
    hidden, weight, target = (x.to(device) for x in inputs(N, D, V))
    leaves = [hidden, weight]
    before = [x.clone() for x in leaves]
    exact = gradients(lambda h, w: of_logits(h @ w.T, target, 0.7), [x.double() for x in leaves])
    with poisoned():
        got = gradients(
            lambda h, w: linear_logprob(h, w, target, temperature=0.7, chunk_bytes=chunk_bytes), leaves
        )
    for ours, right in zip(got, exact, strict=True):
        assert (ours - right).norm() <= 5e-6 * right.norm() + 1e-7  # the naive form errs by 3.5e-6
    for now, then in zip(leaves, before, strict=True):
        assert torch.equal(now, then), "inputs are only read"


@on_every_device
@pytest.mark.parametrize("chunk_bytes", [2**28, 2**13], ids=["one chunk", "two rows a chunk"])
def test_gradients_in_bfloat16_err_no_more_than_the_naive_form(chunk_bytes: int, device: str) -> None:
    """Added up in bfloat16, chunk by chunk, the weight's gradient would drown in rounding."""
    *leaves, target = (x.to(device) for x in inputs(19, 16, 1999, torch.bfloat16))
    exact = gradients(lambda h, w: of_logits(h @ w.T, target), [x.double() for x in leaves])
    naive = gradients(lambda h, w: of_logits(h @ w.T, target), leaves)
    got = gradients(lambda h, w: linear_logprob(h, w, target, chunk_bytes=chunk_bytes), leaves)
    for ours, theirs, right in zip(got, naive, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        unit = torch.finfo(torch.bfloat16).eps * right.norm()
        assert (ours - right).norm() <= (theirs - right).norm() + unit


@on_every_device
def test_a_total_of_many_chunks_is_not_rounded_at_each(device: str) -> None:
    """40 rows, each a chunk, pull one token up by 3.75. From 64 on a bfloat16 goes by halves, from 128 by
    whole steps, and would come to 155."""
    hidden, weight = (torch.ones(n, 1, dtype=torch.bfloat16, device=device) for n in (40, 4))
    target = torch.zeros(40, dtype=torch.int64, device=device)
    logp, _ = linear_logprob(hidden, weight.requires_grad_(), target, chunk_bytes=1)
    (got,) = torch.autograd.grad(5 * logp.sum(), weight)
    assert got[:, 0].tolist() == [150, -50, -50, -50]


@on_every_device
@pytest.mark.parametrize("chunk_bytes", [2**28, 1])
def test_gradients_by_finite_differences(chunk_bytes: int, device: str) -> None:
    """In float64, which the kernels take too; the temperature is one that float32 holds exactly. Fast:
    along a random direction, not along every axis."""
    hidden, weight, target = (x.to(device) for x in inputs(3, 2, 7))
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, target, temperature=0.5, chunk_bytes=chunk_bytes),
        [x.double().requires_grad_() for x in (hidden, weight)],
        fast_mode=True,
    )


@on_every_device
def test_only_what_is_asked_for_is_differentiated(device: str) -> None:
    hidden, weight, target = (x.to(device) for x in inputs(4, 8, 33))
    both = gradients(lambda h, w: linear_logprob(h, w, target), [hidden, weight])
    (alone,) = gradients(lambda h: linear_logprob(h, weight, target), [hidden])
    (other,) = gradients(lambda w: linear_logprob(hidden, w, target), [weight])
    assert torch.equal(both[0], alone) and torch.equal(both[1], other)
    assert not any(x.requires_grad for x in linear_logprob(hidden, weight, target))


@on_every_device
def test_a_graph_can_be_differentiated_twice(device: str) -> None:
    """The backward pass overwrites the logits that were kept: a second one must not read what they became."""
    hidden, weight, target = (x.to(device) for x in inputs(5, 8, 33))
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = linear_logprob(*leaves, target)[0].sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


# --- memory and time ---


@not_interpreted
@pytest.mark.filterwarnings("error")  # torch warns of a product that does not fit its chunk, and makes room
@pytest.mark.parametrize(("chunk_bytes", "times"), [(2**20, 2), (1280, 3)], ids=["one chunk", "three"])
def test_logits_are_computed_again_only_where_they_were_not_kept(chunk_bytes: int, times: int) -> None:
    """In one chunk 2 N V D operations forward and as many for the gradient of hidden; in more, the first two
    again. 13 rows go in chunks of 5, 5 and 3."""
    hidden, weight, target = inputs(13, 4, 50)
    hidden.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        linear_logprob(hidden, weight, target, chunk_bytes=chunk_bytes)[0].sum().backward()
    assert counter.get_total_flops() == times * 2 * 13 * 50 * 4


@pytest.mark.parametrize(
    ("N", "V", "chunk_bytes", "rows"), [(13, 50, 1280, 5), (16, 64, 256 * 16, 16), (3, 9, 1, 1)]
)
def test_a_chunk_keeps_to_its_budget(
    N: int, V: int, chunk_bytes: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 rows of 50, which stand 64 apart: 5 fit into 1,280 bytes, and three chunks of them hold all. What
    is not told a budget takes the device's, and one that has none that of a CPU."""
    seen = []
    real = module._buffer
    monkeypatch.setattr(module, "_buffer", lambda *x: seen.append(real(*x)) or seen[-1])
    hidden, weight, target = inputs(N, 4, V)
    linear_logprob(hidden, weight, target, chunk_bytes=chunk_bytes)
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", chunk_bytes)
    linear_logprob(hidden, weight, target)
    linear_logprob(hidden.to("meta"), weight.to("meta"), target)
    assert [len(x) for x in seen] == [rows] * 3


def test_budgets_are_what_the_file_says() -> None:
    assert module.CHUNK_BYTES["cpu"] // (49_152 * 4) == 1_365
    assert module.CHUNK_BYTES["cuda"] // (151_936 * 2) == 3_533
    assert module.SLICE * 4 == 2 * 2**20


@not_interpreted
@pytest.mark.parametrize(
    ("V", "rows"), [(97, [5]), (2**17, [4, 1]), (2**18 + 1, [1] * 5), (2**19 + 1, [1] * 5)]
)
def test_the_torch_path_goes_by_as_many_rows_as_its_slice_holds(
    V: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer would be slower, and more would leave a core's cache; no vocabulary is too large for one."""
    seen: dict[str, list[int]] = {"reference": [], "reference_gradient": []}
    for name, sizes in seen.items():
        real = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda x, *rest, real=real, sizes=sizes, **k: sizes.append(len(x)) or real(x, *rest, **k),
        )
    logits, target = torch.zeros(5, V), torch.zeros(5, dtype=torch.int64)
    logp, entropy, lse = logprob(logits, target)
    module.gradient_(logits, target, lse, entropy, logp, entropy, scale=1.0)
    assert seen == {"reference": rows, "reference_gradient": rows}


def policy_loss(fn: Any, leaves: list[Tensor], target: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(fn(*leaves, target)[0].sum(), leaves)


@not_interpreted
def test_peak_memory_is_one_chunk_and_the_gradients() -> None:
    N, D, V = 512, 16, 20_000
    hidden, weight, target = inputs(N, D, V)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    ours = bench.peak_bytes(
        partial(policy_loss, partial(linear_logprob, chunk_bytes=2**22), leaves, target), "cpu"
    )
    held = 2**22 + hidden.nbytes + weight.nbytes
    # Beside the chunk, two temporaries of the torch path, each the size of a slice.
    assert held <= ours <= held + 2 * 4 * module.SLICE + 2**18
    naive = bench.peak_bytes(partial(policy_loss, plain, leaves, target), "cpu")
    assert naive >= 3 * N * V * 4


@not_interpreted
def test_in_bfloat16_a_sum_in_float32_is_held_where_there_are_chunks() -> None:
    """V D (4 + s) bytes, as the file says; and none of it where one chunk holds all rows."""
    N, D, V = 52, 64, 20_000
    leaves = [x.requires_grad_() for x in inputs(N, D, V, torch.bfloat16)[:2]]
    target = torch.zeros(N, dtype=torch.int64)
    results, slack = sum(x.nbytes for x in leaves), 2 * 4 * module.SLICE + 2**18
    for budget, rows, total in ((2**20, 26, V * D * (4 + 2)), (2**22, 52, 0)):
        run = partial(policy_loss, partial(linear_logprob, chunk_bytes=budget), leaves, target)
        held = rows * V * 2 + total + results
        assert held - V * D * 2 <= bench.peak_bytes(run, "cpu") <= held + slack


@not_interpreted
@pytest.mark.slow
def test_at_full_size_memory_is_an_eighth() -> None:
    """N = 4,096, D = 576, V = 49,152, float32. Needs 4 GB for the plain path."""
    N, D, V = 4096, 576, 49_152
    leaves = [x.requires_grad_() for x in (torch.randn(N, D), torch.randn(V, D) / D**0.5)]
    paths = (partial(policy_loss, fn, leaves, torch.randint(V, (N,))) for fn in (linear_logprob, plain))
    ours, naive = (bench.peak_bytes(run, "cpu") - sum(x.nbytes for x in leaves) for run in paths)
    assert 8 * ours <= naive, f"beyond inputs and gradients {ours / 2**20:.0f} MiB, plain {naive / 2**20:.0f}"


# --- refusals ---


@pytest.mark.parametrize("bad", [[-1, 0], [0, 9]])
def test_targets_outside_the_vocabulary_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"targets in \[0, 9\), got"):
        logprob(torch.zeros(2, 9), torch.tensor(bad))
    with pytest.raises(ValueError, match=r"targets in \[0, 9\), got"):
        linear_logprob(torch.zeros(2, 4), torch.zeros(9, 4), torch.tensor(bad))


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, target = inputs(2, 4, 9)
    for wrong, message in (
        ((hidden, weight[:, :3], target), r"expected hidden \(N, D\) with N >= 1 and weight \(V, D\)"),
        ((hidden[:0], weight, target[:0]), "N >= 1"),
        ((hidden, weight.bfloat16(), target), "for both, got torch.float32 for hidden"),
        ((hidden.half(), weight.half(), target), "bfloat16, float32 or float64 for both, got torch.float16"),
        ((hidden, weight, target[:1]), r"expected target \(2,\)"),
        ((hidden, weight, target.int()), "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_logprob(*wrong)
    for logits in (torch.zeros(9), torch.zeros(0, 9)):
        with pytest.raises(ValueError, match=r"expected logits \(N, V\) with N >= 1"):
            logprob(logits, target)
    for temperature in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="temperature"):
            linear_logprob(hidden, weight, target, temperature=temperature)


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize("V", [1, 2048, 5000])
def test_that_kernels_were_launched_and_read_each_logit_once(V: int) -> None:
    """Else the run under the interpreter would prove nothing. Forward, the target's logit is read twice."""
    assert type(module._statistics).__name__ == "InterpretedFunction"
    logits, target = torch.randn(3, V), torch.zeros(3, dtype=torch.int64)
    with traffic() as moved:
        logprob(logits, target)
    assert moved == [3 * (4 * V + 8 + 4 + 3 * 4)]
    columns = [torch.zeros(3) for _ in range(4)]
    with traffic() as moved:
        module.gradient_(logits, target, *columns, scale=1.0)
    assert moved == [3 * (8 * V + -(-V // module.BLOCK) * (8 + 4 * 4))]


@only_interpreted
def test_that_the_table_of_resources_counts_bytes_alike() -> None:
    excess = {case.name: case.excess for case in report.cases()}
    V = 151_936
    target = torch.zeros(1, dtype=torch.int64)
    logits = torch.zeros(1, V, dtype=torch.bfloat16)
    with traffic() as moved:
        logprob(logits, target)
    assert moved[0] / (2 * V + 20) == pytest.approx(excess["logprob forward bf16"], abs=1e-9)
    with traffic() as moved:
        module.gradient_(logits, target, *[torch.zeros(1) for _ in range(4)], scale=1.0)
    assert moved[0] / (4 * V + 24) == pytest.approx(excess["logprob backward bf16"], abs=1e-9)


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
