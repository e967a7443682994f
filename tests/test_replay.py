"""A replay honours the run's recipe: its judge, its rubrics and its reward, which see whole groups."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hostile import Server
from test_evaluate import run_of, saying

import evaluate
import judge as judges
from rar_mini import data, recipe
from rar_mini.checkpoint import Run, records
from rar_mini.evaluation import replay

pytestmark = pytest.mark.usefixtures("folder")

HEADER = """
from dataclasses import dataclass, replace
from rar_mini.judging.wrappers import Wrapper
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric

"""
CENTRED = """
@dataclass(frozen=True)
class Centred(Recipe):
    by: float = 1.0

    def reward(self, scores):
        reward = super().reward(scores)
        return self.by * (reward - reward.mean(-1, keepdim=True))
"""
WORST = """
class Worst(Wrapper):  # which gives all responses of a group the verdicts of the worst one
    def score(self, *asked, **how):
        scores = super().score(*asked, **how)
        return replace(scores, verdict=scores.verdict.amin(1, keepdim=True).expand_as(scores.verdict))

@dataclass(frozen=True)
class OfTheWorst(Recipe):
    def judge(self, judge):
        return Worst(judge)
"""
MADE = """
@dataclass(frozen=True)
class Made(Recipe):
    def rubrics(self, examples, responses):
        raise AssertionError("a replay makes no rubrics")
"""


def run_with(folder: Path, questions: Path, body: str, options: str = "") -> Path:
    """A run of two steps with four rollouts each, whose recipe this is."""
    file = folder / "own.py"
    file.write_text(HEADER + body, encoding="utf-8")
    run = run_of(folder / "run", questions, steps=2)
    spec = f"{file} {options}".strip()
    config = json.loads((run / "config.json").read_text())
    config["settings"]["recipe"], config["recipe"] = spec, recipe.digest(spec)
    (run / "config.json").write_text(json.dumps(config))
    return run


def rollouts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


def replayed(capsys: pytest.CaptureFixture, run: Path) -> tuple[dict[str, Any], str]:
    evaluate.replay(run, ("systemone:m",), judging=judges.Options(cache=False))
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def by_place(text: str, asked: str) -> float:
    """0.1 for the first answer of a group, 0.2 for the next."""
    return 0.1 * (int(text.split()[1]) + 1)


def test_the_reward_is_the_recipes_and_compares_a_group(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path
) -> None:
    run = run_with(tmp_path, questions, CENTRED, "--by -2")
    server.reply = saying(by_place)
    found, err = replayed(capsys, run)
    assert found["all"]["second"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["all"]["in groups"]["value"] == pytest.approx(-1.0) and err == ""


def test_the_judge_is_the_recipes_and_sees_a_group(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path
) -> None:
    run = run_with(tmp_path, questions, WORST)
    server.reply = saying(by_place)
    found, _ = replayed(capsys, run)
    assert found["all"]["second"]["value"] == pytest.approx(0.1)


def test_a_group_that_is_not_yet_whole_is_judged_too(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path
) -> None:
    """As while a run is at work: two of the second step's four lines are there."""
    run = run_with(tmp_path, questions, WORST)
    lines = (run / "rollouts.jsonl").read_text().splitlines(keepends=True)
    (run / "rollouts.jsonl").write_text("".join(lines[:4] + lines[6:]))
    server.reply = saying(by_place)
    found, _ = replayed(capsys, run)
    assert [part["second"] for part in found["steps"]] == [pytest.approx(0.1), pytest.approx(0.3)]


def test_answers_to_one_question_share_its_example(tmp_path: Path, questions: Path) -> None:
    """Whoever reads them can tell that the question is one; a conversation is another one."""
    run = run_of(tmp_path / "run", questions, steps=1)
    rows = list(records(run, "rollouts.jsonl"))
    rows[3]["turns"] = [{"role": "assistant", "content": "When?"}, {"role": "user", "content": "Now."}]
    found = replay.examples_of(run, recipe.make(None, Run.reopen(run).settings()), rows)
    assert found[0] is found[1] is found[2] and len(found[3].messages) == 3


def test_a_question_that_a_step_draws_twice_in_a_row_has_two_groups() -> None:
    """The first step draws b twice, and the second begins with it. One answer of the last group is there."""
    drawn = [(1, "a"), (1, "b"), (1, "b"), (2, "b"), (2, "c")]
    rows = [{"step": step, "example_id": name} for step, name in drawn for _ in range(3)][:-2]
    assert replay.groups_of(rows, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]


def test_rubrics_that_the_recipe_made_are_read_from_the_rollouts(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path
) -> None:
    """Each step has its own rubric of one item."""
    run = run_with(tmp_path, questions, MADE)
    rows = rollouts(run)
    for row in rows:
        item = dataclasses.asdict(data.read(questions)[0].rubric.criteria[0])
        row["rubric"] = [item | {"title": "Own", "description": f"Fits step {row['step']}.", "weight": 2.0}]
        row["verdicts"] = [{"title": "Own", "category": "essential", "weight": 2.0, "verdict": 1.0}]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked_of: set[tuple[str, str]] = set()

    def verdict(text: str, asked: str) -> float:
        asked_of.add((text.split()[0], asked.split()[-1]))
        return 0.0

    server.reply = saying(verdict)
    found, _ = replayed(capsys, run)
    assert asked_of == {("1", "1."), ("2", "2.")}
    assert found["all"]["rejected"]["value"] == 1.0 and found["failed"] == 0


HEAVY = {"title": "a", "description": "b", "category": "essential", "weight": "heavy"}


@pytest.mark.parametrize("rubric", [None, 7, [{"title": "no more"}], ["text"], [HEAVY]])
def test_a_rubric_that_is_missing_is_refused(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path, rubric: Any
) -> None:
    run = run_with(tmp_path, questions, MADE)
    rows = [row | ({} if rubric is None else {"rubric": rubric}) for row in rollouts(run)]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="step 1, 'q0': expected under `rubric` the criteria"):
        replayed(capsys, run)
    assert not server.seen


def test_a_recipe_that_has_changed_is_told(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, questions: Path
) -> None:
    run = run_with(tmp_path, questions, CENTRED)
    with open(tmp_path / "own.py", "a") as file:
        file.write("# changed\n")
    server.reply = saying(by_place)
    assert "own.py has changed since the run" in replayed(capsys, run)[1]
