"""Writes rubrics for questions that have none, by the paper's rules, and checks files of rubrics.

    python -m rar_mini.tools.synthesize IN.jsonl --writer chat:NAME --domain medical --out OUT.jsonl
    python -m rar_mini.tools.synthesize FILE.jsonl --check

A chat model sees a question and its reference answer between fences, and replies with 7 to 20 items. What
this file decided:

- **A rubric is taken whole or not at all.** If it breaks a rule, the writer is asked again, with its own
  draft and the faults by name. A rubric that is still broken then is listed at the end and never written to
  OUT, which `train.py --data` reads. The same command asks for the missing ones again.
- **Weights follow categories in both domains.** The paper says so for medicine only. In the released data a
  weight tells its category in both, and readers rely on that if a prefix is odd.
- **A copied sentence** has eight words or more and stands word for word in the reference answer. Shorter runs
  may be formulas, doses and lists of drugs, which an item has to name.
- **No structured output**: the paper's form is an array, which strict schemas do not allow as a whole reply.
"""

import json
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from rar_mini import data, prompts
from rar_mini.config import Asking
from rar_mini.data import Example
from rar_mini.files import cache_folder, digest, kept_rows
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Endpoint, Failure, Request
from rar_mini.judging.ledger import Account
from rar_mini.options import run_command
from rar_mini.progress import progress_bar
from rar_mini.prompts import fill
from rar_mini.redact import refuse_key
from rar_mini.turns import inert, without_thoughts

LEAST, MOST = 7, 20
"""How many items a rubric has."""

ADDED = ("check", "polarity", "choices")
"""What a reader adds to an item: the rules are about what a writer writes, and data.read has read these."""

WEIGHTS = {"Essential": (5,), "Important": (3, 4), "Optional": (1, 2), "Pitfall": (-1, -2)}
"""What an item of each category may weigh."""

COPIED = 8
"""Words that a sentence of the reference answer has at least to count as copied."""

CHUNK = 256
"""Questions that are asked about and written at a time. What an interrupted command had not written is in the
cache."""

_CATEGORY = re.compile(rf"({'|'.join(WEIGHTS)}) Criteria: *(?=\S)")


# --- the rules ----------------------------------------------------------------------------------------------


def faults(items: Any, reference: str = "") -> list[str]:
    """What is wrong with a rubric, in words; nothing if it keeps every rule. `items` is what JSON held, in
    whatever form."""
    if not isinstance(items, list):
        return [_fault("list", items)]
    wrong = [] if LEAST <= len(items) <= MOST else [_fault("count", len(items))]
    sentences = [_words(sentence) for sentence in re.split(r"(?<=[.!?])\s+|\n", reference)]
    sentences = [sentence for sentence in sentences if len(sentence.split()) >= COPIED]
    categories, places = set(), {}
    for number, item in enumerate(items[:MOST], 1):
        own = _item_faults(item, sentences)
        if not own:
            category, _, text = item["description"].partition(" Criteria:")
            categories.add(category)
            first = {places.setdefault(_words(each), number) for each in (item["title"], text)}
            own = [_fault("twice", earlier) for earlier in first - {number}]
        wrong += [f"item {number}: {fault}" for fault in own]
    return wrong if "Pitfall" in categories else [*wrong, _fault("pitfall")]


def _item_faults(item: Any, sentences: Sequence[str]) -> list[str]:
    """What is wrong with an item by itself; `sentences` are those that it must not copy."""
    if not isinstance(item, dict) or item.keys() != {"title", "description", "weight"}:
        return [_fault("keys", item)]
    title, description, weight = item["title"], item["description"], item["weight"]
    wrong = [] if _line(title) and 2 <= len(title.split()) <= 4 else [_fault("title", title)]
    category = _CATEGORY.match(description) if _line(description) else None
    if not category:
        return [*wrong, _fault("description", description)]
    allowed = WEIGHTS[category[1]]
    if type(weight) is not int or weight not in allowed:
        wrong.append(_fault("weight", weight, wanted=" or ".join(map(str, allowed))))
    copied = [sentence for sentence in sentences if f" {sentence} " in f" {_words(description)} "]
    return wrong + [_fault("copied", sentence) for sentence in copied]


def _line(value: Any) -> bool:
    """Whether a value is one line of text that files and chat templates take as it is."""
    return isinstance(value, str) and len(value.splitlines()) == 1 and inert(value) == value


def _words(text: str) -> str:
    """A text's words and numbers in lower case, with one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _fault(name: str, came: Any = None, **values: str) -> str:
    values |= {"came": reprlib.repr(came), "least": str(LEAST), "most": str(MOST)}
    return fill(prompts.RUBRIC_FAULTS[name], **values)


# --- the writer ---------------------------------------------------------------------------------------------


class RubricWriter:
    """A chat model, and the instructions for its domain, with reference answers or without.

    `spec` is `chat:NAME`. Raises ValueError for what does not exist.
    """

    def __init__(self, spec: str, domain: str, reference: bool, asking: Asking) -> None:
        kind, _, self.model = spec.partition(":")
        if kind != "chat" or not self.model:
            refuse_key("--writer", spec)
            raise ValueError(f"no writer {spec!r}: expected chat:NAME with a model's name")
        self.endpoint, self.max_tokens = Endpoint.of(self.model, asking), asking.max_tokens
        self._secret, self._reference = wires.fence_secret(cache_folder()), reference
        texts = prompts.WRITER_DOMAINS[domain] | {"ground": prompts.WRITER_GROUND[reference]}
        self._system = fill(prompts.WRITER, least=str(LEAST), most=str(MOST), **texts)

    def _messages(self, example: Example, fence: str) -> list[dict[str, str]]:
        reference = prompts.WRITER_REFERENCE if self._reference else ""
        text = prompts.WRITER_QUESTION + reference + prompts.WRITER_TASK
        shown = {"question": inert(example.question), "reference": inert(example.reference)}
        user = fill(text, **shown, fence=fence)
        return [{"role": "system", "content": self._system}, {"role": "user", "content": user}]

    def request(self, example: Example) -> Request:
        """A request for a rubric; its answer is a list of items without a fault."""
        messages = self._messages(example, wires.fence(self._secret, example.question, example.reference))
        body = {"model": self.model, "messages": messages, "temperature": 0.0, "seed": 0}
        body["max_tokens"] = self.max_tokens
        reader = partial(read, reference=example.reference if self._reference else "")
        return Request("/chat/completions", body, reader, partial(_again, messages))

    def digest(self, example: Example) -> str:
        """16 hexadecimal digits that change with the writer, with what it is shown and with what is kept of
        the question's row."""
        return digest([self.endpoint.address, self.model, self._messages(example, ""), _row(example, [])])


def read(reply: dict[str, Any], reference: str) -> list[dict[str, Any]]:
    """The rubric that a chat completion consists of. Raises Failure if it is none, or breaks a rule."""
    items = wires.only_json(wires.chat_text(reply))
    if wrong := faults(items, reference):
        raise Failure("faulty", "; ".join(wrong))
    return items


def _again(messages: list[dict[str, str]], body: dict, reply: dict, failure: Failure) -> dict[str, Any]:
    """The next try: with the draft, if it could be read, and what is wrong with it."""
    system, user = messages
    if failure.kind == "faulty":
        draft = inert(without_thoughts(wires.chat_text(reply)))
        correction = fill(prompts.WRITER_AGAIN["faulty"], faults=inert(failure.words))
        turns = [user, {"role": "assistant", "content": draft}, {"role": "user", "content": correction}]
    else:  # in the same turn, because some templates refuse two turns of a user
        turns = [user | {"content": f"{user['content']}\n{prompts.WRITER_AGAIN['unread']}"}]
    return body | {"messages": [system, *turns], "seed": body["seed"] + 1}


def _row(example: Example, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A data row with a new rubric. Other fields of the question's row are left out: labels of an old rubric
    would be wrong."""
    row = {"id": example.id, "split": example.split, "question": example.question}
    row |= {"reference_answer": example.reference, "question_source": example.row.get("question_source")}
    row |= {"hidden": example.hidden} if example.hidden else {}
    return row | {"rubric": items}


def write(file: Path, examples: Sequence[Example], writer: RubricWriter, out: Path) -> None:
    """Append to OUT the rubrics that it lacks. If the writer fails at some, prints why and raises ValueError
    after all were asked for."""
    todo = {writer.digest(example): example for example in examples}
    wanted = f"a rubric by this writer for a row of {file}"
    failed: dict[str, Failure] = {}
    try:
        with (
            kept_rows(out, file, lambda _, key: todo.pop(key, None), wanted) as rows,
            open(out, "a", encoding="utf-8", errors="backslashreplace") as stream,  # as JSON escapes halves
            progress_bar(total=len(todo), desc="writing") as bar,
        ):
            writer.endpoint.ledger.carry(Account.beside(out))
            if rows:
                print(f"{out} has {len(rows)} of {len(examples)} rows: going on from there", file=sys.stderr)
            for start in range(0, len(todo), CHUNK):
                chunk = list(todo.items())[start : start + CHUNK]
                answers = writer.endpoint.ask((writer.request(example) for _, example in chunk), bar.update)
                for (asked, example), answer in zip(chunk, answers, strict=True):
                    if isinstance(answer, Failure):
                        failed[example.id] = answer
                    else:
                        row = _row(example, answer) | {"writer": f"chat:{writer.model}", "asked": asked}
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                stream.flush()
    finally:
        writer.endpoint.close()
        print(f"writer: {writer.endpoint.ledger.line()}", file=sys.stderr)
        for name, failure in failed.items():
            print(f"{name!r}: {failure}", file=sys.stderr)
    print(f"{len(examples) - len(failed)} of {len(examples)} rubrics are in {out}")
    if failed:
        raise ValueError(
            f"{len(failed)} rubrics could not be had, see above; the same command asks for them again"
        )


# --- the check ----------------------------------------------------------------------------------------------


def lint(file: Path, examples: Sequence[Example]) -> None:
    """Print what is wrong with the rubrics of a file. Raises ValueError, after all were read, if anything is.

    An item that no labelled response fails, or that none meets, is no fault, but the labels then say nothing
    about a judge's verdicts on it.
    """
    count: Counter[str] = Counter()
    for example in examples:
        items = example.row.get("rubric")
        written = items and [{name: item[name] for name in item if name not in ADDED} for item in items]
        wrong, labels = faults(written, example.reference), _labels(example.row, items)
        if labels is None:
            wrong.append("labelled_responses: expected `labels` in each, 0 or 1 for every item")
        for fault in wrong:
            print(f"{example.id!r}: {fault}")
        count.update(faults=len(wrong), rubrics=int(bool(wrong)))
        for verb, value in (("fails", 1), ("meets", 0)):
            columns = enumerate(zip(*labels or [], strict=True), 1)
            if dead := [str(number) for number, column in columns if {*column} == {value}]:
                count[verb] += len(dead)
                print(
                    f"{example.id!r}: no labelled response (of {len(labels)}) {verb} items {', '.join(dead)}"
                )
    print(f"{count['fails']} items that no labelled response fails, {count['meets']} that none meets")
    total = f"faults: {count['faults']} in {count['rubrics']} of {len(examples)} rubrics of {file}"
    if count["faults"]:
        raise ValueError(total)
    print(total)


def _labels(row: dict[str, Any], items: Any) -> list[list[int]] | None:
    """The labels of each labelled response, None if they do not fit the items."""
    try:
        labels = [answer["labels"] for answer in row.get("labelled_responses") or []]
        return labels if all(len(each) == len(items) and {*each} <= {0, 1} for each in labels) else None
    except (TypeError, KeyError):
        return None


# --- the command line ---------------------------------------------------------------------------------------


def main(
    file: tyro.conf.Positional[Path],
    /,
    writer: str | None = None,
    domain: Literal["medical", "science"] | None = None,
    out: Path | None = None,
    reference: bool = True,
    check: bool = False,
    skip_bad_rows: bool = False,
    asking: tyro.conf.OmitArgPrefixes[Asking] = Asking(max_tokens=4096),  # noqa: B008, frozen
) -> None:
    """Write rubrics for a file of questions, or check one that has them.

    Args:
        file: data rows in JSONL or Parquet; to write, a question and a reference answer are enough
        writer: chat:NAME
        domain: which subject's instructions the writer gets, medical or science
        out: where rows with rubrics go; rubrics that it already has, by this writer for these rows, are kept
        reference: show the reference answers to the writer
        check: write nothing, and list what is wrong with the rubrics of the file
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of stopping at the first
    """
    if any((writer, domain, out)) if check else not all((writer, domain, out)):
        raise ValueError("expected --writer, --domain and --out, or --check alone")
    notes: Counter[str] = Counter()
    examples = data.read(file, bare=True, skip_bad=skip_bad_rows, notes=notes)
    for note, number in notes.items():
        print(f"{note}: {number}", file=sys.stderr)
    if check:
        return lint(file, examples)
    if any(example.split == "test" for example in examples):
        raise ValueError(
            f"{file} has a test split, which nothing is trained on: expected another of its files"
        )
    lacking = [example.id for example in examples if not example.reference]
    if reference and lacking:
        raise ValueError(
            f"{file}: expected a reference answer in every row, {len(lacking)} of {len(examples)} have none, "
            f"{lacking[0]!r} first; leave those rows out, or show the writer none with --no-reference"
        )
    write(file, examples, RubricWriter(writer, domain, reference, asking), out)


if __name__ == "__main__":
    run_command(main, "python -m rar_mini.tools.synthesize", __doc__)
