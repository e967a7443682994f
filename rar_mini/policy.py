"""A policy: a decoder with its tokenizer, and how a conversation becomes token ids and token ids become a
response."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from rar_mini import lora, model, pretrained, prompts, sampler
from rar_mini.config import Config
from rar_mini.data import Example
from rar_mini.files import json_object
from rar_mini.model import Decoder
from rar_mini.pretrained import resolve
from rar_mini.sampler import Completion, Request, Settings, end_tokens
from rar_mini.turns import UNTHINK, Turns

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
SLICE = 2**24
"""Numbers of a tensor that are looked at together, so that copies in a wider type stay small."""


@dataclass(frozen=True)
class Policy:
    """Weights, tokenizer and end tokens, and the directory they came from.

    `generation` is the text of its generation config: a run drops the checkpoint that it went on from.
    Adapters also have the name of their `base`, and `merge` says whether they are saved merged into it, too.
    `warned` holds the control tokens in answers that were warned about.
    """

    model: Decoder
    tokenizer: Any
    ends: frozenset[int]
    directory: Path
    generation: str | None = None
    base: str | None = None
    merge: bool = True
    warned: set[int] = field(default_factory=set)

    @cached_property
    def turns(self) -> Turns:
        """What the tokenizer's chat template writes around a turn."""
        return Turns(self.tokenizer)

    def encode(self, example: Example, messages: Sequence[dict[str, str]] | None = None) -> list[int]:
        """The prompt's token ids, the opening of the answer included; `messages` stand in for the example's.

        With a chat template if the tokenizer has one, else as the plain text of prompts.py. Of special tokens
        it has those that the template writes; a plain text has the tokenizer's beginning-of-text token, if
        there is one.
        """
        messages = prompts.policy_messages(example.messages) if messages is None else messages
        shown = [turn | {"content": self.turns.literal(turn["content"])} for turn in messages]
        return self.turns.prompt(self.turns.render(shown))

    def completion(self, text: str) -> list[int]:
        """A text as the token ids of a completion, the end token included; `decode` gives the text back.

        A special token that the text spells out is read as plain characters, so that no text ends early.
        After a plain prompt there is a space first, as in the plain template. A thought that the prompt has
        opened is closed first, and then `decode` gives back that, too.
        """
        text = self.turns.literal(text.strip())
        if self.turns.thinks:
            text = f"{UNTHINK}\n\n{text}"
        elif not self.tokenizer.chat_template:
            text = f" {text}"
        eos = self.tokenizer.eos_token_id
        end = eos if self.turns.end is None else self.turns.end
        return [*self.turns.encode(text), end if end in self.ends else min(self.ends)]

    def decode(self, ids: Sequence[int]) -> str:
        """A completion's text, without special tokens; "" if it is thoughts and no answer."""
        text = self.turns.decode(ids)
        return "" if self.turns.only_thoughts(text) else text

    def sample(
        self,
        requests: Sequence[Request],
        how: Settings,
        progress: Callable[[int], object],
        ended: Callable[[int, Completion], object] = lambda request, completion: None,
    ) -> list[list[Completion]]:
        """Complete every request, and mark completions that are thoughts and no answer. `ended` is called
        with each before it is marked, as soon as it is whole."""
        groups = sampler.sample(self.model, requests, self.ends, how, progress, ended)
        self._warn([set(one.ids) for group in groups for one in group])
        return [[replace(one, only_thoughts=self._only_thoughts(one.ids)) for one in each] for each in groups]

    def _only_thoughts(self, ids: Sequence[int]) -> bool:
        return self.turns.only_thoughts(self.turns.decode(ids))

    def _warn(self, written: Sequence[set[int]]) -> None:
        """Say so if answers go on with turns of their own, once for each token that opens one."""
        markers = self.turns.markers - self.ends
        fresh = (markers & set().union(*written)) - self.warned
        if fresh and self.ends:  # a benchmark has no end tokens
            self.warned.update(fresh)
            count = sum(not fresh.isdisjoint(ids) for ids in written)
            log.warning(
                f"{count} of {len(written)} answers hold {' and '.join(self.named(fresh))}, which the chat "
                "template writes around turns: the policy goes on after its answer, and all of it is judged. "
                f"An answer ends at {' or '.join(self.named(self.ends))}; see eos_token_id in {GENERATION}"
            )

    def named(self, tokens: Iterable[int]) -> list[str]:
        """Tokens as they are spelt, or by their number if the tokenizer does not have them."""
        numbers = sorted(tokens)
        spelt = self.tokenizer.convert_ids_to_tokens(numbers)
        return [name or str(number) for name, number in zip(spelt, numbers, strict=True)]

    def save(self, directory: Path) -> None:
        """Write a Hugging Face directory with tokenizer, or one of PEFT's if only adapters are saved. Raises
        OSError if the disk does not take it."""
        if self.merge:
            model.save(self.model, directory, lora.merged(self.model))
        if self.base is not None:
            lora.save(self.model, self.adapters(directory), self.base)
        try:
            self.tokenizer.save_pretrained(directory)
        except Exception as error:  # what a full disk is to tokenizers is no OSError
            raise OSError(f"could not write the tokenizer into {directory}: {error}") from error
        if self.generation is not None:
            (directory / GENERATION).write_text(self.generation, encoding="utf-8")

    def adapters(self, directory: Path) -> Path:
        """Where in a directory that `save` wrote the adapters are: two formats need two folders."""
        return directory / "adapter" if self.merge else directory

    def trained(self) -> str:
        """How many parameters are trained, in words."""
        numbers = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        whole, part = sum(n for n, _ in numbers), sum(n for n, trains in numbers if trains)
        if part == whole:
            return f"all {whole / 1e6:.0f}M parameters"
        return f"adapters of {part:,} parameters beside {(whole - part) / 1e6:.0f}M frozen ones"


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Policy:
    """Load a policy by the names that `pretrained.resolve` takes; adapters are merged into their base."""
    directory = resolve(name)
    decoder = _read(directory, dtype, device)
    logging.getLogger("transformers.tokenization_utils_base").setLevel(
        logging.ERROR
    )  # warns of any long text
    home = _home(directory, "tokenizer_config.json")
    with model.reading(home):
        tokenizer = AutoTokenizer.from_pretrained(home)
        turn = Turns(tokenizer).end
    path = _home(directory, GENERATION) / GENERATION
    written = json_object(path) if path.is_file() else {}
    also = written.get("eos_token_id")
    named = also if isinstance(also, list) else [] if also is None else [also]
    if not all(type(token) is int for token in named):
        raise ValueError(f"{path}: expected numbers of tokens as eos_token_id, got {also!r:.80}")
    generation = path.read_text(encoding="utf-8") if path.is_file() else None
    ends = end_tokens(decoder.config.eos_token_id, tokenizer.eos_token_id, also)
    if turn is not None and turn not in ends:
        ends |= {turn}
        # Whoever loads a checkpoint of this policy has to stop there, too.
        generation = json.dumps(written | {"eos_token_id": sorted(ends)}, indent=2)
    size = decoder.config.vocab_size
    if odd := [token for token in ends if not 0 <= token < size]:
        raise ValueError(f"{directory}: expected eos_token_id from 0 to {size - 1}, got {odd[0]}")
    if not ends:
        raise ValueError(f"{directory} names no end token: expected eos_token_id in its config or tokenizer")
    return Policy(decoder, tokenizer, ends, directory, generation)


def _home(directory: Path, file: str) -> Path:
    """Where a file is to be read: of adapters that come without it, at their base."""
    base = pretrained.base(directory)
    return directory if base is None or (directory / file).is_file() else _home(resolve(base), file)


def _read(directory: Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    base = pretrained.base(directory)
    if base is None:
        return model.load(directory, dtype, device)
    try:
        decoder = _read(resolve(base), dtype, device)
    except ValueError as error:
        raise ValueError(
            f"{directory} has the adapters of {base!r:.80}, and without it they are nothing: {error}"
        ) from error
    lora.merge(decoder, directory)
    return decoder


def prepare(
    config: Config, checkpoint: Path | None = None, compared: bool = False
) -> tuple[Policy, Policy | None]:
    """What a run trains, as it begins or as a checkpoint left it; and as it was at the start, if a KL penalty
    or a recipe (`compared`) needs that."""
    dtype, adapted = getattr(torch, config.dtype), config.lora_rank > 0
    actor = load(config.policy if adapted or not checkpoint else str(checkpoint), dtype, config.device)
    if adapted:
        lora.adapt(actor.model, config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        base = str(actor.directory) if config.policy == pretrained.NAME else config.policy
        actor = replace(actor, base=base, merge=config.lora_save == "merged")
        if checkpoint:
            lora.load(actor.model, actor.adapters(checkpoint))
    actor.model.checkpointed = config.checkpointed(actor.model.config.num_hidden_layers)
    if not (config.beta or compared):
        return actor, None
    if adapted:
        return actor, replace(actor, model=lora.base(actor.model))
    frozen = load(config.policy, dtype, config.device if config.reference_device == "auto" else "cpu")
    if config.reference_device == "cpu":
        frozen.model.visit()
        if config.device.startswith("cuda"):
            try:
                frozen.model.pin()
            except RuntimeError as error:
                why = str(error).partition("\n")[0]
                print(f"not all weights of the reference could be pinned; the GPU waits for each copy: {why}")
    return actor, frozen


def checksum(policy: Policy) -> int:
    """A number that tells weights apart: a sum of integers, which rounds nothing."""
    kinds = {2: torch.int16, 4: torch.int32}
    integers = (p.detach().view(kinds[p.itemsize]).flatten() for p in policy.model.parameters())
    return sum(int(part.sum()) for p in integers for part in p.split(SLICE))


def base_checksum(actor: Policy, reference: Policy | None) -> int | None:
    """The checksum of what a run that goes on loads besides its checkpoint: the weights under its adapters,
    or those that its KL penalty compares with."""
    if reference is None and actor.base is not None:
        reference = replace(actor, model=lora.base(actor.model))
    return reference and checksum(reference)


def window(policy: Policy) -> int:
    """How many tokens a prompt and its completion may have together."""
    return policy.model.config.max_position_embeddings


def too_long(
    policy: Policy,
    example: Example,
    prompt: int,
    new: int,
    *,
    answered: bool,
    messages: Sequence[dict[str, str]] | None = None,
) -> str:
    """What of an example does not fit, in words; "" if all does.

    A prompt may have so many tokens, and as many as the window leaves beside the `new` ones; where the
    example is to be `answered` by its reference, that may have as many as the new ones, its end token
    included.
    """
    room, limit = window(policy) - new, f"the model's window of {window(policy)} less --max-new-tokens"
    if prompt < room:
        room, limit = prompt, "--max-prompt-tokens"
    if (length := len(policy.encode(example, messages))) > room:
        return f"the prompt of {example.id!r} has {length} tokens: expected at most {room} ({limit})"
    if answered and (length := len(policy.completion(example.reference))) > new:
        return (
            f"the reference answer of {example.id!r} has {length} tokens with its end: expected at most "
            f"{new} (--max-new-tokens)"
        )
    return ""
