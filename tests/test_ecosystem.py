"What is written here is read elsewhere: by trackers, datasets, TRL, and another evaluation harness."

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from psr_nb.engine import load_tokenizer
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.records import StepPair

RUN = Path(__file__).parent / "fixtures" / "run"  # as a run of the demo in miniature kept it
M1 = str(packaged("models/demo-m1"))
SMALL = dict(batch_size=4, micro_batch=4, epochs=1, learning_rate=1e-4)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    "A dozen pairs as a run keeps them."
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [json.loads(line) for line in (RUN / "M2" / "pairs.jsonl").read_text().splitlines()[:12]]
    write_jsonl(path, rows)
    return path


@pytest.mark.slow
def test_a_tracker_is_told_of_both_trainings(tmp_path, pairs):
    "TensorBoard's files have every loss, outlive the training, and are written only if they are asked for."
    if not (find_spec("tensorboardX") or find_spec("tensorboard")):
        pytest.skip("tensorboardX is not installed")
    from psr_nb.dpo import DPOSettings, train_dpo
    from psr_nb.sft import SFTSettings, train_sft

    text = load_tokenizer(M1)("Step 1: 2 + 2 = 4.").input_ids
    rows = [(text, [0] + [1] * (len(text) - 1))] * 8
    made = read_jsonl(pairs, StepPair)
    for told in ("none", "tensorboard"):
        given = SMALL | {"report_to": told}
        train_sft(M1, iter(rows), tmp_path / told / "sft" / "model", SFTSettings(**given))
        train_dpo(M1, made, tmp_path / told / "dpo" / "model", DPOSettings(**given))
    assert not list((tmp_path / "none").rglob("*tfevents*"))
    for kind in ("sft", "dpo"):
        [events] = (tmp_path / "tensorboard" / kind / "tensorboard").rglob("*tfevents*")
        assert b"train/loss" in events.read_bytes()


@pytest.mark.slow
def test_pairs_and_trajectories_are_data_sets(tmp_path):
    "`load_dataset` reads what a run keeps, as it is."
    code = (
        "import sys; from datasets import load_dataset\n"
        "for path in sys.argv[1:]:\n"
        "    rows = load_dataset('json', data_files=path, split='train')\n"
        "    print(len(rows), *sorted(rows.column_names))\n"
    )
    files = [RUN / "M2" / name for name in ("pairs.jsonl", "trajectories.jsonl", "evaluation.jsonl")]
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, env=env
    )
    assert out.returncode == 0, out.stderr
    for path, line in zip(files, out.stdout.splitlines(), strict=True):
        assert int(line.split()[0]) == len(path.read_text().splitlines())
    assert {"prompt_ids", "chosen", "rejected"} <= set(out.stdout.splitlines()[0].split())


@pytest.mark.slow
def test_pairs_train_with_plain_trl(tmp_path, pairs):
    "What TRL's DPOTrainer takes is the prompt as text beside chosen and rejected."
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = load_dataset("json", data_files=str(pairs), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(M1)
    rows = rows.map(lambda row: {"prompt": tokenizer.decode(row["prompt_ids"])})
    rows = rows.select_columns(["prompt", "chosen", "rejected"])
    config = DPOConfig(
        str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(M1),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


HARNESS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

tasks, task, model = sys.argv[1:]
found = simple_evaluate(
    model="hf",
    model_args={"pretrained": model, "dtype": "float32"},
    tasks=[task],
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
    batch_size=16,
    device="cpu",
    bootstrap_iters=0,
)
rows = {s["doc"]["id"]: [s["resps"][0][0], s["acc"]] for s in found["samples"][task]}
print(json.dumps([found["results"][task]["acc,none"], rows]))
"""


@pytest.fixture
def with_harness(tmp_path) -> str:
    """A Python that has lm-evaluation-harness beside what is installed here.

    Here, its scikit-learn would be imported by transformers, which costs every process a second."""
    there, here = tmp_path / "venv", Path(pytest.__file__).parents[1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", there], check=True)
    [packages] = there.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")
    python = str(there / "bin" / "python")
    install = ["install", "-q", "--disable-pip-version-check", "lm-eval==0.4.13"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return python


@pytest.mark.slow
def test_another_harness_finds_the_same_accuracy(tmp_path, with_harness):
    "lm-evaluation-harness writes every solution of the demo's M1 as we do, and grades it the same."
    from psr_nb.domains.arithmetic import ARITHMETIC
    from psr_nb.evaluate import EvalRow, EvalSettings, Solving
    from psr_nb.evaluation.harness import write_task
    from psr_nb.evaluation.models import evaluate_models

    bench = f"arithmetic={packaged('demo/test.jsonl')}"
    task = write_task(bench, tmp_path / "tasks", "arithmetic", limit=60, max_tokens=110)
    command = [with_harness, "-c", HARNESS, str(tmp_path / "tasks"), task, M1]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy, theirs = json.loads(done.stdout.splitlines()[-1])
    greedy = Solving(ARITHMETIC, EvalSettings(110))
    ours = evaluate_models({"M1": M1}, [bench], tmp_path / "ours", greedy, limit=60)
    assert accuracy == ours["M1"]["arithmetic"]["accuracy"]
    rows = read_jsonl(tmp_path / "ours" / "M1" / "arithmetic.jsonl", EvalRow)
    assert len(rows) == len(theirs) == 60
    for row in rows:
        assert theirs[row.id] == [row.completions[0].removeprefix("Step 1:"), float(row.equal)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["run fast --set model=org/name", "eval --model org/name --bench sums=FILE --domain arithmetic"],
)
def test_without_a_network_the_hub_is_not_waited_for(command, tmp_path):
    "One line, at once: the hub's library would try for half a minute."
    from time import monotonic

    proxies = ("https_proxy", "all_proxy", "http_proxy", "hf_hub_offline")
    env = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    env |= {"HF_ENDPOINT": "https://nowhere.invalid", "HF_HOME": str(tmp_path)}
    asked = command.replace("FILE", str(packaged("demo/test.jsonl"))).split()
    code = "import sys; from psr_nb.cli.main import main; main(sys.argv[1:])"
    start = monotonic()
    out = subprocess.run(
        [sys.executable, "-c", code, *asked, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert (out.returncode, out.stderr.count("\n")) == (2, 1), out.stderr
    assert "org/name" in out.stderr and monotonic() - start < 30
