"""The explorer in a real JupyterLab, and the report, in a real browser.

It is Debian's Chromium, headless, driven by Playwright. Screenshots go to the folder in PSR_SCREENSHOTS.
Skipped only where there is no Chromium: `apt-get install chromium`.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get("PSR_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium found (apt-get install chromium, or name one in PSR_CHROMIUM)"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
WAIT = 60_000  # ms; machines are shared


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab server on a free port, on copies of the tutorial: (address, folder)."
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tutorials").mkdir()
    shutil.copytree(ROOT / "nbs/images", folder / "images")
    shutil.copy(ROOT / "nbs/tutorials/inspect_judgements.ipynb", folder / "tutorials/inspect.ipynb")
    quiet = (
        folder / ".settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    )  # no question about news over the page
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        "PSR_RUN": str(folder / "run"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "JUPYTER_DATA_DIR": str(folder / ".data"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    with open(folder / "lab.log", "w") as log:
        p = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                "--IdentityProvider.token=",
                "--ServerApp.password=",
                "--LabApp.expose_app_in_browser=True",  # window.jupyterapp: to change the theme
                f"--ServerApp.root_dir={folder}",
            ],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url + "/api/status", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
                assert p.poll() is None, (folder / "lab.log").read_text()[-2000:]
        yield url, folder
    finally:
        p.terminate()
        try:
            p.wait(20)
        except subprocess.TimeoutExpired:
            p.kill()


class Watched:
    "A page with everything in it that should not have happened."

    def __init__(self, browser, allowed: str, **kwargs):
        self.context = browser.new_context(viewport={"width": 1500, "height": 1250}, **kwargs)
        self.page, self.bad, self.errors = self.context.new_page(), [], []
        self.page.set_default_timeout(WAIT)
        self.page.on("dialog", lambda d: (self.bad.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("popup", lambda p: self.bad.append("popup"))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("request", lambda r: re.match(allowed, r.url) or self.bad.append(r.url[:200]))

    def clean(self):
        "Nothing was asked for, ran or failed."
        assert self.bad == []
        assert not self.page.evaluate(
            "'__pwned' in window || Array.from(document.querySelectorAll('iframe')).length > 0"
        )
        assert self.errors == []


def picture(page, name: str):
    if folder := os.environ.get("PSR_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def open_and_run(w: Watched, url: str, name: str):
    "Open a notebook in JupyterLab, Run All, and wait for its explorer; the panel."
    w.page.goto(f"{url}/lab/workspaces/{name}{time.time_ns()}/tree/tutorials/{name}.ipynb")
    w.page.wait_for_selector(".jp-Notebook .jp-Cell")
    w.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", state="attached")
    w.page.locator(".jp-Notebook .jp-Cell").first.click()
    prompts = "Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt'))"
    begun = f"{prompts}.some(p => /[*1-9]/.test(p.textContent))"
    for _ in range(5):  # what is asked before the kernel is connected gets lost
        if (ask := w.page.locator(".jp-Dialog .jp-mod-accept")).count():
            picture(w.page, f"{name}-dialog")
            ask.last.click()  # JupyterLab asks which kernel
        try:  # the question may come only now, over the menu
            w.page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5000)
            w.page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click(timeout=5000)
            w.page.wait_for_function(begun, timeout=15_000)
        except Exception:
            continue
        with contextlib.suppress(Exception):  # a cell that has a number has not got lost
            w.page.wait_for_function(begun.replace("*", ""), timeout=2000)
        if w.page.evaluate(begun):
            break
    try:
        w.page.wait_for_selector(
            ".psr-explorer .psr-picker, .psr-explorer svg", state="attached", timeout=3 * WAIT
        )
    except Exception:
        picture(w.page, f"{name}-failed")
        raise
    panel = w.page.locator(".psr-explorer").first
    panel.scroll_into_view_if_needed()
    return panel


def tab(panel, name: str):
    panel.get_by_role("tab", name=name, exact=True).click()


def shot_of(page, panel, name: str):
    panel.evaluate("e => e.scrollIntoView({block: 'start'})")
    if "PSR_SCREENSHOTS" in os.environ:
        page.wait_for_timeout(600)
    picture(page, name)


LAST_CELL_RAN = """
() => {
  const cells = Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt'));
  return cells.length > 0 && cells.every(p => /[0-9]/.test(p.textContent));
}
"""


@pytest.fixture(scope="module")
def explorer(browser, lab):
    "The tutorial in JupyterLab, all cells run."
    w = Watched(browser, rf"{lab[0]}|data:|blob:|ws:")
    w.panel = open_and_run(w, lab[0], "inspect")
    w.page.wait_for_function(LAST_CELL_RAN, timeout=3 * WAIT)  # some of its cells go to another tab
    yield w
    w.context.close()


def test_overview_and_into_an_iteration(explorer):
    page, panel = explorer.page, explorer.panel
    settled(explorer)  # the tutorial itself goes to another tab
    tab(panel, "Overview")
    panel.locator(".psr-pickable svg circle:visible").first.wait_for()
    shot_of(page, panel, "overview")
    assert panel.locator("svg:visible").count() > 2 and panel.locator(".js-plotly-plot").count() == 0
    panel.get_by_role("button", name="Into M3").click()
    panel.get_by_role("tab", name="Steps", selected=True).wait_for()
    assert (
        panel.locator("select")
        .filter(has=page.locator("option", has_text="M3 (8 searches)"))
        .first.input_value()
    )


def selected(panel, which: str) -> str:
    return panel.get_by_role("grid", name=which, exact=True).locator("tr.on").get_attribute("data-key")


def until(f, what: str, seconds: float = 30):
    "Wait until f() is true."
    end = time.time() + seconds
    while time.time() < end:
        if f():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def test_choose_a_problem_and_read_the_judge(explorer, lab):
    page, panel = explorer.page, explorer.panel
    settled(explorer)  # the tutorial itself goes to another tab
    tab(panel, "Steps")
    panel.get_by_label("Show").first.select_option("all")
    rows = panel.get_by_role("grid", name="problems", exact=True).locator("tbody tr")
    until(lambda: rows.count() == 8, "all problems")
    rows.nth(3).locator("td").nth(1).click()  # a row is wider than the list
    key = rows.nth(3).get_attribute("data-key")
    panel.locator(".psr-question:visible", has_text=key).first.wait_for()
    searches = map(json.loads, (lab[1] / "run/M3/trajectories.jsonl").read_text().splitlines())
    steps = {r["problem_id"]: r for r in searches}[key]["steps"]
    judged = next(s for s in steps if s["judgements"])
    panel.get_by_label("Address").fill(f"judge/M3/{key}/step/{judged['k']}")
    panel.get_by_label("Address").press("Enter")
    w = sum(c["problem"] is None for c in judged["candidates"])
    wanted = next(j for j in judged["judgements"] if (j["a"], j["b"]) == (w - 1, 0))

    def words():
        return " ".join(
            " ".join(panel.locator(".psr-steps .psr-judge:visible").all_inner_texts()).split()
        )

    cells = panel.get_by_role("group", name="verdicts on each pair").locator("[data-pick]")
    until(lambda: cells.count() == w * (w - 1), "the map of the step")
    cells.nth((w - 1) * (w - 1)).click()  # candidate w as A and 1 as B: the first of the last row
    until(lambda: " ".join(wanted["text"].split()) in words(), "the judge's words on the cell clicked")
    assert f"A is {w}, B is 1" in words()
    shot_of(page, panel, "steps")


def test_sort_and_filter(explorer):
    panel = explorer.panel
    settled(explorer)  # the tutorial itself goes to another tab
    tab(panel, "Steps")
    grid = panel.get_by_role("grid", name="problems", exact=True)
    grid.locator("th[data-column=consistency]").click()
    until(
        lambda: "\u25b2" in grid.locator("th[data-column=consistency]").inner_text(),
        "sorted by consistency",
    )
    at = [h.get_attribute("data-column") for h in grid.locator("th").all()].index("consistency")

    def values():
        return [float(t) for t in grid.locator(f"tbody td:nth-child({at + 1})").all_inner_texts() if t]

    until(lambda: values() == sorted(values()) and len(values()) > 3, "rows in order")
    panel.get_by_label("Search", exact=True).first.fill("apples")
    panel.get_by_label("Search", exact=True).first.press("Enter")
    until(
        lambda: all("apples" in t.lower() for t in grid.locator("tbody tr").all_inner_texts()),
        "only apples",
    )
    panel.get_by_label("Search", exact=True).first.fill("")
    panel.get_by_label("Search", exact=True).first.press("Enter")
    until(lambda: grid.locator("tbody tr").count() == 8, "all problems again")


def test_keys(explorer):
    page, panel = explorer.page, explorer.panel
    settled(explorer)  # the tutorial itself goes to another tab
    tab(panel, "Steps")
    panel.get_by_label("Show").first.select_option("all")  # the tutorial narrows the list
    grid = panel.get_by_role("grid", name="problems", exact=True)
    until(lambda: grid.locator("tbody tr").count() == 8, "all problems")
    grid.press("Home")
    keys = [r.get_attribute("data-key") for r in grid.locator("tbody tr").all()]
    until(lambda: selected(panel, "problems") == keys[0], "the first problem")
    for key, want in (("n", keys[1]), ("n", keys[2]), ("p", keys[1]), ("ArrowDown", keys[2])):
        page.keyboard.press(key)
        until(lambda want=want: selected(panel, "problems") == want, f"{key} goes to {want}")
    panel.locator(".psr-question:visible", has_text=keys[2]).first.wait_for()
    tree = panel.get_by_role("group", name="rounds of the search")

    def step():
        return tree.locator(".on").first.get_attribute("data-pick")

    until(lambda: tree.locator(".on").count() > 0, "a step is open")
    panel.get_by_label("Address").fill(f"judge/M3/{keys[2]}/step/1")
    panel.get_by_label("Address").press("Enter")
    picks = [p.get_attribute("data-pick") for p in tree.locator("[data-pick]").all()]
    until(lambda: step() == picks[0], "the first step")
    grid.focus()
    for key, there in (("j", False), ("k", True)):
        page.keyboard.press(key)
        until(lambda there=there: (step() == picks[0]) == there, f"{key} goes to the other step")
    assert (
        page.locator(".jp-Notebook .jp-Cell").count() > 10
    )  # no key reached the notebook's own commands


def test_compare(explorer):
    page, panel = explorer.page, explorer.panel
    tab(panel, "Over iterations")
    solved = panel.get_by_role("grid", name="evaluated problems")
    page.wait_for_timeout(500)
    if not solved.is_visible():  # the tutorial has opened the next part
        panel.get_by_text("The same problems solved by each model").click()
    panel.get_by_role("grid", name="evaluated problems").locator("tbody tr").nth(2).click()
    panel.locator("th:visible", has_text="M4").first.wait_for()
    shot_of(page, panel, "compare")
    panel.get_by_text("The same pairs judged by other models").click()
    page.wait_for_timeout(500)
    shot_of(page, panel, "compare-judges")


@pytest.mark.slow
def test_another_judge_by_a_button(explorer):
    page, panel = explorer.page, explorer.panel
    tab(panel, "Over iterations")
    page.wait_for_timeout(500)
    if not panel.get_by_label("Pairs judged to make").first.is_visible():
        panel.get_by_text("The same pairs judged by other models").click()
    panel.get_by_label("Pairs judged to make").first.select_option("M2")
    panel.get_by_text("No other model has judged these pairs yet.").wait_for()
    panel.get_by_label("Another judge").fill("M0=packaged:models/demo-m0")
    until(
        panel.get_by_role("button", name="Judge these pairs again").is_enabled,
        "the end of the tutorial's own judging",
        120,
    )
    panel.get_by_role("button", name="Judge these pairs again").click()
    panel.get_by_text("M0 has judged the pairs of M2").wait_for(timeout=3 * WAIT)
    until(
        lambda: panel.get_by_role("grid", name="flipped verdicts").locator("tbody tr").count() > 0,
        "flips",
    )
    until(lambda: panel.locator(".psr-judge:visible").count() >= 2, "the words of both judges")
    shot_of(page, panel, "compare-again")


def test_label_three_pairs_and_find_them_again(explorer, lab, browser):
    page, panel = explorer.page, explorer.panel
    tab(panel, "Audit")
    panel.locator(".psr-question:visible", has_text="drawn)").first.wait_for()
    name = panel.get_by_label("Your name (optional)")
    name.fill("Kim")
    name.press("Enter")
    panel.locator(
        ".psr-question:visible", has_text="drawn)"
    ).first.click()  # leave the field, so that keys are heard
    for n, key in enumerate("124", 1):
        assert panel.locator(".psr-judge:visible").count() == 0 or n > 1
        page.keyboard.press(key)
        until(
            lambda n=n: panel.get_by_role("grid", name="labels so far").locator("tbody tr").count() == n,
            f"{n} labels",
        )
    shot_of(page, panel, "audit")
    rows = [json.loads(x) for x in (lab[1] / "run/labels.jsonl").read_text().splitlines()]
    assert (
        [r["label"] for r in rows] == ["A", "B", "can't tell"]
        and {r["name"] for r in rows} == {"Kim"}
        and all(r["time"] for r in rows)
    )
    explorer.clean()
    again = Watched(browser, rf"{lab[0]}|data:|blob:|ws:")
    made = f"from psr_nb.dashboard import RunExplorer\nx = RunExplorer({str(lab[1] / 'run')!r})\nx"
    write_notebook(lab[1] / "tutorials/again.ipynb", made)
    panel = open_and_run(again, lab[0], "again")
    tab(panel, "Audit")
    found = panel.get_by_role("grid", name="labels so far").locator("tbody tr")
    until(lambda: found.count() == 3, "the three labels")
    assert all("Kim" in t for t in found.all_inner_texts())
    again.clean()
    again.context.close()


def test_no_errors(explorer):
    explorer.clean()


def write_notebook(path: Path, *cells: str):
    "A notebook of code cells."

    def cell(i, source):
        made = {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": source}
        return made | {"outputs": [], "execution_count": None}

    path.write_text(
        json.dumps(
            {
                "cells": [cell(*c) for c in enumerate(cells)],
                "metadata": {
                    "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
                },
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )


# what of the explorer is fainter than 4.5 against what is behind it; JupyterLab's own fields are JupyterLab's
FAINT = """
() => {
  const rgb = c => { const m = (c.match(/[\\d.]+/g) || []).map(Number); return m[3] < 2 ? m : [...m, 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
  const lum = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    const layers = [];
    for (let n = e; n; n = n.parentElement) {
      const c = rgb(getComputedStyle(n).backgroundColor);
      if (c.length === 4 && c[3]) layers.push(c);
      if (c[3] === 1) break;
    }
    return layers.reverse().reduce((under, c) => over(c, under), [255, 255, 255]);
  };
  const found = [];
  for (const e of document.querySelectorAll('.psr-explorer *')) {
    const own = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('button.jupyter-button,select,input,style,title')) continue;
    const style = getComputedStyle(e), ground = behind(e);
    const ink = over(rgb(e.closest('svg') ? style.fill : style.color), ground);
    const [a, b] = [lum(ink), lum(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(1)} ${e.tagName}.${e.className.baseVal ?? e.className} ` +
      e.textContent.trim().slice(0, 40));
  }
  return found;
}
"""
VIEWS = ("Overview", "Steps", "Over iterations", "Audit")
THEMES = ("JupyterLab Light", "JupyterLab Dark")


@pytest.fixture(scope="module")
def small(browser, lab):
    "A notebook with nothing but the explorer of the recorded run."
    shutil.copytree(ROOT / "data/runs/demo", lab[1] / "small")
    write_notebook(
        lab[1] / "tutorials/small.ipynb",
        f"from psr_nb.dashboard import RunExplorer\nx = RunExplorer({str(lab[1] / 'small')!r})\nx",
        "print(x.bar.value)",
    )
    w = Watched(browser, rf"{lab[0]}|data:|blob:|ws:")
    w.page.set_viewport_size({"width": 1400, "height": 900})
    w.panel = open_and_run(w, lab[0], "small")
    w.page.evaluate("jupyterapp.shell.collapseLeft()")
    yield w
    w.context.close()


def in_theme(w: Watched, theme: str):
    w.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: {theme!r}}})")
    light = str(theme.endswith("Light")).lower()
    w.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")


def settled(w: Watched):
    "Wait until the kernel is idle and the page stands still."
    w.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", state="attached")
    w.page.wait_for_timeout(400)


def drawn(panel, view: str) -> int:
    "How many marks, cells and rows of the view that is looked at are seen."
    there = ".psr-picker tbody tr, svg circle, table.psr td, table.psr-map td, .psr-question, .psr-side"
    return panel.locator(f":is({there}):visible").count()


def all_but(quick, values: tuple):
    "Parameters of a test, all of them slow but one."
    return [v if v == quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("view", all_but("Steps", VIEWS))
def test_every_view_is_there_again_after_the_page_is_reloaded(small, view):
    w = small
    tab(w.panel, view)
    settled(w)
    until(lambda: drawn(w.panel, view) > 0, f"{view} is drawn")
    settled(w)
    before, address = drawn(w.panel, view), w.panel.get_by_label("Address").input_value()
    w.page.evaluate(
        "jupyterapp.commands.execute('docmanager:save')"
    )  # or the browser asks whether to leave
    settled(w)
    w.page.reload()
    w.page.wait_for_selector(".psr-explorer .psr-picker", state="attached", timeout=3 * WAIT)
    w.panel = w.page.locator(".psr-explorer").first
    w.panel.get_by_role("tab", name=view, selected=True).wait_for()
    until(lambda: drawn(w.panel, view) == before, f"{view} as it was ({before})")
    assert w.panel.get_by_label("Address").input_value() == address
    picture(w.page, f"reloaded-{view}")


LOOKS = tuple((theme, size) for theme in THEMES for size in ((1400, 900), (900, 700)))


@pytest.mark.parametrize("look", all_but((THEMES[1], (900, 700)), LOOKS))
def test_every_view_can_be_read(small, look):
    "In both themes nothing is fainter than 4.5, and in both sizes the page does not scroll sideways."
    w, faint, wide = small, [], []
    theme, size = look
    w.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    in_theme(w, theme)
    for view in VIEWS:
        tab(w.panel, view)
        settled(w)
        shot_of(
            w.page, w.panel, f"{view.replace(' ', '-').lower()}-{theme.split()[-1].lower()}-{size[0]}"
        )
        faint += [f"{view}: {said}" for said in w.page.evaluate(FAINT)]
        beyond = w.panel.evaluate("e => e.scrollWidth - e.clientWidth")
        wide += [f"{view}: {beyond} pixels"] if beyond > 1 else []
    in_theme(w, THEMES[0])
    assert (faint, wide) == ([], [])


HIDDEN = """
() => {
  const page = document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').getBoundingClientRect();
  const parts = Array.from(document.querySelectorAll('.psr-steps-mid,.psr-steps-low,.psr-scrolls'));
  const below = e => e.getBoundingClientRect().bottom - page.bottom;
  const cut = parts.filter(e => e.scrollHeight > e.clientHeight + 1 || below(e) > 0);
  return cut.map(e => `${e.className}: ${e.scrollHeight} in ${e.clientHeight}, ${below(e)} below the page`);
}
"""


def test_one_decision_needs_no_scrolling(small):
    "Question, search, six candidates, their map and the judge's words are seen at once."
    w = small
    w.page.set_viewport_size({"width": 1400, "height": 900})
    w.panel.get_by_label("Address").fill("judge/M2/questions-18/step/2")
    w.panel.get_by_label("Address").press("Enter")
    cells = w.panel.get_by_role("group", name="verdicts on each pair").locator("[data-pick]")
    until(lambda: cells.count() == 30, "the map of six candidates")
    settled(w)
    shot_of(w.page, w.panel, "one-decision")
    assert w.panel.locator(".psr-orders .psr-judge:visible").count() == 2
    assert w.page.evaluate(HIDDEN) == []


def test_an_address_leads_to_what_is_shown(small):
    w = small
    w.page.set_viewport_size({"width": 1400, "height": 900})
    tab(w.panel, "Steps")
    settled(w)
    bar = w.panel.get_by_label("Address")
    here = bar.input_value()
    w.page.locator(".psr-picker:visible").first.click()
    w.page.keyboard.press("n")
    until(lambda: bar.input_value() != here, "another address")
    there = bar.input_value()
    for address in (here, there):
        bar.fill(address)
        bar.press("Enter")
        until(lambda address=address: bar.input_value() == address, address)
        w.panel.locator(".psr-question:visible", has_text=address.split("/")[2]).first.wait_for()
    height = w.panel.evaluate("e => e.offsetHeight")
    bar.fill("judge/M3/nobody/step/1")
    bar.press("Enter")
    w.panel.locator(".psr-line.says", has_text="nobody").wait_for()
    assert bar.input_value() == there and w.panel.evaluate("e => e.offsetHeight") == height
    w.context.grant_permissions(["clipboard-read", "clipboard-write"])
    w.panel.get_by_role("button", name="Copy link").click()
    until(lambda: w.page.evaluate("navigator.clipboard.readText()") == there, "the address is copied")


def test_keyboard_alone(small):
    "Tab to the panel, keys for every tab, help over it and away again; what has the focus is framed."
    w = small
    w.panel.evaluate("e => e.focus()")
    for key, view in (("o", "Overview"), ("i", "Over iterations"), ("a", "Audit"), ("s", "Steps")):
        w.page.keyboard.press("g")
        w.page.keyboard.press(key)
        w.panel.get_by_role("tab", name=view, selected=True).wait_for()
    w.page.keyboard.press("?")
    help_box = w.page.get_by_role("dialog", name="Keys")
    help_box.wait_for()
    assert "next problem" in help_box.inner_text()
    picture(w.page, "help")
    w.page.keyboard.press("Escape")
    help_box.wait_for(state="detached")
    w.page.keyboard.press("/")
    until(lambda: w.page.evaluate("document.activeElement.tagName") == "INPUT", "the search field")
    seen, frames = set(), "getComputedStyle(document.activeElement).outlineStyle"
    for _ in range(25):
        w.page.keyboard.press("Tab")
        kind = w.page.evaluate("document.activeElement.className")
        seen.update(k for k in ("psr-picker", "psr-pick") if k in kind.split())
        if "psr-pick" in kind:
            assert w.page.evaluate(frames) == "solid", kind
    assert seen == {"psr-picker", "psr-pick"}


def test_nothing_failed(small):
    small.clean()


def hostile_run(folder: Path) -> Path:
    from hostile_texts import hostile_texts
    from made_up_run import made_up_run

    texts = [t[:20_000].encode("utf-8", "replace").decode() for t in hostile_texts().values()]
    assert len(texts) >= 50
    cycle = iter(texts * 99)
    path = folder / "<img src=x onerror=window.__pwned=1>"
    made_up_run(path, texts, steps=2, w=2, text=lambda: next(cycle), judge=lambda: next(cycle))
    rows = [
        {
            "id": f"e{i}",
            "benchmark": t[:50],
            "prompt": t,
            "completions": [t],
            "answer": t[:200],
            "gold": t[:200],
            "equal": bool((i + n) % 2),
            "note": t[:50],
            "tokens": 1,
            "steps": 1,
        }
        for n in (0, 1)
        for i, t in enumerate(texts)
    ]
    for n in (1, 2):
        (path / f"M{n}/evaluation.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows[(n - 1) * len(texts) : n * len(texts)])
        )
    return path


def test_hostile_run_is_inert_in_the_explorer(browser, lab):
    path = hostile_run(lab[1])
    write_notebook(
        lab[1] / "tutorials/nasty.ipynb",
        "from psr_nb.dashboard import RunExplorer",
        f"x = RunExplorer({str(path)!r})\nx",
    )
    w = Watched(browser, rf"{lab[0]}|data:|blob:|ws:")
    panel = open_and_run(w, lab[0], "nasty")
    tab(panel, "Steps")
    grid = panel.get_by_role("grid", name="problems", exact=True)
    grid.locator("tbody td").nth(1).click()
    keys = [r.get_attribute("data-key") for r in grid.locator("tbody tr").all()]
    for key in keys[1:]:
        w.page.keyboard.press("n")
        until(lambda key=key: selected(panel, "problems") == key, key)
    panel.locator(".psr-question", has_text=keys[-1]).wait_for()
    shot_of(w.page, panel, "hostile-steps")
    tab(panel, "Over iterations")
    evaluated = panel.get_by_role("grid", name="evaluated problems").locator("tbody tr")
    for i in range(0, evaluated.count(), 7):
        evaluated.nth(i).click()
        w.page.wait_for_timeout(150)
    tab(panel, "Audit")
    panel.locator(".psr-question:visible", has_text="drawn)").first.click()
    for _ in range(10):
        w.page.keyboard.press("3")
        w.page.wait_for_timeout(100)
    shot_of(w.page, panel, "hostile-audit")
    bad = w.page.evaluate("""
        Array.from(document.querySelectorAll('.psr-explorer *')).filter(e =>
            ['SCRIPT', 'IFRAME', 'IMG', 'OBJECT', 'EMBED', 'LINK', 'BASE', 'FORM', 'META'].includes(e.tagName)
            || Array.from(e.attributes).some(a => a.name.startsWith('on') || /javascript:/i.test(a.value))
        ).map(e => e.outerHTML.slice(0, 100))""")
    assert bad == []
    w.clean()
    w.context.close()


def test_live_shows_a_run_grow_while_the_kernel_is_free(browser, lab):
    path = shutil.copytree(ROOT / "data/runs/demo", lab[1] / "growing")
    whole = (path / "M3/trajectories.jsonl").read_text().splitlines(keepends=True)
    (path / "M3/trajectories.jsonl").write_text("".join(whole[:3]))
    later = shutil.move(path / "M4", lab[1] / "M4-later")
    held = open(path / ".lock", "w")
    fcntl.flock(held, fcntl.LOCK_EX)  # as a process at work in the run does
    pulse = (
        "import asyncio, time\nbeats = []\nasync def beat():\n"
        "    while True: beats.append(time.time()); await asyncio.sleep(.02)\n"
        "pulse = asyncio.create_task(beat())\n"
    )
    explore = f"x = RunExplorer({str(path)!r}, seconds=.5)\nx.go_into('M3')\nx"
    pauses = "max(b - a for a, b in zip(beats[5:], beats[6:]))"
    write_notebook(
        lab[1] / "tutorials/live.ipynb",
        f"{pulse}from psr_nb.dashboard import RunExplorer\n{explore}",
        f"f'beat {{len(beats)}}, longest pause {{{pauses}:.2f}} s' if len(beats) > 99 else 'young'",
    )
    w = Watched(browser, rf"{lab[0]}|data:|blob:|ws:")
    panel = open_and_run(w, lab[0], "live")
    panel.locator("summary", has_text="A process is at work in this run").wait_for()
    rows = panel.get_by_role("grid", name="problems", exact=True).locator("tbody tr")
    until(lambda: rows.count() == 3, "three searches")
    rows.nth(1).locator("td").nth(1).click()
    key = rows.nth(1).get_attribute("data-key")
    for n, line in enumerate(whole[3:], 4):
        with open(path / "M3/trajectories.jsonl", "a") as f:
            f.write(line[:99])
            f.flush()
            time.sleep(0.2)
            f.write(line[99:])
        until(lambda n=n: rows.count() == n, f"{n} searches")
        assert selected(panel, "problems") == key
    panel.locator(".psr-question:visible", has_text=key).wait_for()
    shot_of(w.page, panel, "live")
    shutil.copytree(later, path / "M4")
    until(lambda: panel.locator("option", has_text="M4 (").count() > 0, "the next iteration")
    fcntl.flock(held, fcntl.LOCK_UN)
    until(
        lambda: panel.get_by_text("A process is at work in this run").count() == 0, "the run has ended"
    )
    assert selected(panel, "problems") == key
    mine = w.page.locator(".jp-CodeCell").nth(1)
    mine.locator(".cm-content").click()
    w.page.keyboard.press("Control+Enter")  # a cell of the reader's own, while Live goes on
    said = mine.locator(".jp-OutputArea-output")
    until(lambda: "longest pause" in said.inner_text(), "the answer of another cell")
    print(said.inner_text())
    assert float(re.search(r"pause ([\d.]+)", said.inner_text())[1]) < 1
    w.clean()
    w.context.close()


def opened(browser, page_file: Path, **kwargs) -> tuple[Watched, float]:
    "A file opened with the network off, and how long that took."
    w = Watched(browser, "file:", **kwargs)
    w.context.set_offline(True)
    start = time.time()
    w.page.goto(page_file.as_uri())
    w.page.wait_for_load_state("load")
    return w, time.time() - start


def test_report_needs_no_network(browser, tmp_path):
    from psr_nb.dashboard.report import report_html
    from psr_nb.files import packaged

    (tmp_path / "report.html").write_text(report_html(packaged("runs/demo")))
    w, seconds = opened(browser, tmp_path / "report.html")
    assert seconds < 3 and w.page.locator("svg").count() > 5
    picture(w.page, "report")
    w.page.locator("details.psr-search > summary").first.click()
    judged = (
        w.page.locator("details.psr-search").first.locator("details.psr-step:has(table.psr-m)").first
    )
    judged.locator("> summary").click()
    judged.locator("table.psr-m").wait_for()
    judged.locator("> details > summary").click()
    judged.locator("> details > details > summary").first.click()
    assert judged.locator(".psr-judge:visible").count() == 2
    judged.scroll_into_view_if_needed()
    picture(w.page, "report-step")
    if os.environ.get("PSR_SCREENSHOTS"):
        w.page.pdf(path=str(Path(os.environ["PSR_SCREENSHOTS"]) / "report.pdf"))
    w.clean()
    w.context.close()


def test_hostile_report_is_inert(browser, tmp_path):
    from psr_nb.dashboard.report import report_html

    (tmp_path / "report.html").write_text(report_html(hostile_run(tmp_path), sample=100))
    for policy in (False, True):  # inert by itself, and not only by its content policy
        w, seconds = opened(browser, tmp_path / "report.html", bypass_csp=policy)
        w.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        w.page.wait_for_timeout(1500)
        assert w.page.locator("details.psr-search").count() >= 50
        picture(w.page, "hostile-report")
        w.clean()
        w.context.close()


@pytest.mark.slow
def test_report_of_a_large_run_opens_quickly(browser, tmp_path):
    "1,200 problems: with the usual sample, and with as many searches as fit."
    from bench_explorer import build

    from psr_nb.dashboard.report import report_html

    run = build(tmp_path, steps=4)
    for sample in (20, 1200):
        (tmp_path / "report.html").write_text(report_html(run, sample))
        size, seconds = (tmp_path / "report.html").stat().st_size, []
        for _ in range(3):  # the quickest: machines are shared
            w, s = opened(browser, tmp_path / "report.html")
            seconds.append(s)
            assert "drawn by lot, of 400" in w.page.content()
            w.clean()
            w.context.close()
        print(
            f"sample {sample}: {size / 1e6:.1f} MB, opened in {', '.join(f'{s:.2f}' for s in seconds)} s"
        )
        assert size < 10e6 and min(seconds) < 3


def test_figures_as_png(psr, tmp_path):
    pytest.importorskip("kaleido", reason="no kaleido (pip install kaleido)")
    p = psr(
        "report",
        ROOT / "data/runs/demo",
        "--figures",
        tmp_path / "png",
        "--png",
        env={**os.environ, "BROWSER_PATH": CHROMIUM},
    )
    assert p.returncode == 0, p.stderr
    files = [Path(line) for line in p.stdout.splitlines()]
    assert len(files) == 10 and sorted(files) == sorted((tmp_path / "png").iterdir())
    for f in files:
        data = f.read_bytes()
        assert (
            data[:8] == b"\x89PNG\r\n\x1a\n"
            and (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1120, 660)
            and len(data) > 8000
        )
    if folder := os.environ.get("PSR_SCREENSHOTS"):
        shutil.copy(files[0], Path(folder) / "figure.png")


def test_figures_as_png_without_a_browser(psr, tmp_path):
    p = psr(
        "report",
        ROOT / "data/runs/demo",
        "--figures",
        tmp_path / "png",
        "--png",
        env={**os.environ, "BROWSER_PATH": "/nowhere/chromium"},
    )
    assert (p.returncode, p.stderr.count("\n")) == (
        2,
        1,
    ) and "PNG needs kaleido (pip install kaleido) and Chrome or Chromium" in p.stderr
