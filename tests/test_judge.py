"""What a judge says becomes numbers by one rule, and a failure is never a score."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import question, write_rows
from hostile import FAULTS, OF_DECISIONS, Server, sometimes, truth, user

import judge as judges
from judge import Judge
from rar_mini import data, grpo, prompts
from rar_mini.judging import wires
from rar_mini.judging.asked import Asked
from rar_mini.kernels.advantage import group_advantage
from rar_mini.rubric import Design, Rubric

NAN = float("nan")
SERVERS = ("chat:m", "systemone:m", "decisions:m")

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def examples(questions: Path) -> list[data.Example]:
    return data.read(questions)[:2]


def told(asker: Judge, example: data.Example, responses: list[str]) -> list[list[float]]:
    """What the honest server says of an example's G responses, criterion by criterion: G x K."""
    asked = [prompts.closed_question(asker.prompts, c) for c in asker.rubric(example).criteria]
    return [[float(truth(response + each)) for each in asked] for response in responses]


def says(word: str) -> Callable[[str, dict], str]:
    """A chat model with one verdict for everything."""

    def reply(path: str, body: dict) -> str:
        asked = body["messages"][-1]["content"]
        n = len(re.findall(r"^\d+\. ", asked, re.M))
        entry = {"reason": "r", "verdict": word}
        return json.dumps({str(i): entry for i in range(1, n + 1)} if n else {"reason": "r", "rating": 4})

    return reply


# --- what a judge is shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SERVERS)
def test_pitfalls_are_asked_for_avoidance_and_literal_items_literally(
    server: Server, tmp_path: Path, spec: str
) -> None:
    turns = [{"role": "user", "content": "a"}]
    rows = [question(0), {"prompt": turns, "rubrics": [{"criterion": "Recommends aspirin.", "points": -3}]}]
    asker = Judge(spec, "rar-explicit")
    asker.score(data.read(write_rows(tmp_path / "rows.jsonl", rows)), [["x"], ["x"]])
    asked = "\n".join(user(body) for _, body, _ in server.seen).split("\n")
    aspirin = [line for line in asked if "Recommends aspirin." in line]
    assert sorted("avoid the mistake" in line for line in aspirin) == [False, True]


DESIGNS = [
    Design(),
    *(Design(rubric_drop=drop) for drop in ("optional-and-below", "labels", "pitfalls")),
    *(Design(weights=weights) for weights in ("v1", "raw", "uniform")),
    *(Design(pitfalls=pitfalls) for pitfalls in ("literal", "signed")),
]


@pytest.mark.parametrize(
    ("design", "essential", "pitfall"),
    [
        (Design(), "(essential) ", "(pitfall, a mistake that a good response avoids) "),
        (Design(pitfalls="literal"), "(essential) ", "(pitfall) "),
        (
            Design(pitfalls="signed"),
            "(essential) ",
            "(pitfall, counts against a response of which it holds) ",
        ),
        (Design("labels"), "", "(a mistake that a good response avoids) "),
        (Design("labels", pitfalls="literal"), "", ""),
        (Design("pitfalls"), "(essential) ", None),
        (Design("optional-and-below"), "(essential) ", None),
    ],
)
def test_an_overall_rating_is_shown_the_rubric_as_designed(
    server: Server, examples: list[data.Example], design: Design, essential: str, pitfall: str | None
) -> None:
    """Without labels a pitfall is still shown as a mistake: in the released medical rubrics it is worded as
    what a bad answer does, and bare, it would be asked for."""
    Judge("chat:m", "rar-implicit", design=design).score(examples[:1], [["x"]])
    lines = user(server.seen[0][1]).split("\n")
    assert f"- {essential}Mentions b." in lines
    fence = next(line for line in lines if line.startswith("--- response ")).removeprefix("--- response ")
    assert lines.count(f"--- criteria {fence}") == lines.count(f"--- end of criteria {fence}") == 1
    shown = [line for line in lines if "Recommends aspirin." in line]
    assert shown == ([] if pitfall is None else [f"- {pitfall}Recommends aspirin."])
    assert any("Names fever" in line for line in lines) == (design.rubric_drop != "optional-and-below")
    assert any("its category" in line for line in lines) == (design.rubric_drop != "labels")


@pytest.mark.parametrize("method", ["rar-explicit", "rar-implicit"])
def test_an_item_that_weighs_nothing_is_shown_to_nobody(server: Server, tmp_path: Path, method: str) -> None:
    """It changes no reward by its own verdict, so it must not change one through an overall rating either."""
    rubric = question(0)["rubric"][-3:]
    rubric[1]["weight"] = 0
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [question(0, rubric=rubric)]))
    scores = Judge("chat:m", method).score(examples, [["x"]])
    asked = "\n".join(user(body) for _, body, _ in server.seen)
    assert "Mentions o." in asked and "Recommends aspirin." in asked and "Names fever" not in asked
    assert not grpo.reward(scores).isnan().any()


@pytest.mark.parametrize(
    ("pitfalls", "reward"), [("avoided", 1.0), ("literal", 1.0), ("signed", 1 - 0.9 / 13.7)]
)
def test_a_pitfall_that_holds_can_cost_its_weight(
    server: Server, examples: list[data.Example], pitfalls: str, reward: float
) -> None:
    """The judge says yes to everything: 13 essential items, an important one, and a pitfall."""
    server.reply = says("yes")
    found = Judge("chat:m", "rar-explicit", design=Design(pitfalls=pitfalls)).score(examples[:1], [["x"]])
    assert grpo.reward(found).item() == pytest.approx(reward)
    (asked,) = [user(body) for _, body, _ in server.seen if "Recommends aspirin." in user(body)]
    assert ("avoid the mistake" in asked) == (pitfalls == "avoided")


def test_what_a_design_does_not_change_is_refused(examples: list[data.Example], tmp_path: Path) -> None:
    """An option that changed nothing would stand in a run's config.json as if it had."""
    for method in ("direct-likert", "reference-likert", "rar-predefined"):
        for design in DESIGNS[1:]:
            with pytest.raises(ValueError, match=f"{method} cannot serve --rubric-drop"):
                Judge("chat:m", method, design=design)
    for method, design in [("rar-implicit", Design(weights="raw")), ("rar-explicit", Design("labels", "v1"))]:
        with pytest.raises(ValueError, match="--weights with rar-explicit alone, where it keeps its labels"):
            Judge("keyword", method, design=design)
    turns = [{"role": "user", "content": "a"}]
    rows = [question(0), {"prompt": turns, "rubrics": [{"criterion": "B.", "points": 3}]}]
    mixed = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    Judge("keyword", "rar-implicit").check(mixed)
    with pytest.raises(ValueError, match="'line-2' has signed points"):
        Judge("keyword", "rar-implicit", design=Design("labels")).check(mixed)


PAPER = """
system = "You rate."
rate_rubric = "<rubrics>{items}</rubrics> JSON, please: {rating}"
shared = "<prompt>{question}</prompt><response>{response}</response>"
"""


def test_prompts_can_be_replaced(server: Server, examples: list[data.Example], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PAPER)
    server.reply = lambda path, body: '```json\n{"rating": 7}\n```'
    asker = Judge("chat:m", "rar-implicit", prompts=tmp_path / "p.toml")
    assert asker.score(examples, [["{items} {question}"], ["y"]]).rating.tolist() == [[7.0], [7.0]]
    body = next(body for _, body, _ in server.seen if "What is 0?" in user(body))
    assert body["messages"][0]["content"] == "You rate."
    assert user(body).startswith("<prompt>What is 0?</prompt><response>{items} {question}</response>")
    assert "JSON, please: {rating}" in user(body)
    assert asker.prompts.digest != prompts.JudgePrompts().digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sistem = 'x'", ["sistem", "system"]),
        ("system = 3", ["system"]),
        ("met = 'Is it met?'", ["met", "{criterion}"]),
        ("met = ", ["TOML"]),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match="p.toml") as error:
        Judge("keyword", "rar-explicit", prompts=tmp_path / "p.toml")
    assert all(word in str(error.value) for word in words)


# --- every method on every wire -----------------------------------------------------------------------------


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
        values = (0.0, 1.0) if spec == "chat:m" else (0.2, 0.9)
        expected = torch.tensor(values)[torch.tensor(told(asker, examples[0], ["one", "two"])).long()]
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
    assert sorted(set(plain.flatten().tolist())) == pytest.approx([0.2, 0.9])
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


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["prose", "400", "cut", "missing"])
def test_what_fails_is_nan_and_takes_only_its_own_rollout(
    server: Server, examples: list[data.Example], bad: str
) -> None:
    """Scored 0, a failure is a false fail, and its placeholder poisons the mean of the whole group."""
    server.reply = says("yes")
    server.fault = lambda path, body, number: (
        bad if "broken" in user(body) and "fever" in user(body) else None
    )
    asker = Judge("chat:m", "rar-explicit")
    scores = asker.score(examples, [["fine", "broken", "fine too"], ["fine"] * 3])
    reward, adv = group_advantage(scores.verdict, scores.weight, scale="group")
    assert reward.isnan().tolist() == [[False, True, False], [False] * 3]
    assert adv.tolist() == [[0.0] * 3] * 2
    kind = {"400": "HTTP 400", "cut": "cut"}.get(bad, "malformed")
    assert asker.ledger.failures == {kind: 1} and asker.metrics()[f"judge/failures/{kind}"] == 1
    assert f"1 x {kind}" in asker.ledger.line()


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("method", ["rar-explicit", "direct-likert"])
def test_what_a_decision_model_refuses_is_nan_and_counted(
    server: Server, examples: list[data.Example], method: str, threshold: float | None
) -> None:
    """NaN is not above a threshold: as a verdict of 0 it would be a false fail."""
    spoil = server.spoil

    def refuse(fault: Any, path: str, body: dict, content: list) -> tuple[int, dict, bytes]:
        if "broken" in body["input"]:
            content = [{"type": "refusal", "name": content[0]["name"]}, *content[1:]]
        return spoil(fault, path, body, content)

    server.spoil = refuse
    asker = Judge("decisions:m", method, threshold=threshold)
    scores = asker.score(examples[:1], [["broken", "fine"]])
    assert scores.verdict.isnan()[0, :, 0].tolist() == [True, False] and scores.verdict.isnan().sum() == 1
    assert grpo.reward(scores).isnan().tolist() == [[True, False]] == [[row is None for row in (None, 1)]]
    assert scores.rating.isnan()[0].tolist() == [True, method == "rar-explicit"]
    assert scores.rows(0, 0)[0]["verdict"] is None
    assert asker.ledger.failures == {"refused": 1} == {"refused": asker.metrics()["judge/failures/refused"]}


def test_a_malformed_reply_is_asked_for_with_another_seed_and_a_reminder(
    server: Server, examples: list[data.Example]
) -> None:
    server.fault = lambda path, body, number: "prose"
    asker = Judge("chat:m", "direct-likert", max_tokens=77)
    assert asker.score(examples[:1], [["x"]], repeat=5).rating.isnan().all()
    bodies = [body for _, body, _ in server.seen]
    assert [body["seed"] for body in bodies] == [5, 6, 7]
    assert [user(body).count(asker.prompts.again) for body in bodies] == [0, 1, 1]
    assert ["response_format" in body for body in bodies] == [True, False, False]
    assert {body["max_tokens"] for body in bodies} == {77}


@pytest.mark.parametrize(
    ("spec", "fault"),
    [(spec, fault) for spec in SERVERS for fault in FAULTS if spec == "chat:m" or fault in OF_DECISIONS],
)
def test_every_fault_ends_in_the_truth_or_in_nan(
    server: Server, tmp_path: Path, spec: str, fault: str
) -> None:
    """The first request is answered; of the rest, every first try is spoiled. All faults that put a verdict
    into their reply say yes, or a number that is none."""
    rubric = question(0)["rubric"][-3:]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [question(i, rubric=rubric) for i in range(2)]))
    patience = 2.0 if fault == "hang" else 30.0  # as a busy machine needs
    options = {"timeout": patience, "retries": 1, "parse_retries": 1, "cache": False}
    expected = Judge(spec, "rar-explicit", cache=False).score(examples, [["a", "b"]] * 2).verdict
    server.seen.clear()
    tried: set[str] = set()

    def spoil(path: str, body: dict, number: int) -> str | None:
        new = user(body).split("\nYour last reply")[0] not in tried
        tried.add(user(body).split("\nYour last reply")[0])
        return fault if new and number else None

    server.fault = spoil
    asker = Judge(spec, "rar-explicit", concurrency=64, **options)
    asker.server.endpoint.backoff = 0.01
    assert torch.equal(asker.score(examples, [["a", "b"]] * 2).verdict, expected)  # the second try mends it
    server.fault = lambda path, body, number: fault
    asker.server.endpoint.timeout = 0.3 if fault == "hang" else patience  # no honest reply is waited for
    scores, calls = asker.score(examples, [["c", "d"]] * 2), 4 * asker.calls(examples[0])
    assert scores.verdict.isnan().all() and asker.ledger.failures.total() == calls


def test_300_requests_at_30_percent_faults(server: Server, tmp_path: Path) -> None:
    """Every verdict is the honest one or NaN, and most faults are overcome. No try ends by the clock: on a
    busy machine an honest reply would come too late, and a request that was given up might never arrive."""
    rows = [question(i, rubric=question(i)["rubric"][:5]) for i in range(10)]
    examples = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    responses = [[f"answer {g}" for g in range(6)]] * 10
    server.fault, server.hang = sometimes(0.3), 0.5  # after which the server hangs up
    asker = Judge("chat:m", "rar-explicit", concurrency=50)
    asker.server.endpoint.backoff = 0.02
    scores = asker.score(examples, responses)
    true = torch.tensor([told(asker, example, row) for example, row in zip(examples, responses, strict=True)])
    known = ~scores.verdict.isnan()
    assert torch.equal(scores.verdict[known], true[known])
    assert known.float().mean() > 0.95 and asker.ledger.failures.total() == int((~known).sum())
    assert len(server.seen) == asker.ledger.counts["calls"] > 350
    assert "sk-very-secret" not in asker.ledger.line()
    again = Judge("chat:m", "rar-explicit").score(examples, responses)  # only the failures are asked again
    assert torch.equal(again.verdict[known], true[known])
    assert len(server.seen) - asker.ledger.counts["calls"] <= 7 * int((~known).sum()) + 10


def test_a_server_without_structured_output_is_asked_in_plain_text(
    server: Server, examples: list[data.Example]
) -> None:
    spoil = server.spoil
    server.spoil = lambda fault, path, body, content: (
        (400, {}, b'{"error": {"message": "response_format is not supported"}}')
        if "response_format" in body
        else spoil(fault, path, body, content)
    )
    asker = Judge("chat:m", "rar-explicit")
    assert not asker.score(examples, [["a"]] * 2).verdict.isnan().any()
    assert len(server.seen) == 31 and asker.ledger.counts["plain_text"] == 30


def test_structured_output_that_comes_empty_is_asked_for_in_plain_text(
    server: Server, examples: list[data.Example]
) -> None:
    """Some servers return nothing at all for very long inputs."""
    server.fault = lambda path, body, number: "empty" if "response_format" in body else None
    asker = Judge("chat:m", "rar-explicit")
    assert not asker.score(examples, [["a"]] * 2).verdict.isnan().any()
    assert asker.ledger.counts["plain_text"] == 30 and not asker.server.endpoint.refused


def test_two_answers_that_are_alike_are_asked_about_once(
    server: Server, examples: list[data.Example]
) -> None:
    asker = Judge("chat:m", "rar-explicit")
    asker.score(examples, [["same", "same", "<think>other</think>same"]] * 2)
    assert len(server.seen) == 30 and asker.ledger.counts["cache_hits"] == 60


def test_a_second_run_makes_no_calls_whatever_the_server(
    server: Server, examples: list[data.Example]
) -> None:
    first = [Judge(spec, "rar-explicit").score(examples[:1], [["a"]]).verdict for spec in SERVERS]
    calls = len(server.seen)
    second = [Judge(spec, "rar-explicit").score(examples[:1], [["a"]]).verdict for spec in SERVERS]
    assert all(map(torch.equal, first, second)) and len(server.seen) == calls
    Judge("chat:m", "rar-explicit", cache=False).score(examples[:1], [["a"]])
    assert len(server.seen) == calls + 15


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


def test_a_folder_that_cannot_be_written_costs_a_warning(
    server: Server, examples: list[data.Example], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file")
    assert not Judge("chat:m", "rar-explicit").score(examples, [["a"]] * 2).verdict.isnan().any()
    assert "no secret can be kept" in caplog.text and "going on without it" in caplog.text


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


# --- what a score hangs on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rar-explicit", "rar-implicit"])
def test_a_digest_tells_designs_and_rubrics_apart(examples: list[data.Example], method: str) -> None:
    """Of rar-implicit it once held the rating's name alone, so that scores under other rubrics were kept."""
    designs = [d for d in DESIGNS if method == "rar-explicit" or d.weights == "paper"]
    asked = [Judge("keyword", method, design=design).digest(examples[0], "x") for design in designs]
    turned = dataclasses.replace(examples[0], rubric=Rubric(examples[0].rubric.criteria[::-1]))
    asked.append(Judge("keyword", method).digest(turned, "x"))
    assert len(set(asked)) == len(designs) + 1


def test_a_digest_tells_every_setting_and_text_apart(
    server: Server, examples: list[data.Example], tmp_path: Path
) -> None:
    """By it `judge.py score` knows which rows it may keep."""
    (tmp_path / "p.toml").write_text("system = 'x'")

    def digest(spec: str = "keyword", method: str = "rar-explicit", text: str = "x", **options: Any) -> str:
        changed = {name: options.pop(name) for name in ("reference", "messages") if name in options}
        asker = Judge(spec, method, **options)
        return asker.digest(dataclasses.replace(examples[0], **changed), text)

    found = [digest(), digest(method="rar-implicit"), digest(text="y"), digest(reference="This.")]
    found += [digest(messages=({"role": "user", "content": "And?"},)), digest(prompts=tmp_path / "p.toml")]
    found += [digest(criteria_per_call=2), digest(threshold=0.0), digest(threshold=0.5)]
    found += [digest("chat:m"), digest("chat:n"), digest("chat:m", base_url=server.url + "/other")]
    assert len(set(found)) == 12 and all(re.fullmatch("[0-9a-f]{16}", each) for each in found)
    assert digest(concurrency=3, cache=False, criteria_per_call=1) == digest() == found[0]


# --- a real server ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_systemone_on_a_real_server(
    transformers_serve: str, default: Path, examples: list[data.Example]
) -> None:
    """Probabilities for every method, and for one question the one that its weights give to the prompt of the
    server's own making."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"base_url": transformers_serve, "concurrency": 2}
    responses = [["Fever.", "It is a mountain."]] * 2
    for method in judges.METHODS:
        asker = Judge(f"systemone:{default}", method, **options)
        scores = asker.score(examples, responses)
        assert ((0 <= scores.verdict) & (scores.verdict <= 1)).all(), method
        assert asker.ledger.counts["tokens_in"] > 100 and not asker.ledger.failures
    asker = Judge(f"systemone:{default}", "rar-explicit", **options)
    asked = wires.worded(
        Asked(examples[0], "Fever.", examples[0].rubric.criteria[:1]), asker.prompts, asker.server.secret
    )
    said = f"{asked.shared}\n\n{asked.questions[0]}\nAnswer Yes or No only."
    tokenizer = AutoTokenizer.from_pretrained(default)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    logits = AutoModelForCausalLM.from_pretrained(default)(**ids).logits[0, -1]
    expected = logits[tokenizer.convert_tokens_to_ids(["Yes", "No"])].softmax(-1)[0].item()
    verdict = asker.score(examples, responses).verdict[0, 0, 0].item()
    assert verdict == pytest.approx(expected, abs=1e-3) and asker.ledger.counts["calls"] == 0
    again = Judge(f"systemone:{default}", method, **options)
    assert torch.equal(again.score(examples, responses).rating, scores.rating)
    assert again.ledger.counts["calls"] == 0


@pytest.mark.slow
def test_chat_on_a_real_server(transformers_serve: str, default: Path, examples: list[data.Example]) -> None:
    """A model of 135M hardly ever finds the form: what it writes is a verdict or a failure, never a guess."""
    options = {"base_url": transformers_serve, "concurrency": 2, "max_tokens": 48, "parse_retries": 1}
    asker = Judge(f"chat:{default}", "direct-likert", **options)
    scores = asker.score(examples, [["Fever."]] * 2)
    rated = scores.rating[~scores.rating.isnan()]
    assert ((rated >= 1) & (rated <= 10)).all()
    assert asker.ledger.failures.total() == 2 - len(rated) and asker.ledger.counts["tokens_out"] > 0
    assert set(asker.ledger.failures) <= {"malformed", "cut", "empty"}


@pytest.mark.slow
def test_a_model_that_a_real_server_does_not_have(
    transformers_serve: str, examples: list[data.Example]
) -> None:
    with pytest.raises(ConnectionError, match="got HTTP 400: .*pinned"):
        Judge("chat:other", "direct-likert", base_url=transformers_serve).score(examples, [["x"]] * 2)
