"""Foreign text is data: what cannot be kept is refused before anyone is asked, what is kept can be read
again, and nothing of it acts in a terminal or in a table."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import question, write_rows

import evaluate
from rar_mini import forms
from rar_mini.config import Options
from rar_mini.evaluation import healthbench, labelled
from rar_mini.evaluation.answers import Answering

EVIL = "\x1b]0;title\x07\x1b[31mred\u202e"
pytestmark = pytest.mark.usefixtures("folder")


def bench(tags: Any = ("axis:a",), example_tags: Any = ("theme:t",), name: str = "p") -> dict:
    """A row in HealthBench's form."""
    items = [{"criterion": "Says b.", "points": 5, "tags": tags}]
    asked = [{"role": "user", "content": "What helps?"}]
    return {"prompt_id": name, "prompt": asked, "rubrics": items, "example_tags": example_tags}


def scored(folder: Path, *rows: dict, response: str = "b", judge: str = "keyword", **options: Any) -> Path:
    """Have answers to the rows graded; the folder with the result."""
    data = write_rows(folder / "bench.jsonl", list(rows))
    lines = [json.dumps({"prompt_id": row["prompt_id"], "response": response}) for row in rows]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    asking = Answering(responses=folder / "answers.jsonl", out=folder / "out")
    evaluate.on_healthbench(judge, data, asking=asking, judging=Options(cache=False), **options)
    return folder / "out"


# --- what is written can be read ----------------------------------------------------------------------------

TAGS = [
    ({"tags": {"verifier": "llm"}}, "rubrics[0].tags: expected a list, got {'verifier': 'llm'}"),
    ({"tags": "axis:a"}, "rubrics[0].tags: expected a list, got 'axis:a'"),
    ({"tags": ["axis:a", 2]}, "rubrics[0].tags[1]: expected text, got 2"),
    ({"tags": ["half \ud800"]}, "rubrics[0].tags[0]: expected whole characters, got '\\ud800'"),
    ({"example_tags": [1, 2]}, "example_tags[0]: expected text, got 1"),
    ({"example_tags": {"theme": "t"}}, "example_tags: expected a list, got {'theme': 't'}"),
]


@pytest.mark.parametrize(("tags", "words"), TAGS, ids=[words.split(":")[0] for _, words in TAGS])
def test_tags_that_cannot_be_kept_are_refused_before_anyone_is_asked(
    server: Server, tmp_path: Path, tags: dict, words: str
) -> None:
    """Numbers ended in a traceback once all was graded; an object was written, and refused by --rescore."""
    row = bench(**tags)
    (tmp_path / "bench.jsonl").write_text(json.dumps(bench(name="fine")) + "\n" + json.dumps(row))
    with pytest.raises(ValueError) as error:
        evaluate.on_healthbench("chat:m", tmp_path / "bench.jsonl")
    assert f"bench.jsonl, 'p': field {words}; mend the row, or pass --skip-bad-rows" in str(error.value)
    assert not server.seen
    assert [e.id for e in healthbench.read(tmp_path / "bench.jsonl", skip_bad=True)] == ["fine"]


def result(capsys: pytest.CaptureFixture) -> dict:
    """The last line of a command."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_is_kept_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Whatever the reader lets through: no tags, foreign ones, items without points, penalties alone."""
    rows = [bench(), bench([EVIL], [EVIL], name="q"), bench(None, None, name="r")]
    rows[0]["rubrics"].append({"criterion": "Is short.", "points": 0})
    rows[2]["rubrics"][0]["points"] = -1e6
    out = scored(tmp_path, *rows)
    first = result(capsys)
    evaluate.on_healthbench(rescore=out / "healthbench.jsonl")
    again = result(capsys)
    assert again.pop("rows_of") and again["rows"] == 3
    assert {name: first[name] for name in again} == again


def test_half_a_character_in_an_answer_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """JSON can escape it, no file can hold it: the evaluation died after it had graded the answer."""
    out = scored(tmp_path, bench(), response="b \ud800 half, and \ud83d\ude00")
    assert result(capsys)["score"] == 1.0
    assert json.loads((out / "healthbench.jsonl").read_text())["response"] == "b \ufffd half, and \U0001f600"


def test_half_a_character_from_a_served_policy_is_replaced(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server.reply = lambda path, body: "b \ud800"
    data, asking = write_rows(tmp_path / "x.jsonl", [bench()]), Answering("chat:m", out=tmp_path / "out")
    evaluate.on_healthbench("keyword", data, asking=asking, judging=Options(cache=False))
    assert json.loads((tmp_path / "out" / "healthbench.jsonl").read_text())["response"] == "b \ufffd"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rubrics": None}, "field rubrics: expected a list, got nothing"),
        ({"finished": "yes"}, "field finished: expected true or false, got 'yes'"),
        ({"failed": True}, "expected `failed` if and only if an item with points has no verdict"),
    ],
)
def test_an_evaluation_does_not_go_on_from_damaged_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, words: str
) -> None:
    """Only --rescore looked at them; the same command again ended in a traceback."""
    log = scored(tmp_path, bench()) / "healthbench.jsonl"
    write_rows(log, [json.loads(log.read_text()) | changes])
    with pytest.raises(ValueError, match="healthbench.jsonl, line 1: .*; delete the line") as error:
        scored(tmp_path, bench())
    assert words in str(error.value)


def test_labels_that_do_not_fit_are_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """--skip-bad-rows stopped at them: it knew of the faults of data.py alone."""
    good = {"response": "b \ud800", "quality": "good", "labels": [1] * 15}
    rows = [question(1, labelled_responses=[good]), question(2, labelled_responses=[good | {"labels": [1]}])]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (item,) = labelled.read(file, "all", skip_bad=True)
    assert item.example.id == "q1" and item.response == "b \ufffd"
    assert capsys.readouterr().out == "  rows left out as bad: 1\n"


# --- what is shown acts nowhere -----------------------------------------------------------------------------


def test_a_tag_does_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The table printed it raw, and it set the title of the window."""
    out = scored(tmp_path, bench([f"axis:{EVIL}"], [f"theme:{EVIL}"]))
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    for name in ("axis", "theme"):
        assert rf"{name}:\x1b]0;title\x07\x1b[31mred\u202e " in said
    assert json.loads((out / "healthbench.json").read_text())["axes"] == {f"axis:{EVIL}": 1.0}


def test_a_policys_name_does_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It stands in a folder that may be somebody else's."""
    result = {"policy": f"x/{EVIL}", "rows": 1, "failed": 0, "score": 0.5, "judge": EVIL}
    (tmp_path / "healthbench.json").write_text(json.dumps(result))
    evaluate.table((tmp_path,))
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines()) and said.count(r"\x1b]0;title") == 3


def test_a_servers_words_do_not_command_the_terminal(server: Server, tmp_path: Path) -> None:
    server.spoil = lambda fault, path, body, content: (400, {}, f"no: {EVIL}".encode())
    with pytest.raises(ConnectionError) as error:
        scored(tmp_path, bench(), judge="chat:m")
    assert str(error.value).isprintable() and r"no: \x1b]0;title\x07" in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec=None) | st.sampled_from("\x1b\r\n\u2028\ud800\udfff")))
def test_any_text_becomes_printable_and_whole(text: str) -> None:
    shown, kept = forms.printable(text), forms.whole(text)
    assert shown.isprintable() and forms.printable(shown) == shown
    assert kept.encode().decode() == kept == forms.whole(kept)
    if text.isprintable():
        assert shown == kept == text
