"""Think-with-Rubrics: the policy writes a rubric of its own first, and its answer is judged by that, too.

    python train.py --domain science --recipe think_with_rubrics --answers full --max-new-tokens 400

After Think-with-Rubrics, arXiv 2605.07461; only notes on it were read. A rollout and its reward are

    <rubric> a line for each criterion </rubric> <answer> ... </answer>
    R = 0.3 gold + 0.5 own + 0.2 form

the shares of the data's rubric and of its own (a "Hard rule:" weighs 2, a "Principle:" 1), and whether the
text parses, with about 10 criteria. Ours: the prompt; form is min(n, 10) / max(n, 10), and 0, like own, if it
does not parse; own/trivial is the share of own criteria that the answers to another question meet, too.
What came out (tests/lab/test_think_with_rubrics.py): a table that writes rubrics which tell answers apart in
half of all cases does so in 5 % after 150 steps by `own` alone, in 28 % by the mix (4 to 73 %, 6 seeds).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rar_mini import grpo
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.recipe import Example, Recipe, Scores
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import finite
from rar_mini.turns import without_thoughts

CLAIM = "a policy that writes its own rubric first, and is judged by both, does better"
LACKS = "a policy that can write rubrics"
TASK = """\n\nFirst write the rubric of a good answer: about 10 criteria, a line each, that open with Hard \
rule: or Principle:. Then answer. The form:\n<rubric>\n...\n</rubric>\n<answer>\n...\n</answer>"""
FORM = r"\s*<rubric>((?:(?!</?rubric>).)*)</rubric>\s*<answer>((?:(?!</?answer>).)*)</answer>\s*"
LINE = re.compile(r"\W*(?:\d+\W+)?(hard rule|principle)\W*:\W*(\w.*)", re.I)


def parse(text: str) -> tuple[Rubric, str]:
    """A rollout's own rubric, empty if the text does not parse, and its answer."""
    if found := re.fullmatch(FORM, text := without_thoughts(text), re.S):
        lines = filter(None, map(LINE.fullmatch, found[1].splitlines()))
        return Rubric(tuple(Criterion(m[2], m[2], "own", 1.0 + (m[1][0] in "hH")) for m in lines)), found[2]
    return Rubric(()), re.sub(r"<rubric>.*?(</rubric>|\Z)|</?answer>", "", text, flags=re.S)


class Both(Wrapper):
    trivial = None  # of the answers judged last

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        own, answers = ([[parse(text)[part] for text in group] for group in responses] for part in (0, 1))
        rubrics = [example.rubric for example in examples]
        gold = [replace(e, rubric=Rubric(e.rubric.criteria[2:])) for e in examples]
        scores = super().score(gold, answers, **how)
        count, met = torch.tensor([[*map(len, group)] for group in own]), self._met(examples, own, answers)
        form = count.clamp_max(10) / count.clamp_min(10)  # (P, G)
        first = torch.stack([met.where(count > 0, 0.0), form], -1)  # (P, G, 2)
        if len(examples) > 1:
            self.trivial = finite(self._met(examples, own, answers[1:] + answers[:1]).nanmean().item())
        weight = torch.cat([torch.tensor([rubric.weights[:2] for rubric in rubrics]), scores.weight], -1)
        return replace(scores, verdict=torch.cat([first, scores.verdict], -1), weight=weight, rubrics=rubrics)

    def _met(self, examples: Sequence[Example], own: list, answers: list) -> torch.Tensor:
        """The shares (P, G) of own rubrics that answers earn, NaN of none or if the judge failed."""
        asked = [replace(e, rubric=r) for e, group in zip(examples, own, strict=True) for r in group]
        scores = self.judges[0].score(asked, [[answer] for group in answers for answer in group])
        return grpo.reward(scores).view(len(examples), -1)

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"own/trivial": self.trivial}


@dataclass(frozen=True)
class ThinkWithRubrics(Recipe):
    gold: float = 0.3
    own: float = 0.5
    form: float = 0.2

    def judge(self, judge: JudgeLike) -> Both:
        return Both(judge)

    def messages(self, example: Example, step: int | None, g: int) -> Sequence[dict[str, str]]:
        *before, last = super().messages(example, step, g)
        return [*before, last | {"content": last["content"] + TASK}]

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        gold = [[replace(c, weight=self.gold * c.weight) for c in e.rubric.criteria] for e in examples]
        most = [sum(max(weight, 0.0) for weight in example.rubric.weights) for example in examples]
        own, form = ([Criterion(n, n, n, getattr(self, n) * m) for m in most] for n in ("own", "form"))
        return [Rubric((a, b, *items)) for a, b, items in zip(own, form, gold, strict=True)]
