"""A run's folder, piece by piece: records, what a resume reads, what it refuses and what it says."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rar_mini import checkpoint, setup
from rar_mini.checkpoint import Run, differences, environment, load_state, records
from rar_mini.config import Config
from rar_mini.options import to_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"seed": 1})


def row(step: int, **more: object) -> dict:
    row = {"step": step, "split": "train", "example_id": "q", "prompt": "?", "response": "!", "verdicts": []}
    row |= {"rating": None, "reward": 0.5, "advantage": 0.0, "tokens": 1, "finished": True}
    return row | more


def test_a_race_for_a_folder_is_lost_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run's folder came while this one's was written; the system's words named a temporary one."""

    def late(partial: Path, written: object) -> None:
        monkeypatch.undo()
        checkpoint.write_json(partial, written)
        Run.create(tmp_path / "run", {"seed": 1})

    monkeypatch.setattr(checkpoint, "write_json", late)
    with pytest.raises(checkpoint.Taken, match="run exists and has a run in it: continue .* with --resume"):
        Run.create(tmp_path / "run", {"seed": 2})
    assert Run.reopen(tmp_path / "run").written["settings"] == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(setup.time, "strftime", lambda form: "20260102-030405")
    runs = [setup.create(setup.parse([]), {}) for _ in range(3)]
    names = [f"medical-20260102-030405{number}" for number in ("", "-2", "-3")]
    assert [run.folder.name for run in runs] == names
    assert [Run.reopen(run.folder).settings().out.name for run in runs] == names


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The system named a temporary one, and neither option nor way on."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder .*file/run: Not a directory; name another with --out$"):
        Run.create(tmp_path / "file" / "run", {})


def test_records_are_text_that_people_read(run: Run) -> None:
    """As it is, not escaped; and no NaN, which JSON does not have."""
    run.append("rollouts.jsonl", [row(1, response="früh – 早い")])
    assert "früh – 早い" in (run.folder / "rollouts.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        run.append("rollouts.jsonl", [row(2, reward=math.nan)])
    assert [r["step"] for r in records(run.folder, "rollouts.jsonl")] == [1], "half a step is none"
    run.written = {"name": "früh"}
    run.describe()
    text = (run.folder / "config.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "früh"\n}\n'
    run.written = {"rate": math.inf}
    with pytest.raises(ValueError, match="JSON"):
        run.describe()
    assert (run.folder / "config.json").read_text(encoding="utf-8") == text


def test_records_are_read_without_their_tokens(run: Run) -> None:
    """Most of a record are token ids, which hold the memory of a long run and which nobody prints."""
    run.append("rollouts.jsonl", [row(1, ids=[1], prompt_ids=[2], sampler_logp=[-0.5])])
    assert records(run.folder, "rollouts.jsonl") == [row(1)]
    assert records(run.folder, "evaluations.jsonl") == []


def test_a_question_without_a_reward_has_no_score(run: Run) -> None:
    rows = [row(0), row(0, reward=0.7), row(0, example_id="r", reward=None), row(4), row(0, split="held_out")]
    run.append("evaluations.jsonl", rows)
    q, r = run.scores("train", ["q", "r"], 0)
    assert q == pytest.approx(0.6) and math.isnan(r)


def test_the_way_on_from_a_damaged_checkpoint_is_one_that_exists(run: Run) -> None:
    for step in (2, 4):
        (run.folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"step-4 is damaged.*; continue from the one before it.*--step 2$"):
        run.start(None)
    with pytest.raises(
        ValueError, match=r"step-2 is damaged.*; delete it, and --resume .* starts the run over$"
    ):
        run.start(2)
    with pytest.raises(ValueError, match="no checkpoint of step 3: expected one of 2, 4"):
        run.start(3)


@pytest.mark.parametrize("name", ["optimizer.pt", "recipe.pt"])
def test_a_checkpoint_runs_no_code_when_it_is_read(tmp_path: Path, name: str) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "trainer").mkdir()
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    torch.save(optimizer.state_dict(), tmp_path / "trainer" / "optimizer.pt")
    torch.save({"a": Code()}, tmp_path / "trainer" / name)
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path, optimizer, {})
    assert not (tmp_path / "ran").exists()


def test_differences_are_those_of_either_side() -> None:
    then = json.loads(json.dumps(environment()))
    assert differences(then) == []
    then["versions"]["gone"] = "1.0"
    del then["versions"]["torch"], then["machine"]["ranks"]
    assert differences(then) == [
        "this run began with gone 1.0, now it is None",
        f"this run began with torch None, now it is {torch.__version__}",
    ], "a run of before there were ranks had one"


def test_a_folder_that_is_no_repository_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "checkpoint.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] is None


BOUND = """
    advantage_scale answers beta clip_high clip_low criteria_per_call cut_answers day domain dtype eval_every
    eval_questions eval_samples gold_judge group_size hygiene inner_epochs judge long_prompts lora_alpha
    lora_rank lora_save lora_targets loss_norm lr max_grad_norm max_new_tokens max_prompt_tokens max_tokens
    method mismatch_cap parse_retries pitfalls prompts_per_step resample_ties revision rubric_drop seed
    skip_bad_rows temperature threshold train_rollouts warmup weight_decay weights
"""


def test_settings_that_change_numbers_make_the_experiment() -> None:
    """A new setting stands in one of both lists: what is free may be another one after a resume."""
    assert sorted(checkpoint._bound(to_json(Config()))) == BOUND.split()


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        ({"step": 0}, False),
        ({"step": 10**9, "loss": 0.5, "grad_norm": None}, False),
        ({"step": -1}, True),
        ({"step": 10**9 + 1}, True),
        ({"step": 1, "loss": "0.5"}, True),
    ],
)
def test_a_line_has_a_step_and_numbers(row: dict, refused: bool) -> None:
    if refused:
        with pytest.raises(ValidationError):
            checkpoint.Row.model_validate_json(json.dumps(row))
    else:
        read = checkpoint.Row.model_validate_json(json.dumps(row))
        assert {"step": read.step} | read.model_extra == row


def test_settings_of_another_type_are_refused_and_not_converted(tmp_path: Path) -> None:
    for steps, refused in ((4, False), ("4", True), (4.0, True)):
        run = Run(tmp_path, {"settings": to_json(Config()) | {"steps": steps}})
        if refused:
            with pytest.raises(ValueError, match="steps"):
                run.settings()
        else:
            assert run.settings().steps == 4


def test_a_run_that_starts_over_keeps_no_line(run: Run) -> None:
    """Those of step 0, the scores before training, are taken again."""
    run.append("metrics.jsonl", [{"step": n} for n in range(3)])
    again = Run.reopen(run.folder)
    again.written["settings"] = to_json(Config(save_every=0))
    again.accepts = True
    again.go_on(None, to_json(Config(save_every=0)))
    assert (run.folder / "metrics.jsonl").read_text() == ""
    assert [(e["after_step"], len(e["changes"])) for e in again.written["accepted"]] == [(0, 1)]


def test_the_last_steps_of_a_record_are_read_from_where_they_begin(run: Run) -> None:
    """A long run has gigabytes before them."""
    run.append("rollouts.jsonl", [row(n, reward=0.1 * k) for n in range(1, 5) for k in range(2)])
    run._size("rollouts.jsonl", 10)  # as go_on does: it finds where steps begin
    for last, steps in ((1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (0, [1, 2, 3, 4])):
        read = list(run.steps("rollouts.jsonl", last) if last else run.steps("rollouts.jsonl"))
        assert [[line["step"] for line in lines] for lines in read] == [[n, n] for n in steps]


def test_lines_are_checked_up_to_the_step_that_counts(run: Run) -> None:
    """What comes after it goes at a resume, and half of it may be lost."""
    bad = row(2) | {"advantage": "none"}
    (run.folder / "rollouts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (row(1), bad)))
    assert [line["step"] for line, _ in checkpoint.each_record(run.folder, "rollouts.jsonl", 1)] == [1, 2]
    with pytest.raises(ValueError, match="line 2.*advantage"):
        list(checkpoint.each_record(run.folder, "rollouts.jsonl", 2))


def test_what_has_changed_is_named_and_what_nobody_wrote_down_is_not() -> None:
    now = {"recipe": "b", "base": 2, "end_tokens": ["<end>"]}
    settings = {"settings": {"recipe": "cosine", "policy": "tiny"}}
    assert checkpoint._changes(settings, now) == []
    assert checkpoint._changes(settings | now, now) == []
    assert checkpoint._changes(settings | now | {"recipe": "a"}, now) == ["the recipe's file (cosine)"]
    assert checkpoint._changes(settings | {"base": 1, "end_tokens": []}, now) == [
        "the weights (tiny)",
        "the end tokens (tiny)",
    ]


@pytest.mark.parametrize(
    ("every", "steps", "lost"),
    [
        (0, [], 0),
        (1, [], 0),
        (1, [0, 1], 0),
        (1, [0, 1, 2], 2),
        (2, [0, 1, 2], 0),
        (0, [0], 0),
        (0, [0, 1], 1),
    ],
)
def test_a_checkpoint_is_missed_when_one_was_due(run: Run, every: int, steps: list[int], lost: int) -> None:
    """A run may be killed between the record of a step and its checkpoint: nothing is missing then. The
    record is read for its steps alone: it will be empty."""
    run.written["settings"] = to_json(Config(save_every=every))
    lines = [{"step": n, "loss": "no number"} for n in steps]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    said = [f"checkpoints/ (none, although {lost} steps are done)"] if lost else []
    assert checkpoint._losses(run, None, {}) == said


def test_a_record_that_lost_lines_is_named(run: Run) -> None:
    run.written["settings"] = to_json(Config())
    step = run.folder / "checkpoints" / "step-3"
    (step / "trainer").mkdir(parents=True)
    manifest = {
        "step": 3,
        "files": {},
        "records": {"metrics.jsonl": 100, "rollouts.jsonl": 50, "older.jsonl": 9},
    }
    (step / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    kept = {"metrics.jsonl": 100, "rollouts.jsonl": 50}
    assert checkpoint._losses(run, step, kept) == []
    assert checkpoint._losses(run, step, kept | {"rollouts.jsonl": 49}) == [
        "rollouts.jsonl (50 bytes up to step 3 then, 49 now)"
    ]
