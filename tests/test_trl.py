"""The way out to TRL: the judge as its reward function, by the very lines of docs/leaving.md."""

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import Server
from leaving import SERVED, make_environment, rating, run, snippet, swapped
from tiny import question, write_rows

import train
from judge import Judge, Scores, as_trl_reward, finite
from rar_mini import data, grpo

TRL = "trl==1.16.0"


@pytest.fixture
def examples(questions: Path) -> list[data.Example]:
    return data.read(questions)


@pytest.fixture
def server(server: Server) -> Server:
    return rating(server)


class Recorder(Judge):
    """Keeps what it was asked, as (ids, responses)."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.asked: list[tuple[list[str], list[list[str]]]] = []

    def score(self, examples: Any, responses: Any, **options: Any) -> Scores:
        self.asked.append(([example.id for example in examples], responses))
        return super().score(examples, responses, **options)


# --- the function -------------------------------------------------------------------------------------------


def test_a_step_is_judged_as_in_training(examples: list[data.Example]) -> None:
    """P x G in one call: a local judge reads a question once for all of its group."""
    recorder = Recorder("keyword", "rar-explicit")
    responses = [["b c d", "b"], ["fever", "aspirin"], ["", "k l"]]
    turns = [[{"role": "assistant", "content": text}] for group in responses for text in group]
    names = [name for name in ("q3", "q0", "q1") for _ in range(2)]
    reward = as_trl_reward(recorder, examples)
    found = reward(prompts=None, completions=turns, completion_ids=None, id=names, trainer_state=None)
    assert recorder.asked == [(["q3", "q0", "q1"], responses)]
    scores = Judge("keyword", "rar-explicit").score([examples[i] for i in (3, 0, 1)], responses)
    expected = grpo.reward(scores)
    assert found == expected.flatten().tolist() and len(set(found)) > 3
    assert reward.__name__ == "rar-explicit/keyword"


def test_groups_of_any_size_in_any_order(tmp_path: Path) -> None:
    """Processes cut groups where they like, and a question can come twice in a batch."""
    rows = [
        question(i, rubric=[{"title": c, "description": f"Essential Criteria: Mentions {c}.", "weight": 1}])
        for i, c in enumerate("bcd")
    ]
    recorder = Recorder("keyword", "rar-explicit")
    reward = as_trl_reward(recorder, data.read(write_rows(tmp_path / "rows.jsonl", rows)))
    names = "q2 q0 q1 q0 q2 q0 q1 q0".split()
    texts = ["b", "b", "c", "x", "d", "b d", "b", "c b"]
    assert reward(completions=texts, id=names) == [0, 1, 1, 0, 1, 1, 0, 1]
    assert recorder.asked == [
        (["q2", "q1"], [["b", "d"], ["c", "b"]]),  # together, as they are alike in size
        (["q0"], [["b", "x", "b d", "c b"]]),
    ]
    assert reward(completions=["d", "d"], id=["q0", "q2"]) == [0, 1]
    assert reward(completions=[], id=[]) == []


def test_only_what_the_policy_says_at_last_is_judged(examples: list[data.Example]) -> None:
    """A turn that calls a tool has no content at all, and None for it in some templates."""
    recorder = Recorder("keyword", "rar-explicit")
    call, tool = {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "b"}
    turns = [
        [call, tool, {"role": "assistant", "content": "c"}],
        [call],
        [{"role": "assistant", "content": None}],
    ]
    as_trl_reward(recorder, examples)(completions=turns, id=["q0"] * 3)
    assert recorder.asked == [(["q0"], [["c", "", ""]])]


def test_a_failure_is_none_and_is_counted(server: Server, examples: list[data.Example]) -> None:
    asker = Judge("chat:m", "rar-implicit", cache=False)
    told: dict[str, float] = {}
    texts, names = ["x", "xxx", "xxxx", "xxxxx", "xxxxxx", "xxxxxxx"], ["q0"] * 3 + ["q1"] * 3
    found = as_trl_reward(asker, examples)(completions=texts, id=names, log_metric=told.__setitem__)
    assert found == pytest.approx([1 / 9, None, 4 / 9, 5 / 9, None, 7 / 9])
    assert told["judge/failures"] == 2 == told["judge/failures/refused"] and told["judge/questions"] == 6
    asker.close()


def test_examples_that_cannot_be_told_apart_or_served_are_refused(
    server: Server, questions: Path, tmp_path: Path
) -> None:
    """Rows without an id are named by their line, so that two files share names: line-1 would be judged by
    the other file's rubric."""
    examples = data.read(questions)
    with pytest.raises(ValueError, match="7 ids for 14"):
        as_trl_reward(Judge("keyword", "rar-explicit"), examples * 2)
    with pytest.raises(ValueError, match="was given, got 0"):
        as_trl_reward(Judge("keyword", "rar-explicit"), examples)(completions=["b"], id=[0])
    bare = data.read(write_rows(tmp_path / "bare.jsonl", [question(0, reference_answer=None)]))
    with pytest.raises(ValueError, match="needs a reference answer"):
        as_trl_reward(Judge("chat:m", "reference-likert"), bare)


# --- the real TRL -------------------------------------------------------------------------------------------

DUMP = """
import json, pathlib, pandas

if trainer.is_world_process_zero():
    tables = [pandas.read_parquet(path) for path in sorted(pathlib.Path("runs/trl/completions").iterdir())]
    rows = json.loads(pandas.concat(tables).to_json(orient="records", double_precision=15))
    pathlib.Path("told.json").write_text(json.dumps([trainer.state.log_history, rows]))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment with TRL."""
    folder = tmp_path_factory.mktemp("trl") / "env"
    yield make_environment(folder, TRL)
    shutil.rmtree(folder)  # about 130 MB


def trained(python: Path, folder: Path, code: str, *launcher: str) -> tuple[list[dict], list[dict], str]:
    """Run the page's lines: TRL's log, a row a step; its table of completions, null where it has NaN; and
    what was printed."""
    (folder / "way_out.py").write_text(code + DUMP)
    done = run(folder, python, *launcher, "way_out.py")
    log, rows = json.loads((folder / "told.json").read_text())
    return [row for row in log if "reward" in row], rows, done.stdout


def rewards(asker: Judge, rows: list[dict]) -> list[float | None]:
    """What a judge itself says of TRL's completions."""
    examples = {example.question: example for example in data.sample("medical")}
    asked = [examples[row["prompt"][-1]["content"]] for row in rows]
    scores = asker.score(asked, [[row["completion"][0]["content"]] for row in rows])
    return [finite(reward) for reward in grpo.reward(scores)[:, 0].tolist()]


@pytest.mark.slow
def test_readmes_lines_train_the_default_policy_in_trl(outside: Path, default: Path, tmp_path: Path) -> None:
    log, rows, _ = trained(outside, tmp_path, snippet("GRPOTrainer("))
    name = "rar-explicit/keyword"
    assert len(log) == 3 and len(rows) == 24
    expected = rewards(Judge("keyword", "rar-explicit"), rows)
    assert [row[name] for row in rows] == pytest.approx(expected) and len(set(expected)) > 5
    for step, entry in enumerate(log):
        mean = statistics.fmean(expected[8 * step : 8 * step + 8])
        assert entry[f"rewards/{name}/mean"] == pytest.approx(mean) == entry["reward"]
        assert entry["grad_norm"] > 0 and entry["judge/failures"] == 0 < entry["judge/questions"]


@pytest.mark.slow
def test_a_failure_is_no_score_in_trl_which_trains_a_checkpoint_of_ours(
    server: Server, outside: Path, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    """A None that became 0 would pull its group's mean down and be punished."""
    words = f"--policy {tiny} --data {questions} --out {tmp_path / 'run'} --judge keyword --steps 1"
    train.main(f"{words} --prompts-per-step 2 --group-size 4 --max-new-tokens 8 --eval-every 0".split())
    policy = {
        'str(pretrained.resolve("smollm2-135m"))': repr(str(tmp_path / "run" / "checkpoints" / "step-1"))
    }
    log, rows, _ = trained(outside, tmp_path, swapped(snippet("GRPOTrainer("), SERVED | policy))
    asker = Judge("chat:m", "rar-implicit", cache=False)
    expected = rewards(asker, rows)
    asker.close()
    found = [row["rar-implicit/chat:m"] for row in rows]
    assert found == pytest.approx(expected) and 2 < found.count(None) < 22
    assert [entry["judge/failures"] for entry in log] == [found[i : i + 8].count(None) for i in (0, 8, 16)]
    for start in range(0, 24, 4):
        group = rows[start : start + 4]
        scored = [row["advantage"] for row in group if row["rar-implicit/chat:m"] is not None]
        assert all(row["advantage"] == 0 for row in group if row["rar-implicit/chat:m"] is None)
        assert sum(scored) == pytest.approx(0, abs=1e-4)
    assert any(row["advantage"] for row in rows)


LAUNCHER = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0".split()


@pytest.mark.slow
def test_two_processes_of_trl_judge_a_group_together(
    server: Server, outside: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has two of a group's four answers, and a judge of its own with half of the limits. TRL's log has
    means over processes. What both were told lies in one cache: whoever asks again only asks what failed."""
    monkeypatch.setenv("RAR_MINI_CACHE", str(tmp_path / "cache"))
    small = {
        'str(pretrained.resolve("smollm2-135m"))': repr(str(tiny)),
        "max_steps=3": "max_steps=6, per_device_train_batch_size=2",
        'Judge("keyword", "rar-explicit")': 'judge := Judge("chat:m", "rar-implicit", concurrency=6)',
    }
    code = swapped(snippet("GRPOTrainer("), small)
    code += "print(f'at once: {judge.server.endpoint.concurrency}.', end='')\n"
    log, rows, output = trained(outside, tmp_path, code, *LAUNCHER)
    assert output.count("at once: 3.") == 2
    answers = server.served[None]
    asker = Judge("chat:m", "rar-implicit")
    expected = rewards(asker, rows)
    asker.close()
    assert server.served[None] == answers
    name = "rar-implicit/chat:m"
    column = [row[name] for row in rows]
    assert len(log) == 6 and len(rows) == 24
    assert column == pytest.approx(expected) and 2 < column.count(None) < 22
    for step, entry in enumerate(log):
        group = rows[4 * step : 4 * step + 4]
        scored = [row["advantage"] for row in group if row[name] is not None]
        assert len({row["prompt"][-1]["content"] for row in group}) == 1
        assert 2 * entry["judge/questions"] == 4
        assert 2 * entry["judge/failures"] == 4 - len(scored)
        assert all(row["advantage"] == 0 for row in group if row[name] is None)
        assert sum(scored) == pytest.approx(0, abs=1e-4)
    assert any(row["advantage"] for row in rows)
