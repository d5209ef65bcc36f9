"""The second protocol: the loop on Qwen2.5-Coder-0.5B and SVAMP, on a CPU or a GPU, in pieces.

    python tests/gpu_real_svamp.py --model models/qwen0.5b --data DATA --work runs/svamp --out runs/results
    python tests/gpu_real_svamp.py --bring FOLDER --work runs/svamp --out runs/results --seconds 540
    python tests/gpu_real_svamp.py --tiny --work WORK --out OUT      a rehearsal in two minutes

The second is for a card that is lent for minutes, on a machine without a network: FOLDER is what
gpu_real_model.py makes, and what there is after so many seconds is among the results. The same command goes
on where it was stopped. What is asked and what decides is in nbs/tutorials/real_model.ipynb. DATA has
svamp_test.jsonl, gsm8k_train.jsonl and gsm8k_test.jsonl.
What this file adds, because it is more than a recipe can say:

1. SVAMP's 1,000 questions in the order of their file: 300 to search, 200 to look at beforehand, 500
   to test.
2. The rows that teach M1, all from GSM8K's training questions in the order of a shuffle with seed
   0: solutions in steps (IFT); pairs of a right and a wrong next step (EFT) that M0 writes itself,
   as in tests/gpu_real.py; pairs of which one ends a solution and the other doesn't; pairs with one
   number changed. The explanation before a verdict is the step of the worked solution. The pairs
   that test the judge are made alike from GSM8K's test questions.
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import gpu_real

RECIPE = Path(__file__).parent.parent / "data" / "recipes" / "qwen2.5-coder-0.5b-svamp.yaml"
BOXED = " The answer is \\boxed"


@dataclass(frozen=True)
class Sizes:
    "Questions of each kind, and rows."

    search: int = 300
    dev: int = 200
    test: int = 500
    ift: int = 600
    changed: int = 300
    ends: int = 120
    sampled: int = 600
    own: int = 600  # rows of M0's own steps at most
    judge_test: int = 200  # rows


TINY = Sizes(search=16, dev=4, test=12, ift=200, changed=40, ends=20, sampled=12, own=20, judge_test=8)
TINY_SETTINGS = {
    "questions": "[6, 6]",
    "arms": "[judge, random, solutions]",  # a model that solves nothing leaves `truth` without a pair
    "sft.learning_rate": 4e-3,
    "sft.epochs": 2,
    "sft.lora_rank": 0,  # nothing can be added to weights that know nothing
    "search.max_steps": 4,
    "search.max_step_tokens": 40,
    "search.rollouts": 2,
    "dpo.batch_size": 4,
    "evaluate.max_tokens": 90,
    "gates.action": "warn",
    "gates.live_questions": 2,
    "engine.kind": "transformers",
}


def explained(row, gold: str):
    "An EFT row whose explanation is the step of the worked solution."
    return replace(row, explanation=f"A right step: {gold}")


def changed_pairs(solutions: list) -> list:
    "EFT rows of a step and the same with one number changed."
    from psr_nb.domains.maths import MATH
    from psr_nb.questions.solutions import simple_eft

    rng = random.Random(0)
    rows = [row for s in solutions for row in simple_eft(s, rng, MATH)]
    return [explained(row, row.a if row.verdict == "A" else row.b) for row in rows]


def ending_pairs(s, rng: random.Random) -> list:
    "Two EFT rows of a step that ends where it should, or goes on where it should, and one that doesn't."
    from psr_nb.domains.maths import MATH
    from psr_nb.records import EFTRow

    k = rng.choice([len(s.steps) - 1, rng.randrange(len(s.steps))])
    good, value = s.steps[k], gpu_real.result(s.steps[k])
    if k == len(s.steps) - 1:
        bad = good.split(BOXED)[0]
    else:
        bad = None if value is None else f"{good} {MATH.conclude(f'{value:.12g}')}"
    if not bad or bad == good:
        return []
    shown = (("A", good, bad), ("B", bad, good))
    rows = [
        EFTRow(f"{s.id}/end/{v}", s.question, s.steps[:k], a, b, v, "", "an end") for v, a, b in shown
    ]
    return [explained(row, good) for row in rows]


def own_pairs(engine, solutions: list, samples: int, seed: int) -> list:
    "EFT rows of steps that M0 writes, explained by the solution's."
    steps = {s.id: s.steps for s in solutions}
    rows = gpu_real.sampled_pairs(engine, solutions, samples, seed)
    return [explained(r, steps[r.id.rsplit("/m0/", 1)[0]][len(r.steps)]) for r in rows]


def mixed(own: list, ends: list, changed: list, limit: int) -> list:
    "Rows of all three kinds, at most half of them M0's own, in an order by lot; pairs stay together."
    own = own[: limit // 2 // 2 * 2]
    rest = ends[: limit // 8 * 2] + changed
    rows = own + rest[: limit - len(own)]
    pairs = [rows[i : i + 2] for i in range(0, len(rows) - 1, 2)]
    random.Random(0).shuffle(pairs)
    return [row for pair in pairs for row in pair]


def solutions_of(problems: list) -> list:
    from psr_nb.domains.maths import MATH
    from psr_nb.questions.solutions import ift_from_solution

    return [row for p in problems if (row := ift_from_solution(p, MATH))]


def questions(place, data: Path | None, size: Sizes) -> dict:
    "Name -> problems: `search`, `dev` and `test` of SVAMP, `train` and `held` of GSM8K, or made-up ones."
    from psr_nb.questions.read import load_problems

    if place.tiny:
        for name, n, seed in (("svamp_test", 32, 5), ("gsm8k_train", 400, 2), ("gsm8k_test", 40, 3)):
            rows = gpu_real.made_up(n, seed)
            (place.work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = place.work
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which of SVAMP's columns were taken
        svamp, train, held = (
            load_problems(str(data / f"{name}.jsonl"))
            for name in ("svamp_test", "gsm8k_train", "gsm8k_test")
        )
    first, then = size.search, size.search + size.dev
    random.Random(0).shuffle(train)
    out = {"search": svamp[:first], "dev": svamp[first:then], "test": svamp[then : then + size.test]}
    return out | {"train": train, "held": held}


def taught(engine, train: list, held: list, size: Sizes) -> dict[str, list]:
    "IFT, EFT and judge test rows from solutions."
    samples, rng, at, parts = 6, random.Random(1), 0, {}
    for name in ("ift", "changed", "ends", "sampled"):
        parts[name] = train[at : at + getattr(size, name)]
        at += getattr(size, name)
    ends = [row for s in parts["ends"] for row in ending_pairs(s, rng)]
    own = own_pairs(engine, parts["sampled"], samples, 0)[: size.own]
    eft = mixed(own, ends, changed_pairs(parts["changed"]), 2 * size.own + 2 * size.changed)
    third = size.judge_test
    more = [row for s in held[third : 2 * third] for row in ending_pairs(s, rng)]
    other = changed_pairs(held[2 * third : 3 * third])
    test = mixed(own_pairs(engine, held[:third], samples, 1), more, other, size.judge_test)
    return {"ift": parts["ift"], "eft": eft, "judge_test": test}


def make_rows(place, m0: Path, data: Path | None, size: Sizes):
    "All data files, once: a run that goes on finds them as they were."
    from psr_nb.engine import EngineSettings
    from psr_nb.engines.choose import open_engine

    told = place.work / "data" / "made.json"
    if told.exists():
        return
    found = questions(place, data, size)
    engine = open_engine(str(m0), EngineSettings(kind="transformers" if place.tiny else "auto"))
    rows = taught(engine, solutions_of(found["train"]), solutions_of(found["held"]), size)
    engine.close()
    for name in ("search", "dev", "test"):
        gpu_real.write(place, name, found[name])
    for name, made in rows.items():
        gpu_real.write(place, name, made)
    counts = {name: len(made) for name, made in rows.items()}
    own = sum(row.source == "written by M0" for row in rows["eft"])
    told.write_text(json.dumps(counts | {"of M0's steps": own}) + "\n")
    print(told.read_text(), end="", flush=True)


def run_command(place, m0: Path, more: list[str]) -> list[str]:
    settings = {f"data.{name}": place.data(name) for name in ("ift", "eft", "judge_test")}
    settings |= TINY_SETTINGS if place.tiny else {}
    changes = [x for name, value in settings.items() for x in ("--set", f"{name}={value}")]
    files = ["--model", m0, "--questions", place.data("search"), "--test", place.data("test")]
    return gpu_real.psr("run", RECIPE, "--out", place.work / "run", *files, *changes, *more)


def eval_command(place, m0: Path) -> list[str]:
    most = ["--max-tokens", 90 if place.tiny else 256]
    most += ["--engine", "transformers"] * place.tiny
    bench = ["--bench", f"test={place.data('test')}", "--out", place.work / "eval-m0"]
    return gpu_real.psr("eval", "--model", f"M0={m0}", *bench, *most)


def brought(place) -> Path:
    "The folder of what was brought, unpacked; M0 is made of it."
    data = place.work / "brought"
    data.mkdir(exist_ok=True)
    for file in place.bring.glob("*.jsonl.gz"):
        (data / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    if not place.m0.exists():
        gpu_real.brought_model(place)
    return data


def run_both(place, m0: Path, more: list[str], until: float | None) -> int:
    "The run and M0's evaluation: one after the other, or both until some time; 0 if all went well."
    run, evaluation = run_command(place, m0, more), eval_command(place, m0)
    if until is None:
        code = subprocess.run(run).returncode
        return subprocess.run(evaluation).returncode or code
    commands = {"run": run, "eval-m0": evaluation}
    children = {name: gpu_real.started(place, name, command) for name, command in commands.items()}
    return int(gpu_real.failed(gpu_real.waited(place, children, until)))


def everything(place, m0: Path | None, data: Path | None, more: list[str], seconds: float | None) -> int:
    "Rows, the run, M0 beside it, and all that they wrote among the results; 0 if all went well."
    until = None if seconds is None else time.time() + seconds
    for folder in (place.work, place.out):
        folder.mkdir(parents=True, exist_ok=True)
    if place.tiny and not place.m0.exists():
        gpu_real.tiny_model(place)
    if place.bring:
        data = brought(place)
    m0, code = m0 or place.m0, 1
    try:
        make_rows(place, m0, data, TINY if place.tiny else Sizes())
        code = run_both(place, m0, more, until)
    finally:
        gpu_real.collect(place)
        found = gpu_real.results(place)
        (place.out / "results.json").write_text(json.dumps(found, indent=1))
        gpu_real.show(found)
    return code


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", type=Path, help="folder of M0, as `make qwen0.5b` writes it")
    p.add_argument("--data", type=Path, help="folder of SVAMP's and GSM8K's files")
    p.add_argument("--work", type=Path, required=True, help="rows and the run")
    p.add_argument("--out", type=Path, required=True, help="results, without weights")
    p.add_argument("--bring", type=Path, help="folder of the model's parts and the questions")
    p.add_argument("--seconds", type=float, help="after which all stops")
    p.add_argument("--set", action="append", default=[], help="a setting, as for psr_nb run")
    p.add_argument("--tiny", action="store_true", help="a small made-up model and questions")
    args = p.parse_args()
    if not (args.tiny or args.bring or (args.model and args.data)):
        p.error("--model and --data are needed, or --bring, or --tiny")
    place = gpu_real.Place(args.bring, args.work, args.out, args.tiny)
    more = [x for change in args.set for x in ("--set", change)]
    sys.exit(everything(place, args.model, args.data, more, args.seconds))


if __name__ == "__main__":
    main()
