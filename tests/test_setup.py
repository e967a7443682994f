"""What is decided and refused before the first step, piece by piece, on stand-ins."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_train import options, records

import train
from rar_mini import checkpoint, data, policy, setup, talk
from rar_mini.checkpoint import Run
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.rubric import Design


def weighing(example: Example, *weights: float) -> Example:
    """With items of these weights."""
    (item, *_) = example.rubric.criteria
    items = tuple(dataclasses.replace(item, weight=weight) for weight in weights)
    return dataclasses.replace(example, rubric=dataclasses.replace(example.rubric, criteria=items))


class Asked:
    """A judge that notes what it is to check."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    def check(self, examples: list[Example]) -> None:
        self.checked = [example.id for example in examples]

    def digest(self, example: Example, response: str) -> str:
        return example.id


def reading(monkeypatch: pytest.MonkeyPatch, examples: list[Example], **settings: Any) -> Any:
    """A training whose questions are about to be read; `shown` is what is measured of each."""
    config = Config(**{"prompts_per_step": 1} | settings)
    loads = SimpleNamespace(load=lambda **how: examples)
    t = SimpleNamespace(config=config, recipe=loads, actor=None, shown={})
    t.judge, t.gold = Asked(), {"gold": Asked()}

    def too_long(actor: Any, example: Example, *limits: int, messages: Any, answered: bool) -> str | None:
        t.shown[example.id] = (messages, answered, limits)
        return None

    monkeypatch.setattr(policy, "too_long", too_long)
    monkeypatch.setattr(setup, "_longest", lambda t, example: f"the longest of {example.id}")
    return t


def test_questions_are_checked_by_whom_they_are_judged(
    monkeypatch: pytest.MonkeyPatch, questions: Path
) -> None:
    """Monitors score held-out answers alone: what they cannot judge of the others is no reason to stop."""
    rows = data.read(questions)
    rows[1] = dataclasses.replace(rows[1], split="test")
    t = reading(monkeypatch, rows, max_prompt_tokens=50, max_new_tokens=9)
    splits = setup.read_questions(t)
    assert {split: [e.id for e in of] for split, of in splits.items()} == {
        "train": ["q0", "q2", "q3", "q4"],
        "held_out": ["q5", "q6"],
    }
    assert t.judge.checked == ["q0", "q2", "q3", "q4", "q5", "q6"] and t.gold["gold"].checked == ["q5", "q6"]
    assert t.shown["q5"] == ("the longest of q5", False, (50, 9))


def test_of_supervised_questions_the_answers_are_measured_that_are_trained(
    monkeypatch: pytest.MonkeyPatch, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A held-out question may have no reference answer."""
    rows = [dataclasses.replace(e, reference="") if e.id in ("q1", "q5") else e for e in data.read(questions)]
    t = reading(monkeypatch, rows, method="sft")
    splits = setup.read_questions(t)
    assert [e.id for e in splits["train"]] == ["q0", "q2", "q3", "q4"] and len(splits["held_out"]) == 2
    assert {name: answered for name, (_, answered, _) in t.shown.items()} == {
        **dict.fromkeys(["q0", "q2", "q3", "q4"], True),
        **dict.fromkeys(["q5", "q6"], False),
    }
    assert "training questions left out without a reference answer: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "changes", "refused"),
    [
        ((1.0, -0.5), {}, True),
        ((-1.0,), {}, True),
        ((1.0, 0.0), {}, False),  # 0 is not below 0
        ((1.0, -0.5), {"cut_answers": "mask"}, False),
        ((1.0, -0.5), {"cut_answers": "train"}, False),
        ((1.0, -0.5), {"method": "rar-implicit"}, False),  # a rating of the whole
        ((1.0, -0.5), {"method": "rar-implicit", "cut_answers": "train"}, False),
    ],
)
def test_a_cut_answer_cannot_earn_0_where_others_earn_less(
    monkeypatch: pytest.MonkeyPatch,
    examples: list[Example],
    weights: tuple[float, ...],
    changes: dict[str, str],
    refused: bool,
) -> None:
    rows = [examples[0], weighing(examples[1], *weights)]
    t = reading(monkeypatch, rows, **{"method": "rar-explicit", "cut_answers": "penalise"} | changes)
    if refused:
        with pytest.raises(ValueError, match="signed points go below 0"):
            setup.read_questions(t)
    else:
        assert len(setup.read_questions(t)["train"]) == 2


@pytest.mark.parametrize(
    ("settings", "answers", "cut"),
    [
        ({}, "short", "penalise"),
        ({"domain": data.CHECKED}, "full", "penalise"),  # these questions say themselves what they want
        ({"design": Design(pitfalls="signed")}, "short", "train"),
        ({"recipe": "examples/gated"}, "short", "train"),  # its rewards may be anything
        ({"recipe": "examples/gated", "design": Design(pitfalls="signed")}, "short", "train"),
        ({"recipe": "examples/own_data --path x.csv"}, "full", "train"),
        ({"data": "x.jsonl"}, "full", "train"),
        ({"method": "sft"}, "full", "train"),
    ],
)
def test_what_auto_means(settings: dict[str, Any], answers: str, cut: str) -> None:
    assert setup._auto(Config(**settings)) == {"answers": answers, "cut_answers": cut}
    assert setup._auto(Config(**settings, answers="full", cut_answers="mask")) == {}


def test_attention_without_a_backward_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="--attention flex has no backward pass on cpu"):
        setup.settle(Config(attention="flex", device="cpu", judge="keyword"))


@pytest.mark.parametrize(
    ("resume", "changes", "read"),
    [
        (None, {}, True),
        (Path("step-3"), {}, False),  # nothing of the base is read again
        (Path("step-3"), {"lora_rank": 2}, True),
        (Path("step-3"), {"beta": 0.1}, True),
        (Path("step-3"), {"recipe": "needs it"}, True),
    ],
)
def test_damage_is_looked_for_where_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, resume: Path | None, changes: dict[str, Any], read: bool
) -> None:
    looked, made = [], SimpleNamespace(judge=lambda judge: f"{judge}, wrapped")
    actor = SimpleNamespace(model=SimpleNamespace(parameters=lambda: "parameters"))
    monkeypatch.setattr(setup, "AdamW", lambda params, lr, **how: {"params": params, "lr": lr} | how)
    monkeypatch.setattr(setup.recipe, "make", lambda spec, config: made)
    monkeypatch.setattr(setup.recipe, "compared", lambda own: "recipe" in changes)
    monkeypatch.setattr(checkpoint, "refuse_damaged", looked.append)
    monkeypatch.setattr(policy, "prepare", lambda *words: (actor, None))
    monkeypatch.setattr(talk, "refuse", lambda *words: None)
    config = Config(policy="the base", seed=7, lr=0.5, weight_decay=0.25, **changes)
    t = setup.bare(config, "a judge", resume)
    assert looked == ["the base"] * read and t.judge == "a judge, wrapped"
    assert t.optimizer == {"params": "parameters", "lr": 0.5, "weight_decay": 0.25, "seed": 7}
    assert (t.first, t.planned, t.failed.maxlen) == (1, 0, 5)


@pytest.mark.parametrize(("run", "said"), [(None, "tracker"), ("a run", "settled")])
def test_a_tracker_is_missed_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, run: str | None, said: str
) -> None:
    """By a new run: one that goes on without it has its numbers in metrics.jsonl."""

    def ends(word: str) -> None:
        raise RuntimeError(word)

    monkeypatch.setattr(setup, "refuse_absent", lambda track: ends("tracker"))
    monkeypatch.setattr(setup, "settle", lambda config: ends("settled"))
    with pytest.raises(RuntimeError, match=said):
        setup.prepare(Config(track="trackio"), None, run, None)


def test_a_run_keeps_how_many_steps_it_was_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = setup.create(Config(out=tmp_path / "run", steps=7), {"fact": 1})
    assert (run.written["planned_steps"], run.written["fact"]) == (7, 1)
    assert run.written["settings"]["steps"] == 7 and isinstance(run, Run)


def test_a_run_may_have_one_question(monkeypatch: pytest.MonkeyPatch, examples: list[Example]) -> None:
    assert setup.read_questions(reading(monkeypatch, examples[:1]))["train"] == examples[:1]


def test_the_longest_conversation_is_of_a_score_or_of_step_1(examples: list[Example]) -> None:
    shown = []

    class Shows(Recipe):
        def messages(self, example: Example, step: int | None, g: int) -> list[dict[str, str]]:
            shown.append((step, g))
            return [{"role": "user", "content": "x" * (10 if (step, g) == (1, 2) else g)}]

    config = Config(group_size=3)
    t = SimpleNamespace(config=config, recipe=Shows(config=config))
    assert len(setup._longest(t, examples[0])[0]["content"]) == 10
    assert shown == [(None, 0), (1, 0), (1, 1), (1, 2)]
    shown.clear()
    t.config = dataclasses.replace(config, method="sft")
    setup._longest(t, examples[0])
    assert shown == [(None, 0)], "what is taught has one answer a question"


@pytest.mark.parametrize("first", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [0, 1, 2, 3, 4])
def test_answers_of_scores_are_those_that_are_left(
    monkeypatch: pytest.MonkeyPatch, every: int, first: int
) -> None:
    monkeypatch.setattr(setup.scale, "answers", lambda scored: {"ideal": ([], ["a"] * 7), "none": ([], [])})
    config = Config(steps=5, eval_every=every, eval_samples=3)
    t = SimpleNamespace(config=config, first=first, scored={"train": [1, 2], "held_out": [3, 4, 5]})
    due = [n for n in range(first, 6) if every and (n == 5 or n % every == 0)]
    begin = every and first == 1
    assert setup.answers_of_scores(t) == (len(due) + bool(begin)) * 5 * 3 + 7 * bool(begin)


class Asks(int):
    """A question that takes so many calls an answer."""

    rubric = id = None


class Priced:
    """A judge that notes what an estimate is asked of."""

    spec = "chat:m"

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def estimate(self, examples: list[int], answers: int, tokens: int) -> str:
        self.asked.append((len(examples), answers, tokens))
        return f"${answers}"

    def calls(self, example: int) -> int:
        return example


@pytest.mark.parametrize("method", ["rar-explicit", "rar-implicit", "sft"])
def test_what_a_run_will_cost_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    told = []
    monkeypatch.setattr(setup, "answers_of_scores", lambda t: 21)
    monkeypatch.setattr(setup, "directions", lambda rubrics: "as the rubric has them")
    monkeypatch.setattr(setup.report, "opening", lambda *facts: told.append(facts) or [])
    monkeypatch.setattr(setup.report, "saving", lambda *facts: told.append(facts) or "")
    monkeypatch.setattr(checkpoint, "size", lambda *words: (1, 2))
    monkeypatch.setattr(Design, "apply", lambda *words: None)
    sizes = {"steps": 5, "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 8}
    config = Config(method=method, save_every=2, keep=4, **sizes)
    actor = SimpleNamespace(trained=lambda: "", named=lambda ends: [], ends=())
    t = SimpleNamespace(config=config, first=2, judge=Priced(), gold={"gold": Priced()}, actor=actor)
    t.run, t.optimizer = SimpleNamespace(folder="runs/x"), None
    train, held_out = [Asks(n) for n in (1, 2, 3, 4, 6, 8)], [Asks(n) for n in (5, 7, 9)]
    t.questions = {"train": train, "held_out": held_out}
    t.scored = {"train": [train[0], train[2]], "held_out": held_out}
    setup.announce(t, "why")
    judged = method != "sft"
    answers = 4 * 2 * 3
    assert t.judge.asked == [(2, answers * judged, 8), (5, 21, 8)]
    assert t.gold["gold"].asked == [(3, 12, 8)], "its share: 21 answers to five questions, of which three"
    saving, opening = told
    assert saving == (2, 4, 1, 2)
    assert opening == (config, {"train": 6, "held_out": 3}, answers, 4 * judged, 105, "runs/x")
    said = capsys.readouterr().out
    assert "gold     chat:m scores held-out answers; $12" in said
    assert ("pitfalls as the rubric has them" in said) == (method in setup.OWN)
    told.clear()
    t.config = dataclasses.replace(config, save_every=0)
    setup.announce(t, "why")
    assert len(told) == 1, "nothing is said of checkpoints that are not written"


def reopened(
    monkeypatch: pytest.MonkeyPatch, words: list[str], done: int, written: dict[str, Any]
) -> tuple[Config, Any]:
    run = SimpleNamespace(folder=Path("runs/x"), settings=lambda: Config(steps=4), written=written)
    run.start = lambda step: (Path(f"step-{done}"), done)
    monkeypatch.setattr(Run, "reopen", lambda folder: run)
    monkeypatch.setattr(checkpoint, "hold", lambda folder: None)
    monkeypatch.setattr(checkpoint, "differences", lambda written: [])
    monkeypatch.setattr(setup.interrupt, "run", None)
    config, *_ = setup.reopen(["--resume", "runs/x", *words])
    return config, run


def test_a_run_goes_on_to_its_steps_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps, planned in ((4, 4), (9, 4)):
        config, run = reopened(monkeypatch, ["--steps", str(steps)], 2, {})
        assert config.steps == steps and run.written["planned_steps"] == planned, "the warm-up stays"
    config, run = reopened(monkeypatch, ["--steps", "9"], 2, {"planned_steps": 3})
    assert run.written["planned_steps"] == 3
    with pytest.raises(ValueError, match="--steps 3: expected the run's 4 or more"):
        reopened(monkeypatch, ["--steps", "3"], 2, {})
    for words in ([], ["--steps", "4"]):
        with pytest.raises(ValueError, match="is finished after 4 steps"):
            reopened(monkeypatch, words, 4, {})
    assert reopened(monkeypatch, [], 3, {})[0].steps == 4


def test_a_run_that_goes_on_does_not_warm_up_again(tiny: Path, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main(options(tiny, questions, run, steps=2, warmup=1.0, eval_every=0))
    train.main(["--resume", str(run), "--steps", "4"])
    assert [row["learning_rate"] for row in records(run)] == [5e-4, 1e-3, 1e-3, 1e-3]
