"""Save and resume, exactly; and the folder of a run, in which every step stands once.

    RUN/config.json          settings, versions, git revision
    RUN/metrics.jsonl        one line a step; what depends on the machine and the clock is named perf/...
    RUN/rollouts.jsonl       every rollout with its verdicts, reward and advantage
    RUN/evaluations.jsonl    the same for the questions that are scored before and after
    RUN/checkpoints/step-N/  a Hugging Face model directory with its tokenizer; step-N/trainer/ continues the
    run

A checkpoint is built under another name, written through to the disk and then renamed, so that it is there
whole or not at all; its manifest tells whether a file has changed since. No generator's state is in it,
because none exists: every random number of a run is a function of (seed, step, question, rollout, position),
and so is the order of the data.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from rar_mini import model
from rar_mini.policy import Policy

RECORDS = ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl")
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "openai")


class Run:
    """A run's folder. `create` makes a new one and `reopen` continues one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any]) -> "Run":
        """Make the folder and write down the settings. An existing folder is refused: a run is never
        overwritten."""
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(
                f"{folder} exists: expected a new folder for the run; "
                f"continue that run with --resume {folder}, or name another with --out"
            ) from None
        write_json(folder / "config.json", {"settings": settings} | environment())
        return cls(folder)

    @classmethod
    def reopen(cls, folder: Path) -> tuple["Run", dict[str, Any]]:
        """Open an existing run: (run, what its config.json says)."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config["settings"]["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is no run: expected a readable config.json in it, got {type(error).__name__}"
            ) from error
        return cls(folder), config

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to a record and hand them to the system. NaN is an error here: JSON has none."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text)

    def rewind(self, step: int) -> None:
        """Drop from the records what came after a step, half a line included: it will be done again."""
        for name in RECORDS:
            path = self.folder / name
            if path.exists():
                kept = [
                    line for line in path.read_bytes().split(b"\n")[:-1] if json.loads(line)["step"] <= step
                ]
                _write_whole(path, b"".join(line + b"\n" for line in kept))

    def scores(self, split: str, ids: Sequence[str], step: int) -> list[float]:
        """The mean reward of each question at an evaluation, read back from the record; NaN where there is
        none."""
        rewards: dict[str, list[float]] = {name: [] for name in ids}
        with open(self.folder / "evaluations.jsonl", encoding="utf-8") as file:
            for row in map(json.loads, file):
                if row["step"] == step and row["split"] == split and row["reward"] is not None:
                    rewards[row["example_id"]].append(row["reward"])
        return [sum(values) / len(values) if values else float("nan") for values in rewards.values()]

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))

    def save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, keep: int) -> Path:
        """Write checkpoints/step-N whole or not at all, then drop all but the newest `keep`."""
        final = self.folder / "checkpoints" / f"step-{step}"
        partial = final.with_name(f".partial-{step}")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "trainer").mkdir(parents=True)
        try:
            model.save(policy.model, partial)
            policy.tokenizer.save_pretrained(partial)
            if (policy.directory / "generation_config.json").exists():
                shutil.copy(policy.directory / "generation_config.json", partial)
            torch.save(optimizer.state_dict(), partial / "trainer" / "optimizer.pt")
            manifest = {"step": step, "files": _digests(partial)} | environment()
            write_json(partial / "trainer" / "state.json", manifest)
            for path in (*partial.rglob("*"), partial):
                _sync(path)
            os.rename(partial, final)
            _sync(final.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self.checkpoints()[:-keep]:
            # Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name.
            doomed = old.with_name(f".partial-{old.name[5:]}")
            os.rename(old, doomed)
            shutil.rmtree(doomed)
        return final


def check(directory: Path) -> int:
    """The step of a checkpoint whose files are as they were written. Raises ValueError naming a damaged
    file."""
    try:
        state = json.loads((directory / "trainer" / "state.json").read_text(encoding="utf-8"))
        found = _digests(directory)
        bad = [name for name, digest in state["files"].items() if found.get(name) != digest]
    except (OSError, ValueError, KeyError) as error:
        bad = [f"trainer/state.json ({type(error).__name__})"]
    if bad:
        raise ValueError(f"the checkpoint {directory} is damaged: {bad[0]} is not what was written")
    return state["step"]


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back."""
    optimizer.load_state_dict(torch.load(directory / "trainer" / "optimizer.pt", weights_only=True))


def environment() -> dict[str, Any]:
    """What a number may depend on besides the settings: versions, platform, threads, git revision."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = None
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads()}
    return {"versions": versions, "machine": machine, "git": revision}


def differences(written: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the environment of a run's config.json and this one differ in: name to (then, now)."""
    now = environment()
    flat = {
        when: {"git revision": config.get("git"), **config.get("versions", {}), **config.get("machine", {})}
        for when, config in (("then", written), ("now", now))
    }
    names = sorted(flat["then"].keys() | flat["now"].keys())
    pairs = {name: (flat["then"].get(name), flat["now"].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    _write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    _sync(partial)
    os.replace(partial, path)


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest itself."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != "trainer/state.json":
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _sync(path: Path) -> None:
    """Write a file's or folder's content through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
