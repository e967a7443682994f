"""The bundled labelled answers: four to a question, alike in length and manner; only their sense tells.

A judge that counts words, or that reads the answer or the criterion alone, has to be a coin on the items of
the wrong answers: what is fitted on these labels cannot learn anything but whether the answer meets the item.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from numpy import ndarray

from rar_mini import data
from rar_mini.evaluation.agreement import auc
from rar_mini.judging import rules
from rar_mini.rubric import Criterion

WRONG = {"one_wrong": 1, "two_wrong": 2}
KINDS = ["empty", "good", *WRONG]


@dataclass(frozen=True)
class Answer:
    question: int  # its number among the labelled questions
    split: str
    quality: str
    response: str
    labels: ndarray  # (K,)
    criteria: tuple[Criterion, ...]

    @property
    def words(self) -> int:
        return len(self.response.split())


@lru_cache
def answers(domain: str) -> list[Answer]:
    examples = [example for example in data.sample(domain) if "labelled_responses" in example.row]
    return [
        Answer(n, e.split, a["quality"], a["response"], np.array(a["labels"]), e.rubric.criteria)
        for n, e in enumerate(examples)
        for a in e.row["labelled_responses"]
    ]


def kinds(domain: str) -> set[str]:
    return {answer.quality for answer in answers(domain)}


DOMAINS = [domain for domain in data.DOMAINS if kinds(domain) == set(KINDS)]


def test_medicine_has_the_four_kinds() -> None:
    assert "medical" in DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
def test_there_are_enough_verdicts_to_fit_and_to_measure(domain: str) -> None:
    verdicts = Counter()
    for answer in answers(domain):
        verdicts[answer.split] += len(answer.labels)
    assert verdicts["train"] >= 800 and verdicts["held_out"] >= 250


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_question_has_one_answer_of_each_kind_in_any_order(domain: str) -> None:
    orders = [[a.quality for a in group] for group in by_question(domain)]
    assert all(sorted(order) == KINDS for order in orders)
    for place in range(4):
        assert max(Counter(order[place] for order in orders).values()) <= len(orders) / 2


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_answers_to_a_question_are_equally_long(domain: str) -> None:
    for group in by_question(domain):
        words = [answer.words for answer in group]
        assert max(words) - min(words) <= 0.08 * np.mean(words), (group[0].question, words)


@pytest.mark.parametrize("domain", DOMAINS)
def test_as_many_items_fail_as_the_kind_says(domain: str) -> None:
    for group in by_question(domain):
        failed = {answer.quality: set(np.flatnonzero(answer.labels == 0)) for answer in group}
        assert {kind: len(failed[kind]) for kind in WRONG} == WRONG
        assert not failed["one_wrong"] & failed["two_wrong"]
        assert len(failed["good"]) <= 1
        met = [
            item for item, label in zip(group[0].criteria, labels_of(group, "empty"), strict=True) if label
        ]
        assert all(item.category == "pitfall" for item in met)


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_of_checked_items_are_the_verdicts_of_their_rules(domain: str) -> None:
    for answer in answers(domain):
        for item, label in zip(answer.criteria, answer.labels, strict=True):
            if item.check:
                assert rules.verdict(item, answer.response) == label, (item.title, answer.response)


@pytest.mark.parametrize("domain", DOMAINS)
def test_items_of_each_category_and_place_fail_in_proportion(domain: str) -> None:
    """Half to one and a half times as often as the average item."""
    missed: dict[tuple[str, object], list[int]] = {}
    for answer in wrong(domain):
        K = len(answer.labels)
        for k, (item, label) in enumerate(zip(answer.criteria, answer.labels, strict=True)):
            for part in (("category", item.category), ("third", 3 * k // K), ("checked", bool(item.check))):
                missed.setdefault(part, []).append(1 - label)
    average = np.mean(np.concatenate([answer.labels == 0 for answer in wrong(domain)]))
    for part, values in missed.items():
        assert 0.5 * average <= np.mean(values) <= 1.5 * average, part


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_judge_that_counts_words_is_a_coin(domain: str) -> None:
    words = np.array([answer.words for answer in answers(domain)], float)
    question = np.array([answer.question for answer in answers(domain)])
    beside = words - (np.bincount(question, words) / np.bincount(question))[question]  # the others' length
    assert 0.45 <= on_wrong_items(domain, words) <= 0.55
    assert 0.45 <= on_wrong_items(domain, beside) <= 0.55


@pytest.mark.parametrize("fitted_on", [set(WRONG), set(KINDS)], ids=["wrong answers", "all answers"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_judge_that_reads_no_criterion_is_a_coin(domain: str, fitted_on: set[str]) -> None:
    share = np.array([answer.labels.mean() for answer in answers(domain)])
    assert 0.45 <= on_wrong_items(domain, heard(domain, share, fitted_on)) <= 0.55


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_good_answer_does_not_sound_better_than_a_wrong_one(domain: str) -> None:
    """A coin's interval: 48 good answers against 96."""
    good = np.array([answer.quality == "good" for answer in answers(domain)], float)
    asked = np.array([answer.quality != "empty" for answer in answers(domain)])
    score = heard(domain, good, {"good", *WRONG})
    assert 0.38 <= auc(score[asked], good[asked]) <= 0.62


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_judge_that_reads_no_answer_is_a_coin(domain: str) -> None:
    items = [
        (
            group[0].question,
            item.description,
            1 - np.mean([a.labels[k] == 0 for a in group if a.quality in WRONG]),
        )
        for group in by_question(domain)
        for k, item in enumerate(group[0].criteria)
    ]
    question, texts, met = zip(*items, strict=True)
    score = guessed(bags(texts), np.array(met), np.array(question), np.ones(len(items), bool))
    assert 0.45 <= auc(np.repeat(score, 2), np.concatenate([[m == 1, True] for m in met])) <= 0.55


def heard(domain: str, target: ndarray, fitted_on: set[str]) -> ndarray:
    """A guess at the target of each answer (A,) from its words alone."""
    words = bags(tuple(answer.response for answer in answers(domain)))
    question = np.array([answer.question for answer in answers(domain)])
    return guessed(words, target, question, np.array([a.quality in fitted_on for a in answers(domain)]))


def guessed(words: ndarray, target: ndarray, question: ndarray, chosen: ndarray) -> ndarray:
    """Ridge regression of the target (N,) on words (N, V), fitted on the chosen rows of other questions."""
    folds, penalty = 4, 1.0
    fold, product, guess = question % folds, words @ words.T, np.empty(len(words))
    for one in range(folds):
        fit, asked = np.flatnonzero((fold != one) & chosen), np.flatnonzero(fold == one)
        matrix = product[np.ix_(fit, fit)] + penalty * np.eye(len(fit))
        level = target[fit].mean()
        guess[asked] = level + product[np.ix_(asked, fit)] @ np.linalg.solve(matrix, target[fit] - level)
    return guess


@lru_cache
def bags(texts: tuple[str, ...]) -> ndarray:
    """Words and stops of each text as a unit vector (N, V): log counts times inverse document frequency."""
    words = [re.findall(r"\w+|[.,;:?()]", text.lower()) for text in texts]
    vocabulary = {word: place for place, word in enumerate(sorted({word for text in words for word in text}))}
    counts = np.zeros((len(texts), len(vocabulary)))
    for row, text in zip(counts, words, strict=True):
        np.add.at(row, [vocabulary[word] for word in text], 1)
    spread = (counts > 0).sum(axis=0)
    table = (np.log1p(counts) * np.log(len(texts) / spread))[:, spread >= 3]
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def on_wrong_items(domain: str, score: ndarray) -> float:
    """The AUC of a score for each answer (A,) on the items of the wrong answers."""
    pairs = [
        (s, y) for s, a in zip(score, answers(domain), strict=True) if a.quality in WRONG for y in a.labels
    ]
    return auc(*np.array(pairs).T)


def wrong(domain: str) -> list[Answer]:
    return [answer for answer in answers(domain) if answer.quality in WRONG]


def by_question(domain: str) -> list[list[Answer]]:
    groups: dict[int, list[Answer]] = {}
    for answer in answers(domain):
        groups.setdefault(answer.question, []).append(answer)
    return list(groups.values())


def labels_of(group: list[Answer], quality: str) -> ndarray:
    return next(answer.labels for answer in group if answer.quality == quality)
