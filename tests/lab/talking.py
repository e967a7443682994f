"""A policy over a dozen words, which talks with users and teachers that are functions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from reading import Reader
from transformers import LlamaConfig

from rar_mini.config import PRESETS
from rar_mini.data import Example
from rar_mini.kernels.adamw import AdamW
from rar_mini.model import Decoder
from rar_mini.recipe import Recipe
from rar_mini.sampler import Completion, Request, sample
from rar_mini.setup import Training

WORDS = "<end> <answer> what ask is good wrong sorry thanks n0 n1 n2 n3".split()
NUMBER = {word: i for i, word in enumerate(WORDS)}
CONFIG = replace(
    PRESETS["cpu"],
    **{"prompts_per_step": 4, "group_size": 16, "max_new_tokens": 2, "max_prompt_tokens": 32, "lr": 1e-2},
    **{"cut_answers": "penalise", "answers": "full", "warmup": 0.0, "seed": 0, "device": "cpu"},
)


class Speaker:
    """In train.py's eyes a policy like others; its template writes words, and <answer> behind them."""

    ends = frozenset({NUMBER["<end>"]})

    def __init__(self, seed: int) -> None:
        sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
        self.model, random = Decoder(LlamaConfig(**sizes, tie_word_embeddings=True)), torch.Generator()
        random.manual_seed(seed)
        for parameter in self.model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=32**-0.5, generator=random)
        self.turns = SimpleNamespace(bridge=lambda text: [NUMBER["<end>"], *ids(text), NUMBER["<answer>"]])

    def encode(self, example: Example, messages: object = None) -> list[int]:
        return [*ids(example.question.split()[0]), NUMBER["<answer>"]]  # the rest is for others

    def completion(self, text: str) -> list[int]:
        return [*ids(text), NUMBER["<end>"]]

    def decode(self, written: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in written if i not in self.ends)

    def sample(self, requests: Sequence[Request], *how: Any) -> list[list[Completion]]:
        return sample(self.model, requests, self.ends, *how)


def ids(text: str) -> list[int]:
    return [NUMBER[word] for word in text.split()]


def training(own: Recipe, examples: list[Example], actor: Speaker) -> Training:
    """What train.py's functions work with; a criterion is met if its word is in the last answer."""
    optimizer = AdamW(actor.model.parameters(), CONFIG.lr)
    t = Training(replace(own.config, **vars(CONFIG)), own, actor, None, optimizer, Reader())
    t.questions["train"] = examples
    return t


class Stand:
    """In the place of a Writer: a function of the conversation writes."""

    def __init__(self, write: Callable[[str, str], object]) -> None:
        self.of = write

    def write(self, task: str, materials: Sequence[dict[str, str]], read: Callable[[str], Any]) -> list[Any]:
        said = (self.of(each["conversation"], each.get("situation", "")) for each in materials)
        return [read(text if isinstance(text, str) else json.dumps(text)) for text in said]
