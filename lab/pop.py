"""POP: problems and rubrics from plain text, and DPO on the best and the worst answer of each group.

    python train.py --recipe pop --recipe.texts FILE --recipe.writer chat:NAME --loss-norm sum --lr 5e-6

Paper: POP, arXiv 2604.20051; official code was read. From a chunk of text a model makes a problem, its answer
and criteria. The policy answers G times without the chunk, and is judged. A group whose rewards deviate by
1e-3 or more, and whose best and worst answer differ by at most 100 words, gives a pair for DPO:

    m = logp - ref_logp                   of a whole answer, by the policy and by what it was at the start
    loss = mean over pairs of -ln sigmoid(beta (m_best - m_worst))                              beta = 0.01
    A_best = -A_worst = beta sigmoid(-beta (m_best - m_worst)) / pairs                          others 0

Ours: a writer makes all three in one reply, before the run; theirs are the policy's own. Empty lines part
chunks, and every fourth one is held out. Without texts, the data's questions are used. Verdicts lie in
[0, 1]; theirs are 0, 1 or 2. What came out (tests/lab/test_pop.py): -sum A logp has DPO's gradient.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from lab.models import criteria_writer, written_before
from rar_mini import sequences
from rar_mini.files import plain_text
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer, read_rubric
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import Rubric

CLAIM = "a model improves on problems and rubrics that it makes of plain text"
LACKS = "texts to make problems of"
TASK = """Make of this text one problem that can be solved without it, its answer, and 4 to 12 criteria for \
judging an answer. Reply with JSON alone: {"problem": "...", "answer": "...", "criteria": \
[{"criterion": "...", "points": 1 to 5}, ...]}"""


def read(text: str) -> tuple[str, str, Rubric]:
    match wires.only_json(text):
        case {"problem": str(problem), "answer": str(answer), "criteria": items} if problem.strip():
            return problem, answer, read_rubric(json.dumps(items), least=4, most=12)
    raise Failure("malformed", "expected problem, answer and criteria")


@dataclass(frozen=True)
class Pop(Recipe):
    needs_logp: ClassVar[bool] = True
    texts: Path | None = None
    writer: str = ""
    beta: float = 0.01

    @cached_property
    def _writer(self) -> Writer:
        return criteria_writer(self.writer, self.config)

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, self._writer) if self.texts else judge

    def load(self, **how: Any) -> list[Example]:
        sequences.check_dpo(self.config, "pop")
        if not self.texts:
            return super().load(**how)
        chunks = filter(None, map(str.strip, plain_text(self.texts).split("\n\n")))
        written = written_before(self._writer, TASK, [{"text": chunk} for chunk in chunks], read)
        how["notes"]["texts of which no problem was made"] += written.count(None)
        return [self._posed(n, *each) for n, each in enumerate(written) if each]

    def _posed(self, n: int, problem: str, answer: str, rubric: Rubric) -> Example:
        split, turn = "train" if n % 4 < 3 else "held_out", {"role": "user", "content": problem}
        return Example(f"text-{n}", split, (turn,), answer, rubric, {})

    def advantage(self, rollouts: Rollouts) -> torch.Tensor:
        reward = rollouts.reward  # (P, G)
        spread = (reward - reward.nanmean(-1, keepdim=True)).square().nanmean(-1).sqrt()  # (P,)
        best, worst = sequences.best_and_worst(reward)
        words = torch.tensor([[len(text.split()) for text in group] for group in rollouts.responses])
        ends = words.gather(-1, torch.stack([best, worst], -1))  # (P, 2)
        pairs = (spread >= 1e-3) & (ends.diff()[:, 0].abs() <= 100)  # (P,)
        return sequences.dpo(rollouts, best, worst, pairs, self.beta)
