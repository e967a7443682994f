"""The same numbers in every process, on the policy that users run, with several threads, on a busy machine.

A model of a test's size is too small to be shared out over threads, so that what depends on them shows here
alone.
"""

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train import ROOT, numbers

from rar_mini import grpo

STEPS = 4
COMMAND = "train.py --domain science --judge keyword --prompts-per-step 1 --group-size 4 --max-new-tokens 16"
COMMAND += f" --seed 7 --save-every 1 --eval-every 0 --steps {STEPS} --keep {STEPS}"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_gradient_has_one_order_of_its_sums(two_threads: None) -> None:
    """The row behind which a group's completions begin occurs once for each. torch adds up the gradient of an
    index by atomics, in the order in which threads arrive: of 50 passes like these 5 differed."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 576, generator=generator).requires_grad_()
    model = SimpleNamespace(head=torch.randn(50, 576, generator=generator))
    row = torch.cat([torch.arange(i, i + 63) for _ in range(8) for i in (20, 100)])  # (1,008,)
    batch = SimpleNamespace(
        row=row, target=torch.arange(1008) % 50, packed=SimpleNamespace(ids=0, positions=0, attend=0)
    )
    (first,) = gradient(model, hidden, batch)
    assert all(torch.equal(first, gradient(model, hidden, batch)[0]) for _ in range(40))


def gradient(
    model: SimpleNamespace, hidden: torch.Tensor, batch: SimpleNamespace
) -> tuple[torch.Tensor, ...]:
    def read(*packed: object) -> torch.Tensor:
        return hidden * 1

    read.head = model.head
    logp, _ = grpo.token_logp(read, batch, 1.0)
    return torch.autograd.grad(logp.sum(), [hidden])


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Beside the two threads of a run, a loop that wants a core of its own."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()


def start(words: str, log: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, *words.split()], cwd=ROOT, env=env, stdout=file, stderr=file)


Result = tuple[list[dict], list[str]]


def result(run: Path) -> Result:
    """The metrics of a run and a digest of the weights after each step. Deletes the run: it has 6 GB."""
    paths = [run / f"checkpoints/step-{n}/model.safetensors" for n in range(1, STEPS + 1)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    seen = numbers(run)
    shutil.rmtree(run)
    return seen, digests


def whole(run: Path) -> Result:
    log = run.parent / "log"
    assert start(f"{COMMAND} --out {run}", log).wait() == 0, log.read_text()
    return result(run)


@pytest.fixture(scope="module")
def quiet(default: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of a run that nothing disturbs."""
    return whole(tmp_path_factory.mktemp("quiet") / "run")


@pytest.mark.slow
def test_the_default_policy_repeats_its_numbers_beside_a_load(quiet: Result, tmp_path: Path) -> None:
    with busy():
        assert whole(tmp_path / "run") == quiet
        assert whole(tmp_path / "run") == quiet


@pytest.mark.slow
def test_the_default_policy_goes_on_with_its_numbers_beside_a_load(quiet: Result, tmp_path: Path) -> None:
    """Killed three times at random moments after its first checkpoint."""
    run, log, rng = tmp_path / "run", tmp_path / "log", random.Random(0)
    words = f"{COMMAND} --out {run}"
    with busy():
        for step in range(1, STEPS):
            process = start(words, log)
            while not (run / f"checkpoints/step-{step}").exists() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 4))
            process.kill()
            process.wait()
            words = f"train.py --resume {run}"
        if start(words, log).wait():  # or it came to its end before the last kill
            assert "is finished after" in log.read_text()
    assert result(run) == quiet
