"""The decoder against transformers, which nobody here wrote: logits, gradients, files, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers import logging as transformers_logging
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rar_mini import model
from rar_mini.model import Decoder, reference_attention

V = 97  # a prime number of tokens
SIZES = {"vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
# An old context of 32 tokens puts waves of d = 16 channels on both sides of the blend, and into it.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama3-rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-multi-head": LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "llama-head-width": LlamaConfig(**SIZES, head_dim=10),  # not 64 / 4, and not a power of two
    "qwen2": Qwen2Config(**SIZES, rms_norm_eps=1e-5),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "qwen3-biases": Qwen3Config(**SIZES, head_dim=24, attention_bias=True),
}
FAMILIES = ["llama", "qwen2", "qwen3"]


@pytest.fixture(autouse=True, scope="module")
def no_bars():
    """Without transformers' progress bars, two for each tiny model."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


def oracle(name: str, directory: Path) -> PreTrainedModel:
    """transformers' model of a variant, also written to `directory`.

    Every parameter is drawn, the norms' weights and the biases too: at their initial 1 and 0, a norm
    without its weight or a bias that is forgotten would not show.
    """
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(CONFIGS[name])
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.ndim == 1 else 0.0, std=0.25)
    theirs.save_pretrained(directory)
    return theirs


def pair(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Decoder]:
    return oracle(name, directory).to(dtype), model.load(directory, dtype, "cpu")


def logits(decoder: Decoder, ids: Tensor, first: int = 0) -> Tensor:
    """Logits (T, V) of one sequence that begins at position `first`."""
    positions = torch.arange(first, first + len(ids))
    return decoder(ids, positions, reference_attention) @ decoder.head.T


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The relative norm of the difference."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def some_ids(T: int) -> Tensor:
    return torch.randint(V, (T,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_agree(name: str, tmp_path: Path) -> None:
    """Every variant, and the gradient of every parameter, the tied one from both of its uses."""
    theirs, ours = pair(name, tmp_path)
    ids = some_ids(41)
    direction = torch.randn(41, V, generator=torch.Generator().manual_seed(2))
    right, got = theirs(ids[None]).logits[0], logits(ours, ids)
    assert distance(got, right) < 1e-5
    (right * direction).sum().backward()
    (got * direction).sum().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == {name for name, _ in theirs.named_parameters()}
    for parameter, gradient in theirs.named_parameters():
        assert distance(gradients[parameter], gradient.grad) < 1e-5, parameter


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_exact_as_transformers(name: str, tmp_path: Path) -> None:
    """Against float32 with the same rounded weights: one op in the wrong precision would double the error."""
    theirs, ours = pair(name, tmp_path, torch.bfloat16)
    ids = some_ids(64)
    truth = model.load(tmp_path, torch.bfloat16, "cpu").float()
    first = 5001  # bfloat16 counts up to 256: beyond, angles in it would be rubbish
    with torch.no_grad():
        right = logits(truth, ids, first)
        naive = theirs(ids[None], position_ids=torch.arange(first, first + 64)[None]).logits[0]
        got = logits(ours, ids, first)
    assert got.dtype == torch.bfloat16
    assert distance(got, right) <= 2 * distance(naive, right) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_transformers_to_the_bit(dtype: torch.dtype) -> None:
    """Statistics in float32, rounded before the scale. In a whole model the difference would drown."""
    ours, theirs = model.RMSNorm(64, 1e-6).to(dtype), LlamaRMSNorm(64, 1e-6).to(dtype)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours.weight.data, theirs.weight.data = weight, weight
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["llama3-rope", "qwen2", "qwen3"])
@pytest.mark.parametrize("first", [0, 1, 199])
def test_a_sequence_may_begin_anywhere(name: str, first: int, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    ids = some_ids(13)
    # Attention sees distances only. Both have to rotate by the position, not by the place in the row.
    keys = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[layer] = k
        return reference_attention(layer, q, k, v)

    with torch.no_grad():
        out = theirs(ids[None], position_ids=torch.arange(first, first + 13)[None], use_cache=True)
        got = ours(ids, torch.arange(first, first + 13), attend) @ ours.head.T
    assert distance(got, out.logits[0]) < 1e-5
    for layer, cached in enumerate(out.past_key_values.layers):
        assert distance(keys[layer].transpose(0, 1), cached.keys[0]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_sequences_share_a_row_without_meeting(name: str, tmp_path: Path) -> None:
    """Lengths 7, 1 and 20 in one row, positions starting anew: each gets the numbers that it gets alone."""
    _, ours = pair(name, tmp_path)
    lengths = [7, 1, 20]
    sequences = some_ids(28).split(lengths)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([reference_attention(layer, *part) for part in parts])

    positions = torch.cat([torch.arange(length) for length in lengths])
    together = ours(torch.cat(sequences), positions, attend) @ ours.head.T
    alone = torch.cat([logits(ours, sequence) for sequence in sequences])
    assert distance(together, alone) < 1e-5


def test_attend_is_handed_few_heads_and_the_layer(tmp_path: Path) -> None:
    _, ours = pair("qwen3", tmp_path)
    seen = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((layer, *map(tuple, (q.shape, k.shape, v.shape))))
        return reference_attention(layer, q, k, v)

    assert ours(some_ids(5), torch.arange(5), attend).shape == (5, 64)
    assert seen == [(layer, (5, 4, 24), (5, 2, 24), (5, 2, 24)) for layer in range(3)]


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_changes_no_number(name: str, tmp_path: Path) -> None:
    _, ours = pair(name, tmp_path)
    gradients, again = {}, {}
    for layers in range(4):
        ours.checkpointed, calls = layers, []
        ours.zero_grad()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(layer)
            return reference_attention(layer, q, k, v)

        ours(some_ids(9), torch.arange(9), attend).square().sum().backward()
        parts = ours.model.named_parameters()  # without the head, which was not asked
        gradients[layers] = {name: parameter.grad.clone() for name, parameter in parts}
        again[layers] = calls[3:]
    assert again == {0: [], 1: [0], 2: [1, 0], 3: [2, 1, 0]}  # what the backward pass computed anew
    for parameter, gradient in gradients[0].items():
        assert all(torch.equal(gradient, gradients[n][parameter]) for n in gradients), parameter


def test_the_pad_token_learns(tmp_path: Path) -> None:
    """transformers gives the embedding a padding_idx, and with it the pad token's row no gradient.

    In SmolLM2, pad is <|im_end|>: the token that ends every turn of the prompt, and is read there.
    """
    config = LlamaConfig(**SIZES, tie_word_embeddings=False, pad_token_id=2)
    ours = Decoder(config)
    ours(torch.tensor([5, 2, 7]), torch.arange(3), reference_attention).sum().backward()
    assert ours.model["embed_tokens"].weight.grad[2].norm() > 0


def test_casting_the_model_leaves_the_angles_alone(tmp_path: Path) -> None:
    """A buffer of frequencies would follow `.bfloat16()`, and be off by radians at position 8000."""
    _, ours = pair("llama", tmp_path)
    loaded = model.load(tmp_path, torch.bfloat16, "cpu")
    assert torch.equal(
        logits(ours.bfloat16(), some_ids(3), first=8000), logits(loaded, some_ids(3), first=8000)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_loads_in_transformers_and_here(name: str, tmp_path: Path) -> None:
    _, ours = pair(name, tmp_path / "theirs")
    model.save(ours, tmp_path / "ours")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    ids = some_ids(17)
    assert distance(logits(ours, ids), theirs(ids[None]).logits[0]) < 1e-5
    again = model.load(tmp_path / "ours", torch.float32, "cpu")
    for (left, right), (same, twin) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert left == same and torch.equal(right, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_config_says_what_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    _, ours = pair("qwen2", tmp_path / "theirs")
    before = ours.config.to_dict()
    model.save(ours.to(dtype), tmp_path / "ours")
    assert ours.config.to_dict() == before  # saving is no change of the model
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.dtype == dtype and config.architectures == ["Qwen2ForCausalLM"]
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}
    # safetensors creates files for the owner alone; a checkpoint is shared like every other file.
    modes = {path.stat().st_mode for path in (tmp_path / "ours").iterdir()}
    assert len(modes) == 1


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every other failure to write is, for those who catch it: safetensors raises an error of its own."""
    _, ours = pair("llama", tmp_path)

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_file", full)
    with pytest.raises(OSError, match="could not write .*model.safetensors: .*No space left on device"):
        model.save(ours, tmp_path)


def test_sharded_weights(tmp_path: Path) -> None:
    theirs = oracle("qwen3", tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    ours = model.load(tmp_path / "shards", torch.float32, "cpu")
    assert distance(logits(ours, some_ids(8)), theirs(some_ids(8)[None]).logits[0]) < 1e-5
    victim = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ValueError, match=f"{victim.name}.*not there"):
        model.load(tmp_path / "shards", torch.float32, "cpu")


def change(directory: Path, **weights: Tensor | None) -> None:
    """Replace weights of a saved model, or remove them (None). `__` in a name stands for a dot."""
    path = directory / "model.safetensors"
    stored = load_file(path) | {name.replace("__", "."): weight for name, weight in weights.items()}
    save_file({name: weight for name, weight in stored.items() if weight is not None}, path)


def test_redundant_weights_are_tolerated(tmp_path: Path) -> None:
    """A tied head that is stored twice, and the frequencies that old Llama checkpoints carry."""
    theirs = oracle("llama", tmp_path)
    change(
        tmp_path,
        lm_head__weight=theirs.model.embed_tokens.weight.detach().clone(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
    )
    ours = model.load(tmp_path, torch.float32, "cpu")
    assert distance(logits(ours, some_ids(8)), theirs(some_ids(8)[None]).logits[0]) < 1e-5


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        (
            "qwen2",
            {"model__layers__1__self_attn__q_proj__bias": None},
            "layers.1.self_attn.q_proj.bias is missing",
        ),
        ("llama-untied", {"lm_head__weight": None}, "lm_head.weight is missing"),
        ("llama", {"model__layers__0__self_attn__q_proj__bias": torch.ones(64)}, "q_proj.bias is unexpected"),
        (
            "llama",
            {"model__layers__9__mlp__up_proj__weight": torch.ones(1)},
            "layers.9.mlp.up_proj.weight is unexp",
        ),
        (
            "llama",
            {"model__norm__weight": torch.ones(65)},
            r"model.norm.weight has shape \(65,\), expected \(64,\)",
        ),
        ("llama", {"lm_head__weight": torch.ones(V, 64)}, "lm_head.weight is not the embedding"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    name: str, weights: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    oracle(name, tmp_path)
    change(tmp_path, **weights)
    with pytest.raises(ValueError, match=said):
        model.load(tmp_path, torch.float32, "cpu")


def test_directories_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json"):
        model.load(tmp_path, torch.float32, "cpu")
    CONFIGS["llama"].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected model.safetensors or model.safetensors.index.json"):
        model.load(tmp_path, torch.float32, "cpu")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"found pytorch_model.bin: pickled.*Convert"):
        model.load(tmp_path, torch.float32, "cpu")
    # What git without its large-file extension leaves behind.
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        model.load(tmp_path, torch.float32, "cpu")


REFUSED = {
    "mistral": (MistralConfig(**SIZES), "'mistral'.*supported: llama, qwen2, qwen3"),
    "yarn": (
        Qwen2Config(**SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        "rope_type 'yarn' .supported: default and llama3",
    ),
    "linear": (
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        "rope_type 'linear'",
    ),
    "partial": (
        LlamaConfig(
            **SIZES,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        "partial_rotary_factor",
    ),
    "sliding": (
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=32, max_window_layers=1),
        "layer_types.*sliding_attention.*full_attention only",
    ),
    "gelu": (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act 'gelu' .supported: silu"),
    "dropout": (Qwen3Config(**SIZES, attention_dropout=0.1), "attention_dropout 0.1"),
    "quantised": (LlamaConfig(**SIZES, quantization_config={"quant_method": "fp8"}), "quantization_config"),
    "groups": (LlamaConfig(**SIZES | {"num_key_value_heads": 3}), "4 heads for 3 key/value heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        Decoder(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        model.load(tmp_path, torch.float32, "cpu")


def test_a_family_that_transformers_does_not_know_is_refused_by_name_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama17"}))
    with pytest.raises(ValueError, match="'llama17' is not supported; supported: llama, qwen2, qwen3"):
        model.load(tmp_path, torch.float32, "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="None is not supported"):
        model.load(tmp_path, torch.float32, "cpu")


def test_configs_of_before_transformers_5(tmp_path: Path) -> None:
    """Released configs say rope_theta and rope_scaling at the top level; Llama 3.1's are written so."""
    theirs = oracle("llama3-rope", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    path.write_text(json.dumps(config))
    ours = model.load(tmp_path, torch.float32, "cpu")
    assert distance(logits(ours, some_ids(50)), theirs(some_ids(50)[None]).logits[0]) < 1e-5


def test_loaded_weights_are_aligned_wherever_they_lay_in_the_file(tmp_path: Path) -> None:
    """A file's header moves its weights, and one row's product with an unaligned weight is rounded otherwise.

    So at 12 of 16 offsets, on CPU: a run resumed from a checkpoint would not repeat the uninterrupted one.
    """
    oracle("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for length in (0, 8, 16):
        metadata = {"format": "pt", "padding": "x" * length}
        save_file(weights, tmp_path / "model.safetensors", metadata=metadata)
        ours = model.load(tmp_path, torch.float32, "cpu")
        assert all(parameter.data_ptr() % 64 == 0 for parameter in ours.parameters())


def test_the_real_default(default: Path) -> None:
    """SmolLM2-135M on plain English: ours is transformers', and it really is a language model."""
    text = (
        "Iron deficiency is the most common cause of anaemia. The body needs iron to make haemoglobin, the "
        "protein in red blood cells that carries oxygen from the lungs to the rest of the body."
    )
    ids = AutoTokenizer.from_pretrained(default)(text, return_tensors="pt").input_ids
    theirs = AutoModelForCausalLM.from_pretrained(default)
    ours = model.load(default, torch.float32, "cpu")
    with torch.no_grad():
        right, got = theirs(ids).logits[0], logits(ours, ids[0])
    assert distance(got, right) < 2e-4
    # 1.69 nats a token; 2.99 with the rows of q and k left as in GGUF, where transformers would agree.
    assert torch.nn.functional.cross_entropy(got[:-1], ids[0, 1:]) < 2
