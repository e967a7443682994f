"""DR Tulu's buffer: criteria that tell the answers to a question apart stay."""

import torch
from toy import made, rolled

from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN, Scores

KINDS = ["essential", "important", "important", "optional", "pitfall"]
CRITERIA = tuple(Criterion(f"{k}", f"Text {k}.", kind, 1.0) for k, kind in enumerate(KINDS))
EXAMPLE = Example("q0", "train", (), "", Rubric(CRITERIA), {})
STDS = [[1, 1, 0.9, 0, 1], [1, 0, 0.1, 0, 1], [1, 1, 0.9, 0, 1], [1, 0, 0.1, 1, 1]]
"""Deviations of 0, 0.5, 0.4, 0.43 and 0."""


def step(own: Recipe, verdict: list[list[float]]) -> list[str]:
    """Judge a group by what is active, and return what is active afterwards, in the next step."""
    own.begin(1, 9)
    (rubric,) = own.rubrics([EXAMPLE], [[""]])
    ks = [int(c.title) for c in rubric.criteria]
    said = torch.tensor([verdict]).float()[..., ks]
    scores = Scores(said, torch.tensor([rubric.weights]), torch.full((1, len(verdict)), NAN), [rubric])
    own.schedule(1, rolled(own, scores))
    assert own.rubrics([EXAMPLE], [[""]]) == [EXAMPLE.rubric], "scores between steps are by the whole rubric"
    own.begin(2, 9)
    return [c.title for c in own.rubrics([EXAMPLE], [[""]])[0].criteria]


def test_constant_criteria_are_dropped_and_essentials_persist() -> None:
    assert step(made("dr_tulu"), STDS) == ["0", "1", "2", "3"]


def test_the_rest_is_capped_by_deviation() -> None:
    assert step(made("dr_tulu --most 2"), STDS) == ["0", "1", "3"]
    assert step(made("dr_tulu --most 1 --keep pitfall"), STDS) == ["1", "4"]


def test_a_buffer_shrinks_and_starts_again_when_it_is_empty() -> None:
    own = made("dr_tulu --most 2")
    assert step(own, STDS) == ["0", "1", "3"]
    agree = [[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]]  # on 3, but on 2 no longer, which is gone
    assert step(own, agree) == ["0", "1"]
    assert step(own, [[1] * 5] * 2) == ["0", "1", "2", "3", "4"]


def test_one_scored_rollout_changes_nothing_and_failed_ones_do_not_count() -> None:
    own = made("dr_tulu")
    assert len(step(own, [[1, 1, 1, 1, 1], [0, 0, NAN, 0, 0]])) == 5 and not own.state["buffers"]
    assert step(own, [*STDS, [1, 1, 1, 1, NAN]]) == ["0", "1", "2", "3"]


def test_a_rating_of_the_whole_leaves_the_rubric_whole() -> None:
    """rar-implicit has one verdict, on no criterion of the data."""
    own, rated = made("dr_tulu"), Rubric((Criterion("rating", "How good it is.", "rating", 1.0),))
    scores = Scores(torch.tensor([[[0.0], [1.0]]]), torch.ones(1, 1), torch.full((1, 2), NAN), [rated])
    own.begin(1, 9)
    own.schedule(1, rolled(own, scores))
    own.begin(2, 9)
    assert own.rubrics([EXAMPLE], [[""]]) == [EXAMPLE.rubric]
