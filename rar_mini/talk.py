"""Conversations: rollouts in which policy and user take turns, until the user, whom a recipe plays, is done.

What this file decided:

- **A later turn is a request of its own**, whose prompt is the conversation so far: the very tokens that were
  sampled, and between them what the chat template writes around the user's turn.
- **--max-new-tokens bounds each of the policy's turns**, also a teacher's words for it, and
  --max-prompt-tokens what stands before each. A conversation whose next turn has no room ends, a teacher's
  words that are too long are not taken, and both are said.
- **An answer that was cut is the last one**: nobody knows what it would have said.
- **Random numbers go on**: the p-th number of a rollout decides the p-th token that it samples, in whatever
  turn that is.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rar_mini import policy
from rar_mini.data import Example
from rar_mini.forms import T, whole
from rar_mini.judging.endpoint import Failure
from rar_mini.policy import Policy
from rar_mini.prefix import Heard
from rar_mini.recipe import Recipe, overrides
from rar_mini.sampler import Completion, Request, Settings

log = logging.getLogger(__name__)

THREADS = 32
"""Users and teachers that are asked at once: a server answers many in the time of one."""

Lesson = tuple[str | None, bool] | None
"""What `Recipe.teach` returns."""


@dataclass
class Talk:
    """Rollout g of question p while it is sampled: its tokens, as a Completion has them, and its turns."""

    p: int
    g: int
    example: Example
    prompt: list[int]  # the tokens before the policy's next turn
    draw: Callable[[int], np.ndarray]  # the first so many of its random numbers
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)
    last: Completion | None = None  # the newest turn
    instead: bool = False  # whether something else than that turn is trained
    drawn: int = 0  # random numbers that are used up
    opening: int = 0  # the tokens of the first prompt, from the second turn on
    unanswered: bool = False  # whether the user's reply could not be had

    @property
    def completion(self) -> Completion:
        """All of its turns."""
        last = self.last
        return Completion(self.ids, self.logp, last.finished, last.only_thoughts, self.heard, self.unanswered)

    def speak(self, actor: Policy, own: Completion | None, lesson: Lesson) -> None:
        """Add the policy's `own` turn, or None if the teacher spoke in its place."""
        words, _ = lesson or (None, False)
        taught = [] if words is None else actor.completion(words)
        self.last = own or Completion(taught, [], True)
        self.drawn += len(self.last.logp)
        self.ids += self.last.ids if lesson is None else taught
        self.logp += self.last.logp if lesson is None else []
        self.instead = lesson is not None and own is not None
        self.turns.append({"role": "assistant", "content": actor.decode(self.last.ids)})

    def hear(self, actor: Policy, text: str, room: int) -> bool:
        """Add the user's turn. False if no other turn has room behind it."""
        if not isinstance(text, str):
            raise ValueError(
                f"the recipe's reply to {self.example.id!r}: expected text or None, got {text!r:.80}"
            )
        text = whole(text)
        bridge = actor.turns.bridge(text)
        bridge = bridge[self.last.ids[-1] == bridge[0] :]  # the policy may have ended by another token
        before = self.last.ids if self.instead else []
        prompt = [*self.prompt, *self.last.ids, *bridge]
        if len(prompt) > room:
            return False
        self.opening = self.opening or len(self.prompt)
        self.prompt = prompt
        self.heard.append(Heard(len(self.ids), [*before, *bridge], self.instead))
        self.turns.append({"role": "user", "content": text})
        return True


def converse(
    talks: Sequence[Talk],
    recipe: Recipe,
    actor: Policy,
    step: int | None,
    how: Settings,
    bar: Any,
    ended: Callable[[Example, Completion], object],
) -> None:
    """Sample all rollouts to their ends: a turn of each that goes on, then the users' replies. Without a
    `step`, for a score, nobody teaches. `ended` is told of each turn as soon as it is whole."""
    going = list(talks)
    while going:
        lessons: list[Lesson] = [None] * len(going)
        if step is not None and overrides(recipe, "teach"):
            lessons = _taught(going, recipe, actor, step, how.max_new_tokens)
        pairs = list(zip(going, lessons, strict=True))
        own = _sample([talk for talk, lesson in pairs if not lesson or not lesson[1]], actor, how, bar, ended)
        for talk, lesson in pairs:
            talk.speak(actor, own.get((talk.p, talk.g)), lesson)
        going = _replied(going, recipe, actor, how.max_new_tokens) if overrides(recipe, "reply") else []
        bar.total += len(going) * how.max_new_tokens


def _sample(
    talks: Sequence[Talk],
    actor: Policy,
    how: Settings,
    bar: Any,
    ended: Callable[[Example, Completion], object],
) -> dict[tuple[int, int], Completion]:
    """One turn of each rollout, by its p and g. Rollouts of a question that have the same words before them
    share a request."""
    alike: dict[tuple[int, ...], list[Talk]] = {}
    for talk in talks:
        alike.setdefault((talk.p, *talk.prompt), []).append(talk)
    new, groups = how.max_new_tokens, list(alike.values())
    requests = [
        Request(group[0].prompt, [t.draw(t.drawn + new)[t.drawn :] for t in group], group[0].opening)
        for group in groups
    ]
    written = actor.sample(requests, how, bar.update, lambda r, said: ended(groups[r][0].example, said))
    rows = zip(groups, written, strict=True)
    return {(t.p, t.g): said for group, row in rows for t, said in zip(group, row, strict=True)}


def _taught(talks: Sequence[Talk], recipe: Recipe, actor: Policy, step: int, new: int) -> list[Lesson]:
    """What a teacher says for the next turn of each; no words if they are longer than the policy's may be."""
    lessons = _at_once(lambda talk: recipe.teach(talk.example, talk.turns, step, talk.g), talks)
    long = 0
    for i, (talk, lesson) in enumerate(zip(talks, lessons, strict=True)):
        match lesson:
            case (str(words), _) if len(actor.completion(words)) > new:
                lessons[i], long = (None, False), long + 1
            case None | (str(), _):
                pass
            case (None, said) if not said:
                pass
            case _:
                raise ValueError(
                    f"the recipe's words for {talk.example.id!r}: expected None, (text, True or False) or "
                    f"(None, False), got {lesson!r:.80}"
                )
    if long:
        log.warning(
            f"{long} of {len(talks)} turns have none of their teacher's words, which are too long: expected "
            f"at most {new} tokens with the end; raise --max-new-tokens, or ask the teacher for shorter ones"
        )
    return lessons


def _replied(talks: Sequence[Talk], recipe: Recipe, actor: Policy, new: int) -> list[Talk]:
    """Those that go on, each with the user's turn."""
    talks = [talk for talk in talks if talk.last.finished]
    replies = _at_once(lambda talk: _reply(recipe, talk), talks)
    replied = [(talk, text) for talk, text in zip(talks, replies, strict=True) if text is not None]
    room = min(recipe.config.max_prompt_tokens, policy.window(actor) - new)
    going = [talk for talk, text in replied if talk.hear(actor, text, room)]
    if short := len(replied) - len(going):
        log.warning(
            f"{short} of {len(talks)} conversations ended because their next turn had no room: expected at "
            f"most {room} tokens before it; raise --max-prompt-tokens, or let the recipe end them earlier"
        )
    return going


def _reply(recipe: Recipe, talk: Talk) -> str | None:
    try:
        return recipe.reply(talk.example, talk.turns)
    except Failure:  # which is no end of the conversation, and no score
        talk.unanswered = True
        return None


def _at_once(ask: Callable[[Talk], T], talks: Sequence[Talk]) -> list[T]:
    pool, patient = ThreadPoolExecutor(THREADS), True
    try:
        return list(pool.map(ask, talks))
    except KeyboardInterrupt:  # the server that they ask may hang
        patient = False
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)


def refuse(recipe: Recipe, actor: Policy) -> None:
    """Raise ValueError if this run cannot have the conversations of its recipe."""
    steps = [step for step in ("reply", "teach") if overrides(recipe, step)]
    if steps and recipe.config.supervised:
        raise ValueError(
            f"--method sft learns from reference answers, and the recipe has its own {' and '.join(steps)}: "
            "leave one of them out"
        )
    if "reply" in steps:
        actor.turns.refuse_talk()
