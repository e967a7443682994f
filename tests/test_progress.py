"""Long work shows that it is alive: a bar on a terminal, a line now and then everywhere else."""

import io
import re
import sys

import pytest

from rar_mini.progress import Lines, progress_bar


class FakeClock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def said(capsys: pytest.CaptureFixture, total: int, seconds: float, each: int = 1) -> list[str]:
    """The lines of work of so many parts, `each` of them done at once after so many seconds."""
    clock = FakeClock()
    with Lines((), "judging", total, clock=clock) as bar:
        for _ in range(total // each):
            clock.seconds += seconds
            bar.update(each)
    out, err = capsys.readouterr()
    assert not out, "results are alone on standard output"
    return err.splitlines()


def test_twelve_minutes_of_work_say_a_line_each_tenth(capsys: pytest.CaptureFixture) -> None:
    lines = said(capsys, total=96, seconds=7.5)
    assert lines[0] == "  judging: 10% (10 of 96) after 75 s"
    assert len(lines) == 9, "and the last part of a tenth is not worth a line"


def test_quick_tenths_are_at_least_half_a_minute_apart(capsys: pytest.CaptureFixture) -> None:
    seconds = [int(line.split()[-2]) for line in said(capsys, total=100, seconds=1)]
    assert seconds == [30, 60, 90]


def test_work_of_half_a_minute_says_nothing(capsys: pytest.CaptureFixture) -> None:
    assert said(capsys, total=29, seconds=1) == []


def test_items_are_counted_as_they_are_done(capsys: pytest.CaptureFixture) -> None:
    clock = FakeClock()
    for item in Lines("abc", "training", clock=clock):
        clock.seconds += 40
        assert item in "abc"
    assert re.findall(r"\d of \d", capsys.readouterr().err) == ["1 of 3", "2 of 3", "3 of 3"]


def test_a_terminal_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_bar("abc", desc="training")) == ["a", "b", "c"]
    with progress_bar(total=5, desc="sampling", unit="tok") as bar:
        bar.update(5)
    assert "\rtraining:   0%" in terminal.getvalue() and "\rsampling:   0%" in terminal.getvalue()
    terminal.truncate(0)
    with progress_bar(total=5, desc=None) as bar:
        bar.update(5)
    assert not terminal.getvalue(), "work without a description is silent"
