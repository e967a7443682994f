"""Runs on one page: `python -m rar_mini.viewing.page RUN [RUN...] --out page.html`.

The page is one file that opens without a network and without a server: curves, every kept answer with its
verdicts, answers of two steps or of two policies side by side, items that moved or never did, time, cost and
settings. It also takes rows of `evaluate.py healthbench` and `gpqa`, of `judge.py score`, and what
`evaluate.py replay` prints. `inline` shows the groups of one step in a notebook.

What the page shows was written by models and by others. It stands in the page as compressed JSON in base64,
which cannot end its element. page_tools.js puts it there as text, never as markup. A content security policy
allows the page's own scripts and style by their digests, and nothing from elsewhere.

Curves are drawn by plotly, which is well kept and comes as a Python package. Its script is most of a small
page: 5 MB. uPlot is a hundredth of that, but no Python package that many people use carries it.
"""

import base64
import gzip
import hashlib
import html
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Any

import tyro

from rar_mini.checkpoint import Run, records
from rar_mini.files import without_nan, write_whole
from rar_mini.forms import printable
from rar_mini.options import run_command
from rar_mini.scores import Rollouts
from rar_mini.viewing import page_data
from rar_mini.viewing.plot import SERIES

ROOM = 16 * 2**20
"""Bytes of answers on a page, before compression; all sources share them alike."""
SCRIPTS = ("page_tools.js", "page_curves.js", "page_answers.js", "page.js")
"""The page's own scripts, in the order in which they become one."""
PAUSE = 2.0
"""Seconds between two looks at a run that is at work."""


def library() -> str:
    """plotly's script. Raises ValueError if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(f"a page needs plotly ({error}): pip install -e '.[page]'") from error
    return get_plotlyjs()


def gather(paths: Sequence[Path], given: Path | None = None, everything: bool = False) -> dict[str, Any]:
    """What a page shows of these runs and files. Raises ValueError for a path that is neither."""
    room = float("inf") if everything else ROOM / sum(map(page_data.count, paths))
    sources = [
        {name: value if name == "groups" else without_nan(value) for name, value in source.items()}
        for path in paths
        for source in page_data.read(path, room, given)
    ]
    runs = [source["about"] for source in sources if source["kind"] == "run"]
    return {
        "sources": sources,
        "differences": page_data.differences(runs),
        "series": {name: [title, unit] for name, (title, unit, _) in SERIES.items()},
        "room": None if everything else ROOM,
    }


def digest(text: str) -> str:
    """The name by which a content security policy allows a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def compose(shown: dict[str, Any], library: str = "") -> str:
    """The page's text. Without plotly's script it can draw no curves."""
    own = resources.files("rar_mini.viewing")
    style, frame = (own.joinpath(name).read_text("utf-8") for name in ("page.css", "page.html"))
    script = "\n".join(own.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    policy = {
        "default-src": "'none'",
        "script-src": f"{digest(library)} {digest(script)}",
        # Plotly makes an empty style element and adds its rules one by one.
        "style-src": f"{digest(style)} {digest('')}",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # Plotly adds styles of maps, which no page draws, unless it finds an element by their digest.
    maps = re.findall(r'getElementById\("([0-9a-f]{64})"\)', library)
    data = gzip.compress(json.dumps(shown, allow_nan=False).encode(), mtime=0)
    return Template(frame).substitute(
        policy=html.escape("; ".join(f"{name} {value}" for name, value in policy.items())),
        style=style,
        styles="\n".join(f'<template id="{name}"></template>' for name in maps),
        data=base64.b64encode(data).decode(),
        library=library,
        script=script,
    )


def write(paths: Sequence[Path], out: Path, given: Path | None, everything: bool) -> None:
    """Write the page whole or not at all."""
    write_whole(out, compose(gather(paths, given, everything), library()).encode())


def watch(paths: Sequence[Path], out: Path, given: Path | None, everything: bool) -> Iterator[None]:
    """Write the page, and anew whenever a run has gone on, until all runs have taken their last step."""
    seen = None
    while True:
        ended = all(finished(path) for path in paths)
        now = [state(path) for path in paths]
        if now != seen:
            write(paths, out, given, everything)
            seen = now
            yield
        if ended:
            return
        time.sleep(PAUSE)


def finished(path: Path) -> bool:
    """Whether a run has taken its last step. A file does not grow."""
    if not (path / "config.json").exists():
        return True
    steps = Run.reopen(path).written["settings"].get("steps", 0)
    return any(row["step"] >= steps for row in records(path, "metrics.jsonl"))


def state(path: Path) -> list[tuple[int, int]]:
    """What tells whether a run has gone on: size and time of what is written last in a step, or of rows."""
    names = ("metrics.jsonl", "alarms.jsonl", "healthbench.jsonl", "gpqa.jsonl")
    stats = [file.stat() for file in (path / name for name in names) if file.exists()]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


# --- in a notebook ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inline:
    """What a notebook shows of an object: HTML, or text where it shows none."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def inline(
    source: Path | str | Rollouts, step: int | None = None, question: str | None = None, height: int = 640
) -> Inline:
    """The page's view of one step's groups, for a notebook's cell: the matrix of verdicts, and beside it an
    answer. Raises ValueError if there is no such step or question.

    The view is a frame with a page in it, without plotly. It needs no server, and its sandbox keeps it away
    from the notebook. A code hub strips frames, and so does Jupyter in a notebook that it does not trust:
    rewards and verdicts stand below the frame as text, too.

    Args:
        source: a run's folder, or rollouts with scores, rewards and advantages that no run has written
        step: the last one of a run, or 1, if none is given
        question: its name in the data; all of the step are shown if none is given
        height: of the frame, in pixels; what is higher scrolls
    """
    source = source if isinstance(source, Rollouts) else Path(source)
    shown = page_data.of_step(source, step, question)
    document = html.escape(compose({"sources": [shown], "inline": True}))
    text = as_text(shown)
    return Inline(
        f'<iframe title="Answers and verdicts" sandbox="allow-scripts" width="100%" height="{int(height)}" '
        f'style="border: 0" srcdoc="{document}"></iframe>\n'
        f"<details><summary>Rewards and verdicts as text</summary><pre>{html.escape(text)}</pre></details>",
        text,
    )


def as_text(shown: dict[str, Any]) -> str:
    """Rewards and verdicts of each group. A line is an item, a column an answer, as they were sampled."""
    tables = []
    for group in shown["groups"]:
        answers, forms = group["answers"], {"reward": ".3f", "advantage": "+.2f"}
        rows = [(name, [number(each.get(name), form) for each in answers]) for name, form in forms.items()]
        for k, n in enumerate(group["items"]):
            item = shown["items"][n]
            head = printable(f"{item['title']} ({item['category']}, weight {item['weight']:g})")
            rows.append((head, [number(each["verdicts"][k], ".2g") for each in answers]))
        wide = max(len(head) for head, _ in rows)
        lines = [f"{head:<{wide}}" + "".join(f"{cell:>7}" for cell in cells) for head, cells in rows]
        name = printable(shown["questions"][group["q"]]["id"])
        tables.append("\n".join([f"{name}, step {group['step']}", *lines]))
    return "\n\n".join(tables)


def number(value: float | None, form: str) -> str:
    """A number for a person; a question mark if there is none."""
    return "?" if value is None else format(value, form)


# --- the command --------------------------------------------------------------------------------------------


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path = Path("page.html"),
    data: Path | None = None,
    everything: Annotated[bool, tyro.conf.arg(name="all")] = False,
    watching: Annotated[bool, tyro.conf.arg(name="watch")] = False,
) -> None:
    """Write runs, evaluations and scored files as one page that a browser opens without a network.

    Args:
        runs: folders of runs or evaluations, files that evaluate.py or judge.py wrote, or what replay printed
        out: the page
        data: data rows with the questions of a file of rows; for judge.py score the file that was scored
        everything: keep every answer, however large the page becomes, and not only those of some steps
        watching: write the page anew after every step, until the runs have taken their last one
    """
    if not runs:
        raise ValueError("expected a run's folder or a file, got none")
    if out.exists() and any(path.exists() and out.samefile(path) for path in [*runs, *filter(None, [data])]):
        raise ValueError(f"--out {out} is a file that is read: expected another one")
    library()  # before anything is read
    if not watching:
        write(runs, out, data, everything)
        print(f"{out}  {out.stat().st_size / 1e6:.1f} MB")
        return
    for _ in watch(runs, out, data, everything):
        print(f"{out}  {out.stat().st_size / 1e6:.1f} MB, {time.strftime('%H:%M:%S')}", flush=True)


if __name__ == "__main__":
    run_command(main, "python -m rar_mini.viewing.page")
