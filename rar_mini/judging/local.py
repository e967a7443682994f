"""A judge in this process: closed questions to a model's own next-token probabilities, with no text written.

All that is asked about the answers to one question is a prefix tree of depth 3: the question, below it each
answer, below that each criterion. One forward pass reads every part once and gives the probabilities at every
end: 5,500 tokens for 8 answers of 250 tokens to a question of 300 under 10 criteria of 40, where 80 prompts
of their own have 47,200. The answer to a question is the share of one offered word among those that were
offered; how much probability the offered words have together is the *mass*: a model that gives them little is
not answering the question.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from string import ascii_uppercase
from typing import Any, TypeVar

import torch
from torch import Tensor

from rar_mini import policy, ranks
from rar_mini.checkpoint import refuse_damaged
from rar_mini.judging.asked import Answer, Asked, by_question
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.ledger import Ledger
from rar_mini.judging.wires import Worded, worded
from rar_mini.prefix import Packed, Tree, pack
from rar_mini.prompts import JudgePrompts, fill, listed
from rar_mini.turns import THINK, UNTHINK

log = logging.getLogger(__name__)

YES_NO = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))
"""Spellings of the offered words; probabilities of one word's spellings add up."""

LETTERS = tuple((letter, f" {letter}") for letter in "ABCDEFGHIJ")
"""Ten ratings as one token each: "10" is two tokens in many tokenizers, and begins like "1"."""

LITTLE = 0.5
"""A model whose offered answers have less than this together is warned about."""

LINE = re.compile(r"(?<=\S)\n(?=\S)")
"""Where a prompt may be cut: what comes next decides whether several spaces are one token."""

TOKENS = 8192
"""Tokens in one forward pass; the answers to one question are halved until they fit."""

T = TypeVar("T")
Leaves = list[list[int]]  # G x Q, the segment of a tree that each answer's each prompt ends with


def messages(texts: JudgePrompts, asked: Worded, i: int) -> list[dict[str, str]]:
    """The conversation in which a model is asked question i."""
    choices, closing = asked.of(i), texts.letter if asked.rated else texts.yes_no
    if choices:
        closing = fill(texts.choice, last=ascii_uppercase[len(choices) - 1])
    question = asked.questions[i] + listed(texts, choices, ascii_uppercase)
    user = f"{asked.shared}{question}\n{closing}"
    return [{"role": "system", "content": texts.system}, {"role": "user", "content": user}]


class Reader:
    """The weights that `pretrained.resolve` finds under a name, and how they read a tree of prompts. `device`
    is cpu, cuda, cuda:NUMBER, or auto.

    `ledger` counts tokens as a server does: all of the prompts', and those that were not read again.
    """

    def __init__(self, name: str, device: str, texts: JudgePrompts, secret: bytes) -> None:
        device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        ranks.refuse_device(device, "--judge-device")
        # bfloat16 halves the memory of a GPU; on a CPU it is emulated and slow.
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        refuse_damaged(name)
        self.loaded = policy.load(name, dtype, device)
        self.device, self.name, self.texts, self.secret = device, name, texts, secret
        self.ledger = Ledger()

    @torch.no_grad()
    def read(
        self,
        answers: Sequence[T],
        grow: Callable[[Sequence[T]], tuple[Tree, Leaves]],
        take: Callable[[Packed, Leaves], Sequence[Tensor]],
    ) -> list[Tensor | Failure]:
        """A tensor for each of G answers: what `take` makes of a packed pass over the tree that `grow` makes
        of them. A Failure if one of an answer's prompts is longer than the model's window."""
        tree, leaves = grow(answers)
        lengths = [[len(tree.sequence(leaf)) for leaf in each] for each in leaves]  # G x Q
        room, longest = policy.window(self.loaded), [max(each) for each in lengths]
        if max(longest) > room:
            short = [each for each, length in zip(answers, longest, strict=True) if length <= room]
            kept = iter(self.read(short, grow, take) if short else [])
            words = f"{max(longest)} tokens, and {self.name} reads at most {room}"
            return [next(kept) if length <= room else Failure("too long", words) for length in longest]
        if sum(map(len, tree.segments)) > TOKENS and len(answers) > 1:
            half = len(answers) // 2  # the question is read once for each half
            return self.read(answers[:half], grow, take) + self.read(answers[half:], grow, take)
        # Triton launches on the current GPU, which is the policy's.
        with torch.cuda.device(self.device) if self.device.startswith("cuda") else nullcontext():
            packed = pack(tree, self.device)
            total, read = sum(map(sum, lengths)), len(packed.ids)
            self.ledger.counts.update(tokens_in=total, tokens_cached=total - read)
            return list(take(packed, leaves))

    def prompts(self, answers: Sequence[Worded]) -> list[list[str]]:
        """What is read of each of G answers: a whole prompt for each of its Q questions."""
        return [
            [self._render(messages(self.texts, each, i)) for i in range(len(each.questions))]
            for each in answers
        ]

    def tree(self, prompts: Sequence[Sequence[str]]) -> tuple[Tree, Leaves]:
        """G answers' Q prompts as a tree, and the segment that each prompt ends with, G x Q."""
        tree = Tree()
        top = _shared([text for each in prompts for text in each])
        root = tree.add(self._encode(prompts[0][0][:top], first=True)) if top else None
        leaves = []
        for each in prompts:
            cut, stem = _shared(each), root
            if cut > top:
                stem = tree.add(self._encode(each[0][top:cut], first=not top), root)
            leaves.append([tree.add(self._encode(text[cut:], first=not cut), stem) for text in each])
        return tree, leaves

    def _render(self, shown: list[dict[str, str]]) -> str:
        # Qwen3 would think first; other templates do not read this.
        text = self.loaded.turns.render(shown, enable_thinking=False)
        # The judge is asked for its next token, which must not be one of its thoughts.
        return f"{text}\n{UNTHINK}\n\n" if text.rstrip().endswith(THINK) else text

    def _encode(self, text: str, *, first: bool) -> list[int]:
        """The tokens of a prompt's beginning, or of what follows a line's end in it."""
        turns = self.loaded.turns
        if first:
            return turns.prompt(text)
        # Behind a line's end, because some tokenizers put a space in front of whatever they are given.
        return turns.encode("\n" + text)[len(turns.encode("\n")) :]

    def close(self) -> None:
        """There are no connections."""


class LocalJudge(Reader):
    """The judge: what its model says next."""

    def __init__(self, name: str, device: str, texts: JudgePrompts, secret: bytes) -> None:
        super().__init__(name, device, texts, secret)
        self._warned = False
        self.mass: list[float] = []  # what the offered answers had together, of each question

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer all, in order: what is asked about the answers to one question in one pass."""
        answers: list[Answer] = []
        for group in by_question(asked):
            together = [worded(each, self.texts, self.secret, self.loaded.turns.literal) for each in group]
            self.ledger.counts["questions"] += len(together)
            for answer in self.of_question(together):
                if isinstance(answer, Failure):
                    self.ledger.fail(answer.kind, answer.words)
                answers.append(answer)
                done()
        return answers

    def of_question(self, answers: Sequence[Worded]) -> list[Answer]:
        """For each of G answers to one question: P(yes) / (P(yes) + P(no)) of each of its Q questions, or the
        expected choice, as verdicts; or one expected rating. A Failure if a prompt is longer than the model's
        window.

        Raises ValueError if the tokenizer cannot tell the offered words apart.
        """
        offered = [[_offered(each, i) for i in range(len(each.questions))] for each in answers]
        words = list(dict.fromkeys(word for sets in offered for own in sets for word in own))
        take = partial(self._chances, self._tokens(words))
        read = self.read(self.prompts(answers), self.tree, take)  # (Q, A) an answer
        results: list[Answer] = []
        for each, sets, p in zip(answers, offered, read, strict=True):
            if isinstance(p, Failure):
                results.append(p)
                continue
            expected = []
            for q, own in enumerate(sets):
                chosen = p[q : q + 1, [words.index(word) for word in own]]  # (1, A)
                rank = torch.arange(len(own)) + float(each.rated) if own is not YES_NO else torch.eye(2)[0]
                mass = chosen.sum(-1)
                self.mass.append(mass.item())
                expected.append((chosen / mass[:, None] @ rank).item())
            self._warn(sum(self.mass[-len(sets) :]) / len(sets))
            results.append(each.verdicts(expected))
        return results

    def _warn(self, mass: float) -> None:
        if mass < LITTLE and not self._warned:
            self._warned = True
            log.warning(
                f"local:{self.name} gives the offered answers only {mass:.2f} of its probability: it "
                "would say something else, and what it says here means little"
            )

    def _chances(self, offered: Sequence[Sequence[int]], packed: Packed, leaves: Leaves) -> Sequence[Tensor]:
        """The probabilities of A offered words as the next token after each of an answer's Q prompts: (Q, A)
        an answer, float32 on the CPU."""
        head = self.loaded.model.head
        hidden = self.loaded.model(packed.ids, packed.positions, packed.attend)  # (T, D)
        ends = hidden[[packed.last(leaf) for each in leaves for leaf in each]]  # (G Q, D)
        logits = (ends @ head.T).float()  # (G Q, V)
        # The offered rows again in float32: a bfloat16 logit of 20 is off by up to 0.06.
        every = [token for ids in offered for token in ids]
        logits[:, every] = ends.float() @ head[every].float().T
        lse = logits.logsumexp(-1, keepdim=True)  # (G Q, 1)
        p = [(logits[:, ids] - lse).exp().sum(-1) for ids in offered]
        return torch.stack(p, dim=-1).cpu().split([len(each) for each in leaves])

    def _tokens(self, offered: Sequence[Sequence[str]]) -> list[list[int]]:
        """The tokens that open each answer: those of its spellings that are one token, else its first."""
        tokens = []
        for spellings in offered:
            coded = [self.loaded.tokenizer.encode(word, add_special_tokens=False) for word in spellings]
            tokens.append(sorted({ids[0] for ids in coded if len(ids) == 1} or {coded[0][0]}))
        taken = [token for ids in tokens for token in ids]
        if len(set(taken)) < len(taken):
            raise ValueError(
                f"local:{self.name} cannot judge: expected a tokenizer in which "
                f"{', '.join(spellings[0] for spellings in offered)} begin with different tokens"
            )
        return tokens


def _offered(asked: Worded, i: int) -> Sequence[Sequence[str]]:
    """What question i may be answered with: yes or no, or letters from the worst to the best."""
    return LETTERS if asked.rated else LETTERS[: len(asked.of(i))] or YES_NO


def _shared(texts: Sequence[str]) -> int:
    """How many characters all texts begin with, up to an end of a line where tokens end, too, and short of
    any text's own end."""
    until = len(os.path.commonprefix(texts)) + 1
    ends = ({m.end() for m in LINE.finditer(text, 0, until)} for text in texts)
    return max(set.intersection(*ends), default=0)
