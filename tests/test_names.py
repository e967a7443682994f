"""A command lives where its work is, and its name of before still finds it."""

import runpy
import sys

import pytest

NAMES = {
    "rar_mini.sampler --bench": "rar_mini.tools.speed",
    "rar_mini.data --stats": "rar_mini.tools.tables",
    "rar_mini.synthesize": "rar_mini.tools.synthesize",
    "rar_mini.plot": "rar_mini.viewing.plot",
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("before", NAMES)
def test_a_name_of_before_shows_the_commands_help(
    before: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module, *options = before.split()
    monkeypatch.setattr(sys, "argv", [module, *options, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert not end.value.code
    assert f"usage: python -m {NAMES[before]} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rar_mini.plot", "rar_mini.synthesize"])
def test_a_name_of_before_does_nothing_when_it_is_imported(name: str, capsys: pytest.CaptureFixture) -> None:
    runpy.run_module(name)
    assert capsys.readouterr() == ("", "")
