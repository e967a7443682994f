"""rDPO: which two answers of a group make a pair, and what a table of answers learns by it."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import judged, learn, made, rolled

from rar_mini.config import PRESETS
from rar_mini.recipe import make
from rar_mini.scores import NAN

ITEMS = [("essential", 1.0), ("essential", 1.0), ("important", 0.7), ("important", 0.7), ("optional", 0.3)]
BARE, FLASHY, EMPTY = [1.0, 1, 0, 0, 0], [1.0, 0, 1, 1, 1], [0.0, 0, 0, 0, 0]
"""What is essential and nothing else earns 2.0 points; all but one essential item, 2.7."""


def pair(verdict: list[list[float]], options: str = "", items: list = ITEMS) -> tuple[int, int] | None:
    """The places of the winner and the loser in a group with these verdicts."""
    adv = rolled(made(f"rdpo {options}"), judged(torch.tensor([verdict]), items)).adv[0]
    return (int(adv.argmax()), int(adv.argmin())) if adv.any() else None


def test_a_winner_has_what_is_essential_and_no_loser_has_more_of_it() -> None:
    assert pair([FLASHY, BARE, EMPTY]) == (1, 2), "the best by reward fails the gate"
    assert pair([FLASHY, EMPTY, BARE], "--need 0.5") == (0, 1)
    assert pair([FLASHY, EMPTY]) is None
    assert pair([FLASHY, BARE], "--need 0.5") is None, "the lower reward has more of what is essential"
    assert pair([FLASHY, BARE], "--need 0") is None


def test_no_loser_passes_more_essentials_whatever_the_verdicts_are() -> None:
    torch.manual_seed(0)
    made_pairs = 0
    for need in ("0", "0.5", "1"):
        verdict = (torch.rand(60, 6, len(ITEMS)) < 0.5).float()
        scores = judged(verdict, ITEMS)
        adv = rolled(made(f"rdpo --need {need}"), scores).adv
        met, reward = verdict[..., :2].sum(-1), made(None).reward(scores)
        for p in adv.any(-1).nonzero()[:, 0]:
            w, l = adv[p].argmax(), adv[p].argmin()  # noqa: E741
            assert met[p, w] >= max(met[p, l], 2 * float(need)) and reward[p, w] - reward[p, l] >= 0.1
            made_pairs += 1
    assert made_pairs > 60


def test_a_pair_is_apart_by_the_margin() -> None:
    close = [[1.0, 1, 0, 0, 1], BARE]  # 0.3 of 3.7 points
    assert pair(close) is None and pair(close, "--margin 0.08") == (0, 1)
    assert pair([BARE, BARE], "--margin 0") is None, "a tie is no pair"


def test_what_has_no_reward_is_in_no_pair() -> None:
    assert pair([[1.0, 1, 1, 1, NAN], BARE, EMPTY]) == (1, 2)
    assert pair([[1.0, 1, 1, 1, 1], [NAN, 0, 0, 0, 0]]) is None, "one alone teaches nothing"
    items = [*ITEMS[:-1], ("optional", 0.0)]
    assert pair([[1.0, 1, 1, 1, NAN], EMPTY], items=items) == (0, 1), "an item without weight counts nothing"


def test_a_rubric_without_essential_items_has_no_gate() -> None:
    assert pair([[0.0], [1.0]], items=[("important", 0.7)]) == (1, 0)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 4, 0, 1, 3]])
def test_rounding_in_another_order_of_items_makes_no_other_pair(order: list[int]) -> None:
    """All three winners earn the same, added up otherwise."""
    items = [("essential", 1.0), *[("important", w) for w in (0.1, 0.2, 0.3, 0.6)]]
    verdict = [[1.0, 1, 1, 1, 0], [1.0, 0, 0, 0, 1], [1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]]
    turned = pair([[row[k] for k in order] for row in verdict], items=[items[k] for k in order])
    assert turned == pair(verdict, items=items) == (0, 2)


def test_it_refuses_settings_under_which_the_loss_is_not_dpos() -> None:
    with pytest.raises(ValueError, match="rdpo needs --loss-norm sum"):
        make("rdpo", replace(PRESETS["cpu"], loss_norm="token")).load(notes=Counter())


# --- a toy --------------------------------------------------------------------------------------------------


def taught(spec: str, seed: int) -> Tensor:
    """A table of bare, flashy and empty answers after 60 steps of DPO."""
    verdict, start = torch.tensor([BARE, FLASHY, EMPTY]), torch.tensor([0.2, 0.6, 0.2])
    return learn(made(f"{spec} --beta 0.1"), start, verdict, ITEMS, steps=60, lr=100.0, seed=seed)[-1]


def test_the_gate_turns_what_dpo_learns() -> None:
    """Without it the best answer by reward wins, which breaks what is essential. With it that answer is in no
    pair: it is left behind, and not unlearnt."""
    gated, plain = (torch.stack([taught(spec, seed) for seed in range(3)]) for spec in ("rdpo", "pop"))
    assert gated[:, 0].min() > 0.8 and gated[:, 1].min() > 0.1
    assert plain[:, 1].min() > 0.95
