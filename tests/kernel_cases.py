"""What the tests of the kernels share: three ways to run each of them, and a meter for memory traffic.

A test runs on the torch path as it is, under Triton's interpreter in a process that `under_the_interpreter`
starts (Triton reads TRITON_INTERPRET when a kernel is decorated), and with `pytest -m gpu` on a GPU.
"""

import contextlib
import functools
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest
import torch

from rar_mini.kernels import backend

NAN = float("nan")

on_every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
only_interpreted = pytest.mark.skipif(not backend.INTERPRET, reason="only under the interpreter")
not_interpreted = pytest.mark.skipif(backend.INTERPRET, reason="not under the interpreter")
needs_triton = pytest.mark.skipif(backend.triton is None, reason="no triton on this system")


def under_the_interpreter(file: str) -> None:
    """Run a file's tests again, through the Triton kernels."""
    try:
        code, said = interpreter().submit(interpreted, file).result()
    except BrokenProcessPool:  # one that reads astray may die silently
        interpreter.cache_clear()
        raise
    assert code == 0, said[-4000:]


@functools.cache
def interpreter() -> ProcessPoolExecutor:
    """A process in which kernels are interpreted, kept for the next file: to import torch takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        assert pool.submit(interprets).result()
    return pool


def interprets() -> bool:
    return backend.INTERPRET


def interpreted(file: str) -> tuple[int, str]:
    """What pytest returns and says, in that process. The tests need no fixtures of all tests, and
    transformers, which these import, takes longer than torch."""
    words = ["-q", "-x", "-p", "no:cacheprovider", "--noconftest", file]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        return int(pytest.main(words)), said.getvalue()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within it, memory that torch allocates holds NaN: an output that a kernel leaves out is seen. So do
    lanes that an interpreted kernel masks without saying what they hold: on a GPU that may be anything."""
    before = torch.get_deterministic_debug_mode()
    # What fills memory is meant for determinism. Products on a GPU need not be deterministic: only warn. The
    # other function for it, use_deterministic_algorithms, imports the compiler, which takes two seconds.
    torch.set_deterministic_debug_mode("warn")
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(3).isnan().all()
        with _masked_lanes_poisoned() if backend.INTERPRET else contextlib.nullcontext():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def _masked_lanes_poisoned() -> Iterator[None]:
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype
    from triton.runtime.interpreter import interpreter_builder as builder

    real = builder.create_masked_load

    def load(pointers: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
        if other is None:
            kind = pointers.get_element_ty()
            lanes = np.zeros(pointers.data.shape, _get_np_dtype(kind))
            lanes.view(np.uint8)[...] = 255  # NaN in every format of floats
            other = TensorHandle(lanes, kind)
        return real(pointers, mask, other, *rest, **options)

    builder.create_masked_load = load
    try:
        yield
    finally:
        builder.create_masked_load = real


def _rounds_to_nearest() -> None:
    """Interpreted kernels round float32 to bfloat16 as GPUs do. By itself the interpreter cuts."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    real = InterpreterBuilder.cast_impl

    def cast(self: Any, src: Any, kind: Any) -> Any:
        if src.dtype.scalar == backend.tl.float32 and kind.scalar == backend.tl.bfloat16:
            rounded = torch.from_numpy(np.array(src.data)).bfloat16().view(torch.int16).numpy()
            return TensorHandle(rounded.view(np.uint16), kind.scalar)
        return real(self, src, kind)

    InterpreterBuilder.cast_impl = cast


def _looks_once_through_the_language() -> None:
    """The interpreter looks through all of triton.language for what it replaces whenever a kernel calls a
    function, a sum for instance, which takes a third of its time. What it finds never changes."""
    from triton.runtime import interpreter

    is_builtin = backend.tl.core.is_builtin
    found = functools.cache(lambda space: [name for name in dir(space) if is_builtin(getattr(space, name))])

    def replace(space: Any, *rest: Any) -> None:
        for name in found(space):
            if is_builtin(member := getattr(space, name)):  # else it is replaced already
                interpreter._patch_attr(space, name, member, *rest)

    interpreter._patch_builtin = replace


if backend.INTERPRET:
    _rounds_to_nearest()
    _looks_once_through_the_language()


def untouched(*shape: int, **options: Any) -> torch.Tensor:
    """A tensor of more than 2^31 numbers, of which a test touches so few that it costs no memory."""
    try:
        return torch.empty(*shape, **options)
    except RuntimeError as error:
        pytest.skip(f"no room for {shape}: {error}")


@contextlib.contextmanager
def programs_from(first: int) -> Iterator[None]:
    """Interpreted kernels count their programs from `first` on, as if those before had run."""
    from triton.runtime.interpreter import interpreter_builder as builder

    real_dim, real_idx = builder.set_grid_dim, builder.set_grid_idx
    builder.set_grid_dim = lambda x, y, z: real_dim(x + first, y, z)
    builder.set_grid_idx = lambda x, y, z: real_idx(x + first, y, z)
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx = real_dim, real_idx


@contextlib.contextmanager
def traffic() -> Iterator[list[int]]:
    """Count the bytes that interpreted kernels load and store, lane by lane; the first item is the sum."""
    from triton.runtime.interpreter import interpreter_builder as builder

    moved = [0]
    real_load, real_store = builder.create_masked_load, builder.create_masked_store

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        moved[0] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return real_load(pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved[0] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return real_store(pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = load, store
    try:
        yield moved
    finally:
        builder.create_masked_load, builder.create_masked_store = real_load, real_store
