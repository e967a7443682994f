"""A failure of the judge is never a score: whatever a server does, a verdict is the honest one or NaN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import FAULTS, OF_DECISIONS, SERVERS, Server, says, sometimes, user
from tiny import question, told, write_rows

from judge import Judge
from rar_mini import data, grpo
from rar_mini.kernels.advantage import group_advantage

pytestmark = pytest.mark.usefixtures("folder")


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


def test_a_folder_that_cannot_be_written_costs_a_warning(
    server: Server, examples: list[data.Example], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file")
    assert not Judge("chat:m", "rar-explicit").score(examples, [["a"]] * 2).verdict.isnan().any()
    assert "no secret can be kept" in caplog.text and "going on without it" in caplog.text
