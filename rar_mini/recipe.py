"""The seam: a recipe is what a paper, or you, change of Rubrics as Rewards.

    python train.py --recipe lab/examples/gated.py --recipe.need 0.5

The methods of `Recipe` are the steps of train.py's loop, and RaR is their defaults. A file of one's own
subclasses it and overrides one to three of them; the subclass is a frozen dataclass, whose fields are its
options. What moves during a run goes into `state`, which is saved with each checkpoint: a resumed run has
it again.

`--recipe NAME` means lab/NAME.py, `--recipe PATH.py` any file. A recipe is named by one string, `gated --need
0.5`: so it stands in config.json, and training, `judge.py score` and `evaluate.py replay` read it alike.
"""

import dataclasses
import hashlib
import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from torch import Tensor

from rar_mini import data, grpo, prompts
from rar_mini.data import Example
from rar_mini.rubric import Rubric
from rar_mini.scores import Rollouts, Scores

if TYPE_CHECKING:
    from rar_mini.config import Config
    from rar_mini.judging.wrappers import JudgeLike

LAB = Path(__file__).parents[1] / "lab"


@dataclass(frozen=True)
class Recipe:
    """Rubrics as Rewards. Each method is a step of the loop, in the order in which they are called."""

    config: tyro.conf.Suppress[Any] = field(default=None, kw_only=True, repr=False)  # the run's
    state: tyro.conf.Suppress[dict] = field(default_factory=dict, kw_only=True, repr=False)

    # Once, before the first step.

    def load(self, **how: Any) -> list[Example]:
        """The questions to train on and to score. `how` is for `data.load`."""
        return data.load(self.config.data, self.config.domain, self.config.revision, **how)

    def judge(self, judge: "JudgeLike") -> "JudgeLike":
        """The judge that gives rewards, made of the one that --judge names."""
        return judge

    # In each step.

    def begin(self, step: int, steps: int) -> None:
        """Called before each step."""

    def learning_rate(self, step: int, steps: int) -> float:
        """Of step 1, 2, ...: linear warm-up, then constant. `steps` are those that the run had first, so that
        a run which is extended does not warm up again."""
        return self.config.lr * min(1.0, step / max(1, round(self.config.warmup * steps)))

    def messages(self, example: Example, step: int | None, g: int) -> Sequence[dict[str, str]]:
        """The conversation that rollout g of an example answers; in a score, `step` is None."""
        return prompts.policy_messages(example.messages)

    def answer(self, example: Example, text: str) -> str:
        """The part of what the policy wrote that the judge reads."""
        return text

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        """The rubric of each group of responses; by default the data's own."""
        return [example.rubric for example in examples]

    def reward(self, scores: Scores) -> Tensor:
        """(P, G), NaN where it could not be had."""
        return grpo.reward(scores)

    def advantage(self, rollouts: Rollouts) -> Tensor:
        """(P, G), 0 for what teaches nothing."""
        return grpo.advantage(rollouts.reward, self.config.advantage_scale)

    def repair(self, rollouts: Rollouts) -> Rollouts:
        """Rollouts as the update gets them."""
        return rollouts

    def loss(self, logp: Tensor, batch: grpo.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss, of logp (N,); and the sums that metrics are made of."""
        c = self.config
        clips = {"clip_low": c.clip_low, "clip_high": c.clip_high}
        return grpo.policy_loss(logp, batch, beta=c.beta, mismatch_cap=c.mismatch_cap, **clips)

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        """Called after each step; moves `state`."""

    def metrics(self) -> dict[str, float]:
        """What stands in this step's line of metrics.jsonl besides, under names of the recipe's own."""
        return {}


def words(argv: Sequence[str]) -> list[str]:
    """A command line with `--recipe X --recipe.k 1` as one option, `--recipe "X --k 1"`."""
    rest, own, name = [], [], None
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word == "--recipe" or word.startswith("--recipe="):
            name = word.partition("=")[2] or (queue.pop(0) if queue else "")
        elif word.startswith("--recipe."):
            own.append(f"--{word.removeprefix('--recipe.')}")
            if "=" not in word and queue and not queue[0].startswith("--"):
                own.append(queue.pop(0))
        else:
            rest.append(word)
    if own and name is None:
        raise ValueError(f"{own[0].replace('--', '--recipe.')} is an option of a recipe: add --recipe NAME")
    return rest if name is None else [*rest, "--recipe", shlex.join([*shlex.split(name), *own])]


def located(spec: str) -> str:
    """A recipe's string with its file as an absolute path, so that it is found from anywhere."""
    name, *options = shlex.split(spec) or [""]
    path = Path(name) if name.endswith(".py") else LAB / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in LAB.glob("*.py") if p.stem[0] != "_")) or "none yet"
        raise ValueError(f"--recipe {name}: no file {path}; expected one of lab/ ({known}) or PATH.py")
    return shlex.join([str(path.absolute()), *options])


def digest(spec: str | None) -> str | None:
    """16 hexadecimal digits that change with the text of a recipe's file."""
    return spec and hashlib.sha256(Path(shlex.split(spec)[0]).read_bytes()).hexdigest()[:16]


def make(spec: str | None, config: "Config") -> Recipe:
    """The recipe that a string names, for a run with these settings; RaR for None.

    Raises ValueError if the file does not run, holds no recipe or several, or has no such option.
    """
    if spec is None:
        return Recipe(config=config)
    file, *options = shlex.split(located(spec))
    found = importlib.util.spec_from_file_location(f"recipe_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"the recipe {file} does not run: {type(error).__name__}: {error}") from error
    kinds = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Recipe)]
    kinds = [kind for kind in kinds if kind.__module__ == module.__name__]
    if len(kinds) != 1:
        raise ValueError(f"{file}: expected one subclass of Recipe, got {len(kinds)}")
    made = tyro.cli(kinds[0], args=options, prog=f"--recipe {file}", description=kinds[0].__doc__)
    return dataclasses.replace(made, config=config)
