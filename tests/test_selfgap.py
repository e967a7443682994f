"""The self-internalisation gap, and the guard against one that closes for nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from tiny import question, write_rows

import train
from rar_mini import model, policy
from rar_mini.checkpoint import Run
from rar_mini.evaluation import selfgap
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """Two steps that move the policy, with both checkpoints. Its rubrics are short, for a window of 512."""
    items = [question(0)["rubric"][k] for k in (0, 1, 13, 14)]
    rows = [question(i, rubric=items, split="train" if i < 4 else "held_out") for i in range(6)]
    questions = write_rows(tmp_path / "questions.jsonl", rows)
    line = f"--policy {tiny} --data {questions} --out {tmp_path / 'run'} --judge keyword --steps 2 --lr 3e-2"
    line += " --prompts-per-step 2 --group-size 4 --max-new-tokens 12 --eval-every 1 --save-every 1 --keep 9"
    train.main(line.split())
    return tmp_path / "run"


def opened(run: Path) -> tuple[Run, Recipe]:
    found = Run.reopen(run)
    return found, Recipe(config=found.settings())


def test_it_is_the_mean_difference_of_log_probabilities_a_token(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed again without packing, for every answer."""
    _, recipe = opened(run)
    written: list[list[Completion]] = []
    sample = policy.Policy.sample

    def kept(*words: Any) -> list[list[Completion]]:
        written.extend(sample(*words))
        return written

    monkeypatch.setattr(policy.Policy, "sample", kept)
    actor, examples = policy.load(recipe.config.policy, torch.float32, "cpu"), selfgap.held_out(recipe)
    gap, texts = selfgap.gaps(actor, recipe, examples, 3)
    assert gap.shape == (2, 3) and gap.mean() < -0.01, "the rubric changes what even a random policy says"

    def logp(prompt: list[int], ids: list[int]) -> float:
        text = torch.tensor(prompt + ids)
        hidden = actor.model(text, torch.arange(len(text)), model.reference_attention)
        rows = (hidden[len(prompt) - 1 : -1] @ actor.model.head.T).log_softmax(-1)
        return rows.gather(-1, text[len(prompt) :, None]).sum().item()

    for q, example in enumerate(examples):
        plain, told = (actor.encode(example, view) for view in selfgap.views(recipe, example))
        for g, one in enumerate(written[q]):
            wanted = (logp(plain, one.ids) - logp(told, one.ids)) / len(one.ids)
            assert gap[q, g] == pytest.approx(wanted, abs=1e-4)
            assert texts[q][g] == actor.decode(one.ids)


def test_a_view_shows_every_item_that_weighs_something_behind_the_question(run: Path) -> None:
    _, recipe = opened(run)
    example = selfgap.held_out(recipe)[0]
    plain, told = selfgap.views(recipe, example)
    assert [len(plain), plain[0]] == [len(told), told[0]]
    text = told[-1]["content"].removeprefix(plain[-1]["content"])
    assert all(c.description in text for c in example.rubric.criteria)
    assert "a mistake that a good response avoids" in text and example.reference not in text


def test_the_command_has_a_row_for_each_checkpoint_and_the_start(run: Path, command: Command) -> None:
    done = command("evaluate.py", "audit", run, "--panel", "keyword", "--gap", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["gap"]
    assert [row["step"] for row in found["steps"]] == [0, 1, 2] and found["samples"] == 2
    values = [row["gap"]["value"] for row in found["steps"]]
    assert values[0] != values[-1] and all(0 <= row["graded"]["value"] <= 1 for row in found["steps"])
    assert "the policy that is shown the rubric: 2 answers to each of 2 questions" in done.stdout
    for row in found["steps"]:
        assert f"{row['gap']['value']:.3f} [" in done.stdout
    without = command("evaluate.py", "audit", run, "--panel", "keyword")
    assert "gap" not in json.loads(without.stdout.splitlines()[-1])


@pytest.mark.parametrize(("last", "vacuous"), [(0.1, True), (0.8, False)])
def test_a_gap_that_closes_while_its_answers_get_worse_is_called_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, last: float, vacuous: bool
) -> None:
    """By hand: the gap closes from -0.5 to -0.1; the answers earn 0.8 at first."""
    values = iter([(-0.5, 0.8), (-0.3, 0.8), (-0.1, last)])
    now: dict[str, float] = {}

    def gaps(actor: object, recipe: object, examples: Sequence[Any], samples: int) -> tuple[Any, Any]:
        gap, now["grade"] = next(values)
        return np.full((len(examples), samples), gap), [["text"] * samples] * len(examples)

    def ask(juror: object, answers: Sequence[Any], progress: str) -> SimpleNamespace:
        return SimpleNamespace(reward=np.full(len(answers), now["grade"]))

    monkeypatch.setattr(selfgap, "gaps", gaps)
    monkeypatch.setattr(selfgap, "ask", ask)
    found = selfgap.report(*opened(run), [SimpleNamespace(spec="juror")], 2)
    assert found["vacuous"] is vacuous
    assert ("no sign that the rubric is learnt" in capsys.readouterr().out) == vacuous


def test_a_question_that_does_not_fit_with_its_rubric_is_left_out(run: Path) -> None:
    _, recipe = opened(run)
    actor, example = policy.load(recipe.config.policy, torch.float32, "cpu"), selfgap.held_out(recipe)[0]
    length = len(actor.encode(example, selfgap.views(recipe, example)[1]))
    for new, fits in ((512 - length, True), (513 - length, False)):
        config = replace(recipe.config, max_new_tokens=new)
        assert selfgap.fits(actor, Recipe(config=config), example) == fits
