"""RuscaRL: the rubric is in the prompt at first, less of it for each rollout, and then no longer."""

import dataclasses
from pathlib import Path

import pytest

import train
from rar_mini import data, recipe
from rar_mini.config import PRESETS
from rar_mini.recipe import Recipe

CONFIG = dataclasses.replace(PRESETS["cpu"], group_size=5, answers="full")


@pytest.fixture
def example(questions: Path) -> data.Example:
    return data.read(questions)[0]


def own(steps: int = 100, words: str = "") -> Recipe:
    made = recipe.make(f"ruscarl {words}", CONFIG)
    made.begin(1, steps)
    return made


def shown(made: Recipe, example: data.Example, step: int | None, g: int) -> set[str]:
    """The criteria that a rollout is shown."""
    text = made.messages(example, step, g)[-1]["content"]
    lines = [line.removeprefix("- ").split(") ")[-1] for line in text.splitlines() if line.startswith("- ")]
    assert text.startswith(example.question) and "zebra" not in text
    return set(lines)


def test_the_first_rollout_sees_all_and_the_last_one_nothing(example: data.Example) -> None:
    parts = [shown(own(), example, 1, g) for g in range(5)]
    assert [len(part) for part in parts] == [15, 11, 7, 4, 0]
    assert parts[0] == {c.description for c in example.rubric.criteria}
    assert all(later < before for before, later in zip(parts, parts[1:], strict=False)), "one random order"
    assert shown(own(), example, 2, 1) != parts[1], "a new one at each step"


def test_it_ends_at_a_fifth_of_the_run(example: data.Example) -> None:
    counts = [len(shown(own(), example, step, 0)) for step in (1, 19, 21, 23, 40, 100, 10**6)]
    assert counts == [15, 14, 8, 1, 0, 0, 0]
    later = own(words="--start 0.5 --steepness 1000")
    assert [len(shown(later, example, step, 0)) for step in (50, 52)] == [15, 0]


def test_scores_and_rollouts_without_a_scaffold_are_shown_what_rar_shows(example: data.Example) -> None:
    plain = recipe.make(None, CONFIG).messages(example, 1, 0)
    assert own().messages(example, None, 0) == own().messages(example, 1, 4) == plain


def test_pitfalls_are_named_as_mistakes_and_braces_are_text(example: data.Example) -> None:
    odd = dataclasses.replace(example.rubric.criteria[0], description="Mentions {items}.")
    rubric = dataclasses.replace(example.rubric, criteria=(odd, *example.rubric.criteria[1:]))
    text = own().messages(dataclasses.replace(example, rubric=rubric), 1, 0)[-1]["content"]
    assert "- (a mistake that a good response avoids) Recommends aspirin." in text
    assert text.count("Mentions {items}.") == 1


def test_a_prompt_that_fits_only_without_the_rubric_is_refused(
    tiny: Path, questions: Path, tmp_path: Path
) -> None:
    """Before the first step, where its longest view is too long."""
    line = f"--policy {tiny} --data {questions} --judge keyword --out {tmp_path / 'run'} --steps 1"
    line += " --prompts-per-step 1 --group-size 2 --max-new-tokens 4 --max-prompt-tokens 200"
    words = f"{line} --eval-every 0 --save-every 0".split()
    with pytest.raises(ValueError, match="the prompt of 'q0' has 4.. tokens: expected at most 200"):
        train.main([*words, "--recipe", "ruscarl"])
    train.main(words)
