"""DAgger: what is said, what is trained, and why the policy's own mistakes have to be visited."""

from dataclasses import replace

import pytest
import torch
from hostile import Server
from reading import asks
from talking import CONFIG, NUMBER, WORDS, Speaker, Stand, training

import train
from lab.user_simulator import opened
from rar_mini import grpo, recipe
from rar_mini.data import Example
from rar_mini.recipe import Recipe
from rar_mini.report import Clock
from rar_mini.sampler import Completion, Request, Settings, uniforms
from rar_mini.scores import Rollouts
from rar_mini.setup import Training

pytestmark = pytest.mark.usefixtures("folder")


def made(words: str, *, taught: list[str] | None = None) -> tuple[Recipe, list[Example]]:
    """The recipe, and four questions about a number that the policy is not shown. The teacher knows it, and
    what to say once the user has found an answer right or wrong; `taught` has the teacher's texts instead."""
    own = recipe.make(f"dagger --turns 2 {words}", CONFIG)
    own.__dict__["_models"] = [Stand(finds), Stand(teaches)]
    hidden = {"user": "-"} | ({"teacher_turns": taught} if taught else {})
    rows = [replace(asks(f"what n{i}", f"n{i}"), row={"hidden": hidden}) for i in range(4)]
    return own, list(map(opened, rows))


def finds(conversation: str, situation: str) -> dict[str, str]:
    asked, _, said = conversation.partition("\n\nassistant: ")
    return {"says": "good" if asked.split()[-1] in said.split() else "wrong"}


def teaches(conversation: str, situation: str) -> str:
    if "user: wrong" in conversation:
        return "sorry"
    return "thanks" if "user: good" in conversation else conversation.split()[-1]


def warm(t: Training) -> None:
    """Teach the policy to answer with a word, any of three."""
    for example in t.questions["train"] * 3:
        words = [["n0", "n1", "what"][g % 3] for g in range(16)]
        group = [Completion(t.actor.completion(word), [], True) for word in words]
        prompt, ones = t.actor.encode(example), torch.ones(1, 16)
        shown = Rollouts([example], [[prompt] * 16], [group], [], None, ones, ones, recited=True)
        for batch in train.cut(t, shown):
            logp, _ = grpo.token_logp(t.actor.model, batch, 1.0)
            t.recipe.loss(logp, batch)[0].backward()
        train.step(t.optimizer, 1.0, CONFIG.lr, 1.0)


def explored(words: str, step: int = 1, **how: list[str]) -> tuple[Recipe, Rollouts]:
    own, examples = made(words, **how)
    t = training(own, examples, Speaker(0))
    warm(t)
    own.begin(step, 10)
    return own, train.explore(t, step, Clock())


def test_the_teacher_speaks_and_is_trained() -> None:
    _, rollouts = explored("--teacher chat:t")
    for p, group in enumerate(rollouts.completions):
        number = rollouts.examples[p].question.split()[-1]
        for completion, turns, response in zip(group, rollouts.turns[p], rollouts.responses[p], strict=True):
            assert [turn["content"] for turn in turns] == [number, "good"] and response == "thanks"
            assert [WORDS[i] for i in completion.ids] == [number, "<end>", "thanks", "<end>"]
            assert completion.logp == [] and not completion.heard[0].instead
    assert torch.equal(rollouts.adv, torch.ones(4, 16)) and grpo.teaches(rollouts).all()


def test_the_policy_speaks_and_the_teacher_is_trained() -> None:
    _, rollouts = explored("--teacher chat:t --beta 0")
    said = set()
    for p, group in enumerate(rollouts.completions):
        number = rollouts.examples[p].question.split()[-1]
        for completion, turns in zip(group, rollouts.turns[p], strict=True):
            words = [WORDS[i] for i in completion.ids]
            assert words[:2] == [number, "<end>"] and completion.logp == []
            if turns:  # its first answer has ended
                said.add(turns[0]["content"])
                assert words[2:] == ["thanks" if turns[1]["content"] == "good" else "sorry", "<end>"]
                heard = [WORDS[i] for i in completion.heard[0].ids]
                assert heard == [*turns[0]["content"].split(), "<end>", turns[1]["content"], "<answer>"]
                assert completion.heard[0].instead
    assert said >= {"n0", "n1", "what"}


def test_beta_is_the_share_of_the_teachers_turns_and_falls() -> None:
    own, _ = made("--teacher chat:t --beta 0.8 --until 0.5")
    betas = []
    for step in (1, 3, 6, 9):
        own.begin(step, 10)
        betas.append(own.metrics()["dagger/beta"])
    assert betas == pytest.approx([0.8, 0.48, 0.0, 0.0])
    own, examples = made("--teacher chat:t --beta 0.8 --until 0.5 --switch True")
    own.begin(5, 10)
    spoken = [own.teach(examples[0], [], step, g)[1] for step in range(50) for g in range(20)]
    assert 0.76 < sum(spoken) / 1000 < 0.84
    own.begin(6, 10)
    assert not any(own.teach(examples[0], [], 6, g)[1] for g in range(20))


def test_a_turn_without_a_teachers_words_teaches_nothing() -> None:
    """A row's texts are its teacher's, one a turn: behind the last one the policy speaks, untaught."""
    _, rollouts = explored("", taught=["n1"])
    for completion, turns in zip(sum(rollouts.completions, []), sum(rollouts.turns, []), strict=True):
        assert [WORDS[i] for i in completion.ids] == ["n1", "<end>"] and len(turns) == 2, "the user replied"


@pytest.mark.parametrize("name", ["dagger", "rgsd"])
@pytest.mark.parametrize(
    "setting", [{"beta": 0.5}, {"mismatch_cap": 2.0}, {"clip_low": 0.1}, {"clip_high": 0.3}]
)
def test_settings_that_a_loss_of_its_own_does_not_read_are_refused(name: str, setting: dict) -> None:
    own = recipe.make(name, replace(CONFIG, **setting))
    with pytest.raises(ValueError, match=f"{name} has a loss of its own, which reads none of --beta, --m"):
        own.load()


def test_words_longer_than_a_turn_may_be_are_not_taught(caplog: pytest.LogCaptureFixture) -> None:
    """Two tokens, the end included: the policy speaks in their place, and nothing of the turn is trained."""
    _, rollouts = explored("", taught=["n1 n2", "n3"])
    for completion in sum(rollouts.completions, []):
        assert [WORDS[i] for i in completion.ids] in ([], ["n3", "<end>"])
    assert (
        "of 64 turns have none of their teacher's words, which are too long: expected at most 2"
        in caplog.text
    )


@pytest.mark.parametrize("lesson", [(None, True), ("n1",), (7, False), "n1"])
def test_what_is_no_lesson_is_refused(monkeypatch: pytest.MonkeyPatch, lesson: object) -> None:
    own, examples = made("")
    monkeypatch.setattr(type(own), "teach", lambda *words: lesson)
    own.begin(1, 10)
    with pytest.raises(ValueError, match="the recipe's words for 'what n.': expected None, .text, True"):
        train.explore(training(own, examples, Speaker(0)), 1, Clock())


def test_a_teachers_thoughts_are_not_taught(server: Server) -> None:
    server.reply = lambda path, body: "<think>It is n1.</think>\n\nn1\n"
    own = recipe.make("dagger --teacher chat:t", CONFIG)
    own.begin(1, 10)
    assert own.teach(opened(asks("what n1", "n1")), [], 1, 0)[0] == "n1"


def test_the_loss_is_the_cross_entropy_of_the_teachers_tokens() -> None:
    own, rollouts = explored("--teacher chat:t --beta 0.5")
    rollouts.trained = grpo.teaches(rollouts)
    sizes = {"max_new_tokens": 2, "tokens_per_batch": 10**6}
    (batch,) = grpo.micro_batches(rollouts, rollouts.trained, loss_norm="token", **sizes)
    logp = -torch.rand(len(batch.target))
    loss, sums = own.loss(logp, batch)
    assert loss.item() == pytest.approx(-logp.mean().item(), rel=1e-5)
    assert sums["tokens"].item() == sum(len(c.ids) for group in rollouts.completions for c in group)


def recovers(actor: Speaker) -> float:
    """How often the policy says sorry once the user has found its answer wrong."""
    words = "what <answer> n2 <end> wrong <answer>".split()
    request = Request([NUMBER[word] for word in words], [uniforms(0, "r", "q", g, 2) for g in range(200)])
    (written,) = actor.sample([request], Settings(2))
    return sum(actor.decode(each.ids) == "sorry" for each in written) / 200


@pytest.mark.slow
def test_mistakes_have_to_be_visited_to_learn_what_follows_them() -> None:
    """The teacher's own conversations have no wrong answer; three of four guesses of the policy are wrong."""
    shares = []
    for words in ("--teacher chat:t --until 1 --switch True", "--teacher chat:t --beta 0"):
        own, examples = made(words)
        t = training(own, examples, Speaker(0))
        warm(t)
        for step in range(1, 21):
            own.begin(step, 20)
            train.learn(t, train.explore(t, step, Clock()), CONFIG.lr)
        shares.append(recovers(t.actor))
    assert shares[0] < 0.5 and shares[1] > 0.9, shares
