"""What may end a step before its time, and what is saved then.

| what happens | what is left |
|---|---|
| the judge fails too often, is gone, or has spent its budget | a checkpoint of the step before |
| the disk does not take what the judge costs | the same, if it takes that |
| the loss or the gradient is no number | nonfinite-step-N.json: every weight's and gradient's statistics |
| Ctrl-C | the step is finished and saved; a second one stops at once (interrupt.py) |
"""

import copy
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from torch import Tensor
from tqdm import tqdm

from rar_mini import interrupt, ranks
from rar_mini.judging.endpoint import OverBudget
from rar_mini.judging.ledger import Unrecorded
from rar_mini.setup import Training


class JudgeFailed(ValueError):
    """So many responses have no reward that what is left of their groups would teach little, and slowly."""


@contextmanager
def guarded(t: Training, step: int) -> Iterator[None]:
    """Around a step: leave what the run can go on from, and say how."""
    state = copy.deepcopy(t.recipe.state)
    try:
        yield
    except (ConnectionError, OverBudget, Unrecorded, JudgeFailed) as error:
        if step > 1:
            t.recipe = replace(t.recipe, state=state)  # as the step before left it
            t.save(step - 1)
        way = f"Go on later: python train.py --resume {t.run.folder}"
        raise JudgeFailed(f"{error}\n          {way}") from error
    except FloatingPointError as error:
        path = t.run.keep_evidence(step, t.actor.model, t.rollouts.rows(step))
        raise FloatingPointError(
            f"{error} at step {step}; the statistics of every weight and gradient and the step's rollouts "
            f"are in {path}. Try a lower --lr, or --dtype float32; checkpoints were not touched"
        ) from error


def check_failures(t: Training, reward: Tensor) -> None:
    """Stop a run whose judge fails too often in its last steps; reward (P, G). Also stop a recipe that makes
    infinite rewards."""
    if reward.isinf().any():
        raise ValueError("the recipe's reward is infinite: expected numbers, or NaN without a verdict")
    t.failed.append(reward.isnan().float().mean().item())
    share = sum(t.failed) / len(t.failed)
    if share > t.config.max_judge_failures:
        raise JudgeFailed(
            f"the judge gave no reward to {share:.0%} of the last answers: expected at most "
            f"{t.config.max_judge_failures:.0%} (--max-judge-failures). What failed: {t.judge.reasons()}"
        )


def check_rate(rate: float, step: int) -> float:
    """A recipe's learning rate, if the optimizer can use it."""
    if not 0 <= rate < math.inf:
        raise ValueError(f"the recipe's learning_rate is {rate!r} at step {step}: expected 0 or more")
    return rate


def stop(t: Training, step: int, interrupted: Sequence[bool]) -> NoReturn:
    """End a run that was saved after `step`, because some ranks were interrupted; rank 0 says which."""
    numbers = ", ".join(str(rank) for rank, asked in enumerate(interrupted) if asked)
    which = f" on rank {numbers}" if ranks.world > 1 else ""
    interrupt.run_has_ended = True
    print(f"stopped  after step {step}, because of Ctrl-C{which}: python train.py --resume {t.run.folder}")
    raise KeyboardInterrupt


def stop_on_interrupt() -> list[int]:
    """Let the first Ctrl-C finish the step and save, the second stop at once. The first fills the list."""
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.append(number)
        tqdm.write(
            "\ntrain.py: stopping after this step and its score, with a checkpoint; Ctrl-C again stops at "
            "once, and the run goes on from the checkpoint before"
        )

    signal.signal(signal.SIGINT, handle)
    return asked
