"A search's memory does not grow with its problems, and its pairs are those of all trajectories read at once."

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from at_scale import target_of
from instant_engine import InstantEngine

from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.files import append_jsonl, packaged, read_jsonl, write_jsonl
from psr_nb.folder import Run, Target
from psr_nb.gates import LiveJudge, live_figures
from psr_nb.judge import judge_stats
from psr_nb.pairs import make_pairs
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError, Problem, Trajectory
from psr_nb.searches import is_searched, made_of, pairs_of, search_questions, trajectories_of

HERE = Path(__file__).parent


def recorded(folder: Path, **recipe) -> Target:
    "The demo's recorded searches in another order than their questions, one of them there twice."
    trajectories = read_jsonl(packaged("runs/demo/M2/trajectories.jsonl"), Trajectory)
    run = Run(load_recipe("fast", questions=[len(trajectories)], **recipe), folder)
    questions = [Problem(t.problem_id, t.question, t.answer or "0") for t in trajectories]
    write_jsonl(run.data("questions-2"), questions)
    random.Random(1).shuffle(trajectories)
    target = Target(run, "judge", 2)
    write_jsonl(target.trajectories, [replace(trajectories[3], steps=[]), *trajectories])
    return target


@pytest.mark.parametrize("changed", [{}, {"pairs.right_only": True, "pairs.min_margin": 2}])
def test_pairs_are_those_of_all_trajectories_read_at_once(tmp_path, changed):
    target = recorded(tmp_path, **changed)
    by_id = {t.problem_id: t for t in read_jsonl(target.trajectories, Trajectory)}
    answers = {q.id: q.answer for q in target.questions}
    in_order = [by_id[q.id] for q in target.questions]
    oracle, table = make_pairs(in_order, target.recipe.pairs, answers, ARITHMETIC)
    fates = Counter()
    write_jsonl(tmp_path / "streamed.jsonl", pairs_of(target, fates))
    write_jsonl(tmp_path / "oracle.jsonl", oracle)
    assert (tmp_path / "streamed.jsonl").read_bytes() == (tmp_path / "oracle.jsonl").read_bytes()
    assert dict(fates) == table and table["pairs"] > 0


def test_figures_are_those_of_all_trajectories_read_at_once(tmp_path):
    target = recorded(tmp_path)
    found = {t.problem_id: t for t in read_jsonl(target.trajectories, Trajectory)}
    steps = [s for t in found.values() for s in t.steps]
    made = made_of(target.run, "judge", 2)
    assert made["search"]["judge"] == judge_stats([s.judgements for s in steps])
    assert made["search"]["ended"] == dict(Counter(t.ended for t in found.values()))
    assert made["search"]["output_tokens"] == sum(t.output_tokens for t in found.values())
    live, pairs = LiveJudge(ARITHMETIC), make_pairs(found.values())[0]
    for t in found.values():
        live.add(t)
        live.add_pairs([p for p in pairs if p.trajectory_id == t.problem_id])
    expected = live_figures(live)
    assert {name: made[name] for name in expected} == expected and made["pairs"] == len(pairs)


def test_a_bad_row_is_named_when_it_is_read(tmp_path):
    target = recorded(tmp_path)
    with open(target.trajectories, "a") as f:
        f.write('{"problem_id": "bad", "steps": 5}\n')
    assert len(trajectories_of(target)) == len(target.questions) + 1
    with pytest.raises(InputError, match="trajectories.jsonl:10: no 'question', 'prompt_ids', 'ended'"):
        trajectories_of(target)["bad"]


def test_looking_for_an_id_reads_no_row(tmp_path):
    target = recorded(tmp_path)
    found = trajectories_of(target)
    target.trajectories.unlink()
    assert all(q.id in found for q in target.questions) and "nobody" not in found


def test_a_file_of_other_things_is_not_searched(tmp_path):
    target = recorded(tmp_path)
    append_jsonl(target.trajectories, [{"id": "x"}])
    assert not is_searched(target)
    with pytest.raises(InputError, match="trajectories.jsonl:10: no 'problem_id'"):
        search_questions(target, InstantEngine(), print)


def test_a_search_that_was_killed_goes_on_where_it_was(tmp_path):
    whole, half = (target_of(40, tmp_path / name, "judge") for name in ("whole", "half"))
    search_questions(whole, InstantEngine(), lambda *_: None)
    lines = whole.trajectories.read_bytes().splitlines(keepends=True)
    half.folder.mkdir()
    half.trajectories.write_bytes(b"".join(lines[5:30]) + lines[30][:100])
    told = []
    with pytest.warns(UserWarning, match="100 torn bytes"):
        search_questions(half, InstantEngine(), lambda *said: told.append(said[1:]))
    assert told == [(n, 40) for n in range(25, 41)]  # the first tells that the phase begins
    one, two = (list(pairs_of(t, Counter())) for t in (whole, half))
    assert one == two and len(one) == 400


def measured(n: int, folder: Path, *more: str) -> dict[str, dict]:
    "Phase -> figures of a search of so many problems in a process of its own."
    command = [sys.executable, HERE / "at_scale.py", str(n), folder, *more]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert said.returncode == (9 if len(more) > 1 else 0), said.stderr[-2000:]
    return {row["phase"]: row for row in rows}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_problems(tmp_path):
    few, many = (measured(n, tmp_path / str(n)) for n in (2000, 10_000))
    assert many["pairs"]["pairs"] == 100_000 and many["figures"]["ended"] == {"answered": 10_000}
    grown = many["figures"]["HWM"] - few["figures"]["HWM"]
    size = many["looked over"]["bytes"]
    assert grown < 8, f"{grown:.0f} MiB for 8,000 problems more; the file has {size:,} bytes"


@pytest.mark.slow
def test_a_kill_near_the_end_costs_little(tmp_path):
    stopped = measured(2000, tmp_path / "run", "random", "1900")["stopped"]
    again = measured(2000, tmp_path / "run")["search"]
    assert (stopped["problems"], again["problems"]) == (1900, 100)
    assert again["first"] < stopped["first"] + 2 and again["cpu"] < stopped["cpu"]
