"""DR Tulu's buffer: after each visit of a question, forget the criteria that told its answers apart least.

    python train.py --domain instructions --recipe dr_tulu --recipe.most 3

Paper: DR Tulu (RLER), arXiv 2511.19399; official code was read. For a question that the step has visited,
with std_k the deviation of criterion k's verdicts within the group:

    active <- the criteria k of the buffer with std_k > 0, of those the `most` with the largest

Criteria of the `keep` categories are persistent: they are always judged, and are never in the buffer.

Ours: the buffer holds the data's own criteria. In theirs a model that compares the rollouts adds criteria in
every step; without it a buffer only shrinks, so one that runs empty starts again with all. A group with fewer
than two scored rollouts changes nothing. Scores between steps are by the whole rubric. Criteria that a whole
group meets or misses teach GRPO nothing in that group, so that dropping them saves calls; the cap is what
changes rewards.

What came out (docs/lab.md, 6 seeds): a criterion that nobody can meet costs RaR nothing, because it is the
same to all of a group. So dropping it gains nothing, and the cap costs a little: 0.852 less 0.871, -0.018
[-0.036, -0.001].
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rar_mini import grpo
from rar_mini.options import Count
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import Category, Rubric

CLAIM = "to drop a criterion that nobody can meet teaches more"
CONDITIONS = ("unmet",)


@dataclass(frozen=True)
class DrTulu(Recipe):
    most: Count = 5
    """how many criteria stay in a question's buffer at most"""
    keep: tuple[Category, ...] = ("essential",)
    """the categories that are persistent"""

    def begin(self, step: int, steps: int) -> None:
        self.state["training"] = True

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        return [self._active(example) for example in examples]

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        self.state["training"] = False
        buffers, scores = self.state.setdefault("buffers", {}), rollouts.scores
        for p, valid in enumerate(grpo.scored(rollouts.reward)):
            if valid.any():
                deviations = scores.verdict[p, valid].std(0, correction=0).tolist()  # K
                pairs = zip(scores.rubrics[p].criteria, deviations, strict=False)
                differ = {c.description: std for c, std in pairs if std > grpo.TIE}
                own = [c.description for c in scores.rubrics[p].criteria if c.category not in self.keep]
                ranked = sorted(filter(differ.get, own), key=differ.get, reverse=True)
                buffers[rollouts.examples[p].id] = ranked[: self.most]

    def _active(self, example: Example) -> Rubric:
        buffer, criteria = self.state.get("buffers", {}).get(example.id, []), example.rubric.criteria
        active = [c for c in criteria if c.description in buffer]
        if not active or not self.state["training"]:
            return example.rubric
        return Rubric(tuple(c for c in criteria if c.category in self.keep or c in active))
