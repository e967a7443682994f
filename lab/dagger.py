"""DAgger: in a conversation the policy learns what a teacher would say, where the policy itself has led it.

    python train.py --data FILE --recipe dagger --recipe.teacher chat:NAME --recipe.turns 3

After DAgger for agents, arXiv 2605.12913, of which others' notes were read. At each turn the teacher says a*;
the conversation goes on with a*, with probability beta, else with what the policy says:

    loss = - mean log P(a* | what was said so far)        over all turns, by --loss-norm

beta falls linearly to 0 over the share `until` of the run; with `switch` it stays, and then is 0 at once.
Ours: the prompt; a turn without a teacher's words teaches nothing. The teacher is a model, else `hidden` has
`teacher_turns`, else it says the reference answer. Users: user_simulator's. Rewards are for the record alone.
What came out (tests/lab/test_dagger.py, seed 0): three of four answers of a policy are wrong, whatever it
learns, and its teacher's never. After 20 steps in the policy's own conversations 0.96 of 200 answers to
"wrong" are the teacher's; after 20 in the teacher's own (beta 1 to the end) none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lab.models import text_writer
from lab.user_simulator import opened, says
from rar_mini import grpo, sequences
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer
from rar_mini.options import Count, Share
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.sampler import uniforms
from rar_mini.talk import Lesson
from rar_mini.turns import without_thoughts

CLAIM = "learning where the policy leads is better than imitating where the teacher does"
LACKS = "conversations and a teacher"
TASK = "Write the assistant's next turn in this conversation as well as you can. Reply with its text alone."


@dataclass(frozen=True)
class Dagger(Recipe):
    teacher: str | None = None
    """chat:NAME; without one, the row's own texts"""
    user: str | None = None
    turns: Count = 3
    beta: Share = 1.0
    until: Share = 0.5
    switch: bool = False

    @cached_property
    def _models(self) -> list[Writer | None]:
        return [name and text_writer(name, self.config) for name in (self.user, self.teacher)]

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, *filter(None, self._models))

    def load(self, **how: object) -> list[Example]:
        sequences.check_own_loss(self.config, "dagger")
        return [opened(example) for example in super().load(**how)]

    def begin(self, step: int, steps: int) -> None:
        done = min(1.0, (step - 1) / max(1.0, self.until * steps))
        self.state["beta"] = self.beta * (done < 1 if self.switch else 1 - done)

    def reply(self, example: Example, turns: Sequence[dict[str, str]]) -> str | None:
        return says(example, turns, self.turns, self._models[0])

    def teach(self, example: Example, turns: Sequence[dict[str, str]], step: int, g: int) -> Lesson:
        if self.teacher:
            material = {"conversation": example.after(turns).question}
            words = self._models[1].write(TASK, [material], lambda text: without_thoughts(text).strip())[0]
        else:
            texts = example.hidden.get("teacher_turns") or [example.reference] * self.turns
            words = next(iter(texts[len(turns) // 2 :]), None)
        coin = uniforms(self.config.seed, f"dagger/{step}", example.id, g, self.turns)[len(turns) // 2]
        return words or None, bool(words) and coin < self.state["beta"]

    def repair(self, rollouts: Rollouts) -> Rollouts:
        return replace(rollouts, adv=torch.ones_like(rollouts.adv), recited=True)

    def loss(self, logp: Tensor, batch: grpo.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -(batch.weight * logp).sum()
        return loss, {"tokens": torch.tensor(float(len(logp))), "loss": loss.detach()}

    def metrics(self) -> dict[str, float]:
        return {"dagger/beta": float(self.state["beta"])}
