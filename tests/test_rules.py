"""Checks: what each rule holds of, what data refuses, and that no judge is asked about a checked item."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import Server
from tiny import question, write_rows

import judge as judges
from judge import Judge
from rar_mini import data, grpo, report, rubric
from rar_mini.evaluation import labelled
from rar_mini.files import digest
from rar_mini.judging import rules
from rar_mini.rubric import Criterion, Design
from rar_mini.setup import fingerprint


def verdict(check: dict, response: str, weight: float = 1.0) -> float:
    return rules.verdict(Criterion("title", "text", "essential", weight, check=check), response)


@pytest.mark.parametrize(
    ("check", "keeps", "breaks"),
    [
        ({"max_words": 3}, " one two three \n", "one two three four"),
        ({"min_words": 3}, "one two three", "one two"),
        ({"contains": "Chest  pain"}, "He has CHEST\npain.", "He has pain in the chest."),
        ({"contains": ["fever", "cough"]}, "Cough, then fever.", "Fever alone."),
        ({"lacks": "as an AI"}, "Rest.", "As an  ai, I cannot say."),
        ({"lacks": ["always", "never"]}, "Mostly.", "Never."),
        ({"matches": r"\b5 ?mg\b"}, "Give 5 mg.", "Give 25 mg or 5 MG."),
        ({"matches": r"(?i)^yes\b"}, "YES, it does.", "Well, yes."),
        ({"starts_with": "In short,"}, "\n in  SHORT, rest.", "Rest, in short, rest."),
        ({"ends_with": "?"}, "Does it help? ", "Does it help? Yes."),
        ({"items": 2}, "Two:\n- rest\n 2) water", "- rest\n-water\n2024 was good"),
        ({"json": True}, ' {"dose": [5]} ', '```json\n{"dose": 5}\n```'),
        ({"json": True}, "[]", '{"a": 1, "a": 2}'),
        ({"json": True}, "[1]", "5"),
        ({"max_words": 2, "contains": "rest"}, "Rest now.", "Rest for a week."),
    ],
)
def test_a_rule_holds_or_not(check: dict, keeps: str, breaks: str) -> None:
    assert verdict(check, keeps) == 1.0 and verdict(check, breaks) == 0.0


def test_no_pattern_takes_long() -> None:
    """Python's own engine takes two to the power of the text's length for this one."""
    assert verdict({"matches": "(a+)+b"}, "a" * 20_000) == 0.0


def test_a_verdict_that_costs_is_turned_around() -> None:
    """Under --pitfalls signed an item of negative weight costs if it holds, and a check says what earns."""
    assert verdict({"lacks": "aspirin"}, "Rest.", -0.9) == 0.0
    assert verdict({"lacks": "aspirin"}, "Take aspirin.", -0.9) == 1.0


def test_the_forms_rules_are_those_that_have_verdicts() -> None:
    names = [field.alias or name for name, field in data.Check.model_fields.items()]
    assert names == list(rules.RULES)


def checked(*checks: dict | None, **changes: object) -> dict:
    """A row with an item of each category in turn, some of them checked."""
    names = ("Essential", "Important", "Optional", "Pitfall")
    items = [
        {
            "title": f"item {n}",
            "description": f"{names[n % 4]} Criteria: Is good at {n}.",
            "weight": (5, 3, 1, -1)[n % 4],
        }
        | ({"check": check} if check is not None else {})
        for n, check in enumerate(checks)
    ]
    return question(0, rubric=items, **changes)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"max_word": 60}, "rubric[1].check: expected a rule or more of max_words, min_words"),
        ({}, "rubric[1].check: expected a rule or more of"),
        ([], "rubric[1].check: expected an object, got []"),
        ({"max_words": "60"}, "rubric[1].check.max_words: expected a whole number, got '60'"),
        ({"max_words": True}, "rubric[1].check.max_words: expected a whole number, got True"),
        ({"items": 0}, "rubric[1].check.items: expected 1 or more, got 0"),
        ({"min_words": 9, "max_words": 3}, "rubric[1].check: expected min_words of at most max_words"),
        ({"contains": 5}, "rubric[1].check.contains: expected text or a list of texts, got 5"),
        ({"contains": []}, "rubric[1].check.contains: expected a list with at least one item"),
        ({"lacks": ["a", " "]}, "rubric[1].check.lacks[1]: expected text, got ' '"),
        ({"json": False}, "rubric[1].check.json: expected true, got False"),
        ({"matches": "("}, "rubric[1].check.matches: expected a regular expression (missing ): ()"),
        ({"matches": "(?=a)"}, "rubric[1].check.matches: expected a regular expression (invalid perl"),
        ({"matches": "(a{900}){900}"}, "rubric[1].check.matches: expected a regular expression (invalid rep"),
    ],
)
def test_a_bad_check_is_refused_with_file_row_and_field(tmp_path: Path, check: object, said: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [question(1), checked({"json": True}, check)])
    with pytest.raises(data.BadRow) as error:
        data.read(file)
    assert str(error.value).startswith(f"{file}, line 2: field {said}")


def test_a_check_survives_parquet(tmp_path: Path) -> None:
    """A column has all rules that any of its items has, and nulls for the others."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [checked({"max_words": 5}, None, {"contains": ["a"]})]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (example,) = data.read(tmp_path / "train.parquet")
    assert [item.check for item in example.rubric.criteria] == [{"max_words": 5}, None, {"contains": ["a"]}]


def told(asker: Judge, example: data.Example, responses: list[str]) -> list[list[float]]:
    """The verdicts on an example's responses."""
    return asker.score([example], [responses]).verdict[0].tolist()


@pytest.mark.parametrize("judge", ["chat:m", "systemone:m", "decisions:m"])
def test_a_server_is_asked_about_the_other_items_only(tmp_path: Path, server: Server, judge: str) -> None:
    (example,) = data.read(write_rows(tmp_path / "rows.jsonl", [checked({"contains": "rest"}, None, None)]))
    asker = Judge(judge, "rar-explicit", base_url=server.url, cache=False)
    verdicts = told(asker, example, ["Rest.", "Run."])
    asker.close()
    assert [row[0] for row in verdicts] == [1.0, 0.0]
    asked = [json.dumps(body) for _, body, _ in server.seen]
    assert len(asked) == 2 * asker.calls(example) and not any("good at 0" in text for text in asked)
    assert sum("good at 1" in text for text in asked) == sum("good at 2" in text for text in asked) == 2


def test_weights_in_this_process_are_asked_about_the_other_items_only(tmp_path: Path, tiny: Path) -> None:
    row = checked({"contains": "rest"}, None)
    two, one = data.read(
        write_rows(tmp_path / "rows.jsonl", [row, row | {"id": "b", "rubric": row["rubric"][1:]}])
    )
    asker = Judge(f"local:{tiny}", "rar-explicit", judge_device="cpu")
    assert told(asker, two, ["Rest."]) == [[1.0, *told(asker, one, ["Rest."])[0]]]


def test_nobody_is_asked_if_all_items_are_checked(tmp_path: Path) -> None:
    """No server stands at this address: a request would raise ConnectionError."""
    (example,) = data.read(
        write_rows(tmp_path / "rows.jsonl", [checked({"contains": "rest"}, {"max_words": 1})])
    )
    asker = Judge("chat:m", "rar-explicit", base_url="http://127.0.0.1:9/v1", retries=0)
    assert told(asker, example, ["Rest.", "Rest well."]) == [[1.0, 1.0], [1.0, 0.0]]
    assert asker.calls(example) == 0 and asker.estimate([example], 8, 100) == ""
    asker.close()


def test_the_reward_is_the_share_of_all_weights(tmp_path: Path) -> None:
    row = checked({"contains": "rest"}, None, {"max_words": 1}, {"lacks": "aspirin"})
    (example,) = data.read(write_rows(tmp_path / "rows.jsonl", [row]))
    scores = Judge("keyword", "rar-explicit").score([example], [["Rest, no more.", ""]])
    assert scores.verdict[0].tolist() == [[1, 0, 0, 1], [0, 0, 1, 1]]
    assert grpo.reward(scores)[0].tolist() == pytest.approx([1.9 / 2.9, 1.2 / 2.9])
    assert [item.get("checked") for item in scores.rows(0, 0)] == [True, None, True, True]


def test_thoughts_are_not_checked(tmp_path: Path) -> None:
    (example,) = data.read(write_rows(tmp_path / "rows.jsonl", [checked({"max_words": 1})]))
    assert told(Judge("rules", "rar-explicit"), example, ["<think>a b c</think>Rest."]) == [[1.0]]


def test_a_pitfalls_check_says_what_earns_by_every_rule_of_signs(tmp_path: Path) -> None:
    row = checked({"contains": "rest"}, None, None, {"lacks": "aspirin"})
    row["rubric"] = row["rubric"][::3]
    (example,) = data.read(write_rows(tmp_path / "rows.jsonl", [row]))
    for pitfalls, clean, flawed in (
        ("avoided", 1.0, 1 / 1.9),
        ("literal", 1.0, 1 / 1.9),
        ("signed", 1.0, 0.1),
    ):
        asker = Judge("rules", "rar-explicit", design=Design(pitfalls=pitfalls))
        rewards = grpo.reward(asker.score([example], [["Rest.", "Rest, aspirin."]]))[0].tolist()
        assert rewards == pytest.approx([clean, flawed]), pitfalls


def test_a_rating_uses_no_check(tmp_path: Path) -> None:
    (example,) = data.read(write_rows(tmp_path / "rows.jsonl", [checked({"max_words": 1}, {"max_words": 1})]))
    asker = Judge("chat:m", "rar-implicit", base_url="http://127.0.0.1:9/v1")
    assert asker.calls(example) == 1
    asker.close()


def test_rules_alone_refuse_an_item_without_a_check(tmp_path: Path) -> None:
    asker = Judge("rules", "rar-explicit")
    row = checked({"max_words": 1}, None)
    weightless = [row["rubric"][0], row["rubric"][1] | {"weight": 0}]
    bad, fine = data.read(write_rows(tmp_path / "rows.jsonl", [row, question(1, rubric=weightless)]))
    asker.check([fine])
    with pytest.raises(
        ValueError, match=r"needs a check in every item .*: item 2 of 'q0' \('item 1'\) has none"
    ):
        asker.check([bad])
    with pytest.raises(ValueError, match="--judge rules cannot serve rar-implicit: it only has the checks"):
        Judge("rules", "rar-implicit")


def test_a_digest_tells_checks_and_is_as_before_without_them(tmp_path: Path) -> None:
    """Scores and runs of before there were checks are gone on with."""
    rows = [checked(None, id="a"), checked({"max_words": 1}, id="b"), checked({"max_words": 2}, id="c")]
    a, b, c = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    asker = Judge("keyword", "rar-explicit")
    assert len({asker.digest(example, "x") for example in (a, b, c)}) == 3
    assert "check" not in repr(a.rubric)
    item = a.rubric.criteria[0]
    old = [a.id, a.messages, a.reference, [[item.title, item.description, "essential", 1.0, 5.0, False]]]
    assert fingerprint([a]) == {"rows": 1, "digest": digest([old])}
    assert fingerprint([b])["digest"] != fingerprint([replace(c, id="b")])["digest"]


def test_a_scored_file_marks_checked_items(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [checked({"max_words": 1}, response="Rest.")])
    judges.score(file, tmp_path / "out.jsonl", judge="rules")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["reward"] == 1.0 and row["verdicts"][0]["checked"] is True


def test_categories_and_checks_go_together() -> None:
    item = {"title": "a", "description": "Pitfall Criteria: B.", "weight": -1, "check": {"lacks": ["b"]}}
    (made,) = rubric.from_categories([item], Counter()).criteria
    assert made.check == {"lacks": ["b"]} and made.category == "pitfall" and made.asks_avoidance


def test_the_parts_of_the_reward_stand_apart(tmp_path: Path) -> None:
    checks = {"a": [{"contains": "rest"}, None], "b": [{"max_words": 9}], "c": [None]}
    rows = [checked(*each, id=name) for name, each in checks.items()]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    scores = Judge("keyword", "rar-explicit").score(examples, [["Rest."], ["Run."], ["Run."]])
    assert report.parts(scores) == {"reward/checked": 1.0, "reward/judged": 0.0}
    assert report.parts(replace(scores, rubrics=[examples[2].rubric] * 3)) == {}


def test_the_medical_checks_agree_with_the_labels() -> None:
    examples = data.sample("medical")
    items = [item for example in examples for item in example.rubric.criteria]
    assert sum(item.weight for item in items if item.check) > 0.2 * sum(item.weight for item in items)
    verdicts = [
        (rules.verdict(item, answer["response"]), label)
        for example in examples
        for answer in example.row.get("labelled_responses", [])
        for item, label in zip(example.rubric.criteria, answer["labels"], strict=True)
        if item.check
    ]
    assert len(verdicts) >= 80 and all(verdict == label for verdict, label in verdicts)
    for example in examples:  # whoever repeats the question says nothing
        items = [item for item in example.rubric.criteria if item.check]
        assert not any(rules.verdict(item, example.question) for item in items), example.id


def test_judges_are_measured_without_checks() -> None:
    for item in labelled.read(None, "medical")[:2]:
        assert not any(criterion.check for criterion in item.example.rubric.criteria)
