"""How the kernels are measured: the conditions first, then a table, then one line of JSON.

Time is the median of several runs after warming up, memory the peak beyond what was there before. A share of
1.0 is what this very device reaches at the thing that it should be limited by: copying for kernels that move
bytes, a large matrix product for those that multiply. Losing rows stay.

On a GPU a time includes the launch from Python, tens of microseconds, which a captured step of decoding does
not pay; and inputs smaller than its L2 come from there, so that a share of copying may be above 1.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch

from rar_mini.kernels.backend import triton

Row = dict[str, Any]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory below, is talkative


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def conditions(on: str) -> Row:
    name = torch.cuda.get_device_name() if on == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "triton": triton and triton.__version__}


def _wait(on: str) -> None:
    if on == "cuda":
        torch.cuda.synchronize()


def seconds(fn: Callable[[], Any], on: str, runs: int = 5) -> float:
    """The median of `runs` runs after one that compiles and warms up."""
    taken = []
    for _ in range(runs + 1):
        _wait(on)
        start = time.perf_counter()
        fn()
        _wait(on)
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[runs // 2]


def peak_bytes(fn: Callable[[], Any], on: str) -> int:
    """What torch's allocator holds at most during one run, beyond what was held before."""
    if on == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fn()
        return torch.cuda.max_memory_allocated() - before
    # Resident memory would do for a CPU but for the libraries' own pools, which come and go.
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        fn()
    events = [e for e in seen.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))


def copying(on: str) -> tuple[str, float]:
    """Bytes a second that this device moves when it copies; read and written bytes both count."""
    source = torch.zeros((2**30 if on == "cuda" else 2**27) // 4, device=on)
    target = torch.empty_like(source)
    return "copy", 2 * source.nbytes / seconds(lambda: target.copy_(source), on)


def multiplying(on: str, dtype: torch.dtype) -> tuple[str, float]:
    """Operations a second that this device reaches in a large square matrix product. On a CPU torch has two
    libraries for it, and which one is faster depends on who made the CPU: the faster one is the limit."""
    n = 8192 if on == "cuda" else 1536
    a, b = (torch.randn(n, n, device=on, dtype=dtype) for _ in range(2))
    taken = [seconds(lambda: a @ b, on)]
    if on == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        blocks = torch.ops.mkldnn._reorder_linear_weight(b, n)
        taken += [seconds(lambda: torch.ops.mkldnn._linear_pointwise(a, blocks, None, "none", [], ""), on)]
    return "matmul", 2 * n**3 / min(taken)


def row(case: str, path: str, fn: Callable[[], Any], on: str, work: float, limit: tuple[str, float]) -> Row:
    """Measure one path: `work` has to be moved or multiplied, `limit` says how fast this device does that."""
    what, rate = limit
    try:
        taken, held = seconds(fn, on), peak_bytes(fn, on)
    except Exception as error:  # a rival that does not run here is a row too
        return {"case": case, "path": path, "error": f"{type(error).__name__}: {error}"[:60]}
    numbers = {"ms": round(1e3 * taken, 3), "peak_mib": round(held / 2**20, 1)}
    return {"case": case, "path": path, **numbers, "share": round(work / taken / rate, 3), "of": what}


def show(name: str, rows: Callable[[str], Iterator[Row]]) -> None:
    """Print conditions, the table as it grows, and the JSON line."""
    on = device()
    head = conditions(on)
    print(f"{name} on {head['device']}, torch {head['torch']}, triton {head['triton']}")
    if on == "cpu":
        print("The torch reference path at small sizes. This is not a GPU result.")
    print(f"{'case':<36} {'path':<20} {'ms':>10} {'peak MiB':>9} {'share':>6}")
    done = []
    for r in rows(on):
        done.append(r)
        tail = r.get("error") or f"{r['ms']:10.3f} {r['peak_mib']:9.1f} {r['share']:6.3f} of {r['of']}"
        print(f"{r['case']:<36} {r['path']:<20} {tail}", flush=True)
    print(json.dumps({"benchmark": name, **head, "rows": done}))
