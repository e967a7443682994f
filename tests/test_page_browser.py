"""The page in a real browser: what a reader sees and does, what hostile answers cannot do, how long it takes.

Needs playwright and Chromium or Chrome: `pip install -e '.[browser]'`, then `apt-get install chromium`, or
`playwright install chromium` where that may download a browser. Nothing is installed from here.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_runs import (
    HOSTILE,
    REPLAYED,
    choice_rows,
    health_rows,
    metric,
    rollout,
    write_lines,
    write_run,
)

from rar_mini.viewing import page

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
pytest.importorskip("plotly", reason="pip install -e '.[browser]'")
pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root otherwise
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=QUIET + sandbox)
        except playwright.Error as error:
            if path:
                raise
            pytest.skip(f"no browser: apt-get install chromium, or playwright install chromium ({error})")
        yield browser
        browser.close()


def listen(tab: Any, faults: list[str]) -> None:
    """Write down what a tab complains of, and what it asks of a network."""
    tab.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url)
    )


Opened = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    """`opened(RUN...)` writes a page and opens it. Nothing may be asked of a network, and no error said."""
    contexts, faults = [], []

    def read(*paths: Path, width: int = 1400, scheme: str = "light", data: Path | None = None) -> Any:
        out = tmp_path / "page.html"
        page.write(paths, out, data, False)
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        read.session = contexts[-1].new_cdp_session(tab)
        read.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        listen(tab, faults)
        tab.goto(out.as_uri())
        tab.wait_for_selector("#settings")
        return tab

    read.faults = faults
    yield read
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("page") / "run")


def choose(tab: Any, label: str, value: str, section: str = "answers") -> None:
    tab.locator(f"#{section}").get_by_role("combobox", name=label, exact=True).select_option(value)


def cells(tab: Any, selector: str) -> list[list[str]]:
    """The texts of a table's cells, row by row."""
    rows = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return tab.locator(f"{selector} tbody tr").evaluate_all(rows)


def count(tab: Any) -> str:
    tab.wait_for_timeout(200)  # filters wait until typing has ended
    return tab.inner_text("#answers .count")


# --- safety -------------------------------------------------------------------------------------------------


def test_hostile_answers_names_and_items_are_text(opened: Opened, tmp_path: Path) -> None:
    rows = [rollout(n, HOSTILE, (v, 0, 1), prompt=HOSTILE, response=HOSTILE) for n in (1, 2) for v in (0, 1)]
    for row in rows:
        row["verdicts"][0] |= {"title": HOSTILE, "category": HOSTILE}
    alarms = [{"step": 1, "alarm": HOSTILE, "says": HOSTILE}]
    records = {"rollouts": rows, "metrics": [metric(1, **{HOSTILE: 1.0}), metric(2)], "alarms": alarms}
    hostile = write_run(tmp_path / "<b>%{x}run", 2, {"judge": HOSTILE}, evaluations=[], **records)
    tab = opened(hostile, write_run(tmp_path / "other"))
    choose(tab, "Metrics", "all", "curves")
    tab.locator("#curves figure", has_text="window.hacked").locator(
        ".js-plotly-plot"
    ).scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img, iframe, object").count() == 0 and tab.locator("script").count() == 3
    answer = tab.locator("#answers .reading .text").first.evaluate("e => e.textContent")
    assert answer == HOSTILE
    # Plotly reads some tags in its texts: a run's name is none of its business.
    box = tab.locator("#curves .js-plotly-plot").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.locator("#curves .hoverlayer text").first.wait_for(state="attached", timeout=5000)
    assert "<b>%{x}run" in "".join(tab.locator("#curves .hoverlayer").all_text_contents())


def test_a_script_that_gets_into_the_page_is_not_run(opened: Opened, run: Path) -> None:
    """The policy holds, also if an escape were forgotten one day."""
    tab = opened(run)
    tab.evaluate("""() => { const s = document.createElement("script"); s.textContent = "window.hacked = 1";
        document.body.append(s);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 2'>"); }""")
    tab.wait_for_timeout(300)
    assert tab.evaluate("window.hacked") is None
    assert len(opened.faults) == 3  # the script, the picture and its handler
    assert all("Content Security Policy" in fault for fault in opened.faults)
    opened.faults.clear()


def test_a_frame_in_a_notebook_shows_a_group_and_reaches_nothing_else(chromium: Any, tmp_path: Path) -> None:
    rows = [rollout(1, HOSTILE, (v, 0, 1), prompt=HOSTILE, response=f"{v} {HOSTILE}") for v in (0, 1)]
    run = write_run(tmp_path / "run", 1, rollouts=rows, evaluations=[])
    cell = tmp_path / "cell.html"
    cell.write_text(f"<!doctype html><meta charset=utf-8>{page.inline(run).html}")
    tab, faults = chromium.new_page(viewport={"width": 900, "height": 800}), []
    listen(tab, faults)
    tab.goto(cell.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator(".matrix tbody tr").nth(1).wait_for()
    found = frame.locator(".matrix tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
    )
    assert found == [["1", "0", "1"], ["0", "0", "1"]]  # the best one first
    frame.locator(".matrix .answer").nth(1).click()
    assert frame.locator(".reading .text").evaluate("e => e.textContent") == f"0 {HOSTILE}"
    assert frame.locator("section").count() == 1 and frame.locator("header, nav, form, .link").count() == 0
    assert [each.evaluate("window.hacked") for each in tab.frames] == [None, None]
    assert tab.evaluate("document.querySelector('iframe').contentDocument") is None
    tab.close()
    assert faults == []


# --- what a reader sees and does ----------------------------------------------------------------------------


def test_a_row_of_the_matrix_shows_its_answer_and_what_its_items_ask(opened: Opened, run: Path) -> None:
    tab = opened(run)
    choose(tab, "Answers", "rollouts")
    count(tab)
    tab.locator("#answers .entry", has_text="step 2").first.click()
    assert [row[1:] for row in cells(tab, ".matrix")] == [["1", "0", "1"], ["0", "0", "1"]]
    widths = [head.bounding_box()["width"] for head in tab.locator(".matrix thead th").all()]
    assert widths[0] > widths[2] > widths[1]  # weights 1.0, 0.9 and 0.7
    reading = tab.locator("#answers .reading")
    assert "reward 0.731" in reading.inner_text() and "a at 2" in reading.inner_text()
    tab.locator(".matrix .answer").first.press("ArrowDown")
    assert "reward 0.346" in reading.inner_text()
    assert tab.evaluate("document.activeElement.closest('tr').className") == "chosen"


def test_filters_leave_the_groups_and_answers_that_fit(opened: Opened, run: Path) -> None:
    tab = opened(run)
    assert count(tab) == "12 of 12 groups on this page, 18 answers"
    choose(tab, "Answers", "rollouts")
    assert count(tab) == "6 of 12 groups on this page, 12 answers"
    choose(tab, "Category", "essential")
    choose(tab, "Verdict", "met")
    assert count(tab) == "4 of 12 groups on this page, 4 answers"
    assert tab.locator(".matrix tr.dim").count() == 1
    tab.get_by_label("Steps from").fill("3")
    assert count(tab) == "2 of 12 groups on this page, 2 answers"
    tab.get_by_label("Text").fill("B AT 3")
    assert count(tab) == "1 of 12 groups on this page, 1 answer"
    tab.reload()
    tab.wait_for_selector("#settings")
    assert count(tab) == "1 of 12 groups on this page, 1 answer", "the address keeps the filters"
    choose(tab, "Advantage", "below")
    assert count(tab).startswith("0 of") and "No answer fits" in tab.inner_text("#answers")


def test_before_and_after_stand_side_by_side(opened: Opened, run: Path) -> None:
    tab = opened(run)
    choose(
        tab, "Question", tab.locator("#compare option", has_text="h").first.get_attribute("value"), "compare"
    )
    sides = tab.locator("#compare .two > div").all()
    assert "h at 0" in sides[0].inner_text() and "h at 3" in sides[1].inner_text()
    changes = {row[0]: row[-1] for row in cells(tab, "#compare")}
    assert changes == {"Names it": "+1.00", "Says why": "+0.00", "No harm": "+0.00"}


def test_items_are_listed_by_what_is_wrong_with_them(opened: Opened, run: Path) -> None:
    tab = opened(run)
    choose(tab, "Items", "never", "items")
    assert {row[0] for row in cells(tab, "#items")} == {"Says why"}
    choose(tab, "Items", "parted", "items")
    assert sorted(row[0] + row[-1] for row in cells(tab, "#items")) == ["Names it1 of 1", "No harm1 of 1"]


def test_runs_are_laid_over_each_other_and_zoom_together(opened: Opened, tmp_path: Path, run: Path) -> None:
    tab = opened(run, write_run(tmp_path / "second", settings={"lr": 0.5}))
    tab.wait_for_selector("#curves .js-plotly-plot")
    figures = "[...document.querySelectorAll('#curves .js-plotly-plot')]"
    names = f"{figures}.map(e => new Set(e.data.map(t => t.line?.color || t.marker.color)).size)"
    assert set(tab.evaluate(names)) == {2}
    tab.evaluate(f"Plotly.relayout({figures}[0], {{'xaxis.range': [1, 2]}})")
    tab.wait_for_timeout(300)
    assert tab.evaluate(f"{figures}.every(e => e.layout.xaxis.range.join() === '1,2')")
    tab.locator("#curves input[type=checkbox]").first.uncheck()
    tab.wait_for_timeout(500)
    assert set(tab.evaluate(names)) == {1}
    assert "lr" in tab.inner_text("#settings tbody") and "0.5" in tab.inner_text("#settings tbody")


def test_evaluations_of_two_policies_scored_files_and_a_replay(opened: Opened, tmp_path: Path) -> None:
    for name, verdict in (("first", 1.0), ("second", 0.0)):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "healthbench.jsonl", health_rows(verdict))
    write_lines(tmp_path / "gpqa.jsonl", choice_rows())
    (tmp_path / "replay.txt").write_text(json.dumps(REPLAYED))
    files = [tmp_path / name for name in ("first", "second", "gpqa.jsonl", "replay.txt")]
    tab = opened(*files)
    assert "axis:accuracy" in tab.inner_text("#overview")
    heads = tab.locator("#compare h3").all_inner_texts()
    assert "first" in heads[0] and "second" in heads[1]
    assert "−1.00" in tab.inner_text("#compare tbody")
    assert tab.locator("#curves figure").count() == 3
    choose(tab, "Answers", "gpqa")
    assert count(tab).startswith("1 of")
    tab.locator(".matrix .answer").last.click()
    assert "means A, right is B" in tab.inner_text("#answers .reading")


# --- size, light and dark, wide and narrow ------------------------------------------------------------------


def long_run(folder: Path) -> Path:
    """300 steps of 6 questions with 16 answers of some 1,500 characters and 10 items each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=240)) for _ in range(700)]
    titles = [" ".join(rng.choices(words, k=3)) for _ in range(10)]

    def rows() -> Iterator[dict[str, Any]]:
        for place in range(300 * 96):
            step, question = place // 96 + 1, place // 16 % 400
            verdicts = [float(rng.random() < 0.5) for _ in titles]
            row = rollout(
                step, f"q{question}", (0, 0, 1), response=rng.choice(texts), reward=sum(verdicts) / 10
            )
            judged = zip(titles, verdicts, strict=True)
            row["verdicts"] = [
                {"title": title, "category": "essential", "weight": 1.0, "verdict": verdict}
                for title, verdict in judged
            ]
            yield row

    run = write_run(folder, 300, {"group_size": 16}, rollouts=[], evaluations=[])
    write_lines(run / "rollouts.jsonl", rows())
    return run


def test_a_run_of_300_steps_opens_like_a_small_one(opened: Opened, run: Path, tmp_path: Path) -> None:
    """In the browser's own work: that is plotly's script for both (docs/viewing.md)."""

    def work() -> float:
        metrics = opened.session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

    opened(run)
    small = work()
    tab = opened(long_run(tmp_path / "long"))
    assert 5e6 < (tmp_path / "page.html").stat().st_size < 20e6
    assert work() < 4 * small
    assert "keeps the answers of long: " in tab.inner_text("#answers .note")


CONTRAST = """() => {
  const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
    .getContext("2d", {willReadFrequently: true});
  const pixel = (colour, under) => {
    for (const each of [under, colour]) { context.fillStyle = each; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.reduce((sum, v, n) => sum + linear(v / 255) * [.2126, .7152, .0722][n], 0);
  const css = (rgb) => `rgb(${rgb.join()})`;
  const ground = (e) =>
    e ? css(pixel(getComputedStyle(e).backgroundColor, ground(e.parentElement))) : "#fff";
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const texts = [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.closest("svg, .dim, :disabled") && hasText(e));
  return texts.map((e) => {
    const under = ground(e);
    const [a, b] = [light(pixel(getComputedStyle(e).color, under)), light(pixel(under, "#fff"))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className + ": " + e.textContent.slice(0, 40)];
  }).filter(([ratio, text]) => ratio < 4.5);
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1800, "light"), (1400, "dark"), (390, "light")])
def test_a_page_fits_its_window_can_be_read_and_is_labelled(
    opened: Opened, run: Path, width: int, scheme: str
) -> None:
    tab = opened(run, width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(CONTRAST) == []
    named = """() => [...document.querySelectorAll("input, select, button, [role=img], [role=region]")]
        .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML)"""
    assert tab.evaluate(named) == []
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
