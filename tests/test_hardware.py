"Trainings on several processes and nodes: how they start, how they end, and machines that lack something."

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

import psr_nb.run
import psr_nb.work
from psr_nb.cli.main import main
from psr_nb.engines.transformers import load_model
from psr_nb.folder import open_run
from psr_nb.jobs import JobError, Place, run_job
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError
from psr_nb.run import _Bar, _finish, place_of

PSR = Path(sys.executable).parent / "psr_nb"

TOY = """
import os, time
from psr_nb.records import InputError
def asleep(where, progress):
    with open(os.path.join(where, os.environ["RANK"]), "w") as f:
        f.write(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)
def picky(where, progress):
    if os.environ["RANK"] == "1":
        raise InputError("beta: must be positive, not -1")
    time.sleep(600)
def broken(where, progress):
    if os.environ["RANK"] == "1":
        1 / 0
    time.sleep(600)
def added(where, progress):
    import torch
    torch.distributed.init_process_group("gloo")
    rank = torch.tensor([10 ** torch.distributed.get_rank()])
    torch.distributed.all_reduce(rank)
    progress("adding", 1, 1)
    return [rank.item(), os.getcwd()]
"""

PARENT = """
import signal, sys
from psr_nb.jobs import Place, run_job
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
processes, nodes, ray = sys.argv[2:]
place = Place(processes=int(processes), nodes=int(nodes), ray=ray or None)
run_job("toy_of_many:asleep", {"where": sys.argv[1]}, sys.argv[1] + "/jobs.log", place=place)
"""

# As slurmd does it, what starts a node's process is no child of srun's and stays when srun is killed.
SRUN = """#!{python}
import os, subprocess, sys, time
said, command = sys.argv[1:], sys.argv[sys.argv.index("{python}"):]
nodes = int(next(a for a in said if a.startswith("--nodes="))[8:])
blind = [a + ".other" if a.endswith(".part") else a for a in command]
def start(i):
    mine = blind if os.environ.get("BLIND") == str(i) else command
    env = os.environ | {{"SLURM_NODEID": str(i), "SLURMD_NODENAME": "localhost"}}
    stepd = ["sh", "-c", '"$@"; exit $?', "stepd", *mine]
    return subprocess.Popen(stepd, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
steps = [start(i) for i in range(nodes)]
codes = [None]
while None in codes and not any(codes):
    time.sleep(0.1)
    codes = [p.poll() for p in steps]
for p in steps:
    if p.poll() is None: os.killpg(p.pid, 9)
sys.exit(any(codes))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A folder with a module of jobs that children can import."
    (tmp_path / "toy_of_many.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "An allocation of two nodes, which are both this machine."
    for name, text in (
        ("srun", SRUN.format(python=sys.executable)),
        ("scontrol", "#!/bin/sh\necho localhost; echo localhost"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def sleeping(folder: Path, place: Place) -> tuple[subprocess.Popen, list[int], list[int]]:
    "(a process whose job of several ranks is under way, their pids, pids of what started them)."
    where = [folder, str(place.processes), str(place.nodes), place.ray or ""]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *where], stderr=subprocess.PIPE)
    files = [folder / str(rank) for rank in range(place.processes * place.nodes)]
    until = time.time() + 120
    while not all(f.exists() and f.stat().st_size for f in files):
        assert time.time() < until and parent.poll() is None, parent.stderr.read()
        time.sleep(0.1)
    pids = [list(map(int, f.read_text().split())) for f in files]
    for f in files:
        f.unlink()
    return parent, [own for own, _ in pids], [above for _, above in pids]


def refuse_running(pids: list[int], within: float = 10):
    until = time.time() + within
    while any(map(running, pids)):
        assert time.time() < until, f"left running: {[p for p in pids if running(p)]}"
        time.sleep(0.05)


def test_a_killed_parent_leaves_no_process_running(toy):
    parent, ranks, above = sleeping(toy, Place(processes=2))
    parent.kill()
    refuse_running(ranks + above)
    assert not list(toy.glob("job.*.part"))


@pytest.mark.slow
def test_a_killed_launcher_and_a_ctrl_c_leave_no_process_running(toy):
    parent, ranks, above = sleeping(toy, Place(processes=2))
    os.kill(above[0], signal.SIGKILL)
    refuse_running(ranks)
    assert b"asleep was killed, by someone or for want of memory" in parent.communicate()[1]
    parent, ranks, above = sleeping(toy, Place(processes=2))
    parent.send_signal(signal.SIGINT)
    parent.wait(60)
    assert not any(map(running, ranks + above))  # not even for a moment


@pytest.mark.slow
def test_what_one_process_has_to_say_ends_all(toy):
    two, at = Place(processes=2), {"where": str(toy)}
    with pytest.raises(InputError, match="^beta: must be positive, not -1$"):
        run_job("toy_of_many:picky", at, toy / "jobs.log", place=two)
    with pytest.raises(JobError, match="broken failed: process 1: ZeroDivisionError: division by zero"):
        run_job("toy_of_many:broken", at, toy / "jobs.log", place=two)


@pytest.mark.slow
def test_nodes_of_a_slurm_allocation(toy, slurm, monkeypatch):
    place, heard = Place(processes=2, nodes=2), []
    got = run_job(
        "toy_of_many:added", {"where": ""}, toy / "jobs.log", lambda *x: heard.append(x), place
    )
    assert got == [1111, os.getcwd()] and heard == [("adding", 1, 1)]
    parent, ranks, above = sleeping(toy, place)
    parent.kill()
    refuse_running(ranks + above)
    monkeypatch.setenv("BLIND", "1")
    with pytest.raises(
        InputError, match=f"^{toy}: node .* does not see what was just written there; put it"
    ):
        run_job("toy_of_many:added", {"where": ""}, toy / "jobs.log", place=place)


def two_raylets(tries: int = 3):
    "(a Ray cluster, its two nodes besides the head); a busy machine starts them too slowly for Ray."
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        return cluster, [cluster.add_node(num_cpus=1) for _ in range(2)]
    except Exception:
        cluster.shutdown()
        if tries == 1:
            raise
        return two_raylets(tries - 1)


@pytest.mark.slow
def test_nodes_of_a_ray_cluster(toy):
    pytest.importorskip("ray")
    cluster, nodes = two_raylets()
    try:
        place = Place(processes=1, nodes=2, ray=cluster.address)
        got = run_job("toy_of_many:added", {"where": ""}, toy / "jobs.log", place=place)
        assert got == [11, os.getcwd()]
        three = Place(processes=1, nodes=3, ray=cluster.address)
        with pytest.raises(
            InputError, match="hardware.nodes: 3 nodes .* the Ray cluster has 2 of that size"
        ):
            run_job("toy_of_many:added", {"where": ""}, toy / "jobs.log", place=three)
        parent, ranks, above = sleeping(toy, place)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert b"asleep: node 0 was lost" in parent.communicate()[1].replace(b"node 1", b"node 0")
        refuse_running(ranks + above)
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    "setting, gpus, said",
    [
        (
            "hardware.gpus=4",
            2,
            "hardware.gpus: 4 processes need a GPU each, and 2 are visible; set it to 2",
        ),
        (
            "engine.replicas=3",
            2,
            "engine.replicas: 3 of engine.tensor_parallel = 1 need 3 GPUs, and 2 are",
        ),
        ("engine.tensor_parallel=4", 2, "engine.replicas: 1 of engine.tensor_parallel = 4 need 4 GPUs"),
        (
            "hardware.nodes=2",
            0,
            "hardware.nodes: nothing here reaches 2 nodes; start this inside a Slurm all",
        ),
        ("hardware.shard=zero3", 0, "hardware.shard: zero3 needs deepspeed, which is not installed"),
    ],
)
def test_a_machine_that_lacks_something_is_told_before_anything_begins(
    setting, gpus, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("psr_nb.studies.plan.check_run", lambda recipe: None)
    with pytest.raises(SystemExit) as end:
        main(["run", "fast", "--out", str(tmp_path / "run"), "--set", setting])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith(f"psr_nb: {said}") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_too_small_an_allocation_is_told(slurm, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "fast", "--out", str(tmp_path / "run"), "--set", "hardware.nodes=3"])
    said = "hardware.nodes: 3 nodes, and the Slurm allocation has 2; ask for as many with --nodes"
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_training_sees_its_own_gpus_only(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,2,3,4,5,6,7")
    one = load_recipe("fast", parallel=1, **{"hardware.gpus": 1})
    assert place_of(one, "train_job").gpus == "GPU-a" and place_of(one, "train_job").processes == 0
    three = load_recipe("fast", **{"hardware.gpus": 3})
    assert [place_of(three, "train_job", arm).gpus for arm in (0, 1)] == ["GPU-a,GPU-b,2", "3,4,5"]
    assert place_of(load_recipe("fast"), "train_job").processes == 8
    assert place_of(three, "engine_job").gpus is None


def test_a_run_goes_on_with_another_machine_and_not_with_another_type(tmp_path):
    for changes in (
        {},
        {"hardware.gpus": 2, "hardware.shard": "fsdp"},
        {"engine.replicas": 4, "parallel": 1},
    ):
        recipe = load_recipe("fast", **changes)
        assert open_run(tmp_path, recipe).recipe == recipe
    (tmp_path / "M1").mkdir()
    (tmp_path / "recipe.yaml").unlink()
    with pytest.warns(UserWarning, match="its recipe.yaml was lost"):
        open_run(tmp_path, recipe)
    with pytest.raises(InputError, match="hardware.dtype: 'float32' there, 'bfloat16' here"):
        open_run(tmp_path, load_recipe("fast", **{"hardware.dtype": "bfloat16"}))


def test_a_file_hears_of_a_phase_as_it_begins_and_again_and_again(capsys):
    bar = _Bar("judge", 0, quiet=False, every=0.5)
    silent = threading.Thread(target=time.sleep, args=(2.5,))

    def job():
        bar("training", 1, 20, "M2")
        silent.run()
        bar("training", 20, 20, "M2")

    with ThreadPoolExecutor(1) as pool:
        _finish([pool.submit(job)], {"judge": bar})
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "judge M2: training 1 of 20" and last.startswith("judge M2: training 20, ")
    assert between and all(line.startswith("judge M2: training 1 of 20, ") for line in between)


SMALL = {
    "arms": "[judge]",
    "questions": "[8]",
    "data.test_limit": 6,
    "data.ift_limit": 32,
    "data.eft_limit": 48,
    "data.judge_test_limit": 4,
    "sft.checkpoint_every": 1,
}


def started(folder: Path, gpus: int) -> subprocess.Popen:
    settings = [x for name, value in SMALL.items() for x in ("--set", f"{name}={value}")]
    command = [PSR, "run", "fast", "--out", folder, *settings, "--set", f"hardware.gpus={gpus}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ranks_of(run: subprocess.Popen) -> list[int]:
    "Pids of the processes of a run's training."
    found = []
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = stat.read_bytes()
        except OSError:
            continue
        if b"rank_main" in command and f"job.{run.pid}.".encode() in command:
            if b"python" in command.split(b"\0")[0]:
                found.append(int(stat.parent.name))
    return found


def weights(folder: Path) -> torch.Tensor:
    state = load_model(str(folder)).state_dict()
    return torch.cat([state[name].flatten().float() for name in sorted(state)])


def figures(folder: Path) -> dict:
    return {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if k != "costs"}


def until(there, run: subprocess.Popen):
    while not there():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)


def run_here(function: str, arguments: dict, log: Path, progress, *where):
    "`run_job` without a process of its own, which takes seconds to start."
    getattr(psr_nb.work, function.partition(":")[2])(**arguments, progress=progress)


@pytest.mark.slow
def test_a_run_on_two_processes_killed_and_continued_is_the_run_on_one(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr("psr_nb.run.run_job", run_here)
    psr_nb.run.run(load_recipe("fast", **{k: yaml.safe_load(str(v)) for k, v in SMALL.items()}), one)
    run = started(two, 2)
    until(lambda: list(two.glob("M1/model.training/checkpoint-2/manifest.json")), run)
    assert [p.name for p in two.glob("M1/model.training/*.arrow")] == ["rows.arrow"]
    ranks = ranks_of(run)
    os.kill(ranks[0], signal.SIGKILL)
    said = run.communicate()[1].splitlines()[-1]
    assert run.returncode == 1 and len(ranks) == 2
    assert "was killed, by someone or for want of memory, and the others were stopped" in said
    refuse_running(ranks, within=0)
    run = started(two, 1)
    until((two / "M1/model").exists, run)
    run.kill()
    run = started(two, 2)
    assert run.wait() == 0, run.stderr.read()
    for model in ("M1", "M2"):
        differ = (weights(one / model / "model") - weights(two / model / "model")).abs().max().item()
        assert differ < 1e-5
        assert {**figures(one / model), "training": 0} == {**figures(two / model), "training": 0}
    assert (one / "M2/pairs.jsonl").read_text() == (two / "M2/pairs.jsonl").read_text()
