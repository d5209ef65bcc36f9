"One process or two, whole models or divided ones, at once or after a kill: the same weights."

import json
import os
import shutil
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
import train_cases
import yaml
from safetensors.torch import load_file

from psr_nb.dpo import DPOSettings, step_dpo_trainer, train_dpo
from psr_nb.engines.load import load_model
from psr_nb.files import append_jsonl, packaged
from psr_nb.records import IFTRow, InputError
from psr_nb.sft import HardwareSettings, SFTSettings, on_hardware, train_sft

M1 = str(packaged("models/demo-m1"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SHARDS = ("none", "fsdp")


def torchrun(*command, timeout=600):
    "Two processes that do a command of Python."
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = [*launch, *map(str, command)]
    return subprocess.run(done, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def by_two(folder, *jobs):
    "Trainings of `train_cases` on two processes, each as CASE/SHARD/HOW=OUT."
    done = torchrun(train_cases.__file__, folder, *jobs)
    assert done.returncode == 0, done.stderr[-3000:]


def by_one(folder, name, how, out):
    train_cases.train(folder, f"{name}/none/{how}", folder / out)


def weights(folder):
    return load_model(str(folder)).state_dict()


def furthest(one, other):
    assert one.keys() == other.keys()
    return max((one[n] - other[n]).abs().max().item() for n in one)


def command(module, *arguments):
    "A training's command on two processes. (`accelerate launch --cpu` would start one without MPI.)"
    return torchrun("-m", module, *arguments)


def test_two_processes_give_what_one_gives(tmp_path):
    "By the command: the demo's model, divided, on trees."
    append_jsonl(tmp_path / "pairs.jsonl", train_cases.pairs())
    sets = ["learning_rate=1e-4", "beta=0.5", "batch_size=8", "tree_tokens=120", "hardware.shard=fsdp"]
    files = ["--model", M1, "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "two"]
    done = command("psr_nb.dpo", *files, *(x for s in sets for x in ("--set", s)))
    assert done.returncode == 0, done.stderr[-3000:]
    s = DPOSettings(learning_rate=1e-4, beta=0.5, batch_size=8, tree_tokens=120)
    train_dpo(M1, train_cases.pairs(), tmp_path / "one", s)
    one, two, before = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(M1)
    assert furthest(one, before) > 1e-4  # it did train
    assert furthest(one, two) < 1e-5
    assert not list((tmp_path / "two").glob("*.bin")) and done.stdout.count("'updates'") == 1


@pytest.mark.slow
def test_fine_tuning_has_a_command(tmp_path):
    solved = [(f"{i}+{i}?", [f"{i}+{i}={2 * i}", f"Ben has {2 * i}"], str(2 * i)) for i in range(9)]
    rows = [IFTRow(id=q, question=q, steps=steps, answer=answer) for q, steps, answer in solved]
    append_jsonl(tmp_path / "rows.jsonl", rows)
    files = ["--model", M1, "--rows", tmp_path / "rows.jsonl", "--domain", "arithmetic"]
    files += ["--out", tmp_path / "two"]
    sets = ["learning_rate=1e-4", "epochs=1", "batch_size=8"]
    done = command("psr_nb.sft", *files, *(x for s in sets for x in ("--set", s)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert furthest(weights(tmp_path / "two"), weights(M1)) > 1e-5
    again = command("psr_nb.sft", *files)
    assert again.returncode != 0 and "a model is there already" in again.stderr


NOT_RESUMED = ("sft checkpointing", "sft routed", "dpo before")
RESUMED = [name for name in train_cases.CASES if name not in NOT_RESUMED]


COLUMNS = [f"{shard}{how}" for shard in SHARDS for how in ("", ".1to2", ".2to1")]


def all_trainings(folder):
    "Train everything of the table in `folder`; the weights of one process by case."
    one, jobs = {}, []
    for name in [n for n in train_cases.CASES if n != "sft routed"]:
        by_one(folder, name, "whole", f"{name}.one")
        one[name] = weights(folder / f"{name}.one")
        jobs += [f"{name}/{shard}/whole={name}.{shard}" for shard in SHARDS]
    for name in RESUMED:
        by_one(folder, name, "stopped", f"{name}.1")
        for shard in SHARDS:
            shutil.copytree(folder / f"{name}.1.training", folder / f"{name}.{shard}.1to2.training")
            jobs.append(f"{name}/{shard}/resumed={name}.{shard}.1to2")
            jobs.append(f"{name}/{shard}/stopped={name}.{shard}.2to1")
    by_two(folder, *jobs)
    for name in RESUMED:
        for shard in SHARDS:
            by_one(folder, name, "resumed", f"{name}.{shard}.2to1")
    return one


@pytest.mark.slow
def test_the_table_of_equal_weights(tmp_path, capsys):
    """All kinds of training on two processes, with whole models (DDP) and divided ones (FSDP): as on one, and
    stopped on one and resumed on two, or the other way round."""
    train_cases.make_model(tmp_path / "model")
    one, table = all_trainings(tmp_path), {}
    for name in one:
        there = [c for c in COLUMNS if (tmp_path / f"{name}.{c}").exists()]
        table[name] = {c: furthest(one[name], weights(tmp_path / f"{name}.{c}")) for c in there}
    with capsys.disabled():
        print("", f"{'largest difference':20}" + "".join(f"{c:>12}" for c in COLUMNS), sep="\n")
        for name, row in table.items():
            print(f"{name:20}" + "".join(f"{row[c]:12.1e}" if c in row else " " * 12 for c in COLUMNS))
    assert all(len(table[name]) == 6 for name in RESUMED)
    assert max(x for row in table.values() for x in row.values()) < 2e-6, table
    base = weights(tmp_path / "model")
    assert min(furthest(base, w) for w in one.values()) > 3e-3  # they did train


@pytest.mark.parametrize("model", [{}, train_cases.MIXTURE], ids=["Llama", "Mixtral"])
def test_a_padded_training_goes_on_in_the_middle_of_its_second_epoch(tmp_path, model):
    "In the same order, and of a mixture of experts with its experts."
    train_cases.make_model(tmp_path / "model", **model)
    for how, out in (("whole", "one"), ("stopped", "other"), ("resumed", "other")):
        by_one(tmp_path, "sft padded", how, out)
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "other")) == 0


@pytest.mark.slow
def test_divided_experts_are_those_of_one_process(tmp_path):
    train_cases.make_model(tmp_path / "model", **train_cases.MIXTURE)
    for name, how, out in (("sft routed", "whole", "one"), ("sft routed", "stopped", "two")):
        by_one(tmp_path, name, how, out)
    by_two(
        tmp_path,
        "sft routed/fsdp/resumed=two",
        "sft routed/fsdp/whole=divided",
        "sft routed/none/whole=ddp",
    )
    one = weights(tmp_path / "one")
    assert max(furthest(one, weights(tmp_path / x)) for x in ("two", "divided", "ddp")) < 2e-6


def test_a_model_is_trained_and_saved_in_bfloat16(tmp_path, recwarn):
    train_cases.make_model(tmp_path / "model")
    on_hardware(HardwareSettings(dtype="bfloat16", save="bfloat16"))
    try:
        s = SFTSettings(learning_rate=1e-2, batch_size=8, epochs=2)
        figures = train_sft(str(tmp_path / "model"), train_cases.rows(), tmp_path / "bf16", s)
    finally:
        on_hardware(HardwareSettings())
    saved = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {w.dtype for w in saved.values()} == {torch.bfloat16}
    assert figures["loss_last"] < figures["loss_first"]
    assert not [w for w in recwarn if "one by one" in str(w.message)]  # rounding is no disagreement
    config = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and load_model(str(tmp_path / "bf16")).dtype == torch.float32


@pytest.mark.slow
def test_two_killed_processes_are_resumed_by_one(tmp_path):
    train_cases.make_model(tmp_path / "model")
    by_one(tmp_path, "sft padded", "whole", "one")
    killed = torchrun(train_cases.__file__, tmp_path, "sft padded/fsdp/killed=two")
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    left = sorted(f.name for f in (tmp_path / "two.training").glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-4"] and not (tmp_path / "two").exists()
    by_one(tmp_path, "sft padded", "resumed", "two")
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 2e-6


class OnEight:
    "A configuration of TRL's on a machine with eight GPUs and one process."

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, **given):
        args = self.kind(**given)
        args._n_gpu = 8
        return args


def test_one_process_on_eight_gpus_is_refused(tmp_path):
    import trl

    said = "8 GPUs are visible to one process"
    with patch("trl.DPOConfig", OnEight(trl.DPOConfig)), pytest.raises(InputError, match=said):
        train_dpo(M1, train_cases.pairs(), tmp_path / "dpo", DPOSettings())
    with patch("trl.SFTConfig", OnEight(trl.SFTConfig)), pytest.raises(InputError, match=said):
        train_sft(M1, train_cases.rows(), tmp_path / "sft", SFTSettings())
    with patch("torch.cuda.device_count", return_value=8), pytest.raises(InputError, match=said):
        train_sft("no model is loaded", train_cases.rows(), tmp_path / "sft", SFTSettings())


def test_no_pair_is_lost_if_gpus_are_put_together_after_all(tmp_path):
    "Were the refusal not there, a loader of eight GPUs would hand eight optimizer steps to the collator."
    s = DPOSettings(batch_size=2)
    trainer, *_ = step_dpo_trainer(M1, train_cases.pairs(), tmp_path / "x", s, 0)
    trainer._train_batch_size = 8
    with pytest.raises(InputError, match="a batch has 6 optimizer steps and has to be one"):
        list(trainer.get_train_dataloader())
    trainer._train_batch_size = 1
    names = [n for batch in trainer.get_train_dataloader() for m in batch["micro"] for n in m["names"]]
    assert sorted(names) == sorted(f"{p.trajectory_id} step {p.step}" for p in train_cases.pairs())


def test_a_full_memory_names_what_to_lower(tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with patch("trl.DPOTrainer.compute_loss", full), pytest.raises(InputError) as e:
        train_dpo(M1, train_cases.pairs(), tmp_path / "dpo", DPOSettings())
    assert "lower dpo.tree_tokens, set gradient_checkpointing, or divide" in str(e.value)
    with patch("trl.SFTTrainer.compute_loss", full), pytest.raises(InputError) as e:
        train_sft(M1, train_cases.rows(), tmp_path / "sft", SFTSettings())
    assert "lower sft.micro_batch, set" in str(e.value) and "hardware.shard: fsdp" in str(e.value)


@pytest.mark.parametrize("path", sorted(packaged("accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_configurations_are_read(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config, given = load_config_from_file(str(path)), yaml.safe_load(path.read_text())
    assert config.num_processes == given["num_processes"] and config.distributed_type == "MULTI_GPU"
    assert not config.fsdp_config and "hardware.shard=fsdp" in path.read_text()
