"""How far long work is: a bar on a terminal, and lines in a log file, in CI or in a notebook.

Without a terminal a bar would fill a log with its redrawings, and silence leaves a reader to guess whether a
run of hours is alive. So a line comes for each further tenth of the work, but none within 30 seconds of the
last one. Bars and lines go to standard error, so that standard output has a command's results alone.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SHARE, SECONDS = 0.1, 30.0
"""The work and the time between two lines, at least."""


class Lines:
    """What stands in the place of a bar without a terminal: those methods of tqdm that are used here."""

    def __init__(
        self,
        items: Iterable[Any],
        desc: str | None,
        total: int | None = None,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
        **looks: Any,
    ) -> None:
        self.items, self.desc, self.unit, self.clock = items, desc, unit, clock
        self.total = len(items) if total is None else total
        self.n = self._told = 0  # what is done, and what was done at the last line
        self._start = self._last = clock()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        """Lines leave nothing to clean up."""

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """Count what is done, and print a line if one is due."""
        self.n += n
        now = self.clock()
        if self.desc and now - self._last >= SECONDS and self.n - self._told >= SHARE * self.total:
            self._told, self._last = self.n, now
            done = f"{self.n / self.total:.0%} ({self.n:,} of {self.total:,} {self.unit}".rstrip()
            print(f"  {self.desc}: {done}) after {now - self._start:.0f} s", file=sys.stderr)


def progress_bar(items: Iterable[Any] = (), *, desc: str | None, **how: Any) -> Any:
    """tqdm's bar over items, or up to a `total` that `update` counts to; Lines if there is no terminal.
    Without a description nothing is shown."""
    if desc is None or not sys.stderr.isatty():
        return Lines(items, desc, **how)
    from tqdm import tqdm  # the rooms that load a model do without it

    return tqdm(items, desc=desc, leave=False, **how)
