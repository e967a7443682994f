"""The paper's scores with ours beside them, in Markdown and in percent.

The paper's scores are from arXiv 2507.17746 v2: Fig. 2 (a 7B policy, trained on medicine for HealthBench and
on science for GPQA-Diamond; the intervals are read off the figure) and Table 1 (HealthBench-1k, trained on
HealthBench's own prompts). A smaller policy, another judge or a part of the rows is another experiment: the
numbers of one line can be compared only as far as the notes below the table allow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rar_mini.files import json_object
from rar_mini.forms import printable

PAPER = {  # HealthBench, HealthBench-1k, GPQA-Diamond
    "Qwen2.5-7B": ("7.7", "", "31.7"),
    "Qwen2.5-7B-Instruct": ("22.7", "", "35.0"),
    "Direct-Likert": ("25.5", "23.9", "34.8 [33.9, 35.8]"),
    "Reference-Likert": ("28.9", "31.7", "36.5 [34.9, 38.0]"),
    "RaR-Predefined": ("12.5", "", "31.7"),
    "RaR-Explicit": ("29.7", "", "36.9 [36.2, 37.5]"),
    "RaR-Implicit": ("31.2", "35.9", "37.6 [36.7, 38.5]"),
    "RaR-Implicit, rubrics without reference": ("", "32.0", ""),
    "RaR-Implicit, human rubrics": ("", "34.8", ""),
    "Expert-Answer-SFT": ("", "20.4", ""),
}

HEAD = """\
| policy | HealthBench | HealthBench-1k | ours | GPQA-Diamond | ours | our run |
|---|---|---|---|---|---|---|"""


def read(folder: Path) -> dict[str, Any]:
    """The results in a folder.

    Returns `run`; `name`, a run's method or else the policy; `healthbench` and `gpqa`, each None or a `score`
    with `std`, or with `low` and `high`, in [0, 1], None if nothing was scored; and `note`. Raises ValueError
    if there is no result, or one cannot be read.
    """
    files = {name: folder / f"{name}.json" for name in ("config", "healthbench", "gpqa")}
    try:
        contents = {name: json_object(path) for name, path in files.items() if path.exists()}
        results = {name: contents[name] for name in ("healthbench", "gpqa") if name in contents}
        if not results:
            raise LookupError("neither")
        note = next(iter(results.values()))["policy"]
        name = Path(note).name
        if "config" in contents:
            settings = contents["config"]["settings"]
            method = settings["method"]
            name = next((row for row in PAPER if row.lower().endswith(method)), method)
            note += f", trained from {settings['policy']} under {settings['judge']}"
        summary: dict[str, Any] = {"run": str(folder), "name": name, "healthbench": None, "gpqa": None}
        for key, result in results.items():
            numbers = {part: result[part] for part in ("score", "std", "low", "high") if part in result}
            summary[key] = {part: None if n is None else float(n) for part, n in numbers.items()}
            by = result.get("judge") or result.get("verifier") or "no verifier"
            note += f"; {key}: {result['rows']} rows, {result['failed']} of them failed, {by}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{folder}: expected healthbench.json or gpqa.json there, as evaluate.py writes them, got "
            f"{type(error).__name__} ({error})"
        ) from error
    return summary | {"note": note}


def in_percent(result: dict[str, float | None] | None) -> str:
    """A result for a cell of the table."""
    if result is None:
        return ""
    percent = [f"{100 * number:.1f}" for number in result.values() if number is not None]
    form = "{} [{}, {}]" if len(percent) == 3 else "{} ± {}" if len(percent) == 2 else "{}"
    return form.format(*percent) if percent else "-"


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The paper's table with a line for each of our runs, and below it a note on each."""
    lines = [HEAD]
    for name in dict.fromkeys([*PAPER, *(run["name"] for run in runs)]):
        paper = PAPER.get(name, ("", "", ""))
        for run in [run for run in runs if run["name"] == name] or [{}]:
            health, choice = (in_percent(run.get(key)) for key in ("healthbench", "gpqa"))
            cells = [name, *paper[:2], health, paper[2], choice, run.get("run", "")]
            lines.append("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |")
            paper = ("", "", "")  # only in the first line
    return "\n".join([*lines, "", *(printable(f"- {run['run']}: {run['note']}") for run in runs)])
