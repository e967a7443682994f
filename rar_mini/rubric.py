"""A rubric: what a good answer to one question has to do, item by item, and what each item weighs.

Two kinds exist, and the sign of a verdict differs between them:

- **RaR rubrics** name a category in front of each item ("Essential Criteria: ..."). A verdict means *the
  response is good on this item*; for a pitfall that is "the mistake was avoided", however the item words it,
  and the weight is positive. The released data words its pitfalls both ways, so that no rule about signs is
  right for all of it.
- **Literal rubrics** (HealthBench) carry signed points. A verdict means *the text of the item holds*, and an
  item with negative points takes away.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

CATEGORY_WEIGHT = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
"""What an item weighs in RaR-Explicit (the paper, section 2 and appendix; v1 gave pitfalls 0.8)."""

# Not any word before "criteria": an item may open with "Ranson criteria: ...", and that is what it asks for.
_PREFIX = re.compile(
    r"^\s*(?:((?:es+en|impor|option|pitf|universal|mandat)\w*)\s+criteri(?:a|on|um)\s*:"
    r"|(essential|important|optional|pitfall)\s*:)\s*",
    re.I,
)


@dataclass(frozen=True)
class Criterion:
    """One item of a rubric. `description` is without its category prefix; `weight` is the one that rewards
    use."""

    title: str
    description: str
    category: str  # a key of CATEGORY_WEIGHT, or "literal" for signed points
    weight: float

    @property
    def asks_avoidance(self) -> bool:
        """Whether the judge is asked if a mistake was avoided, rather than if the text holds."""
        return self.category == "pitfall"


@dataclass(frozen=True)
class Rubric:
    """The criteria of one question, in the order of the data row."""

    criteria: tuple[Criterion, ...]

    def __len__(self) -> int:
        return len(self.criteria)

    @property
    def weights(self) -> list[float]:
        return [criterion.weight for criterion in self.criteria]


def rating_to_unit(rating: float) -> float:
    """A rating from 1 to 10 on the scale of rewards: (rating - 1) / 9. The paper leaves the formula out."""
    return (rating - 1) / 9


def category_of(description: str, weight: float) -> tuple[str, str, bool]:
    """Read an item's category, and say whether the prefix alone could tell it.

    Returns (category, description without its prefix, clean). The released data has a few odd prefixes
    ("Esssential", "Option", "Universal") and some items with none; there the weight tells: 5 essential, 4
    or 3 important, 2 or 1 optional, below zero pitfall. A zero or fractional weight rounds to the nearest of
    these.
    """
    match = _PREFIX.match(description)
    text = description[match.end() :] if match else description
    name = (match.group(1) or match.group(2)).lower() if match else ""
    if name in CATEGORY_WEIGHT:
        return name, text, True
    if weight < 0:
        return "pitfall", text, False
    return ("essential" if weight > 4.5 else "important" if weight > 2.5 else "optional"), text, False


def from_categories(items: Sequence[dict], notes: Counter[str]) -> Rubric:
    """Make a RaR rubric of {title, description, weight} rows. Odd or missing prefixes are counted in `notes`,
    and so are clean ones that the sign of the weight contradicts: there the prefix is believed.

    An item keeps its place even where its data weight is 0; such an item weighs nothing.
    """
    criteria = []
    for item in items:
        category, text, clean = category_of(item["description"], item["weight"])
        if not clean:
            notes["items whose category was read from the weight"] += 1
        elif item["weight"] and (category == "pitfall") != (item["weight"] < 0):
            notes["items whose weight has the wrong sign for their category"] += 1
        weight = CATEGORY_WEIGHT[category] if item["weight"] else 0.0
        criteria.append(Criterion(item["title"], text, category, weight))
    return Rubric(tuple(criteria))


def from_points(items: Sequence[dict]) -> Rubric:
    """Make a literal rubric of HealthBench's {criterion, points} rows. The title is the item's first
    words."""
    return Rubric(
        tuple(
            Criterion(
                " ".join(item["criterion"].split()[:4]), item["criterion"], "literal", float(item["points"])
            )
            for item in items
        )
    )
