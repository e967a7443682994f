"""A judge that is kinder to its own answers shows, and one that is not does not."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hostile import Server
from numpy import ndarray
from test_evaluate import saying
from tiny import question, write_rows

from rar_mini.evaluation.agreement import resampled
from rar_mini.evaluation.preference import Asked, bias, relation, whose

pytestmark = pytest.mark.usefixtures("folder")


def synthetic(own_over: float, over: float = 0.3, N: int = 6000) -> Asked:
    """A judge that overestimates failed items of others at one rate and its own at another. Own answers fail
    more often, which must not look like kindness among failures."""
    random = np.random.default_rng(0)
    who = np.where(np.arange(N) % 2 == 0, "own", "other")
    truth = (random.random(N) < np.where(who == "own", 0.5, 0.7)).astype(float)
    met = np.maximum(truth, random.random(N) < np.where(who == "own", own_over, over)).astype(float)
    return Asked(met, truth, who, [f"q{n // 10}" for n in range(N)], {})


def measured(asked: Asked, failures: bool) -> tuple[float, float]:
    """The bias, and its standard error by the interval."""
    found = resampled(asked.question, bias(asked, failures=failures))
    return found["value"], (found["high"] - found["low"]) / 4


def test_an_unbiased_judge_has_none_among_failures() -> None:
    value, error = measured(synthetic(0.3), failures=True)
    assert abs(value) < 2 * error < 0.06


def test_kindness_is_found() -> None:
    value, error = measured(synthetic(0.5), failures=True)
    assert abs(value - 0.2) < 2 * error < 0.06


def test_the_rate_over_all_items_grows_with_the_failures() -> None:
    """.5 x .3 of own items and .3 x .3 of others' are overestimated, without any kindness."""
    value, error = measured(synthetic(0.3), failures=False)
    assert abs(value - 0.06) < 2 * error


def test_what_the_judge_failed_at_counts_for_nothing() -> None:
    asked = synthetic(0.5, N=400)
    everything: ndarray = np.arange(400)
    asked.met[::3] = np.nan
    kept = np.flatnonzero(~np.isnan(asked.met))
    assert bias(asked)(everything) == bias(asked)(kept)


@pytest.mark.parametrize(
    ("judge", "policy", "whose"),
    [
        ("chat:gpt-4o-mini", "chat:gpt-4o-mini", "own"),
        ("chat:gpt-4o-mini", "chat:gpt-4.1", "family"),
        ("local:Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B", "own"),
        ("chat:qwen3-8b", "Qwen/Qwen2.5-7B", "family"),
        ("chat:gpt-4o-mini", "smollm2-135m", "other"),
        ("keyword", "smollm2-135m", "other"),
    ],
)
def test_whose_answers_they_are(judge: str, policy: str, whose: str) -> None:
    assert relation(judge, policy) == whose


@pytest.mark.parametrize(
    ("judge", "policy", "expected"),
    [
        ("local:RUN/checkpoints/step-12", "RUN", "own"),
        ("local:RUN/checkpoints/step-12", "./RUN/checkpoints/step-12", "own"),
        ("local:RUN/checkpoints/step-12", "RUN/checkpoints/step-8", "family"),
        ("local:RUN/checkpoints/step-12", "smollm2-135m", "family"),
        ("local:smollm2-135m", "RUN", "family"),
        ("local:RUN/checkpoints/step-12", "LATER", "family"),
        ("local:RUN/checkpoints/step-12", "FOREIGN", "other"),
        ("local:RUN/checkpoints/step-12", "Qwen/Qwen2.5-7B", "other"),
        ("chat:gpt-4o-mini", "RUN", "other"),
        ("local:smollm2-135m", "smollm2-135m", "own"),
    ],
)
def test_a_run_is_of_the_family_of_the_model_that_it_began_as(
    judge: str, policy: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three runs have a checkpoint of the same name. LATER began as RUN, FOREIGN as another model."""
    monkeypatch.chdir(tmp_path)
    bases = {"RUN": "smollm2-135m", "LATER": "RUN/checkpoints/step-12", "FOREIGN": "Qwen/Qwen2.5-7B"}
    for run, base in bases.items():
        for step in (8, 12):
            Path(run, "checkpoints", f"step-{step}").mkdir(parents=True)
        Path(run, "config.json").write_text(json.dumps({"settings": {"seed": 0, "policy": base}}))
    assert whose(judge, policy) == expected


def test_the_command_judges_without_the_checks(server: Server, command: Command, tmp_path: Path) -> None:
    """The judge says yes to every answer that has its own mark."""
    item = {
        "title": "Yes",
        "description": "Essential Criteria: Says yes.",
        "weight": 5,
        "check": {"contains": "yes"},
    }
    data = write_rows(tmp_path / "rows.jsonl", [question(n, rubric=[item]) for n in range(4)])
    server.reply = saying(lambda response, asked: float("mark" in response))
    files = {}
    for name, text in {"m-1": "no, mark", "m-2": "no", "other": "no"}.items():
        rows = [{"prompt_id": f"q{n}", "response": text} for n in range(4)]
        files[name] = write_rows(tmp_path / f"{name}.jsonl", rows)
    words = ("--judge", "systemone:m-1", "--data", data, "--no-cache", "--answers-of")
    done = command("evaluate.py", "judge", *words, *(f"{name}={file}" for name, file in files.items()))
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers_of"] == {
        f"{n}={f}": w for (n, f), w in zip(files.items(), ("own", "family", "other"), strict=True)
    }
    assert found["all"]["own"]["value"] == 1.0 and found["all"]["family"]["value"] == 0.0
    assert found["of failures"]["own"]["value"] == 1.0 and found["negative items"]["own"]["value"] is None
    done = command("evaluate.py", "judge", *words, f"other={files['other']}")
    assert done.returncode and "expected answers by the judge's model or its family" in done.stderr
