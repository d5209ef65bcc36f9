"Fine-tuning and step-DPO compute what a model says of a text alone, whatever its architecture."

import json
import math
import random
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers

from psr_nb.cli.bench import made_pairs
from psr_nb.dpo import DPOSettings, step_dpo_trainer, train_dpo
from psr_nb.engine import load_tokenizer
from psr_nb.engines.scores import Routers, own_scores, router_off
from psr_nb.engines.transformers import load_model
from psr_nb.files import packaged
from psr_nb.records import InputError
from psr_nb.sft import SFTSettings, train_sft

M0 = str(packaged("models/demo-m0"))
TOKENIZER = load_tokenizer(M0)
SHAPE = dict(vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
EXPERTS = dict(output_router_logits=True, router_aux_loss_coef=0.3, num_experts_per_tok=2)
DROP = dict(attention_dropout=0.3)
ROPE = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=40, factor=4.0)
ROPE |= dict(short_factor=[1.0] * 4, long_factor=[8.0] * 4)


def mixtures():
    "Mixtures of experts whose configuration asks for the router's loss."
    few = dict(moe_intermediate_size=16, decoder_sparse_step=1, num_experts=4, head_dim=8)
    return {
        "mixtral": transformers.MixtralConfig(
            **SHAPE, **EXPERTS, num_local_experts=4, router_jitter_noise=0.2
        ),
        "qwen3": transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS, **few),
        "gpt-oss": transformers.GptOssConfig(**SHAPE, **EXPERTS, num_local_experts=4, head_dim=8),
        "olmoe": transformers.OlmoeConfig(**SHAPE, **EXPERTS, num_experts=4),
        "granite": transformers.GraniteMoeConfig(**SHAPE, **EXPERTS, num_local_experts=4),
        "jetmoe": transformers.JetMoeConfig(
            **SHAPE, num_local_experts=4, kv_channels=8, output_router_logits=True
        ),
    }


def dropping():
    "Architectures that draw dropout outside of modules of the class Dropout, each in its own way."
    opt = dict(ffn_dim=48, word_embed_proj_dim=32, dropout=0.2, layerdrop=0.3)
    plain = {
        name: SHAPE[name]
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    return {
        "llama": transformers.LlamaConfig(**SHAPE, **DROP),
        "opt": transformers.OPTConfig(**plain, **opt, **DROP),
        "starcoder2": transformers.Starcoder2Config(
            **SHAPE, **DROP, residual_dropout=0.2, embedding_dropout=0.2
        ),
        "granite": transformers.GraniteConfig(**SHAPE, **DROP),
        "falcon": transformers.FalconConfig(**plain, **DROP, hidden_dropout=0.3),
        "persimmon": transformers.PersimmonConfig(**SHAPE, **DROP, hidden_dropout=0.3),
        "gpt2": transformers.GPT2Config(
            vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.3
        ),
    }


def other_head():
    "A model with a layer of its own between hidden states and head."
    own = {name: n for name, n in SHAPE.items() if name != "num_key_value_heads"}
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=1, cls_token_id=1, sep_token_id=1)
    return transformers.ModernBertDecoderConfig(**own, **ids)


def longrope():
    "A model that scales the positions of texts of more than 40 tokens."
    return transformers.Phi3Config(
        **SHAPE, rope_parameters=ROPE, original_max_position_embeddings=40, pad_token_id=0
    )


def saved(folder, config, seed=0, scale=4.0):
    "A random model with the demo's tokenizer; its weights are `scale` times as large, which tells errors."
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if w.dim() > 1 and "embed" not in name:
                w.mul_(scale)
    path = folder / f"model-{seed}"
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def pairs(prompt=20, step=6):
    "Step pairs of three trajectories."
    out = []
    for i, L in enumerate((3, 1, 2)):
        for p in made_pairs(L, prompt, step, len(TOKENIZER), seed=i):
            p.trajectory_id = f"t{i}"
            out.append(p)
    return out


def first_update(folder, model, made, reference=None, **settings):
    "Loss and gradients of the first optimizer step, all pairs in one micro-batch."
    s = DPOSettings(**{"batch_size": 99, "micro_batch": 99, "tree_tokens": 9999, "beta": 0.5} | settings)
    trainer, *_ = step_dpo_trainer(model, made, folder / "x", s, 0, reference)
    [batch] = list(trainer.get_train_dataloader())
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(trainer.model, batch).item()
    return loss, {n: w.grad for n, w in trainer.model.named_parameters() if w.grad is not None}


def furthest(a, b):
    return max(abs(a[0] - b[0]), max((a[1][n] - g).abs().max().item() for n, g in b[1].items()))


def formula(model, reference, made, beta=0.5):
    "DPO's loss, written out, every text in a pass of its own."

    def margin(m, p):
        texts = [p.prompt_ids + step for step in (p.chosen_ids, p.rejected_ids)]
        start = len(p.prompt_ids)
        logits = [
            m(torch.tensor([t]), use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
            for t in texts
        ]
        scores = [
            x.gather(1, torch.tensor(t[start:])[:, None]).sum()
            for x, t in zip(logits, texts, strict=True)
        ]
        return scores[0] - scores[1]

    models = load_model(model, "float32"), load_model(reference, "float32")
    with torch.no_grad():
        margins = torch.stack([margin(models[0], p) - margin(models[1], p) for p in made])
    return -torch.nn.functional.logsigmoid(beta * margins).mean().item()


@pytest.mark.parametrize("packing", ["tree", "pairs"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gpt-oss"])
def test_a_routers_loss_is_not_added_unasked(tmp_path, name, packing):
    config = mixtures()[name]
    model = saved(tmp_path, config)
    figures = train_dpo(model, pairs(), tmp_path / "out", DPOSettings(packing=packing))
    assert abs(figures["loss_first"] - math.log(2)) < 1e-6
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["output_router_logits"] and kept["router_aux_loss_coef"] == 0.3  # as it was loaded


@pytest.mark.parametrize("name", ["mixtral", "qwen3"])
def test_a_routers_loss_is_the_same_in_trees_and_pairs(tmp_path, name):
    model, reference = (saved(tmp_path, mixtures()[name], seed) for seed in (0, 1))
    trees = []
    for weight in (0.0, 0.3):
        s = dict(reference=reference, router_aux_loss_coef=weight)
        trees.append(first_update(tmp_path, model, pairs(), **s))
        single = first_update(tmp_path, model, pairs(), packing="pairs", **s)
        assert furthest(trees[-1], single) < 1e-4
    assert trees[1][0] - trees[0][0] > 0.2  # at least 0.3 times 1


@pytest.mark.parametrize("name", mixtures())
def test_a_routers_loss_is_what_the_model_says(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(mixtures()[name]).eval()
    rows = torch.randint(len(TOKENIZER), (3, 17))
    mask = (torch.arange(17) < torch.tensor([[17], [9], [12]])).long()
    said = model(input_ids=rows, attention_mask=mask).aux_loss
    router_off(model)
    routers = Routers(model)
    assert model(input_ids=rows, attention_mask=mask).aux_loss is None
    assert abs(routers.loss(mask) - said) < 1e-5


def test_models_without_routers_refuse_their_loss(tmp_path):
    s = SFTSettings(router_aux_loss_coef=0.1)
    with pytest.raises(InputError, match="LlamaForCausalLM gives no router logits"):
        train_sft(M0, [([5, 6], [7])] * 4, tmp_path / "out", s)


def test_fine_tuning_adds_the_routers_loss_where_asked(tmp_path):
    model, losses = saved(tmp_path, mixtures()["qwen3"]), {}  # a Mixtral would add noise
    for pack in (0, 60):
        for weight in (0.0, 0.5):
            s = SFTSettings(epochs=1, batch_size=8, router_aux_loss_coef=weight, pack_tokens=pack)
            out = tmp_path / f"{pack}-{weight}"
            losses[pack, weight] = train_sft(model, sft_rows(8), out, s)["loss_first"]
    assert abs(losses[0, 0.0] - losses[60, 0.0]) < 1e-4
    assert all(losses[pack, 0.5] - losses[pack, 0.0] > 0.4 for pack in (0, 60))


@pytest.mark.parametrize("packing", ["tree", "pairs"])
@pytest.mark.parametrize("name", dropping())
def test_step_dpo_drops_nothing(tmp_path, name, packing):
    config = dropping()[name]
    figures = train_dpo(saved(tmp_path, config), pairs(), tmp_path / "out", DPOSettings(packing=packing))
    assert abs(figures["loss_first"] - math.log(2)) < 1e-6
    was, now = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("model-0", "out"))
    assert {k: v for k, v in was.items() if "drop" in k} == {k: v for k, v in now.items() if "drop" in k}


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust", "sigmoid_norm"])
def test_noise_that_is_left_is_refused_whatever_the_loss(tmp_path, monkeypatch, loss):
    monkeypatch.setattr("psr_nb.engines.scores.without_dropout", lambda model: None)
    model, s = saved(tmp_path, dropping()["llama"]), DPOSettings(loss=loss)
    with pytest.raises(InputError, match="before the first update policy and reference are one model"):
        train_dpo(model, pairs(), tmp_path / "out", s)


@pytest.mark.parametrize("packing", ["tree", "pairs"])
def test_a_router_that_draws_in_training_chooses_as_in_evaluation(tmp_path, packing):
    config = transformers.PhimoeConfig(**SHAPE, num_local_experts=4)
    model, reference = (saved(tmp_path, config, seed, scale=1.0) for seed in (0, 1))
    found, _ = first_update(tmp_path, model, pairs(), reference, packing=packing)
    assert abs(found - formula(model, reference, pairs())) < 1e-4


@pytest.mark.parametrize("packing", ["tree", "pairs"])
def test_pairs_on_both_sides_of_a_border_have_their_own_scores(tmp_path, packing):
    model, reference = (saved(tmp_path, longrope(), seed) for seed in (0, 1))
    made = pairs(prompt=24, step=7)  # of 31 to 52 tokens
    made[0].rejected_ids = made[0].rejected_ids * 3  # chosen has 31 tokens, rejected 45
    with pytest.warns(UserWarning, match="pairs are longer than 40 tokens, from where Phi3"):
        found, _ = first_update(tmp_path, model, made, reference, packing=packing)
    assert abs(found - formula(model, reference, made)) < 1e-5


def test_a_head_that_trl_does_not_know_is_noticed(tmp_path):
    model, reference = (saved(tmp_path, other_head(), seed) for seed in (0, 1))
    for packing in ("tree", "pairs"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _ = first_update(tmp_path, model, pairs(), reference, packing=packing)
        assert abs(found - formula(model, reference, pairs())) < 1e-5


def sft_rows(n, longest=30, seed=0):
    "Made-up rows of unequal lengths."
    rng = random.Random(seed)

    def draw(k):
        return [rng.randrange(3, len(TOKENIZER)) for _ in range(k)]

    return [
        (draw(rng.randrange(2, longest // 2)), draw(rng.randrange(2, longest // 2))) for _ in range(n)
    ]


def own_loss(model, rows):
    "Mean of the completion tokens' negative log-likelihood, every row in a pass of its own."
    net, total = load_model(model, "float32"), 0.0
    with torch.no_grad():
        for p, c in rows:
            batch = {"input_ids": torch.tensor([p + c]), "labels": torch.tensor([[-100] * len(p) + c])}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            total -= own_scores(net, batch).log_probs.sum().item()
    return total / sum(len(c) for _, c in rows)


def first_loss(folder, model, rows, name="out", **settings):
    "Of a fine-tuning with all rows in its first update."
    s = SFTSettings(epochs=1, batch_size=len(rows), micro_batch=4, **settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figures = train_sft(model, rows, folder / name, s)
    return figures, [str(w.message) for w in told if "psr_nb" in w.filename or "row" in str(w.message)]


@pytest.mark.parametrize("pack", [0, 64])
def test_fine_tuning_computes_what_rows_are_alone(tmp_path, pack):
    kinds = {
        "border": (longrope(), 70),
        "head": (other_head(), 30),
        "state": (
            transformers.MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2),
            30,
        ),
        "alibi": (
            transformers.BloomConfig(vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4),
            30,
        ),
    }
    for name, (config, longest) in kinds.items():
        (tmp_path / name).mkdir()
        model, rows = saved(tmp_path / name, config), sft_rows(8, longest)
        figures, told = first_loss(tmp_path / name, model, rows, pack_tokens=pack)
        assert abs(figures["loss_first"] - own_loss(model, rows)) < 1e-4, name
        assert bool(told) == (name in ("border", "head") or pack > 0), (name, told)
        padded = name in ("state", "alibi") or not pack  # rows that would see each other are not packed
        assert ("packed_rows" not in figures) == padded


def test_the_head_reads_only_what_is_learnt(tmp_path, monkeypatch):
    import trl.trainer.utils

    head, read = trl.trainer.utils._ChunkedLogProbFunction, []
    count = SimpleNamespace(
        apply=lambda hidden, *more: read.append(len(hidden)) or head.apply(hidden, *more)
    )
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", count)
    rows = sft_rows(8)
    first_loss(tmp_path, saved(tmp_path, transformers.LlamaConfig(**SHAPE)), rows)
    learnt = sum(len(completion) for _, completion in rows)
    assert sum(read[1:]) == learnt  # the first is a look at two rows beforehand


@pytest.mark.parametrize("pad", ["beyond", "none"])
def test_any_pad_token(tmp_path, pad):
    model = saved(tmp_path, transformers.LlamaConfig(**SHAPE))
    tokenizer = load_tokenizer(M0)
    if pad == "beyond":
        tokenizer.add_special_tokens({"pad_token": "<a pad that the model has no embedding for>"})
        assert tokenizer.pad_token_id == SHAPE["vocab_size"]
    else:
        tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    rows = sft_rows(8)
    figures, told = first_loss(tmp_path, model, rows)
    assert abs(figures["loss_first"] - own_loss(model, rows)) < 1e-5 and told == []
    for packing in ("tree", "pairs"):
        train_dpo(str(tmp_path / "out"), pairs(), tmp_path / packing, DPOSettings(packing=packing))
        load_model(str(tmp_path / packing))  # a pad id that it has no embedding for would stop it


def test_what_a_kill_left_is_tidied_up(tmp_path):
    s, rows = SFTSettings(epochs=1, batch_size=8), sft_rows(8)
    figures = train_sft(M0, rows, tmp_path / "out", s)
    (tmp_path / "out.training" / "checkpoint-1").mkdir(parents=True)  # killed before these were removed
    assert train_sft(M0, rows, tmp_path / "out", s) == figures
    assert not (tmp_path / "out.training").exists()
    with pytest.raises(InputError, match="a model is there already"):
        train_dpo(M0, pairs(), tmp_path / "out", DPOSettings())


MANY_ROWS = """
import json, random, re, sys, time
from pathlib import Path
from psr_nb.engine import load_tokenizer
from psr_nb.engines.transformers import load_model
from psr_nb.sft import SFTSettings, _sft_trainer, _trainer_class

def rows(n):
    words = [random.randrange(3, 75) for _ in range(10_000)]
    for i in range(n):
        start, cut = i % 9000, 50 + i % 50
        yield words[start : start + cut], words[start + cut : start + 200]

def peak():  # of this process alone, in bytes
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

model = sys.argv[1]
net, tokenizer, _ = load_model(model, "float32"), load_tokenizer(model), _trainer_class()
before, start = peak(), time.process_time()
_, figures = _sft_trainer(net, tokenizer, rows(100_000), Path(sys.argv[2]), SFTSettings(), 0)
print(json.dumps([figures["rows"], time.process_time() - start, before, peak()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_hundred_thousand_rows_need_little_memory(tmp_path):
    "Of 200 tokens: 15 s where nothing else runs, 600 MiB, of which most are the libraries."
    command = [sys.executable, "-c", MANY_ROWS, M0, tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows, seconds, before, after = json.loads(done.stdout.splitlines()[-1])
    assert rows == 100_000 and seconds < 30  # of the CPU, on whatever machine this is
    assert after - before < 100e6 and (torch.cuda.is_available() or after < 600 * 2**20)
