"""The rotation of queries and keys, on every path, against float64 truth, and what it writes into a cache."""

import pytest
import torch
from kernel_cases import (
    needs_triton,
    not_interpreted,
    on_every_device,
    only_interpreted,
    poisoned,
    traffic,
    under_the_interpreter,
)
from torch import Tensor

from rar_mini.kernels import rope
from rar_mini.kernels.backend import INTERPRET, plain
from rar_mini.kernels.rope import rotate, rotate_into

# One token of one head, heads that are no multiple of a program's, widths that are no power of two.
SHAPES = [(1, 1, 1, 2), (7, 14, 2, 64), (3, 9, 3, 10), (5, 28, 4, 128)]  # T, H, KV, d
CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
CASES.append((SHAPES[2], torch.float16))


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """q, k, v, and cos and sin as model.py makes them."""
    T, H, KV, d = shape
    random = torch.Generator().manual_seed(T * d)
    q, k, v = (torch.randn(T, heads, d, generator=random).to(device, dtype) for heads in (H, KV, KV))
    angles = 100 * torch.rand(T, 1, d // 2, generator=random)
    pairs = ([angles.cos()] * 2, [-angles.sin(), angles.sin()])
    return q, k, v, *(torch.cat(pair, -1).to(device, dtype) for pair in pairs)


def truth(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By complex numbers, in float64."""
    half = x.shape[-1] // 2
    turned = torch.complex(*x.double().cpu().split(half, -1))
    turned = turned * torch.complex(cos.double().cpu()[..., :half], sin.double().cpu()[..., half:])
    return torch.cat([turned.real, turned.imag], -1)


def gap(a: Tensor, b: Tensor) -> float:
    return (a.double().cpu() - b).abs().max().item()


@on_every_device
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_both_ways_it_errs_no_more_than_the_path_in_torch(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """The gradient is the rotation back. To the path's error comes a unit of the largest number."""
    q, k, _, cos, sin = inputs(shape, dtype, device)
    up = inputs((shape[0] + 1, *shape[1:]), dtype, device)[:2]
    up = [x[1:].transpose(0, 1).contiguous().transpose(0, 1) for x in up]  # as attention's gradients lie
    results = []
    for beside in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        if beside:
            with plain():
                out = rotate(*leaves, cos, sin)
        else:
            with poisoned():
                out = rotate(*leaves, cos, sin)
        with poisoned():
            results.append([*out, *torch.autograd.grad(out, leaves, up)])
    right = [truth(x, cos, sin) for x in (q, k)] + [truth(x, cos, -sin) for x in up]
    for ours, theirs, exact in zip(*results, right, strict=True):
        assert ours.dtype == dtype and ours.shape == exact.shape
        unit = torch.finfo(dtype).eps * exact.abs().max().item()
        assert gap(ours, exact) <= gap(theirs, exact) + unit


@on_every_device
def test_inputs_may_be_parts_of_one_product(device: str) -> None:
    """q, k and v side by side, as one matrix product makes them; and they are only read."""
    q, k, v, cos, sin = inputs((4, 4, 2, 16), torch.float32, device)
    whole = torch.cat([x.flatten(1) for x in (q, k, v)], -1)
    before = whole.clone()
    parts = (x.unflatten(-1, (-1, 16)) for x in whole.split([64, 32, 32], -1))
    for ours, right in zip(rotate(*list(parts)[:2], cos, sin), rotate(q, k, cos, sin), strict=True):
        assert torch.equal(ours, right)
    assert torch.equal(whole, before)


@on_every_device
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_a_cache_gets_what_a_rotation_makes(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """At the position that the device knows, and nowhere else; values as they are."""
    q, k, v, cos, sin = inputs(shape, dtype, device)
    (T, _, KV, d), place = shape, 2
    right_q, right_k = rotate(q, k, cos, sin)
    caches = [torch.full((T * KV, 5, d), 7.0, dtype=dtype, device=device) for _ in range(2)]
    with poisoned():
        got = rotate_into(q, k, v, cos, sin, *caches, torch.tensor([place], device=device))
    assert torch.equal(got, right_q)
    for cache, right in zip(caches, (right_k, v), strict=True):
        assert torch.equal(cache[:, place].view(T, KV, d), right)
        cache[:, place] = 7.0
        assert (cache == 7).all()


@not_interpreted
def test_on_a_cpu_it_is_what_it_was() -> None:
    """To the bit: a run that was begun before goes on with its numbers."""
    q, k, _, cos, sin = inputs((7, 14, 2, 64), torch.float32)
    right = [torch.addcmul(x * cos, x.roll(32, -1), sin) for x in (q, k)]
    assert all(map(torch.equal, rotate(q, k, cos, sin), right))


@only_interpreted
def test_each_number_is_read_and_written_once() -> None:
    """Beside the angles, which each program reads, and the position."""
    assert INTERPRET and type(rope._rotate).__name__ == "InterpretedFunction"
    T, H, KV, d = shape = (3, 9, 3, 10)
    q, k, v, cos, sin = inputs(shape, torch.float32)
    with traffic() as moved:
        rotate(q, k, cos, sin)
    assert moved == [4 * (2 * T * (H + KV) * d + T * 3 * d)]  # two programs for 9 heads, one for 3
    caches = [torch.zeros(T * KV, 5, d) for _ in range(2)]
    with traffic() as moved:
        rotate_into(q, k, v, cos, sin, *caches, torch.tensor([1]))
    assert moved == [4 * (2 * T * (H + 2 * KV) * d + T * 4 * d) + 8 * T * 4]


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
