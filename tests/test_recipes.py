"""The seam: five forks act as their files say, every recipe keeps the laws, and a resumed run goes on with
the same numbers."""

import dataclasses
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from operator import mul
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, Command
from hostile import Server, truth
from tiny import byte_tokenizer, question, write_rows, write_tiny
from torch import Tensor
from toy import judged as scored
from toy import made, rolled
from transformers import LlamaForCausalLM

import judge as judges
import train
from judge import Judge
from rar_mini import data, grpo, policy, prompts, recipe, sampler, setup
from rar_mini.config import PRESETS
from rar_mini.judging import keyword
from rar_mini.judging.ledger import Account
from rar_mini.judging.wrappers import Wrapper
from rar_mini.options import joined_recipe
from rar_mini.recipe import LAB, Recipe
from rar_mini.report import Clock
from rar_mini.rubric import Criterion, Rubric
from rar_mini.sampler import Completion
from rar_mini.scores import NAN, Rollouts, Scores

pytestmark = pytest.mark.usefixtures("folder")

HEADER = """
from dataclasses import dataclass, replace
import torch
from rar_mini.recipe import Recipe

@dataclass(frozen=True)
class Own(Recipe):
"""


def write_recipe(path: Path, body: str) -> Path:
    """A recipe with these fields and methods."""
    path.write_text(HEADER + body, encoding="utf-8")
    return path


def trained(tiny: Path, questions: Path, out: Path, *words: object) -> Path:
    """The folder of a run of two steps on the tiny policy, with these options too."""
    line = f"--policy {tiny} --data {questions} --out {out} --judge keyword --steps 2 --prompts-per-step 2"
    line += " --group-size 4 --max-new-tokens 12 --lr 1e-3 --eval-every 0 --save-every 0"
    train.main([*line.split(), "--show-every", "0", *map(str, words)])
    return out


SAVED = ("--save-every", 1, "--keep", 9)


def records(run: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict]:
    """The metrics of a run but for those of the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in records(run)]


def groups(run: Path, G: int = 4) -> list[list[dict]]:
    rows = records(run, "rollouts")
    return [rows[start : start + G] for start in range(0, len(rows), G)]


def config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def share(items: list[dict]) -> float:
    """The weighted share of verdicts that a response earns, in plain numbers."""
    return sum(v["weight"] * v["verdict"] for v in items) / sum(v["weight"] for v in items)


def standardised(values: list[float]) -> list[float]:
    """Advantages in plain numbers."""
    if len(values) < 2 or max(values) - min(values) <= 1e-6:
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / (std + 1e-6) for value in values]


# --- five forks ---------------------------------------------------------------------------------------------


def test_gated(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """Of 13 essential letters, one is 0.08 of their weight: the gate is shut for it, in scores too."""
    words = ("--recipe", "examples/gated", "--recipe.need", 0.1, "--eval-every", 2, "--max-new-tokens", 32)
    run = trained(tiny, questions, tmp_path / "run", *words)
    for name in ("rollouts", "evaluations"):
        closed, shut_out = [], 0
        for row in records(run, name):
            essential = [v for v in row["verdicts"] if v["category"] == "essential"]
            closed.append(share(essential) < 0.1)
            shut_out += closed[-1] and share(row["verdicts"]) > 0
            wanted = 0.0 if closed[-1] else share(row["verdicts"])
            assert row["reward"] == pytest.approx(wanted, abs=1e-6)
        assert shut_out and not all(closed)
    for group in groups(run):
        wanted = standardised([row["reward"] for row in group])
        assert [row["advantage"] for row in group] == pytest.approx(wanted, abs=1e-4)


def test_a_rubric_without_essential_items_has_no_gate() -> None:
    gated = made("examples/gated")
    scores = scored(torch.tensor([[[0.0, 1.0], [1.0, NAN]]]), [("important", 0.7), ("optional", 0.3)])
    assert gated.reward(scores)[0, 0].item() == pytest.approx(0.3)
    scores = scored(torch.tensor([[[0.0, 1.0], [0.0, NAN]]]), [("essential", 1.0), ("optional", 0.3)])
    assert gated.reward(scores)[0, 0].item() == 0.0
    assert gated.reward(scores)[0, 1].isnan(), "a failure is no score, not even behind a closed gate"


def test_per_criterion(tiny: Path, questions: Path, tmp_path: Path) -> None:
    path = ROOT / "lab" / "examples" / "per_criterion.py"
    run = trained(tiny, questions, tmp_path / "run", "--recipe", path)
    differs = []
    for group in groups(run):
        weights = [v["weight"] for v in group[0]["verdicts"]]
        columns = zip(*([v["verdict"] for v in row["verdicts"]] for row in group), strict=True)
        each = [standardised(list(column)) for column in columns]  # K x G
        wanted = [sum(map(mul, weights, column)) / sum(weights) for column in zip(*each, strict=True)]
        assert [row["advantage"] for row in group] == pytest.approx(wanted, abs=1e-5)
        differs.append(wanted != pytest.approx(standardised([row["reward"] for row in group]), abs=0.1))
    assert any(differs), "else nothing would show that it acts"


def test_the_mean_of_two_judges(
    tiny: Path, questions: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture
) -> None:
    words = ("--recipe", "examples/mean_of_two", "--recipe.second", "chat:m", "--criteria-per-call", "all")
    run = trained(tiny, questions, tmp_path / "run", *words)
    said = capsys.readouterr().out
    assert "judge    Mean(keyword, chat:m) (as asked); training: about 16 requests" in said
    assert "chat:m: 16 questions, 16 calls" in said, "what it was asked in the end"
    rubrics = {example.id: example.rubric for example in data.read(questions)}
    texts = prompts.JudgePrompts()
    halves = 0
    for row in records(run, "rollouts"):
        for criterion, item in zip(rubrics[row["example_id"]].criteria, row["verdicts"], strict=True):
            words = keyword.judged(rubrics[row["example_id"]], criterion, row["response"])
            said = truth(row["response"] + prompts.closed_question(texts, criterion))
            model = float(said != prompts.yes_is_bad(texts, criterion))
            assert item["verdict"] == (words + model) / 2
            halves += words != model
        assert row["reward"] == pytest.approx(share(row["verdicts"]), abs=1e-6)
    assert halves > 100
    for row in records(run):
        assert row["judge/questions"] == 8 * 15 and row["judge2/questions"] == 8
        assert row["perf/judge2/calls"] == 8 and "perf/judge/calls" not in row
    assert config(run)["judge_texts"]["judge2/system"] == texts.system


RATES = [1.0, 0.775, 0.325, 0.1]
"""The cosine over four steps of which the first warms up, by hand: 0.1 + 0.9 (1 + cos(pi n / 3)) / 2."""


def test_cosine(tiny: Path, questions: Path, tmp_path: Path) -> None:
    words = ("--recipe", "examples/cosine", "--steps", 4, "--warmup", 0.25)
    run = trained(tiny, questions, tmp_path / "run", *words, *SAVED)
    assert [row["learning_rate"] / 1e-3 for row in records(run)] == pytest.approx(RATES)
    resumed = cut(run, 2, tmp_path / "cut")
    assert numbers(resumed) == numbers(run)
    train.main(["--resume", str(resumed), "--steps", "6"])
    rates = [row["learning_rate"] for row in records(resumed)]
    assert rates[4:] == [rates[3]] * 2 and rates[:4] == [row["learning_rate"] for row in records(run)]
    settings = dataclasses.replace(PRESETS["cpu"], lr=1.0, warmup=0.5)
    other = recipe.make("examples/cosine --last 0.5", settings)
    assert [other.learning_rate(n, 4) for n in (1, 2, 3, 4, 5)] == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.5])


CSV = """question,answer,essential
"What, then, is 1?",That.,Mentions a|Mentions e|Mentions f
What is 2?,"Two
lines.",Mentions b
"""


def test_own_data(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path holds for a run that goes on from elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my questions.csv").write_text(CSV)
    run = tmp_path / "run"
    words = ("--recipe", "examples/own_data", "--recipe.path", "my questions.csv")
    trained(tiny, "ignored.jsonl", run, *words, *SAVED)
    monkeypatch.chdir("/")
    train.main(["--resume", str(run), "--steps", "3"])
    rows = records(run, "rollouts")
    items = {"row-1": ["Mentions a", "Mentions e", "Mentions f"], "row-2": ["Mentions b"]}
    assert {row["prompt"] for row in rows} == {"What, then, is 1?", "What is 2?"} and len(rows) == 24
    for row in rows:
        assert [v["title"] for v in row["verdicts"]] == items[row["example_id"]]
        assert row["reward"] == pytest.approx(share(row["verdicts"]), abs=1e-6)


# --- names, options, refusals -------------------------------------------------------------------------------


def test_config_keeps_name_options_and_digest(tiny: Path, questions: Path, tmp_path: Path) -> None:
    own = write_recipe(tmp_path / "my idea.py", "    k: float = 0.5\n    path: str | None = None\n")
    run = trained(tiny, questions, tmp_path / "run", "--recipe", own, "--recipe.k=2", "--steps", 1)
    written = config(run)
    assert written["settings"]["recipe"] == f"'{own}' --k 2.0 --path None", "defaults may change"
    assert written["recipe"] == recipe.digest(written["settings"]["recipe"])
    assert recipe.make(written["settings"]["recipe"]).k == 2.0
    digests = {recipe.digest(f"examples/gated --need {need}") for need in (0.5, 0.5, 1.0)}
    assert len(digests) == 2 and recipe.digest(None) is None
    before = recipe.digest("examples/gated")
    assert before != recipe.digest(str(LAB / "examples" / "cosine.py"))


def test_every_way_to_write_a_recipe_and_its_options() -> None:
    for words in (
        "--steps 3 --recipe examples/gated --recipe.need 0.5",
        "--recipe.need 0.5 --steps 3 --recipe=examples/gated",
        "--recipe.need=0.5 --recipe examples/gated --steps 3",
    ):
        *rest, name = joined_recipe(words.split())
        assert rest == ["--steps", "3", "--recipe"]
        assert recipe.located(name) == "examples/gated --need 0.5" and recipe.make(name).need == 0.5
    twice = joined_recipe(["--recipe", "examples/gated --need 0.5"])
    assert twice == joined_recipe(twice) == ["--recipe", "examples/gated --need 0.5"]
    assert joined_recipe(["--recipe", "r", "--recipe.k", "-1"]) == ["--recipe", "r --k -1"]


REFUSED = {
    "an unknown option": ("--recipe examples/gated --recipe.neeed 1", "--recipe.need .*got --neeed 1;"),
    "a value of another type": ("--recipe examples/gated --recipe.need half", "--recipe.need .*half;"),
    "a number out of range": ("--recipe rgsd --recipe.top 0", "--recipe.top 0: expected a number from 1 to"),
    "not a number": ("--recipe dagger --recipe.beta nan", "--recipe.beta nan: expected a number from 0 to 1"),
    "no finite number": ("--recipe rvpo --recipe.last inf", "--recipe.last inf: expected a finite number"),
    "an option that is missing": ("--recipe examples/own_data", r"expected --recipe.path .*got none"),
    "an unknown name": ("--recipe gatd", r"no recipe 'gatd': \S+lab/gatd.py is no file; .* examples/gated"),
    "a file that does not exist": ("--recipe my/idea.py", "my/idea.py is no file; expected PATH.py or"),
    "no name at all": ("--recipe", "no recipe ''"),
    "an option without a recipe": ("--recipe.need 1", "no recipe ''"),
    "a file that does not run": ("--recipe {broken}", "broken.py does not run: NameError: name 'nothing'"),
    "a file without a recipe": ("--recipe {empty}", "expected one subclass of Recipe, got 0"),
    "a file with two": ("--recipe {two}", "expected one subclass of Recipe, got 2"),
    "a file that ends the process": ("--recipe {leaves}", "leaves.py does not run: SystemExit"),
    "a step that does not exist": ("--recipe {misspelt}", r"rewards is no step .*did you mean reward\?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_that_cannot_be_had_is_refused_in_one_line(
    tiny: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture, name: str
) -> None:
    """Before a policy is loaded or a folder made."""
    files = {
        "broken": "    k: float = nothing\n",
        "leaves": "    k: float = 1.0\nraise SystemExit\n",
        "two": "    k: float = 1.0\n@dataclass(frozen=True)\nclass Two(Recipe):\n    k: float = 1.0\n",
        "misspelt": "    def rewards(self, scores):\n        return scores\n",
    }
    paths = {stem: write_recipe(tmp_path / f"{stem}.py", body) for stem, body in files.items()}
    paths["empty"] = tmp_path / "empty.py"
    paths["empty"].write_text("from rar_mini.recipe import Recipe\n")
    words, expected = REFUSED[name]
    with pytest.raises(ValueError, match=expected) as error:
        trained("nowhere", questions, tmp_path / "run", *words.format(**paths).split())
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert capfd.readouterr().err == ""


def test_a_recipe_may_have_switches_and_helpers(tmp_path: Path) -> None:
    """A switch takes a value like any other option, so that a preset's True can be turned off."""
    own = write_recipe(tmp_path / "own.py", "    on: bool = True\n\n    def _help(self):\n        return 1\n")
    name = joined_recipe(["--recipe", str(own), "--recipe.on", "False"])[-1]
    assert recipe.make(name).on is False and recipe.make(str(own)).on is True
    assert recipe.located(name) == f"{own} --on False"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("learning_rate(self, step, steps):\n        return math.nan", "learning_rate is nan at step 1"),
        ("reward(self, scores):\n        return scores.rating.fill_(math.inf)", "reward is infinite"),
        ("metrics(self):\n        return {'k': True}", "field k: expected a number, got True"),
    ],
)
def test_what_a_recipe_makes_has_to_be_numbers(
    tiny: Path, questions: Path, tmp_path: Path, body: str, words: str
) -> None:
    """Else a run goes on with nothing learnt, or leaves records that nobody can read again."""
    own = write_recipe(tmp_path / "own.py", f"    def {body}\n")
    own.write_text("import math\n" + own.read_text())
    with pytest.raises(ValueError, match=words):
        trained(tiny, questions, tmp_path / "run", "--recipe", own)


def test_help_shows_a_recipes_options(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        trained("nowhere", "nothing", Path("no"), "--recipe", "examples/gated", "--recipe.help")
    assert not end.value.code and "--need FLOAT" in capsys.readouterr().out


# --- the steps, and what a resumed run has again ------------------------------------------------------------


ASKED = """
    def teach(self, *words): return super().teach(*words)
    def reply(self, *words): return super().reply(*words)
    def told(self, *words): return super().told(*words)
"""


def test_steps_are_called_in_the_order_in_which_the_class_shows_them(
    many: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users and teachers are asked only if a recipe has one, and so is a second conversation."""
    called: list[str] = []
    steps = [name for name, value in vars(Recipe).items() if callable(value) and name[0] != "_"]
    for name in steps:
        real = getattr(Recipe, name)

        def traced(self: Recipe, *words: Any, _name: str = name, _real: Callable = real, **how: Any) -> Any:
            called.append(_name)
            return _real(self, *words, **how)

        monkeypatch.setattr(Recipe, name, traced)
    own = write_recipe(tmp_path / "own.py", ASKED)
    trained(many, questions, tmp_path / "run", "--steps", 1, "--recipe", own)
    first = called.index("begin")  # before it, messages are shown to see whether they fit
    assert set(called[:first]) == {"judge", "load", "messages", "told"}
    assert [*called[:2], *dict.fromkeys(called[first:])] == steps


MOVING = """
    fall: float = 0.5

    def begin(self, step, steps):
        self.state["begun"] = self.state.get("begun", 0) + 1
        self.state.setdefault("rate", 1.0)

    def learning_rate(self, step, steps):
        return self.state["rate"] * super().learning_rate(step, steps)

    def schedule(self, step, rollouts):
        self.state["rate"] *= self.fall
        means = self.state.get("means", torch.empty(0))
        self.state["means"] = torch.cat([means, rollouts.reward.nanmean()[None]])

    def metrics(self):
        return {name: float(self.state[name]) for name in ("begun", "rate")}
"""


def cut(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run that was killed after a step, resumed."""
    shutil.copytree(run, copy)
    for later in (copy / "checkpoints").iterdir():
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    train.main(["--resume", str(copy)])
    return copy


def same_files(one: Path, other: Path) -> None:
    """Two checkpoints hold the same weights, moments and state, if the recipe has one."""
    for name in ("model.safetensors", "trainer/optimizer.pt", "trainer/recipe.pt"):
        bytes_of = [(path / name).read_bytes() if (path / name).exists() else None for path in (one, other)]
        assert bytes_of[0] == bytes_of[1], name


def test_a_killed_run_goes_on_with_the_same_state(tiny: Path, questions: Path, tmp_path: Path) -> None:
    own = write_recipe(tmp_path / "moving.py", MOVING)
    words = ("--recipe", own, "--recipe.fall", 0.25, "--steps", 4, "--warmup", 0, *SAVED)
    run = trained(tiny, questions, tmp_path / "run", *words)
    assert [row["learning_rate"] / 1e-3 for row in records(run)] == pytest.approx([1, 0.25, 0.0625, 0.25**3])
    assert [row["begun"] for row in records(run)] == [1, 2, 3, 4]
    for step in (1, 3):
        resumed = cut(run, step, tmp_path / f"cut {step}")
        assert numbers(resumed) == numbers(run)
        assert records(resumed, "rollouts") == records(run, "rollouts")
        same_files(run / "checkpoints" / "step-4", resumed / "checkpoints" / "step-4")
    state = torch.load(run / "checkpoints" / "step-4" / "trainer" / "recipe.pt")
    assert state["means"].tolist() == pytest.approx([row["reward"] for row in records(run)])


def test_a_step_that_the_judge_fails_leaves_no_trace_in_the_state(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_recipe(tmp_path / "moving.py", MOVING)
    words = ("--recipe", own, "--steps", 3)
    whole = trained(tiny, questions, tmp_path / "whole", *words, "--save-every", 3)
    ask, broken = keyword.Keyword.ask, tmp_path / "broken"

    def gone(self: keyword.Keyword, *words: Any) -> list:
        if (broken / "metrics.jsonl").exists() and len(records(broken)) == 2:
            raise ConnectionError("the server is gone")
        return ask(self, *words)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="the server is gone\n.*--resume"):
        patch.setattr(keyword.Keyword, "ask", gone)
        trained(tiny, questions, broken, *words, "--save-every", 3)
    train.main(["--resume", str(broken)])
    assert numbers(broken) == numbers(whole)
    same_files(whole / "checkpoints" / "step-3", broken / "checkpoints" / "step-3")


# --- messages that differ by rollout ------------------------------------------------------------------------

VIEWS = """
    def messages(self, example, step, g):
        shown = super().messages(example, step, g)
        return [{"role": "system", "content": "Be brief."}, shown[-1]] if g % 3 == 1 else shown
"""


@pytest.fixture
def viewed(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[int]]:
    """A run in which rollouts 1 and 4 of six are shown another prompt, and how many prompts were read."""
    read, prefill = [], sampler._prefill

    def counted(model: Any, prompts: list, *shared: list) -> list:
        read.append(len(prompts))
        return prefill(model, prompts, *shared)

    own = write_recipe(tmp_path / "views.py", VIEWS)
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "_prefill", counted)
        run = trained(tiny, questions, tmp_path / "run", "--recipe", own, "--group-size", 6)
    return run, read


def test_each_prompt_of_a_group_is_read_once_and_trained_as_it_was_sampled(
    viewed: tuple[Path, list[int]], tiny: Path
) -> None:
    run, read = viewed
    assert read == [4, 4], "two questions a step, in two views each"
    actor = policy.load(str(tiny), torch.float32, "cpu")
    for group in groups(run, 6):
        texts = [actor.tokenizer.decode(row["prompt_ids"]) for row in group]
        assert [("Be brief." in text) for text in texts] == [False, True, False] * 2
        assert len(set(texts)) == 2 and all(group[0]["prompt"] in text for text in texts)
    for row in records(run):
        assert row["sampling/sampling_logp_difference/max"] < 1e-4


def test_views_of_one_group_train_like_groups_of_their_own(
    viewed: tuple[Path, list[int]], tiny: Path
) -> None:
    """The same log-probabilities, loss and gradient, whether each view is packed with the other or alone."""
    actor = policy.load(str(tiny), torch.float32, "cpu")
    together = groups(viewed[0], 6)[:2]
    alone = [[row for row in group if (row["prompt_ids"] == p)] for group in together for p in views(group)]
    alone = [group[i : i + 2] for group in alone for i in range(0, len(group), 2)]  # six groups of two
    tokens = sum(len(row["ids"]) for group in together for row in group)
    read = sum(len(p) for group in together for p in views(group)) + tokens - 12  # the last are not read
    results = []
    for rows in (together, alone):
        (batch,) = batches(rows)
        if rows is together:
            assert len(batch.packed.ids) == read, "each view is read once"
        batch.old_logp = batch.sampler_logp
        logp, _ = grpo.token_logp(actor.model, batch, 1.0)
        loss, _ = made(None).loss(logp, batch)
        loss.backward()
        torch.testing.assert_close(logp.detach(), batch.sampler_logp, atol=1e-4, rtol=0)
        grads = [p.grad.clone() for p in actor.model.parameters()]
        actor.model.zero_grad()
        results.append((sorted(logp.tolist()), loss.item(), grads))
    (logp, loss, grads), (logp_alone, loss_alone, grads_alone) = results
    assert logp == pytest.approx(logp_alone, abs=1e-5) and loss == pytest.approx(loss_alone, abs=1e-6)
    for one, other in zip(grads, grads_alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def views(group: list[dict]) -> list[list[int]]:
    """The different prompts of a group."""
    found: list[list[int]] = []
    return [p for p in (row["prompt_ids"] for row in group) if p not in found and not found.append(p)]


def batches(rows: list[list[dict]]) -> list[grpo.MicroBatch]:
    """The packed batches of recorded rollouts, P x G, which all teach."""
    prompts = [[row["prompt_ids"] for row in group] for group in rows]
    completions = [[Completion(r["ids"], r["sampler_logp"], r["finished"]) for r in group] for group in rows]
    reward = torch.tensor([[row["reward"] for row in group] for group in rows])
    adv = torch.tensor([[row["advantage"] for row in group] for group in rows])
    rollouts = Rollouts([None] * len(rows), prompts, completions, [], None, reward, adv)
    sizes = {"max_new_tokens": 12, "tokens_per_batch": 10**6}
    return grpo.micro_batches(rollouts, grpo.teaches(rollouts), loss_norm="sequence", **sizes)


# --- rubrics that a recipe makes ----------------------------------------------------------------------------

LONGEST = """
    def rubrics(self, examples, responses):
        letters = [max(group, key=len)[:1] or "b" for group in responses]
        items = [Criterion(letter, f"Mentions {letter}.", "essential", 2.0) for letter in letters]
        return [Rubric((item, *e.rubric.criteria[:12])) for item, e in zip(items, examples)]
"""


def test_rubrics_that_a_recipe_makes_stand_whole_in_the_records_and_are_replayed(
    tiny: Path, questions: Path, tmp_path: Path, command: Command
) -> None:
    """They exist nowhere else: without them no reward could be computed again."""
    own = write_recipe(tmp_path / "own.py", LONGEST)
    own.write_text("from rar_mini.rubric import Criterion, Rubric\n" + own.read_text())
    run = trained(tiny, questions, tmp_path / "run", "--recipe", own, "--eval-every", 2)
    for row in records(run, "rollouts") + records(run, "evaluations"):
        titles = [item["title"] for item in row["verdicts"]]
        assert titles == [item["title"] for item in row["rubric"]] and row["rubric"][0]["weight"] == 2.0
        assert row["rubric"][0].keys() >= {"description", "category", "raw", "as_worded"}
    assert len({json.dumps(row["rubric"]) for row in records(run, "rollouts")}) > 1
    done = command("evaluate.py", "replay", run, "--judge", "keyword")
    assert json.loads(done.stdout.splitlines()[-1])["all"]["same"]["value"] == 1.0, done.stderr


def test_one_group_with_a_rubric_of_its_own_is_enough_to_keep_all(questions: Path) -> None:
    examples, responses = data.read(questions)[:2], [["b", "c"], ["d", "e"]]
    own = Rubric(examples[0].rubric.criteria[:1])
    recipe = SimpleNamespace(rubrics=lambda examples, responses: [own, examples[1].rubric])
    rollouts = Rollouts(examples, [], [], responses)
    train.judge(SimpleNamespace(recipe=recipe), Judge("keyword", "rar-explicit"), rollouts, Clock())
    assert rollouts.rubrics == [own, examples[1].rubric]


# --- judges made of others ----------------------------------------------------------------------------------


def test_a_wrapper_leaves_no_judge_out(questions: Path, server: Server) -> None:
    examples = data.read(questions)[:2]
    a, b = (Judge(spec, "rar-explicit", criteria_per_call="all") for spec in ("keyword", "chat:m"))
    both, turned = Wrapper(a, b), Wrapper(b, a)
    assert both.spec == "Wrapper(keyword, chat:m)" and both.calls(examples[0]) == a.calls(examples[0]) + 1
    assert both.estimate(examples, 8, 12) == b.estimate(examples, 8, 12) != ""
    assert Wrapper(b, b).estimate(examples, 8, 12) == "; ".join([b.estimate(examples, 8, 12)] * 2)
    responses = [["b", "c d"], ["", "e"]]
    assert torch.equal(both.score(examples, responses).verdict, a.score(examples, responses).verdict)
    assert both.metrics()["judge/questions"] == 2 * 4 * 15
    b.score(examples, responses)
    assert both.metrics()["judge2/questions"] == 4
    lines = [line.strip() for line in both.line().splitlines()]
    assert lines[1].startswith("chat:m: 4 questions") and lines[0].startswith("keyword: 120 questions")
    assert [line.strip() for line in turned.line().splitlines()] == lines[::-1]
    digest = both.digest(examples[0], "r")
    assert digest != both.digest(examples[1], "r") and digest != turned.digest(examples[0], "r")
    for other in (
        Wrapper(a, Judge("chat:m", "rar-explicit", threshold=0.5)),
        Wrapper(Judge("keyword", "rar-implicit"), b),
    ):
        assert other.digest(examples[0], "r") != digest
    with pytest.raises(ValueError, match="reference-likert needs a reference"):
        bare = [dataclasses.replace(examples[0], reference="")]
        Wrapper(a, Judge("chat:m", "reference-likert")).check(bare)
    both.close()


def test_wrapped_wrappers_number_their_judges_and_split_what_a_run_has_cost(tmp_path: Path) -> None:
    def fake(name: str) -> SimpleNamespace:
        paid: list = []
        return SimpleNamespace(
            spec=name,
            paid=paid,
            carry=lambda account: paid.append(account.spent()),
            metrics=lambda: {"judge/questions": name, "perf/judge/dollars": name},
            texts=lambda: {"system": name},
        )

    a, b, c, d = map(fake, "abcd")
    whole = Wrapper(Wrapper(a, b), Wrapper(c, d))
    assert whole.spec == "Wrapper(Wrapper(a, b), Wrapper(c, d))"
    names = {"judge": "a", "judge2": "b", "judge3": "c", "judge4": "d"}
    metrics = whole.metrics()
    assert metrics == {f"{judge}/questions": name for judge, name in names.items()} | {
        f"perf/{judge}/dollars": name for judge, name in names.items()
    }
    assert list(whole.texts()) == ["system", "judge2/system", "judge3/system", "judge4/system"]
    account = Account(tmp_path / "spending.jsonl")
    for number in (1, 3, 3):
        Account(account.path, number=number).put(f"{number}", 7.0)
    Account(account.path, "judge3").put("another", 0.5)
    whole.carry(account)
    assert [judge.paid for judge in (a, b, c, d)] == [[7.0], [0], [7.5], [0]]


def test_a_resumed_run_carries_the_costs_of_both_judges(
    tiny: Path, questions: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--recipe", "examples/mean_of_two", "--recipe.second", "chat:m", "--criteria-per-call", "all")
    run = trained(tiny, questions, tmp_path / "run", *words, "--steps", 1, *SAVED)
    for judge, dollars in {"judge": 0.25, "judge2": 2.0}.items():
        Account(run / "spending.jsonl", judge).put("a", dollars)
    spent, close = [], judges.Judge.close

    def closed(self: Judge) -> None:
        spent.append(self.ledger.counts["dollars"])
        close(self)

    monkeypatch.setattr(judges.Judge, "close", closed)
    train.main(["--resume", str(run), "--steps", "2", "--accept-changes"])
    assert spent == [0.25, 2.0]


# --- what every recipe keeps --------------------------------------------------------------------------------

CONTEXT = {"examples/own_data": "--path {csv}", "examples/gated": "--need 0.05"}
CONTEXT |= {"gate": "--need 0.05", "papo": "--need 0.05"}
CONTEXT |= {"c2": "--need 0"}  # the keyword judge trusts no rubric
CONTEXT |= {"pop": "--beta 1"}
CONTEXT |= {"rdpo": "--beta 1 --need 0.05", "legal_drill": "--beta 1"}
"""Options that a recipe cannot do without, or without which the tiny policy would earn or learn next to
nothing."""
SETTINGS = {"pop": ("--loss-norm", "sum"), "c2_verifier": ("--max-prompt-tokens", 4000)}
SETTINGS |= {"rdpo": ("--loss-norm", "sum"), "legal_drill": ("--loss-norm", "sum")}
SETTINGS |= {"gcpo": ("--max-prompt-tokens", 4000)}
"""Options of training without which a recipe refuses to run."""
TALKS = ("user_simulator", "dagger")
"""Recipes with a user who replies, to answers that end."""


VERDICTS = [f"\nrubric: {label}\nbetter: {n}" for label in ("helpful", "misleading") for n in "12"]
SAYS = {"c2_verifier": VERDICTS, "gcpo": [word + mark for mark in ".,;:" for word in ("yes", "no")]}
"""What a recipe rewards and no random bytes say."""


def speaking(folder: Path, ends: list[str]) -> Path:
    """A tiny policy that often says one of these: each is one token, which it likes much or not at all, and
    neighbours alike. Its window is long enough for two answers and a rubric."""
    write_tiny(folder, max_position_embeddings=4096, vocab_size=259 + len(ends))
    tokenizer, decoder = byte_tokenizer(), LlamaForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(ends)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        own = decoder.model.embed_tokens.weight[259:]
        own[:] = 8 * own[::2].repeat_interleave(2, 0)
    decoder.save_pretrained(folder)
    return folder


def advantages(own: Recipe, scores: Scores) -> Tensor:
    """What a recipe makes of scores: advantages (P, G)."""
    return rolled(own, scores).adv


ITEMS = [("essential", 1.0), ("essential", 1.0), ("important", 0.7), ("optional", 0.3), ("pitfall", 0.9)]


@pytest.fixture
def judged() -> Scores:
    """Three groups of five; of the second one response failed, of the third all but one."""
    torch.manual_seed(0)
    verdict = torch.rand(3, 5, len(ITEMS)).round(decimals=1)
    verdict[1, 2, 3] = verdict[2, 1:, 0] = NAN
    return scored(verdict, ITEMS)


@pytest.fixture(params=recipe.names())
def own(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A recipe of lab/ as a string, with the options that it needs."""
    (tmp_path / "rows.csv").write_text(CSV)
    options = CONTEXT.get(request.param, "").format(csv=tmp_path / "rows.csv")
    return f"{request.param} {options}".strip()


def test_a_recipe_says_what_it_is_and_runs_two_real_steps(
    tiny: Path, many: Path, tmp_path: Path, own: str
) -> None:
    """Nothing that the policy may not see is in a prompt; what was killed goes on with the same numbers."""
    assert recipe.sys.modules[type(made(own)).__module__].__doc__
    breaks = made(own).breaks
    assert breaks.keys() <= {"hidden", "order"} and all(breaks.values()), "each needs its reason"
    rubric = question(0)["rubric"] + [{"title": "W", "description": "Mentions a walrus.", "weight": 5}]
    rubric = rubric[-1:] if own == "gcpo" else rubric  # which shows one item at a time
    known = {"preferred": "Rest.", "worsened": "Run.", "helpful": True}  # what c2_verifier reads
    known |= {"hidden": {"user_turns": ["And then?"], "teacher_turns": ["Rest."] * 2}}  # in a conversation
    rows = [question(i, reference_answer=f"A zebra, {i} times.", rubric=rubric, **known) for i in range(4)]
    questions = write_rows(tmp_path / "questions.jsonl", rows)
    words = ("--recipe", own, *SETTINGS.get(own.split()[0], ()), *SAVED)
    start = many if own in TALKS else tiny
    if own in SAYS:
        start = speaking(tmp_path / "speaking", SAYS[own])
    run = trained(start, questions, tmp_path / "run", *words)
    actor, leaks = policy.load(str(start), torch.float32, "cpu"), []
    for row in records(run, "rollouts"):
        shown = actor.tokenizer.decode(row["prompt_ids"])
        # The records of gcpo show both answers to a question, its prompts one.
        asked = row["prompt"].partition("\n\n")[0] if own == "gcpo" else row["prompt"]
        assert asked in shown and "zebra" not in shown
        leaks.append("alrus" in shown)
    assert any(leaks) == ("hidden" in breaks), "a criterion is shown by those alone who say so"
    assert any("turns" in row for row in records(run, "rollouts")) == (own in TALKS)
    assert len(records(run)) == 2 and any(row["grad_norm"] for row in records(run))
    weights = [(run / "checkpoints" / f"step-{n}" / "model.safetensors").read_bytes() for n in (1, 2)]
    assert weights[0] != weights[1]
    resumed = cut(run, 1, tmp_path / "cut")
    assert numbers(resumed) == numbers(run)
    same_files(run / "checkpoints" / "step-2", resumed / "checkpoints" / "step-2")


@pytest.mark.parametrize("name", [name for name in recipe.names() if "/" not in name])
def test_a_recipe_after_a_paper_is_short_and_names_it(name: str) -> None:
    text = (LAB / f"{name}.py").read_text(encoding="utf-8")
    told = text.split('"""')[1]
    assert len(text.splitlines()) < 90
    assert re.search(r"arXiv \d{4}\.\d{5}\b", told) and f"--recipe {name}" in told
    assert "Ours: " in told and "What came out" in told


def test_groups_without_variance_teach_exactly_nothing(own: str) -> None:
    """Also where every verdict is 0.99, whose mean over twelve is not 0.99 in float32."""
    for value in (0.0, 0.99, 1.0):
        scores = scored(torch.full((2, 12, len(ITEMS)), value), ITEMS)
        assert torch.equal(advantages(made(own), scores), torch.zeros(2, 12))


def test_padding_and_the_order_of_criteria_change_no_advantage(own: str, judged: Scores) -> None:
    wanted = advantages(made(own), judged)
    for filler in (NAN, 0.0, 1.0):
        padded = torch.cat([judged.verdict, torch.full((3, 5, 2), filler)], -1)
        weight = torch.cat([judged.weight, torch.zeros(3, 2)], -1)
        scores = dataclasses.replace(judged, verdict=padded, weight=weight)
        torch.testing.assert_close(advantages(made(own), scores), wanted, atol=1e-6, rtol=1e-5)
    order = [4, 2, 0, 3, 1]
    turned = advantages(made(own), scored(judged.verdict[..., order], [ITEMS[k] for k in order]))
    same = torch.allclose(turned, wanted, atol=1e-6, rtol=1e-5)
    assert same == ("order" not in made(own).breaks)


def test_a_verdict_that_could_not_be_had_removes_a_rollout_and_never_scores(own: str, judged: Scores) -> None:
    reward, adv = made(own).reward(judged), advantages(made(own), judged)
    failed = judged.verdict.isnan().any(-1)
    assert torch.equal(reward.isnan(), failed)
    assert torch.equal(adv[failed], torch.zeros(5)) and adv[2, 0] == 0, "one alone teaches nothing"
    kept = [0, 1, 3, 4]  # of the second group alone: others may count in its normalisation
    group, without = (scored(judged.verdict[1:2, gs], ITEMS) for gs in (range(5), kept))
    adv = advantages(made(own), group)[0, kept]
    torch.testing.assert_close(adv, advantages(made(own), without)[0], atol=1e-6, rtol=1e-5)
    assert adv.abs().max() > 0.1 or math.isclose(reward[1, kept].std().item(), 0.0)


def test_by_default_nothing_hidden_reaches_the_messages(questions: Path) -> None:
    example = data.read(questions)[0]
    item = Criterion("Walrus", "Mentions a walrus.", "essential", 1.0)
    example = dataclasses.replace(example, reference="zebra", rubric=Rubric((item,)))
    for step in (None, 1, 9):
        shown = [made(None).messages(example, step, g) for g in range(4)]
        assert all(messages == shown[0] for messages in shown)
        assert "zebra" not in repr(shown) and "alrus" not in repr(shown) and example.question in repr(shown)


@pytest.mark.parametrize(
    ("words", "short"),
    [
        ("--domain medical", True),
        ("--domain science", True),
        ("--domain medical --answers full", False),
        ("--method sft", False),  # whole reference answers are learnt
        ("--data QUESTIONS", False),
        ("--data QUESTIONS --answers short", True),
        ("--recipe lab/examples/own_data.py --recipe.path QUESTIONS", False),
        ("--recipe lab/examples/gated.py", True),
    ],
)
def test_bundled_questions_are_asked_for_one_short_sentence(
    tiny: Path, questions: Path, tmp_path: Path, words: str, short: bool
) -> None:
    argv = words.replace("QUESTIONS", str(questions)).split()
    argv = ["--policy", str(tiny), "--judge", "keyword", "--out", str(tmp_path / "run"), *argv]
    config = setup.settle(setup.parse(argv))[0]
    example = data.read(questions)[0]
    shown = recipe.make(None, config).messages(example, 1, 0)
    assert config.answers == ("short" if short else "full")
    bounded = not any(word in words for word in ("QUESTIONS", "sft", "recipe"))
    assert config.cut_answers == ("penalise" if bounded else "train")
    asked = example.messages[-1]["content"] + prompts.SHORT_REQUEST * short
    assert shown[0]["content"] == (prompts.SHORT_SYSTEM if short else prompts.POLICY_SYSTEM)
    assert shown[1:] == [{"role": "user", "content": asked}]
    own = [{"role": "system", "content": "Be long."}, *example.messages]
    assert prompts.policy_messages(own, short=short) == own  # data that brings its own words keeps them
