"""The kernels through their public functions, against float64 truth: on the torch path, then in Triton.

Triton reads TRITON_INTERPRET when a kernel is decorated, so the last test but one runs this file again, in a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rar_mini.kernels import advantage, backend
from rar_mini.kernels.adamw import AdamW, round_stochastically
from rar_mini.kernels.advantage import group_advantage
from rar_mini.kernels.logprob import linear_logprob, logprob

NAN = float("nan")


# --- log-probabilities ---


def truth(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, bias: Tensor | None = None
) -> tuple:
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def naive(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple:
    """What one would write, in the inputs' own dtype."""
    log_p = ((hidden @ weight.T) / temperature).log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(N: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N * V + D)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    target = torch.randint(V, (N,), generator=generator)
    target[0], target[-1] = 0, V - 1
    return hidden, weight, target


# One row, a prime number of rows, a vocabulary one above a block, odd ones, one below a block.
SHAPES = [(1, 8, 5), (7, 16, 97), (13, 8, 4097), (5, 8, 8191), (3, 4, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("N", "D", "V"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_logprob_errs_no_more_than_the_naive_form(
    N: int, D: int, V: int, temperature: float, dtype: torch.dtype
) -> None:
    """A relative tolerance of a half passes a kernel that is half wrong; the yardstick is the naive error.

    To it comes the rounding of the largest logit, which a matrix product in that dtype cannot avoid and
    in which the naive form may have had luck where there is one row alone.
    """
    hidden, weight, target = inputs(N, D, V, dtype)
    exact, plain = truth(hidden, weight, target, temperature), naive(hidden, weight, target, temperature)
    got = linear_logprob(hidden, weight, target, temperature=temperature)
    rounding = torch.finfo(dtype).eps / 2 * (hidden @ weight.T).abs().max() / temperature
    for ours, theirs, right in zip(got, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - right).abs().max() <= (theirs - right).abs().max() + rounding


@pytest.mark.parametrize("chunk_bytes", [2**28, 1])
@pytest.mark.parametrize(("N", "D", "V"), SHAPES[:4])
def test_gradients_through_both_outputs(N: int, D: int, V: int, chunk_bytes: int) -> None:
    """In one chunk, whose logits are kept, and in chunks of one row, whose logits are computed again."""
    hidden, weight, target = inputs(N, D, V)
    bias = torch.linspace(-1, 1, V)
    a, b = torch.linspace(-1, 1, N), torch.linspace(0.5, -0.3, N)
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = truth(leaves[0], leaves[1], target, 0.7, leaves[2])
    exact = torch.autograd.grad((a * logp).sum() + (b * entropy).sum(), leaves)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = linear_logprob(
        leaves[0], leaves[1], target, temperature=0.7, bias=leaves[2], chunk_bytes=chunk_bytes
    )
    got = torch.autograd.grad((a * logp).sum() + (b * entropy).sum(), leaves)
    for ours, right in zip(got, exact, strict=True):
        assert (ours - right).norm() <= 3e-6 * right.norm() + 1e-7
    for before, after in zip((hidden, weight, bias), leaves, strict=True):
        assert torch.equal(before, after), "inputs are only read"


def test_a_chunk_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = torch.nn.functional.linear
    monkeypatch.setattr("torch.nn.functional.linear", lambda *x: seen.append(real(*x)) or seen[-1])
    hidden, weight, target = inputs(13, 4, 50)
    linear_logprob(hidden, weight, target, chunk_bytes=4 * 50 * 5)
    assert [len(x) for x in seen] == [5, 5, 3]


def test_logprob_reads_existing_logits() -> None:
    logits = torch.randn(6, 33, generator=torch.Generator().manual_seed(0))
    logits[2, 5:20] = -torch.inf
    before, target = logits.clone(), torch.tensor([0, 32, 1, 2, 3, 4])
    logp, entropy, lse = logprob(logits, target, temperature=0.5)
    log_p = (logits.double() / 0.5).log_softmax(-1)
    right = -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)
    torch.testing.assert_close(logp.double(), log_p.gather(-1, target[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), (logits.double() / 0.5).logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [[-1, 0], [0, 9]])
def test_targets_outside_the_vocabulary_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"targets in \[0, 9\)"):
        logprob(torch.zeros(2, 9), torch.tensor(bad))


def test_a_graph_is_differentiated_once() -> None:
    hidden, weight, target = inputs(2, 4, 9)
    logp, _ = linear_logprob(hidden.requires_grad_(), weight, target)
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already differentiated"):
        logp.sum().backward()


# --- advantages ---


def rewards_of(rows: list[list[float]], scale: str = "group") -> tuple[Tensor, Tensor]:
    """Groups whose rewards are given: one criterion of weight 1."""
    verdict = torch.tensor(rows)[..., None]
    return group_advantage(verdict, torch.ones(len(rows), 1), scale=scale)


def test_twelve_equal_rewards_are_exactly_zero() -> None:
    """(r - mean) / (std + 1e-8) on twelve rewards of 0.99 gives 0.909 in float32, out of rounding residue."""
    reward, adv = rewards_of([[0.99] * 12])
    assert torch.equal(adv, torch.zeros(1, 12)) and torch.equal(reward, torch.full((1, 12), 0.99))


def test_rewards_equal_on_paper_tie() -> None:
    """The same items summed in another order differ by up to 1.2e-7, which standardising blows up to +-1."""
    verdict = torch.tensor([[[1.0] * 3 + [0.0] * 7, [0.0] * 7 + [1.0] * 3]])
    weight = torch.tensor([[0.7, 0.3, 0.9, 1.0, 1.0, 0.7, 0.3, 0.9, 0.3, 0.7]])
    _, adv = group_advantage(verdict, weight, scale="group")
    assert torch.equal(adv, torch.zeros(1, 2))


def test_a_reward_without_verdict_leaves_its_group() -> None:
    reward, adv = rewards_of([[0.2, NAN, 0.6], [NAN, 0.5, NAN], [NAN, NAN, NAN]])
    assert reward.isnan().tolist() == [[False, True, False], [True, False, True], [True] * 3]
    torch.testing.assert_close(adv, torch.tensor([[-1.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]), atol=1e-4, rtol=0)


def test_weights_of_zero_do_not_exist_and_negative_ones_take_away() -> None:
    verdict = torch.tensor([[[1.0, NAN, 0.0], [1.0, 0.3, 1.0]]])
    reward, _ = group_advantage(verdict, torch.tensor([[2.0, 0.0, -1.0]]), scale="none")
    torch.testing.assert_close(reward, torch.tensor([[1.0, 0.5]]))


def test_only_penalties_reward_their_absence() -> None:
    """Divided by the positive sum, a perfect answer to such a rubric would be 0 / 0."""
    verdict = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    reward, _ = group_advantage(verdict, torch.tensor([[-3.0, -1.0]]), scale="none")
    torch.testing.assert_close(reward, torch.tensor([[1.0, 0.25, 0.0]]))


@pytest.mark.parametrize("scale", advantage.SCALES)
@pytest.mark.parametrize(("P", "G", "K"), [(1, 2, 1), (3, 7, 5), (2, 13, 65), (1, 130, 3), (2, 16, 512)])
def test_against_float64(P: int, G: int, K: int, scale: str) -> None:
    generator = torch.Generator().manual_seed(P * G * K)
    verdict = torch.rand(P, G, K, generator=generator)
    weight = torch.randn(P, K, generator=generator) + 0.5
    weight[:, ::3] = 0
    weight[:, -1] = 1
    verdict[:, :, ::3] = NAN
    verdict[:, :, -1] = 0.5
    verdict[0, 1, -1] = NAN
    before = verdict.clone(), weight.clone()
    reward, adv = group_advantage(verdict, weight, scale=scale)
    right = advantage.reference(verdict.double(), weight.double(), scale)
    torch.testing.assert_close(reward.double(), right[0], atol=2e-6, rtol=2e-6, equal_nan=True)
    torch.testing.assert_close(adv.double(), right[1], atol=2e-4, rtol=2e-4)
    assert reward.isnan().sum() == 1 and not adv.isnan().any()
    assert torch.equal(weight, before[1]) and torch.equal(verdict.nan_to_num(9), before[0].nan_to_num(9))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected verdict"):
        group_advantage(torch.zeros(2, 3, 4), torch.zeros(2, 3), scale="group")
    with pytest.raises(ValueError, match="no advantage scale"):
        group_advantage(torch.zeros(2, 3, 4), torch.zeros(2, 4), scale="batch")
    with pytest.raises(ValueError, match="at most 1024"):
        group_advantage(torch.zeros(1, 1025, 1), torch.ones(1, 1), scale="none")


# --- optimizer ---


def test_float32_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(70_001), torch.randn(3, 5)]
    theirs = [p.clone().requires_grad_() for p in ours]
    ours = [p.requires_grad_() for p in ours]
    a, b = AdamW(ours, 1e-2, weight_decay=0.1), torch.optim.AdamW(theirs, 1e-2, weight_decay=0.1)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = 0.5 * p.grad
        a.step(grad_scale=0.5)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean error of 10^6 draws lies within four standard errors of 0."""
    x = torch.full((1_000_000,), 0.0201)
    bits = torch.randint(65536, x.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    error = round_stochastically(x, bits).double() - x.double()
    assert len(error.unique()) == 2
    assert error.mean().abs() <= 4 * error.std() / 1000


def test_values_without_a_neighbour_keep_their_kind() -> None:
    """Random bits added to a NaN can carry into its sign and make it -0.0."""
    x = torch.tensor([NAN, torch.inf, -torch.inf, 0.0, -1.5])
    got = round_stochastically(x, torch.full((5,), 65535, dtype=torch.int32))
    assert got[0].isnan() and got[1:3].tolist() == [torch.inf, -torch.inf]
    assert got[3] >= 0 and got[3] < 1e-37 and got[4] == -1.5


def test_bfloat16_learns_at_the_papers_rate() -> None:
    """Near 0.02 a bfloat16 step is 1.2e-4: an update of 5e-6 is lost when rounded to nearest, always."""
    start = torch.full((4096,), 0.0201)
    rounded = start.bfloat16().requires_grad_()
    nearest = start.bfloat16()
    full = start.clone().requires_grad_()
    a, b = AdamW([rounded], 5e-6, seed=1), AdamW([full], 5e-6)
    for _ in range(100):
        for p in (rounded, full):
            p.grad = torch.ones_like(p)
        a.step()
        b.step()
        nearest = (nearest.float() - 5e-6).bfloat16()
    assert torch.equal(nearest, start.bfloat16())
    moved, wanted = (p.detach().double().mean() - start.bfloat16().double().mean() for p in (rounded, full))
    assert wanted + (start.bfloat16().double().mean() - start.double().mean()) == pytest.approx(
        -5e-4, rel=0.02
    )
    assert moved == pytest.approx(-5e-4, rel=0.05)


def test_a_resumed_optimizer_rounds_alike() -> None:
    def run(steps: int, p: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        p = p.clone().requires_grad_()
        optimizer = AdamW([p], 1e-3, seed=7)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return p.detach(), optimizer.state_dict()

    start = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole, _ = run(4, start)
    half, state = run(2, start)
    assert torch.equal(run(2, half, state)[0], whole)


# --- the same again, in Triton ---


@pytest.mark.skipif(backend.INTERPRET, reason="this is the run that it starts")
@pytest.mark.skipif(backend.triton is None, reason="no triton on this system")
def test_the_kernels_under_the_interpreter() -> None:
    """Every test above through the Triton kernels."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 skipped" in done.stdout


@pytest.mark.skipif(not backend.INTERPRET, reason="only in the run under the interpreter")
def test_that_the_kernels_were_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run above would prove nothing."""
    launched = []
    real = advantage._launch
    monkeypatch.setattr(advantage, "_launch", lambda *x: launched.append(1) or real(*x))
    rewards_of([[0.1, 0.2]])
    assert launched and type(advantage._advantage).__name__ == "InterpretedFunction"
