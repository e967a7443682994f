"""How fast the sampler is, beside what this device allows: `python -m rar_mini.sampler --bench`.

The work is that of many comparisons: 2 prompts x 8 completions x 64 tokens of the default policy, with end
tokens ignored, so that every row is as long as it may be. Then what a token costs as groups and answers grow.
A decoding step reads every weight once and multiplies it with one vector a row, so two limits stand beside
the tokens a second: those weights at the speed of copying, and those products at the speed of a large one.
"""

import argparse
import json
from collections.abc import Sequence

import torch

from rar_mini import data, policy
from rar_mini.kernels import bench
from rar_mini.policy import Policy
from rar_mini.sampler import Request, Settings, sample, uniforms

WORK = (2, 8, 64)  # prompts, completions of each, tokens of each
GROUPS = ((2, 4, 64), (2, 16, 64), (2, 64, 64))
LENGTHS = ((2, 8, 256), (2, 8, 1024))


def rate(actor: Policy, work: tuple[int, int, int], runs: int) -> float:
    """Tokens a second of sampling P x G x T tokens: the median of some runs, after one to warm up."""
    P, G, T = work
    requests = [
        Request(actor.encode(example), [uniforms(0, 0, example.id, g, T) for g in range(G)])
        for example in data.sample("medical")[:P]
    ]
    settings, on = Settings(T, cache_bytes=2**34), actor.model.head.device.type
    return P * G * T / bench.seconds(lambda: sample(actor.model, requests, frozenset(), settings), on, runs)


def limits(actor: Policy) -> tuple[float, float]:
    """How often a second this device reads all weights, and how many tokens it multiplies with them."""
    on, dtype = actor.model.head.device.type, actor.model.head.dtype
    numbers = sum(p.numel() for p in actor.model.parameters())
    copied, multiplied = bench.copying(on)[1], bench.multiplying(on, dtype)[1]
    return copied / (numbers * actor.model.head.element_size()), multiplied / (2 * numbers)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m rar_mini.sampler", description=__doc__)
    parser.add_argument("--bench", action="store_true", required=True, help="measure the sampler")
    parser.add_argument("--policy", default="smollm2-135m", help="as for train.py")
    parser.add_argument("--runs", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--short", action="store_true", help="leave out how the cost grows")
    options = parser.parse_args(argv)
    on = bench.device()
    actor = policy.load(options.policy, torch.bfloat16 if on == "cuda" else torch.float32, on)
    head = bench.conditions(on)
    print(f"sampler on {head['device']}, torch {head['torch']}, {options.policy}, median of {options.runs}")
    print(f"{'prompts x group x tokens':<26} {'tok/s':>8} {'ms a step':>10}   share of limits")
    read, multiplied = limits(actor)
    rows = []
    for work in (WORK, *(() if options.short else GROUPS + LENGTHS)):
        P, G, T = work
        found = rate(actor, work, options.runs if work == WORK else 1)
        shares = {"reading weights": found / (read * P * G), "matrix products": found / multiplied}
        shares = {name: round(share, 3) for name, share in shares.items()}
        step = 1e3 * P * G / found
        words = ", ".join(f"{share:.2f} of {name}" for name, share in shares.items())
        print(f"{' x '.join(map(str, work)):<26} {found:>8.1f} {step:>10.2f}   {words}", flush=True)
        rows.append(
            {"work": work, "tokens_per_second": round(found, 1), "ms_per_step": round(step, 2)} | shares
        )
    print(json.dumps(head | {"tokens_per_second": rows[0]["tokens_per_second"], "rows": rows}))
