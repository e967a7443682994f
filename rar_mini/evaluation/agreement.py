"""How well numbers agree: a judge's verdicts with labels, or with another judge's. Pairs with a NaN do
not count."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from rar_mini.kernels.advantage import TIE

NAN = float("nan")


def mean(values: ndarray) -> float:
    """The mean of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else NAN


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


def within(reward: ndarray, group: ndarray) -> ndarray:
    """Rewards (N,) less their group's mean."""
    centred = reward.copy()
    for name in np.unique(group):
        centred[group == name] -= mean(reward[group == name])
    return centred


def rejected(first: ndarray, second: ndarray, weight: ndarray) -> float:
    """Of the weight that the first judge credited, the share on items that the second does not credit.

    An item of positive weight is credited where it is met, one of negative points where it does not hold.
    """
    known = ~(np.isnan(first) | np.isnan(second))
    one, other = ((verdict >= 0.5) == (weight > 0) for verdict in (first, second))
    credited = np.where(known & one, np.abs(weight), 0.0)
    return float(credited[~other].sum() / credited.sum()) if credited.any() else NAN


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


def student(values: Sequence[float]) -> dict[str, float]:
    """The mean of a few independent values and its 95 % interval, Student's: of ten, a bootstrap's is a fifth
    narrower and holds the truth nine times in ten. The interval of one value is NaN."""
    n, middle = len(values), float(np.mean(values)) if len(values) else NAN
    if n < 2:
        return {"value": middle, "low": NAN, "high": NAN}
    # With t = sqrt(n - 1) tan(angle), the density of the angle is cos(angle) ** (n - 2).
    angle = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    mass = np.cumsum(np.cos(angle) ** (n - 2))
    spread = math.sqrt(n - 1) * math.tan(np.interp(0.975, mass / mass[-1], angle)) * np.std(values, ddof=1)
    return {"value": middle, "low": middle - spread / math.sqrt(n), "high": middle + spread / math.sqrt(n)}


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


def wins(gaps: ndarray) -> dict[str, Any]:
    """How often the better one of two is ahead, by how far (N,) each is: the share that wins strictly, with
    its interval, and how many won, lost, tied and failed. A tie is not won; what failed (NaN) has no share
    in it."""
    counts = {
        "won": int((gaps > TIE).sum()),
        "lost": int((gaps < -TIE).sum()),
        "tied": int((np.abs(gaps) <= TIE).sum()),
        "failed": int(np.isnan(gaps).sum()),
    }
    return {"accuracy": share(counts["won"], len(gaps) - counts["failed"])} | counts


def interval(found: dict[str, float]) -> str:
    """A number with its interval, where it has one, for a table."""
    if math.isnan(found["value"]):
        return "-"
    form = "{value:.3f}" if math.isnan(found["low"]) else "{value:.3f} [{low:.3f}, {high:.3f}]"
    return form.format_map(found)
