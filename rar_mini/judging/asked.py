"""What is asked at once about one response, and who answers it.

A backend is whoever answers: a server (wires.py), weights in this process (local.py), matched words
(keyword.py). It has one method, `ask`, and a ledger of what happened.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from rar_mini.data import Example
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.ledger import Ledger
from rar_mini.rubric import Criterion

Answer = list[float] | Failure
"""A probability for each criterion, or one rating; NaN if the judge refused to give it."""


@dataclass(frozen=True)
class Asked:
    """Whether a response meets some criteria, each on its own; or with `rating`, how good it is."""

    example: Example
    response: str
    criteria: tuple[Criterion, ...]  # for a rating, the criteria that it weighs
    rating: Literal["rate", "rate_reference", "rate_rubric", "rate_unlabelled"] | None = None
    """which of the judge's texts asks for a rating"""


def by_question(asked: Iterable[Asked]) -> Iterator[list[Asked]]:
    """What is asked in a row about the answers to one question, together, whatever is asked about them."""
    for _, group in groupby(asked, key=lambda each: (each.example.id, each.example.messages)):
        yield list(group)


class Backend(Protocol):
    """Whoever answers."""

    ledger: Ledger

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer all, in order; `done` is called after each. Another `repeat` asks the same anew."""

    def close(self) -> None:
        """End connections."""


class NoBackend:
    """The backend of `--judge rules`: every item has a check, so that nothing is left to be asked."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer nothing, because nothing is asked."""
        assert not list(asked)
        return []

    def close(self) -> None:
        """There are no connections."""
