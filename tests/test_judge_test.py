"The judge that a run tests is the one that it searches with: verdicts of one kind, by the same settings."

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import psr_nb.work
from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.engine import RecordedEngine, load_tokenizer, says
from psr_nb.evaluate import evaluate_judge
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import Target, open_run
from psr_nb.judge import JudgeSettings
from psr_nb.recipe import load_recipe
from psr_nb.records import Completion, EFTRow

TOKENIZER = load_tokenizer(str(packaged("models/demo-m1")))
SETTINGS = {
    "start": "M1",
    "questions": [2],
    "arms": ["judge"],
    "data.test_limit": 4,
    "data.judge_test_limit": 4,
}


class Asked(RecordedEngine):
    "Writes verdicts for A, scores B as the likelier, and counts both kinds of requests."

    def __init__(self):
        super().__init__(TOKENIZER, self.answer)
        self.written = self.scored = 0

    def answer(self, request):
        if request.sampling.among:
            self.scored += 1
            return [Completion([request.sampling.among[1]], "B", "length", [-0.9, -0.5])]
        self.written += 1
        return says(TOKENIZER, " B is wrong. [[A]]")


@pytest.mark.parametrize(
    "verdict, written, scored, said",
    [("explained", 1, 0, "A"), ("short", 0, 1, "B"), ("weighed", 1, 1, "B")],
)
def test_a_run_tests_the_judge_that_it_uses(tmp_path, monkeypatch, verdict, written, scored, said):
    run = open_run(tmp_path, load_recipe("fast", **SETTINGS | {"judge.verdict": verdict}))
    pairs, engine = len(read_jsonl(run.data("judge_test"), EFTRow)), Asked()
    monkeypatch.setattr(psr_nb.work, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(psr_nb.work, "accuracy", lambda _: {})
    (run.path / "M1").mkdir(exist_ok=True)
    psr_nb.work._measure(Target(run, "judge", 1), engine, lambda *_: None)
    rows = [json.loads(line) for line in (run.path / "M1/judge_test.jsonl").read_text().splitlines()]
    assert pairs and len(rows) % 2 == 0
    assert (engine.written, engine.scored) == (written * len(rows), scored * len(rows))
    assert {r["verdict"] for r in rows} == {said} and all(
        ("logprobs" in r) == bool(scored) for r in rows
    )


def test_a_judge_test_from_before_log_probabilities_is_continued(tmp_path: Path):
    pairs = read_jsonl(packaged("demo/judge_test.jsonl"), EFTRow)[:4]
    short, file = JudgeSettings(verdict="short"), tmp_path / "judge_test.jsonl"
    whole = evaluate_judge(Asked(), pairs, ARITHMETIC, file, short)
    older = [{k: v for k, v in asdict(row).items() if k != "logprobs"} for row in whole[:1]]
    write_jsonl(file, older)
    engine = Asked()
    again = evaluate_judge(engine, pairs, ARITHMETIC, file, short)
    assert engine.scored == len(whole) - 1 and [r.verdict for r in again] == [r.verdict for r in whole]
    assert again[0].logprobs is None and again[1].logprobs == [-0.9, -0.5]
