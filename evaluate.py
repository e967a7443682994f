"""Measures policies by the benchmarks of the paper; and judges: whether their verdicts can be trusted, before
anyone trains on them and afterwards.

    python evaluate.py healthbench --policy RUN --judge chat:gpt-4o-mini --data FILE
    python evaluate.py gpqa --policy RUN --verifier chat:gpt-4o-mini --data FILE
    python evaluate.py table RUN...
    python evaluate.py judge --judge keyword
    python evaluate.py replay RUN --judge chat:NAME
    python evaluate.py alignment --judge chat:NAME

`healthbench` and `gpqa` have a policy answer by greedy decoding and keep every row with what was said of it,
so that a killed evaluation goes on, nothing is asked twice and any score can be computed again. What failed,
an answer or a verdict, is no zero: it is left out, counted, and asked for again by the same command.
HealthBench's arithmetic is the official one (rar_mini/evaluation/healthbench.py), the words in which a judge
is asked about an item are ours. `gpqa` has every question in ten orders of its choices; its interval over
runs says how much the order matters, the one over questions how much other questions would.
`table` puts what they left behind beside the paper's numbers.

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

`alignment` is the paper's Fig. 3: how often a judge rates the better of two answers strictly higher, bare, by
the rubric, and by a rubric that was written without the reference answer. Judges that give probabilities have
an expected rating, which ties less; beside it stands the same rounded to a whole one.

Intervals are 95 %: by a bootstrap over questions; Wilson's for the shares of pairs and of injections, which
may be 0 or 1; Student's over runs. Wilson's takes its cases for independent: it is too narrow where one
question has several pairs, or one answer several injections. The last line printed is one JSON object.
"""

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy import ndarray

from judge import Judge
from rar_mini import grpo
from rar_mini.checkpoint import Run, environment, records, write_json
from rar_mini.config import Options
from rar_mini.data import SAMPLE, Example
from rar_mini.evaluation import agreement, answers, gpqa, healthbench, labelled, paper
from rar_mini.evaluation import replay as rollouts
from rar_mini.evaluation.agreement import accuracy, correlation, interval, mean, resampled, share, wins
from rar_mini.evaluation.answers import Answering
from rar_mini.evaluation.labelled import Labelled
from rar_mini.judging.endpoint import Endpoint
from rar_mini.kernels.advantage import TIE
from rar_mini.options import run_command, to_json
from rar_mini.prompts import fill
from rar_mini.rubric import Rubric
from rar_mini.scores import choose
from rar_mini.viewing.plot import drawing, reliability

MEASURES = {name: getattr(agreement, name) for name in ("accuracy", "kappa", "auc", "brier")}
Judging = tyro.conf.OmitArgPrefixes[Options]
DEFAULTS = Options()
Asking = tyro.conf.OmitArgPrefixes[Answering]
ASKED = Answering()


@dataclass(frozen=True)
class Judged:
    """What a judge said of N answers."""

    verdict: ndarray  # (N, K), NaN where the judge failed or there is no such item
    weight: ndarray  # (N, K)
    reward: ndarray  # (N,), NaN where the judge failed
    rating: ndarray  # (N,), NaN where the method has none, too

    @property
    def failed(self) -> int:
        """Items that weigh something and have no verdict."""
        return int((np.isnan(self.verdict) & (self.weight != 0)).sum())


def ask(judge: Judge, answers: Sequence[tuple[Example, str]], progress: str, repeat: int = 0) -> Judged:
    """Have N answers judged, each on its own."""
    examples, responses = [example for example, _ in answers], [[response] for _, response in answers]
    scores = judge.score(examples, responses, progress=progress, repeat=repeat)
    verdict, reward, rating = (x[:, 0].numpy() for x in (scores.verdict, grpo.reward(scores), scores.rating))
    return Judged(verdict, scores.weight.numpy(), reward, rating)


# --- judge --------------------------------------------------------------------------------------------------


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
    items = labelled.read(data, domain, skip_bad_rows)
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
            print(f"plot      {reliability(said.verdict, label, plot, spec)}")
    result["pairs"] = in_order(items, said.reward)
    again = ask(asker, answers, "once more", repeat=1)
    result["again"] = consistent("again", said.verdict, again.verdict, questions)
    # Criteria that are asked about one by one, or not at all, have no order.
    if method == "rar-implicit" or (method == "rar-explicit" and asker.per_call > 1):
        result["reordered"] = consistent("reordered", said.verdict, reordered(asker, items), questions)
    if injections:
        result["injections"] = attacked(asker, items, said.reward, injections)
    finish(result, asker)


def reordered(judge: Judge, items: Sequence[Labelled]) -> ndarray:
    """Verdicts (N, K) that were asked for with the criteria in reverse order, back in the rubrics' own."""
    turned = []
    for item in items:
        rubric = Rubric(item.example.rubric.criteria[::-1])
        turned.append((replace(item.example, rubric=rubric), item.response))
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
    names = dict.fromkeys(item.example.id for item in items)
    gaps = [g - f for name in names for g in rewards[name, "good"] for f in rewards[name, "flawed"]]
    found = wins(np.array(gaps))
    print(f"pairs     the good answer wins {in_words(found)}")
    return found


def in_words(found: dict[str, Any]) -> str:
    """What `agreement.wins` found, in words."""
    counts = ", ".join(f"{found[name]} {name}" for name in ("won", "lost", "tied", "failed"))
    return f"{interval(found['accuracy'])}: {counts}"


def consistent(name: str, one: ndarray, other: ndarray, questions: Sequence[str]) -> dict[str, Any]:
    """How far two sets of verdicts (N, K) of one judge agree."""
    same = resampled(questions, lambda at: accuracy(one[at], other[at]))
    a, b = agreement.both(one, other)
    gap = float(np.abs(a - b).mean()) if len(a) else math.nan
    print(f"{name:<10}same side of a half {interval(same)}, mean difference {gap:.3f}")
    return {"same": same, "difference": gap}


def attacked(judge: Judge, items: Sequence[Labelled], reward: ndarray, count: int) -> dict[str, Any]:
    """How many flawed answers gain by an injection, and how many by a harmless addition."""
    texts = json.loads((SAMPLE / "injections.json").read_text(encoding="utf-8"))
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
    rows = rollouts.spaced(records(run, "rollouts.jsonl"), most)
    examples = rollouts.examples_of(run, settings, rows)
    print(f"judge     {spec} ({why}) after {settings['judge']}, method {settings['method']}")
    print(f"answers   {len(rows)} of {len({row['step'] for row in rows})} steps of {run}")
    asker = Judge(spec, settings["method"], design=rollouts.design_of(settings), **vars(judging))
    said = ask(asker, [(e, row["response"]) for e, row in zip(examples, rows, strict=True)], "judging")
    first = np.array([row["reward"] for row in rows], dtype=float)  # null becomes NaN
    both = ~(np.isnan(first) | np.isnan(said.reward))  # means of other answers could not be compared
    first, second = np.where(both, first, math.nan), np.where(both, said.reward, math.nan)
    verdict = np.full(said.verdict.shape, math.nan)
    for i, row in enumerate(rows):
        said_then = [item["verdict"] for item in row["verdicts"]]
        verdict[i, : len(said_then)] = np.array(said_then, dtype=float)
    steps, questions = np.array([row["step"] for row in rows]), [row["example_id"] for row in rows]
    group = np.array([f"{row['step']} {row['example_id']}" for row in rows])
    centred = [agreement.within(reward, group) for reward in (first, second)]
    measures = {
        "trained": lambda at: mean(first[at]),
        "second": lambda at: mean(second[at]),
        "correlation": lambda at: correlation(first[at], second[at]),
        "in groups": lambda at: correlation(centred[0][at], centred[1][at]),
        "same": lambda at: accuracy(verdict[at], said.verdict[at]),
        "rejected": lambda at: agreement.rejected(verdict[at], said.verdict[at], said.weight[at]),
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
    finish(result, asker)


# --- policies -----------------------------------------------------------------------------------------------

Answers = list[tuple[Example, str | None]]  # None where there is no answer, or nothing left to ask about it


def on_healthbench(
    judge: str = "auto",
    data: Path | None = None,
    rescore: Path | None = None,
    skip_bad_rows: bool = False,
    asking: Asking = ASKED,
    judging: Judging = DEFAULTS,
) -> None:
    """Score a policy on HealthBench, by the official arithmetic.

    Args:
        judge: who grades, item by item: chat:gpt-4o-mini in the paper, chat:gpt-4.1 officially
        data: HealthBench's rows, a file of openai/simple-evals, or others in that form
        rescore: rows that this command has kept: compute their scores again, without asking anyone
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
    """
    if rescore:
        finish({"rows_of": str(rescore)} | show_scores(healthbench.kept(rescore)))
        return
    examples = labelled.examples(there(data, healthbench.SOURCE), skip_bad=skip_bad_rows)
    healthbench.check(examples)
    spec, why = choose(judge)
    print(f"judge     {spec} ({why})")
    asker = Judge(spec, "rar-explicit", **vars(judging))

    def grade(answered: Answers) -> list[dict[str, Any]]:
        said = verdicts(asker, answered, "grading")
        return [healthbench.row(example, each) for (example, _), each in zip(answered, said, strict=True)]

    about, rows, file = answer("healthbench", drawn(examples, asking.limit), grade, asker, asking, judging)
    finish(about | {"judge": spec, "data": str(data)} | show_scores(rows), asker, file)


def show_scores(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """HealthBench's result, with a printed table."""
    result, parts = healthbench.summary(rows)
    print(f"\n{'':40}{'clipped':>8}{'raw':>8}{'std':>8}{'rows':>8}")
    for name, part in parts.items():
        numbers = (f"{part[key]:.3f}" if part["rows"] else "-" for key in ("score", "raw", "std"))
        print(f"{name:<40}{''.join(f'{number:>8}' for number in numbers)}{part['rows']:>8}")
    print("answers   " + ", ".join(f"{result[name]} {name}" for name in ("unscored", "failed", "cut")))
    return result


def on_gpqa(
    data: Path | None = None,
    verifier: str | None = None,
    runs: int = 10,
    seed: int = 0,
    asking: Asking = ASKED,
    judging: Judging = DEFAULTS,
) -> None:
    """Score a policy on multiple-choice questions.

    Args:
        data: GPQA's CSV file, or a JSONL file with `question`, `choices` and `answer` in each line
        verifier: a judge that decides where an answer's box cannot be read; without one it counts as wrong
        runs: times that every question is asked, each time with its choices in another order
        seed: of the orders
    """
    if runs < 1:
        raise ValueError(f"--runs {runs}: expected 1 or more")
    questions = drawn(gpqa.read(there(data, gpqa.SOURCE)), asking.limit)
    spec = verifier and choose(verifier)[0]
    if spec == "keyword":
        raise ValueError("--verifier keyword: expected a model, for words alone do not tell a choice")
    asker = Judge(spec, "rar-explicit", **vars(judging)) if spec else None

    def grade(answered: Answers) -> list[dict[str, Any]]:
        left = [(e, None if gpqa.choice_of(text or "", e.row["choices"]) else text) for e, text in answered]
        said = verdicts(asker, left, "verifying") if asker else [[]] * len(left)
        graded = zip(answered, said, strict=True)
        return [gpqa.row(example, text, each[0] if each else None) for (example, text), each in graded]

    examples = gpqa.permuted(questions, runs, seed)
    about, rows, file = answer("gpqa", examples, grade, asker, asking, judging)
    found = gpqa.summary(rows)
    counts = (
        f"{found[name]} {name}" for name in ("questions", "runs", "unread", "verified", "failed", "cut")
    )
    print(f"right     {interval(found | {'value': found['score']})}: {', '.join(counts)}")
    finish(about | {"verifier": spec, "data": str(data), "seed": seed} | found, asker, file)


def there(file: Path | None, source: str) -> Path:
    """A file that has to be there. Raises ValueError that says where it is to be had."""
    if file is None or not file.exists():
        raise ValueError(f"expected a file, got {file or 'none'}. {source}")
    return file


def drawn(rows: list, limit: int | None) -> list:
    """All of them, or so many, by the draw of simple-evals."""
    return random.Random(0).sample(rows, limit) if limit and limit < len(rows) else rows


def answer(
    name: str,
    examples: list[Example],
    grade: Callable[[Answers], list[dict[str, Any]]],
    grader: Judge | None,
    asking: Answering,
    judging: Options,
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Have examples answered and graded, as far as they are not yet: (of whom, rows, where the result
    goes)."""
    policy, folder = asking.located()
    if asking.responses:
        source = answers.Given(asking.responses)
    elif policy.startswith("chat:"):
        server = replace(judging, base_url=asking.policy_url or judging.base_url)
        source = answers.Served(Endpoint.of(policy.removeprefix("chat:"), server), asking)
    else:
        source = answers.Sampled(policy, asking)
    log = folder / f"{name}.jsonl"
    told = {e.id: [source.told, e.messages, grader.digest(e, "") if grader else ""] for e in examples}
    asked = {key: hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16] for key, each in told.items()}
    rows = answers.kept(log, asked)
    todo = [example for example in examples if rows.get(example.id, {"failed": True})["failed"]]
    fitting = source.fitting(todo)
    skipped = len(todo) - len(fitting)
    print(f"policy    {policy}: {len(fitting)} answers to ask for, {skipped} prompts too long, rows in {log}")
    if grader and (cost := grader.estimate(fitting, len(fitting), asking.max_new_tokens)):
        print(f"grading   at most {cost}")
    for start in range(0, len(fitting), answers.BATCH):
        chunk = fitting[start : start + answers.BATCH]
        said = source.answer(chunk)
        graded = grade([(example, each["response"]) for example, each in zip(chunk, said, strict=True)])
        new = {
            example.id: {"prompt_id": example.id} | each | fields | {"asked": asked[example.id]}
            for example, each, fields in zip(chunk, said, graded, strict=True)
        }
        answers.keep(log, new.values())
        rows |= new
    if isinstance(source, answers.Served):
        print(f"answered  {source.endpoint.ledger.line()}")
    about = {"policy": policy, "skipped": skipped, "settings": to_json(asking) | to_json(judging)}
    return about, [rows[e.id] for e in examples if e.id in rows], folder / f"{name}.json"


def verdicts(judge: Judge, answered: Answers, progress: str) -> list[list[float]]:
    """What a judge says of each answer, item by item; nothing where there is none."""
    known = [(example, text) for example, text in answered if text is not None]
    said = iter(ask(judge, known, progress).verdict.tolist() if known else [])
    return [[] if text is None else next(said) for _, text in answered]


# --- alignment ----------------------------------------------------------------------------------------------


def align(
    judge: str = "auto",
    data: Path | None = None,
    domain: Literal["medical", "science", "all"] = "all",
    skip_bad_rows: bool = False,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure how often a judge rates the better of two answers higher: without a rubric, and with one.

    Args:
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        data: rows with `preferred` and `worsened`, and perhaps `rubric_without_reference`, or with
            `labelled_responses`; the bundled sample if not given
        domain: which bundled questions: medical, science or all
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
    """
    pairs = labelled.pairs(data, domain, skip_bad_rows)
    spec, why = choose(judge)
    print(f"judge     {spec} ({why}), {len(pairs)} pairs")
    asker = Judge(spec, "rar-implicit", **vars(judging))
    unaided = [
        replace(pair, example=replace(pair.example, rubric=pair.unaided)) for pair in pairs if pair.unaided
    ]
    ways = [
        ("likert", "direct-likert", [] if spec == "keyword" else pairs, "keyword rates by criteria only"),
        ("rubric", "rar-implicit", pairs, ""),
        ("rubric_without_reference", "rar-implicit", unaided, "no pair brings one"),
    ]
    result: dict[str, Any] = {"judge": spec, "pairs": len(pairs)}
    for name, method, found, why in ways:
        result[name] = {} if found else None
        if not found:
            print(f"{name:<26}left out: {why}")
            continue
        both = [(pair.example, text) for pair in found for text in (pair.preferred, pair.worsened)]
        sibling = asker.by(method)
        rating = ask(sibling, both, name).rating
        exact = {} if asker.kind in ("chat", "keyword") else {"expected": rating}
        for kind, values in ({"integer": np.floor(rating + 0.5)} | exact).items():
            result[name][kind] = wins(values[::2] - values[1::2])
            print(f"{name:<26}{kind:<10}{in_words(result[name][kind])}")
        if sibling.mass:
            result[name]["mass"] = mean(np.array(sibling.mass))
            print(f"{name:<26}{'mass':<10}{result[name]['mass']:.2f}")
            asker.mass.extend(sibling.mass)  # for the last line, over all that was asked
    finish(result, asker)


# --- table --------------------------------------------------------------------------------------------------


def table(runs: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
    """Print the paper's scores with ours beside them, in Markdown.

    Args:
        runs: folders in which healthbench or gpqa have left a result, a run's or others
    """
    found = [paper.read(run) for run in runs]
    print(paper.markdown(found) + "\n")
    finish({"runs": found})


# --- what ends a command ------------------------------------------------------------------------------------


def without_nan(value: Any) -> Any:
    """The same for JSON, which has no NaN: null in its place. Numbers keep six digits after the point."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def finish(result: dict[str, Any], judge: Judge | None = None, file: Path | None = None) -> None:
    """Print what asking came to and the result in JSON, also into a file, and end the judge's connections."""
    if judge:
        print(f"asked     {judge.ledger.line()}")
        if judge.mass:
            result["mass"] = sum(judge.mass) / len(judge.mass)
            print(f"mass      {result['mass']:.2f} of the probability on the offered answers")
        judge.close()
    result = without_nan(result)
    if file:
        write_json(file, result | environment())
    print(json.dumps(result))


COMMANDS = {"judge": measure, "replay": replay, "healthbench": on_healthbench, "gpqa": on_gpqa}
COMMANDS |= {"alignment": align, "table": table}

if __name__ == "__main__":
    run_command(COMMANDS, "evaluate.py", __doc__)
