"""What a page shows, as one JSON value: a run's folder, or a file that evaluate.py or judge.py has written.

A question and an item each stand once; groups name them by number. Every number of a run is counted, but only
so many answers as fit into `room` bytes keep their text: those of every second, fourth, eighth ... step,
whichever fits first. A step is kept whole or not at all. The first and the last are always kept.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rar_mini import data, forms, hub, prompts, scale
from rar_mini.checkpoint import Run, Verdict, records
from rar_mini.data import Example
from rar_mini.evaluation import answers, gpqa, healthbench
from rar_mini.evaluation.replay import groups_of, refuse_uneven
from rar_mini.files import json_object, lines, regular, without_nan
from rar_mini.forms import ABSENT
from rar_mini.judging.ledger import Account
from rar_mini.options import to_json
from rar_mini.report import paired
from rar_mini.rubric import Criterion
from rar_mini.scores import Rollouts, ScoredRow, transcript
from rar_mini.viewing.plot import scores
from rar_mini.viewing.show import groups_at

Json = dict[str, Any]

ROLLOUTS = "rollouts"
"""The set of a run's training answers; those of its evaluations have their `split`'s name."""
DOTS = 3000
"""Answers in the picture of reward over length."""
OF_GOLD = re.compile(r"held_out_gold(\d*)")
"""Sets of the held-out answers under a monitor: the first one, the second with a 2 ..."""
LISTED = 400
"""Items in each list: those that moved most, never met, always met, or on which two judges part."""
STAGES = ("sample", "judge", "train")


# --- questions, items and groups ----------------------------------------------------------------------------


@dataclass
class Tally:
    """What the answers of one set said of one item."""

    first: list[float] = field(default_factory=lambda: [0, 0.0, 0])  # step, sum of verdicts, answers
    last: list[float] = field(default_factory=lambda: [0, 0.0, 0])
    met: int = 0  # verdicts of a half or more
    of: int = 0
    parted: int = 0  # verdicts on the other side of a half than a gold judge's
    compared: int = 0

    def add(self, step: int, verdict: float) -> None:
        """Count a verdict. Steps come in order."""
        if not self.of:
            self.first = [step, 0.0, 0]
        if step != self.last[0] or not self.of:
            self.last = [step, 0.0, 0]
        for part in (self.first, self.last):
            if part[0] == step:
                part[1] += verdict
                part[2] += 1
        self.met += verdict >= 0.5
        self.of += 1

    @property
    def move(self) -> float:
        """How far the mean verdict of the last step lies above that of the first."""
        return self.last[1] / self.last[2] - self.first[1] / self.first[2] if self.of else 0.0


KINDS: dict[str, Callable[[Tally], float]] = {
    "moved": lambda tally: abs(tally.move),
    "never": lambda tally: tally.of if tally.of > 1 and tally.met == 0 else 0,
    "always": lambda tally: tally.of if tally.of > 1 and tally.met == tally.of else 0,
    "parted": lambda tally: tally.parted / tally.compared if tally.compared else 0,
}
"""The lists of items, by how high an item stands in each. At 0 it is not in it."""


class Book:
    """The questions, items and groups of one source, and a tally of each item."""

    def __init__(self) -> None:
        self.questions: dict[str, Json] = {}  # by name and text, in the order in which they came
        self.items: dict[tuple, Json] = {}
        self.tallies: dict[tuple[str, int], Tally] = {}  # by set and item
        self.dots: list[list[Any]] = []

    def question(self, name: str, text: str | None, **more: Any) -> int:
        """The number of a question."""
        found = self.questions.setdefault(
            f"{name}\0{text}", {"n": len(self.questions), "id": name, "text": text} | more
        )
        return found["n"]

    def item(self, question: int, place: int, row: Json, text: str | None = None) -> int:
        """The number of an item of a question, from what a row says of it."""
        said = {name: row[name] for name in ("title", "category", "weight")}
        said |= {"checked": True} if row.get("checked") else {}
        key = (question, place, text, *said.values())
        return self.items.setdefault(key, {"n": len(self.items), "q": question, "text": text} | said)["n"]

    def group(self, name: str, step: int, question: int, items: list[int], rows: Sequence[Json]) -> Json:
        """A group of answers to one question. Counts its verdicts, but not on the scale's answers, which no
        policy gave."""
        for row in rows:
            for item, verdict in zip(items, row["verdicts"], strict=True):
                if verdict is not None and not scale.is_fixed(name):
                    self.tallies.setdefault((name, item), Tally()).add(step, verdict)
        return {"set": name, "step": step, "q": question, "items": items, "answers": list(rows)}

    def dot(self, step: int, tokens: int | None, reward: float | None) -> None:
        """Remember an answer's length and reward."""
        if tokens is not None and reward is not None:
            self.dots.append([step, tokens, reward])

    def compare(self, judged: Json, gold: Json) -> None:
        """Count where two judges of the same answers part."""
        for mine, theirs in zip(judged["answers"], gold["answers"], strict=False):
            for item, a, b in zip(judged["items"], mine["verdicts"], theirs["verdicts"], strict=False):
                if a is not None and b is not None:
                    tally = self.tallies[judged["set"], item]
                    tally.compared += 1
                    tally.parted += (a >= 0.5) != (b >= 0.5)


class Sample:
    """Groups of every second, fourth, eighth ... step within `room` bytes; the first and the last always."""

    def __init__(self, room: float) -> None:
        self.room, self.every, self.steps, self.groups = room, 1, 0, 0
        self.kept: dict[int, tuple[int, list[Json]]] = {}  # bytes and groups by a step's place
        self.last: tuple[int, list[Json]] = (0, [])
        self.size = 0  # bytes of what is kept, without the last step

    def add(self, groups: list[Json]) -> None:
        """Take in a step's groups."""
        self.last = (sum(len(json.dumps(group)) for group in groups), groups)
        if self.steps % self.every == 0:
            self.kept[self.steps] = self.last
            self.size += self.last[0]
        self.steps += 1
        self.groups += len(groups)
        while self.size > self.room and self.every < self.steps:
            self.every *= 2
            self.kept = {place: each for place, each in self.kept.items() if place % self.every == 0}
            self.size = sum(size for size, _ in self.kept.values())

    def chosen(self) -> list[Json]:
        """The groups that are kept."""
        kept = [*self.kept.values()] + ([] if self.steps - 1 in self.kept else [self.last])
        return [group for _, groups in kept for group in groups]

    def rule(self) -> Json:
        """What a reader has to know of the sample."""
        return {"kept": len(self.chosen()), "of": self.groups, "every": self.every}


# --- a run --------------------------------------------------------------------------------------------------


def of_run(folder: Path, room: float) -> Json:
    """What a page shows of a run's folder, also of one that is at work, and of one of before."""
    run, book = Run.reopen(folder), Book()
    settings = run.written["settings"]
    evaluated, kept = Sample(room / 2), []
    for rows in run.steps("evaluations.jsonl"):
        kept += [{name: row[name] for name in ("split", "step", "example_id", "reward")} for row in rows]
        evaluated.add(_evaluation(book, folder, rows))
    trained = Sample(room - evaluated.size)
    for rows in run.steps("rollouts.jsonl"):
        groups = groups_of(rows, settings.get("group_size", len(rows)))
        refuse_uneven(folder / "rollouts.jsonl", rows, groups)
        trained.add([_group(book, ROLLOUTS, [rows[i] for i in group]) for group in groups])
        for row in rows:
            book.dot(row["step"], row["tokens"], row["reward"])
    metrics, explained = records(folder, "metrics.jsonl"), _explain(book, run)
    return _pruned(book, evaluated.chosen() + trained.chosen()) | {
        "name": folder.absolute().name,
        "kind": "run",
        "about": described(run),
        "metrics": columns(metrics),
        "alarms": records(folder, "alarms.jsonl"),
        "scores": means(kept),
        "cost": cost(folder, metrics),
        "sample": {ROLLOUTS: trained.rule(), "evaluations": evaluated.rule()},
        "explained": explained,
    }


def of_step(source: Path | Rollouts, step: int | None, question: str | None) -> Json:
    """What a page shows of one step's groups alone, or of those of one question. It names no folder.

    Raises ValueError if there is no such step or question.
    """
    book = Book()
    if isinstance(source, Rollouts):
        rows = iter(replace(source, rubrics=source.scores.rubrics).rows(1 if step is None else step))
        groups = [list(islice(rows, len(each))) for each in source.responses]
    else:
        run = Run.reopen(source)
        groups = groups_at(run, step)
    names = dict.fromkeys(group[0]["example_id"] for group in groups)
    if question is not None and question not in names:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"no question {question!r} in this step: expected one of {listed}")
    wanted = [group for group in groups if question in (None, group[0]["example_id"])]
    shown = [_group(book, ROLLOUTS, group) for group in wanted]
    if isinstance(source, Rollouts):
        explain(book, source.examples, {}, {})  # the reference answers: each row has its items' texts
    else:
        _explain(book, run)
    pruned = _pruned(book, shown)
    return {"kind": "run"} | {name: pruned[name] for name in ("questions", "items", "groups")}


def _evaluation(book: Book, folder: Path, rows: Sequence[Json]) -> list[Json]:
    """The groups of one evaluation; and where the judge and the gold judges part in it."""
    made: dict[str, list[Json]] = {}
    for split, each in groupby(rows, lambda row: row["split"]):
        alike = list(each)
        groups = groups_of(alike, len(alike))
        refuse_uneven(folder / "evaluations.jsonl", alike, groups)
        made.setdefault(split, []).extend(_group(book, split, [alike[i] for i in g]) for g in groups)
    for monitored in filter(OF_GOLD.fullmatch, made):
        for judged, gold in zip(made.get("held_out", []), made[monitored], strict=False):
            if judged["q"] == gold["q"] and len(judged["items"]) == len(gold["items"]):
                book.compare(judged, gold)
    return [group for groups in made.values() for group in groups]


def _group(book: Book, name: str, rows: Sequence[Json]) -> Json:
    """A group from rows of a run's record."""
    first = rows[0]
    question = book.question(first["example_id"], first["prompt"])
    made = first.get("rubric") or []  # by a recipe, and then each item's text stands here
    texts = [item.get("description") for item in made if isinstance(item, dict)]
    items = [
        book.item(question, place, row, texts[place] if place < len(texts) else None)
        for place, row in enumerate(first["verdicts"])
    ]
    return book.group(name, first["step"], question, items, [_answer(row) for row in rows])


def _answer(row: Json) -> Json:
    """What the page shows of an answer."""
    names = ("reward", "advantage", "tokens", "rating", "finished", "trained")
    shown = {name: row[name] for name in names if row.get(name) is not None}
    verdicts = [item["verdict"] for item in row["verdicts"]]
    return without_nan({"text": transcript(row)} | shown | {"verdicts": verdicts}, digits=4)


def _explain(book: Book, run: Run) -> str:
    """Give each item the question that the judge was asked, from the run's data. Returns why, if it cannot.

    No recipe is run for it, and nothing is downloaded: a folder may come from anybody."""
    settings = run.written["settings"]
    try:
        examples = _examples(settings)
    except (OSError, ValueError) as error:
        return f"what the items ask is not known: {forms.legible(error)}"
    explain(book, examples, run.written.get("judge_texts", {}), settings.get("design") or {})
    return ""


def _examples(settings: Json) -> list[Example]:
    """The questions of a run, if they are on this machine."""
    source, domain = settings.get("data"), settings.get("domain", "")
    if source == "rar":
        folder = hub.cached(domain, settings.get("revision"))
        if folder is None:
            raise ValueError(f"the released data of {domain!r} is not in the cache")
        source = str(folder)
    return data.load(source, domain, skip_bad=True)


def explain(book: Book, examples: Sequence[Example], texts: dict[str, str], design: Json) -> None:
    """Give items and questions of a book what the data says of them, where names and texts agree."""
    wording = asdict(prompts.JudgePrompts()) | texts
    by_name = {example.id: example for example in examples}
    criteria: dict[int, dict[str, Criterion]] = {}
    for question in book.questions.values():
        example = by_name.get(question["id"])
        if example and question["text"] in (None, example.question):
            question |= {"text": example.question, "reference": example.reference}
            criteria[question["n"]] = {c.title: c for c in reversed(example.rubric.criteria)}
    for item in book.items.values():
        criterion = criteria.get(item["q"], {}).get(item["title"])
        if criterion and item["text"] is None:
            item["text"] = criterion.description
            if item.get("checked"):
                item["asks"] = "A rule decides: " + json.dumps(criterion.check, ensure_ascii=False)
            else:
                avoided = criterion.asks_avoidance and design.get("pitfalls", "avoided") == "avoided"
                text = wording["avoided" if avoided else "met"]
                item["asks"] = prompts.fill(text, criterion=criterion.description)


def _pruned(book: Book, groups: list[Json]) -> Json:
    """The book as JSON: groups, the questions and items that they or the lists of items name, and dots."""
    listed, counted = _listed(book.tallies)
    items, questions = list(book.items.values()), list(book.questions.values())
    used = {item for group in groups for item in group["items"]} | {item for _, item in listed}
    asked = {group["q"] for group in groups} | {items[item]["q"] for item in used}
    number = {old: new for new, old in enumerate(sorted(used))}
    place = {old: new for new, old in enumerate(sorted(asked))}
    groups = [
        group | {"q": place[group["q"]], "items": [number[item] for item in group["items"]]}
        for group in groups
    ]
    step = -(-len(book.dots) // DOTS) or 1
    return {
        "questions": [without(questions[n], "n") for n in sorted(asked)],
        "items": [without(items[n], "n") | {"q": place[items[n]["q"]]} for n in sorted(used)],
        "groups": groups,
        "moves": [
            {"set": name, "item": number[item]} | asdict(book.tallies[name, item]) for name, item in listed
        ],
        "counted": counted,
        "dots": without_nan(book.dots[::step], digits=4),
        "dots_of": len(book.dots),
    }


def _listed(tallies: dict[tuple[str, int], Tally]) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """The items that the lists show, those first that stand highest; and how many there are of each kind."""
    found: dict[tuple[str, int], None] = {}
    counted = {}
    for kind, rank in KINDS.items():
        ranked = sorted((key for key in tallies if rank(tallies[key])), key=lambda key: -rank(tallies[key]))
        counted[kind] = len(ranked)
        found |= dict.fromkeys(ranked[:LISTED])
    return list(found), counted


def without(row: Json, *names: str) -> Json:
    """A row without some of its fields, and without empty ones."""
    return {name: value for name, value in row.items() if name not in names and value is not None}


# --- what a run says of itself ------------------------------------------------------------------------------


def described(run: Run) -> Json:
    """Settings, versions and machine of a run, by dotted names. A setting that the run did not know yet has
    the value that it acted by, if this program still knows all of the run's settings."""
    written = run.written
    try:
        settings = to_json(run.settings())
    except ValueError:
        settings = written["settings"]
    names = "versions machine questions git recipe judge_prompts planned_steps accepted".split()
    return flat(settings) | flat({name: written[name] for name in names if written.get(name) is not None})


def flat(value: Json, above: str = "") -> Json:
    """A JSON object as one level of dotted names."""
    found: Json = {}
    for name, each in value.items():
        found |= flat(each, f"{above}{name}.") if isinstance(each, dict) and each else {above + name: each}
    return found


def differences(abouts: Sequence[Json]) -> list[list[Any]]:
    """Name and values of what is not alike in all runs, except for the folder, which never is."""
    names = dict.fromkeys(name for about in abouts for name in about)
    rows = [[name, *(about.get(name) for about in abouts)] for name in names if name != "out"]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def columns(rows: Sequence[Json]) -> dict[str, list[Any]]:
    """Metrics by name, each with a value a step, None if the step has none."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [without_nan(row.get(name), digits=6) for row in rows] for name in names}


def means(rows: Sequence[Json]) -> list[Json]:
    """The mean reward of each split at each evaluation, and its change since the first one, paired over
    questions, with a standard error."""
    found = []
    for split in dict.fromkeys(row["split"] for row in rows):
        by_step = scores(rows, split)
        first = next(iter(by_step.values()), {})
        for step, rewards in by_step.items():
            change = paired(list(first.values()), [rewards.get(name, float("nan")) for name in first])
            found.append(
                {"split": split, "step": step, "mean": sum(rewards.values()) / len(rewards)}
                | {"questions": len(rewards), "change": change and change[0], "error": change and change[1]}
            )
    return without_nan(found, digits=6)


def cost(folder: Path, metrics: Sequence[Json]) -> Json:
    """Seconds by stage, and dollars: by the run's record of spending, or by its metrics if it has none."""

    def total(name: str) -> float:
        return sum(row.get(name) or 0.0 for row in metrics)

    seconds = {stage: round(total(f"perf/seconds_{stage}"), 1) for stage in STAGES}
    account = Account(folder / "spending.jsonl")
    names = {name for row in metrics for name in row if name.endswith("/dollars")}
    dollars = sum(account.totals().values()) if account.exists() else sum(total(name) for name in names)
    return {"seconds": seconds, "dollars": round(dollars, 4), "questions": int(total("judge/questions"))}


# --- files of evaluate.py and judge.py ----------------------------------------------------------------------


def of_healthbench(file: Path, room: float, given: Path | None) -> Json:
    """The rows of evaluate.py healthbench: items by axis, questions by theme."""
    book, about = Book(), beside(file)
    rows = list(answers.read_rows(file, healthbench.Kept).values())
    groups = []
    for row in rows:
        question = book.question(row["prompt_id"], None, tags=row["example_tags"])
        items = []
        for place, item in enumerate(row["rubrics"]):
            text = item.get("criterion") or ""
            title = " ".join(text.split()[:6])
            said = {"title": title, "category": _axis(item["tags"]), "weight": item["points"]}
            items.append(book.item(question, place, said, text))
        scored = None if row["failed"] else healthbench.score(row["rubrics"])
        answer = _answer({"response": None} | row | {"reward": scored, "verdicts": row["rubrics"]})
        groups.append(book.group("healthbench", 0, question, items, [answer]))
    if source := _source(given, about):
        explain(book, data.read(source, skip_bad=True), {}, {})
    return _of_file(book, groups, file, room) | {
        "kind": "healthbench",
        "about": flat(without(about, "axes", "themes")),
        "table": flat(healthbench.summary(rows)[0]),
    }


def _axis(tags: Sequence[str]) -> str:
    """The axis of an item of HealthBench."""
    return next((tag.removeprefix("axis:") for tag in tags if tag.startswith("axis:")), "literal")


def of_gpqa(file: Path, room: float, given: Path | None) -> Json:
    """The rows of evaluate.py gpqa: one item, whether the answer is right. A group is a question's runs."""
    book, about = Book(), beside(file)
    rows = list(answers.read_rows(file, gpqa.Kept).values())
    source = _source(given, about)
    texts = {question["id"]: question["question"] for question in gpqa.read(source)} if source else {}
    by_question: dict[str, list[Json]] = {}
    for row in rows:
        by_question.setdefault(row["question"], []).append(row)
    groups = []
    for name, each in by_question.items():
        question = book.question(name, texts.get(name))
        right = {"title": "Right choice", "category": "literal", "weight": 1.0}
        item = book.item(question, 0, right, "The answer means the right choice.")
        groups.append(book.group("gpqa", 0, question, [item], [_choice(row) for row in each]))
    return _of_file(book, groups, file, room) | {
        "kind": "gpqa",
        "about": flat(about),
        "table": without(gpqa.summary(rows), "over_questions"),
    }


def _choice(row: Json) -> Json:
    """An answer to a question with choices."""
    right = None if row["correct"] is None else float(row["correct"])
    answer = _answer({"response": None} | row | {"reward": right, "verdicts": [{"verdict": right}]})
    note = f"run {row['run']}, means {row['read'] or 'no choice'}, right is {row.get('right', '?')}"
    return answer | {"note": note}


def of_scores(file: Path, room: float, given: Path | None) -> Json:
    """The rows of judge.py score. Questions and answers stand in the file that was scored, `given`."""
    book, rows = Book(), lines(file, "id", "reward", "failed", "verdicts")
    examples = data.read(given, unique=False, skip_bad=True) if given else []
    texts: dict[str, list[str | None]] = {}
    for example in examples:
        texts.setdefault(example.id, []).append(example.row.get("response"))
    by_id: dict[str, list[Json]] = {}
    for number, row in enumerate(rows, 1):
        forms.read(Scored, row, f"{file}, line {number}")
        response = texts[row["id"]].pop(0) if texts.get(row["id"]) else None
        by_id.setdefault(row["id"], []).append(row | {"response": response})
    groups = []
    for name, each in by_id.items():
        question = book.question(name, None)
        items = [book.item(question, place, item) for place, item in enumerate(each[0]["verdicts"])]
        alike = [row for row in each if len(row["verdicts"]) == len(items)]
        groups.append(book.group("scores", 0, question, items, [_answer(row) for row in alike]))
    explain(book, examples, {}, {})
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    table = {"mean reward": sum(rewards) / len(rewards) if rewards else None, "rows": len(rows)}
    return _of_file(book, groups, file, room) | {
        "kind": "scores",
        "about": {},
        "table": table | {"failed": len(rows) - len(rewards)},
    }


class Scored(ScoredRow):
    """What is shown of a line that `judge.py score` has written."""

    id: str = ABSENT
    verdicts: list[Verdict] = ABSENT


def of_replay(result: Json, file: Path) -> Json:
    """What evaluate.py replay prints last: a second judge beside the first, over the parts of a run."""
    steps = [{"step": part["to"]} | flat(without(part, "from", "to"), "replay/") for part in result["steps"]]
    return _pruned(Book(), []) | {
        "name": file.name,
        "kind": "replay",
        "about": {name: result[name] for name in ("judge", "after")},
        "metrics": columns(steps),
        "table": {name: each["value"] for name, each in result["all"].items()} | {"failed": result["failed"]},
    }


def beside(file: Path) -> Json:
    """The result that evaluate.py has written beside its rows; empty without one."""
    result = file.with_suffix(".json")
    return json_object(result) if result.is_file() else {}


def _source(given: Path | None, about: Json) -> Path | None:
    """The file of the questions, if it is still where the evaluation read it."""
    named = Path(str(about.get("data")))
    return given or (named if named.is_file() else None)


def _of_file(book: Book, groups: list[Json], file: Path, room: float) -> Json:
    """What the page shows of a file of rows. For the sample each question is a step."""
    sample = Sample(room)
    for group in groups:
        sample.add([group])
    return _pruned(book, sample.chosen()) | {
        "name": str(Path(*file.absolute().parts[-2:])),
        "sample": {"questions": sample.rule()},
    }


# --- which of these a path is -------------------------------------------------------------------------------


ROWS = {"healthbench.jsonl": of_healthbench, "gpqa.jsonl": of_gpqa}
"""What evaluate.py leaves in a folder."""


def inside(folder: Path) -> list[str]:
    """The files of evaluations in a folder."""
    return [name for name in ROWS if (folder / name).exists()]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's; one that is nothing else is read as a run's and refused as such."""
    return (folder / "config.json").exists() or not inside(folder)


def count(path: Path) -> int:
    """How many sources `read` finds: more than one in a run's folder with evaluations."""
    return is_run(path) + len(inside(path)) if path.is_dir() else 1


def read(path: Path, room: float, given: Path | None = None) -> Iterator[Json]:
    """What a page shows of a path: of a run's folder, of the rows of evaluations in a folder, or of a file.

    `given` names the questions of a file of rows, and for judge.py score also the answers. Raises ValueError
    for a path that is none of these.
    """
    if path.is_dir():
        if is_run(path):
            yield of_run(path, room)
        for name in inside(path):
            yield ROWS[name](path / name, room, given)
        return
    row, last = _ends(path)
    if {"steps", "after", "all"} <= last.keys():
        yield of_replay(last, path)
    elif {"prompt_id", "rubrics"} <= row.keys():
        yield of_healthbench(path, room, given)
    elif {"prompt_id", "correct", "run"} <= row.keys():
        yield of_gpqa(path, room, given)
    elif {"id", "verdicts", "failed"} <= row.keys():
        yield of_scores(path, room, given)
    else:
        raise ValueError(
            f"{path}: expected a run's folder, rows of evaluate.py healthbench or gpqa or of judge.py score, "
            "or what evaluate.py replay prints; got a file that is none of these"
        )


def _ends(path: Path) -> tuple[Json, Json]:
    """The first and the last line of a file as JSON objects, empty for other lines."""
    try:
        written = regular(path).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: expected a run's folder or a file; {error}") from None
    ends = []
    for line in (written[:1], written[-1:]):
        try:
            found = json.loads(line[0])
        except (IndexError, ValueError, RecursionError):
            found = None
        ends.append(found if isinstance(found, dict) else {})
    return ends[0], ends[1]
