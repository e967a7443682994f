"""Asks a judge about responses: the paper's five methods, from a rubric and a response to verdicts and
ratings.

    python judge.py score answers.jsonl --judge keyword --method rar-explicit --out scores.jsonl

What a judge says becomes numbers in one place and by one rule: a verdict is a probability in [0, 1] that a
criterion, as it was asked, holds; a rating goes from 1 to 10; and whatever could not be had (a failed
request, a reply of the wrong shape, a reply cut short) is NaN, never a score. NaN goes on into the reward and
takes that response out of its group.

| method | asked | reward |
|---|---|---|
| direct-likert | how good is the response? | (rating - 1) / 9 |
| reference-likert | how good is it beside the reference answer? | (rating - 1) / 9 |
| rar-predefined | four generic criteria, each on its own | their mean |
| rar-explicit | the question's own criteria, each on its own (Eq. 1) | sum w v / sum w |
| rar-implicit | the question's own criteria, all in one question (Eq. 2) | (rating - 1) / 9 |
"""

import json
import math
import os
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from rar_mini import data, keyword_judge, prompts
from rar_mini.data import Example
from rar_mini.endpoint import Endpoint
from rar_mini.kernels.advantage import group_advantage
from rar_mini.rubric import Criterion, Rubric, rating_to_unit

METHODS = ("direct-likert", "reference-likert", "rar-predefined", "rar-explicit", "rar-implicit")
RATED = ("direct-likert", "reference-likert", "rar-implicit")
DEFAULT_CHAT = "gpt-4o-mini"  # the paper's judge
NAN = float("nan")


@dataclass(frozen=True)
class Scores:
    """What a judge said of P x G responses. A rating also stands as one verdict, (rating - 1) / 9, of weight
    1."""

    verdict: Tensor  # (P, G, K) in [0, 1], NaN where the judge failed or a rubric has fewer than K items
    weight: Tensor  # (P, K), 0 where a rubric has fewer than K items
    rating: Tensor  # (P, G) in 1 .. 10, NaN where the method has none or the judge failed
    rubrics: list[Rubric]  # P; the criteria that the verdicts belong to

    def rows(self, p: int, g: int) -> list[dict]:
        """The verdicts on one response, as they stand in a file: null where there is none."""
        return [
            {"title": c.title, "category": c.category, "weight": c.weight, "verdict": finite(v)}
            for c, v in zip(self.rubrics[p].criteria, self.verdict[p, g].tolist(), strict=False)
        ]


def finite(number: float) -> float | None:
    """A number for JSON, which has no NaN: None in its place."""
    return number if math.isfinite(number) else None


def choose(spec: str) -> tuple[str, str]:
    """Resolve `auto`, and say why: (spec, reason)."""
    if spec != "auto":
        return spec, "as asked"
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        if os.environ.get(name):
            return (
                f"chat:{DEFAULT_CHAT}",
                f"{name} is set; --judge keyword needs no server, chat:NAME another model",
            )
    return (
        "keyword",
        "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set; it matches words and is only a stand-in",
    )


class Judge:
    """A judge and the method by which it is asked.

    `spec` is `keyword` or `chat:NAME`; `method` one of METHODS. Raises ValueError for what does not exist or
    does not go together.
    """

    def __init__(self, spec: str, method: str, concurrency: int = 32, timeout: float = 120.0) -> None:
        kind, _, name = spec.partition(":")
        if method not in METHODS:
            raise ValueError(f"no method {method!r}: expected one of {', '.join(METHODS)}")
        if kind not in ("keyword", "chat") or bool(name) != (kind == "chat"):
            raise ValueError(f"no judge {spec!r}: expected auto, keyword, or chat:NAME with a model's name")
        if kind == "keyword" and method not in ("rar-explicit", "rar-implicit"):
            raise ValueError(
                f"the keyword judge cannot serve {method}: it only matches the words of a question's own "
                "criteria; use --method rar-explicit or rar-implicit, or a model with --judge chat:NAME"
            )
        self.spec, self.method = spec, method
        self.endpoint = Endpoint(name, concurrency=concurrency, timeout=timeout) if kind == "chat" else None

    def rubric(self, example: Example) -> Rubric:
        """The criteria whose verdicts make the reward of this example's responses."""
        if self.method == "rar-predefined":
            return Rubric(prompts.PREDEFINED)
        if self.method in RATED:
            return Rubric((Criterion(f"{self.method} rating", "", "rating", 1.0),))
        return example.rubric

    def calls(self, example: Example) -> int:
        """How many questions one response to this example costs."""
        return sum(weight != 0 for weight in self.rubric(example).weights)

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples that the method has no question for."""
        missing = [example.id for example in examples if not example.reference]
        if self.method == "reference-likert" and missing:
            raise ValueError(
                f"reference-likert needs a reference answer in every row, {len(missing)} of {len(examples)}"
                f" have none (the first is {missing[0]!r}); leave those rows out or use another method"
            )

    def score(
        self, examples: Sequence[Example], responses: Sequence[Sequence[str]], *, progress: str | None = None
    ) -> Scores:
        """Ask about responses[p][g], G to each of P examples. `progress` names a progress bar, None shows
        none."""
        self.check(examples)
        rubrics = [self.rubric(example) for example in examples]
        P, G, K = len(examples), len(responses[0]), max(map(len, rubrics))
        verdict = torch.full((P, G, K), NAN)
        weight = torch.tensor([r.weights + [0.0] * (K - len(r)) for r in rubrics])  # (P, K)
        rating = torch.full((P, G), NAN)
        places = [  # items of weight 0 are never asked about: they cost a call and change no reward
            (p, g, k) for p in range(P) for g in range(G) for k, w in enumerate(rubrics[p].weights) if w
        ]
        visible = [[without_thoughts(response) for response in group] for group in responses]
        with tqdm(total=len(places), desc=progress, leave=False, disable=None if progress else True) as bar:
            if self.endpoint is None:
                answers = self._by_keyword(places, examples, visible, bar)
            else:
                answers = self._by_chat(places, examples, visible, bar)
        for (p, g, k), answer in zip(places, answers, strict=True):
            if self.method in RATED:
                rating[p, g] = answer
                answer = rating_to_unit(answer)
            verdict[p, g, k] = answer
        return Scores(verdict, weight, rating, rubrics)

    def _by_keyword(
        self, places: list, examples: Sequence[Example], responses: list, bar: tqdm
    ) -> list[float]:
        answers = []
        for p, g, k in places:
            rubric = examples[p].rubric
            if self.method in RATED:
                answers.append(keyword_judge.rating(rubric, responses[p][g]))
            else:
                answers.append(keyword_judge.verdict(rubric.criteria[k], responses[p][g]))
            bar.update()
        return answers

    def _by_chat(self, places: list, examples: Sequence[Example], responses: list, bar: tqdm) -> list[float]:
        asked = [
            (prompts.JUDGE_SYSTEM, self._question(examples[p], responses[p][g], k, secrets.token_hex(8)))
            for p, g, k in places
        ]
        assert self.endpoint is not None
        replies = self.endpoint.chat(asked, max_tokens=512, done=bar.update)
        parse = parse_rating if self.method in RATED else parse_verdict
        return [NAN if reply is None else parse(reply) for reply in replies]

    def _question(self, example: Example, response: str, k: int, fence: str) -> str:
        if self.method == "direct-likert":
            return prompts.ask_rating(example.question, response, fence)
        if self.method == "reference-likert":
            return prompts.ask_rating(example.question, response, fence, reference=example.reference)
        if self.method == "rar-implicit":
            return prompts.ask_rating(example.question, response, fence, rubric=example.rubric)
        return prompts.ask_criterion(example.question, response, self.rubric(example).criteria[k], fence)


def without_thoughts(response: str) -> str:
    """A response without its reasoning section; nothing where that section was cut before it ended."""
    if "</think>" in response:
        return response.rpartition("</think>")[2].lstrip()
    return "" if response.lstrip().startswith("<think>") else response


def _object(reply: str, keys: set[str]) -> dict:
    """The one JSON object that a reply consists of (a code fence around it is allowed), or {}.

    Nothing is searched for inside a reply: an object somewhere in a longer text may be a quotation of the
    response.
    """
    text = without_thoughts(reply).strip()
    if fenced := re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.S):
        text = fenced.group(1)
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.keys() == keys else {}


def parse_verdict(reply: str) -> float:
    """1.0 for yes, 0.0 for no, NaN for anything but the object that was asked for."""
    answer = _object(reply, {"reason", "verdict"}).get("verdict")
    return {"yes": 1.0, "no": 0.0}.get(answer.strip().lower(), NAN) if isinstance(answer, str) else NAN


def parse_rating(reply: str) -> float:
    """The rating as a float from 1 to 10, NaN for anything but the object that was asked for."""
    answer = _object(reply, {"rating"}).get("rating")
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    return float(answer) if whole and 1 <= answer <= 10 else NAN


def score(
    file: tyro.conf.Positional[Path],
    /,
    out: Path,
    judge: str = "auto",
    method: str = "rar-explicit",
    concurrency: int = 32,
    timeout: float = 120.0,
) -> None:
    """Score a file of answered questions.

    Args:
        file: data rows with a `response` each, one JSON object a line
        out: where the scores go, one JSON object a line in the same order
        judge: keyword, chat:NAME, or auto
        method: direct-likert, reference-likert, rar-predefined, rar-explicit or rar-implicit
        concurrency: requests to a server that are under way at once
        timeout: seconds that one request may take
    """
    spec, why = choose(judge)
    print(f"judge: {spec} ({why})", file=sys.stderr)
    examples = data.read(file, unique=False)
    for example in examples:
        if not isinstance(example.row.get("response"), str):
            raise ValueError(
                f"{file}: the row {example.id!r} has no `response`: expected the text to be scored"
            )
    scores = Judge(spec, method, concurrency=concurrency, timeout=timeout).score(
        examples, [[example.row["response"]] for example in examples], progress="judging"
    )
    reward = group_advantage(scores.verdict, scores.weight, scale="none")[0][:, 0].tolist()  # (P,)
    rating = scores.rating[:, 0].tolist()
    partial = out.with_name(out.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file_out:
        for p, example in enumerate(examples):
            row = {"id": example.id, "reward": finite(reward[p]), "rating": finite(rating[p])}
            row |= {"failed": not math.isfinite(reward[p]), "verdicts": scores.rows(p, 0)}
            file_out.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, out)
    scored = [r for r in reward if math.isfinite(r)]
    mean = f"{sum(scored) / len(scored):.4f}" if scored else "none"
    print(f"{len(reward)} responses, mean reward {mean}, {len(reward) - len(scored)} failed; scores in {out}")


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"score": score}, prog="judge.py", description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"judge.py: {error}")
