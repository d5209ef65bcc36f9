"The grader's workers: killed, starved, worn out or asked by a script, they change no verdict."

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from psr_nb.maths import grade
from psr_nb.records import InputError

PAIRS = [(f"x+{i}", f"{i}+x" if i % 3 else f"{i}-x") for i in range(60)]
RIGHT = [bool(i % 3) for i in range(60)]


def workers() -> list[int]:
    "The process ids of this process's workers."
    told = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "grade import serve"], capture_output=True, text=True
    )
    return [int(pid) for pid in told.stdout.split()]


def megabytes(pid: int) -> int:
    "What a process holds of memory."
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() >> 20


def test_workers_killed_in_the_middle_change_no_verdict():
    stop, killed, seen = threading.Event(), [], set()

    def kill():
        "Every worker that has had the time to begin, whatever it does."
        while not stop.wait(2.5):
            for pid in seen.intersection(workers()):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            seen.update(workers())

    thread = threading.Thread(target=kill)
    thread.start()
    found, until = [], time.time() + 60
    while time.time() < until and len(killed) < 4:
        found.append(grade.grade_all(PAIRS, workers=2))
    stop.set()
    thread.join()
    assert len(killed) >= 4
    for verdicts in found:
        assert [equal for equal, _ in verdicts] == RIGHT


def test_a_worker_killed_while_it_starts_is_started_again(monkeypatch):
    killed = []

    def start(*args, **kwargs):
        process = subprocess.Popen(*args, **kwargs)
        if len(killed) < 2:
            killed.append(process.kill())
        return process

    monkeypatch.setattr(grade, "_idle", [])
    monkeypatch.setattr(
        grade, "subprocess", type("stand_in", (), {"Popen": start, "PIPE": subprocess.PIPE})
    )
    assert grade.grade_all(PAIRS[:2], workers=1) == [(False, "symbolic"), (True, "symbolic")]
    assert len(killed) == 2


def test_an_idle_worker_that_was_killed_is_replaced():
    grade.grade_all(PAIRS[:2], workers=1)
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    assert grade.grade_all(PAIRS[:2], workers=1) == [(False, "symbolic"), (True, "symbolic")]


def test_a_worker_without_memory_is_no_verdict(monkeypatch):
    """A worker that has used up its memory is replaced; one that can't even start is told in a sentence."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from psr_nb.maths import grade
print(grade.grade_all([("x+1", "1+x"), ("x+1", "x-1")], workers=1))
"""
    enough = subprocess.run(
        [sys.executable, "-c", code.format(limit=2 << 30)], capture_output=True, text=True
    )
    assert enough.stdout.strip() == "[(True, 'symbolic'), (False, 'symbolic')]", enough.stderr
    answers = iter([(False, "error MemoryError"), None])
    asked = grade._Worker.ask
    monkeypatch.setattr(
        grade._Worker, "ask", lambda self, *job: next(answers, None) or asked(self, *job)
    )
    assert grade.grade_all([("x+1", "1+x")], workers=1) == [(True, "symbolic")]


def test_no_worker_at_all_is_told(monkeypatch):
    monkeypatch.setattr(grade.sys, "executable", "/bin/false")
    monkeypatch.setattr(grade, "_idle", [])
    with pytest.raises(
        InputError, match="grading needs a process of its own, and none could be started"
    ):
        grade.grade_all([("x+1", "1+x")])


def test_a_script_without_a_main_guard_grades(tmp_path):
    "Workers don't import it, so it needs none."
    script = tmp_path / "script.py"
    script.write_text(
        "from psr_nb.maths.grade import grade_all\nprint(grade_all([('x+1', '1+x'), ('x+1', 'x-1')]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[(True, 'symbolic'), (False, 'symbolic')]"


def test_workers_end_with_the_process_that_asks():
    code = "from psr_nb.maths.grade import _idle, grade_all; grade_all([('x', '2*x')])"
    code += "; print(_idle[0].process.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    until = time.time() + 20
    while os.path.exists(f"/proc/{int(done.stdout)}") and time.time() < until:
        time.sleep(0.1)
    assert time.time() < until and done.stderr == ""


def rows(n: int, start: int) -> tuple[list[tuple[str, str]], list[bool]]:
    "(pairs, verdicts) of many comparisons; two of five are not settled by the text and go to a worker."
    pairs, right = [], []
    for i in range(start, start + n):
        right.append(bool(i % 3))
        if i % 5 < 2:
            pairs.append((f"x+{i}", f"{i}+x" if i % 3 else f"{i}-x"))
        else:
            pairs.append((str(i), str(i if i % 3 else i + 1)))
    return pairs, right


@pytest.mark.slow
def test_a_hundred_thousand_answers_in_a_row():
    "Memory stays flat, here and in the workers, and the last verdicts are as right as the first."
    here, there = [], []
    for start in range(0, 100_000, 10_000):
        pairs, right = rows(10_000, start + 1)
        assert [equal for equal, _ in grade.grade_all(pairs)] == right
        here.append(megabytes(os.getpid()))
        there.append(max(map(megabytes, workers()), default=0))  # none: it has had its answers
    assert max(here) - here[0] < 100 and max(there) < 300, (here, there)
