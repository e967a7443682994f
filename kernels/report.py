"""What the kernels compile to, without a GPU: `python -m rar_mini.kernels.report` prints README's table.

Each kernel is compiled ahead of time, at every tile and in every dtype that its launcher picks, and the
machine code is read: registers, shared memory, spills, and the widths of its accesses to memory. That says
what limits a kernel, not how fast it is.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rar_mini.kernels import adamw, advantage, logprob
from rar_mini.kernels.backend import triton

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32)}
TARGETS |= {"gfx942": ("hip", "gfx942", 64)}


@dataclass(frozen=True)
class Case:
    """A kernel in one dtype and tile, as its launcher would have it."""

    name: str
    fn: Any
    types: str  # of the arguments in order, without the constants
    constants: dict[str, int]
    aligned: str  # arguments that are divisible by 16
    threads: int
    fuse: bool
    wide: int  # accesses of 16 bytes that the path without a mask needs, by one thread
    excess: float  # bytes moved over the fewest possible


def cases() -> Iterator[Case]:
    V = 151_936
    for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        tile, streams = logprob.BLOCK // logprob.THREADS * size // 16, f"*{dtype} *i64 *fp32 *fp32 *fp32"
        common = (logprob.THREADS, True)
        forward, backward = {"BLOCK": logprob.BLOCK, "LANE": 16 // size}, {"BLOCK": logprob.BLOCK}
        once = V * size + 8 + 3 * 4  # beyond it, the target's logit is read again
        yield Case(f"logprob forward {dtype}", logprob._statistics, f"{streams} i32 i32 fp32", forward,
                   "logits target logp entropy lse stride", *common, tile, 1 + size / once)  # fmt: skip
        row = 8 + 4 * 4
        once = 2 * V * size + row  # beyond it, each tile after the first reads the row's numbers
        yield Case(f"logprob backward {dtype}", logprob._gradient, f"{streams} *fp32 i32 i32 fp32", backward,
                   "logits target lse entropy dlogp dentropy stride", *common, 2 * tile,
                   1 + V // logprob.BLOCK * row / once)  # fmt: skip
    for G in (16, 32, 64, 128, 256, 512, 1024):
        sizes = dict(zip(("BLOCK_G", "BLOCK_K"), advantage.tile(G), strict=True))
        yield Case("advantage", advantage._advantage, "*fp32 *fp32 *fp32 *fp32 i32 i32 i32 fp32 fp32", sizes,
                   "verdict weight reward advantage", advantage.THREADS, True, 0, 1.0)  # fmt: skip
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile = adamw.BLOCK // adamw.THREADS * size // 16
        types = " ".join([f"*{dtype}"] * 4 + ["i32 i64 i32 i32"] + ["fp32"] * 9)
        yield Case(f"adamw {dtype}", adamw._adamw, types, {"BLOCK": adamw.BLOCK}, "p g m v", adamw.THREADS,
                   False, 7 * tile, 1.0)  # fmt: skip


def build(case: Case, target: str) -> Any:
    """Compile one case for one target; no GPU is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, machine = case.fn.arg_names, GPUTarget(*TARGETS[target])
    types = case.types.split() + ["constexpr"] * len(case.constants)
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned.split()}
    source = ASTSource(case.fn, dict(zip(names, types, strict=True)), case.constants, attrs)
    options = {"num_warps": case.threads // machine.warp_size, "enable_fp_fusion": case.fuse}
    return triton.compile(source, target=machine, options=options)


def resources(built: Any) -> dict[str, int]:
    """Registers, shared memory, spills and 16-byte accesses, read from the machine code."""
    if "amdgcn" in built.asm:
        text = built.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])

        spills = field("vgpr_spill_count") + field("sgpr_spill_count") + field("private_segment_fixed_size")
        wide = re.findall(r"\b(?:global|buffer)_(?:load|store)_dwordx4\b", text)
        registers = field("vgpr_count")
        return {"registers": registers, "shared": built.metadata.shared, "spills": spills, "wide": len(wide)}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.check_output([tools / tool, option, file.name], text=True)
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    spills = int(re.search(r"STACK:(\d+)", usage)[1]) + len(re.findall(r"\b(?:LDL|STL)\b", code))
    wide = re.findall(r"\b(?:LDG|STG)\S*\.128\b", code)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    return {"registers": registers, "shared": built.metadata.shared, "spills": spills, "wide": len(wide)}


def main() -> None:
    print(f"triton {triton.__version__}; registers are a thread's, at the tile that needs most.\n")
    print(f"| kernel | threads | {' | '.join(TARGETS)} | shared bytes | spills | bytes moved / fewest |")
    print(f"|---|{'---|' * (len(TARGETS) + 4)}")
    rows: dict[str, list[Case]] = {}
    for case in cases():
        rows.setdefault(case.name, []).append(case)
    for name, tiles in rows.items():
        found = {t: [resources(build(case, t)) for case in tiles] for t in TARGETS}
        registers = " | ".join(str(max(r["registers"] for r in found[t])) for t in TARGETS)
        every = [r for several in found.values() for r in several]
        shared, spills = (max(r[key] for r in every) for key in ("shared", "spills"))
        print(f"| {name} | {tiles[0].threads} | {registers} | {shared} | {spills} | {tiles[0].excess:.3f} |")


if __name__ == "__main__":
    main()
