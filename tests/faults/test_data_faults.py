"""Files of data that a person really has: pipes, CSV, foreign columns, names twice, splits of other names."""

import json
import os
from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Command
from pyarrow import parquet
from tiny import question, write_rows

from rar_mini import data

ITEM = {"title": "a", "description": "Essential Criteria: b", "weight": 5}


def table(path: Path, **columns: pa.Array) -> Path:
    """A Parquet file of one question, with more columns."""
    own = pa.table({"question": ["What is 1?"], "rubric": [[ITEM]]})
    for name, column in columns.items():
        own = own.append_column(name, column)
    parquet.write_table(own, path)
    return path


def refusal(path: Path) -> str:
    """The one line that reading a file ends in."""
    with pytest.raises(ValueError) as error:
        data.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """Opening it would wait forever."""
    os.mkfifo(tmp_path / name)
    assert "got no file but a pipe or a device" in refusal(tmp_path / name)


def test_a_device_without_an_end_is_refused() -> None:
    """/dev/zero would be read until there is no memory left."""
    assert "got no file but a pipe or a device" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize(
    "text", ["question,answer\nWhat is 1?,One.\n", '[{"question": "What is 1?"}]', "Hi!"]
)
def test_another_format_is_told_what_is_read_here(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows").write_text(text)
    assert "expected JSONL (a JSON object a line, in UTF-8), or Parquet" in refusal(tmp_path / "rows")


def test_a_name_twice_in_a_row_is_refused_also_deep_inside(tmp_path: Path) -> None:
    """Python's JSON believes the second one: a question, or a weight, that nobody meant."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a?", "question": "b?", "rubric": []}\n')
    assert "line 1: " in refusal(path) and "the name 'question' comes twice" in refusal(path)
    item = json.dumps(question(1, rubric=[ITEM])).replace('"weight": 5', '"weight": 5, "weight": -3')
    path.write_text(f"{json.dumps(question(0))}\n{item}\n")
    assert "line 2: " in refusal(path) and "the name 'weight' comes twice" in refusal(path)


def test_columns_that_nobody_asks_for_need_not_be_readable(tmp_path: Path) -> None:
    """Dates that Arrow has and Python does not ended in an OverflowError without a file."""
    last = pa.array([2**31 - 1], pa.int32())
    odd = {"day": last.cast(pa.date32()), "raw": pa.array([b"\xff"])}
    odd |= {
        "at": pa.array([2**62]).cast(pa.timestamp("ms")),
        "took": pa.array([2**62]).cast(pa.duration("s")),
    }
    odd |= {"meta": pa.StructArray.from_arrays([last.cast(pa.date32())], ["day"])}
    (example,) = data.read(table(tmp_path / "rows.parquet", **odd, note=pa.array(["kept for recipes"])))
    assert example.row.keys() == {"question", "rubric", "note"}


def test_a_date_where_a_text_is_needed_is_named_by_its_field(tmp_path: Path) -> None:
    assert "field id: expected text, got datetime.date(2026, 1, 1)" in refusal(
        table(tmp_path / "in.parquet", id=pa.array([date(2026, 1, 1)]))
    )
    beyond = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    assert "expected a Parquet file, got days=" in refusal(table(tmp_path / "beyond.parquet", id=beyond))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.parquet", question=pa.array(["What is 2?"]))
    assert "several columns of the name 'question'" in refusal(path)


NAMES = {"train-00000-of-00001": "train", "Training_1": "train", "val-0": "held_out", "dev": "held_out"}
NAMES |= {"valid.00": "held_out", "eval-0": "held_out", "held_out-0": "held_out", "held-out-0": "held_out"}
NAMES |= {"x-test-00000-of-00001": "test", "Test-0": "test"}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_says_its_split(tmp_path: Path, name: str) -> None:
    """Once all but three of these names became training data without a word."""
    table(tmp_path / f"{name}.parquet")
    for path in (tmp_path, tmp_path / f"{name}.parquet"):
        assert [example.split for example in data.read(path)] == [NAMES[name]]


@pytest.mark.parametrize("name", ["mine", "testmini-0", "train-test-0"])
def test_a_folders_file_whose_name_says_no_split_is_refused(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=f"{name}.parquet: expected one of train, .*rename it, or give"):
        data.read(tmp_path, skip_bad=True)
    table(path, split=pa.array(["validation"]))
    assert [example.split for example in data.read(tmp_path)] == ["held_out"]


def test_a_lone_file_may_have_any_name_but_not_one_of_two_splits(tmp_path: Path) -> None:
    assert data.read(table(tmp_path / "mine.parquet"))[0].split == "train"
    assert "expected one of train, " in refusal(table(tmp_path / "train-test.parquet"))


def test_a_rows_own_split_has_the_same_names(tmp_path: Path) -> None:
    rows = [question(i, split=name) for i, name in enumerate(["train", "Dev", "test", None, "held-out"])]
    splits = [example.split for example in data.read(write_rows(tmp_path / "rows.jsonl", rows))]
    assert splits == ["train", "held_out", "test", "train", "held_out"]
    path = write_rows(tmp_path / "rows.jsonl", [question(0, split="testmini")])
    assert "line 1: field split: expected one of train, training, test, " in refusal(path)
    notes: Counter[str] = Counter()
    write_rows(path, [question(0, split="testmini"), question(1)])
    assert len(data.read(path, skip_bad=True, notes=notes)) == 1 and notes["rows left out as bad"] == 1


def test_training_says_what_it_leaves_for_the_end(command: Command, tiny: Path, tmp_path: Path) -> None:
    """A file whose rows are all of the test split looked empty."""
    rows = write_rows(tmp_path / "rows.jsonl", [question(i, split="test") for i in range(3)])
    done = command("train.py", "--policy", tiny, "--data", rows, "--out", tmp_path / "run")
    assert "questions of the test split left for the end: 3" in done.stdout
    assert "more than the 0 questions to train on" in done.stderr and not (tmp_path / "run").exists()
