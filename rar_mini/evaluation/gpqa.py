r"""Multiple-choice questions, of GPQA or of any file: choices in a new order in every run, answers read from
\boxed{}, and the share of right ones.

A box is read if it can mean one choice only: its letter, its text, or its letter with its own text ("B",
"(b)", "\text{B}", "42 kJ", "B) 42 kJ"). A letter beside something else ("A or B", "A mixture", the letter of
one choice with the text of another) is not guessed at. The last box of an answer counts. A box that does not
end is not read, and thoughts before the answer are not searched.
"""

import csv
import itertools
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rar_mini import forms, prompts
from rar_mini.data import Example, Name
from rar_mini.evaluation import agreement, answers
from rar_mini.evaluation.answers import Answered
from rar_mini.evaluation.judged import verdicts
from rar_mini.files import lines
from rar_mini.forms import ABSENT, Form, Text, Unit
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.rubric import Criterion, Rubric
from rar_mini.turns import without_thoughts

SOURCE = (
    "GPQA is Idavidrein/gpqa on the Hub, gated: accept its terms there, then hf download Idavidrein/gpqa "
    "gpqa_diamond.csv --repo-type dataset --local-dir ."
)

COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

Stripped = Annotated[Text, AfterValidator(str.strip)]
REMEDY = "rows have GPQA's columns, or `question`, `choices` and `answer`"
Sheet = create_model("Sheet", __base__=Form, **dict.fromkeys(("Question", *COLUMNS), (Text, ABSENT)))
"""A row with GPQA's columns."""


class Question(Form):
    """A question with its choices."""

    id: Name = None
    question: Stripped = ABSENT
    choices: list[Stripped] = ABSENT
    right: Any = Field(alias="answer")

    @field_validator("choices")
    @classmethod
    def _few(cls, choices: list[str]) -> list[str]:
        if not 2 <= len(choices) <= 26:
            raise PydanticCustomError("choices", "2 to 26 choices")
        return choices

    @field_validator("right")
    @classmethod
    def _place(cls, answer: Any, info: ValidationInfo) -> int:
        """The number of the right choice, which may come as its letter or its text."""
        choices = info.data.get("choices", [])  # none if they were refused, which is said first
        answer = answer.strip() if isinstance(answer, str) else answer
        letters = zip(ascii_uppercase, choices, strict=False)
        named = [place for place, names in enumerate(letters) if answer in names]
        named = [answer] if type(answer) is int and 0 <= answer < len(choices) else named
        if len(named) != 1:
            raise PydanticCustomError("answer", "a number from 0, a letter, or the text of one choice alone")
        return named[0]


class Kept(answers.Kept):
    """A row of gpqa.jsonl."""

    question: str = ABSENT
    run: int = ABSENT
    read: str | None
    verified: Unit | None
    correct: bool | None

    @model_validator(mode="after")
    def _correct_or_failed(self) -> "Kept":
        if self.failed != (self.correct is None):
            raise PydanticCustomError("failed", "`correct` to be null if and only if the row has `failed`")
        return self


def read(path: Path) -> list[dict[str, Any]]:
    """The questions of a CSV file with GPQA's columns, or of a JSONL file with those or with `question`,
    `choices` (or `options`) and `answer`: the right choice's number from 0, letter, or text.

    Returns `id`, `question`, `choices` and `right`, a number, for each. Raises ValueError that names a row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else None
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"cannot read {path}: expected CSV in UTF-8, got {error}") from error
    rows = lines(path, finished=True) if rows is None else rows
    questions: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if "Question" in row:
            forms.read(Sheet, row, place, REMEDY)
            choices = [row[name] for name in COLUMNS]
            row = {"id": row.get("Record ID"), "question": row["Question"], "choices": choices, "answer": 0}
        question = forms.read(Question, {"choices": row.get("options")} | row, place, REMEDY)
        name = question.id or str(number)
        if name in questions:
            raise ValueError(f"{place}: {forms.sentence('id', 'one that no other row has', name)}")
        questions[name] = question.model_dump() | {"id": name}
    if not questions:
        raise ValueError(f"{path} has no question")
    return list(questions.values())


def permuted(questions: Sequence[dict[str, Any]], runs: int, seed: int) -> list[Example]:
    """Every question once in every run, each time with its choices in another order. The one criterion is
    the verifier's question."""
    return [
        posed(question, f"{question['id']}/{run}", order_of(question, run, seed), {"run": run})
        for run, question in itertools.product(range(1, runs + 1), questions)
    ]


def order_of(question: dict[str, Any], run: int, seed: int) -> list[int]:
    """The order of a question's choices in a run."""
    order = list(range(len(question["choices"])))
    random.Random(f"{seed}/{run}/{question['id']}").shuffle(order)
    return order


def posed(
    question: dict[str, Any],
    name: str,
    order: Sequence[int],
    facts: dict[str, Any],
    marks: Sequence[str] = ascii_uppercase,
    frame: str = prompts.CHOICES,
) -> Example:
    """A question with its choices in an order, behind these marks; its row also has some `facts`."""
    choices = [question["choices"][i] for i in order]
    listed = "\n".join(f"{mark}) {choice}" for mark, choice in zip(marks, choices, strict=False))
    word = "letter" if marks[0].isalpha() else "number"
    text = prompts.fill(frame, question=question["question"], choices=listed, mark=word)
    right = order.index(question["right"])
    says = prompts.fill(prompts.RIGHT_CHOICE, letter=marks[right], choice=choices[right])
    rubric = Rubric((Criterion("Right choice", says, "literal", 1.0),))
    row = {"question": question["id"]} | facts | {"choices": choices, "right": marks[right]}
    return Example(name, "held_out", ({"role": "user", "content": text},), choices[right], rubric, row)


_BOX = re.compile(r"\bboxed\s*\{")
_MARKUP = re.compile(r"\\(?:(?:text|math)(?:bf|it|rm|sf|tt)?|left|right)(?![a-zA-Z])|\\[,;:! ]|[\s{}$*~]")
_LEAD = re.compile(r"^(?:the)?(?:correct|right|final)?(?:answer|option|choice)(?:is)?[:=]?", re.I)
_MARK = re.compile(r"[(\[]?([A-Za-z]|\d{1,2})[)\]]?[.:,]?(.*)", re.S)


def choice_of(response: str, choices: Sequence[str], marks: Sequence[str] = ascii_uppercase) -> str | None:
    """The mark of the choice that the last box of a response means, a letter as a rule; None if there is no
    box, or it is not clear."""
    box = plain(_boxed(without_thoughts(response)))
    texts = dict(zip(marks, map(plain, choices), strict=False))
    meant = {mark for mark, text in texts.items() if box == text}
    match = _MARK.fullmatch(_LEAD.sub("", box))
    if match and (mark := match[1].upper()) in texts and match[2] in ("", texts[mark]):
        meant.add(mark)
    return meant.pop() if box and len(meant) == 1 else None


def _boxed(text: str) -> str:
    """The content of the last box, "" if there is none or it does not end."""
    text = text[max((match.end() for match in _BOX.finditer(text)), default=len(text)) :]
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.S):  # an escaped brace is a character
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return text[: match.start()]
    return ""


def plain(text: str) -> str:
    """A text without blanks, without TeX's and Markdown's markup, and without a full stop at its end."""
    return _MARKUP.sub("", text).rstrip(".")


def grade(verifier: JudgeLike | None, answered: Answered) -> list[dict[str, Any]]:
    """Read answers, and ask the verifier about those that cannot be read: what is kept of each besides its
    text."""
    rows = [row(example, text, None) for example, text in answered]
    if verifier is None:
        return rows
    unread = [
        (e, None if row["read"] or not (text or "").strip() else text)  # a blank answer chooses nothing
        for (e, text), row in zip(answered, rows, strict=True)
    ]
    for n, verdict in enumerate(verdicts(verifier, unread, "verifying")):
        if verdict:
            rows[n] = row(*answered[n], verdict[0])
    return rows


def row(example: Example, response: str | None, verified: float | None) -> dict[str, Any]:
    """What is kept of an answer besides its text. If its box cannot be read, `verified` decides: the
    verifier's verdict, or NaN if it failed. None means that no verifier was asked, and then the answer is
    wrong."""
    mark = choice_of(response or "", example.row["choices"], example.row.get("marks", ascii_uppercase))
    failed = response is None or (verified is not None and math.isnan(verified))
    right = mark == example.row["right"] if mark or verified is None else verified >= 0.5
    graded = {"read": mark, "verified": verified, "correct": right}
    return example.row | (dict.fromkeys(graded) if failed else graded) | {"failed": failed}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over runs of the share of right answers. What failed counts for nothing.

    `low` and `high` are its 95 % interval over runs, which says how much the order of the choices matters;
    `over_questions` is the interval over questions, which says how much other questions would. `unread` is
    the number of answers whose box could not be read.
    """
    scored = [row for row in rows if not row["failed"]]
    correct, run = (np.array([row[name] for row in scored], dtype=float) for name in ("correct", "run"))
    over_runs = agreement.student([correct[run == each].mean() for each in np.unique(run)])
    over_questions = agreement.resampled(
        [row["question"] for row in scored], lambda at: agreement.mean(correct[at])
    )
    return {
        "score": over_runs["value"],
        "low": over_runs["low"],
        "high": over_runs["high"],
        "over_questions": [over_questions["low"], over_questions["high"]],
        "rows": len(rows),
        "questions": len({row["question"] for row in rows}),
        "runs": len({row["run"] for row in rows}),
        "unread": sum(row["read"] is None and row["response"] is not None for row in rows),
        "verified": sum(row["verified"] is not None for row in rows),
        "failed": len(rows) - len(scored),
        "cut": sum(row["finished"] is False for row in rows),
    }


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary, with a printed line."""
    result = summary(rows)
    names = ("questions", "runs", "unread", "verified", "failed", "cut")
    counts = ", ".join(f"{result[name]} {name}" for name in names)
    print(f"right     {agreement.interval(result | {'value': result['score']})}: {counts}")
    return result
