"""From a command line to a run: settings, what is left to decide, questions, weights, and what is said first.

train.py's loop begins where this ends.
"""

import dataclasses
import itertools
import re
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from rar_mini import (
    checkpoint,
    data,
    files,
    hub,
    interrupt,
    model,
    policy,
    pretrained,
    prompts,
    ranks,
    recipe,
    report,
    scale,
    talk,
)
from rar_mini.checkpoint import Run
from rar_mini.config import PRESETS, Config
from rar_mini.data import Example
from rar_mini.forms import legible, printable
from rar_mini.judging import ledger, probe
from rar_mini.judging.ledger import Account
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.kernels.adamw import AdamW
from rar_mini.options import Parser, command_line, gathered, joined_recipe, refuse_unknown, to_json, words_of
from rar_mini.policy import Policy
from rar_mini.prefix import NARROWEST
from rar_mini.progress import progress_bar
from rar_mini.recipe import Recipe
from rar_mini.rubric import directions
from rar_mini.scores import Rollouts, choose
from rar_mini.tools import memory
from rar_mini.viewing.track import Tracker, refuse_absent

Splits = dict[str, list[Example]]  # train and held_out

OWN = ("rar-explicit", "rar-implicit")
"""The methods that ask about a question's own rubric."""

SPENDING = "spending.jsonl"
"""The record of what the judges have cost. No rewind touches it: money is not earned back."""


@dataclass
class Training:
    """What the steps of a run work with."""

    config: Config
    recipe: Recipe
    actor: Policy
    reference: Policy | None  # what a KL penalty, or a recipe with needs_logp or `told`, compares with
    optimizer: AdamW
    judge: JudgeLike | None = None
    gold: dict[str, JudgeLike] = field(default_factory=dict)  # monitors by name: gold, gold2, ...
    questions: Splits = field(default_factory=dict)
    scored: Splits = field(default_factory=dict)  # questions that are scored before, between and after
    run: Run | None = None
    first: int = 1  # the step to begin with
    planned: int = 0  # the steps that the run had first
    drawn: list[int] = field(default_factory=list)  # how many questions each step has drawn
    rollouts: Rollouts | None = None  # of the step under way
    recent: deque[list[dict[str, Any]]] = field(default_factory=deque)  # rows of the last steps
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl
    alarms: set[str] = field(default_factory=set)  # the names of those that were said
    failed: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # shares without a reward
    before: dict[str, list[float]] = field(default_factory=dict)  # scores by split, at the first step
    after: dict[str, list[float]] = field(default_factory=dict)  # and the newest
    interrupted: list[int] = field(default_factory=list)  # what Ctrl-C has said
    tracker: Tracker | None = None

    def scorers(self, split: str) -> dict[str, JudgeLike]:
        """Who scores fresh answers to the questions of a split, by the score's name."""
        monitors = self.gold.items() if split == "held_out" else ()
        return {split: self.judge} | {f"{split}_{name}": monitor for name, monitor in monitors}

    def note(self, metrics: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl, with what judging came to since the last."""
        judging = self.judge.metrics()
        for name, monitor in self.gold.items():
            own = monitor.metrics()
            if own["judge/questions"]:  # it was asked since the last line
                judging |= {re.sub("(^|/)judge/", rf"\1{name}/", metric): own[metric] for metric in own}
        metrics = metrics | judging
        self.run.append("metrics.jsonl", [metrics])
        self.history.append(metrics)

    def save(self, step: int) -> None:
        """Write a checkpoint of everything that moves."""
        self.run.save(step, self.actor, self.optimizer, self.recipe.state, self.config.keep)
        self.track(step)

    def track(self, step: int) -> None:
        """Let --track have the steps up to this one, which will not be done again."""
        self.tracker.send(step, self.recent[-1] if self.recent else ())


def parse(argv: list[str], description: str | None = None) -> Config:
    """The settings of a command line: the preset's, then those of the file --config, then the options'."""
    early = Parser(add_help=False)
    early.add_argument("--config", type=Path, metavar="FILE.toml")
    given, argv = early.parse_known_args(argv)
    own = words_of(given.config, PRESETS["cpu"]) if given.config else []
    argv = gathered(argv, "--gold-judge", "--monitor")
    argv = joined_recipe([*own, *argv])  # of an option that comes twice the last one counts
    first = Parser(add_help=False)
    first.add_argument("--preset", default="cpu", choices=sorted(PRESETS))
    refuse_unknown(argv, PRESETS["cpu"])
    preset = PRESETS[first.parse_known_args(argv)[0].preset]
    return command_line(Config, argv, "train.py", default=preset, description=description)


def settle(config: Config) -> tuple[Config, str]:
    """Decide what was left to decide, so that a resumed run cannot decide otherwise; and why that judge."""
    if not config.steps and not config.eval_every:
        raise ValueError("--steps 0 only scores the policy: expected --eval-every above 0, got 0")
    # A recipe may bring its own questions or rubrics, whose items may have no check.
    exact = config.data is None and config.domain == data.CHECKED and config.recipe is None
    judge, why = choose(config.judge, exact and config.method in ("rar-explicit", "sft"))
    gold = [choose(monitor)[0] for monitor in config.gold_judge]
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    ranks.claim(device)
    if config.prompts_per_step < ranks.world:
        raise ValueError(
            f"--prompts-per-step {config.prompts_per_step} with {ranks.world} processes: expected a question "
            "for each; raise it, or lower --nproc-per-node"
        )
    if config.attention == "flex" and not device.startswith("cuda"):
        raise ValueError(f"--attention flex has no backward pass on {device}: use loop or auto, or a GPU")
    name = ranks.first(lambda: pretrained.pinned(config.policy))
    judge, *gold = ranks.first(lambda: list(map(_pinned, (judge, *gold))))
    source, revision = config.data, config.revision
    if source == "rar":
        revision = ranks.first(lambda: hub.fetch(config.domain, revision)[1])
    elif revision:
        raise ValueError(f"--revision {revision} only applies to --data rar, got --data {source}")
    elif source:
        source = str(Path(source).absolute())
    G = 1 if config.supervised else config.group_size
    own = config.recipe and recipe.located(config.recipe)
    day = config.day or ranks.first(lambda: date.today().isoformat())
    settled = {"policy": name, "data": source, "revision": revision}
    settled |= {"judge": judge, "gold_judge": tuple(gold)}
    settled |= _auto(config)
    config = dataclasses.replace(config, **settled, recipe=own, device=device, group_size=G, day=day)
    layers = ranks.first(lambda: memory.checkpoint_layers(config))
    return dataclasses.replace(config, checkpoint_layers=layers), why


def _auto(config: Config) -> dict[str, str]:
    """What `auto` means: bundled questions want a short answer, and one that is cut earns nothing."""
    loads = type(recipe.make(config.recipe, config)).load is not Recipe.load  # questions of its own
    bundled = config.data is None and not config.supervised and not loads
    bounded = config.recipe is None and config.design.pitfalls != "signed"  # rewards lie in [0, 1]
    short = bundled and config.domain != data.CHECKED  # whose questions say themselves what they want
    meant = {"answers": "short" if short else "full"}
    meant |= {"cut_answers": "penalise" if bundled and bounded else "train"}
    return {name: value for name, value in meant.items() if getattr(config, name) == "auto"}


def _pinned(judge: str) -> str:
    kind, _, name = judge.partition(":")
    if kind == "probe" and (path := probe.find(name)) == Path(name).expanduser():  # no bundled one
        return f"probe:{path.absolute()}"
    return f"local:{pretrained.pinned(name)}" if kind == "local" else judge


def bare(config: Config, judge: JudgeLike, resume: Path | None = None) -> Training:
    """What a step works with, and no more: neither questions nor a folder."""
    made = recipe.make(config.recipe, config)
    compared = recipe.compared(made)
    # Else nothing of the base is read again.
    if resume is None or config.lora_rank or config.beta or compared:
        ranks.first(lambda: checkpoint.refuse_damaged(config.policy))
    actor, reference = policy.prepare(config, resume, compared)
    talk.refuse(made, actor)
    if config.attention == "flex" and (width := model.head_width(actor.model.config)) < NARROWEST:
        raise ValueError(
            f"--attention flex takes heads of {NARROWEST} channels or more, got {width}: use loop or auto"
        )
    rate, decay = config.lr, config.weight_decay
    optimizer = AdamW(actor.model.parameters(), rate, weight_decay=decay, seed=config.seed)
    return Training(config, made, actor, reference, optimizer, made.judge(judge))


def prepare(
    config: Config, make_judge: Callable[..., JudgeLike], run: Run | None, resume: Path | None
) -> Training:
    """All that a run needs, from settings: a new run, or with `run` that one, from its checkpoint `resume` or
    (without one) from its start. Says what the run is about to do."""
    if run is None:
        refuse_absent(config.track)
    config, why = settle(config)
    prompts.day = config.day
    if config.device.startswith("cuda"):
        print(memory.advice(config))
    # Reference answers need no judge, but the scores do.
    method = "rar-explicit" if config.supervised else config.method
    with run.texts() if run else nullcontext():
        judge, *monitors = (
            make_judge(spec, method, design=config.design, **vars(config.judging))
            for spec in (config.judge, *config.gold_judge)
        )
        t = bare(config, judge, resume)
    t.gold = {"gold" if n == 1 else f"gold{n}": monitor for n, monitor in enumerate(monitors, 1)}
    if resume is not None:
        checkpoint.load_state(resume, t.optimizer, t.recipe.state)
        t.first += checkpoint.step_of(resume)
    if config.steps:
        t.optimizer.make_moments()
    with run.texts() if run else nullcontext():  # a recipe may make questions of the judge's texts
        t.questions = read_questions(t)
    t.scored = {split: data.spread(rows, config.eval_questions) for split, rows in t.questions.items()}
    # Nothing is left to be refused: now the folder is made, or brought to where the run goes on.
    ranks.refuse_unlike("weights", lambda: policy.checksum(t.actor))
    facts = {"judge_prompts": judge.prompts.digest, "judge_texts": texts_of(t, judge)}
    facts |= {"recipe": recipe.digest(config.recipe)}
    facts |= {"base": policy.base_checksum(t.actor, t.reference)}
    facts |= {"end_tokens": t.actor.named(t.actor.ends)}
    facts |= {"questions": {split: fingerprint(rows) for split, rows in t.questions.items()}}
    t.run = ranks.first(lambda: begin(config, run, resume, facts))
    interrupt.run, ranks.way_back = t.run.folder, f"--resume {t.run.folder}"
    t.planned = t.run.written.get("planned_steps") or config.steps
    t.history = checkpoint.records(t.run.folder, "metrics.jsonl")
    drawn = {row["step"]: row.get("groups/drawn") for row in t.history}
    t.drawn = [int(drawn.get(n) or config.prompts_per_step) for n in range(1, t.first)]
    t.judge.carry(Account(t.run.folder / SPENDING))
    for name, monitor in t.gold.items():
        monitor.carry(Account(t.run.folder / SPENDING, name))
    announce(t, why)
    t.tracker = Tracker(t.run, config.track)
    t.recent = deque(t.run.steps("rollouts.jsonl", report.RECENT), report.RECENT)
    if not config.supervised:  # else nothing has a reward
        t.failed.extend(sum(row["reward"] is None for row in rows) / len(rows) for rows in t.recent)
    t.alarms = {row["alarm"] for row in checkpoint.records(t.run.folder, "alarms.jsonl")}
    return t


def texts_of(t: Training, judge: JudgeLike) -> dict[str, str]:
    """The texts that the run's judge is shown, by name; and behind a monitor's name what that one does
    not share with `judge`, such as the digest of a probe."""
    common, texts = judge.texts(), t.judge.texts()
    for name, monitor in t.gold.items():
        own = monitor.texts().items()
        texts = texts | {f"{name}/{key}": text for key, text in own if text != common.get(key)}
    return texts


def begin(config: Config, run: Run | None, resume: Path | None, facts: dict[str, Any]) -> Run:
    """The folder of a new run; or with `run` that one, brought to where it goes on from its checkpoint
    `resume` or starts over."""
    if run is None:
        run = create(config, facts)
        checkpoint.hold(run.folder)
        return run
    account = Account(run.folder / SPENDING)
    spent = ledger.dollars_told(run.steps("metrics.jsonl"))  # whose last lines may go now
    account.refuse_lost(spent)
    run = run.go_on(resume, to_json(config), **facts)
    account.adopt(spent)
    return run


def create(config: Config, facts: dict[str, Any]) -> Run:
    """The folder of a new run. Without --out it is named after questions and time, and if another run has
    that name, it is numbered."""
    if config.out is None:
        names = {None: config.domain, "rar": f"rar-{config.domain}"}
        name = names.get(config.data) or Path(config.data).stem
        made = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for number in itertools.count(1):
            folder = Path("runs") / (made if number == 1 else f"{made}-{number}")
            with suppress(checkpoint.Taken):
                return create(dataclasses.replace(config, out=folder), facts)
    return Run.create(config.out, to_json(config), planned_steps=config.steps, **facts)


def fingerprint(examples: Sequence[Example]) -> dict[str, Any]:
    """What a run that goes on compares its questions with."""
    # Without its check if it has none: so a criterion has the digest that it had before there were checks.
    criteria = [
        [[fact for fact in astuple(item) if fact is not None] for item in example.rubric.criteria]
        for example in examples
    ]
    rows = [
        [e.id, e.messages, e.reference, items] + ([e.hidden] if e.hidden else [])  # as before, without any
        for e, items in zip(examples, criteria, strict=True)
    ]
    return {"rows": len(examples), "digest": files.digest(rows)}


def read_questions(t: Training) -> Splits:
    """The training and held-out questions that fit, after saying what was left out and why."""
    config, notes = t.config, Counter()
    how = {"skip_bad": config.skip_bad_rows, "skip_weightless": config.hygiene, "notes": notes}
    examples = t.recipe.load(**how)
    if config.hygiene:
        examples = data.tidy(examples, notes, references=config.method == "reference-likert")
    if unknown := {example.split for example in examples} - set(data.SPLITS.values()):
        raise ValueError(f"expected questions of the splits train, held_out or test, got {min(unknown)!r}")
    # Data may be split in three: held-out questions are scored while training goes on, test is for the end.
    if tests := sum(example.split == "test" for example in examples):
        notes["questions of the test split left for the end"] = tests
        examples = [example for example in examples if example.split != "test"]
    t.judge.check(examples)
    for monitor in t.gold.values():
        monitor.check([example for example in examples if example.split == "held_out"])
    explicit = config.method == "rar-explicit" and config.cut_answers == "penalise"
    if explicit and any(weight < 0 for example in examples for weight in example.rubric.weights):
        raise ValueError("--cut-answers penalise needs rewards in [0, 1]; signed points go below 0: use mask")
    fitting, limits = [], (config.max_prompt_tokens, config.max_new_tokens)
    for example in progress_bar(examples, desc="reading questions"):
        taught = config.supervised and example.split == "train"
        shown = {"messages": _longest(t, example), "answered": taught}
        if taught and not example.reference:
            notes["training questions left out without a reference answer"] += 1
        elif not (why := policy.too_long(t.actor, example, *limits, **shown)):
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
    judges, example = (t.judge, *t.gold.values()), splits["train"][0]
    ranks.refuse_unlike("judge settings", lambda: [judge.digest(example, "") for judge in judges])
    return splits


def _longest(t: Training, example: Example) -> Sequence[dict[str, str]]:
    """The longest conversation that a score or a rollout of step 1 is shown."""
    views = [t.recipe.messages(example, None, 0)]
    if not t.config.supervised:
        views += [t.recipe.messages(example, 1, g) for g in range(t.config.group_size)]
    views += [t.recipe.told(example)] if recipe.overrides(t.recipe, "told") else []
    return max(views, key=lambda view: sum(len(turn["content"]) for turn in view))


def announce(t: Training, why: str) -> None:
    """Say what the run is about to do, and what its judge costs: for training, as far as the questions that
    are scored can tell, and for the scores."""
    config, train, judged = t.config, t.questions["train"], not t.config.supervised
    answers = (config.steps - t.first + 1) * config.prompts_per_step * config.group_size
    scored, graded = [e for rows in t.scored.values() for e in rows], answers_of_scores(t)
    costs = {
        "training": t.judge.estimate(t.scored["train"], answers if judged else 0, config.max_new_tokens),
        "scores": graded and t.judge.estimate(scored, graded, config.max_new_tokens),
    }
    calls, of_scores = (sum(map(t.judge.calls, rows)) / len(rows) for rows in (train, scored))
    estimates = "".join(f"; {name}: {cost}" for name, cost in costs.items() if cost)
    numbers = {name: len(rows) for name, rows in t.questions.items()}
    asked = calls if judged else 0, round(of_scores * graded)
    lines = [f"recipe   {config.recipe}"] if config.recipe else []
    lines += [
        f"policy   {config.policy}, {t.actor.trained()}, {config.dtype} on {config.device}",
        f"ends     an answer ends at {' or '.join(t.actor.named(t.actor.ends))}",
        f"judge    {t.judge.spec} ({why}){estimates}",
    ]
    held_out = t.scored["held_out"]
    for name, monitor in t.gold.items() if held_out else ():
        share = graded * len(held_out) // len(scored)
        cost = monitor.estimate(held_out, share, config.max_new_tokens)
        lines.append(f"{name:<9}{monitor.spec} scores held-out answers{'; ' if cost else ''}{cost}")
    if config.steps and config.save_every:
        lines.append(report.saving(config.save_every, config.keep, *checkpoint.size(t.actor, t.optimizer)))
    if worded := config.method in OWN and directions(config.design.apply(e.rubric, e.id) for e in train):
        lines.append(f"pitfalls {worded}")
    lines += report.opening(config, numbers, answers, *asked, t.run.folder)
    print("\n".join(map(printable, lines)))


def answers_of_scores(t: Training) -> int:
    """How many answers the training's judge reads for the scores that are left: the policy's at each, and
    before training those of the scale."""
    config, scored = t.config, sum(map(len, t.scored.values()))
    every, steps = config.eval_every, config.steps
    if not every:
        return 0
    scores = steps // every - (t.first - 1) // every + (steps % every > 0) + (t.first == 1)
    fixed = sum(len(texts) for _, texts in scale.answers(t.scored).values()) if t.first == 1 else 0
    return scores * scored * config.eval_samples + fixed


def reopen(argv: list[str]) -> tuple[Config, Run, Path | None]:
    """Settings, folder and checkpoint of the run that `--resume RUN` names."""
    parser = Parser("train.py", description="Continue a run.")
    parser.add_argument("--resume", type=Path, metavar="RUN", required=True, help="the run's folder")
    parser.add_argument("--steps", type=int, help="go on to this many steps")
    parser.add_argument("--step", type=int, help="continue from this step's checkpoint, not the newest")
    changes = "go on although data, prompts, recipe, weights, end tokens, records or checkpoints have changed"
    parser.add_argument("--accept-changes", action="store_true", help=f"{changes}; config.json keeps it")
    parser.add_argument("--max-usd", type=float, help="what each judge may cost, in place of the run's own")
    options = parser.parse_args(argv)
    run = Run.reopen(options.resume)
    checkpoint.hold(run.folder)
    interrupt.run = run.folder
    run.accepts = options.accept_changes
    config = run.settings()
    if options.max_usd is not None:
        judging = dataclasses.replace(config.judging, max_usd=options.max_usd)
        config = dataclasses.replace(config, judging=judging)
    for difference in checkpoint.differences(run.written):
        print(f"train.py: {legible(difference)}; its numbers may differ", file=sys.stderr)
    found, done = run.start(options.step)
    if options.steps is not None:
        if options.steps < max(config.steps, done):
            raise ValueError(f"--steps {options.steps}: expected the run's {config.steps} or more")
        # The warm-up stays as long as it was: a share of more steps would lower the rate again.
        run.written["planned_steps"] = run.written.get("planned_steps", config.steps) or options.steps
        config = dataclasses.replace(config, steps=options.steps)
    if done >= config.steps:
        raise ValueError(f"{run.folder} is finished after {done} steps; pass --steps N to go on")
    print(f"resume   {run.folder} after step {max(done, 0)}")
    return config, run, found
