"""Examples, and where they come from: the bundled sample, the released data, JSONL or Parquet files.

A row in rar-mini's form has `question`, `reference_answer` and `rubric` (title, description, weight); a row
in HealthBench's form has `prompt` (chat messages) and `rubrics` (criterion, points). Every error names the
file, the line, the field, what was expected and what came, and nothing that a row holds is shown raw.

    python -m rar_mini.tools.tables --data rar --domain medical
"""

import hashlib
import json
import random
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rar_mini import hub
from rar_mini import rubric as rubrics
from rar_mini.rubric import Rubric

SAMPLE = Path(__file__).parent / "sample_data"
DOMAINS = tuple(sorted(path.stem for path in SAMPLE.glob("*.jsonl")))
SPLITS = {"val": "held_out", "validation": "held_out", "test": "test"}
"""What the first word of a Parquet file's name says; any other is training data."""

Row = tuple[str, str, str, bytes | dict[str, Any]]
"""Where a row stands, the id and the split that it has if it names none, and what it holds."""

_HALF = re.compile("[\ud800-\udfff]")  # JSON may escape half a character, which no file or tokenizer takes


@dataclass(frozen=True)
class Example:
    """One row of data. `messages` is the conversation to answer; a plain question is one user message."""

    id: str
    split: str  # "train" or "held_out"; "test" of Parquet files, which training leaves alone
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


class Weightless(BadRow):
    """A row whose items all weigh nothing, so that no answer to it has a reward."""


def load(source: str | None, domain: str, revision: str | None = None, **how: Any) -> list[Example]:
    """Read what `--data` names: None, the bundled sample of a domain; `rar`, the released data; or a path.

    `how` is for `read`. Bad rows of the released data are left out and counted: nobody here can mend them.
    """
    if source is None:
        return sample(domain)
    if source == "rar":
        return read(hub.fetch(domain, revision)[0], **how | {"skip_bad": True})
    return read(Path(source), **how)


def sample(domain: str) -> list[Example]:
    """Read the bundled questions of one domain, written for demonstration."""
    if domain not in DOMAINS:
        raise ValueError(
            f"no bundled domain {domain!r}: expected one of {', '.join(DOMAINS)}, or --data PATH.jsonl"
        )
    return read(SAMPLE / f"{domain}.jsonl")


def read(
    path: Path,
    *,
    unique: bool = True,
    skip_bad: bool = False,
    skip_weightless: bool = False,
    bare: bool = False,
    notes: Counter[str] | None = None,
) -> list[Example]:
    """Read a JSONL file, a Parquet file or a directory of those. Bad rows raise `BadRow`, or with `skip_bad`
    are left out and counted in `notes`; `skip_weightless` does so with rows whose items all weigh nothing.

    Rows without an `id` get one from their line or, in Parquet files, from their question; rows without a
    `split` are training data, or what the Parquet file's name says: train, val (held out) or test. With
    `unique`, an id that comes twice is refused: rollouts and random streams are named by it. With `bare`, a
    question is enough: no rubric is read, and the examples have empty ones.
    """
    notes = Counter() if notes is None else notes
    examples: list[Example] = []
    taken: dict[str, str] = {}
    bad: list[str] = []
    rows = _tables(path) if path.is_dir() or path.suffix == ".parquet" else _lines(path)
    for where, name, split, content in rows:
        found: Counter[str] = Counter()
        try:
            example = _example(content, name, split, taken, found, bare)
        except BadRow as error:
            bad.append(f"{path}, {where}: {error}")
            if isinstance(error, Weightless) and skip_weightless:
                notes["rows left out because no item weighs anything"] += 1
            elif skip_bad:
                notes["rows left out as bad"] += 1
            else:
                hint = "mend the row, or pass --skip-bad-rows to go on without it"
                raise BadRow(f"{bad[-1]}; {hint}") from None
            continue
        if unique:
            taken[example.id] = where
        examples.append(example)
        notes.update(found)
    if not examples:
        raise ValueError(
            f"{path} has no usable row: expected a JSON object a line, or *.parquet files in it or in its "
            "data/, see docs/data.md for the fields, got "
            + (f"bad ones only ({len(bad)}), the first: {bad[0]}" if bad else "an empty file or folder")
        )
    return examples


def _lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, not yet parsed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: expected a JSONL file in UTF-8, got {error}") from error
    if b"\0" in content[:512]:  # gzip, zip, Parquet and UTF-16 have one there, JSON nowhere
        raise ValueError(
            f"cannot read {path}: expected a JSONL file in UTF-8, got one with zero bytes that begins with "
            f"{content[:8]!r}; unpack or convert it first"
        )
    # Bytes are cut at line feeds and carriage returns alone, a text would also be at U+2028.
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip(b"\xef\xbb\xbf \t"):
            yield f"line {number}", f"line-{number}", "train", line


def _tables(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, or of those in a directory or in its data/, in the order of their names.

    A row's name is made of its file's first word and its question, and so stays when other rows come or go; a
    question that comes again is -2, -3, and so on.
    """
    from pyarrow import ArrowException, parquet

    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]) if path.is_dir() else [path]
    seen: Counter[str] = Counter()
    for file in files:
        word, within = file.stem.split("-")[0], "" if file == path else f"{file.name}, "
        try:
            with parquet.ParquetFile(file) as table:
                columns = [name for name in table.schema_arrow.names if name != "rubric_list"]  # rubric again
                rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    name = f"{word}-{hashlib.sha256(str(row.get('question')).encode()).hexdigest()[:12]}"
                    seen[name] += 1
                    name += f"-{seen[name]}" if seen[name] > 1 else ""
                    yield f"{within}row {number}", name, SPLITS.get(word, "train"), row
        except (OSError, ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {file}: expected a Parquet file, got {error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))  # Windows puts a byte-order mark in front
    except (ValueError, RecursionError) as error:
        came = line[:40].decode("utf-8", "replace")
        reason = getattr(error, "msg", error)
        raise BadRow(f"expected a JSON object on one line, in UTF-8, got {came!r} ({reason})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object on one line, got a {type(row).__name__}")
    return row


def _example(
    content: bytes | dict[str, Any],
    name: str,
    split: str,
    taken: dict[str, str],
    notes: Counter[str],
    bare: bool,
) -> Example:
    """Check a row. `name` and `split` are for a row without its own; `taken` says where an id stands."""
    row = _parse(content) if isinstance(content, bytes) else content
    # HealthBench's form
    literal = not bare and row.get("rubrics") is not None and row.get("rubric") is None
    key = "prompt_id" if literal else "id"
    if row.get(key) not in (None, ""):
        name = str(row[key]) if type(row[key]) is int else _text(row[key], key)
    _need(name not in taken, key, f"another name than in {taken.get(name)}", name)
    if row.get("split") is not None:
        split = row["split"]
        _need(split in ("train", "held_out"), "split", "'train' or 'held_out'", split)
    if literal:
        messages, ideal = _turns(row.get("prompt")), row.get("ideal_completions_data") or {}
        rubric = rubrics.from_points(_items(row, "rubrics", ("criterion",), "points"))
        _need(isinstance(ideal, dict), "ideal_completions_data", "an object", ideal)
        reference = _text(ideal.get("ideal_completion"), "ideal_completion", optional=True)
    else:
        messages = ({"role": "user", "content": _text(row.get("question"), "question")},)
        rubric = Rubric(()) if bare else categories(row, "rubric", notes)
        reference = _text(row.get("reference_answer"), "reference_answer", optional=True)
    return Example(name, split, messages, reference, rubric, row)


def categories(row: dict[str, Any], name: str, notes: Counter[str]) -> Rubric:
    """The RaR rubric that a row has under a name. Raises `BadRow`."""
    rubric = rubrics.from_categories(_items(row, name, ("title", "description"), "weight"), notes)
    for index, criterion in enumerate(rubric.criteria):
        _need(criterion.description != "", f"{name}[{index}].description", "more than a category", None)
    return rubric


def _need(ok: bool, name: str, wanted: str, came: Any) -> None:
    """Raise `BadRow` for a field that is not as wanted."""
    if not ok:
        shown = "nothing" if came is None else reprlib.repr(came)  # short, however long or deep it is
        raise BadRow(f"field {name}: expected {wanted}, got {shown}")


def _text(value: Any, name: str, *, optional: bool = False) -> str:
    if optional and (value is None or isinstance(value, str) and not value.strip()):
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
    if not any(item[number] for item in items):
        raise Weightless(f"field {field}: expected an item that weighs something, got {number} 0 in all")
    return items


def tidy(examples: Sequence[Example], notes: Counter[str], *, references: bool = False) -> list[Example]:
    """Leave out training questions that also stand in another split, every question that its split has asked
    before, and with `references` (for a method that compares with one) rows without a reference answer.

    What is left out is counted in `notes`, and so are rows that are kept without a reference answer.
    """
    elsewhere = {asked(example) for example in examples if example.split != "train"}
    seen: set[tuple[str, str]] = set()
    kept = []
    for example in examples:
        question = example.split, asked(example)
        if example.split == "train" and question[1] in elsewhere:
            notes["training questions left out because another split has them too"] += 1
        elif references and not example.reference:
            notes["questions left out because they have no reference answer"] += 1
        elif question in seen:
            notes["questions left out because their split has asked them before"] += 1
        else:
            if not example.reference:
                notes["questions kept without a reference answer"] += 1
            seen.add(question)
            kept.append(example)
    return kept


def asked(example: Example) -> str:
    """What makes two questions the same: their text but for white space. Case counts: 1 mW is not 1 MW."""
    return " ".join(example.question.split())


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many examples, evenly from the first on: the same ones at every call."""
    count = min(most, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


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


@lru_cache(maxsize=2)  # every position of a step asks, and 18,000 questions take 15 ms to shuffle
def _order(count: int, seed: int, epoch: int) -> list[int]:
    key = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()
    order = list(range(count))
    random.Random(key).shuffle(order)
    return order


if __name__ == "__main__":  # the name that this command had before
    import runpy

    runpy.run_module("rar_mini.tools.tables", run_name="__main__")
