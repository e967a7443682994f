"""Options of TRL and verl are answered with ours, and never taken for them."""

import re

import pytest

from rar_mini import setup
from rar_mini.config import PRESETS
from rar_mini.options import ELSEWHERE, names

OURS = {
    "--batch-size 8": "no option --batch-size: here it is --prompts-per-step",
    "--num-generations 8": "no option --num-generations: here it is --group-size",
    "--per_device_train_batch_size=8": "--per-device-train-batch-size: here it is --prompts-per-step",
    "--learning-rate 1e-6": "no option --learning-rate: here it is --lr",
    "--max-completion-length 9": "no option --max-completion-length: here it is --max-new-tokens",
    "--num-train-epochs 3": "no option --num-train-epochs: here it is --steps",
    "--kl-coef 0.1": "no option --kl-coef: here it is --beta",
    "--top-p 0.9": "training samples from the full softmax",
    "actor_rollout_ref.rollout.n=8": "no option actor_rollout_ref.rollout.n: here it is --group-size",
    "+actor_rollout_ref.actor.optim.lr=1e-6": "no option +actor_rollout_ref.actor.optim.lr: here it is --lr",
    "--algorithm.kl_ctrl.kl_coef=0.1": "--algorithm.kl-ctrl.kl-coef: here it is --beta",
    "data.train_batch_size=9": "no option data.train_batch_size: here it is --prompts-per-step",
    "algorithm.filter_groups.max_num_gen_batches=4": "here it is --resample-ties",
}


@pytest.mark.parametrize("words", OURS)
def test_an_option_of_another_trainer_is_answered_with_ours(words: str) -> None:
    with pytest.raises(ValueError) as error:
        setup.parse(words.split())
    assert OURS[words] in str(error.value)


def test_every_answer_names_an_option_that_exists() -> None:
    known = {f"--{name}" for name in names(PRESETS["cpu"])} | {"--resume"}
    for other, answer in ELSEWHERE.items():
        assert f"--{other}" not in known, "it would never be asked for"
        assert set(re.findall(r"--[a-z-]+", answer)) <= known, other


def test_a_value_with_dots_is_no_option() -> None:
    config = setup.parse(["--data", "runs/model.path=x.jsonl", "--policy", "a.b=c"])
    assert (config.data, config.policy) == ("runs/model.path=x.jsonl", "a.b=c")


@pytest.mark.parametrize("value", ["runs/a.epsilon=0.2", "d/x.model=y", "actor.optim.lr=3", "a.epsilon=0.2"])
def test_a_value_that_ends_like_an_option_of_another_trainer_is_kept(value: str) -> None:
    assert str(setup.parse(["--out", value]).out) == value == setup.parse(["--data", value]).data


def test_what_follows_a_switch_is_no_value() -> None:
    for switch in ("--cache", "--no-cache"):
        with pytest.raises(ValueError, match="no option actor.optim.lr: here it is --lr"):
            setup.parse([switch, "actor.optim.lr=3"])
