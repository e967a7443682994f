"""What a run asks of its judge, and judges that are made of others.

A recipe's judge is anything with the methods of `JudgeLike`. `Wrapper` has all of them for judges that it is
made of, so that one of your own overrides `score` and nothing else:

    class Mean(Wrapper):
        def score(self, examples, responses, **how):
            a, b = (judge.score(examples, responses, **how) for judge in self.judges)
            return replace(a, verdict=(a.verdict + b.verdict) / 2)

Nothing is inherited from the first of several in silence: metrics of the second stand under `judge2/`, and
digest, estimate and checks are those of all.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rar_mini.files import digest

if TYPE_CHECKING:  # what only passes judges on needs no torch
    from rar_mini.data import Example
    from rar_mini.scores import Scores

Steps = Sequence[Sequence[dict[str, Any]]]  # the rows of metrics.jsonl, step by step


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
        """Every sentence that this judge is shown, by name."""

    def carry(self, steps: Steps) -> None:
        """Count what the steps of a run that goes on have cost already."""

    def metrics(self) -> dict[str, float]:
        """What judging came to since this was last called."""

    def reasons(self) -> str:
        """What failed, in words."""

    def line(self) -> str:
        """Everything that happened, in words; "" if nobody was asked and nothing failed."""

    def close(self) -> None:
        """End connections."""


class Wrapper:
    """A judge made of one or several others; `score` is the first one's unless it is overridden."""

    def __init__(self, *judges: JudgeLike) -> None:
        self.judges = judges
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
        told = [self.spec, *(judge.digest(example, response) for judge in self.judges)]
        return digest(told)

    def texts(self) -> dict[str, str]:
        return self._named(judge.texts() for judge in self.judges)

    def carry(self, steps: Steps) -> None:
        for i, judge in enumerate(self.judges):
            cost = _name("perf/judge/dollars", i)
            judge.carry([[{"perf/judge/dollars": row.get(cost)} for row in rows] for rows in steps])

    def metrics(self) -> dict[str, float]:
        return self._named(judge.metrics() for judge in self.judges)

    def reasons(self) -> str:
        return "; ".join(filter(None, (judge.reasons() for judge in self.judges)))

    def line(self) -> str:
        lines = ((judge.spec, judge.line()) for judge in self.judges)
        return "\n         ".join(f"{spec}: {line}" for spec, line in lines if line)

    def close(self) -> None:
        for judge in self.judges:
            judge.close()

    @staticmethod
    def _named(each: Iterable[dict[str, Any]]) -> dict[str, Any]:
        return {_name(name, i): value for i, found in enumerate(each) for name, value in found.items()}


def _name(name: str, i: int) -> str:
    """A metric's or text's name for the i-th of several judges: judge/failures, judge2/failures, ..."""
    if not i:
        return name
    return name.replace("judge/", f"judge{i + 1}/") if "judge/" in name else f"judge{i + 1}/{name}"
