"""`--judge probe:PATH`: a linear head on the hidden states of a frozen model, fitted on labelled verdicts.

    python -m rar_mini.judging.probe fit medical science --out judge.safetensors
    python train.py --domain medical --judge probe:judge.safetensors

After *Probe judge* (arXiv 2608.30005). A model reads, a *reading* makes a few numbers of an answer and a
criterion, and a product of these with the head is a verdict. There are two readings:

- `late`, for late interaction: the answer and the criterion are each read once behind the question. The
  numbers tell how near the criterion's tokens come to the answer's. Criteria are kept, so that a step reads
  its answers alone.
- `whole`: question, answer and criterion are read in one, as `local:` reads them. The numbers are the states
  of the criterion's tokens: the last one and the mean.

Layers above the highest that is read are never computed, and neither are logits. The file of a probe has a
few KB: the head, and what it belongs to. With other weights, tokenizers or prompts it is refused.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rar_mini import forms, pretrained
from rar_mini import prompts as texts_of_prompts
from rar_mini.data import SAMPLE
from rar_mini.files import cache_folder, digest, parse, regular, unfetched, without_nan, write_whole
from rar_mini.forms import ABSENT, Form, Number, Text, printable
from rar_mini.judging import wires
from rar_mini.judging.asked import Answer, Asked, by_question
from rar_mini.judging.endpoint import Failure
from rar_mini.judging.local import Leaves, Reader
from rar_mini.options import run_command
from rar_mini.prefix import Packed, Tree
from rar_mini.prompts import JudgePrompts
from rar_mini.rubric import Criterion, mistake

COMMAND = "python -m rar_mini.judging.probe"
NAME = "rar-mini probe"
"""Under which the file's metadata say what it belongs to."""
MOST = 10**6
"""Numbers that a head may have."""
QUESTIONS = 128
"""Questions whose criteria's states are kept: 0.6 MB a layer each for the default model."""
HARD = "Dr. O'Neill's 12,345.6 mg/m² -- it's NAÏVE?!\n\n\t  Ångström ﬁ e\u0301 血圧\u200b🫀"
"""A text on which tokenizers of one vocabulary differ: spaces, digits, capitals, accents, other scripts."""


# --- two readings -------------------------------------------------------------------------------------------


class Reading(Reader):
    """A frozen model up to the highest of some of its layers, 1 being the lowest; and the numbers that are
    made of their states for an answer and a criterion."""

    def __init__(
        self, name: str, layers: Sequence[int], device: str, texts: JudgePrompts, secret: bytes
    ) -> None:
        super().__init__(name, device, texts, secret)
        model = self.loaded.model
        self.depth, self.width = model.config.num_hidden_layers, model.config.hidden_size
        self.layers = tuple(layers) or self.usual(self.depth)
        if not set(self.layers) <= set(range(1, self.depth + 1)):
            raise ValueError(f"expected layers from 1 to {self.depth} of {name}, got {self.layers}")
        model.model["layers"] = model.model["layers"][: max(self.layers)]
        self.weights, self.tokenizer = _digest_of(model), _digest_of_tokenizer(self.loaded.tokenizer)

    @staticmethod
    def usual(depth: int) -> tuple[int, ...]:
        """The layers that are read if none are named."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many numbers it makes."""
        raise NotImplementedError

    @property
    def prompts_digest(self) -> str:
        """16 hexadecimal digits that change with the texts around what is read."""
        raise NotImplementedError

    def numbers(self, group: Sequence[Asked]) -> list[Tensor | Failure]:
        """The numbers of each criterion of each of G answers to one question: (K, size) an answer, float32 on
        the CPU."""
        raise NotImplementedError

    def states(self, packed: Packed) -> Tensor:
        """The states behind each layer that is read: (L, T, D) float32."""
        states = self.loaded.model.states(packed.ids, packed.positions, packed.attend)
        kept = {n: x.float() for n, x in enumerate(states, 1) if n in self.layers}
        return torch.stack([kept[n] for n in self.layers])


class Late(Reading):
    """Answer and criterion, each read behind the question as the policy sees it: three numbers a layer of how
    near they come; three of how near the question itself comes, were it the answer; and all of these again,
    and a one, for mistakes."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        # A question's criteria are read together and beside nothing else, so that their last bits do not
        # depend on when they are read.
        self.kept = lru_cache(QUESTIONS)(self._behind)

    @staticmethod
    def usual(depth: int) -> tuple[int, ...]:
        return (max(1, round(depth * 0.27)),)

    @property
    def size(self) -> int:
        return 12 * len(self.layers) + 1

    @property
    def prompts_digest(self) -> str:
        return digest(texts_of_prompts.POLICY_SYSTEM)

    def numbers(self, group: Sequence[Asked]) -> list[Tensor | Failure]:
        example = group[0].example
        opening = tuple(self.loaded.encode(example))
        responses = list(dict.fromkeys(each.response for each in group))
        answers = dict(zip(responses, self._behind(opening, responses), strict=True))
        results: list[Tensor | Failure] = []
        for each in group:
            subjects = tuple(mistake(c.description).subject for c in each.criteria)
            states = [answers[each.response], *self.kept(opening, (example.question, *subjects))]
            if failures := [state for state in states if isinstance(state, Failure)]:
                results.append(failures[0])
                continue
            answer, question, *items = states
            near = [torch.cat([_nearness(item, answer), _nearness(item, question)]) for item in items]
            x, mistakes = torch.stack(near).cpu(), _mistakes(each.criteria)  # (K, 6 L), (K, 1)
            results.append(torch.cat([x, mistakes * x, mistakes], 1))
        return results

    def _behind(self, opening: Sequence[int], texts: Sequence[str]) -> list[Tensor | Failure]:
        """The states (L, n, D) of each text's n tokens behind the question, with length 1."""
        return self.read(texts, partial(self._tree, opening), self._of_leaves)

    def _tree(self, opening: Sequence[int], texts: Sequence[str]) -> tuple[Tree, Leaves]:
        tree = Tree()
        root = tree.add(opening)
        return tree, [[tree.add(self.loaded.completion(text), root)] for text in texts]

    def _of_leaves(self, packed: Packed, leaves: Leaves) -> Sequence[Tensor]:
        states = F.normalize(self.states(packed), dim=-1)
        spans = [packed.spans[leaf] for (leaf,) in leaves]
        # Without the end token, unless it is all that there is.
        return [states[:, start : max(start + 1, end - 1)].clone() for start, end in spans]


def _mistakes(criteria: Sequence[Criterion]) -> Tensor:
    """(K, 1): a one for each of K criteria that is about a mistake."""
    return torch.tensor([[float(criterion.negative)] for criterion in criteria])


def _nearness(criterion: Tensor, answer: Tensor) -> Tensor:
    """(3 L,): the best cosine of a criterion's token with one of the answer's, its mean and its least over
    the criterion's tokens; and the cosine of both means. States are (L, n, D)."""
    best = (criterion @ answer.mT).amax(-1)  # (L, tokens of the criterion)
    means = F.cosine_similarity(criterion.mean(1), answer.mean(1), dim=-1)  # (L,)
    return torch.cat([best.mean(-1), best.amin(-1), means])


class Whole(Reading):
    """Question, answer and criterion in one prompt, as `local:` asks: the states of the criterion's tokens,
    the last and the mean; and a one for mistakes."""

    @staticmethod
    def usual(depth: int) -> tuple[int, ...]:
        return (max(1, round(depth * 2 / 3)),)

    @property
    def size(self) -> int:
        return 2 * len(self.layers) * self.width + 1

    @property
    def prompts_digest(self) -> str:
        return self.texts.digest

    def numbers(self, group: Sequence[Asked]) -> list[Tensor | Failure]:
        literal = self.loaded.turns.literal
        answers = [wires.worded(each, self.texts, self.secret, literal) for each in group]
        states = self.read(self.prompts(answers), self.tree, self._of_leaves)
        return [
            x if isinstance(x, Failure) else torch.cat([x, _mistakes(each.criteria)], 1)
            for each, x in zip(group, states, strict=True)
        ]

    def _of_leaves(self, packed: Packed, leaves: Leaves) -> Sequence[Tensor]:
        states = self.states(packed)

        def of(leaf: int) -> Tensor:
            start, end = packed.spans[leaf]
            return torch.cat([states[:, end - 1], states[:, start:end].mean(1)]).flatten()

        return [torch.stack([of(leaf) for leaf in each]).cpu() for each in leaves]  # (K, 2 L D)


READINGS: dict[str, type[Reading]] = {"late": Late, "whole": Whole}


def _digest_of(model: torch.nn.Module) -> str:
    """16 hexadecimal digits that change with any weight that is read, alike for float32 and bfloat16."""
    parts = hashlib.sha256()
    for name, weight in sorted(model.model.named_parameters()):
        if not name.startswith("norm."):
            parts.update(name.encode())
            parts.update(weight.detach().bfloat16().cpu().contiguous().view(torch.int16).numpy().data)
    return parts.hexdigest()[:16]


def _digest_of_tokenizer(tokenizer: Any) -> str:
    """16 hexadecimal digits that change with the vocabulary, with how texts are cut, and with the chat
    template. The tokenizer's own JSON would also change with the library's version."""
    cut = [tokenizer.encode(text) for text in (HARD, f" {HARD} ")]
    return digest([sorted(tokenizer.get_vocab().items()), cut, tokenizer.chat_template])


# --- the file -----------------------------------------------------------------------------------------------


class Source(Form):
    """Labels that a head was fitted on."""

    name: Text = ABSENT
    digest: Text = ABSENT
    verdicts: int = ABSENT
    questions: int = ABSENT


class About(Form):
    """What a head belongs to, and how good it is."""

    reading: Literal["late", "whole"] = ABSENT
    model: Annotated[Text, Field(max_length=1000)] = ABSENT
    weights: Text = ABSENT
    tokenizer: Text | None = None  # and its chat template; files of before lack it
    layers: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=1, max_length=64)] = ABSENT
    prompts: Text = ABSENT
    strength: Number = ABSENT
    strengths: list[Number] | None = None  # those that were tried; files of before lack them
    labels: list[Source] = ABSENT
    scores: dict[str, dict[str, dict[str, Number | None]]] = ABSENT


@dataclass(frozen=True)
class Head:
    """What the file of a probe holds: a weight for each number of its reading, and a bias behind them."""

    about: About
    weight: Tensor  # (size + 1,) float64
    digest: str = ""

    def verdicts(self, numbers: Tensor, criteria: Sequence[Criterion]) -> list[float]:
        """The verdicts on K criteria, of their numbers (K, size)."""
        p = torch.sigmoid((numbers.double() * self.weight[:-1]).sum(-1) + self.weight[-1]).tolist()
        return [1 - own if each.opposed else own for own, each in zip(p, criteria, strict=True)]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all: the same bytes for the same head."""
        about = {NAME: json.dumps(self.about.model_dump(), ensure_ascii=False)}
        write_whole(path, save({"weight": self.weight.float()}, metadata=about))

    @classmethod
    def read(cls, name: str) -> "Head":
        """The probe of a name that `find` takes. Raises ValueError in one line if the file is damaged."""
        path = find(name)
        wanted = f"{path} is damaged or no probe: expected a file of `{COMMAND} fit`, got "
        try:
            with safe_open(path, framework="pt") as file:
                written, names = (file.metadata() or {}).get(NAME), list(file.keys())
                if written is None or names != ["weight"]:
                    raise ValueError(f"{wanted}one of other tensors")
                shape = file.get_slice("weight").get_shape()
                if len(shape) != 1 or not 1 < shape[0] <= MOST:
                    raise ValueError(f"{wanted}a weight of shape {tuple(shape)}")
                weight = file.get_tensor("weight").double()
        except SafetensorError as error:
            raise ValueError(f"{wanted}{unfetched(path) or printable(str(error))}") from None
        try:
            about = forms.read(About, parse(written), "what it says of itself")
        except ValueError as error:
            raise ValueError(f"{wanted}{printable(str(error))}") from None
        if not weight.isfinite().all():
            raise ValueError(f"{wanted}numbers that are not finite")
        return cls(about, weight, hashlib.sha256(path.read_bytes()).hexdigest()[:16])

    def refuse_other(self, path: str, reading: Reading) -> None:
        """Raise ValueError if the head was fitted with other weights or prompts, or another tokenizer."""
        about = self.about
        parts = {
            "weights": (about.weights, reading.weights),
            "tokenizer and chat template": (about.tokenizer or reading.tokenizer, reading.tokenizer),
            "prompts": (about.prompts, reading.prompts_digest),
        }
        for name, (fitted, now) in parts.items():
            if fitted != now:
                raise ValueError(
                    f"probe:{path} was fitted on {about.model!r:.80} with the {name} {printable(fitted):.16}"
                    f", and they are {now} now: bring them back, or fit the probe again"
                )
        if len(self.weight) != reading.size + 1:
            raise ValueError(
                f"probe:{path} is damaged: expected {reading.size + 1} numbers for these layers, got "
                f"{len(self.weight)}"
            )


def find(name: str) -> Path:
    """The file of a probe: a bundled one by its short name, or a path."""
    bundled = {path.stem.removeprefix("probe-"): path for path in sorted(SAMPLE.glob("probe-*.safetensors"))}
    path = bundled.get(name) or Path(name).expanduser()
    if not regular(path).is_file():
        names = f" or the name of a bundled one ({', '.join(bundled)})" if bundled else ""
        raise ValueError(f"no probe {printable(name)!r:.200}: expected a file of `{COMMAND} fit`{names}")
    return path


# --- the judge ----------------------------------------------------------------------------------------------


class Probe:
    """The backend: a head and its reading."""

    def __init__(self, name: str, device: str, texts: JudgePrompts, secret: bytes) -> None:
        self.head = Head.read(name)
        about = self.head.about
        self.reading = READINGS[about.reading](about.model, about.layers, device, texts, secret)
        self.head.refuse_other(name, self.reading)
        self.ledger, self.close = self.reading.ledger, self.reading.close
        self.facts = {"probe": self.head.digest}

    def ask(
        self, asked: Iterable[Asked], done: Callable[[], Any] = lambda: None, repeat: int = 0
    ) -> list[Answer]:
        """Answer all, in order: what is asked about the answers to one question in one pass."""
        answers: list[Answer] = []
        for group in by_question(asked):
            self.ledger.counts["questions"] += len(group)
            for each, numbers in zip(group, self.reading.numbers(group), strict=True):
                if isinstance(numbers, Failure):
                    self.ledger.fail(numbers.kind, numbers.words)
                    answers.append(numbers)
                else:
                    answers.append(self.head.verdicts(numbers, each.criteria))
                done()
        return answers

    def estimate(self, asked: Sequence[Asked], share: float) -> str:
        """What it takes at most to answer each of these so many times, in words, as the first one takes."""
        counts = self.ledger.counts.copy()
        self.reading.numbers(asked[:1])  # its criteria are kept from here on
        before, start = self.ledger.counts["tokens_in"], time.perf_counter()
        (numbers,) = self.reading.numbers(asked[:1])
        times, seconds = share * len(asked), time.perf_counter() - start
        tokens = times * (self.ledger.counts["tokens_in"] - before)
        self.ledger.counts = counts
        if isinstance(numbers, Failure):
            return f"the longest answers cannot be judged: {numbers.words}"
        layers = f"{max(self.reading.layers)} of {self.reading.depth} layers"
        return f"at most {tokens:,.0f} tokens through {layers}, {times * seconds:.2g} s"


# --- fitting one --------------------------------------------------------------------------------------------


def fit(
    do: tyro.conf.Positional[Literal["fit"]],
    labels: tyro.conf.Positional[tuple[str, ...]],
    /,
    out: Path,
    model: str = pretrained.NAME,
    reading: Literal["late", "whole"] = "late",
    layers: tuple[int, ...] = (),
    split: Literal["train", "all"] = "train",
    prompts: Path | None = None,
    judge_device: str = "auto",
) -> None:
    """Fit a probe on labelled answers, or on the verdicts of a finished run's judge, and say how good it is.

    Args:
        do: fit, all that there is to do
        labels: files of data rows with `labelled_responses`, names of bundled domains, or folders of runs
        out: where the probe goes
        model: the model that reads: smollm2-135m, a directory, or a hub id
        reading: late reads answer and criterion apart, whole reads them in one
        layers: those that are read, 1 being the lowest; if not given one, a quarter up for late, two thirds
            for whole
        split: train fits on the questions of that split and measures on those held out; all fits on all
        prompts: a TOML file with other texts of the judge, for whole
        judge_device: where the model computes: cpu, cuda, cuda:NUMBER, or auto
    """
    from rar_mini.judging import probe_fit  # brings scipy, which judging does without

    if not labels:
        raise ValueError("expected one or more files, bundled domains or runs with labels, got none")
    texts = texts_of_prompts.of_judge(prompts)
    sources = {name: probe_fit.answers(name) for name in labels}
    name = pretrained.pinned(model)
    reader = READINGS[reading](name, layers, judge_device, texts, wires.fence_secret(cache_folder()))
    table = probe_fit.Table.of(reader.numbers, [each for source in sources.values() for each in source])
    fitted, scores = probe_fit.fit(table, split)
    about = About(
        reading=reading,
        model=name,
        weights=reader.weights,
        tokenizer=reader.tokenizer,
        layers=list(reader.layers),
        prompts=reader.prompts_digest,
        strength=fitted.strength,
        strengths=probe_fit.STRENGTHS.tolist(),
        labels=[Source(name=name, **probe_fit.described(source, split)) for name, source in sources.items()],
        scores=without_nan(scores, digits=6),
    )
    Head(about, torch.from_numpy(fitted.weight)).write(out)
    print(f"probe     {out}, {out.stat().st_size:,} bytes: --judge probe:{out}")


if __name__ == "__main__":
    run_command(fit, COMMAND, __doc__)
