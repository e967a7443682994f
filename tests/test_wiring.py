"""Every option acts, and every score is what it is called: read from the files of runs.

What an option does to a step's numbers is recomputed by tests/test_recompute.py; here is what steps are made
of: questions, random streams, judges, scores, when things are written and said. Two runs of a scripted judge
and of a policy that does not move are read by most tests.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Server, shared
from hostile import questions as asked
from safetensors.torch import load_file
from test_hub import row as released
from test_hub import write_tables
from test_train import numbers, options, records
from tiny import question, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

import train
from rar_mini import grpo, model, policy, sampler
from rar_mini.config import PRESETS, Config, Options
from rar_mini.hub import RELEASED
from rar_mini.judging import local as local_judge
from rar_mini.judging.endpoint import Endpoint
from rar_mini.options import to_json
from rar_mini.rubric import Design

NEVER = {"eval_every": 0, "save_every": 0, "show_every": 0}


def rows_of(run: Path, name: str, **fields: object) -> list[dict]:
    """Those lines of a record that have these fields."""
    return [row for row in records(run, name) if fields.items() <= row.items()]


def loud(argv: Sequence[str]) -> str:
    """What a run says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        train.main(list(argv))
    return said.getvalue()


# --- two judges that differ, and fail now and then ----------------------------------------------------------

THREE = [
    {"title": "One", "description": "Essential Criteria: Mentions one.", "weight": 5},
    {"title": "Two", "description": "Important Criteria: Mentions two.", "weight": 3},
    {"title": "Three", "description": "Optional Criteria: Mentions three.", "weight": 1},
]


def verdicts(name: str, response: str) -> list[float] | None:
    """What the judge of a name says of a response, which only the name and the response decide; one time in
    four nothing that could be read."""
    digest = hashlib.sha256(f"{name}/{response}".encode()).digest()
    return [float(byte % 2) for byte in digest[:3]] if digest[3] % 4 else None


def scripted(path: str, body: dict) -> str:
    user = body["messages"][-1]["content"]
    said = verdicts(body["model"], shared(user))
    words = {1.0: "yes", 0.0: "no"}
    return json.dumps(said and {str(i): {"reason": "r", "verdict": words[v]} for i, v in enumerate(said, 1)})


@dataclasses.dataclass(frozen=True)
class Judged:
    """A run of three steps that went on to five, what was said after that, and all that judges were asked."""

    run: Path
    said: str
    seen: list[tuple[str, dict, dict]]


@pytest.fixture(scope="module")
def judged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """The policy learns from `m`, and `n` is gold."""
    folder, server = tmp_path_factory.mktemp("judged"), Server(reply=scripted)
    rows = [question(i, split="train" if i < 4 else "held_out", rubric=THREE) for i in range(6)]
    changes = {"judge": "chat:m", "gold_judge": "chat:n", "criteria_per_call": "all", "parse_retries": 0}
    changes |= {"max_tokens": 300, "max_judge_failures": 1, "inner_epochs": 2, "lr": 1e-2}
    changes |= {"eval_every": 2, "eval_samples": 3, "eval_questions": 2, "base_url": server.url}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MINI_CACHE", str(folder / "cache"))
        patch.setenv("OPENAI_API_KEY", "sk-none")
        path = write_rows(folder / "rows.jsonl", rows)
        first = loud(options(tiny, path, folder / "run", steps=3, **changes))
        assert "that is right" not in first, "the loss of a second inner epoch is not about 0"
        yield Judged(folder / "run", loud(["--resume", str(folder / "run"), "--steps", "5"]), server.seen)
    server.close()


def test_the_gold_judge_scores_the_same_held_out_answers_and_nothing_else(judged: Judged) -> None:
    """The training's judge in its place would agree with itself, and its weakness would never show."""
    answers = defaultdict(list)
    for row in records(judged.run, "evaluations") + records(judged.run, "rollouts"):
        split = row.get("split", "rollouts")
        truth = verdicts("n" if split == "held_out_gold" else "m", row["response"])
        assert [item["verdict"] for item in row["verdicts"]] == (truth or [None] * 3)
        weights = [item["weight"] for item in row["verdicts"]]
        earned = truth and sum(w * v for w, v in zip(weights, truth, strict=True)) / sum(weights)
        assert row["reward"] == (pytest.approx(earned, rel=1e-6) if truth else None)
        answers[split].append((row["step"], row["example_id"], row["response"]))
    assert answers["held_out_gold"] == answers["held_out"]
    assert {name for _, name, _ in answers["held_out"]} == {"q4", "q5"}
    assert {body["max_tokens"] for _, body, _ in judged.seen} == {300 + 2 * 128}, "gold is asked alike"
    assert {len(asked(body["messages"][-1]["content"])) for _, body, _ in judged.seen} == {3}


def test_a_score_is_the_mean_over_questions_of_the_answers_that_have_a_reward(judged: Judged) -> None:
    """One answer that the judge failed on must not cost its question the score, nor count as a 0. Scores are
    taken before, after every second step and after the last one: steps 3 and 5."""
    for row in records(judged.run):
        for split in ("train", "held_out", "held_out_gold"):
            rewards = defaultdict(list)
            for answer in rows_of(judged.run, "evaluations", step=row["step"], split=split):
                rewards[answer["example_id"]].append(answer["reward"])
            name = f"eval/{split}_reward"
            assert (name in row) == bool(rewards) == (row["step"] in (0, 2, 3, 4, 5))
            if rewards:
                assert [len(each) for each in rewards.values()] == [3, 3]
                assert row[name] == pytest.approx(mean(map(mean, rewards.values())), rel=1e-6)
    for split in ("train", "held_out", "held_out_gold"):
        rows = rows_of(judged.run, "evaluations", split=split)
        assert {row["example_id"] for row in rows} == ({"q0", "q2"} if split == "train" else {"q4", "q5"})
        failed = Counter(row["step"] for row in rows if row["reward"] is None)
        assert any(0 < count < 6 for count in failed.values()), "or nothing here could go wrong"
    for row in records(judged.run)[1:]:
        rewards = [answer["reward"] for answer in rows_of(judged.run, "rollouts", step=row["step"])]
        assert row["judge/failures"] == rewards.count(None)


def mean(values: Any) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def test_a_resumed_run_compares_with_its_own_first_scores(judged: Judged) -> None:
    """They are read back from the record, where other steps stand too, and answers without a reward."""
    start, end = records(judged.run)[0], records(judged.run)[-1]
    others = []  # means over all steps
    for split in ("train", "held_out", "held_out_gold"):
        low, high = (step[f"eval/{split}_reward"] for step in (start, end))
        assert f"{split:<8} reward {low:.3f} -> {high:.3f}, change" in judged.said
        others.append(low - mean(row["reward"] for row in rows_of(judged.run, "evaluations", split=split)))
    assert max(map(abs, others)) > 0.01


def test_judge_failures_are_counted_over_five_steps_and_may_reach_the_limit(
    tiny: Path, tmp_path: Path, folder: Path, server: Server
) -> None:
    """The judge fails at steps 4 and 5, two of the last five: with a limit of 0.4 that is not too many. Nor
    is it at 9 and 10; at 11 it fails on one answer of two, and that is 0.5."""
    rows = [question(i, rubric=THREE) for i in range(12)]
    names: list[str] = []

    def fails(path: str, body: dict, number: int) -> str | None:
        names.append(re.search(r"What is (\d+)\?", body["messages"][-1]["content"])[1])
        step = len(set(names))  # each asks about one question, a new one
        again = names.count(names[-1]) == 2
        return "empty" if step in (4, 5, 9, 10) or step == 11 and again else None

    server.fault = fails
    changes = NEVER | {"steps": 12, "prompts_per_step": 1, "group_size": 2, "max_new_tokens": 2, "lr": 0}
    changes |= {"judge": "chat:m", "criteria_per_call": "all", "parse_retries": 0, "max_judge_failures": 0.4}
    changes |= {"concurrency": 1, "save_every": 8, "keep": 1}
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="no reward to 50% of the last answers: expected at most 40%"):
        train.main(options(tiny, write_rows(tmp_path / "rows.jsonl", rows), run, **changes))
    assert [row["judge/failures"] for row in records(run)] == [2 * (i in (4, 5, 9, 10)) for i in range(1, 11)]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-10"]


def test_a_resumed_run_counts_the_failures_of_the_steps_before(
    tiny: Path, server: Server, tmp_path: Path
) -> None:
    """Half of the fifth step fails: that is a tenth of the last five, and too much of one alone."""
    names: list[str] = []

    def fails(path: str, body: dict, number: int) -> str | None:
        names.append(re.search(r"What is (\d+)\?", body["messages"][-1]["content"])[1])
        return "empty" if len(set(names)) == 5 and names.count(names[-1]) == 2 else None

    server.fault = fails
    rows = write_rows(tmp_path / "rows.jsonl", [question(i) for i in range(6)])
    changes = NEVER | {"steps": 4, "prompts_per_step": 1, "group_size": 2, "max_new_tokens": 2, "lr": 0}
    changes |= {"judge": "chat:m", "criteria_per_call": "all", "parse_retries": 0, "max_judge_failures": 0.4}
    run = tmp_path / "run"
    train.main(options(tiny, rows, run, **changes | {"concurrency": 1, "save_every": 4}))
    train.main(["--resume", str(run), "--steps", "5"])
    assert [row["judge/failures"] for row in records(run)] == [0, 0, 0, 0, 1]


# --- a policy that does not move ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def still(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Five steps at a rate of 0 over three questions, two a step, and what was said."""
    folder = tmp_path_factory.mktemp("still")
    rows = [question(i, split="train" if i < 3 else "held_out") for i in range(4)]
    changes = {"steps": 5, "lr": 0, "eval_every": 2, "save_every": 2, "keep": 3, "show_every": 3}
    changes |= {"loss_norm": "token", "max_new_tokens": 24, "seed": 5}
    path = write_rows(folder / "rows.jsonl", rows)
    return folder / "run", loud(options(tiny, path, folder / "run", **changes))


def test_a_question_that_is_drawn_again_gets_other_random_numbers(still: tuple[Path, str]) -> None:
    """Also in the same step, where an epoch turns. The policy is the same all the time, so that equal numbers
    would give equal answers."""
    rows = records(still[0], "rollouts")
    drawn = Counter((row["step"], row["example_id"]) for row in rows)
    assert set(drawn.values()) == {4, 8} and len(drawn) == 9, "one of five steps draws a question twice"
    order = [row["example_id"] for row in rows[::4]]
    assert all(len(set(order[i : i + 3])) == 3 for i in (0, 3, 6)), "one pass over all, then another"
    answers = [(row["example_id"], row["response"]) for row in rows]
    answers += [
        (row["example_id"], row["response"])
        for row in records(still[0], "evaluations")
        if row["step"] == 0 and row["sampler_logp"]
    ]
    assert len(set(answers)) == len(answers)


def test_scores_of_one_policy_are_of_the_same_answers(still: tuple[Path, str]) -> None:
    """So that two scores of a run differ by the policy alone."""
    by_step = defaultdict(list)
    for row in records(still[0], "evaluations"):
        if row["sampler_logp"]:  # and not one of the scale's, which no policy wrote
            by_step[row.pop("step")].append(row)
    assert list(by_step) == [0, 2, 4, 5]
    assert all(rows == by_step[0] for rows in by_step.values())


def test_random_numbers_are_named_by_seed_step_question_and_answer(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a score by "eval" in the place of the step."""
    keys, plain = [], train.uniforms

    def noted(*key: Any) -> Any:
        keys.append(key)
        return plain(*key)

    monkeypatch.setattr(train, "uniforms", noted)
    rows = write_rows(tmp_path / "rows.jsonl", [question(0), question(1, split="held_out")])
    changes = {"steps": 2, "prompts_per_step": 1, "group_size": 2, "eval_samples": 2, "seed": 7, "lr": 0}
    changes |= {"max_new_tokens": 3, "eval_every": 2, "save_every": 0}
    train.main(options(tiny, rows, tmp_path / "run", **changes))
    scores = [(7, "eval", name, g, 3) for name in ("q0", "q1") for g in (0, 1)]
    assert keys == [*scores, *((7, n, "q0", g, 3) for n in (1, 2) for g in (0, 1)), *scores]


def test_bars_count_tokens_and_stay_out_of_logs(
    tiny: Path,
    tmp_path: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    bars, plain = [], train.progress_bar

    def noted(*words: Any, **how: Any) -> Any:
        bars.append(how)
        return plain(*words, **how)

    monkeypatch.setattr(train, "progress_bar", noted)
    train.main(options(tiny, questions, tmp_path / "run", steps=1, **NEVER))
    assert [bar["desc"] for bar in bars] == ["sampling", "training"]
    assert bars[0]["total"] == 2 * 4 * 12
    out, err = capsys.readouterr()
    assert "sampling" not in out + err and "training:" not in out + err


def test_a_step_clips_by_the_norm_and_sets_the_rate() -> None:
    class Noted:
        param_groups = [{"lr": 1.0}]

        def step(self, grad_scale: float) -> None:
            self.scale = grad_scale

        def zero_grad(self) -> None:
            self.param_groups[0]["grad"] = None

    optimizer = Noted()
    for norm, scale in ((4.0, 2.0 / (4.0 + 1e-6)), (2.0, 2.0 / (2.0 + 1e-6)), (1e-7, 1.0), (0.0, 1.0)):
        train.step(optimizer, norm, 0.25, 2.0)
        assert optimizer.scale == scale
    assert optimizer.param_groups == [{"lr": 0.25, "grad": None}]


def test_things_are_kept_and_shown_when_they_should_be(still: tuple[Path, str]) -> None:
    run, said = still
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-2", "step-4", "step-5"]
    assert re.findall(r"^  q\d, step (\d):", said, re.M) == ["1", "3"], "at the first step, too"
    first = records(run)[0]
    scores = ", ".join(
        f"eval/{name}_reward {first[f'eval/{name}_reward']:.3f}" for name in ("train", "held_out")
    )
    assert f"before   {scores}\n" in said


def test_a_loss_is_called_0_only_where_it_is(still: tuple[Path, str]) -> None:
    """By token, long answers weigh more: -0.07 stood above "about 0 and that is right"."""
    losses = [abs(row["loss"]) for row in records(still[0])[1:]]
    assert max(losses) > 1e-3 and "that is right" not in still[1]


def test_a_seed_decides_the_order_and_the_answers(
    still: tuple[Path, str], tiny: Path, tmp_path: Path
) -> None:
    path = still[0].parent / "rows.jsonl"
    changes = {"steps": 1, "lr": 0, "max_new_tokens": 24, "save_every": 0}
    train.main(options(tiny, path, tmp_path / "run", **changes))
    got, truth = [rows_of(run, "rollouts", step=1) for run in (tmp_path / "run", still[0])]
    assert {row["example_id"] for row in got} != {row["example_id"] for row in truth}
    score = {"step": 0, "split": "train"}
    got, truth = [rows_of(run, "evaluations", **score) for run in (tmp_path / "run", still[0])]
    assert [row["example_id"] for row in got] == [row["example_id"] for row in truth]
    assert not {row["response"] for row in got} & {row["response"] for row in truth}


def test_a_seed_decides_the_rounding_of_bfloat16(tiny: Path, tmp_path: Path) -> None:
    """One reference answer is one batch, whatever the seed: what differs is how the step is rounded."""
    path = write_rows(tmp_path / "rows.jsonl", [question(0)])
    saved = []
    for seed in (0, 1):
        run = tmp_path / str(seed)
        changes = {"steps": 1, "prompts_per_step": 1, "method": "sft", "dtype": "bfloat16", "lr": 1e-5}
        train.main(options(tiny, path, run, seed=seed, eval_every=0, **changes))
        saved.append(load_file(run / "checkpoints" / "step-1" / "model.safetensors"))
    assert numbers(tmp_path / "0") == numbers(tmp_path / "1")
    assert any(not torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


# --- questions and settings ---------------------------------------------------------------------------------


def test_a_preset_is_the_default_of_every_option(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's leaves out what is too long, and scores one answer a question. A run without --out names
    itself after its questions."""
    monkeypatch.chdir(tmp_path)
    given = {
        "policy": str(tiny),
        "judge": "keyword",
        "method": "rar-explicit",
        "domain": "science",
        "steps": 0,
    }
    given |= {"dtype": "float32", "max_prompt_tokens": 400, "max_new_tokens": 4, "eval_questions": 2}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    said = loud(["--preset", "paper", *words])
    (run,) = (tmp_path / "runs").glob("science-*")
    settings = json.loads((run / "config.json").read_text())["settings"]
    paper = json.loads(json.dumps(to_json(PRESETS["paper"])))
    decided = {name: settings[name] for name in ("device", "day")}
    assert settings == paper | given | decided | {"out": str(run)}
    rows = records(run, "evaluations")
    assert len([row for row in rows if row["split"] in ("train", "held_out")]) == 4
    assert all(row["example_id"].startswith("science-") for row in rows)
    assert re.search(r"questions left out as too long: \d", said)


def test_a_revision_names_the_rows(tiny: Path, tmp_path: Path, folder: Path) -> None:
    """Two commits that were fetched before: without --revision it would be the one that is pinned."""
    for commit, text in (("a" * 40, "Of a?"), (RELEASED["science"][1], "Of the pinned one?")):
        made = write_tables(tmp_path / commit, train=[released(text)])
        (folder / "datasets").mkdir(parents=True, exist_ok=True)
        (made / "data").rename(folder / "datasets" / f"RaR-Science-{commit}")
    asked = {"domain": "science", "revision": "a" * 7, "steps": 1, "prompts_per_step": 1, "eval_every": 0}
    train.main(options(tiny, Path("rar"), tmp_path / "run", **asked))
    train.main(["--resume", str(tmp_path / "run"), "--steps", "2"])
    assert {row["prompt"] for row in records(tmp_path / "run", "rollouts")} == {"Of a?"}


def test_bad_rows_are_left_out_when_asked(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [question(0), question(1), {"id": "bad"}])
    words = options(tiny, path, tmp_path / "run", steps=0)
    with pytest.raises(ValueError, match="line 3: .* pass --skip-bad-rows"):
        train.main(words)
    said = loud([*words, "--skip-bad-rows"])
    assert "rows left out as bad: 1" in said and ": 2 training questions, 0 held out" in said


def test_the_cache_of_the_sampler_has_a_bound(tmp_path: Path, tiny: Path) -> None:
    """Two numbers of 4 layers, 4 heads and 32 places are 4 KiB a token: 256 tokens fill 1 MiB."""
    shutil.copytree(tiny, tmp_path / "wide", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 4}
    sizes |= {"vocab_size": 259, "intermediate_size": 64, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=258)).save_pretrained(tmp_path / "wide")
    path = write_rows(tmp_path / "rows.jsonl", [question(0)])
    changes = NEVER | {"cache_mb": 1, "max_new_tokens": 300, "prompts_per_step": 1}
    with pytest.raises(ValueError, match=r"needs 2 MiB of .* cache, the budget is 1 MiB; raise --cache-mb"):
        train.main(options(tmp_path / "wide", path, tmp_path / "run", **changes))


def test_what_costs_or_saves_memory_changes_no_number(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations that are not kept are seen in what autograd is given to keep. Of the rest a CPU shows
    nothing, only that it is handed on: tests/test_gpu.py has its effects."""
    handed: dict[str, Any] = {}
    batches = grpo.micro_batches
    monkeypatch.setattr(sampler.Settings, "__post_init__", lambda self: handed.update(graph=self.graph))
    monkeypatch.setattr(
        grpo, "micro_batches", lambda *a, **k: handed.update(attention=k["attention"]) or batches(*a, **k)
    )
    visit = model.Decoder.visit
    monkeypatch.setattr(model.Decoder, "visit", lambda self: handed.update(visits=True) or visit(self))
    kept = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[-1] += x.numel()
        return x

    for out, extra in (
        ("plain", []),
        ("some", "--checkpoint-layers 1".split()),
        ("lean", "--checkpoint-activations --no-graph --attention loop --reference-device cpu".split()),
    ):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            words = options(tiny, questions, tmp_path / out, **NEVER | {"steps": 2, "beta": 0.1})
            train.main([*words, *extra])
        lean = out == "lean"
        seen = {"graph": not lean, "attention": "loop" if lean else "auto"}
        assert handed == seen | ({"visits": True} if lean else {})
        assert numbers(tmp_path / out) == numbers(tmp_path / "plain")
    plain, some, least = kept
    assert some < 0.8 * plain and least < 0.5 * plain, kept


@pytest.mark.parametrize(("asked", "layers"), [("1", 1), ("auto", 0)])
def test_a_run_that_goes_on_keeps_its_checkpointed_layers(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, asked: str, layers: int
) -> None:
    """Its settings have the number that was taken; on a CPU, auto takes none."""
    taken, prepare = [], policy.prepare

    def prepared(*words: Any) -> Any:
        pair = prepare(*words)
        taken.append(pair[0].model.checkpointed)
        return pair

    monkeypatch.setattr(policy, "prepare", prepared)
    run = tmp_path / "run"
    changes = NEVER | {"steps": 1, "save_every": 1, "checkpoint_layers": asked}
    train.main(options(tiny, questions, run, **changes))
    assert json.loads((run / "config.json").read_text())["settings"]["checkpoint_layers"] == layers
    train.main(["--resume", str(run), "--steps", "2"])
    assert taken == [layers, layers]


def test_adapters_are_as_asked(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """Read from the checkpoint, in PEFT's words. At a rate of 0 they stay as the seed has drawn them."""
    changes = NEVER | {"steps": 1, "save_every": 1, "lr": 0, "lora_rank": 2, "lora_alpha": 6}
    drawn = []
    for seed in (0, 1):
        words = options(tiny, questions, tmp_path / str(seed), seed=seed, lora_save="adapter", **changes)
        train.main([*words, "--lora-targets", "q_proj", "down_proj"])
        saved = tmp_path / str(seed) / "checkpoints" / "step-1"
        drawn.append(load_file(saved / "adapter_model.safetensors"))
        assert not (saved / "model.safetensors").exists()
    written = json.loads((saved / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (2, 6)
    assert set(written["target_modules"]) == {"q_proj", "down_proj"} and len(drawn[0]) == 2 * 2 * 2
    assert all("lora_B" in name or not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_a_score_that_cannot_be_had_costs_no_training(
    tiny: Path, tmp_path: Path, folder: Path, server: Server
) -> None:
    """A gold judge that may cost no more at the end: the run is whole, and says what is missing."""
    rows = [question(i, split="train" if i < 2 else "held_out", rubric=THREE[:1]) for i in range(4)]
    path, prices = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "prices.json"
    prices.write_text('{"n": [0, 0, 100]}')  # a call writes 10 tokens, $0.001, and may write 12
    changes = {"gold_judge": "chat:n", "prices": prices, "max_usd": 0.0027, "max_tokens": 12}
    words = options(tiny, path, tmp_path / "run", steps=1, **changes)
    said = loud([*words, "--no-cache"])
    assert "not every score at step 1: n has cost $0.0020, and the next request might pass" in said
    start, end = records(tmp_path / "run")
    scores = {"eval/train_reward", "eval/held_out_reward"}
    assert start.keys() >= scores | {"eval/held_out_gold_reward"}
    assert {name for name in end if name.startswith("eval/")} == scores
    assert (tmp_path / "run" / "checkpoints" / "step-1").is_dir()


def test_a_judge_is_asked_as_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each word does to an endpoint is in tests/test_endpoint.py. If --timeout, --rpm or --tpm had not
    come there, no test would have missed it."""
    given = {"base_url": "http://127.0.0.1:9/v1", "concurrency": 3, "timeout": 7.0, "rpm": 60.0, "tpm": 1e3}
    given |= {"retries": 1, "parse_retries": 0, "max_usd": 2.0}
    words: dict[str, Any] = {}
    monkeypatch.setattr(Endpoint, "__init__", lambda self, model, **asked: words.update(asked))
    Endpoint.of("m", Options(**given, cache=False))
    assert words == given | {"cache": None, "price": None}
    monkeypatch.setattr(local_judge, "LocalJudge", lambda name, device, *_: words.update(device=device))
    train.Judge("local:m", "rar-explicit", judge_device="cuda")
    assert words["device"] == "cuda", "where there is no GPU, auto is cpu"


# --- every setting ------------------------------------------------------------------------------------------

HELD_BY = {
    "test_a_preset_is_the_default_of_every_option": "preset domain max_prompt_tokens long_prompts out",
    "test_a_run_keeps_settings_versions_and_one_line_a_step": "policy judge steps max_new_tokens",
    "test_every_reward_can_be_recomputed_from_the_files": "data prompts_per_step group_size",
    "test_a_revision_names_the_rows": "revision",
    "test_bad_rows_are_left_out_when_asked": "skip_bad_rows",
    "test_hygiene_can_be_switched_off": "hygiene",
    "test_reference_answers_are_learnt_by_transformers_own_loss": "method",
    "test_the_gold_judge_scores_the_same_held_out_answers_and_nothing_else": "gold_judge base_url max_tokens",
    "test_judge_failures_are_counted_over_five_steps_and_may_reach_the_limit": "max_judge_failures",
    "test_a_score_is_the_mean_over_questions_of_the_answers_that_have_a_reward": "eval_every eval_samples "
    "eval_questions",
    "test_things_are_kept_and_shown_when_they_should_be": "save_every keep show_every",
    "test_a_template_shows_the_day_on_which_the_run_began": "day",
    "test_a_seed_decides_the_order_and_the_answers": "seed",
    "test_a_tracked_run_has_each_step_once_after_a_kill": "track",
    "test_batches_change_no_number_beyond_rounding": "tokens_per_batch",
    "test_the_cache_of_the_sampler_has_a_bound": "cache_mb",
    "test_what_costs_or_saves_memory_changes_no_number": "graph attention checkpoint_activations "
    "reference_device checkpoint_layers",
    "test_bfloat16_trains_and_its_weights_move": "dtype",
    "test_two_steps": "device",
    "test_adapters_are_as_asked": "lora_rank lora_alpha lora_targets lora_save",
    "test_recipes.py": "recipe answers",
    "test_recompute.py": "temperature lr warmup weight_decay max_grad_norm loss_norm clip_low clip_high beta "
    "advantage_scale mismatch_cap inner_epochs train_rollouts "
    "resample_ties cut_answers",
    # how a judge is asked
    "test_answers_come_in_order_and_no_more_than_concurrency_at_once": "concurrency",
    "test_a_try_ends_at_its_deadline_and_another_follows": "timeout",
    "test_requests_a_minute": "rpm",
    "test_tokens_a_minute": "tpm",
    "test_a_server_that_never_answers_is_one_clear_error_after_one_request": "retries",
    "test_a_malformed_reply_is_asked_for_again_and_then_fails": "parse_retries",
    "test_a_second_run_makes_no_calls": "cache",
    "test_a_score_that_cannot_be_had_costs_no_training": "prices max_usd",
    "test_criteria_per_call": "criteria_per_call",
    "test_a_threshold_makes_verdicts_binary": "threshold",
    "test_prompts_can_be_replaced": "prompts",
    "test_a_judge_is_asked_as_the_options_say": "judge_device",
    "test_a_design_drops_weighs_and_asks": "rubric_drop weights pitfalls",
}
"""The test that sees what a setting does. Whoever adds one says here where it is held."""


def test_every_setting_has_a_test_of_its_effect() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
    defined = {name for text in texts.values() for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    assert HELD_BY.keys() <= defined | texts.keys()
    held = " ".join(HELD_BY.values()).split()
    assert len(held) == len(set(held))
    settings = {field.name for kind in (Config, Options, Design) for field in dataclasses.fields(kind)}
    assert set(held) == settings - {"design", "judging"}


# --- what ends a step before its time -----------------------------------------------------------------------


@pytest.mark.parametrize(("fails", "left"), [(1, []), (2, ["step-1"]), (3, ["step-2"])])
def test_a_judge_that_is_gone_leaves_the_step_before(
    tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, fails: int, left: list[str]
) -> None:
    """And at the first step nothing, for there is none before it."""
    judge, calls = train.judge, iter(range(1, 9))

    def gone(*words: Any) -> Any:
        if next(calls) == fails:
            raise ConnectionError("gone")
        return judge(*words)

    monkeypatch.setattr(train, "judge", gone)
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=f"gone\n.*--resume {run}"):
        train.main(options(tiny, questions, run, steps=4, **NEVER))
    saved = run / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == left if left else not any(saved.glob("*"))


def test_what_a_run_will_ask_is_said_first(tiny: Path, tmp_path: Path) -> None:
    """Rubrics of 15 and 3 items, an item a question: 9 on average for each of 2 x 2 x 4 answers."""
    rows = [question(0), question(1, rubric=THREE)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    said = loud(options(tiny, path, tmp_path / "run", steps=2, **NEVER))
    assert "rar-explicit: 16 answers x 9.0 = 144 questions to the judge" in said


def test_supervised_steps_have_one_answer_a_question(tiny: Path, tmp_path: Path, questions: Path) -> None:
    train.main(options(tiny, questions, tmp_path / "run", steps=1, method="sft", max_new_tokens=30, **NEVER))
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["group_size"] == 1 and len(records(tmp_path / "run", "rollouts")) == 2
