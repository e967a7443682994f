r"""Choices that hold if a question is posed otherwise, and policies that they do not hold for."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import Server
from test_gpqa import run, sheet
from tiny import write_rows

import evaluate
from rar_mini.config import Options
from rar_mini.data import Example
from rar_mini.evaluation import gpqa, robustness
from rar_mini.evaluation.answers import Answering

pytestmark = pytest.mark.usefixtures("folder")

FORMS = [robustness.PLAIN]
FORMS += [f"{kind}-{n}" for kind in ("shuffled", "relabelled", "paraphrased") for n in (1, 2)]


def forms(tmp_path: Path, count: int = 1, seed: int = 0) -> list[Example]:
    return robustness.variants(gpqa.read(sheet(tmp_path / "x.csv", count)), seed)


def of(examples: list[Example], variant: str) -> Example:
    return next(example for example in examples if example.row["variant"] == variant)


# --- the forms ----------------------------------------------------------------------------------------------


def test_a_question_is_asked_once_in_each_form_and_one_thing_changes_at_a_time(tmp_path: Path) -> None:
    examples = forms(tmp_path)
    assert [example.row["variant"] for example in examples] == FORMS
    (plain,) = gpqa.permuted(gpqa.read(tmp_path / "x.csv"), 1, seed=0)
    rows = {example.row["variant"]: example.row for example in examples}
    assert of(examples, "plain").messages == plain.messages
    for name, row in rows.items():
        kind = name.split("-")[0]
        assert (row["choices"] != plain.row["choices"]) == (kind == "shuffled")
        assert (row["marks"] != list("ABCD")) == (kind == "relabelled")
        assert row["choices"][row["marks"].index(row["right"])] == "right 0"
    assert rows["relabelled-1"]["marks"] == list("1234") and rows["relabelled-2"]["marks"] == list("PQRS")
    assert len({example.question for example in examples}) == 7
    assert "give the number of the one right choice" in of(examples, "relabelled-1").question


def test_every_form_shows_the_question_and_each_choice_behind_its_mark(tmp_path: Path) -> None:
    for example in forms(tmp_path, 3):
        number, row = example.row["question"].removeprefix("rec"), example.row
        assert f'Which, "of, {number}",\nis it?' in example.question and r"\boxed{}" in example.question
        listed = "\n".join(f"{m}) {c}" for m, c in zip(row["marks"], row["choices"], strict=True))
        assert f"\n\n{listed}\n\n" in example.question


def test_the_right_choice_stands_everywhere_alike(tmp_path: Path) -> None:
    examples = forms(tmp_path, 60)
    for name in ("plain", "shuffled-1", "shuffled-2"):
        places = Counter(e.row["right"] for e in examples if e.row["variant"] == name)
        assert all(5 <= places[mark] <= 27 for mark in "ABCD"), "of 60, 15 each are expected"
    other = forms(tmp_path, 60, seed=1)
    assert [e.row["choices"] for e in other] != [e.row["choices"] for e in examples]


def test_two_choices_have_one_other_order() -> None:
    question = {"id": "q", "question": "?", "choices": ["u", "v"], "right": 0}
    names = [example.row["variant"] for example in robustness.variants([question], 0)]
    assert names == [name for name in FORMS if name != "shuffled-2"]


def test_marks_that_are_also_the_text_of_a_choice_are_not_used() -> None:
    r"""\boxed{2} may mean the second choice or the number."""
    question = {"id": "q", "question": "?", "choices": ["2", "4", "8"], "right": 0}
    names = [example.row["variant"] for example in robustness.variants([question], 0)]
    assert "relabelled-1" not in names and "relabelled-2" in names
    question["choices"] = ["p.", "3", "8"]
    names = [example.row["variant"] for example in robustness.variants([question], 0)]
    assert "relabelled-1" not in names and "relabelled-2" not in names


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        (r"\boxed{2}", "2"),
        (r"\boxed{(2)}", "2"),
        (r"\boxed{2) v}", "2"),
        (r"\boxed{v}", "2"),
        (r"\boxed{2) u}", None),  # the mark of one and the text of another
        (r"\boxed{12}", "12"),
        (r"\boxed{13}", None),
        (r"\boxed{1.5}", None),
        (r"\boxed{B}", None),
    ],
)
def test_a_number_is_read_where_numbers_are_marks(answer: str, mark: str | None) -> None:
    choices = ["u", "v", *(f"w{n}" for n in range(10))]
    assert gpqa.choice_of(answer, choices, robustness.MARKS[0]) == mark


# --- the measures -------------------------------------------------------------------------------------------


def row(question: str, variant: str, read: str | None, **changes: Any) -> dict:
    """An answer to a question whose right choice, v, is B."""
    found = {"question": question, "variant": variant, "choices": ["u", "v"], "marks": ["A", "B"]}
    found |= {"right": "B", "read": read, "correct": read == "B", "verified": None, "failed": False}
    return found | {"response": "x", "finished": True} | changes


def test_a_flip_is_another_choice_and_not_another_mark() -> None:
    swapped = {"choices": ["v", "u"], "right": "A"}
    rows = [row("q", "plain", "B"), row("q", "shuffled-1", "A", **swapped, correct=True)]
    assert robustness.report(rows)["flipped"]["value"] == 0.0
    rows = [row("q", "plain", "A"), row("q", "shuffled-1", "A", **swapped, correct=True)]
    found = robustness.report(rows)
    assert found["flipped"]["value"] == 1.0 and found["accuracy"]["value"] == 0.5
    assert found["worst"]["value"] == 0.0


def test_a_choice_that_is_not_known_is_no_flip() -> None:
    rows = [row("q", "plain", "B"), row("q", "shuffled-1", None), row("r", "plain", None)]
    rows += [row("r", "shuffled-1", "B")]
    found = robustness.report(rows)
    assert math.isnan(found["flipped"]["value"]) and found["unread"] == 2
    assert found["accuracy"]["value"] == 0.5 and found["worst"]["value"] == 0.0
    verified = row("q", "shuffled-1", None, verified=0.9, correct=True)
    assert robustness.report([row("q", "plain", "B"), verified])["flipped"]["value"] == 0.0


def test_a_failed_row_is_left_out_and_hides_no_wrong_one() -> None:
    failed = {"read": None, "correct": None, "failed": True, "response": None}
    rows = [row("q", "plain", "B"), row("q", "shuffled-1", "B") | failed]
    found = robustness.report(rows)
    assert found["accuracy"]["value"] == 1.0 and math.isnan(found["worst"]["value"])
    assert found["failed"] == 1 and math.isnan(found["flipped"]["value"])
    found = robustness.report([*rows, row("q", "paraphrased-1", "A")])
    assert found["worst"]["value"] == 0.0 and found["accuracy"]["value"] == 0.5


def test_a_question_with_a_form_that_was_too_long_is_not_right_in_every_form(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    *asked, left_out = forms(tmp_path)
    rows = [row("rec0", example.row["variant"], "B") for example in asked]
    found = robustness.report(rows, [left_out])
    assert math.isnan(found["worst"]["value"]) and found["accuracy"]["value"] == 1.0
    said = capsys.readouterr().out
    assert "of 0 questions are right in every form" in said and "skipped   1 paraphrased-2: too long" in said
    rows[0] |= {"read": "A", "correct": False}
    assert robustness.report(rows, [left_out])["worst"]["value"] == 0.0


def test_intervals_are_over_questions() -> None:
    """Ten questions of which half flip, in all their variants: 0.5 with the width of ten cases, not sixty."""
    rows = []
    for i in range(10):
        rows += [row(f"q{i}", "plain", "B")]
        rows += [row(f"q{i}", name, "B" if i % 2 else "A") for name in FORMS[1:]]
    found = robustness.report(rows)["flipped"]
    assert found["value"] == 0.5 and found["low"] <= 0.3 and found["high"] >= 0.7


# --- the command --------------------------------------------------------------------------------------------


def meant(body: dict, text: str = "right") -> str:
    """The mark of the first choice in a prompt that begins with a text, whatever the prompt's form."""
    return re.search(rf"^(\w)\) {text}", body["messages"][-1]["content"], re.M)[1]


def test_an_oracle_never_flips(server: Server, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    server.reply = lambda path, body: rf"\boxed{{{meant(body)}}}"
    found = run(capsys, tmp_path, variants=True)
    assert (found["questions"], found["rows"], found["unread"]) == (6, 42, 0)
    assert found["accuracy"] == found["worst"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["flipped"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["variants"].keys() == set(FORMS)


def test_a_policy_that_always_says_a_is_moved_by_shuffling_alone(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    server.reply = lambda path, body: r"\boxed{A}"
    found = run(capsys, tmp_path, variants=True)
    flipped = {name: part["flipped"]["value"] for name, part in found["variants"].items()}
    assert flipped["shuffled-1"] > 0.4 and flipped["shuffled-2"] > 0.4
    assert flipped["paraphrased-1"] == flipped["paraphrased-2"] == 0.0
    assert flipped["relabelled-1"] is None and found["unread"] == 12, "there is no A among these marks"
    assert found["worst"]["value"] == 0.0


def test_a_killed_evaluation_goes_on_with_the_same_numbers(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """A policy that takes the first choice: sometimes right, and moved by shuffling alone."""
    server.reply = lambda path, body: rf"\boxed{{{meant(body, '')}}}"
    whole = run(capsys, tmp_path, variants=True)
    kept = tmp_path / "out" / "gpqa-variants.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:20]) + lines[20][:30])
    before = len(server.seen)
    assert run(capsys, tmp_path, variants=True) == whole and len(server.seen) == before + 22
    assert sorted(map(json.dumps, map(json.loads, kept.read_text().splitlines()))) == sorted(
        map(json.dumps, map(json.loads, lines))
    )
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines).replace('"right": "A"', '"right": "Z"') + "\n")
    with pytest.raises(ValueError, match="gpqa-variants.jsonl, line .*field right: expected the mark of a"):
        run(capsys, tmp_path, variants=True)


def test_forms_that_are_too_long_are_left_out_and_named(
    capsys: pytest.CaptureFixture, tmp_path: Path, tiny: Path
) -> None:
    """The tiny policy has a window of 512 tokens, one for each byte: the paraphrases alone are too long."""
    row = {"question": "?" * 240, "choices": ["u", "v", "w", "x"], "answer": 0}
    data = write_rows(tmp_path / "long.jsonl", [row])
    evaluate.on_gpqa(
        data,
        variants=True,
        judging=Options(),
        asking=Answering(policy=str(tiny), out=tmp_path, max_new_tokens=8, long_prompts="skip"),
    )
    said = capsys.readouterr().out
    assert "skipped   1 paraphrased-1, 1 paraphrased-2: too long" in said
    result = json.loads(said.splitlines()[-1])
    assert (result["rows"], result["skipped"]) == (5, 2)


def test_runs_do_not_go_with_variants(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--variants asks a question once in each form: leave out --runs 3"):
        run(capsys, tmp_path, variants=True, runs=3)
