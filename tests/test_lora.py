"""Adapters: against the dense model that they amount to, against PEFT, in runs that stop and go on, and that
nothing else moves."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import numbers, options, records
from tiny import question, rolled, write_rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import train
from rar_mini import checkpoint, data, grpo, lora, model, onednn, policy, pretrained
from rar_mini.config import TARGETS, Config
from rar_mini.evaluation.answers import Answering, Sampled
from rar_mini.model import Attend, Decoder, Visitor, reference_attention
from rar_mini.options import to_json
from rar_mini.sampler import Request, Settings, sample, uniforms
from rar_mini.tools import memory

IDS = [1, 40, 258, 7, 7, 100, 3, 0]


def hidden(decoder: Decoder, ids: list[int] = IDS) -> Tensor:
    """(T, D)."""
    return decoder(torch.tensor(ids), torch.arange(len(ids)), reference_attention)


def adapted(tiny: Path, dtype: torch.dtype = torch.float32, targets: tuple[str, ...] = TARGETS) -> Decoder:
    """With adapters that have learnt something, at random."""
    decoder = model.load(tiny, dtype, "cpu")
    lora.adapt(decoder, 3, 12.0, targets, 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in decoder.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.uniform_(-0.3, 0.3, generator=generator)
    return decoder


def logp_of(decoder: Decoder, batch: grpo.MicroBatch) -> Tensor:
    return grpo.token_logp(decoder, batch, 1.0)[0]


@pytest.fixture
def batch(tiny: Path) -> Callable[[Decoder], grpo.MicroBatch]:
    """What a decoder samples of two prompts, as a batch of training."""

    def drawn(decoder: Decoder) -> grpo.MicroBatch:
        prompts = [[5, 6, 7], [9] * 8]
        streams = [[uniforms(0, 1, str(p), g, 12) for g in range(3)] for p in range(2)]
        requests = [Request(ids, draws) for ids, draws in zip(prompts, streams, strict=True)]
        completions = sample(decoder, requests, frozenset({258}), Settings(12))
        ones = torch.ones(2, 3)
        sizes = {"loss_norm": "token", "max_new_tokens": 12, "tokens_per_batch": 1000}
        (found,) = grpo.micro_batches(rolled(prompts, completions, ones), ones > 0, **sizes)
        return found

    return drawn


# --- the maths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj",), ("v_proj", "down_proj"), ("o_proj", "up_proj")])
def test_adapters_are_the_dense_model_of_their_merged_weights(tiny: Path, targets: tuple[str, ...]) -> None:
    """In float64, forward and backward: A has the gradient (alpha / r) B^T dW, B has (alpha / r) dW A^T."""
    decoder = adapted(tiny, torch.float64, targets)
    dense = model.load(tiny, torch.float64, "cpu")
    for name, weight in lora.merged(decoder).items():
        dense.get_parameter(name).data.copy_(weight)
    ours, truth = hidden(decoder), hidden(dense)
    assert (ours - hidden(lora.base(decoder))).abs().max() > 1e-2
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    for x in (ours, truth):
        (x * torch.arange(32)).sum().backward()
    layers = {n: m for n, m in decoder.named_modules() if isinstance(m, lora.Adapted)}
    assert {name.split(".")[-1] for name in layers} == set(targets) and len(layers) == 2 * len(targets)
    for name, layer in layers.items():
        slope = dense.get_parameter(f"{name}.weight").grad * 12 / 3
        torch.testing.assert_close(layer.lora_A.grad, layer.lora_B.T @ slope, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.lora_B.grad, slope @ layer.lora_A.T, rtol=1e-10, atol=1e-10)
    with_gradient = {n for n, p in decoder.named_parameters() if p.grad is not None}
    assert with_gradient == {f"{name}.lora_{side}" for name in layers for side in "AB"}


def test_a_run_begins_at_its_base_and_a_is_drawn_by_the_seed(tiny: Path) -> None:
    """Uniform within the root of 1 / I, as PEFT's kaiming_uniform_ with a = sqrt(5); B is zero."""
    plain, drawn = model.load(tiny, torch.float32, "cpu"), []
    for seed in (0, 0, 1):
        decoder = model.load(tiny, torch.float32, "cpu")
        lora.adapt(decoder, 64, 32.0, TARGETS, seed)
        assert torch.equal(hidden(decoder), hidden(plain))
        drawn.append(decoder.model["layers"][1].mlp.down_proj.lora_A.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert 0.99 / 8 < drawn[0].abs().max() <= 1 / 8  # I is 64
    assert drawn[0].var().item() == pytest.approx(1 / 64 / 3, rel=0.05)


def test_the_reference_is_the_base_exactly_over_the_same_tensors(tiny: Path) -> None:
    """`load_state_dict(assign=True)` gives a parameter that it is handed the requires_grad of its own: the
    frozen weights of the policy would thaw."""
    decoder = adapted(tiny)
    reference = lora.base(decoder)
    own = dict(decoder.named_parameters())
    for name, parameter in reference.named_parameters():
        assert parameter.data_ptr() == own[name].data_ptr()
        assert not parameter.requires_grad and not own[name].requires_grad
    assert torch.equal(hidden(reference), hidden(model.load(tiny, torch.float32, "cpu")))


def test_activations_that_are_computed_again_change_no_gradient(tiny: Path) -> None:
    """The first layer's input has no gradient: a reentrant checkpoint would have lost all of its own."""
    gradients = []
    for layers in (0, 1, 2):
        decoder = adapted(tiny)
        decoder.checkpointed = layers
        (hidden(decoder) * torch.arange(32)).sum().backward()  # a norm's sum of squares is a constant
        gradients.append({n: p.grad for n, p in decoder.named_parameters() if p.requires_grad})
    plain, *others = gradients
    assert len(plain) == 28 and all(plain[name].any() for name in plain)
    for again in others:
        assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)


class Shapes(TorchDispatchMode):
    """The shapes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        made = out if isinstance(out, tuple) else [out]
        self.seen |= {tuple(x.shape) for x in made if torch.is_tensor(x)}
        return out


def test_a_frozen_head_has_no_gradient_computed(
    tiny: Path, batch: Callable[[Decoder], grpo.MicroBatch]
) -> None:
    """(V, D) is the largest gradient of a small model; autograd would make it and throw it away."""
    for decoder, expected in ((model.load(tiny, torch.float32, "cpu"), True), (adapted(tiny), False)):
        loss = logp_of(decoder, batch(decoder)).sum()
        with Shapes() as shapes:
            loss.backward()
        assert ((259, 32) in shapes.seen) == expected


@pytest.mark.parametrize("blocks", [True, False])
def test_sampler_and_trainer_agree(
    tiny: Path,
    batch: Callable[[Decoder], grpo.MicroBatch],
    monkeypatch: pytest.MonkeyPatch,
    blocks: bool,
) -> None:
    """By oneDNN over merged copies, and as on a GPU by adapters beside the weights."""
    if not blocks:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    decoder = adapted(tiny)
    with onednn.blocked(decoder):
        assert ("forward" in vars(decoder.model["layers"][0].mlp)) == blocks
    drawn = batch(decoder)
    assert (logp_of(decoder, drawn) - drawn.sampler_logp).abs().max() < 1e-4
    assert (logp_of(lora.base(decoder), drawn) - drawn.sampler_logp).abs().max() > 0.1


def test_a_reference_on_the_cpu_computes_the_same(
    tiny: Path, batch: Callable[[Decoder], grpo.MicroBatch]
) -> None:
    """Here its layers visit a device where they are already; tests/test_memory_traced.py sends them
    to another."""
    plain, visitor = (model.load(tiny, torch.float32, "cpu") for _ in range(2))
    drawn = batch(plain)
    visitor.visit()
    assert torch.equal(logp_of(plain, drawn), logp_of(visitor, drawn))
    assert not any(p.requires_grad for p in visitor.parameters())


def inputs_of(lengths: Sequence[int]) -> list[tuple[Tensor, Tensor, Attend]]:
    return [(torch.tensor(IDS[:n]), torch.arange(n), reference_attention) for n in lengths]


@pytest.mark.parametrize(("waiting", "times"), [(10**6, 1), (3000, 2), (0, 3)])
def test_a_layer_of_a_reference_on_the_cpu_comes_once_for_all_that_may_wait(
    waiting: int, times: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of 8, 3 and 5 tokens, of which 3,000 bytes are nine: two groups. One alone may be larger."""
    monkeypatch.setattr(model, "WAITING", waiting)
    plain, visitor = (model.load(tiny, torch.float32, "cpu") for _ in range(2))
    visitor.visit()
    came, copy, inputs = [], Visitor._copy, inputs_of((8, 3, 5))
    monkeypatch.setattr(Visitor, "_copy", lambda self, device: came.append(self) or copy(self, device))
    for one, found in zip(inputs, visitor.each(inputs), strict=True):
        assert torch.equal(found, plain(*one))
    assert came == [*visitor.model["layers"], visitor.model["norm"]] * times
    assert all(part.there is None for part in came), "and goes"
    assert list(visitor.each([])) == list(grpo.logp_of_each(visitor, [], 1.0)) == []


def test_a_model_that_is_there_reads_a_batch_when_it_is_asked_for(tiny: Path) -> None:
    read, decoder = [], model.load(tiny, torch.float32, "cpu")

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        read.append(len(q))
        return reference_attention(layer, q, k, v)

    first = next(decoder.each([(ids, positions, attend) for ids, positions, _ in inputs_of((8, 3))]))
    assert torch.equal(first, hidden(decoder)) and set(read) == {8}


def test_a_pinned_reference_computes_the_same(
    tiny: Path, batch: Callable[[Decoder], grpo.MicroBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One piece of memory a layer, and in it every weight aligned."""
    empty, pinned = torch.empty, []
    plain, visitor = (model.load(tiny, torch.float32, "cpu") for _ in range(2))
    drawn = batch(plain)
    visitor.visit()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *n, pin_memory, **o: pinned.append(empty(*n, **o)) or pinned[-1])
        visitor.pin()
    assert len(pinned) == len(visitor.model["layers"]) + 2
    places = {piece.untyped_storage().data_ptr() for piece in pinned}
    embedding = visitor.model["embed_tokens"].weight
    for weight in visitor.parameters():
        assert weight.data_ptr() % 64 == 0
        assert weight is embedding or weight.untyped_storage().data_ptr() in places
    assert torch.equal(logp_of(plain, drawn), logp_of(visitor, drawn))


def test_a_reference_without_pinned_memory_says_so_and_goes_on(
    tiny: Path,
    batch: Callable[[Decoder], grpo.MicroBatch],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """As here, where there is no GPU to pin it for."""
    load = policy.load
    monkeypatch.setattr(policy, "load", lambda name, dtype, device: load(name, dtype, "cpu"))
    for device, said in (("cuda", 1), ("cpu", 0)):
        config = Config(policy=str(tiny), device=device, reference_device="cpu", beta=0.1, dtype="float32")
        actor, reference = policy.prepare(config)
        assert capsys.readouterr().out.count("could be pinned; the GPU waits for each copy: ") == said
        drawn = batch(actor.model)
        assert torch.equal(logp_of(actor.model, drawn), logp_of(reference.model, drawn))


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TARGETS, ("k_proj", "gate_proj")])
def test_peft_reads_what_is_written_and_says_the_same(
    tiny: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `test`: pip install -e '.[test]'")
    decoder = adapted(tiny, targets=targets)
    lora.save(decoder, tmp_path, str(tiny))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == str(tiny)
    logits = theirs(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(hidden(decoder) @ decoder.head.T, logits, rtol=1e-4, atol=1e-4)
    with theirs.disable_adapter():
        assert (theirs(torch.tensor([IDS])).logits[0] - logits).abs().max() > 0.1
    # And what peft writes is merged here.
    theirs.save_pretrained(tmp_path / "theirs")
    merged = model.load(tiny, torch.float32, "cpu")
    lora.merge(merged, tmp_path / "theirs")
    torch.testing.assert_close(hidden(merged), hidden(decoder), rtol=1e-4, atol=1e-5)


def test_adapters_of_another_kind_or_of_another_model_are_refused(tiny: Path, tmp_path: Path) -> None:
    lora.save(adapted(tiny), tmp_path, str(tiny))
    said = json.loads((tmp_path / lora.CONFIG).read_text())
    plain = model.load(tiny, torch.float32, "cpu")
    before = hidden(plain)
    for change, word in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "VERA"}, "peft_type VERA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    ):
        (tmp_path / lora.CONFIG).write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=f"expected plain LoRA, got {word}; merge it with peft"):
            lora.merge(plain, tmp_path)
    (tmp_path / lora.CONFIG).write_text(json.dumps(said))
    weights = load_file(tmp_path / lora.WEIGHTS)
    one = next(name for name in weights if "lora_A" in name)
    for wrong, word in (
        (weights | {one.replace("layers.0", "layers.9"): weights[one].clone()}, "layers.9.* is unexpected"),
        ({name: x for name, x in weights.items() if name != one.replace("_A", "_B")}, "lora_B.* is missing"),
        (weights | {one: weights[one][:, :5].contiguous()}, "has shape"),
    ):
        save_file(wrong, tmp_path / lora.WEIGHTS)
        with pytest.raises(ValueError, match=word):
            lora.merge(plain, tmp_path)
        with pytest.raises(ValueError, match=word):
            lora.load(adapted(tiny), tmp_path)
    (tmp_path / lora.WEIGHTS).write_bytes(b"half")
    with pytest.raises(ValueError, match="adapter_model.safetensors is missing or damaged"):
        lora.merge(plain, tmp_path)
    assert torch.equal(hidden(plain), before), "refused before anything was added"


# --- runs ---------------------------------------------------------------------------------------------------


LORA = {"steps": 3, "lora_rank": 4, "lora_alpha": 8, "lr": 3e-2, "beta": 0.1}


@pytest.fixture(scope="module", params=["merged", "adapter"])
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with a KL penalty."""
    folder = tmp_path_factory.mktemp("run")
    rows = [question(i, split="train" if i < 5 else "held_out") for i in range(7)]
    path = write_rows(folder / "questions.jsonl", rows)
    train.main(options(tiny, path, folder / "run", lora_save=request.param, **LORA))
    return folder / "run"


def settings(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["settings"]


def folder_of_adapters(run: Path, step: int = 3) -> Path:
    folder = run / "checkpoints" / f"step-{step}"
    return folder / "adapter" if settings(run)["lora_save"] == "merged" else folder


def test_only_adapters_move_and_all_of_them(run: Path, tiny: Path) -> None:
    """A moves from the second step on: in the first, B is zero and so is the gradient of A."""
    base, saved = model.load(tiny, torch.float32, "cpu"), load_file(folder_of_adapters(run) / lora.WEIGHTS)
    fresh = model.load(tiny, torch.float32, "cpu")
    lora.adapt(fresh, 4, 8.0, TARGETS, 0)
    own = lora._adapters(fresh)
    assert saved.keys() == own.keys()
    assert not any(torch.equal(saved[name], own[name]) for name in own)
    moments = torch.load(run / "checkpoints" / "step-3" / "trainer" / "optimizer.pt", weights_only=True)
    assert len(moments["state"]) == len(own)
    whole = run / "checkpoints" / "step-3" / "model.safetensors"
    assert whole.exists() == (settings(run)["lora_save"] == "merged")
    if whole.exists():
        merged = load_file(whole)
        still = {name for name, p in base.named_parameters() if torch.equal(merged[name], p)}
        assert still == {name for name in merged if not any(target in name for target in TARGETS)}


def test_the_penalty_is_against_the_base(run: Path) -> None:
    """Exactly 0 where B is zero, and not afterwards; sampler and trainer agree all along."""
    first, *rest = records(run)[1:]
    assert first["kl"] == 0 and all(row["kl"] > 1e-4 for row in rest)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in (first, *rest))


def test_resuming_gives_the_numbers_of_an_unbroken_run(run: Path, tiny: Path, tmp_path: Path) -> None:
    """The base is the run's policy and the adapters are the checkpoint's: merged weights were rounded."""
    broken, questions = tmp_path / "run", run.parent / "questions.jsonl"
    changes = LORA | {"steps": 2, "warmup": 0.15, "lora_save": settings(run)["lora_save"]}
    train.main(options(tiny, questions, broken, **changes))
    train.main(["--resume", str(broken), "--steps", "3"])
    assert numbers(broken)[-1] == numbers(run)[-1]
    ours, truth = (load_file(folder_of_adapters(folder) / lora.WEIGHTS) for folder in (broken, run))
    assert all(torch.equal(ours[name], truth[name]) for name in truth)
    assert checkpoint.check(broken / "checkpoints" / "step-3") == 3


def test_bfloat16_resumes_exactly_too(tiny: Path, tmp_path: Path, questions: Path) -> None:
    changes = LORA | {"dtype": "bfloat16", "eval_every": 0}
    train.main(options(tiny, questions, tmp_path / "truth", **changes))
    broken = tmp_path / "run"
    train.main(options(tiny, questions, broken, **changes | {"steps": 2, "warmup": 0.15}))
    train.main(["--resume", str(broken), "--steps", "3"])
    folders = (broken, tmp_path / "truth")
    ours, truth = (load_file(folder_of_adapters(folder) / lora.WEIGHTS) for folder in folders)
    assert all(torch.equal(ours[name], truth[name]) and ours[name].dtype == torch.bfloat16 for name in truth)


def test_a_checkpoint_is_a_policy_for_everyone(run: Path, tiny: Path, tmp_path: Path) -> None:
    """For an evaluation, a judge or another run, and for transformers or peft: the same logits."""
    saved = run / "checkpoints" / "step-3"
    decoder = model.load(tiny, torch.float32, "cpu")
    lora.adapt(decoder, 4, 8.0, TARGETS, 7)
    lora.load(decoder, folder_of_adapters(run))
    truth = hidden(decoder) @ decoder.head.T
    for name in (str(saved), str(folder_of_adapters(run))):
        ours = policy.load(name, torch.float32, "cpu")
        torch.testing.assert_close(hidden(ours.model) @ ours.model.head.T, truth, rtol=1e-4, atol=1e-4)
        assert ours.ends == {256, 258} and ours.tokenizer.chat_template
        assert memory.read(name).parameters == memory.read(str(tiny)).parameters
    if settings(run)["lora_save"] == "merged":
        theirs = AutoModelForCausalLM.from_pretrained(saved)
        torch.testing.assert_close(theirs(torch.tensor([IDS])).logits[0], truth, rtol=1e-4, atol=1e-4)
    (example, *_) = data.read(run.parent / "questions.jsonl")
    told = []
    for name in (str(run), str(tiny)):
        asking = Answering(policy=name, max_new_tokens=16)
        answering = Sampled(asking.located()[0], asking)
        told.append(answering.answer(answering.fitting([example])))
    assert told[0] != told[1]
    again = tmp_path / "again"
    train.main(options(saved, run.parent / "questions.jsonl", again, steps=1, lora_rank=2, eval_every=0))
    assert json.loads((again / "checkpoints/step-1/adapter" / lora.CONFIG).read_text())[
        "base_model_name_or_path"
    ] == str(saved)


@pytest.mark.parametrize("adapted", [True, False])
def test_a_policy_of_the_hub_stays_the_one_that_was_fetched(
    adapted: bool, tiny: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's authors upload another one while a run stands still: its base and its reference do not
    change. Adapters name the commit where PEFT looks for it."""
    old, new = (tmp_path / "hub" / (commit * 40) for commit in "ab")
    shutil.copytree(tiny, old)
    shutil.copytree(tiny, new)
    weights = {name: x + 0.1 for name, x in load_file(new / "model.safetensors").items()}
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    newest = [old]

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        return str(old.parent / (revision or newest[0].name))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    changes = {"policy": "org/model", "beta": 0.1, "lora_rank": 4 if adapted else 0}
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=3, **changes))
    whole = numbers(run)
    newest[0] = new
    shutil.rmtree(run / "checkpoints" / "step-3")
    train.main(["--resume", str(run)])
    assert numbers(run) == whole
    assert settings(run)["policy"] == f"org/model@{old.name}"
    if adapted:
        saved = run / "checkpoints" / "step-3" / "adapter"
        written = json.loads((saved / "adapter_config.json").read_text())
        assert (written["base_model_name_or_path"], written["revision"]) == ("org/model", old.name)
        assert pretrained.base(saved) == f"org/model@{old.name}"


def test_adapters_without_their_base_say_so(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "base")
    lora.save(adapted(tiny), tmp_path / "adapter", str(tmp_path / "base"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match="adapter has the adapters of '.*base', and without it .*no model"):
        policy.load(str(tmp_path / "adapter"), torch.float32, "cpu")


def test_reference_answers_are_learnt_by_adapters(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [question(i, reference_answer=f"It is {i}") for i in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    changes = {"method": "sft", "lora_rank": 4, "lr": 3e-2, "steps": 8, "eval_every": 0, "save_every": 0}
    train.main(options(tiny, path, tmp_path / "run", **changes))
    losses = [row["loss"] for row in records(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]
    assert "adapters of 4,096 parameters beside 0M frozen ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lora-rank", "-1"], "--lora-rank -1: expected a number from 0"),
        (["--lora-rank", "4", "--lora-alpha", "0"], "--lora-alpha 0"),
        (["--lora-rank", "4", "--lora-targets", "lm_head"], "down_proj"),
        (["--lora-rank", "4", "--lora-targets"], "expected a projection or more"),
        (["--lora-save", "adapter"], "--lora-save needs --lora-rank > 0"),
        (["--lora-rank", "4", "--lora-save", "both"], "lora-save"),
        (["--lora-ranks", "4"], "did you mean --lora-rank?"),
        (["--reference-device", "disk"], "reference-device"),
    ],
)
def test_bad_options_are_refused(
    words: list[str],
    expected: str,
    tiny: Path,
    tmp_path: Path,
    questions: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises((ValueError, SystemExit)) as error:
        train.main([*options(tiny, questions, tmp_path / "run"), *words])
    captured = capsys.readouterr()
    assert expected in str(error.value) + captured.err + captured.out
    assert not (tmp_path / "run").exists()


def test_settings_come_back_from_a_file_as_they_were() -> None:
    """Targets came back as a list, which are not the default's tuple: no run without adapters resumed."""
    for config in (Config(), Config(lora_rank=4, lora_targets=("q_proj", "v_proj"))):
        written = json.loads(json.dumps({"settings": to_json(config)}))
        assert checkpoint.Run(Path(), written).settings() == config


def test_a_reference_on_the_cpu_is_the_same_run(tiny: Path, tmp_path: Path, questions: Path) -> None:
    for where in ("auto", "cpu"):
        changes = {"beta": 0.1, "reference_device": where, "eval_every": 0, "steps": 2}
        train.main(options(tiny, questions, tmp_path / where, **changes))
    assert numbers(tmp_path / "auto") == numbers(tmp_path / "cpu")
