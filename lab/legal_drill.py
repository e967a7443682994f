"""LegalDrill: mistakes are named and drilled, and DPO learns the pairs that the policy itself gets wrong.

    python train.py --recipe legal_drill --loss-norm sum --recipe.writer chat:NAME --recipe.student local:NAME

After LegalDrill, arXiv 2604.23809; notes on it were read. Diagnosed failures fill a bank of pitfalls. DPO's
reference is the policy before the round, and it learns the pairs that are difficult for that policy:

    s(y) = p(correct | y) / (p(correct | y) + p(incorrect | y))        DS = s(worse) - s(better) > tau

Ours: pairs are a group's best and worst answer; theirs are made by a teacher. A writer names the mistake of
each worst answer that earns less than `need`: in later steps, not in scores between them, it is a pitfall of
that question's rubric. A `student`, any judge, gives s; without one all pairs are kept. A new round is a new
run, --policy RUN/checkpoints/step-N. What came out: that it acts as said (tests/lab/test_legal_drill.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from lab.models import criteria_writer, second_judge
from rar_mini import grpo, ranks, sequences
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.wrappers import JudgeLike, Wrapper, agrees
from rar_mini.options import Share
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import CATEGORY_WEIGHT, Criterion, Rubric

CLAIM = "pairs that the policy gets wrong teach more than all pairs"
LACKS = "a model that names mistakes"
TASK = "Name the answer's mistake in one sentence that begins with a verb, such as: Applies a foreign law."
CORRECT = Criterion("Correct", "The response answers the question correctly.", "essential", 1.0)


def read(text: str) -> Criterion:
    if "\n" in (text := text.strip()) or len(text) > 300:
        raise Failure("malformed", "expected one sentence of at most 300 characters")
    return Criterion(text[:40], text, "pitfall", CATEGORY_WEIGHT["pitfall"], polarity="mistake")


@dataclass(frozen=True)
class LegalDrill(Recipe):
    needs_logp: ClassVar[bool] = True
    writer: str = ""
    student: str = ""
    tau: float = 0.0
    need: Share = 0.5
    beta: float = 0.1

    @cached_property
    def _judges(self) -> dict[str, JudgeLike]:
        made = {"writer": criteria_writer(self.writer, self.config)} if self.writer else {}
        return made | ({"student": second_judge(self.student, self.config)} if self.student else {})

    def judge(self, judge: JudgeLike) -> Wrapper:
        return Wrapper(judge, *self._judges.values())

    def load(self, **how: Any) -> list[Example]:
        sequences.check_dpo(self.config, "legal_drill")
        return super().load(**how)

    def begin(self, step: int, steps: int) -> None:
        self.state["drills"], failed = True, self.state.pop("failed", [])
        shown = [{"question": q, "reference answer": best, "answer": y} for _, q, best, y in failed]
        written = ranks.first(lambda: self._judges["writer"].write(TASK, shown, read)) if shown else []
        for (name, *_), item in zip(failed, written, strict=True):
            if item:
                self.state.setdefault("bank", {}).setdefault(name, {})[item.description] = True

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        bank = self.state.get("bank", {}) if self.state.get("drills") else {}
        return [Rubric((*e.rubric.criteria, *map(read, bank.get(e.id, {})))) for e in examples]

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        best, worst = sequences.best_and_worst(rollouts.reward)
        pairs = ~grpo.tied(rollouts.reward)
        if self.student and self.state.get("drills"):
            texts = [[own[w], own[b]] for own, w, b in zip(rollouts.responses, worst, best, strict=True)]
            s = agrees(self._judges["student"], CORRECT, rollouts.examples, texts)  # (P, 2)
            pairs &= s[:, 0] - s[:, 1] > self.tau
        return sequences.dpo(rollouts, best, worst, pairs, self.beta)

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        self.state["drills"], worst = False, sequences.best_and_worst(rollouts.reward)[1]
        rows = zip(rollouts.examples, rollouts.responses, rollouts.reward, worst, strict=True)
        failed = [(e, own[g]) for e, own, reward, g in rows if self.writer and reward[g] < self.need]
        self.state["failed"] = [[e.id, e.question, e.reference, answer] for e, answer in failed]
