"""C2: which rubrics are followed, and which of several make a pair."""

import random

import pytest
from reading import Reader, asks
from toy import made

from lab.c2 import HELPFUL, select
from rar_mini.prompts import PREDEFINED
from rar_mini.recipe import Example, Recipe
from rar_mini.rubric import Rubric
from rar_mini.scores import Scores

RIGHT = {"good": 0.973, "bad": 0.158, "none": 0.69}
"""How often a judge is right that follows a good rubric, a bad one, or none."""
VERIFIER = 0.77
"""How often the verifier is right."""


def trusting(words: str) -> Recipe:
    """The recipe with a verifier that calls rubrics with a word in them helpful, and fails at others."""
    own = made("c2")
    vars(own)["_verifier"] = Labels(words)
    return own


class Labels(Reader):
    """A verifier that knows which rubrics are helpful."""

    def __init__(self, word: str) -> None:
        self.word = word

    def score(self, examples: list[Example], responses: list[list[str]], **how: object) -> Scores:
        helps = [[HELPFUL.description if self.word in text else ""] for (text,) in responses]
        said = [["fail"] if "unsaid" in text else own for own, (text,) in zip(helps, responses, strict=True)]
        return super().score(examples, said)


def test_only_rubrics_that_are_called_helpful_are_followed() -> None:
    examples = [asks("q", "helpful a"), asks("r", "other"), asks("s", "helpful unsaid")]
    rubrics = trusting("helpful").rubrics(examples, [["x", "y"]] * 3)
    assert rubrics == [examples[0].rubric, Rubric(PREDEFINED), Rubric(PREDEFINED)], "a failure is no trust"


@pytest.mark.parametrize(
    ("margins", "bare", "pair"),
    [
        ([0.5, -0.2, 1.0], 0.1, (2, 1)),
        ([0.5, -0.2, 1.0], 2.0, None),  # no rubric helps more than none
        ([0.5, 0.2], 0.1, None),  # none misleads
        ([-0.5, -0.2], -0.3, None),  # none helps
        ([0.5, -0.2], -0.3, None),  # none misleads more than no rubric does
        ([0.5], 0.0, None),
        ([0.0, -1.0], 0.0, None),
    ],
)
def test_a_pair_helps_more_and_misleads_more_than_no_rubric(
    margins: list[float], bare: float, pair: tuple[int, int] | None
) -> None:
    assert select(margins, bare) == pair


def accuracy(bad: float) -> dict[str, float]:
    """How often judges are right if so many rubrics are bad: one that follows always, by C2, and never."""
    draw, own = random.Random(0), trusting("helpful")
    kinds = ["bad" if draw.random() < bad else "good" for _ in range(4000)]
    labels = [(kind == "good") == (draw.random() < VERIFIER) for kind in kinds]
    examples = [
        asks(kind, "helpful" if label else "other") for kind, label in zip(kinds, labels, strict=True)
    ]
    used = own.rubrics(examples, [["x"]] * len(examples))
    ways = {"always": kinds, "never": ["none"] * len(kinds)}
    ways["c2"] = [e.id if rubric is e.rubric else "none" for e, rubric in zip(examples, used, strict=True)]
    return {name: sum(draw.random() < RIGHT[kind] for kind in way) / len(way) for name, way in ways.items()}


@pytest.mark.parametrize(
    ("bad", "always", "selective"), [(0.1, 0.89, 0.87), (0.5, 0.57, 0.74), (0.9, 0.24, 0.61)]
)
def test_trust_pays_once_rubrics_are_often_bad(bad: float, always: float, selective: float) -> None:
    found = accuracy(bad)
    assert found["always"] == pytest.approx(always, abs=0.03)
    assert found["c2"] == pytest.approx(selective, abs=0.03)
    assert found["never"] == pytest.approx(0.69, abs=0.03)
