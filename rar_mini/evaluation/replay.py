"""Another judge scores the rollouts of a finished run, or several do, by the run's own method, rubrics and
recipe.

If the two judges disagree, and more so towards the end of the run, then the policy has learnt the first
judge's weakness. The plainest sign is `rejected`: the share of the weight credited by the training judge that
the other one does not credit.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from pydantic import TypeAdapter, ValidationError

from rar_mini import grpo
from rar_mini.data import Example
from rar_mini.evaluation import agreement
from rar_mini.evaluation.agreement import accuracy, correlation, interval, mean, resampled
from rar_mini.evaluation.judged import Judged
from rar_mini.judging import wrappers
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric

Rows = Sequence[dict[str, Any]]  # N lines of rollouts.jsonl
Groups = Sequence[Sequence[int]]  # the numbers of each group's rows
CRITERIA = TypeAdapter(list[Criterion])


# --- what was answered --------------------------------------------------------------------------------------


def spaced(rows: Rows, most: int) -> list[dict[str, Any]]:
    """About so many rows, in whole steps that lie evenly from the first to the last; the last at least."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    if not steps:
        raise ValueError("the run has no rollouts yet: expected the lines of a step in rollouts.jsonl")
    count = max(1, min(len(steps), most * len(steps) // len(rows)))
    chosen = {steps[i] for i in np.linspace(len(steps) - 1, 0, count).round().astype(int)}
    return [row for row in rows if row["step"] in chosen]


def examples_of(run: Path, recipe: Recipe, rows: Rows) -> list[Example]:
    """The question of each row, with what was said before its answer, and the rubric by which that was
    judged.

    That is the data's rubric, or what the row has under `rubric` if the recipe makes rubrics. Raises
    ValueError if the run's data is not as it was, and if a rubric that the recipe made is missing.
    """
    config = recipe.config
    source = recipe.load(skip_bad=config.skip_bad_rows, skip_weightless=config.hygiene, notes=Counter())
    by_id = {example.id: example for example in source}
    makes_rubrics = type(recipe).rubrics is not Recipe.rubrics
    examples = []
    for row in rows:
        example = by_id.get(row["example_id"])
        same = example is not None and row["prompt"] == example.question
        if same and makes_rubrics:
            example = replace(example, rubric=_made_rubric(run, row))
        if same and config.method == "rar-explicit":
            judged = [(item["title"], item["weight"]) for item in row["verdicts"]]
            rubric = config.design.apply(example.rubric, example.id)
            same = judged == [(c.title, c.weight) for c in rubric.criteria]
        if not same:
            raise ValueError(
                f"{config.data or config.domain} has changed since the run: expected {row['example_id']!r} "
                f"with the question and the items of {run}/rollouts.jsonl, got "
                f"{'others' if example else 'no such row'}; bring the data back as they were"
            )
        said = row.get("turns")
        examples.append(example.after(said) if said else example)  # the same one: it is read once for all
    return examples


def _made_rubric(run: Path, row: dict[str, Any]) -> Rubric:
    """The rubric that a recipe made for the group of a row."""
    try:
        return Rubric(tuple(CRITERIA.validate_json(json.dumps(row["rubric"]), strict=True)))
    except (KeyError, ValidationError):
        raise ValueError(
            f"{run}/rollouts.jsonl, step {row['step']}, {row['example_id']!r}: expected under `rubric` the "
            f"criteria that the recipe made, got {row.get('rubric')!r:.80}"
        ) from None


# --- what the second judge says -----------------------------------------------------------------------------


def groups_of(rows: Rows, size: int) -> Groups:
    """The numbers of each group's rows, which have one step and question and follow one another. If a step
    drew a question twice in a row, `size` tells where the second group begins."""
    groups = []
    for _, places in groupby(range(len(rows)), lambda i: (rows[i]["step"], rows[i]["example_id"])):
        places = list(places)
        groups += [places[start : start + size] for start in range(0, len(places), size)]
    return groups


def refuse_uneven(file: Path, rows: Rows, groups: Groups) -> None:
    """Raise ValueError if the answers of a group were not judged by the same items, as a run judges them."""
    for group in groups:
        items = [[(item["title"], item["weight"]) for item in rows[i]["verdicts"]] for i in group]
        if other := next((i for i, own in zip(group, items, strict=True) if own != items[0]), None):
            row = rows[other]
            raise ValueError(
                f"{file}, step {row['step']}, {row['example_id']!r:.80}: expected verdicts on the same items "
                "in each answer of a group, got others; bring the file back as it was"
            )


def ask(judge: JudgeLike, recipe: Recipe, examples: Sequence[Example], rows: Rows, groups: Groups) -> Judged:
    """Have N rows judged group by group, as in training: a recipe's judge or reward may compare the responses
    of a group."""
    # One batch of all groups, and a second one if the last step is incomplete.
    batches = [list(alike) for _, alike in groupby(sorted(groups, key=len), len)]
    scored = []
    for batch in batches:
        responses = [[rows[i]["response"] for i in group] for group in batch]  # P x G
        posed = [[examples[i] for i in group] for group in batch]  # P x G
        scored.append(wrappers.ask(judge, posed, responses, progress="judging"))
    N, K = len(rows), max(scores.verdict.shape[-1] for scores in scored)
    verdict, weight = np.full((N, K), math.nan), np.zeros((N, K))
    reward, rating = np.empty(N), np.empty(N)
    for batch, scores in zip(batches, scored, strict=True):
        at, k = np.array(batch), scores.verdict.shape[-1]  # (P, G)
        verdict[at, :k] = scores.verdict.numpy()
        weight[at, :k] = scores.weight[:, None].numpy()
        rewards = recipe.reward(scores)
        if recipe.config.cut_answers == "penalise":
            rewards = grpo.penalise(
                rewards, torch.tensor([[not rows[i]["finished"] for i in g] for g in batch])
            )
        reward[at], rating[at] = rewards.numpy(), scores.rating.numpy()
    return Judged(verdict, weight, reward, rating)


# --- where they differ --------------------------------------------------------------------------------------


def report(rows: Rows, measures: dict[str, Callable[[ndarray], float]]) -> dict[str, Any]:
    """Print and return measures of N rows, as `compare` or `apart` makes them: of up to eight parts of the
    run, and of all of it with intervals."""
    steps, questions = np.array([row["step"] for row in rows]), [row["example_id"] for row in rows]
    print(f"\n{'steps':12}" + "".join(f"{name:>13}" for name in measures))
    result: dict[str, Any] = {"steps": []}
    for part in np.array_split(np.unique(steps), min(8, len(np.unique(steps)))):
        at = np.flatnonzero((steps >= part[0]) & (steps <= part[-1]))
        values = {name: measure(at) for name, measure in measures.items()}
        print(f"{part[0]:>4} to {part[-1]:<4}" + "".join(f"{value:>13.3f}" for value in values.values()))
        result["steps"].append({"from": int(part[0]), "to": int(part[-1])} | values)
    print()
    result["all"] = {name: resampled(questions, measure) for name, measure in measures.items()}
    for name, value in result["all"].items():
        print(f"{name:<12}{interval(value)}")
    return result


def apart(judged: Sequence[Judged]) -> dict[str, Callable[[ndarray], float]]:
    """How far each two of several judges' rewards of an answer are apart, as a function of the numbers of
    rows."""
    rewards = [each.reward for each in judged]
    gaps = np.stack([np.abs(a - b) for a, b in combinations(rewards, 2)])  # (pairs, N)
    return {"apart": lambda at: mean(gaps[:, at])}


def compare(rows: Rows, groups: Groups, judged: Judged) -> dict[str, Callable[[ndarray], float]]:
    """What is compared, by name: functions of the numbers of rows."""
    first = np.array([row["reward"] for row in rows], dtype=float)  # (N,), null becomes NaN
    # Only answers that both judges scored: means of different answers could not be compared.
    scored = ~(np.isnan(first) | np.isnan(judged.reward))
    first, second = np.where(scored, first, math.nan), np.where(scored, judged.reward, math.nan)
    verdict = np.full(judged.verdict.shape, math.nan)  # (N, K)
    for n, row in enumerate(rows):
        if len(row["verdicts"]) > verdict.shape[1]:
            raise ValueError(
                f"rollouts.jsonl, step {row['step']}, {row['example_id']!r:.80}: expected at most "
                f"{verdict.shape[1]} verdicts by this method, got {len(row['verdicts'])}"
            )
        verdict[n, : len(row["verdicts"])] = [item["verdict"] for item in row["verdicts"]]  # null becomes NaN
    group = np.empty(len(rows), dtype=int)
    for number, places in enumerate(groups):
        group[places] = number
    centred = [agreement.within(reward, group) for reward in (first, second)]
    return {
        "trained": lambda at: mean(first[at]),
        "second": lambda at: mean(second[at]),
        "correlation": lambda at: correlation(first[at], second[at]),
        "in groups": lambda at: correlation(centred[0][at], centred[1][at]),
        "same": lambda at: accuracy(verdict[at], judged.verdict[at]),
        "rejected": lambda at: agreement.rejected(verdict[at], judged.verdict[at], judged.weight[at]),
    }
