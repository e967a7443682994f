"""What only a GPU can prove, beside the kernels' own tests: training steps, and what `--check` checks.
`pytest -m gpu` there."""

from pathlib import Path

import pytest
import torch
from test_train import options, records
from torch import Tensor

import train
from rar_mini import prefix, ranks
from rar_mini.prefix import Attention, pack
from rar_mini.tools.check import CHECKS, Bench, one, tree

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


def test_memory_comes_in_pages() -> None:
    ranks.claim("cuda")
    if not ranks.pages:
        pytest.skip("memory comes in segments here")
    torch.cuda.empty_cache()
    kept = torch.empty(2**24, device="cuda")
    segments = [each for each in torch.cuda.memory_snapshot() if kept.data_ptr() >= each["address"]]
    assert max(segments, key=lambda each: each["address"])["is_expandable"]


@pytest.mark.parametrize("name", CHECKS)
def test_checks(wide: Path, name: str) -> None:
    """Those of train.py --check, with a policy that costs nothing."""
    if name in ("memory", "speed"):
        pytest.skip("says nothing of a policy that costs nothing: python train.py --check")
    row = one(name, Bench(str(wide), None, "cuda", "bfloat16", train.cut, train.loss, train.step))
    assert row.result == "ok" or (name == "ranks" and torch.cuda.device_count() == 1), row.words


def gradients(attention: Attention) -> list[Tensor]:
    """Of queries, keys and values in bfloat16 with heads of 128 channels."""
    torch.manual_seed(0)
    own = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    tensors = [torch.randn(370, heads, 128, **own) for heads in (4, 2, 2)]
    out = pack(tree(100, [90, 90, 90]), "cuda", attention).attend(0, *tensors)
    return list(torch.autograd.grad(out, tensors, torch.randn_like(out)))


@pytest.mark.parametrize("attention", ["loop", "flex"])
def test_gradients_of_attention_repeat_to_the_bit(attention: Attention) -> None:
    once, again = gradients(attention), gradients(attention)
    assert all(map(torch.equal, once, again))


def test_the_tiles_of_a_smaller_gpu_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_options", lambda q: prefix.tiles(101_376, q.shape[-1], q.itemsize))
    for small, truth in zip(gradients("flex"), gradients("loop"), strict=True):
        assert (small - truth).norm() <= 0.02 * truth.norm()
