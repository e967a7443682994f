"""Think-with-Rubrics: what a rollout's own rubric is, what it earns, and how it becomes trivial."""

import pytest
import torch
from reading import Reader, asks
from toy import learn, made

from lab.think_with_rubrics import parse
from rar_mini.data import Example
from rar_mini.rubric import Rubric


def thought(answer: str, *lines: str) -> str:
    return "<rubric>\n" + "\n".join(lines) + f"\n</rubric>\n<answer>{answer}</answer>"


def shares(examples: list[Example], responses: list[list[str]], spec: str = "") -> tuple[torch.Tensor, dict]:
    """Rewards (P, G), and the judge's metrics."""
    own = made(f"think_with_rubrics {spec}".strip())
    judge = own.judge(Reader())
    posed = [
        Example(e.id, e.split, e.messages, "", r, {})
        for e, r in zip(examples, own.rubrics(examples, responses), strict=True)
    ]
    return own.reward(judge.score(posed, responses)), judge.metrics()


# --- what a text is read as ---------------------------------------------------------------------------------


def test_lines_are_read_however_they_are_listed() -> None:
    text = thought(
        "Yes.", "1. Hard rule: Names fever", "- **Principle:** Is kind", "", "Nothing: here", "principle:"
    )
    rubric, answer = parse(text)
    assert [(c.description, c.weight) for c in rubric.criteria] == [("Names fever", 2.0), ("Is kind", 1.0)]
    assert answer == "Yes."


def test_thoughts_before_the_rubric_do_not_count() -> None:
    assert len(parse("<think>hm</think>\n" + thought("Yes.", "Hard rule: a"))[0]) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Fever.", "Fever."),
        ("<rubric>\nHard rule: fever", ""),  # cut in its rubric
        ("<rubric>\nHard rule: fever</rubric>\n<answer>So", "So"),  # cut in its answer
        (thought("a", "Hard rule: b") + thought("c", "Hard rule: d"), "ac"),
        ("So: " + thought("a", "Hard rule: b"), "So: a"),
        (thought("a</answer> b", "Hard rule: c"), "a b"),
    ],
)
def test_what_does_not_parse_has_no_rubric_and_is_judged_without_it(text: str, answer: str) -> None:
    """Else the words of a rubric would be judged as an answer."""
    own, read = parse(text)
    assert own == Rubric(()) and "".join(read.split("\n")) == answer


# --- what it earns ------------------------------------------------------------------------------------------


def test_the_reward_is_the_mix() -> None:
    """Of two gold criteria one is met, of own ones weighing 2 and 1 the rule; 2 are a fifth of 10."""
    texts = [
        thought("fever cough", "Hard rule: fever", "Principle: rash"),
        "fever",
        thought("rash", "Hard rule: rash"),
    ]
    reward, _ = shares([asks("q", "fever", "pain")], [texts])
    wanted = [0.3 / 2 + 0.5 * 2 / 3 + 0.2 / 5, 0.3 / 2, 0.5 + 0.2 / 10]
    assert reward[0].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("count", "form"), [(1, 0.1), (10, 1.0), (20, 0.5)])
def test_the_form_wants_about_ten_criteria(count: int, form: float) -> None:
    text = thought("no", *(f"Principle: c{n}" for n in range(count)))
    reward, _ = shares([asks("q", "fever")], [[text]], "--gold 0 --own 0 --form 1")
    assert reward.item() == pytest.approx(form)


def test_a_failure_of_the_judge_is_no_score() -> None:
    texts = [thought("fail", "Hard rule: fever"), "fail", thought("fever", "Hard rule: fever")]
    reward, _ = shares([asks("q", "fever")], [texts])
    assert reward[0].isnan().tolist() == [True, True, False]


def test_criteria_that_answers_to_another_question_meet_are_trivial() -> None:
    responses = [
        [thought("fever is", "Hard rule: is", "Hard rule: fever")],
        [thought("rash is", "Hard rule: rash")],
    ]
    examples = [asks("q", "fever"), asks("r", "rash")]
    assert shares(examples, responses)[1] == {"own/trivial": pytest.approx((0.5 + 0) / 2)}
    assert shares(examples[:1], responses[:1])[1] == {"own/trivial": None}, "there is no other question"
    assert shares(examples, [["no"], ["no"]])[1] == {"own/trivial": None}, "nobody wrote a rubric"


# --- a toy --------------------------------------------------------------------------------------------------

ARMS = torch.tensor([[1.0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
"""gold, own and form of a good and of a bad answer, behind a rubric that tells them apart, then behind a
trivial one."""


def specific(mix: list[float]) -> list[float]:
    """The probability of a rubric that tells answers apart, at first 0.5; three answers in ten are good."""
    items = [("essential", weight) for weight in mix]
    start = torch.tensor([0.15, 0.35, 0.15, 0.35])
    paths = [learn(made(None), start, ARMS, items, steps=150, seed=seed) for seed in range(6)]
    return [path[-1, :2].sum().item() for path in paths]


def test_own_rubrics_alone_become_trivial() -> None:
    """The mix does not save them either: once an answer is good, both rubrics earn alike."""
    alone, mixed = specific([0.0, 1.0, 0.0]), specific([0.3, 0.5, 0.2])
    assert max(alone) < 0.1 and min(mixed) < 0.1
    assert sum(mixed) > 3 * sum(alone)
