"""SCPRM: an early miss voids what comes later."""

import pytest
import torch
from toy import judged, made

from rar_mini.scores import NAN

THREE = [("essential", 1.0)] * 3


def rewards(items: list[tuple[str, float]], *verdicts: list[float]) -> list[float]:
    return made("scprm").reward(judged(torch.tensor([verdicts]), items))[0].tolist()


def test_an_early_miss_costs_everything_and_a_late_one_a_third() -> None:
    early, middle, late, none = rewards(THREE, [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1])
    assert [early, middle, late, none] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_later_hit_buys_nothing_back() -> None:
    assert rewards(THREE, [1, 0, 0], [1, 0, 1]) == pytest.approx([1 / 3, 1 / 3])


def test_soft_verdicts_multiply_and_weights_count() -> None:
    assert rewards([("essential", 3.0), ("optional", 1.0)], [0.5, 0.5]) == pytest.approx([(1.5 + 0.25) / 4])


def test_one_criterion_is_rar_and_what_takes_away_is_earned_by_not_holding() -> None:
    assert rewards([("essential", 2.0)], [0.25]) == [0.25]
    assert rewards([("literal", 1.0), ("literal", -1.0)], [1, 1], [1, 0]) == [0.5, 1.0]


def test_a_failure_is_no_score_wherever_it_is_and_weightless_items_are_no_links() -> None:
    assert all(r != r for r in rewards(THREE, [NAN, 1, 1], [0, NAN, 1], [1, 1, NAN]))
    assert rewards([("essential", 1.0), ("essential", 0.0), ("essential", 1.0)], [1, NAN, 0]) == [0.5]
