"""Several gold judges watch one run: each scores the held-out answers, and none touches the reward."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
from hostile import Server
from test_train import numbers, options, records
from test_wiring import THREE, loud, scripted
from tiny import question, write_rows

from rar_mini import setup
from rar_mini.checkpoint import MANIFEST, Run
from rar_mini.config import Config
from rar_mini.judging.ledger import Account
from rar_mini.options import gathered


@dataclasses.dataclass(frozen=True)
class Watched:
    """A run of three steps under three monitors, the words that began it, and its server."""

    run: Path
    words: list[str]
    said: str
    server: Server


@pytest.fixture(scope="module")
def watched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, server = tmp_path_factory.mktemp("watched"), Server(reply=scripted)
    rows = [question(i, split="train" if i < 4 else "held_out", rubric=THREE) for i in range(6)]
    prices = folder / "prices.json"
    prices.write_text('{"n": [0, 0, 100], "o": [0, 0, 300]}')
    changes = {"judge": "chat:m", "criteria_per_call": "all", "parse_retries": 0, "max_judge_failures": 1}
    changes |= {"eval_every": 2, "eval_samples": 2, "base_url": server.url, "prices": prices, "keep": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAR_MINI_CACHE", str(folder / "cache"))
        patch.setenv("OPENAI_API_KEY", "sk-none")
        words = options(tiny, write_rows(folder / "rows.jsonl", rows), folder / "run", steps=3, **changes)
        panel = ["--gold-judge", "chat:n", "--monitor", "chat:o", "--gold-judge=keyword"]
        yield Watched(folder / "run", words, loud([*words, *panel]), server)
    server.close()


def test_each_monitor_scores_the_same_held_out_answers(watched: Watched) -> None:
    answers = {}
    for row in records(watched.run, "evaluations"):
        answers.setdefault(row["split"], []).append((row["step"], row["example_id"], row["response"]))
    names = ["held_out_gold", "held_out_gold2", "held_out_gold3"]
    assert answers.keys() >= set(names) and "train_gold" not in answers
    assert all(answers[name] == answers["held_out"] for name in names)
    last = records(watched.run)[-1]
    assert len({last[f"eval/{name}_reward"] for name in ("held_out", *names)}) == 4, "each has its own mind"
    assert watched.said.count("chat:o scores held-out answers") == 1


def test_the_panels_disagreement_is_what_its_rewards_say(watched: Watched) -> None:
    """Of each question the mean reward by each monitor; then how far each two of them are apart."""
    for line in records(watched.run):
        rewards: dict[str, dict[str, list[float]]] = {}
        for row in records(watched.run, "evaluations"):
            if row["step"] == line["step"] and "_gold" in row["split"] and row["reward"] is not None:
                rewards.setdefault(row["split"], {}).setdefault(row["example_id"], []).append(row["reward"])
        means = [{name: mean(each) for name, each in own.items()} for own in rewards.values()]
        gaps = [abs(a[q] - b[q]) for a, b in combinations(means, 2) for q in a.keys() & b.keys()]
        assert line.get("eval/gold_disagreement") == (pytest.approx(mean(gaps), abs=1e-6) if gaps else None)
        assert bool(gaps) == (line["step"] != 1)


def test_no_monitor_touches_a_reward_or_a_weight(watched: Watched, folder: Path) -> None:
    """The same run without any has the same numbers, to the last bit."""
    alone = folder / "alone"
    words = [str(alone) if word == str(watched.run) else word for word in watched.words]
    loud(words)
    ours = [{k: v for k, v in row.items() if "gold" not in k} for row in numbers(watched.run)]
    assert ours == numbers(alone) and len(ours) == 4
    assert (alone / "rollouts.jsonl").read_text() == (watched.run / "rollouts.jsonl").read_text()


def test_each_monitor_has_costs_of_its_own(watched: Watched) -> None:
    """An answer that is written costs o three times what it costs n."""
    accounts = {name: Account(watched.run / "spending.jsonl", name).spent() for name in ("gold", "gold2")}
    told = [sum(row.get(f"perf/{name}/dollars", 0.0) for row in records(watched.run)) for name in accounts]
    assert told == pytest.approx(list(accounts.values())) and 0 < 2 * told[0] < told[1]
    asked = [row.get("gold3/questions", 0) for row in records(watched.run)]
    assert asked == [12, 0, 12, 12], "three items of two answers to two questions, at each score"
    assert re.search(r"^gold2    .*\$0\.\d+", watched.said, re.M)


def test_a_watched_run_goes_on_exactly(watched: Watched, folder: Path) -> None:
    run = folder / "run"
    shutil.copytree(watched.run, run)
    loud(["--resume", str(run), "--step", "1"])
    assert numbers(run) == numbers(watched.run)
    for name in ("evaluations", "rollouts"):
        assert (run / f"{name}.jsonl").read_text() == (watched.run / f"{name}.jsonl").read_text()


def test_a_run_of_before_with_one_gold_judge_goes_on(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """Its config.json has one name, not a list; that of a run without any has null. Its checkpoints have no
    settings."""
    run = tmp_path / "run"
    loud(options(tiny, questions, run, steps=1, eval_every=1, gold_judge="keyword"))
    config = json.loads((run / "config.json").read_text())
    for before, now in ((None, ()), ("keyword", ("keyword",))):
        config["settings"]["gold_judge"] = before
        (run / "config.json").write_text(json.dumps(config))
        assert Run.reopen(run).settings().gold_judge == now
    path = run / "checkpoints" / "step-1" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k not in ("settings", "digest")}))
    loud(["--resume", str(run), "--steps", "2"])
    assert all("eval/held_out_gold_reward" in row for row in records(run))
    assert "eval/gold_disagreement" not in records(run)[-1]


def test_judges_in_a_file_give_way_to_those_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "given.toml"
    for text, named in (
        ('"keyword"', ("keyword",)),
        ('["keyword", "chat:n"]', ("keyword", "chat:n")),
        ("[]", ()),
    ):
        file.write_text(f"gold_judge = {text}\n")
        assert setup.parse(["--config", str(file)]).gold_judge == named
        assert setup.parse(["--config", str(file), "--monitor", "rules"]).gold_judge == ("rules",)


def test_an_option_that_comes_several_times_stands_once() -> None:
    words = ["--a", "1", "--g=x", "--b=c=d", "--m", "y", "z", "--c"]
    assert gathered(words, "--g", "--m") == ["--a", "1", "--b=c=d", "--c", "--g", "x", "y", "z"]
    assert gathered(words, "--other") == words


def test_an_option_with_underscores_is_the_same_option() -> None:
    """--gold_judge given twice kept the last judge alone."""
    words = ["--gold_judge", "keyword", "--monitor", "rules", "--gold_judge=chat:n"]
    assert setup.parse(words).gold_judge == ("keyword", "rules", "chat:n")
    assert gathered(["__g_h", "--g_h", "x"], "--g-h") == ["__g_h", "--g-h", "x"]


def test_a_monitor_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="--gold-judge keyword: expected each judge once, got it twice"):
        Config(gold_judge=("keyword", "rules", "keyword"))
