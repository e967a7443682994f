"""An independent reading of a run's files: every number of a step, computed again in float64.

What a step saw (its rows of rollouts.jsonl, the checkpoint before it) goes through transformers' model and
the algorithm as `update` states it, and must give what the run wrote: rewards, advantages, every metric, and
the weights of the next checkpoint. Nothing of the trainer computes here, so an option that it ignores, a
wrong sign, bound or normaliser shows in some number. Each case turns options away from their defaults, and
each of them must act: with the default in its place, other numbers come out.

P prompts in a step, G rollouts of each; B rollouts teach and have N tokens; owner (N,) is a token's rollout.
"""

import contextlib
import io
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from hostile import Server, shared
from safetensors.torch import load_file
from tiny import ENDS, question, write_rows
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer

import train

Rows = list[dict[str, Any]]
Weights = dict[str, Tensor]
Metrics = dict[str, float]

TOKENS = {"prompt_ids", "ids", "sampler_logp"}
ALPHA = 32
"""The fields of a row that a step is recomputed from; the default --lora-alpha."""


# --- the algorithm ------------------------------------------------------------------------------------------


@dataclass
class State:
    """What the optimizer holds: weights, two moments of each, and the number of its steps. `blur` is how far
    weights may be off in float32, since they were read from a checkpoint."""

    theta: Weights
    m: Weights
    v: Weights
    t: int
    blur: Weights


def rewards(rows: Rows, cut_answers: str = "train") -> np.ndarray:
    """(P G,): the share of its rubric's weight that an answer earns; NaN if the judge failed on an item."""
    shares = []
    for row in rows:
        v, w = (np.array([item[key] for item in row["verdicts"]], float) for key in ("verdict", "weight"))
        shares.append((w * v).sum() / w.clip(0).sum())
        if cut_answers == "penalise" and not row["finished"] and np.isfinite(shares[-1]):
            shares[-1] = 0
    return np.array(shares)


def advantages(reward: np.ndarray, scale: str) -> np.ndarray:
    """(P, G) -> (P, G): the distance from the group's mean; 0 without a reward, and in a group that ties."""
    adv = np.zeros_like(reward)
    for group, out in zip(reward, adv, strict=True):
        r = group[np.isfinite(group)]
        if len(r) >= 2 and np.ptp(r) > 1e-6:
            off = r - r.mean()
            out[np.isfinite(group)] = off / (r.std() + 1e-6) if scale == "group" else off
    return adv


def trained(rows: Rows, reward: np.ndarray, adv: np.ndarray, o: SimpleNamespace) -> np.ndarray:
    """(P, G): whether the update reads a rollout."""
    reads = np.isfinite(reward)
    reads &= reads.sum(1, keepdims=True) >= 2
    if o.cut_answers == "mask":
        reads &= np.array([row["finished"] for row in rows]).reshape(reads.shape)
    for group, own in zip(reward, reads, strict=True):
        if o.train_rollouts and own.sum() > o.train_rollouts:  # of all choices the one that varies most
            choices = combinations(np.flatnonzero(own), o.train_rollouts)
            best = max(choices, key=lambda few: np.var(group[list(few)]))
            own[:] = np.isin(np.arange(len(own)), best)
    return reads & (reads & (adv != 0)).any(1, keepdims=True) if o.resample_ties else reads


def update(
    policy: "Policy", state: State, start: Weights, rows: Rows, lr: float, options: dict[str, Any]
) -> tuple[Metrics, State]:
    """One step on these rollouts; `start` holds the weights that the KL penalty compares with."""
    o = SimpleNamespace(**options)
    reward = rewards(rows, o.cut_answers).reshape(-1, o.group_size)  # (P, G)
    adv = advantages(reward, o.advantage_scale)  # (P, G)
    teaches = trained(rows, reward, adv, o).flatten()  # (P G,)
    adv = torch.tensor(adv.flatten()[teaches])  # (B,)
    taught = [row for row, yes in zip(rows, teaches, strict=True) if yes]
    length = torch.tensor([len(row["ids"]) for row in taught])  # (B,)
    B, N = len(taught), int(length.sum())
    divisor = {
        "token": torch.full((B,), N),
        "sequence": B * length,
        "constant": torch.full((B,), B * o.max_new_tokens),
    }[o.loss_norm]

    with torch.no_grad():
        old_logp = policy.tokens(state.theta, taught, o.temperature)[0]  # (N,)
        ref_logp = policy.tokens(start, taught, o.temperature)[0]  # (N,)
    sampler_logp = torch.tensor([x for row in taught for x in row["sampler_logp"]]).double()  # (N,)
    c = 1.0 if o.mismatch_cap is None else (old_logp - sampler_logp).exp().clamp(max=o.mismatch_cap)
    for _ in range(o.inner_epochs):
        logp, entropy, owner = policy.tokens(state.theta, taught, o.temperature)  # (N,) each
        A, w, low, high = adv[owner], 1 / divisor[owner], 1 - o.clip_low, 1 + o.clip_high
        ratio = (logp - old_logp).exp()
        surrogate = torch.minimum(ratio * A, ratio.clamp(low, high) * A)
        k3 = (ref_logp - logp).exp() - (ref_logp - logp) - 1
        loss = (w * (o.beta * k3 - c * surrogate)).sum()
        grads = torch.autograd.grad(loss, list(state.theta.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        shrink = min(1.0, o.max_grad_norm / (norm + 1e-6))
        state = adamw(state, [shrink * g for g in grads], lr, o.weight_decay)
    metrics = {
        "completions/trained_ratio": teaches.mean(),
        "loss": loss.item(),
        "grad_norm": norm,
        "entropy": entropy.mean().item(),
        "clip_ratio/low_mean": ((ratio < low) & (A < 0)).double().mean().item(),
        "clip_ratio/high_mean": ((ratio > high) & (A > 0)).double().mean().item(),
    }
    if o.resample_ties:
        metrics["groups/drawn"], taught = len(reward), teaches.reshape(reward.shape).any(1)
        metrics["groups/dropped"] = (~taught).sum()
    return metrics | ({"kl": k3.mean().item()} if o.beta else {}), state


def adamw(state: State, grads: list[Tensor], lr: float, decay: float) -> State:
    """One step with betas 0.9 and 0.999; every weight decays.

    float32 knows a gradient to about 2e-5 of its tensor's typical one, and one that is smaller moves its
    weight as far as others do.
    """
    new = State({}, {}, {}, state.t + 1, {})
    for (k, p), g in zip(state.theta.items(), grads, strict=True):
        new.m[k] = 0.9 * state.m[k] + 0.1 * g
        new.v[k] = 0.999 * state.v[k] + 0.001 * g**2
        size = (new.v[k] / (1 - 0.999**new.t)).sqrt()
        move = new.m[k] / (1 - 0.9**new.t) / (size + 1e-8)
        new.theta[k] = (p.detach() * (1 - lr * decay) - lr * move).requires_grad_()
        lost = 2e-5 * (1 + size.square().mean().sqrt() / (size + 1e-30))
        new.blur[k] = state.blur[k] + lr * lost + 3e-7 * p.detach().abs()
    return new


def learning_rate(step: int, options: dict[str, Any]) -> float:
    """Of step 1, 2, ...: a line over the first of them, then constant."""
    return options["lr"] * min(1.0, step / max(1, round(options["warmup"] * options["steps"])))


# --- the other metrics --------------------------------------------------------------------------------------


def of_rollouts(rows: Rows, reward: np.ndarray) -> Metrics:
    """What a step's line says about its rollouts, reward (P, G)."""
    length = np.array([len(row["ids"]) for row in rows], float).reshape(reward.shape)
    groups = [(r[np.isfinite(r)], n[np.isfinite(r)]) for r, n in zip(reward, length, strict=True)]
    x, y = (np.concatenate([z - z.mean() for z in column if len(z)]) for column in zip(*groups, strict=True))
    spread = [r for r, _ in groups if len(r) >= 2]
    turns = [1 + len(row.get("heard", [])) for row in rows]
    talks = {"conversations/mean_turns": np.mean(turns)} if max(turns) > 1 else {}
    return {
        "reward": np.nanmean(reward),
        "reward_std": np.mean([r.std() for r in spread]),
        "frac_reward_zero_std": np.mean([np.ptp(r) <= 1e-6 for r in spread]),
        "frac_ties_right": np.mean([np.ptp(r) <= 1e-6 and r.mean() > 0.5 for r in spread]),
        "frac_ties_wrong": np.mean([np.ptp(r) <= 1e-6 and r.mean() <= 0.5 for r in spread]),
        "reward_length_correlation": x @ y / math.sqrt((x @ x) * (y @ y)),
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/clipped_ratio": np.mean([not row["finished"] for row in rows]),
        "completions/only_thoughts_ratio": np.mean([row["only_thoughts"] for row in rows]),
        "judge/failures": np.isnan(reward).sum(),
    } | talks


def of_verdicts(rows: Rows, recent: Rows) -> Metrics:
    """Verdicts by category in this step, and the items that no answer or every answer met in recent ones."""
    values, met, same = defaultdict(list), defaultdict(list), defaultdict(set)
    seen = Counter()
    for item in (item for row in rows for item in row["verdicts"] if item["verdict"] is not None):
        values[f"pass_rate/{item['category']}"].append(item["verdict"])
    for row in recent:
        for place, item in enumerate(row["verdicts"]):
            if item["verdict"] is not None:
                met[row["example_id"], place].append(item["verdict"] >= 0.5)
                key = row["example_id"], place, str(row.get("turns")), row["response"]
                seen[key] += 1
                same[key].add(item["verdict"] >= 0.5)
    values["items/never_met"] = [not any(answers) for answers in met.values()]
    values["items/always_met"] = [all(answers) for answers in met.values()]
    again = [key for key, count in seen.items() if count > 1]
    if again:
        values["items/repeated"] = [len(again)]
        values["items/contradicted"] = [len(same[key]) == 2 for key in again]
    return {name: np.mean(numbers) for name, numbers in values.items()}


def of_scores(rows: Rows, scores: Rows) -> Metrics:
    """The scores, and what the judge was asked for them and for rollouts: all items of an answer at once."""
    refused = sum(item["verdict"] is None for row in rows + scores for item in row["verdicts"])
    metrics = {"judge/questions": len(rows + scores)}
    metrics |= {"judge/failures/refused": refused} if refused else {}
    for split in {row["split"] for row in scores}:
        by_question = defaultdict(list)
        for row in scores:
            if row["split"] == split:
                by_question[row["example_id"]].append(math.nan if row["reward"] is None else row["reward"])
        means = [np.nanmean(values) for values in by_question.values() if np.isfinite(values).any()]
        metrics[f"eval/{split}_reward"] = np.mean(means) if means else math.nan
    return metrics


# --- the policy ---------------------------------------------------------------------------------------------


class Policy:
    """transformers' model in float64, as a function of the weights that are trained."""

    def __init__(self, directory: Path, lora_rank: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory).double().requires_grad_(False)
        # Its pad token is its end token, and transformers would drop the gradient of the pad's embedding.
        self.model.get_input_embeddings().padding_idx = None
        self.rank = lora_rank

    def load(self, checkpoint: Path) -> Weights:
        """The weights that are trained, as a checkpoint holds them."""
        if self.rank:
            raw = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
            raw = {name.removeprefix("base_model.model."): tensor for name, tensor in raw.items()}
        else:
            raw = dict(AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters())
        return {name: tensor.detach().double().requires_grad_() for name, tensor in raw.items()}

    def whole(self, theta: Weights) -> Weights:
        """All weights of the model; with adapters W + (alpha / rank) B A."""
        weights = dict(self.model.named_parameters()) | ({} if self.rank else theta)
        for name in (name for name in theta if ".lora_A." in name):
            W, A, B = name.replace(".lora_A", ""), theta[name], theta[name.replace("lora_A", "lora_B")]
            weights[W] = weights[W] + ALPHA / self.rank * B @ A
        return weights

    def tokens(self, theta: Weights, rows: Rows, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each completion token its log-probability, the entropy there, and its owner; (N,) each."""
        texts = [conversation(row) for row in rows]
        ids = torch.zeros(len(rows), max(len(text) for text, _ in texts), dtype=torch.long)  # (B, T)
        places = []
        for i, (text, own) in enumerate(texts):  # zeros on the right
            ids[i, : len(text)] = torch.tensor(text)
            places += [(i, t) for t in own]
        owner, t = torch.tensor(places).T
        logits = functional_call(self.model, self.whole(theta), (ids,)).logits[owner, t - 1]  # (N, V)
        log_p = (logits / temperature).log_softmax(-1)
        return log_p.gather(-1, ids[owner, t][:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), owner


def conversation(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """All tokens that a row's rollout consists of, and the places of the policy's own among them."""
    text, own, start = list(row["prompt_ids"]), [], 0
    for after, heard in [*((h["after"], h["ids"]) for h in row.get("heard", [])), (len(row["ids"]), [])]:
        own += range(len(text), len(text) + after - start)
        text += row["ids"][start:after] + heard
        start = after
    return text, own


# --- the runs -----------------------------------------------------------------------------------------------

DEFAULTS = {
    "steps": 2,
    "prompts_per_step": 3,
    "group_size": 4,
    "train_rollouts": None,
    "resample_ties": 0,
    "cut_answers": "train",
    "max_new_tokens": 12,
    "temperature": 1.0,
    "advantage_scale": "group",
    "loss_norm": "sequence",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "mismatch_cap": None,
    "beta": 0.0,
    "inner_epochs": 1,
    "max_grad_norm": 1e9,
    "lr": 1e-3,
    "warmup": 0.0,
    "weight_decay": 0.0,
}
"""What `update` takes; a case has other values of some, and options that change no number."""

FORGETFUL = {"judge": "decisions:forgetful", "max_judge_failures": 1.0, "seed": 16}
CASES: dict[str, dict[str, Any]] = {
    "optimizer": {"steps": 3, "warmup": 0.6, "weight_decay": 0.5, "max_grad_norm": 8.5, "eval_every": 2},
    "epochs": {"inner_epochs": 2, "clip_low": 0.1, "clip_high": 0.3, "temperature": 0.7, "beta": 0.1},
    "constant": {"steps": 1, "loss_norm": "constant", "advantage_scale": "none", "mismatch_cap": 0.5}
    | {"cut_answers": "penalise", "max_new_tokens": 4}
    | FORGETFUL,
    "failures": {"loss_norm": "token", "pitfalls": "signed", "tokens_per_batch": 60, "eval_every": 2}
    | FORGETFUL,
    "chosen": {"train_rollouts": 2, "resample_ties": 2, "cut_answers": "mask", "loss_norm": "constant"}
    | FORGETFUL
    | {"max_new_tokens": 8, "seed": 17},
    "adapters": {"lora_rank": 4, "lr": 1e-2, "beta": 0.1},
    "turns": {"recipe": "user_simulator", "loss_norm": "token", "inner_epochs": 2, "eval_every": 2},
}


@dataclass(repr=False)
class Step:
    """What a step wrote, and what is computed here."""

    number: int
    rows: Rows
    scores: Rows  # of the evaluation after it
    line: Metrics  # of metrics.jsonl
    metrics: Metrics
    before: State  # with the weights of the checkpoint before it, so that errors do not add up
    after: State
    saved: Weights


@dataclass(repr=False)
class Run:
    """A run, read back."""

    case: str
    folder: Path
    output: str
    options: dict[str, Any]
    policy: Policy
    start: Weights
    steps: list[Step]


def judge(path: str, body: dict[str, Any]) -> Rows:
    """A server's verdicts, by hash; on answers to question 3 they are all alike. Under the name `forgetful`
    it refuses an item of some answers, and of most answers to question 1."""
    answers, level = [], share(shared(body["input"]))
    forgets = body["model"] == "forgetful" and level < (0.9 if "What is 1?" in body["input"] else 0.3)
    for i, asked in enumerate(body["questions"]):
        holds = (level + share(shared(body["input"]) + asked["instructions"])) / 2
        answer = {"type": "predicate", "probability": 0.5 if "What is 3?" in body["input"] else holds}
        answers.append({"name": asked["name"]} | ({"type": "refusal"} if forgets and i == 2 else answer))
    return answers


def share(text: str) -> float:
    return sha256(text.encode()).digest()[0] / 255


def lines(folder: Path, name: str) -> Rows:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def words(**options: Any) -> list[str]:
    """A command line."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    script = {"user_turns": ["And?", "So?"]}  # which the recipe of one case reads
    rows = [question(i, split="train" if i < 5 else "held_out", hidden=script) for i in range(6)]
    rows[0]["rubric"] = rows[0]["rubric"][-5:]  # beside longer ones
    fixed = {"policy": many, "data": write_rows(folder / "questions.jsonl", rows), "out": folder / "run"}
    fixed |= {"judge": "decisions:m", "eval_every": 0, "eval_samples": 2, "save_every": 1, "keep": 9}
    server, output = Server(reply=judge), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("RAR_MINI_CACHE", str(folder / "cache"))
        patch.setenv("OPENAI_BASE_URL", server.url)
        patch.setenv("OPENAI_API_KEY", "-")
        train.main(words(**DEFAULTS | fixed | case))
    server.close()
    policy, options = Policy(many, case.get("lora_rank", 0)), DEFAULTS | case
    start, steps = recompute(folder / "run", policy, options)
    return Run(request.param, folder / "run", output.getvalue(), options, policy, start, steps)


def recompute(folder: Path, policy: Policy, options: dict[str, Any]) -> tuple[Weights, list[Step]]:
    """The weights that a run started from, and its steps."""
    rollouts, scores, metrics = (lines(folder, name) for name in ("rollouts", "evaluations", "metrics"))
    saved = [policy.load(folder / "checkpoints" / f"step-{n + 1}") for n in range(options["steps"])]
    if policy.rank:
        # B is 0 before the first step, which therefore gives A no gradient and leaves it as it was drawn.
        start = {k: x if "lora_A" in k else torch.zeros_like(x).requires_grad_() for k, x in saved[0].items()}
    else:
        start = policy.load(Path(policy.model.name_or_path))
    zeros = {name: torch.zeros_like(x) for name, x in start.items()}
    before, steps = State(start, zeros, zeros, 0, zeros), []
    for n, weights in enumerate(saved, 1):
        own, of_step = ([row for row in kind if row["step"] == n] for kind in (rollouts, scores))
        (line,) = (row for row in metrics if row["step"] == n)
        lr, reward = (
            learning_rate(n, options),
            rewards(own, options["cut_answers"]).reshape(-1, options["group_size"]),
        )
        computed, after = update(policy, before, start, own, lr, options)
        computed |= {"step": n, "learning_rate": lr} | of_rollouts(own, reward) | of_scores(own, of_step)
        computed |= of_verdicts(own, [row for row in rollouts if row["step"] <= n])
        steps.append(Step(n, own, of_step, line, computed, before, after, weights))
        before = State(weights, after.m, after.v, after.t, zeros)
    return start, steps


# --- the tests ----------------------------------------------------------------------------------------------


def close(value: Any) -> Any:
    """Equal but for float32's rounding."""
    return pytest.approx(value, rel=1e-5, abs=3e-6, nan_ok=True)


def distance(weights: Weights, after: State) -> float:
    """How far weights lie from those computed here, in units of what float32 may be off."""
    return max(((weights[k] - p).abs() / after.blur[k]).max().item() for k, p in after.theta.items())


def test_rewards_and_advantages(run: Run) -> None:
    for step in run.steps:
        reward = rewards(step.rows, run.options["cut_answers"]).reshape(-1, run.options["group_size"])
        adv = advantages(reward, run.options["advantage_scale"]).flatten()
        ours = [(math.nan if row["reward"] is None else row["reward"], row["advantage"]) for row in step.rows]
        assert np.array(ours) == close(np.stack([reward.flatten(), adv], 1))


def test_rollouts_say_whether_they_were_trained(run: Run) -> None:
    o = SimpleNamespace(**run.options)
    for step in run.steps:
        reward = rewards(step.rows, o.cut_answers).reshape(-1, o.group_size)
        reads = trained(step.rows, reward, advantages(reward, o.advantage_scale), o)
        assert [row["trained"] for row in step.rows] == reads.flatten().tolist()


def test_log_probabilities(run: Run) -> None:
    """Of rollouts under the weights before their step, of scores under those after it. Sampler and trainer
    differ by rounding alone, of which only the bounds of a mean and its maximum are known; a mean of signed
    gaps breaks them."""
    scores = [row for row in lines(run.folder, "evaluations") if row["step"] == 0 and row["sampler_logp"]]
    sampled = [(run.start, scores)] + [(step.before.theta, step.rows) for step in run.steps]
    sampled += [(step.saved, step.scores) for step in run.steps]
    with torch.no_grad():
        for theta, rows in ((theta, rows) for theta, rows in sampled if rows):
            logp = run.policy.tokens(theta, rows, run.options["temperature"])[0]
            sampler_logp = torch.tensor([x for row in rows for x in row["sampler_logp"]]).double()
            torch.testing.assert_close(sampler_logp, logp, rtol=0, atol=1e-5)
    for step in run.steps:
        mean, most = (step.line[f"sampling/sampling_logp_difference/{name}"] for name in ("mean", "max"))
        assert most / sum(row["tokens"] for row in step.rows) <= mean <= most <= 1e-5


def test_metrics(run: Run) -> None:
    """All but those of the clock, and the gap."""
    scores = [row for row in lines(run.folder, "evaluations") if row["step"] == 0]
    opening = [{"step": 0} | of_scores([], scores)] if scores else []
    pairs = zip(lines(run.folder, "metrics"), opening + [step.metrics for step in run.steps], strict=True)
    for line, metrics in pairs:
        line = {name: math.nan if x is None else x for name, x in line.items()}
        own = {name: x for name, x in line.items() if not name.startswith(("perf/", "sampling/"))}
        assert own == close(metrics)


def test_weights(run: Run) -> None:
    for step in run.steps:
        assert distance(step.saved, step.after) < 1
        whole = AutoModelForCausalLM.from_pretrained(run.folder / "checkpoints" / f"step-{step.number}")
        for name, p in run.policy.whole(step.saved).items():
            torch.testing.assert_close(whole.get_parameter(name).double(), p, rtol=1e-6, atol=1e-6)


def test_every_option_acts(run: Run) -> None:
    """With a default in its place some step has other metrics or weights, far beyond the tolerance."""

    def acts(step: Step, other: dict[str, Any]) -> bool:
        lr = learning_rate(step.number, other)
        metrics, after = update(run.policy, step.before, run.start, step.rows, lr, other)
        off = max(abs(value - step.metrics[name]) for name, value in metrics.items())
        return off > 1e-3 or distance(step.saved, after) > 100

    for name in CASES[run.case].keys() & DEFAULTS.keys() - {"steps"}:
        other = run.options | {name: DEFAULTS[name]}
        assert any(acts(step, other) for step in run.steps), name


def test_cases_reach_what_they_are_for(run: Run) -> None:
    metrics = {name: [step.metrics.get(name) for step in run.steps] for name in run.steps[0].metrics}
    if run.case == "optimizer":
        assert min(metrics["grad_norm"]) < run.options["max_grad_norm"] < max(metrics["grad_norm"])
    if run.case == "epochs":
        assert min(metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"] + metrics["kl"]) > 0.01
    if run.case == "chosen":
        assert sum(metrics["groups/dropped"]) > 0 and max(metrics["groups/drawn"]) > 3
        assert max(metrics["frac_reward_zero_std"]) > 0 < max(metrics["completions/clipped_ratio"])
    if run.case == "turns":
        turns = {len(row.get("turns", [])) for step in run.steps for row in step.rows}
        assert turns == {0, 2, 4}, "answers that were cut are not replied to"
    if run.case == "failures":
        shape = (len(run.steps) * run.options["prompts_per_step"], -1)
        scored = np.isfinite(rewards([row for step in run.steps for row in step.rows]).reshape(shape)).sum(1)
        assert {1, 3, 4} <= set(scored) and max(metrics["frac_reward_zero_std"]) > 0


def test_rollouts_hold_what_was_sampled(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.policy.model.name_or_path)
    scores = [row for row in lines(run.folder, "evaluations") if row["split"] in ("train", "held_out")]
    for row in lines(run.folder, "rollouts") + scores:
        ids, sampler_logp = row["ids"], row["sampler_logp"]
        assert len(ids) == row["tokens"] == len(sampler_logp)
        cuts = [0, *(said["after"] for said in row.get("heard", [])), len(ids)]
        *before, last = (ids[a:b] for a, b in pairwise(cuts))  # one of them, but in a conversation
        assert not any(ENDS & set(turn[:-1]) for turn in (*before, last))
        assert all(turn[-1] in ENDS for turn in before) and (last[-1] in ENDS) == row["finished"]
        assert tokenizer.decode(last, skip_special_tokens=True).strip() == row["response"]
        assert not row["only_thoughts"]
        assert f"user\n{row['prompt']}<|im_end|>" in tokenizer.decode(row["prompt_ids"])
        assert str(row["prompt_ids"]) not in run.output, "they are for programs"
    texts = [json.dumps(logp) for step in run.steps for row in step.rows for logp in row["sampler_logp"]]
    assert max(len(text.strip("-0").replace(".", "")) for text in texts) == 9, "what a float32 needs"


def test_reference_answers_have_ids_and_no_sampler(many: Path, questions: Path, tmp_path: Path) -> None:
    run, policy = tmp_path / "run", Policy(many, 0)
    train.main(words(policy=many, data=questions, out=run, judge="keyword", method="sft", steps=1))
    rows = lines(run, "rollouts")
    for row in rows:
        assert row["sampler_logp"] == [] and len(row["ids"]) == row["tokens"]
        assert row["response"] == "That." == AutoTokenizer.from_pretrained(many).decode(row["ids"][:-1])
    logp = policy.tokens(policy.load(many), rows, 1.0)[0]
    assert lines(run, "metrics")[1]["loss"] == close(-logp.mean().item()), "all answers are of one length"


def test_runs_from_before_rollouts_had_ids(
    tiny: Path, questions: Path, tmp_path: Path, command: Command
) -> None:
    """They are shown and judged again as any other, and go on."""
    run = tmp_path / "run"
    train.main(words(policy=tiny, data=questions, out=run, judge="keyword", steps=1, eval_every=0))
    readers = ("judge.py", "show", run), ("evaluate.py", "replay", run, "--judge", "keyword")
    outputs = [command(*reader).stdout for reader in readers]
    rows = lines(run, "rollouts")
    write_rows(run / "rollouts.jsonl", [{k: row[k] for k in row if k not in TOKENS} for row in rows])
    assert [command(*reader).stdout for reader in readers] == outputs
    state = run / "checkpoints" / "step-1" / "trainer" / "state.json"
    manifest = json.loads(state.read_text())
    state.write_text(json.dumps({name: manifest[name] for name in ("step", "files")}))
    assert command("train.py", "--resume", run, "--steps", 2).returncode == 0
    rows = lines(run, "rollouts")
    assert [TOKENS <= row.keys() for row in rows] == [row["step"] == 2 for row in rows]
