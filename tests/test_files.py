"""Files that people and other commands write: what is read, what is refused, and the lock beside them."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from rar_mini import files


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Reading it may never end. A folder is for whoever reads it to name."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        assert files.regular(path) == path
    with pytest.raises(OSError, match="no file but a pipe or a device"):
        files.regular(tmp_path / "pipe")


def test_text_may_have_a_byte_order_mark_and_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert files.plain_text(path) == "grün"
    path.write_bytes(b"gr\xfcn")
    with pytest.raises(ValueError, match="text: expected text in UTF-8, got byte 0xfc at position 2"):
        files.plain_text(path)


def test_a_name_that_comes_twice_is_refused_at_any_depth() -> None:
    assert files.parse('{"a": {"b": 1}, "c": [{"b": 2}]}') == {"a": {"b": 1}, "c": [{"b": 2}]}
    with pytest.raises(files.Twice, match="'b' comes twice"):
        files.parse('{"a": [{"b": 1, "c": 0, "b": 2}]}')
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse("[" * 100_000)


def test_lines_are_read_without_what_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n{"a": 5')
    assert files.lines(path, "a", without=["b"]) == [{"a": 1}, {"a": 3}]
    assert files.lines(path, "a") == [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "the rest is still being written"
    with pytest.raises(ValueError, match="line 3: expected a JSON object"):
        files.lines(path, finished=True)
    path.write_text("y" * 100 + "\n")
    with pytest.raises(ValueError, match=f"line 1: expected a JSON object with a, got '{'y' * 40}'$"):
        files.lines(path, "a")


def test_a_lock_is_for_whoever_may_write_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with files.locked(tmp_path / "file") as holds:
            assert holds
    finally:
        os.umask(before)
    lock = tmp_path / ".file.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    lock.write_text("x" * 1000)
    with files.locked(tmp_path / "file"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ") and "x" not in lock.read_text()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (b"process 7 on host.name\n", "process 7 on host.name"),
        (b"\xff\xfe", "another process"),
        (b"process 7 on " + b"h" * 500, "process 7 on " + "h" * 187),  # 200 in all
    ],
)
def test_who_holds_a_lock_is_named(tmp_path: Path, told: bytes, named: str) -> None:
    (tmp_path / ".lock").write_bytes(told)
    with open(tmp_path / ".lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=f"^{named} is at work on"), files.locked(tmp_path):
            pass


def test_a_lock_that_cannot_be_had_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with files.locked(tmp_path) as holds:
        assert holds is False
