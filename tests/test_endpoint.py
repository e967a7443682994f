"""A dead, slow, limited or lying server costs time, never truth; and nothing is asked twice."""

import asyncio
import json
import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from hostile import Server

from rar_mini import ranks
from rar_mini.config import Asking
from rar_mini.judging.endpoint import Endpoint, Failure, OverBudget, Request
from rar_mini.judging.ledger import Cache

KEY = "sk-very-secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(hang=3.0, reply=lambda path, body: body["messages"][0]["content"])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield server
    server.close()


@pytest.fixture
def endpoint(server: Server) -> Iterator[Callable[..., Endpoint]]:
    made = []

    def make(**options: Any) -> Endpoint:
        made.append(Endpoint("m", **{"backoff": 0.01, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def text(reply: dict[str, Any]) -> str:
    """A reader that takes any text but "bad"."""
    found = reply["choices"][0]["message"]["content"]
    if found == "bad":
        raise Failure("malformed")
    return found


def request(words: str, **more: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": words}]}
    return Request("/chat/completions", body | more.pop("body", {}), text, **more)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the endpoint means to wait for, in seconds. It goes on at once: what a busy machine adds is no
    part of it."""
    found, sleep = [], asyncio.sleep

    async def note(seconds: float) -> None:
        found.append(seconds)
        await sleep(0)

    monkeypatch.setattr("rar_mini.judging.endpoint.asyncio.sleep", note)
    return found


def words(count: int) -> list[Request]:
    return [request(f"word {i}") for i in range(count)]


def once(fault: str | int) -> Callable[..., Any]:
    """A server that fails the first time it sees a prompt, and the very first prompt never."""
    seen: set[str] = set()

    def choose(path: str, body: dict, number: int) -> Any:
        new = body["messages"][0]["content"] not in seen
        seen.add(body["messages"][0]["content"])
        return fault if new and number else None

    return choose


def test_answers_come_in_order_and_no_more_than_concurrency_at_once(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    server.latency = 0.3  # in which even a busy machine sends seven
    made = endpoint(concurrency=7)
    done = []
    assert made.ask(words(20), lambda: done.append(1)) == [f"word {i}" for i in range(20)]
    assert server.most == 7 and len(done) == 20 and made.ledger.counts["calls"] == 20


@pytest.mark.parametrize(
    "fault", ["lost", "408", "409", "429", "500", "503", "half", "truncated", "bytes", "list"]
)
def test_what_may_pass_is_tried_again(server: Server, endpoint: Callable[..., Endpoint], fault: str) -> None:
    server.fault = once(fault)
    made = endpoint()
    assert made.ask(words(5)) == [f"word {i}" for i in range(5)]
    assert made.ledger.counts["retries"] == 4 and not made.ledger.failures


def test_a_try_ends_at_its_deadline_and_another_follows(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    server.fault, server.hang = once("hang"), 60.0
    made = endpoint(timeout=0.3)
    start = time.monotonic()
    assert made.ask(words(5)) == [f"word {i}" for i in range(5)]
    assert time.monotonic() - start < server.hang and made.ledger.counts["retries"] >= 4


@pytest.mark.parametrize("fault", ["429-after", "429-date"])
def test_retry_after_is_obeyed(server: Server, endpoint: Callable[..., Endpoint], fault: str) -> None:
    """In seconds or as a date (which has whole seconds, so that up to one is lost)."""
    server.fault = once(fault)
    assert endpoint().ask(words(2)) == ["word 0", "word 1"]
    assert server.times[2] - server.times[1] > (0.4 if fault == "429-after" else 0.01)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "7", "Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After": "600"}, 600.0),
        ({"Retry-After": "601"}, None),  # no run waits so long: another time, perhaps
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
    ],
)
def test_a_server_says_how_long_to_wait(
    server: Server,
    endpoint: Callable[..., Endpoint],
    slept: list[float],
    header: dict[str, str],
    wait: float | None,
) -> None:
    spoil, made = server.spoil, endpoint(retries=1, backoff=0.01)
    made.ask([request("the first goes alone")])
    server.fault = lambda path, body, number: 429 if number == 1 else None
    server.spoil = lambda fault, *rest: (429, header, b"{}") if fault else spoil(fault, *rest)
    (answer,) = made.ask([request("a")])
    if wait is None:
        assert isinstance(answer, Failure) and answer.kind == "HTTP 429" and not slept
    else:
        assert answer == "a" and [wait + 0.005 <= pause <= wait + 0.015 for pause in slept] == [True]


def test_pauses_double_up_to_a_minute(
    server: Server, endpoint: Callable[..., Endpoint], slept: list[float]
) -> None:
    server.fault = lambda path, body, number: 500 if 0 < number < 5 else None
    made = endpoint(backoff=0.1)
    made.ask([request("a"), request("b")])
    assert len(slept) == 4 and len(set(slept)) == 4
    assert all(0.5 * 0.1 * 2**i <= pause <= 1.5 * 0.1 * 2**i for i, pause in enumerate(slept))
    slept.clear()
    made.backoff, server.fault = 40.0, lambda path, body, number: 500 if number < 9 else None
    made.ask([request("c")])
    assert len(slept) == 3 and 20 <= slept[0] <= 60 and all(30 <= pause <= 90 for pause in slept[1:])


def test_waiting_for_a_turn_is_not_counted_against_the_deadline(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    """Counted from the moment of queueing, load alone makes failures: here 8 x 0.2 s wait for 1 s."""
    server.latency = 0.2
    made = endpoint(concurrency=1, timeout=1.0, retries=0)
    assert made.ask(words(8)) == [f"word {i}" for i in range(8)]


def test_a_retry_does_not_hold_a_place(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    """The next in line goes at once. How many go before the pause is over is the machine's business."""
    server.fault = lambda path, body, number: "429-after" if number == 1 else None
    endpoint(concurrency=1).ask(words(20))
    order = [body["messages"][0]["content"] for _, body, _ in server.seen]
    assert order[:3] == ["word 0", "word 1", "word 2"] and order.count("word 1") == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_other_refusals_fail_at_once_in_the_servers_words_without_the_key(
    server: Server, endpoint: Callable[..., Endpoint], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = once(status)
    made = endpoint()
    good, bad = made.ask(words(2))
    assert good == "word 0" and isinstance(bad, Failure) and bad.kind == f"HTTP {status}"
    assert "no:" in str(bad) and len(server.seen) == 2
    for told in (str(bad), repr(bad), made.ledger.line(), made.ledger.reasons(), caplog.text):
        assert KEY not in told and "very-secret" not in told


@pytest.mark.parametrize(("status", "calls"), [(401, 1), (404, 1), (500, 3)])
def test_a_server_that_never_answers_is_one_clear_error_after_one_request(
    server: Server, endpoint: Callable[..., Endpoint], status: int, calls: int
) -> None:
    server.fault = lambda path, body, number: status
    with pytest.raises(ConnectionError, match=f"{server.url}, got HTTP {status}") as error:
        endpoint(retries=2).ask(words(50))
    assert len(server.seen) <= calls + 1  # the next in line may have begun
    assert "very-secret" not in str(error.value) and error.value.__suppress_context__


def test_a_server_that_is_down_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    """After two more tries, whatever --retries says: the user waits for the error."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hunter2@127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for retries, tries in ((8, 2), (1, 1)):
        made = Endpoint("m", backoff=0.01, retries=retries)
        with pytest.raises(ConnectionError, match="http://127.0.0.1:9/v1, got connection") as error:
            made.ask(words(3))
        assert "secret" not in str(error.value) and "hunter2" not in str(error.value)
        assert len(slept) == tries
        slept.clear()
        made.close()


def test_a_long_error_is_cut_and_only_a_real_key_is_hidden(
    server: Server, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of servers of one's own are words such as EMPTY, which errors hold for other reasons."""
    for key, said in (("EMPTY", "EMPTY keys, EMPTY"), ("12345678", "EMPTY keys, ***")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        made = endpoint()
        made.ask([request("the first goes alone")])
        server.spoil, spoil = lambda *_, key=key: (400, {}, f"EMPTY keys, {key}".encode()), server.spoil
        (answer,) = made.ask([request(key)])
        assert answer.words == said
        server.spoil = lambda *_: (400, {}, b"1234\n" * 101)
        (answer,) = made.ask([request("b")])
        assert answer.words == "1234 " * 100 + " ..."
        server.spoil = lambda *_: (400, {}, b"1234 " * 100)
        (answer,) = made.ask([request("c")])
        assert answer.words == "1234 " * 100
        server.spoil = spoil


def test_a_malformed_reply_is_asked_for_again_and_then_fails(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    made = endpoint(parse_retries=2)
    bad = request("bad", again=lambda body, *_: body | {"seed": body.get("seed", 0) + 1})
    good = request(
        "bad", again=lambda body, *_: body | {"messages": [{"role": "user", "content": "good"}]}, repeat=1
    )
    failed, mended = made.ask([bad, good])
    assert isinstance(failed, Failure) and failed.kind == "malformed" and mended == "good"
    assert [body.get("seed") for _, body, _ in server.seen].count(2) == 1
    assert made.ledger.counts["asked_again"] == 3 and made.ledger.failures == {"malformed": 1}


def refuses(*fields: str, status: int = 400, says: str = "Unsupported parameter: '{}'") -> Callable:
    """A server that does not take some fields, and names the first of them."""

    def reply(server: Server) -> None:
        spoil = server.spoil

        def spoiled(fault: Any, path: str, body: dict, content: Any) -> tuple[int, dict, bytes]:
            if found := [field for field in fields if field in body]:
                return status, {}, json.dumps({"error": {"message": says.format(found[0])}}).encode()
            return spoil(fault, path, body, content)

        server.spoil = spoiled

    return reply


FULL = {"response_format": {"type": "json_schema"}, "seed": 0, "temperature": 0.0, "max_tokens": 9}


def test_what_a_server_does_not_take_is_found_out_once(
    server: Server, endpoint: Callable[..., Endpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """Structured output and the seed: three tries for the first question, one for each of the others."""
    refuses("seed", "response_format")(server)
    made = endpoint()
    assert len(made.ask([request(f"word {i}", body=FULL) for i in range(9)])) == 9
    assert len(server.seen) == 2 + 9 and made.refused == {"seed", "response_format"}
    assert made.ledger.counts["plain_text"] == 9 and caplog.text.count("does not take") == 2
    assert all(body["temperature"] == 0.0 for _, body, _ in server.seen)


def test_a_refusal_that_names_nothing_is_tried_without_structured_output(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    refuses("response_format", says="failed to parse grammar")(server)
    made = endpoint()
    assert made.ask([request("a", body=FULL)]) == ["a"] and made.refused == {"response_format"}


def test_a_prompt_that_is_too_long_is_no_reason_to_give_anything_up(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    """The guess is remembered only if the request goes through: a medical prompt that comes back in an error
    may well hold the word temperature."""
    long = once(400)
    server.fault = long
    made = endpoint()
    assert made.ask([request("a", body=FULL)]) == ["a"]
    server.fault = lambda path, body, number: 400
    assert isinstance(made.ask([request("b", body=FULL)])[0], Failure) and not made.refused


def test_the_new_name_of_max_tokens_is_taken_up(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    refuses("max_tokens", says="'{}' is not supported. Use 'max_completion_tokens' instead.")(server)
    assert endpoint().ask([request("a", body=FULL), request("b", body=FULL)]) == ["a", "b"]
    assert [body.get("max_completion_tokens") for _, body, _ in server.seen] == [None, 9, 9]


def test_requests_a_minute(server: Server, endpoint: Callable[..., Endpoint], slept: list[float]) -> None:
    """Evenly: request i has its turn i tenths of a second after the first."""
    start = time.monotonic()
    endpoint(rpm=600).ask(words(8))
    past = time.monotonic() - start
    assert len(slept) == 8 and all(0.1 * i - past <= wait <= 0.1 * i for i, wait in enumerate(slept))


def test_tokens_a_minute(server: Server, endpoint: Callable[..., Endpoint], slept: list[float]) -> None:
    """Counted as OpenAI does: the longer of the prompt, four bytes a token, and what the reply may have: 50
    tokens, half a second."""
    start = time.monotonic()
    endpoint(tpm=6000).ask([request(f"{i}", body={"max_tokens": 50}) for i in range(3)])
    past = time.monotonic() - start
    assert len(slept) == 3 and all(0.5 * i - past <= wait <= 0.5 * i for i, wait in enumerate(slept))
    slept.clear()
    start = time.monotonic()
    endpoint(tpm=6000).ask([request(letter * 400, body={"max_tokens": 50}) for letter in "abc"])
    past, size = time.monotonic() - start, len(json.dumps(server.seen[-1][1])) / 4 * 60 / 6000
    assert size > 1 and all(size * i - past <= wait <= size * i for i, wait in enumerate(slept))


def test_an_endpoint_is_what_the_options_say_and_limits_hold_for_all_ranks(
    server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prices.json").write_text('{"m": [1, 2, 3]}')
    options = {"concurrency": 7, "timeout": 9.0, "retries": 3, "parse_retries": 4, "max_usd": 5.0}
    options |= {"base_url": server.url + "/", "prices": tmp_path / "prices.json"}
    made = Endpoint.of("m", Asking(**options, rpm=600.0))
    assert {name: getattr(made, name) for name in list(options)[:5]} == dict(list(options.items())[:5])
    assert made.address == server.url and made.price == (1, 2, 3)
    start = time.monotonic()
    assert made.ask(words(2)) == ["word 0", "word 1"] and (tmp_path / "cache" / "judge.sqlite").exists()
    assert 0.1 - (time.monotonic() - start) <= slept[1] <= 0.1, "ten a second"
    made.close()
    monkeypatch.setattr(ranks, "world", 2)
    slept.clear()
    for concurrency, share in ((7, 3), (1, 1)):
        made = Endpoint.of("m", Asking(concurrency=concurrency, rpm=600.0, tpm=1e9, cache=False))
        assert made.concurrency == share
        made.close()
    made = Endpoint.of("m", Asking(rpm=600.0, cache=False))
    start = time.monotonic()
    made.ask(words(3))
    assert 0.4 - (time.monotonic() - start) <= slept[2] <= 0.4, "half of ten a second"
    made.close()


@pytest.mark.parametrize(("joined", "dollars"), [(1, 2.5), (2, 5.0)])
def test_another_trainers_processes_have_equal_parts_of_the_limits(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, joined: int, dollars: float
) -> None:
    """accelerate starts them, and they do not join: nobody tells them what the others have spent. Those of
    train.py know, and share one budget."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "world", joined)
    (tmp_path / "prices.json").write_text('{"m": [1, 2, 3]}')
    limits = {"concurrency": 8, "rpm": 600.0, "tpm": 6000.0, "max_usd": 5.0}
    made = Endpoint.of("m", Asking(**limits, prices=tmp_path / "prices.json", cache=False))
    assert (made.concurrency, made.max_usd) == (4, dollars)
    assert (made._requests.limit, made._tokens.limit) == (300.0, 3000.0)
    made.close()


def test_requests_are_made_when_they_can_be_sent(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    """A generator of a million is not held at once: four times as many as are under way."""
    made, taken, done = endpoint(concurrency=2), [], []

    def count() -> Iterator[Request]:
        for each in words(30):
            taken.append(len(done))
            yield each

    made.ask(count(), lambda: done.append(1))
    assert len(done) == 30 and max(i + 1 - ended for i, ended in enumerate(taken)) == 8 + 1


# --- remembering --------------------------------------------------------------------------------------------


def test_a_second_run_makes_no_calls(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    """Not even where the server takes no structured output, which the second run cannot know."""
    refuses("response_format")(server)
    asked = [request(f"word {i}", body=FULL) for i in range(5)]
    first = endpoint(cache=tmp_path / "c.sqlite").ask(asked)
    before = len(server.seen)
    second = endpoint(cache=tmp_path / "c.sqlite")
    assert second.ask(asked) == first and len(server.seen) == before
    assert second.ledger.counts["cache_hits"] == 5 and second.ledger.counts["calls"] == 0


@pytest.mark.parametrize(
    "other",
    [
        {"repeat": 1},
        {"body": {"temperature": 1.0}},
        {"body": {"seed": 1}},
        {"body": {"model": "another"}},
        {"body": {"messages": [{"role": "user", "content": "a "}]}},
    ],
)
def test_what_belongs_to_the_key(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path, other: dict
) -> None:
    made = endpoint(cache=tmp_path / "c.sqlite")
    made.ask([request("a")])
    made.ask([request("a", **other)])
    assert len(server.seen) == 2


def test_another_server_is_another_key(server: Server, endpoint: Callable, tmp_path: Path) -> None:
    endpoint(cache=tmp_path / "c").ask([request("a")])
    endpoint(cache=tmp_path / "c", base_url=server.url + "/other").ask([request("a")])
    assert len(server.seen) == 2


def test_equal_questions_that_are_under_way_share_one_request(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    server.latency = 0.1
    made = endpoint()
    assert made.ask([request("a")] * 6) == ["a"] * 6
    assert len(server.seen) == 1 and made.ledger.counts["cache_hits"] == 5


def test_a_failure_is_never_remembered(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    server.fault = once(403)
    made = endpoint(cache=tmp_path / "c.sqlite")
    assert isinstance(made.ask([request("a"), request("b")])[1], Failure)
    assert made.ask([request("a"), request("b")]) == ["a", "b"]


def test_a_kept_reply_that_can_no_longer_be_read_makes_room(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    """Kept, it would have to be paid for in every later run."""
    asked = request("a")
    server.reply = lambda path, body: "bad"
    endpoint(cache=tmp_path / "c").ask([replace(asked, read=lambda reply: "as it was read once")])
    server.reply = lambda path, body: "good"
    for _ in range(2):
        assert endpoint(cache=tmp_path / "c").ask([asked]) == ["good"]
    assert len(server.seen) == 2


def test_no_secret_reaches_the_cache(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    made = endpoint(cache=tmp_path / "c.sqlite")
    assert made.ask([request(f"echo {KEY}")]) == ["echo ***"]
    made.close()
    assert all(b"very-secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_damaged_cache_costs_a_warning(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database" * 100)
    assert endpoint(cache=path).ask(words(3)) == ["word 0", "word 1", "word 2"]
    assert caplog.text.count("going on without it") == 1 and str(path) in caplog.text


def test_a_locked_cache_costs_a_warning(
    server: Server,
    endpoint: Callable[..., Endpoint],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.1}))
    made = endpoint(cache=tmp_path / "c.sqlite")
    other = connect(tmp_path / "c.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert made.ask(words(3)) == ["word 0", "word 1", "word 2"]
    assert caplog.text.count("going on without it") == 1
    other.close()


def test_a_cache_that_cannot_be_made_costs_a_warning(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert endpoint(cache=tmp_path / "file" / "c.sqlite").ask(words(1)) == ["word 0"]
    assert "going on without it" in caplog.text


# --- money and counts ---------------------------------------------------------------------------------------


def test_the_ledger_counts_tokens_dollars_and_latency(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    server.latency, start = 0.05, time.monotonic()
    made = endpoint(price=(1.0, 0.1, 10.0))
    made.ask(words(4))
    past = time.monotonic() - start
    metrics = made.ledger.metrics()
    assert metrics["perf/judge/tokens_in"] == 4000 and metrics["perf/judge/tokens_cached"] == 2400
    assert metrics["perf/judge/tokens_out"] == 40 and metrics["judge/questions"] == 4
    assert metrics["perf/judge/dollars"] == pytest.approx(4 * (400 * 1 + 600 * 0.1 + 10 * 10) / 1e6)
    assert 0.05 <= metrics["perf/judge/latency_p50"] <= metrics["perf/judge/latency_p95"] <= past
    made.ask(words(2))
    assert made.ledger.metrics()["perf/judge/calls"] == 2  # since the last time
    assert "6 questions, 6 calls" in made.ledger.line() and "$0.00" in made.ledger.line()


USAGE = {"prompt_tokens": 1000, "completion_tokens": 10}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (USAGE, (1000, 0, 10)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 600}}, (1000, 600, 10)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 0}}, (1000, 0, 10)),
        (USAGE | {"prompt_tokens_details": None}, (1000, 0, 10)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": None}}, (1000, 0, 10)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": -1}}, None),
        (
            {"input_tokens": 900, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 5}},
            (900, 5, 1),
        ),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 10.5}, None),
        ({"prompt_tokens": -1}, None),
        ("1000", None),
        (None, None),
    ],
)
def test_tokens_are_counted_as_the_server_reports_them(
    server: Server, endpoint: Callable[..., Endpoint], usage: Any, tokens: tuple | None
) -> None:
    """Under the names of either wire; if it reports none that can be true, what the request may have cost at
    most is booked."""
    server.spoil_chat = lambda fault, body, content, whole: whole | {"usage": usage}
    made = endpoint(price=(1.0, 0.1, 10.0))
    made.ask([request("a", body={"max_tokens": 50})])
    counts, names = made.ledger.counts, ("tokens_in", "tokens_cached", "tokens_out")
    if tokens is None:
        size = len(json.dumps(server.seen[0][1]))
        assert counts["dollars"] == pytest.approx((size * 1 + 50 * 10) / 1e6) and not counts["tokens_in"]
    else:
        read, cached, written = tokens
        assert tuple(counts[name] for name in names) == tokens
        assert counts["dollars"] == pytest.approx(((read - cached) + cached * 0.1 + written * 10) / 1e6)


def test_max_usd_is_not_passed_and_what_was_paid_for_is_kept(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    """Each costs 0.00045 dollars by the server's count and is bounded by 0.0006 before. Those under way are
    waited for: stopping while they are counted at their bounds would leave half of a small budget."""
    server.latency = 0.02
    asked = [request(f"{i}", body={"max_tokens": 200}) for i in range(40)]
    options = {"price": (0.0, 0.0, 3.0), "concurrency": 8, "cache": tmp_path / "c"}
    server.spoil_chat = lambda fault, body, content, whole: (
        whole | {"usage": {"prompt_tokens": 9, "completion_tokens": 150}}
    )
    made = endpoint(max_usd=0.0022, **options)
    with pytest.raises(OverBudget, match="--max-usd 0.0022"):
        made.ask(asked)
    spent = made.ledger.counts["dollars"]
    assert 0.0022 - 0.0006 < spent <= 0.0022 and len(server.seen) == round(spent / 0.00045)
    assert Cache(tmp_path / "c")._db.execute("SELECT count(*) FROM replies").fetchone()[0] == len(server.seen)


def test_what_came_too_late_may_have_to_be_paid_for(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    server.fault = once("hang")
    made = endpoint(price=(0.0, 0.0, 3.0), retries=0)
    made.ask([request("a", body={"max_tokens": 200})])
    made.timeout = 0.3  # no honest reply is waited for
    made.ask([request("b", body={"max_tokens": 200})])
    assert made.ledger.counts["dollars"] == pytest.approx((10 + 200) * 3e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_usd": 1.0}, "needs a price for 'm'"),
        ({"base_url": "localhost:8000"}, "http://localhost:8000/v1"),
        ({"base_url": "http://user:hunter2@localhost/v1"}, "holds a password"),
        ({"base_url": "http://localhost/v1?key=hunter2"}, "or a query"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        Endpoint("m", **options)
    assert "hunter2" not in str(error.value)


def test_a_key_that_no_header_takes_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line feed at its end, as a shell's `cat` leaves it, would come back in httpx's error with the key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
        Endpoint("m")
    assert KEY not in str(error.value)


# --- threads, loops, signals --------------------------------------------------------------------------------


def test_it_can_be_used_where_a_loop_is_running(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    """As in a notebook's cell."""
    made = endpoint()

    async def cell() -> list:
        return made.ask(words(3))

    assert asyncio.run(cell()) == ["word 0", "word 1", "word 2"]
    assert made.ask(words(3)) == ["word 0", "word 1", "word 2"]


def test_several_threads_can_ask_one_endpoint(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    made, answers = endpoint(), {}
    threads = [
        threading.Thread(
            target=lambda i=i: answers.update({i: made.ask([request(f"{i} {j}") for j in range(5)])})
        )
        for i in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == {i: [f"{i} {j}" for j in range(5)] for i in range(4)}


def test_threads_that_fail_do_not_wait_for_each_other(server: Server) -> None:
    """They did, for ten seconds, and asyncio complained of the tasks that they left waiting."""
    server.fault, made, said = lambda *_: 500, Endpoint("m", retries=0), []

    def ask(i: int) -> None:
        with pytest.raises(ConnectionError) as error:
            made.ask([request(f"{i}")])
        said.append(str(error.value))

    start, threads = time.monotonic(), [threading.Thread(target=ask, args=[i]) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(said) == 4 and time.monotonic() - start < 9
    assert not asyncio.all_tasks(made._loop)


def test_ctrl_c_cancels_what_is_under_way(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    made = endpoint(concurrency=4)
    made.ask([request("the first goes alone")])
    server.latency = 0.5
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without

    def interrupt() -> None:
        while len(server.seen) < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        made.ask(words(100))
    sent = len(server.seen)
    time.sleep(0.7)
    assert len(server.seen) == sent < 100  # nothing is sent after it
    server.latency = 0.0
    assert made.ask([request("after")]) == ["after"]


def test_a_collected_endpoint_leaves_no_thread(server: Server) -> None:
    made = Endpoint("m")
    made.ask(words(1))
    thread = made._thread
    del made
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_decisions_are_sent_as_openais_own_client_sends_them(server: Server) -> None:
    """`client.decisions.create` came with openai 3; our requests go through `client.post`, so that older
    versions and all three wires share one path. The two have to agree."""
    if not hasattr(openai.OpenAI, "decisions"):
        pytest.skip("needs openai >= 3")
    server.reply = None
    body = {
        "input": "--- response ab\nx\n--- end of response ab",
        "model": "m",
        "questions": [{"type": "predicate", "name": "1", "instructions": "Is it?"}],
    }
    decision = openai.OpenAI(base_url=server.url, max_retries=0).decisions.create(**body)
    made = Endpoint("m")
    ours = made.ask([Request("/decisions", body, lambda reply: reply)])[0]
    (path, sent, _), (other, theirs, _) = server.seen
    assert path == other and sent == theirs == body
    assert decision.answers[0].probability == ours["answers"][0]["probability"]
    made.close()


logging.getLogger("openai").setLevel(logging.WARNING)
