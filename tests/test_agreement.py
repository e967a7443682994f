"""Measures of agreement against brute force; intervals against published and exact ones."""

import itertools
import math

import numpy as np
import pytest

from rar_mini.evaluation import agreement

NAN = float("nan")

# What numpy warns of, a mean of nothing, is printed between a report's lines.
pytestmark = pytest.mark.filterwarnings("error")


def test_measures_are_what_their_names_say() -> None:
    """On both sides some stand on the very half, which is a yes: a second judge's verdicts are labels too."""
    random = np.random.default_rng(0)
    verdict, label = random.integers(0, 11, 60) / 10, random.choice([0.0, 0.4, 0.5, 1.0], 60)
    assert agreement.brier(verdict, label) == pytest.approx(np.mean((verdict - label) ** 2))
    said, right = verdict >= 0.5, label >= 0.5
    observed = np.mean(said == right)
    chance = sum(np.mean(said == side) * np.mean(right == side) for side in (0, 1))
    assert agreement.accuracy(verdict, label) == pytest.approx(observed)
    assert agreement.kappa(verdict, label) == pytest.approx((observed - chance) / (1 - chance))
    pairs = list(itertools.product(verdict[right], verdict[~right]))
    won = sum((a > b) + 0.5 * (a == b) for a, b in pairs)
    assert agreement.auc(verdict, label) == pytest.approx(won / len(pairs))


def test_kappa_as_in_a_textbook() -> None:
    """50 grants, two readers: 20 times both say yes, 15 times both say no. Expected by chance 0.5, so 0.4."""
    table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert agreement.kappa(*np.array(table, dtype=float).T) == pytest.approx(0.4)


def test_what_failed_counts_for_nothing() -> None:
    verdict, label = np.array([1.0, NAN, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, NAN])
    for measure in (agreement.accuracy, agreement.kappa, agreement.auc):
        assert measure(verdict, label) == 1.0
    assert agreement.brier(verdict, label) == 0.0
    for measure in (agreement.accuracy, agreement.kappa, agreement.auc, agreement.brier):
        assert math.isnan(measure(np.array([NAN]), np.array([1.0])))
    assert agreement.mean(np.array([1.0, NAN, 4.0])) == 2.5 and math.isnan(agreement.mean(np.array([NAN])))


def test_a_judge_that_says_one_thing_of_everything_has_no_kappa_and_an_even_auc() -> None:
    yes, label = np.ones(4), np.array([1.0, 1.0, 1.0, 0.0])
    assert agreement.accuracy(yes, label) == 0.75
    assert agreement.kappa(yes, label) == 0.0 and agreement.auc(yes, label) == 0.5
    for alike in (np.ones(4), np.zeros(4)):
        assert math.isnan(agreement.kappa(alike, alike)) and math.isnan(agreement.auc(label, alike))
    assert math.isnan(agreement.correlation(yes, label)) and math.isnan(agreement.correlation(label, yes))


def test_a_correlation_needs_two_pairs_and_numbers_that_vary() -> None:
    a, b = np.array([1.0, 2.0, 4.0, NAN]), np.array([1.0, 3.0, 2.0, 9.0])
    # Deviations of -4/3, -1/3, 5/3 and -1, 1, 0.
    assert agreement.correlation(a, b) == pytest.approx(1 / math.sqrt(14 / 3 * 2))
    assert agreement.correlation(a[:2], b[:2]) == pytest.approx(1.0)
    assert math.isnan(agreement.correlation(a[:1], b[:1]))
    assert math.isnan(agreement.correlation(a[3:], b[3:])), "no pair at all"
    for spread, varies in ((0.99e-6, False), (1e-6, True), (1.01e-6, True)):
        near = np.array([0.0, spread, 0.0])
        for found in (agreement.correlation(near, b[:3]), agreement.correlation(b[:3], near)):
            assert math.isnan(found) != varies


def test_rewards_within_groups_are_less_their_groups_mean() -> None:
    reward, group = np.array([1.0, 5.0, 3.0, NAN, 6.0]), np.array(["a", "b", "a", "a", "b"])
    np.testing.assert_array_equal(agreement.within(reward, group), [-1.0, -0.5, 1.0, NAN, 0.5])
    np.testing.assert_array_equal(reward, [1.0, 5.0, 3.0, NAN, 6.0])


def test_what_is_rejected_is_credit_for_avoided_penalties_too() -> None:
    """Items of 5, 3, 9 and -0.5 points; the last is credited where it does not hold. Then one on the very
    half, which the second does not share, and two on which a judge failed."""
    first = np.array([[1.0, 1.0, 0.0, 0.0, 0.5, NAN, 1.0]])
    second = np.array([[1.0, 0.0, 1.0, 1.0, 0.4, 0.0, NAN]])
    weight = np.array([[5.0, 3.0, 9.0, -0.5, 1.0, 7.0, 7.0]])
    assert agreement.rejected(first, second, weight) == pytest.approx((3 + 0.5 + 1) / (5 + 3 + 0.5 + 1))
    assert agreement.rejected(first[:, :1], np.array([[0.5]]), weight[:, :1]) == 0.0
    assert math.isnan(agreement.rejected(np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1))))


ENDS = ("value", "low", "high")


# --- intervals ----------------------------------------------------------------------------------------------


def test_a_bootstraps_interval_leaves_out_a_fortieth_at_each_end() -> None:
    """Of draws that give 1, 2, ... 1001, in any order, 95 % lie from 26 to 976."""
    draws = iter(np.random.default_rng(0).permutation(1001) + 1)
    found = agreement.resampled("ab", lambda at: float(next(draws, 7)), draws=1001)
    assert found == {"value": 7.0, "low": pytest.approx(26), "high": pytest.approx(976)}


def test_whole_clusters_are_drawn() -> None:
    """Ten rows of each of four questions are four independent things, not forty."""
    clusters = [name for _ in range(10) for name in "abcd"]
    values = np.array([0.0, 0.0, 1.0, 1.0] * 10)
    found = agreement.resampled(clusters, lambda at: float(values[at].mean()), draws=4000)
    alone = agreement.resampled(range(40), lambda at: float(values[at].mean()), draws=4000)
    assert found["value"] == alone["value"] == 0.5
    # A mean of four is 0 or 1 once in 16 times each, and of forty it deviates by 0.079.
    assert found["low"] == 0.0 and found["high"] == 1.0
    assert alone["low"] == pytest.approx(0.35, abs=0.03) and alone["high"] == pytest.approx(0.65, abs=0.03)


def test_an_interval_repeats_itself_by_its_thousand_draws() -> None:
    drawn: list[int] = []

    def statistic(at: np.ndarray) -> float:
        drawn.append(len(at))
        return float(at.mean())

    found = agreement.resampled(range(9), statistic)
    assert drawn == [9] * 1001, "and once for the value"
    assert found == agreement.resampled(range(9), statistic, seed=0)
    assert found != agreement.resampled(range(9), statistic, seed=1)


def test_draws_without_the_statistic_do_not_count_and_one_cluster_has_no_interval() -> None:
    """Where a draw holds no row of the first cluster the statistic is not defined."""
    missing = agreement.resampled("ab", lambda at: 7.0 if 0 in at else NAN, draws=50)
    assert missing == {"value": 7.0, "low": 7.0, "high": 7.0}
    for clusters, value in (("aaa", 7.0), ("ab", NAN)):
        alone = agreement.resampled(clusters, lambda at, value=value: value, draws=50)
        np.testing.assert_equal(alone, dict(zip(ENDS, (value, NAN, NAN), strict=True)))


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3: the score interval, not corrected.
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("count", "total", "low", "high"), NEWCOMBE)
def test_shares_have_wilsons_interval(count: int, total: int, low: float, high: float) -> None:
    found, other = agreement.share(count, total), agreement.share(total - count, total)
    assert found["value"] == count / total
    assert found["low"] == pytest.approx(low, abs=6e-5) and found["high"] == pytest.approx(high, abs=6e-5)
    assert other["low"] == pytest.approx(1 - high, abs=6e-5)
    assert other["high"] == pytest.approx(1 - low, abs=6e-5)


def test_a_share_lies_between_none_and_all() -> None:
    """By rounding, every third would end a little below 0 or above 1. Nothing of nothing has no share."""
    for total in range(1, 99):
        none, everything = agreement.share(0, total), agreement.share(total, total)
        assert none["low"] == pytest.approx(0, abs=1e-12) and none["low"] >= 0.0
        assert everything["high"] == pytest.approx(1, abs=1e-12) and everything["high"] <= 1.0
    np.testing.assert_equal(agreement.share(0, 0), dict.fromkeys(ENDS, NAN))


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_a_mean_of_a_few_has_students_interval(n: int, t: float) -> None:
    """The quantiles of any table."""
    values = np.random.default_rng(0).random(n)
    found = agreement.student(values)
    assert found["value"] == pytest.approx(values.mean())
    half = t * np.std(values, ddof=1) / math.sqrt(n)
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-4)
    assert found["value"] - found["low"] == pytest.approx(half, rel=1e-4)


def test_one_value_has_a_mean_and_no_interval() -> None:
    one, none = agreement.student([3.0]), agreement.student([])
    np.testing.assert_equal((one, none), [dict(zip(ENDS, (x, NAN, NAN), strict=True)) for x in (3.0, NAN)])


def test_a_win_is_by_more_than_one_in_a_million() -> None:
    """Rewards that are equal on paper differ by up to 1.2e-7 by the order of their sums: no one has won."""
    found = agreement.wins(np.array([0.5, 1.1e-6, 1e-6, 1.2e-7, 0.0, -1e-6, -1.1e-6, NAN]))
    assert found == {"accuracy": agreement.share(2, 7), "won": 2, "lost": 1, "tied": 4, "failed": 1}
    assert math.isnan(agreement.wins(np.array([]))["accuracy"]["value"])


def test_a_number_is_written_with_its_interval_if_it_has_one() -> None:
    found = {"value": 0.31251, "low": 0.18, "high": 0.4864}
    assert agreement.interval(found) == "0.313 [0.180, 0.486]"
    assert agreement.interval(found | {"low": NAN, "high": NAN}) == "0.313"
    assert agreement.interval(found | {"value": NAN}) == "-"


def test_a_half_is_met_and_all_of_one_kind_has_no_balance() -> None:
    """A label of a half counts as yes, as a verdict of a half does."""
    verdict = np.array([1.0, 0.0, 0.0, 1.0])
    assert agreement.balanced(verdict, np.array([0.5, 0.5, 0.0, 0.0])) == 0.5
    assert agreement.balanced(np.array([0.5, 0.0]), np.array([0.5, 0.0])) == 1.0
    for label in (np.ones(4), np.zeros(4)):
        assert np.isnan(agreement.balanced(verdict, label))


def test_an_item_without_weight_is_credited_by_nobody() -> None:
    first, second = np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])
    assert agreement.rejected(first, second, np.array([1.0, -1.0, 2.0])) == 0.75
    assert np.isnan(agreement.rejected(first[:1], second[:1], np.zeros(1)))
