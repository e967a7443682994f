"""Removes keys and passwords from everything that leaves: errors, logs, output, tracebacks, files, the cache.

`hide` removes the secrets that environment variables hold. It finds them in every form that a server or a
library may write: escaped for JSON, a URL or HTML, once or twice; in base64 or hexadecimal; wrapped; in
capitals; in part. Every reply of a server and everything that a command prints goes through it.
`redact` also removes what looks like a secret, and sometimes more than it should. It is only for the words of
errors: an answer may contain such text for other reasons.
"""

import html
import json
import logging
import os
import re
import sys
from base64 import b64encode
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote

MARK = "***"

KEYS = re.compile(r"(\w+_)?(API_KEY|ADMIN_KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD)")
"""Names of environment variables that hold secrets."""
URLS = re.compile(r"OPENAI_BASE_URL|HF_ENDPOINT|PIP_(EXTRA_)?INDEX_URL|\w+_PROXY", re.I)
"""Names of environment variables that hold URLs, whose user, password and query may be secret."""

FORMS = re.compile(
    # user:password@ with or without a URL, token=..., words after Bearer or Basic, known prefixes of keys
    r"(?i)(?<=://)\S*(?=@)|[^\s/'\"@:]+:[^\s/'\"@]+(?=@)|(token|key|secret|password)=[^&\s]+|hf_[a-z0-9]{16,}"
    r"|\b(sk-|(bearer|basic)\s+)\S+"
)
"""What looks like a secret."""

KEY_AS_NAME = re.compile(
    r"(?i)^(\w+:)?(sk-|(gsk|hf|xai|r8|pplx|nvapi|ghp)[_-][\w-]{16}|AIza[\w-]{30}|eyJ[\w-]{16,}\."
    r"|(?=[^/@]*\d)(?=[^/@]*[a-z])[a-z0-9]{32,}$)"
)
"""What looks like a key in the place of a model's name, alone or behind a judge's kind: a provider's prefix,
the head of a web token, 32 letters and digits."""

ESCAPE = re.compile(
    r"\\+u([0-9a-f]{4})|\\+x([0-9a-f]{2})|%([0-9a-f]{2})|&\#x([0-9a-f]{1,6});|&\#([0-9]{1,7});|(&[a-z]{2,8};)"
    r"|\\+[nrt]|\\+|[\s\x00-\x1f\x7f\xad\u200b-\u200f\u2028-\u202e\u2060\ufeff\u2500-\u257f]+"
)
"""An escaped character; and what may stand between two characters of a secret: white space, backslashes,
invisible characters, and the frames that command lines draw."""
HARMLESS = re.compile(r"[a-z_-]+|[0-9.:-]+")
"""Parts of a secret that other texts contain by chance: words, dates, numbers."""
LOWER = {i: i + 32 for i in range(ord("A"), ord("Z") + 1)}


def redact(text: str) -> str:
    """An error's words without secrets and without anything that looks like one."""
    return FORMS.sub(MARK, hide(text))


def hide(text: str) -> str:
    """A text without the environment's secrets, in whatever form they are written."""
    needles = _needles(tuple(sorted(_secrets())))
    if not needles:
        return text
    plain, starts, ends = _plain(text)
    hits = bytearray(len(plain))
    for needle in needles:
        # Any part of this length counts, because servers quote parts. Shorter ones give no secret away.
        part = min(len(needle), max(8, len(needle) // 3))
        for first in range(len(needle) - part + 1):
            at = plain.find(needle[first : first + part])
            while at >= 0:
                hits[at : at + part] = b"\1" * part
                at = plain.find(needle[first : first + part], at + 1)
    for match in reversed(list(re.finditer(b"\1+", hits))):
        piece = plain[match.start() : match.end()]
        if piece in needles or not HARMLESS.fullmatch(piece):
            text = text[: starts[match.start()]] + MARK + text[ends[match.end() - 1] :]
    return text


def refuse_key(what: str, name: str) -> None:
    """Raise ValueError, which does not show it, for a key in the place of a judge's or model's name: that
    name is printed and written to files."""
    if KEY_AS_NAME.match(name) or hide(name) != name:
        raise ValueError(
            f"{what} looks like a key: expected the name of a model, as in chat:gpt-4o-mini; put the key "
            "into OPENAI_API_KEY, and replace it by a new one if others may have seen this command"
        )


def hidden(value: Any) -> Any:
    """A JSON value without the environment's secrets in its texts and names."""
    text = json.dumps(value, ensure_ascii=False)
    return value if hide(text) == text else _each_hidden(value)


def _each_hidden(value: Any) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [_each_hidden(each) for each in value]
    if isinstance(value, dict):
        return {hide(name): _each_hidden(each) for name, each in value.items()}
    return value


def _secrets() -> set[str]:
    """The environment's secrets. A plain word in place of a key, such as EMPTY, is none; a password in a URL
    always is."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if KEYS.fullmatch(name) and len(value) >= 8 and not value.isalpha():
            found.add(value)
        elif URLS.fullmatch(name):
            found |= _of_url(value)
    return found


@lru_cache
def _of_url(url: str) -> frozenset[str]:
    """The secrets in a URL: the password, or the user if there is no password; user and password as one text,
    as they are sent; and long values of the query. A malformed URL is taken apart all the same."""
    user = re.sub(r"^\w+://", "", url).rpartition("@")[0]
    name, colon, password = user.partition(":")
    found = {user, password if colon else name}
    found |= {unquote(each) for each in found}
    query = url.partition("?")[2]
    found |= {value for name, value in parse_qsl(query) if len(value) >= 8 and name != "api-version"}
    return frozenset(each for each in found if len(each) >= 6)


@lru_cache
def _needles(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """The texts to look for, as `_plain` returns them: each secret as it is, in hexadecimal, and in base64 at
    each of the three offsets that it may have in a longer text."""
    found: set[str] = set()
    for secret in secrets:
        data = secret.encode("utf-8", "replace")
        found |= {secret, data.hex()}
        for before in range(3):
            code = b64encode(bytes(before) + data).decode().rstrip("=")
            # Characters that are the secret's alone, and hold no bit of its neighbours.
            own = code[-(-before * 4 // 3) : (before + len(data)) * 4 // 3]
            found |= {own, own.replace("+", "-").replace("/", "_")}
    return tuple(needle for each in sorted(found) if len(needle := _plain(each)[0]) >= 4)


def _plain(text: str) -> tuple[str, list[int], list[int]]:
    """A text in small letters and without escapes; and where each of its characters begins and ends in the
    given text."""
    starts, ends = list(range(len(text))), list(range(1, len(text) + 1))
    for _ in range(4):  # escapes of escapes
        parts, new_starts, new_ends, last = [], [], [], 0
        for match in ESCAPE.finditer(text.translate(LOWER)):
            first, after = match.span()
            char = _unescaped(match)
            parts += [text[last:first], char]
            new_starts += starts[last:first] + [starts[first]] * len(char)
            new_ends += ends[last:first] + [ends[after - 1]] * len(char)
            last = after
        if not parts:
            break
        text = "".join([*parts, text[last:]])
        starts, ends = new_starts + starts[last:], new_ends + ends[last:]
    return text.translate(LOWER), starts, ends


def _unescaped(match: re.Match[str]) -> str:
    """The character that an escape stands for; "" if it stands for none."""
    *hexadecimal, decimal, name = match.groups()
    number = next((int(digits, 16) for digits in hexadecimal if digits), None)
    if number is None and decimal:
        number = int(decimal)
    if number is not None:
        return chr(number) if 32 < number < 0xD800 else ""
    return html.unescape(name)[:1] if name and html.unescape(name) != name else name or ""


class _Veiled:
    """A stream that hides secrets in what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(hide(text))
        except OSError as error:  # a full disk, or a pipe that nobody reads
            raise OSError(error.errno, error.strerror, self._stream.name) from None
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def veil_output() -> None:
    """Hide secrets in everything that this process prints, also in tracebacks and in libraries' logs."""
    loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Veiled):
            veiled = _Veiled(stream)
            setattr(sys, name, veiled)
            for handler in (handler for logger in loggers for handler in logger.handlers):
                if getattr(handler, "stream", None) is stream:
                    handler.stream = veiled
