"""The shell lines of the tutorial "Scaling out": all are understood, and those that need no GPU are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from psr_nb.cli.data import engine_changes, given_settings
from psr_nb.cli.main import parser
from psr_nb.recipe import load_recipe
from psr_nb.studies.placement import Hardware, machine_for
from psr_nb.studies.plan import plan_recipe, refuse_unfit

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs" / "tutorials" / "scaling_out.ipynb"


def shell_blocks() -> list[str]:
    "The fenced shell blocks of the tutorial, in order."
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)


def needs_more(block: str) -> bool:
    "Does a block say that it needs what a test machine may not have?"
    return re.match(r"(#!.*\n)?# needs ", block) is not None


def commands(block: str) -> list[list[str]]:
    "The arguments of each `psr_nb` line of a block."
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("||")[0])[1:] for line in lines if line.startswith("psr_nb ")]


EVERY = [(block, args) for block in shell_blocks() for args in commands(block)]


@pytest.mark.parametrize("args", [args for _, args in EVERY], ids=" ".join)
def test_every_command_is_one(args):
    read = parser().parse_args(args)
    if args[0] in ("run", "plan"):
        load_recipe(read.recipe, **given_settings(read.set))
    elif "--set" in args:
        assert engine_changes(read.set)


@pytest.mark.parametrize("block", shell_blocks())
def test_every_block_is_shell(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True, timeout=60)


SIZES = (
    r"# needs (?:a GPU|(?P<gpus>\d+) GPUs|.*?(?P<nodes>\d+) nodes of (?P<each>\d+) GPUs)"
    r"(?: with (?P<memory>\d+))?"
)


@pytest.mark.parametrize("block", [b for b in shell_blocks() if needs_more(b) and "psr_nb run" in b])
def test_what_a_run_needs_is_enough(block):
    said = re.search(SIZES, block)
    gpus, nodes = int(said["gpus"] or said["each"] or 1), int(said["nodes"] or 1)
    for args in commands(block):
        if args[0] == "run":
            read = parser().parse_args(args)
            machine = Hardware(gpus=gpus, nodes=nodes, gpu_memory=float(said["memory"] or 80))
            r = load_recipe(read.recipe, **given_settings(read.set))
            refuse_unfit(plan_recipe(r, machine))
            assert machine_for(r)[1].nodes == nodes


@pytest.mark.slow
def test_what_needs_no_gpu_runs(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = []
    for block in (b for b in shell_blocks() if not needs_more(b)):
        ran = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stderr[-2000:]}"
        said.append(ran)
    assert "--probe 8 measures them" in said[1].stdout
    assert "hours from rates measured on this machine" in said[1].stdout
    assert "training" in said[2].stderr and "training" not in said[3].stderr  # nothing is left to do
    assert said[2].stdout == said[3].stdout
