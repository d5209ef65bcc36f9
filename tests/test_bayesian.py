"""The Bayesian policy against a plain version of its model, and against a judge whose habits are known."""

import math
from functools import partial
from itertools import permutations

import numpy as np
import pytest

from psr_nb.judge import (
    Calibration,
    _before,
    _learn,
    agreement,
    bayesian,
    calibrated,
    followed,
    knockout,
    played,
    wins,
)
from psr_nb.records import Judgement

KNOWN = Calibration(bias=0.4, bias_sd=0.3, strength=0.8, pair=0.4, order=0.6, scored=True)


def table(n: int, rng, c: Calibration = KNOWN) -> list[Judgement]:
    "A whole round robin of a judge with these habits."
    strength, bias = c.strength * rng.standard_normal(n), c.bias
    pair = c.pair * rng.standard_normal((n, n))
    said = []
    for a, b in permutations(range(n), 2):
        between = strength[a] - strength[b] + (pair[a, b] if a < b else -pair[b, a])
        y = between + bias + c.order * rng.standard_normal()
        said.append(Judgement(a, b, "A" if y > 0 else "B", "", [y, 0.0]))
    return said


def unscored(judgements: list[Judgement]) -> list[Judgement]:
    return [Judgement(j.a, j.b, j.verdict, "") for j in judgements]


def latent_rows(n: int) -> np.ndarray:
    "(comparisons, n strengths + n(n-1)/2 pairs + bias): what each comparison's log-odds are the sum of."
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    rows = []
    for a, b in permutations(range(n), 2):
        row = np.zeros(n + len(pairs) + 1)
        row[[a, b, -1]] = 1, -1, 1
        row[n + pairs.index((min(a, b), max(a, b)))] = 1 if a < b else -1
        rows.append(row)
    return np.array(rows)


def deviations(n: int, c: Calibration) -> np.ndarray:
    "The standard deviation of each of these parts."
    return np.array([c.strength] * n + [c.pair] * (n * (n - 1) // 2) + [c.bias_sd])


def learnt(judgements: list[Judgement], n: int, scored: bool):
    t = _before(n, KNOWN)
    for j in judgements:
        _learn(t, j, scored)
    return t


def test_scores_are_learnt_as_by_a_plain_regression():
    n, rng = 4, np.random.default_rng(0)
    shown, rows = list(permutations(range(n), 2)), latent_rows(n)
    heard = [j for j in table(n, rng) if (j.a, j.b) in ((0, 1), (1, 0), (2, 1), (3, 0))]
    x = rows[[shown.index((j.a, j.b)) for j in heard]]
    y = np.array([j.logprobs[0] for j in heard])
    precision = np.diag(deviations(n, KNOWN) ** -2.0)
    before = np.append(np.zeros(rows.shape[1] - 1), KNOWN.bias)
    after = np.linalg.inv(x.T @ x / KNOWN.order**2 + precision)
    mean = after @ (x.T @ y / KNOWN.order**2 + precision @ before)
    t = learnt(heard, n, scored=True)
    left = t.left
    assert np.allclose(t.mean[left], (rows @ mean)[left])
    assert np.allclose(t.mean[-1], mean[-1])
    both = rows[left] @ after @ rows[left].T + KNOWN.order**2 * np.eye(len(left))
    assert np.allclose(t.cov[np.ix_(left, left)], both)


def test_verdicts_are_learnt_nearly_as_by_drawing_and_throwing_away():
    n, rng = 3, np.random.default_rng(1)
    heard = [Judgement(0, 1, "A", ""), Judgement(1, 2, "A", ""), Judgement(2, 0, "A", "")]
    rows, shown = latent_rows(n), list(permutations(range(n), 2))
    drawn = rng.standard_normal((200_000, rows.shape[1])) * deviations(n, KNOWN)
    drawn[:, -1] += KNOWN.bias
    y = drawn @ rows.T + KNOWN.order * rng.standard_normal((len(drawn), len(rows)))
    kept = y[np.all([y[:, shown.index((j.a, j.b))] > 0 for j in heard], axis=0)]
    t = learnt(heard, n, scored=False)
    for k in t.left:
        first_wins = 0.5 * (1 + math.erf(t.mean[k] / math.sqrt(2 * t.cov[k, k])))
        assert abs(first_wins - (kept[:, k] > 0).mean()) < 0.03


@pytest.mark.parametrize("scored, most", [(True, 11), (False, 17)])
def test_it_keeps_its_confidence_with_fewer_calls(scored, most):
    rng, habits = np.random.default_rng(2), Calibration(0.3, 0.1, 1.0, 0.2, 0.3, True)
    steps = [table(6, rng, habits) for _ in range(60)]
    checks = [table(2, rng, habits) for _ in range(40)]
    if not scored:
        steps, checks = [unscored(x) for x in steps], [unscored(x) for x in checks]
    found = agreement(steps, partial(bayesian, c=calibrated(checks), confidence=0.8))
    assert found["same_choice"] >= 0.9 > agreement(steps, knockout)["same_choice"]
    assert found["calls"] <= most
    assert found["rounds"] <= found["calls"] / 2


def test_one_order_is_not_relied_upon_while_the_bias_is_large_or_unknown():
    rng = np.random.default_rng(3)
    large = Calibration(2.0, 0.05, 0.6, 0.3, 0.5, True)
    for c in (Calibration(), large):
        for n in (2, 3, 5):
            said = table(n, rng, large)
            _, rounds = played(bayesian(n, c, 0.5), said)
            assert {(b, a) for a, b in rounds[0]} == set(rounds[0])
    known = Calibration(0.0, 0.01, 0.7, 0.1, 0.2)
    assert next(bayesian(2, known)) == [(0, 1)]


def test_a_judge_that_goes_by_the_place_is_a_tie():
    always = [Judgement(a, b, "A", "") for a, b in permutations(range(4), 2)]
    scores, _ = played(bayesian(4), always)
    assert len(set(scores)) == 1
    assert followed(Calibration(), [always]).bias > 0.5


def test_full_confidence_is_the_round_robin():
    rng = np.random.default_rng(4)
    for n in (2, 3, 5):
        said = table(n, rng)
        scores, rounds = played(bayesian(n, KNOWN, confidence=1.0, draws=2000), said)
        whole = wins(n, said)
        if sum(map(len, rounds)) == len(said):
            assert scores == whole
        assert whole[scores.index(max(scores))] == max(whole)
        assert whole[scores.index(min(scores))] == min(whole)


def test_a_tie_is_said_before_everything_is_asked():
    known = Calibration(bias=0.4, bias_sd=0.01, strength=0.6, pair=0.3, order=0.05, scored=True)
    said = [Judgement(a, b, "A", "", [0.4, 0.0]) for a, b in ((0, 1), (1, 0))]
    assert played(bayesian(2, known), said) == ([1.0, 1.0], [[(0, 1)]])
