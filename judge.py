"""Asks a judge about responses: the paper's five methods, from a rubric and a response to verdicts and
ratings.

    python judge.py score answers.jsonl --judge keyword --method rar-explicit --out scores.jsonl
    python judge.py show RUN

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

The last two take the rubric as --rubric-drop, --weights and --pitfalls make it (rar_mini/rubric.py). Where a
pitfall costs its weight (signed), w is negative, v means that it holds, and sum w is that of the positive
weights, as HealthBench has it: such a reward can be below 0.

| judge | how it is asked | what it returns |
|---|---|---|
| chat:NAME | a server's chat completions; JSON by schema, or in plain text where there is none | 0 or 1 |
| systemone:NAME | a server's POST /systemone, up to 64 criteria at once | probabilities |
| decisions:NAME | the Decisions API, up to 400 criteria at once | probabilities, or a refusal |
| local:NAME | weights in this process, all criteria of a question's answers in one pass | probabilities |
| probe:PATH | a head on the states of a frozen model in this process (judging/probe.py) | probabilities |
| keyword | no model; a stand-in that matches words | 0 or 1 |
| rules | no model; every item has a check | 0 or 1, the same every time |

An item with a `check` in the data is never asked about: rules give its verdict, whoever the judge is. Methods
that end in one rating use no checks: there the item is part of what the judge is shown, like any other.
"""

import copy
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import tyro

from rar_mini import data, forms, prompts, ranks
from rar_mini.config import PRESETS, Options
from rar_mini.data import Example
from rar_mini.files import cache_folder, digest, kept_rows
from rar_mini.judging import rules, wires
from rar_mini.judging.asked import Asked, Backend, NoBackend
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.keyword import Keyword
from rar_mini.judging.ledger import Account, Ledger
from rar_mini.judging.wires import MOST
from rar_mini.options import run_command
from rar_mini.progress import progress_bar
from rar_mini.rubric import Criterion, Design, Rubric, directions, rating_to_unit
from rar_mini.scores import NAN, ScoredRow, Scores, choose, finite
from rar_mini.turns import said, without_thoughts

METHODS = ("direct-likert", "reference-likert", "rar-predefined", "rar-explicit", "rar-implicit")
RATED = ("direct-likert", "reference-likert", "rar-implicit")
OWN = ("rar-explicit", "rar-implicit")  # those that ask about a question's own rubric
MODELLESS = ("keyword", "rules")  # judges without a model, and so without its name
PLAIN = Design()


class Judge:
    """A judge and the method by which it is asked.

    `spec` is `keyword`, `rules`, or `chat:`, `systemone:`, `decisions:` or `local:` with a model's name, or
    `probe:` with a probe's; `method` one of METHODS; `design` what becomes of a question's own rubric; the
    rest are Options. Raises ValueError for what does not exist or does not go together. `ledger` counts what
    happened.
    """

    def __init__(
        self,
        spec: str,
        method: str,
        concurrency: int = 32,
        timeout: float = 120.0,
        design: Design = PLAIN,
        **options: Any,
    ) -> None:
        kind, _, name = spec.partition(":")
        if method not in METHODS:
            raise ValueError(f"no method {method!r}: expected one of {', '.join(METHODS)}")
        if kind not in MOST or bool(name) != (kind not in MODELLESS):
            raise ValueError(
                f"no judge {spec!r}: expected auto, keyword, rules, or chat:NAME, systemone:NAME, "
                "decisions:NAME or local:NAME with a model's name, or probe:PATH"
            )
        if kind == "rules" and method != "rar-explicit":
            raise ValueError(
                f"--judge rules cannot serve {method}: it only has the checks of a question's own criteria; "
                "use --method rar-explicit, or a model with --judge chat:NAME"
            )
        if kind == "probe" and method in RATED:
            raise ValueError(f"a probe has verdicts and no ratings: expected rar-explicit, got {method}")
        if kind == "keyword" and method not in OWN:
            raise ValueError(
                f"the keyword judge cannot serve {method}: it only matches the words of a question's own "
                "criteria; use --method rar-explicit or rar-implicit, or a model with --judge chat:NAME"
            )
        weighed = design.weights == "paper" or (method == "rar-explicit" and design.rubric_drop != "labels")
        if design != PLAIN and not (method in OWN and weighed):
            raise ValueError(
                f"{method} cannot serve --rubric-drop {design.rubric_drop} --weights {design.weights} "
                f"--pitfalls {design.pitfalls}: expected these options with rar-explicit or rar-implicit, "
                "and --weights with rar-explicit alone, where it keeps its labels"
            )
        self.options = o = Options(concurrency=concurrency, timeout=timeout, **options)
        self.spec, self.method, self.kind, self.design = spec, method, kind, design
        self.per_call = MOST[kind] if o.criteria_per_call == "all" else o.criteria_per_call
        self.per_call = self.per_call or (1 if kind == "chat" else MOST[kind])
        if kind not in MODELLESS and self.per_call > MOST[kind]:
            raise ValueError(
                f"--criteria-per-call {self.per_call}: expected at most {MOST[kind]} for {kind}:NAME"
            )
        self.prompts = prompts.of_judge(o.prompts)
        self.backend = self._backend(kind, name)

    def _backend(self, kind: str, name: str) -> Backend:
        if kind == "keyword":
            return Keyword()
        if kind == "rules":
            return NoBackend()
        secret = wires.fence_secret(cache_folder())
        if kind == "local":
            from rar_mini.judging.local import LocalJudge  # seconds of imports that no other judge needs

            return LocalJudge(name, self.options.judge_device, self.prompts, secret)
        if kind == "probe":
            from rar_mini.judging.probe import Probe

            return Probe(name, self.options.judge_device, self.prompts, secret)
        return wires.Server(kind, name, self.options, self.prompts, secret)

    @property
    def ledger(self) -> Ledger:
        """What happened, in counts that only grow."""
        return self.backend.ledger

    @property
    def server(self) -> wires.Server | None:
        """The backend, if it is a server."""
        return self.backend if isinstance(self.backend, wires.Server) else None

    @property
    def mass(self) -> list[float]:
        """The probability that local:NAME gave to the offered answers together, since the last metrics."""
        return getattr(self.backend, "mass", [])

    def by(self, method: str) -> "Judge":
        """The same judge with the same connections and ledger, asked by another method. Its `mass` is its
        own: a rating's letters are other answers than yes and no."""
        other = copy.copy(self)
        other.method, other.backend = method, copy.copy(self.backend)
        other.backend.mass = []
        return other

    def rubric(self, example: Example) -> Rubric:
        """The criteria whose verdicts make the reward of this example's responses."""
        if self.method == "rar-predefined":
            return Rubric(prompts.PREDEFINED)
        if self.method in RATED:
            return Rubric((Criterion(f"{self.method} rating", "", "rating", 1.0),))
        return self._own(example)

    def _own(self, example: Example) -> Rubric:
        """The question's own rubric, as designed. Raises ValueError if nothing of it is left."""
        return self.design.apply(example.rubric, example.id)

    def calls(self, example: Example) -> int:
        """How many questions one response to this example costs."""
        return len(self._portions(self.rubric(example)))

    def _portions(self, rubric: Rubric) -> list[list[int]]:
        """Which items are asked about together. Those with a check are not asked about, nor those of weight
        0: they change no reward."""
        items = [k for k, item in enumerate(rubric.criteria) if item.weight and not item.check]
        return [items[start : start + self.per_call] for start in range(0, len(items), self.per_call)]

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples that the method has no question for, or whose rubric the design leaves empty."""
        for example in examples:
            rubric = self._own(example)
            if self.kind in (*MODELLESS, "probe") and self.method in OWN:
                rules.refuse(self.kind, rubric, example.id)
        missing = [example.id for example in examples if not example.reference]
        if self.method == "reference-likert" and missing:
            raise ValueError(
                f"reference-likert needs a reference answer in every row, {len(missing)} of {len(examples)}"
                f" have none (the first is {missing[0]!r}); leave those rows out or use another method"
            )

    def score(
        self,
        examples: Sequence[Example],
        responses: Sequence[Sequence[str]],
        *,
        progress: str | None = None,
        repeat: int = 0,
    ) -> Scores:
        """Ask about responses[p][g], G to each of P examples: each rank about its share of them, for all.

        `progress` names a progress bar, None shows none; another `repeat` asks the same anew. Raises
        ConnectionError if a server never answered, OverBudget before --max-usd is passed.
        """
        self.check(examples)
        shares = ranks.attempt(lambda: self._score(examples, responses, progress, repeat))
        self.ledger.pool()
        return reduce(Scores.filled, shares)

    def _score(
        self,
        examples: Sequence[Example],
        responses: Sequence[Sequence[str]],
        progress: str | None,
        repeat: int,
    ) -> Scores:
        """The scores of this rank's share of the examples, NaN for the others."""
        import torch  # seconds, which a judge that is only made, checked or priced does not take

        rubrics = [self.rubric(example) for example in examples]
        P, G, K = len(examples), len(responses[0]), max(map(len, rubrics))
        verdict = torch.full((P, G, K), NAN)
        weight = torch.tensor([r.weights + [0.0] * (K - len(r)) for r in rubrics])  # (P, K)
        rating = torch.full((P, G), NAN)
        own = ranks.share(range(P))
        places = [(p, g, ks) for p in own for g in range(G) for ks in self._portions(rubrics[p])]
        visible = [[without_thoughts(text) for text in group] for group in responses]
        for p in own:
            for k, item in enumerate(rubrics[p].criteria):
                if item.check and item.weight:
                    verdict[p, :, k] = torch.tensor([rules.verdict(item, text) for text in visible[p]])
        questions = (self._asked(examples[p], visible[p][g], rubrics[p], ks) for p, g, ks in places)
        with progress_bar(total=len(places), desc=progress) as bar:
            answers = self.backend.ask(questions, bar.update, repeat)
        for (p, g, ks), answer in zip(places, answers, strict=True):
            if isinstance(answer, Failure):
                continue  # counted where it happened; NaN stays
            for k, value in zip(ks, answer, strict=True):
                if math.isnan(value):
                    self.ledger.fail("refused")
                elif self.method in RATED:
                    rating[p, g], value = value, rating_to_unit(value)
                elif self.options.threshold is not None:
                    value = float(value >= self.options.threshold)
                verdict[p, g, k] = value
        return Scores(verdict, weight, rating, rubrics)

    @contextmanager
    def ahead(self) -> Iterator[Callable[[Example, str], object]]:
        """While responses are being written: a function that begins to ask the server about one that is
        whole. The next `score` has to be about it, too, and then only waits for the answer."""
        server = self.server

        def begin(example: Example, response: str) -> None:
            rubric, visible = self.rubric(example), without_thoughts(response)
            server.begin(self._asked(example, visible, rubric, ks) for ks in self._portions(rubric))

        try:
            yield begin
        except BaseException:
            server.drop()
            raise

    def metrics(self) -> dict[str, float]:
        """What judging came to since this was last called, for metrics.jsonl."""
        self.ledger.pool()  # again, because where scoring failed its cost is not in yet
        mass = sum(ranks.gather(list(self.mass)), [])
        self.mass.clear()
        return self.ledger.metrics() | ({"judge/mass": sum(mass) / len(mass)} if mass else {})

    def estimate(self, examples: Sequence[Example], answers: int, tokens: int) -> str:
        """What it costs at most to judge so many answers, of so many tokens each, to examples like these: in
        words, at four characters a token and 50 tokens a reason; "" if nothing is sent or read."""
        if (self.server is None and self.kind != "probe") or not any(map(self.calls, examples)):
            return ""
        questions = [
            self._asked(example, "four" * tokens, rubric, ks)
            for example, rubric in ((example, self.rubric(example)) for example in examples)
            for ks in self._portions(rubric)
        ]
        share = answers / len(examples)
        if self.server is None:
            return self.backend.estimate(questions, share)
        price = self.server.endpoint.price
        read = share * sum(len(json.dumps(self.server.request(each).body)) for each in questions) / 4
        items = sum(1 if each.rating else len(each.criteria) for each in questions)
        written = share * 50 * items if self.kind == "chat" else 0
        text = f"about {share * len(questions):.0f} requests, {read:.2g} tokens in, {written:.2g} out"
        return text + (f", ${(read * price[0] + written * price[2]) / 1e6:.2f}" if price else "")

    def digest(self, example: Example, response: str) -> str:
        """16 hexadecimal digits that change with anything that this judge is told about a response, or is set
        to."""
        facts = {"spec": self.spec, "method": self.method, "criteria": repr(self.rubric(example))}
        facts |= {"rubric": repr(example.rubric), "design": repr(self.design)}
        if checks := [item.check for item in self.rubric(example).criteria if item.check]:
            facts["checks"] = checks  # absent without any, so that files of before are gone on with
        facts |= {"question": example.question, "reference": example.reference, "response": response}
        facts |= {"per_call": self.per_call, "threshold": self.options.threshold}
        facts |= {"prompts": self.prompts.digest, "server": self.server and self.server.endpoint.address}
        return digest(facts | getattr(self.backend, "facts", {}))

    def texts(self) -> dict[str, str]:
        """The texts of `JudgePrompts` that this judge is shown, by name; and a probe's digest."""
        return vars(self.prompts) | getattr(self.backend, "facts", {})

    def carry(self, account: Account) -> None:
        """Keep an account of what this judge costs, and count what stands in it already."""
        self.ledger.carry(account)

    def reasons(self) -> str:
        """What failed, in words."""
        return self.ledger.reasons()

    def line(self) -> str:
        """Everything that happened, in words."""
        return self.ledger.line()

    def close(self) -> None:
        """End the connections to a server, if there are any."""
        self.backend.close()

    def _asked(self, example: Example, response: str, rubric: Rubric, ks: Sequence[int]) -> Asked:
        """What is asked at once: some items of a rubric, or a rating."""
        if self.method not in RATED:
            return Asked(example, response, tuple(rubric.criteria[k] for k in ks))
        labelled = self.design.rubric_drop != "labels"
        ways = {"direct-likert": "rate", "reference-likert": "rate_reference"}
        rating = ways.get(self.method, "rate_rubric" if labelled else "rate_unlabelled")
        shown = self._own(example).criteria if self.method == "rar-implicit" else ()
        return Asked(example, response, tuple(c for c in shown if c.weight), rating)


def as_trl_reward(judge: Judge, examples: Sequence[Example]) -> Callable[..., list[float | None]]:
    """The judge as one of the `reward_funcs` of TRL's GRPOTrainer.

    The data set's rows hold a `prompt` and the `id` of an example, by which its rubric is found again. The
    completions to one example are asked about together, as in training. A completion without a reward gets
    None, which TRL leaves out of its group; `judge/failures` counts them among TRL's metrics, beside those of
    the judge. Raises ValueError for examples that share an id or that the method has no question for, and
    the function for an id that none of them has, and for a completion that is neither text nor turns.
    """
    import torch

    from rar_mini import grpo

    judge.check(examples)
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        raise ValueError(
            f"expected an id of its own for every example, got {len(by_id)} ids for {len(examples)}; rename "
            "those that share one"
        )

    def reward(
        completions: Sequence[Any], id: Sequence[str], log_metric: Callable | None = None, **columns: Any
    ) -> list[float | None]:
        places: dict[str, list[int]] = {}
        for place, name in enumerate(id):
            if name not in by_id:
                raise ValueError(f"expected the id of an example that as_trl_reward was given, got {name!r}")
            places.setdefault(name, []).append(place)
        texts = [said(each) for each in completions]
        rewards = torch.full((len(texts),), NAN)
        for _, alike in groupby(sorted(places.values(), key=len), len):
            groups = list(alike)  # P x G places; more than one G where processes share a group
            batch = [by_id[id[group[0]]] for group in groups]
            scores = judge.score(batch, [[texts[place] for place in group] for group in groups])
            rewards[torch.tensor(groups)] = grpo.reward(scores)
        if log_metric is not None:
            for name, value in (judge.metrics() | {"judge/failures": int(rewards.isnan().sum())}).items():
                log_metric(name, value)
        return [finite(value) for value in rewards.tolist()]

    reward.__name__ = f"{judge.method}/{judge.spec}"  # TRL logs under it
    return reward


def answered(file: Path, skip_bad_rows: bool) -> list[Example]:
    """The rows of a file that have a `response`. Raises ValueError for one that has none, or with
    `skip_bad_rows` says how many were left out."""
    notes: Counter[str] = Counter()
    examples = data.read(file, unique=False, skip_bad=skip_bad_rows, notes=notes)
    mute = [example.id for example in examples if not isinstance(example.row.get("response"), str)]
    if mute and not skip_bad_rows:
        raise ValueError(
            f"{file}: the row {mute[0]!r} has no `response`: expected the text to be scored; add it, or pass "
            "--skip-bad-rows to go on without such rows"
        )
    if len(mute) == len(examples):
        raise ValueError(f"{file} has no row with a `response`: expected the text to be scored in each")
    if mute:
        examples = [example for example in examples if isinstance(example.row.get("response"), str)]
        notes["rows left out as bad"] += len(mute)
    for note, count in notes.items():
        print(f"{note}: {count}", file=sys.stderr)
    return examples


CHUNK = 256
"""Rows that are judged and written at a time."""


def score(
    file: tyro.conf.Positional[Path],
    /,
    out: Path,
    judge: str = "auto",
    method: str = "rar-explicit",
    skip_bad_rows: bool = False,
    recipe: str | None = None,
    design: tyro.conf.OmitArgPrefixes[Design] = PLAIN,
    judging: tyro.conf.OmitArgPrefixes[Options] = Options(),  # noqa: B008, frozen
) -> None:
    """Score a file of answered questions. Rows that OUT already has, from the same judge, are kept.

    Args:
        file: data rows with a `response` each, one JSON object a line
        out: where the scores go, one JSON object a line in the same order
        judge: keyword, rules, chat:NAME, systemone:NAME, decisions:NAME, local:NAME, probe:PATH, or auto
        method: direct-likert, reference-likert, rar-predefined, rar-explicit or rar-implicit
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of stopping at the first
        recipe: NAME of lab/NAME.py or PATH.py, whose judge, answers, rubrics and rewards these are
    """
    spec, why = choose(judge)
    print(f"judge: {spec} ({why})", file=sys.stderr)
    examples = answered(file, skip_bad_rows)
    from rar_mini import recipe as recipes  # brings torch, after the file was read

    recipe = recipe and recipes.located(recipe)
    config = replace(PRESETS["cpu"], judge=spec, method=method, design=design, judging=judging)
    made = recipes.make(recipe, config)
    asker = made.judge(Judge(spec, method, design=design, **vars(judging)))
    asker.check(examples)
    if method in OWN and (worded := directions(design.apply(each.rubric, each.id) for each in examples)):
        print(f"pitfalls: {worded}", file=sys.stderr)
    digests = [asker.digest(example, example.row["response"]) for example in examples]
    if recipe:
        digests = [f"{each}-{recipes.digest(recipe)}" for each in digests]
    wanted = "the score of that row by this judge with these options"
    check = partial(forms.read, ScoredRow)
    with kept_rows(out, file, lambda n, key: digests[n - 1 : n] == [key], wanted, check) as rows:
        asker.carry(Account.beside(out))
        if rows:
            print(f"{out} has {len(rows)} of {len(examples)} rows: going on from there", file=sys.stderr)
        for start in range(len(rows), len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            progress = f"judging {start + len(chunk)}/{len(examples)}"
            responses = [[made.answer(example, example.row["response"])] for example in chunk]
            pairs = zip(chunk, made.rubrics(chunk, responses), strict=True)
            posed = [replace(example, rubric=rubric) for example, rubric in pairs]
            scores = asker.score(posed, responses, progress=progress)
            rewards = made.reward(scores)[:, 0].tolist()  # (P,)
            new = [
                {"id": example.id, "reward": finite(reward), "rating": finite(scores.rating[p, 0].item())}
                | {"failed": not math.isfinite(reward), "verdicts": scores.rows(p, 0)}
                | {"asked": digests[start + p]}
                for p, (example, reward) in enumerate(zip(chunk, rewards, strict=True))
            ]
            with open(out, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            rows += new
    scored = [row["reward"] for row in rows if row["reward"] is not None]
    mean = f"{sum(scored) / len(scored):.4f}" if scored else "none"
    metrics = asker.metrics()
    mass = f"mass of the offered answers {metrics['judge/mass']:.2f}, " if "judge/mass" in metrics else ""
    print(f"judge: {mass}{asker.line()}", file=sys.stderr)
    print(f"{len(rows)} responses, mean reward {mean}, {len(rows) - len(scored)} failed; scores in {out}")
    asker.close()


def show_run(run: tyro.conf.Positional[Path], /, step: int | None = None) -> None:
    """Print a step's rollouts: the best and the worst answer of each group side by side, with their verdicts.

    Args:
        run: the folder of a run of train.py
        step: which step; the last one if not given
    """
    from rar_mini.viewing import show

    print(show.show(run, step))


if __name__ == "__main__":
    run_command({"score": score, "show": show_run}, "judge.py", __doc__)
