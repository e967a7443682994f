"""SHARP: one rubric for all questions, improved by small edits that have to show their worth.

    python -m lab.sharp --judge local:NAME --domain medical --texts TEXTS.txt --out rules.json

After SHARP, arXiv 2605.06822; notes by others were read. At most M rules of weight w and threshold t:

    score = sum_k w_k 1[v_k >= t_k] / sum_k w_k    agreement = share of pairs whose better one scores higher

In each round J = 5 atomic edits (threshold, weight, add, remove) are proposed from the K = 20 worst pairs.
The best is accepted if agreement on held-out pairs is then more than eps above the best so far. OUT has all.

Ours: no model writes edits. All that there are compete, rules to add are the lines of TEXTS, and the J are
those that order most of the K; the best orders most training pairs. The first that is refused ends it. Rules
begin as RaR's predefined criteria. Pairs are those of `evaluate.py alignment` but for `test` rows; if a
verdict is missing, the pair is not ordered, so that no rule gains by its failures.

What came out (tests/lab/test_sharp.py): a planted rule that credits worse answers is removed, a good one is
added, and what only training pairs like is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from judge import Judge
from rar_mini.evaluation import labelled
from rar_mini.files import plain_text, write_json
from rar_mini.options import run_command
from rar_mini.prompts import PREDEFINED
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import choose

Verdicts = Callable[[str], np.ndarray]  # of a rule on the better and the worse answer of N pairs, (N, 2)
THRESHOLDS = ("threshold", 0.3), ("threshold", 0.5), ("threshold", 0.7)


class Rule(NamedTuple):
    text: str
    weight: float = 1.0
    threshold: float = 0.5


def edits(rules: list[Rule], texts: Sequence[str], most: int) -> list[tuple[list[Any], list[Rule]]]:
    """Each single edit, and the rules after it. Of equal ones the first is taken, so removals come first."""
    parts = [(rules[:n], rule, rules[n + 1 :]) for n, rule in enumerate(rules)]
    found = [(["remove", rule.text], a + b) for a, rule, b in parts if len(rules) > 1]
    for before, rule, after in parts:
        for name, value in (("weight", rule.weight / 2), ("weight", rule.weight * 2), *THRESHOLDS):
            found.append(([name, rule.text, value], [*before, rule._replace(**{name: value}), *after]))
    known = {rule.text for rule in rules}
    new = [text for text in texts if text not in known] if len(rules) < most else []
    return found + [(["add", text], [*rules, Rule(text)]) for text in new]


def gaps(rules: Sequence[Rule], verdicts: Verdicts) -> np.ndarray:
    """How much higher the better answer of each pair scores, (N,); NaN if that is not known."""
    met = [weight * np.where(np.isnan(v := verdicts(text)), v, v >= t) for text, weight, t in rules]
    return sum(met) @ [1, -1] / sum(rule.weight for rule in rules)


def agreement(gap: np.ndarray) -> float:
    """The share of pairs that are ordered rightly; one whose gap is NaN is not."""
    return float((gap > 1e-6).mean())


def search(
    rules: list[Rule],
    texts: Sequence[str],
    verdicts: Verdicts,
    held: np.ndarray,
    most: int = 12,
    eps: float = 0.01,
) -> tuple[list[Rule], list[dict[str, Any]]]:
    """The rules at the end, and each round's edit; `held`, (N,) bool, says which pairs decide."""
    log, accepted, best = [], True, agreement(gaps(rules, verdicts)[held])
    while accepted:
        gap = gaps(rules, verdicts)
        train = np.flatnonzero(~held)
        worst = train[np.argsort(gap[train], kind="stable")[:20]]  # NaN comes last
        tried = [(edit, new, gaps(new, verdicts)) for edit, new in edits(rules, texts, most)]
        five = sorted(tried, key=lambda each: -agreement(each[2][worst]))[:5]
        edit, new, gap = max(five, key=lambda each: agreement(each[2][train]))
        accepted = (value := agreement(gap[held])) > best + eps
        log.append({"edit": edit, "before": best, "held_out": value, "accepted": accepted})
        rules, best = (new, value) if accepted else (rules, best)
    return rules, log


def main(
    out: Path, judge: str = "auto", data: Path | None = None, domain: str = "all", texts: Path | None = None
) -> None:
    """Improve rules for all questions until held-out pairs confirm no edit.

    Args:
        out: the JSON file of the rules and of all rounds
        judge: who gives verdicts on rules, as --judge of train.py
        data: rows with pairs (docs/data.md); the bundled sample if not given
        domain: which bundled questions: medical, science or all
        texts: a file of rules that may be added, one a line
    """
    pairs = [pair for pair in labelled.pairs(data, domain) if pair.example.split != "test"]
    asker = Judge(choose(judge)[0], "rar-explicit")

    @cache
    def verdicts(text: str) -> np.ndarray:
        rubric = Rubric((Criterion(text[:40], text, "literal", 1.0),))
        asked = [replace(pair.example, rubric=rubric) for pair in pairs]
        answers = [[pair.preferred, pair.worsened] for pair in pairs]
        return asker.score(asked, answers, progress="judging").verdict[..., 0].numpy()

    lines = plain_text(texts).splitlines() if texts else []
    held = np.array([pair.example.split != "train" for pair in pairs])
    if held.all() or not held.any():
        raise ValueError(f"{data or domain}: expected training and held-out pairs, got one split alone")
    start = [Rule(item.description) for item in PREDEFINED]
    rules, log = search(start, list(filter(str.strip, lines)), verdicts, held)
    write_json(out, {"rules": [rule._asdict() for rule in rules], "rounds": log})
    print(f"agreement {log[0]['before']:.3f} -> {log[-1]['before']:.3f}; the rules are in {out}")


if __name__ == "__main__":
    run_command(main, "python -m lab.sharp")
