"""RuscaRL: show the policy its rubric at first, less to each rollout of a group, and then no longer.

    python train.py --domain medical --recipe ruscarl --max-prompt-tokens 1024

Paper: RuscaRL, arXiv 2508.16949; official code was read. At step t of T, rollout g of G is shown a random
part of the rubric's K criteria:

    share = (1 - g / (G - 1)) / (1 + exp(steepness (t / T - start)))      t counts the steps done
    shown = round(share K)

so that the first rollout sees the whole rubric and the last one none, and after a `start` of the run all see
none. Rewards and advantages are RaR's. Rollouts that the rubric helped are what the others learn from.

Ours: the sentences around the criteria, and that rollouts of one group see parts of one random order. The
update reads each rollout behind the prompt that it answered. Scores between steps show no rubric. While it is
shown, G prompts a question are read in the place of one.

What came out: so far only what tests/lab/test_ruscarl.py holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rar_mini.options import Share
from rar_mini.prompts import fill, item_line
from rar_mini.recipe import Example, Recipe
from rar_mini.sampler import uniforms

CLAIM = "a rubric that is shown at first lets the policy find what it would not"
LACKS = "a policy that reads prompts"

SCAFFOLD = "\n\nA good answer does what this list says. Do not mention the list.\n{items}"


@dataclass(frozen=True)
class RuscaRL(Recipe):
    breaks: ClassVar[dict[str, str]] = {"hidden": "the rubric in the prompt is the method"}

    start: Share = 0.2
    """the share of the run after which half as much is shown"""
    steepness: float = 125.0
    """how sudden that is"""

    def begin(self, step: int, steps: int) -> None:
        self.state["steps"] = steps

    def messages(self, example: Example, step: int | None, g: int) -> Sequence[dict[str, str]]:
        shown = super().messages(example, step, g)
        criteria = [c for c in example.rubric.criteria if c.weight]
        count = 0 if step is None else round(self._share(step, g) * len(criteria))
        if not count:
            return shown
        draws = uniforms(self.config.seed, step, f"scaffold of {example.id}", 0, len(criteria))
        items = [item_line(criteria[k], labelled=False) for k in sorted(draws.argsort()[:count])]
        text = shown[-1]["content"] + fill(SCAFFOLD, items="\n".join(items))
        return [*shown[:-1], shown[-1] | {"content": text}]

    def _share(self, step: int, g: int) -> float:
        """How much of the rubric rollout g is shown at a step."""
        done = (step - 1) / self.state.get("steps", self.config.steps)
        late = min(700.0, self.steepness * (done - self.start))  # exp(710) is too large for a float
        return (1 - g / (self.config.group_size - 1)) / (1 + math.exp(late))
