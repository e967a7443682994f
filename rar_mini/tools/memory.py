"""Will it fit: what sampling, judging and training hold, from a model's config and a run's settings.

    python train.py --plan --policy Qwen/Qwen2.5-7B --gpu 80 [options of training]

All of it is arithmetic over the numbers of a config.json: no weight is read and no GPU is asked. A phase
holds what stays (weights, moments, frozen models) and what comes and goes. Its peak is the highest of some
instants; a part stands in the table as high as it gets, which need not be at that instant. For numbers of s
bytes, with A = H d and B = KV d, a token takes

    2 layers B s                                 in the cache
    4 s D + s (2 A + 2 B + 2 F) + 4 H            in a layer that keeps it for the backward pass
    s D                                          in one that computes it again (--checkpoint-layers)

The second line is two norms, each with its input and what it makes of it; queries, keys, values and what
attention makes of them; gate and up; and the sums of attention. Frozen weights need nothing of what they are
multiplied with; an adapter needs its input and r numbers (x A^T). A CPU has no kernels for norms and SwiGLU:
there a norm keeps 4 D more, its input in float32 beside a normed copy, and SwiGLU s 2 F more.
tests/test_memory_traced.py holds each phase against the code itself, traced.

Sizes are the bounds of a run: every prompt and every answer as long as it may be, every batch full. A plan
leaves room for what it cannot know: the CUDA context and the workspaces of libraries (RESERVE), and the holes
between the allocator's blocks (HOLES).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from rar_mini import pretrained, ranks, recipe
from rar_mini.config import Config
from rar_mini.judging.local import TOKENS
from rar_mini.judging.probe import Head
from rar_mini.kernels import decode
from rar_mini.kernels.logprob import CHUNK_BYTES
from rar_mini.model import WAITING, Decoder, head_width, read_config
from rar_mini.options import Parser, flag, to_json
from rar_mini.sampler import READ

RESERVE = 2**30
"""Bytes of a GPU that a plan leaves free."""

HOLES, HOLES_IN_SEGMENTS = 0.05, 0.13
"""The share of a GPU that a plan leaves free for holes and its own errors, if memory comes in pages
(`ranks.claim`) and in segments. By a simulation holes take 1.2 and 10.8 percent (`pytest -m slow
tests/test_memory_traced.py -k holes`); the one GPU that has measured a plan held 0.4 percent more than it in
training, 2 in sampling."""

PARTS = ("weights", "gradients", "moments", "head gradient", "activations", "log-prob chunk", "KV cache")
PARTS += ("prompt cache", "reference", "local judge")

KNOWN = {
    pretrained.NAME: pretrained.CONFIG,
    "Qwen/Qwen2.5-7B": {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584}
    | {"intermediate_size": 18_944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152_064, "tie_word_embeddings": False, "max_position_embeddings": 131_072},
    "Qwen/Qwen2.5-0.5B": {"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896}
    | {"intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    | {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 32_768},
    "Qwen/Qwen2.5-1.5B": {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536}
    | {"intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 131_072},
}
"""What the config.json of Qwen2.5's sizes says, so that the presets' plans need no network."""

Parts = dict[str, int]
"""Bytes by part."""


class Model:
    """The numbers of a config that memory follows from, for the families that model.py reads."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.layers, self.window = config.num_hidden_layers, config.max_position_embeddings
        self.D, self.F, self.V = config.hidden_size, config.intermediate_size, config.vocab_size
        self.H, d = config.num_attention_heads, head_width(config)
        self.A, self.B = self.H * d, config.num_key_value_heads * d
        self.tied, self.qk_norms = config.tie_word_embeddings, config.model_type == "qwen3"
        with torch.device("meta"):
            decoder = Decoder(config)
        self.parameters, self.layer = (
            sum(p.numel() for p in part.parameters()) for part in (decoder, decoder.model["layers"][0])
        )
        self.read = 0  # layers whose states a probe reads

    def cache(self, s: int) -> int:
        """Bytes of keys and values a token."""
        return 2 * self.layers * self.B * s

    def kept(self, s: int, config: Config) -> int:
        """Bytes a token that a layer keeps for its backward pass."""
        frozen, targets, plain = config.lora_rank > 0, config.lora_targets, on_cpu(config)
        widths = 2 * self.D + (self.A + self.B if self.qk_norms else 0)
        norms = (4 + (0 if frozen else s)) * widths if plain else s * widths
        read = {("q_proj", "k_proj", "v_proj"): self.D, ("gate_proj", "up_proj"): self.D}
        if plain or frozen:  # else the kernel makes it again; and attention keeps o_proj's input
            read |= {("down_proj",): self.F}
        inputs = sum(width for names, width in read.items() if not frozen or {*names} & {*targets})
        low, wide = config.lora_rank * len(targets), 3 if plain else 2
        return norms + s * (inputs + low + 2 * self.A + 2 * self.B + wide * self.F) + 4 * self.H

    def adapters(self, config: Config) -> int:
        """How many numbers the adapters have."""
        D, F, A, B = self.D, self.F, self.A, self.B
        sizes = {"q_proj": D + A, "k_proj": D + B, "v_proj": D + B, "o_proj": A + D}
        sizes |= {"gate_proj": D + F, "up_proj": D + F, "down_proj": F + D}
        return self.layers * config.lora_rank * sum(sizes[name] for name in config.lora_targets)

    def passing(self, s: int) -> int:
        """Bytes a token in a layer that keeps nothing, at its highest: three widths of the feed-forward, and
        four of the residual stream, of which two are what the layer was given."""
        return s * (4 * self.D + 3 * self.F)


def judge_of(spec: str) -> Model | None:
    """The model of a judge in this process: a probe's has the layers that it reads, and no head."""
    kind, _, name = spec.partition(":")
    if kind != "probe":
        return read(name) if kind == "local" else None
    about = Head.read(name).about
    m = read(about.model)
    m.read, unread = len(about.layers), m.layers - max(about.layers)
    m.parameters -= unread * m.layer + (0 if m.tied else m.V * m.D)
    m.layers -= unread
    return m


def read(name: str) -> Model:
    """The model of a name that `pretrained.resolve` takes, from its config.json alone. For adapters it is the
    base that they belong to."""
    if name in KNOWN:
        return Model(AutoConfig.for_model(**KNOWN[name]))
    directory = pretrained.resolve(name, ["config.json", "adapter_config.json"])
    base = pretrained.base(directory)
    return Model(read_config(directory)) if base is None else read(base)


# --- the arithmetic -----------------------------------------------------------------------------------------


def plan(m: Model, config: Config, *, judges: Sequence[Model] = ()) -> dict[str, Parts]:
    """Bytes by phase: each part at its own highest, and `peak`, the highest sum of all parts at one instant.

    `judges` are the models of local judges on the same device.
    """
    s, adapters = itemsize(config), m.adapters(config)
    trainable = adapters or m.parameters
    constant = {"weights": (m.parameters + adapters) * s, "moments": 2 * trainable * s if config.steps else 0}
    constant |= {"reference": m.parameters * s if copied(config) else 0}
    constant |= {"local judge": sum(judge.parameters for judge in judges) * (4 if on_cpu(config) else 2)}
    instants = {"sampling": sampling(m, config), "judging": [judging(judge, config) for judge in judges]}
    instants |= {"training": training(m, config, trainable)}
    phases = {}
    for phase, changing in instants.items():
        held = [constant | parts for parts in changing] or [constant]
        phases[phase] = {part: max(parts.get(part, 0) for parts in held) for part in PARTS}
        phases[phase]["peak"] = max(sum(parts.values()) for parts in held)
    return phases


def itemsize(config: Config) -> int:
    return getattr(torch, config.dtype).itemsize


def rolls_out(config: Config) -> bool:
    return config.steps > 0 and not config.supervised


def on_cpu(config: Config) -> bool:
    return config.device == "cpu"


def copied(config: Config) -> bool:
    """Whether a frozen copy of the policy stays on its device."""
    away = config.reference_device == "cpu" and not on_cpu(config)
    return compared(config) and not config.lora_rank and not away


def compared(config: Config) -> bool:
    """Whether the policy as it was at the start is needed beside the one that is trained."""
    return config.beta > 0 or any(_reads_start(config))


def _reads_start(config: Config) -> tuple[bool, bool]:
    """Whether the recipe needs log-probabilities of whole answers by the policy of the start, and whether
    that reads each batch behind words of its own."""
    return _of_recipe(config.recipe, recipe.digest(config.recipe))


@cache  # a recipe is made in 20 ms, and what fits is found by hundreds of plans
def _of_recipe(spec: str | None, digest: str | None) -> tuple[bool, bool]:
    made = recipe.make(spec)
    return made.needs_logp, recipe.overrides(made, "told")


def sampling(m: Model, config: Config) -> Iterator[Parts]:
    """Reading a wave's prompts, and writing its last tokens: in a step, and in a score."""
    s, n, c = itemsize(config), config.max_prompt_tokens, config.max_new_tokens
    groups = [(config.prompts_per_step, config.group_size)] if rolls_out(config) else []
    groups += [(config.eval_questions, config.eval_samples)] if config.eval_every else []
    # On a CPU in float32 the sampler holds a second copy of the weights, as oneDNN likes them.
    twice = {"weights": 2 * m.parameters * s} if on_cpu(config) and s == 4 else {}
    for questions, samples in groups:
        room = config.cache_mb * 2**20 // m.cache(s)
        whole, rest = divmod(room, n + samples * c)
        part = max(0, (rest - n) // c)
        if whole >= questions:
            whole, part = questions, 0
        prompts, rows = whole + 1 if part else whole, whole * samples + part
        once, token = min(prompts * n, max(READ, n)), m.cache(s)
        read, own = prompts * n * token, rows * c * token
        # Before prompts are read, three masks of all pairs of their tokens are made, a byte a pair.
        yield twice | {"prompt cache": read - once * token, "activations": 3 * once * once}
        yield twice | {"prompt cache": read, "activations": once * m.passing(s)}
        yield twice | {"prompt cache": read, "activations": 2 * once * token}  # by layer, then side by side
        yield twice | {"prompt cache": read, "KV cache": own, "activations": read * 3 // 2}  # on their way
        # Logits, which a kernel draws from; torch makes them float32, their exponentials, and those again in
        # float64 for their sums. Or what the pieces of attention leave; on a CPU scores in float32 as they
        # come and side by side, and their softmax.
        pieces = -(-n // decode.PROMPT) - (-c // decode.OWN)
        attending = m.H * (n + c) * 12 if on_cpu(config) else 4 * (m.A + 2 * m.H) * pieces
        drawing = rows * max((16 if on_cpu(config) else s) * m.V, attending)
        # Twice: the graphs of a wave share a pool, and the plain step before each capture takes its own.
        drawing *= 2 if config.graph and not on_cpu(config) else 1
        yield twice | {"prompt cache": read, "KV cache": own, "activations": drawing}


def judging(judge: Model, config: Config) -> Parts:
    """A local judge's pass: masks, the last feed-forward, or the logits of a question every 32 tokens, or a
    probe's states."""
    s = 4 if on_cpu(config) else 2
    T = max(TOKENS, config.max_prompt_tokens + config.max_new_tokens)
    ends = T // 32 * judge.V * (s + 8) + T * judge.D * s
    if judge.read:  # its states in float32, side by side, and again with length 1
        ends = 3 * judge.read * T * judge.D * 4
    return {"activations": max(3 * T * T, T * judge.passing(s), ends)}


def training(m: Model, config: Config, trainable: int) -> Iterator[Parts]:
    """The instants of a batch, for a step that is one batch and, if it may be more, for the second of them.

    When the second begins, all gradients of the first are there. Those of a single batch come as its
    activations go.
    """
    n, c, P = config.max_prompt_tokens, config.max_new_tokens, config.prompts_per_step
    G = 1 if config.supervised else config.train_rollouts or config.group_size
    most, step = max(config.tokens_per_batch, n + c), P * (n + G * c)
    read = step if config.beta and config.steps else 0
    if _reads_start(config)[0]:  # also of answers that are not trained, drawn again, or only scored
        drawn = P * (1 + config.resample_ties) * (n + config.group_size * c) if config.steps else 0
        scored = config.eval_questions * (n + config.eval_samples * c) if config.eval_every else 0
        read = max(drawn, scored)
    if read:
        yield from referring(m, config, min(most, read), read + n * ((read - 1) // most))
    if not config.steps:
        return
    yield from batch(m, config, min(most, step), trainable, alone=True)
    if step > most:  # batches are even: each of two has half of the completions
        half = -(-P * G // 2)
        yield from batch(m, config, min(most, half * c + -(-half // G) * n), trainable, alone=False)


def referring(m: Model, config: Config, T: int, step: int) -> Iterator[Parts]:
    """The reference's reading of a step's tokens, T at a time, before there is anything of a batch. From the
    CPU each layer comes for all of them, which wait for the next (`Decoder.each`), and at last the head."""
    s, (_, chunk) = itemsize(config), chunked(m, config, T)
    layers = {"activations": T * m.passing(s)}
    logits = {"activations": 2 * T * s * m.D, "log-prob chunk": chunk}
    if not copied(config) and not config.lora_rank:
        token, head = 2 * s * (m.D + m.A // m.H), s * m.V * m.D
        waits = max(T, min(step, WAITING // token)) * token
        stays = head if waits < step * token else 0  # for those that are read later
        layers |= {"activations": layers["activations"] + waits, "reference": s * m.layer + stays}
        logits |= {"activations": logits["activations"] + waits, "reference": head}
    yield layers
    yield logits


def chunked(m: Model, config: Config, T: int) -> tuple[int, int]:
    """Into how many chunks the logits of T tokens are cut, and the bytes of one."""
    row = m.V * itemsize(config)
    fit = max(1, CHUNK_BYTES["cpu" if on_cpu(config) else "cuda"] // row)
    chunks = -(-T // fit)
    return chunks, -(-T // chunks) * row


def batch(m: Model, config: Config, T: int, trainable: int, *, alone: bool) -> Iterator[Parts]:
    """The instants of T tokens: the head's gradient, the last layer's and the first's, the embedding's."""
    s, n, c = itemsize(config), config.max_prompt_tokens, config.max_new_tokens
    gradients, frozen = trainable * s, config.lora_rank > 0
    head = 0 if frozen else s * m.V * m.D
    waits = head if m.tied else 0  # for the embedding's, with which it is one
    # The loop's attention keeps scores, and queries, keys and values in float32; a key once an answer.
    loops = config.attention == "loop" or on_cpu(config)
    plain = 4 * (m.H * (n + c) + m.A + 2 * m.A * (n + c) // c) if loops else 0
    layer = T * (m.kept(s, config) + plain)
    again = config.checkpointed(m.layers)  # layers
    kept = again * T * s * m.D + (m.layers - again) * layer
    # The final norm, the head's rows, cos and sin.
    norm = (4 + (0 if frozen else s)) * m.D if on_cpu(config) else s * m.D
    ends = T * (norm + s * m.D + 2 * s * m.A // m.H)
    # Gradients within a feed-forward: three widths, one of which takes the memory of down_proj's input where
    # that was kept; then its weight's gradient, before which a GPU makes that input again.
    spared = "down_proj" in config.lora_targets if frozen else on_cpu(config)
    wide = (2 if spared else 3) * T + (0 if frozen else m.D if on_cpu(config) else max(m.D, T))
    moving = s * (m.F * wide + 2 * m.D * T)
    chunks, chunk = chunked(m, config, T)
    # Over several chunks a bfloat16 gradient adds up in float32, and each product stands beside it.
    summed = head if chunks == 1 or s == 4 else head * (4 + s) // s
    before, first, last = (0, head - waits, gradients - head) if alone else [gradients] * 3
    border = last - (last - first) * again // m.layers  # when the layers above those are done
    held = {"gradients": before, "activations": kept + ends, "log-prob chunk": chunk}
    yield held | {"head gradient": summed, "activations": kept + ends + T * s * m.D}
    yield {"gradients": first, "head gradient": waits, "activations": kept + moving}
    yield {"gradients": border, "head gradient": waits, "activations": again * T * s * m.D + layer + moving}
    yield {"gradients": last, "head gradient": waits, "activations": layer + moving}
    # The embedding's gradient; if the head is tied, also the head's and their sum.
    yield {"gradients": gradients, "head gradient": 2 * waits + (0 if alone else head)}
    if _reads_start(config)[1]:  # it reads as many tokens while activations wait
        kept_chunk = chunk if chunks == 1 else 0
        layers = {"activations": kept + ends + T * m.passing(s), "log-prob chunk": kept_chunk}
        logits = {"activations": kept + ends + T * s * m.D, "log-prob chunk": chunk + kept_chunk}
        if not copied(config) and not frozen:  # a layer at a time comes from the CPU, and the head at last
            layers["reference"], logits["reference"] = s * m.layer, s * m.V * m.D
        yield held | layers
        yield held | logits


# --- what fits ----------------------------------------------------------------------------------------------


def obstacles(m: Model, config: Config, room: float, judges: Sequence[Model] = ()) -> list[str]:
    """What keeps a run out of `room` bytes, in words; nothing if it fits."""
    config = replace(config, checkpoint_layers=fewest(m, config, room, judges))
    peaks = {phase: parts["peak"] for phase, parts in plan(m, config, judges=judges).items()}
    reasons = [f"{phase} needs {gb(peak)} GB" for phase, peak in peaks.items() if peak > room]
    if rollout(m, config) > config.cache_mb:
        reasons.append(f"one rollout needs --cache-mb {rollout(m, config)}")
    if config.max_new_tokens >= m.window:
        reasons.append(f"an answer of {config.max_new_tokens} tokens fills the model's window of {m.window}")
    return reasons


def fewest(m: Model, config: Config, room: float, judges: Sequence[Model] = ()) -> int | None:
    """What --checkpoint-layers auto means: the fewest with which training fits, or all if it never does."""
    if config.checkpoint_layers != "auto":
        return config.checkpoint_layers

    def peak(layers: int) -> int:
        tried = replace(config, checkpoint_layers=layers)
        return plan(m, tried, judges=judges)["training"]["peak"]

    return next((n for n in range(m.layers) if peak(n) <= room), m.layers)


def rollout(m: Model, config: Config) -> int:
    """MiB of cache for one prompt and its answer."""
    return -(-m.cache(itemsize(config)) * (config.max_prompt_tokens + config.max_new_tokens) // 2**20)


Fits = Callable[[Config], bool]


def largest(fits: Fits, config: Config, name: str, low: int, high: int) -> int | None:
    """The largest value in [low, high] with which a run fits, the other settings as they are."""
    # Begin at the run's own value if that fits: shorter answers may need more, as more prompts share a wave.
    own = min(max(low, getattr(config, name)), high)
    low, high = (own, high) if fits(replace(config, **{name: own})) else (low, own)
    if not fits(replace(config, **{name: low})):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(config, **{name: middle})) else (low, middle - 1)
    return low


def limits(m: Model, config: Config, fits: Fits) -> dict[str, int | None]:
    """The largest group, answer and batch with which a run fits, each alone, if the run has them at all."""
    answer = max(config.max_new_tokens, m.window - config.max_prompt_tokens)
    G = config.train_rollouts or config.group_size
    step = config.prompts_per_step * (config.max_prompt_tokens + G * config.max_new_tokens)
    ends = {"group_size": (config.train_rollouts or 2, 1024)} if rolls_out(config) else {}
    ends |= {"max_new_tokens": (1, answer)} | ({"tokens_per_batch": (1, step)} if config.steps else {})
    return {name: largest(fits, config, name, low, high) for name, (low, high) in ends.items()}


def remedies(m: Model, config: Config, fits: Fits) -> list[dict[str, Any]]:
    """The smallest sets of options that make a run fit, with values as near to the run's own as can be."""
    least = {"checkpoint_layers": "auto", "tokens_per_batch": 1, "cache_mb": rollout(m, config)}
    answer = min(-(-config.max_new_tokens // 8), m.window - 1)
    least |= {"group_size": min(config.train_rollouts or 2, config.group_size), "max_new_tokens": answer}
    least |= {"reference_device": "cpu"} if copied(config) else {}
    least |= {"beta": 0, "dtype": "bfloat16", "lora_rank": config.lora_rank or 16}
    least = {name: value for name, value in least.items() if value != getattr(config, name)}
    for size in range(1, len(least) + 1):
        sets = []
        for names in combinations(least, size):
            tried = replace(config, **{name: least[name] for name in names})
            if fits(tried):
                for name in names:  # raise them again, one after the other
                    own = getattr(config, name)
                    if isinstance(own, int) and least[name] != "auto" and least[name] < own:
                        tried = replace(tried, **{name: largest(fits, tried, name, least[name], own)})
                sets.append({name: getattr(tried, name) for name in names})
        if sets:
            return sets
    return []


# --- the plan in words --------------------------------------------------------------------------------------


def inhabitants(config: Config, gpu: float, holes: float = HOLES) -> tuple[Model, int, list[Model]]:
    """The policy and the local judges that share a GPU of `gpu` bytes, and the room there, in the middle."""
    specs = () if config.judging.judge_device == "cpu" else (config.judge, *config.gold_judge)
    return read(config.policy), int(gpu * (1 - holes)) - RESERVE, list(filter(None, map(judge_of, specs)))


def checkpoint_layers(config: Config) -> int | None:
    """A run's --checkpoint-layers; auto goes by what its GPU has free. On a CPU it takes none: nobody knows
    what is free there, and to compute again costs time."""
    if config.checkpoint_layers != "auto":
        return config.checkpoint_layers
    if on_cpu(config):
        return 0
    m, room, judges = inhabitants(config, *_free(config))
    return fewest(m, config, room, judges)


def _free(config: Config) -> tuple[int, float]:
    """The bytes that are free on a run's GPU, and the share of them that may be holes."""
    return torch.cuda.mem_get_info(config.device)[0], HOLES if ranks.pages else HOLES_IN_SEGMENTS


def document(config: Config, gpu: float, holes: float = HOLES) -> dict[str, Any]:
    """All there is to say about a run on a GPU of `gpu` bytes, in bytes; `table` says it in words."""
    config = replace(config, group_size=1) if config.supervised else config
    m, room, judges = inhabitants(config, gpu, holes)

    def fits(tried: Config) -> bool:
        return not obstacles(m, tried, room, judges)

    def trained(layers: int) -> Parts:
        return plan(m, replace(config, checkpoint_layers=layers), judges=judges)["training"]

    asked, reasons = config, obstacles(m, config, room, judges)
    config = replace(config, checkpoint_layers=fewest(m, config, room, judges))
    some = config.checkpointed(m.layers)
    ways = {"checkpointed activations": m.layers, "all activations": 0}
    ways |= {f"{some} of {m.layers} layers checkpointed": some} if some not in ways.values() else {}
    return {
        "settings": to_json(config),
        "parameters": m.parameters,
        "trained": m.adapters(config) or m.parameters,
        "gpu": int(gpu),
        "holes": holes,
        "room": room,
        "phases": plan(m, config, judges=judges),
        "training": {how: trained(layers) for how, layers in ways.items()},
        "obstacles": reasons,
        "remedies": remedies(m, asked, fits) if reasons else [],
        "largest": limits(m, asked, fits),
    }


def table(report: dict[str, Any]) -> str:
    """A `document` in words; its GB are 10^9 bytes."""
    s, phases = report["settings"], report["phases"]
    answers = "{prompts_per_step} x {group_size} answers of {max_new_tokens} tokens at most".format(**s)
    model = f"{s['policy']}, {report['parameters'] / 1e9:.3f}B parameters in {s['dtype']}"
    if s["lora_rank"]:
        model += f" and adapters of {report['trained'] / 1e9:.3f}B"
    lines = [f"memory   {model}; {answers}, to prompts of {s['max_prompt_tokens']}"]
    lines.append(f"{'  GB':<18}" + "".join(f"{phase:>10}" for phase in phases))
    for part in (*PARTS, "peak"):
        cells = (f"{gb(x) if x else '-':>10}" for x in (parts[part] for parts in phases.values()))
        lines.append(f"  {part:<16}{''.join(cells)}")
    peaks = (
        f"{gb(parts['peak'])} with {how} ({gb(parts['activations'])})"
        for how, parts in report["training"].items()
    )
    if s["steps"]:
        lines.append(f"  training peaks at {', '.join(peaks)}")
    less = f"{report['holes']:.0%} and {RESERVE / 2**30:.0f} GiB for what no plan knows"
    lines.append(f"  room: {gb(report['room'])} GB, {report['gpu'] / 2**30:.1f} GiB less {less}")
    most = (option(name, value) for name, value in report["largest"].items() if value)
    lines.append(f"  the most that fits, each alone: {', '.join(most) or 'nothing'}")
    if report["obstacles"]:
        ways = " or ".join(" ".join(option(*pair) for pair in way.items()) for way in report["remedies"])
        lines.append(f"  it does not fit: {', '.join(report['obstacles'])}")
        lines.append(f"  what makes it fit: {ways or 'no option; a smaller --policy, or a larger GPU'}")
    return "\n".join(lines)


def advice(config: Config) -> str:
    """The table of a run on this GPU, whose free memory counts. If the plan says no, a line above the table
    says so, and the run goes on all the same."""
    report = document(config, *_free(config))
    if not report["obstacles"]:
        return table(report)
    doubt = f"plan     this run may not fit on {config.device}; it goes on, for a plan is only arithmetic"
    return f"{doubt}\n{table(report)}"


def option(name: str, value: Any) -> str:
    return flag(name) + ("" if value is True else f" {value}")


def gb(x: float) -> str:
    return f"{x / 1e9:.2f}"


def main(argv: Sequence[str], parse: Callable[[list[str]], Config]) -> None:
    """`train.py --plan`. `parse` makes settings of the options that are train.py's own."""
    usage = "train.py --plan --gpu GIB [--json] [options of training]"
    about = "What a run would hold in memory, and what would make it fit; needs no GPU."
    parser = Parser(usage=usage, description=about)
    parser.add_argument("--plan", action="store_true", help="print the plan; nothing is loaded or written")
    parser.add_argument("--gpu", type=float, metavar="GIB", required=True, help="the GPU's memory in GiB")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, sizes in bytes")
    options, rest = parser.parse_known_args(argv)
    if not 0 < options.gpu < 1e6:
        raise ValueError(f"--gpu {options.gpu:g}: expected the memory of a GPU in GiB")
    has_settings = any(word.split("=")[0] in ("--preset", "--config") for word in rest)
    config = parse(rest if has_settings else ["--dtype", "bfloat16", *rest])
    if config.device == "cpu":
        raise ValueError("--plan only covers GPUs; drop --device cpu")
    report = document(replace(config, device="cuda"), options.gpu * 2**30)
    print(json.dumps(report, indent=2) if options.json else table(report))
