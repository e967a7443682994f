"""How fast the sampler and a whole training step are, beside what this device allows.

    python -m rar_mini.tools.speed
    python train.py --bench --operators

The work is 2 prompts x 8 completions x 64 tokens of the default policy. End tokens are ignored, so that every
row is as long as it may be. The sampler's table also shows what a token costs as groups and answers grow.

A decoding step reads every weight once and multiplies it with one vector a row. So two limits stand beside
the tokens a second: reading the weights at the speed of copying, and multiplying at the speed of a large
product. A training step passes its packed tokens forwards once and backwards twice: its limit is the second.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities

from rar_mini import policy
from rar_mini.data import Example
from rar_mini.kernels import bench
from rar_mini.options import Parser, counted, one_line
from rar_mini.policy import Policy
from rar_mini.report import Clock
from rar_mini.rubric import Criterion, Rubric
from rar_mini.sampler import Request, Settings, sample, uniforms
from rar_mini.setup import Training

WORK = (2, 8, 64)  # prompts, completions of each, tokens of each
GROUPS = ((2, 4, 64), (2, 16, 64), (2, 64, 64))
LENGTHS = ((2, 8, 256), (2, 8, 1024))
SYSTEM = "Answer the medical question."
QUESTIONS = (
    "What are common symptoms of iron deficiency anemia, and how is it confirmed?",
    "A child has a barking cough and stridor at rest. What is the diagnosis and the treatment?",
)
RUBRIC = ("blood", "child", "croup", "ferritin", "iron", "fatigue", "steroid", "symptoms")


def work() -> list[Example]:
    """The two questions as examples, with a rubric that takes a judge next to no time."""
    rubric = Rubric(tuple(Criterion(word, word, "essential", 1.0) for word in RUBRIC))
    system = {"role": "system", "content": SYSTEM}
    return [
        Example(f"bench-{i}", "train", (system, {"role": "user", "content": text}), "", rubric, {})
        for i, text in enumerate(QUESTIONS)
    ]


def rate(actor: Policy, size: tuple[int, int, int], runs: int) -> float:
    """Tokens a second when P x G x T tokens are sampled: the median of `runs`, after one to warm up."""
    P, G, T = size
    requests = [
        Request(actor.encode(example), [uniforms(0, 0, example.id, g, T) for g in range(G)])
        for example in work()[:P]
    ]
    settings, on = Settings(T, cache_bytes=2**34), actor.model.head.device.type
    return P * G * T / bench.seconds(lambda: sample(actor.model, requests, frozenset(), settings), on, runs)


def limits(actor: Policy) -> tuple[float, float]:
    """How often a second this device can read the weights of all products, and how many tokens a second it
    can multiply with them."""
    on, head = actor.model.head.device.type, actor.model.head
    weights = head.numel() + sum(p.numel() for p in actor.model.model["layers"].parameters())
    copied, multiplied = bench.copying(on)[1], bench.multiplying(on, head.dtype)[1]
    return copied / (weights * head.element_size()), multiplied / (2 * weights)


def training(t: Training, step: Callable[[Clock], object], runs: int, operators: bool) -> None:
    """Print how long `step` takes, which is a whole training step on the benchmark's work: the median of
    `runs`, after one to warm up, by stage, and the share of its matrix products' limit. Then the time of its
    `operators`, if that is wanted."""
    (P, G, T), c = WORK, t.config
    head, multiplied = bench.conditions(t.actor.model.head.device.type), limits(t.actor)[1]
    clocks = [Clock() for _ in range(runs + 1)]
    for clock in clocks:
        step(clock)
    timed = [clock.seconds for clock in clocks[1:]]
    stages = {stage: statistics.median(row[stage] for row in timed) for stage in timed[0]}
    seconds = statistics.median(row.total() for row in timed)
    prompts = sum(len(t.actor.encode(example)) for example in work())
    # Sampling reads prompts and completions once; training goes forwards once and backwards twice.
    trained = c.inner_epochs * (prompts + P * (c.train_rollouts or G) * (T - 1))
    least = (prompts + P * G * T + 3 * trained) / multiplied
    print(f"a step on {head['device']}, torch {head['torch']}, {c.policy}, median of {runs}")
    by_stage = ", ".join(f"{stage} {taken:.2f}" for stage, taken in stages.items())
    share = f"{least / seconds:.2f} of matrix products"
    print(f"{' x '.join(map(str, WORK))}: {seconds:.2f} s ({by_stage}), {share}")
    row = {"seconds_per_step": round(seconds, 3), "tokens_per_second": round(P * G * T / seconds, 1)}
    row |= {"stages": {stage: round(taken, 3) for stage, taken in stages.items()}}
    if operators:
        row["operators"] = by_operator(step)
    print(json.dumps(head | row | {"matrix products": round(least / seconds, 3)}))


def by_operator(step: Callable[[Clock], object], most: int = 12) -> dict[str, float]:
    """Print the operators that one step spends most of its time in, and return their seconds. Watching makes
    small operators slower than they are."""
    with profile(activities=list(supported_activities())) as seen:
        step(Clock())
    rows, on = seen.key_averages(), "device" if bench.device() == "cuda" else "cpu"
    if on == "device":  # an operator of the CPU has the time of its kernels, too, which are rows of their own
        rows = [row for row in rows if row.device_type == DeviceType.CUDA and not row.is_user_annotation]
    spent = {row.key: getattr(row, f"self_{on}_time_total") / 1e6 for row in rows}
    total = sum(spent.values())
    for row in sorted(rows, key=lambda row: -spent[row.key])[:most]:
        print(
            f"  {row.key[:50]:<50} {spent[row.key]:7.2f} s {spent[row.key] / total:5.0%} {row.count:9,} calls"
        )
    return {name: round(s, 3) for name, s in sorted(spent.items(), key=lambda x: -x[1])[:most]}


def main(argv: Sequence[str]) -> None:
    """Run the command line. A refusal ends in one line, without a traceback."""
    parser = Parser(
        "python -m rar_mini.tools.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", default="smollm2-135m", help="as for train.py")
    parser.add_argument("--runs", type=counted, default=5, help="how many runs the median is taken of")
    parser.add_argument("--short", action="store_true", help="measure the first line only")
    # As it was written when this was a command of sampler.py.
    parser.add_argument("--bench", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    table(options)


def table(options: argparse.Namespace) -> None:
    """Print how many tokens a second the sampler draws, beside the limits, and how the cost grows."""
    on = bench.device()
    actor = policy.load(options.policy, torch.bfloat16 if on == "cuda" else torch.float32, on)
    head = bench.conditions(on)
    runs = f"median of {options.runs}, then one run each"
    print(f"sampler on {head['device']}, torch {head['torch']}, {options.policy}, {runs}")
    print(f"{'prompts x group x tokens':<26} {'tok/s':>8} {'ms a step':>10}   share of limits")
    read, multiplied = limits(actor)
    rows = []
    for size in (WORK, *(() if options.short else GROUPS + LENGTHS)):
        P, G, T = size
        per_second = rate(actor, size, options.runs if size == WORK else 1)
        shares = {"reading weights": per_second / (read * P * G), "matrix products": per_second / multiplied}
        shares = {name: round(share, 3) for name, share in shares.items()}
        step = 1e3 * P * G / per_second
        words = ", ".join(f"{share:.2f} of {name}" for name, share in shares.items())
        print(f"{' x '.join(map(str, size)):<26} {per_second:>8.1f} {step:>10.2f}   {words}", flush=True)
        rows.append(
            {"work": size, "tokens_per_second": round(per_second, 1), "ms_per_step": round(step, 2)} | shares
        )
    print(json.dumps(head | {"tokens_per_second": rows[0]["tokens_per_second"], "rows": rows}))


if __name__ == "__main__":
    with one_line("python -m rar_mini.tools.speed"):
        main(sys.argv[1:])
