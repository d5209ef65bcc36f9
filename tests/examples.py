"""The examples of the notebooks, run against the library as it is installed.

`python tests/examples.py` builds the wheel, installs it into an empty folder, and runs every notebook with
its exported cells replaced by their names in the installed module: a function that only works because a
hidden cell of its notebook imported something fails here. It ends with the public functions that no example
has called, and fails if there are any or an example did.
"""

import argparse
import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"

# Public functions that no example can call in its own process, and what tests them.
ELSEWHERE = {
    "psr_nb.jobs.child_main": "the entry point of a child process: every job that an example runs",
    "psr_nb.dashboard.rejudge.rejudge_job": "runs in a child process: rejudge_in_child",
    "psr_nb.dashboard.probe.probe_job": "runs in a child process: probe_in_child",
    "psr_nb.engines.fleet.worker": "the entry point of an engine's process: every fleet",
    "psr_nb.engines.forkserver.server_main": "the entry point of a fork server: every run",
    "psr_nb.jobs.rank_main": "the entry point of a process among several: tests/test_hardware.py",
    "psr_nb.jobs.node_main": "the entry point of a node's processes: tests/test_hardware.py",
    "psr_nb.maths.grade.serve": "the entry point of a grader's process: grade_all",
    "psr_nb.engines.transformers.from_gguf": "needs a GGUF file: make smollm2, for the slow tests",
}

# What most notebooks import, so that it is imported once and not by each; they are forked from that process.
PRELOADED = [
    "execnb.shell",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
    "plotly.graph_objects",
]

# The notebooks that take longest, to be begun first.
LONG = ["grade", "20_run", "bench", "quickstart", "ray", "main", "fleet", "card", "09_dpo"]


def longest_first(path: Path):
    "A sorting key: the order of LONG, then by size."
    place = LONG.index(path.stem) if path.stem in LONG else len(LONG)
    return place, -path.stat().st_size


def installed(folder: Path) -> Path:
    "Build the wheel from the files git would take, and install it alone; the folder it is in."
    copy, site = folder / "copy", folder / "site"
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *quiet, "-w", folder, copy], check=True, stdout=subprocess.DEVNULL)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", site, wheel], check=True)
    return site


def public_functions() -> dict:
    "Code object -> dotted name of every public function of every module that can be imported."
    import psr_nb

    found = {}
    for info in pkgutil.walk_packages(psr_nb.__path__, "psr_nb."):
        if info.name.split(".")[1] in ("data", "_modidx"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            f = inspect.unwrap(getattr(module, name))
            if inspect.isfunction(f) and f.__module__ == info.name:
                found[f.__code__] = f"{info.name}.{name}"
    return found


def names_of(source: str) -> set[str]:
    "The names that a cell of code defines or imports."
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        else:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found


def run_notebook(path: Path) -> list[str]:
    """Run one notebook's examples; the public functions that were called.

    Where it exports a cell, the cell's names become those of the installed module: an example that uses a
    name before the notebook has it fails, as it does in the notebook."""
    from execnb.shell import CaptureShell

    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    named = re.search(r"^#\|\s*default_exp (\S+)", "\n".join(sources), re.M)
    module = importlib.import_module("psr_nb." + named[1].removesuffix(".__init__")) if named else None
    wanted, called = public_functions(), set()

    def trace(frame, event, arg):
        if frame.f_code in wanted:
            called.add(frame.f_code)

    os.chdir(path.parent)
    shell = CaptureShell()
    sys.settrace(trace)
    threading.settrace(trace)
    for n, source in enumerate(sources):
        if re.match(r"#\|\s*export", source):
            names = names_of(source)
            shell.user_ns.update({k: v for k, v in vars(module).items() if k in names})
        if re.match(r"#\|\s*(default_exp|export)", source) or re.search(
            r"^#\|\s*(slow|eval: false)", source, re.M
        ):
            continue
        shell.run(source)
        if shell.exc:
            raise SystemExit(f"cell {n} of {path.name} failed:\n{source}\n{shell.exc!r}")
    sys.settrace(None)
    return sorted(wanted[code] for code in called)


def begun(path: Path, out: Path) -> int:
    "A process of its own, forked from this one, that runs a notebook; its id."
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    printed = os.open(out.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    try:
        called = run_notebook(path)
        out.write_text(json.dumps(called))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)  # no waiting for what an example left running


def run_all(books: list[Path], folder: Path):
    "Run notebooks, two at a time, each in a process forked from this one; write what each called."
    public_functions()
    for name in PRELOADED:
        importlib.import_module(name)
    waiting, running = list(books), {}
    while waiting or running:
        while waiting and len(running) < 2:
            path, now = waiting.pop(0), time.time()
            running[begun(path, folder / result_of(path))] = path, now
        time.sleep(0.05)
        for pid, (path, start) in list(running.items()):
            if time.time() - start > 600:
                os.killpg(pid, signal.SIGKILL)
                (folder / result_of(path)).with_suffix(".txt").open("a").write(
                    "not over after ten minutes"
                )
            if os.waitpid(pid, os.WNOHANG)[0]:
                del running[pid]
                how = "Completed" if (folder / result_of(path)).exists() else "FAILED"
                print(f"- {how} {path.relative_to(ROOT)} in {time.time() - start:.0f} s", flush=True)
    (folder / "everything").write_text(" ".join(public_functions().values()))


def result_of(path: Path) -> str:
    "The name of the file with what a notebook called."
    return path.relative_to(NOTEBOOKS).as_posix().replace("/", "_") + ".json"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--here", type=Path, help="the folder of results; psr_nb is the installed one")
    parser.add_argument("--only", default="", help="a pattern of notebooks' paths")
    args = parser.parse_args()
    books = [p for p in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    books = [p for p in books if re.search(args.only, str(p))]
    if args.here:
        run_all(sorted(books, key=longest_first), args.here)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        env = os.environ | {
            "PYTHONPATH": str(installed(folder)),
            "OMP_NUM_THREADS": "1",
            "PLOTLY_RENDERER": "plotly_mimetype",
        }
        command = [sys.executable, __file__, "--only", args.only, "--here", folder]
        subprocess.run(command, env=env, cwd=folder, check=True)
        done = [folder / result_of(p) for p in books]
        failed = [p for p, out in zip(books, done, strict=True) if not out.exists()]
        for p in failed:
            printed = (folder / result_of(p)).with_suffix(".txt").read_text()
            print(f"\n{p.relative_to(ROOT)}:\n{printed[-4000:]}")
        seen = {name for out in done if out.exists() for name in json.loads(out.read_text())}
        everything = set((folder / "everything").read_text().split())
    missed = [] if args.only or failed else sorted(everything - seen - set(ELSEWHERE))
    if missed:
        print("\npublic functions that no example calls:", *missed, sep="\n  ")
    passed = len(books) - len(failed)
    print(f"examples: {passed} notebooks passed, {len(failed) + bool(missed)} failed")
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
