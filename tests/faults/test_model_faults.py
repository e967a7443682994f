"""Model folders as they really come: damaged, half fetched, from other programs. The file is named."""

import dataclasses
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import load_file, save_file

from rar_mini import lora, model, policy

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 538090408\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of `tiny` to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "policy"))


def refusal(folder: Path) -> str:
    """The one line that loading a folder ends in."""
    with pytest.raises(ValueError) as error:
        policy.load(str(folder), torch.float32, "cpu")
    words = str(error.value)
    assert "\n" not in words and len(words) < 900
    return words


def comma(text: bytes) -> bytes:
    return text.rstrip().removesuffix(b"}") + b",}"


def marked(text: bytes) -> bytes:
    return b"\xef\xbb\xbf" + text


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a comma too many": (comma, "expected a JSON object in UTF-8, got Expecting property name"),
    "a byte order mark": (marked, "got a byte order mark in front; save the file without one"),
    "a pointer of Git LFS": (lambda text: POINTER, "got a pointer of Git LFS in place of the file; fetch it"),
    "a list": (lambda text: b"[]", "expected a JSON object in UTF-8, got a list"),
    "another encoding": (lambda text: text.decode().encode("utf-16"), "got 'utf-8' codec"),
    "brackets without end": (lambda text: b"[" * 100_000, "got "),
    "half of it": (lambda text: text[: len(text) // 2], "got "),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", INDEX]
)
def test_a_damaged_json_file_is_named(folder: Path, name: str, fault: str) -> None:
    """`Expecting value: line 1 column 1` names nothing, and a model's folder has six such files."""
    if name == INDEX:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / INDEX).write_text('{"weight_map": {"a": "part.safetensors"}}')
    spoil, words = FAULTS[fault]
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    assert f"cannot read {folder / name}: " in refusal(folder) and words in refusal(folder)


def test_weights_that_were_not_fetched_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)
    assert (
        f"{folder / 'model.safetensors'} is damaged: expected safetensors, got a pointer of Git LFS"
        in refusal(folder)
    )


VALUES = [
    ("config.json", ("hidden_size",), "32", "hidden_size"),
    ("config.json", ("hidden_size",), 10**400, "field hidden_size: expected 1e+07 or less, got 1000"),
    ("config.json", ("num_hidden_layers",), 10**9, "field num_hidden_layers: expected 1000 or less, got 10"),
    ("config.json", ("head_dim",), 10**12, "field head_dim: expected "),
    ("config.json", ("vocab_size",), 10**9, "field vocab_size: expected "),
    ("config.json", ("max_position_embeddings",), 10**12, "field max_position_embeddings: expected "),
    ("config.json", ("num_hidden_layers",), 100, "do not fit its config: model.layers.2."),
    (
        "config.json",
        ("vocab_size",),
        10**7,
        "model.embed_tokens.weight has shape (259, 32), expected (10000000",
    ),
    ("config.json", ("hidden_size",), 10**7, "do not fit its config: "),
    ("config.json", ("num_attention_heads",), 0, "field num_attention_heads: expected 1 or more, got 0"),
    ("config.json", ("rope_parameters", "rope_theta"), [], "TypeError"),
    ("config.json", ("rope_parameters", "rope_type"), {}, "cannot read the model in "),
    ("config.json", ("model_type",), "gpt2", "model_type 'gpt2' is not supported"),
    ("generation_config.json", ("eos_token_id",), "2", "expected numbers of tokens as eos_token_id, got '2'"),
    ("generation_config.json", ("eos_token_id",), [[2]], "expected numbers of tokens as eos_token_id"),
    ("tokenizer.json", ("model", "type"), "none", "cannot read the model in "),
    ("tokenizer_config.json", ("tokenizer_class",), 5, "cannot read the model in "),
]


@pytest.mark.parametrize(("name", "at", "value", "words"), VALUES)
def test_a_value_that_no_model_has_is_refused(
    folder: Path, name: str, at: tuple[str, ...], value: object, words: str
) -> None:
    """transformers, tokenizers, torch and this code each end in errors of another type."""
    content = place = json.loads((folder / name).read_bytes())
    for part in at[:-1]:
        place = place[part]
    place[at[-1]] = value
    (folder / name).write_text(json.dumps(content))
    assert str(folder) in refusal(folder) and words in refusal(folder)


@pytest.mark.parametrize("shards", [None, {}, {"a": 5}, {"a": "../part.safetensors"}])
def test_an_index_names_files_beside_it(folder: Path, shards: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert f"{folder / INDEX}: expected a `weight_map` from weights to files beside it" in refusal(folder)


ANOTHER = "expected the name of another model as base_model_name_or_path, got "
ADAPTERS = [
    ("r", None, "field r: expected a whole number, got nothing"),
    ("lora_alpha", "8", "field lora_alpha: expected a number, got '8'"),
    ("lora_alpha", 1e300, "field lora_alpha: expected "),
    ("base_model_name_or_path", ["a"], f"{ANOTHER}['a']"),
    ("base_model_name_or_path", "\ud800", f"{ANOTHER}'\\ud800'"),
    ("base_model_name_or_path", "x" * 5000, "no model 'xxx"),
    ("peft_type", "x" * 2000, "expected plain LoRA, got peft_type xxx"),
]


@pytest.mark.parametrize(("name", "value", "words"), ADAPTERS)
def test_a_config_of_adapters_is_named_with_its_field(
    tiny: Path, tmp_path: Path, name: str, value: object, words: str
) -> None:
    decoder = model.load(tiny, torch.float32, "cpu")
    lora.adapt(decoder, 2, 4.0, ("q_proj",), 0)
    lora.save(decoder, tmp_path, str(tiny))
    path = tmp_path / lora.CONFIG
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {name: value}))
    assert str(tmp_path) in refusal(tmp_path) and words in refusal(tmp_path)


def test_adapters_in_their_base_s_own_folder_are_refused(folder: Path) -> None:
    """Looking for the base's base ended in a RecursionError."""
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(folder)}
    (folder / lora.CONFIG).write_text(json.dumps(said))
    assert f"{folder / lora.CONFIG}: {ANOTHER}'{str(folder)[:20]}" in refusal(folder)


def test_weights_of_integers_are_not_read_as_if_they_were_weights(folder: Path) -> None:
    """Those of a quantised model whose config does not say so would be cast without their scales."""
    path = folder / "model.safetensors"
    save_file({name: weight.to(torch.int8) for name, weight in load_file(path).items()}, path)
    assert f"the weights in {folder} are I8: expected plain floats" in refusal(folder)


def test_a_folder_that_is_damaged_ends_a_command_in_one_line(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    (folder / "tokenizer.json").write_bytes(POINTER)
    done = command("train.py", "--policy", folder, "--out", tmp_path / "run")
    assert done.returncode == 1 and done.stderr.startswith(
        f"train.py: cannot read {folder / 'tokenizer.json'}"
    )
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_tokenizer_that_the_disk_does_not_take_is_an_error_of_the_disk(tiny: Path, tmp_path: Path) -> None:
    """tokenizers raises Exception itself, which no command expects. A limit of sizes stands for the disk."""
    actor = dataclasses.replace(policy.load(str(tiny), torch.float32, "cpu"), merge=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=f"could not write the tokenizer into {tmp_path}: .*File too large"):
            actor.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
