"""How a probe is fitted: labels, a logistic regression on the numbers of a reading, and how good it is.

- Met and unmet items count alike in all, however rare one of them is: a verdict of a half is even odds under
  even shares. So verdicts are lower than the shares of met items (`calibration` says how far off).
- The strength of the penalty is chosen by cross-validation over questions. The cross-validated scores choose
  it again within each of their folds: no question has a say in what is fitted for it.
- Beside AUC on all verdicts stands that on flawed answers only, which meet some items and miss others: there
  a judge has to read the item. The labels of a run do not say which answers are flawed.
- `spread` is the deviation of the rewards of the answers to one question. A policy learns from nothing else:
  a probe may be accurate and have none.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from rar_mini import data, files, recipe
from rar_mini.checkpoint import Run, records
from rar_mini.data import Example
from rar_mini.evaluation import agreement, labelled, replay
from rar_mini.evaluation.agreement import in_words, interval, resampled, wins
from rar_mini.evaluation.labelled import Labelled
from rar_mini.judging.asked import Asked
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.keyword import Keyword
from rar_mini.kernels.advantage import TIE
from rar_mini.progress import progress_bar
from rar_mini.prompts import PREDEFINED
from rar_mini.rubric import Rubric
from rar_mini.turns import without_thoughts

STRENGTHS = np.logspace(-3, 1, 5)
FOLDS, INNER = 5, 4
NAN = float("nan")
Scores = dict[str, dict[str, float]]


# --- labels -------------------------------------------------------------------------------------------------


def answers(source: str) -> list[Labelled]:
    """The labelled answers of a file or a bundled domain, or those that a run's judge gave verdicts on."""
    path = Path(source)
    if (path / "config.json").is_file():
        return of_run(path)
    if not path.exists() and source in data.DOMAINS:
        return labelled.read(None, source)
    return labelled.read(path, "all")


def of_run(run: Path) -> list[Labelled]:
    """A run's rollouts, with the verdicts of its judge as labels."""
    opened = Run.reopen(run)
    config = opened.settings()
    if config.method not in ("rar-explicit", "rar-predefined") or config.supervised:
        raise ValueError(f"{run} has no verdicts on items (--method {config.method}): expected rar-explicit")
    rows = list(records(run, "rollouts.jsonl"))
    examples = replay.examples_of(run, recipe.make(config.recipe, config), rows)
    items, posed = [], {}
    for row, example in zip(rows, examples, strict=True):
        if id(example) not in posed:
            own = config.method == "rar-explicit"
            rubric = config.design.apply(example.rubric, example.id) if own else Rubric(PREDEFINED)
            posed[id(example)] = replace(example, rubric=rubric)
        labels = [NAN if item["verdict"] is None else float(item["verdict"]) for item in row["verdicts"]]
        items.append(Labelled(posed[id(example)], row["response"], "", labels))
    return items


def described(items: Sequence[Labelled], split: str) -> dict[str, Any]:
    """What a probe's file keeps of the labels that it was fitted on. Items of weight 0 and failed verdicts of
    a run are none."""
    fits = [item for item in items if split in ("all", item.example.split)]
    rows = [[item.example.id, item.response, [repr(label) for label in item.labels]] for item in fits]
    weights = [[criterion.weight for criterion in item.example.rubric.criteria] for item in fits]
    count = sum(
        weight != 0 and label == label
        for item, own in zip(fits, weights, strict=True)
        for weight, label in zip(own, item.labels, strict=True)
    )
    questions = len({name_of(item.example) for item in fits})
    return {"digest": files.digest(rows), "verdicts": count, "questions": questions}


def name_of(example: Example) -> str:
    """The name of a question, also among several files: rows without an id are called alike in each."""
    return f"{example.id} {files.digest(example.question)}"


@dataclass(frozen=True)
class Table:
    """N labelled verdicts on M answers."""

    x: ndarray  # (N, F) the numbers of the reading
    label: ndarray  # (N,) from 0 to 1
    sign: ndarray  # (N,) -1 if a verdict is one less what the head says
    weight: ndarray  # (N,) of the item in its rubric
    question: ndarray  # (N,) its name, as name_of
    split: ndarray  # (N,) that of the question
    answer: ndarray  # (N,) from 0 to M - 1
    keyword: ndarray  # (N,) what the keyword judge says
    flawed: ndarray  # (N,) whether the answer is labelled as flawed
    whole: ndarray  # (N,) whether all items of the answer that weigh something have a label

    @classmethod
    def of(
        cls, numbers: Callable[[Sequence[Asked]], list[Tensor | Failure]], items: Sequence[Labelled]
    ) -> "Table":
        """Read all labelled answers, those to one question together. What cannot be read is left out."""
        groups: dict[int, list[Labelled]] = {}
        for item in items:
            groups.setdefault(id(item.example), []).append(item)
        rows, x, keyword, notes, answer = [], [], Keyword(), Counter(), 0
        for group in progress_bar(groups.values(), desc="reading"):
            asked = [
                Asked(item.example, without_thoughts(item.response), item.example.rubric.criteria)
                for item in group
            ]
            for item, each, read in zip(group, asked, numbers(asked), strict=True):
                if isinstance(read, Failure):
                    notes[read.words] += 1
                    continue
                (said,) = keyword.ask([each])
                weighs = [label for label, c in zip(item.labels, each.criteria, strict=True) if c.weight]
                whole = not np.isnan(weighs).any()
                for k, criterion in enumerate(each.criteria):
                    if criterion.weight and item.labels[k] == item.labels[k]:
                        sign = -1.0 if criterion.opposed else 1.0
                        flawed = item.quality in labelled.FLAWED
                        about = name_of(item.example), item.example.split, answer
                        rows.append((item.labels[k], sign, criterion.weight, *about, said[k], flawed, whole))
                        x.append(read[k].numpy())
                answer += 1
        for words, count in notes.items():
            print(f"left out  {count} answers: {words}")
        if not x:
            raise ValueError(
                "no labelled verdict could be read: expected answers that fit the model's window"
            )
        return cls(np.array(x), *map(np.array, zip(*rows, strict=True)))

    def rows(self, at: ndarray) -> "Table":
        """Those verdicts alone."""
        return Table(**{name: column[at] for name, column in vars(self).items()})

    def rewards(self, verdict: ndarray) -> ndarray:
        """(M,): the share of its rubric's weight that an answer earns; NaN for one that lacks a verdict."""
        earned = np.bincount(self.answer, self.weight * verdict)
        full = np.bincount(self.answer, self.weight.clip(0))
        lacks = np.bincount(self.answer, ~self.whole)
        return np.divide(earned, full, out=np.full_like(earned, NAN), where=(full > 0) & (lacks == 0))


# --- the regression -----------------------------------------------------------------------------------------


def logistic(t: Table, strength: float) -> ndarray:
    """The weights of a head and its bias behind them, (F + 1,): the least mean log-loss, met and unmet items
    counting alike, and a penalty on weights of standardised numbers."""
    middle, scale = t.x.mean(0), t.x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = t.sign[:, None] * np.column_stack([(t.x - middle) / scale, np.ones(len(t.x))])  # (N, F + 1)
    met, unmet = (share / max(2 * share.sum(), 1e-9) for share in (t.label, 1 - t.label))

    def loss(w: ndarray) -> tuple[float, ndarray]:
        z, penalised = x @ w, np.append(w[:-1], 0.0)
        value = met @ np.logaddexp(0, -z) + unmet @ np.logaddexp(0, z) + strength / 2 * penalised @ penalised
        return value, x.T @ (unmet * expit(z) - met * expit(-z)) + strength * penalised

    w = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    own = w[:-1] / scale
    return np.append(own, w[-1] - own @ middle)


def verdicts(w: ndarray, t: Table) -> ndarray:
    """The verdicts of a head, (N,)."""
    return expit(t.sign * (t.x @ w[:-1] + w[-1]))


def folds(t: Table, count: int) -> ndarray:
    """(N,): the fold of each verdict's question."""
    names, place = np.unique(t.question, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % count)[place]


def crossed(t: Table, count: int, fitted: Callable[[Table], ndarray]) -> ndarray:
    """The verdicts on each question, (N,), by what is fitted on the questions of the other folds."""
    fold, verdict = folds(t, count), np.empty(len(t.label))
    for own in range(count):
        there = fold == own
        if there.any():
            verdict[there] = verdicts(fitted(t.rows(~there)), t.rows(there))
    return verdict


def chosen(t: Table) -> float:
    """The strength whose cross-validated verdicts have the least balanced log-loss."""

    def loss(strength: float) -> float:
        p = crossed(t, INNER, lambda other: logistic(other, strength)).clip(1e-9, 1 - 1e-9)
        met, unmet = t.label / max(t.label.sum(), 1e-9), (1 - t.label) / max((1 - t.label).sum(), 1e-9)
        return float(-met @ np.log(p) - unmet @ np.log(1 - p))

    return float(min(STRENGTHS, key=loss))


def at_edge(strength: float) -> str:
    """What to know about the least or greatest strength of those that were tried; "" for any other."""
    edges = {STRENGTHS.min(): ("least", "weaker"), STRENGTHS.max(): ("greatest", "stronger")}
    if strength not in edges:
        return ""
    which, further = edges[strength]
    return f", the {which} of {len(STRENGTHS)} that were tried: a {further} penalty may fit better"


@dataclass(frozen=True)
class Fitted:
    """A head, and the strength of the penalty that it was fitted with."""

    weight: ndarray  # (F + 1,)
    strength: float


def fit(t: Table, split: str) -> tuple[Fitted, dict[str, Scores]]:
    """Fit a head on the questions of a split, or on all, and say how good it is there, cross-validated, and
    on the held-out ones that it was not fitted on. Beside it stands what the keyword judge says."""
    own = np.ones(len(t.label), bool) if split == "all" else t.split == split
    fits, held = t.rows(own), t.rows(~own & (t.split == "held_out"))
    count = len(np.unique(fits.question))
    if count < FOLDS or len(np.unique(fits.label >= 0.5)) < 2:
        raise ValueError(
            f"expected labels on met and unmet items of {FOLDS} questions or more of the split {split}, got "
            f"{len(fits.label)} labels on {count} questions; label more, or pass --split all"
        )
    print(f"labels    {len(fits.label)} verdicts on {count} questions, {fits.label.mean():.0%} met")
    print(f"\n{'':16}{'AUC':<22}{'AUC, flawed only':<22}" + "".join(f"{name:<12}" for name in MEASURES))
    p = crossed(fits, FOLDS, lambda other: logistic(other, chosen(other)))
    scores = {"cross-validated": measured("cross-validated", fits, p)}
    strength = chosen(fits)
    w = logistic(fits, strength)
    if len(held.label):
        scores["held out"] = measured("held out", held, verdicts(w, held))
    print(f"\nstrength  {strength:.3g}{at_edge(strength)}")
    return Fitted(w, strength), scores


# --- how good it is -----------------------------------------------------------------------------------------


def calibration(verdict: ndarray, label: ndarray) -> float:
    """How far the verdicts of ten equal parts, from the lowest to the highest, lie from the share that is
    met."""
    parts = [part for part in np.array_split(np.argsort(verdict, kind="stable"), 10) if len(part)]
    off = [len(part) * abs(verdict[part].mean() - label[part].mean()) for part in parts]
    return float(sum(off) / len(label)) if len(label) else NAN


MEASURES = {name: getattr(agreement, name) for name in ("balanced", "kappa", "brier")}
MEASURES |= {"calibration": calibration}


def measured(name: str, t: Table, verdict: ndarray) -> Scores:
    """A head's verdicts (N,) against their labels, and the keyword judge's beside them, printed as a
    table."""
    scores = {}
    for who, said in ((name, verdict), ("keyword", t.keyword)):
        of = {"auc": auc(t, said), "auc, flawed only": auc(t, np.where(t.flawed, said, NAN))}
        line = "".join(f"{interval(each):<22}" for each in of.values())
        of |= {key: {"value": measure(said, t.label)} for key, measure in MEASURES.items()}
        print(f"{who:<16}{line}" + "".join(f"{of[key]['value']:<12.3f}" for key in MEASURES))
        scores |= {key if who == name else f"{key} by keyword": each for key, each in of.items()}

    def more(at: ndarray) -> float:
        return agreement.auc(verdict[at], t.label[at]) - agreement.auc(t.keyword[at], t.label[at])

    scores["auc more"] = resampled(t.question, more)
    gaps, spread = in_groups(t, verdict)
    print(f"{'':16}AUC less that of keyword {interval(scores['auc more'])}, on {len(t.label)} verdicts")
    print(f"{'':16}pairs: the better answer wins {in_words(wins(gaps))}")
    print(f"{'':16}spread of rewards within a question {spread[0]:.4f}, of the labels' {spread[1]:.4f}")
    return scores | {"pairs": wins(gaps)["accuracy"], "spread": {"value": spread[0], "of labels": spread[1]}}


def auc(t: Table, verdict: ndarray) -> dict[str, float]:
    """The AUC of verdicts (N,) with its interval, over questions."""
    return resampled(t.question, lambda at: agreement.auc(verdict[at], t.label[at]))


def in_groups(t: Table, verdict: ndarray) -> tuple[ndarray, tuple[float, float]]:
    """Of two answers to one question of which the labels say that one is better, by how much its reward is
    higher; and the mean deviation of the rewards of a question's answers, by verdicts and by labels."""
    given, true = t.rewards(verdict), t.rewards(t.label)
    gaps, spreads = [], []
    for name in np.unique(t.question):
        own = np.unique(t.answer[t.question == name])
        own = own[~np.isnan(true[own])]
        if len(own):
            spreads.append((given[own].std(), true[own].std()))
        pairs = ((a, b) if true[a] > true[b] else (b, a) for a, b in combinations(own, 2))
        gaps += [given[a] - given[b] for a, b in pairs if true[a] - true[b] > TIE]
    return np.array(gaps), tuple(np.mean(spreads, 0).tolist()) if spreads else (NAN, NAN)
