"A fleet's worker that runs out of memory: a sentence with the setting to change, and no end of the others."

import multiprocessing
import os
import signal
import subprocess
import time
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from instant_engine import MODEL, InstantEngine

from psr_nb.engine import EngineError, EngineSettings, generate, load_tokenizer
from psr_nb.engines.fleet import Fleet, worker
from psr_nb.records import Request, Sampling

OF_VLLM = (
    "vLLM's process ended with 1 requests under way: it ran out of memory; take less engine.gpu_memory"
)
HUNGRY = 7  # a prompt that begins with this id takes all memory
LESS = (
    "take a smaller engine.max_batch_tokens with transformers, "
    "engine.max_seqs or engine.gpu_memory with vLLM"
)


class Forked:
    "A worker's process as a copy of this one, which has its imports."

    def __init__(self, pipe):
        self.process = multiprocessing.get_context("fork").Process(
            target=worker, args=(pipe,), daemon=True
        )
        self.process.start()

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def kill(self):
        self.process.kill()


def forked(number, replicas, settings):
    "Worker and pipe, as a fleet's `start`."
    ours, theirs = Pipe()
    process = Forked(theirs)
    theirs.close()
    return process, ours


def of_torch():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 79.1 GiB")


def of_python():
    raise MemoryError


def of_vllm():
    raise EngineError(OF_VLLM)


def of_the_system():
    os.kill(os.getpid(), signal.SIGKILL)


def hungry(fault, model, settings):
    "The instant engine, with a fault at a prompt of its own."
    engine = InstantEngine()
    answer = engine._answer
    engine._answer = lambda request: fault() if request.prompt_ids[0] == HUNGRY else answer(request)
    return engine


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (of_torch, f"out of memory: {LESS}"),
        (of_python, f"out of memory: {LESS}"),
        (of_vllm, OF_VLLM),
        (of_the_system, f"exit status -9: if the system killed it for its memory, {LESS}"),
    ],
)
def test_a_request_that_takes_all_memory_is_given_up(fault, told):
    settings, tok = EngineSettings(kind="transformers"), load_tokenizer(MODEL)
    fleet = Fleet(partial(hungry, fault), MODEL, settings, tokenizer=tok, start=forked)
    requests = [Request([first, 5, 5], Sampling(n=2)) for first in (5, 6, HUNGRY, 8, 9, 10)]
    with pytest.warns(UserWarning) as said:
        out = generate(fleet, requests)
    fleet.close()
    deaths, [given_up] = [str(w.message) for w in said][:-1], [str(w.message) for w in said][-1:]
    assert all(f"an engine of the fleet died ({told}); " in d for d in deaths) and 2 <= len(deaths) <= 3
    assert "request 2: " in given_up and "it is given up" in given_up and fleet.given_up == 1
    assert [[bool(c.ids) for c in cs] for cs in out] == [[i != 2] * 2 for i in range(6)]


def starving(model, settings):
    "No engine: there is no memory for its weights."
    of_torch()


def test_want_of_memory_at_the_start_is_told():
    with pytest.raises(EngineError, match="could not be started: out of memory: take a smaller engine"):
        Fleet(starving, MODEL, EngineSettings(kind="transformers"), tokenizer=object(), start=forked)


def with_a_process(model, settings):
    "The instant engine, with a process below it, as vLLM's has, whose number it writes down."
    started = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    Path(os.environ["STARTED"]).write_text(str(started.pid))
    return InstantEngine()


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_what_an_engine_has_started_ends_with_it(tmp_path, monkeypatch, how):
    monkeypatch.setenv("STARTED", str(tmp_path / "pid"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    settings, tok = EngineSettings(kind="transformers"), load_tokenizer(MODEL)
    fleet = Fleet(with_a_process, MODEL, settings, replicas=1, tokenizer=tok)
    generate(fleet, [Request([5, 5, 5], Sampling(n=2))])
    first = int((tmp_path / "pid").read_text())
    assert alive(first)
    if how == "killed":
        os.kill(fleet.workers[0].process.pid, signal.SIGKILL)
        with pytest.warns(UserWarning, match="an engine of the fleet died"):
            generate(fleet, [Request([5, 5, 5], Sampling(n=2))])
        assert not alive(first) and alive(int((tmp_path / "pid").read_text()))
    fleet.close()
    time.sleep(0.2)
    assert not alive(first) and not alive(int((tmp_path / "pid").read_text()))
