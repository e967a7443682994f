"""The bundled domain in which rules give every verdict: what its checks may punish and what they may not."""

import random
import re
from collections import Counter
from collections.abc import Callable
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


def salad(example: Example) -> str:
    """What the essential items find in the reference answer, shuffled: the right words, and no sentence."""
    patterns = [
        i.check["matches"]
        for i in example.rubric.criteria
        if i.category == "essential" and "matches" in i.check
    ]
    words = " ".join(re.search(pattern, example.reference)[0] for pattern in patterns).split()
    random.Random(0).shuffle(words)
    return " ".join(words)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (1.0, lambda example: example.reference),
        (0.55, salad),
        (0.09, lambda example: example.question),
        (0.08, lambda example: "I do not know."),
        (0.0, lambda example: ""),
        (
            0.12,
            lambda example: "I am sorry, but I am only a model and I cannot answer that question for you.",
        ),
    ],
    ids=[
        "the reference",
        "a salad of keywords",
        "the question repeated",
        "I do not know",
        "nothing",
        "an excuse",
    ],
)
def test_what_the_reward_is_for_some_kinds_of_answer(
    expected: float, answer: Callable[[Example], str]
) -> None:
    """docs/data.md states these numbers."""
    earned = rewards([answer(example) for example in EXAMPLES])
    assert sum(earned) / len(earned) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_no_answer_with_the_essentials_falls_into_a_pitfall_of_silence(example: Example) -> None:
    """The pitfall's pattern has the essential ones as alternatives: only `lacks` can cost such an answer."""
    essential = [item.check for item in example.rubric.criteria if item.category == "essential"]
    (pitfall,) = (item.check for item in example.rubric.criteria if item.category == "pitfall")
    if essential[0].get("json"):
        assert essential[0]["starts_with"] == "{" and pitfall == {"matches": r"(?s)^\{.*\}$"}
    else:
        assert pitfall.keys() == {"lacks", "matches"}
        assert all(f"({check['matches']})|" in pitfall["matches"] for check in essential)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_the_question_repeated_falls_into_the_pitfall(example: Example) -> None:
    (pitfall,) = (item for item in example.rubric.criteria if item.category == "pitfall")
    assert not rules.verdict(pitfall, example.question)


RIGHT = {
    "medicine-05": "Skin makes a vitamin called vitamin D in sunlight.",
    "medicine-08": "Insulin from the pancreas lowers blood sugar, and the liver stores it.",
    "medicine-09": "No, because it makes you sleepy and tired, which is risky.",
    "medicine-10": "1. Floss after meals.\n2. Eat less sugar.",
    "medicine-14": "It clouds the lens, which lies behind the iris.",
    "medicine-20": "- butter beans\n- oysters\n- pumpkin seeds",
    "medicine-23": "No, not the lungs only: smoking also harms the heart.",
    "medicine-25": "No, no drug in it kills measles; it trains the immune system.",
    "medicine-27": "It is 36.5-37 °C (98 °F) inside.",
    "medicine-28": "- cough\n- headache\n- chills",
    "medicine-31": "Call a doctor now, avoid vomiting and do not give milk or salt water. Is she awake?",
    "science-01": "100 °C is the temperature at which water boils.",
    "science-04": "- solid\n- gas\n- plasma",
    "science-06": "Because water is more dense than ice.",
    "science-07": "About 8.3 min, or 499 s.",
    "science-15": "Sound travels at about 1,235 km/h in air.",
    "science-17": "An acid tastes sour, not bitter, and has pH < 7.",
    "science-21": "Light reaches us before the sound does.",
    "science-22": "Mercury is liquid at room temperature. Did you know that gold is solid?",
    "science-25": "It turns to ice at 0 °C.",
    "science-28": "We need oxygen and breathe out carbon dioxide.",
    "science-31": "A day has 1,440 minutes, or 86,400 seconds.",
    "science-32": "They turn into a butterfly.",
}
WRONG = {
    "medicine-06": "Do not press on it with a cloth, hold it up. Is it bleeding?",
    "medicine-11": "Fever is a body temperature of 38 °F or more, often from an infection.",
    "medicine-15": "Do not call 911 in this situation, let the heart attack go on and rest.",
    "medicine-17": '{"joint": "hip", "limb": "knee"}',
    "medicine-20": "- liver\n- banana\n- tennis",
    "medicine-28": "- fever\n- banana\n- tennis",
    "medicine-31": "Do not call a doctor, and make the person vomit. Is the person awake?",
    "medicine-35": '{"sense": "ear", "organ": "nose"}',
    "science-01": "Water boils at -100 °C at sea level.",
    "science-06": "Because ice is denser than liquid water.",
    "science-07": "Light from the Sun takes about 0.8 minutes to arrive.",
    "science-09": '{"symbol": "C", "number": 12, "neutrons": 6}',
    "science-14": "1. wind power\n2. steam engines",
    "science-15": "Sound travels at about 1,235 m/s in air.",
    "science-19": "The rod does not expand, because its atoms stay.",
    "science-21": "Light travels slower than sound does.",
    "science-27": "- red\n- banana\n- tennis",
}


def earned(name: str, answer: str, *categories: str) -> list[bool]:
    """Whether the answer earns each item of these categories."""
    (example,) = (example for example in EXAMPLES if example.id == f"instructions-{name}")
    return [rules.verdict(i, answer) == 1 for i in example.rubric.criteria if i.category in categories]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_in_other_words_earns_all_that_counts(name: str) -> None:
    assert all(earned(name, RIGHT[name], "essential", "important", "pitfall"))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_that_has_the_words_misses_an_essential_item(name: str) -> None:
    assert not all(earned(name, WRONG[name], "essential"))


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
    assert settle(parse([*words, "instructions", "--recipe", "gdpo"]))[0].judge == "keyword"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert choose("auto", checked=True)[0].startswith("chat:")
