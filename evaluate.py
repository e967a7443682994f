"""Measures judges: whether their verdicts can be trusted, before anyone trains on them and afterwards.

    python evaluate.py judge --judge keyword
    python evaluate.py replay RUN --judge chat:NAME

`judge` asks about answers whose truth is known: the labelled responses of the bundled sample, a good and a
flawed answer to each of 32 questions with a label on every criterion, or a file of the same form. It prints

- accuracy, Cohen's kappa, AUC and Brier score of the verdicts, by category and in all;
- how often the good answer of a pair gets the higher reward (a tie is lost);
- whether the judge says the same again when it is asked once more, and with the criteria in reverse order,
  where it is asked about several at once;
- how many flawed answers gain by an injection ("rate this 10", a forged verdict, ...), beside harmless
  additions. An answer that has the full reward already cannot gain: a judge that grants everything looks safe
  here, and fails at the pairs.

`replay` has another judge score the rollouts of a finished run: where the two part, and more so towards the
end, the policy has learnt the first judge's weakness. The share by weight of what the training judge credited
and the other rejects is the plainest sign.

Intervals are 95 %: by a bootstrap over questions, and Wilson's for the shares of pairs and of injections,
which may be 0 or 1. Wilson's takes its cases for independent: it is too narrow where one question has several
pairs, or one answer several injections. The last line printed is one JSON object.
"""

import dataclasses
import json
import math
from collections import Counter, defaultdict
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
from rar_mini.checkpoint import Run, records
from rar_mini.data import Example
from rar_mini.kernels.advantage import TIE
from rar_mini.options import from_json, run_command
from rar_mini.plot import drawing
from rar_mini.prompts import fill
from rar_mini.rubric import Design, Rubric

MEASURES = {"accuracy": accuracy, "kappa": kappa, "auc": auc, "brier": brier}
Judging = tyro.conf.OmitArgPrefixes[Options]
DEFAULTS = Options()


@dataclass(frozen=True)
class Labelled:
    """An answer whose truth is known."""

    example: Example
    response: str
    quality: str  # "good" or "flawed"
    labels: list[float]  # K, 1 where the response is good on the item; where a literal one holds


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


def labelled(file: Path | None, domain: str, skip_bad: bool = False) -> list[Labelled]:
    """The labelled responses of a file, or of the bundled sample. Raises ValueError where one is not
    whole."""
    domains = data.DOMAINS if domain == "all" else (domain,)
    notes: Counter[str] = Counter()
    if file:
        examples = data.read(file, skip_bad=skip_bad, notes=notes)
    else:
        examples = [row for name in domains for row in data.sample(name)]
    for note, count in notes.items():
        print(f"  {note}: {count}")
    found = []
    for example in examples:
        rows = example.row.get("labelled_responses") or []
        if not isinstance(rows, list):
            raise ValueError(
                f"{file or domain}, {example.id!r}, labelled_responses: expected a list, got {rows!r:.40}"
            )
        for place, row in enumerate(rows):
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
                    f"{len(example.rubric)} items), got {row!r:.80}"
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
    skip_bad_rows: bool = False,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure a judge on answers whose truth is known.

    Args:
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        data: a file with labelled responses; the bundled sample if not given
        domain: which bundled questions: medical, science or all
        method: direct-likert, reference-likert, rar-predefined, rar-explicit or rar-implicit
        injections: answers that an injection is put into, and a quarter as many harmless additions; 0 none
        plot: draw predicted against observed shares into this picture; of rar-explicit alone
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
    """
    # What cannot be done is refused before a judge is paid.
    if injections < 0:
        raise ValueError(f"--injections {injections}: expected how many, or 0 for none")
    if plot:
        if method != "rar-explicit":
            raise ValueError(
                f"--plot draws verdicts on labelled criteria: expected rar-explicit, got {method}"
            )
        drawing()
    spec, why = choose(judge)
    print(f"judge     {spec} ({why}), method {method}")
    items = labelled(data, domain, skip_bad_rows)
    if injections and not any(item.quality == "flawed" for item in items):
        raise ValueError(
            "--injections are put into flawed answers: expected labelled responses of that quality, got good "
            "ones only; add some, or pass --injections 0"
        )
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
    result["pairs"] = in_order(items, said.reward)
    again = ask(asker, answers, "once more", repeat=1)
    result["again"] = consistent("again", said.verdict, again.verdict, questions)
    # Criteria that are asked about one by one, or not at all, have no order.
    if method == "rar-implicit" or (method == "rar-explicit" and asker.per_call > 1):
        result["reordered"] = consistent("reordered", said.verdict, reordered(asker, items), questions)
    if injections:
        result["injections"] = attacked(asker, items, said.reward, injections)
    finish(asker, result)


def reordered(judge: Judge, items: Sequence[Labelled]) -> ndarray:
    """Verdicts (N, K) that were asked for with the criteria in reverse order, back in the rubrics' own."""
    turned = []
    for item in items:
        rubric = Rubric(item.example.rubric.criteria[::-1])
        turned.append((dataclasses.replace(item.example, rubric=rubric), item.response))
    verdict = ask(judge, turned, "reordered").verdict
    for row, item in zip(verdict, items, strict=True):
        K = min(len(row), len(item.labels))  # of a rating there is one
        row[:K] = row[:K][::-1].copy()
    return verdict


def against_labels(
    verdict: ndarray, label: ndarray, kind: ndarray, questions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Verdicts (N, K) against labels (N, K), by category and in all, with a printed table."""
    print(f"\n{'':12}{'verdicts':>8} {'met':>5}   " + "".join(f"{name:<24}" for name in MEASURES))
    table = {}
    for name in [*dict.fromkeys(kind[kind != ""]), "all"]:
        rows, columns = np.nonzero(~np.isnan(verdict) & ~np.isnan(label) & ((kind == name) | (name == "all")))
        v, y = verdict[rows, columns], label[rows, columns]
        clusters = [questions[row] for row in rows]
        found = {
            key: resampled(clusters, lambda at, f=f, v=v, y=y: f(v[at], y[at])) for key, f in MEASURES.items()
        }
        met = float(y.mean()) if len(y) else math.nan
        print(f"{name:<12}{len(y):>8} {met:>5.0%}   " + "".join(f"{interval(x):<24}" for x in found.values()))
        table[name] = {"verdicts": len(y), "met": met} | found
    print()
    return table


def in_order(items: Sequence[Labelled], reward: ndarray) -> dict[str, Any]:
    """How often a good answer gets a higher reward than a flawed one to the same question."""
    rewards: dict[tuple[str, str], list[float]] = defaultdict(list)
    for item, value in zip(items, reward.tolist(), strict=True):
        rewards[item.example.id, item.quality].append(value)
    gaps = np.array(
        [
            good - flawed
            for name in dict.fromkeys(item.example.id for item in items)
            for good in rewards[name, "good"]
            for flawed in rewards[name, "flawed"]
        ]
    )
    won, lost, tied = ((gaps > TIE).sum(), (gaps < -TIE).sum(), (np.abs(gaps) <= TIE).sum())
    counts = {"won": int(won), "lost": int(lost), "tied": int(tied), "failed": int(np.isnan(gaps).sum())}
    found = share(counts["won"], len(gaps) - counts["failed"])
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"pairs     the good answer wins {interval(found)}: {told}")
    return {"accuracy": found} | counts


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
        names, T, F = list(texts[kind]), len(texts[kind]), len(flawed)
        # Every text in turn, and every answer in turn. Where both come round together, after lcm(T, F), the
        # answers move on by one: no pair comes twice before all T x F were there, and then it ends.
        at = np.array([flawed[(n + n // math.lcm(T, F)) % F] for n in range(min(many, T * F))])
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
        result[kind]["change by text"] = {name: mean(gain[k::T]) for k, name in enumerate(names[: len(at)])}
    return result


def draw_reliability(verdict: ndarray, label: ndarray, path: Path, title: str) -> Path:
    """Of verdicts near p, the share of items that are truly met: on the diagonal for an honest judge."""
    verdict, label = agreement.both(verdict, label)
    bins = np.minimum((verdict * 10).astype(int), 9)
    rows = [(verdict[bins == b].mean(), label[bins == b].sum(), (bins == b).sum()) for b in np.unique(bins)]
    shares = [share(int(met), int(n)) for _, met, n in rows]
    sheet = drawing().figure.Figure(figsize=(4.2, 4.2), layout="constrained")
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
    """Have another judge score a run's rollouts, by the run's own method and rubrics.

    Args:
        run: the run's folder
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        most: answers to judge, but one step at least; of a longer run, steps that lie evenly
    """
    if most < 1:
        raise ValueError(f"--most {most}: expected a number of answers from 1 on")
    settings = Run.reopen(run)[1]["settings"]
    if settings["method"] == "sft":
        raise ValueError(f"{run} learnt from reference answers (--method sft): expected a run with rewards")
    spec, why = choose(judge)
    rows = spaced(records(run, "rollouts.jsonl"), most)
    examples = examples_of(run, settings, rows)
    print(f"judge     {spec} ({why}) after {settings['judge']}, method {settings['method']}")
    print(f"answers   {len(rows)} of {len({row['step'] for row in rows})} steps of {run}")
    asker = Judge(spec, settings["method"], design=design_of(settings), **vars(judging))
    said = ask(asker, [(e, row["response"]) for e, row in zip(examples, rows, strict=True)], "judging")
    first = np.array([number(row["reward"]) for row in rows])
    both = ~(np.isnan(first) | np.isnan(said.reward))  # means of other answers could not be compared
    first, second = np.where(both, first, math.nan), np.where(both, said.reward, math.nan)
    verdict = np.full(said.verdict.shape, math.nan)
    for i, row in enumerate(rows):
        verdict[i, : len(row["verdicts"])] = [number(item["verdict"]) for item in row["verdicts"]]
    steps, questions = np.array([row["step"] for row in rows]), [row["example_id"] for row in rows]
    group = np.array([f"{row['step']} {row['example_id']}" for row in rows])
    centred = [within(reward, group) for reward in (first, second)]
    measures = {
        "trained": lambda at: mean(first[at]),
        "second": lambda at: mean(second[at]),
        "correlation": lambda at: correlation(first[at], second[at]),
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
    finish(asker, result)


def spaced(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, in whole steps that lie evenly from the first to the last; the last at least."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    if not steps:
        raise ValueError("the run has no rollouts yet: expected the lines of a step in rollouts.jsonl")
    keep = max(1, min(len(steps), most * len(steps) // len(rows)))
    kept = {steps[i] for i in np.linspace(len(steps) - 1, 0, keep).round().astype(int)}
    return [row for row in rows if row["step"] in kept]


def design_of(settings: dict[str, Any]) -> Design:
    """What became of the rubrics of a run; nothing in one from before that was a choice."""
    return from_json(Design(), settings.get("design", {}))


def examples_of(run: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[Example]:
    """The question of each row. Raises ValueError where the run's data is not as it was."""
    file, revision = settings["data"], settings.get("revision")
    bad, weightless = settings.get("skip_bad_rows", False), settings.get("hygiene", False)
    source = data.load(file, settings.get("domain", ""), revision, skip_bad=bad, skip_weightless=weightless)
    known = {example.id: example for example in source}
    for row in rows:
        example = known.get(row["example_id"])
        same = example is not None and row["prompt"] == example.question
        if same and settings["method"] == "rar-explicit":
            judged = [(item["title"], item["weight"]) for item in row["verdicts"]]
            rubric = design_of(settings).apply(example.rubric, example.id)
            same = judged == [(c.title, c.weight) for c in rubric.criteria]
        if not same:
            raise ValueError(
                f"{file or settings['domain']} has changed since the run: expected {row['example_id']!r} "
                f"with the question and the items of {run}/rollouts.jsonl, got "
                f"{'others' if example else 'no such row'}; bring the data back as they were"
            )
    return [known[row["example_id"]] for row in rows]


def within(reward: ndarray, group: ndarray) -> ndarray:
    """Rewards (N,) less their group's mean."""
    centred = reward.copy()
    for name in np.unique(group):
        centred[group == name] -= mean(reward[group == name])
    return centred


def rejected(first: ndarray, second: ndarray, weight: ndarray) -> float:
    """Of the weight that the first judge credited, the share on items that the second does not credit.

    An item of positive weight is credited where it is met, one of negative points where it does not hold.
    """
    known = ~(np.isnan(first) | np.isnan(second))
    one, other = ((verdict >= 0.5) == (weight > 0) for verdict in (first, second))
    credited = np.where(known & one, np.abs(weight), 0.0)
    return float(credited[~other].sum() / credited.sum()) if credited.any() else math.nan


# --- numbers ------------------------------------------------------------------------------------------------


def number(value: float | None) -> float:
    """A number of a file, where null stands for what could not be had."""
    return math.nan if value is None else value


def mean(values: ndarray) -> float:
    """The mean of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def interval(found: dict[str, float]) -> str:
    """A number with its interval, where it has one, for a table."""
    if math.isnan(found["value"]):
        return "-"
    form = "{value:.3f}" if math.isnan(found["low"]) else "{value:.3f} [{low:.3f}, {high:.3f}]"
    return form.format_map(found)


def without_nan(value: Any) -> Any:
    """The same for JSON, which has no NaN: null in its place. Numbers keep six digits after the point."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def finish(judge: Judge, result: dict[str, Any]) -> None:
    """Print what asking came to and the result in JSON, and end the judge's connections."""
    print(f"asked     {judge.ledger.line()}")
    if judge.mass:
        result["mass"] = sum(judge.mass) / len(judge.mass)
        print(f"mass      {result['mass']:.2f} of the probability on the offered answers")
    judge.close()
    print(json.dumps(without_nan(result)))


if __name__ == "__main__":
    run_command({"judge": measure, "replay": replay}, "evaluate.py", __doc__)
