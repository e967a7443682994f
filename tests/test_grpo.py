"""The loss against formulas written out by hand, and the invariances that codebases of this kind break."""

import dataclasses
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import OneDevice
from tiny import rolled
from transformers import LlamaConfig

from rar_mini import grpo, model
from rar_mini.kernels.advantage import group_advantage
from rar_mini.prefix import Heard
from rar_mini.sampler import Completion, Request, Settings, sample, uniforms
from rar_mini.scores import NAN, Rollouts, Scores

PROMPTS = [[5, 6, 7, 8], [40, 41], [90, 91, 92, 93, 94, 95]]
ADV = torch.tensor([[1.0, -0.5, -0.5], [0.7, -0.7, 0.0], [0.0, 0.0, 0.0]])
TEACHES = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> model.Decoder:
    return model.load(tiny, torch.float32, "cpu")


def sampled(decoder: model.Decoder, temperature: float = 1.0) -> list[list[Completion]]:
    """Completions of unequal length: every eighth token ends one."""
    requests = [Request(p, [uniforms(3, 1, f"q{i}", g, 12) for g in range(3)]) for i, p in enumerate(PROMPTS)]
    return sample(decoder, requests, frozenset(range(0, 259, 8)), Settings(12, temperature))


@pytest.fixture(scope="module")
def completions(decoder: model.Decoder) -> list[list[Completion]]:
    return sampled(decoder)


def batches(
    completions: list, loss_norm: str, tokens_per_batch: int = 10_000, **options: object
) -> list[grpo.MicroBatch]:
    return grpo.micro_batches(
        rolled(PROMPTS, completions, ADV),
        TEACHES,
        loss_norm=loss_norm,
        max_new_tokens=12,
        tokens_per_batch=tokens_per_batch,
        **options,
    )


def by_hand(decoder: model.Decoder, completions: list, loss_norm: str) -> torch.Tensor:
    """The first-epoch surrogate, sum of w A logp, one sequence at a time without packing."""
    rows = [(p, g) for p in range(3) for g in range(3) if TEACHES[p, g]]
    lengths = [len(completions[p][g].ids) for p, g in rows]
    loss = torch.zeros(())
    for (p, g), length in zip(rows, lengths, strict=True):
        ids = torch.tensor(PROMPTS[p] + completions[p][g].ids)
        hidden = decoder(ids, torch.arange(len(ids)), model.reference_attention)[len(PROMPTS[p]) - 1 : -1]
        logp = (hidden @ decoder.head.T).log_softmax(-1)
        logp = logp.gather(-1, ids[len(PROMPTS[p]) :, None])[:, 0]
        weight = {
            "token": 1 / sum(lengths),
            "sequence": 1 / (len(rows) * length),
            "constant": 1 / (len(rows) * 12),
            "sum": 1.0,
        }[loss_norm]
        loss = loss - (weight * ADV[p, g] * logp).sum()
    return loss


def gradient(decoder: model.Decoder, parts: list[grpo.MicroBatch], **options: object) -> tuple[list, dict]:
    decoder.zero_grad()
    sums = []
    for batch in parts:
        logp, entropy = grpo.token_logp(decoder, batch, 1.0)
        batch.old_logp = logp.detach()
        loss, part = grpo.policy_loss(logp, batch, **{"clip_low": 0.2, "clip_high": 0.2} | options)
        loss.backward()
        sums.append(part | {"entropy": entropy.detach().sum()})
    return [p.grad.clone() for p in decoder.parameters()], grpo.token_metrics(sums)


@pytest.mark.parametrize("loss_norm", grpo.LOSS_NORMS)
def test_the_gradient_is_the_formulas(decoder: model.Decoder, completions: list, loss_norm: str) -> None:
    truth = torch.autograd.grad(by_hand(decoder, completions, loss_norm), list(decoder.parameters()))
    got, metrics = gradient(decoder, batches(completions, loss_norm))
    for a, b in zip(got, truth, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
    # Where every ratio is 1 the loss is minus the weighted mean advantage: 0 where completions weigh alike,
    # because a group's advantages sum to 0, and only there.
    lengths = torch.tensor([[len(c.ids) for c in group] for group in completions])
    S, N = int(TEACHES.sum()), int(lengths[TEACHES].sum())
    divisor = {"token": N, "sequence": S * lengths, "constant": S * 12, "sum": 1}[loss_norm]
    right = -(ADV * lengths / divisor)[TEACHES].sum().item()
    assert metrics["loss"] == pytest.approx(right, abs=1e-6)
    assert (abs(right) < 1e-6) == (loss_norm == "sequence")


@pytest.mark.parametrize("loss_norm", grpo.LOSS_NORMS)
@pytest.mark.parametrize("budget", [1, 14, 20, 30])
def test_micro_batches_change_no_gradient_and_no_metric(
    decoder: model.Decoder, completions: list, loss_norm: str, budget: int
) -> None:
    """Dividing each micro-batch by its own token count changes the weighting when lengths differ."""
    whole, metrics = gradient(decoder, batches(completions, loss_norm))
    parts = batches(completions, loss_norm, budget)
    assert len(parts) > 1
    cut, same = gradient(decoder, parts)
    for a, b in zip(cut, whole, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert metrics.keys() == same.keys()
    for name in metrics:
        assert metrics[name] == pytest.approx(same[name], rel=1e-4, abs=1e-6), name


def test_what_several_processes_make_of_their_own_prompts_adds_up_to_the_step(
    decoder: model.Decoder, completions: list
) -> None:
    for loss_norm in grpo.LOSS_NORMS:
        whole, _ = gradient(decoder, batches(completions, loss_norm))
        parts = [gradient(decoder, batches(completions, loss_norm, own=own))[0] for own in ([2, 0], [1])]
        for a, *b in zip(whole, *parts, strict=True):
            assert (a - sum(b)).norm() <= 1e-5 * a.norm()


def test_a_tie_ends_just_above_one_in_a_million() -> None:
    reward = torch.tensor([[0.0, 0.99e-6], [0.0, 1e-6], [0.0, 1.01e-6]])
    assert grpo.tied(reward).tolist() == [True, True, False]
    assert grpo.advantage(reward)[:2].tolist() == [[0.0, 0.0]] * 2


def test_each_token_of_a_batch_stands_beside_what_belongs_to_it() -> None:
    """Two prompts, one with completions of three tokens and of a single one, which is never read, only
    predicted; the other with one of two, and one without a reward. In float32, two prompts in a batch."""
    ids = [[[11, 12, 13], [21]], [[31, 32], [41]]]
    written = [[Completion(c, [-0.1 * t for t in c], True) for c in group] for group in ids]
    adv, teaches = torch.tensor([[0.5, -1.5], [2.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    weights = {
        "token": [1 / 6] * 6,
        "sequence": [1 / 9] * 3 + [1 / 3] + [1 / 6] * 2,
        "constant": [1 / 21] * 6,
        "sum": [1.0] * 6,
    }
    for loss_norm, right in weights.items():
        sizes = {"loss_norm": loss_norm, "max_new_tokens": 7, "tokens_per_batch": 9}
        (batch,) = grpo.micro_batches(rolled([[1, 2], [3]], written, adv), teaches, **sizes)
        assert batch.packed.ids.tolist() == [1, 2, 11, 12, 3, 31]
        assert batch.packed.positions.tolist() == [0, 1, 2, 3, 0, 1]
        assert batch.row.tolist() == [1, 2, 3, 1, 4, 5] and batch.row.dtype == torch.int64
        assert batch.target.tolist() == [11, 12, 13, 21, 31, 32]
        assert batch.rollout.tolist() == [0, 0, 0, 1, 2, 2]
        assert batch.adv.tolist() == [0.5] * 3 + [-1.5] + [2.0] * 2
        assert batch.weight.tolist() == pytest.approx(right)
        assert batch.sampler_logp.tolist() == pytest.approx([-1.1, -1.2, -1.3, -2.1, -3.1, -3.2])
        assert {x.dtype for x in (batch.adv, batch.weight, batch.sampler_logp)} == {torch.float32}
        assert batch.old_logp is batch.ref_logp is None


def test_batches_keep_to_their_budget_and_hold_every_token_once(completions: list) -> None:
    for budget in (20, 30, 60):
        parts = batches(completions, "token", budget)
        assert all(len(part.packed.ids) <= budget for part in parts)
        assert sum(len(part.target) for part in parts) == sum(
            len(completions[p][g].ids) for p in range(3) for g in range(3) if TEACHES[p, g]
        )


@pytest.mark.parametrize(
    ("budget", "right"), [(52, [12]), (51, [6, 6]), (26, [6, 6]), (25, [3] * 4), (9, [3] * 4)]
)
def test_a_prompt_counts_in_every_batch_that_reads_it(budget: int, right: list[int]) -> None:
    """Two prompts of 20 tokens, two completions of 3 to each; one completion with its prompt may exceed."""
    written = [[Completion([1] * 3, [0.0] * 3, True)] * 2] * 2
    made = grpo.micro_batches(
        rolled([[1] * 20] * 2, written, torch.ones(2, 2)),
        torch.ones(2, 2, dtype=torch.bool),
        loss_norm="token",
        max_new_tokens=3,
        tokens_per_batch=budget,
    )
    assert [len(batch.target) for batch in made] == right


def test_what_a_conversation_heard_counts_for_its_batch() -> None:
    """Two answers of two turns with six heard tokens between the turns: 3 + (4 + 6 - 1) tokens for the first,
    4 + 6 - 1 more for the second."""
    talks = [Completion([n, n, n, n], [0.0] * 4, True, heard=[Heard(2, [n] * 6)]) for n in (7, 8)]
    rollouts = rolled([[1, 2, 3]], [talks], torch.ones(1, 2))
    sizes = {"loss_norm": "token", "max_new_tokens": 4}
    for budget, read in ((23, [21]), (22, [12, 12])):
        made = grpo.micro_batches(rollouts, torch.ones(1, 2).bool(), tokens_per_batch=budget, **sizes)
        assert [len(batch.packed.ids) for batch in made] == read


GROUPS = st.lists(st.lists(st.integers(1, 30), min_size=4, max_size=4), min_size=1, max_size=4)


@settings(deadline=None)
@given(lengths=GROUPS, budget=st.integers(20, 200))
def test_batches_are_as_few_as_can_be_and_even(lengths: list[list[int]], budget: int) -> None:
    """Memory has to hold the largest: a step of 2,200 tokens is two batches of 1,100, not 2,048 and 152."""

    def cut(budget: int) -> list[int]:
        completions = [[Completion([1] * n, [0.0] * n, True) for n in group] for group in lengths]
        made = grpo.micro_batches(
            rolled([[1] * 10] * len(lengths), completions, torch.zeros(len(lengths), 4)),
            torch.ones(len(lengths), 4, dtype=torch.bool),
            loss_norm="token",
            max_new_tokens=30,
            tokens_per_batch=budget,
        )
        assert sum(len(batch.target) for batch in made) == sum(map(sum, lengths))
        # Every token but each completion's last is read, and a prompt once in every batch that needs it.
        return [len(batch.packed.ids) for batch in made]

    found = cut(budget)
    for smaller in (budget - 1, max(found) - 1):
        if smaller > 40:  # every completion fits with its prompt
            assert len(cut(smaller)) > len(found) or max(cut(smaller)) >= max(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_one_and_the_end_token_is_trained(
    decoder: model.Decoder, temperature: float
) -> None:
    """The sampler's log-probability of every token, the end token included, is the trainer's."""
    completions = sampled(decoder, temperature)
    (batch,) = batches(completions, "token")
    logp, _ = grpo.token_logp(decoder, batch, temperature)
    assert (logp - batch.sampler_logp).abs().max() < 1e-4
    ended = [c.ids[-1] for row, seen in zip(completions, TEACHES, strict=True) for c, s in
             zip(row, seen, strict=True) if c.finished and s]  # fmt: skip
    assert ended and set(ended) <= set(batch.target.tolist())


def batch_of(**columns: list[float]) -> grpo.MicroBatch:
    """Numbers of tokens that come from nowhere, each of weight 1 unless told otherwise."""
    given = {name: torch.tensor(column) for name, column in columns.items()}
    ones = torch.ones_like(given["adv"])
    return grpo.MicroBatch(packed=None, row=None, target=None, rollout=None, **{"weight": ones} | given)


def one(adv: float, logp: float, old: float, **fields: float) -> tuple[float, float]:
    """Loss and its derivative in logp for a single token."""
    numbers = {name: [value] for name, value in fields.items() if name.endswith("logp")}
    batch = batch_of(**{"adv": [adv], "old_logp": [old], "sampler_logp": [old]} | numbers)
    x = torch.tensor([logp], requires_grad=True)
    options = {name: value for name, value in fields.items() if not name.endswith("logp")}
    loss, _ = grpo.policy_loss(x, batch, **{"clip_low": 0.2, "clip_high": 0.3} | options)
    loss.backward()
    return loss.item(), x.grad.item()


@pytest.mark.parametrize(
    ("adv", "ratio", "loss", "slope"),
    [
        (1.0, 1.1, -1.1, -1.1),  # inside the clip
        (1.0, 1.5, -1.3, 0.0),  # risen far enough: no more push
        (1.0, 0.5, -0.5, -0.5),  # a good token that became rare is pushed back up
        (-1.0, 0.5, 0.8, 0.0),  # sunk far enough
        (-1.0, 1.5, 1.5, 1.5),  # a bad token that became likely is pushed down: max instead of min loses this
    ],
)
def test_the_clip_takes_the_smaller_gain(adv: float, ratio: float, loss: float, slope: float) -> None:
    got = one(adv, -1.0 + math.log(ratio), -1.0)
    assert got == pytest.approx((loss, slope), rel=1e-5, abs=1e-6)


def test_the_kl_penalty_is_k3_and_pulls_toward_the_reference() -> None:
    """k1 as a loss has a gradient that is zero on average; k3's is 1 - exp(ref - logp)."""
    loss, slope = one(0.0, -1.0, -1.0, beta=0.5, ref_logp=-1.4)
    assert loss == pytest.approx(0.5 * (math.exp(-0.4) + 0.4 - 1), rel=1e-5)
    assert slope == pytest.approx(0.5 * (1 - math.exp(-0.4)), rel=1e-5)


def test_the_mismatch_cap_weighs_by_sampler_and_cuts() -> None:
    assert one(1.0, -1.0, -1.0, mismatch_cap=2.0, sampler_logp=-1.5)[0] == pytest.approx(-math.exp(0.5))
    assert one(1.0, -1.0, -1.0, mismatch_cap=2.0, sampler_logp=-3.0)[0] == pytest.approx(-2.0)
    assert one(1.0, -1.0, -1.0, sampler_logp=-3.0)[0] == pytest.approx(-1.0)


# adv, ratio, sampler's gap, entropy, reference's lead; whether the token counts as clipped, under [0.8, 1.3].
TOKENS = [
    (1.0, 1.5, 0.3, 0.5, 0.1, "high"),
    (1.0, 1.25, -0.7, 1.5, -0.2, ""),  # above 1.2, which is the other bound
    (-1.0, 1.5, 0.0, 2.5, 0.3, ""),  # its gradient goes on
    (0.0, 1.5, 0.1, 3.0, 0.0, ""),
    (-0.5, 0.75, 0.2, 0.25, 0.0, "low"),
    (-0.5, 0.85, 0.0, 0.0, 0.4, ""),
    (0.5, 0.5, 0.0, 0.0, -0.4, ""),
    (0.0, 0.5, 0.0, 1.0, 0.0, ""),
    (2.0, 1.4, 0.0, 0.0, 0.0, "high"),  # two of each kind where one of the other sign stands out as far
    (-2.0, 0.6, 0.0, 1.0, 0.0, "low"),
]


@pytest.mark.parametrize("cut", [[0, 10], [0, 5, 10], [0, 1, 2, 10]])
def test_metrics_are_of_all_tokens_of_the_step_however_it_is_cut(cut: list[int]) -> None:
    """Written out one token at a time, with a penalty of 0.1 and a cap of 1.2 that cuts two."""
    loss, parts = 0.0, []
    for start, end in zip(cut, cut[1:], strict=False):
        adv, ratio, gap, entropy, lead, _ = (list(column) for column in zip(*TOKENS[start:end], strict=True))
        logp = torch.tensor([-2.0 - 0.1 * i for i in range(start, end)], requires_grad=True)
        old = logp.detach() - torch.tensor(ratio).log()
        batch = batch_of(adv=adv, sampler_logp=(old - torch.tensor(gap)).tolist(), old_logp=old.tolist())
        batch.ref_logp = logp.detach() + torch.tensor(lead)
        batch.weight = torch.arange(start, end) / 10
        share, sums = grpo.policy_loss(logp, batch, clip_low=0.2, clip_high=0.3, beta=0.1, mismatch_cap=1.2)
        assert share.requires_grad and not any(x.requires_grad for x in sums.values())
        loss += share.item()
        parts.append(sums | {"entropy": torch.tensor(entropy).sum()})
    metrics = grpo.token_metrics(parts)
    k3 = [math.exp(lead) - lead - 1 for *_, lead, _ in TOKENS]
    gains = [
        min(ratio * adv, max(0.8, min(1.3, ratio)) * adv) * min(math.exp(gap), 1.2)
        for adv, ratio, gap, *_ in TOKENS
    ]
    right = sum(i / 10 * (-gain + 0.1 * k) for i, (gain, k) in enumerate(zip(gains, k3, strict=True)))
    assert loss == pytest.approx(right, rel=1e-5)
    assert metrics == {
        "loss": pytest.approx(right, rel=1e-5),
        "entropy": pytest.approx(sum(row[3] for row in TOKENS) / 10),
        "sampling/sampling_logp_difference/mean": pytest.approx(1.3 / 10, rel=1e-5),
        "sampling/sampling_logp_difference/max": pytest.approx(0.7, rel=1e-5),
        "clip_ratio/low_mean": 2 / 10,
        "clip_ratio/high_mean": 2 / 10,
        "kl": pytest.approx(sum(k3) / 10, rel=1e-4),
    }


def test_without_a_reference_there_is_no_kl_and_at_the_bound_nothing_is_clipped() -> None:
    """At the first inner epoch each ratio is 1, which no bound clips, not even one of 0."""
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    batch = batch_of(adv=[1.0, -1.0], sampler_logp=[-1.0, -1.0], old_logp=[-1.0, -1.0])
    loss, sums = grpo.policy_loss(logp, batch, clip_low=0.0, clip_high=0.0)
    loss.backward()
    assert logp.grad.tolist() == [-1.0, 1.0]
    metrics = grpo.token_metrics([sums | {"entropy": torch.tensor(0.0)}])
    assert "kl" not in metrics and not any(metrics.values())


def test_all_that_a_batch_is_made_of_lies_where_the_weights_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, and with a reference that stands on the CPU, whose head goes there too."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.device("meta"):
        decoder = model.Decoder(config)
    reference = model.Decoder(config)
    reference.visit()
    written = [[Completion([1] * n, [0.0] * n, True) for n in (1, 2, 3)]] * 3
    with OneDevice(monkeypatch):
        for batch in batches(written, "token", 20, device="meta", attention="loop"):
            logp, entropy = grpo.token_logp(decoder, batch, 1.0)
            batch.old_logp = logp.detach()
            batch.ref_logp, _ = grpo.token_logp(reference, batch, 1.0)
            loss, sums = grpo.policy_loss(
                logp, batch, clip_low=0.2, clip_high=0.2, beta=0.1, mismatch_cap=2.0
            )
            loss.backward()
            grpo.token_metrics([sums | {"entropy": entropy.detach().sum()}])
            assert {x.device.type for x in (logp, entropy, loss, batch.ref_logp)} == {"meta"}


def test_the_attention_that_is_asked_for_is_packed(completions: list) -> None:
    for attention in ("loop", "flex", "auto"):
        (batch,) = batches(completions, "token", attention=attention)
        assert batch.packed.attention == attention


VERDICTS = st.sampled_from([0.0, 0.25, 1.0, float("nan")])
WEIGHTS = st.sampled_from([-2.0, -0.9, 0.0, 0.3, 1.0])


@st.composite
def judged(draw: st.DrawFn) -> Scores:
    """Verdicts that tie, fail or are not asked for, under weights of either sign or none."""
    P, G, K = (draw(st.integers(1, most)) for most in (3, 5, 4))
    verdict = draw(st.lists(VERDICTS, min_size=P * G * K, max_size=P * G * K))
    weight = draw(st.lists(WEIGHTS, min_size=P * K, max_size=P * K))
    return Scores(torch.tensor(verdict).view(P, G, K), torch.tensor(weight).view(P, K), torch.empty(P, G), [])


@settings(deadline=None, max_examples=300)
@given(judged(), st.sampled_from(["group", "none"]))
def test_reward_and_advantage_are_those_of_the_kernel(scores: Scores, scale: str) -> None:
    """kernels/advantage.py has the second copy of the two formulas; its reference and its kernel are held to
    each other there, and here to the one that training uses."""
    reward, adv = group_advantage(scores.verdict, scores.weight, scale=scale)
    ours = grpo.reward(scores)
    torch.testing.assert_close(ours, reward, rtol=1e-6, atol=1e-6, equal_nan=True)
    found = grpo.advantage(ours, scale)
    torch.testing.assert_close(found, adv, rtol=1e-4, atol=1e-5)
    assert torch.equal(found == 0, adv == 0) and not found[grpo.tied(ours)].any()


def test_rewards_by_hand() -> None:
    """A share of what can be earned; of penalties alone, what they leave; where nothing was asked, none."""
    verdict = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]).expand(3, -1, -1)  # (3, 3, 2)
    weight = torch.tensor([[1.0, -0.5], [-1.0, -3.0], [0.0, 0.0]])
    reward = grpo.reward(Scores(verdict, weight, torch.empty(3, 3), []))
    assert reward[:2].tolist() == [[0.5, 1.0, 0.0], [0.0, 0.75, 1.0]] and reward[2].isnan().all()


def test_items_are_normalised_one_by_one_and_what_takes_away_counts_negatively() -> None:
    nan = torch.nan
    verdict = torch.tensor([[[1.0, 1.0, nan], [0.0, 0.5, nan], [nan, 0.0, nan]]])
    scores = Scores(verdict, torch.tensor([[2.0, -3.0, 0.0]]), torch.full((1, 3), nan), [])
    each = grpo.item_advantage(scores, grpo.scored(grpo.reward(scores)))
    wanted = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(each, wanted, atol=1e-4, rtol=0)


def test_a_step_is_normalised_without_the_groups_that_tie() -> None:
    total = torch.tensor([[3.0, 1.0, torch.nan], [5.0, 5.00005, 5.0], [0.0, 0.0, 9.0]])
    among = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0]]).bool()
    adv = grpo.step_advantage(total, among)
    assert adv[0].tolist() == pytest.approx([1, -1, 0], abs=1e-4) and not adv[1:].any()
    near = torch.tensor([[0.0, 1.5e-4]])
    assert grpo.step_advantage(near, torch.ones(1, 2).bool()).tolist()[0] == pytest.approx(
        [-75 / 76, 75 / 76], abs=1e-4
    )


def test_rollouts_without_a_reward_leave_mask_and_normaliser() -> None:
    nan = float("nan")
    reward = torch.tensor([[0.1, nan, 0.3], [nan, 0.2, nan], [nan, nan, nan]])
    assert grpo.scored(reward).tolist() == [[True, False, True], [False] * 3, [False] * 3]


def test_an_unknown_norm_is_refused(completions: list) -> None:
    """It was taken for `constant`."""
    with pytest.raises(KeyError, match="tokens"):
        batches(completions, "tokens")


def test_no_group_that_teaches_gives_no_batch(completions: list) -> None:
    none = torch.zeros(3, 3, dtype=torch.bool)
    for norm in grpo.LOSS_NORMS:
        assert not grpo.micro_batches(
            rolled(PROMPTS, completions, ADV), none, loss_norm=norm, max_new_tokens=12, tokens_per_batch=64
        )


@pytest.mark.parametrize("loss_norm", grpo.LOSS_NORMS)
def test_reference_answers_have_the_first_epochs_gradient_and_a_loss_to_read(
    decoder: model.Decoder, completions: list, monkeypatch: pytest.MonkeyPatch, loss_norm: str
) -> None:
    """With A = 1 it is the gradient of the on-policy step, but at every epoch: beside an old policy, the
    second would be clipped at 1.2 times the first's probability, and the loss would be -1."""
    monkeypatch.setitem(globals(), "ADV", torch.ones(3, 3))
    truth, _ = gradient(decoder, batches(completions, loss_norm))
    likelihood = by_hand(decoder, completions, loss_norm).item()
    answers = [[dataclasses.replace(c, logp=[]) for c in group] for group in completions]
    parts = batches(answers, loss_norm, tokens_per_batch=30)
    assert len(parts) > 1
    decoder.zero_grad()
    loss = 0.0
    for batch in parts:
        logp, _ = grpo.token_logp(decoder, batch, 1.0)
        share, sums = grpo.policy_loss(logp, batch, clip_low=0.0, clip_high=0.0, mismatch_cap=1.0)
        share.backward()
        loss += share.item()
        assert sums.keys() == {"tokens", "loss"}
    assert loss == pytest.approx(likelihood, rel=1e-5) and loss > 0
    for a, b in zip([p.grad for p in decoder.parameters()], truth, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_the_norm_of_bfloat16_gradients_is_not_rounded_to_bfloat16() -> None:
    random = torch.Generator().manual_seed(0)
    grads = [(torch.randn(n, generator=random) / 10).bfloat16() for n in (300, 200)]
    right = torch.cat(grads).double().norm().item()
    assert grpo.gradient_norm(grads) == pytest.approx(right, rel=1e-6)
    assert torch.nn.utils.get_total_norm(grads).item() != pytest.approx(right, rel=1e-4)


def test_the_norm_of_float32_gradients_is_torchs() -> None:
    grads = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (300, 200, 1)]
    assert grpo.gradient_norm(grads) == torch.nn.utils.get_total_norm(grads).item()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([math.nan, 0.0, 0.25, 0.3, 0.7, 1.0]), min_size=2, max_size=8))
def test_rollouts_that_differ_most_are_the_best_of_all_choices(rewards: list[float]) -> None:
    """By brute force in float64; of equal variances the choice with the most low rewards."""
    reward = torch.tensor([rewards])
    for most in range(2, len(rewards) + 1):
        among = grpo.scored(reward)
        (chosen,) = grpo.differ_most(reward, among, most).tolist()
        scored = sorted((r, g) for g, r in enumerate(rewards) if among[0, g])
        taken = [pair for pair in scored if chosen[pair[1]]]
        assert len(taken) == min(most, len(scored)) == sum(chosen)
        if taken:
            spread = [float(np.var([r for r, _ in few])) for few in combinations(scored, len(taken))]
            assert np.var([r for r, _ in taken]) == pytest.approx(max(spread), abs=1e-9)


@pytest.mark.parametrize(
    ("rewards", "most", "chosen"),
    [
        ([1, 0, 0, 1, 0], 2, [1, 3]),
        ([1, 0, 0, 1, 0], 3, [1, 2, 3]),  # two low and one high vary as one low and two high
        ([0.5] * 4, 3, [0, 1, 2]),
        ([0, 1, 1, 1, 1], 3, [0, 1, 2]),
        ([math.nan, 0, math.nan, 1, 0.5], 2, [1, 3]),
        ([-1, 0, 1], 1, [0]),  # one alone varies by nothing, whichever it is
    ],
)
def test_equal_choices_are_decided_by_place(rewards: list[float], most: int, chosen: list[int]) -> None:
    reward = torch.tensor([rewards])
    found = grpo.differ_most(reward, grpo.scored(reward), most)
    assert found[0].nonzero()[:, 0].tolist() == chosen


def test_rollouts_that_are_not_chosen_leave_the_loss_and_its_divisor() -> None:
    """Two chosen of four train like a step of these two alone, with the advantages of the four."""
    prompts, written = [[1, 2]], [[Completion([n + 3] * n, [0.0] * n, True) for n in (1, 2, 3, 4)]]
    reward = torch.tensor([[0.0, 0.5, 0.6, 1.0]])
    rollouts = dataclasses.replace(rolled(prompts, written, grpo.advantage(reward)), reward=reward)
    chosen = grpo.teaches(rollouts, 2)
    assert chosen.tolist() == [[True, False, False, True]]
    for loss_norm, weights in {"token": [1 / 5] * 5, "sequence": [1 / 2] + [1 / 8] * 4}.items():
        sizes = {"max_new_tokens": 4, "tokens_per_batch": 99, "loss_norm": loss_norm}
        (batch,) = grpo.micro_batches(rollouts, chosen, **sizes)
        assert batch.weight.tolist() == pytest.approx(weights)
        assert batch.target.tolist() == [4, 7, 7, 7, 7]
        assert batch.adv[[0, -1]].tolist() == pytest.approx(rollouts.adv[0, [0, 3]].tolist())


@pytest.mark.parametrize("reward", [-grpo.TIE, 0.0, 1.0, 1 + grpo.TIE])
def test_a_cut_answer_is_penalised_within_rounding_of_the_bounds(reward: float) -> None:
    rewards, cut = torch.tensor([[reward, NAN, 0.5]]), torch.tensor([[True, True, False]])
    first, missing, last = grpo.penalise(rewards, cut)[0].tolist()
    assert (first, last) == (0.0, 0.5) and math.isnan(missing)
    for beyond in (-3 * grpo.TIE, 1 + 3 * grpo.TIE):
        with pytest.raises(ValueError, match="needs rewards in"):
            grpo.penalise(torch.tensor([[0.5, beyond]]), cut[:, :2])


def test_what_teaches_is_chosen_by_what_was_written_cut_and_tied() -> None:
    written = [Completion([], [], True), Completion([1], [0.0], False)] + [Completion([1], [0.0], True)] * 2
    tied = [Completion([1], [0.0], True)] * 4
    reward = torch.tensor([[1.0, 0.5, 0.25, 0.0], [1.0] * 4])
    adv = reward - reward.mean(-1, keepdim=True)
    rollouts = Rollouts([], [], [written, tied], [], None, reward, adv)
    assert grpo.cut_off(rollouts).tolist() == [[False, True, False, False], [False] * 4]

    def chosen(**how: Any) -> list[list[int]]:
        return grpo.teaches(rollouts, **how).int().tolist()

    assert chosen() == [[0, 1, 1, 1], [1] * 4], "of all these only what is empty is not read"
    assert chosen(cut=False) == [[0, 0, 1, 1], [1] * 4]
    assert chosen(ties=False) == [[0, 1, 1, 1], [0] * 4]
    assert chosen(most=2) == [[0, 1, 0, 1], [1, 1, 0, 0]]
    assert chosen(most=2, cut=False, ties=False) == [[0, 0, 1, 1], [0] * 4]
