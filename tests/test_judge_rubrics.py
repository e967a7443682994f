"""What a judge is shown: a question's rubric as it is designed, in texts that can be replaced. A digest tells
each of these apart."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hostile import SERVERS, Server, says, user
from tiny import question, write_rows

from judge import Judge
from rar_mini import data, grpo, prompts
from rar_mini.rubric import Design, Rubric

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("spec", SERVERS)
def test_pitfalls_are_asked_as_mistakes_and_literal_items_literally(
    server: Server, tmp_path: Path, spec: str
) -> None:
    turns = [{"role": "user", "content": "a"}]
    rows = [question(0), {"prompt": turns, "rubrics": [{"criterion": "Recommends aspirin.", "points": -3}]}]
    asker = Judge(spec, "rar-explicit")
    asker.score(data.read(write_rows(tmp_path / "rows.jsonl", rows)), [["x"], ["x"]])
    asked = "\n".join(user(body) for _, body, _ in server.seen).split("\n")
    aspirin = [line for line in asked if "Recommends aspirin." in line]
    assert sorted("taken literally" in line for line in aspirin) == [False, True]


DESIGNS = [
    Design(),
    *(Design(rubric_drop=drop) for drop in ("optional-and-below", "labels", "pitfalls")),
    *(Design(weights=weights) for weights in ("v1", "raw", "uniform")),
    *(Design(pitfalls=pitfalls) for pitfalls in ("literal", "signed")),
]


@pytest.mark.parametrize(
    ("design", "essential", "pitfall"),
    [
        (Design(), "(essential) ", "(pitfall, a mistake, bad if the response does this) "),
        (Design(pitfalls="literal"), "(essential) ", "(pitfall) "),
        (
            Design(pitfalls="signed"),
            "(essential) ",
            "(pitfall, counts against a response of which it holds) ",
        ),
        (Design("labels"), "", "(a mistake, bad if the response does this) "),
        (Design("labels", pitfalls="literal"), "", ""),
        (Design("pitfalls"), "(essential) ", None),
        (Design("optional-and-below"), "(essential) ", None),
    ],
)
def test_an_overall_rating_is_shown_the_rubric_as_designed(
    server: Server, examples: list[data.Example], design: Design, essential: str, pitfall: str | None
) -> None:
    """Without labels a pitfall is still shown as a mistake: in the released medical rubrics it is worded as
    what a bad answer does, and bare, it would be asked for."""
    Judge("chat:m", "rar-implicit", design=design).score(examples[:1], [["x"]])
    lines = user(server.seen[0][1]).split("\n")
    assert f"- {essential}Mentions b." in lines
    fence = next(line for line in lines if line.startswith("--- response ")).removeprefix("--- response ")
    assert lines.count(f"--- criteria {fence}") == lines.count(f"--- end of criteria {fence}") == 1
    shown = [line for line in lines if "Recommends aspirin." in line]
    assert shown == ([] if pitfall is None else [f"- {pitfall}Recommends aspirin."])
    assert any("Names fever" in line for line in lines) == (design.rubric_drop != "optional-and-below")
    assert any("its category" in line for line in lines) == (design.rubric_drop != "labels")


@pytest.mark.parametrize("method", ["rar-explicit", "rar-implicit"])
def test_an_item_that_weighs_nothing_is_shown_to_nobody(server: Server, tmp_path: Path, method: str) -> None:
    """It changes no reward by its own verdict, so it must not change one through an overall rating either."""
    rubric = question(0)["rubric"][-3:]
    rubric[1]["weight"] = 0
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [question(0, rubric=rubric)]))
    scores = Judge("chat:m", method).score(examples, [["x"]])
    asked = "\n".join(user(body) for _, body, _ in server.seen)
    assert "Mentions o." in asked and "Recommends aspirin." in asked and "Names fever" not in asked
    assert not grpo.reward(scores).isnan().any()


@pytest.mark.parametrize(
    ("pitfalls", "reward"), [("avoided", 13.7 / 14.6), ("literal", 1.0), ("signed", 1 - 0.9 / 13.7)]
)
def test_a_pitfall_that_holds_can_cost_its_weight(
    server: Server, examples: list[data.Example], pitfalls: str, reward: float
) -> None:
    """The judge says yes to everything: 13 essential items, an important one, and a pitfall."""
    server.reply = says("yes")
    found = Judge("chat:m", "rar-explicit", design=Design(pitfalls=pitfalls)).score(examples[:1], [["x"]])
    assert grpo.reward(found).item() == pytest.approx(reward)
    (asked,) = [user(body) for _, body, _ in server.seen if "Recommends aspirin." in user(body)]
    assert ("taken literally" in asked) == (pitfalls != "avoided")


def test_what_a_design_does_not_change_is_refused(examples: list[data.Example], tmp_path: Path) -> None:
    """An option that changed nothing would stand in a run's config.json as if it had."""
    for method in ("direct-likert", "reference-likert", "rar-predefined"):
        for design in DESIGNS[1:]:
            with pytest.raises(ValueError, match=f"{method} cannot serve --rubric-drop"):
                Judge("chat:m", method, design=design)
    for method, design in [("rar-implicit", Design(weights="raw")), ("rar-explicit", Design("labels", "v1"))]:
        with pytest.raises(ValueError, match="--weights with rar-explicit alone, where it keeps its labels"):
            Judge("keyword", method, design=design)
    turns = [{"role": "user", "content": "a"}]
    rows = [question(0), {"prompt": turns, "rubrics": [{"criterion": "B.", "points": 3}]}]
    mixed = data.read(write_rows(tmp_path / "rows.jsonl", rows))
    Judge("keyword", "rar-implicit").check(mixed)
    with pytest.raises(ValueError, match="'line-2' has signed points"):
        Judge("keyword", "rar-implicit", design=Design("labels")).check(mixed)


PAPER = """
system = "You rate."
rate_rubric = "<rubrics>{items}</rubrics> JSON, please: {rating}"
shared = "<prompt>{question}</prompt><response>{response}</response>"
"""


def test_prompts_can_be_replaced(server: Server, examples: list[data.Example], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PAPER)
    server.reply = lambda path, body: '```json\n{"rating": 7}\n```'
    asker = Judge("chat:m", "rar-implicit", prompts=tmp_path / "p.toml")
    assert asker.score(examples, [["{items} {question}"], ["y"]]).rating.tolist() == [[7.0], [7.0]]
    body = next(body for _, body, _ in server.seen if "What is 0?" in user(body))
    assert body["messages"][0]["content"] == "You rate."
    assert user(body).startswith("<prompt>What is 0?</prompt><response>{items} {question}</response>")
    assert "JSON, please: {rating}" in user(body)
    assert asker.prompts.digest != prompts.JudgePrompts().digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sistem = 'x'", ["sistem", "system"]),
        ("system = 3", ["system"]),
        ("met = 'Is it met?'", ["met", "{criterion}"]),
        ("met = ", ["TOML"]),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match="p.toml") as error:
        Judge("keyword", "rar-explicit", prompts=tmp_path / "p.toml")
    assert all(word in str(error.value) for word in words)


# --- what a score hangs on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rar-explicit", "rar-implicit"])
def test_a_digest_tells_designs_and_rubrics_apart(examples: list[data.Example], method: str) -> None:
    """Of rar-implicit it once held the rating's name alone, so that scores under other rubrics were kept."""
    designs = [d for d in DESIGNS if method == "rar-explicit" or d.weights == "paper"]
    asked = [Judge("keyword", method, design=design).digest(examples[0], "x") for design in designs]
    turned = dataclasses.replace(examples[0], rubric=Rubric(examples[0].rubric.criteria[::-1]))
    asked.append(Judge("keyword", method).digest(turned, "x"))
    assert len(set(asked)) == len(designs) + 1


def test_a_digest_tells_every_setting_and_text_apart(
    server: Server, examples: list[data.Example], tmp_path: Path
) -> None:
    """By it `judge.py score` knows which rows it may keep."""
    (tmp_path / "p.toml").write_text("system = 'x'")

    def digest(spec: str = "keyword", method: str = "rar-explicit", text: str = "x", **options: Any) -> str:
        changed = {name: options.pop(name) for name in ("reference", "messages") if name in options}
        asker = Judge(spec, method, **options)
        return asker.digest(dataclasses.replace(examples[0], **changed), text)

    found = [digest(), digest(method="rar-implicit"), digest(text="y"), digest(reference="This.")]
    found += [digest(messages=({"role": "user", "content": "And?"},)), digest(prompts=tmp_path / "p.toml")]
    found += [digest(criteria_per_call=2), digest(threshold=0.0), digest(threshold=0.5)]
    found += [digest("chat:m"), digest("chat:n"), digest("chat:m", base_url=server.url + "/other")]
    assert len(set(found)) == 12 and all(re.fullmatch("[0-9a-f]{16}", each) for each in found)
    assert digest(concurrency=3, cache=False, criteria_per_call=1) == digest() == found[0]
