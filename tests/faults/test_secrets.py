"""A planted key and password, in some fifty forms that servers and libraries give them, come out nowhere."""

import base64
import html
import json
import logging
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import ROOT, Command
from hostile import Server, _bytes, envelope
from tiny import question, write_rows

from rar_mini import redact
from rar_mini.evaluation import answers
from rar_mini.judging.endpoint import Endpoint, Failure, Request

KEY = "sk-proj/Zq7w\"Xv&Kd+9fR%2e=\\Lm'Tb<3>#pQ"
PASSWORD = "hunter2/of#the@north"


def coded(text: str, before: str = "") -> str:
    return base64.b64encode((before + text).encode()).decode()


def echoes(secret: str) -> dict[str, str]:
    """A secret as somebody may write it."""
    once, words = json.dumps(secret), textwrap.wrap(secret, 12)
    return {
        "as it is": secret,
        "in a header": f"Authorization: Bearer {secret}",
        "after a colon": f"api-key:{secret}",
        "in a query": f"http://host/v1?key={secret}",
        "in JSON": once,
        "in JSON with escaped slashes": once.replace("/", "\\/"),
        "in JSON in JSON": json.dumps(once),
        "in JSON in JSON in JSON": json.dumps(json.dumps(once)),
        "in JSON with escaped slashes, twice": json.dumps(once.replace("/", "\\/")),
        "quotes escaped only": secret.replace('"', '\\"'),
        "slashes escaped only": secret.replace("/", "\\/"),
        "as JSON's numbers": "".join(f"\\u{ord(c):04x}" for c in secret),
        "as JSON's numbers in capitals": "".join(f"\\u{ord(c):04X}" for c in secret),
        "as JSON's numbers, twice": "".join(f"\\\\u{ord(c):04x}" for c in secret),
        "some as JSON's numbers": "".join(c if c.isalnum() else f"\\u{ord(c):04x}" for c in secret),
        "as Python's numbers": "".join(f"\\x{ord(c):02x}" for c in secret),
        "by repr": repr(secret),
        "by repr of repr": repr(repr(secret)),
        "by repr of bytes": repr(secret.encode()),
        "for a URL": quote(secret),
        "for a URL, slashes too": quote(secret, safe=""),
        "for a URL in small letters": quote(secret, safe="").lower(),
        "for a URL, twice": quote(quote(secret, safe=""), safe=""),
        "for a URL, all of it": "".join(f"%{ord(c):02X}" for c in secret),
        "for a URL in JSON": json.dumps(quote(secret, safe="")),
        "for HTML": html.escape(secret),
        "for HTML, twice": html.escape(html.escape(secret)),
        "for HTML without quotes": html.escape(secret, quote=False),
        "as HTML's numbers": "".join(f"&#{ord(c)};" for c in secret),
        "as HTML's hexadecimal numbers": "".join(f"&#x{ord(c):x};" for c in secret),
        "for HTML in JSON": json.dumps(html.escape(secret)),
        "in base64": coded(secret),
        "in base64 after one": coded(secret, "x"),
        "in base64 after two": coded(secret, "xy"),
        "in base64 of a header": coded(secret, "Bearer "),
        "in base64 for URLs": base64.urlsafe_b64encode(secret.encode()).decode(),
        "in base64 in JSON": json.dumps({"auth": coded(secret)}).replace("/", "\\/"),
        "in base64 in lines": "\n".join(textwrap.wrap(coded(secret), 20)),
        "in hexadecimal": secret.encode().hex(),
        "in hexadecimal capitals": secret.encode().hex().upper(),
        "in hexadecimal with blanks": secret.encode().hex(" "),
        "in capitals": secret.upper(),
        "in small letters": secret.lower(),
        "its first half": secret[: len(secret) // 2],
        "its second half": secret[len(secret) // 2 :],
        "its middle": secret[4:-4],
        "cut short in JSON": json.dumps(f"{secret[:14]}..."),
        "twice": secret + secret,
        "in lines": "\n    ".join(words),
        "in a frame": " │\n│ ".join(words),
        "with blanks of no width": "\u200b".join(secret),
        "with NULs": "\0".join(secret),
        "over JSON's lines": "\\n".join(words),
    }


def parts(text: str) -> set[str]:
    """All runs of ten characters: more of a secret than anyone may show."""
    text = "".join(text.split()).lower()
    return {text[i : i + 10] for i in range(len(text) - 9)}


def leaks(told: str, *planted: str) -> bool:
    return any(part in "".join(told.split()).lower() for text in planted for part in parts(text))


ECHOES = {**echoes(KEY), **{f"password {name}": text for name, text in echoes(PASSWORD).items()}}


@pytest.fixture
def planted(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server.url.replace("http://", f"http://alice:{quote(PASSWORD, safe='')}@")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    server.reply = lambda path, body: "x"
    return server


@pytest.fixture
def endpoint(planted: Server) -> Iterator[Callable[..., Endpoint]]:
    made = []

    def make(**more: Any) -> Endpoint:
        made.append(Endpoint("m", **{"backoff": 0.01, "retries": 0, **more}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def requests(*words: str) -> list[Request]:
    bodies = ({"messages": [{"role": "user", "content": text}]} for text in words)
    return [Request("/chat/completions", body, answers.written) for body in bodies]


# --- the one function --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ECHOES)
def test_no_form_of_a_secret_is_shown(planted: Server, name: str) -> None:
    """With the text around it still there."""
    text = f"401 no such key: [{ECHOES[name]}] of this project"
    told = redact.hide(text)
    assert "***" in told and told.startswith("401 no such key: [") and told.endswith("] of this project")
    bare = ECHOES[name]
    for harmless in ("Authorization: Bearer ", "http://host/v1?key=", coded("Bearer")):
        bare = bare.removeprefix(harmless)
    assert not leaks(told, bare) and not leaks(redact.redact(text), bare)


def test_other_words_are_left_alone(planted: Server) -> None:
    """Escapes, white space and a few characters of a key are no secret."""
    for text in (
        "a 100% \\u00e9 &amp; <b>\n\n  C:\\new",
        "keys begin with sk-proj",
        "",
        "hunter",
        "the north",
    ):
        assert redact.hide(text) == text
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": "sk-proj"}}
    assert redact.hidden(value) == value


def test_placeholders_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert redact.hide("an EMPTY reply") == "an EMPTY reply"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_TOKEN", "hf_0123456789abcdef"),
        ("WANDB_API_KEY", "0123456789abcdef0123"),
        ("OPENAI_BASE_URL", "http://host/v1?code=0123456789abcdef"),
        ("https_proxy", "http://me:0123456789abcdef@proxy:1"),
        ("PIP_INDEX_URL", "https://0123456789abcdef@index/simple"),
        ("HF_ENDPOINT", "https://me:0123456789abcdef@mirror"),
    ],
)
def test_secrets_are_known_by_their_variables(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert redact.hide("it was 0123456789abcdef, wasn't it?") == "it was ***, wasn't it?"


# --- every path out ----------------------------------------------------------------------------------------


def test_errors_answers_and_the_cache_hold_no_secret(
    planted: Server, endpoint: Callable[..., Endpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal that echoes it, as text and in JSON; an answer that does."""
    made, told = endpoint(cache=tmp_path / "c.sqlite"), []
    made.ask(requests("the first goes alone"))
    for number, (name, text) in enumerate(ECHOES.items()):
        error = _bytes({"error": {"message": f"no: {text}", "code": 401}})
        status, sent = ((401, text.encode()), (401, error), (200, error))[number % 3]
        planted.spoil = lambda *_, status=status, sent=sent: (status, {}, sent)
        (failure,) = made.ask(requests(f"{name} {len(told)}"))
        assert isinstance(failure, Failure) and failure.kind == "HTTP 401"
        told += [str(failure), "".join(traceback.format_exception(failure))]
        planted.spoil = lambda *_, text=text: (200, {}, _bytes(envelope("/chat/completions", f"say {text}")))
        (answer,) = made.ask(requests(f"{name} {len(told)}"))
        assert "***" in answer["response"]
        told.append(json.dumps(answer))
    told += [made.ledger.reasons(), made.ledger.line(), caplog.text, made.address]
    made.close()
    told += [path.read_bytes().decode("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not leaks(
        "\n".join(told), KEY, PASSWORD, coded(KEY), coded(f"alice:{PASSWORD}"), KEY.encode().hex()
    )


def test_a_command_shows_and_keeps_no_secret(
    planted: Server, command: Command, tmp_path: Path, folder: Path
) -> None:
    """A server that says in its refusals and in its answers what it was sent."""
    rows = write_rows(tmp_path / "in.jsonl", [question(i, response="r") for i in range(2)])
    reply = envelope("/chat/completions", json.dumps({"reason": KEY, "rating": 4}))
    for status, sent in ((401, _bytes({"error": KEY})), (200, _bytes(reply)), (200, KEY.encode())):
        planted.spoil = lambda *_, status=status, sent=sent: (status, {}, sent)
        words = ["--judge", "chat:m", "--method", "direct-likert", "--out", tmp_path / f"{len(sent)}.jsonl"]
        done = command("judge.py", "score", rows, *words)
        assert not leaks(done.stdout + done.stderr, KEY, PASSWORD)
    for path in (*tmp_path.rglob("*"), *folder.rglob("*")):
        assert not path.is_file() or not leaks(path.read_bytes().decode("utf-8", "replace"), KEY, PASSWORD)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_no_process_list_holds_a_secret(planted: Server, tmp_path: Path) -> None:
    """While a real process waits for the server, which looks."""
    listed = []

    def look(*_: object) -> tuple[int, dict, bytes]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # one that has just ended
                listed.append(path.read_bytes().decode("utf-8", "replace"))
        return 401, {}, KEY.encode()

    planted.spoil = look
    rows = write_rows(tmp_path / "in.jsonl", [question(0, response="r")])
    words = ["judge.py", "score", rows, "--judge", "chat:m", "--out", tmp_path / "out.jsonl"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "got HTTP 401: ***" in done.stderr
    assert any("judge.py" in line for line in listed)
    assert not leaks("\n".join([*listed, done.stdout, done.stderr]), KEY, PASSWORD)


PRINTS = """
import logging, os, sys, threading, warnings
handler = logging.StreamHandler()
logging.getLogger("library").addHandler(handler)
from rar_mini.redact import veil_output
veil_output(); veil_output()
secret = os.environ["OPENAI_API_KEY"]
print("out", secret); print("err", secret, file=sys.stderr)
sys.stdout.writelines(["line ", secret])
logging.getLogger("library").warning("log %s", secret); warnings.warn(secret)
thread = threading.Thread(target=lambda: 1 / secret); thread.start(); thread.join()
try:
    raise KeyError(secret)
except KeyError:
    if sys.argv[1] == "exit":
        sys.exit(f"exit {secret}")
    raise RuntimeError(f"why {secret}")
"""


@pytest.mark.parametrize("end", ["exit", "raise"])
def test_no_output_of_a_process_holds_a_secret(planted: Server, end: str) -> None:
    """Prints, logs whose handler is older, warnings, and tracebacks of threads and at the end."""
    done = subprocess.run([sys.executable, "-c", PRINTS, end], cwd=ROOT, capture_output=True, text=True)
    told = done.stdout + done.stderr
    assert not leaks(told, KEY) and told.count("***") >= 6 and done.returncode == 1
    assert "out ***" in told and "log ***" in told and ("exit ***" in told or "RuntimeError: why ***" in told)


# --- addresses and the network's settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://alice:correct/horse@host/v1",
        "http://alice:12/horse@host/v1",
        "http://alice:correct#horse@host/v1",
        "http://alice:12#horse@host/v1",
        "http://alice:correct?horse@host/v1",
        "http://alice:12?horse@host/v1",
        "http://[correct-horse/v1",
        "http://host:correct-horse/v1",
        "correct-horse@host/v1",
        "ftp://alice:correct-horse@host/v1",
    ],
)
@pytest.mark.parametrize("option", [False, True])
def test_an_address_that_is_none_is_refused_unseen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, option: bool
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    name = "--base-url" if option else "OPENAI_BASE_URL"
    with pytest.raises(ValueError, match=f"{name} is no address .* as %2F %23 %3F and %40") as caught:
        Endpoint("m", base_url=url if option else None)
    told = "".join(traceback.format_exception(caught.value))
    assert "correct" not in told.replace(__file__, "") and "horse" not in told


def test_a_query_of_the_base_url_stays_one_and_is_not_shown(
    planted: Server, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was put in front of the path. What it says belongs to the key of the cache, unseen."""
    planted.spoil = lambda *_: (200, {}, _bytes(envelope("/chat/completions", "x")))
    for version in ("preview", "preview", "2025-01-01"):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{planted.url}/?api-version={version}&code=a%2Fb")
        made = endpoint(cache=tmp_path / "c.sqlite")
        made.ask(requests("a"))
        assert made.address == planted.url
    paths = [path for path, _, _ in planted.seen]
    assert paths == [f"/v1/chat/completions?api-version={v}&code=a%2Fb" for v in ("preview", "2025-01-01")]
    planted.spoil = lambda *_: (401, {}, b"no")
    with pytest.raises(ConnectionError) as caught:
        endpoint().ask(requests("b"))
    assert "2025" not in str(caught.value) and planted.url in str(caught.value)


def test_a_users_password_is_sent_as_it_is(planted: Server, endpoint: Callable[..., Endpoint]) -> None:
    endpoint().ask(requests("a"))
    headers = {name.lower(): value for name, value in planted.seen[0][2].items()}
    assert headers["authorization"] == f"Basic {coded('alice:' + PASSWORD)}"


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("HTTPS_PROXY", "foo://alice:correct-horse@proxy", "Unknown scheme"),
        ("http_proxy", "http://alice:correct/horse@proxy:1", "it is no URL"),
        ("ALL_PROXY", "http://alice:correct-horse@proxy:port", "it is no URL"),
        ("SSL_CERT_FILE", "/nowhere/correct-horse.pem", "No such file"),
        ("SSL_CERT_FILE", __file__, ""),
    ],
)
def test_a_setting_of_the_network_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        ValueError, match=f"the network's setting {variable} cannot be used: .*{why}"
    ) as caught:
        Endpoint("m", base_url="http://host/v1")
    assert "correct" not in str(caught.value) and "horse" not in str(caught.value)


def test_a_proxy_that_nobody_answers_at_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://alice:correct-horse@127.0.0.1:9")
    made = Endpoint("m", base_url="http://host.invalid/v1", retries=0)
    with pytest.raises(ConnectionError, match="got connection: .*settings of http_proxy") as caught:
        made.ask(requests("a"))
    assert "horse" not in str(caught.value)
    made.close()


logging.getLogger("openai").setLevel(logging.WARNING)


def test_ordinary_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is changed would be graded as something that nobody has said."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host/v1?api-version=2024-10-21")
    for key in ("sk-no-key-required", "whatever", "completion_key"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        for text in ("surgery is not required, eat whatever you like", "2024-10-05", "completion_tokens"):
            assert redact.hide(text) == text
    assert redact.hide("completion_key") == "***"
