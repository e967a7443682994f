"""Ctrl-C says what was saved and how to go on, whenever it comes.

| when | what happens |
|---|---|
| before the run has a folder: imports, a download | all ends at once, and nothing was saved |
| before the first step, in the first score | all ends at once, and a resume begins with that score |
| in a step, its score or its checkpoint | the step is finished and saved; a second one ends it at once |

A checkpoint is there whole or not at all, so that a second Ctrl-C costs the steps since the last one. Nothing
here imports torch before a run has: train.py loads this file first, so that it holds from the start.
"""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

run: Path | None = None
"""The folder of the run that this process works on, once it has one."""

run_has_ended = False
"""Whether the run has said itself how it ended."""


def watch() -> None:
    """Say the last words in the place of a traceback, also while the libraries are imported."""
    global run, run_has_ended
    run, run_has_ended, sys.excepthook = None, False, _hook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more must not break the sentence
        farewell()
    else:
        sys.__excepthook__(kind, error, trace)


def farewell() -> None:
    """Say what is left of this process's work and how to go on, if the run has not done so."""
    if not run_has_ended:
        with suppress(ValueError, OSError):  # the run's folder may be gone
            print(f"stopped  by Ctrl-C {_left()}", file=sys.stderr)


def _left() -> str:
    if run is None:
        return "before the run began: nothing was saved. Start again with the same command"
    from rar_mini.checkpoint import Run, records, step_of

    found = Run.reopen(run)
    config, saved = found.settings(), found.checkpoints()
    done = max((row["step"] for row in records(run, "metrics.jsonl")), default=0)
    last = step_of(saved[-1]) if saved else 0
    way = f"python train.py --resume {run}"
    if not saved:
        # Without checkpoints on purpose, to start over loses what the records have.
        accept = " --accept-changes" if config.save_every < done else ""
        return f"before the first checkpoint; the run starts over with {way}{accept}"
    if last >= config.steps:
        return f"after the last step, which is saved: {saved[-1]}"
    return f"after step {max(done, last)}; step {last} is saved, go on from there with {way}"
