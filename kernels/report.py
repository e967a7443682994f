"""What the kernels compile to, without a GPU: `python -m rar_mini.kernels.report` prints the table.

Each kernel is compiled ahead of time, at every tile and in every dtype that its launcher picks, and the
machine code is read: registers, shared memory, spills, and the widths of its accesses to memory. That says
what limits a kernel, not how fast it is. tests/test_compile.py holds the claims of each file against it.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rar_mini.kernels import adamw, advantage, decode, draw, logprob, norm, rope, swiglu
from rar_mini.kernels.backend import triton

TARGETS = {f"sm_{number}": ("cuda", number, 32) for number in (80, 89, 90, 100, 120)}
TARGETS |= {"gfx942": ("hip", "gfx942", 64)}
HELD = {
    "sm_80": (2048, 65_536, 164 * 1024),
    "sm_89": (1536, 65_536, 100 * 1024),  # and sm_86
    "sm_90": (2048, 65_536, 228 * 1024),
    "sm_100": (2048, 65_536, 228 * 1024),
    "sm_120": (1536, 65_536, 100 * 1024),
    "gfx942": (2048, 131_072, 64 * 1024),
}
"""Threads, registers, and bytes of shared memory of one SM or compute unit."""


@dataclass(frozen=True)
class Case:
    """A kernel in one dtype and tile, as its launcher would have it."""

    name: str
    fn: Any
    types: str  # of the arguments in order, without the constants
    constants: dict[str, int]
    aligned: str  # arguments that are divisible by 16 and specialised on that
    threads: int
    fuse: bool
    wide: int  # accesses of 16 bytes that the path without a mask needs, by one thread
    excess: float  # bytes moved over the fewest possible
    stages: int | None = None  # tiles on their way to a matrix product at once
    fewest: int = 6  # programs that fit on an SM at once, as its file claims


def cases() -> Iterator[Case]:
    V = 151_936
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile, streams = logprob.BLOCK // logprob.THREADS * size // 16, f"*{dtype} *i64 *fp32 *fp32 *fp32"
        common = (logprob.THREADS, True)
        forward, backward = {"BLOCK": logprob.BLOCK, "LANE": 16 // size}, {"BLOCK": logprob.BLOCK}
        once = V * size + 8 + 3 * 4  # beyond it, the target's logit is read again
        yield Case(f"logprob forward {dtype}", logprob._statistics, f"{streams} i32 i32 fp32", forward,
                   "logits stride", *common, tile, 1 + size / once)  # fmt: skip
        row = 8 + 4 * 4
        once = 2 * V * size + row  # beyond it, each tile after the first reads the row's numbers
        yield Case(f"logprob backward {dtype}", logprob._gradient, f"{streams} *fp32 i32 i32 fp32", backward,
                   "logits stride", *common, 2 * tile,
                   1 + V // logprob.BLOCK * row / once)  # fmt: skip
    for G in (16, 32, 64, 128, 256, 512, 1024):
        sizes = dict(zip(("BLOCK_G", "BLOCK_K"), advantage.tile(G), strict=True))
        yield Case("advantage", advantage._advantage, "*fp32 *fp32 *fp32 *fp32 i32 i32 i32 fp32 fp32", sizes,
                   "", advantage.THREADS, True, 0, 1.0)  # fmt: skip
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile = adamw.BLOCK // adamw.THREADS * size // 16
        types = " ".join([f"*{dtype}"] * 4 + ["i64 i64 i32 i32"] + ["fp32"] * 9)
        yield Case(f"adamw {dtype}", adamw._adamw, types, {"BLOCK": adamw.BLOCK}, "p g m v", adamw.THREADS,
                   False, 7 * tile, 1.0)  # fmt: skip
    for dtype, wide in (("bf16", 3), ("fp32", 4)):  # a batch's gradient, and the sum over processes
        yield Case(f"sum bf16 + {dtype}", adamw._add, f"*bf16 *{dtype} i64 i64 i32 i32 i32",
                   {"BLOCK": adamw.BLOCK}, "total g", adamw.THREADS, True, wide, 1.0)  # fmt: skip
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        streams, tile = f"*{dtype} *fp32 *fp64", draw.BLOCK // draw.THREADS * size // 16
        yield Case(f"draw slices {dtype}", draw._slices, f"{streams} i32 i32 fp32", {"BLOCK": draw.BLOCK},
                   "logits stride", draw.THREADS, True, tile, 1.0)  # fmt: skip
        yield Case(f"draw choice {dtype}", draw._choose, f"{streams} *fp64 *i64 *fp32 i32 i32 i32 fp32 i32",
                   {"BLOCK": draw.BLOCK, "SLICES": draw.SLICES}, "logits stride", draw.CHOOSING, True,
                   0, 1.0, fewest=1)  # fmt: skip
    yield from decoding()
    yield from norms()
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile, more = swiglu.BLOCK // swiglu.THREADS * size // 16, (swiglu.THREADS, True)
        yield Case(f"swiglu forward {dtype}", swiglu._swiglu_forward, f"*{dtype} *{dtype} *{dtype} i64",
                   {"BLOCK": swiglu.BLOCK}, "gate up y", *more, 3 * tile, 1.0)  # fmt: skip
        yield Case(f"swiglu backward {dtype}", swiglu._swiglu_backward, " ".join([f"*{dtype}"] * 6) + " i64",
                   {"AGAIN": True, "BLOCK": swiglu.BLOCK}, "dy gate up dgate dup y", *more, 6 * tile,
                   1.0)  # fmt: skip


def decoding() -> Iterator[Case]:
    """A step of Qwen2.5-7B: 96 rows of 6 prompts of 512 tokens, with 3,072 of their own."""
    R, P, H, KV, d, n, t = 96, 6, 28, 4, 128, 512, 3072
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        once = 2 * KV * d * size * (P * n + R * t) + 2 * R * H * d * size
        pieces = n // decode.PROMPT + t // decode.OWN
        # Each piece reads its queries, and what it leaves is written and read; each tile reads its keys.
        more = 8 * R * H * (d + 2) * pieces + R * H * d * size * (pieces - 1)
        tiles = -(-112 // decode.tile(112, d, size)["BLOCK_M"])
        excess = 1 + (more + 2 * KV * d * size * P * n * (tiles - 1)) / once
        types = " ".join([f"*{dtype}"] * 3 + ["*i64"] * 2 + ["*fp32"] * 3 + ["i32"] * 5 + ["fp32"])
        aligned = "q keys values ends slots out top total stride"
        groups = (16, 8, 4, 2) if size == 2 else (16,)  # rows of a prompt, as they leave
        shapes = [("prompt", g * H // KV, decode.PROMPT) for g in groups]
        for name, rows, piece in (*shapes, ("own", H // KV, decode.OWN)):
            constants = {"d": d, "SHARED": name == "prompt", "PIECE": piece}
            constants |= decode.tile(rows, d, size)
            threads, stages = decode.options(constants["BLOCK_M"])
            yield Case(f"decode {name} {dtype}", decode._pieces, types, constants, aligned, threads, True, 4,
                       excess, stages, fewest=1)  # fmt: skip
        constants = {"d": d, "BLOCK_S": decode.JOINED, "BLOCK_D": d}
        streams = f"*fp32 *fp32 *fp32 *i64 *{dtype} i32 i32 i32 i32 i32"
        yield Case(f"decode join {dtype}", decode._join, streams, constants, "out top total back into",
                   decode.THREADS, True, 0, excess)  # fmt: skip
        types = " ".join([f"*{dtype}"] * 8 + ["*i64 i32 i32 fp32"] + ["i32"] * 8)
        names = rope._rotate.arg_names
        aligned = " ".join(x for x in names[: names.index("d")] if x not in ("H", "KV", "sign"))
        constants = {"d": d, "INTO": True, "HEADS": rope.HEADS, "HALF": d // 2}
        blocks = -(-H // rope.HEADS) + 2 * -(-KV // rope.HEADS)  # each reads the angles and the position
        moved, angles = 2 * (H + 2 * KV) * d * size, d * size + 8
        excess = (moved + blocks * angles) / (moved + angles)
        yield Case(f"rope {dtype}", rope._rotate, types, constants, aligned, rope.THREADS, True, 2,
                   excess)  # fmt: skip


def norms() -> Iterator[Case]:
    """In a layer whose weights learn: at the narrowest tile, at that of Qwen2.5-7B, and at the widest."""
    for dtype, size, D in (("bf16", 2, 64), ("bf16", 2, 3584), ("bf16", 2, 8192), ("fp32", 4, 8192)):
        how = norm.tile(D)
        threads = norm.threads(**how)
        tile = how["LINES"] * how["BLOCK"] // threads * size // 16
        row = 4 * D * size + 4  # beyond it, the weight, of which each program reads its copy
        yield Case(f"norm of {D} forward {dtype}", norm._norm_forward,
                   " ".join([f"*{dtype}"] * 5) + " *fp32 i32 i32 fp32", {"ADD": True} | how,
                   "x delta weight total y root D", threads, True, 5 * tile,
                   1 + D * size / how["LINES"] / row, fewest=1024 // threads)  # fmt: skip
        # And its gradient's sums, in float32, written and read.
        yield Case(f"norm of {D} backward {dtype}", norm._norm_backward,
                   f"*{dtype} *{dtype} *fp32 *{dtype} *{dtype} *{dtype} *fp32 i32 i32",
                   {"ADD": True, "LEARNS": True, "ROWS": norm.ROWS} | how,
                   "h weight root dy dtotal dh sums D", threads, True, 5 * tile,
                   1 + D * (size + 8) / norm.ROWS / row, fewest=1024 // threads)  # fmt: skip


def build(case: Case, target: str) -> Any:
    """Compile one case for one target; no GPU is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, machine = case.fn.arg_names, GPUTarget(*TARGETS[target])
    types = case.types.split() + ["constexpr"] * len(case.constants)
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned.split()}
    source = ASTSource(case.fn, dict(zip(names, types, strict=True)), case.constants, attrs)
    options = {"num_warps": case.threads // machine.warp_size, "enable_fp_fusion": case.fuse}
    options |= {"num_stages": case.stages} if case.stages else {}
    return triton.compile(source, target=machine, options=options)


def sass(built: Any) -> tuple[str, str]:
    """What a cubin uses, and its machine code, as the tools that come with triton print them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        commands = ([tools / "cuobjdump", "-res-usage", file.name], [tools / "nvdisasm", "-c", file.name])
        done = [subprocess.run(x, capture_output=True, text=True, check=True) for x in commands]
    return done[0].stdout, done[1].stdout


def resources(built: Any) -> dict[str, int]:
    """Registers, shared memory, spills and 16-byte accesses, read from the machine code."""
    if "amdgcn" in built.asm:
        text = built.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])

        registers = field("vgpr_count")
        # Scalar registers spill into vector ones, not into memory.
        spills = field("vgpr_spill_count") + field("private_segment_fixed_size")
        wide = re.findall(r"\b(?:global|buffer)_(?:load|store)_dwordx4\b", text)
    else:
        usage, text = sass(built)
        registers = int(re.search(r"REG:(\d+)", usage)[1])
        spills = int(re.search(r"STACK:(\d+)", usage)[1]) + len(re.findall(r"\b(?:LDL|STL)\b", text))
        wide = re.findall(r"\b(?:LDG|STG)\S*\.128\b", text)
    return {"registers": registers, "shared": built.metadata.shared, "spills": spills, "wide": len(wide)}


def programs(case: Case, found: dict[str, int], target: str) -> int:
    """How many programs one SM or compute unit holds at once."""
    threads, registers, shared = HELD[target]
    each = -(-found["registers"] // 8) * 8  # registers are handed out by eights
    return min(min(threads, registers // each) // case.threads, shared // (found["shared"] + 1024))


def main() -> None:
    print(f"triton {triton.__version__}; registers are a thread's, at the tile that needs most.\n")
    heads = ("threads", *TARGETS, "shared bytes", "spills", "programs an SM", "bytes moved / fewest")
    print(f"| kernel | {' | '.join(heads)} |")
    print(f"|---|{'---:|' * len(heads)}")
    rows: dict[str, list[Case]] = {}
    for case in cases():
        rows.setdefault(case.name, []).append(case)
    for name, tiles in rows.items():
        found = [(t, case, resources(build(case, t))) for t in TARGETS for case in tiles]
        registers = (max(r["registers"] for t, _, r in found if t == target) for target in TARGETS)
        shared, spills = (max(r[key] for _, _, r in found) for key in ("shared", "spills"))
        fit = min(programs(case, r, t) for t, case, r in found)
        cells = (tiles[0].threads, *registers, shared, spills, fit, f"{tiles[0].excess:.3f}")
        print(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")


if __name__ == "__main__":
    main()
