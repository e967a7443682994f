"""A judge that is the mean of two: the one that --judge names and `second`, asked alike."""

from dataclasses import dataclass, replace

from judge import Judge
from rar_mini.judging.wrappers import Wrapper
from rar_mini.recipe import Recipe, Scores


class Mean(Wrapper):
    def score(self, *asked: object, **how: object) -> Scores:
        a, b = (judge.score(*asked, **how) for judge in self.judges)
        return replace(a, verdict=(a.verdict + b.verdict) / 2, rating=(a.rating + b.rating) / 2)


@dataclass(frozen=True)
class MeanOfTwo(Recipe):
    second: str = "keyword"

    def judge(self, judge: Judge) -> Mean:
        return Mean(judge, Judge(self.second, judge.method, design=judge.design, **vars(judge.options)))
