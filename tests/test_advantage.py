"""Verdicts to rewards to advantages: the rule's laws on every path, against float64, at awkward shapes."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import (
    NAN,
    needs_triton,
    not_interpreted,
    on_every_device,
    only_interpreted,
    poisoned,
    programs_from,
    traffic,
    under_the_interpreter,
    untouched,
)
from torch import Tensor

from rar_mini.kernels import advantage, report
from rar_mini.kernels.advantage import group_advantage

# One rollout, a prime number of them, one above a tile, the largest; a rubric with one item, with one item
# above a tile of criteria, with 512.
SHAPES = [(1, 1, 1), (1, 2, 1), (3, 7, 5), (2, 13, 65), (1, 17, 33), (1, 130, 3), (1, 1024, 2), (1, 3, 512)]


def of_rewards(rows: list[list[float]], scale: str = "group", device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Groups whose rewards are given: one criterion of weight 1."""
    verdict = torch.tensor(rows, device=device)[..., None]
    return group_advantage(verdict, torch.ones(len(rows), 1, device=device), scale=scale)


@on_every_device
@pytest.mark.parametrize("scale", advantage.SCALES)
@pytest.mark.parametrize(("P", "G", "K"), SHAPES)
def test_errs_no_more_than_the_naive_form(P: int, G: int, K: int, scale: str, device: str) -> None:
    """Every third item does not exist, some have negative weight, one rollout of the first group failed. The
    naive form is the rule in float32. To its error come 4 units in the last place of the largest reward, and
    32 of the largest advantage, which was divided by a deviation of a tenth or so."""
    generator = torch.Generator().manual_seed(P * G * K)
    verdict = torch.rand(P, G, K, generator=generator)
    weight = torch.randn(P, K, generator=generator) + 0.5
    weight[:, 1::3] = 0
    verdict[:, :, 1::3] = NAN
    weight[:, -1] = 1
    verdict[:, :, -1] = torch.linspace(0, 1, G)
    verdict[0, -1, 0] = NAN
    given = [x.to(device) for x in (verdict, weight)]
    with poisoned():
        got = group_advantage(*given, scale=scale)
    right = advantage.reference(verdict.double(), weight.double(), scale)
    naive = advantage.reference(verdict, weight, scale)
    for ours, theirs, truth, units in zip(got, naive, right, (4, 32), strict=True):
        assert torch.equal(ours.isnan().cpu(), truth.isnan()) and ours.dtype == torch.float32
        error, usual = ((x.double().cpu() - truth).nan_to_num(0.0).abs().max() for x in (ours, theirs))
        largest = truth.nan_to_num(0.0).abs().max()
        assert error <= usual + units * torch.finfo(torch.float32).eps * largest
    assert got[0].isnan().nonzero().tolist() == [[0, G - 1]] and not got[1].isnan().any()
    for now, before in zip(given, (verdict, weight), strict=True):
        assert torch.equal(now.cpu().nan_to_num(9), before.nan_to_num(9)), "inputs are only read"


@on_every_device
def test_twelve_equal_rewards_are_exactly_zero(device: str) -> None:
    """(r - mean) / (std + 1e-8) on twelve rewards of 0.99 gives 0.909 in float32, out of rounding residue."""
    reward, adv = of_rewards([[0.99] * 12], device=device)
    assert torch.equal(adv.cpu(), torch.zeros(1, 12)) and torch.equal(reward.cpu(), torch.full((1, 12), 0.99))


@on_every_device
def test_rewards_that_are_equal_on_paper_tie(device: str) -> None:
    """The same weights added up in another order: up to 1.2e-7 apart, +-1 once over the deviation. Here all
    1,024 answers to a rubric of ten, in groups that earn the same."""
    weight = torch.tensor([[10, 10, 7, 7, 3, 9, 3, 9, 3, 7]])
    verdict = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 10)
    earned = (verdict * weight).sum(-1)
    groups = [verdict[earned == each] for each in earned.unique()]
    # One launch for all: short groups are filled up with rollouts on which the judge failed.
    alike = torch.nn.utils.rnn.pad_sequence(groups, batch_first=True, padding_value=NAN).to(device)
    for scale in advantage.SCALES:
        reward, adv = group_advantage(alike, (weight / 10).expand(len(groups), -1).to(device), scale=scale)
        assert not adv.any()
    differ = sum(len(row[: len(group)].unique()) > 1 for row, group in zip(reward, groups, strict=True))
    assert differ >= 10, "else this proves nothing"


@on_every_device
def test_a_tie_ends_just_above_one_in_a_million(device: str) -> None:
    _, adv = of_rewards([[0.0, 0.99e-6], [0.0, 1e-6], [0.0, 1.01e-6]], device=device)
    assert adv[:2].tolist() == [[0.0, 0.0]] * 2 and adv[2, 0] < 0 < adv[2, 1]


@on_every_device
@pytest.mark.parametrize("apart", [3e-6, 1e-5])
def test_a_deviation_near_one_in_a_million_is_damped(apart: float, device: str) -> None:
    """Two rewards deviate by half of what is between them; 1e-6 is added to that. Rewards that differ so
    little are noise: undamped, they would count as much as any."""
    for scale, right in (("group", apart / 2 / (apart / 2 + 1e-6)), ("none", apart / 2)):
        _, adv = of_rewards([[0.0, apart]], scale, device)
        assert adv[0].tolist() == pytest.approx([-right, right], rel=1e-5)


@on_every_device
def test_a_reward_that_could_not_be_had_leaves_its_group(device: str) -> None:
    """Scored as 0 it would drag the mean down and praise every other rollout."""
    reward, adv = of_rewards([[0.2, NAN, 0.6], [NAN, 0.5, NAN], [NAN, NAN, NAN]], device=device)
    assert reward.isnan().tolist() == [[False, True, False], [True, False, True], [True] * 3]
    right = torch.tensor([[-1.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3])
    torch.testing.assert_close(adv.cpu(), right, atol=1e-4, rtol=0)


@on_every_device
def test_items_of_weight_zero_do_not_exist_and_negative_ones_take_away(device: str) -> None:
    verdict = torch.tensor([[[1.0, NAN, 0.0], [1.0, 0.3, 1.0]]], device=device)
    reward, _ = group_advantage(verdict, torch.tensor([[2.0, 0.0, -1.0]], device=device), scale="none")
    torch.testing.assert_close(reward.cpu(), torch.tensor([[1.0, 0.5]]))
    optional = torch.tensor([[0.0, 0.3, 0.2]], device=device)  # weights that do not come to 1
    reward, _ = group_advantage(verdict.nan_to_num(0.5), optional, scale="none")
    torch.testing.assert_close(reward.cpu(), torch.tensor([[0.3, 0.58]]))


@on_every_device
def test_a_rubric_of_penalties_rewards_their_absence(device: str) -> None:
    """Divided by its positive weights, a perfect answer would earn 0 / 0."""
    verdict = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]], device=device)
    for one in (1.0, 0.1):
        weight = torch.tensor([[-3 * one, -one]], device=device)
        reward, _ = group_advantage(verdict, weight, scale="none")
        torch.testing.assert_close(reward.cpu(), torch.tensor([[1.0, 0.25, 0.0]]))


@on_every_device
def test_where_nothing_was_asked_there_is_no_reward(device: str) -> None:
    reward, adv = group_advantage(torch.rand(1, 4, 3, device=device), torch.zeros(1, 3, device=device))
    assert reward.isnan().all() and torch.equal(adv.cpu(), torch.zeros(1, 4))


VERDICTS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), min_size=3, max_size=3)
WEIGHTS = st.lists(st.sampled_from([-0.9, 0.0, 0.3, 1.0]), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(VERDICTS, min_size=2, max_size=9), weight=WEIGHTS, seed=st.integers(0, 99))
@example([[0.0] * 3] * 3 + [[0.0, 0.25, 0.25], [0.0, 0.5, 1.0]], [-0.9, -0.9, 0.3], 0)  # -0.5 and a bit less
def test_advantages_of_a_group(rows: list[list[float]], weight: list[float], seed: int) -> None:
    """They sum to 0, keep the rewards' order, deviate by 1 (or are all 0), and do not know their places."""
    verdict, w = torch.tensor([rows]), torch.tensor([weight])
    reward, adv = group_advantage(verdict, w)
    known = ~reward[0].isnan()
    assert (adv[0][~known] == 0).all()
    a, r = adv[0][known], reward[0][known]
    if known.sum() < 2 or r.max() - r.min() <= 1e-6:
        assert (adv == 0).all()
    else:
        std = r.std(correction=0)
        assert abs(a.sum()) < 1e-4 and abs(a.std(correction=0) - std / (std + advantage.EPS)) < 1e-4
        below, lower = r[:, None] < r[None, :], a[:, None] < a[None, :]
        assert not (below & (a[:, None] > a[None, :])).any()
        # Rewards that differ in their last bits alone may have one advantage: the mean takes those bits away.
        assert ((below & (r[None, :] - r[:, None] > 1e-6)) <= lower).all()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantage(verdict[:, order], w)[1], adv[:, order], atol=1e-6, rtol=1e-5)


def test_strided_narrow_and_whole_number_inputs_are_taken() -> None:
    verdict = torch.tensor([[[1, 0], [1, 1], [0, 0]]])
    weight = torch.tensor([[1, 3]])
    reward, _ = group_advantage(verdict, weight, scale="none")
    assert reward.tolist() == [[0.25, 1.0, 0.0]]
    for v, w in ((verdict.mT.contiguous().mT, weight), (verdict.bfloat16(), weight.double())):
        assert torch.equal(group_advantage(v, w, scale="none")[0], reward)


def test_what_does_not_fit_is_refused() -> None:
    for verdict, weight in (((2, 3, 4), (2, 3)), ((2, 3, 4), (3, 4)), ((3, 4), (3, 4)), ((2, 3, 4), (4,))):
        with pytest.raises(ValueError, match=r"expected verdict \(P, G, K\) and weight \(P, K\), got"):
            group_advantage(torch.zeros(verdict), torch.zeros(weight))
    with pytest.raises(ValueError, match="no advantage scale 'batch': expected one of group, none"):
        group_advantage(torch.zeros(2, 3, 4), torch.zeros(2, 4), scale="batch")
    for G in (0, 1025):
        with pytest.raises(ValueError, match=f"expected 1 to 1024 rollouts in a group, got {G}"):
            group_advantage(torch.zeros(1, G, 1), torch.ones(1, 1))


@on_every_device
def test_no_group_and_no_item_are_taken(device: str) -> None:
    for x in group_advantage(torch.zeros(0, 3, 4, device=device), torch.zeros(0, 4, device=device)):
        assert x.shape == (0, 3)
    reward, adv = group_advantage(torch.zeros(2, 3, 0, device=device), torch.zeros(2, 0, device=device))
    assert reward.isnan().all() and torch.equal(adv.cpu(), torch.zeros(2, 3))


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize(("P", "G", "K"), SHAPES)
def test_that_one_kernel_was_launched_and_read_each_verdict_once(
    P: int, G: int, K: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run under the interpreter would prove nothing."""
    launched = []
    real = advantage._launch
    monkeypatch.setattr(advantage, "_launch", lambda *x: launched.append(1) or real(*x))
    assert type(advantage._advantage).__name__ == "InterpretedFunction"
    with traffic() as moved:
        group_advantage(torch.rand(P, G, K), torch.ones(P, K))
    assert launched == [1]
    assert moved == [4 * (P * G * K + P * K + 2 * P * G)]
    assert {case.excess for case in report.cases() if case.name == "advantage"} == {1.0}


@only_interpreted
def test_verdicts_may_lie_beyond_two_to_the_31() -> None:
    """The last of 262,145 groups of 16 rollouts and 512 items, of whose 8 GB hardly a page is touched."""
    P, G, K = 2**18 + 1, 16, 512
    verdict, weight = untouched(P, G, K), torch.empty(P, K)
    verdict[-1] = torch.rand(G, K, generator=torch.Generator().manual_seed(0))
    weight[-1] = 1.0
    outputs = [torch.empty(P, G) for _ in range(2)]
    with programs_from(P - 1):
        advantage._advantage[(1,)](
            verdict, weight, *outputs, G, K, 1, advantage.TIE, advantage.EPS, *advantage.tile(G)
        )
    right = advantage.reference(verdict[-1:].double(), weight[-1:].double(), "group")
    for ours, truth, allowed in zip(outputs, right, (1e-6, 1e-4), strict=True):
        torch.testing.assert_close(ours[-1:].double(), truth, atol=allowed, rtol=0)


@needs_triton
def test_a_tile_has_all_of_a_group_and_as_many_verdicts_as_its_threads_take() -> None:
    for G, right in ((1, (16, 64)), (16, (16, 64)), (17, (32, 32)), (1000, (1024, 1)), (1024, (1024, 1))):
        assert advantage.tile(G) == right


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
