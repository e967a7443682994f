"""Categories, weights and polarity, also where the released data is odd."""

from collections import Counter

import pytest

from rar_mini import rubric


@pytest.mark.parametrize(
    ("description", "weight", "category", "text"),
    [
        ("Essential Criteria: Names it.", 5, "essential", "Names it."),
        ("Important Criteria: Names it.", 4, "important", "Names it."),
        ("Optional Criteria: Names it.", 1, "optional", "Names it."),
        ("Pitfall Criteria: Does not mention it.", -2, "pitfall", "Does not mention it."),
        ("essential criteria : Names it.", 5, "essential", "Names it."),
    ],
)
def test_a_clean_prefix_is_the_category(description: str, weight: int, category: str, text: str) -> None:
    assert rubric.category_of(description, weight) == (category, text, True)


@pytest.mark.parametrize(
    ("description", "weight", "category", "text"),
    [
        ("Esssential Criteria: X.", 5, "essential", "X."),
        ("Importance Criteria: X.", 3, "important", "X."),
        ("Option Criteria: X.", 2, "optional", "X."),
        ("Universal Criteria: X.", 4, "important", "X."),
        ("Mandatory Criteria: X.", 5, "essential", "X."),
        ("Names the cause: iron deficiency.", 1, "optional", "Names the cause: iron deficiency."),
        ("Recommends aspirin.", -1, "pitfall", "Recommends aspirin."),
        ("Option Criteria: X.", -1, "pitfall", "X."),
        ("Ranson criteria: gives the score.", 4, "important", "Ranson criteria: gives the score."),
        ("Essential Criteria X.", 2.5, "optional", "Essential Criteria X."),
    ],
)
def test_where_the_prefix_is_odd_the_weight_tells(
    description: str, weight: int, category: str, text: str
) -> None:
    """The released data has these prefixes, and 0.5 % of its science items have none."""
    assert rubric.category_of(description, weight) == (category, text, False)


def test_rewards_weigh_by_category_and_pitfalls_positively() -> None:
    notes: Counter[str] = Counter()
    rows = [
        {"title": "a", "description": "Essential Criteria: A.", "weight": 5},
        {"title": "b", "description": "Pitfall Criteria: Avoids B.", "weight": -2},
        {"title": "c", "description": "Option Criteria: C.", "weight": 2},
        {"title": "d", "description": "Optional Criteria: D.", "weight": 0},
    ]
    made = rubric.from_categories(rows, notes)
    assert made.weights == [1.0, 0.9, 0.3, 0.0]
    assert [c.asks_avoidance for c in made.criteria] == [False, True, False, False]
    assert notes == {"items whose category was read from the weight": 1}


def test_literal_points_keep_their_sign_and_their_text() -> None:
    made = rubric.from_points([{"criterion": "Does not ask about pregnancy", "points": -4}])
    assert made.weights == [-4.0]
    assert not made.criteria[0].asks_avoidance
    assert made.criteria[0].description == "Does not ask about pregnancy"


def test_ratings_span_the_unit_interval() -> None:
    assert [rubric.rating_to_unit(r) for r in (1, 10)] == [0.0, 1.0]
