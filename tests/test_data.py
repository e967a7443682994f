"""Reading rows, refusing bad ones by file, line and field, and drawing them in an order that resumes."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import question, write_rows

from rar_mini import data, rubric

PREFIXES = {"essential": {5}, "important": {3, 4}, "optional": {1, 2}, "pitfall": {-1, -2}}


@pytest.mark.parametrize("domain", ["medical", "science"])
def test_the_bundled_sample_is_as_readme_says(domain: str) -> None:
    examples = data.sample(domain)
    splits = Counter(example.split for example in examples)
    assert splits["train"] >= 32 and splits["held_out"] >= 16
    wordings = Counter()
    for example in examples:
        assert 7 <= len(example.rubric) <= 12, example.id
        assert {c.category for c in example.rubric.criteria} == set(PREFIXES), example.id
        for item in example.row["rubric"]:
            category, text, clean = rubric.category_of(item["description"], item["weight"])
            assert clean and item["weight"] in PREFIXES[category], (example.id, item)
            if category == "pitfall":
                wordings["avoidance" if "should not" in text or text.startswith("Avoid") else "failure"] += 1
    assert min(wordings.values()) >= 0.3 * wordings.total()
    labelled = [e for e in examples if "labelled_responses" in e.row and e.split == "held_out"]
    assert len(labelled) >= 10
    for example in labelled:
        answers = example.row["labelled_responses"]
        assert all(len(a["labels"]) == len(example.rubric) and set(a["labels"]) <= {0, 1} for a in answers)
        earned = {a["quality"]: float(np.dot(example.rubric.weights, a["labels"])) for a in answers}
        assert len(earned) == len(answers) >= 2
        assert all(earned[kind] < earned["good"] for kind in earned.keys() - {"good"}), example.id


ITEM = {"title": "a", "description": "b", "weight": 1}
TURN = {"role": "user", "content": "q"}
POINTS = {"prompt": [TURN], "prompt_id": "x", "rubrics": [{"criterion": "Says d", "points": -3, "tags": []}]}


def weighing(number: str) -> str:
    return json.dumps(question(1, rubric=[ITEM])).replace('"weight": 1', f'"weight": {number}')


BAD = {
    "not json": ("{oops", "JSON object"),
    "a JSON array": (json.dumps([question(1), question(2)]), "JSON object on one line, got a list"),
    "half of a pretty-printed row": ("{", "JSON object on one line"),
    "brackets without end": ("[" * 100_000, "JSON object"),
    "a number that Python will not read": ('{"id": ' + "9" * 5000 + "}", "JSON object"),
    "a question that is deep": ('{"question": ' + "[" * 400 + "]" * 400 + "}", "field question"),
    "no question": (json.dumps(question(1, question=" ")), "field question: expected text, got ' '"),
    "half a character": (json.dumps(question(1, question="\ud800")), "field question: expected whole"),
    "a reference of numbers": (json.dumps(question(1, reference_answer=[1])), "field reference_answer"),
    "no rubric": (json.dumps(question(1, rubric=[])), "field rubric"),
    "a rubric of texts": (json.dumps(question(1, rubric=["Says a"])), "field rubric[0]: expected an object"),
    "an item without a title": (
        json.dumps(question(1, rubric=[ITEM, {"description": "b", "weight": 5}])),
        "field rubric[1].title: expected text, got nothing",
    ),
    "a category and no more": (
        json.dumps(question(1, rubric=[ITEM | {"description": "Essential Criteria: "}])),
        "field rubric[0].description",
    ),
    "weights of zero": (weighing("0"), "weighs"),
    "a weight as text": (weighing('"5"'), "field rubric[0].weight: expected a number, got '5'"),
    "a weight as a truth": (weighing("true"), "field rubric[0].weight: expected a number, got True"),
    "a weight of NaN": (weighing("NaN"), "finite number from 1e-6 to 1e6 in size, got nan"),
    "an infinite weight": (weighing("-1e999"), "finite number from 1e-6 to 1e6 in size, got -inf"),
    "a weight that float32 lacks": (weighing("1e-60"), "finite number from 1e-6 to 1e6 in size, got 1e-60"),
    "an unknown split": (json.dumps(question(1, split="testmini")), "field split: expected one of train, "),
    "an unknown split of HealthBench's": (json.dumps(POINTS | {"split": ["test"]}), "field split"),
    "an id of lists": (json.dumps(question(1, id=[1])), "field id: expected text"),
    "an id again": (json.dumps(question(0)), "field id: expected another name than in line 1, got 'q0'"),
    "an empty prompt": (json.dumps({"prompt": [], "rubrics": []}), "field prompt"),
    "a prompt as text": (json.dumps(POINTS | {"prompt": "q"}), "field prompt: expected a list"),
    "a role of its own": (
        json.dumps(POINTS | {"prompt": [TURN | {"role": "doctor"}]}),
        "field prompt[0].role: expected system, user or assistant, got 'doctor'",
    ),
    "a message in parts": (
        json.dumps(POINTS | {"prompt": [TURN | {"content": [{"text": "q"}]}]}),
        "field prompt[0].content: expected text",
    ),
    "a prompt that is answered": (
        json.dumps(POINTS | {"prompt": [TURN, {"role": "assistant", "content": "a"}]}),
        "field prompt[1].role: expected user in the last message",
    ),
    "points as text": (
        json.dumps(POINTS | {"rubrics": [{"criterion": "a", "points": "5"}]}),
        "field rubrics[0].points",
    ),
    "no criterion": (json.dumps(POINTS | {"rubrics": [{"points": 5}]}), "field rubrics[0].criterion"),
    "ideal completions as text": (
        json.dumps(POINTS | {"ideal_completions_data": "a"}),
        "field ideal_completions_data",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    line, words = BAD[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(question(0)) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(data.BadRow) as error:
        data.read(path)
    assert f"{path}, line 3: " in str(error.value) and words in str(error.value)
    assert len(str(error.value)) < 500  # a row of megabytes is not shown whole
    notes: Counter[str] = Counter()
    assert [e.id for e in data.read(path, skip_bad=True, notes=notes)] == ["q0"]
    assert notes["rows left out as bad"] == 1


REFUSED = {
    "nothing": (b"\n \n", "no usable row.*an empty file"),
    "gzip": (gzip.compress(json.dumps(question(0)).encode()), "zero bytes.*unpack or convert"),
    "UTF-16": (json.dumps(question(0)).encode("utf-16"), "zero bytes.*unpack or convert"),
    "a pretty-printed array": (
        json.dumps([question(0)], indent=1).encode(),
        r"bad ones only.*line 1: .*'\['",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_row_is_refused_also_where_bad_rows_are_left_out(tmp_path: Path, name: str) -> None:
    content, words = REFUSED[name]
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        data.read(tmp_path / "rows", skip_bad=True)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none.jsonl", "cannot read"),
        (tmp_path, "no usable row.*an empty .*folder"),
    ):
        with pytest.raises(ValueError, match=words):
            data.read(path)


def test_files_from_windows_are_read(tmp_path: Path) -> None:
    """With a byte-order mark, with carriage returns, and one row in the code page of its machine."""
    rows = [json.dumps(question(i, question="naïve"), ensure_ascii=False) for i in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" + "\r\n".join(rows[:2]) + "\r\n").encode() + rows[2].encode("cp1252"))
    with pytest.raises(data.BadRow, match="line 3: expected a JSON object on one line, in UTF-8"):
        data.read(path)
    assert [e.id for e in data.read(path, skip_bad=True)] == ["q0", "q1"]


def test_a_row_may_have_no_id_a_null_or_a_number(tmp_path: Path) -> None:
    rows = [question(0, id=name) for name in (None, "", 0, 7)] + [question(0)]
    del rows[4]["id"]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert [e.id for e in data.read(path)] == ["line-1", "line-2", "0", "7", "line-5"]
    write_rows(path, [question(0, id=7), question(0, id="7")])
    with pytest.raises(data.BadRow, match="field id"):
        data.read(path)
    assert len(data.read(path, unique=False)) == 2


def test_what_was_resolved_is_counted_but_not_in_rows_left_out(tmp_path: Path) -> None:
    odd = [ITEM | {"description": f"{word} Criteria: X."} for word in ("Esssential", "Option", "Universal")]
    odd.append(ITEM | {"description": "Essential Criteria: X.", "weight": -2})
    rows = [question(0, rubric=odd), question(0, rubric=odd)]
    notes: Counter[str] = Counter()
    data.read(write_rows(tmp_path / "rows.jsonl", rows), skip_bad=True, notes=notes)
    assert notes == {
        "items whose category was read from the weight": 3,
        "items whose weight has the wrong sign for their category": 1,
        "rows left out as bad": 1,
    }


def test_a_line_separator_inside_a_text_does_not_cut_the_row(tmp_path: Path) -> None:
    """str.splitlines() cuts at U+2028, which JSON allows inside a string."""
    path = write_rows(tmp_path / "rows.jsonl", [question(0, question="one\u2028two")])
    assert data.read(path)[0].question == "one\u2028two"


def test_healthbench_rows_keep_their_turns_and_signed_points(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns.append({"role": "user", "content": "c"})
    row = POINTS | {"prompt": turns, "ideal_completions_data": {"ideal_completion": "d"}}
    other = POINTS | {"prompt_id": "y", "rubric": None}  # as a table of both forms writes it
    example, bare = data.read(write_rows(tmp_path / "rows.jsonl", [row, other]))
    assert example.id == "x" and list(example.messages) == turns
    assert example.question == "user: a\n\nassistant: b\n\nuser: c"
    assert example.rubric.weights == [-3.0] and not example.rubric.criteria[0].asks_avoidance
    assert (example.reference, bare.reference, bare.question) == ("d", "", "q")


def test_every_question_comes_once_an_epoch_and_none_is_dropped(questions: Path) -> None:
    """`num_samples // batch` drops the remainder; here steps run on over the end of an epoch."""
    examples = data.read(questions)
    drawn = [e.id for step in range(7) for e, _ in data.draw(examples, 3, 3 * step, seed=1)]
    assert len(drawn) == 21
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == sorted(e.id for e in examples)
    assert drawn[:7] != drawn[7:14]


def test_a_question_drawn_twice_in_a_step_is_a_second_visit(questions: Path) -> None:
    examples = data.read(questions)[:3]
    visits = [data.draw(examples, 2, 2 * step, seed) for step in range(3) for seed in range(20)]
    twice = [draw for draw in visits if draw[0][0].id == draw[1][0].id]
    assert twice and all([visit for _, visit in draw] == [0, 1] for draw in twice)
