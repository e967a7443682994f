"""The scale of a run's reward: what three answers earn that need no model.

A reward of 0.34 alone says little. Beside what silence, an echo of the question and the reference answer earn
from the same judge and recipe, it says how good the answers are: a judge that pays for echoes teaches echoes.
The three are judged once, before training. Their scores stand in metrics.jsonl and their verdicts in
evaluations.jsonl, under names such as train_echo, so that a resumed run does not ask again.
"""

from collections.abc import Mapping, Sequence

from rar_mini.data import Example

SILENCE = "I do not know."
NAMES = {"silence": f'"{SILENCE}"', "echo": "the question repeated", "reference": "the reference answer"}


def answers(scored: Mapping[str, Sequence[Example]]) -> dict[str, tuple[list[Example], list[str]]]:
    """The questions of each split with one answer each, by the name of the score, such as train_echo. If a
    question has no reference answer, its split has no such score: it would be one of other questions."""
    scores = {}
    for split, examples in scored.items():
        texts = {
            "silence": [SILENCE for _ in examples],
            "echo": [example.messages[-1]["content"] for example in examples],
            "reference": [example.reference for example in examples],
        }
        for name, each in texts.items():
            if examples and all(each):
                scores[f"{split}_{name}"] = list(examples), each
    return scores


def is_fixed(score: str) -> bool:
    """Whether a score is one of the scale, and not one of the policy."""
    return score.endswith(tuple(f"_{name}" for name in NAMES))


def of(means: Mapping[str, float | None], split: str) -> dict[str, float]:
    """The rewards that make the scale of a split, by what earns them, the lowest first; from the means of all
    scores by name."""
    known = {words: means.get(f"{split}_{name}") for name, words in NAMES.items()}
    return dict(sorted(((w, x) for w, x in known.items() if x is not None), key=lambda each: each[1]))


def place(reward: float, scale: Mapping[str, float]) -> str:
    """Where a reward stands on a scale that is sorted, in words."""
    below = [f"{words} ({x:.3f})" for words, x in scale.items() if x < reward]
    above = [f"{words} ({x:.3f})" for words, x in scale.items() if x >= reward]
    if below and above:
        return f"above {below[-1]}, not above {above[0]}"
    return f"above {below[-1]}" if below else f"not above {above[0]}"
