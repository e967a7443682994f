"""The shape of the house: arrows between rooms, sizes, and that README, CI and the config say the same."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = ("train.py", "judge.py", "evaluate.py")
STORY = ("train.py", "judge.py", "rar_mini/grpo.py", "rar_mini/sampler.py", "kernels/advantage.py")
STORY += ("kernels/logprob.py", "rar_mini/recipe.py")
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "rar_mini/**/*.py", "kernels/*.py", "lab/**/*.py")
    for path in ROOT.glob(pattern)
)


@cache
def code_lines(name: str) -> set[int]:
    """Numbers of the lines that hold code: no blanks, no comments, no docstrings."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines: set[int] = set()
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone documents: a module, a function, or the field above it.
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def imports(name: str) -> set[str]:
    """The modules that a file imports, for types alone or not, and what it takes from them."""
    found = set()
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


ABOVE = {
    "kernels/": {"rar_mini", "judge", "train", "evaluate", "lab"},
    "rar_mini/": {"judge", "train", "evaluate", "lab"},
    "judge.py": {"train", "evaluate", "lab"},
    "train.py": {"evaluate", "lab"},
    "evaluate.py": {"train", "lab"},
}


def test_arrows_point_one_way() -> None:
    """kernels <- rar_mini <- judge <- train, evaluate, lab. The package holds nouns, the top level verbs."""
    for name in SOURCES:
        # Kernels are installed as rar_mini.kernels, and import each other under that name.
        found = {module for module in imports(name) if not module.startswith("rar_mini.kernels")}
        tops = {module.split(".")[0] for module in found}
        for room, above in ABOVE.items():
            assert not name.startswith(room) or not tops & above, name


def test_no_circle_of_imports() -> None:
    """Each file is imported before those that import it, wherever in the file the import stands."""
    ours = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in SOURCES}
    ours = {f"rar_mini.{m}" if m.startswith("kernels") else m: name for m, name in ours.items()}
    uses = {name: {ours[m] for m in imports(name) if m in ours} - {name} for name in SOURCES}
    while free := [name for name, needs in uses.items() if not needs & uses.keys()]:
        for name in free:
            del uses[name]
    assert not uses


def test_rooms_keep_to_themselves() -> None:
    words = {
        "rar_mini/model.py": {"rar_mini.sampler", "rar_mini.prefix"},
        "rar_mini/sampler.py": {"transformers", "rar_mini.policy"},
        "rar_mini/grpo.py": {"torch.optim"},
        "rar_mini/judging/endpoint.py": {"rar_mini.rubric", "rar_mini.data"},
    }
    for name, forbidden in words.items():
        assert not imports(name) & forbidden, name
    standard = {"re", "collections", "collections.abc", "dataclasses", "typing"}
    assert {m for m in imports("rar_mini/rubric.py") if "." not in m or m in standard} <= standard


def test_sizes() -> None:
    """Size is a feature of the story. When this fails, cut something that nobody named; do not write
    denser."""
    sizes = {name: len(code_lines(name)) for name in STORY}
    assert sum(sizes.values()) < 1600, sizes
    for name in SOURCES:
        lines = code_lines(name)
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                assert long <= 60, f"{name}: {node.name} has {long} lines"


def test_every_setting_is_explained() -> None:
    """By the text under it, which is its help. What each does is held where tests/test_wiring.py says."""
    text = (ROOT / "rar_mini" / "config.py").read_text(encoding="utf-8")
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    assert {node.name for node in classes} == {"Asking", "Options", "Config"}
    for node in classes:
        for above, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(above, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{above.target.id} has no help"


def commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("pip install -e")]


def test_ci_runs_readmes_own_test_command() -> None:
    readme = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert readme[:2] == [
        "pip install -e . && python train.py --domain medical",
        "pip install -e '.[test]' && pytest",
    ]
    assert readme[1] in commands((ROOT / ".ci" / "run").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SOURCES)
def test_files_open_by_saying_what_they_are_for(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), name
