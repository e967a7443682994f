"""Where a command prints: a disk may be full, a pipe closed, and a terminal may know few characters."""

import io
import os
import sys
from collections.abc import Iterator

import pytest

from rar_mini import options


@pytest.fixture
def standard() -> Iterator[None]:
    """Puts the streams back."""
    streams = sys.stdout, sys.stderr
    yield
    sys.stdout, sys.stderr = streams


def test_a_terminal_that_knows_ascii_alone_gets_the_rest_escaped(standard: None) -> None:
    """The first answer with another character ended the run."""
    bytes_ = io.BytesIO()
    sys.stdout = io.TextIOWrapper(bytes_, encoding="ascii")
    with options.one_line("train.py"):
        print("42 \u00b0C")
        assert bytes_.getvalue() == b"42 \\xb0C\n", "and it is there at once"


def test_a_command_runs_with_its_output_closed(standard: None) -> None:
    """A traceback: NoneType has no attribute write."""
    sys.stdout = sys.stderr = None
    with options.one_line("train.py"):
        print("heard by nobody")
        print("nor this", file=sys.stderr)


def test_a_full_disk_under_the_output_is_named(standard: None) -> None:
    """`[Errno 28] No space left on device` alone said nothing of where."""
    sys.stdout = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(SystemExit, match=r"^train.py: cannot use /dev/full \(No space left.*: expected room"):
        with options.one_line("train.py"):
            print("much")


def test_a_reader_that_leaves_is_named(standard: None) -> None:
    """As `| head -1` does."""
    read, write = os.pipe()
    os.close(read)
    sys.stdout = open(write, "w")  # noqa: SIM115
    with pytest.raises(SystemExit, match=r"^train.py: cannot use .* \(Broken pipe\)$"):
        with options.one_line("train.py"):
            print("much")
