"""The page of a run: what is in its data, by hand; which answers a long run keeps; and that nothing that a
model wrote can leave the data. tests/test_page_browser.py opens it."""

import base64
import gzip
import hashlib
import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from page_runs import (
    HOSTILE,
    REPLAYED,
    SETTINGS,
    choice_rows,
    evaluation,
    health_rows,
    metric,
    rollout,
    scored_rows,
    step_rows,
    write_lines,
    write_run,
)

from rar_mini.data import Example
from rar_mini.forms import printable
from rar_mini.rubric import Criterion, Rubric
from rar_mini.sampler import Completion
from rar_mini.scores import NAN, Rollouts, Scores
from rar_mini.viewing import page, page_data

ROOM = 1e6
LIBRARY = "window.Plotly = {};"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def source(path: Path, room: float = ROOM, given: Path | None = None) -> dict[str, Any]:
    (found,) = page_data.read(path, room, given)
    return found


def unpacked(text: str) -> dict[str, Any]:
    """The data in a page."""
    packed = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', text, re.S)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def moves(found: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The tallies of a set's items, by question and title."""
    rows = ((row, found["items"][row["item"]]) for row in found["moves"] if row["set"] == name)
    return {f"{found['questions'][item['q']]['id']}: {item['title']}": row for row, item in rows}


# --- what a run's data hold ---------------------------------------------------------------------------------


def test_every_answer_has_its_question_items_and_verdicts(run: Path) -> None:
    found = source(run)
    groups = [group for group in found["groups"] if group["set"] == "rollouts"]
    assert [(g["step"], found["questions"][g["q"]]["text"]) for g in groups[:2]] == [
        (1, "What is a?"),
        (1, "What is b?"),
    ]
    last = groups[-1]
    assert [found["items"][n]["title"] for n in last["items"]] == ["Names it", "Says why", "No harm"]
    assert last["answers"][1] == {
        "text": "b at 3",
        "reward": round(1.9 / 2.6, 4),
        "advantage": 0.5,
        "tokens": 13,
        "finished": True,
        "verdicts": [1.0, 0.0, 1.0],
    }
    assert found["metrics"]["reward"] == pytest.approx([0.1, 0.2, 0.3])
    assert found["dots"][0][:2] == [1, 11] and found["dots_of"] == 12
    assert found["cost"] == {
        "seconds": {"sample": 6.0, "judge": 1.5, "train": 3.0},
        "dollars": 0.75,
        "questions": 36,
    }


def test_items_that_moved_or_are_dead_or_on_which_judges_part(run: Path) -> None:
    found = source(run)
    trained, fresh = moves(found, "rollouts"), moves(found, "held_out")
    assert trained["a: Names it"]["first"] == [1, 0.0, 2] and trained["a: Names it"]["last"] == [3, 1.0, 2]
    assert (trained["a: Says why"]["met"], trained["a: Says why"]["of"]) == (0, 6)
    assert (trained["b: No harm"]["met"], trained["b: No harm"]["of"]) == (6, 6)
    parted = {name: (row["parted"], row["compared"]) for name, row in fresh.items()}
    assert parted["h: Names it"] == (1, 1) and parted["i: No harm"] == (1, 1)
    assert "i: Names it" in parted and parted["i: Names it"] == (0, 1)


def test_every_monitor_is_compared_with_the_judge(tmp_path: Path) -> None:
    """The second one's name is held_out_gold2."""
    judged = evaluation(0, "held_out", {"h": (1, 0, 1)}) + evaluation(0, "held_out_gold", {"h": (1, 0, 1)})
    judged += evaluation(0, "held_out_gold2", {"h": (0, 0, 1)})
    found = source(write_run(tmp_path / "run", evaluations=judged))
    row = moves(found, "held_out")["h: Names it"]
    assert (row["parted"], row["compared"]) == (1, 2)


def test_scores_are_paired_over_questions(run: Path) -> None:
    first, last = [row for row in source(run)["scores"] if row["split"] == "held_out"]
    assert first["mean"] == pytest.approx((0.9 + 1.9) / 2.6 / 2, abs=1e-6)
    assert last["change"] == pytest.approx((1.0 + 0.7) / 2.6 / 2, abs=1e-6) and last["questions"] == 2


def test_items_say_what_the_judge_was_asked(tmp_path: Path) -> None:
    """A pitfall is asked about otherwise than an essential item, a rule is not asked at all, and the run's
    own words count."""
    row = {"id": "a", "question": "What is a?", "reference_answer": "It is a."}
    checked = {"title": "Says why", "description": "Important Criteria: Says why.", "weight": 3}
    row["rubric"] = [
        {"title": "Names it", "description": "Essential Criteria: Names a.", "weight": 5},
        checked | {"check": {"contains": "because"}},
        {"title": "No harm", "description": "Pitfall Criteria: Does harm.", "weight": -1},
    ]
    data = write_lines(tmp_path / "data.jsonl", [row])
    rows = [rollout(1, "a", (1, 1, 1)), rollout(1, "a", (0, 1, 1))]
    rows[0]["verdicts"][1]["checked"] = rows[1]["verdicts"][1]["checked"] = True
    run = write_run(tmp_path / "run", 1, {"data": str(data)}, rollouts=rows, evaluations=[])
    written = json.loads((run / "config.json").read_text())
    written["judge_texts"] = {"avoided": "AVOIDED? {criterion}"}
    (run / "config.json").write_text(json.dumps(written))
    asks = {item["title"]: item["asks"] for item in source(run)["items"]}
    assert asks["Names it"].endswith("Names a.") and asks["No harm"] == "AVOIDED? Does harm."
    assert asks["Says why"].startswith("A rule decides") and "because" in asks["Says why"]
    assert source(run)["questions"][0]["reference"] == "It is a."
    data.unlink()
    assert "what the items ask is not known" in source(run)["explained"]


def test_rubrics_of_a_recipe_stand_in_the_rows_and_no_recipe_is_run(tmp_path: Path) -> None:
    """A run's folder may come from anybody, and names a file of Python."""
    bomb = tmp_path / "bomb.py"
    bomb.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    rubric = [{"title": "Names it", "description": "Made for this group"}, {}, {}]
    rows = step_rows(1, rubric=rubric)
    run = write_run(tmp_path / "run", 1, {"recipe": str(bomb)}, rollouts=rows, evaluations=[])
    assert source(run)["items"][0]["text"] == "Made for this group"
    assert not (tmp_path / "ran").exists()


def test_a_run_of_before_and_one_that_hardly_began_have_a_page(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", 1)
    (old / "config.json").write_text(json.dumps({"settings": {"seed": 0, "method": "rar-explicit"}}))
    assert source(old)["cost"]["dollars"] == 0.25
    young = write_run(tmp_path / "young", 1)
    for name in ("metrics", "rollouts", "evaluations"):
        (young / f"{name}.jsonl").unlink()
    found = source(young)
    assert found["groups"] == [] and found["metrics"] == {} and found["sample"]["rollouts"]["of"] == 0


def test_a_judge_that_failed_leaves_no_verdict(tmp_path: Path) -> None:
    rows = [rollout(1, "a", (None, 0, 1)), rollout(1, "a", (1, 0, 1)), rollout(1, "a", (1, 0, 1))]
    found = source(write_run(tmp_path / "run", 1, {"group_size": 3}, rollouts=rows, evaluations=[]))
    failed = found["groups"][0]["answers"][0]
    assert failed["verdicts"][0] is None and "reward" not in failed
    assert moves(found, "rollouts")["a: Names it"]["of"] == 2


def test_settings_differ_where_runs_do_and_a_setting_of_today_is_no_difference(tmp_path: Path) -> None:
    """A run of before did what the default says."""
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", settings={"lr": 0.5, "beta": 0.0})]
    shown = page.gather(runs)
    assert shown["differences"] == [["lr", 0.001, 0.5]]


# --- which answers a long run keeps -------------------------------------------------------------------------


def steps_kept(run: Path, room: float) -> list[int]:
    found = source(run, room)
    return sorted({group["step"] for group in found["groups"] if group["set"] == "rollouts"})


def test_a_long_run_keeps_whole_steps_evenly_and_its_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 30, evaluations=[])
    step = len(json.dumps(source(run)["groups"][:2])) - 2
    assert steps_kept(run, float("inf")) == list(range(1, 31))
    assert steps_kept(run, 31 * step) == list(range(1, 31))
    assert steps_kept(run, 9.5 * step) == [1, 5, 9, 13, 17, 21, 25, 29, 30]
    assert steps_kept(run, 0) == [1, 30]
    found = source(run, 9.5 * step)
    assert found["sample"]["rollouts"] == {"kept": 18, "of": 60, "every": 4}
    assert found["moves"][0]["of"] == 60, "items count every answer"


def test_questions_and_items_that_no_kept_group_names_are_left_out(tmp_path: Path) -> None:
    rows = [rollout(n, f"q{n}", (0, 0, 0)) for n in range(1, 21)]  # one answer each: no item moves or is dead
    run = write_run(tmp_path / "run", 20, {"group_size": 1}, rollouts=rows, evaluations=[])
    found = source(run, 0)
    assert [question["id"] for question in found["questions"]] == ["q1", "q20"]
    assert len(found["items"]) == 6


def test_a_list_that_is_cut_says_of_how_many(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no answer meets and what every one does are two lists: neither takes the other's places."""
    monkeypatch.setattr(page_data, "LISTED", 1)
    found = source(run)
    listed = moves(found, "rollouts")
    assert found["counted"] == {"moved": 4, "never": 3, "always": 5, "parted": 2}
    assert [row["of"] for row in listed.values() if row["met"] == 0] == [6]
    assert [row["of"] for row in listed.values() if row["met"] == row["of"]] == [6]


# --- the page -----------------------------------------------------------------------------------------------


def hostile(tmp_path: Path) -> Path:
    rows = [rollout(1, HOSTILE, (1, 0, 1), prompt=HOSTILE, response=HOSTILE) for _ in range(2)]
    for row in rows:
        row["verdicts"][0] |= {"title": HOSTILE, "category": HOSTILE}
    metrics = [metric(1, **{HOSTILE: 1.0})]
    alarms = [{"step": 1, "alarm": HOSTILE, "says": HOSTILE}]
    settings = {"judge": HOSTILE, "group_size": 2}
    records = {"rollouts": rows, "metrics": metrics, "alarms": alarms, "evaluations": []}
    return write_run(tmp_path / "<b>&run", 1, settings, **records)


def test_foreign_text_is_in_the_data_alone_and_as_it_was(tmp_path: Path) -> None:
    text = page.compose(page.gather([hostile(tmp_path)]), LIBRARY)
    assert not [word for word in ("hacked", "<b>&run", "onerror") if word in text]
    found = unpacked(text)["sources"][0]
    assert found["groups"][0]["answers"][0]["text"] == HOSTILE and found["name"] == "<b>&run"


def test_the_policy_allows_the_pages_own_scripts_and_style_alone(run: Path) -> None:
    text = page.compose(page.gather([run]), LIBRARY)
    policy = html.unescape(re.search(r'"Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    def allowed(part: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"

    scripts, styles = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("script", "style"))
    assert len(scripts) == 2 and len(styles) == 1
    assert rules["script-src"].split() == [allowed(script) for script in scripts]
    assert rules["style-src"].split() == [allowed(styles[0]), allowed("")]  # plotly's own is empty at first
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert text.index("Content-Security-Policy") < text.index("<style")
    assert not re.search(r"https?:|\bsrc=|\son\w+=| style=", text.replace(scripts[1], ""))


def test_the_script_has_no_way_to_make_markup_of_text() -> None:
    files = [Path(page.__file__).with_name(name) for name in page.SCRIPTS]
    script = "".join(file.read_text(encoding="utf-8") for file in files)
    ways = "innerHTML outerHTML insertAdjacent document.write DOMParser eval( Function( setHTML srcdoc"
    assert not [way for way in ways.split() if way in script]
    assert "</script" not in script and "<!--" not in script


def test_the_same_run_has_the_same_page(run: Path) -> None:
    first, second = (page.compose(page.gather([run]), LIBRARY) for _ in range(2))
    assert first == second


# --- in a notebook ------------------------------------------------------------------------------------------


class Cell(HTMLParser):
    """What an HTML parser finds in a cell's output: elements with their attributes, and text."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(shown)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def document(self) -> str:
        """The page in the frame."""
        return self.elements[0][1]["srcdoc"]


def test_a_hostile_answer_leaves_neither_the_frame_nor_the_text(tmp_path: Path) -> None:
    cell = Cell(page.inline(hostile(tmp_path)).html)
    assert [tag for tag, _ in cell.elements] == ["iframe", "details", "summary", "pre"]
    frame, *others = (attributes for _, attributes in cell.elements)
    assert frame.keys() == {"title", "sandbox", "width", "height", "style", "srcdoc"} and not any(others)
    assert frame["sandbox"] == "allow-scripts", "with the notebook's origin it could act in the notebook"
    assert "hacked" not in cell.document and cell.document.count("<script") == 3
    assert unpacked(cell.document)["sources"][0]["groups"][0]["answers"][0]["text"] == HOSTILE
    assert printable(HOSTILE) in cell.text and "\u202e" not in cell.text


def test_a_frame_holds_the_asked_group_alone_and_no_plotly(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    shown = page.inline(str(run), step=2, question="b")
    data = unpacked(Cell(shown.html).document)
    (group,) = data["sources"][0]["groups"]
    assert [answer["text"] for answer in group["answers"]] == ["b at 2"] * 2
    assert [each["id"] for each in data["sources"][0]["questions"]] == ["b"]
    assert len(data["sources"][0]["items"]) == 3
    assert len(shown.html) < 150_000
    assert page.inline(write_run(tmp_path / "other"), 2, "b").html == shown.html, "no folder, no clock"


def test_where_no_frame_is_shown_rewards_and_verdicts_are_text(tmp_path: Path) -> None:
    rows = [rollout(1, "a", (0.25, 0, 1)), rollout(1, "a", (None, 0, 1))]
    shown = page.inline(write_run(tmp_path / "run", 1, rollouts=rows, evaluations=[]))
    assert repr(shown).splitlines() == [
        "a, step 1",
        "reward                            0.442      ?",
        "advantage                         +0.50  +0.50",
        "Names it (essential, weight 1)     0.25      ?",
        "Says why (important, weight 0.7)      0      0",
        "No harm (pitfall, weight 0.9)         1      1",
    ]
    assert repr(shown) in Cell(shown.html).text


def test_all_groups_of_the_last_step_unless_others_are_asked_for(run: Path) -> None:
    tables = repr(page.inline(run)).split("\n\n")
    assert [table.splitlines()[0] for table in tables] == ["a, step 3", "b, step 3"]
    with pytest.raises(ValueError, match="no question 'c' in this step: expected one of 'a', 'b'"):
        page.inline(run, question="c")
    with pytest.raises(ValueError, match="has no step 9: expected one from 1 to 3"):
        page.inline(run, 9)


def test_rollouts_that_no_run_has_written_have_a_frame() -> None:
    rubric = Rubric([Criterion(title, f"{title}?", "essential", 1.0) for title in ("Names it", "Says why")])
    asked = ({"role": "user", "content": "What is a?"},)
    example = Example("a", "train", asked, "It is a.", rubric, {})
    verdict, none = torch.tensor([[[1.0, 0.0], [0.0, NAN]]]), torch.full((1, 2), NAN)
    scores = Scores(verdict, torch.ones(1, 2), none, [rubric])
    completions, responses = [[Completion([5], [-0.5], True)] * 2], [["one", "two"]]
    rollouts = Rollouts([example], [[[1]] * 2], completions, responses, scores)
    rollouts.reward, rollouts.adv = torch.tensor([[0.5, NAN]]), torch.zeros(1, 2)
    shown = unpacked(Cell(page.inline(rollouts, step=4).html).document)["sources"][0]
    (group,) = shown["groups"]
    assert group["step"] == 4 and [each["text"] for each in group["answers"]] == ["one", "two"]
    assert group["answers"][1]["verdicts"] == [0.0, None] and "reward" not in group["answers"][1]
    assert [item["text"] for item in shown["items"]] == ["Names it?", "Says why?"]
    assert shown["questions"][0]["reference"] == "It is a." and rollouts.rubrics is None


# --- files of evaluations -----------------------------------------------------------------------------------


def test_rows_of_healthbench_have_items_by_axis_and_questions_by_theme(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "healthbench.jsonl", health_rows())
    asked = {"prompt_id": "p1", "prompt": [{"role": "user", "content": "My chest hurts."}]}
    data = write_lines(tmp_path / "data.jsonl", [asked | {"rubrics": [{"criterion": "x", "points": 1}]}])
    found = source(file, given=data)
    assert found["kind"] == "healthbench" and found["table"]["axes.axis:accuracy"] == 1.0
    assert [item["category"] for item in found["items"][:2]] == ["accuracy", "communication"]
    question = found["questions"][0]
    assert question["tags"] == ["theme:emergency"] and question["text"] == "My chest hurts."
    assert found["groups"][0]["answers"][0]["reward"] == 1.0
    failed = write_lines(tmp_path / "failed.jsonl", health_rows(None))
    assert "reward" not in source(failed)["groups"][0]["answers"][0]


def test_rows_of_gpqa_are_groups_of_a_questions_runs(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "gpqa.jsonl", choice_rows())
    data = tmp_path / "questions.jsonl"
    write_lines(data, [{"id": "g", "question": "Which letter?", "choices": ["x", "y"], "answer": 0}])
    (tmp_path / "gpqa.json").write_text(json.dumps({"policy": "tiny", "data": str(data), "score": 0.5}))
    found = source(file)
    assert found["questions"][0]["text"] == "Which letter?" and found["about"]["policy"] == "tiny"
    (group,) = found["groups"]
    assert [answer["verdicts"] for answer in group["answers"]] == [[1.0], [0.0]]
    assert group["answers"][1]["note"] == "run 2, means A, right is B"


def test_an_interval_that_is_none_is_left_out(tmp_path: Path) -> None:
    """One run has no interval over runs, and rows that all failed have no score: JSON has no NaN."""
    files = write_lines(tmp_path / "gpqa.jsonl", choice_rows()[:1]), tmp_path / "healthbench.jsonl"
    write_lines(files[1], health_rows(None))
    one, failed = unpacked(page.compose(page.gather(files), LIBRARY))["sources"]
    assert one["table"]["score"] == 1.0 and one["table"]["low"] is None and failed["table"]["score"] is None


def test_scored_files_find_their_answers_again(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "scores.jsonl", scored_rows())
    rubric = [{"title": "Names it", "description": "Essential Criteria: Names a.", "weight": 5}]
    asked = {"id": "a", "question": "What is a?", "rubric": rubric}
    answered = write_lines(tmp_path / "in.jsonl", [asked | {"response": text} for text in ("one", "two")])
    (group,) = source(file, given=answered)["groups"]
    assert [answer["text"] for answer in group["answers"]] == ["one", "two"]
    assert source(file)["groups"][0]["answers"][0].get("text") is None
    assert source(file)["table"] == {"mean reward": pytest.approx(1.9 / 2.6), "rows": 2, "failed": 1}


def test_what_replay_prints_has_curves(tmp_path: Path) -> None:
    printed = tmp_path / "replay.txt"
    printed.write_text("judge     keyword\n\nasked     12\n" + json.dumps(REPLAYED) + "\n")
    found = source(printed)
    assert found["metrics"]["step"] == [2, 4] and found["metrics"]["replay/rejected"] == [0.1, None]
    assert found["table"]["second"] == 0.4 and found["about"] == {"judge": "keyword", "after": "rules"}


def test_a_folder_has_a_run_and_the_evaluations_in_it(run: Path) -> None:
    write_lines(run / "gpqa.jsonl", choice_rows())
    assert [found["kind"] for found in page_data.read(run, ROOM)] == ["run", "gpqa"]


def test_a_run_and_the_evaluations_in_its_folder_share_the_room(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each had as much as the whole folder should have."""
    for name, rows in (("gpqa", choice_rows()), ("healthbench", health_rows())):
        write_lines(run / f"{name}.jsonl", rows)
    assert page_data.count(run) == len(list(page_data.read(run, ROOM))) == 3
    rooms = []
    monkeypatch.setattr(page_data, "read", lambda path, room, given: rooms.append(room) or ())
    page.gather([run, run / "gpqa.jsonl"])
    assert rooms == [page.ROOM / 4] * 2


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "library", lambda: LIBRARY)


def test_watching_writes_anew_at_every_step_until_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    """The page is there at once, is not written while nothing happens, and ends with the run."""
    run = write_run(tmp_path / "run", 1, {"steps": 3}, evaluations=[])
    out, pauses, seen = tmp_path / "page.html", [], []

    def go_on(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) % 2 == 0:  # every second look finds nothing new
            step = len(pauses) // 2 + 1
            write_lines(run / "rollouts.jsonl", step_rows(step), "a")
            write_lines(run / "metrics.jsonl", [metric(step)], "a")

    monkeypatch.setattr(page.time, "sleep", go_on)
    for _ in page.watch([run], out, None, False):
        seen.append(unpacked(out.read_text())["sources"][0]["metrics"]["step"])
    assert seen == [[1], [1, 2], [1, 2, 3]] and len(pauses) == 4


def test_the_command_refuses_what_it_cannot_show(tmp_path: Path, command: Command, run: Path) -> None:
    pytest.importorskip("plotly", reason="the page needs the extra `page`")
    (tmp_path / "empty").mkdir()
    other = write_lines(tmp_path / "other.jsonl", [{"a": 1}])
    page_file = "rar_mini/viewing/page.py"
    for words, said in (
        (["nowhere"], "cannot read nowhere: expected a run's folder or a file"),
        ([tmp_path / "empty"], "is no run: expected a readable config.json"),
        ([other], "expected a run's folder, rows of evaluate.py healthbench"),
        ([other, "--out", other], "is a file that is read: expected another one"),
    ):
        done = command(page_file, *words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    done = command(page_file, run, "--out", tmp_path / "page.html")
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'page.html'}  ")
    assert len((tmp_path / "page.html").read_bytes()) < 6e6


def test_without_plotly_the_command_says_what_to_install(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = command("rar_mini/viewing/page.py", run)
    assert "a page needs plotly" in done.stderr and "pip install -e '.[page]'" in done.stderr


def test_every_setting_of_the_tests_run_is_one(tmp_path: Path) -> None:
    """Else `described` would not fill in what a run of before did not know."""
    about = source(write_run(tmp_path / "run", 1))["about"]
    assert about["design.pitfalls"] == "avoided" and SETTINGS["lr"] == about["lr"]
