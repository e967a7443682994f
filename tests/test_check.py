"""`train.py --check`: what it says of a good machine and of a bad one, and that nothing stops it."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command
from tiny import write_tiny
from torch import Tensor

import train
from rar_mini import files, grpo, prefix, sampler
from rar_mini.kernels import adamw
from rar_mini.tools import check
from rar_mini.tools.check import Bench, one, row_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A check of a tiny policy with a vocabulary that a check's random prompts fit."""
    policy = write_tiny(tmp_path_factory.mktemp("check") / "policy")
    return Bench(str(policy), None, "cpu", "float32", train.cut, train.loss, train.step)


IN_PROCESSES = [pytest.param(name, marks=pytest.mark.slow) for name in ("repeat", "ranks")]


@pytest.mark.parametrize("name", ["machine", "gap", *IN_PROCESSES])
def test_a_good_machine_is_told_so(bench: Bench, name: str) -> None:
    row = one(name, bench)
    assert row.result == "ok", row.words


@pytest.mark.parametrize("name", ["long", "decoding", "memory"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_cpu_cannot_do_is_said(bench: Bench, name: str) -> None:
    row = one(name, bench)
    assert row.result == "not here" and "GPU" in row.words


def test_a_sampler_that_is_off_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda *a: (draw(*a)[0], draw(*a)[1] + 0.01))
    row = one("gap", bench)
    assert row.result == "FAILED" and "the mean gap is 0.0100" in row.words
    assert row.numbers["mean"] == pytest.approx(0.01, rel=0.01)


def test_a_trainer_that_does_not_repeat_itself_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_logp, turn = grpo.token_logp, iter(range(1000))

    def other(*words: object) -> tuple[Tensor, Tensor]:
        logp, entropy = token_logp(*words)
        return logp + 1e-5 * next(turn), entropy

    monkeypatch.setattr(grpo, "token_logp", other)
    assert "two passes of the trainer differ" in one("gap", bench).words


@pytest.mark.slow
def test_weights_that_do_not_repeat_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bfloat16, whose rounding asks the optimizer for its key: here another one at each call."""
    bits, turn = adamw.random_bits, iter(range(10**6))
    monkeypatch.setattr(adamw, "random_bits", lambda seed, *rest: bits(next(turn), *rest))
    row = one("repeat", replace(bench, dtype="bfloat16"))
    assert row.result == "FAILED"
    assert "weights differ after two steps again, saved and loaded, in another process" in row.words


def test_the_worst_of_errors_is_one_that_is_no_number() -> None:
    assert math.isnan(check.worst([1e-7, math.nan, 2.0])) and check.worst([1.0, 2.0]) == 2.0
    assert check.worst([]) == 0.0
    assert files.without_nan({"a": [math.nan, 1.5], "b": {"c": math.inf, "d": "x"}}) == {
        "a": [None, 1.5],
        "b": {"c": None, "d": "x"},
    }


@pytest.mark.slow
def test_what_a_check_started_ends_with_it() -> None:
    """Else it would hold a GPU's memory while the next checks measure."""
    inner = "from rar_mini.tools.check import row_of; import os, sys; "
    inner += (
        "row_of([sys.executable, '-c', 'import time; time.sleep(77.125)'], dict(os.environ), 'digest', 60)"
    )
    row_of([sys.executable, "-c", inner], os.environ | {"PYTHONPATH": str(ROOT)}, "repeat", 12.0)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"sleep(77.125)" in words for words in running)


def test_attention_that_is_off_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets a token see the one behind it."""
    monkeypatch.setattr(check, "LAYOUTS", ((4, 2, 16),))
    monkeypatch.setattr(check, "TREES", ((20, [7, 9]),))
    assert one("attention", bench).result == "ok"
    masked = prefix._masked

    def off(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        shift = mask is not None and q.dtype != torch.float64
        return masked(q, k, v, mask.roll(1, -1) | mask if shift else mask)

    monkeypatch.setattr(prefix, "_masked", off)
    row = one("attention", bench)
    assert row.result == "FAILED" and "loop off by" in row.words


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("time.sleep(60)", "not done after 2 s"),
        ("os.abort()", "its process ended with -6: without a word"),
        ("raise MemoryError('no room')", "its process ended with 1: MemoryError: no room"),
        ("print('half a li')", "its process ended with 0: without a word"),
    ],
)
def test_a_check_that_ends_badly_is_a_line(does: str, says: str) -> None:
    start = time.monotonic()
    command = [sys.executable, "-c", f"import os, time; {does}"]
    row = row_of(command, dict(os.environ), "speed", 2.0)
    assert (row.check, row.result, row.words) == ("speed", "FAILED", says)
    assert time.monotonic() - start < 30


@pytest.fixture
def page(bench: Bench, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    """The command, whose checks are lines made up."""
    seen = []

    def child(name: str, words: list[str], limit: float) -> check.Row:
        seen.append((name, words))
        if name == "gap":
            return check.Row(name, "FAILED", "a | b\nc", 3.2, {"mean": 1.0})
        return check.Row(name, "not here" if name == "long" else "ok", "fine", 1.0)

    monkeypatch.setattr(check, "child", child)
    return lambda *names: (command("train.py", "--check", "--policy", bench.policy, *names), seen)


def test_the_page_is_a_table_and_ends_in_json(page: Callable[..., tuple]) -> None:
    done, seen = page()
    lines = done.stdout.splitlines()
    assert [name for name, _ in seen] == list(check.CHECKS)
    assert "| gap | FAILED | 3 | a \\| b c |" in lines
    assert "8 ok, 1 FAILED, 1 not here; 12 s" in lines
    assert json.loads(lines[-1])["gap"]["numbers"] == {"mean": 1.0}
    assert done.returncode == 1


def test_checks_can_be_named(page: Callable[..., tuple]) -> None:
    done, seen = page("machine", "long")
    assert [name for name, _ in seen] == ["machine", "long"] and done.returncode == 0
    assert seen[0][1][:2] == ["--policy", str(Path(seen[0][1][1]))]
    done, _ = page("mashine")
    assert done.returncode and "no check 'mashine': expected machine, kernels" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(command: Command) -> None:
    done = command("train.py", "--check", "--device", "cuda")
    assert done.returncode and "sees no GPU" in done.stderr and "Traceback" not in done.stderr


def test_random_weights_are_large_where_qwens_are() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "qwen2",
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    decoder = check.random_weights(config, torch.bfloat16, "cpu")
    layer = decoder.model["layers"][0].self_attn
    biases = layer.k_proj.bias.view(2, 2, 8)  # heads, halves of a rotation, channels from fast to slow
    assert 200 < biases[..., -1].float().std() < 800 and biases[..., :-1].abs().max() < 0.1
    assert layer.q_proj.bias.abs().max() < 0.1
    assert decoder.model["norm"].weight.eq(1).all() and decoder.head.dtype == torch.bfloat16
    again = check.random_weights(config, torch.bfloat16, "cpu")
    assert all(map(torch.equal, decoder.parameters(), again.parameters()))


@pytest.mark.slow
def test_all_of_it_with_the_default_policy(command: Command) -> None:
    done = command("train.py", "--check")
    rows = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and not [r for r in rows.values() if r["result"] == "FAILED"], done.stdout
