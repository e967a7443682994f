"""ROPD: one rubric a group, written from students' and teachers' answers, by which all are scored together.

    python train.py --data FILE --recipe ropd --recipe.writer chat:NAME --judge chat:NAME

Paper: ROPD, rubric-based on-policy distillation, arXiv 2605.07396; official code was read. For each question
a writer is shown n rollouts of the student and m cached answers of a teacher, and gives one rubric of 4 to 12
binary items of 1 to 5 points. Students and teachers are judged together, in random order:

    reward = points of the met items / all points       A = reward - mean reward, without a deviation, no KL

If judge or writer fails, the group teaches nothing. Ours: the prompt. A teacher's answers are
`teacher_answers` in a row's `hidden`, else the reference answer. Without a writer the data's rubric stands
in. ropd/teacher is the teachers' mean reward. What came out: only that it acts as said (test_ropd.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from lab.models import criteria_writer
from rar_mini import grpo
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import UNWRITTEN, Writer, read_rubric
from rar_mini.recipe import Example, Recipe, Rollouts, Scores
from rar_mini.rubric import Rubric
from rar_mini.sampler import uniforms
from rar_mini.scores import finite

CLAIM = "a rubric written from students' and teachers' answers teaches more than they do alone"
LACKS = "a model that writes rubrics"
TASK = """Write 4 to 12 criteria that tell better responses to this question from worse ones. Yes or no \
answers each, and whoever judges sees one response and nothing else. Give each 1 to 5 points, more if it \
matters more. Reply with the JSON array alone: [{"criterion": "...", "points": 3}, ...]"""


def teachers(example: Example) -> list[str]:
    return example.hidden.get("teacher_answers") or [example.reference]


class Together(Wrapper):
    """Judges students and teachers in one random order, all of a group or none."""

    teacher = None

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        G, m = len(responses[0]), min(len(teachers(example)) for example in examples)
        orders = [uniforms(0, "ropd", e.id, 0, G + m).argsort() for e in examples]
        whole = [[*own, *teachers(e)[:m]] for e, own in zip(examples, responses, strict=True)]
        mixed = [[group[i] for i in order] for group, order in zip(whole, orders, strict=True)]
        scores = super().score(examples, mixed, **how)
        back = torch.tensor([order.argsort().tolist() for order in orders])  # (P, G + m)
        verdict = scores.verdict.gather(1, back[..., None].expand_as(scores.verdict))
        reward = grpo.reward(replace(scores, verdict=verdict))  # (P, G + m)
        self.teacher = finite(reward[:, G:].nanmean().item())
        verdict = verdict[:, :G].masked_fill(reward.isnan().any(-1)[:, None, None], torch.nan)
        return replace(scores, verdict=verdict, rating=scores.rating.gather(1, back)[:, :G])

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"ropd/teacher": self.teacher}


@dataclass(frozen=True)
class Ropd(Recipe):
    writer: str | None = None

    @cached_property
    def _writer(self) -> Writer:
        return criteria_writer(self.writer, self.config)

    def judge(self, judge: JudgeLike) -> Together:
        return Together(judge, self._writer) if self.writer else Together(judge)

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        if not self.writer:
            return super().rubrics(examples, responses)
        shown = []
        for example, own in zip(examples, responses, strict=True):
            texts = [*own, *teachers(example)]
            order = uniforms(self.config.seed, "ropd", example.id, 1, len(texts)).argsort()
            mixed = {f"response {n}": texts[i] for n, i in enumerate(order, 1)}
            shown.append({"question": example.question} | mixed)
        written = self._writer.write(TASK, shown, partial(read_rubric, least=4, most=12))
        return [rubric or UNWRITTEN for rubric in written]

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        return grpo.advantage(rollouts.reward, "none")
