"""The power fails under a run, and it goes on: nothing that was finished is lost, the figures are the same.

A file system of its own on a loop device is shut down without a word in the middle of things, as when the
power goes: what was not synced is lost, and the journal is replayed when it is mounted again. Needs root.
"""

import contextlib
import fcntl
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from test_kill import results
from test_old_runs import SETTINGS

import psr_nb.work
from psr_nb.files import continued_jsonl, folder_fault, sync_rows
from psr_nb.recipe import load_recipe
from psr_nb.run import run

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h
NO_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal is written


class Disk:
    "An ext4 file system in a file, whose power can be cut."

    def __init__(self, folder: Path, megabytes: int = 96):
        self.image, self.mounted = folder / "disk.img", folder / "disk"
        with open(self.image, "wb") as f:
            f.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self.mounted.mkdir()
        self.mount()

    def mount(self):
        "The journal is written every second, so that names come soon, and contents up to 30 s later."
        options = "loop,commit=1,noauto_da_alloc"
        subprocess.run(["mount", "-o", options, self.image, self.mounted], check=True)

    def cut(self):
        fd = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_FLUSH))
        finally:
            os.close(fd)

    def unmount(self):
        for _ in range(100):  # a process that was killed may hold a file for a moment
            if subprocess.run(["umount", self.mounted], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", self.mounted], check=True)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    try:
        made = Disk(tmp_path)
    except (subprocess.CalledProcessError, OSError) as e:
        pytest.skip(f"needs a loop device ({e})")
    yield made
    made.unmount()


WRITER = """
import json, sys
from pathlib import Path
from psr_nb.files import append_jsonl, sync_rows, write_folder, write_whole
folder = Path(sys.argv[1])
n = int(sys.argv[2])
while True:
    n += 1
    write_whole(folder / f"M{n}" / "metrics.json", json.dumps({"n": n, "text": "x" * 5000}))
    print("file", n, flush=True)
    with write_folder(folder / f"M{n}" / "model") as part:
        for name in ("config.json", "tokenizer.json"):
            (part / name).write_text(json.dumps({"n": n, "text": "y" * 20000}))
    print("folder", n, flush=True)
    append_jsonl(folder / "rows.jsonl", [{"n": n}])
    sync_rows()
    print("row", n, flush=True)
"""


def written_until_a_cut(disk: Disk, first: int, seconds: float) -> list[list[str]]:
    "Let a process write until the power is cut; what it says it had finished."
    command = [sys.executable, "-c", WRITER, disk.mounted, str(first)]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    begun = p.stdout.readline()
    time.sleep(seconds)
    disk.cut()
    p.kill()
    said = begun + p.communicate()[0]
    disk.unmount()
    disk.mount()
    return [line.split() for line in said.splitlines()]


def wrong(folder: Path, said: list[list[str]]) -> list[str]:
    "What of the finished is not there, and what is there and not whole."
    rows = {row["n"] for row in continued_jsonl(folder / "rows.jsonl")}
    out = [f"{what} {n}" for what, n in said if what == "row" and int(n) not in rows]
    there = {"file": "metrics.json", "folder": "model"}
    out += [
        f"{what} {n}"
        for what, n in said
        if what != "row" and not (folder / f"M{n}" / there[what]).exists()
    ]
    out += [f"{p}: {folder_fault(p, True)}" for p in folder.glob("M*/model") if folder_fault(p, True)]
    return out + [str(p) for p in folder.glob("M*/metrics.json") if not p.read_text().endswith('"}')]


def test_what_was_finished_outlives_a_power_cut(disk):
    rng, last, finished = random.Random(15), 0, 0
    for cut in range(5):
        said = written_until_a_cut(disk, last, rng.uniform(0.1, 1.6))
        last, finished = int(said[-1][1]) + 1, finished + len(said)
        assert wrong(disk.mounted, said) == [], f"cut {cut}"
    assert finished > 20


def test_without_a_sync_the_cut_is_felt(disk):
    "The test above can fail: a file that is renamed into its place without a sync comes back empty."
    (disk.mounted / "part").write_text("x" * 5000)
    (disk.mounted / "part").rename(disk.mounted / "metrics.json")
    time.sleep(2.5)  # the journal is written, the contents are not
    disk.cut()
    disk.unmount()
    disk.mount()
    assert (disk.mounted / "metrics.json").read_text() == ""


def job_here(function: str, arguments: dict, log, progress, *_):
    "A job in this process instead of a child: a cut does the same to the disk, and 50 are affordable."
    getattr(psr_nb.work, function.partition(":")[2])(**arguments, progress=progress)
    sync_rows()


def run_here(folder: Path, log: Path):
    "A small run in this process, which ends with it."
    torch.set_num_threads(1)
    with open(log, "w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    recipe = load_recipe("fast", **SETTINGS | {"questions": [8], "parallel": 1})
    with patch("psr_nb.run.run_job", job_here):
        run(recipe, folder, quiet=True)


def start(folder: Path, log: Path):
    "A run in a process that has imported everything already."
    p = multiprocessing.get_context("fork").Process(target=run_here, args=(folder, log))
    p.start()
    return p


def state(folder: Path) -> dict:
    "The sizes of what a run has written, but for its lock and its log."
    sizes = {}
    for where, _, names in os.walk(folder):
        for path in (
            Path(where, name) for name in names if not name.endswith((".lock", ".log", ".part"))
        ):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
    return sizes


def cut_under_a_run(disk: Disk, folder: Path, log: Path, rng: random.Random) -> bool:
    "Start or continue a run and cut the power some time after it has written something. Had it ended?"
    last, writes, p = state(folder), rng.randint(1, 12), start(folder, log)
    while p.is_alive() and writes:
        time.sleep(0.01)
        now = state(folder)
        writes, last = writes - (now != last), now
    p.join(rng.uniform(0, 1))
    assert p.exitcode in (None, 0), log.read_text()
    disk.cut()
    p.kill()
    p.join()
    disk.unmount()
    disk.mount()
    return p.exitcode == 0


def whole_run(folder: Path, log: Path) -> dict:
    p = start(folder, log)
    p.join()
    assert p.exitcode == 0, log.read_text()
    return results(folder)


@pytest.mark.slow
def test_fifty_power_cuts(disk, tmp_path):
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401  once, and not in every process

    seed, log = random.randrange(10**6), tmp_path / "log.txt"
    cuts, runs, rng = 0, 0, random.Random(seed)
    whole = whole_run(tmp_path / "whole", log)
    while cuts < 50:
        folder, ended = disk.mounted / f"run{runs}", False
        while not ended:
            ended = cut_under_a_run(disk, folder, log, rng)
            cuts += 1
        runs += 1
        print(f"seed {seed}: {cuts} cuts, {runs} runs", file=sys.stderr, flush=True)
        assert results(folder) == whole, f"run {runs} differs (seed {seed})"
        assert whole_run(folder, log) == whole
        shutil.rmtree(folder)
