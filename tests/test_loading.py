"""What is loaded is what was saved: each kind of damage is refused in one sentence that names the file.

A model that transformers decodes otherwise than it reads is decoded in a slower way, or refused."""

import copy
import json
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model, tiny_tokenizer

from psr_nb.engine import EngineSettings, generate, load_tokenizer
from psr_nb.engines import load
from psr_nb.engines.batch import Stops, Way, read
from psr_nb.engines.choose import _parameters, open_engine, trust_settings
from psr_nb.engines.load import Trust, length_border, load_model, trusted
from psr_nb.engines.transformers import TransformersEngine
from psr_nb.files import packaged
from psr_nb.records import InputError, Request, Sampling
from psr_nb.texts.tokens import encode

DEMO = Path(packaged("models/demo-m1"))
WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    "A copy of a sound model."
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


@pytest.fixture(autouse=True)
def nothing_trusted():
    trusted(Trust())
    yield
    trusted(Trust())


def refused(folder: Path, run=load_model) -> str:
    "The sentence with which a folder is refused, in less than ten seconds."
    start = time.monotonic()
    with pytest.raises(InputError) as said:
        run(str(folder))
    assert time.monotonic() - start < 10
    assert "\n" not in str(said.value) and str(folder) in str(said.value)
    return str(said.value)


def weights(folder: Path, **changed):
    "Write a folder's weights anew with some put in, and those that are None left out."
    kept = load_file(folder / WEIGHTS) | changed
    save_file({k: v for k, v in kept.items() if v is not None}, folder / WEIGHTS, {"format": "pt"})


def config(folder: Path, **changed):
    "Change a folder's config.json."
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


# Files.

whole = (DEMO / WEIGHTS).read_bytes()
BYTES = {
    "pointer": (WEIGHTS, POINTER, "git-LFS"),
    "cut": (WEIGHTS, whole[:-1000], "cut or damaged"),
    "cut in the table": (WEIGHTS, whole[:500], "cut or damaged"),
    "empty": (WEIGHTS, b"", "empty"),
    "longer than promised": (WEIGHTS, whole + b"0" * 8, "cut or damaged"),
    "table of noise": (WEIGHTS, whole[:8] + b"\xff" * 200 + whole[208:], "copy it again"),
    "torn config": ("config.json", b'{"model_type": "llama", "hid', "config.json"),
    "config of a list": ("config.json", b"[]", "config.json"),
    "config too deep": ("config.json", b"[" * 100_000, "config.json"),
    "pointer for a tokenizer": ("tokenizer.json", POINTER, "tokenizer.json"),
    "torn generation settings": ("generation_config.json", b"{", "generation_config"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_damaged_file_is_named(folder, kind):
    name, content, said = BYTES[kind]
    (folder / name).write_bytes(content)
    sentence = refused(folder)
    assert said in sentence
    assert str(folder / name) in sentence


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_pipe_keeps_nobody_waiting(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "regular file" in refused(folder)
    if name != WEIGHTS:
        assert "regular file" in refused(folder, load_tokenizer)


def test_no_weights_and_foreign_weights(folder):
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    assert "no weights" in refused(folder) and "model.fp16.safetensors" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


def test_a_missing_shard_is_named(folder):
    index = {"metadata": {}, "weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index" in refused(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", f"{WEIGHTS}.index.json"])
@pytest.mark.parametrize("target", ["../blobs/4f2a", None], ids=["gone", "itself"])
def test_a_link_that_leads_nowhere_is_named(folder, name, target):
    "As in the hub's cache when its files were cleared away."
    if name.endswith("index.json"):
        (folder / WEIGHTS).unlink()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target or name)
    for run in (load_model, TransformersEngine):
        said = refused(folder, run)
        assert said.startswith(str(folder / name)), said
        assert any(why in said for why in ("No such file", "no such file", "a link to", "levels of")), (
            said
        )


def test_a_shard_that_is_a_link_to_nowhere_is_named(folder):
    (folder / "part.safetensors").symlink_to("../blobs/4f2a")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert f"{folder / 'part.safetensors'}: a link to ../blobs/4f2a, which is not there" in refused(
        folder
    )
    (folder / f"{WEIGHTS}.index.json").unlink()
    assert "no weights" in refused(folder)


def test_pickled_weights_only_where_they_are_trusted(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert "its weights are pickled (pytorch_model.bin)" in refused(folder)
    trust_settings(EngineSettings(pickled=True))
    same = load_model(str(folder)).state_dict()
    assert all(torch.equal(same[k], v) for k, v in load_model(str(DEMO)).state_dict().items())


# Weights.


def test_missing_and_superfluous_weights_are_refused_unless_named(folder):
    weights(folder, **{NORM: None})
    assert f"missing, which would be random (1): {NORM}" in refused(folder) and WEIGHTS in refused(
        folder
    )
    trust_settings(EngineSettings(other_weights="v_head.* model.norm.*"))
    load_model(str(folder))
    weights(folder, **{"v_head.weight": torch.ones(2)})
    load_model(str(folder))
    trust_settings(EngineSettings())
    weights(folder, **{NORM: torch.ones(64)})
    assert "no place in LlamaForCausalLM (1): v_head.weight" in refused(folder)


def test_harmless_leftovers_are_taken(folder):
    "Buffers of old versions that are computed anew, and tied weights that are stored once."
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    weights(folder, **old)
    tied = load_model(str(folder))
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


MATRICES = ("embed_tokens.weight", "q_proj.weight", "gate_proj.weight", "down_proj.weight")


@pytest.mark.parametrize("number", [0.0, -0.5])
@pytest.mark.parametrize("name", [NORM, "model.layers.1.input_layernorm.weight", *MATRICES])
def test_weights_of_one_number_are_refused_unless_named(folder, name, number):
    "A norm's may all be one number, but not 0: then nothing comes through."
    kept = load_file(folder / WEIGHTS)
    name = next(key for key in kept if key.endswith(name))
    weights(folder, **{name: torch.full_like(kept[name], number)})
    if number and "norm" in name:
        load_model(str(folder))
        return
    said = refused(folder)
    assert f"nothing but one number ({2 if 'embed' in name else 1}): " in said and name in said
    trust_settings(EngineSettings(other_weights=f"{name} lm_head.weight"))
    load_model(str(folder))


def test_a_file_of_zeros_is_refused(folder):
    weights(folder, **{k: torch.zeros_like(w) for k, w in load_file(folder / WEIGHTS).items()})
    assert "weights of LlamaForCausalLM hold nothing but one number" in refused(folder)


def test_zeros_that_are_meant_are_taken(folder):
    "Gemma stores how far a norm's weights are from 1; a router of zeros sends to all alike."
    made = tiny_model(tiny_config("gemma2"))
    assert not made.model.norm.weight.any()
    load._check_alive("it", made, Trust())
    made.model.norm.weight.data.fill_(-1)
    with pytest.raises(InputError, match=r"it: weights of Gemma2ForCausalLM .*model.norm.weight \(-1\)"):
        load._check_alive("it", made, Trust())
    experts = tiny_model(tiny_config("mixtral"))
    experts.model.layers[0].mlp.gate.weight.data.zero_()
    load._check_alive("it", experts, Trust())
    experts.model.layers[0].mlp.experts.down_proj.data.zero_()
    with pytest.raises(InputError, match="model.layers.0.mlp.experts.down_proj"):
        load._check_alive("it", experts, Trust())


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["equal tokens", "equal texts"])
def test_a_model_that_says_the_same_of_every_text_is_refused(shift):
    "However it came to that."
    model = tiny_model(tiny_config("gptj"))
    model.transformer.ln_f.weight.data.zero_()
    model.lm_head.bias.data = shift * torch.arange(480.0)
    with pytest.raises(
        InputError, match="GPTJForCausalLM: what it says of a text is the same for every"
    ):
        TransformersEngine(model, tiny_tokenizer())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, wrong):
    spoilt = load_file(folder / WEIGHTS)[NORM].clone()
    spoilt[3] = wrong
    weights(folder, **{NORM: spoilt})
    assert f"1 of the 64 numbers in {NORM}" in refused(folder)


def test_wrong_shapes_are_refused(folder):
    weights(folder, **{NORM: torch.ones(63)})
    assert f"{NORM} is 63" in refused(folder)


@pytest.mark.parametrize(
    "changed, said",
    [
        (dict(num_hidden_layers=10**6), "num_hidden_layers"),
        (dict(vocab_size=10**12), "vocab_size"),
        (dict(intermediate_size=10**9), "intermediate_size"),
        (dict(hidden_size="wide"), "not a causal language model"),
        (dict(model_type="no-such-type"), "no-such-type"),
        (dict(model_type="t5"), "not a causal language model"),
        (dict(num_hidden_layers=9), "missing"),
        (
            dict(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            "bitsandbytes",
        ),
        (dict(quantization_config={"quant_method": "awq", "bits": 4}), "package"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, changed, said):
    config(folder, **changed)
    assert said in refused(folder)


def test_what_it_says_can_overflow(folder):
    "Numbers all of them, and a model that answers with NaN."
    weights(folder, **{NORM: torch.full((64,), 3e38)})
    load_model(str(folder))
    with pytest.raises(InputError, match="LlamaForCausalLM: what it says of a text is NaN or infinite"):
        TransformersEngine(str(folder))


def test_an_adapter_beside_weights_is_refused(folder):
    "Transformers would add it to them, a second time where they are merged."
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "it has an adapter of PEFT" in refused(folder)
    assert "it has an adapter of PEFT" in refused(folder, load_tokenizer)


UNSCALED = {
    torch.int8: "whole numbers",
    torch.int16: "whole numbers",
    torch.float8_e4m3fn: "numbers of type F8_E4M3",
    torch.float8_e5m2: "numbers of type F8_E5M2",
}


@pytest.mark.parametrize("dtype", UNSCALED)
def test_numbers_without_scales_are_refused(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    packed = load_file(folder / WEIGHTS)[name].mul(99).to(dtype)
    weights(folder, **{name: packed})
    held = f"{name} holds {UNSCALED[dtype]}"
    assert f"{held}, and config.json names no quantization_config" in refused(folder)
    config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    assert held not in refused(folder)


@pytest.mark.parametrize("ends", ["2", [[2]], [2, "3"], True])
def test_ends_that_are_no_ids_are_refused(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    said = refused(folder, TransformersEngine)
    assert said.startswith(
        f"{folder / 'generation_config.json'}: eos_token_id is {ends!r}, which has to be"
    )


# Tokenizers.


@pytest.mark.parametrize("longest", ["x", [5]])
def test_a_longest_text_that_is_no_number_is_refused(folder, longest):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": longest}))
    said = refused(folder, load_tokenizer)
    assert said.startswith(f"{file}: its model_max_length is {longest!r}, not a number of tokens")


def test_damaged_tokenizers_are_refused(folder):
    kept = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(kept[:900])
    assert str(folder / "tokenizer.json") in refused(folder, load_tokenizer)
    (folder / "tokenizer.json").unlink()
    refused(folder, load_tokenizer)
    (folder / "tokenizer.json").write_bytes(kept)
    (folder / "tokenizer_config.json").write_text("{")
    assert str(folder / "tokenizer_config.json") in refused(folder, load_tokenizer)


def test_decoding_is_exact(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"clean_up_tokenization_spaces": True}))
    tokenizer = load_tokenizer(str(folder))
    text = "Tom has 14 apples . Tom buys 2 ."
    assert tokenizer.decode(encode(tokenizer, text)) == text


# Code.

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path(__file__).with_name("ran").touch()
class OurConfig(LlamaConfig):
    model_type = "ours-of-test-loading"
class OurLM(LlamaForCausalLM):
    config_class = OurConfig
"""


@pytest.fixture
def coded(folder) -> Path:
    "A model whose architecture is in its own folder."
    (folder / "ours.py").write_text(CODE)
    auto_map = {"AutoConfig": "ours.OurConfig", "AutoModelForCausalLM": "ours.OurLM"}
    config(folder, auto_map=auto_map, model_type="ours-of-test-loading")
    return folder


def test_code_of_a_model_is_not_run_and_nobody_is_asked(coded, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    load_tokenizer(str(coded))  # for which no code is needed
    for run in (load_model, lambda p: open_engine(p, EngineSettings(kind="transformers"))):
        assert f"engine.remote_code: {load.code_version(coded)}" in refused(coded, run)
    trust_settings(EngineSettings(remote_code="0" * 40))
    assert "has version" in refused(coded)
    assert not list(coded.glob("ran"))


def test_code_is_run_in_the_version_that_is_named(coded, tmp_path):
    trust_settings(EngineSettings(remote_code=load.code_version(coded)))
    model = load_model(str(coded))
    assert type(model).__name__ == "OurLM"
    model.save_pretrained(tmp_path / "trained")
    load_tokenizer(str(coded)).save_pretrained(tmp_path / "trained")
    assert type(load_model(str(tmp_path / "trained"))).__name__ == "OurLM"
    (tmp_path / "trained" / "ours.py").write_text(CODE + "# changed")
    assert "has version" in refused(tmp_path / "trained")


# The hub.


def test_a_hub_model_without_a_network_is_refused_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    load._reach.cache_clear()
    refused("owner/no-such-model")
    refused("owner/no-such-model", load_tokenizer)
    refused("/no/such/folder")


# Ways of decoding.


@torch.inference_mode()
def alone(model, ids: list[int]) -> torch.Tensor:
    "The logits (vocabulary,) after a text by itself."
    row = torch.tensor([ids])
    return read(model, row, attention_mask=torch.ones_like(row))[0, -1]


def right(model, tokenizer, **more) -> TransformersEngine:
    "The engine of a model, after its greedy tokens were held against plain forward passes."
    engine = TransformersEngine(model, tokenizer, max_batch_tokens=300, **more)
    engine.eos = []
    rng = random.Random(0)
    asked = [
        Request([rng.randrange(3, 400) for _ in range(rng.randrange(1, 40))], Sampling(2, max_tokens=n))
        for n in (3, 20, 7, 12, 1, 30, 9)
    ]
    for r, (c, same) in zip(asked, generate(engine, asked), strict=True):
        assert c.ids == same.ids and len(c.ids) == r.sampling.max_tokens
        for k, drawn in enumerate(c.ids):
            logits = alone(model, r.prompt_ids + c.ids[:k])
            assert logits.max() - logits[drawn] < 1e-3 * logits.std()
    return engine


WAYS = {
    "mamba": Way(joins=False),
    "falcon_mamba": Way(joins=False),
    "mamba2": Way(joins=False),
    "bart": Way(padded=False),
    "opt": Way(joins=False),
    "roberta": Way(cache=False, padded=False),
    "rwkv": Way(cache=False, padded=False),
    "xlstm": Way(cache=False, padded=False),
    "mixtral": Way(joins=False),
}


@pytest.mark.parametrize("kind", WAYS)
def test_every_architecture_is_decoded_as_it_reads(kind):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = right(tiny_model(tiny_config(kind)), tiny_tokenizer())
    assert engine.way == WAYS[kind]
    slower = [w for w in said if "slower way" in str(w.message)]
    assert len(slower) == (0 if engine.way == Way(joins=False) else 1)
    assert all(type(engine.model).__name__ in str(w.message) for w in slower)


class Forgetful(transformers.LlamaForCausalLM):
    "An architecture of which nobody has thought: what was read before is lost."

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **more):
        return super().forward(input_ids, use_cache=False)


def test_an_unknown_architecture_that_forgets_is_found_out():
    model = tiny_model(tiny_config("llama"))
    model.__class__ = Forgetful
    with pytest.warns(UserWarning, match="Forgetful is decoded in a slower way"):
        assert not right(model, tiny_tokenizer()).way.cache


def test_what_is_no_causal_model_is_refused_by_name():
    with pytest.raises(InputError, match="BertLMHeadModel: not a causal language model"):
        TransformersEngine(tiny_model(tiny_config("bert", is_decoder=False)), tiny_tokenizer())


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_router_that_reports_does_no_harm(kind):
    engine = right(tiny_model(tiny_config(kind, output_router_logits=True)), tiny_tokenizer())
    assert engine.way == Way(joins=False)


# Lengths at which positions change.


def longrope(border: int = 20):
    rope = dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0] * 4, factor=20.0
    )
    given = dict(max_position_embeddings=400, original_max_position_embeddings=border)
    return tiny_config("phi3", rope_parameters=rope, **given)


@pytest.mark.parametrize("refill", [False, True])
def test_texts_on_two_sides_of_a_border_do_not_change_each_other(refill):
    assert length_border(longrope()) == 20
    engine = right(tiny_model(longrope()), tiny_tokenizer(), refill=refill)
    assert engine.border == 20 and not engine.over


def test_border_of_dynamic_scaling_is_where_the_context_ends():
    rope = dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)
    made = tiny_config("llama", rope_parameters=rope, max_position_embeddings=80)
    assert length_border(made) == 80
    engine = right(tiny_model(made), tiny_tokenizer())
    with pytest.raises(InputError, match="leaves no room"):
        engine.submit("x", Request([5] * 80))


# Ids and stop texts.


def test_ids_that_the_tokenizer_does_not_have(monkeypatch):
    "A model's vocabulary is often larger than its tokenizer's."
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer)
    last = model.config.vocab_size - 1
    assert len(tokenizer) <= last
    monkeypatch.setattr("psr_nb.engines.batch.draw", lambda logits, *_: logits.argmax(-1) * 0 + last)
    [[c]] = generate(engine, [Request([5, 6], Sampling(max_tokens=4, stop=("\n", "：")))])
    assert c.ids == [last] * 4 and c.text == "" and c.finish_reason == "length"


@pytest.mark.parametrize("pad, eos", [("<pad>", None), (None, None), (None, "</s>")])
def test_padding_and_ends_that_are_not_there(pad, eos):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token, tokenizer.eos_token = pad, eos
    if pad:
        tokenizer.add_special_tokens({"pad_token": "<padding>"})
        tokenizer.add_tokens([f"<more{i}>" for i in range(600)])
        tokenizer.pad_token = "<more599>"
        assert tokenizer.pad_token_id > 512
    model = tiny_model(tiny_config("llama"))
    model.generation_config.eos_token_id = None
    engine = right(model, tokenizer)
    assert engine.way == Way(joins=False) and 0 <= engine.pad < model.config.vocab_size
    with pytest.raises(InputError, match="eos_token"):
        tokenizer.eos_token = None
        load.end_id(tokenizer, 512)


def test_an_empty_stop_text_is_refused():
    engine = TransformersEngine(str(DEMO))
    with pytest.raises(InputError, match="a stop text is empty"):
        engine.submit("x", Request([5], Sampling(stop=("\n", ""))))


STOPPED = [
    ("步骤2：", "步骤一 做完。\n步骤2：接着"),
    ("。", "🛩🛩 so 3 ✅。然后"),
    ("\n", "🛩🛩✅\nnext"),
    ("\n步骤", "é🛩\n步骤3"),
    ("[[A]]", "所以 [[A]] 好"),
]


@pytest.mark.parametrize("kind", ["byte-level BPE, as Llama 3", "BPE with byte fallback, as Mistral"])
@pytest.mark.parametrize("stop, text", STOPPED)
def test_a_stop_text_of_several_tokens_is_seen(kind, stop, text):
    tokenizer = tiny_tokenizer(kind)
    stops, ids = Stops(tokenizer), encode(tokenizer, text)
    hits = [k for k in range(1, len(ids) + 1) if stops.hit((stop,), ids[:k])]
    wanted = next(k for k in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:k]))
    assert hits and hits[0] == wanted


# Speed.


def test_rows_join_many_at_a_time():
    "Passes of the model for 160 requests of different lengths, 16 at a time."
    model, calls = tiny_model(tiny_config("llama")), []
    engine = TransformersEngine(model, tiny_tokenizer(), max_batch_tokens=16 * 50, refill=True)
    engine.eos = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    rng = random.Random(0)
    asked = [Request([5] * 20, Sampling(max_tokens=rng.randrange(2, 30))) for _ in range(160)]
    joined = [c.ids for [c] in generate(engine, asked)]
    passes = len(calls)
    hook.remove()
    plain = TransformersEngine(model, tiny_tokenizer(), refill=False)
    plain.eos = []
    assert joined == [c.ids for [c] in generate(plain, asked)]
    assert passes < 230, passes


def test_parameters_are_counted_in_any_type(folder):
    count = sum(p.numel() for p in load_model(str(folder)).parameters())
    for dtype in (torch.float32, torch.bfloat16):
        load_model(str(folder)).to(dtype).save_pretrained(folder)
        assert _parameters(str(folder)) == count
