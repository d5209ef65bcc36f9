"""What a plan says, against what finished runs recorded, and against the memory of a real training."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from psr_nb.cli.main import main
from psr_nb.engines.transformers import TransformersEngine
from psr_nb.files import packaged
from psr_nb.folder import costs, open_run
from psr_nb.recipe import load_recipe, recipes
from psr_nb.records import InputError
from psr_nb.studies.costs import GIB, Training, model_shape, shape_of, training_memory
from psr_nb.studies.lengths import Lengths, guessed_lengths, measured_lengths
from psr_nb.studies.placement import Hardware, machine_for, machine_here
from psr_nb.studies.plan import check_run, plan_json, plan_recipe, plan_text, refuse_unfit
from psr_nb.studies.rates import Probed, Rates, engines_probed

ONE = Hardware(engine="transformers")


@pytest.fixture
def only_m2(tmp_path):
    "The shipped run of the demo as it was when M2 was made."
    source, run = packaged("runs/demo"), tmp_path / "half"
    for name in ("recipe.yaml", "M1", "M2"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        run.mkdir(exist_ok=True)
        copy(source / name, run / name)
    return run


def planned(plan, model: str, *names: str) -> tuple[int, int]:
    "Tokens read and written in some phases of a model."
    found = [p for p in plan.phases if p.model == model and p.phase in names]
    assert len(found) == len(names)
    return sum(p.prompt_tokens for p in found), sum(p.output_tokens for p in found)


@pytest.mark.parametrize("model", ["M3", "M4", "random/M2", "random/M3", "random/M4"])
def test_one_iteration_tells_the_tokens_of_the_others(only_m2, model):
    plan = plan_recipe(load_recipe("demo"), ONE, only_m2)
    took = costs(packaged("runs/demo") / model)["search"]
    names = ("search",) if "/" in model else ("search", "judge")
    assert {p.phase for p in plan.phases if p.model == model} == {*names, "DPO", "evaluate"}
    read, written = planned(plan, model, *names)
    computed = took["prompt_tokens"] - took["cached_tokens"]
    assert read == pytest.approx(computed, rel=0.2)
    assert written == pytest.approx(took["output_tokens"], rel=0.2)


def test_the_pairs_of_one_iteration_tell_those_of_the_others(only_m2):
    lengths = measured_lengths(load_recipe("demo"), open_run(only_m2))
    for model in ("M3", "M4"):
        made = json.loads((packaged("runs/demo") / model / "metrics.json").read_text())
        assert 400 * lengths.pairs == pytest.approx(made["pairs"], rel=0.3)  # a better model has fewer
        assert 400 * lengths.comparisons == pytest.approx(
            made["search"]["judge"]["comparisons"], rel=0.3
        )


def test_a_language_models_run_tells_its_tokens():
    run = packaged("runs/smollm2")
    plan = plan_recipe(load_recipe("smollm2-gsm8k-cpu"), ONE, run)
    for model, phase, names in (
        ("M2", "search", ("search", "judge")),
        ("M1", "evaluate", ("evaluate",)),
    ):
        took = costs(run / model)[phase]
        read, written = planned(plan, model, *names)
        near = 0.02 if phase == "search" else 0.2  # that was measured in this search itself
        assert read == pytest.approx(took["prompt_tokens"] - took["cached_tokens"], rel=near)
        assert written == pytest.approx(took["output_tokens"], rel=near)


def test_a_search_that_is_not_measured_yet_is_told_by_its_trajectories(only_m2):
    whole = measured_lengths(load_recipe("demo"), open_run(only_m2))
    metrics = only_m2 / "M2" / "metrics.json"
    rows = (only_m2 / "M2" / "trajectories.jsonl").read_text().splitlines()
    metrics.unlink()
    phases = only_m2 / "M2" / "phases.jsonl"
    scale = len(rows) / 400  # only a few trajectories are shipped: so many tokens were theirs
    [row] = [r for r in map(json.loads, phases.read_text().splitlines()) if r["phase"] == "search"]
    row |= {k: round(scale * row[k]) for k in ("prompt_tokens", "cached_tokens", "output_tokens")}
    phases.write_text(json.dumps(row) + "\n")
    part = measured_lengths(load_recipe("demo"), open_run(only_m2))
    assert part.steps == pytest.approx(whole.steps, rel=0.2) and part.prompt == whole.prompt


def test_a_run_of_other_settings_or_with_nothing_done_is_refused(only_m2):
    with pytest.raises(InputError, match="search.w was 6 in this run and is 4"):
        plan_recipe(load_recipe("demo", **{"search.w": 4}), ONE, only_m2)
    (only_m2 / "M2" / "phases.jsonl").unlink()
    with pytest.raises(InputError, match="no search of this run has ended"):
        plan_recipe(load_recipe("demo"), ONE, only_m2)


TRAINED = """
import ctypes, gc, json, sys
from pathlib import Path
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from psr_nb.dpo import DPOSettings, train_dpo
from psr_nb.files import packaged
from psr_nb.records import StepPair
from psr_nb.sft import SFTSettings, train_sft
torch.set_num_threads(1)
out, kind, spared = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def train(name, hidden, layers):
    sizes = dict(hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True)
    ids = dict(vocab_size=75, eos_token_id=1, pad_token_id=0)
    config = LlamaConfig(max_position_embeddings=512, **ids, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(out / name)
    AutoTokenizer.from_pretrained(packaged("models/demo-m1")).save_pretrained(out / name)
    usual = dict(epochs=1, batch_size=8, micro_batch=4, gradient_checkpointing=spared)
    if kind != "dpo":
        usual |= dict(lora_rank=16) if kind == "lora" else {}
        rows = [([5] * 128, [6] * 128)] * 16
        return train_sft(str(out / name), rows, out / f"{name}-out", SFTSettings(**usual))
    ids = dict(prompt_ids=[5] * 128, chosen_ids=[6] * 64, rejected_ids=[7] * 64)
    rest = dict(step=1, chosen="", rejected="", margin=1.0, orders_agree=True)
    pairs = [StepPair(trajectory_id=str(i), **ids, **rest) for i in range(16)]
    train_dpo(str(out / name), pairs, out / f"{name}-out", DPOSettings(**usual, tree_tokens=1024))

train("warm", 64, 1)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
train("model", 384, 4)
print(json.dumps(status("VmHWM") - before))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is Linux's")
@pytest.mark.parametrize(
    "kind,spared",
    [("sft", False), ("sft", True), ("dpo", False), pytest.param("lora", False, marks=pytest.mark.slow)],
)
def test_memory_of_a_training_is_as_planned(tmp_path, kind, spared):
    at_once = {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back, so that no gaps are measured
    ran = subprocess.run(
        [sys.executable, "-c", TRAINED, tmp_path, kind, str(spared)],
        env={**os.environ, **at_once, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    measured = json.loads(ran.stdout.splitlines()[-1]) / GIB
    shape = model_shape(str(tmp_path / "model"))
    how = Training(4 * 256, checkpointing=spared, mixed=False)
    if kind == "dpo":
        how = replace(how, reference_held=True, kept_logits=4 * 128)
    if kind == "lora":
        how = replace(how, lora_rank=16)
    parts = training_memory(shape, how)
    assert sum(parts.values()) == pytest.approx(measured, rel=0.25)


def test_every_recipe_can_be_planned_without_a_network():
    code = (
        "from psr_nb.recipe import load_recipe, recipes\n"
        "from psr_nb.studies.placement import Hardware\n"
        "from psr_nb.studies.plan import plan_recipe\n"
        "for name in recipes():\n    assert plan_recipe(load_recipe(name), Hardware(gpus=8)).phases\n"
        "import sys\nprint(*sorted({'transformers', 'trl', 'vllm'} & set(sys.modules)))\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nowhere"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == ""  # and without loading what trains and runs models


SIZES = {
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-Math-72B": 72_706_203_648,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


def test_shipped_shapes_have_as_many_parameters_as_their_models():
    shipped = {json.loads(p.read_text())["model"] for p in packaged("shapes").glob("*.json")}
    assert shipped == set(SIZES)
    assert {name: model_shape(name).parameters for name in SIZES} == SIZES
    hub = {load_recipe(name).model for name in recipes()}
    assert {m for m in hub if not m.startswith("packaged:")} <= shipped


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_parameters_are_those_that_transformers_makes(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=160)
    config = AutoConfig.for_model(
        kind, vocab_size=99, num_key_value_heads=2, tie_word_embeddings=False, **sizes
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config.to_dict(), kind).parameters == sum(p.numel() for p in model.parameters())


ALONE = {"hardware.gpus": 1, "hardware.nodes": 1, "hardware.shard": "none"}
OVER_RAY = {"engine.tensor_parallel": 1, "start": "M1"}
NODES = Hardware(gpus=8, nodes=4)
REFUSED = [
    ("qwen2.5-math-7b", ALONE, Hardware(), r"sft: .* 137 GiB .* 80; set sft.lora_rank: 64"),
    ("qwen2.5-math-7b", ALONE | {"start": "M1"}, Hardware(), r"dpo: .* set dpo.lora_rank: 64"),
    ("qwen2.5-math-7b", ALONE, Hardware(gpus=8), "or hardware.shard: fsdp with hardware.gpus: 2"),
    (
        "qwen2.5-math-7b",
        {"hardware.shard": "none"},
        Hardware(gpus=8),
        "set hardware.shard: fsdp|fsdp with",
    ),
    ("qwen2.5-math-7b", {}, Hardware(gpus=4), "hardware.gpus: 8 .* has 4 GPUs; set it to 4"),
    ("qwen2.5-math-72b", {"engine.replicas": 2}, Hardware(gpus=8), "hardware.nodes: 4 .* set it to 1"),
    ("qwen2.5-math-7b-lora", {"engine.tensor_parallel": 8}, Hardware(gpus=8), "1, 2, 4 or 28 can"),
    (
        "qwen2.5-math-7b-lora",
        {"engine.tensor_parallel": 2},
        Hardware(),
        "where a node has 1; set it to 1",
    ),
    (
        "qwen2.5-math-7b-lora",
        {"engine.replicas": 3},
        Hardware(gpus=2),
        "engine.replicas: 3 .* set it to 2",
    ),
    ("qwen2.5-math-72b", OVER_RAY, NODES, "engine.tensor_parallel: 4"),
    (
        "qwen2.5-math-1.5b-24gb",
        {"sft.lora_rank": 0},
        Hardware(card="RTX4090"),
        "sft: .* set sft.lora_rank: 64",
    ),
    (
        "demo",
        {"engine.gpu_memory": 0.9},
        Hardware(),
        "parallel: 2 arms .* reserve 0.9 .* set engine.gpu_memory: 0.45",
    ),
    ("demo", {"model": "no/such-model"}, Hardware(), "give a folder with its config.json"),
    (
        "qwen2.5-math-7b",
        ALONE,
        Hardware(card="CPU", gpu_memory=64),
        "sft: .* GiB of a machine that has 64",
    ),
]


@pytest.mark.parametrize("name,changes,machine,said", REFUSED)
def test_what_can_not_fit_is_refused_with_the_setting_that_would(name, changes, machine, said):
    with pytest.raises(InputError, match=said) as e:
        refuse_unfit(plan_recipe(load_recipe(name, **changes), machine))
    assert "\n" not in str(e.value)


def test_the_setting_that_is_named_makes_it_fit():
    lora = {"sft.lora_rank": 64, "dpo.lora_rank": 64}
    refuse_unfit(plan_recipe(load_recipe("qwen2.5-math-7b", **ALONE, **lora), Hardware()))
    divided = {"hardware.gpus": 2, "hardware.shard": "fsdp"}
    refuse_unfit(plan_recipe(load_recipe("qwen2.5-math-7b", **divided), Hardware(gpus=2)))
    refuse_unfit(plan_recipe(load_recipe("demo", **{"engine.gpu_memory": 0.45}), Hardware()))


PLACES = r"(?:(?P<nodes>\d+) nodes of |one node of )?(?P<gpus>\d+|one) GPUs? with (?P<memory>\d+) GiB"


def test_recipes_fit_the_machines_that_they_speak_of():
    seen = {}
    for name in recipes():
        r = load_recipe(name)
        if not r.hardware.gpus:
            continue
        said = re.search(PLACES, r.about)
        gpus, nodes = int(said["gpus"].replace("one", "1")), int(said["nodes"] or 1)
        assert (r.hardware.gpus, r.hardware.nodes) == (gpus, nodes), name
        refuse_unfit(plan_recipe(r, Hardware(gpus=gpus, nodes=nodes, gpu_memory=int(said["memory"]))))
        seen[name] = int(said["memory"])
    assert set(seen) >= {f"qwen2.5-math-{n}" for n in ("7b", "72b", "7b-lora", "1.5b-24gb")} | {
        "llama-3.1-8b"
    }
    assert seen["qwen2.5-math-1.5b-24gb"] == 24


def sft_phase(machine: Hardware, **changes):
    "The phase of the 7B recipe's SFT."
    return plan_recipe(load_recipe("qwen2.5-math-7b", **changes), machine).phases[0]


def test_hardware_of_a_recipe_is_planned():
    eight = Hardware(gpus=8)
    one = sft_phase(eight, **ALONE)
    each = sft_phase(eight, **{"hardware.shard": "none"})
    parts = sft_phase(eight).parts
    for name in ("weights", "gradients", "optimizer"):
        assert parts[name] == pytest.approx(one.parts[name] / 8)
        assert each.parts[name] == one.parts[name]
    assert each.parts["buckets"] == one.parts["gradients"] and one.parts["buckets"] == 0
    halved = sft_phase(eight, **{"hardware.dtype": "bfloat16"})
    assert halved.parts["optimizer"] == parts["optimizer"] / 2
    large = Hardware(gpus=8, gpu_memory=200)
    assert sft_phase(large, **ALONE).hours == pytest.approx(8 * sft_phase(large).hours)
    saved = [
        plan_recipe(load_recipe("demo", **{"hardware.save": x}), ONE).disk
        for x in ("float32", "bfloat16")
    ]
    assert saved[1] < saved[0]
    assert "reference" in training_memory(
        model_shape("Qwen/Qwen2.5-Math-7B"), Training(1, reference_held=True)
    )


def test_the_machine_of_a_plan_is_the_named_one_or_the_recipes_or_the_one_at_hand():
    assert machine_for(load_recipe("qwen2.5-math-72b"))[1] == Hardware(gpus=8, nodes=4)
    r, machine = machine_for(load_recipe("qwen2.5-math-72b"), gpus=4, gpu_memory=141)
    assert machine == Hardware(gpus=4, nodes=4, gpu_memory=141) and r.hardware.gpus == 4
    assert machine_for(load_recipe("demo"))[1] == machine_here(load_recipe("demo"))


def test_a_probe_measures_the_lengths_of_a_run():
    m1 = {"start": "M1", "model": "packaged:models/demo-m1"}
    engine = TransformersEngine(str(packaged("models/demo-m1")), dtype="float32")
    short = load_recipe("demo", **m1, **{"engine.in_flight": 24})  # no more questions for the rates
    found = engines_probed(engine, short, 24)
    probed, whole = (
        Lengths(**found["lengths"]),
        measured_lengths(load_recipe("demo"), open_run(packaged("runs/demo"))),
    )
    for name in ("prompt", "step", "steps", "step_prompt", "judge_prompt", "verdict", "solution"):
        assert getattr(probed, name) == pytest.approx(getattr(whole, name), rel=0.25), name
    for name in ("comparisons", "pairs"):
        assert getattr(probed, name) == pytest.approx(getattr(whole, name), rel=0.5), name


def test_measured_rates_make_the_hours():
    laptop = Hardware(card="CPU", gpu_memory=16, engine="transformers")
    r = load_recipe("demo")
    rates = Rates(searching=1000.0, solving=500.0, training=1e9)
    unknown = plan_recipe(r, laptop)
    assert unknown.faults == [] and all(p.hours is None for p in unknown.phases)
    assert "--probe 8" in plan_text(unknown)
    for p in plan_recipe(r, laptop, None, Probed(guessed_lengths(r), rates)).phases:
        seconds = (
            p.flops / 1e9 if p.phase in ("SFT", "DPO") else (p.prompt_tokens + p.output_tokens) / 1000
        )
        assert 3600 * p.hours == pytest.approx(seconds * (2 if p.phase == "evaluate" else 1), rel=1e-3)


def test_a_run_that_can_not_fit_this_machine_is_not_begun():
    with pytest.raises(InputError, match="GiB of a machine that has 16"):
        check_run(load_recipe("qwen2.5-math-7b", **ALONE), Hardware(card="CPU", gpu_memory=16))
    with pytest.raises(InputError, match="hardware.gpus: 8 processes on a node, which has 4"):
        check_run(load_recipe("qwen2.5-math-7b"), Hardware(gpus=4))
    with pytest.raises(InputError, match="parallel: 2 arms"):
        check_run(load_recipe("demo", **{"engine.gpu_memory": 0.9}), Hardware())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_run(load_recipe("demo"))


def test_json_has_what_programs_read():
    made = json.loads(
        json.dumps(plan_json(plan_recipe(load_recipe("qwen2.5-math-7b-lora"), Hardware())))
    )
    assert made["fits"] and made["faults"] == [] and made["disk"] > 100
    wanted = {
        "model",
        "phase",
        "prompt_tokens",
        "output_tokens",
        "flops",
        "gpu_memory",
        "hours",
        "placement",
    }
    for phase in made["phases"]:
        assert wanted <= set(phase) and phase["gpu_memory"] == pytest.approx(
            sum(phase["parts"].values())
        )
        assert phase["flops"] > 0 and phase["hours"] > 0


def test_the_command_prints_json_and_refuses_with_one_line(psr):
    done = psr("plan", "qwen2.5-math-7b", "--gpus", "8", "--gpu-memory", "80", "--nodes", "1", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["fits"] is True
    done = psr("plan", "qwen2.5-math-7b", "--gpus", "8", "--shard", "none", "--json")
    made = json.loads(done.stdout)
    assert done.returncode == 2 and made["fits"] is False and len(made["faults"]) == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "set sft.lora_rank: 64" in done.stderr


def test_measured_rates_are_those_of_the_machine_at_hand(monkeypatch, capsys):
    r = load_recipe("fast")
    found = Probed(replace(guessed_lengths(r), source="measured"), Rates(1000.0, 500.0, 1e9))
    monkeypatch.setattr("psr_nb.studies.rates.probe", lambda recipe, count, progress: found)
    main(["plan", "fast", "--probe", "4", "--json"])
    here = json.loads(capsys.readouterr().out)
    assert here["rates"]["searching"] == 1000 and here["lengths"]["source"] == "measured"
    main(["plan", "fast", "--card", "A100", "--engine", "transformers", "--probe", "4", "--json"])
    there = json.loads(capsys.readouterr().out)
    assert there["rates"] is None and there["lengths"] == here["lengths"]
    assert there["phases"][0]["hours"] != here["phases"][0]["hours"]


def test_a_named_machine_may_have_an_engine_that_is_not_installed_here(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    main(["plan", "qwen2.5-math-7b", "--set", "engine.kind=vllm"])
    assert "8 x vllm" in capsys.readouterr().out


def test_the_command_measures_a_run(psr):
    done = psr("plan", "demo", "--engine", "transformers", "--run", packaged("runs/demo"))
    assert done.returncode == 0 and "measured in demo: M2, M3, M4" in done.stdout


@pytest.mark.parametrize(
    "options,said",
    [
        (["--gpus", "0"], "--gpus"),
        (["--set", "model=no/such-model"], "give a folder with its config.json"),
        (["--run", "nowhere"], "not a run"),
        (["--gpus", "4", "--set", "engine.tensor_parallel=3"], "3 GPUs can't share 2 heads"),
        (["--shard", "fdsp"], "--shard"),
        (
            ["--set", "model=no/such-model", "--probe", "2"],
            "is not on this machine, and a probe runs it",
        ),
    ],
)
def test_the_command_says_bad_input_in_one_line(options, said, capsys):
    with pytest.raises(SystemExit) as e:
        main(["plan", "demo", *options])
    errors = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and len(errors) == 1 and said in errors[0]


def test_an_unknown_model_offline_is_said_in_one_line(psr):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = psr("plan", "demo", "--set", "model=no/such-model", env=offline)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "no/such-model" in done.stderr and "give a folder with its config.json" in done.stderr
