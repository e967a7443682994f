"""`evaluate.py judge --vary`: what it does to a judge to be asked in other ways."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import Server, questions, shared, user
from tiny import question, write_rows

import evaluate
import judge as judges
from judge import Judge
from rar_mini.evaluation import variants

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three questions with two answers each, whose words say which of the three items they meet."""
    items = [
        {"title": f"i{k}", "description": f"Essential Criteria: Has {k}.", "weight": 5} for k in range(3)
    ]
    answers = [
        {"response": "has 0, has 2", "quality": "good", "labels": [1, 0, 1]},
        {"response": "has 1", "quality": "flawed", "labels": [0, 1, 0]},
    ]
    rows = [question(i, rubric=items, labelled_responses=answers) for i in range(3)]
    return write_rows(tmp_path / "labelled.jsonl", rows)


def varied(capsys: pytest.CaptureFixture, file: Path, **options: object) -> tuple[dict, str]:
    evaluate.measure("chat:m", data=file, vary=True, judging=judges.Options(**options))
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1])["vary"], out


def test_a_way_that_costs_a_judge_its_accuracy_shows(
    server: Server, capsys: pytest.CaptureFixture, labelled: Path
) -> None:
    """This one is right after a reason, and if it reads the question first; else it says yes."""
    ways: Counter[str] = Counter()

    def reply(path: str, body: dict) -> str:
        text, asked = shared(user(body)), questions(user(body))
        reasoned = '"reason"' in user(body)
        first = user(body).index("--- question ") < user(body).index("--- response ")
        ways[f"{len(asked)} {reasoned} {first}"] += 1
        found = [not (reasoned and first) or each.split()[-1].lower().rstrip(".") in text for each in asked]
        entry = {"reason": "r"} if reasoned else {}
        said = ("yes" if right else "no" for right in found)
        return json.dumps({str(n): entry | {"verdict": word} for n, word in enumerate(said, 1)})

    server.reply = reply
    found, out = varied(capsys, labelled)
    assert found["as set"]["balanced"]["value"] == 1.0
    for name in ("answer first", "no reason"):
        assert found[name]["balanced"]["value"] == 0.5
        assert found[name]["change"] == {"value": -0.5, "low": -0.5, "high": -0.5}
    for name in ("all at once", "in reverse order"):
        assert found[name]["change"]["value"] == 0.0
    assert found["one a call"] == found["a reason first"] == {"left_out": "it is set so"}
    alike = {"1 True True": 18, "3 True True": 12, "1 True False": 18, "1 False True": 18}
    assert ways == alike, "each way asks what it says, and nothing is taken from the cache"
    assert "answer first      0.500 [0.500, 0.500]    -0.500 [-0.500, -0.500]" in out
    assert "one a call        it is set so\n" in out


def test_a_way_that_fails_where_it_is_hard_gains_nothing(
    server: Server, capsys: pytest.CaptureFixture, labelled: Path
) -> None:
    """This one is wrong on the item 1, and without a reason it gives no verdict there."""

    def reply(path: str, body: dict) -> str:
        text, asked, reasoned = shared(user(body)), questions(user(body)), '"reason"' in user(body)
        if not reasoned and any("1." in each for each in asked):
            return "I cannot say."
        entry, right = {"reason": "r"} if reasoned else {}, lambda each: each.split()[-1].rstrip(".") in text
        said = ("yes" if right(each) != ("1." in each) else "no" for each in asked)
        return json.dumps({str(n): entry | {"verdict": word} for n, word in enumerate(said, 1)})

    server.reply = reply
    found, out = varied(capsys, labelled, parse_retries=0)
    assert found["as set"]["failed"] == 0 and found["as set"]["balanced"]["value"] < 1
    assert found["no reason"]["failed"] == 6 and found["no reason"]["balanced"]["value"] == 1.0
    assert found["no reason"]["change"]["value"] == 0.0, "on what both have a verdict on"
    assert "balanced accuracy       change                    failed  seconds" in out


def test_the_reverse_order_is_compared_with_all_at_once(
    server: Server, capsys: pytest.CaptureFixture, labelled: Path
) -> None:
    """This one says yes to all if it is asked about several at once, in any order."""

    def reply(path: str, body: dict) -> str:
        text, asked = shared(user(body)), questions(user(body))
        met = [len(asked) > 1 or each.split()[-1].lower().rstrip(".") in text for each in asked]
        entry = {"reason": "r"} if '"reason"' in user(body) else {}
        return json.dumps({str(n): entry | {"verdict": "yes" if y else "no"} for n, y in enumerate(met, 1)})

    server.reply = reply
    found, _ = varied(capsys, labelled)
    assert found["all at once"]["change"]["value"] == -0.5
    assert found["in reverse order"]["change"]["value"] == 0.0


def test_ratings_have_no_verdicts_to_vary(labelled: Path) -> None:
    with pytest.raises(ValueError, match="--vary is about verdicts on labelled criteria: expected rar-expl"):
        evaluate.measure("chat:m", data=labelled, vary=True, method="rar-implicit")


def ways_of(spec: str, **options: Any) -> dict[str, Any]:
    return variants.ways(Judge(spec, "rar-explicit", **options), [])


def test_what_a_judge_cannot_be_asked_in_is_said(tiny: Path, terse: Path) -> None:
    assert set(ways_of("keyword").values()) == {"keyword has no words in which it is asked"}
    chat = ways_of("chat:m")
    assert [name for name, way in chat.items() if isinstance(way, str)] == ["one a call", "a reason first"]
    decisions = ways_of("decisions:m", criteria_per_call=3)
    said = {name: way for name, way in decisions.items() if isinstance(way, str)}
    assert said == dict.fromkeys(["a reason first", "no reason"], "it writes no words")
    local = ways_of(f"local:{tiny}", prompts=terse, judge_device="cpu")
    assert [name for name, way in local.items() if not isinstance(way, str)] == ["one a call"]
    assert "reads every criterion on its own" in local["in reverse order"]
    assert "has no line" in local["answer first"]
