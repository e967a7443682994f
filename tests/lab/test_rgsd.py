"""RGSD: how far two distributions are apart, two views of the same completions, and a policy that learns."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train import records
from tiny import question, write_rows
from toy import made

import train
from lab.rgsd import divergence
from rar_mini import data, grpo, policy, sequences
from rar_mini.config import PRESETS
from rar_mini.policy import Policy
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion
from rar_mini.scores import Rollouts

CONFIG = dataclasses.replace(PRESETS["cpu"], temperature=0.7, group_size=3)


def logp(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).log_softmax(-1)


# --- the divergence -----------------------------------------------------------------------------------------


def test_unclipped_it_is_jensen_and_shannons() -> None:
    p, q = logp(2, 4, 9)
    m = (p.exp() + q.exp()) / 2
    halves = [(x.exp() * (x - m.log())).sum(-1) for x in (p, q)]
    torch.testing.assert_close(divergence(p, q, 0.5, torch.inf), sum(halves) / 2)
    torch.testing.assert_close(divergence(q, p, 0.5, torch.inf), divergence(p, q, 0.5, torch.inf))
    assert divergence(p, q, 0.5, torch.inf).max() < torch.log(torch.tensor(2.0))


def test_equal_distributions_teach_nothing() -> None:
    q = logp(4, 9).requires_grad_()
    divergence(q.detach(), q, 0.5, 0.05).sum().backward()
    assert q.grad.abs().max() < 1e-6


def test_the_clip_bounds_what_each_token_of_the_vocabulary_adds() -> None:
    p, q = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]).log()[:, None]
    assert divergence(p, q, 0.5, torch.inf).item() > 0.5
    assert divergence(p, q, 0.5, 0.05).item() == pytest.approx(0.1, abs=1e-6), "two of three are clipped"


# --- the two views ------------------------------------------------------------------------------------------


class Split(Recipe):
    """Its rollouts are shown two prompts, in turn."""

    def told(self, example: data.Example) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{example.question} With more."}]


def training(actor: Policy, own: Recipe, examples: list[data.Example]) -> SimpleNamespace:
    """Two questions with three completions each, the middle one behind another prompt."""
    shown = [[{"role": "user", "content": f"{e.question}{more}"} for more in ("", "!", "")] for e in examples]
    prompts = [[actor.encode(e, [turn]) for turn in turns] for e, turns in zip(examples, shown, strict=True)]
    texts = [[b"ab", b"c", b"defg"], [b"h", b"ijk", b"lm"]]
    completions = [[Completion([*text], [0.0] * len(text), True) for text in group] for group in texts]
    rollouts = Rollouts(examples, prompts, completions, [], adv=torch.zeros(2, 3))
    return SimpleNamespace(config=CONFIG, recipe=own, actor=actor, reference=actor, rollouts=rollouts)


def batches(t: SimpleNamespace, size: int) -> list[grpo.MicroBatch]:
    teaches = torch.tensor([[True, True, True], [True, False, True]])
    how = {"loss_norm": "token", "max_new_tokens": 4, "tokens_per_batch": size}
    return grpo.micro_batches(t.rollouts, teaches, **how)


@pytest.fixture
def actor(tiny: Path) -> Policy:
    return policy.load(str(tiny), torch.float32, "cpu")


@pytest.mark.parametrize("size", [60, 10**6])
def test_both_views_are_what_each_reader_makes_of_the_sequence_alone(
    actor: Policy, examples: list[data.Example], size: int
) -> None:
    t = training(actor, Split(config=CONFIG), examples)
    seen = []
    for batch in batches(t, size):
        with torch.no_grad():
            views = sequences.views(t, batch, grpo.states(actor.model, batch))
        for n in dict.fromkeys(batch.rollout.tolist()):
            p, g = divmod(n, 3)
            ids = t.rollouts.completions[p][g].ids
            told = actor.encode(examples[p], t.recipe.told(examples[p]))
            for view, prompt in ((views.own, t.rollouts.prompts[p][g]), (views.told, told)):
                alone = Rollouts(
                    [examples[p]], [[prompt]], [[Completion(ids, [], True)]], [], adv=torch.zeros(1, 1)
                )
                how = {"loss_norm": "sum", "max_new_tokens": 0, "tokens_per_batch": 10**6}
                (one,) = grpo.micro_batches(alone, torch.ones(1, 1, dtype=torch.bool), **how)
                with torch.no_grad():
                    truth = grpo.states(actor.model, one)
                torch.testing.assert_close(view[batch.rollout == n], truth, atol=1e-5, rtol=1e-4)
            seen.append(n)
    assert sorted(seen) == [0, 1, 2, 3, 5]


def test_a_recipe_without_a_second_conversation_has_no_views(
    actor: Policy, examples: list[data.Example]
) -> None:
    t = training(actor, Recipe(config=CONFIG), examples)
    assert sequences.views(t, batches(t, 10**6)[0], torch.zeros(1)) is None


# --- the recipe ---------------------------------------------------------------------------------------------


def share(
    actor: Policy, examples: list[data.Example], words: str = "", part: int = 256
) -> tuple[float, torch.Tensor]:
    """The loss of a batch, and its gradient at the head."""
    own = dataclasses.replace(made(f"rgsd {words}"), config=CONFIG)
    sys.modules[type(own).__module__].PART = part  # a module of its own for each recipe that is made
    t = training(actor, own, examples)
    (batch,) = batches(t, 10**6)
    views = sequences.views(t, batch, grpo.states(actor.model, batch))
    actor.model.zero_grad()
    loss, sums = own.loss(torch.zeros(len(batch.row)), dataclasses.replace(batch, views=views))
    loss.backward()
    assert sums["tokens"] == len(batch.row) and sums["loss"] == loss
    return loss.item(), actor.model.head.grad.clone()


def test_logits_that_are_held_in_parts_give_the_same_loss_and_gradient(
    actor: Policy, examples: list[data.Example]
) -> None:
    loss, grad = share(actor, examples)
    assert loss > 0.01 and grad.abs().max() > 0
    again = share(actor, examples, part=2)
    assert again[0] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(again[1], grad, atol=1e-6, rtol=1e-4)


def test_fewer_tokens_that_are_told_apart_tell_less_apart(
    actor: Policy, examples: list[data.Example]
) -> None:
    """The tokens that are put together cannot differ among each other."""
    losses = [share(actor, examples, f"--clip 9 --top {top}")[0] for top in (1, 8, 64, 10**6)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_the_policy_comes_nearer_to_its_teacher_and_no_judge_matters(tiny: Path, tmp_path: Path) -> None:
    """No answer has what the judge looks for: all rewards are equal, and RaR would learn nothing."""
    item = {"title": "Xylophones", "description": "Essential Criteria: Mentions a xylophone.", "weight": 5}
    rows = write_rows(tmp_path / "rows.jsonl", [question(i, rubric=[item]) for i in range(2)])
    run = tmp_path / "run"
    line = f"--policy {tiny} --data {rows} --judge keyword --out {run} --steps 30 --prompts-per-step 2 "
    line += "--group-size 4 --max-new-tokens 8 --lr 1e-2 --eval-every 0 --save-every 0 --recipe rgsd"
    train.main(line.split())
    steps = records(run)
    assert all(row["reward_std"] == 0.0 for row in steps)
    losses = [row["loss"] for row in steps]
    assert sum(losses[:5]) / 5 == pytest.approx(0.045, abs=0.006)
    assert sum(losses[-5:]) / 5 == pytest.approx(0.018, abs=0.004)


def test_a_second_conversation_that_does_not_fit_is_refused_before_the_first_step(
    tiny: Path, questions: Path, tmp_path: Path
) -> None:
    """The question has 150 tokens, with its rubric of 15 items 500."""
    line = f"--policy {tiny} --data {questions} --judge keyword --out {tmp_path / 'run'} --steps 1 "
    line += "--max-new-tokens 4 --max-prompt-tokens 200 --recipe rgsd"
    with pytest.raises(ValueError, match=r"the prompt of 'q0' has 4\d\d tokens: expected at most 200"):
        train.main(line.split())
    assert not (tmp_path / "run").exists()
