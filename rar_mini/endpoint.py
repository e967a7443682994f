"""Talking to a model server over the chat-completions wire: many requests at once, each with a deadline of
its own.

All requests of the process run on one event loop in one background thread: an async client that is shared
between threads or loops can hang a run for hours. A request's deadline starts when it is sent, not when it
starts to wait for its turn. What failed comes back as None and is counted; the caller decides what a failure
means.
"""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import openai


class Endpoint:
    """A chat model behind a URL. The URL and the key come from OPENAI_BASE_URL and OPENAI_API_KEY.

    `concurrency` requests are under way at once; each is tried `1 + retries` times (the client backs off and
    honours Retry-After) for at most `timeout` seconds a try.
    """

    def __init__(
        self, model: str, *, concurrency: int = 32, timeout: float = 120.0, retries: int = 4
    ) -> None:
        self.model, self.concurrency, self.timeout, self.retries = model, concurrency, timeout, retries
        self.failures: Counter[str] = Counter()
        self._client: openai.AsyncOpenAI | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()

    def chat(
        self, prompts: Sequence[tuple[str, str]], *, max_tokens: int, done: Callable[[], Any] = lambda: None
    ) -> list[str | None]:
        """Send each (system, user) prompt at temperature 0 and return the replies in order.

        A reply is None where the request failed, or where the reply was cut by `max_tokens` (a cut reply may
        still look like a verdict). Raises ConnectionError if every request failed, with the first error's
        text.
        """
        replies = self._run(self._chat_all(prompts, max_tokens, done))
        if prompts and all(isinstance(reply, Exception) for reply in replies):
            raise ConnectionError(
                f"the judge's server answered none of {len(prompts)} requests for model {self.model!r}: "
                f"expected chat completions at {self._address()}, got {_kind(replies[0])}; check that the "
                "server runs and that OPENAI_BASE_URL, OPENAI_API_KEY and the model's name are right"
            )
        self.failures.update(_kind(reply) for reply in replies if isinstance(reply, Exception))
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    def _address(self) -> str:
        # Scheme and host alone: the rest of a URL may carry a password or a key.
        assert self._client is not None
        return f"{self._client.base_url.scheme}://{self._client.base_url.netloc.decode()}"

    def _run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C must not leave requests running that cost money
            raise

    async def _chat_all(
        self, prompts: Sequence[tuple[str, str]], max_tokens: int, done: Callable[[], Any]
    ) -> list:
        if self._client is None:
            # A server of one's own asks for no key, but the client insists on one.
            key = os.environ.get("OPENAI_API_KEY") or "none"
            self._client = openai.AsyncOpenAI(api_key=key, timeout=self.timeout, max_retries=self.retries)
        turn = asyncio.Semaphore(self.concurrency)

        async def one(system: str, user: str) -> str | Exception:
            async with turn:
                try:
                    reply = await self._client.chat.completions.create(
                        model=self.model,
                        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                        temperature=0.0,
                        max_tokens=max_tokens,
                    )
                    choice = reply.choices[0]
                    if choice.finish_reason == "length":
                        return RuntimeError("reply cut by the token limit")
                    return choice.message.content or ""
                except (openai.OpenAIError, IndexError, AttributeError) as error:
                    return error
                finally:
                    done()

        return await asyncio.gather(*(one(system, user) for system, user in prompts))


def _kind(error: Exception) -> str:
    """A short name for a failure, without the error's text: servers echo keys and prompts in theirs."""
    status = getattr(error, "status_code", None)
    if isinstance(error, RuntimeError):
        return str(error)
    return f"{type(error).__name__} (HTTP {status})" if status else type(error).__name__
