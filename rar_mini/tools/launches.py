"""What one decoding step launches, moves and multiplies: counted, not timed, and without a GPU.

    python -m rar_mini.tools.launches                          # Qwen2.5-7B on CUDA: torch beside the kernels
    python -m rar_mini.tools.launches --cpu                    # the default policy on this CPU
    python -m rar_mini.tools.launches --compile                # the same step by torch.compile

The first traces a step of the sampler over tensors that have shapes and no data (the meta device, which says
that it is CUDA), once with torch's operators alone and once with the kernels of `kernels/`, whose launches
are counted where they would happen: a new kernel needs no entry here. The second counts a real step, times
it, and holds it beside a large matrix product.

An operator is a launch if it makes or changes memory; views are none. It reads its inputs and writes its
results once; one that picks rows reads those, one that puts some into their place writes those. A kernel
reads or writes each of its tensors once, unless its file has a function `moved`. So counts are what has to
happen: some operators of torch launch more than once, and caches of a GPU save bytes.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

from rar_mini import policy
from rar_mini.kernels import backend, bench
from rar_mini.model import Decoder, head_width
from rar_mini.onednn import blocked
from rar_mini.options import Parser, counted, one_line
from rar_mini.sampler import Settings, Wave, _prefill, _Prompt, uniforms
from rar_mini.tools import memory
from rar_mini.tools.speed import work

ROOT = Path(__file__).parents[2]
PICKS = {"embedding", "gather", "index", "index_select"}
PUTS = {"index_copy_", "index_put_", "scatter_"}
LEFT = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_linear_pointwise": 0}
"""Which argument of a matrix product is its left side."""


@dataclass
class Work:
    """What a part of a step does."""

    launches: int = 0
    bytes: int = 0
    operations: int = 0  # of matrix products

    def add(self, launches: int, moved: int, operations: int = 0) -> None:
        self.launches += launches
        self.bytes += moved
        self.operations += operations


Parts = dict[str, Work]
"""By the function that calls it, or the kernel's file."""


def total(parts: Parts) -> Work:
    whole = Work()
    for part in parts.values():
        whole.add(part.launches, part.bytes, part.operations)
    return whole


# --- counting -----------------------------------------------------------------------------------------------


def size(x: Tensor) -> int:
    """Bytes of the numbers that a tensor shows: one that is spread over an axis shows them once."""
    if x.layout != torch.strided:  # oneDNN's blocks
        return x.numel() * x.element_size()
    own = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return int(np.prod([*own], dtype=np.int64)) * x.element_size()


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout == torch.strided else id(x)


def moved_by(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Bytes that an operator reads and writes, or None if it touches no memory."""
    name = func._schema.name.split("::")[-1]
    given, results = tensors((args, kwargs)), tensors(out)
    changed = [x for x, a in zip(args, func._schema.arguments, strict=False) if a.is_write]
    held = {_storage(x) for x in given}
    fresh = [x for x in results if _storage(x) not in held]
    if name.startswith(("empty", "new_empty")) or not (fresh or changed):
        return None
    if name in PICKS:
        return 2 * sum(map(size, fresh)) + sum(map(size, given[1:]))
    if name in PUTS:
        return 2 * size(given[-1]) + sum(map(size, given[1:-1]))
    return sum(map(size, given)) + sum(map(size, fresh + tensors(changed)))


def place() -> str:
    """The function of this project in which an operator is called, from outside of this file. All of a
    kernel's file is one place, so that its torch path stands beside it."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        own = path.is_relative_to(ROOT) and "site-packages" not in path.parts  # of a .venv in the project
        if own and path != Path(__file__):
            name = path.relative_to(ROOT).as_posix().removeprefix("rar_mini/")
            caller = frame.f_code.co_qualname.split(".<locals>")[0]
            return name if name.startswith("kernels/") else f"{name} {caller}"
        frame = frame.f_back
    return "elsewhere"


class Operators(TorchDispatchMode):
    """Adds up what torch's operators do, by the place that calls them; matrix products are a place of their
    own."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if (moved := moved_by(func, args, kwargs, out)) is not None:
            name, operations, where = func._schema.name.split("::")[-1], 0, place()
            if name in LEFT:
                operations = 2 * out.numel() * args[LEFT[name]].shape[-1]
                where = where if out.ndim == 3 else "matrix products"
            self.parts.setdefault(where, Work()).add(1, moved, operations)
        return out


class AsCuda(TorchFunctionMode):
    """Tensors without data say that they are on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.is_cuda.__get__ and args[0].is_meta:
            return True
        return func(*args, **kwargs or {})


@contextmanager
def launches_counted(parts: Parts) -> Iterator[None]:
    """Within it, Triton's kernels are counted and not launched."""
    from triton.runtime.jit import JITFunction

    def count(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        module = sys.modules[kernel.fn.__module__]
        bytes_of = getattr(module, "moved", lambda name, given: None)
        moved = bytes_of(kernel.fn.__name__, given)
        where = module.__name__.removeprefix("rar_mini.").replace(".", "/") + ".py"
        parts.setdefault(where, Work()).add(1, sum(map(size, tensors(given))) if moved is None else moved)

    with patch.object(JITFunction, "run", count):
        yield


def counted_step(wave: Callable[[], Wave], span: int, *, plain: bool) -> Parts:
    """What a step at `span` does on a GPU, by torch's operators alone or with the kernels. The wave is made
    here, too, because it may choose its path when it is made."""
    parts: Parts = {}
    with torch.no_grad(), AsCuda(), backend.plain() if plain else launches_counted(parts):
        one = wave()
        parts.clear()
        with Operators(parts):
            one.step(span)
    return parts


# --- the step on a GPU --------------------------------------------------------------------------------------


def hollow_wave(name: str, P: int, G: int, n: int, c: int) -> Wave:
    """A wave without data, of bfloat16 weights: P prompts of n tokens, G rows of c tokens each."""
    config = AutoConfig.for_model(**memory.KNOWN[name])
    with torch.device("meta"):
        model = Decoder(config).bfloat16()
        shape = (config.num_hidden_layers, config.num_key_value_heads, n, head_width(config))
        keys, values = (torch.empty(shape, dtype=torch.bfloat16) for _ in range(2))
        last = torch.empty(config.hidden_size, dtype=torch.bfloat16)
    owner, draws = [p for p in range(P) for _ in range(G)], torch.zeros(P * G, c, dtype=torch.float64)
    prompts = [_Prompt(last, keys, values)] * P
    return Wave(model, lambda x: x @ model.head.T, prompts, owner, draws, frozenset({0}), Settings(c))


def on_cuda(options: argparse.Namespace) -> None:
    """Print the table of a step at full length: torch's operators beside the kernels."""
    if backend.triton is None:
        raise ValueError("there is no triton on this system: expected one, whose kernels are counted here")
    P, G, n, c = options.sizes
    print(f"one decoding step of {options.policy} in bfloat16: {P} prompts of {n} tokens, {G} rows each")
    print(f"with {c} tokens of their own; counted, not timed. MB are 10^6 bytes read and written\n")
    plain, fused = (
        counted_step(lambda: hollow_wave(options.policy, P, G, n, c), c, plain=plain)
        for plain in (True, False)
    )
    print("| part | launches, torch | kernels | MB, torch | kernels |")
    print("|---|---:|---:|---:|---:|")
    rows = {name: (plain.get(name, Work()), fused.get(name, Work())) for name in plain | fused}
    rows |= {"all": (total(plain), total(fused))}
    for name, (a, b) in rows.items():
        cells = f"{a.launches:,} | {b.launches:,} | {a.bytes / 1e6:,.1f} | {b.bytes / 1e6:,.1f}"
        print(f"| {name} | {cells} |")
    sizes = {"policy": options.policy, "prompts": P, "rows": P * G, "prompt": n, "tokens": c}
    counts = {name: [vars(a), vars(b)] for name, (a, b) in rows.items()}
    print(json.dumps(sizes | {"torch and kernels": counts}))


# --- the step on a CPU --------------------------------------------------------------------------------------


def real_wave(actor: policy.Policy, head: Any, P: int, G: int, c: int) -> Wave:
    """A wave of the benchmark's questions, with one token written."""
    asked = [actor.encode(example) for example in (work() * P)[:P]]
    draws = torch.from_numpy(np.stack([uniforms(0, 0, str(row), 0, c) for row in range(P * G)]))
    owner = [p for p in range(P) for _ in range(G)]
    wave = Wave(actor.model, head, _prefill(actor.model, asked), owner, draws, frozenset(), Settings(c))
    wave.write(wave.first)
    return wave


def on_cpu(options: argparse.Namespace) -> None:
    """Print the table of a step on this CPU halfway through an answer, and its share of matrix products."""
    P, G, _, c = options.sizes
    half, last = c // 2, min(c, c // 2 + 1 + options.runs)
    if half + 1 >= last:
        raise ValueError(f"an answer of {c} tokens is too short to time a step: expected 3 or more")
    actor = policy.load(options.policy, torch.float32, "cpu")
    multiplied, head = bench.multiplying("cpu", torch.float32)[1], bench.conditions("cpu")
    with blocked(actor.model) as product, torch.no_grad():
        wave, parts = real_wave(actor, product, P, G, c), Parts()
        for span in range(1, half):
            wave.step(span)
        with Operators(parts):
            wave.step(half)
        seconds = statistics.median(timed(partial(wave.step, span)) for span in range(half + 1, last))
    print(f"one decoding step of {options.policy} on {head['device']}, torch {head['torch']}: {P} x {G} rows")
    print(f"with {half} tokens of their own; a token costs a step over {P * G}\n")
    print("| part | operators | MB | operations, 10^6 |\n|---|---:|---:|---:|")
    for name, part in (parts | {"all": total(parts)}).items():
        print(f"| {name} | {part.launches:,} | {part.bytes / 1e6:,.1f} | {part.operations / 1e6:,.1f} |")
    share = total(parts).operations / seconds / multiplied
    print(f"\n{1e3 * seconds:.1f} ms a step, {share:.2f} of matrix products ({multiplied / 1e9:.0f} GFLOP/s)")
    row = {"ms": round(1e3 * seconds, 2), "matrix products": round(share, 3)}
    print(json.dumps(head | row | {"parts": {name: vars(part) for name, part in parts.items()}}))


def timed(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def compiled(options: argparse.Namespace) -> None:
    """Print what torch.compile makes of the step, in seconds of CPUs, which other processes change least.

    Its products are torch's own, because inductor refuses oneDNN's operators over weights that it does not
    freeze, and one length serves all steps. The sampler's own steps go in turns with it.
    """
    P, G, _, c = options.sizes
    own, other = (policy.load(options.policy, torch.float32, "cpu") for _ in range(2))
    taken: tuple[list[float], list[float]] = [], []
    with blocked(own.model) as product, torch.no_grad():
        waves = real_wave(own, product, P, G, c), real_wave(other, lambda x: x @ other.model.head.T, P, G, c)
        step = torch.compile(waves[1].step, dynamic=False)
        waves[0].step(1)
        first = cpu_seconds(partial(step, c))
        for span in range(2, min(c, options.runs + 2)):
            taken[0].append(cpu_seconds(partial(waves[0].step, span)))
            taken[1].append(cpu_seconds(partial(step, c)))
    ours, theirs = (1e3 * statistics.median(each) for each in taken)
    print(f"{first:.0f} s to compile; {ours:.0f} ms a step of the sampler, {theirs:.0f} ms compiled")
    print("the same tokens" if torch.equal(waves[0].ids, waves[1].ids) else "other tokens")


def cpu_seconds(fn: Callable[[], object]) -> float:
    """Of this process and of compilers that it starts."""
    before = sum(os.times()[:4])
    fn()
    return sum(os.times()[:4]) - before


# --- the command --------------------------------------------------------------------------------------------

GPU, CPU = (6, 16, 512, 3072), (4, 8, 0, 80)


def main(argv: Sequence[str]) -> None:
    """Run the command line. A refusal ends in one line, without a traceback."""
    parser = Parser(
        "python -m rar_mini.tools.launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cpu", action="store_true", help="a real step on this CPU, counted and timed")
    parser.add_argument("--compile", action="store_true", help="what torch.compile makes of that step")
    parser.add_argument("--policy", help="one whose shapes are known here; with --cpu, as for train.py")
    parser.add_argument("--runs", type=counted, default=15, help="steps that the median is taken of")
    sizes = "of a step; on this CPU prompts are the benchmark's own, whatever PROMPT says"
    parser.add_argument("--sizes", type=counted, nargs=4, metavar=("P", "G", "PROMPT", "ANSWER"), help=sizes)
    options = parser.parse_args(argv)
    cpu = options.cpu or options.compile
    options.policy = options.policy or ("smollm2-135m" if cpu else "Qwen/Qwen2.5-7B")
    options.sizes = options.sizes or (CPU if cpu else GPU)
    if not cpu and options.policy not in memory.KNOWN:
        raise ValueError(f"no shapes of {options.policy!r} are known: expected {', '.join(memory.KNOWN)}")
    (compiled if options.compile else on_cpu if cpu else on_cuda)(options)


if __name__ == "__main__":
    with one_line("python -m rar_mini.tools.launches"):
        main(sys.argv[1:])
