"""The shape of the house: arrows between rooms, sizes, and that README, CI and the config say the same."""

import ast
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

import train
from rar_mini.config import PRESETS, Config

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
        "rar_mini/judging/endpoint.py": {"rar_mini.rubric", "rar_mini.data"},
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


def judged(config: Config, scored: int) -> int:
    """Answers that a run has judged: those of its steps, and those of its scores of so many questions: before
    training, every so many steps, and at the end."""
    scores = {0, config.steps, *range(0, config.steps, config.eval_every)}
    steps = config.steps * config.prompts_per_step * config.group_size
    return steps + len(scores) * scored * config.eval_samples


def test_no_metric_is_logged_without_a_definition(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """And each of 15 criteria of an answer is one question for this judge."""
    words = f"--policy {tiny} --data {questions} --out {tmp_path / 'run'} --judge keyword --beta 0.1"
    words += " --steps 3 --eval-every 2 --gold-judge keyword"
    words += " --prompts-per-step 2 --group-size 4 --max-new-tokens 8 --save-every 0 --eval-samples 1"
    train.main(words.split())
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} == set(METRICS)
    run = Config(steps=3, prompts_per_step=2, group_size=4, eval_every=2, eval_samples=1)
    assert sum(row["judge/questions"] for row in rows) == 15 * judged(run, scored=5 + 2)


def test_readme_counts_the_papers_requests_and_adds_up_its_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = PRESETS["paper"]
    questions = 2 * paper.eval_questions
    steps, whole = judged(paper, scored=0), judged(paper, scored=questions)
    assert f"{steps:,} requests, and {whole - steps} for seven scores of {questions} questions" in readme
    assert f"{whole:,} calls of gpt-4o-mini, scores included" in readme
    table = dict(re.findall(r"^\| (\S+) \| ([\d.]+) \| [\d.]+ \|", readme, re.MULTILINE))
    more = [
        float(table["RaR-Implicit"]) / float(table[f"{name}-Likert"]) - 1 for name in ("Direct", "Reference")
    ]
    text = "RaR-Implicit is {:.0f} % above\nDirect-Likert and {:.0f} % above Reference-Likert"
    assert text.format(*(100 * x for x in more)) in readme


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
