"""GCPO: the policy becomes a judge, which has to give the better of two answers the higher score.

    python train.py --recipe gcpo --judge rules --max-new-tokens 4 --max-prompt-tokens 1024 --eval-samples 2

After Edit-R1, arXiv 2604.27505; detailed notes were read. The judge sees one answer at a time. Of a group,
rollouts j judge the winner of a pair, the others, k, its loser, with scores s:

    r_win_j  = mean over k of 1[s_win_j > s_lose_k]        r_lose_j = mean over k of 1[s_lose_j < s_win_k]
    A = r - mean of r on the same side

Ours: one item of a rubric parts the two answers, by labels or as the row says (docs/data.md). The policy is
asked as `--judge local:RUN` will be, and says yes or no, which checks turn into a score; neither wins nothing
and loses to nothing. If a side has no score, the other is compared with a half. Theirs reasons first, gives
edited images a number, and has a KL term (--beta). What came out (tests/lab/test_gcpo.py): a table of scores
goes to an AUC of 1; without ties the mean of r is the AUC. docs/lab.md has two judges that were trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rar_mini import grpo, prompts
from rar_mini.evaluation import labelled
from rar_mini.judging import asked, local, wires
from rar_mini.options import Within
from rar_mini.prompts import JudgePrompts
from rar_mini.recipe import Example, Recipe, Rollouts, Scores
from rar_mini.rubric import Criterion, Rubric

ARMS = ("", "trained-judge"), ("", "untrained-judge")
CLAIMS = (
    ("training parts good answers from bad ones", "auc", *ARMS),
    ("a policy is truer by the trained judge than by the untrained one", "truth", *ARMS),
)


def posed(name: str, pair: labelled.Pair, texts: JudgePrompts) -> Example:
    """A pair as an example. Its question has both answers, for readers of the run: the policy sees one. Its
    rubric gives the score: 2/3 if the answer is good on the item, 1/3 if not, 0 for a reply of neither."""
    (item,) = pair.example.rubric.criteria
    good, bad = ("no", "yes") if prompts.yes_is_bad(texts, item) else ("yes", "no")
    says = ((word, weight, {"matches": rf"(?i)^{word}\b"}) for word, weight in ((good, 1.0), (bad, 0.5)))
    rubric = Rubric(tuple(Criterion(f"Says {w}", w, "literal", weight, check=c) for w, weight, c in says))
    parts = {"item": item.description, "preferred": pair.preferred, "worsened": pair.worsened}
    whole = "\n\n".join([pair.example.question, *(f"{part}: {text}" for part, text in parts.items())])
    turn, row = {"role": "user", "content": whole}, {"pair": pair, "texts": texts}
    return Example(name, pair.example.split, (turn,), good, rubric, row)


def first_half(G: int) -> Tensor:
    """Which of G rollouts judge the winner, (G,) bool."""
    return torch.arange(G) < (G + 1) // 2


@dataclass(frozen=True)
class GCPO(Recipe):
    breaks: ClassVar[dict[str, str]] = {"hidden": "a judge has to see the criterion by which it judges"}

    def load(self, **how: Any) -> list[Example]:
        c, texts = self.config, prompts.of_judge(self.config.judging.prompts)
        Within(4, 1e4).refuse("group_size", c.group_size)  # one reply a side differs from no other one
        Within(2 if c.eval_every else 1, 1e4).refuse("eval_samples", c.eval_samples)  # one judges winners
        pairs = labelled.parted(c.data and Path(c.data), c.domain, how["skip_bad"])
        return [posed(f"{pair.example.id}-{n}", pair, texts) for n, pair in enumerate(pairs)]

    def messages(self, example: Example, step: int | None, g: int) -> Sequence[dict[str, str]]:
        pair, texts = example.row["pair"], example.row["texts"]
        won = first_half(self.config.eval_samples if step is None else self.config.group_size)
        answer = pair.preferred if won[g] else pair.worsened
        about = asked.Asked(pair.example, answer, pair.example.rubric.criteria)
        # No text holds the fence, so it needs no secret; control tokens are for the policy's tokenizer.
        return local.messages(texts, wires.worded(about, texts, b"", str), 0)

    def reward(self, scores: Scores) -> Tensor:
        s = grpo.reward(scores)  # (P, G)
        won = first_half(s.shape[1])
        win, lose = s[:, won, None], s[:, None, ~won]  # (P, J, 1), (P, 1, K)
        ahead = ((win > lose) & (lose > 0)).float().where(~(win + lose).isnan(), torch.nan)  # (P, J, K)
        r = torch.cat([ahead.nanmean(2), ahead.nanmean(1)], 1)  # (P, G), NaN if a side has no score
        alone = torch.where(won, s > 0.5, (s > 0) & (s < 0.5)).float()
        return r.where(~r.isnan(), alone).where(~s.isnan(), torch.nan)

    def advantage(self, rollouts: Rollouts) -> Tensor:
        won = first_half(rollouts.reward.shape[1])
        return sum(grpo.advantage(rollouts.reward.where(side, torch.nan), "none") for side in (won, ~won))
