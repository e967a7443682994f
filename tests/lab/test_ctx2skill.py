"""Ctx2Skill's replay: the step that is best at easy and hard questions alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from lab.ctx2skill import balances, main, means
from rar_mini.scores import NAN

EASY, HARD = ("e1", "e2"), ("h1", "h2")


def row(step: int, name: str, reward: float | None, split: str = "held_out") -> dict:
    facts = {"split": split, "step": step, "example_id": name, "reward": reward, "prompt": "", "response": ""}
    return facts | {"verdicts": [], "rating": None, "advantage": 0.0, "tokens": 1, "finished": True}


def evaluations(*rewards: tuple[float, float]) -> list[dict]:
    """Of each step the rewards of easy and of hard questions."""
    pairs = [
        [(name, x) for names, x in zip((HARD, EASY), (h, e), strict=True) for name in names]
        for e, h in rewards
    ]
    return [row(step, name, x) for step, each in enumerate(pairs) for name, x in each]


def kept(run: Path, rows: list[dict], *steps: int) -> Path:
    for step in steps:
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (run / "evaluations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return run


def test_who_forgets_the_easy_ones_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 2 has the highest mean: 0.55 in place of 0.5."""
    rows = evaluations((0.8, 0.1), (0.6, 0.4), (0.2, 0.9))
    rows += [row(2, name, 1.0, "train") for name in EASY]
    main(kept(tmp_path, rows, 1, 2))
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["chosen"] == 1 and found["checkpoint"] == str(tmp_path / "checkpoints" / "step-1")
    assert found["steps"]["1"] == pytest.approx({"easy": 0.6, "hard": 0.4, "balance": 0.24**0.5}, abs=1e-6)
    assert [line.endswith("chosen") for line in table[1:4]] == [False, True, False]


def test_a_chosen_step_whose_checkpoint_is_gone_is_named_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(kept(tmp_path, evaluations((0.8, 0.4), (0.2, 0.9)), 1))
    said = capsys.readouterr().out
    assert "step 0: its checkpoint was not kept (--save-every, --keep)" in said
    assert json.loads(said.splitlines()[-1])["checkpoint"] is None


def test_failed_rewards_do_not_count_and_of_equals_the_earliest_is_chosen() -> None:
    steps, reward = means(
        [row(0, "a", None), row(0, "a", 0.2), row(0, "b", 0.6), row(3, "a", 0.2), row(3, "b", None)]
    )
    assert steps == [0, 3]
    np.testing.assert_allclose(reward, [[0.2, 0.6], [0.2, NAN]])
    np.testing.assert_allclose(balances(reward), [[0.6, 0.2, 0.12**0.5], [NAN, 0.2, NAN]])
    assert balances(np.array([[0.5, 0.5], [-1.0, 0.5]]))[1].tolist() == [0.5, 0, 0], "below 0 counts as 0"


def test_a_run_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected scores of two held-out questions .*got 1"):
        main(kept(tmp_path, [row(0, "a", 0.5)]))
