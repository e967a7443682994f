"""What all forms that are read from outside share: strict models, one sentence for a fault, and foreign text
made fit for files and terminals.

A form is a pydantic model beside the code that reads it: rows in data.py, prices in judging/ledger.py, a
run's own files in checkpoint.py. A strict model converts nothing: "5" and true are no numbers, 5 is no text.
Fields that a model does not name are left alone.
"""

import re
import reprlib
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import PydanticCustomError

ABSENT: Any = None
"""The default of a field that has to be there: a missing one is checked as null, and so refused in the words
of its type."""

WANTED = {
    "string_type": "text",
    "string_pattern_mismatch": "text",
    "string_unicode": "whole characters",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "too_short": "a list with at least one item",
    "dict_type": "an object",
    "model_type": "an object",
    "missing": "a value",
    "too_long": "at most {max_length} items",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
    "json_invalid": "JSON ({error})",
}
"""What was expected, by pydantic's name of the fault. Any other fault is told in pydantic's words."""

_ENDLESS = re.compile(r"\S{500,}")  # longer than paths and URLs
_HALF = re.compile("[\ud800-\udfff]")  # JSON may escape half a character, which no file or tokenizer takes


class Form(BaseModel):
    """A strict model."""

    model_config = ConfigDict(strict=True, validate_default=True)


def _number(value: Any) -> Any:
    """Refuse what pydantic would convert: a Parquet file has decimals, which JSON cannot hold."""
    if type(value) not in (int, float):
        raise PydanticCustomError("number", "a number")
    return value


T = TypeVar("T")
Many = Annotated[list[T], Field(min_length=1), FailFast()]
"""A list that is not empty, checked up to its first fault."""
Text = Annotated[str, Field(pattern=r"[^\s\x1c-\x1f]")]
"""Text that has more than white space, as str.strip() knows it, and no half characters."""
Number = Annotated[float, BeforeValidator(_number)]
"""A number as JSON writes it; Python's JSON also reads NaN and Infinity."""
Finite = Annotated[Number, Field(allow_inf_nan=False)]
"""A number without those."""
Unit = Annotated[Number, Field(ge=0, le=1)]
"""A probability or a share."""
Response = Annotated[str, BeforeValidator(lambda text: whole(text) if isinstance(text, str) else text)]
"""What a model wrote: any text. Halves of characters in it are replaced, because it may be a cut answer."""


F = TypeVar("F", bound=Form)


def read(form: type[F], value: Any, place: str, remedy: str = "") -> F:
    """Check a value against its form. Raises ValueError that names the place, the field and the remedy."""
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{place}: {fault(error)}" + (remedy and f"; {remedy}")) from None


def fault(error: ValueError | OSError, at: str = "") -> str:
    """Say what is wrong first: `field rubric[3].weight: expected a number, got '5'`.

    `at` is the field that was read, if it was not the whole. Any error but pydantic's has its own words.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # of a dataclass that checks itself, in its own words
        return str(first["ctx"]["error"])
    name = at
    for part in first["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{escaped(part)}"
    wanted = first["msg"].removeprefix("Input should be ")
    if first["type"] in WANTED:
        wanted = WANTED[first["type"]].format_map(first.get("ctx", {}))
    came = None if first["type"] == "missing" else first["input"]
    if first["type"] == "string_unicode":
        came = _HALF.search(came).group()
    return sentence(name.removeprefix("."), wanted, came)


def sentence(name: str, wanted: str, came: Any) -> str:
    """Say that a field is not as wanted, or without a name the whole."""
    shown = "nothing" if came is None else reprlib.repr(came)  # short, however long or deep it is
    return (f"field {name}: " if name else "") + f"expected {wanted}, got {shown}"


def escaped(name: str) -> str:
    """A foreign name: short and printable."""
    return printable(name[:80])


def printable(text: str) -> str:
    """Foreign text for a terminal, a table or a page: one line, without characters that act."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def legible(error: object) -> str:
    """An error's words for a terminal: its lines stay, characters that act are written out, and an endless
    number or word is cut."""
    words = _ENDLESS.sub(lambda found: f"{found[0][:40]}... ({len(found[0]):,} characters)", str(error))
    return "\n".join(map(printable, words.split("\n")))


def whole(text: str) -> str:
    """Foreign text for files and tokenizers: U+FFFD in place of each half of a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
