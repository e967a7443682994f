"""ReflectRM: whose verdict counts among several analyses, and what a response earns by it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import hostile
import pytest
import torch
from hostile import Server, user
from reading import Reader, asks
from test_endpoint import refuses
from torch import Tensor
from toy import made

from judge import Judge
from lab.reflect_rm import SOUNDER, decide, read
from rar_mini.data import Example
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Failure
from rar_mini.scores import NAN, Scores

pytestmark = pytest.mark.usefixtures("folder")

# --- the rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "winners", "verdict", "knocked_out"),
    [
        ([1, 0, 0, 0], (), 1, 1),  # nobody beats the anchor
        ([1, 0, 1, 1], (1,), 0, 0),
        ([1, 0, 0, 1], (1, 2, 3), 0, 1),  # two of three; the last winner
        ([1, 0, 1, 0], (1, 2), 1, 1),  # a tie: the anchor's own; the last winner
        ([0, 0, 1, 0], (1, 2), 0, 1),
        ([0], (), 0, 0),
    ],
)
def test_who_beats_the_anchor_votes(said: list, winners: tuple, verdict: int, knocked_out: int) -> None:
    def reflect(anchors: Tensor, i: int) -> Tensor:
        return torch.tensor([float(i in winners)])

    for knock_out, wanted in ((False, verdict), (True, knocked_out)):
        assert decide(torch.tensor([said]).float(), reflect, knock_out).tolist() == [wanted]


def test_what_failed_leaves_no_verdict() -> None:
    said = torch.tensor([[1.0, 0.0, 1.0], [NAN, NAN, NAN], [1.0, 1.0, 0.0]])

    def reflect(anchors: Tensor, i: int) -> Tensor:
        return torch.tensor([0.0, 0.0, NAN if i == 1 else 0.0])

    for knock_out in (False, True):
        verdicts = decide(said, reflect, knock_out)
        assert verdicts[0] == 1 and verdicts[1:].isnan().all()


def accuracy(n: int, knock_out: bool) -> float:
    """How often a verdict is right if the anchor is random, analyses are right in 0.7 of all cases, and
    reflections in 0.9; between analyses that say the same, reflection is a coin."""
    random = torch.Generator().manual_seed(0)
    right = (torch.rand(40_000, n, generator=random) < 0.7).float()  # (Q, n), 1 is the truth

    def reflect(anchors: Tensor, i: int) -> Tensor:
        lead = right[:, i] - right.gather(-1, anchors[:, None])[:, 0]  # 1, 0 or -1
        return (torch.rand(len(lead), generator=random) < 0.5 + 0.4 * lead).float()

    return decide(right, reflect, knock_out).mean().item()


@pytest.mark.parametrize(
    ("n", "knock_out", "right"), [(4, False, 0.908), (8, False, 0.962), (4, True, 0.944), (8, True, 0.954)]
)
def test_reflection_is_right_more_often_than_a_majority(n: int, knock_out: bool, right: float) -> None:
    """A majority of four analyses, a tie by a coin, is right in 0.784."""
    assert accuracy(n, knock_out) == pytest.approx(right, abs=0.006)


# --- analyses -----------------------------------------------------------------------------------------------


def test_confidence_is_that_of_the_least_likely_tenth() -> None:
    assert read("So.\nbetter: 1 ", [-1.0] * 18 + [-3.0, -5.0]) == ("So.\nbetter: 1 ", 1.0, -4.0)
    assert read("better: 2", [-0.5])[1:] == (0.0, -0.5) and read("better: 2", [])[2] == -torch.inf


@pytest.mark.parametrize("text", ["", "better: 3", "better: 1 or 2", "better: 1\nI think.", "not better: 1"])
def test_an_analysis_ends_with_its_verdict(text: str) -> None:
    with pytest.raises(Failure, match="expected a last line"):
        read(text, [])


# --- a judge ------------------------------------------------------------------------------------------------


class Reflects(Reader):
    """A judge that finds an analysis sounder if it is called so; it fails at one that is called unclear."""

    def score(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], **how: object) -> Scores:
        assert all(example.rubric.criteria == (SOUNDER,) for example in examples)
        challengers = [re.search("--- analysis 2 \\w+\n(.*?)\n---", text, re.S)[1] for (text,) in responses]
        said = [
            "fail" if "unclear" in text else SOUNDER.description * ("sound" in text) for text in challengers
        ]
        return super().score(examples, [[text] for text in said])


def analyst(*kinds: str) -> Callable[[str, dict], str]:
    """A server whose n-th analysis is of such a kind: `first` likes the first response, any other one that
    which says good."""

    def reply(path: str, body: dict) -> str:
        kind = kinds[body["seed"] // 100]
        first = kind == "first" or "good" in re.search("--- response 1 \\w+\n(.*?)\n---", user(body), re.S)[1]
        return "?" if kind == "broken" else f"It is {kind}.\nbetter: {1 if first else 2}"

    return reply


def judged(spec: str, *responses: str) -> tuple[list[float], dict[str, float]]:
    """The rewards of responses to a question whose reference answer is `fair`, and the judge's metrics."""
    own, example = made(f"reflect_rm --analyst chat:w {spec}"), replace(asks("q", "x"), reference="fair")
    judge = own.judge(Reflects())
    return own.reward(judge.score([example], [list(responses)]))[0].tolist(), judge.metrics()


def test_reflection_mends_a_liking_for_the_first_place(server: Server) -> None:
    server.reply = analyst("first", "sound", "sound")
    earned, metrics = judged("--n 1", "good", "bad")
    assert earned == [0.5, 0.5] and metrics["pairs/consistent"] == 0
    earned, metrics = judged("--n 3", "good", "bad")
    assert metrics["pairs/consistent"] == 0.5, "nothing tells bad from fair but its place"
    assert earned[0] == 1.0
    bodies = [body for _, body, _ in server.seen]
    assert {body["seed"] for body in bodies} == {0, 100, 200}
    assert all(body["temperature"] == 1.0 and body["logprobs"] for body in bodies)


def test_the_most_confident_analysis_is_the_anchor(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other one beats it. Without log-probabilities it is the first."""
    server.reply = analyst("first", "first", "calm")
    assert judged("--n 3", "good")[0] == [0.5]
    envelope = hostile.envelope

    def sure(path: str, content: str) -> dict:
        whole, tokens = envelope(path, content), [{"logprob": -0.1 if "calm" in content else -2.0}] * 5
        whole["choices"][0]["logprobs"] = {"content": tokens}
        return whole

    monkeypatch.setattr(hostile, "envelope", sure)
    assert judged("--n 3", "good, too")[0] == [1.0]

    def partly(path: str, content: str) -> dict:
        return sure(path, content) if "calm" in content else envelope(path, content)

    monkeypatch.setattr(hostile, "envelope", partly)
    assert judged("--n 3", "good as well")[0] == [1.0], "those without log-probabilities come last"


@pytest.mark.parametrize(
    "odd", [{}, None, {"content": [{}]}, *({"content": [{"logprob": x}]} for x in (NAN, "1"))]
)
def test_log_probabilities_that_are_no_numbers_are_none(odd: dict | None) -> None:
    assert wires.token_logprobs({"choices": [{"logprobs": odd}]}) == wires.token_logprobs({}) == []
    sure = [{"logprob": -1}, {"logprob": -0.5}]
    assert wires.token_logprobs({"choices": [{"logprobs": {"content": sure}}]}) == [-1, -0.5]


def test_a_server_that_refuses_log_probabilities_is_asked_without(server: Server) -> None:
    refuses("logprobs")(server)
    server.reply = analyst("sound", "sound")
    assert judged("--n 2", "good")[0] == [1.0]
    assert not any("logprobs" in body for _, body, _ in server.seen[-3:])


@pytest.mark.parametrize("kind", ["broken", "unclear"])
def test_a_text_that_could_not_be_had_gives_no_reward(server: Server, kind: str) -> None:
    server.reply = analyst("first", kind)
    earned, metrics = judged("--n 2", "good", "bad")
    assert torch.tensor(earned).isnan().all() and metrics["pairs/consistent"] is None
    assert metrics.get("judge2/failures/malformed", 0) == 4 * (kind == "broken"), (
        "it is counted like a judge's"
    )


def test_a_judge_that_gives_no_verdicts_is_refused_before_anything_is_asked(server: Server) -> None:
    with pytest.raises(ValueError, match="keyword is asked yes or no: expected --method rar-explicit, got"):
        made("reflect_rm --analyst chat:w").judge(Judge("keyword", "rar-implicit"))
    assert not server.seen


def test_without_an_analyst_it_is_rar() -> None:
    judge = Reader()
    assert made("reflect_rm").judge(judge) is judge
