"Settings of the literature, off by default: what each does, and that trees and pairs give the same."

import copy
import json
import shutil
import typing
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.dpo import DPOSettings, _collate, _rows, _with_texts, step_dpo_trainer
from psr_nb.engine import RecordedEngine, load_tokenizer, says
from psr_nb.engines.transformers import load_model
from psr_nb.evaluate import JudgeRow
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import Run, Target
from psr_nb.judge import (
    JudgeSettings,
    JudgeSetup,
    few_shot,
    judge_requests,
    judge_stats,
    judge_with,
    no_seed,
)
from psr_nb.pairs import PairSettings, judgement_pairs, make_pairs, path_text, weighted
from psr_nb.recipe import load_recipe
from psr_nb.records import (
    Candidate,
    EFTRow,
    IFTRow,
    InputError,
    LearntText,
    Step,
    StepPair,
    Trajectory,
    as_record,
    as_row,
)
from psr_nb.sft import ift_ids
from psr_nb.texts.chat import prompt_ids
from psr_nb.work import _make_average, _reference

M0, M1 = (str(packaged(f"models/demo-m{n}")) for n in (0, 1))
LOSSES = typing.get_args(typing.get_type_hints(DPOSettings)["loss"])
REFUSED = ("aot", "aot_unpaired", "sft")


@cache
def trajectories() -> list[Trajectory]:
    return read_jsonl(packaged("runs/demo") / "M2" / "trajectories.jsonl", Trajectory)


@cache
def some_pairs():
    return make_pairs(trajectories())[0][:12]


def trainer_of(packing, tmp_path, rows=None, **settings):
    "Reference M0, so that log-ratios aren't 0; the two ways make micro-batches of other pairs."
    s = DPOSettings(beta=0.3, packing=packing, micro_batch=5, tree_tokens=200, **settings)
    trainer, *_ = step_dpo_trainer(M1, rows or some_pairs(), tmp_path / packing, s, 0, reference=M0)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def first_update(trainer):
    "(loss, gradients) of the first optimizer step."
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.training_step(trainer.model, batch).item()
    return loss, {n: w.grad.clone() for n, w in trainer.model.named_parameters() if w.grad is not None}


def furthest(a, b) -> float:
    "The largest difference of losses or of gradients, relative where they are above 1."
    largest = max(g.abs().max().item() for g in b[1].values())
    gradients = max((a[1][n] - g).abs().max().item() for n, g in b[1].items())
    return max(abs(a[0] - b[0]) / max(1, abs(b[0])), gradients / max(1, largest))


def both_ways(tmp_path, rows=None, **settings):
    "The first update with trees, which is that with pairs."
    tree, pairs = (first_update(trainer_of(p, tmp_path, rows, **settings)) for p in ("tree", "pairs"))
    assert furthest(tree, pairs) < 1e-5
    return tree


def test_every_loss_of_trl_is_the_same_on_trees_and_pairs(tmp_path):
    tree, pairs = (trainer_of(p, tmp_path, label_smoothing=0.1) for p in ("tree", "pairs"))
    off, values = {}, {}
    for loss in LOSSES:
        tree.loss_types = pairs.loss_types = [loss]
        found = first_update(tree)
        off[loss], values[loss] = furthest(found, first_update(pairs)), found[0]
    assert len(set(values.values())) == len(LOSSES) == 15
    kept = {loss: x for loss, x in off.items() if loss not in REFUSED}
    assert max(kept.values()) < 1e-5, kept
    assert min(off[loss] for loss in REFUSED) > 1e-4, off  # why they are refused


@pytest.mark.parametrize("loss", REFUSED)
def test_other_losses_are_refused(loss):
    with pytest.raises(InputError, match=f"^loss: {loss} .*; (take|set) "):
        DPOSettings(loss=loss)


def log_prob(model, prompt, ids):
    logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, t] for i, t in enumerate(ids))


def plain_losses(pairs):
    "DPO's loss of each pair, written out."
    policy, reference = load_model(M1), load_model(M0)

    def margin(model, p):
        chosen, rejected = (log_prob(model, p.prompt_ids, ids) for ids in (p.chosen_ids, p.rejected_ids))
        return chosen - rejected

    with torch.no_grad():
        off = [margin(policy, p) - margin(reference, p) for p in pairs]
    return [-torch.nn.functional.logsigmoid(0.3 * x).item() for x in off]


def test_a_pair_counts_as_its_weight(tmp_path):
    pairs = weighted([replace(p, margin=float(1 + i % 4)) for i, p in enumerate(some_pairs())], "margin")
    losses = plain_losses(pairs)
    by_hand = sum(p.margin * x for p, x in zip(pairs, losses, strict=True)) / sum(
        p.margin for p in pairs
    )
    assert abs(by_hand - sum(losses) / len(losses)) > 1e-3
    assert both_ways(tmp_path, pairs)[0] == pytest.approx(by_hand, rel=1e-5)


def text_nll(model, text: LearntText) -> float:
    logits = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    learnt = [i for start, end in text.learnt for i in range(start, end)]
    return -sum(logits[i - 1, text.ids[i]].item() for i in learnt) / len(learnt)


def test_whole_paths_and_rehearsed_rows_are_learnt_beside_the_pairs(tmp_path):
    pairs, tok = some_pairs(), load_tokenizer(M1)
    own = {p.trajectory_id for p in pairs}
    paths = [path_text(t) for t in trajectories() if t.problem_id in own]
    solved = IFTRow("r", "Ana has 4 coins. Ana gets 3 more.", ["4+3=7"], "7")
    prompt, completion = ift_ids(tok, ARITHMETIC, solved)
    row = LearntText("r", prompt + completion, [[len(prompt), len(prompt + completion)]], "rehearsal")
    asked = dict(nll_weight=0.5, nll_on="trajectory", rehearsal=0.25)
    found = both_ways(tmp_path, [*pairs, *paths, row], **asked)[0]
    model, n = load_model(M1), len(pairs)
    whole = sum(text_nll(model, p) for p in paths) / len(paths)
    drawn = round(n / 3)  # whole texts: as near to a quarter of the update as they come
    by_hand = sum(plain_losses(pairs)) + 0.5 * n * whole + drawn * text_nll(model, row)
    assert found == pytest.approx(by_hand / (n + drawn), rel=1e-5)
    assert both_ways(tmp_path / "without", pairs, weight_decay=0.0)[0] != pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("asked", [{"rehearsal": 0.1}, {"nll_weight": 0.1, "nll_on": "trajectory"}])
def test_texts_that_are_asked_for_have_to_be_there(tmp_path, asked):
    with pytest.raises(InputError, match="^dpo.(rehearsal|nll_on): .*; give "):
        trainer_of("pairs", tmp_path, **asked)


def of_length(t: Trajectory, times: int) -> Trajectory:
    "A trajectory whose chosen steps are longer."
    for step in (s for s in t.steps if s.outcome == "pair"):
        longer = [c.ids * times if i == step.chosen else c.ids for i, c in enumerate(step.candidates)]
        step.candidates = [replace(c, ids=ids) for c, ids in zip(step.candidates, longer, strict=True)]
    return t


def test_length_is_penalised_and_limited():
    rows = [of_length(t, 1 + 2 * (i % 2)) for i, t in enumerate(copy.deepcopy(trajectories()))]
    free, table = make_pairs(rows)
    short, counted = make_pairs(rows, PairSettings(length_penalty=0.15))
    tokens = [sum(len(p.chosen_ids) for p in pairs) / len(pairs) for pairs in (free, short)]
    assert tokens[1] < tokens[0] and counted["of them, chosen by length"] > 0
    assert all(p.margin > 0 for p in short) and counted["pairs"] == len(short)
    assert counted["pairs"] + counted.get("tied by length", 0) == table["pairs"] == len(free)
    near, limited = make_pairs(rows, PairSettings(max_length_ratio=2.5))
    assert all(len(p.chosen_ids) <= 2.5 * len(p.rejected_ids) for p in near)
    assert 0 < limited["pairs"] < table["pairs"] == limited["pairs"] + limited["lengths too unequal"]


TOGETHER = {
    "model": "packaged:models/demo-m1",
    "questions": "[12,10]",
    "arms": "[judge]",
    "gates.action": "warn",
    "judge.votes": 3,
    "judge.temperature": 1.2,
    "pairs.judges_agree": "[M1,self]",
    "pairs.judgements": "consistent",
    "pairs.weight": "margin",
    "pairs.length_penalty": 0.01,
    "pairs.max_length_ratio": 4,
    "dpo.nll_weight": 0.1,
    "dpo.nll_on": "trajectory",
    "dpo.rehearsal": 0.2,
    "dpo.reference": "ema",
    "dpo.loss": "apo_zero",
}


def made_with_all_of_them(folder):
    "The pairs and texts of a model are what its settings say; (steps' pairs, table)."
    made = json.loads((folder / "metrics.json").read_text())
    table, pairs = made["pair_table"], read_jsonl(folder / "pairs.jsonl", StepPair)
    of_steps = [p for p in pairs if p.weight is not None]
    assert len(of_steps) == table["pairs"] == made["pairs"]
    assert len(pairs) - len(of_steps) == table["pairs of judgements"] > 0
    assert sum(p.weight for p in of_steps) == pytest.approx(len(of_steps))
    texts = read_jsonl(folder / "texts.jsonl", LearntText)
    assert {t.id for t in texts if t.kind == "path"} == {p.trajectory_id for p in of_steps}
    assert any(t.kind == "rehearsal" for t in texts)
    assert made["search"]["judge"]["vote_agreement"] > 0.5
    log = [json.loads(x) for x in (folder / "model" / "training.jsonl").read_text().splitlines()]
    assert log and all(row["nll/texts"] > 0 for row in log)
    return of_steps, table


@pytest.mark.slow
def test_a_run_with_all_of_them(psr, tmp_path):
    asked = [x for name, value in TOGETHER.items() for x in ("--set", f"{name}={value}")]
    limits = [
        x for name in ("test", "judge_test", "ift", "eft") for x in ("--set", f"data.{name}_limit=4")
    ]
    out = tmp_path / "run"
    done = psr("run", "fast", "--out", out, *asked, *limits)
    assert done.returncode == 0, done.stderr
    made_with_all_of_them(out / "M2")
    pairs, table = made_with_all_of_them(out / "M3")
    said = Counter()
    for row in read_jsonl(out / "M3" / "agreement.jsonl", JudgeRow):
        said[row.id] += {row.gold: 1, None: 0}.get(row.verdict, -1)
    agreed = {id for id, n in said.items() if n > 0}
    assert {f"{p.trajectory_id} step {p.step}" for p in pairs} == agreed
    assert table.get("judges disagree", 0) >= len(said) - len(agreed)
    assert not (out / "M2" / "agreement.jsonl").exists() and not (out / "M3" / "model.training").exists()


def in_order(request):
    "Three verdicts: two for the sum that is right, 2+3=5, and one for the other."
    first = load_tokenizer(M1).decode(request.prompt_ids).index("=5") < 20
    right, wrong = ("[[A]]", "[[B]]") if first else ("[[B]]", "[[A]]")
    return says(load_tokenizer(M1), f"5. {wrong}", f"2+3=5. {right}", f"so 5. {right}")


def judged_step(**settings):
    "(what the judge was asked, a trajectory with one step judged with votes, who judged)."
    seen, tok = [], load_tokenizer(M1)
    judge = JudgeSetup(tok, ARITHMETIC, JudgeSettings(votes=3, temperature=1.0, **settings))

    def listening(request):
        seen.append(request)
        return in_order(request)

    judged, scores = judge_with(RecordedEngine(tok, listening), judge, "2+3?", [], ["2+3=5", "2+3=6"])
    steps = [
        (tok(f" {s}\n", add_special_tokens=False)["input_ids"], f" {s}\n") for s in ("2+3=5", "2+3=6")
    ]
    candidates = [Candidate(ids, text, False) for ids, text in steps]
    step = Step(1, 0, [5], candidates, judged, scores, "pair", chosen=0, rejected=1)
    return seen, Trajectory("q", "2+3?", [4], [step], "step limit"), judge


def test_a_candidate_wins_its_share_of_the_votes():
    seen, t, _ = judged_step()
    assert [r.sampling.n for r in seen] == [3, 3]
    assert t.steps[0].scores == pytest.approx([4 / 3, 2 / 3])
    assert [j.verdict for j in t.steps[0].judgements] == ["A", "B"]
    assert as_record(Trajectory, json.loads(json.dumps(as_row(t)))) == t
    assert judge_stats([t.steps[0].judgements])["vote_agreement"] == pytest.approx(2 / 3)


def test_pairs_of_judgements_are_of_prompts_that_were_asked(tmp_path):
    seen, t, judge = judged_step()
    pairs = judgement_pairs(t, judge)
    assert [p.prompt_ids for p in pairs] == [r.prompt_ids for r in seen]
    assert [(p.chosen[-5:], p.rejected[-5:]) for p in pairs] == [("[[A]]", "[[B]]"), ("[[B]]", "[[A]]")]
    assert [p.margin for p in pairs] == pytest.approx([1 / 3, 1 / 3])
    both_ways(tmp_path, [*some_pairs()[:4], *pairs])
    t.steps[0].judgements[1].verdict = "A"  # the orders disagree
    assert judgement_pairs(t, judge) == []


def test_the_model_that_searched_has_to_agree():
    rows, asked = trajectories(), PairSettings(judges_agree=["self"])
    pairs, table = make_pairs(rows)
    kept, counted = make_pairs(rows, asked)
    assert counted["pairs"] == len(kept) and {id(p) for p in kept}.isdisjoint(map(id, pairs))
    assert len(pairs) == len(kept) + counted.get("judges disagree", 0) + counted.get("never compared", 0)
    [t] = [judged_step()[1]]
    assert len(make_pairs([t], asked)[0]) == 1
    t.steps[0].judgements[0].votes = t.steps[0].judgements[1].votes = []
    t.steps[0].judgements[0].verdict = "B"
    assert make_pairs([t], asked)[1] == {"steps": 1, "judges disagree": 1}
    with pytest.raises(InputError, match="judges_agree: 'M2' is not known; there is M1, self"):
        PairSettings(judges_agree=["M2"])


def test_examples_come_before_the_question_and_end_the_answer():
    shown = [EFTRow("e", "1+1?", [], "1+1=2", "1+1=3", "A", "2 is right.")]
    judge = JudgeSetup(load_tokenizer(M1), few_shot(ARITHMETIC, shown), JudgeSettings(shots=1))
    [asked] = judge_requests(judge, "2+3?", [], ["2+3=5", "2+3=6"], [(1, 0)], no_seed)
    plain = ARITHMETIC.judge("2+3?", [], "2+3=6", "2+3=5")
    text = judge.domain.judge("2+3?", [], "2+3=6", "2+3=5")
    assert text.endswith(plain) and text.startswith(
        ARITHMETIC.judge("1+1?", [], "1+1=2", "1+1=3") + " 2 is right. [[A]]"
    )
    assert len(asked.prompt_ids) > len(prompt_ids(judge.tokenizer, plain)) and asked.sampling.stop


def test_the_reference_is_an_average_of_the_models_so_far(tmp_path):
    changes = {"dpo.reference": "ema", "dpo.ema_decay": 0.75, "start": "M1", "model": M1}
    third = Target(Run(load_recipe("fast", **changes), tmp_path), "judge", 3)
    shutil.copytree(M0, third.run.folder("judge", 2) / "model")  # as if M2 were this one
    assert _reference(replace(third, n=2)) is None
    _make_average(third)
    first, second, mean = (load_model(f).lm_head.weight for f in (M1, M0, _reference(third)))
    assert torch.allclose(mean, 0.75 * first + 0.25 * second, atol=1e-7) and not torch.equal(
        first, second
    )
    written = (Path(_reference(third)) / "model.safetensors").stat().st_mtime_ns
    _make_average(third)  # a run that goes on takes it as it is
    assert (Path(_reference(third)) / "model.safetensors").stat().st_mtime_ns == written
    of_m0 = Run(load_recipe("fast", **changes | {"dpo.reference": "M0"}), tmp_path)
    assert _reference(replace(third, run=of_m0)) == M1  # the model that the run starts with


def test_a_run_asks_its_judge_with_examples_of_its_own_data(tmp_path):
    r = load_recipe("fast", **{"judge.shots": 2})
    run = Run(r, tmp_path)
    rows = [
        EFTRow(f"e{i}", f"{i}+1?", [], f"{i}+1={i + 1}", f"{i}+1=9", v, "so.")
        for i, v in ((1, "B"), (2, "B"), (3, "A"))
    ]
    write_jsonl(run.data("eft"), rows)
    asked = Target(run, "judge", 2).domain.judge("2+3?", [], "2+3=5", "2+3=6")
    assert [asked.find(f"{i}+1?") >= 0 for i in (1, 2, 3)] == [True, False, True]
    assert asked.index("3+1?") < asked.index("1+1?") and asked.endswith(
        run.domain.judge("2+3?", [], "2+3=5", "2+3=6")
    )
    with pytest.raises(InputError, match="^judge.shots: a run that starts with M1 has no EFT rows"):
        load_recipe("fast", **{"judge.shots": 2, "start": "M1"})


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_has_as_many_passes_of_each_kind(world):
    s = DPOSettings(rehearsal=0.3, nll_weight=0.2, nll_on="trajectory", micro_batch=2, tree_tokens=300)
    pairs = some_pairs()
    texts = [path_text(t) for t in trajectories()]
    texts += [LearntText(f"r{i}", [5] * 9, [[4, 9]], "rehearsal") for i in range(4)]
    [row] = _with_texts(_rows(pairs, s, 0), texts, s, 0)
    parts = [_collate([row], 0, s, rank, world)["micro"] for rank in range(world)]
    kinds = [["labels" in m["batch"] for m in part] for part in parts]
    assert all(kind == kinds[0] for kind in kinds) and {True, False} == set(kinds[0])
    drawn = sum(t["kind"] == "rehearsal" for t in row["texts"])
    assert drawn == round(len(pairs) * 0.3 / 0.7)
    shares = {
        kind: sum(m["share"] for p in parts for m in p if ("labels" in m["batch"]) == kind)
        for kind in (0, 1)
    }
    n = len(pairs)
    assert shares[0] / world == pytest.approx(n / (n + drawn))
    assert shares[1] / world == pytest.approx((0.2 * n + drawn) / (n + drawn))
