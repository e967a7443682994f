"""Chat templates that cannot write a conversation: they are programs of others, and fail in any way."""

import resource
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command
from hostile import Server
from test_train import options
from tiny import TEMPLATE, question, write_rows

import train
from rar_mini import policy, turns
from rar_mini.judging.endpoint import Endpoint

RAISES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
FAULTS = {
    "raises": (RAISES + TEMPLATE, "TemplateError: System role not supported"),
    "undefined": ("{{ messages[0].content.text.plain }}", "UndefinedError: 'str object' has no attribute"),
    "syntax": ("{% for m in messages %}{{ m.content }}", "TemplateSyntaxError: Unexpected end of template"),
    "no text": ("{{ messages | sum }}", "TypeError: "),
    "a loop": ("{% for i in range(1000000000) %}a{% endfor %}", "OverflowError: "),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "TimeoutError: it takes more than 0.2 seconds",
    ),
    "calls": (
        "{% macro two(n) %}{% if n %}{{ two(n - 1) }}{{ two(n - 1) }}{% endif %}{% endmacro %}{{ two(60) }}",
        "TimeoutError: it takes more than 0.2 seconds",
    ),
    "a power": ("{{ (9 + messages | length) ** (10 ** 9) % 7 }}", "TimeoutError: it takes more than 0.2"),
    "a constant": ("{{ 10 ** (10 ** 9) % 7 }}", "TimeoutError: it takes more than 0.2 seconds"),
    "gigabytes": ("{{ messages[0].content * 10000000000 }}", "MemoryError: it takes more than 2 GiB"),
    "a width": ("{{ '%9999999999s' % messages[0].content }}", "MemoryError: it takes more than 2 GiB"),
    "megabytes": ("{{ messages[0].content * 2000000 }}", "OverflowError: it writes 2,000,000 characters: "),
}


def templated(tiny: Path, folder: Path, template: str) -> Path:
    """`tiny` with another template."""
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_template_that_fails_is_told_in_its_own_words(
    tiny: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that would never end, or fill the memory."""
    template, words = FAULTS[name]
    monkeypatch.setattr(turns, "SECONDS", 0.2)
    actor = policy.load(str(templated(tiny, tmp_path / "policy", template)), torch.float32, "cpu")
    with pytest.raises(ValueError) as error:
        actor.encode(None, [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])
    said = str(error.value)
    assert (
        said.startswith(f"{tmp_path / 'policy'}: expected a chat template that can write") and words in said
    )
    assert "conversation of system, user, got " in said and "\n" not in said


def test_a_template_s_bounds_are_gone_when_it_is_done(tiny: Path) -> None:
    """Training takes longer and more; and a signal of others finds its own handler."""
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    policy.load(str(tiny), torch.float32, "cpu")
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_long_conversation_is_no_fault(tiny: Path, tmp_path: Path) -> None:
    """A template may write a text several times, as JSON too."""
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content | tojson }}{{ m.content }}")
    actor = policy.load(str(templated(tiny, tmp_path / "policy", template)), torch.float32, "cpu")
    assert len(actor.turns.render([{"role": "user", "content": '"' * 10**6}])) > 3 * 10**6


def test_it_ends_a_run_and_a_local_judge_in_one_line(command: Command, tiny: Path, tmp_path: Path) -> None:
    """Gemma's first templates refuse a system message, and ours is one: a traceback of jinja2."""
    broken = templated(tiny, tmp_path / "policy", FAULTS["raises"][0])
    rows = write_rows(tmp_path / "rows.jsonl", [question(0, response="r"), question(1, response="r")])
    run = ("train.py", "--policy", broken, "--data", rows, "--out", tmp_path / "run")
    score = ("judge.py", "score", rows, "--judge", f"local:{broken}", "--out", tmp_path / "scores.jsonl")
    for words in (run, score):
        last = command(*words).stderr.splitlines()[-1]
        assert (
            f"{words[0]}: {broken}: expected a chat template" in last and "System role not supported" in last
        )
    assert not (tmp_path / "run").exists()


def test_templates_are_written_in_the_main_thread_alone(
    tiny: Path, tmp_path: Path, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there can a signal end one. A server is asked by a thread of its own, while answers are sampled;
    users and teachers of conversations are asked by some, and a recipe, which plays them, has no tokenizer.
    No other file starts one."""
    wrote, asked = set(), set()
    render, ask = turns.Turns.render, Endpoint._ask_all

    def rendered(self: turns.Turns, *words: Any, **how: Any) -> str:
        wrote.add(threading.current_thread())
        return render(self, *words, **how)

    async def asking(self: Endpoint, *words: Any) -> Any:
        asked.add(threading.current_thread().name)
        return await ask(self, *words)

    monkeypatch.setattr(turns.Turns, "render", rendered)
    monkeypatch.setattr(Endpoint, "_ask_all", asking)
    item = {"title": "One", "description": "Essential Criteria: Mentions one.", "weight": 1}
    path = write_rows(tmp_path / "rows.jsonl", [question(i, rubric=[item]) for i in range(2)])
    train.main(options(tiny, path, tmp_path / "run", judge="chat:m", steps=1, eval_every=0, save_every=0))
    assert wrote == {threading.main_thread()} and asked == {"endpoint"}
    starts = ("Thread(", "ThreadPool", "run_in_executor", "to_thread")
    sources = [path for room in ("rar_mini", "kernels", "lab") for path in (ROOT / room).rglob("*.py")]
    threaded = [path for path in [*sources, *ROOT.glob("*.py")] if any(x in path.read_text() for x in starts)]
    assert {path.relative_to(ROOT / "rar_mini").as_posix() for path in threaded} == {
        "judging/endpoint.py",
        "talk.py",
    }
