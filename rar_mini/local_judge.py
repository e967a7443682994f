"""A judge in this process: closed questions to a model's own next-token probabilities, with no text written.

All questions about one response share its reading: what their prompts have in common is one segment of a
prefix tree, the rest of each a child of it, and one forward pass gives the probabilities at every end. The
answer to a question is the share of one offered word among those that were offered; how much probability the
offered words have together is the *mass*: a model that gives them little is not answering the question.
"""

import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from rar_mini import policy, prompts
from rar_mini.endpoint import Failure
from rar_mini.prefix import Tree, pack
from rar_mini.prompts import JudgePrompts
from rar_mini.wires import Asked

log = logging.getLogger(__name__)

YES_NO = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))
"""Spellings of the offered words; probabilities of one word's spellings add up."""

LETTERS = tuple((letter, f" {letter}") for letter in "ABCDEFGHIJ")
"""Ten ratings as one token each: "10" is two tokens in many tokenizers, and begins like "1"."""

LITTLE = 0.5
"""A model whose offered answers have less than this together is warned about."""


class LocalJudge:
    """The weights that `pretrained.resolve` finds under a name. `device` is cpu, cuda, or auto."""

    def __init__(self, name: str, device: str = "auto") -> None:
        device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        # bfloat16 halves the memory of a GPU; on a CPU it is emulated and slow.
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.loaded = policy.load(name, dtype, device)
        self.device, self.name, self._warned = device, name, False

    def ask(self, asked: Asked, texts: JudgePrompts) -> tuple[list[float], list[float]]:
        """P(yes) / (P(yes) + P(no)) of each of Q questions, or one expected rating; and the masses, Q.

        Raises Failure where a question is longer than the model's window, ValueError where the tokenizer
        cannot tell the offered answers apart.
        """
        closing, offered = (texts.letter, LETTERS) if asked.rated else (texts.yes_no, YES_NO)
        users = [f"{asked.shared}{question}\n{closing}" for question in asked.questions]
        p = self._probabilities([self._render(texts.system, user) for user in users], offered)  # (Q, A)
        mass = p.sum(-1)  # (Q,)
        if mass.mean() < LITTLE and not self._warned:
            self._warned = True
            log.warning(
                f"local:{self.name} gives the offered answers only {mass.mean():.2f} of its probability: it "
                "would say something else, and what it says here means little"
            )
        share = p / mass[:, None]  # (Q, A)
        answers = share @ torch.arange(1.0, 11.0) if asked.rated else share[:, 0]  # (Q,)
        return answers.tolist(), mass.tolist()

    @torch.no_grad()
    def _probabilities(self, texts: Sequence[str], offered: Sequence[Sequence[str]]) -> Tensor:
        """Of A offered words as the next token after each of Q prompts: (Q, A), float32 on the CPU."""
        shared = os.path.commonprefix(texts)
        cut = shared.rfind("\n", 0, len(shared) - 1) + 1  # at a line's end, where tokens end too
        tree = Tree()
        root = tree.add(self._encode(shared[:cut], first=True)) if cut else None
        leaves = [tree.add(self._encode(text[cut:], first=not cut), root) for text in texts]
        longest = max(len(tree.segments[leaf]) for leaf in leaves) + (len(tree.segments[0]) if cut else 0)
        if longest > (room := policy.window(self.loaded)):
            raise Failure("too long", f"{longest} tokens, and local:{self.name} reads at most {room}")
        packed, head = pack(tree, self.device), self.loaded.model.head
        hidden = self.loaded.model(packed.ids, packed.positions, packed.attend)  # (T, D)
        ends = hidden[[packed.last(leaf) for leaf in leaves]]  # (Q, D)
        total = (ends @ head.T).float().logsumexp(-1)  # (Q,)
        # The offered rows again in float32: a bfloat16 logit of 20 is off by up to 0.06.
        p = [(ends.float() @ head[ids].float().T - total[:, None]).exp() for ids in self._tokens(offered)]
        return torch.stack([each.sum(-1) for each in p], dim=-1).cpu()

    def _render(self, system: str, user: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        if not self.loaded.tokenizer.chat_template:
            return prompts.policy_text(messages)
        return self.loaded.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3 would think first; other templates do not read it
        )

    def _encode(self, text: str, *, first: bool) -> list[int]:
        # A chat template writes the beginning-of-text token itself.
        special = first and not self.loaded.tokenizer.chat_template
        return self.loaded.tokenizer.encode(text, add_special_tokens=special)

    def _tokens(self, offered: Sequence[Sequence[str]]) -> list[list[int]]:
        """The tokens that open each answer: those of its spellings that are one token, else its first."""
        found = []
        for spellings in offered:
            coded = [self.loaded.tokenizer.encode(word, add_special_tokens=False) for word in spellings]
            found.append(sorted({ids[0] for ids in coded if len(ids) == 1} or {coded[0][0]}))
        taken = [token for ids in found for token in ids]
        if len(set(taken)) < len(taken):
            raise ValueError(
                f"local:{self.name} cannot judge: expected a tokenizer in which "
                f"{', '.join(spellings[0] for spellings in offered)} begin with different tokens"
            )
        return found
