"""Few rows on a CPU: the decoder's products by oneDNN's operators, over weights in oneDNN's blocked layout.

PyTorch's plain linear reaches a third of a core's speed at 8 to 16 rows, which is what a decoding step has.
oneDNN's, over weights in blocks, is twice as fast, and takes the activation and the gate of the feed-forward
along. These are the operators that torch.compile uses to freeze models.

Cost: a second copy of the weights while it lasts, adapters merged into it, and a quarter of a second for 135M
parameters each time, because training moves the weights in between.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rar_mini.lora import weight
from rar_mini.model import MLP, Attention, Decoder

Product = Callable[[Tensor], Tensor]


@contextmanager
def blocked(model: Decoder) -> Iterator[Product]:
    """Within it, a float32 model on a CPU multiplies by oneDNN, without gradients; any other is left as it
    is. Yields the head's product, (R, D) -> (R, V)."""
    head = model.head
    if head.device.type != "cpu" or head.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        yield lambda x: x @ head.T
        return
    patched = []
    try:
        for module in model.modules():
            if isinstance(module, Attention):
                module.project, module.o_proj.forward = _projection(module), _linear(module.o_proj)
                patched += [(module, "project"), (module.o_proj, "forward")]
            elif isinstance(module, MLP):
                module.forward = _feed_forward(module)
                patched.append((module, "forward"))
        yield _product(head, None)
    finally:
        for module, name in patched:
            vars(module).pop(name, None)  # and the class's own is back


def _product(W: Tensor, bias: Tensor | None, activation: str = "none") -> Product:
    """x (R, I) -> activation(x W^T + bias) (R, O)."""
    blocks = torch.ops.mkldnn._reorder_linear_weight(W, 16)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocks, bias, activation, [], "")


def _linear(layer: nn.Linear) -> Product:
    return _product(weight(layer), layer.bias)


def _projection(attention: Attention) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """q, k and v from one product."""
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    widths = [layer.out_features for layer in layers]
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    product = _product(torch.cat([weight(layer) for layer in layers]), bias)
    return lambda x: product(x).split(widths, -1)


def _feed_forward(mlp: MLP) -> Product:
    gate, down = _product(weight(mlp.gate_proj), mlp.gate_proj.bias, "swish"), _linear(mlp.down_proj)
    up, bias = torch.ops.mkldnn._reorder_linear_weight(weight(mlp.up_proj), 16), mlp.up_proj.bias
    return lambda x: down(torch.ops.mkldnn._linear_pointwise.binary(x, gate(x), up, bias, "mul"))
