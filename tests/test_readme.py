"""README and docs/ are held to what is there: links, files, commands, options, metrics and recipes."""

import functools
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

import evaluate
import judge
import train
from rar_mini import recipe, setup
from rar_mini.config import PRESETS, Config
from rar_mini.judging.ledger import Ledger
from rar_mini.options import joined_recipe
from rar_mini.scale import NAMES
from rar_mini.tools import check, memory

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README, METRICS = TEXTS["README.md"], TEXTS["docs/metrics.md"]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    .*\n)+", re.M)
PLACEHOLDERS = {"N": "2", "PATH.py": "lab/examples/gated.py"}
"""What a reader would put in the place of a word whose form the command line checks."""


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return INDENTED.sub("", FENCED.sub("", text))


def inline(text: str) -> list[str]:
    """What a page's prose and tables have between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def each_page(collect: Callable[[str], list[Any]]) -> list[Any]:
    """A parameter for whatever `collect` finds on a page, each once and with its page's name."""
    found = {item: name for name, text in reversed(TEXTS.items()) for item in collect(text)}
    return [pytest.param(name, item, id=f"{name}: {item}") for item, name in found.items()]


def test_readme_is_a_door() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1800


def test_readme_leads_to_every_page() -> None:
    for name in TEXTS:
        assert name == "README.md" or f"]({name})" in README, f"README does not link {name}"


# --- links and files ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that the hub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        path, _, anchor = target.partition("#")
        if not path.startswith("https://"):
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


FILE = re.compile(r"[\w./-]+\.(?:py|ipynb|md|cff|txt|toml)|[\w.-]+/[\w./-]+\.(?:json|jsonl|png)")
MADE_UP = re.compile(r"RUN|NAME|PATH|FILE|rar_reward|rar_taskset")
"""In names of files that a reader makes."""


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name: str) -> None:
    for word in " ".join(inline(TEXTS[name])).split():
        if FILE.fullmatch(word) and not MADE_UP.search(word):
            assert (ROOT / word).exists() or (ROOT / name).with_name(word).exists(), word


# --- commands and options -----------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """The commands of a page, one by one: lines of indented blocks, and what stands between backticks."""
    lines = "".join(INDENTED.findall(text)).replace("\\\n", "").splitlines() + inline(text)
    found = (part.strip() for line in lines for part in line.split(" && "))
    return [part for part in found if re.match(r"(\w+=\S* )*(python|torchrun|pytest|pip) ", part)]


def words(command: str) -> list[str]:
    """A command's words, with what is optional in it, and with placeholders filled in."""
    found = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
    bare = (re.sub(r"^\[(?=--)|(?<=\w)\]$|\.\.\.$", "", word) for word in found)
    return [PLACEHOLDERS.get(word, word) for word in bare if word]


class Parsed(Exception):
    """A command line was read to its end."""


def stop(*words: Any, **options: Any) -> None:
    raise Parsed


def parse_training(argv: list[str], patch: pytest.MonkeyPatch) -> None:
    """Read a command line of train.py, with a recipe's own options, and stop before anything is done."""
    patch.setattr(train, "train", lambda config: stop(recipe.make(config.recipe, config)))
    patch.setattr(setup.Run, "reopen", stop)  # --resume
    patch.setattr(setup, "settle", stop)  # --bench
    patch.setattr(memory, "document", stop)  # --plan
    patch.setattr(check, "child", stop)  # --check
    with pytest.raises(SystemExit if "--help" in argv else Parsed) as end:
        train.main(argv)
    assert not getattr(end.value, "code", 0)


def parse_subcommand(commands: dict[str, Callable], argv: list[str]) -> None:
    """Read a command line of judge.py or evaluate.py for functions that do nothing."""
    idle = {
        name: functools.wraps(function)(lambda *words, **options: None) for name, function in commands.items()
    }
    tyro.extras.subcommand_cli_from_dict(idle, args=joined_recipe(argv))


def find_options(run: Callable, name: str, argv: list[str], patch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Find a command line's options in the help of a module or a script."""
    patch.setattr(sys, "argv", [name, "--help"])
    patch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        run(name, run_name="__main__")
    told = capsys.readouterr().out
    for word in argv:
        assert not word.startswith("--") or re.search(rf"{word}\b", told), word


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(("page", "command"), each_page(commands))
def test_commands_parse(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    head, *rest = words(command)
    if "--config" in rest:  # the file that the page shows
        shown = re.search(r"^```toml\n(.*?)^```", TEXTS[page], re.M | re.S)[1]
        rest[rest.index("FILE.toml")] = str(tmp_path / "FILE.toml")
        (tmp_path / "FILE.toml").write_text(shown, encoding="utf-8")
    if head == "torchrun":
        rest = rest[rest.index("train.py") :]
    if head == "pip":
        extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\.\[(\w+)\]", command)) <= extras.keys()
    elif head == "pytest":
        assert all(Path(word).exists() for word in rest if word.endswith(".py"))
    elif rest[0] == "train.py":
        parse_training(rest[1:], monkeypatch)
    elif rest[0] == "judge.py":
        parse_subcommand({"score": judge.score, "show": judge.show_run}, rest[1:])
    elif rest[0] == "evaluate.py":
        parse_subcommand(evaluate.COMMANDS, rest[1:])
    elif rest[0] != "-m":
        find_options(runpy.run_path, rest[0], rest[1:], monkeypatch, capsys)
    elif rest[1].startswith(("rar_mini", "lab")):
        name = rest[1].replace("rar_mini.kernels", "kernels").replace(".", "/")
        file = ROOT / name / "__main__.py" if (ROOT / name).is_dir() else ROOT / f"{name}.py"
        assert file.name == "__main__.py" or '__name__ == "__main__"' in file.read_text(), "it does nothing"
        if rest[2:]:
            find_options(runpy.run_module, rest[1], rest[2:], monkeypatch, capsys)


FOREIGN = {"nproc-per-node", "shutdown-timeout"}
"""Options of torchrun."""


def sources(*patterns: str) -> str:
    """The code of the files that match."""
    return "\n".join(file.read_text(encoding="utf-8") for each in patterns for file in ROOT.glob(each))


@functools.cache
def fields() -> set[str]:
    """Every name in the code, as a field of settings is written."""
    code = sources("*.py", "rar_mini/**/*.py", "lab/**/*.py")
    return {word.strip("-").replace("-", "_") for word in re.findall(r"[\w-]+", code)}


@pytest.mark.parametrize("name", TEXTS)
def test_options_that_are_named_exist(name: str) -> None:
    for option in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", " ".join(inline(TEXTS[name]))):
        field = option.removeprefix("recipe.").removeprefix("no-").replace("-", "_")
        assert option in FOREIGN or field in fields(), option


# --- numbers, metrics and recipes ---------------------------------------------------------------------------


def undefined(metrics: set[str]) -> set[str]:
    """Those of these metrics that docs/metrics.md does not define."""
    rows = re.findall(r"^\| (`.*?) \|", METRICS, re.M)
    defined = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(defined) > 40
    names = {re.sub(r"^(perf/)?gold\d*/", r"\1judge/", name) for name in metrics}
    return {re.sub("(?<=^judge/failures/).*", "KIND", name) for name in names} - defined


def judged(config: Config, scored: int) -> int:
    """The answers that a run has judged: those of its steps, those of its evaluations of so many questions
    (before training, every so many steps, and at the end), and the three of the scale."""
    evaluations = {0, config.steps, *range(0, config.steps, config.eval_every)}
    steps = config.steps * config.prompts_per_step * config.group_size
    return steps + (len(evaluations) * config.eval_samples + len(NAMES)) * scored


def test_no_metric_is_logged_without_a_definition(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """Law 6: no metric without a definition in docs/metrics.md. And each of an answer's 15 criteria is one
    question to this judge."""
    argv = f"--policy {tiny} --data {questions} --out {tmp_path / 'run'} --judge keyword --gold-judge keyword"
    argv += " --steps 3 --eval-every 2 --beta 0.1 --prompts-per-step 2 --group-size 4 --max-new-tokens 8"
    train.main(f"{argv} --save-every 0 --eval-samples 1".split())
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    assert {"reward", "kl", "eval/held_out_gold_reward", "pass_rate/pitfall"} <= logged
    assert not undefined(logged)
    run = Config(steps=3, prompts_per_step=2, group_size=4, eval_every=2, eval_samples=1)
    assert sum(row["judge/questions"] for row in rows) == 15 * judged(run, scored=5 + 2)


def test_the_papers_requests_are_counted_and_its_table_adds_up() -> None:
    paper, page = PRESETS["paper"], " ".join(TEXTS["docs/ablations.md"].split())
    questions = 2 * paper.eval_questions
    steps, whole = judged(paper, scored=0), judged(paper, scored=questions)
    assert f"{steps:,} requests for training and {whole - steps:,} more for the run's seven" in page
    assert f"seven evaluations of {questions} questions each and for the scale" in page
    table = dict(re.findall(r"^\| (\S+) \| ([\d.]+) \| [\d.]+ \|", TEXTS["docs/ablations.md"], re.M))
    best, direct, reference = (float(table[n]) for n in ("RaR-Implicit", "Direct-Likert", "Reference-Likert"))
    assert f"{best / direct - 1:.1%}".replace("%", " %") + " above Direct-Likert on HealthBench" in page
    assert f"{best / reference - 1:.0%}".replace("%", " %") + " above Reference-Likert" in page


def test_no_metric_of_a_server_goes_without_a_definition() -> None:
    """What a ledger counts in the rooms of judging, it logs."""
    ledger = Ledger()
    ledger.counts.update(re.findall(r'\bcounts?\["(\w+)"\]', sources("rar_mini/judging/*.py")))
    ledger.fail("HTTP 500")
    ledger.latencies.append(1.0)
    logged = ledger.metrics().keys()
    assert {"judge/failures/HTTP 500", "perf/judge/retries", "perf/judge/latency_p95"} <= logged
    assert not undefined({"judge/mass", *logged})


def test_every_step_of_a_recipe_is_explained() -> None:
    for name, value in vars(recipe.Recipe).items():
        if callable(value) and not name.startswith("_"):
            assert re.search(rf"^\| `{name}\(", TEXTS["docs/recipes.md"], re.M), name


SHOWN = re.findall(r"^<!-- (\S+\.py) -->\n```python\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.parametrize(("file", "block"), SHOWN, ids=[file for file, _ in SHOWN])
def test_readme_shows_recipes_as_whole_files(file: str, block: str) -> None:
    assert block == (ROOT / file).read_text(encoding="utf-8")
