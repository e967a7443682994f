"""Whether a policy's choice holds if the question is posed in another way: `evaluate.py gpqa --variants`.

After SAGE (arXiv 2605.12022), of which only the abstract was read. Every question is asked in its plain form
(the choices in a random order, behind A, B, C, ...) and in six others that ask the same:

    shuffled-1, shuffled-2          the choices in another order
    relabelled-1, relabelled-2      other marks: 1, 2, 3, ... and P, Q, R, ...
    paraphrased-1, paraphrased-2    other words around question and choices

    accuracy    the share of right answers over all forms, and for each form
    worst       the share of questions that are answered rightly in every form
    flipped     the share of variants in which another choice is meant than in the plain form

Ours: the sentences, the number of variants (of two choices there is one other order), and what counts as a
flip. Choices are compared by their texts, not by their marks. If the choice of an answer is not known (no box
could be read, and no verifier called it right), the pair is left out of `flipped`. In accuracy and `worst`
such an answer counts as in gpqa.py. A question of which a row failed, or a form
was too long, is left out of `worst`, unless it was answered wrongly in another form. If a mark is also the
text of a choice, a box with it could mean either: then the question is not asked with these marks.
"""

from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy import ndarray
from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rar_mini import prompts
from rar_mini.data import Example
from rar_mini.evaluation import gpqa
from rar_mini.evaluation.agreement import interval, mean_over
from rar_mini.forms import ABSENT, Text

PLAIN = "plain"
SHUFFLES = 2
MARKS = ([str(n) for n in range(1, 27)], [*ascii_uppercase[15:], *ascii_uppercase[:15]])
"""Marks that no choice has in the plain form of a question with at most 15 choices."""


class Kept(gpqa.Kept):
    """A row of gpqa-variants.jsonl."""

    variant: Text = ABSENT
    choices: list[str] = ABSENT
    marks: list[str] = ABSENT
    right: str = ABSENT

    @field_validator("right")
    @classmethod
    def _a_mark(cls, right: str, info: ValidationInfo) -> str:
        if right not in info.data.get("marks", [right])[: len(info.data.get("choices", [right]))]:
            raise PydanticCustomError("right", "the mark of a choice")
        return right


def variants(questions: Sequence[dict[str, Any]], seed: int) -> list[Example]:
    """Every question in its plain form and in its variants. The plain form is that of gpqa's first run."""
    return [example for question in questions for example in _forms(question, seed)]


def _forms(question: dict[str, Any], seed: int) -> list[Example]:
    order, *others = _orders(question, seed)
    texts = {gpqa.plain(text).upper() for text in question["choices"]}
    forms: dict[str, dict[str, Any]] = {PLAIN: {}}
    forms |= {f"shuffled-{n}": {"order": other} for n, other in enumerate(others, 1)}
    named = enumerate((marks[: len(order)] for marks in MARKS), 1)
    forms |= {f"relabelled-{n}": {"marks": marks} for n, marks in named if texts.isdisjoint(marks)}
    forms |= {f"paraphrased-{n}": {"frame": frame} for n, frame in enumerate(prompts.PARAPHRASES, 1)}
    return [_posed(question, name, **({"order": order} | changes)) for name, changes in forms.items()]


def _orders(question: dict[str, Any], seed: int) -> list[list[int]]:
    """Three orders of a question's choices, the plain form's first; of two choices there are two."""
    orders: list[list[int]] = []
    for run in (1, *range(1001, 2001)):  # the runs of gpqa end at 1,000
        order = gpqa.order_of(question, run, seed)
        orders += [order] if order not in orders else []
        if len(orders) == 1 + SHUFFLES:
            break
    return orders


def _posed(
    question: dict[str, Any],
    variant: str,
    order: Sequence[int],
    marks: Sequence[str] = ascii_uppercase,
    frame: str = prompts.CHOICES,
) -> Example:
    facts = {"run": 1, "variant": variant, "marks": list(marks[: len(order)])}
    return gpqa.posed(question, f"{question['id']}/{variant}", order, facts, marks, frame)


def chosen(row: dict[str, Any]) -> str | None:
    """The text of the choice that an answer means; None if that is not known."""
    mark = row["read"] or (row["right"] if row["correct"] else None)
    return row["choices"][row["marks"].index(mark)] if mark in row["marks"] else None


def flips(rows: Sequence[dict[str, Any]]) -> ndarray:
    """Whether each answer means another choice than the plain form's answer to the same question, (N,); NaN
    for plain forms and where either choice is not known."""
    first = {row["question"]: chosen(row) for row in rows if row["variant"] == PLAIN}
    pairs = [(first.get(row["question"]), None if row["variant"] == PLAIN else chosen(row)) for row in rows]
    return np.array([np.nan if None in pair else pair[0] != pair[1] for pair in pairs], dtype=float)


def worst(rows: Sequence[dict[str, Any]], skipped: Sequence[Example] = ()) -> dict[str, float]:
    """Whether each question is answered rightly in every form; NaN if a row failed or a form was skipped, and
    no other is wrong."""
    correct: dict[str, list[bool | None]] = {}
    for row in [*rows, *(example.row | {"correct": None} for example in skipped)]:
        correct.setdefault(row["question"], []).append(row["correct"])
    return {name: 0.0 if False in each else np.nan if None in each else 1.0 for name, each in correct.items()}


def report(rows: Sequence[dict[str, Any]], skipped: Sequence[Example] = ()) -> dict[str, Any]:
    """Print and return accuracy, worst and flipped, with 95 % intervals over questions. The prompts of the
    forms that were `skipped` were too long."""
    questions, names = [row["question"] for row in rows], dict.fromkeys(row["variant"] for row in rows)
    correct = np.array([np.nan if row["failed"] else row["correct"] for row in rows], dtype=float)
    flipped, variant = flips(rows), np.array([row["variant"] for row in rows])
    result: dict[str, Any] = {
        "accuracy": mean_over(questions, correct),
        "worst": mean_over(list(every := worst(rows, skipped)), np.array(list(every.values()))),
        "flipped": mean_over(questions, flipped),
        "questions": len(set(questions)),
        "rows": len(rows),
        "unread": sum(row["read"] is None and row["response"] is not None for row in rows),
        "verified": sum(row["verified"] is not None for row in rows),
        "failed": int(np.isnan(correct).sum()),
        "cut": sum(row["finished"] is False for row in rows),
        "variants": {},
    }
    print(f"{'form':<16}{'accuracy':<24}flipped")
    for name in names:
        at = np.flatnonzero(variant == name)
        own = [questions[i] for i in at]
        part = {"accuracy": mean_over(own, correct[at]), "flipped": mean_over(own, flipped[at])}
        result["variants"][name] = part
        print(f"{name:<16}{interval(part['accuracy']):<24}{interval(part['flipped'])}")
    print(f"{'all':<16}{interval(result['accuracy']):<24}{interval(result['flipped'])}")
    known = sum(not np.isnan(right) for right in every.values())
    print(f"worst     {interval(result['worst'])} of {known} questions are right in every form")
    if counts := Counter(example.row["variant"] for example in skipped):
        named = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"skipped   {named}: too long; their questions count in worst only if another form is wrong")
    return result
