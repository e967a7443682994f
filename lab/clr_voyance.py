"""CLR-voyance: the policy sees the past of a case, and what came of it later decides about its answer.

    python train.py --data CASES.jsonl --recipe clr_voyance --recipe.oracle chat:NAME --judge chat:NAME

After CLR-voyance, arXiv 2605.09584; notes on it were read. A case of n events is cut behind event k, drawn
from N(n / 2, n / 6). An oracle that sees past and future asks a question and writes a rubric that the future
verifies. The policy is shown the past 1 .. k and the question; the judge reads the future, too:

    reward = clip01(points of the met items / positive points)

and the trained weights are merged with those of the start: `python -m lab.merge`.
Ours: the prompts; without an oracle, question and rubric are the row's, whose points may be negative. A case
is `events`, a list of texts in a row's `hidden`; a row without it is used as it is. k depends on --seed and
the row alone.
What came out (tests/lab/test_clr_voyance.py): a judge tells the right forecast from the wrong one by the
future, and cannot by the past. A case whose oracle's question has an event of the future word for word is
left out; other words may still tell it. Nothing was trained.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

from torch import Tensor

from lab.models import criteria_writer, written_before
from lab.pop import read
from lab.rubric_grounded import Grounded, quotes
from rar_mini.forms import sentence
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.judging.writer import Writer
from rar_mini.recipe import Example, Recipe, Scores
from rar_mini.sampler import uniforms

CLAIM = "rubrics that only the future of a case can verify teach more"
LACKS = "cases that unfold in time"
TASK = """Ask one question about this case that whoever knows the past alone can reason about. Quote nothing \
of the future in it. Answer it, and write 4 to 12 criteria for judging an answer, which the future verifies. \
Reply with JSON alone: \
{"problem": "...", "answer": "...", "criteria": [{"criterion": "...", "points": 1 to 5}, ...]}"""


def cut(example: Example, seed: int) -> tuple[str, str]:
    """Past and future of an example's case."""
    events, u = example.hidden["events"], uniforms(seed, 0, f"cut of {example.id}", 0, 1)[0]
    texts = isinstance(events, list) and all(isinstance(each, str) and each.strip() for each in events)
    if not texts or len(events) < 2:
        said = sentence("hidden.events", "two texts or more", events)
        raise ValueError(f"{example.id!r:.80}: {said}; leave `events` out of a row that is no case")
    n = len(events)
    k = min(n - 1, max(1, round(NormalDist(n / 2, n / 6).inv_cdf(max(u, 1e-9)))))
    return "\n".join(events[:k]), "\n".join(events[k:])


@dataclass(frozen=True)
class ClrVoyance(Recipe):
    oracle: str = ""

    @cached_property
    def _oracle(self) -> Writer:
        return criteria_writer(self.oracle, self.config)

    def judge(self, judge: JudgeLike) -> Grounded:
        return Grounded(judge, self._oracle) if self.oracle else Grounded(judge)

    def load(self, **how: Any) -> list[Example]:
        examples = super().load(**how)
        cases = {n: cut(e, self.config.seed) for n, e in enumerate(examples) if "events" in e.hidden}
        if self.oracle:
            shown = [{"past": past, "future": future} for past, future in cases.values()]
            written = written_before(self._oracle, TASK, shown, read)
            for (n, (past, future)), made in zip(cases.items(), written, strict=True):
                if made is None or quotes(made[0], future, past):
                    examples[n] = None
                    how["notes"]["cases of which no question was made"] += 1
                else:
                    turn = {"role": "user", "content": made[0]}
                    examples[n] = replace(examples[n], messages=(turn,), reference=made[1], rubric=made[2])
        return [self._split(e, *cases.get(n, ())) for n, e in enumerate(examples) if e]

    def _split(self, example: Example, past: str = "", future: str = "") -> Example:
        *before, last = example.messages
        shown = last | {"content": f"{past}\n\n{last['content']}"} if past else last
        row = example.row | {"hidden": example.hidden | {"passage": future}}
        return replace(example, messages=(*before, shown), row=row if future else example.row)

    def reward(self, scores: Scores) -> Tensor:
        return super().reward(scores).clamp(0, 1)
