"""Figures on a CUDA GPU: `tests/gpu.sh [--tiny] [PART ...]`, without a download. No test depends on it.

Every part runs in a process of its own, with a limit of time, and writes what it has as it comes, so that
one that fails or hangs loses nothing of the others. `--tiny` rehearses it on a CPU, all but the parts `flex`
and `memory`.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

# part -> seconds it may take
PARTS = {
    "steps-bfloat16": 60,
    "steps-float32": 60,
    "dpo-bfloat16": 60,
    "dpo-float32": 70,
    "flex-bfloat16": 100,
    "engine-bfloat16": 150,
    "engine-float32": 90,
    "memory-float32": 60,
    "plan-float32": 60,
    "plan-bfloat16": 60,
    "run": 130,
    "demo": 420,
    "search": 120,
    "loop": 150,
}
QUICK = ["steps-bfloat16", "dpo-bfloat16", "dpo-float32", "engine-bfloat16"]  # 340 s at most
WAYS = ("tree", "pairs", "trl")
SHAPE = dict(  # of Qwen2.5-0.5B
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    rope_theta=1e6,
)
TINY_SHAPE = dict(
    vocab_size=2000,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)


# Models of random weights


def shape(tiny):
    return TINY_SHAPE if tiny else SHAPE


def random_model(tiny, seed, dtype):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(Qwen2Config(**shape(tiny), tie_word_embeddings=True))
    return model.to(getattr(torch, dtype))


def demo_tokenizer():
    "Any will do: every id is drawn."
    from psr_nb.engine import load_tokenizer
    from psr_nb.files import packaged

    return load_tokenizer(str(packaged("models/demo-m1")))


def saved_models(folder, tiny):
    "Policy and reference as folders, made by the first part that needs them."
    for seed, name in enumerate(("policy", "reference")):
        if not (folder / name).exists():
            random_model(tiny, seed, "bfloat16").save_pretrained(folder / "part")
            demo_tokenizer().save_pretrained(folder / "part")
            (folder / "part").rename(folder / name)
    return str(folder / "policy"), str(folder / "reference")


def release():
    "Give back the memory of what nobody holds any more."
    import torch

    gc.collect()  # a trainer holds itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Step-DPO: trees, pairs and TRL's own trainer


def in_float32():
    "The trainers take bfloat16 on CUDA of themselves; here they are told not to."
    from psr_nb import dpo, sft
    from psr_nb.cli import bench

    def arguments(*args):
        return sft.trainer_arguments(*args) | {"bf16": False}

    bench.trainer_arguments = dpo.trainer_arguments = arguments


def pairs_of_lengths(tiny, lengths):
    "Number of pairs -> the pairs of a trajectory, at the paper's lengths of prompt and step."
    from psr_nb.cli.bench import made_pairs

    prompt, step = (30, 10) if tiny else (150, 62)
    return {L: made_pairs(L, prompt, step, shape(tiny)["vocab_size"]) for L in lengths}


def batches_of(trainer, way, pairs, micro):
    names = ("trajectory_id", "step", "prompt_ids", "chosen_ids", "rejected_ids")
    rows = [{name: getattr(p, name) for name in names} for p in pairs]
    if way != "trl":
        return [trainer.data_collator([{"pairs": rows}])]
    return [trainer.data_collator(rows[i : i + micro]) for i in range(0, len(rows), micro)]


def grad_norm(model):
    import torch

    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).norm().item()


def measured(trainer, way, pairs, times, micro=9):
    "One row's figures of a way; the median of some steps after one that warms up."
    import torch

    from psr_nb.cli.bench import timed_step

    batches = batches_of(trainer, way, pairs, micro)
    try:
        steps = [timed_step(trainer, way, batches, len(pairs)) for _ in range(1 + times)][1:]
    except torch.OutOfMemoryError as e:
        return {f"{way}": f"out of memory: {e}"[:80]}
    # TRL's trainer would divide the gradients of several micro-batches only in its own loop
    norm = grad_norm(trainer.model) if len(batches) == 1 else None
    return {
        f"{way} s": statistics.median(s["seconds"] for s in steps),
        f"{way} GB": steps[-1]["memory"] / 1e9,
        f"{way} loss": steps[-1]["loss"],
        f"{way} grad norm": norm,
    }


def ratios(row):
    "What is to be read off a row that has the figures of the tree and of another way."
    for other in ("pairs", "trl"):
        if f"{other} s" in row and "tree s" in row:
            row[f"{other}/tree s"] = row[f"{other} s"] / row["tree s"]
            row[f"{other}/tree GB"] = row[f"{other} GB"] / row["tree GB"]
            row[f"{other}-tree loss"] = row[f"{other} loss"] - row["tree loss"]


def dpo(say, dtype, tiny, models):
    "A step of each way for each length."
    from psr_nb.cli.bench import bench_trainer

    if dtype == "float32":
        in_float32()
    policy, reference = saved_models(models, tiny)
    lengths = [2, 3] if tiny else [3, 6, 9, 12]
    pairs = pairs_of_lengths(tiny, lengths)
    rows = [{"dtype": dtype, "L": L} for L in lengths]
    for way in WAYS:
        trainer = bench_trainer(way, policy, reference, pairs[lengths[-1]])
        for row in rows:
            row |= measured(trainer, way, pairs[row["L"]], 1 if tiny else 3)
            ratios(row)
            say(rows)
        del trainer
        release()


def flex(say, dtype, tiny, models):
    "Trees with flex_attention, which skips blocks that nothing sees, against the model's own attention."
    from psr_nb.dpo import DPOSettings, step_dpo_trainer

    policy, reference = saved_models(models, tiny)
    lengths = [2, 3] if tiny else [3, 6, 9, 12, 24]
    pairs = pairs_of_lengths(tiny, lengths)
    rows = [{"dtype": dtype, "L": L} for L in lengths]
    for way in ("sdpa", "flex_attention"):
        s = DPOSettings(tree_tokens=1 << 20, attention=way)
        out = Path(tempfile.mkdtemp())
        trainer, *_ = step_dpo_trainer(policy, pairs[lengths[0]], out, s, 0, reference)
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
        trainer.current_gradient_accumulation_steps = 1
        for row in rows:
            row |= measured(trainer, way, pairs[row["L"]], 1 if tiny else 3)
            row[f"{way} as trees"] = trainer.trees
            say(rows)


# The transformers engine: a step of decoding, static batches and continuous ones, too little memory


def without_cudnn():
    "Attention by any of torch's kernels but cuDNN's, which may be planned anew for each length."
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def step_seconds(model, tokenizer, rows, width, steps):
    "Of a decoding step for so many rows, each step at a length that was not seen before."
    from psr_nb.engine import generate
    from psr_nb.engines.transformers import TransformersEngine
    from psr_nb.records import Request, Sampling

    seconds = []
    for limit in (1, 1 + steps):
        e = TransformersEngine(model, tokenizer)
        e.eos = []
        start = time.perf_counter()
        generate(e, [Request([5 + i] * width, Sampling(max_tokens=limit)) for i in range(rows)])
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / steps


def steps(say, dtype, tiny, models):
    "What a decoding step takes without cuDNN's attention, and as torch chooses."
    model, tokenizer, rows = random_model(tiny, 0, dtype), demo_tokenizer(), []
    step_seconds(model, tokenizer, 2, 10, 2)  # loads kernels
    for cudnn in (False, True):
        with contextlib.nullcontext() if cudnn else without_cudnn():
            for number in (1, 16, 64):
                width = (40 if tiny else 300) + 100 * cudnn + number
                row = {"dtype": dtype, "cuDNN": cudnn, "rows": number, "prompt": width}
                seconds = step_seconds(model, tokenizer, number, width, 4 if tiny else 16)
                rows.append(row | {"s/step": seconds})
                say(rows)


def requests(tiny, known):
    "Mixed lengths; where they aren't `known`, each may go to the longest and ends by chance."
    from psr_nb.records import Request, Sampling

    rng = random.Random(0)
    number, shortest, longest, most = (12, 5, 60, 24) if tiny else (128, 50, 600, 128)
    vocabulary = shape(tiny)["vocab_size"]
    out = []
    for i in range(number):
        ids = [rng.randrange(3, vocabulary) for _ in range(rng.randrange(shortest, longest))]
        limit = rng.randrange(max(1, most // 8), most + 1)
        n = 6 if i % 8 == 0 else 1
        out.append(Request(ids, Sampling(n, 1.0, 0.95, limit if known else most, seed=i)))
    return out


def differing(one, other):
    "Completions, those that are not the same, and tokens before they part."
    both = [(a.ids, b.ids) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    before = [len(os.path.commonprefix([a, b])) for a, b in both if a != b]
    return {
        "completions": len(both),
        "differ": len(before),
        "median tokens before": statistics.median(before) if before else None,
    }


def generated(e, name, asked, row, say):
    "Completions of an engine; its figures go into the row as they come."
    import torch

    from psr_nb.engine import generate

    start = time.perf_counter()

    def note():
        row[f"{name} tokens"] = e.usage.output_tokens
        row[f"{name} s"] = time.perf_counter() - start
        row[f"{name} tokens/s"] = row[f"{name} tokens"] / row[f"{name} s"]
        say()

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    out = generate(e, asked, lambda n: note())
    row[f"{name} GB"] = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    note()
    return out


def engine(say, dtype, tiny, models):
    "Static batches against continuous ones, where lengths are known and where completions end by chance."
    import torch

    from psr_nb.engine import generate
    from psr_nb.engines.transformers import TransformersEngine

    model, tokenizer, rows = random_model(tiny, 0, dtype), demo_tokenizer(), []
    with torch.no_grad():
        model.model.norm.weight.mul_(8)  # about as sure of its next token as a trained model is
    ends = set(range(shape(tiny)["vocab_size"] // 40))  # about one token in 40 ends a completion
    generate(TransformersEngine(model, tokenizer), requests(tiny, True)[:4])  # loads kernels
    for known in (False, True) if dtype == "bfloat16" else (True,):
        asked, got = requests(tiny, known), {}
        row = {"dtype": dtype, "lengths": "known" if known else "by chance", "requests": len(asked)}
        rows.append(row)
        for name in ("static", "refill"):
            budget = 600 if tiny else 65536
            e = TransformersEngine(model, tokenizer, refill=name == "refill", max_batch_tokens=budget)
            e.eos = [] if known else ends
            got[name] = generated(e, name, asked, row, lambda: say(rows))
        row["refill/static"] = row["refill tokens/s"] / row["static tokens/s"]
        row |= differing(got["refill"], got["static"])
        say(rows)


@contextlib.contextmanager
def little_memory(spare):
    "No more than so many bytes beside what is there."
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + spare) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def memory(say, dtype, tiny, models):
    "Less memory than a batch wants: smaller batches, and the same completions."
    from psr_nb.engine import generate
    from psr_nb.engines.transformers import TransformersEngine
    from psr_nb.records import Request, Sampling

    model, tokenizer, rows = random_model(tiny, 0, dtype), demo_tokenizer(), []
    asked = [Request(r.prompt_ids, Sampling(6, max_tokens=24)) for r in requests(tiny, True)[:48]]
    for refill in (True, False):
        e = TransformersEngine(model, tokenizer, refill=refill)
        e.eos = []
        want = generate(e, asked)
        e.max_batch_tokens = 1 << 20
        with little_memory(1.0e9), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = generate(e, asked)
        retreats = sum("out of memory" in str(w.message) for w in said)
        row = {
            "dtype": dtype,
            "refill": refill,
            "retreats": retreats,
            "batch tokens": e.max_batch_tokens,
        }
        rows.append(row | differing(got, want))
        say(rows)


# The plan against the card


def a_training(kind, tiny):
    "(function that trains a model, its settings, how the plan sees them, tokens of an update)."
    from psr_nb.dpo import DPOSettings, train_dpo
    from psr_nb.sft import SFTSettings, train_sft
    from psr_nb.studies.costs import Training

    usual = dict(epochs=1, batch_size=16, micro_batch=8, gradient_checkpointing=True)
    length, vocabulary = (64, 60) if tiny else (512, 60)  # ids that the demo's tokenizer has
    if kind == "sft":
        rows = [([5] * (length // 2), [6 + i % 50] * (length // 2)) for i in range(64)]
        how = Training(8 * length, checkpointing=True)
        return train_sft, rows, SFTSettings(**usual), how, 16 * length
    from psr_nb.cli.bench import made_pairs

    made = [made_pairs(2, length // 4, length // 8, vocabulary, i) for i in range(32)]
    pairs = [replace(p, trajectory_id=f"t{i}") for i, both in enumerate(made) for p in both]
    nodes = length // 4 + 2 * 2 * length // 8  # of a tree with two pairs
    s = DPOSettings(**usual, tree_tokens=4 * nodes, precompute_reference=False)
    how = Training(4 * nodes, 0, True, scored_by_reference=True, reference_held=True)
    return train_dpo, pairs, s, how, 8 * nodes


def plan(say, dtype, tiny, models):
    "Peak memory and rate of trainings with weights of a type, planned and measured."
    import torch

    from psr_nb.sft import HardwareSettings, on_hardware
    from psr_nb.studies.costs import GIB, model_shape, training_flops, training_memory

    policy, rows, cuda = saved_models(models, tiny)[0], [], torch.cuda.is_available()
    on_hardware(HardwareSettings(gpus=1, dtype=dtype))
    for kind in ("sft", "dpo"):
        train, data, s, how, tokens = a_training(kind, tiny)
        how = replace(how, mixed=cuda, number=4 if dtype == "float32" else 2)
        release()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        ends = []
        out = Path(tempfile.mkdtemp(dir=models)) / "out"
        train(policy, data, out, s, progress=lambda *_, ends=ends: ends.append(time.time()))
        held = torch.cuda.max_memory_allocated() / GIB if cuda else float("nan")
        planned = sum(training_memory(model_shape(policy), how).values())
        flops = training_flops(model_shape(policy), tokens, 256, how)
        seconds = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
        row = {"training": kind, "dtype": dtype, "planned GiB": planned, "measured GiB": held}
        rows.append(row | {"update s": seconds, "FLOP/s": flops / seconds})
        say(rows)


# The command


def psr_nb(*args, meanwhile=lambda: None):
    "Standard output of the `psr_nb` command. RuntimeError if it fails."
    command = [sys.executable, "-c", "from psr_nb.cli.main import main; main()", *args]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while True:
        try:
            out = child.communicate(timeout=5)[0]
            break
        except subprocess.TimeoutExpired:
            meanwhile()
    if child.returncode:
        raise RuntimeError(f"psr_nb {' '.join(args)} ended with {child.returncode}")
    return out


def phases(folder):
    "Model -> the phases that were timed so far."
    return {
        str(f.parent.relative_to(folder)): [json.loads(line) for line in f.read_text().splitlines()]
        for f in sorted(folder.rglob("phases.jsonl"))
    }


def whole_run(say, *command):
    "A run to its end: the time of it and of its phases, and the accuracy of every model, as they come."
    folder = Path(tempfile.mkdtemp())
    start = time.perf_counter()

    def so_far():
        found = sorted(folder.rglob("metrics.json"))
        say([json.loads(f.read_text()) for f in found], phases=phases(folder))

    try:
        psr_nb(*command, "--out", str(folder), meanwhile=so_far)
    except RuntimeError:
        log = folder / "jobs.log"
        print(log.read_text()[-3000:] if log.exists() else "no log", file=sys.stderr)
        raise
    seconds = time.perf_counter() - start
    report = json.loads(psr_nb("report", str(folder), "--json"))
    rows = []
    for arm, models in report["arms"].items():
        rows += [{"arm": arm, "model": model} | figures for model, figures in models.items()]
    say(rows, seconds=seconds, phases=phases(folder))
    shutil.rmtree(folder)


def run(say, tiny):
    whole_run(say, "run", "fast")


def demo(say, tiny):
    if tiny:
        whole_run(say, "run", "fast", "--set", "questions=[12]")
    else:
        whole_run(say, "demo")


def search(say, tiny):
    few = ["--limit", "2", "--busy", "2", "--w", "2"] if tiny else ["--limit", "6", "--busy", "96"]
    lengths = ["--max-steps", "7", "--max-step-tokens", "26", "--max-tokens", "90"]
    figures = json.loads(psr_nb("bench", "search", "--json", *few, *lengths))
    rows = [{"way": name} | row for name, row in figures.pop("ways").items()]
    say(rows, **figures)


def loop(say, tiny):
    limit = ["--limit", "2" if tiny else "16"]
    lengths = ["--max-steps", "7", "--max-step-tokens", "26", "--max-tokens", "90"]
    figures = json.loads(psr_nb("bench", "loop", "--json", *limit, *lengths))
    rows = [{"phase": name} | row for name, row in figures.pop("phases").items()]
    say(rows, **figures)


# All of it


@dataclass
class Place:
    "Where the parts write, and how large they are."

    out: Path  # of the results
    models: Path  # of the models that parts share
    tiny: bool


def machine():
    import torch

    names = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
    cuda = torch.cuda.is_available()
    return {
        "date": date.today().isoformat(),
        "card": torch.cuda.get_device_name() if cuda else "cpu",
        "card GB": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else None,
        "CUDA": torch.version.cuda,
        "python": sys.version.split()[0],
    } | {name: importlib.metadata.version(name) for name in names}


def one_part(name, place):
    "In the process of the part: what it says is written at once."
    start, on = time.time(), machine()

    def say(rows, **more):
        whole = {"part": name, "on": on, "so far s": time.time() - start, "rows": rows} | more
        (place.out / f"{name}.part").write_text(json.dumps(whole, indent=1))
        os.replace(place.out / f"{name}.part", place.out / f"{name}.json")

    kind, _, dtype = name.partition("-")
    typed = {"dpo": dpo, "flex": flex, "steps": steps, "engine": engine, "memory": memory, "plan": plan}
    whole = {"run": run, "demo": demo, "search": search, "loop": loop}
    if dtype:
        typed[kind](say, dtype, place.tiny, place.models)
    else:
        whole[kind](say, place.tiny)


def in_a_process(name, place):
    "How a part ended: '' if well."
    command = [sys.executable, __file__, "--out", str(place.out), "--models", str(place.models)]
    tiny = ["--tiny"] if place.tiny else []
    child = subprocess.Popen([*command, "--only", name, *tiny], start_new_session=True)
    try:
        code = child.wait(PARTS[name])
        return f"ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"not over after {PARTS[name]} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with what it started
        child.wait()


def shown(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(rows):
    "Markdown."
    plain = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    lines = [names, ["---"] * len(names)] + [
        [shown(row.get(name, "")) for name in names] for row in plain
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_results(out, ends):
    "A table for each part, and how it ended."
    print(json.dumps(machine()))
    for name, how in ends.items():
        print(f"\n## {name} ({how})")
        file = out / f"{name}.json"
        if file.exists():
            print(table(json.loads(file.read_text())["rows"]))


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    known = f"{', '.join(PARTS)}; default: {', '.join(QUICK)}"
    p.add_argument("parts", nargs="*", metavar="PART", help=known)
    p.add_argument("--out", type=Path, default=Path("gpu-results"))
    p.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    p.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--only", help=argparse.SUPPRESS)
    args = p.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        p.error(f"no such part: {', '.join(unknown)}")
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        one_part(args.only, Place(args.out, args.models, args.tiny))
        return
    place, ends = Place(args.out, Path(tempfile.mkdtemp()), args.tiny), {}
    for name in args.parts or QUICK:
        (args.out / f"{name}.json").unlink(missing_ok=True)  # of an earlier time
        start = time.time()
        how = in_a_process(name, place)
        ends[name] = f"{time.time() - start:.0f} s" + (f", {how}" if how else "")
        print(f"== {name}: {ends[name]}", file=sys.stderr, flush=True)
    shutil.rmtree(place.models)
    print_results(args.out, ends)
    (args.out / "parts.json").write_text(json.dumps({"on": machine(), "parts": ends}, indent=1))
    sys.exit(any("," in how for how in ends.values()))


if __name__ == "__main__":
    main()
