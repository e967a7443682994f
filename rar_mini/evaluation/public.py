"""Public labels for judges, as their authors publish them: pairs of answers, and the verdicts of programs.

- LLMBar (arXiv 2310.07641): `input`, `output_1`, `output_2`, and `label`, 1 or 2, the output that follows the
  instruction.
- JudgeBench (arXiv 2410.12784): `question`, `response_A`, `response_B`, and `label`, A>B or B>A, by which
  answer is correct.
- IFEval (arXiv 2311.07911) and IFBench (arXiv 2507.02833), results of their programs: `prompt`, `response`,
  `instruction_id_list` and `follow_instruction_list`, the verdicts.

Nothing of them is bundled: a user brings the files, to measure judges and not to train them. docs/judges.md
says where they are and under which licence. Each row becomes one in rar-mini's form. A pair is a good and a
flawed answer, and its rubric one item: what its authors call better. An item of IFEval or IFBench is a
sentence made of an instruction's id (sample_data/checkers.json) and its arguments. The arguments, `kwargs`,
stand in the row or, as published, in the file of prompts, which has to lie in the same folder.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from rar_mini import data, forms, prompts
from rar_mini.data import SAMPLE, BadRow, Example, Name
from rar_mini.files import lines, parse, regular
from rar_mini.forms import ABSENT, Form, Many, Response, Text

Row = dict[str, Any]
Arguments = Mapping[str, list[Row | None]]
"""The `kwargs` of a prompt's instructions, by the prompt without its white space: results may lack some."""

FOLLOWS = "Does precisely what the question asks for, and nothing else."
CORRECT = "Gives the correct answer."


class LLMBar(Form):
    """A pair of LLMBar."""

    input: Text = ABSENT
    output_1: Response = ABSENT
    output_2: Response = ABSENT
    label: Literal[1, 2] = ABSENT

    def row(self, _: Arguments) -> Row:
        outputs = self.output_1, self.output_2
        return pair(self.input, FOLLOWS, *(outputs if self.label == 1 else outputs[::-1]))


class JudgeBench(Form):
    """A pair of JudgeBench."""

    pair_id: Name = None
    question: Text = ABSENT
    response_A: Response = ABSENT
    response_B: Response = ABSENT
    label: Literal["A>B", "B>A"] = ABSENT

    def row(self, _: Arguments) -> Row:
        responses = self.response_A, self.response_B
        better, worse = responses if self.label == "A>B" else responses[::-1]
        return {"id": self.pair_id} | pair(self.question, CORRECT, better, worse)


class Followed(Form):
    """An answer with the verdicts of IFEval's or IFBench's programs."""

    prompt: Text = ABSENT
    response: Response = ABSENT
    instruction_id_list: Many[Text] = ABSENT
    follow_instruction_list: Many[bool] = ABSENT
    kwargs: list[Row | None] | None = None

    def row(self, arguments: Arguments) -> Row:
        names, met = self.instruction_id_list, self.follow_instruction_list
        kwargs = self.kwargs or arguments.get(squeezed(self.prompt)) or [None] * len(names)
        for field, values in (("follow_instruction_list", met), ("kwargs", kwargs)):
            if len(values) != len(names):
                raise BadRow(forms.sentence(field, f"one for each of {len(names)} instructions", values))
        items = [item(name, sentence(name, own or {})) for name, own in zip(names, kwargs, strict=True)]
        quality = "good" if all(met) else "flawed" if any(met) else "empty"
        return labelled(self.prompt, items, (self.response, quality, met))


class Prompt(Form):
    """A prompt of IFEval or IFBench, in a file beside the results."""

    prompt: Text = ABSENT
    kwargs: list[Row | None] = ABSENT


FORMS: dict[str, type[LLMBar | JudgeBench | Followed]] = {
    "output_1": LLMBar,
    "response_A": JudgeBench,
    "follow_instruction_list": Followed,
}
"""By the column that no other form has."""


# --- rows in rar-mini's form --------------------------------------------------------------------------------


def pair(question: str, criterion: str, better: str, worse: str) -> Row:
    """The row of two answers of which one is better."""
    answers = (better, "good", [True]), (worse, "flawed", [False])
    return labelled(question, [item("Better", criterion)], *answers)


def labelled(question: str, items: list[Row], *answers: tuple[str, str, list[bool]]) -> Row:
    """The row of answers with their quality and their verdict on each item."""
    responses = [
        {"response": text, "quality": quality, "labels": [int(met) for met in labels]}
        for text, quality, labels in answers
    ]
    return {"question": question, "rubric": items, "labelled_responses": responses}


def item(title: str, sentence: str) -> Row:
    """An item as essential as any other."""
    return {"title": title, "description": f"Essential Criteria: {sentence}", "weight": 5}


def sentence(name: str, kwargs: Row) -> str:
    """An instruction as a criterion. Raises BadRow for an unknown one, or one that lacks an argument."""
    if (text := checkers().get(name)) is None:
        wanted = f"one of the {len(checkers())} instructions of IFEval and IFBench"
        raise BadRow(forms.sentence("instruction_id_list", wanted, name))
    values = {key: _written(value) for key, value in kwargs.items() if value is not None}
    if absent := [key for key in prompts.SLOT.findall(text) if key not in values]:
        wanted = f"{absent[0]} of the instruction {name}, here or in a file of prompts in the same folder"
        raise BadRow(forms.sentence("kwargs", wanted, None))
    return prompts.fill(text, **values)


def _written(value: Any) -> str:
    """An argument in a sentence: published files have 5.0 for 5."""
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def checkers() -> dict[str, str]:
    """The sentence of each instruction, with its arguments in braces."""
    return json.loads((SAMPLE / "checkers.json").read_text(encoding="utf-8"))


# --- files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file or folder with labels. A JSON or JSONL file is read once, also to tell the form of its rows."""

    path: Path

    @cached_property
    def rows(self) -> list[data.Row]:
        """The rows of a JSON or JSONL file, the first one parsed if it can be. Raises ValueError."""
        rows = list(_rows(self.path))
        if rows and isinstance(content := rows[0][3], bytes):
            with suppress(ValueError):  # whoever reads all rows says so
                if isinstance(row := parse(content.decode("utf-8-sig")), dict):
                    rows[0] = (*rows[0][:3], row)
        return rows

    @cached_property
    def first(self) -> Row:
        """The first row, empty if there is none, or none that can be read: whoever reads all of them says
        so."""
        if self.path.suffix not in (".json", ".jsonl") or not self.path.is_file():
            return {}
        try:
            row = self.rows[0][3]
        except (ValueError, IndexError):
            return {}
        return row if isinstance(row, dict) else {}

    @property
    def form(self) -> type[LLMBar | JudgeBench | Followed] | None:
        """The public form that the first row has."""
        return next((form for column, form in FORMS.items() if column in self.first), None)

    def __str__(self) -> str:
        return str(self.path)


def read(file: Path | Source, skip_bad: bool = False, notes: Counter[str] | None = None) -> list[Example]:
    """The rows of a file with labels, in one of the public forms or in rar-mini's. Raises BadRow as
    data.read does."""
    source = file if isinstance(file, Source) else Source(file)
    arguments = beside(source.path) if source.form is Followed else {}
    convert = partial(_converted, source.form, arguments) if source.form else None
    rows = source.rows if source.first else None
    return data.read(source.path, skip_bad=skip_bad, notes=notes, rows=rows, convert=convert)


def _rows(file: Path) -> Iterator[data.Row]:
    """The rows of a JSON file that is one list, or of a JSONL file."""
    if file.suffix != ".json":
        yield from data.lines(file)
        return
    try:
        rows = parse(regular(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: expected JSON in UTF-8, got {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"cannot read {file}: expected a list of rows, got a {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", f"row-{number}", "train", row


def _converted(form: type[LLMBar | JudgeBench | Followed], arguments: Arguments, row: Any) -> Row:
    """A row in rar-mini's form. Raises BadRow."""
    try:
        return form.model_validate(row).row(arguments)
    except ValidationError as error:
        raise BadRow(forms.fault(error)) from None


def beside(file: Path) -> Arguments:
    """The arguments of the prompts in the files beside one of results. Raises ValueError by file and line."""
    others = [other for other in sorted(file.parent.glob("*.jsonl")) if other != file and is_prompts(other)]
    numbered = ((other, n, row) for other in others for n, row in enumerate(lines(other, finished=True), 1))
    rows = [forms.read(Prompt, row, f"{other}, line {n}") for other, n, row in numbered]
    return {squeezed(row.prompt): row.kwargs for row in rows}


def is_prompts(file: Path) -> bool:
    """Whether a file has IFEval's or IFBench's prompts, without answers."""
    source = Source(file)
    return source.first.keys() >= {"prompt", "kwargs", "instruction_id_list"} and source.form is None


def squeezed(prompt: str) -> str:
    """A prompt without what published results differ in from published prompts."""
    return " ".join(prompt.split())
