"""Better answers without training: repair what a rubric finds wrong, beside the best of several answers.

After RubricRefine (arXiv 2605.09730), of which notes were read. Both ways spend up to n answers a question
and share the first one:

    refine       judge the answer; if every item is met, stop; else show the policy the items that it missed,
                 and have it answer again
    best of n    n answers, each on its own: the baseline to beat

Each returns its best answer: the one with the highest rating from 1 to 10, of equal ratings the one that
earns more of the rubric, then the earlier one. Refine may stop before n. So it is compared with the best of
as many answers as it took for that question (`same`), and with the best of all n (`best`).

An answer that a judge has chosen looks better to that judge than it is. `--gold` has another judge score what
was chosen, by the row's own rubric. Without it a gain may be the judge's error.

The row's rubric may name the right answer, and a repair shows it to the policy: then the gain is what the
policy was told. With `--writer` a chat model writes 4 to 12 items from the question alone, the judge and the
policy see these, and gold still goes by the row's.

Ours: the sentences. Ratings are asked for by rar-implicit; judges without ratings (`rules`, `probe:PATH`)
choose by the rubric's share alone. If an answer, a verdict or a rubric of a question could not be had, the
question is left out, counted, and asked again by the same command. A repair whose prompt leaves no room for
the answer ends its question's repairs ("too long") and never stops the command: much is paid for by then.
--long-prompts is about the questions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rar_mini import data, prompts
from rar_mini.data import Example
from rar_mini.evaluation import answers
from rar_mini.evaluation.agreement import interval, mean, mean_over
from rar_mini.evaluation.answers import Answer, Drawn, Source
from rar_mini.evaluation.audit import credited
from rar_mini.evaluation.judged import ask
from rar_mini.forms import ABSENT, Finite, Form, Unit
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.judging.writer import Writer, read_rubric
from rar_mini.prompts import fill, item_line
from rar_mini.scores import finite
from rar_mini.turns import without_thoughts

WAYS = {
    "first": "the first answer",
    "refine": "refine",
    "same": "best of as many",
    "best": "best of n",
}


class Tried(Form):
    """An answer that was tried."""

    response: str | None
    reward: Finite | None
    rating: Finite | None
    gold: Finite | None = None
    verdicts: list[Unit | None] = ABSENT
    tokens_in: int | None = None
    tokens_out: int | None = None


class Kept(answers.Kept):
    """A row of refine.jsonl."""

    judged_again = False  # its answers depend on the judge

    samples: list[Tried] = ABSENT
    repairs: list[Tried] = ABSENT
    stopped: str = ABSENT


@dataclass
class Case:
    """A question that is worked on."""

    example: Example  # by the row's rubric
    posed: Example | None  # by the rubric that judge and policy see; None if it could not be written
    samples: list[Answer] = field(default_factory=list)
    repairs: list[Answer] = field(default_factory=list)
    stopped: str = ""  # why there are no more repairs

    @property
    def last(self) -> Answer:
        """The answer that may be repaired."""
        return (self.samples[:1] + self.repairs)[-1]

    @property
    def tried(self) -> dict[str, list[Answer]]:
        """What a row keeps of all answers."""
        return {"samples": self.samples, "repairs": self.repairs}


@dataclass(frozen=True)
class Refiner:
    """Who judges, who writes rubrics if not the data, and how many answers there are."""

    judge: JudgeLike
    rater: JudgeLike | None  # the same judge asked for ratings, if it has any
    gold: JudgeLike | None
    writer: Writer | None
    tries: int
    temperature: float
    seed: int

    @property
    def facts(self) -> list[Any]:
        """What a row depends on besides the policy, the question and the judges."""
        texts = [prompts.REPAIR, prompts.TASK_RUBRIC if self.writer else ""]
        return [self.tries, self.temperature, self.seed, *texts]

    def work(self, source: Source, batch: list[Example]) -> list[dict[str, Any]]:
        """The rows of some questions."""
        cases = [Case(e, posed) for e, posed in zip(batch, self._posed(batch), strict=True)]
        open_cases = [case for case in cases if case.posed]
        for n in range(self.tries if open_cases else 0):
            answers = source.answer([case.example for case in open_cases], self._drawn(n))
            for case, answer in zip(open_cases, answers, strict=True):
                case.samples.append(answer)
        self._score([(case.posed, answer) for case in open_cases for answer in case.samples])
        for n in range(1, self.tries):
            self._repair(source, self._unsettled(open_cases), n)
        self._unsettled(open_cases)
        self._weigh([case for case in open_cases if self._whole(case.samples + case.repairs)])
        return [self._row(case) for case in cases]

    def _posed(self, batch: Sequence[Example]) -> list[Example | None]:
        if self.writer is None:
            return list(batch)
        shown = [{"question": example.question} for example in batch]
        rubrics = self.writer.write(prompts.TASK_RUBRIC, shown, partial(read_rubric, least=4, most=12))
        return [rubric and replace(e, rubric=rubric) for e, rubric in zip(batch, rubrics, strict=True)]

    def _drawn(self, number: int) -> Drawn:
        return Drawn(self.temperature, self.seed, number)

    def _unsettled(self, cases: Sequence[Case]) -> list[Case]:
        """The questions whose last answer can be repaired; the others learn why they have stopped."""
        for case in cases:
            if not self._whole([case.last]):
                case.stopped = "failed"
            elif not missed(case.posed, case.last):
                case.stopped = "all met"
        return [case for case in cases if not case.stopped]

    def _repair(self, source: Source, cases: Sequence[Case], n: int) -> None:
        """The n-th repair of some questions. The judge is shown the question alone, as for any answer."""
        fitting = source.fitting([repair(case.posed, case.last) for case in cases], leave_out=True)
        answers = source.answer(fitting, self._drawn(self.tries + n)) if fitting else []
        new = {example.id: answer for example, answer in zip(fitting, answers, strict=True)}
        self._score([(case.posed, new[case.posed.id]) for case in cases if case.posed.id in new])
        for case in cases:
            if case.posed.id in new:
                case.repairs.append(new[case.posed.id])
            else:
                case.stopped = "too long"

    def _score(self, tried: Sequence[tuple[Example, Answer]]) -> None:
        """Add to each answer what the judge says of it."""
        for _, answer in tried:
            answer |= {"verdicts": [], "reward": None, "rating": None}
        tried = [(example, answer) for example, answer in tried if answer["response"] is not None]
        if not tried:
            return
        texts = [(example, answer["response"]) for example, answer in tried]
        judged = ask(self.judge, texts, "judging")
        ratings = ask(self.rater, texts, "rating").rating.tolist() if self.rater else [None] * len(texts)
        for n, (example, answer) in enumerate(tried):
            answer["verdicts"] = [finite(v) for v in judged.verdict[n, : len(example.rubric)].tolist()]
            answer["reward"] = finite(float(judged.reward[n]))
            answer["rating"] = ratings[n] and finite(ratings[n])

    def _weigh(self, cases: Sequence[Case]) -> None:
        """Add to each answer that some way returns what the gold judge gives it."""
        chosen = [(case.example, answer) for case in cases for answer in ways(case.tried).values()]
        chosen = list({id(answer): (example, answer) for example, answer in chosen}.values())
        if self.gold and chosen:
            texts = [(example, answer["response"]) for example, answer in chosen]
            rewards = ask(self.gold, texts, "judging (gold)").reward.tolist()
            for (_, answer), reward in zip(chosen, rewards, strict=True):
                answer["gold"] = finite(reward)

    def _whole(self, tried: Sequence[Answer]) -> bool:
        """Whether every answer is there, with all that the judge has to say."""
        return all(a["reward"] is not None and (a["rating"] is not None or not self.rater) for a in tried)

    def _row(self, case: Case) -> dict[str, Any]:
        """What is kept of a question: with the answer that refine returns, unless anything failed."""
        returned = ways(case.tried) if case.posed and self._whole(case.samples + case.repairs) else {}
        failed = not returned or any(a["gold"] is None for a in returned.values() if self.gold)
        answer = {"response": None, "finished": None} if failed else returned["refine"]
        row = {"response": answer["response"], "finished": answer["finished"], "failed": failed}
        row |= {"stopped": (case.stopped or "n answers") if case.posed else "no rubric"} | case.tried
        items = case.posed.rubric.criteria if case.posed and self.writer else ()
        rubric = [{"description": item.description, "weight": item.weight} for item in items]
        return row | ({"rubric": rubric} if rubric else {})


def held_out(file: Path | None, domain: str, skip_bad: bool) -> list[Example]:
    """The held-out questions of a file, or of a bundled domain. Raises ValueError if there are none."""
    examples = data.read(file, skip_bad=skip_bad) if file else data.sample(domain)
    questions = [example for example in examples if example.split == "held_out"]
    if not questions:
        raise ValueError(
            f"{file} has {len(examples)} questions and none of the split held_out: give it to the rows to be "
            'asked, "split": "held_out"; `test` rows are left for the end'
        )
    return questions


def repair(example: Example, answer: Answer) -> Example:
    """The conversation that asks for a better answer, by the items that this one missed."""
    items = "\n".join(item_line(item, labelled=False) for item in missed(example, answer))
    turns = (
        {"role": "assistant", "content": without_thoughts(answer["response"])},
        {"role": "user", "content": fill(prompts.REPAIR, items=items)},
    )
    return replace(example, messages=(*example.messages, *turns))


def missed(example: Example, answer: Answer) -> list[Any]:
    """The items that weigh something and that the judge does not credit."""
    pairs = zip(example.rubric.criteria, answer["verdicts"], strict=True)
    return [item for item, verdict in pairs if credited(verdict, item.weight) is False]


def best(tried: Sequence[Answer]) -> Answer:
    """The answer with the highest rating, then with the highest reward; of equal ones the first."""
    return max(tried, key=lambda answer: (answer["rating"] or 0.0, answer["reward"]))


def taken(row: dict[str, Any]) -> dict[str, list[Answer]]:
    """The answers that each way took for a question."""
    samples, chain = row["samples"], [*row["samples"][:1], *row["repairs"]]
    return {"first": chain[:1], "refine": chain, "same": samples[: len(chain)], "best": samples}


def ways(row: dict[str, Any]) -> dict[str, Answer]:
    """The answer that each way returns."""
    return {way: best(tried) for way, tried in taken(row).items()}


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Print and return what each way earns and takes, and how far refine is ahead, with 95 % intervals over
    questions."""
    scored = [row for row in rows if not row["failed"]]
    gold = any(a.get("gold") is not None for row in scored for a in row["samples"])
    measures = {"judge": "reward"} | ({"gold": "gold"} if gold else {})
    ids = [row["prompt_id"] for row in scored]
    result: dict[str, Any] = {"ways": {}, "ahead": {}}
    print(f"\n{'':<18}" + "".join(f"{name:<24}" for name in measures) + "answers  tokens in  tokens out")
    for way, title in WAYS.items():
        part: dict[str, Any] = {
            name: mean_over(ids, _values(scored, way, key)) for name, key in measures.items()
        }
        tried = [taken(row)[way] for row in scored]
        part["answers"] = mean(np.array([len(each) for each in tried], dtype=float))
        part |= {name: _tokens(tried, name) for name in ("tokens_in", "tokens_out")}
        result["ways"][way] = part
        cells = "".join(f"{interval(part[name]):<24}" for name in measures)
        counts = f"{part['answers']:>7.1f}  {part['tokens_in']:>9.0f}  {part['tokens_out']:>10.0f}"
        print(f"{title:<18}{cells}" + counts.replace("nan", "  -"))
    for way in ("first", "same", "best"):
        ahead = {
            name: mean_over(ids, _values(scored, "refine", key) - _values(scored, way, key))
            for name, key in measures.items()
        }
        result["ahead"][way] = ahead
        print(f"refine is ahead of {WAYS[way]}: " + ", ".join(f"{n} {interval(x)}" for n, x in ahead.items()))
    stopped = Counter(row["stopped"] for row in scored)
    result |= {"questions": len(rows), "failed": len(rows) - len(scored), "stopped": dict(stopped)}
    print(f"ended     {', '.join(f'{count} {why}' for why, count in stopped.most_common()) or 'none'}")
    if not gold:
        print("The judge that chose also measures: its errors count as gains. --gold names another")
    return result


def _values(rows: Sequence[dict[str, Any]], way: str, key: str) -> np.ndarray:
    return np.array([ways(row)[way].get(key) for row in rows], dtype=float)


def _tokens(tried: Sequence[Sequence[Answer]], name: str) -> float:
    """The tokens that a question took, on average; NaN if a server does not say."""
    sums = [np.array([answer.get(name) for answer in each], dtype=float).sum() for each in tried]
    return float(np.mean(sums)) if sums else float("nan")
