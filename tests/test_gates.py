"""A judge that is none is stopped before it costs a search, a run that stalls ends, and both can go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import psr_nb.health
import psr_nb.run
import psr_nb.work
from psr_nb.cli.main import main
from psr_nb.dashboard.figures import gate_table
from psr_nb.dashboard.report import report_html, report_json
from psr_nb.domains.arithmetic import ARITHMETIC, read_question, result
from psr_nb.engine import load_tokenizer
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import Run, Target, open_run, plan
from psr_nb.gates import crossed, figures_of_counts, live_accuracy, stops
from psr_nb.health import crossings, why_ended
from psr_nb.mend import mend
from psr_nb.recipe import GateSettings, load_recipe
from psr_nb.records import InputError, Problem, Trajectory
from psr_nb.run import run

SMALL = {
    "start": "M1",
    "arms": ["judge"],
    "questions": [20],
    "data.test_limit": 2,
    "data.judge_test_limit": 40,
    "search.max_steps": 4,
    "search.on_tie": "skip",
    "judge.policy": "knockout",
    "parallel": 1,
}


@pytest.fixture(scope="module")
def says_a(tmp_path_factory) -> str:
    "The demo's M1, which may not say that B is better: the weights of that word are half of those of A."
    folder = Path(
        shutil.copytree(packaged("models/demo-m1"), tmp_path_factory.mktemp("models") / "says-a")
    )
    words = load_tokenizer(folder).get_vocab()
    weights = load_file(folder / "model.safetensors")
    embedded = weights["model.embed_tokens.weight"]
    embedded[words["[[B]]"]] = embedded[words["[[A]]"]] / 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def small(**changes):
    "The recipe of a small run."
    return load_recipe("fast", **SMALL | changes)


def judged_so_far(folder: Path) -> int:
    "Requests of the judge's check and of the search for M2."
    phases = read_lines(folder / "M2/phases.jsonl")
    return sum(row["requests"] for row in phases if row["phase"] in ("judge check", "search"))


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:judge")
def test_a_judge_that_always_says_a_does_not_search_until_its_gate_is_lifted(tmp_path, says_a, here):
    "It costs forty comparisons. The same command with the gate lifted goes on, under the same recipe."
    folder = tmp_path / "run"
    with pytest.warns(
        UserWarning, match="stopped before M1 searches: .*prefers the candidate shown first"
    ):
        stopped = run(small(model=says_a), folder, quiet=True)
    ended = why_ended(stopped, "judge")
    assert (ended.by, ended.n) == ("gates", 2)
    assert "shown first in 100% of" in ended.said and "--set gates.action=warn" in ended.said
    assert not (folder / "M2/trajectories.jsonl").exists() and judged_so_far(folder) == 40
    run(small(model=says_a), folder, quiet=True)
    assert here == ["engine_job judge M1"], "stopped again, without a job"
    lifted = run(small(model=says_a, **{"gates.action": "warn"}), folder, quiet=True)
    assert why_ended(lifted, "judge") is None and (folder / "M2/metrics.json").exists()
    assert open_run(folder).recipe.gates.action == "warn"
    gates = set(zip(*gate_table(folder)[["model", "at", "gate"]].T.to_numpy(), strict=True))
    assert {("M2", "check", "swap_consistency"), ("M2", "search", "position_bias")} <= gates


@pytest.mark.filterwarnings("ignore:judge")
def test_the_command_ends_with_3_and_the_report_says_why(tmp_path, says_a, here, capsys):
    folder = tmp_path / "run"
    given = [x for name, value in SMALL.items() for x in ("--set", f"{name}={json.dumps(value)}")]
    line = ["run", "fast", "--model", says_a, "--out", str(folder), *given]
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code == 3 and "stopped by gates: judge before M2" in capsys.readouterr().err
    main(["report", str(folder), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [g["gate"] for g in said["gates"]] == ["swap_consistency", "position_bias"]
    assert "stopped before M1 searches" in said["ended"]["judge"]
    page = report_html(folder)
    assert "stopped before M1 searches" in page and 'id="gatesthatwerecrossed"' in page


def test_a_lifted_threshold_is_lifted_and_another_setting_is_another_recipe(tmp_path, here):
    begun = open_run(tmp_path / "run", small())
    for changes in ({"gates.position_bias": None}, {"gates.ties": 0.9}, {"stop.on": "judge_accuracy"}):
        there = small(**changes)
        assert open_run(begun.path, there).recipe == open_run(begun.path).recipe == there
    with pytest.raises(InputError, match="search.w: 4 there, 3 here"):
        open_run(begun.path, small(**{"search.w": 3}))


def made_by_old_version(tmp_path: Path) -> Run:
    "The recorded run of SmolLM2 as it was before M2 was trained, and what its search shows."
    folder = Path(shutil.copytree(packaged("runs/smollm2"), tmp_path / "smollm2"))
    (folder / "M2/metrics.json").unlink()
    write_jsonl(folder / "data/questions-2.jsonl", questions_of(folder / "M2/trajectories.jsonl"))
    return Run(load_recipe("smollm2-gsm8k-cpu"), folder)


def questions_of(trajectories: Path) -> list[Problem]:
    return [Problem(t.problem_id, t.question) for t in read_jsonl(trajectories, Trajectory)]


def test_the_recorded_run_of_smollm2_would_have_been_stopped(tmp_path):
    recorded = made_by_old_version(tmp_path)
    target = Target(recorded, "judge", 2)
    psr_nb.health.note_search(target)
    strict = replace(recorded, recipe=load_recipe("smollm2-gsm8k-cpu", **{"gates.action": "stop"}))
    ended = why_ended(strict, "judge")
    assert ended.by == "gates" and "before M2 is trained" in ended.said
    assert "same winner in both orders in 4% of 337 pairs" in ended.said
    assert "shown first in 97% of 668 verdicts" in ended.said
    assert "80% of 60 steps with several candidates end in a tie" in ended.said
    warned = replace(recorded, recipe=load_recipe("smollm2-gsm8k-cpu", **{"gates.action": "warn"}))
    assert why_ended(warned, "judge") is None and len(crossings(Target(warned, "judge", 2))) == 3


@pytest.mark.parametrize(("said_a", "stopped"), [(490, True), (137, True), (439, False), (330, False)])
def test_pairs_by_position_are_seen_in_one_order_too(said_a, stopped):
    "An untaught Qwen2.5-Coder-0.5B with a knockout and short verdicts said A in 490 of 627; 70 % are 439."
    judge = dict(comparisons=627, abstained=0, said_a=said_a, both_orders=0, consistent=0)
    found = crossed(figures_of_counts({"judge": judge}, {}), GateSettings())
    assert bool(stops(found, GateSettings(), judges=True)) is stopped
    assert stops(found, GateSettings(), judges=False) == []
    assert all(c.gate == "position_bias" for c in found)


def test_the_recorded_demo_passes_all_gates():
    demo = open_run(packaged("runs/demo"))
    assert [crossings(Target(demo, arm, n)) for arm, n, _ in demo.models if n > 1] == [[]] * 6
    assert [why_ended(demo, arm) for arm in demo.recipe.arms] == [None, None]


def right_by_hand(t: Trajectory, k: int, before: list[str], text: str) -> bool:
    "Is a step of a search right? Written without the domain's check."
    start, operations = read_question(t.question)
    x = int(before[-1].split("=")[1]) if before and "=" in before[-1] else None if before else start
    if x is None:
        return False
    if k > len(operations):
        return k == len(operations) + 1 and text.strip() == f"answer {x}"
    op, y = operations[k - 1]
    return text.strip() == f"{x}{op}{y}={result(x, op, y)}"


def test_live_accuracy_is_that_of_a_count_by_hand():
    searches = read_jsonl(packaged("runs/demo/M3/trajectories.jsonl"), Trajectory)
    worth, pairs = [], []
    for t in searches:
        for i, step in enumerate(t.steps):  # nothing is rolled back in the demo: the steps are the path
            before = [s.candidates[s.chosen].text.strip() for s in t.steps[:i]]
            right = [right_by_hand(t, step.k, before, c.text) for c in step.candidates]
            for j in step.judgements:
                if right[j.a] != right[j.b]:
                    worth.append(0.5 if j.verdict is None else right[j.a if j.verdict == "A" else j.b])
            if step.outcome == "pair":
                pairs.append(right[step.chosen] and not right[step.rejected])
    found = live_accuracy(searches, ARITHMETIC)
    judge, told = found["live_judge"], found["right_pairs"]
    assert (judge["n"], told["n"]) == (len(worth), len(pairs)) and len(worth) > 20
    assert judge["accuracy"] == pytest.approx(sum(worth) / len(worth))
    assert told["share"] == pytest.approx(sum(pairs) / len(pairs))
    assert judge["low"] < judge["accuracy"] <= judge["high"]


def test_a_report_has_the_live_accuracy_of_every_judge_beside_the_held_out_one():
    models = report_json(packaged("runs/demo"))["arms"]["judge"]
    live = [models[f"M{n}"]["live_judge"] for n in (2, 3, 4)]
    assert all(f["low"] < f["accuracy"] < f["high"] and f["n"] > 1000 for f in live)
    held_out = [models[f"M{n}"]["judge_accuracy"] for n in (1, 2, 3, 4)]
    assert max(held_out) - min(held_out) < 0.02 and min(f["low"] for f in live) > max(held_out)


DEV = {
    "data.dev": "packaged:demo/questions.jsonl",
    "data.dev_limit": 3,
    "questions": [4, 4],
    "gates.check_pairs": 0,
}


@pytest.mark.filterwarnings("ignore:judge", "ignore:.*left without them")
def test_an_arm_ends_where_its_dev_set_does_not_improve(tmp_path, here):
    "Training copies the model here, so M2 is no better than M1."
    stalled = small(**DEV, **{"stop.patience": 1, "data.contamination": "drop"})
    with pytest.warns(UserWarning, match="ends with M2, for dev_accuracy was best in M1"):
        done = run(stalled, tmp_path / "run", quiet=True)
    assert (why_ended(done, "judge").by, why_ended(done, "judge").n) == ("stop", 3)
    metrics = json.loads((done.path / "M2/metrics.json").read_text())
    assert (metrics["dev_n"], metrics["n"]) == (3, 2) and metrics["live_judge"]["n"] > 0
    assert not (done.path / "M3").exists()
    on = run(small(**DEV, **{"data.contamination": "drop"}), tmp_path / "run", quiet=True)
    assert (on.path / "M3/metrics.json").exists() and why_ended(on, "judge") is None


def test_the_dev_set_is_apart_from_what_is_trained_on_and_tested():
    with pytest.raises(InputError, match="questions are in the dev set: .*data.contamination=drop"):
        plan(small(**DEV))
    with pytest.raises(InputError, match="of its questions are in the test set"):
        plan(small(**{"data.dev": "packaged:demo/test.jsonl"}))
    with pytest.raises(InputError, match="stop.patience: dev_accuracy needs data.dev"):
        small(**{"stop.patience": 2})
    with pytest.warns(UserWarning, match="3 of its questions are in the dev set"):
        rows = plan(small(**DEV, **{"data.contamination": "drop"}))
    asked = {p.question for name in ("questions-2", "questions-3", "test") for p in rows[name]}
    assert len(rows["dev"]) == 3 and not asked & {p.question for p in rows["dev"]}


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"check": {"ties": 1}}', '{"search": {"ties": {"value": "x"}}}']
)
def test_damaged_figures_of_health_are_measured_again(tmp_path, damage):
    begun = open_run(tmp_path / "run", small())
    file = begun.folder("judge", 2) / "health.json"
    file.parent.mkdir()
    file.write_text(damage)
    with pytest.raises(InputError, match="health.json"):
        crossings(Target(begun, "judge", 2))
    assert "health.json: is damaged; it is made again" in mend(begun)[0] and not file.exists()
