"""The whole run on a tiny policy: what it writes, that it learns, that it resumes, that it refuses.

Other processes are forked from one that has imported torch; the last test starts a real one.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, Command
from hostile import Server
from safetensors.torch import load_file
from tiny import byte_tokenizer, question, write_rows
from torch.autograd import DeviceType
from transformers import AutoModelForCausalLM, AutoTokenizer

import evaluate
import train
from rar_mini import checkpoint, grpo, policy, prompts, setup
from rar_mini.checkpoint import Run
from rar_mini.kernels.advantage import group_advantage
from rar_mini.recipe import Recipe
from rar_mini.report import Clock
from rar_mini.viewing.show import show


def options(tiny: Path, questions: Path, out: Path, **changes: object) -> list[str]:
    """A command line for a run of a second."""
    settings = {
        "policy": tiny,
        "data": questions,
        "out": out,
        "judge": "keyword",
        "steps": 4,
        "prompts-per-step": 2,
        "group-size": 4,
        "max-new-tokens": 12,
        "lr": 1e-3,
        "save-every": 1,
        "eval-samples": 1,
    }
    settings |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def records(run: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in records(run)]


processes = multiprocessing.get_context("forkserver")


@cache
def nursery() -> None:
    """Start the process that has imported all of this once, where others take seconds each."""
    processes.set_forkserver_preload(["test_ranks", "torch.distributed"])
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        forkserver.ensure_running()


def spawn(
    words: list[str],
    log: Path,
    rank: int = 0,
    hook: Callable[[int], object] = int,
    file: str = "train.py",
    **own: Any,
) -> BaseProcess:
    """A file of the project as a shell would start it, with `own` in its environment and all that it says in
    a log; `hook` is called with the rank before it begins."""
    nursery()
    own |= {name: value for name, value in os.environ.items() if name.startswith(("OPENAI", "RAR_MINI"))}
    # As many threads as here, for the same numbers; ranks share the cores.
    threads = 1 if "WORLD_SIZE" in own else torch.get_num_threads()
    process = processes.Process(target=child, args=(file, words, str(log), rank, hook, own, threads))
    process.start()
    return process


def child(
    command: str,
    words: list[str],
    log: str,
    rank: int,
    hook: Callable[[int], object],
    own: dict[str, Any],
    threads: int,
) -> None:
    os.environ.update({name: str(value) for name, value in own.items()})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [command, *words]
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hook(rank)
    runpy.run_path(str(ROOT / command), run_name="__main__")


@pytest.fixture(scope="module")
def said_and_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What one run of four steps said, and where it is."""
    folder, said = tmp_path_factory.mktemp("run"), io.StringIO()
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    with contextlib.redirect_stdout(said):
        train.main(
            options(tiny, write_rows(folder / "questions.jsonl", rows), folder / "run", warmup=0.5, seed=1)
        )
    return said.getvalue(), folder / "run"


@pytest.fixture(scope="module")
def run(said_and_run: tuple[str, Path]) -> Path:
    """That run, which several tests read."""
    return said_and_run[1]


def test_a_run_keeps_settings_versions_and_one_line_a_step(said_and_run: tuple[str, Path]) -> None:
    """Metrics of a step are recomputed by tests/test_recompute.py; here are those that only a clock knows."""
    said, run = said_and_run
    config = json.loads((run / "config.json").read_text())
    given = {"steps": 4, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 12, "lr": 1e-3}
    given |= {"warmup": 0.5, "seed": 1, "save_every": 1, "eval_samples": 1}
    given |= {"judge": "keyword", "out": str(run)}
    assert given.items() <= config["settings"].items()
    assert config["versions"]["torch"] == torch.__version__
    assert config["judge_prompts"] == prompts.JudgePrompts().digest
    start, *steps = records(run)
    assert start["step"] == 0 and [row["step"] for row in steps] == [1, 2, 3, 4]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert [row["learning_rate"] for row in steps] == [5e-4, 1e-3, 1e-3, 1e-3]
    rows = records(run, "rollouts")
    for row in steps:
        seconds = [row[f"perf/seconds_{stage}"] for stage in ("sample", "judge", "train")]
        tokens = sum(rollout["tokens"] for rollout in rows if rollout["step"] == row["step"])
        assert min(seconds) > 0 and row["perf/tokens_per_second"] == pytest.approx(tokens / sum(seconds))
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert abs(row["loss"]) < 1e-6 and row["grad_norm"] > 0.1
    assert said.count("loss is about 0 and that is right") == 1, "by this norm, and in one inner epoch"
    assert all(1 <= row["tokens"] <= 12 and (row["finished"] or row["tokens"] == 12) for row in rows)
    assert {row["finished"] for row in rows} == {True, False}


def test_every_reward_can_be_recomputed_from_the_files(run: Path) -> None:
    rollouts = records(run, "rollouts")
    assert len(rollouts) == 4 * 2 * 4
    for start in range(0, len(rollouts), 4):
        group = rollouts[start : start + 4]
        assert len({row["example_id"] for row in group}) == 1
        verdict = torch.tensor([[[v["verdict"] for v in row["verdicts"]] for row in group]])
        weight = torch.tensor([[v["weight"] for v in group[0]["verdicts"]]])
        reward, adv = group_advantage(verdict, weight, scale="group")
        torch.testing.assert_close(reward[0], torch.tensor([row["reward"] for row in group]))
        torch.testing.assert_close(adv[0], torch.tensor([row["advantage"] for row in group]))


def test_a_checkpoint_is_a_model_that_transformers_loads(run: Path) -> None:
    saved = run / "checkpoints" / "step-4"
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-3", "step-4"]  # --keep 2
    ours = policy.load(str(saved), torch.float32, "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(theirs.lm_head.weight, ours.model.head)
    assert AutoTokenizer.from_pretrained(saved).chat_template == ours.tokenizer.chat_template
    assert ours.ends == {256, 258}


def test_every_parameter_moves(run: Path, tiny: Path) -> None:
    """A default that zeroes the policy gradient looks normal in every metric."""
    before = load_file(tiny / "model.safetensors")
    after = load_file(run / "checkpoints" / "step-4" / "model.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in after)


def test_the_same_command_gives_the_same_numbers(
    run: Path, tiny: Path, tmp_path: Path, questions: Path
) -> None:
    train.main(options(tiny, questions, tmp_path / "run", warmup=0.5, seed=1))
    assert numbers(tmp_path / "run") == numbers(run)


def test_batches_change_no_number_beyond_rounding(
    run: Path, tiny: Path, tmp_path: Path, questions: Path
) -> None:
    """Over one step: from the second on, rounding that differs may tip a token, and then all that follows.
    Sums in another order have other last bits, which tells that there were other batches."""
    train.main(options(tiny, questions, tmp_path / "run", steps=1, lr=5e-4, seed=1, tokens_per_batch=60))
    for got, truth in zip(numbers(tmp_path / "run"), numbers(run)[:2], strict=True):
        for name in truth.keys() - {"judge/questions"}:  # here they count the score after, too
            value = truth[name]
            assert got[name] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)), name
    assert any(got[name] != truth[name] for name in ("loss", "entropy", "grad_norm"))


def test_resuming_gives_the_numbers_of_an_unbroken_run(
    run: Path, tiny: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    """Off by one, the last batch would be trained twice; without the moments, step 3 would differ; a warm-up
    that kept its share would be one of four steps now, and lower the rate again."""
    broken = tmp_path / "run"
    train.main(options(tiny, questions, broken, steps=2, warmup=1, seed=1))
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "half a li')
    with open(broken / "rollouts.jsonl", "a") as file:
        file.write('{"step": 3}\n')
    train.main(["--resume", str(broken), "--steps", "4"])
    left = capsys.readouterr().out.split("resume   ")[1]
    assert "rar-explicit: 16 answers" in left, "of the two steps that are left"
    got, truth = numbers(broken), numbers(run)
    assert [row["learning_rate"] for row in got[1:]] == [row["learning_rate"] for row in truth[1:]]
    assert got[-2:] == truth[-2:]
    assert [row["step"] for row in got] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in records(broken, "rollouts")] == [s for s in (1, 2, 3, 4) for _ in range(8)]
    with pytest.raises(ValueError, match="finished after 4 steps"):
        train.main(["--resume", str(broken)])


def test_a_run_goes_on_from_its_first_step(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """With the scores that it began with, and not with others."""
    broken = tmp_path / "run"
    train.main(options(tiny, questions, broken, steps=1, warmup=1, seed=1))
    train.main(["--resume", str(broken), "--steps", "4"])
    assert [row["step"] for row in records(broken)] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_numbers(
    run: Path, tiny: Path, tmp_path: Path, questions: Path
) -> None:
    broken = tmp_path / "run"
    process = spawn(options(tiny, questions, broken, warmup=0.5, seed=1), tmp_path / "log")
    while not (broken / "checkpoints" / "step-1").exists() and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    try:
        train.main(["--resume", str(broken)])
    except ValueError as error:  # it was quicker than the kill
        assert "finished" in str(error)
    assert numbers(broken) == numbers(run)


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_unbroken_run(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """At random moments: before the first step, in a line of a record, in a save, in a clean-up."""
    words = options(tiny, questions, tmp_path / "truth", steps=12)
    start = time.monotonic()
    train.main(words)
    length = time.monotonic() - start
    broken = tmp_path / "run"
    words[words.index(str(tmp_path / "truth"))] = str(broken)
    rng = random.Random(0)
    kills, whole = 0, 0
    while kills < 20 or not whole:
        started = (broken / "config.json").exists()
        argv = ["--resume", str(broken)] if started else words
        process = spawn(argv, log := tmp_path / "log")
        process.join(rng.uniform(0, length / 4) if kills < 20 else 60)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        # A run killed after its last word has nothing left to do, and says so.
        done = process.exitcode == 0 or (started and "is finished after 12 steps" in log.read_text())
        assert done or process.exitcode == -signal.SIGKILL, log.read_text()
        if done:  # it came to its end between two kills: look, and begin again
            whole += 1
            assert numbers(broken) == numbers(tmp_path / "truth")
            rows = records(broken, "rollouts")
            assert [row["step"] for row in rows] == [step for step in range(1, 13) for _ in range(8)]
            shutil.rmtree(broken)


def test_checkpoints_keep_their_end_tokens_when_the_one_gone_on_from_is_dropped(
    tiny: Path, tmp_path: Path, questions: Path
) -> None:
    """The generation config was copied from there at each save: from the second one on there was none, and
    the run that went on from such a checkpoint no longer stopped at 256."""
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=1, keep=1, eval_every=0))
    train.main(["--resume", str(run), "--steps", "3"])
    (saved,) = Run(run).checkpoints()
    assert policy.load(str(saved), torch.float32, "cpu").ends == {256, 258}


def test_a_run_without_a_checkpoint_starts_over_only_if_that_is_accepted(
    tiny: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    """All that it has done would be lost, and so it does not say how to take more steps."""
    folder = tmp_path / "run"
    train.main(options(tiny, questions, folder, steps=1, save_every=0))
    truth = numbers(folder)
    assert not (folder / "checkpoints").exists()
    assert "more steps" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"checkpoints/ \(none, although 1 steps are done\)"):
        train.main(["--resume", str(folder)])
    assert numbers(folder) == truth
    train.main(["--resume", str(folder), "--accept-changes"])
    assert numbers(folder) == truth


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_saves(tiny: Path, tmp_path: Path, questions: Path) -> None:
    folder = tmp_path / "run"
    process = spawn(options(tiny, questions, folder, steps=500, save_every=0), tmp_path / "log")
    while not (folder / "rollouts.jsonl").exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 130 and "Traceback" not in said
    assert f"--resume {folder}" in said
    (saved,) = (folder / "checkpoints").iterdir()
    assert checkpoint.check(saved) == records(folder)[-1]["step"]


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"lora_rank": 2, "lora_save": "adapter"}])
def test_the_size_of_a_checkpoint_is_said_before_the_first(
    tiny: Path, tmp_path: Path, questions: Path, changes: dict[str, Any]
) -> None:
    """Of the tensors that are in it: the tokenizer and the headers are small."""
    config = setup.parse(options(tiny, questions, tmp_path / "run", steps=1, eval_every=0, **changes))
    t = setup.prepare(config, train.Judge, None, None)
    weights, moments = checkpoint.size(t.actor, t.optimizer)
    t.save(1)
    saved = tmp_path / "run" / "checkpoints" / "step-1"
    tensors = [x for path in saved.rglob("*.safetensors") for x in load_file(path).values()]
    assert sum(x.nbytes for x in tensors) == weights
    state = torch.load(saved / "trainer" / "optimizer.pt", weights_only=True)["state"].values()
    assert sum(x.nbytes for each in state for x in each.values() if torch.is_tensor(x)) == moments


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    saved = tmp_path / "step-4"
    shutil.copytree(run / "checkpoints" / "step-4", saved)
    assert checkpoint.check(saved) == 4
    with open(saved / "trainer" / "optimizer.pt", "r+b") as file:
        file.seek(200)
        file.write(b"\0\1\2")
    with pytest.raises(ValueError, match=r"step-4 is damaged: trainer/optimizer.pt"):
        checkpoint.check(saved)


def test_the_checkpoint_before_a_damaged_one_is_offered_and_goes_on(run: Path, tmp_path: Path) -> None:
    """Its later records and checkpoints go: those steps are done again, to the same numbers."""
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "checkpoints" / "step-4" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"model.safetensors .* --resume \S+run --step 3"):
        train.main(["--resume", str(broken)])
    with pytest.raises(ValueError, match="no checkpoint of step 2: expected one of 3, 4"):
        train.main(["--resume", str(broken), "--step", "2"])
    train.main(["--resume", str(broken), "--step", "3"])
    assert numbers(broken) == numbers(run)
    assert checkpoint.check(broken / "checkpoints" / "step-4") == 4


ANSWERS = [question(i, reference_answer=f"It is {i}" + i * "!") for i in range(5)]


def test_reference_answers_are_learnt_by_transformers_own_loss(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The first step's loss is the mean over answers of transformers' own, whose labels are the answer and
    its end; no step has a reward, the scores do; and a resumed run has the same numbers."""
    folder, path = tmp_path / "run", write_rows(tmp_path / "rows.jsonl", ANSWERS)
    words = options(tiny, path, folder, steps=8, method="sft", lr=3e-3)
    train.main(words)
    steps, first, rows = records(folder), records(folder)[1], records(folder, "rollouts")[:2]
    model, actor = AutoModelForCausalLM.from_pretrained(tiny), policy.load(str(tiny), torch.float32, "cpu")
    known = {example.id: example for example in train.data.read(path)}
    losses = []
    for row in rows:
        example = known[row["example_id"]]
        assert row["response"] == example.reference and row["reward"] is None and row["verdicts"] == []
        prompt, answer = actor.encode(example), actor.completion(example.reference)
        assert answer[-1] == 258 and actor.decode(answer) == example.reference
        assert row["tokens"] == len(answer) and row["finished"]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        losses.append(model(ids, labels=labels).loss.item())
    assert first["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert steps[-1]["loss"] < 0.8 * first["loss"]
    judged = {"reward", "reward_std", "judge/failures", "clip_ratio/low_mean", "perf/seconds_sample"}
    assert not judged & set().union(*steps) and 0 <= steps[-1]["eval/train_reward"] <= 1
    said = capsys.readouterr().out
    assert (
        "method   sft: 16 answers x 0.0 = 0 questions" in said
        and f"step 1/8  loss {first['loss']:.4f}" in said
    )
    for command in (show, lambda run: evaluate.replay(run, ("keyword",))):
        with pytest.raises(ValueError, match="learnt from reference answers"):
            command(folder)
    broken = tmp_path / "broken"
    train.main(options(tiny, path, broken, steps=3, method="sft", lr=3e-3))
    train.main(["--resume", str(broken), "--steps", "8"])
    assert [row["loss"] for row in numbers(broken)[1:]] == [row["loss"] for row in steps[1:]]


@pytest.mark.parametrize("template", [True, False])
def test_an_answer_as_a_completion_ends_once_and_reads_back(tiny: Path, template: bool) -> None:
    """An answer that spells the end token would otherwise teach the policy to stop in its midst."""
    actor = policy.load(str(tiny), torch.float32, "cpu")
    if not template:
        actor = dataclasses.replace(actor, tokenizer=byte_tokenizer(None))
    text = "a <|im_end|> b"
    ids = actor.completion(f" {text}\n")
    assert ids[-1] == 258 and not actor.ends & set(ids[:-1]) and actor.decode(ids) == text
    assert len(ids) == len(text) + 1 + (not template)  # after "Answer:" there is a space


def test_reference_answers_are_never_cut_and_held_out_questions_need_none(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [*ANSWERS, question(5, reference_answer=""), question(6, split="held_out", reference_answer="")]
    rows[3] = question(3, reference_answer="far too long an answer")
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = options(tiny, path, tmp_path / "run", steps=1, method="sft")
    with pytest.raises(ValueError, match="answer of 'q3' has 23 tokens .* at most 12 .* --long-prompts skip"):
        train.main(words)
    train.main([*words, "--long-prompts", "skip"])
    said = capsys.readouterr().out
    assert "questions left out as too long: 1" in said and "4 training questions, 1 held out" in said
    assert "training questions left out without a reference answer: 1" in said


def test_a_run_of_no_steps_scores_the_policy_as_it_is(
    tiny: Path, tmp_path: Path, questions: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    """Off the shelf: the score before training, and nothing else. It can be trained on, with the warm-up of
    a run that was never asked to stop."""
    folder = tmp_path / "run"
    train.main(options(tiny, questions, folder, steps=0, warmup=0.5, seed=1))
    assert numbers(folder) == numbers(run)[:1] and "change" not in capsys.readouterr().out
    train.main(["--resume", str(folder), "--steps", "4"])
    assert numbers(folder) == numbers(run)


def test_a_run_of_other_rubrics_is_replayed_with_them(
    tiny: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    """Replay makes the rubrics anew: with its own defaults, every such run would have changed data."""
    folder = tmp_path / "run"
    words = options(tiny, questions, folder, steps=1, eval_every=0, weights="raw", pitfalls="signed")
    train.main(words)
    weights = {v["title"]: v["weight"] for row in records(folder, "rollouts") for v in row["verdicts"]}
    assert weights["Letter b"] == 5 and weights["Names fever"] == 3 and weights["No aspirin"] == -1
    evaluate.replay(folder, ("keyword",))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["all"]["same"]["value"] == found["all"]["correlation"]["value"] == 1.0


def test_a_loss_that_is_no_number_leaves_its_evidence(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(Recipe, "learning_rate", lambda *_: 1e30)
    with pytest.raises(FloatingPointError, match=r"nan.* at step \d; .*nonfinite-step-\d.json.*--lr"):
        train.main(options(tiny, questions, folder, steps=9, eval_every=0))
    (path,) = folder.glob("nonfinite-step-*.json")
    evidence = json.loads(path.read_text())
    assert any(row["nan"] for row in evidence["tensors"].values())
    assert len(evidence["rollouts"]) == 8
    assert checkpoint.check(Run(folder).checkpoints()[-1]) == evidence["step"] - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_summed_up_a_slice_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the numbers of the whole, with temporaries of a slice's size. Some slices have no finite number."""
    monkeypatch.setattr(checkpoint, "SLICE", 4)
    monkeypatch.setattr(policy, "SLICE", 4)
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).t()
    weights = torch.nn.ParameterList([torch.nn.Parameter(tensor.contiguous())])
    integers = tensor.contiguous().view({4: torch.int32, 2: torch.int16}[tensor.itemsize])
    assert policy.checksum(SimpleNamespace(model=weights)) == sum(map(int, integers.flatten()))

    tensor[:, 0], tensor[1, 1], tensor[2, 2] = torch.nan, torch.inf, -torch.inf
    found, finite = checkpoint.statistics(tensor), tensor[tensor.isfinite()].double()
    expected = {
        "shape": [7, 5],
        "nan": 7,
        "infinite": 2,
        "min": finite.min().item(),
        "max": finite.max().item(),
    }
    assert found == expected | {"rms": pytest.approx(finite.square().mean().sqrt().item(), rel=1e-14)}
    nothing = checkpoint.statistics(torch.full((9,), torch.nan, dtype=dtype))
    assert nothing == {"shape": [9], "nan": 9, "infinite": 0, "min": None, "max": None, "rms": None}


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """As if the disk were full after `size` bytes of a file: the write fails with a reason (Python ignores
    the signal)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1_000, 20_000, 200_000])  # fits no records, no weights, no moments
def test_a_full_disk_is_named_and_loses_nothing(
    run: Path, tmp_path: Path, command: Command, size: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    with limited_files(size):
        done = command("train.py", "--resume", folder, "--steps", "6")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"continue with: python train.py --resume {folder}" in done.stderr.splitlines()[-1]
    assert [checkpoint.check(path) for path in Run(folder).checkpoints()] == [3, 4]
    assert not list(folder.rglob(".partial-*"))


def test_bfloat16_trains_and_its_weights_move(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """Rounded to nearest at the paper's rate nothing would: `--dtype` must not be a way to learn nothing."""
    folder = tmp_path / "run"
    train.main(options(tiny, questions, folder, dtype="bfloat16", lr=5e-6, steps=3))
    before = load_file(tiny / "model.safetensors")
    after = load_file(folder / "checkpoints" / "step-3" / "model.safetensors")
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16
        if weight.numel() > 100:
            assert not torch.equal(weight, before[name].bfloat16()), name


def test_a_two_armed_toy_learns_the_right_arm(tiny: Path, tmp_path: Path) -> None:
    """Answers of two bytes, in which a lone `e` or `o` is right; the wrong sign would make it vanish.

    What --loss-norm and --advantage-scale do is held by tests/test_recompute.py: every arm learns this."""
    item = {"title": "Right arm", "description": "Essential Criteria: Mentions e or o.", "weight": 5}
    rows = [question(i, rubric=[item]) for i in range(2)]
    folder = tmp_path / "run"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    never = {"save_every": 0, "eval_every": 0, "show_every": 0}
    train.main(options(tiny, path, folder, steps=24, max_new_tokens=2, group_size=32, lr=2e-2, **never))
    rewards = [row["reward"] for row in records(folder)]
    assert sum(rewards[:5]) / 5 < 0.2
    assert sum(rewards[-5:]) / 5 > 0.8


HELP = {
    "--help": ("--config FILE.toml", "--resume RUN", "--plan --gpu 80", "--bench"),
    "--resume RUN --help": ("--step ", "--max-usd"),
    "--plan --help": ("--gpu GIB", "--json", "options of training"),
    "--bench --help": ("--runs RUNS", "options of training"),
}


@pytest.mark.parametrize("words", HELP)
def test_help_shows_every_way_to_start(words: str, capsys: pytest.CaptureFixture) -> None:
    """`--plan --help` asked for --gpu, and no help named --resume, --plan or --bench."""
    with pytest.raises(SystemExit) as done:
        train.main(words.split())
    said = capsys.readouterr().out
    assert not done.value.code and all(word in said for word in HELP[words])


def test_a_benchmark_times_whole_steps_that_no_end_token_cuts_short(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of them, unless --runs says otherwise, on the benchmark's own sizes."""
    asked: list[tuple] = []
    monkeypatch.setattr(train.speed, "WORK", (2, 3, 8))
    monkeypatch.setattr(train.speed, "training", lambda *words: asked.append(words))
    train.main(["--bench", "--policy", str(tiny), "--group-size", "16"])
    train.main(["--bench", "--policy", str(tiny), "--runs", "2", "--operators"])
    assert [words[2:] for words in asked] == [(5, False), (2, True)]
    t, one, *_ = asked[0]
    actor = t.actor
    assert t.config.policy == str(tiny) and actor.ends == frozenset()
    before, clock = policy.checksum(actor), Clock()
    # The byte model's answers all tie, and would teach nothing.
    monkeypatch.setattr(grpo, "reward", lambda scores: torch.tensor([[0.0, 0.5, 1.0]] * 2))
    one(clock)
    assert policy.checksum(actor) != before
    assert clock.seconds.keys() == {"sample", "judge", "train"}
    with pytest.raises(ValueError, match="no option --run "):
        train.main(["--bench", "--policy", str(tiny), "--run", "2"])


@pytest.mark.slow
def test_a_benchmark_times_the_step_that_the_options_ask_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its last line is JSON, with the time of the operators, if that was asked for."""
    monkeypatch.setattr(train.speed, "WORK", (2, 3, 8))
    monkeypatch.setattr(grpo, "reward", lambda scores: torch.tensor([[0.0, 0.5, 1.0]] * 2))
    stepped, real = [], train.step
    monkeypatch.setattr(train, "step", lambda *words: (stepped.append(words), real(*words)))
    words = ["--bench", "--policy", str(tiny), "--runs", "1", "--inner-epochs", "3", "--lr", "0.01"]
    train.main([*words, "--operators"])
    assert [rate for _, _, rate, _ in stepped] == [0.01] * 9  # one step to warm up, one timed, one watched
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["operators"]["aten::mm"] > 0 and row["seconds_per_step"] > 0


def test_a_benchmark_counts_advantages_as_training(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that needs log-probabilities reads all completions for them."""
    monkeypatch.setattr(train.speed, "WORK", (2, 3, 8))
    asked: list[tuple] = []
    monkeypatch.setattr(train.speed, "training", lambda *words: asked.append(words))
    train.main(["--bench", "--policy", str(tiny)])
    monkeypatch.setattr(train, "advantage", lambda t, rollouts: (time.sleep(1), rollouts.reward * 0)[1])
    monkeypatch.setattr(train, "learn", lambda *words: {})
    clock = Clock()
    asked[0][1](clock)
    assert clock.seconds["train"] >= 1


def test_on_a_gpu_a_product_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator of the CPU, its kernel, and a note of the profiler carry the same time."""

    def row(key: str, device: DeviceType, noted: bool = False) -> SimpleNamespace:
        own = {"device_type": device, "is_user_annotation": noted, "self_device_time_total": 2e6}
        return SimpleNamespace(key=key, count=1, **own)

    rows = [row("aten::mm", DeviceType.CPU), row("gemm", DeviceType.CUDA), row("step", DeviceType.CUDA, True)]
    seen = SimpleNamespace(key_averages=lambda: rows)
    monkeypatch.setattr(train.speed, "profile", lambda **_: contextlib.nullcontext(seen))
    monkeypatch.setattr(train.speed.bench, "device", lambda: "cuda")
    assert train.speed.by_operator(lambda clock: None) == {"gemm": 2.0}


def test_a_benchmark_of_no_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="--runs: expected a whole number from 1 on, got '0'"):
        train.main(["--bench", "--runs", "0"])


BARE = [{"id": "q", "question": "What?", "reference_answer": "That.", "rubric": []}]
WEIGHTLESS = [question(0, rubric=[{"title": "A", "description": "Mentions a.", "weight": 0}])]
DROPPED = [question(0, rubric=[{"title": "A", "description": "Pitfall Criteria: A.", "weight": -1}])]
SIGNED = [
    {"prompt": [{"role": "user", "content": "What?"}], "rubrics": [{"criterion": "A", "points": -1}]}
] * 2
REFUSED = {
    "an option that is spelt otherwise": (["--group-siz", "4"], "did you mean --group-size?"),
    "an option of other trainers": (["--num_generations=4"], "--num-generations: here it is --group-size"),
    "more rollouts to train than there are": (["--train-rollouts", "9"], "expected at most --group-size 4"),
    "rollouts to train where there are none": (
        ["--train-rollouts", "2", "--method", "sft"],
        "needs rollouts",
    ),
    "a penalty that may be a prize": (
        ["--cut-answers", "penalise", "--pitfalls", "signed"],
        "needs rewards in [0, 1]",
    ),
    "a penalty among signed points": (
        ["--cut-answers", "penalise", "--data", SIGNED],
        "signed points go below 0",
    ),
    "ties where nothing is scored": (["--resample-ties", "2", "--method", "sft"], "needs rollouts"),
    "an option that nothing resembles": (["--zzz"], "no option --zzz (see --help)"),
    "a value that does not exist": (["--loss-norm", "tokens"], "loss-norm"),
    "top-p in training": (["--top-p", "0.9"], "training samples from the full softmax"),
    "a preset that does not exist": (["--preset", "gpu"], "preset"),
    "a domain that does not exist": (["--domain", "law"], "medical"),
    "data that does not exist": (["--data", "none.jsonl"], "none.jsonl"),
    "data without a row": (["--data", []], "rows.jsonl"),
    "a question without a rubric": (["--data", BARE], "line 1: field rubric"),
    "a rubric whose weights are all zero": (["--data", WEIGHTLESS], "line 1: field rubric"),
    "a directory that is no model": (["--policy", "tests"], "config.json"),
    "a policy that does not exist": (["--policy", "nothing"], "smollm2-135m"),
    "a judge that does not exist": (["--judge", "oracle"], "keyword"),
    "a judge that cannot serve the method": (["--judge", "keyword", "--method", "direct-likert"], "keyword"),
    "a server that is down": (
        ["--judge", "chat:m", "--base-url", "http://127.0.0.1:9/v1", "--retries", "0"],
        "http://127.0.0.1:9/v1",
    ),
    "flex attention without a GPU": (["--attention", "flex", "--device", "cpu"], "use loop or auto"),
    "a gold judge that does not exist": (["--gold-judge", "oracle"], "keyword"),
    "a design of which nothing is left": (["--data", DROPPED, "--rubric-drop", "pitfalls"], "rubric of 'q0'"),
    "a design that the method does not take": (
        ["--method", "rar-implicit", "--weights", "v1"],
        "--weights v1",
    ),
    "more prompts than questions": (["--prompts-per-step", "9"], "more than the 5"),
    "a prompt too long": (["--max-prompt-tokens", "20"], "--long-prompts skip"),
    "no steps": (["--steps", "-1"], "--steps"),
    "no steps and no scores": (["--steps", "0", "--eval-every", "0"], "expected --eval-every above 0"),
    "a group of one": (["--group-size", "1"], "--group-size"),
    "temperature 0": (["--temperature", "0"], "--temperature"),
    "a run that does not exist": (["--resume", "nowhere"], "config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_words(
    tiny: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    words, expected = REFUSED[name]
    rows = tmp_path / "rows.jsonl"
    words = [str(write_rows(rows, word)) if isinstance(word, list) else word for word in words]
    line = words if words[0] == "--resume" else [*options(tiny, questions, tmp_path / "run"), *words]
    if words[0] == "--domain":
        line = [*words, "--out", str(tmp_path / "run"), "--policy", str(tiny)]
    with pytest.raises((ValueError, ConnectionError, SystemExit)) as error:
        train.main(line)
    captured = capsys.readouterr()
    said = str(error.value) + captured.err + captured.out
    assert expected in said
    if isinstance(error.value, SystemExit):
        assert error.value.code != 0


def test_flex_attention_is_refused_for_heads_that_it_does_not_take(tiny: Path, wide: Path) -> None:
    """`settle`, which has no model yet, has let a GPU pass."""
    config = setup.parse(["--attention", "flex", "--policy", str(tiny)])
    config = dataclasses.replace(config, device="cpu")
    with pytest.raises(ValueError, match="heads of 16 channels or more, got 8: use loop or auto"):
        setup.bare(config, None)
    assert setup.bare(dataclasses.replace(config, policy=str(wide)), None).actor


def test_a_model_without_weights_is_refused(tiny: Path, tmp_path: Path, questions: Path) -> None:
    shutil.copytree(tiny, tmp_path / "policy", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match=r"no weights in \S+policy: expected model.safetensors"):
        train.main(options(tmp_path / "policy", questions, tmp_path / "run"))


def test_an_existing_folder_is_refused_with_the_way_on(tiny: Path, tmp_path: Path, questions: Path) -> None:
    (tmp_path / "run").mkdir()
    for has, way in (("notes.txt", "has no run in it: delete it"), ("config.json", "with --resume")):
        (tmp_path / "run" / has).touch()
        with pytest.raises(ValueError, match=way):
            train.main(options(tiny, questions, tmp_path / "run"))


def test_a_resumed_run_stays_in_its_budget(
    tiny: Path, tmp_path: Path, questions: Path, folder: Path, server: Server
) -> None:
    """What it has cost counts, once, the step that the budget stopped included; and a budget that is spent
    can be raised."""
    run, prices = tmp_path / "run", tmp_path / "prices.json"
    prices.write_text('{"m": [0, 0, 100]}')  # a call writes 10 tokens, $0.001, and may write 12
    asking = {"judge": "chat:m", "method": "direct-likert", "max_tokens": 12, "prices": prices}
    words = options(tiny, questions, run, steps=2, eval_every=0, save_every=1, max_usd=1, **asking)
    train.main([*words, "--no-cache"])
    assert [row["perf/judge/dollars"] for row in records(run)] == [pytest.approx(0.008)] * 2
    with pytest.raises(ValueError, match=r"m has cost \$0.0230, .* pass --max-usd 0.0235"):
        train.main(["--resume", str(run), "--steps", "3", "--max-usd", "0.0235"])
    train.main(["--resume", str(run), "--max-usd", "0.032"])
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["judging"]["max_usd"] == 0.032
    assert records(run)[-1]["perf/judge/dollars"] == pytest.approx(0.008), "what was told is not told again"


def test_resuming_elsewhere_warns_with_the_differences(
    tiny: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=1, eval_every=0))
    config = json.loads((run / "config.json").read_text())
    now, config["versions"]["torch"] = config["versions"]["torch"], "2.0.0"
    (run / "config.json").write_text(json.dumps(config))
    train.main(["--resume", str(run), "--steps", "2"])
    assert (
        f"this run began with torch 2.0.0, now it is {now}; its numbers may differ" in capsys.readouterr().err
    )


def test_the_first_message_of_a_refusal_is_one_line(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", *options(tiny, Path("none.jsonl"), tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("train.py: cannot read ") and "none.jsonl: expected" in done.stderr
    assert not (tmp_path / "run").exists()
