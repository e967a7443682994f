"""SPARD: weights of categories follow their progress, and questions count by what they can teach."""

import pytest
import torch
from torch import Tensor
from toy import judged, made, rolled

from rar_mini.recipe import Recipe
from rar_mini.scores import NAN

ITEMS = [("essential", 1.0), ("optional", 1.0)]


def visit(own: Recipe, *means: tuple[float, float]) -> dict[str, float]:
    """Weights after steps in which essentials and optionals were met this often."""
    for step, mean in enumerate(means, 1):
        own.schedule(step, rolled(own, judged(torch.tensor([[mean, mean]]), ITEMS)))
    return {name.removeprefix("spard/"): weight for name, weight in own.metrics().items()}


RISING = [(0.1 * n + 0.01 * (n % 3), 0.5) for n in range(8)]


@pytest.mark.parametrize(("eta", "sign"), [(0.1, 1), (0.0, 0), (-0.1, -1)])
def test_weights_follow_progress_by_the_sign_of_eta(eta: float, sign: int) -> None:
    weights = visit(made(f"spard --eta {eta}"), *RISING)
    gap = weights["essential"] - weights["optional"]
    assert (gap > 0.01, abs(gap) < 1e-9, gap < -0.01) == (sign == 1, sign == 0, sign == -1)
    assert sum(weights.values()) == pytest.approx(1)


def test_nothing_moves_before_the_window_is_full_or_for_a_category_that_never_comes() -> None:
    own = made("spard")
    assert list(visit(own, *RISING[:4]).values()) == pytest.approx([1 / 6] * 6)
    weights = visit(own, *RISING[4:])
    assert weights["pitfall"] == weights["important"] and weights["essential"] > 1 / 6


def test_a_weight_keeps_its_floor() -> None:
    own = made("spard --eta -2 --floor 0.05")
    weights = visit(own, *RISING * 5)
    assert min(weights.values()) > 0.04 and weights["essential"] == min(weights.values())


def adv(own: Recipe, verdict: Tensor, sources: list[str]) -> Tensor:
    rollouts = rolled(own, judged(verdict, ITEMS))
    for example, source in zip(rollouts.examples, sources, strict=True):
        example.row["question_source"] = source
    return own.advantage(rollouts)


def test_questions_of_a_source_that_spreads_more_count_more() -> None:
    wide, narrow = [[1.0, 1.0], [0.0, 0.0]], [[0.6, 0.6], [0.4, 0.4]]
    verdict = torch.tensor([wide, narrow])
    alike = adv(made("spard"), verdict, ["a", "a"]).abs()
    assert alike.flatten().tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    apart = adv(made("spard"), verdict, ["a", "b"]).abs()
    assert apart[0].tolist() == pytest.approx([5 / 3] * 2, abs=1e-4), "deviations of 1.0 and 0.2 in sum"
    assert apart[1].tolist() == pytest.approx([1 / 3] * 2, abs=1e-4)


def test_at_first_categories_count_alike_whatever_their_items_weigh() -> None:
    items = [("essential", 1.0), ("essential", 1.0), ("optional", 0.3)]
    verdict = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.4], [0.0, 0.0, 0.6]]])
    adv = rolled(made("spard"), judged(verdict, items)).adv[0].tolist()
    assert adv[1] < adv[0] < adv[2], "0.2, 0.25 and 0.3"


def test_failures_and_ties_teach_nothing() -> None:
    verdict = torch.tensor([[[1.0, NAN], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    own = made("spard")
    rollouts = rolled(own, judged(verdict, ITEMS))
    assert not rollouts.adv.any()
    own.schedule(1, rollouts)
    assert own.state["m"] == {"essential": 0.5, "optional": 0.5}


def test_ratings_and_signed_points_are_categories_too() -> None:
    for category in ("rating", "literal"):
        scores = judged(torch.tensor([[[0.0], [1.0]]]), [(category, 1.0)])
        assert rolled(made("spard"), scores).adv[0].tolist() == pytest.approx([-1, 1], abs=1e-4)
