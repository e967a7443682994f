"""Triton where it exists, and which path a tensor takes.

On a host without triton (macOS, Windows) these modules still import: the decorators become empty and every
public function takes its torch path. CPU tensors take it too, except under TRITON_INTERPRET=1, where triton
runs kernels in Python; it reads that variable when a kernel is decorated, so tests of kernels run in a
process of their own.
"""

import os
from types import SimpleNamespace
from typing import Any

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:

    def _jit(fn: Any = None, **options: Any) -> Any:
        return fn if fn is not None else _jit

    triton: Any = None
    tl: Any = SimpleNamespace(constexpr=None)
    jit = _jit
else:
    jit = triton.jit

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def use_kernel(tensor: Tensor) -> bool:
    """Whether a public function launches its kernel for this tensor rather than taking its torch path."""
    return triton is not None and (tensor.is_cuda or (INTERPRET and tensor.device.type == "cpu"))
