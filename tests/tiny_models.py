"""Models of a few thousand weights of every architecture for causal language models that transformers has,
and tokenizers of six kinds. All are made on the spot: nothing is downloaded."""

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ARCHITECTURES = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # model type -> class
WITH_IMAGES = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

# Ids of a model. The tokenizers have fewer, as those of published models do.
VOCABULARY = 480
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

# How many of each setting of a configuration a small model has. A setting that is 0 or None stays so.
SIZES = {
    1: "n_group topk_group first_k_dense_replace num_dense_layers",
    2: """num_hidden_layers n_layer n_layers num_layers num_blocks encoder_layers decoder_layers depth
        num_encoder_layers num_decoder_layers num_layers_per_stack num_key_value_heads num_kv_heads
        kv_n_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok
        num_experts_per_token moe_topk moe_k moe_top_k moe_num_shared_experts n_groups mamba_n_groups""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        swa_num_attention_heads linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads
        num_query_groups num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num
        hc_lowrank laurel_rank mamba_dt_rank time_step_rank""",
    8: """head_dim d_head dim_head attention_head_size kv_channels index_head_dim swa_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim qk_nope_head_dim qk_rope_head_dim
        v_head_dim rotary_dim d_rel mamba_d_state state_size ssm_state_size hidden_size_per_layer_input
        gated_norm_rank index_topk router_hidden_size adapter_rank mamba_chunk_size""",
    12: """sliding_window sliding_window_size attention_window_size window_size local_attention
        attention_chunk_size""",
    16: """index_n_heads kv_lora_rank q_lora_rank o_lora_rank qk_head_dim block_size chunk_size mamba_d_head
        mamba_head_dim mamba_headdim local_attn_chunk_length lsh_attn_chunk_length""",
    32: """hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size hidden_size_global
        lru_width word_embed_proj_dim attention_hidden_size input_embedding_size output_embedding_size
        ple_embed_dim backbone_hidden_size mamba_d_ssm pronunciation_embed_dim shape_embed_dim
        out_hidden_size input_size vision_output_dim projector_input_dim projector_output_dim
        base_channels""",
    48: """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size d_inner dff
        dim_ff dense_intermediate_size expert_ffn_hidden_size ffn_hidden_size feed_forward_size
        intermediate_size_mlp shared_expert_intermediate_size shared_intermediate_size mlp_dim
        moe_shared_expert_intermediate_size""",
    512: """max_position_embeddings n_positions max_seq_len context_length max_target_positions
        model_max_length n_ctx keep_window_size""",
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input",
}
SIZE = {name: size for size, names in SIZES.items() for name in names.split()}

_WINDOWED = ["sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "full_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_ZAMBA = dict(
    layers_block_type=["linear_attention", "hybrid"] * 2,
    num_hidden_layers=4,
    attention_hidden_size=64,
    attention_head_dim=16,
)
# What an architecture needs besides.
MORE = {
    "bamba": dict(attn_layer_indices=[1]),
    "cohere_compass_text": dict(
        layer_types=_WINDOWED,
        rope_parameters={k: _ROPE | {"mrope_section": [2, 1, 1]} for k in _WINDOWED},
    ),
    "dbrx": dict(attn_config={"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}),
    "deepseek_v2": dict(num_experts_per_tok=2, n_group=1, topk_group=1),
    "dots1": dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1),
    "emu3": dict(vocabulary_map={"<image>": 5, "<|visual token 000000|>": 6, "<|extra_200|>": 7}),
    "falcon_h1": dict(mamba_d_ssm=64),
    "gemma3n_text": dict(
        num_hidden_layers=4,
        layer_types=_WINDOWED * 2,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0],
        intermediate_size=[48] * 4,
    ),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "granitemoehybrid": dict(layer_types=_LINEAR),
    "hrm_text": dict(num_layers_per_stack=None, num_hidden_layers=1),
    "hunyuan_v1_dense": dict(head_dim=8),
    "hunyuan_v1_moe": dict(head_dim=8),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "laguna": dict(layer_types=_WINDOWED, sliding_window=12),
    "lfm2": dict(layer_types=["conv", "full_attention"], full_attn_idxs=[1]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "mamba2": dict(num_heads=4, head_dim=16),
    "mellum": dict(layer_types=_WINDOWED, sliding_window=12),
    "minicpm3": dict(dim_model_base=32),
    "ministral": dict(head_dim=8),
    "nemotron": dict(head_dim=8, num_key_value_heads=2),
    "qwen4_exp_text": dict(
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=8,
        indexer_compress_ratio=2,
    ),
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(
        is_decoder=True,
        axial_pos_shape=[16, 32],
        axial_pos_embds_dim=[16, 16],
        attn_layers=["local", "lsh"],
        num_buckets=4,
    ),
    "roc_bert": dict(pronunciation_vocab_size=9, shape_vocab_size=9),
    "smollm3": dict(no_rope_layers=[1, 0]),
    "xlm": dict(causal=True),
    "xlstm": dict(hidden_size=128, embedding_dim=128),
    "xmod": dict(default_language="en_XX"),
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA | dict(n_mamba_heads=4, mamba_headdim=16),
    "zaya": dict(num_experts_per_tok=1),
}
# Why a model of an architecture is not made.
_DRAFT = "a draft of another model, which reads that one's hidden states instead of ids"
NOT_MADE = {
    "blt": "its configuration has no number of layers, and transformers makes no cache for it",
    "gemma3n": "its vision part needs the package timm",
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "musicgen": "it continues sound, not text",
    "musicgen_melody": "it continues sound, not text",
}


def _one_of_each(kinds: list[str]) -> list[str]:
    "At least two layers, of every kind that a configuration has one."
    found = list(dict.fromkeys(kinds))
    return found if len(found) > 1 else found * 2


def _sized(name: str, value, layers: int):
    "A setting as a small model has it."
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [SIZE[name]] * layers
    counts = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return SIZE[name] if counts else value


def _kinds(given: dict) -> dict:
    "Settings that say what kind each layer is, for as few layers as have them all."
    out = {n: _one_of_each(given[n]) for n in ("layer_types", "layers_block_type") if given.get(n)}
    layers = max([2, *map(len, out.values())])
    if given.get("mlp_layer_types"):
        out["mlp_layer_types"] = (_one_of_each(given["mlp_layer_types"]) * layers)[-layers:]
    return out | ({"num_hidden_layers": layers} if "num_hidden_layers" in given else {})


def _parts(config) -> dict:
    "The configurations inside one, by name."
    inside = {name: vars(config).get(name) for name in config.to_dict()}
    return {name: part for name, part in inside.items() if hasattr(part, "to_dict")}


def small_settings(config) -> dict:
    "The settings with which a configuration of this class describes a small model."
    given = config.to_dict()
    kinds = _kinds(given)
    layers = kinds.get("num_hidden_layers", 2)
    out = {n: _sized(n, v, layers) for n, v in given.items() if n in SIZE} | kinds
    for name, part in _parts(config).items():
        more = MORE.get(part.model_type, {})
        out[name] = {"model_type": part.model_type} | small_settings(part) | more
    if "kv_lora_rank" in out:
        out["num_key_value_heads"] = out["num_attention_heads"]
    if "per_layer_config" in given:
        out |= {"head_dim": 8, "global_head_dim": 16}
    if "is_decoder" in given:  # a BERT that is not one sees what comes after
        out["is_decoder"] = True
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return out | {n: i for n, i in ids.items() if n in given}


def tiny_config(kind: str, **more):
    "The configuration of a small model of this architecture, by transformers' name of its type."
    made = CONFIG_MAPPING[kind]
    return made(**(small_settings(made()) | MORE.get(kind, {}) | more))


def tiny_model(config, seed: int = 0, most: int = 5_000_000):
    """A model with random weights, larger than those that training starts from: what it attends to is heard.
    One that reads images too is whole, as it is published.

    ValueError if it is not small."""
    kind = AutoModelForImageTextToText if config.model_type in WITH_IMAGES else AutoModelForCausalLM
    with torch.device("meta"):
        weights = sum(p.numel() for p in kind.from_config(config).parameters())
    if weights > most:
        raise ValueError(f"it has {weights:,} weights")
    torch.manual_seed(seed)
    model = kind.from_config(config).eval()
    for name, w in model.named_parameters():
        if w.dim() >= 2 and "A_log" not in name and w.std() > 0:
            torch.nn.init.normal_(w, std=min(0.5, 1.5 / w.shape[-1] ** 0.5))
    return model


# Tokenizers.

NAMES = ["Tom", "Mary", "Ann", "Bob", "Lee"]
THINGS = ["apples", "books", "coins", "stamps", "pears"]


def solutions(n: int = 60) -> list[str]:
    "Questions, solutions by steps and judgements, as a corpus."
    out = []
    for i in range(n):
        who, what, a, b = NAMES[i % 5], THINGS[i // 5 % 5], 3 + 7 * i % 50, 2 + 5 * i % 31
        out.append(
            f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?\n\n"
            f"Step 1: {who} starts with {a} {what}.\n"
            f"Step 2: Then {who} buys {b}, so that is {a} + {b} = {a + b}.\n"
            f"Step 3: The answer is {a + b}.\n\n"
            f"Which next step is better? The first is right. [[A]]\n"
            f"The second is right: {a} + {b} = {a + b}. [[B]]\n"
        )
    return out


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [PAD, BOS, EOS]


def _byte_level(pattern: str) -> Tokenizer:
    "Byte-level BPE, split by a pattern first."
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(solutions(), trainer)
    return made


def _byte_fallback() -> tuple[dict, list]:
    "(vocabulary, merges) of a BPE with spaces as ▁ and a token for each byte."
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for text in solutions() for line in text.splitlines()]
    learned.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=170))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    state = json.loads(learned.to_str())["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "<unk>", *bytes_, *words])}
    return vocabulary, [tuple(m) for m in state["merges"]]


def _sentencepiece(by: str) -> Tokenizer:
    "BPE with byte fallback and a space before every piece: by the Metaspace pre-tokenizer, or a normalizer."
    vocabulary, merges = _byte_fallback()
    made = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    if by == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    made.decoder = decoders.Sequence(parts)
    made.add_special_tokens(SPECIAL)
    return made


def _unigram() -> Tokenizer:
    "A Unigram that writes any white space as one space."
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        solutions(),
        trainers.UnigramTrainer(vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>"),
    )
    return made


def _wordpiece() -> Tokenizer:
    "A WordPiece that writes in lower case."
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        solutions(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL, "[UNK]"])
    )
    return made


TOKENIZERS = {
    "byte-level BPE, as GPT-2": (_byte_level, GPT2),
    "byte-level BPE, as Llama 3": (_byte_level, LLAMA3),
    "BPE with byte fallback, as Mistral": (_sentencepiece, "metaspace"),
    "BPE with byte fallback, as Llama 2": (_sentencepiece, "normalizer"),
    "Unigram without newlines, as T5": (_unigram,),
    "lower-case WordPiece, as BERT": (_wordpiece,),
}


@cache
def tiny_tokenizer(kind: str = "byte-level BPE, as Llama 3") -> PreTrainedTokenizerFast:
    "A small tokenizer of one of the six kinds."
    make, *given = TOKENIZERS[kind]
    return PreTrainedTokenizerFast(
        tokenizer_object=make(*given), bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def save_tiny(folder: Path, model, tokenizer) -> str:
    "A model and its tokenizer as a model folder."
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
