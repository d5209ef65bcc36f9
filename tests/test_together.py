"Several at work on one run: two that judge it again, two that probe it, and readers while it is written."

import json
import shutil
import subprocess
import sys
import time

import pytest

from psr_nb.dashboard.report import report_json
from psr_nb.dashboard.runs import Iteration, look, run_indexes
from psr_nb.files import packaged
from psr_nb.folder import open_run

REJUDGE = """
import sys
from psr_nb.dashboard.rejudge import rejudge_in_child
from psr_nb.folder import open_run
print(rejudge_in_child(open_run(sys.argv[1]), "judge", 2, "packaged:models/demo-m0", 6))
"""
PROBE = """
import random, sys
from psr_nb.dashboard.probe import probe_in_child
from psr_nb.domains.arithmetic import draw_problems
from psr_nb.folder import open_run
questions = draw_problems(6, random.Random(99), "probe", set())
print(probe_in_child(open_run(sys.argv[1]), "judge", "M1=packaged:models/demo-m1", questions))
"""
WRITER = """
import os, sys, time
source, to = sys.argv[1:]
data = open(source, "rb").read()
with open(to, "wb", buffering=0) as f:
    part = len(data) // 20 + 1  # less than a line
    for i in range(0, len(data), part):
        f.write(data[i : i + part])
        time.sleep(0.25)
"""


@pytest.fixture
def run(tmp_path):
    shutil.copytree(packaged("runs/demo"), tmp_path / "run")
    return open_run(tmp_path / "run")


def started(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [REJUDGE, PROBE], ids=["rejudge", "probe"])
def test_two_at_once_do_the_work_once(run, code):
    both = [started(code, run.path) for _ in range(2)]
    said = [p.communicate(timeout=300) for p in both]
    codes = [p.returncode for p in both]
    assert 0 in codes
    for (_, errors), rc in zip(said, codes, strict=True):
        assert rc == 0 or "another process is at work" in errors, errors
    path = next(out for out, _ in said if out).strip()
    rows = [json.loads(line) for line in open(path)]
    keys = [(r.get("problem_id"), r.get("step"), r.get("attempt"), r.get("id")) for r in rows]
    assert len(keys) == len(set(keys)) > 3


def test_readers_of_a_run_that_is_being_written(run):
    "An explorer or a report sees whole searches only, never fewer than before, and all of them at the end."
    path = Iteration(run, "judge", 2).trajectories
    whole = path.read_bytes()
    before = report_json(run)
    source = run.path / "source"
    source.write_bytes(whole)
    path.write_bytes(b"")
    path.with_suffix(".index.json").unlink(missing_ok=True)
    writer, seen = started(WRITER, source, path), []
    while writer.poll() is None:
        assert not [n for n in look(run.path).notes if "not a search of this layout" in n]
        report_json(run)
        seen.append(len(run_indexes(run, "judge")["M2"].rows))
        time.sleep(0.05)
    assert writer.returncode == 0 and seen == sorted(seen) and len(set(seen)) > 2
    assert report_json(run) == before
    assert len(run_indexes(run, "judge")["M2"].rows) == whole.count(b"\n")
