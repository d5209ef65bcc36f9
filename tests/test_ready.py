"""What can be known before a model is loaded is refused before it, in one sentence that says what to do."""

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import re
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import TOKENIZERS, save_tiny, solutions, tiny_config, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import PreTrainedTokenizerFast, ViTConfig

from psr_nb.domains.maths import MATH
from psr_nb.engine import EngineSettings
from psr_nb.engines.ready import Wanted, check_limit, check_questions, check_ready
from psr_nb.files import append_jsonl, packaged, read_jsonl, write_jsonl
from psr_nb.folder import open_run, plan
from psr_nb.prompts import check_tokenizer, label_ids
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError
from psr_nb.run import _check_limits, run
from psr_nb.texts.chat import prompt_ids

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
    tok = copy.deepcopy(tiny_tokenizer())
    size = tiny_config("llama").vocab_size
    tok.add_tokens([f"<more{i}>" for i in range(size)])
    tok.eos_token = f"<more{size - 1}>"
    tok.save_pretrained(model)
    assert check_ready(str(model), HERE, Wanted(MATH, STEPS))
    said = f"its eos_token has id {tok.eos_token_id}, outside the model's vocabulary of {size}"
    assert said in refusal(model, models=1)


def test_a_tokenizer_of_another_model(model):
    change(model / "config.json", vocab_size=50)
    assert "the tokenizer isn't this model's, a prompt has id" in refusal(model)


def test_a_model_of_images(model):
    ViTConfig(hidden_size=32, num_attention_heads=4).save_pretrained(model)
    said = f"{model}: not a language model, its config.json has no vocab_size"
    assert refusal(model) == said


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
    with pytest.warns(UserWarning, match="1 of 2 questions leave no room for a step of 1 in the"):
        assert check_questions(tok, MATH, ["What is 2 + 3?", "What is 2 + 3? " * 99], 400) == 1
    assert check_questions(tok, MATH, [], 400) == 0
    with pytest.raises(InputError, match="none of the 1 questions fits: the shortest prompt has"):
        check_questions(tok, MATH, ["What is 2 + 3?"], 40)


def without_fallback() -> PreTrainedTokenizerFast:
    "A BPE that knows the signs of some solutions and writes others as unknown."
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"])
    made.train_from_iterator(solutions(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


PLAIN = replace(MATH, ask="{}\n\n".format)
KNOWN = "Tom has 13 apples and buys 12 more. How many apples does Tom have now?"


def test_questions_that_lose_characters_are_told_of():
    tok = without_fallback()
    check_tokenizer(tok, PLAIN)
    odd = "What is 3 * 4 - √9 / 2?"
    with pytest.warns(
        UserWarning, match="1 of 2 questions lose characters in its tokenizer, the first "
    ):
        assert check_questions(tok, PLAIN, [KNOWN, odd], 4096) == 0
    with pytest.raises(
        InputError, match=rf"1 of 1 questions lose .*{re.escape(odd)}.* without '\*'; take"
    ):
        check_questions(tok, PLAIN, [odd], 4096)
    with pytest.raises(InputError, match="2 of 2 questions lose .*; take another model"):
        check_questions(tok, MATH, [KNOWN, KNOWN], 4096)


@pytest.mark.parametrize("kind", list(TOKENIZERS)[:4])
def test_questions_that_come_back_are_not_told_of(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            check_questions(tiny_tokenizer(kind), MATH, [KNOWN, " 3² = √9? </s>\n", "a , b"], 4096) == 0
        )


def test_a_question_needs_room_for_a_whole_step():
    "The search begins only there."
    tok = tiny_tokenizer()
    prompt = len(prompt_ids(tok, MATH.ask("What is 2 + 3?"))) + len(label_ids(tok, MATH, 1))
    assert check_questions(tok, MATH, ["What is 2 + 3?"], prompt + 20, step=20) == 0
    with pytest.raises(InputError, match="take another model or shorter steps"):
        check_questions(tok, MATH, ["What is 2 + 3?"], prompt + 20, step=21)


@pytest.fixture
def recipe(tmp_path):
    "A small recipe, and its test set to spoil."
    problems = [
        {
            "id": f"p{i}",
            "question": f"Tom has {i} apples. Tom buys 700 more. How many apples now?",
            "answer": str(i + 700),
        }
        for i in range(3)
    ]
    write_jsonl(tmp_path / "test.jsonl", problems)
    return load_recipe("fast", **{"data.test": str(tmp_path / "test.jsonl")})


def test_an_answer_that_cannot_be_graded_ends_a_run_before_it_begins(recipe, tmp_path):
    assert len(plan(recipe)["test"]) == 3
    bad = [{"id": f"b{i}", "question": f"What is {i} + 800?", "answer": "\\frac{1}{2"} for i in range(2)]
    append_jsonl(recipe.data.test, bad)
    with pytest.raises(
        InputError, match="test.jsonl: b0: the gold answer is torn.*, and 1 more can't be"
    ):
        run(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_limit_is_met_by_the_first_text_that_fits():
    lengths = iter([9, 7, 8])
    check_limit("dpo.max_length", 7, lengths, "texts")
    assert list(lengths) == [8]
    with pytest.raises(InputError, match="all 3 texts are longer than 6 tokens, the shortest has 7"):
        check_limit("dpo.max_length", 6, iter([9, 7, 8]), "texts")


def test_a_limit_of_training_that_nothing_meets(tmp_path):
    "Ten tokens are too few for any row or pair. With as many as the shortest one has, there is something."
    begun = open_run(tmp_path / "run", load_recipe("fast"))

    def limited(name, tokens):
        _check_limits(replace(begun, recipe=load_recipe("fast", **{name: tokens})))

    for name, what in (("sft.max_length", "320 rows"), ("dpo.max_length", "24 questions")):
        with pytest.raises(InputError, match=f"^{name}: all {what}.* longer than 10 tokens") as refused:
            limited(name, 10)
        shortest = int(re.search(r"shortest has (\d+)", str(refused.value))[1])
        limited(name, shortest)
        with pytest.raises(InputError, match=name):
            limited(name, shortest - 1)


def test_only_what_is_still_to_be_trained_is_held_to_a_limit(tmp_path):
    "M1 may be there, and a judge's prompt may be shorter than the question's."
    begun = open_run(tmp_path / "run", load_recipe("fast"))
    judged = {"dpo.max_length": 10, "pairs.judgements": "consistent"}
    judged |= {
        "judge.votes": 4,
        "judge.temperature": 0.7,
        "judge.orders": "both",
        "judge.policy": "round robin",
    }
    begun.folder("judge", 1).mkdir()
    (begun.folder("judge", 1) / "model").symlink_to(packaged("models/demo-m1"))
    for changes in ({"sft.max_length": 10}, judged):
        _check_limits(replace(begun, recipe=load_recipe("fast", **changes)))


class Trained(Exception):
    "The first training would begin."


@pytest.mark.parametrize(
    "short, said", [(1, "1 of 2 questions leave no room"), (0, "none of the 1 questions fits")]
)
def test_questions_without_room_are_told_of_before_a_run_trains(
    recipe, tmp_path, monkeypatch, short, said
):
    def child(*_):
        raise Trained

    monkeypatch.setattr("psr_nb.run._Work.child", child)
    rows = [
        {"id": "long", "question": "Tom has 2 apples. " * 500, "answer": "702"},
        *read_jsonl(recipe.data.test)[:short],
    ]
    write_jsonl(recipe.data.test, rows)
    if short:
        with pytest.warns(UserWarning, match=said), pytest.raises(Trained):
            run(recipe, tmp_path / "run", quiet=True)
    else:
        with pytest.raises(InputError, match=said):
            run(recipe, tmp_path / "run", quiet=True)


def test_a_limit_that_nothing_meets_is_told_of_before_a_run_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("psr_nb.run._Work.child", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match="dpo.max_length: all 24 questions"):
        run(load_recipe("fast", **{"dpo.max_length": 10}), tmp_path / "run", quiet=True)


LOST = r"of 14 rows lose characters .*, the first is .*, which comes back without '√'"


@pytest.mark.parametrize(
    "odd, ending",
    [(1, pytest.warns(UserWarning, match=LOST)), (9, pytest.raises(InputError, match=LOST))],
)
def test_rows_for_m1_that_lose_characters_are_told_of_before_a_run_trains(
    recipe, tmp_path, monkeypatch, odd, ending
):
    def child(*_):
        raise Trained

    monkeypatch.setattr("psr_nb.run._Work.child", child)
    rows = list(read_jsonl(packaged("demo/ift.jsonl")))[:10]
    for row in rows[:odd]:
        row["steps"][0] += " √"
    write_jsonl(tmp_path / "ift.jsonl", rows)
    small = replace(recipe.data, ift=str(tmp_path / "ift.jsonl"), ift_limit=None, eft_limit=4)
    with ending, contextlib.suppress(Trained):
        run(replace(recipe, data=small), tmp_path / "run", quiet=True)
