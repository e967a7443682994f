"""C2: follow a rubric only if a verifier calls it helpful, else judge without it.

    python train.py --domain medical --recipe c2 --recipe.verifier systemone:NAME --judge chat:NAME

Paper: C2, arXiv 2604.13618; official code and notes were read. With a judge's log-probability of the label l
(which of two answers is better) in context c, a rubric r has the margin

    m(r) = log p(l | c, r) - log p(not l | c, r)        m0: the same without a rubric
    r+ = argmax m, if m > max(0, m0)      r- = argmin m, if m < min(0, m0)      else the context is dropped

`select` makes such pairs of several rubrics for one context. Theirs trains a generator of rubrics on them by
DPO, and the verifier by GRPO on judge prompts, which is lab/c2_verifier.py. Here are the selection, and the
trust at inference.

Ours: the verifier is any judge, asked whether the rubric tells better answers from worse ones; from `need` on
the rubric is followed. Else, or if the verifier failed, answers are judged by RaR's four predefined criteria.
It is asked once a question and step; a server's replies are cached. rollouts.jsonl has the rubrics in use.

What came out (tests/lab/test_c2.py): if a judge is right in 97 % of cases by a good rubric, in 16 % by a bad
one and in 69 % without, and the verifier is right in 77 %, then with 10, 50 and 90 % of bad rubrics it is
right in .89, .57 and .24 if it follows always, and in .87, .74 and .61 by C2 (each within .03).
These rates were solved from the paper's figures: that shows that the code routes as it should, not that C2
helps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lab.models import second_judge
from rar_mini.judging.wrappers import JudgeLike, Wrapper, agrees
from rar_mini.options import Share
from rar_mini.prompts import PREDEFINED, item_line
from rar_mini.recipe import Example, Recipe
from rar_mini.rubric import Criterion, Rubric

CLAIM = "rubrics that are followed only if they help do better than all of them"
LACKS = "texts from which a verifier could tell good rubrics from bad ones"

HELPFUL = Criterion(
    "Helpful",
    "The response is a rubric for answers to this question. Who grades by it prefers the better answers: "
    "each item is right, is about this question, and tells better answers from worse ones.",
    "essential",
    1.0,
)


def select(margins: Sequence[float], bare: float) -> tuple[int, int] | None:
    """The places of r+ and r- among rubrics with these margins; `bare` is m0. None if either is missing."""
    best, worst = (pick(range(len(margins)), key=margins.__getitem__) for pick in (max, min))
    found = margins[best] > max(0.0, bare) and margins[worst] < min(0.0, bare)
    return (best, worst) if found else None


@dataclass(frozen=True)
class C2(Recipe):
    verifier: str = "keyword"
    need: Share = 0.5

    @cached_property
    def _verifier(self) -> JudgeLike:
        return second_judge(self.verifier, self.config)

    def judge(self, judge: JudgeLike) -> Wrapper:
        return Wrapper(judge, self._verifier)

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        texts = ["\n".join(item_line(c) for c in e.rubric.criteria if c.weight) for e in examples]
        trust = agrees(self._verifier, HELPFUL, examples, [[text] for text in texts])[:, 0].tolist()
        pairs = zip(examples, trust, strict=True)
        return [e.rubric if trusted >= self.need else Rubric(PREDEFINED) for e, trusted in pairs]
