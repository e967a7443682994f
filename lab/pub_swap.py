"""PubSwap: a group in which few answers pass gets one that passed before in the place of its worst.

    python train.py --domain instructions --recipe pub_swap
    python train.py --domain instructions --recipe pub_swap --recipe.stored OTHER/rollouts.jsonl

After PubSwap, arXiv 2604.12160; notes on it were read. With G answers to a question, of which those pass that
earn `need` or more:

    passing < below * G   ->   the worst answer := a stored one that passed        below = 1/2

and the advantages are computed anew. No other group is touched: their gradients stay bit-identical, but for
--loss-norm token and --resample-ties, which count over the step. As in theirs the ratio is that to the local
policy before the step; --mismatch-cap C also weighs by that policy's probability over that of who wrote it.

Ours: a passing answer earns `need` of a rubric, where theirs is right; it is the best of earlier steps or of
another run's rollouts.jsonl, where theirs is another client's, and answers the very same prompt and rubric.
`--recipe.below 0.01` swaps only if none passes. pub_swap/swapped is how many were swapped.
What came out (tests/lab/test_pub_swap.py): a table that writes the right answer once in a hundred learns it
in 33 steps, and without swaps in 56 (8 seeds). In the lab's world with 2 seeds of 40 steps it cannot be told.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mini import files, grpo
from rar_mini.recipe import Recipe, Rollouts
from rar_mini.sampler import Completion

CLAIM = "groups in which few answers pass learn from one that passed before"
CONDITIONS = ("clean",)
KEPT = ("prompt_ids", "ids", "sampler_logp", "response", "verdicts", "rating", "reward", "finished")


@dataclass(frozen=True)
class PubSwap(Recipe):
    need: float = 0.8
    """the reward from which on an answer passes"""
    below: float = 0.5
    """the share of passing answers below which a group is touched"""
    stored: Path | None = None

    def begin(self, step: int, steps: int) -> None:
        if "stored" not in self.state:
            self.state["stored"] = {}
            self._store(files.lines(self.stored, "example_id", *KEPT, finished=True) if self.stored else [])

    def repair(self, rollouts: Rollouts) -> Rollouts:
        reward, scores = rollouts.reward.clone(), rollouts.scores  # (P, G)
        verdict, rating = scores.verdict.clone(), scores.rating.clone()
        completions, responses = (list(map(list, x)) for x in (rollouts.completions, rollouts.responses))
        few = (reward >= self.need - grpo.TIE).sum(-1) < self.below * reward.shape[1]
        for p in (few & grpo.scored(reward).any(-1)).nonzero()[:, 0].tolist():
            g = int(reward[p].nan_to_num(torch.inf).argmin())
            row = self.state["stored"].get(rollouts.examples[p].id)
            if not row or row["prompt_ids"] != rollouts.prompts[p][g]:
                continue
            items = [(v["title"], v["weight"]) for v in row["verdicts"]]
            if items == [(c.title, c.weight) for c in scores.rubrics[p].criteria]:
                said = np.array([v["verdict"] for v in row["verdicts"]], float)  # null is NaN
                verdict[p, g, : len(items)], reward[p, g] = torch.from_numpy(said), row["reward"]
                rating[p, g] = torch.nan if row["rating"] is None else row["rating"]
                completions[p][g] = Completion(row["ids"], row["sampler_logp"], True)
                responses[p][g] = row["response"]
        now = replace(scores, verdict=verdict, rating=rating)
        rollouts = replace(rollouts, completions=completions, responses=responses, scores=now, reward=reward)
        return replace(rollouts, adv=self.advantage(rollouts))

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        stored, pairs = self.state["stored"], zip(rollouts.examples, rollouts.completions, strict=True)
        own = [(c.ids, stored.get(example.id)) for example, group in pairs for c in group]
        self.state["swapped"] = sum(bool(row) and ids == row["ids"] for ids, row in own)
        self._store(rollouts.rows(step))

    def metrics(self) -> dict[str, float]:
        return {"pub_swap/swapped": self.state["swapped"]}

    def _store(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep each question's best answer that passes; of equals the latest."""
        stored = self.state["stored"]
        for row in rows:
            best = stored.get(row["example_id"], {"reward": self.need - grpo.TIE})
            whole = row["finished"] and None not in row["sampler_logp"]
            if whole and (row["reward"] or 0.0) >= best["reward"]:
                stored[row["example_id"]] = {name: row[name] for name in KEPT}
