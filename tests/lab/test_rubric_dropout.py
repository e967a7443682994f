"""Rubric Dropout: a part of the rubric for each question and step, all of it between steps."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from toy import judged, made, rolled

from rar_mini.data import Example
from rar_mini.rubric import Criterion, Rubric

KINDS = ["essential"] * 4 + ["important"] * 3 + ["optional"] * 3 + ["pitfall"] * 2
CRITERIA = tuple(Criterion(f"{k}", f"Text {k}.", kind, 1.0) for k, kind in enumerate(KINDS))
EXAMPLE = Example("q", "train", (), "", Rubric(CRITERIA), {})


def left(spec: str, *steps: int, example: Example = EXAMPLE) -> list[list[str]]:
    """The titles of what is judged at each of these steps."""
    own, found = made(spec), []
    for step in steps:
        own.begin(step, 9)
        found.append([c.title for c in own.rubrics([example], [[""]])[0].criteria])
    return found


def test_a_share_is_dropped_anew_at_each_step_and_pitfalls_stay() -> None:
    masks = left("rubric_dropout --drop 0.4", *range(1, 401))
    assert {len(mask) for mask in masks} == {8} and all(mask[-2:] == ["10", "11"] for mask in masks)
    counts = Counter(title for mask in masks for title in mask[:-2])
    assert all(abs(counts[f"{k}"] / 400 - 0.6) < 0.1 for k in range(10)), "four standard errors"


def test_a_mask_hangs_on_question_step_and_seed_alone() -> None:
    assert left("rubric_dropout", 3, 4) == left("rubric_dropout", 3, 4)
    assert left("rubric_dropout", 3) != left("rubric_dropout", 4)
    assert left("rubric_dropout", 3) != left("rubric_dropout", 3, example=replace(EXAMPLE, id="other"))


def test_the_whole_rubric_scores_between_steps() -> None:
    own = made("rubric_dropout")
    assert own.rubrics([EXAMPLE], [[""]]) == [EXAMPLE.rubric], "before the first step, and in judge.py score"
    own.begin(1, 9)
    assert own.rubrics([EXAMPLE], [[""]]) != [EXAMPLE.rubric]
    own.schedule(1, rolled(made(None), judged(torch.zeros(1, 2, 1), [("essential", 1.0)])))
    assert own.rubrics([EXAMPLE], [[""]]) == [EXAMPLE.rubric]


@pytest.mark.parametrize(
    ("words", "count", "stay"),
    [
        ("--drop 0", 12, 12),
        ("--drop 1", 3, 0),  # the pitfalls, and one more
        ("--drop 1 --least 9", 9, 0),
        ("--drop 1 --least 20", 12, 12),
        ("--protect essential pitfall --drop 1", 6, 4),
    ],
)
def test_the_limits(words: str, count: int, stay: int) -> None:
    (mask,) = left(f"rubric_dropout {words}", 1)
    assert len(mask) == count and mask[:stay] == [f"{k}" for k in range(stay)]


def test_signed_points_that_take_away_and_lone_items_are_kept() -> None:
    criteria = tuple(Criterion(f"{k}", "", "literal", w) for k, w in enumerate([5.0] * 4 + [-3.0] * 4))
    (mask,) = left("rubric_dropout --drop 0.5", 1, example=replace(EXAMPLE, rubric=Rubric(criteria)))
    assert mask[-4:] == ["4", "5", "6", "7"] and len(mask) == 6
    (mask,) = left("rubric_dropout --drop 1", 1, example=replace(EXAMPLE, rubric=Rubric(criteria[:1])))
    assert mask == ["0"]
