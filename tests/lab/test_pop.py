"""POP: pairs, DPO as an advantage, and problems that a writer makes of texts."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from hostile import Server, user
from reading import Reader
from test_grpo import PROMPTS, sampled
from torch import Tensor

from lab.pop import Pop
from rar_mini import grpo, model, sequences
from rar_mini.config import PRESETS
from rar_mini.scores import NAN, Rollouts
from rar_mini.tools import memory

pytestmark = pytest.mark.usefixtures("folder")

SIZES = {"max_new_tokens": 12, "tokens_per_batch": 40}
CONFIG = replace(PRESETS["cpu"], loss_norm="sum")


def rolled(reward: Tensor, responses: list[list[str]] | None = None, **fields: object) -> Rollouts:
    P, G = reward.shape
    zero = torch.zeros(P, G)
    fields = {"logp": zero, "ref_logp": zero} | fields
    return Rollouts([], [], [], responses or [["a b"] * G] * P, reward=reward, **fields)


def whole_logp(decoder: model.Decoder, prompt: list[int], ids: list[int]) -> Tensor:
    """One completion's log-probability, without packing."""
    text = torch.tensor(prompt + ids)
    hidden = decoder(text, torch.arange(len(text)), model.reference_attention)[len(prompt) - 1 : -1]
    return (hidden @ decoder.head.T).log_softmax(-1).gather(-1, text[len(prompt) :, None]).sum()


def test_the_update_has_the_gradient_of_dpos_loss(tiny: Path) -> None:
    """Two groups give a pair, one ties; the policy has moved away from its reference."""
    policy, reference = (model.load(tiny, torch.float32, "cpu") for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn_like(p))
    completions, beta = sampled(policy), 0.3
    reward = torch.tensor([[0.2, 0.9, 0.1], [0.5, 0.5, 0.5], [1.0, 0.0, 0.4]])
    pairs = [(0, 1, 2), (2, 0, 1)]  # question, best, worst

    shown = [[prompt] * 3 for prompt in PROMPTS]
    rollouts = Rollouts([], shown, completions, [["a"] * 3] * 3, reward=reward)
    rollouts.logp, rollouts.ref_logp = (
        sequences.logp(each, rollouts, tokens_per_batch=40) for each in (policy, reference)
    )
    rollouts.adv = Pop(beta=beta, config=CONFIG).advantage(rollouts)
    for batch in grpo.micro_batches(rollouts, grpo.teaches(rollouts), loss_norm="sum", **SIZES):
        logp, _ = grpo.token_logp(policy, batch, 1.0)
        batch.old_logp = logp.detach()
        Pop(config=CONFIG).loss(logp, batch)[0].backward()
    got = [p.grad.clone() for p in policy.parameters()]

    def margin(p: int, g: int) -> Tensor:
        of = PROMPTS[p], completions[p][g].ids
        with torch.no_grad():
            before = whole_logp(reference, *of)
        return whole_logp(policy, *of) - before

    losses = [-F.logsigmoid(beta * (margin(p, best) - margin(p, worst))) for p, best, worst in pairs]
    truth = torch.autograd.grad(torch.stack(losses).mean(), list(policy.parameters()))
    for a, b in zip(got, truth, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert (rollouts.logp - rollouts.ref_logp).abs().max() > 0.1, "else every margin would be 0"


def test_a_whole_completion_has_the_sum_of_its_tokens(tiny: Path) -> None:
    """However the step is cut into batches; other processes' questions have 0."""
    decoder = model.load(tiny, torch.float32, "cpu")
    completions = sampled(decoder)
    rollouts = Rollouts([], [[prompt] * 3 for prompt in PROMPTS], completions, [])
    with torch.no_grad():
        wanted = torch.stack(
            [whole_logp(decoder, PROMPTS[p], completions[p][g].ids) for p in range(3) for g in range(3)]
        ).view(3, 3)
    for budget in (1, 30, 999):
        torch.testing.assert_close(sequences.logp(decoder, rollouts, tokens_per_batch=budget), wanted)
    own = sequences.logp(decoder, rollouts, tokens_per_batch=99, own=[2, 0])
    torch.testing.assert_close(own[[0, 2]], wanted[[0, 2]])
    assert not own[1].any()


def test_the_further_a_pair_is_apart_already_the_less_it_weighs() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.5]] * 2)
    logp = torch.tensor([[0.0, 0.0, 0.0], [-10.0, -30.0, 0.0]])
    adv = Pop(config=CONFIG, beta=0.1).advantage(rolled(reward, logp=logp))
    for margin, row in zip((0.0, 2.0), adv, strict=True):
        weight = 0.1 / (1 + torch.tensor(margin).exp().item()) / 2
        assert row.tolist() == pytest.approx([weight, -weight, 0.0])


def test_groups_that_make_no_pair_teach_nothing() -> None:
    """A spread below 1e-3, lengths that differ by more than 100 words, one answer with a reward, or none."""
    reward = torch.tensor([[0.5, 0.501, 0.5], [1.0, 0.0, 0.5], [1.0, NAN, NAN], [NAN] * 3, [NAN, 0.2, 0.1]])
    short, long = "a", "a " * 102
    responses = [[short] * 3, [short, long, short], *([[short] * 3] * 3)]
    adv = Pop(config=CONFIG).advantage(rolled(reward, responses))
    assert not adv[:4].any() and adv[4].tolist() == pytest.approx([0.0, 0.005, -0.005])
    near = [*responses[:1], [short, "a " * 101, short], *responses[2:]]
    assert Pop(config=CONFIG).advantage(rolled(reward, near))[1].any()


def test_a_run_records_what_its_advantages_are_made_of(
    tiny: Path, questions: Path, tmp_path: Path, command: Command
) -> None:
    line = f"--policy {tiny} --data {questions} --judge keyword --steps 2 --prompts-per-step 2 --group-size 4"
    line += f" --max-new-tokens 12 --lr 1e-2 --eval-every 2 --loss-norm sum --out {tmp_path / 'run'}"
    done = command("train.py", *line.split(), "--recipe", "pop", "--recipe.beta", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(x) for x in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    for start in range(0, 16, 8):
        groups = [rows[start : start + 4], rows[start + 4 : start + 8]]
        first = start == 0
        assert all((row["logp"] == row["ref_logp"]) == first for group in groups for row in group)
        numbers = {
            name: torch.tensor([[row[name] for row in group] for group in groups])
            for name in ("reward", "logp", "ref_logp")
        }
        adv = Pop(config=CONFIG, beta=1.0).advantage(rolled(**numbers))
        assert [row["advantage"] for row in sum(groups, [])] == pytest.approx(adv.flatten().tolist())
        assert adv.any()
    for row in rows[:8]:
        assert row["logp"] == pytest.approx(sum(row["sampler_logp"]), abs=1e-3)
    scores = [json.loads(x) for x in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert all("logp" in row for row in scores)


@pytest.mark.parametrize(
    "setting",
    [
        {"loss_norm": "sequence"},
        {"inner_epochs": 2},
        {"beta": 0.1},
        {"mismatch_cap": 2.0},
        {"train_rollouts": 2},
        {"cut_answers": "mask"},
    ],
)
def test_it_refuses_settings_under_which_the_loss_is_not_dpos(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="pop needs --loss-norm sum and --inner-epochs 1"):
        Pop(config=replace(CONFIG, **setting)).load(notes=Counter())


def test_a_plan_counts_the_weights_that_it_compares_with() -> None:
    assert memory.copied(replace(CONFIG, recipe="pop"))
    assert not memory.copied(CONFIG) and not memory.copied(replace(CONFIG, recipe="gdpo"))


def problem(**changes: object) -> dict[str, object]:
    items = [{"criterion": f"Says {n}.", "points": n} for n in range(1, 5)]
    return {"problem": "How many?", "answer": "Four.", "criteria": items} | changes


def test_chunks_of_text_become_problems_and_a_writers_failures_are_counted(
    server: Server, tmp_path: Path
) -> None:
    replies = {"one": problem(), "two": problem(criteria=[]), "three": problem(problem=" ")}
    replies |= {"four": problem(problem="Why?")}
    server.reply = lambda path, body: json.dumps(
        next(reply for word, reply in replies.items() if f"\n{word}" in user(body))
    )
    (tmp_path / "texts.txt").write_text("one\ntext\n\ntwo\n\n\n\nthree\n\nfour\n")
    own = Pop(tmp_path / "texts.txt", "chat:w", config=CONFIG)
    assert own.judge(Reader()).judges[1] is own._writer, "so that its costs are counted"
    notes: Counter[str] = Counter()
    first, last = own.load(notes=notes)
    assert notes == {"texts of which no problem was made": 2}
    assert (first.id, first.split, last.id, last.split) == ("text-0", "train", "text-3", "held_out")
    assert first.question == "How many?" and first.reference == "Four."
    assert [c.weight for c in first.rubric.criteria] == [1.0, 2.0, 3.0, 4.0]
    (tmp_path / "texts.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="texts.txt: expected text in UTF-8, got byte 0xe9 at position 3"):
        own.load(notes=notes)
    assert first.rubric.criteria[3].description == "Says 4."
