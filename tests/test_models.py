"""Which models work: the table in the documentation says what comes out now, for every architecture that
transformers has and for six kinds of tokenizers. See model_matrix.py for what is tried."""

import model_matrix as matrix
import pytest
import tiny_models as tiny

from psr_nb.engine import load_tokenizer
from psr_nb.engines.transformers import TransformersEngine
from psr_nb.judge import JudgeSettings, JudgeSetup, judge_with, run_with
from psr_nb.prompts import Domain, label
from psr_nb.records import EFTRow, IFTRow, InputError, Problem
from psr_nb.search import SearchSettings, SearchSetup, drive, search
from psr_nb.sft import SFTSettings, eft_ids, ift_ids, train_sft

# A dozen that differ: full and sliding windows, no rotary positions, experts, states instead of a cache,
# positions of their own, dropout, latent attention, several kinds of layers, BERT's decoder.
QUICK = """llama gpt2 gemma3_text mixtral mamba bloom opt roberta deepseek_v3 qwen3_next bart xlnet""".split()
REST = [kind for kind in tiny.ARCHITECTURES if kind not in QUICK]
GROUPS = [REST[i::12] for i in range(12)]


def check(kinds: list[str]):
    "What comes out now is what the documentation says, and nothing is wrong."
    table = [matrix.row_of(kind) for kind in kinds]
    assert [row for row in table if row.outcome == "WRONG"] == []
    assert table == [matrix.kept()[row.kind] for row in table]


@pytest.mark.parametrize("kind", QUICK)
def test_architecture(kind):
    check([kind])


@pytest.mark.slow
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_all_architectures(group):
    check([kind for kind in GROUPS[group] if kind in matrix.kept()])


# Settings that a table of defaults does not see.
BY_LENGTH = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SPARING = {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0, "attn_pdrop": 0.4}
NOISY = {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.5}
SETTINGS = {
    "positions scaled by length": (
        "phi3",
        dict(rope_parameters=BY_LENGTH, original_max_position_embeddings=40),
    ),
    "positions scaled as it grows": ("llama", dict(rope_parameters=DYNAMIC)),
    "windows in some layers": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=12, max_window_layers=1),
    ),
    "router logits": ("mixtral", dict(output_router_logits=True, router_jitter_noise=0.1)),
    "dropout of attention": ("granite", dict(attention_dropout=0.3)),
    "dropout that a part's settings tell": ("dbrx", dict(attn_config=SPARING, ffn_config=NOISY)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_setting(name):
    kind, settings = SETTINGS[name]
    row = matrix.row_of(kind, **settings)
    assert row.outcome in ("works", "falls back"), row


def test_a_model_that_sees_what_comes_after_is_refused():
    row = matrix.row_of("bert", is_decoder=False)
    assert row.outcome == "refused" and "not a causal language model" in row.notes[0], row


def test_the_table_has_every_architecture_and_nothing_is_wrong_in_it():
    table = matrix.kept()
    assert all(row.outcome in ("works", "falls back", "refused", "untested") for row in table.values())
    new = [kind for kind in tiny.ARCHITECTURES if kind not in table]
    if matrix.transformers.__version__ == matrix.documented()["transformers"]:
        assert new == []
    assert all(row.notes for row in table.values() if row.outcome != "works")


# Tokenizers: a model that has learned one solution by heart writes it step by step and judges as it was told.

QUESTION = "Tom has 3 apples and buys 20 more."
STEPS = ["Tom starts with 3.", "3 + 20 = 23, so he has 23 ✅.", "The answer is 23."]

TOLD = {QUESTION: "So it is.", "Shortly: " + QUESTION: ""}  # question -> how its steps are judged
JUDGED = {"A": (STEPS[1], "3 + 20 = 32."), "B": ("3 + 20 = 32.", STEPS[1])}


def stop(k: int) -> str:
    return "\n" + label(k + 1)


LABELS = Domain(
    "labels", ask=str, judge=matrix._judge, stop=stop, read=matrix._never, equal=matrix.DOMAIN.equal
)


def learned(folder, tokenizer_kind: str) -> TransformersEngine:
    "An engine with a model that was trained on one solution and two judgements until it knows them."
    config = tiny.tiny_config("llama", hidden_size=64, head_dim=16)
    start = tiny.save_tiny(folder / "M0", tiny.tiny_model(config), tiny.tiny_tokenizer(tokenizer_kind))
    tokenizer = load_tokenizer(start)
    rows = [ift_ids(tokenizer, LABELS, IFTRow("1", QUESTION, STEPS, "23"))]
    for question, explanation in TOLD.items():
        for verdict, shown in JUDGED.items():
            told = EFTRow(verdict, question, STEPS[:1], *shown, verdict, explanation)
            rows.append(eft_ids(tokenizer, LABELS, told))
    s = SFTSettings(epochs=80, learning_rate=5e-3, batch_size=5, micro_batch=5)
    figures = train_sft(start, rows, folder / "M1", s)
    assert figures["loss_last"] < 0.05, figures
    return TransformersEngine(str(folder / "M1"))


FINE = list(tiny.TOKENIZERS)[:4]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in FINE[1::2]]


@pytest.mark.parametrize("kind", [*FINE[::2], *SLOW])
def test_tokenizer_that_works(kind, tmp_path):
    engine = learned(tmp_path, kind)
    greedy = SearchSettings(w=2, temperature=0.0)
    setup = SearchSetup(engine.tokenizer, LABELS, greedy, context=engine.context)
    [(_, found)] = drive(engine, [(1, search(Problem("1", QUESTION), setup))])
    assert [s.candidates[0].text.strip() for s in found.path] == STEPS and found.ended == "answered"
    long, short = TOLD
    for verdict, question in (("explained", long), ("weighed", long), ("short", short)):
        judge = JudgeSetup(engine.tokenizer, LABELS, JudgeSettings(verdict=verdict, orders="single"))
        for right, shown in JUDGED.items():
            [judgement], _ = judge_with(engine, judge, question, STEPS[:1], list(shown))
            assert (judgement.a, judgement.b, judgement.verdict) == (0, 1, right), judgement


@pytest.mark.parametrize("kind", list(tiny.TOKENIZERS)[4:])
def test_tokenizer_that_is_refused(kind, tmp_path):
    tiny.tiny_tokenizer(kind).save_pretrained(tmp_path / kind)
    tiny.tiny_config("llama").save_pretrained(tmp_path / kind)
    tokenizer = load_tokenizer(str(tmp_path / kind))
    with pytest.raises(InputError, match=kind) as refusal:
        run_with(search(Problem("1", QUESTION), SearchSetup(tokenizer, LABELS)), matrix._never)
    assert "tokenizer can't be used" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
