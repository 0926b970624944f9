"""Scores and aggregates of an evaluation, in closed form."""

import itertools

import numpy as np
import pytest
from scipy import stats

from l2o.meta_train.evaluation._aggregate import (
    improves,
    interval,
    iqm,
    p_value,
    profile,
)
from l2o.meta_train.evaluation._scores import (
    Envelope,
    area,
    diverged,
    duel,
    ema,
    envelope,
    final,
    improvement,
    rate_range,
    score_range,
    smooth,
    speedup,
    steps_to,
)


def test_smoothing_is_a_trailing_mean_of_up_to_five_points():
    x = np.arange(8.0) ** 2
    expected = [np.mean(x[max(0, i - 4) : i + 1]) for i in range(8)]
    np.testing.assert_allclose(smooth(x), expected)
    assert final(x) == pytest.approx(expected[-1])


def test_area_is_the_mean_of_a_piecewise_linear_curve():
    np.testing.assert_allclose(area(np.array([[4.0, 2.0, 2.0]])), [2.5])


def test_diverged_is_not_finite_or_above_the_start():
    train = np.ones((4, 8))
    train[1, -1] = np.nan
    train[2, 1:] = 1.5
    train[3, 4] = np.inf  # within the last five
    assert diverged(train).tolist() == [False, True, True, True]


def test_improvement_is_the_share_of_the_references():
    initial = np.full(5, 3.0)
    loss = np.array([1.0, 2.0, 0.0, 5.0, np.nan])
    share = improvement(loss, initial, reference=1.0)
    np.testing.assert_allclose(share, [1.0, 0.5, 1.5, 0.0, 0.0])
    assert improvement(np.array([-50.0]), initial[:1], 1.0) == 2.0  # bounded
    # A reference that did not improve tells nobody apart.
    assert not improvement(loss, initial, reference=3.0).any()


def test_ema_by_hand():
    x = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(ema(x, 10), [1.0, 0.95, 0.95**2])
    np.testing.assert_allclose(ema(x, 20), [1.0, 0.95**2, 0.95**4])


def test_envelope_takes_the_best_rate_at_each_step_and_never_rises():
    # Constant curves are their own exponential mean.
    early = np.array([[1.0, 1.0, 1.0]]) * 0.5
    diverging = np.array([[0.4, np.nan, np.nan]])
    reached = envelope([early, diverging, early + 0.3], every=10)
    np.testing.assert_allclose(reached.loss, [0.4, 0.4, 0.4])
    assert reached.steps.tolist() == [0, 10, 20]
    # Means are over seeds before the minimum.
    two = np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(envelope([two], 10).loss, [0.5, 0.5])


def test_steps_to_interpolates():
    loss = np.array([1.0, 0.8, 0.8, 0.4] + [0.4] * 7)
    asked = np.array([2.0, 1.0, 0.9, 0.8, 0.6, 0.4, 0.1, np.nan, np.inf])
    found = steps_to(Envelope(10 * np.arange(11), loss), asked)
    # Ties give the earliest step; what is out of reach the last; not finite nothing.
    np.testing.assert_allclose(found, [0, 0, 5, 10, 25, 30, 100, 0, 0])


def test_speedup_of_adam_over_itself_is_one_and_beyond_it_is_censored():
    adam = np.exp(-np.arange(41) / 10)[None]
    reached = envelope([adam], 10)
    same = speedup(adam[:, :21], 10, reached)
    np.testing.assert_allclose(same.value, 1.0)
    assert not same.censored.any()
    # Another curve, with numpy's interpolation of the inverse of a falling envelope.
    fast = np.exp(-np.arange(21) / 5)[None]
    inverse = np.interp(-ema(fast, 10)[0, -1], -reached.loss, reached.steps)
    np.testing.assert_allclose(speedup(fast, 10, reached).value, inverse / 200)
    assert inverse > 220
    better = speedup(adam[:, :21] * 1e-3, 10, reached)
    np.testing.assert_allclose(better.value, 2.0)  # Adam's 400 steps over 200
    assert better.censored.all()
    worse = speedup(np.where(np.arange(21) > 3, np.nan, 1.0)[None], 10, reached)
    assert worse.value == 0 and not worse.censored


def test_duel_by_hand():
    slow = np.linspace(1.0, 0.0, 11)  # loss 1 - step / 100
    fast = np.maximum(1.0 - np.arange(0, 101, 10) / 50, 0.0)
    found = duel(np.stack([fast, slow]), np.stack([slow, fast]), every=10)
    trailing = [np.mean(fast[max(0, i - 4) : i + 1]) for i in range(11)]
    # Read from smoothed curves: slow ends at 0.2, fast at 0.
    first = 10 * int(np.argmax(np.array(trailing) <= 0.2))
    assert found.speedup[0] == 100 / first
    assert np.isnan(found.speedup[1])  # slow never reaches fast's 0
    assert found.rival_fraction[1] == first / 100


def test_iqm_leaves_out_a_quarter_at_each_end():
    assert iqm(np.array([0.0, 1.0, 3.0, 100.0])) == 2.0


def test_interval_covers_the_mean_as_often_as_it_says():
    # 95 % of intervals from normal draws; 200 trials: 6 standard deviations is 9 %.
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        scores = rng.normal(size=(30, 4))
        found = interval(scores, np.mean, seed=trial)
        inside += found.low < 0 < found.high
    assert 0.86 < inside / 200 <= 1
    constant = interval(np.full((3, 5), 0.7))
    assert constant == (pytest.approx(0.7),) * 3


def test_interval_draws_within_tasks():
    # Tasks differ a lot, seeds do not: all that is uncertain is between seeds.
    scores = np.array([0.0, 10.0, 20.0, 30.0]) + np.zeros((3, 1))
    found = interval(scores, np.mean)
    assert found.low == found.high == found.value == 15.0


def test_improves_counts_pairs():
    x, y = np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]])
    # 1<2, 1<3, 3>2, 3=3
    assert improves(x, y) == pytest.approx(1.5 / 4)
    assert improves(x, y) + improves(y, x) == pytest.approx(1.0)


def test_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(1)
    difference = rng.normal(0.4, 1.0, 9)
    x, y = np.stack([difference, difference]), np.zeros((2, 9))
    ranks = stats.rankdata(np.abs(difference))
    total = ranks.sum() / 2
    seen = abs(ranks[difference > 0].sum() - total)
    flips = [
        abs(np.dot(signs, ranks) - total)
        for signs in itertools.product((0, 1), repeat=9)
    ]
    expected = np.mean(np.array(flips) >= seen - 1e-9)
    assert p_value(x, y) == pytest.approx(expected)
    assert p_value(y, y) == 1.0


def test_profile_counts_runs():
    scores = np.array([[0.1, 0.5], [0.9, 1.5]])
    found = profile(scores, np.array([0.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(found, [1, 0.75, 0.25, 0])


@pytest.mark.parametrize(
    ("losses", "decades"),
    [
        ((1.00, 1.04, 1.06, 1.01), 0.5),  # what lies behind a worse one does not count
        ((1.06, 1.04, 1.00, 1.05), 1.0),
        ((1.02, 1.00, 1.01, 1.03), 1.5),
        ((2.00, 1.00, 2.00, np.nan), 0.0),
        ((np.inf, 1.00, 1.00, np.nan), 0.5),
        ((-1.0, -0.96, -0.94, 0.0), 0.5),  # of a loss that may be negative
        ((np.nan,) * 4, np.nan),
    ],
)
def test_rate_range_by_hand(losses, decades):
    rates = 10.0 ** (-0.5 * np.arange(4))
    found = [rate_range(rates, losses), rate_range(rates[::-1], losses[::-1])]
    np.testing.assert_allclose(found, decades, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "decades", "bounded"),
    [
        ((0.0, 1.0, 0.9, 0.0), 0.05 + 0.5, False),
        ((0.9, 0.96, 1.0, 0.0), 1 + 1 / 6 + 0.05, False),  # 0.95 lies on the way to 0.9
        ((0.96, 1.0, 0.98, 0.97), 3.0, True),
        (
            (1.0, 0.5, 1.0, 0.5),
            0.1,
            True,
        ),  # none behind a worse one
        ((0.0, 0.5, 0.6, 2.0), 0.1 / 1.4, True),
    ],
)
def test_score_range_by_hand(scores, decades, bounded):
    rates = 10.0 ** np.arange(4)
    for found in (
        score_range(rates, scores),
        score_range(rates[::-1], scores[::-1]),
    ):
        assert found == (pytest.approx(decades), bounded)


def test_a_single_rate_has_no_range():
    assert score_range([0.1], [1.0]) == (0.0, True)
