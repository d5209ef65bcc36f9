"What the explorer and the report show of old runs, hostile texts and unfinished runs, without a widget."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_texts import hostile_texts

from psr_nb.dashboard import headline as said
from psr_nb.dashboard.align import Column, aligned, aligned_html, differences
from psr_nb.dashboard.audit import add_label, audit_pairs, labelled_eft, read_labels, remove_label
from psr_nb.dashboard.figures import closing_table
from psr_nb.dashboard.flips import line_svg, only_in, words_html
from psr_nb.dashboard.html import active_parts
from psr_nb.dashboard.overview import gallery_html, several_html
from psr_nb.dashboard.report import report_html
from psr_nb.dashboard.runs import run_index
from psr_nb.folder import open_run
from psr_nb.health import Ended
from psr_nb.records import Judgement

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [t.encode("utf-8", "replace").decode()[:3000] for t in hostile_texts().values()]


@pytest.fixture
def demo(tmp_path):
    return open_run(shutil.copytree(ROOT / "data/runs/demo", tmp_path / "demo"))


def test_an_old_run_has_a_headline_figures_and_a_report():
    run = open_run(ROOT / "tests/fixtures/run")
    assert said.headline(run).startswith("M2 ") and said.headline(run).endswith(".")
    assert gallery_html(run).count("<svg") > 2
    page = report_html(run)
    assert 'class="psr-headline"' in page and active_parts(page) == []


def test_the_headline_of_an_arm_that_a_gate_ended(demo, monkeypatch):
    shutil.rmtree(demo.folder("judge", 4))
    ended = Ended("judge", 4, "gates", "...")
    monkeypatch.setattr(said, "why_ended", lambda run, arm: ended)
    assert said.headline(demo).endswith("; a gate ended it before M4.")
    monkeypatch.setattr(said, "why_ended", lambda run, arm: None)
    assert said.headline(demo).endswith("; M4 is not measured yet.")
    assert "(at M3)" not in said.headline(demo)  # the control is compared at the same model


def test_the_control_is_compared_at_the_last_model_that_it_has(demo):
    shutil.rmtree(demo.folder("random", 4))
    assert ", control " in said.headline(demo) and "(at M3)" in said.headline(demo)


@pytest.mark.parametrize(
    "first, last, words", [(0, 5, "beats M1"), (5, 0, "is worse than M1"), (5, 5.5, "is not told")]
)
def test_the_verb_is_what_the_interval_allows(first, last, words):
    d = {"points": last - first, "low": last - first - 1, "high": last - first + 1}
    assert words in said.difference_said("M1", "M2", d)


def test_a_run_that_cannot_be_read_does_not_hide_the_others(demo, tmp_path):
    bad = shutil.copytree(demo.path, tmp_path / "bad")
    (bad / "M2/metrics.json").write_text("{")
    page = several_html({"good": demo.path, "bad": bad, "none": tmp_path / "none"})
    assert "M4 beats M1" in page and "not figures of this layout" in page and "no such folder" in page


def test_the_table_of_a_terminal_is_narrow(demo):
    lines = closing_table(demo).splitlines()
    assert len(lines[0].split("  ")) > 1 and max(map(len, lines)) < 100
    assert max(map(len, closing_table(demo, whole=True).splitlines())) > 100


def test_hostile_texts_are_inert_in_every_comparison():
    for a, b in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True):
        page = aligned_html(
            [Column(a[:90], [a, b], True, b), Column(b[:90], [b, a, a], False, None, about=a)]
        )
        words = words_html({a[:90]: [Judgement(0, 1, "A", b)]}) + only_in(a, b)
        drawn = line_svg([(a, "A"), (b, None)], 0, 1)
        assert active_parts(page + words + drawn) == []


def test_nothing_of_a_text_is_lost_in_a_comparison():
    for a, b in zip(TEXTS, TEXTS[1:], strict=False):
        assert "".join(text for kind, text in differences(a, b) if kind != "gone") == b
        assert "".join(text for kind, text in differences(a, b) if kind != "new") == a
        rows = aligned([[a, b], [b], [a, a, b]])
        for at, steps in enumerate([[a, b], [b], [a, a, b]]):
            assert [row[at] for row in rows if row[at] is not None] == steps


def test_undo_takes_one_person_s_last_label(demo):
    one, two = audit_pairs(run_index(demo, 2), "judge", 2, limit=2)
    add_label(demo, one, "A", "Kim")
    slip = add_label(demo, one, "B", "Kim")
    add_label(demo, one, "A", "Lee")
    add_label(demo, two, "equal", "Kim")
    assert remove_label(demo, slip) and not remove_label(demo, slip)
    assert [(x.name, x.label) for x in read_labels(demo)] == [
        ("Kim", "A"),
        ("Lee", "A"),
        ("Kim", "equal"),
    ]


def test_an_exported_verdict_is_the_label(demo):
    index = run_index(demo, 2)
    pairs = audit_pairs(index, "judge", 2, limit=20)
    assert len(pairs) > 4
    for i, p in enumerate(pairs):
        add_label(demo, p, "AB"[i % 2])
    rows = labelled_eft(read_labels(demo), index, "judge", 2)
    assert [r.verdict for r in rows] == ["AB"[i % 2] for i in range(len(pairs))]
    for row, p in zip(rows, pairs, strict=True):
        assert (row.a, row.b) == (p.text_a, p.text_b) and row.explanation.endswith(f"[[{row.verdict}]]")


START = """
import json, sys, time
times, began = {}, time.process_time()

def done(what):
    global began
    times[what], began = time.process_time() - began, time.process_time()

import psr_nb.dashboard
from psr_nb.dashboard import RunExplorer, packaged, still_html
done("import")
picture = still_html(packaged("runs/demo"))
done("picture")
RunExplorer(packaged("runs/demo"))
done("display")
heavy = [name for name in ("torch", "transformers", "trl", "datasets", "vllm") if name in sys.modules]
print(json.dumps({"times": times, "heavy": heavy, "drawn": picture.count("<svg")}))
"""


def test_looking_at_a_run_needs_no_torch_and_no_patience():
    "A fresh process; a quiet machine takes 0.9 s for the import without .pyc, and half a second to display."
    p = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    found = json.loads(p.stdout.splitlines()[-1])
    assert found["heavy"] == [] and found["drawn"] > 0
    assert found["times"]["import"] < 1.7, found  # pandas and ipywidgets are half of it
    assert found["times"]["picture"] + found["times"]["display"] < 2, found
