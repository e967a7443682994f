"""A server judges answers while others are still being sampled, and nothing but the time can tell.

    pytest -m slow tests/test_overlap.py    # how much shorter sampling and judging get on the default policy

Each run is compared with one that judges afterwards. The server answers in an order that has nothing to do
with that of the questions, and the tiny policy is slowed down, so that answers end far apart.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Server, serve, shared
from test_ranks import launch
from test_train import numbers, options, records
from tiny import question, write_rows

import train
from judge import Judge
from rar_mini import data, setup
from rar_mini.config import PRESETS
from rar_mini.judging.endpoint import Endpoint, OverBudget
from rar_mini.report import Clock
from rar_mini.sampler import Wave

THREE = [
    {"title": "One", "description": "Essential Criteria: Mentions one.", "weight": 5},
    {"title": "Two", "description": "Important Criteria: Mentions two.", "weight": 3},
    {"title": "Three", "description": "Optional Criteria: Mentions three.", "weight": 1},
]


def scrambled(path: str, body: dict) -> str:
    """Verdicts that only the response decides, after 0 to 20 ms that only it decides, too; of one response in
    four nothing that can be read."""
    response = shared(body["messages"][-1]["content"])
    digest = hashlib.sha256(response.encode()).digest()
    time.sleep(0.02 * digest[4] / 255)
    words = {str(i): {"reason": "r", "verdict": "yes" if digest[i] % 2 else "no"} for i in (1, 2, 3)}
    return json.dumps(None if len(response) > 3 and digest[5] % 4 == 0 else words)


@pytest.fixture(scope="module")
def restless(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, whose answers end at any of forty tokens: after eight, more or less."""
    folder = tmp_path_factory.mktemp("restless") / "policy"
    shutil.copytree(tiny, folder)
    ends = {"eos_token_id": [*range(60, 98), 256, 258]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture
def scrambler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of such verdicts, and sampling so slow that it can be asked meanwhile."""
    server, advance = Server(reply=scrambled), Wave.advance

    def slowly(self: Wave, written: int) -> None:
        time.sleep(0.005)
        advance(self, written)

    monkeypatch.setattr(Wave, "advance", slowly)
    yield server
    server.close()


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and answers are judged after sampling from then on."""

    @contextlib.contextmanager
    def never(*words: object) -> Iterator[Callable]:
        yield lambda example, completion: None

    return lambda: monkeypatch.setattr(train, "ahead", never)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch, scrambler: Server) -> list[int]:
    """How many requests had come when judging began, each time."""
    counts, score = [], Judge.score

    def counted(self: Judge, *words: Any, **how: Any) -> Any:
        counts.append(len(scrambler.seen))
        return score(self, *words, **how)

    monkeypatch.setattr(train.Judge, "score", counted)
    return counts


def asking(server: Server, **changes: object) -> dict[str, object]:
    """Settings of a run whose answers end anywhere."""
    usual = {"judge": "chat:m", "base_url": server.url, "criteria_per_call": "all", "parse_retries": 0}
    usual |= {"max_judge_failures": 1, "max_new_tokens": 24, "steps": 2, "concurrency": 3, "show_every": 0}
    return usual | {"eval_every": 2, "gold_judge": "chat:n"} | changes


def rows(folder: Path) -> Path:
    made = [question(i, split="train" if i < 3 else "held_out", rubric=THREE) for i in range(4)]
    return write_rows(folder / "rows.jsonl", made)


def totals(run: Path) -> list[dict[str, float]]:
    """What judging came to at each step, without what only a clock knows."""
    names = ("seconds", "latency", "tokens_per_second")
    return [
        {name: value for name, value in row.items() if "judge" in name and not any(n in name for n in names)}
        for row in records(run)
    ]


def kept(run: Path) -> list[Any]:
    """All that a run leaves, but for what only a clock knows."""
    weights = (run / "checkpoints" / "step-2" / "model.safetensors").read_bytes()
    texts = [(run / f"{name}.jsonl").read_text() for name in ("rollouts", "evaluations")]
    return [numbers(run), *texts, hashlib.sha256(weights).hexdigest()]


def test_a_run_is_the_same_to_the_bit_and_so_is_what_it_cost(
    restless: Path,
    tmp_path: Path,
    folder: Path,
    scrambler: Server,
    early: list[int],
    afterwards: Callable[[], None],
) -> None:
    """Verdicts, failures, questions, calls, tokens and dollars; also where it goes on from a checkpoint."""
    prices = tmp_path / "prices.json"
    prices.write_text('{"m": [1, 0.5, 2], "n": [1, 0.5, 2]}')
    words = asking(scrambler, prices=prices, steps=2)
    train.main(options(restless, rows(tmp_path), tmp_path / "ahead", **words))
    truth = kept(tmp_path / "ahead")
    paid, asked = totals(tmp_path / "ahead"), sorted(json.dumps(body) for _, body, _ in scrambler.seen)
    train.main(["--resume", str(tmp_path / "ahead"), "--step", "1"])
    assert kept(tmp_path / "ahead") == truth and early[0] > 0, "requests had come before judging began"
    early.clear()
    scrambler.seen.clear()
    afterwards()
    for path in folder.glob("judge.sqlite*"):  # and not the secret of the fences beside it
        path.unlink()
    train.main(options(restless, rows(tmp_path), tmp_path / "afterwards", **words))
    assert kept(tmp_path / "afterwards") == truth and early[0] == 0
    assert totals(tmp_path / "afterwards") == paid
    assert sorted(json.dumps(body) for _, body, _ in scrambler.seen) == asked
    rewards = [row["reward"] for row in records(tmp_path / "ahead", "rollouts")]
    assert None in rewards and len(set(rewards)) > 2


def test_every_rank_begins_with_its_own_answers(
    restless: Path, tmp_path: Path, folder: Path, scrambler: Server
) -> None:
    """And all know in the end what one process knows."""
    words = asking(scrambler, steps=1, gold_judge="keyword", eval_every=0)
    train.main(options(restless, rows(tmp_path), tmp_path / "one", **words))
    asked = sorted(json.dumps(body) for _, body, _ in scrambler.seen)
    scrambler.seen.clear()
    for path in folder.glob("judge.sqlite*"):
        path.unlink()
    said = launch(2, options(restless, rows(tmp_path), tmp_path / "two", **words), tmp_path / "logs", notes)
    one, two = (records(tmp_path / run, "rollouts") for run in ("one", "two"))
    assert [row["verdicts"] for row in two] == [row["verdicts"] for row in one]
    assert totals(tmp_path / "two") == totals(tmp_path / "one")
    assert sorted(json.dumps(body) for _, body, _ in scrambler.seen) == asked
    assert said.count("began 4 of 4") == 2


def notes(rank: int) -> None:
    """Say in the rank's log how many of its answers were begun with when judging began."""
    begun, begin, score = [], Endpoint.begin, Judge.score

    def counted(self: Endpoint, requests: Any) -> None:
        begun.append(1)
        begin(self, requests)

    def said(self: Judge, *words: Any, **how: Any) -> Any:
        os.write(1, f"began {len(begun)} of 4\n".encode())
        return score(self, *words, **how)

    Endpoint.begin, Judge.score = counted, said


OWN = """
from rar_mini.judging.wrappers import Wrapper
from rar_mini.recipe import Recipe

class Own(Recipe):
"""
RUBRICS = "    def rubrics(self, examples, responses):\n        return super().rubrics(examples, responses)\n"
JUDGE = "    def judge(self, judge):\n        return Wrapper(judge)\n"
ANSWER = "    def answer(self, example, text):\n        return text[:3]\n"


@pytest.mark.parametrize(("step", "ahead"), [(RUBRICS, False), (JUDGE, False), (ANSWER, True)])
def test_only_what_is_certain_is_asked_ahead(
    restless: Path, tmp_path: Path, scrambler: Server, early: list[int], step: str, ahead: bool
) -> None:
    """A recipe's rubrics see the whole group, and its judge may ask anything."""
    (tmp_path / "own.py").write_text(OWN + step)
    words = asking(scrambler, recipe=tmp_path / "own.py", eval_every=0, steps=1)
    train.main(options(restless, rows(tmp_path), tmp_path / "run", **words))
    assert (early[0] > 0) == ahead
    assert all(len(row["response"]) <= 3 for row in records(tmp_path / "run", "rollouts")) == ahead
    (row,) = records(tmp_path / "run")
    assert row["judge/questions"] == 8


# --- what goes wrong while answers are written --------------------------------------------------------------


def begun(asker: Judge, examples: list[data.Example], responses: list[str]) -> None:
    """What sampling does that lasts for a while."""
    with asker.ahead() as begin:
        for response in responses:
            begin(examples[0], response)
        time.sleep(0.3)


def test_a_server_that_is_down_is_said_where_judging_begins(
    folder: Path, server: Server, examples: list[data.Example], caplog: pytest.LogCaptureFixture
) -> None:
    """After one request, as ever; and the judge can be asked again."""
    server.fault = lambda path, body, number: 401
    asker = Judge("chat:m", "rar-explicit")
    begun(asker, examples, ["a", "b"])
    assert len(server.seen) <= 2
    begun(asker, examples, ["c"])
    with pytest.raises(ConnectionError, match="got HTTP 401"):
        asker.score(examples[:1], [["a", "b", "c"]])
    assert len(server.seen) <= 2
    server.fault = lambda path, body, number: None
    assert not asker.score(examples[:1], [["a", "b"]]).verdict.isnan().any()
    asker.close()
    gc.collect()
    assert not caplog.records


def test_a_budget_ends_what_is_begun_and_is_said_where_judging_begins(
    folder: Path, tmp_path: Path, server: Server, examples: list[data.Example]
) -> None:
    (tmp_path / "prices.json").write_text('{"m": [0, 0, 100]}')  # a call costs $0.001, and may cost $0.0012
    asker = Judge("chat:m", "direct-likert", max_tokens=12, prices=tmp_path / "prices.json", max_usd=0.0045)
    begun(asker, examples, list("abcdefgh"))
    assert len(server.seen) == 4
    with pytest.raises(OverBudget, match=r"m has cost \$0.0040"):
        asker.score(examples[:1], [list("abcdefgh")])
    assert len(server.seen) == 4 and asker.ledger.under_way == 0


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_sampling_that_fails_takes_back_what_was_begun(
    folder: Path, server: Server, examples: list[data.Example], end: type[BaseException]
) -> None:
    """Requests under way cost money. Nothing more is sent, and the judge can go on."""
    asker = Judge("chat:m", "direct-likert", concurrency=2)
    asker.score(examples[:1], [["the first goes alone"]])
    server.latency = 0.3
    with pytest.raises(end), asker.ahead() as begin:
        for letter in "abcdefgh":
            begin(examples[0], letter)
        while len(server.seen) < 3:
            time.sleep(0.01)
        raise end
    server.latency = 0.0
    assert len(server.seen) == 3 and asker.ledger.under_way == 0
    assert asker.score(examples[:1], [["a", "b"]]).rating.tolist() == [[4.0, 4.0]]
    assert len(server.seen) == 5


def test_a_judge_that_is_closed_leaves_no_thread_and_no_request(
    folder: Path, server: Server, examples: list[data.Example], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that ends between sampling and judging."""
    server.latency = 0.5
    asker = Judge("chat:m", "rar-explicit")
    begun(asker, examples, ["a", "b"])
    asker.close()
    assert not asker.server.endpoint._thread.is_alive() and asker.ledger.under_way == 0
    del asker
    gc.collect()
    assert not caplog.records


def test_equal_answers_are_each_counted_and_asked_about_once(
    folder: Path, server: Server, examples: list[data.Example]
) -> None:
    asker = Judge("chat:m", "direct-likert")
    begun(asker, examples, ["a", "b", "a"])
    assert asker.score(examples[:1], [["a", "a", "b", "c"]]).rating.tolist() == [[4.0] * 4]
    assert len(server.seen) == 3
    assert asker.ledger.counts["questions"] == 4 and asker.ledger.counts["cache_hits"] == 1


# --- what it is for -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_waits_less_for_a_judge_that_began_while_it_sampled(
    default: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the default policy, where answers end anywhere, with a judge as slow as the first sampling. Both
    ways by turns, three times, because machines drift; the fastest of each is compared. The ratio is only
    printed: load in one turn moves it."""
    config = dataclasses.replace(PRESETS["cpu"], policy=str(default), judge="keyword", max_new_tokens=48)
    t = setup.bare(setup.settle(config)[0], Judge("keyword", "rar-explicit"))
    t.actor = dataclasses.replace(t.actor, ends=frozenset(range(3, 49_152, 32)))
    drawn, clock = [(example, 0) for example in data.sample("medical")[:2]], Clock()
    train.sample(t, drawn, 8, 0, clock)
    here, there = multiprocessing.Pipe()
    latency = clock.seconds["sample"] / 8  # of 16 requests, two at once
    spawn = multiprocessing.get_context("spawn").Process
    server = spawn(target=serve, args=(there, latency, 0), daemon=True)
    server.start()
    options = {"criteria_per_call": "all", "concurrency": 2, "cache": False, "base_url": here.recv()}
    t.judge = Judge("chat:m", "rar-explicit", **options)
    t.judge.score([drawn[0][0]], [["the first goes alone"]])
    turns = []
    for _ in range(3):
        clocks, found = [Clock(), Clock()], []
        for clock, scorer in zip(clocks, (None, t.judge), strict=True):
            rollouts = train.sample(t, drawn, 8, 0, clock, scorer)
            found.append(train.judge(t, t.judge, rollouts, clock).verdict.nan_to_num(-1))
        assert torch.equal(*found) and found[0].max() == 1
        turns.append([clock.seconds for clock in clocks])
    t.judge.close()
    server.terminate()
    with capsys.disabled():
        for i, way in enumerate(("afterwards", "while others are sampled")):
            parts = [statistics.median(turn[i][stage] for turn in turns) for stage in ("sample", "judge")]
            print(f"\n{way:<25} sample {parts[0]:.2f} s + judge {parts[1]:.2f} s", end="")
        ratio = statistics.median(b.total() / a.total() for a, b in turns)
        print(f"\nratio {ratio:.2f}, lengths {sorted(len(c.ids) for g in rollouts.completions for c in g)}")
    assert min(b["judge"] for _, b in turns) < 0.9 * min(a["judge"] for a, _ in turns)
    assert min(b.total() for _, b in turns) < min(a.total() for a, _ in turns), "the wait has only moved"
