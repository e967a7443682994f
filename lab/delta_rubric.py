"""DeltaRubric: a planner turns what two answers disagree about into a neutral checklist, a judge executes it.

    python train.py --data FILE --recipe delta_rubric --recipe.planner chat:NAME --judge chat:NAME

After DeltaRubric, arXiv 2605.09269; only its abstract was read, and the formula is inferred. Of answers a, b:

    c = planner(question, {a, b})          a neutral checklist of what they disagree about
    s(a) = points of a's passed checks / all points         a is better if s(a) > s(b)

In a group the two are drawn at random from its different answers, and all G answers are judged by their
checklist: the reward is s. The planner is shown them in an order that depends on their texts alone, so that
swapped answers get the same checklist and the opposite verdict.

Ours: the prompt, points, G answers instead of two; and a checklist that says which answer is better, or that
mentions one of them, is refused and asked for again. Theirs trains planner and verifier in one model. Without
a planner, or if a group's answers are all alike, the data's rubric stands in; without a checklist there is no
reward. What came out: only that it acts as said (tests/lab/test_delta_rubric.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lab.models import criteria_writer
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import UNWRITTEN, Writer, read_rubric
from rar_mini.recipe import Example, Recipe
from rar_mini.rubric import Rubric
from rar_mini.sampler import uniforms

CLAIM = "checks of what two answers disagree about tell which one is better"
LACKS = "a model that writes checklists"
TASK = """These responses to the question disagree. Write 3 to 8 checks that settle what they disagree on. \
Each is a yes or no question about a single response, which whoever sees that response and nothing else can \
answer; yes earns its points, 1 to 5. Stay neutral: do not say or hint which response is right, and mention \
none of them. Reply with the JSON array alone: [{"criterion": "...", "points": 3}, ...]"""
ANSWER, RANK = "(?:response|answer)s?", "(?:better|worse|superior|inferior|preferred)"
VERDICT = re.compile(  # a rank counts beside an answer alone: leads are inferior, and symptoms get worse
    rf"\b(?:{RANK} {ANSWER}|{ANSWER} (?:(?:is|was|are|were) )?(?:the )?{RANK}"
    rf"|(?:it|which|which one) is (?:the )?{RANK}(?=\W*$)|winner|{ANSWER} (?:1|2|one|two|a|b)"
    rf"|(?:first|second|other|both|either) {ANSWER})\b",
    re.I,
)


def read(text: str) -> Rubric:
    rubric = read_rubric(text, least=3, most=8)
    for item in rubric.criteria:
        if said := VERDICT.search(item.description):
            raise Failure("malformed", f"expected neutral checks, got {said[0]!r}")
    return rubric


@dataclass(frozen=True)
class DeltaRubric(Recipe):
    planner: str = ""

    @cached_property
    def _planner(self) -> Writer:
        return criteria_writer(self.planner, self.config)

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, self._planner) if self.planner else judge

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        rubrics, asked, shown = super().rubrics(examples, responses), [], []
        for p, example in enumerate(examples):
            texts = sorted(set(responses[p]))
            if self.planner and len(texts) > 1:
                a, b = uniforms(self.config.seed, "delta", example.id, 0, len(texts)).argsort()[:2]
                asked.append(p)
                shown.append({"question": example.question, "response 1": texts[a], "response 2": texts[b]})
        written = self._planner.write(TASK, shown, read) if shown else []
        for p, checklist in zip(asked, written, strict=True):
            rubrics[p] = checklist or UNWRITTEN
        return rubrics
