"The tutorial of a domain in 20 lines, from an empty folder and the wheel: its commands, then its cells."

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from examples import ROOT, installed

TUTORIAL = ROOT / "nbs" / "tutorials" / "your_domain.ipynb"
WRITES = re.compile(r"%%writefile (\S+)\n(.*)", re.S)


def sources(kind: str) -> list[str]:
    cells = json.loads(TUTORIAL.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def files() -> dict[str, str]:
    "The files that the tutorial has one write."
    return {m[1]: m[2] for source in sources("code") if (m := WRITES.match(source))}


def commands() -> list[str]:
    found = re.findall(r"```sh\n(.*?)```", "\n".join(sources("markdown")), re.S)
    return [line for block in found for line in block.splitlines()]


def test_the_domain_has_twenty_lines():
    lines = [line for line in files()["chains.py"].splitlines() if line.strip()]
    assert len(lines) == 20


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "(folder, environment, transcript, seconds of the processor) of the commands, with the wheel alone."
    site, folder = installed(tmp_path_factory.mktemp("wheel")), tmp_path_factory.mktemp("empty")
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(site), "PATH": path, "OMP_NUM_THREADS": "2"}
    for name, text in files().items():
        (folder / name).write_text(text)
    before, said = resource.getrusage(resource.RUSAGE_CHILDREN), ""
    for line in commands():
        ran = subprocess.run(
            line.split(), cwd=folder, env=env, capture_output=True, text=True, timeout=900
        )
        said += f"$ {line}\n{ran.stdout}{ran.stderr}"
        assert ran.returncode == 0, said
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return folder, env, said, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_commands_of_the_tutorial(done):
    folder, _, said, seconds = done
    print(said)
    assert seconds < 180  # and so less than three minutes on two cores
    assert re.search(r"judge +M2 ", said)
    assert (folder / "report.html").stat().st_size > 10_000
    for row in (json.loads(line) for line in open(folder / "runs/chains/data/ift.jsonl")):
        assert row["steps"][-1] == f"answer {row['answer']}"
    pairs = [json.loads(line) for line in open(folder / "runs/chains/M2/pairs.jsonl")]
    assert len(pairs) > 8 and not any("Step" in p["chosen"] + p["rejected"] for p in pairs)


@pytest.mark.slow
def test_the_run_goes_on_from_another_folder(done, tmp_path):
    "Its domain is found beside the recipe; a change of it is said, one that breaks it refused."
    folder, env, _, _ = done
    line = ["psr_nb", "run", str(folder / "chains.yaml"), "--out", str(folder / "runs/chains")]

    def again():
        return subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    (folder / "runs/chains/M2/metrics.json").unlink()  # for a child process to do
    ran = again()
    assert ran.returncode == 0, ran.stderr
    assert (folder / "runs/chains/M2/metrics.json").exists() and "M2: loading M2" in ran.stderr
    domain = (folder / "chains.py").read_text()
    (folder / "chains.py").write_text(domain + "# edited\n")
    ran = again()
    assert ran.returncode == 0 and "chains.py:CHAINS' has changed since the run began" in ran.stderr
    (folder / "chains.py").write_text(domain.replace("gold == answer", "gold != answer"))
    ran = again()
    (folder / "chains.py").write_text(domain)
    assert ran.returncode == 2 and "is not the same as itself" in ran.stderr


@pytest.mark.slow
def test_cells_of_the_tutorial(done):
    "All cells, the slow ones too; they find the run as the commands have left it, and go on to the explorer."
    folder, env, _, _ = done
    code = f"""
import tempfile
from execnb.shell import CaptureShell
tempfile.mkdtemp = lambda: {str(folder)!r}
shell = CaptureShell()
for source in {sources("code")!r}:
    shell.run(source)
    if shell.exc:
        raise SystemExit(source + repr(shell.exc))
print(shell.user_ns["explorer"].steps.count.value, shell.user_ns["done"].domain.name)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split()[-1] == "chains"
