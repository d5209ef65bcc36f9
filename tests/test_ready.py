"""What can be known before a model is loaded is refused before it, in one sentence that says what to do."""

import importlib.metadata
import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save_tiny, tiny_config, tiny_model, tiny_tokenizer

from psr_nb.domains.maths import MATH
from psr_nb.engine import EngineSettings
from psr_nb.engines.ready import Wanted, check_questions, check_ready
from psr_nb.records import InputError

HERE = EngineSettings("transformers")
STEPS = {"search.max_step_tokens": 64, "judge.max_tokens": 128}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(
        tmp_path_factory.mktemp("saved") / "model", tiny_model(tiny_config("llama")), tiny_tokenizer()
    )


@pytest.fixture
def model(saved, tmp_path, monkeypatch):
    "A model folder to spoil. Whoever loads its weights has failed."

    def loaded(*args, **kw):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def vllm(monkeypatch):
    "A machine with two GPUs on which vLLM is installed."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def refusal(model, s=HERE, **wanted) -> str:
    "What is said of a model that can't do what is wanted."
    wanted = {"domain": MATH, "lengths": STEPS} | wanted
    with pytest.raises(InputError) as refused:
        check_ready(str(model), s, Wanted(**wanted))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def change(file, **values):
    "Change some values of a JSON file."
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_model_that_is_ready(model):
    found = check_ready(str(model), HERE, Wanted(MATH, STEPS, model.parent / "run", models=3))
    assert found["engine"] == "transformers" and found["context"] == 512
    assert found["disk"] == 3 * 4 * tiny_model(tiny_config("llama")).num_parameters()
    assert not (model.parent / "run").exists()


def test_an_engine_that_is_not_installed(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(model, EngineSettings("vllm")).startswith(
        "engine.kind: vllm is not installed; pip install"
    )


def test_a_gpu_that_is_not_there(model, vllm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refusal(model, EngineSettings("vllm"))
    assert said.startswith("engine.kind: the installed vLLM needs a GPU, and there is none; install")


def test_gpus_that_share_a_model(model, vllm):
    assert (
        check_ready(str(model), EngineSettings("vllm", tensor_parallel=2), Wanted(MATH, STEPS))["engine"]
        == "vllm"
    )
    said = "engine.tensor_parallel: 3 GPUs can't share the model's 4 heads; 1, 2, 4 can"
    assert refusal(model, EngineSettings("vllm", tensor_parallel=3)) == said
    said = "engine.tensor_parallel: 4 GPUs are asked for, and this machine has 2"
    assert refusal(model, EngineSettings("vllm", tensor_parallel=4)) == said


def test_a_type_that_is_none():
    with pytest.raises(InputError, match="dtype: 'fp16' is not known; did you mean 'float16'?"):
        EngineSettings("transformers", dtype="fp16")


def test_a_template_that_drops_the_question(model):
    tok = tiny_tokenizer()
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content.text }}{% endfor %}")
    assert "its chat template can't be used (ValueError: it leaves out" in refusal(model)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}<think>")
    assert "engine.thinking=False closes it at once" in refusal(model)
    assert check_ready(str(model), EngineSettings("transformers", thinking=False), Wanted(MATH, STEPS))
    assert tok.chat_template is None


def test_a_tokenizer_that_cannot_write_a_step(model):
    tiny_tokenizer("Unigram without newlines, as T5").save_pretrained(model)
    assert "its tokenizer can't be used for math" in refusal(model)


def test_an_end_that_the_model_has_no_room_for(model):
    "Training would teach it."
    change(model / "config.json", vocab_size=2)
    assert check_ready(str(model), HERE, Wanted(MATH, STEPS))
    assert "its eos_token has id 2, outside the model's vocabulary of 2" in refusal(model, models=1)


def test_steps_as_long_as_the_context(model):
    said = refusal(model, lengths={"search.max_step_tokens": 512})
    assert said.startswith(
        "search.max_step_tokens: 512 tokens leave no room for a prompt in the model's context of 512"
    )


def test_the_context_that_vllm_is_given(model, vllm):
    s = EngineSettings("vllm", max_length=100)
    assert "judge.max_tokens: 128 tokens leave no room" in refusal(model, s)


def test_a_disk_that_is_full(model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert check_ready(str(model), HERE, Wanted(MATH, STEPS))["disk"] == 0
    said = refusal(model, models=3, folder=model.parent / "run" / "deep")
    assert "there is no room for 3 models" in said and said.endswith("make room, or take another disk")


def test_weights_that_are_cut_or_pickled(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "cut or damaged" in refusal(model)
    file.rename(model / "pytorch_model.bin")
    assert "its weights are pickled" in refusal(model)


def test_questions_longer_than_the_context():
    tok = tiny_tokenizer()
    with pytest.warns(UserWarning, match="1 of 2 questions fill the model's context of 400 tokens"):
        assert check_questions(tok, MATH, ["What is 2 + 3?", "What is 2 + 3? " * 99], 400) == 1
    assert check_questions(tok, MATH, [], 400) == 0
    with pytest.raises(InputError, match="none of the 1 questions fits: the shortest prompt has"):
        check_questions(tok, MATH, ["What is 2 + 3?"], 40)
