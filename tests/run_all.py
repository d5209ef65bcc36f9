"""Run nbdev_test and pytest, and end with `N passed, N failed`.

`python tests/run_all.py` is the whole quick suite, `--slow` the notebooks with cells marked `#| slow`, and the tests that take minutes.
It fails if nothing ran.
"""
import os, re, signal, subprocess, sys, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command, minutes, **env) -> tuple[str, int]:
    "Run a command, show what it prints as it prints it, and return that with the exit code; killed, with its children, when time is up."
    p = subprocess.Popen([str(c) for c in command], cwd=ROOT, env={**os.environ, **env}, text=True, start_new_session=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    def stop(why=f"not over after {minutes} minutes"):
        print(f"\n{why}, killed: {' '.join(map(str, command))}", flush=True)
        os.killpg(p.pid, signal.SIGKILL)
    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True   # not to outlive a Ctrl-C
    timer.start()
    lines = []
    try:
        for line in p.stdout: print(line, end="", flush=True); lines.append(line)
        return "".join(lines), p.wait()
    except KeyboardInterrupt:   # which the terminal sends to this session only
        stop("interrupted")
        raise
    finally: timer.cancel()


def notebooks(*flags, minutes) -> tuple[int, int]:
    "(passed, failed) notebooks of nbdev_test."
    out, code = run(BIN/"nbdev_test", "--n_workers", "2", "--do_print", *flags, minutes=minutes, OMP_NUM_THREADS="1")
    ran = set(re.findall(r"^- Completed (.*)$", out, flags=re.M))
    failed = out.partition("nbdev Tests Failed On The Following Notebooks")[2].count(".ipynb")
    if code and not failed: return len(ran), 1   # it did not get as far as to say which
    return len(ran) - failed, failed


def slow_notebooks() -> tuple[int, int]:
    "(passed, failed) of every notebook that has a slow cell, those cells included."
    marked = [p.name for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if '"#| slow' in p.read_text()]
    return notebooks("--file_re", f"^({'|'.join(map(re.escape, marked))})$", "--flags", "slow", minutes=30)


def tests(*flags, minutes) -> tuple[int, int, int]:
    "(passed, failed, skipped) of pytest."
    out, code = run(sys.executable, "-m", "pytest", "-v", "-rs", "--durations=15", *flags, minutes=minutes, OMP_NUM_THREADS="1")
    count = lambda what: sum(int(n) for n in re.findall(rf"(\d+) {what}", out.strip().splitlines()[-1]))
    failed = count("failed") + count("errors?")
    return count("passed"), failed or int(code not in (0, 5)), count("skipped")


def quick_tests() -> list[tuple[int, int, int]]:
    "(passed, failed, skipped) of the tests in two processes, for many wait for a child, and then of the browser's, which want the machine for themselves."
    browser, longest = ROOT/"tests"/"test_browser.py", ROOT/"tests"/"test_kill.py"   # the longest is begun first, beside all the others
    others = sorted(set((ROOT/"tests").glob("test_*.py")) - {browser, longest})
    return [tests(longest, *others, "-m", "not slow", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", minutes=15),
            tests(browser, "-m", "not slow", minutes=12)]


def main():
    start, slow = time.time(), "--slow" in sys.argv
    nb = slow_notebooks() if slow else notebooks(minutes=12)
    if slow: py = tests("tests", "-m", "slow", "-n", "2", "--dist", "load", minutes=45)
    else: py = [sum(x) for x in zip(*quick_tests())]
    passed, failed = nb[0] + py[0], nb[1] + py[1]
    print(f"\n{nb[0]} notebooks and {py[0]} tests passed in {(time.time() - start) / 60:.1f} minutes")
    print(f"{passed} passed, {failed} failed" + (f", {py[2]} skipped" if py[2] else ""))
    sys.exit(bool(failed) or not passed)


main()
