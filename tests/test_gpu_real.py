"The script for one GPU as far as a CPU can tell: its model from parts, its labels, a small run of all of it."

import hashlib
import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_real.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_real", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_real"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def cut(folder, whole, at, hole):
    "The parts of a file without its hole, as they are brought."
    left = whole[: hole[0]] + whole[hole[1] :]
    for i, piece in enumerate((left[:at], left[at:]), 1):
        (folder / f"part{i}.bin").write_bytes(piece)
    told = {"hole": hole, "parts": 2, "sha256": hashlib.sha256(left).hexdigest()}
    (folder / "parts.json").write_text(json.dumps(told))


def test_parts_are_joined_and_a_damaged_one_is_found(script, tmp_path):
    whole = bytes(range(200))
    cut(tmp_path, whole, 70, [30, 90])
    script.joined(tmp_path, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == whole[:30] + bytes(60) + whole[90:]
    (tmp_path / "part2.bin").write_bytes(b"torn")
    with pytest.raises(RuntimeError, match="bring them again"):
        script.joined(tmp_path, tmp_path / "model.gguf")


def test_names_of_the_embedding_and_of_a_layer(script):
    assert script.plain_name("blk.3.attn_output.weight") == "model.layers.3.self_attn.o_proj.weight"
    assert script.plain_name("output.weight") == "model.embed_tokens.weight"
    assert script.plain_name("token_embd.weight") is None


@pytest.mark.parametrize(
    "step, is_right",
    [
        ("She has 3*12 = 36 pens.", True),
        ("She has 3 x 12 = $36 in all.", True),
        ("She has 3*12 = 29 pens.", False),  # does not hold, known as the result is
        ("She has 12/3 = 4 pens.", False),  # holds, and is nowhere in the solution
        ("Then 36-7 = 29 are left.", None),  # holds, and is another step's result
        ("She has many pens.", None),
    ],
)
def test_a_step_is_rated_by_its_equations_and_its_result(script, step, is_right):
    assert script.rated(step, "3*12 = <<3*12=36>>36 pens.", {3, 12, 7, 36, 29}) is is_right


@pytest.mark.slow
def test_the_whole_script_on_a_small_model(tmp_path):
    command = [sys.executable, SCRIPT, "--tiny", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    wanted = {"M0", "judge M1", "judge M2", "judge M3", "random M2", "random M3"}
    assert found["accuracy"].keys() == wanted and "judge M3 - random M3" in found["differences"]
    assert all(m["pairs"] > 0 for name, m in found["metrics"].items() if name != "judge M1")
    names = {}
    for archive in ("real", "random"):
        with tarfile.open(tmp_path / "out" / f"{archive}.tar.gz") as tar:
            names[archive] = [e.name for e in tar if e.isfile()]
    assert "real/run/M3/trajectories.jsonl" in names["real"] and "real/run/recipe.yaml" in names["real"]
    assert "real/run/random/M3/metrics.json" in names["random"]
    assert not [n for n in sum(names.values(), []) if n.endswith((".safetensors", ".gguf", ".pt"))]
