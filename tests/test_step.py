"""Options of the step: which answers it trains, which groups it draws anew, what a cut answer does.

That the arithmetic is right is held by tests/test_recompute.py, over a run's files.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from test_train import numbers, options, records
from tiny import question, write_rows

import train
from rar_mini import grpo
from rar_mini.guard import JudgeFailed
from rar_mini.judging import keyword
from rar_mini.rubric import Criterion
from rar_mini.scores import Scores


@pytest.fixture(autouse=True)
def some_questions_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers get the same verdict on every item whose title says so."""
    usual = keyword.verdict
    monkeypatch.setattr(
        keyword, "verdict", lambda item, answer: 1.0 if "tied" in item.title else usual(item, answer)
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five questions; answers to two of them, q1 and q3, always tie."""
    rows = [question(i) for i in range(5)]
    for row in (rows[1], rows[3]):
        row["rubric"] = [item | {"title": f"{item['title']}, tied"} for item in row["rubric"]]
    return write_rows(tmp_path / "mixed.jsonl", rows)


@pytest.mark.parametrize(
    "changes", [{"train_rollouts": 2}, {"resample_ties": 2}, {"cut_answers": "penalise"}]
)
def test_a_run_that_goes_on_has_the_numbers_of_an_unbroken_one(
    tiny: Path, mixed: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    usual = {"eval_every": 0, "warmup": 0} | changes
    train.main(options(tiny, mixed, tmp_path / "whole", steps=3, **usual))
    train.main(options(tiny, mixed, tmp_path / "broken", steps=1, **usual))
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


def groups(run: Path, size: int = 4) -> list[list[dict[str, Any]]]:
    rows = records(run, "rollouts")
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_a_step_draws_further_questions_until_enough_groups_teach(
    tiny: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Groups that tie are dropped and stay in the record; questions still come once an epoch each."""
    run = tmp_path / "run"
    train.main(options(tiny, mixed, run, steps=4, eval_every=0, resample_ties=9))
    drawn = groups(run)
    for group in drawn:
        teaches = any(row["advantage"] for row in group)
        assert {row["trained"] for row in group} == {teaches}
        assert not (teaches and group[0]["example_id"] in ("q1", "q3"))
    lines = records(run)
    for line in lines:
        own = [group for group in drawn if group[0]["step"] == line["step"]]
        taught = sum(group[0]["trained"] for group in own)
        assert taught == 2 and line["groups/drawn"] == len(own)
        assert line["groups/dropped"] == len(own) - 2
        assert line["frac_reward_zero_std"] == pytest.approx(1 - 2 / len(own)), "the policy is seen as it is"
    order = [group[0]["example_id"] for group in drawn]
    assert len(order) > 10
    for start in range(0, len(order) - 4, 5):
        assert sorted(order[start : start + 5]) == [f"q{i}" for i in range(5)]
    said = capsys.readouterr().out
    assert "; for groups that tie up to 9 times as many more" in said
    assert re.search(r"step \d/4 .* dropped \d of \d groups", said)


def test_a_step_draws_no_more_often_than_it_may(tiny: Path, tmp_path: Path) -> None:
    """Where every group ties, each draw is another whole one, and the weights stay."""
    rows = [
        question(i, rubric=[{"title": "tied", "description": "Mentions b.", "weight": 1}]) for i in range(2)
    ]
    run, path = tmp_path / "run", write_rows(tmp_path / "rows.jsonl", rows)
    train.main(options(tiny, path, run, steps=1, eval_every=0, resample_ties=2, group_size=2))
    (line,) = records(run)
    assert (line["groups/drawn"], line["groups/dropped"]) == (6, 6) and "grad_norm" not in line
    drawn = groups(run, 2)
    assert len({tuple(row["ids"]) for group in drawn for row in group}) == 12, "each visit has its own draws"


def test_nothing_is_drawn_again_where_nothing_ties(tiny: Path, questions: Path, tmp_path: Path) -> None:
    for name, times in (("plain", 0), ("again", 3)):
        train.main(options(tiny, questions, tmp_path / name, steps=2, eval_every=0, resample_ties=times))
    plain, again = (records(tmp_path / name, "rollouts") for name in ("plain", "again"))
    assert plain == again


def test_a_judge_that_gives_no_reward_is_not_asked_again(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyword, "verdict", lambda *asked: float("nan"))
    run, changes = tmp_path / "run", {"resample_ties": 5, "max_judge_failures": 1}
    train.main(options(tiny, questions, run, steps=1, eval_every=0, **changes))
    assert len(records(run, "rollouts")) == 2 * 4


def test_a_judge_that_fails_too_often_is_not_asked_about_further_questions(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such groups teach nothing, and each draw would pay for as many again before the run may stop."""
    answers: list[str] = []

    def fails_mostly(item: Criterion, answer: str) -> float:
        answers.append(answer)
        return 0.5 if len(answers) % 100 == 1 else math.nan

    monkeypatch.setattr(keyword, "verdict", fails_mostly)
    run = tmp_path / "run"
    with pytest.raises(JudgeFailed, match="max-judge-failures"):
        train.main(options(tiny, questions, run, steps=1, eval_every=0, resample_ties=5))
    assert len(set(answers)) <= 2 * 4


def test_scores_behind_others_are_padded_as_a_judge_pads_them() -> None:
    short = Scores(torch.zeros(1, 2, 1), torch.ones(1, 1), torch.full((1, 2), 3.0), ["short"])
    long = Scores(torch.ones(2, 2, 3), torch.ones(2, 3), torch.full((2, 2), 4.0), ["long", "long"])
    both = long.behind(short)
    assert both.rubrics == ["short", "long", "long"] and both.rating[:, 0].tolist() == [3, 4, 4]
    assert both.weight.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert both.verdict[0].isnan().tolist() == [[False, True, True]] * 2
    assert short.behind(long).verdict.shape == (3, 2, 3)


def test_cut_answers_train_or_are_masked_or_penalised(
    tiny: Path, questions: Path, tmp_path: Path, command: Command
) -> None:
    """Masked ones keep their reward and their place in the baseline; penalised ones have a reward of 0, in
    rollouts, in scores and for another judge."""
    rows = {}
    for how in ("train", "mask", "penalise"):
        words = options(tiny, questions, tmp_path / how, steps=1, group_size=8, max_new_tokens=40)
        train.main([*words, "--cut-answers", how])
        rows[how] = records(tmp_path / how, "rollouts")
    finished = [row["finished"] for row in rows["train"]]
    assert set(finished) == {True, False}
    assert [row["trained"] for row in rows["mask"]] == finished
    for key in ("reward", "advantage"):
        assert [row[key] for row in rows["mask"]] == [row[key] for row in rows["train"]]
    assert {row["trained"] for how in ("train", "penalise") for row in rows[how]} == {True}
    for plain, row in zip(rows["train"], rows["penalise"], strict=True):
        assert row["reward"] == (plain["reward"] if row["finished"] else 0)
    assert any(row["reward"] > 0 for row in rows["train"] if not row["finished"])
    for row in records(tmp_path / "penalise", "evaluations"):
        assert row["reward"] == 0 or row["finished"]
    replayed = command("evaluate.py", "replay", tmp_path / "penalise", "--judge", "keyword")
    means = json.loads(replayed.stdout.splitlines()[-1])["all"]
    assert means["trained"] == means["second"]


def test_a_reward_outside_0_and_1_is_not_penalised() -> None:
    cut = torch.tensor([[True, False]])
    assert grpo.penalise(torch.tensor([[math.nan, 1.0]]), cut).isnan().tolist() == [[True, False]]
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="needs rewards in"):
            grpo.penalise(torch.tensor([[0.5, wrong]]), cut)
