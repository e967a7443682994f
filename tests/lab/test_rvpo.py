"""RVPO: a soft minimum over normalised criteria, between GDPO's mean and the worst of them."""

import math

import pytest
import torch
from torch import Tensor
from toy import judged, learn, made, rolled

from lab.rvpo import soft_minimum

FOUR = [("essential", 1.0), ("important", 0.7), ("optional", 0.3), ("pitfall", 0.9)]
SAFE, STRONG = [0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]
RULE = [("important", 1.0)] * 4 + [("essential", 1.0)]
"""Four criteria, and a hard rule that the answer which wins all four breaks."""


SKIP = " --skip-constant True"


@pytest.fixture
def verdict() -> Tensor:
    return torch.rand(3, 8, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)


def test_k_runs_from_first_to_last_and_stays_there() -> None:
    own, seen = made("rvpo"), []
    for step in (1, 2, 3, 4, 9):
        own.begin(step, 4)
        seen.append(own.metrics()["rvpo/k"])
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    own.begin(1, 1)
    assert own.metrics() == {"rvpo/k": 0.5}


def test_k_near_0_is_gdpo(verdict: Tensor) -> None:
    wanted = rolled(made("gdpo"), judged(verdict, FOUR)).adv
    for k in (0.0, 1e-5):
        adv = rolled(made(f"rvpo --first {k}"), judged(verdict, FOUR)).adv
        torch.testing.assert_close(adv, wanted, atol=1e-3, rtol=1e-3)


def test_the_soft_minimum_lies_between_mean_and_minimum_and_falls_with_k() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1, 0.7, 0.3, 0.9])
    values = torch.stack([soft_minimum(z, weight, k) for k in (0.0, 0.05, 0.5, 2.0, 8.0, 500.0)])
    assert (values.diff(dim=0) < 0).all()
    torch.testing.assert_close(values[-1], z.amin(-1), atol=0.01, rtol=0)
    mean = (weight * z).sum(-1) / weight.sum()
    var = (weight * (z - mean[:, None]).square()).sum(-1) / weight.sum()
    torch.testing.assert_close(values[0], mean)
    assert (values[1] - (mean - 0.05 / 2 * var)).abs().max() < 1e-3, "the Taylor expansion at k = 0.05"


def test_padding_does_not_count() -> None:
    z, weight = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([1.0, 0.5, 0.0])
    assert torch.equal(soft_minimum(z, weight, 2.0), soft_minimum(z[:, :2], weight[:2], 2.0))


@pytest.mark.parametrize(("rate", "met", "missed"), [(0.1, 0.11, -0.09), (0.9, 0.05, -2.20)])
def test_common_criteria_are_protected_and_rare_ones_are_not_chased(
    rate: float, met: float, missed: float
) -> None:
    """One criterion of five differs, and a share `rate` of the group meets it."""
    z = torch.zeros(2, 5)
    z[0, 0], z[1, 0] = math.sqrt((1 - rate) / rate), -math.sqrt(rate / (1 - rate))
    assert soft_minimum(z, torch.ones(5), 2.0).tolist() == pytest.approx([met, missed], abs=0.005)


@pytest.mark.parametrize("spec", ["gdpo", "rvpo"])
def test_of_one_criterion_and_one_question_it_is_grpo(spec: str) -> None:
    scores = judged(torch.tensor([[[1.0], [0.0], [0.5], [torch.nan]]]), [("essential", 1.0)])
    own, wanted = (rolled(made(each), scores).adv for each in (spec, None))
    torch.testing.assert_close(own, wanted, atol=1e-4, rtol=0)


def test_criteria_on_which_all_agree_may_be_skipped() -> None:
    verdict = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    verdict[0, :, 2:] = 1.0
    whole, skipped = (rolled(made(f"rvpo{words}"), judged(verdict, FOUR)).adv for words in ("", SKIP))
    assert not torch.allclose(whole, skipped, atol=1e-2)
    without = rolled(made("rvpo"), judged(verdict[:1, :, :2], FOUR[:2])).adv
    torch.testing.assert_close(rolled(made(f"rvpo{SKIP}"), judged(verdict[:1], FOUR)).adv, without)
    assert not rolled(made(f"rvpo{SKIP}"), judged(torch.ones(2, 6, 4), FOUR)).adv.any()


def share_of_strong(spec: str | None, start: float) -> list[float]:
    """The probability, after 100 steps, of the answer that wins four criteria and breaks a rule; 3 seeds."""
    verdict, before = torch.tensor([SAFE, STRONG]), torch.tensor([1 - start, start])
    return [learn(made(spec), before, verdict, RULE, steps=100, seed=seed)[-1, 1].item() for seed in range(3)]


@pytest.mark.parametrize("spec", ["rvpo --first 0.5 --last 0.5", "rvpo --first 2 --last 2", "rvpo"])
def test_a_rare_answer_that_breaks_a_rule_is_unlearnt_but_a_common_one_is_not(spec: str) -> None:
    assert max(share_of_strong(spec, 0.02)) < 0.01
    assert min(share_of_strong(spec, 0.5)) > 0.99, "here it fails, and a gate does not"


@pytest.mark.parametrize("spec", [None, "gdpo"])
def test_others_learn_the_rare_answer_that_breaks_a_rule(spec: str | None) -> None:
    assert min(share_of_strong(spec, 0.02)) > 0.99
