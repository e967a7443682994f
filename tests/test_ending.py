"""What a run says at its end, and the scale on which its reward stands, by hand and from a tiny run."""

from pathlib import Path

import pytest
from hostile import Server
from test_train import options, records
from test_wiring import loud, rows_of
from tiny import question, write_rows

from rar_mini import ending, scale
from rar_mini.data import Example
from rar_mini.rubric import Rubric


def example(name: str, *messages: str, reference: str = "") -> Example:
    turns = tuple({"role": "user", "content": text} for text in messages)
    return Example(name, "train", turns, reference, Rubric(()), {})


def run_of(folder: Path, metrics: list[dict], answers: list[dict] | None = None) -> Path:
    """A run's folder with these records."""
    for name, rows in {"metrics.jsonl": metrics, "evaluations.jsonl": answers or []}.items():
        write_rows(folder / name, rows)
    return folder


def answer(step: int, response: str, **changes: object) -> dict:
    row = {"step": step, "split": "train", "example_id": "a", "prompt": "What helps against fever?"}
    return row | {"response": response, "reward": 0.5, "tokens": 4, "finished": True} | changes


# --- the scale ----------------------------------------------------------------------------------------------


def test_the_scale_has_three_answers_and_echoes_the_last_message() -> None:
    questions = {"train": [example("a", "Hello.", "What now?", reference="This.")], "held_out": []}
    texts = {name: each for name, (_, each) in scale.answers(questions).items()}
    assert texts == {
        "train_silence": ["I do not know."],
        "train_echo": ["What now?"],
        "train_reference": ["This."],
    }


def test_a_question_without_a_reference_answer_leaves_that_line_out() -> None:
    """A mean over the others would be one of other questions."""
    questions = {"train": [example("a", "A?", reference="This."), example("b", "B?")]}
    assert list(scale.answers(questions)) == ["train_silence", "train_echo"]


def test_a_reward_has_its_place_between_two_answers() -> None:
    rewards = scale.of({"x_echo": 0.37, "x_silence": 0.22, "x_reference": None, "y_reference": 0.9}, "x")
    assert list(rewards.values()) == [0.22, 0.37]
    assert (
        scale.place(0.3, rewards) == 'above "I do not know." (0.220), not above the question repeated (0.370)'
    )
    assert scale.place(0.4, rewards) == "above the question repeated (0.370)"
    assert scale.place(0.22, rewards) == 'not above "I do not know." (0.220)'


def test_the_scale_is_judged_once_by_the_training_judge_and_kept(
    tiny: Path, tmp_path: Path, folder: Path, server: Server
) -> None:
    """A resumed run reads it back, and the estimate at the start has counted it."""
    rows = [question(i, split="train" if i < 3 else "held_out") for i in range(4)]
    rows[3]["reference_answer"] = "A letter: b."
    path, run = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    changes = {"judge": "chat:m", "criteria_per_call": "all", "eval_every": 1, "steps": 1}
    said = loud([*options(tiny, path, run, **changes), "--no-cache"])
    first = rows_of(run, "evaluations", step=0)
    assert {row["split"] for row in first} >= {"train_echo", "held_out_reference", "train_silence"}
    for row in rows_of(run, "evaluations", split="train_echo"):
        assert row["response"] == row["prompt"] and row["verdicts"]
    metrics = records(run)[0]
    rewards = [row["reward"] for row in rows_of(run, "evaluations", split="train_silence")]
    assert metrics["eval/train_silence_reward"] == pytest.approx(sum(rewards) / 3, rel=1e-6)
    assert "scale    held_out: " in said and "the policy stands" in said
    asked = len(server.seen)
    scored = 2 * 4 + 3 * 4  # two scores of four questions, and the scale
    assert asked == 8 + scored and f"and {scored} for the scores" in said
    assert f"scores: about {scored} requests" in said
    again = loud(["--resume", str(run), "--steps", "2"])
    assert len(server.seen) == asked + 8 + 4, "a step and one score"
    assert "and 4 for the scores" in again and "the policy stands" in again


# --- the end ------------------------------------------------------------------------------------------------


def test_the_end_names_only_what_the_run_wrote(tmp_path: Path) -> None:
    """--steps 0 promised rollouts.jsonl and checkpoints/."""
    said = ending.conclusion({}, {}, run_of(tmp_path, []), steps=0)
    assert f"run      {tmp_path}: metrics.jsonl, evaluations.jsonl\n" in said


def test_a_run_that_ties_throughout_has_learnt_nothing(tmp_path: Path) -> None:
    """It ended with "change +0.000", as if there had been something to measure."""
    tied = {"frac_reward_zero_std": 1.0, "grad_norm": 0.0}
    run = run_of(tmp_path, [{"step": 0}, {"step": 1} | tied, {"step": 2, "frac_reward_zero_std": None}])
    said = ending.conclusion({"train": [0.5, 0.5]}, {"train": [0.5, 0.5]}, run, steps=2)
    assert said.startswith("nothing was learnt: every group tied") and "+0.000" not in said


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 0}],  # --steps 0
        [{"step": 1, "loss": 2.0, "grad_norm": 1.0}],  # reference answers, which cannot tie
        [{"step": 1, "frac_reward_zero_std": 1.0}, {"step": 2, "grad_norm": 0.1}],
        [{"step": 1, "frac_reward_zero_std": 1.0, "grad_norm": 0.1}],  # a recipe's advantages
    ],
)
def test_other_runs_have_learnt_something(rows: list[dict]) -> None:
    assert not ending.nothing_learnt(rows)


def test_a_run_that_trained_no_answer_has_learnt_nothing(tiny: Path, tmp_path: Path, questions: Path) -> None:
    """The random policy never ends its answers within 12 tokens. It was told a change and its error."""
    run = tmp_path / "run"
    said = loud([*options(tiny, questions, run, steps=2, eval_every=1), "--cut-answers", "mask"])
    assert min(row["frac_reward_zero_std"] for row in records(run)[1:]) < 1
    assert "nothing was learnt: no answer was trained (see --cut-answers, --resample-ties)" in said
    assert "change" not in said


def test_a_score_of_few_questions_says_so(tmp_path: Path) -> None:
    def said(count: int) -> str:
        before, after = [0.1 * i for i in range(count)], [0.11 * i for i in range(count)]
        return ending.conclusion({"train": before}, {"train": after}, run_of(tmp_path, []), steps=2)

    assert "standard error over 6 questions, fresh answers; fewer than 16 are too few to tell" in said(6)
    assert "too few" not in said(16)
    assert (
        "train    reward 0.000 -> 0.000 (questions with both scores: 1; fewer than 16 are too few to tell)"
        in said(1)
    )


def test_what_was_learnt_is_said_in_words(tmp_path: Path) -> None:
    """Of the four longer words of "Fever? Nothing helps here." two stand in the question."""
    answers = [
        answer(0, "Rest, and drink."),
        answer(0, "42", tokens=8),  # no word
        answer(4, "Fever? Nothing helps here.", finished=False, tokens=12),
    ]
    assert ending.in_words(answers) == (
        "it repeats the question: 0% -> 50% of its longer words; length 6 -> 12 tokens; "
        "cut 0% -> 100% of the answers"
    )
    assert ending.in_words(answers[:2]) == "", "one score alone has no change"


def test_the_gold_judges_score_has_neither_scale_nor_words_of_its_own(tmp_path: Path) -> None:
    before = {"held_out": [0.2] * 16, "held_out_echo": [0.3] * 16, "held_out_gold": [0.2] * 16}
    after = {"held_out": [0.4] * 16, "held_out_gold": [0.1] * 16}
    said = ending.conclusion(before, after, run_of(tmp_path, []), steps=2)
    assert said.count("the policy stands") == 1 and "held_out_gold reward 0.200 -> 0.100" in said
