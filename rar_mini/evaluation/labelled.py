"""Answers whose truth is known, for measuring judges: labelled responses, and pairs of a preferred and a
worsened answer. They come from the bundled sample, from a file of data rows, or from public sets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rar_mini import data, forms
from rar_mini.data import BadRow, Example
from rar_mini.evaluation import public
from rar_mini.forms import ABSENT, Form, Response, T
from rar_mini.rubric import Rubric

Quality = Literal["good", "flawed", "one_wrong", "two_wrong", "empty"]
"""What an answer is as a whole: `flawed` has one or two items wrong, and does not say how many; `empty` is
fluent and says nothing that the rubric asks for."""
QUALITIES: tuple[Quality, ...] = get_args(Quality)
GOOD, EMPTY = QUALITIES[0], QUALITIES[-1]
FLAWED = frozenset(QUALITIES) - {GOOD, EMPTY}
"""Answers that meet some items and miss others: on these alone, a judge has to look at the item."""


@dataclass(frozen=True)
class Labelled:
    """An answer whose truth is known."""

    example: Example
    response: str
    quality: Quality
    labels: list[float]  # K, 1 if the response is good on the item, or if a literal item holds


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, one of them better."""

    example: Example
    preferred: str
    worsened: str
    unaided: Rubric | None = None  # a rubric of the question, written without its reference answer


class Answer(Form):
    """A labelled response. It is checked with the number of its rubric's items as context."""

    response: Response = ABSENT
    quality: Quality = ABSENT
    labels: list[Literal[0, 1]] = ABSENT

    @field_validator("labels")
    @classmethod
    def _of_each_item(cls, labels: list[int], info: ValidationInfo) -> list[int]:
        if len(labels) != info.context:
            raise PydanticCustomError("labels", "0 or 1 for each of {items} items", {"items": info.context})
        return labels


class Answers(Form):
    """A row that may have labelled responses."""

    labelled_responses: list[Answer] | None = None


class Compared(Form):
    """A row with a pair."""

    preferred: Response = ABSENT
    worsened: Response = ABSENT


def read(file: Path | public.Source | None, domain: str, skip_bad: bool = False) -> list[Labelled]:
    """The labelled responses of a file, or of the bundled sample. Raises ValueError if one is incomplete."""
    lacks = "no `labelled_responses`: see docs/data.md for their form"
    return _all(file, _responses, domain, skip_bad, lacks)


def pairs(file: Path | None, domain: str, skip_bad: bool = False) -> list[Pair]:
    """The pairs of a file: a row's `preferred` and `worsened` answer, else each of its good labelled
    responses with each of another quality. Raises ValueError if one is incomplete."""
    lacks = (
        "no pairs: expected rows with `preferred` and `worsened`, or with good and other `labelled_responses`"
    )
    return _all(file, _pairs, domain, skip_bad, lacks)


def parted(file: Path | None, domain: str, skip_bad: bool = False) -> list[Pair]:
    """The pairs of answers that one item parts, which is the pair's whole rubric: of a row's labelled
    responses, each that is good on the item with each that is not; of its `preferred` and `worsened`, by each
    item. Items with choices and of weight 0 are left out. Raises ValueError if there is no pair."""
    lacks = (
        "no pairs that an item parts: expected rows with `preferred` and `worsened`, or with "
        "`labelled_responses` whose labels differ"
    )
    return _all(file, _parted, domain, skip_bad, lacks)


def _all(
    file: Path | public.Source | None,
    make: Callable[[Example], list[T]],
    domain: str,
    skip_bad: bool,
    lacks: str,
) -> list[T]:
    """What `make` returns for all rows, in one list. Raises ValueError with what the file lacks if it is
    empty."""
    made = [item for row in rows(file, make, domain, skip_bad) for item in row]
    if not made:
        raise ValueError(f"{file or domain} has {lacks}")
    return made


def rows(
    file: Path | public.Source | None,
    make: Callable[[Example], T],
    domain: str = "all",
    skip_bad: bool = False,
) -> list[T]:
    """What `make` returns for each row of a file, or of the bundled sample. Prints what was odd about them.

    If `make` raises BadRow or pydantic's error, the row is refused, or with `skip_bad` left out and counted.
    """
    notes: Counter[str] = Counter()
    if file:
        examples = public.read(file, skip_bad, notes)
    else:
        domains = data.DOMAINS if domain == "all" else (domain,)
        examples = [example for name in domains for example in data.sample(name)]
    made = []
    for example in examples:
        try:
            made.append(make(example))
        except (BadRow, ValidationError) as error:
            if not skip_bad:
                hint = "mend the row, or pass --skip-bad-rows to go on without it"
                raise BadRow(f"{file}, {example.id[:80]!r}: {forms.fault(error)}; {hint}") from None
            notes["rows left out as bad"] += 1
    for note, count in notes.items():
        print(f"  {note}: {count}")
    return made


def _responses(example: Example) -> list[Labelled]:
    """The labelled responses of one row."""
    example = unchecked(example)
    answers = Answers.model_validate(example.row, context=len(example.rubric)).labelled_responses or []
    return [Labelled(example, a.response, a.quality, [float(x) for x in a.labels]) for a in answers]


def unchecked(example: Example) -> Example:
    """A question without its checks: all of its items measure the judge."""
    items = (replace(item, check=None) for item in example.rubric.criteria)
    return replace(example, rubric=Rubric(tuple(items)))


def _pairs(example: Example) -> list[Pair]:
    """The pairs of one row."""
    example = unchecked(example)
    row, name = example.row, "rubric_without_reference"
    if row.get("preferred") is None:
        items = _responses(example)
        good, others = ([i.response for i in items if (i.quality == GOOD) == yes] for yes in (True, False))
        return [Pair(example, better, worse) for better in good for worse in others]
    two = Compared.model_validate(row)
    unaided = data.categories(row, name, Counter()) if row.get(name) is not None else None
    return [Pair(example, two.preferred, two.worsened, unaided)]


def _parted(example: Example) -> list[Pair]:
    """The pairs of one row that an item parts."""
    example = unchecked(example)
    row, found = example.row, []
    two = Compared.model_validate(row) if row.get("preferred") is not None else None
    answers = [] if two else _responses(example)
    for k, item in enumerate(example.rubric.criteria):
        alone = replace(example, rubric=Rubric((item,)))
        good, bad = ([a.response for a in answers if bool(a.labels[k]) == yes] for yes in (True, False))
        if two:
            good, bad = [two.preferred], [two.worsened]
        if item.weight and not item.choices:
            found += [Pair(alone, better, worse) for better in good for worse in bad]
    return found
