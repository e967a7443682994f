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
for that test. Each trial is forked from a process that has imported the libraries. And the tests that
noticed earlier mutations of a file go first.

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
import importlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        self.libraries: list[str] = []  # what the tests import, and this project is not
        self.current = ""

    def pytest_collection_finish(self) -> None:
        kept = [(name, getattr(module, "__file__", None) or "") for name, module in sys.modules.items()]
        self.libraries = [name for name, file in kept if "/lib/python" in file and "__main__" not in name]

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


def survey(folder: Path) -> None:
    """Run the fast tests in `folder` under coverage; what they say goes into tests.json beside the data."""
    import coverage
    import pytest

    sys.dont_write_bytecode = False  # what is compiled now serves all trials
    site, settings = folder / ".site", folder / ".coveragerc"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
    files = "\n".join(f"    {folder / file}" for file in FILES)
    settings.write_text(SETTINGS.format(folder=folder, files=files))
    os.environ |= {"COVERAGE_PROCESS_START": str(settings), "PYTHONPATH": str(site)}
    measure = coverage.Coverage(config_file=str(settings))
    measure.start()
    plugin = contexts(measure)
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist"], plugins=[plugin])
    measure.stop()
    measure.save()
    told = {"seconds": plugin.seconds, "failed": sorted(plugin.failed)}
    told |= {"shares": plugin.shares, "libraries": plugin.libraries}
    (folder / "tests.json").write_text(json.dumps(told))


class Tests:
    """Which tests execute a line, fastest first."""

    def __init__(self, folder: Path) -> None:
        import coverage

        told = json.loads((folder / "tests.json").read_text())
        self.seconds: dict[str, float] = told["seconds"]
        self.failed = set(told["failed"])
        self.libraries: list[str] = told["libraries"]
        users = defaultdict(set)
        for test, fixtures in told["shares"].items():
            for fixture in fixtures:
                users[fixture].add(test)
        data = coverage.CoverageData(str(folder / ".coverage"))
        data.read()
        self.of: dict[str, dict[int, set[str]]] = {}
        for path in data.measured_files():
            self.of[str(Path(path).relative_to(folder))] = {
                line: {test for name in names for test in (users[name] if name[:8] == "fixture " else [name])}
                & (self.seconds.keys() - self.failed)
                for line, names in data.contexts_by_lineno(path).items()
            }

    def covering(self, mutation: Mutation) -> list[str]:
        """The tests to try. What is executed at import (a constant, a default) is everyone's who executes a
        function of the file, and a kernel's body, which Triton compiles, its own file of tests'."""
        first, last = mutation.lines
        lines = self.of.get(mutation.file, {})
        tests = set().union(*(lines.get(line, ()) for line in range(first, last + 1)))
        if mutation.at_import or not tests:
            tests = set().union(*lines.values())
            tests |= {t for t in self.seconds if t.startswith(f"tests/test_{Path(mutation.file).stem}.py")}
        return sorted(tests - self.failed, key=lambda test: self.seconds[test])


# --- trials -------------------------------------------------------------------------------------------------


class Limits:
    """A plugin of pytest: ends a test that takes far longer than it did, and names the first that fails."""

    def __init__(self, seconds: dict[str, float], killer: Path) -> None:
        self.seconds, self.killer = seconds, killer

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.killer.write_text(f"{nodeid} (too long)")
        signal.alarm(int(30 + 10 * self.seconds.get(nodeid, 5)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.killer.write_text(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        signal.alarm(0)


def copy(folder: Path) -> None:
    """Copy the project's files."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def fork(folder: Path, work: Any) -> int:
    """Call `work` in a child that stands in `folder` and whose words go to folder/log. Returns its id."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        here = (ROOT, ROOT / "tests")
        sys.path[:] = [str(folder), *(path for path in sys.path if Path(path).resolve() not in here)]
        sys.argv = ["pytest"]
        code = int(work() or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    os._exit(code)


def trial(folder: Path, mutation: Mutation, tests: list[str], seconds: dict[str, float]) -> int:
    """Run tests on the mutated copy, in a child. Returns pytest's code: 0 where no test noticed."""
    import pytest

    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a change of a second ago would be taken for the original
    (folder / mutation.file).write_bytes(mutation.source)
    (folder / "killer").write_text("import")
    resource.setrlimit(resource.RLIMIT_DATA, (10 * 2**30, 10 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    for some in filter(None, (tests[:3], tests[3:])):  # the likeliest alone, before all files are imported
        if code := pytest.main([*options, *some], plugins=[Limits(seconds, folder / "killer")]):
            return code
    return 0


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


def prepared(fresh: bool) -> Tests:
    """Which tests execute which line, found out if need be; and this process made ready to fork trials."""
    os.environ |= {"OMP_NUM_THREADS": "1"}
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        os.environ.pop(name, None)
    if fresh or not (SURVEY / "tests.json").exists():
        print("the fast tests once, under coverage: some 10 minutes ...", flush=True)
        copy(SURVEY)
        os.waitpid(fork(SURVEY, lambda: survey(SURVEY)), 0)
        combine = [sys.executable, "-m", "coverage", "combine", "-q", "--rcfile=.coveragerc"]
        subprocess.run(combine, cwd=SURVEY, check=True)
    tests = Tests(SURVEY)
    if tests.failed:
        print("left out, because they fail as it is: " + ", ".join(sorted(tests.failed)))
    for name in tests.libraries:  # once here, and not in each trial
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return tests


def run(todo: list[Mutation], tests: Tests, results: Results, jobs: int, most: float | None) -> None:
    """Try mutations, several at once, each in a copy of its own; `most` seconds of tests for each, as long as
    these took alone."""
    free = [STATE / f"copy-{job}" for job in range(jobs)]
    for folder in free:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SURVEY, folder, symlinks=True, ignore=shutil.ignore_patterns(".coverage*"))
        for cache in folder.rglob("__pycache__"):  # but those of tests, which do not change and take long
            if cache.parent.name != "tests":
                shutil.rmtree(cache)
    running: dict[int, tuple[Mutation, Path, int, float]] = {}
    noticed: dict[str, Counter[str]] = defaultdict(Counter)
    for row in results.known.values():
        noticed[row["name"].split(" | ")[0]][row.get("killer", "")] += 1
    queue = list(reversed(todo))
    while queue or running:
        while queue and free:
            mutation, folder = queue.pop(), free.pop()
            covering = tests.covering(mutation)
            covering.sort(key=lambda test: -noticed[mutation.file][test])  # stable: then by their seconds
            total = itertools.accumulate(tests.seconds[test] for test in covering)
            covering = [t for t, end in zip(covering, total, strict=True) if most is None or end <= most]
            if not covering:
                results.add(mutation.name, fate="survived", tests=0)
                free.append(folder)
                continue
            work = (folder, mutation, covering, tests.seconds)
            pid = fork(folder, lambda work=work: trial(*work))
            running[pid] = mutation, folder, len(covering), time.monotonic()
        if not running:
            continue
        pid, status = os.wait()
        mutation, folder, count, start = running.pop(pid)
        try:
            os.killpg(pid, signal.SIGKILL)  # what its tests started
        except ProcessLookupError:
            pass
        facts: dict[str, Any] = {"fate": "survived", "tests": count}
        if status:
            killer = (folder / "killer").read_text()
            noticed[mutation.file][killer] += 1
            facts = {"fate": "killed", "killer": killer}
        results.add(mutation.name, **facts, seconds=round(time.monotonic() - start, 1))
        shutil.copy2(SURVEY / mutation.file, folder / mutation.file)
        free.append(folder)
        print(f"{len(queue) + len(running):>5} left  {facts['fate']:<9} {mutation.name}", flush=True)


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
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("files", nargs="*", default=FILES, help="those of the story, if none is named")
    parser.add_argument("--again", action="store_true", help="try those anew that survived")
    parser.add_argument("--fresh", action="store_true", help="find out anew which tests execute which line")
    parser.add_argument("--list", action="store_true", help="print what is known, and run nothing")
    parser.add_argument("--most", type=float, metavar="SECONDS", help="of tests to try for a mutation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    options = parser.parse_args(argv)
    STATE.mkdir(exist_ok=True)
    results, rules = Results(STATE / "results.jsonl"), equivalents()
    if not options.list:
        tests = prepared(options.fresh)
        mutations = [mutation for file in options.files for mutation in Finder(SURVEY, file).found]
        done = {name for name, row in results.known.items() if row["fate"] == "killed" or not options.again}
        todo = [m for m in mutations if m.name not in done and not why(m, rules)]
        run(todo, tests, results, options.jobs, options.most)
    root = SURVEY if SURVEY.exists() else ROOT
    table([mutation for file in options.files for mutation in Finder(root, file).found], results, rules)


if __name__ == "__main__":
    main(sys.argv[1:])
