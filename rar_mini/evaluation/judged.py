"""A judge's scores of single answers, as arrays: what most measures in this folder are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from rar_mini import grpo
from rar_mini.data import Example
from rar_mini.judging.wrappers import JudgeLike


@dataclass(frozen=True)
class Judged:
    """A judge's scores of N answers."""

    verdict: ndarray  # (N, K), NaN if the judge failed or the rubric has fewer items
    weight: ndarray  # (N, K), 0 if the rubric has fewer items
    reward: ndarray  # (N,), NaN if the judge failed
    rating: ndarray  # (N,), NaN if the judge failed or the method has no rating

    @property
    def failed(self) -> int:
        """The number of items that weigh something and have no verdict."""
        return int((np.isnan(self.verdict) & (self.weight != 0)).sum())


def ask(judge: JudgeLike, answers: Sequence[tuple[Example, str]], progress: str, repeat: int = 0) -> Judged:
    """Have N answers judged, each on its own. `progress` names the progress bar; another `repeat` asks the
    same again."""
    examples, responses = [example for example, _ in answers], [[response] for _, response in answers]
    scores = judge.score(examples, responses, progress=progress, repeat=repeat)
    verdict, reward, rating = scores.verdict[:, 0], grpo.reward(scores)[:, 0], scores.rating[:, 0]
    return Judged(verdict.numpy(), scores.weight.numpy(), reward.numpy(), rating.numpy())


def verdicts(
    judge: JudgeLike, answers: Sequence[tuple[Example, str | None]], progress: str
) -> list[list[float]]:
    """The verdicts on each answer, item by item; none if there is no answer."""
    texts = [(example, text) for example, text in answers if text is not None]
    rows = iter(ask(judge, texts, progress).verdict.tolist() if texts else [])
    return [[] if text is None else next(rows) for _, text in answers]
