"""SPARD: move the weights of categories with the progress that each makes, and weigh questions by spread.

    python train.py --domain medical --recipe spard

Paper: SPARD, arXiv 2604.07837; only its abstract was read, so this is after SPARD, and the rule is inferred.
For each category c of criteria, with r_c the share of it that a response earns, after every step:

    m_c    <- beta m_c + (1 - beta) mean r_c          gain_c: how far m_c moved
    z_c    = clip(mean gain_c / (1.4826 MAD gain_c + 1e-6), -2, 2)        over the last `window` gains
    w_c    <- w_c exp(eta z_c), at least `floor`, then summing to 1
    score  = sum_c w_c r_c / sum_c w_c                over the categories that a rubric has
    A      = (score - mean) / (std + 1e-6) u_p        u_p: sum_c std r_c over the step's responses to all
                                                      questions of p's source; its mean over p is 1

eta = 0 leaves the categories alike. eta > 0 favours those that progress, eta < 0 those that do not.
Ours: the categories are RaR's, the source of a question is its row's `question_source`, gains count once
`window` of them are known, and weights (`spard/CATEGORY`) act on the advantage alone.
What came out: eight steps in which only the essentials rise move weight to them at eta 0.1, away at -0.1, and
nowhere at 0. Against RaR (docs/lab.md, 6 seeds): 0.84 less 0.87 [-0.08, 0.01], 0.79 less 0.86 [-0.12, -0.03].
"""

import math
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from rar_mini import grpo
from rar_mini.options import Count, Share
from rar_mini.recipe import Recipe, Rollouts, Scores
from rar_mini.rubric import CATEGORY_WEIGHT

CLAIM = "weights that follow progress teach more than fixed ones"
CONDITIONS = ("clean", "scales")
CATEGORIES = (*CATEGORY_WEIGHT, "literal", "rating")


@dataclass(frozen=True)
class Spard(Recipe):
    eta: float = 0.1
    """how fast weights move; negative: towards categories that do not progress"""
    beta: Share = 0.9
    """how much of a category's mean stays from step to step"""
    window: Count = 5
    """the number of gains that count"""
    floor: Share = 0.05
    """the least weight of a category"""

    def advantage(self, rollouts: Rollouts) -> Tensor:
        valid = grpo.scored(rollouts.reward)  # (P, G)
        shares = self._shares(rollouts.scores).masked_fill(~valid[..., None], torch.nan)  # (P, G, C)
        weight = torch.tensor([self._weights()[c] for c in CATEGORIES])
        score = (weight * shares.nan_to_num()).sum(-1) / (weight * ~shares.isnan()).sum(-1)
        adv = grpo.advantage(score.masked_fill(~valid, torch.nan), self.config.advantage_scale)
        return adv * self._use(rollouts, shares)[:, None]

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        shares = self._shares(rollouts.scores)[grpo.scored(rollouts.reward)]  # (n, C)
        means, gains = self.state.setdefault("m", {}), self.state.setdefault("gains", {})
        weights = self._weights()
        for c, mean in zip(CATEGORIES, shares.nanmean(0).tolist(), strict=True):
            if math.isnan(mean):
                continue
            before = means.setdefault(c, mean)
            means[c] = self.beta * before + (1 - self.beta) * mean
            last = gains[c] = [*gains.get(c, []), means[c] - before][-self.window :]
            if len(last) == self.window:
                off = median(abs(gain - median(last)) for gain in last)
                z = max(-2.0, min(2.0, fmean(last) / (1.4826 * off + 1e-6)))
                weights[c] = max(self.floor, weights[c] * math.exp(self.eta * z))
        self.state["w"] = {c: w / sum(weights.values()) for c, w in weights.items()}

    def metrics(self) -> dict[str, float]:
        return {f"spard/{c}": w for c, w in self._weights().items()}

    def _weights(self) -> dict[str, float]:
        return dict(self.state.get("w") or dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES)))

    def _shares(self, scores: Scores) -> Tensor:  # (P, G, C), NaN if a rubric has none of a category
        return torch.stack([grpo.reward(scores.only(c)) for c in CATEGORIES], -1)

    def _use(self, rollouts: Rollouts, shares: Tensor) -> Tensor:
        """How much each question can teach, (P,), 1 on average."""
        sources = [str(example.row.get("question_source")) for example in rollouts.examples]
        own = {s: shares[[s == each for each in sources]].flatten(0, 1) for s in set(sources)}  # (n, C)
        off = {s: (x - x.nanmean(0)).square().nanmean(0).sqrt().nansum() for s, x in own.items()}
        use = torch.stack([off[source] for source in sources])
        return use / use.mean().clamp_min(1e-6)
