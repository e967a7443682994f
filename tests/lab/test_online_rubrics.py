"""OnlineRubrics: criteria from pairs of answers, alive for one step."""

import json
from dataclasses import replace

import pytest
from hostile import Server, user
from reading import Reader, asks, visit
from toy import made

from rar_mini.data import Example
from rar_mini.rubric import Criterion, Rubric

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def example() -> Example:
    return asks("q", "fever")


def writing(server: Server, *criteria: tuple[str, int]) -> None:
    reply = json.dumps([{"criterion": text, "points": points} for text, points in criteria])
    server.reply = lambda path, body: reply


def test_pairs_with_the_first_visits_answers_add_criteria_for_one_step(
    server: Server, example: Example
) -> None:
    """By the data's rubric two answers tie; the new criterion tells them apart."""
    writing(server, ("cough", 3))
    own = made("online_rubrics --writer chat:w")
    first = visit(own, example, 1, ["old one", "old two"])
    assert first.rubrics is None and not server.seen and own.metrics()["online/new"] == 0
    second = visit(own, example, 2, ["fever", "fever cough"])
    assert [(c.description, c.weight) for c in second.rubrics[0].criteria] == [("fever", 1.0), ("cough", 0.6)]
    assert second.reward[0].tolist() == pytest.approx([1 / 1.6, 1.0])
    assert own.metrics()["online/new"] == 1
    shown = [{line for line in user(b).splitlines() if not line.startswith("---")} for _, b, _ in server.seen]
    shown.sort(key=lambda lines: "old two" in lines)
    assert {"fever", "old one"} <= shown[0] and {"fever cough", "old two"} <= shown[1] and len(shown) == 2
    assert all({"q", "- (essential) fever"} <= each for each in shown)
    assert own.rubrics([example], [["fever", "x"]]) == [example.rubric], "scores are by the data's rubric"
    writing(server, ("rash", 5))
    third = visit(own, example, 3, ["a fever", "fever rash"])
    assert [c.description for c in third.rubrics[0].criteria] == ["fever", "rash"], "cough lived for a step"


def test_the_writer_is_told_which_criteria_are_mistakes_in_their_own_letters(
    server: Server, example: Example
) -> None:
    writing(server, ("cough", 3))
    pitfall = Criterion("No drugs", "Empfiehlt Antibiotika gegen Schnupfen für Ältere.", "pitfall", 0.9)
    own, posed = made("online_rubrics --writer chat:w"), replace(example, rubric=Rubric((pitfall,)))
    for step in (1, 2):
        visit(own, posed, step, ["a", "b"])
    line = f"- (pitfall, a mistake that a good response avoids) {pitfall.description}"
    assert all(line in user(body).splitlines() for _, body, _ in server.seen) and len(server.seen) == 2


def test_the_reference_answers_stay_those_of_the_first_visit(server: Server, example: Example) -> None:
    writing(server, ("cough", 3))
    own = made("online_rubrics --writer chat:w --pairs 1")
    for step, answers in enumerate((["a", "b"], ["c", "d"], ["e", "f"]), 1):
        visit(own, example, step, answers)
    assert own.state["before"] == {"q": ["a"]}
    assert len(server.seen) == 2 and all("\na\n" in user(body) for _, body, _ in server.seen)


def test_criteria_of_the_same_words_are_one(server: Server, example: Example) -> None:
    writing(server, ("Fever", 5), ("a  cough", 2))
    own = made("online_rubrics --writer chat:w")
    visit(own, example, 1, ["a", "b"])
    rubric = visit(own, example, 2, ["c", "d"]).rubrics[0]
    assert [c.description for c in rubric.criteria] == ["fever", "a  cough"]


@pytest.mark.parametrize("reply", ["prose", "[]", '[{"criterion": "x", "points": 9}]', "[1, 2, 3]"])
def test_a_pair_without_criteria_adds_nothing(server: Server, example: Example, reply: str) -> None:
    server.reply = lambda path, body: reply
    own = made("online_rubrics --writer chat:w")
    visit(own, example, 1, ["a", "b"])
    assert visit(own, example, 2, ["fever", "d"]).rubrics is None
    failed = own.judge(Reader()).judges[1].metrics().get("judge/failures/malformed", 0)
    assert failed == (0 if reply == "[]" else 2), "to find no criterion is no failure"


def test_without_a_writer_it_is_rar(example: Example) -> None:
    own = made("online_rubrics")
    assert [visit(own, example, step, ["a", "b"]).rubrics for step in (1, 2)] == [None, None]
    assert not own.state.get("before"), "no checkpoint keeps answers that nobody reads"
