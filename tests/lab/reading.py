"""A judge without a model, whose verdicts a test knows by looking at the texts."""

from collections.abc import Sequence

import torch

from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN, Rollouts, Scores


class Reader:
    """A judge for which a criterion is met if the answer has its words; it fails at the answer `fail`."""

    spec = "reader"

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        P, G, K = len(examples), len(responses[0]), max(len(e.rubric) for e in examples)
        verdict, weight = torch.full((P, G, K), NAN), torch.zeros(P, K)
        for p, example in enumerate(examples):
            for k, item in enumerate(example.rubric.criteria):
                weight[p, k] = item.weight
                met = [NAN if text == "fail" else float(item.description in text) for text in responses[p]]
                verdict[p, :, k] = torch.tensor(met)
        return Scores(verdict, weight, torch.full((P, G), NAN), [e.rubric for e in examples])

    def metrics(self) -> dict[str, float]:
        return {}


def asks(name: str, *words: str) -> Example:
    rubric = Rubric(tuple(Criterion(word, word, "essential", 1.0) for word in words))
    return Example(name, "train", ({"role": "user", "content": name},), "", rubric, {})


def visit(own: Recipe, example: Example, step: int, responses: list[str]) -> Rollouts:
    """A step in which the question is judged, by a judge that looks for words."""
    own.begin(step, 9)
    rubrics = own.rubrics([example], [responses])
    posed = Example(example.id, "train", example.messages, "", rubrics[0], {})
    scores = Reader().score([posed], [responses])
    made_here = rubrics if rubrics[0] != example.rubric else None
    rollouts = Rollouts([example], [], [], [responses], scores, own.reward(scores), rubrics=made_here)
    own.schedule(step, rollouts)
    return rollouts
