"""The world of notebooks/claims.py: what is true of an answer, worked out by hand; judges that are as weak as
they say."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import claims
from claims import Arm, Form, Judge
from rar_mini import grpo
from rar_mini.data import Example
from rar_mini.rubric import CATEGORY_WEIGHT, Criterion, Rubric

TINY = Form(seeds=2, levels=(0.5, 2.0), steps=12, warm=20)


@pytest.fixture(scope="module")
def example() -> Example:
    """Four criteria, of which the last is a pitfall: a and d hold, b and c do not."""
    names = ("essential", "essential", "optional", "pitfall")
    rubric = Rubric(tuple(Criterion(name, name, name, CATEGORY_WEIGHT[name]) for name in names))
    return claims.pose(Example("q", "train", (), "", rubric, {}), [True, False, False, True])


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return claims.arms(TINY)


@pytest.mark.parametrize(
    ("response", "verdicts", "value"),
    [
        ("", [0, 0, 0, 1], 0.9),  # silence makes no mistake
        ("a+ b- c- d+", [1, 1, 1, 1], 3.2),
        ("um a+ um b- c- um", [1, 1, 1, 1], 3.2),  # a pitfall need not be spoken of, and padding is free
        ("a+ b+ c-", [1, 0, 1, 1], 2.2),
        ("a+ a- b- d-", [0, 1, 0, 0], 1.0),  # who says both has not said it
    ],
)
def test_what_is_true_of_an_answer(
    example: Example, response: str, verdicts: list[int], value: float
) -> None:
    assert example.question == "a+ b- c- d+"
    assert claims.true_verdicts(example, response) == verdicts
    assert claims.truth([example], [[response]]).value.item() == pytest.approx(value / 3.2)


def test_generic_criteria_are_shares_and_silence_is_correct_and_concise(example: Example) -> None:
    found = claims.truth([example], [["", "a+ b+ um a+", "a+ b-"]]).generic[0].tolist()
    assert found[0] == pytest.approx([1, 0, 1, 0.9 / 3.2])
    assert found[1] == pytest.approx([2 / 3, 1 / 2, 2 / 4, 1.9 / 3.2])
    assert found[2] == pytest.approx([1, 1, 1, 2.9 / 3.2])


def test_a_judge_without_noise_tells_the_truth(example: Example) -> None:
    answers = [["", "a+ b-", "a+ b- c-", "a+ b- um um um um um um um um um"]]
    of = claims.truth([example], answers)
    assert torch.equal(grpo.reward(Judge("rar-explicit", 0.0).score([example], answers)), of.value)
    for method in ("direct-likert", "reference-likert", "rar-implicit"):
        said = Judge(method, 0.0, bias=0.0).score([example], answers)
        assert torch.equal(said.rating, 1 + (9 * of.value).round())
        assert (grpo.reward(said) - of.value).abs().max() <= 1 / 18 + 1e-6
    _, short, _, long = Judge("direct-likert", 0.0).opinion(of).rating[0]
    assert long > short and of.value[0, 1] == of.value[0, 3]  # equally true, and the longer one looks better


def test_verdicts_are_wrong_as_often_as_sigma_says() -> None:
    of = claims.careless_answers(0, 16)
    known = (of.weight > 0)[:, None].expand_as(of.verdict)
    for sigma in (0.5, 2.0):
        wrong = (Judge("rar-explicit", sigma).opinion(of).verdict != of.verdict)[known].float().mean().item()
        assert wrong == pytest.approx(math.erfc(0.5 / sigma / 2**0.5) / 2, abs=0.01)


def test_equally_accurate_judges_order_as_many_pairs(arms: list[Arm]) -> None:
    """All but the strongest: a rating of ten steps ties too often to be as accurate."""
    found = [arm for arm in arms if arm.level == 0.5]
    accuracy = {arm.name: arm.accuracy for arm in found}
    assert {arm.sigma for arm in found if arm.name not in claims.EQUAL} == {0.5}
    for name in claims.EQUAL:
        assert accuracy[name] == pytest.approx(accuracy["rar-explicit"], abs=2e-3)
    assert accuracy["rar-explicit"] > accuracy["reference-likert"] > accuracy["direct-likert"] > 0.55


@pytest.mark.slow
def test_a_training_repeats_bit_for_bit_and_learns() -> None:
    arm = Arm("rar-explicit", "rar-explicit", 0.0, 0.0, claims.BIAS, 1.0)
    first = claims.trained(arm, TINY, 1)
    claims.beginner.cache_clear()
    assert first == claims.trained(arm, TINY, 1)
    assert first["after"]["truth"] > first["before"]["truth"] + 0.05


@pytest.fixture(scope="module")
def rows(arms: list[Arm]) -> list[dict]:
    """Trainings by hand: rar-explicit reaches 0.9 and 0.7, direct ratings 0.8 and 0.4, all others 0.6; the
    second seed is 0.02 better throughout, and its explicit policies by 0.04."""
    reached = {"rar-explicit": (0.9, 0.7), "direct-likert": (0.8, 0.4)}
    found = []
    for seed in range(2):
        for arm in arms:
            value = reached.get(arm.name, (0.6, 0.6))[TINY.levels.index(arm.level)]
            value += 0.02 * seed * (2 if arm.name == "rar-explicit" else 1)
            after = {"truth": value, "words": 8.0, "padding": 2.0 + seed}
            row = {"arm": dataclasses.asdict(arm), "seed": seed, "curve": [0.3, value]}
            found.append(row | {"before": {"truth": 0.3}, "after": after})
    return found


def test_claims_are_differences_with_students_interval(rows: list[dict]) -> None:
    found = {claim.text: claim for claim in claims.claims(rows)}
    gap = found["rar-explicit less direct-likert"]
    assert gap.value == pytest.approx(0.21)  # 0.2 and 0.22
    assert gap.high - gap.value == pytest.approx(12.71 * 0.01)
    assert gap.verdict == "holds"
    assert found["that at the weakest less at the strongest, direct-likert"].value == pytest.approx(0.2)
    assert found["spread across judges, direct-likert less rar-explicit"].value == pytest.approx(0.1)
    assert found["rar-implicit less rar-explicit"].verdict == "does not hold"  # -0.21 +- 0.13
    assert found["rar-predefined less no training"].value == pytest.approx(0.31)
    assert [claim.number for claim in claims.claims(rows)] == sorted(c.number for c in found.values())


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.05, "holds"), (-0.02, 0.01, "does not hold"), (-0.01, 0.03, "cannot be told")],
)
def test_a_verdict_needs_an_interval(low: float, high: float, verdict: str) -> None:
    assert claims.Claim(1, "", (low + high) / 2, low, high).verdict == verdict


def test_tables_and_picture(tmp_path: Path, rows: list[dict]) -> None:
    pytest.importorskip("matplotlib")
    said = claims.tell(rows)
    assert "0.920 ± 0.254" in said and "2.5 ± 6.4" in said and said.count("\n") > 50
    claims.draw(rows).savefig(tmp_path / "claims.png")
    assert (tmp_path / "claims.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arms: list[Arm], rows: list[dict]
) -> None:
    """A file with everything in it asks for no process; one of another setting, or of something else, is
    refused."""
    monkeypatch.setattr(claims, "arms", lambda form: arms)
    out = tmp_path / "claims.json"
    written = {"setting": claims.setting(TINY), "environments": [], "trainings": rows[::-1]}
    out.write_text(json.dumps(written))
    assert [row["seed"] for row in claims.trainings(TINY, out)] == 16 * [0, 1]
    with pytest.raises(ValueError, match="another setting: expected .*'steps': 13"):
        claims.trainings(dataclasses.replace(TINY, steps=13), out)
    for text in ("[]", "{", '{"setting": 1}'):
        out.write_text(text)
        with pytest.raises(ValueError, match="does not hold trainings"):
            claims.trainings(TINY, out)


def test_intervals_are_for_as_many_seeds_as_there_are_quantiles() -> None:
    assert max(claims.SHORT.seeds, claims.FULL.seeds) - 2 < len(claims.STUDENT)
    assert claims.interval(np.array([0.0, 1.0]))[1:] == pytest.approx((0.5 - 6.355, 0.5 + 6.355))
