"""How a pitfall is worded, and that it is asked in that direction: on every wire, under a run's own texts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import SERVERS, Server, says, user
from test_evaluate import run_of
from test_train import options
from tiny import question, write_rows

import evaluate
import judge as judges
import train
from judge import Judge
from rar_mini import data, prompts, rubric
from rar_mini.judging import keyword
from rar_mini.rubric import Criterion, Rubric

pytestmark = pytest.mark.usefixtures("folder")

NAMED = {
    "medical": """
Does not mention the need to stop warfarin before the operation.
Does not mention checking potassium when spironolactone is started.
Does not mention that pregnancy has to be excluded first.
Does not mention (B) as the correct answer.
Does not address the risk of suicide in this patient.
Does not consider ectopic pregnancy among the causes.
Does not include safety advice for the parents.
Does not explain why the dose has to be reduced in renal failure.
Does not specify the route of administration.
Does not recognize that the rash is non-blanching.
Does not acknowledge the limits of the test.
Does not warn about driving while taking the drug.
Does not differentiate between type 1 and type 2 respiratory failure.
Doesn't mention follow-up imaging.
Doesn’t mention the half-life.
Recommends antibiotics for a viral sore throat.
Recommends aspirin for a child with chickenpox.
Recommends immediate surgery without imaging.
Recommends avoiding all vaccines during pregnancy.
Suggests that the lump can be watched for six months.
Suggests waiting until the fever is gone before treating.
States that beta blockers are safe in cocaine intoxication.
Claims that the D-dimer confirms a pulmonary embolism.
Attributes the hypercalcaemia to dietary calcium alone.
Confuses Bell's palsy with a stroke.
Misidentifies the murmur as mitral regurgitation.
Misses the diagnosis of testicular torsion.
Dismisses the patient's pain as psychological.
Ignores the history of penicillin allergy.
Omits the dose of adrenaline.
Fails to recommend an urgent CT angiogram.
Fails to distinguish a partial from a complete mole.
Failing to mention thiamine before glucose.
Failure to advise on contraception during treatment.
Neglects to ask about over-the-counter drugs.
Overlooks hyponatraemia as a cause of the seizure.
Incorrectly identifies the organism as Staphylococcus aureus.
Wrongly concludes that the fracture is stable.
Inappropriately reassures the patient about a breast lump.
Prescribes metformin although the eGFR is 20.
Assumes that the patient is not pregnant.
Delays referral for more than two weeks.
The response recommends bed rest for acute back pain.
The answer omits the antidote.
Lacks any plan for follow-up.
Uses jargon that a lay person would not understand.
""",
    "science": """
Does not mention that air resistance is neglected.
Does not mention the sign convention for work.
Does not state the assumption of an ideal gas.
Does not provide units with the final result.
Does not account for the rotational kinetic energy.
Does not check the limit of small velocities.
Does not convert degrees to radians.
Does not show how the integral is evaluated.
Does not justify the steady-state approximation.
Does not identify the limiting reagent.
Does not clarify which isomer is formed.
Does not distinguish between mass and weight.
Confuses velocity with acceleration.
Confuses the oxidising with the reducing agent.
Uses the wrong sign for the Gibbs energy.
Uses Celsius instead of kelvin in the gas law.
Claims that entropy always increases in every system.
Claims that the magnetic force does work on the charge.
States that the two enantiomers have different boiling points.
Assumes that the reaction is first order without evidence.
Applies conservation of mechanical energy to an inelastic collision.
Treats the friction as constant in spite of the changing normal force.
Takes the logarithm to base ten instead of base e.
Neglects the mass of the pulley and so reports 4.9 m/s^2.
Neglects to normalise the wave function.
Ignores the contribution of the second term.
Omits the factor of one half in the kinetic energy.
Omitting the constant of integration.
Fails to balance the equation.
Fails to include the spin degeneracy.
Failing to mention Hund's rule.
Misinterprets the slope of the plot as the rate constant.
Misapplies Le Chatelier's principle to a catalyst.
Mistakenly adds the resistances in parallel.
Erroneously treats the process as isothermal.
Incorrectly states that mitosis yields four cells.
Overlooks the double bond in the ring.
Overemphasizes historical background at the expense of the derivation.
Reports the result without an estimate of its error.
Presents the final formula without any derivation.
Lack of a statement about the boundary conditions.
Omission of the unit in the final answer.
No mention of quantum tunnelling.
The response fails to explain the role of the catalyst.
Only gives a numerical answer.
""",
}

DEMANDED = {
    "medical": """
Avoids recommending antibiotics for a viral infection.
Avoids suggesting that the patient can drive home.
Avoids attributing the symptoms to anxiety without tests.
Avoids blaming the patient for her weight.
Avoids jargon that a lay person would not understand.
Avoid recommending aspirin in children.
Avoiding false reassurance about the lump.
Should avoid prescribing NSAIDs in heart failure.
Should avoid delaying treatment for imaging.
The response should avoid alarming language.
The response should avoid suggesting herbal remedies as a cure.
The response must avoid a definite diagnosis without an examination.
The response avoids recommending surgery as the first step.
The answer should not dismiss the possibility of cancer.
The answer must not recommend stopping insulin.
The response should not recommend thrombolysis.
The response should not claim that the test is always right.
The response should not omit the need for follow-up.
The response should not confuse hypoglycaemia with a stroke.
The response should not delay adrenaline.
The response should not suggest that vaccines cause autism.
The response should not fail to mention the risk of bleeding.
The response shouldn't advise fasting.
The response shouldn’t advise fasting.
The response must not suggest doubling the dose.
The response should never advise inducing vomiting.
Should not recommend opioids as the first choice.
Should not assume that the patient is male.
Must not advise against vaccination.
Must never recommend sharing prescriptions.
Does not claim that a normal ECG excludes a heart attack.
Does not suggest that the drug is safe in pregnancy.
Does not imply that obesity is the patient's fault.
Does not assume a bacterial cause.
Does not attribute the fall in haemoglobin to diet alone.
Does not confuse viral with bacterial meningitis.
Does not dismiss the mother's worries.
Doesn't ignore the allergy.
Never claims that the tumour is benign.
Refrains from giving a prognosis in months.
Refrains from naming a dose without the weight.
Should refrain from diagnosing depression.
Is careful not to recommend a drug by its brand.
Should be careful not to overstate the benefit.
Be cautious not to promise a cure.
""",
    "science": """
The response should not confuse heat with temperature.
The response should not neglect the rest energy.
The response should not use the classical formula near the speed of light.
The response should not ignore the sign of the charge.
The response should not claim that mass is lost.
The response should not assume constant volume.
The response should not treat the gas as incompressible.
The response should not omit the units.
The response should not mix up cis and trans isomers.
The response should not apply Ohm's law to the diode.
The response should not double count the shared electrons.
The response should not forget the factor of two.
The response should not introduce constants without a definition.
The response should not present the result without a derivation.
The response must not equate speed with velocity.
The response must not round before the last step.
The response should avoid circular reasoning.
The response should avoid confusing molarity with molality.
The response should avoid using the small-angle approximation here.
The answer should avoid unnecessary algebra.
The answer should not rely on memorised results alone.
The answer must avoid the claim that catalysts shift equilibria.
Avoids confusing the reactants with the products.
Avoids dividing by zero when the masses are equal.
Avoids treating the wave function as a probability.
Avoids mixing SI with cgs units.
Avoids stating that gravity is absent in orbit.
Avoids using the ideal gas law near the critical point.
Avoid the assumption that all collisions are elastic.
Avoid misinterpretation of the error bars.
Avoiding the use of undefined symbols.
Should not extrapolate beyond the data.
Should not conclude causation from correlation.
Should not reverse the direction of the current.
Shouldn't take the mean of the rates.
Must not treat the limit as the value.
Should never divide by the determinant without a check.
Does not confuse genotype with phenotype.
Does not assume that the field is uniform.
Does not ignore the boundary terms.
Does not neglect the recoil of the nucleus.
Does not claim that the enzyme changes the equilibrium.
Never assumes that the sample is pure.
Refrains from using L'Hopital's rule where it does not apply.
This response should not call the sun a planet.
""",
}

UNCLEAR = """
Does not recommend a lumbar puncture.
Does not use the quadratic formula.
Warns against giving aspirin to children.
Ensures that the patient is not left alone.
Correctly states that the charge is conserved.
Antibiotic use.
It is wrong to equate the two.
Explains why antibiotics are not needed.
Emphasizes that aspirin is unsafe in children.
Mentions that the test may be wrong.
Notes that the reaction is reversible.
"""


def lines(text: str) -> list[str]:
    return text.strip().split("\n")


@pytest.mark.parametrize("domain", ["medical", "science"])
@pytest.mark.parametrize(("lists", "meant"), [(NAMED, "mistake"), (DEMANDED, "avoidance")])
def test_the_first_words_tell_how_a_pitfall_is_worded(lists: dict[str, str], meant: str, domain: str) -> None:
    texts = lines(lists[domain])
    assert len(set(texts)) >= 40
    assert [text for text in texts if rubric.polarity(text) != meant] == []


def test_what_the_first_words_do_not_tell_is_unclear() -> None:
    assert {rubric.polarity(text) for text in lines(UNCLEAR)} == {"unclear"}


def test_the_bundled_pitfalls_are_all_clear() -> None:
    for domain in ("medical", "science"):
        criteria = [c for example in data.sample(domain) for c in example.rubric.criteria]
        unclear = [c.description for c in criteria if c.category == "pitfall" and c.direction == "unclear"]
        assert unclear == []


def pitfall(text: str, **more: Any) -> dict[str, Any]:
    return {"title": "t", "description": f"Pitfall Criteria: {text}", "weight": -1} | more


def item(text: str, **more: Any) -> Criterion:
    return rubric.from_categories([pitfall(text, **more)], Counter()).criteria[0]


def test_the_data_may_say_otherwise() -> None:
    assert item("Recommends rest.", polarity="avoidance").direction == "avoidance"
    assert item("Avoids aspirin.", polarity="mistake").direction == "mistake"
    assert item("Does not recommend rest.", polarity="mistake").direction == "mistake"
    assert item("Recommends rest.", polarity=None).direction == "mistake"  # as a Parquet file has it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"polarity": "bad"},
            r"rubric\[0\].polarity: expected 'mistake', 'avoidance' or 'unclear', got 'bad'",
        ),
        (
            {"polarity": "mistake", "description": "Essential Criteria: X.", "weight": 5},
            r"rubric\[0\].polarity: expected none but in a pitfall, got 'mistake'",
        ),
    ],
)
def test_a_polarity_that_says_nothing_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    row = question(0, rubric=[pitfall("X.") | changes])
    with pytest.raises(data.BadRow, match=words):
        data.read(write_rows(tmp_path / "rows.jsonl", [row]))


TEXTS = ["Recommends aspirin.", "Avoids giving aspirin.", "Does not recommend aspirin."]


@pytest.mark.parametrize("spec", SERVERS)
def test_a_verdict_means_that_the_mistake_was_avoided(server: Server, tmp_path: Path, spec: str) -> None:
    """The judge says yes to everything: both mistakes were made, and the unclear one was avoided."""
    row = question(0, rubric=[question(0)["rubric"][0], *map(pitfall, TEXTS)])
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [row]))
    asker = Judge(spec, "rar-explicit")
    if spec.startswith("chat:"):
        server.reply, yes = says("yes"), 1.0
    else:
        yes = 0.75
        server.reply = lambda path, body: answers(body, yes)
    assert asker.score(examples, [["x"]]).verdict[0, 0].tolist() == [yes, 1 - yes, 1 - yes, yes]
    asked = "\n".join(user(body) for _, body, _ in server.seen).split("\n")
    made, avoided = asker.prompts.made, asker.prompts.avoided
    for text, criterion in ((made, TEXTS[0]), (made, "Giving aspirin."), (avoided, TEXTS[2])):
        assert sum(line.endswith(prompts.fill(text, criterion=criterion)) for line in asked) == 1


def answers(body: dict, p: float) -> Any:
    if isinstance(body["questions"], dict):
        return {name: {"type": "noul", "noul": p} for name in body["questions"]}
    return [{"name": q["name"], "type": "predicate", "probability": p} for q in body["questions"]]


def test_a_rating_is_told_how_each_pitfall_is_meant(server: Server, tmp_path: Path) -> None:
    row = question(0, rubric=[question(0)["rubric"][0], *map(pitfall, TEXTS)])
    examples = data.read(write_rows(tmp_path / "rows.jsonl", [row]))
    Judge("chat:m", "rar-implicit").score(examples, [["x"]])
    shown = [line for line in user(server.seen[0][1]).split("\n") if line.startswith("- (pitfall")]
    notes = [prompts.DIRECTED[way] for way in ("mistake", "avoidance", "unclear")]
    assert shown == [f"- (pitfall, {note}) {text}" for note, text in zip(notes, TEXTS, strict=True)]


@pytest.mark.parametrize(
    ("text", "polarity", "response", "verdict"),
    [
        ("Recommends aspirin for children.", None, "Give the children aspirin.", 0),
        ("Recommends aspirin for children.", "avoidance", "Give the children aspirin.", 1),
        ("Recommends aspirin for children.", "avoidance", "Drink water.", 0),
        ("Avoids aspirin for children.", None, "Give the children aspirin.", 0),
        ("Avoids aspirin for children.", "mistake", "Give the children aspirin.", 1),
        ("Avoids aspirin for children.", "unclear", "Give the children aspirin.", 0),
    ],
)
def test_the_keyword_judge_reads_a_polarity_too(
    text: str, polarity: str | None, response: str, verdict: float
) -> None:
    assert keyword.verdict(item(text, polarity=polarity), response) == verdict


# --- said before it is asked --------------------------------------------------------------------------------


def test_the_directions_are_counted_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        question(i, rubric=[question(0)["rubric"][0], *map(pitfall, TEXTS)], response="x") for i in (1, 2)
    ]
    path, said = write_rows(tmp_path / "rows.jsonl", rows), "2 name the mistake, 2 ask to avoid it, 2 unclear"
    judges.score(path, tmp_path / "out.jsonl", "keyword")
    assert f"pitfalls: {said}\n" in capsys.readouterr().err
    judges.score(path, tmp_path / "other.jsonl", "keyword", design=rubric.Design(pitfalls="literal"))
    assert "pitfalls" not in capsys.readouterr().err, "they are asked as worded"
    labels = {"response": "x", "quality": "good", "labels": [1, 1, 1, 1]}
    rows = [row | {"labelled_responses": [labels, labels]} for row in rows]
    evaluate.measure("keyword", data=write_rows(tmp_path / "labelled.jsonl", rows), injections=0)
    assert f"\npitfalls  {said}\n" in capsys.readouterr().out


# --- a run is asked under its own texts ---------------------------------------------------------------------


def older(run: Path, **texts: str) -> None:
    """Make a run one of the time before pitfalls had a direction, or whose texts were these."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    kept = config.setdefault("judge_texts", dict(vars(prompts.JudgePrompts())))
    kept.pop("made", None)
    kept |= texts
    path.write_text(json.dumps(config))


def test_an_older_run_is_resumed_under_the_texts_that_it_has(
    server: Server, tiny: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pitfalls are asked by the sentence of its time, where yes is good, now and the next time."""
    words = options(tiny, questions, tmp_path / "run", steps=1, eval_every=0)
    train.main([*words, "--judge", "systemone:m", "--max-new-tokens", "6"])
    assert "\npitfalls 5 name the mistake, 0 ask to avoid it, 0 unclear\n" in capsys.readouterr().out
    older(tmp_path / "run", met="Was it so? {criterion}")
    for steps in (2, 3):
        server.seen.clear()
        train.main(["--resume", str(tmp_path / "run"), "--steps", str(steps)])
        asked = [q["instructions"] for _, body, _ in server.seen for q in body["questions"].values()]
        fever = [text for text in asked if "fever" in text]
        aspirin = [text for text in asked if "aspirin" in text]
        assert set(fever) == {"Was it so? Names fever."}
        assert len(set(aspirin)) == 1 and aspirin[0].startswith("Does the response avoid the mistake named")
    texts = json.loads((tmp_path / "run" / "config.json").read_text())["judge_texts"]
    assert texts["made"] == "" and texts["met"] == "Was it so? {criterion}"


def test_a_replay_asks_under_the_texts_of_its_run(
    server: Server, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", questions, steps=1)
    said = []
    server.reply = lambda path, body: said.append(body) or answers(body, 0.5)

    def aspirin(**how: Any) -> str:
        said.clear()
        evaluate.replay(run, ("systemone:m",), judging=judges.Options(cache=False, **how))
        return next(
            q["instructions"] for q in said[0]["questions"].values() if "aspirin" in q["instructions"]
        )

    assert aspirin() == prompts.fill(prompts.JudgePrompts().made, criterion="Recommends aspirin.")
    assert f"prompts  {run} is older and has kept none: its judge is shown today's" in capsys.readouterr().out
    older(run, avoided="Old? {criterion}")
    assert aspirin() == "Old? Recommends aspirin." and "prompts" not in capsys.readouterr().out
    own = tmp_path / "own.toml"
    own.write_text('made = "Own? {criterion}"')
    assert aspirin(prompts=own) == "Own? Recommends aspirin.", "a file of texts is what the user wants"


def test_a_file_of_texts_stands_over_all_texts_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's texts have no part in it: those that the file leaves out are the run's."""
    monkeypatch.setattr(prompts, "run_texts", {"met": "Then? {criterion}", "system": "Then."})
    path = tmp_path / "own.toml"
    path.write_text('met = "Own? {criterion}"')
    texts = prompts.of_judge(path)
    assert (texts.met, texts.system, texts.made) == ("Own? {criterion}", "Then.", "")
    assert prompts.of_judge(None).met == "Then? {criterion}"


def test_one_sentence_may_ask_about_all_pitfalls(tmp_path: Path) -> None:
    """As before they had a direction: with an empty text."""
    path = tmp_path / "p.toml"
    path.write_text('made = ""')
    texts = prompts.of_judge(path)
    for text in TEXTS:
        assert prompts.closed_question(texts, item(text)).startswith("Does the response avoid the mistake")
        assert not prompts.yes_is_bad(texts, item(text))
    path.write_text('met = ""')
    with pytest.raises(ValueError, match="met has to say where {criterion} stands"):
        prompts.of_judge(path)


@pytest.mark.parametrize(
    ("text", "polarity", "asked", "bad"),
    [
        ("Recommends rest.", None, "Does the response do this? Recommends rest.", True),
        ("The response should not omit rest.", None, "Does the response do this? Omit rest.", True),
        ("Avoids naming a dose.", None, "Does the response do this? Naming a dose.", True),
        ("Avoids naming a dose.", "mistake", "Does the response do this? Avoids naming a dose.", True),
        ("Does not recommend rest.", "mistake", "Does the response do this? Does not recommend rest.", True),
        ("Recommends rest.", "avoidance", "taken literally? Recommends rest.", False),
        ("Recommends rest.", "unclear", "demand to avoid it)? Recommends rest.", False),
    ],
)
def test_the_question_is_whether_the_mistake_was_made(
    text: str, polarity: str | None, asked: str, bad: bool
) -> None:
    """A demand is cut off: a small judge that is asked whether a response "should not claim X" guesses."""
    texts, criterion = prompts.JudgePrompts(), item(text, polarity=polarity)
    assert prompts.closed_question(texts, criterion).endswith(asked)
    assert prompts.yes_is_bad(texts, criterion) == bad


def test_an_item_of_signed_points_or_another_design_is_asked_as_worded() -> None:
    for made in (
        rubric.from_points([{"criterion": "Recommends rest.", "points": -3}]),
        rubric.Design(pitfalls="literal").apply(Rubric((item("X."), item("Recommends rest."))), "q"),
    ):
        criterion, texts = made.criteria[-1], prompts.JudgePrompts()
        assert prompts.text_of(texts, criterion) == "met" and not prompts.yes_is_bad(texts, criterion)
