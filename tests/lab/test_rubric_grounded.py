"""Rubric-Grounded RL: the passage reaches the judge and never the policy."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import Server
from tiny import question, write_rows
from toy import made

from judge import Judge
from lab.rubric_grounded import grounded
from rar_mini import data, setup

pytestmark = pytest.mark.usefixtures("folder")

ITEM = {"title": "Dose", "description": "Essential Criteria: Names the dose.", "weight": 5}
HIDDEN = {"passage": "The dose is 300 mg.", "guide": "Half credit without the unit."}


@pytest.fixture
def example(tmp_path: Path) -> data.Example:
    row = question(0, question="What is the dose?", rubric=[ITEM], hidden=HIDDEN)
    return data.read(write_rows(tmp_path / "rows.jsonl", [row]))[0]


def decides(path: str, body: dict) -> dict:
    """A judge that knows of the dose what it reads: all credit, half of it without the unit, else a guess."""
    state = re.sub("[0-9a-f]{16}", "", body["state"])  # fences are random, and may hold a 300 by chance
    material, response = state.split("--- end of question")
    credit = (0.5 * ("300" in response) + 0.5 * ("mg" in response)) if "300 mg" in material else 0.5
    return {name: {"type": "noul", "noul": credit} for name in body["questions"]}


def test_only_the_passage_decides(server: Server, example: data.Example) -> None:
    server.reply = decides
    judge, answers = Judge("systemone:m", "rar-explicit"), [["300 mg", "300", "600"]]
    own = made("rubric_grounded")
    assert own.reward(judge.score([example], answers))[0].tolist() == [0.5] * 3
    assert own.reward(own.judge(judge).score([example], answers))[0].tolist() == [1.0, 0.5, 0.0]


def test_nothing_hidden_is_shown_to_the_policy(example: data.Example) -> None:
    for step in (None, 1):
        shown = json.dumps(made("rubric_grounded").messages(example, step, 0))
        assert "300" not in shown and "credit" not in shown and "What is the dose?" in shown


def test_a_row_without_a_passage_is_judged_as_usual(example: data.Example) -> None:
    bare = replace(example, row={})
    assert grounded(bare).question == bare.question
    assert grounded(example).question.endswith("The question:\nWhat is the dose?")


def test_scores_by_another_passage_are_other_scores(example: data.Example) -> None:
    judge = made("rubric_grounded").judge(Judge("keyword", "rar-explicit"))
    other = replace(example, row={"hidden": {"passage": "The dose is 600 mg."}})
    assert judge.digest(example, "r") != judge.digest(other, "r")


def test_a_resumed_run_notices_another_passage_and_old_rows_keep_their_digest(example: data.Example) -> None:
    bare, other = (replace(example, row=row) for row in ({}, {"hidden": {"passage": "Another."}}))
    digests = [setup.fingerprint([each])["digest"] for each in (example, bare, other)]
    assert len(set(digests)) == 3
    assert digests[1] == setup.fingerprint([replace(example, row={"hidden": None})])["digest"]


@pytest.mark.parametrize("hidden", ["text", 7, ["passage"]])
def test_hidden_is_an_object(tmp_path: Path, hidden: object) -> None:
    with pytest.raises(ValueError, match="field hidden: expected an object"):
        data.read(write_rows(tmp_path / "rows.jsonl", [question(0, hidden=hidden)]))
