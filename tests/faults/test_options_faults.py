"""Options that no run could use: refused in words, by the option's name, before a folder is made."""

import math
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from conftest import Command

import evaluate
from rar_mini import ranks
from rar_mini.config import Asking, Config, Options
from rar_mini.evaluation.answers import Answering
from rar_mini.judging.local import LocalJudge
from rar_mini.options import Within
from rar_mini.prompts import JudgePrompts

NUMBERS = {
    (settings, name): kind
    for settings in (Asking, Options, Config, Answering)
    for name, kind in get_type_hints(settings, include_extras=True).items()
    if re.search(r"\b(int|float)\b", str(kind))
}


@pytest.mark.parametrize(("settings", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_has_a_range_beside_its_field(settings: type, name: str) -> None:
    """Infinity reached config.json, which JSON cannot hold, and left a folder that nothing accepts."""
    (within,) = NUMBERS[settings, name].__metadata__
    assert isinstance(within, Within) and math.isfinite(within.low) and math.isfinite(within.high)
    option = "--" + name.replace("_", "-")
    for value in (math.nan, math.inf, -math.inf, 10**30, -1):
        with pytest.raises(ValueError, match=f"{option} {value}: expected a number from "):
            settings(**{name: value})


@pytest.mark.parametrize(
    "words", ["--max-grad-norm inf", "--mismatch-cap -1.0", "--lr nan", "--retries 2000"]
)
def test_a_number_that_no_run_could_use_leaves_no_folder(
    words: str, command: Command, tiny: Path, tmp_path: Path
) -> None:
    done = command("train.py", *words.split(), "--policy", tiny, "--out", tmp_path / "run")
    assert done.returncode and f"{words}: expected a number from" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_rank_above_the_models_width_is_refused_before_memory_is_asked_for(
    command: Command, tiny: Path, tmp_path: Path
) -> None:
    words = ("--policy", tiny, "--out", tmp_path / "run", "--lora-rank")
    assert "--lora-rank 1000000000: expected a number from 0 to" in command("train.py", *words, 10**9).stderr
    assert "--lora-rank 65: expected at most 64" in command("train.py", *words, 65).stderr


@pytest.mark.parametrize("device", ["foo", "cuda1", "cuda:-1", "cpu:7", "mps", "meta", ""])
def test_a_word_that_is_no_device_is_refused_by_its_option(device: str, tiny: Path) -> None:
    """torch names twenty kinds of device in a traceback; on `meta` a run failed after its folder was made."""
    for option, refuse in {
        "--device": lambda: ranks.claim(device),
        "--policy-device": lambda: ranks.claim(device, "--policy-device"),
        "--judge-device": lambda: LocalJudge(str(tiny), device, JudgePrompts(), b""),
    }.items():
        with pytest.raises(ValueError, match=f"^{option} {device}: expected cpu, cuda or cuda:NUMBER$"):
            refuse()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_see_is_refused(command: Command, tiny: Path, tmp_path: Path) -> None:
    """A CPU build of torch ended in an AssertionError."""
    done = command("train.py", "--device", "cuda", "--policy", tiny, "--out", tmp_path / "run")
    assert done.stderr.startswith("train.py: --device cuda: this torch (") and done.stderr.count("\n") == 1


def test_a_billion_runs_of_gpqa_are_refused_before_memory_is_asked_for() -> None:
    with pytest.raises(ValueError, match="--runs 1000000000: expected a number from 1 to 1000"):
        evaluate.on_gpqa(runs=10**9)


def test_a_judge_without_a_name_is_refused(command: Command, tiny: Path, tmp_path: Path) -> None:
    """As `--judge "$JUDGE"` without that variable is: an AttributeError, and no gold judge at all."""
    words = ("--policy", tiny, "--out", tmp_path / "run")
    for option in ("--judge", "--gold-judge"):
        assert "the judge's name is empty: expected" in command("train.py", *words, option, "").stderr


def test_a_recipe_with_a_quote_that_does_not_end_is_named(command: Command, tmp_path: Path) -> None:
    for words in (("train.py",), ("judge.py", "score", "in.jsonl")):
        done = command(*words, "--recipe", "gated 'x", "--out", tmp_path / "run")
        why = "--recipe gated 'x: expected NAME or PATH.py, got No closing quotation\n"
        assert done.stderr == f"{words[0]}: {why}"
