"""What only a GPU can prove, beside the kernels' own tests: two training steps. `pytest -m gpu` there."""

from pathlib import Path

import pytest
import torch
from test_train import options, records

import train
from rar_mini import model
from rar_mini.prefix import Tree, pack
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


def test_flex_has_the_gradients_of_the_loop(wide: Path) -> None:
    decoder = model.load(wide, torch.float32, "cuda")
    tree = Tree()
    root = tree.add(list(range(100)))
    for start in (10, 60, 110):
        tree.add(list(range(start, start + 90)), root)
    found = []
    for attention in ("loop", "flex"):
        packed = pack(tree, "cuda", attention)
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
