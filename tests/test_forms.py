"""Every form that is read from outside: what does not fit is refused in one sentence, and nothing else ends
a reader."""

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import question

from rar_mini import checkpoint, data, prompts
from rar_mini.evaluation import gpqa, healthbench, labelled
from rar_mini.judging import ledger, wires
from rar_mini.judging.endpoint import Failure


@dataclass
class Reader:
    """A reader, what it takes, and one of the fields that it cannot do without."""

    read: Callable[[Any], Any]  # of a file, of text, or of JSON that the endpoint has parsed
    good: dict[str, Any]
    field: tuple[str | int, ...]
    file: str = ""
    error: str = ""  # what an error about the field says
    more: bool = True  # whether fields that the form does not name are left alone
    parsed: bool = False


ROW = question(1, rubric=[{"title": "a", "description": "b", "weight": 1}])
BENCH = {
    "prompt": [{"role": "user", "content": "q"}],
    "rubrics": [{"criterion": "c", "points": -3}],
    "ideal_completions_data": {"ideal_completion": "d"},
}
LABELLED = [{"response": "r", "quality": "good", "labels": [1]}]
POINTS = [{"points": 2, "verdict": 1.0, "tags": ["axis:a"]}]
KEPT = {"prompt_id": "p", "finished": None, "failed": False, "example_tags": ["theme:t"], "rubrics": POINTS}
RUN = {"settings": {"seed": 0}, "versions": {"torch": "2"}, "machine": {}, "git": None}
VERDICTS = {"1": {"reason": "r", "verdict": "yes"}, "2": {"reason": "r", "verdict": "no"}}
SAID = {"choices": [{"message": {"content": "said"}, "finish_reason": "stop"}]}
NOULS = {"1": {"type": "noul", "noul": 0.5}, "2": {"type": "noul", "noul": 1}}
PREDICATES = [{"type": "predicate", "name": "1", "probability": 0.5}, {"type": "refusal", "name": "2"}]
LEVELS = [{"label": str(i), "probability": float(i == 4)} for i in range(1, 11)]
RATED = {"type": "score", "name": "1", "probabilities": LEVELS}


def ended(path: Path) -> Path:
    """A file whose last line is no half one."""
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return path


READERS = {
    "row": Reader(
        data.read, ROW, ("rubric", 0, "weight"), "rows.jsonl", "line 1: field rubric[0].weight: expected "
    ),
    "HealthBench row": Reader(
        data.read, BENCH, ("rubrics", 0, "points"), "rows.jsonl", "line 1: field rubrics[0].points: expected "
    ),
    "labelled row": Reader(
        lambda path: labelled.read(path, "all"),
        ROW | {"labelled_responses": LABELLED},
        ("labelled_responses", 0, "labels", 0),
        "rows.jsonl",
        "rows.jsonl, 'q1': field labelled_responses[0].labels",
    ),
    "pair": Reader(
        lambda path: labelled.pairs(path, "all"),
        ROW | {"preferred": "a", "worsened": "b", "rubric_without_reference": copy.deepcopy(ROW["rubric"])},
        ("rubric_without_reference", 0, "weight"),
        "rows.jsonl",
        "rows.jsonl, 'q1': field rubric_without_reference[0].weight: expected ",
    ),
    "GPQA row": Reader(
        gpqa.read,
        {"id": 1, "question": "q", "choices": ["u", "v"], "answer": 0},
        ("answer",),
        "rows.jsonl",
        "rows.jsonl, row 1: field answer: expected ",
    ),
    "kept row": Reader(
        lambda path: healthbench.kept(ended(path)),
        KEPT,
        ("rubrics", 0, "verdict"),
        "rows.jsonl",
        "rows.jsonl, line 1: field rubrics[0].verdict: expected ",
    ),
    "prices": Reader(
        lambda path: ledger.read_price(path, "m"),
        {"m": [1, 0.5, 2]},
        ("m", 2),
        "prices.json",
        "prices.json: field m[2]: expected ",
    ),
    "run": Reader(
        lambda path: checkpoint.Run.reopen(path.parent),
        RUN,
        ("settings", "seed"),
        "config.json",
        "config.json in it; field settings.seed: expected a whole number",
    ),
    "checkpoint": Reader(
        lambda path: checkpoint.check(path.parents[1]),
        {"step": 3, "files": {}},
        ("files",),
        "trainer/state.json",
        "is damaged: trainer/state.json (field files: expected an object",
    ),
    "verdicts": Reader(lambda text: wires.parse_verdicts(text, 2), VERDICTS, ("1", "verdict"), more=False),
    "rating": Reader(wires.parse_rating, {"reason": "r", "rating": 7}, ("rating",), more=False),
    "completion": Reader(wires.chat_text, SAID, ("choices", 0, "message"), parsed=True),
    "systemone": Reader(
        lambda reply: wires.read_systemone(reply, 2, False),
        {"answers": NOULS},
        ("answers", "2", "noul"),
        parsed=True,
    ),
    "systemone's rating": Reader(
        lambda reply: wires.read_systemone(reply, 1, True),
        {"answers": {"1": {"type": "score", "score": 3.5}}},
        ("answers", "1", "score"),
        parsed=True,
    ),
    "decisions": Reader(
        lambda reply: wires.read_decisions(reply, 2, False),
        {"answers": PREDICATES},
        ("answers", 0, "probability"),
        parsed=True,
    ),
    "decisions' rating": Reader(
        lambda reply: wires.read_decisions(reply, 1, True),
        {"answers": [RATED]},
        ("answers", 0, "probabilities", 3, "probability"),
        parsed=True,
    ),
}

DEEP: Any = 0
for _ in range(100):
    DEEP = [DEEP]
FAULTS = {"type": "5", "none": ..., "NaN": float("nan"), "huge": 1e300, "deep": DEEP, "half": "\ud800"}


def spoiled(good: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a path; ... takes the field out."""
    made = place = copy.deepcopy(good)
    for part in path[:-1]:
        place = place[part]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


def refusal(read: Callable[[Any], Any], what: Any) -> str | None:
    """Why something is refused, None if it is not. Only the project's own errors may come, and what they say
    is short and commands no terminal."""
    try:
        read(what)
        return None
    except (ValueError, Failure) as error:
        assert type(error) in (ValueError, data.BadRow, data.Weightless, Failure), repr(error)
        words = str(error)
        assert len(words) < 800 and words.isprintable(), words
        return words


def refused(reader: Reader, folder: Path, text: str) -> str | None:
    if not reader.file:
        return refusal(reader.read, json.loads(text) if reader.parsed else text)
    path = folder / reader.file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return refusal(reader.read, path)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", READERS)
def test_a_field_that_does_not_fit_is_named(name: str, fault: str, tmp_path: Path) -> None:
    """Files that no person writes are read as strict JSON, which has no halves of characters."""
    reader = READERS[name]
    assert refused(reader, tmp_path, json.dumps(reader.good)) is None
    words = refused(reader, tmp_path, json.dumps(spoiled(reader.good, reader.field, FAULTS[fault])))
    if (name, fault) == ("prices", "huge"):
        assert words is None  # dear, but a number
    else:
        assert reader.error in words or (fault == "half" and "expected JSON (" in words)


@pytest.mark.parametrize("name", READERS)
def test_a_field_that_nobody_asked_for_is_refused_in_what_a_judge_wrote_alone(
    name: str, tmp_path: Path
) -> None:
    reader = READERS[name]
    text = json.dumps(reader.good | {"more": DEEP})
    assert (refused(reader, tmp_path, text) is None) == reader.more


SENTENCES = [
    ("row", ("question",), "x\udfff", "field question: expected whole characters, got '\\udfff'"),
    ("row", ("question",), 5, "field question: expected text, got 5; mend the row, or pass --skip-bad-rows"),
    ("row", ("rubric", 0, "weight"), True, "field rubric[0].weight: expected a number, got True"),
    ("row", ("rubric", 0, "weight"), 1e7, "expected 0 or a finite number from 1e-6 to 1e6 in size, got 1"),
    ("row", ("rubric",), [], "field rubric: expected a list with at least one item, got []"),
    ("row", ("reference_answer",), ["x"] * 99, "expected text, got ['x', 'x', 'x', 'x', 'x', 'x', ...]"),
    ("row", ("split",), "exam", "heldout, val, valid, validation, dev, eval, got 'exam'"),
    ("HealthBench row", ("ideal_completions_data",), "d", "_data: expected an object, got 'd'"),
    ("prices", ("m", 0), -3, "field m[0]: expected 0 or more, got -3"),
    ("prices", ("m", 1), float("inf"), "field m[1]: expected a finite number, got inf"),
    ("prices", ("m",), [1, 2, 3, 4], "field m: expected at most 3 items, got [1, 2, 3, 4]"),
    ("prices", ("m",), [1, 2], "field m[2]: expected a value, got nothing"),
    ("run", ("versions",), [], "field versions: expected an object, got []"),
    ("checkpoint", ("files",), {"\x1b[2J" + "x" * 999: 0}, r"(field files.\x1b[2Jxxx"),
    ("checkpoint", ("files",), {"\x1b[2J" + "x" * 999: "0"}, r"damaged: \x1b[2Jxxx"),
]


@pytest.mark.parametrize(("name", "path", "value", "words"), SENTENCES)
def test_the_sentence_says_what_came_and_what_was_expected(
    name: str, path: tuple, value: Any, words: str, tmp_path: Path
) -> None:
    reader = READERS[name]
    assert words in refused(reader, tmp_path, json.dumps(spoiled(reader.good, path, value)))


def test_a_decimal_of_a_parquet_file_is_no_number(tmp_path: Path) -> None:
    """pydantic would take it for one, and the row could not be written as JSON."""
    from pyarrow import Table, parquet

    row = ROW | {"rubric": [{"title": "a", "description": "b", "weight": Decimal("1.5")}]}
    parquet.write_table(Table.from_pylist([row]), tmp_path / "rows.parquet")
    words = refusal(data.read, tmp_path / "rows.parquet")
    assert "row 1: field rubric[0].weight: expected a number, got Decimal('1.5')" in words


# --- whatever comes -----------------------------------------------------------------------------------------

VALUES = [*FAULTS.values(), 10**400, float("-inf"), 1e-60, -1, 0, 1, True, None, [], [[]], [{}], {}, {"1": 0}]
VALUES += ["", " ", "\x1b[2J", "x" * 2000, "1", "yes", "train", "user", "score", "Essential Criteria:"]


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths to everything that an object holds."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inner for found in ((*path, key), *paths(each, (*path, key)))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 2**64))
def test_whatever_comes_is_read_or_refused(place: Path, seed: int) -> None:
    """One or two fields of each form are others, or are missing; and some texts are cut."""
    draw = random.Random(seed)
    for reader in READERS.values():
        first, second = draw.choices(paths(reader.good), k=2)
        value = draw.choice(VALUES)
        made = spoiled(reader.good, first, value)
        if value is not ... and first != second[: len(first)]:
            made = spoiled(made, second, draw.choice(VALUES))
        text = json.dumps(made)
        whole = reader.parsed or draw.random() < 0.8
        refused(reader, place, text if whole else text[: draw.randrange(len(text))])


TEXTS = {
    "system = 'x'": None,
    "system = 5": "expected texts named system, .*, got 'system' .5.",
    "sistem = 'x'": "expected texts named system, .*, got 'sistem' .'x'.",
    "met = 'x'": "met has to say where {criterion} stands",
    "system = nan": "got 'system' .nan.",
    f"system = {10**400}": "got 'system' .1000",
    f"system = {DEEP}": "got 'system' ",
    f"system = {'[' * 5000}": "expected TOML in UTF-8, got ",
    f"{'a.' * 3000}a = 1": "got 'a' ..'a': ",
    "system = '\\ud800'": None,  # in single quotes TOML has no escapes
    'system = "\\ud800"': "expected TOML in UTF-8, got ",
    "'\\u001b' = 'x'": "got ",
    f"{'x' * 5000} = 'x'": "got 'xxx",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_prompts_that_do_not_fit_are_named(text: str, place: Path) -> None:
    path = place / "prompts.toml"
    path.write_text(text, encoding="utf-8")
    words = refusal(prompts.from_file, path)
    assert words is None if TEXTS[text] is None else re.search(TEXTS[text], words)


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(st.sampled_from([*TEXTS, "[system]", "[[met]]", "'\x1b' = 1"]), max_size=3),
    st.integers(0),
)
def test_whatever_a_file_of_prompts_has_is_read_or_refused(place: Path, texts: list[str], cut: int) -> None:
    path = place / "prompts.toml"
    text = "\n".join(texts)
    path.write_text(text[: cut % (len(text) + 1)], encoding="utf-8")
    refusal(prompts.from_file, path)
