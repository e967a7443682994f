r"""A choice is read where an answer gives one and nowhere else; and the command counts the right ones.

Also the table, which puts what both benchmarks leave behind beside the paper's.
"""

import csv
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import Server, questions, shared, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_rows

import evaluate
import judge as judges
from rar_mini.evaluation import gpqa, paper
from rar_mini.evaluation.answers import Answering
from rar_mini.turns import without_thoughts

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("folder")


# --- reading an answer --------------------------------------------------------------------------------------

CHOICES = ("42 kJ", r"$\mathrm{H_2O}$", "a mixture", "10^{-3} mol")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (r"So \boxed{B}", "B"),
        (r"\boxed{(b)}.", "B"),
        (r"$\boxed{\text{B}}$", "B"),
        (r"$$\boxed{\textbf{(B)}}$$", "B"),
        (r"\boxed { B. }", "B"),
        (r"\boxed{**B**}", "B"),
        (r"\boxed{Option B}", "B"),
        (r"\boxed{\text{Answer: } B}", "B"),
        (r"\boxed{\text{The correct answer is (B)}}", "B"),
        (r"\boxed{42\,\text{kJ}}", "A"),
        (r"\boxed{A) 42 kJ}", "A"),
        (r"\boxed{\mathrm{H_{2}O}}", "B"),
        (r"\boxed{a mixture}", "C"),
        (r"\boxed{10^{-3}\ \mathrm{mol}}", "D"),
        (r"First \boxed{A}, no: \boxed{C}", "C"),
        (r"<think>\boxed{A}</think>\boxed{C}", "C"),
        (r"\fbox{B}", None),
        ("The answer is B.", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{A} where it should stand in \boxed{}", None),
        (r"\boxed{B", None),  # cut
        (r"\boxed{A} \boxed{\text{B", None),
        (r"<think>\boxed{B}", None),
        (r"\boxed{A or B}", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{AB}", None),
        (r"\boxed{A mixture of both}", None),
        (r"\boxed{E}", None),  # there is no such choice
        (r"\boxed{B) 42 kJ}", None),  # the letter of one and the text of another
        (r"\boxed{42}", None),
        (r"\boxed{c.f. B}", None),
        (r"\boxed{\}B}", None),
    ],
)
def test_a_box_is_read_where_it_can_mean_one_choice(answer: str, letter: str | None) -> None:
    assert gpqa.choice_of(answer, CHOICES) == letter


def test_choices_that_are_letters_or_alike_are_not_guessed_at() -> None:
    r"""\boxed{B} may be the second choice or the text of the first."""
    assert gpqa.choice_of(r"\boxed{B}", ("B", "C", "D", "A")) is None
    assert gpqa.choice_of(r"\boxed{(E)}", ("B", "C", "D", "A", "x")) == "E"
    assert gpqa.choice_of(r"\boxed{c}", ("v", "w", "h", "c")) is None
    assert gpqa.choice_of(r"\boxed{same}", ("same", "same")) is None
    assert gpqa.choice_of(r"\boxed{AaBb}", ("AABB", "AaBb", "aabb")) == "B"


PIECES = st.sampled_from(
    [*r"\boxed{ } ( ) A B C D . , text mathrm $ <think> </think> 42 kJ \{ \}".split(), "\n", " "]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_no_letter_is_read_that_is_not_in_the_last_box(answer: str) -> None:
    found = gpqa.choice_of(answer, CHOICES)
    if found is not None:
        visible = without_thoughts(answer)
        box = visible[visible.rindex("boxed") :]
        box = box[: box.index("}") if "{" not in box[6:] else None]
        assert found in re.sub(r"\\?boxed|mathrm|text", "", box).upper() or found == "A" and "42" in box


# --- questions ----------------------------------------------------------------------------------------------


def sheet(path: Path, count: int = 6) -> Path:
    """Questions in GPQA's columns; the right choice says so."""
    names = ["Record ID", "Question", *gpqa.COLUMNS, "Subdomain"]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for i in range(count):
            row = {"Record ID": f"rec{i}", "Question": f'Which, "of, {i}",\nis it?\n'}
            row |= {name: f"wrong {i} {n}\n" for n, name in enumerate(gpqa.COLUMNS)}
            writer.writerow(row | {gpqa.COLUMNS[0]: f" right {i}", "Subdomain": "Optics"})
    return path


def test_gpqas_columns_are_read_from_csv_and_from_jsonl(tmp_path: Path) -> None:
    found = gpqa.read(sheet(tmp_path / "x.csv"))
    assert found[2] == {
        "id": "rec2",
        "question": 'Which, "of, 2",\nis it?',
        "choices": ["right 2", "wrong 2 1", "wrong 2 2", "wrong 2 3"],
        "right": 0,
    }
    with open(tmp_path / "x.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert gpqa.read(write_rows(tmp_path / "x.jsonl", rows)) == found


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"choices": ["u", "v", "w"], "answer": 2}, 2),
        ({"choices": ["u", "v", "w"], "answer": "B"}, 1),
        ({"options": ["u", "v", "w"], "answer": "w"}, 2),
        ({"choices": ["B", "A"], "answer": 0}, 0),
        ({"choices": ["B", "A"], "answer": "A"}, "answer"),  # a letter or a text?
        ({"choices": ["u", "u"], "answer": "u"}, "answer"),
        ({"choices": ["u", "u "], "answer": "u"}, "answer"),
        ({"choices": ["u", "v"], "answer": 2}, "answer"),
        ({"choices": ["u", "v"], "answer": -1}, "answer"),
        ({"choices": ["u", "v"], "answer": True}, "answer"),
        ({"choices": ["u", "v"], "answer": "C"}, "answer"),
        ({"choices": ["u", "v"]}, "answer"),
        ({"choices": ["u"], "answer": 0}, "choices"),
        ({"choices": ["u", " "], "answer": 0}, "choices[1]"),
        ({"choices": ["u", 3], "answer": 0}, "choices[1]"),
        ({"choices": "uv", "answer": 0}, "choices"),
        ({"choices": ["u", "v"], "answer": 0, "question": ""}, "question"),
        ({"choices": ["u", "v"], "answer": 0, "id": 1.5}, "id"),
        ({"Question": "q", "Correct Answer": "c"}, "Incorrect Answer 1"),
    ],
)
def test_a_row_names_one_right_choice_or_is_refused(tmp_path: Path, row: dict, right: int | str) -> None:
    """By the field that does not fit."""
    file = write_rows(tmp_path / "x.jsonl", [{"question": "q"} | row])
    if isinstance(right, str):
        words = re.escape(f"x.jsonl, row 1: field {right}: expected ")
        with pytest.raises(ValueError, match=f"{words}.*; rows have GPQA's columns, or `question`"):
            gpqa.read(file)
    else:
        assert [(q["id"], q["right"]) for q in gpqa.read(file)] == [("1", right)]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"Question\n\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot read .*x.csv: expected CSV in UTF-8"):
        gpqa.read(tmp_path / "x.csv")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no question"):
        gpqa.read(tmp_path / "empty.jsonl")
    (tmp_path / "garbage.jsonl").write_text("garbage{\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object, got 'garbage{'"):
        gpqa.read(tmp_path / "garbage.jsonl")
    twice = [{"id": 1, "question": "q", "choices": ["u", "v"], "answer": 0}] * 2
    with pytest.raises(ValueError, match="row 2: field id: expected one that no other row has, got '1'"):
        gpqa.read(write_rows(tmp_path / "twice.jsonl", twice))


def test_every_run_has_its_own_order_and_knows_the_right_letter(tmp_path: Path) -> None:
    questions = gpqa.read(sheet(tmp_path / "x.csv", 40))
    examples = gpqa.permuted(questions, 10, seed=0)
    assert len({e.id for e in examples}) == 400 and examples == gpqa.permuted(questions, 10, seed=0)
    for e in examples:
        number = e.id.removeprefix("rec").split("/")[0]
        assert e.row["choices"]["ABCD".index(e.row["right"])] == f"right {number}" == e.reference
        assert sorted(e.row["choices"])[0] == f"right {number}" and len(set(e.row["choices"])) == 4
        assert f"{e.row['right']}) right {number}\n" in e.question + "\n" and r"\boxed{}" in e.question
    letters = Counter(e.row["right"] for e in examples)
    assert all(70 < letters[x] < 130 for x in "ABCD"), "the right choice stands everywhere alike"
    orders = {tuple(c.split()[-1] for c in e.row["choices"]) for e in examples if e.row["question"] == "rec0"}
    assert len(orders) >= 5
    assert [e.row["right"] for e in gpqa.permuted(questions, 1, seed=1)] != [
        e.row["right"] for e in examples[:40]
    ]
    assert examples[40:80] == [e for e in gpqa.permuted(questions, 2, seed=0) if e.row["run"] == 2]


# --- the command --------------------------------------------------------------------------------------------


def row(question: str, run: int, correct: bool | None, **changes: Any) -> dict:
    found = {"question": question, "run": run, "correct": correct, "failed": correct is None}
    return found | {"response": "x", "read": "A", "verified": None, "finished": True} | changes


def test_the_mean_and_its_intervals_over_runs_and_over_questions() -> None:
    """Every run gets the same half of the questions right: runs do not differ, questions do."""
    rows = [row(f"q{i}", r, i % 2 == 0) for i in range(20) for r in range(10)]
    found = gpqa.summary(rows)
    assert found["score"] == found["low"] == found["high"] == 0.5
    assert found["over_questions"][0] == pytest.approx(0.3, abs=0.06)
    assert found["over_questions"][1] == pytest.approx(0.7, abs=0.06)
    rows = [row(f"q{i}", r, r < 3) for i in range(20) for r in range(10)]
    found = gpqa.summary(rows)
    assert found["score"] == 0.3 and found["over_questions"] == [0.3, 0.3]
    half = 2.2622 * np.std([1, 1, 1, *[0] * 7], ddof=1) / math.sqrt(10)
    assert found["low"] == pytest.approx(0.3 - half, abs=1e-4)
    assert found["high"] == pytest.approx(0.3 + half, abs=1e-4)
    assert (found["questions"], found["runs"], found["rows"]) == (20, 10, 200)
    one = gpqa.summary([row("q", 1, True)])
    assert one["score"] == 1.0 and math.isnan(one["low"])
    none = gpqa.summary([row("q", 1, None)])
    assert math.isnan(none["score"]) and none["failed"] == 1


def run(capsys: pytest.CaptureFixture, folder: Path, policy: str = "chat:pupil", **options: Any) -> dict:
    asking = {name: options.pop(name) for name in list(options) if name in Answering.__dataclass_fields__}
    asking = Answering(**{"policy": policy, "out": folder / "out", "max_new_tokens": 8} | asking)
    file = options.pop("data", None) or sheet(folder / "x.csv")
    cache = judges.Options(cache=options.pop("cache", False), parse_retries=0)
    evaluate.on_gpqa(file, asking=asking, judging=cache, **options)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def letter_of(body: dict, text: str) -> str:
    """The letter of a choice in a prompt."""
    return re.search(rf"^([A-D])\) {text}", body["messages"][-1]["content"], re.M)[1]


def test_a_policy_that_knows_and_one_that_always_says_the_same(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    server.reply = lambda path, body: rf"So it is \boxed{{{letter_of(body, 'right')}}}."
    found = run(capsys, tmp_path)
    assert found["score"] == found["low"] == found["high"] == 1.0
    assert (found["questions"], found["runs"], found["rows"], found["unread"]) == (6, 10, 60, 0)
    server.reply = lambda path, body: r"\boxed{A}"
    found = run(capsys, tmp_path, out=tmp_path / "other")
    rows = [json.loads(line) for line in (tmp_path / "other" / "gpqa.jsonl").read_text().splitlines()]
    assert found["score"] == pytest.approx(np.mean([row["right"] == "A" for row in rows]), abs=1e-6)
    assert 0.1 < found["score"] < 0.4 and found["low"] < found["score"] < found["high"]
    before = len(server.seen)
    assert run(capsys, tmp_path, out=tmp_path / "other") == found and len(server.seen) == before
    more = run(capsys, tmp_path, out=tmp_path / "other", runs=12)
    assert more["rows"] == 72 and len(server.seen) == before + 12


def test_a_verifier_decides_where_no_box_is_read(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The policy boxes its answer to rec0, and rightly; writes the right one in words to rec1, a wrong one to
    rec2; and to the rest nothing, at which the verifier fails."""

    def reply(path: str, body: dict) -> str:
        user = body["messages"][-1]["content"]
        number = int(re.search(r"of, (\d)", user)[1])
        if body["model"] == "pupil":
            boxed = rf"\boxed{{{letter_of(body, 'right')}}}"
            return {0: boxed, 1: "I say right 1.", 2: "I say wrong 2 1."}.get(number, "I do not know.")
        text, (asked,) = shared(user), questions(user)
        says = text.removeprefix("I say ").removesuffix(".")
        return json.dumps(verdicts([says in asked])) if number < 3 else "prose"

    server.reply = reply
    without = run(capsys, tmp_path, runs=2)
    assert without["score"] == pytest.approx(1 / 6, abs=1e-6)
    assert (without["unread"], without["verified"], without["failed"]) == (10, 0, 0)
    server.seen.clear()
    found = run(capsys, tmp_path, runs=2, verifier="chat:m", out=tmp_path / "verified")
    assert found["score"] == pytest.approx(2 / 3, abs=1e-6), "what failed is left out, not wrong"
    assert (found["unread"], found["verified"], found["failed"]) == (10, 4, 6)
    asked = [body["messages"][-1]["content"] for _, body, _ in server.seen if body["model"] == "m"]
    assert len(asked) == 10 and not any("of, 0" in each for each in asked)
    question = next(questions(each)[0] for each in asked if "of, 1" in each)
    assert re.search(
        r"The final answer of the response is choice [A-D], right 1, and no other choice", question
    )
    with pytest.raises(ValueError, match="of another policy, judge"):
        run(capsys, tmp_path, runs=2, verifier="chat:m")
    again = run(capsys, tmp_path, runs=2, responses=tmp_path / "out" / "gpqa.jsonl", out=tmp_path / "again")
    assert again["score"] == without["score"], "the answers of one evaluation can be judged by another"


def test_a_blank_answer_is_wrong_without_asking_the_verifier() -> None:
    question = {"id": "q", "question": "?", "choices": ["u", "v"], "right": 0}
    (example,) = gpqa.permuted([question], 1, seed=0)
    (row,) = gpqa.grade(object(), [(example, " \n")])  # a verifier that can be asked nothing
    assert (row["read"], row["verified"], row["correct"], row["failed"]) == (None, None, False, False)


def test_a_policy_in_this_process_answers_each_order(
    capsys: pytest.CaptureFixture, tmp_path: Path, tiny: Path
) -> None:
    found = run(capsys, tmp_path, policy=str(tiny), runs=2, limit=2, max_new_tokens=4)
    rows = [json.loads(line) for line in (tmp_path / "out" / "gpqa.jsonl").read_text().splitlines()]
    assert found["rows"] == len(rows) == 4 and found["unread"] == 4 and found["score"] == 0.0
    assert len({row["question"] for row in rows}) == 2 and {row["run"] for row in rows} == {1, 2}


def test_a_served_policys_failure_is_no_wrong_answer(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    server.reply = lambda path, body: rf"\boxed{{{letter_of(body, 'right')}}}"
    server.fault = lambda path, body, number: 400 if "of, 3" in body["messages"][-1]["content"] else None
    found = run(capsys, tmp_path, runs=2)
    assert found["score"] == 1.0 and found["failed"] == 2
    server.fault = lambda path, body, number: None
    found, seen = run(capsys, tmp_path, runs=2), len(server.seen)
    assert found["failed"] == 0 and found["rows"] == 12 and seen == 14


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": Path("absent.csv")}, "got absent.csv. GPQA is Idavidrein/gpqa on the Hub, gated"),
        ({"runs": 0}, "--runs 0: expected a number from 1 to 1000"),
        ({"seed": -1}, "--seed -1: expected a number from 0"),
        ({"verifier": "keyword"}, "--verifier keyword: expected a model"),
        ({"verifier": "probe:medical"}, "--verifier probe:medical: expected a model"),
        ({"verifier": "gpt"}, "no judge 'gpt'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(capsys, tmp_path, **options)
    assert not server.seen


# --- the table ----------------------------------------------------------------------------------------------


def result(folder: Path, name: str, **numbers: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"policy": "m", "rows": 9, "failed": 1} | numbers))
    return folder


def lines(out: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for line in out.splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(name, []).append(cells)
    return found


def test_ours_stands_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one, two, base, odd = (tmp_path / name for name in ("one", "two", "base", "o|dd"))
    for folder in (one, two):
        result(folder, "healthbench", score=0.1234, std=0.01, judge="chat:j")
        settings = {"method": "rar-implicit", "policy": "start", "judge": "chat:t"}
        (folder / "config.json").write_text(json.dumps({"settings": settings}))
    result(one, "gpqa", score=0.25, low=0.2, high=0.3, verifier=None)
    result(base, "gpqa", score=0.3, low=None, high=None, verifier="chat:v", policy="Qwen/Qwen2.5-7B")
    result(odd, "healthbench", score=None, std=None, judge="keyword", policy="x/mine")
    evaluate.table((one, two, base, odd))
    out = capsys.readouterr().out
    found = lines(out)
    assert found["RaR-Implicit"] == [
        ["31.2", "35.9", "12.3 ± 1.0", "37.6 [36.7, 38.5]", "25.0 [20.0, 30.0]", str(one)],
        ["", "", "12.3 ± 1.0", "", "", str(two)],
    ]
    assert found["Qwen2.5-7B"] == [["7.7", "", "", "31.7", "30.0", str(base)]]
    assert found["mine"] == [["", "", "-", "", "", str(odd).replace("|", "\\|")]]
    assert found["RaR-Explicit"] == [["29.7", "", "", "36.9 [36.2, 37.5]", "", ""]]
    assert (
        f"- {one}: m, trained from start under chat:t; healthbench: 9 rows, 1 of them failed, chat:j" in out
    )
    last = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)["runs"]
    assert [run["name"] for run in last] == ["RaR-Implicit"] * 2 + ["Qwen2.5-7B", "mine"]
    assert [(run["healthbench"], run["gpqa"]) for run in last] == [
        ({"score": 0.1234, "std": 0.01}, {"score": 0.25, "low": 0.2, "high": 0.3}),
        ({"score": 0.1234, "std": 0.01}, None),
        (None, {"score": 0.3, "low": None, "high": None}),
        ({"score": None, "std": None}, None),
    ], "numbers, for whoever draws the table anew"


def test_every_method_has_its_line() -> None:
    names = {name.lower() for name in paper.PAPER}
    assert set(judges.METHODS) <= names


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected healthbench.json or gpqa.json there"):
        paper.read(tmp_path)
    (tmp_path / "gpqa.json").write_text("{")
    with pytest.raises(ValueError, match="expected healthbench.json or gpqa.json there"):
        paper.read(tmp_path)
    (tmp_path / "gpqa.json").write_text("[]")
    with pytest.raises(ValueError, match="expected healthbench.json or gpqa.json there"):
        paper.read(tmp_path)
