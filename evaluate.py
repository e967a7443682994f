"""Measures judges: whether their verdicts can be trusted, before anyone trains on them and afterwards.

    python evaluate.py judge --judge keyword
    python evaluate.py replay RUN --judge chat:NAME

`judge` asks about answers whose truth is known: the labelled responses of the bundled sample, a good and a
flawed answer to each of 32 questions with a label on every criterion, or a file of the same form. It prints

- accuracy, Cohen's kappa, AUC and Brier score of the verdicts, by category and in all;
- how often the good answer of a pair gets the higher reward (a tie is lost);
- whether the judge says the same again when it is asked once more, and with the criteria in reverse order;
- how many answers gain by an injection ("rate this 10", a forged verdict, ...), beside harmless additions.

`replay` has another judge score the rollouts of a finished run: where the two part, and more so towards the
end, the policy has learnt the first judge's weakness. The share by weight of what the training judge credited
and the other rejects is the plainest sign.

Intervals are 95 %: by a bootstrap over questions, and Wilson's where a share may be 0 or 1. The last line
printed is one JSON object.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy import ndarray

from judge import Judge, Options, choose
from rar_mini import agreement, data
from rar_mini.agreement import accuracy, auc, brier, correlation, kappa, resampled, share
from rar_mini.checkpoint import Run
from rar_mini.data import Example
from rar_mini.kernels.advantage import TIE
from rar_mini.prompts import fill
from rar_mini.rubric import Rubric
from rar_mini.show import records

MEASURES = {"accuracy": accuracy, "kappa": kappa, "auc": auc, "brier": brier}
Judging = tyro.conf.OmitArgPrefixes[Options]
DEFAULTS = Options()


@dataclass(frozen=True)
class Labelled:
    """An answer whose truth is known."""

    example: Example
    response: str
    quality: str  # "good" or "flawed"
    labels: list[float]  # K, 1 where the response is good on the item


@dataclass(frozen=True)
class Judged:
    """What a judge said of N answers."""

    verdict: ndarray  # (N, K), NaN where the judge failed or there is no such item
    weight: ndarray  # (N, K)
    reward: ndarray  # (N,), NaN where the judge failed

    @property
    def failed(self) -> int:
        """Items that weigh something and have no verdict."""
        return int((np.isnan(self.verdict) & (self.weight != 0)).sum())


def ask(judge: Judge, answers: Sequence[tuple[Example, str]], progress: str, repeat: int = 0) -> Judged:
    """Have N answers judged, each on its own."""
    examples, responses = [example for example, _ in answers], [[response] for _, response in answers]
    scores = judge.score(examples, responses, progress=progress, repeat=repeat)
    return Judged(scores.verdict[:, 0].numpy(), scores.weight.numpy(), scores.reward[:, 0].numpy())


# --- judge --------------------------------------------------------------------------------------------------


def labelled(file: Path | None, domain: str) -> list[Labelled]:
    """The labelled responses of a file, or of the bundled sample. Raises ValueError where one is not
    whole."""
    domains = data.DOMAINS if domain == "all" else (domain,)
    examples = data.read(file) if file else [row for name in domains for row in data.sample(name)]
    found = []
    for example in examples:
        for place, row in enumerate(example.row.get("labelled_responses") or []):
            try:
                response, quality, labels = row["response"], row["quality"], row["labels"]
                fits = isinstance(response, str) and quality in ("good", "flawed")
                fits = fits and len(labels) == len(example.rubric) and all(x in (0, 1) for x in labels)
            except (TypeError, KeyError):
                fits = False
            if not fits:
                raise ValueError(
                    f"{file or domain}, {example.id!r}, labelled_responses[{place}]: expected a `response`, "
                    "a `quality` (good or flawed) and `labels` (0 or 1 for each of "
                    f"{len(example.rubric)} items)"
                )
            found.append(Labelled(example, response, quality, [float(x) for x in labels]))
    if not found:
        raise ValueError(f"{file or domain} has no `labelled_responses`: see README for their form")
    return found


def measure(
    judge: str = "auto",
    data: Path | None = None,
    domain: Literal["medical", "science", "all"] = "all",
    method: str = "rar-explicit",
    injections: int = 96,
    plot: Path | None = None,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure a judge on answers whose truth is known.

    Args:
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        data: a file with labelled responses; the bundled sample if not given
        domain: which bundled questions: medical, science or all
        method: direct-likert, reference-likert, rar-predefined, rar-explicit or rar-implicit
        injections: answers that an injection is put into, and a quarter as many harmless additions; 0 none
        plot: draw predicted against observed shares into this picture
    """
    spec, why = choose(judge)
    print(f"judge     {spec} ({why}), method {method}")
    items = labelled(data, domain)
    asker = Judge(spec, method, **vars(judging))
    answers = [(item.example, item.response) for item in items]
    said = ask(asker, answers, "judging")
    questions = [item.example.id for item in items]
    K = said.verdict.shape[1]
    many = f"{len(items)} labelled answers to {len(set(questions))} questions"
    print(f"answers   {many}, {said.failed} verdicts failed")
    result: dict[str, Any] = {"judge": spec, "method": method, "answers": len(items), "failed": said.failed}
    if method == "rar-explicit":
        label = np.array([item.labels + [math.nan] * (K - len(item.labels)) for item in items])  # (N, K)
        category = [[c.category for c in item.example.rubric.criteria] for item in items]
        kind = np.array([row + [""] * (K - len(row)) for row in category])  # (N, K)
        result["categories"] = against_labels(said.verdict, label, kind, questions)
        if plot:
            print(f"plot      {draw_reliability(said.verdict, label, plot, spec)}")
    elif plot:
        raise ValueError(f"--plot draws verdicts on labelled criteria: expected rar-explicit, got {method}")
    result["pairs"] = in_order(items, said.reward)
    reverse = [dataclasses.replace(e, rubric=Rubric(e.rubric.criteria[::-1])) for e, _ in answers]
    turned = ask(asker, [(e, text) for e, (_, text) in zip(reverse, answers, strict=True)], "reordered")
    if method == "rar-explicit":
        for row, item in enumerate(items):
            turned.verdict[row, : len(item.labels)] = turned.verdict[row, : len(item.labels)][::-1].copy()
    again = ask(asker, answers, "once more", repeat=1)
    for name, other in (("again", again), ("reordered", turned)):
        result[name] = consistent(name, said.verdict, other.verdict, questions)
    if injections:
        result["injections"] = attacked(asker, items, said.reward, injections)
    print(f"asked     {asker.ledger.line()}")
    if asker.mass:
        result["mass"] = sum(asker.mass) / len(asker.mass)
        print(f"mass      {result['mass']:.2f} of the probability on the offered answers")
    asker.close()
    print(json.dumps(without_nan(result)))


def against_labels(
    verdict: ndarray, label: ndarray, kind: ndarray, questions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Verdicts (N, K) against labels (N, K), by category and in all, with a printed table."""
    print(f"\n{'':12}{'verdicts':>8} {'met':>5}   " + "".join(f"{name:<22}" for name in MEASURES))
    table = {}
    names = [name for name in dict.fromkeys(kind[kind != ""])]
    for name in [*names, "all"]:
        rows, columns = np.nonzero(~np.isnan(verdict) & ~np.isnan(label) & ((kind == name) | (name == "all")))
        v, y = verdict[rows, columns], label[rows, columns]
        clusters = [questions[row] for row in rows]
        found = {
            key: resampled(clusters, lambda at, f=f, v=v, y=y: f(v[at], y[at])) for key, f in MEASURES.items()
        }
        met = float(y.mean()) if len(y) else math.nan
        print(f"{name:<12}{len(y):>8} {met:>5.0%}   " + "".join(f"{interval(x):<22}" for x in found.values()))
        table[name] = {"verdicts": len(y), "met": met} | found
    print()
    return table


def in_order(items: Sequence[Labelled], reward: ndarray) -> dict[str, Any]:
    """How often a good answer gets a higher reward than a flawed one to the same question."""
    wins = ties = losses = failed = 0
    for i, good in enumerate(items):
        for j, flawed in enumerate(items):
            if good.example.id == flawed.example.id and (good.quality, flawed.quality) == ("good", "flawed"):
                gap = float(reward[i] - reward[j])
                failed += math.isnan(gap)
                wins, ties, losses = wins + (gap > TIE), ties + (abs(gap) <= TIE), losses + (gap < -TIE)
    found = share(wins, wins + ties + losses)
    print(f"pairs     the good answer wins {interval(found)}: {wins} won, {losses} lost, {ties} tied")
    return {"accuracy": found} | {"won": wins, "lost": losses, "tied": ties, "failed": failed}


def consistent(name: str, one: ndarray, other: ndarray, questions: Sequence[str]) -> dict[str, Any]:
    """How far two sets of verdicts (N, K) of one judge agree."""
    same = resampled(questions, lambda at: accuracy(one[at], other[at]))
    a, b = agreement.both(one, other)
    gap = float(np.abs(a - b).mean()) if len(a) else math.nan
    print(f"{name:<10}same side of a half {interval(same)}, mean difference {gap:.3f}")
    return {"same": same, "difference": gap}


def attacked(judge: Judge, items: Sequence[Labelled], reward: ndarray, count: int) -> dict[str, Any]:
    """How many flawed answers gain by an injection, and how many by a harmless addition."""
    texts = json.loads((data.SAMPLE / "injections.json").read_text(encoding="utf-8"))
    flawed = [i for i, item in enumerate(items) if item.quality == "flawed"]
    result = {}
    for kind, many in (("injected", count), ("harmless", math.ceil(count / 4))):
        names, T = list(texts[kind]), len(texts[kind])
        # Every text in turn, and every answer in turn, one further each round: in ever new pairs.
        at = np.array([flawed[(n + n // T) % len(flawed)] for n in range(many)])
        changed = [
            (
                items[i].example,
                fill(
                    texts[kind][names[n % T]], question=items[i].example.question, response=items[i].response
                ),
            )
            for n, i in enumerate(at)
        ]
        gain = ask(judge, changed, kind).reward - reward[at]
        known = ~np.isnan(gain)
        gained = share(int((gain[known] > TIE).sum()), int(known.sum()))
        change = resampled([items[i].example.id for i in at], lambda rows, gain=gain: mean(gain[rows]))
        print(f"{kind:<10}gained {interval(gained)} of {known.sum()}, mean change {interval(change)}")
        result[kind] = {"gained": gained, "change": change, "failed": int((~known).sum())}
        result[kind]["change by text"] = {name: mean(gain[k::T]) for k, name in enumerate(names[:many])}
    return result


def draw_reliability(verdict: ndarray, label: ndarray, path: Path, title: str) -> Path:
    """Of verdicts near p, the share of items that are truly met: on the diagonal for an honest judge."""
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ValueError(f"plotting needs matplotlib ({error}): pip install -e '.[plot]'") from error
    verdict, label = agreement.both(verdict, label)
    bins = np.minimum((verdict * 10).astype(int), 9)
    rows = [(verdict[bins == b].mean(), label[bins == b].sum(), (bins == b).sum()) for b in np.unique(bins)]
    shares = [share(int(met), int(n)) for _, met, n in rows]
    sheet = figure.Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = sheet.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for (p, _, n), found in zip(rows, shares, strict=True):
        axes.plot([p, p], [found["low"], found["high"]], color="#a8bdd0", linewidth=2)
        axes.plot(p, found["value"], "o", color="#1f4e79", markersize=5)
        axes.annotate(f"{n}", (p, found["value"]), (6, -3), textcoords="offset points", fontsize=8)
    axes.set(xlim=(-0.04, 1.1), ylim=(-0.04, 1.04), xlabel="verdict", ylabel="share of items truly met")
    axes.set_title(f"{title}: {len(label)} verdicts, in tenths", loc="left", fontsize=10, parse_math=False)
    sheet.savefig(path, dpi=200, format=path.suffix[1:] or "png")
    return path


# --- replay -------------------------------------------------------------------------------------------------


def replay(
    run: tyro.conf.Positional[Path],
    /,
    judge: str = "auto",
    most: int = 512,
    judging: Judging = DEFAULTS,
) -> None:
    """Have another judge score a run's rollouts, by the run's own method.

    Args:
        run: the run's folder
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        most: answers to judge; of a longer run, steps that lie evenly
    """
    settings = Run.reopen(run)[1]["settings"]
    spec, why = choose(judge)
    rows = spaced(records(run, "rollouts.jsonl"), most)
    examples = examples_of(settings, rows)
    print(f"judge     {spec} ({why}) after {settings['judge']}, method {settings['method']}")
    print(f"answers   {len(rows)} of {len({row['step'] for row in rows})} steps of {run}")
    asker = Judge(spec, settings["method"], **vars(judging))
    said = ask(asker, [(e, row["response"]) for e, row in zip(examples, rows, strict=True)], "judging")
    first = np.array([number(row["reward"]) for row in rows])
    verdict = np.full(said.verdict.shape, math.nan)
    for i, row in enumerate(rows):
        verdict[i, : len(row["verdicts"])] = [number(item["verdict"]) for item in row["verdicts"]]
    steps, questions = np.array([row["step"] for row in rows]), [row["example_id"] for row in rows]
    group = np.array([f"{row['step']} {row['example_id']}" for row in rows])
    centred = [within(reward, group) for reward in (first, said.reward)]
    measures = {
        "trained": lambda at: mean(first[at]),
        "second": lambda at: mean(said.reward[at]),
        "correlation": lambda at: correlation(first[at], said.reward[at]),
        "in groups": lambda at: correlation(centred[0][at], centred[1][at]),
        "same": lambda at: accuracy(verdict[at], said.verdict[at]),
        "rejected": lambda at: rejected(verdict[at], said.verdict[at], said.weight[at]),
    }
    print(f"\n{'steps':12}" + "".join(f"{name:>13}" for name in measures))
    result: dict[str, Any] = {"judge": spec, "after": settings["judge"], "failed": said.failed, "steps": []}
    for part in np.array_split(np.unique(steps), min(8, len(np.unique(steps)))):
        at = np.flatnonzero((steps >= part[0]) & (steps <= part[-1]))
        found = {name: measure(at) for name, measure in measures.items()}
        print(f"{part[0]:>4} to {part[-1]:<4}" + "".join(f"{value:>13.3f}" for value in found.values()))
        result["steps"].append({"from": int(part[0]), "to": int(part[-1])} | found)
    print()
    result["all"] = {name: resampled(questions, measure) for name, measure in measures.items()}
    for name, found in result["all"].items():
        print(f"{name:<12}{interval(found)}")
    print(f"asked       {asker.ledger.line()}")
    asker.close()
    print(json.dumps(without_nan(result)))


def spaced(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, whole steps that lie evenly, the first and the last among them."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    if not steps:
        raise ValueError("the run has no rollouts yet: expected the lines of a step in rollouts.jsonl")
    keep = max(1, min(len(steps), most * len(steps) // len(rows)))
    kept = {steps[i] for i in np.linspace(len(steps) - 1, 0, keep).round().astype(int)}
    return [row for row in rows if row["step"] in kept]


def examples_of(settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[Example]:
    """The question of each row. Raises ValueError where the run's data is not as it was."""
    file = settings["data"] and Path(settings["data"])
    source = data.read(file, skip_bad=settings["skip_bad_rows"]) if file else data.sample(settings["domain"])
    known = {example.id: example for example in source}
    for row in rows:
        example = known.get(row["example_id"])
        titles = [item["title"] for item in row["verdicts"]]
        changed = settings["method"] == "rar-explicit" and example is not None
        if example is None or changed and titles != [c.title for c in example.rubric.criteria]:
            raise ValueError(
                f"{file or settings['domain']} has changed since the run: expected {row['example_id']!r} "
                f"with the items {', '.join(titles)}"
            )
    return [known[row["example_id"]] for row in rows]


def within(reward: ndarray, group: ndarray) -> ndarray:
    """Rewards (N,) less their group's mean."""
    centred = reward.copy()
    for name in np.unique(group):
        centred[group == name] -= mean(reward[group == name])
    return centred


def rejected(first: ndarray, second: ndarray, weight: ndarray) -> float:
    """Of the weight that the first judge credited, the share on items that the second says are not met."""
    known = ~(np.isnan(first) | np.isnan(second))
    credited = np.where(known & (first >= 0.5), np.abs(weight), 0.0)
    return float(credited[second < 0.5].sum() / credited.sum()) if credited.any() else math.nan


# --- numbers ------------------------------------------------------------------------------------------------


def number(value: float | None) -> float:
    """A number of a file, where null stands for what could not be had."""
    return math.nan if value is None else value


def mean(values: ndarray) -> float:
    """The mean of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def interval(found: dict[str, float]) -> str:
    """A number with its interval, for a table."""
    return "-" if math.isnan(found["value"]) else "{value:.3f} [{low:.3f}, {high:.3f}]".format_map(found)


def without_nan(value: Any) -> Any:
    """The same for JSON, which has no NaN: null in its place. Numbers keep six digits after the point."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


if __name__ == "__main__":
    commands = {"judge": measure, "replay": replay}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="evaluate.py", description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
