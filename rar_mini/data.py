"""Examples, and where they come from: the bundled sample, the released data, JSONL or Parquet files.

A row in rar-mini's form has `question`, `reference_answer` and `rubric` (title, description, weight); a row
in HealthBench's form has `prompt` (chat messages) and `rubrics` (criterion, points). Every error names the
file, the line, the field, what was expected and what came, and nothing that a row holds is shown raw.

    python -m rar_mini.tools.tables --data rar --domain medical
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from rar_mini import forms, hub
from rar_mini import rubric as rubrics
from rar_mini.files import parse, regular
from rar_mini.forms import ABSENT, Form, Many, Number, T, Text
from rar_mini.judging import rules
from rar_mini.rubric import Polarity, Rubric
from rar_mini.turns import without_thoughts

if TYPE_CHECKING:
    from pyarrow import DataType

SAMPLE = Path(__file__).parent / "sample_data"
DOMAINS = tuple(sorted(path.stem for path in SAMPLE.glob("*.jsonl")))
CHECKED = "instructions"
"""The bundled domain in which every item has a check."""
SPLITS = {"train": "train", "training": "train", "test": "test"}
SPLITS |= dict.fromkeys(("held_out", "heldout", "val", "valid", "validation", "dev", "eval"), "held_out")
"""Which split a name means: that in a row's `split`, or a word in the name of a Parquet file."""
SPLIT_NAMES = f"one of {', '.join(SPLITS)}"

Row = tuple[str, str, str | None, bytes | dict[str, Any]]
"""Where a row stands, the id and the split that it has if it names none, and what it holds."""


@dataclass(frozen=True)
class Example:
    """One row of data. `messages` is the conversation to answer; a plain question is one user message."""

    id: str
    split: str  # "train", "held_out", or "test", which training leaves alone
    messages: tuple[dict[str, str], ...]
    reference: str  # the reference answer, "" where the row has none
    rubric: Rubric
    row: dict[str, Any] = field(repr=False, compare=False)  # the row as it was read

    @property
    def hidden(self) -> dict[str, Any]:
        """What a recipe may show to the judge or to who writes rubrics, and never to the policy."""
        return self.row.get("hidden") or {}

    @property
    def question(self) -> str:
        """The conversation as one text, for a judge to read."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    def after(self, said: Iterable[dict[str, str]]) -> "Example":
        """The same row once these turns have followed: an answer to it is an answer to the last of them.
        Nobody is shown what the policy thought before it spoke."""
        spoken = [
            turn | {"content": without_thoughts(turn["content"])} if turn["role"] == "assistant" else turn
            for turn in said
        ]
        return replace(self, messages=(*self.messages, *spoken))


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
    rows: Iterable[Row] | None = None,
    convert: Callable[[Any], dict[str, Any]] | None = None,
) -> list[Example]:
    """Read a JSONL file, a Parquet file or a directory of those. Bad rows raise `BadRow`, or with `skip_bad`
    are left out and counted in `notes`; `skip_weightless` does so with rows whose items all weigh nothing.

    Rows without an `id` get one from their line or, in Parquet files, from their question. Rows without a
    `split` are of the split that the name of their Parquet file says; in a directory each name has to say
    one, and a lone file that says none is training data, as JSONL is. With `unique`, an id that comes twice
    is refused: rollouts and random streams are named by it. With `bare`, a question is enough: no rubric is
    read, and the examples have empty ones. Another reader of the file may bring its `rows`, and what converts
    one into a row of ours, or raises `BadRow`.
    """
    notes = Counter() if notes is None else notes
    examples: list[Example] = []
    taken: dict[str, str] = {}
    bad: list[str] = []
    if rows is None:
        rows = _tables(path) if path.is_dir() or path.suffix == ".parquet" else lines(path)
    for where, name, split, content in rows:
        found: Counter[str] = Counter()
        try:
            row = _parse(content) if isinstance(content, bytes) else content
            example = _example(convert(row) if convert else row, name, split, taken, found, bare)
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


def splits_in(name: str) -> set[str]:
    """The splits that the words of a name say: `Dev-00000-of-00001` is held out."""
    words = "_" + re.sub("[^a-z]+", "_", name.lower()) + "_"
    return {split for known, split in SPLITS.items() if f"_{known}_" in words}


def lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, not yet parsed."""
    wanted = "expected JSONL (a JSON object a line, in UTF-8), or Parquet in a file named *.parquet"
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {wanted}, got {error}") from error
    # gzip, zip, Parquet and UTF-16 have zero bytes there, JSON nowhere; one inside a row is that row's fault.
    if b"\0" in content[:512] and not content.lstrip(b"\xef\xbb\xbf \t").startswith(b'{"'):
        raise ValueError(
            f"cannot read {path}: {wanted}, got zero bytes in a file that begins with {content[:8]!r}; "
            "unpack or convert it first"
        )
    # Bytes are cut at line feeds and carriage returns alone, a text would also be at U+2028.
    blank = b"\xef\xbb\xbf \t"
    rows = [(n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip(blank)]
    if rows and not any(line.lstrip(blank).startswith(b"{") for _, line in rows):  # CSV, or prose
        came = rows[0][1][:40].decode("utf-8", "replace")
        raise ValueError(f"cannot read {path}: {wanted}, got a file that begins with {came!r}")
    for number, line in rows:
        yield f"line {number}", f"line-{number}", "train", line


def _tables(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, or of those in a directory or in its data/, in the order of their names.

    A row's name is made of its file's first word and its question, and so stays when other rows come or go; a
    question that comes again is -2, -3, and so on.
    """
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]) if path.is_dir() else [path]
    seen: Counter[str] = Counter()
    for file in files:
        word, within = file.stem.split("-")[0], "" if file == path else f"{file.name}, "
        splits = splits_in(file.stem)
        split = splits.pop() if len(splits) == 1 else "train" if file == path and not splits else None
        for number, row in enumerate(_table(file), 1):
            if split is None and row.get("split") is None:
                raise ValueError(
                    f"{file}: expected {SPLIT_NAMES} as a word in the file's name, got {file.name!r}; rename "
                    "it, or give each of its rows a `split`"
                )
            name = f"{word}-{hashlib.sha256(str(row.get('question')).encode()).hexdigest()[:12]}"
            seen[name] += 1
            name += f"-{seen[name]}" if seen[name] > 1 else ""
            yield f"{within}row {number}", name, split, row


def _table(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file: the columns that a form names, and others with values that JSON has."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(regular(file)) as table:
            names = table.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"one with several columns of the name {twice[0]!r}")
            kept = [f.name for f in table.schema_arrow if f.name in FIELDS or _plain(f.type)]
            for batch in table.iter_batches(columns=[name for name in kept if name != "rubric_list"]):
                yield from batch.to_pylist()  # rubric_list is the rubric again
    except (OSError, ArrowException, ValueError, OverflowError) as error:
        came = " ".join(str(error).split())  # Arrow's words may have several lines
        raise ValueError(f"cannot read {file}: expected a Parquet file, got {came}") from error


def _plain(kind: "DataType") -> bool:
    """Whether JSON has values of an Arrow type. It has no bytes and no dates: not all dates fit Python's."""
    from pyarrow import types

    if types.is_nested(kind):
        return all(_plain(kind.field(i).type) for i in range(kind.num_fields))
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not (binary or types.is_temporal(kind))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = parse(line.decode("utf-8-sig"))  # Windows puts a byte-order mark in front
    except (ValueError, RecursionError) as error:
        came = line[:40].decode("utf-8", "replace")
        reason = getattr(error, "msg", error)
        raise BadRow(f"expected a JSON object on one line, in UTF-8, got {came!r} ({reason})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object on one line, got a {type(row).__name__}")
    return row


def _size(weight: float) -> float:
    """Refuse a weight that float32 cannot add to the others."""
    if weight and not 1e-6 <= abs(weight) <= 1e6:
        raise PydanticCustomError("size", "0 or a finite number from 1e-6 to 1e6 in size")
    return weight


def _role(role: Any) -> Any:
    if role not in ("system", "user", "assistant"):
        raise PydanticCustomError("role", "system, user or assistant")
    return role


def _name(name: Any) -> Any:
    return None if name == "" else str(name) if type(name) is int else name


def _split(name: Any) -> Any:
    splits = splits_in(name) if isinstance(name, str) else {None} if name is None else set()
    if len(splits) != 1:
        raise PydanticCustomError("split", SPLIT_NAMES)
    return splits.pop()


def _none(text: Any) -> Any:
    return None if isinstance(text, str) and not text.strip() else text


Weight = Annotated[Number, AfterValidator(_size)]
Name = Annotated[Text | None, BeforeValidator(_name)]
"""An id: text, or a whole number; an empty text is none."""
Reference = Annotated[Text | None, BeforeValidator(_none)]
"""A blank one is none: 9.5 % of the released science rows have no reference answer."""


def _phrases(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise PydanticCustomError("phrases", "text or a list of texts")
    return [value] if isinstance(value, str) else value


def _pattern(pattern: str) -> str:
    try:
        rules.matches("", pattern)
    except ValueError as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise PydanticCustomError("regex", "a regular expression ({reason})", {"reason": reason}) from None
    return pattern


def _true(value: Any) -> Any:
    if value is not True:
        raise PydanticCustomError("true", "true")
    return value


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Phrases = Annotated[list[Text], Field(min_length=1), BeforeValidator(_phrases)]


class Check(Form):
    """The rules of an item, each with what it takes; judging/rules.py says when they hold."""

    max_words: Count | None = None
    min_words: Count | None = None
    contains: Phrases | None = None
    lacks: Phrases | None = None
    matches: Annotated[Text, AfterValidator(_pattern)] | None = None
    starts_with: Text | None = None
    ends_with: Text | None = None
    items: Count | None = None
    json_: Annotated[bool, BeforeValidator(_true)] | None = Field(None, alias="json")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, check: Any) -> Any:
        """Refuse unknown rules, which would hold in silence, and a check of none."""
        if not isinstance(check, dict):
            raise PydanticCustomError("dict_type", "an object")
        if check.keys() - rules.RULES.keys() or all(value is None for value in check.values()):
            known = ", ".join(rules.RULES)
            raise PydanticCustomError("rules", "a rule or more of {known}", {"known": known})
        return check

    @model_validator(mode="after")
    def _possible(self) -> "Check":
        """Refuse two bounds that no answer keeps."""
        if self.max_words and self.min_words and self.min_words > self.max_words:
            raise PydanticCustomError("bounds", "min_words of at most max_words")
        return self


def rules_of(text: str, option: str) -> dict[str, Any]:
    """The check that an option has as JSON; "{}" is none. Raises ValueError that names the option."""
    if text == "{}":
        return {}
    try:
        check = parse(text)
    except ValueError:
        check = text  # which is no object
    return forms.read(Check, check, option).model_dump(by_alias=True, exclude_none=True)


def _choices(levels: list[str]) -> list[str]:
    """Refuse choices that a judge could not tell apart, or whose words nobody would be shown."""
    names = [" ".join(level.split()).casefold() for level in levels]
    if len(set(names)) < len(names) or not (names == ["no", "yes"] or 3 <= len(names) <= 10):
        raise PydanticCustomError("choices", "3 to 10 different texts from worst to best, or no and yes")
    return levels


class Item(Form):
    """An item of a RaR rubric."""

    title: Text = ABSENT
    description: Text = ABSENT
    weight: Weight = ABSENT
    check: Check | None = None
    polarity: Polarity | None = None
    choices: Annotated[list[Text], AfterValidator(_choices)] | None = None


class Point(Form):
    """An item of a HealthBench rubric."""

    criterion: Text = ABSENT
    points: Weight = ABSENT


class Turn(Form):
    """A message of a conversation."""

    role: Annotated[Any, AfterValidator(_role)] = ABSENT
    content: Text = ABSENT


class Ideal(Form):
    """HealthBench's reference answer."""

    ideal_completion: Reference = None


class _Row(Form):
    """What both forms of a row have; `id` under a name of its own."""

    id: Name = None
    split: Annotated[str | None, BeforeValidator(_split)] = None
    hidden: dict[str, Any] | None = None


class RarRow(_Row):
    """A row in rar-mini's form. Its rubric may have another name: `categories` reads it."""

    question: Text = ABSENT
    reference_answer: Reference = None


class HealthBenchRow(_Row):
    """A row in HealthBench's form."""

    id: Name = Field(None, alias="prompt_id")
    prompt: Many[Turn] = ABSENT
    ideal_completions_data: Annotated[Ideal | None, BeforeValidator(lambda ideal: ideal or None)] = None
    rubrics: Many[Point] = ABSENT


FIELDS = {
    field.alias or name for form in (RarRow, HealthBenchRow) for name, field in form.model_fields.items()
}
FIELDS |= {"rubric"}
"""What is read from a row whatever it holds."""

ITEMS = TypeAdapter(Many[Item], config=Form.model_config)


def _example(
    row: dict[str, Any],
    name: str,
    split: str | None,
    taken: dict[str, str],
    notes: Counter[str],
    bare: bool,
) -> Example:
    """Check a row. `name` and `split` are for a row without its own; `taken` says where an id stands."""
    literal = not bare and row.get("rubrics") is not None and row.get("rubric") is None  # HealthBench's form
    form = _read((HealthBenchRow if literal else RarRow).model_validate, row)
    name, key = form.id or name, "prompt_id" if literal else "id"
    _need(name not in taken, key, f"another name than in {taken.get(name)}", name)
    if literal:
        last, ideal = form.prompt[-1].role, form.ideal_completions_data
        _need(last == "user", f"prompt[{len(form.prompt) - 1}].role", "user in the last message", last)
        messages = tuple(turn.model_dump() for turn in form.prompt)
        reference = ideal and ideal.ideal_completion
        rubric = rubrics.from_points(_weighing(row, "rubrics", "points"))
    else:
        messages, reference = ({"role": "user", "content": form.question},), form.reference_answer
        rubric = Rubric(()) if bare else categories(row, "rubric", notes)
    return Example(name, form.split or split, messages, reference or "", rubric, row)


def categories(row: dict[str, Any], name: str, notes: Counter[str]) -> Rubric:
    """The RaR rubric that a row has under a name. Raises `BadRow`."""
    _read(ITEMS.validate_python, row.get(name), name)
    rubric = rubrics.from_categories(_weighing(row, name, "weight"), notes)
    for index, criterion in enumerate(rubric.criteria):
        at, pitfall = f"{name}[{index}]", criterion.category == "pitfall"
        _need(criterion.description != "", f"{at}.description", "more than a category", None)
        polarity, choices = criterion.polarity, criterion.choices
        _need(pitfall or not polarity, f"{at}.polarity", "none but in a pitfall", polarity)
        single = not choices or not (pitfall or criterion.check)
        _need(single, f"{at}.choices", "none in a pitfall, nor beside a check", choices)
    return rubric


def _weighing(row: dict[str, Any], name: str, number: str) -> list[dict[str, Any]]:
    """The items of a rubric that has been checked. Raises `Weightless`."""
    if not any(item[number] for item in row[name]):
        raise Weightless(f"field {name}: expected an item that weighs something, got {number} 0 in all")
    return row[name]


def _read(check: Callable[[Any], T], value: Any, at: str = "") -> T:
    """Check a value against its form."""
    try:
        return check(value)
    except ValidationError as error:
        raise BadRow(forms.fault(error, at)) from None


def _need(ok: bool, name: str, wanted: str, came: Any) -> None:
    """Raise `BadRow` for a field that is not as wanted."""
    if not ok:
        raise BadRow(forms.sentence(name, wanted, came))


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


def draw(examples: Sequence[Example], count: int, start: int, seed: int) -> list[tuple[Example, int]]:
    """The (example, visit) pairs of one step, which begins at position `start` of an endless stream: a pass
    over all examples in random order, then another.

    Position i is place i mod n of the order of epoch i // n: a resumed run needs to know nothing but where
    it stopped, and no row is dropped where `count` does not divide n. `visit` counts how often this step has
    drawn the example before (around the turn of an epoch it can come twice).
    """
    seen: Counter[str] = Counter()
    drawn = []
    for position in range(start, start + count):
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
