"""The shape of the house: arrows between rooms, sizes, and that README, CI and the config say the same."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
VERBS = ("train.py", "judge.py", "evaluate.py")
STORY = ("train.py", "judge.py", "rar_mini/grpo.py", "rar_mini/sampler.py", "kernels/advantage.py")
STORY += ("kernels/logprob.py",)
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("rar_mini/*.py"), *ROOT.glob("kernels/*.py"))
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
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_arrows_point_one_way() -> None:
    """kernels <- rar_mini <- judge <- train, evaluate. The package holds nouns, the top level verbs."""
    for name in SOURCES:
        tops = {module.split(".")[0] for module in imports(name)}
        if name.startswith("kernels/"):
            assert not tops & {"train", "judge", "evaluate"}, name
            own = {module for module in imports(name) if module.startswith("rar_mini")}
            assert all(module.startswith("rar_mini.kernels") for module in own), name
        elif name.startswith("rar_mini/"):
            assert not tops & {"train", "judge", "evaluate"}, name
        elif name == "judge.py":
            assert not tops & {"train", "evaluate"}
        elif name == "train.py":
            assert "evaluate" not in tops


def test_rooms_keep_to_themselves() -> None:
    words = {
        "rar_mini/model.py": {"rar_mini.sampler", "rar_mini.prefix"},
        "rar_mini/sampler.py": {"transformers", "rar_mini.policy"},
        "rar_mini/grpo.py": {"torch.optim"},
        "rar_mini/endpoint.py": {"rar_mini.rubric", "rar_mini.data"},
    }
    for name, forbidden in words.items():
        assert not imports(name) & forbidden, name
    standard = {"re", "collections", "collections.abc", "dataclasses", "typing"}
    assert {m for m in imports("rar_mini/rubric.py") if "." not in m or m in standard} <= standard


def test_sizes() -> None:
    """Size is a feature. When this fails, cut something that nobody named; do not write denser."""
    sizes = {name: len(code_lines(name)) for name in SOURCES}
    assert sum(sizes.values()) < 6700, sizes
    assert sum(sizes[name] for name in STORY) < 1600, {name: sizes[name] for name in STORY}
    assert max(sizes.values()) <= 400, sizes
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


def test_readme_defines_every_metric_and_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"`{name}`" in readme, f"README does not define {name}"
    for name in SOURCES:
        if not name.endswith("__init__.py"):
            assert Path(name).name in readme, f"README's tree does not show {name}"


METRICS = """step learning_rate reward reward_std frac_reward_zero_std reward_length_correlation
completions/mean_length completions/min_length completions/max_length completions/clipped_ratio judge/failures
judge/questions loss grad_norm entropy kl
sampling/sampling_logp_difference/mean sampling/sampling_logp_difference/max
clip_ratio/low_mean clip_ratio/high_mean eval/train_reward eval/held_out_reward eval/held_out_gold_reward
pass_rate/essential pass_rate/important pass_rate/pitfall items/never_met items/always_met perf/seconds_sample
perf/seconds_judge perf/seconds_train perf/tokens_per_second""".split()


def test_no_metric_is_logged_without_a_definition(tiny: Path, questions: Path, tmp_path: Path) -> None:
    import json

    words = (
        f"--policy {tiny} --data {questions} --out {tmp_path / 'run'} --judge keyword --steps 1 --beta 0.1"
    )
    words += " --gold-judge keyword"
    words += " --prompts-per-step 2 --group-size 4 --max-new-tokens 8 --save-every 0 --eval-samples 1"
    train.main(words.split())
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {name for row in rows for name in json.loads(row)} == set(METRICS)


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
