"""A tracker gets each step once, over kills and resumes, and can do the run no harm.

    pytest -m slow tests/test_track.py    # trackio, W&B and TensorBoard themselves, without a network

The other tests have a tracker that writes down what it is given.
"""

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from test_train import numbers, options, records
from tiny import question, write_rows

import train
from rar_mini import report
from rar_mini.checkpoint import Run
from rar_mini.viewing import track

KEY = "0123456789abcdef0123456789abcdef01234567"


class Fake:
    """Keeps what it is given, and fails at the steps in `fails`."""

    made: list["Fake"] = []
    fails: set[int] = set()

    def __init__(self, run: Run, note: track.Note, settings: dict[str, Any]) -> None:
        self.run, self.first, self.place, self.settings = note.run, note.sent + 1, "here", settings
        self.got: list[tuple[int, dict[str, float], int]] = []
        self.made.append(self)

    def log(self, step: int, numbers: dict[str, float], rows: list[dict]) -> None:
        if step in self.fails:
            raise OSError(f"no network with {KEY}\n\x1b[2J")
        self.got.append((step, numbers, len(rows)))

    def flush(self) -> None:
        pass

    close = flush


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """In the place of W&B."""
    monkeypatch.setitem(track.TRACKERS, "wandb", Fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "fails", set())
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return Fake


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it, and the next run ends within the log of a step, which has written its line."""

    def kill(step: int) -> None:
        def die(config: Any, n: int, *words: Any) -> None:
            if n == step:
                raise RuntimeError("killed")

        monkeypatch.setattr(report, "say", die)

    return kill


def run_killed(words: list[str]) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train.main(words)


def test_a_tracked_run_has_each_step_once_after_a_kill(
    tiny: Path, tmp_path: Path, questions: Path, fake: type[Fake], killed_at: Callable
) -> None:
    """Step 3 was done twice and sent once, with its second numbers; and step 0 are the scores before."""
    run = tmp_path / "run"
    killed_at(3)
    run_killed(options(tiny, questions, run, steps=4, save_every=2, track="wandb"))
    killed_at(0)
    train.main(["--resume", str(run)])
    first, second = fake.made
    assert [[step for step, *_ in each.got] for each in (first, second)] == [[0, 1, 2], [3, 4]]
    assert first.run == second.run and first.settings["track"] == "wandb"
    assert [rows for *_, rows in first.got + second.got] == [0, 0, 8, 0, 8]
    for (step, sent, _), row in zip(first.got + second.got, records(run), strict=True):
        assert {"step": step} | sent == {name: x for name, x in row.items() if x is not None}


def test_another_experiment_is_another_tracked_run(
    tiny: Path, tmp_path: Path, questions: Path, fake: type[Fake]
) -> None:
    """With all of its steps, because those of before stand in a run that cannot take them back."""
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=2, track="wandb", eval_every=0))
    write_rows(questions, [question(i, reference_answer="This.") for i in range(5)])
    train.main(["--resume", str(run), "--step", "1", "--accept-changes"])
    first, second = fake.made
    assert [step for step, *_ in second.got] == [1, 2] and first.run != second.run


@pytest.mark.parametrize("what", ["a step", "its start"])
def test_a_tracker_that_fails_is_named_once_and_the_command_sends_the_rest(
    what: str,
    tiny: Path,
    tmp_path: Path,
    questions: Path,
    fake: type[Fake],
    capsys: pytest.CaptureFixture,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, words = tmp_path / "run", {"steps": 4, "save_every": 1, "eval_every": 0}
    train.main(options(tiny, questions, tmp_path / "untracked", **words))
    if what == "its start":
        monkeypatch.setitem(track.TRACKERS, "wandb", lambda *_: 1 / 0)
    fake.fails = {2}
    train.main(options(tiny, questions, run, track="wandb", **words))
    said = capsys.readouterr().out
    assert said.count("wandb failed and gets no more: ") == 1 and KEY not in said and "\x1b" not in said
    assert numbers(run) == numbers(tmp_path / "untracked"), "the run is none the worse"
    assert not any(KEY in path.read_text() for path in run.glob("*.json*"))
    monkeypatch.setitem(track.TRACKERS, "wandb", Fake)
    fake.fails = set()
    track.main(run, to="wandb")
    sent = [[step for step, *_ in each.got] for each in fake.made]
    assert sent == ([[1], [2, 3, 4]] if what == "a step" else [[1, 2, 3, 4]])
    track.main(run, to="wandb")
    assert not fake.made[-1].got


def test_a_run_without_checkpoints_is_sent_at_its_end(
    tiny: Path, tmp_path: Path, questions: Path, fake: type[Fake]
) -> None:
    words = options(tiny, questions, tmp_path / "run", steps=2, save_every=0, eval_every=0, track="wandb")
    train.main(words)
    assert [step for step, *_ in fake.made[0].got] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in track.TRACKERS:
        with pytest.raises(ValueError, match=rf"^--track {name} needs .*: pip install -e '.\[{name}\]'$"):
            train.main(options(tiny, questions, tmp_path / "run", track=name))
    assert not (tmp_path / "run").exists()


def test_answers_are_bounded_text() -> None:
    """A long one is cut, with its length; Markdown's block of code has every line of a text."""
    row = {"example_id": "\x1b[2J", "prompt": "![x](http://evil)", "response": "a" * 5000}
    row |= dict.fromkeys(("step", "reward", "advantage", "tokens", "finished"), 1)
    rows = track._bounded([row] * 50)
    assert len(rows) == 32
    assert rows[0]["response"] == "a" * 2000 + "... (5,000 characters)"
    assert track._cells(rows)[0][1] == r"\x1b[2J"
    assert track._code("<b>\n\n# x") == "    <b>\n    \n    # x\n"


# --- the trackers themselves --------------------------------------------------------------------------------

Steps = dict[int, list[dict[str, float]]]  # what a tracker has of each step, once or more often


def of_tensorboard(run: Path, cache: Path) -> tuple[Steps, str]:
    """The steps, and the answers' text, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()
    steps: Steps = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps.setdefault(event.step, [{}])[0].setdefault(name, []).append(event.value)
    for each in steps.values():
        assert {len(values) for values in each[0].values()} == {1}
        each[0] = {name: values[0] for name, values in each[0].items()}
    texts = events.Tensors("answers/text_summary")
    assert events.Tensors("settings/text_summary")
    return steps, "".join(event.tensor_proto.string_val[0].decode() for event in texts)


def of_trackio(run: Path, cache: Path) -> tuple[Steps, str]:
    """The steps, and the answers' table, as trackio's database has them."""
    import sqlite3

    steps: Steps = {}
    tables = ""
    with sqlite3.connect(cache / "trackio" / "rar-mini.db") as database:
        names = {name for (name,) in database.execute("select run_name from metrics")}
        for step, text in database.execute("select step, metrics from metrics"):
            row = json.loads(text)
            tables += json.dumps(row.pop("answers", ""))
            steps.setdefault(step, []).append(row)
    assert len(names) == 1
    return steps, tables


def of_wandb(run: Path, cache: Path) -> tuple[Steps, str]:
    """The steps, and the answers' tables, of the newest offline folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    folder = max((run / "wandb").glob("offline-run-*"))
    (file,) = folder.glob("*.wandb")
    steps: Steps = {}
    for data in log_records(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            row = {name: x for name, x in row.items() if name[0] != "_" and name != "answers"}
            steps.setdefault(record.history.step.num, []).append(row)
    tables = "".join(path.read_text() for path in sorted(folder.rglob("*.table.json")))
    return steps, tables


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's form of a log."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


REAL = {"tensorboard": of_tensorboard, "trackio": of_trackio, "wandb": of_wandb}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_tracker_has_what_metrics_jsonl_has(
    name: str,
    tiny: Path,
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: Callable,
) -> None:
    """Each step once, although the run was killed and what it had sent was not noted; and no key."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    asked = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "HF_TOKEN": KEY, "TRACKIO_DIR": cache / "trackio"}
    for variable, value in asked.items():
        monkeypatch.setenv(variable, str(value))
    module = pytest.importorskip(name, reason=f"needs the extra `{name}`: pip install -e '.[{name}]'")
    evil = "<img src=x onerror=alert(1)> ![x](http://evil) # h"
    write_rows(questions, [question(i, question=f"{evil} {i}", split="train") for i in range(5)])
    killed_at(3)
    run_killed(options(tiny, questions, run, steps=4, save_every=2, eval_every=0, track=name))
    if name == "wandb":
        module.finish()  # its own process ends with ours, and here ours lives on
    note = run / f"track-{name}.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sent": 1}))
    killed_at(0)
    train.main(["--resume", str(run)])
    steps, answers = REAL[name](run, cache)
    wanted = {row.pop("step"): row for row in records(run)}
    assert steps.keys() == wanted.keys()
    for step, row in wanted.items():
        (got,) = steps[step]
        row = {key: value for key, value in row.items() if value is not None}
        assert got == pytest.approx(row, rel=1e-6)
    assert evil.split()[0] in answers
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
