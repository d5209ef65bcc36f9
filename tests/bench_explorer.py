"""Open a made-up run of 1,200 problems, 10,000 steps and 300,000 judgements in the explorer.

`python tests/bench_explorer.py` prints seconds to open it, for the first time and with its index, to choose
an iteration, milliseconds to choose a problem, and the peak of memory; it fails beyond 5 s, 300 ms and 1 GB.
Then how long the HTML report takes to write, and its size, with the usual sample and with all that fit.
"""

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path


def timed(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def build(folder: Path, steps: int = 9):
    from made_up_run import made_up_run

    words = (
        "so the sum of both sides is what candidate A says while B drops a carry "
        "and then the answer would be wrong"
    ).split()
    rng = random.Random(0)

    def say():
        return " ".join(rng.choices(words, k=60)) + f" [[{rng.choice('AB')}]]"

    def step():
        return r"so $x = \frac{1}{2}$ and " + " ".join(rng.choices(words, k=25))

    return made_up_run(
        folder / "big", ["What is x? " * 10] * 1200, steps=steps, w=6, iterations=3, text=step, judge=say
    )


def main(problems: int = 40):
    with tempfile.TemporaryDirectory() as d:
        run = build(Path(d))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        imported = timed(lambda: __import__("psr_nb.dashboard.explorer"))
        from psr_nb.dashboard.explorer import RunExplorer

        made = []
        first = timed(lambda: made.append(RunExplorer(run)))
        x = made[0]
        into = [timed(lambda m=m: x.go_into(m)) for m in ("M2", "M3", "M4")]
        again = timed(lambda: made.append(RunExplorer(run)))
        indexed = timed(lambda: made[1].go_into("M3"))
        keys = [timed(lambda: x.keyboard.press("n")) for _ in range(problems)]
        assert (
            len({x.steps.problems.selected})
            and x.steps.problems.selected == x.steps.problems.rows[problems]["key"]
        )
        judged = sum(r["comparisons"] for i in x.indexes.values() for r in i.rows)
        steps = sum(r["tried"] for i in x.indexes.values() for r in i.rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        from psr_nb.dashboard.report import report_html

        pages = []
        report = [timed(lambda n=n: pages.append(report_html(run, n))) for n in (20, 1200)]
        size = sum(f.stat().st_size for f in run.rglob("trajectories.jsonl")) / 1e6
    out = {
        "problems": 1200,
        "steps": steps,
        "judgements": judged,
        "megabytes": round(size),
        "import_s": round(imported, 2),
        "open_s": round(first, 2),
        "into_iteration_s": [round(v, 2) for v in into],
        "open_again_s": round(again, 2),
        "into_iteration_indexed_s": round(indexed, 2),
        "problem_ms_median": round(1000 * sorted(keys)[len(keys) // 2]),
        "problem_ms_worst": round(1000 * max(keys)),
        "report_s": [round(v, 1) for v in report],
        "report_mb": [round(len(p.encode()) / 1e6, 1) for p in pages],
        "peak_gb": round(peak, 2),
        "peak_before_gb": round(before, 2),
    }
    print(json.dumps(out, indent=1))
    ok = first + into[0] < 5 and max(keys) < 0.3 and peak < 1
    sys.exit(not ok)


if __name__ == "__main__":
    main()
