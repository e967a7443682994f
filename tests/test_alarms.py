"""Each alarm sounds in a run that deserves it, once, and not in one that does not."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hostile import Server, says
from test_train import options, records
from test_wiring import loud

from rar_mini import alarms, report

CUT, LENGTH = "completions/clipped_ratio", "completions/mean_length"
APART = "eval/gold_disagreement"
EVAL = "eval/held_out_reward", "eval/held_out_gold_reward"


def steps(name: str, *numbers: float | None) -> list[dict]:
    """A metric step by step, after the score at step 0."""
    return [{"step": 0}, *({"step": n, name: x} for n, x in enumerate(numbers, 1))]


def scores(*pairs: tuple[float, float | None]) -> list[dict]:
    """What the training's judge and gold say at one score after another."""
    return [{"step": 8 * n} | dict(zip(EVAL, pair, strict=True)) for n, pair in enumerate(pairs)]


def entropies(*numbers: float, **more: float) -> list[dict]:
    return [row | more for row in steps("entropy", *numbers)]


def items(contradicted: float, repeated: int) -> list[dict]:
    return [{"step": 1, "items/contradicted": contradicted, "items/repeated": repeated}]


DESERVED = {
    "cut": [steps(CUT, 0, 0.4, 0.5, 0.6, 0.6)],
    "too_easy": [steps("frac_ties_right", 0, 0.5, 1, 0.5, 0.5)],
    "too_hard": [steps("frac_ties_wrong", 1, 1, 1, 1)],
    "gold_falls": [
        scores((0.3, 0.3), (0.35, 0.35), (0.4, 0.25)),
        [row | {"eval/held_out_gold2_reward": 0.6 - row[EVAL[0]]} for row in scores((0.3, 0.3), (0.4, 0.4))],
    ],
    "gold_parts": [steps(APART, 0.05, 0.1, 0.2)],
    "longer": [steps(LENGTH, 50, 50, 50, 50, 90, 100, 110, 110)],
    "certain": [entropies(2.0, 2.0, 2.0, 2.0, 0.3, 0.3, 0.3, 0.3, reward=0.5)],
    "contradicts": [items(0.11, 20)],
}
UNDESERVED = {
    "cut": [steps(CUT, 1, 1, 1), steps(CUT, 1, 1, 0, 0, 1, 1), steps(CUT, 1, None, 1, 1)],
    "too_easy": [steps("frac_ties_wrong", 1, 1, 1, 1), steps("frac_ties_right", 1, 0, 1, 0)],
    "too_hard": [steps("frac_ties_right", 1, 1, 1, 1), steps("frac_ties_wrong", 1, 0, 1, 0)],
    "gold_falls": [
        [],
        scores((0.3, 0.3)),
        scores((0.3, None), (0.4, 0.2)),  # the first time gold failed: there is nothing to compare with
        scores((0.3, 0.3), (0.4, 0.29)),  # noise
        scores((0.3, 0.3), (0.3, 0.2)),
        scores((0.3, 0.3), (0.4, 0.4)),
        steps("eval/held_out_reward", 0.3, 0.4),  # no gold judge
    ],
    "gold_parts": [
        steps(APART, 0.4, 0.4, 0.45),  # they never agreed: one of them is strict
        steps(APART, 0.3, 0.1, 0.3),
        steps(APART, None, 0.3),
        steps(EVAL[1], 0.1, 0.5),  # one gold judge
    ],
    "longer": [steps(LENGTH, 50, 50, 50, 50, 90, 90, 90, 90), steps(LENGTH, 10, 20, 40, 80, 160, 320)],
    "certain": [
        entropies(2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5, reward=0.5),
        entropies(0, 0, 0, 0, 0, 0, 0, 0, reward=0.5),
        entropies(2.0, 2.0, 2.0, 2.0, 0.3, 0.3, 0.3, 0.3),  # --method sft, which is to make it fall
    ],
    "contradicts": [items(0.1, 20), items(1.0, 19), [{"step": 1}]],
}


def sounding(rows: list[dict]) -> set[str]:
    """The alarms that a run's metrics set off, at any of its steps."""
    heard = (rows[:n] for n in range(1, len(rows) + 1))
    return {alarm.__name__ for until in heard for alarm in alarms.ALARMS if alarm(until)}


@pytest.mark.parametrize("name", [alarm.__name__ for alarm in alarms.ALARMS])
def test_an_alarm_sounds_if_it_is_deserved_and_only_then(name: str) -> None:
    for rows in DESERVED[name]:
        assert sounding(rows) == {name}
    for rows in UNDESERVED[name]:
        assert name not in sounding(rows)


@pytest.mark.parametrize("alarm", alarms.ALARMS, ids=lambda alarm: alarm.__name__)
def test_an_alarm_names_its_metric_and_stands_in_the_docs(alarm: alarms.Sign) -> None:
    words = alarm(DESERVED[alarm.__name__][0])
    docs = Path(__file__).parents[1] / "docs"
    named = {name for name in ("completions/", "frac_ties", "eval/", "entropy", "items/") if name in words}
    assert named and any(word in words for word in ("--", "Bring"))
    assert f"| `{alarm.__name__}` |" in (docs / "runs.md").read_text(encoding="utf-8")


# --- the metrics behind them --------------------------------------------------------------------------------


def judged(name: str, response: str, verdict: float, **more: object) -> dict:
    verdicts = [{"title": "t", "category": "essential", "weight": 1.0, "verdict": verdict}]
    return {"example_id": name, "response": response, "verdicts": verdicts} | more


def test_a_contradiction_needs_the_same_question_item_and_answer() -> None:
    rows = [judged("a", "x", 1.0), judged("a", "x", 0.2), judged("b", "x", 0.0), judged("a", "y", 0.0)]
    assert report.verdicts([rows[:1], rows[1:]])["items/contradicted"] == 1.0
    assert "items/contradicted" not in report.verdicts([rows[1:]]), "no answer came again"
    agreed = report.verdicts([[judged("a", "x", 0.6), judged("a", "x", 0.9), *rows[2:]]])
    assert agreed["items/repeated"] == 1 and agreed["items/contradicted"] == 0
    made = [judged("a", "x", verdict, rubric=[]) for verdict in (0.0, 1.0)]
    assert "items/repeated" not in report.verdicts([made]), "a rubric of their own may ask otherwise"
    checked = [judged("a", "x", 1.0), judged("a", "x", 1.0)]
    for row in checked:
        row["verdicts"][0]["checked"] = True
    assert "items/repeated" not in report.verdicts([checked]), "a rule gave it, which always agrees"


# --- in a run -----------------------------------------------------------------------------------------------


def test_an_alarm_is_said_once_also_after_a_resume(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """The random policy never ends its answers within 12 tokens."""
    run = tmp_path / "run"
    first = loud(options(tiny, questions, run, steps=6, eval_every=0, save_every=1, keep=6))
    assert len(re.findall(r"^alarm    \d+% of the last answers were cut", first, re.M)) == 1
    row = {row["alarm"]: row for row in records(run, "alarms")}["cut"]
    assert row["step"] == alarms.WINDOW and row["says"] in first
    text = (run / "alarms.jsonl").read_text()
    assert "answers were cut" not in loud(["--resume", str(run), "--steps", "7"])
    # From a step before the alarm it is said again, because that step is done again.
    assert "answers were cut" in loud(["--resume", str(run), "--step", "2", "--steps", "7"])
    assert (run / "alarms.jsonl").read_text() == text and json.loads(text.splitlines()[0])


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_a_judge_that_changes_its_mind_is_noticed_without_the_cache(
    tiny: Path, tmp_path: Path, questions: Path, folder: Path, server: Server, cache: str
) -> None:
    """A policy that hardly moves answers alike in both steps, and the server takes back what it said first.
    With the cache it is not asked again, so that nothing can differ."""
    asked: Counter[str] = Counter()

    def second_thoughts(path: str, body: dict) -> str:
        asked[json.dumps(body)] += 1
        return says("yes" if asked[json.dumps(body)] == 1 else "no")(path, body)

    server.reply = second_thoughts
    how = {"judge": "chat:m", "criteria_per_call": "all", "steps": 2, "prompts_per_step": 5, "eval_every": 0}
    how |= {"temperature": 1e-3, "lr": 1e-9}
    run = tmp_path / "run"
    said = loud([*options(tiny, questions, run, **how), cache])
    last = records(run)[-1]
    assert last["items/repeated"] >= alarms.REPEATED
    assert bool(last["items/contradicted"]) == (cache == "--no-cache")
    assert ("the judge contradicts itself on" in said) == (cache == "--no-cache")
