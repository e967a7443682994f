"""Answers whose truth is known, for measuring judges: labelled responses, and pairs of a preferred and a
worsened answer. They come from the bundled sample or from a file of data rows."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rar_mini import data
from rar_mini.data import Example
from rar_mini.rubric import Rubric


@dataclass(frozen=True)
class Labelled:
    """An answer whose truth is known."""

    example: Example
    response: str
    quality: str  # "good" or "flawed"
    labels: list[float]  # K, 1 if the response is good on the item, or if a literal item holds


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, one of them better."""

    example: Example
    preferred: str
    worsened: str
    unaided: Rubric | None  # a rubric of the question that was written without its reference answer


def read(file: Path | None, domain: str, skip_bad: bool = False) -> list[Labelled]:
    """The labelled responses of a file, or of the bundled sample. Raises ValueError if one is incomplete."""
    items = [item for example in examples(file, domain, skip_bad) for item in _responses(example, file)]
    if not items:
        raise ValueError(f"{file or domain} has no `labelled_responses`: see docs/data.md for their form")
    return items


def pairs(file: Path | None, domain: str, skip_bad: bool = False) -> list[Pair]:
    """The pairs of a file: a row's `preferred` and `worsened` answer, else each of its good labelled
    responses with each flawed one. Raises ValueError if one is incomplete."""
    pairs = []
    for example in examples(file, domain, skip_bad):
        row = example.row
        if row.get("preferred") is None:
            items = _responses(example, file)
            good, flawed = ([i.response for i in items if i.quality == q] for q in ("good", "flawed"))
            pairs += [Pair(example, better, worse, None) for better in good for worse in flawed]
            continue
        better, worse, name = row["preferred"], row.get("worsened"), "rubric_without_reference"
        if not isinstance(better, str) or not isinstance(worse, str):
            raise ValueError(
                f"{file}, {example.id!r}: expected texts in `preferred` and `worsened`, got {better!r:.40} "
                f"and {worse!r:.40}"
            )
        try:
            unaided = data.categories(row, name, Counter()) if row.get(name) is not None else None
        except data.BadRow as error:
            raise ValueError(f"{file}, {example.id!r}: {error}") from None
        pairs.append(Pair(example, better, worse, unaided))
    if not pairs:
        raise ValueError(
            f"{file or domain} has no pairs: expected rows with `preferred` and `worsened`, or with good and "
            "flawed `labelled_responses`"
        )
    return pairs


def examples(file: Path | None, domain: str = "all", skip_bad: bool = False) -> list[Example]:
    """The rows of a file, or of the bundled sample. Prints what was odd about them."""
    if not file:
        return [row for name in (data.DOMAINS if domain == "all" else (domain,)) for row in data.sample(name)]
    notes: Counter[str] = Counter()
    rows = data.read(file, skip_bad=skip_bad, notes=notes)
    for note, count in notes.items():
        print(f"  {note}: {count}")
    return rows


def _responses(example: Example, file: Path | None) -> list[Labelled]:
    """The labelled responses of one row."""
    rows, responses = example.row.get("labelled_responses") or [], []
    where = f"{file or 'the sample'}, {example.id!r}, labelled_responses"
    if not isinstance(rows, list):
        raise ValueError(f"{where}: expected a list, got {rows!r:.40}")
    for place, row in enumerate(rows):
        try:
            response, quality, labels = row["response"], row["quality"], row["labels"]
            fits = isinstance(response, str) and quality in ("good", "flawed")
            fits = fits and len(labels) == len(example.rubric) and all(x in (0, 1) for x in labels)
        except (TypeError, KeyError):
            fits = False
        if not fits:
            raise ValueError(
                f"{where}[{place}]: expected a `response`, a `quality` (good or flawed) and `labels` (0 or 1 "
                f"for each of {len(example.rubric)} items), got {row!r:.80}"
            )
        responses.append(Labelled(example, response, quality, [float(x) for x in labels]))
    return responses
