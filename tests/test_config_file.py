"""Options from a TOML file: the same as on the command line, which wins. Mistakes are named by file and
key."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from test_layout import ROOT
from test_train import options

import train
from rar_mini import setup
from rar_mini.config import PRESETS, Config, Options
from rar_mini.options import to_json
from rar_mini.rubric import Design

DEFAULT = PRESETS["cpu"]
OTHER: dict[str, Any] = {
    "data": "rows.jsonl",
    "revision": "a" * 40,
    "method": "rar-implicit",
    "recipe": "lab/examples/gated.py --need 0.5",
    "gold_judge": ("chat:n", "keyword"),
    "train_rollouts": 3,
    "lora_targets": ("q_proj", "down_proj"),
    "mismatch_cap": 2.0,
    "checkpoint_layers": "auto",
    "day": "2026-02-28",
    "track": "wandb",
    "out": Path("/tmp/run with spaces"),
    "base_url": "http://127.0.0.1:9/v1",
    "rpm": 3.0,
    "tpm": 1e6,
    "prices": Path("/prices.json"),
    "max_usd": 0.5,
    "criteria_per_call": "all",
    "threshold": 0.5,
    "prompts": Path("-prompts.toml").absolute(),
    "pitfalls": "literal",
}
"""Another value of each setting whose own value does not tell one, or that has to suit others."""


def changed(settings: Any) -> Any:
    """A dataclass with every field away from its default."""
    values, kinds = {}, get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, words = getattr(settings, field.name), get_args(kinds[field.name])
        if dataclasses.is_dataclass(value):
            values[field.name] = changed(value)
        elif field.name in OTHER:
            values[field.name] = OTHER[field.name]
        elif get_origin(kinds[field.name]) is Literal:
            values[field.name] = next(word for word in reversed(words) if word != value)
        elif isinstance(value, bool):
            values[field.name] = not value
        else:
            assert value is not None, f"{field.name} needs another value in OTHER"
            values[field.name] = value / 2 + 0.25 if isinstance(value, float) else value + type(value)(1)
        assert values[field.name] != value
    return dataclasses.replace(settings, **values)


def toml(settings: dict[str, Any]) -> str:
    """TOML of what config.json holds; it has no null, so that those keys are left out."""
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    plain = {key: value for key, value in settings.items() if key not in tables and value is not None}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    return text + "".join(f"[{key}]\n{toml(value)}" for key, value in tables.items())


def written(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "given.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_every_setting_of_config_json_can_stand_in_a_file(tmp_path: Path) -> None:
    """What a run wrote down makes the same settings again, with every one of them away from its default."""
    config = changed(DEFAULT)
    known = {field.name for kind in (Config, Options, Design) for field in dataclasses.fields(kind)}
    assert OTHER.keys() <= known
    kept = json.loads(json.dumps(to_json(config)))
    assert setup.parse(written(tmp_path, toml(kept))) == config


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    text = 'preset = "paper"\nsteps = 7\nlr = 1\ngroup_size = 4\nhygiene = false\n[judging]\nretries = 1\n'
    words = written(tmp_path, text)
    config = setup.parse([*words, "--group-size=5", "--hygiene", "--retries", "2"])
    assert (config.steps, config.lr, config.group_size) == (7, 1.0, 5)
    assert config.hygiene and config.judging.retries == 2
    assert config.max_new_tokens == PRESETS["paper"].max_new_tokens
    config = setup.parse(["--preset", "gpu24", *words])
    assert config.max_new_tokens == PRESETS["gpu24"].max_new_tokens and config.steps == 7


def test_what_goes_together_may_come_from_both(tmp_path: Path) -> None:
    """Adapters' alpha in the file was refused before the command line gave them a rank."""
    config = setup.parse([*written(tmp_path, "lora_alpha = 8\n"), "--lora-rank", "4"])
    assert (config.lora_alpha, config.lora_rank) == (8.0, 4)


def test_a_recipe_in_a_file_takes_options_from_the_command_line(tmp_path: Path) -> None:
    words = written(tmp_path, 'recipe = "lab/examples/gated.py --need 0.5"\n')
    assert setup.parse([*words, "--recipe.need", "0.7"]).recipe.endswith("gated.py --need 0.5 --need 0.7")
    assert setup.parse([*words, "--recipe", "lab/examples/cosine.py"]).recipe == "lab/examples/cosine.py"
    assert setup.recipe.located("lab/examples/gated.py --need 0.5 --need 0.7").endswith("--need 0.7")


WRONG = {
    "lrr = 1": "no setting lrr: did you mean lr?",
    "group-size = 4": "no setting group-size: did you mean group_size?",
    "num_generations = 4": "no setting num_generations: here it is --group-size",
    "zzzz = 4": "no setting zzzz",
    "retries = 4": "no setting retries: did you mean judging.retries?",
    "[judging]\nretires = 4": "no setting judging.retires: did you mean retries?",
    'lr = "fast"': "field lr: expected a number, got 'fast'",
    "steps = 1.5": "field steps: expected a whole number, got 1.5",
    "hygiene = 1": "field hygiene: expected true or false, got 1",
    'loss_norm = "tok"': "field loss_norm: expected 'token', 'sequence', 'constant' or 'sum', got 'tok'",
    "lr = nan": "--lr nan: expected a number from 0 to 1",
    "[judging]\ntimeout = -1": "--timeout -1: expected a number from",
    "judging = 4": "field judging: expected a",
    "steps = ": "expected TOML in UTF-8",
    "steps = 1\nsteps = 2": "expected TOML in UTF-8",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_named_by_file_and_key(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        setup.parse(written(tmp_path, text))
    assert str(tmp_path / "given.toml") in str(error.value) and WRONG[text] in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="cannot read the settings in none.toml"):
        setup.parse(["--config", "none.toml"])


def test_a_date_may_stand_without_quotes(tmp_path: Path) -> None:
    assert setup.parse(written(tmp_path, "day = 2026-02-28\n")).day == "2026-02-28"


def test_a_run_and_a_plan_read_the_file(
    tiny: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = options(tiny, questions, tmp_path / "run", steps=1, eval_every=0)
    train.main([*written(tmp_path, "temperature = 0.5\n"), *words])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["temperature"] == 0.5 and settings["steps"] == 1
    capsys.readouterr()
    words = written(tmp_path, f'policy = "{tiny}"\ngroup_size = 3\n')
    train.main(["--plan", "--gpu", "80", "--json", *words])
    assert json.loads(capsys.readouterr().out)["settings"]["group_size"] == 3


def test_the_example_in_the_docs_is_read(tmp_path: Path) -> None:
    (text,) = (part.split("```")[0] for part in (ROOT / "docs/runs.md").read_text().split("```toml\n")[1:])
    config = setup.parse(written(tmp_path, text))
    assert config.lora_targets == ("q_proj", "v_proj") and config.design.pitfalls == "literal"
    assert tomllib.loads(text).keys() >= {"recipe", "judging"}
