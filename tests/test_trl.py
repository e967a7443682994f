"""The way out: the judge as TRL's reward function and as verl's, by the very lines that README shows."""

import json
import os
import re
import shutil
import site
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import question, write_rows
from hostile import Server, shared

import train
from judge import Judge, Scores, as_trl_reward, finite
from rar_mini import data, grpo

ROOT = Path(__file__).parents[1]
TRL = "trl==1.16.0"


@pytest.fixture
def examples(questions: Path) -> list[data.Example]:
    return data.read(questions)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat model that rates by the number of characters, and refuses every third number."""

    def text(body: dict) -> str:
        return shared(body["messages"][-1]["content"])

    server = Server(reply=lambda path, body: json.dumps({"reason": "r", "rating": 1 + len(text(body)) % 10}))
    server.fault = lambda path, body, number: "refusal" if len(text(body)) % 3 == 0 else None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    yield server
    server.close()


def snippet(word: str) -> str:
    """The one piece of Python in README that has this word."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/leaving.md").read_text(encoding="utf-8"), re.M | re.S
    )
    (found,) = (block for block in blocks if word in block)
    return found


def swapped(code: str, words: dict[str, str]) -> str:
    """Code with other words for some of its own, each of which stands in it once."""
    for old, new in words.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


SERVED = {'"keyword", "rar-explicit"': '"chat:m", "rar-implicit", cache=False'}
"""From README's judge to one that asks a server."""


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


# --- verl ---------------------------------------------------------------------------------------------------


def verl(code: str) -> Callable[..., float]:
    """The function that verl would find in a file."""
    module: dict[str, Any] = {}
    exec(code, module)
    return module["compute_score"]


def test_readmes_function_for_verl() -> None:
    score = verl(snippet("def compute_score"))
    for example in data.sample("medical")[:3]:
        for answer in ("Rest.", example.reference):
            found = score(data_source="x", solution_str=answer, ground_truth=example.id, extra_info={})
            expected = grpo.reward(Judge("keyword", "rar-explicit").score([example], [[answer]])).item()
            assert found == expected and isinstance(found, float)


def test_a_failure_is_no_score_in_verl(server: Server) -> None:
    """It has no None: its groups' means are plain ones, and a 0 would be a lie."""
    score = verl(swapped(snippet("def compute_score"), SERVED))
    assert score("x", "xxxx", "medical-001") == pytest.approx(4 / 9)
    with pytest.raises(RuntimeError, match="refused"):
        score("x", "xxx", "medical-001")


# --- the real TRL -------------------------------------------------------------------------------------------

DUMP = """
import json, pathlib, pandas

tables = [pandas.read_parquet(path) for path in sorted(pathlib.Path("runs/trl/completions").iterdir())]
rows = json.loads(pandas.concat(tables).to_json(orient="records", double_precision=15))
pathlib.Path("told.json").write_text(json.dumps([trainer.state.log_history, rows]))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment with TRL. It sees the packages of this one, so that torch is not there
    twice, and leaves them as they are."""
    folder = tmp_path_factory.mktemp("trl") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python, (place,) = folder / "bin" / "python", folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (place / "outer.pth").write_text("".join(lines))
    subprocess.run([python, "-m", "pip", "-q", "install", TRL], check=True)
    yield python
    shutil.rmtree(folder)  # about 300 MB


def trained(python: Path, folder: Path, code: str) -> tuple[list[dict], list[dict]]:
    """Run README's lines: TRL's log, a row a step, and its table of completions, null where it has NaN."""
    (folder / "way_out.py").write_text(code + DUMP)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "way_out.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    log, rows = json.loads((folder / "told.json").read_text())
    return [row for row in log if "reward" in row], rows


def rewards(asker: Judge, rows: list[dict]) -> list[float | None]:
    """What a judge itself says of TRL's completions."""
    examples = {example.question: example for example in data.sample("medical")}
    asked = [examples[row["prompt"][-1]["content"]] for row in rows]
    scores = asker.score(asked, [[row["completion"][0]["content"]] for row in rows])
    return [finite(reward) for reward in grpo.reward(scores)[:, 0].tolist()]


@pytest.mark.slow
def test_readmes_lines_train_the_default_policy_in_trl(outside: Path, default: Path, tmp_path: Path) -> None:
    log, rows = trained(outside, tmp_path, snippet("GRPOTrainer("))
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
    log, rows = trained(outside, tmp_path, swapped(snippet("GRPOTrainer("), SERVED | policy))
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
