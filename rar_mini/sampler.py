"""The sampler: completions of prompts, with a key-value cache in which each prompt is stored once.

Every prompt is read once for all of its G rollouts. Its keys and values are kept once and shared; what a
rollout adds goes into a preallocated cache of its own. So a wave of R rollouts of P prompts with n tokens
each holds

    2 x layers x KV x d x (P n + R max_new_tokens) numbers

instead of R (n + max_new_tokens). Attention is one softmax over two parts: scores against the shared prompt
(one matrix product for all of a prompt's rollouts) and scores against the row's own past. Rows start
together, so that all have the same number of own tokens; a finished row leaves at once, and what remains
costs less.

Sampling is from the full softmax at the given temperature, and `logp` is the log-probability under exactly
that distribution: GRPO's ratio is 1 at the first step only if both sides mean the same distribution. `top_k`
and `top_p` are for evaluation; `logp` ignores them.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from rar_mini.model import Decoder, head_width
from rar_mini.prefix import Ids, Tree, pack


@dataclass(frozen=True)
class Settings:
    """How to sample. Temperature 0 takes the likeliest token (its `logp` is then at temperature 1)."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0  # keep the likeliest tokens that together have this much probability
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    cache_bytes: int = 2**31  # more rollouts than fit wait for the next wave

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"cannot sample with {self}: expected at least one token, temperature >= 0, 0 < top_p <= 1"
            )


@dataclass(frozen=True)
class Completion:
    """What the policy wrote: token ids with the sampled end token, each one's log-probability, and how it
    ended."""

    ids: list[int]
    logp: list[float]
    finished: bool  # False where max_new_tokens cut it


@dataclass(frozen=True)
class Request:
    """One prompt and, for each of its rollouts, the uniform numbers that decide its tokens, (max_new_tokens,)
    each."""

    prompt: Ids
    uniforms: Sequence[np.ndarray]


def uniforms(seed: int, step: int, example: str, rollout: int, count: int) -> np.ndarray:
    """The random numbers of one row: (count,) in [0, 1), the p-th for its p-th token.

    They depend on nothing else, so that a row comes out the same whoever its neighbours are, in whatever
    wave, and after a resume.
    """
    key = hashlib.sha256(f"{seed}/{step}/{example}/{rollout}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


def end_tokens(*named: int | Sequence[int] | None) -> frozenset[int]:
    """The union of the end tokens that config, generation config and tokenizer name.

    They often differ; a model that stops with one that is missed looks as if all its answers were cut.
    """
    ends: set[int] = set()
    for value in named:
        ends.update([] if value is None else [value] if isinstance(value, int) else value)
    return frozenset(ends)


@torch.inference_mode()
def sample(
    model: Decoder,
    requests: Sequence[Request],
    ends: frozenset[int],
    settings: Settings,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[list[Completion]]:
    """Complete every request, in waves under the cache budget. Returns completions[request][rollout]."""
    done: list[list[Completion | None]] = [[None] * len(request.uniforms) for request in requests]
    prefilled: dict[int, _Prompt] = {}
    with _blocked(model) as head:
        for wave in _waves(model, requests, settings):
            here = sorted({r for r, _ in wave})
            # A group that is split over waves keeps its prompt: nothing is read twice.
            prefilled = {r: prompt for r, prompt in prefilled.items() if r in here}
            missing = [r for r in here if r not in prefilled]
            read = _prefill(model, [requests[r].prompt for r in missing])
            prefilled.update(zip(missing, read, strict=True))
            counts = [sum(r == row for row, _ in wave) for r in here]
            draws = torch.from_numpy(np.stack([requests[r].uniforms[g] for r, g in wave]))
            prompts = [prefilled[r] for r in here]
            written = _decode(model, head, prompts, counts, draws, ends, settings, progress)
            for (r, g), completion in zip(wave, written, strict=True):
                done[r][g] = completion
    return done  # type: ignore[return-value]


@contextmanager
def _blocked(model: Decoder) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within it, float32 weights on a CPU lie as oneDNN likes them for few rows. Yields the head's product.

    At 16 rows a head of 49,152 x 576 then takes 12 ms instead of 25 on two cores, and the layers a quarter
    less. Cost: a second copy of the weights while sampling, and a quarter of a second each time, because
    training moves the weights in between.
    """
    head, layers = model.head, [module for module in model.modules() if isinstance(module, nn.Linear)]
    if head.device.type != "cpu" or head.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        yield lambda x: x @ head.T
        return
    try:
        for layer in layers:
            layer.forward = _blocked_product(layer.weight, layer.bias)
        yield _blocked_product(head, None)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # and the class's own is back


def _blocked_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x (R, I) -> x weight^T + bias (R, O), by the operators that torch.compile uses to freeze models."""
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")


@dataclass(frozen=True)
class _Prompt:
    """What a prompt leaves behind once it has been read."""

    length: int
    last: Tensor  # (D,) the hidden state that predicts the first new token
    keys: list[Tensor]  # for each layer (KV, d, n), ready to be multiplied
    values: list[Tensor]  # for each layer (KV, n, d)


def _waves(model: Decoder, requests: Sequence[Request], settings: Settings) -> list[list[tuple[int, int]]]:
    """Split all (request, rollout) rows, in order, into runs that fit the cache budget."""
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config)
    per_token = numbers * model.head.element_size()
    waves: list[list[tuple[int, int]]] = []
    free = 0
    for r, request in enumerate(requests):
        for g in range(len(request.uniforms)):
            row, prompt = per_token * settings.max_new_tokens, per_token * len(request.prompt)
            need = row + (prompt if g == 0 else 0)
            if not waves or need > free:
                waves.append([])
                free, need = settings.cache_bytes, row + prompt
                if need > free:
                    raise ValueError(
                        f"one rollout needs {need / 2**20:.0f} MiB of key-value cache, the budget is "
                        f"{free / 2**20:.0f} MiB; raise --cache-mb or lower --max-new-tokens"
                    )
            waves[-1].append((r, g))
            free -= need
    return waves


def _prefill(model: Decoder, prompts: Sequence[Ids]) -> list[_Prompt]:
    """Read prompts in one packed pass and keep their keys and values."""
    if not prompts:
        return []
    tree = Tree()
    for prompt in prompts:
        tree.add(prompt)
    packed = pack(tree, model.head.device)
    keys: list[list[Tensor]] = [[] for _ in prompts]
    values: list[list[Tensor]] = [[] for _ in prompts]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for i, (start, end) in enumerate(packed.spans):
            keys[i].append(rearrange(k[start:end], "n kv d -> kv d n").contiguous())
            values[i].append(rearrange(v[start:end], "n kv d -> kv n d").contiguous())
        return packed.attend(layer, q, k, v)

    hidden = model(packed.ids, packed.positions, attend)  # (T, D)
    return [_Prompt(len(p), hidden[packed.last(i)], keys[i], values[i]) for i, p in enumerate(prompts)]


class _Rows:
    """The rows of a wave that still run: their own keys and values, and which prompt each one continues."""

    def __init__(self, model: Decoder, prompts: list[_Prompt], counts: list[int], capacity: int) -> None:
        config, keys = model.config, prompts[0].keys[0]
        shape = (config.num_hidden_layers, sum(counts), keys.shape[0], capacity, keys.shape[1])
        self.prompts, self.counts = prompts, counts
        self.keys, self.values = keys.new_empty(shape), keys.new_empty(shape)  # (layers, R, KV, capacity, d)
        self.starts = torch.tensor([p.length for p in prompts], device=keys.device).repeat_interleave(
            torch.tensor(counts, device=keys.device)
        )  # (R,) the position of each row's first own token
        self.length = 0  # own tokens in the cache, alike for all rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new token a row: q (R, H, d), k and v (R, KV, d) -> (R, H, d)."""
        R, t = q.shape[0], self.length + 1
        own_k, own_v = self.keys[layer, :R], self.values[layer, :R]  # (R, KV, capacity, d)
        own_k[:, :, t - 1], own_v[:, :, t - 1] = k, v
        q = rearrange(q * q.shape[-1] ** -0.5, "r (kv j) d -> r kv j d", kv=k.shape[1])
        own = q @ own_k[:, :, :t].mT  # (R, KV, j, t)
        out, start = [], 0
        for prompt, count in zip(self.prompts, self.counts, strict=True):
            rows = slice(start, start := start + count)
            if not count:
                continue
            shared = rearrange(q[rows], "r kv j d -> kv (r j) d") @ prompt.keys[layer]  # (KV, r j, n)
            scores = torch.cat([rearrange(shared, "kv (r j) n -> r kv j n", r=count), own[rows]], -1)
            share = scores.float().softmax(-1).to(q.dtype)  # (r, KV, j, n + t)
            n = prompt.length
            read = rearrange(share[..., :n], "r kv j n -> kv (r j) n") @ prompt.values[layer]  # (KV, r j, d)
            own_read = share[..., n:] @ own_v[rows, :, :t]  # (r, KV, j, d)
            out.append(rearrange(read, "kv (r j) d -> r kv j d", r=count) + own_read)
        return rearrange(torch.cat(out), "r kv j d -> r (kv j) d")

    def keep(self, stay: list[int]) -> None:
        """Retire all rows but these: the ones that stay move up in the cache."""
        t, n = self.length, len(stay)
        self.keys[:, :n, :, :t] = self.keys[:, stay, :, :t]
        self.values[:, :n, :, :t] = self.values[:, stay, :, :t]
        self.starts = self.starts[stay]
        bounds = np.cumsum([0, *self.counts])
        self.counts = [sum(a <= row < b for row in stay) for a, b in zip(bounds, bounds[1:], strict=False)]


def _decode(
    model: Decoder,
    head: Callable[[Tensor], Tensor],
    prompts: list[_Prompt],
    counts: list[int],
    draws: Tensor,
    ends: frozenset[int],
    settings: Settings,
    progress: Callable[[int], object],
) -> list[Completion]:
    """Write one wave's completions, token by token. draws (R, max_new_tokens); prompt i has counts[i]
    rows."""
    rows = _Rows(model, prompts, counts, settings.max_new_tokens)
    running = list(range(len(draws)))  # which completion each row of the batch writes
    ids: list[list[int]] = [[] for _ in running]
    logps: list[list[float]] = [[] for _ in running]
    finished = [False] * len(running)
    hidden = torch.stack([prompt.last for prompt in prompts])
    hidden = hidden.repeat_interleave(torch.tensor(counts, device=hidden.device), 0)  # (R, D)
    for position in range(settings.max_new_tokens):
        tokens, logp = draw(head(hidden), draws[running, position], settings)  # (R,), (R,)
        for row, token, value in zip(running, tokens.tolist(), logp.tolist(), strict=True):
            ids[row].append(token)
            logps[row].append(value)
            finished[row] = token in ends
        progress(len(running))
        stay = [i for i, row in enumerate(running) if not finished[row]]
        if not stay or position + 1 == settings.max_new_tokens:
            break
        if len(stay) < len(running):
            rows.keep(stay)
            running, tokens = [running[i] for i in stay], tokens[stay]
        hidden = model(tokens, rows.starts + position, rows.attend)  # (R, D)
        rows.length += 1
    return [Completion(*row) for row in zip(ids, logps, finished, strict=True)]


def draw(logits: Tensor, uniform: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Choose one token a row: logits (R, V), uniform (R,) in [0, 1) -> (tokens (R,), logp (R,)).

    By inverse CDF, so that one number decides a token. The running sum is in float64: in float32 a vocabulary
    of 150,000 loses its rare tokens to rounding.
    """
    if settings.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    logp = (logits.float() / settings.temperature).log_softmax(-1)  # (R, V)
    mass = logp.exp()
    if settings.top_k or settings.top_p < 1:
        mass = _truncate(mass, settings)
    cdf = mass.cumsum(-1, dtype=torch.float64)  # (R, V)
    # u < 1 and `right` together never land on a token without mass: the cdf has to exceed u * total.
    point = uniform.to(cdf.device)[:, None] * cdf[:, -1:]
    tokens = torch.searchsorted(cdf, point, right=True).clamp_max(logits.shape[-1] - 1)  # (R, 1)
    return tokens[:, 0], logp.gather(-1, tokens)[:, 0]


def _truncate(mass: Tensor, settings: Settings) -> Tensor:
    """Zero what top-k and top-p leave out: (R, V) -> (R, V). Of equally likely tokens the lower id goes
    first."""
    ordered, order = mass.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if settings.top_k:
        keep[:, settings.top_k :] = False
    kept = ordered * keep
    before = kept.cumsum(-1) - kept  # the probability of all that are likelier
    keep &= before < settings.top_p * kept.sum(-1, keepdim=True)
    return torch.zeros_like(mass).scatter(-1, order, ordered * keep)


if __name__ == "__main__":
    import sys

    from rar_mini import speed

    speed.main(sys.argv[1:])
