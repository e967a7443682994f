"""Rollouts side by side: the right two answers of each group, at any width, and nothing that commands one."""

import json
from pathlib import Path

import pytest

from rar_mini.checkpoint import records
from rar_mini.viewing.show import show


def rollout(step: int, name: str, reward: float | None, **changes: object) -> dict:
    verdicts = [("Names it", "essential", 1.0, reward), ("No harm", "pitfall", 0.9, 1.0)]
    row = {
        "step": step,
        "example_id": name,
        "prompt": f"What is {name}?",
        "response": f"an answer worth {reward} " * 5,
        "verdicts": [dict(zip(("title", "category", "weight", "verdict"), v, strict=True)) for v in verdicts],
        "rating": None,
        "reward": reward,
        "advantage": 0.5,
        "tokens": 12,
        "finished": True,
    }
    return row | changes


def run_of(folder: Path, rows: list[dict], group_size: int) -> Path:
    folder.mkdir()
    settings = {"seed": 0, "group_size": group_size}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [rollout(1, "old", reward) for reward in (0.1, 0.2, 0.3)]
    rows += [rollout(2, "a", reward) for reward in (0.4, 0.75, 0.25)]
    rows += [rollout(2, "a", reward) for reward in (0.0, None, 1.0)]  # the same question, drawn again
    return run_of(tmp_path / "run", rows, 3)


def test_the_last_step_with_best_and_worst_of_each_group(folder: Path) -> None:
    _, first, second = show(folder, width=100).split("\n\n== ")
    assert "3 answers, rewards 0.250 to 0.750" in first and "What is a?" in first
    assert "best: reward 0.750, advantage +0.50" in first and "worst: reward 0.250" in first
    assert "worth 0.75" in first and "worth 0.25" in first and "worth 0.4" not in first
    assert "* 0.75 0.25  weight 1    essential  Names it" in first
    assert "     1    1  weight 0.9  pitfall    No harm" in first
    assert "rewards 0.000 to 1.000, the judge failed on 1" in second and "None" not in second
    assert "old" not in first + second and "== old" in show(folder, 1)


@pytest.mark.parametrize("width", [20, 60, 81, 200])
def test_columns_fit_the_width(folder: Path, width: int) -> None:
    lines = show(folder, width=width).splitlines()
    assert max(len(line) for line in lines if " | " in line) <= max(width, 60)
    assert len({line.index(" | ") for line in lines if " | " in line}) == 1


def test_a_group_that_ties_or_has_no_rewards_is_shown(tmp_path: Path) -> None:
    rows = [rollout(1, "tie", 0.5, response=f"text {i}") for i in range(2)]
    rows += [rollout(1, "failed", None, finished=False, rating=None) for _ in range(2)]
    rows += [rollout(1, "one", None, response=""), rollout(1, "one", 0.5, rating=5.5)]
    _, tie, failed, one = show(run_of(tmp_path / "run", rows, 2)).split("\n\n== ")
    assert "text 0" in tie and "text 1" in tie and "rewards 0.500 to 0.500" in tie
    assert "no reward, the judge failed on 2" in failed and "12 tokens, cut" in failed and "?" in failed
    assert "best: reward 0.500" in one and "worst: reward none" in one and "ended, rated 5.5" in one
    assert "| (nothing)" in one


def test_no_row_commands_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\r\u202e"
    row = rollout(1, evil, 0.5, prompt=evil, response=evil)
    row["verdicts"][0]["title"] = evil
    text = show(run_of(tmp_path / "run", [row], 1))
    assert not set(evil[0] + "\r\u202e") & set(text) and text.count("\\x1b[2J") == 5


def test_what_cannot_be_shown_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no step 7: expected one from 1 to 2"):
        show(folder, 7)
    with pytest.raises(ValueError, match="is no run: expected a readable config.json"):
        show(tmp_path)
    (folder / "rollouts.jsonl").unlink()
    with pytest.raises(ValueError, match="no rollouts yet"):
        show(folder)


def test_half_a_line_at_the_end_is_left_out_and_one_before_is_named(folder: Path) -> None:
    with open(folder / "rollouts.jsonl", "a") as file:
        file.write('{"step": 3, "exam')
    assert show(folder).startswith("step 2 ")
    with open(folder / "rollouts.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"rollouts.jsonl, line 10: .*got '\{\"step\": 3"):
        records(folder, "rollouts.jsonl")


def test_checked_items_are_marked_and_count_apart(tmp_path: Path) -> None:
    row = rollout(1, "a", 0.5)
    row["verdicts"][1]["checked"] = True
    said = show(run_of(tmp_path / "checked", [row, row], 2), width=140)
    assert "No harm (checked)" in said and "Names it (checked)" not in said
    assert "reward 0.500 (checked 1.000, judged 0.500), advantage" in said
