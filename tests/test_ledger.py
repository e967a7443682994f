"""Costs are booked as the price list has them, the first reply stays, and files grow where they fit."""

import copy
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import Server

from judge import Judge
from rar_mini.config import Options
from rar_mini.files import kept_rows
from rar_mini.judging.endpoint import Endpoint, Request
from rar_mini.judging.ledger import Account, Cache, Ledger

pytestmark = pytest.mark.usefixtures("folder")


# --- prices -------------------------------------------------------------------------------------------------


def booked(server: Server, model: str, **options: Path) -> float:
    """What a reply costs for which a million tokens were read, half of them cached, and 100,000 written."""
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}
    usage |= {"prompt_tokens_details": {"cached_tokens": 500_000}}
    server.spoil_chat = lambda fault, body, content, whole: whole | {"usage": usage}
    made = Endpoint.of(model, Options(cache=False, **options))
    body = {"messages": [{"role": "user", "content": "x"}]}
    made.ask([Request("/chat/completions", body, lambda reply: reply)])
    made.close()
    return made.ledger.counts["dollars"]


PRICED = {
    "gpt-4o-mini": 0.075 + 0.0375 + 0.06,
    "gpt-4o": 1.25 + 0.625 + 1.0,
    "gpt-4.1": 1.0 + 0.25 + 0.8,
    "gpt-4.1-mini": 0.2 + 0.05 + 0.16,
    "gpt-4.1-nano": 0.05 + 0.0125 + 0.04,
    "o3-mini": 0.55 + 0.275 + 0.44,
}
"""By OpenAI's price list: half a million tokens, half a million cached ones, a tenth of a million written."""


@pytest.mark.parametrize(("model", "dollars"), [*PRICED.items(), ("m", 0.0)])
def test_models_cost_what_the_price_list_says(server: Server, model: str, dollars: float) -> None:
    server.reply = lambda path, body: "x"
    assert booked(server, model) == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("prices", "dollars"),
    [
        ({"gpt-4o": [1, 0.2, 30]}, 0.5 + 0.1 + 3.0),
        ({"gpt-4o": [0, 0, 0]}, 0.0),  # a server of one's own under the name that its clients know
        ({"other": [1, 2, 3]}, PRICED["gpt-4o"]),
    ],
)
def test_a_file_of_prices_goes_before_the_list(
    server: Server, tmp_path: Path, prices: dict, dollars: float
) -> None:
    server.reply = lambda path, body: "x"
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    assert booked(server, "gpt-4o", prices=tmp_path / "prices.json") == pytest.approx(dollars)


WRONG = ["[]", "{", '{"m": [1, 2]}', '{"m": [1, 2, 3, 4]}']
WRONG += [f'{{"m": [1, 2, {number}]}}' for number in ("-3", "NaN", "Infinity", "null", '"x"')]


@pytest.mark.parametrize("prices", WRONG)
def test_prices_that_cannot_be_read_are_refused(tmp_path: Path, prices: str) -> None:
    (tmp_path / "prices.json").write_text(prices)
    with pytest.raises(ValueError, match="prices.json"):
        Judge("chat:m", "rar-explicit", prices=tmp_path / "prices.json")


# --- counts -------------------------------------------------------------------------------------------------


def test_metrics_are_what_is_new() -> None:
    """And a kind of failure that was once counted goes on as 0; what hangs on the network is perf/."""
    ledger = Ledger()
    assert ledger.metrics() == {"judge/questions": 0}
    ledger.counts.update(questions=3, calls=2)
    ledger.fail("cut", "too long")
    ledger.fail("cut")
    assert ledger.metrics() == {"judge/questions": 3, "perf/judge/calls": 2, "judge/failures/cut": 2}
    ledger.counts["calls"] += 5
    assert ledger.metrics() == {"judge/questions": 0, "perf/judge/calls": 5, "judge/failures/cut": 0}


def test_percentiles_of_the_last_4096_calls() -> None:
    """The nearest of those that were measured, none in between."""
    ledger = Ledger()
    ledger.latencies.extend(float(i) for i in range(100, 0, -1))
    assert ledger.metrics() == {
        "judge/questions": 0,
        "perf/judge/latency_p50": 50.0,
        "perf/judge/latency_p95": 95.0,
    }
    assert [ledger.latency(share) for share in (0, 1, 99, 100)] == [1.0, 1.0, 99.0, 100.0]
    ledger.latencies.extend(float(i) for i in range(5000, 0, -1))
    assert (ledger.latency(50), ledger.latency(95), ledger.latency(100)) == (2048.0, 3891.0, 4096.0)
    one = Ledger()
    one.latencies.append(0.5)
    assert one.latency(95) == 0.5


def test_the_line_says_all_that_happened_and_nothing_that_did_not() -> None:
    ledger = Ledger()
    assert ledger.line() == "0 failed"
    ledger.counts.update(questions=12, cache_hits=3, tokens_in=4000, dollars=0.01234)
    ledger.latencies.extend([0.25, 0.5, 4.0])
    assert ledger.line() == (
        "12 questions, 3 cache hits, 4000 tokens in, 0 failed, $0.0123, 0.50 s a call (p50), 0.50 s (p95)"
    )
    ledger.fail("timeout")
    ledger.fail("cut", "the first")
    ledger.fail("cut", "the last")
    assert "tokens in, 3 failed, $0.0123" in ledger.line()
    assert ledger.line().endswith("(p95)\n         failures: 2 x cut (the last); 1 x timeout")
    assert ledger.reasons() == "2 x cut (the last); 1 x timeout"


def test_what_a_run_has_cost_already_counts_but_is_not_new(tmp_path: Path) -> None:
    ledger, account = Ledger(), Account(tmp_path / "spending.jsonl")
    ledger.carry(account)
    assert ledger.metrics() == {"judge/questions": 0} and ledger.line() == "0 failed"
    account.put("a", 0.5)
    account.put("b", 0.25)
    ledger.carry(account)
    assert ledger.metrics()["perf/judge/dollars"] == 0 and "$0.7500" in ledger.line()
    ledger.counts["dollars"] += 0.125
    assert ledger.dollars(1.0) == 1.875 and ledger.metrics()["perf/judge/dollars"] == 0.125


class Meeting:
    """Three ranks as threads, in the place of rar_mini.ranks."""

    world = 3

    def __init__(self) -> None:
        self.here, self.barrier = threading.local(), threading.Barrier(3, timeout=30)
        self.told: dict[int, tuple] = {}

    @property
    def rank(self) -> int:
        return self.here.rank

    def gather(self, mine: tuple) -> list[tuple]:
        self.told[self.rank] = copy.deepcopy(mine)
        self.barrier.wait()
        told = [self.told[rank] for rank in range(3)]
        self.barrier.wait()
        return told

    def all(self, work: Callable[[int], None]) -> None:
        def one(rank: int) -> None:
            self.here.rank = rank
            work(rank)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(one, range(3)))


def test_what_may_be_spent_is_held_until_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be spent is handed to the system, which a killed run does not lose, and what was spent to the
    disk: waiting for it at each request would take longer than to ask."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger = Ledger()
    ledger.account = Account(tmp_path / "spending.jsonl")
    first, second, free = (ledger.reserve(most) for most in (1.0, 2.0, 0.0))
    assert (ledger.under_way, ledger.reserved, len(synced)) == (3, 3.0, 0)
    assert ledger.account.totals() == {"judge": 3.0}
    ledger.settle(first, 1.0, 0.25)
    assert (ledger.under_way, ledger.reserved, len(synced)) == (2, 2.0, 1)
    ledger.settle(second, 2.0, 0.0)  # an answer from the server's cache
    assert ledger.account.totals() == {"judge": 0.25}
    ledger.settle(free, 0.0, 0.5)  # which nobody could foresee
    assert (ledger.under_way, ledger.reserved, ledger.counts["dollars"]) == (0, 0.0, 0.75)
    assert ledger.account.totals() == {"judge": 0.75} and len(synced) == 3


def test_a_record_may_lack_a_millionth_of_a_dollar(tmp_path: Path) -> None:
    """Metrics are sums in another order."""
    account = Account(tmp_path / "spending.jsonl")
    account.put("request", 0.5)
    account.refuse_lost(Counter(judge=0.5 + 0.5e-6))
    with pytest.raises(ValueError, match="for judge, but the run's metrics tell of"):
        account.refuse_lost(Counter(judge=0.5 + 1.5e-6))


def test_a_cache_waits_for_another_process_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, connect = {}, sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **how: asked.update(how) or connect(path, **how))
    Cache(tmp_path / "replies.sqlite").close()
    assert asked["timeout"] == 20


def test_ranks_that_meet_all_know_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tells what is new since they last met: rank 0 has asked nothing, and later only rank 1 has."""
    meeting, ledgers = Meeting(), [Ledger() for _ in range(3)]
    monkeypatch.setattr("rar_mini.judging.ledger.ranks", meeting)

    def first(rank: int) -> None:
        ledgers[rank].counts.update(calls=rank, dollars=float(rank))
        ledgers[rank].latencies.extend(10.0 * rank + i for i in range(rank))
        if rank:
            ledgers[rank].fail("timeout", "late")
        assert ledgers[rank].dollars(0.5) == 3 * (rank + 0.5)
        ledgers[rank].pool()
        assert ledgers[rank].dollars(0.5) == 3.0 + 3 * 0.5

    def second(rank: int) -> None:
        if rank == 1:
            ledgers[1].counts.update(calls=1, dollars=1.0)
            ledgers[1].latencies.append(99.0)
            ledgers[1].fail("cut")
        ledgers[rank].pool()

    def third(rank: int) -> None:
        ledgers[rank].pool()

    meeting.all(first)
    for ledger in ledgers:
        assert ledger.counts == {"calls": 3, "dollars": 3.0} and ledger.failures == {"timeout": 2}
        assert sorted(ledger.latencies) == [10.0, 20.0, 21.0] and ledger.words == {"timeout": "late"}
    for work in (second, third):  # in the third there is nothing new
        meeting.all(work)
        for ledger in ledgers:
            assert ledger.counts == {"calls": 4, "dollars": 4.0}
            assert ledger.failures == {"timeout": 2, "cut": 1}
            assert sorted(ledger.latencies) == [10.0, 20.0, 21.0, 99.0]
    assert [ledger.metrics()["judge/failures/cut"] for ledger in ledgers] == [1, 1, 1]


# --- files of answers ---------------------------------------------------------------------------------------

ROWS = [{"asked": "a", "text": "\u2028 is no end of a line"}, {"asked": "b", "text": "ü"}, {"asked": "c"}]


def kept(out: Path, fits: Callable = lambda number, key: "abc"[number - 1] == key) -> list[dict]:
    source = out.with_name("source.jsonl")
    source.touch()
    with kept_rows(out, source, fits, "the answer to it") as rows:
        return rows


def test_rows_that_are_there_are_kept_and_a_cut_one_is_not(tmp_path: Path) -> None:
    """The file then ends with the last whole line, so that the next can be added."""
    out, lines = tmp_path / "out.jsonl", [json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS]
    assert kept(out) == [] and not out.exists()
    for count in range(4):
        for cut in ("", '{"asked": "', "{"):
            out.write_text("".join(lines[:count]) + cut, encoding="utf-8")
            assert kept(out) == ROWS[:count]
            assert out.read_text(encoding="utf-8") == "".join(lines[:count])


@pytest.mark.parametrize("line", ['{"asked": "x"}', '{"text": "b"}', "[1]", "3", "{", ""])
def test_a_file_that_answers_something_else_is_refused_and_left(tmp_path: Path, line: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(f'{{"asked": "a"}}\n{line}\n{{"asked": "c"}}\n')
    before = out.read_bytes()
    with pytest.raises(ValueError, match="out.jsonl, line 2: expected .*, got .*; name another file"):
        kept(out)
    assert out.read_bytes() == before


# --- the cache of replies -----------------------------------------------------------------------------------


def test_the_first_reply_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slower process must not change what a faster one has read already: both would be rewarded by other
    verdicts than the cache then has."""
    path = tmp_path / "new" / "folder" / "c.sqlite"
    first, second = Cache(path), Cache(path)
    assert first.get("key") is None
    first.put("key", '{"by": "first"}')
    second.put("key", '{"by": "second"}')
    thread = threading.Thread(target=second.put, args=["other", '{"by": "second"}'])
    thread.start()  # an endpoint's loop, which is not where the cache was made
    thread.join()
    for cache in (first, second):
        assert cache.get("key") == {"by": "first"} and cache.get("other") == {"by": "second"}
    first.close()
    second.close()
    assert not caplog.text


@pytest.mark.parametrize("stored", ["[1]", '{"by', None, "[" * 100_000, b"\xff", 7.5])
def test_a_reply_that_was_damaged_is_asked_for_again(
    tmp_path: Path, stored: object, caplog: pytest.LogCaptureFixture
) -> None:
    """NULL and deep nesting ended the run; half a reply ended the cache, for all other questions, too."""
    cache = Cache(tmp_path / "c.sqlite")
    cache.put("other", "{}")
    cache.put("key", stored)
    assert cache.get("key") is None and cache.get("other") == {}
    cache.put("key", '{"by": "now"}')
    assert cache.get("key") == {"by": "now"} and not caplog.text
    cache.close()


def test_no_cache_remembers_nothing() -> None:
    cache = Cache(None)
    cache.put("key", "{}")
    assert cache.get("key") is None
    cache.close()


def test_a_new_cache_waits_for_the_process_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that ask for shared access at once lock each other out, and SQLite does not wait by itself."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.0}))
    other = connect(tmp_path / "c.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.2, lambda: other.execute("COMMIT")).start()
    cache = Cache(tmp_path / "c.sqlite")
    cache.put("key", '{"a": 1}')
    assert cache.get("key") == {"a": 1} and not caplog.text
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)  # no reader waits for a writer
    cache.close()
    other.close()


def test_a_cache_that_stays_locked_is_given_up_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def execute(self, words: str) -> None:
            raise sqlite3.OperationalError("database is locked")

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    cache = Cache(None)
    cache._db = Locked()
    with pytest.raises(sqlite3.OperationalError):
        cache._share()
    assert slept == [0.05] * 100


WRITER = """
import sys
from pathlib import Path
from rar_mini.judging.ledger import Cache
cache = Cache(Path(sys.argv[1]))
for i in range(300):
    cache.put(f"key {i}", '{"by": "%s"}' % sys.argv[2])
    assert cache.get(f"key {i}") is not None
"""


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    root, path = Path(__file__).parents[1], tmp_path / "c.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(i)], cwd=root, stderr=subprocess.PIPE)
        for i in range(4)
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [(b"", 0)] * 4
    cache = Cache(path)
    assert all(cache.get(f"key {i}") for i in range(300))
    cache.close()
