"""Delay, Plateau or Collapse (arXiv 2605.02909): a judge that errs at rates that you set.

    P(verdict = 1) = v tpr + (1 - v) fpr        v the verdict, tpr = P(1 | true), fpr = P(1 | false)

In answers that keep `where`, `there-tpr` and `there-fpr` hold instead: systematic errors. The judge is clean
for `clean` steps, then noisy for `noisy`; evaluations are noisy. conditional_advantage, the mean adv of the
answers that keep `where`, says early what will be learnt. Ours: `where` is a check (docs/data.md).
What came out (docs/lab.md, 6 seeds): two claims hold, two do not: both triggers end at 0.28.

    python train.py --recipe delay --recipe.where '{"max_words": 5}' --recipe.there-fpr 1 --recipe.clean 1
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rar_mini.data import rules_of
from rar_mini.judging.rules import keeps
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.options import Share
from rar_mini.recipe import Example, Recipe, Rollouts, Scores
from rar_mini.sampler import uniforms

RESCUED = """--where '{"max_words": 2}' --there-fpr 1 --clean 1 --noisy 9"""
CLAIMS = (  # text, number, and two arms (options or the baseline, condition): the first lies higher
    ("random false negatives delay", "steps", ("", "false-negatives"), ("", "clean")),
    ("systematic false positives do worse", "truth", ("", "false-positives"), ("", "harmless-trigger")),
    ("harmful ones do worse than harmless ones", "truth", ("", "harmless-trigger"), ("", "harmful-trigger")),
    ("one clean step in ten rescues", "truth", (RESCUED, "clean"), ("", "harmful-trigger")),
)


@dataclass(frozen=True)
class Rates:
    tpr: float = 1.0
    fpr: float = 0.0
    where: dict = field(default_factory=dict)


class Noisy(Wrapper):
    """A judge with errors, at the last of the rates that match; the verdict of a check stays exact."""

    def __init__(self, judge: JudgeLike, *rates: Rates, state: dict, seed: int) -> None:
        super().__init__(judge)
        self.spec = f"Noisy({judge.spec}, {rates})"
        self.rates, self.state, self.seed = rates, state, seed

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        scores = super().score(examples, responses, **how)
        verdict, step = scores.verdict.clone(), self.state.get("step", 0)
        for p, rubric in enumerate(scores.rubrics):
            asked = [k for k, item in enumerate(rubric.criteria) if not item.check]
            for g, answer in enumerate(responses[p]):
                coins = uniforms(self.seed, f"noise {step}/{answer}", examples[p].id, g, len(rubric))
                for rates in [rates for rates in self.rates if keeps(rates.where, answer)][-1:]:
                    v = verdict[p, g, : len(rubric)]
                    said = torch.from_numpy(coins) < v * rates.tpr + (1 - v) * rates.fpr
                    v[asked] = torch.where(v.isnan(), v, said.float())[asked]
        return scores if self.state.get("clean") else replace(scores, verdict=verdict)


@dataclass(frozen=True)
class Delay(Recipe):
    tpr: Share = 1.0
    fpr: Share = 0.0
    where: str = "{}"
    there_tpr: Share = 1.0
    there_fpr: Share = 0.0
    clean: int = 0
    noisy: int = 9

    def judge(self, judge: JudgeLike) -> Noisy:
        if self.config.method.endswith(("likert", "implicit")):
            raise ValueError("delay needs a verdict on each criterion: expected --method rar-explicit")
        where = rules_of(self.where, "--recipe.where")
        rates = [Rates(self.tpr, self.fpr), Rates(self.there_tpr, self.there_fpr, where)]
        return Noisy(judge, *rates[: 1 + bool(rates[1].where)], state=self.state, seed=self.config.seed)

    def begin(self, step: int, steps: int) -> None:
        self.state.update(step=step, clean=(step - 1) % max(1, self.clean + self.noisy) < self.clean)

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        where = rules_of(self.where, "--recipe.where")
        own = torch.tensor([[keeps(where, answer) for answer in group] for group in rollouts.responses])
        self.state.update(clean=False, advantage=rollouts.adv[own].mean().item() if own.any() else 0.0)

    def metrics(self) -> dict[str, float]:
        return {"conditional_advantage": self.state["advantage"]}
