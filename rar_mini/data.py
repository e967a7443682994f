"""Examples, and where they come from: the bundled sample, or a JSONL file in one of two forms.

A row in rar-mini's form has `question`, `reference_answer` and `rubric` (title, description, weight); a row
in HealthBench's form has `prompt` (chat messages) and `rubrics` (criterion, points). Every error names the
file, the line, the field, what was expected and what came, and nothing that a row holds is shown raw.
"""

import hashlib
import json
import random
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mini import rubric as rubrics
from rar_mini.rubric import Rubric

SAMPLE = Path(__file__).parent / "sample_data"
DOMAINS = tuple(sorted(path.stem for path in SAMPLE.glob("*.jsonl")))

_HALF = re.compile("[\ud800-\udfff]")  # JSON may escape half a character, which no file or tokenizer takes


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
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: expected a JSONL file in UTF-8, got {error}") from error
    if b"\0" in content[:512]:  # gzip, zip, Parquet and UTF-16 have one there, JSON nowhere
        raise ValueError(
            f"cannot read {path}: expected a JSONL file in UTF-8, got one with zero bytes that begins with "
            f"{content[:8]!r}; unpack or convert it first"
        )
    examples: list[Example] = []
    lines_of: dict[str, int] = {}
    bad: list[str] = []
    # Bytes are cut at line feeds and carriage returns alone, a text would also be at U+2028.
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip(b"\xef\xbb\xbf \t"):
            continue
        found: Counter[str] = Counter()
        try:
            example = _example(line, number, lines_of, found)
        except BadRow as error:
            bad.append(f"{path}, line {number}: {error}")
            if not skip_bad:
                hint = "mend the row, or pass --skip-bad-rows to go on without it"
                raise BadRow(f"{bad[0]}; {hint}") from None
            continue
        if unique:
            lines_of[example.id] = number
        examples.append(example)
        notes.update(found)
    if bad:
        notes["rows left out as bad"] += len(bad)
    if not examples:
        raise ValueError(
            f"{path} has no usable row: expected one JSON object a line, see README for the fields, got "
            + (f"bad ones only ({len(bad)}), the first: {bad[0]}" if bad else "an empty file")
        )
    return examples


def _example(line: bytes, number: int, taken: dict[str, int], notes: Counter[str]) -> Example:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # Windows puts a byte-order mark in front
    except (ValueError, RecursionError) as error:
        came = line[:40].decode("utf-8", "replace")
        reason = getattr(error, "msg", error)
        raise BadRow(f"expected a JSON object on one line, in UTF-8, got {came!r} ({reason})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object on one line, got a {type(row).__name__}")
    literal = row.get("rubrics") is not None and row.get("rubric") is None  # HealthBench's form
    key = "prompt_id" if literal else "id"
    name = f"line-{number}" if row.get(key) in (None, "") else row[key]
    name = str(name) if type(name) is int else _text(name, key)
    _need(name not in taken, key, f"another name than in line {taken.get(name)}", name)
    split = "train" if row.get("split") is None else row["split"]
    _need(split in ("train", "held_out"), "split", "'train' or 'held_out'", split)
    if literal:
        messages, ideal = _turns(row.get("prompt")), row.get("ideal_completions_data") or {}
        rubric = rubrics.from_points(_items(row, "rubrics", ("criterion",), "points"))
        _need(isinstance(ideal, dict), "ideal_completions_data", "an object", ideal)
        reference = _text(ideal.get("ideal_completion"), "ideal_completion", optional=True)
    else:
        messages = ({"role": "user", "content": _text(row.get("question"), "question")},)
        rubric = rubrics.from_categories(_items(row, "rubric", ("title", "description"), "weight"), notes)
        for index, criterion in enumerate(rubric.criteria):
            _need(criterion.description != "", f"rubric[{index}].description", "more than a category", None)
        reference = _text(row.get("reference_answer"), "reference_answer", optional=True)
    return Example(name, split, messages, reference, rubric, row)


def _need(ok: bool, name: str, wanted: str, came: Any) -> None:
    """Raise `BadRow` for a field that is not as wanted."""
    if not ok:
        shown = "nothing" if came is None else reprlib.repr(came)  # short, however long or deep it is
        raise BadRow(f"field {name}: expected {wanted}, got {shown}")


def _text(value: Any, name: str, *, optional: bool = False) -> str:
    if optional and (value is None or value == ""):
        return ""  # 9.5 % of the released science rows have no reference answer
    _need(isinstance(value, str) and value.strip() != "", name, "text", value)
    half = _HALF.search(value)
    _need(half is None, name, "whole characters", half and half.group())
    return value


def _turns(turns: Any) -> tuple[dict[str, str], ...]:
    """A conversation that the policy can answer: known roles, the user's word last."""
    _need(isinstance(turns, list) and bool(turns), "prompt", "a list of messages", turns)
    messages = []
    for index, turn in enumerate(turns):
        name = f"prompt[{index}]"
        _need(isinstance(turn, dict), name, "an object", turn)
        role = turn.get("role")
        _need(role in ("system", "user", "assistant"), f"{name}.role", "system, user or assistant", role)
        messages.append({"role": role, "content": _text(turn.get("content"), f"{name}.content")})
    _need(role == "user", f"{name}.role", "user in the last message", role)
    return tuple(messages)


def _items(row: dict[str, Any], field: str, texts: Sequence[str], number: str) -> list[dict[str, Any]]:
    """The items of a rubric, each with its texts and with a number that float32 can add to the others."""
    items = row.get(field)
    _need(isinstance(items, list) and bool(items), field, "a list with at least one item", items)
    for index, item in enumerate(items):
        name = f"{field}[{index}]"
        _need(isinstance(item, dict), name, "an object", item)
        for key in texts:
            _text(item.get(key), f"{name}.{key}")
        size = item.get(number)
        _need(type(size) in (int, float), f"{name}.{number}", "a number", size)
        fits = size == 0 or 1e-6 <= abs(size) <= 1e6  # false for NaN, which Python's JSON lets through
        _need(fits, f"{name}.{number}", "0 or a finite number from 1e-6 to 1e6 in size", size)
    sizes = [item[number] for item in items]
    _need(any(sizes), field, "an item that weighs something", sizes)
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
