"""Run the notebooks' examples and pytest, and end with `N passed, N failed`.

`python tests/run_all.py` is the quick suite: every notebook's examples against the installed wheel, and the
tests that are not marked slow. `--slow` is the rest: nbdev_test on the notebooks with cells marked `#| slow`,
and the slow tests. It fails if nothing ran.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FAILED = []  # what the failed commands said of it, for the end of a long log


def what_failed(out: str) -> str:
    "pytest's account of its failures, or the end of what another command printed."
    found = re.findall(r"^=+ (?:FAILURES|ERRORS) =+$.*?(?=^=+ [a-z])", out, flags=re.M | re.S)
    return "\n".join(part[-5000:] for part in found) or out[-3000:]


def run(*command, minutes) -> tuple[str, int]:
    """Run a command, show what it prints as it prints it, and return that with the exit code.

    It is killed, with its children, when time is up."""
    p = subprocess.Popen(
        [str(c) for c in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def stop(why=f"not over after {minutes} minutes"):
        print(f"\n{why}, killed: {' '.join(map(str, command))}", flush=True)
        os.killpg(p.pid, signal.SIGKILL)

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True  # not to outlive a Ctrl-C
    timer.start()
    lines = []
    try:
        for line in p.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        out, code = "".join(lines), p.wait()
        if code not in (0, 5):
            FAILED.append(what_failed(out))
        return out, code
    except KeyboardInterrupt:  # which the terminal sends to this session only
        stop("interrupted")
        raise
    finally:
        timer.cancel()


def examples(minutes) -> tuple[int, int]:
    "(passed, failed) notebooks whose examples ran against the installed wheel."
    out, code = run(sys.executable, ROOT / "tests" / "examples.py", minutes=minutes)
    told = re.search(r"(\d+) notebooks passed, (\d+) failed", out)
    passed, failed = map(int, told.groups()) if told else (0, 1)
    return passed, failed or int(bool(code))


def notebooks(*flags, minutes) -> tuple[int, int]:
    "(passed, failed) notebooks of nbdev_test."
    out, code = run(BIN / "nbdev_test", "--n_workers", "2", "--do_print", *flags, minutes=minutes)
    ran = set(re.findall(r"^- Completed (.*)$", out, flags=re.M))
    failed = out.partition("nbdev Tests Failed On The Following Notebooks")[2].count(".ipynb")
    if code and not failed:
        return len(ran), 1  # it did not get as far as to say which
    return len(ran) - failed, failed


def slow_notebooks() -> tuple[int, int]:
    "(passed, failed) of nbdev_test on the notebooks with slow cells; `examples` runs all others."
    books = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    marked = [p.name for p in books if '"#| slow' in p.read_text()]
    names = "|".join(map(re.escape, marked))
    return notebooks("--file_re", f"^({names})$", "--flags", "slow", minutes=30)


def tests(*flags, minutes) -> tuple[int, int, int]:
    "(passed, failed, skipped) of pytest."
    out, code = run(
        sys.executable, "-m", "pytest", "-v", "-rfEs", "--durations=15", *flags, minutes=minutes
    )
    last = out.strip().splitlines()[-1]

    def count(what):
        return sum(int(n) for n in re.findall(rf"(\d+) {what}", last))

    failed = count("failed") + count("errors?")
    return count("passed"), failed or int(code not in (0, 5)), count("skipped")


def quick_tests() -> tuple[int, int, int]:
    "The tests in two processes, for many wait for a child, then the browser's, which want the machine alone."
    folder = ROOT / "tests"
    browser, longest = folder / "test_browser.py", folder / "test_kill.py"
    others = sorted(set(folder.glob("test_*.py")) - {browser, longest})
    two = ("-m", "not slow", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    parts = [
        tests(longest, *others, *two, minutes=25),  # the longest is begun first, beside all the others
        tests(browser, "-m", "not slow", minutes=12),
    ]
    return tuple(map(sum, zip(*parts, strict=True)))


def main():
    start, slow = time.time(), "--slow" in sys.argv
    nb = slow_notebooks() if slow else examples(minutes=30)
    if slow:
        py = tests("tests", "-m", "slow", "-n", "2", "--dist", "load", minutes=60)
    else:
        py = quick_tests()
    print(*FAILED, sep="\n")
    passed, failed = nb[0] + py[0], nb[1] + py[1]
    print(f"\n{nb[0]} notebooks and {py[0]} tests passed in {(time.time() - start) / 60:.1f} minutes")
    print(f"{passed} passed, {failed} failed" + (f", {py[2]} skipped" if py[2] else ""))
    sys.exit(bool(failed) or not passed)


main()
