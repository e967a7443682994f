"""One process at a time writes to a run, or to a file of answers; the lock of one that died is free."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from test_train import options, records
from tiny import question, write_rows

import evaluate
import judge
import train
from rar_mini import files

HOLDER = """
import sys, time
from pathlib import Path
from rar_mini.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """`holder(path)` starts another process that has locked it."""
    started = []

    def hold(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_goes_on_in_one_process_at_a_time(
    tiny: Path, tmp_path: Path, questions: Path, holder: Callable
) -> None:
    """Two that went on interleaved their steps. The lock of a process that is killed is free."""
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=1))
    other, again = holder(run), ["--resume", str(run), "--steps", "2"]
    with pytest.raises(ValueError, match=rf"process {other.pid} on \S+ is at work on {run}: wait"):
        train.main(again)
    other.kill()
    other.wait()
    train.main(again)
    assert [row["step"] for row in records(run)] == [0, 1, 2]
    with files.locked(run):
        pass  # a run that has ended has freed its own


def test_a_file_of_scores_grows_in_one_process_at_a_time(tmp_path: Path, holder: Callable) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [question(0, response="Fever.")])
    other = holder(tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match=rf"process {other.pid} on \S+ is at work on \S+out.jsonl"):
        judge.score(rows, tmp_path / "out.jsonl", "keyword")
    other.kill()
    other.wait()
    judge.score(rows, tmp_path / "out.jsonl", "keyword")
    write_rows(tmp_path / "out.jsonl", [json.loads((tmp_path / "out.jsonl").read_text()) | {"failed": 7}])
    with pytest.raises(ValueError, match="out.jsonl, line 1: field failed: expected true or false, got 7"):
        judge.score(rows, tmp_path / "out.jsonl", "keyword")


def test_an_evaluation_keeps_its_rows_in_one_process_at_a_time(tmp_path: Path, holder: Callable) -> None:
    data = write_rows(tmp_path / "q.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": "a"}])
    given = write_rows(tmp_path / "given.jsonl", [{"prompt_id": "x", "response": "y"}])
    other = holder(tmp_path / "gpqa.jsonl")
    with pytest.raises(ValueError, match=rf"process {other.pid} on \S+ is at work on \S+gpqa.jsonl"):
        evaluate.on_gpqa(data, asking=evaluate.Answering(responses=given, out=tmp_path))


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unable(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", unable)
    with files.locked(tmp_path):
        assert "cannot be locked (no locks available)" in caplog.text


@pytest.mark.parametrize("name", [".lock", ".config.json.partial"])
def test_a_link_leads_to_no_other_file(tiny: Path, tmp_path: Path, questions: Path, name: str) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    train.main(options(tiny, questions, run, steps=1, eval_every=0))
    precious.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    with contextlib.suppress(OSError, ValueError):
        train.main(["--resume", str(run), "--steps", "2"])
    assert precious.read_text() == "mine" and not (run / "config.json").is_symlink()


def test_a_lock_says_nothing_but_who_holds_it(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen]
) -> None:
    path = tmp_path / "file"
    process = holder(path)
    (tmp_path / ".file.lock").write_text("\x1b[31mprocess 1 on vm")
    with pytest.raises(ValueError, match="^another process is at work on"), files.locked(path):
        pass
    (tmp_path / ".file.lock").write_text(f"process {process.pid} on vm\x1b[31m")
    with pytest.raises(ValueError, match=f"^process {process.pid} on vm is at work on"), files.locked(path):
        pass


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_stands_in_a_lock_s_place_is_named(kind: str, tmp_path: Path) -> None:
    """A pipe made the first command wait for ever, a folder was said to be one and no more."""
    lock = tmp_path / ".file.lock"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink(tmp_path / "x", path)}
    make[kind](lock)
    with pytest.raises(ValueError, match=f"^{lock}: expected a file, because .*; delete it$"):
        with files.locked(tmp_path / "file", print):
            pass
    assert not (tmp_path / "x").exists()


def test_who_waits_says_for_whom_and_goes_on_when_that_one_dies(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen]
) -> None:
    """As the first command does whose model another process is preparing."""
    other = holder(tmp_path)
    said = []

    def waiting(words: str) -> None:
        said.append(words)
        other.kill()

    with files.locked(tmp_path, waiting) as holds:
        assert holds and said == [
            f"process {other.pid} on {socket.gethostname()} is at work on {tmp_path}: "
            "waiting until it has ended"
        ]
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
