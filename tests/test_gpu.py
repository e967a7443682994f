"""What only a GPU can prove, beside the kernels' own tests: training steps, and what `--check` checks.
`pytest -m gpu` there."""

from pathlib import Path

import pytest
import torch
from test_train import options, records

import train
from rar_mini.tools.check import CHECKS, Bench, one

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


ARMS = {
    "all": {},
    "adapters": {"lora_rank": 4, "beta": 0.1},
    "visitor": {"reference_device": "cpu", "beta": 0.1},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arm", ARMS)
def test_two_steps(wide: Path, questions: Path, tmp_path: Path, dtype: str, arm: str) -> None:
    train.main(options(wide, questions, tmp_path / "run", steps=2, device="cuda", dtype=dtype, **ARMS[arm]))
    for row in records(tmp_path / "run")[1:]:
        assert row["step"] == 2 or row.get("kl", 0) == 0, "the reference begins as the policy"
        assert row["sampling/sampling_logp_difference/mean"] < (1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("name", CHECKS)
def test_checks(wide: Path, name: str) -> None:
    """Those of train.py --check, with a policy that costs nothing."""
    if name in ("memory", "speed"):
        pytest.skip("says nothing of a policy that costs nothing: python train.py --check")
    row = one(name, Bench(str(wide), None, "cuda", "bfloat16", train.loss, train.step))
    assert row.result == "ok" or (name == "ranks" and torch.cuda.device_count() == 1), row.words
