"""The loop's functions one by one, on stand-ins: what each asks of the others, and when.

Whole runs hold the same, but only together with all the rest, and in seconds each.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train
from judge import Judge
from rar_mini import data, grpo, guard, interrupt, ranks, recipe
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.guard import JudgeFailed
from rar_mini.judging.wires import Server
from rar_mini.recipe import Recipe
from rar_mini.report import Clock
from rar_mini.rubric import Rubric
from rar_mini.sampler import Completion
from rar_mini.scores import NAN, Rollouts, Scores

T, F = True, False


@pytest.fixture
def example(examples: list[Example]) -> Example:
    return examples[0]


def rollouts(example: Example, *rewards: list[float]) -> Rollouts:
    """Groups with these rewards, and as many of everything else."""
    P, G = len(rewards), len(rewards[0])
    scores = Scores(torch.zeros(P, G, 1), torch.ones(P, 1), torch.zeros(P, G), [example.rubric] * P)
    words = ([example] * P, [[[1]] * G] * P, [[Completion([1], [0.0], True)] * G] * P, [["text"] * G] * P)
    return Rollouts(*words, scores, torch.tensor(rewards), trained=torch.ones(P, G, dtype=torch.bool))


class Asked:
    """A step's draws: how many questions each, and by what name."""

    def __init__(self, patch: pytest.MonkeyPatch, example: Example, rewards: list[list[float]]) -> None:
        self.draws, self.checked = [], []

        def draw(t: Any, count: int, again: int = 0) -> list[Any]:
            self.draws.append((count, again))
            return [(example, 0)] * count

        def sample(t: Any, drawn: list[Any], G: int, *rest: Any) -> Rollouts:
            return rollouts(example, *[[0.0] * G] * len(drawn))

        def reward(t: Any, made: Rollouts) -> torch.Tensor:
            return torch.tensor([rewards[i] for i in range(len(made.examples))])

        patch.setattr(train, "draw", draw)
        patch.setattr(train, "sample", sample)
        patch.setattr(train, "judge", lambda t, scorer, made, clock: made.scores)
        patch.setattr(train, "reward", reward)
        patch.setattr(train, "advantage", lambda t, made: made.reward - made.reward.mean(-1, keepdim=True))
        patch.setattr(train, "check_failures", lambda t, rewards: self.checked.append(rewards))


def training(**settings: Any) -> SimpleNamespace:
    config = Config(**settings)
    return SimpleNamespace(config=config, recipe=Recipe(config=config), judge=None, gold={})


TAUGHT, TIED, FAILED = [1.0, 0.0], [1.0, 1.0], [NAN, NAN]


@pytest.mark.parametrize(
    ("rewards", "changes", "draws"),
    [
        # Groups, and not answers, are counted: of a group that teaches one answer may have no advantage.
        ([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], {}, [(2, 0), (1, 1)]),
        ([[1.0, 0.5, 0.0]] * 2, {"train_rollouts": 2}, [(2, 0)]),
        ([TIED] * 8, {}, [(2, 0), (2, 1), (2, 2), (2, 3)]),
        ([TAUGHT, TAUGHT], {}, [(2, 0)]),
        ([TIED, FAILED, TAUGHT, TAUGHT], {"max_judge_failures": 0.5}, [(2, 0), (2, 1)]),  # as many as may
        ([TIED, FAILED], {"max_judge_failures": 0.4}, [(2, 0)]),
        ([FAILED, FAILED], {"max_judge_failures": 1.0}, [(2, 0)]),
        ([TIED, TIED], {"resample_ties": 0}, [(2, 0)]),
    ],
)
def test_a_step_draws_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
    example: Example,
    rewards: list[list[float]],
    changes: dict[str, Any],
    draws: list[tuple[int, int]],
) -> None:
    asked = Asked(monkeypatch, example, rewards)
    t = training(**{"prompts_per_step": 2, "group_size": len(rewards[0]), "resample_ties": 3} | changes)
    made = train.explore(t, 1, Clock())
    assert asked.draws == draws and len(made.examples) == sum(count for count, _ in draws)
    (last,) = asked.checked
    assert last is made.reward and t.rollouts is made


def test_a_step_that_teaches_nothing_takes_no_loss(monkeypatch: pytest.MonkeyPatch, example: Example) -> None:
    taken = []
    monkeypatch.setattr(train, "cut", lambda t, made: [])
    monkeypatch.setattr(train, "loss", lambda t, batches: taken.append("loss") or {"grad_norm": 1.0})
    monkeypatch.setattr(train, "step", lambda *words: taken.append(words))
    t, made = training(inner_epochs=2, max_grad_norm=3.0), rollouts(example, TAUGHT)
    t.optimizer = "optimizer"
    assert train.learn(t, made, 0.5) == {"grad_norm": 1.0}
    assert taken == ["loss", ("optimizer", 1.0, 0.5, 3.0)] * 2
    taken.clear()
    made.trained[:] = False
    assert train.learn(t, made, 0.5) == {} and not taken


def test_a_step_goes_on_in_the_stream_of_questions(questions: Path) -> None:
    """Further draws of a step are its own: they see what it has drawn before."""
    t = training(seed=5)
    t.drawn, t.questions = [], {"train": data.read(questions)[:3]}
    first, second = train.draw(t, 2), train.draw(t, 2)
    assert t.drawn == [2, 2] and len({e.id for e, _ in [*first, second[0]]}) == 3
    assert [visit for _, visit in first + second] == [0, 0, 0, 0]
    more = train.draw(t, 3, again=1)
    assert t.drawn == [2, 5] and len(more) == 3
    every = [(e.id, visit) for e, visit in second + more]
    assert len(set(every)) == 5 and {visit for _, visit in every} == {0, 1}


class Talks(Recipe):
    def reply(self, *words: Any) -> None:
        """Overridden: an answer may not be its conversation's last."""


class Rubrics(Recipe):
    def rubrics(self, examples: list[Example], responses: list[list[str]]) -> list[Any]:
        return super().rubrics(examples, responses)


class Teaches(Recipe):
    def teach(self, *words: Any) -> None:
        """Overridden."""


class Own(Judge):
    def score(self, *words: Any, **how: Any) -> Scores:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("recipe", "kind", "server", "ahead"),
    [
        (Recipe(), Judge, True, True),
        (Recipe(), Judge, False, False),
        (Recipe(), Own, True, False),
        (Talks(), Judge, True, False),
        (Rubrics(), Judge, True, False),
        (Teaches(), Judge, True, False),
    ],
)
def test_only_a_server_is_asked_ahead_and_only_what_is_certain(
    example: Example, recipe: Recipe, kind: type[Judge], server: bool, ahead: bool
) -> None:
    begun = []

    @contextmanager
    def begins() -> Iterator[Callable[[Example, str], object]]:
        yield lambda example, answer: begun.append(answer)

    scorer = kind.__new__(kind)
    scorer.backend, scorer.ahead = Server.__new__(Server) if server else None, begins
    t = training()
    t.recipe, t.actor = recipe, SimpleNamespace(decode=lambda ids: f"{ids} decoded")
    with train.ahead(t, scorer) as ended:
        ended(example, SimpleNamespace(ids=[7]))
    assert begun == ["[7] decoded"] * ahead


def test_a_recipes_own_rubrics_are_asked_and_kept(monkeypatch: pytest.MonkeyPatch, example: Example) -> None:
    asked = []
    monkeypatch.setattr(train, "ask", lambda scorer, posed, responses, **how: asked.append((posed, how)))
    t, made = training(), rollouts(example, TAUGHT, TIED)
    train.judge(t, None, made, Clock())
    assert made.rubrics is None, "records keep only what was made for these responses"
    own = Rubric(example.rubric.criteria[:1])
    t.recipe = SimpleNamespace(rubrics=lambda examples, responses: [example.rubric, own])
    train.judge(t, None, made, Clock())
    assert made.rubrics == [example.rubric, own]
    (first, how), (second, _) = asked
    assert [group[0].rubric for group in first] == [example.rubric] * 2
    assert [group[0].rubric for group in second] == made.rubrics
    assert how == {"progress": "judging"}, "a bar that says what is waited for"


def test_what_is_recited_is_given_or_the_reference(example: Example) -> None:
    t = training()
    t.actor = SimpleNamespace(encode=lambda example, messages: [1], completion=lambda text: [2, len(text)])
    for texts, wanted in ((None, [example.reference] * 2), (["a", "bc"], ["a", "bc"])):
        made = train.recite(t, [example, example], texts)
        assert made.responses == [[text] for text in wanted]
        assert [(c.ids, c.finished) for (c,) in made.completions] == [([2, len(w)], True) for w in wanted]
        assert made.reward.shape == made.scores.rating.shape == (2, 1) and made.reward.isnan().all()
        assert made.adv.tolist() == [[1.0], [1.0]] and made.recited and made.prompts == [[[1]]] * 2


def test_a_rank_packs_its_own_groups(monkeypatch: pytest.MonkeyPatch, example: Example) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(ranks, "share", lambda groups: [1])
    monkeypatch.setattr(grpo, "micro_batches", lambda made, trained, **how: said.update(how))
    t, made = training(tokens_per_batch=99, max_new_tokens=7), rollouts(example, TAUGHT, TAUGHT)
    t.actor = SimpleNamespace(model=SimpleNamespace(head=torch.zeros(1)))
    train.cut(t, made)
    assert (said["own"], said["tokens_per_batch"], said["max_new_tokens"]) == ([1], 99, 7)


def test_scores_name_their_random_streams_by_the_first_visit(
    monkeypatch: pytest.MonkeyPatch, example: Example
) -> None:
    asked = []
    monkeypatch.setattr(train, "sample", lambda t, drawn, G, key, *rest: asked.append((drawn, G, key)))
    monkeypatch.setattr(train, "grade", lambda t, scorer, made, name, n: [0.5])
    t = training(eval_samples=3)
    t.scored = {"train": [example], "held_out": []}
    t.scorers = lambda split: {split: None}
    assert dict(train.evaluate(t, 4)) == {"train": [0.5]}
    assert asked == [([(example, 0)], 3, "eval")]


@pytest.mark.parametrize(
    ("n", "every", "interrupted", "done"),
    [
        (1, 2, [F], []),
        (2, 2, [F], ["save"]),
        (5, 2, [F], ["save"]),  # the last step of five
        (5, 0, [F], []),
        (1, 2, [F, T], ["save", "stop"]),  # any rank's Ctrl-C
        (1, 0, [T, T], ["save", "stop"]),
        (5, 2, [T], ["save"]),  # there is nothing to stop
    ],
)
def test_a_checkpoint_is_written_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch, n: int, every: int, interrupted: list[bool], done: list[str]
) -> None:
    did = []
    monkeypatch.setattr(ranks, "gather", lambda mine: interrupted)
    monkeypatch.setattr(train, "stop", lambda t, n, said: did.append("stop"))
    t = training(steps=5, save_every=every)
    t.interrupted, t.save = [], lambda n: did.append("save")
    train.save(t, n)
    assert did == done


def test_rewards_are_numbers_or_missing() -> None:
    t = training(max_judge_failures=0.5)
    t.failed, t.judge = deque([0.0], maxlen=2), SimpleNamespace(reasons=lambda: "the server")
    with pytest.raises(ValueError, match="reward is infinite"):
        guard.check_failures(t, torch.tensor([[1.0, 0.5], [float("inf"), 0.0]]))
    guard.check_failures(t, torch.tensor([[NAN, NAN]]))  # all of one step: half of both
    with pytest.raises(JudgeFailed, match="to 62% of the last answers.*the server"):
        guard.check_failures(t, torch.tensor([[NAN, 0.5, 0.5, 0.5]]))


@pytest.mark.parametrize(("rate", "fits"), [(0.0, T), (1e-6, T), (-1e-9, F), (float("inf"), F), (NAN, F)])
def test_a_learning_rate_is_one_that_the_optimizer_can_use(rate: float, fits: bool) -> None:
    if fits:
        assert guard.check_rate(rate, 3) == rate
    else:
        with pytest.raises(ValueError, match="learning_rate is .* at step 3: expected 0 or more"):
            guard.check_rate(rate, 3)


@pytest.mark.parametrize(
    ("world", "asked", "named"), [(1, [T], ""), (2, [F, T], " on rank 1"), (3, [F, T, T], " on rank 1, 2")]
)
def test_who_stopped_a_run_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    world: int,
    asked: list[bool],
    named: str,
) -> None:
    monkeypatch.setattr(ranks, "world", world)
    monkeypatch.setattr(interrupt, "run_has_ended", False)
    with pytest.raises(KeyboardInterrupt):
        guard.stop(SimpleNamespace(run=SimpleNamespace(folder="runs/x")), 4, asked)
    assert (
        f"after step 4, because of Ctrl-C{named}: python train.py --resume runs/x" in capsys.readouterr().out
    )
    assert interrupt.run_has_ended is True, "nothing more is said of what would be lost"


def test_rollouts_behind_others_keep_the_rubrics_that_either_was_judged_by(example: Example) -> None:
    own = Rubric(example.rubric.criteria[:1])
    for rubrics, wanted in (
        ((None, None), None),
        ((None, [own]), [example.rubric, own]),
        (([own], None), [own, example.rubric]),
        (([own], [own]), [own, own]),
    ):
        first, second = (rollouts(example, TAUGHT) for _ in range(2))
        first.rubrics, second.rubrics = rubrics
        assert second.behind(first).rubrics == wanted


def test_rars_own_recipe_hands_on_the_settings(monkeypatch: pytest.MonkeyPatch, example: Example) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(grpo, "policy_loss", lambda logp, batch, **how: given.update(how))
    how = {"beta": 0.1, "mismatch_cap": 3.0, "clip_low": 0.1, "clip_high": 0.4}
    own = Recipe(config=Config(**how))
    own.loss(torch.zeros(1), None)
    assert given == how and own.needs_logp is False
    shown = []
    monkeypatch.setattr(Recipe, "messages", lambda self, *words: shown.append(words))
    own.told(example)
    assert shown == [(example, None, 0)], "as for a score"


def test_an_option_of_a_recipe_has_its_range() -> None:
    assert recipe.make("cherrl --onset 1").onset == 1
    with pytest.raises(ValueError, match="--recipe.onset.*from 0 to 1"):
        recipe.make("cherrl --onset 2")


@pytest.mark.parametrize("spec", ["nobody:x", "nobody", "chat", "chat:", "keyword:x", "rules:x", "probe"])
def test_a_judge_has_a_kind_and_some_a_name(spec: str) -> None:
    with pytest.raises(ValueError, match="^no judge"):
        Judge(spec, "rar-explicit")
