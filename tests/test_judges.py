"""One table of several judges on several sets: it is recomputed, and goes on where it stopped."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from hostile import Server, shared
from tiny import question, write_rows

import evaluate
from rar_mini.config import Options
from rar_mini.evaluation import agreement, judges, trust
from rar_mini.files import lines

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of 50 draws in place of 1,000, which take seconds."""
    monkeypatch.setattr(trust, "resampled", partial(agreement.resampled, draws=50))


FLUENT = [{"response": "good", "quality": "good", "labels": [1] * 3}]
FLUENT += [{"response": "one", "quality": "one_wrong", "labels": [1, 0, 1]}]
RUBRIC = [{"title": name, "description": f"Essential Criteria: Says {name}.", "weight": 5} for name in "abc"]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two files with labels and one without, in a folder."""
    (tmp_path / "sets").mkdir()
    rows = [question(n, rubric=RUBRIC, labelled_responses=FLUENT) for n in range(40)]
    write_rows(tmp_path / "sets" / "many.jsonl", rows)
    pair = {"input": "q", "output_1": "one", "output_2": "good", "label": 2}
    (tmp_path / "sets" / "dataset.json").write_text(json.dumps([pair]))
    write_rows(tmp_path / "sets" / "other.jsonl", [question(1)])
    return tmp_path / "sets"


def knows(path: str, body: dict) -> dict:
    """It misses what is wrong with the answers to questions whose number ends in 1."""
    bad = shared(body["state"]) == "one" and "1?" not in body["state"]
    return {
        n: {"type": "noul", "noul": 0.2 if bad and "Says b" in q["instructions"] else 0.9}
        for n, q in body["questions"].items()
    }


def tabulated(capsys: pytest.CaptureFixture, out: Path, *names: str, **how: Any) -> dict:
    evaluate.tabulate(judge=names, out=out, judging=Options(cache=False, concurrency=1), **how)
    return json.loads(capsys.readouterr().out.splitlines()[-1])["data"]


def test_the_table_has_a_row_for_each_judge_and_set(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path
) -> None:
    server.reply = knows
    found = tabulated(capsys, tmp_path / "t.md", "keyword", "systemone:m", data=(str(sets),))
    assert found.keys() == {"many", "LLMBar sets"}, "dataset.json has the name of its folder"
    one = found["many"]["systemone:m"]
    assert one["all"]["verdicts"] == 240 and one["flawed only"]["verdicts"] == 120 and one["failed"] == 0
    kept = [row for row in lines(tmp_path / "t.jsonl") if row["judge"] == "systemone:m"][-80:]
    verdict, label = np.array([row["verdicts"] for row in kept]), np.tile([[1, 1, 1], [1, 0, 1]], (40, 1))
    balanced = agreement.balanced(verdict.ravel(), label.ravel())
    assert one["all"]["balanced"]["value"] == pytest.approx(balanced, abs=1e-6)
    assert 0.5 < one["all"]["balanced"]["low"] < one["all"]["balanced"]["value"] < 1.0
    assert one["pairs"]["won"] + one["pairs"]["tied"] == 40 and 0 < one["pairs"]["tied"] < 40
    assert one["dollars"] is None and found["many"]["keyword"]["dollars"] == 0.0, "m has no price"
    text = (tmp_path / "t.md").read_text()
    assert text.count("| `systemone:m` |") == text.count("| `keyword` |") == 2


def test_judges_and_sets_may_come_in_several_options(
    server: Server, command: Command, tmp_path: Path, sets: Path
) -> None:
    """The parser keeps the last --judge and the last --data alone."""
    server.reply = knows
    words = ("--judge", "keyword", "--data", sets / "many.jsonl", "--judge=systemone:m", "--limit", "1")
    words = (*words, "--data", sets / "dataset.json", "--out", tmp_path / "t.md")
    done = command("evaluate.py", "judges", *words)
    found = json.loads(done.stdout.splitlines()[-1])["data"]
    judged = ["keyword", "systemone:m"]
    assert {name: [*by] for name, by in found.items()} == {"many": judged, "LLMBar sets": judged}


def test_a_killed_command_goes_on_and_a_later_one_adds(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch of 32 answers fails hard; of the first nothing is asked again."""
    server.reply = knows
    out, asks = tmp_path / "t.md", judges.ask
    batches: list[int] = []

    def dies(judge: Any, answers: list, progress: str | None) -> Any:
        batches.append(len(answers))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return asks(judge, answers, progress)

    many = str(sets / "many.jsonl")
    monkeypatch.setattr(judges, "ask", dies)
    with pytest.raises(KeyboardInterrupt):
        tabulated(capsys, out, "systemone:m", data=(many,))
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"judge": "system')  # what a kill leaves
    found = tabulated(capsys, out, "systemone:m", data=(many,))["many"]
    assert found["systemone:m"]["all"]["verdicts"] == 240
    assert len(server.seen) == 80 and batches == [32, 32, 32, 16]
    assert tabulated(capsys, out, "systemone:m", data=(many,))["many"] == found
    tabulated(capsys, out, "keyword", data=(many,))
    assert len(server.seen) == 80
    page = out.read_text()
    assert page.count("| `systemone:m` |") == page.count("| `keyword` |") == 1


def test_a_table_on_a_page_leaves_the_page_as_it_was(
    capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path
) -> None:
    """Rows of other judges stay, also without the file of what was kept; its own are replaced."""
    page, data = tmp_path / "page.md", (str(sets / "many.jsonl"),)
    other = "| many | `chat:n` | 1 |\n"
    page.write_text(f"# Mine\n\n{judges.BEGIN}| data |\n|---|\n{other}{judges.END}\nThe rest | here.\n")
    for _ in range(2):
        tabulated(capsys, page, "keyword", data=data)
        text = page.read_text()
        assert text.startswith(f"# Mine\n\n{judges.BEGIN}| data | judge | verdicts |")
        assert text.endswith(f"{judges.END}\nThe rest | here.\n")
        assert text.count(other) == text.count("| many | `keyword` | 240 | 83 % |") == 1


def test_corrected_labels_need_no_new_verdicts(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path
) -> None:
    server.reply, many, out = knows, sets / "many.jsonl", tmp_path / "t.md"
    tabulated(capsys, out, "systemone:m", data=(str(many),))
    many.write_text(many.read_text().replace("[1, 0, 1]", "[1, 1, 1]"))
    found = tabulated(capsys, out, "systemone:m", data=(str(many),))["many"]["systemone:m"]
    assert found["all"]["met"] == 1.0 and len(server.seen) == 80


def test_a_verdict_that_failed_is_asked_again_and_counts_for_nothing(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path
) -> None:
    server.reply, many = knows, (str(sets / "many.jsonl"),)
    server.fault = lambda path, body, number: "missing" if number <= 3 else None
    judging = Options(cache=False, concurrency=1, parse_retries=0)
    evaluate.tabulate(judge=("systemone:m",), data=many, out=tmp_path / "t.md", judging=judging)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["many"]["systemone:m"]
    assert first["failed"] > 0 and first["all"]["verdicts"] == 240 - first["failed"]
    server.fault = lambda path, body, number: None
    asked = len(server.seen)
    assert (
        tabulated(capsys, tmp_path / "t.md", "systemone:m", data=many)["many"]["systemone:m"]["failed"] == 0
    )
    assert len(server.seen) - asked == first["failed"] / 3


def test_an_item_of_weight_0_has_not_failed_and_is_not_paid_for_again(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """No judge is asked about it."""
    server.reply = lambda path, body: {n: {"type": "noul", "noul": 0.9} for n in body["questions"]}
    rubric = [*RUBRIC[:2], RUBRIC[2] | {"weight": 0}]
    rows = [question(n, rubric=rubric, labelled_responses=FLUENT) for n in range(2)]
    data = (str(write_rows(tmp_path / "zero.jsonl", rows)),)
    for _ in range(2):
        result = tabulated(capsys, tmp_path / "t.md", "systemone:m", data=data)["zero"]["systemone:m"]
        assert result["failed"] == 0 and result["all"]["verdicts"] == 8
        assert len(server.seen) == 4


def test_an_answer_that_stands_twice_is_asked_about_and_paid_for_once(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    server.reply = lambda path, body: {n: {"type": "noul", "noul": 0.9} for n in body["questions"]}
    rows = [question(n, question=f"{n % 20}?", rubric=RUBRIC, labelled_responses=FLUENT) for n in range(40)]
    data = (str(write_rows(tmp_path / "twice.jsonl", rows)),)
    result = tabulated(capsys, tmp_path / "t.md", "systemone:m", data=data)["twice"]["systemone:m"]
    assert len(server.seen) == 40 and result["all"]["verdicts"] == 240
    seconds = sum(row["seconds"] for row in lines(tmp_path / "t.jsonl"))
    assert result["seconds"] == pytest.approx(seconds, abs=1e-6)


def test_so_many_questions_are_drawn_whole_by_a_seed(
    capsys: pytest.CaptureFixture, tmp_path: Path, sets: Path
) -> None:
    many, out = (str(sets / "many.jsonl"),), tmp_path / "t.md"
    draws = [judges.sets_of(many, 5, seed, False)["many"] for seed in (0, 0, 1)]
    questions = [[item.example.id for item in items] for items in draws]
    assert questions[0] == questions[1] != questions[2]
    assert len(questions[0]) == 10 and len(set(questions[0])) == 5
    for seed in (0, 1):
        found = tabulated(capsys, out, "keyword", data=many, limit=5, seed=seed)["many"]["keyword"]
        assert found["all"]["verdicts"] == 30, "what another draw has kept does not count"


def test_a_bundled_set_may_be_one_of_its_splits(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """A bundled probe was fitted on the training questions, and its row on all of them would flatter it."""
    sets = judges.sets_of(["medical", "medical:train", "medical:held_out"], None, 0, False)
    for split in ("train", "held_out"):
        own = [item for item in sets["medical"] if item.example.split == split]
        assert sets[f"medical:{split}"] == own != []
    assert tabulated(capsys, tmp_path / "t.md", "keyword", data=("medical:held_out",), limit=2).keys() == {
        "medical:held_out"
    }
    assert "\n| medical:held_out | `keyword` | " in (tmp_path / "t.md").read_text()
    for source in ("medical:dev", "medical:"):
        expected = f"--data {source}: expected medical for all of its questions, or medical:held_out or"
        with pytest.raises(ValueError, match=expected):
            judges.sets_of([source], None, 0, False)


def test_what_cannot_be_a_table_or_a_set_is_refused(tmp_path: Path, sets: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# My notes\n")
    with pytest.raises(ValueError, match=r"--out .*page\.md: expected a new file, or a page with the lines"):
        evaluate.tabulate(out=page)
    with pytest.raises(ValueError, match=r"--out .*t\.jsonl: expected a page"):
        evaluate.tabulate(out=tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="has no `labelled_responses`"):
        evaluate.tabulate(data=(str(sets / "other.jsonl"),), out=tmp_path / "t.md")
    with pytest.raises(ValueError, match="expected one set of the name many, got two"):
        evaluate.tabulate(data=(str(sets / "many.jsonl"),) * 2, out=tmp_path / "t.md")
    with pytest.raises(ValueError, match="--limit 0: expected"):
        evaluate.tabulate(limit=0)
    with pytest.raises(ValueError, match="--data is empty"):
        evaluate.tabulate(data=("",), out=tmp_path / "t.md")
    (sets / "many.jsonl").unlink()
    (sets / "dataset.json").unlink()
    with pytest.raises(ValueError, match="expected files with labels"):
        evaluate.tabulate(data=(str(sets),), out=tmp_path / "t.md")
    assert not (tmp_path / "t.jsonl").exists()
