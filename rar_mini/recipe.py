"""The seam: a recipe is what a paper, or you, change of Rubrics as Rewards.

    python train.py --recipe lab/examples/gated.py --recipe.need 0.5

The methods of `Recipe` are the steps of train.py's loop, and RaR is their defaults. A file of one's own
subclasses it and overrides one to three of them:

    @dataclass(frozen=True)
    class Halved(Recipe):
        share: float = 0.5

        def learning_rate(self, step: int, steps: int) -> float:
            return self.share * super().learning_rate(step, steps)

- Its fields are its options: `--recipe.share 0.3`; `Annotated[float, Within(0, 1)]` says which numbers one
  takes (rar_mini/options.py). `config` has the run's settings.
- What changes during a run goes into the dict `state`: numbers, texts, lists, dicts and tensors. It is saved
  with each checkpoint and a resumed run has it again. Only `begin` and `schedule` may change it, because the
  other steps also make the scores between steps.
- A helper's name begins with _, so that a step whose name is misspelt is refused.

The types in the signatures can be imported from here: `from rar_mini.recipe import Recipe, Scores`.

`--recipe NAME` means lab/NAME.py, `--recipe PATH.py` any file. One string names a recipe with its options,
`gated --need 0.5`: config.json keeps it, and training, `judge.py score` and `evaluate.py replay` read it.
"""

import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import tyro
from torch import Tensor

from rar_mini import data, files, grpo, prompts
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.options import Misused, command_line, nearest, refuse_number
from rar_mini.rubric import Rubric
from rar_mini.scores import Rollouts, Scores

LAB = Path(__file__).parents[1] / "lab"


@dataclass(frozen=True)
class Recipe:
    """Rubrics as Rewards. Each method is a step of the loop, in the order in which they are called."""

    config: tyro.conf.Suppress[Config | None] = field(default=None, kw_only=True, repr=False)
    state: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict, kw_only=True, repr=False)

    breaks: ClassVar[dict[str, str]] = {}
    """The rules in docs/recipes.md that a recipe cannot keep, "hidden" or "order", and why."""

    needs_logp: ClassVar[bool] = False
    """Whether `advantage` reads rollouts.logp and rollouts.ref_logp, (P, G): the log-probabilities of whole
    completions by the policy before the update, and by the policy as it was at the start."""

    # Once, before the first step.

    def judge(self, judge: JudgeLike) -> JudgeLike:
        """The judge that gives rewards, made from the one that --judge names."""
        return judge

    def load(self, **how: Any) -> list[Example]:
        """The questions to train on and to score. `how` has what `data.load` takes."""
        return data.load(self.config.data, self.config.domain, self.config.revision, **how)

    # In each step.

    def begin(self, step: int, steps: int) -> None:
        """Called before each step; may change `state`."""

    def messages(self, example: Example, step: int | None, g: int) -> Sequence[dict[str, str]]:
        """The conversation that rollout g of an example answers. Between steps, for a score, `step` is None.
        Rollouts that are shown the same messages share one reading of them."""
        return prompts.policy_messages(example.messages, short=self.config.answers == "short")

    def teach(
        self, example: Example, turns: Sequence[dict[str, str]], step: int, g: int
    ) -> tuple[str | None, bool] | None:
        """A teacher's words for the policy's next turn, which are trained in place of the policy's own, and
        whether they are also said in its place; None if it has no teacher. Asked in threads."""
        return None

    def reply(self, example: Example, turns: Sequence[dict[str, str]]) -> str | None:
        """What the user says next, or None, which ends the conversation. `turns` are those behind `messages`:
        the policy's first, then the user's, and so on to the policy's newest. Asked in threads. If a reply
        cannot be had, raise endpoint.Failure: then the rollout has no reward."""
        return None

    def answer(self, example: Example, text: str) -> str:
        """The part of what the policy wrote that the judge reads."""
        return text

    def rubrics(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[Rubric]:
        """The rubric by which each group of responses is judged: the data's own. Sees responses[p][g]; of
        several processes each makes those of its own groups."""
        return [example.rubric for example in examples]

    def reward(self, scores: Scores) -> Tensor:
        """The rewards (P, G), NaN where a verdict could not be had."""
        return grpo.reward(scores)

    def advantage(self, rollouts: Rollouts) -> Tensor:
        """The advantages (P, G), 0 for rollouts that teach nothing."""
        return grpo.advantage(rollouts.reward, self.config.advantage_scale)

    def repair(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts that the update gets; records show these, too."""
        return rollouts

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of step 1, 2, ...: linear warm-up, then constant. `steps` is what --steps was at
        first: a run that is extended does not warm up again."""
        return self.config.lr * min(1.0, step / max(1, round(self.config.warmup * steps)))

    def told(self, example: Example) -> Sequence[dict[str, str]]:
        """A second conversation, behind which the policy as it was at the start reads an example's rollouts:
        `loss` then finds what both make of each token in batch.views. Only called if it is overridden."""
        return self.messages(example, None, 0)

    def loss(self, logp: Tensor, batch: grpo.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss for logp (N,), and the sums that its metrics are made of."""
        c = self.config
        clips = {"clip_low": c.clip_low, "clip_high": c.clip_high}
        return grpo.policy_loss(logp, batch, beta=c.beta, mismatch_cap=c.mismatch_cap, **clips)

    def schedule(self, step: int, rollouts: Rollouts) -> None:
        """Called after each step; may change `state`."""

    def metrics(self) -> dict[str, float]:
        """Numbers for this step's line of metrics.jsonl, under names of your own."""
        return {}


# --- from a string to a recipe ------------------------------------------------------------------------------


def make(spec: str | None, config: Config | None = None) -> Recipe:
    """The recipe that a string names, for a run with these settings; RaR for None.

    Raises ValueError if its file does not exist, does not run, or does not define one recipe, and if that
    recipe does not have the options.
    """
    if spec is None:
        return Recipe(config=config)
    name, *options = _words(spec)
    kind = _load(_file(name))
    how = [tyro.conf.FlagConversionOff]
    if not {"--help", "-h"} & {*options}:
        how.append(tyro.conf.HelptextFromCommentsOff)  # to read them takes 30 ms, thrice in a run
    try:
        made = command_line(kind, options, name, config=how)
    except Misused:
        choices = ", ".join(f"--recipe.{option}" for option in _options(kind)) or "no options"
        raise ValueError(
            f"--recipe {name}: expected {choices} with a value each, got {shlex.join(options) or 'none'}; "
            "--recipe.help explains them"
        ) from None
    for option, declared in get_type_hints(kind, include_extras=True).items():
        refuse_number(f"recipe.{option}", getattr(made, option), declared)
    return dataclasses.replace(made, config=config)


def located(spec: str) -> str:
    """The string with the values of all options and with absolute paths, for config.json: it means the same
    from another folder, and after a default has changed."""
    made = make(spec)
    name, whole = _words(spec)[0], []
    for option in _options(type(made)):
        value = getattr(made, option)
        values = value if isinstance(value, tuple | list) else [value]
        whole += [f"--{option}", *(str(v.absolute() if isinstance(v, Path) else v) for v in values)]
    return shlex.join([str(Path(name).absolute()) if name.endswith(".py") else name, *whole])


def overrides(own: Recipe, step: str) -> bool:
    """Whether a recipe has a step of its own in the place of RaR's."""
    return getattr(type(own), step, None) is not getattr(Recipe, step)


def compared(own: Recipe) -> bool:
    """Whether a recipe needs the policy as it was at the start beside the one that is trained."""
    return own.needs_logp or overrides(own, "told")


def digest(spec: str | None) -> str | None:
    """16 hexadecimal digits that change with the text of a recipe's file and with its options."""
    if spec is None:
        return None
    name, *options = _words(spec)
    return files.digest([_file(name).read_text(encoding="utf-8"), options])


def _words(spec: str) -> list[str]:
    try:
        return shlex.split(spec) or [""]
    except ValueError as error:
        raise ValueError(f"--recipe {spec}: expected NAME or PATH.py with options, got {error}") from None


def _file(name: str) -> Path:
    path = Path(name) if name.endswith(".py") else LAB / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"no recipe {name!r}: {path} is no file; expected PATH.py or {', '.join(names())}")
    return path


def names() -> list[str]:
    """The recipes of lab/, as --recipe takes them: files that define one."""
    recipes = (path for path in LAB.rglob("*.py") if "(Recipe)" in path.read_text(encoding="utf-8"))
    return sorted(path.relative_to(LAB).with_suffix("").as_posix() for path in recipes)


def _load(file: Path) -> type[Recipe]:
    """The one subclass of Recipe that a file defines."""
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look the types of their fields up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the recipe {file} does not run: {type(error).__name__}: {error}") from error
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Recipe)]
    kinds = [each for each in classes if each.__module__ == module.__name__]
    if len(kinds) != 1:
        raise ValueError(f"{file}: expected one subclass of Recipe, got {len(kinds)}")
    for name, value in vars(kinds[0]).items():
        if callable(value) and name[0] != "_" and not hasattr(Recipe, name):
            hint = nearest(name, vars(Recipe)) or "see rar_mini/recipe.py for its steps"
            raise ValueError(f"{file}: {name} is no step of a recipe: {hint}; start a helper's name with _")
    return kinds[0]


def _options(kind: type[Recipe]) -> list[str]:
    """The names of the fields that a recipe adds."""
    return [each.name for each in dataclasses.fields(kind) if each.name not in ("config", "state")]
