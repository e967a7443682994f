"""RMSNorm with the sum before it, on every path, against float64 truth, and its gradients.

The yardstick is the error of plain torch in the same dtype.
"""

from typing import Any

import pytest
import torch
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

from rar_mini.kernels import norm as module
from rar_mini.kernels import report
from rar_mini.kernels.norm import add_rms_norm, late, plain, reference, rms_norm

# One row; widths that are no power of two, from a head's to the model's; more rows than a program adds up, in
# numbers that no tile divides.
SHAPES = [(1, 576), (67, 64), (37, 96), (33, 1536), (3, 3584)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5


def inputs(N: int, D: int, dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """x, delta and weight; and what comes back for the sum and for its norm."""
    generator = torch.Generator().manual_seed(N * D)
    drawn = [torch.randn(N, D, generator=generator) for _ in range(4)]
    weight = 1 + 0.2 * torch.randn(D, generator=generator)
    x, delta, *ups = (each.to(device, dtype) for each in drawn)
    return [x, delta, weight.to(device, dtype)], ups


def differentiated(fn: Any, given: list[Tensor], ups: list[Tensor]) -> list[Tensor]:
    """What a function makes of x, delta and weight, and the three gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = fn(*leaves, EPS)
    return [*(x.detach() for x in out), *torch.autograd.grad(out, leaves, ups)]


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D"), SHAPES)
def test_errs_no_more_than_plain_torch(N: int, D: int, dtype: torch.dtype, device: str) -> None:
    """In the sum, its norm and all gradients. Beside that, half a rounding of float32, in which sums
    go in another order, and a fiftieth of one in the dtype."""
    given, ups = inputs(N, D, dtype, device)
    before = [x.clone() for x in (*given, *ups)]
    with poisoned():
        got = differentiated(add_rms_norm, given, ups)
    naive = differentiated(plain, given, ups)
    right = differentiated(late, [x.double() for x in given], [x.double() for x in ups])
    for ours, theirs, truth in zip(got, naive, right, strict=True):
        assert ours.dtype == dtype
        room = 0.5 * torch.finfo(torch.float32).eps + 0.02 * torch.finfo(dtype).eps
        assert (ours - truth).norm() <= (theirs - truth).norm() + room * truth.norm()
    assert all(map(torch.equal, (*given, *ups), before)), "inputs are only read"


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounds_where_the_families_round(dtype: torch.dtype, device: str) -> None:
    """The sum once; the norm in float32, to the weights' dtype before them. A root that is off by its last
    bit tips one number in a thousand over; one rounding less would move every third."""
    given, _ = inputs(40, 3584, dtype, device)
    (total, y), (right, normed) = add_rms_norm(*given, EPS), plain(*given, EPS)
    assert torch.equal(total, right)
    assert (y != normed).double().mean() <= 1e-3
    assert (late(*given, EPS)[1] != normed).double().mean() > 0.2


@on_every_device
def test_a_head_is_normed_in_its_own_place(device: str) -> None:
    """(T, H, d), of which the rows of one head lie apart; and without a sum."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 3, 128, generator=generator).to(device)[:, 1:].requires_grad_()
    weight, up = torch.rand(128, device=device).requires_grad_(), torch.randn(5, 2, 128, device=device)
    ours, theirs = (fn(q, weight, EPS) for fn in (rms_norm, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    pairs = (torch.autograd.grad(x, (q, weight), up) for x in (ours, theirs))
    for mine, right in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


@on_every_device
def test_rows_of_zeros_and_no_rows(device: str) -> None:
    (x, _, weight), _ = inputs(4, 64, torch.float32, device)
    total, y = add_rms_norm(x, -x, weight, EPS)
    assert not total.any() and not y.any()
    assert [out.shape for out in add_rms_norm(x[:0], x[:0], weight, EPS)] == [(0, 64)] * 2


@on_every_device
def test_a_weight_that_is_frozen_has_no_gradient(device: str) -> None:
    """As those beside adapters: x learns all the same, and as before."""
    given, ups = inputs(37, 96, torch.float32, device)
    *_, right, _, _ = differentiated(add_rms_norm, given, ups)
    x = given[0].clone().requires_grad_()
    (got,) = torch.autograd.grad(add_rms_norm(x, *given[1:], EPS), x, ups)
    assert torch.equal(got, right)


@on_every_device
def test_the_weights_gradient_repeats_to_the_bit(device: str) -> None:
    given, ups = inputs(259, 64, torch.bfloat16, device)
    once, again = (differentiated(add_rms_norm, given, ups) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("D", [10, 100, module.WIDEST + 16])
def test_other_widths_take_the_torch_path(D: int) -> None:
    (x, delta, weight), _ = inputs(2, D, torch.float32)
    got, right = (fn(x, delta, weight, EPS) for fn in (add_rms_norm, plain))
    assert all(map(torch.equal, got, right))


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize(("N", "D", "dtype"), [(32, 64, torch.bfloat16), (32, 3584, torch.float32)])
def test_that_each_number_moves_once(N: int, D: int, dtype: torch.dtype) -> None:
    """As the table of resources has it: but for the weight, and its gradient's partial sums."""
    excess = {case.name: case.excess for case in report.cases()}
    (x, delta, weight), ups = inputs(N, D, dtype)
    s, lines = x.element_size(), module.tile(D)["LINES"]
    fewest = N * (4 * D * s + 4)
    with traffic() as moved:
        h, _, root = module.normed(x, delta, weight, EPS)
    assert moved == [fewest + N // lines * D * s]
    with traffic() as moved:
        module.gradients(h, weight, root, ups[1], ups[0], learns=True)
    assert moved == [fewest + D * (s + 4)]  # and torch's sum reads these 4 bytes again
    if dtype == torch.bfloat16:
        assert 1 + D * (s + 8) / fewest == pytest.approx(excess["norm of 64 backward bf16"])
        assert 1 + D * s / lines * N / fewest == pytest.approx(excess["norm of 64 forward bf16"])


@only_interpreted
def test_that_only_the_sum_and_a_number_a_row_are_kept() -> None:
    given, _ = inputs(40, 64, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes), lambda x: x):
        add_rms_norm(*(x.requires_grad_() for x in given), EPS)
    assert sorted(kept) == [64 * 2, 40 * 4, 40 * 64 * 2]


@only_interpreted
def test_rows_may_lie_beyond_two_to_the_31() -> None:
    """The last 16 of 2^25 + 16 rows of 64, of which nothing else is touched."""
    N, D = 2**25 + 16, 64
    x, y, root = untouched(N, D), untouched(N, D), untouched(N)
    x[-16:] = torch.randn(16, D, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(D)
    with programs_from(2**21):
        module._norm_forward[(1,)](x, x, weight, x, y, root, N, D, EPS, False, **module.tile(D))
    torch.testing.assert_close(y[-16:], reference(x[-16:], weight, EPS), atol=1e-6, rtol=1e-5)


@only_interpreted
@pytest.mark.parametrize("adapters", [False, True])
def test_a_decoder_by_kernels_is_the_one_by_torch(adapters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states and the gradients of all that learns; one layer of two is computed again."""
    from transformers import Qwen3Config

    from rar_mini import lora
    from rar_mini.kernels import swiglu
    from rar_mini.model import Decoder, reference_attention

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 90, "num_hidden_layers": 2, "num_key_value_heads": 2}
    decoder = Decoder(Qwen3Config(**sizes, vocab_size=97, num_attention_heads=4, head_dim=16))
    decoder.checkpointed = 1
    if adapters:
        lora.adapt(decoder, 2, 4.0, ("q_proj", "down_proj"), 0)
    learning = [p for p in decoder.model.parameters() if p.requires_grad]
    for p in learning:
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    found = []
    for fused in (True, False):
        for kernel in (module, swiglu):
            monkeypatch.setattr(kernel, "use_kernel", lambda x, fused=fused: fused)
        out = decoder(torch.arange(7), torch.arange(7), reference_attention)
        found.append(
            [out, *torch.autograd.grad((out * torch.arange(64)).sum(), learning)]
        )  # a norm's square is constant
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
