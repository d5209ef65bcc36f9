"Step-DPO on two processes gives the weights that one gives."

import os
import subprocess
import sys

import pytest
import torch
import yaml

from psr_nb.cli.bench import made_pairs
from psr_nb.engines.transformers import load_model
from psr_nb.files import append_jsonl, packaged

M1 = packaged("models/demo-m1")


def pairs():
    out = []
    for i, L in enumerate((4, 1, 7, 3, 5, 2, 6)):
        for p in made_pairs(L, 30, 8, 60, seed=i):
            p.trajectory_id = f"t{i}"
            out.append(p)
    return out


def trained(folder, name, processes, *settings):
    "Weights after training on that many processes."
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    if processes > 1:
        launch += ["--multi_gpu"] if torch.cuda.is_available() else []
    command = [
        sys.executable,
        *launch,
        "-m",
        "psr_nb.dpo",
        "--model",
        M1,
        "--pairs",
        folder / "pairs.jsonl",
        "--out",
        folder / name,
        "--set",
        "learning_rate=1e-4",
        "--set",
        "beta=0.5",
        "--set",
        "batch_size=8",
        *(x for s in settings for x in ("--set", s)),
    ]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_model(str(folder / name)).state_dict()


@pytest.mark.parametrize(
    "settings", [("tree_tokens=120",), ("packing=pairs", "micro_batch=3")], ids=["trees", "pairs"]
)
def test_two_processes_give_what_one_gives(tmp_path, settings):
    append_jsonl(tmp_path / "pairs.jsonl", pairs())
    one, two = (trained(tmp_path, f"by{n}", n, *settings) for n in (1, 2))
    before = load_model(str(M1)).state_dict()
    assert max((one[n] - before[n]).abs().max().item() for n in one) > 1e-4  # it did train
    assert max((one[n] - two[n]).abs().max().item() for n in one) < 1e-5


@pytest.mark.parametrize("path", sorted(packaged("accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_configurations_are_read(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"] and config.fsdp_config
