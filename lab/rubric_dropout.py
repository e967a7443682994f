"""Rubric Dropout: judge each group by a random part of its rubric, so that no item can be relied upon.

    python train.py --domain medical --recipe rubric_dropout --recipe.drop 0.3

Paper: Rubric Dropout, arXiv 2608.11669; it was read in full. With a rubric of criteria c_1 .. c_K:

    n    = round(drop * the number of criteria of positive weight that are not protected)
    mask = n of those, drawn anew for each question and step and alike for its whole group
    reward = the weighted share of what is left

at least `least` criteria stay. Scores between steps are by the whole rubric. Theirs: 0.3 to 0.5 helps, 0.6
hurts.

Ours: the judge is not asked about what is dropped, which saves its calls as well. Pitfalls are protected,
because RaR gives them positive weights where theirs are negative. rollouts.jsonl has the rubrics as judged.

What came out: over 400 steps each criterion is dropped as often as `drop` says (test_rubric_dropout.py). In
the lab's world (docs/lab.md, 6 seeds) the claim cannot be told, 0.77 less 0.81 [-0.13, 0.04]; under a clean
judge dropping costs truth, 0.82 less 0.87 [-0.08, -0.02].
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rar_mini.options import Count, Share
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import Category, Rubric
from rar_mini.sampler import uniforms

CLAIM = "credit that is given at random misleads less"
CONDITIONS = ("false-positives",)


@dataclass(frozen=True)
class RubricDropout(Recipe):
    drop: Share = 0.4
    """the share of the criteria that may be dropped which are"""
    least: Count = 3
    """how many criteria stay at least"""
    protect: tuple[Category, ...] = ("pitfall",)
    """categories that are never dropped"""

    def begin(self, step: int, steps: int) -> None:
        self.state["step"] = step

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        return [self._left(example) for example in examples]

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        self.state["step"] = None  # scores between steps are by the whole rubric

    def _left(self, example: Example) -> Rubric:
        criteria, step = example.rubric.criteria, self.state.get("step")
        may = [k for k, c in enumerate(criteria) if c.weight > 0 and c.category not in self.protect]
        count = min(round(self.drop * len(may)), len(criteria) - self.least)
        if step is None or count <= 0:
            return example.rubric
        draws = uniforms(self.config.seed, step, f"dropout of {example.id}", 0, len(may))
        dropped = {may[i] for i in draws.argsort()[:count]}
        return Rubric(tuple(c for k, c in enumerate(criteria) if k not in dropped))
