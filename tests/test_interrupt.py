"""Ctrl-C at many moments of a real process: it always says what was saved and how to go on."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hostile import Server
from test_train import options, spawn

from rar_mini import checkpoint


def press(place: str, times: int, after: Path, rank: int) -> None:
    """Let Ctrl-C be pressed so many times at the first call of a function once a path exists."""
    module, _, name = place.partition(":")
    *owner, name = name.split(".")
    home: Any = importlib.import_module(module)
    for each in owner:
        home = getattr(home, each)
    plain, left = getattr(home, name), [times]

    def pressed(*words: Any, **how: Any) -> Any:
        while left[0] and after.exists():
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*words, **how)

    setattr(home, name, pressed)


Stopped = Callable[[str, int, str], str]


@pytest.fixture
def stopped(tiny: Path, tmp_path: Path, questions: Path) -> Stopped:
    """What a run of three steps says that is stopped at a place, once a path of its folder exists."""

    def run(place: str, times: int = 1, after: str = "..", **changes: object) -> str:
        words = options(tiny, questions, tmp_path / "run", steps=3, **changes)
        hook = partial(press, place, times, tmp_path / "run" / after if after != ".." else tmp_path)
        process = spawn(words, tmp_path / "log", hook=hook)
        process.join(120)
        said = (tmp_path / "log").read_text()
        assert process.exitcode == 130 and "Traceback" not in said, said
        return said

    return run


def test_while_libraries_are_imported(tmp_path: Path) -> None:
    """A stand-in for torch that is interrupted: the real one takes seconds, at any of which it may happen."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGINT, "which a shell shows as 130"
    assert done.stderr == (
        "stopped  by Ctrl-C before the run began: nothing was saved. Start again with the same command\n"
    )


@pytest.mark.parametrize("place", ["rar_mini.pretrained:pinned", "rar_mini.setup:read_questions"])
def test_before_the_run_has_a_folder(stopped: Stopped, tmp_path: Path, place: str) -> None:
    assert "stopped  by Ctrl-C before the run began: nothing was saved" in stopped(place)
    assert not (tmp_path / "run").exists()


def test_in_the_first_score(stopped: Stopped, tmp_path: Path) -> None:
    """It said that it would stop after this step, and went on through the score and a step."""
    said = stopped("rar_mini.sampler:uniforms")
    assert (
        f"before the first checkpoint; the run starts over with python train.py --resume {tmp_path}" in said
    )
    assert "--accept-changes" not in said and not (tmp_path / "run" / "checkpoints").exists()


def test_once_in_a_step_that_is_finished_and_saved(stopped: Stopped, tmp_path: Path) -> None:
    said = stopped("rar_mini.sampler:uniforms", 1, "checkpoints/step-1")
    assert f"stopped  after step 2, because of Ctrl-C: python train.py --resume {tmp_path}" in said
    assert "stopped  by" not in said, "one last word is enough"
    assert checkpoint.check(tmp_path / "run" / "checkpoints" / "step-2") == 2


@pytest.mark.parametrize(
    ("place", "done"),
    [
        ("rar_mini.sampler:uniforms", 1),  # sampling
        ("rar_mini.checkpoint:Run._save", 2),  # saving
    ],
)
def test_twice_in_a_step(stopped: Stopped, tmp_path: Path, place: str, done: int) -> None:
    said = stopped(place, 2, "checkpoints/step-1")
    assert (
        f"after step {done}; step 1 is saved, go on from there with python train.py --resume {tmp_path}"
        in said
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]


def test_twice_in_the_final_score(stopped: Stopped) -> None:
    said = stopped("rar_mini.checkpoint:Run.append", 2, "checkpoints/step-2")
    assert "after step 2; step 2 is saved, go on from there with" in said


def test_after_the_last_step_nothing_is_left_to_do(stopped: Stopped) -> None:
    said = stopped("rar_mini.ending:conclusion", 2, "checkpoints/step-3")
    assert "after the last step, which is saved" in said and "--resume" not in said.splitlines()[-1]


def test_a_run_without_checkpoints_starts_over(stopped: Stopped) -> None:
    said = stopped("rar_mini.sampler:uniforms", 2, "rollouts.jsonl", save_every=0)
    assert "before the first checkpoint; the run starts over with" in said and "--accept-changes" in said


HUNG = {"steps": 1, "eval_every": 0, "judge": "chat:m", "max_prompt_tokens": 400}


@pytest.mark.parametrize(
    "who",
    [
        HUNG,  # a judge, for whose answers the main thread waits
        HUNG | {"judge": "keyword", "recipe": "user_simulator", "recipe.user": "chat:m"},  # users, in threads
    ],
    ids=["judge", "user"],
)
def test_twice_while_a_server_hangs(
    many: Path, tmp_path: Path, questions: Path, folder: Path, server: Server, who: dict
) -> None:
    """A run waited for it in the threads that had asked, before its last words and after them."""
    server.hang, server.fault = 60.0, lambda *_: "hang"
    process = spawn(options(many, questions, tmp_path / "run", **who), tmp_path / "log")
    until(lambda: server.served["hang"])
    os.kill(process.pid, signal.SIGINT)
    until(lambda: "Ctrl-C again stops at once" in (tmp_path / "log").read_text())
    os.kill(process.pid, signal.SIGINT)
    said = last_words(process, tmp_path / "log")
    assert said.endswith(f"the run starts over with python train.py --resume {tmp_path / 'run'}\n")


def test_pressed_on_while_a_server_hangs(tmp_path: Path, folder: Path, server: Server) -> None:
    server.hang, server.fault = 60.0, lambda *_: "hang"
    process = spawn(["judge", "--judge", "chat:m"], tmp_path / "log", file="evaluate.py")
    until(lambda: server.served["hang"])
    for _ in range(5):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    last_words(process, tmp_path / "log")


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def last_words(process: BaseProcess, log: Path) -> str:
    """All that a process has said which ends in seconds, although its server would hang for a minute."""
    process.join(10)
    process.kill()
    said = log.read_text()
    assert process.exitcode == 130 and "Traceback" not in said, said
    return said
