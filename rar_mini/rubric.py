"""A rubric: what a good answer to one question has to do, item by item, and what each item weighs.

Two kinds exist, and the sign of a verdict differs between them:

- **RaR rubrics** name a category in front of each item ("Essential Criteria: ..."). A verdict means *the
  response is good on this item*; for a pitfall that is "the mistake was avoided", however the item words it,
  and the weight is positive. The released data words its pitfalls both ways, so that no rule about signs is
  right for all of it. `Design` has the other rules, and the paper's other rubrics.
- **Literal rubrics** (HealthBench) carry signed points. A verdict means *the text of the item holds*, and an
  item with negative points takes away.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Category = Literal["essential", "important", "optional", "pitfall"]
CATEGORY_WEIGHT = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
"""What an item weighs in RaR-Explicit (the paper, section 2 and appendix; v1 gave pitfalls 0.8)."""

WEIGHTS = {"paper": CATEGORY_WEIGHT, "v1": CATEGORY_WEIGHT | {"pitfall": 0.8}}
WEIGHTS["uniform"] = dict.fromkeys(CATEGORY_WEIGHT, 1.0)
DROPPED = {"optional-and-below": ("important", "optional", "pitfall"), "pitfalls": ("pitfall",)}

# Not any word before "criteria": an item may open with "Ranson criteria: ...", and that is what it asks for.
_PREFIX = re.compile(
    r"^\s*(?:((?:es+en|impor|option|pitf|universal|mandat)\w*)\s+criteri(?:a|on|um)\s*:"
    r"|(essential|important|optional|pitfall)\s*:)\s*",
    re.I,
)

Polarity = Literal["mistake", "avoidance", "unclear"]
"""How a pitfall is worded: it names the mistake, it asks to avoid it, or nobody can tell."""

_WHO = r"^(?:(?:the|this) (?:response|answer|model) )?"
# "Does not mention X" names a mistake, as the released medical rubrics have it. "Does not claim X" demands.
_WRONG = "say|claim|suggest|imply|assert|assume|confuse|mistake|attribute|dismiss|delay|omit|ignore|neglect"
_NOT = "does not|doesn['’]t|do not|don['’]t|did not"
_DEMAND = re.compile(
    _WHO + r"(?:(?:should|must) (?:not|never)|(?:should|must)n['’]t|(?:should |must )?avoid(?:s|ing)?"
    r"|(?:should |must )?refrain(?:s|ing)? from|(?:is|(?:should |must )?be) (?:careful|cautious) not to"
    rf"|(?:{_NOT})(?=\s+(?:{_WRONG})\b)|never(?=\s+(?:{_WRONG})s?\b))\s*\b",
    re.I,
)
_OMISSION = re.compile(
    _WHO + rf"(?:(?:{_NOT}|(?:fail(?:s|ed|ing|ure)?|neglect(?:s|ed|ing)?|forget(?:s|ting)?) to)\s+\w+"
    r"|omit(?:s|ted|ting)?|miss(?:es|ed|ing)?|ignor(?:es?|ed|ing)|lack(?:s|ing)?|leav(?:es?|ing) out"
    r"|overlook(?:s|ed|ing)?|(?:omission|lack|absence|neglect|no mention) of)\b",
    re.I,
)
# "Does not recommend X" may be either; these verbs say what is left out.
_LEFT_OUT = (
    "mention|address|includ|discuss|explain|consider|account|provid|state|specif|identif|recogni|acknowledg"
    "|note|warn|distinguish|differentiat|convert|check|show|ask|offer|highlight|emphasi|clarif|describ|list"
    "|refer|justif|verif|cover|name|cite|connect|link|relate|take into"
)
_NAMED = re.compile(  # an omission, an adverb of blame, or any verb as in "Recommends" and "Recommending"
    _WHO + rf"(?:(?:{_NOT}) (?:{_LEFT_OUT})|(?:failure|omission|neglect|lack|absence|no mention|confusion) \w"
    r"|mis[a-z]+|(?:incorrect|inaccurate|inappropriate|improper|unnecessari|wrong|false|erroneous|mistaken"
    r"|premature)ly\b|only\b|(?!does\b)[a-z]+(?:[^\Ws]s|ing)\b)",
    re.I,
)
_PRAISE = re.compile(  # good things that a pitfall may say, and words that only look like a verb
    _WHO + r"(?:warn|caution|discourag|ensur|distinguish|differentiat|clarif|correct|refut|reject|acknowledg"
    r"|recogni|understand|(?:advis|recommend)\w+ against|(?:explain|emphasi[sz]|highlight|stress"
    r"|mention|not)(?:s|es|ed|ing) (?:that|why)|(?:this|its|as|is|has|was|always|perhaps|thus"
    r"|unless|nothing|something|anything|during|according)\b)",
    re.I,
)


@dataclass(frozen=True)
class Mistake:
    """What a pitfall is about, and how its text says it."""

    subject: str  # what is wrongly said or done, or left out
    omission: bool  # whether the mistake is to leave the subject out
    demanded: bool  # whether the text demands that the mistake be avoided; else it names the mistake
    named: str  # what a response that makes it does, in the text's words without a demand; "" if it has none


def mistake(text: str, polarity: Polarity | None = None) -> Mistake:
    """Read a pitfall in the direction in which it is worded: "Recommends X" and "Does not mention X" name a
    mistake, "Avoids recommending X" and "should not omit X" demand that it be avoided.

    A `polarity` that says otherwise is right: where "Avoids X" names a mistake, the mistake is not to do X;
    where "Recommends X" asks for X, no words name the mistake.
    """
    rest = _DEMAND.sub("", text)
    omission = _OMISSION.match(rest)
    demanded, left_out, named = rest != text, bool(omission), rest[:1].upper() + rest[1:]
    if polarity == ("mistake" if demanded else "avoidance"):
        demanded, left_out, named = not demanded, not left_out, text if demanded else ""
    return Mistake(rest[omission.end() :] if omission else rest, left_out, demanded, named)


def polarity(text: str) -> Polarity:
    """How a pitfall is worded, by its first words. What may be praise ("Warns of X") or names no act is
    unclear."""
    if _DEMAND.match(text):
        return "avoidance"
    return "mistake" if _NAMED.match(text) and not _PRAISE.match(text) else "unclear"


@dataclass(frozen=True)
class Criterion:
    """One item of a rubric. `description` is without its category prefix; `weight` is the one that rewards
    use."""

    title: str
    description: str
    category: str  # a key of CATEGORY_WEIGHT, or "literal" for signed points
    weight: float
    raw: float = 0.0  # the data's own weight, with its sign; criteria of ours have none
    as_worded: bool = False  # whether the judge is asked if a pitfall's text holds
    # Rules by name that earn the item: then judging/rules.py gives its verdict, and no judge is asked.
    check: dict[str, Any] | None = field(default=None, repr=False, hash=False)
    polarity: Polarity | None = None  # how a pitfall is worded; None: its first words tell
    choices: tuple[str, ...] | None = None  # three or more, from worst to best; None: no and yes

    def __post_init__(self) -> None:
        """Keep choices as a tuple, because a list has no hash; no and yes are none. Raises ValueError for too
        few and too many."""
        choices = tuple(self.choices or ())
        if [text.strip().casefold() for text in choices] in ([], ["no", "yes"]):
            choices = None
        elif not 3 <= len(choices) <= 10:
            raise ValueError(
                f"{self.title!r:.80} has {len(choices)} choices: expected 3 to 10 from worst to best, or no "
                "and yes"
            )
        object.__setattr__(self, "choices", choices)

    @property
    def negative(self) -> bool:
        """Whether it is about a mistake: a pitfall, or an item that costs points."""
        return self.category == "pitfall" or self.weight < 0

    @property
    def asks_avoidance(self) -> bool:
        """Whether the judge is asked if a mistake was avoided, rather than if the text holds."""
        return self.category == "pitfall" and not self.as_worded

    @property
    def mistake(self) -> Mistake:
        """What a pitfall is about, in the direction in which it is worded."""
        return mistake(self.description, self.polarity)

    @property
    def direction(self) -> Polarity:
        """How a pitfall is worded, as the data says or else its first words."""
        return self.polarity or polarity(self.description)

    @property
    def opposed(self) -> bool:
        """Whether a verdict of 1 means that a response does not say what the item is about. Pitfalls that
        were avoided are such items, however they are worded: "Recommends X", "Avoids X". "Does not mention X"
        is none."""
        return self.mistake.omission != (self.mistake.demanded or self.asks_avoidance)


@dataclass(frozen=True)
class Rubric:
    """The criteria of one question, in the order of the data row."""

    criteria: tuple[Criterion, ...]

    def __len__(self) -> int:
        return len(self.criteria)

    @property
    def weights(self) -> list[float]:
        return [criterion.weight for criterion in self.criteria]


@dataclass(frozen=True)
class Design:
    """What becomes of a rubric before it is judged.

    Signed points (HealthBench) have no categories: with anything but the defaults, such a row is refused.
    """

    rubric_drop: Literal["none", "optional-and-below", "labels", "pitfalls"] = "none"
    """what is left out, as in the paper's Table 2: optional-and-below, all items but the essential ones, so
    that important ones and pitfalls go, too; pitfalls; or labels, the words essential, important, optional
    and pitfall: rar-implicit does not show them, in rar-explicit all items weigh alike"""
    weights: Literal["paper", "v1", "raw", "uniform"] = "paper"
    """what an item weighs in rar-explicit: 1, 0.7, 0.3, and for a pitfall 0.9 (paper) or 0.8 (v1, its first
    version); the size of the data's own weight (raw); or 1 (uniform)"""
    pitfalls: Literal["avoided", "literal", "signed"] = "avoided"
    """what a pitfall asks: was the mistake avoided, however it is worded, which earns its weight (avoided);
    or does it hold as worded, which earns its weight (literal) or costs it (signed)"""

    def apply(self, rubric: Rubric, name: str) -> Rubric:
        """The criteria that a judge is asked about. `name` is the example's, for errors.

        Raises ValueError if the rubric has no categories, and if no item is left that can earn anything.
        """
        if self == Design():
            return rubric
        if any(criterion.category not in CATEGORY_WEIGHT for criterion in rubric.criteria):
            raise ValueError(
                f"the rubric of {name!r} has signed points: expected categories, which --rubric-drop, "
                "--weights and --pitfalls go by; leave these options out"
            )
        dropped = DROPPED.get(self.rubric_drop, ())
        criteria = tuple(self._put(each) for each in rubric.criteria if each.category not in dropped)
        if not any(criterion.weight > 0 for criterion in criteria):
            raise ValueError(
                f"--rubric-drop {self.rubric_drop} with --pitfalls {self.pitfalls} leaves nothing to earn in "
                f"the rubric of {name!r}: expected an item of positive weight; leave that row out, or change "
                "these options"
            )
        return Rubric(criteria)

    def _put(self, criterion: Criterion) -> Criterion:
        by = "uniform" if self.rubric_drop == "labels" else self.weights
        size = abs(criterion.raw) if by == "raw" else WEIGHTS[by][criterion.category]
        as_worded = criterion.category == "pitfall" and self.pitfalls != "avoided"
        weight = -size if as_worded and self.pitfalls == "signed" else size
        # An item that weighs nothing in the data weighs nothing here.
        return replace(criterion, weight=weight if criterion.weight else 0.0, as_worded=as_worded)


def rating_to_unit(rating: float) -> float:
    """A rating from 1 to 10 on the scale of rewards: (rating - 1) / 9. The paper leaves the formula out."""
    return (rating - 1) / 9


def directions(rubrics: Iterable[Rubric]) -> str:
    """How the pitfalls are worded that a judge is asked about, in words; "" if there are none."""
    items = (item for rubric in rubrics for item in rubric.criteria if item.weight and not item.check)
    n = Counter(item.direction for item in items if item.asks_avoidance)
    named, demanded, unclear = (n[way] for way in get_args(Polarity))
    return f"{named} name the mistake, {demanded} ask to avoid it, {unclear} unclear" if n else ""


def category_of(description: str, weight: float) -> tuple[str, str, bool]:
    """Read an item's category, and say whether the prefix alone could tell it.

    Returns (category, description without its prefix, clean). The released data has a few odd prefixes
    ("Esssential", "Option", "Universal") and some items with none. Then the weight decides: 5 essential, 4
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
    """Make a RaR rubric of {title, description, weight, check, polarity, choices} rows. Odd or missing
    prefixes are counted in `notes`, and so are clean prefixes that the sign of the weight contradicts: then
    the prefix counts.

    An item whose data weight is 0 keeps its place and weighs nothing.
    """
    criteria = []
    for item in items:
        category, text, clean = category_of(item["description"], item["weight"])
        if not clean:
            notes["items whose category was read from the weight"] += 1
        elif item["weight"] and (category == "pitfall") != (item["weight"] < 0):
            notes["items whose weight has the wrong sign for their category"] += 1
        weight = CATEGORY_WEIGHT[category] if item["weight"] else 0.0
        rules = item.get("check") or {}
        check = {name: value for name, value in rules.items() if value is not None} or None  # as in Parquet
        raw = float(item["weight"])
        more = {"check": check, "polarity": item.get("polarity"), "choices": item.get("choices")}
        criteria.append(Criterion(item["title"], text, category, weight, raw, **more))
    return Rubric(tuple(criteria))


def from_points(items: Sequence[dict]) -> Rubric:
    """Make a literal rubric of HealthBench's {criterion, points} rows. The title is the item's first
    words."""
    criteria = []
    for item in items:
        title, points = " ".join(item["criterion"].split()[:4]), float(item["points"])
        criteria.append(Criterion(title, item["criterion"], "literal", points, points))
    return Rubric(tuple(criteria))
