"""SCPRM's cumulative aggregate: an early miss voids what comes later.

    python train.py --domain science --recipe scprm

Paper: SCPRM, arXiv 2605.02819; only its abstract was read, so this is after SCPRM, and the formula is
inferred. With criteria in the order in which a chain of reasoning needs them, verdicts v and weights w:

    e_k    = v_k                                      1 - v_k for items that take away
    reward = sum_k |w_k| prod_(j <= k) e_j / sum_k |w_k|

A later hit cannot buy back an early miss: of three equal items, missing the first leaves 0.00, missing the
last 0.67. With soft verdicts the product is the probability that the chain holds up to there, if its links
are independent.

Ours: the order is that of the data row. RaR's rubrics are not written as chains, so use it on rubrics that
are: steps of a derivation, stages of a diagnosis.

What came out: only the identities of tests/lab/test_scprm.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rar_mini.recipe import Recipe, Scores

CLAIM = "what comes early in a chain of reasoning is not bought back by what comes late"
LACKS = "rubrics that are chains"


@dataclass(frozen=True)
class Scprm(Recipe):
    breaks: ClassVar[dict[str, str]] = {"order": "criteria are links of a chain, so that their order counts"}

    def reward(self, scores: Scores) -> torch.Tensor:
        w = scores.weight[:, None]  # (P, 1, K)
        earned = torch.where(w > 0, scores.verdict, 1 - scores.verdict)  # (P, G, K)
        unbroken = torch.where(w == 0, 1.0, earned).cumprod(-1)  # NaN from a failure on
        return (w.abs() * unbroken).sum(-1) / w.abs().sum(-1)
