"""ReflectRM: of n analyses of two responses, those that stand up to reflection say which response is better.

    python train.py --recipe reflect_rm --recipe.analyst chat:NAME --judge chat:NAME

Paper: ReflectRM, arXiv 2604.07506; it was read in full. The anchor is the analysis of the highest confidence,
the mean log-probability of the lowest 10 % of its tokens. Each of the others is compared with it:

    verdict = the majority of those that beat the anchor; the anchor's own if none does, or if they tie
    knock_out: who beats the anchor takes its place, and the last anchor's verdict counts

Ours: prompts; knock_out; any judge reflects; the reward, the share of comparisons that a response wins
(rar_mini/judging/pairwise.py). Analyses without log-probabilities come last, and if none has them the first
is the anchor. Without an analyst this is RaR. If a text failed, a comparison has no verdict. What came out
(tests/lab/test_reflect_rm.py): with a random anchor, analyses right in 0.7 of cases and reflections in 0.9,
verdicts are right in 0.908 (n = 4) and 0.962 (8), by knock_out in 0.944 and 0.954, by majority (4) in 0.784.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lab.models import text_writer
from rar_mini import ranks
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.pairwise import Against, Pair, Pairwise
from rar_mini.judging.wrappers import JudgeLike, agrees, check_agrees
from rar_mini.judging.writer import Writer
from rar_mini.options import Count
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion

CLAIM = "analyses that stand up to reflection are right more often than their majority"
LACKS = "a model that writes analyses"
TASK = "Which response is the better answer? Compare them, and end with one line: better: 1, or better: 2"
SOUNDER = Criterion("Sounder", "Analysis 2 is sounder than analysis 1.", "essential", 1.0)


def read(text: str, logps: Sequence[float]) -> tuple[str, float, float]:
    """An analysis, 1 if it prefers the first response, else 0, and its confidence."""
    if not (said := re.search(r"(?:^|\n)better: ([12])\s*$", text)):
        raise Failure("malformed", "expected a last line, better: 1 or better: 2")
    lowest = sorted(logps)[: -(-len(logps) // 10)]
    return text, float(said[1] == "1"), sum(lowest) / len(lowest) if lowest else -torch.inf


def decide(said: Tensor, reflect: Callable[[Tensor, int], Tensor], knock_out: bool = False) -> Tensor:
    """The verdicts (Q,) of analyses that say `said` (Q, n), the anchor in front. `reflect` says how likely
    analysis i beats anchors (Q,), (Q,)."""
    anchor, votes = torch.zeros(len(said)).long(), torch.zeros(len(said))
    for i in range(1, said.shape[1]):
        beats = 0 * (likely := reflect(anchor, i)) + (likely > 0.5)  # 1, 0, or NaN, which stays in the votes
        votes = votes + beats * (2 * said[:, i] - 1)
        anchor = torch.where(beats == 1, i, anchor) if knock_out else anchor
    own = said.gather(-1, anchor[:, None])[:, 0]
    return own.where(knock_out | (votes == 0), (votes > 0).float()).where(~votes.isnan(), torch.nan)


@dataclass(frozen=True)
class ReflectRM(Recipe):
    analyst: str = ""
    n: Count = 8
    knock_out: bool = False
    against: Against = "reference"

    def judge(self, judge: JudgeLike) -> JudgeLike:
        if not self.analyst:
            return judge
        check_agrees(judge)
        writer = text_writer(self.analyst, self.config)
        return Pairwise(partial(self._compare, judge, writer), judge, writer, against=self.against)

    def _compare(self, judge: JudgeLike, writer: Writer, pairs: Sequence[Pair]) -> Tensor:
        n, shown = self.n, [{"question": e.question, "response 1": a, "response 2": b} for e, a, b in pairs]
        asked = [partial(writer.write, TASK, shown, read, 1.0, draw, logprobs=True) for draw in range(n)]
        written = zip(*map(ranks.first, asked), strict=True)  # Q x n
        known = [sorted(a, key=lambda a: -a[2]) if all(a) else [("", torch.nan, 0.0)] * n for a in written]

        def reflect(anchors: Tensor, i: int) -> Tensor:
            texts = []
            for each, own, k in zip(shown, known, anchors.tolist(), strict=True):
                texts.append([wires.fenced(b"", each | {"analysis 1": own[k][0], "analysis 2": own[i][0]})])
            return agrees(judge, SOUNDER, [e for e, *_ in pairs], texts)[:, 0]

        return decide(torch.tensor([[a[1] for a in own] for own in known]), reflect, self.knock_out)
