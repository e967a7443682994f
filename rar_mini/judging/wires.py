"""The judge's wires: what is asked, as the body of a request, and a server's JSON, as verdicts or a rating;
and the fences between which a model finds what others wrote.

A reader takes the one form that was asked for and nothing else. Whatever else came, from a careless model, a
broken server or a response that speaks for the judge, is a Failure; no verdict is guessed.

Chat and systemone are tested against `transformers serve`. The Decisions API is not to be had here: its wire
is tested against a stand-in that was written from the types in openai's own package, and against the request
that its client sends.
"""

import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rar_mini import prompts
from rar_mini.files import Twice, parse
from rar_mini.forms import escaped, whole
from rar_mini.judging.asked import Answer, Asked
from rar_mini.judging.endpoint import Endpoint, Failure, Request
from rar_mini.prompts import JudgePrompts
from rar_mini.turns import inert, without_thoughts

if TYPE_CHECKING:  # it brings torch, which nothing here needs
    from rar_mini.config import Options

MOST = {"chat": 1000, "systemone": 64, "decisions": 400, "local": 1000, "keyword": 1, "rules": 1}
"""How many criteria may be asked about at once; 64 and 400 are the limits of those servers."""

log = logging.getLogger(__name__)

LEVELS = ["1, the worst", *map(str, range(2, 10)), "10, the best"]
NAN = float("nan")


@dataclass(frozen=True)
class Worded:
    """What is asked about one response, in words: closed questions, or a rating."""

    shared: str  # question and response between fences; stands first and alike in all requests about it
    fence: str
    questions: list[str]  # one a criterion; for a rating, its one task
    rated: bool


def worded(asked: Asked, texts: JudgePrompts, secret: bytes, foreign: Callable[[str], str] = inert) -> Worded:
    """Put what is asked into the judge's words, with what others wrote between fences. `foreign` makes of it
    text that is no control token to whoever is asked."""
    shown = {"question": asked.example.question, "reference": asked.example.reference}
    shown = {name: whole(text) for name, text in (shown | {"response": asked.response}).items()}
    edge = fence(secret, *shown.values())
    known = {name: foreign(text) for name, text in shown.items()}
    known |= {"question_fence": fence(secret, shown["question"], shown["reference"]), "fence": edge}
    criteria = [replace(each, description=foreign(each.description)) for each in asked.criteria]
    compared = asked.rating == "rate_reference"
    shared = prompts.fill(texts.shared_reference if compared else texts.shared, **known)
    if asked.rating is None:
        return Worded(shared, edge, [prompts.closed_question(texts, c) for c in criteria], False)
    labelled = asked.rating != "rate_unlabelled"
    items = "\n".join(prompts.item_line(criterion, labelled) for criterion in criteria)
    task = prompts.fill(getattr(texts, asked.rating), items=items, fence=edge)
    return Worded(shared, edge, [task], True)


class Server:
    """The judge behind a URL, on one wire: `chat`, `systemone` or `decisions`."""

    def __init__(self, kind: str, model: str, options: "Options", texts: JudgePrompts, secret: bytes) -> None:
        self.kind, self.model, self.texts, self.secret = kind, model, texts, secret
        self.max_tokens, self.endpoint = options.max_tokens, Endpoint.of(model, options)
        self.ledger, self.close = self.endpoint.ledger, self.endpoint.close
        self.drop = self.endpoint.drop

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer all, in order, many at once."""
        return self.endpoint.ask((self.request(each, repeat) for each in asked), done)

    def begin(self, asked: Iterable[Asked]) -> None:
        """Begin to ask what will be part of the next `ask`; `drop` gives it up."""
        self.endpoint.begin(self.request(each) for each in asked)

    def request(self, asked: Asked, repeat: int = 0) -> Request:
        """The request that asks this."""
        words = worded(asked, self.texts, self.secret)
        return request(self.kind, self.model, words, self.texts, self.max_tokens, repeat)


def request(
    kind: str, model: str, asked: Worded, texts: JudgePrompts, max_tokens: int, repeat: int = 0
) -> Request:
    """The questions on one wire: `chat`, `systemone` or `decisions`."""
    n, questions = len(asked.questions), asked.questions
    if kind == "systemone":
        form = {"type": "score", "criteria": LEVELS} if asked.rated else {"type": "noul"}
        named = {str(i): form | {"instructions": text} for i, text in enumerate(questions, 1)}
        body = {"model": model, "state": asked.shared, "questions": named}
        return Request("/systemone", body, partial(read_systemone, n=n, rated=asked.rated), repeat=repeat)
    if kind == "decisions":
        levels = [{"label": str(level)} for level in range(1, 11)]
        form = {"type": "score", "levels": levels} if asked.rated else {"type": "predicate"}
        listed = [form | {"name": str(i), "instructions": text} for i, text in enumerate(questions, 1)]
        body = {"input": asked.shared, "model": model, "questions": listed}
        return Request("/decisions", body, partial(read_decisions, n=n, rated=asked.rated), repeat=repeat)
    if asked.rated:
        task, parse = f"{questions[0]}\n{texts.rating}", parse_rating
    else:
        items = "\n".join(f"{i}. {text}" for i, text in enumerate(questions, 1))
        task = prompts.fill(texts.verdicts, items=items, fence=asked.fence)
        parse = partial(parse_verdicts, n=n)
    system = {"role": "system", "content": texts.system}
    body = {
        "model": model,
        "messages": [system, {"role": "user", "content": asked.shared + task}],
        "temperature": 0.0,
        "seed": repeat,
        "max_tokens": max_tokens + 128 * (n - 1),
        "response_format": schema(0 if asked.rated else n),
    }
    again = partial(_again, reminder=texts.again)
    return Request("/chat/completions", body, lambda reply: parse(chat_text(reply)), again, repeat)


def _again(body: dict[str, Any], reply: dict[str, Any], failure: Failure, reminder: str) -> dict[str, Any]:
    """The next try after a malformed reply: with a reminder, and in plain text, because it may be structured
    output that failed (some servers return nothing at all for long inputs)."""
    body = body | {"seed": body["seed"] + 1}
    if body.pop("response_format", None) is not None:
        system, user = body["messages"]
        body["messages"] = [system, user | {"content": f"{user['content']}\n{reminder}"}]
    return body


def fence(secret: bytes, *texts: str) -> str:
    """A boundary that the author of the texts cannot guess, the same for every question about them and in
    every run, so that equal requests are equal; 64 bits that none of the texts holds."""
    mac = hmac.new(secret, "\0".join(texts).encode(), "sha256").hexdigest()
    parts = (mac[i : i + 16] for i in range(48))
    return next(part for part in parts if not any(part in text for text in texts))


def fence_secret(folder: Path) -> bytes:
    """32 random bytes that are kept in a folder, for its owner alone; made there at the first use."""
    path, fresh = folder / "fence.key", secrets.token_bytes(32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"fence.key.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_bytes(fresh)
        with suppress(FileExistsError):
            os.link(draft, path)  # whole or not at all, and the first process wins
        draft.unlink()
        if len(kept := path.read_bytes()) == 32:
            return kept
        log.warning(f"{path} is damaged: fences of this run are new ones, and no cached reply will fit")
    except OSError as error:
        log.warning(
            f"no secret can be kept in {folder} ({error}): no cached reply will fit this run's fences"
        )
    return fresh


def schema(n: int) -> dict[str, Any]:
    """The structured output of n verdicts, or with 0 of a rating. Reasons stand first: after a verdict they
    would only defend it."""
    text, word = {"type": "string"}, {"type": "string", "enum": ["yes", "no"]}

    def exactly(properties: dict[str, Any]) -> dict[str, Any]:
        names = {"required": list(properties), "additionalProperties": False}
        return {"type": "object", "properties": properties} | names

    if n:
        form = exactly({str(i): exactly({"reason": text, "verdict": word}) for i in range(1, n + 1)})
    else:
        form = exactly({"reason": text, "rating": {"type": "integer", "enum": list(range(1, 11))}})
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": form}}


def completion(reply: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Text, reason for its end, and refusal of a chat completion. Raises Failure for another shape."""
    try:
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = _joined(message.get("content")), message.get("refusal")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        names = ", ".join(map(escaped, list(reply)[:8])) or "nothing"
        raise Failure("malformed", f"expected a chat completion, got an object of {names}") from None
    silent = not (isinstance(text, str) and text.strip()) and not refusal
    if thoughts and silent and reason != "length":
        raise Failure(
            "empty",
            "the reply has thoughts (reasoning_content) and no content: expected an answer after them; the "
            "server's reasoning parser may not fit the model",
        )
    return text, reason, refusal


def _joined(content: Any) -> Any:
    """A message's content; if it comes in parts, those of type text, without thoughts between them."""
    if not isinstance(content, list):
        return content
    kinds = {part["type"] for part in content} - {"text", "thinking", "reasoning"}
    if kinds:
        raise Failure("malformed", f"expected content of type text, got {escaped(str(min(kinds)))}")
    return "".join(part["text"] for part in content if part["type"] == "text")


def chat_text(reply: dict[str, Any]) -> str:
    """What a chat model wrote. Raises Failure for a reply that was cut, refused or is of another shape."""
    text, reason, refused = completion(reply)
    if reason == "length":
        raise Failure("cut", "the reply reached --max-tokens")
    if refused or reason == "content_filter":
        raise Failure("refused")
    if not isinstance(text, str) or not text.strip():
        raise Failure("empty")
    return text


def only_json(reply: str) -> Any:
    """The one JSON value that a reply consists of (a code fence around it is allowed).

    Nothing is searched for inside a reply: an object somewhere in a longer text may be a quotation of the
    response. A name that comes twice is two answers. Raises Failure.
    """
    text = without_thoughts(reply).strip()
    if fenced := re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text, re.S):
        text = fenced.group(1)
    try:
        return parse(text)
    except Twice as error:
        raise Failure("malformed", str(error)) from None
    except ValueError:
        raise Failure("malformed", "not JSON alone") from None


def parse_verdicts(reply: str, n: int) -> list[float]:
    """1.0 for yes and 0.0 for no, for questions 1 to n in order. Raises Failure for anything but the object
    that was asked for: every question once, none that was not asked, each reason before its verdict."""
    found = only_json(reply)
    if not isinstance(found, dict) or found.keys() != {str(i) for i in range(1, n + 1)}:
        raise Failure("malformed", f"expected the numbers 1 to {n}")
    verdicts = []
    for i in range(1, n + 1):
        entry = found[str(i)]
        if not isinstance(entry, dict) or list(entry) != ["reason", "verdict"]:
            raise Failure("malformed", "expected a reason and then a verdict")
        word = entry["verdict"].strip().lower() if isinstance(entry["verdict"], str) else None
        if word not in ("yes", "no") or not isinstance(entry["reason"], str):
            raise Failure("malformed", "expected a reason in words, and yes or no")
        verdicts.append(float(word == "yes"))
    return verdicts


def parse_rating(reply: str) -> list[float]:
    """The one rating, from 1 to 10. Raises Failure for anything but the object that was asked for; the
    reason may be missing, as in the form that the paper prints."""
    found = only_json(reply)
    if not isinstance(found, dict) or list(found) not in (["reason", "rating"], ["rating"]):
        raise Failure("malformed", "expected a reason and then a rating")
    if type(found["rating"]) is not int or not 1 <= found["rating"] <= 10:
        raise Failure("malformed", "expected a whole number from 1 to 10")
    return [float(found["rating"])]


def _within(value: Any, high: float) -> float:
    """A number in [0, high]. Raises Failure; JSON as Python reads it also has true, NaN and Infinity."""
    if type(value) not in (int, float) or not 0 <= value <= high:
        raise Failure("malformed", f"expected a number from 0 to {high:g}")
    return float(value)


def read_systemone(reply: dict[str, Any], n: int, rated: bool) -> list[float]:
    """n probabilities, or one rating: a score's ten levels count from 0. Raises Failure."""
    answers, kind = reply.get("answers"), "score" if rated else "noul"
    if not isinstance(answers, dict) or answers.keys() != {str(i) for i in range(1, n + 1)}:
        raise Failure("malformed", f"expected answers 1 to {n}")
    found = [answers[str(i)] for i in range(1, n + 1)]
    if not all(isinstance(answer, dict) and answer.get("type") == kind for answer in found):
        raise Failure("malformed", f"expected answers of type {kind}")
    return [1 + _within(a.get("score"), 9) if rated else _within(a.get("noul"), 1) for a in found]


def read_decisions(reply: dict[str, Any], n: int, rated: bool) -> list[float]:
    """n probabilities in the order of the questions, or one rating, the expectation of its labels; NaN for a
    question that was refused. Raises Failure."""
    answers, kind = reply.get("answers"), "score" if rated else "predicate"
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise Failure("malformed", "expected a list of answers")
    if [answer.get("name") for answer in answers] != [str(i) for i in range(1, n + 1)]:
        raise Failure("malformed", f"expected answers 1 to {n} in order")
    values = []
    for answer in answers:
        if answer.get("type") == "refusal":
            values.append(NAN)
        elif answer.get("type") != kind:
            raise Failure("malformed", f"expected answers of type {kind}")
        elif rated:
            values.append(_expected(answer.get("probabilities")))
        else:
            values.append(_within(answer.get("probability"), 1))
    return values


def _expected(levels: Any) -> float:
    """The expectation of the labels 1 to 10. Raises Failure where they are others, come twice or do not sum
    to 1."""
    try:
        shares = {level["label"]: _within(level["probability"], 1) for level in levels}
    except (TypeError, KeyError):
        raise Failure("malformed", "expected a probability for each label") from None
    wrong = len(levels) != 10 or set(shares) != {str(i) for i in range(1, 11)}
    if wrong or abs(sum(shares.values()) - 1) > 0.01:
        raise Failure("malformed", "expected probabilities of the labels 1 to 10")
    return min(10.0, max(1.0, sum(int(label) * share for label, share in shares.items())))
