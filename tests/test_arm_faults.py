"What ends one arm, or one run of a sweep, and not all: no pairs, a lifted gate, a bad value, a dead engine."

import contextlib
import json
import shutil
import threading
import warnings
from collections import Counter
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

import psr_nb.run
import psr_nb.studies.sweep
import psr_nb.work
from psr_nb.cli.main import main
from psr_nb.dashboard.report import report_html, report_json
from psr_nb.dashboard.sweeps import cell_rows, read_measured, sweep_json, sweep_notes
from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.engine import EngineError, EngineSettings, Usage, generate
from psr_nb.engines.fleet import MOST_IDLE_DEATHS, Fleet
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import Run, Target, open_run, plan
from psr_nb.gates import SearchHealth
from psr_nb.health import crossings, why_ended
from psr_nb.judge import Judgement
from psr_nb.recipe import load_recipe
from psr_nb.records import (
    Candidate,
    Completion,
    InputError,
    Problem,
    Request,
    Sampling,
    Step,
    StepPair,
    Trajectory,
)
from psr_nb.run import run
from psr_nb.search import NOT_SCORED
from psr_nb.searches import matched, pairs_of, search_figures
from psr_nb.studies.placement import Hardware
from psr_nb.studies.plan import plan_recipe
from psr_nb.studies.sweep import Sweep, in_common, keep_sweep, stages
from psr_nb.work import data_job

SMALL = {
    "start": "M1",
    "model": "packaged:models/demo-m1",
    "questions": [6, 4],
    "data.test_limit": 2,
    "data.judge_test_limit": 2,
    "search.max_steps": 4,
    "search.on_tie": "skip",
    "gates.check_pairs": 0,
    "gates.action": "warn",
    "parallel": 1,
}
UNCHECKED = replace(ARITHMETIC, name="unchecked", check=None)


def small(**changes):
    "The recipe of a small run."
    return load_recipe("fast", **SMALL | changes)


def sets(**changes) -> list[str]:
    "A small run's settings as a command has them."
    return [
        x for name, value in (SMALL | changes).items() for x in ("--set", f"{name}={json.dumps(value)}")
    ]


# of two samples that differ none is the more frequent one, and the judge prefers one
NO_FREQUENCY = {"arms": ["judge", "frequency"], "search.w": 2, "search.temperature": 1.5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_arm_without_a_pair_ends_and_the_others_go_on(tmp_path, here, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["run", "fast", "--out", str(folder), *sets(**NO_FREQUENCY)])
    said = capsys.readouterr()
    assert end.value.code == 3 and "without a pair to train on: frequency before M2" in said.err
    assert "ended early by pairs: frequency before M2" in said.out
    done = open_run(folder)
    ended = why_ended(done, "frequency")
    assert (ended.by, ended.n) == ("pairs", 2) and "skipped tie" in ended.said
    assert why_ended(done, "judge") is None and (folder / "M3/metrics.json").exists()
    kept = json.loads((folder / "frequency/M2/health.json").read_text())
    assert "no pair to train on" in kept["no_pairs"] and not (folder / "frequency/M2/model").exists()
    assert "no pair to train on" in report_json(folder)["ended"]["frequency"]
    assert "no pair to train on" in report_html(done)
    jobs = len(here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(small(**NO_FREQUENCY), folder, quiet=True)
    assert len(here) == jobs, "resumed, there is nothing to do"


@pytest.mark.filterwarnings("ignore")
def test_another_error_of_a_training_still_ends_the_run(tmp_path, here, monkeypatch):
    def refuse(*_, **__):
        raise InputError("dpo.beta: no")

    monkeypatch.setattr(psr_nb.work, "train_dpo", refuse)
    with pytest.raises(InputError, match=r"dpo.beta: no"):
        run(small(arms=["judge"], questions=[3]), tmp_path / "run", quiet=True)


def taken(target: Target) -> list[StepPair]:
    return list(pairs_of(target, Counter()))


def recorded(n: int = 8) -> list[Trajectory]:
    return read_jsonl(packaged("runs/demo/M2/trajectories.jsonl"), Trajectory)[:n]


def searched(tmp_path: Path, searches: dict[str, list[Trajectory]], **changes) -> Run:
    "A run of which some arms have searched for M2."
    first = next(iter(searches.values()))
    recipe = small(arms=list(searches), questions=[len(first)], match_pairs=True, **changes)
    of = Run(recipe, tmp_path)
    write_jsonl(
        of.data("questions-2"), [Problem(t.problem_id, t.question) for t in recorded(len(first))]
    )
    for arm, found in searches.items():
        if found:
            write_jsonl(of.folder(arm, 2) / "trajectories.jsonl", found)
    return of


def some_fail(found: list[Trajectory], n: int) -> list[Trajectory]:
    return found[:n] + [replace(t, steps=[]) for t in found[n:]]


@pytest.mark.parametrize("later", [8, 2])
def test_an_arm_whose_gate_is_lifted_is_matched_to_the_others_or_ends(tmp_path, later):
    "The first arm was trained alone, on what half of its searches gave; the other one has searched now."
    every = recorded()
    of = searched(tmp_path, {"judge": some_fail(every, 4), "flipped": []})
    first, second = (Target(of, arm, 2) for arm in of.recipe.arms)
    arguments = {"recipe": json.loads(json.dumps(of.recipe, default=vars)), "path": str(tmp_path)}
    data_job(lambda *_: None, **arguments, arm="judge", n=2)
    given = read_jsonl(first.folder / "pairs.jsonl", StepPair)
    write_jsonl(second.trajectories, some_fail(every, later))
    assert matched(first) == matched(second) == len(given)
    assert taken(first) == given, "its pairs are what it was trained on"
    if later == 8:
        data_job(lambda *_: None, **arguments, arm="flipped", n=2)
        assert len(read_jsonl(second.folder / "pairs.jsonl", StepPair)) == len(given)
        return
    with pytest.raises(InputError, match=f"trained other arms on {len(given)} pairs, and this one has"):
        data_job(lambda *_: None, **arguments, arm="flipped", n=2)
    assert why_ended(of, "flipped").by == "pairs" and why_ended(of, "judge") is None


def test_matched_pairs_have_weights_of_mean_1_and_an_empty_arm_leaves_the_others_theirs(tmp_path):
    every = recorded()
    weigh = {"pairs.weight": "margin"}
    of = searched(tmp_path / "a", {"judge": every, "flipped": some_fail(every, 3)}, **weigh)
    weights = [p.weight for p in taken(Target(of, "judge", 2))]
    assert 0 < len(weights) < len(all_pairs(of))
    assert sum(weights) / len(weights) == pytest.approx(1)
    empty = searched(tmp_path / "b", {"judge": every, "flipped": some_fail(every, 0)})
    assert taken(Target(empty, "judge", 2)) == all_pairs(empty)


def all_pairs(of: Run) -> list[StepPair]:
    "All pairs of the first arm."
    alone = replace(of, recipe=replace(of.recipe, match_pairs=False))
    return taken(Target(alone, "judge", 2))


def test_m1_has_to_agree_with_itself_where_it_has_judged(tmp_path):
    "Three candidates in a circle: the best beat the worst only in one order."
    votes = [(0, 1, "A"), (1, 0, "A"), (0, 2, "A"), (2, 0, "B"), (1, 2, "A"), (2, 1, "B")]
    judged = [Judgement(a, b, verdict, "") for a, b, verdict in votes]
    cs = [Candidate([i], f" {i}", False) for i in (5, 6, 7)]
    first = Step(1, 0, [1], cs, [replace(j) for j in judged], [3.0, 3.0, 0.0], "pair", 0, 1)
    t = Trajectory("q0", "?", [1], [first], "answered")
    kept = {}
    for name, who in {"nobody": [], "M1": ["M1"], "self": ["self"]}.items():
        recipe = small(arms=["judge"], questions=[1], **{"pairs.judges_agree": who})
        of = Run(recipe, tmp_path / name)
        write_jsonl(of.data("questions-2"), [Problem("q0", "?")])
        write_jsonl(of.folder("judge", 2) / "trajectories.jsonl", [t])
        kept[name] = len(taken(Target(of, "judge", 2)))
    assert kept == {"nobody": 1, "M1": 0, "self": 0}


MARGINS = ["--over", "pairs.min_margin=1000,0"]


def sweep(folder: Path, *more: str) -> list[str]:
    "The command of a small sweep."
    return ["sweep", "fast", *MARGINS, "--out", str(folder), *sets(arms=["judge"], questions=[6]), *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_ended_arm_is_told_of_in_a_sweep_and_its_gates_may_change(tmp_path, here, capsys):
    folder = tmp_path / "sweep"
    with pytest.raises(SystemExit) as end:
        main(sweep(folder, "--set", "search.w=4", "--set", "judge.orders=both"))
    said = capsys.readouterr()
    ended = "pairs.min_margin=1000/seed-0 judge before M2"
    assert end.value.code == 3 and f"without a pair to train on: {ended}" in said.err
    assert "1 of 1 by pairs" in said.out and "1 arm ended early by pairs" in said.out
    assert "2 of 2 runs are finished" not in said.out and "failed" not in said.out
    found = sweep_json(folder)
    assert [(e["run"], e["by"]) for e in found["ended"]] == [("pairs.min_margin=1000/seed-0", "pairs")]
    assert (found["finished"], found["failed"]) == (2, {})
    rows = {(c["set"]["pairs.min_margin"], c["model"]): c["ended"] for c in found["cells"]}
    assert rows == {(1000, "M1"): {0: "pairs"}, (0, "M1"): {}, (0, "M2"): {}}
    shared = json.loads((folder / "pairs.min_margin=0/seed-0/shared.json").read_text())
    assert shared["judge M2 search"] == "pairs.min_margin=1000/seed-0"
    assert "no_pairs" not in json.loads(
        (folder / "pairs.min_margin=0/seed-0/M2/health.json").read_text()
    )
    with pytest.raises(SystemExit):  # other gates, settings in another order
        main(
            sweep(folder, "--set", "judge.orders=both", "--set", "search.w=4", "--set", "gates.ties=0.9")
        )
    assert open_run(folder / "pairs.min_margin=0/seed-0").recipe.gates.ties == 0.9


BAD = {
    "too many questions": ["--over", "questions=[6],[999999]"],
    "no such model": ["--over", "model=packaged:models/demo-m1,nowhere/at-all"],
    "a bad setting": ["--over", "search.w=4,1"],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_value_leaves_a_sweep_as_it_was(tmp_path, here, capsys, bad):
    given = sets(arms=["judge"])
    name = bad[1].partition("=")[0]
    at = given.index(next(x for x in given if x.startswith(name + "="))) if name in SMALL else None
    if at:
        given = given[: at - 1] + given[at + 1 :]
    before = Sweep("fast", tmp_path / "old", {name: [small().search.w]}, [0], {})
    for folder in (tmp_path / "new", tmp_path / "old"):
        if folder.name == "old":
            keep_sweep(before) if name == "search.w" else folder.mkdir()
        there = sorted(p.read_bytes() for p in folder.rglob("*.json")) if folder.is_dir() else None
        with pytest.raises(SystemExit) as end:
            main(["sweep", "fast", *bad, "--out", str(folder), *given])
        wrong = capsys.readouterr().err
        assert end.value.code == 2 and wrong.count("\n") == 1, wrong
        after = sorted(p.read_bytes() for p in folder.rglob("*.json")) if folder.is_dir() else None
        assert after == there and not here


@pytest.mark.filterwarnings("ignore")
def test_runs_that_failed_are_told_in_the_table(tmp_path, here, monkeypatch):
    kept = keep_sweep(Sweep("fast", tmp_path, {}, [0, 1], SMALL | {"arms": ["judge"]}))

    def broken(*_, **__):
        raise InputError("engine: out of memory")

    monkeypatch.setattr(psr_nb.studies.sweep, "run_job", broken)
    with pytest.raises(InputError, match="2 of 2 runs failed, the first as_is/seed-0: engine: out of"):
        psr_nb.studies.sweep.run_sweep(kept, quiet=True)
    notes = sweep_notes(sweep_json(tmp_path))
    assert "0 of 2 runs are finished" in notes[0]
    assert notes[1] == "2 of 2 runs failed, the first as_is/seed-0: engine: out of memory"


def test_a_setting_without_an_effect_is_a_comparison(tmp_path):
    "Two cells come out alike: as they depend on different settings, that is what was found."
    kept = keep_sweep(
        Sweep("fast", tmp_path, {"dpo.beta": [0.1, 0.2]}, [0], SMALL | {"arms": ["judge"]})
    )
    for member in kept.members:
        of = open_run(kept.path / member.name, kept.recipe_of(member))
        for n in (1, 2):
            shutil.copytree(packaged(f"runs/demo/M{n}"), of.path / f"M{n}")
    rows, counts = cell_rows(read_measured(kept.path))
    assert counts["first_cell"] == 1  # M2; M1 is one and the same
    [other] = [row for row in rows if "against_first_cell" in row]
    assert (other["model"], other["against_first_cell"]["difference"]) == ("M2", 0)


def test_other_test_data_leave_m1_and_the_searches_shared(tmp_path):
    few = {"arms": ["judge"], "data.ift_limit": 8, "data.eft_limit": 8}
    keys = {}
    for name, n in {
        "a": {},
        "test": {"data.test_limit": 3},
        "judge": {"data.judge_test_limit": 3},
    }.items():
        changed = few | {"data.test_limit": 2, "data.judge_test_limit": 2, "questions": [4]} | n
        keys[name] = stages(open_run(tmp_path / name, load_recipe("fast", **changed)))
    shared = {name: [what for _, _, what in in_common(keys["a"], keys[name])] for name in keys}
    assert shared["test"] == ["model", "search", "model"] and shared["judge"] == ["model"]


def test_growth_is_that_of_the_searches_and_not_of_the_test_set(tmp_path):
    of = Run(small(arms=["judge"]), tmp_path)
    for n, longer in ((2, 1), (3, 4)):
        counted = SearchHealth()
        for t in recorded():
            for c in (c for s in t.steps for c in s.candidates):
                c.ids = c.ids * longer
            counted.add(t)
        file = of.folder("judge", n) / "health.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"search": counted.figures()}))
    shutil.copy(packaged("runs/demo/M1/evaluation.jsonl"), of.folder("judge", 2))
    found = {c.gate: (at, c.value) for at, c in crossings(Target(of, "judge", 3))}
    assert found["length_growth"] == ("search", pytest.approx(3))
    with pytest.raises(InputError, match="stop.on: the arm 'solutions' is not taught to compare"):
        small(arms=["judge", "solutions"], **{"stop.patience": 1, "stop.on": "judge_accuracy"})


def test_candidates_too_long_for_a_reward_model_are_counted():
    [t] = recorded(1)
    t.steps[0].candidates[0].said = NOT_SCORED
    counted = SearchHealth()
    counted.add(t)
    assert search_figures([t])["unscored_candidates"] == 1 and "scored" not in search_figures([t])
    assert counted.figures()["unscored"]["value"] > 0


def test_a_dev_set_that_takes_all_rows_is_refused_and_keep_says_what_it_does(tmp_path):
    rows = [json.loads(line) for line in packaged("demo/ift.jsonl").read_text().splitlines()[:3]]
    dev = [{"id": f"d{i}", "question": r["question"], "answer": r["answer"]} for i, r in enumerate(rows)]
    write_jsonl(tmp_path / "dev.jsonl", dev)
    given = {"data.dev": str(tmp_path / "dev.jsonl"), "data.ift_limit": 3}
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match="none of its rows is left to train M1"),
    ):
        plan(load_recipe("fast", **given, **{"data.contamination": "drop"}))
    with pytest.raises(InputError, match="data.contamination=keep leaves them in both"):
        plan(small(**{"data.dev": "packaged:demo/test.jsonl"}))


@pytest.mark.slow
def test_live_accuracy_comes_from_rollouts_where_nothing_checks_a_step(tmp_path, here):
    recipe = small(arms=["judge"], questions=[6], **{"gates.live_questions": 3, "search.rollouts": 2})
    recipe = replace(recipe, domain=f"{__name__}:UNCHECKED")
    done = run(recipe, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (done.path / "M2/live.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rows} == {q.id for q in Target(done, "judge", 2).questions[:3]}
    shares = [x for r in rows for x in r["shares"]]
    assert shares and all(0 <= x <= 1 for x in shares)
    metrics = json.loads((done.path / "M2/metrics.json").read_text())
    assert metrics["right_pairs"] is None or metrics["right_pairs"]["n"] > 0
    assert "rollouts" in metrics["costs"]
    jobs = len(here)
    run(recipe, done.path, quiet=True)
    assert len(here) == jobs


def tokens(**changes) -> dict[str, int]:
    "Phase -> tokens read and written, of one iteration's plan for the demo."
    recipe = load_recipe("demo", questions=[100, 100], **{"arms": ["judge"]} | changes)
    found = Counter()
    for p in plan_recipe(recipe, Hardware()).phases:
        found[p.phase] += p.prompt_tokens + p.output_tokens
    return found


def test_a_plan_has_what_second_models_votes_rollouts_rehearsal_and_dev_cost():
    plain = tokens()
    assert tokens(**{"judge.votes": 3, "judge.temperature": 0.7})["judge"] > plain["judge"]
    assert tokens(**{"dpo.rehearsal": 0.5})["DPO"] > plain["DPO"]
    assert tokens(**{"data.dev": "packaged:demo/test.jsonl"})["evaluate"] > plain["evaluate"]
    assert tokens(**{"pairs.judges_agree": ["M1"]})["agreement"] > 0
    math = {"domain": "math"}
    assert (
        tokens(arms=["truth"], **math)["rollouts"]
        > tokens(**math, **{"gates.live_questions": 5})["rollouts"]
    )
    assert "rollouts" not in tokens(arms=["truth"]) and "rollouts" not in tokens(**math)
    asked = load_recipe("demo", arms=[{"judge": "packaged:models/demo-m0"}])
    [search] = [
        p for p in plan_recipe(asked, Hardware()).phases if (p.model, p.phase) == ("M2", "search")
    ]
    assert search.parts["second model"] > 0


class Dead:
    "A process that is none."

    def wait(self):
        return 1

    def kill(self):
        pass


def engines(*kinds: str):
    "What starts workers of these kinds: one that answers, or one that dies as soon as it is there."
    started = []

    def answer(pipe):
        with contextlib.suppress(EOFError):
            pipe.recv()
            while True:
                _, key, _ = pipe.recv()
                pipe.send(("done", [(key, [Completion([1], "", "stop")])], Usage()))

    def start(number, replicas, settings):
        ours, theirs = Pipe()
        started.append(number)
        theirs.send(("ready", 64, 64))
        if kinds[number] == "good":
            threading.Thread(target=answer, args=(theirs,), daemon=True).start()
        else:
            theirs.close()
        return Dead(), ours

    return start, started


@pytest.mark.filterwarnings("ignore:an engine of the fleet died")
def test_an_engine_that_dies_with_nothing_to_do_is_not_started_without_end():
    start, started = engines("good", "bad")
    fleet = Fleet(print, "none", EngineSettings(), 2, tokenizer=object(), start=start)
    requests = [Request([1, 2], Sampling(max_tokens=1)) for _ in range(40)]
    with pytest.warns(UserWarning, match="3 times in a row without an answer .*goes on with 1 others"):
        assert len(generate(fleet, requests)) == 40
    assert len(fleet.workers) == 1
    assert started.count(1) <= MOST_IDLE_DEATHS + 2  # two may have been given something first


def test_the_last_engine_that_dies_so_is_an_error(monkeypatch):
    start, started = engines("bad")
    fleet = Fleet(print, "none", EngineSettings(), 1, tokenizer=object(), start=start)
    monkeypatch.setattr(fleet, "_hand_out", lambda: None)  # nothing is given to it
    fleet.submit("x", Request([1], Sampling(max_tokens=1)))
    with (
        pytest.warns(UserWarning),
        pytest.raises(EngineError, match="3 times in a row without an answer"),
    ):
        fleet.step()
    assert len(started) == MOST_IDLE_DEATHS
