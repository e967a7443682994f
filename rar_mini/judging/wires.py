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
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
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
from rar_mini.rubric import Criterion
from rar_mini.turns import inert, without_thoughts

if TYPE_CHECKING:  # it brings torch, which nothing here needs
    from rar_mini.config import Options

MOST = {"chat": 1000, "systemone": 64, "decisions": 400, "local": 1000, "probe": 1000}
MOST |= {"keyword": 1, "rules": 1}
"""How many criteria may be asked about at once; 64 and 400 are the limits of those servers."""

log = logging.getLogger(__name__)

RATINGS = tuple(map(str, range(1, 11)))
LEVELS = ["1, the worst", *map(str, range(2, 10)), "10, the best"]
NAN = float("nan")


@dataclass(frozen=True)
class Worded:
    """What is asked about one response, in words: closed questions, or a rating."""

    shared: str  # question and response between fences; stands first and alike in all requests about it
    fence: str
    questions: list[str]  # one a criterion; for a rating, its one task
    rated: bool
    choices: tuple[tuple[str, ...], ...] = ()  # a question's choices from worst to best, () for no and yes
    turned: frozenset[int] = frozenset()  # the questions in which yes is bad: whether a mistake was made

    def of(self, i: int) -> tuple[str, ...]:
        """The choices of question i."""
        return self.choices[i] if self.choices else ()

    @property
    def tops(self) -> list[int]:
        """The rank of each question's best answer: 1 for yes and no."""
        return [max(1, len(self.of(i)) - 1) for i in range(len(self.questions))]

    def verdicts(self, ranks: list[float]) -> list[float]:
        """The probability that each item is good, from the expected rank of each answer, 0 for the worst."""
        if self.rated:
            return ranks
        shares = [rank / top for rank, top in zip(ranks, self.tops, strict=True)]
        return [1 - p if i in self.turned else p for i, p in enumerate(shares)]


def worded(asked: Asked, texts: JudgePrompts, secret: bytes, foreign: Callable[[str], str] = inert) -> Worded:
    """Put what is asked into the judge's words, with what others wrote between fences. `foreign` makes of it
    text that is no control token to whoever is asked."""
    shown = {"question": asked.example.question, "reference": asked.example.reference}
    shown = {name: whole(text) for name, text in (shown | {"response": asked.response}).items()}
    edge = fence(secret, *shown.values())
    known = {name: foreign(text) for name, text in shown.items()}
    known |= {"question_fence": fence(secret, shown["question"], shown["reference"]), "fence": edge}
    criteria = [_foreign(each, foreign) for each in asked.criteria]
    compared = asked.rating == "rate_reference"
    shared = prompts.fill(texts.shared_reference if compared else texts.shared, **known)
    if asked.rating is None:
        choices = tuple(c.choices or () for c in criteria)
        turned = frozenset(i for i, c in enumerate(criteria) if prompts.yes_is_bad(texts, c))
        questions = [prompts.closed_question(texts, c) for c in criteria]
        return Worded(shared, edge, questions, False, choices, turned)
    labelled = asked.rating != "rate_unlabelled"
    items = "\n".join(prompts.item_line(each, labelled, directed=bool(texts.made)) for each in criteria)
    task = prompts.fill(getattr(texts, asked.rating), items=items, fence=edge)
    return Worded(shared, edge, [task], True)


def _foreign(criterion: Criterion, foreign: Callable[[str], str]) -> Criterion:
    """A criterion whose words are no control tokens, and whose choices are a line each."""
    choices = criterion.choices and tuple(foreign(" ".join(text.split())) for text in criterion.choices)
    return replace(criterion, description=foreign(criterion.description), choices=choices)


class Server:
    """The judge behind a URL, on one wire: `chat`, `systemone` or `decisions`."""

    def __init__(self, kind: str, model: str, options: "Options", texts: JudgePrompts, secret: bytes) -> None:
        self.kind, self.model, self.texts, self.secret = kind, model, texts, secret
        self.max_tokens, self.endpoint = options.max_tokens, Endpoint.of(model, options)
        self.ledger, self.close = self.endpoint.ledger, self.endpoint.close
        self.drop, self.reasoned = self.endpoint.drop, True  # whether a chat model gives reasons first

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
        return request(self.kind, self.model, words, self.texts, self.max_tokens, repeat, self.reasoned)


def request(
    kind: str,
    model: str,
    asked: Worded,
    texts: JudgePrompts,
    max_tokens: int,
    repeat: int = 0,
    reasoned: bool = True,
) -> Request:
    """The questions on one wire: `chat`, `systemone` or `decisions`."""
    n, light = len(asked.questions), replace(asked, shared="")  # what waits for a reply needs no long text
    choices = [asked.of(i) for i in range(n)]
    if kind == "systemone":
        levels = [LEVELS] if asked.rated else choices
        forms = [{"type": "score", "criteria": list(each)} if each else {"type": "noul"} for each in levels]
        pairs = enumerate(zip(forms, asked.questions, strict=True), 1)
        named = {str(i): form | {"instructions": text} for i, (form, text) in pairs}
        body = {"model": model, "state": asked.shared, "questions": named}
        read = partial(read_systemone, n=n, rated=asked.rated, tops=asked.tops)
        return Request("/systemone", body, lambda reply: light.verdicts(read(reply)), repeat=repeat)
    if kind == "decisions":
        labels = [RATINGS] if asked.rated else choices
        forms = [_score(each) if each else {"type": "predicate"} for each in labels]
        pairs = enumerate(zip(forms, asked.questions, strict=True), 1)
        listed = [form | {"name": str(i), "instructions": text} for i, (form, text) in pairs]
        body = {"input": asked.shared, "model": model, "questions": listed}
        read = partial(read_decisions, n=n, rated=asked.rated, choices=choices)
        return Request("/decisions", body, lambda reply: light.verdicts(read(reply)), repeat=repeat)
    if asked.rated:
        task, read = f"{asked.questions[0]}\n{texts.rating}", parse_rating
    else:
        pairs = enumerate(zip(asked.questions, choices, strict=True), 1)
        numbers = range(1, 11)
        items = "\n".join(f"{i}. {text}{prompts.listed(texts, each, numbers)}" for i, (text, each) in pairs)
        text = texts.verdicts_graded if any(choices) else texts.verdicts
        task = prompts.fill(text if reasoned else texts.verdicts_bare, items=items, fence=asked.fence)
        read = partial(parse_verdicts, n=n, tops=asked.tops, reasoned=reasoned)
    system = {"role": "system", "content": texts.system}
    body = {
        "model": model,
        "messages": [system, {"role": "user", "content": asked.shared + task}],
        "temperature": 0.0,
        "seed": repeat,
        "max_tokens": max_tokens + 128 * (n - 1),
        "response_format": schema(0 if asked.rated else n, asked.tops, reasoned),
    }
    again = partial(_again, reminder=texts.again)
    return Request(
        "/chat/completions", body, lambda reply: light.verdicts(read(chat_text(reply))), again, repeat
    )


def _score(labels: Sequence[str]) -> dict[str, Any]:
    return {"type": "score", "levels": [{"label": label} for label in labels]}


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


def fenced(secret: bytes, texts: dict[str, str]) -> str:
    """Foreign texts for a model, each by its name between fences, one behind another."""
    edge = fence(secret, *texts.values())
    parts = (f"--- {name} {edge}\n{inert(text)}\n--- end of {name} {edge}\n" for name, text in texts.items())
    return "".join(parts)


def fence_secret(folder: Path) -> bytes:
    """32 random bytes that are kept in a folder, for its owner alone; made there at the first use."""
    path, fresh = folder / "fence.key", secrets.token_bytes(32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"fence.key.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        try:
            draft.write_bytes(fresh)
            with suppress(FileExistsError):
                os.link(draft, path)  # whole or not at all, and the first process wins
        finally:  # some file systems have no hard links
            draft.unlink()
        if len(kept := path.read_bytes()) == 32:
            return kept
        log.warning(f"{path} is damaged: fences of this run are new ones, and no cached reply will fit")
    except OSError as error:
        log.warning(
            f"no secret can be kept in {folder} ({error}): no cached reply will fit this run's fences"
        )
    return fresh


def schema(n: int, tops: Sequence[int] = (), reasoned: bool = True) -> dict[str, Any]:
    """The structured output of n verdicts, or with 0 of a rating. Reasons stand first: after a verdict they
    would only defend it. `tops` has 2 or more for a question with choices, whose number is the verdict."""
    text, word = {"type": "string"}, {"type": "string", "enum": ["yes", "no"]}
    reason = {"reason": text} if reasoned else {}

    def exactly(properties: dict[str, Any]) -> dict[str, Any]:
        names = {"required": list(properties), "additionalProperties": False}
        return {"type": "object", "properties": properties} | names

    if n:
        numbers = [word if top == 1 else _numbers(top + 1) for top in tops or [1] * n]
        form = exactly({str(i): exactly(reason | {"verdict": said}) for i, said in enumerate(numbers, 1)})
    else:
        form = exactly({"reason": text, "rating": _numbers(10)})
    return {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": form}}


def _numbers(most: int) -> dict[str, Any]:
    return {"type": "integer", "enum": list(range(1, most + 1))}


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


def token_logprobs(reply: dict[str, Any]) -> list[float]:
    """The log-probabilities of the tokens that a chat model wrote; [] if the server gives no such numbers."""
    try:
        values = [token["logprob"] for token in reply["choices"][0]["logprobs"]["content"]]
        return values if all(type(each) in (int, float) and math.isfinite(each) for each in values) else []
    except (KeyError, IndexError, TypeError):
        return []


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


def parse_verdicts(reply: str, n: int, tops: Sequence[int] = (), reasoned: bool = True) -> list[float]:
    """1.0 for yes and 0.0 for no, or a choice's rank from 0 to its `tops`, for questions 1 to n in order.

    Raises Failure for anything but the object that was asked for: every question once, none that was not
    asked, each reason before its verdict.
    """
    entries = only_json(reply)
    if not isinstance(entries, dict) or entries.keys() != {str(i) for i in range(1, n + 1)}:
        raise Failure("malformed", f"expected the numbers 1 to {n}")
    verdicts = []
    for i, top in enumerate(tops or [1] * n, 1):
        entry, names = entries[str(i)], ["reason", "verdict"] if reasoned else ["verdict"]
        if not isinstance(entry, dict) or list(entry) != names:
            raise Failure("malformed", f"expected {' and then '.join(f'a {name}' for name in names)}")
        rank = _rank(entry["verdict"], top)
        if rank is None or not isinstance(entry.get("reason", ""), str):
            wanted = "yes or no" if top == 1 else f"a whole number from 1 to {top + 1}"
            raise Failure("malformed", f"expected a reason in words, and {wanted}")
        verdicts.append(float(rank))
    return verdicts


def _rank(said: Any, top: int) -> int | None:
    """1 for yes and 0 for no, or the rank of the choice with a number; None for what was not offered."""
    if top == 1:
        return {"no": 0, "yes": 1}.get(said.strip().lower()) if isinstance(said, str) else None
    return said - 1 if type(said) is int and 1 <= said <= top + 1 else None


def parse_rating(reply: str) -> list[float]:
    """The one rating, from 1 to 10. Raises Failure for anything but the object that was asked for; the
    reason may be missing, as in the form that the paper prints."""
    answer = only_json(reply)
    if not isinstance(answer, dict) or list(answer) not in (["reason", "rating"], ["rating"]):
        raise Failure("malformed", "expected a reason and then a rating")
    if type(answer["rating"]) is not int or not 1 <= answer["rating"] <= 10:
        raise Failure("malformed", "expected a whole number from 1 to 10")
    return [float(answer["rating"])]


def _within(value: Any, high: float) -> float:
    """A number in [0, high]. Raises Failure; JSON as Python reads it also has true, NaN and Infinity."""
    if type(value) not in (int, float) or not 0 <= value <= high:
        raise Failure("malformed", f"expected a number from 0 to {high:g}")
    return float(value)


def read_systemone(reply: dict[str, Any], n: int, rated: bool, tops: Sequence[int] = ()) -> list[float]:
    """n probabilities or expected ranks, or one rating: a score's levels count from 0. Raises Failure."""
    answers = reply.get("answers")
    if not isinstance(answers, dict) or answers.keys() != {str(i) for i in range(1, n + 1)}:
        raise Failure("malformed", f"expected answers 1 to {n}")
    values = []
    for i, top in enumerate([9] if rated else tops or [1] * n, 1):
        answer, kind = answers[str(i)], "noul" if top == 1 else "score"
        if not isinstance(answer, dict) or answer.get("type") != kind:
            raise Failure("malformed", f"expected an answer of type {kind}")
        values.append(rated + _within(answer.get(kind), top))
    return values


def read_decisions(
    reply: dict[str, Any], n: int, rated: bool, choices: Sequence[Sequence[str]] = ()
) -> list[float]:
    """n probabilities or expected ranks in the order of the questions, or one rating, the expectation of its
    labels; NaN for a question that was refused. Raises Failure."""
    answers = reply.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise Failure("malformed", "expected a list of answers")
    if [answer.get("name") for answer in answers] != [str(i) for i in range(1, n + 1)]:
        raise Failure("malformed", f"expected answers 1 to {n} in order")
    values = []
    for answer, labels in zip(answers, [RATINGS] if rated else choices or [()] * n, strict=True):
        kind = "score" if labels else "predicate"
        if answer.get("type") == "refusal":
            values.append(NAN)
        elif answer.get("type") != kind:
            raise Failure("malformed", f"expected answers of type {kind}")
        elif labels:
            values.append(_expected(answer.get("probabilities"), labels, int(rated)))
        else:
            values.append(_within(answer.get("probability"), 1))
    return values


def _expected(levels: Any, labels: Sequence[str], first: int) -> float:
    """The expectation of labels that count from `first`. Raises Failure where they are others, come twice or
    do not sum to 1."""
    try:
        shares = {level["label"]: _within(level["probability"], 1) for level in levels}
    except (TypeError, KeyError):
        raise Failure("malformed", "expected a probability for each label") from None
    number = {label: float(i) for i, label in enumerate(labels, first)}
    wrong = len(levels) != len(labels) or shares.keys() != number.keys()
    if wrong or abs(sum(shares.values()) - 1) > 0.01:
        said = f"expected probabilities of the {len(labels)} labels"
        raise Failure("malformed", said + (" 1 to 10" if first else ""))
    expected = sum(number[label] * share for label, share in shares.items())
    return min(first + len(labels) - 1.0, max(float(first), expected))
