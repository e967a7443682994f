"""Recipes that have criteria written: which options they refuse."""

from dataclasses import replace

import pytest
from hostile import Server
from reading import Reader

from rar_mini.config import PRESETS
from rar_mini.recipe import Recipe, make
from rar_mini.rubric import Design

pytestmark = pytest.mark.usefixtures("folder")

WRITERS = {
    "chasing_the_tail": "--writer chat:w",
    "clr_voyance": "--oracle chat:w",
    "delta_rubric": "--planner chat:w",
    "legal_drill": "--writer chat:w",
    "online_rubrics": "--writer chat:w",
    "pop": "--writer chat:w --texts x.txt",
    "ropd": "--writer chat:w",
}


def designed(spec: str, **design: str) -> Recipe:
    return make(spec, replace(PRESETS["cpu"], design=Design(**design)))


@pytest.mark.parametrize(("name", "options"), WRITERS.items())
def test_options_for_the_datas_criteria_are_refused_before_anything_is_written(
    server: Server, name: str, options: str
) -> None:
    """In the run they would stop it with an error about the data, or have a drilled mistake earn points."""
    for design in ({"pitfalls": "literal"}, {"weights": "raw"}, {"rubric_drop": "pitfalls"}):
        with pytest.raises(
            ValueError, match="chat:w writes criteria: expected no --rubric-drop, --weights or"
        ):
            designed(f"{name} {options}", **design).judge(Reader())
        designed(name, **design).judge(Reader())
    designed(f"{name} {options}").judge(Reader())
    assert not server.seen
