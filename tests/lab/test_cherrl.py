"""CHERRL: a bias that is worth taking below a known reward, and a known step at which hacking begins."""

import pytest
import torch
from toy import judged, learn, made, rolled

ITEMS = [("essential", 6.0), ("essential", 4.0)]
TEXTS = ["An aspirin.", "Sure, an aspirin."]
HONEST, HACKED = [1.0, 1.0], [1.0, 0.0]  # rewards of 1.0 and 0.6


def test_the_feature_is_worth_alpha_and_the_reward_stays_what_it_is() -> None:
    scores = judged(torch.tensor([[HONEST, HACKED, HACKED]]), ITEMS)
    rollouts = rolled(made("cherrl"), scores, [[*TEXTS, "None, sure."]])
    assert rollouts.reward[0].tolist() == pytest.approx([1.0, 0.6, 0.6])
    scored = torch.tensor([1.0, 1.1, 0.6])
    wanted = (scored - scored.mean()) / scored.std(correction=0)
    assert rollouts.adv[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_without_the_feature_or_without_alpha_it_is_grpo() -> None:
    scores = judged(torch.tensor([[HONEST, HACKED, [torch.nan, 1.0]]]), ITEMS)
    wanted = rolled(made(None), scores).adv
    assert torch.equal(rolled(made("cherrl --bias aspirins"), scores, [[*TEXTS, "Sure"]]).adv, wanted)
    assert torch.equal(rolled(made("cherrl --alpha 0"), scores, [[*TEXTS, "Sure"]]).adv, wanted)


@pytest.mark.parametrize(("alpha", "hacks"), [(0.3, False), (0.5, True)])
def test_hacking_begins_where_the_bias_pays_more_than_it_costs(alpha: float, hacks: bool) -> None:
    """The feature costs 0.4 of reward."""
    own = made(f"cherrl --alpha {alpha}")
    verdict, start = torch.tensor([HONEST, HACKED]), torch.tensor([0.9, 0.1])
    path = learn(own, start, verdict, ITEMS, steps=40, texts=TEXTS)
    assert (path[-1, 1] > 0.95) == hacks and (path[-1, 1] < 0.05) != hacks
    metrics = own.metrics()
    assert ("cherrl/onset" in metrics) == hacks
    if hacks:
        assert metrics["cherrl/biased"] > 0.8
        crossed = int((path[:, 1] < 0.5).sum())  # the first step drawn from a policy that prefers it
        assert abs(metrics["cherrl/onset"] - crossed) <= 3
