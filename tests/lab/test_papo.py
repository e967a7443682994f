"""PAPO: being right counts in the whole group, how well it was done among the right answers alone."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from toy import judged, learn, made, rolled

from rar_mini.recipe import Recipe, Scores
from rar_mini.scores import NAN

ITEMS = [("essential", 1.0), ("important", 1.0), ("optional", 1.0)]


def advantages(spec: str, outcome: list[float], process: list[float]) -> list[float]:
    verdict = torch.tensor([[[o, p, p] for o, p in zip(outcome, process, strict=True)]])
    return rolled(made(spec), judged(verdict, ITEMS)).adv[0].tolist()


def test_the_formula_in_plain_numbers() -> None:
    adv = advantages("papo", [1, 1, 0, 0], [1, 0, 1, 0])
    assert adv == pytest.approx([2, 0, -1, -1], abs=1e-4)
    assert advantages("papo --process 0.5", [1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(
        [1.5, 0.5, -1, -1], abs=1e-4
    )


def test_lambda_0_is_grpo_on_the_outcome() -> None:
    assert advantages("papo --process 0", [1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(
        [1, 1, -1, -1], abs=1e-4
    )


@pytest.mark.parametrize(
    ("outcome", "process", "wanted"),
    [
        ([1, 1, 1, 1], [1, 1, 0, 0], [1, 1, -1, -1]),  # all are right: GRPO on the outcome has nothing to say
        ([0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]),  # no credit for how a wrong answer was made
        ([1, 0, 0, 0], [1, 1, 0, 0], [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3),  # one right answer alone
    ],
)
def test_groups_at_the_edge(outcome: list[float], process: list[float], wanted: list[float]) -> None:
    assert advantages("papo", outcome, process) == pytest.approx(wanted, abs=1e-4)


def test_the_process_is_rounded_to_three_levels() -> None:
    outcome, process = [1.0] * 4, [0.0, 0.2, 0.4, 0.7]
    low, other, middle, high = advantages("papo", outcome, process)
    assert low == other < middle == high
    assert len(set(advantages("papo --levels 0", outcome, process))) == 4


@pytest.mark.parametrize("levels", ["1", "-2"])
def test_a_process_needs_two_levels(levels: str) -> None:
    """With one it was divided by 0, and no answer had an advantage."""
    with pytest.raises(ValueError, match=f"--recipe.levels {levels}: expected 2 or more, or 0"):
        made(f"papo --levels {levels}")


def test_rubrics_without_essentials_or_with_nothing_else() -> None:
    verdict = torch.tensor([[[0.0], [1.0]]])
    for category in ("essential", "optional"):
        adv = rolled(made("papo"), judged(verdict, [(category, 1.0)])).adv
        assert adv[0].tolist() == pytest.approx([-1, 1], abs=1e-4)


def test_a_failed_verdict_removes_its_rollout() -> None:
    verdict = torch.tensor([[[1, 0, NAN], [1, 1, 1], [0, 0, 0]]])
    assert rolled(made("papo"), judged(verdict, ITEMS)).adv[0].tolist() == pytest.approx([0, 1, -1], abs=1e-4)


def worst_right_answer(G: int) -> float:
    """How far the worst right answer lies above the wrong ones at worst, over all groups of G."""
    found = []
    for right, met in itertools.product(range(2, G), repeat=2):
        if met <= right:
            adv = advantages("papo", [1] * right + [0] * (G - right), [1] * met + [0] * (G - met))
            found.append(min(adv[:right]) - max(adv[right:]))
    return min(found)


def test_up_to_eight_rollouts_no_right_answer_ranks_below_a_wrong_one() -> None:
    """At lambda = 1, with theirs of 8; from nine on, a right answer may be worth less than a wrong one."""
    assert worst_right_answer(8) > 0
    assert worst_right_answer(9) < 0


@dataclass(frozen=True)
class Product(Recipe):
    """The rival: outcome times process."""

    def reward(self, scores: Scores) -> Tensor:
        return scores.verdict[..., 0] * scores.verdict[..., 1:].mean(-1)


def test_adding_learns_what_multiplying_cannot_see() -> None:
    """Most answers are wrong, some are right but careless, and one in a million is right and careful."""
    verdict = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 1]])
    start = torch.tensor([0.9, 0.1 - 1e-6, 1e-6])
    added = learn(made("papo"), start, verdict, ITEMS, steps=60, G=8)[-1]
    multiplied = learn(Product(config=made(None).config), start, verdict, ITEMS, steps=60, G=8)[-1]
    assert added[1:].sum() > 0.95 and multiplied[1:].sum() < 0.11
