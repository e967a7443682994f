"""PubSwap: a group in which few answers pass gets one that passed before in the place of its worst.

    python train.py --domain instructions --recipe pub_swap
    python train.py --domain instructions --recipe pub_swap --recipe.stored OTHER/rollouts.jsonl

After PubSwap, arXiv 2604.12160; notes on it were read. With G answers to a question, of which those pass that
earn `need` or more:

    passing < below * G   ->   the worst answer := a stored one that passed        below = 1/2

and the advantages are computed anew. No other group is touched: their gradients stay bit-identical, but for
--loss-norm token, --resample-ties and --cut-answers mask, which count over the step. As in theirs the ratio
is to the local policy before the step; --mismatch-cap C also weighs by its probability over the writer's.
Ours: a passing answer earns `need` of a rubric, where theirs is right; it is the best of earlier steps or of
another run's rollouts.jsonl, where theirs is another client's, and answers the very same prompt and rubric
in one turn and --max-new-tokens. `--recipe.below 0.01` swaps if none passes. pub_swap/swapped counts swaps.
What came out (tests/lab/test_pub_swap.py): a table that writes the right answer once in a hundred learns it
in 33 steps, and without swaps in 56 (8 seeds). In the lab's world (docs/lab.md, 6 seeds) it cannot be told.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mini import checkpoint, files, forms, grpo
from rar_mini.options import Share
from rar_mini.recipe import Recipe, Rollouts
from rar_mini.sampler import Completion

CLAIM = "groups in which few answers pass learn from one that passed before"
CONDITIONS = ("clean",)


@dataclass(frozen=True)
class PubSwap(Recipe):
    need: Share = 0.8
    """the reward from which on an answer passes"""
    below: Share = 0.5
    """the share of passing answers below which a group is touched"""
    stored: Path | None = None

    def begin(self, step: int, steps: int) -> None:
        if "stored" not in self.state:
            self.state["stored"] = {}
            for number, row in enumerate(files.lines(self.stored, finished=True) if self.stored else [], 1):
                forms.read(checkpoint.Sampled, row, files.named_line(self.stored, number))
                self._store(row)

    def repair(self, rollouts: Rollouts) -> Rollouts:
        reward, scores = rollouts.reward.clone(), rollouts.scores  # (P, G)
        verdict, rating = scores.verdict.clone(), scores.rating.clone()
        completions, responses = (list(map(list, x)) for x in (rollouts.completions, rollouts.responses))
        few = (reward >= self.need - grpo.TIE).sum(-1) < self.below * reward.shape[1]
        for p in (few & grpo.scored(reward).any(-1)).nonzero()[:, 0].tolist():
            g = int(reward[p].nan_to_num(torch.inf).argmin())
            row, items = self.state["stored"].get(rollouts.examples[p].id), scores.rubrics[p].criteria
            if not row or row["prompt_ids"] != rollouts.prompts[p][g]:
                continue
            if [(v["title"], v["weight"]) for v in row["verdicts"]] == [(c.title, c.weight) for c in items]:
                said = np.array([v["verdict"] for v in row["verdicts"]], float)  # null is NaN
                verdict[p, g, : len(items)], reward[p, g] = torch.from_numpy(said), row["reward"]
                rating[p, g] = torch.nan if row["rating"] is None else row["rating"]
                completions[p][g] = Completion(row["ids"], row["sampler_logp"], True)
                responses[p][g] = row["response"]
        now = replace(scores, verdict=verdict, rating=rating)
        rollouts = replace(rollouts, completions=completions, responses=responses, scores=now, reward=reward)
        return replace(rollouts, adv=self.advantage(rollouts))

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        # What repair put in is a stored list itself; the policy may sample an equal one.
        stored = {id(row["ids"]) for row in self.state["stored"].values()}
        self.state["swapped"] = sum(id(one.ids) in stored for group in rollouts.completions for one in group)
        for row in rollouts.rows(step):
            self._store(row)

    def metrics(self) -> dict[str, float]:
        return {"pub_swap/swapped": self.state["swapped"]}

    def _store(self, row: dict[str, Any]) -> None:
        """Keep an answer that passes if it is its question's best; the latest of equally good ones."""
        best = self.state["stored"].get(row["example_id"], {"reward": self.need - grpo.TIE})
        logps = row["sampler_logp"]  # a teacher's tokens have none
        whole = row["finished"] and None not in logps and not row.get("heard")  # nothing stands between
        fits = len(logps) == len(row["ids"]) <= self.config.max_new_tokens
        if whole and fits and (row["reward"] or 0.0) >= best["reward"]:
            self.state["stored"][row["example_id"]] = row
