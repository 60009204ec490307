"""The model of more actors than were measured keeps to what can be said of it without simulating."""

import numpy as np
import pytest

from bench.scale import curve
from bench.scale.curve import Measured

SECONDS = (0.8, 1.0, 1.1, 1.3, 2.0)


def test_one_actor_takes_the_sum():
    taken = curve.simulate(Measured(SECONDS, 1.5, 0.0, 7.0, 0.0), 400, 1, has_stragglers=False)
    drawn = np.random.default_rng(0).choice(SECONDS, 400)  # one actor is not slowed by another
    assert taken == pytest.approx(7.0 + drawn.sum())


@pytest.mark.parametrize("n", [2, 5, 64])
def test_between_the_bounds_of_list_scheduling(n):
    """No better than the work shared out evenly, no worse than that and one batch more."""
    taken = curve.simulate(Measured(SECONDS, 1.5, 0.0, 0.0, 0.0), 400, n, has_stragglers=False)
    work = 1.5 * np.random.default_rng(0).choice(SECONDS, 400).sum()
    assert work / n <= taken <= work / n + 1.5 * max(SECONDS)


@pytest.mark.parametrize("shared", ["engine", "network"])
def test_what_is_shared_limits_the_rate(shared):
    measured = Measured(SECONDS, 1.0, 0.05 * (shared == "engine"), 0.0, 0.05 * curve.LINK * (shared == "network"))
    assert curve.limits(measured)[shared] == pytest.approx(20)
    few, many, more = (point["rate"] for point in curve.curve(measured, 2000, [4, 64, 256]))
    assert few == pytest.approx(4 / np.mean(SECONDS), rel=0.1)
    assert 18 < many <= more <= 20


def test_stragglers_cost_most_where_actors_are_many():
    measured = Measured(SECONDS, 1.0, 0.0, 0.0, 0.0)
    extra = [
        curve.simulate(measured, 2000, n) / curve.simulate(measured, 2000, n, has_stragglers=False) for n in (1, 512)
    ]
    assert 1.0 < extra[0] < 1.1 < extra[1]


def test_efficiency_falls():
    points = curve.curve(Measured(SECONDS, 1.2, 0.01, 10.0, 1e5), 4000, [1, 2, 16, 128, 512])
    shares = [point["efficiency"] for point in points]
    assert shares == sorted(shares, reverse=True)
    assert [point["nodes"] for point in points] == [1, 1, 2, 16, 64]
