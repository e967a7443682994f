"""Chasing the Tail: a rubric is rewritten from the two best answers, a round a visit."""

import json
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest
from hostile import Server, user
from reading import Reader, asks, visit
from toy import made

from rar_mini.data import Example
from rar_mini.rubric import Criterion, Rubric

pytestmark = pytest.mark.usefixtures("folder")

BETTER = [{"criterion": word, "points": n} for n, word in enumerate(("fever", "cough", "rash", "pain"), 1)]
GROUP = ["fever", "fever cough", "no", "cough fever"]


@pytest.fixture
def example() -> Example:
    return asks("q", "fever")


def writing(server: Server, *replies: Any) -> None:
    """A writer that gives these replies one after another, and the last one for ever."""
    given = chain(replies, repeat(replies[-1]))
    server.reply = lambda path, body: json.dumps(next(given))


def texts(rubric: Rubric) -> list[str]:
    return [c.description for c in rubric.criteria]


def test_the_two_best_answers_rewrite_the_rubric_of_the_next_visit(server: Server, example: Example) -> None:
    """At the first visit three answers tie; by the new rubric two are ahead of the third."""
    writing(server, BETTER)
    own = made("chasing_the_tail --writer chat:w")
    first = visit(own, example, 1, GROUP)
    assert first.rubrics is None and not server.seen and own.metrics()["tail/tied"] == 1.0
    assert first.reward.tolist() == [[1.0, 1.0, 0.0, 1.0]]
    second = visit(own, example, 2, GROUP)
    assert texts(second.rubrics[0]) == ["fever", "cough", "rash", "pain"]
    assert second.reward[0].tolist() == pytest.approx([0.1, 0.3, 0.0, 0.3])
    (asked,) = (user(body) for _, body, _ in server.seen)
    shown = {line for line in asked.splitlines() if not line.startswith("---")}
    assert {"q", "- (essential) fever", "fever", "fever cough"} <= shown and "no" not in shown


def test_the_writer_is_told_which_criteria_are_mistakes(server: Server) -> None:
    """Its new criteria all earn points: a pitfall that looks wanted would come to earn them."""
    writing(server, BETTER)
    own, base = made("chasing_the_tail --writer chat:w"), asks("q", "fever")
    pitfall = Criterion("No drugs", "Recommends antibiotics.", "pitfall", 0.9)
    nobody = Criterion("None", "Nobody asks this.", "essential", 0.0)
    example = replace(base, rubric=Rubric((*base.rubric.criteria, pitfall, nobody)))
    for step in (1, 2):
        visit(own, example, step, GROUP)
    lines = user(server.seen[0][1]).splitlines()
    assert "- (pitfall, a mistake that a good response avoids) Recommends antibiotics." in lines
    assert not any("Nobody asks this." in line for line in lines), "an item of weight 0 is none"


def test_a_rubric_is_rewritten_so_often_and_then_stays(server: Server, example: Example) -> None:
    writing(server, BETTER, BETTER[::-1], BETTER)
    own = made("chasing_the_tail --writer chat:w --rounds 2")
    rubrics = [visit(own, example, step, GROUP).rubrics for step in range(1, 6)]
    assert rubrics[0] is None and [texts(r[0])[0] for r in rubrics[1:]] == ["fever", "pain", "pain", "pain"]
    assert len(server.seen) == 2


def test_a_writer_that_fails_leaves_the_rubric_as_it_was(server: Server, example: Example) -> None:
    writing(server, "prose")
    own = made("chasing_the_tail --writer chat:w")
    assert [visit(own, example, step, GROUP).rubrics for step in (1, 2)] == [None, None]
    assert own.state["kept"]["q"][1] == 0 and server.seen, "no round is used up"


def test_scores_between_steps_are_by_the_datas_rubric(server: Server, example: Example) -> None:
    writing(server, BETTER)
    own = made("chasing_the_tail --writer chat:w")
    for step in (1, 2):
        visit(own, example, step, GROUP)
        assert own.rubrics([example], [GROUP]) == [example.rubric]


@pytest.mark.parametrize("group", [["fever", "fail", "fail"], ["fever", "fever", "fever"]])
def test_two_answers_that_differ_and_were_judged_are_needed(
    server: Server, example: Example, group: list[str]
) -> None:
    """One scored rollout, and a group that wrote one text."""
    own = made("chasing_the_tail --writer chat:w")
    assert [visit(own, example, step, group).rubrics for step in (1, 2)] == [None, None]
    assert not server.seen


def test_without_a_writer_nothing_changes(example: Example) -> None:
    own = made("chasing_the_tail")
    assert [visit(own, example, step, GROUP).rubrics for step in (1, 2)] == [None, None]
    assert own.metrics()["tail/tied"] == 1.0
    assert not own.state["kept"], "no checkpoint keeps answers that nobody reads"
    with pytest.raises(ValueError, match="no writer 'keyword': expected chat:NAME"):
        made("chasing_the_tail --writer keyword").judge(Reader())
