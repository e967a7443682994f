"""DeltaRubric: a neutral checklist of what two answers disagree about, whichever comes first."""

import json

import pytest
from hostile import Server, user
from reading import Reader, asks
from toy import made

from lab.delta_rubric import read
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.writer import UNWRITTEN

pytestmark = pytest.mark.usefixtures("folder")

CHECKS = [{"criterion": word, "points": n} for n, word in enumerate(("fever", "cough", "rash"), 1)]


def earned(*responses: str) -> list[float]:
    """What a group's responses earn by the checklist that is planned for it."""
    own, example = made("delta_rubric --planner chat:w"), asks("q", "other")
    (rubric,) = own.rubrics([example], [list(responses)])
    scores = own.judge(Reader()).score([asks("q", *(c.description for c in rubric.criteria))], [responses])
    weights = [c.weight for c in rubric.criteria]
    return [sum(w * v for w, v in zip(weights, row, strict=True)) for row in scores.verdict[0].tolist()]


def test_swapped_answers_get_the_same_checklist_and_the_opposite_verdict(server: Server) -> None:
    server.reply = lambda path, body: json.dumps(CHECKS)
    a, b = earned("fever cough", "rash")
    assert (a, b) == (3.0, 3.0)
    a, b = earned("fever", "rash")
    assert earned("rash", "fever") == [b, a] and b > a
    asked = [user(body) for _, body, _ in server.seen]
    assert len(asked) == 2, "the swapped pair is the same request"


def test_the_checklist_comes_from_two_different_answers_and_judges_all(server: Server) -> None:
    server.reply = lambda path, body: json.dumps(CHECKS)
    assert earned("fever", "fever", "fever", "fever rash") == [1.0, 1.0, 1.0, 4.0]
    (asked,) = (user(body) for _, body, _ in server.seen)
    lines = asked.splitlines()
    assert "fever" in lines and "fever rash" in lines and "response 3" not in asked


def test_answers_that_are_all_alike_disagree_about_nothing(server: Server) -> None:
    own, example = made("delta_rubric --planner chat:w"), asks("q", "other")
    assert own.rubrics([example], [["fever", "fever"]]) == [example.rubric] and not server.seen
    assert made("delta_rubric").rubrics([example], [["fever", "rash"]]) == [example.rubric]


@pytest.mark.parametrize(
    "words",
    [
        "Which is better?",
        "Response 1 names the dose.",
        "Does the second response name it?",
        "Is answer B right?",
        "It is superior.",
        "Is this the better response?",
        "Is the answer worse than the other?",
        "Both responses name it.",
    ],
)
def test_a_checklist_holds_no_verdict(server: Server, words: str) -> None:
    checks = [*CHECKS[:2], {"criterion": words, "points": 1}]
    with pytest.raises(Failure, match="expected neutral checks"):
        read(json.dumps(checks))
    server.reply = lambda path, body: json.dumps(checks)
    own = made("delta_rubric --planner chat:w")
    assert own.rubrics([asks("q", "x")], [["fever", "rash"]]) == [UNWRITTEN], "and without one, no reward"


@pytest.mark.parametrize(
    "words",
    [
        "Names the best dose.",
        "Says that the patient may lose weight.",
        "Says 1.",
        "Does it mention ST elevation in the inferior leads?",
        "Does the response say to come back if symptoms get worse?",
        "Does the answer name the preferred first-line drug?",
        "Does it say that rest is better than an antibiotic, and a superior pole lesion rare?",
    ],
)
def test_words_that_say_nothing_of_an_answer_pass(words: str) -> None:
    checks = [*CHECKS[:2], {"criterion": words, "points": 1}]
    assert read(json.dumps(checks)).criteria[2].description == words
