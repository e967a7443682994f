"""The fixtures that tests share: a tiny random policy in Hugging Face's format, the real default, a few
questions, a server on the loopback and a real one.

pytest reads this file in the process that gives the tests to others, too. That one needs none of them: what
takes seconds to import is imported where it is used.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hostile import Server

    from rar_mini import data

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give the whole suite to several processes of one thread each, which takes half the time on two cores.
    `-n 0` keeps it in one. GPU tests stay in one: they would share the device's memory."""
    option = config.option
    worker = "PYTEST_XDIST_WORKER" in os.environ  # which would start workers of its own
    unsaid = getattr(option, "numprocesses", 0) is None  # pytest-xdist is there, and no -n is
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr != "gpu"
    if unsaid and whole and not worker and not option.usepdb:
        option.numprocesses, option.dist = min(4, os.cpu_count() or 1), "loadfile"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Without the garbage collector: what is imported stays, and to look through a million objects again and
    again takes two seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that costs nothing. Read only: it is shared."""
    from tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="session")
def many(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with one end token in eight, ENDS, so that answers end at any length."""
    from tiny import ENDS

    directory = tmp_path_factory.mktemp("many") / "policy"
    shutil.copytree(tiny, directory)
    config = json.loads((directory / "generation_config.json").read_text())
    config["eos_token_id"] = sorted(ENDS)
    (directory / "generation_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with heads of 16 channels, the fewest that FlexAttention takes on a GPU."""
    from tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("wide") / "policy", head_dim=16)


@pytest.fixture(scope="session")
def default() -> Path:
    """The real default policy, fetched once into the user's cache."""
    from rar_mini import pretrained

    return pretrained.resolve("smollm2-135m")


Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("judge.py", *words)` runs a file of the project as a shell would, but in this process: to
    import torch again takes seconds. Some test starts a real one of each file of the root."""

    def run(file: str, *words: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [file, *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / file), run_name="__main__")
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # Python prints it at its end
            code, err = 1, f"{err}{code}\n"
        return subprocess.CompletedProcess(sys.argv, code or 0, out, err)

    return run


@pytest.fixture
def terse(tmp_path: Path) -> Path:
    """A judge's prompts so short that they fit into the window of `tiny`."""
    path = tmp_path / "terse.toml"
    path.write_text(
        """
system = "s"
shared = "{question}{response}"
shared_reference = "{question}{reference}{response}"
rate = "r"
rate_reference = "r"
rate_rubric = "{items}"
met = "{criterion}"
made = "{criterion}"
avoided = "no {criterion}"
"""
    )
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Five training questions and two held out."""
    from tiny import question, write_rows

    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    return write_rows(tmp_path / "questions.jsonl", rows)


@pytest.fixture
def examples(questions: Path) -> list[data.Example]:
    """Two of the training questions."""
    from rar_mini import data

    return data.read(questions)[:2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no server but its own."""
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on the loopback that misbehaves on request."""
    from hostile import Server

    server = Server(hang=2.0)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    yield server
    server.close()


@pytest.fixture(scope="session")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory, default: Path) -> Iterator[str]:
    """`transformers serve` with the default policy, on a port that was free."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install -e '.[serve]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", default, "--host", "127.0.0.1"]
    log = open(tmp_path_factory.mktemp("serve") / "log", "w+")  # noqa: SIM115, as long as the server
    process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.seek(0) or log.read()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()
