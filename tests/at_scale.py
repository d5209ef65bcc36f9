"""What an iteration's search costs beside its model: `python tests/at_scale.py PROBLEMS FOLDER [ARM] [STOP]`.

An engine that answers at once searches so many problems of ten steps. STOP ends the process, as a kill does,
when so many are done; the same command without it goes on. Each phase is a line of JSON."""

import json
import os
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

from instant_engine import InstantEngine

from psr_nb.files import write_jsonl
from psr_nb.folder import Run, Target
from psr_nb.recipe import load_recipe
from psr_nb.records import Problem
from psr_nb.searches import is_searched, pairs_of, search_figures, search_questions, trajectories_of


def memory() -> dict[str, float]:
    "MiB of this process: now, and at most so far."
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return {name: int(sizes[f"Vm{name}"].split()[0]) / 1024 for name in ("RSS", "HWM")}


def target_of(n: int, folder: Path, arm: str) -> Target:
    "The making of M2 from so many questions, which are written where they are not there."
    recipe = load_recipe("fast", questions=[n], arms=[arm], **{"search.w": 2, "search.max_steps": 20})
    run = Run(recipe, folder)
    if not run.data("questions-2").exists():
        questions = (
            Problem(f"q-{i}", f"Tom has {i} apples. How many apples now?", "2") for i in range(n)
        )
        write_jsonl(run.data("questions-2"), questions)
    return Target(run, arm, 2)


class Searching:
    "Progress of a search: when the first problem was done, and the process's end when enough are."

    def __init__(self, stop: int | None):
        self.stop, self.start = stop, time.perf_counter()
        self.first, self.done, self.begun = None, 0, False

    def __call__(self, what, done, total):
        if not self.begun:  # the phase is announced before its first problem is done
            self.begun = True
            return
        self.first = self.first or time.perf_counter() - self.start
        self.done += 1
        if done == self.stop:
            tell("stopped", self.start, self.done, first=self.first)
            os._exit(9)


def tell(phase: str, start: float, problems: int, **more):
    "One line for a phase."
    seconds = time.perf_counter() - start
    figures = {"phase": phase, "problems": problems, "seconds": seconds, "cpu": time.process_time()}
    print(json.dumps(figures | memory() | more), flush=True)


def main(n: int, folder: Path, arm: str = "random", stop: int | None = None):
    "Search, pairs and figures, each timed."
    target, engine = target_of(n, folder, arm), InstantEngine()
    tell("begin", time.perf_counter(), 0)
    progress = Searching(stop)
    search_questions(target, engine, progress)
    tell("search", progress.start, progress.done, first=progress.first)
    start = time.perf_counter()
    assert is_searched(target)
    tell("looked over", start, n, bytes=target.trajectories.stat().st_size)
    start, fates = time.perf_counter(), Counter()
    write_jsonl(target.folder / "pairs.jsonl", pairs_of(target, fates))
    tell("pairs", start, n, pairs=fates["pairs"])
    start = time.perf_counter()
    figures = search_figures(trajectories_of(target).values())
    tell("figures", start, n, ended=figures["ended"])


if __name__ == "__main__":
    given = dict(zip(count(), sys.argv[1:], strict=False))
    main(int(given[0]), Path(given[1]), given.get(2, "random"), int(given[3]) if 3 in given else None)
