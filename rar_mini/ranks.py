"""Several processes that train one policy, each on a GPU of its own: who does what, and who learns what.

    torchrun --nproc-per-node 4 train.py ...

A rank samples, judges and trains its share of a step's questions. What was sampled and judged is gathered, so
that every rank has the whole step and computes rewards, advantages and metrics by the code of one process. A
rank's part of the loss is normalised over the whole step (grpo.py): gradients are added up, and every rank
takes the same optimizer step. Objects travel by gloo, gradients by what is native to the device, and the two
do not wait equally long.

Only rank 0 writes and prints. A rank that fails sends the failure in place of its result, so that no rank
waits for it and all handle it alike. A killed rank is noticed at the next collective, or by torchrun.

Without torchrun there is one rank, everything here is the identity, and torch.distributed is not imported.
"""

import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:  # what talks to a server reads this file, and needs no torch
    from rar_mini.kernels.adamw import AdamW

T = TypeVar("T")

rank, world = 0, 1
"""This process's number, and how many there are."""

_sums: Any = None
"""The group of processes in which gradients are added up."""

pages = False
"""Whether memory of the GPU comes in pages, as far as this process knows."""

way_back = "--resume RUN"
"""How to go on with a run that has lost a rank."""

PATIENCE = timedelta(hours=6)
"""For another rank's objects: its judge may be slow, or its checkpoint large."""

SUMMING = timedelta(minutes=10)
"""For another rank's gradients. All ranks are there when the sum begins, so that a longer wait means a broken
link. NCCL, which nothing interrupts, ends the process then."""

EXPECTED = (ValueError, OSError, FloatingPointError)
"""Errors that end a run in one line. For any other the rank that it happened on prints a traceback."""


class Lost(SystemExit):
    """The end of this process, because another one is gone or torchrun says so; `why`, in a few words."""

    def __init__(self, why: object = "") -> None:
        words = " ".join(str(why).split())  # NCCL's have several lines
        super().__init__(
            f"train.py: rank {rank} of {world} ends: another rank is gone, or torchrun was stopped"
            f"{words and f' ({words})'}. What was saved is whole; go on with {way_back}"
        )


def launched() -> int:
    """How many processes torchrun started together, also for another trainer, whose processes do not join."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if torchrun started this one."""
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    global rank, world, _sums
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=PATIENCE)
    native = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _sums = dist.new_group(backend=native, timeout=SUMMING)
    signal.signal(signal.SIGTERM, _end)
    try:
        with ExitStack() as stack:
            if rank:  # its output goes nowhere, which is no terminal and so has no progress bars either
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    except BaseException as error:
        # torchrun ends all as soon as one has ended: those that are ending, or have something to say, may.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, Lost | KeyboardInterrupt):
            raise
        try:
            replies = _tell(None, error)
        except Lost:
            replies = []  # the ranks that sent the error have ended
        if rank and all(failure for _, failure in replies):
            status = error.code if isinstance(error, SystemExit) else getattr(error, "exit_status", 1)
            sys.exit(status)  # rank 0 says it
        raise
    dist.destroy_process_group()


def _end(number: int, frame: object) -> NoReturn:
    raise Lost


def refuse_device(device: str, option: str = "--device") -> None:
    """Raise ValueError for what is no device here, by the option that names it."""
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", device):
        raise ValueError(f"{option} {device}: expected cpu, cuda or cuda:NUMBER")
    if device == "cpu":
        return
    import torch

    count, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
    if not count:
        raise ValueError(f"{option} {device}: this torch ({torch.__version__}) sees no GPU; expected cpu")
    if number >= count:
        raise ValueError(f"{option} {device}: this machine has {count} GPUs, and the first one is cuda:0")


def claim(device: str, option: str = "--device") -> None:
    """Make this process's GPU the current one, on which Triton launches and graphs are captured.

    With several ranks, each takes its own. Its memory then comes in pages, if it can. Raises ValueError if
    the device does not exist.
    """
    refuse_device(device, option)
    if device == "cpu":
        return
    import torch

    if world > 1:
        own, here = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if device != "cuda" or torch.cuda.device_count() < here:
            raise ValueError(
                f"{option} {device} with {here} processes on a machine: expected cuda and a GPU for each, "
                f"got {torch.cuda.device_count()}; lower --nproc-per-node"
            )
        torch.cuda.set_device(own)
    elif device != "cuda":
        torch.cuda.set_device(int(device.removeprefix("cuda:")))
    _ask_for_pages()


def _ask_for_pages() -> None:
    """Have PyTorch extend its GPU memory page by page (`expandable_segments`). By default it takes segments,
    and blocks of two segments never join: by a simulation a tenth of a card becomes holes (docs/memory.md).

    Not if the environment says how memory is to be had, nor on ROCm, nor under WSL2, where drivers may refuse
    pages at once (pytorch/pytorch 192330) or in the middle of a run (syv-ai/qwen38-27b-rtx3090 2). If the
    first is refused, segments stay.
    """
    import torch

    global pages
    given = [os.environ.get(f"PYTORCH_{kind}ALLOC_CONF") for kind in ("", "CUDA_", "HIP_")]
    if any(given):
        pages = any("expandable_segments:True" in text for text in given if text)
        return
    if torch.version.hip or "microsoft" in platform.release().lower():
        return
    settle = torch._C._accelerator_setAllocatorSettings  # PyTorch's public way is the environment alone
    settle("expandable_segments:True")
    try:
        torch.empty(2**21, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        settle("expandable_segments:False")
        print(f"memory comes in segments: the driver refuses pages ({str(error).splitlines()[0]})")
    pages = any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())


def share(items: Sequence[T]) -> Sequence[T]:
    """This rank's share of the items that all ranks have."""
    return items[rank::world]


def merge(shares: Sequence[Sequence[T]]) -> list[T]:
    """What the ranks made of their shares, in the order of what was shared."""
    return [shares[i % world][i // world] for i in range(sum(map(len, shares)))]


def gather(value: T) -> list[T]:
    """The values of all ranks, on every rank."""
    return [value] if world == 1 else _values(_tell(value))


def attempt(work: Callable[[], T]) -> list[T]:
    """The results of `work` on all ranks, on every rank. If it fails on one, all raise that error with the
    number of the rank."""
    if world == 1:
        return [work()]
    try:
        result = work(), None
    except EXPECTED as error:
        result = None, error
    return _values(_tell(*result))


def first(work: Callable[[], T]) -> T:
    """The result of `work` on every rank. Only rank 0 does it, the others wait."""
    return attempt(lambda: None if rank else work())[0]


def by_first(write: Callable[..., T]) -> Callable[..., T | None]:
    """A method that only rank 0 carries out; the others go on."""

    @wraps(write)
    def method(*words: Any, **options: Any) -> T | None:
        return None if rank else write(*words, **options)

    return method


def refuse_unlike(what: str, work: Callable[[], Any]) -> None:
    """Raise ValueError unless `work` gives on every rank what it gives on rank 0."""
    values = attempt(work) if world > 1 else []
    for number, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"rank {number} has other {what} than rank 0: expected the same files, versions, environment "
                "and kind of device everywhere"
            )


def add_gradients(optimizer: "AdamW") -> None:
    """Add up the gradients of all ranks, in place. One that a rank does not have is zero."""
    if world > 1:
        import torch
        import torch.distributed as dist

        for p in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gather(None)  # a rank without memory for them says so here, because a sum cannot carry an error
        optimizer.sum_gradients(lambda grad: _exchange(dist.all_reduce, grad, group=_sums))


def _tell(value: Any, failure: BaseException | None = None) -> list[tuple[Any, BaseException | None]]:
    """Each rank's value, or the failure in its place."""
    import torch.distributed as dist

    replies: list[Any] = [None] * world
    _exchange(dist.all_gather_object, replies, (value, failure and _portable(failure)))
    return replies


def _values(replies: list[tuple[Any, BaseException | None]]) -> list[Any]:
    for _, failure in replies:
        if failure is not None:
            raise failure
    return [value for value, _ in replies]


def _exchange(collective: Callable[..., object], *words: Any, **options: Any) -> None:
    try:
        collective(*words, **options)
    except RuntimeError as error:
        raise Lost(error) from error


def _portable(error: BaseException) -> BaseException:
    """The error with this rank's number, in its nearest type that is made of one string: it will be sent."""
    if isinstance(error, SystemExit):  # --help, or an option that the parser refused
        return SystemExit(error.code)
    for kind in type(error).__mro__:
        try:
            return kind(f"rank {rank}: {error}")
        except TypeError:
            continue
    raise AssertionError(error)
