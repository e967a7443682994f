"""Public labels are read as published, and a row that is off is refused by its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import question, write_rows

import evaluate
import judge as judges
from rar_mini import data, files, prompts
from rar_mini.evaluation import agreement, labelled, public
from rar_mini.evaluation import judges as table

pytestmark = pytest.mark.usefixtures("folder")

PAIR = {"input": "Name a bird.", "output_1": "An eel.", "output_2": "An owl.", "label": 2}
BENCH = {"pair_id": "p", "question": "2 + 2?", "response_A": "4", "response_B": "5", "label": "A>B"}
PROMPT = {"key": 7, "prompt": "Write a line.\nUse no comma, and 3 words."}
PROMPT |= {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"]}
FOLLOWED = {k: v for k, v in PROMPT.items() if k != "key"} | {"response": "One, two."}
FOLLOWED |= {"follow_all_instructions": False, "follow_instruction_list": [False, False]}
KWARGS = [{}, {"num_words": 3.0, "relation": "at least", "N": None}]


def written(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps(list(rows), indent=2), encoding="utf-8")
    return path


def test_a_pair_of_llmbar_is_a_good_and_a_flawed_answer(tmp_path: Path) -> None:
    file = written(tmp_path / "dataset.json", PAIR, PAIR | {"label": 1})
    (first, second), items = labelled.pairs(file, "all"), labelled.read(file, "all")
    assert (first.preferred, first.worsened) == ("An owl.", "An eel.") == (second.worsened, second.preferred)
    assert [(i.response, i.quality, i.labels) for i in items[:2]] == [
        ("An owl.", "good", [1.0]),
        ("An eel.", "flawed", [0.0]),
    ]
    (item,) = items[0].example.rubric.criteria
    assert (
        items[0].example.question == "Name a bird." and "precisely what the question asks" in item.description
    )


def test_a_pair_of_judgebench_says_which_answer_is_correct(tmp_path: Path) -> None:
    rows = [BENCH, BENCH | {"pair_id": "q", "label": "B>A"}]
    pairs = labelled.pairs(write_rows(tmp_path / "x.jsonl", rows), "all")
    assert [(p.example.id, p.preferred, p.worsened) for p in pairs] == [("p", "4", "5"), ("q", "5", "4")]


def test_an_instruction_is_a_sentence_with_the_arguments_of_its_prompt(tmp_path: Path) -> None:
    """The arguments stand in another file, under the prompt, whose white space results do not keep."""
    write_rows(tmp_path / "input_data.jsonl", [PROMPT | {"kwargs": KWARGS}])
    squeezed = FOLLOWED | {"prompt": PROMPT["prompt"].replace("\n", " ")}
    cases = [([True, True], "good"), ([True, False], "flawed"), ([False, False], "empty")]
    rows = [squeezed | {"follow_instruction_list": met} for met, _ in cases]
    items = labelled.read(write_rows(tmp_path / "eval_results_strict.jsonl", rows), "all")
    assert [(item.labels, item.quality) for item in items] == cases
    sentences = [criterion.description for criterion in items[0].example.rubric.criteria]
    assert sentences == ["Has no comma.", "Has at least 3 words."]


def test_arguments_in_the_row_itself_need_no_other_file(tmp_path: Path) -> None:
    (item,) = labelled.read(write_rows(tmp_path / "x.jsonl", [FOLLOWED | {"kwargs": KWARGS}]), "all")
    assert item.example.rubric.criteria[1].description == "Has at least 3 words."


def test_arguments_that_no_sentence_has_are_left_alone(tmp_path: Path) -> None:
    kwargs = [{"text": "a", "self": 1}, KWARGS[1]]
    (item,) = labelled.read(write_rows(tmp_path / "x.jsonl", [FOLLOWED | {"kwargs": kwargs}]), "all")
    assert item.example.rubric.criteria[0].description == "Has no comma."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kwargs": 5}, "field kwargs: expected a list, got 5"),
        ({"kwargs": [5]}, r"field kwargs\[0\]: expected an object, got 5"),
        ({"prompt": 5, "kwargs": KWARGS}, "field prompt: expected text, got 5"),
    ],
)
def test_a_prompt_that_is_off_is_refused_by_file_and_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_rows(tmp_path / "input_data.jsonl", [PROMPT | {"kwargs": KWARGS}, PROMPT | changes])
    file = write_rows(tmp_path / "x.jsonl", [FOLLOWED])
    with pytest.raises(ValueError, match=rf"input_data\.jsonl, line 2: {words}"):
        labelled.read(file, "all")


def test_an_instruction_without_arguments_needs_no_file_of_prompts(tmp_path: Path) -> None:
    row = FOLLOWED | {"instruction_id_list": ["punctuation:no_comma"], "follow_instruction_list": [True]}
    (item,) = labelled.read(write_rows(tmp_path / "x.jsonl", [row]), "all")
    assert item.labels == [1.0]


def test_every_known_instruction_makes_a_sentence() -> None:
    """25 of IFEval, 58 of IFBench; a value with braces is no argument's place."""
    texts = public.checkers()
    assert len(texts) == 83 and len(set(texts.values())) == 83
    for name, text in texts.items():
        filled = public.sentence(name, {slot: "{N}" for slot in prompts.SLOT.findall(text)})
        assert filled.replace("{N}", "").count("{") == 0 and filled[0].isupper(), name


BAD = {
    "no output": (
        "x.json",
        PAIR | {"output_2": None},
        "x.json, row 2: field output_2: expected text, got no",
    ),
    "no such label": ("x.json", PAIR | {"label": 3}, "x.json, row 2: field label: expected 1 or 2, got 3"),
    "a label in words": (
        "x.jsonl",
        BENCH | {"label": "A"},
        "x.jsonl, line 2: field label: expected 'A>B' or",
    ),
    "a verdict as a number": (
        "x.jsonl",
        FOLLOWED | {"follow_instruction_list": [1, 0]},
        "x.jsonl, line 2: field follow_instruction_list[0]: expected true or false, got 1",
    ),
    "a verdict too few": (
        "x.jsonl",
        FOLLOWED | {"follow_instruction_list": [True], "kwargs": KWARGS},
        "x.jsonl, line 2: field follow_instruction_list: expected one for each of 2 instructions, got [True]",
    ),
    "an unknown instruction": (
        "x.jsonl",
        FOLLOWED | {"instruction_id_list": ["a:b", "c:d"], "kwargs": KWARGS},
        "x.jsonl, line 2: field instruction_id_list: expected one of the 83 instructions",
    ),
    "no arguments anywhere": (
        "x.jsonl",
        FOLLOWED,
        "x.jsonl, line 2: field kwargs: expected relation of the instruction length_constraints:number_words",
    ),
    "no object": ("x.json", 7, "x.json, row 2: expected an object, got 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_is_off_is_refused_by_file_and_place(tmp_path: Path, case: str) -> None:
    name, row, words = BAD[case]
    good = PAIR if name == "x.json" else BENCH if "response_A" in row else FOLLOWED | {"kwargs": KWARGS}
    write = written if name == "x.json" else lambda path, *rows: write_rows(path, list(rows))
    file = write(tmp_path / name, good, row)
    with pytest.raises(ValueError, match="pass --skip-bad-rows") as refused:
        labelled.read(file, "all")
    assert words in str(refused.value)
    assert labelled.read(file, "all", skip_bad=True), "the other row is read"


def test_a_list_that_is_no_list_is_refused(tmp_path: Path) -> None:
    """The first row tells which form a file has, and without one it is read as rows of ours."""
    file = tmp_path / "x.json"
    file.write_text('{"input": "a"}')
    with pytest.raises(ValueError, match=r"x\.json.* expected"):
        labelled.read(file, "all")


def test_a_file_is_parsed_once_to_tell_its_form_and_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list as a whole, JSONL row by row, also for a table of a folder, which names its files by form."""
    parsed: list[Any] = []
    for module in (public, data):
        monkeypatch.setattr(module, "parse", lambda text: parsed.append(text) or files.parse(text))
    written(tmp_path / "dataset.json", PAIR, PAIR)
    write_rows(tmp_path / "bench.jsonl", [BENCH])
    write_rows(tmp_path / "results.jsonl", [FOLLOWED | {"kwargs": KWARGS}] * 2)
    for path in sorted(tmp_path.iterdir()):
        labelled.read(path, "all")
    assert len(parsed) == 1 + 1 + 2 + 1, "results.jsonl looks for prompts in bench.jsonl"
    parsed.clear()
    assert len(table.sets_of([str(tmp_path)], None, 0, False)) == 3
    assert len(parsed) == 1 + 1 + 2 + 1


def test_rows_of_our_own_form_may_be_a_list_too(tmp_path: Path) -> None:
    row = question(0, labelled_responses=[{"response": "a", "quality": "good", "labels": [1] * 15}])
    (item,) = labelled.read(written(tmp_path / "x.json", row), "all")
    assert item.response == "a" and len(item.labels) == len(item.example.rubric)


def test_both_commands_read_public_pairs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = written(tmp_path / "dataset.json", PAIR)
    judging = judges.Options(cache=False)
    evaluate.measure("keyword", data=file, injections=0, judging=judging)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["categories"]["all"]["verdicts"] == 2
    evaluate.align("keyword", data=file, judging=judging)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"] == 1


def test_balanced_accuracy_is_a_half_for_a_judge_that_always_says_no() -> None:
    """28 % of IFBench's verdicts are met: such a judge is right 72 times in a hundred."""
    label = np.array([1.0] * 28 + [0.0] * 72)
    no, known = np.zeros(100), np.where(np.arange(100) % 2, label, 0.0)
    assert agreement.accuracy(no, label) == 0.72 and agreement.balanced(no, label) == 0.5
    assert agreement.balanced(known, label) == pytest.approx((0.5 + 1.0) / 2)
    assert np.isnan(agreement.balanced(no, np.zeros(100)))
