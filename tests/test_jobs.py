"Child processes and what they write: where they import from, locks, and names that others have taken."

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_old_runs import EVAL

import psr_nb.jobs
from psr_nb.files import clear_parts, locked, read_jsonl, write_folder, write_whole
from psr_nb.jobs import JobError, run_job
from psr_nb.recipe import LONGEST_YAML, load_recipe, recipe_value
from psr_nb.records import InputError

PSR = Path(sys.executable).parent / "psr_nb"

JOBS = """
from psr_nb.work import _target
import yaml
def seen(recipe, domain_from, progress):
    return [_target(recipe, ".", "judge", 1, domain_from).recipe.domain, yaml.__name__]
"""

PARENT = """
import os, sys
from dataclasses import asdict
from psr_nb.jobs import run_job
from psr_nb.recipe import load_recipe
from psr_nb.work import domain_folder
sys.path.append(os.getcwd())  # as a notebook has it
recipe = load_recipe("fast", domain="mine:DOMAIN")
arguments = {"recipe": asdict(recipe), "domain_from": domain_folder(recipe.domain)}
print(run_job("some_jobs:seen", arguments, "jobs.log"))
"""


def test_a_job_imports_the_domain_that_was_named_and_nothing_else_from_the_current_folder(tmp_path):
    here, path = tmp_path / "here", tmp_path / "path"
    for folder in (here, path):
        folder.mkdir()
    (here / "yaml.py").write_text("raise SystemExit('code of the current folder ran')")
    (here / "mine.py").write_text("from psr_nb.domains.arithmetic import ARITHMETIC as DOMAIN")
    (path / "some_jobs.py").write_text(JOBS)
    command = [sys.executable, "-P", "-c", PARENT]
    env = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
    assert done.stdout == "['mine:DOMAIN', 'yaml']\n", done.stdout + done.stderr
    log = (here / "jobs.log").read_text()
    assert "current folder ran" not in log


def test_a_second_evaluation_in_a_folder_is_told_of_the_first(psr, tmp_path):
    out = tmp_path / "evaluation"
    with locked(out):
        second = psr(*EVAL, "--out", out)
    assert second.returncode == 2, second.stderr
    assert f"another process is at work in this folder (process {os.getpid()}, since 20" in second.stderr
    assert psr(*EVAL, "--out", out).returncode == 0
    rows = [row["id"] for row in read_jsonl(out / "demo-m1" / "test.jsonl")]
    assert len(rows) == len(set(rows)) == 8


def test_only_what_a_killed_process_left_directly_in_a_folder_is_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    gone = ["model.part/config.json", f"metrics.json.{ended.pid}.7.part"]
    theirs = [
        "big.iso.part",
        "a.b.part",
        "video.part/1",
        f"deep/m.json.{ended.pid}.7.part",
        "deep/model.part/x",
    ]
    for name in (*gone, *theirs, f"m.json.{os.getpid()}.7.part"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    elsewhere.mkdir()
    (run / f"link.json.{ended.pid}.7.part").symlink_to(run / "a.b.part")
    before = {p for p in run.rglob("*")}
    clear_parts(run)
    assert before - {p for p in run.rglob("*")} == {run / "model.part", *(run / name for name in gone)}
    (run / "model.part").symlink_to(elsewhere)
    clear_parts(run)
    assert (run / "model.part").is_symlink() and elsewhere.is_dir()


def test_a_whole_file_goes_through_a_link_and_not_over_a_pipe(tmp_path):
    (tmp_path / "far").mkdir()
    link, pipe = tmp_path / "m.json", tmp_path / "pipe.json"
    link.symlink_to(Path("far") / "m.json")
    for text in ("new", "newer"):
        write_whole(link, text)
        assert link.is_symlink() and (tmp_path / "far" / "m.json").read_text() == text
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe.json: a pipe, a socket or a device"):
        write_whole(pipe, "new")
    assert pipe.is_fifo() and [p.name for p in (tmp_path / "far").iterdir()] == ["m.json"]


def said(code: str, path: Path) -> str:
    "The error of a line of Python on a path, from a process of its own: it may hang."
    command = [sys.executable, "-P", "-c", f"import sys\n{code}", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def test_what_is_written_under_another_name_goes_through_no_link(tmp_path):
    thesis, elsewhere = tmp_path / "thesis.txt", tmp_path / "elsewhere"
    thesis.write_text("years of work")
    elsewhere.mkdir()
    trap = tmp_path / f"m.json.{os.getpid()}.{threading.get_native_id()}.part"
    trap.symlink_to(thesis)
    with pytest.raises(InputError, match="m.json: could not write"):
        write_whole(tmp_path / "m.json", "{}")
    (tmp_path / "M1.part").symlink_to(elsewhere)
    with write_folder(tmp_path / "M1") as part:
        (part / "config.json").write_text("{}")
    assert thesis.read_text() == "years of work" and not list(elsewhere.iterdir())
    assert (tmp_path / "M1/config.json").is_file() and not (tmp_path / "M1").is_symlink()


def test_a_lock_is_taken_on_a_regular_file_only(tmp_path):
    kept = tmp_path / "thesis.txt"
    kept.write_text("years of work")
    for name, make in (
        ("link", lambda lock: lock.symlink_to(kept)),
        ("pipe", os.mkfifo),
        ("folder", os.mkdir),
    ):
        (tmp_path / name).mkdir()
        make(tmp_path / name / ".lock")
        told = said("from psr_nb.files import locked\nlocked(sys.argv[1])", tmp_path / name)
        assert f"{name}/.lock: a link, a pipe or a folder, where the lock" in told
    assert kept.read_text() == "years of work"


def test_a_link_that_comes_in_between_is_not_followed_either(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".lock").symlink_to("thesis.txt")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    with pytest.raises(InputError, match="could not write"):
        locked(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("size", [1, 10**6])  # within a pipe's buffer, and beyond it
def test_a_child_that_dies_before_it_reads_its_job_is_a_failed_job(tmp_path, monkeypatch, size):
    def died(function, log, *_):
        command = [sys.executable, "-c", "raise SystemExit(3)"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        child = subprocess.Popen(command, start_new_session=True, **pipes)
        child.wait()
        return child

    monkeypatch.setattr(psr_nb.jobs, "_started", died)
    with pytest.raises(JobError, match="ended without a word .exit status 3."):
        run_job("some:job", {"text": "x" * size}, tmp_path / "jobs.log")


def test_a_pipe_as_the_log_is_refused(tmp_path):
    os.mkfifo(tmp_path / "jobs.log")
    told = said(
        "from psr_nb.jobs import run_job\nrun_job('time:sleep', {}, sys.argv[1])", tmp_path / "jobs.log"
    )
    assert "jobs.log: a pipe, where the log of a job belongs; remove it" in told


def test_a_file_that_is_too_large_for_a_recipe_is_refused_unread(tmp_path, monkeypatch):
    large, whole = tmp_path / "weights.yaml", tmp_path / "whole.yaml"
    whole.write_text("# " + "\N{ABACUS}" * (LONGEST_YAML - 10) + "\nw: 1\n")
    assert recipe_value(whole) == {"w": 1}
    with open(large, "wb") as f:
        f.truncate(4 * LONGEST_YAML + 1)
    monkeypatch.setattr("psr_nb.recipe.input_bytes", lambda path: pytest.fail(f"{path} was read"))
    for read in (recipe_value, load_recipe):
        with pytest.raises(
            InputError, match="weights.yaml: 200,001 bytes; a recipe has at most 200,000"
        ):
            read(str(large))
