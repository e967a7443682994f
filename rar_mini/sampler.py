"""The sampler: completions of prompts, with a key-value cache in which each prompt is stored once.

Every prompt is read once for all of its G rollouts. Its keys and values are kept once and shared; what a
rollout adds goes into a preallocated cache of its own. So a wave of R rollouts of P prompts, the longest of n
tokens, holds

    2 x layers x KV x d x (P n + R max_new_tokens) numbers

instead of R (n + max_new_tokens). Attention is one softmax over two parts: scores against the shared prompt
(one matrix product for all of a prompt's rollouts) and scores against the row's own past; a step's is
kernels/decode.py. Rows start together, so that all have the same number of own tokens; finished rows leave,
and what remains costs less.

Sampling is from the full softmax at the given temperature, and `logp` is the log-probability under exactly
that distribution (kernels/draw.py). Nothing is cut off it (top-p, top-k), because the trainer takes its
log-probabilities under the full softmax, too.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rar_mini.kernels import decode
from rar_mini.kernels.draw import draw
from rar_mini.model import Decoder, head_width
from rar_mini.onednn import Product, blocked
from rar_mini.prefix import Heard, Ids, Tree, pack

READ = 8192
"""Tokens of prompts in one forward pass; a wave's prompts are halved until they fit."""


@dataclass(frozen=True)
class Settings:
    """How to sample. Temperature 0 takes the likeliest token (its `logp` is then at temperature 1)."""

    max_new_tokens: int
    temperature: float = 1.0
    cache_bytes: int = 2**31  # more rollouts than fit wait for the next wave
    graph: bool = True  # on CUDA, capture the decoding step in CUDA graphs

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0:
            raise ValueError(f"cannot sample with {self}: expected at least one token and temperature >= 0")


@dataclass(frozen=True)
class Completion:
    """What the policy wrote: token ids with the sampled end token, each one's log-probability, and how it
    ended. In a conversation these are the tokens of all its turns, and `heard` tells what stands between."""

    ids: list[int]
    logp: list[float]
    finished: bool  # False where max_new_tokens cut it
    only_thoughts: bool = False  # whether it is thoughts and no answer, which its tokenizer can tell
    heard: Sequence[Heard] = ()
    unanswered: bool = False  # whether the user's next turn could not be had, so that this is no end


@dataclass(frozen=True)
class Request:
    """One prompt and, for each of its rollouts, the uniform numbers that decide its tokens, (max_new_tokens,)
    each. Other requests have its first `shared` tokens, too: these are read once."""

    prompt: Ids
    uniforms: Sequence[np.ndarray]
    shared: int = 0


def uniforms(seed: int, step: int | str, example: str, rollout: int, count: int) -> np.ndarray:
    """The random numbers of one row: (count,) in [0, 1), the p-th for its p-th token.

    They depend on nothing else: other neighbours and waves change a row by rounding alone, and a resume not
    at all. `step` is a step's number, or eval.
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
    ended: Callable[[int, Completion], object] = lambda request, completion: None,
) -> list[list[Completion]]:
    """Complete every request, in waves under the cache budget. Returns completions[request][rollout].

    `ended` is called with each completion as soon as it is whole, while others are still being written.
    """
    done: dict[tuple[int, int], Completion] = {}
    prompts: dict[int, _Prompt] = {}
    with blocked(model) as head:
        for rows in _waves(model, requests, settings):
            here = sorted({r for r, _ in rows})
            # A group that is split over waves keeps its prompt: nothing is read twice.
            missing = [r for r in here if r not in prompts]
            asked = [requests[r].prompt for r in missing], [requests[r].shared for r in missing]
            read = zip(missing, _prefill(model, *asked), strict=True)  # not a list, which would keep them
            prompts = {r: prompts[r] for r in here if r in prompts} | dict(read)
            draws = torch.from_numpy(np.stack([requests[r].uniforms[g] for r, g in rows]))
            owner = [here.index(r) for r, _ in rows]
            wave = Wave(model, head, [prompts[r] for r in here], owner, draws, ends, settings)
            prompts = {r: prompts[r] for r in here[-1:]}  # of the others the wave has its copy
            for row, completion in wave.run(progress):
                done[rows[row]] = completion
                ended(rows[row][0], completion)
            del wave  # its cache, before the next one has its own
    return [[done[r, g] for g in range(len(request.uniforms))] for r, request in enumerate(requests)]


@dataclass(frozen=True)
class _Prompt:
    """What a prompt leaves behind once it has been read."""

    last: Tensor  # (D,) the hidden state that predicts the first new token
    keys: Tensor  # (layers, KV, n, d)
    values: Tensor  # (layers, KV, n, d)


def _waves(model: Decoder, requests: Sequence[Request], settings: Settings) -> list[list[tuple[int, int]]]:
    """Split all (request, rollout) rows, in order, into runs that fit the cache budget."""
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config)
    per_token = numbers * model.head.element_size()
    waves: list[list[tuple[int, int]]] = []
    held = longest = 0  # prompts of the wave, and the length of the longest
    for r, request in enumerate(requests):
        for g in range(len(request.uniforms)):
            held, longest = held + (g == 0), max(longest, len(request.prompt))
            rows = len(waves[-1]) + 1 if waves else 1
            need = per_token * (held * longest + rows * settings.max_new_tokens)
            if not waves or need > settings.cache_bytes:
                waves.append([])
                held, longest = 1, len(request.prompt)
                need = per_token * (longest + settings.max_new_tokens)
                if need > settings.cache_bytes:
                    raise ValueError(
                        f"one rollout needs {need / 2**20:.0f} MiB of key-value cache, the budget is "
                        f"{settings.cache_bytes / 2**20:.0f} MiB; raise --cache-mb or lower --max-new-tokens"
                    )
            waves[-1].append((r, g))
    return waves


def _prefill(model: Decoder, prompts: Sequence[Ids], shared: Sequence[int] = ()) -> list[_Prompt]:
    """Read prompts in a packed pass, what all of them begin with once, and so the first `shared` tokens of
    each that has them in common with others, and keep their keys and values."""
    if not prompts:
        return []
    if len(prompts) > 1 and sum(map(len, prompts)) > READ:  # the masks of T tokens take 3 T^2 bytes
        half = len(prompts) // 2
        parts = slice(half), slice(half, None)
        return sum((_prefill(model, prompts[part], shared[part]) for part in parts), [])
    common = len(os.path.commonprefix([prompt[:-1] for prompt in prompts])) if len(prompts) > 1 else 0
    tree = Tree()
    root = tree.add(prompts[0][:common]) if common else None
    stems = [max(common, n) for n in shared or [0] * len(prompts)]
    above = [tree.shared(prompt[common:n], root) for prompt, n in zip(prompts, stems, strict=True)]
    leaves = [tree.add(p[n:], stem) for p, n, stem in zip(prompts, stems, above, strict=True)]
    packed = pack(tree, model.head.device)
    caches: list[list[Tensor]] = [[], []]  # keys and values of each layer, (T, KV, d)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        caches[0].append(k)
        caches[1].append(v)
        return packed.attend(layer, q, k, v)

    hidden = model(packed.ids, packed.positions, attend)  # (T, D)
    keys, values = (torch.stack(side).transpose(1, 2) for side in caches)  # (layers, KV, T, d)
    read = []
    for leaf in leaves:
        path = [slice(*packed.spans[segment]) for segment in packed.paths[leaf]]
        own = (torch.cat([x[:, :, at] for at in path], 2) for x in (keys, values))
        # Copies: a view would keep the pass's hidden states for as long as the wave keeps its last prompt.
        read.append(_Prompt(hidden[packed.last(leaf)].clone(), *own))
    return read


class Wave:
    """Rows that are written together: their buffers, and `step`, which writes one token into each of them.

    A row's own keys and values lie in a cache (layers, R KV, capacity, d). Its prompt's are shared: for them
    the rows stand in a grid, P prompts by the most rows that one of them has; `slots` picks rows into the
    grid, `back` out of it. A step may read `span` places of the cache: torch's path masks those that are not
    written yet, the kernels do not read them.

    On a CPU `span` is exact and a row leaves as soon as it has finished. On a GPU a step is captured in a
    CUDA graph, for which shapes have to stay: `span` doubles now and then, rows leave when the rest fits into
    a smaller power of two, and each time another graph is captured. Places that are too many then go on with
    some row's cache, and write into a row that nobody reads.
    """

    def __init__(
        self,
        model: Decoder,
        head: Product,
        prompts: Sequence[_Prompt],
        owner: Sequence[int],
        draws: Tensor,
        ends: frozenset[int],
        settings: Settings,
    ) -> None:
        """Row i continues prompts[owner[i]] by the random numbers draws[i] (max_new_tokens,)."""
        self.model, self.head, self.settings, self.ends = model, head, settings, ends
        on, R, tokens = model.head.device, len(owner), settings.max_new_tokens
        layers, KV, _, d = prompts[0].keys.shape
        self.captures = settings.graph and on.type == "cuda"
        # GPUs multiply rows of bfloat16 that begin at multiples of 16 bytes, and others by slower ways.
        whole = 8 if on.type == "cuda" else 1
        n, self.capacity = (
            -(-size // whole) * whole for size in (max(p.keys.shape[2] for p in prompts), tokens)
        )
        self.end_ids, self.draws = torch.tensor(sorted(ends), device=on), F.pad(draws, (0, 0, 0, 1)).to(on)
        self.ids = torch.zeros(R + 1, tokens, dtype=torch.long, device=on)  # the last row is nobody's
        self.logp = torch.zeros(R + 1, tokens, device=on)
        self.done = torch.zeros(R + 1, dtype=torch.bool, device=on)
        self.position = torch.zeros(1, dtype=torch.long, device=on)  # of the newest token, alike for all rows
        self.first = torch.stack([p.last for p in prompts])[owner]  # (R, D)
        # Zeros and not whatever memory holds: a masked place weighs 0, but 0 times NaN is NaN.
        self.keys, self.values = (
            prompts[0].keys.new_zeros(layers, R * KV, self.capacity, d) for _ in range(2)
        )
        self.lengths = torch.tensor([p.keys.shape[2] for p in prompts], device=on)  # (P,)
        self.shared_keys, self.shared_values = (
            torch.stack([F.pad(x, (0, 0, 0, n - x.shape[2])) for x in side], 1)
            for side in ([p.keys for p in prompts], [p.values for p in prompts])
        )  # (layers, P, KV, n, d)
        self.nobody, self.graphs = R, []
        self.writing = list(range(R))  # rows that have not been seen to end
        self._arrange(list(range(R)), list(owner))

    def run(self, progress: Callable[[int], object]) -> Iterator[tuple[int, Completion]]:
        """Write until every row has finished or is full. Yields rows and their completions as they end."""
        every = 8 if self.captures else 1  # tokens between looks at `done`, which a GPU has to be waited for
        self.write(self.first)
        progress(len(self.writing))
        for written in range(1, self.settings.max_new_tokens):
            if written % every == 0:
                yield from self._cut(self.retire())
                if not self.writing:
                    return
            self.advance(written)
            progress(len(self.writing))
        yield from self._cut(self.writing)

    def _cut(self, rows: list[int]) -> Iterator[tuple[int, Completion]]:
        """Rows up to their first end token; what was written behind it, until the row left, is nothing."""
        if not rows:  # which is usual, and saves two copies from the device
            return
        at = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        for row, ids, logp in zip(rows, self.ids[at].tolist(), self.logp[at].tolist(), strict=True):
            ended = next((i for i, token in enumerate(ids) if token in self.ends), None)
            length = len(ids) if ended is None else ended + 1
            yield row, Completion(ids[:length], logp[:length], ended is not None)

    def step(self, span: int) -> None:
        """Read the newest token of each row and write the next. Nothing is read back, and no shape changes
        while `span` stays."""
        self.cache.reach(span)
        tokens = self.ids[self.rows, self.position]  # (R,)
        hidden = self.model(tokens, self.starts + self.position, self.cache)  # (R, D)
        self.position += 1
        self.write(hidden)

    def write(self, hidden: Tensor) -> None:
        """Draw the token at `position` of each row from the hidden state (R, D) that predicts it."""
        at = self.rows, self.position
        tokens, logp = draw(self.head(hidden), self.draws[at], self.settings.temperature)  # (R,), (R,)
        self.ids[at], self.logp[at] = tokens, logp
        self.done[self.rows] |= (tokens[:, None] == self.end_ids).any(-1)

    def retire(self) -> list[int]:
        """Let rows go that have finished. Returns those that have since the last look."""
        done = self.done.tolist()
        over = [row for row in self.writing if done[row]]
        self.writing = [row for row in self.writing if not done[row]]
        size = len(self.writing)
        if self.captures:  # the next power of two
            size = min(len(self.batch), 1 << (size - 1).bit_length()) if size else 0
        if 0 < size < len(self.batch):
            self._keep([i for i, row in enumerate(self.batch) if row != self.nobody and not done[row]], size)
        return over

    def _keep(self, stay: list[int], size: int) -> None:
        """Keep these rows of the batch, in `size` places: they move up in the cache, and prompts that nobody
        continues go."""
        batch = [self.batch[i] for i in stay] + [self.nobody] * (size - len(stay))
        stay = stay + stay[:1] * (size - len(stay))
        KV, written = self.shared_keys.shape[2], int(self.position)
        heads = (torch.tensor(stay)[:, None] * KV + torch.arange(KV)).flatten().to(self.keys.device)
        for cache in (self.keys, self.values):
            for layer in cache:  # one at a time: what is picked is a copy until it is written back
                layer[: len(heads), :written] = layer[:, :written].index_select(0, heads)
        self.keys, self.values = self.keys[:, : len(heads)], self.values[:, : len(heads)]
        owner = [self.owner[i] for i in stay]
        if len(alive := sorted(set(owner))) < len(self.lengths):
            self.shared_keys, self.shared_values = self.shared_keys[:, alive], self.shared_values[:, alive]
            self.lengths, owner = self.lengths[alive], [alive.index(p) for p in owner]
        self._arrange(batch, owner)

    def _arrange(self, batch: list[int], owner: list[int]) -> None:
        """Set what depends on the rows of the batch: which completion each one writes, and whose prompt it
        continues."""
        self.batch, self.owner = batch, owner
        on, (_, P, KV, _, _) = self.keys.device, self.shared_keys.shape
        shared = self.shared_keys, self.shared_values, self.lengths
        places = (x.to(on) for x in decode.grid(owner, P, KV))
        self.cache = decode.Cache(self.keys, self.values, *shared, *places, self.position)
        self.rows, self.starts = torch.tensor(batch, device=on), self.lengths[owner]  # (R,), (R,)
        self.replay: tuple[Callable[[], object], int] | None = None  # a captured step, and its span

    def advance(self, written: int) -> None:
        """One step of rows that have so many tokens, from its graph where there is one."""
        span = written
        if self.captures:
            span = min(self.capacity, max(128, 1 << (written - 1).bit_length()))
        if self.replay is not None and self.replay[1] == span:
            self.replay[0]()
            return
        self.step(span)  # also a warm-up: a capture may not make libraries' handles and workspaces
        if self.captures:
            self.replay = self._capture(span), span

    def _capture(self, span: int) -> Callable[[], object]:
        """Record a step, without doing it. Returns what does it.

        All graphs of a wave share one pool of memory: never do two run at once, and nothing that one leaves
        there is read by another. They are kept, so that the pool is.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graphs[0].pool() if self.graphs else None):
            self.step(span)
        self.graphs.append(graph)
        return graph.replay


if __name__ == "__main__":
    import runpy

    # The name of before: python -m rar_mini.sampler --bench.
    runpy.run_module("rar_mini.tools.speed", run_name="__main__")
