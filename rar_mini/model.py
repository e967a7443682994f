"""A decoder of the Llama, Qwen2/2.5 or Qwen3 family, read from and written to Hugging Face's format.

Three decisions:

- Tokens come as one flat row, `ids (T,)` with `positions (T,)`, and attention is a function that the caller brings. Which
  token may see which, where keys and values are kept and for how long is the caller's affair (`prefix.py`, `sampler.py`).
- Parameters have the names of Hugging Face's checkpoints, so that reading and writing is no translation.
- Float32 where the families compute in float32 (the mean square of RMSNorm, the angles of RoPE), the weights' dtype
  elsewhere. `tests/test_model.py` holds every variant against transformers, gradients included.

What these families allow and this file does not implement is refused by name (`refuse_unsupported`).

Axes: T tokens, D width, V vocabulary, H query heads, KV key/value heads, d head width, F width of the feed-forward.
"""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PretrainedConfig

# attend(layer, q (T, H, d), k (T, KV, d), v (T, KV, d)) -> (T, H, d); it scales the scores by d ** -0.5.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_TYPES = ("default", "llama3")


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over the last axis, and scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()  # squares of bfloat16 would lose the small addends of the mean
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)  # rounded before the scale, as the families do


def rope_frequencies(config: PretrainedConfig) -> Tensor:
    """The angle, in radians a position, by which each pair of channels turns: (d / 2,), float32.

    Rotary embedding (arXiv 2104.09864), optionally with the stretching of Llama 3.1 (arXiv 2407.21783, section 3.4.2;
    constants in its config): waves longer than the old context are slowed by `factor`, short ones stay as they were, and
    between `low_freq_factor` and `high_freq_factor` waves a context the two are blended.
    """
    rope, width = config.rope_parameters, head_width(config)
    # The device is named because `load` builds the module under torch.device("meta"), which would swallow the values.
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width  # (d / 2,)
    frequency = 1.0 / rope["rope_theta"] ** exponent
    if rope["rope_type"] == "default":
        return frequency
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # waves in an old context
    keep = ((waves - low) / (high - low)).clamp(0, 1)  # 0: slow down, 1: keep
    return keep * frequency + (1 - keep) * frequency / rope["factor"]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (i, i + d / 2) of x (T, heads, d) by its angle; cos and sin are (T, 1, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Projections, q/k norms and rotation around the attention that the caller brings."""

    def __init__(self, config: PretrainedConfig, layer: int) -> None:
        super().__init__()
        D, H, KV, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, head_width(config)
        # Qwen2 always has biases on q, k and v, and never on o; the other two have all four or none.
        bias = getattr(config, "attention_bias", False)
        qkv_bias = bias or config.model_type == "qwen2"
        self.layer, self.width = layer, d
        self.q_proj = nn.Linear(D, H * d, bias=qkv_bias)
        self.k_proj = nn.Linear(D, KV * d, bias=qkv_bias)
        self.v_proj = nn.Linear(D, KV * d, bias=qkv_bias)
        self.o_proj = nn.Linear(H * d, D, bias=bias and config.model_type != "qwen2")
        normed = config.model_type == "qwen3"  # over a head's d channels, before the rotation
        self.q_norm = RMSNorm(d, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(d, config.rms_norm_eps) if normed else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q = rearrange(self.q_proj(x), "t (h d) -> t h d", d=self.width)  # (T, H, d)
        k = rearrange(self.k_proj(x), "t (kv d) -> t kv d", d=self.width)  # (T, KV, d)
        v = rearrange(self.v_proj(x), "t (kv d) -> t kv d", d=self.width)  # (T, KV, d)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return self.o_proj(rearrange(attend(self.layer, q, k, v), "t h d -> t (h d)"))


class MLP(nn.Module):
    """The gated feed-forward SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(D, F_, bias=bias)
        self.up_proj = nn.Linear(D, F_, bias=bias)
        self.down_proj = nn.Linear(F_, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normed copy of the residual stream and added back to it."""

    def __init__(self, config: PretrainedConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids to hidden states; logits are `hidden @ decoder.head.T`, which callers take only where they need them.

    `checkpointing`: keep only the input of each layer for the backward pass and compute the rest again there. It costs
    a second forward pass (a third of the time more) and calls `attend` twice a layer, so that `attend` must be pure.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        refuse_unsupported(config)
        self.config = config
        self.checkpointing = False
        V, D = config.vocab_size, config.hidden_size
        # No padding_idx, unlike transformers: where pad is the end token, which is read in every conversation, it would
        # silence the gradient of a real token.
        layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        parts = {"embed_tokens": nn.Embedding(V, D), "layers": layers, "norm": RMSNorm(D, config.rms_norm_eps)}
        self.model = nn.ModuleDict(parts)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(D, V, bias=False)
        # Not a buffer: `decoder.to(torch.bfloat16)` would round it, and position 8000 would be off by 16 radians.
        self._frequencies = rope_frequencies(config)  # (d / 2,)

    @property
    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits, the embedding's own where the two are tied."""
        return self.model["embed_tokens"].weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (T, D) after the final norm, for token ids (T,) at positions (T,) in their own sequences.

        `attend(layer, q, k, v)` is handed q (T, H, d) and k, v (T, KV, d), normed and rotated, heads not repeated, and
        returns (T, H, d). It alone decides which tokens see which.
        """
        x = self.model["embed_tokens"](ids)  # (T, D)
        if self._frequencies.device != x.device:  # once: a copy in every pass would be a synchronisation in every pass
            self._frequencies = self._frequencies.to(x.device)
        angles = rearrange(positions.float(), "t -> t 1 1") * self._frequencies  # (T, 1, d / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.model["layers"]:
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing here draws random numbers, so that there is no generator to rewind.
                x = checkpoint(layer, x, cos, sin, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, cos, sin, attend)
        return self.model["norm"](x)


def reference_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The `attend` of one sequence alone: plain causal attention, q (T, H, d), k and v (T, KV, d) -> (T, H, d)."""
    q, k, v = (rearrange(x, "t heads d -> 1 heads t d") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return rearrange(out, "1 heads t d -> t heads d")


def head_width(config: PretrainedConfig) -> int:
    """The width d of a head, which a config may state apart from D / H."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise ValueError that names everything in a config which this file would silently compute wrongly."""
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"model_type {config.model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    rope = config.rope_parameters
    refused = []
    if rope["rope_type"] not in ROPE_TYPES:
        refused.append(f"rope_type {rope['rope_type']!r}; supported: {', '.join(ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        refused.append(f"partial_rotary_factor {rope['partial_rotary_factor']}; supported: 1.0")
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        refused.append(f"layer_types with {sorted(set(config.layer_types))}; supported: full_attention in every layer")
    if config.hidden_act != "silu":
        refused.append(f"hidden_act {config.hidden_act!r}; supported: silu")
    if config.attention_dropout:
        refused.append(f"attention_dropout {config.attention_dropout}; supported: 0")
    if getattr(config, "quantization_config", None) is not None:
        refused.append("quantization_config; supported: plain float weights")
    if config.num_attention_heads % config.num_key_value_heads:
        refused.append(f"{config.num_attention_heads} heads over {config.num_key_value_heads} key/value heads")
    if refused:
        raise ValueError(f"this {config.model_type} config is not supported: it has " + "; and ".join(refused))


def read_config(directory: Path) -> PretrainedConfig:
    """Read a model directory's config.json; ValueError if there is none or its model is not supported."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(f"expected a Hugging Face model directory, but {directory} has no config.json")
    # Before transformers sees it: its own refusal of an unknown model_type does not say what is supported here.
    model_type = json.loads(path.read_text()).get("model_type")
    if model_type not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type {model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    config = AutoConfig.from_pretrained(directory)
    refuse_unsupported(config)
    return config


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: model.safetensors, or the shards that its index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if absent := [shard.name for shard in shards if not shard.is_file()]:
            raise ValueError(f"{index} names files that are not there: {', '.join(absent)}; fetch the model again")
        return shards
    if pickled := sorted(path.name for path in directory.glob("*.bin")):
        raise ValueError(
            f"expected safetensors in {directory}, found only {', '.join(pickled)}: pickled weights can run code when "
            "opened and are not read; convert them with transformers' from_pretrained(...).save_pretrained(...)"
        )
    raise ValueError(f"expected model.safetensors or model.safetensors.index.json in {directory}, found neither")


def load(directory: Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """Read a decoder from a Hugging Face model directory, every weight as `dtype` on `device`.

    Raises ValueError that names what is missing, unexpected or of the wrong shape, and what is not supported.
    """
    directory = Path(directory)
    config = read_config(directory)
    with torch.device("meta"):  # shapes without memory, and without drawing initial values that are thrown away
        decoder = Decoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    if config.tie_word_embeddings:  # some writers store a tied head twice
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    weights: dict[str, Tensor] = {}
    problems = []
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                shape = tuple(file.get_slice(name).get_shape())
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # old checkpoints carry it; ours follows from the config
                if name not in expected:
                    problems.append(f"{name} {shape} is unexpected")
                elif shape != expected[name]:
                    problems.append(f"{name} has shape {shape}, expected {expected[name]}")
                else:
                    # copy=True: what safetensors returns is a view of the mapped file, at any address. Matrix products
                    # may round differently with alignment, and a resumed run would not repeat its numbers.
                    weights[name] = file.get_tensor(name).to(device, dtype, copy=True)
    if config.tie_word_embeddings:
        twin = weights.pop("lm_head.weight", None)
        del expected["lm_head.weight"]
        if twin is not None and not torch.equal(twin, weights.get("model.embed_tokens.weight", twin)):
            problems.append("lm_head.weight differs from the embedding though the config ties them (tie_word_embeddings)")
    named = {problem.split()[0] for problem in problems}
    problems += [f"{name} is missing" for name in expected if name not in weights and name not in named]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the weights in {directory} do not fit its config: {'; '.join(problems[:8])}{more}")
    decoder.load_state_dict(weights, assign=True)
    return decoder


def save(decoder: Decoder, directory: Path) -> None:
    """Write config.json and model.safetensors, which transformers and `load` read; the directory is made if need be.

    Not atomic: checkpoint.py writes into a partial directory and renames it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().contiguous() for name, parameter in decoder.named_parameters()}
    # transformers reads the format from the metadata and refuses a file without it.
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = deepcopy(decoder.config)
    config.dtype = decoder.head.dtype
    config.architectures = [ARCHITECTURES[config.model_type]]
    config.save_pretrained(directory)
