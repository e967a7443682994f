"""PubSwap: which groups get a stored answer, what becomes of them, and that no other one notices."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_rows
from torch import Tensor
from toy import judged, made
from toy import rolled as rolled_table

import train
from judge import Judge
from lab.pub_swap import PubSwap
from rar_mini import data, grpo, setup
from rar_mini.config import PRESETS
from rar_mini.report import Clock
from rar_mini.sampler import Completion
from rar_mini.scores import NAN, Rollouts
from rar_mini.setup import Training

REWARD = torch.tensor([[1.0, 1, 0, 0], [0.0, 1, 0.5, 0], [0.5, 0, 0, 0], [0.2, NAN, NAN, NAN]])
"""Half of the first group passes, one of the second, none of the third; the fourth teaches nothing."""


@pytest.fixture
def t(tiny: Path, questions: Path) -> Training:
    sizes = {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8, "cut_answers": "train"}
    config = replace(PRESETS["cpu"], policy=str(tiny), device="cpu", answers="full", **sizes)
    training = setup.bare(config, Judge("keyword", "rar-explicit"))
    training.questions = {"train": data.read(questions)}
    return training


@pytest.fixture
def rolled(t: Training) -> Rollouts:
    """A step of the tiny policy, with rewards that were set."""
    rollouts = train.explore(t, 1, Clock())
    rollouts.reward = REWARD.clone()
    rollouts.adv = t.recipe.advantage(rollouts)
    return rollouts


def stored(rollouts: Rollouts, **changes: Any) -> dict[str, dict]:
    """A passing answer to each question, `zz`, from another step."""
    rows = rollouts.rows(1)[::4]
    ids = {"ids": [122, 122, 258], "sampler_logp": [-1.0, -2.0, -3.0], "response": "zz", "reward": 0.75}
    return {
        row["example_id"]: row
        | ids
        | {"verdicts": [v | {"verdict": 1.0} for v in row["verdicts"]], "finished": True}
        | changes
        for row in rows
    }


def recipe(rollouts: Rollouts, options: str = "", **changes: Any) -> PubSwap:
    own = made(f"pub_swap --need 0.75 {options}")
    own.state["stored"] = stored(rollouts, **changes)
    return own


def touched(before: Rollouts, after: Rollouts) -> list[tuple[int, int]]:
    """The places (p, g) whose answer has changed."""
    return [
        (p, g)
        for p, (one, other) in enumerate(zip(before.completions, after.completions, strict=True))
        for g in range(4)
        if one[g] != other[g]
    ]


def test_a_group_in_which_few_pass_gets_a_stored_answer_for_its_worst(rolled: Rollouts) -> None:
    own, was = recipe(rolled), rolled.rows(1)
    after = own.repair(rolled)
    assert touched(rolled, after) == [(1, 0), (2, 1)]
    assert after.reward[1].tolist() == [0.75, 1, 0.5, 0] and after.reward[2].tolist() == [0.5, 0.75, 0, 0]
    torch.testing.assert_close(after.adv, grpo.advantage(after.reward))
    assert after.responses[1][0] == "zz" and after.completions[1][0].logp == [-1.0, -2.0, -3.0]
    assert (after.scores.verdict[1, 0] == 1).all() and after.completions[1][0].finished
    for p in (0, 3):
        assert torch.equal(after.adv[p], rolled.adv[p])
    assert rolled.rows(1) == was, "what was sampled stays as it was"


def test_as_an_option_only_groups_in_which_none_passes_are_touched(rolled: Rollouts) -> None:
    assert touched(rolled, recipe(rolled, "--below 0.01").repair(rolled)) == [(2, 1)]
    assert touched(rolled, recipe(rolled, "--below 1").repair(rolled)) == [(0, 2), (1, 0), (2, 1)]


@pytest.mark.parametrize("changes", [{"prompt_ids": [1]}, {"verdicts": []}])
def test_an_answer_to_another_prompt_or_by_another_rubric_is_not_taken(
    rolled: Rollouts, changes: dict[str, list]
) -> None:
    assert touched(rolled, recipe(rolled, **changes).repair(rolled)) == []


def gradient(t: Training, rollouts: Rollouts, p: int, loss_norm: str) -> list[Tensor]:
    """The gradient of one group's share of the step's loss, by train.py's own loss."""
    sizes = {"max_new_tokens": 8, "tokens_per_batch": 4096}
    batches = grpo.micro_batches(rollouts, grpo.teaches(rollouts), own=[p], loss_norm=loss_norm, **sizes)
    train.loss(t, batches)
    grads = [parameter.grad.clone() for parameter in t.actor.model.parameters()]
    t.optimizer.zero_grad()
    return grads


@pytest.mark.parametrize("loss_norm", ["sequence", "constant", "sum"])
def test_gradients_of_other_groups_are_bit_identical(t: Training, rolled: Rollouts, loss_norm: str) -> None:
    after = recipe(rolled, "--below 0.01").repair(rolled)  # touches the third group
    for p in range(3):
        before, now = gradient(t, rolled, p, loss_norm), gradient(t, after, p, loss_norm)
        same = all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
        assert same == (p != 2) and any(grad.any() for grad in now)


def test_the_best_passing_answer_of_each_question_is_kept(rolled: Rollouts) -> None:
    own = made("pub_swap --need 0.5")
    own.begin(1, 2)
    for group in rolled.completions:
        group[:] = [replace(completion, finished=True) for completion in group]
    rolled.completions[0][0] = replace(rolled.completions[0][0], finished=False)
    rolled.completions[1][1] = replace(rolled.completions[1][1], logp=[-torch.inf] * 8)
    own.schedule(1, rolled)
    names, kept = [example.id for example in rolled.examples], own.state["stored"]
    assert list(kept) == names[:3], "none of the fourth passes"
    wanted = [rolled.completions[p][g].ids for p, g in ((0, 1), (1, 2), (2, 0))]
    assert [row["ids"] for row in kept.values()] == wanted and [r["reward"] for r in kept.values()] == [
        1,
        0.5,
        0.5,
    ]
    rolled.reward[2] = torch.tensor([0.4, 0.5, 0.4, 0.4])
    own.schedule(2, rolled)
    assert kept[names[2]]["ids"] == rolled.completions[2][1].ids, "of equally good ones the latest"


def test_answers_may_come_from_another_run(rolled: Rollouts, tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(row)) for row in stored(rolled).values()]
    file = write_rows(
        tmp_path / "rollouts.jsonl", [*rows, rows[0] | {"reward": None}, rows[1] | {"reward": 0.7}]
    )
    own = made(f"pub_swap --need 0.75 --stored {file}")
    own.begin(1, 2)
    after = own.repair(rolled)
    assert touched(rolled, after) == [(1, 0), (2, 1)]
    own.schedule(1, after)
    assert own.metrics() == {"pub_swap/swapped": 2}


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"ids": "abc"}, "field ids: expected a list, got 'abc'"),
        ({"ids": [-1]}, r"field ids\[0\]: expected 0 or more, got -1"),
        ({"reward": "0.9"}, "field reward: expected a number, got '0.9'"),
        ({"verdicts": [{"title": "a"}]}, r"field verdicts\[0\].category: expected text, got nothing"),
    ],
)
def test_a_line_that_no_run_writes_is_refused(
    rolled: Rollouts, tmp_path: Path, changes: dict[str, Any], refusal: str
) -> None:
    good, other, *_ = stored(rolled).values()
    file = write_rows(tmp_path / "rollouts.jsonl", [good, other | changes])
    with pytest.raises(ValueError, match=f"rollouts.jsonl, line 2: {refusal}"):
        made(f"pub_swap --stored {file}").begin(1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"heard": [{"after": 1, "ids": [9], "instead": False}]},  # a user spoke between its turns
        {"sampler_logp": []},  # a teacher wrote it
        {"ids": [122] * 10_000, "sampler_logp": [-1.0] * 10_000},  # longer than --max-new-tokens
        {"finished": False},
    ],
)
def test_what_is_no_whole_answer_of_a_policy_is_not_taken(
    rolled: Rollouts, tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = write_rows(tmp_path / "rollouts.jsonl", list(stored(rolled, **changes).values()))
    own = made(f"pub_swap --need 0.75 --stored {file}")
    own.begin(1, 2)
    assert touched(rolled, own.repair(rolled)) == []


def test_a_policy_that_writes_the_stored_answer_itself_is_not_swapped(rolled: Rollouts) -> None:
    own = recipe(rolled)
    for p, example in enumerate(rolled.examples):
        kept = own.state["stored"][example.id]
        rolled.completions[p][3] = Completion(list(kept["ids"]), list(kept["sampler_logp"]), True)
    own.schedule(1, own.repair(rolled))
    assert own.metrics() == {"pub_swap/swapped": 2}


# --- a toy --------------------------------------------------------------------------------------------------


def steps_until_learnt(spec: str | None, seed: int) -> int:
    """The steps until a table that writes the right answer once in a hundred writes it nine times in ten."""
    own, logits, random = made(spec), torch.tensor([0.99, 0.01]).log(), torch.Generator().manual_seed(seed)
    for step in range(1, 1000):
        own.begin(step, 1000)
        share = logits.softmax(0)
        drawn = torch.multinomial(share, 8, replacement=True, generator=random)
        rollouts = rolled_table(own, judged(drawn.float()[None, :, None], [("essential", 1.0)]))
        rollouts.prompts = [[[7]] * 8]
        rollouts.completions = [[Completion([a], [float(share[a].log())], True) for a in drawn.tolist()]]
        rollouts = own.repair(rollouts)
        chosen = torch.eye(2)[[completion.ids[0] for completion in rollouts.completions[0]]]  # (G, 2)
        logits = logits + 0.5 * (rollouts.adv[0, :, None] * (chosen - share)).mean(0)
        own.schedule(step, rollouts)
        if logits.softmax(0)[1] > 0.9:
            return step
    raise AssertionError("it is never learnt")


def test_a_rare_right_answer_is_learnt_sooner_once_it_is_stored() -> None:
    """On average over eight seeds."""
    swapping, plain = (sum(steps_until_learnt(spec, n) for n in range(8)) / 8 for spec in ("pub_swap", None))
    assert swapping == pytest.approx(33, abs=4) and plain == pytest.approx(56, abs=5)
