"""Send a run to a tracker: `--track`, or afterwards `python -m rar_mini.viewing.track RUN --to tensorboard`.

What this file decided:

- **The run's files are the truth, and a tracker gets a copy.** A step is sent once a checkpoint has it,
  because no tracker can take one back. RUN/track-NAME.json says how far it has come: a resumed run goes on in
  the same tracked run, and what --accept-changes made another experiment in a new one.
- **A tracker never stops a run.** What it raises is said once, and the command above sends what is missing.
- **Foreign text is data.** TensorBoard reads it as Markdown, with links and pictures, unless it is code.
- **No secret leaves.** A tracker's key stays in the environment, and trackers may collect nothing themselves:
  not the command line, the terminal, the code or git's remote.
"""

import importlib.util
import io
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from tqdm import tqdm

from rar_mini import ranks, report
from rar_mini.checkpoint import Run, each_record, step_of
from rar_mini.files import json_object, locked, write_json
from rar_mini.forms import ABSENT, Form, legible, printable, read
from rar_mini.options import run_command
from rar_mini.redact import hidden, redact
from rar_mini.scores import transcript

PROJECT = "rar-mini"
"""Of trackio and W&B, unless TRACKIO_PROJECT or WANDB_PROJECT names another one."""
Name = Literal["trackio", "wandb", "tensorboard"]

COLUMNS = ("step", "example_id", "prompt", "response", "reward", "advantage", "tokens", "finished")
ANSWERS, LONGEST = 32, 2_000
"""Answers in a table, the first ones of the newest step that is sent; and characters of a text in it."""


class Note(Form):
    """track-NAME.json: the tracked run, and the last step that it has."""

    run: Annotated[str, Field(pattern=r"^[\w.-]+$")] = ABSENT
    sent: Annotated[int, Field(ge=-1)] = -1
    accepted: int = 0  # how often changes had been accepted when the tracked run began


def refuse_absent(name: str | None, option: str = "--track") -> None:
    """Raise ValueError for a tracker whose package is not installed. None is imported."""
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(f"{option} {name} needs the package {name}: pip install -e '.[{name}]'")


class TensorBoard:
    """Event files in RUN/tensorboard, without a server."""

    def __init__(self, run: Run, note: Note, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, self.first = run.folder / "tensorboard" / note.run, note.sent + 1
        self.place = f"tensorboard --logdir {folder.parent}"
        # What a process wrote of later steps, and was killed before it had said so, does not count.
        self._writer = SummaryWriter(folder, purge_step=self.first)
        if not self.first:
            self._writer.add_text("settings", _code(json.dumps(settings, indent=2, ensure_ascii=False)), 0)

    def log(self, step: int, numbers: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
        """Add a step, perhaps with answers."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if rows:
            self._writer.add_text("answers", _code("\n\n".join(map(report.rollout, rows))), step)

    def flush(self) -> None:
        """Bring to the disk what was added."""
        self._writer.flush()

    def close(self) -> None:
        """End the files."""
        self._writer.close()


class Wandb:
    """W&B, online or with WANDB_MODE=offline."""

    def __init__(self, run: Run, note: Note, settings: dict[str, Any]) -> None:
        import wandb

        quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
        quiet |= {"disable_job_creation": True, "x_disable_meta": True, "x_disable_stats": True}
        self._table = wandb.Table
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=note.run,
            name=note.run,
            resume="allow",
            dir=run.folder,
            config=settings,
            settings=wandb.Settings(init_timeout=30, login_timeout=30, **quiet),
        )
        if self._run.disabled:  # so is a run whose login nobody answered: it would take steps and lose them
            raise ValueError("W&B is disabled: expected WANDB_API_KEY, `wandb login` or WANDB_MODE=offline")
        if self._run.offline:
            # Nobody knows what is there: each process leaves a folder of its own with all steps.
            self.first, self.place = 0, f"wandb sync {Path(self._run.dir).parent}"
        else:
            self.first, self.place = self._run.starting_step, self._run.url

    def log(self, step: int, numbers: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
        """Add a step, perhaps with answers."""
        table = {"answers": self._table(columns=list(COLUMNS), data=_cells(rows))} if rows else {}
        self._run.log(numbers | table, step=step, commit=True)

    def flush(self) -> None:
        """Nothing: a process of its own, which outlives this one, writes and sends."""

    def close(self) -> None:
        """Wait for that process."""
        self._run.finish()


class Trackio:
    """trackio's database in the user's cache, or the Space of Hugging Face that TRACKIO_SPACE_ID names."""

    def __init__(self, run: Run, note: Note, settings: dict[str, Any]) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        how = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._init = partial(trackio.init, project, name=note.run, config=settings, **how)
        self._table, self.place = trackio.Table, f"trackio show --project {project}"
        self._is_remote = any(os.environ.get(f"TRACKIO_{name}") for name in ("SPACE_ID", "SERVER_URL"))
        self._run = _quietly(self._init)
        # It may know of steps that a process had sent which was killed before it had said so.
        self.first = max(note.sent + 1, self._run._next_step)

    def log(self, step: int, numbers: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
        """Add a step, perhaps with answers."""
        table = {"answers": self._table(columns=list(COLUMNS), data=_cells(rows))} if rows else {}
        self._run.log(numbers | table, step=step)
        self.first = step + 1

    def flush(self) -> None:
        """Wait until all is written, which only the end of a part of the run does. trackio itself does not
        raise if it could not write."""
        self.close()
        self._run = _quietly(self._init)
        if self._run._next_step < self.first and not self._is_remote:
            raise OSError(f"its database does not have step {self.first - 1}")

    def close(self) -> None:
        """End this part of the run."""
        _quietly(self._run.finish)


def _quietly(work: Callable[[], Any]) -> Any:
    with redirect_stdout(io.StringIO()):
        return work()


TRACKERS = {"trackio": Trackio, "wandb": Wandb, "tensorboard": TensorBoard}


class Tracker:
    """Sends a run's steps, if `name` names a tracker. Only rank 0 does. A `failed` one gets no more."""

    def __init__(self, run: Run, name: str | None) -> None:
        self._run, self._name = run, name if ranks.rank == 0 else None
        self.failed = False
        self._attempt(self._open)

    def send(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Send what is missing up to a step, whose answers are `rows`."""
        self._attempt(lambda: self._send(step, rows))

    def close(self) -> None:
        """Wait until the tracker has everything."""
        self._attempt(lambda: self._tracker.close())

    def _attempt(self, work: Callable[[], object]) -> None:
        if self._name is None or self.failed:
            return
        try:
            work()
        except Exception as error:  # trackers are programs of others
            self.failed = True
            words = legible(" ".join(redact(str(error)).split()))
            way = f"python -m rar_mini.viewing.track {self._run.folder} --to {self._name}"
            said = f"{self._name} failed and gets no more: {type(error).__name__}: {words:.300}"
            tqdm.write(f"track    {said}; to send what it lacks: {way}")

    def _open(self) -> None:
        self._path = self._run.folder / f"track-{self._name}.json"
        self._note = self._noted()
        write_json(self._path, self._note.model_dump())
        self._tracker = TRACKERS[self._name](self._run, self._note, hidden(self._run.written["settings"]))
        tqdm.write(f"track    {self._note.run}: {self._tracker.place}")

    def _noted(self) -> Note:
        """What the file says, or a new tracked run if there is none, or if this is another experiment now."""
        accepted = len(self._run.written.get("accepted", []))
        if self._path.exists():
            remedy = "delete it, and the run is tracked anew"
            note = read(Note, json_object(self._path), str(self._path), remedy)
            if note.accepted == accepted:
                return note
        name = re.sub(r"[^\w.-]+", "-", self._run.folder.name, flags=re.ASCII)
        return Note(run=f"{name[:40]}-{secrets.token_hex(4)}", accepted=accepted)

    def _send(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        to, sampled = self._tracker, self._run.written["settings"].get("method") != "sft"
        for row, _ in each_record(self._run.folder, "metrics.jsonl", step):
            if row["step"] > step:
                break
            if row["step"] >= to.first:
                numbers = {name: x for name, x in row.items() if name != "step" and x is not None}
                to.log(row["step"], numbers, _bounded(rows) if row["step"] == step and sampled else ())
        to.flush()
        to.first = max(to.first, step + 1)
        self._note.sent = max(self._note.sent, step)
        write_json(self._path, self._note.model_dump())


def _bounded(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first answers, without secrets and with texts of bounded length."""
    texts = ("example_id", "prompt", "response")
    rows = [row | {"response": transcript(row)} for row in rows[:ANSWERS]]
    return hidden([row | {name: _short(row[name]) for name in texts} for row in rows])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Answers as cells of a table."""
    cells = ((row[name] for name in COLUMNS) for row in rows)
    return [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in cells]


def _code(text: str) -> str:
    """A text as Markdown's block of code, in which nothing acts."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def main(run: tyro.conf.Positional[Path], /, to: Name) -> None:
    """Send to a tracker what it does not have yet of a run; all of it if the run had no --track.

    Args:
        run: the run's folder
        to: trackio, wandb or tensorboard
    """
    refuse_absent(to, "--to")
    opened = Run.reopen(run)
    with locked(opened.folder):
        steps = [row["step"] for row, _ in each_record(run, "metrics.jsonl")]
        ended = steps and steps[-1] >= opened.settings().steps
        last = steps[-1] if ended else max(map(step_of, opened.checkpoints()), default=-1)
        newest = next((rows for rows in opened.steps("rollouts.jsonl") if rows[0]["step"] == last), [])
        tracker = Tracker(opened, to)
        tracker.send(last, newest)
        tracker.close()
        if tracker.failed:
            sys.exit(1)


if __name__ == "__main__":
    run_command(main, "python -m rar_mini.viewing.track")
