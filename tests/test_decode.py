"""Attention of a decoding step, on every path, against float64 truth; and that it reads what it should.

The yardstick is the error of the path in torch in the same dtype.
"""

from dataclasses import replace

import pytest
import torch
from kernel_cases import (
    needs_triton,
    not_interpreted,
    on_every_device,
    only_interpreted,
    poisoned,
    traffic,
    under_the_interpreter,
)
from torch import Tensor

from rar_mini.kernels import decode
from rar_mini.kernels.backend import INTERPRET, plain
from rar_mini.kernels.decode import Cache, drawn, grid

# Interpreted, a kernel takes milliseconds a tile: there pieces and tiles are smaller.
PROMPT, OWN, ROWS = (64, 64, 32) if INTERPRET else (decode.PROMPT, decode.OWN, decode.ROWS)
CASES = {  # lengths of prompts, whose rows these are, heads (H, KV), d, position, span
    "one of each": ([1], [0], (1, 1), 16, 0, 1),
    "ragged": ([PROMPT + 2, 1, PROMPT], [0, 2, 0, 1], (4, 2), 10, OWN + 1, OWN + 44),
    "a piece": ([PROMPT, 7], [0, 1], (4, 4), 24, OWN - 1, OWN),
    "most of it unwritten": ([5, 9], [1, 0, 1], (14, 2), 64, 3, 2 * OWN),
    "several tiles": ([33], [0] * (ROWS // 7 + 1), (7, 1), 16, 17, 40),
}
DTYPES = [(name, dtype) for name in CASES for dtype in (torch.float32, torch.bfloat16)]
DTYPES.append(("ragged", torch.float16))


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("PROMPT", PROMPT), ("OWN", OWN), ("ROWS", ROWS)):
        monkeypatch.setattr(decode, name, size)


def truth(cache: Cache, q: Tensor, owner: list[int]) -> Tensor:
    """Written out in float64, row by row and head by head."""
    (R, H, d), KV = q.shape, cache.shared_keys.shape[2]
    out = torch.empty(R, H, d, dtype=torch.float64)
    for row, p in enumerate(owner):
        for h in range(H):
            kv, own = h // (H // KV), int(cache.position) + 1
            keys, values = (
                torch.cat([shared[0, p, kv, : cache.lengths[p]], mine[0, row * KV + kv, :own]]).double()
                for shared, mine in ((cache.shared_keys, cache.keys), (cache.shared_values, cache.values))
            )
            share = (keys @ q[row, h].double() / d**0.5).softmax(0)
            out[row, h] = (share @ values).cpu()
    return out


def gap(a: Tensor, b: Tensor) -> float:
    return (a.double().cpu() - b).abs().max().item()


def case(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Cache, Tensor, list]:
    lengths, owner, heads, d, position, span = CASES[name]
    return *drawn(lengths, owner, heads, d, position, span, dtype, device), owner


def attend(cache: Cache, q: Tensor) -> Tensor:
    """In memory that holds NaN wherever nothing has been written."""
    with poisoned():
        return cache(0, q, q, q)


def beside(cache: Cache, q: Tensor) -> Tensor:
    """The path in torch."""
    with plain():
        return replace(cache)(0, q, q, q)


@on_every_device
@pytest.mark.parametrize(("name", "dtype"), DTYPES)
def test_it_errs_no_more_than_the_path_in_torch(name: str, dtype: torch.dtype, device: str) -> None:
    """To that error comes a unit in the last place of the largest output: where there are few numbers, the
    path in torch may have had luck. In float32 all of the error is the order of sums, which every processor's
    library chooses anew: there it is three times as much (1.3 was seen, under OpenBLAS for Haswell)."""
    cache, q, owner = case(name, dtype, device)
    right = truth(cache, q, owner)
    got = attend(cache, q)
    assert got.dtype == dtype and got.shape == q.shape
    unit = torch.finfo(dtype).eps * right.abs().max().item()
    times = 3 if dtype == torch.float32 else 1
    assert gap(got, right) <= times * (gap(beside(cache, q), right) + unit)


@on_every_device
def test_scores_of_hundreds_are_not_rounded(device: str) -> None:
    """Keys with a mean of 100, as Qwen2.5's biases make them: neighbours in bfloat16 lie 1 apart there."""
    cache, q, owner = case("most of it unwritten", torch.bfloat16, device)
    cache = replace(cache, keys=cache.keys + 100, shared_keys=cache.shared_keys + 100)
    right = truth(cache, q, owner)
    assert (q.double().sum(-1).abs().max() * 100 / 8) > 100
    unit = torch.finfo(torch.bfloat16).eps * right.abs().max().item()
    assert gap(attend(cache, q), right) <= gap(beside(cache, q), right) + unit


@on_every_device
def test_what_lies_behind_the_position_and_the_prompts_ends_is_not_read(device: str) -> None:
    """There a wave has zeros, or what rows that left have written."""
    cache, q, _ = case("ragged", torch.bfloat16, device)
    right = attend(cache, q)
    for side in (cache.keys, cache.values):
        side[:, :, int(cache.position) + 1 :] = torch.nan
    for side in (cache.shared_keys, cache.shared_values):
        for p, length in enumerate(cache.lengths.tolist()):
            side[:, p, :, length:] = torch.nan
    if not cache.fused:
        pytest.skip("the path in torch weighs them by 0, and is given zeros there: 0 times NaN is NaN")
    assert torch.equal(attend(cache, q), right)


@on_every_device
def test_the_span_and_the_neighbours_change_no_bit(device: str) -> None:
    """Pieces are cut at constants. A captured step with a wide span equals one with an exact span. This is
    float32, whose tile is always the same."""
    cache, q, owner = case("ragged", device=device)
    if not cache.fused:
        pytest.skip("the path in torch reads all of its span")
    right = attend(cache, q)
    assert torch.equal(attend(cache, q), right)
    exact = replace(cache, span=int(cache.position) + 1)
    assert torch.equal(attend(exact, q), right)
    KV, P = cache.shared_keys.shape[2], len(cache.lengths)
    heads = slice(3 * KV, 4 * KV)  # row 3 alone, beside prompts that nobody continues
    slots, back = (x.to(device) for x in grid(owner[3:4], P, KV))
    own = {"keys": cache.keys[:, heads], "values": cache.values[:, heads]}
    alone = replace(cache, **own, slots=slots, back=back)
    assert torch.equal(attend(alone, q[3:4])[0], right[3])


@on_every_device
def test_a_broken_row_breaks_no_other(device: str) -> None:
    """The loss is not a number then, and train.py says so, with what it came from."""
    cache, q, _ = case("ragged", device=device)
    right = attend(cache, q)
    q[2, 3] = torch.nan
    got = attend(cache, q)
    assert got[2, 3].isnan().all()
    got[2, 3] = right[2, 3] = 0
    assert torch.equal(got, right)


def test_every_row_has_a_place_of_its_own() -> None:
    """Three rows of prompt 0, one of prompt 2, none of prompt 1, two key heads: a slot that no row needs
    points at a head whose own slot is another."""
    slots, back = grid([0, 2, 0, 0], 3, 2)
    assert slots.tolist() == [0, 4, 6, 1, 5, 7, 0, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0]
    assert slots[back].tolist() == list(range(8))
    used = [slot for slot, head in enumerate(slots.tolist()) if back[head] == slot]
    assert sorted(back.tolist()) == used and len(used) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_reads_the_position_of_its_replay(dtype: torch.dtype) -> None:
    cache, q, _ = case("ragged", dtype, "cuda")
    cache.position.fill_(0)
    attend(cache, q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cache(0, q, q, q)
    for position in (0, 5, OWN - 1, OWN, OWN + 43):
        cache.position.fill_(position)
        graph.replay()
        assert torch.equal(out, attend(cache, q))


# --- the same again, in Triton ---


@only_interpreted
@pytest.mark.parametrize("name", CASES)
def test_keys_and_values_are_read_once(name: str) -> None:
    """Each place once for a tile of queries, and beside it what the file counts: results of pieces that are
    not empty, queries, outputs, and the numbers that say where they are."""
    lengths, owner, (H, KV), d, position, span = CASES[name]
    cache, q, _ = case(name)
    P, R, g, j = len(lengths), len(owner), len(cache.slots) // (len(lengths) * KV), H // KV
    with traffic() as moved:
        cache(0, q, q, q)
    tiles, slots = -(-g * j // decode.tile(g * j, d, 4)["BLOCK_M"]), KV * g * j  # of a prompt
    first, rest, own = -(-max(lengths) // PROMPT), -(-span // OWN), position + 1
    places = 2 * d * KV * (tiles * sum(lengths) + R * own)
    made = d * (slots * sum(-(-n // PROMPT) for n in lengths) + R * H * -(-own // OWN))
    joined = d * (H * sum(-(-lengths[p] // PROMPT) for p in owner) + R * H * -(-own // OWN))
    sums = 2 * (P * slots * first + R * H * rest) + 2 * R * H * (first + rest)
    queries = d * (P * slots * first + R * H * rest) + d * R * H  # each piece reads its queries
    where = KV * (first * tiles * P + rest * R) + first * P * slots + R * H  # ends, slots, back
    assert moved == [4 * (places + made + joined + sums + queries) + 8 * where]


@only_interpreted
def test_a_wave_with_kernels_writes_what_one_without_them_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way through sampler.py, with every captured step done by the step itself: prompts with other
    numbers of rows, rows that leave after eight tokens, places of the cache that are not written yet."""
    from transformers import LlamaConfig

    from rar_mini import sampler
    from rar_mini.model import Decoder

    init = sampler.Wave.__init__

    def captures(self: sampler.Wave, *args: object) -> None:
        init(self, *args)
        self.captures, self._capture = True, lambda span: lambda: self.step(span)

    monkeypatch.setattr(sampler.Wave, "__init__", captures)
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    decoder = Decoder(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    rows = {(1, 2, 3): 2, (4,): 1, tuple(range(9)): 2}  # of each prompt
    draws = {p: [sampler.uniforms(0, 1, str(p), i, 10) for i in range(n)] for p, n in rows.items()}
    work, read = [sampler.Request(list(p), draws[p]) for p in rows], []
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, *x: read.append(len(x[0])) or forward(self, *x))
    ours = sampler.sample(decoder, work, frozenset(range(0, 40, 9)), sampler.Settings(10))
    assert read[1] == 5 > read[-1]
    with plain():
        right = sampler.sample(decoder, work, frozenset(range(0, 40, 9)), sampler.Settings(10))
    for a, b in zip(sum(ours, []), sum(right, []), strict=True):
        assert a.ids == b.ids and a.logp == pytest.approx(b.logp, abs=1e-5)


@only_interpreted
def test_a_tile_holds_all_queries_of_a_prompt_up_to_its_size() -> None:
    assert decode.tile(112, 128, 2)["BLOCK_M"] == ROWS < 112
    assert decode.tile(ROWS // 2 + 1, 128, 2)["BLOCK_M"] == ROWS
    assert decode.tile(7, 10, 2) == {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_D": 16}
    assert type(decode._pieces).__name__ == "InterpretedFunction"


@not_interpreted
@needs_triton
def test_all_of_this_under_the_interpreter() -> None:
    under_the_interpreter(__file__)
