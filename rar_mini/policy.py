"""A policy: a decoder with its tokenizer, and how a conversation becomes token ids and token ids become a
response."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from rar_mini import model, prompts
from rar_mini.data import Example
from rar_mini.model import Decoder
from rar_mini.pretrained import resolve
from rar_mini.sampler import end_tokens


@dataclass(frozen=True)
class Policy:
    """Weights, tokenizer and end tokens, and the directory they came from."""

    model: Decoder
    tokenizer: Any
    ends: frozenset[int]
    directory: Path

    def encode(self, example: Example) -> list[int]:
        """The prompt's token ids, the opening of the answer included.

        With a chat template if the tokenizer has one, else as the plain text of prompts.py. The template
        writes the special tokens itself; a plain text gets the tokenizer's own (a beginning-of-text token,
        where it has one).
        """
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                prompts.policy_messages(example.messages), tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.encode(prompts.policy_text(prompts.policy_messages(example.messages)))

    def decode(self, ids: Sequence[int]) -> str:
        """A completion's text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Policy:
    """Load a policy by the names that `pretrained.resolve` takes."""
    directory = resolve(name)
    decoder = model.load(directory, dtype, device)
    logging.getLogger("transformers.tokenization_utils_base").setLevel(
        logging.ERROR
    )  # warns of any long text
    tokenizer = AutoTokenizer.from_pretrained(directory)
    named = [decoder.config.eos_token_id, tokenizer.eos_token_id]
    if (directory / "generation_config.json").exists():
        named.append(GenerationConfig.from_pretrained(directory).eos_token_id)
    ends = end_tokens(*named)
    if not ends:
        raise ValueError(f"{directory} names no end token: expected eos_token_id in its config or tokenizer")
    return Policy(decoder, tokenizer, ends, directory)


def window(policy: Policy) -> int:
    """How many tokens a prompt and its completion may have together."""
    return policy.model.config.max_position_embeddings
