"""The released data: fetched whole, read from Parquet under the same checks as JSONL, tidied in numbers."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
import torch
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny import question, write_rows

import train
from rar_mini import data, hub, policy, recipe, setup
from rar_mini.checkpoint import Run
from rar_mini.data import Example
from rar_mini.evaluation import replay as rollouts
from rar_mini.kernels.adamw import AdamW
from rar_mini.recipe import Recipe
from rar_mini.tools import tables

ROOT = Path(__file__).parents[1]
REPO, PINNED = hub.RELEASED["medical"]
COMMIT = PINNED + "0" * (40 - len(PINNED))
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("question", "reference_answer", "question_source")]
    + [("rubric", pa.list_(pa.struct([("description", "string"), ("title", "string"), ("weight", "int64")])))]
    + [("rubric_list", pa.list_(pa.string())), ("rubric_count", pa.int64())]
)


def row(text: str, **changes: object) -> dict:
    """A released row: no id, no split, and the rubric a second time as a list of texts."""
    rubric = [item for item in question(0)["rubric"][-3:] if item["weight"]]
    found = {"question": text, "reference_answer": "That.", "question_source": "test", "rubric": rubric}
    found |= {"rubric_list": [item["description"] for item in rubric], "rubric_count": len(rubric)}
    return found | changes


def write_tables(folder: Path, **splits: list[dict]) -> Path:
    """A folder as the Hub has it: data/train-00000-of-00001.parquet and so on."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        parquet.write_table(table, folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


WEIGHTLESS = [{"description": "Essential Criteria: X.", "title": "x", "weight": 0}]
ODD = [{"description": "Importance Criteria: X.", "title": "x", "weight": 4}]
SMALL = {
    "train": [row(f"What is {i}?") for i in range(4)]
    + [row("What is  1?"), row("What is 8?"), row("What is 9?"), row("Why?", reference_answer=" ")]
    + [row("Zero?", rubric=WEIGHTLESS), row("Odd?", rubric=ODD)],
    "val": [row("What is 8?"), row("What is 20?")],
    "test": [row("What is 9?"), row("What is 30?")],
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Ten rows to train on: a question twice, one of val, one of test, one row that weighs nothing."""
    return write_tables(tmp_path / "small", **SMALL)


# --- reading ------------------------------------------------------------------------------------------------


def test_a_split_is_what_the_files_name_says(small: Path) -> None:
    examples = data.read(small, skip_weightless=True)
    assert Counter(e.split for e in examples) == {"train": 9, "held_out": 2, "test": 2}
    assert examples[0].rubric.weights == pytest.approx([1.0, 0.7, 0.9])
    one = data.read(small / "data" / "val-00000-of-00001.parquet")
    assert [(e.split, e.question) for e in one] == [("held_out", "What is 8?"), ("held_out", "What is 20?")]
    (small / "data" / "val-00000-of-00001.parquet").rename(small / "mine.parquet")
    assert {e.split for e in data.read(small / "mine.parquet")} == {"train"}


def test_an_id_is_the_questions_and_stays_when_other_rows_go(tmp_path: Path) -> None:
    """Rollouts and random streams are named by ids: numbered lines would give every later row another's."""
    rows = [row("a?"), row("b?"), row("a?"), row("c?"), row("a?", reference_answer="Other.")]
    before = [e.id for e in data.read(write_tables(tmp_path, train=rows, val=rows[:1]))]
    assert len(set(before)) == 6 and before[2] == f"{before[0]}-2" and before[4] == f"{before[0]}-3"
    assert before[0] == f"train-{before[5].removeprefix('val-')}" and re.fullmatch(
        "val-[0-9a-f]{12}", before[5]
    )
    after = [e.id for e in data.read(write_tables(tmp_path, train=[row("new?"), *rows[1:]], val=rows[:1]))]
    assert after[1] == before[1] and after[3] == before[3] and after[5] == before[5]


BAD = {
    "no question": ({"question": None}, "field question: expected text, got nothing"),
    "no rubric": ({"rubric": None}, "field rubric: expected a list"),
    "an item without a title": (
        {"rubric": [{"description": "Says a", "title": None, "weight": 5}]},
        "field rubric[0].title: expected text, got nothing",
    ),
    "an item without a weight": (
        {"rubric": [{"description": "Says a", "title": "a", "weight": None}]},
        "field rubric[0].weight: expected a number, got nothing",
    ),
    "weights of zero": ({"rubric": WEIGHTLESS}, "field rubric: expected an item that weighs something"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path: Path, name: str) -> None:
    changes, words = BAD[name]
    folder = write_tables(tmp_path, train=[row("a?"), row("b?")], val=[row("c?"), row("d?", **changes)])
    with pytest.raises(data.BadRow) as error:
        data.read(folder)
    assert f"{folder}, val-00000-of-00001.parquet, row 2: {words}" in str(error.value)
    notes: Counter[str] = Counter()
    assert len(data.read(folder, skip_bad=True, notes=notes)) == 3
    assert notes == {"rows left out as bad": 1}


def test_rows_that_weigh_nothing_are_left_out_when_asked_and_no_other_bad_row_is(tmp_path: Path) -> None:
    rows, notes = [row("a?"), row("b?", rubric=WEIGHTLESS)], Counter()
    assert len(data.read(write_tables(tmp_path, train=rows), skip_weightless=True, notes=notes)) == 1
    assert notes == {"rows left out because no item weighs anything": 1}
    with pytest.raises(data.BadRow, match="field question"):
        data.read(write_tables(tmp_path, train=[*rows, row("")]), skip_weightless=True)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}\n", None])
def test_what_is_no_parquet_file_is_refused_by_name(small: Path, content: bytes | None) -> None:
    """None: cut, as a download that was broken off."""
    path = small / "data" / "val-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(path))}: expected a Parquet file"):
        data.read(small, skip_weightless=True)


# --- hygiene ------------------------------------------------------------------------------------------------


def asked(examples: list[Example], split: str) -> list[str]:
    return [example.question for example in examples if example.split == split]


def test_hygiene_leaves_out_what_leaks_or_counts_twice_and_says_how_much(small: Path) -> None:
    """12.3 % of the released science test questions also stand in train."""
    examples, notes = data.read(small, skip_weightless=True), Counter()
    kept = data.tidy(examples, notes)
    assert asked(kept, "train") == ["What is 0?", "What is 1?", "What is 2?", "What is 3?", "Why?", "Odd?"]
    assert asked(kept, "held_out") == ["What is 8?", "What is 20?"] and len(asked(kept, "test")) == 2
    assert notes == {
        "training questions left out because another split has them too": 2,
        "questions left out because their split has asked them before": 1,
        "questions kept without a reference answer": 1,
    }
    again: Counter[str] = Counter()
    assert data.tidy(kept, again, references=True) == [e for e in kept if e.question != "Why?"]
    assert again == {"questions left out because they have no reference answer": 1}


def test_of_two_rows_the_one_that_the_method_can_use_is_kept(tmp_path: Path) -> None:
    rows = [row("a?", reference_answer=""), row("a?"), row("10 mW?"), row("10 MW?")]
    examples = data.read(write_tables(tmp_path, train=rows))
    assert data.tidy(examples, Counter()) == [examples[0], *examples[2:]]
    assert data.tidy(examples, Counter(), references=True) == examples[1:]


def test_the_bundled_sample_needs_no_hygiene() -> None:
    """So that its results did not change when the pass came."""
    for domain in hub.RELEASED:
        examples, notes = data.sample(domain), Counter()
        assert data.tidy(examples, notes, references=True) == examples and not notes
        assert data.spread([e for e in examples if e.split == "train"], 64) == [
            e for e in examples if e.split == "train"
        ]


@given(st.integers(0, 300), st.integers(1, 100))
def test_spread_takes_distinct_ones_in_order_and_as_evenly_as_can_be(count: int, most: int) -> None:
    found = data.spread(range(count), most)  # type: ignore[arg-type]
    assert found[:1] == list(range(min(count, 1))) and len(found) == min(count, most)
    gaps = [b - a for a, b in zip(found, [*found, count][1:], strict=True)]
    assert not gaps or min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


# --- the tables ---------------------------------------------------------------------------------------------


def test_the_tables_count_what_they_say(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["--stats", "--data", str(small)])
    said = capsys.readouterr().out
    shown = {line[:36].strip(): line[36:46].strip() for line in said.splitlines() if len(line) == 66}
    items = 8 * 3 + 1 + 2 * 3  # of train and val; the odd row has one
    assert shown == {
        "": "here",
        "examples to train on": "9",
        "examples held out (val)": "2",
        "examples to test with": "2",
        "train and val together": "11",
        "items a question": f"{items / 11:.2f}",
        "words a question": f"{(3 * 9 + 1 + 1) / 11:.2f}",
        "% of items essential": f"{100 * 10 / items:.2f}",
        "% of items important": f"{100 * 11 / items:.2f}",
        "% of items optional": "0.00",
        "% of items pitfall": f"{100 * 10 / items:.2f}",
        "% of questions asked before": f"{100 * 3 / 13:.2f}",
        "% of test questions also in train": "50.00",
        "% without a reference answer": f"{100 / 13:.2f}",
        "% of items without a clear category": f"{100 / (items + 6):.2f}",
        "rows whose items all weigh nothing": "1",
    }
    assert "Hygiene keeps 10 of 13 rows." in said and "another split has them too: 2" in said
    assert "20,166" in said and "Tables 6 and 9 count topics" in said


def test_the_papers_figures_are_the_papers() -> None:
    """Its counts by category (Tables 5 and 8) give its shares, and its examples are the released train and
    val."""
    counts = {"essential": (47_584, 42_739), "important": (52_748, 52_315)}
    counts |= {"optional": (34_261, 33_622), "pitfall": (20_215, 21_808)}
    figures = {label.strip(): row for label, *row in tables.FIGURES}
    for place, total in enumerate((154_808, 150_484)):
        assert sum(count[place] for count in counts.values()) == total
        for category, count in counts.items():
            assert figures[f"% of items {category}"][2 * place] == f"{100 * count[place] / total:.1f}"
        sizes = [int(row[2 * place + 1].replace(",", "")) for row in list(figures.values())[:4]]
        assert sizes[0] + sizes[1] == sizes[3] and figures["train and val together"][2 * place] == (
            f"{sizes[3]:,}"
        )
    assert f"{154_808 / 20_625:.1f}, {154_808 / 20_166:.1f}, {150_484 / 20_625:.1f}" == "7.5, 7.7, 7.3"


def test_what_has_no_test_split_leaves_its_share_empty(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["--stats", "--domain", "science"])
    said = capsys.readouterr().out
    assert said.startswith("science, bundled\n") and said.endswith("\nHygiene keeps 48 of 48 rows.\n")
    assert "% of test questions also in train" + f"{'12.30':>33}\n" in said


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--data none.jsonl", "rar_mini.tools.tables: cannot read none"),
        ("--data .", "rar_mini.tools.tables: . has no usable"),
    ],
)
def test_a_wrong_source_ends_in_one_line(
    words: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("rar_mini/tools/tables.py", "--stats", *words.split())
    assert done.returncode == 1 and error in done.stderr and done.stderr.count("\n") == 1


# --- the Hub ------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a dataset needs, with the small tables under one commit."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]]
    broken: ClassVar[str]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = sorted(self.folder.glob("data/*"))
        names = [file.relative_to(self.folder).as_posix() for file in files]
        if self.broken and self.broken in path:
            self.send_error(500 if self.asked.count(path) == 1 else 404)  # the Hub's client tries 500 again
        elif re.fullmatch(f"/api/datasets/{REPO}(/revision/(main|{COMMIT}))?", path):
            siblings = [{"rfilename": name} for name in ["README.md", *names]]
            self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/datasets/{REPO}/commits/main":
            commit = {"authors": [], "date": "2025-10-03T00:00:00.000Z", "title": "t", "message": ""}
            self.answer(json.dumps([commit | {"id": "f" * 40}, commit | {"id": COMMIT}]))
        elif path == f"/api/datasets/{REPO}/tree/{COMMIT}":
            sizes = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": "1" * 40}
                for n, f in zip(names, files, strict=True)
            ]
            readme = {"type": "file", "path": "README.md", "size": 1, "oid": "2" * 40}
            self.answer(json.dumps([readme, *sizes]))
        elif path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/data/"):
            self.answer((self.folder / "data" / Path(path).name).read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, body: str | bytes) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(200)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (headers | {"ETag": f'"{hash(content)}"', "X-Repo-Commit": COMMIT}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def served(small: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.folder, Hub.asked, Hub.broken = small, [], ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever).start()
    yield server
    server.shutdown()
    server.server_close()


def stats(server: ThreadingHTTPServer, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its endpoint when it is imported."""
    env = os.environ | {"HF_ENDPOINT": f"http://alice:hunter2@127.0.0.1:{server.server_address[1]}"}
    env |= {"RAR_MINI_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-m", "rar_mini.data", "--stats", "--data", "rar", *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "hunter2" not in done.stdout + done.stderr
    return done


def test_a_commit_is_fetched_once_and_then_read_without_the_hub(
    served: ThreadingHTTPServer, tmp_path: Path
) -> None:
    first = stats(served, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"medical, rar at {COMMIT}\n") and "Hygiene keeps 10 of 13" in first.stdout
    assert not any("README" in path for path in Hub.asked)
    Hub.asked.clear()
    assert stats(served, tmp_path).stdout == first.stdout and Hub.asked == []
    assert stats(served, tmp_path, "--revision", COMMIT).stdout == first.stdout and Hub.asked == []
    moved = stats(served, tmp_path, "--revision", "main")  # a branch moves: the Hub is asked where it is
    assert moved.stdout == first.stdout and [path for path in Hub.asked if "resolve" in path] == []
    assert {path.name for path in (tmp_path / "cache" / "datasets").iterdir()} == {f"RaR-Medicine-{COMMIT}"}


def test_a_download_that_breaks_off_leaves_nothing_that_could_be_read(
    served: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """Two of three files would be a run without held-out questions, and without their leaks found."""
    Hub.broken = "val-"
    done = stats(served, tmp_path, "--revision", COMMIT)
    assert (
        done.returncode == 1 and f"rar_mini.tools.tables: could not get {REPO} at {COMMIT}: " in done.stderr
    )
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []
    Hub.broken = ""
    assert "Hygiene keeps 10 of 13 rows" in stats(served, tmp_path).stdout


def test_an_unknown_revision_is_refused_with_remedies(served: ThreadingHTTPServer, tmp_path: Path) -> None:
    for revision in ("abcdef0", "nowhere"):
        done = stats(served, tmp_path, "--revision", revision)
        assert done.returncode == 1 and f"could not get {REPO} at {revision}" in done.stderr
        assert all(word in done.stderr for word in ("--revision main", "HF_ENDPOINT", "--data DIRECTORY"))
        assert "Traceback" not in done.stderr


# --- training -----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small tables where a first fetch would have put them."""
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "datasets" / f"RaR-Medicine-{COMMIT}"
    folder.parent.mkdir(parents=True)
    return (write_tables(tmp_path / "made", **SMALL) / "data").rename(folder)


def words(tiny: Path, out: Path, *more: str) -> list[str]:
    given = f"--policy {tiny} --out {out} --judge keyword --steps 2 --prompts-per-step 2 --group-size 4"
    given += " --max-new-tokens 6 --save-every 1 --eval-samples 1 --eval-questions 2"
    return given.split() + list(more)


def test_a_run_on_the_released_data_is_pinned_and_repeated_without_the_hub(
    cached: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train.main(words(tiny, run, "--data", "rar"))
    said = capsys.readouterr().out
    assert f"data     rar, medical at {COMMIT[:12]}: 6 training questions, 2 held out" in said
    for note in (
        "rows left out because no item weighs anything: 1",
        "items whose category was read from the weight: 1",
        "training questions left out because another split has them too: 2",
        "questions left out because their split has asked them before: 1",
        "questions kept without a reference answer: 1",
    ):
        assert f"  {note}\n" in said
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["data"], settings["revision"]) == ("rar", COMMIT)
    train.main(["--resume", str(run), "--steps", "3"])
    assert json.loads((run / "config.json").read_text())["settings"]["revision"] == COMMIT

    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3}
    assert all(line["example_id"].startswith("train-") for line in lines)
    own = recipe.make(None, Run(run, {"settings": settings}).settings())
    assert rollouts.examples_of(run, own, lines)[0].split == "train"
    scores = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    by = {(s["step"], s["split"]): [] for s in scores}
    for score in scores:
        by[score["step"], score["split"]].append(score["example_id"])
    assert {place: len(ids) for place, ids in by.items()} == dict.fromkeys(by, 2)
    assert by[0, "train"] == by[3, "train"] and by[0, "held_out"] == by[3, "held_out"]


def test_hygiene_can_be_switched_off(
    cached: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(words(tiny, tmp_path / "run", "--data", "rar", "--no-hygiene", "--eval-every", "0"))
    said = capsys.readouterr().out
    assert ": 9 training questions, 2 held out" in said and "rows left out as bad: 1" in said
    assert "their split" not in said and "another split" not in said


def test_a_method_with_references_trains_on_those_rows_that_have_one(
    cached: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, one empty reference of 18,000 stopped the run."""
    config = setup.parse(
        words(tiny, tmp_path / "run", "--data", "rar", "--method", "reference-likert", "--judge", "local:x")
    )
    judge = train.Judge("keyword", "rar-explicit")
    judge.method = config.method
    actor = policy.load(str(tiny), torch.float32, "cpu")
    t = setup.Training(
        config, Recipe(config=config), actor, None, AdamW(actor.model.parameters(), 0.0), judge
    )
    splits = setup.read_questions(t)
    assert len(splits["train"]) == 5 and all(e.reference for e in splits["train"])
    assert "  questions left out because they have no reference answer: 1\n" in capsys.readouterr().out


def test_a_revision_without_the_released_data_is_refused(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """It would be recorded as if it had been read."""
    with pytest.raises(ValueError, match="--revision main only applies to --data rar"):
        train.main(words(tiny, tmp_path / "run", "--revision", "main", "--data", str(questions)))


def test_json_lines_are_tidied_alike(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [question(i) for i in range(3)] + [question(1, id="again"), question(2, id="v", split="held_out")]
    write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    train.main(words(tiny, Path("run"), "--data", "rows.jsonl", "--eval-every", "0"))
    assert ": 2 training questions, 1 held out" in capsys.readouterr().out
    settings = json.loads(Path("run/config.json").read_text())["settings"]
    assert settings["data"] == str(tmp_path / "rows.jsonl")  # holds from wherever it is read
