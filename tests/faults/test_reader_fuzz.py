"""Whatever a file holds, its reader reads it or refuses it in one line: 2,000 cases each."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_forms import BENCH, VALUES, paths
from tiny import question

from rar_mini import data, lora, model, policy
from rar_mini.evaluation import answers, gpqa
from rar_mini.options import Misused
from rar_mini.setup import parse

pytestmark = pytest.mark.slow
cases = settings(max_examples=2000, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(reader: Callable[[Any], Any], what: Any, name: str = "") -> None:
    """Read it, or see it refused in one line that names the file."""
    try:
        reader(what)
    except (ValueError, OSError) as error:
        words = str(error)
        assert isinstance(error, OSError) or type(error) in (
            ValueError,
            Misused,
            data.BadRow,
            data.Weightless,
        )
        assert name in words and "\n" not in words, words
        assert len(words) < 1500 or isinstance(error, OSError)  # which repeats the name, however long


def changed(value: Any, draw: random.Random) -> Any:
    """A copy in which one or two values are others or missing."""
    made = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2))):
        *at, last = draw.choice([path for path in paths(made) if path] or [("id",)])
        inner = made
        for part in at:
            inner = inner[part]
        if (new := draw.choice(VALUES)) is ... and isinstance(inner, dict):
            inner.pop(last, None)
        elif new is not ...:
            inner[last] = copy.deepcopy(new)
    return made


def text(value: Any, draw: random.Random) -> str:
    """Changed JSON, which may also be cut or have a comma too many."""
    text = json.dumps(changed(value, draw))
    return draw.choice((text, text, text, text[: draw.randrange(len(text))], text.replace("}", ",}", 1)))


def spoiled(content: bytes, draw: random.Random) -> bytes:
    """Bytes of which a few are others, or which are cut."""
    made = bytearray(content or b"\n")
    for _ in range(draw.randrange(1, 9)):
        made[draw.randrange(len(made))] = draw.randrange(256)
    return bytes(made if draw.random() < 0.7 else made[: draw.randrange(len(made))])


@cases
@given(st.integers(0, 2**64))
def test_rows_of_json(place: Path, seed: int) -> None:
    draw, path = random.Random(seed), place / "rows.jsonl"
    row = draw.choice((question(1), BENCH | {"id": "a"}))
    line = text(row | {"split": "train"}, draw).encode()
    path.write_bytes(line if draw.random() < 0.5 else spoiled(line, draw))
    read(data.read, path, str(path))
    read(answers.Given, path, str(path))
    read(gpqa.read, path, str(path))


@cases
@given(st.binary(max_size=200))
def test_bytes_that_should_be_rows(place: Path, content: bytes) -> None:
    for name, reader in {"rows.jsonl": data.read, "x.parquet": data.read, "x.csv": gpqa.read}.items():
        (place / name).write_bytes(content)
        read(reader, place / name, str(place / name))


KINDS = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.date32(), pa.timestamp("ms")]
KINDS += [pa.duration("s"), pa.time64("ns"), pa.decimal128(38, 3), pa.list_(pa.string()), pa.large_string()]
KINDS += [pa.struct([("title", pa.string()), ("weight", pa.date32())]), pa.map_(pa.string(), pa.int64())]
KINDS += [pa.list_(pa.struct([("title", pa.string()), ("description", pa.string()), ("weight", pa.int64())]))]
NAMES = ["id", "split", "question", "reference_answer", "rubric", "prompt", "rubrics", "when", "a.b"]


def array(kind: pa.DataType, draw: random.Random) -> pa.Array:
    """Two values of any type, and far from everyday ones."""
    if draw.random() < 0.2:
        return pa.nulls(2, kind)
    if pa.types.is_temporal(kind) or pa.types.is_integer(kind):
        numbers = [draw.randrange(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1)) for _ in range(2)]
        if kind == pa.time64("ns"):
            numbers = [number % (24 * 3600 * 10**9) for number in numbers]
        return pa.array(numbers, pa.int64() if kind.bit_width == 64 else pa.int32()).cast(kind)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([array(field.type, draw) for field in kind], fields=list(kind))
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), array(kind.value_type, draw))
    if pa.types.is_map(kind):
        return pa.array([[("a", 1)], []], kind)
    known = {pa.bool_(): True, pa.float64(): float("nan"), pa.binary(): b"\xff", pa.decimal128(38, 3): None}
    return pa.array([known.get(kind, "text")] * 2, kind)


@cases
@given(st.integers(0, 2**64))
def test_tables(place: Path, seed: int) -> None:
    draw, path = random.Random(seed), place / "rows.parquet"
    names = draw.choices(NAMES, k=draw.randrange(1, 6))
    table = pa.table([array(draw.choice(KINDS), draw) for _ in names], names=names)
    parquet.write_table(table, path)
    if draw.random() < 0.3:
        path.write_bytes(spoiled(path.read_bytes(), draw))
    read(data.read, path, str(path))


@pytest.fixture(scope="module")
def folders(tiny: Path, place: Path) -> list[Path]:
    """A model, and adapters of it."""
    whole = Path(shutil.copytree(tiny, place / "policy"))
    decoder = model.load(whole, torch.float32, "cpu")
    lora.adapt(decoder, 2, 4.0, ("q_proj",), 0)
    lora.save(decoder, place / "adapter", str(whole))
    return [whole, place / "adapter"]


@cases
@given(st.integers(0, 2**64))
def test_model_folders(folders: list[Path], seed: int) -> None:
    draw, folder = random.Random(seed), folders[seed % 4 == 0]
    path = draw.choice(sorted(folder.glob("*.json")))
    good = path.read_bytes()
    try:
        path.write_text(text(json.loads(good), draw))
        read(lambda name: policy.load(name, torch.float32, "cpu"), str(folder), str(folder.parent))
    finally:
        path.write_bytes(good)


@settings(cases, max_examples=500)  # tyro takes 80 ms
@given(
    st.lists(
        st.sampled_from(["--lr", "--steps", "--device", "--judge", "--recipe", "--recipe.x", "--x", "--"])
    ),
    st.lists(st.sampled_from(["nan", "-1", "1e999", "9" * 5000, "", "\x1b[2J", "cpu", "'", "--lr=inf"])),
)
def test_command_lines(options: list[str], values: list[str]) -> None:
    words = [word for pair in zip(options, values, strict=False) for word in pair]
    read(parse, words)
