"""Trains a policy with GRPO on rewards from a rubric: the whole algorithm in one column.

    python train.py --domain medical
    python train.py --resume RUN       # go on with a run; its options: --resume RUN --help
    python train.py --plan --gpu 80    # whether a run fits a GPU of 80 GiB; --plan --help
    python train.py --bench            # how long a step takes here; --bench --help

One step, for P questions with G rollouts each:

1. **Sample** G completions a question from the policy, at temperature 1 from the full softmax.
2. **Judge** each response: a verdict in [0, 1] on every criterion of that question's own rubric, or one
   rating.
3. **Reward**: the weighted share of the rubric that the response earns (RaR-Explicit, Eq. 1), or the rating
   on [0, 1] (RaR-Implicit, Eq. 2). A judge that failed gives no reward, and that rollout leaves its group.
4. **Advantage**: how far a rollout's reward lies above its own group's mean, over the group's deviation. No
   value network: the other rollouts are the baseline. A group that ties has no advantage and teaches nothing.
5. **Loss**: the clipped policy gradient, each token of a rollout carrying that rollout's advantage,
   normalised over the whole step (rar_mini/grpo.py has every formula).
6. **Step**: clip the gradient's norm, AdamW, a learning rate that warms up and then stays.

Two of the paper's baselines are here as well. `--method sft` is the same loop without 1 to 4: reference
answers stand in the place of rollouts, and the loss is their negative log-likelihood. `--steps 0` only scores
the policy as it is. Started by torchrun, several processes share every step (rar_mini/ranks.py).

Where this departs from the paper (arXiv 2507.17746), or fills what it leaves open:

1. No KL penalty (`--beta 0`), a clip of 0.2 on both sides (`--clip-low`, `--clip-high`) and one optimizer
   step a batch (`--inner-epochs 1`), where the clip cannot act yet. The paper states none of them.
2. The loss weighs every completion alike (`--loss-norm sequence`, GRPO as first published). Not stated
   either.
3. Pitfalls have positive weights and the judge is asked whether the mistake was avoided (`--pitfalls
   avoided`), because the released data words them both ways.
4. The paper's batch of 96 is read as 96 completions (`--prompts-per-step 6 --group-size 16`; the other
   reading is `--prompts-per-step 96`), its 3,584 tokens as `--max-prompt-tokens 512 --max-new-tokens 3072`.
5. The prompt is the model's chat template with one system sentence of ours, or a plain "Question: ...
   Answer:".
6. Supervised training has its settings from here, for want of any: the same rate, batch and `--loss-norm`,
   the end token as part of an answer. Its scores are asked for by RaR-Explicit.
7. The `cpu` preset is a lesson, not a replication: a 135M policy, short answers, and a judge that matches
   words.
"""

import argparse
import dataclasses
import math
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import judge as judges
from judge import Judge
from rar_mini import checkpoint, data, grpo, hub, memory, policy, ranks, report, speed
from rar_mini.checkpoint import Run
from rar_mini.config import PRESETS, Config
from rar_mini.data import Example
from rar_mini.endpoint import OverBudget
from rar_mini.kernels.adamw import AdamW
from rar_mini.kernels.advantage import group_advantage
from rar_mini.options import counted, refuse_unknown, to_json
from rar_mini.policy import Policy
from rar_mini.sampler import Completion, Request, Settings, sample, uniforms

# --- one step -----------------------------------------------------------------------------------------------


Drawn = Sequence[tuple[Example, int]]  # questions, and how often this step has drawn each before


@dataclass(frozen=True)
class Rollouts:
    """What P questions with G rollouts each came to."""

    examples: list[Example]  # P
    prompts: list[list[int]]  # P
    completions: list[list[Completion]]  # P x G
    responses: list[list[str]]  # P x G
    scores: judges.Scores
    reward: Tensor  # (P, G), NaN where the judge failed or was not asked
    adv: Tensor  # (P, G)

    def rows(self, step: int) -> list[dict]:
        """One record a rollout, from which its reward and its part in the step can be computed again."""
        return [
            {
                "step": step,
                "example_id": example.id,
                "prompt": example.question,
                "response": self.responses[p][g],
                "verdicts": self.scores.rows(p, g),
                "rating": judges.finite(self.scores.rating[p, g].item()),
                "reward": judges.finite(self.reward[p, g].item()),
                "advantage": self.adv[p, g].item(),
                "tokens": len(completion.ids),
                "finished": completion.finished,
                "prompt_ids": self.prompts[p],
                "ids": completion.ids,
                # Nine digits give a float32 back.
                "sampler_logp": [judges.finite(float(f"{logp:.9g}")) for logp in completion.logp],
            }
            for p, example in enumerate(self.examples)
            for g, completion in enumerate(self.completions[p])
        ]


def roll_out(
    config: Config, actor: Policy, judge: Judge, drawn: Drawn, G: int, key: int | str, clock: report.Clock
) -> Rollouts:
    """Sample G answers to each drawn question and have them judged, by all ranks together. `key` names the
    random streams: a step, or "eval"."""
    examples = [example for example, _ in drawn]
    requests = []
    for example, visit in drawn:
        streams = range(visit * G, (visit + 1) * G)
        draws = [uniforms(config.seed, key, example.id, g, config.max_new_tokens) for g in streams]
        requests.append(Request(actor.encode(example), draws))
    budget = config.cache_mb * 2**20
    settings = Settings(config.max_new_tokens, config.temperature, cache_bytes=budget, graph=config.graph)
    own = ranks.share(requests)
    total = len(own) * G * config.max_new_tokens
    with clock("sample"), tqdm(total=total, desc="sampling", unit="tok", leave=False, disable=None) as bar:
        shares = ranks.attempt(lambda: sample(actor.model, own, actor.ends, settings, bar.update))
    completions = ranks.merge(shares)  # P x G
    responses = [[actor.decode(completion.ids) for completion in group] for group in completions]
    with clock("judge"):
        scores = judge.score(examples, responses, progress="judging")
    device = actor.model.head.device
    verdict, weight = scores.verdict.to(device), scores.weight.to(device)  # (P, G, K), (P, K)
    reward, adv = (x.cpu() for x in group_advantage(verdict, weight, scale=config.advantage_scale))  # (P, G)
    return Rollouts(examples, [r.prompt for r in requests], completions, responses, scores, reward, adv)


def recite(actor: Policy, drawn: Drawn) -> Rollouts:
    """The reference answers to the drawn questions in the place of rollouts: G = 1, advantage 1, no
    reward."""
    examples, P = [example for example, _ in drawn], len(drawn)
    prompts, responses = [actor.encode(e) for e in examples], [[e.reference] for e in examples]
    completions = [[Completion(actor.completion(e.reference), [], True)] for e in examples]
    none, adv = torch.full((P, 1), judges.NAN), torch.ones(P, 1)  # (P, 1)
    unjudged = judges.Scores(torch.empty(P, 1, 0), torch.empty(P, 0), none, [e.rubric for e in examples])
    return Rollouts(examples, prompts, completions, responses, unjudged, none, adv)


def update(
    config: Config, actor: Policy, reference: Policy | None, optimizer: AdamW, rollouts: Rollouts
) -> dict[str, float]:
    """Train on one batch of rollouts, each rank on its share. Returns loss, gradient norm and token metrics,
    of the last inner epoch; {} if no group teaches, and then nothing moves: AdamW's momentum would otherwise
    go on by itself."""
    teaches = grpo.scored(rollouts.reward) | config.supervised  # (P, G)
    batches = grpo.micro_batches(
        rollouts.prompts,
        rollouts.completions,
        rollouts.adv,
        teaches,
        own=ranks.share(range(len(rollouts.prompts))),
        loss_norm=config.loss_norm,
        max_new_tokens=config.max_new_tokens,
        tokens_per_batch=config.tokens_per_batch,
        device=actor.model.head.device,
        attention=config.attention,
    )
    metrics: dict[str, float] = {}
    for epoch in range(config.inner_epochs if teaches.any() else 0):
        parts = []
        for batch in tqdm(batches, desc="training", leave=False, disable=None):
            logp, entropy = grpo.token_logp(actor.model, batch, config.temperature)  # (N,), (N,)
            if epoch == 0 and not config.supervised:
                batch.old_logp = logp.detach()
            if reference is not None and batch.ref_logp is None:
                with torch.no_grad():
                    batch.ref_logp, _ = grpo.token_logp(reference.model, batch, config.temperature)
            loss, sums = grpo.policy_loss(
                logp,
                batch,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                beta=config.beta,
                mismatch_cap=config.mismatch_cap,
            )
            loss.backward()
            parts.append(sums | {"entropy": entropy.detach().sum()})
        parts = sum(ranks.gather([{name: float(x) for name, x in part.items()} for part in parts]), [])
        ranks.add_gradients(actor.model.parameters())
        grads = [p.grad for p in actor.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.get_total_norm(grads).item()
        metrics = grpo.token_metrics(parts) | {"grad_norm": norm}
        if not math.isfinite(metrics["loss"] + norm):  # nothing has moved yet
            raise FloatingPointError(f"the loss is {metrics['loss']:g} and the gradient's norm {norm:g}")
        optimizer.step(grad_scale=min(1.0, config.max_grad_norm / (norm + 1e-6)))
        optimizer.zero_grad()
    return metrics


def learning_rate(config: Config, step: int) -> float:
    """Of step 1, 2, ...: linear warm-up, then constant."""
    return config.lr * min(1.0, step / max(1, round(config.warmup * config.steps)))


# --- before, after and between ------------------------------------------------------------------------------

Judges = tuple[Judge, Judge | None]  # of training, and the gold one
Splits = dict[str, list[Example]]  # train and held_out


def evaluate(
    config: Config, actor: Policy, ask: Judges, splits: Splits, step: int, run: Run
) -> Iterator[tuple[str, list[float]]]:
    """The mean reward of fresh answers to each question, by split, under the training's own judge and
    temperature; of held-out questions under the gold judge, too. One split after another, so that a judge
    that fails at one costs none before it.

    The random streams are the same at every call, so that two scores of one run differ by the policy alone.
    """
    judge, gold = ask
    for split, examples in splits.items():
        if examples:
            drawn = [(example, 0) for example in examples]
            rollouts = roll_out(config, actor, judge, drawn, config.eval_samples, "eval", report.Clock())
            run.append("evaluations.jsonl", ({"split": split} | row for row in rollouts.rows(step)))
            yield split, rollouts.reward.nanmean(-1).tolist()
            if gold and split == "held_out":
                said = gold.score(rollouts.examples, rollouts.responses, progress="judging")
                rollouts = dataclasses.replace(rollouts, scores=said, reward=said.reward)
                run.append("evaluations.jsonl", ({"split": "held_out_gold"} | r for r in rollouts.rows(step)))
                yield "held_out_gold", said.reward.nanmean(-1).tolist()


def questions(config: Config, actor: Policy, judge: Judge) -> Splits:
    """The training and held-out questions that fit, after saying what was left out and why."""
    notes: Counter[str] = Counter()
    how = {"skip_bad": config.skip_bad_rows, "skip_weightless": config.hygiene, "notes": notes}
    examples = data.load(config.data, config.domain, config.revision, **how)
    if config.hygiene:
        examples = data.tidy(examples, notes, references=config.method == "reference-likert")
    # Released data is split in three: val is scored while training goes on, test is for the end.
    examples = [example for example in examples if example.split != "test"]
    judge.check(examples)
    fitting, limits = [], (config.max_prompt_tokens, config.max_new_tokens)
    for example in tqdm(examples, desc="reading questions", leave=False, disable=None):
        taught = config.supervised and example.split == "train"
        if taught and not example.reference:
            notes["training questions left out without a reference answer"] += 1
        elif not (why := policy.too_long(actor, example, *limits, answered=taught)):
            fitting.append(example)
        elif config.long_prompts == "skip":
            notes["questions left out as too long"] += 1
        else:
            raise ValueError(f"{why}; raise the limit, or pass --long-prompts skip")
    for note, count in notes.items():
        print(f"  {note}: {count}")
    splits = {split: [e for e in fitting if e.split == split] for split in ("train", "held_out")}
    if len(splits["train"]) < config.prompts_per_step:
        raise ValueError(
            f"--prompts-per-step {config.prompts_per_step} is more than the {len(splits['train'])} questions "
            "to train on; lower it or bring more"
        )
    ranks.refuse_unlike("questions", lambda: zlib.crc32(repr(splits).encode()))
    ranks.refuse_unlike("judge settings", lambda: judge.digest(splits["train"][0], ""))
    return splits


def train(config: Config, run: Run | None = None, resume: Path | None = None) -> None:
    """A new run, or with `run` that one, from its checkpoint `resume` or (without one) from its start."""
    config, why = settle(config)
    if config.device.startswith("cuda"):
        print(memory.require(config))
    # Reference answers need no judge, but the scores do.
    method = "rar-explicit" if config.supervised else config.method
    specs = (config.judge, config.gold_judge)
    judge, gold = (s and Judge(s, method, design=config.design, **vars(config.judging)) for s in specs)
    actor, reference = policy.prepare(config, resume)
    optimizer = AdamW(actor.model.parameters(), config.lr, weight_decay=config.weight_decay, seed=config.seed)
    first = 1
    if resume is not None:
        checkpoint.load_optimizer(resume, optimizer)
        first += checkpoint.check(resume)
    splits = questions(config, actor, judge)
    scored = {split: data.spread(rows, config.eval_questions) for split, rows in splits.items()}
    # Made now that nothing is left to be refused.
    ranks.refuse_unlike("weights", lambda: policy.checksum(actor))
    prompts = judge.prompts.digest
    run = run or ranks.first(lambda: Run.create(config.out, to_json(config), judge_prompts=prompts))
    judge.ledger.carry(run.steps("metrics.jsonl"))
    announce(config, actor, judge, why, splits, scored, run, first)
    before = after = score_before(config, actor, (judge, gold), scored, run, first)
    stop, failed = checkpoint.stop_on_interrupt(run.folder), deque(maxlen=5)
    recent = deque(run.steps("rollouts.jsonl"), maxlen=report.RECENT)

    for step in range(first, config.steps + 1):
        clock, lr, last = report.Clock(), learning_rate(config, step), step == config.steps
        optimizer.param_groups[0]["lr"] = lr
        drawn = data.draw(splits["train"], config.prompts_per_step, step - 1, config.seed)
        with keep_progress(config, run, step, actor, optimizer):
            if config.supervised:
                rollouts = recite(actor, drawn)
            else:
                rollouts = roll_out(config, actor, judge, drawn, config.group_size, step, clock)
                failed.append(rollouts.reward.isnan().float().mean().item())
                check_failures(config, judge, failed)
        with clock("train"), keep_evidence(run, step, actor, rollouts):
            learned = update(config, actor, reference, optimizer, rollouts)
        metrics = {"step": step, "learning_rate": lr}
        metrics |= {} if config.supervised else report.describe(rollouts.reward, rollouts.completions)
        recent.append(rollouts.rows(step))
        metrics |= report.verdicts(recent) | learned | clock.metrics(sum(row["tokens"] for row in recent[-1]))
        if config.eval_every and (last or step % config.eval_every == 0):
            after = {}
            try:
                after.update(evaluate(config, actor, (judge, gold), scored, step, run))
            except (ConnectionError, OverBudget) as error:  # what was learnt is saved all the same
                tqdm.write(f"  not every score at step {step}: {error}")
            metrics |= {f"eval/{split}_reward": report.mean(scores) for split, scores in after.items()}
        run.append("rollouts.jsonl", recent[-1])
        run.append("metrics.jsonl", [metrics | judge.metrics()])
        say(config, step, first, metrics, rollouts)
        stopping = any(ranks.gather(bool(stop)))
        if stopping or (config.save_every and (last or step % config.save_every == 0)):
            run.save(step, actor, optimizer, config.keep)
        if stopping and not last:
            raise KeyboardInterrupt
    close(judge, gold)
    print(report.conclusion(before, after, run.folder, config.steps))


def close(*asked: Judge | None) -> None:
    """What the judges were asked, and the end of their connections."""
    for name, judge in zip(("judge", "gold"), asked, strict=True):
        if judge and (judge.endpoint or judge.ledger.failures):
            print(f"{name:<9}{judge.ledger.line()}")
            judge.close()


def announce(
    config: Config,
    actor: Policy,
    judge: Judge,
    why: str,
    splits: Splits,
    scored: Splits,
    run: Run,
    first: int,
) -> None:
    """What the run is about to do from its step `first` on, and what its training costs, judged by the
    questions that are scored."""
    judged = not config.supervised
    calls = judged * sum(map(judge.calls, splits["train"])) / len(splits["train"])
    answers = (config.steps - first + 1) * config.prompts_per_step * config.group_size
    cost = judge.estimate(scored["train"], judged * answers, config.max_new_tokens)
    print(f"policy   {config.policy}, {actor.trained()}, {config.dtype} on {config.device}")
    print(f"judge    {judge.spec} ({why})" + (cost and f"; training: {cost}"))
    numbers = {name: len(rows) for name, rows in splits.items()}
    print(report.opening(config, numbers, answers, calls, run.folder))


def score_before(
    config: Config, actor: Policy, ask: Judges, splits: Splits, run: Run, first: int
) -> dict[str, list[float]]:
    """The scores at step 0: taken now, or read back from the run that goes on."""
    if not config.eval_every:
        return {}
    if first > 1:
        names = splits | ({"held_out_gold": splits["held_out"]} if ask[1] else {})
        return {name: run.scores(name, [e.id for e in examples], 0) for name, examples in names.items()}
    scores = dict(evaluate(config, actor, ask, splits, 0, run))
    means = {f"eval/{split}_reward": report.mean(values) for split, values in scores.items()}
    run.append("metrics.jsonl", [{"step": 0} | means | ask[0].metrics()])
    print("before   " + ", ".join(f"{name} {x:.3f}" for name, x in means.items() if x is not None))
    return scores


def settle(config: Config) -> tuple[Config, str]:
    """Decide what was left to decide, so that a resumed run cannot decide otherwise; and why that judge."""
    if not config.steps and not config.eval_every:
        raise ValueError("--steps 0 only scores the policy: expected --eval-every above 0, got 0")
    judge, why = judges.choose(config.judge)
    gold = judges.choose(config.gold_judge)[0] if config.gold_judge else None
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    ranks.claim(device)
    if config.prompts_per_step < ranks.world:
        raise ValueError(
            f"--prompts-per-step {config.prompts_per_step} with {ranks.world} processes: expected a question "
            "for each; raise it, or lower --nproc-per-node"
        )
    if config.attention == "flex" and not device.startswith("cuda"):
        raise ValueError(f"--attention flex has no backward pass on {device}: use loop or auto, or a GPU")
    path = Path(config.policy)
    name = str(path.absolute()) if path.is_dir() else config.policy
    source, revision = config.data, config.revision
    if source == "rar":
        revision = ranks.first(lambda: hub.fetch(config.domain, revision)[1])
    elif revision:
        raise ValueError(f"--revision {revision} is of --data rar: expected both, got --data {source}")
    elif source:
        source = str(Path(source).absolute())
    G = 1 if config.supervised else config.group_size
    settled = {"policy": name, "data": source, "revision": revision, "judge": judge, "gold_judge": gold}
    return dataclasses.replace(config, **settled, device=device, group_size=G), why


class JudgeFailed(ValueError):
    """So many responses have no reward that what is left of their groups would teach little, and slowly."""


@contextmanager
def keep_progress(config: Config, run: Run, step: int, actor: Policy, optimizer: AdamW) -> Iterator[None]:
    """Where the judge ends a step, leave a checkpoint of the one before it."""
    try:
        yield
    except (ConnectionError, OverBudget, JudgeFailed) as error:
        if step > 1:
            run.save(step - 1, actor, optimizer, config.keep)
        raise JudgeFailed(f"{error}\n          Go on later: python train.py --resume {run.folder}") from error


@contextmanager
def keep_evidence(run: Run, step: int, actor: Policy, rollouts: Rollouts) -> Iterator[None]:
    """When the loss is not a number, save what it came from and say what to try."""
    try:
        yield
    except FloatingPointError as error:
        path = run.keep_evidence(step, actor.model, rollouts.rows(step))
        raise FloatingPointError(
            f"{error} at step {step}; the statistics of every weight and gradient and the step's rollouts "
            f"are in {path}. Try a lower --lr, or --dtype float32; checkpoints were not touched"
        ) from error


def check_failures(config: Config, judge: Judge, shares: Sequence[float]) -> None:
    """Stop a run whose judge fails too often; `shares` are those of the last steps' responses."""
    share = sum(shares) / len(shares)
    if share > config.max_judge_failures:
        raise JudgeFailed(
            f"the judge gave no reward to {share:.0%} of the last answers: expected at most "
            f"{config.max_judge_failures:.0%} (--max-judge-failures). What failed: {judge.ledger.reasons()}"
        )


def say(config: Config, step: int, first: int, metrics: dict, rollouts: Rollouts) -> None:
    """The step's line, and now and then an answer with its verdicts: the best of the first group."""
    tqdm.write(report.line(step, config.steps, metrics))
    if config.supervised:
        return
    # Under another norm long answers weigh more; where every group ties there is nothing to explain.
    if step == 1 and config.loss_norm == "sequence" and config.inner_epochs == 1 and metrics.get("grad_norm"):
        tqdm.write(report.FIRST_LOSS)
    if config.show_every and (step == first or step % config.show_every == 0):
        rows = rollouts.rows(step)[: config.group_size]
        tqdm.write(report.rollout(max(rows, key=lambda row: row["advantage"])))


# --- the command line ---------------------------------------------------------------------------------------


def parse(argv: list[str]) -> Config:
    """The settings of a command line: the preset's, then the options'."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="cpu", choices=sorted(PRESETS))
    refuse_unknown(argv, PRESETS["cpu"])
    preset = PRESETS[first.parse_known_args(argv)[0].preset]
    config = tyro.cli(Config, args=argv, default=preset, description=__doc__, prog="train.py")
    if config.out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = {None: config.domain, "rar": f"rar-{config.domain}"}
        name = names.get(config.data) or Path(config.data).stem
        config = dataclasses.replace(config, out=Path("runs") / f"{name}-{stamp}")
    return config


def bench(argv: list[str]) -> None:
    """Time whole steps on the benchmark's work, which no end token cuts short; nothing is written."""
    usage = "train.py --bench [--runs RUNS] [options of training; sizes and judge are the benchmark's own]"
    parser = argparse.ArgumentParser(usage=usage, allow_abbrev=False, description="Time whole steps.")
    parser.add_argument("--bench", action="store_true", help="measure a step; nothing is written")
    parser.add_argument("--runs", type=counted, default=5, help="of which the median is taken")
    options, rest = parser.parse_known_args(argv)
    P, G, T = speed.WORK
    sizes = {"prompts_per_step": P, "group_size": G, "max_new_tokens": T, "judge": "keyword"}
    config = settle(dataclasses.replace(parse(rest), **sizes))[0]
    actor, reference = policy.prepare(config)
    actor = dataclasses.replace(actor, ends=frozenset())
    optimizer, judge = AdamW(actor.model.parameters(), config.lr), Judge(config.judge, "rar-explicit")
    drawn = [(example, 0) for example in speed.work()]

    def step(clock: report.Clock) -> None:
        rollouts = roll_out(config, actor, judge, drawn, G, 0, clock)
        with clock("train"):
            update(config, actor, reference, optimizer, rollouts)

    speed.training(config.policy, actor, step, options.runs)


def main(argv: list[str]) -> None:
    named = {word.split("=")[0] for word in argv}
    with ranks.joined():
        if "--resume" in named:
            train(*ranks.first(lambda: checkpoint.reopen(argv)))
        elif "--bench" in named:
            bench(argv)
        elif "--plan" in named:
            memory.main(argv, parse)
        else:
            train(ranks.first(lambda: parse(argv)))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # a log file grows with the run
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
