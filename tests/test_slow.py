"The claims that take minutes: the demo's gain and its control, and a real language model on real questions."

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_demo_gains_and_its_control_by_far_less(psr, tmp_path):
    done = psr("demo", "--out", tmp_path / "demo", timeout=1500)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    from psr_nb.dashboard.figures import gain

    judge, random = gain(tmp_path / "demo", "judge"), gain(tmp_path / "demo", "random")
    assert judge["gain"] > 0.10 and judge["low"] > 0, judge
    assert random["high"] < judge["low"], random
    arms = json.loads(psr("report", tmp_path / "demo", "--json").stdout)["arms"]
    assert list(arms) == ["judge", "random"] and list(arms["judge"]) == ["M1", "M2", "M3", "M4"]


@pytest.mark.skipif("PSR_DATA" not in os.environ, reason="PSR_DATA is not set: no real GSM8K at hand")
def test_smollm2_on_gsm8k(psr, tmp_path, smollm2):
    """Every stage but the judged search on a real model and real questions, fewer of them than the recipe's.

    The judge has its own test."""
    data, out = Path(os.environ["PSR_DATA"]), tmp_path / "smollm2"
    # Best and worst by lot: a model of this size, with so few rows to learn judging from, may leave no pair.
    small = {
        "questions": "[3]",
        "arms": "[random]",
        "data.test_limit": 6,
        "data.ift_limit": 24,
        "data.eft_limit": 16,
        "data.judge_test_limit": 6,
        "search.w": 3,
        "search.max_steps": 4,
        "search.on_tie": "skip",
        "judge.orders": "single",
        "dpo.batch_size": 4,
    }
    done = psr(
        "run",
        "smollm2-gsm8k-cpu",
        "--model",
        smollm2,
        "--questions",
        data / "gsm8k_train.jsonl",
        "--test",
        data / "gsm8k_test.jsonl",
        "--out",
        out,
        *[x for k, v in small.items() for x in ("--set", f"{k}={v}")],
        timeout=1500,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert len((out / "M2" / "trajectories.jsonl").read_text().splitlines()) == 3
    metrics = json.loads((out / "M2" / "metrics.json").read_text())
    assert metrics["n"] == 6 and metrics["judge_n"] >= 6 and metrics["pairs"] > 0


def test_flex_attention_scores_a_tree_as_sdpa_does():
    "Forward only: torch compiles FlexAttention for a CPU, but can't train with it there."
    import torch
    import transformers

    from psr_nb.cli.bench import made_pairs
    from psr_nb.tree import learn_trees, step_log_probs, tree_batch, tree_of

    scores = {}
    for kind in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=kind).eval()
        learn_trees(model)
        with torch.no_grad():
            scores[kind] = step_log_probs(model, tree_batch(tree_of([made_pairs(4, 30, 8, 97)]), 0))
    assert (scores["sdpa"] - scores["flex_attention"]).abs().max() < 1e-5


def test_an_iteration_is_timed_both_ways(psr):
    done = psr("bench", "loop", "--limit", "4", "--max-steps", "3", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures["phases"]) == ["start", "search", "judge", "train", "evaluate"]
    plain, ours = (sum(p[way] for p in figures["phases"].values()) for way in ("plain", "ours"))
    assert figures["ratio"] == pytest.approx(plain / ours) and figures["ratio"] > 1
    assert figures["phases"]["evaluate"]["ratio"] > 1.5, figures
