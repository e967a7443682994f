"""Triton where it exists, and which path a tensor takes.

On a host without triton (macOS, Windows) these modules still import: the decorator does nothing, and every
public function takes its torch path. CPU tensors take it too, except under TRITON_INTERPRET=1, where triton
runs kernels in Python; it reads that variable when a kernel is decorated, so tests of kernels run in a
process of their own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    jit: Any = triton.jit
except ImportError:

    def jit(fn: Any = None, **options: Any) -> Any:
        return fn if fn is not None else jit

    triton: Any = None
    tl: Any = SimpleNamespace(constexpr=None, int64=None)

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def _mend_products() -> None:
    """Triton's interpreter multiplies the bits of a bfloat16 as if they were an integer: widen them first."""
    from triton.runtime.interpreter import interpreter_builder as builder

    multiply = builder.create_dot

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        wide = (builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return multiply(*wide, *rest)

    builder.create_dot = create_dot


if INTERPRET and triton is not None:
    _mend_products()

LAYER_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernels of a layer and of the draw take; float64, the truth for tests, goes through torch."""

WARP = 64 if torch.version.hip else 32
"""Threads that run together, on the GPUs of a data centre: kernels choose threads and divide."""


_plain = False


@contextmanager
def plain() -> Iterator[None]:
    """Within it every tensor takes its torch path: what tests and `train.py --check` hold kernels against."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def use_kernel(tensor: Tensor) -> bool:
    """Whether a public function launches its kernel for this tensor rather than taking its torch path."""
    if _plain or triton is None:
        return False
    return tensor.is_cuda or (INTERPRET and tensor.device.type == "cpu")
