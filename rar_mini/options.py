"""Command lines that answer a mistake with the nearest thing that exists."""

import dataclasses
import difflib
from collections.abc import Iterable

ELSEWHERE = {
    "learning-rate": "it is --lr here.",
    "num-generations": "it is --group-size here.",
    "max-completion-length": "it is --max-new-tokens here.",
    "max-steps": "it is --steps here.",
    "model": "it is --policy here.",
    "output-dir": "it is --out here.",
    "epsilon": "it is --clip-low and --clip-high here.",
}
"""What people who come from other trainers type."""
ELSEWHERE |= dict.fromkeys(
    ("top-p", "top-k"),
    "training samples from the full softmax, because under a truncated one the ratio of GRPO would not start "
    "at 1. Lower --temperature instead.",
)


def refuse_unknown(argv: Iterable[str], settings: type) -> None:
    """Raise ValueError for a word of a command line that looks like an option of a dataclass and is none."""
    known = {"help"}
    for field in dataclasses.fields(settings):
        name = field.name.replace("_", "-")
        known |= {name, f"no-{name}"} if field.type is bool else {name}
    for word in argv:
        name = word.split("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and name not in known:
            hint = ELSEWHERE.get(name) or nearest(name, known, "--")
            raise ValueError(f"no option --{name}{hint and ': '}{hint} (see --help)")


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that offers the known word nearest to this one; nothing if none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else ""
