"""Reading rows, refusing bad ones by file, line and field, and drawing them in an order that resumes."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import question, write_rows

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
        assert [answer["quality"] for answer in answers] == ["good", "flawed"]
        assert all(len(a["labels"]) == len(example.rubric) and set(a["labels"]) <= {0, 1} for a in answers)
        good, flawed = (
            sum(w * v for w, v in zip(example.rubric.weights, a["labels"], strict=True)) for a in answers
        )
        assert good > flawed, example.id


BAD = {
    "not json": ("{oops", "JSON object"),
    "not an object": ("[1]", "JSON object"),
    "no question": (json.dumps(question(1, question=" ")), "field question"),
    "no rubric": (json.dumps(question(1, rubric=[])), "field rubric"),
    "weights of zero": (
        json.dumps(question(1, rubric=[{"title": "a", "description": "b", "weight": 0}])),
        "weighs",
    ),
    "a weight as text": (
        json.dumps(question(1, rubric=[{"title": "a", "description": "b", "weight": "5"}])),
        "field rubric[0].weight",
    ),
    "a weight of NaN": (
        '{"question": "q", "rubric": [{"title": "a", "description": "b", "weight": NaN}]}',
        "finite",
    ),
    "another split": (json.dumps(question(1, split="test")), "field split"),
    "an id again": (json.dumps(question(0)), "field id"),
    "an empty prompt": (json.dumps({"prompt": [], "rubrics": []}), "field prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    line, words = BAD[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(question(0)) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(data.BadRow) as error:
        data.read(path)
    assert f"{path}, line 3" in str(error.value) and words in str(error.value)
    notes: Counter[str] = Counter()
    assert [e.id for e in data.read(path, skip_bad=True, notes=notes)] == ["q0"]
    assert notes["rows left out as bad"] == 1


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no usable row"):
        data.read(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="cannot read"):
        data.read(tmp_path / "none.jsonl")


def test_a_line_separator_inside_a_text_does_not_cut_the_row(tmp_path: Path) -> None:
    """str.splitlines() cuts at U+2028, which JSON allows inside a string."""
    path = write_rows(tmp_path / "rows.jsonl", [question(0, question="one\u2028two")])
    assert data.read(path)[0].question == "one\u2028two"


def test_healthbench_rows_keep_their_turns_and_signed_points(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns.append({"role": "user", "content": "c"})
    row = {"prompt": turns, "prompt_id": "x", "rubrics": [{"criterion": "Says d", "points": -3, "tags": []}]}
    example = data.read(write_rows(tmp_path / "rows.jsonl", [row]))[0]
    assert example.id == "x" and list(example.messages) == turns
    assert example.question == "user: a\n\nassistant: b\n\nuser: c"
    assert example.rubric.weights == [-3.0]


def test_every_question_comes_once_an_epoch_and_none_is_dropped(questions: Path) -> None:
    """`num_samples // batch` drops the remainder; here steps run on over the end of an epoch."""
    examples = data.read(questions)
    drawn = [e.id for step in range(7) for e, _ in data.draw(examples, 3, step, seed=1)]
    assert len(drawn) == 21
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == sorted(e.id for e in examples)
    assert drawn[:7] != drawn[7:14]


def test_a_question_drawn_twice_in_a_step_is_a_second_visit(questions: Path) -> None:
    examples = data.read(questions)[:3]
    visits = [data.draw(examples, 2, step, seed) for step in range(3) for seed in range(20)]
    twice = [draw for draw in visits if draw[0][0].id == draw[1][0].id]
    assert twice and all([visit for _, visit in draw] == [0, 1] for draw in twice)


def test_more_prompts_than_questions_are_refused(questions: Path) -> None:
    with pytest.raises(ValueError, match="more than the 7"):
        data.draw(data.read(questions), 8, 0, 0)
