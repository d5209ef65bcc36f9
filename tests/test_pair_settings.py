"Settings of the literature, off by default: what each does, and that trees and pairs give the same."

import typing
from dataclasses import replace
from functools import cache

import pytest
import torch

from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.dpo import DPOSettings, step_dpo_trainer
from psr_nb.engine import load_tokenizer
from psr_nb.engines.transformers import load_model
from psr_nb.files import packaged, read_jsonl
from psr_nb.pairs import PairSettings, make_pairs
from psr_nb.records import InputError, LearntText, Trajectory

M0, M1 = (str(packaged(f"models/demo-m{n}")) for n in (0, 1))
LOSSES = typing.get_args(typing.get_type_hints(DPOSettings)["loss"])
REFUSED = ("aot", "aot_unpaired", "sft")


@cache
def trajectories() -> list[Trajectory]:
    return read_jsonl(packaged("runs/demo") / "M2" / "trajectories.jsonl", Trajectory)


@cache
def some_pairs():
    return make_pairs(trajectories())[0][:12]


def trainer_of(packing, tmp_path, rows=None, **settings):
    "Reference M0, so that log-ratios aren't 0; the two ways make micro-batches of other pairs."
    s = DPOSettings(beta=0.3, packing=packing, micro_batch=5, tree_tokens=200, **settings)
    trainer, *_ = step_dpo_trainer(M1, rows or some_pairs(), tmp_path / packing, s, 0, reference=M0)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def first_update(trainer):
    "(loss, gradients) of the first optimizer step."
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.training_step(trainer.model, batch).item()
    return loss, {n: w.grad.clone() for n, w in trainer.model.named_parameters() if w.grad is not None}


def furthest(a, b) -> float:
    "The largest difference of losses or of gradients, relative where they are above 1."
    largest = max(g.abs().max().item() for g in b[1].values())
    gradients = max((a[1][n] - g).abs().max().item() for n, g in b[1].items())
    return max(abs(a[0] - b[0]) / max(1, abs(b[0])), gradients / max(1, largest))


def both_ways(tmp_path, rows=None, **settings):
    "The first update with trees, which is that with pairs."
    tree, pairs = (first_update(trainer_of(p, tmp_path, rows, **settings)) for p in ("tree", "pairs"))
    assert furthest(tree, pairs) < 1e-5
    return tree


def test_every_loss_of_trl_is_the_same_on_trees_and_pairs(tmp_path):
    tree, pairs = (trainer_of(p, tmp_path, label_smoothing=0.1) for p in ("tree", "pairs"))
    off, values = {}, {}
    for loss in LOSSES:
        tree.loss_types = pairs.loss_types = [loss]
        found = first_update(tree)
        off[loss], values[loss] = furthest(found, first_update(pairs)), found[0]
    assert len(set(values.values())) == len(LOSSES) == 15
    kept = {loss: x for loss, x in off.items() if loss not in REFUSED}
    assert max(kept.values()) < 1e-5, kept
    assert min(off[loss] for loss in REFUSED) > 1e-4, off  # why they are refused


@pytest.mark.parametrize("loss", REFUSED)
def test_other_losses_are_refused(loss):
    with pytest.raises(InputError, match=f"^loss: {loss} .*; (take|set) "):
        DPOSettings(loss=loss)
