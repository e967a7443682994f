"""The tool that breaks the code on purpose: what it changes, and what it leaves alone."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import mutate
import pytest

SOURCE = '''\
"""A docstring: 1 < 2."""
LIMIT: int = 3


def share(a: "1 < 2", b: float = 0.5) -> float:
    """Not this: a + b."""
    assert a > 0, "impossible"
    if not a and b <= LIMIT:
        raise ValueError(f"{a + 1} and {b}")
    return max(a, key=-b) / f(a, c=1.0, b=NAN)
    return zip(a, strict=True)
'''

CHANGES = {
    ("", "3 -> 4"): "LIMIT: int = 4",
    ("share", "0.5 -> 1.0"): 'def share(a: "1 < 2", b: float = 1.0) -> float:',
    ("share", "and -> or"): "if (not a or b <= LIMIT):",
    ("share", "not dropped"): "if  a and b <= LIMIT:",
    ("share", "<= -> <"): "if not a and b < LIMIT:",
    ("share", "/ -> *"): "return max(a, key=-b) * f(a, c=1.0, b=NAN)",
    ("share", "max -> min"): "return min(a, key=-b) / f(a, c=1.0, b=NAN)",
    ("share", "key=-b dropped"): "return max(a) / f(a, c=1.0, b=NAN)",
    ("share", "- dropped"): "return max(a, key=b) / f(a, c=1.0, b=NAN)",
    ("share", "c=1.0 dropped"): "return max(a, key=-b) / f(a,  b=NAN)",
    ("share", "1.0 -> 2.0"): "return max(a, key=-b) / f(a, c=2.0, b=NAN)",
    ("share", "b=NAN dropped"): "return max(a, key=-b) / f(a, c=1.0)",
    ("share", "NAN -> 0.0"): "return max(a, key=-b) / f(a, c=1.0, b=0.0)",
}


@pytest.fixture
def found(tmp_path: Path) -> list[mutate.Mutation]:
    (tmp_path / "code.py").write_text(SOURCE)
    return mutate.Finder(tmp_path, "code.py").found


def test_each_place_is_changed_once_and_text_is_left_alone(found: list[mutate.Mutation]) -> None:
    """Docstrings, annotations and messages are text; assertions, and zip's strict, name the impossible."""
    before = SOURCE.splitlines()
    changed = {}
    for mutation in found:
        after = mutation.source.decode().splitlines()
        ast.parse(mutation.source)
        (line,) = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
        changed[mutation.function, mutation.change] = line
    assert changed == CHANGES and len(found) == len(CHANGES)


def test_every_mutation_of_the_project_is_code_with_a_name_of_its_own() -> None:
    for file in mutate.FILES:
        mutations = mutate.Finder(mutate.ROOT, file).found
        assert len({mutation.name for mutation in mutations}) == len(mutations) > 5, file
        for mutation in mutations[::10]:
            ast.parse(mutation.source)


def test_what_is_called_equivalent_names_mutations_that_exist(found: list[mutate.Mutation]) -> None:
    """A rule that fits nothing hides what it was written for."""
    mutations = [m for file in mutate.FILES for m in mutate.Finder(mutate.ROOT, file).found]
    for rule in mutate.equivalents():
        assert rule["why"] and any(mutate.why(m, [rule]) for m in mutations), rule
    assert mutate.why(found[0], [{"text": "LIMIT*", "why": "w"}]) == "w"
    assert mutate.why(found[0], [{"text": "LIMIT", "why": "w"}]) is None


PROJECT = {
    "pyproject.toml": """\
[tool.pytest.ini_options]
pythonpath = ["."]
""",
    "sums.py": """\
BASE = 1


def above(x):
    return x > BASE


def twice(x):
    def once():
        return x + 0

    return once() + once()


def slow(x):
    while x > 0:
        x = x - 3


FOUR = twice(2)
""",
    "tests/test_sums.py": """\
import subprocess
import sys

import sums
from sums import above, slow, twice


def test_a_name():
    assert above(2) and not above(1)


def test_a_closure():
    assert twice(3) == 6


def test_a_constant():
    assert sums.FOUR == 4


def test_a_process():
    subprocess.run([sys.executable, "-c", "import sums; assert sums.above(2)"], check=True)


def test_an_end():
    slow(3)
""",
}


@pytest.fixture(scope="module")
def nest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mutate.Nested]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "tests").mkdir()
    shutil.copy(mutate.__file__, folder / "tests")
    for name, text in PROJECT.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutate, "SURVEY", folder)
        made = mutate.Nested(tmp_path_factory.mktemp("nest") / "copy", [])
    names = ["a_name", "a_closure", "a_constant", "a_process", "an_end"]
    assert made.answer() == [f"tests/test_sums.py::test_{name}" for name in names]
    yield made
    made.close()


@pytest.mark.parametrize(
    ("function", "change", "tests", "killer"),
    [
        ("above", "> -> >=", ["a_closure", "a_name"], "a_name"),
        ("above", "> -> >=", ["a_closure", "a_process"], None),
        ("twice.once", "+ -> -", ["a_name", "a_closure"], None),
        ("twice.once", "0 -> 1", ["a_name", "a_closure"], "a_closure"),
        ("twice.once", "0 -> 1", ["a_constant"], "a_constant"),
        ("", "1 -> 2", ["a_closure", "a_name"], "a_name"),
        ("", "1 -> 2", ["a_closure", "a_process"], "a_process"),
        ("", "1 -> 2", ["a_closure"], None),
        ("slow", "- -> +", ["a_name", "an_end"], "an_end (too long)"),
    ],
)
def test_a_trial_names_the_test_that_notices(
    nest: mutate.Nested, function: str, change: str, tests: list[str], killer: str | None
) -> None:
    """Whoever holds a function, a constant or a file of its own; the next trial has the original again."""
    mutations = mutate.Finder(nest.folder, "sums.py").found
    (mutation,) = [m for m in mutations if (m.function, m.change) == (function, change) and m.number == 1]
    # An end that does not come is waited for 30 seconds and ten times as long as it took: two in all.
    seconds = {f"tests/test_sums.py::test_{name}": -2.8 * (name == "an_end") for name in tests}
    imported = mutation.at_import or "a_constant" in tests
    assert nest.killer(mutation, imported, seconds) == (killer and f"tests/test_sums.py::test_{killer}")


def test_a_trial_ends_when_its_time_is_over(nest: mutate.Nested) -> None:
    mutations = mutate.Finder(nest.folder, "sums.py").found
    (mutation,) = [m for m in mutations if (m.function, m.change) == ("above", "> -> >=")]
    seconds = {"tests/test_sums.py::test_a_closure": 0.0, "tests/test_sums.py::test_a_name": 0.0}
    for imported in (False, True):
        assert nest.killer(mutation, imported, seconds, 0.0) is None
        assert nest.killer(mutation, imported, seconds, 60.0) == "tests/test_sums.py::test_a_name"
