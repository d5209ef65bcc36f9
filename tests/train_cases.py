"""Small trainings by name, for one process or several: `torchrun tests/train_cases.py FOLDER JOB=OUT ...`.

A job is CASE/SHARD/HOW. HOW is whole, stopped (after five updates, of which four are in a checkpoint: in the
middle of the second epoch), killed (so too, by a signal), or resumed, which goes on with what was left."""

import os
import random
import signal
import sys
from pathlib import Path

import torch
import transformers

from psr_nb.cli.bench import made_pairs
from psr_nb.dpo import DPOSettings, train_dpo
from psr_nb.engine import load_tokenizer
from psr_nb.files import packaged
from psr_nb.sft import HardwareSettings, SFTSettings, on_hardware, train_sft

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
USUAL = dict(learning_rate=1e-3, batch_size=8, checkpoint_every=2, schedule="constant")
LORA = dict(lora_rank=4)
CASES = {
    "sft padded": SFTSettings(**USUAL, micro_batch=4, epochs=3),
    "sft packed": SFTSettings(**USUAL, pack_tokens=100, epochs=3),
    "sft LoRA": SFTSettings(**USUAL, micro_batch=2, epochs=2, **LORA),
    "sft checkpointing": SFTSettings(**USUAL, micro_batch=2, epochs=2, gradient_checkpointing=True),
    "sft routed": SFTSettings(**USUAL, micro_batch=4, epochs=2, router_aux_loss_coef=0.1),
    "dpo trees": DPOSettings(**USUAL, beta=0.5, epochs=2, tree_tokens=120),
    "dpo pairs": DPOSettings(**USUAL, beta=0.5, epochs=2, micro_batch=3, packing="pairs"),
    "dpo LoRA": DPOSettings(**USUAL, beta=0.5, epochs=2, tree_tokens=120, **LORA),
    "dpo before": DPOSettings(**USUAL, beta=0.5, epochs=2, tree_tokens=120, precompute_reference=True),
}


MIXTURE = dict(kind=transformers.MixtralConfig, num_local_experts=4, num_key_value_heads=2)


class Stop(Exception):
    pass


def make_model(folder, kind=transformers.LlamaConfig, **config):
    "A small random model with the demo's tokenizer."
    tok = load_tokenizer(str(packaged("models/demo-m0")))
    torch.manual_seed(0)
    config = kind(**SMALL, vocab_size=len(tok), max_position_embeddings=512, **config)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tok.save_pretrained(folder)


def rows():
    "22 rows of 3 to 40 ids."
    draw = random.Random(0)
    lengths = [(draw.randint(2, 20), draw.randint(1, 20)) for _ in range(22)]
    return [tuple([draw.randrange(5, 60) for _ in range(n)] for n in pair) for pair in lengths]


def pairs():
    out = []
    for i, L in enumerate((4, 1, 7, 3, 5, 2, 6)):
        for p in made_pairs(L, 30, 8, 60, seed=i):
            p.trajectory_id = f"t{i}"
            out.append(p)
    return out


def stop(what, done, total):
    if done == 5:
        raise Stop


def kill(what, done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, job: str, out: Path):
    "One training, of CASE/SHARD/HOW."
    name, shard, how = job.split("/")
    s, base = CASES[name], str(folder / "model")
    on_hardware(HardwareSettings(shard=shard))
    given = {"progress": {"stopped": stop, "killed": kill}[how]} if how in ("stopped", "killed") else {}
    try:
        if name.startswith("sft"):
            train_sft(base, rows(), out, s, **given)
        else:
            train_dpo(base, pairs(), out, s, **given)
    except Stop:
        pass
    on_hardware(HardwareSettings())


def main():
    folder = Path(sys.argv[1])
    for job in sys.argv[2:]:
        at, _, out = job.partition("=")
        train(folder, at, folder / out)


if __name__ == "__main__":
    main()
