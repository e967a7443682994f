"""Ctx2Skill's replay: of a run's checkpoints the one that is good at easy and at hard questions alike.

    python -m lab.ctx2skill RUN

After Ctx2Skill, arXiv 2604.27660; the abstract was read, and the rule is inferred. Self-play drifts: what is
learnt last serves the hard cases and forgets the easy ones. So the candidates of all times are replayed on
probes, and the one with the best balance is taken:

    e_t, h_t = mean reward of step t on easy and on hard probes        chosen = argmax over t of sqrt(e_t h_t)

Ours: candidates are a run's evaluations (--eval-every), step 0 among them, and probes its held-out questions:
hard is the half with the lower rewards at the first of them. Rewards below 0 count as 0, a failed one does
not count, and of equals the earliest is taken. Nothing is asked or sampled: evaluations.jsonl has it all.

What came out (tests/lab/test_ctx2skill.py): a step that gains at hard questions and forgets easy ones is
passed over for an earlier one, although its mean is higher.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from rar_mini.checkpoint import Run, records, step_of
from rar_mini.evaluation.agreement import mean
from rar_mini.files import without_nan
from rar_mini.options import run_command

Row = dict[str, Any]


def means(rows: list[Row]) -> tuple[list[int], np.ndarray]:
    """The steps, T, and each question's mean reward at each, (T, Q), NaN if all of its answers failed."""
    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["step"]][row["example_id"]].append(np.nan if row["reward"] is None else row["reward"])
    steps, names = sorted(found), list(found[min(found)])
    rewards = [[mean(np.array(found[step].get(name, []), dtype=float)) for name in names] for step in steps]
    return steps, np.array(rewards)


def balances(reward: np.ndarray) -> np.ndarray:
    """For rewards (T, Q) the mean of easy and of hard questions, and their balance: (T, 3)."""
    order = np.argsort(reward[0], kind="stable")  # NaN comes last
    hard, easy = np.split(order, [len(order) // 2])
    two = np.array(
        [[np.maximum(0.0, mean(each[part])) for part in (easy, hard)] for each in reward]
    )  # (T, 2)
    return np.column_stack([two, np.sqrt(two.prod(-1))])


def main(run: tyro.conf.Positional[Path], /) -> None:
    """Choose among a run's evaluations the one that is best at easy and hard questions alike.

    Args:
        run: the run's folder
    """
    rows = [row for row in records(run, "evaluations.jsonl") if row["split"] == "held_out"]
    if (count := len({row["example_id"] for row in rows})) < 2:
        raise ValueError(f"{run}: expected scores of two held-out questions (--eval-every), got {count}")
    steps, reward = means(rows)
    kept = {step_of(path): str(path) for path in Run(run).checkpoints()}
    found = balances(reward)
    best = steps[int(np.nan_to_num(found[:, 2], nan=-1.0).argmax())]
    print(f"{'step':>6}{'easy':>8}{'hard':>8}{'balance':>9}")
    for step, (easy, hard, balance) in zip(steps, found, strict=True):
        print(
            f"{step:>6}{easy:>8.3f}{hard:>8.3f}{balance:>9.3f}  {'chosen' if step == best else ''}".rstrip()
        )
    print(f"\nstep {best}: {kept.get(best, 'its checkpoint was not kept (--save-every, --keep)')}")
    names = ("easy", "hard", "balance")
    table = {
        step: dict(zip(names, each, strict=True)) for step, each in zip(steps, found.tolist(), strict=True)
    }
    print(json.dumps(without_nan({"chosen": best, "checkpoint": kept.get(best), "steps": table}, digits=6)))


if __name__ == "__main__":
    run_command(main, "python -m lab.ctx2skill")
