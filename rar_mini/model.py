"""A decoder of the Llama, Qwen2/2.5 or Qwen3 family, read from and written to Hugging Face's format.

Three decisions:

- Tokens come as one flat row, ids (T,) with positions (T,), and the caller brings attention, as a function.
  Which token sees which, and where keys and values are kept, is the caller's affair (prefix.py, sampler.py).
- Parameters bear the names of Hugging Face's checkpoints, so that reading and writing need no translation.
- Float32 where the families compute in float32 (the mean square of RMSNorm, the angles of RoPE), the weights'
  dtype elsewhere. tests/test_model.py holds every variant against transformers, gradients included.

What these families' configs allow and this file does not implement is refused by name.

Axes: T tokens, D width, V vocabulary, H query heads, KV key/value heads, d head width.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PretrainedConfig

from rar_mini import forms
from rar_mini.files import json_object, unfetched
from rar_mini.forms import Form
from rar_mini.kernels import rope
from rar_mini.kernels.norm import add_rms_norm, rms_norm
from rar_mini.kernels.swiglu import swiglu, swiglu_linear

# attend(layer, q (T, H, d), k (T, KV, d), v (T, KV, d)) -> (T, H, d). It scales the scores by d ** -0.5. One
# with a method `rotate` turns q and k itself: a cache keeps k and v in the same launch (kernels/decode.py).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Input = tuple[Tensor, Tensor, Attend]
"""What a decoder reads: ids (T,), positions (T,) and attention."""

WAITING = 5 * 2**30
"""The most bytes of hidden states that may wait on a GPU while the layers of a model on the CPU come one by
one. A step of the paper's at 7B has 4.7e9."""

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_TYPES = ("default", "llama3")
Shapes = dict[str, tuple[int, ...]]
Layers = Annotated[int, Field(ge=1, le=1_000)]
Width = Annotated[int, Field(ge=1, le=10**7)]


class Sizes(Form):
    """What a config may ask for: several times the largest models that there are. transformers would list
    10^9 layers, one by one, before the weights' headers can show that there are none."""

    num_hidden_layers: Layers | None = None
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    num_attention_heads: Width | None = None
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    vocab_size: Width | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=10**9)] | None = None


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over the last axis, and scale (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class ResidualNorm(RMSNorm):
    """The same of the residual stream x (T, D), after it has taken up what is to be added: returns both."""

    def forward(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        if delta is None:
            return x, rms_norm(x, self.weight, self.eps)
        return add_rms_norm(x, delta, self.weight, self.eps)


def rope_frequencies(config: PretrainedConfig) -> Tensor:
    """The angles, in radians a position, by which the pairs of a head's channels turn: (d / 2,), float32.

    Rotary embedding is arXiv 2104.09864. The type `llama3` stretches it to longer texts, as the configs of
    Llama 3.1 do: waves that fit fewer than `low_freq_factor` times into the old context are slowed by
    `factor`, those that fit more than `high_freq_factor` times stay, and between the two they are blended.
    """
    rope, width = config.rope_parameters, head_width(config)
    # The device is named because `load` builds under torch.device("meta"), which would swallow the values.
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width  # (d / 2,)
    frequency = 1.0 / rope["rope_theta"] ** exponent
    if rope["rope_type"] == "default":
        return frequency
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the old context
    keep = ((waves - low) / (high - low)).clamp(0, 1)  # (d / 2,), 0 slows down and 1 leaves alone
    return keep * frequency + (1 - keep) * frequency / rope["factor"]


class Attention(nn.Module):
    """Projections, q/k norms and rotation around the attention that the caller brings."""

    def __init__(self, config: PretrainedConfig, layer: int) -> None:
        super().__init__()
        D, H, KV = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        d, eps, family = head_width(config), config.rms_norm_eps, config.model_type
        # Qwen2 always has biases on q, k and v and never on o; the others have all four or none.
        bias = family != "qwen2" and config.attention_bias
        self.layer, self.width = layer, d
        self.q_proj = nn.Linear(D, H * d, bias=bias or family == "qwen2")
        self.k_proj = nn.Linear(D, KV * d, bias=bias or family == "qwen2")
        self.v_proj = nn.Linear(D, KV * d, bias=bias or family == "qwen2")
        self.o_proj = nn.Linear(H * d, D, bias=bias)
        # Over the d channels of a head, before the rotation.
        self.q_norm = RMSNorm(d, eps) if family == "qwen3" else nn.Identity()
        self.k_norm = RMSNorm(d, eps) if family == "qwen3" else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, D) -> q (T, H d), k and v (T, KV d)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, self.width)) for y in self.project(x))  # (T, H, d), (T, KV, d) twice
        q, k = self.q_norm(q), self.k_norm(k)
        own = getattr(attend, "rotate", None)
        q, k = own(self.layer, q, k, v, cos, sin) if own else rope.rotate(q, k, cos, sin)
        return self.o_proj(attend(self.layer, q, k, v).flatten(-2))


class MLP(nn.Module):
    """The gated feed-forward SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        D, inner, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(D, inner, bias=bias)
        self.up_proj = nn.Linear(D, inner, bias=bias)
        self.down_proj = nn.Linear(inner, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)  # (T, F) twice
        if type(self.down_proj) is nn.Linear and self.down_proj.bias is None:  # it need not keep its input
            return swiglu_linear(gate, up, self.down_proj.weight)  # (T, D)
        return self.down_proj(swiglu(gate, up))


class Layer(nn.Module):
    """Attention, then feed-forward, each reading a normed copy of the residual stream and adding to it.

    What the feed-forward adds is handed on beside the stream: the next norm makes the sum in the same pass.
    """

    def __init__(self, config: PretrainedConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = ResidualNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = ResidualNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, delta: Tensor | None, cos: Tensor, sin: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        x, normed = self.input_layernorm(x, delta)
        x, normed = self.post_attention_layernorm(x, self.self_attn(normed, cos, sin, attend))
        return x, self.mlp(normed)


class Visitor(nn.Module):
    """A frozen part whose weights stay where they are: a copy goes to its input's device, for one call or for
    as long as it is `staying` there.

    From pinned memory the copy is the GPU's own affair: the CPU goes on, and the next layers are queued.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.there: dict[str, Tensor] | None = None

    @contextmanager
    def staying(self, device: torch.device) -> Iterator[None]:
        """Keep a copy on `device` until the end of the block."""
        self.there = self._copy(device)
        try:
            yield
        finally:
            self.there = None

    def _copy(self, device: torch.device) -> dict[str, Tensor]:
        return {name: weight.to(device, non_blocking=True) for name, weight in self.part.named_parameters()}

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        weights = self._copy(x.device) if self.there is None else self.there
        return functional_call(self.part, weights, (x, *rest))


def pin(part: nn.Module) -> None:
    """Move a part's weights into pinned memory. Raises RuntimeError where there is too little.

    Into one piece, because PyTorch rounds a piece up to a power of two, with each weight at a multiple of 64
    numbers.
    """
    weights = list(part.parameters())
    sizes = [-(-weight.numel() // 64) * 64 for weight in weights]
    pinned = torch.empty(sum(sizes), dtype=weights[0].dtype, pin_memory=True)
    for weight, place in zip(weights, pinned.split(sizes), strict=True):
        weight.data = place[: weight.numel()].view_as(weight).copy_(weight.data)


class Decoder(nn.Module):
    """Token ids to hidden states. Logits are `hidden @ decoder.head.T`, taken by callers only where needed.

    The first `checkpointed` layers keep only their input for the backward pass and compute the rest again
    then. That costs their forward pass once more, and calls `attend` a second time: it must not write to a
    cache. The first, because their turn comes last, when what the others have kept is gone.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        refuse_unsupported(config)
        self.config = config
        self.checkpointed = 0
        V, D, eps = config.vocab_size, config.hidden_size, config.rms_norm_eps
        self.model = nn.ModuleDict()
        # No padding_idx: transformers sets it, which silences the gradient of the pad token's embedding.
        # Where pad and end are one, that is a token which every conversation really reads.
        self.model["embed_tokens"] = nn.Embedding(V, D)
        self.model["layers"] = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.model["norm"] = ResidualNorm(D, eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(D, V, bias=False)
        # Not a buffer: `decoder.bfloat16()` would round it by up to 1/512, at position 8000 by radians.
        self._frequencies = rope_frequencies(config)  # (d / 2,)

    @property
    def head(self) -> Tensor:
        """The weight (V, D) that makes logits of hidden states; the embedding's own where they are tied."""
        tied = self.config.tie_word_embeddings
        return self.model["embed_tokens"].weight if tied else self.lm_head.weight

    def visit(self) -> None:
        """From now on compute where the tokens are, and leave the weights here, frozen: one layer at a time
        goes there, for each pass, or for all that `each` makes together."""
        self.requires_grad_(False)
        self.model["layers"] = nn.ModuleList(map(Visitor, self.model["layers"]))
        self.model["norm"] = Visitor(self.model["norm"])

    def pin(self) -> None:
        """Move all that visits a GPU into pinned memory. Raises RuntimeError."""
        head = self.model["embed_tokens"] if self.config.tie_word_embeddings else self.lm_head
        for part in (*self.model["layers"], self.model["norm"], head):
            pin(part)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (T, D) after the final norm, of ids (T,) at positions (T,) in their own sequences.

        `attend(layer, q, k, v)` is handed q (T, H, d) and k, v (T, KV, d), normed and rotated, the heads of k
        and v not repeated, and returns (T, H, d). It alone decides which tokens see which.
        """
        *_, hidden = self._pass(ids, positions, attend)
        return hidden

    def each(self, inputs: Sequence[Input]) -> Iterator[Tensor]:
        """What `forward` returns for each input, in turn. If layers visit, a layer comes once for a group of
        inputs, which wait for the next in at most WAITING bytes, and not once for each input."""
        norm, layers = self.model["norm"], self.model["layers"]
        if not isinstance(norm, Visitor):
            yield from (self(*one) for one in inputs)
            return
        for group in self._groups(inputs):
            device, passes = group[0][0].device, deque(self._pass(*one) for one in group)
            for layer in layers:
                with layer.staying(device):
                    for _ in map(next, passes):
                        pass
            with norm.staying(device):
                while passes:
                    yield next(passes.popleft())

    def _groups(self, inputs: Sequence[Input]) -> Iterator[list[Input]]:
        """Inputs in their order, cut where they would take more than WAITING; one alone may take more."""
        group: list[Input] = []
        held, config = 0, self.config
        # The residual stream and what is still to be added to it; cos and sin.
        token = 2 * (config.hidden_size + head_width(config)) * self.head.element_size()
        for one in inputs:
            size = len(one[0]) * token
            if group and held + size > WAITING:
                yield group
                group, held = [], 0
            group.append(one)
            held += size
        if group:
            yield group

    def _pass(self, ids: Tensor, positions: Tensor, attend: Attend) -> Iterator[Tensor | None]:
        """None after each layer, and at last what `forward` returns."""
        for stream in self._layers(ids, positions, attend):  # noqa: B007, the last one is read
            yield None
        yield self.model["norm"](*stream)[1]

    def states(self, ids: Tensor, positions: Tensor, attend: Attend) -> Iterator[Tensor]:
        """What each layer leaves in the residual stream, (T, D), layer by layer: who stops early pays for no
        layer above. Arguments are those of `forward`."""
        return (x + delta for x, delta in self._layers(ids, positions, attend))

    def _layers(self, ids: Tensor, positions: Tensor, attend: Attend) -> Iterator[tuple[Tensor, Tensor]]:
        """After each layer, the residual stream and what is still to be added to it."""
        assert ids.ndim == 1 and ids.shape == positions.shape, "one flat row, and a position for each token"
        embedding = self.model["embed_tokens"]
        x = embedding(ids.to(embedding.weight.device)).to(ids.device)  # (T, D)
        if self._frequencies.device != x.device:  # once: a copy to the GPU would stall every pass
            self._frequencies = self._frequencies.to(x.device)
        angles = rearrange(positions.float(), "t -> t 1 1") * self._frequencies  # (T, 1, d / 2)
        cos, sin = angles.cos(), angles.sin()
        cos, sin = (torch.cat(pair, -1).to(x.dtype) for pair in ((cos, cos), (-sin, sin)))  # (T, 1, d)
        del angles
        delta = None
        for number, layer in enumerate(self.model["layers"]):
            if number < self.checkpointed and torch.is_grad_enabled():
                if delta is not None:
                    x, delta = x + delta, None  # one tensor to keep, not two
                # Nothing here draws random numbers, so there is no generator to rewind.
                how = {"use_reentrant": False, "preserve_rng_state": False}
                x, delta = checkpoint(layer, x, delta, cos, sin, attend, **how)
            else:
                x, delta = layer(x, delta, cos, sin, attend)
            yield x, delta


def reference_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The `attend` of a lone sequence: causal attention of q (T, H, d) over k, v (T, KV, d) -> (T, H, d)."""
    q, k, v = (rearrange(x, "t heads d -> 1 heads t d") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return rearrange(out, "1 heads t d -> t heads d")


def head_width(config: PretrainedConfig) -> int:
    """The width d of a head, which a config may set apart from D / H."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise ValueError that names everything in a config that would silently be computed wrongly here."""
    refuse_family(config.model_type)
    rope = config.rope_parameters
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    activation, dropout = config.hidden_act, config.attention_dropout
    quantised = getattr(config, "quantization_config", None) is not None
    checks = [  # what has to hold, what came, what is supported
        (rope["rope_type"] in ROPE_TYPES, f"rope_type {rope['rope_type']!r}", " and ".join(ROPE_TYPES)),
        (rope.get("partial_rotary_factor", 1) == 1, "partial_rotary_factor", "rotation of whole heads"),
        (layer_types == {"full_attention"}, f"layer_types {sorted(layer_types)}", "full_attention only"),
        (activation == "silu", f"hidden_act {activation!r}", "silu"),
        (not dropout, f"attention_dropout {dropout}", "none"),
        (not quantised, "quantization_config", "plain float weights"),
        (heads % groups == 0, f"{heads} heads for {groups} key/value heads", "a multiple"),
    ]
    if refused := [f"{came} (supported: {supported})" for holds, came, supported in checks if not holds]:
        raise ValueError(f"this {config.model_type} model is not supported: it has {', '.join(refused)}")


def refuse_family(model_type: str | None) -> None:
    """Raise ValueError for an architecture that is not one of ours."""
    if model_type not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {names} (Qwen2.5 is qwen2)")


def read_config(directory: Path) -> PretrainedConfig:
    """Read a model directory's config.json; raise ValueError if there is none, or if it is not supported."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"expected a Hugging Face model directory, but {directory} has no config.json")
    with reading(directory):
        # First, because transformers' own refusal of a family that it does not know does not say what we
        # support.
        written = json_object(path)
        refuse_family(written.get("model_type"))
        forms.read(Sizes, written, str(path))
        config = AutoConfig.from_pretrained(directory)
        refuse_unsupported(config)
        return config


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Around what reads a model's folder: every error becomes a ValueError that names the folder, or its JSON
    file that is damaged. Configs are programs of others, and so their errors are of every type."""
    try:
        yield
    except Exception as error:  # tokenizers raises Exception itself
        for path in sorted(directory.glob("*.json")):
            json_object(path)
        words = " ".join(str(error).split())  # some have several lines
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"cannot read the model in {directory}: {kind}{words:.500}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: model.safetensors, or the shards that its index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = sorted({directory / name for name in _shards(index)})
        if absent := [shard.name for shard in shards if not shard.is_file()]:
            raise ValueError(f"{index} names {', '.join(absent)}, which are not there: fetch the model again")
        return shards
    if pickled := sorted(path.name for path in directory.glob("*.bin")):
        raise ValueError(
            f"expected safetensors in {directory}, found {', '.join(pickled)}: pickled weights can run code "
            "when they are opened. Convert them with transformers: from_pretrained(...).save_pretrained(...)"
        )
    raise ValueError(f"no weights in {directory}: expected {single.name} or {index.name}")


def _shards(index: Path) -> list[str]:
    """The names of files that an index gives its weights."""
    weights = json_object(index).get("weight_map")
    names = list(weights.values()) if isinstance(weights, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ValueError(
            f"{index}: expected a `weight_map` from weights to files beside it, got {weights!r:.80}"
        )
    return names


def refuse_misfits(directory: Path, expected: Shapes, stored: Shapes) -> None:
    """Raise ValueError that names the weights which are missing, unexpected or of the wrong shape."""
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in expected]
    problems += [
        f"{name} has shape {shape}, expected {expected[name]}"
        for name, shape in stored.items()
        if expected.get(name, shape) != shape
    ]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the weights in {directory} do not fit its config: {', '.join(problems[:8])}{more}")


def load(directory: Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """Read a decoder from a Hugging Face model directory, every weight as `dtype` on `device`.

    Raises ValueError that names what is not supported, or which weights are missing, unexpected or misshapen.
    """
    directory = Path(directory)
    config = read_config(directory)
    # Meta: no memory, and no time for initial values that would be thrown away.
    with reading(directory), torch.device("meta"):
        decoder = Decoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    with ExitStack() as stack:
        source = {}  # name -> the open file that has it
        for path in weight_files(directory):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                came = unfetched(path) or f"{error}; fetch the model again"
                raise ValueError(f"{path} is damaged: expected safetensors, got {came}") from error
            # Old checkpoints carry the rotation's frequencies; ours follow from the config.
            source |= {name: file for name in file.keys() if not name.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings and "lm_head.weight" in source:  # some writers store a tied head twice
            expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
        stored = {name: tuple(file.get_slice(name).get_shape()) for name, file in source.items()}
        refuse_misfits(directory, expected, stored)
        kinds = {file.get_slice(name).get_dtype() for name, file in source.items()}
        if not kinds <= {"F64", "F32", "F16", "BF16"}:  # without their scales, integers are other numbers
            raise ValueError(f"the weights in {directory} are {', '.join(kinds)}: expected plain floats")
        # copy=True: safetensors returns views of a mapped file, at odd addresses, where the product with one
        # row rounds differently (on CPU, at 12 of 16 offsets). A resumed run has to repeat its numbers.
        weights = {name: file.get_tensor(name).to(device, dtype, copy=True) for name, file in source.items()}
    if config.tie_word_embeddings:
        twin = weights.pop("lm_head.weight", None)
        if twin is not None and not torch.equal(twin, weights["model.embed_tokens.weight"]):
            raise ValueError(f"{directory}: lm_head.weight is not the embedding, yet the config ties them")
    decoder.load_state_dict(weights, assign=True)
    return decoder


def save(decoder: Decoder, directory: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write config.json and model.safetensors, which transformers and `load` read, in the weights' own dtype.

    `weights` are written in place of the decoder's own, under their names. Makes the directory if need be.
    Not atomic: callers write into a partial directory and rename it. Raises OSError where the disk does not
    take it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = deepcopy(decoder.config)  # a frozen reference may share it, in another dtype
    config.dtype = decoder.head.dtype
    config.architectures = [ARCHITECTURES[config.model_type]]
    config.save_pretrained(directory)
    write_weights(weights or decoder.state_dict(), directory / "model.safetensors", directory / "config.json")


def write_weights(weights: dict[str, Tensor], path: Path, like: Path) -> None:
    """Write a safetensors file that those may read who may read `like`. Raises OSError."""
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    try:
        save_file(weights, path, metadata={"format": "pt"})  # older readers ask for it
    except SafetensorError as error:  # what a full disk is to safetensors is no OSError
        raise OSError(f"could not write {path}: {error}") from error
    path.chmod(like.stat().st_mode)  # safetensors lets nobody but the owner read it
