"""A judge that is the mean of two: the one that --judge names and `second`, asked alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from judge import Judge
from rar_mini.data import Example
from rar_mini.judging.wrappers import Wrapper
from rar_mini.recipe import Recipe
from rar_mini.scores import Scores


class Mean(Wrapper):
    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: Any) -> Scores:
        a, b = (judge.score(examples, responses, **how) for judge in self.judges)
        return replace(a, verdict=(a.verdict + b.verdict) / 2, rating=(a.rating + b.rating) / 2)


@dataclass(frozen=True)
class MeanOfTwo(Recipe):
    second: str = "keyword"

    def judge(self, judge: Judge) -> Mean:
        return Mean(judge, Judge(self.second, judge.method, design=judge.design, **vars(judge.options)))
