"""What the lab's tests share: verdicts as scores, and a policy that is a table of probabilities."""

import torch
from torch import Tensor

from rar_mini import recipe
from rar_mini.config import PRESETS
from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN, Rollouts, Scores


def made(spec: str | None) -> Recipe:
    """The recipe that a string names, under the settings of a laptop."""
    return recipe.make(spec, PRESETS["cpu"])


def judged(verdict: Tensor, items: list[tuple[str, float]]) -> Scores:
    """Scores of verdicts (P, G, K) on K items (category, weight), alike for all P."""
    rubric = Rubric(tuple(Criterion(f"item {k}", f"Text {k}.", *item) for k, item in enumerate(items)))
    P, G, _ = verdict.shape
    weight = torch.tensor([rubric.weights] * P)
    return Scores(verdict.float(), weight, torch.full((P, G), NAN), [rubric] * P)


def rolled(
    own: Recipe, scores: Scores, responses: list[list[str]] | None = None, moved: Tensor | None = None
) -> Rollouts:
    """Rollouts with these scores, and what a recipe makes of them. `moved` (P, G) is how far their
    log-probabilities lie above those of the start."""
    P, G, _ = scores.verdict.shape
    examples = [Example(f"q{p}", "train", (), "", scores.rubrics[p], {}) for p in range(P)]
    rollouts = Rollouts(examples, [], [], responses or [[""] * G] * P, scores, own.reward(scores))
    rollouts.ref_logp = torch.zeros(P, G)
    rollouts.logp = rollouts.ref_logp if moved is None else moved
    rollouts.adv = own.advantage(rollouts)
    return rollouts


def learn(
    own: Recipe,
    start: Tensor,
    verdict: Tensor,
    items: list[tuple[str, float]],
    *,
    steps: int,
    G: int = 16,
    lr: float = 0.5,
    seed: int = 0,
    texts: list[str] | None = None,
) -> Tensor:
    """Train a policy that writes one of A answers: `start` (A,) are its probabilities, `verdict` (A, K) what
    a judge without fault says of each. Returns (steps + 1, A), the probabilities after each step."""
    logits, random = start.log(), torch.Generator().manual_seed(seed)
    path = [logits.softmax(0)]
    for step in range(1, steps + 1):
        own.begin(step, steps)
        drawn = torch.multinomial(path[-1], G, replacement=True, generator=random)  # (G,)
        said = [[texts[a] for a in drawn.tolist()]] if texts else None
        moved = (path[-1] / path[0]).log()[drawn][None]
        rollouts = rolled(own, judged(verdict[drawn][None], items), said, moved)
        chosen = torch.nn.functional.one_hot(drawn, len(start)).float()  # (G, A)
        logits = logits + lr * (rollouts.adv[0, :, None] * (chosen - path[-1])).mean(0)  # the policy gradient
        own.schedule(step, rollouts)
        path.append(logits.softmax(0))
    return torch.stack(path)
