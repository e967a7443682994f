"""C2's verifier: a policy learns to say whether a rubric helps, and which of two answers is better.

    python train.py --domain science --recipe c2_verifier --judge rules --max-prompt-tokens 1536

After C2, arXiv 2604.13618; lab/c2.py has the rest of the method, and what was read of it. The verifier is
trained by GRPO on judge prompts: a question, a rubric and two answers. Its reply ends with

    rubric: helpful | misleading
    better: 1 | 2              R = 0.6 [better is right] + 0.3 [rubric is right] + 0.1 [both lines are there]

Rewards are checks (docs/data.md): no judge is asked. A row of --data has `question`, `rubric`, `preferred`,
`worsened` and `helpful`, true or false. A row that does not say makes two prompts: its own rubric is helpful,
that of the next other question is misleading.

Ours: that, where C2's mislead a judge; the prompt; both lines or nothing; the bundled labelled answers, if
--data is not given. The better answer is first in every other prompt of a split and label.

What came out (tests/lab/test_c2_verifier.py): replies earn 0, 0.1, 0.4, 0.7 or 1. On the 576 bundled prompts
each of the four replies that never change earns 0.55. Whether a real verifier learns more was not tried.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rar_mini import forms
from rar_mini.evaluation import labelled
from rar_mini.judging import wires
from rar_mini.judging.writer import SYSTEM
from rar_mini.prompts import item_line
from rar_mini.recipe import Example, Recipe
from rar_mini.rubric import Criterion, Rubric

CLAIM = "a verifier that is trained on rubrics of known worth can tell which ones help"
LACKS = "a policy that reads prompts"
TASK = """Does the rubric help to tell which answer is better, or does it mislead? If it misleads, do not go \
by it. Which answer is better? You may give reasons first. End with these two lines:
rubric: helpful or misleading
better: 1 or 2"""


class Row(forms.Form):
    helpful: bool | None = None


def ends(title: str, weight: float, label: str = "(?:helpful|misleading)", better: str = "[12]") -> Criterion:
    lines = rf"(?:^|\n)rubric: {label}\nbetter: {better}$"
    return Criterion(title, title, "literal", weight, check={"matches": lines})


def posed(name: str, pair: labelled.Pair, rubric: Rubric, label: str, better: str) -> Example:
    """The prompt about a pair whose better answer is number 1 or 2, and what replies to it earn."""
    texts = {"question": pair.example.question}
    texts["rubric"] = "\n".join(item_line(c) for c in rubric.criteria if c.weight)
    texts |= {f"answer {n}": pair.preferred if n == better else pair.worsened for n in "12"}
    shown = wires.fenced(b"", texts)  # no text holds the fence, so it needs no secret
    turn = {"role": "user", "content": f"{SYSTEM}\n{shown}{TASK}"}
    earns = ends("Right answer", 0.6, better=better), ends("Right label", 0.3, label), ends("Form", 0.1)
    return Example(name, pair.example.split, (turn,), f"rubric: {label}\nbetter: {better}", Rubric(earns), {})


def another(pairs: list[labelled.Pair], n: int) -> Rubric:
    """The rubric of the next other question in the split of pair n."""
    own = pairs[n].example
    for each in (pairs[(n + k) % len(pairs)].example for k in range(1, len(pairs))):
        if each.split == own.split and each.messages != own.messages and each.rubric != own.rubric:
            return each.rubric
    raise ValueError(f"no rubric in {own.split} misleads {own.id[:80]!r}: say `helpful` in each row")


@dataclass(frozen=True)
class C2Verifier(Recipe):
    breaks: ClassVar[dict[str, str]] = {"hidden": "a verifier has to see the rubric that it judges"}

    def load(self, **how: object) -> list[Example]:
        file, seen, made = self.config.data and Path(self.config.data), Counter(), []
        pairs = labelled.pairs(file, self.config.domain, how["skip_bad"])
        for n, pair in enumerate(pairs):
            name, split = pair.example.id, pair.example.split
            said = forms.read(Row, pair.example.row, f"{file}, {name[:80]!r}").helpful
            for helpful in (True, False) if said is None else (said,):
                rubric = another(pairs, n) if said is None and not helpful else pair.example.rubric
                label, place = "helpful" if helpful else "misleading", (seen[split, helpful] + helpful) % 2
                seen[split, helpful] += 1
                made.append(posed(f"{name}-{n}-{label}", pair, rubric, label, "21"[place]))
        return made
