"""Save and resume, exactly; and the folder of a run, in which every step stands once.

    RUN/config.json          settings, versions, git revision
    RUN/metrics.jsonl        one line a step; what depends on the machine and the clock is named perf/...
    RUN/rollouts.jsonl       every rollout with its verdicts, reward and advantage, and its tokens
    RUN/evaluations.jsonl    the same for the questions that are scored before and after
    RUN/alarms.jsonl         what the run said of itself when it was in trouble
    RUN/checkpoints/step-N/  a Hugging Face model directory with its tokenizer; trainer/ continues the run.
                             With LoRA it has merged weights, and in adapter/ a directory of PEFT's; or
                             with --lora-save adapter it is one of PEFT's itself

A checkpoint is built under another name, written through to the disk and then renamed, so that it is there
whole or not at all; its manifest tells whether a file has changed since. Only a folder that is named exactly
so is a checkpoint: copies and links beside it are not ours. No generator's state is in it, because none
exists: every random number of a run is a function of (seed, step, question, rollout, position), and so is the
order of the data.
"""

import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rar_mini import forms, prompts, ranks
from rar_mini.config import Config
from rar_mini.files import digest, digests, each_line, locked, named_line, regular, sync, write_json
from rar_mini.forms import ABSENT, Finite, Form
from rar_mini.options import out_of_memory, to_json
from rar_mini.policy import SLICE, Policy, checksum

TOKENS = ("prompt_ids", "ids", "sampler_logp", "heard")
"""What a step is recomputed from. Nothing here reads it back: in a long run it is gigabytes."""
SETTINGS = TypeAdapter(Config)
BEFORE = {"answers": "full", "cut_answers": "train"}
"""What runs did before there were these settings, in place of their defaults."""
FREE = {"design", "judging", "preset", "steps", "max_usd", "out", "track", "save_every", "keep", "show_every"}
FREE |= {"data", "recipe", "prompts", "policy", "prices", "base_url", "concurrency", "timeout", "rpm", "tpm"}
FREE |= {"retries", "cache", "device", "judge_device", "reference_device", "tokens_per_batch", "cache_mb"}
FREE |= {"graph", "attention", "checkpoint_activations", "checkpoint_layers", "max_judge_failures"}
"""Settings that may change in a run: what they name is compared by its content, or they change no number
beyond rounding."""
MANIFEST = "trainer/state.json"
STEP = re.compile("step-(0|[1-9][0-9]*)")
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "openai")


Step = Annotated[int, Field(ge=0, le=10**9)]
Token = Annotated[int, Field(ge=0)]


class Settings(Form):
    """The settings that no run is without, or that are read alone."""

    seed: int = ABSENT
    method: str = Config.method
    group_size: Annotated[int, Field(ge=1)] = Config.group_size


class Questions(Form):
    """What a run that goes on compares the questions of a split with."""

    rows: int = ABSENT
    digest: str = ABSENT


class Description(Form):
    """config.json, as far as it is read again. `Run.settings` reads all settings, for whoever needs them."""

    settings: Settings = ABSENT
    questions: dict[str, Questions] = {}
    judge_texts: dict[str, str] = {}
    recipe: str | None = None
    base: int | None = None
    end_tokens: list[str] = []
    planned_steps: Step | None = None
    accepted: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}


class Row(Form):
    """What every line of a record has. The rest of metrics.jsonl is numbers, which docs/metrics.md names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Finite | None] = Field(init=False)

    step: Step = ABSENT


class Verdict(Form):
    """What a judge said about an item."""

    title: str = ABSENT
    category: str = ABSENT
    weight: Finite = ABSENT
    verdict: Finite | None


class Said(Form):
    """A turn before the response."""

    role: str = ABSENT
    content: str = ABSENT


class Rollout(Form):
    """A line of rollouts.jsonl, without its TOKENS."""

    step: Step = ABSENT
    example_id: str = ABSENT
    prompt: str = ABSENT
    response: str = ABSENT
    verdicts: list[Verdict] = ABSENT
    rating: Finite | None
    reward: Finite | None
    advantage: Finite = ABSENT
    tokens: int = ABSENT
    finished: bool = ABSENT
    turns: list[Said] = []


class Sampled(Rollout):
    """A line of rollouts.jsonl with its TOKENS, but for what was heard."""

    prompt_ids: list[Token] = ABSENT
    ids: list[Token] = ABSENT
    sampler_logp: list[Finite | None] = ABSENT


class Evaluation(Form):
    """What is read again of a line of evaluations.jsonl."""

    step: Step = ABSENT
    split: str = ABSENT
    example_id: str = ABSENT
    reward: Finite | None


class Alarm(Form):
    """A line of alarms.jsonl."""

    step: Step = ABSENT
    alarm: str = ABSENT
    says: str = ABSENT


RECORDS = {"metrics.jsonl": Row, "rollouts.jsonl": Rollout, "evaluations.jsonl": Evaluation}
RECORDS |= {"alarms.jsonl": Alarm}
"""What has one or more lines a step."""


class Manifest(Form):
    """trainer/state.json of a checkpoint."""

    step: int = ABSENT
    files: dict[str, str] = ABSENT  # SHA-256 by name
    records: dict[str, int] = {}  # bytes by name, up to this step
    settings: dict[str, Any] = {}  # of the run; checkpoints had none at first
    digest: str | None = None  # of all the rest; checkpoints had none at first


_held = ExitStack()


@contextmanager
def alone() -> Iterator[None]:
    """Around a command: free at its end what `hold` has locked."""
    with _held:
        yield


def hold(folder: Path) -> None:
    """Lock a run's folder until the command has ended: two processes would interleave its steps. Rank 0 does
    so for all. A program that calls train.train() puts `alone` around each call, as train.main does."""
    _held.enter_context(locked(folder))


class Taken(ValueError):
    """A new run's folder is there already."""

    def __init__(self, folder: Path) -> None:
        words = "and has no run in it: delete it if nobody needs it"
        if (folder / "config.json").exists():
            words = f"and has a run in it: continue that run with --resume {folder}"
        super().__init__(f"{folder} exists {words}, or name another with --out")


class Run:
    """A run's folder. `create` makes a new one and `reopen` continues one. With several ranks, the first
    one writes and all read."""

    def __init__(self, folder: Path, written: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.written = written or {}  # what config.json says, or is to say once the run goes on
        self.accepts = False  # whether the run may go on although its data or texts have changed
        self._begins: dict[str, dict[int, int]] = {}  # by record and step: the byte at which its lines begin

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], **facts: Any) -> "Run":
        """Make the folder with settings and facts in it, whole or not at all. One that exists is refused, not
        overwritten: Taken."""
        if os.path.lexists(folder):
            raise Taken(folder)
        run = cls(folder, {"settings": settings} | facts | environment())
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        try:
            partial.mkdir(parents=True)
            write_json(partial / "config.json", run.written)
            os.rename(partial, folder)
            sync(folder.parent)
        except OSError as error:
            if os.path.lexists(folder):  # another run was faster
                raise Taken(folder) from None
            raise ValueError(
                f"cannot make the run's folder {folder}: {error.strerror}; name another with --out"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return run

    @classmethod
    def reopen(cls, folder: Path) -> "Run":
        """Open an existing run, with what its config.json says as `written`."""
        try:
            text = regular(folder / "config.json").read_bytes()
            Description.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise ValueError(
                f"{folder} is no run: expected a readable config.json in it; {forms.fault(error)}"
            ) from error
        return cls(folder, json.loads(text))

    def settings(self) -> Config:
        """The run's settings; those that it did not know yet have their defaults. Raises ValueError by the
        name of one that no run has."""
        settings = BEFORE | self.written["settings"]
        try:
            return SETTINGS.validate_json(json.dumps(settings), strict=True)
        except ValidationError as error:
            raise ValueError(f"{self.folder}/config.json: {forms.fault(error, 'settings')}") from None

    @contextmanager
    def texts(self) -> Iterator[None]:
        """Judges that are made in this block are shown what this run's judge was shown. A run that has kept
        no texts has today's, and says so; one that accepts changes has them, too."""
        before = prompts.run_texts
        prompts.run_texts = {} if self.accepts else self.written.get("judge_texts", {})
        if "judge_texts" not in self.written:
            print(f"prompts  {self.folder} is older and has kept none: its judge is shown today's")
        try:
            yield
        finally:
            prompts.run_texts = before

    def go_on(self, checkpoint: Path | None, settings: dict[str, Any], **facts: Any) -> "Run":
        """Bring the folder to where a run goes on from a checkpoint that has been loaded: until then nothing
        in it may change. Without one the run starts over.

        Raises ValueError by the names of what has changed if it would go on as another experiment. If the run
        accepts that, config.json keeps it.
        """
        step = -1 if checkpoint is None else step_of(checkpoint)
        sizes = {name: self._size(name, step) for name in RECORDS}
        if changes := [*_changes(self.written, facts), *_losses(self, checkpoint, sizes)]:
            if not self.accepts:
                raise ValueError(
                    f"{self.folder} would go on as another experiment, because these have changed: "
                    f"{'; '.join(changes)}. Bring them back as they were; or pass --accept-changes, and "
                    "config.json keeps what you accepted"
                )
            accepted = {"after_step": max(step, 0), "changes": changes}
            self.written["accepted"] = [*self.written.get("accepted", []), accepted]
        self.written |= {"settings": settings} | facts
        self.describe()
        self._rewind(step, sizes)
        return self

    def describe(self) -> None:
        """Write config.json."""
        with self._writing():
            write_json(self.folder / "config.json", self.written)

    @ranks.by_first
    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to a record and hand them to the system. NaN is an error here: JSON has none. Raises
        ValueError for a metric that is no number, which nobody could read again."""
        rows = list(rows)
        for row in rows if name == "metrics.jsonl" else ():
            forms.read(Row, row, f"a line of {name}", "a recipe's metrics are numbers")
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self._writing(), open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text)

    def _size(self, name: str, step: int) -> int:
        """How many bytes of a record are lines up to a step. Notes where each of these steps begins."""
        size, begins = 0, self._begins.setdefault(name, {})
        begins.clear()
        for row, end in each_record(self.folder, name, step):
            if row["step"] > step:
                break
            begins.setdefault(row["step"], size)
            size = end
        return size

    def _rewind(self, step: int, sizes: dict[str, int]) -> None:
        """Drop what came after a step, but for what is kept of the records: it will be done again."""
        for path, size in ((self.folder / name, size) for name, size in sizes.items()):
            if path.exists() and path.stat().st_size != size:
                with self._writing():
                    os.truncate(path, size)
        for later in self.checkpoints():
            if step_of(later) > step:
                _remove(later)

    def steps(self, name: str, last: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The rows of a record, step by step; with `last`, those of the last steps that `go_on` has kept."""
        begins = list(self._begins.get(name, {}).values())
        start = begins[-last:][0] if last and begins else 0
        rows = (row for row, _ in each_record(self.folder, name, start=start))
        for _, rows_of_step in itertools.groupby(rows, lambda row: row["step"]):
            yield list(rows_of_step)

    def scores(self, split: str, ids: Sequence[str], step: int) -> list[float]:
        """The mean reward of each question at an evaluation, read from the record; NaN where none is."""
        rewards: dict[str, list[float]] = {name: [] for name in ids}
        for row, _ in each_record(self.folder, "evaluations.jsonl", step):
            if row["step"] > step:
                break
            known = row["split"] == split and row["example_id"] in rewards  # the data may have changed
            if known and row["step"] == step and row["reward"] is not None:
                rewards[row["example_id"]].append(row["reward"])
        return [sum(values) / len(values) if values else float("nan") for values in rewards.values()]

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted((path for path in found if step_of(path) is not None), key=step_of)

    def start(self, step: int | None) -> tuple[Path | None, int]:
        """The checkpoint to continue from, the newest or that of `step`, and its step.

        (None, -1) where none is: then not even the score before training is kept. Raises ValueError for a
        step without a checkpoint, and for a damaged one, with the way back to the one before it. All of its
        files are read through here, once: of 7B they are 46 GB.
        """
        found = [path for path in self.checkpoints() if step is None or step_of(path) <= step]
        if step is not None and (not found or step_of(found[-1]) != step):
            there = ", ".join(str(step_of(path)) for path in self.checkpoints()) or "none"
            raise ValueError(f"{self.folder} has no checkpoint of step {step}: expected one of {there}")
        if not found:
            return None, -1
        try:
            return found[-1], check(found[-1])
        except ValueError as error:
            way = f"delete it, and --resume {self.folder} starts the run over"
            if found[:-1]:
                way = (
                    f"continue from the one before it with --resume {self.folder} --step {step_of(found[-2])}"
                )
            raise ValueError(f"{error}; {way}") from error

    def save(
        self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
    ) -> Path:
        """Write checkpoints/step-N whole or not at all, with a recipe's own `state`, then drop all but the
        newest `keep`.

        All ranks wait for it. Raises ValueError where their weights have drifted apart.
        """
        ranks.refuse_unlike("weights", lambda: checksum(policy))
        return ranks.first(lambda: self._save(step, policy, optimizer, state, keep))

    def _save(
        self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
    ) -> Path:
        final = self.folder / "checkpoints" / f"step-{step}"
        if step_of(final) is not None:
            return final
        partial = final.with_name(f".partial-{step}")
        shutil.rmtree(partial, ignore_errors=True)
        records = [self.folder / name for name in RECORDS]
        sizes = {path.name: path.stat().st_size for path in records if path.exists()}
        with self._writing(partial):
            (partial / "trainer").mkdir(parents=True)
            policy.save(partial)
            torch.save(optimizer.state_dict(), partial / "trainer" / "optimizer.pt")
            if state:
                torch.save(state, partial / "trainer" / "recipe.pt")
            for name in sizes:
                sync(self.folder / name)  # no step of a checkpoint may be missing after a power cut
            manifest = {"step": step, "files": digests(partial, MANIFEST), "records": sizes}
            manifest |= {"settings": self.written.get("settings", {})} | environment()
            write_json(partial / MANIFEST, manifest | {"digest": digest(manifest)})
            for path in (*partial.rglob("*"), partial):
                sync(path)
            _make_room(final)
            os.rename(partial, final)
            sync(final.parent)
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
            if out_of_memory(error):
                raise
            raise OSError(
                f"could not write to {self.folder}: {error}. What was saved before is whole; make room, then "
                f"continue with: python train.py --resume {self.folder}"
            ) from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one of a run's records, as `each_record` reads them."""
    return [row for row, _ in each_record(folder, name)]


def each_record(
    folder: Path, name: str, last: float = math.inf, start: int = 0
) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of one of a run's records without their TOKENS, from byte `start` on, and the byte behind
    each: one at a time, because in a long run they are gigabytes. It has no rows if there is no such file.

    Raises ValueError that names the line and the field of a row that no run writes, or the step that comes
    too late, up to the `last` step that counts.
    """
    remedy, highest = "no run writes such a line: bring the file back as it was", 0
    for number, (row, end) in enumerate(each_line(folder / name, "step", without=TOKENS, start=start), 1):
        place = named_line(folder / name, number, start)
        if not isinstance(row["step"], int) or row["step"] <= last:
            forms.read(RECORDS[name], row, place, remedy)
        if row["step"] < highest:
            raise ValueError(f"{place}: expected step {highest} or later, got {row['step']}; {remedy}")
        highest = row["step"]
        yield row, end


def newest(model: str) -> str:
    """What a model's name means: in place of a run's folder its newest checkpoint, else the name itself.
    Raises ValueError for a run without a checkpoint."""
    folder = Path(model).expanduser()
    if os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        if checkpoints := Run(folder).checkpoints():
            return str(checkpoints[-1])
        if (folder / "rollouts.jsonl").exists():
            raise ValueError(
                f"{folder} is a run without a checkpoint: expected one (--save-every), or a model"
            )
    return model


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint; None for anything else, such as step-8-backup, a file, or a link to a folder
    that others may need."""
    named = STEP.fullmatch(checkpoint.name)
    return int(named[1]) if named and checkpoint.is_dir() and not checkpoint.is_symlink() else None


def _remove(checkpoint: Path) -> None:
    """Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name."""
    doomed = checkpoint.with_name(f".partial-{step_of(checkpoint)}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def _make_room(final: Path) -> None:
    """Rename what is not ours and has a checkpoint's name: deleted, it would be lost; left, no step could be
    saved here."""
    if os.path.lexists(final):
        names = (final.with_name(f"{final.name}-other-{number}") for number in itertools.count(1))
        other = next(path for path in names if not os.path.lexists(path))
        os.rename(final, other)
        print(f"train.py: {final} was no checkpoint of this run; it is {other.name} now", file=sys.stderr)


def statistics(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, how many numbers are not finite, and the range and root mean square of those that are."""
    nan, infinite, count, squares = 0, 0, 0, 0.0
    low, high = torch.inf, -torch.inf
    for part in tensor.detach().flatten().split(SLICE):
        finite = part[part.isfinite()].float()
        nan, infinite = nan + int(part.isnan().sum()), infinite + int(part.isinf().sum())
        if len(finite):
            count, squares = count + len(finite), squares + finite.double().square().sum().item()
            low, high = min(low, finite.min().item()), max(high, finite.max().item())
    return {
        "shape": list(tensor.shape),
        "nan": nan,
        "infinite": infinite,
        "min": low if count else None,
        "max": high if count else None,
        "rms": math.sqrt(squares / count) if count else None,
    }


def check(directory: Path, *, resumes: bool = True) -> int:
    """The step of a checkpoint whose files are as they were written; ValueError that names a damaged one.
    What only a run that `resumes` needs, two thirds of the bytes, is read for that alone."""
    try:
        text = regular(directory / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(text)
        bad = _faults(directory, manifest, json.loads(text))
        left = MANIFEST if resumes else "trainer/"
        found, files = digests(directory, left), manifest.files.items()
        bad += [forms.escaped(n) for n, sha in files if not n.startswith(left) and found.get(n) != sha]
    except (OSError, ValidationError) as error:
        bad = [f"{MANIFEST} ({forms.fault(error)})"]
    if bad:
        raise ValueError(f"the checkpoint {directory} is damaged: {bad[0]} is not what was written")
    return manifest.step


def _faults(directory: Path, manifest: Manifest, written: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest itself."""
    named = STEP.fullmatch(directory.name)
    if named and int(named[1]) != manifest.step:
        return [f"{MANIFEST} (field step: expected {named[1]} as in the name, got {manifest.step})"]
    rest = {name: value for name, value in written.items() if name != "digest"}
    if manifest.digest not in (None, digest(rest)):
        return [f"{MANIFEST} (field digest: expected {digest(rest)}, got {manifest.digest!r:.40})"]
    return []


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What makes a run another experiment, by name. What an older run did not write down is not compared."""
    changes = []
    for split, rows in now.get("questions", {}).items():
        if (before := then.get("questions", {}).get(split)) not in (None, rows):
            changes.append(f"{split} questions ({before['rows']} then, {rows['rows']} now, not all the same)")
    if "judge_texts" in then:
        new = now["judge_texts"]
        old = {name: "" for name in new if name.split("/")[-1] in prompts.EMPTY} | then["judge_texts"]
        names = sorted(name for name in old if old[name] != new.get(name))
        changes += ["the judge's prompts (" + ", ".join(map(forms.escaped, names)) + ")"] if names else []
    names = ("recipe", "the recipe's file", "recipe"), ("base", "the weights", "policy")
    for name, what, setting in (*names, ("end_tokens", "the end tokens", "policy")):
        if name in then and then[name] != now[name]:
            changes.append(f"{what} ({forms.escaped(str(then['settings'].get(setting)))})")
    return changes


def _losses(run: Run, checkpoint: Path | None, now: dict[str, int]) -> list[str]:
    """What a run's folder does not hold any more: a checkpoint, or records and settings as they were then."""
    if checkpoint is None:
        often = run.settings().save_every
        last = max((row["step"] for row, _ in each_record(run.folder, "metrics.jsonl", -1)), default=0)
        return [f"checkpoints/ (none, although {last} steps are done)"] if often < last else []
    manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    lost = [
        f"{name} ({size:,} bytes up to step {manifest.step} then, {now[name]:,} now)"
        for name, size in manifest.records.items()
        if name in now and now[name] != size
    ]
    then = Run(run.folder, {"settings": manifest.settings or run.written["settings"]})
    old, new = (_bound(to_json(each.settings())) for each in (then, run))  # in one form, whoever wrote them
    edited = ", ".join(name for name in sorted(old) if old[name] != new[name])
    return lost + [f"settings in config.json ({edited})"] * bool(edited)


def _bound(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a run the experiment that it is, in one table."""
    flat = settings | settings.get("design", {}) | settings.get("judging", {})
    return {name: value for name, value in flat.items() if name not in FREE}


def size(policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """The bytes that the weights and the optimizer's moments take in a checkpoint; the rest is small."""
    weights = sum(p.nbytes for p in policy.model.parameters() if policy.merge or p.requires_grad)
    moments = (x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x))
    return weights, sum(x.nbytes for x in moments)


def refuse_damaged(model: str | Path) -> None:
    """Read a checkpoint's weights through before they are loaded. Raises ValueError for a damaged one; any
    other model passes, and so does a checkpoint whose trainer/ was deleted to save room."""
    if (Path(model) / "trainer").is_dir():
        check(Path(model), resumes=False)


def load_state(directory: Path, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put the saved moments back, and a recipe's own state."""
    # The file names the GPU that they were on: without a word, all ranks would fill that of the first.
    device = optimizer.param_groups[0]["params"][0].device
    saved = torch.load(directory / "trainer" / "optimizer.pt", map_location=device, weights_only=True)
    optimizer.load_state_dict(saved)
    if (path := directory / "trainer" / "recipe.pt").exists():
        state.update(torch.load(path, map_location="cpu", weights_only=True))


def environment() -> dict[str, Any]:
    """What a number may depend on besides the settings: versions, platform, threads, git revision."""
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "ranks": ranks.world}
    return {"versions": _versions(), "machine": machine, "git": _revision(Path(__file__).parent)}


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | {"torch": str(torch.__version__)}  # with its build, +cpu or +cu130


@functools.cache
def _revision(folder: Path) -> str | None:
    """Of what this process runs: what is checked out later, while it trains, is other code."""
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
