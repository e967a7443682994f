"""Cached decoding is the full forward; a row depends on its own numbers alone; nothing is lost at the end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from rar_mini import model, onednn, sampler
from rar_mini.model import Decoder
from rar_mini.sampler import Request, Settings, draw, end_tokens, sample, uniforms
from rar_mini.tools import speed

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
        logp = (hidden @ decoder.head.T / temperature).log_softmax(-1)
    return logp.gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cached_decoding_equals_the_full_forward(decoder: Decoder, temperature: float) -> None:
    """Also against sampling at one temperature and scoring at another: at step 0 the ratio must be 1."""
    for request, group in zip(
        requests(), sample(decoder, requests(), ENDS, Settings(24, temperature)), strict=True
    ):
        for completion in group:
            truth = full_logp(decoder, list(request.prompt), completion.ids, temperature)
            assert (torch.tensor(completion.logp) - truth).abs().max() < 1e-4


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


@pytest.mark.parametrize("tokens", [24, 300])
def test_buckets_and_graphs_change_no_row(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """A GPU's way, with every captured step done by the step itself: masked places, rows that wait for their
    bucket, rows that stand in twice. A row must not notice."""
    spans, ends, init = set(), frozenset(range(0, 259, 80)), sampler.Wave.__init__

    def capture(self: sampler.Wave, span: int) -> object:
        spans.add((span, len(self.batch)))
        return lambda: self.step(span)

    def captures(self: sampler.Wave, *args: object) -> None:
        init(self, *args)
        self.captures = True

    todo = requests(6, tokens)
    plain = sample(decoder, todo, ends, Settings(tokens))
    monkeypatch.setattr(sampler.Wave, "_capture", capture)
    monkeypatch.setattr(sampler.Wave, "__init__", captures)
    graphed = sample(decoder, todo, ends, Settings(tokens))
    assert [[c.ids for c in group] for group in graphed] == [[c.ids for c in group] for group in plain]
    sizes = {size for _, size in spans}
    assert 18 in sizes and len(sizes) > 1 and all(n == 18 or n & (n - 1) == 0 for n in sizes)
    assert max(span for span, _ in spans) > min(128, tokens - 1)


def test_the_cache_is_as_large_as_its_formula_says(decoder: Decoder) -> None:
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


def test_more_prompts_than_a_pass_takes_are_read_in_halves(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wave of short answers to 600 prompts of 512 tokens was one pass, whose masks alone are 280 GB."""
    whole = sample(decoder, requests(), ENDS, Settings(24))
    read = counting(monkeypatch)
    monkeypatch.setattr(sampler, "READ", 32)  # of 5 + 1 + 30 tokens
    halves = sample(decoder, requests(), ENDS, Settings(24))
    assert read[:2] == [5, 31]
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


def test_end_tokens_are_the_union_of_all_that_are_named() -> None:
    """A model that stops with an id that one file forgets looks as if 97 % of its answers were cut."""
    assert end_tokens(2, [2, 7], None, 9) == {2, 7, 9}


def test_draws_follow_the_distribution() -> None:
    """Inverse CDF on an even grid of numbers gives each token its share to within one in the grid."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]])
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, logp = draw(logits.expand(10_000, -1), grid, Settings(1))
    share = torch.bincount(tokens, minlength=5) / 10_000
    truth = logits[0].softmax(-1)
    assert (share - truth).abs().max() <= 1e-4
    assert torch.equal(logp, logits[0].log_softmax(-1)[tokens])


@pytest.mark.parametrize("V", [259, 1003, 49152])
def test_draws_are_those_of_one_running_sum(V: int) -> None:
    """Blocks are for speed alone. A token without mass is never drawn, even by the last number below 1."""
    logits = 4 * torch.randn(64, V, generator=torch.Generator().manual_seed(V))
    logits[:, ::3] = logits[:, -2:] = -torch.inf
    numbers = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    tokens, logp = draw(logits, numbers, Settings(1))
    truth = logits.double().log_softmax(-1)
    cdf = truth.exp().cumsum(-1)
    assert torch.equal(tokens, torch.searchsorted(cdf, numbers[:, None], right=True)[:, 0])
    assert (logp - truth.gather(-1, tokens[:, None])[:, 0]).abs().max() < 2e-6
    assert draw(logits, torch.full((64,), 1 - 2**-53, dtype=torch.float64), Settings(1))[1].isfinite().all()


def test_rounding_draws_no_token_without_mass() -> None:
    """The number that is just where a block begins. Sums of masses as far apart as 1 and e^-30 are rounded,
    and what was left of it within its block was below 0: less than the first token's nothing."""
    mass = (-30 * torch.rand(1000, 512, generator=torch.Generator().manual_seed(0))).exp()
    mass[:, 256] = 0
    sums = sampler._sums(mass)
    cdf = sums.cumsum(-1)
    tokens = sampler._inverse(mass, sums, cdf[:, :1] / cdf[:, -1:])
    assert (mass.gather(-1, tokens) > 0).all() and (tokens > 256).any()


def test_a_broken_policy_does_not_stop_the_sampler() -> None:
    """The loss is not a number then, and train.py says so, with what it came from."""
    for settings in (Settings(1), Settings(1, temperature=0.0), Settings(1, top_p=0.5)):
        tokens, logp = draw(torch.full((2, 512), torch.nan), torch.tensor([0.1, 0.9]), settings)
        assert logp.isnan().all() and (tokens < 512).all()


def test_top_p_and_top_k_cut_the_tail_and_logp_ignores_them() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log().expand(1000, -1)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for options, allowed in (({"top_k": 2}, {1, 2}), ({"top_p": 0.6}, {1, 2}), ({"top_p": 0.75}, {1, 2, 3})):
        tokens, logp = draw(logits, grid, Settings(1, **options))
        assert set(tokens.tolist()) == allowed
        assert torch.allclose(logp, logits[0].log_softmax(-1)[tokens])
    tokens, _ = draw(logits, grid, Settings(1, top_k=2, top_p=0.5))
    assert set(tokens.tolist()) == {1}


def test_random_numbers_are_a_rows_own() -> None:
    first = uniforms(0, 1, "q", 2, 8)
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
    "bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": NAN}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_impossible_settings_are_refused(bad: dict) -> None:
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
    words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.main(["--bench", *words])
    assert said in f"{stopped.value}{capsys.readouterr().err}"
