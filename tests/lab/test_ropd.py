"""ROPD: a rubric from students and teachers, who are judged together."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hostile import Server, user
from reading import Reader, asks
from toy import made

from lab.ropd import teachers
from rar_mini import grpo
from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.scores import Rollouts

pytestmark = pytest.mark.usefixtures("folder")

ITEMS = [{"criterion": word, "points": n} for n, word in enumerate(("fever", "cough", "rash", "pain"), 1)]


def taught(name: str, *answers: str) -> Example:
    return replace(asks(name, "fever", "cough"), row={"hidden": {"teacher_answers": list(answers)}})


def judged(
    own: Recipe, examples: list[Example], responses: list[list[str]]
) -> tuple[Rollouts, dict[str, Any]]:
    """Rollouts with what the recipe makes of them, and the metrics of its judge."""
    judge = own.judge(Reader())
    rubrics = own.rubrics(examples, responses)
    posed = [replace(e, rubric=rubric) for e, rubric in zip(examples, rubrics, strict=True)]
    scores = judge.score(posed, responses)
    rollouts = Rollouts(examples, [], [], responses, scores, own.reward(scores), rubrics=rubrics)
    rollouts.adv = own.advantage(rollouts)
    return rollouts, judge.metrics()


def test_students_keep_their_places_and_the_teacher_is_measured() -> None:
    examples = [taught("q", "fever cough"), taught("r", "fever")]
    responses = [["fever", "no", "fever cough", "cough"], ["no", "no", "fever cough", "no"]]
    rollouts, metrics = judged(made("ropd"), examples, responses)
    wanted = [[0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0]]
    assert rollouts.reward.tolist() == wanted
    torch.testing.assert_close(rollouts.adv, grpo.advantage(torch.tensor(wanted), "none"))
    assert metrics["ropd/teacher"] == pytest.approx(0.75)


def test_a_failure_drops_the_group_also_at_a_teacher() -> None:
    examples = [taught("q", "fail"), taught("r", "fever"), taught("s", "fever")]
    responses = [["fever", "no"], ["fever", "fail"], ["fever", "no"]]
    rollouts, metrics = judged(made("ropd"), examples, responses)
    assert rollouts.reward.isnan().tolist() == [[True] * 2, [True] * 2, [False] * 2]
    assert rollouts.adv.tolist() == [[0.0, 0.0], [0.0, 0.0], [0.25, -0.25]]
    assert metrics["ropd/teacher"] == pytest.approx(0.5)


def test_the_reference_answer_stands_in_for_a_teacher() -> None:
    example = replace(asks("q", "fever"), reference="It is fever.")
    assert teachers(example) == ["It is fever."] and teachers(taught("q", "a", "b")) == ["a", "b"]


def test_a_rubric_is_written_from_all_answers_and_none_is_told_apart(server: Server) -> None:
    server.reply = lambda path, body: json.dumps(ITEMS)
    own, example = made("ropd --writer chat:w"), taught("q", "fever rash")
    rollouts, _ = judged(own, [example], [["fever cough", "pain"]])
    assert rollouts.reward.tolist() == [pytest.approx([0.3, 0.4])]
    assert [c.weight for c in rollouts.rubrics[0].criteria] == [1.0, 2.0, 3.0, 4.0]
    (asked,) = (user(body) for _, body, _ in server.seen)
    shown = {line for line in asked.splitlines() if not line.startswith("---")}
    assert {"q", "fever cough", "pain", "fever rash"} <= shown
    assert "teacher" not in asked and [f"response {n} " in asked for n in range(1, 5)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    "reply", ["no", "[]", json.dumps(ITEMS[:3]), json.dumps([*ITEMS[:3], {"criterion": "x", "points": 9}])]
)
def test_a_rubric_that_cannot_be_had_gives_no_reward(server: Server, reply: str) -> None:
    server.reply = lambda path, body: reply
    rollouts, metrics = judged(made("ropd --writer chat:w"), [taught("q", "fever")], [["fever", "no"]])
    assert rollouts.reward.isnan().all() and not rollouts.adv.any()
    assert metrics["judge2/failures/malformed"] == 1, "it is counted like a judge's"


def test_only_a_chat_model_can_write() -> None:
    with pytest.raises(ValueError, match="no writer 'keyword': expected chat:NAME"):
        made("ropd --writer keyword").judge(Reader())
