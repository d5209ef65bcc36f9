"Scores of a few ids are as fine as the model's last layer, whatever its logits are rounded to."

import copy

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from psr_nb.engine import generate, load_tokenizer
from psr_nb.engines.transformers import TransformersEngine
from psr_nb.files import packaged
from psr_nb.records import Request, Sampling

TOKENIZER = load_tokenizer(str(packaged("models/demo-m1")))
SIDES = (20, 21)


def with_sides_alike(kind, config, **more):
    "A small model, its logits capped in one kind, to which two ids are nearly the same."
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(TOKENIZER), hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512)
    model = kind(config(**sizes, **heads, initializer_range=0.3, **more)).eval()
    weight = model.get_output_embeddings().weight.data
    weight[SIDES[1]] = weight[SIDES[0]] + 0.003 * torch.randn(128)
    return model


def log_odds(model) -> torch.Tensor:
    requests = [
        Request([5 + i % 20, 7, 9 + i % 11, 3 + i % 7, 12], Sampling(among=SIDES)) for i in range(99)
    ]
    found = generate(TransformersEngine(model, TOKENIZER), requests)
    return torch.tensor([c.logprobs[0] - c.logprobs[1] for [c] in found])


@pytest.mark.parametrize(
    "kind, config, more",
    [(Qwen2ForCausalLM, Qwen2Config, {}), (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 32})],
)
def test_two_sides_are_told_apart_in_bfloat16(kind, config, more):
    whole = with_sides_alike(kind, config, **more)
    exact, coarse = log_odds(whole), log_odds(copy.deepcopy(whole).to(torch.bfloat16))
    assert (coarse != 0).all() and len(coarse.unique()) > 0.9 * len(exact.unique())
    assert ((coarse > 0) == (exact > 0)).float().mean() > 0.75
