"Every kind of decision has one true sentence, and a query of the explorer is read and never run."

from dataclasses import replace

import pytest

from psr_nb.dashboard.find import find, matches
from psr_nb.dashboard.runs import index_file
from psr_nb.dashboard.why import Rules, why_chosen, why_pair
from psr_nb.judge import JudgeSettings, knockout, run_with, wins
from psr_nb.pairs import PairSettings
from psr_nb.records import Candidate, InputError, Judgement, Step, Trajectory
from psr_nb.search import SearchSettings, decided


def step(verdicts: str, counts=(1, 4, 1), scores=None, **search) -> Step:
    "A step as the search decides it; verdicts are such as '01B', with - for none."
    js = [Judgement(int(v[0]), int(v[1]), v[2].strip("-") or None, "") for v in verdicts.split()]
    cs = [Candidate([1], f"x{i}", False, c) for i, c in enumerate(counts)]
    made = Step(2, 0, [3], cs, js, scores or wins(len(cs), js), "")
    return decided(made, SearchSettings(**search))


TIED = "01B 10A 02B 20A 12A 21A"  # 2 and 3 win three each
CIRCLE = "01A 12A 20A"
MOST = "taken as sampled more often (search.tie_break)"
FIRST = Rules(search=SearchSettings(tie_break="first"))
PRM = Rules("prm", "P")
KINDS = [
    (step(TIED), Rules(), f"Candidate 2 of 3 won: 3 of 4 comparisons, tied with 3, {MOST}."),
    (step(TIED, (1, 1, 4)), Rules(), f"Candidate 3 of 3 won: 3 of 4 comparisons, tied with 2, {MOST}."),
    (step(TIED, (1, 2, 2)), Rules(), "tied with 3, taken as the first of those sampled most often"),
    (step(TIED, (1, 1, 4), tie_break="first"), FIRST, "tied with 3, taken as the first of them"),
    (step("01B 10A 02B 20A 12A 21B"), Rules(), "Candidate 2 of 3 won: 4 of 4 comparisons."),
    (step("01B 10-", (1, 1)), Rules(), "2 of 2 won: 1 of 2 comparisons, 1 without a verdict."),
    (step(CIRCLE), Rules(), "All 3 candidates have the same score (1): a tie with no roll-back left"),
    (replace(step(CIRCLE), rolled_back=True), Rules(), "this step and the one before it were dropped"),
    (replace(step(CIRCLE), rolled_back=True, k=1), Rules(), "a tie, so this step was sampled anew"),
    (step(CIRCLE, on_tie="skip"), Rules(), "candidate 2, sampled most often, was taken and no pair made"),
    (step("01- 10-", (1, 2), on_tie="skip"), Rules("solutions"), "(arm solutions)"),
    (step("", (6,)), Rules(), "All 6 samples said the same"),
    (step("", (1, 4), [1.0, 0.0]), Rules("random"), "was taken: drawn by lot, for this arm compares nothing"),
    (step("", (1, 4), [1.0, 4.0]), Rules("frequency"), "2 of 2 was taken: sampled 4 times of 5 samples"),
    (step("", (1, 4), [1.0, 0.0]), Rules("truth", checked=True), "won: right by the domain's check."),
    (step("", (1, 4), [0.75, 0.5]), Rules("truth", checked=False), "75% of 4 solutions continued from it"),
    (step("", (1, 4), [0.1, 0.9]), PRM, "good with a probability of 0.90, by P."),
    (step("", (1, 4), [4.5, 2.0]), Rules("solutions"), "Solution 1 of 2 won: score 4.5 of 5 by the rubric."),
    (step(TIED), Rules("flipped"), "Candidate 2 of 3 won: 3 of 4 comparisons"),
    (replace(step(TIED), rolled_back=True), Rules(), "; a tie at step 3 later dropped it."),
    (replace(step(TIED), chosen=0), Rules(), "which the recorded scores (0, 3, 3) do not explain."),
    (replace(step(TIED), outcome="new"), Rules(), "The record says 'new'"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(KINDS)))
def test_why_chosen(case):
    s, rules, said = KINDS[case]
    sentence = why_chosen(s, rules)
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence


def test_partial_comparisons_are_no_counts():
    first = [Judgement(0, 1, "A", ""), Judgement(2, 3, "B", ""), Judgement(0, 3, "A", "")]
    said = {(j.a, j.b): j for j in first}
    scores = run_with(knockout(4), lambda asked: [said.get(p, Judgement(*p, "B", "")) for p in asked])
    s = step("01A 23B 03A", (1, 1, 1, 1), scores)
    by = Rules(judge=JudgeSettings(policy="knockout"))
    assert why_chosen(s, by) == (
        "Candidate 1 of 4 won: score 2 with 2 of 2 comparisons won (judge.policy=knockout)."
    )
    adaptive = Rules(judge=JudgeSettings(policy="adaptive"))
    assert "wins expected" in why_chosen(step("01A", (1, 1), [1.8, 0.2]), adaptive)


PAIRS = [
    ({}, "A pair: 2 preferred to 1, margin 3."),
    ({"min_margin": 4}, "No pair: its margin of 3 is below pairs.min_margin=4."),
    ({"right_only": True}, "No pair: whether the answer is right is not known (pairs.right_only)."),
    ({"orders_agree": True}, "A pair: 2 preferred to 1, margin 3."),
    ({"judges_agree": ["self"]}, "A pair: 2 preferred to 1, margin 3."),
]


@pytest.mark.parametrize("given,said", PAIRS)
def test_why_pair(given, said):
    t = Trajectory("q", "", [1], [step(TIED)], "answered")
    assert why_pair(t, 0, Rules(pairs=PairSettings(**given))) == said


def test_why_no_pair():
    won_once = replace(step("01B 10B", (1, 1), [1.0, 2.0]))
    t = Trajectory("q", "", [1], [won_once, replace(step(TIED), rolled_back=True)], "answered")
    strict = Rules(pairs=PairSettings(orders_agree=True))
    assert why_pair(t, 0, strict) == (
        "No pair: the chosen did not win in every order (pairs.orders_agree)."
    )
    alone = Rules(pairs=PairSettings(judges_agree=["self"]))
    assert "pairs.judges_agree=self" in why_pair(t, 0, alone)
    assert why_pair(t, 1, strict) == "No pair: a tie at step 3 rolled it back."


@pytest.mark.parametrize("query", ["margn>2", "x = 5", "not agre", "(right", "margin>", "a.__class__=1"])
def test_a_query_that_cannot_be_read_is_one_sentence(query):
    with pytest.raises(InputError) as e:
        matches(query, {"right": True, "agree": None, "margin": 2})
    assert "\n" not in str(e.value)


def test_words_are_found_in_what_the_judge_wrote(tmp_path):
    from made_up_run import made_up_run

    run = made_up_run(tmp_path / "r", ["How many?"] * 3, steps=2, judge=lambda: "A drops a Zebra [[A]]")
    index = index_file(run / "M2/trajectories.jsonl")
    assert find(index, "zebra many") == {r["id"]: [0, 1] for r in index.rows}
    assert find(index, 'words~"zebra" and step=2') == {r["id"]: [1] for r in index.rows}
    assert find(index, "zebra giraffe") == {}
