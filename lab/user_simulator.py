"""User simulators: a conversation in which a script, or a model, plays the user; its last answer is judged.

    python train.py --data FILE --recipe user_simulator --recipe.user chat:NAME --recipe.turns 3

After user simulators as training environments, arXiv 2605.09808, of which the abstract was read. A rollout is

    question, answer, reply, answer, ..., answer      reward = the rubric's share that the last answer earns

and the judge reads that answer behind the whole conversation, as HealthBench's grader does. A script is
`user_turns` in a row's `hidden`, or what the user says later in a row of HealthBench's form. Without a script
the model `user` speaks; it alone is shown `user` of `hidden`, its situation.

Ours: the prompt. If the model fails, the rollout has no reward. What came out (test_user_simulator.py, seed
0): the user knows one of four numbers and tells it if asked. A policy that asks in one of three conversations
asks in all of them 15 steps later, and more than 0.9 of its last answers are right; without a user < 0.35.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lab.models import text_writer
from rar_mini.judging import wires
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.wrappers import JudgeLike, Wrapper
from rar_mini.judging.writer import Writer
from rar_mini.options import Count
from rar_mini.recipe import Example, Recipe

CLAIM = "a policy that is trained with a better user is better with people"
LACKS = "a user who speaks"
TASK = """You are the user of this conversation, a person who wants help and no assistant. Say what you say \
next, in one to three sentences: answer what was asked, as your situation has it, or ask on. Reply with the \
JSON object alone: {"says": "..."}, or {"says": null} once you have what you came for."""


def _read(text: str) -> str:
    """The user's words; "" for none. Raises Failure."""
    found = wires.only_json(text)
    if not isinstance(found, dict) or found.keys() != {"says"} or not isinstance(found["says"], str | None):
        raise Failure("malformed", 'expected {"says": text or null}')
    return (found["says"] or "").strip()


def says(example: Example, turns: Sequence[dict[str, str]], most: int, writer: Writer | None) -> str | None:
    """The user's next turn, by the row's script or else by the model; None once there is none."""
    said, script = len(turns) // 2, example.hidden["user_turns"]
    if said + 1 >= most:
        return None
    if script or writer is None:
        return script[said] if said < len(script) else None
    known = {"situation": str(example.hidden["user"])} if "user" in example.hidden else {}
    words = writer.write(TASK, [{"conversation": example.after(turns).question} | known], _read)[0]
    if words is None:
        raise Failure("user", "its turn could not be had")
    return words or None


def opened(example: Example) -> Example:
    """A conversation up to the user's first turn; what the user says later becomes the script."""
    first, *later = [n for n, turn in enumerate(example.messages) if turn["role"] == "user"]
    hidden = {"user_turns": [example.messages[n]["content"] for n in later]} | example.hidden
    for name in ("user_turns", "teacher_turns"):
        script = hidden.get(name, [])
        if not isinstance(script, list) or not all(isinstance(text, str) for text in script):
            raise ValueError(f"{example.id!r}: expected texts in hidden.{name}, got {script!r:.80}")
    return replace(example, messages=example.messages[: first + 1], row=example.row | {"hidden": hidden})


@dataclass(frozen=True)
class UserSimulator(Recipe):
    user: str | None = None
    """a model that plays the user of rows without a script, chat:NAME"""
    turns: Count = 3
    """of the policy, at most"""

    @cached_property
    def _user(self) -> Writer | None:
        return self.user and text_writer(self.user, self.config)

    def judge(self, judge: JudgeLike) -> JudgeLike:
        return Wrapper(judge, self._user) if self.user else judge

    def load(self, **how: object) -> list[Example]:
        return [opened(example) for example in super().load(**how)]

    def reply(self, example: Example, turns: Sequence[dict[str, str]]) -> str | None:
        return says(example, turns, self.turns, self._user)
