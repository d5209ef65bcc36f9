"kill -9 while an annotator is asked: no answer that arrived is lost, none is asked for again, and the data set is what it would have been."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest
from psr_nb.annotate import FaultyServer

N = 150
CHILD = """
import sys
from psr_nb.annotate import ServerSettings, ask_server
url, path, n = sys.argv[1:]
s = ServerSettings("echo", url, timeout=5, backoff=.01, tries=30, concurrency=6)
replies = ask_server([f"prompt {i}" for i in range(int(n))], path, s, say=lambda line: None)
assert all(r.text == "re: " + r.prompt for r in replies)
"""


def rows(path):
    "Whole lines of the answers file; a torn last one was never an answer to anybody."
    if not path.exists(): return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_killed_while_annotating(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, path = random.Random(seed), tmp_path/"answers.jsonl"
    server = FaultyServer(lambda body: "re: " + body["messages"][-1]["content"], .3, ("429", "500", "half", "rubbish", "format", "drop"), seed=seed, delay=.02)
    start = lambda: subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(path), str(N)], stderr=subprocess.PIPE, text=True)
    kills = 0
    for _ in range(40):
        before, asked = {r["prompt"] for r in rows(path)}, dict(server.asked)
        child = start()
        while server.asked.total() == sum(asked.values()) and child.poll() is None: time.sleep(.005)
        time.sleep(rng.uniform(0, .5))
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL); child.wait()
        time.sleep(.1)   # what was under way comes to its end
        assert before <= {r["prompt"] for r in rows(path)}, f"answers were lost (seed {seed})"
        again = [p for p in before if server.asked[p] != asked.get(p, 0)]
        assert not again, f"asked again: {again[:3]} (seed {seed})"
        if len(rows(path)) == N: break
    child = start()
    assert child.wait(120) == 0, child.stderr.read()
    kept = [r["key"] for r in rows(path)]
    assert len(kept) == len(set(kept)) == N
    # what was paid for twice is at most what was on its way to a process that was killed
    twice = sum(server.answered.values()) - N
    print(f"{kills} kills, {server.asked.total()} requests, {twice} answers were on their way to a killed process")
    assert kills >= 3 and twice <= 6 * kills
    server.close()


@pytest.mark.slow
def test_killed_while_growing(tmp_path):
    "The whole of `data eft`, killed at random, ends with the data set of a run that was not."
    from psr_nb.arithmetic import draw_problems
    from psr_nb.records import append_jsonl
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, psr = random.Random(seed), Path(sys.executable).parent/"psr_nb"
    append_jsonl(tmp_path/"q.jsonl", draw_problems(12, random.Random(2), "q", set()))
    def start(out):
        return subprocess.Popen([psr, "data", "eft", "--questions", tmp_path/"q.jsonl", "--model", "packaged:models/demo-m1", "--domain", "arithmetic", "--rollouts", "2",
                                 "--rollout-tokens", "90", "--iterations", "4", "--children", "4", "--temperature", "1", "--max-step-tokens", "26", "--max-tokens", "90", "--min-gap", ".2",
                                 "--out", out, "--dtype", "float32"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(3):
        child = start(tmp_path/"killed")
        while not (tmp_path/"killed"/"settings.json").exists() and child.poll() is None: time.sleep(.02)
        time.sleep(rng.uniform(0, 6))
        child.send_signal(signal.SIGKILL); child.wait()
    for out in ("killed", "whole"):
        child = start(tmp_path/out)
        assert child.wait(300) == 0, child.stderr.read()
    for name in ("train.jsonl", "test.jsonl", "fell.jsonl", "README.md"):
        assert (tmp_path/"killed"/name).read_text() == (tmp_path/"whole"/name).read_text(), f"{name} differs (seed {seed})"
    for name, key in (("trees.jsonl", "problem_id"), ("answers.jsonl", "key")):
        ids = [r[key] for r in rows(tmp_path/"killed"/name)]
        assert len(ids) == len(set(ids)), f"{name} has duplicates (seed {seed})"


@pytest.mark.parametrize("lines, reason", [
    (b'{"question": \n', "not JSON"), (b'{"question": "Caf\xe9?"}\n', "not UTF-8"), (b'[1]\n', "not an object"),
    (b'{"question": "3?"}\n', "no solution"), (b'{"question": "5?", "answer": "No idea."}\n', "no final answer"),
], ids=["json", "utf-8", "object", "solution", "answer"])
def test_bad_rows_are_kept_aside(psr, tmp_path, lines, reason):
    good = json.dumps({"question": "2+2?", "answer": "2+1 = 3.\nThen 3+1 = 4.\n#### 4"}).encode() + b"\n"
    (tmp_path/"q.jsonl").write_bytes(good + lines + good.replace(b"2+2", b"1+3"))
    done = psr("data", "ift", f"gsm8k={tmp_path/'q.jsonl'}", "--out", tmp_path/"ift")
    assert done.returncode == 0, done.stderr
    [left_out] = rows(tmp_path/"ift"/"rejected.jsonl")
    assert (left_out["reason"], left_out["where"]) == (reason, f"{tmp_path/'q.jsonl'}:2")
    assert len(rows(tmp_path/"ift"/"train.jsonl")) == 2 and reason in done.stdout


def test_a_wrong_key_is_said_at_once(psr, tmp_path):
    (tmp_path/"q.jsonl").write_text("".join(json.dumps({"question": f"{i}?", "answer": "It is 4.\n#### 4"}) + "\n" for i in range(50)))
    server = FaultyServer(lambda body: "", key="right")
    done = psr("data", "ift", f"gsm8k={tmp_path/'q.jsonl'}", "--cut", "annotator", "--annotator", "m", "--server", server.url, "--out", tmp_path/"ift", env={**os.environ, "OPENAI_API_KEY": "wrong"})
    assert done.returncode == 2 and "refused the key in OPENAI_API_KEY" in done.stderr and "Traceback" not in done.stderr
    assert server.asked.total() == 1
    server.close()
