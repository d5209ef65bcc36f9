"A run of any size with any text, in the layout of a real one: for tests and benchmarks of the dashboard."

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import yaml

from psr_nb.files import write_whole
from psr_nb.records import SCHEMA, Candidate, Judgement, Step, Trajectory

FIGURES = {
    "accuracy": 0.5,
    "accuracy_low": 0.4,
    "accuracy_high": 0.6,
    "n": 100,
    "unread": 0,
    "steps_per_solution": 5.0,
    "tokens_per_step": 20.0,
    "pairs": 0,
}


def made_up_step(k: int, last: bool, w: int, text: Callable[[], str], judge: Callable[[], str]) -> Step:
    "A round at depth k of w candidates; its verdicts follow from the candidates' places."
    candidates = [Candidate([k, i], text(), last, 1) for i in range(w)]
    asked = [(a, b) for a in range(w) for b in range(w) if a != b]
    judgements = [Judgement(a, b, "AB"[(a * 7 + b * 5 + k) % 2], judge()) for a, b in asked]
    winners = [j.a if j.verdict == "A" else j.b for j in judgements]
    scores = [float(winners.count(i)) for i in range(w)]
    best = max(range(w), key=scores.__getitem__)
    worst = min(range(w), key=scores.__getitem__)
    if scores[best] > scores[worst]:
        return Step(k, 0, [1], candidates, judgements, scores, "pair", best, worst)
    return Step(k, 0, [1], candidates, judgements, scores, "skipped tie", best)


def made_up_search(
    id: str, question: str, steps: int, w: int, text: Callable[[], str], judge: Callable[[], str]
) -> Trajectory:
    "A search that ends with an answer after `steps` rounds."
    rounds = [made_up_step(k, k == steps, w, text, judge) for k in range(1, steps + 1)]
    return Trajectory(id, question, [1, 2], rounds, "answered", answer="1", output_tokens=steps * w * 10)


def write_recipe(path: Path, shares: list[list[str]]):
    "The recipe of a run that searched these questions, one list an iteration."
    recipe = {
        "name": "made-up",
        "model": "none",
        "domain": "arithmetic",
        "questions": [len(share) for share in shares],
    }
    write_whole(
        path / "recipe.yaml", yaml.safe_dump({"schema": SCHEMA, "versions": {}, "recipe": recipe})
    )


def made_up_run(
    path: str | Path,
    problems: list[str],  # questions, dealt out over the iterations in their order
    steps: int = 4,  # of each search
    w: int = 6,  # candidates of each step
    iterations: int = 1,
    text: Callable[[], str] = lambda: "1+1=2",  # called once a candidate
    judge: Callable[[], str] = lambda: "A is right. [[A]]",  # called once a comparison
) -> Path:
    "Write a run whose candidates and judgements have the texts that `text()` and `judge()` give. No models."
    path = Path(path)
    size = -(-len(problems) // iterations)
    shares = [problems[i * size : (i + 1) * size] for i in range(iterations)]
    write_recipe(path, shares)
    for n, share in enumerate(shares, 2):
        (path / f"M{n}").mkdir(exist_ok=True)
        with open(path / f"M{n}/trajectories.jsonl", "w", encoding="utf-8") as f:
            for i, question in enumerate(share):
                t = made_up_search(f"q{n}-{i}", question, steps, w, text, judge)
                f.write(json.dumps(asdict(t), ensure_ascii=False) + "\n")
    for n in range(1, iterations + 2):
        figures = {"arm": "judge", "model": f"M{n}"} | FIGURES
        write_whole(path / f"M{n}/metrics.json", json.dumps(figures))
    return path
