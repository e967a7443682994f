"""HealthBench's arithmetic against numbers worked out by hand; and the command, which asks nothing twice and
scores nothing that failed."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import Server, questions, shared, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import question, write_rows

import evaluate
import judge as judges
from rar_mini import data, policy, prompts
from rar_mini.evaluation import answers, healthbench
from rar_mini.evaluation.answers import Answering
from rar_mini.judging.endpoint import Failure

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("folder")


# --- the arithmetic -----------------------------------------------------------------------------------------


def kept(*items: tuple[float, float | None, str], tags: tuple[str, ...] = (), **changes: Any) -> dict:
    """A row as it is kept, of (points, verdict, axis) items."""
    made = [{"points": p, "verdict": v, "tags": [f"axis:{axis}", "level:x"]} for p, v, axis in items]
    failed = any(v is None for _, v, _ in items)
    return {"rubrics": made, "example_tags": list(tags), "failed": failed, "finished": True} | changes


def test_a_score_is_what_a_person_works_out() -> None:
    """5 of 8 less a penalty of 2; a row below zero, which is not clipped; and one with penalties alone, which
    has no score. On the axis b only the first row has points to earn."""
    rows = [
        kept((5, 1.0, "a"), (3, 0.0, "b"), (-2, 1.0, "b"), tags=("theme:x", "physician_agreed_category:y")),
        kept((4, 0.0, "a"), (-6, 1.0, "b"), tags=("theme:z",)),
        kept((-3, 1.0, "b"), tags=("theme:x",)),
    ]
    result, parts = healthbench.summary(rows)
    assert [healthbench.score(row["rubrics"]) for row in rows] == [3 / 8, -6 / 4, None]
    assert result["raw"] == pytest.approx((0.375 - 1.5) / 2) and result["score"] == 0.0
    assert (result["rows"], result["unscored"], result["failed"]) == (3, 1, 0)
    assert result["axes"] == {"axis:a": pytest.approx(0.5), "axis:b": 0.0}
    assert parts["axis:b"]["raw"] == pytest.approx(-2 / 3) and parts["axis:b"]["rows"] == 1
    assert result["themes"] == {"theme:x": 0.375, "theme:z": 0.0}
    assert healthbench.summary(rows[:1])[0]["std"] == 0.0


def test_what_failed_is_not_unmet() -> None:
    """As unmet, a failure takes 4 from the first row, and frees the second from its penalty."""
    good = kept((2, 1.0, "a"), (2, 0.0, "b"))
    rows = [good, kept((4, None, "a"), (4, 1.0, "b")), kept((4, 1.0, "a"), (-4, None, "b"))]
    result, _ = healthbench.summary(rows)
    assert result["raw"] == result["score"] == 0.5 and result["failed"] == 2
    assert result["axes"] == {"axis:a": 1.0, "axis:b": 0.0}
    nothing, _ = healthbench.summary(rows[1:])
    assert math.isnan(nothing["score"]) and math.isnan(nothing["std"]) and nothing["failed"] == 2


def test_what_is_kept_is_met_from_a_half_on_and_needs_no_verdict_where_there_are_no_points() -> None:
    items = [{"criterion": "c", "points": p} for p in (4, 4, 0)]
    row = {"prompt": [{"role": "user", "content": "q"}], "rubrics": items}
    example = data.Example("p", "train", tuple(row["prompt"]), "", data.rubrics.from_points(items), row)
    found = healthbench.row(example, [0.5, 0.49, NAN])
    assert not found["failed"] and found["rubrics"][2]["verdict"] is None
    assert healthbench.score(found["rubrics"]) == 0.5
    assert healthbench.row(example, [0.5, NAN, NAN])["failed"] and healthbench.row(example, [])["failed"]
    json.dumps(found, allow_nan=False)


POINTS = st.sampled_from([-10, -3, -1, 0, 1, 2, 7])
ITEM = st.tuples(POINTS, st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.sampled_from("abc"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(ITEM, min_size=1, max_size=6), max_size=6))
def test_a_summary_is_what_a_loop_over_tables_gives(rows: list[list[tuple]]) -> None:
    """The same by arrays: points (K,), met (K,), and for each axis a mask."""
    result, _ = healthbench.summary([kept(*items) for items in rows])
    values: dict[str, list[float]] = {"": []}
    for items in rows:
        points, verdict, axis = (np.array(column) for column in zip(*items, strict=True))
        if points.max() <= 0:
            continue
        for name in ["", *set(axis)]:
            on = (axis == name) | (name == "")
            if (full := points[on].clip(0).sum()) > 0:
                values.setdefault(name, []).append(points[on] @ (verdict[on] >= 0.5) / full)
    assert result["unscored"] == len(rows) - len(values[""])
    if values[""]:
        assert result["raw"] == pytest.approx(np.mean(values.pop("")))
        assert result["score"] == pytest.approx(np.clip(result["raw"], 0, 1))
        expected = {f"axis:{name}": np.clip(np.mean(each), 0, 1) for name, each in values.items()}
        assert result["axes"] == pytest.approx(expected)


def test_the_deviation_is_of_clipped_means() -> None:
    """Rows far below zero have a mean that varies and a score that does not: it is 0 in every resample."""
    rows = [kept((1, 0.0, "a"), (-n, 1.0, "a")) for n in range(5, 25)]
    assert healthbench.summary(rows)[0]["std"] == 0.0
    scores = np.array([0.0, 0.25, 0.5, 1.0] * 25)
    rows = [kept((4, 0.0 if s < 1 else 1.0, "a"), (4, float(s > 0), "a")) for s in scores]
    found = healthbench.summary(rows)[0]
    spread = np.std([healthbench.score(row["rubrics"]) for row in rows])
    assert found["std"] == pytest.approx(spread / math.sqrt(len(rows)), rel=0.1)
    assert found["std"] == healthbench.summary(rows)[0]["std"], "it is seeded"


# --- the command --------------------------------------------------------------------------------------------


def bench(path: Path, count: int = 5) -> Path:
    """Rows in HealthBench's form: the answer should say its prompt's number, and not the word aspirin."""
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"What helps {i}?"}],
            "rubrics": [
                {"criterion": f"Says {i}.", "points": 5, "tags": ["level:example", "axis:accuracy"]},
                {"criterion": "Is short.", "points": 3, "tags": ["axis:communication_quality"]},
                {"criterion": "Recommends aspirin.", "points": -2, "tags": ["axis:accuracy"]},
            ],
            "example_tags": [f"theme:{'even' if i % 2 == 0 else 'odd'}"],
            "ideal_completions_data": None,
        }
        for i in range(count)
    ]
    return write_rows(path, rows)


def judging(word: Callable[[str, str], bool]) -> Callable[[str, dict], str]:
    """A chat judge that says yes by a function of response and question."""

    def reply(path: str, body: dict) -> str:
        user = body["messages"][-1]["content"]
        return json.dumps(verdicts([word(shared(user), q) for q in questions(user)]))

    return reply


def run(capsys: pytest.CaptureFixture, folder: Path, judge: str = "chat:m", **options: Any) -> dict:
    """The command's last line; `cache` and the like go to the judge, `policy` and the like to the policy."""
    asking = {name: options.pop(name) for name in list(options) if name in Answering.__dataclass_fields__}
    own = {name: options.pop(name) for name in list(options) if name in judges.Options.__dataclass_fields__}
    data_file = options.pop("data", None) or bench(folder / "bench.jsonl")
    asking = Answering(**{"out": folder / "out", "max_new_tokens": 8} | asking)
    own = judges.Options(**{"cache": False} | own)
    evaluate.on_healthbench(judge, data_file, asking=asking, judging=own, **options)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def responses(path: Path, *texts: str) -> Path:
    return write_rows(path, [{"prompt_id": f"p{i}", "response": text} for i, text in enumerate(texts)])


def test_answers_of_a_file_are_scored_by_hand(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The judge is asked about one item at a time, literally, penalties too: (5 + 3) / 8, 3 / 8, (5 - 2) / 8,
    -2 / 8 and 8 / 8."""
    server.reply = judging(
        lambda text, asked: asked.split()[-1] in text or "aspirin" in text and "asp" in asked
    )
    texts = ("0. short.", "short.", "2. aspirin", "aspirin", "short. 4.")
    found = run(capsys, tmp_path, responses=responses(tmp_path / "r.jsonl", *texts))
    expected = [8 / 8, 3 / 8, 3 / 8, -2 / 8, 8 / 8]
    assert found["raw"] == found["score"] == pytest.approx(np.mean(expected))
    assert found["axes"]["axis:accuracy"] == pytest.approx(np.mean([1, 0, 3 / 5, -2 / 5, 1]))
    assert found["axes"]["axis:communication_quality"] == pytest.approx(3 / 5)
    assert found["themes"] == {"theme:even": pytest.approx(19 / 24), "theme:odd": pytest.approx(1 / 16)}
    assert (found["rows"], found["unscored"], found["failed"], found["skipped"]) == (5, 0, 0, 0)
    asked = [questions(body["messages"][-1]["content"]) for _, body, _ in server.seen]
    assert len(asked) == 15 and all(len(each) == 1 for each in asked)
    assert (
        sum(
            each == ["Does the response meet this criterion, taken literally? Recommends aspirin."]
            for each in asked
        )
        == 5
    )
    written = json.loads((tmp_path / "out" / "healthbench.json").read_text())
    assert {name: written[name] for name in found} == found and "torch" in written["versions"]


def test_a_policy_answers_greedily_as_transformers_does(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, tiny: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = run(capsys, tmp_path, policy=str(tiny), max_new_tokens=24)
    rows = [json.loads(line) for line in (tmp_path / "out" / "healthbench.jsonl").read_text().splitlines()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    for example, row in zip(data.read(tmp_path / "bench.jsonl"), rows, strict=True):
        messages = [{"role": "system", "content": prompts.POLICY_SYSTEM}, *example.messages]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        whole = model.generate(**ids, do_sample=False, max_new_tokens=24)[0]
        answer = whole[ids["input_ids"].shape[1] :]
        assert row["response"] == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert row["finished"] == bool(answer[-1] in (256, 258))
    assert found["cut"] == sum(not row["finished"] for row in rows) and found["policy"] == str(tiny)


def test_nothing_is_asked_twice(
    server: Server,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same command again, and --rescore of its rows, give the same numbers without a request and without
    reading the policy."""
    first = run(capsys, tmp_path, policy=str(tiny))
    asked = len(server.seen)
    assert asked == 15

    def load(*_: object) -> None:
        raise AssertionError("the policy was read")

    monkeypatch.setattr(policy, "load", load)
    assert run(capsys, tmp_path, policy=str(tiny)) == first
    again = run(capsys, tmp_path, rescore=tmp_path / "out" / "healthbench.jsonl")
    assert {name: first[name] for name in again if name != "rows_of"} == {
        name: value for name, value in again.items() if name != "rows_of"
    }
    assert len(server.seen) == asked


def test_a_killed_evaluation_goes_on(server: Server, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Two rows and half of a third are there: nine requests are left, and the file is as if never cut."""
    texts = responses(tmp_path / "r.jsonl", *"01234")
    first = run(capsys, tmp_path, responses=texts)
    log = tmp_path / "out" / "healthbench.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:50])
    server.seen.clear()
    assert run(capsys, tmp_path, responses=texts) == first
    assert len(server.seen) == 9 and log.read_bytes() == whole


def test_an_evaluation_that_is_stopped_keeps_its_rows(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows at a time; Ctrl-C comes while the second two are graded."""
    monkeypatch.setattr(answers, "BATCH", 2)
    texts = responses(tmp_path / "r.jsonl", *"01234")
    grade, done = healthbench.verdicts, []

    def stop(*words: Any) -> list:
        done.append(grade(*words))
        if len(done) == 2:
            raise KeyboardInterrupt
        return done[-1]

    monkeypatch.setattr(healthbench, "verdicts", stop)
    with pytest.raises(KeyboardInterrupt):
        run(capsys, tmp_path, responses=texts)
    before = len(server.seen)
    assert run(capsys, tmp_path, responses=texts)["rows"] == 5
    assert before == 12 and len(server.seen) == before + 9


def test_failed_rows_are_left_out_and_asked_for_again(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    server.reply = judging(lambda text, asked: True)
    server.fault = lambda path, body, number: (
        "prose" if "Says 1." in body["messages"][-1]["content"] else None
    )
    texts = responses(tmp_path / "r.jsonl", *"01234")
    found = run(capsys, tmp_path, responses=texts)
    assert found["failed"] == 1 and found["rows"] == 5 and found["raw"] == pytest.approx(6 / 8)
    server.fault = lambda path, body, number: None
    before = len(server.seen)
    found = run(capsys, tmp_path, responses=texts)
    assert found["failed"] == 0 and found["raw"] == pytest.approx(6 / 8)
    assert len(server.seen) == before + 3
    log = tmp_path / "out" / "healthbench.jsonl"
    assert len(log.read_text().splitlines()) == 6
    assert run(capsys, tmp_path, rescore=log)["rows"] == 5, "the later of two rows counts"


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        ("prompt_id", {"prompt_id": ["p"]}),
        ("finished", {"finished": "yes"}),
        ("example_tags", {"example_tags": None}),
        ("rubrics", {"rubrics": None}),
        ("rubrics", {"rubrics": []}),
        ("rubrics", {"rubrics": {"points": 2, "verdict": 1.0, "tags": []}}),
        ("rubrics[0]", {"rubrics": ["points"]}),
        ("rubrics[0].verdict", {"rubrics": [{"points": 2, "tags": []}]}),
        ("rubrics[0].points", {"rubrics": [{"points": "2", "verdict": 1.0, "tags": []}]}),
        ("rubrics[0].points", {"rubrics": [{"points": NAN, "verdict": 1.0, "tags": []}]}),
        ("rubrics[0].verdict", {"rubrics": [{"points": 2, "verdict": "yes", "tags": []}]}),
        ("rubrics[0].verdict", {"rubrics": [{"points": 2, "verdict": 7.0, "tags": []}]}),
        ("", {"rubrics": [{"points": 2, "verdict": None, "tags": []}]}),
        ("rubrics[0].tags", {"rubrics": [{"points": 2, "verdict": 1.0, "tags": "axis:a"}]}),
        ("rubrics[0].tags[0]", {"rubrics": [{"points": 2, "verdict": 1.0, "tags": [["axis:a"]]}]}),
    ],
    ids=repr,
)
def test_a_row_that_was_damaged_by_hand_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, field: str, damage: dict
) -> None:
    """It was a traceback; and a verdict that was struck out counted as unmet."""
    good = kept((2, 1.0, "a"), (0, None, "a"), failed=False)
    file = tmp_path / "rows.jsonl"
    write_rows(file, [good | {"prompt_id": "p"}, good | {"prompt_id": "q"}])
    assert run(capsys, tmp_path, rescore=file)["score"] == 1.0
    write_rows(file, [good | {"prompt_id": "p"}, good | {"prompt_id": "q"} | damage])
    words = f"rows.jsonl, line 2: {field and f'field {field}: '}expected "
    with pytest.raises(ValueError, match=re.escape(words) + ".*; delete the line, and the evaluation asks"):
        run(capsys, tmp_path, rescore=file)


def test_rows_of_something_else_are_not_mixed_in(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, tiny: Path
) -> None:
    texts = responses(tmp_path / "r.jsonl", *"01234")
    run(capsys, tmp_path, responses=texts)
    for options in ({"judge": "chat:n", "responses": texts}, {"threshold": 0.5, "responses": texts}):
        with pytest.raises(ValueError, match="has 'p0' of another policy, judge, question or option"):
            run(capsys, tmp_path, **options)
    with pytest.raises(ValueError, match="name another folder with --out.*; --responses takes its answers"):
        run(capsys, tmp_path, policy=str(tiny))
    asked = len(server.seen)
    mixed = run(capsys, tmp_path, responses=texts, limit=3)
    assert mixed["rows"] == 3 and len(server.seen) == asked, "a part of the same rows is no other thing"


def test_what_does_not_fit_is_refused_by_name_or_counted(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path, tiny: Path
) -> None:
    rows = [json.loads(line) for line in bench(tmp_path / "bench.jsonl").read_text().splitlines()]
    rows[3]["prompt"][0]["content"] = "long " * 100
    file = write_rows(tmp_path / "bench.jsonl", rows)
    with pytest.raises(
        ValueError, match="the prompt of 'p3' has .* tokens: expected at most 504 .*--max-new-tokens"
    ):
        run(capsys, tmp_path, data=file, policy=str(tiny))
    assert not server.seen
    found = run(capsys, tmp_path, data=file, policy=str(tiny), long_prompts="skip")
    assert found["skipped"] == 1 and found["rows"] == 4


def test_a_served_policy_is_asked_in_words_and_its_failures_are_no_answers(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """One server answers and judges. An answer that was cut is one; where the server fails there is none."""
    grade = judging(lambda text, asked: asked.split()[-1] in text)

    def reply(path: str, body: dict) -> str:
        user = body["messages"][-1]["content"]
        return grade(path, body) if "--- response" in user else f" {user.split()[-1][0]}. short."

    def fault(path: str, body: dict, number: int) -> Any:
        user = body["messages"][-1]["content"]
        return {"What helps 1?": 400, "What helps 2?": "cut"}.get(user)

    server.reply, server.fault = reply, fault
    spoil = server.spoil_chat
    server.spoil_chat = lambda fault, body, content, whole: (
        whole["choices"][0].update(finish_reason="length") or whole
        if fault == "cut"
        else spoil(fault, body, content, whole)
    )
    found = run(capsys, tmp_path, policy="chat:pupil", policy_url=server.url)
    policy_bodies = [body for _, body, _ in server.seen if body["model"] == "pupil"]
    assert all(body["temperature"] == 0.0 and body["max_tokens"] == 8 for body in policy_bodies)
    assert {body["messages"][0]["content"] for body in policy_bodies} == {prompts.POLICY_SYSTEM}
    assert (found["failed"], found["cut"], found["raw"]) == (1, 1, 1.0)
    assert sum(body["model"] == "m" for _, body, _ in server.seen) == 12, "nothing is asked about no answer"
    rows = [json.loads(line) for line in (tmp_path / "out" / "healthbench.jsonl").read_text().splitlines()]
    assert rows[1]["response"] is None and rows[1]["failed"] and rows[0]["response"] == "0. short."


@pytest.mark.parametrize(
    ("message", "reason", "answer"),
    [
        ({"content": " yes \n"}, "stop", ("yes", True)),
        ({"content": "ye"}, "length", ("ye", False)),
        ({"content": ""}, "stop", ("", True)),  # it wrote nothing, which can be judged
        ({"content": None, "refusal": "I will not."}, "stop", ("I will not.", True)),
        ({"content": None}, "stop", None),
        ({"content": [{"text": "yes"}]}, "stop", None),
        ("yes", "stop", None),
    ],
)
def test_a_refusal_is_an_answer_and_a_reply_of_another_shape_is_none(
    message: Any, reason: str, answer: tuple | None
) -> None:
    reply = {"choices": [{"message": message, "finish_reason": reason}]}
    if answer is None:
        with pytest.raises(Failure):
            answers.written(reply)
    else:
        assert answers.written(reply) == dict(zip(("response", "finished"), answer, strict=True))


def test_a_limit_draws_as_simple_evals_does(
    server: Server, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    import random

    found = run(capsys, tmp_path, responses=responses(tmp_path / "r.jsonl", *"01234"), limit=2)
    rows = [json.loads(line) for line in (tmp_path / "out" / "healthbench.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == random.Random(0).sample([f"p{i}" for i in range(5)], 2)
    assert found["rows"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "absent.jsonl"}, "got .*absent.jsonl. HealthBench is .*openaipublic"),
        ({"rescore": Path("absent.jsonl")}, "absent.jsonl has no rows"),
        (
            {"responses": "r.jsonl"},
            "r.jsonl: expected a `response` for each of 5 prompts, and 4 have none .*'p1'",
        ),
        ({"data": "other.jsonl"}, "'q1': expected HealthBench's form"),
        ({"policy": "no such model"}, "no model 'no such model'"),
        ({"limit": 0}, "--limit 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anyone_is_asked(
    server: Server,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: dict,
    words: str,
) -> None:
    write_rows(tmp_path / "other.jsonl", [question(1)])
    responses(tmp_path / "r.jsonl", "0")
    options = {
        name: tmp_path / value if str(value).endswith("jsonl") else value for name, value in options.items()
    }
    with pytest.raises(ValueError, match=words):
        run(capsys, tmp_path, **options)
    assert not server.seen


def test_results_lie_with_the_run_that_they_are_of(tmp_path: Path) -> None:
    for step in (8, 16, 100):
        (tmp_path / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    newest = tmp_path / "run" / "checkpoints" / "step-100"
    assert Answering(policy=str(tmp_path / "run")).located() == (str(newest), tmp_path / "run")
    assert Answering(policy=str(newest)).located() == (str(newest), tmp_path / "run")
    hub = Answering(policy="Qwen/Qwen2.5-7B")
    assert hub.located() == ("Qwen/Qwen2.5-7B", Path("evaluations/Qwen-Qwen2.5-7B"))
    assert Answering(responses=Path("a/b.jsonl")).located() == ("a/b.jsonl", Path("a/b"))
    assert Answering(out=Path("x")).located()[1] == Path("x")
    (tmp_path / "unsaved").mkdir()
    (tmp_path / "unsaved" / "rollouts.jsonl").touch()
    with pytest.raises(ValueError, match="is a run without a checkpoint"):
        Answering(policy=str(tmp_path / "unsaved")).located()


def test_other_weights_are_another_policy(tmp_path: Path, tiny: Path) -> None:
    """A directory that is trained on keeps its name: rows of what it was are none of what it is."""
    import shutil

    shutil.copytree(tiny, tmp_path / "policy")
    before = answers.Sampled(str(tmp_path / "policy"), Answering()).identity
    assert before == answers.Sampled(str(tmp_path / "policy"), Answering()).identity
    file = tmp_path / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert answers.Sampled(str(tmp_path / "policy"), Answering()).identity != before
