"""Answers of a policy to conversations, by greedy decoding, and the file that keeps them with what was said
of them.

A policy is weights that are sampled in this process, a server's model, or a file of answers that were written
elsewhere. What this file decided:

- **Greedy**, at temperature 0, in the policy's own chat template and under the system message of training.
- **A prompt is never cut.** One that leaves no room for the answer is refused by its name, or left out and
  counted. Where a server failed there is no answer, which is not an empty one.
- **A killed evaluation goes on.** Rows are written as they come. Each says by a digest what it answers and
  whom it is of: a row of another policy, judge or question is refused, not mixed in. Rows that failed are
  asked for again, and of two rows of one prompt the later counts.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from rar_mini import checkpoint, policy, prompts, sampler
from rar_mini.data import Example
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Endpoint, Failure, Request
from rar_mini.options import refuse_outside
from rar_mini.pretrained import resolve

BATCH = 32
"""Prompts that are answered, graded and written down at a time."""

Answer = dict[str, Any]
"""`response`, None where there is none; `finished`, False where it was cut, None where that is not known."""


@dataclass(frozen=True)
class Answering:
    """Who answers what, and how."""

    policy: str = "smollm2-135m"
    """a run (its newest checkpoint), a model's directory, a hub id, or chat:NAME for a server's model"""
    responses: Path | None = None
    """a JSONL file of answers instead, each with its `prompt_id` and `response`"""
    out: Path | None = None
    """the folder of rows and result; by default the run's own, else evaluations/POLICY"""
    limit: int | None = None
    """answer no more than so many questions, drawn as simple-evals draws them"""
    max_new_tokens: int = 1024
    """tokens after which an answer is cut"""
    long_prompts: Literal["refuse", "skip"] = "refuse"
    """what to do with a prompt that leaves no room for the answer: stop, or leave it out and say how many"""
    cache_mb: int = 2048
    """memory for the sampler's keys and values; more answers than fit wait for the next wave"""
    policy_device: str = "auto"
    """of weights in this process: cpu, cuda, or auto; in bfloat16 on a GPU, else in float32"""
    policy_url: str | None = None
    """where the server of a policy chat:NAME stands, with its /v1; the judge's if not given"""

    def __post_init__(self) -> None:
        """Refuse numbers by which nothing could be answered."""
        refuse_outside(self, dict.fromkeys(("limit", "max_new_tokens", "cache_mb"), (1, 1e9)))

    def located(self) -> tuple[str, Path]:
        """What to load, and the folder of its results."""
        name, path = self.policy, Path(self.policy)
        home = Path("evaluations") / re.sub(r"[^\w.-]+", "-", name).strip("-.")
        if self.responses:
            name, home = str(self.responses), self.responses.with_suffix("")
        elif checkpoints := checkpoint.Run(path).checkpoints():
            name, home = str(checkpoints[-1]), path
        elif (path / "rollouts.jsonl").exists():
            raise ValueError(f"{path} is a run without a checkpoint: expected one (--save-every), or a model")
        elif path.parent.name == "checkpoints":
            home = path.parent.parent
        return name, self.out or home


class Sampled:
    """Weights in this process. They are read when something is to be answered, and not before."""

    def __init__(self, name: str, asking: Answering) -> None:
        self.directory, self.asking = resolve(name), asking
        files = [(path.name, path.stat()) for path in sorted(self.directory.glob("*.safetensors"))]
        weights = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        self.told = [str(self.directory.absolute()), weights, asking.max_new_tokens, prompts.POLICY_SYSTEM]

    def fitting(self, examples: Sequence[Example]) -> list[Example]:
        if not examples:
            return []
        device = self.asking.policy_device
        device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.actor = policy.load(str(self.directory), dtype, device)
        window, found = policy.window(self.actor), []
        for example in tqdm(examples, desc="reading questions", leave=False, disable=None):
            why = policy.too_long(self.actor, example, window, self.asking.max_new_tokens, answered=False)
            if not why:
                found.append(example)
            elif self.asking.long_prompts == "refuse":
                raise ValueError(f"{why}; raise the limit, or pass --long-prompts skip")
        return found

    def answer(self, examples: Sequence[Example]) -> list[Answer]:
        actor, most = self.actor, self.asking.max_new_tokens
        unused = np.zeros(most)  # greedy decoding draws nothing
        requests = [sampler.Request(actor.encode(example), [unused]) for example in examples]
        settings = sampler.Settings(most, temperature=0.0, cache_bytes=self.asking.cache_mb * 2**20)
        total = len(examples) * most
        with tqdm(total=total, desc="answering", unit="tok", leave=False, disable=None) as bar:
            groups = sampler.sample(actor.model, requests, actor.ends, settings, bar.update)
        return [{"response": actor.decode(one.ids), "finished": one.finished} for (one,) in groups]


class Served:
    """A server's model. Its window is not known here: where a prompt is too long for it, it fails."""

    def __init__(self, endpoint: Endpoint, asking: Answering) -> None:
        self.endpoint, self.most = endpoint, asking.max_new_tokens
        self.told = [endpoint.model, endpoint.address, self.most, prompts.POLICY_SYSTEM]

    def fitting(self, examples: Sequence[Example]) -> list[Example]:
        return list(examples)

    def answer(self, examples: Sequence[Example]) -> list[Answer]:
        body = {"model": self.endpoint.model, "temperature": 0.0, "seed": 0, "max_tokens": self.most}
        bodies = (body | {"messages": prompts.policy_messages(e.messages)} for e in examples)
        requests = (Request("/chat/completions", body, written) for body in bodies)
        with tqdm(total=len(examples), desc="answering", leave=False, disable=None) as bar:
            found = self.endpoint.ask(requests, bar.update)
        none = {"response": None, "finished": None}
        return [none if isinstance(answer, Failure) else answer for answer in found]


def written(reply: dict[str, Any]) -> Answer:
    """The answer in a chat completion; one that was cut or that refuses is one too. Raises Failure."""
    text, reason, refusal = wires.completion(reply)
    text = refusal if text is None else text
    if not isinstance(text, str):
        raise Failure("empty")
    return {"response": text.strip(), "finished": reason != "length"}


class Given:
    """A file of answers."""

    def __init__(self, path: Path) -> None:
        rows = checkpoint.lines(path, "prompt_id", "response", finished=True)
        self.path, self.told = path, [hashlib.sha256(path.read_bytes()).hexdigest()]
        texts = [(str(row["prompt_id"]), row["response"]) for row in rows]
        self.found = {name: text for name, text in texts if isinstance(text, str)}

    def fitting(self, examples: Sequence[Example]) -> list[Example]:
        if absent := [example.id for example in examples if example.id not in self.found]:
            raise ValueError(
                f"{self.path}: expected a `response` for each of {len(examples)} prompts, and {len(absent)} "
                f"have none (the first is {absent[0]!r})"
            )
        return list(examples)

    def answer(self, examples: Sequence[Example]) -> list[Answer]:
        return [{"response": self.found[example.id], "finished": None} for example in examples]


Source = Sampled | Served | Given
"""Where answers come from: `told` is what they depend on besides the conversation; `fitting` are the examples
that can be answered, ValueError names one that cannot; `answer` gives one to each."""


def kept(path: Path, asked: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The rows that an evaluation left, by prompt; and the file is made ready for more.

    `asked` has for each prompt a digest of what its row depends on. Raises ValueError where one has another.
    """
    rows = {row["prompt_id"]: row for row in checkpoint.lines(path, "prompt_id", "asked", "failed")}
    if other := [name for name in asked if name in rows and rows[name]["asked"] != asked[name]]:
        raise ValueError(
            f"{path} has {other[0]!r} of another policy, judge, question or option than asked for now: name "
            "another folder with --out, or delete the file; --responses takes its answers over"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # without half a line
    return {name: rows[name] for name in asked if name in rows}


def keep(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows and hand them to the system."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
