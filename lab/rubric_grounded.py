"""Rubric-Grounded RL: the judge reads the document from which a question was made, and the policy does not.

    python train.py --data FILE --recipe rubric_grounded --judge chat:NAME

After Rubric-Grounded RL, arXiv 2605.08061; only the abstract was read. A document becomes, before training, a
question, a weighted rubric and a guide for scoring. The policy sees the question; the judge sees

    passage + guide + question, the answer, and each criterion        reward = sum_k w_k v_k / sum_k w_k

with graded credit v_k in [0, 1], which systemone:, decisions: and local: judges give; chat: gives 0 or 1.

Ours: passage and guide are `passage` and `guide` in a row's `hidden`; a row without them is judged as usual.
They stand between the fences of the question, in front of it.

What came out (tests/lab/test_rubric_grounded.py): where only the passage decides, a judge that reads it tells
the right answer from the wrong one, and without it cannot. No message shows the passage. In the lab's world
(docs/lab.md, 6 seeds) the claim holds: 0.87 less 0.59 [0.21, 0.35], as if criteria said what is right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.prompts import fill
from rar_mini.recipe import Example, Recipe, Scores

CLAIM = "a judge that reads the document teaches what another one cannot"
CONDITIONS = ("documents",)

SHOWN = {
    "passage": "The passage that decides. Who wrote the response has not seen it:\n{shown}\n\n",
    "guide": "How to score:\n{shown}\n\n",
}


def grounded(example: Example) -> Example:
    """The example as the judge reads it."""
    parts = [fill(SHOWN[name], shown=example.hidden[name]) for name in SHOWN if example.hidden.get(name)]
    if not parts:
        return example
    text = "".join(parts) + f"The question:\n{example.question}"
    return replace(example, messages=({"role": "user", "content": text},))


def quotes(text: str, passage: str, known: str = "") -> bool:
    """Whether a text has a line of the passage, word for word, that does not also stand in what is known."""
    lines = {line.strip() for line in passage.splitlines()} - {"", *map(str.strip, known.splitlines())}
    return any(re.search(rf"(?<!\w){re.escape(line)}(?!\w)", text, re.I) for line in lines)


class Grounded(Wrapper):
    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        return super().score([grounded(example) for example in examples], responses, **how)

    def digest(self, example: Example, response: str) -> str:
        return super().digest(grounded(example), response)


@dataclass(frozen=True)
class RubricGrounded(Recipe):
    def judge(self, judge: JudgeLike) -> Grounded:
        return Grounded(judge)
