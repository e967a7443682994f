"""Trainings over seeds, done in several processes and kept in a file, and what their differences say.

A claim is a number that lies above 0 if the claim is true. It does not hold where the number's interval lies
below MARGIN, a difference that we would not call one, even if it lies above 0; else it holds where the
interval lies above 0; else it cannot be told from these seeds.
"""

import json
import math
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mini.checkpoint import environment, write_json
from rar_mini.progress import progress_bar

MARGIN = 0.02
"""A difference of truth that we would not call one."""

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 97.5 % point of Student's distribution with 1 to 9 degrees of freedom."""


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of one number a seed, and its 95 % interval: Student's, for they are few."""
    mean, half = values.mean(), STUDENT[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """What an interval says of the claim that its number lies above 0."""
    return "does not hold" if high < margin else "holds" if low > 0 else "cannot be told"


Row = dict[str, Any]


def trainings(
    train: Callable[..., Row],
    jobs: dict[Hashable, tuple[Any, ...]],
    key: Callable[[Row], Hashable],
    setting: dict[str, Any],
    out: Path | None = None,
    processes: int = 1,
) -> list[Row]:
    """The row of each job, `train(*arguments)`, in the order of jobs; `key` finds the job of a row, whose
    last part is its seed. `out` is rewritten after each, and what it holds is not done again."""
    rows, environments = kept(out, setting)
    done = {key(row): row for row in rows}
    # Seed by seed, because a process keeps its last beginner.
    left = sorted((job for job in jobs if job not in done), key=lambda job: job[-1])
    now = environment()

    def keep() -> None:
        if out:
            write_json(out, {"setting": setting, "environments": environments, "trainings": [*done.values()]})

    keep()  # a file that cannot be written is found out now
    # A thread each, in processes of their own: the numbers are the same however many there are.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        futures = {pool.submit(train, *jobs[job]): job for job in left}
        for future in progress_bar(as_completed(futures), desc="training", total=len(futures)):
            done[futures[future]] = future.result()
            if now not in environments:  # only once a training was done in it
                environments.append(now)
            keep()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is begun
    return [done[job] for job in jobs]


def kept(out: Path | None, wanted: dict[str, Any]) -> tuple[list[Row], list[dict[str, Any]]]:
    """The trainings that a file holds already, and the environments in which they were done, but not which
    was whose. Raises ValueError for a file of something else."""
    if out is None or not out.exists():
        return [], []
    try:
        written = json.loads(out.read_text(encoding="utf-8"))
        before, rows, environments = written["setting"], written["trainings"], written["environments"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} does not hold trainings in this program's form: delete it, or name another file with "
            "--out"
        ) from error
    if before != wanted:
        raise ValueError(
            f"{out} holds trainings of another setting: expected {wanted}, got {before}; name another file "
            "with --out, or delete this one"
        )
    return rows, environments
