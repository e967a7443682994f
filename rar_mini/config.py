"""Every setting of a run, of a judge and of asking a server, with its default and its help; the presets.

The text under a field is its help, and `Within` says which numbers it takes. What a run was started with
stands in its config.json; `options.py` turns command lines into these and back.
"""

from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from pydantic import BeforeValidator

from rar_mini.options import Within, flag, refuse_outside
from rar_mini.rubric import Design

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Projection, ...] = get_args(Projection)
Attention = Literal["auto", "loop", "flex"]  # auto: flex on CUDA where it is possible, else loop


@dataclass(frozen=True)
class Asking:
    """How a server is asked."""

    concurrency: Annotated[int, Within(1, 10_000)] = 32
    """requests to a server that are under way at once"""
    timeout: Annotated[float, Within(1e-3, 86_400)] = 120.0
    """seconds that one try of a request may take, counted from its sending"""
    base_url: str | None = None
    """where the server stands, with its /v1; OPENAI_BASE_URL if not given"""
    max_tokens: Annotated[int, Within(1, 1e7)] = 512
    """tokens of a chat model's reply; of a judge, each criterion after the first adds 128"""
    rpm: Annotated[float | None, Within(1e-3, 1e9)] = None
    """requests a minute, at most"""
    tpm: Annotated[float | None, Within(1, 1e12)] = None
    """tokens a minute, at most"""
    retries: Annotated[int, Within(0, 100)] = 8
    """tries after the first where a fault may pass (timeouts, lost connections, HTTP 408, 409, 429, 5xx),
    with pauses that double from a quarter of a second to a minute: a minute in all for 8, an hour and a half
    for 100"""
    parse_retries: Annotated[int, Within(0, 100)] = 2
    """times that a malformed reply is asked for again before it counts as a failure"""
    cache: bool = True
    """remember replies on disk, in RAR_MINI_CACHE or ~/.cache/rar-mini, for this run and others"""
    prices: Path | None = None
    """a JSON file of prices, {"NAME": [read, read from the server's cache, written]}, dollars a million
    tokens"""
    max_usd: Annotated[float | None, Within(0, 1e9)] = None
    """stop before the model has cost more dollars than this. All starts of a run, or of a command that
    keeps rows, count together; `evaluate.py judge`, `replay`, `audit`, `matrix` and `alignment` count from 0
    at each start"""

    def __post_init__(self) -> None:
        """Refuse numbers that no request could use, by the option's name."""
        refuse_outside(self)


@dataclass(frozen=True)
class Options(Asking):
    """How a judge is asked."""

    criteria_per_call: Annotated[int | Literal["all"] | None, Within(1, 1e6)] = None
    """criteria that one request asks about; by default 1 for chat:NAME, as in the paper, else all"""
    threshold: Annotated[float | None, Within(0, 1)] = None
    """make verdicts binary, as in the paper: 1 from this probability on, below it 0"""
    prompts: Path | None = None
    """a TOML file with texts in place of the judge's own (JudgePrompts in rar_mini/prompts.py)"""
    judge_device: str = "auto"
    """where local:NAME and probe:PATH compute: cpu, cuda, cuda:NUMBER, or auto"""


def _several(judges: Any) -> Any:
    """The gold judges in a file: runs had one at most, and a file of options may name one."""
    return tuple([judges] if isinstance(judges, str) else judges or ())


@dataclass(frozen=True)
class Config:
    """Every setting of a run."""

    preset: Literal["cpu", "gpu24", "h100", "paper"] = "cpu"
    """defaults for the other options: `cpu` runs in minutes on a laptop; `paper` has the paper's numbers,
    `h100` fills 80 GB with them, `gpu24` trains a model of 1.5B on 24 GB, or adapters of one of 7B"""
    domain: str = "medical"
    """questions to train on: medical or science, bundled ones or with --data rar released ones; or
    instructions, bundled ones whose every item has a check"""
    data: str | None = None
    """what to train on instead of the bundled questions: rar, the released RaR-Medicine or RaR-Science; a
    JSONL or Parquet file, in rar-mini's form or in HealthBench's; or a directory of Parquet files"""
    revision: str | None = None
    """commit, branch or tag of --data rar; if not given, the commit that rar_mini/hub.py names"""
    skip_bad_rows: bool = False
    """leave out rows of --data that cannot be used, and count them, instead of stopping at the first"""
    hygiene: bool = True
    """leave out, and count, duplicate questions, training questions that another split has too, rows whose
    items all weigh nothing, and rows without a reference answer if the method needs one"""
    policy: str = "smollm2-135m"
    """the model to train: smollm2-135m, a directory, or a hub id such as Qwen/Qwen2.5-7B"""
    judge: str = "auto"
    """who judges: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, probe:PATH, or auto
    (a server if OPENAI_API_KEY or OPENAI_BASE_URL is set, else rules for --domain instructions by
    rar-explicit or sft without --recipe, else keyword)"""
    method: Literal[
        "direct-likert", "reference-likert", "rar-predefined", "rar-explicit", "rar-implicit", "sft"
    ] = "rar-explicit"
    """how judging becomes a reward; see judge.py. Or sft: a step samples and judges nothing, but trains on
    the likelihood of reference answers, one a question; --group-size and the clip do not act, and the
    scores are asked for by rar-explicit"""
    recipe: str | None = None
    """what is changed of Rubrics as Rewards: NAME for lab/NAME.py, or a file PATH.py; its own options are
    --recipe.OPTION (see rar_mini/recipe.py)"""
    design: tyro.conf.OmitArgPrefixes[Design] = Design()
    """what becomes of a rubric before it is judged; with anything but the defaults, rows of signed points
    (HealthBench) are refused"""
    judging: tyro.conf.OmitArgPrefixes[Options] = Options()
    """how it is asked"""
    gold_judge: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """another judge, named and asked alike, that scores the held-out answers of every evaluation too and
    touches no reward: where it does not follow, the policy learns the first judge's weakness. It may be given
    several times, also as --monitor; --max-usd holds for each judge"""
    max_judge_failures: Annotated[float, Within(0, 1)] = 0.2
    """stop, with a checkpoint, when a larger share of the last five steps' responses has no reward"""

    steps: Annotated[int, Within(0, 1e9)] = 12
    """optimizer batches to train for; 0 only scores the policy as it is"""
    prompts_per_step: Annotated[int, Within(1, 1e6)] = 4
    """P, questions in a step, of all processes together"""
    group_size: Annotated[int, Within(1, 1024)] = 8
    """G, rollouts of each question"""
    answers: Literal["auto", "short", "full"] = "auto"
    """what the policy is asked for: short, one short sentence; full, the question alone; auto, short for
    --domain medical and science without --data, --method sft or a recipe that loads its own, else full"""
    train_rollouts: Annotated[int | None, Within(2, 1024)] = None
    """M, rollouts of each question that are trained: those that differ most in reward, while all G make the
    baseline; all G if not given (see docs/runs.md)"""
    resample_ties: Annotated[int, Within(0, 1000)] = 0
    """times that a step may draw further questions for those whose groups tie or have too few rewards, so
    that --prompts-per-step groups teach; the others are dropped from the loss (dynamic sampling, DAPO)"""
    max_new_tokens: Annotated[int, Within(1, 1e7)] = 80
    """tokens after which an answer is cut; the longest reference answer that sft takes"""
    cut_answers: Literal["auto", "train", "mask", "penalise"] = "auto"
    """what an answer cut at --max-new-tokens does: train like any other; mask, judged and in its group's
    baseline but not trained (overlong filtering, DAPO); penalise, a reward of 0, also in scores; auto,
    penalise for the bundled questions without --recipe, --pitfalls signed or --method sft, else train"""
    max_prompt_tokens: Annotated[int, Within(1, 1e7)] = 1024
    """the longest prompt that is taken"""
    long_prompts: Literal["refuse", "skip"] = "refuse"
    """what to do with a longer one, and with a reference answer too long for sft: stop, or leave the question
    out and say how many; neither is ever cut"""
    temperature: Annotated[float, Within(1e-3, 100)] = 1.0
    """for sampling, and for the log-probabilities that are trained"""

    lr: Annotated[float, Within(0, 1)] = 6e-5
    """learning rate after the warm-up; constant from there"""
    warmup: Annotated[float, Within(0, 1)] = 0.1
    """share of the steps over which the learning rate rises linearly"""
    weight_decay: Annotated[float, Within(0, 100)] = 0.0
    """decoupled weight decay of AdamW"""
    max_grad_norm: Annotated[float, Within(1e-9, 1e9)] = 1.0
    """gradients with a larger global norm are scaled down to it"""
    loss_norm: Literal["token", "sequence", "constant", "sum"] = "sequence"
    """what weighs alike: every token, every completion, or every token under a fixed divisor; sum: every
    token, and nothing is divided, for recipes like pop"""
    clip_low: Annotated[float, Within(0, 1)] = 0.2
    """the ratio's clip below 1; acts only after the first inner epoch"""
    clip_high: Annotated[float, Within(0, 1e6)] = 0.2
    """the ratio's clip above 1"""
    beta: Annotated[float, Within(0, 1e3)] = 0.0
    """weight of the KL penalty (k3) to the policy as it was at the start; above 0 a frozen copy is kept, but
    not of adapters, which have their base"""
    reference_device: Literal["auto", "cpu"] = "auto"
    """where the frozen copy (of --beta, or of a recipe) stays: auto, with the policy; cpu, from where a layer
    at a time visits the GPU, which saves its memory and costs a copy over the bus in every step"""
    lora_rank: Annotated[int, Within(0, 65_536)] = 0
    """train adapters of this rank beside frozen weights (LoRA), which want about ten times the --lr of full
    training; 0 trains all weights"""
    lora_alpha: Annotated[float, Within(1e-9, 1e6)] = 32.0
    """an adapter counts alpha / rank times"""
    lora_targets: tuple[Projection, ...] = TARGETS
    """projections with an adapter"""
    lora_save: Literal["merged", "adapter"] = "merged"
    """what a checkpoint holds: merged weights and, in adapter/, the adapters; or these alone"""
    advantage_scale: Literal["group", "none"] = "group"
    """divide advantages by the group's deviation, or not"""
    mismatch_cap: Annotated[float | None, Within(1e-3, 1e6)] = None
    """cap of the importance weight between sampler and trainer numerics; none by default"""
    inner_epochs: Annotated[int, Within(1, 1000)] = 1
    """optimizer steps on each batch of rollouts"""
    tokens_per_batch: Annotated[int, Within(1, 1e9)] = 2048
    """tokens in one forward and backward pass; changes memory and time, not the result"""
    cache_mb: Annotated[int, Within(1, 1e8)] = 2048
    """memory for the sampler's keys and values; more rollouts than fit wait for the next wave"""
    graph: bool = True
    """on CUDA, capture the sampler's step in CUDA graphs; changes time, not the result"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """the numbers of the weights and of the arithmetic; the presets for GPUs have bfloat16"""
    attention: Attention = "auto"
    """over the packed rows of training: loop, a call a segment; flex, one FlexAttention kernel, which needs
    CUDA; or auto, flex where there is CUDA"""
    checkpoint_activations: bool = False
    """keep no layer's activations for the backward pass but compute them again: less memory, a third more
    work"""
    checkpoint_layers: Annotated[int | Literal["auto"] | None, Within(0, 1000)] = None
    """in place of --checkpoint-activations, which then does nothing: so many layers, the first ones, keep
    none; auto: as few as the GPU's free memory allows by the count of --plan, and none on a CPU"""
    device: str = "auto"
    """cpu, cuda, cuda:NUMBER, or auto"""

    day: str | None = None
    """the date that a chat template may show, YYYY-MM-DD; the day on which the run begins if not given"""
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    """decides the order of the questions and all sampling"""
    eval_every: Annotated[int, Within(0, 1e9)] = 100
    """score fresh answers to training and held-out questions before, after and every n steps; 0 never"""
    eval_samples: Annotated[int, Within(1, 1e4)] = 3
    """answers to each question in a score"""
    eval_questions: Annotated[int, Within(1, 1e9)] = 64
    """questions of each split in a score, at most: the same ones every time, spread evenly over the split"""
    save_every: Annotated[int, Within(0, 1e9)] = 8
    """write a checkpoint every n steps and at the end; 0 never"""
    keep: Annotated[int, Within(1, 1e6)] = 2
    """checkpoints that are kept"""
    show_every: Annotated[int, Within(0, 1e9)] = 8
    """print an answer with its verdicts every n steps; 0 never"""
    track: Literal["trackio", "wandb", "tensorboard"] | None = None
    """send metrics, settings and some answers to this tracker too, whenever a checkpoint is written"""
    out: Path | None = None
    """the run's folder, a new one; runs/DOMAIN-DATE-TIME if not given"""

    def __post_init__(self) -> None:
        """Refuse numbers that no run could use, by the option's name."""
        refuse_outside(self)
        try:
            datetime.strptime(self.day or "2000-01-01", "%Y-%m-%d")
        except ValueError:
            raise ValueError(f"--day {self.day}: expected a date, YYYY-MM-DD") from None
        if twice := {judge for judge in self.gold_judge if self.gold_judge.count(judge) > 1}:
            raise ValueError(f"--gold-judge {min(twice)}: expected each judge once, got it twice")
        if not self.lora_targets:
            raise ValueError("--lora-targets: expected a projection or more, got none")
        for field in fields(self) if self.lora_rank == 0 else ():
            if field.name.startswith("lora_") and getattr(self, field.name) != field.default:
                raise ValueError(f"{flag(field.name)} needs --lora-rank > 0")
        if self.group_size == 1 and not self.supervised:
            raise ValueError("--group-size 1: expected 2 or more, because a group of one has no mean to beat")
        for name in ("train_rollouts", "resample_ties") if self.supervised else ():
            if getattr(self, name):
                raise ValueError(f"{flag(name)} needs rollouts, and --method sft has none")
        if self.cut_answers == "penalise" and self.design.pitfalls == "signed":
            raise ValueError("--cut-answers penalise needs rewards in [0, 1]; --pitfalls signed goes below 0")
        if (self.train_rollouts or 0) > self.group_size:
            raise ValueError(
                f"--train-rollouts {self.train_rollouts}: expected at most --group-size {self.group_size}"
            )

    @property
    def supervised(self) -> bool:
        """Whether a step learns from reference answers, with neither rollouts nor rewards."""
        return self.method == "sft"

    def checkpointed(self, layers: int) -> int:
        """How many of a model's layers keep no activations. Raises ValueError if it has fewer than that."""
        asked = self.checkpoint_layers
        assert asked != "auto", "setup.settle decides"
        if asked is None:
            return layers if self.checkpoint_activations else 0
        if asked > layers:
            raise ValueError(f"--checkpoint-layers {asked}: expected at most {layers}, the model's layers")
        return asked


PRESETS = {
    "cpu": Config(),
    # Table 10 of the paper: 16 rollouts, batch 96, 5e-6, 10 % warm-up, 300 steps, temperature 1, 3,584
    # tokens, judge gpt-4o-mini, base policy. Ours, because not stated: 96 = 6 x 16 (the other reading is 96
    # questions, 16 times the cost), 3,584 = 512 + 3,072, beta 0, clip 0.2, no weight decay, bfloat16, one
    # inner epoch.
    "paper": Config(
        preset="paper",
        policy="Qwen/Qwen2.5-7B",
        judge="chat:gpt-4o-mini",
        method="rar-implicit",
        steps=300,
        prompts_per_step=6,
        group_size=16,
        answers="full",
        cut_answers="train",
        max_new_tokens=3072,
        max_prompt_tokens=512,
        long_prompts="skip",
        lr=5e-6,
        tokens_per_batch=8192,
        cache_mb=16384,
        dtype="bfloat16",
        checkpoint_activations=True,
        eval_every=50,
        eval_samples=1,
        save_every=50,
        keep=1,
        show_every=10,
    ),
}
# Both by the plan of memory.py; no run has chosen these numbers. The paper's on 80 GB: larger batches, and a
# step's rollouts in one wave.
PRESETS["h100"] = replace(PRESETS["paper"], preset="h100", tokens_per_batch=16384, cache_mb=20480)
# 24 GB: all of Qwen2.5-1.5B, or adapters of Qwen2.5-7B, with shorter answers.
PRESETS["gpu24"] = replace(
    PRESETS["paper"],
    preset="gpu24",
    policy="Qwen/Qwen2.5-1.5B",
    judge="auto",
    method="rar-explicit",
    steps=100,
    prompts_per_step=4,
    max_new_tokens=1024,
    tokens_per_batch=12288,
    cache_mb=4096,
)
