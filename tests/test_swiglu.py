"""SwiGLU and the product behind it, on every path, against float64 truth, and their gradients.

The yardstick is the error of plain torch in the same dtype.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import (
    needs_triton,
    not_interpreted,
    on_every_device,
    only_interpreted,
    poisoned,
    programs_from,
    traffic,
    under_the_interpreter,
    untouched,
)
from torch import Tensor

from rar_mini.kernels import swiglu as module
from rar_mini.kernels.swiglu import reference, swiglu, swiglu_linear

# One below and one above a tile, widths that are no power of two.
SHAPES = [(1, 1023), (5, 205), (3, 1536), (2, 18_944)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTH = 7


def inputs(N: int, width: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """gate, up and weight."""
    generator = torch.Generator().manual_seed(N * width)
    gate, up, weight = (torch.randn(n, width, generator=generator) for n in (N, N, WIDTH))
    return [x.to(device, dtype) for x in (3 * gate, up, weight / width**0.5)]


def differentiated(fn: Any, given: list[Tensor]) -> list[Tensor]:
    """What a function makes of its inputs, and their gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = fn(*leaves)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, up)]


def plain(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.silu(gate) * up, weight)


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "width"), SHAPES)
def test_errs_no_more_than_plain_torch(N: int, width: int, dtype: torch.dtype, device: str) -> None:
    """With the product behind it and without. Beside that, half a rounding of float32 and a fiftieth of one
    in the dtype."""
    given = inputs(N, width, dtype, device)
    for fn, naive, count in ((swiglu_linear, plain, 3), (swiglu, reference, 2)):
        with poisoned():
            got = differentiated(fn, given[:count])
        theirs = differentiated(naive, given[:count])
        right = differentiated(naive, [x.double() for x in given[:count]])
        for ours, their, truth in zip(got, theirs, right, strict=True):
            assert ours.dtype == dtype
            room = 0.5 * torch.finfo(torch.float32).eps + 0.02 * torch.finfo(dtype).eps
            assert (ours - truth).norm() <= (their - truth).norm() + room * truth.norm()


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounds_where_torch_rounds(dtype: torch.dtype, device: str) -> None:
    """silu(gate) to the inputs' dtype before it meets `up`. An exponential that is off by its last bit tips
    one number in a thousand over."""
    gate, up, _ = inputs(20, 1536, dtype, device)
    right = reference(gate, up)
    assert (swiglu(gate, up) != right).double().mean() <= 1e-3
    late = (F.silu(gate.float()) * up.float()).to(dtype)
    assert (late != right).double().mean() > 0.1


@on_every_device
def test_gates_of_any_size_neither_overflow_nor_vanish(device: str) -> None:
    gate = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=device)
    out, dgate, dup = differentiated(swiglu, [gate, torch.ones_like(gate)])
    assert (
        out.tolist() == pytest.approx([0, 0, 0, 90, 1e4]) and dgate.isfinite().all() and dup.isfinite().all()
    )


@on_every_device
def test_inputs_may_lie_anywhere_and_there_may_be_none(device: str) -> None:
    gate, up, weight = inputs(6, 96, torch.float32, device)
    right = differentiated(plain, [gate, up, weight])
    turned = [gate.T.contiguous().T, up.T.contiguous().T, weight.T.contiguous().T]
    for ours, theirs in zip(differentiated(swiglu_linear, turned), right, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert swiglu_linear(gate[:0], up[:0], weight).shape == (0, WIDTH)


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize("n", [1, 1024, 2500])
def test_that_each_number_moves_once(n: int) -> None:
    gate, up, dy = torch.randn(3, n).bfloat16()
    with traffic() as moved:
        module.product(gate, up)
    assert moved == [6 * n]
    for again, size in ((False, 10), (True, 12)):
        with traffic() as moved:
            module.gradients(dy, gate, up, again=again)
        assert moved == [size * n]


@only_interpreted
@pytest.mark.parametrize("learns", [True, False])
def test_that_the_product_is_not_kept(learns: bool) -> None:
    gate, up, weight = inputs(5, 96, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)), lambda x: x):
        swiglu_linear(gate.requires_grad_(), up, weight.requires_grad_(learns))
    assert kept == [(5, 96), (5, 96), (WIDTH, 96)]


@only_interpreted
def test_numbers_may_lie_beyond_two_to_the_31() -> None:
    n = 2**31 + 1024
    gate, up, y = (untouched(n, dtype=torch.bfloat16) for _ in range(3))
    for x in (gate, up):
        x[-1024:] = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    with programs_from(2**21):
        module._swiglu_forward[(1,)](gate, up, y, n, module.BLOCK)
    assert torch.equal(y[-1024:], reference(gate[-1024:], up[-1024:]))


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
