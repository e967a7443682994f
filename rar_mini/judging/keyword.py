"""A judge without a model: does a response use the content words of a criterion? Deterministic and offline.

It is a stand-in, so that the whole pipeline runs anywhere in minutes. It reads words, not sense: a policy
that is trained on it learns to use the words of its subject, not to be right. Nothing measured with it says
anything about medicine.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from rar_mini.judging.asked import Answer, Asked
from rar_mini.judging.ledger import Ledger
from rar_mini.rubric import Criterion, Mistake, Rubric, mistake

THRESHOLD = 0.25
"""The share of a criterion's content words that a response has to use.

Generous, because the bundled policy's answers are short. At a half, six in ten groups of four of its answers
tie and teach nothing, at a quarter one in ten. Neither share tells good answers from flawed ones.
"""

_STOP = frozenset(
    """a about above after all also although am an and any are as at be because been before being between both
    but by can could did do does during each either etc example few for from had has have he her here his how
    i if in into is it its itself just least like made make many may might more most much must of off on one
    only or other our out over own per rather same she should since so some such than that the their them then
    there these they this those through to too under until up upon us use very via was we were what when where
    whether which while who whose why will with would you your

    response answer question patient criterion address advise argue assert clarify claim compute conclude
    confirm correctly define derive describe discuss emphasise emphasize explain explicitly give highlight
    identify imply include indicate mention name note point present provide recognise recognize recommend
    refer report say show specify state stress suggest treat

    s t""".split()
)
_NEGATION = re.compile(
    r"\b(?:no|not|never|without|neither|nor|none|cannot|avoid\w*|contraindicated|withh[eo]ld)\b|n't\b|n’t\b",
    re.I,
)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_CLAUSE = re.compile(r"[.!?](?=\s|$)|[;:,\n]|\bbut\b|\binstead of\b|\brather than\b")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "ly", "s", "e", "y")


def stem(word: str) -> str:
    """Cut one common ending off a lower-case word, if four letters remain: infusing, infused -> infus."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


_STOPPED = frozenset(map(stem, _STOP))


@lru_cache(maxsize=4096)
def content(text: str) -> frozenset[str]:
    """The stems of a text's words, without stop words and without the verbs that rubrics are written in."""
    stems = (stem(word) for word in _WORD.findall(text.lower()))
    return frozenset(word for word in stems if word not in _STOPPED)


def affirmed(text: str) -> frozenset[str]:
    """The content of those clauses of a text that hold no negation."""
    return content(". ".join(clause for clause in _CLAUSE.split(text) if not _NEGATION.search(clause)))


def _covered(wanted: frozenset[str], words: frozenset[str]) -> bool:
    return bool(wanted) and len(wanted & words) >= THRESHOLD * len(wanted)


class Keyword:
    """The backend: verdicts of 0 or 1, and ratings made of them."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer all, in order."""
        answers: list[Answer] = []
        for each in asked:
            self.ledger.counts["questions"] += 1
            if each.rating is not None:
                answers.append([rating(Rubric(each.criteria), each.response)])
            else:
                rubric = each.example.rubric
                answers.append([judged(rubric, criterion, each.response) for criterion in each.criteria])
            done()
        return answers

    def close(self) -> None:
        """There are no connections."""


def verdict(criterion: Criterion, response: str) -> float:
    """1.0 if the response meets the criterion, else 0.0. A pitfall is met if its mistake was avoided, or if
    it is asked as worded, if its text holds."""
    text = criterion.description
    wrong = mistake(text) if criterion.as_worded else criterion.mistake
    if criterion.category == "pitfall":
        made = makes(wrong, response)
        return float(made != wrong.demanded if criterion.as_worded else not made)
    if wrong.omission and not wrong.demanded:  # an item that holds if something is missing
        return float(makes(wrong, response))
    # A criterion that itself denies something is met by a sentence that denies.
    words = content(response) if _NEGATION.search(text) else affirmed(response)
    return float(_covered(content(text), words))


def makes(wrong: Mistake, response: str) -> bool:
    """Whether a response makes a mistake: leaves the subject out, or affirms most of its words in a sentence.

    A claim is made in one sentence. That an answer shares a quarter of a claim's words says no more than that
    both have one subject: by that rule most right answers make the mistakes that they warn of.
    """
    wanted = content(wrong.subject)
    if wrong.omission:
        return not _covered(wanted, content(response))
    said = (len(wanted & affirmed(sentence)) for sentence in _SENTENCE.split(response))
    return 2 * max(said) > len(wanted)


def to_the_point(rubric: Rubric, response: str) -> bool:
    """Whether a response meets any item that asks for something. One that does not has avoided no mistake:
    whoever says nothing makes none."""
    asking = [item for item in rubric.criteria if item.category != "pitfall" and item.weight > 0]
    return not asking or any(verdict(item, response) for item in asking)


def judged(rubric: Rubric, criterion: Criterion, response: str) -> float:
    """The verdict on one of a rubric's items: no pitfall counts as avoided by an answer off the point."""
    if criterion.asks_avoidance and not to_the_point(rubric, response):
        return 0.0
    return verdict(criterion, response)


def rating(rubric: Rubric, response: str) -> float:
    """A whole rating from 1 to 10: the share of the weight that is earned, negative points included."""
    earned = sum(criterion.weight * judged(rubric, criterion, response) for criterion in rubric.criteria)
    full = sum(max(weight, 0.0) for weight in rubric.weights)
    return 1.0 + round(9 * min(max(earned / full, 0.0), 1.0)) if full else float("nan")
