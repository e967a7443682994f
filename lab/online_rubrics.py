"""OnlineRubrics: new criteria in each step, from what tells its answers from those of a reference policy.

    python train.py --data FILE --recipe online_rubrics --recipe.writer chat:NAME --judge chat:NAME

After OnlineRubrics, arXiv 2510.07284; only notes on it were read. For each question of a step, with answers
o_i of the current policy and r_i of a reference policy, i = 1 .. `pairs`:

    new    = the criteria that a writer draws from the difference of o_i and r_i, each of them once
    rubric = the data's criteria and the new ones, for this step alone

Theirs: 8 pairs; the reference is the policy of the start or of the step before. Ours: the prompt; at most
`each` criteria a pair, worth 1 to 5 points, a fifth of an essential one each; criteria of the same words are
one (theirs has a model merge them); r_i are the answers that the question got at its first visit, so that a
first visit is RaR's. If the writer fails at a pair, that pair adds nothing. Scores between steps are by the
data's rubric. Without a writer it is RaR. rollouts.jsonl keeps the rubrics; online/new counts new criteria a
question.
What came out: only that it acts as said (tests/lab/test_online_rubrics.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from lab.models import criteria_writer
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer, read_rubric
from rar_mini.options import Count
from rar_mini.prompts import fill, item_line
from rar_mini.recipe import Example, Recipe, Rollouts
from rar_mini.rubric import Rubric

CLAIM = "criteria that follow what the policy does teach more than those that were written before"
LACKS = "a model that writes criteria"
TASK = """Which criteria, not yet among these, tell the better of the two responses from the other? Give \
none, or up to {most} new ones. Yes or no answers each, yes if a response is good on it, and whoever judges \
sees one response and nothing else. Give each 1 to 5 points, more if it matters more. Reply with the JSON \
array alone: [{"criterion": "...", "points": 3}, ...]"""


@dataclass(frozen=True)
class OnlineRubrics(Recipe):
    writer: str | None = None
    pairs: Count = 8
    """pairs of an answer and one of the reference policy, a question"""
    each: Count = 2
    """new criteria that a pair adds at most"""

    @cached_property
    def _writer(self) -> Writer:
        return criteria_writer(self.writer, self.config)

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, self._writer) if self.writer else judge

    def begin(self, step: int, steps: int) -> None:
        self.state["training"] = bool(self.writer)

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        before = self.state.get("before", {}) if self.state.get("training") else {}
        shown, places = [], []
        for p, (example, group) in enumerate(zip(examples, responses, strict=True)):
            known = {"question": example.question}
            known["criteria"] = "\n".join(item_line(c) for c in example.rubric.criteria if c.weight)
            for own, reference in zip(group[: self.pairs], before.get(example.id, ()), strict=False):
                shown.append(known | {"response 1": own, "response 2": reference})
                places.append(p)
        task, read = fill(TASK, most=str(self.each)), partial(read_rubric, least=0, most=self.each)
        added = [{} for _ in examples]
        for p, new in zip(places, self._writer.write(task, shown, read) if shown else (), strict=True):
            own = {_words(c.description) for c in examples[p].rubric.criteria}
            for c in new.criteria if new else ():
                if (words := _words(c.description)) not in own:
                    added[p].setdefault(words, replace(c, category="important", weight=c.weight / 5))
        pairs = zip(examples, added, strict=True)
        return [Rubric((*e.rubric.criteria, *new.values())) if new else e.rubric for e, new in pairs]

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        for example, group in zip(rollouts.examples, rollouts.responses, strict=True) if self.writer else ():
            self.state.setdefault("before", {}).setdefault(example.id, list(group[: self.pairs]))
        new = [len(rubric) for rubric in rollouts.rubrics or ()]
        old = [len(example.rubric) for example in rollouts.examples if rollouts.rubrics]
        self.state.update(training=False, new=(sum(new) - sum(old)) / len(rollouts.examples))

    def metrics(self) -> dict[str, float]:
        return {"online/new": self.state.get("new")}


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
