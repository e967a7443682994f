"""LegalDrill: the bank of pitfalls, and which pairs are difficult."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hostile import Server, user
from reading import Reader, asks
from toy import made

from lab.legal_drill import CORRECT, read
from rar_mini.config import PRESETS
from rar_mini.data import Example
from rar_mini.judging.endpoint import Failure
from rar_mini.recipe import Recipe, make
from rar_mini.scores import NAN, Rollouts, Scores

pytestmark = pytest.mark.usefixtures("folder")

EXAMPLES = [asks("q", "x"), asks("r", "x")]


def rolled(own: Recipe, reward: list[list[float]], responses: list[list[str]]) -> Rollouts:
    """Rollouts with these rewards, and the recipe's advantages."""
    rollouts = Rollouts(EXAMPLES, [], [], responses, reward=torch.tensor(reward))
    rollouts.logp = rollouts.ref_logp = torch.zeros(2, len(reward[0]))
    rollouts.adv = own.advantage(rollouts)
    return rollouts


# --- the bank -----------------------------------------------------------------------------------------------


def test_mistakes_of_poor_answers_are_pitfalls_of_the_next_visit(server: Server) -> None:
    server.reply = lambda path, body: f"Says {'nine' if 'nine' in user(body) else 'too much'}."
    own = made("legal_drill --writer chat:w")
    responses = [["good", "says nine"], ["poor", "fine"]]
    own.begin(1, 3)
    assert own.rubrics(EXAMPLES, responses) == [e.rubric for e in EXAMPLES]
    own.schedule(1, rolled(own, [[0.9, 0.2], [0.6, 0.5]], responses))
    assert not server.seen, "weights have moved: if a model fails now, no checkpoint holds what it needs"
    assert own.rubrics(EXAMPLES, responses) == [e.rubric for e in EXAMPLES], "scores are by the data's rubric"
    assert json.loads(json.dumps(own.state)) == own.state, "a checkpoint takes it"
    own.begin(2, 3)
    (asked,) = (user(body) for _, body, _ in server.seen)
    assert "says nine" in asked.splitlines() and "good" not in asked, "the worst answer, if it is below need"
    first, second = own.rubrics(EXAMPLES, responses)
    assert second == EXAMPLES[1].rubric and first.criteria[:1] == EXAMPLES[0].rubric.criteria
    pitfall = first.criteria[1]
    assert (pitfall.description, pitfall.category, pitfall.direction) == ("Says nine.", "pitfall", "mistake")
    own.schedule(2, rolled(own, [[0.9, 0.2], [0.1, 0.5]], responses))
    own.begin(3, 3)
    assert [len(rubric) for rubric in own.rubrics(EXAMPLES, responses)] == [2, 2], "no mistake stands twice"
    assert json.loads(json.dumps(own.state)) == own.state, "a checkpoint takes it"


def test_a_mistake_that_could_not_be_named_is_none(server: Server) -> None:
    server.reply = lambda path, body: "One.\nTwo."
    own = made("legal_drill --writer chat:w")
    own.begin(1, 2)
    own.schedule(1, rolled(own, [[0.9, 0.2], [NAN, NAN]], [["a", "b"], ["c", "d"]]))
    own.begin(2, 2)
    assert own.rubrics(EXAMPLES, [["a"], ["c"]]) == [e.rubric for e in EXAMPLES]
    assert own.judge(Reader()).judges[1].judges[0].metrics()["judge/failures/malformed"] == 1
    with pytest.raises(Failure, match="one sentence"):
        read("x" * 301)


# --- difficulty ---------------------------------------------------------------------------------------------


class Student(Reader):
    """Finds answers with a share in them correct to that share, and does not know about others."""

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        assert all(example.rubric.criteria == (CORRECT,) for example in examples)
        scores = super().score(examples, responses)
        shares = [
            [float(text.split()[-1]) if text[-1].isdigit() else NAN for text in own] for own in responses
        ]
        return replace(scores, verdict=torch.tensor(shares)[..., None])


def paired(options: str, responses: list[list[str]]) -> list[bool]:
    """Which of two groups, whose first answer is the better one, make a pair in a step."""
    own = made(f"legal_drill --student keyword {options}")
    vars(own)["_judges"] = {"student": Student()}
    own.begin(1, 2)
    adv = rolled(own, [[0.9, 0.2, 0.5], [0.6, 0.1, 0.3]], responses).adv
    assert (adv[:, 2] == 0).all() and (adv[:, 0] >= 0).all() and torch.equal(adv[:, 0], -adv[:, 1])
    return adv.any(-1).tolist()


def test_pairs_that_the_student_gets_wrong_are_kept() -> None:
    responses = [["a 0.3", "b 0.7", "c 0.5"], ["d 0.8", "e 0.6", "f 0.5"]]
    assert paired("", responses) == [True, False]
    assert paired("--tau -0.3", responses) == [True, True]
    assert paired("--tau 0.5", responses) == [False, False]
    assert paired("", [["a ?", "b 0.7", "c 0.5"], ["d 0.1", "e 0.6", "f 0.5"]]) == [False, True], "not known"


def test_scores_between_steps_ask_no_student() -> None:
    own = made("legal_drill --student keyword")
    vars(own)["_judges"] = {}  # who asks it fails
    assert rolled(own, [[0.9, 0.2], [0.6, 0.1]], [["a", "b"], ["c", "d"]]).adv.any(-1).all()


def test_without_a_student_each_group_makes_a_pair_unless_it_ties() -> None:
    adv = rolled(made("legal_drill --beta 0.2"), [[0.9, 0.2, 0.5], [0.4, 0.4, NAN]], [["a"] * 3] * 2).adv
    assert adv.tolist() == [pytest.approx([0.1, -0.1, 0.0]), [0.0] * 3]


def test_it_refuses_settings_under_which_the_loss_is_not_dpos() -> None:
    with pytest.raises(ValueError, match="legal_drill needs --loss-norm sum"):
        make("legal_drill", replace(PRESETS["cpu"], loss_norm="token")).load(notes=Counter())
