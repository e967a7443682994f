"""What servers say in place of an answer: each is read, or refused at once in words that say what came."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile import Server, _bytes, envelope

from rar_mini.evaluation import answers
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Endpoint, Failure, Request

pytestmark = pytest.mark.usefixtures("folder")

SCHEMA = {"response_format": {"type": "json_schema"}}


@pytest.fixture
def endpoint(server: Server) -> Iterator[Callable[..., Endpoint]]:
    made = []

    def make(**more: Any) -> Endpoint:
        made.append(Endpoint("m", **{"backoff": 0.01, **more}))
        return made[-1]

    server.reply = lambda path, body: "x"
    yield make
    for each in made:
        each.close()


def requests(count: int, **fields: Any) -> list[Request]:
    bodies = ({"messages": [{"role": "user", "content": f"{i}"}]} | fields for i in range(count))
    return [Request("/chat/completions", body, wires.chat_text) for body in bodies]


def says(server: Server, reply: Any, headers: dict[str, Any] | None = None, after: int = 0) -> None:
    """Let a server say this under HTTP 200, after so many honest replies."""
    spoil, sent = server.spoil, reply if isinstance(reply, bytes) else _bytes(reply)
    server.fault = lambda path, body, number: "lie" if number >= after else None
    server.spoil = lambda fault, *rest: (200, headers or {}, sent) if fault else spoil(fault, *rest)


# --- errors under HTTP 200 ---------------------------------------------------------------------------------

LIMIT = {"error": {"message": "Rate limit exceeded: free-models-per-min", "code": 429}, "user_id": "u"}


def test_an_error_under_200_is_told_in_the_servers_words(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    """88 questions were 264 calls, each "not a chat completion"."""
    says(server, LIMIT)
    with pytest.raises(ConnectionError, match="got HTTP 429: .*Rate limit exceeded: free-models-per-min"):
        endpoint(retries=2).ask(requests(88))
    assert len(server.seen) <= 3 + 1  # the next in line may have begun


@pytest.mark.parametrize(
    ("reply", "kind", "calls"),
    [
        (LIMIT, "HTTP 429", 3),
        ({"error": {"message": "busy", "code": "503"}, "choices": []}, "HTTP 503", 3),
        ({"error": {"message": "no such model", "code": 404}}, "HTTP 404", 1),
        ({"error": "model is loading", "status": 503}, "HTTP 503", 3),
        ({"error": {"message": "out of credits", "code": "no_credit"}}, "error", 1),
        ({"error": "out of credits"}, "error", 1),
        ({"object": "error", "message": "too long", "code": 400}, "HTTP 400", 1),
        ({"choices": [{"error": {"code": 502, "message": "provider"}, "message": None}]}, "HTTP 502", 3),
    ],
)
def test_an_error_under_200_counts_as_its_status_would(
    server: Server, endpoint: Callable[..., Endpoint], reply: dict, kind: str, calls: int
) -> None:
    made = endpoint(retries=2)
    made.ask(requests(1))
    says(server, reply, after=1)
    (failure,) = made.ask(requests(2)[1:])
    assert isinstance(failure, Failure) and failure.kind == kind and len(server.seen) - 1 == calls
    assert any(words in str(failure) for words in json.dumps(reply).split('"'))


@pytest.mark.parametrize(
    ("headers", "kept"),
    [({"Retry-After": "0.4"}, {}), ({}, {"metadata": {"headers": {"Retry-After": "0.4"}}})],
)
def test_an_error_under_200_is_waited_for(
    server: Server, endpoint: Callable[..., Endpoint], headers: dict, kept: dict
) -> None:
    """The pause stands in the headers, or where a proxy has kept those of the server behind it."""
    says(server, {"error": LIMIT["error"] | kept}, headers, after=1)
    server.fault = lambda path, body, number: "lie" if number == 1 else None
    assert endpoint().ask(requests(2)) == ["x", "x"]
    assert server.times[2] - server.times[1] > 0.4


def test_an_error_in_the_midst_of_the_work_may_have_to_be_paid(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    made = endpoint(price=(0.0, 0.0, 100.0), retries=0)
    made.ask(requests(1))
    before, costs = made.ledger.counts["dollars"], []
    for reply in (LIMIT, LIMIT | {"choices": []}, {"choices": [{"error": {"code": 502}}]}):
        says(server, reply)
        made.ask(requests(len(costs) + 2, max_tokens=12)[-1:])
        costs.append(made.ledger.counts["dollars"] - before)
    assert costs == pytest.approx([0, 0.0012, 0.0024])


def test_an_error_that_is_null_is_none(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    says(server, envelope("/chat/completions", "x") | {"error": None})
    assert endpoint().ask(requests(1)) == ["x"]


# --- messages of another shape -----------------------------------------------------------------------------

THOUGHTS = {"type": "thinking", "thinking": [{"type": "text", "text": 'I could say {"1": "no"}.'}]}


def message(content: Any, **more: Any) -> dict[str, Any]:
    reply = envelope("/chat/completions", content)
    reply["choices"][0]["message"] |= more
    return reply


def test_content_may_come_in_parts() -> None:
    """As Mistral's and others' does. Thoughts are no part of the answer."""
    parts = [THOUGHTS, {"type": "text", "text": '{"1": '}, {"type": "text", "text": '"yes"}'}]
    assert wires.chat_text(message(parts)) == '{"1": "yes"}'
    assert answers.written(message(parts))["response"] == '{"1": "yes"}'
    with pytest.raises(Failure, match="empty"):
        wires.chat_text(message([THOUGHTS]))
    with pytest.raises(Failure, match="expected content of type text, got image_url"):
        wires.chat_text(message([{"type": "image_url", "image_url": "data:"}]))
    with pytest.raises(Failure, match="malformed"):
        wires.chat_text(message([{"type": "text", "text": 3}]))


@pytest.mark.parametrize("content", [None, "", " \n", []])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_no_answer(content: Any, field: str) -> None:
    """A verdict in them may be one that the model was about to take back."""
    for read in (wires.chat_text, answers.written):
        with pytest.raises(Failure, match="empty: the reply has thoughts .* and no content"):
            read(message(content, **{field: '{"1": "yes"}'}))
    assert wires.chat_text(message("x", **{field: "hm"})) == "x"


def test_another_shape_is_told_by_its_names() -> None:
    with pytest.raises(Failure, match="expected a chat completion, got an object of detail, \\\\x1b"):
        wires.chat_text({"detail": "x", "\x1b": 1})


# --- bodies of another kind --------------------------------------------------------------------------------

EVENTS = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'
PAGE = b"<!DOCTYPE html><title>Sign in</title>"


@pytest.mark.parametrize(
    ("sent", "kind", "words"),
    [
        (EVENTS, "text/event-stream; charset=utf-8", "got a stream that nobody asked for"),
        (EVENTS, "application/json", r"got 'data: {\"choices\""),
        (PAGE, "text/html", "got '<!DOCTYPE html><title>Sign in"),
    ],
)
def test_what_is_no_json_is_refused_after_one_request(
    server: Server, endpoint: Callable[..., Endpoint], sent: bytes, kind: str, words: str
) -> None:
    """They were tried nine times, for a minute, and then "the reply was not JSON"."""
    says(server, sent, {"Content-Type": kind})
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=words):
        endpoint(backoff=9.0).ask(requests(5))
    assert len(server.seen) <= 1 + 1 and time.monotonic() - start < 4  # half of the shortest pause


def breaks(server: Server, on: str) -> None:
    """A server that answers HTTP 500 wherever a field comes."""
    spoil = server.spoil
    server.spoil = lambda fault, path, body, *rest: (
        (500, {}, b"Internal Server Error") if on in body else spoil(fault, path, body, *rest)
    )


def test_structured_output_that_breaks_a_server_is_given_up(
    server: Server, endpoint: Callable[..., Endpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """After a second try: the first may have failed for any reason."""
    breaks(server, "response_format")
    made = endpoint()
    assert made.ask(requests(9, **SCHEMA)) == ["x"] * 9
    assert len(server.seen) == 2 + 9 and made.refused == {"response_format"}
    assert "does not take response_format" in caplog.text


def test_structured_output_that_has_worked_is_not_blamed(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    """A busy server's errors would cost the whole run its schema."""
    server.fault = lambda path, body, number: "500" if 1 <= number < 4 else None
    made = endpoint()
    assert made.ask(requests(2, **SCHEMA)) == ["x", "x"] and not made.refused
    assert all("response_format" in body for _, body, _ in server.seen)


def test_a_very_patient_client_does_not_overflow(
    server: Server, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 ** 1024 is no float: after a long outage the run ended in a traceback."""
    made = endpoint(retries=1100, backoff=1e-15)
    made.ask(requests(1))

    async def busy(path: str, body: dict) -> dict:
        raise Failure("HTTP 503", transient=True)

    monkeypatch.setattr(made, "_send", busy)
    (failure,) = made.ask(requests(2)[1:])
    assert failure.kind == "HTTP 503" and made.ledger.counts["retries"] == 1100


# --- names that come twice ---------------------------------------------------------------------------------

TWICE = {
    "/chat/completions": b'{"choices": [{"message": {"content": "a", "content": "x"}}]}',
    "/systemone": b'{"answers": {"1": {"type": "noul", "noul": 0.1}, "1": {"type": "noul", "noul": 0.9}}}',
    "/decisions": b'{"answers": [{"name": "1", "probability": 0.1, "probability": 0.9}]}',
}


@pytest.mark.parametrize("path", TWICE)
def test_a_name_that_comes_twice_is_two_answers(
    server: Server, endpoint: Callable[..., Endpoint], path: str
) -> None:
    """On every wire, by one reader: the second was believed."""
    made = endpoint()
    made.ask(requests(1))
    says(server, TWICE[path], after=1)
    (failure,) = made.ask([Request(path, {"messages": [{"content": ""}]}, lambda reply: reply)])
    assert isinstance(failure, Failure) and failure.kind == "malformed" and len(server.seen) == 2
    assert "comes twice in one object" in failure.words
