"""Memory that runs out ends a command in its own words and with what to do. A stub stands for the GPU."""

import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from conftest import Command

from rar_mini import checkpoint, options, policy, sampler
from rar_mini.checkpoint import Run
from rar_mini.evaluation import trust
from rar_mini.viewing import show

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.02 "
    "GiB is free. Including non-PyTorch memory, this process has 78.07 GiB memory in use. See documentation "
    "for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
ERRORS = [
    torch.OutOfMemoryError(CUDA),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", [(sampler, "sample"), (policy, "load")], ids=["sampling", "loading"])
def test_a_run_that_lacks_memory_says_which_options_need_less(
    place: tuple[object, str],
    error: Exception,
    command: Command,
    tiny: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was a traceback of forty lines."""

    def full(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(*place, full)
    done = command("train.py", "--policy", tiny, "--data", questions, "--out", tmp_path / "run")
    first, remedy = done.stderr.splitlines()
    assert done.returncode == 1 and first.startswith("train.py: out of memory: ") and len(first) < 330
    for option in ("--cache-mb", "--tokens-per-batch", "--checkpoint-activations", "--lora-rank", "--plan"):
        assert option in remedy
    if isinstance(error, torch.OutOfMemoryError):
        assert first.endswith("of which 1.02 GiB is free.")


def test_the_remedy_names_options_that_there_are(command: Command) -> None:
    known = command("train.py", "--help").stdout
    for word in options.LESS_MEMORY.replace(",", " ").split():
        assert not word.startswith("--") or word == "--plan" or word in known


@pytest.mark.parametrize(
    ("words", "place", "remedy"),
    [
        (["evaluate.py", "judge", "--judge", "keyword"], (trust, "report"), "Take a smaller --policy"),
        (["judge.py", "show", "."], (show, "show"), ""),
    ],
    ids=["evaluate.py", "judge.py"],
)
def test_a_command_names_no_option_of_another_one(
    words: list[str],
    place: tuple[object, str],
    remedy: str,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All named --tokens-per-batch and --plan, which train.py alone has."""

    def full(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(*place, full)
    done = command(*words)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 1 and "out of memory" in first, done.stderr
    assert "".join(rest).startswith(remedy) and len(rest) == bool(remedy)
    assert not re.search("--tokens-per-batch|--plan|--dtype", done.stderr)


def test_memory_that_runs_out_in_a_checkpoint_is_not_the_disks_fault(tmp_path: Path) -> None:
    """Merging adapters needs memory, and the user was told to make room on the disk."""
    run = Run(tmp_path)
    with pytest.raises(torch.OutOfMemoryError), run._writing():
        raise torch.OutOfMemoryError(CUDA)
    with pytest.raises(OSError, match="could not write"), run._writing():
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos")
    assert checkpoint.out_of_memory is options.out_of_memory


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"), options.one_line("x"):
        raise RuntimeError("a fault of ours")
