"""What asking a server leaves behind: its replies, in a cache that outlives the run, a ledger of what they
cost and of what went wrong, and a record of the money that no kill and no rewind takes back."""

import json
import logging
import os
import re
import secrets
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from rar_mini import forms, ranks
from rar_mini.files import cut_half_line, each_line, regular
from rar_mini.forms import ABSENT, Form, Number, Text

log = logging.getLogger(__name__)

PRICES = {
    "gpt-4o-mini": (0.15, 0.075, 0.60),
    "gpt-4o": (2.50, 1.25, 10.00),
    "gpt-4.1": (2.00, 0.50, 8.00),
    "gpt-4.1-mini": (0.40, 0.10, 1.60),
    "gpt-4.1-nano": (0.10, 0.025, 0.40),
    "o3-mini": (1.10, 0.55, 4.40),
}
"""Dollars for a million tokens: read, read from the server's own cache, written. They change; callers may
bring their own."""

Dollars = Annotated[Number, Field(ge=0, allow_inf_nan=False)]


def read_price(path: Path, name: str) -> tuple[float, float, float] | None:
    """A model's price in a file of prices. Raises ValueError that names the file and the field."""
    price = tuple[Dollars, Dollars, Dollars] | None
    form = create_model("Prices", __base__=Form, price=(price, Field(None, alias=name)))
    try:
        return form.model_validate_json(regular(path).read_bytes()).price
    except (OSError, ValidationError) as error:
        raise ValueError(f"cannot read the prices in {path}: {forms.fault(error)}") from error


class Entry(Form):
    """A line of a record of spending."""

    judge: Text = ABSENT
    request: Text = ABSENT
    dollars: Dollars = ABSENT


class Unrecorded(OSError):
    """The disk does not take what a request costs."""


@dataclass(frozen=True)
class Account:
    """What one judge has cost, in a record to which lines are only ever added.

    A request has a line with the most that it may cost before it is sent, and one with its cost before its
    answer is used; the last line counts. What a killed process had under way so counts in full. Several
    judges share a record, and each rank adds to a file of its own.
    """

    path: Path
    judge: str = "judge"
    number: int = 1  # of several judges that a wrapper is made of

    @classmethod
    def beside(cls, out: Path) -> "Account":
        """That of a command which adds to a file, in a record of that file's own."""
        return cls(out.with_name(f"{out.name}.spending.jsonl"))

    def after(self, judges: int) -> "Account":
        """The account of the judge that comes so many judges later."""
        return replace(self, number=self.number + judges)

    def spent(self) -> float:
        """What all processes have spent on this judge so far."""
        return self.totals()[self._name]

    def totals(self) -> Counter[str]:
        """What all processes have spent so far, by judge. Raises ValueError that names a bad line."""
        costs: dict[tuple[str, Path, str], float] = {}
        for path in self._files():
            for number, (row, _) in enumerate(each_line(path), 1):
                entry = forms.read(Entry, row, f"{path}, line {number}")
                costs[entry.judge, path, entry.request] = entry.dollars
        totals: Counter[str] = Counter()
        for (judge, *_), dollars in costs.items():
            totals[judge] += dollars
        return totals

    def exists(self) -> bool:
        """Whether any process has begun the record."""
        return bool(self._files())

    def open(self) -> None:
        """Make this rank's file ready for more: without half a line, which a killed process may leave."""
        if self._own.exists():
            cut_half_line(self._own)

    def put(self, request: str, dollars: float, durable: bool = True) -> None:
        """Add a line. A `durable` one is on the disk when this returns (some milliseconds), and with it all
        lines before."""
        line = json.dumps({"judge": self._name, "request": request, "dollars": dollars}) + "\n"
        try:
            with open(self._own, "ab") as file:
                file.write(line.encode())
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            raise Unrecorded(
                f"cannot write down what {self._name} costs in {self._own}: {error}. Nothing more is asked; "
                "make room, then go on"
            ) from error

    def adopt(self, spent: Counter[str]) -> None:
        """Begin the record of a run that was started before there was one, by what its metrics tell."""
        if not self.exists():
            for judge, dollars in (+spent).items():
                replace(self, judge=judge).put("before this record", dollars)

    def refuse_lost(self, spent: Counter[str]) -> None:
        """Raise ValueError if the record lacks dollars that the run's metrics tell, or is damaged."""
        kept = self.totals()
        for judge, dollars in spent.items() if self.exists() else ():
            if kept[judge] < dollars - 1e-6:
                raise ValueError(
                    f"{self.path} has ${kept[judge]:.4f} for {judge}, but the run's metrics tell of "
                    f"${dollars:.4f}: bring the record back as it was"
                )

    @property
    def _name(self) -> str:
        return self.judge if self.number == 1 else f"{self.judge}{self.number}"

    @property
    def _own(self) -> Path:
        return self.path.with_stem(f"{self.path.stem}-rank-{ranks.rank}") if ranks.rank else self.path

    def _files(self) -> list[Path]:
        others = self.path.parent.glob(f"{self.path.stem}-rank-*{self.path.suffix}")
        return [path for path in (self.path, *sorted(others)) if path.exists()]


def dollars_told(steps: Iterable[Sequence[dict[str, Any]]]) -> Counter[str]:
    """The dollars of each judge that the steps of a run's metrics tell."""
    spent: Counter[str] = Counter()
    for row in (row for rows in steps for row in rows):
        for name, dollars in row.items():
            if judge := re.fullmatch(r"perf/((?:judge|gold)\d*)/dollars", name):
                spent[judge[1]] += dollars or 0.0
    return spent


class Ledger:
    """What asking cost and what went wrong, in counts that only grow."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()  # questions without an answer, by kind
        self.words: dict[str, str] = {}  # the last words of each kind
        self.latencies: deque[float] = deque(maxlen=4096)  # seconds of the last calls
        self.account: Account | None = None
        self.under_way = 0  # requests
        self.reserved = 0.0  # dollars that these may cost
        self._reported: Counter[str] = Counter()
        self._pooled: tuple[Counter[str], Counter[str]] = (Counter(), Counter())  # what all ranks know of

    def fail(self, kind: str, words: str = "") -> None:
        """Count a question that got no answer."""
        self.failures[kind] += 1
        self.words[kind] = words

    def reserve(self, most: float) -> str:
        """Write down, before a request is sent, what it may cost. Returns a name for the request."""
        request = secrets.token_hex(8)
        if self.account and most:
            self.account.put(request, most, durable=False)
        self.under_way += 1
        self.reserved += most
        return request

    def settle(self, request: str, most: float, cost: float) -> None:
        """Write down, before a request's answer is used, what it cost."""
        self.under_way -= 1
        self.reserved = self.reserved - most if self.under_way else 0.0  # without what rounding leaves
        self.counts["dollars"] += cost
        if self.account and (most or cost):
            self.account.put(request, cost)

    def pool(self) -> None:
        """Take in what the other ranks counted since this was last called: then all know the sum."""
        if ranks.world == 1:
            return
        counts, failures = self.counts - self._pooled[0], self.failures - self._pooled[1]
        calls = counts["calls"]
        pools = ranks.gather((counts, failures, self.words, list(self.latencies)[-calls:] if calls else []))
        for counts, failures, words, latencies in pools[: ranks.rank] + pools[ranks.rank + 1 :]:
            self.counts.update(counts)
            self.failures.update(failures)
            self.words |= words
            self.latencies.extend(latencies)
        self._pooled = self.counts.copy(), self.failures.copy()

    def dollars(self, more: float) -> float:
        """What all ranks have cost at the end if each spends what this one has since they last met, and
        `more`. Each so has an equal part of what is left of a budget."""
        known = self._pooled[0]["dollars"]
        return known + ranks.world * (self.counts["dollars"] - known + more)

    def metrics(self) -> dict[str, float]:
        """What happened since this was last called, by the names that metrics.jsonl has. What depends on the
        network, the clock or the cache stands under perf/."""
        now = Counter({f"perf/judge/{name}": count for name, count in self.counts.items()})
        now["judge/questions"] = now.pop("perf/judge/questions", 0)
        now.update({f"judge/failures/{kind}": count for kind, count in self.failures.items()})
        new = {name: now[name] - self._reported[name] for name in now}
        self._reported = now
        if self.latencies:
            new |= {f"perf/judge/latency_p{share}": self.latency(share) for share in (50, 95)}
        return new

    def carry(self, account: Account) -> None:
        """Keep an account from here on, and count what stands in it already, so that what goes on stays in
        its budget."""
        spent = ranks.first(account.spent)  # before any rank spends more
        account.open()
        self.account = account
        if spent:
            self.counts["dollars"] += spent
            self._reported["perf/judge/dollars"] += spent
            self._pooled[0]["dollars"] += spent

    def latency(self, percent: int) -> float:
        """A percentile of the last calls' seconds."""
        return sorted(self.latencies)[(len(self.latencies) - 1) * percent // 100]

    def reasons(self) -> str:
        """The failures by kind, most frequent first, with the last words of each."""
        return "; ".join(
            f"{count} x {kind}" + (f" ({self.words[kind]})" if self.words[kind] else "")
            for kind, count in self.failures.most_common()
        )

    def line(self) -> str:
        """Everything, for a person: one line, and one for the failures if there were any."""
        count = self.counts
        names = "questions calls cache_hits retries asked_again plain_text tokens_in tokens_cached tokens_out"
        parts = [f"{count[name]} {name.replace('_', ' ')}" for name in names.split() if count[name]]
        parts.append(f"{self.failures.total()} failed")
        if count["dollars"]:
            parts.append(f"${count['dollars']:.4f}")
        if self.latencies:
            parts.append(f"{self.latency(50):.2f} s a call (p50), {self.latency(95):.2f} s (p95)")
        return ", ".join(parts) + (f"\n         failures: {self.reasons()}" if self.failures else "")


class Cache:
    """Replies by key in an SQLite file, which several processes may use at once.

    A file that is damaged, locked or not writable costs a warning, and asking goes on without it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._db = path, None
        if path is not None:
            with self._guarded():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
                self._share()
                self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose replies, not the file
                self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")

    def _share(self) -> None:
        """Let readers and a writer not wait for each other. Two processes that ask so of a new file at once
        lock each other out, for which SQLite's own patience does not hold."""
        for left in range(100, -1, -1):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if not left:
                    raise
                time.sleep(0.05)

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply under a key, None if there is none. One that is no JSON object makes room for another."""
        with self._guarded():
            row = self._db and self._db.execute("SELECT reply FROM replies WHERE key = ?", [key]).fetchone()
            if row:
                reply = None
                with suppress(ValueError, TypeError, RecursionError):  # NULL is no text
                    reply = json.loads(row[0])
                if isinstance(reply, dict):
                    return reply
                self._db.execute("DELETE FROM replies WHERE key = ? AND reply IS ?", [key, row[0]])
        return None

    def put(self, key: str, reply: str) -> None:
        """Store a reply in JSON. The first one stays: another process may have been faster."""
        with self._guarded():
            if self._db:
                self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", [key, reply])

    def forget(self, key: str) -> None:
        """Make room for another reply under a key."""
        with self._guarded():
            if self._db:
                self._db.execute("DELETE FROM replies WHERE key = ?", [key])

    def close(self) -> None:
        """Close the file; from here on there is no cache."""
        db, self._db = self._db, None
        if db:
            with suppress(sqlite3.Error):
                db.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            log.warning(
                f"the cache of replies {self.path} cannot be used ({error}): going on without it; delete it "
                "if it is damaged"
            )
            self.close()
