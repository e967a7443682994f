"""Several judges on several sets of labelled answers: one table, in Markdown, with intervals, speed and cost.

Every answer's verdicts are kept beside the table as they come: a killed command goes on where it stopped. An
answer that failed, or that would be asked about otherwise today, is asked about again. The table may stand on
a page: between two marks the command replaces the rows of its own judges and sets, and nothing else.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from rar_mini import data, forms
from rar_mini.evaluation import public, trust
from rar_mini.evaluation.agreement import wins
from rar_mini.evaluation.answers import BATCH, append_rows
from rar_mini.evaluation.judged import ask
from rar_mini.evaluation.labelled import Labelled, read
from rar_mini.files import cut_half_line, lines, locked, plain_text, without_nan, write_whole
from rar_mini.forms import ABSENT, Finite, Form, Text, Unit, printable
from rar_mini.judging.ledger import Account
from rar_mini.judging.wires import Server
from rar_mini.progress import progress_bar

BEGIN, END = "<!-- judges -->\n", "<!-- end of judges -->\n"
"""What stands around the table on a page."""

FEW = 8
"""Answers that a judge in this process is asked about before they are written: what a kill may cost is some
minutes of a slow one. A server is asked about more at once."""
SHOWN = {"all": ("balanced", "kappa", "auc"), "flawed only": ("auc",)}
"""What is measured, by the part of the answers."""

Sets = dict[str, list[Labelled]]  # by name
Cells = dict[str, dict[str, Any]]  # by set, then by judge


class Asker(trust.Asker, Protocol):
    """A judge that can say what it took, as judge.Judge can."""

    server: Server | None


class Kept(Form):
    """What is kept of an answer: what a judge said of it, and what that took. `asked` is a digest of
    everything that the judge was told."""

    judge: Text = ABSENT
    question: str = ABSENT
    asked: Text = ABSENT
    verdicts: list[Unit | None] = ABSENT
    reward: Finite | None
    seconds: Annotated[Finite, Field(ge=0)] = ABSENT
    tokens: Annotated[Finite, Field(ge=0)] = ABSENT
    dollars: Annotated[Finite, Field(ge=0)] | None


def run(make: Callable[[str], Asker], specs: Sequence[str], sets: Sets, out: Path) -> Cells:
    """Have each judge asked about each set, one judge after another: a model in this process leaves its
    memory to the next. Writes each row of the table as it is known, and returns their numbers."""
    if out.suffix == ".jsonl":
        raise ValueError(f"--out {out}: expected a page, such as judges.md")
    page_of(out)  # refused before a judge is paid
    out.parent.mkdir(parents=True, exist_ok=True)
    rows, cells = out.with_suffix(".jsonl"), Cells()
    with locked(rows):
        kept = read_rows(rows)
        rows.touch()
        cut_half_line(rows)
        for spec in specs:
            judge = make(spec)
            judge.carry(replace(Account.beside(rows), judge=judge.spec))
            for name, items in sets.items():
                result = cell(items, measure(judge, name, items, rows, kept))
                cells.setdefault(name, {})[judge.spec] = result
                print(put(out, name, judge.spec, result))
            print(f"asked     {judge.spec}: {judge.line()}")
            judge.close()
            del judge
            gc.collect()  # a probe keeps itself in a cycle
    return cells


# --- what is asked ------------------------------------------------------------------------------------------


def sets_of(sources: Sequence[str], limit: int | None, seed: int, skip_bad: bool) -> Sets:
    """The sets of bundled domains or of one of their splits (medical:held_out), of files, and of all files in
    folders; of each the answers to at most so many questions, which a seed draws. Raises ValueError for a
    source without labels; in a folder, files without are left out."""
    sets: Sets = {}
    for source in sources:
        if not source.strip():
            raise ValueError("--data is empty: expected a domain, a file or a folder; is a variable unset?")
        domain, colon, split = source.partition(":")
        bundled = domain in data.DOMAINS and not Path(source).exists()
        for file in [None] if bundled else files_of(Path(source)):
            name = source if file is None else name_of(file)
            if name in sets:
                raise ValueError(f"--data: expected one set of the name {name}, got two; rename a file")
            items = read(file, domain if bundled else "all", skip_bad)
            if bundled and colon:
                items = of_split(items, domain, split)
            sets[name] = drawn(items, limit, seed)
            questions = len({item.example.id for item in sets[name]})
            print(f"data      {printable(name)}: {len(sets[name])} answers to {questions} questions")
    return sets


def of_split(items: list[Labelled], domain: str, split: str) -> list[Labelled]:
    """The answers to a bundled domain's questions of a split. Raises ValueError if there are none."""
    splits = sorted({item.example.split for item in items})
    if split not in splits:
        names = " or ".join(f"{domain}:{name}" for name in splits)
        raise ValueError(f"--data {domain}:{split}: expected {domain} for all of its questions, or {names}")
    return [item for item in items if item.example.split == split]


def files_of(source: Path) -> list[public.Source]:
    """A file, or the files with labels in a folder."""
    if not source.is_dir():
        return [public.Source(source)]
    known = []
    for path in sorted(path for path in source.rglob("*") if path.suffix in (".json", ".jsonl")):
        file = public.Source(path)
        if {*public.FORMS, "labelled_responses"} & file.first.keys():
            known.append(file)
        else:
            print(f"data      {printable(str(path))} is left out: its first row has no labels")
    if not known:
        raise ValueError(f"--data {source}: expected files with labels (docs/judges.md), got none of them")
    return known


def name_of(file: public.Source) -> str:
    """What a file is called in the table, behind the set that it is of. LLMBar's are all called dataset.json,
    in folders of their own."""
    name = file.path.parent.name if file.path.stem == "dataset" else file.path.stem
    return f"{file.form.__name__} {name}" if file.form in (public.LLMBar, public.JudgeBench) else name


def drawn(items: list[Labelled], limit: int | None, seed: int) -> list[Labelled]:
    """The answers to at most so many questions, in their own order."""
    questions = list(dict.fromkeys(item.example.id for item in items))
    if limit is None or limit >= len(questions):
        return items
    chosen = set(random.Random(seed).sample(questions, limit))
    return [item for item in items if item.example.id in chosen]


def measure(
    judge: Asker, name: str, items: Sequence[Labelled], out: Path, kept: dict[str, Kept]
) -> list[Kept]:
    """What a judge says of a set. It is asked about the answers that are not in `kept` or failed there; what
    it says is added to that and to the file."""
    asked = [judge.digest(item.example, item.response) for item in items]
    todo = {  # an answer that stands in the set twice is asked about once
        digest: item
        for item, digest in zip(items, asked, strict=True)
        if digest not in kept or failed(item, kept[digest])
    }
    with progress_bar(total=len(todo), desc=f"{judge.spec} on {name}", unit="answer") as bar:
        size = BATCH if judge.server else FEW
        for start in range(0, len(todo), size):
            rows = list(_rows(judge, list(todo.items())[start : start + size]))
            append_rows(out, (row.model_dump() for row in rows))
            kept |= {row.asked: row for row in rows}
            bar.update(len(rows))
    return [kept[digest] for digest in asked]


def failed(item: Labelled, row: Kept) -> int:
    """The number of items without a verdict. Those of weight 0 are never asked about."""
    pairs = zip(item.example.rubric.criteria, row.verdicts, strict=True)
    return sum(verdict is None and criterion.weight != 0 for criterion, verdict in pairs)


def _rows(judge: Asker, batch: Sequence[tuple[str, Labelled]]) -> Iterator[Kept]:
    """The rows of a few answers. What they took together is shared out evenly."""
    before, start = judge.ledger.counts.copy(), time.perf_counter()
    judged = ask(judge, [(item.example, item.response) for _, item in batch], None)
    took = judge.ledger.counts - before
    took["seconds"] = time.perf_counter() - start
    took["tokens"] = took["tokens_in"] - took["tokens_cached"] + took["tokens_out"]
    known = judge.server is None or judge.server.endpoint.price is not None
    for n, (asked, item) in enumerate(batch):
        yield Kept(
            judge=judge.spec,
            question=item.example.id,
            asked=asked,
            verdicts=without_nan(judged.verdict[n, : len(item.labels)].tolist()),
            reward=without_nan(float(judged.reward[n])),
            seconds=took["seconds"] / len(batch),
            tokens=took["tokens"] / len(batch),
            dollars=took["dollars"] / len(batch) if known else None,
        )


def read_rows(path: Path) -> dict[str, Kept]:
    """What earlier commands kept, by what was asked; of two rows the later counts. Raises ValueError by
    line."""
    remedy = "delete the line, and its answer is asked about again"
    rows = enumerate(lines(path), 1)
    kept = (forms.read(Kept, row, f"{path}, line {number}", remedy) for number, row in rows)
    return {row.asked: row for row in kept}


# --- the table ----------------------------------------------------------------------------------------------


def cell(items: Sequence[Labelled], rows: Sequence[Kept]) -> dict[str, Any]:
    """What a judge's verdicts on a set are worth."""
    label, category = trust.table_of(items, max(len(item.labels) for item in items))  # (N, K)
    verdict = np.full(label.shape, math.nan)
    for n, row in enumerate(rows):
        verdict[n, : len(row.verdicts)] = [math.nan if v is None else v for v in row.verdicts]
    reward = np.array([row.reward for row in rows], dtype=float)  # (N,), None becomes NaN
    questions, parts = [item.example.id for item in items], trust.parts_of(items, label, category)
    result: dict[str, Any] = {"failed": sum(map(failed, items, rows))}
    for name in parts.keys() & SHOWN.keys():
        result[name] = trust.measure(verdict, label, parts[name], questions, SHOWN[name])
    gaps = trust.gaps_of(questions, [item.quality for item in items], reward)
    result["pairs"] = wins(np.array(sum(gaps.values(), [])))
    paid = {row.asked: row for row in rows}.values()  # an answer that stands in the set twice, once
    result["seconds"], result["tokens"] = sum(row.seconds for row in paid), sum(row.tokens for row in paid)
    dollars = [row.dollars for row in paid]
    return result | {"dollars": None if None in dollars else sum(dollars)}


def shown(result: dict[str, float]) -> str:
    """A number with its interval, in two digits; nothing without an interval."""
    form = "-" if math.isnan(result["low"]) else "{value:.2f} [{low:.2f}, {high:.2f}]"
    return form.format_map(result)


def speed(result: dict[str, Any]) -> str:
    """Tokens a second; a judge without a model reads none."""
    return f"{result['tokens'] / result['seconds']:,.0f}" if result["tokens"] else "-"


def price(result: dict[str, Any]) -> str:
    """Dollars, if they are known."""
    return "?" if result["dollars"] is None else f"{result['dollars']:.4f}" if result["dollars"] else "0"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "verdicts": lambda x: str(x["all"]["verdicts"]),
    "met": lambda x: f"{100 * x['all']['met']:.0f} %",
    "balanced accuracy": lambda x: shown(x["all"]["balanced"]),
    "kappa": lambda x: shown(x["all"]["kappa"]),
    "AUC": lambda x: shown(x["all"]["auc"]),
    "AUC, flawed only": lambda x: shown(x["flawed only"]["auc"]) if "flawed only" in x else "-",
    "pairs won": lambda x: shown(x["pairs"]["accuracy"]),
    "pairs tied": lambda x: f"{x['pairs']['tied']} of {sum(x['pairs'][n] for n in ('won', 'lost', 'tied'))}",
    "failed": lambda x: str(x["failed"]),
    "seconds": lambda x: f"{x['seconds']:,.1f}",
    "tokens/s": speed,
    "$": price,
}


def page_of(out: Path) -> tuple[str, list[str], str]:
    """What a page has before, in and behind its table. Raises ValueError for a page without one."""
    if not out.exists():
        return "# Judges on labelled answers\n\n", [], ""
    before, begin, rest = plain_text(out).partition(BEGIN)
    inside, end, behind = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"--out {out}: expected a new file, or a page with the lines {BEGIN.strip()} and {END.strip()}, "
            "between which the table is put; got a page without"
        )
    return before, inside.splitlines()[2:], behind


def put(out: Path, name: str, judge: str, result: dict[str, Any]) -> str:
    """Put a judge's row on a set into the table of a page, in the place of the one that was there, and return
    it."""
    before, rows, behind = page_of(out)
    place = " | ".join(printable(text).replace("|", "\\|") for text in (name, f"`{judge}`"))
    row = f"| {place} | " + " | ".join(column(result) for column in COLUMNS.values()) + " |"
    rows = [other for other in rows if not other.startswith(f"| {place} |")]
    rows = sorted([*rows, row], key=lambda row: row.split(" | ")[0])  # by set
    head = f"| data | judge | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * len(COLUMNS)}\n"
    table = head + "".join(f"{each}\n" for each in rows)
    write_whole(out, f"{before}{BEGIN}{table}{END}{behind}".encode())
    return row
