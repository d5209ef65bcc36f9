import fcntl
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run by `make slow`")


@pytest.fixture(autouse=True)
def _the_hub_is_looked_for_anew():
    "A command that finds no hub notes it in the environment, and no other test may see that."
    before = os.environ.get("HF_HUB_OFFLINE")
    yield
    os.environ.pop("HF_HUB_OFFLINE", None)
    if before is not None:
        os.environ["HF_HUB_OFFLINE"] = before


@pytest.fixture
def psr():
    "Run the `psr_nb` command as a user does: `psr('run', 'fast')` gives a finished process."

    def call(*args, **kw):
        kw.setdefault("timeout", 600)
        return subprocess.run(
            [str(Path(sys.executable).parent / "psr_nb"), *map(str, args)],
            capture_output=True,
            text=True,
            **kw,
        )

    return call


@pytest.fixture
def here(monkeypatch) -> list[str]:
    "The names of jobs that were run, in this process; training copies the model, for it is not tested here."
    import psr_nb.run
    import psr_nb.studies.sweep
    import psr_nb.work

    done = []

    def job(function, arguments, log, progress=lambda *_: None, *_, **__):
        module, _, name = function.partition(":")
        done.append(f"{name} {arguments.get('arm')} M{arguments.get('n')}")
        return getattr(importlib.import_module(module), name)(**arguments, progress=progress)

    def train(model, pairs, out, *_, **__):
        shutil.copytree(model, out)

    monkeypatch.setattr(psr_nb.run, "run_job", job)
    monkeypatch.setattr(psr_nb.studies.sweep, "run_job", job)
    monkeypatch.setattr(psr_nb.work, "train_dpo", train)
    return done


@pytest.fixture(scope="session")
def smollm2() -> Path:
    "SmolLM2-135M-Instruct, from its wheel."
    root = Path(__file__).resolve().parent.parent
    with open(
        Path(tempfile.gettempdir()) / f"psr-smollm2-{os.getuid()}.lock", "w"
    ) as lock:  # test processes come at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "models" / "smollm2" / "tokenizer.json").exists():
            subprocess.run(
                ["make", "smollm2", f"VENV={Path(sys.executable).parent.parent}"], cwd=root, check=True
            )
    return root / "models" / "smollm2"
