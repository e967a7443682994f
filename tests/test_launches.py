"""What a decoding step does is counted right: operators by hand, and kernels where they are called."""

import json
from pathlib import Path

import pytest
import torch
from kernel_cases import needs_triton, not_interpreted
from torch import Tensor

from rar_mini.kernels import backend
from rar_mini.kernels.draw import BLOCK, draw
from rar_mini.tools import launches
from rar_mini.tools.launches import AsCuda, Operators, Parts, Work, launches_counted, total

pytestmark = not_interpreted


def counted(fn: object, *given: Tensor) -> Work:
    parts: Parts = {}
    with torch.no_grad(), Operators(parts):
        fn(*given)
    return total(parts)


X, W = torch.zeros(3, 8), torch.zeros(5, 8)


@pytest.mark.parametrize(
    ("fn", "given", "count", "moved", "operations"),
    [
        (lambda x, w: x @ w.T, (X, W), 1, 4 * (24 + 40 + 15), 2 * 3 * 5 * 8),
        (lambda x: x.view(4, 6).T[1:], (X,), 0, 0, 0),  # views
        (lambda x: x.new_empty(7), (X,), 0, 0, 0),
        (lambda x: x.new_zeros(7), (X,), 1, 4 * (24 + 7), 0),  # what it is like counts as read
        (lambda x: x + 1, (X,), 1, 2 * 4 * 24, 0),
        (lambda x: x.exp_(), (X.clone(),), 1, 2 * 4 * 24, 0),
        (lambda x: x.bfloat16(), (X,), 1, 6 * 24, 0),
        (lambda x: x.float(), (X,), 0, 0, 0),  # it is
        (lambda x, w: x[:, None] * w, (X, W), 1, 4 * (24 + 40 + 120), 0),
        (lambda x: x[:1].expand(9, 8) + 1, (X,), 1, 4 * (8 + 72), 0),  # spread rows are read once
        (lambda w, i: w.index_select(0, i), (W, torch.tensor([1, 1])), 1, 2 * 4 * 16 + 16, 0),
        (lambda w, i, x: w.index_copy_(0, i, x), (W.clone(), torch.tensor([1]), X[:1]), 1, 2 * 4 * 8 + 8, 0),
        (lambda b, x: torch.baddbmm(b, x, x.mT), (torch.zeros(2, 3, 3), torch.zeros(2, 3, 8)), 1,
         4 * (18 + 2 * 48 + 18), 2 * 2 * 9 * 8),
    ],
)  # fmt: skip
def test_an_operator_counts_what_it_has_to_do(
    fn: object, given: tuple[Tensor, ...], count: int, moved: int, operations: int
) -> None:
    assert counted(fn, *given) == Work(count, moved, operations)


@needs_triton
def test_kernels_are_counted_where_they_would_be_launched() -> None:
    """Without data or a GPU. Torch's operators stand in the same place, for the draw is in one file."""
    R, V = 3, 5000
    given = torch.empty(R, V, device="meta", dtype=torch.bfloat16), torch.zeros(R, device="meta").double()
    fused: Parts = {}
    with torch.no_grad(), AsCuda(), launches_counted(fused), Operators(fused):
        draw(*given)
    parts = R * 3 * (4 + 8)
    once = R * V * 2 + parts + parts + R * (2 * (BLOCK + 1) + 4 + 8 + 8 + 4)
    assert fused == {"kernels/draw.py": Work(2, once)}
    plain: Parts = {}
    with torch.no_grad(), AsCuda(), backend.plain(), launches_counted(plain), Operators(plain):
        draw(*given)
    assert list(plain) == ["kernels/draw.py"]
    assert plain["kernels/draw.py"].launches > 15 and plain["kernels/draw.py"].bytes > 20 * R * V


@needs_triton
def test_a_step_of_a_seven_billion_model_is_counted_without_one(capsys: pytest.CaptureFixture) -> None:
    launches.main(["--sizes", "2", "3", "8", "16"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    parts = told["torch and kernels"]
    plain, fused = parts["matrix products"]
    assert plain == fused, "a kernel of ours multiplies none of the weights"
    assert plain["launches"] == 28 * 7 + 1
    weights = 28 * (3584 * (2 * 3584 + 2 * 512 + 3 * 18_944)) + 152_064 * 3584
    assert plain["operations"] == 2 * 6 * weights and plain["bytes"] > 2 * weights
    plain, fused = parts["all"]
    assert fused["launches"] < plain["launches"] and fused["bytes"] < plain["bytes"]


def test_a_step_on_a_cpu_is_counted_and_timed(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    launches.main(["--cpu", "--policy", str(tiny), "--runs", "1", "--sizes", "2", "3", "1", "8"])
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    products = 2 * (32 * (2 * 32 + 2 * 16 + 3 * 64)) + 259 * 32  # the tiny policy's weights
    assert told["parts"]["matrix products"]["operations"] == 2 * 6 * products
    assert told["ms"] > 0 and "of matrix products" in out


def test_a_policy_whose_shapes_are_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="no shapes of 'nope' are known: expected"):
        launches.main(["--policy", "nope"])


def test_an_answer_too_short_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="of 2 tokens is too short"):
        launches.main(["--cpu", "--sizes", "1", "1", "1", "2"])
