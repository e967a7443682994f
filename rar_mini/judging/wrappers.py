"""What a run asks of its judge, and judges that are made of others.

A recipe's judge is anything with the methods of `JudgeLike`. `Wrapper` has all of them for the judges that it
is made of, so that one of your own overrides `score` and nothing else (lab/examples/mean_of_two.py).

No judge is left out in silence: digest, estimate, checks and metrics cover all of them. The second judge's
metrics are named judge2/..., the third one's judge3/..., also if wrappers wrap wrappers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from rar_mini.files import digest
from rar_mini.rubric import Criterion, Rubric

if TYPE_CHECKING:  # what only passes judges on needs no torch
    from torch import Tensor

    from rar_mini.data import Example
    from rar_mini.judging.ledger import Account
    from rar_mini.scores import Scores


class JudgeLike(Protocol):
    """Whoever scores responses."""

    spec: str

    def score(
        self, examples: "Sequence[Example]", responses: Sequence[Sequence[str]], **how: Any
    ) -> "Scores":
        """Verdicts and ratings of responses[p][g]."""

    def check(self, examples: "Sequence[Example]") -> None:
        """Raise ValueError for examples that this judge has no question for."""

    def calls(self, example: "Example") -> int:
        """How many questions one response to this example costs."""

    def estimate(self, examples: "Sequence[Example]", answers: int, tokens: int) -> str:
        """What so many answers cost at most, in words; "" if nothing is sent."""

    def digest(self, example: "Example", response: str) -> str:
        """A string that changes with anything that this judge is told, or set to."""

    def texts(self) -> dict[str, str]:
        """The texts that this judge is shown and --prompts may replace, by name."""

    def carry(self, account: "Account") -> None:
        """Keep an account of what this judge costs, and count what stands in it already."""

    def metrics(self) -> dict[str, float]:
        """What judging came to since this was last called."""

    def reasons(self) -> str:
        """What failed, in words."""

    def line(self) -> str:
        """Everything that happened, in words."""

    def close(self) -> None:
        """End connections."""


class Wrapper:
    """A judge made of one or several others. Its scores are the first one's until `score` is overridden."""

    def __init__(self, *judges: JudgeLike) -> None:
        self.judges = judges
        self.size = sum(getattr(judge, "size", 1) for judge in judges)
        self.spec = f"{type(self).__name__}({', '.join(judge.spec for judge in judges)})"

    def score(
        self, examples: "Sequence[Example]", responses: Sequence[Sequence[str]], **how: Any
    ) -> "Scores":
        return self.judges[0].score(examples, responses, **how)

    def check(self, examples: "Sequence[Example]") -> None:
        for judge in self.judges:
            judge.check(examples)

    def calls(self, example: "Example") -> int:
        return sum(judge.calls(example) for judge in self.judges)

    def estimate(self, examples: "Sequence[Example]", answers: int, tokens: int) -> str:
        return "; ".join(filter(None, (judge.estimate(examples, answers, tokens) for judge in self.judges)))

    def digest(self, example: "Example", response: str) -> str:
        return digest([self.spec, *(judge.digest(example, response) for judge in self.judges)])

    def texts(self) -> dict[str, str]:
        parts = self._numbered()
        return {_shift(name, by): text for judge, by in parts for name, text in judge.texts().items()}

    def carry(self, account: "Account") -> None:
        for judge, by in self._numbered():
            judge.carry(account.after(by))

    def metrics(self) -> dict[str, float]:
        parts = self._numbered()
        return {_shift(name, by): number for judge, by in parts for name, number in judge.metrics().items()}

    def reasons(self) -> str:
        return "; ".join(filter(None, (judge.reasons() for judge in self.judges)))

    def line(self) -> str:
        lines = ((judge.spec, judge.line()) for judge in self.judges)
        return "\n         ".join(f"{spec}: {line}" for spec, line in lines if line)

    def close(self) -> None:
        for judge in self.judges:
            judge.close()

    def _numbered(self) -> Iterator[tuple[JudgeLike, int]]:
        """Each judge, and how many come before it; one that is a wrapper counts as all that it wraps."""
        sizes = [getattr(judge, "size", 1) for judge in self.judges]
        return zip(self.judges, accumulate(sizes, initial=0), strict=False)


def check_agrees(judge: JudgeLike) -> None:
    """Raise ValueError for a judge that `agrees` cannot ask, because its method asks for no verdicts."""
    if (method := getattr(judge, "method", "rar-explicit")) != "rar-explicit":
        raise ValueError(f"{judge.spec} is asked yes or no: expected --method rar-explicit, got {method}")


def agrees(
    judge: JudgeLike,
    statement: Criterion,
    examples: "Sequence[Example]",
    texts: Sequence[Sequence[str]],
) -> "Tensor":
    """How far a judge holds a statement to be true of texts[p][g], which need not be responses, (P, G); NaN
    if it failed. Raises ValueError for a method that asks for no verdicts."""
    from rar_mini import grpo  # and so torch

    check_agrees(judge)
    asked = [replace(example, rubric=Rubric((statement,))) for example in examples]
    return grpo.reward(judge.score(asked, texts))


def ask(
    judge: JudgeLike, posed: "Sequence[Sequence[Example]]", responses: Sequence[Sequence[str]], **how: Any
) -> "Scores":
    """What a judge says of responses[p][g] to posed[p][g]. If the responses of some group answer different
    conversations, each is asked about on its own: the judge sees groups of one."""
    if all(group.count(group[0]) == len(group) for group in posed):
        return judge.score([group[0] for group in posed], responses, **how)
    P, G = len(posed), len(posed[0])
    apart = sum(map(list, posed), []), [[response] for group in responses for response in group]
    scores = judge.score(*apart, **how)
    verdict, rating = scores.verdict.view(P, G, -1), scores.rating.view(P, G)
    return replace(
        scores, verdict=verdict, rating=rating, weight=scores.weight[::G], rubrics=scores.rubrics[::G]
    )


def _shift(name: str, by: int) -> str:
    """The name of a metric or text, so many judges on: judge/failures is judge2/failures one judge on."""
    if not by:
        return name
    perf, number, rest = re.fullmatch(r"(perf/)?(?:judge(\d*)/)?(.*)", name).groups("")
    n = int(number or 1) + by
    return f"{perf}judge{'' if n == 1 else n}/{rest}"
