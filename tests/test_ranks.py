"""Several processes on the CPU: they give the numbers of one, they end together, and a dead one is survived.

They are forked from one that has imported torch, and run train.py as torchrun would let them; torchrun itself
is what the slow tests start.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Server
from safetensors.torch import load_file
from test_train import ROOT, numbers, options, records, spawn
from tiny import question, rolled, write_rows

import train
from rar_mini import checkpoint, data, grpo, model, ranks
from rar_mini.checkpoint import Run
from rar_mini.judging import keyword as keyword_judge
from rar_mini.judging.endpoint import OverBudget
from rar_mini.judging.ledger import Account, Ledger
from rar_mini.kernels.adamw import AdamW
from rar_mini.sampler import Completion
from rar_mini.scores import Scores


class Launch:
    """train.py in n processes; `hook` is called in each before it begins."""

    def __init__(self, n: int, words: list[str], logs: Path, hook: Callable[[int], object] = int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs.mkdir(exist_ok=True)
        self.logs = [logs / f"rank-{rank}" for rank in range(n)]
        shared = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"TORCHELASTIC_RUN_ID": "test"}
        self.all = [
            spawn(words, log, rank, hook, RANK=rank, LOCAL_RANK=rank, **shared)
            for rank, log in enumerate(self.logs)
        ]

    def codes(self, seconds: float = 60) -> list[int | None]:
        """The exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        for process in self.all:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.all]
        for process in self.all:
            process.kill()
        assert None not in codes, f"still running: {codes}\n{self.said()}"
        return codes

    def said(self) -> str:
        return "".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)


def launch(n: int, words: list[str], logs: Path, hook: Callable[[int], object] = int) -> str:
    """All of a run that comes to its end, and what was said."""
    started = Launch(n, words, logs, hook)
    assert started.codes() == [0] * n, started.said()
    return started.said()


def like(run: Path, other: Path, start: Path) -> None:
    """The same run to rounding: metrics, records, and how far the weights went."""
    for got, truth in zip(numbers(run), numbers(other), strict=True):
        assert got.keys() == truth.keys()
        for name, value in truth.items():
            assert got[name] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)), name
    for name in [path.stem for path in other.glob("*s.jsonl") if path.stem not in ("metrics", "alarms")]:
        pairs = zip(records(run, name), records(other, name), strict=True)
        assert all(a["response"] == b["response"] and a["verdicts"] == b["verdicts"] for a, b in pairs)
    (saved, truth), begun = (load_file(weights(each)) for each in (run, other)), load_file(weights(start))
    off = sum((saved[name] - truth[name]).square().sum() for name in truth)
    moved = sum((truth[name] - begun[name]).square().sum() for name in truth)
    assert 0 < moved and off <= 1e-6 * moved, (off, moved)


def weights(folder: Path) -> Path:
    """Of a run, those of its newest checkpoint."""
    newest = Run(folder).checkpoints()[-1:]
    return (newest[0] if newest else folder) / "model.safetensors"


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training questions and two held out, whose nine criteria say which question they are of."""
    rows = []
    for i in range(7):
        row = question(i, split="train" if i < 5 else "held_out")
        rubric = [item | {"title": f"{item['title']} {i}"} for item in row["rubric"][6:]]
        script = {"user_turns": [f"Why {i}?"]}  # for the recipe in which a user replies
        rows.append(row | {"rubric": rubric, "reference_answer": "That" + i * "!", "hidden": script})
    return write_rows(tmp_path_factory.mktemp("five") / "rows.jsonl", rows)


def words(tiny: Path, five: Path, out: Path, **changes: object) -> list[str]:
    """Two steps of five questions, which neither two nor three ranks share evenly; answers end anywhere."""
    usual = {"steps": 2, "prompts_per_step": 5, "max_new_tokens": 40, "eval_every": 2}
    return options(tiny, five, out, **usual | changes)


EVERYTHING = {"beta": 0.1, "inner_epochs": 2, "loss_norm": "token", "clip_low": 1e-3}
EVERYTHING |= {"train_rollouts": 3, "resample_ties": 1}
EVERYTHING |= {"gold_judge": "chat:m", "criteria_per_call": "all"}
RUNS = [
    pytest.param(2, {}, marks=pytest.mark.slow),
    pytest.param(3, {}, marks=pytest.mark.slow),
    (3, EVERYTHING),
    pytest.param(2, EVERYTHING | {"loss_norm": "constant", "mismatch_cap": 0.5}, marks=pytest.mark.slow),
    pytest.param(3, {"method": "sft", "tokens_per_batch": 60}, marks=pytest.mark.slow),
    pytest.param(3, {"recipe": "pop --beta 1", "loss_norm": "sum"}, marks=pytest.mark.slow),
    pytest.param(2, {"recipe": "user_simulator"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("n", "changes"), RUNS)
def test_many_ranks_give_the_run_of_one(
    tiny: Path, five: Path, tmp_path: Path, folder: Path, server: Server, n: int, changes: dict[str, Any]
) -> None:
    """Averaged by ranks, not by tokens, a rank with short answers would count too much. Two held-out
    questions leave the third rank without one. A save refuses weights that drifted apart by a bit.

    That one process heeds its settings is held by tests/test_recompute.py; here each acts on the numbers."""
    train.main(words(tiny, five, tmp_path / "one", **changes))
    said = launch(n, words(tiny, five, tmp_path / "many", **changes), tmp_path / "logs")
    like(tmp_path / "many", tmp_path / "one", tiny)
    lengths = {row["tokens"] for row in records(tmp_path / "many", "rollouts")}
    assert len(lengths) > 3
    assert said.count("step 2/2") == 1 and said.endswith(f"--- rank-{n - 1}\n"), "rank 0 alone is heard"
    assert json.loads((tmp_path / "many" / "config.json").read_text())["machine"]["ranks"] == n
    if "gold_judge" in changes:
        last = numbers(tmp_path / "many")[-1]
        assert last["kl"] > 0 and last["clip_ratio/low_mean"] > 0, "the clip needs another epoch, and acts"
        assert abs(last["eval/held_out_gold_reward"] - last["eval/held_out_reward"]) > 1e-3


def test_each_rank_makes_the_rubrics_of_its_own_groups(tiny: Path, five: Path, tmp_path: Path) -> None:
    """Writing rubrics may cost money: two processes ask for five groups a step, not for ten."""
    recipe = tmp_path / "made.py"
    recipe.write_text(f"""
import os
from rar_mini.recipe import Recipe
from rar_mini.rubric import Rubric

class Made(Recipe):
    def rubrics(self, examples, responses):
        with open({str(tmp_path / "asked")!r}, "a") as file:
            file.write(f"{{os.getpid()}} {{' '.join(e.id for e in examples)}}\\n")
        return [Rubric(e.rubric.criteria[:1]) for e in examples]
""")
    changes = {"recipe": recipe, "eval_every": 0, "steps": 1}
    launch(2, words(tiny, five, tmp_path / "run", **changes), tmp_path / "logs")
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert sorted(len(ids) for _, *ids in asked) == [2, 3] and len({pid for pid, *_ in asked}) == 2
    rows = records(tmp_path / "run", "rollouts")
    assert {row["example_id"] for row in rows} == {name for _, *ids in asked for name in ids}
    assert all(len(row["verdicts"]) == 1 for row in rows)


@pytest.mark.parametrize(
    ("device", "world", "current"),
    [("cpu", 1, None), ("cuda", 1, None), ("cuda:1", 1, 1), ("cpu", 2, None), ("cuda", 2, 1)],
)
def test_the_gpu_that_is_asked_for_is_made_the_current_one(
    device: str, world: int, current: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world", world)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    found = gpus(monkeypatch, 2)
    ranks.claim(device)
    assert found == ([] if current is None else [current]) + ([] if device == "cpu" else ["pages"])


@pytest.mark.parametrize(
    ("device", "world", "said"),
    [
        ("cuda:2", 1, "--device cuda:2: this machine has 2 GPUs, and the first one is cuda:0"),
        ("cuda:x", 1, "--device cuda:x: expected cpu, cuda or cuda:NUMBER"),
        (
            "cuda:1",
            2,
            "--device cuda:1 with 2 processes on a machine: expected cuda and a GPU for each, got 2",
        ),
        ("cuda", 3, "--device cuda with 3 processes on a machine: expected cuda and a GPU for each, got 2"),
    ],
)
def test_a_gpu_that_does_not_exist_is_refused(
    device: str, world: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world", world)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    found = gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match=said):
        ranks.claim(device)
    assert not found


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int | str]:
    """A machine with so many GPUs; the list has those that were made the current one, and "pages" if memory
    was asked for in pages."""
    found: list[int | str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(ranks, "_ask_for_pages", lambda: found.append("pages"))
    return found


@pytest.mark.parametrize(
    ("where", "settled", "pages"),
    [
        ("linux", ["True"], True),
        ("refused", ["True", "False"], False),
        ("ignored", ["True"], False),  # by a build that has no pages, which only warns
        ("wsl", [], False),
        ("rocm", [], False),
        ("PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:512", [], False),
        ("PYTORCH_ALLOC_CONF=expandable_segments:True", [], True),
        ("PYTORCH_HIP_ALLOC_CONF=expandable_segments:False", [], False),
    ],
)
def test_memory_comes_in_pages_if_it_can(
    where: str,
    settled: list[str],
    pages: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    asked: list[str] = []

    def empty(size: int, **how: object) -> None:
        if where == "refused":
            raise RuntimeError("CUDA driver error: operation not supported\nand a trace")

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append)
    monkeypatch.setattr(torch, "empty", empty)
    kinds = [{"is_expandable": False}, {"is_expandable": where == "linux"}]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: kinds)
    monkeypatch.setattr(torch.version, "hip", "7.0" if where == "rocm" else None)
    release = "6.6.87.2-microsoft-standard-WSL2" if where == "wsl" else "6.17.0-generic"
    monkeypatch.setattr(ranks.platform, "release", lambda: release)
    monkeypatch.setattr(ranks, "pages", False)
    for name in ("", "CUDA_", "HIP_"):
        monkeypatch.delenv(f"PYTORCH_{name}ALLOC_CONF", raising=False)
    if "=" in where:
        monkeypatch.setenv(*where.split("="))
    ranks._ask_for_pages()
    assert (asked, ranks.pages) == ([f"expandable_segments:{way}" for way in settled], pages)
    said = "memory comes in segments: the driver refuses pages (CUDA driver error: operation not supported)\n"
    assert capsys.readouterr().out == (said if where == "refused" else "")


OF_RANK_1 = [
    example.id
    for example, _ in data.draw([data.Example(f"q{i}", "train", (), "", None, {}) for i in range(5)], 5, 0, 0)
][1::2]


def one_value(value: float, rank: int) -> None:
    """Every answer to rank 1's questions gets the same verdict."""
    usual = keyword_judge.verdict
    keyword_judge.verdict = lambda criterion, response: (
        value if f"q{criterion.title.split()[-1]}" in OF_RANK_1 else usual(criterion, response)
    )


def ties(rank: int) -> None:
    one_value(1.0, rank)


def fails(rank: int) -> None:
    one_value(float("nan"), rank)


@pytest.mark.parametrize("hook", [pytest.param(ties, marks=pytest.mark.slow), fails])
def test_a_rank_that_has_nothing_to_teach_keeps_step(
    tiny: Path, five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: Callable
) -> None:
    """Where its judge fails on all, it has no gradient at all, and the others wait for it in the sum."""
    changes = {"steps": 1, "eval_every": 0, "max_judge_failures": 1}
    monkeypatch.setattr(keyword_judge, "verdict", keyword_judge.verdict)
    hook(0)
    train.main(words(tiny, five, tmp_path / "one", **changes))
    launch(2, words(tiny, five, tmp_path / "many", **changes), tmp_path / "logs", hook)
    like(tmp_path / "many", tmp_path / "one", tiny)
    (row,) = numbers(tmp_path / "many")
    assert row["judge/failures"] == (8 if hook is fails else 0)
    assert row["frac_reward_zero_std"] >= (0 if hook is fails else 0.4)


def breaks(kind: type[Exception], rank: int) -> None:
    """At step 2 the judge of rank 1 is gone."""
    usual, asked = train.Judge._score, []

    def score(self: train.Judge, *words: Any) -> Scores:
        asked.append(1)
        if rank == 1 and len(asked) == 2:
            raise kind("no more")
        return usual(self, *words)

    train.Judge._score = score


def unreachable(rank: int) -> None:
    breaks(ConnectionError, rank)


def too_dear(rank: int) -> None:
    breaks(OverBudget, rank)


def wrong(rank: int) -> None:
    breaks(AssertionError, rank)


@pytest.mark.parametrize("hook", [pytest.param(unreachable, marks=pytest.mark.slow), too_dear])
def test_a_judge_that_ends_one_rank_ends_all_with_a_checkpoint(
    tiny: Path, five: Path, tmp_path: Path, hook: Callable
) -> None:
    run = tmp_path / "run"
    changes = {"eval_every": 0, "save_every": 0, "steps": 3}
    started = Launch(3, words(tiny, five, run, **changes), tmp_path / "logs", hook)
    assert started.codes() == [1, 1, 1]
    assert (
        started.said().count(
            f"train.py: rank 1: no more\n          Go on later: python train.py --resume {run}"
        )
        == 1
    )
    assert "Traceback" not in started.said() and "is gone" not in started.said()
    assert [checkpoint.check(path) for path in Run(run).checkpoints()] == [1]


@pytest.mark.slow
def test_a_defect_on_one_rank_is_shown_by_it_and_ends_all(tiny: Path, five: Path, tmp_path: Path) -> None:
    started = Launch(2, words(tiny, five, tmp_path / "run", eval_every=0), tmp_path / "logs", wrong)
    assert started.codes() == [1, 1]
    zero, one = (log.read_text() for log in started.logs)
    assert "AssertionError: rank 1: no more" in zero
    assert "in score" in one and one.rstrip().endswith("AssertionError: no more")
    assert checkpoint.check(tmp_path / "run" / "checkpoints" / "step-1") == 1


def cramped(rank: int) -> None:
    """Rank 1 has nothing to teach, and no memory to say so in zeros."""
    fails(rank)
    usual = ranks.add_gradients

    def no_room(*words: Any) -> None:
        raise MemoryError("no room")

    def add(parameters: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "zeros_like", no_room)
            usual(parameters)

    ranks.add_gradients = add if rank else usual


@pytest.mark.slow
def test_a_rank_without_room_for_the_sum_ends_all(tiny: Path, five: Path, tmp_path: Path) -> None:
    """The others would wait for it in the sum of the gradients, and it for them to be told why."""
    changes = {"eval_every": 0, "max_judge_failures": 1}
    started = Launch(2, words(tiny, five, tmp_path / "run", **changes), tmp_path / "logs", cramped)
    assert started.codes() == [1, 1]
    assert "rank 1: no room" in started.logs[0].read_text()


@pytest.mark.parametrize(
    ("argv", "code", "said"), [("--help", 0, "usage: train.py"), ("--steps x", 2, "--steps")]
)
def test_the_parser_ends_all_ranks_alike(tmp_path: Path, argv: str, code: int, said: str) -> None:
    """torchrun takes any other end than 0 for a failure, and shows a page about it."""
    started = Launch(2, argv.split(), tmp_path / "logs")
    assert started.codes() == [code, code]
    zero, one = (log.read_text() for log in started.logs)
    assert said in zero and not one


@pytest.mark.slow
def test_another_number_of_ranks_goes_on(tiny: Path, five: Path, tmp_path: Path) -> None:
    """The order of the data knows steps, not ranks."""
    train.main(words(tiny, five, tmp_path / "one"))
    launch(2, words(tiny, five, tmp_path / "many", steps=1, warmup=0.2), tmp_path / "logs")
    said = launch(3, ["--resume", str(tmp_path / "many"), "--steps", "2"], tmp_path / "logs")
    assert "this run began with ranks 2, now it is 3, which shares" in said
    got, truth = numbers(tmp_path / "many")[-1], numbers(tmp_path / "one")[-1]
    assert got["step"] == 2 and got["reward"] == pytest.approx(truth["reward"], rel=1e-4)
    assert got["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-3)


def test_fewer_questions_than_ranks_are_refused(tiny: Path, five: Path, tmp_path: Path) -> None:
    refused = Launch(3, words(tiny, five, tmp_path / "run", prompts_per_step=2), tmp_path / "logs")
    assert refused.codes() == [1, 1, 1]
    assert refused.said().count("--prompts-per-step 2 with 3 processes") == 1
    assert not (tmp_path / "run").exists()


def until(path: Path, started: Launch) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), started.said()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_ends_the_run_and_leaves_a_checkpoint(
    tiny: Path, five: Path, tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    started = Launch(2, words(tiny, five, run, steps=20, eval_every=0), tmp_path / "logs")
    until(run / "checkpoints" / "step-2", started)
    started.all[victim].kill()
    codes = started.codes()  # at once: for a slow rank the other would wait six hours (ranks.PATIENCE)
    assert codes[victim] == -9 and codes[1 - victim] == 1
    said = started.logs[1 - victim].read_text()
    assert f"rank {1 - victim} of 2 ends: another rank is gone" in said and f"--resume {run}" in said
    assert re.search(r"stopped \(.*gloo.*\)\. What", said), "it may have been something else"
    train.main(["--resume", str(run)])
    assert [row["step"] for row in records(run)] == list(range(1, 21))


def tells_what_it_hashes(rank: int) -> None:
    usual = checkpoint.digests

    def tells(folder: Path, without: str) -> dict[str, str]:
        print(f"hashes {folder.name}", file=sys.__stdout__, flush=True)  # as nobody will
        return usual(folder, without)

    checkpoint.digests = tells


def test_a_checkpoint_is_read_through_once(tiny: Path, five: Path, tmp_path: Path) -> None:
    """Of all ranks the first one reads it, and tells the others if it is damaged."""
    run = tmp_path / "run"
    train.main(words(tiny, five, run, steps=1, eval_every=0))
    resume = ["--resume", str(run), "--steps", "2"]
    started = Launch(2, resume, tmp_path / "logs", tells_what_it_hashes)
    assert started.codes() == [0, 0], started.said()
    zero, one = (log.read_text().count("hashes step-1") for log in started.logs)
    assert (zero, one) == (1, 0)
    (run / "checkpoints" / "step-2" / "model.safetensors").write_bytes(b"half")
    started = Launch(2, ["--resume", str(run), "--steps", "3"], tmp_path / "logs")
    assert started.codes() == [1, 1]
    assert started.said().count("step-2 is damaged: model.safetensors is not what was written") == 1


def dawdles(rank: int) -> None:
    """Rank 1's judge takes longer than a sum may."""
    ranks.SUMMING = timedelta(seconds=1)
    if rank:
        usual = keyword_judge.verdict
        keyword_judge.verdict = lambda *words: (time.sleep(0.01), usual(*words))[1]


def hangs(rank: int) -> None:
    """Rank 1 stays away from the sum of the gradients."""
    ranks.SUMMING = timedelta(seconds=1)
    if rank:
        usual = torch.distributed.all_reduce
        torch.distributed.all_reduce = lambda *words, **options: (time.sleep(3), usual(*words, **options))


@pytest.mark.slow
def test_ranks_wait_for_a_judge_and_not_for_a_sum(tiny: Path, five: Path, tmp_path: Path) -> None:
    changes = {"steps": 1, "eval_every": 0}
    started = time.monotonic()
    launch(2, words(tiny, five, tmp_path / "slow", **changes), tmp_path / "slowly", dawdles)
    assert time.monotonic() - started > 1.5
    stuck = Launch(2, words(tiny, five, tmp_path / "stuck", **changes), tmp_path / "logs", hangs)
    assert 1 in stuck.codes()
    said = stuck.logs[0].read_text()
    assert re.search(r"rank 0 of 2 ends: another rank is gone.*1000 ?ms", said), said


@pytest.mark.slow
def test_ctrl_c_on_any_rank_stops_all_at_one_step(tiny: Path, five: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"steps": 5000, "eval_every": 0, "save_every": 0}
    started = Launch(2, words(tiny, five, run, **changes), tmp_path / "logs")
    until(run / "rollouts.jsonl", started)
    os.kill(started.all[1].pid, signal.SIGINT)
    assert started.codes() == [130, 130]
    (saved,) = Run(run).checkpoints()
    step = checkpoint.check(saved)
    assert step == records(run)[-1]["step"]
    said = f"stopped  after step {step}, because of Ctrl-C on rank 1: python train.py --resume {run}\n"
    assert said in started.logs[0].read_text() and not started.logs[1].read_text()


def other_weights(rank: int) -> None:
    usual = model.load

    def load(*words: Any) -> model.Decoder:
        decoder = usual(*words)
        decoder.head.data[0, 0] += rank
        return decoder

    model.load = load


@pytest.mark.slow
def test_ranks_that_do_not_start_alike_are_refused(tiny: Path, five: Path, tmp_path: Path) -> None:
    """Machines with other files under the same name would train two policies with one another's gradients."""
    started = Launch(2, words(tiny, five, tmp_path / "run"), tmp_path / "logs", other_weights)
    assert started.codes() == [1, 1]
    assert started.said().count("rank 1 has other weights than rank 0") == 1
    assert not (tmp_path / "run").exists()


def other_server(rank: int) -> None:
    if rank:
        os.environ["OPENAI_BASE_URL"] = "http://127.0.0.1:9/v1"


@pytest.mark.slow
def test_ranks_with_other_judges_are_refused(
    tiny: Path, five: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without the first one's environment would ask another judge, or match words, unnoticed."""
    monkeypatch.delenv("OPENAI_API_KEY")
    started = Launch(2, words(tiny, five, tmp_path / "run", judge="auto"), tmp_path / "logs", other_server)
    assert started.codes() == [1, 1]
    assert started.said().count("rank 1 has other judge settings than rank 0") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_questions_to_a_server_are_asked_once_and_counted_once(
    tiny: Path, five: Path, tmp_path: Path, folder: Path, server: Server
) -> None:
    changes = {"judge": "chat:m", "eval_every": 0, "max_judge_failures": 1, "method": "direct-likert"}
    launch(2, words(tiny, five, tmp_path / "run", **changes), tmp_path / "logs")
    rows = records(tmp_path / "run")
    assert sum(row["judge/questions"] for row in rows) == 2 * 5 * 4
    assert sum(row["perf/judge/calls"] for row in rows) == len(server.seen) <= 2 * 5 * 4


def test_a_budget_holds_for_all_ranks_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each would otherwise spend all of it: four ranks, four budgets."""
    account, ledger = Account(tmp_path / "spending.jsonl"), Ledger()
    account.put("a", 1.0)
    ledger.carry(account)  # all ranks learn what the run has cost
    monkeypatch.setattr(ranks, "world", 2)
    ledger.counts.update(calls=2, dollars=0.25)
    ledger.latencies.extend([0.1, 0.2])
    ledger.fail("timeout", "late")
    assert ledger.dollars(0.1) == pytest.approx(1.7), "a dollar, and if both spend alike"
    other = Counter(calls=1, dollars=0.5), Counter(cut=3), {"cut": ""}, [0.3]
    monkeypatch.setattr(ranks, "gather", lambda new: [new, other])
    ledger.pool()
    assert ledger.counts == {"calls": 3, "dollars": pytest.approx(1.75)}
    assert ledger.failures == {"timeout": 1, "cut": 3} and list(ledger.latencies) == [0.1, 0.2, 0.3]
    assert ledger.dollars(0.1) == pytest.approx(1.95)
    monkeypatch.setattr(ranks, "gather", lambda new: [new, new])
    ledger.pool()
    assert ledger.counts["calls"] == 3, "what is known is not told again"


def test_moments_go_to_the_gpu_of_the_rank_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names the first rank's GPU, where those of all ranks would meet, and not fit."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer, other = (AdamW([parameter], 0.1) for _ in range(2))
    optimizer.step()
    (tmp_path / "trainer").mkdir()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(optimizer.state_dict(), tmp_path / "trainer" / "optimizer.pt")
    checkpoint.load_state(tmp_path, other, {})
    assert torch.equal(other.state[parameter]["m"], optimizer.state[parameter]["m"])


def test_shares_of_a_step_add_up_to_its_gradient(tiny: Path) -> None:
    """Normalised over its own share, a rank with few or short answers would pull as hard as the others."""
    decoder = model.load(tiny, torch.float32, "cpu")
    prompts = [[5, 6, 7], [40, 41], [90] * 6]
    lengths = [[2, 9], [1, 4], [12, 3]]
    completions = [[Completion([7 + n] * n, [0.0] * n, True) for n in group] for group in lengths]
    adv, teaches = torch.tensor([[1.0, -1], [0.5, -0.5], [2, 0]]), torch.ones(3, 2, dtype=torch.bool)
    rollouts = rolled(prompts, completions, adv)
    for loss_norm in grpo.LOSS_NORMS:
        found = []
        for shares in ([None], [[0, 2], [1]], [[0], [1], [2], []]):
            decoder.zero_grad()
            for own in shares:
                limits = {"loss_norm": loss_norm, "max_new_tokens": 12, "tokens_per_batch": 20}
                for batch in grpo.micro_batches(rollouts, teaches, own=own, **limits):
                    logp, _ = grpo.token_logp(decoder, batch, 1.0)
                    batch.old_logp = logp.detach()
                    grpo.policy_loss(logp, batch, clip_low=0.2, clip_high=0.2)[0].backward()
            found.append(torch.cat([p.grad.flatten() for p in decoder.parameters()]))
        for other in found[1:]:
            assert (other - found[0]).norm() <= 1e-5 * found[0].norm()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


@pytest.mark.slow
def test_torchrun_itself(tiny: Path, five: Path, tmp_path: Path) -> None:
    """A whole run; and one of which a rank is killed, where torchrun tells the other before it finds out."""
    train.main(words(tiny, five, tmp_path / "one"))
    command = [*TORCHRUN, "2", "train.py", *words(tiny, five, tmp_path / "many")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    like(tmp_path / "many", tmp_path / "one", tiny)
    run = tmp_path / "killed"
    command = [*TORCHRUN, "2", "train.py", *words(tiny, five, run, steps=20, eval_every=0)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints" / "step-2").exists() and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "of 2 ends: another rank is gone" in err and f"--resume {run}" in err
    done = checkpoint.check(Run(run).checkpoints()[-1])
    subprocess.run([*command[:6], "--resume", str(run)], cwd=ROOT, check=True, capture_output=True)
    assert [row["step"] for row in records(run)] == list(range(1, 21)) and done < 20
