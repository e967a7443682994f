"""A policy answers conversations, a judge grades the answers, and a file keeps both.

A policy is weights in this process, a server's model, or a file of answers that were written elsewhere. What
this file decided:

- **Greedy**, at temperature 0, unless several answers are wanted; in the policy's own chat template and with
  the system message of training.
- **A prompt is never cut.** If it leaves no room for the answer, it is refused by its name, or left out and
  counted. If a server failed, there is no answer, which is not an empty answer.
- **A killed evaluation goes on.** Rows are written as they come. Each has a digest of its policy, judge and
  question: a row with another digest is refused, not mixed in. Rows that failed are asked for again. If a
  prompt has two rows, the later one counts.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ValidationError

from rar_mini import forms, policy, prompts, ranks, sampler
from rar_mini.checkpoint import newest, refuse_damaged
from rar_mini.config import Asking
from rar_mini.data import Example, Name
from rar_mini.files import cut_half_line, digest, lines, locked
from rar_mini.forms import ABSENT, Form, Response
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Endpoint, Failure, Request, Usage
from rar_mini.judging.ledger import Account
from rar_mini.judging.wrappers import JudgeLike
from rar_mini.options import Within, refuse_outside, to_json
from rar_mini.pretrained import resolve
from rar_mini.progress import progress_bar
from rar_mini.sampler import uniforms
from rar_mini.turns import inert

BATCH = 32
"""Prompts that are answered, graded and written at a time."""

Answer = dict[str, Any]
"""`response`, None if there is none; `finished`, False if it was cut, None if that is not known;
`tokens_in` and `tokens_out`, what was read and written for it, if that is known. A policy in this process
also has `only_thoughts`: whether it was cut in its thoughts, and so is empty."""

Answered = Sequence[tuple[Example, str | None]]
"""Examples with the text of their answer, None if there is none."""

Grade = Callable[[Answered], list[dict[str, Any]]]
"""Makes the fields that a row has besides its answer."""


class Row(Form):
    """A row of a file of answers. The rows that an evaluation keeps are such rows, too."""

    prompt_id: Name = None
    response: Response | None = None


class Kept(Form):
    """What the rows that an evaluation keeps have in every benchmark."""

    judged_again: ClassVar[bool] = True  # whether --responses takes such rows' answers over

    prompt_id: str = ABSENT
    finished: bool | None
    failed: bool = ABSENT
    # Rows that are only scored again need neither.
    response: str | None = None
    asked: str | None = None


@dataclass(frozen=True)
class Answering:
    """Who answers what, and how."""

    policy: str = "smollm2-135m"
    """a run (its newest checkpoint), a model's directory, a hub id, or chat:NAME for a server's model"""
    responses: Path | None = None
    """a JSONL file of answers instead, each with `prompt_id` and `response`"""
    out: Path | None = None
    """the folder for rows and result; by default the run's own, else evaluations/POLICY"""
    limit: Annotated[int | None, Within(1, 1e9)] = None
    """answer at most so many questions, drawn as simple-evals draws them"""
    max_new_tokens: Annotated[int, Within(1, 1e7)] = 1024
    """tokens after which an answer is cut"""
    long_prompts: Literal["refuse", "skip"] = "refuse"
    """what to do with a prompt that leaves no room for the answer: stop, or leave it out and count it"""
    cache_mb: Annotated[int, Within(1, 1e8)] = 2048
    """memory for the sampler's keys and values; more answers than fit wait for the next wave"""
    policy_device: str = "auto"
    """where weights in this process are: cpu, cuda, cuda:NUMBER, or auto; in bfloat16 on a GPU, else in
    float32"""
    policy_url: str | None = None
    """the address of the server for --policy chat:NAME, with its /v1; the judge's if not given"""

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing could be answered."""
        refuse_outside(self)

    def located(self) -> tuple[str, Path]:
        """What to load, and the folder of its results."""
        name, path = self.policy, Path(self.policy)
        home = Path("evaluations") / re.sub(r"[^\w.-]+", "-", name).strip("-.")
        if self.responses:
            name, home = str(self.responses), self.responses.with_suffix("")
        elif (found := newest(name)) != name:
            name, home = found, path
        elif path.parent.name == "checkpoints":
            home = path.parent.parent
        return name, self.out or home


# --- where answers come from --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """How an answer is drawn: the likeliest tokens, or above temperature 0 the `number`-th of several."""

    temperature: float = 0.0
    seed: int = 0
    number: int = 0


GREEDY = Drawn()


class Sampled:
    """Weights in this process. They are read only if something is to be answered."""

    def __init__(self, name: str, asking: Answering) -> None:
        self.directory, self.asking = resolve(name), asking
        files = [(path.name, path.stat()) for path in sorted(self.directory.glob("*.safetensors"))]
        weights = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        self.identity = [
            str(self.directory.absolute()),
            weights,
            asking.max_new_tokens,
            prompts.POLICY_SYSTEM,
        ]

    @cached_property
    def actor(self) -> policy.Policy:
        device = self.asking.policy_device
        device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        ranks.claim(device, "--policy-device")
        refuse_damaged(self.directory)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        return policy.load(str(self.directory), dtype, device)

    def fitting(self, examples: Sequence[Example], leave_out: bool = False) -> list[Example]:
        if not examples:
            return []
        window, fitting = policy.window(self.actor), []
        for example in progress_bar(examples, desc="reading questions"):
            why = policy.too_long(self.actor, example, window, self.asking.max_new_tokens, answered=False)
            if not why:
                fitting.append(example)
            elif self.asking.long_prompts == "refuse" and not leave_out:
                raise ValueError(f"{why}; lower --max-new-tokens, or pass --long-prompts skip")
        return fitting

    def answer(self, examples: Sequence[Example], how: Drawn = GREEDY) -> list[Answer]:
        actor, most = self.actor, self.asking.max_new_tokens
        draws = [uniforms(how.seed, "answer", example.id, how.number, most) for example in examples]
        shown = [actor.encode(example) for example in examples]
        requests = [sampler.Request(ids, [own]) for ids, own in zip(shown, draws, strict=True)]
        settings = sampler.Settings(most, how.temperature, cache_bytes=self.asking.cache_mb * 2**20)
        total = len(examples) * most
        with progress_bar(total=total, desc="answering", unit="tok") as bar:
            groups = actor.sample(requests, settings, bar.update)
        return [
            {"response": actor.decode(one.ids), "finished": one.finished, "only_thoughts": one.only_thoughts}
            | {"tokens_in": len(ids), "tokens_out": len(one.ids)}
            for ids, (one,) in zip(shown, groups, strict=True)
        ]


class Served:
    """A server's model. Its window is not known here: a request with too long a prompt fails."""

    def __init__(self, endpoint: Endpoint, asking: Answering) -> None:
        self.endpoint, self.most = endpoint, asking.max_new_tokens
        self.identity = [endpoint.model, endpoint.address, self.most, prompts.POLICY_SYSTEM]

    def fitting(self, examples: Sequence[Example], leave_out: bool = False) -> list[Example]:
        return list(examples)

    def answer(self, examples: Sequence[Example], how: Drawn = GREEDY) -> list[Answer]:
        body = {"model": self.endpoint.model, "temperature": how.temperature, "max_tokens": self.most}
        body["seed"] = 1000 * how.seed + how.number
        shown = [prompts.policy_messages(example.messages) for example in examples]
        shown = [[turn | {"content": inert(turn["content"])} for turn in turns] for turns in shown]
        bodies = (body | {"messages": turns} for turns in shown)
        requests = (Request("/chat/completions", body, written) for body in bodies)
        with progress_bar(total=len(examples), desc="answering") as bar:
            replies = self.endpoint.ask(requests, bar.update)
        none = {"response": None, "finished": None}
        return [none if isinstance(reply, Failure) else reply for reply in replies]


def written(reply: dict[str, Any]) -> Answer:
    """The answer in a chat completion, also if it was cut or refuses. Raises Failure if there is none."""
    text, reason, refusal = wires.completion(reply)
    text = refusal if text is None else text
    if not isinstance(text, str):
        raise Failure("empty")
    return {"response": forms.whole(text).strip(), "finished": reason != "length"} | _tokens(reply)


def _tokens(reply: dict[str, Any]) -> dict[str, int]:
    try:
        usage = Usage.model_validate(reply.get("usage"))
    except ValidationError:
        return {}
    return {"tokens_in": usage.read, "tokens_out": usage.written}


class Given:
    """A file of answers."""

    def __init__(self, path: Path) -> None:
        rows = enumerate(lines(path, "prompt_id", "response", finished=True), 1)
        texts = [forms.read(Row, row, f"{path}, row {number}") for number, row in rows]
        self.path, self.identity = path, [hashlib.sha256(path.read_bytes()).hexdigest()]
        self.responses = {text.prompt_id: text.response for text in texts if text.response is not None}

    def fitting(self, examples: Sequence[Example], leave_out: bool = False) -> list[Example]:
        if absent := [example.id for example in examples if example.id not in self.responses]:
            raise ValueError(
                f"{self.path}: expected a `response` for each of {len(examples)} prompts, and {len(absent)} "
                f"have none (the first is {absent[0]!r})"
            )
        return list(examples)

    def answer(self, examples: Sequence[Example], how: Drawn = GREEDY) -> list[Answer]:
        return [{"response": self.responses[example.id], "finished": None} for example in examples]


Source = Sampled | Served | Given
"""Where answers come from. `identity` is what they depend on besides the conversation. `fitting` returns the
examples that can be answered, or raises ValueError that names one that cannot; with `leave_out` a prompt that
is too long is left out, whatever --long-prompts says. `answer` answers each."""

Work = Callable[[Source, list[Example]], list[dict[str, Any]]]
"""Answers some examples and grades the answers: the fields of each one's row."""


def source_of(name: str, asking: Answering, judging: Asking) -> Source:
    """The source of the answers of a policy. `judging` says how a server is asked."""
    if asking.responses:
        return Given(asking.responses)
    if not name.startswith("chat:"):
        return Sampled(name, asking)
    server = replace(judging, base_url=asking.policy_url or judging.base_url)
    return Served(Endpoint.of(name.removeprefix("chat:"), server), asking)


# --- the rows -----------------------------------------------------------------------------------------------


def existing(file: Path | None, source: str) -> Path:
    """A file that has to exist. Raises ValueError that says where to get it."""
    if file is None or not file.is_file():  # a pipe may never end
        raise ValueError(f"expected a file, got {file or 'none'}. {source}")
    return file


def draw(rows: list, limit: int | None) -> list:
    """All rows, or at most `limit`, drawn as simple-evals does."""
    return random.Random(0).sample(rows, limit) if limit and limit < len(rows) else rows


def graded(
    name: str,
    form: type[Kept],
    examples: list[Example],
    grade: Grade,
    judge: JudgeLike | None,
    asking: Answering,
    judging: Asking,
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Have the examples answered once and graded that are not yet in NAME.jsonl; `grade` uses `judge`, if
    there is one. The rest is as of `worked`."""

    def work(source: Source, batch: list[Example]) -> list[dict[str, Any]]:
        replies = source.answer(batch)
        grades = grade([(example, each["response"]) for example, each in zip(batch, replies, strict=True)])
        return [each | fields for each, fields in zip(replies, grades, strict=True)]

    return worked(name, form, examples, work, judge, asking, judging)


def worked(
    name: str,
    form: type[Kept],
    examples: list[Example],
    work: Work,
    judge: JudgeLike | None,
    asking: Answering,
    judging: Asking,
    facts: Sequence[Any] = (),
    answers: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Have the examples worked on that are not yet in NAME.jsonl, whose rows have this `form`.

    `work` uses `judge`, if there is one, for so many `answers` to each example; `facts` are what a row
    depends on besides policy, question and judge. Returns what the result says about the policy, a row for
    each example that could be answered, and the file for the result.
    """
    policy_name, folder = asking.located()
    source, log = source_of(policy_name, asking, judging), folder / f"{name}.jsonl"
    digests = {
        e.id: digest([source.identity, e.messages, judge.digest(e, "") if judge else "", *facts])
        for e in examples
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    account = Account.beside(log)
    with locked(log):
        if judge:
            judge.carry(account)
        if isinstance(source, Served):
            source.endpoint.ledger.carry(replace(account, judge="policy"))
        rows = resume_rows(log, form, digests)
        todo = [example for example in examples if rows.get(example.id, {"failed": True})["failed"]]
        fitting = source.fitting(todo)
        skipped = len(todo) - len(fitting)
        counts = f"{len(fitting)} answers to ask for, {skipped} prompts too long"
        print(f"policy    {policy_name}: {counts}, rows in {log}")
        if judge and (cost := judge.estimate(fitting, answers * len(fitting), asking.max_new_tokens)):
            print(f"grading   at most {cost.removeprefix('at most ')}")
        for start in range(0, len(fitting), BATCH):
            batch = fitting[start : start + BATCH]
            new = {
                example.id: {"prompt_id": example.id} | fields | {"asked": digests[example.id]}
                for example, fields in zip(batch, work(source, batch), strict=True)
            }
            append_rows(log, new.values())
            rows |= new
    if isinstance(source, Served):
        print(f"answered  {source.endpoint.ledger.line()}")
    settings = to_json(asking) | to_json(judging)
    about = {"policy": policy_name, "skipped": skipped, "settings": settings}
    return about, [rows[e.id] for e in examples if e.id in rows], folder / f"{name}.json"


def read_rows(path: Path, form: type[Kept]) -> dict[str, dict[str, Any]]:
    """The rows that an evaluation left, by prompt; of two rows for one prompt the later counts. Raises
    ValueError that names the line of a row in another form."""
    rows, remedy = {}, "delete the line, and the evaluation asks for it again"
    for number, row in enumerate(lines(path), 1):
        rows[forms.read(form, row, f"{path}, line {number}", remedy).prompt_id] = row
    return rows


def resume_rows(path: Path, form: type[Kept], digests: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The rows of these prompts that an evaluation left. Also makes the file ready for more.

    `digests` has for each prompt a digest of what its row depends on. Raises ValueError if a row has another.
    """
    rows = read_rows(path, form)
    if other := [name for name in digests if name in rows and rows[name].get("asked") != digests[name]]:
        over = "; --responses takes its answers over" if form.judged_again else ""
        raise ValueError(
            f"{path} has {other[0]!r} of another policy, judge, question or option than asked for now: name "
            f"another folder with --out, or delete the file{over}"
        )
    path.touch()
    cut_half_line(path)
    return {name: rows[name] for name in digests if name in rows}


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to the file."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
