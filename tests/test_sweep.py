"Sweeps: bad input, the table for programs, and kill -9 at any moment."

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_fuzz import said
from test_kill import results

import psr_nb.run
import psr_nb.studies.sweep
from psr_nb.cli.main import main
from psr_nb.files import packaged
from psr_nb.studies.sweep import Sweep, keep_sweep

PROCESSES = multiprocessing.get_context("forkserver")
SMALL = {
    "questions": [8],
    "arms": ["judge"],
    "data.test_limit": 4,
    "data.judge_test_limit": 4,
    "data.ift_limit": 8,
    "data.eft_limit": 8,
}
SET = [x for name, value in SMALL.items() for x in ("--set", f"{name}={json.dumps(value)}")]
RATES = ["--over", "dpo.learning_rate=5e-5,1e-3"]
CELLS = ["dpo.learning_rate=5e-05/seed-0", "dpo.learning_rate=0.001/seed-0"]

WRONG = {
    "no recipe": (["nosuch"], "nosuch: no such recipe"),
    "no setting": (["fast", "--over", "search.ww=3,4"], "search.ww"),
    "no number": (["fast", "--over", "search.w=3,wide"], "search.w"),
    "out of range": (["fast", "--over", "search.w=3,1"], "search.w"),
    "no values": (["fast", "--over", "search.w"], "give it as"),
    "twice": (["fast", "--over", "search.w=3,3"], "there twice"),
    "no seeds": (["fast", "--seeds", "4-0"], "--seeds 4-0"),
    "seeds as a setting": (["fast", "--over", "seed=0,1"], "--seeds"),
    "set too": (["fast", "--over", "search.w=3,6", "--set", "search.w=4"], "leave one out"),
}


@pytest.mark.parametrize("line, words", WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, capsys, line, words):
    with pytest.raises(SystemExit) as end:
        main(["sweep", *line, "--out", str(tmp_path / "sweep")])
    wrong = capsys.readouterr().err
    assert end.value.code == 2 and wrong.count("\n") == 1 and wrong.startswith("psr_nb: ")
    assert words in wrong and not (tmp_path / "sweep").exists()


MANY = ",".join(map(str, range(2, 202)))
ENDLESS = ["--seeds", "0-999", "--over", f"search.w={MANY}", "--over", f"search.max_steps={MANY}"]
ROW = {"schema": 1, "recipe": "fast", "over": {"search.w": [3]}, "seeds": [0], "set": {}}
SIZES = {
    "no seed": ({"seeds": [], "over": {}}, "and this one 0"),
    "no value": ({"over": {"search.w": []}}, "and this one 0"),
    "a product": ({"over": {"a": [*range(2000)], "b": [*range(2000)]}}, "and this one 4,000,000"),
}


def test_a_sweep_without_end_is_refused_at_once(tmp_path):
    code, _, err = said(["sweep", "fast", *ENDLESS, "--out", str(tmp_path / "sweep")])
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "sweep").exists(), code
    assert "a sweep has 1 to 1,000 runs, and this one 40,000,000" in err


@pytest.mark.parametrize("changes, words", SIZES.values(), ids=SIZES)
def test_a_strangers_sweep_of_another_size(tmp_path, changes, words):
    (tmp_path / "sweep.json").write_text(json.dumps(ROW | changes))
    for more in ([], ["--json"]):
        code, _, err = said(["report", str(tmp_path), *more])
        assert code == 2 and err.count("\n") == 1, (code, err)
        assert "sweep.json: a sweep has 1 to 1,000 runs" in err and words in err
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]


def test_a_folder_of_something_else_stays_as_it_was(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["sweep", "fast", *SET, "--out", str(tmp_path)])
    assert "something else in it (mine.txt)" in capsys.readouterr().err
    other = keep_sweep(Sweep("fast", tmp_path / "other", {"search.w": [3, 4]}))
    before = (other.path / "sweep.json").read_text()
    with pytest.raises(SystemExit):
        main(["sweep", "fast", *RATES, "--out", str(other.path)])
    assert "another sweep" in capsys.readouterr().err
    assert (other.path / "sweep.json").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == ["mine.txt", "other"]


def test_the_table_for_programs(tmp_path, capsys):
    kept = keep_sweep(Sweep("demo", tmp_path / "sweep", {"search.w": [6, 3]}))
    for member in kept.members:
        shutil.copytree(packaged("runs/demo"), kept.path / member.name)
    file = kept.path / "search.w=3/seed-0/M4/evaluation.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    better = "".join(json.dumps(row | {"equal": True}) + "\n" for row in rows)
    file.write_text(better, "utf-8")
    main(["report", str(kept.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    cells = {(c["set"]["search.w"], c["arm"], c["model"]): c for c in found["cells"]}
    assert len(cells) == 16 and found["comparisons"]["m1"] == 12
    perfect = cells[3, "judge", "M4"]
    assert (perfect["mean"], perfect["seeds"], perfect["n"], perfect["sd"]) == (1, 1, len(rows), None)
    assert perfect["low"] < 1 and perfect["high"] == 1
    gain = perfect["against_first_cell"]
    assert gain["difference"] == pytest.approx(1 - cells[6, "judge", "M4"]["mean"])
    assert 0 < gain["low"] < gain["difference"] < gain["high"] and gain["p"] <= gain["p_holm"] < 0.05
    assert "against_first_cell" not in cells[3, "judge", "M3"]  # one and the same model
    asked = [cell for cell, c in cells.items() if "against_model_before" in c]
    assert len(asked) == found["comparisons"]["model_before"] == 8
    assert {model for _, _, model in asked} == {"M3", "M4"}
    risen = cells[3, "judge", "M4"]["against_model_before"]
    assert risen["difference"] == pytest.approx(1 - cells[3, "judge", "M3"]["mean"]) and risen["low"] > 0


def run_job_here(function, arguments, log, progress=lambda *_: None, *_, **__):
    "A job in this process."
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments, progress=progress)


def command(arguments: list[str], out: str):
    "The `psr_nb` command in this process; what it says and its exit code go to `out`."
    sys.modules["vllm"] = None  # as where it is not installed
    psr_nb.run.run_job = psr_nb.studies.sweep.run_job = run_job_here
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    Path(out).write_text(json.dumps([code, said.getvalue()]))


def started(tmp_path, *arguments):
    "The command in a process forked from one that has all imported."
    trainers = ["trl.trainer.dpo_trainer", "trl.trainer.sft_trainer"]
    PROCESSES.set_forkserver_preload(
        ["psr_nb.cli.main", "psr_nb.run", "psr_nb.dashboard.sweeps", *trainers]
    )
    out = str(tmp_path / "out.json")
    process = PROCESSES.Process(target=command, args=([str(a) for a in arguments], out))
    process.start()
    return process


def finished(tmp_path, *arguments):
    process = started(tmp_path, *arguments)
    process.join(300)
    code, said = json.loads((tmp_path / "out.json").read_text())
    assert (process.exitcode, code) == (0, 0), said


def killed(process, folder: Path, moment: str, rng) -> bool:
    "Kill a sweep soon after a file of it came to be; False if it was over first."
    while process.is_alive() and not list(folder.glob(moment)):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.1))
    hit = process.is_alive()
    process.kill()
    process.join()
    return hit


@pytest.mark.slow
def test_a_killed_sweep_has_the_runs_that_would_be_alone(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, folder = random.Random(seed), tmp_path / "sweep"
    line = ["sweep", "fast", *RATES, *SET, "--out", folder]
    first, second = CELLS
    moments = ("sweep.json", f"{first}/M1/model.training", f"{first}/M2/trajectories.jsonl")
    moments += (f"{second}/M1/*", f"{second}/M2/*", f"{second}/M2/model.training")
    hits = [killed(started(tmp_path, *line), folder, moment, rng) for moment in moments]
    assert sum(hits) > 3, hits
    finished(tmp_path, *line)
    for cell, rate in zip(CELLS, ("5e-5", "1e-3"), strict=True):
        alone = tmp_path / rate
        finished(tmp_path, "run", "fast", *SET, "--set", f"dpo.learning_rate={rate}", "--out", alone)
        assert results(folder / cell) == results(alone), f"{cell} (seed {seed}, {hits})"
    shared = json.loads((folder / second / "shared.json").read_text())
    assert shared == dict.fromkeys(["judge M1 model", "judge M1 figures", "judge M2 search"], first)
    assert not (folder / second / "M1" / "phases.jsonl").exists()  # no time was spent on it


def at_work(folder: Path) -> list[str]:
    "The processes, but this one, whose command or lock names a folder."
    held = [p / "fd" for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]
    found = []
    for fds in held:
        with contextlib.suppress(OSError):
            links = [os.readlink(fd) for fd in fds.iterdir()]
            found += [fds.parent.name] if any(str(folder) in link for link in links) else []
    return found


@pytest.mark.slow
def test_a_kill_ends_all_children_of_a_sweep(tmp_path):
    folder = tmp_path / "sweep"
    line = [Path(sys.executable).parent / "psr_nb", "sweep", "fast", *RATES, *SET, "--parallel", "2"]
    process = subprocess.Popen(
        [*line, "--out", folder], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (folder / CELLS[0] / "M1" / "model.training").exists():
        time.sleep(0.05)
    assert len(at_work(folder)) > 2  # the sweep, the run, its training
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.time() + 10
    while at_work(folder) and time.time() < until:
        time.sleep(0.1)
    assert at_work(folder) == []
