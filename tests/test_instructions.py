"""The bundled domain whose every verdict is exact: what its rows have to be like so that a rise is real."""

import re
from collections import Counter
from itertools import product

import pytest

from judge import Judge
from rar_mini import data, grpo
from rar_mini.data import Example
from rar_mini.judging import rules
from rar_mini.scores import choose
from rar_mini.setup import parse, settle

EXAMPLES = data.sample("instructions")


def rewards(answers: list[str]) -> list[float]:
    """The reward of an answer to each question, by rules alone."""
    return grpo.reward(Judge("rules", "rar-explicit").score(EXAMPLES, [[a] for a in answers]))[:, 0].tolist()


def test_every_question_has_some_items_of_each_kind() -> None:
    kinds = Counter((example.split, example.id.split("-")[1]) for example in EXAMPLES)
    assert (
        min(kinds[split, half] for split, half in product(("train", "held_out"), ("medicine", "science")))
        >= 12
    )
    assert kinds["train", "medicine"] == kinds["train", "science"] == 24
    for example in EXAMPLES:
        items = example.rubric.criteria
        assert 4 <= len(items) <= 8 and all(item.check and item.weight for item in items), example.id
        assert {"essential", "pitfall"} <= {item.category for item in items}, example.id
        assert "for demonstration only" in example.row["question_source"]
    assert {item.category for example in EXAMPLES for item in example.rubric.criteria} == {
        "essential", "important", "optional", "pitfall",
    }  # fmt: skip
    used = {name for example in EXAMPLES for item in example.rubric.criteria for name in item.check}
    assert used == set(rules.RULES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_the_reference_answer_earns_everything(example: Example) -> None:
    missed = [item.title for item in example.rubric.criteria if not rules.verdict(item, example.reference)]
    assert not missed


@pytest.mark.parametrize(
    ("most", "answer"),
    [
        (0.4, lambda example: example.question),
        (0.2, lambda example: "I do not know."),
        (0.0, lambda example: ""),
        (0.3, lambda example: "I am sorry, but I am only a model and I cannot answer that question for you."),
    ],
    ids=["the question repeated", "I do not know", "nothing", "an excuse"],
)
def test_answers_that_say_nothing_earn_little(most: float, answer: object) -> None:
    earned = rewards([answer(example) for example in EXAMPLES])
    assert sum(earned) / len(earned) <= most


def test_no_held_out_question_is_nearly_one_that_is_trained_on() -> None:
    words = {example.id: set(re.findall(r"\w+", example.question.lower())) for example in EXAMPLES}
    train, held_out = ([e.id for e in EXAMPLES if e.split == split] for split in ("train", "held_out"))
    for a, b in product(train, held_out):
        assert len(words[a] & words[b]) <= 0.6 * len(words[a] | words[b]), (a, b)
    assert len({example.reference for example in EXAMPLES}) == len(EXAMPLES)


def test_without_a_server_rules_judge_it(monkeypatch: pytest.MonkeyPatch, tiny: object) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    words = ["--policy", str(tiny), "--device", "cpu", "--domain"]
    assert settle(parse([*words, "instructions"]))[0].judge == "rules"
    assert settle(parse([*words, "instructions", "--method", "rar-implicit"]))[0].judge == "keyword"
    assert settle(parse([*words, "medical"]))[0].judge == "keyword"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert choose("auto", checked=True)[0].startswith("chat:")
