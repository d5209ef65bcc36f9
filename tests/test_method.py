"Faults of the method that a run would not show: what is compared, what is trained on, what is read."

import json
from dataclasses import replace
from pathlib import Path

import pytest

from psr_nb.datagen.trees import Growth, TreeSettings, grow
from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.engine import RecordedEngine, load_tokenizer, says
from psr_nb.evaluate import EvalSettings, Solving, evaluate
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import plan
from psr_nb.judge import JudgeSettings, knockout, replay, round_robin, wins
from psr_nb.pairs import PairSettings, make_pairs, pairs_of
from psr_nb.recipe import load_recipe
from psr_nb.records import EFTRow, InputError, Judgement, Problem, StepPair, Trajectory, as_record
from psr_nb.search import SearchSettings, SearchSetup, drive, search
from psr_nb.searches import search_figures

TOK = load_tokenizer(str(packaged("models/demo-m0")))
PROBLEM = Problem("p", "Tom has 2 apples. How many apples now?", "2")


def scripted(*steps: str, verdict: str = " [[A]]"):
    "An engine that writes these candidates for every step, and as a judge this verdict."

    def reply(request):
        judging = "Judge." in TOK.decode(request.prompt_ids)
        return says(TOK, verdict) if judging else says(TOK, *steps)

    return RecordedEngine(TOK, reply)


def searched(engine, judge: JudgeSettings = JudgeSettings(), **settings) -> Trajectory:
    "The trajectory of a problem."
    setup = SearchSetup(TOK, ARITHMETIC, SearchSettings(**settings), judge, context=512)
    [(_, t)] = drive(engine, [("p", search(PROBLEM, setup))])
    return t


@pytest.mark.parametrize(
    ("samples", "ends", "otherwise"),
    [
        ([" answer 2<eos>"] * 2 + [" answer 2\n"], "answered", 1),
        ([" answer 2\n"] * 2 + [" answer 2<eos>"], "step limit", 1),
        ([" answer 2<eos>"] * 3, "answered", 0),
    ],
)
def test_what_differs_in_its_end_only_is_one_candidate(samples, ends, otherwise):
    t = searched(scripted(*samples), max_steps=1)
    [candidate] = t.steps[0].candidates
    assert (t.steps[0].outcome, t.steps[0].judgements, t.ended) == ("unanimous", [], ends)
    assert (candidate.count, candidate.ended_otherwise) == (3, otherwise)
    assert candidate.final == (candidate.ids[-1] == TOK.eos_token_id) == (ends == "answered")
    assert search_figures([t]).get("ended_otherwise", 0) == otherwise


def test_a_pair_is_never_of_equal_texts():
    samples = [" answer 2<eos>", " answer 2\n", " answer 3\n", " answer 3<eos>"]
    t = searched(scripted(*samples), JudgeSettings(orders="single"), max_steps=1)
    [pair] = pairs_of(t)
    assert {pair.chosen.strip(), pair.rejected.strip()} == {"answer 2", "answer 3"}
    assert [(c.count, c.ended_otherwise) for c in t.steps[0].candidates] == [(2, 1), (2, 1)]


def test_a_file_has_the_new_field_only_where_it_says_something(tmp_path):
    t = searched(scripted(" answer 2<eos>", " answer 2<eos>"), max_steps=1)
    write_jsonl(tmp_path / "t.jsonl", [t])
    assert "ended_otherwise" not in (tmp_path / "t.jsonl").read_text()
    t.steps[0].candidates[0].ended_otherwise = 1
    write_jsonl(tmp_path / "t.jsonl", [t])
    assert read_jsonl(tmp_path / "t.jsonl", Trajectory) == [t]


def judged_by(rows: list[EFTRow], folder: Path, **more) -> dict[str, list]:
    "The plan of a run whose judge is trained on these rows, and tested on the demo's."
    write_jsonl(folder / "eft.jsonl", rows)
    small = {"data.eft": str(folder / "eft.jsonl"), "data.ift_limit": 4, "questions": [4]}
    return plan(load_recipe("fast", **small, **more))


def test_rows_of_the_judge_test_are_refused_dropped_or_kept(tmp_path):
    held = read_jsonl(packaged("demo/judge_test.jsonl"), EFTRow)[:20]
    turned = [replace(r, id=f"t-{r.id}", question=r.question.upper(), a=r.b, b=r.a + " ") for r in held]
    other = read_jsonl(packaged("demo/eft.jsonl"), EFTRow)[:3]
    with pytest.raises(
        InputError, match="20 of its rows are in the judge test: t-.* is .*drop leaves them"
    ):
        judged_by(turned + other, tmp_path)
    with pytest.warns(UserWarning, match="20 of its rows are in the judge test, and 3 are left"):
        assert judged_by(turned + other, tmp_path, **{"data.contamination": "drop"})["eft"] == other
    assert len(judged_by(turned + other, tmp_path, **{"data.contamination": "keep"})["eft"]) == 23
    with pytest.raises(InputError, match="none of its rows is left"), pytest.warns(UserWarning):
        judged_by(turned, tmp_path, **{"data.contamination": "drop"})


def test_another_step_of_the_same_question_is_no_row_of_the_judge_test(tmp_path):
    held = read_jsonl(packaged("demo/judge_test.jsonl"), EFTRow)[:20]
    later = [replace(r, steps=[*r.steps, "1+1=2"]) for r in held]
    assert judged_by(later, tmp_path)["eft"] == later


def numbered(request):
    "As many different steps as are asked for."
    return says(TOK, *(f" {i}+1={i + 1}\n" for i in range(request.sampling.n)))


def test_the_default_tree_chooses_what_it_expands():
    def likes(digit):
        def scorer(spot):
            yield from ()
            return [float(c.text.strip().startswith(digit)) for c in spot.candidates]

        return scorer

    grown = {}
    for digit in "14":
        growth = Growth(TOK, ARITHMETIC, likes(digit), TreeSettings())
        [(_, tree)] = drive(RecordedEngine(TOK, numbered), [("p", grow(PROBLEM, growth))])
        grown[digit] = {tuple(x.steps) for x in tree.siblings}
        assert len(tree.siblings) == TreeSettings().iterations
    assert grown["1"] != grown["4"]


def test_a_pair_that_was_never_compared_has_no_agreement():
    j = Judgement(0, 1, "A", "")
    compared = searched(
        scripted(" answer 2\n", " answer 3\n"), JudgeSettings(orders="single"), max_steps=1
    )
    [pair] = pairs_of(compared)
    assert pair.orders_agree is True
    compared.steps[0].judgements = [replace(j, a=0, b=2)]
    [pair] = pairs_of(compared)
    assert pair.orders_agree is None
    assert as_record(StepPair, json.loads(json.dumps(vars(pair)))).orders_agree is None
    strict = PairSettings(orders_agree=True)
    assert make_pairs([compared], strict)[1] == {"steps": 1, "never compared": 1}
    compared.steps[0].judgements = []  # a control's
    assert make_pairs([compared], strict)[1] == {"steps": 1, "pairs": 1}


def test_a_search_without_an_end_is_read_as_a_greedy_solution_is(tmp_path):
    def read(mode, *texts):
        how = Solving(ARITHMETIC, EvalSettings(60, mode), SearchSettings(2, max_steps=2, on_tie="skip"))
        name = f"{mode}{len(texts)}.jsonl"
        [row] = evaluate(scripted(*texts), [PROBLEM], how, tmp_path / name)
        return row.answer, row.equal, row.note

    greedy = read("greedy", " answer 2\nStep 2: answer 2\n")
    at_limit = read("search", " answer 2\n", " answer 2\n")
    assert greedy[:2] == at_limit[:2] == ("2", True)
    assert at_limit[2] == "step limit"


def test_frugal_policies_see_fewer_ties():
    says_a = [Judgement(a, b, "A", "") for a in range(4) for b in range(4) if a != b]
    assert len(set(wins(4, says_a))) == 1
    ties = {f.__name__: len(set(replay(f(4), says_a)[0])) == 1 for f in (round_robin, knockout)}
    assert ties == {"round_robin": True, "knockout": False}


def test_a_generator_that_asks_nothing_goes_on():
    def quiet():
        answered = yield []
        return answered

    assert list(drive(scripted(""), [("q", quiet())])) == [("q", [])]
