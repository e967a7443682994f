"""SHARP: edits are small, and accepted if held-out pairs confirm them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import question, write_rows

from lab.sharp import Rule, agreement, edits, gaps, main, search
from rar_mini.scores import NAN


def world(seed: int = 0, N: int = 120) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Verdicts of rules on N pairs, (N, 2), half of which are held out: `good` is right in 8 of 10 pairs,
    `planted` credits the worse answer in 7, and `lucky` is right in the training pairs alone."""
    random, held = np.random.default_rng(seed), np.arange(N) % 2 == 1
    right, wrong = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    rules = {"good": random.random(N) < 0.8, "planted": random.random(N) < 0.3, "lucky": ~held}
    return {name: np.where(better[:, None], right, wrong) for name, better in rules.items()}, held


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_a_planted_rule_is_removed(weight: float) -> None:
    verdicts, held = world()
    rules, log = search([Rule("good"), Rule("planted", weight)], [], verdicts.get, held)
    assert [rule.text for rule in rules] == ["good"]
    assert [row["edit"] for row in log if row["accepted"]] == [["remove", "planted"]]
    assert agreement(gaps(rules, verdicts.get)[held]) == log[-1]["before"] > log[0]["before"] + 0.2


def test_what_only_training_pairs_like_is_refused() -> None:
    verdicts, held = world()
    rules, log = search([Rule("good")], ["lucky"], verdicts.get, held)
    assert rules == [Rule("good")] and [row["accepted"] for row in log] == [False]


def test_at_most_so_many_rules_and_at_least_one() -> None:
    found = edits([Rule("a")], ["a", "b"], most=2)
    assert [edit[0] for edit, _ in found] == ["weight"] * 2 + ["threshold"] * 3 + ["add"]
    found = edits([Rule("a"), Rule("b", 2.0)], ["c"], most=2)
    assert [edit for edit, _ in found if edit[0] in ("add", "remove")] == [["remove", "a"], ["remove", "b"]]
    assert (["weight", "b", 1.0], [Rule("a"), Rule("b", 1.0)]) in found


def test_a_rule_at_which_the_judge_fails_is_refused() -> None:
    """Where it is judged it is right, and elsewhere it would hide the pairs that other rules get wrong."""
    verdicts, held = world()
    known = np.flatnonzero(verdicts["good"][:, 0] > 0.5)[:4]
    verdicts["failing"] = np.full_like(verdicts["good"], NAN)
    verdicts["failing"][known] = verdicts["good"][known]
    rules, log = search([Rule("good")], ["failing"], verdicts.get, held)
    assert rules == [Rule("good")] and not any(row["accepted"] for row in log)


def test_a_threshold_parts_what_another_does_not_and_a_failure_orders_nothing() -> None:
    verdicts = {"half": np.array([[0.6, 0.4], [0.6, 0.6], [NAN, 0.4], [0.6, 0.4]])}
    assert gaps([Rule("half", 2.0)], verdicts.get) == pytest.approx([1, 0, NAN, 1], nan_ok=True)
    assert agreement(gaps([Rule("half")], verdicts.get)) == 2 / 4, "neither a tie nor a failure is a win"
    assert gaps([Rule("half", threshold=0.3)], verdicts.get)[[0, 1, 3]].tolist() == [0, 0, 0]
    assert agreement(np.array([NAN])) == 0


@pytest.mark.usefixtures("folder")
def test_the_command_leaves_rules_and_every_round(tmp_path: Path) -> None:
    rows = [
        question(n, preferred=f"Advises rest {n}", worsened="Nothing", split=("train", "held_out")[n % 2])
        for n in range(8)
    ]
    data, texts, out = (
        write_rows(tmp_path / "pairs.jsonl", rows),
        tmp_path / "texts.txt",
        tmp_path / "rules.json",
    )
    texts.write_text("\nAdvises rest.\n")
    main(out, "keyword", data, texts=texts)
    found = json.loads(out.read_text())
    assert {rule["text"] for rule in found["rules"]} > {"Advises rest."}
    assert found["rounds"][0]["edit"] == ["add", "Advises rest."] and found["rounds"][0]["held_out"] == 1
    left = [row | {"split": row["split"].replace("held_out", "test")} for row in rows]
    for one in (rows[::2], left):  # `test` rows are left for the end
        with pytest.raises(ValueError, match="expected training and held-out pairs, got one split alone"):
            main(out, "keyword", write_rows(tmp_path / "one.jsonl", one))
