"""Chat templates that cannot write a conversation: they are programs of others, and fail in any way."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TEMPLATE, Command, question, write_rows

from rar_mini import policy

RAISES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
FAULTS = {
    "raises": (RAISES + TEMPLATE, "TemplateError: System role not supported"),
    "undefined": ("{{ messages[0].content.text.plain }}", "UndefinedError: 'str object' has no attribute"),
    "syntax": ("{% for m in messages %}{{ m.content }}", "TemplateSyntaxError: Unexpected end of template"),
    "no text": ("{{ messages | sum }}", "TypeError: "),
    "no end": ("{% for i in range(1000000000) %}a{% endfor %}", "OverflowError: "),
}


def templated(tiny: Path, folder: Path, template: str) -> Path:
    """`tiny` with another template."""
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_template_that_fails_is_told_in_its_own_words(tiny: Path, tmp_path: Path, name: str) -> None:
    template, words = FAULTS[name]
    actor = policy.load(str(templated(tiny, tmp_path / "policy", template)), torch.float32, "cpu")
    with pytest.raises(ValueError) as error:
        actor.encode(None, [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])
    said = str(error.value)
    assert (
        said.startswith(f"{tmp_path / 'policy'}: expected a chat template that can write") and words in said
    )
    assert "conversation of system, user, got " in said and "\n" not in said


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
