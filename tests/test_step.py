"""Options of the step: which answers it trains, which groups it draws anew, what a cut answer does.

That the arithmetic is right is held by tests/test_recompute.py, over a run's files.
"""

from pathlib import Path

import pytest
from test_train import numbers, options, records

import train


@pytest.mark.parametrize("changes", [{"train_rollouts": 2}])
def test_a_run_that_goes_on_has_the_numbers_of_an_unbroken_one(
    tiny: Path, questions: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    usual = {"eval_every": 0, "warmup": 0} | changes
    train.main(options(tiny, questions, tmp_path / "whole", steps=3, **usual))
    train.main(options(tiny, questions, tmp_path / "broken", steps=1, **usual))
    train.main(["--resume", str(tmp_path / "broken"), "--steps", "3"])
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    pair = [records(tmp_path / name, "rollouts") for name in ("broken", "whole")]
    assert pair[0] == pair[1]


def test_some_answers_are_trained_and_the_baseline_is_that_of_all(
    tiny: Path, questions: Path, tmp_path: Path
) -> None:
    """Advantages are those of a run that trains all; the loss is no longer about 0, and nobody says so."""
    few, all_ = tmp_path / "few", tmp_path / "all"
    train.main(options(tiny, questions, few, steps=1, eval_every=0, train_rollouts=3))
    train.main(options(tiny, questions, all_, steps=1, eval_every=0))
    trained = [row.pop("trained") for row in records(few, "rollouts")]
    assert len(trained) == 8 and [sum(trained[:4]), sum(trained[4:])] == [3, 3]
    advantages = [[row["advantage"] for row in records(run, "rollouts")] for run in (few, all_)]
    assert advantages[0] == advantages[1] and any(advantages[0])
    step = records(few)[0]
    assert step["completions/trained_ratio"] == 6 / 8 and abs(step["loss"]) > 1e-3
