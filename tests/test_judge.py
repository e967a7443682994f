"""What a judge says becomes numbers by one rule: every method over every wire, and what is refused."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hostile import SERVERS, Server, user
from tiny import question, told, write_rows

import judge as judges
from judge import Judge
from rar_mini import data, grpo, prompts
from rar_mini.rubric import Rubric

NAN = float("nan")

pytestmark = pytest.mark.usefixtures("folder")


def test_keyword_scores_have_the_rubrics_order_and_padding(tmp_path: Path) -> None:
    long = question(0)
    long["rubric"] = long["rubric"][-3:]
    short = question(1, rubric=long["rubric"][1:2])
    zero = question(2, rubric=[{**long["rubric"][0], "weight": 0}, *long["rubric"][1:]])
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [long, short, zero]))
    scores = Judge("keyword", "rar-explicit").score(examples, [["Fever; o.", "Take aspirin."]] * 3)
    torch.testing.assert_close(scores.weight, torch.tensor([[1.0, 0.7, 0.9], [0.7, 0, 0], [0, 0.7, 0.9]]))
    assert scores.verdict[0, 1, 2] == 0 and scores.verdict[0, 0, 2] == 1
    assert scores.verdict[1, 0, 0] == 1 and scores.verdict[1, :, 1:].isnan().all()
    assert scores.verdict[2, :, 0].isnan().all()  # an item of weight 0 is never asked about
    assert scores.rating.isnan().all()
    assert not grpo.reward(scores).isnan().any()
    assert scores.rows(1, 0) == [
        {"title": "Names fever", "category": "important", "weight": 0.7, "verdict": 1.0}
    ]
    assert [row["verdict"] for row in scores.rows(2, 1)] == [None, 0.0, 0.0]


TORCHLESS = """
import sys
from judge import Judge
from rar_mini import data

examples = data.sample("medical")
for spec in ("keyword", "chat:m"):
    asker = Judge(spec, "rar-explicit")
    asker.check(examples)
    assert asker.calls(examples[0]) > 1 and asker.digest(examples[0], "x")
    asker.estimate(examples, 8, 100)
assert "torch" not in sys.modules
Judge("keyword", "rar-explicit").score(examples[:1], [["x"]])
assert "torch" in sys.modules and "transformers" not in sys.modules
"""


def test_a_judge_imports_torch_when_it_scores(tmp_path: Path) -> None:
    """Scores are tensors. A judge that is only made, checked or priced spares the seconds, and so does
    `judge.py --help`."""
    env = os.environ | {"OPENAI_API_KEY": "x", "RAR_MINI_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TORCHLESS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scores_of_two_processes_fill_each_other() -> None:
    rubrics = [Rubric(prompts.PREDEFINED)]
    half = judges.Scores(torch.tensor([[[1.0, NAN]]]), torch.ones(1, 2), torch.tensor([[NAN, 3.0]]), rubrics)
    rest = judges.Scores(torch.tensor([[[0.5, 0.25]]]), torch.ones(1, 2), torch.tensor([[7.0, 9.0]]), rubrics)
    whole = half.filled(rest)
    assert whole.verdict.tolist() == [[[1.0, 0.25]]] and whole.rating.tolist() == [[7.0, 3.0]]
    assert grpo.reward(whole).item() == 0.625 and whole.rubrics is rubrics


def test_a_rating_stands_as_one_verdict(examples: list[data.Example]) -> None:
    scores = Judge("keyword", "rar-implicit").score(examples, [["Fever."], [""]])
    assert scores.verdict.shape == (2, 1, 1) and scores.weight.tolist() == [[1.0], [1.0]]
    assert torch.allclose(scores.verdict[..., 0], (scores.rating - 1) / 9)


@pytest.mark.parametrize("method", ["direct-likert", "reference-likert", "rar-predefined"])
def test_the_keyword_judge_refuses_by_name_what_it_cannot_do(method: str) -> None:
    with pytest.raises(ValueError, match=f"cannot serve {method}"):
        Judge("keyword", method)


@pytest.mark.parametrize("spec", ["chat", "chat:", "keyword:x", "gpt-4o", "remote:x"])
def test_a_judge_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="no judge"):
        Judge(spec, "rar-explicit")


@pytest.mark.parametrize(
    "options",
    [
        {"parse_retries": -1},
        {"rpm": 0},
        {"threshold": 5.0},
        {"criteria_per_call": 0},
        {"timeout": NAN},
        {"max_usd": 1.0},
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
        Judge("chat:m", "rar-explicit", **options)


def test_a_judge_has_the_options_and_defaults_of_the_command_line() -> None:
    assert Judge("keyword", "rar-explicit").options == judges.Options()
    options = {"concurrency": 3, "timeout": 4.0, "retries": 5, "threshold": 0.5}
    assert Judge("keyword", "rar-explicit", **options).options == judges.Options(**options)


@pytest.mark.parametrize(
    ("spec", "most"), [("chat:m", 1000), ("systemone:m", 64), ("decisions:m", 400), ("local:", 1000)]
)
def test_criteria_a_call_are_as_many_as_the_judge_takes(
    tiny: Path, examples: list[data.Example], spec: str, most: int
) -> None:
    """64 and 400 are the servers' limits: a request with more is refused there, and all its verdicts fail."""
    spec = spec + str(tiny) * (spec == "local:")
    with pytest.raises(ValueError, match=f"--criteria-per-call {most + 1}: expected at most {most} for"):
        Judge(spec, "rar-explicit", criteria_per_call=most + 1)
    example = dataclasses.replace(examples[0], rubric=Rubric(prompts.PREDEFINED[:1] * (2 * most + 1)))
    for per_call, calls in ((most, 3), ("all", 3), (None, 2 * most + 1 if spec == "chat:m" else 3)):
        asker = Judge(spec, "rar-explicit", criteria_per_call=per_call, judge_device="cpu")
        assert asker.calls(example) == calls


@pytest.mark.parametrize("spec", SERVERS)
@pytest.mark.parametrize("method", judges.METHODS)
def test_every_method_over_every_wire(
    server: Server, examples: list[data.Example], spec: str, method: str
) -> None:
    rated = method in judges.RATED
    asker = Judge(spec, method)
    scores = asker.score(examples, [["one", "two"]] * 2)
    K = {"rar-predefined": 4, "rar-explicit": 15}.get(method, 1)
    assert scores.verdict.shape == (2, 2, K) and not scores.verdict.isnan().any()
    if rated:
        torch.testing.assert_close(scores.rating, torch.full((2, 2), 4.0))
        torch.testing.assert_close(scores.verdict, torch.full((2, 2, 1), 1 / 3))
    else:
        values = torch.tensor((0.0, 1.0) if spec == "chat:m" else (0.2, 0.9))
        said = torch.tensor(told(asker, examples[0], ["one", "two"])).long()
        expected = values[said]
        if method == "rar-explicit":  # the last one is asked whether a mistake was made
            expected[:, -1] = 1 - values[1 - said[:, -1]]
        torch.testing.assert_close(scores.verdict, expected.expand(2, 2, K))
    assert len(server.seen) == 4 * (K if spec == "chat:m" else 1) == sum(map(asker.calls, examples)) * 2
    asked = [user(body) for _, body, _ in server.seen]
    assert all("What is" in text for text in asked)
    assert all(("That." in text) == (method == "reference-likert") for text in asked)
    assert all(("Names fever" in text) == (method == "rar-implicit") for text in asked) or not rated
    assert all(body["model"] == "m" for _, body, _ in server.seen)


def test_a_chat_model_is_asked_for_structure_at_temperature_0(
    server: Server, examples: list[data.Example]
) -> None:
    Judge("chat:m", "rar-explicit").score(examples[:1], [["x"]], repeat=3)
    for _, body, _ in server.seen:
        assert body["temperature"] == 0 and body["seed"] == 3 and body["max_tokens"] == 512
        form = body["response_format"]["json_schema"]["schema"]
        assert list(form["properties"]["1"]["properties"]) == ["reason", "verdict"]


@pytest.mark.parametrize("spec", SERVERS)
def test_another_repeat_asks_anew(server: Server, examples: list[data.Example], spec: str) -> None:
    """How reliable a judge is shows where it is asked the same twice: not the cache."""
    asker = Judge(spec, "direct-likert")
    asker.score(examples[:1], [["x"]])
    for repeat, calls in ((0, 1), (1, 2), (2, 3), (1, 3)):
        asker.score(examples[:1], [["x"]], repeat=repeat)
        assert len(server.seen) == calls
    if spec == "chat:m":
        assert [body["seed"] for _, body, _ in server.seen] == [0, 1, 2]


@pytest.mark.parametrize(("per_call", "calls"), [(1, 15), (4, 4), ("all", 1)])
@pytest.mark.parametrize("spec", SERVERS)
def test_criteria_per_call(
    server: Server, examples: list[data.Example], spec: str, per_call: int | str, calls: int
) -> None:
    """Another way to ask, the same verdicts in the same places."""
    asker = Judge(spec, "rar-explicit", criteria_per_call=per_call)
    scores = asker.score(examples, [["a", "b"]] * 2)
    expected = torch.tensor(told(asker, examples[0], ["a", "b"]))
    assert torch.equal(scores.verdict > 0.5, expected.bool().expand(2, 2, 15))
    assert len(server.seen) == 4 * calls == 4 * asker.calls(examples[0])
    for _, body, _ in server.seen if spec == "chat:m" else ():  # a reason and a verdict more for each
        assert body["max_tokens"] == 512 + 128 * (len(re.findall(r"^\d+\. ", user(body), re.M)) - 1)


@pytest.mark.parametrize(("threshold", "of"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.9), (0.95, 1.0)])
def test_a_threshold_makes_verdicts_binary(
    server: Server, examples: list[data.Example], threshold: float, of: float
) -> None:
    """From it on, 1; the server says 0.2 and 0.9. A rating is no verdict and stays."""
    plain = Judge("systemone:m", "rar-explicit").score(examples[:1], [["a"]]).verdict
    assert sorted(set(plain[..., :-1].flatten().tolist())) == pytest.approx([0.2, 0.9])  # behind: a pitfall
    binary = Judge("systemone:m", "rar-explicit", threshold=threshold).score(examples[:1], [["a"]]).verdict
    assert torch.equal(binary, (plain.double() > of - 1e-6).float())
    rated = Judge("systemone:m", "rar-implicit", threshold=threshold).score(examples[:1], [["a"]])
    assert rated.rating.item() == 4 and grpo.reward(rated).item() == pytest.approx(1 / 3)


def test_no_bar_is_drawn_where_nobody_sees_it(
    examples: list[data.Example], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Nor does a judge that sends nothing make a secret for its fences."""
    asker = Judge("keyword", "rar-explicit")
    for progress in (None, "judging"):
        asker.score(examples, [["x"]] * 2, progress=progress)
    assert capsys.readouterr() == ("", "") and not folder.exists()
    assert asker.metrics() == {"judge/questions": 60} and asker.metrics() == {"judge/questions": 0}


PRICES = '{"m": [1000, 1, 100000]}'  # so dear that every token shows


@pytest.mark.parametrize(
    ("spec", "method", "requests", "written"),
    [
        ("chat:m", "rar-explicit", 90, 90 * 50),
        ("chat:m", "rar-implicit", 6, 6 * 50),
        ("systemone:m", "rar-explicit", 6, 0),  # which writes nothing
    ],
)
def test_the_estimate_is_what_comes(
    server: Server, questions: Path, tmp_path: Path, spec: str, method: str, requests: int, written: int
) -> None:
    """Two of three questions have been looked at, and each will have three answers of 40 characters."""
    examples = data.read(questions)[:2]
    (tmp_path / "prices.json").write_text(PRICES)
    asker = Judge(spec, method, prices=tmp_path / "prices.json")
    text = asker.estimate(examples, answers=6, tokens=10)
    asker.score(examples, [["four" * 10, "five" * 10, "nine" * 10]] * 2)
    read = sum(len(json.dumps(body)) for _, body, _ in server.seen) / 4
    dollars = read * 1000 / 1e6 + written * 100000 / 1e6
    assert text == f"about {requests} requests, {read:.2g} tokens in, {written:.2g} out, ${dollars:.2f}"
    assert len(server.seen) == requests
    assert asker.estimate([], 0, 10) == ""
    free = Judge(spec, method)
    assert free.estimate(examples, 6, 10) == text.rpartition(",")[0]
    assert Judge("keyword", "rar-explicit").estimate(examples, 6, 10) == ""


def test_auto_says_what_it_chose_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert judges.choose("auto")[0] == "keyword" and "stand-in" in judges.choose("auto")[1]
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "http://localhost:1")
        spec, why = judges.choose("auto")
        assert spec == "chat:gpt-4o-mini" and why.startswith(f"{name} is set")
    assert judges.choose("keyword") == ("keyword", "as asked")


def test_a_reference_is_needed_where_the_method_compares(tmp_path: Path) -> None:
    """9.5 % of the released science rows have none."""
    rows = [question(0), question(1, reference_answer=""), question(2)]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    asker = Judge("chat:m", "reference-likert")
    with pytest.raises(ValueError, match="1 of 3 have none .the first is 'q1'"):
        asker.check(examples)
    asker.check(examples[::2])
    for method in sorted({*judges.METHODS} - {"reference-likert"}):
        asker.by(method).check(examples)


def test_a_run_that_is_named_as_a_judge_is_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (2, 10):
        (tmp_path / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    run, model = tmp_path / "run", tmp_path / "model"
    newest = f"local:{run}/checkpoints/step-10"
    assert judges.choose(f"local:{run}") == (newest, f"the newest checkpoint of {run}")
    assert judges.choose(newest) == (newest, "as asked")
    for spec in (f"local:{model}", "local:smollm2-135m", f"local:{'x' * 5000}", f"chat:{run}"):
        assert judges.choose(spec) == (spec, "as asked")
    model.mkdir()
    (model / "rollouts.jsonl").touch()
    with pytest.raises(ValueError, match="model is a run without a checkpoint: expected one"):
        judges.choose(f"local:{model}")
