"""Save and resume, exactly; and the folder of a run, in which every step stands once.

    RUN/config.json          settings, versions, git revision
    RUN/metrics.jsonl        one line a step; what depends on the machine and the clock is named perf/...
    RUN/rollouts.jsonl       every rollout with its verdicts, reward and advantage, and its tokens
    RUN/evaluations.jsonl    the same for the questions that are scored before and after
    RUN/checkpoints/step-N/  a Hugging Face model directory with its tokenizer; trainer/ continues the run.
                             Of LoRA it has merged weights, and in adapter/ a directory of PEFT's; or with
                             --lora-save adapter it is one of PEFT's itself

A checkpoint is built under another name, written through to the disk and then renamed, so that it is there
whole or not at all; its manifest tells whether a file has changed since. No generator's state is in it,
because none exists: every random number of a run is a function of (seed, step, question, rollout, position),
and so is the order of the data.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rar_mini import ranks
from rar_mini.config import PRESETS, Config
from rar_mini.options import from_json, to_json
from rar_mini.policy import Policy, checksum

RECORDS = ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl")
TOKENS = ("prompt_ids", "ids", "sampler_logp")
"""Of a rollout, what a step is recomputed from. Nothing here reads it back: in a long run it is gigabytes."""
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "openai")


class Run:
    """A run's folder. `create` makes a new one and `reopen` continues one. Of several ranks the first one
    writes, and all read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], **facts: Any) -> "Run":
        """Make the folder and write settings and facts down. One that exists is refused, not overwritten."""
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(
                f"{folder} exists: expected a new folder for the run; "
                f"continue that run with --resume {folder}, or name another with --out"
            ) from None
        run = cls(folder)
        run.describe({"settings": settings} | facts | environment())
        return run

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

    @ranks.by_first
    def describe(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        with self._writing():
            write_json(self.folder / "config.json", config)

    @ranks.by_first
    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to a record and hand them to the system. NaN is an error here: JSON has none."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self._writing(), open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text)

    @ranks.by_first
    def rewind(self, step: int) -> None:
        """Drop what came after a step, half a line of a record included: it will be done again."""
        for path in (self.folder / name for name in RECORDS):
            if path.exists():
                lines = path.read_bytes().split(b"\n")[:-1]
                kept = [line for line in lines if json.loads(line)["step"] <= step]
                with self._writing():
                    _write_whole(path, b"".join(line + b"\n" for line in kept))
        for later in self.checkpoints():
            if _step(later) > step:
                _remove(later)

    def steps(self, name: str) -> list[list[dict[str, Any]]]:
        """The rows of a record, step by step."""
        steps: dict[int, list[dict[str, Any]]] = {}
        for row in records(self.folder, name):
            steps.setdefault(row["step"], []).append(row)
        return list(steps.values())

    def scores(self, split: str, ids: Sequence[str], step: int) -> list[float]:
        """The mean reward of each question at an evaluation, read from the record; NaN where none is."""
        rewards: dict[str, list[float]] = {name: [] for name in ids}
        for row in records(self.folder, "evaluations.jsonl"):
            if row["step"] == step and row["split"] == split and row["reward"] is not None:
                rewards[row["example_id"]].append(row["reward"])
        return [sum(values) / len(values) if values else float("nan") for values in rewards.values()]

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"), key=_step)

    def start(self, step: int | None) -> tuple[Path | None, int]:
        """The checkpoint to continue from, the newest or that of `step`, and its step.

        (None, -1) where none is: then not even the score before training is kept. Raises ValueError for a
        step without a checkpoint, and for a damaged one, with the way back to the one before it.
        """
        found = [path for path in self.checkpoints() if step is None or _step(path) <= step]
        if step is not None and (not found or _step(found[-1]) != step):
            there = ", ".join(str(_step(path)) for path in self.checkpoints()) or "none"
            raise ValueError(f"{self.folder} has no checkpoint of step {step}: expected one of {there}")
        if not found:
            return None, -1
        try:
            return found[-1], check(found[-1])
        except ValueError as error:
            way = f"delete it, and --resume {self.folder} starts the run over"
            if found[:-1]:
                way = f"continue from the one before it with --resume {self.folder} --step {_step(found[-2])}"
            raise ValueError(f"{error}; {way}") from error

    def save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, keep: int) -> Path:
        """Write checkpoints/step-N whole or not at all, then drop all but the newest `keep`.

        All ranks wait for it. Raises ValueError where their weights have drifted apart.
        """
        ranks.refuse_unlike("weights", lambda: checksum(policy))
        return ranks.first(lambda: self._save(step, policy, optimizer, keep))

    def _save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, keep: int) -> Path:
        final = self.folder / "checkpoints" / f"step-{step}"
        if final.exists():
            return final
        partial = final.with_name(f".partial-{step}")
        shutil.rmtree(partial, ignore_errors=True)
        with self._writing(partial):
            (partial / "trainer").mkdir(parents=True)
            policy.save(partial)
            torch.save(optimizer.state_dict(), partial / "trainer" / "optimizer.pt")
            manifest = {"step": step, "files": _digests(partial)} | environment()
            write_json(partial / "trainer" / "state.json", manifest)
            for path in (*partial.rglob("*"), partial):
                _sync(path)
            os.rename(partial, final)
            _sync(final.parent)
        for old in self.checkpoints()[:-keep]:
            _remove(old)
        return final

    @ranks.by_first
    def keep_evidence(self, step: int, decoder: torch.nn.Module, rollouts: list[dict[str, Any]]) -> Path:
        """Write nonfinite-step-N.json: statistics of every weight and gradient, and the step's rollouts."""
        tensors = {}
        for name, parameter in decoder.named_parameters():
            tensors[name] = statistics(parameter)
            if parameter.grad is not None:
                tensors[f"{name}.grad"] = statistics(parameter.grad)
        path = self.folder / f"nonfinite-step-{step}.json"
        with self._writing():
            write_json(path, {"step": step, "tensors": tensors, "rollouts": rollouts})
        return path

    @contextmanager
    def _writing(self, partial: Path | None = None) -> Iterator[None]:
        """Leave nothing half done, and say what to do about a full disk."""
        try:
            yield
        # To torch a full disk is a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"could not write to {self.folder}: {error}. What was saved before is whole; make room, then "
                f"continue with: python train.py --resume {self.folder}"
            ) from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one of a run's records without their TOKENS, none where there is no such file."""
    return lines(folder / name, "step", without=TOKENS)


def lines(
    path: Path, *fields: str, finished: bool = False, without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with these fields, read `without` others. Raises ValueError that names a
    line.

    Of a file that is added to, none where there is none yet, and what comes after the last line feed is left
    out: half a line, of a command that is at work or was killed. A `finished` file has to be there, counts to
    its last character, and may have blank lines.
    """
    parts = path.read_bytes().split(b"\n") if finished or path.exists() else []
    rows = []
    for number, line in enumerate(parts if finished else parts[:-1], 1):
        if finished and not line.strip():
            continue
        try:
            row = json.loads(line)
            fits = row.keys() >= set(fields)
        except (ValueError, AttributeError):
            fits = False
        if not fits:
            came = line[:40].decode("utf-8", "replace")
            wanted = "a JSON object" + (fields and " with " + ", ".join(fields) or "")
            raise ValueError(f"{path}, line {number}: expected {wanted}, got {came!r}")
        rows.append({name: value for name, value in row.items() if name not in without})
    return rows


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _remove(checkpoint: Path) -> None:
    """Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name."""
    doomed = checkpoint.with_name(f".partial-{_step(checkpoint)}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def statistics(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, how many numbers are not finite, and the range and root mean square of those that are."""
    finite = tensor.detach()[tensor.isfinite()].float()
    known = len(finite) > 0
    return {
        "shape": list(tensor.shape),
        "nan": int(tensor.isnan().sum()),
        "infinite": int(tensor.isinf().sum()),
        "min": finite.min().item() if known else None,
        "max": finite.max().item() if known else None,
        "rms": finite.double().square().mean().sqrt().item() if known else None,
    }


def check(directory: Path) -> int:
    """The step of a checkpoint whose files are as they were written; ValueError that names a damaged one."""
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
    # The file names the GPU that they were on: without a word, all ranks would fill that of the first.
    device = optimizer.param_groups[0]["params"][0].device
    saved = torch.load(directory / "trainer" / "optimizer.pt", map_location=device, weights_only=True)
    optimizer.load_state_dict(saved)


def environment() -> dict[str, Any]:
    """What a number may depend on besides the settings: versions, platform, threads, git revision."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["torch"] = str(torch.__version__)  # with its build, +cpu or +cu130, which metadata may lack
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = None
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "ranks": ranks.world}
    return {"versions": versions, "machine": machine, "git": revision}


def differences(written: dict[str, Any]) -> list[str]:
    """What the environment of a run's config.json and this one differ in, in words."""
    now = environment()
    flat = {
        when: {"ranks": 1, "git revision": config.get("git")}
        | config.get("versions", {})
        | config.get("machine", {})
        for when, config in (("then", written), ("now", now))
    }
    names = sorted(flat["then"].keys() | flat["now"].keys())
    pairs = {name: (flat["then"].get(name), flat["now"].get(name)) for name in names}
    return [
        f"this run began with {name} {then}, now it is {now}"
        + (", which shares a step out and sums it up otherwise" if name == "ranks" else "")
        for name, (then, now) in pairs.items()
        if then != now
    ]


def reopen(argv: list[str]) -> tuple[Config, Run, Path | None]:
    """Settings, folder and checkpoint of the run that `--resume RUN` names, with its records rewound."""
    parser = argparse.ArgumentParser("train.py", allow_abbrev=False, description="Continue a run.")
    parser.add_argument("--resume", type=Path, metavar="RUN", required=True, help="the run's folder")
    parser.add_argument("--steps", type=int, help="go on to this many steps")
    parser.add_argument("--step", type=int, help="continue from this step's checkpoint, not the newest")
    parser.add_argument("--max-usd", type=float, help="what each judge may cost, in place of the run's own")
    options = parser.parse_args(argv)
    run, written = Run.reopen(options.resume)
    config = from_json(PRESETS["cpu"], written["settings"])
    if options.max_usd is not None:
        judging = dataclasses.replace(config.judging, max_usd=options.max_usd)
        config = dataclasses.replace(config, judging=judging)
    for difference in differences(written):
        print(f"train.py: {difference}; its numbers may differ", file=sys.stderr)
    found, done = run.start(options.step)
    if options.steps is not None:
        if options.steps < max(config.steps, done):
            raise ValueError(f"--steps {options.steps}: expected the run's {config.steps} or more")
        # The warm-up stays as long as it was: a share of more steps would lower the rate again.
        warmup = config.warmup * (config.steps or options.steps) / options.steps
        config = dataclasses.replace(config, steps=options.steps, warmup=warmup)
    if done >= config.steps:
        raise ValueError(f"{run.folder} is finished after {done} steps; pass --steps N to go on")
    run.describe(written | {"settings": to_json(config)})
    run.rewind(done)
    print(f"resume   {run.folder} after step {max(done, 0)}")
    return config, run, found


def stop_on_interrupt(folder: Path) -> list[int]:
    """Let the first Ctrl-C finish the step and save, the second stop at once. The first fills the list."""
    asked: list[int] = []
    ranks.way_back = f"--resume {folder}"

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.append(number)
        tqdm.write(
            "\ntrain.py: stopping after this step, with a checkpoint; Ctrl-C again stops at once.\n"
            f"          Go on later with: python train.py --resume {folder}"
        )

    signal.signal(signal.SIGINT, handle)
    return asked


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
