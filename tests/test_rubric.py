"""Categories, weights and polarity, also where the released data is odd."""

from collections import Counter

import pytest

from rar_mini import rubric
from rar_mini.rubric import Design


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


ROWS = [
    {"title": "a", "description": "Essential Criteria: A.", "weight": 5},
    {"title": "b", "description": "Important Criteria: B.", "weight": 4},
    {"title": "c", "description": "Optional Criteria: C.", "weight": 2},
    {"title": "d", "description": "Pitfall Criteria: Recommends D.", "weight": -2},
    {"title": "e", "description": "Essential Criteria: E.", "weight": 0},
]


@pytest.mark.parametrize(
    ("design", "weights", "avoidance"),
    [
        (Design(), {"a": 1.0, "b": 0.7, "c": 0.3, "d": 0.9, "e": 0.0}, True),
        (Design(rubric_drop="optional-and-below"), {"a": 1.0, "e": 0.0}, None),
        (Design(rubric_drop="pitfalls"), {"a": 1.0, "b": 0.7, "c": 0.3, "e": 0.0}, None),
        (Design(rubric_drop="labels"), {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0}, True),
        (Design(weights="v1"), {"a": 1.0, "b": 0.7, "c": 0.3, "d": 0.8, "e": 0.0}, True),
        (Design(weights="raw"), {"a": 5.0, "b": 4.0, "c": 2.0, "d": 2.0, "e": 0.0}, True),
        (Design(weights="uniform"), {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0}, True),
        (Design(pitfalls="literal"), {"a": 1.0, "b": 0.7, "c": 0.3, "d": 0.9, "e": 0.0}, False),
        (Design(pitfalls="signed"), {"a": 1.0, "b": 0.7, "c": 0.3, "d": -0.9, "e": 0.0}, False),
        (Design("pitfalls", "raw", "signed"), {"a": 5.0, "b": 4.0, "c": 2.0, "e": 0.0}, None),
        (Design("none", "raw", "signed"), {"a": 5.0, "b": 4.0, "c": 2.0, "d": -2.0, "e": 0.0}, False),
    ],
)
def test_a_design_drops_weighs_and_asks(
    design: Design, weights: dict[str, float], avoidance: bool | None
) -> None:
    """`optional-and-below` sounds as if important items stayed; the paper's row keeps essential ones."""
    made = design.apply(rubric.from_categories(ROWS, Counter()), "q")
    assert {c.title: c.weight for c in made.criteria} == weights
    asked = [c.asks_avoidance for c in made.criteria if c.category == "pitfall"]
    assert asked == ([] if avoidance is None else [avoidance])


@pytest.mark.parametrize(
    ("design", "rows"),
    [
        (Design(rubric_drop="optional-and-below"), ROWS[1:4]),
        (Design(rubric_drop="optional-and-below"), ROWS[1:]),  # what is left weighs nothing
        (Design(rubric_drop="pitfalls"), ROWS[3:4]),
        (Design(pitfalls="signed"), ROWS[3:4]),  # what is left only takes away
    ],
)
def test_a_rubric_of_which_nothing_can_be_earned_is_refused(design: Design, rows: list[dict]) -> None:
    words = f"--rubric-drop {design.rubric_drop} with --pitfalls {design.pitfalls} .* the rubric of 'q7'"
    with pytest.raises(ValueError, match=words):
        design.apply(rubric.from_categories(rows, Counter()), "q7")


def test_signed_points_have_no_categories_for_a_design_to_go_by() -> None:
    """HealthBench's rubrics are as they are, also those with nothing to earn; an option that did nothing to
    them would be a figure with a false name."""
    made = rubric.from_points([{"criterion": "Names it.", "points": -7}])
    assert Design().apply(made, "q7") is made
    for design in (Design(rubric_drop="labels"), Design(weights="uniform"), Design(pitfalls="signed")):
        with pytest.raises(ValueError, match="the rubric of 'q7' has signed points: expected categories"):
            design.apply(made, "q7")


@pytest.mark.parametrize(
    ("text", "subject", "omission", "demanded"),
    [
        ("Recommends aspirin.", "Recommends aspirin.", False, False),
        ("Says that rest is enough.", "Says that rest is enough.", False, False),
        ("Avoids recommending aspirin.", "recommending aspirin.", False, True),
        ("Avoidance of tests is advised.", "Avoidance of tests is advised.", False, False),
        ("The response should not claim a cure.", "claim a cure.", False, True),
        ("Does not say that rest is enough.", "say that rest is enough.", False, True),
        ("Does not mention hand hygiene.", "hand hygiene.", True, False),
        ("The answer fails to warn of drowsiness.", "of drowsiness.", True, False),
        ("Omits hand hygiene.", "hand hygiene.", True, False),
        ("Must not omit hand hygiene.", "hand hygiene.", True, True),
        ("Does not ignore the fever.", "the fever.", True, True),
    ],
)
def test_a_pitfall_is_read_as_it_is_worded(text: str, subject: str, omission: bool, demanded: bool) -> None:
    read = rubric.mistake(text)
    assert (read.subject.strip(), read.omission, read.demanded) == (subject, omission, demanded)
