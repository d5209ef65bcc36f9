"A run folder of a stranger: what is odd in it is a sentence or is left out, and it is trusted with nothing."

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest

from psr_nb.cli.main import main
from psr_nb.dashboard import rejudge
from psr_nb.dashboard.figures import load_metrics, phase_table
from psr_nb.dashboard.probe import _trained_on
from psr_nb.dashboard.report import report_html
from psr_nb.dashboard.runs import at_work, golds, look, run_index, state
from psr_nb.datagen.annotate import answers_in
from psr_nb.engine import EngineSettings
from psr_nb.engines.load import check_folder, load_model
from psr_nb.files import (
    begun_file,
    continued_jsonl,
    cut_torn,
    packaged,
    refuse_damaged,
    seal,
    torn_bytes,
)
from psr_nb.folder import Run, open_run
from psr_nb.mend import mend
from psr_nb.records import InputError

ODD_ROWS = ["null", "5", "[1, 2]", '"x"', "{}", '{"problem_id": []}']


@pytest.fixture
def run(tmp_path):
    shutil.copytree(packaged("runs/demo"), tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.fixture(autouse=True)
def no_waiting():
    "Whoever waits for the other end of a pipe fails after 30 s."

    def ring(*_):
        pytest.fail(
            "it waits"
        )  # no error of the system's, which might be taken for a file that can't be read

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path, kind):
    "Put something odd where a file should be: a kind of it, or its text."
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("to "):
        path.symlink_to(kind.removeprefix("to "))
    else:
        path.write_text(kind)


def edited(path, line, change):
    "Change an object in a file of lines."
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    change(rows[line])
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def judged_step(row):
    return next(s for s in row["steps"] if s["judgements"] and s["outcome"] == "pair")


def test_an_engine_is_not_trusted_because_the_recipe_says_so(run, monkeypatch):
    opened = []
    monkeypatch.setattr(rejudge, "open_engine", lambda model, settings: opened.append(settings))
    trusting = {"remote_code": "0" * 12, "pickled": True, "other_weights": "*", "max_batch_tokens": 1234}
    engine = replace(run.recipe.engine, **trusting)
    rejudge.engine_for(Run(replace(run.recipe, engine=engine), run.path), "m", "m", lambda *_: None)
    usual = EngineSettings()
    for name in ("remote_code", "pickled", "other_weights"):
        assert getattr(opened[0], name) == getattr(usual, name)
    assert opened[0].max_batch_tokens == 1234


@pytest.mark.parametrize("kind", ["pipe", "to /dev/zero", "to nowhere", "to .lock"])
def test_a_lock_that_is_no_file(run, kind):
    put(run.path / ".lock", kind)
    assert not at_work(run.path) and look(run.path).run


@pytest.mark.parametrize(
    "kind",
    ["pipe", "to nowhere", "[" * 20_000, "x" * 2_000_000, "5", "- a", "schema: [", "\0"],
    ids=["pipe", "dangling", "deep", "large", "number", "list", "torn", "control"],
)
def test_a_recipe_that_is_none(run, kind):
    put(run.path / "recipe.yaml", kind)
    seen = look(run.path)
    assert seen.run is None and len(seen.notes) == 1


def kept_index(**changes):
    "The index that is right for the searches of M2 of the demo, but for these changes."
    index = run_index(open_run(packaged("runs/demo")), 2)
    kept = {k: v for k, v in vars(index).items() if k != "path"} | {"version": 1}
    return kept | changes


INDEXES = {
    "no rows": {"rows": []},
    "rows of another kind": {"rows": 5},
    "an empty row": {"rows": [{}], "covered": 10},
    "covered is text": {"covered": "x"},
    "covered is infinite": {"covered": 1e999},
    "covered is negative": {"rows": [], "covered": -5},
    "lines are text": {"lines": "x"},
    "notes of another kind": {"notes": 5},
    "notes of objects": {"notes": [{}]},
    "a setting too many": {"path": "/dev/zero"},
}


@pytest.mark.parametrize("changes", INDEXES.values(), ids=INDEXES)
def test_an_index_that_is_none(run, changes):
    put(run.path / "M2/trajectories.index.json", json.dumps(kept_index(**changes)))
    index = run_index(run, 2)
    assert index.rows == kept_index()["rows"]
    assert (index.lines, index.notes, index.path) == (8, [], run.path / "M2/trajectories.jsonl")


@pytest.mark.parametrize("field", ["offset", "length", "id", "margins", "steps", "answer", "right"])
@pytest.mark.parametrize("value", [-1, 1e99, {}], ids=["negative", "huge", "object"])
def test_a_row_of_an_index_that_is_none(run, field, value):
    if field == "steps" and value == -1:
        value = "x"
    kept = kept_index()
    kept["rows"][0][field] = value
    put(run.path / "M2/trajectories.index.json", json.dumps(kept))
    assert run_index(run, 2).rows == kept_index()["rows"]


@pytest.mark.parametrize(
    "kind",
    ["pipe", "to nowhere", "null", "5", "[" * 100_000, "\xff"],
    ids=["pipe", "dangling", "null", "number", "deep", "latin"],
)
def test_an_index_file_that_is_none(run, kind):
    put(run.path / "M2/trajectories.index.json", kind)
    assert len(run_index(run, 2).rows) == 8


@pytest.mark.parametrize("row", [*ODD_ROWS, '{"phase": {}}', '{"phase": "train", "seconds": 1e999}'])
def test_a_phase_that_is_none(run, row):
    put(run.path / "M2/phases.jsonl", row + "\n")
    with pytest.raises(InputError, match="M2/phases.jsonl"):
        phase_table(run)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), "x"], ids=str)
@pytest.mark.parametrize("name", ["accuracy", "search.rollbacks"])
def test_a_figure_that_is_none(run, name, value):
    path = run.path / "M2/metrics.json"
    figures = json.loads(path.read_text())
    *above, last = name.split(".")
    (figures[above[0]] if above else figures)[last] = value
    path.write_text(json.dumps(figures))
    with pytest.raises(InputError, match="M2/metrics.json"):
        load_metrics(run)
    path = run.path / "M2/phases.jsonl"
    put(path, json.dumps({"phase": "train", "seconds": value, "output_tokens": 5}) + "\n")
    with pytest.raises(InputError, match="M2/phases.jsonl"):
        phase_table(run)


@pytest.mark.parametrize("name", ["chosen", "rejected", "a", "b"])
@pytest.mark.parametrize("place", [99, -1, 1.5, "x"])
def test_a_place_without_a_candidate(run, name, place):
    def change(row):
        step = judged_step(row)
        (step["judgements"][0] if name in "ab" else step)[name] = place

    edited(run.path / "M2/trajectories.jsonl", 3, change)
    index = run_index(run, 2)
    assert len(index.rows) == 7 and "trajectories.jsonl: line 4 is not a search" in index.notes[0]
    if (name, place) == ("chosen", 99):  # a page takes seconds
        assert report_html(run)


@pytest.mark.parametrize("name", ["problem_id", "ended", "rollbacks", "output_tokens", "answer"])
def test_a_search_with_a_figure_of_another_kind(run, name):
    edited(run.path / "M2/trajectories.jsonl", 3, lambda row: row.update({name: [None]}))
    index = run_index(run, 2)
    assert len(index.rows) == 7 and "line 4 is not a search" in index.notes[0]


@pytest.mark.parametrize("row", [*ODD_ROWS[:4], '{"id": 5}', '{"id": "q", "answer": []}'])
def test_references_that_are_none(run, row):
    put(run.data("questions-2"), row + "\n")
    with pytest.raises(InputError, match="questions-2.jsonl:1: "):
        golds(run, 2)


@pytest.mark.parametrize("kind", ["to nowhere", "to x.json", "to ..", "pipe"])
@pytest.mark.parametrize("name", ["M2/x.json", "x.json", "probe/x.json"])
def test_the_state_of_a_run_with_a_link_that_leads_nowhere(run, name, kind):
    before = state(run.path)
    put(run.path / name, kind)
    there = [s for s in state(run.path) if not str(s[0]).endswith("x.json")]
    assert there == before


def test_the_state_of_a_run_from_which_a_file_is_removed(run, monkeypatch):
    gone = run.path / "M2/metrics.json"
    found = type(gone).glob

    def glob(self, pattern):
        listed = list(found(self, pattern))
        if gone in listed:
            gone.unlink()
        return listed

    monkeypatch.setattr(type(gone), "glob", glob)
    assert str(gone) not in [s[0] for s in state(run.path)]


OPINIONS = [*ODD_ROWS, '{"problem_id": "q", "step": 1, "attempt": 0}']
OPINIONS += ['{"problem_id": "q", "step": 1, "attempt": 0, "judgements": [5]}']


@pytest.mark.parametrize("row", OPINIONS)
def test_second_opinions_that_are_none(run, row):
    path = rejudge.rejudged_file(run, "judge", 2, "M1")
    put(path, row + "\n")
    with pytest.raises(InputError, match="judgements.jsonl:1: "):
        rejudge.judges(run, run_index(run, 2), "judge", 2)
    with pytest.raises(InputError, match="judgements.jsonl:1: "):
        rejudge._done(path)


def test_a_second_opinion_on_a_pair_that_was_not_recorded(run):
    index = run_index(run, 2)
    t = next(index.read(r["id"]) for r in index.rows if r["comparisons"])
    step = next(s for s in t.steps if s.judgements)
    said = [{"a": a, "b": 99, "verdict": "A", "text": ""} for a in (0, 98)]
    row = {"problem_id": t.problem_id, "step": step.k, "attempt": step.attempt, "judgements": said}
    put(rejudge.rejudged_file(run, "judge", 2, "M1"), json.dumps(row) + "\n")
    both = rejudge.judges(run, index, "judge", 2)
    assert both["M1"] == {} and both["recorded"]


@pytest.mark.parametrize("row", [*ODD_ROWS, '{"question": 5}'])
@pytest.mark.filterwarnings("ignore:.*could not be compared")
def test_training_data_without_a_question(run, row):
    put(run.data("questions-2"), row + "\n")
    with pytest.raises(InputError, match="questions-2.jsonl:1: "):
        _trained_on(run)


@pytest.mark.parametrize("read", [begun_file, continued_jsonl, cut_torn, torn_bytes])
def test_rows_to_go_on_with_that_are_a_pipe(tmp_path, read):
    put(tmp_path / "rows.jsonl", "pipe")
    with pytest.raises(InputError, match="rows.jsonl: a pipe, a socket or a device"):
        read(tmp_path / "rows.jsonl")
    with (
        pytest.raises(InputError, match="rows.jsonl: a pipe, a socket or a device"),
        answers_in(tmp_path / "rows.jsonl"),
    ):
        pass


@pytest.mark.parametrize("kind", ["pipe", "to thesis.txt", "to /dev/zero"])
def test_a_lock_of_answers_that_is_no_file(tmp_path, kind):
    (tmp_path / "thesis.txt").write_text("years of work")
    put(tmp_path / "answers.jsonl.lock", kind)
    with (
        pytest.raises(InputError, match="answers.jsonl.lock: a link, a pipe or a folder"),
        answers_in(tmp_path / "answers.jsonl"),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def damaged_model(folder):
    "A sealed copy of the demo's M1, of which some bytes of a tensor are others."
    model = shutil.copytree(packaged("models/demo-m1"), folder)
    seal(model)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-20_000:] = bytes(b ^ 85 for b in data[-20_000:])
    weights.write_bytes(data)
    return weights


def test_weights_that_are_not_what_was_written(tmp_path, monkeypatch):
    weights = damaged_model(tmp_path / "model")
    for load in (check_folder, load_model):
        with pytest.raises(InputError, match="model.safetensors is not what was written"):
            load(str(tmp_path / "model"))
    monkeypatch.setattr("psr_nb.files.MOST_HASHED", 1000)
    check_folder(tmp_path / "model")  # too large to be hashed at every load
    with pytest.raises(InputError, match="is not what was written"):
        refuse_damaged(tmp_path / "model", whole=True)
    weights.unlink()
    with pytest.raises(InputError, match="model.safetensors is missing"):
        refuse_damaged(tmp_path / "model")
    (tmp_path / "model/manifest.json").write_text('{"name": "of another program"}')
    assert refuse_damaged(tmp_path / "model") == {}


IMPOSSIBLE = {"accuracy": 3.5, "judge_accuracy_low": -0.5, "dev_accuracy": 1.01, "pairs": -1, "n": "600"}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_figure_that_can_not_be(run, name):
    path = run.path / "M4/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: IMPOSSIBLE[name]}))
    with pytest.raises(InputError, match=f"M4/metrics.json: not figures of this layout .*{name} is"):
        load_metrics(run)


def halved(run):
    rows = (run.path / "M4/evaluation.jsonl").read_text().splitlines(keepends=True)
    put(run.path / "M4/evaluation.jsonl", "".join(rows[:300]))


def exchanged(run):
    shutil.copy(run.path / "M2/metrics.json", run.path / "M4")


def renamed(run):
    figures = json.loads((run.path / "M2/metrics.json").read_text()) | {"model": "M4"}
    put(run.path / "M4/metrics.json", json.dumps(figures))


AT_ODDS = {
    "n 600, and evaluation.jsonl has 300 rows": halved,
    "has the figures of judge M2": exchanged,
    "and the rows in evaluation.jsonl say": renamed,
}


@pytest.mark.parametrize("said", AT_ODDS)
@pytest.mark.filterwarnings("default")
def test_figures_that_are_not_those_of_the_rows(run, capsys, said):
    assert not [note for note in look(run.path).notes if "metrics.json" in note]
    AT_ODDS[said](run)
    [note] = [note for note in look(run.path).notes if "metrics.json" in note]
    assert note.startswith("M4: its metrics.json ") and said in note
    with pytest.warns(UserWarning, match=said):
        main(["report", str(run.path), "--json"])
    with pytest.raises(SystemExit):
        main(["publish", str(run.path), "--model", "M4", "--out", str(run.path / "out")])
    assert said in capsys.readouterr().err
    [told] = mend(run)
    assert said in told and told.endswith("it is made again")
    assert not (run.path / "M4/metrics.json").exists()


def test_an_ordinary_run_is_read_as_before(run):
    assert look(run.path).run.recipe == run.recipe
    assert len(phase_table(run)) == 23 and not run_index(run, 2).notes
