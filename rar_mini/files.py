"""Files that the program writes and reads again: JSON Lines, JSON, locks, digests, and the cache folder."""

import codecs
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import reprlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where models are kept: RAR_MINI_CACHE, else rar-mini in the user's cache folder."""
    if own := os.environ.get("RAR_MINI_CACHE"):
        return Path(own).expanduser().absolute()
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its specification ignores a relative one
    return (user if user.is_absolute() else Path.home() / ".cache") / "rar-mini"


def regular(path: Path) -> Path:
    """The path, which may be missing. Raises OSError for a pipe or a device: reading it may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(f"no file but a pipe or a device: {path}")
    return path


def plain_text(path: Path) -> str:
    """The text of a file that a person wrote. Raises ValueError that names one which is not UTF-8."""
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        came = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(f"cannot read {path}: expected text in UTF-8, got {came}") from None


class Twice(ValueError):
    """An object of JSON has a name twice."""


def parse(text: str | bytes) -> Any:
    """JSON in which no object has a name twice: which of the two was meant, nobody knows. Raises ValueError,
    for such a name Twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Twice(f"the name {reprlib.repr(twice)} comes twice in one object")
    return found


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file of a model's folder holds. Raises ValueError that names it."""
    data = regular(path).read_bytes()
    try:
        found = json.loads(data.decode("utf-8"))
        came = "" if isinstance(found, dict) else f"a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        came = unfetched(path) or str(error)
    if data.startswith(codecs.BOM_UTF8):  # transformers does not read it either
        came = "a byte order mark in front; save the file without one"
    if came:
        raise ValueError(f"cannot read {path}: expected a JSON object in UTF-8, got {came}")
    return found


def unfetched(path: Path) -> str:
    """What to do about a file that Git LFS has not fetched; "" if it has."""
    with open(path, "rb") as file:
        pointer = file.read(64).startswith(b"version https://git-lfs.github.com/spec/")
    return "a pointer of Git LFS in place of the file; fetch it with git lfs pull" if pointer else ""


def lines(
    path: Path, *fields: str, finished: bool = False, without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a JSONL file, as `each_line` reads them."""
    return [row for row, _ in each_line(path, *fields, finished=finished, without=without)]


def each_line(
    path: Path, *fields: str, finished: bool = False, without: Sequence[str] = (), start: int = 0
) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a JSONL file from byte `start` on, one at a time, each with these fields, read `without`
    others; and the byte behind each. Raises ValueError that names a line, counted from `start`.

    A file that is added to may be missing, and what comes after its last line feed is left out: half a line
    of a command that is at work or was killed. A `finished` file has to be there, counts to its last
    character, and may have blank lines.
    """
    if not finished and not path.exists():
        return
    with open(regular(path), "rb") as file:
        file.seek(start)
        end = start
        for number, line in enumerate(file, 1):
            end += len(line)
            if not line.strip() if finished else not line.endswith(b"\n"):
                continue
            try:
                row = parse(line) if finished else json.loads(line)  # which is faster, and our own
                fits = row.keys() >= set(fields)
            except (ValueError, AttributeError, RecursionError):
                fits = False
            if not fits:
                came = line[:40].rstrip(b"\n").decode("utf-8", "replace")
                wanted = "a JSON object" + (fields and " with " + ", ".join(fields) or "")
                raise ValueError(f"{named_line(path, number, start)}: expected {wanted}, got {came!r}")
            yield {name: value for name, value in row.items() if name not in without}, end


def named_line(path: Path, number: int, start: int = 0) -> str:
    """What names a line of a file that was read from byte `start` on."""
    return f"{path}, line {number}" + (f" behind byte {start}" if start else "")


@contextmanager
def locked(path: Path, waiting: Callable[[str], object] | None = None) -> Iterator[bool]:
    """Keep other processes from writing a file, or into a folder; False if the file system has no locks, and
    a warning has to do. If another process has it locked, tell `waiting` so and wait, or without one raise
    ValueError.

    The system frees the lock of a process that dies. Between machines it holds as far as their file system
    has locks, as NFS does.
    """
    # The lock's file stays: were it removed, two could lock a file of its name, an old one and a new one.
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        raise ValueError(
            f"{lock}: expected a file, because it locks {path}, got a link, folder, pipe or device; delete it"
        )
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        holds = True
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = re.match(r"process \d+ on [\w.-]+", file.read(200))
                at_work = f"{holder[0] if holder else 'another process'} is at work on {path}: wait"
                if waiting is None:
                    raise ValueError(f"{at_work} until it has ended, or end it") from None
                waiting(f"{at_work}ing until it has ended")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(f"{path} cannot be locked ({error}): nothing else should write to it meanwhile")
            holds = False
        file.truncate(0)
        file.seek(0)  # the holder of before was read
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield holds


@contextmanager
def kept_rows(
    out: Path,
    source: Path,
    fits: Callable[[int, str], Any],
    wanted: str,
    check: Callable[[dict[str, Any], str], object] = lambda row, place: None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows that a file of answers about `source` already has, without a last line that was cut. No other
    process may add to it meanwhile.

    Each row says under `asked` what it answers. Raises ValueError if that does not fit the number of its
    line, with what was wanted, or whatever `check` raises of a row at its place; and if `out` is `source`
    itself, whose last line may only look cut.
    """
    with locked(out):
        yield _kept_rows(out, source, fits, wanted, check) if out.exists() else []


def _kept_rows(
    out: Path, source: Path, fits: Callable[[int, str], Any], wanted: str, check: Callable[..., object]
) -> list[dict[str, Any]]:
    if out.samefile(source):
        raise ValueError(f"--out {out} is the file that is read: expected another one")
    try:
        rows = lines(out, "asked")
        for number, row in enumerate(rows, 1):
            if not isinstance(row["asked"], str) or not fits(number, row["asked"]):
                raise ValueError(f"{out}, line {number}: expected {wanted}, got another")
            check(row, f"{out}, line {number}")
    except ValueError as error:
        remedy = "name another file with --out, or delete this one (the cache remembers replies)"
        raise ValueError(f"{error}; {remedy}") from None
    cut_half_line(out)
    return rows


def cut_half_line(path: Path) -> None:
    """Drop what stands behind the last line feed: half a line, which a killed process may leave."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # it may be a link to another file
    with open(partial, "xb") as file:
        file.write(data)
    sync(partial)
    os.replace(partial, path)


def without_nan(value: Any, digits: int | None = None) -> Any:
    """A value for JSON, which has neither NaN nor infinity: null in their place. Other numbers keep so many
    digits after the point, or all."""
    if isinstance(value, dict):
        return {name: without_nan(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each, digits) for each in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def digest(value: Any) -> str:
    """16 hexadecimal digits that change with a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def digests(directory: Path, without: str) -> dict[str, str]:
    """SHA-256 of every file in a directory but those whose name begins so."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not name.startswith(without):
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def sync(path: Path) -> None:
    """Write a file's or folder's content through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
