"""A run's own files are input, too: what a person, a disk or another process has changed in them is refused
by its name, and nothing is lost before the run that goes on has loaded."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_train import options, records
from tiny import question, write_rows

import train
from rar_mini import checkpoint, data, files, report
from rar_mini.checkpoint import Run
from rar_mini.evaluation import answers


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint of each. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("done")
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    words = options(tiny, write_rows(folder / "questions.jsonl", rows), folder / "run", steps=2)
    train.main([*words, "--max-new-tokens", "6"])
    return folder / "run"


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be spoilt."""
    return shutil.copytree(done, tmp_path / "run")


def on(run: Path, *words: str) -> None:
    train.main(["--resume", str(run), "--steps", "3", *words])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- checkpoints --------------------------------------------------------------------------------------------


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


MANIFESTS = {
    "another step": ('"step": 2', '"step": 1', r"field step: expected 2 as in the name, got 1"),
    "another version": ('"python": "', '"python": "1', "field digest: expected"),
    "a digest that is gone and a file that is not": ('"files": {', '"files": {"a": "b",', "field digest"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_changed_manifest_is_refused_and_nothing_is_lost(run: Path, name: str) -> None:
    """Of a manifest that said step 1, the resume deleted every checkpoint and the records after it."""
    old, new, said = MANIFESTS[name]
    change(run / "checkpoints" / "step-2" / "trainer" / "state.json", old, new)
    before = contents(run)
    with pytest.raises(ValueError, match=rf"step-2 is damaged: trainer/state.json \({said}.*--step 1$"):
        on(run)
    assert contents(run) == before


def test_a_checkpoint_of_before_there_was_a_digest_goes_on(run: Path) -> None:
    path = run / "checkpoints" / "step-2" / "trainer" / "state.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({name: manifest[name] for name in ("step", "files", "versions")}))
    on(run)
    assert [row["step"] for row in records(run)] == [0, 1, 2, 3]


def test_nothing_is_lost_by_a_resume_that_fails_while_it_loads(run: Path) -> None:
    """The run asks for step 1 again, and its data is gone: later steps stay."""
    change(run / "config.json", "questions.jsonl", "moved.jsonl")
    before = contents(run)
    with pytest.raises(ValueError, match="moved.jsonl"):
        on(run, "--step", "1")
    assert contents(run) == before


def test_only_a_folder_of_exactly_that_name_is_a_checkpoint(run: Path) -> None:
    """A backup beside them ended the run at its next save, as did a link; both might have been deleted."""
    folder = run / "checkpoints"
    for name in ("step-1-backup", "step-2.bak", "step-02", "step-"):
        shutil.copytree(folder / "step-1", folder / name)
    (folder / "step-7").symlink_to(folder / "step-1")
    (folder / "step-9").write_text("a note")
    foreign = {path.name for path in folder.iterdir()} - {"step-1", "step-2"}
    on(run, "--step", "1")  # which deletes step 2, and saves two more
    assert [path.name for path in Run(run).checkpoints()] == ["step-2", "step-3"]
    assert {path.name for path in folder.iterdir()} == foreign | {"step-2", "step-3"}
    assert (folder / "step-7").is_symlink()


def test_what_has_a_checkpoints_name_and_is_none_makes_room(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "step-3").symlink_to(run / "checkpoints" / "step-1")
    on(run)
    assert checkpoint.check(run / "checkpoints" / "step-3") == 3
    assert (run / "checkpoints" / "step-3-other-1").is_symlink()
    assert "step-3 was no checkpoint of this run; it is step-3-other-1 now" in capsys.readouterr().err


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def evaluated(run: Path) -> None:
    asking = answers.Answering(policy=str(run))
    answers.Sampled(asking.located()[0], asking).fitting(data.sample("medical"))


USERS: dict[str, Callable[[Path], object]] = {
    "a resume": on,
    "an evaluation": evaluated,
    "a new run": lambda run: train.main(["--policy", f"{run}/checkpoints/step-2", "--judge", "keyword"]),
    "a judge": lambda run: train.Judge(f"local:{run}/checkpoints/step-2", "rar-explicit"),
}


@pytest.mark.parametrize("name", USERS)
def test_no_command_reads_weights_with_a_flipped_bit(run: Path, name: str) -> None:
    """Only a resume looked."""
    flip(run / "checkpoints" / "step-2" / "model.safetensors")
    with pytest.raises(ValueError, match=r"step-2 is damaged: model.safetensors is not what was written"):
        USERS[name](run)


def test_weights_without_what_a_resume_needs_are_a_model(run: Path) -> None:
    """To delete trainer/ saves two thirds of the disk; then there is nothing to compare with."""
    folder = run / "checkpoints" / "step-2"
    flip(folder / "trainer" / "optimizer.pt")
    checkpoint.refuse_damaged(folder)
    with pytest.raises(ValueError, match="optimizer.pt"):
        checkpoint.check(folder)
    shutil.rmtree(folder / "trainer")
    checkpoint.refuse_damaged(folder)


def test_a_resume_reads_each_line_once_and_holds_a_few_steps(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of a long run has gigabytes. All of it was parsed twice and held while the run went on."""
    run, read = tmp_path / "run", []
    train.main(options(tiny, questions, run, steps=5, save_every=1, eval_every=0))
    rows = len(records(run, "rollouts"))
    plain = files.each_line

    def counted(path: Path, *fields: str, **how: Any) -> Iterator[tuple[dict, int]]:
        for row, end in plain(path, *fields, **how):
            read.append(path.name)
            yield row, end

    monkeypatch.setattr(checkpoint, "each_line", counted)
    monkeypatch.setattr(report, "RECENT", 2)
    train.main(["--resume", str(run), "--steps", "6"])
    assert rows == 5 * 8 and read.count("rollouts.jsonl") == rows + 2 * 8
    assert [row["step"] for row in records(run)] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_comes_too_late_is_named(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """Two processes that wrote at once left such a record, before there was a lock."""
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=2, save_every=1, eval_every=0))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines, lines[0]]))
    with pytest.raises(
        ValueError, match="metrics.jsonl, line 3: expected step 2 or later, got 1; no run writes"
    ):
        checkpoint.records(run, "metrics.jsonl")


@pytest.mark.parametrize(
    ("last", "fault"), [("{", "a JSON object with step"), ('{"step": 1}', "step 2 or later, got 1")]
)
def test_a_line_behind_a_place_is_counted_from_there(tmp_path: Path, last: str, fault: str) -> None:
    """A resume reads the last steps alone, and named line 2 of a file of thousands."""
    rows = ['{"step": 1}\n', '{"step": 2}\n', last + "\n"]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    with pytest.raises(ValueError, match=f"metrics.jsonl, line 2 behind byte 12: expected {fault}"):
        list(checkpoint.each_record(tmp_path, "metrics.jsonl", start=12))
    with pytest.raises(ValueError, match=f"metrics.jsonl, line 3: expected {fault}"):
        checkpoint.records(tmp_path, "metrics.jsonl")
