"""A tiny policy and questions that it can answer: what most tests are about."""

import json
from functools import partial
from pathlib import Path

import torch
from hostile import truth
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from judge import Judge
from rar_mini import data, prompts
from rar_mini.sampler import Completion
from rar_mini.scores import Rollouts
from rar_mini.tools import memory

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes and three special tokens: every text has ids, and decoding gives it back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def write_tiny(directory: Path, **changes: object) -> Path:
    """A random two-layer Llama with grouped queries and a byte tokenizer."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # the usual 0.02 gives almost uniform tokens, on which nothing could fail
        "eos_token_id": 258,
        "pad_token_id": 258,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | changes))
    model.generation_config.eos_token_id = [256, 258]
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def known(name: str, **changes: object) -> PretrainedConfig:
    """The config of a model whose size is known, without a file."""
    return AutoConfig.for_model(**memory.KNOWN[name] | changes)


qwen7, qwen1 = partial(known, "Qwen/Qwen2.5-7B"), partial(known, "Qwen/Qwen2.5-1.5B")


ENDS = {*range(0, 256, 8), 258}


def rolled(prompts: list[list[int]], completions: list[list[Completion]], adv: torch.Tensor) -> Rollouts:
    """Rollouts as the update reads them, with one prompt a group."""
    shown = [[prompt] * len(group) for prompt, group in zip(prompts, completions, strict=True)]
    return Rollouts([], shown, completions, [], adv=adv)


def question(number: int, **changes: object) -> dict:
    """A data row on which even a random byte model earns something: lone letters."""
    rubric = [
        {"title": f"Letter {c}", "description": f"Essential Criteria: Mentions {c}.", "weight": 5}
        for c in "bcdefghjklmno"
    ]
    rubric.append({"title": "Names fever", "description": "Important Criteria: Names fever.", "weight": 3})
    rubric.append(
        {"title": "No aspirin", "description": "Pitfall Criteria: Recommends aspirin.", "weight": -1}
    )
    row = {
        "id": f"q{number}",
        "split": "train",
        "question": f"What is {number}?",
        "reference_answer": "That.",
    }
    return row | {"rubric": rubric} | changes


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def told(asker: Judge, example: data.Example, responses: list[str]) -> list[list[float]]:
    """What the honest server says of an example's G responses, criterion by criterion: G x K."""
    texts, items = asker.prompts, asker.rubric(example).criteria
    asked = [(prompts.closed_question(texts, c), prompts.yes_is_bad(texts, c)) for c in items]
    return [[float(truth(response + each) != bad) for each, bad in asked] for response in responses]
