"""GDPO: criteria are normalised one by one, so that the scale of one does not matter."""

import statistics

import pytest
import torch
from torch import Tensor
from toy import judged, learn, made, rolled

TWO = [("important", 1.0), ("important", 1.0)]
ANSWERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
"""Neither criterion met, one, the other, both."""


@pytest.fixture
def verdict() -> Tensor:
    return torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(0)).round(decimals=1)


def test_the_formula_in_plain_numbers() -> None:
    verdict = torch.tensor([[[0.0, 1.0], [0.0, 0.5], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    columns = ([0.0, 0.0, 1.0], [1.0, 0.5, 0.0])
    z = [[(v - statistics.fmean(c)) / statistics.pstdev(c) for v in c] for c in columns]
    total = [(3 * a + b) / 4 for a, b in zip(*z, strict=True)]
    scores = judged(verdict, [("essential", 3.0), ("optional", 1.0)])
    adv = rolled(made("gdpo"), scores).adv
    assert adv[0].tolist() == pytest.approx([t / statistics.pstdev(total) for t in total], abs=1e-4)
    assert adv[1].tolist() == [0.0] * 3, "a tie does not count in the step's deviation either"


def test_the_scale_of_a_criterion_does_not_matter(verdict: Tensor) -> None:
    narrow = verdict * torch.tensor([1.0, 0.1])
    gdpo, grpo = (
        [rolled(made(spec), judged(v, TWO)).adv for v in (verdict, narrow)] for spec in ("gdpo", None)
    )
    torch.testing.assert_close(*gdpo, atol=1e-4, rtol=1e-4)
    assert (grpo[0] - grpo[1]).abs().max() > 0.5


def test_criteria_that_cancel_teach_nothing_on_any_scale() -> None:
    """Else 1e-5 of residue, over a deviation of 1e-5, would be an advantage of 1."""
    verdict = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.3], [0.0, 0.3]]])
    assert not rolled(made("gdpo"), judged(verdict, TWO)).adv.any()


def test_advantages_have_mean_0_and_deviation_1_over_the_step(verdict: Tensor) -> None:
    adv = rolled(made("gdpo"), judged(verdict, TWO)).adv
    assert adv.mean().item() == pytest.approx(0, abs=1e-6)
    assert adv.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert adv.mean(-1).abs().max() < 1e-5, "as each group's has, too"


def test_one_rollout_with_a_reward_teaches_nothing() -> None:
    verdict = torch.tensor([[[1.0, 0.0], [torch.nan, 1.0], [0.0, torch.nan]]])
    assert not rolled(made("gdpo"), judged(verdict, TWO)).adv.any()


def steps_to_both(spec: str | None, scale: float) -> list[int]:
    """The steps until nine answers in ten meet both criteria, at most 120, for six seeds."""
    start, verdict = torch.tensor([0.70, 0.14, 0.14, 0.02]), ANSWERS * torch.tensor([1.0, scale])
    paths = [learn(made(spec), start, verdict, TWO, steps=120, G=8, seed=seed) for seed in range(6)]
    return [int((path[:, 3] < 0.9).sum().clamp_max(120)) for path in paths]


def test_a_criterion_on_a_third_of_the_scale_is_learnt_as_fast() -> None:
    """GRPO all but loses sight of it once the wide one is met."""
    equal, narrow = (steps_to_both("gdpo", scale) for scale in (1.0, 1 / 3))
    assert equal == narrow and max(equal) < 80
    assert sum(steps == 120 for steps in steps_to_both(None, 1 / 3)) == 4
