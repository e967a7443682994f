"""The memory plan against the real code, traced without data, and against a process on a CPU.

What is traced is the code (train.loss, sampler.sample, LocalJudge.ask) on tensors of the meta device,
whose storages have a size and no data, under PyTorch's MemTracker. Fake CUDA tensors would be the same with
another name, but autograd does not run on them in a build for CPUs, nor in one for CUDA without a GPU. What
follows from a device's name is set to what CUDA has: kernels are launched, as calls that do nothing (they
write into memory that their launchers have made), chunks have CUDA's size, and FlexAttention is a function
that makes and keeps what its kernel does: output and sums forward, three gradients and a sum backward.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from allocator import Event, Trace, least
from tiny import byte_tokenizer, qwen1, qwen7, rolled
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

import train
from rar_mini import grpo, lora, model, prefix, pretrained, sampler, setup
from rar_mini.config import PRESETS, TARGETS, Config
from rar_mini.judging import local as local_judge
from rar_mini.judging.wires import Worded
from rar_mini.kernels import adamw, decode, draw, logprob, norm, rope, swiglu
from rar_mini.model import Decoder
from rar_mini.policy import Policy
from rar_mini.prompts import JudgePrompts
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion, Request, Settings
from rar_mini.setup import Training
from rar_mini.tools import memory
from rar_mini.tools.memory import Model

META = torch.device("meta")


# --- the trace ----------------------------------------------------------------------------------------------


class Tracker(MemTracker):
    """PyTorch's, without its record of every module, which costs minutes."""

    def _pre_fw_hook(self, *args: Any) -> None:
        pass

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook

    @property
    def peak(self) -> int:
        return self.get_tracker_snapshot("peak")[META]["Total"]


class Reads(TorchDispatchMode):
    """A number that is read out of a tensor without data is 1, and a truth value is `truth`."""

    def __init__(self, truth: bool = False) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            read = partial(torch.full, dtype=args[0].dtype, device="cpu")
            value = self.truth if args[0].dtype == torch.bool else 1
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
                return read((), value).item()
            if "cpu" in map(str, (*args[1:], *kwargs.values())):
                return read(args[0].shape, value)
        return func(*args, **kwargs)


class Flex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *inputs, _, sums = ctx.saved_tensors
        _delta = torch.empty_like(sums)  # there while the gradients are made
        return tuple(torch.empty_like(x) for x in inputs)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """A tracker, with the code's choices as on CUDA."""
    launch = type("Launch", (), {"__getitem__": lambda self, grid: lambda *args, **options: None})()
    kernels = {logprob: ("_statistics", "_gradient"), adamw: ("_adamw", "_add")}
    kernels |= {decode: ("_pieces", "_join"), rope: ("_rotate",), draw: ("_slices", "_choose")}
    kernels |= {norm: ("_norm_forward", "_norm_backward"), swiglu: ("_swiglu_forward", "_swiglu_backward")}
    for module, names in kernels.items():
        monkeypatch.setattr(module, "use_kernel", lambda tensor: True)
        for name in names:
            monkeypatch.setattr(module, name, launch)
    monkeypatch.setitem(logprob.CHUNK_BYTES, "meta", logprob.CHUNK_BYTES["cuda"])
    monkeypatch.setattr(prefix, "flex_attention", lambda q, k, v, **options: Flex.apply(q, k, v))
    pack = prefix.pack
    for module in (sampler, local_judge):
        monkeypatch.setattr(module, "pack", lambda tree, device: pack(tree, device, "flex"))
    return Tracker()


def hollow(config: PretrainedConfig, dtype: torch.dtype) -> Decoder:
    """A decoder without data."""
    with META:
        return Decoder(config).to(dtype)


def hollow_training(config: PretrainedConfig, options: Config) -> Training:
    """What an update works with, from the second step on, without data."""
    dtype = getattr(torch, options.dtype)
    model = hollow(config, dtype)
    reference = None
    if options.lora_rank:
        lora.adapt(model, options.lora_rank, options.lora_alpha, options.lora_targets, 0)
        reference = lora.base(model) if options.beta else None
    elif options.beta and options.reference_device == "cpu":
        reference = Decoder(config).to(dtype)
        reference.visit()
    elif options.beta:
        reference = hollow(config, dtype)
    model.checkpointed = options.checkpointed(config.num_hidden_layers)
    optimizer = adamw.AdamW(model.parameters(), 1e-5)
    for p in (p for p in model.parameters() if p.requires_grad):
        optimizer.state[p].update(step=1, m=torch.zeros_like(p), v=torch.zeros_like(p))
    others = reference and SimpleNamespace(model=reference)
    return Training(options, Recipe(config=options), SimpleNamespace(model=model), others, optimizer)


Lengths = tuple[list[int], list[list[int]]]
"""Of prompts (P,), and of the answers to each (P, G)."""


def full(options: Config) -> Lengths:
    """All as long as they may be."""
    P, G = options.prompts_per_step, options.group_size
    return [options.max_prompt_tokens] * P, [[options.max_new_tokens] * G] * P


def cut(t: Training, prompts: list[int], answers: list[list[int]]) -> list[grpo.MicroBatch]:
    P, G = len(answers), len(answers[0])
    completions = [[Completion([1] * c, [0.0] * c, True) for c in group] for group in answers]
    one = torch.ones(P, G)
    rollouts = rolled([[1] * n for n in prompts], completions, one)
    return train.cut(t, replace(rollouts, reward=one, examples=[None] * P))


def update(t: Training, prompts: list[int], answers: list[list[int]]) -> None:
    batches = cut(t, prompts, answers)
    train.step(t.optimizer, train.loss(t, batches)["grad_norm"], t.config.lr, 1.0)


def traced_step(tracker: Tracker, config: PretrainedConfig, options: Config) -> int:
    """The peak of an update, when every answer has its full length, from the second step on."""
    t = hollow_training(config, options)
    models = [t.actor.model, *([t.reference.model] if t.reference else [])]
    tracker.track_external(*models, t.optimizer)
    with tracker, Reads():
        update(t, *full(options))
    return tracker.peak


class Enough(Exception):
    pass


def first_tokens(model: Decoder, prompts: list[int], options: Config, ended: bool = False) -> None:
    """sampler.sample of prompts of these lengths until the fifth token of its first wave, or where answers
    are `ended` at once, of all waves."""
    draws = np.zeros(options.max_new_tokens)
    requests = [Request([i] + [1] * (n - 1), [draws] * options.group_size) for i, n in enumerate(prompts)]
    settings = Settings(options.max_new_tokens, cache_bytes=options.cache_mb * 2**20, graph=False)
    calls = []

    def progress(count: int) -> None:
        calls.append(count)
        if len(calls) == 5 and not ended:
            raise Enough

    with Reads(ended), suppress(Enough):
        sampler.sample(model, requests, frozenset(), settings, progress)
    assert len(calls) > 1


def traced_sampling(tracker: Tracker, config: PretrainedConfig, options: Config, ended: bool = False) -> int:
    """The peak of `first_tokens` to prompts of full length."""
    model = hollow(config, getattr(torch, options.dtype))
    tracker.track_external(model)
    with tracker:
        first_tokens(model, full(options)[0], options, ended)
    return tracker.peak


def two_steps(config: PretrainedConfig, options: Config, drawn: bool) -> list[Event]:
    """What sampling and training make and free in two steps, of full lengths or of `drawn` ones."""
    t, random = hollow_training(config, options), np.random.default_rng(0)
    P, G, trace = options.prompts_per_step, options.group_size, Trace()
    moments = [x for state in t.optimizer.state.values() for x in (state["m"], state["v"])]
    for tensor in [*t.actor.model.parameters(), *moments]:
        trace.see(tensor)
    n, c = options.max_prompt_tokens, options.max_new_tokens
    for _ in range(2):
        prompts, answers = full(options)
        if drawn:
            prompts = random.integers(n // 8, n + 1, P).tolist()
            answers = random.gamma(3, c / 6, (P, G)).astype(int).clip(2, c).tolist()
        with trace:
            first_tokens(t.actor.model, prompts, options)
        with trace, Reads():
            update(t, prompts, answers)
    return trace.events


def traced_judging(tracker: Tracker, config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """The peak of LocalJudge.ask for 8,192 tokens: 4 answers of 992 under 33 questions of 32 tokens each."""
    model = hollow(config, torch.bfloat16)
    loaded = Policy(model, byte_tokenizer(), frozenset(), Path())
    monkeypatch.setattr(local_judge.policy, "load", lambda *args: loaded)
    monkeypatch.setattr(local_judge.ranks, "refuse_device", lambda *words: None)  # meta is no device of users
    asker = local_judge.LocalJudge("none", "meta", JudgePrompts(system="", yes_no=""), b"")
    asked = Worded("x" * 991 + "\n", "", [f"{i:02}".ljust(17, "q") for i in range(33)], False)
    tracker.track_external(model)
    with tracker, Reads():
        asker.of_question([replace(asked, shared=f"{i}{asked.shared[1:]}") for i in range(4)])
    assert 8000 < asker.ledger.counts["tokens_in"] - asker.ledger.counts["tokens_cached"] <= 8192
    return tracker.peak


# --- the tests ----------------------------------------------------------------------------------------------


THIN = {  # few layers of real widths: a layer counts more there than in the whole model
    "qwen2.5-7b": qwen7(num_hidden_layers=2),
    "qwen2.5-1.5b": qwen1(num_hidden_layers=4),
    "qwen3-1.7b": Qwen3Config(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "smollm2": LlamaConfig(**pretrained.CONFIG | {"num_hidden_layers": 6}),
}
SHAPES = [(2, 8, 64, 256), (1, 16, 512, 1024), (3, 4, 512, 1024)]  # P, G, prompt, answer


def options_of(shape: tuple[int, int, int, int], **changes: Any) -> Config:
    """Settings in which full answers fill their batches, one group a batch."""
    P, G, n, c = shape
    sizes = {"prompts_per_step": P, "group_size": G, "max_prompt_tokens": n, "max_new_tokens": c}
    sizes |= {"tokens_per_batch": n + G * c, "attention": "flex", "graph": False, "eval_every": 0}
    return Config(**sizes | {"cache_mb": 10**6} | changes)


def within(plan: dict[str, int], peak: int) -> None:
    """Stricter than the peak: what of it is neither weights nor moments."""
    stays = sum(plan[part] for part in ("weights", "moments", "reference", "local judge"))
    assert abs((plan["peak"] - stays) / (peak - stays) - 1) < 0.1, (plan, peak)


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj",), ("v_proj", "o_proj", "down_proj")])
def test_only_adapters_have_gradients_and_moments(targets: tuple[str, ...]) -> None:
    """A frozen head has none either, and the reference is the base, which is there already."""
    m, options = Model(qwen7()), Config(dtype="bfloat16", lora_rank=16, lora_targets=targets, beta=0.1)
    model = hollow(qwen7(), torch.bfloat16)
    lora.adapt(model, 16, 32, targets, 0)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = memory.plan(m, options)["training"]
    assert parts["gradients"] == parts["moments"] / 2 == 2 * adapters
    assert parts["weights"] == 2 * (m.parameters + adapters)
    assert not parts["head gradient"] and not parts["reference"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", THIN)
def test_training(
    name: str, shape: tuple[int, int, int, int], dtype: str, checkpointed: bool, traced: Tracker
) -> None:
    options = options_of(shape, dtype=dtype, checkpoint_activations=checkpointed)
    peak = traced_step(traced, THIN[name], options)
    within(memory.plan(Model(THIN[name]), options)["training"], peak)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 5])
def test_training_with_some_layers_checkpointed(layers: int, traced: Tracker) -> None:
    """Of six. With five the last one's activations go before the first of the others computes its own."""
    options = options_of(SHAPES[0], dtype="bfloat16", checkpoint_layers=layers)
    peak = traced_step(traced, THIN["smollm2"], options)
    within(memory.plan(Model(THIN["smollm2"]), options)["training"], peak)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"beta": 0.1}, {"beta": 0.1, "checkpoint_activations": True}, {"attention": "loop"}],
    ids=["reference", "reference-checkpointed", "loop"],
)
@pytest.mark.parametrize("name", THIN)
def test_training_with_a_reference_or_in_a_loop(name: str, changes: dict[str, Any], traced: Tracker) -> None:
    options = options_of(SHAPES[0], dtype="bfloat16", **changes)
    peak = traced_step(traced, THIN[name], options)
    within(memory.plan(Model(THIN[name]), options)["training"], peak)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_with_a_reference_on_the_cpu(checkpointed: bool, traced: Tracker) -> None:
    changes = {"beta": 0.1, "reference_device": "cpu", "device": "cuda"}
    options = options_of(SHAPES[0], dtype="bfloat16", checkpoint_activations=checkpointed, **changes)
    peak = traced_step(traced, THIN["smollm2"], options)
    within(memory.plan(Model(THIN["smollm2"]), options)["training"], peak)


@pytest.mark.parametrize("grouped", [False, True], ids=["together", "in-groups"])
def test_a_reference_on_the_cpu_comes_once(
    grouped: bool, traced: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight is made on the device once a group, and the plan has the peak. Of three batches of 2,112
    tokens, in groups, two may wait."""
    changes = {"beta": 0.1, "reference_device": "cpu", "device": "cuda", "dtype": "bfloat16"}
    options, m = options_of((3, 8, 64, 256), **changes), Model(THIN["smollm2"])
    token = 2 * 2 * (m.D + m.A // m.H)
    if grouped:
        monkeypatch.setattr(model, "WAITING", 2 * 2112 * token)
        monkeypatch.setattr(memory, "WAITING", 2 * 2112 * token)
    t = hollow_training(THIN["smollm2"], options)
    batches = cut(t, *full(options))
    assert len(batches) == 3
    trace = Trace()
    with traced, Reads(), trace:
        assert len(list(grpo.logp_of_each(t.reference.model, batches, 1.0))) == 3
    came = Counter(size for _, size in trace.events)
    assert came[2 * m.V * m.D] == 1, "the head"
    assert came[2 * m.D * m.F] == 3 * m.layers * (2 if grouped else 1), "three of each layer's"
    planned = max(sum(x.values()) for x in memory.referring(m, options, 2112, 3 * 2112))
    assert abs(planned / traced.peak - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("targets", "beta"), [(TARGETS, 0.0), (("q_proj", "v_proj"), 0.1), (("v_proj", "down_proj"), 0.0)]
)
@pytest.mark.parametrize("shape", [SHAPES[0], (3, 4, 128, 1024)])
@pytest.mark.parametrize("name", THIN)
def test_training_adapters(
    name: str,
    shape: tuple[int, int, int, int],
    targets: tuple[str, ...],
    beta: float,
    checkpointed: bool,
    traced: Tracker,
) -> None:
    """Long prompts are left out: all tokens of a batch count as rows of the head, as with short ones; here
    that is a larger part of the whole. So is, in two layers, what the first keeps before its first adapter:
    nothing, because no gradient goes further."""
    changes = {"lora_rank": 16, "lora_targets": targets, "beta": beta}
    options = options_of(shape, dtype="bfloat16", checkpoint_activations=checkpointed, **changes)
    peak = traced_step(traced, THIN[name], options)
    within(memory.plan(Model(THIN[name]), options)["training"], peak)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_at_seven_billion(checkpointed: bool, traced: Tracker) -> None:
    options = options_of((2, 2, 512, 3072), dtype="bfloat16", checkpoint_activations=checkpointed)
    peak = traced_step(traced, qwen7(), options)
    within(memory.plan(Model(qwen7()), options)["training"], peak)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(2, 8, 64, 256), (4, 64, 32, 256), (32, 2, 512, 64), (6, 16, 512, 3072)])
@pytest.mark.parametrize("name", THIN)
def test_sampling(name: str, shape: tuple[int, int, int, int], dtype: str, traced: Tracker) -> None:
    """In one wave; the third shape has twice the prompts that go into one pass."""
    options = options_of(shape, dtype=dtype)
    peak = traced_sampling(traced, THIN[name], options)
    within(sampled(THIN[name], options), peak)


@pytest.mark.slow
@pytest.mark.parametrize("name", THIN)
def test_sampling_in_waves(name: str, traced: Tracker) -> None:
    """A wave's cache lived on while the next one was made, so that two stood side by side."""
    options = options_of((6, 16, 64, 3072), dtype="bfloat16")
    options = replace(options, cache_mb=Model(THIN[name]).cache(2) * 40 * 3072 // 2**20)
    peak = traced_sampling(traced, THIN[name], options, ended=True)
    within(sampled(THIN[name], options), peak)


def sampled(config: PretrainedConfig, options: Config) -> dict[str, int]:
    """The plan of sampling without the moments, which the trace of a sampler has not."""
    parts = memory.plan(Model(config), options)["sampling"]
    return parts | {"moments": 0, "peak": parts["peak"] - parts["moments"]}


CARDS = {  # GiB, policy, preset, what is changed of it, and whether lengths are drawn or full
    "h100, drawn lengths": (80, qwen7(), "h100", {}, True),
    "gpu24, full lengths": (24, qwen1(), "gpu24", {}, False),
    "gpu24, drawn lengths": (24, qwen1(), "gpu24", {}, True),
    "gpu24, adapters of 7B, drawn": (
        24,
        qwen7(),
        "gpu24",
        {"policy": "Qwen/Qwen2.5-7B", "lora_rank": 16},
        True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_holes_of_the_allocator(name: str, traced: Tracker) -> None:
    """Where the plan has filled a card, with as few checkpointed layers as fit: of memory that grows in place
    two percent of the card may be holes. With -s it prints the table of docs/memory.md."""
    gib, config, preset, changes, drawn = CARDS[name]
    gpu, m = gib * 2**30, Model(config)
    changes = changes | {"checkpoint_activations": False, "checkpoint_layers": "auto"}
    options = replace(PRESETS[preset], device="cuda", attention="flex", **changes)
    room = int(gpu * (1 - memory.HOLES)) - memory.RESERVE
    options = replace(options, checkpoint_layers=memory.fewest(m, options, room))
    planned = memory.plan(m, options)["training"]["peak"]
    events = two_steps(config, options, drawn)
    used, pages = least(events, expandable=True)
    _, segments = least(events, expandable=False)
    sizes = " | ".join(memory.gb(x) for x in (planned, used, pages, segments))
    print(f"\n| {name} | {sizes} |")
    assert pages - used <= 0.02 * gpu and pages <= gpu - memory.RESERVE
    assert segments - pages > 0.04 * gpu and segments - used <= (memory.HOLES_IN_SEGMENTS - 0.02) * gpu


@pytest.mark.slow
@pytest.mark.parametrize("name", THIN)
def test_judging(name: str, traced: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    m = Model(THIN[name])
    parts = memory.plan(m, Config(dtype="bfloat16", steps=0), judges=[m])["judging"]
    parts["peak"] -= parts["weights"]  # here the judge is the only model
    parts["weights"] = 0
    within(parts, traced_judging(traced, THIN[name], monkeypatch))


@pytest.mark.slow
def test_resident_memory_on_a_cpu(default: Path, tmp_path: Path) -> None:
    """Coarse: a step of the default policy in a process of its own, whose interpreter and libraries are
    counted before they begin. 544 tokens a batch."""
    words = ["--judge", "keyword", "--eval-every", "0", "--save-every", "0", "--steps", "1", "--out", "run"]
    words += ["--group-size", "4", "--max-new-tokens", "96", "--long-prompts", "skip"]
    words += ["--max-prompt-tokens", "160", "--tokens-per-batch", "544"]
    script = (
        "import re, sys, train\nfrom rar_mini import policy\n"
        # Not getrusage's, which begins at what the process that started this one held.
        "peak = lambda: 1024 * int(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])\n"
        "load = policy.load\n"
        "def loaded(*args):\n"
        "    print('before', peak())\n"
        "    return load(*args)\n"
        "policy.load = loaded\n"
        "train.main(sys.argv[1:])\n"
        "print('after', peak())\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
    command = [sys.executable, "-c", script, *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env).stdout
    before, after = (int(re.search(rf"^{word} (\d+)", found, re.M)[1]) for word in ("before", "after"))
    options = replace(setup.parse(words), device="cpu")
    parts = memory.plan(memory.read("smollm2-135m"), options)
    assert abs(max(x["peak"] for x in parts.values()) / (after - before) - 1) < 0.25, (parts, before, after)
