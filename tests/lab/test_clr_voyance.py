"""CLR-voyance: what the policy sees of a case, what its judge sees, and the merge of weights."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Server, user
from tiny import question, write_rows, write_tiny
from toy import judged, made

from judge import Judge
from lab import merge
from lab.clr_voyance import cut
from lab.rubric_grounded import quotes
from rar_mini import model, policy
from rar_mini.config import PRESETS
from rar_mini.data import Example
from rar_mini.recipe import Recipe, make
from rar_mini.rubric import Rubric
from rar_mini.scores import NAN

pytestmark = pytest.mark.usefixtures("folder")

EVENTS = [f"day {n}: event {n}" for n in range(8)]
ITEM = {"title": "Sepsis", "description": "Essential Criteria: Expects what came.", "weight": 5}


def case(name: str, events: object = None) -> Example:
    return Example(
        name,
        "train",
        ({"role": "user", "content": "?"},),
        "",
        Rubric(()),
        {"hidden": {"events": events or EVENTS}},
    )


def loaded(
    tmp_path: Path, options: str = "", more: Sequence[dict] = (), **changes: object
) -> tuple[Recipe, list[Example], Counter]:
    rows = [question(0, question="What comes next?", rubric=[ITEM], hidden={"events": EVENTS}) | changes]
    rows += [question(1, question="Why?", rubric=[ITEM]), *more]
    file, notes = write_rows(tmp_path / "cases.jsonl", rows), Counter()
    own = make(f"clr_voyance {options}", replace(PRESETS["cpu"], data=str(file)))
    return own, own.load(skip_bad=False, skip_weightless=False, notes=notes), notes


# --- the split ----------------------------------------------------------------------------------------------


def test_a_case_is_cut_near_its_middle() -> None:
    """k ~ N(4, 4/3) for eight events: its mean within 0.1 and its deviation within 0.1, over 2,000 cases."""
    ks = np.array([len(cut(case(f"c{i}"), 0)[0].splitlines()) for i in range(2000)])
    assert ks.mean() == pytest.approx(4, abs=0.1) and ks.std() == pytest.approx(8 / 6, abs=0.1)
    assert ks.min() >= 1 and ks.max() <= 7
    past, future = cut(case("c"), 0)
    assert "\n".join((past, future)).splitlines() == EVENTS and cut(case("c"), 0) == (past, future)
    assert {cut(case("c", EVENTS[:2]), seed) for seed in range(9)} == {(EVENTS[0], EVENTS[1])}


@pytest.mark.parametrize("events", ["text", ["one"], ["a", 7], ["a", " ", "b"], {"a": "b"}, [], "", None])
def test_a_case_is_a_list_of_texts(tmp_path: Path, events: object) -> None:
    with pytest.raises(ValueError, match="'q0': field hidden.events: expected two texts or more, got"):
        loaded(tmp_path, hidden={"events": events})


def test_the_policy_sees_the_past_and_never_the_future(tmp_path: Path) -> None:
    own, (first, plain), _ = loaded(tmp_path)
    past, future = cut(first, own.config.seed)
    for step in (None, 1):
        shown = own.messages(first, step, 0)[-1]["content"]
        assert past in shown and "What comes next?" in shown
        assert not any(event in shown for event in future.splitlines())
    assert plain.question == "Why?" and "events" not in repr(plain.messages)


def test_only_the_future_verifies_the_rubric(server: Server, tmp_path: Path) -> None:
    """A judge that reads what came gives credit for it; one that reads the past alone has to guess."""
    own, (first, _), _ = loaded(tmp_path)
    last = EVENTS[-1]

    def reply(path: str, body: dict) -> dict:
        material, response = re.sub("[0-9a-f]{16}", "", body["state"]).split("--- end of question")
        credit = float(last in response) if last in material else 0.5
        return {name: {"type": "noul", "noul": credit} for name in body["questions"]}

    server.reply = reply
    judge, answers = Judge("systemone:m", "rar-explicit"), [[f"I expect {last}.", "Nothing."]]
    assert own.reward(own.judge(judge).score([first], answers))[0].tolist() == [1.0, 0.0]
    assert own.reward(judge.score([first], answers))[0].tolist() == [0.5, 0.5]


# --- the oracle ---------------------------------------------------------------------------------------------


def made_up(**changes: object) -> dict[str, object]:
    items = [{"criterion": f"Expects {n}.", "points": n} for n in range(1, 5)]
    return {"problem": "What now?", "answer": "Fluids.", "criteria": items} | changes


def test_an_oracle_that_sees_both_parts_asks_and_writes_the_rubric(server: Server, tmp_path: Path) -> None:
    server.reply = lambda path, body: json.dumps(made_up())
    own, (first, plain), notes = loaded(tmp_path, "--oracle chat:w")
    assert not notes and plain.question == "Why?"
    assert first.question.endswith("\n\nWhat now?") and first.reference == "Fluids."
    assert [c.weight for c in first.rubric.criteria] == [1.0, 2.0, 3.0, 4.0]
    (asked,) = (user(body) for _, body, _ in server.seen)
    assert all(event in asked for event in EVENTS)
    assert own.judge(Judge("keyword", "rar-explicit")).judges[1] is own._oracle, (
        "so that its costs are counted"
    )


@pytest.mark.parametrize("problem", ["Given day 7: event 7, what now?", "Why DAY 7: EVENT 7?"])
def test_a_question_that_tells_the_future_is_none(server: Server, tmp_path: Path, problem: str) -> None:
    server.reply = lambda path, body: json.dumps(made_up(problem=problem))
    _, examples, notes = loaded(tmp_path, "--oracle chat:w")
    assert [e.question for e in examples] == ["Why?"] and notes == {"cases of which no question was made": 1}


def test_a_question_may_name_the_past_and_parts_of_words() -> None:
    past, future = "stable\nday 1: event 1", "stable\n\nday 2: afebrile"
    assert not quotes("Is he stable on day 1: event 1?", future, past)
    assert not quotes("Is he afebrile?", "febrile") and quotes("Is he febrile?", "febrile")


def test_a_case_of_which_no_question_was_made_is_left_out_and_counted(server: Server, tmp_path: Path) -> None:
    more = [question(2, question="And then?", rubric=[ITEM], hidden={"events": ["quiet", *EVENTS]})]
    server.reply = lambda path, body: json.dumps(made_up(criteria=[]) if "quiet" in user(body) else made_up())
    _, examples, notes = loaded(tmp_path, "--oracle chat:w", more)
    assert [e.id for e in examples] == ["q0", "q1"] and notes == {"cases of which no question was made": 1}


def test_an_oracle_that_makes_nothing_of_all_cases_ends_the_run(server: Server, tmp_path: Path) -> None:
    """Else the run would go on without its cases, or be told to lower --prompts-per-step."""
    server.reply = lambda path, body: "A question."
    with pytest.raises(ValueError, match=r"^chat:w made nothing of any .*: 1 x malformed \(not JSON alone\)"):
        loaded(tmp_path, "--oracle chat:w")


# --- the reward ---------------------------------------------------------------------------------------------


def test_the_reward_is_clipped() -> None:
    items = [("literal", 2.0), ("literal", 2.0), ("literal", -3.0)]
    scores = judged(torch.tensor([[[1.0, 1, 0], [1.0, 1, 1], [0.0, 0, 1], [NAN, 0, 1]]]), items)
    assert made("clr_voyance").reward(scores)[0, :3].tolist() == [1.0, 0.25, 0.0]
    assert made("clr_voyance").reward(scores)[0, 3].isnan(), "a failure is no score"


# --- the merge ----------------------------------------------------------------------------------------------


@pytest.fixture
def weights() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [{"a": torch.randn(3, 5), "b": torch.randn(7)} for _ in range(2)]


def test_a_merge_is_the_base_at_0_and_what_was_trained_at_1(weights: list[dict[str, torch.Tensor]]) -> None:
    base, trained = weights
    for share, wanted in ((0.0, base), (1.0, trained)):
        made_of = merge.merge(base, trained, share)
        assert all(torch.equal(made_of[name], wanted[name]) for name in wanted)
    for name, weight in merge.merge(base, trained, 0.25).items():
        torch.testing.assert_close(weight, 0.75 * base[name] + 0.25 * trained[name])
    with pytest.raises(ValueError, match="two checkpoints of one model"):
        merge.merge(base, {"a": trained["a"]}, 0.5)


def test_the_command_writes_a_policy(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_tiny(tmp_path / "other")
    decoder = model.load(other, torch.float32, "cpu")
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3)
    model.save(decoder, other)
    run = tmp_path / "run"
    shutil.copytree(other, run / "checkpoints" / "step-3")
    one = model.load(tiny, torch.float32, "cpu").state_dict()
    for trained, out in ((other, "out"), (run, "of a run")):
        merge.main(str(tiny), str(trained), tmp_path / out, share=0.5)
        for name, weight in model.load(tmp_path / out, torch.float32, "cpu").state_dict().items():
            torch.testing.assert_close(weight, 2 * one[name])
    assert f"--policy '{tmp_path / 'of a run'}'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists: expected a new directory"):
        merge.main(str(tiny), str(other), tmp_path / "out")
    for share in (2.0, -1.0, NAN):
        with pytest.raises(ValueError, match="--share .*: expected a number from 0 to 1"):
            merge.main(str(tiny), str(other), tmp_path / "new", share=share)


def test_a_merge_that_is_cut_short_leaves_no_directory_and_is_repeated(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "out", policy.Policy.save

    def dies(whole: policy.Policy, directory: Path) -> None:
        save(whole, directory)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(policy.Policy, "save", dies)
        merge.main(str(tiny), str(tiny), out)
    assert not out.exists()
    merge.main(str(tiny), str(tiny), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
