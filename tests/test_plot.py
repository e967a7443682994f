"""Pictures of runs, also of those that hardly began; the numbers in them, worked out by hand."""

import json
import sys
from pathlib import Path

import pytest
from conftest import Command

from rar_mini.viewing import plot

pytest.importorskip("matplotlib", reason="the picture needs the `plot` extra")
figure = pytest.importorskip("matplotlib.figure")

SETTINGS = {"policy": "tiny", "judge": "chat:a$b$", "method": "rar-explicit", "steps": 9, "seed": 0}


def step(number: int, **changes: object) -> dict:
    """A line of metrics.jsonl, as train.py writes it without --beta."""
    row = {"step": number, "reward": 0.1 * number, "reward_std": 0.1, "frac_reward_zero_std": 0.5}
    row |= {"completions/mean_length": 10 + number, "completions/min_length": 1}
    row |= {"completions/max_length": 64, "completions/clipped_ratio": 0.0, "entropy": 2.0}
    return row | {"reward_length_correlation": None, "judge/failures": 0} | changes


def answers(at: int, rewards: dict[str, float | None], split: str = "train") -> list[dict]:
    return [{"split": split, "step": at, "example_id": q, "reward": r} for q, r in rewards.items()]


def run_of(folder: Path, metrics: list[dict], evaluations: list[dict] | None = None, tail: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": SETTINGS}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics) + tail)
    if evaluations is not None:
        text = "".join(json.dumps(row) + "\n" for row in evaluations)
        (folder / "evaluations.jsonl").write_text(text)
    return folder


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is written, which takes a second."""
    monkeypatch.setattr(figure.Figure, "savefig", lambda *_, **__: None)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The panels of the last picture by their titles, gathered as it is saved, with fewer dots."""
    found: dict = {}
    save = figure.Figure.savefig

    def gather(self: object, *args: object, **options: object) -> None:
        found.clear()
        found.update({axes.get_title("left"): axes for axes in self.axes})
        save(self, *args, **options | {"dpi": 50})

    monkeypatch.setattr(figure.Figure, "savefig", gather)
    return found


BEFORE = answers(0, {"a": 0.1, "b": 0.3}) + answers(0, {"c": 0.5}, "held_out")
AFTER = answers(4, {"a": 0.3, "b": 0.7}) + answers(4, {"c": None}, "held_out")
RUNS = {
    "whole": ([{"step": 0}, *map(step, range(1, 5))], BEFORE + AFTER, ""),
    "with a penalty": ([step(i, kl=0.01) for i in range(1, 5)], BEFORE, ""),
    "one step": ([step(1)], None, ""),
    "no step yet": ([{"step": 0, "eval/train_reward": 0.2}], BEFORE, ""),
    "a judge that failed throughout": (
        [step(1, reward=None, reward_std=None, frac_reward_zero_std=None, **{"judge/failures": 8})],
        answers(0, {"a": None}),
        "",
    ),
    "half a line at the end": ([step(1), step(2)], BEFORE, '{"step": 3, "rewa'),
    "long": ([step(i) for i in range(1, 200)], BEFORE + answers(150, {"a": 0.3, "b": 0.7}), ""),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("error")
def test_every_run_has_its_picture_and_what_it_lacks_has_no_panel(
    tmp_path: Path, panels: dict, name: str
) -> None:
    metrics, evaluations, tail = RUNS[name]
    folder = run_of(tmp_path / "run", metrics, evaluations, tail)
    assert plot.draw(folder) == folder / "plot.png"
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert ("KL to the start" in panels) == (name == "with a penalty")
    assert ("Fresh answers" in panels) == (
        name in ("whole", "with a penalty", "no step yet", "long") or tail != ""
    )
    assert ("Reward" in panels) == (name not in ("no step yet", "a judge that failed throughout"))
    assert "Correlation with length" not in panels  # null in every row
    for axes in panels.values():
        assert axes.get_xlabel() and axes.get_ylabel()


@pytest.mark.usefixtures("unwritten")
def test_no_two_texts_overlap(tmp_path: Path, panels: dict) -> None:
    metrics = [step(i, kl=0.001 * i, reward_length_correlation=0.1) for i in range(1, 30)]
    plot.draw(run_of(tmp_path / "run", metrics, BEFORE + AFTER), tmp_path / "out.png")
    assert len(panels) == 11
    sheet = panels["Reward"].figure
    sheet.draw_without_rendering()  # at the sheet's own resolution, not the picture's
    texts = [sheet._suptitle, sheet._supxlabel]
    for axes in panels.values():
        texts += [axes.xaxis.label, axes.yaxis.label, axes._left_title]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            texts += [label for place, label in places if low <= place <= high]
    boxes = [text.get_window_extent() for text in texts]
    inside = sheet.bbox
    for i, box in enumerate(boxes):
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1, texts[i]
        assert not any(box.overlaps(other) for other in boxes[:i]), texts[i]


@pytest.mark.usefixtures("unwritten")
def test_scores_are_means_over_questions_and_their_change_is_paired(tmp_path: Path, panels: dict) -> None:
    """Questions a and b rise by 0.2 and 0.4; c has no score the second time, and is no part of the change."""
    before = (
        answers(0, {"a": 0.1, "b": 0.3, "c": 0.9})
        + answers(0, {"a": 0.3})
        + answers(0, {"h": 0.5}, "held_out")
    )
    after = answers(4, {"a": 0.4, "b": 0.7, "c": None}) + answers(4, {"h": 0.4}, "held_out")
    assert plot.scores(before, "train")[0] == pytest.approx({"a": 0.2, "b": 0.3, "c": 0.9})
    plot.draw(run_of(tmp_path / "run", [step(1)], before + after))
    axes = panels["Fresh answers"]
    train, held_out = axes.containers
    assert train.lines[0].get_ydata() == pytest.approx([1.4 / 3, 0.55])
    ends = [segment[:, 1] for segment in train.lines[2][0].get_segments()]
    assert ends[1] == pytest.approx([0.55 - 0.2, 0.55 + 0.2])  # two standard errors of (0.2, 0.4)
    assert train.get_label() == "training +0.300 \u00b1 0.200"
    assert held_out.lines[0].get_ydata() == pytest.approx([0.5, 0.4])


@pytest.mark.usefixtures("unwritten")
def test_the_scale_has_thin_lines_with_labels_in_the_reward_panel(tmp_path: Path, panels: dict) -> None:
    """All three where the judge gives all the same: no label may hide another."""
    first = {f"eval/train_{name}_reward": 0.3 for name in ("silence", "echo", "reference")}
    plot.draw(run_of(tmp_path / "run", [{"step": 0} | first, step(1), step(2)], BEFORE))
    axes = panels["Reward"]
    assert [text.get_text() for text in axes.texts] == ['"I do not know."', "question", "reference"]
    assert sum(list(line.get_ydata()) == [0.3, 0.3] for line in axes.lines) == 3
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes[0].x1 < boxes[1].x0 and boxes[1].x1 < boxes[2].x0
    plot.draw(run_of(tmp_path / "other", [{"step": 0}, step(1)], BEFORE))
    assert not panels["Reward"].texts, "a run from before this scale"


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.usefixtures("unwritten")
def test_few_steps_have_an_axis_of_whole_steps(tmp_path: Path, panels: dict, steps: int) -> None:
    """It began half a step below zero."""
    plot.draw(run_of(tmp_path / "run", [step(i) for i in range(1, steps + 1)], BEFORE))
    for axes in (axes for axes in panels.values() if axes.get_xlabel() == "step"):
        low, high = axes.get_xlim()
        assert -0.2 < low <= 0 and steps <= high < steps + 0.2
        shown = [place for place in axes.get_xticks() if low <= place <= high]
        assert shown == list(range(steps + 1))


def test_running_means_reach_back_and_never_ahead() -> None:
    assert plot.running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert plot.running_mean([1, 2], 20) == [1, 1.5]


def test_the_command_says_where_the_picture_is_or_why_there_is_none(tmp_path: Path, command: Command) -> None:
    folder = run_of(tmp_path / "run", [step(1)])
    done = command("rar_mini/viewing/plot.py", folder, "--out", tmp_path / "curves.png")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    (tmp_path / "empty").mkdir()
    done = command("rar_mini/viewing/plot.py", tmp_path / "empty")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"python -m rar_mini.viewing.plot: {tmp_path / 'empty'} is no run: expected a readable config.json"
    )


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of(tmp_path / "run", [])
    for path, words in ((tmp_path / "none", "is no run"), (folder / "config.json", "is no run")):
        with pytest.raises(ValueError, match=words):
            plot.draw(path)
    with pytest.raises(ValueError, match="nothing to draw yet"):
        plot.draw(folder)
    (folder / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: expected a JSON object with step"):
        plot.draw(folder)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"needs matplotlib .*pip install -e '.\[plot\]'"):
        plot.draw(folder)
