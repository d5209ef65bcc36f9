"""The examples of the notebooks, run against the library as it is installed.

`python tests/examples.py` builds the wheel, installs it into an empty folder, and runs every notebook with
its exported cells replaced by the names of the installed module: a function that only works because a hidden
cell of its notebook imported something fails here. It ends with the public functions that no example has
called, and fails if there are any or an example did.
"""

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"

# Public functions that no example can call in its own process, and what tests them.
ELSEWHERE = {
    "psr_nb.jobs.child_main": "the entry point of a child process: every job that an example runs",
    "psr_nb.dashboard.rejudge.rejudge_job": "runs in a child process: rejudge_in_child",
    "psr_nb.dashboard.probe.probe_job": "runs in a child process: probe_in_child",
    "psr_nb.engines.fleet.worker": "the entry point of an engine's process: every fleet",
    "psr_nb.jobs.rank_main": "the entry point of a process among several: tests/test_hardware.py",
    "psr_nb.jobs.node_main": "the entry point of a node's processes: tests/test_hardware.py",
    "psr_nb.maths.grade.serve": "the entry point of a grader's process: grade_all",
    "psr_nb.engines.transformers.from_gguf": "needs a GGUF file: make smollm2, for the slow tests",
}


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


def shell_for(module: str | None):
    "A shell whose names are those of the installed module, and which displays nothing."
    from execnb.shell import CaptureShell

    shell = CaptureShell()
    if module:
        shell.user_ns.update(vars(importlib.import_module(module)))
        shell.user_ns["__name__"] = "__main__"
        shell.user_ns.pop("__file__", None)
    return shell


def run_notebook(path: Path) -> list[str]:
    "Run one notebook's examples; the public functions that were called."
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    named = re.search(r"^#\|\s*default_exp (\S+)", "\n".join(sources), re.M)
    module = "psr_nb." + named[1].removesuffix(".__init__") if named else None
    wanted, called = public_functions(), set()

    def trace(frame, event, arg):
        if frame.f_code in wanted:
            called.add(frame.f_code)

    os.chdir(path.parent)
    shell = shell_for(module)
    sys.settrace(trace)
    threading.settrace(trace)
    for n, source in enumerate(sources):
        if re.match(r"#\|\s*(default_exp|export)", source) or re.search(
            r"^#\|\s*(slow|eval: false)", source, re.M
        ):
            continue
        shell.run(source)
        if shell.exc:
            raise SystemExit(f"cell {n} of {path.name} failed:\n{source}\n{shell.exc!r}")
    sys.settrace(None)
    return sorted(wanted[code] for code in called)


def one(path: Path, site: Path, folder: Path) -> tuple[Path, list[str] | None, str]:
    "(notebook, functions called or None if it failed, what it printed) of a process of its own."
    out = folder / (path.relative_to(NOTEBOOKS).as_posix().replace("/", "_") + ".json")
    env = os.environ | {
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
        "PLOTLY_RENDERER": "plotly_mimetype",
    }
    start = time.time()
    command = [sys.executable, __file__, "--one", path, "--out", out]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=folder)
        printed = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        printed = "not over after ten minutes"
    name = path.relative_to(ROOT)
    print(
        f"- {'Completed' if out.exists() else 'FAILED'} {name} in {time.time() - start:.0f} s",
        flush=True,
    )
    return path, json.loads(out.read_text()) if out.exists() else None, printed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="a pattern of notebooks' paths")
    args = parser.parse_args()
    if args.one:
        called = run_notebook(args.one)
        args.out.write_text(json.dumps(called))
        os._exit(0)  # no waiting for what an example left running
    books = [p for p in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    books = [p for p in books if not args.only or re.search(args.only, str(p))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = installed(folder)
        largest_first = sorted(books, key=lambda p: -p.stat().st_size)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda p: one(p, site, folder), largest_first))
        listed = [sys.executable, "-c", "import examples; print(*examples.public_functions().values())"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parent)])}
        everything = subprocess.run(
            listed, env=env, capture_output=True, text=True, cwd=folder, check=True
        )
    failed = [(p, printed) for p, called, printed in results if called is None]
    for p, printed in failed:
        print(f"\n{p.relative_to(ROOT)}:\n{printed[-4000:]}")
    seen = {name for _, called, _ in results for name in called or ()} | set(ELSEWHERE)
    missed = [] if args.only or failed else sorted(set(everything.stdout.split()) - seen)
    if missed:
        print("\npublic functions that no example calls:", *missed, sep="\n  ")
    print(
        f"examples: {len(results) - len(failed)} notebooks passed, {len(failed) + bool(missed)} failed"
    )
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
