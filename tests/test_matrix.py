"""Training judge by evaluation judge: the last held-out answers of runs, scored by several judges."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hostile import Server
from tiny import question, write_rows

import train
from rar_mini.checkpoint import records
from rar_mini.evaluation import matrix
from rar_mini.scores import NAN

pytestmark = pytest.mark.usefixtures("folder")


def trained(tiny: Path, data: Path, out: Path, judge: str, *words: str) -> Path:
    line = f"--policy {tiny} --data {data} --out {out} --judge {judge} --steps 1 --prompts-per-step 2"
    line += " --group-size 2 --max-new-tokens 24 --eval-every 1 --eval-samples 2 --save-every 0 --lr 1e-3"
    train.main([*line.split(), *words])
    return out


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Those of all tests, with five items in place of fifteen: a server is asked each by itself."""
    return write_rows(tmp_path / "questions.jsonl", few())


def few(first: int = 0) -> list[dict]:
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    return [row | {"rubric": row["rubric"][first + 10 :]} for row in rows]


@pytest.fixture
def runs(tiny: Path, questions: Path, tmp_path: Path, server: Server) -> list[Path]:
    return [trained(tiny, questions, tmp_path / kind, kind) for kind in ("keyword", "chat:m")]


def test_each_judge_scores_each_runs_last_answers_and_others_are_those_that_did_not_train_it(
    runs: list[Path], command: Command
) -> None:
    done = command("evaluate.py", "matrix", *runs, "--judge", "keyword", "--judge", "chat:m")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])["runs"]
    for run, own, other in zip(runs, ("keyword", "chat:m"), ("chat:m", "keyword"), strict=True):
        row = table[str(run)]
        last = [
            r["reward"]
            for r in records(run, "evaluations.jsonl")
            if (r["split"], r["step"]) == ("held_out", 1)
        ]
        assert row["judge"] == own and row["step"] == 1 and row["answers"] == len(last) == 4
        assert row["by"][own]["value"] == pytest.approx(np.mean(last), abs=1e-6), "what the run says itself"
        assert row["others"] == row["by"][other] and row["failed"] == 0
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(str(run))]
        assert line.count("*") == 1 and f"{row['by'][own]['value']:.3f}" in line.partition("*")[0]


def test_runs_that_cannot_be_compared_are_refused(
    runs: list[Path], tiny: Path, tmp_path: Path, command: Command
) -> None:
    with pytest.raises(ValueError, match="expected two runs or more, each once, got"):
        matrix.read([runs[0], runs[0]])
    data = write_rows(tmp_path / "others.jsonl", few(1))
    with pytest.raises(
        ValueError, match="fewer cannot be compared with .*: expected the same held-out questions and rub"
    ):
        matrix.read([runs[0], trained(tiny, data, tmp_path / "fewer", "keyword")])
    silent = shutil.copytree(runs[0], tmp_path / "silent")
    (silent / "evaluations.jsonl").unlink()
    with pytest.raises(
        ValueError, match="silent has no answers to held-out questions: expected a run with --eval-every"
    ):
        matrix.read([runs[0], silent])
    done = command("evaluate.py", "matrix", *runs)
    assert done.returncode and "--judge" in done.stderr


def test_others_are_the_mean_without_ones_own_judge() -> None:
    said = np.array([[0.9, 0.1, 0.3], [0.5, 0.6, 0.7], [0.4, NAN, 0.2]])
    own = np.array([[True, False, False], [False] * 3, [True] * 3])
    assert matrix.by_others(said, own).tolist() == pytest.approx([0.2, 0.6, NAN], nan_ok=True)
