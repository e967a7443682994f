"""What options, settings and data say is shown in one short line, and never acts on a terminal."""

import json
import re
from pathlib import Path

import pytest
from conftest import Command
from test_train import options
from tiny import question, write_rows

import train
from rar_mini import forms

ESCAPE = "\x1b[31mred\x1b]0;title\x07"


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--method", ESCAPE),
        ("train.py", "--no-such-\x9b31m"),
        ("train.py", "--policy", f"{ESCAPE}/x"),
        ("train.py", "--plan", "--gpu", ESCAPE),
        ("train.py", "--resume", ESCAPE, "--step", ESCAPE),
        ("train.py", "--data", "/nowhere/\udcff.jsonl"),
        ("judge.py", "score", "in.jsonl", "--out", ESCAPE, "--method", ESCAPE),
        ("evaluate.py", "judge", "--domain", ESCAPE),
        ("evaluate.py", ESCAPE),
    ],
    ids=lambda words: words[1],
)
def test_a_refused_option_does_not_act_on_the_terminal(words: tuple[str, ...], command: Command) -> None:
    """The parser's box showed a value as it was. A name that is not UTF-8 comes as half a character."""
    done = command(*words)
    told = done.stdout + done.stderr
    assert done.returncode and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", told)
    assert (
        "expected an option or its value without control characters, got " in told and told.count("\n") == 1
    )


def test_so_does_a_value_in_a_file_of_settings(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('judge = "a\\u001b[31m"\n')
    done = command("train.py", "--config", tmp_path / "run.toml")
    words = "expected an option or its value without control characters, got --judge=a\\x1b[31m"
    assert done.returncode == 1 and done.stderr == f"train.py: {tmp_path}/run.toml: {words}\n"


@pytest.mark.parametrize("digits", [900, 5000])
@pytest.mark.parametrize("option", ["--seed", "--lr", "--method"])
def test_a_number_without_end_is_not_repeated(option: str, digits: int, command: Command) -> None:
    """5,000 digits came back whole."""
    done = command("train.py", f"{option}", "9" * digits)
    told = "".join(line.strip("│ ") for line in done.stderr.splitlines())
    assert done.returncode and option.strip("-") in told + option and len(told) < 1_300
    assert digits < 1_000 or (len(told) < 200 and "9" * 45 not in told)


def test_an_errors_endless_word_is_cut() -> None:
    assert (
        forms.legible(f"field step: got {'7' * 5000}") == f"field step: got {'7' * 40}... (5,000 characters)"
    )
    path = "/" + "a" * 250 + "/" + "b" * 200
    assert forms.legible(f"{path}: no such file") == f"{path}: no such file"


def test_a_runs_settings_are_announced_as_plain_text(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a run that goes on come from a file, as do its versions; and a domain may have any name."""
    rows = write_rows(tmp_path / f"rows{ESCAPE}.jsonl".replace("/", ""), [question(i) for i in range(2)])
    run = tmp_path / "run"
    train.main(options(tiny, rows, run, steps=1, eval_every=0))
    config = json.loads((run / "config.json").read_text())
    config["versions"]["torch"] = ESCAPE
    (run / "config.json").write_text(json.dumps(config))
    train.main(["--resume", str(run), "--steps", "2"])
    told = capsys.readouterr()
    assert "\\x1b[31mred" in told.out and "\\x1b[31mred" in told.err
    assert "\x1b" not in told.out + told.err and "\x07" not in told.out + told.err


def test_a_row_with_a_zero_byte_or_another_encoding_is_named_by_its_line(
    tiny: Path, command: Command, tmp_path: Path
) -> None:
    """A zero byte in the second row was said to be one of a packed file that begins with the first row."""
    item = {"title": "t", "description": "Essential Criteria: x", "weight": 5}
    row = json.dumps({"question": "?", "rubric": [item]}).encode()  # within the bytes that are looked at
    for bad, words in (
        (b'{"question": "a\0"}', "control character"),
        (b'{"question": "\xff"}', "can't decode"),
    ):
        (tmp_path / "rows.jsonl").write_bytes(row + b"\n" + bad + b"\n")
        done = command("train.py", *options(tiny, tmp_path / "rows.jsonl", tmp_path / "run"))
        assert (
            f"{tmp_path}/rows.jsonl, line 2: expected a JSON object" in done.stderr and words in done.stderr
        )
        assert done.stderr.count("\n") == 1 and "\0" not in done.stderr
