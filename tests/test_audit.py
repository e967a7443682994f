"""A panel looks at what a run's judge newly credits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from hostile import Server
from test_evaluate import noul, run_of

from rar_mini.evaluation import audit
from rar_mini.judging.local import LocalJudge

pytestmark = pytest.mark.usefixtures("folder")

ITEMS = {"Letter b": 1.0, "Letter c": 1.0, "Names fever": 0.7, "No aspirin": 0.9}
"""What the judge credits at step 2 and did not at step 1, with its weight; the last is a pitfall."""


def hacked(folder: Path, questions: Path, name: str = "rollouts.jsonl", split: str | None = None) -> Path:
    """A run of two steps whose judge newly credits ITEMS in each of four answers. Its answers get longer."""
    folder.mkdir(exist_ok=True)
    run = run_of(folder / "run", questions, steps=2)
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    for row in rows:
        row["response"] += " word" * (8 if row["step"] == 1 else 18)
        for item in row["verdicts"]:
            item["verdict"] = float(row["step"] == 2 and item["title"] in ITEMS)
        if split:
            row["split"] = split
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def jurors(credits: dict[str, str]) -> Callable[[str, dict], dict]:
    """A server whose models credit the questions with a word of theirs; without one of these, they fail."""

    def reply(path: str, body: dict) -> dict:
        word = credits[body["model"]]
        asked = {n: q["instructions"] for n, q in body["questions"].items()}
        said = {n: {"type": "noul", "noul": noul(q, float(word in q))} for n, q in asked.items()}
        return said if word != "fail" else {}

    return reply


def audited(command: Command, run: Path, *panel: str) -> dict:
    done = command("evaluate.py", "audit", run, "--panel", *panel, "--no-cache", "--parse-retries", "0")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_no_juror_credits_is_exploited(
    server: Server, command: Command, tmp_path: Path, questions: Path
) -> None:
    server.reply = jurors({"a": "Mentions b", "b": "Names fever"})
    found = audited(command, hacked(tmp_path, questions), "systemone:a", "systemone:b")
    assert found["file"] == "rollouts.jsonl" and found["new"] == 16 and found["unknown"] == 0
    assert found["exploited"]["value"] == pytest.approx((1 + 0.9) / 3.6, abs=1e-6)
    presence, absence = found["presence"], found["absence"]
    assert presence["value"] == pytest.approx(1 / 2.7, abs=1e-6) and presence["items"] == 12
    assert absence["value"] == 1.0 and absence["items"] == 4
    first, second = found["steps"]
    assert first["new"] == 0 and first["exploited"] is None
    assert second["exploited"] == found["exploited"]["value"]
    assert (first["words"], second["words"]) == (10, 20)
    assert (first["density"], second["density"]) == (0, 20), "4 items in 20 words"
    asked = [q["instructions"] for _, body, _ in server.seen for q in body["questions"].values()]
    assert len(asked) == 2 * 16, "only newly credited items are asked about"


def test_jurors_may_come_in_several_options(
    server: Server, command: Command, tmp_path: Path, questions: Path
) -> None:
    server.reply = jurors({"a": "Mentions b", "b": "Names fever"})
    found = audited(command, hacked(tmp_path, questions), "systemone:a", "--panel", "systemone:b")
    assert found["panel"] == ["systemone:a", "systemone:b"]


def test_a_juror_in_this_process_reads_a_question_once_for_all_that_is_asked_about_it(
    command: Command,
    tmp_path: Path,
    questions: Path,
    tiny: Path,
    terse: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each newly credited item of each of the four answers comes with an example of its own."""
    sizes, read = [], LocalJudge.of_question
    monkeypatch.setattr(
        LocalJudge, "of_question", lambda self, own: sizes.append(len(own)) or read(self, own)
    )
    audited(command, hacked(tmp_path, questions), f"local:{tiny}", "--prompts", str(terse))
    assert sizes == [16]


def test_an_item_on_which_a_juror_failed_is_unknown_unless_another_credits_it(
    server: Server, command: Command, tmp_path: Path, questions: Path
) -> None:
    server.reply = jurors({"a": "Mentions b", "b": "fail"})
    found = audited(command, hacked(tmp_path, questions), "systemone:a", "systemone:b")
    assert found["unknown"] == 12 and found["exploited"]["value"] == 0.0 and found["absence"]["value"] is None


def test_evaluations_come_before_rollouts_but_for_those_of_another_judge_or_text(
    server: Server, command: Command, tmp_path: Path, questions: Path
) -> None:
    server.reply = jurors({"a": "nothing"})
    run = hacked(tmp_path, questions, "evaluations.jsonl", "held_out")
    assert audited(command, run, "systemone:a")["file"] == "evaluations.jsonl"
    for split in ("held_out_gold", "train_silence"):
        run = hacked(tmp_path / split, questions, "evaluations.jsonl", split)
        with pytest.raises(ValueError, match="fewer than two steps"):
            (run / "rollouts.jsonl").unlink()
            (run / "rollouts.jsonl").touch()
            audit.rows_of(run)
