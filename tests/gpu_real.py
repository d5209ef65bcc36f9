"""The loop on a real language model and real questions, on one CUDA GPU in less than ten minutes:
`tests/gpu_real.sh --bring FOLDER`. No test depends on a GPU; `--tiny` rehearses it on a CPU in two minutes.

The protocol (questions, sizes, arms, the comparison that decides, the gates) is in the recipe that runs,
data/recipes/qwen2.5-coder-0.5b-gsm8k.yaml. What this file adds, because it is more than a recipe can say:

1. The model: the GGUF of Qwen2.5-Coder-0.5B-Instruct in parts, without its second, coarser copy of the
   embedding, which is tied in this model. FOLDER has part1.bin ..., parts.json, tokenizer/,
   gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz.
2. The training questions of GSM8K in the order of a shuffle with seed 0: 1,260 to search, 2,500 whose
   solutions are cut into steps (IFT), 2,000 for pairs with one number changed, 1,200 for pairs that M0 writes
   itself: at a place in the solution it gives 6 next steps at temperature 1. A step is right if all its
   equations hold and the last one comes to what the solution's step comes to; it is wrong if an equation does
   not hold, or if its result is nowhere in the solution or the question. A right and a wrong step are a pair,
   shown in both orders, with the verdict alone. The pairs that test the judge (at most 400 rows) are made in
   both ways from the test questions after the first 1,000.
3. M0 is evaluated beside the fine-tuning of M1. All stops after `--seconds`, and what there is by then has
   been written.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RECIPE = "qwen2.5-coder-0.5b-gsm8k"
LIMITS = {"model": 90, "rows": 100}  # seconds a stage may take
LAYER = {  # GGUF's names of a layer's parts -> transformers'
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


@dataclass(frozen=True)
class Sizes:
    "Questions of each kind."

    search: int = 1260  # more than are wanted: a question that is there twice is used once
    ift: int = 2500
    changed: int = 2000  # for EFT pairs with a number changed
    sampled: int = 1200  # for EFT pairs of the model's own steps
    test: int = 1000
    judge_test: int = 400  # pairs
    samples: int = 6  # next steps at each place
    batch_tokens: int = 1000000


TINY = Sizes(
    search=20, ift=200, changed=40, sampled=12, test=12, judge_test=8, samples=4, batch_tokens=20000
)
TINY_SETTINGS = {
    "questions": "[8, 8]",
    "data.test_limit": 12,
    "sft.learning_rate": 4e-3,
    "sft.epochs": 2,
    "search.max_steps": 4,
    "search.max_step_tokens": 40,
    "judge.orders": "single",  # a model that always says A leaves pairs
    "dpo.batch_size": 4,
    "dpo.warmup_steps": 0,
    "dpo.tree_tokens": 2048,
    "evaluate.max_tokens": 90,
    "engine.max_batch_tokens": 20000,
}


@dataclass(frozen=True)
class Place:
    "Where things are."

    bring: Path | None  # what was brought
    work: Path  # for models and the run: fast and large
    out: Path  # for results
    tiny: bool

    @property
    def sizes(self) -> Sizes:
        return TINY if self.tiny else Sizes()

    @property
    def m0(self) -> Path:
        return self.work / "m0"

    def data(self, name: str) -> Path:
        return self.work / "data" / f"{name}.jsonl"


# The model


def joined(bring: Path, gguf: Path):
    "The GGUF from its parts, zeros where the embedding's second copy was. RuntimeError if they're damaged."
    told = json.loads((bring / "parts.json").read_text())
    start, end = told["hole"]
    whole = b"".join((bring / f"part{i}.bin").read_bytes() for i in range(1, told["parts"] + 1))
    if hashlib.sha256(whole).hexdigest() != told["sha256"]:
        raise RuntimeError(f"{bring}: the parts together aren't what was cut; bring them again")
    with open(gguf, "wb") as f:
        f.write(whole[:start])
        f.seek(end)
        f.write(whole[start:])


def plain_name(name: str) -> str | None:
    "transformers' name of a tensor of a GGUF; None for the embedding's second copy."
    whole = {"output.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole or name == "token_embd.weight":
        return whole.get(name)
    _, number, part, kind = name.split(".")
    return f"model.layers.{number}.{LAYER[part]}.{kind}"


def weights(reader, threads: int) -> dict:
    "Name -> float32 tensor. numpy's work on pieces of tensors runs in threads."
    import numpy as np
    import torch
    from gguf.quants import dequantize

    with ThreadPoolExecutor(threads) as pool:

        def plain(t):
            pieces = np.array_split(t.data, min(16, len(t.data))) if t.data.ndim > 1 else [t.data]
            return [pool.submit(dequantize, piece, t.tensor_type) for piece in pieces]

        named = {plain_name(t.name): plain(t) for t in reader.tensors if plain_name(t.name)}
        return {
            name: torch.from_numpy(np.concatenate([f.result() for f in pieces]))
            for name, pieces in named.items()
        }


def configuration(reader):
    from transformers import Qwen2Config

    def of(name):
        return reader.fields[f"qwen2.{name}"].contents()

    embedding = next(t for t in reader.tensors if t.name == "output.weight")
    return Qwen2Config(
        vocab_size=int(embedding.shape[1]),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=151643,
        eos_token_id=151645,
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )


def convert(gguf: Path, out: Path):
    "Weights and configuration of a GGUF into a folder: float32, the embedding tied."
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    save_file(weights(reader, os.cpu_count()), out / "model.safetensors", {"format": "pt"})
    configuration(reader).save_pretrained(out)


def brought_model(place: Place):
    "Write M0 from what was brought."
    gguf, part = place.work / "model.gguf", place.work / "m0.part"
    joined(place.bring, gguf)
    part.mkdir()
    convert(gguf, part)
    for f in (place.bring / "tokenizer").iterdir():
        if f.suffix == ".gz":
            (part / f.stem).write_bytes(gzip.decompress(f.read_bytes()))
        else:
            shutil.copy(f, part)
    part.rename(place.m0)
    gguf.unlink()


def tiny_model(place: Place):
    "A small random model with a tokenizer made from the made-up questions."
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<eos>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([json.dumps(row) for row in made_up(200, 1)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **sizes,
            vocab_size=len(tokenizer),
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(place.m0)
    tokenizer.save_pretrained(place.m0)


def make_model(place: Place):
    shutil.rmtree(place.m0, ignore_errors=True)
    shutil.rmtree(place.work / "m0.part", ignore_errors=True)
    if place.tiny:
        tiny_model(place)
    else:
        brought_model(place)


# The rows to learn from, and the questions


def made_up(n: int, seed: int) -> list[dict]:
    "Questions in the form of GSM8K, for the rehearsal."
    rng, out = random.Random(seed), []
    for i in range(n):
        a, b, c = (rng.randrange(2, 10) for _ in range(3))
        question = f"Ann has {a} boxes of {b} pens and gets {c} more (case {seed}.{i}). How many pens?"
        steps = f"She has {a}*{b} = <<{a}*{b}={a * b}>>{a * b} pens.\n"
        steps += f"Then it is {a * b}+{c} = <<{a * b}+{c}={a * b + c}>>{a * b + c} pens.\n"
        out.append({"question": question, "answer": f"{steps}#### {a * b + c}"})
    return out


def problems(place: Place, name: str) -> list:
    "The questions of GSM8K's `train` or `test`, or made-up ones."
    from psr_nb.questions.read import load_problems

    file = place.work / f"gsm8k_{name}.jsonl"
    if place.tiny:
        rows = made_up(400 if name == "train" else 40, 2 + (name == "test"))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_bytes(gzip.decompress((place.bring / f"{file.name}.gz").read_bytes()))
    return load_problems(str(file))


def changed_pairs(solutions: list) -> list:
    "EFT rows from solutions with one number changed, the verdict alone."
    from dataclasses import replace

    from psr_nb.domains.maths import MATH
    from psr_nb.questions.solutions import simple_eft

    rng = random.Random(0)
    return [replace(row, explanation="") for s in solutions for row in simple_eft(s, rng, MATH)]


def parts_of(place: Place) -> dict:
    "What every question is for: lists of problems (search, test) and of solutions."
    from psr_nb.domains.maths import MATH
    from psr_nb.questions.solutions import ift_from_solution

    s, train, test = place.sizes, problems(place, "train"), problems(place, "test")
    random.Random(0).shuffle(train)
    out, at = {"test": test[: s.test]}, 0
    for name in ("search", "ift", "changed", "sampled"):
        out[name] = train[at : at + getattr(s, name)]
        at += getattr(s, name)
    held = test[s.test :]
    out |= {"held changed": held[::2], "held sampled": held[1::2]}
    solved = out.keys() - {"test", "search"}
    return {k: [ift_from_solution(p, MATH) for p in v] if k in solved else v for k, v in out.items()}


def write(place: Place, name: str, rows: list):
    "A data file, whole or not at all."
    from psr_nb.files import write_jsonl

    place.data(name).parent.mkdir(exist_ok=True)
    write_jsonl(place.data(name), rows)


# Pairs that a model writes itself

_NUMBER = r"\d[\d,]*(?:\.\d+)?|\.\d+"
_EQUATION = re.compile(
    rf"((?:[$(]*(?:{_NUMBER})[)%]*\s*[-+*/x×÷]\s*)+[$(]*(?:{_NUMBER})\)*)\s*=\s*\$?({_NUMBER})"
)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def holds(left: str, right: str) -> bool | None:
    "Is an equation true, up to rounding? None if its left side can't be worked out."
    plain = left.translate(str.maketrans("x×÷", "**/", "$, ")).replace("%", "/100")
    if "**" in plain or "//" in plain or len(plain) > 60:
        return None
    try:
        value = eval(plain, {"__builtins__": {}})  # digits, signs and brackets, as the pattern has it
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None
    return abs(value - number(right)) <= 0.01 * max(1, abs(value))


def result(step: str) -> float | None:
    "What a step comes to: the number after its last equals sign."
    found = re.findall(rf"=\s*\\?\$?({_NUMBER})", step)
    return number(found[-1]) if found else None


def rated(step: str, gold: str, known: set[float]) -> bool | None:
    "Is a next step right? None if that can't be told from the solution's step and all numbers known."
    value, equations = result(step), [holds(*e) for e in _EQUATION.findall(step)]
    if value is None:
        return None
    if False in equations:
        return False
    if value == result(gold):
        return True
    return False if value not in known else None


def places(solutions: list, seed: int) -> list[tuple]:
    "(solution, k): a place in each, before step k (0-based), which comes to a number."
    rng, out = random.Random(seed), []
    for s in solutions:
        able = [k for k, step in enumerate(s.steps) if result(step) is not None]
        if able:
            out.append((s, rng.choice(able)))
    return out


def prompt_at(tokenizer, domain, s, k: int) -> list[int]:
    "Ids up to the label of step k (0-based) of a solution."
    from dataclasses import replace

    from psr_nb.sft import ift_ids

    probe = " x"
    prompt, completion = ift_ids(tokenizer, domain, replace(s, steps=[*s.steps[:k], probe]))
    return prompt + completion[: -1 - len(tokenizer(probe, add_special_tokens=False)["input_ids"])]


def pair_rows(s, k: int, texts: list[str]) -> list:
    "Two EFT rows, one for each order, of a right and a wrong one of these next steps; [] without both."
    from psr_nb.records import EFTRow

    known = {number(x) for x in re.findall(_NUMBER, " ".join([s.question, *s.steps]))}
    ratings = {t: rated(t, s.steps[k], known) for t in texts}
    right = next((t for t, good in ratings.items() if good), None)
    wrong = next((t for t, good in ratings.items() if good is False), None)
    if right is None or wrong is None:
        return []
    shown = (("A", right, wrong), ("B", wrong, right))
    before, by = s.steps[:k], "written by M0"
    return [EFTRow(f"{s.id}/m0/{v}", s.question, before, a, b, v, "", by) for v, a, b in shown]


def sampled_pairs(engine, solutions: list, samples: int, seed: int) -> list:
    "EFT rows of steps that a model writes after the first steps of solutions."
    from psr_nb.domains.maths import MATH
    from psr_nb.engine import generate
    from psr_nb.records import Request, Sampling

    at = places(solutions, seed)
    requests = [
        Request(
            prompt_at(engine.tokenizer, MATH, s, k),
            Sampling(samples, 1.0, 0.95, 100, (f"\nStep {k + 2}:",), seed=i),
        )
        for i, (s, k) in enumerate(at)
    ]
    rows = []
    for (s, k), completions in zip(at, generate(engine, requests), strict=True):
        ended = [c.text for c in completions if c.finish_reason != "length"]
        texts = [re.split(r"\n\s*Step \d+:", t)[0].strip() for t in ended]
        rows += pair_rows(s, k, [t for t in dict.fromkeys(texts) if t])
    return rows


def make_rows(place: Place):
    "All data files; those that need the model's own steps are written again when they are there."
    parts, size = parts_of(place), place.sizes
    for name in ("test", "search", "ift"):
        write(place, name, parts[name])
    changed, held = changed_pairs(parts["changed"]), changed_pairs(parts["held changed"])
    write(place, "eft", changed)
    write(place, "judge_test", held[: size.judge_test])

    from psr_nb.engine import EngineSettings
    from psr_nb.engines.choose import open_engine

    settings = EngineSettings(kind="transformers", max_batch_tokens=size.batch_tokens)
    engine = open_engine(str(place.m0), settings)
    of_test = sampled_pairs(engine, parts["held sampled"], size.samples, 1)
    write(place, "judge_test", (of_test + held)[: size.judge_test])
    own = sampled_pairs(engine, parts["sampled"], size.samples, 0)
    write(place, "eft", own + changed)  # the recipe takes the first of them, up to its limit
    told = {"EFT rows": len(changed), "of M0's steps": len(own), "of them to test": len(of_test)}
    print(json.dumps(told | {"tokens": engine.usage.output_tokens, "s": round(engine.usage.seconds, 1)}))


# All of it


def psr(*args) -> list[str]:
    return [sys.executable, "-c", "from psr_nb.cli.main import main; main()", *map(str, args)]


def run_command(place: Place) -> list[str]:
    settings = {
        "data.ift": place.data("ift"),
        "data.eft": place.data("eft"),
        "data.judge_test": place.data("judge_test"),
        "engine.kind": "transformers",
        "gates.action": "warn",  # what a judge that is none leads to is among what is measured here
    } | (TINY_SETTINGS if place.tiny else {})
    changes = [x for name, value in settings.items() for x in ("--set", f"{name}={value}")]
    recipe = Path(__file__).parent.parent / "data" / "recipes" / f"{RECIPE}.yaml"
    files = ["--model", place.m0, "--questions", place.data("search"), "--test", place.data("test")]
    return psr("run", recipe, "--out", place.work / "run", *files, *changes)


def eval_command(place: Place) -> list[str]:
    most = [
        "--max-tokens",
        90 if place.tiny else 512,
        "--batch-tokens",
        300000,
        "--engine",
        "transformers",
    ]
    bench = ["--bench", f"test={place.data('test')}", "--out", place.work / "eval-m0"]
    return psr("eval", "--model", f"M0={place.m0}", *bench, *most)


def started(place: Place, name: str, command: list[str]) -> subprocess.Popen:
    "A process of its own group, which prints to a log among the results."
    log = open(place.work / f"{name}.log", "a")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def stop(child: subprocess.Popen):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def collect(place: Place):
    "Everything but weights among the results: the random arm in an archive of its own, for their size."
    heavy = re.compile(r"/model$|/model\.part|\.training|/m0|\.gguf$|gsm8k_|/pairs\.jsonl$")
    random_arm = re.compile(r"^real/run/random(/|$)")
    for name in ("real", "random"):

        def wanted(entry, name=name):
            other = entry.isfile() and bool(random_arm.match(entry.name)) != (name == "random")
            return None if heavy.search(entry.name) or other else entry

        part = place.out / f"{name}.part"
        with tarfile.open(part, "w:gz", compresslevel=4) as tar:
            tar.add(place.work, "real", filter=wanted)
        part.replace(place.out / f"{name}.tar.gz")


def waited(place: Place, children: dict[str, subprocess.Popen], until: float) -> dict[str, str]:
    "How each ended, by then at the latest; results are collected every half minute."
    start = collected = time.time()
    ends = {}
    while len(ends) < len(children):
        for name, child in children.items():
            late = time.time() > until
            if name not in ends and (late or child.poll() is not None):
                code = child.poll()
                stop(child)
                how = "stopped" if code is None else "" if code == 0 else f"ended with {code}"
                ends[name] = f"{time.time() - start:.0f} s {how}".strip()
                print(f"== {name}: {ends[name]}", flush=True)
        if time.time() - collected > 30:
            with contextlib.suppress(OSError):  # a file went away meanwhile: the archive before stays
                collect(place)
            collected = time.time()
        time.sleep(0.5)
    return ends


def in_a_stage(place: Place, name: str, until: float) -> str:
    "Run a stage in a process of its own."
    command = [
        sys.executable,
        __file__,
        "--stage",
        name,
        "--out",
        str(place.out),
        "--work",
        str(place.work),
    ]
    command += ["--bring", str(place.bring)] if place.bring else []
    child = started(place, name, command + ["--tiny"] * place.tiny)
    return waited(place, {name: child}, min(until, time.time() + LIMITS[name]))[name]


def solved(file: Path) -> dict[str, float]:
    "Problem -> was it solved?"
    from psr_nb.files import read_jsonl  # which leaves out a line that was cut short

    return {row["id"]: float(row["equal"]) for row in (read_jsonl(file) if file.exists() else [])}


def difference(one: dict, other: dict) -> list[float] | None:
    "[one - other, low, high, problems] on the problems of both; None where there are none."
    from psr_nb.statistics import bootstrap_difference

    both = [i for i in one if i in other]
    if not both:
        return None
    before, after = (
        [other[i] for i in both],
        [one[i] for i in both],
    )  # it takes the first from the second
    return [*bootstrap_difference(before, after), len(both)]


def models_of(place: Place) -> dict[str, Path]:
    "Name -> folder of every model that has an evaluation, begun or done."
    run = place.work / "run"
    found = {f"judge {f.parent.name}": f.parent for f in sorted(run.glob("M*/evaluation.jsonl"))}
    others = sorted(run.glob("*/M*/evaluation.jsonl"))
    return found | {f"{f.parent.parent.name} {f.parent.name}": f.parent for f in others}


def results(place: Place) -> dict:
    "Figures of every model, and differences with intervals."
    models = models_of(place)
    right = {name: solved(folder / "evaluation.jsonl") for name, folder in models.items()}
    for file in sorted((place.work / "eval-m0").rglob("*.jsonl")):
        right["M0"] = solved(file)
    figures = {name: folder / "metrics.json" for name, folder in models.items()}
    differences = {}
    for name in right:
        arm, _, n = name.partition(" ")
        others = ["judge M1"] * (name != "judge M1") + [f"random {n}"] * (arm != "random")
        differences |= {f"{name} - {o}": difference(right[name], right[o]) for o in others if o in right}
    return {
        "accuracy": {name: [sum(x.values()) / max(1, len(x)), len(x)] for name, x in right.items()},
        "differences": differences,
        "metrics": {name: json.loads(f.read_text()) for name, f in figures.items() if f.exists()},
    }


def show(found: dict):
    "The figures that matter, printed."
    print(json.dumps({k: [round(v[0], 4), v[1]] for k, v in found["accuracy"].items()}))
    for name, d in found["differences"].items():
        if d:
            low, high = 100 * d[1], 100 * d[2]
            print(f"{name}: {100 * d[0]:+.1f} points (95 % {low:+.1f} to {high:+.1f}, n {d[3]})")
    names = ("judge_accuracy", "judge_position_bias", "judge_swap_consistency", "unread", "pairs")
    for name, m in found["metrics"].items():
        said = {k: round(m[k], 3) for k in names if m.get(k) is not None}
        print(name, json.dumps(said | {"costs": {k: v["seconds"] for k, v in m["costs"].items()}}))


def failed(ends: dict[str, str]) -> bool:
    return any("ended with" in how for how in ends.values())


def everything(place: Place, seconds: float):
    "The stages in order, the run and M0's evaluation at the same time; results whatever happens."
    until, ends = time.time() + seconds, {}
    for folder in (place.work, place.out):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in LIMITS:
            ends[name] = in_a_stage(place, name, until)
        children = {"run": run_command(place), "eval-m0": eval_command(place)}
        children = {name: started(place, name, command) for name, command in children.items()}
        ends |= waited(place, children, until)
        if "ended with" in ends["run"]:  # for want of memory, say: it goes on from where it was
            again = started(place, "run", run_command(place))
            ends |= waited(place, {"run again": again}, until)
    finally:
        collect(place)
        found = results(place) | {"ends": ends}
        (place.out / "results.json").write_text(json.dumps(found, indent=1))
        show(found)
        for log in sorted(place.work.glob("*.log")) + [place.work / "run" / "jobs.log"] * failed(ends):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" if log.exists() else "")
    return not failed(ends)


def large_and_fast() -> Path:
    "A folder in memory where there is much of it."
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else 0
    return (shared if room > 4e10 else Path("/tmp")) / "gpu-real"


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("gpu-real"), help="results")
    p.add_argument("--work", type=Path, help="models and the run; default: in memory")
    p.add_argument("--bring", type=Path, help="folder of the model's parts and the questions")
    p.add_argument("--seconds", type=float, default=540, help="after which all stops")
    p.add_argument("--tiny", action="store_true", help="a small made-up model and questions, for a CPU")
    p.add_argument("--stage", choices=list(LIMITS), help=argparse.SUPPRESS)
    args = p.parse_args()
    if not args.tiny and not args.bring:
        p.error("--bring FOLDER is needed, or --tiny")
    place = Place(args.bring, args.work or large_and_fast(), args.out, args.tiny)
    if args.stage:
        {"model": make_model, "rows": make_rows}[args.stage](place)
        return
    sys.exit(not everything(place, args.seconds))


if __name__ == "__main__":
    main()
