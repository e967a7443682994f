"""Trains a policy with GRPO on rewards from a rubric: the whole algorithm in one column.

    python train.py --domain medical
    python train.py --config FILE.toml # with options from a file: docs/runs.md
    python train.py --recipe PATH.py   # with a step of the loop changed: rar_mini/recipe.py
    python train.py --resume RUN       # go on with a run; its options: --resume RUN --help
    python train.py --plan --gpu 80    # whether a run fits a GPU of 80 GiB; --plan --help
    python train.py --bench            # how long a step takes here; --bench --help
    python train.py --check            # whether this machine computes what it should; --check --help

One step, for P questions with G rollouts each:

1. **Sample** G completions a question from the policy, at temperature 1 from the full softmax.
2. **Judge** each response: a verdict in [0, 1] on every criterion of that question's own rubric, or one
   rating.
3. **Reward**: the weighted share of the rubric that the response earns (RaR-Explicit, Eq. 1), or the rating
   on [0, 1] (RaR-Implicit, Eq. 2). A judge that failed gives no reward, and that rollout leaves its group.
4. **Advantage**: how far a rollout's reward lies above its own group's mean, over the group's deviation. No
   value network: the group's mean is the baseline. A group that ties has no advantage and teaches nothing.
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
3. Pitfalls have positive weights and a verdict says whether the mistake was avoided (`--pitfalls avoided`),
   because the released data words them both ways.
4. The paper's batch of 96 is read as 96 completions (`--prompts-per-step 6 --group-size 16`; the other
   reading is `--prompts-per-step 96`), its 3,584 tokens as `--max-prompt-tokens 512 --max-new-tokens 3072`.
5. The prompt is the model's chat template with one system sentence of ours, or a plain "Question: ...
   Answer:".
6. Supervised training has its settings from here, for want of any: the same rate, batch and `--loss-norm`,
   the end token as part of an answer. Its scores are asked for by RaR-Explicit.
7. The `cpu` preset is a lesson, not a replication: a 135M policy and a judge that matches words. Bundled
   questions ask for short answers, and one that is cut earns nothing (`--answers`, `--cut-answers`).
"""

if __name__ == "__main__":  # Ctrl-C has its words also while the libraries are imported, which takes seconds
    from rar_mini import interrupt

    interrupt.watch()

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from judge import Judge
from rar_mini import alarms, data, ending, grpo, ranks, report, sampler, scale, sequences, setup
from rar_mini.checkpoint import Run, alone
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.guard import check_failures, check_rate, guarded, stop, stop_on_interrupt
from rar_mini.judging.endpoint import OverBudget
from rar_mini.judging.wrappers import JudgeLike, ask
from rar_mini.kernels.adamw import AdamW
from rar_mini.options import LESS_MEMORY, Parser, counted, one_line
from rar_mini.progress import progress_bar
from rar_mini.recipe import overrides
from rar_mini.report import Clock
from rar_mini.sampler import Completion, uniforms
from rar_mini.scores import NAN, Rollouts, Scores
from rar_mini.setup import Training
from rar_mini.talk import Talk, converse
from rar_mini.tools import check, memory, speed

Drawn = Sequence[tuple[Example, int]]  # questions, and how often this step has drawn each before


def train(config: Config, run: Run | None = None, resume: Path | None = None) -> None:
    """A new run, or with `run` that one, from its checkpoint `resume` or (without one) from its start."""
    t = setup.prepare(config, Judge, run, resume)
    config, recipe = t.config, t.recipe
    t.before = t.after = score_before(t)
    t.interrupted = stop_on_interrupt()
    for n in range(t.first, config.steps + 1):
        clock = Clock()
        with guarded(t, n):
            recipe.begin(n, t.planned)
            t.rollouts = rollouts = imitate(t) if config.supervised else explore(t, n, clock)
            rate = check_rate(recipe.learning_rate(n, t.planned), n)
            with clock("train"):
                learned = learn(t, rollouts, rate)
        recipe.schedule(n, rollouts)
        log(t, n, learned | {"learning_rate": rate}, clock)
        save(t, n)
    close(t)
    print(ending.conclusion(t.before, t.after, t.run.folder, config.steps))


# --- one step -----------------------------------------------------------------------------------------------


def explore(t: Training, n: int, clock: Clock) -> Rollouts:
    """Answers with rewards and advantages; with --resample-ties further ones while groups teach nothing."""
    c, rollouts, lacking = t.config, None, t.config.prompts_per_step
    for again in range(1 + c.resample_ties):
        new = sample(t, draw(t, lacking, again), c.group_size, n, clock, t.judge)  # P x G completions
        new.scores = judge(t, t.judge, new, clock)  # verdicts (P, G, K)
        t.rollouts = rollouts = new.behind(rollouts)
        rollouts.reward = reward(t, rollouts)  # (P, G), NaN where the judge failed
        with clock("train"):  # a recipe may read all completions for it
            rollouts.adv = advantage(t, rollouts)  # (P, G), 0 where nothing is taught
        lacking = c.prompts_per_step - int(chosen(t, rollouts).any(-1).sum())
        failed = rollouts.reward.isnan().float().mean()
        if not lacking or failed > c.max_judge_failures or failed == 1:
            break  # a judge that fails is not asked again
    check_failures(t, rollouts.reward)
    return t.recipe.repair(rollouts)


def imitate(t: Training) -> Rollouts:
    """The reference answers to a step's questions."""
    return recite(t, [example for example, _ in draw(t, t.config.prompts_per_step)])


def learn(t: Training, rollouts: Rollouts, rate: float) -> dict[str, float]:
    """Move the weights, once an inner epoch; not at all, and without metrics, if nothing is taught."""
    batches, learned = cut(t, rollouts), {}
    for _ in range(t.config.inner_epochs if rollouts.trained.any() else 0):
        learned = loss(t, batches)  # leaves gradients
        step(t.optimizer, learned["grad_norm"], rate, t.config.max_grad_norm)
    return learned


# --- the parts of a step ------------------------------------------------------------------------------------


def draw(t: Training, count: int, again: int = 0) -> Drawn:
    """The next `count` questions of the stream; those drawn `again` belong to the same step."""
    if not again:
        t.drawn.append(0)
    t.drawn[-1] += count
    return data.draw(t.questions["train"], t.drawn[-1], sum(t.drawn[:-1]), t.config.seed)[-count:]


def chosen(t: Training, rollouts: Rollouts) -> torch.Tensor:
    """Which rollouts the update reads: (P, G) bool."""
    c = t.config
    return grpo.teaches(rollouts, c.train_rollouts, c.cut_answers != "mask", not c.resample_ties)


def sample(
    t: Training, drawn: Drawn, G: int, key: int | str, clock: Clock, scorer: JudgeLike | None = None
) -> Rollouts:
    """G answers to each drawn question, by all ranks together. `key` names the random streams: a step, or
    "eval". The `scorer` that will judge them may begin with those that end while others are written."""
    c, actor, P = t.config, t.actor, len(drawn)
    n = key if isinstance(key, int) else None
    prompts = [_prompts(t, example, n, G) for example, _ in drawn]  # P x G
    own, examples = ranks.share(range(P)), [example for example, _ in drawn]
    how = sampler.Settings(c.max_new_tokens, c.temperature, cache_bytes=c.cache_mb * 2**20, graph=c.graph)

    def begun(p: int, g: int) -> Talk:
        draws = partial(uniforms, c.seed, key, examples[p].id, drawn[p][1] * G + g)
        return Talk(p, g, examples[p], prompts[p][g], draws)

    def work() -> list[list[Talk]]:
        talks = [[begun(p, g) for g in range(G)] for p in own]
        converse(sum(talks, []), t.recipe, actor, n, how, bar, ended)  # one turn each, unless users reply
        return talks

    bar = progress_bar(total=len(own) * G * c.max_new_tokens, desc="sampling", unit="tok")
    with clock("sample"), ahead(t, scorer) as ended, bar:
        talks = ranks.merge(ranks.attempt(work))  # P x G
    completions = [[talk.completion for talk in group] for group in talks]
    last = [[talk.turns.pop()["content"] for talk in group] for group in talks]
    pairs = zip(examples, last, strict=True)
    responses = [[t.recipe.answer(example, text) for text in group] for example, group in pairs]
    rollouts = Rollouts(examples, prompts, completions, responses)
    if overrides(t.recipe, "reply"):
        rollouts.turns = [[talk.turns for talk in group] for group in talks]
    return rollouts


@contextmanager
def ahead(t: Training, scorer: JudgeLike | None) -> Iterator[Callable[[Example, Completion], object]]:
    """While answers are sampled: a function that begins to judge one that has ended.

    Only a server is asked ahead, and only if it is certain what `judge` will ask: a recipe's own rubrics may
    depend on the whole group, an answer may not be its conversation's last, and its own judge may ask
    anything. Then all is asked after sampling."""
    unsure = any(overrides(t.recipe, step) for step in ("rubrics", "reply", "teach"))
    certain = not unsure and getattr(type(scorer), "score", None) is Judge.score
    if not certain or scorer.server is None:
        yield lambda example, completion: None
        return
    with scorer.ahead() as begin:
        yield lambda e, completion: begin(e, t.recipe.answer(e, t.actor.decode(completion.ids)))


def _prompts(t: Training, example: Example, n: int | None, G: int) -> list[list[int]]:
    """The prompt of each of G rollouts; the same list if the recipe shows the same messages."""
    shown = [t.recipe.messages(example, n, g) for g in range(G)]
    stems = grpo.stems(shown)
    ids = {g: t.actor.encode(example, shown[g]) for g in set(stems)}
    return [ids[g] for g in stems]


def judge(t: Training, scorer: JudgeLike, rollouts: Rollouts, clock: Clock) -> Scores:
    """What a judge says of rollouts, by the recipe's rubrics, which each rank makes for its own groups."""
    examples, responses = (ranks.share(x) for x in (rollouts.examples, rollouts.responses))
    rubrics = ranks.attempt(lambda: t.recipe.rubrics(examples, responses) if examples else [])
    rubrics = ranks.merge(rubrics)
    pairs = list(zip(rollouts.examples, rubrics, strict=True))
    if any(rubric != example.rubric for example, rubric in pairs):
        rollouts.rubrics = rubrics  # made for these responses: records keep them
    examples = [dataclasses.replace(example, rubric=rubric) for example, rubric in pairs]
    with clock("judge"):
        return ask(scorer, rollouts.posed(examples), rollouts.responses, progress="judging")


def reward(t: Training, rollouts: Rollouts) -> torch.Tensor:
    """The recipe's rewards (P, G); none where a user failed, and 0 for a cut answer to be penalised."""
    rewards = t.recipe.reward(rollouts.scores).masked_fill(grpo.unanswered(rollouts), NAN)
    penalised = t.config.cut_answers == "penalise"
    return grpo.penalise(rewards, grpo.cut_off(rollouts)) if penalised else rewards


def advantage(t: Training, rollouts: Rollouts) -> torch.Tensor:
    """The recipe's advantages (P, G); before them, log-probabilities of completions, if it needs these."""
    if t.recipe.needs_logp:
        rollouts.logp, rollouts.ref_logp = sequences.both(t, rollouts)  # (P, G) each
    return t.recipe.advantage(rollouts)


def recite(t: Training, examples: list[Example], texts: Sequence[str] | None = None) -> Rollouts:
    """A text to each question, its reference answer by default, in the place of rollouts: G = 1, advantage 1,
    no reward."""
    texts = [example.reference for example in examples] if texts is None else texts
    P, responses = len(examples), [[text] for text in texts]
    prompts = [_prompts(t, example, None, 1) for example in examples]
    completions = [[Completion(t.actor.completion(text), [], True)] for text in texts]
    none = torch.full((P, 1), NAN)  # (P, 1)
    unjudged = Scores(torch.empty(P, 1, 0), torch.empty(P, 0), none, [e.rubric for e in examples])
    return Rollouts(examples, prompts, completions, responses, unjudged, none, torch.ones(P, 1), recited=True)


def cut(t: Training, rollouts: Rollouts) -> list[grpo.MicroBatch]:
    """Choose the rollouts that are trained; of those, this rank's share in packed batches."""
    c = t.config
    rollouts.trained = chosen(t, rollouts)
    return grpo.micro_batches(
        rollouts,
        rollouts.trained,
        own=ranks.share(range(len(rollouts.examples))),
        loss_norm=c.loss_norm,
        max_new_tokens=c.max_new_tokens,
        tokens_per_batch=c.tokens_per_batch,
        device=t.actor.model.head.device,
        attention=c.attention,
    )


def loss(t: Training, batches: Sequence[grpo.MicroBatch]) -> dict[str, float]:
    """Add up the gradient of the step's loss over its batches and ranks. Returns the loss, the gradient's
    norm and the metrics of tokens. Raises FloatingPointError where they are no numbers."""
    parts, temperature = [], t.config.temperature
    if t.config.beta and any(batch.ref_logp is None for batch in batches):
        read = grpo.logp_of_each(t.reference.model, batches, temperature)
        for batch, logp in zip(progress_bar(batches, desc="reference"), read, strict=True):
            batch.ref_logp = logp  # (N,)
    for batch in progress_bar(batches, desc="training"):
        rows = grpo.states(t.actor.model, batch)  # (N, D)
        logp, entropy = grpo.token_logp(t.actor.model, batch, temperature, rows)  # (N,), (N,)
        if batch.old_logp is None and not t.config.supervised:
            batch.old_logp = logp.detach()
        viewed = dataclasses.replace(batch, views=sequences.views(t, batch, rows))
        share, sums = t.recipe.loss(logp, viewed)
        share.backward()
        parts.append(sums | {"entropy": entropy.detach().sum()})
    parts = sum(ranks.gather([{name: float(x) for name, x in part.items()} for part in parts]), [])
    ranks.add_gradients(t.optimizer)
    norm = grpo.gradient_norm(p.grad for p in t.actor.model.parameters() if p.requires_grad)
    metrics = grpo.token_metrics(parts) | {"grad_norm": norm}
    if not math.isfinite(metrics["loss"] + norm):  # nothing has moved yet
        raise FloatingPointError(f"the loss is {metrics['loss']:g} and the gradient's norm {norm:g}")
    return metrics


def step(optimizer: AdamW, norm: float, rate: float, most: float) -> None:
    """Move the weights by a gradient of this norm, clipped to `most`."""
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step(grad_scale=min(1.0, most / (norm + 1e-6)))
    optimizer.zero_grad()


# --- scores before, between and after -----------------------------------------------------------------------


def evaluate(t: Training, n: int) -> Iterator[tuple[str, list[float]]]:
    """The mean reward of fresh answers to each question, by split, under the training's own judge and
    temperature; of held-out questions under the gold judges, too. One split after another, so that a judge
    that fails at one costs none before it.

    The random streams are the same at every call, so that two scores of one run differ by the policy alone.
    """
    for split, examples in t.scored.items():
        if examples:
            drawn = [(example, 0) for example in examples]
            rollouts = sample(t, drawn, t.config.eval_samples, "eval", Clock(), t.judge)
            for name, scorer in t.scorers(split).items():
                yield name, grade(t, scorer, rollouts, name, n)


def grade(t: Training, scorer: JudgeLike, rollouts: Rollouts, name: str, n: int) -> list[float]:
    """The mean reward of each question's answers, which evaluations.jsonl keeps under the score's name."""
    rollouts.scores = judge(t, scorer, rollouts, Clock())
    rollouts.reward = reward(t, rollouts)
    rollouts.adv = advantage(t, rollouts)
    t.run.append("evaluations.jsonl", ({"split": name} | row for row in rollouts.rows(n)))
    return rollouts.reward.nanmean(-1).tolist()


def score_before(t: Training) -> dict[str, list[float]]:
    """The scores at step 0: taken now, or read back from the run that goes on."""
    if not t.config.eval_every:
        return {}
    fixed = scale.answers(t.scored)
    if t.first > 1:
        names = {name: examples for split, examples in t.scored.items() for name in t.scorers(split)}
        names |= {name: examples for name, (examples, _) in fixed.items()}
        return {name: t.run.scores(name, [e.id for e in examples], 0) for name, examples in names.items()}
    scores = dict(evaluate(t, 0))
    scores |= {name: grade(t, t.judge, recite(t, *each), name, 0) for name, each in fixed.items()}
    t.note({"step": 0} | report.scores(scores, t.gold))
    print(report.before(scores))
    return scores


# --- log and save -------------------------------------------------------------------------------------------


def log(t: Training, n: int, learned: dict[str, float], clock: Clock) -> None:
    """Write and print what a step came to, and score the policy if that is due."""
    config, rollouts = t.config, t.rollouts
    t.recent.append(rollouts.rows(n))
    metrics = {"step": n}
    if not config.supervised:
        metrics |= report.describe(rollouts.reward, rollouts.completions) | report.parts(rollouts.scores)
        metrics |= report.chosen(rollouts.trained) | report.talks(rollouts.turns)
        metrics |= report.redrawn(t.drawn[-1], rollouts.trained) if config.resample_ties else {}
    tokens = sum(row["tokens"] for row in t.recent[-1])
    metrics |= report.verdicts(t.recent) | learned | t.recipe.metrics() | clock.metrics(tokens)
    if config.eval_every and (n == config.steps or n % config.eval_every == 0):
        t.after = {}
        try:
            t.after.update(evaluate(t, n))
        except (ConnectionError, OverBudget) as error:  # what was learnt is saved all the same
            tqdm.write(f"  not every score at step {n}: {error}")
        metrics |= report.scores(t.after, t.gold)
    t.run.append("rollouts.jsonl", t.recent[-1])
    t.note(metrics)
    report.say(config, n, t.first, metrics, t.recent[-1])
    alarms.sound(t)


def save(t: Training, n: int) -> None:
    """Write a checkpoint if one is due, or if Ctrl-C asked for the end."""
    last, interrupted = n == t.config.steps, ranks.gather(bool(t.interrupted))
    if any(interrupted) or (t.config.save_every and (last or n % t.config.save_every == 0)):
        t.save(n)
    if any(interrupted) and not last:
        stop(t, n, interrupted)


def close(t: Training) -> None:
    """End the tracker's and the judges' connections, and say what the judges were asked."""
    t.track(t.config.steps)
    t.tracker.close()
    for name, scorer in ({"judge": t.judge} | t.gold).items():
        print(f"{name:<9}{scorer.line()}")
        scorer.close()


# --- the command line ---------------------------------------------------------------------------------------


def bench(argv: list[str]) -> None:
    """Time whole steps on the benchmark's work, which no end token cuts short; nothing is written."""
    usage = "train.py --bench [--runs RUNS] [options of training; sizes and judge are the benchmark's own]"
    parser = Parser(usage=usage, description="Time whole steps.")
    parser.add_argument("--bench", action="store_true", help="measure a step; nothing is written")
    parser.add_argument("--runs", type=counted, default=5, help="of which the median is taken")
    parser.add_argument("--operators", action="store_true", help="then show where one more step's time goes")
    options, rest = parser.parse_known_args(argv)
    P, G, T = speed.WORK
    sizes = {"prompts_per_step": P, "group_size": G, "max_new_tokens": T, "judge": "keyword"}
    sizes |= {"answers": "full", "cut_answers": "train"}  # all of them are cut
    config = setup.settle(dataclasses.replace(setup.parse(rest, __doc__), **sizes))[0]
    t = setup.bare(config, Judge(config.judge, "rar-explicit"))
    t.actor = dataclasses.replace(t.actor, ends=frozenset())
    t.questions = {"train": speed.work()}

    def one(clock: Clock) -> None:
        rollouts = explore(t, 0, clock)
        with clock("train"):
            learn(t, rollouts, config.lr)

    speed.training(t, one, options.runs, options.operators)


def main(argv: list[str]) -> None:
    """Train, resume, plan, measure or check, as the command line says."""
    named = {word.split("=")[0] for word in argv}
    with ranks.joined(), alone():
        if "--resume" in named:
            train(*ranks.first(lambda: setup.reopen(argv)))
        elif "--bench" in named:
            bench(argv)
        elif "--plan" in named:
            memory.main(argv, setup.parse)
        elif "--check" in named:
            check.main(argv, cut, loss, step)
        else:
            train(ranks.first(lambda: setup.parse(argv, __doc__)))


if __name__ == "__main__":
    with one_line("train.py", interrupt.farewell, LESS_MEMORY):
        main(sys.argv[1:])
