"""Verdicts without a model: does a response keep the rules of a criterion's `check`?

`RULES` has them all; data.py refuses others, and values that are none of theirs. A check says what *earns* an
item, also a pitfall, and all of its rules have to hold. White space around the response does not count.
"""

import re
from collections.abc import Callable
from typing import Any

from rar_mini.files import parse
from rar_mini.forms import whole
from rar_mini.rubric import Criterion, Rubric

_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,9}[.)])\s+\S")


def matches(text: str, pattern: str) -> bool:
    """Whether a regular expression matches somewhere; case counts. Raises ValueError if it is none.

    The syntax is RE2's, which Arrow brings: its time is linear in the text, whatever the pattern. Python's
    engine would take years for `(a+)+b` on 40 times `a`.
    """
    from pyarrow import compute, scalar  # a third of a second, for those who match

    return compute.match_substring_regex(scalar(whole(text)), pattern).as_py()


def _plain(text: str) -> str:
    """Text for a comparison in which neither case nor the kind and number of spaces counts."""
    return " ".join(text.split()).casefold()


def _is_json(text: str) -> bool:
    try:
        return isinstance(parse(text), dict | list)
    except ValueError:
        return False


RULES: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, most: len(text.split()) <= most,
    "min_words": lambda text, least: len(text.split()) >= least,
    "contains": lambda text, phrases: all(_plain(phrase) in _plain(text) for phrase in _listed(phrases)),
    "lacks": lambda text, phrases: not any(_plain(phrase) in _plain(text) for phrase in _listed(phrases)),
    "matches": matches,
    "starts_with": lambda text, phrase: _plain(text).startswith(_plain(phrase)),
    "ends_with": lambda text, phrase: _plain(text).endswith(_plain(phrase)),
    "items": lambda text, least: sum(bool(_ITEM.match(line)) for line in text.splitlines()) >= least,
    "json": lambda text, _: _is_json(text),
}


def _listed(phrases: str | list[str]) -> list[str]:
    return [phrases] if isinstance(phrases, str) else phrases


def keeps(check: dict[str, Any], response: str) -> bool:
    """Whether a response keeps all rules of a check."""
    return all(RULES[name](response.strip(), value) for name, value in check.items())


def verdict(criterion: Criterion, response: str) -> float:
    """1.0 if the response keeps all rules of a checked criterion, else 0.0.

    An item of negative weight (a pitfall under --pitfalls signed) costs if its verdict is 1: there the
    verdict says that a rule is broken.
    """
    kept = keeps(criterion.check, response)
    return float(kept if criterion.weight > 0 else not kept)


def refuse(judge: str, rubric: Rubric, name: str) -> None:
    """Raise ValueError for an item that weighs something and that `keyword`, `rules` or a probe has no
    verdict on: one with choices, and to `rules` one without a check. `name` is the example's."""
    for number, item in enumerate(rubric.criteria, 1):
        if item.weight and item.choices:
            raise ValueError(
                f"--judge {judge} says yes or no alone: item {number} of {name!r} ({item.title[:80]!r}) has "
                f"{len(item.choices)} choices; leave them out, or name local:NAME or a server's judge"
            )
        if judge == "rules" and item.weight and not item.check:
            raise ValueError(
                f"--judge rules needs a check in every item that weighs something: item {number} of {name!r} "
                f"({item.title[:80]!r}) has none; add one (docs/data.md), or name another judge"
            )
