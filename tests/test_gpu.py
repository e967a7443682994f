"""What only a GPU can prove: `pytest -m gpu` there. Kernels against float64 truth, and two training steps."""

from pathlib import Path

import pytest
import torch
from test_kernels import SHAPES, inputs, truth
from test_train import options, records

import train
from rar_mini.kernels import advantage
from rar_mini.kernels.advantage import group_advantage
from rar_mini.kernels.logprob import linear_logprob

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("N", "D", "V"), [*SHAPES, (257, 64, 151_936)])
@pytest.mark.parametrize("chunk_bytes", [2**28, 2**20])
def test_logprob_and_its_gradients(N: int, D: int, V: int, chunk_bytes: int) -> None:
    hidden, weight, target = inputs(N, D, V)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    right = truth(*exact, target, 0.7)
    ours = [x.cuda().requires_grad_() for x in (hidden, weight)]
    got = linear_logprob(*ours, target.cuda(), temperature=0.7, chunk_bytes=chunk_bytes)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-4, rtol=1e-4)
    (right[0].sum() + 0.3 * right[1].sum()).backward()
    (got[0].sum() + 0.3 * got[1].sum()).backward()
    for a, b in zip(ours, exact, strict=True):
        assert (a.grad.cpu() - b.grad).norm() <= 1e-4 * b.grad.norm()


@pytest.mark.parametrize(("P", "G", "K"), [(1, 2, 1), (6, 16, 12), (2, 1000, 512)])
def test_advantages(P: int, G: int, K: int) -> None:
    generator = torch.Generator().manual_seed(0)
    verdict, weight = torch.rand(P, G, K, generator=generator), torch.rand(P, K, generator=generator)
    verdict[0, 0, 0] = float("nan")
    got = group_advantage(verdict.cuda(), weight.cuda(), scale="group")
    right = advantage.reference(verdict.double(), weight.double(), "group")
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-3, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_steps(tiny: Path, questions: Path, tmp_path: Path, dtype: str) -> None:
    train.main(options(tiny, questions, tmp_path / "run", steps=2, device="cuda", dtype=dtype))
    for row in records(tmp_path / "run")[1:]:
        assert row["sampling/sampling_logp_difference/mean"] < (1e-3 if dtype == "float32" else 0.1)
