"""How well numbers agree: a judge's verdicts with labels, or with another judge's. Pairs with a NaN do
not count."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray

NAN = float("nan")


def both(a: ndarray, b: ndarray) -> tuple[ndarray, ndarray]:
    """The pairs of which neither is NaN, as two flat arrays."""
    known = ~(np.isnan(a) | np.isnan(b))
    return a[known], b[known]


def accuracy(verdict: ndarray, label: ndarray) -> float:
    """The share of pairs on the same side of a half."""
    verdict, label = both(verdict, label)
    return float(((verdict >= 0.5) == (label >= 0.5)).mean()) if len(label) else NAN


def kappa(verdict: ndarray, label: ndarray) -> float:
    """Cohen's kappa of the sides of a half: agreement beyond what these shares of yes give by chance.

    NaN where chance alone agrees always: both say the same of everything.
    """
    verdict, label = both(verdict, label)
    if not len(label):
        return NAN
    p, q = (verdict >= 0.5).mean(), (label >= 0.5).mean()
    chance = p * q + (1 - p) * (1 - q)
    return float((accuracy(verdict, label) - chance) / (1 - chance)) if chance < 1 else NAN


def auc(verdict: ndarray, label: ndarray) -> float:
    """The share of (met, unmet) pairs of items that verdicts put in order, ties counted half. NaN where all
    labels are alike."""
    verdict, label = both(verdict, label)
    met, unmet = verdict[label >= 0.5], np.sort(verdict[label < 0.5])
    if not len(met) or not len(unmet):
        return NAN
    sides = (np.searchsorted(unmet, met, side) for side in ("left", "right"))
    return float(sum(sides).mean() / 2 / len(unmet))


def brier(verdict: ndarray, label: ndarray) -> float:
    """The mean squared distance: 0 is best; a judge that always says the share of met items gets its
    variance."""
    verdict, label = both(verdict, label)
    return float(((verdict - label) ** 2).mean()) if len(label) else NAN


def correlation(a: ndarray, b: ndarray) -> float:
    """Pearson's. NaN where one side does not vary."""
    a, b = both(a, b)
    if len(a) < 2 or min(np.ptp(a), np.ptp(b)) < 1e-6:
        return NAN
    return float(np.corrcoef(a, b)[0, 1])


def resampled(
    clusters: Sequence, statistic: Callable[[ndarray], float], draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """A statistic of some rows and its 95 % interval: percentiles of a bootstrap that draws whole clusters.

    `clusters` names each row's cluster (a question: what is said of two answers to it is not independent);
    `statistic` takes the numbers of the rows. Draws in which it is NaN do not count. One cluster cannot vary:
    its interval is NaN.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    rows: list[list[int]] = [[] for _ in names]
    for row, name in enumerate(clusters):
        rows[names[name]].append(row)
    members = [np.array(each) for each in rows]
    random, found = np.random.default_rng(seed), []
    for _ in range(draws if len(members) > 1 else 0):
        drawn = random.integers(len(members), size=len(members))
        found.append(statistic(np.concatenate([members[i] for i in drawn])))
    found = [value for value in found if not math.isnan(value)]
    low, high = np.percentile(found, [2.5, 97.5]).tolist() if found else (NAN, NAN)
    return {"value": statistic(np.arange(len(clusters))), "low": low, "high": high}


def share(count: int, total: int) -> dict[str, float]:
    """A share of independent cases and its 95 % interval, Wilson's: it is honest where the count is 0 too."""
    if not total:
        return {"value": NAN, "low": NAN, "high": NAN}
    z, p = 1.96, count / total
    middle, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    return {
        "value": p,
        "low": max(0.0, (middle - spread) / scale),
        "high": min(1.0, (middle + spread) / scale),
    }
