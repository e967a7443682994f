"""Settings: from a command line, which answers a mistake with the nearest option, and into a file."""

import argparse
import dataclasses
import difflib
import errno
import functools
import io
import itertools
import json
import math
import os
import re
import reprlib
import shlex
import signal
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError

from rar_mini.files import regular
from rar_mini.forms import escaped, fault, legible, printable
from rar_mini.redact import veil_output

ELSEWHERE = {
    "batch-size": "--prompts-per-step, which counts questions",
    "per-device-train-batch-size": "--prompts-per-step, which counts questions, of all processes together",
    "train-batch-size": "--prompts-per-step",
    "gradient-accumulation-steps": "--tokens-per-batch, by which a step is cut",
    "num-generations": "--group-size",
    "rollout.n": "--group-size",
    "max-completion-length": "--max-new-tokens",
    "max-response-length": "--max-new-tokens",
    "max-prompt-length": "--max-prompt-tokens",
    "mask-truncated-completions": "--cut-answers mask",
    "filter-groups.enable": "--resample-ties N",
    "max-num-gen-batches": "--resample-ties",
    "learning-rate": "--lr",
    "optim.lr": "--lr",
    "warmup-ratio": "--warmup",
    "warmup-steps": "--warmup, a share of the steps",
    "num-train-epochs": "--steps, of --prompts-per-step questions each",
    "total-epochs": "--steps, of --prompts-per-step questions each",
    "max-steps": "--steps",
    "total-training-steps": "--steps",
    "num-iterations": "--inner-epochs",
    "ppo-epochs": "--inner-epochs",
    "kl-coef": "--beta",
    "kl-loss-coef": "--beta",
    "epsilon": "--clip-low and --clip-high",
    "epsilon-high": "--clip-high",
    "clip-ratio": "--clip-low and --clip-high",
    "clip-ratio-low": "--clip-low",
    "clip-ratio-high": "--clip-high",
    "loss-type": "--loss-norm",
    "loss-agg-mode": "--loss-norm",
    "scale-rewards": "--advantage-scale",
    "model": "--policy",
    "model-name-or-path": "--policy",
    "model.path": "--policy",
    "dataset-name": "--data",
    "train-files": "--data",
    "output-dir": "--out",
    "default-local-dir": "--out",
    "save-steps": "--save-every",
    "save-freq": "--save-every",
    "save-total-limit": "--keep",
    "eval-steps": "--eval-every",
    "test-freq": "--eval-every",
    "gradient-checkpointing": "--checkpoint-activations",
    "enable-gradient-checkpointing": "--checkpoint-activations",
    "bf16": "--dtype bfloat16",
    "lora-r": "--lora-rank",
    "resume-from-checkpoint": "--resume RUN",
}
"""What people type who come from TRL, or from verl, of whose dotted names these are the ends. Only names
without a namesake here: `temperature` is the same."""
FULL = "training samples from the full softmax, because under a truncated one the ratio of GRPO "
FULL += "would not start at 1. Lower --temperature instead"
ELSEWHERE |= {"top-p": FULL, "top-k": FULL}


def elsewhere(name: str) -> str:
    """What an option of another trainer is called here, in words; nothing if no other trainer has it."""
    parts = name.replace("_", "-").split(".")
    for first in range(len(parts)):
        if own := ELSEWHERE.get(".".join(parts[first:])):
            return f"here it is {own}" if own.startswith("--") else own
    return ""


LONGEST = 1_000
"""Characters that a word on the command line may have."""
LESS_MEMORY = (
    "What was saved is whole. Lower --cache-mb if it was sampling, --tokens-per-batch if it was training; or "
    "pass --checkpoint-activations (or raise --checkpoint-layers, if that is set), --reference-device cpu "
    "with --beta, --dtype bfloat16, --lora-rank 16, or a smaller --policy or local judge "
    "(python train.py --plan tells what fits)"
)
"""What to do if memory runs out in training."""


class Misused(ValueError):
    """A command line that cannot be read. The command ends with 2, as is usual."""

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with refusals of one line."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, allow_abbrev=False, **options)
        for kind, wanted in ((int, "a whole number"), (float, "a number")):
            self.register("type", kind, functools.partial(_number, kind, wanted))

    def error(self, message: str) -> NoReturn:
        """Raise Misused, without the usage, in which an error is easily overlooked."""
        raise Misused(f"{message.removeprefix('argument ')} (see --help)")


def _number(kind: type, wanted: str, word: str) -> float:
    try:
        return kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {word!r}") from None


Commands = dict[str, Callable] | Callable


def run_command(commands: Commands, prog: str, description: str | None = None, less_memory: str = "") -> Any:
    """Run the one command, or the one of several that the command line names, and return what it returns;
    the rest is for `one_line`."""
    with one_line(prog, less_memory=less_memory):
        argv = _together(commands, joined_recipe(sys.argv[1:]))
        return command_line(_bound(commands), argv, prog, description=description)()


def _together(commands: Commands, argv: Sequence[str]) -> Sequence[str]:
    """A command line for a parser that keeps an option's last values alone: if an option takes several at
    once and comes several times, it stands once with all of them."""
    command = commands.get(next(iter(argv), "")) if isinstance(commands, dict) else commands
    kinds = get_type_hints(command, include_extras=True) if command else {}
    for name in (name for name, kind in kinds.items() if kind == tuple[str, ...]):
        argv = gathered(argv, flag(name))
    return argv


def _bound(commands: Commands) -> Commands:
    """The commands for a parser that binds their words but does not run them: it may print only refusals."""
    if isinstance(commands, dict):
        return {name: _bound(command) for name, command in commands.items()}
    return functools.wraps(commands)(lambda *words, **how: functools.partial(commands, *words, **how))


def command_line(kind: Commands, argv: Sequence[str], prog: str, **how: Any) -> Any:
    """What tyro makes of a command line. Raises Misused with one line in place of its box of several."""
    read = tyro.extras.subcommand_cli_from_dict if isinstance(kind, dict) else tyro.cli
    try:
        with redirect_stderr(io.StringIO()) as box:
            return read(kind, args=argv, prog=prog, **how)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        own = f" in {prog} {argv[0]} --help" if argv and isinstance(kind, dict) else ""
        raise Misused(_unboxed(box.getvalue(), own)) from None


def _unboxed(box: str, own: str) -> str:
    """What stands in tyro's box of a refusal, in one line, in our words and without an option's help; a hint
    only if it has `own` words, where it is about the command that was called."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)  # it has colours if standard output is a terminal
    rows = [row.strip("│| ") for row in plain.splitlines()[1:]]  # the first one is its title
    parts = itertools.groupby(rows, lambda row: bool(row.strip("╰─╯+-")))
    said = [" ".join(part) for filled, part in parts if filled]
    said = [part for part in said if own in part or not part.startswith("Perhaps you meant:")]
    line = "; ".join(part for part in said if not part.startswith(("Argument helptext", "Got errors")))
    for theirs, ours in TYRO.items():
        line = re.sub(theirs, ours, line)
    return line


TYRO = {
    "^Missing from .*?: ": "missing: ",
    r"^Unrecognized or .*?: (\S+) \(applied to (.*?)\).*; Available subcommands: ([^;]*).*": (
        r"no option \1 before the command: expected one of \3 (see \2 --help)"
    ),
    r"^Unrecognized or .*?: (\S+) \(applied to (.*?(\w+))\).*": r"\3 has no option \1 (see \2 --help)",
    r"^Error parsing ([\w.-]+: (?=--))?": "",
    r"invalid literal for int\(\) with base 10: ": "expected a whole number, got ",
    "could not convert string to float: ": "expected a number, got ",
    r"invalid choice '(.*)' for argument '(.*?)'\. Expected one of \((.*?),?\)": r"\2 \1: expected one of \3",
    "'None', |, 'None'": "",
    r"Missing value for argument '(.*?)'\. Expected .*?;": r"\1: expected a value, got none;",
    r"no type matching (?:\{None\}\|)?(\S+) could be instantiated from \[(.*?)\]": r"expected \1, got \2",
    r"; (?:Perhaps you meant:|Arguments similar to \S+:) (--[\w-]+).*?(?=; For full)": r"; did you mean \1?",
    r"\.?; For full helptext, (?:run|see):? (.*)": r" (see \1)",
}
"""Words of tyro's refusals, and ours."""


@contextmanager
def one_line(
    prog: str, interrupted: Callable[[], object] = lambda: None, less_memory: str = ""
) -> Iterator[None]:
    """Around a command: it ends in one line without a traceback if it refuses something or memory runs out,
    and no output shows a secret. `less_memory` says in a second line which of its options need less memory.
    After Ctrl-C, `interrupted` has the last word."""
    open_output()
    veil_output()
    try:
        refuse_unprintable(sys.argv[1:])
        yield
        sys.stdout.flush()  # what fails at the end of the process has no words of ours
    except Misused as error:
        print(f"{prog}: {legible(error)}", file=sys.stderr)
        sys.exit(error.exit_status)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"{prog}: {legible(error)}")
    except OSError as error:
        sys.exit(f"{prog}: {legible(_of_system(error))}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        words = " ".join(str(error).split()).partition(" Including ")[0] or "Python has none left"
        sys.exit(f"{prog}: out of memory: {legible(words)[:300]}\n{less_memory}".rstrip())
    except KeyboardInterrupt:
        _end(interrupted)


SYSTEM = {
    errno.ENOENT: "expected a file or folder that exists, or a new one in a folder that does; check the name",
    errno.EEXIST: "expected a folder, or a new name; name another",
    errno.ENOTDIR: "expected folders before the last name; name another",
    errno.EISDIR: "expected a file; name one in it",
    errno.ENOSPC: "expected room on the disk; make some, then go on",
} | dict.fromkeys(
    [errno.EACCES, errno.EPERM, errno.EROFS],
    "expected one that you may use; name another, or change its permissions",
)
"""What stands behind an error of the system."""


def _of_system(error: OSError) -> str:
    """What the system refused, by the name that the user gave in place of a temporary one's, and what to do.
    An error that was not the system's has its own words."""
    name = error.filename2 or error.filename
    if name is None:
        return str(error)
    named = re.sub(r"(^|/)\.([^/]+)\.(partial(-\w+)?|lock)(?=/|$)", r"\1\2", f"{name}")
    wanted = SYSTEM.get(error.errno, "")
    return f"cannot use {named} ({error.strerror})" + (wanted and f": {wanted}")


def _end(last_words: Callable[[], object]) -> NoReturn:
    """End this process once its last words are said, and wait for nothing: Python would wait for threads, and
    these for a server that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more must not break the sentence
    last_words()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may read it any more
            stream.flush()
    os._exit(130)


def open_output() -> None:
    """Make standard output and error take every text, line by line: one may be closed, or know ASCII alone,
    and a run must not end at a word that it prints."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, as long as the process
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)


def refuse_unprintable(argv: Iterable[str]) -> None:
    """Raise Misused for a word that a parser's own refusal would show raw or at great length."""
    for word in argv:
        shown = printable(word[:40])
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in word):
            raise Misused(f"expected an option or its value without control characters, got {shown}")
        if len(word) > LONGEST:
            raise Misused(
                f"expected at most {LONGEST:,} characters in an option or its value, got {len(word):,}: "
                f"{shown}..."
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's own, torch's, and those of libraries under it."""
    signs = "out of memory|can't allocate memory|ALLOC_FAILED"
    return isinstance(error, MemoryError) or re.search(signs, str(error)) is not None


def joined_recipe(argv: Sequence[str]) -> list[str]:
    """A command line with `--recipe X --recipe.k 1` as one option, `--recipe "X --k 1"`."""
    rest, own, name = [], [], None
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word == "--recipe" or word.startswith("--recipe="):
            name = word.partition("=")[2] or (queue.pop(0) if queue else "")
        elif word.startswith("--recipe."):
            own.append(f"--{word.removeprefix('--recipe.')}")
            if "=" not in word and queue and not queue[0].startswith("--"):
                own.append(queue.pop(0))
        else:
            rest.append(word)
    if name is None and not own:
        return rest
    name = name or "''"  # which `make` refuses
    try:
        named = [name] if Path(name).is_file() else shlex.split(name)  # a path may have spaces
    except ValueError as error:
        raise Misused(f"--recipe {name}: expected NAME or PATH.py, got {error}") from None
    return [*rest, "--recipe", shlex.join([*named, *own])]


def gathered(argv: Sequence[str], option: str, *others: str) -> list[str]:
    """A command line in which an option that came several times, also under other names or with underscores,
    stands once with all of its values."""
    names, values, rest, queue = {option, *others}, [], [], list(argv)
    while queue:
        word, is_joined, value = queue.pop(0).partition("=")
        if not word.startswith("--") or word.replace("_", "-") not in names:
            rest.append(word + is_joined + value)
        elif is_joined:
            values.append(value)
        else:
            own = next((n for n, each in enumerate(queue) if each.startswith("--")), len(queue))
            values += queue[:own] or [""]  # which no judge is called
            del queue[:own]
    return [*rest, option, *values] if values else rest


def words_of(file: Path, settings: Any) -> list[str]:
    """The command line that a TOML file means. It has the form of `settings` in config.json: a key for each
    field of this dataclass, a table for each dataclass in it. Raises ValueError by file and key."""
    try:
        table = tomllib.loads(regular(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the settings in {file}: expected TOML in UTF-8, got {error}") from None
    try:
        words = list(_words(table, settings))
        refuse_unprintable(words)
        return words
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _words(table: dict[str, Any], settings: Any, above: str = "") -> Iterator[str]:
    """The words of one table, whose keys are named behind what stands `above` it. Each value is checked by
    its field's type alone: what goes together is known once the command line is there, too."""
    hints = get_type_hints(type(settings), include_extras=True)
    for key, value in table.items():
        name = above + escaped(key)
        if key not in hints:
            raise ValueError(f"no setting {name}{_near_key(key, hints, settings)}")
        part = getattr(settings, key)
        if dataclasses.is_dataclass(part) and isinstance(value, dict):
            yield from _words(value, part, f"{key}.")
            continue
        written = json.dumps(value, default=str)  # dates as text
        try:
            TypeAdapter(hints[key]).validate_json(written, strict=True)
        except ValidationError as error:
            raise ValueError(fault(error, name)) from None
        refuse_number(key, value, hints[key])
        option = key.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, list):
            yield from (f"--{option}", *value)
        else:
            yield f"--{option}={value}"


def _near_key(key: str, hints: Iterable[str], settings: Any) -> str:
    """A hint at the key that was meant, of this table or of one below."""
    below = [f"{name}.{own}" for name in hints for own in getattr(getattr(settings, name), "__dict__", ())]
    exact = [name for name in below if name.endswith(f".{key}")]
    hint = elsewhere(key) or (exact and f"did you mean {exact[0]}?")
    hint = hint or nearest(key, [*hints, *below])
    return hint and f": {hint}"


def refuse_unknown(argv: Iterable[str], settings: Any) -> None:
    """Raise Misused for a word of a command line that is no option of these settings."""
    known = {"help", "config", *names(settings)}
    negated = {name for name in known if name.startswith("no-")}
    switches = {"help"} | negated | {name.removeprefix("no-") for name in negated}
    is_value = False
    for word in argv:
        written = word.split("=")[0]
        name = written.removeprefix("--").lstrip("+").replace("_", "-")
        unknown = word.startswith("--") and name not in known
        dotted = "=" in word and re.fullmatch(r"\+?[a-z_]+(\.[a-z_]+)+", written)  # verl's have no dashes
        theirs = dotted and not is_value and elsewhere(name)
        is_value = word.startswith("--") and "=" not in word and name not in switches
        if unknown or theirs:
            hint = elsewhere(name) or nearest(name, known, "--")
            raise Misused(
                f"no option {f'--{name}' if unknown else written}{hint and ': '}{hint} (see --help)"
            )


@dataclasses.dataclass(frozen=True)
class Within:
    """The numbers that an option takes, both ends included: `lr: Annotated[float, Within(0, 1)] = 6e-5`."""

    low: float
    high: float

    def refuse(self, name: str, value: Any) -> None:
        """Raise ValueError for a number outside, NaN included, by its option's name; words may pass."""
        if isinstance(value, int | float) and not self.low <= value <= self.high:
            expected = f"expected a number from {self.low:g} to {self.high:g}"
            raise ValueError(f"{flag(name)} {reprlib.repr(value)}: {expected}")


Share = Annotated[float, Within(0, 1)]
Count = Annotated[int, Within(1, 1000)]
"""What most options of recipes are."""


def refuse_outside(settings: Any) -> None:
    """Raise ValueError for a number of a dataclass that is not within what its field declares, or not finite
    where it declares nothing."""
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        refuse_number(name, getattr(settings, name), kind)


def refuse_number(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError for a number that is not within what its field's type declares, or not finite."""
    within = [each for each in getattr(kind, "__metadata__", ()) if isinstance(each, Within)]
    for declared in within:
        declared.refuse(name, value)
    if not within and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag(name)} {value}: expected a finite number")


def flag(name: str) -> str:
    """A setting's name as the command line has it."""
    return "--" + name.replace("_", "-")


def counted(word: str) -> int:
    """A type for argparse: a whole number from 1 on."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {word!r}")
    return int(word)


def names(settings: Any) -> Iterator[str]:
    """The options of a dataclass, those of the dataclasses in it included."""
    for field, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            yield from names(value)
        else:
            yield field.replace("_", "-")
            if isinstance(value, bool):
                yield f"no-{field.replace('_', '-')}"


def to_json(settings: Any) -> dict[str, Any]:
    """A dataclass for a JSON file. Paths are made absolute: they hold from wherever they are read."""
    written = {}
    for name, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            value = to_json(value)
        written[name] = str(value.absolute()) if isinstance(value, Path) else value
    return written


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that offers the known word nearest to this one; nothing if none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else ""
