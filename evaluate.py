"""Measures policies by the paper's benchmarks, and judges: whether their verdicts can be trusted, before
anyone trains on them and afterwards.

    python evaluate.py healthbench --policy RUN --judge chat:gpt-4o-mini --data FILE
    python evaluate.py gpqa --policy RUN --verifier chat:gpt-4o-mini --data FILE [--variants]
    python evaluate.py refine --policy RUN --judge chat:NAME --gold chat:OTHER
    python evaluate.py table RUN...
    python evaluate.py judge --judge keyword
    python evaluate.py judges --judge keyword local:NAME --data FILE... --out judges.md
    python evaluate.py replay RUN --judge chat:NAME
    python evaluate.py audit RUN --panel chat:NAME chat:OTHER
    python evaluate.py matrix RUN... --judge keyword --judge chat:NAME
    python evaluate.py alignment --judge chat:NAME

`healthbench` and `gpqa` have a policy answer by greedy decoding and keep every row. A killed evaluation goes
on with the same command, nothing is asked twice, and scores can be computed again. An answer or verdict that
failed is not a zero: it is left out, counted, and asked for again by the same command. `table` shows the
results beside the paper's. `refine` has a policy repair its answers by what a judge finds missing, beside the
best of several answers; it keeps rows and goes on alike.

`judge` asks about answers whose truth is known: the bundled sample's labelled answers, a file of the same
form, or public labels. `judges` makes one table of several judges and sets. `replay` has other judges score
the rollouts of a finished run: if they disagree with the training's, and more so towards the end, the policy
has learnt that judge's weakness. `audit` has a panel look at what the training's judge newly credits as a run
goes on. `matrix` has several judges score the last held-out answers of several runs. `alignment` is the
paper's Fig. 3: how often a judge rates the better of two answers strictly higher; and whether it names the
better one if it is shown both, in both orders.

Intervals are 95 %. They come from a bootstrap over questions; for shares of pairs and of injections they are
Wilson's, and over runs Student's. Wilson's takes cases as independent: it is too narrow if a question has
several pairs, or an answer several injections. The last line printed is one JSON object.

How each measure is made stands in rar_mini/evaluation/, a file for each command.
"""

import inspect
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from judge import OWN, Judge
from rar_mini import data as questions
from rar_mini import recipe
from rar_mini.checkpoint import Run, environment, records
from rar_mini.config import Options
from rar_mini.evaluation import (
    alignment,
    answers,
    audit,
    gpqa,
    healthbench,
    judges,
    labelled,
    matrix,
    paper,
    preference,
    refine,
    robustness,
    selfgap,
    trust,
    variants,
)
from rar_mini.evaluation import replay as replays
from rar_mini.evaluation.answers import Answering
from rar_mini.files import without_nan, write_json
from rar_mini.forms import printable
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer
from rar_mini.options import Within, flag, run_command
from rar_mini.rubric import directions
from rar_mini.scores import choose
from rar_mini.viewing.plot import drawing

Domain = Literal["medical", "science", "all"]
Judging = tyro.conf.OmitArgPrefixes[Options]
DEFAULTS = Options()
Asking = tyro.conf.OmitArgPrefixes[Answering]
ASKED = Answering()
RUNS = 10  # of GPQA, as in the paper


# --- judges -------------------------------------------------------------------------------------------------


def measure(
    judge: str = "auto",
    data: Path | None = None,
    domain: Domain = "all",
    method: str = "rar-explicit",
    injections: int = 96,
    plot: Path | None = None,
    vary: bool = False,
    skip_bad_rows: bool = False,
    answers_of: tuple[str, ...] = (),
    answer_tokens: int = 256,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure a judge on answers whose truth is known.

    Args:
        judge: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, probe:PATH, or auto
        data: a file with labelled responses, or with public labels (docs/judges.md); the bundled sample if
            not given
        domain: which bundled questions: medical, science or all
        method: direct-likert, reference-likert, rar-predefined, rar-explicit or rar-implicit
        injections: answers that get an injection, and a quarter as many get a harmless addition; 0 for none
        plot: draw predicted against observed shares into this picture; needs rar-explicit
        vary: measure instead what it does to balanced accuracy and seconds to ask in other ways: one
            criterion a call, all at once, in reverse order, the answer before the question, with a reason
            first, without; no reply is taken from the cache
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
        answers_of: measure instead whether the judge is kinder to its own answers: policies, as in
            healthbench, or NAME=FILE, which answer questions whose items have checks (the bundled
            instructions if there is no --data)
        answer_tokens: with --answers-of, tokens after which an answer is cut
    """
    if answers_of:
        others = {"domain": domain, "method": method, "injections": injections, "plot": plot, "vary": vary}
        refuse_idle("beside --answers-of", **others)
        prefer(judge, data, answers_of, answer_tokens, skip_bad_rows, judging)
        return
    # Everything that is refused is refused before a judge is paid.
    refuse_idle("without --answers-of", answer_tokens=answer_tokens)
    explicit = method == "rar-explicit"
    Within(0, 1e6).refuse("injections", injections)
    if vary and not explicit:
        raise ValueError(
            f"--vary is about verdicts on labelled criteria: expected rar-explicit, got {method}"
        )
    if plot and not explicit:
        raise ValueError(f"--plot draws verdicts on labelled criteria: expected rar-explicit, got {method}")
    if vary:
        refuse_idle("beside --vary", injections=injections, plot=plot)
    if plot:
        drawing()
    if data:
        refuse_idle("beside --data", domain=domain)
    spec, why = choose(judge)
    print(f"judge     {spec} ({why}), method {method}")
    items = labelled.read(data, domain, skip_bad_rows)
    if not vary:
        trust.check(items, injections)
    rubrics = {item.example.id: item.example.rubric for item in items}
    if method in OWN and (worded := directions(rubrics.values())):
        print(f"pitfalls  {worded}")
    asker = Judge(spec, method, **vars(replace(judging, cache=judging.cache and not vary)))
    if vary:
        finish({"judge": spec, "vary": variants.report(asker, items)}, asker)
        return
    # Criteria have an order only if the judge is shown several at once.
    ordered = method == "rar-implicit" or (explicit and asker.per_call > 1)
    result = trust.report(asker, items, explicit=explicit, ordered=ordered, injections=injections, plot=plot)
    finish({"judge": spec, "method": method} | result, asker)


def refuse_idle(because: str, **given: Any) -> None:
    """Raise ValueError for an option that was given, away from its default in `measure`, and does nothing
    beside or without another one."""
    for name, value in given.items():
        if value != inspect.signature(measure).parameters[name].default:
            raise ValueError(f"{flag(name)} does nothing {because}: leave it out")


def tabulate(
    judge: tuple[str, ...] = ("keyword",),
    data: tuple[str, ...] = ("medical", "science"),
    out: Path = Path("judges.md"),
    limit: int | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure several judges on several sets of labelled answers, and write one table.

    Args:
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME or probe:PATH, one or more
        data: sets: medical or science, bundled, or a split of them, such as medical:held_out; files with
            labelled responses or public labels; folders of such files
        out: a page for the table: a new one, or one with marks, between which its own rows are replaced.
            What they are made of is kept beside it, in a .jsonl file
        limit: ask about the answers to at most so many questions of each set
        seed: which questions these are
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of stopping
    """
    Within(1, 1e9).refuse("limit", limit)
    sets = judges.sets_of(data, limit, seed, skip_bad_rows)
    specs = dict.fromkeys(choose(spec)[0] for spec in judge)
    make = partial(Judge, method="rar-explicit", **vars(judging))
    finish({"out": str(out), "data": judges.run(make, list(specs), sets, out)})


def prefer(
    judge: str,
    file: Path | None,
    policies: tuple[str, ...],
    tokens: int,
    skip_bad_rows: bool,
    judging: Options,
) -> None:
    """Measure whether a judge is kinder to its own answers than to those of others."""
    examples = questions.read(file, skip_bad=skip_bad_rows) if file else questions.sample(questions.CHECKED)
    examples = preference.checked(examples)
    spec, why = choose(judge)
    if spec == "rules":
        raise ValueError("--judge rules is the truth here: expected a judge that can be wrong")
    print(f"judge     {spec} ({why}), {len(examples)} questions with checks")
    written = [preference.written(policy, spec, examples, tokens, judging) for policy in policies]
    for policy, (who, texts) in zip(policies, written, strict=True):
        print(f"answers   {len(texts)} of {policy}: {who}")
    asker = Judge(spec, "rar-explicit", **vars(judging))
    whose = {policy: who for policy, (who, _) in zip(policies, written, strict=True)}
    finish({"judge": spec, "answers_of": whose} | preference.measure(asker, written), asker)


def replay(
    run: tyro.conf.Positional[Path],
    /,
    judge: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    most: int = 512,
    judging: Judging = DEFAULTS,
) -> None:
    """Have other judges score a run's rollouts, by the run's own method, rubrics and recipe.

    Args:
        run: the run's folder
        judge: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, probe:PATH, or auto,
            which it is if not given; several times for several judges, who are then compared with each other
        most: about so many answers to judge, in whole steps, one at least; those of a longer run are spaced
            evenly
    """
    Within(1, 1e9).refuse("most", most)
    opened = Run.reopen(run)
    config = opened.settings()
    if config.supervised:
        raise ValueError(f"{run} learnt from reference answers (--method sft): expected a run with rewards")
    chosen = dict(choose(spec) for spec in judge or ("auto",))
    made = recipe.make(config.recipe, config)
    if opened.written.get("recipe") != recipe.digest(config.recipe):
        changed = f"evaluate.py: the recipe {printable(str(config.recipe))} has changed since the run"
        print(changed, file=sys.stderr)
    rows = replays.spaced(records(run, "rollouts.jsonl"), most)
    groups = replays.groups_of(rows, config.group_size)
    replays.refuse_uneven(run / "rollouts.jsonl", rows, groups)
    examples = replays.examples_of(run, made, rows)
    print(f"answers   {len(rows)} of {len({row['step'] for row in rows})} steps of {run}")
    askers, judged, results = [], [], {}
    for spec, why in chosen.items():
        print(f"judge     {spec} ({why}) after {printable(config.judge)}, method {config.method}")
        with opened.texts():
            askers.append(made.judge(Judge(spec, config.method, design=config.design, **vars(judging))))
        judged.append(replays.ask(askers[-1], made, examples, rows, groups))
        measures = replays.compare(rows, groups, judged[-1])
        results[spec] = {"failed": judged[-1].failed} | replays.report(rows, measures)
    if len(results) == 1:
        finish({"judge": spec, "after": config.judge} | results[spec], askers[0])
        return
    print(f"the judges among themselves: {', '.join(results)}")
    panel = replays.report(rows, replays.apart(judged))
    finish({"judges": results, "after": config.judge, "panel": panel}, Wrapper(*askers))


def audited(
    run: tyro.conf.Positional[Path],
    /,
    panel: tuple[str, ...],
    gap: int = 0,
    judging: Judging = DEFAULTS,
) -> None:
    """Have a panel of judges look at the items that a run's judge newly credits, step by step.

    Args:
        run: the run's folder
        panel: the jurors: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME or probe:PATH
        gap: also measure the self-internalisation gap of the run's checkpoints, by so many answers to each of
            16 held-out questions that the policy gives when it is shown the rubric (the paper has 10)
    """
    Within(0, 1000).refuse("gap", gap)
    opened = Run.reopen(run)
    config = opened.settings()
    if config.method not in ("rar-explicit", "rar-predefined"):
        raise ValueError(f"{run} has no verdicts on items (--method {config.method}): expected rar-explicit")
    if not panel:
        raise ValueError("--panel: expected one judge or more, got none")
    panel = tuple(choose(spec)[0] for spec in panel)
    with opened.texts():
        jurors = [Judge(spec, "rar-explicit", **vars(judging)) for spec in panel]
    print(f"panel     {', '.join(panel)} after {config.judge}, method {config.method}")
    made = recipe.make(config.recipe, config)
    result = audit.report(run, made, jurors)
    result |= {"gap": selfgap.report(opened, made, jurors, gap)} if gap else {}
    finish({"panel": list(panel), "after": config.judge} | result, Wrapper(*jurors))


def cross(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    judge: tyro.conf.UseAppendAction[tuple[str, ...]],
    judging: Judging = DEFAULTS,
) -> None:
    """Have several judges score the last held-out answers of several runs that differ by their judge.

    Args:
        runs: folders of runs with the same held-out questions, rubrics and method
        judge: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME or probe:PATH; several
            times for several judges
    """
    found = matrix.read(runs)
    specs = dict.fromkeys(choose(spec)[0] for spec in judge)
    if not specs:
        raise ValueError("--judge: expected one judge or more, got none")
    print(f"judges    {', '.join(specs)}, method {found[0].config.method}")
    how = {"design": found[0].config.design} | vars(judging)
    askers = [Judge(spec, found[0].config.method, **how) for spec in specs]
    finish({"runs": matrix.report(found, askers)}, Wrapper(*askers))


def align(
    judge: str = "auto",
    data: Path | None = None,
    domain: Domain = "all",
    skip_bad_rows: bool = False,
    judging: Judging = DEFAULTS,
) -> None:
    """Measure how often a judge rates the better of two answers higher: without a rubric, and with one.

    Args:
        judge: keyword, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, or auto
        data: rows with `preferred` and `worsened`, and perhaps `rubric_without_reference`, or with
            `labelled_responses`; or LLMBar's or JudgeBench's; the bundled sample if not given
        domain: which bundled questions: medical, science or all
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
    """
    if data:
        refuse_idle("beside --data", domain=domain)
    pairs = labelled.pairs(data, domain, skip_bad_rows)
    spec, why = choose(judge)
    print(f"judge     {spec} ({why}), {len(pairs)} pairs")
    asker = Judge(spec, "rar-implicit", **vars(judging))
    finish({"judge": spec} | alignment.report(asker, pairs), asker)


# --- policies -----------------------------------------------------------------------------------------------


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
        finish({"rows_of": str(rescore)} | healthbench.report(healthbench.kept(rescore)))
        return
    examples = healthbench.read(answers.existing(data, healthbench.SOURCE), skip_bad_rows)
    spec, why = choose(judge)
    print(f"judge     {spec} ({why})")
    asker = Judge(spec, "rar-explicit", **vars(judging))
    examples, grade = answers.draw(examples, asking.limit), partial(healthbench.grade, asker)
    form = healthbench.Kept
    about, rows, file = answers.graded("healthbench", form, examples, grade, asker, asking, judging)
    finish(about | {"judge": spec, "data": str(data)} | healthbench.report(rows), asker, file)


def on_gpqa(
    data: Path | None = None,
    verifier: str | None = None,
    runs: int = RUNS,
    variants: bool = False,
    seed: int = 0,
    asking: Asking = ASKED,
    judging: Judging = DEFAULTS,
) -> None:
    """Score a policy on multiple-choice questions.

    Args:
        data: GPQA's CSV file, or a JSONL file with `question`, `choices` and `answer` in each line
        verifier: a judge that decides if an answer's box cannot be read; without one it counts as wrong
        runs: how often every question is asked, each time with its choices in another order
        variants: measure instead whether a choice holds if its question is posed in other ways, once in
            each: choices in another order, behind other marks, in other words
        seed: which orders these are
    """
    Within(1, 1000).refuse("runs", runs)
    Within(0, 2**63 - 1).refuse("seed", seed)
    if variants and runs != RUNS:
        raise ValueError(f"--variants asks a question once in each form: leave out --runs {runs}")
    questions = answers.draw(gpqa.read(answers.existing(data, gpqa.SOURCE)), asking.limit)
    spec = verifier and choose(verifier)[0]
    if (spec or "").partition(":")[0] in ("keyword", "rules", "probe"):
        raise ValueError(f"--verifier {spec}: expected a model, because words alone do not tell a choice")
    asker = Judge(spec, "rar-explicit", **vars(judging)) if spec else None
    name, kind, examples = "gpqa", gpqa, gpqa.permuted(questions, runs, seed)
    if variants:
        name, kind, examples = "gpqa-variants", robustness, robustness.variants(questions, seed)
    grade = partial(gpqa.grade, asker)
    about, rows, file = answers.graded(name, kind.Kept, examples, grade, asker, asking, judging)
    about |= {"verifier": spec, "data": str(data), "seed": seed}
    answered = {row["prompt_id"] for row in rows}
    skipped = [example for example in examples if example.id not in answered]
    finish(about | (robustness.report(rows, skipped) if variants else gpqa.report(rows)), asker, file)


def refined(
    judge: str = "auto",
    gold: str | None = None,
    writer: str | None = None,
    data: Path | None = None,
    domain: Literal["medical", "science", "instructions"] = "medical",
    tries: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    skip_bad_rows: bool = False,
    asking: Asking = ASKED,
    judging: Judging = DEFAULTS,
) -> None:
    """Have a policy repair its answers by a rubric, without training, beside the best of several answers.

    Args:
        judge: who finds what is wrong, and chooses; any that `judge` takes
        gold: another judge, who measures what was chosen; any that `judge` takes
        writer: chat:NAME, who writes the rubric from the question; without one it is the row's
        data: data rows, whose held-out questions are asked; the bundled ones if not given
        domain: which bundled questions: medical, science or instructions
        tries: answers to a question, at most, for each of the two ways
        temperature: at which they are sampled
        seed: which answers these are
        skip_bad_rows: leave out rows of --data that cannot be used, and count them, instead of stopping
    """
    Within(2, 100).refuse("tries", tries)
    Within(0, 2**63 - 1).refuse("seed", seed)
    Within(0.01, 10).refuse("temperature", temperature)
    if asking.responses:
        raise ValueError("--responses has no policy that could answer again: expected --policy")
    examples = refine.held_out(data, domain, skip_bad_rows)
    spec, why = choose(judge, checked=data is None and domain == questions.CHECKED and not writer)
    print(f"judge     {spec} ({why}){f', measured by {gold}' if gold else ''}")
    if spec == "rules" and writer:
        raise ValueError("--judge rules has no rule for items that --writer writes: expected a model")
    asker = Judge(spec, "rar-explicit", **vars(judging))
    rater = None if asker.kind in ("rules", "probe") else asker.by("rar-implicit")
    other = gold and Judge(choose(gold)[0], "rar-explicit", **vars(judging))
    author = writer and Writer(Judge(writer, "rar-explicit", **vars(judging)))
    refiner = refine.Refiner(asker, rater, other, author, tries, temperature, seed)
    everyone = Wrapper(*filter(None, (asker, other, author)))
    everyone.check(examples)
    examples, how = answers.draw(examples, asking.limit), {"facts": refiner.facts, "answers": 4 * tries - 2}
    form, work = refine.Kept, refiner.work
    about, rows, file = answers.worked("refine", form, examples, work, everyone, asking, judging, **how)
    about |= {"judge": spec, "gold": gold, "writer": writer, "tries": tries, "temperature": temperature}
    finish(about | {"seed": seed} | refine.report(rows), everyone, file)


def table(runs: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
    """Print the paper's scores with ours beside them, in Markdown.

    Args:
        runs: folders in which healthbench or gpqa have left a result, a run's or others
    """
    results = [paper.read(run) for run in runs]
    print(paper.markdown(results) + "\n")
    finish({"runs": results})


# --- the end of a command -----------------------------------------------------------------------------------


def finish(result: dict[str, Any], judge: JudgeLike | None = None, file: Path | None = None) -> None:
    """Print what the judge was asked and the result as JSON, also into a file, and close the judge."""
    if judge:
        print(f"asked     {judge.line()}")
        metrics = judge.metrics()
        if "judge/mass" in metrics:
            result["mass"] = metrics["judge/mass"]
            print(f"mass      {result['mass']:.2f} of the probability on the offered answers")
        judge.close()
    result = without_nan(result, digits=6)
    if file:
        write_json(file, result | environment())
    print(json.dumps(result))


COMMANDS = {"judge": measure, "judges": tabulate, "replay": replay, "audit": audited, "matrix": cross}
COMMANDS |= {"alignment": align, "healthbench": on_healthbench, "gpqa": on_gpqa, "refine": refined}
COMMANDS |= {"table": table}

LESS_MEMORY = "Take a smaller --policy or local judge, or lower --cache-mb (of healthbench, gpqa, refine)"

if __name__ == "__main__":
    run_command(COMMANDS, "evaluate.py", __doc__, LESS_MEMORY)
