"""Packed equals separate: a tree in one pass gives every sequence the numbers that it gets alone."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rar_mini import model, prefix
from rar_mini.prefix import Attention, Tree, pack


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Forests of up to seven segments and depth four, segments of one token included."""
    tree = Tree()
    depth: list[int] = []
    for _ in range(draw(st.integers(1, 7))):
        parent = draw(st.none() | st.sampled_from([s for s, d in enumerate(depth) if d < 4] or [None]))
        ids = draw(st.lists(st.integers(0, 258), min_size=1, max_size=6))
        depth.append(1 + (0 if parent is None else depth[parent]))
        tree.add(ids, parent)
    return tree


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_packed_equals_separate(tiny: Path, tree: Tree) -> None:
    decoder = model.load(tiny, torch.float32, "cpu")
    packed = pack(tree)
    hidden = decoder(packed.ids, packed.positions, packed.attend)
    paths = [[*tree.ancestors(s), s] for s in range(len(tree.segments))]
    weights = [torch.randn(len(tree.segments[s]), 32) for s in range(len(paths))]

    alone, loss = [], torch.zeros(())
    for s, path in enumerate(paths):
        ids = torch.tensor([i for part in path for i in tree.segments[part]])
        own = decoder(ids, torch.arange(len(ids)), model.reference_attention)[-len(tree.segments[s]) :]
        alone.append(own.detach())
        loss = loss + (own * weights[s]).sum()
    truth = torch.autograd.grad(loss, list(decoder.parameters()))
    together = torch.autograd.grad((hidden * torch.cat(weights)).sum(), list(decoder.parameters()))

    assert (hidden.detach() - torch.cat(alone)).norm() <= 1e-5 * torch.cat(alone).norm()
    # As one vector: a softmax over one key has a gradient of 0, of which rounding is all there is.
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (together, truth))
    assert (a - b).norm() <= 1e-5 * b.norm()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees())
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attends_as_the_loop_does(tiny: Path, tree: Tree) -> None:
    """Its forward pass, and so its mask; the backward pass of FlexAttention needs a GPU."""
    decoder = model.load(tiny, torch.float32, "cpu")
    loop, flex = (pack(tree, attention=attention) for attention in ("loop", "flex"))
    with torch.no_grad():
        truth, found = (decoder(x.ids, x.positions, x.attend) for x in (loop, flex))
    assert "blocks" in vars(flex) and "masks" in vars(loop), "each has made its own mask"
    assert "masks" not in vars(flex) and "blocks" not in vars(loop)
    assert (found - truth).norm() <= 1e-5 * truth.norm()


def test_flex_skips_what_nothing_sees() -> None:
    """Four branches of 256 tokens below a root of 256: of 100 blocks of 128 x 128, those of other branches
    and of the future are not computed."""
    tree = Tree()
    root = tree.add([0] * 256)
    for _ in range(4):
        tree.add([1] * 256, root)
    packed = pack(tree, attention="flex")
    assert "blocks" in vars(packed), "made at once, while no activations lie beside its temporaries"
    blocks = packed.blocks
    kept = int((blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum())
    assert kept == 5 * 3 + 4 * 4  # each segment's own triangle of 2 x 2, and each branch's view of the root


@pytest.mark.parametrize("shape", [(0, 129), (3, 200), (15, 200)])
def test_trees_of_any_shape_share_a_kernel(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone segment was compiled for by itself, and so was a count of segments or blocks that by chance is
    one of the model's: 9 segments under 9 heads. After the eighth kernel PyTorch compiles no more, and with
    no more than a warning makes all T x T scores."""
    compiled, counter = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda fn, **how: compiled(fn, backend=counter, **how))
    monkeypatch.setattr(prefix, "flex_attention", prefix._compiled.__wrapped__())  # as on CUDA
    torch.compiler.reset()

    kernel = partial(prefix.flex_attention, kernel_options=prefix.tiles(101_376, 128, 2))
    monkeypatch.setattr(prefix, "flex_attention", lambda *x, kernel_options, **how: kernel(*x, **how))

    def attend(branches: int, length: int) -> None:
        packed = pack(comb(branches, length), attention="flex")
        packed.attend(0, *(torch.randn(len(packed.ids), heads, 16) for heads in (4, 2, 2)))

    # As autograd does with a layer that is checkpointed, the first one in a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(attend, *shape).result()
    for other in ((5, 300), (7, 500)):
        attend(*other)
    assert counter.frame_count == 1
    assert torch.fx.experimental._config.use_duck_shape, "left as it was for others' code"


SHARED = {"T4": 65_536, "RTX 4090": 101_376, "A100": 166_912, "H100": 232_448}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("width", [16, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("card", SHARED)
def test_flex_has_tiles_that_fit_where_its_own_do_not(card: str, width: int, size: int) -> None:
    options = prefix.tiles(SHARED[card], width, size)
    if card in ("A100", "H100") or width * size <= 128:
        assert not options, "its own are tuned"
        return
    channels = 2 ** math.ceil(math.log2(width))
    for kernel, stay in (("fwd", 1), ("bwd", 2)):
        stages = options.pop(f"{kernel}_num_stages", None)
        sides = {options.pop(name) for name in list(options) if name.startswith(kernel)}
        assert bool(stages) == bool(sides) == (kernel == "fwd" or size == 2), "in float32 its own fits"
        for side in sides:
            assert prefix.BLOCK % side == 0 and side >= 16
            held = size * side * (stay + 2 * stages) * channels
            assert held <= SHARED[card] < 6 * held, (held, "and is not wasted")
    assert not options


def test_the_tiles_of_a_card_with_99_kb() -> None:
    """Forward 16 KB of queries, and of keys and values twice 32: 80 KB. Backward 96."""
    sides = dict.fromkeys(("fwd_BLOCK_M", "fwd_BLOCK_N"), 64)
    sides |= {f"bwd_BLOCK_{name}": 64 for name in ("M1", "N1", "M2", "N2")}
    assert prefix.tiles(101_376, 128, 2) == sides | {"fwd_num_stages": 2, "bwd_num_stages": 2}


def test_flex_is_told_the_tiles_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        prefix, "_compiled", lambda: lambda *x, kernel_options, **_: told.append(kernel_options) or x
    )
    card, told = SimpleNamespace(shared_memory_per_block_optin=101_376), []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    packed, q = pack(comb(1, 20), attention="flex"), torch.zeros(40, 1, 128, dtype=torch.bfloat16)
    packed.attend(0, *(q.as_subclass(OnGPU) for _ in range(3)))
    assert told == [prefix.tiles(101_376, 128, 2)]


class OnGPU(torch.Tensor):
    """A tensor of the CPU that says that it is on a GPU, and so takes the path of one."""

    is_cuda = True


def comb(branches: int, length: int) -> Tree:
    """A root, and branches of 20 tokens below it."""
    tree = Tree()
    root = tree.add([0] * length)
    for _ in range(branches):
        tree.add([1] * 20, root)
    return tree


@pytest.mark.parametrize(
    ("gpu", "length", "width", "attention", "flex"),
    [
        (True, 69, 16, "auto", True),
        (True, 68, 16, "auto", False),
        (True, 69, 15, "auto", False),
        (False, 69, 16, "auto", False),
        (True, 69, 16, "loop", False),
        (True, 1, 15, "flex", True),
        (False, 1, 15, "flex", True),
    ],
)
def test_auto_takes_flex_on_a_gpu_for_what_it_can_do(
    gpu: bool, length: int, width: int, attention: Attention, flex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """129 tokens are more than a block, and a head of 16 channels is the narrowest."""
    packed, called = pack(comb(3, length), attention=attention), []
    if gpu:
        packed = replace(packed, ids=packed.ids.as_subclass(OnGPU))
    for form in ("flex", "loop"):
        monkeypatch.setattr(prefix.Packed, f"_{form}", lambda *_, form=form: called.append(form))
    packed.attend(0, *[torch.zeros(length + 60, 2, width)] * 3)
    assert called == ["flex" if flex else "loop"]


def test_the_loop_has_a_backward_pass_on_a_gpu_that_repeats_itself() -> None:
    """Plain products, and no fused kernel: their backward passes with a mask add up by atomics there."""
    q, k, v = (torch.randn(60, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    packed = pack(comb(2, 20))
    truth, found = (packed.attend(0, *(x.as_subclass(kind) for x in (q, k, v))) for kind in (Tensor, OnGPU))

    def steps(node: Any) -> set[str]:
        return {node.name()}.union(*(steps(parent) for parent, _ in node.next_functions if parent))

    assert any("ScaledDotProduct" in step for step in steps(truth.grad_fn))
    assert not any("ScaledDotProduct" in step for step in steps(found.grad_fn))
    grad = torch.randn_like(truth)
    a, b = (torch.autograd.grad(out, (q, k, v), grad) for out in (truth, found))
    torch.testing.assert_close(found.as_subclass(Tensor), truth)
    torch.testing.assert_close([x.as_subclass(Tensor) for x in b], list(a))


@pytest.mark.slow
def test_packed_equals_separate_on_the_real_default(default: Path) -> None:
    decoder = model.load(default, torch.float32, "cpu")
    tree = Tree()
    prompt = list(range(100, 160))
    root = tree.add(prompt)
    leaves = [tree.add(list(range(s, s + 20)), root) for s in (300, 900, 5000)]
    packed = pack(tree)
    with torch.no_grad():
        together = decoder(packed.ids, packed.positions, packed.attend) @ decoder.head.T
        for leaf in leaves:
            ids = torch.tensor(prompt + list(tree.segments[leaf]))
            alone = (
                decoder(ids, torch.arange(len(ids)), model.reference_attention)[len(prompt) :]
                @ decoder.head.T
            )
            start, end = packed.spans[leaf]
            assert (together[start:end] - alone).abs().max() <= 2e-4


def test_ancestors_and_spans() -> None:
    tree = Tree()
    a = tree.add([1, 2])
    b = tree.add([3], a)
    c = tree.add([4, 5], b)
    tree.add([6])
    packed = pack(tree)
    assert tree.ancestors(c) == [a, b]
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 0]
    assert packed.last(b) == 2
