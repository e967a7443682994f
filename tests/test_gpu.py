"""What only a GPU can prove, beside the kernels' own tests: two training steps. `pytest -m gpu` there."""

from pathlib import Path

import pytest
import torch
from test_train import options, records
from torch import Tensor

import train
from rar_mini import model, prefix
from rar_mini.prefix import Attention, Tree, pack
from rar_mini.sampler import Request, Settings, sample, uniforms

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


def tree() -> Tree:
    """Three branches, 370 tokens in all."""
    tree = Tree()
    root = tree.add(list(range(100)))
    for start in (10, 60, 110):
        tree.add(list(range(start, start + 90)), root)
    return tree


def gradients(attention: Attention) -> list[Tensor]:
    """Of queries, keys and values in bfloat16 with heads of 128 channels."""
    torch.manual_seed(0)
    own = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    tensors = [torch.randn(370, heads, 128, **own) for heads in (4, 2, 2)]
    out = pack(tree(), "cuda", attention).attend(0, *tensors)
    return list(torch.autograd.grad(out, tensors, torch.randn_like(out)))


@pytest.mark.parametrize("attention", ["loop", "flex"])
def test_gradients_of_attention_repeat_to_the_bit(attention: Attention) -> None:
    once, again = gradients(attention), gradients(attention)
    assert all(map(torch.equal, once, again))


def test_the_tiles_of_a_smaller_gpu_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_options", lambda q: prefix.tiles(101_376, q.shape[-1], q.itemsize))
    for small, truth in zip(gradients("flex"), gradients("loop"), strict=True):
        assert (small - truth).norm() <= 0.02 * truth.norm()


def test_flex_has_the_gradients_of_the_loop(wide: Path) -> None:
    decoder = model.load(wide, torch.float32, "cuda")
    found = []
    for attention in ("loop", "flex"):
        packed = pack(tree(), "cuda", attention)
        hidden = decoder(packed.ids, packed.positions, packed.attend)
        # Not a sum of squares: behind the last norm it is a constant, and no gradient comes to attention.
        loss = (hidden * torch.arange(32, device="cuda")).sum()
        found.append(torch.autograd.grad(loss, list(decoder.parameters())))
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in found)
    assert (a - b).norm() <= 1e-3 * a.norm()


def test_captured_steps_write_what_plain_ones_write(wide: Path) -> None:
    """Rows finish on the way, so that batches shrink, and 300 tokens pass two spans: several graphs each."""
    decoder, ends = model.load(wide, torch.float32, "cuda"), frozenset(range(0, 259, 80))
    requests = [Request(p, [uniforms(0, 1, str(p), g, 300) for g in range(6)]) for p in ([5, 6, 7], [8] * 40)]
    found = [sample(decoder, requests, ends, Settings(300, graph=graph)) for graph in (True, False)]
    for a, b in zip(*(sum(groups, []) for groups in found), strict=True):
        # A graph reads masked places too, in another order: a token may tip over on the last bit of a draw.
        same = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), len(a.ids))
        assert same >= 20 or a.ids == b.ids
        assert (torch.tensor(a.logp[:same]) - torch.tensor(b.logp[:same])).abs().max() < 1e-3
