"""Runs beside each other: the table's numbers, worked out by hand."""

from pathlib import Path

import pytest
from conftest import Command
from page_runs import HOSTILE, choice_rows, evaluation, health_rows, write_lines, write_run

from rar_mini.viewing import compare


def lines(*folders: Path) -> dict[str, list[str]]:
    """The table's lines, by their first cell; of lines with one name the last counts."""
    text = compare.markdown([compare.read(folder) for folder in folders])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The second run's answers to h and i are worth 1.0 and 0.7 of 2.6 less."""
    later = evaluation(0, "held_out", {"h": (0, 0, 1), "i": (1, 0, 1)})
    later += evaluation(3, "held_out", {"h": (0, 0, 1), "i": (1, 0, 1), "j": (1, 1, 1)})
    second = write_run(tmp_path / "second", settings={"lr": 0.5}, evaluations=later)
    return write_run(tmp_path / "first"), second


def test_settings_that_differ_and_no_others(two: tuple[Path, Path]) -> None:
    found = lines(*two)
    assert found["lr"] == ["0.001", "0.5"] and not {"seed", "out", "judge"} & found.keys()


def test_a_runs_change_and_its_distance_are_paired_over_shared_questions(two: tuple[Path, Path]) -> None:
    """j has no pair. Its score counts in the mean alone."""
    found = lines(*two)
    assert found["held-out questions"][0].startswith(f"{(1.9 + 2.6) / 2 / 2.6:.3f} [")
    assert found["held-out questions"][1].startswith(f"{(0.9 + 1.9 + 2.6) / 3 / 2.6:.3f} [")
    assert found["held-out questions, gold judge"][1] == "-"  # the second run had none
    text = compare.markdown([compare.read(folder) for folder in two])
    assert f"| - less first's |  | {-1.7 / 2 / 2.6:+.3f} [" in text and "(2 pairs) |" in text
    assert (
        f"| - change by training | {1.7 / 2 / 2.6:+.3f} [" in text
        and "| +0.000 [+0.000, +0.000] (2 pairs) |" in text
    )


def test_every_monitors_score_is_compared(tmp_path: Path) -> None:
    judged = [evaluation(3, f"held_out_gold{n}", {"h": (1, 0, 1)}) for n in ("", 2)]
    found = lines(write_run(tmp_path / "run", evaluations=sum(judged, [])))
    assert found["held-out questions, gold judge"] == found["held-out questions, gold judge 2"] == ["0.731"]
    assert "held-out questions, gold judge 2" not in lines(write_run(tmp_path / "other"))


def test_questions_of_one_name_and_another_text_are_no_pair(tmp_path: Path) -> None:
    other = [row | {"prompt": "Another?"} for row in evaluation(3, "held_out", {"h": (1, 1, 1)})]
    folders = write_run(tmp_path / "a"), write_run(tmp_path / "b", evaluations=other)
    text = compare.markdown([compare.read(folder) for folder in folders])
    assert "no pairs: 0 questions in common" in text


def test_time_and_money(two: tuple[Path, Path]) -> None:
    found = lines(*two)
    assert found["steps"] == ["3", "3"] and found["seconds of the steps, sample"] == ["6.0", "6.0"]
    assert found["dollars"] == ["0.7500", "0.7500"]


def test_rewards_by_other_judges_are_said_to_be_other_things(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, settings={"judge": judge})
        for name, judge in (("a", "rules"), ("b", "keyword"))
    ]
    text = compare.markdown([compare.read(folder) for folder in folders])
    assert text.endswith("Rewards of these runs are not the same thing: they differ in judge.")


def test_benchmarks_are_compared_question_by_question(tmp_path: Path) -> None:
    for name, verdict in (("a", 1.0), ("b", 0.0)):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "healthbench.jsonl", health_rows(verdict))
        write_lines(tmp_path / name / "gpqa.jsonl", choice_rows())
    found = lines(tmp_path / "a", tmp_path / "b")
    assert found["HealthBench, not clipped"][0].startswith("1.000") and found["GPQA"] == ["0.500", "0.500"]
    assert "| - less a's |  | -1.000 [-1.000, -1.000] (2 pairs) |" in compare.markdown(
        [compare.read(tmp_path / name) for name in "ab"]
    )


def test_foreign_names_are_no_markup(tmp_path: Path) -> None:
    evil = HOSTILE + "|[x](javascript:y)`*\x1b[2J"
    run = write_run(tmp_path / "run", settings={"policy": evil})
    text = compare.markdown([compare.read(run), compare.read(write_run(tmp_path / "other"))])
    row = next(line for line in text.splitlines() if line.startswith("| policy"))
    assert r"\<img" in row and r"\|[x]\(javascript" in row and r"\`\*" in row and "\x1b" not in text
    assert all(row[at - 1] == "\\" for at, c in enumerate(row) if c == "<")


def test_marks_that_act_are_escaped_and_others_are_not() -> None:
    shown = {"_a_": r"\_a\_", "__a__": r"\_\_a\_\_", "~~x~~": r"\~\~x\~\~", "&lt;&#60;": r"\&lt;\&#60;"}
    shown |= {name: name for name in ("group_size", "a & b", "0.731 [0.6, 0.8]", "chat:x/y_2")}
    assert {text: compare.cell(text) for text in shown} == shown


def test_the_command_prints_the_table_or_refuses(tmp_path: Path, command: Command) -> None:
    run = write_run(tmp_path / "run", evaluations=[])
    done = command("rar_mini/viewing/compare.py", run)
    assert done.returncode == 0 and "| cost | run |" in done.stdout, done.stderr
    (tmp_path / "empty").mkdir()
    done = command("rar_mini/viewing/compare.py", tmp_path / "empty")
    assert done.returncode == 1 and "expected a run's folder, or one with healthbench.jsonl" in done.stderr
