"Child processes: what they import and from where, and two commands at once in one folder."

import os
import subprocess
import sys
from pathlib import Path

from test_old_runs import EVAL

from psr_nb.files import locked, read_jsonl

PSR = Path(sys.executable).parent / "psr_nb"

JOBS = """
from psr_nb.run import _imported
import yaml
def seen(recipe, domain_from, progress):
    return [_imported(recipe, domain_from).domain, yaml.__name__]
"""

PARENT = """
import os, sys
from dataclasses import asdict
from psr_nb.jobs import run_job
from psr_nb.recipe import load_recipe
from psr_nb.run import domain_folder
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
