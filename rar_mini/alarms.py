"""Signs that a run is in trouble: each names its metric and a remedy, and is said once.

A sign is a pure function of the lines of metrics.jsonl so far: what it says, or None. What was said stands in
alarms.jsonl, which a resume rewinds with the other records: a resumed run neither repeats an alarm nor misses
one. No sign stops a run, because each has harmless causes, too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from rar_mini.setup import Training

Rows = Sequence[Mapping[str, Any]]

OF_GOLD = re.compile(r"eval/held_out_gold\d*_reward")

WINDOW = 4
"""Steps whose mean counts: one step depends on the questions that it drew."""
MOST = 0.5  # a share above this is most of the answers or groups
GOLD = 0.02  # of the rewards' range: what the judges have to part by, in either direction
PARTED = 0.1  # of the rewards' range: what a panel has to part by
LONGER = 2.0  # times the first answers
LOWER = 0.2  # times the first entropy
CONTRADICTED, REPEATED = 0.1, 20  # the share of verdicts, of at least so many


def values(rows: Rows, name: str) -> list[float]:
    """A metric of all steps that have it."""
    return [row[name] for row in rows if row.get(name) is not None]


def recent(rows: Rows, name: str) -> float | None:
    """The mean of a metric over the last steps; None in the first ones."""
    numbers = values(rows[-WINDOW:], name)
    return sum(numbers) / WINDOW if len(numbers) == WINDOW else None


def mostly(rows: Rows, name: str) -> float | None:
    """The mean of a share over the last steps, if it is above MOST."""
    share = recent(rows, name)
    return None if share is None or share <= MOST else share


def change(rows: Rows, name: str) -> tuple[float, float] | None:
    """The means of a metric over the first and the last steps; None as long as they overlap."""
    numbers = values(rows, name)
    if len(numbers) < 2 * WINDOW:
        return None
    return sum(numbers[:WINDOW]) / WINDOW, sum(numbers[-WINDOW:]) / WINDOW


def cut(rows: Rows) -> str | None:
    """Most answers do not end."""
    if (share := mostly(rows, "completions/clipped_ratio")) is None:
        return None
    return (
        f"{share:.0%} of the last answers were cut (completions/clipped_ratio). "
        "Raise --max-new-tokens, or ask for shorter answers"
    )


def too_easy(rows: Rows) -> str | None:
    """Most groups tie, because all of their answers are good."""
    if (share := mostly(rows, "frac_ties_right")) is None:
        return None
    return (
        f"{share:.0%} of the last groups tie with good answers and teach nothing (frac_ties_right). "
        "Bring harder questions, pass --resample-ties, or end here"
    )


def too_hard(rows: Rows) -> str | None:
    """Most groups tie, because all of their answers are bad."""
    if (share := mostly(rows, "frac_ties_wrong")) is None:
        return None
    return (
        f"{share:.0%} of the last groups tie with bad answers and teach nothing (frac_ties_wrong). "
        "Raise --group-size, pass --resample-ties, or bring easier questions"
    )


def gold_falls(rows: Rows) -> str | None:
    """The reward rises, and another judge sees the same answers get worse."""
    for gold in dict.fromkeys(name for row in rows for name in row if OF_GOLD.fullmatch(name)):
        names = "eval/held_out_reward", gold
        scores = [score for row in rows if None not in (score := [row.get(name) for name in names])]
        up, down = (scores[-1][i] - scores[0][i] if scores else 0.0 for i in (0, 1))
        if up >= GOLD and down <= -GOLD:
            return (
                f"the reward of held-out answers rose by {up:.3f} and the gold judge's fell by {-down:.3f} "
                f"({gold}): the policy learns the judge's weakness. "
                "Go back with --step, and train with another --judge or a --beta"
            )
    return None


def gold_parts(rows: Rows) -> str | None:
    """The gold judges come to disagree about the answers."""
    apart = values(rows, "eval/gold_disagreement")
    if not apart or apart[-1] - apart[0] < PARTED:
        return None
    return (
        f"the gold judges were {apart[0]:.3f} apart on held-out answers and are {apart[-1]:.3f} apart "
        "(eval/gold_disagreement): answers have come to please some judges and not others. "
        "Read them in evaluations.jsonl, and ask more judges with evaluate.py replay --judge"
    )


def longer(rows: Rows) -> str | None:
    """Answers grow and grow."""
    lengths = change(rows, "completions/mean_length")
    if lengths is None or lengths[1] < LONGER * lengths[0]:
        return None
    return (
        f"answers grew from {lengths[0]:.0f} to {lengths[1]:.0f} tokens (completions/mean_length): "
        "the judge may pay for length (reward_length_correlation). Add a pitfall against padding, or a --beta"
    )


def certain(rows: Rows) -> str | None:
    """The policy writes the same again and again. Reference answers have no reward: to learn them lowers the
    entropy, and should."""
    entropies = change([row for row in rows if row.get("reward") is not None], "entropy")
    if entropies is None or entropies[1] >= LOWER * entropies[0]:
        return None
    return (
        f"the entropy fell from {entropies[0]:.2f} to {entropies[1]:.2f} nats a token (entropy): "
        "answers are nearly the same, and little is left to compare. Lower --lr, or add a --beta"
    )


def contradicts(rows: Rows) -> str | None:
    """The judge gives the same answer different verdicts."""
    share, count = (rows[-1].get(f"items/{name}") or 0 for name in ("contradicted", "repeated"))
    if share <= CONTRADICTED or count < REPEATED:
        return None
    return (
        f"the judge contradicts itself on {share:.0%} of {count:.0f} verdicts that it gave more than once "
        "(items/contradicted). Pass --criteria-per-call 1, or take a stronger --judge"
    )


Sign = Callable[[Rows], str | None]
ALARMS: tuple[Sign, ...] = (cut, too_easy, too_hard, gold_falls, gold_parts, longer, certain, contradicts)


def sound(t: Training) -> None:
    """Say what has newly gone wrong, and write it down."""
    for alarm in ALARMS:
        if alarm.__name__ not in t.alarms and (words := alarm(t.history)):
            t.alarms.add(alarm.__name__)
            row = {"step": t.history[-1]["step"], "alarm": alarm.__name__, "says": words}
            t.run.append("alarms.jsonl", [row])
            tqdm.write(f"alarm    {words}")
