"""LoRA (arXiv 2106.09685): the weights stay as they are, and beside some projections a product of low rank is
trained.

    y = x W^T + b + (alpha / r) (x A^T) B^T        W (O, I), A (r, I), B (O, r)

A is drawn as PEFT draws it and B is zero, so that training begins at the base. Three decisions:

- **The base is never written to.** What a KL penalty compares with is a plain decoder over the very same
  tensors (`base`): adapters off, without a switch that could be left on, and without a second copy.
- **PEFT's format is the only one**: adapter_config.json and adapter_model.safetensors, its names and shapes.
- **Merging rounds.** In bfloat16, W + (alpha / r) B A keeps of a small product what W's last digit can show.
  A run continues from its adapters; merged weights are for others to load.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rar_mini import forms
from rar_mini.files import json_object
from rar_mini.forms import ABSENT, Form, Number
from rar_mini.model import Decoder, refuse_misfits, write_weights
from rar_mini.pretrained import HUB_ID

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
UNKNOWN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
UNKNOWN += ("alora_invocation_tokens",)
"""What PEFT's configs allow and `merge` does not implement; what else they do shows in names and shapes."""
MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base first: adapters made so are of other weights than the base's own."""


class Size(Form):
    """What `merge` computes with of PEFT's config."""

    r: int = Field(ABSENT, ge=1, le=65_536)
    lora_alpha: Number = Field(ABSENT, ge=0, le=1e6)


class Adapted(nn.Linear):
    """A linear layer with an adapter beside its own weight, which is kept and frozen."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.alpha, self.scale = alpha, alpha / rank
        A = torch.empty(rank, layer.in_features, device="cpu")  # drawn alike whatever the weights' device
        nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator)
        self.lora_A = nn.Parameter(A.to(layer.weight))  # (r, I)
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))  # (O, r)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, I) -> (T, O)."""
        y = F.linear(x, self.weight, self.bias)
        # Into the product, which no gradient needs: a sum of two would be one more (T, O) to hold.
        return y.addmm_(x @ self.lora_A.T, self.lora_B.T, alpha=self.scale)

    def merged(self) -> Tensor:
        """The one weight (O, I) that does what both do."""
        return torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale).detach()


def adapt(decoder: Decoder, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Freeze a decoder and put adapters, the only thing to train, beside the projections named `targets`.
    Raises ValueError for a rank that no matrix of the model has room for."""
    if rank > (widest := max(decoder.config.hidden_size, decoder.config.intermediate_size)):
        raise ValueError(f"--lora-rank {rank}: expected at most {widest}, the model's widest side")
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(decoder.modules()):
        for name, layer in list(module.named_children()):
            if name in targets:
                setattr(module, name, Adapted(layer, rank, alpha, generator))


def weight(layer: nn.Linear) -> Tensor:
    """A layer's weight (O, I), with its adapter merged if it has one."""
    return layer.merged() if isinstance(layer, Adapted) else layer.weight


def base(decoder: Decoder) -> Decoder:
    """The decoder without its adapters, over the same tensors."""
    with torch.device("meta"):
        plain = Decoder(decoder.config)
    plain.load_state_dict(_frozen(decoder), assign=True)
    return plain.requires_grad_(False)


def merged(decoder: Decoder) -> dict[str, Tensor]:
    """The weights of a plain decoder that does the same; the merged ones are on the CPU."""
    return _frozen(decoder) | {
        f"{name}.weight": layer.merged().cpu() for name, layer in _adapted(decoder).items()
    }


def save(decoder: Decoder, directory: Path, name: str) -> None:
    """Write the adapters in PEFT's format; `name` is their base's, as `pretrained.resolve` takes it. Raises
    OSError if the disk does not take it."""
    directory.mkdir(parents=True, exist_ok=True)
    layers = _adapted(decoder)
    one = next(iter(layers.values()))
    name, revision = name.split("@") if HUB_ID.fullmatch(name) and "@" in name else (name, None)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    config |= {"base_model_name_or_path": name, "revision": revision}
    config |= {"r": len(one.lora_A), "lora_alpha": one.alpha, "lora_dropout": 0.0, "bias": "none"}
    config |= {"target_modules": sorted({name.split(".")[-1] for name in layers}), "inference_mode": True}
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: parameter.detach() for name, parameter in _adapters(decoder).items()}
    write_weights(weights, directory / WEIGHTS, directory / CONFIG)


def load(decoder: Decoder, directory: Path) -> None:
    """Give a decoder's adapters the values that `save` wrote. Raises ValueError for others."""
    own, stored = _adapters(decoder), _read(directory)
    refuse_misfits(directory, _shapes(own), _shapes(stored))
    for name, parameter in own.items():
        parameter.data.copy_(stored[name])


def merge(decoder: Decoder, directory: Path) -> None:
    """Add adapters in PEFT's format to the weights of a plain decoder. Raises ValueError if they are of
    another kind or of another model."""
    config = json_object(directory / CONFIG)
    try:
        size = Size.model_validate(config)
    except ValidationError as error:
        raise ValueError(f"{directory / CONFIG}: {forms.fault(error)}") from None
    odd = [name for name in UNKNOWN if config.get(name)]
    begun = f"{config.get('init_lora_weights')!s:.80}"
    if begun.startswith(MOVED):
        odd.append(f"init_lora_weights {begun}")
    if config.get("peft_type") != "LORA" or odd:
        came = ", ".join(odd) or f"peft_type {config.get('peft_type')!s:.80}"
        raise ValueError(f"{directory / CONFIG}: expected plain LoRA, got {came}; merge it with peft instead")
    stored, pairs, expected = _read(directory), [], {}
    for name, parameter in decoder.named_parameters():
        A, B = (PREFIX + name.replace("weight", f"lora_{side}.weight") for side in "AB")
        if A in stored:
            pairs.append((parameter, B, A))
            expected |= {A: (size.r, parameter.shape[1]), B: (parameter.shape[0], size.r)}
    refuse_misfits(directory, expected, _shapes(stored))
    for parameter, B, A in pairs:
        up, down = stored[B].to(parameter), stored[A].to(parameter)
        parameter.data.addmm_(up, down, alpha=size.lora_alpha / size.r)


def _adapted(decoder: Decoder) -> dict[str, Adapted]:
    return {name: module for name, module in decoder.named_modules() if isinstance(module, Adapted)}


def _adapters(decoder: Decoder) -> dict[str, nn.Parameter]:
    """A and B of every adapter, by PEFT's names."""
    named = decoder.named_parameters()
    return {f"{PREFIX}{name}.weight": parameter for name, parameter in named if ".lora_" in name}


def _frozen(decoder: Decoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in decoder.state_dict().items() if ".lora_" not in name}


def _shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _read(directory: Path) -> dict[str, Tensor]:
    try:
        return load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{directory / WEIGHTS} is missing or damaged ({error}): fetch it again") from error
