"""The optimizer, on every path: torch's AdamW in float32, and what it has to keep in bfloat16."""

import pytest
import torch
from kernel_cases import NAN, needs_triton, not_interpreted, under_the_interpreter
from torch import Tensor

from rar_mini.kernels.adamw import AdamW, round_stochastically


def test_float32_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(70_001), torch.randn(3, 5)]
    theirs = [p.clone().requires_grad_() for p in ours]
    ours = [p.requires_grad_() for p in ours]
    a, b = AdamW(ours, 1e-2, weight_decay=0.1), torch.optim.AdamW(theirs, 1e-2, weight_decay=0.1)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = 0.5 * p.grad
        a.step(grad_scale=0.5)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean error of 10^6 draws lies within four standard errors of 0."""
    x = torch.full((1_000_000,), 0.0201)
    bits = torch.randint(65536, x.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    error = round_stochastically(x, bits).double() - x.double()
    assert len(error.unique()) == 2
    assert error.mean().abs() <= 4 * error.std() / 1000


def test_values_without_a_neighbour_keep_their_kind() -> None:
    """Random bits added to a NaN can carry into its sign and make it -0.0."""
    x = torch.tensor([NAN, torch.inf, -torch.inf, 0.0, -1.5])
    got = round_stochastically(x, torch.full((5,), 65535, dtype=torch.int32))
    assert got[0].isnan() and got[1:3].tolist() == [torch.inf, -torch.inf]
    assert got[3] >= 0 and got[3] < 1e-37 and got[4] == -1.5


def test_bfloat16_learns_at_the_papers_rate() -> None:
    """Near 0.02 a bfloat16 step is 1.2e-4: an update of 5e-6 is lost when rounded to nearest, always."""
    start = torch.full((4096,), 0.0201)
    rounded = start.bfloat16().requires_grad_()
    nearest = start.bfloat16()
    full = start.clone().requires_grad_()
    a, b = AdamW([rounded], 5e-6, seed=1), AdamW([full], 5e-6)
    for _ in range(100):
        for p in (rounded, full):
            p.grad = torch.ones_like(p)
        a.step()
        b.step()
        nearest = (nearest.float() - 5e-6).bfloat16()
    assert torch.equal(nearest, start.bfloat16())
    moved, wanted = (p.detach().double().mean() - start.bfloat16().double().mean() for p in (rounded, full))
    assert wanted + (start.bfloat16().double().mean() - start.double().mean()) == pytest.approx(
        -5e-4, rel=0.02
    )
    assert moved == pytest.approx(-5e-4, rel=0.05)


def test_a_resumed_optimizer_rounds_alike() -> None:
    def run(steps: int, p: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        p = p.clone().requires_grad_()
        optimizer = AdamW([p], 1e-3, seed=7)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return p.detach(), optimizer.state_dict()

    start = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole, _ = run(4, start)
    half, state = run(2, start)
    assert torch.equal(run(2, half, state)[0], whole)


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
