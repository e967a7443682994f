"""Every notebook is stored with what it printed, and prints it again.

python tests/test_notebooks.py [NAME...]   # run them and store their outputs anew
"""

import math
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def executed(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, record_timing=False, resources=folder).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # without progress, whose lines depend on the clock
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell shows as text."""
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data = [output.get("data", {}) for output in cell.outputs]
            texts = [output.get("text", "") for output in cell.outputs]
            texts += [kinds.get("text/markdown") or kinds.get("text/plain", "") for kinds in data]
            shown.append("".join(texts))
    return shown


def first(shown: list[str]) -> str:
    """The versions and the kind of CPU."""
    return next(filter(None, shown))


def store(path: Path) -> None:
    """Run a notebook and keep its outputs, without what a kernel adds about itself."""
    notebook = executed(path)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def differences(stored: str, fresh: str) -> list[str]:
    """The lines that say something else. Numbers may differ by 1 %, and rounding errors as they like."""
    found = []
    lines = stored.splitlines(), fresh.splitlines()
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines became {len(lines[1])}"]
    for old, new in zip(*lines, strict=True):
        pairs = [[float(x.replace(",", "")) for x in NUMBER.findall(line)] for line in (old, new)]
        alike = len(pairs[0]) == len(pairs[1]) and NUMBER.sub("", old).split() == NUMBER.sub("", new).split()
        if not alike or not all(map(_close, *pairs)):
            found.append(f"{old!r} became {new!r}")
    return found


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0.01) or max(abs(a), abs(b)) < 1e-4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_one_run_from_top_to_bottom(path: Path) -> None:
    """It reads on the hub; nothing failed or complained; no output was left by a cell of before."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert first(printed(notebook)).startswith("Printed by torch ")
    assert path.stat().st_size < 400_000, "figures of a few hundred kilobytes make every diff unreadable"
    assert notebook.metadata.language_info == {"name": "python"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prints_again_what_is_stored(path: Path) -> None:
    """With the versions and the kind of CPU that its first cell names; with others it has to run."""
    stored, fresh = printed(nbformat.read(path, as_version=4)), printed(executed(path))
    if first(stored) == first(fresh):
        found = {i: differences(old, new) for i, (old, new) in enumerate(zip(stored, fresh, strict=True))}
        assert not any(found.values()), {i: lines for i, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        ("loss 0.123, was -3e-08", "loss 0.1235, was  2e-08", True),
        ("loss 0.123", "loss 0.131", False),
        ("tensor([0.5, nan])", "tensor([0.5, nan])", True),
        ("1. A fever", "1. A cold", False),
        ("moved by -0.001", "moved by 0.001", False),
        ("one\ntwo", "one", False),
    ],
)
def test_outputs_are_compared_by_words_and_numbers(old: str, new: str, alike: bool) -> None:
    assert (not differences(old, new)) == alike


def test_there_are_notebooks() -> None:
    """A pattern that finds nothing would leave the tests above without a case."""
    assert {path.stem for path in NOTEBOOKS} == {"claims", "kernels", "lab", "walkthrough"}


if __name__ == "__main__":
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            store(path)
