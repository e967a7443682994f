"""What this machine makes of the code, in minutes and on one page: `python train.py --check`.

    python train.py --check                  # with the default policy, on a GPU if there is one
    python train.py --check --random 7b      # with random weights of that size, made on the device
    python train.py --check gap decoding     # these checks alone

Each check is a process with a limit of time, and writes its line when it is done: one that crashes, hangs or
fills the memory stops no other. The page is Markdown, to be pasted into an issue; its last line is JSON.

    machine      versions, compiler, device, free memory
    kernels      every kernel against float64 truth, or bit for bit its reference; on a CPU interpreted
    attention    FlexAttention's gradients against the loop's; on a CPU the loop's, and flex's forward pass
    long         FlexAttention at 16,384 tokens: it fits, and takes milliseconds
    decoding     captured decoding against plain, in float32; nothing waits within a step
    repeat       two steps twice, and once saved and loaded between: equal weights, in two processes
    gap          log-probabilities of sampler and trainer agree, and two passes of the trainer are equal
    memory       the peaks of sampling and training against the plan's
    speed        decoding and training, beside reading weights and keys and beside matrix products
    ranks        sums over processes: NCCL over several GPUs, gloo over two processes on a CPU
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig

from rar_mini import grpo, model, pretrained, ranks
from rar_mini.config import Config
from rar_mini.files import without_nan
from rar_mini.kernels import adamw, advantage, backend, bench, decode, draw, logprob, norm, rope, swiglu
from rar_mini.kernels.adamw import AdamW
from rar_mini.model import Decoder, head_width
from rar_mini.options import Parser
from rar_mini.prefix import Packed, Tree, pack
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion, Request, Settings, Wave, sample, uniforms
from rar_mini.scores import Rollouts
from rar_mini.setup import Training
from rar_mini.tools import memory

RANDOM = {size: f"Qwen/Qwen2.5-{size.upper()}" for size in ("0.5b", "1.5b", "7b")}
BIAS = 400.0  # the size of random key biases
ROOT = Path(__file__).parents[2]
WORDS = 400  # characters of an error that a line of the page shows

Numbers = dict[str, Any]


class Failed(Exception):
    """A check that did not hold: what was expected, what came, and the numbers."""

    def __init__(self, words: str, **numbers: Any) -> None:
        super().__init__(words)
        self.numbers = numbers


class NotHere(Exception):
    """A check that this machine cannot make, and what it would need."""


@dataclass
class Row:
    """A line of the page."""

    check: str
    result: str  # ok, FAILED or not here
    words: str
    seconds: float = 0.0
    numbers: Numbers = field(default_factory=dict)

    def line(self) -> str:
        words = " ".join(self.words.split()).replace("|", "\\|")
        return f"| {self.check} | {self.result} | {self.seconds:.0f} | {words} |"


@dataclass(frozen=True)
class Bench:
    """What the checks work with; `cut`, `loss` and `step` are train.py's own."""

    policy: str
    random: str | None
    device: str
    dtype: str
    cut: Callable[..., list[grpo.MicroBatch]]
    loss: Callable[..., dict[str, float]]
    step: Callable[..., None]

    @property
    def name(self) -> str:
        """The name by which the policy's config is looked up."""
        return self.policy if self.random is None else RANDOM[self.random]

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def decoder(self, dtype: str | None = None) -> Decoder:
        """The policy's weights, the same at every call; by default in the run's dtype."""
        kind = getattr(torch, dtype or self.dtype)
        if self.random is None:
            return model.load(pretrained.resolve(self.policy), kind, self.device)
        return random_weights(AutoConfig.for_model(**memory.KNOWN[self.name]), kind, self.device)


def random_weights(config: transformers.PretrainedConfig, dtype: torch.dtype, device: str) -> Decoder:
    """Weights of the usual size; and key biases of hundreds in the channels that rotation turns slowest, as
    Qwen2's are. They shift all scores of a token alike, out of the range that low precision holds."""
    with torch.device("meta"):
        decoder = Decoder(config).to(dtype)
    decoder = decoder.to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    half = head_width(config) // 2
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if p.ndim == 1 and not name.endswith("bias"):
                p.fill_(1.0)
                continue
            p.normal_(0, 0.02, generator=random)
            if name.endswith("k_proj.bias"):
                p.view(-1, 2, half)[:, :, half - half // 8 :] *= BIAS / 0.02
    return decoder


def hold(true: bool, words: str, **numbers: Any) -> None:
    if not true:
        raise Failed(words, **numbers)


def worst(errors: Iterable[float]) -> float:
    """The largest, or NaN if there is one: max passes over a NaN that is not the first."""
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=0.0)


def apart(a: Tensor, b: Tensor) -> float:
    """How far a is from b, by norm and relative to b, in float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- the checks ---------------------------------------------------------------------------------------------


def machine(b: Bench) -> tuple[str, Numbers]:
    cc = shutil.which(os.environ.get("CC", "")) or shutil.which("cc") or shutil.which("gcc")
    facts = {"python": platform.python_version(), "torch": str(torch.__version__)}
    facts |= {"triton": backend.triton and backend.triton.__version__}
    facts |= {"transformers": transformers.__version__, "system": platform.platform(), "compiler": cc}
    if b.on_gpu:
        p = torch.cuda.get_device_properties(b.device)
        free, whole = torch.cuda.mem_get_info(b.device)
        facts |= {"device": p.name, "capability": f"{p.major}.{p.minor}", "cuda": torch.version.cuda}
        facts |= {"multiprocessors": p.multi_processor_count, "free_gib": round(free / 2**30, 1)}
        facts |= {"shared_memory": p.shared_memory_per_block_optin, "memory_gib": round(whole / 2**30, 1)}
        facts |= {"memory_in_pages": ranks.pages}
    else:
        facts |= {"device": f"CPU, {torch.get_num_threads()} threads", "cores": os.cpu_count()}
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    if b.on_gpu and (backend.triton is None or cc is None):
        raise Failed(f"expected triton and a C compiler, which it needs (apt install gcc): {words}", **facts)
    return words, facts


def kernels(b: Bench) -> tuple[str, Numbers]:
    if backend.triton is None and not b.on_gpu:
        raise NotHere("there is no triton, which also interprets kernels on a CPU")
    numbers = {}
    small = not b.on_gpu  # interpreted, a kernel takes a millisecond a tile
    N, D, V = (24, 32, 5003) if small else (300, 896, 151_665)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        random = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(n, D, generator=random).to(b.device, dtype) for n in (N, V))
        target = torch.randint(V, (N,), generator=random).to(b.device)
        up = torch.randn(2, N, generator=random).to(b.device)
        weight /= D**0.5

        def results(fn: Callable, h: Tensor, w: Tensor, target=target, up=up) -> list[Tensor]:  # noqa: ANN001
            leaves = [x.detach().requires_grad_() for x in (h, w)]
            logp, entropy = fn(*leaves, target)
            total = (logp * up[0]).sum() + (entropy * up[1]).sum()
            return [logp, entropy, *torch.autograd.grad(total, leaves)]

        truth = results(logprob_of, hidden.double(), weight.double())
        chunk = 8 * V * hidden.element_size()  # several chunks
        ours = results(partial(logprob.linear_logprob, chunk_bytes=chunk), hidden, weight)
        errors = [apart(*pair) for pair in zip(ours, truth, strict=True)]
        numbers[f"logprob {str(dtype)[6:]}"] = errors
        off = worst(errors)
        hold(off <= bound, f"log-probabilities off by {off:.1e}, at most {bound:g} expected", **numbers)
    numbers["draw"] = drawn(b, 3 if small else 96, V)
    off = worst(numbers["draw"])
    hold(off <= 1e-6, f"draws off by {off:.1e}, at most 1e-6 expected", **numbers)
    verdict, w = torch.rand(6, 16, 12, device=b.device), torch.randn(6, 12, device=b.device)
    ours = advantage.group_advantage(verdict, w)
    truth = advantage.reference(verdict.double(), w.double(), "group")
    numbers["advantage"] = [apart(*pair) for pair in zip(ours, truth, strict=True)]
    off = worst(numbers["advantage"])
    hold(off <= 1e-5, f"advantages off by {off:.1e}, at most 1e-5 expected", **numbers)
    n = 3 * adamw.BLOCK + 5
    p, g, m, v = (torch.randn(n, device=b.device).bfloat16() for _ in range(4))
    v = v.abs()
    twins, by = [x.clone() for x in (p, m, v)], adamw.factors(3, 0.5, 1e-3, (0.9, 0.999), 1e-8, 0.1)
    adamw._launch(p, g, m, v, by, 7, 3, 1)
    adamw.reference(twins[0], g, *twins[1:], by, adamw.random_bits(7, 3, 1, 0, n, p.device))
    equal = all(map(torch.equal, (p, m, v), twins))
    total, right = g.clone(), adamw.random_bits(7, 3, 1, 0, n, p.device, 2)[0]
    adamw.add_(total, p, seed=7, step=3, index=1, turn=2)
    equal &= torch.equal(total, adamw.round_stochastically(g.float() + p.float(), right))
    hold(equal, "AdamW is not bit for bit its reference", **numbers)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        off = numbers[f"decoding {str(dtype)[6:]}"] = decoded(dtype, b.device)
        hold(worst(off) <= bound, f"a step's attention or rotation is off by {worst(off):.1e}", **numbers)
    errors = ", ".join(f"{name} {worst(errors):.0e}" for name, errors in numbers.items())
    words = f"{'interpreted: ' if small else ''}{errors}; AdamW and its sums equal their reference"
    more, layers = layer_kernels(b)
    return f"{words}; {more}", numbers | layers


def layer_kernels(b: Bench) -> tuple[str, Numbers]:
    """The norm of a sum and SwiGLU, both ways: no further from float64 than plain torch but for a rounding of
    float32 and a tenth of one in their dtype; of bfloat16 a whole one under the interpreter, which cuts where
    a GPU rounds. On a GPU with milliseconds, beside plain torch's."""
    (N, D), numbers, words = ((8192, 3584) if b.on_gpu else (40, 64)), {}, []
    norms = [partial(fn, eps=1e-6) for fn in (norm.add_rms_norm, norm.plain, norm.late)]
    for dtype in (torch.float32, torch.bfloat16):
        random, kind = torch.Generator().manual_seed(0), str(dtype)[6:]
        x, y, up = (torch.randn(N, D, generator=random).to(b.device, dtype) for _ in range(3))
        weight = (1 + 0.1 * torch.randn(D, generator=random)).to(b.device, dtype)
        room = torch.finfo(torch.float32).eps + (0.1 if b.on_gpu else 1.0) * torch.finfo(dtype).eps
        for name, given, (fn, plain, exact) in (
            ("norm", (x, y, weight), norms),
            ("SwiGLU", (x, y), (swiglu.swiglu, swiglu.reference, swiglu.reference)),
        ):
            truth = both_ways(exact, [tensor.double() for tensor in given], up.double())
            ours, theirs = ([*map(apart, both_ways(f, given, up), truth)] for f in (fn, plain))
            numbers[f"{name} {kind}"] = {"errors": ours, "plain": theirs}
            off = worst(a - c for a, c in zip(ours, theirs, strict=True))
            hold(off <= room, f"{name} in {kind} is off by {off:.1e} more than plain torch", **numbers)
            if b.on_gpu and dtype == torch.bfloat16:
                ms = [1e3 * bench.seconds(partial(both_ways, f, given, up), "cuda") for f in (fn, plain)]
                numbers[f"{name} ms"] = ms
                words.append(f"{name} of {N} x {D} both ways {ms[0]:.2f} ms, plain {ms[1]:.2f}")
    near = "no further off than" if b.on_gpu else "within a rounding of"
    return "; ".join([f"norm and SwiGLU {near} plain torch", *words]), numbers


def both_ways(fn: Callable, given: Sequence[Tensor], up: Tensor) -> list[Tensor]:
    """What a function makes of its inputs, and their gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = fn(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    return [*out, *torch.autograd.grad(out, leaves, [up] * len(out))]


def drawn(b: Bench, R: int, V: int) -> list[float]:
    """How far the draw's log-probabilities are from float64's, and its numbers from what their tokens own."""
    logits = 3 * torch.randn(R, V, generator=torch.Generator().manual_seed(0)).to(b.device)
    uniform = torch.linspace(0, 0.999, R, dtype=torch.float64).to(b.device)
    tokens, logp = draw.draw(logits, uniform, 0.5)
    truth = (logits.double() / 0.5).log_softmax(-1)  # (R, V)
    own, cdf = (x.gather(-1, tokens[:, None])[:, 0] for x in (truth, truth.exp().cumsum(-1)))
    outside = torch.maximum(cdf - own.exp() - uniform, uniform - cdf).clamp_min(0)
    return [apart(logp, own), outside.max().item()]


def logprob_of(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What `linear_logprob` computes, written out."""
    log_p = (hidden @ weight.T).log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def decoded(dtype: torch.dtype, device: str) -> list[float]:
    """How far a step's attention, queries that are turned and keys that are kept are from float64."""
    cache, q = decode.drawn((40, 9, 130), [0, 2, 0, 2, 1, 2], (14, 2), 64, 270, 300, dtype, device)
    names = ("keys", "values", "shared_keys", "shared_values")
    wide = replace(cache, **{name: getattr(cache, name).double() for name in names})
    errors = [apart(cache(0, q, q, q), wide(0, q.double(), q, q))]
    angles = torch.arange(6 * 32.0, device=device).view(6, 1, 32)
    cos, sin = (torch.cat(x, -1).to(dtype) for x in ([angles.cos()] * 2, [-angles.sin(), angles.sin()]))
    k = q[:, :2]
    turned, _ = cache.rotate(0, q, k, k, cos, sin)
    kept = cache.keys[0, :, 270].view(6, 2, 64)
    right = (rope.reference(x.double(), cos.double(), sin.double()) for x in (q, k))
    return errors + [apart(*pair) for pair in zip((turned, kept), right, strict=True)]


LAYOUTS = ((14, 2, 64), (28, 4, 128))  # query heads, key heads, width: seven queries a key, as Qwen2.5's
TREES = ((129, []), (200, [60]), (100, [90, 90, 90]), (513, [9 + 7 * (i % 12) for i in range(33)]))


def tree(root: int, branches: Sequence[int]) -> Tree:
    whole = Tree()
    top = whole.add([0] * root)
    for length in branches:
        whole.add([0] * length, top)
    return whole


def passed(packed: Packed, inputs: Sequence[Tensor], up: Tensor, again: bool = False) -> list[Tensor]:
    """Attention's output for q, k and v, and its gradients; with `again` it is computed anew for the backward
    pass."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    attend = partial(packed.attend, 0)
    out = checkpoint(attend, *leaves, use_reentrant=False) if again else attend(*leaves)
    return [out, *torch.autograd.grad(out, leaves, up)]


def attention(b: Bench) -> tuple[str, Numbers]:
    from torch._dynamo.utils import counters  # counts what is compiled; no public name does

    own, numbers, before = "flex" if b.on_gpu else "loop", {}, counters["stats"]["unique_graphs"]
    dtypes = ((torch.float32, 1e-4), (torch.bfloat16, 2e-2))
    for dtype, bound in dtypes:
        for H, KV, d in LAYOUTS:
            for root, branches in TREES:
                random, T = torch.Generator().manual_seed(0), root + sum(branches)
                shapes = ((T, H, d), (T, KV, d), (T, KV, d), (T, H, d))
                *qkv, up = (torch.randn(s, generator=random).to(b.device, dtype) for s in shapes)
                packed = pack(tree(root, branches), b.device, own)
                truth = passed(
                    pack(tree(root, branches), b.device, "loop"), [x.double() for x in qkv], up.double()
                )
                first, second, third = (passed(packed, qkv, up, again) for again in (False, False, True))
                where = f"{str(dtype)[6:]}, {H} heads of {d}, {T} tokens, {len(branches)} branches"
                error = worst(apart(*pair) for pair in zip(first, truth, strict=True))
                numbers[where] = error
                hold(error <= bound, f"{own} off by {error:.1e} in {where}: at most {bound:g}", **numbers)
                for other in (second, third):
                    equal = all(map(torch.equal, first, other))
                    hold(equal, f"{own}'s second backward pass differs in {where}", **numbers)
                if not b.on_gpu:
                    with torch.no_grad():
                        flex = pack(tree(root, branches), b.device, "flex").attend(0, *qkv)
                    hold(apart(flex, truth[0]) <= bound, f"flex's forward pass is off in {where}", **numbers)
    compiled, most = counters["stats"]["unique_graphs"] - before, len(dtypes) * len(LAYOUTS)
    hold(compiled <= most or not b.on_gpu, f"compiled {compiled} times, {most} expected", **numbers)
    errors = ", ".join(
        f"{name} {worst(e for where, e in numbers.items() if where.startswith(name)):.0e}"
        for name in ("float32", "bfloat16")
    )
    words = f"{own} against float64 within {errors}, twice bit-equal"
    more = f"compiled {compiled} times" if b.on_gpu else "flex's backward pass needs a GPU"
    return f"{words}; {more}", numbers


def long(b: Bench) -> tuple[str, Numbers]:
    if not b.on_gpu:
        raise NotHere("FlexAttention's backward pass needs a GPU")
    H, KV, d = LAYOUTS[-1]
    T = 2**14
    *qkv, up = (torch.randn(T, h, d, device=b.device, dtype=torch.bfloat16) for h in (H, KV, KV, H))
    packed = pack(tree(1024, [1024] * 15), b.device, "flex")
    run = partial(passed, packed, qkv, up)
    taken, held = bench.seconds(run, "cuda", 5), bench.peak_bytes(run, "cuda")
    numbers = {"ms": 1e3 * taken, "gb": held / 1e9}
    bound = T * T * H * 2  # the scores, were they held
    hold(held < bound, f"it holds {held / 1e9:.1f} GB, as much as all scores", **numbers)
    return f"{T} tokens, {H} heads of {d}: {1e3 * taken:.1f} ms both ways, {held / 1e9:.2f} GB", numbers


def requests(
    decoder: Decoder, P: int, G: int, n: int, c: int, seed: int = 0, shorter: int = 1
) -> list[Request]:
    """P prompts at random, one of n tokens and each next one `shorter`, to be continued G times by c
    tokens."""
    random, V = torch.Generator().manual_seed(seed), decoder.config.vocab_size
    ids = [torch.randint(V, (n - p * shorter,), generator=random).tolist() for p in range(P)]
    return [Request(x, [uniforms(seed, 0, str(p), g, c) for g in range(G)]) for p, x in enumerate(ids)]


@contextmanager
def nothing_waits() -> Iterator[None]:
    """In this context a step of decoding that waits for the GPU raises an error."""
    plain = Wave.step

    def watched(self: Wave, span: int) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            plain(self, span)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    Wave.step = watched
    try:
        yield
    finally:
        Wave.step = plain


def decoding(b: Bench) -> tuple[str, Numbers]:
    if not b.on_gpu:
        raise NotHere("CUDA graphs need a GPU")
    decoder = b.decoder("float32").requires_grad_(False)
    work = requests(decoder, 3, 6, 40, 300)
    ends = frozenset(range(0, decoder.config.vocab_size, 200))  # rows leave on the way, and 300 passes spans

    def written(graph: bool) -> list[Completion]:
        return sum(sample(decoder, work, ends, Settings(300, graph=graph)), [])

    first = written(True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with nothing_waits():
        again = written(True)
    torch.cuda.synchronize()
    leak = torch.cuda.memory_allocated() - before
    numbers: Numbers = {"rows": len(first), "left_bytes": leak}
    numbers["differ_early"], numbers["gap"] = between(first, written(False))
    with backend.plain():
        numbers["differ_early_from_torch"], numbers["gap_to_torch"] = between(first, written(False))
    hold(first == again, "captured decoding does not repeat itself", **numbers)
    early = max(numbers["differ_early"], numbers["differ_early_from_torch"])
    gap = worst((numbers["gap"], numbers["gap_to_torch"]))
    # Sums go in another order: now and then a draw lies so near to a token's bound that it tips over.
    hold(early <= len(first) / 6, f"{early} of {len(first)} captured rows differ within 20 tokens", **numbers)
    hold(gap <= 1e-3, f"log-probabilities differ by {gap:.1e}", **numbers)
    hold(leak == 0, f"{leak} bytes more are held after a second wave", **numbers)
    words = f"captured as plain, and as torch without kernels: {early} of {len(first)} rows differ within 20"
    return (
        f"{words} tokens, log-probabilities by {gap:.0e}; repeats itself, nothing waits, memory back",
        numbers,
    )


def between(these: list[Completion], others: list[Completion]) -> tuple[int, float]:
    """How many rows differ within 20 tokens, and the largest gap of log-probabilities before they do."""
    early, gaps = 0, []
    for x, y in zip(these, others, strict=True):
        pairs = enumerate(zip(x.ids, y.ids, strict=False))
        alike = next((i for i, (a, c) in pairs if a != c), min(len(x.ids), len(y.ids)))
        early += x.ids != y.ids and alike < 20
        gaps += [abs(a - c) for a, c in zip(x.logp[:alike], y.logp[:alike], strict=True)]
    return early, worst(gaps)


def drawn_rollouts(decoder: Decoder, work: Sequence[Request], c: int, cache: int = 2**34) -> Rollouts:
    """Completions of full length with advantages that depend on what was drawn."""
    groups = sample(decoder, work, frozenset(), Settings(c, cache_bytes=cache))
    reward = torch.tensor([[sum(row.ids) % 97 / 97 for row in group] for group in groups])
    prompts = [[request.prompt] * len(group) for request, group in zip(work, groups, strict=True)]
    return Rollouts([None] * len(work), prompts, groups, [], reward=reward, adv=grpo.advantage(reward))


def reading(decoder: Decoder, config: Config) -> Training:
    """What train.py's `cut` and `loss` need."""
    return Training(config, Recipe(config=config), SimpleNamespace(model=decoder), None, None)


def training(decoder: Decoder, config: Config) -> Training:
    """What its `step` needs, too."""
    t = reading(decoder, config)
    t.optimizer = AdamW(decoder.parameters(), config.lr, seed=config.seed)
    t.optimizer.make_moments()
    return t


def update(b: Bench, t: Training, rollouts: Rollouts) -> dict[str, float]:
    metrics = b.loss(t, b.cut(t, rollouts))
    b.step(t.optimizer, metrics["grad_norm"], t.config.lr, t.config.max_grad_norm)
    return metrics


def sizes(b: Bench) -> tuple[int, int, int, int]:
    """Prompts, completions of each, tokens of a prompt and of a completion."""
    return (4, 8, 200, 128) if b.on_gpu else (2, 4, 40, 16)


def digest(b: Bench, folder: Path | None = None) -> str:
    """The weights after two steps, as a hash; with a folder, saved and loaded there between the two."""
    P, G, n, c = sizes(b)
    config = replace(Config(), lr=1e-4, max_new_tokens=c, tokens_per_batch=(n + G * c) * 3 // 2)
    t = training(b.decoder(), replace(config, device=b.device, dtype=b.dtype))
    for number in (1, 2):
        update(b, t, drawn_rollouts(t.actor.model, requests(t.actor.model, P, G, n, c, number), c))
        if folder is not None and number == 1:
            model.save(t.actor.model, folder)
            torch.save(t.optimizer.state_dict(), folder / "optimizer.pt")
            t = training(model.load(folder, getattr(torch, b.dtype), b.device), t.config)
            saved = torch.load(folder / "optimizer.pt", map_location=b.device, weights_only=True)
            t.optimizer.load_state_dict(saved)
    whole = hashlib.sha256()
    for p in t.actor.model.parameters():
        whole.update(p.detach().view(-1).view(torch.uint8).cpu().numpy())
    return whole.hexdigest()[:16]


def repeat(b: Bench) -> tuple[str, Numbers]:
    if b.random == "7b":
        b = replace(b, random="0.5b")  # two steps of 7B, saved, would take minutes and 46 GB of disk
    digests = {"once": digest(b), "again": digest(b)}
    with tempfile.TemporaryDirectory() as folder:
        digests["saved and loaded"] = digest(b, Path(folder))
    row = child("digest", words_of(b), 90)
    hold(row.result == "ok", f"another process failed: {row.words}", **digests)
    digests["in another process"] = row.words
    different = [name for name, x in digests.items() if x != digests["once"]]
    hold(not different, f"weights differ after two steps {', '.join(different)}", **digests)
    size = f"{b.random}: " if b.random else ""
    return f"{size}equal weights after two steps: {', '.join(digests)}", digests


def gap(b: Bench) -> tuple[str, Numbers]:
    P, G, n, c = sizes(b)
    decoder, config = b.decoder(), replace(Config(), max_new_tokens=c)
    rollouts = drawn_rollouts(decoder, requests(decoder, P, G, n, c), c)
    gaps, ratios = [], []
    for batch in b.cut(reading(decoder, config), rollouts):
        (logp, _), (other, _) = (grpo.token_logp(decoder, batch, 1.0) for _ in range(2))
        gaps.append((logp - batch.sampler_logp).abs().detach())
        ratios.append((logp - other).exp().sub(1).abs().max().item())
    mean, most = torch.cat(gaps).mean().item(), torch.cat(gaps).max().item()
    numbers = {"mean": mean, "max": most, "ratio": worst(ratios)}
    bound = 0.05 if b.dtype == "bfloat16" else 1e-4
    hold(mean <= bound, f"the mean gap is {mean:.4f}: at most {bound:g} expected", **numbers)
    off = worst(ratios)
    hold(off == 0, f"two passes of the trainer differ by a ratio of {off:.1e}", **numbers)
    return f"{b.dtype}: mean {mean:.1e}, most {most:.1e} of {P * G * c} tokens; ratio exactly 1", numbers


def peaks_of(b: Bench, config: Config, decoder: Decoder) -> dict[str, int]:
    """The most bytes that torch has handed out in each phase."""
    sizes = (config.prompts_per_step, config.group_size, config.max_prompt_tokens, config.max_new_tokens)
    work, c = requests(decoder, *sizes, shorter=0), config.max_new_tokens
    t, peaks = training(decoder, config), {}
    for _ in range(2):  # the second has every kernel and workspace
        torch.cuda.reset_peak_memory_stats()
        rollouts = drawn_rollouts(decoder, work, c, config.cache_mb * 2**20)
        peaks["sampling"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        update(b, t, rollouts)
        peaks["training"] = torch.cuda.max_memory_allocated()
    return peaks | {"reserved": torch.cuda.max_memory_reserved()}


def memory_(b: Bench) -> tuple[str, Numbers]:
    if not b.on_gpu:
        raise NotHere("only a GPU's allocator counts what was taken")
    big = b.random == "7b"
    config = replace(Config(), policy=b.name, device=b.device, dtype=b.dtype, lr=1e-6, eval_every=0)
    config = replace(config, prompts_per_step=6, group_size=16, max_prompt_tokens=256, max_new_tokens=256)
    # Batches of two questions each: full ones, as the plan takes them to be.
    full = 2 * (config.max_prompt_tokens + config.group_size * config.max_new_tokens)
    config = replace(config, tokens_per_batch=full, cache_mb=8192, checkpoint_activations=big)
    decoder = b.decoder()
    decoder.checkpointed = config.checkpointed(len(decoder.model["layers"]))
    peaks = peaks_of(b, config, decoder)
    planned = {phase: parts["peak"] for phase, parts in memory.plan(memory.read(b.name), config).items()}
    off = {phase: peaks[phase] / planned[phase] - 1 for phase in ("sampling", "training")}
    numbers = {"measured": peaks, "planned": planned, "off": off}
    words = ", ".join(
        f"{phase} {peaks[phase] / 1e9:.2f} GB, planned {planned[phase] / 1e9:.2f} ({share:+.0%})"
        for phase, share in off.items()
    )
    words += f"; reserved {peaks['reserved'] / 1e9:.2f}"
    hold(worst(map(abs, off.values())) <= 0.1, f"off by more than 10 %: {words}", **numbers)
    return words, numbers


def timed(fn: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return fn(), time.perf_counter() - start


def speed(b: Bench) -> tuple[str, Numbers]:
    P, G, n, c = (6, 16, 256, 256) if b.on_gpu else (2, 8, 40, 32)
    decoder = b.decoder()
    on, s = decoder.head.device.type, decoder.head.element_size()
    m, layers = memory.read(b.name), sum(p.numel() for p in decoder.model["layers"].parameters())
    weights = decoder.head.numel() + layers
    copied, multiplied = bench.copying(on)[1], bench.multiplying(on, decoder.head.dtype)[1]
    work = requests(decoder, P, G, n, c)
    config = replace(Config(), lr=1e-6, max_new_tokens=c, tokens_per_batch=8192 if b.on_gpu else 2048)
    t = training(decoder, replace(config, device=b.device, dtype=b.dtype, policy=b.name))
    if b.random == "7b":
        decoder.checkpointed = len(decoder.model["layers"])
    with backend.plain():
        drawn_rollouts(decoder, work, c)  # to warm up
        _, beside = timed(partial(drawn_rollouts, decoder, work, c))
    drawn_rollouts(decoder, work, c)
    rollouts, decoded = timed(partial(drawn_rollouts, decoder, work, c))
    # A step reads every weight, each prompt's keys and values once, and those that its row has written.
    read = c * (weights * s + m.cache(s) * (P * n + P * G * c / 2)) / copied
    products = 2 * weights * P * (n + G * c) / multiplied
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        update(b, t, rollouts)
        if b.on_gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    passes = 4 if decoder.checkpointed else 3
    least = passes * 2 * weights * P * (n + G * c) / multiplied
    numbers = {"decoded_per_second": P * G * c / decoded, "trained_per_second": P * (n + G * c) / taken[-1]}
    numbers |= {"of_reading": read / decoded, "of_products": least / taken[-1]}
    numbers |= {"decoded_without_kernels": P * G * c / beside}
    numbers |= {"ms_a_step": 1e3 * decoded / c, "decoding_of_products": products / decoded}
    numbers |= {"copy_tb": copied / 1e12, "matmul_tflops": multiplied / 1e12}
    numbers |= {"first_update_seconds": taken[0], "update_seconds": taken[-1]}
    words = (
        f"decoding {P} x {G} x {c}: {numbers['decoded_per_second']:,.0f} tokens/s "
        f"({numbers['decoded_without_kernels']:,.0f} without kernels), {read / decoded:.2f} of "
        f"reading weights and keys; training {numbers['trained_per_second']:,.0f} tokens/s, "
        f"{least / taken[-1]:.2f} of matrix products"
    )
    return words, numbers


def ranks_(b: Bench) -> tuple[str, Numbers]:
    world = torch.cuda.device_count() if b.on_gpu else 2
    if world < 2:
        raise NotHere("NCCL needs several GPUs")
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(one_rank, (world, place, b.on_gpu), world)
    backend_ = "NCCL" if b.on_gpu else "gloo"
    return f"{backend_} adds up 16 MB alike on {world} ranks", {"world": world}


def one_rank(rank: int, world: int, place: str, cuda: bool) -> None:
    """A process of `ranks`. Raises if a sum is wrong, or not the same on all."""
    import torch.distributed as dist

    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if cuda else "gloo", init_method=place, rank=rank, world_size=world)
    device = f"cuda:{rank}" if cuda else "cpu"
    parts = [torch.randn(2**22, generator=torch.Generator().manual_seed(r)) for r in range(world)]
    total = parts[rank].to(device, copy=True)
    dist.all_reduce(total)
    if not apart(total.cpu(), sum(parts)) < 1e-6:
        raise Failed("a sum over ranks is wrong")
    others = [torch.empty_like(total) for _ in range(world)]
    dist.all_gather(others, total)
    if not all(torch.equal(total, other) for other in others):
        raise Failed("ranks have different sums")
    dist.destroy_process_group()


CHECKS: dict[str, tuple[Callable[[Bench], tuple[str, Numbers]], int]] = {
    "machine": (machine, 60),
    "kernels": (kernels, 90),
    "attention": (attention, 180),
    "long": (long, 60),
    "decoding": (decoding, 120),
    "repeat": (repeat, 180),
    "gap": (gap, 90),
    "memory": (memory_, 120),
    "speed": (speed, 120),
    "ranks": (ranks_, 60),
}
"""Each check, and its seconds."""


# --- one check, and all of them -----------------------------------------------------------------------------


def one(name: str, b: Bench) -> Row:
    """A check in this process."""
    try:
        if name == "digest":
            return Row(name, "ok", digest(b))
        words, numbers = CHECKS[name][0](b)
        return Row(name, "ok", words, numbers=numbers)
    except NotHere as error:
        return Row(name, "not here", str(error))
    except Failed as error:
        return Row(name, "FAILED", str(error), numbers=error.numbers)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        return Row(name, "FAILED", words if len(words) < WORDS else f"{words[:WORDS]} ...")


def child(name: str, words: Sequence[str], limit: float) -> Row:
    """A check in a process of its own, which ends when its time is over."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}
    if name == "kernels" and "cpu" in words and backend.triton is not None:
        env["TRITON_INTERPRET"] = "1"
    return row_of(
        [sys.executable, str(ROOT / "train.py"), "--check", "--only", name, *words], env, name, limit
    )


def row_of(command: Sequence[str], env: dict[str, str], name: str, limit: float) -> Row:
    """The row that a command prints last, or how the command ended if it prints none."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=name != "digest",  # which ends with `repeat`, whose process starts it
    )
    try:
        out, err = process.communicate(timeout=limit)
        row = Row(**json.loads(out.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        row = Row(name, "FAILED", f"not done after {limit:g} s")
    except (IndexError, TypeError, ValueError):
        last = (err.strip().splitlines() or ["without a word"])[-1]
        row = Row(name, "FAILED", f"its process ended with {process.returncode}: {last[:WORDS]}")
    finally:
        end(process)
    return replace(row, seconds=time.perf_counter() - start)


def end(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def words_of(b: Bench) -> list[str]:
    source = ["--random", b.random] if b.random else ["--policy", b.policy]
    return [*source, "--device", b.device, "--dtype", b.dtype]


def main(
    argv: Sequence[str],
    cut: Callable[..., list[grpo.MicroBatch]],
    loss: Callable[..., dict[str, float]],
    step: Callable[..., None],
) -> None:
    """The command line. Ends with 1 if a check failed."""
    parser = Parser(
        "train.py --check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=[*CHECKS, "digest"], help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="CHECK", help="which; all, if none is named")
    parser.add_argument("--policy", default=pretrained.NAME, help="as for train.py")
    parser.add_argument("--random", choices=RANDOM, help="random weights of a Qwen2.5 instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on a GPU, else float32")
    o = parser.parse_args(argv)
    if unknown := [name for name in o.names if name not in CHECKS]:
        raise ValueError(f"no check {unknown[0]!r}: expected {', '.join(CHECKS)}")
    ranks.refuse_device(o.device)
    dtype = o.dtype or ("bfloat16" if o.device.startswith("cuda") else "float32")
    b = Bench(o.policy, o.random, o.device, dtype, cut, loss, step)
    if o.only:
        ranks.claim(o.device)
        print(json.dumps(without_nan(asdict(one(o.only, b))), allow_nan=False))
        return
    if o.random is None:
        b = replace(b, policy=str(pretrained.resolve(o.policy)))  # once, and before the clocks run
    print(f"## rar-mini, checked with {o.random or o.policy} in {dtype} on {o.device}\n")
    print("| check | result | s | what was seen |\n|---|---|---:|---|", flush=True)
    rows = []
    for name, (_, limit) in CHECKS.items():
        if not o.names or name in o.names:
            rows.append(child(name, words_of(b), limit))
            print(rows[-1].line(), flush=True)
    failed = [row.check for row in rows if row.result == "FAILED"]
    counts = ", ".join(f"{sum(r.result == x for r in rows)} {x}" for x in ("ok", "FAILED", "not here"))
    print(f"\n{counts}; {sum(row.seconds for row in rows):.0f} s\n")
    print(json.dumps({row.check: asdict(row) for row in rows}))
    if failed:
        sys.exit(1)
