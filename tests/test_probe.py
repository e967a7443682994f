"""A probe: a head on a frozen model's states reads no more than it needs, says the same in every process, and
belongs to one model and one set of prompts."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from safetensors.torch import load_file, save_file
from test_train import numbers, options
from tiny import question, write_rows
from transformers import AutoModelForCausalLM

import train
from judge import Judge
from rar_mini import data, setup
from rar_mini.evaluation import agreement
from rar_mini.judging import probe, probe_fit
from rar_mini.judging.asked import Asked
from rar_mini.judging.wires import worded
from rar_mini.model import Decoder
from rar_mini.prompts import JudgePrompts
from rar_mini.rubric import Criterion

pytestmark = pytest.mark.usefixtures("folder")

ITEMS = [
    {"title": "B", "description": "Essential Criteria: Mentions b.", "weight": 5},
    {"title": "C", "description": "Important Criteria: Mentions c.", "weight": 3},
    {"title": "No d", "description": "Pitfall Criteria: Mentions d.", "weight": -1},
]
ANSWERS = {"b c": [1, 1, 1], "b d": [1, 0, 0], "x": [0, 0, 1], "c d": [0, 1, 0]}


def row(i: int, split: str = "train") -> dict:
    said = [
        {"response": f"{text} {i}", "quality": "good" if all(labels) else "flawed", "labels": labels}
        for text, labels in ANSWERS.items()
    ]
    return question(i, question=f"{i}?", rubric=ITEMS, split=split, labelled_responses=said)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions to fit on and four held out."""
    rows = [row(i, "train" if i < 12 else "held_out") for i in range(16)]
    return write_rows(tmp_path_factory.mktemp("labels") / "labels.jsonl", rows)


@pytest.fixture(scope="module")
def once(labels: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MINI_CACHE", str(folder))
        fit(labels, folder / "judge.safetensors", tiny)
    return folder / "judge.safetensors"


@pytest.fixture
def fitted(once: Path, tmp_path: Path) -> Path:
    """A probe of the first of two layers, in a file of the test's own."""
    return Path(shutil.copy(once, tmp_path))


def fit(labels: Path, out: Path, tiny: Path, **options: Any) -> None:
    probe.fit("fit", (str(labels),), out=out, model=str(tiny), layers=(1,), judge_device="cpu", **options)


def reading(kind: str, tiny: Path, layers: tuple[int, ...] = (1,), **texts: str) -> probe.Reading:
    return probe.READINGS[kind](str(tiny), layers, "cpu", JudgePrompts(**texts), b"")


def states_of(tiny: Path, ids: list[int], layer: int) -> torch.Tensor:
    """What transformers says: (T, D)."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].detach()


# --- what is read -------------------------------------------------------------------------------------------


def test_late_interaction_is_three_cosines_a_layer(tiny: Path, labels: Path) -> None:
    """Each sequence alone through transformers: the best cosine of each token of the criterion with one of
    the answer, the mean and the least of these, and the cosine of the means; then the same with the question
    in the answer's place."""
    example = data.read(labels)[0]
    late = reading("late", tiny)
    (x,) = late.numbers([Asked(example, "b c", example.rubric.criteria)])
    opening, n = late.loaded.encode(example), len(late.loaded.encode(example))
    answer, question, *items = (
        F.normalize(states_of(tiny, [*opening, *late.loaded.completion(text)], 1)[n:-1], dim=-1)
        for text in ("b c", example.question, "Mentions c.", "Mentions d.")
    )
    for k, item in ((1, items[0]), (2, items[1])):
        for i, other in enumerate((answer, question)):
            best = (item @ other.T).max(1).values
            means = F.cosine_similarity(item.mean(0), other.mean(0), dim=0)
            expected = torch.stack([best.mean(), best.min(), means])
            torch.testing.assert_close(x[k, 3 * i : 3 * i + 3], expected, atol=1e-5, rtol=1e-5)
    assert not x[:2, 6:].any() and torch.equal(x[2, 6:12], x[2, :6]) and x[2, 12] == 1


def test_the_whole_reading_takes_the_last_token_and_the_mean_of_a_criterion(tiny: Path, labels: Path) -> None:
    example = data.read(labels)[0]
    texts = {"system": "s", "shared": "{question}\n{response}\n", "met": "{criterion}", "yes_no": "?"}
    whole = reading("whole", tiny, **texts)
    asked = Asked(example, "b c", example.rubric.criteria[:2])
    (x,) = whole.numbers([asked])
    words = worded(asked, whole.texts, b"")
    for k, (prompt, item) in enumerate(zip(whole.prompts([words])[0], words.questions, strict=True)):
        states = states_of(tiny, whole.loaded.turns.prompt(prompt), 1)
        begin = len(whole.loaded.turns.prompt(prompt[: prompt.index(item)]))
        torch.testing.assert_close(x[k, :32], states[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x[k, 32:64], states[begin:].mean(0), atol=1e-5, rtol=1e-5)
    assert x[:, 64:].tolist() == [[0], [0]]


@pytest.mark.parametrize("kind", ["late", "whole"])
def test_no_layer_above_and_no_logits_are_computed(
    kind: str, tiny: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "head", property(lambda self: pytest.fail("the vocabulary's head")))
    read = reading(
        kind, tiny, system="s", shared="{question}\n{response}\n", met="{criterion}", avoided="a {criterion}"
    )
    assert len(read.loaded.model.model["layers"]) == 1
    monkeypatch.setattr(read.loaded.model.model["norm"], "forward", lambda *x: pytest.fail("the final norm"))
    example = data.read(labels)[0]
    (x,) = read.numbers([Asked(example, "b", example.rubric.criteria)])
    assert x.shape == (3, read.size)


def test_a_step_reads_its_answers_alone(tiny: Path, fitted: Path, labels: Path) -> None:
    """The criteria of a question, and itself in an answer's place, are read when it is first asked about."""
    asker, examples = Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu"), data.read(labels)[:1]

    def read(*answers: str) -> int:
        asker.score(examples, [list(answers)])
        new = asker.metrics()
        return new["perf/judge/tokens_in"] - new["perf/judge/tokens_cached"]

    opening = len(asker.backend.reading.loaded.encode(examples[0]))
    first, then = read("b", "c"), read("b", "c")
    assert then == opening + 2 * len("b" + "E")
    kept = [examples[0].question, *(f"Mentions {c}." for c in "bcd")]
    assert first - then == opening + sum(len(text + "E") for text in kept)


@pytest.mark.parametrize(
    ("category", "text", "opposed"),
    [
        ("essential", "Names aspirin.", False),
        ("essential", "Does not claim that it is safe.", True),
        ("pitfall", "Recommends aspirin.", True),
        ("pitfall", "Avoids recommending aspirin.", True),
        ("pitfall", "The response should not recommend aspirin.", True),
        ("pitfall", "Does not mention aspirin.", False),
        ("pitfall", "Should not omit aspirin.", False),
    ],
)
def test_a_head_says_whether_an_answer_says_it_and_the_item_whether_that_is_good(
    category: str, text: str, opposed: bool
) -> None:
    item = Criterion("t", text, category, 1.0)
    assert item.opposed == opposed
    if category == "pitfall":
        assert replace(item, as_worded=True).opposed == text.startswith(("Avoids", "The", "Does"))


# --- the same in every process ------------------------------------------------------------------------------


def test_what_was_read_before_changes_no_bit(
    tiny: Path, fitted: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run has read none of the criteria that the first process keeps."""
    examples = data.read(labels)[:3]
    answers = [["b c", "x", "d"]] * 3

    def asker() -> Judge:
        return Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")

    whole = asker().score(examples, answers).verdict
    late = asker()
    late.score(examples[::-1], answers)
    assert torch.equal(late.score(examples, answers).verdict, whole)
    assert torch.equal(asker().score(examples[2:], answers[2:]).verdict, whole[2:])
    monkeypatch.setattr(probe, "QUESTIONS", 1)
    forgetful = asker()
    assert torch.equal(forgetful.score(examples, answers).verdict, whole)
    assert forgetful.backend.reading.kept.cache_info().currsize == 1
    assert (asker().score(examples, [["x"]] * 3).verdict[:, 0] - whole[:, 1]).abs().max() < 1e-5


def test_an_answer_may_be_empty_or_too_long(tiny: Path, fitted: Path, labels: Path) -> None:
    """Silence has a verdict, like any answer; a failure has none, and takes no other with it."""
    asker = Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")
    verdict = asker.score(data.read(labels)[:1], [["", "b" * 600, "c"]]).verdict[0]
    assert ((0 < verdict[[0, 2]]) & (verdict[[0, 2]] < 1)).all() and verdict[1].isnan().all()
    assert asker.ledger.failures == {"too long": 1}
    assert "the longest answers cannot be judged: " in asker.estimate(data.read(labels)[:1], 1, 600)


def test_a_run_resumes_with_the_same_numbers(
    tiny: Path,
    fitted: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"judge": f"probe:{fitted.name}", "eval_every": 0}
    train.main(options(tiny, questions, tmp_path / "whole", **words))
    said = capsys.readouterr().out
    shown = r"judge    probe:\S+judge.safetensors \(as asked\); training: at most \S+ tokens through 1 of 2 "
    assert re.search(shown + r"layers, \S+ s", said)
    train.main(options(tiny, questions, tmp_path / "run", **words | {"steps": 2}))
    monkeypatch.chdir("/")
    train.main(["--resume", str(tmp_path / "run"), "--steps", "4"])
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    head = load_file(fitted)["weight"]
    probe.Head(probe.Head.read(str(fitted)).about, 2 * head).write(fitted)
    with pytest.raises(ValueError, match=r"another experiment.*the judge's prompts \(probe\)"):
        train.main(["--resume", str(tmp_path / "run"), "--steps", "5"])


def test_a_monitor_that_was_fitted_again_is_refused(
    tiny: Path, fitted: Path, questions: Path, tmp_path: Path
) -> None:
    """Its scores would be another judge's from there on. A run that has not kept its digest goes on."""
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=1, judge="keyword", gold_judge=f"probe:{fitted}"))
    before = json.loads((run / "config.json").read_text())
    head = load_file(fitted)["weight"]
    probe.Head(probe.Head.read(str(fitted)).about, 2 * head).write(fitted)
    with pytest.raises(ValueError, match=r"another experiment.*the judge's prompts \(gold/probe\)"):
        train.main(["--resume", str(run), "--steps", "2"])
    del before["judge_texts"]["gold/probe"]
    (run / "config.json").write_text(json.dumps(before))
    train.main(["--resume", str(run), "--steps", "2"])


# --- what is fitted -----------------------------------------------------------------------------------------


def table(x: np.ndarray, label: np.ndarray, questions: int = 8, sign: float = 1.0) -> probe_fit.Table:
    n = len(x)
    question = np.array([f"q{i % questions}" for i in range(n)])
    return probe_fit.Table(
        x,
        label,
        np.full(n, sign),
        np.ones(n),
        question,
        np.full(n, "train"),
        np.arange(n),
        *np.ones((2, n)),
        np.ones(n, bool),
    )


def test_a_head_is_the_least_of_a_balanced_loss() -> None:
    """Written again with autograd: soft labels, verdicts that are one less what the head says, and a penalty
    on the weights of standardised numbers alone. At the least, no gradient is left."""
    rng = np.random.default_rng(0)
    x, sign = 5 + 3 * rng.normal(size=(60, 4)), np.where(rng.random(60) < 0.3, -1.0, 1.0)
    label = rng.choice([0, 0.25, 1, 1, 1], size=60)
    t = replace(table(x, label), sign=sign)
    found = torch.tensor(probe_fit.logistic(t, 0.1)).requires_grad_()
    X, y = torch.tensor(x), torch.tensor(label)
    said = torch.sigmoid(X @ found[:-1] + found[-1])
    verdict = torch.where(torch.tensor(sign) > 0, said, 1 - said)
    met, unmet = -(y * verdict.log()).sum() / y.sum(), -((1 - y) * (1 - verdict).log()).sum() / (1 - y).sum()
    loss = (met + unmet) / 2 + 0.1 / 2 * (found[:-1] * X.std(0, correction=0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, found)
    assert (gradient / torch.cat([X.std(0), torch.ones(1)])).abs().max() < 1e-4
    np.testing.assert_allclose(probe_fit.verdicts(found.detach().numpy(), t), verdict.detach().numpy())


def test_no_question_has_a_say_in_its_own_verdict() -> None:
    """Numbers that name the question, labels that hang on it alone: known by heart, and not to be guessed."""
    names = np.arange(200) % 40
    t = table(np.eye(40)[names], (np.random.default_rng(0).random(40) < 0.5)[names].astype(float), 40)
    heart = probe_fit.verdicts(probe_fit.logistic(t, 1e-3), t)
    assert agreement.auc(heart, t.label) == 1
    p = probe_fit.crossed(t, 5, lambda other: probe_fit.logistic(other, probe_fit.chosen(other)))
    assert 0.3 < agreement.auc(p, t.label) < 0.6


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        ([0.1, 1.0], "0.1, the least of 2 that were tried: a weaker penalty may fit better"),
        ([1e-6, 0.1], "0.1, the greatest of 2 that were tried: a stronger penalty may fit better"),
        ([1e-6, 0.1, 100.0], "0.1"),
    ],
)
def test_a_strength_at_the_edge_of_those_tried_is_said(
    tried: list[float], words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best one may lie beyond."""
    monkeypatch.setattr(probe_fit, "STRENGTHS", np.array(tried))
    monkeypatch.setattr(probe_fit, "chosen", lambda t: 0.1)
    rng = np.random.default_rng(0)
    fitted, _ = probe_fit.fit(table(rng.normal(size=(40, 1)), np.arange(40) % 3 / 2), "all")
    assert fitted.strength == 0.1 and f"\nstrength  {words}\n" in capsys.readouterr().out


def test_pairs_and_spread_are_of_rewards_within_a_question() -> None:
    """Two questions of two answers with items of weight 3 and 1: .25 against .75, and one that ties."""
    weight, answer = np.tile([3.0, 1.0], 4), np.repeat([0, 1, 2, 3], 2)
    label = np.array([0, 1, 1, 0, 1, 1, 1, 1], float)
    t = replace(table(np.zeros((8, 1)), label), weight=weight, answer=answer)
    t = replace(t, question=np.array(["a"] * 4 + ["b"] * 4))
    verdict = np.array([0, 0, 1, 1, 0, 1, 0, 0])
    gaps, (given, true) = probe_fit.in_groups(t, verdict)
    assert gaps.tolist() == [1.0] and given == (0.5 + 0.125) / 2 and true == 0.25 / 2


def test_an_answer_that_lacks_a_verdict_has_no_reward() -> None:
    """The judge of a run failed on one of its items: what the others earn is not what it deserves."""
    label, answer = np.array([0, 1, 1, 1.0]), np.array([0, 1, 2, 2])
    whole = np.array([True, True, False, False])
    t = replace(table(np.zeros((4, 1)), label, questions=1), answer=answer, whole=whole)
    assert np.isnan(t.rewards(label)).tolist() == [False, False, True]
    gaps, (given, true) = probe_fit.in_groups(t, np.array([0.25, 0.75, 0, 0]))
    assert gaps.tolist() == [0.5] and (given, true) == (0.25, 0.5)


def test_labels_of_a_failed_verdict_or_of_weight_0_are_not_counted(tmp_path: Path) -> None:
    rubric = [ITEMS[0], ITEMS[1] | {"weight": 0}, ITEMS[2]]
    file = write_rows(tmp_path / "labels.jsonl", [row(0) | {"rubric": rubric}])
    first, *others = probe_fit.answers(str(file))
    items = [replace(first, labels=[float("nan"), *first.labels[1:]]), *others]
    assert probe_fit.described(items, "train")["verdicts"] == 2 * len(ANSWERS) - 1


def test_questions_of_two_files_without_ids_are_two(tmp_path: Path) -> None:
    items = []
    for number in range(2):
        without = {name: value for name, value in row(number).items() if name != "id"}
        items += probe_fit.answers(str(write_rows(tmp_path / f"{number}.jsonl", [without])))
    assert {item.example.id for item in items} == {"line-1"}
    t = probe_fit.Table.of(lambda asked: [torch.zeros(len(each.criteria), 1) for each in asked], items)
    assert len(set(t.question)) == probe_fit.described(items, "train")["questions"] == 2


def test_a_probe_learns_what_labels_say(
    fitted: Path, labels: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    """Lone letters, on questions that it was not fitted on; its verdicts are what its report is about."""
    about = probe.Head.read(str(fitted)).about
    scores = about.scores["held out"]
    assert about.strength in about.strengths == probe_fit.STRENGTHS.tolist()
    assert scores["auc"]["value"] > 0.9 and scores["pairs"]["value"] > 0.7
    assert about.labels[0].model_dump() | {"digest": ""} == {
        "name": str(labels),
        "digest": "",
        "verdicts": 12 * 12,
        "questions": 12,
    }
    held = [example for example in data.read(labels) if example.split == "held_out"]
    asker = Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")
    answers = [[f"{text} {example.id[1:]}" for text in ANSWERS] for example in held]
    verdict = asker.score(held, answers).verdict.numpy()
    label = np.array([list(ANSWERS.values())] * len(held))
    assert agreement.auc(verdict.flatten(), label.flatten()) == pytest.approx(scores["auc"]["value"])


def test_a_run_s_verdicts_are_labels(tiny: Path, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    never = {"eval_every": 0, "save_every": 0, "show_every": 0}
    train.main(options(tiny, questions, run, steps=3, prompts_per_step=5, **never))
    items = probe_fit.answers(str(run))
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [item.labels for item in items] == [[v["verdict"] for v in row["verdicts"]] for row in rows]
    out = tmp_path / "of_run.safetensors"
    fit(run, out, tiny)
    (source,) = probe.Head.read(str(out)).about.labels
    assert source.questions == 5 and source.verdicts == 3 * 5 * 4 * 15


# --- the file -----------------------------------------------------------------------------------------------


def test_a_file_is_small_and_the_same_for_the_same_labels(
    fitted: Path, labels: Path, tiny: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.safetensors"
    fit(labels, again, tiny)
    assert again.read_bytes() == fitted.read_bytes() and fitted.stat().st_size < 8192


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def rewritten(**changes: object) -> Callable[[Path], None]:
    """The file with other words about itself."""

    def change(path: Path) -> None:
        head = probe.Head.read(str(path))
        about = json.dumps(head.about.model_dump() | changes)
        save_file({"weight": head.weight.float()}, path, metadata={probe.NAME: about})

    return change


def reweighed(weight: torch.Tensor, **others: torch.Tensor) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        about = json.dumps(probe.Head.read(str(path)).about.model_dump())
        save_file({"weight": weight} | others, path, metadata={probe.NAME: about})

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (damaged(lambda b: b[:-8]), "is damaged or no probe"),
    "empty": (lambda path: path.write_bytes(b"") and None, "is damaged or no probe"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n") and None,
        "git lfs pull",
    ),
    "no metadata": (lambda path: save_file({"weight": torch.ones(3)}, path), "got one of other tensors"),
    "other tensors": (reweighed(torch.ones(3), more=torch.ones(1)), "got one of other tensors"),
    "a matrix": (reweighed(torch.ones(3, 3)), r"got a weight of shape \(3, 3\)"),
    "too short": (reweighed(torch.ones(5)), "expected 14 numbers for these layers, got 5"),
    "not finite": (reweighed(torch.full((20,), torch.nan)), "numbers that are not finite"),
    "a reading": (rewritten(reading="\x1b[2J"), r"field reading: expected 'late' or 'whole', got '\\x1b"),
    "layers": (rewritten(layers=[3]), "expected layers from 1 to 2"),
    "a model": (rewritten(model="no/\x1b[2J"), "no model"),
    "weights": (rewritten(weights="0" * 16), "with the weights 0000000000000000, and they are"),
    "a tokenizer": (rewritten(tokenizer="\x1b[2J"), r"the tokenizer and chat template \\x1b\[2J, and they"),
    "prompts": (rewritten(prompts="0" * 16), "with the prompts 0000000000000000, and they are"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_probe_is_refused_in_one_line(
    fault: str, fitted: Path, labels: Path, command: Command
) -> None:
    change, words = FAULTS[fault]
    change(fitted)
    rows = [json.loads(line) | {"response": "b"} for line in labels.read_text().splitlines()]
    answered = write_rows(fitted.parent / "answered.jsonl", rows)
    judged = command(
        "judge.py", "score", answered, "--judge", f"probe:{fitted}", "--out", fitted.parent / "out"
    )
    assert judged.returncode == 1
    last = judged.stderr.splitlines()[-1]
    assert last.startswith("judge.py: ") and re.search(words, last) and "\x1b" not in judged.stderr


def test_other_weights_are_refused_by_the_model_s_name(fitted: Path, tiny: Path, wide: Path) -> None:
    rewritten(model=str(wide))(fitted)
    with pytest.raises(ValueError, match=f"was fitted on '{wide}' with the weights"):
        Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")


def other_template(model: Path) -> None:
    file = model / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant", "model"))


def other_cuts(model: Path) -> None:
    file = model / "tokenizer.json"
    own = json.loads(file.read_text())
    own["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(own))


@pytest.mark.parametrize("change", [other_template, other_cuts])
def test_another_tokenizer_or_template_is_refused_with_the_same_weights(
    change: Callable[[Path], None], fitted: Path, tiny: Path, tmp_path: Path
) -> None:
    """Its numbers would be others. A file of before does not know its tokenizer, and is taken."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    rewritten(model=str(model))(fitted)
    Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")
    change(model)
    with pytest.raises(ValueError, match=f"on '{model}' with the tokenizer and chat template .*, and they"):
        Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")
    rewritten(tokenizer=None)(fitted)
    Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu")


def test_other_prompts_are_refused_where_they_are_read(
    fitted: Path, labels: Path, tiny: Path, terse: Path, tmp_path: Path
) -> None:
    """The whole reading has the judge's prompts around it, late interaction has none of them."""
    options = {"prompts": terse, "judge_device": "cpu"}
    Judge(f"probe:{fitted}", "rar-explicit", **options)
    out = tmp_path / "whole.safetensors"
    fit(labels, out, tiny, reading="whole", prompts=terse)
    Judge(f"probe:{out}", "rar-explicit", **options)
    terse.write_text(terse.read_text().replace("no {criterion}", "not {criterion}"))
    with pytest.raises(ValueError, match="with the prompts .*, and they are"):
        Judge(f"probe:{out}", "rar-explicit", **options)


def test_a_probe_serves_verdicts_only(fitted: Path) -> None:
    with pytest.raises(ValueError, match="expected rar-explicit, got rar-implicit"):
        Judge(f"probe:{fitted}", "rar-implicit")
    with pytest.raises(ValueError, match="no probe 'nowhere': expected a file of"):
        Judge("probe:nowhere", "rar-explicit")


def test_a_probe_refuses_choices_that_it_would_not_hear(fitted: Path, tmp_path: Path) -> None:
    graded = ITEMS[0] | {"choices": ["none", "in part", "in full"]}
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [question(0, rubric=[graded])]))
    with pytest.raises(ValueError, match=r"--judge probe says yes or no alone: item 1 of 'q0' \('B'\) has 3"):
        Judge(f"probe:{fitted}", "rar-explicit", judge_device="cpu").check(examples)
    Judge(f"probe:{fitted}", "rar-predefined", judge_device="cpu").check(examples)


def test_the_command_says_what_it_needs(labels: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    words = ("--model", tiny, "--out", tmp_path / "p", "--layers", 1, "--judge-device", "cpu")
    few = write_rows(tmp_path / "few.jsonl", [row(i, "held_out") for i in range(6)])
    said = command("rar_mini/judging/probe.py", "fit", few, *words).stderr.splitlines()[-1]
    assert "of 5 questions or more of the split train, got 0 labels on 0 questions" in said
    done = command("rar_mini/judging/probe.py", "fit", few, *words, "--split", "all")
    assert done.returncode == 0 and f"--judge probe:{tmp_path / 'p'}" in done.stdout


@pytest.mark.parametrize("name", ["medical", "science"])
def test_a_bundled_probe_is_of_the_bundled_labels(name: str) -> None:
    """Whoever mends a label fits the probe again: docs/judges.md has the command."""
    about = probe.Head.read(name).about
    (source,) = about.labels
    assert about.model == "smollm2-135m" and source.name == name
    assert source.model_dump() == {"name": name} | probe_fit.described(probe_fit.answers(name), "train")
    assert about.scores["held out"]["auc more"]["low"] > 0, "no better than words"


@pytest.mark.parametrize("name", ["medical", "science"])
def test_the_page_has_the_scores_of_the_bundled_probes(name: str) -> None:
    def shown(measure: str, by: str = "") -> str:
        value = scores[measure + by]
        span = f" [{value['low']:.2f}, {value['high']:.2f}]" if "low" in value else ""
        return f"{value['value']:.2f}{span}"

    page = Path("docs/judges.md").read_text(encoding="utf-8")
    scores = probe.Head.read(name).about.scores["held out"]
    measures = ("auc", "auc, flawed only", "balanced", "kappa")
    for who, by in ((f"probe:{name}", ""), ("keyword", " by keyword")):
        cells = " | ".join(shown(measure, by) for measure in measures)
        assert f"| {name} | `{who}` | {cells} |" in page
    assert shown("auc more") in page and f"| {shown('spread')} |\n" in page


def test_a_bundled_probes_name_is_no_file_of_the_working_folder(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training takes the same probe as judge.py does; ./medical is the file."""
    monkeypatch.chdir(tmp_path)
    fitted.rename("medical")
    assert setup._pinned("probe:medical") == "probe:medical"
    assert setup._pinned("probe:./medical") == f"probe:{tmp_path / 'medical'}"


@pytest.mark.slow
def test_a_bundled_probe_judges_with_the_default_model(default: Path) -> None:
    example = next(example for example in data.sample("medical") if example.split == "held_out")
    asker = Judge("probe:medical", "rar-explicit", judge_device="cpu")
    scores = asker.score([example], [[example.reference, "I do not know."]])
    asked = [k for k, item in enumerate(example.rubric.criteria) if item.category != "pitfall"]
    known, silent = scores.verdict[0][:, asked].mean(1).tolist()
    assert known > 0.8 and silent < 0.1
