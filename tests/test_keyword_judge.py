"""The stand-in judge: content words, negation, and both wordings of a pitfall."""

import pytest

from judge import Judge
from rar_mini import data, grpo
from rar_mini.evaluation import labelled
from rar_mini.judging import keyword as keyword_judge
from rar_mini.rubric import Criterion, Rubric


def ask(category: str, description: str, response: str) -> float:
    return keyword_judge.verdict(Criterion("title", description, category, 1.0), response)


@pytest.mark.parametrize(
    ("category", "description", "response", "verdict"),
    [
        ("essential", "Identifies iron deficiency anemia.", "This is iron deficiency anemia.", 1),
        ("essential", "Identifies iron deficiency anemia.", "This is not iron deficiency anemia.", 0),
        ("essential", "Identifies iron deficiency anemia.", "Rest and drink water.", 0),
        ("essential", "Identifies iron deficiency anemia.", "", 0),
        ("important", "Recommends infusing fluids.", "The fluid is infused at once.", 1),
        ("important", "States that antibiotics are not needed.", "Antibiotics are not needed.", 1),
        ("pitfall", "Does not mention allergy testing.", "Ask about allergy; test it.", 1),
        ("pitfall", "Does not mention allergy testing.", "Drink water.", 0),
        ("pitfall", "Fails to warn about drowsiness.", "It may cause drowsiness.", 1),
        ("pitfall", "Omits hand hygiene.", "Drink water.", 0),
        ("pitfall", "Recommends aspirin for children.", "Give the children aspirin.", 0),
        ("pitfall", "Recommends aspirin for children.", "Never give children aspirin.", 1),
        ("pitfall", "Recommends aspirin for children.", "Drink water.", 1),
        ("pitfall", "The response should not claim that antibiotics cure a virus.", "Drink water.", 1),
        ("pitfall", "Avoids recommending aspirin for children.", "Give children aspirin.", 0),
        ("pitfall", "The response should not omit hand hygiene.", "Hand hygiene helps.", 1),
        ("pitfall", "The response should not omit hand hygiene.", "Drink water.", 0),
        ("literal", "Recommends aspirin", "Take aspirin.", 1),
        ("literal", "Fails to mention aspirin", "Take aspirin.", 0),
        ("literal", "Fails to mention aspirin", "Drink water.", 1),
    ],
)
def test_verdicts(category: str, description: str, response: str, verdict: int) -> None:
    assert ask(category, description, response) == verdict


def test_a_quarter_of_the_content_words_is_enough() -> None:
    words = "Fever, cough, rash, headache, vomiting, jaundice, oedema and pallor."
    assert ask("essential", words, "Fever and cough.") == 1
    assert ask("essential", words, "Fever.") == 0


def test_a_criterion_without_content_words_is_never_met() -> None:
    assert ask("essential", "States the answer.", "States the answer.") == 0


def test_the_rating_is_whole_and_spans_the_scale() -> None:
    rubric = Rubric(
        (
            Criterion("a", "Names fever.", "essential", 1.0),
            Criterion("b", "Names cough.", "optional", 0.3),
            Criterion("c", "Recommends aspirin.", "pitfall", 0.9),
        )
    )
    assert keyword_judge.rating(rubric, "Fever and cough.") == 10
    assert keyword_judge.rating(rubric, "Aspirin.") == 1
    assert keyword_judge.rating(rubric, "Fever; aspirin.") == 1 + round(9 * 1.0 / 2.2)


def test_a_mistake_is_a_sentence_that_has_most_of_its_words() -> None:
    text = "Recommends aspirin tablets for feverish children."
    assert ask("pitfall", text, "Give feverish children aspirin.") == 0
    assert ask("pitfall", text, "Children with a fever should rest and drink.") == 1
    assert ask("pitfall", text, "Give aspirin. Rest the children. Wait if they are feverish.") == 1


@pytest.mark.parametrize(
    "text", ["Recommends aspirin.", "Avoids recommending aspirin.", "Does not claim aspirin helps."]
)
def test_a_pitfall_that_is_asked_as_worded_holds_or_not(text: str) -> None:
    item = Criterion("title", text, "pitfall", 0.9, as_worded=True)
    named = text.startswith("Recommends")
    assert keyword_judge.verdict(item, "Aspirin helps.") == float(named)
    assert keyword_judge.verdict(item, "Drink water.") == float(not named)


def test_who_says_nothing_has_avoided_no_mistake() -> None:
    """Silence earned 0.22 of the medical rubrics, all of it by mistakes that it cannot make."""
    for domain in ("medical", "science"):
        examples = data.sample(domain)
        for silence in ("", "I do not know."):
            scores = Judge("keyword", "rar-explicit").score(examples, [[silence]] * len(examples))
            assert grpo.reward(scores).mean() <= 0.1, (domain, silence)


def test_a_pitfall_counts_beside_an_item_that_is_met() -> None:
    rubric = Rubric(
        (
            Criterion("a", "Names fever.", "essential", 1.0),
            Criterion("b", "Recommends aspirin.", "pitfall", 0.9),
        )
    )
    alone = Rubric(rubric.criteria[1:])
    assert (
        keyword_judge.rating(rubric, "It is a fever.") == 10 and keyword_judge.rating(rubric, "Hello.") == 1
    )
    assert keyword_judge.rating(alone, "Hello.") == 10  # nothing else is asked for


def test_pitfalls_of_the_labelled_answers_are_read_right() -> None:
    """0.38 of them were: right answers share words with the mistakes that they warn of. Empty answers are
    left out: they avoid every mistake, and who says nothing on a subject earns nothing from this judge."""
    right = [
        keyword_judge.judged(item.example.rubric, criterion, item.response) == label
        for item in labelled.read(None, "all")
        if item.example.split == "held_out" and item.quality != labelled.EMPTY
        for criterion, label in zip(item.example.rubric.criteria, item.labels, strict=True)
        if criterion.category == "pitfall"
    ]
    assert len(right) > 150 and sum(right) > 0.75 * len(right)
