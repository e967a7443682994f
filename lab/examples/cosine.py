"""A learning rate that warms up and then falls along a cosine, to `last` times --lr at the last step."""

import math
from dataclasses import dataclass

from rar_mini.recipe import Recipe


@dataclass(frozen=True)
class Cosine(Recipe):
    last: float = 0.1

    def learning_rate(self, step: int, steps: int) -> float:
        warm = round(self.config.warmup * steps)
        done = (min(step, steps) - warm) / max(1, steps - warm)  # 1 from the last planned step on
        falling = (1 + math.cos(math.pi * max(0.0, done))) / 2
        return super().learning_rate(step, steps) * (self.last + (1 - self.last) * falling)
