"""A judge that compares: what is won against a reference answer, and what among neighbours in a group."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from judge import Judge
from rar_mini.data import Example
from rar_mini.judging.pairwise import Against, Pair, Pairwise
from rar_mini.judging.wrappers import agrees
from rar_mini.rubric import Criterion, Rubric
from rar_mini.scores import NAN

ASKED = Example("q", "train", ({"role": "user", "content": "?"},), "aa", Rubric(()), {})


def longer(pairs: Sequence[Pair]) -> Tensor:
    """The longer one wins, and nobody knows about an empty one."""
    return torch.tensor(
        [(len(a) > len(b)) + 0.5 * (len(a) == len(b)) if a and b else NAN for _, a, b in pairs]
    )


def first(pairs: Sequence[Pair]) -> Tensor:
    return torch.ones(len(pairs))


def earned(compare: object, against: Against, *groups: list[str]) -> list[list[float]]:
    judge = Pairwise(compare, Judge("keyword", "rar-explicit"), against=against)
    scores = judge.score([ASKED] * len(groups), groups)
    assert scores.verdict.shape == (len(groups), len(groups[0]), 1) and (scores.weight == 1).all()
    return scores.verdict[..., 0].tolist()


def test_a_response_earns_what_it_wins_against_its_reference() -> None:
    assert earned(longer, "reference", ["a", "aa", "aaa"], ["aaaa", "", "a"])[0] == [0.0, 0.5, 1.0]


def test_in_a_group_it_meets_both_neighbours() -> None:
    """The second beats both, the first and the third one each, the last none."""
    assert earned(longer, "group", ["aa", "aaaa", "aaa", "a"]) == [[0.5, 1.0, 0.5, 0.0]]
    assert earned(longer, "group", ["a", "aa"]) == [[0.0, 1.0]]
    assert earned(longer, "group", ["aaa"]) == [[1.0]], "one alone meets the reference answer"


def test_one_alone_without_a_reference_answer_is_no_score_and_nobody_is_asked() -> None:
    asked = []

    def counted(pairs: Sequence[Pair]) -> Tensor:
        asked.extend(pairs)
        return longer(pairs)

    bare = replace(ASKED, reference="")
    judge = Pairwise(counted, Judge("keyword", "rar-explicit"), against="group")
    wins = judge.score([ASKED, bare], [["aaa"], ["aaa"]]).verdict[:, 0, 0]
    assert wins[0] == 1 and wins[1].isnan()
    assert len(asked) == 2 and all(example is ASKED for example, *_ in asked), "once in each order"
    assert judge.score([bare], [["aaa"]]).verdict.isnan().all()


def test_what_is_not_known_is_no_score() -> None:
    assert torch.tensor(earned(longer, "reference", ["", "aaa"])).isnan().tolist() == [[True, False]]
    group = torch.tensor(earned(longer, "group", ["", "aaa", "aa", "a"]))
    assert group.isnan().tolist() == [[True, True, False, True]], "nor for those who met it"


def test_the_first_place_wins_nothing_and_is_noticed() -> None:
    judge = Pairwise(first, Judge("keyword", "rar-explicit"))
    assert judge.score([ASKED], [["a", "aaa"]]).verdict.flatten().tolist() == [0.5, 0.5]
    assert judge.metrics()["pairs/consistent"] == 0.0
    judge.compare = longer
    judge.score([ASKED], [["a", "aaa"]])
    assert judge.metrics()["pairs/consistent"] == 1.0


def test_a_question_without_a_reference_answer_is_refused() -> None:
    item = Criterion("Item", "Says it.", "essential", 1.0)
    bare = replace(ASKED, reference="", rubric=Rubric((item,)))
    with pytest.raises(ValueError, match="compares with reference answers, and 'q' has none"):
        Pairwise(longer, Judge("keyword", "rar-explicit")).check([bare])
    Pairwise(longer, Judge("keyword", "rar-explicit"), against="group").check([bare])


def test_who_rates_cannot_be_asked_yes_or_no() -> None:
    item = Criterion("Long", "It is long.", "essential", 1.0)
    assert agrees(Judge("keyword", "rar-explicit"), item, [ASKED], [["It is long.", "No."]]).tolist() == [
        [1, 0]
    ]
    with pytest.raises(ValueError, match="keyword is asked yes or no: expected --method rar-explicit"):
        agrees(Judge("keyword", "rar-implicit"), item, [ASKED], [["x"]])
