"""What the kernels compile to for GPUs that are not here: no spill, wide accesses, room for enough programs.

And how often they compile: a stand-in for Triton's driver lets the public functions launch without a GPU, as
far as the decision whether a binary for these arguments exists already.
"""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import needs_triton, not_interpreted
from torch import Tensor

from rar_mini.kernels import adamw, advantage, decode, logprob, norm, report, rope, swiglu
from rar_mini.kernels import draw as drawing
from rar_mini.kernels.report import TARGETS, Case, build, programs, resources, sass

pytestmark = [needs_triton, not_interpreted]


def every_case() -> list[Case]:
    """Those of the table, and float64, which tests use."""
    table = list(report.cases())
    doubles = []
    for case in table:
        if case.name.startswith("logprob") and case.name.endswith("fp32"):
            constants = {name: 2 if name == "LANE" else n for name, n in case.constants.items()}
            types = case.types.replace("*fp32", "*fp64")
            name = case.name.replace("fp32", "fp64")
            doubles.append(replace(case, name=name, types=types, constants=constants))
    return table + doubles


def name_of(case: Case) -> str:
    return " ".join([case.name, *(f"{name}={n}" for name, n in case.constants.items())])


def compiler() -> tuple[int, ...]:
    return tuple(map(int, report.triton.__version__.split(".")[:2]))


def fewest(case: Case) -> int:
    """What the case's file claims of this compiler: before triton 3.9, two of them take more registers."""
    if compiler() >= (3, 9):
        return case.fewest
    if case.name == "advantage" and case.constants["BLOCK_G"] == 16:
        return case.fewest - 2
    return case.fewest - 1 if case.name == "adamw bf16" else case.fewest


def check(case: Case, target: str) -> None:
    found = resources(build(case, target))
    # Triton 3.7 keeps 8 bytes of one of them in memory, and an instruction each way.
    few = compiler() == (3, 7) and case.name == "norm of 3584 backward bf16" and target in ("sm_89", "sm_90")
    assert found["spills"] <= (10 if few else 0), found
    assert found["wide"] >= case.wide, found
    if not case.name.endswith("fp64"):
        assert programs(case, found, target) >= fewest(case), found


# --- what they compile to ---


TYPICAL = [c for c in report.cases() if c.name.endswith("bf16") or c.constants.get("BLOCK_G") == 1024]
TYPICAL = [c for c in TYPICAL if c.name != "decode prompt bf16" or c.constants["BLOCK_M"] == decode.ROWS]


@pytest.mark.parametrize("case", TYPICAL, ids=name_of)
def test_on_hopper(case: Case) -> None:
    check(case, "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", every_case(), ids=name_of)
def test_everywhere_in_every_dtype_at_every_tile(case: Case, target: str) -> None:
    check(case, target)
    if not case.name.startswith(("decode", "rope", "norm")):  # their tensors are whole rows
        odd = resources(build(replace(case, aligned=""), target))  # logits that lie anywhere
        assert odd["spills"] == 0, odd


def test_that_each_file_claims_what_is_checked() -> None:
    assert "1,024 threads or more" in norm.threads.__doc__
    for module in (logprob, advantage, adamw, swiglu, drawing):
        assert "six programs or more" in Path(module.__file__).read_text(encoding="utf-8")


def loops(code: str) -> list[str]:
    """The bodies of the loops in machine code: from each label to the jumps back to it."""
    return [m[0] for m in re.finditer(r"(?ms)^(\.L_x_\d+):((?!^\1:).)*?BRA[^\n]*`\(\1\)", code)]


def test_that_logits_pass_by_without_a_barrier() -> None:
    """In the loop over a row, no thread waits for another or sends it anything; after it, they do once."""
    case = next(case for case in report.cases() if case.name == "logprob forward bf16")
    _, code = sass(build(case, "sm_90"))
    (loop,) = (body for body in loops(code) if "LDG" in body)
    assert "LDG.E.128" in loop and not re.search(r"\b(BAR|SHFL|LDS|STS)\b", loop)
    assert loop.count(" ;") <= 11 * logprob.BLOCK // logprob.THREADS, "instructions a logit, as the file says"
    assert re.search(r"\bBAR\b", code) and re.search(r"\bSHFL\b", code)


def test_that_a_slice_costs_the_draw_what_its_file_says() -> None:
    """Instructions a logit, and of those the slow ones: powers of 2, the rounding, float64."""
    case = next(case for case in report.cases() if case.name == "draw slices bf16")
    _, code = sass(build(case, "sm_90"))
    each = drawing.BLOCK // drawing.THREADS
    assert code.count(" ;") <= (33 if compiler() == (3, 7) else 31) * each
    slow = [len(re.findall(rf"\b{name}\b", code)) for name in ("MUFU", "FRND", "F2F")]
    assert sum(slow) <= 4.5 * each, slow


def test_that_the_optimizer_rounds_as_the_reference_does() -> None:
    """Equality bit for bit needs every operation rounded once, to nearest, and nothing flushed to zero."""
    for case in report.cases():
        if case.name.startswith("adamw"):
            ptx = build(case, "sm_90").asm["ptx"]
            assert "div.rn.f32" in ptx and "sqrt.rn.f32" in ptx
            assert not re.search(r"\bfma\b|\.approx|\.ftz", ptx)


# --- how often they compile ---


class StandIn:
    """What Triton's driver tells before a launch, of a GPU that is not here. Nothing is ever launched."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*TARGETS["sm_90"])

    def get_current_device(self) -> str:
        return "stand-in"  # the key of Triton's caches: those of a real device stay as they are

    def get_current_stream(self, device: str) -> int:
        return 0


Binaries = dict[str, dict[str, Any]]
"""By kernel and by what it is specialised on: what Triton would compile."""


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch) -> Binaries:
    """Within the test, public functions take CPU tensors as a GPU's and stop where a kernel would compile."""
    import triton

    found: Binaries = {}

    def stop(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found.setdefault(fn.name, {})[key] = compile
        return True

    monkeypatch.setattr(triton.runtime.driver, "_active", StandIn())
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", stop)
    for module in (logprob, advantage, adamw, decode, rope, norm, swiglu, drawing):
        monkeypatch.setattr(module, "use_kernel", lambda tensor: True)
    return found


def counts(binaries: Binaries) -> dict[str, int]:
    return {name: len(keys) for name, keys in binaries.items()}


def policy_loss(N: int, V: int, dtype: torch.dtype, **options: Any) -> None:
    hidden, weight = (torch.zeros(n, 2, dtype=dtype, requires_grad=True) for n in (N, V))
    logp, entropy = logprob.linear_logprob(hidden, weight, torch.zeros(N, dtype=torch.int64), **options)
    (logp.sum() + entropy.sum()).backward()


def test_any_length_vocabulary_and_temperature_run_one_binary(binaries: Binaries) -> None:
    """Chunks begin anywhere, so that a target may lie at any multiple of 8 bytes, a log-probability of 4."""
    draw = random.Random(0)
    for N in (1, 16, *draw.sample(range(2, 999), 50)):
        V = draw.choice((1, 16, 64, draw.randrange(2, 999)))
        options = {
            "temperature": draw.choice((1.0, draw.random())),
            "chunk_bytes": draw.choice((10**4, 10**6)),
        }
        policy_loss(N, V, torch.bfloat16, **options)
    assert counts(binaries) == {"_statistics": 1, "_gradient": 1}


def test_logits_that_exist_run_two_at_most(binaries: Binaries) -> None:
    """One for rows that lie a multiple of 16 apart, one for others."""
    draw = random.Random(0)
    for N in draw.sample(range(1, 99), 50):
        target = torch.zeros(N + 1, dtype=torch.int64)
        logprob.logprob(torch.zeros(N, draw.randrange(2, 999)), target[1:], temperature=draw.random())
    assert counts(binaries) == {"_statistics": 2}


def test_groups_of_any_size_run_one_binary_a_tile(binaries: Binaries) -> None:
    draw = random.Random(0)
    for scale in (*advantage.SCALES, *draw.choices(advantage.SCALES, k=50)):
        P, G, K = draw.randrange(1, 9), draw.randrange(1, 1025), draw.choice((1, 16, draw.randrange(1, 513)))
        verdict, weight = torch.zeros(P + 1, G, K)[1:], torch.zeros(P + 1, K)[1:]
        advantage.group_advantage(verdict, weight, scale=scale)
    assert counts(binaries) == {"_advantage": 7}


def test_any_number_of_rows_of_any_vocabulary_is_drawn_by_two_binaries(binaries: Binaries) -> None:
    """Of each kernel: one for rows that lie a multiple of 16 apart, one for others."""
    draw = random.Random(0)
    for V in (16, 17, *draw.sample(range(2, 9999), 50)):
        R, temperature = draw.randrange(1, 99), draw.choice((0.0, 1.0, draw.random()))
        drawing.draw(torch.zeros(R, V), torch.zeros(R + 1, dtype=torch.float64)[1:], temperature)
    assert counts(binaries) == {"_slices": 2, "_choose": 2}


def parameter(n: int, dtype: torch.dtype) -> Tensor:
    p = torch.zeros(n, dtype=dtype)
    p.grad = torch.zeros_like(p)
    return p


def test_parameters_of_any_size_at_any_step_under_any_seed_run_one_binary(binaries: Binaries) -> None:
    draw = random.Random(0)
    for n in (1, 16, *draw.sample(range(2, 9999), 50)):
        params = [parameter(n, torch.bfloat16) for _ in range(draw.randrange(1, 20))]
        optimizer = adamw.AdamW(params, draw.random(), seed=draw.randrange(2 ** draw.randrange(63)))
        optimizer.step()
        for state in optimizer.state.values():
            state["step"] = draw.choice((15, draw.randrange(10**6)))
        optimizer.step(grad_scale=draw.random())
    assert counts(binaries) == {"_adamw": 1}


def attended(
    dtype: torch.dtype, P: int = 1, G: int = 16, span: int = 40, position: int = 0, n: int = 8
) -> None:
    """A layer of a decoding step with Qwen2.5-7B's heads: the rotation into the cache, and attention."""
    owner = [p for p in range(P) for _ in range(G)]
    cache, q = decode.drawn([n] * P, owner, (28, 4), 128, position, span, dtype)
    k, angles = q[:, :4], torch.ones(len(q), 1, 128, dtype=dtype)
    cache.rotate(0, q, k, k, angles, angles)
    cache(0, q, k, k)


def test_a_step_at_any_position_of_any_wave_runs_few_binaries(binaries: Binaries) -> None:
    """One for rows' own keys, and one for prompts whose groups fill the same tile."""
    draw = random.Random(0)
    for _ in range(9):
        P, G, span = draw.randrange(1, 4), draw.choice((10, 12, 16)), 8 * draw.randrange(1, 40)
        attended(torch.bfloat16, P, G, span, draw.randrange(span), 8 * draw.randrange(1, 40))
    assert counts(binaries) == {"_rotate": 1, "_pieces": 2, "_join": 1}


def layer(N: int, D: int, dtype: torch.dtype) -> None:
    """The norm of a sum and SwiGLU of N rows, both ways."""
    x, delta, gate, up = (torch.zeros(N, D, dtype=dtype, requires_grad=True) for _ in range(4))
    weight = torch.ones(D, dtype=dtype, requires_grad=True)
    square = torch.zeros(D, D, dtype=dtype, requires_grad=True)
    total, y = norm.add_rms_norm(x, delta, weight, 1e-6)
    (total + y + swiglu.swiglu_linear(gate, up, square)).sum().backward()


def test_layers_of_any_length_run_one_binary_a_width(binaries: Binaries) -> None:
    """And one more of norms without a sum, which a model's first is, and of weights that do not learn."""
    for N in (1, 2, 16, 31, 1000):
        layer(N, 576, torch.bfloat16)
    names = [f"_{kernel}_{way}" for kernel in ("norm", "swiglu") for way in ("forward", "backward")]
    assert counts(binaries) == dict.fromkeys(names, 1)
    norm.rms_norm(torch.zeros(3, 576, dtype=torch.bfloat16), torch.ones(576, dtype=torch.bfloat16), 1e-6)
    assert counts(binaries)["_norm_forward"] == 2


def test_that_the_table_shows_what_is_launched(binaries: Binaries) -> None:
    """Types, tiles, threads, fusing, and what counts as divisible by 16: of every case, and no other."""
    for dtype in (torch.bfloat16, torch.float32):
        policy_loss(3, 5, dtype)
    for G in range(1, 1025, 7):
        advantage.group_advantage(torch.zeros(1, G, 3), torch.zeros(1, 3))
    for dtype in (torch.bfloat16, torch.float32):
        adamw.AdamW([parameter(3, dtype)], 1.0).step()
        total = torch.zeros(3, dtype=torch.bfloat16)
        adamw.add_(total, torch.zeros(3, dtype=dtype), seed=1, step=1, index=1, turn=1)
        for G in (2, 4, 8, 16):
            attended(dtype, G=G)
        drawing.draw(torch.zeros(3, 16, dtype=dtype), torch.zeros(3, dtype=torch.float64))
    for dtype, D in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 3584),
        (torch.bfloat16, 8192),
        (torch.float32, 8192),
    ):
        layer(2, D, dtype)

    def launched(one: dict[str, Any]) -> tuple[Any, ...]:
        names, (attributes,) = list(one["signature"]), one["configs"]
        types = tuple(kind for kind in one["signature"].values() if kind != "constexpr")
        aligned = {names[i] for (i,), divisible in attributes.items() if divisible}
        constants = {names[i]: value for (i,), value in one["constants"].items()}
        return types, aligned, constants, one["num_warps"], one["enable_fp_fusion"]

    table: dict[str, list[Any]] = {}
    for case in report.cases():
        shown = (
            tuple(case.types.split()),
            set(case.aligned.split()),
            case.constants,
            case.threads // 32,
            case.fuse,
        )
        table.setdefault(case.fn.fn.__name__, []).append(shown)
    for name, shown in table.items():
        seen = [launched(one) for one in binaries[name].values()]
        assert len(seen) == len(shown) and all(one in shown for one in seen), name
    assert set(table) == set(binaries)
