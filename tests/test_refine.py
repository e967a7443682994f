"""Repair beside the best of several: whose answer is returned, what it took, and who measures it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hostile import Server, questions, shared, verdicts
from tiny import question, write_rows

import evaluate
import judge as judges
from rar_mini.evaluation import refine
from rar_mini.evaluation.answers import Answering

pytestmark = pytest.mark.usefixtures("folder")

WORDS = ("fever", "cough", "rash")
ITEMS = [{"title": word, "description": f"Essential Criteria: Says {word}.", "weight": 5} for word in WORDS]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two held-out questions with three items each, one for training and one for the end."""
    splits = ("held_out", "held_out", "train", "test")
    rows = [question(i, rubric=ITEMS, split=split) for i, split in enumerate(splits)]
    return write_rows(tmp_path / "rows.jsonl", rows)


def asked_of(body: dict) -> str:
    return body["messages"][-1]["content"]


def judged(body: dict) -> str:
    """What a judge says that looks for words: yes and no, or a rating by how many there are."""
    text = asked_of(body)
    if "--- questions " in text:
        said = [re.search(r"Says (\w+)\.", each)[1] in shared(text) for each in questions(text)]
        return json.dumps(verdicts(said))
    return json.dumps({"reason": "r", "rating": 1 + 3 * sum(word in shared(text) for word in WORDS)})


def pupil(*samples: str) -> Any:
    """A policy that writes these answers one after another, and in a repair adds the first thing asked
    for."""

    def reply(path: str, body: dict) -> str:
        if body["model"] != "pupil":
            return judged(body)
        wanted = re.search(r"^- .*Says (\w+)\.", asked_of(body), re.M)
        if wanted:
            return f"{body['messages'][-2]['content']} {wanted[1]}"
        return samples[body["seed"] % 1000 % len(samples)]

    return reply


def run(capsys: pytest.CaptureFixture, rows: Path, **options: Any) -> dict:
    names = Answering.__dataclass_fields__
    asking = {name: options.pop(name) for name in list(options) if name in names}
    asking = {"policy": "chat:pupil", "out": rows.parent / "out", "max_new_tokens": 8} | asking
    judging = judges.Options(parse_retries=0, criteria_per_call="all", cache=False)
    options = {"judge": "chat:m", "data": rows} | options
    evaluate.refined(asking=Answering(**asking), judging=judging, **options)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def kept(rows: Path) -> list[dict]:
    return [json.loads(line) for line in (rows.parent / "out" / "refine.jsonl").read_text().splitlines()]


def test_an_answer_is_repaired_until_every_item_is_met(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    """From one word to three in two repairs, where each sample has one word: refine wins, with 3 of its 4
    answers."""
    server.reply = pupil("fever")
    found = run(capsys, rows)
    assert found["questions"] == 2 and found["failed"] == 0, "questions of other splits are not asked"
    assert found["stopped"] == {"all met": 2}
    value = {way: part["judge"]["value"] for way, part in found["ways"].items()}
    assert value == {"first": 0.333333, "refine": 1.0, "same": 0.333333, "best": 0.333333}
    assert {way: part["answers"] for way, part in found["ways"].items()} == {
        "first": 1,
        "refine": 3,
        "same": 3,
        "best": 4,
    }
    assert found["ahead"]["best"]["judge"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    for row in kept(rows):
        assert row["response"] == "fever cough rash"
        assert [each["response"] for each in row["repairs"]] == ["fever cough", "fever cough rash"]


def test_a_repair_is_shown_the_answer_and_what_it_missed_alone(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    server.reply = pupil("cough")
    run(capsys, rows, tries=2, limit=1)
    (repair,) = (b for _, b, _ in server.seen if b["model"] == "pupil" and len(b["messages"]) > 2)
    system, first, own, last = repair["messages"]
    assert (first["role"], own["role"], last["role"]) == ("user", "assistant", "user")
    assert own["content"] == "cough" and "Says fever." in last["content"] and "Says rash." in last["content"]
    assert "Says cough." not in last["content"]
    judging = [asked_of(body) for _, body, _ in server.seen if body["model"] == "m"]
    assert judging and not any("falls short" in text for text in judging), "the judge knows of no repair"


def test_the_best_of_n_is_the_best_scored_and_may_win(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    """The fourth sample is right at once. Two repairs were enough, so the best of as many is not."""
    server.reply = pupil("fever", "cough", "", "fever cough rash")
    found = run(capsys, rows)
    value = {way: part["judge"]["value"] for way, part in found["ways"].items()}
    assert value == {"first": 0.333333, "refine": 1.0, "same": 0.333333, "best": 1.0}
    assert run(capsys, rows, tries=3, out=rows.parent / "three")["stopped"] == {"all met": 2}
    assert found["ahead"]["best"]["judge"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_first_answer_that_meets_all_is_not_repaired(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    server.reply = pupil("fever cough rash")
    found = run(capsys, rows)
    assert found["ways"]["refine"]["answers"] == found["ways"]["same"]["answers"] == 1
    assert found["ways"]["best"]["answers"] == 4
    asked = [body for _, body, _ in server.seen if body["model"] == "pupil"]
    assert len(asked) == 2 * 4, "the first sample is shared"


def test_gold_measures_what_another_judge_has_chosen(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    """The judge credits an answer for its length, and keeps the long one; gold looks for the words."""

    def reply(path: str, body: dict) -> str:
        text = asked_of(body)
        if body["model"] != "m":
            return pupil("fever", "a long answer without any of it")(path, body)
        if "--- questions " in text:
            return json.dumps(verdicts([len(shared(text)) > 12] * len(questions(text))))
        return json.dumps({"reason": "r", "rating": 10 if len(shared(text)) > 12 else 2})

    server.reply = reply
    found = run(capsys, rows, gold="chat:gold", tries=2)
    assert found["ways"]["best"]["judge"]["value"] == 1.0 and found["ways"]["best"]["gold"]["value"] == 0.0
    assert found["ways"]["first"]["gold"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    golden = [body for _, body, _ in server.seen if body["model"] == "gold"]
    assert len(golden) == 2 * 2, "an answer that several ways return is measured once"
    assert found["ways"]["refine"]["tokens_in"] > found["ways"]["first"]["tokens_in"] > 0


def test_a_written_rubric_repairs_and_the_rows_own_measures(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    def reply(path: str, body: dict) -> str:
        if body["model"] == "w":
            return json.dumps([{"criterion": f"Says {word}.", "points": 2} for word in ("a", "b", "c", "d")])
        return pupil("fever")(path, body)

    server.reply = reply
    found = run(capsys, rows, writer="chat:w", gold="chat:gold", tries=2)
    assert [c["description"] for c in kept(rows)[0]["rubric"]] == [f"Says {w}." for w in "abcd"]
    assert found["ways"]["refine"]["judge"]["value"] == 0.25, "of the written items"
    assert found["ways"]["refine"]["gold"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    (written,) = {
        asked_of(body) for _, body, _ in server.seen if body["model"] == "w" and "is 0?" in str(body)
    }
    assert "What is 0?" in written and not any(word in written for word in WORDS)


def test_what_failed_is_left_out_and_asked_for_again(
    server: Server, capsys: pytest.CaptureFixture, rows: Path
) -> None:
    """A verdict of question 1 cannot be had: it is no 0, and the same command asks for it again."""
    server.reply = pupil("fever")
    server.fault = lambda path, body, number: (
        400 if body["model"] == "m" and "What is 1?" in asked_of(body) else None
    )
    found = run(capsys, rows)
    assert (found["questions"], found["failed"]) == (2, 1)
    assert found["ways"]["refine"]["judge"]["value"] == 1.0
    server.fault = lambda path, body, number: None
    before = len(server.seen)
    again = run(capsys, rows)
    assert again["failed"] == 0 and again["ways"]["refine"]["judge"]["value"] == 1.0
    assert all("What is 0?" not in str(body) for _, body, _ in server.seen[before:])
    before = len(server.seen)
    assert run(capsys, rows) == again and len(server.seen) == before
    with pytest.raises(ValueError, match="of another policy, judge, question or option .*delete the file$"):
        run(capsys, rows, tries=3)


def test_a_policy_in_this_process_goes_on_with_the_same_answers(
    capsys: pytest.CaptureFixture, rows: Path, tiny: Path
) -> None:
    options = {"policy": str(tiny), "judge": "keyword", "tries": 2}
    whole = run(capsys, rows, **options)
    written = kept(rows)
    assert whole["questions"] == 2 and whole["ways"]["best"]["tokens_out"] > 0
    assert written[0]["samples"][0]["response"] != written[0]["samples"][1]["response"]
    path = rows.parent / "out" / "refine.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert run(capsys, rows, **options) == whole and kept(rows) == written


def test_a_repair_that_leaves_no_room_ends_the_repairs_and_not_the_command(
    capsys: pytest.CaptureFixture, rows: Path, tiny: Path
) -> None:
    """The tiny policy has a window of 512 tokens, one for each byte."""
    options = {"policy": str(tiny), "judge": "keyword", "tries": 2, "limit": 1}
    found = run(capsys, rows, max_new_tokens=150, **options)
    assert found["stopped"] == {"too long": 1} and found["failed"] == 0
    assert found["ways"]["refine"]["answers"] == 1 and len(kept(rows)) == 1
    with pytest.raises(ValueError, match=r"the prompt of 'q\d' has \d+ tokens.*; lower --max-new-tokens, or"):
        run(capsys, rows, max_new_tokens=450, out=rows.parent / "long", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tries": 1}, "--tries 1: expected a number from 2"),
        ({"seed": -1}, "--seed -1: expected a number from 0"),
        ({"temperature": 0.0}, "--temperature 0.0: expected"),
        ({"responses": Path("x.jsonl")}, "--responses has no policy that could answer again"),
        ({"writer": "keyword"}, "no writer 'keyword'"),
        ({"gold": "gpt"}, "no judge 'gpt'"),
        ({"judge": "rules", "writer": "chat:w"}, "--judge rules has no rule for items that --writer writes"),
    ],
)
def test_what_cannot_be_done_is_refused(
    server: Server, capsys: pytest.CaptureFixture, rows: Path, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(capsys, rows, **options)
    assert not server.seen


def test_a_file_without_held_out_questions_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [question(0), question(1, split="test")])
    with pytest.raises(ValueError, match="rows.jsonl has 2 questions and none of the split held_out"):
        run(capsys, rows, judge="keyword")


def test_of_equal_answers_the_first_is_returned_and_ratings_decide_before_shares() -> None:
    tried = [{"rating": r, "reward": w, "n": n} for n, (r, w) in enumerate([(3, 0.9), (4, 0.1), (4, 0.1)])]
    assert refine.best(tried)["n"] == 1
    assert refine.best([each | {"rating": None} for each in tried])["n"] == 0
