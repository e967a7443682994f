"""`judge.py score`: one line an answer, in order, and never one of another judge or setting."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hostile import Server, user
from tiny import question, write_rows

import judge as judges

pytestmark = pytest.mark.usefixtures("folder")


def test_score_writes_one_line_an_answer_in_order(command: Command, tmp_path: Path) -> None:
    rubric = question(0)["rubric"][-3:]
    rows = [question(0, response=text, rubric=rubric) for text in ("Fever, o.", "Take aspirin.")]
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    line = ["score", path, "--judge", "keyword", "--out", out, "--method", "rar-explicit"]
    done = command("judge.py", *line)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q0", "q0"]
    assert lines[0]["failed"] is False and lines[0]["rating"] is None
    assert [v["title"] for v in lines[0]["verdicts"]] == ["Letter o", "Names fever", "No aspirin"]
    weights = [v["weight"] for v in lines[0]["verdicts"]]
    for line in lines:
        points = sum(w * v["verdict"] for w, v in zip(weights, line["verdicts"], strict=True))
        assert line["reward"] == pytest.approx(points / sum(weights), abs=1e-6)
    assert "stand-in" not in out.read_text() and math.isfinite(lines[1]["reward"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (question(0), ["has no `response`"]),
        (question(0, response="x", rubric=[]), ["line 1", "field rubric"]),
    ],
)
def test_score_refuses_in_one_line(command: Command, tmp_path: Path, row: dict, words: list[str]) -> None:
    path = write_rows(tmp_path / "in.jsonl", [row])
    done = command("judge.py", "score", path, "--judge", "keyword", "--out", tmp_path / "out.jsonl")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)
    assert not (tmp_path / "out.jsonl").exists()


def test_score_leaves_bad_rows_out_where_it_may(command: Command, tmp_path: Path) -> None:
    rows = [question(0, response="Fever."), question(1, response="x", rubric=[]), question(2)]
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    done = command("judge.py", "score", path, "--judge", "keyword", "--out", out, "--skip-bad-rows")
    assert done.returncode == 0 and "rows left out as bad: 2" in done.stderr
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["q0"]
    write_rows(path, [question(0), question(1)])
    done = command("judge.py", "score", path, "--judge", "keyword", "--out", out, "--skip-bad-rows")
    assert done.returncode == 1 and "has no row with a `response`" in done.stderr


def score(path: Path, out: Path, **options: Any) -> list[dict]:
    """The command without a process of its own."""
    words = options.pop("judge", "chat:m"), options.pop("method", "rar-explicit")
    judges.score(path, out, *words, judging=judges.Options(**options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_score_goes_on_where_it_was_stopped(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that are there are kept, a line that was cut is not, and nothing is asked twice."""
    rubric = question(0)["rubric"][:2]
    rows = [question(i, response=f"r {i}", rubric=rubric) for i in range(6)]
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    whole = score(path, out)
    assert "going on" not in capsys.readouterr().err
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:40])
    server.seen.clear()
    assert score(path, out, cache=False) == whole and len(server.seen) == 6
    assert f"{out} has 3 of 6 rows: going on from there" in capsys.readouterr().err
    assert [row["id"] for row in whole] == [f"q{i}" for i in range(6)]
    assert score(path, out, cache=False) == whole and len(server.seen) == 6


def test_what_is_judged_is_written_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows at a time: the fifth passes the budget, and a larger one goes on with it."""
    monkeypatch.setattr(judges, "CHUNK", 2)
    server.reply = lambda path, body: json.dumps({"reason": "r", "rating": 1 + user(body).count("!")})
    rows = [question(i, question="?", response="!" * i) for i in range(6)]
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    (tmp_path / "p.toml").write_text('rate = "r"\nshared = "{question}{response}"')
    (tmp_path / "prices.json").write_text('{"m": [0, 0, 1000]}')  # a cent for each reply of ten tokens
    options = {"prompts": tmp_path / "p.toml", "prices": tmp_path / "prices.json", "max_tokens": 11}
    options |= {"method": "direct-likert", "concurrency": 1}
    with pytest.raises(ValueError, match="--max-usd 0.05"):
        score(path, out, max_usd=0.05, **options)
    assert [json.loads(line)["rating"] for line in out.read_text().splitlines()] == [1, 2, 3, 4]
    found = score(path, out, max_usd=0.1, **options)
    assert [row["rating"] for row in found] == [1, 2, 3, 4, 5, 6] and len(server.seen) == 6
    assert [row["reward"] for row in found] == pytest.approx([i / 9 for i in range(6)])
    assert capsys.readouterr().out == f"6 responses, mean reward 0.2778, 0 failed; scores in {out}\n"
    assert score(path, out, **options) == found, "the same rows, whatever they were judged with"


def test_scores_of_another_judge_are_not_mixed_in(server: Server, tmp_path: Path) -> None:
    rows = [question(i, response=f"r {i}") for i in range(2)]
    path, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    before = score(path, out)
    with pytest.raises(ValueError, match="line 1: expected the score of that row by this judge"):
        score(path, out, threshold=0.5)
    rows[1]["response"] = "another"
    with pytest.raises(ValueError, match="line 2"):
        score(write_rows(path, rows), out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == before


def test_score_takes_a_design(command: Command, tmp_path: Path) -> None:
    rubric = question(0)["rubric"][-3:]
    path, out = (
        write_rows(tmp_path / "in.jsonl", [question(0, response="o", rubric=rubric)]),
        tmp_path / "out",
    )
    words = ["--judge", "keyword", "--out", out, "--weights", "raw"]
    done = command("judge.py", "score", path, *words, "--rubric-drop", "pitfalls")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert [(v["title"], v["weight"]) for v in row["verdicts"]] == [("Letter o", 5), ("Names fever", 3)]
    done = command("judge.py", "score", path, *words, "--pitfalls", "signed")
    assert done.returncode == 1 and "expected the score of that row by this judge" in done.stderr


def test_score_takes_a_recipe_with_the_settings_of_the_command(command: Command, tmp_path: Path) -> None:
    """Its rubric is asked about, its reward is written, and it sees what the judge was asked for. Text of
    any language stands in the file as it is."""
    recipe = tmp_path / "own.py"
    recipe.write_text("""
import torch
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric

class Own(Recipe):
    def rubrics(self, examples, responses):
        return [Rubric((Criterion("Fièvre", "Mentions fièvre.", "essential", 1.0),))] * len(examples)

    def reward(self, scores):
        c = self.config
        settings = (c.judge, c.method, c.design.rubric_drop, c.judging.threshold)
        return torch.full(scores.rating.shape, float(settings == ("keyword", "rar-implicit", "labels", 0.5)))
""")
    path = write_rows(tmp_path / "in.jsonl", [question(0, response="Une fièvre.")])
    words = ["judge.py", "score", path, "--judge", "keyword", "--recipe", recipe]
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    done = command(*words, "--out", one)
    assert done.returncode == 0, done.stderr
    text = one.read_text(encoding="utf-8")
    assert [item["title"] for item in json.loads(text)["verdicts"]] == ["Fièvre"] and "Fièvre" in text
    assert json.loads(text)["reward"] == 0.0
    options = ["--method", "rar-implicit", "--rubric-drop", "labels", "--threshold", "0.5"]
    done = command(*words, *options, "--out", two)
    assert done.returncode == 0 and json.loads(two.read_text())["reward"] == 1.0, done.stderr


def test_the_file_that_is_read_is_not_written(server: Server, tmp_path: Path) -> None:
    """Its only line has no end and looks like one that was cut: it was dropped, and the file was empty."""
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(question(0, response="x")))
    with pytest.raises(ValueError, match="is the file that is read"):
        score(path, path)
    assert json.loads(path.read_text()) == question(0, response="x") and not server.seen


def test_rows_that_failed_are_marked(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [question(i, response=f"r {i}", rubric=question(0)["rubric"][:2]) for i in range(3)]
    server.fault = lambda path, body, number: (
        "prose" if "r 1" in user(body) and "Mentions b" in user(body) else None
    )
    found = score(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert [row["failed"] for row in found] == [False, True, False]
    assert found[1]["reward"] is None and found[1]["verdicts"][0]["verdict"] is None
    assert found[1]["verdicts"][1]["verdict"] is not None
    mean = (found[0]["reward"] + found[2]["reward"]) / 2
    said = capsys.readouterr()
    assert f"3 responses, mean reward {mean:.4f}, 1 failed;" in said.out
    assert said.err.startswith("judge: chat:m (as asked)\njudge: 6 questions, 8 calls, 2 asked again, ")
    assert "1 failed, " in said.err and "failures: 1 x malformed (not JSON alone)" in said.err
    server.fault = lambda path, body, number: "prose" if number > 8 else None
    write_rows(tmp_path / "in.jsonl", [question(0, response="new", rubric=question(0)["rubric"][:2])])
    (failed,) = score(tmp_path / "in.jsonl", tmp_path / "none.jsonl", parse_retries=0)
    assert "1 responses, mean reward none, 1 failed;" in capsys.readouterr().out and failed["failed"]


def test_the_command_names_every_option_and_hides_the_key(
    server: Server, command: Command, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "in.jsonl", [question(0, response="x")])
    server.fault = lambda path, body, number: 401
    words = ["--judge", "chat:m", "--criteria-per-call", "all", "--threshold", "0.5", "--no-cache"]
    words += ["--rpm", "600", "--tpm", "100000", "--parse-retries", "1", "--base-url", server.url]
    done = command("judge.py", "score", path, "--out", tmp_path / "out.jsonl", *words)
    assert done.returncode == 1 and done.stderr.count("\n") <= 3 and "HTTP 401" in done.stderr
    assert "very-secret" not in done.stdout + done.stderr and not (tmp_path / "out.jsonl").exists()
    server.fault = lambda path, body, number: None
    done = command("judge.py", "score", path, "--out", tmp_path / "out.jsonl", *words)
    assert done.returncode == 0 and "1 questions, 1 calls" in done.stderr, done.stderr
    assert all("very-secret" not in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
