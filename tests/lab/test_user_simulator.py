"""User simulators: scripts, models and rows in which the user speaks again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Server
from reading import asks
from talking import CONFIG, Speaker, Stand, training
from test_recipes import records, trained
from tiny import write_rows

import train
from lab.user_simulator import opened
from rar_mini import data, grpo, policy, recipe
from rar_mini.judging.endpoint import Failure
from rar_mini.prefix import Heard
from rar_mini.report import Clock
from rar_mini.sampler import Completion
from rar_mini.scores import Rollouts
from rar_mini.setup import Training

pytestmark = pytest.mark.usefixtures("folder")

HEALTHBENCH = {
    "prompt_id": "h",
    "prompt": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "My head hurts."},
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": "Since Monday."},
        {"role": "assistant", "content": "Any fever?"},
        {"role": "user", "content": "Yes, 39."},
    ],
    "rubrics": [{"criterion": "Advises to see a doctor.", "points": 5}],
}


def spoken(*answers: str) -> list[dict[str, str]]:
    """A conversation behind its question, the user's words aside."""
    turns = [[{"role": "assistant", "content": text}, {"role": "user", "content": "-"}] for text in answers]
    return sum(turns, [])[:-1]


def test_what_the_user_says_later_in_a_row_is_the_script(tmp_path: Path) -> None:
    example = opened(data.read(write_rows(tmp_path / "rows.jsonl", [HEALTHBENCH]))[0])
    assert [turn["content"] for turn in example.messages] == ["Be kind.", "My head hurts."]
    own = recipe.make("user_simulator --turns 9", CONFIG)
    assert own.reply(example, spoken("Where?")) == "Since Monday."
    assert own.reply(example, spoken("Where?", "And?")) == "Yes, 39."
    assert own.reply(example, spoken("Where?", "And?", "See a doctor.")) is None
    short = recipe.make("user_simulator --turns 2", CONFIG)
    assert short.reply(example, spoken("Where?", "And?")) is None


def test_a_healthbench_row_in_which_the_user_speaks_again_is_trained(many: Path, tmp_path: Path) -> None:
    """The policy answers each turn in the place of the row's own assistant, and nobody shows it that one."""
    rows = write_rows(tmp_path / "rows.jsonl", [HEALTHBENCH])
    words = ("--recipe", "user_simulator", "--prompts-per-step", 1, "--group-size", 8)
    made = records(trained(many, rows, tmp_path / "run", *words), "rollouts")
    tokenizer = policy.load(str(many), torch.float32, "cpu").tokenizer
    for row in made:
        said = [turn["content"] for turn in row.get("turns", [])[1::2]]
        assert said == ["Since Monday.", "Yes, 39."][: len(said)]
        assert row["prompt"] == "system: Be kind.\n\nuser: My head hurts."
        shown = tokenizer.decode(
            [*row["prompt_ids"], *sum((each["ids"] for each in row.get("heard", [])), [])]
        )
        assert "Since when?" not in shown and "Any fever?" not in shown
    assert {len(row.get("turns", [])) for row in made} == {0, 2, 4}


def test_a_row_with_one_question_and_no_script_has_one_turn() -> None:
    own = recipe.make("user_simulator", CONFIG)
    assert own.reply(opened(asks("q", "fever")), spoken("Where?")) is None


@pytest.mark.parametrize("name", ["user_turns", "teacher_turns"])
@pytest.mark.parametrize("script", ["Since Monday.", [3]])
def test_a_script_that_is_none_is_refused(name: str, script: object) -> None:
    """A text would be said letter by letter."""
    example = replace(asks("q", "fever"), row={"hidden": {name: script}})
    with pytest.raises(ValueError, match=f"'q': expected texts in hidden.{name}, got "):
        opened(example)


@pytest.mark.parametrize(
    ("reply", "words"),
    [('{"says": " Since Monday. "}', "Since Monday."), ('{"says": null}', None)],
)
def test_a_model_knows_its_situation_and_ends_the_conversation(
    server: Server, reply: str, words: str | None
) -> None:
    server.reply = lambda path, body: reply
    own = recipe.make("user_simulator --user chat:u", CONFIG)
    example = opened(replace(asks("My head hurts.", "fever"), row={"hidden": {"user": "Ill since Monday."}}))
    assert own.reply(example, spoken("Since when?")) == words
    shown = json.dumps([body for _, body, _ in server.seen])
    assert "Ill since Monday." in shown and "Since when?" in shown and "fever" not in shown


def test_a_model_that_fails_is_not_content(server: Server) -> None:
    server.reply = lambda path, body: "banana"
    own = recipe.make("user_simulator --user chat:u", CONFIG)
    example = opened(replace(asks("My head hurts.", "fever"), row={"hidden": {}}))
    with pytest.raises(Failure):
        own.reply(example, spoken("Since when?"))


def knows(conversation: str, situation: str) -> dict[str, str]:
    """A user who tells a number to whoever asks."""
    return {"says": f"is {situation}" if "assistant: ask" in conversation else "what"}


def warm(t: Training, steps: int = 30) -> None:
    """Teach the policy what words are for: one in three first turns asks, the others name a number, and once
    it is told one it names that."""
    random = np.random.default_rng(0)
    example, turns = t.questions["train"][0], t.actor
    prompt, ones = turns.encode(example), torch.ones(1, 16)
    for _ in range(steps):
        numbers = [f"n{i}" for i in random.integers(0, 4, 16)]
        first = ["ask" if random.random() < 1 / 3 else number for number in numbers]
        ids = [turns.completion(a) + turns.completion(b) for a, b in zip(first, numbers, strict=True)]
        told = [[Heard(2, turns.turns.bridge(f"is {number}")[1:])] for number in numbers]
        group = [Completion(own, [], True, heard=heard) for own, heard in zip(ids, told, strict=True)]
        shown = Rollouts([example], [[prompt] * 16], [group], [], None, ones, ones, recited=True)
        for batch in train.cut(t, shown):
            logp, _ = grpo.token_logp(t.actor.model, batch, 1.0)
            (-batch.weight * logp).sum().backward()
        train.step(t.optimizer, 1.0, CONFIG.lr, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("talks", "low", "high"), [(True, 0.9, 1.0), (False, 0.0, 0.35)])
def test_the_policy_learns_to_ask_for_what_it_cannot_know(talks: bool, low: float, high: float) -> None:
    """The number is the user's secret: without a conversation one in four answers is right."""
    own = recipe.make("user_simulator --turns 2", CONFIG)
    own.__dict__["_user"] = Stand(knows) if talks else None
    examples = [
        replace(asks("what", f"n{i}"), id=f"q{i}", row={"hidden": {"user": f"n{i}"}}) for i in range(4)
    ]
    t = training(own, list(map(opened, examples)), Speaker(0))
    warm(t)
    for step in range(1, 26):
        rollouts = train.explore(t, step, Clock())
        train.learn(t, rollouts, CONFIG.lr)
    assert low <= rollouts.reward.mean().item() <= high
