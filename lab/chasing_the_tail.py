"""Chasing the Tail: rewrite a rubric until it tells the two best answers apart.

    python train.py --data FILE --recipe chasing_the_tail --recipe.writer chat:NAME --judge chat:NAME

Paper: Chasing the Tail, arXiv 2509.21500; official code was read. What a policy can still gain is decided
among its best answers, and there a rubric ties first. So for each question, `rounds` times:

    judge all answers by the rubric, and take the two with the highest rewards
    rubric <- a writer's new version that tells these two apart (add, rewrite, split, delete)

Theirs refines before training, on 16 answers of strong models. Ours: the prompt, points from 1 to 5, a round
a visit on the policy's own answers; scores between steps are by the data's rubric. If the writer fails, the
rubric stays; without one it is RaR. tail/tied is the share of questions whose two best rewards are equal.
What came out: only that it acts as said (tests/lab/test_chasing_the_tail.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from lab.models import criteria_writer
from rar_mini import grpo
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer, read_rubric
from rar_mini.options import Count
from rar_mini.prompts import item_line
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import Criterion, Rubric

CLAIM = "a rubric that tells the best answers apart teaches more"
LACKS = "a model that writes rubrics"
TASK = """By these criteria the two responses are the best of many, and hardly differ. Improve the criteria \
so that they tell which one is better: add, rewrite, split or delete some. Yes or no answers each, yes if a \
response is good on it, and a judge sees one response alone. Give each 1 to 5 points, more if it matters \
more. Reply with all criteria, 4 to 20, as a JSON array alone: [{"criterion": "...", "points": 3}, ...]"""
NEW = [[], 0, []]  # what is kept of a question: rewritten criteria, rounds, the two best answers


@dataclass(frozen=True)
class ChasingTheTail(Recipe):
    writer: str | None = None
    rounds: Count = 3
    """how often a question's rubric is rewritten at most"""

    @cached_property
    def _writer(self) -> Writer:
        return criteria_writer(self.writer, self.config)

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, self._writer) if self.writer else judge

    def begin(self, step: int, steps: int) -> None:
        self.state["training"] = bool(self.writer)

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        if not self.state.get("training"):
            return super().rubrics(examples, responses)
        kept = [self.state.get("kept", {}).get(example.id, NEW) for example in examples]
        rubrics = [_rubric(own) or e.rubric for (own, *_), e in zip(kept, examples, strict=True)]
        todo = [p for p, (_, rounds, best) in enumerate(kept) if best and rounds < self.rounds]
        shown = [_shown(examples[p], rubrics[p], *kept[p][2]) for p in todo]
        written = self._writer.write(TASK, shown, partial(read_rubric, least=4, most=20)) if todo else []
        new = dict(zip(todo, written, strict=True))
        return [new.get(p) or rubric for p, rubric in enumerate(rubrics)]

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        kept, rewards = self.state.setdefault("kept", {}), rollouts.reward.nan_to_num(float("-inf"))
        best, order = (x[:, :2] for x in rewards.sort(descending=True, stable=True))  # (P, 2) each
        used = rollouts.rubrics or [example.rubric for example in rollouts.examples]
        for p, example in enumerate(rollouts.examples if self.writer else ()):
            (old, rounds, _), rubric = kept.get(example.id, NEW), used[p]
            own = [[c.description, c.weight] for c in rubric.criteria if rubric != example.rubric]
            texts = [rollouts.responses[p][g] for g in order[p].tolist()]
            pair = texts if best[p].isfinite().all() and texts[0] != texts[1] else []
            kept[example.id] = [own, rounds + (own != old), pair]
        tied = best[:, 0] - best[:, 1] <= grpo.TIE  # (P,), False where a reward is missing
        self.state.update(training=False, tied=tied.float().mean().item())

    def metrics(self) -> dict[str, float]:
        return {"tail/tied": self.state.get("tied")}


def _rubric(criteria: list) -> Rubric:
    return Rubric(tuple(Criterion(text[:40], text, "literal", points) for text, points in criteria))


def _shown(example: Example, rubric: Rubric, one: str, two: str) -> dict[str, str]:
    criteria = "\n".join(item_line(c) for c in rubric.criteria if c.weight)
    return {"question": example.question, "criteria": criteria, "response 1": one, "response 2": two}
