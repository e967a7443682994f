"""Breaks the code on purpose, one place at a time, and counts how many of these mutations a test notices.

    python tests/mutate.py                          # the files of the story and those that keep its records
    python tests/mutate.py rar_mini/grpo.py         # one file
    python tests/mutate.py --again                  # try those anew that survived
    python tests/mutate.py --list                   # what is known, without running anything

A mutation changes one comparison, sign, connective, constant, minimum or maximum, or NaN, or drops one
keyword argument of a call. It is noticed if a test fails: of the fast tests, those that execute the line run
in a copy of the project, until one does.

Three things make that affordable. Each line knows its tests: one run of the whole suite under coverage, in
which a fixture that several tests share counts for each of them, and a process that a test starts counts
for that test. Each trial is forked from a process that has imported everything and collected the tests, and
the mutated function is given its new code there; only what is executed when a file is imported needs that
again. And the tests that noticed earlier mutations of a function go first, then those that share rare words
with the mutated line.

All results are kept in .mutate/, and a run goes on where it stopped. What is mutated is the project as it was
at that run under coverage: `--fresh` takes it as it is now, after code or tests have changed.

mutmut and cosmic-ray would be less to maintain. The first leaves out functions with decorators (every kernel
and context manager here) and constants outside of functions, and rewrites what Triton reads as source; the
second starts a process for every trial, 5 s each before the first test.

tests/equivalent.toml names the mutations that change nothing a test could see, each with the reason.
"""

import argparse
import ast
import contextlib
import fnmatch
import gc
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".mutate"
SURVEY = STATE / "survey"
STORY = ("train.py", "judge.py", "rar_mini/grpo.py", "rar_mini/sampler.py", "kernels/advantage.py")
STORY += ("kernels/logprob.py", "rar_mini/recipe.py")
RUNS = tuple(f"rar_mini/{name}.py" for name in ("scores", "setup", "guard", "checkpoint", "files"))
JUDGES = ("rar_mini/judging/wires.py", "rar_mini/judging/ledger.py", "rar_mini/evaluation/agreement.py")
FILES = (*STORY, *RUNS, *JUDGES, "kernels/draw.py")

# --- what can be changed ------------------------------------------------------------------------------------

COMPARISONS = {
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")},
}
OPERATORS = {
    **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")},
    **{ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.MatMult: ("@", "*")},
    **{ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<")},
}
SIGNS = {ast.USub: "-", ast.UAdd: "+", ast.Not: "not", ast.Invert: "~"}
PAIRS = [("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("clamp_min", "clamp_max"), ("any", "all")]
SWAPS = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])} | {"nanmean": "mean"}


@dataclass(frozen=True)
class Mutation:
    """One change of one place; `name` stays when other lines move."""

    file: str
    function: str  # the innermost one, "" outside of any
    lines: tuple[int, int]  # of the statement that it is in
    at_import: bool  # whether the place is executed when the file is imported
    text: str  # its line
    change: str  # what becomes of what
    source: bytes  # of the whole file, changed
    number: int  # among those of the function that have the same text and change

    @property
    def name(self) -> str:
        return " | ".join((self.file, self.function, self.text, self.change, str(self.number)))


class Finder(ast.NodeVisitor):
    """Collects the mutations of a file. What is text is left alone: docstrings, messages, annotations."""

    def __init__(self, root: Path, file: str) -> None:
        self.file, self.source = file, (root / file).read_bytes()
        self.starts = [0, *(match.end() for match in re.finditer(b"\n", self.source))]
        self.found: list[Mutation] = []
        self.functions: list[str] = []
        self.lines, self.at_import = (1, 1), True
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.visit(ast.parse(self.source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body and body[0].lineno > node.lineno else node.end_lineno
            outer, self.lines = self.lines, (node.lineno, max(node.lineno, end))
            super().visit(node)
            self.lines = outer
        else:
            super().visit(node)

    def add(self, start: int, end: int, new: str, change: str | None = None) -> None:
        """Replace source[start:end]."""
        line = self.source.count(b"\n", 0, start)
        text = self.source[self.starts[line] :].split(b"\n")[0].decode().strip()
        change = change or f"{self.source[start:end].decode()} -> {new}"
        function = ".".join(self.functions)
        self.seen[function, text, change] += 1
        number = self.seen[function, text, change]
        source = self.source[:start] + new.encode() + self.source[end:]
        place = (self.file, function, self.lines, self.at_import, text)
        self.found.append(Mutation(*place, change, source, number))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where in the source a node lies, in bytes."""
        first = self.starts[node.lineno - 1] + node.col_offset
        return first, self.starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, left: ast.AST, right: ast.AST, word: str, new: str) -> None:
        """Replace the operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end])
        at = start + gap.index(word.split()[0].encode())
        stop = start + gap.index(word.split()[-1].encode(), at - start) + len(word.split()[-1])
        self.add(at, stop, new, f"{word} -> {new}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.functions.append(node.name)
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        outer, self.at_import = self.at_import, False
        for statement in node.body:
            self.visit(statement)
        self.at_import = outer
        self.functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    def visit_arg(self, node: ast.arg) -> None:
        """Annotations are text."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What stands in a message is text."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """An assertion names the impossible: no input reaches it."""

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "__name__ == '__main__'":
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            self.between(left, right, *COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.between(node.left, node.right, *OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.between(node.target, node.value, *(f"{word}=" for word in OPERATORS[type(node.op)]))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, sign = self.span(node)[0], SIGNS[type(node.op)]
        self.add(start, start + len(sign), "", f"{sign} dropped")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        start, end = self.span(node)
        pieces, at = [], start
        for left, right in zip(node.values, node.values[1:], strict=False):
            gap = slice(self.span(left)[1], self.span(right)[0])
            swapped = re.sub(rf"\b{word}\b".encode(), other.encode(), self.source[gap])
            pieces += [self.source[at : gap.start], swapped]
            at = gap.stop
        text = b"".join([*pieces, self.source[at:end]]).decode()
        self.add(start, end, f"({text})", f"{word} -> {other}")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(*self.span(node), str(not value))
        elif isinstance(value, int):
            self.add(*self.span(node), str(value + 1))
        elif isinstance(value, float):
            self.add(*self.span(node), repr(value * 2 or 1.0))

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == "NAN" and isinstance(node.ctx, ast.Load):
            self.add(*self.span(node), "0.0")
        elif node.id in SWAPS and isinstance(node.ctx, ast.Load):
            self.add(*self.span(node), SWAPS[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr.rstrip("_") in SWAPS:
            end = self.span(node)[1]
            tail = "_" * node.attr.endswith("_")
            self.add(end - len(node.attr), end, SWAPS[node.attr.rstrip("_")] + tail)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node) == "float('nan')":
            return self.add(*self.span(node), "0.0")
        if ast.unparse(node.func) == "zip":  # strict, like an assertion, names the impossible
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        for keyword in node.keywords:
            if keyword.arg is not None:
                start, end = self.span(keyword)
                if after := re.match(rb"\s*,", self.source[end:]):
                    end += after.end()
                elif before := re.search(rb",\s*\Z", self.source[:start]):
                    start = before.start()
                self.add(start, end, "", f"{ast.unparse(keyword)} dropped")
        self.generic_visit(node)


# --- which tests execute a line -----------------------------------------------------------------------------


class Contexts:
    """A plugin of pytest: tells coverage, and processes that tests start, what is running; takes the time."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.shares: dict[str, list[str]] = {}  # the fixtures that a test shares with others
        self.current = ""

    def switch(self, name: str) -> str:
        before, self.current = self.current, name
        self.coverage.switch_context(name)
        os.environ["MUTATE_CONTEXT"] = name
        return before

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.switch(nodeid)

    def pytest_itemcollected(self, item: Any) -> None:
        every = item._fixtureinfo.name2fixturedefs.values()
        self.shares[item.nodeid] = [self._name(d) for defs in every for d in defs if d.scope != "function"]

    @staticmethod
    def _name(fixture: Any) -> str:
        return f"fixture {fixture.baseid}::{fixture.argname}"

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)


def contexts(coverage: Any) -> Contexts:
    """The plugin, with the hook that pytest wants to see wrapped."""
    import pytest

    class Wrapped(Contexts):
        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
            if fixturedef.scope == "function":
                return (yield)
            before = self.switch(self._name(fixturedef))
            try:
                return (yield)
            finally:
                self.switch(before)

    return Wrapped(coverage)


SETTINGS = """\
[run]
data_file = {folder}/.coverage
parallel = true
context = ${{MUTATE_CONTEXT-}}
patch = fork, _exit
disable_warnings = no-data-collected, module-not-measured, module-not-imported
include =
{files}
"""


def survey(out: str, *files: str) -> None:
    """Run fast tests of this copy under coverage; what they say goes into a file beside the data."""
    import coverage
    import pytest

    site, settings = ROOT / ".site", ROOT / ".coveragerc"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
    measured = "\n".join(f"    {ROOT / file}" for file in FILES)
    settings.write_text(SETTINGS.format(folder=ROOT, files=measured))
    os.environ |= {"COVERAGE_PROCESS_START": str(settings), "PYTHONPATH": str(site)}
    measure = coverage.Coverage(config_file=str(settings))
    measure.start()
    sys.argv = ["pytest"]
    plugin = contexts(measure)
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files], plugins=[plugin])
    measure.stop()
    measure.save()
    told = {"seconds": plugin.seconds, "failed": sorted(plugin.failed)}
    (ROOT / out).write_text(json.dumps(told | {"shares": plugin.shares}))


class Tests:
    """Which tests execute a line: first those that share its rare words, and of these the fastest."""

    def __init__(self, folder: Path) -> None:
        import coverage

        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        users = defaultdict(set)
        for path in folder.glob("tests-*.json"):
            told = json.loads(path.read_text())
            self.seconds |= told["seconds"]
            self.failed |= set(told["failed"])
            for test, fixtures in told["shares"].items():
                for fixture in fixtures:
                    users[fixture].add(test)
        data = coverage.CoverageData(str(folder / ".coverage"))
        data.read()
        self.of: dict[str, dict[int, set[str]]] = {}
        for path in data.measured_files():
            self.of[str(Path(path).relative_to(folder))] = {
                line: {test for name in names for test in (users[name] if name[:8] == "fixture " else [name])}
                & (self.seconds.keys() - self.failed | {""})
                for line, names in data.contexts_by_lineno(path).items()
            }

        self.words = {test: _words_of(folder, test) for test in self.seconds}
        self.users = Counter(word for words in self.words.values() for word in words)

    def likely(self, mutation: Mutation, test: str) -> float:
        """How much a test has to do with a mutation's line, for its seconds."""
        shared = self.words[test] & _words(f"{mutation.function} {mutation.text}")
        rare = sum(math.log(len(self.words) / self.users[word]) for word in shared)
        return rare / (0.3 + self.seconds[test]) ** 0.5

    def covering(self, mutation: Mutation) -> tuple[list[str], bool]:
        """The tests to try, and whether the place is also executed when files are imported. A constant or a
        default is everyone's who executes a function of the file."""
        first, last = mutation.lines
        lines = self.of.get(mutation.file, {})
        tests = set().union(*(lines.get(line, ()) for line in range(first, last + 1)))
        imported = mutation.at_import or "" in tests
        if mutation.at_import:
            tests = set().union(*lines.values())
            tests |= {t for t in self.seconds if t.startswith(f"tests/test_{Path(mutation.file).stem}.py")}
        found = sorted(
            tests - self.failed - {""}, key=lambda test: (-self.likely(mutation, test), self.seconds[test])
        )
        # Four sets of a test's parameters, and four others only after all other tests.
        before: Counter[str] = Counter()
        rounds = {}
        for test in found:
            name = test.partition("[")[0]
            rounds[test] = before[name] // 4
            before[name] += 1
        return sorted(found, key=rounds.__getitem__), imported


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z]{3,}", text.lower()))


@cache
def _sources(path: Path) -> dict[str, set[str]]:
    """The words of a file's functions, by their names."""
    text = path.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return {node.name: _words(_segment(text, node)) for node in nodes}


def _segment(text: str, node: ast.FunctionDef) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _words_of(folder: Path, test: str) -> set[str]:
    """The words of a test: its name, its parameters and its code."""
    file, _, name = test.partition("::")
    return _sources(folder / file).get(name.partition("[")[0].split("::")[-1], set()) | _words(name)


# --- trials -------------------------------------------------------------------------------------------------


def copy(folder: Path) -> None:
    """Copy the project's files."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def swap(path: Path, source: bytes) -> bool:
    """Give the functions of an imported file the code that they have in `source`. False, and nothing is
    changed, where more than functions' bodies differs."""
    old, new = (list(_codes(compile(text, str(path), "exec"))) for text in (path.read_bytes(), source))
    if len(old) != len(new):
        return False
    swaps = {before: after for before, after in zip(old, new, strict=True) if before != after}
    functions = [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__ in swaps]
    functions = [f for f in functions if Path(f.__code__.co_filename).resolve() == path.resolve()]
    if not functions or any(
        len(f.__code__.co_freevars) != len(swaps[f.__code__].co_freevars) for f in functions
    ):
        return False
    for function in functions:
        function.__code__ = swaps[function.__code__]
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A file's functions and classes, the innermost first."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
            yield constant


class Limits:
    """A plugin of pytest: ends a test that takes far longer than it did, names the first that fails, and
    skips what would begin after `end`."""

    def __init__(self, killer: Path, seconds: dict[str, float], end: float) -> None:
        self.killer, self.seconds, self.end = killer, seconds, end

    def pytest_runtest_setup(self) -> None:
        import pytest

        if time.monotonic() > self.end:
            pytest.skip("the time is over")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.killer.write_text(f"{nodeid} (too long)")
        signal.alarm(int(30 + 10 * self.seconds[nodeid]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.killer.write_text(report.nodeid)


class Nest(Limits):
    """In place of running what it collected, forks a trial of each mutation that comes in a line."""

    def __init__(self, asked: TextIO, answers: TextIO, options: list[str]) -> None:
        super().__init__(ROOT / "killer", {}, 0.0)
        self.asked, self.answers, self.options = asked, answers, options

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        print(json.dumps(list(items)), file=self.answers, flush=True)
        for line in self.asked:
            job = json.loads(line)
            path = ROOT / job["file"]
            before = path.read_bytes()
            if not (pid := os.fork()):
                os._exit(self.trial(session, items, path, job))
            status = os.waitpid(pid, 0)[1]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what its tests started
            path.write_bytes(before)
            print(json.dumps(self.killer.read_text() if status else None), file=self.answers, flush=True)
        return True

    def trial(self, session: Any, items: dict[str, Any], path: Path, job: dict[str, Any]) -> int:
        """Run tests on the mutated project until one fails. Returns 0 where none noticed."""
        source, self.seconds, self.end = job["source"].encode(), job["tests"], time.monotonic() + job["most"]
        self.killer.write_text("import")
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (10 * 2**30, 10 * 2**30))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            swapped = not job["imported"] and swap(path, source)
            path.write_bytes(source)  # for the processes that tests start, and for Triton's interpreter
            if not swapped:
                return anew(self, self.options)
            session.items = [items[name] for name in self.seconds]
            for item, following in itertools.zip_longest(session.items, session.items[1:]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1
        except BaseException as error:
            self.killer.write_text(f"{self.killer.read_text()}: {error!r}")
            return 1
        return 0


def anew(limits: Limits, options: list[str]) -> int:
    """Run tests of the project imported again."""
    import pytest

    tests = list(limits.seconds)
    for name, module in list(sys.modules.items()):
        if name != "__main__" and (getattr(module, "__file__", None) or "").startswith(f"{ROOT}/"):
            del sys.modules[name]
    own = Limits(limits.killer, limits.seconds, limits.end)
    for some in filter(None, (tests[:3], tests[3:])):  # the likeliest alone, before all files are imported
        if code := pytest.main([*options, "-x", *some], plugins=[own]):
            return int(code)
    return 0


OPTIONS = [
    "-q",
    "--tb=no",
    "--basetemp=.tmp",
    *(f"-pno:{name}" for name in ("cacheprovider", "xdist", "timeout")),
]


def nest(words: list[str]) -> None:
    """The work of a process that a Nested started: talk through what were its input and output."""
    import pytest

    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a change of a second ago would be taken for the original
    asked, answers = open(os.dup(0)), open(os.dup(1), "w")  # noqa: SIM115
    os.dup2(2, 1)
    sys.argv = ["pytest"]
    flags = [word for word in words if word.startswith("-")]
    pytest.main([*OPTIONS, *words], plugins=[Nest(asked, answers, [*OPTIONS, *flags])])


class Nested:
    """A nest, from outside: a copy of the project, and a process there that has collected its tests."""

    def __init__(self, folder: Path, words: list[str], **env: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SURVEY, folder, symlinks=True, ignore=shutil.ignore_patterns(".coverage*"))
        for compiled in folder.rglob("__pycache__"):  # but tests, which do not change and take long
            if compiled.parent.name != "tests":
                shutil.rmtree(compiled)
        command = [sys.executable, "tests/mutate.py", "--nest", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=os.environ | env, stderr=log, **pipes)
        self.folder = folder

    def answer(self) -> Any:
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"a nest ended with {self.process.wait()}: see {self.folder}/log")
        return json.loads(line)

    def killer(
        self, mutation: Mutation, imported: bool, tests: dict[str, float], most: float = 1e9
    ) -> str | None:
        """The test that notices a mutation, of these with the seconds that they take and no longer than
        `most` seconds; None if none does."""
        job = {"file": mutation.file, "source": mutation.source.decode(), "imported": imported}
        print(json.dumps(job | {"tests": tests, "most": most}), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Results:
    """What became of each mutation: a JSONL file that grows, the last word on a mutation counts."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.known[row["name"]] = row

    def add(self, name: str, **facts: Any) -> None:
        self.known[name] = {"name": name} | facts
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.known[name], ensure_ascii=False) + "\n")


def prepared(fresh: bool, jobs: int) -> Tests:
    """Which tests execute which line, found out if need be."""
    os.environ |= {"OMP_NUM_THREADS": "1"}
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        os.environ.pop(name, None)
    if fresh or not (SURVEY / ".coverage").exists():
        print("the fast tests once, under coverage: some 15 minutes ...", flush=True)
        copy(SURVEY)
        files = sorted(SURVEY.glob("tests/**/test_*.py"), key=lambda path: -path.stat().st_size)
        shares = [[str(path.relative_to(SURVEY)) for path in files[n::jobs]] for n in range(jobs)]
        words = [["tests/mutate.py", "--survey", f"tests-{n}.json", *share] for n, share in enumerate(shares)]
        with open(SURVEY / "log", "w") as log:
            at_work = [
                subprocess.Popen([sys.executable, *w], cwd=SURVEY, stdout=log, stderr=log) for w in words
            ]
        if any([process.wait() for process in at_work]):
            raise RuntimeError(f"the survey of the tests failed: see {SURVEY}/log")
        combine = [sys.executable, "-m", "coverage", "combine", "-q", "--rcfile=.coveragerc"]
        subprocess.run(combine, cwd=SURVEY, check=True)
    tests = Tests(SURVEY)
    if tests.failed:
        print("left out, because they fail as it is: " + ", ".join(sorted(tests.failed)))
    return tests


def run(todo: list[Mutation], tests: Tests, results: Results, jobs: int, most: float) -> None:
    """Try mutations, each for `most` seconds: first by the tests on the torch path, then what is left of each
    kernel's file by its tests under Triton's interpreter."""
    kernels = {m.file: f"tests/test_{Path(m.file).stem}.py" for m in todo if m.file.startswith("kernels/")}
    noticed: dict[str, Counter[str]] = defaultdict(Counter)
    for row in results.known.values():
        noticed[_place(row["name"])][row.get("killer") or ""] += 1
    left, lock = {m.name for m in todo}, threading.Lock()

    def work(queue: list[Mutation], nested: Nested, file: str | None) -> None:
        collected = nested.answer()
        while True:
            with lock:
                if not queue:
                    return nested.close()
                mutation = queue.pop(0)
                before = noticed[_place(mutation.name)]
            covering, imported = (collected, mutation.at_import) if file else tests.covering(mutation)
            names = [t for t in covering if "under_the_interpreter" not in t]
            names.sort(key=lambda test: -before[test])  # stable: else as they were
            seconds = {name: tests.seconds.get(name, 1.0) for name in names}
            start = time.monotonic()
            killer = nested.killer(mutation, imported, seconds, most) if seconds else None
            with lock:
                before[killer or ""] += 1
                if killer is None and file is None and mutation.file in kernels:
                    continue  # for the interpreter
                left.remove(mutation.name)
                fate = "survived" if killer is None else "killed"
                took = round(time.monotonic() - start, 1)
                results.add(mutation.name, fate=fate, killer=killer, tests=len(seconds), seconds=took)
                print(f"{len(left):>5} left  {took:>5} s  {fate:<9} {mutation.name}", flush=True)

    for file in (None, *kernels):
        queue = [m for m in todo if m.name in left and (file is None or m.file == file)]
        words = ["--noconftest", kernels[file]] if file else []
        env = {"TRITON_INTERPRET": "1"} if file else {}
        nests = [Nested(STATE / f"copy-{job}", words, **env) for job in range(jobs)] if queue else []
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(work, queue, nested, file) for nested in nests]:
                done.result()


def _place(name: str) -> str:
    """Of a mutation's name: its file and its function there."""
    return " | ".join(name.split(" | ")[:2])


# --- what is said -------------------------------------------------------------------------------------------


def equivalents() -> list[dict[str, str]]:
    path = ROOT / "tests" / "equivalent.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["mutation"] if path.exists() else []


def why(mutation: Mutation, rules: list[dict[str, str]]) -> str | None:
    """Why a mutation changes nothing that a test could see; None where nobody says so."""
    for rule in rules:
        wanted = ((mutation.file, "file"), (mutation.function, "function"), (mutation.text, "text"))
        wanted = (*wanted, (mutation.change, "change"), (str(mutation.number), "number"))
        if all(fnmatch.fnmatchcase(value, _glob(rule.get(key, "*"))) for value, key in wanted):
            return rule["why"]
    return None


def _glob(pattern: str) -> str:
    """Brackets are ordinary characters of code; a star is the only wild one."""
    return re.sub(r"([\[?])", r"[\1]", pattern)


def table(mutations: list[Mutation], results: Results, rules: list[dict[str, str]]) -> None:
    """Survivors and equivalents one by one, then a row a file, and the rate last."""
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    for mutation in mutations:
        reason = why(mutation, rules)
        fate = "equivalent" if reason else results.known.get(mutation.name, {}).get("fate", "open")
        fates[mutation.file][fate] += 1
        if fate in ("survived", "equivalent"):
            print(f"{fate:<10} {mutation.name} (line {mutation.lines[0]})", reason or "", sep=": ")
    print("\n| file | mutations | killed | survived | equivalent | open | killed of what is not equivalent |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for file, of in [*fates.items(), ("all", sum(fates.values(), Counter()))]:
        tried = of["killed"] + of["survived"]
        numbers = (of.total(), of["killed"], of["survived"], of["equivalent"], of["open"])
        print(f"| {file} | " + " | ".join(map(str, numbers)) + f" | {of['killed'] / max(1, tried):.1%} |")


def main(argv: list[str]) -> None:
    if argv[:1] == ["--survey"]:  # this file in a copy of the project
        return survey(*argv[1:])
    if argv[:1] == ["--nest"]:
        return nest(argv[1:])
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("files", nargs="*", default=FILES, help="those of the story, if none is named")
    parser.add_argument("--again", action="store_true", help="try those anew that survived")
    parser.add_argument("--fresh", action="store_true", help="find out anew which tests execute which line")
    parser.add_argument("--list", action="store_true", help="print what is known, and run nothing")
    parser.add_argument("--most", type=float, default=1e9, metavar="SECONDS", help="to try each for")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    options = parser.parse_args(argv)
    STATE.mkdir(exist_ok=True)
    results, rules = Results(STATE / "results.jsonl"), equivalents()
    if not options.list:
        tests = prepared(options.fresh, options.jobs)
        mutations = [mutation for file in options.files for mutation in Finder(SURVEY, file).found]
        done = {name for name, row in results.known.items() if row["fate"] == "killed" or not options.again}
        todo = [m for m in mutations if m.name not in done and not why(m, rules)]
        run(todo, tests, results, options.jobs, options.most)
    root = SURVEY if SURVEY.exists() else ROOT
    table([mutation for file in options.files for mutation in Finder(root, file).found], results, rules)


if __name__ == "__main__":
    main(sys.argv[1:])
