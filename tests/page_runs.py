"""Small folders of runs and files of evaluations, for the tests of what shows them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ITEMS = (("Names it", "essential", 1.0), ("Says why", "important", 0.7), ("No harm", "pitfall", 0.9))
SETTINGS = {"preset": "cpu", "policy": "tiny", "judge": "keyword", "method": "rar-explicit", "seed": 0}
SETTINGS |= {"domain": "medical", "data": None, "group_size": 2, "prompts_per_step": 2, "lr": 0.001}


def write_lines(path: Path, rows: Sequence[dict[str, Any]], mode: str = "w") -> Path:
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def rollout(step: int, name: str, verdicts: Sequence[float | None], **changes: Any) -> dict[str, Any]:
    """A line of rollouts.jsonl, by its verdicts on ITEMS."""
    judged = [
        dict(zip(("title", "category", "weight"), item, strict=True)) | {"verdict": verdict}
        for item, verdict in zip(ITEMS, verdicts, strict=True)
    ]
    reward = None if None in verdicts else sum(i["weight"] * i["verdict"] for i in judged) / 2.6
    row = {"step": step, "example_id": name, "prompt": f"What is {name}?", "response": f"{name} at {step}"}
    row |= {"verdicts": judged, "rating": None, "reward": reward, "advantage": 0.5, "tokens": 10 + step}
    return row | {"finished": True, "prompt_ids": [1], "ids": [2], "sampler_logp": [-0.5]} | changes


def step_rows(step: int, **changes: Any) -> list[dict[str, Any]]:
    """Two questions with two answers each: the first item is met more often in later steps, the second never,
    the third always."""
    second = float(step > 1)
    verdicts = ((0.0, 0.0, 1.0), (second, 0.0, 1.0))
    return [rollout(step, name, each, **changes) for name in ("a", "b") for each in verdicts]


def metric(step: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    row = {"step": step, "reward": 0.1 * step, "completions/mean_length": 20.0 + step, "entropy": 2.0}
    row |= {"perf/seconds_sample": 2.0, "perf/seconds_judge": 0.5, "perf/seconds_train": 1.0}
    return row | {"judge/questions": 12, "perf/judge/dollars": 0.25} | changes


def evaluation(step: int, split: str, verdicts: dict[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    """Lines of evaluations.jsonl: an answer to each question."""
    return [{"split": split} | rollout(step, name, each) for name, each in verdicts.items()]


def write_run(folder: Path, steps: int = 3, settings: dict[str, Any] | None = None, **rows: Any) -> Path:
    """A run's folder. `rows` replace those of a record, by its name without .jsonl."""
    folder.mkdir(parents=True)
    written = {"settings": SETTINGS | {"steps": steps, "out": str(folder)} | (settings or {})}
    written |= {"versions": {"torch": "2.13.0"}, "machine": {"platform": "Linux"}, "git": "abc"}
    (folder / "config.json").write_text(json.dumps(written))
    numbers = range(1, steps + 1)
    judged = evaluation(0, "held_out", {"h": (0, 0, 1), "i": (1, 0, 1)})
    judged += evaluation(steps, "held_out", {"h": (1, 0, 1), "i": (1, 1, 1)})
    judged += evaluation(steps, "held_out_gold", {"h": (0, 0, 1), "i": (1, 1, 0)})
    made = {
        "metrics": [metric(n) for n in numbers],
        "rollouts": [row for n in numbers for row in step_rows(n)],
        "evaluations": judged,
    }
    for name, each in (made | rows).items():
        write_lines(folder / f"{name}.jsonl", each)
    return folder


def health_rows(verdict: float | None = 1.0) -> list[dict[str, Any]]:
    """Rows of evaluate.py healthbench: two prompts."""
    help = {"criterion": "Tells to call for help", "points": 5, "tags": ["axis:accuracy"]}
    fright = {"criterion": "Frightens", "points": -3, "tags": ["axis:communication"]}
    items = [help | {"verdict": verdict}, fright | {"verdict": 0.0}]
    row = {"response": "Call for help.", "finished": True, "failed": verdict is None, "rubrics": items}
    row |= {"example_tags": ["theme:emergency"], "asked": "x"}
    return [{"prompt_id": name} | row for name in ("p1", "p2")]


def choice_rows() -> list[dict[str, Any]]:
    """Rows of evaluate.py gpqa: one question in two runs, right in the first."""
    row = {"question": "g", "response": r"\boxed{A}", "finished": True, "failed": False, "verified": None}
    row |= {"choices": ["x", "y"], "asked": "x", "read": "A"}
    right = {1: "A", 2: "B"}
    return [
        {"prompt_id": f"g/{n}"} | row | {"run": n, "right": letter, "correct": letter == "A"}
        for n, letter in right.items()
    ]


def scored_rows() -> list[dict[str, Any]]:
    """Rows of judge.py score: two answers to one question, of which the judge failed on one."""
    rows = [rollout(1, "a", verdicts) for verdicts in ((1.0, 0.0, 1.0), (None, 0.0, 1.0))]
    names = ("reward", "rating", "verdicts")
    return [
        {"id": "a", "failed": row["reward"] is None, "asked": "x"} | {name: row[name] for name in names}
        for row in rows
    ]


REPLAYED = {
    "judge": "keyword",
    "after": "rules",
    "failed": 0,
    "steps": [
        {"from": 1, "to": 2, "trained": 0.2, "second": 0.3, "rejected": 0.1},
        {"from": 3, "to": 4, "trained": 0.6, "second": 0.2, "rejected": None},
    ],
    "all": {name: {"value": 0.4, "low": 0.3, "high": 0.5} for name in ("trained", "second", "rejected")},
}
"""What evaluate.py replay prints last."""

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><b>"\'&%{x}'
HOSTILE += "\u202e"
"""What would act in a page, in a picture of plotly's, or on the text around it."""
