"Every arm of a run: what scores, what it trains on, and that its searches go on after a kill."

import json
import random
import shutil
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from psr_nb.domains.arithmetic import ARITHMETIC, check_step, draw_problems, eft_rows
from psr_nb.engine import load_tokenizer
from psr_nb.files import packaged, read_jsonl
from psr_nb.folder import Target
from psr_nb.judge import score_rows
from psr_nb.pairs import make_pairs
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError, StepPair, Trajectory
from psr_nb.run import run
from psr_nb.sft import score_row_ids
from psr_nb.work import engine_job

REFUSED = {
    "[judges]": "arms: 'judges' is not known; did you mean 'judge'?",
    "[judge, {prm: a/x}, {prm: b/X}]": "arms: 'prm:a/x' and 'prm:b/X' would have one folder",
    "[solutions, judge]": "arms: 'solutions' has an M1 of its own",
    "[{judge: M3}]": "arms: 'judge:M3': of a run's models, only M0 and M1 can judge",
    "[{judge: 3}]": "arms: expected str, not {'judge': 3}",
}


@pytest.mark.parametrize("arms", REFUSED)
def test_arms_that_can_not_be_are_refused_in_one_sentence(arms):
    import yaml

    with pytest.raises(InputError) as e:
        load_recipe("fast", arms=yaml.safe_load(arms))
    assert REFUSED[arms] in str(e.value)


def test_the_demo_has_a_token_for_every_word_of_its_rubric():
    rng, tok = random.Random(3), load_tokenizer(str(packaged("models/demo-m0")))
    eft = [row for p in draw_problems(100, rng, "p", set()) for row in eft_rows(p, rng)]
    rows = score_rows(eft, ARITHMETIC)
    assert {r.score for r in rows} >= {3, 4, 5}
    for row in rows:
        prompt, completion = score_row_ids(tok, ARITHMETIC, row)
        assert tok.unk_token_id not in prompt + completion


def in_this_process(function, arguments, log, progress, *place):
    "In place of `run_job`: a child process would load torch anew for every job."
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)(progress=progress, **arguments)


@pytest.fixture(scope="module")
def prm(tmp_path_factory) -> Path:
    "A token classifier with random weights, and how it is asked."
    from transformers import AutoConfig, AutoModelForTokenClassification

    out, source = tmp_path_factory.mktemp("models") / "prm", str(packaged("models/demo-m0"))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, num_labels=2)
    AutoModelForTokenClassification.from_config(config).save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)
    (out / "prm.json").write_text(json.dumps({"kind": "token"}))
    return out


@pytest.fixture(scope="module")
def done(tmp_path_factory, prm):
    "A run with every arm. Its M1 is hardly taught to score solutions, so the scores are weighed, not read."
    arms = ["judge", "random", "frequency", "flipped", "truth", "solutions"]
    arms += [{"judge": "M1"}, {"judge": "M0"}, {"prm": str(prm)}]
    small = {"test_limit": 2, "judge_test_limit": 2, "ift_limit": 16, "eft_limit": 16}
    more = {f"data.{name}": n for name, n in small.items()} | {
        "gates.action": "warn",
        "judge.verdict": "weighed",
    }
    recipe = load_recipe("fast", questions=[8], arms=arms, match_pairs=True, parallel=1, **more)
    with patch("psr_nb.run.run_job", in_this_process):
        return run(recipe, tmp_path_factory.mktemp("runs") / "all", quiet=True)


def pairs_of_arm(done, arm: str) -> list[StepPair]:
    return read_jsonl(done.folder(arm, 2) / "pairs.jsonl", StepPair)


def searches(done, arm: str) -> dict[str, Trajectory]:
    return {t.problem_id: t for t in read_jsonl(done.folder(arm, 2) / "trajectories.jsonl", Trajectory)}


@pytest.mark.slow
def test_every_arm_has_its_folder_and_as_many_pairs(done):
    folders = {str(done.folder(arm, 2).parent.relative_to(done.path)) for arm in done.recipe.arms}
    others = {"random", "frequency", "flipped", "truth", "solutions", "judge-M0", "judge-M1", "prm-prm"}
    assert folders == {"."} | others
    counts, left_out = set(), []
    for arm in done.recipe.arms:
        m = json.loads((done.folder(arm, 2) / "metrics.json").read_text())
        assert m["arm"] == arm and m["pairs"] == len(pairs_of_arm(done, arm)) > 0
        counts.add(m["pairs"])
        left_out.append(m["pair_table"].get("left out to match", 0))
        own = len(make_pairs(searches(done, arm).values())[0])
        assert m["pairs"] + left_out[-1] == own
    assert len(counts) == 1 and min(left_out) == 0 < max(left_out)


@pytest.mark.slow
def test_the_truth_prefers_right_steps(done):
    for t in searches(done, "truth").values():
        path = [step.candidates[step.chosen].text.strip() for step in t.path]
        for k, step in enumerate(t.path):
            right = [check_step(t.question, path[:k], c.text) for c in step.candidates if not c.problem]
            if step.outcome == "pair":
                assert step.scores == [float(x) for x in right]
                assert right[step.chosen] and not right[step.rejected]


@pytest.mark.slow
def test_flipped_is_the_judges_search_with_its_pairs_turned(done):
    judge, flipped = searches(done, "judge"), searches(done, "flipped")
    assert judge == flipped  # M1 has searched for both
    usual = {(p.trajectory_id, p.step): p for p in make_pairs(judge.values())[0]}
    for p in pairs_of_arm(done, "flipped"):
        other = usual[p.trajectory_id, p.step]
        assert (p.chosen, p.rejected_ids, p.margin) == (other.rejected, other.chosen_ids, -other.margin)


@pytest.mark.slow
def test_a_frozen_judge_says_what_that_model_says(done):
    assert searches(done, "judge:M1") == searches(done, "judge")
    assert searches(done, "judge:M0") != searches(done, "judge")
    judged = [s for t in searches(done, "judge:M0").values() for s in t.steps if s.judgements]
    assert judged and all(j.logprobs for s in judged for j in s.judgements)


@pytest.mark.slow
def test_solutions_have_their_own_m1_and_are_scored_as_wholes(done):
    weights = [
        done.folder(arm, 1) / "model/model.safetensors" for arm in ("judge", "truth", "solutions")
    ]
    assert weights[0] == weights[1] and weights[0].read_bytes() != weights[2].read_bytes()
    own = json.loads((done.folder("solutions", 1) / "metrics.json").read_text())
    assert own["arm"] == "solutions" and "judge_accuracy" not in own  # it was not taught to compare
    for t in searches(done, "solutions").values():
        [step] = t.steps
        usable = [c for c in step.candidates if not c.problem]
        assert all(c.final and "Step 2:" in c.text for c in usable) and not step.judgements
        if len(usable) > 1:
            assert all("Judge: " in c.said for c in usable) and all(0 < x < 5 for x in step.scores)


@pytest.mark.slow
def test_a_report_has_every_arm(done):
    from psr_nb.dashboard.figures import load_metrics
    from psr_nb.dashboard.report import report_html

    table = load_metrics(done)
    assert list(table.arm) == [arm for arm in done.recipe.arms for _ in (1, 2)]
    page = report_html(done)
    assert all(arm in page for arm in done.recipe.arms)


class Killed(BaseException):
    pass


def to_rounding(t: Trajectory) -> tuple:
    "A search but for the last digits of its numbers, which depend on what shares a batch."
    steps = []
    for s in t.steps:
        verdicts = [(j.a, j.b, j.verdict) for j in s.judgements]
        scores = [round(x, 3) for x in s.scores]
        steps.append(
            (s.k, s.outcome, s.chosen, s.rejected, [c.ids for c in s.candidates], scores, verdicts)
        )
    return t.ended, t.answer, t.output_tokens, steps


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["flipped", "truth", "solutions", "judge:M0", "prm"])
def test_a_search_goes_on_after_a_kill(done, tmp_path, scorer):
    [arm] = [arm for arm in done.recipe.arms if arm.startswith(scorer)]
    copy = shutil.copytree(done.path, tmp_path / "copy")
    target = Target(type(done)(done.recipe, copy), arm, 2)
    shutil.rmtree(target.folder)
    arguments = {
        "recipe": json.loads(json.dumps(done.recipe, default=vars)),
        "path": str(copy),
        "arm": arm,
    }

    def killed_at_three(what, n, total):
        if what.startswith("searching") and n == 3:
            raise Killed

    with pytest.raises(Killed):
        engine_job(killed_at_three, **arguments, n=1)
    whole = target.trajectories.read_bytes()
    target.trajectories.write_bytes(whole[:-9])  # the third line is torn
    engine_job(lambda *_: None, **arguments, n=1)
    again = {t.problem_id: t for t in read_jsonl(target.trajectories, Trajectory)}
    assert {id: to_rounding(t) for id, t in again.items()} == {
        id: to_rounding(t) for id, t in searches(done, arm).items()
    }
