"""Command lines that cannot be read: one line with the option, what came and what was expected; status 2."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from rar_mini import options
from rar_mini.files import write_json

REFUSED = {
    "train.py --steps many": "--steps: expected a whole number, got 'many'",
    "train.py --criteria-per-call al": "--criteria-per-call: expected INT|{all}, got 'al'",
    "train.py --loss-norm tokens": "--loss-norm tokens: expected one of 'token', 'sequence', 'constant'",
    "train.py --lora-targets q_proj q": "--lora-targets q: expected one of 'q_proj', 'k_proj', 'v_proj', ",
    "train.py --track x": "--track x: expected one of '",
    "train.py --out": "--out: expected a value, got none",
    "train.py word": "Unrecognized options: word",
    "train.py --stepps 3": "no option --stepps: did you mean --steps?",
    "train.py --preset h200": "--preset: invalid choice: 'h200' (choose from ",
    "train.py --group-size 1": "--group-size 1: expected 2 or more, because a group of one has no mean",
    "train.py --max-usd=-1": "--max-usd -1.0: expected a number from 0 to 1e+09",
    "train.py --resume RUN --steps many": "--steps: expected a whole number, got 'many'",
    "train.py --bench --runs 0": "--runs: expected a whole number from 1 on, got '0'",
    "train.py --plan": "the following arguments are required: --gpu",
    "train.py --check --dtype float16": "--dtype: invalid choice: 'float16' (choose from ",
    "judge.py": "Expected one of {score, show}",
    "judge.py scor": "Unrecognized options: scor; Available subcommands: score, show",
    "judge.py score IN": "missing: --out PATH where the scores go, ",
    "judge.py score IN --out OUT --judg k": "Unrecognized options: --judg, k; did you mean --judge?",
    "judge.py show RUN --step last": "--step: expected INT, got 'last'",
    "evaluate.py judge --domain law": "--domain law: expected one of 'medical', 'science', 'all'",
    "evaluate.py refine --method rar-implicit": "refine has no option --method (see evaluate.py refine",
    "evaluate.py refine --methd rar-implicit": "Unrecognized options: --methd, rar-implicit (see evaluate.py",
    "evaluate.py --judge k": "no option --judge before the command: expected one of judge, judges, ",
    "evaluate.py gpqa --runs ten": "--runs: expected a whole number, got 'ten'",
    "rar_mini/tools/tables.py --domain law": "--domain: invalid choice: 'law' (choose from ",
    "rar_mini/tools/speed.py --runs ten": "--runs: expected a whole number from 1 on, got 'ten'",
    "rar_mini/tools/synthesize.py": "missing: PATH ",
    "rar_mini/viewing/plot.py": "missing: PATH the run's folder (required)",
    "rar_mini/viewing/page.py --x": "Unrecognized options: --x",
    "rar_mini/viewing/compare.py --x": "Unrecognized options: --x",
    "lab/__main__.py --processes two": "--processes: expected a whole number, got 'two'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_one_line_says_what_came_and_what_was_expected(words: str, command: Command) -> None:
    """Not in a box or under a page of usage, where the one word that matters is overlooked."""
    done = command(*words.split())
    assert (done.returncode, done.stdout) == (2, "") and "None" not in done.stderr
    assert (
        REFUSED[words] in done.stderr and done.stderr.endswith("--help)\n") and done.stderr.count("\n") == 1
    )


def test_a_coloured_terminal_gets_the_same_words(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """tyro colours its box if standard output is a terminal: escapes would stand between the words."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    done = command("judge.py", "show", "RUN", "--step", "last")
    assert done.stderr == "judge.py: --step: expected INT, got 'last' (see judge.py --help)\n"


def test_what_a_command_says_itself_is_not_held_back(command: Command, tmp_path: Path) -> None:
    """Only its parser's words are."""
    words = ("--out", tmp_path / "out", "--judge", "keyword")
    done = command("judge.py", "score", tmp_path / "none.jsonl", *words)
    assert done.returncode == 1 and done.stderr.startswith("judge: keyword (")


OF_SYSTEM: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing to read": (
        lambda home: (home / "none.txt").read_text(),
        r"none.txt \(No such file or directory\): expected a file or folder that exists, .*; check the name",
    ),
    "no folder to write in": (
        lambda home: write_json(home / "none" / "out.json", {}),
        r"none/out.json \(No such file or directory\): expected .* or a new one in a folder that does",
    ),
    "a file for a folder": (
        lambda home: (home / "file").mkdir(exist_ok=True),
        r"file \(File exists\): expected a folder, or a new name; name another",
    ),
    "a file on the way": (
        lambda home: (home / "file" / ".out.partial-0a1b").mkdir(),
        r"file/out \(Not a directory\): expected folders before the last name; name another",
    ),
    "a folder for a file": (Path.read_text, r" \(Is a directory\): expected a file; name one in it"),
    "too long a name": (lambda home: (home / ("x" * 300)).read_text(), r"x+ \(File name too long\)"),
    "in its own words": (lambda home: options.regular(Path("/dev/null")), "no file but a pipe or a device"),
}


@pytest.mark.parametrize("fault", OF_SYSTEM)
def test_an_error_of_the_system_says_what_was_expected_of_the_users_name(fault: str, tmp_path: Path) -> None:
    """It was `[Errno 2] No such file or directory: 'none/.out.json.partial'`."""
    act, words = OF_SYSTEM[fault]
    (tmp_path / "file").touch()
    home = "" if fault == "in its own words" else f"cannot use {tmp_path}"
    with pytest.raises(SystemExit, match=f"^evaluate.py: {home}.*{words}"), options.one_line("evaluate.py"):
        act(tmp_path)
