"""lab/delay.py: a judge that errs at rates that are set, and what it teaches."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab import world
from lab.delay import Noisy, Rates
from rar_mini import recipe
from rar_mini.config import PRESETS
from rar_mini.judging.wrappers import Wrapper
from rar_mini.recipe import Recipe
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN, Rollouts, Scores

ITEMS = (Criterion("a", "a", "essential", 1.0), Criterion("b", "b", "optional", 0.3))
ANSWERS = [["good", "a long and good answer"] * 1000]


class Fixed(Wrapper):
    """A judge that gives the same verdicts to each answer."""

    def __init__(self, *verdicts: float, items: Sequence[Criterion] = ITEMS) -> None:
        super().__init__()
        self.verdicts, self.rubric = verdicts, Rubric(tuple(items))

    def score(self, examples: Sequence[Any], responses: Sequence[Sequence[str]], **how: Any) -> Scores:
        verdict = torch.tensor([[self.verdicts for _ in group] for group in responses])
        weight = torch.tensor([self.rubric.weights for _ in examples])
        rubrics = [self.rubric for _ in examples]
        return Scores(verdict, weight, torch.full(verdict.shape[:2], NAN), rubrics)


def said(judge: Wrapper, *rates: Rates, step: int = 1, **state: Any) -> torch.Tensor:
    """The verdicts (G, K) on ANSWERS, after errors."""
    noisy = Noisy(judge, *rates, state={"step": step} | state, seed=0)
    return noisy.score([SimpleNamespace(id="q")], ANSWERS).verdict[0]


def made(options: str = "") -> Recipe:
    return recipe.make(f"delay {options}", PRESETS["cpu"])


@pytest.mark.parametrize(("verdict", "share"), [(1.0, 0.7), (0.0, 0.2), (0.6, 0.6 * 0.7 + 0.4 * 0.2)])
def test_a_verdict_is_said_to_be_true_at_its_rate(verdict: float, share: float) -> None:
    found = said(Fixed(verdict, verdict), Rates(0.7, 0.2))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found.mean(0).tolist() == pytest.approx([share, share], abs=0.03)


def test_of_rates_that_match_the_last_ones_hold() -> None:
    found = said(Fixed(0.0, 0.0), Rates(fpr=0.0), Rates(fpr=1.0, where={"contains": "long", "min_words": 4}))
    assert found[:, 0].tolist() == [0.0, 1.0] * 1000
    untouched = said(Fixed(0.4, 0.4), Rates(fpr=1.0, where={"max_words": 1}))
    assert untouched[1::2].unique().tolist() == pytest.approx([0.4]), "where nothing matches nothing changes"


def test_failures_stay_failures_and_checks_stay_exact() -> None:
    checked = Criterion("b", "b", "optional", 0.3, check={"contains": "b"})
    assert said(Fixed(NAN, 0.0), Rates(fpr=1.0))[:, 0].isnan().all()
    assert said(Fixed(0.0, 0.0, items=(ITEMS[0], checked)), Rates(fpr=1.0))[0].tolist() == [1.0, 0.0]


def test_errors_follow_from_the_step_so_that_a_resumed_run_has_the_same_ones() -> None:
    one, same, other = (said(Fixed(1.0, 0.0), Rates(0.5, 0.5), step=n) for n in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_question_that_comes_twice_in_a_step_has_other_errors_the_second_time() -> None:
    noisy = Noisy(Fixed(1.0, 0.0), Rates(0.5, 0.5), state={"step": 1}, seed=0)
    groups = [[f"{visit} {g}" for g in range(64)] for visit in ("first", "second")]
    first, second = noisy.score([SimpleNamespace(id="q")] * 2, groups).verdict
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", ["rar-implicit", "direct-likert", "reference-likert"])
def test_a_rating_is_refused(method: str) -> None:
    """Before a judge is paid. It was an AssertionError after it."""
    own = recipe.make("delay", replace(PRESETS["cpu"], method=method))
    with pytest.raises(ValueError, match="expected --method rar-explicit"):
        own.judge(Fixed(0.5, 0.5))


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ('{"max_wrds": 5}', "a rule or more of max_words"),
        ('{"max_words": "5"}', "got '5'"),
        ("max_words", "expected an object, got 'max_words'"),
        ("[]", r"expected an object, got \[\]"),
    ],
)
def test_where_has_to_be_a_check(where: str, fault: str) -> None:
    """They ended in a KeyError or a TypeError in the first step."""
    with pytest.raises(ValueError, match=f"--recipe.where: .*{fault}"):
        made(shlex.join(["--where", where])).judge(Fixed(0.0, 0.0))


def test_a_rule_that_is_null_is_none() -> None:
    judge = made("""--there-fpr 1 --where '{"max_words": null, "contains": "good"}'""").judge(Fixed(0.0, 0.0))
    assert judge.score([SimpleNamespace(id="q")], [["good", "bad"]]).verdict[0].tolist() == [[1, 1], [0, 0]]


def test_no_step_of_either_kind_is_clean() -> None:
    own = made("--noisy 0")
    own.begin(1, 4)
    assert own.state["clean"] is False, "it was divided by 0"


def test_clean_steps_alternate_with_noisy_ones_and_evaluations_are_noisy() -> None:
    own, clean = made("--fpr 1 --clean 2 --noisy 3"), []
    judge = own.judge(Fixed(0.0, 0.0))
    for step in range(1, 11):
        own.begin(step, 10)
        clean.append(judge.score([SimpleNamespace(id="q")], [["good"]]).verdict.sum().item() == 0)
        own.schedule(step, Rollouts([], [], [], [["good"]], adv=torch.zeros(1, 1)))
        assert judge.score([SimpleNamespace(id="q")], [["good"]]).verdict.sum() == 2
    assert clean == [True, True, False, False, False] * 2


def test_the_conditional_advantage_is_the_mean_of_the_answers_that_match() -> None:
    own, adv = made("""--where '{"max_words": 1}'"""), torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    own.schedule(1, Rollouts([], [], [], [["good", "not at all"], ["bad", "fine"]], adv=adv))
    assert own.metrics() == {"conditional_advantage": pytest.approx(0.5)}
    own.schedule(2, Rollouts([], [], [], [["not at all"] * 2] * 2, adv=adv))
    assert own.metrics() == {"conditional_advantage": 0.0}, "no answer matches"


@pytest.mark.slow
def test_errors_on_a_trigger_that_hurts_collapse_and_random_ones_do_not() -> None:
    """Seed 0: answers that credit everything shrink to nothing; as many random errors only slow it down."""
    hurt, random = (
        world.trained(None, "harmful-trigger", 0, 12, 40),
        world.trained(None, "false-positives", 0, 24, 40),
    )
    assert hurt["after"]["truth"] < hurt["before"]["truth"] - 0.02 and hurt["after"]["words"] < 2
    assert random["after"]["truth"] > random["before"]["truth"] + 0.05
