"""Examples, and where they come from: the bundled sample, or a JSONL file in one of two forms.

A row in rar-mini's form has `question`, `reference_answer` and `rubric` (title, description, weight); a row
in HealthBench's form has `prompt` (chat messages) and `rubrics` (criterion, points). Every error names the
file, the line, the field, what was expected and what came.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mini import rubric as rubrics
from rar_mini.rubric import Rubric

SAMPLE = Path(__file__).parent / "sample_data"
DOMAINS = tuple(sorted(path.stem for path in SAMPLE.glob("*.jsonl")))


@dataclass(frozen=True)
class Example:
    """One row of data. `messages` is the conversation to answer; a plain question is one user message."""

    id: str
    split: str  # "train" or "held_out"
    messages: tuple[dict[str, str], ...]
    reference: str  # the reference answer, "" where the row has none
    rubric: Rubric
    row: dict[str, Any] = field(repr=False, compare=False)  # the row as it was read

    @property
    def question(self) -> str:
        """The conversation as one text, for a judge to read."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


class BadRow(ValueError):
    """A row that cannot be used: file and line, what was expected, what came."""


def sample(domain: str) -> list[Example]:
    """Read the bundled questions of one domain, written for demonstration."""
    if domain not in DOMAINS:
        raise ValueError(
            f"no bundled domain {domain!r}: expected one of {', '.join(DOMAINS)}, or --data PATH.jsonl"
        )
    return read(SAMPLE / f"{domain}.jsonl")


def read(
    path: Path, *, unique: bool = True, skip_bad: bool = False, notes: Counter[str] | None = None
) -> list[Example]:
    """Read a JSONL file. Bad rows raise `BadRow`, or with `skip_bad` are left out and counted in `notes`.

    Rows without an `id` get one from their line, rows without a `split` are training data. With `unique`, an
    id that comes twice is refused: rollouts and random streams are named by it.
    """
    notes = Counter() if notes is None else notes
    try:
        lines = path.read_text(encoding="utf-8").split(
            "\n"
        )  # splitlines() would also cut at U+2028 in a text
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: expected a JSONL file in UTF-8, got {error}") from error
    examples: list[Example] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = _example(line, number, notes)
            if unique and example.id in lines_of:
                raise BadRow(
                    f"field id: expected a new name, got {example.id!r} as in line {lines_of[example.id]}"
                )
            lines_of[example.id] = number
            examples.append(example)
        except BadRow as error:
            if not skip_bad:
                hint = "mend the row, or pass --skip-bad-rows to go on without it"
                raise BadRow(f"{path}, line {number}: {error}; {hint}") from None
            notes["rows left out as bad"] += 1
    if not examples:
        raise ValueError(
            f"{path} has no usable row: expected one JSON object a line, see README for the fields"
        )
    return examples


def _example(line: str, number: int, notes: Counter[str]) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"expected a JSON object, got {line[:40]!r} ({error})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {type(row).__name__}")
    if "rubrics" in row and "rubric" not in row:
        return _healthbench(row, number)
    question = _text(row, "question", required=True)
    items = _items(row, "rubric", {"title": str, "description": str, "weight": (int, float)})
    split = row.get("split", "train")
    if split not in ("train", "held_out"):
        raise BadRow(f"field split: expected 'train' or 'held_out', got {split!r}")
    rubric = rubrics.from_categories(items, notes)
    messages = ({"role": "user", "content": question},)
    return Example(
        str(row.get("id", f"line-{number}")), split, messages, _text(row, "reference_answer"), rubric, row
    )


def _healthbench(row: dict[str, Any], number: int) -> Example:
    turns = row.get("prompt")
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"field prompt: expected a list of messages, got {str(turns)[:40]!r}")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            raise BadRow(f"field prompt[{index}]: expected role and content as text, got {str(turn)[:40]!r}")
    rubric = rubrics.from_points(_items(row, "rubrics", {"criterion": str, "points": (int, float)}))
    messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
    ideal = (row.get("ideal_completions_data") or {}).get("ideal_completion") or ""
    return Example(
        str(row.get("prompt_id", f"line-{number}")), row.get("split", "train"), messages, ideal, rubric, row
    )


def _text(row: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = row.get(name)
    if (value is None or value == "") and not required:
        return ""  # 9.5 % of the released science rows have no reference answer
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"field {name}: expected text, got {str(value)[:40]!r}")
    return value


def _items(row: dict[str, Any], name: str, form: dict[str, Any]) -> list[dict[str, Any]]:
    items = row.get(name)
    if not isinstance(items, list) or not items:
        raise BadRow(f"field {name}: expected a list with at least one item, got {str(items)[:40]!r}")
    for index, item in enumerate(items):
        for key, kind in form.items():
            value = item.get(key) if isinstance(item, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "text" if kind is str else "a number"
                raise BadRow(f"field {name}[{index}].{key}: expected {wanted}, got {str(value)[:40]!r}")
            if (
                kind is not str and not abs(value) < 1e6
            ):  # false for NaN too, which Python's JSON lets through
                raise BadRow(f"field {name}[{index}].{key}: expected a finite number, got {value}")
    if not any(item[key] for item in items for key, kind in form.items() if kind is not str):
        raise BadRow(f"field {name}: expected an item that weighs something, got only weights of 0")
    return items


def draw(examples: Sequence[Example], prompts: int, step: int, seed: int) -> list[tuple[Example, int]]:
    """The (example, visit) pairs of one step (0-based): a pass over all examples in random order, then
    another.

    Nothing is remembered between steps: position i of the endless stream is place i mod n of the order of
    epoch i // n, so that a resumed run reads on where it stopped. No row is dropped where `prompts` does not
    divide n. `visit` counts how often this step has drawn the example before (around the turn of an epoch it
    can come twice).
    """
    if prompts > len(examples):
        raise ValueError(
            f"--prompts-per-step {prompts} is more than the {len(examples)} training questions; "
            "lower it or bring more questions"
        )
    seen: Counter[str] = Counter()
    drawn = []
    for position in range(step * prompts, (step + 1) * prompts):
        epoch, place = divmod(position, len(examples))
        example = examples[_order(len(examples), seed, epoch)[place]]
        drawn.append((example, seen[example.id]))
        seen[example.id] += 1
    return drawn


def _order(count: int, seed: int, epoch: int) -> list[int]:
    key = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()
    order = list(range(count))
    random.Random(key).shuffle(order)
    return order
