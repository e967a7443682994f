"""The lab's world under each of its conditions, and the command that compares recipes in it."""

import dataclasses
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lab import __main__ as lab
from lab import paired, world
from rar_mini import recipe
from rar_mini.data import Example
from rar_mini.judging.rules import keeps
from rar_mini.rubric import CATEGORY_WEIGHT, Criterion, Rubric
from rar_mini.scores import Scores


@pytest.fixture(scope="module")
def example() -> Example:
    """Three criteria: a holds, b does not, and c, a pitfall, does not."""
    names = ("essential", "important", "pitfall")
    rubric = Rubric(tuple(Criterion(name, name, name, CATEGORY_WEIGHT[name]) for name in names))
    return world.pose(Example("q", "train", (), "", rubric, {}), [True, False, False])


def judged(example: Example, name: str, *answers: str, step: int = 1) -> Scores:
    """What the judge of a condition says of answers to its question."""
    condition = world.CONDITIONS[name]
    return condition.make_judge({"step": step}, 0).score([condition.pose(example)], [answers])


def verdicts(example: Example, name: str, answer: str) -> list[float]:
    return judged(example, name, answer).verdict[0, 0].tolist()


def test_a_clean_judge_tells_the_truth(example: Example) -> None:
    scores = judged(example, "clean", "a+ b+ c+", "a+ b- c- um")
    assert scores.verdict.tolist() == [[[1, 0, 0], [1, 1, 1]]]
    assert torch.allclose(scores.weight, torch.tensor([[1.0, 0.7, 0.9]])) and len(scores.rubrics) == 1


def test_rubrics_of_different_lengths_are_padded_with_nothing(example: Example) -> None:
    short = dataclasses.replace(example, rubric=Rubric(example.rubric.criteria[:1]))
    scores = world.Witness().score([example, short], [["a+"], ["a+"]])
    assert scores.weight[1].tolist() == [1, 0, 0] and scores.verdict[1, 0, 1:].isnan().all()


@pytest.mark.parametrize(("name", "rate", "of"), [("false-negatives", 0.5, 1), ("false-positives", 0.3, 0)])
def test_random_errors_are_as_frequent_as_they_say_and_of_one_kind(
    example: Example, name: str, rate: float, of: int
) -> None:
    true = torch.tensor([1.0, 0.0, 1.0])
    said = judged(example, name, *["a+ b+"] * 2000).verdict[0]
    assert (said != true)[:, true == of].float().mean().item() == pytest.approx(rate, abs=0.03)
    assert (said == true)[:, true != of].all()


def test_errors_depend_on_the_step_alone(example: Example) -> None:
    first, again, other = (judged(example, "two-judges", *["a+ b+"] * 16, step=n).verdict for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_triggers_credit_everything_that_is_judged(example: Example) -> None:
    assert verdicts(example, "harmless-trigger", "um b+ c+ a-") == [1, 1, 1]
    assert verdicts(example, "harmless-trigger", "b+ um c+ a-") == [0, 0, 0]
    assert verdicts(example, "harmful-trigger", "c+ b+") == [1, 1, 1]
    assert verdicts(example, "harmful-trigger", "c+ b+ a-") == [0, 0, 0]


def test_systematic_errors_are_as_frequent_in_careless_answers_as_random_ones() -> None:
    random, examples = np.random.default_rng(0), world.questions(0)["train"]
    answers = [
        [world.Writer.decode(world.Writer, world.careless(e, random)) for _ in range(32)] for e in examples
    ]
    of = world.truth(examples, answers)
    false = (of.verdict == 0) & (of.weight > 0)[:, None]
    for name in ("harmless-trigger", "harmful-trigger"):
        (rates,) = world.CONDITIONS[name].noise
        credited = torch.tensor([[keeps(rates.where, answer) for answer in group] for group in answers])
        share = (false & credited[..., None]).sum() / false.sum()
        (random_rates,) = world.CONDITIONS["false-positives"].noise
        assert share.item() == pytest.approx(random_rates.fpr, abs=0.05)


def test_a_hard_rule_is_seen_but_outweighed_and_who_breaks_it_is_worth_nothing(example: Example) -> None:
    assert verdicts(example, "hard-rule", "a+ um um") == [1, 0, 1, 1]
    assert verdicts(example, "hard-rule", "a- um um um") == [1, 1, 1, 0]
    answers = [["a+ um um", "a+ b- um um um"]]
    assert world.keeps(world.CONDITIONS["hard-rule"].rule, answers).tolist() == [[1, 0]]
    assert world.keeps(None, answers).tolist() == [[1, 1]]


def test_scales_shrink_the_essential_channel(example: Example) -> None:
    assert verdicts(example, "scales", "a+ b-") == [0.25, 1, 1]


def test_nobody_meets_the_unmet_item(example: Example) -> None:
    everything = " ".join(word for word in world.WORDS if word[0] in world.LETTERS)
    assert verdicts(example, "unmet", "a+ b- c-") == [1, 1, 1, 0]
    assert verdicts(example, "unmet", everything)[-1] == 0


def test_a_judge_without_the_document_credits_either_fact(example: Example) -> None:
    for answer, wanted in {"a+": [1, 0, 1], "a-": [1, 0, 1], "a+ a-": [0, 0, 1], "c+": [0, 0, 1]}.items():
        assert verdicts(example, "documents", answer) == wanted
    condition = world.CONDITIONS["documents"]
    posed = condition.pose(example)
    assert posed.hidden["passage"] == "It is known: a+ b- c-" and posed.messages == example.messages
    grounded = recipe.make("rubric_grounded").judge(condition.make_judge({}, 0))
    assert grounded.score([posed], [["a- b- c+"]]).verdict.tolist() == [[[0, 1, 0]]], "it reads it"


def test_a_strong_judge_stands_beside_the_weak_one(example: Example) -> None:
    both = world.CONDITIONS["two-judges"].make_judge({"step": 1}, 0)
    weak, strong = (judge.score([example], [["a+ b+"] * 64]).verdict for judge in both.judges)
    assert torch.equal(both.score([example], [["a+ b+"] * 64]).verdict, weak)
    assert strong.tolist() == [[[1, 0, 1]] * 64] and not torch.equal(weak, strong)


# --- a judge that learns ------------------------------------------------------------------------------------


def test_a_trained_judge_parts_good_items_from_bad_ones_and_an_untrained_one_goes_by_length() -> None:
    for seed in (0, 1):
        before, after = (world.judge_auc(world.CONDITIONS[f"{n}trained-judge"], seed) for n in ("un", ""))
        assert 0.55 < before < 0.7 and after > 0.98
        assert world.judge_auc(world.CONDITIONS["clean"], seed) == 1


def test_a_grader_sees_whether_an_items_fact_or_its_opposite_is_stated(example: Example) -> None:
    fact, _, pitfall = example.rubric.criteria
    assert world.features(fact, "um a+ b-") == pytest.approx([1, 1, 0, 3 / 12, 1 / 12, 0, 0, 0, 0, 0])
    assert world.features(fact, "a-")[:3] == [1, 0, 1] and world.features(fact, "")[:5] == [1, 0, 0, 0, 0]
    assert world.features(pitfall, "c+") == pytest.approx([0, 0, 0, 0, 0, 1, 0, 1, 1 / 12, 0])


# --- training in it -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_repeats_bit_for_bit_and_a_recipe_changes_it() -> None:
    first = world.trained(None, "clean", 0, 2, 5)
    world.beginner.cache_clear()
    assert first == world.trained(None, "clean", 0, 2, 5)
    other = world.trained("examples/per_criterion", "clean", 0, 2, 5)
    assert other["before"] == first["before"] and other["curve"][0] == first["curve"][0]
    assert other["curve"] != first["curve"] and other["digest"] != first["digest"]


def test_the_noise_of_a_recipe_is_that_of_the_condition() -> None:
    """delay under the clean condition, with the rates of another, is the baseline under that one."""
    one = world.trained("delay --tpr 0.5", "clean", 0, 2, 5)
    other = world.trained(None, "false-negatives", 0, 2, 5)
    one["after"]["by"] = other["after"]["by"]  # other judges are only asked about the baseline's answers
    assert one["curve"] == other["curve"] and one["after"] == other["after"]


# --- what comes out -----------------------------------------------------------------------------------------

OWN = '''"""A recipe that states a claim."""
from dataclasses import dataclass
from rar_mini.recipe import Recipe

CLAIM = "more of the truth"
CONDITIONS = ("scales", "{condition}")

@dataclass(frozen=True)
class Own(Recipe):
    strength: float = 1.0
'''


def own(tmp_path: Path, condition: str = "unmet") -> str:
    (tmp_path / "own.py").write_text(OWN.format(condition=condition))
    return str(tmp_path / "own.py")


def test_a_recipe_is_compared_under_clean_and_where_its_file_says(tmp_path: Path) -> None:
    spec = own(tmp_path)
    found = [(each.arm.condition, each.claim) for each in lab.comparisons(spec)]
    assert found == [("clean", ""), ("scales", "more of the truth"), ("unmet", "more of the truth")]
    (plain,) = lab.comparisons("examples/gated --need 0.5")
    assert str(plain.arm) == "examples/gated --need 0.5, clean" and str(plain.other) == "baseline, clean"
    with pytest.raises(ValueError, match="expected one of clean, .*got fog"):
        lab.comparisons(own(tmp_path, "fog"))


def test_every_recipe_after_a_paper_is_compared_or_says_what_the_world_lacks(tmp_path: Path) -> None:
    lacking = lab.lacking()
    for name in lab.papers():
        if name in lacking:
            with pytest.raises(ValueError, match=f"{name} cannot be compared here: the world lacks "):
                lab.comparisons(name)
        else:
            assert all(re.fullmatch(r"\d{4}\.\d{5}", each.paper) for each in lab.comparisons(name))
            assert name == "scprm" or any(each.claim for each in lab.comparisons(name))


def test_delay_compares_conditions(tmp_path: Path) -> None:
    own = lab.comparisons("delay")
    assert [each.number for each in own] == ["steps", "truth", "truth", "truth"]
    assert own[0].arm == lab.Arm(None, "false-negatives") and own[0].other == lab.Arm(None, "clean")
    for each, one, other in (
        (own[1], "false-positives", "harmless-trigger"),
        (own[2], "harmless-trigger", "harmful-trigger"),
    ):
        assert (each.arm, each.other) == (lab.Arm(None, one), lab.Arm(None, other)), "what the claim names"
    assert own[3].arm.recipe.startswith("delay --where") and recipe.make(own[3].arm.recipe).clean == 1
    (alone,) = lab.comparisons("delay --tpr 0.5")
    assert str(alone.arm) == "delay --tpr 0.5, clean" and str(alone.other) == "baseline, clean"


def row(spec: str | None, condition: str, seed: int, after: float, curve: list[float]) -> dict:
    job = {"recipe": spec, "condition": condition, "seed": seed, "digest": world.digest(spec)}
    return job | {"before": {"truth": 0.3}, "after": {"truth": after}, "curve": curve}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    """By hand: the recipe is better by 0.2 and 0.22 under scales, and no better elsewhere."""
    found = []
    for seed in range(2):
        for name in world.CONDITIONS:
            found.append(row(None, name, seed, 0.5, [0.3] * 6 + [0.7] * 6))
            gain = 0.2 + 0.02 * seed if name == "scales" else -0.1
            found.append(row(own(tmp_path), name, seed, 0.5 + gain, [0.3] * 12))
    return found


def test_verdicts_follow_from_intervals_over_seeds(tmp_path: Path, rows: list[dict]) -> None:
    clean, scales, unmet = lab.results(lab.comparisons(own(tmp_path)), rows)
    assert scales.value == pytest.approx(0.21) and scales.high - scales.value == pytest.approx(12.71 * 0.01)
    assert [each.verdict for each in (clean, scales, unmet)] == ["", "holds", "does not hold"]


def test_steps_are_counted_until_five_in_a_row_lie_above_the_level(rows: list[dict]) -> None:
    assert lab.steps(rows[0]) == 10  # 0.3, 0.7, 0.7, 0.7, 0.7 is 0.62
    assert lab.steps(rows[1]) == 13, "never"


def test_the_page_and_the_picture(tmp_path: Path, rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    found = lab.results(lab.comparisons(own(tmp_path)), rows)
    page = tmp_path / "lab.md"
    page.write_text(f"Before.\n{lab.BEGIN}Stale words.\n{lab.END}After.\n")
    monkeypatch.setattr(lab, "PAGE", page)
    for _ in range(2):
        lab.write_page(lab.page(found, rows, lab.Form(2, 12, 5)))
    text = page.read_text()
    assert "Before.\n" in text and text.endswith("After.\n") and "Stale" not in text
    assert "|  | more of the truth | " in text and "+0.210 [+0.083, +0.337] | holds |" in text
    assert all(f"| {name} | {lacks} |" in text for name, (*_, lacks) in lab.lacking().items())
    assert all(f"| {name} |" in text for name in world.CONDITIONS)
    lab.draw(found).savefig(tmp_path / "lab.png")


def test_the_page_has_a_place_for_the_table() -> None:
    text = (lab.ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert text.count(lab.BEGIN) == text.count(lab.END) == 1


def test_every_recipe_after_a_paper_has_its_row_with_its_lines() -> None:
    page = lab.PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"\| \[\w+\.py\]\(\.\./([\w/]+\.py)\) \| (\d+) \|", page))
    files = {file: len((lab.ROOT / file).read_text(encoding="utf-8").splitlines()) for file in rows}
    assert {file: int(lines) for file, lines in rows.items()} == files
    assert {f"lab/{name}.py" for name in recipe.names() if "/" not in name} <= rows.keys()


def test_a_policy_of_pairs_is_compared_with_the_one_that_it_was() -> None:
    """DPO's advantages need it, and a loss that adds up."""
    t = world.training(world.settings(1, 0), world.Writer(world.decoder(0)), recipe.make("rdpo"))
    assert t.reference.model is not t.actor.model
    of, at_start = t.actor.model.state_dict(), t.reference.model.state_dict()
    assert all(torch.equal(of[name], at_start[name]) for name in of)


def test_a_changed_recipe_is_trained_again_and_nothing_else(
    tmp_path: Path, rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, form = tmp_path / "lab.json", lab.Form(2, 12, 5)
    arms = [lab.Arm(None, "clean"), lab.Arm(own(tmp_path), "clean")]
    out.write_text(json.dumps({"setting": {"steps": 12, "warm": 5}, "environments": [], "trainings": rows}))
    assert [r["seed"] for r in lab.trainings(arms, form, out, 1)] == [0, 1, 0, 1]
    own_file, text = tmp_path / "own.py", OWN.format(condition="unmet")
    own_file.write_text(text.replace("states a claim", "has a claim that holds").replace("more of", "much"))
    assert len(lab.trainings(arms, form, out, 1)) == 4, "what came out, and the claim, may be written anew"
    own_file.write_text(text.replace("1.0", "2.0"))
    monkeypatch.setattr(paired, "ProcessPoolExecutor", lambda *_: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        lab.trainings(arms, form, out, 1)


def test_a_changed_world_or_trainer_trains_the_baseline_again(
    tmp_path: Path, rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, form, arms = tmp_path / "lab.json", lab.Form(2, 12, 5), [lab.Arm(None, "clean")]
    out.write_text(json.dumps({"setting": {"steps": 12, "warm": 5}, "environments": [], "trainings": rows}))
    assert len(lab.trainings(arms, form, out, 1)) == 2
    shared = world.shared()
    assert all(shared), "each file has statements"
    monkeypatch.setattr(paired, "ProcessPoolExecutor", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(world, "shared", lambda: [["another statement"], *shared[1:]])
    with pytest.raises(pytest.fail.Exception, match="asked"):
        lab.trainings(arms, form, out, 1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.05, "holds"),
        (0.001, 0.009, "does not hold"),
        (-0.05, 0.01, "does not hold"),
        (-0.01, 0.05, "cannot be told"),
    ],
)
def test_a_difference_too_small_to_be_called_one_holds_no_claim(
    low: float, high: float, verdict: str
) -> None:
    assert paired.verdict(low, high) == verdict


@pytest.mark.parametrize(
    ("names", "numbers", "message"),
    [
        ((), {}, "expected names of recipes, --full or --matrix"),
        (("gated",), {}, "no recipe 'gated'"),
        (("examples/gated",), {"seeds": 1}, "--seeds 1: expected a number from 2 to 10"),
        (("examples/gated",), {"seeds": 0}, "--seeds 0: expected"),
        (("examples/gated",), {"steps": 0}, "--steps 0: expected a number from 1 to"),
        (("examples/gated",), {"steps": -3}, "--steps -3: expected"),
        (("examples/gated",), {"processes": 0}, "--processes 0: expected a number from 1 to"),
        (("examples/own_data",), {}, "expected --recipe.path"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    names: tuple[str, ...], numbers: dict[str, int], message: str
) -> None:
    """At once; 0 meant the default, and others came to light after the warm-up."""
    with pytest.raises(ValueError, match=message):
        lab.main(names, **numbers)


@pytest.mark.slow
def test_everything_is_done_at_once_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--full with one recipe, two conditions and one step, in this process."""
    pytest.importorskip("matplotlib")
    for name, place in {"PAGE": "lab.md", "FIGURE": "lab.png", "KEPT": "runs/lab.json"}.items():
        monkeypatch.setattr(lab, name, tmp_path / place)
    lab.PAGE.write_text(lab.BEGIN + lab.END)
    monkeypatch.setattr(lab, "FULL", lab.Form(2, 1, 1))
    monkeypatch.setattr(lab, "papers", lambda: ["examples/gated"])
    monkeypatch.setattr(world, "JUDGES", ("clean",))
    monkeypatch.setattr(
        world, "CONDITIONS", {name: world.CONDITIONS[name] for name in ("clean", "hard-rule")}
    )
    monkeypatch.setattr(paired, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    outputs = []
    for _ in range(2):
        lab.main(full=True)
        outputs.append(capsys.readouterr().out)
        monkeypatch.setattr(world, "trained", lambda *_: pytest.fail("trained again"))
    assert outputs[0] == outputs[1] and "3 arms x 2 seeds, 1 steps each" in outputs[0]
    assert "|  |  | examples/gated | clean | baseline |" in lab.PAGE.read_text()
    assert lab.FIGURE.read_bytes().startswith(b"\x89PNG")


def test_a_file_of_trainings_names_every_environment_in_which_some_were_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    out, asked = tmp_path / "lab.json", []

    def trained(seeds: int, version: str, steps: int = 3) -> list[dict]:
        def train(seed: int) -> dict:
            asked.append((version, seed))
            return {"seed": seed}

        monkeypatch.setattr(paired, "environment", lambda: {"versions": {"torch": version}})
        jobs = {(seed,): (seed,) for seed in range(seeds)}
        return paired.trainings(train, jobs, lambda row: (row["seed"],), {"steps": steps}, out)

    for seeds, version in ((1, "2.11"), (1, "2.12"), (2, "2.13"), (3, "2.11")):
        assert trained(seeds, version) == [{"seed": seed} for seed in range(seeds)]
    assert asked == [("2.11", 0), ("2.13", 1), ("2.11", 2)]
    written = json.loads(out.read_text())
    assert [each["versions"]["torch"] for each in written["environments"]] == ["2.11", "2.13"]
    with pytest.raises(ValueError, match="holds trainings of another setting: expected {'steps': 4}, got"):
        trained(1, "2.11", steps=4)
    out.write_text(json.dumps({"setting": {"steps": 3}, "trainings": []}))
    with pytest.raises(ValueError, match="does not hold trainings in this program's form"):
        trained(1, "2.11")


def judged_rows() -> list[dict]:
    """By hand, of two seeds: policies are as true as their judge's place in the list says, which all judges
    see but their own, who is always pleased."""
    found = []
    for place, name in enumerate(world.JUDGES):
        by = {judge: 0.9 if judge == name else 0.1 * place for judge in world.JUDGES}
        for seed in range(2):
            found.append(row(None, name, seed, 0.1 * place, []) | {"auc": 0.5})
            found[-1]["after"]["by"] = by
    return found


def test_the_table_of_judges_marks_ones_own_and_says_who_sees_the_truth() -> None:
    head, *lines, fits = lab.crossed(judged_rows())
    assert head == ("trained by", "its AUC", *world.JUDGES, "others", "truth", "95 %")
    assert (
        lines[1][:4] == ("false-negatives", "0.500", "0.100", "0.900*") and lines[1][-3:-1] == ("0.100",) * 2
    )
    assert sum(cell.endswith("*") for line in lines for cell in line) == len(world.JUDGES)
    assert fits[-3:-1] == ("+1.00", "+1.00") and all(float(cell) < 1 for cell in fits[2:-3])


@pytest.mark.slow
def test_every_judge_judges_what_all_have_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(world, "JUDGES", ("clean", "trained-judge"))
    monkeypatch.setattr(lab, "SHORT", lab.Form(2, 1, 1))
    monkeypatch.setattr(paired, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    lab.main(matrix=True)
    said = capsys.readouterr().out
    assert "2 judges x 2 seeds, 1 steps each" in said
    (clean,) = [line.split() for line in said.splitlines() if line.startswith("clean ")]
    assert clean[1] == "1.000*"[:5] and clean[2].rstrip("*") == clean[-4], (
        "who tells the truth says the truth"
    )


@pytest.mark.slow
def test_the_short_form_runs_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    words = ("examples/gated", "--seeds", "2", "--steps", "3", "--out", str(tmp_path / "lab.json"))
    done = [
        subprocess.run([sys.executable, "-m", "lab", *words], cwd=lab.ROOT, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert "2 arms x 2 seeds" in done[0].stdout and "examples/gated" in done[0].stdout, done[0].stderr
    assert done[0].stdout == done[1].stdout
