"""Turns: a conversation as token ids, and token ids as a response, by a tokenizer's own chat template.

What this file decided:

- **Only the template writes control tokens.** A question, a reference, a criterion or a response may spell
  one, and is read as plain characters. The tokenizer itself says which tokens these are. A server's
  tokenizer is not known here: `inert` breaks up whatever has the shape of a control token.
- **An answer ends where the template ends a turn.** Base models often have a chat template whose end of turn
  is the end token of no config. So the template is asked: it writes an answered question, and the first
  control token behind the answer ends it.
- **A prompt ends where the answer begins.** What a tokenizer puts behind a text by itself is left out.
- **An answer is read with what the prompt opened.** Behind a prompt that ends in `<think>` it begins inside a
  thought, and if no `</think>` follows, nothing was answered.
- **A policy without think tags has no thoughts.** If neither the template nor the tokenizer has them, they
  are words of the answer, and a space breaks them up: else a policy could hide from its judge what it writes.
"""

import re
import reprlib
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from rar_mini import prompts
from rar_mini.forms import whole

THINK, UNTHINK = "<think>", "</think>"

SECONDS, BYTES = 3, 2**31
"""Processor time and memory that a template may take for one conversation. Usual ones take milliseconds."""
CHARACTERS, TIMES = 2**20, 16
"""What it may write: so many characters, and its messages so many times over (JSON escapes them)."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around the number of a control token that foreign text spells. Unicode keeps these two for such uses."""

_QUESTION, _ANSWER = "Quxestion", "Anxswer"  # words that no template writes

_HTML = """a abbr address article aside b blockquote body br button caption cite code col dd del details dfn
div dl dt em figcaption figure footer form h[1-6] head header hr html i img input ins kbd label li link main
mark meta nav ol option p pre q samp script section select small span strong style sub summary sup table tbody
td textarea tfoot th thead time title tr u ul var"""
"""Tags that answers have and tokenizers do not. (<s> is both, and taken for a token.)"""

_CAPITALS = "INST IMG PREFIX MIDDLE SUFFIX ARGS THINK AUDIO CLS SEP PAD UNK MASK gMASK sMASK BOS EOS EOT"
"""Tokens of one word between brackets, by name, because chemists write concentrations so: [HCN], [NADH]."""

_SHAPE = re.compile(
    rf"""< (?= [|｜]                                                            # <|im_end|>, <｜User｜>
             | (?! /? (?:{"|".join(_HTML.split())}) /? > | [^\s<>\w]* > ) [^\s<>]+ > )  # </s>, <turn|>
       | \[ (?= [|｜] | /? (?:{"|".join(_CAPITALS.split())}) \]                  # [|user|], [INST]
             | (?: /[A-Z]+ | /? [A-Z]+_[A-Z_]+ ) \] | e~\[ )                     # [TOOL_CALLS]
       | \] (?= ~ )                                                              # ]~b], of MiniMax
    """,
    re.VERBOSE,
)


def inert(text: str) -> str:
    """Foreign text for a server: a space breaks up whatever the tokenizer there might take for a control
    token, and so for the end of the user's turn."""
    return _SHAPE.sub(r"\g<0> ", whole(text))


def without_thoughts(text: str) -> str:
    """A text without its reasoning sections, also where one was cut before it ended, or where the prompt
    opened it and only its end is here."""
    text, removed = re.subn(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.S | re.I)
    text, opened = re.subn(r"\A.*</think>", "", text, flags=re.S | re.I)
    return text.strip() if removed or opened else text


def said(completion: Any) -> str:
    """What a policy says at last, in TRL's forms: a text, or turns, of which the last counts, with a text or
    with parts that are texts. "" if the last turn is a tool's, or only calls one, and if there is none.
    Raises ValueError for any other form."""
    text = completion
    if isinstance(completion, list | tuple) and all(isinstance(turn, dict) for turn in completion):
        last = completion[-1] if completion else {}
        text = last.get("content") if last.get("role", "assistant") == "assistant" else None
        if isinstance(text, list) and all(isinstance(part, dict) for part in text):
            parts = [part.get("text") for part in text]
            text = "".join(parts) if all(isinstance(part, str) for part in parts) else parts
        text = "" if text is None else text
    if not isinstance(text, str):
        raise ValueError(
            f"expected a completion as text, or as turns with text, got {reprlib.repr(completion)}"
        )
    return text


@contextmanager
def _bounded() -> Iterator[None]:
    """Around a template: TimeoutError after SECONDS of processor time, MemoryError above BYTES. A signal ends
    loops of Python, and only the main thread can ask for one; in another the template is not bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"it takes more than {SECONDS} seconds")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    lower = [used + BYTES, *(limit for limit in limits if limit != resource.RLIM_INFINITY)]
    handler = signal.signal(signal.SIGVTALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (min(lower), limits[1]))
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)  # jinja swallows the first if it folds
        yield
    except MemoryError:
        raise MemoryError(f"it takes more than {BYTES >> 30} GiB of memory") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Turns:
    """A tokenizer, and what its chat template writes around a turn.

    `controls` has the control tokens by their spelling, `markers` those around turns, and `end` the one
    behind an answer (None if there is none). `thinks` says whether a prompt opens a thought, and `thoughtful`
    whether the policy knows thoughts at all.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        asked, answered = self._written()
        opening, closing = asked.partition(_QUESTION)[2], answered.partition(_ANSWER)[2]
        added = tokenizer.added_tokens_decoder
        names = {i: str(added[i]) for i in self._ids(asked + answered) if i in added}
        names = {i: name for i, name in names.items() if name.strip() and name not in (THINK, UNTHINK)}
        # Only what is marked as special can be told from its spelling, and left out of a response.
        for token in (added[i] for i in names if not added[i].special):
            token.special = True
            tokenizer.add_tokens([token], special_tokens=True)
        self.markers = frozenset(names)
        self.end = next((i for i in self._ids(closing) if i in names), None)
        self.thinks = opening.rfind(THINK) > opening.rfind(UNTHINK)
        known = f"{tokenizer.chat_template}{[*map(str, added.values())]}"
        self.thoughtful = self.thinks or THINK in known or UNTHINK in known
        self.controls = {
            str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._spelt = sorted(self.controls, key=len, reverse=True)  # of two that fit, the longer one
        self._control = re.compile(f"({'|'.join(map(re.escape, self._spelt)) or '(?!)'})")
        # Some tokenizers mark a thought's tags as special, too, and without them no thought could be told.
        self._unsaid = {i for name, i in self.controls.items() if name not in (THINK, UNTHINK)}

    def _written(self) -> tuple[str, str]:
        """A question, and an answered question, as the template writes them; "" if it does not."""
        turns = [("system", "s"), ("user", _QUESTION), ("assistant", _ANSWER)]
        turns = [{"role": role, "content": content} for role, content in turns]
        for first in (0, 1) if self.tokenizer.chat_template else ():  # some take no system message
            with suppress(ValueError):
                asked = self.render(turns[first:2])
                answered = self.render(turns[first:], add_generation_prompt=False)
                break
        else:
            return "", ""
        if _QUESTION not in asked or asked != self.render(turns[first:2]):
            raise ValueError(
                f"{self.tokenizer.name_or_path}: expected a chat template that writes the question, and the "
                "same text every time; mend the template or take another model"
            )
        return asked, answered

    def _ids(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, **options)

    @cached_property
    def leading(self) -> list[int]:
        """What the tokenizer puts in front of a plain text by itself: a beginning-of-text token, if any."""
        bare, framed = self._ids("a"), self.tokenizer.encode("a")
        at = (i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[: next(at, 0)]

    def literal(self, text: str) -> str:
        """Foreign text for `render` and `encode`: each control token that it spells is a number in it, until
        `encode` puts its characters back."""
        text = whole(text).replace(_OPEN, f"{_OPEN}{len(self._spelt)}{_CLOSE}")
        return self._control.sub(lambda found: f"{_OPEN}{self._spelt.index(found[0])}{_CLOSE}", text)

    def render(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        """A conversation as the template writes it, up to the opening of the answer; without a template, as
        the plain text of prompts.py. Raises ValueError if the template cannot write it."""
        if not self.tokenizer.chat_template:
            return prompts.policy_text(messages)
        options = {"add_generation_prompt": True} | options
        try:
            template = prompts.dated(self.tokenizer.get_chat_template())
            with _bounded():
                text = self.tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, **options
                )
            if len(text) > (most := CHARACTERS + TIMES * sum(len(turn["content"]) for turn in messages)):
                raise OverflowError(f"it writes {len(text):,} characters: expected at most {most:,}")
            return text
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(message["role"] for message in messages)
            words = " ".join(str(error).split())  # jinja2's may have several lines
            raise ValueError(
                f"{self.tokenizer.name_or_path}: expected a chat template that can write a conversation of "
                f"{roles}, got {type(error).__name__}: {words:.500}; mend the template or take another model"
            ) from error

    def prompt(self, text: str) -> list[int]:
        """The token ids of a rendered conversation. A template writes the leading token itself."""
        return self.encode(text) if self.tokenizer.chat_template else self.leading + self.encode(text)

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered text: what `literal` returned is plain characters, a control token
        elsewhere is itself, and nothing is added."""
        if _OPEN not in text:
            return self._ids(text)
        ids: list[int] = []
        for place, part in enumerate(self._control.split(text)):
            if place % 2:
                ids.append(self.controls[part])
            elif part:
                plain = re.sub(f"{_OPEN}([0-9]+){_CLOSE}", lambda m: [*self._spelt, _OPEN][int(m[1])], part)
                ids += self._ids(plain, split_special_tokens=True)
        return ids

    def bridge(self, text: str) -> list[int]:
        """What stands between an answer and the next one: the answer's end token, a user's turn and the
        opening, as the template writes them. Raises ValueError if it writes an answer in another way once it
        is not the last: then the tokens that were sampled are not those that are read."""
        turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        shown = self.render([*turns, {"role": "user", "content": self.literal(text)}])
        before, _, behind = shown.partition(_ANSWER)
        ids = self.encode(behind)
        if before != self.render(turns[:1]) or ids[0] != self.end:
            raise ValueError(
                f"{self.tokenizer.name_or_path}: expected a chat template that writes an answer as it was "
                "sampled, with its end token, also once the user has spoken again; take another model"
            )
        return ids

    def refuse_talk(self) -> None:
        """Raise ValueError if this policy cannot go on with a conversation token by token."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.tokenizer.name_or_path} has no chat template: expected one, because a user's turn "
                "needs marks around it; take a model with one"
            )
        self.bridge(_QUESTION)
        thought = f"{THINK}\n{_QUESTION}\n{UNTHINK}\n\n{_ANSWER}"
        roles = zip(("user", "assistant", "user"), ("q", thought, "q"), strict=True)
        shown = self.render([{"role": role, "content": content} for role, content in roles])
        if self.thinks or (self.thoughtful and thought not in shown):
            raise ValueError(
                f"{self.tokenizer.name_or_path}: expected a chat template that keeps the thoughts of earlier "
                "answers, because a conversation goes on behind the tokens that were sampled; take a model "
                "that does not think"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """What token ids say, without control tokens."""
        text = self.tokenizer.decode([i for i in ids if i not in self._unsaid]).strip()
        return text if self.thoughtful else re.sub("<(?=/?think>)", "< ", text, flags=re.I)

    def only_thoughts(self, text: str) -> bool:
        """Whether an answer, as `decode` returned it, is thoughts and nothing else. Most of these were cut
        before their thoughts had ended."""
        text = THINK + text if self.thinks else text
        return bool(text) and not without_thoughts(text)
