"""A key that is given where a judge's or model's name belongs: refused, and neither shown nor written."""

from pathlib import Path

import pytest
from conftest import Command
from tiny import question, write_rows

from rar_mini import redact
from rar_mini.judging.endpoint import Endpoint

KEYS = [
    "sk-proj-Ab3dEf6hIj9lMn2pQr5t",
    "sk-ant-api03-Ab3dEf6hIj9l",
    "sk-short",
    "gsk_Ab3dEf6hIj9lMn2pQr5tUv8x",
    "hf_Ab3dEf6hIj9lMn2pQr5tUv8x",
    "xai-Ab3dEf6hIj9lMn2pQr5tUv8x",
    "AIzaSyAb3dEf6hIj9lMn2pQr5tUv8xYz0a3c",
    "eyJhbGciOiJIUzI1NiJ9xyz.eyJzdWIiOiIxIn0.Ab3dEf6h",
    "0123456789abcdef0123456789abcdef",
    "Ab3dEf6hIj9lMn2pQr5tUv8xYz0a3c6e",
]
MODELS = [
    "gpt-4o-mini",
    "ft:gpt-4o-mini-2024-07-18:my-org::9abcDEF1",
    "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "Qwen/Qwen2.5-7B@0123456789abcdef0123456789abcdef01234567",
    "/models/hub/snapshots/0123456789abcdef0123456789abcdef01234567",
    "accounts/fireworks/models/deepseek-v3p1",
    "ministral-8b-instruct-2410-with-a-long-name-of-words",
    "skywork-o1-open",
]


def commands(tiny: Path, folder: Path, name: str) -> list[tuple[object, ...]]:
    """Every place for a judge's or model's name on a command line."""
    rows = write_rows(folder / "rows.jsonl", [question(0, response="r")])
    new = ("train.py", "--policy", tiny, "--data", rows, "--out", folder / "run", "--prompts-per-step", 1)
    point = {"criterion": "c", "points": 1, "tags": []}
    health = {"prompt_id": "h", "prompt": [{"role": "user", "content": "?"}], "rubrics": [point]}
    choice = {"question": "?", "choices": ["a", "b"], "answer": "a"}
    health, choice = (write_rows(folder / f"{n}.jsonl", [row]) for n, row in enumerate((health, choice)))
    measures = [("evaluate.py", command, "--judge", name) for command in ("judge", "alignment")]
    return [
        (*new, "--judge", name),
        (*new, "--gold-judge", name),
        ("judge.py", "score", rows, "--judge", name, "--out", folder / "scores.jsonl"),
        ("evaluate.py", "healthbench", "--judge", name, "--data", health, "--policy", tiny),
        ("evaluate.py", "gpqa", "--verifier", name, "--data", choice, "--policy", tiny),
        *measures,
    ]


def test_no_command_shows_or_writes_a_key_that_stands_for_a_name(
    command: Command, tiny: Path, tmp_path: Path
) -> None:
    """`--judge chat:sk-...` stood in config.json and on the terminal."""
    tried = commands(tiny, tmp_path, f"chat:{KEYS[0]}")
    before = set(tmp_path.rglob("*"))
    for words in tried:
        done = command(*words)
        told = done.stdout + done.stderr
        assert done.returncode == 1 and "looks like a key: expected the name of a model" in told, words
        assert KEYS[0][8:] not in told and done.stderr.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["", "chat:", "systemone:", "decisions:"])
def test_a_key_is_known_by_its_form(kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="looks like a key") as error:
        redact.refuse_key("the judge's name", kind + key)
    assert key not in str(error.value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["", "chat:", "local:"])
def test_a_models_name_is_no_key(kind: str, name: str) -> None:
    redact.refuse_key("the judge's name", kind + name)


def test_the_environments_own_key_is_known_whatever_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse-7")
    with pytest.raises(ValueError, match="looks like a key"):
        redact.refuse_key("the judge's name", "chat:correct-horse-7")


def test_a_model_of_a_server_is_checked_wherever_it_is_named() -> None:
    """A recipe's second judge, a writer of rubrics, a policy that a server answers for."""
    with pytest.raises(ValueError, match="^the model's name looks like a key"):
        Endpoint(KEYS[0])
