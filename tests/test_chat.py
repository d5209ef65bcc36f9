"""Chat templates: what is asked arrives, or the template is refused in one sentence."""

import hashlib
import time
from functools import cache

import pytest
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from psr_nb.engine import EngineSettings, fingerprint, load_tokenizer
from psr_nb.records import InputError
from psr_nb.texts.chat import Chat, after_thought, open_thought, prompt_ids, said_after, use_chat
from psr_nb.texts.tokens import encode, ids_after

KINDS = [
    "byte-level BPE, as Llama 3",
    "BPE with byte fallback, as Mistral",
    "BPE with byte fallback, as Llama 2",
]
ASKED = "Tom has 3 apples & buys 4 < 5 more.\n\nHow many?"
TURNS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
NO_SYSTEM = "{{ raise_exception('no system') if messages[0].role == 'system' }}"
WANTS_SYSTEM = "{{ raise_exception('system first') if messages[0].role != 'system' }}"


@pytest.fixture
def asked():
    "`asked(template, text, ...)` is the prompt that a model reads, and its ids."
    tok = tiny_tokenizer()

    def prompt(template, text=ASKED, **chat):
        tok.chat_template = template
        use_chat(tok, Chat(**chat))
        ids = prompt_ids(tok, text)
        return tok.decode(ids), ids

    yield prompt
    tok.chat_template = None
    use_chat(tok, Chat())


def test_ids_are_those_of_transformers(asked):
    "A template that is as it should be gives the ids that it always gave."
    for template in (
        TURNS + ANSWER,
        "{{ bos_token }}[INST] {{ messages[0]['content'] | trim }} [/INST]",
    ):
        said, ids = asked(template, ASKED + " \n")
        tok = tiny_tokenizer()
        turn = [{"role": "user", "content": ASKED + " \n"}]
        whole = tok.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert ids == encode(tok, whole) and ASKED in said


def test_named_templates(asked):
    said, _ = asked({"default": TURNS + ANSWER, "tool_use": "tools"})
    assert said == f"<s>user\n{ASKED}</s>\n<s>assistant\n"
    with pytest.raises(
        InputError, match="its chat templates are 'rag', 'tool_use'; name one of them 'default'"
    ):
        asked({"rag": TURNS, "tool_use": TURNS})
    tok = tiny_tokenizer()
    tok.chat_template = {"default": TURNS + ANSWER, "tool_use": "tools"}
    named = fingerprint("owner/name", tok)["template"]
    tok.chat_template = TURNS + ANSWER
    assert fingerprint("owner/name", tok)["template"] == named


def test_settings_that_change_prompts_are_another_model(asked):
    "An evaluation goes on with the prompts that it began with; one from before there were settings too."
    tok = tiny_tokenizer()
    tok.chat_template = TURNS
    before = hashlib.blake2b(TURNS.encode(), digest_size=6).hexdigest()
    use_chat(tok, EngineSettings().chat)
    assert fingerprint("owner/name", tok)["template"] == before
    for change in ({"system_prompt": "Be short."}, {"thinking": False}, {"template_date": "2026-01-31"}):
        use_chat(tok, EngineSettings(**change).chat)
        assert fingerprint("owner/name", tok)["template"] != before


def test_a_tokenizer_is_loaded_with_its_settings(tmp_path):
    "As every stage gets it."
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "chat_template.jinja").write_text(WANTS_SYSTEM + TURNS)
    tok = load_tokenizer(str(tmp_path), EngineSettings(system_prompt="Be short."))
    assert tok.decode(prompt_ids(tok, ASKED)).startswith("<s>system\nBe short.</s>")
    with pytest.raises(InputError, match="it needs a system turn; set engine.system_prompt"):
        prompt_ids(load_tokenizer(str(tmp_path)), ASKED)


def test_system_turns(asked):
    with pytest.raises(InputError, match="it needs a system turn; set engine.system_prompt"):
        asked(WANTS_SYSTEM + TURNS)
    said, _ = asked(WANTS_SYSTEM + TURNS + ANSWER, system_prompt="Be short.")
    assert said == f"<s>system\nBe short.</s>\n<s>user\n{ASKED}</s>\n<s>assistant\n"
    with pytest.raises(InputError, match="it takes no system turn; leave engine.system_prompt out"):
        asked(NO_SYSTEM + TURNS, system_prompt="Be short.")
    with pytest.raises(InputError, match="changes the system turn"):
        asked(TURNS.replace("in messages", "in messages if m.role == 'user'"), system_prompt="Be short.")
    with pytest.raises(InputError, match="no chat template with a system turn"):
        asked(None, system_prompt="Be short.")


DROPS = {
    "parts only": "{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}",
    "list only": "{% for p in messages[0].content if p.type == 'text' %}{{ p.text }}{% endfor %}",
    "another role": "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}",
    "nothing": "<s>user</s>",
    "upper case": TURNS.replace("m.content", "m.content|upper"),
    "escaped": TURNS.replace("m.content", "m.content|e"),
    "as JSON": TURNS.replace("m.content", "m.content|tojson"),
    "one line": TURNS.replace("m.content", "m.content.splitlines()|join(' ')"),
    "cut": TURNS.replace("m.content", "m.content[:40]"),
    "cut later": TURNS.replace("m.content", "m.content[:5000]"),
}


@pytest.mark.parametrize("how", DROPS)
def test_a_template_that_drops_or_changes_the_question(asked, how):
    with pytest.raises(InputError, match="it leaves out or changes what a user says"):
        asked(DROPS[how])


def test_a_template_that_drops_one_question(asked):
    template = TURNS.replace("m.content", "'' if 'stamps' in m.content else m.content")
    assert ASKED in asked(template)[0]
    with pytest.raises(InputError, match="leaves out or changes part of 'How many stamps"):
        asked(template, "How many stamps are there?")


def test_the_date_is_a_setting(asked):
    "Llama 3.2 asks what day it is, Llama 3.1 takes a day that it is told, or this one."
    today = "{{ strftime_now('%d %b %Y') }}"
    given = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    told = given + "{{ date_string }}"
    for template in (today, told):
        assert asked(template + TURNS)[0].startswith("26 Jul 2024")
        assert asked(template + TURNS, template_date="2026-01-31")[0].startswith("31 Jan 2026")
    with pytest.raises(
        InputError, match="template_date: expected a day such as 2024-07-26, not '31.1.'"
    ):
        EngineSettings(template_date="31.1.")


@pytest.mark.parametrize("draw", ["{{ ['a', 'b', 'c']|random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_at_random(asked, draw):
    with pytest.raises(InputError, match="it says something else each time"):
        asked(draw + TURNS)


OPENS = TURNS + "<s>assistant\n<think>\n"
QWEN3 = TURNS + "<s>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
DEEPSEEK = TURNS + "<s>assistant\n{{ '<think>' if thinking else '</think>' }}"


def test_thoughts(asked):
    closed = f"<s>user\n{ASKED}</s>\n<s>assistant\n<think>\n\n</think>\n\n"
    for template in (OPENS, OPENS.replace("think>", "seed:think>").replace("\n", "")):
        with pytest.raises(InputError, match="engine.thinking=False closes it"):
            asked(template)
    assert asked(OPENS, thinking=False)[0] == closed
    assert asked(OPENS, thinking=True)[0].endswith("<think>")
    assert asked(QWEN3)[0].endswith("assistant\n")
    assert asked(QWEN3, thinking=False)[0] == closed
    assert asked(DEEPSEEK, thinking=False)[0].endswith("</think>")
    assert asked(DEEPSEEK, thinking=True)[0].endswith("<think>")
    # a question or a system turn may speak of a thought
    assert "<think>?" in asked(TURNS + ANSWER, "What is <think>?", system_prompt="Use <think>.")[0]


@pytest.mark.parametrize(
    "end",
    [
        "<|start|>assistant",
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|channel>thought\n",
        "<longcat_think>\n",
        "<|inner_prefix|>",
        "<scratchpad>",
        "<analysis>\n",
        "<Think>\n",
    ],
)
def test_a_thought_or_header_that_nobody_has_listed(asked, end):
    with pytest.raises(InputError, match="its chat template ends within '.*engine.thinking=True"):
        asked(TURNS + end)
    assert asked(TURNS + end, thinking=True)[0].endswith(end.rstrip("\n")[-5:])
    for turn in (
        "<|assistant|>\n",
        "<|im_start|>assistant\n",
        "<start_of_turn>model\n",
        "[/INST]",
        "<AI>",
    ):
        assert asked(TURNS + turn)[1]


def test_what_follows_a_thought():
    assert open_thought("[THINK]so") == "[/THINK]"
    assert open_thought("<think>so</think><think>") == "</think>"
    assert after_thought("<think>so</think> 9") == " 9"
    assert after_thought("<think>so</think><think>9") == ""
    assert after_thought("no thought") == "no thought"


UNIGRAM = "Unigram with its special tokens among its pieces"


@cache
def made(kind: str) -> PreTrainedTokenizerFast:
    "A small tokenizer of a kind, or a Unigram of single characters."
    if kind != UNIGRAM:
        return tiny_tokenizer(kind)
    chars = ["▁", *map(chr, range(33, 127))]
    pieces = [("<unk>", 0.0), ("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(c, -2.0) for c in chars]
    inner = Tokenizer(models.Unigram(pieces, 0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def _words(tok, ids) -> str:
    return tok.decode([i for i in ids if i not in tok.all_special_ids]).strip()


@pytest.mark.parametrize("kind", [*KINDS, UNIGRAM])
@pytest.mark.parametrize("template", [None, TURNS + ANSWER, "{{ messages[0].content|trim }}\n</s>"])
def test_a_special_token_in_a_question_stays_text(kind, template):
    tok = made(kind)
    try:
        for question in ("What is </s>, <pad> or <s>?", "</s>Tom has 3.", "Tom has 3 </s>"):
            tok.chat_template = template
            ids = prompt_ids(tok, question)
            plain = prompt_ids(tok, "Tom has 3.")
            special = [i for i in ids if i in tok.all_special_ids]
            assert special == [i for i in plain if i in tok.all_special_ids]
            assert question.replace(" ", "") in _words(tok, ids).replace(" ", "")
    finally:
        tok.chat_template = None


@pytest.mark.parametrize("template", [None, TURNS + ANSWER])
def test_a_control_token_that_is_not_special_stays_text(template):
    "Qwen3 adds <think> and <tool_call> as ordinary tokens."
    inner = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tok.add_tokens(["<tool_call>", "<think>", "apples"])
    tok.chat_template = template
    control = tok.convert_tokens_to_ids(["<tool_call>", "<think>"])
    question = "what is <tool_call> or <think>?"
    for ids in (prompt_ids(tok, question), said_after(tok, "Step 1:", f" {question}")):
        assert not set(ids) & set(control) and question in tok.decode(ids)
    assert tok.convert_tokens_to_ids("apples") in prompt_ids(tok, "3 apples and <think>")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_in_pieces_are_the_ids_of_the_whole(kind):
    "A special token at a text's end changes the ids of nothing before it."
    tok = tiny_tokenizer(kind)
    for template in (None, "{{ messages[0].content }}", "[INST] {{ messages[0].content }} [/INST]"):
        tok.chat_template = template
        plain, special = prompt_ids(tok, "Tom has 3 apples"), prompt_ids(tok, "Tom has 3 apples</s>")
        same = [a for a, b in zip(plain, special, strict=False) if a == b]
        assert plain[: len(same)] == same and tok.decode(same).endswith("Tom has 3 apples")
    tok.chat_template = None


@pytest.mark.parametrize("kind", [*KINDS, UNIGRAM])
def test_a_special_token_in_what_is_taught_stays_text(kind):
    tok = made(kind)
    for text in (" Tom </s> has <pad> 3 </s>", " </s> has 3", " <s></s>", "</s>"):
        ids = said_after(tok, "Step 1:", text)
        assert not set(ids) & set(tok.all_special_ids)
        assert text.replace(" ", "") in _words(tok, ids).replace(" ", "")
    assert said_after(tok, "Step 1:", " Tom has 3") == ids_after(tok, "Step 1:", " Tom has 3")


def starting(form: str, special: list[str], **tokens) -> PreTrainedTokenizerFast:
    "The tokenizer like Llama 3's, with something else around every text."
    inner = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    inner.add_special_tokens(special)
    known = [(t, inner.token_to_id(t)) for t in special]
    inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **tokens)


@pytest.mark.parametrize(
    "form, special, tokens, begin",
    [
        ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"], {}, "[gMASK]<sop>"),
        ("</s> $A", ["</s>"], {}, "</s>"),
        ("</s> $A", ["</s>"], {"bos_token": "<s>"}, "</s>"),
        ("<s> $A </s>", ["<s>", "</s>"], {"bos_token": "<s>"}, "<s>"),
        ("$A </s>", ["</s>"], {"bos_token": "<s>"}, ""),
        ("$A", [], {"bos_token": "<s>"}, ""),
    ],
    ids=["GLM", "BioGPT", "another than its start token", "start and end", "end only", "nothing"],
)
def test_a_prompt_begins_as_the_tokenizers_texts_do(form, special, tokens, begin):
    tok = starting(form, special, **tokens)
    for text in (ASKED, "What is </s>?"):
        assert tok.decode(prompt_ids(tok, text)) == begin + text


BROKEN = {
    "TemplateSyntaxError": "{% for m in messages %}{{ m.content }}",
    "UndefinedError": "{{ messages[0].parts.text }}",
    "TypeError": "{{ messages[1:] + 3 }}",
    "SecurityError": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TURNS,
    "SecurityError: ": "{{ messages.append({'role': 'user', 'content': 'Hi'}) }}" + TURNS,
    "OverflowError": "{% for i in range(10000000) %}{% endfor %}" + TURNS,
    "more than a GiB": "{{ 'x' * 10**10 }}" + TURNS,
    "RecursionError": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + TURNS,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_or_hostile_template_is_refused(asked, fault):
    with pytest.raises(InputError, match=f"its chat template can't be used \\(.*{fault}") as refused:
        asked(BROKEN[fault])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LONG = "{% set text = messages[0].content %}" + "".join(f"{{% for {c} in text %}}" for c in "abc")


@pytest.mark.parametrize("template", [LOOP, "{{ 10 ** (10 ** 9) }}", LONG + "{% endfor %}" * 3])
def test_a_template_that_does_not_end(asked, template, monkeypatch):
    monkeypatch.setattr("psr_nb.texts.chat._SECONDS", 2)
    start = time.time()
    with pytest.raises(InputError, match="it did not end within 2 s"):
        asked(template + TURNS)
    assert time.time() - start < 8
