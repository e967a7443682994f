"""--max-usd holds over kills, rewinds, resumes and ranks, whatever a server says that a reply has cost."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hostile import Server
from test_ranks import Launch
from test_train import options, records
from tiny import question, write_rows

import judge as judges
import train
from rar_mini import ranks
from rar_mini.judging.endpoint import Endpoint, OverBudget, Request
from rar_mini.judging.ledger import Account, Ledger, dollars_told

pytestmark = pytest.mark.usefixtures("folder")

PRICE = 0.001  # dollars that a call costs: 10 tokens are written, and 12 may be


def body(words: str = "x") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], "max_tokens": 12}


def request(words: str = "x") -> Request:
    return Request("/chat/completions", body(words), lambda reply: reply)


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    (tmp_path / "prices.json").write_text('{"m": [0, 0, 100]}')
    return tmp_path / "prices.json"


@pytest.fixture
def endpoint(server: Server) -> Iterator[Callable[..., Endpoint]]:
    made = []

    def make(**more: Any) -> Endpoint:
        made.append(Endpoint("m", **{"backoff": 0.01, "retries": 0, "price": (0.0, 0.0, 100.0), **more}))
        return made[-1]

    server.reply = lambda path, body: "x"
    yield make
    for each in made:
        each.close()


# --- a run --------------------------------------------------------------------------------------------------


def paid(server: Server) -> float:
    """What the server has been paid, by its own count."""
    return len(server.seen) * PRICE


def asking(tiny: Path, questions: Path, run: Path, priced: Path, **changes: object) -> list[str]:
    settings = {"judge": "chat:m", "method": "direct-likert", "max_tokens": 12, "prices": priced}
    settings |= {"eval_every": 0, "show_every": 0, "concurrency": 1}
    return [*options(tiny, questions, run, **settings | changes), "--no-cache"]


def test_a_step_that_the_budget_stopped_is_paid_for(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path
) -> None:
    """A run of eight calls a step stops in its second. Its five calls stand in no step's metrics: each
    resume would begin with what step 1 has cost."""
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="m has cost"):
        train.main(asking(tiny, questions, run, priced, max_usd=0.0141))
    spent = paid(server)
    assert 0.0125 < spent <= 0.0141 and len(records(run)) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"m has cost \${spent:.4f}, .* --max-usd 0.0141"):
            train.main(["--resume", str(run)])
    assert paid(server) == spent


def test_a_rewind_takes_no_money_back(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path
) -> None:
    """Two steps without a checkpoint are done again, and what they have cost stays spent."""
    run = tmp_path / "run"
    train.main(asking(tiny, questions, run, priced, steps=2, save_every=0, max_usd=0.025))
    assert paid(server) == pytest.approx(0.016)
    with pytest.raises(ValueError, match="m has cost"):
        train.main(["--resume", str(run), "--accept-changes"])
    assert 0.016 < paid(server) <= 0.025
    assert Account(run / "spending.jsonl").spent() == pytest.approx(paid(server))


def test_the_gold_judge_keeps_to_its_own_budget(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path
) -> None:
    run = tmp_path / "run"
    changes = {"steps": 1, "eval_every": 1, "eval_questions": 2, "save_every": 0, "max_usd": 0.0395}
    train.main(asking(tiny, questions, run, priced, gold_judge="chat:m", **changes))
    both = [Account(run / "spending.jsonl", name).spent() for name in ("judge", "gold")]
    assert both == [pytest.approx(0.028), pytest.approx(0.004)], (
        "8 of a step, 2 x 4 of scores, 12 of the scale; 2 x 2 held out"
    )
    assert sum(both) == pytest.approx(paid(server))


def test_a_run_of_before_has_its_costs_in_its_metrics(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path
) -> None:
    run = tmp_path / "run"
    train.main(asking(tiny, questions, run, priced, steps=1, save_every=0))
    (run / "spending.jsonl").unlink()
    with pytest.raises(ValueError, match=r"m has cost \$0.0080"):
        train.main(["--resume", str(run), "--max-usd", "0.009", "--accept-changes"])


def test_both_judges_costs_are_taken_over_and_nothing_is_not_written(tmp_path: Path) -> None:
    account = Account(tmp_path / "spending.jsonl")
    account.adopt(
        dollars_told([[{"perf/judge/dollars": 0.0, "perf/judge/calls": 3}], [{"perf/judge/dollars": None}]])
    )
    assert not account.path.exists()
    steps = [[{"perf/judge/dollars": 0.5, "perf/judge2/dollars": 2}], [{"perf/judge/dollars": 0.25}]]
    account.adopt(dollars_told(steps))
    account.adopt(dollars_told(steps))
    assert (account.spent(), account.after(1).spent()) == (0.75, 2)


# --- the record ---------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from rar_mini.judging.endpoint import Endpoint, Request
from rar_mini.judging.ledger import Account
made = Endpoint("m", price=(0.0, 0.0, 100.0), concurrency=4)
made.ledger.carry(Account(Path(sys.argv[1])))
bodies = [{"messages": [{"content": str(i)}], "max_tokens": 12} for i in range(9)]
made.ask([Request("/chat/completions", bodies[0], lambda reply: reply)])
made.ask([Request("/chat/completions", body, lambda reply: os._exit(9)) for body in bodies[1:]])
"""


def test_a_kill_loses_nothing_that_may_have_been_paid(server: Server, tmp_path: Path) -> None:
    """The process ends as the first of four answers is read: one is booked as it was, three at their most."""
    path = tmp_path / "spending.jsonl"
    server.reply, server.latency = lambda path, body: "x", 0.2
    server.fault = lambda path, body, number: "hang" if number > 1 else None
    assert subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT).returncode == 9
    spent = Account(path).spent()
    assert spent == pytest.approx(2 * 0.001 + 3 * 0.0012) and spent > paid(server)


def test_half_a_line_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    """Half a line of a request is of one that was never sent, or its first line stands in full before it."""
    account = Account(tmp_path / "spending.jsonl")
    account.put("a", 0.5)
    account.put("b", 0.25)
    os.truncate(account.path, account.path.stat().st_size - 9)
    ledger = Ledger()
    ledger.carry(account)
    account.put("c", 1.0)
    assert ledger.counts["dollars"] == 0.5 and account.spent() == 1.5
    kept = account.path.read_text()
    for wrong in (
        '{"judge": "judge", "request": "d", "dollars": -9}',
        '{"judge": "judge", "dollars": 1}',
        "0",
    ):
        account.path.write_text(f"{kept}{wrong}\n")
        with pytest.raises(ValueError, match=r"spending.jsonl, line 3: .*expected"):
            account.spent()


def test_each_rank_adds_to_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a folder would overwrite each other's lines. A later run, with however many ranks,
    counts them all."""
    account = Account(tmp_path / "spending.jsonl")
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", rank)
        account.put("a", 0.5)
    monkeypatch.setattr(ranks, "rank", 0)
    assert account.spent() == 1.5
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_two_ranks_that_are_killed_stay_in_one_budget(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path
) -> None:
    """Each has half of what is left. One that dies takes no more along than it had under way."""
    run = tmp_path / "run"
    words = asking(tiny, questions, run, priced, steps=9, save_every=1, max_usd=0.0505)
    server.latency, first = 0.05, Launch(2, words, tmp_path / "logs")
    while len(server.seen) < 20:
        assert first.all[0].is_alive(), first.said()
        time.sleep(0.02)
    for process in first.all:
        process.kill()
    for turn in range(2):
        again = Launch(2, ["--resume", str(run)], tmp_path / f"logs{turn}")
        assert 0 not in again.codes() and "m has cost $0.0" in again.said(), again.said()
    account = Account(run / "spending.jsonl")
    assert 0.045 < paid(server) <= account.spent() <= 0.0505
    assert (run / "spending-rank-1.jsonl").exists()


def test_nothing_is_asked_that_cannot_be_written_down(
    server: Server, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    made = endpoint()
    made.ledger.carry(Account(tmp_path / "gone" / "spending.jsonl"))
    with pytest.raises(OSError, match="cannot write down what judge costs in .*Nothing more is asked"):
        made.ask([request()])
    assert not server.seen


def test_scores_of_a_file_stay_in_their_budget_over_kills(
    server: Server, tmp_path: Path, priced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on where it stopped, with its rows and with its money."""
    path, out = (
        write_rows(tmp_path / "in.jsonl", [question(i, response="r") for i in range(9)]),
        tmp_path / "out",
    )
    settings = judges.Options(prices=priced, max_tokens=12, max_usd=0.0055, cache=False, concurrency=1)
    for _ in range(3):
        with pytest.raises(OverBudget, match=r"m has cost \$0.0050"):
            judges.score(path, out, "chat:m", "direct-likert", judging=settings)
    assert len(server.seen) == 5


# --- what a reply has cost ---------------------------------------------------------------------------------

SAID = {"prompt_tokens": 20, "completion_tokens": 10}
LIES = {
    "more cached than read": SAID | {"prompt_tokens_details": {"cached_tokens": 6 * 10**9}},
    "cached below 0": SAID | {"prompt_tokens_details": {"cached_tokens": -5}},
    "cached true": SAID | {"prompt_tokens_details": {"cached_tokens": True}},
    "read true": SAID | {"prompt_tokens": True},
    "written below 0": SAID | {"completion_tokens": -1},
    "written in text": SAID | {"completion_tokens": "10"},
    "400 digits": SAID | {"prompt_tokens": 10**400},
    "400 digits written": SAID | {"completion_tokens": 10**400},
    "more than any model reads": SAID | {"prompt_tokens": 10**9},
    "half a token": SAID | {"completion_tokens": 9.5},
    "no tokens written": {"prompt_tokens": 20},
    "nothing read": SAID | {"prompt_tokens": 0},
    "nothing written": SAID | {"completion_tokens": 0},
    "no usage": None,
    "a list": [20, 10],
}


@pytest.mark.parametrize("usage", LIES.values(), ids=LIES)
def test_usage_that_cannot_be_true_is_booked_at_its_most(
    server: Server, endpoint: Callable[..., Endpoint], usage: Any
) -> None:
    """As many tokens read as bytes were sent, and as many written as were allowed."""
    server.spoil_chat = lambda fault, body, content, whole: whole | {"usage": usage}
    made = endpoint(price=(1.0, 0.1, 100.0), max_usd=1.0)
    made.ask([request()])
    sent = len(json.dumps(server.seen[0][1]))
    assert made.ledger.counts["dollars"] == pytest.approx((sent + 12 * 100) / 1e6)
    assert not made.ledger.counts["tokens_in"]


@pytest.mark.parametrize(("fault", "most"), [("half", 1), ("lost", 1), ("truncated", 1), ("400", 0)])
def test_a_reply_that_breaks_off_may_have_to_be_paid(
    server: Server, endpoint: Callable[..., Endpoint], fault: str, most: int
) -> None:
    made = endpoint()
    made.ask([request("the first")])
    before = made.ledger.counts["dollars"]
    server.fault = lambda path, body, number: fault
    made.ask([request()])
    assert made.ledger.counts["dollars"] - before == pytest.approx(most * 12 * 100 / 1e6)


def test_a_price_of_cached_tokens_above_that_of_others_is_reserved(
    server: Server, endpoint: Callable[..., Endpoint]
) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 20}}
    server.spoil_chat = lambda fault, body, content, whole: whole | {"usage": usage}
    made = endpoint(price=(0.0, 1000.0, 0.0), max_usd=0.2, concurrency=1)
    with pytest.raises(OverBudget):
        made.ask([request(str(i)) for i in range(19)])
    assert 0 < made.ledger.counts["dollars"] <= 0.2


@pytest.mark.parametrize("left", ["", '{"judge": "Judge", "request": "r", "dollars": 9}\n'])
def test_a_record_that_was_emptied_is_missed(
    tiny: Path, tmp_path: Path, questions: Path, server: Server, priced: Path, left: str
) -> None:
    run = tmp_path / "run"
    train.main(asking(tiny, questions, run, priced, steps=1))
    (run / "spending.jsonl").write_text(left)
    before = {path: path.read_bytes() for path in run.glob("*.json*")}
    with pytest.raises(ValueError, match=r"has \$0.0000 for judge, but the run's metrics tell of \$0.0080"):
        train.main(["--resume", str(run), "--steps", "2"])
    assert {path: path.read_bytes() for path in before} == before


def test_a_server_that_nobody_reached_costs_nothing(endpoint: Callable[..., Endpoint]) -> None:
    made = endpoint(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConnectionError):
        made.ask([request()])
    assert made.ledger.counts["dollars"] == 0


@pytest.mark.parametrize(
    ("status", "cost"),
    [(status, 0.0012) for status in (408, 499, 500, 502, 504, 524)]
    + [(status, 0.0) for status in (400, 401, 429, 503, 529)],
)
@pytest.mark.parametrize("under", [False, True], ids=["as HTTP", "under HTTP 200"])
def test_an_error_costs_nothing_unless_the_model_may_have_worked(
    server: Server, endpoint: Callable[..., Endpoint], status: int, cost: float, under: bool
) -> None:
    """All were booked at 0, those of a gateway that gave up waiting and of a server that broke, too."""
    made = endpoint()
    made.ask([request()])
    before = made.ledger.counts["dollars"]
    sent = json.dumps({"error": {"message": "no", "code": status}}).encode()
    server.spoil = lambda *_: (200 if under else status, {}, sent)
    made.ask([request("y")])
    assert made.ledger.counts["dollars"] - before == pytest.approx(cost)


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_has_a_bound(
    server: Server, endpoint: Callable[..., Endpoint], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, a server that never ends its reply fills the memory within the deadline."""
    monkeypatch.setattr("rar_mini.judging.endpoint.MOST_BYTES", 2**20)
    made = endpoint()
    made.ask([request("the first")])
    server.spoil = lambda *_: (status, {}, b" " * (2**20 + 1))
    (answer,) = made.ask([request()])
    assert str(answer) == "unreadable: expected a reply of at most 1 MiB, got more"
    server.spoil = lambda *_: (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 2**24))
    (answer,) = made.ask([request("packed")])
    assert "compressed by gzip" in str(answer)
    assert made.ledger.counts["dollars"] == pytest.approx(0.001 + 2 * 0.0012)
