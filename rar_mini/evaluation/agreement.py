"""How well numbers agree: a judge's verdicts with labels, or with another judge's. Also the intervals.

Pairs with a NaN do not count. scipy.stats has Student's and Wilson's intervals. What is still written here:

- The bootstrap. `scipy.stats.bootstrap` needs two clusters at least, and one draw in which the statistic is
  NaN makes its whole interval NaN.
- The AUC. `scipy.stats.mannwhitneyu` also computes a p-value, which takes 20 times as long, and the bootstrap
  asks 1,000 times.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from rar_mini.kernels.advantage import TIE

NAN = float("nan")


# --- measures -----------------------------------------------------------------------------------------------


def mean(values: ndarray) -> float:
    """The mean of the values that are not NaN."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else NAN


def both(a: ndarray, b: ndarray) -> tuple[ndarray, ndarray]:
    """The pairs in which neither is NaN, as two flat arrays."""
    valid = ~(np.isnan(a) | np.isnan(b))
    return a[valid], b[valid]


def accuracy(verdict: ndarray, label: ndarray) -> float:
    """The share of pairs on the same side of 0.5. A half counts as yes."""
    verdict, label = both(verdict, label)
    return float(((verdict >= 0.5) == (label >= 0.5)).mean()) if len(label) else NAN


def balanced(verdict: ndarray, label: ndarray) -> float:
    """The mean of the accuracy on met and that on unmet items: a half for a judge that always says the same,
    however many items are met. NaN if all labels are alike."""
    verdict, label = both(verdict, label)
    met = label >= 0.5
    if met.all() or not met.any():
        return NAN
    return (accuracy(verdict[met], label[met]) + accuracy(verdict[~met], label[~met])) / 2


def kappa(verdict: ndarray, label: ndarray) -> float:
    """Cohen's kappa: how much more often both are on the same side of 0.5 than their shares of yes give by
    chance.

    NaN if chance alone always agrees, because both say the same about everything.
    """
    verdict, label = both(verdict, label)
    if not len(label):
        return NAN
    p, q = (verdict >= 0.5).mean(), (label >= 0.5).mean()
    chance = p * q + (1 - p) * (1 - q)
    return float((accuracy(verdict, label) - chance) / (1 - chance)) if chance < 1 else NAN


def auc(verdict: ndarray, label: ndarray) -> float:
    """The share of pairs of a met and an unmet item in which the met one has the higher verdict. A tie counts
    half. NaN if all labels are alike."""
    verdict, label = both(verdict, label)
    met, unmet = verdict[label >= 0.5], np.sort(verdict[label < 0.5])
    if not len(met) or not len(unmet):
        return NAN
    below = np.searchsorted(unmet, met, "left") + np.searchsorted(unmet, met, "right")
    return float(below.mean() / 2 / len(unmet))


def brier(verdict: ndarray, label: ndarray) -> float:
    """The mean squared difference. 0 is best. A judge that always gives the share of met items gets the
    variance of the labels."""
    verdict, label = both(verdict, label)
    return float(((verdict - label) ** 2).mean()) if len(label) else NAN


def correlation(a: ndarray, b: ndarray) -> float:
    """Pearson's r. NaN if one side does not vary."""
    a, b = both(a, b)
    if len(a) < 2 or min(np.ptp(a), np.ptp(b)) < 1e-6:
        return NAN
    return float(np.corrcoef(a, b)[0, 1])


def within(reward: ndarray, group: ndarray) -> ndarray:
    """Rewards (N,) minus the mean reward of their group (N,)."""
    centred = reward.copy()
    for name in np.unique(group):
        centred[group == name] -= mean(reward[group == name])
    return centred


def rejected(first: ndarray, second: ndarray, weight: ndarray) -> float:
    """The share of the weight credited by the first judge that the second judge does not credit.

    An item of positive weight is credited if it is met, one of negative weight if it does not hold.
    """
    valid = ~(np.isnan(first) | np.isnan(second))
    one, other = ((verdict >= 0.5) == (weight > 0) for verdict in (first, second))
    credited = np.where(valid & one, np.abs(weight), 0.0)
    return float(credited[~other].sum() / credited.sum()) if credited.any() else NAN


# --- intervals ----------------------------------------------------------------------------------------------


def resampled(
    clusters: Sequence, statistic: Callable[[ndarray], float], draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """A statistic of some rows and its 95 % interval: percentiles of a bootstrap that draws whole clusters.

    `clusters` has the name of each row's cluster, such as its question, because two answers to one question
    are not independent. `statistic` takes the numbers of rows. Draws in which it is NaN do not count. One
    cluster alone cannot vary: its interval is NaN.
    """
    rows: dict[Any, list[int]] = {}
    for row, name in enumerate(clusters):
        rows.setdefault(name, []).append(row)
    members = [np.array(each) for each in rows.values()]
    random, values = np.random.default_rng(seed), []
    for _ in range(draws if len(members) > 1 else 0):
        numbers = random.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[i] for i in numbers])))
    values = [value for value in values if not math.isnan(value)]
    low, high = np.percentile(values, [2.5, 97.5]).tolist() if values else (NAN, NAN)
    return {"value": statistic(np.arange(len(clusters))), "low": low, "high": high}


def mean_over(clusters: Sequence, values: ndarray) -> dict[str, float]:
    """The mean of the values that are not NaN, with its interval over clusters."""
    return resampled(clusters, lambda at: mean(values[at]))


def student(values: Sequence[float]) -> dict[str, float]:
    """The mean of a few independent values and its 95 % interval by Student's t, NaN for one value.

    A bootstrap of ten values gives an interval that is a fifth narrower and holds the truth nine times in
    ten.
    """
    from scipy import stats

    n, middle = len(values), float(np.mean(values)) if len(values) else NAN
    if n < 2:
        return {"value": middle, "low": NAN, "high": NAN}
    # Not stats.t.interval, which gives NaN for equal values.
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"value": middle, "low": middle - half, "high": middle + half}


def share(count: int, total: int) -> dict[str, float]:
    """A share of independent cases and its 95 % interval by Wilson, which also holds for a count of 0."""
    from scipy import stats

    if not total:
        return {"value": NAN, "low": NAN, "high": NAN}
    low, high = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return {"value": count / total, "low": float(low), "high": float(high)}


def wins(gaps: ndarray) -> dict[str, Any]:
    """How often the better one of two answers is ahead; `gaps` (N,) says by how much each is.

    Returns the share that wins, with its interval, and how many won, lost, tied and failed. A tie is not a
    win. What failed (NaN) is left out of the share.
    """
    counts = {
        "won": int((gaps > TIE).sum()),
        "lost": int((gaps < -TIE).sum()),
        "tied": int((np.abs(gaps) <= TIE).sum()),
        "failed": int(np.isnan(gaps).sum()),
    }
    return {"accuracy": share(counts["won"], len(gaps) - counts["failed"])} | counts


# --- in words -----------------------------------------------------------------------------------------------


def interval(result: dict[str, float]) -> str:
    """A number for a table, with its interval if it has one."""
    if math.isnan(result["value"]):
        return "-"
    form = "{value:.3f}" if math.isnan(result["low"]) else "{value:.3f} [{low:.3f}, {high:.3f}]"
    return form.format_map(result)


def in_words(result: dict[str, Any]) -> str:
    """The result of `wins` for a table."""
    counts = ", ".join(f"{result[name]} {name}" for name in ("won", "lost", "tied", "failed"))
    return f"{interval(result['accuracy'])}: {counts}"
