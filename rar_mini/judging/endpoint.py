"""Asks a model server: JSON requests, many at once, each with its own deadline, and none sent twice.

What this file decided:

- **One event loop**, owned by the endpoint, in a background thread: an async client that is shared between
  threads or loops can hang a run for hours. Callers are synchronous, in a script or in a notebook.
- **A deadline starts when a request is sent**, not while it waits for its turn: else a busy server would look
  like a broken one.
- **A request that waits for its next try holds no slot.** Others are sent meanwhile.
- **The very first request goes alone.** A wrong address, key or name costs one request and says so at once,
  and what the server refuses (structured output, a seed) is found out once.
- **What is going to be asked may be begun before**, while the caller is busy. It is still one `ask`: what
  is counted, what may be spent and which errors are raised is the same.
- **Only answers are cached.** A failure never is, so that a later run can ask again.
- **Usage is believed only if it can be true.** If it cannot, if there is none, or if the reply broke off, the
  request is booked at the most that it may have cost. An error in the body of an HTTP 200 is an error.
- **No secret leaves.** Whatever a server says goes through redact.py before it is read or kept.

A question that failed gets a `Failure` in place of its answer, and is counted. The caller decides what that
means.
"""

import asyncio
import email.utils
import functools
import hashlib
import json
import logging
import math
import os
import random
import re
import ssl
import sys
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

import openai
from pydantic import AliasChoices, AliasPath, Field, ValidationError

from rar_mini import ranks
from rar_mini.files import Twice, cache_folder, parse
from rar_mini.forms import ABSENT, Form, escaped, printable
from rar_mini.judging.ledger import PRICES, Cache, Ledger, read_price
from rar_mini.redact import hidden, redact, refuse_key

if TYPE_CHECKING:  # it brings torch, which nothing here needs
    from rar_mini.config import Asking

log = logging.getLogger(__name__)

OPTIONAL = ("response_format", "seed", "max_tokens", "temperature", "logprobs")
"""Fields that some servers refuse, in the order in which they are dropped."""

UNPAID = (503, 529)
"""Statuses of 500 and above that say that the server was too busy to begin."""

LONGEST_WAIT = 600.0  # seconds; a server that asks for a longer pause counts as failed
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # the variables that name others than the usual ones
MOST_BYTES = 2**22  # in a reply; a thousand verdicts with their reasons take an eighth of that

httpx = sys.modules[openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0]]
"""The library under openai: httpx, or from openai 3 on httpx2."""


class Failure(Exception):
    """Why a question has no answer: a short `kind` to be counted by, and words to read, without secrets."""

    def __init__(
        self, kind: str, words: str = "", *, transient: bool = False, wait: float = 0.0, free: bool = False
    ) -> None:
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind, self.words = kind, words
        self.transient, self.wait = transient, wait  # whether to try again, and the seconds to wait first
        self.free = free  # whether it cannot have cost anything


class OverBudget(ValueError):
    """The next request might cost more than `max_usd` leaves. Those under way were finished and cached."""


@dataclass(frozen=True)
class Request:
    """One question to a server.

    `read` turns the server's JSON into an answer, or raises Failure if it does not have the expected form.
    Then `again` makes the body of the next try, from the last one, its reply and that Failure. Equal requests
    are sent once, unless their `repeat` differs.
    """

    path: str  # below the base URL, such as /chat/completions
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    again: Callable[[dict[str, Any], dict[str, Any], Failure], dict[str, Any]] = lambda body, *_: body
    repeat: int = 0


Tokens = Annotated[int, Field(ge=0, le=10**7)]  # no model reads or writes more in one request
Read = Annotated[int, Field(ge=1, le=10**7)]  # and every model reads something


class Usage(Form):
    """The tokens that a reply reports, by the names of either API."""

    read: Read = Field(ABSENT, validation_alias=AliasChoices("prompt_tokens", "input_tokens"))
    written: Tokens = Field(ABSENT, validation_alias=AliasChoices("completion_tokens", "output_tokens"))
    cached: Tokens | None = Field(
        None,  # part of those that were read
        validation_alias=AliasChoices(
            AliasPath("prompt_tokens_details", "cached_tokens"),
            AliasPath("input_tokens_details", "cached_tokens"),
        ),
    )


class Pace:
    """At most `limit` units a minute, evenly: a burst would be refused by a server that counts in seconds."""

    def __init__(self, limit: float | None) -> None:
        self.limit, self._free = limit, 0.0  # the clock's time at which the next unit may go

    async def take(self, units: float) -> None:
        """Wait for one's turn."""
        if self.limit:
            start = max(time.monotonic(), self._free)
            self._free = start + 60 * units / self.limit
            await asyncio.sleep(start - time.monotonic())


class Endpoint:
    """A model behind a URL: `base_url` (with its /v1), else OPENAI_BASE_URL, else OpenAI's own.

    At most `concurrency` requests are under way, and at most `rpm` requests and `tpm` tokens are sent in a
    minute. A try may take `timeout` seconds. After a transient failure there are up to `retries` more, with a
    pause that begins at `backoff` seconds and doubles; after a reply that its reader refuses, up to
    `parse_retries` more. With `cache`, replies are kept in that file. `price` is in dollars per million
    tokens, as in PRICES, and the endpoint never spends more than `max_usd`. The key is OPENAI_API_KEY; your
    own server needs none.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        concurrency: int = 32,
        rpm: float | None = None,
        tpm: float | None = None,
        timeout: float = 120.0,
        retries: int = 8,
        backoff: float = 0.25,
        parse_retries: int = 2,
        cache: Path | None = None,
        price: tuple[float, float, float] | None = None,
        max_usd: float | None = None,
    ) -> None:
        refuse_key("the model's name", model)
        self.model, self.concurrency, self.timeout, self.backoff = model, concurrency, timeout, backoff
        self.retries, self.parse_retries = retries, parse_retries
        self.price, self.max_usd = price or PRICES.get(model), max_usd
        if max_usd is not None and self.price is None:
            raise ValueError(
                f"--max-usd {max_usd} needs a price for {model!r}, which has none; pass --prices FILE"
            )
        parts = _located(base_url)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._query = parts.query
        self.ledger, self.cache = Ledger(), Cache(cache)
        self.refused: set[str] = set()  # the fields of OPTIONAL that this server does not take
        self._first_over = False  # whether the first request is over
        self._answered = False  # whether there was any reply
        self._structured = False  # whether there was one to a request for structured output
        self._under_way: dict[str, asyncio.Future] = {}
        self._begun: _Asking | None = None  # what `begin` has begun, until `ask` takes it
        self._requests, self._tokens = Pace(rpm), Pace(tpm)
        self._slots, self._alone = asyncio.Semaphore(concurrency), asyncio.Lock()
        self._client = _client(parts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _close, self._loop, self._thread, self._client, self.cache)

    @classmethod
    def of(cls, model: str, options: "Asking") -> "Endpoint":
        """The endpoint that the options of a command line describe, with the user's own cache. Limits hold
        for all processes together. Ranks tell each other what they have spent; in another trainer's processes
        each may spend an equal part."""
        names = "base_url concurrency timeout rpm tpm retries parse_retries max_usd".split()
        asked = {name: getattr(options, name) for name in names}
        processes = max(ranks.world, ranks.launched())
        asked |= {name: asked[name] and asked[name] / processes for name in ("rpm", "tpm")}
        asked["max_usd"] = asked["max_usd"] and asked["max_usd"] * ranks.world / processes
        asked["concurrency"] = max(1, asked["concurrency"] // processes)
        return cls(
            model,
            cache=cache_folder() / "judge.sqlite" if options.cache else None,
            price=read_price(options.prices, model) if options.prices else None,
            **asked,
        )

    def ask(self, requests: Iterable[Request], done: Callable[[], Any] = lambda: None) -> list[Any]:
        """Ask all requests. Returns the answers in order, with a Failure in place of each missing one; `done`
        is called after each.

        Requests may come from a generator: no more than a few times `concurrency` are held. Raises
        ConnectionError, in the server's words, if the server has never answered; and OverBudget.
        """
        asking, self._begun = self._begun or self._open(), None
        self._give(asking, requests, lambda _: done())
        try:
            return asking.answers.result()
        except BaseException:  # Ctrl-C must not leave requests running that cost money
            self._cancel(asking)
            raise

    def begin(self, requests: Iterable[Request]) -> None:
        """Begin to ask, and return at once. These requests are part of the next `ask`: an equal one there
        takes the answer of one here, each of them once, and what goes wrong with them is raised there."""
        self._begun = self._begun or self._open()
        self._give(self._begun, requests, None)

    def drop(self) -> None:
        """End what was begun, if no `ask` is going to take it."""
        asking, self._begun = self._begun, None
        if asking is not None:
            self._cancel(asking)

    def _open(self) -> "_Asking":
        given: asyncio.Queue = asyncio.Queue()
        return _Asking(given, asyncio.run_coroutine_threadsafe(self._ask_all(given), self._loop))

    def _give(self, asking: "_Asking", requests: Iterable[Request], done: Callable | None) -> None:
        self._loop.call_soon_threadsafe(asking.given.put_nowait, (requests, done))

    def _cancel(self, asking: "_Asking") -> None:
        if asking.answers.done():  # it failed, and all of its tasks have ended
            return
        asking.answers.cancel()
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_settle(), self._loop).result(timeout=10)

    async def _ask_all(self, given: asyncio.Queue) -> list[Any]:
        """Ask what is given, and return the answers to what came with `done`, which comes last."""
        held = asyncio.Semaphore(4 * self.concurrency)  # more than slots: some wait for their next try
        begun: defaultdict[str, deque[asyncio.Task]] = defaultdict(deque)
        tasks: list[asyncio.Task] = []
        spent: list[OverBudget] = []

        async def one(request: Request, key: str) -> Any:
            try:
                return await self._answer(request, key)
            except OverBudget as error:
                spent.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                async for request, done in _each(given):
                    key = self._key(request)
                    if done and begun[key]:
                        task = begun[key].popleft()
                    else:
                        await held.acquire()
                        if spent:
                            break
                        task = group.create_task(one(request, key))
                        task.add_done_callback(lambda _: held.release())
                    if done:
                        task.add_done_callback(done)
                    (tasks if done else begun[key]).append(task)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if spent:
            raise spent[0]
        answers = [task.result() for task in tasks]
        if answers and not self._answered and all(isinstance(answer, Failure) for answer in answers):
            raise self._unreachable(answers[0])
        return answers

    def _key(self, request: Request) -> str:
        """Equal for equal questions to the same server."""
        # The whole body, because a later run looks here before it knows which fields the server refuses.
        asked = [self.address, request.path, request.body, request.repeat, *filter(None, [self._query])]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    async def _answer(self, request: Request, key: str) -> Any:
        """Answer from the cache, from an equal request that is under way, or from the server."""
        self.ledger.counts["questions"] += 1
        task = self._under_way.get(key)
        if task is None:
            if (stored := self.cache.get(key)) is not None:
                try:
                    answer = request.read(stored)
                    self.ledger.counts["cache_hits"] += 1
                    return answer
                except Failure:  # an earlier version took it; the next reply is to have its place
                    self.cache.forget(key)
            task = self._under_way[key] = asyncio.create_task(self._ask(request, key))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        else:
            self.ledger.counts["cache_hits"] += 1
        try:
            return await task
        except Failure as failure:
            self.ledger.fail(failure.kind, failure.words)
            return failure

    async def _ask(self, request: Request, key: str) -> Any:
        """Ask until the reply can be read, and cache it."""
        body = request.body
        for left in range(self.parse_retries, -1, -1):
            reply = await self._exchange(request.path, body)
            plain = "response_format" not in body or "response_format" in self.refused
            self.ledger.counts["plain_text"] += plain and "response_format" in request.body
            try:
                answer = request.read(reply)
            except Failure as failure:
                if not left:
                    raise
                self.ledger.counts["asked_again"] += 1
                body = request.again(body, reply, failure)
            else:
                self.cache.put(key, json.dumps(reply))
                return answer

    async def _exchange(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The server's JSON. The endpoint's first request goes alone."""
        if not self._first_over:
            async with self._alone:
                if not self._first_over:
                    try:
                        reply = await self._tried(path, body)
                    except Failure as failure:
                        # These may concern this one prompt; anything else concerns the server.
                        if failure.kind not in ("HTTP 400", "HTTP 413", "HTTP 422"):
                            raise self._unreachable(failure) from None
                        self._first_over = True
                        raise
                    self._first_over = True
                    return reply
        return await self._tried(path, body)

    async def _tried(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send until there is JSON: again after a pause if a failure is transient, and again without a field
        that the server refuses."""
        tries = 0
        without: set[str] = set()
        while True:
            sent = _fields(body, self.refused | without)
            try:
                reply = await self._send(path, sent)
            except Failure as failure:
                # If nobody answers the first request, waiting hardly helps, and the user waits.
                few = failure.kind == "connection" and not self._first_over
                # Some servers break where they should refuse. A guess, until structured output has worked.
                broken = failure.kind == "HTTP 500" and tries >= min(1, self.retries) and not self._structured
                if blamed := _blamed(failure, sent, broken):
                    without.add(blamed)
                elif failure.transient and tries < (min(2, self.retries) if few else self.retries):
                    pause = min(60.0, self.backoff * 2.0 ** min(tries, 32)) * random.uniform(0.5, 1.5)
                    tries += 1
                    self.ledger.counts["retries"] += 1
                    await asyncio.sleep(failure.wait + pause)
                else:
                    raise
                continue
            for name in sorted(without - self.refused):  # only now we know that this was the reason
                log.warning(f"the server of {self.model} does not take {name}: going on without it")
            self.refused |= without
            self._structured |= "response_format" in sent
            return reply

    async def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One try. Its deadline starts after it has waited for a slot, its turn and the budget."""
        count = self.ledger.counts
        size = len(json.dumps(body))  # no token is shorter than a byte, so this bounds what is read
        most = body.get("max_tokens", body.get("max_completion_tokens", 0))
        bound = max(self._cost(size, cached, most) for cached in (0, size))
        async with self._slots:
            await self._requests.take(1)
            await self._tokens.take(max(size / 4, most))  # as OpenAI counts them
            await self._afford(bound)
            request = self.ledger.reserve(bound)
            count["calls"] += 1
            cost, start = bound, time.monotonic()  # a late reply may be billed
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._client.post(path, cast_to=httpx.Response, body=body)
                reply = self._read(response)
                cost = self._book(reply, bound)
            except (Failure, TimeoutError, openai.OpenAIError) as error:
                failure = self._failure(error)
                cost = 0.0 if failure.free else bound
                raise failure from None
            finally:
                self.ledger.latencies.append(time.monotonic() - start)
                self.ledger.settle(request, bound, cost)
        self._answered = True
        return reply

    async def _afford(self, bound: float) -> None:
        """Wait until the budget has room for what a request may cost. Raises OverBudget if it never will."""
        ledger = self.ledger
        while self.max_usd is not None and ledger.dollars(ledger.reserved + bound) > self.max_usd:
            if not ledger.under_way:
                raise OverBudget(
                    f"{self.model} has cost ${ledger.counts['dollars']:.4f}, and the next request might pass "
                    f"--max-usd {self.max_usd:g}; raise it to go on"
                )
            await asyncio.sleep(0.02)  # most requests cost less than their reserve

    def _cost(self, read: int, cached: int, written: int) -> float:
        """Dollars for so many tokens, of which `cached` ones are part of those read; 0 without a price."""
        fresh, cheap, out = self.price or (0.0, 0.0, 0.0)
        return ((read - cached) * fresh + cached * cheap + written * out) / 1e6

    def _book(self, reply: dict[str, Any], bound: float) -> float:
        """Count the tokens that a reply reports. Returns their cost; the bound if they cannot be true."""
        try:
            usage = Usage.model_validate(reply.get("usage"))
        except ValidationError:
            return bound
        cached = usage.cached or 0
        if cached > usage.read or (usage.written == 0 and "choices" in reply):
            return bound
        tokens = {"tokens_in": usage.read, "tokens_cached": cached, "tokens_out": usage.written}
        self.ledger.counts.update(tokens)
        return self._cost(usage.read, cached, usage.written)

    def _read(self, response: Any) -> dict[str, Any]:
        """A reply's JSON object. Raises Failure, also for an error in the body of an HTTP 200."""
        raw = response.content
        try:
            reply = parse(raw)
        except Twice as error:
            raise Failure("malformed", str(error)) from None
        except ValueError:  # cut off, not UTF-8, or no JSON at all
            reply = None
        if not isinstance(reply, dict):
            came = _words(raw[:200].decode("utf-8", "replace"))
            cut_off = raw.lstrip()[:1] in (b"{", b"[", b"")  # a web page or a stream would come again
            raise Failure("unreadable", f"expected a JSON object, got {came!r}", transient=cut_off)
        if (error := _error_in(reply)) is not None:
            status, headers = _status(error) or _status(reply), _headers(error, response)
            free = not reply.keys() & {"choices", "usage"}  # with these, the model had begun to answer
            raise _refusal(status, headers, json.dumps(error, ensure_ascii=False), free)
        return hidden(reply)

    def _failure(self, error: Exception) -> Failure:
        """Why a request failed."""
        cause = error.__cause__
        if isinstance(error, Failure):
            return error
        if isinstance(cause, Failure):  # from _limit, which openai takes for a lost connection
            return cause
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return Failure("timeout", f"no reply in {self.timeout:g} s", transient=True)
        if isinstance(error, openai.APIStatusError):
            return _refusal(error.status_code, error.response.headers, error.response.text)
        if isinstance(error, openai.APIConnectionError):  # a reply that broke off may be billed
            unsent = isinstance(cause, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol)
            names = ", ".join(_settings(self.address.partition(":")[0]))
            words = _words(str(cause or error)) + (names and f" (reached by the settings of {names})")
            return Failure("connection", words, transient=True, free=unsent)
        return Failure(type(error).__name__, _words(str(error)), free=True)

    def _unreachable(self, failure: Failure) -> ConnectionError:
        return ConnectionError(
            f"the server has not answered for model {self.model!r}: expected a reply from "
            f"{redact(self.address)}, got {failure}; check that the server runs, and that the base URL (with "
            "its /v1), OPENAI_API_KEY and the model's name are right"
        )


def _located(base_url: str | None) -> SplitResult:
    """The parts of a server's address. Raises ValueError, which never shows the address: a password may
    stand in an unexpected part of it."""
    name, url = "--base-url", base_url
    if not url:
        name, url = "OPENAI_BASE_URL", os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    try:
        parts, _ = urlsplit(url), httpx.URL(url)  # each refuses what the other accepts
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        fits = fits and "#" not in url and "@" not in parts.path + parts.query
    except (ValueError, httpx.InvalidURL):
        fits = False
    if not fits:
        raise ValueError(
            f"{name} is no address of a server: expected a form like http://localhost:8000/v1; in a user's "
            "name or password write / # ? and @ as %2F %23 %3F and %40"
        )
    if base_url and ("@" in parts.netloc or parts.query):
        raise ValueError(
            "--base-url holds a password or a query: options are written to files, OPENAI_BASE_URL is not"
        )
    return parts


def _client(parts: SplitResult) -> openai.AsyncOpenAI:
    """openai's client for an address. It insists on a key, although your own server may need none.

    It neither retries nor has a deadline, because ours count retries, let them wait without a slot, and limit
    the whole reply (httpx's deadline starts again with every byte). Raises ValueError that names a proxy or
    certificate setting that cannot be used.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    if not re.fullmatch(r"[!-~]*", key):
        raise ValueError(
            "OPENAI_API_KEY: expected visible ASCII, got blanks or other characters; set it anew"
        )
    try:
        return openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=urlunsplit(parts._replace(query="")),
            default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            timeout=None,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},  # a compressed reply could become any size
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [_limit]}, verify=_certificates(*map(os.environ.get, CERTIFICATES))
            ),
        )
    except Exception as error:  # of many types: for a bad URL, scheme, package or file
        settings = _settings("http") | _settings("https")
        wrong = [name for name, value in settings.items() if not _usable(name, value)]
        # httpx quotes a bad URL in pieces, which are too short to recognise a password in them.
        why = "it is no URL" if isinstance(error, httpx.InvalidURL) else _words(f"{error}")
        raise ValueError(
            f"the network's setting {' or '.join(wrong or settings)} cannot be used: {why}; mend or unset it"
        ) from None


@functools.cache
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Those that the environment names, or the usual ones. Read once: each reading takes 50 ms."""
    return httpx.create_ssl_context()


def _settings(scheme: str) -> dict[str, str]:
    """The environment's proxy and certificate variables that are set."""
    names = [f"{scheme}_proxy", "all_proxy", f"{scheme}_proxy".upper(), "ALL_PROXY"]
    names += CERTIFICATES if scheme == "https" else []
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _usable(name: str, value: str) -> bool:
    try:
        if name.lower().endswith("proxy"):
            httpx.AsyncHTTPTransport(proxy=value if "://" in value else f"http://{value}", verify=False)
        else:
            ssl.create_default_context(**{"cafile" if name.endswith("FILE") else "capath": value})
        return True
    except Exception:
        return False


def _refusal(status: int | None, headers: Any, text: str, free: bool = True) -> Failure:
    """A server's error as a Failure, with the pause that the server asks for."""
    kind, wait = f"HTTP {status}" if status else "error", _retry_after(headers)
    passes = status is not None and (status in (408, 409, 429) or status >= 500)
    # If a gateway stopped waiting or a server broke, the model may have worked and has to be paid.
    worked = status is not None and (status in (408, 499) or status >= 500) and status not in UNPAID
    free = free and not worked
    return Failure(kind, _words(text), transient=passes and wait <= LONGEST_WAIT, wait=wait, free=free)


def _words(text: str) -> str:
    """A server's words for an error message: one short line without secrets."""
    text = printable(redact(text[:4096]))
    return text if len(text) <= 500 else text[:500] + " ..."


def _fields(body: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    sent = {name: value for name, value in body.items() if name not in refused}
    if "max_tokens" in body.keys() & refused:  # OpenAI renamed it, and a reply needs a limit
        sent["max_completion_tokens"] = body["max_tokens"]
    return sent


def _blamed(failure: Failure, sent: dict[str, Any], broken: bool) -> str | None:
    """The field of OPTIONAL to drop after a refusal: the one that it names, else structured output, which
    servers refuse in many words. A guess: the field stays dropped only if the request succeeds without it."""
    if failure.kind not in ("HTTP 400", "HTTP 422") and not broken:
        return None
    for name in OPTIONAL:
        # Only with its new name beside it: servers also name max_tokens when a prompt is too long.
        sign = "max_completion_tokens" if name == "max_tokens" else name
        if name in sent and sign in failure.words:
            return name
    return "response_format" if "response_format" in sent else None


def _retry_after(headers: Any) -> float:
    """The seconds that a server asks to wait; 0 if it asks for none, or not in a form that we know."""
    text = headers.get("retry-after", "")
    try:
        wait = float(headers.get("retry-after-ms", "")) / 1000 if "retry-after-ms" in headers else float(text)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, wait) if not math.isnan(wait) else 0.0


class _Limited(httpx.AsyncByteStream):
    """A reply's bytes; Failure after MOST_BYTES."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MOST_BYTES:
                raise Failure("unreadable", f"expected a reply of at most {MOST_BYTES >> 20} MiB, got more")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _limit(response: Any) -> None:
    """Limit a reply to MOST_BYTES. Raises Failure for an event stream, which may never end, and for a
    compressed reply, whose real size is unknown."""
    kind, encoding = (response.headers.get(f"content-{name}", "") for name in ("type", "encoding"))
    if response.is_success and kind.startswith("text/event-stream"):
        raise Failure("unreadable", "expected one JSON object, got a stream that nobody asked for")
    if encoding.lower() not in ("", "identity"):
        came = escaped(encoding)
        raise Failure("unreadable", f"expected an uncompressed reply, got one compressed by {came}")
    response.stream = _Limited(response.stream)


def _error_in(reply: dict[str, Any]) -> Any:
    """The error in a reply or in its first choice; None if there is none."""
    if reply.get("object") == "error":
        return reply
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    return reply.get("error") or first.get("error") or None


def _status(error: Any) -> int | None:
    """The HTTP status that an error in JSON names."""
    codes = [error.get(name) for name in ("code", "status")] if isinstance(error, dict) else []
    return next((int(str(code)) for code in codes if re.fullmatch("[45][0-9][0-9]", str(code))), None)


def _headers(error: Any, response: Any) -> Any:
    """The headers of a reply. Those of the server behind a proxy, which a proxy's error may hold, win."""
    kept = error.get("metadata") if isinstance(error, dict) else None
    kept = kept.get("headers") if isinstance(kept, dict) else None
    kept = {name.lower(): str(value) for name, value in kept.items()} if isinstance(kept, dict) else {}
    return dict(response.headers) | kept


@dataclass(frozen=True)
class _Asking:
    """Questions that are being asked while more may be given, and the answers that they come to."""

    given: asyncio.Queue  # of requests, with what is to be called after each: None from `begin`
    answers: Future[list[Any]]


async def _each(given: asyncio.Queue) -> AsyncIterator[tuple[Request, Callable | None]]:
    """The requests as they are given, up to those of `ask`."""
    done = None
    while done is None:
        requests, done = await given.get()
        for request in requests:
            yield request, done


async def _settle(cancel: bool = False) -> None:
    """Wait until every other task of this loop has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others if cancel else ():
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _close(loop: Any, thread: threading.Thread, client: openai.AsyncOpenAI, cache: Cache) -> None:
    """End an endpoint's thread and its connections. The garbage collector may call this from any thread."""
    if threading.current_thread() is thread:
        loop.stop()
    elif thread.is_alive():
        for last in (_settle(cancel=True), client.close()):
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(last, loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
    if not thread.is_alive():
        loop.close()  # or it warns when it is collected
    cache.close()
