"""A run goes on as the experiment that it was, and in one process: what was edited, cut or taken is named."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from test_train import options, records
from tiny import byte_tokenizer, question, write_rows

import train
from rar_mini import recipe, setup
from rar_mini.checkpoint import Run
from rar_mini.evaluation import audit, paper, replay
from rar_mini.evaluation.judged import Judged
from rar_mini.viewing.show import show

RECIPE = """
from dataclasses import dataclass
from rar_mini.recipe import Recipe

@dataclass(frozen=True)
class Same(Recipe):
    pass
"""


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one step, its questions and its recipe."""
    folder = tmp_path_factory.mktemp("done")
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    (folder / "own.py").write_text(RECIPE)
    (folder / "judge.toml").write_text('system = "s"')
    words = options(tiny, write_rows(folder / "questions.jsonl", rows), folder / "run", steps=1)
    words += ["--recipe", str(folder / "own.py"), "--prompts", str(folder / "judge.toml")]
    train.main([*words, "--max-new-tokens", "6"])
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """A copy of all that, to be spoilt."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(str(done), str(tmp_path)))
    return tmp_path


def on(folder: Path, *words: str) -> None:
    train.main(["--resume", str(folder / "run"), "--steps", "2", *words])


# --- what has changed ---------------------------------------------------------------------------------------


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def shorten(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


EDITS = {
    "a question": ("questions.jsonl", ["What is 1?", "What is one?"], r"train questions \(5 then, 5 now"),
    "a rubric": ("questions.jsonl", ["Names fever", "Names chills"], r"train questions \(5 then, 5 now"),
    "a row": ("questions.jsonl", [], r"held_out questions \(2 then, 1 now, not all the same\)"),
    "the judge's prompts": ("judge.toml", ["system", "again"], r"the judge's prompts \(again\)"),
    "the recipe": ("own.py", ["pass", "k: int = 1"], r"the recipe's file \(\S+own.py\)"),
    "the end tokens": ("run/config.json", ['"<|im_end|>"', '"x"'], r"the end tokens \(\S+policy\)"),
    "a setting": ("run/config.json", ['"lr": 0.001', '"lr": 0.5'], r"settings in config.json \(lr\)"),
    "lost metrics": ("run/metrics.jsonl", None, r"metrics.jsonl \([\d,]+ bytes up to step 1 then, 0 now\)"),
    "cut metrics": ("run/metrics.jsonl", [], r"metrics.jsonl \([\d,]+ bytes up to step 1 then, \d+ now\)"),
    "cut rollouts": ("run/rollouts.jsonl", [], "rollouts.jsonl"),
    "an edited score": ("run/evaluations.jsonl", ['"train"', '"training"'], "evaluations.jsonl"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_resume_that_would_be_another_experiment_is_refused_by_what_changed(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of these went on, and nothing in the run's folder told it afterwards."""
    file, change, said = EDITS[name]
    if change is None:
        (folder / file).unlink()
    elif change:
        edit(folder / file, *change)
    else:
        shorten(folder / file)
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.json*")}
    with pytest.raises(ValueError, match=rf"because these have changed: {said}.*--accept-changes"):
        on(folder)
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*.json*")} == before


def test_adapters_go_on_beside_the_weights_that_they_were_trained_beside(
    tiny: Path, tmp_path: Path, questions: Path
) -> None:
    """And so does a KL penalty, which compares with them."""
    base = shutil.copytree(tiny, tmp_path / "base")
    for changes in ({"lora_rank": 2}, {"beta": 0.1}):
        run = tmp_path / next(iter(changes))
        train.main(options(base, questions, run, steps=1, eval_every=0, **changes))
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"] += 1
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=rf"these have changed: the weights \({base}\)\."):
            train.main(["--resume", str(run), "--steps", "2"])


def test_a_run_that_has_lost_its_checkpoints_does_not_start_over_unasked(folder: Path) -> None:
    """It did, and dropped all of its records."""
    on(folder)
    (folder / "run" / "checkpoints").rename(folder / "moved")
    with pytest.raises(ValueError, match=r"changed: checkpoints/ \(none, although 2 steps are done\)"):
        train.main(["--resume", str(folder / "run")])
    assert [row["step"] for row in records(folder / "run")] == [0, 1, 2]
    train.main(["--resume", str(folder / "run"), "--accept-changes"])
    assert [row["step"] for row in records(folder / "run")] == [0, 1, 2]


def test_changes_that_are_accepted_are_written_down_once(folder: Path) -> None:
    edit(folder / "questions.jsonl", '"q1"', '"one"')
    on(folder, "--accept-changes")
    (accepted,) = json.loads((folder / "run" / "config.json").read_text())["accepted"]
    assert accepted == {
        "after_step": 1,
        "changes": ["train questions (5 then, 5 now, not all the same)"],
    }
    train.main(["--resume", str(folder / "run"), "--steps", "3"])
    assert len(json.loads((folder / "run" / "config.json").read_text())["accepted"]) == 1


def test_an_older_run_goes_on_and_is_compared_from_then_on(folder: Path) -> None:
    """It has neither digests of its questions nor the lengths of its records."""
    path = folder / "run" / "config.json"
    config = json.loads(path.read_text())
    for name in ("questions", "judge_texts"):
        del config[name]
    config["settings"].pop("day", None)
    path.write_text(json.dumps(config))
    state = folder / "run" / "checkpoints" / "step-1" / "trainer" / "state.json"
    manifest = json.loads(state.read_text())
    state.write_text(json.dumps({name: manifest[name] for name in ("step", "files")}))
    edit(folder / "questions.jsonl", "What is 1?", "What is one?")
    on(folder)
    assert json.loads(path.read_text())["questions"]["train"]["rows"] == 5
    edit(folder / "questions.jsonl", "What is one?", "What is it?")
    with pytest.raises(ValueError, match="train questions"):
        train.main(["--resume", str(folder / "run"), "--steps", "3"])


@pytest.mark.parametrize(
    "setting", [("lr", "x"), ("steps", None), ("method", "zz"), ("judging", [1]), ("lr", -1)]
)
def test_a_setting_that_no_run_has_is_refused_by_its_name(folder: Path, setting: tuple[str, Any]) -> None:
    path = folder / "run" / "config.json"
    config = json.loads(path.read_text())
    config["settings"] |= dict([setting])
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: .*{setting[0]}.*: expected "):
        on(folder)


# --- lines that no run writes -------------------------------------------------------------------------------

DEEP = "[" * 100_000
LINES = {
    "not JSON": ("metrics", "{", "line 1: expected a JSON object with step, got '{'"),
    "deep": ("metrics", DEEP, "line 1: expected a JSON object with step, got "),
    "a list": ("rollouts", "[]", "line 1: expected a JSON object with step, got "),
    "a step that is text": (
        "rollouts",
        '{"step": "1"}',
        "line 1: field step: expected a whole number, got '1'",
    ),
    "half an object": ("rollouts", '{"step": 1}', "line 1: field example_id: expected text, got nothing"),
    "a metric that is text": (
        "metrics",
        '{"step": 1, "reward": "x"}',
        "line 1: field reward: expected a number",
    ),
    "NaN": ("metrics", '{"step": 1, "reward": NaN}', "line 1: field reward: expected a finite number"),
    "a score without its split": ("evaluations", '{"step": 0}', "line 1: field split: expected text"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_no_run_writes_is_refused_by_file_line_and_field(folder: Path, name: str) -> None:
    """Each of them was a traceback, or passed."""
    record, line, said = LINES[name]
    path = folder / "run" / f"{record}.jsonl"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:], ""]))
    with pytest.raises(ValueError) as error:
        on(folder)
    assert f"{record}.jsonl, {said}" in str(error.value)
    if record == "rollouts":
        with pytest.raises(ValueError) as error:
            show(folder / "run")
        assert f"{record}.jsonl, {said}" in str(error.value)


def test_more_verdicts_than_the_method_has_are_refused(folder: Path) -> None:
    """A replay by an overall rating put them into an array of one column."""
    rows = [json.loads(line) for line in (folder / "run" / "rollouts.jsonl").read_text().splitlines()]
    judged = Judged(*(np.zeros((len(rows), 1)),) * 2, *(np.zeros(len(rows)),) * 2)
    with pytest.raises(ValueError, match=r"step 1, 'q\d': expected at most 1 verdicts by this method"):
        replay.compare(rows, replay.groups_of(rows, 4), judged)


def test_answers_of_a_group_that_were_judged_by_other_items_are_refused(folder: Path) -> None:
    path = folder / "run" / "rollouts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[1]["verdicts"][0]
    write_rows(path, rows)
    with pytest.raises(
        ValueError, match=r"rollouts.jsonl, step 1, 'q\d': expected verdicts on the same items"
    ):
        show(folder / "run")


def test_an_answer_of_an_evaluation_without_its_verdicts_is_named(folder: Path) -> None:
    """An audit reads more of it than a resume does, and ended in a KeyError."""
    path = folder / "run" / "evaluations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[0]["verdicts"]
    write_rows(path, rows)
    with pytest.raises(
        ValueError, match=r"evaluations.jsonl, step 0, 'q\d': field verdicts: expected a list"
    ):
        audit.rows_of(folder / "run")


@pytest.mark.parametrize("number", ["1" + "0" * 400, "[" * 100_000])
def test_a_result_that_no_evaluation_writes_is_named(tmp_path: Path, number: str) -> None:
    """Numbers too large for a float, and lists too deep, ended the table in a traceback."""
    (tmp_path / "gpqa.json").write_text(f'{{"policy": "p", "rows": 1, "failed": 0, "score": {number}}}')
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected healthbench.json or gpqa.json there"):
        paper.read(tmp_path)


def test_a_recipe_with_a_quote_that_does_not_end_is_named() -> None:
    """From config.json it came as "No closing quotation" alone."""
    with pytest.raises(
        ValueError, match="^--recipe gated 'x: expected NAME or PATH.py with options, got No "
    ):
        recipe.make("gated 'x")


# --- a new folder -------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_while_its_folder_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder was left, which could neither be resumed nor be made again."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rar_mini.checkpoint.write_json", killed)
        Run.create(tmp_path / "run", {"seed": 0})
    assert not any(tmp_path.iterdir())
    Run.create(tmp_path / "run", {"seed": 0})
    assert Run.reopen(tmp_path / "run").written["settings"] == {"seed": 0}


# --- the first day ------------------------------------------------------------------------------------------

DATED = (
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now( \"%Y\" ) }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def test_a_template_shows_the_day_on_which_the_run_began(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped before midnight went on with other prompts."""
    dated = shutil.copytree(tiny, tmp_path / "dated")
    byte_tokenizer(DATED).save_pretrained(dated)
    words = options(dated, questions, tmp_path / "run", steps=1)
    train.main([*words, "--day", "2024-02-29"])
    train.main(["--resume", str(tmp_path / "run"), "--steps", "2"])
    ids = [row["prompt_ids"] for row in records(tmp_path / "run", "rollouts")]
    texts = {byte_tokenizer().decode(each)[:16] for each in ids}
    assert texts == {"29 Feb 2024 2024"}
    saved = tmp_path / "run" / "checkpoints" / "step-2" / "chat_template.jinja"
    assert saved.read_text() == DATED, "whoever loads the checkpoint has their own day"
    config = setup.settle(setup.parse(["--policy", str(tiny), "--judge", "keyword"]))[0]
    assert config.day == date.today().isoformat()
    with pytest.raises(ValueError, match="--day tomorrow: expected a date"):
        setup.parse(["--day", "tomorrow"])
