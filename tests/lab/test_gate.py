"""The gate: nothing makes up for what is essential, and a cap above 0 still tells failures apart."""

import pytest
import torch
from toy import judged, learn, made, rolled

from rar_mini import recipe
from rar_mini.scores import NAN

ITEMS = [("essential", 1.0), ("essential", 1.0), ("optional", 1.0), ("pitfall", 1.0)]
PASSES, HALF, FALLS, EMPTY = [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]


def rewards(spec: str, *verdicts: list[float], items: list[tuple[str, float]] = ITEMS) -> list[float]:
    return made(spec).reward(judged(torch.tensor([verdicts]), items))[0].tolist()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", [0.75, 0.0, 0.75, 0.0]),
        ("--need 0.5", [0.75, 0.75, 0.75, 0.0]),
        ("--cap 0.3", [0.75, 0.3, 0.75, 0.0]),
        ("--veto pitfall", [0.75, 0.75, 0.0, 0.0]),
        ("--veto essential pitfall --cap 0.3", [0.75, 0.3, 0.3, 0.0]),
        ("--cap 1", [0.75, 0.75, 0.75, 0.0]),
    ],
)
def test_what_a_closed_gate_leaves(words: str, wanted: list[float]) -> None:
    assert rewards(f"gate {words}", PASSES, HALF, FALLS, EMPTY) == pytest.approx(wanted)


def test_a_rubric_without_such_items_has_no_gate() -> None:
    assert rewards("gate", [0, 1], items=[("important", 1.0), ("optional", 1.0)]) == [0.5]


def test_a_failure_of_the_judge_is_no_score_behind_a_closed_gate() -> None:
    first, second = rewards("gate", [0, 1, NAN, 1], [NAN, 0, 1, 1])
    assert first != first and second != second


def test_signed_points_below_the_cap_stay() -> None:
    items = [("essential", 1.0), ("literal", -2.0)]
    assert rewards("gate", [0, 1], [0, 0], items=items) == [-2.0, 0.0]


def test_a_category_that_does_not_exist_is_refused() -> None:
    """Else its gate would always stand open."""
    with pytest.raises(ValueError, match="--recipe.veto"):
        made("gate --veto esential")
    assert recipe.make(recipe.located("gate --veto essential pitfall")).veto == ("essential", "pitfall")


def test_a_cap_lets_a_group_teach_in_which_all_fail() -> None:
    verdict = torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0]]])
    assert not rolled(made("gate"), judged(verdict, ITEMS)).adv.any()
    assert rolled(made("gate --cap 0.3"), judged(verdict, ITEMS)).adv[0].tolist() == pytest.approx(
        [-1, 1], abs=1e-4
    )


def test_where_every_answer_fails_a_cap_learns_to_come_closer_and_a_veto_nothing() -> None:
    verdict, start = torch.tensor([EMPTY, [1, 0, 0, 0]]), torch.tensor([0.9, 0.1])
    vetoed, capped = (
        learn(made(f"gate --cap {cap}"), start, verdict, ITEMS, steps=60)[-1] for cap in (0, 0.3)
    )
    torch.testing.assert_close(vetoed, start)
    assert capped[1] > 0.95


@pytest.mark.parametrize("start", [0.02, 0.5])
def test_what_breaks_a_hard_rule_is_unlearnt_from_any_start(start: float) -> None:
    """Four other criteria speak for it: lab/rvpo.py's soft minimum fails from a half."""
    verdict = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    items = [("important", 1.0)] * 4 + [("essential", 1.0)]
    path = learn(made("gate"), torch.tensor([1 - start, start]), verdict, items, steps=60)
    assert path[-1, 1] < min(0.01, start)
