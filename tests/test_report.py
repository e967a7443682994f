"""A step's metrics against numbers worked out by hand, and lines that no response can command."""

import math

import pytest
import torch

from rar_mini import report
from rar_mini.sampler import Completion

NAN = float("nan")


def completions(lengths: list[list[int]], finished: list[list[bool]]) -> list[list[Completion]]:
    return [
        [Completion([0] * n, [0.0] * n, done) for n, done in zip(row, ends, strict=True)]
        for row, ends in zip(lengths, finished, strict=True)
    ]


def test_metrics_are_as_readme_defines_them() -> None:
    reward = torch.tensor([[0.2, 0.4, NAN], [0.5, 0.5, 0.5], [NAN, 0.9, NAN]])
    lengths, finished = [[1, 3, 9], [2, 2, 2], [4, 4, 4]], [[True, False, True]] * 3
    got = report.describe(reward, completions(lengths, finished))
    assert got["reward"] == pytest.approx((0.2 + 0.4 + 3 * 0.5 + 0.9) / 6)
    assert got["reward_std"] == pytest.approx((0.1 + 0.0) / 2)  # the last group has one reward: no deviation
    assert got["frac_reward_zero_std"] == got["frac_ties_wrong"] == 0.5  # at a half, which is no good answer
    assert got["frac_ties_right"] == 0.0
    assert got["judge/failures"] == 3
    assert got["completions/clipped_ratio"] == pytest.approx(1 / 3)
    assert got["completions/only_thoughts_ratio"] == 0
    assert got["completions/mean_length"] == pytest.approx(31 / 9)
    assert got["reward_length_correlation"] == pytest.approx(1.0)


def test_what_is_not_defined_is_none() -> None:
    got = report.describe(torch.full((1, 2), NAN), completions([[1, 1]], [[True, True]]))
    assert got["reward"] is got["reward_std"] is got["reward_length_correlation"] is None
    assert "reward -" in report.line(1, 2, got)


def answer(name: str, *verdicts: float | None) -> dict:
    categories = ("essential", "pitfall", "essential")
    items = [{"category": c, "verdict": v} for c, v in zip(categories, verdicts, strict=False)]
    return {"example_id": name, "response": f"{verdicts}", "verdicts": items}


def test_pass_rates_are_of_the_last_step_and_dead_items_of_all() -> None:
    old = [answer("a", 1.0, 0.0, 0.2), answer("a", 0.6, 0.0, None), answer("b", 1.0)]
    new = [answer("a", 0.5, 1.0, 0.1), answer("a", 0.0, 0.9, None)]
    got = report.verdicts([old, new])
    assert got["pass_rate/essential"] == pytest.approx((0.5 + 0.0 + 0.1) / 3)
    assert got["pass_rate/pitfall"] == pytest.approx(0.95)
    assert got["items/never_met"] == pytest.approx(1 / 4)  # the third item of a
    assert got["items/always_met"] == pytest.approx(1 / 4)  # the one item of b


def test_ratings_and_failures_are_no_items() -> None:
    rating = {"example_id": "a", "verdicts": [{"category": "rating", "verdict": 0.5}]}
    assert report.verdicts([[rating, answer("a", None)]]) == {}


def test_the_change_is_paired_over_questions() -> None:
    mean, error = report.paired([0.1, 0.2, NAN, 0.4], [0.2, 0.4, 0.5, 0.7])
    assert mean == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))
    assert report.paired([0.1], [0.2]) is None


def test_the_size_of_a_checkpoint_has_its_parts() -> None:
    said = report.saving(every=8, keep=2, weights=538_090_000, moments=1_076_180_000)
    assert said == "saves    1,614 MB every 8 steps (weights 538 MB, moments 1,076 MB); the newest 2 stay"


def test_a_response_cannot_command_the_terminal() -> None:
    """Escape sequences could clear the screen or rewrite what stands above; all become visible text."""
    row = {"example_id": "q", "step": 1, "prompt": "p", "response": "a\x1b[2J\r\nb\u202ec", "verdicts": []}
    row |= {"reward": None, "advantage": 0.0, "tokens": 3, "finished": False}
    text = report.rollout(row)
    assert "\x1b" not in text and "\r" not in text and "\u202e" not in text
    assert "\\x1b[2J" in text and "the judge failed" in text
