"""Cached decoding is the full forward; a row depends on its own numbers alone; nothing is lost at the end."""

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from tiny import rolled
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from rar_mini import config, grpo, model, onednn, sampler
from rar_mini.kernels import decode
from rar_mini.model import Decoder
from rar_mini.sampler import Request, Settings, end_tokens, sample, uniforms
from rar_mini.tools import speed
from rar_mini.tools.check import random_weights

PROMPTS = ([5, 6, 7, 8, 9], [40], list(range(60, 90)))
ENDS = frozenset({258})
NAN = float("nan")


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    return model.load(tiny, torch.float32, "cpu")


def requests(count: int = 4, tokens: int = 24, prompts: tuple = PROMPTS) -> list[Request]:
    return [
        Request(p, [uniforms(0, 1, f"q{i}", g, tokens) for g in range(count)]) for i, p in enumerate(prompts)
    ]


def full_logp(decoder: Decoder, prompt: list[int], ids: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of a completion from one pass without a cache."""
    row = torch.tensor(prompt + ids)
    with torch.no_grad():
        hidden = decoder(row, torch.arange(len(row)), model.reference_attention)[len(prompt) - 1 : -1]
        logp = ((hidden @ decoder.head.T).float() / temperature).log_softmax(-1)
    return logp.gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize(
    ("temperature", "dtype", "error"),
    [(1.0, torch.float32, 1e-4), (0.7, torch.float32, 1e-4), (0.7, torch.bfloat16, 0.1)],
)
def test_cached_decoding_equals_the_full_forward(
    tiny: Path, temperature: float, dtype: torch.dtype, error: float
) -> None:
    """Also against sampling at one temperature and scoring at another: at step 0 the ratio must be 1."""
    decoder = model.load(tiny, dtype, "cpu")
    for request, group in zip(
        requests(), sample(decoder, requests(), ENDS, Settings(24, temperature)), strict=True
    ):
        for completion in group:
            truth = full_logp(decoder, list(request.prompt), completion.ids, temperature)
            assert (torch.tensor(completion.logp) - truth).abs().max() < error


def test_greedy_decoding_is_that_of_transformers(decoder: Decoder, tiny: Path) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(tiny)
    got = sample(decoder, requests(1), ENDS, Settings(24, temperature=0.0))
    for prompt, group in zip(PROMPTS, got, strict=True):
        truth = oracle.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=list(ENDS),
        )
        assert group[0].ids == truth[0, len(prompt) :].tolist()


def test_a_row_does_not_depend_on_its_neighbours_or_its_wave(decoder: Decoder) -> None:
    together = sample(decoder, requests(), ENDS, Settings(24))
    config = decoder.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for rows in (1, 3):  # waves of one and of three rows: a group is split in its middle
        budget = row * (rows * 24 + 31)
        waves = sample(decoder, requests(), ENDS, Settings(24, cache_bytes=budget))
        assert [[c.ids for c in group] for group in waves] == [[c.ids for c in group] for group in together]
    for i, group in enumerate(together):
        alone = sample(decoder, [requests()[i]], ENDS, Settings(24))[0]
        assert [c.ids for c in alone] == [c.ids for c in group]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on a list of how many tokens each forward pass reads."""
    read = []
    forward = Decoder.forward

    def count(self: Decoder, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        read.append(len(ids))
        return forward(self, ids, *rest)

    monkeypatch.setattr(Decoder, "forward", count)
    return read


def test_each_prompt_is_read_once_even_when_its_group_is_split(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counting(monkeypatch)
    config = decoder.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    sample(decoder, requests(4, 2, PROMPTS[2:]), frozenset(), Settings(2, cache_bytes=row * (2 * 2 + 30)))
    assert read == [30, 2, 2]  # the prompt, then one token for each of two waves of two rows


def test_a_row_that_has_finished_costs_nothing_more(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it leaves at once; when none is left it is over. Progress is told of the tokens written."""
    read, told = counting(monkeypatch), []
    groups = sample(decoder, requests(8), frozenset(range(0, 259, 4)), Settings(24), told.append)
    lengths = [len(c.ids) for group in groups for c in group]
    assert max(lengths) < 24, "else this proves less"
    rows = [sum(length > written for length in lengths) for written in range(max(lengths))]
    assert read == [36, *rows[1:]] and told == rows


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1]], ids=["rising", "falling"])
def test_a_wave_is_as_full_as_its_budget_allows(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, prompts: tuple
) -> None:
    """Two rows of each of three prompts, four tokens each; at every budget from which on the waves are
    others. They are cut by the formula, row by row, and seen by what is read: prompts, then rows."""
    rows = [p for p in range(3) for _ in range(2)]
    longest = max(map(len, prompts))

    def cut(budget: int) -> list[list[int]]:
        waves: list[list[int]] = [[]]
        for p in rows:
            grown = [*waves[-1], p]
            need = len(set(grown)) * max(len(prompts[q]) for q in grown) + len(grown) * 4
            waves[-1:] = [grown] if need <= budget else [waves[-1], [p]]
        return [wave for wave in waves if wave]

    budgets = range(longest + 4, 3 * longest + 6 * 4 + 2)
    changed = [budgets[0], *(b for b in budgets if cut(b) != cut(b - 1)), budgets[-1]]
    c, read = decoder.config, counting(monkeypatch)
    token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4
    for budget in (b for each in changed for b in (each - 1, each) if b in budgets):
        right: list[int] = []
        known: set[int] = set()
        for wave in cut(budget):
            if new := set(wave) - known:
                right.append(sum(len(prompts[p]) for p in new))
            right += [len(wave)] * 3
            known = {wave[-1]}
        read.clear()
        sample(decoder, requests(2, 4, prompts), frozenset(), Settings(4, cache_bytes=budget * token))
        assert read == right, budget
    with pytest.raises(ValueError, match="--cache-mb"):
        sample(decoder, requests(2, 4, prompts), ENDS, Settings(4, cache_bytes=(longest + 4) * token - 1))


def test_what_is_given_to_no_settings_is_the_trainers_budget() -> None:
    assert Settings(1).cache_bytes == config.Config().cache_mb * 2**20


def held() -> int:
    """Bytes of all tensors that were made since gc.freeze()."""
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.layout == torch.strided]
    storages = (x.untyped_storage() for x in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_wave_that_writes_holds_its_prompts_once(decoder: Decoder) -> None:
    """And once more its last one, because the next wave may go on with it. Prompts that no row continues are
    given up."""
    c, seen = decoder.config, []
    prompt = 400 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4
    prompts, ends = tuple([i] * 400 for i in range(8)), frozenset(range(0, 259, 8))
    todo = requests(1, 12, prompts)
    gc.freeze()
    try:
        sample(decoder, todo, ends, Settings(12), lambda rows: seen.append((rows, held())))
    finally:
        gc.unfreeze()
    assert seen[0][0] == 8 and seen[-1][0] < 5
    for rows, size in seen:
        assert (rows + 0.9) * prompt < size < (rows + 1.9) * prompt


def test_a_step_costs_a_grid_of_prompts_by_rows(decoder: Decoder) -> None:
    """Multiplications of attention in the step that writes the third token: of one, three and two rows, three
    times three in the grid against the longest prompt, and each row against two tokens of its own."""
    c, flops = decoder.config, []
    rows = [Request(one.prompt, one.uniforms[:n]) for one, n in zip(requests(3, 3), (1, 3, 2), strict=True)]
    for tokens in (2, 3):
        with FlopCounterMode(display=False) as counter:
            sample(decoder, rows, frozenset(), Settings(tokens))
        flops.append(counter.get_total_flops())
    both = 2 * 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim  # keys and values, twice each
    assert flops[1] - flops[0] == both * (3 * 3 * 30 + 6 * 2)


def wave(decoder: Decoder, tokens: int, ends: frozenset[int] = frozenset()) -> sampler.Wave:
    """Seven rows of three prompts, 3, 1 and 3 of each."""
    owner = [0, 0, 0, 1, 2, 2, 2]
    draws = np.stack([uniforms(0, 1, f"q{p}", i, tokens) for i, p in enumerate(owner)])
    prompts = sampler._prefill(decoder, PROMPTS)
    head = lambda x: x @ decoder.head.T  # noqa: E731
    return sampler.Wave(decoder, head, prompts, owner, torch.from_numpy(draws), ends, Settings(tokens))


@torch.no_grad()
def test_one_compiled_step_serves_every_position(decoder: Decoder) -> None:
    """What a CUDA graph needs: no branch on a tensor, no number read back (either breaks the one graph), and
    no shape that depends on how much is written."""
    tokens, counter = 12, CompileCounter()
    compiled, plain = wave(decoder, tokens), wave(decoder, tokens)
    step = torch.compile(compiled.step, backend=counter, fullgraph=True, dynamic=False)
    for one in (compiled, plain):
        one.write(one.first)
    for _ in range(tokens - 1):
        step(tokens)
        plain.step(tokens)
    assert counter.frame_count == 1
    assert torch.equal(compiled.ids, plain.ids) and (compiled.ids != 0).any()


class OneDevice(TorchDispatchMode):
    """A device without data, "meta": fails where an operation joins it with a tensor on the CPU. What is read
    out of it is 0, or of truth values, true in every second place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        patch.setattr(torch.Tensor, "tolist", self.read)

    @staticmethod
    def read(x: torch.Tensor) -> list:
        if x.dtype == torch.bool:
            return [i % 2 == 1 for i in range(len(x))]
        return np.zeros(tuple(x.shape), dtype=float if x.is_floating_point() else int).tolist()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return 1
        if args and torch.is_tensor(args[0]) and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(x) and x.ndim]
        assert len({x.device for x in given}) < 2 or "copy" in str(func), func
        return func(*args, **kwargs)


def test_where_no_row_has_ended_nothing_is_read_back() -> None:
    """Each read from a GPU waits for it, and most looks at `done` find no row."""
    assert list(sampler.Wave._cut(None, [])) == []


def test_all_that_a_wave_makes_lies_where_the_weights_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a tensor that was made on the CPU stops the run. Without data, the way on one is the same."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.device("meta"):
        decoder = Decoder(config)
    for settings in (Settings(4), Settings(4, temperature=0.0)):
        with OneDevice(monkeypatch):
            groups = sample(decoder, requests(2), ENDS, settings)
        assert [len(c.ids) for group in groups for c in group] == [4] * 6


@torch.no_grad()
def test_a_step_allocates_the_same_at_every_position(decoder: Decoder) -> None:
    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN202
            out = func(*args, **kwargs or {})
            shapes = [tuple(x.shape) for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x)]
            self.seen.append((str(func), shapes))
            return out

    rows, mode = wave(decoder, 12), Shapes()
    rows.write(rows.first)
    records = []
    for _ in range(11):
        mode.seen = []
        with mode:
            rows.step(12)
        records.append(mode.seen)
    assert len(records[0]) > 50 and all(seen == records[0] for seen in records)
    assert not any("_local_scalar_dense" in name for name, _ in records[0])


@pytest.mark.parametrize(
    ("count", "tokens", "ends"),
    [(6, 24, range(0, 259, 80)), (2, 300, range(258, 259)), (6, 24, range(259))],
)
def test_buckets_and_graphs_change_no_row(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, count: int, tokens: int, ends: range
) -> None:
    """A GPU's way, with every captured step done by the step itself: masked places, rows that wait for their
    bucket, rows that stand in twice. A row must not notice. After every eighth token the batch shrinks to the
    power of two that holds what is left, and a graph is captured once for each size and span."""
    captured, init = {}, sampler.Wave.__init__

    def capture(self: sampler.Wave, span: int) -> object:
        captured[span, len(self.batch)] = len(read) - 1  # passes so far, but that of the prompts
        return lambda: self.step(span)

    def captures(self: sampler.Wave, *args: object) -> None:
        init(self, *args)
        self.captures = True

    todo = requests(count, tokens)
    plain = sample(decoder, todo, frozenset(ends), Settings(tokens))
    monkeypatch.setattr(sampler.Wave, "_capture", capture)
    monkeypatch.setattr(sampler.Wave, "__init__", captures)
    read = counting(monkeypatch)
    graphed = sample(decoder, todo, frozenset(ends), Settings(tokens))
    assert [[c.ids for c in group] for group in graphed] == [[c.ids for c in group] for group in plain]
    lengths, size, steps = [len(c.ids) for group in plain for c in group], 3 * count, []
    for written in range(1, tokens):
        if written % 8 == 0:
            left = sum(length > written for length in lengths)
            if not left:
                break
            size = min(size, 1 << (left - 1).bit_length())
        steps.append((min(tokens, max(128, 1 << (written - 1).bit_length())), size))
    assert read[1:] == [size for _, size in steps]
    assert captured == {step: steps.index(step) + 1 for step in steps}
    assert tokens < 300 or {span for span, _ in steps} == {128, 256, 300}


@pytest.mark.parametrize("captures", [False, True])
def test_a_completion_is_told_as_soon_as_it_is_whole(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    """Each once, with its request, in waves of three rows. On a GPU, after every eighth token."""
    told, written, init = [], [], sampler.Wave.__init__

    def on_a_gpu(self: sampler.Wave, *args: object) -> None:
        init(self, *args)
        written.clear()
        self.captures, self._capture = captures, lambda span: lambda: self.step(span)

    def ended(request: int, completion: sampler.Completion) -> None:
        every = 8 if captures else 1
        due = -(-len(completion.ids) // every) * every if completion.finished else 24
        assert len(written) == min(24, due)
        told.append((request, completion))

    monkeypatch.setattr(sampler.Wave, "__init__", on_a_gpu)
    c, ends = decoder.config, frozenset(range(0, 259, 20))
    room = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4 * (3 * 24 + 31)
    groups = sample(decoder, requests(), ends, Settings(24, cache_bytes=room), written.append, ended)
    whole = [(r, one) for r, group in enumerate(groups) for one in group]
    assert sorted(told, key=repr) == sorted(whole, key=repr) and told != whole
    assert {one.finished for _, one in told} == {True, False}


def test_spare_places_write_into_a_row_that_nobody_reads(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing a row twice is harmless only if products give equal rows equal bits."""
    step, init, spare = sampler.Wave.step, sampler.Wave.__init__, []

    def poisoned(self: sampler.Wave, span: int) -> None:
        step(self, span)
        rows = [row for row in self.batch if row != self.nobody]
        assert len(set(rows)) == len(rows), "a row stands in twice"
        spare.append(len(self.batch) - len(rows))
        self.ids[self.nobody], self.logp[self.nobody], self.done[self.nobody] = 7, NAN, True

    def captures(self: sampler.Wave, *args: object) -> None:
        init(self, *args)
        self.captures = True

    todo, ends = requests(6, 40), frozenset(range(0, 259, 20))
    plain = sample(decoder, todo, ends, Settings(40))
    monkeypatch.setattr(sampler.Wave, "_capture", lambda self, span: lambda: self.step(span))
    monkeypatch.setattr(sampler.Wave, "__init__", captures)
    monkeypatch.setattr(sampler.Wave, "step", poisoned)
    graphed = sample(decoder, todo, ends, Settings(40))
    assert max(spare) > 0, "no place was spare"
    assert [[c.ids for c in group] for group in graphed] == [[c.ids for c in group] for group in plain]
    assert all(math.isfinite(x) for group in graphed for c in group for x in c.logp)


def test_the_cache_is_as_large_as_its_formula_says(decoder: Decoder) -> None:
    assert wave(decoder, 23).capacity == 23, "only a GPU wants multiples of 8"
    rows, config = wave(decoder, 24), decoder.config
    held = sum(x.nbytes for x in (rows.keys, rows.values, rows.shared_keys, rows.shared_values))
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert held == 4 * numbers * (3 * 30 + 7 * 24)


def test_what_all_prompts_begin_with_is_read_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All conversations open with the same system sentence."""
    opening, read, forward = list(range(40, 60)), [], Decoder.forward
    prompts = [opening + [1, 2, 3], opening, opening + [9]]
    alone = [sampler._prefill(decoder, [prompt])[0] for prompt in prompts]
    monkeypatch.setattr(
        Decoder, "forward", lambda self, ids, *rest: read.append(len(ids)) or forward(self, ids, *rest)
    )
    for one, other in zip(sampler._prefill(decoder, prompts), alone, strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(value, getattr(other, name), atol=1e-5, rtol=1e-5)
            assert value.untyped_storage().nbytes() == value.nbytes, f"{name} keeps the whole pass alive"
    assert read == [19 + 4 + 1 + 2]  # the second prompt keeps a token of its own, to be predicted from
    sampler._prefill(decoder, prompts[:2])
    assert read.pop() == 19 + 4 + 1, "two are enough"
    (alone,) = sampler._prefill(decoder, [[7]])
    assert alone.keys.shape[2] == 1 and read.pop() == 1


@pytest.mark.parametrize(
    ("most", "passes"), [(43, [43]), (42, [6, 37]), (36, [6, 30, 7]), (20, [6, 30, 7]), (5, [5, 1, 30, 7])]
)
def test_more_prompts_than_a_pass_takes_are_read_in_halves(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, most: int, passes: list[int]
) -> None:
    """A wave of short answers to 600 prompts of 512 tokens was one pass, whose masks alone are 280 GB. A
    prompt longer than that is read all the same."""
    prompts = (*PROMPTS, [3] * 7)  # 5, 1, 30 and 7 tokens
    whole = sample(decoder, requests(2, 8, prompts), ENDS, Settings(8))
    read = counting(monkeypatch)
    monkeypatch.setattr(sampler, "READ", most)
    halves = sample(decoder, requests(2, 8, prompts), ENDS, Settings(8))
    assert read[: len(passes)] == passes
    assert [[c.ids for c in group] for group in halves] == [[c.ids for c in group] for group in whole]


def test_the_sampled_end_token_stays_and_nothing_follows_it(decoder: Decoder) -> None:
    """A completion without its end token would never teach the policy to stop."""
    ends = frozenset(range(0, 259, 8))
    groups = sample(decoder, requests(8), ends, Settings(24))
    completions = [c for group in groups for c in group]
    finished = [c for c in completions if c.finished]
    assert finished and all(c.ids[-1] in ends and not ends & set(c.ids[:-1]) for c in finished)
    cut = [c for c in completions if not c.finished]
    assert all(len(c.ids) == 24 and not ends & set(c.ids) for c in cut)
    assert all(len(c.ids) == len(c.logp) for c in completions)
    assert not any(c.unanswered or c.only_thoughts or c.heard for c in completions)


def test_end_tokens_are_the_union_of_all_that_are_named() -> None:
    """A model that stops with an id that one file forgets looks as if 97 % of its answers were cut."""
    assert end_tokens(2, [2, 7], None, 9) == {2, 7, 9}


def test_scores_are_not_rounded_to_bfloat16() -> None:
    """Keys with a mean of 100 make scores of hundreds, where neighbours in bfloat16 lie 1 apart."""
    random = torch.Generator().manual_seed(0)
    q, keys = (torch.randn(3, n, 64, generator=random).bfloat16() for n in (2, 50))
    keys += 100
    bias = torch.zeros(50)
    bias[40:] = -torch.inf
    got = decode.scores(bias, q, keys)
    right = bias + q.double() @ keys.double().mT / 8
    assert got.dtype == torch.float32 and right[..., :40].abs().max() > 100
    assert (got - right)[..., :40].abs().max() < 1e-3 and got[..., 40:].eq(-torch.inf).all()


def test_a_bfloat16_policy_with_qwens_biases_is_sampled_as_it_is_trained() -> None:
    """Key biases of real Qwen2.5 models reach hundreds. With scores in bfloat16 the gap was 0.025 here."""
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    decoder = random_weights(config, torch.bfloat16, "cpu")
    with torch.no_grad():
        for p in decoder.parameters():
            p.mul_(2 if p.ndim == 2 else 1)
    c = 32
    asked = [Request(list(range(i, 90 + i)), [uniforms(0, i, "q", g, c) for g in range(4)]) for i in (1, 2)]
    groups = sample(decoder, asked, frozenset(), Settings(c))
    rolled_out = rolled([r.prompt for r in asked], groups, torch.ones(2, 4))
    (batch,) = grpo.micro_batches(
        rolled_out,
        torch.ones(2, 4, dtype=torch.bool),
        loss_norm="token",
        max_new_tokens=c,
        tokens_per_batch=999,
    )
    logp, _ = grpo.token_logp(decoder, batch, 1.0)
    assert (logp - batch.sampler_logp).abs().mean() < 0.01


def test_random_numbers_are_a_rows_own() -> None:
    first = uniforms(0, 1, "q", 2, 8)
    # As they have always been: a run that a newer version goes on with keeps its numbers.
    assert first[:3].tolist() == [0.716601268300677, 0.7252604070644296, 0.7509518765587326]
    assert np.array_equal(first, uniforms(0, 1, "q", 2, 16)[:8])
    others = [uniforms(1, 1, "q", 2, 8), uniforms(0, 2, "q", 2, 8), uniforms(0, 1, "p", 2, 8)]
    others.append(uniforms(0, 1, "q", 3, 8))
    assert all(not np.array_equal(first, other) for other in others)


def test_blocked_weights_are_the_same_weights_and_go_away(decoder: Decoder) -> None:
    x, layer = torch.randn(9, 32), decoder.model["layers"][0]
    products = lambda: [*layer.self_attn.project(x), layer.self_attn.o_proj(x), layer.mlp(x)]  # noqa: E731
    truth = [*products(), x @ decoder.head.T]
    with pytest.raises(KeyError), torch.inference_mode(), onednn.blocked(decoder) as head:
        for got, right in zip([*products(), head(x)], truth, strict=True):
            torch.testing.assert_close(got, right.detach(), atol=1e-5, rtol=1e-5)
        raise KeyError
    assert all(torch.equal(a, b) and a.requires_grad for a, b in zip(products(), truth[:-1], strict=True))
    assert not any({"forward", "project"} & set(vars(module)) for module in decoder.modules())


def test_a_budget_below_one_row_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="--cache-mb"):
        sample(decoder, requests(), ENDS, Settings(24, cache_bytes=1000))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": NAN},
    ],
)
def test_impossible_settings_are_refused(bad: dict) -> None:
    Settings(max_new_tokens=1, temperature=0.0)  # the least that is possible
    with pytest.raises(ValueError, match="cannot sample"):
        Settings(**{"max_new_tokens": 4} | bad)


def test_the_benchmark_ends_with_its_numbers(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    speed.main(["--bench", "--policy", str(tiny), "--short", "--runs", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["tokens_per_second"] > 0 and found["rows"][0]["work"] == [2, 8, 64]
    assert 0 < found["rows"][0]["matrix products"] < 2


@pytest.mark.parametrize(
    ("words", "said"), [(["--policy", "nope"], "no model 'nope'"), (["--runs", "0"], "1 on")]
)
def test_what_the_benchmark_refuses_ends_without_a_traceback(
    words: list[str], said: str, command: Command
) -> None:
    done = command("rar_mini/tools/speed.py", "--bench", *words)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
