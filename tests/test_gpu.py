"""What only a GPU can prove, beside the kernels' own tests: two training steps. `pytest -m gpu` there."""

from pathlib import Path

import pytest
import torch
from test_train import options, records

import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_steps(tiny: Path, questions: Path, tmp_path: Path, dtype: str) -> None:
    train.main(options(tiny, questions, tmp_path / "run", steps=2, device="cuda", dtype=dtype))
    for row in records(tmp_path / "run")[1:]:
        assert row["sampling/sampling_logp_difference/mean"] < (1e-3 if dtype == "float32" else 0.1)
