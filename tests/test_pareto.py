"""What `python -m bench pareto` makes of its measurements."""

import numpy as np
import pytest

from bench import frontier, pareto_case
from bench.pareto import rows
from bench.pareto_case import Contest, Measurement, ladder

# Two layers, exact 10 s each; curve "a" is good on the first, "b" everywhere bad.
RESULT = {
    "task": "saliency",
    "n_tokens": 5330,
    "exact": [10.0, 10.0],
    "points": [
        {"curve": "co-clustered", "settings": {"n_exact": 1}, "seconds": [1.0, 1.0], "errors": [0.01, 0.2]},
        {"curve": "co-clustered", "settings": {"n_exact": 2}, "seconds": [3.0, 3.0], "errors": [0.005, 0.015]},
        {"curve": "co-clustered", "settings": {"n_exact": 3}, "seconds": [4.0, 4.0], "errors": [0.006, 0.016]},
        {"curve": "improved, lsh", "settings": {}, "seconds": [2.0, 2.0], "errors": [0.3, 0.3]},
    ],
}


def test_one_setting_for_all_layers():
    found = frontier.uniform(RESULT, "co-clustered")
    assert [(speed, settings["n_exact"]) for speed, _, settings in found] == [(20 / 6, 2), (10.0, 1)]
    assert frontier.uniform_at(RESULT, "co-clustered", 0.01) == (20 / 6, {"n_exact": 2})
    assert frontier.uniform_at(RESULT, "co-clustered", 0.001) == (1.0, {})


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [(0.2, 2.0), (0.0125, 4.0), (0.01, 6.0), (0.009, 13.0), (0.0, 20.0)],
    ids=["fastest", "mixed", "second", "one exact", "exact"],
)
def test_each_layer_takes_what_the_mean_error_allows(budget, seconds):
    assert frontier.speed_at(RESULT, "co-clustered", budget) == pytest.approx(20 / seconds)


def test_a_setting_beside_the_convex_hull_counts():
    points = [
        {"curve": "a", "settings": {}, "seconds": [t], "errors": [e]} for t, e in ((1, 0.5), (3, 0.24), (4, 0.01))
    ]
    assert frontier.speed_at({"exact": [100.0], "points": points}, "a", 0.25) == pytest.approx(100 / 3)


def test_error_in_the_same_time():
    """At 4 s theirs is 0.3 and ours 0.0125; later ours falls, theirs stays until a layer is exact."""
    ratio = frontier.error_ratio(RESULT, "co-clustered", "improved, lsh")
    assert 0.02 < ratio < 0.06
    assert frontier.error_ratio(RESULT, "improved, lsh", "co-clustered") == pytest.approx(1 / ratio)
    assert frontier.error_ratio(RESULT, "co-clustered", "no such curve") is None


def test_bars_are_judged():
    found = {row.what: row for row in rows({"saliency 5,330": RESULT})}
    assert found["saliency 5,330, error <= 1.5%"].verdict == "ok"
    slow = {**RESULT, "exact": [3.0, 3.0]}
    assert {row.what: row for row in rows({"saliency 5,330": slow})}["saliency 5,330, error <= 1.5%"].verdict == "MISS"


def test_a_small_case_is_measured(monkeypatch):
    """Every point of a ladder has a time and an error; what is on no frontier is not repeated."""
    contest = Contest("structured", 2100, 1, ("1 head",))
    monkeypatch.setattr(pareto_case, "N_CLUSTERS", (20,))
    monkeypatch.setattr(pareto_case, "PAIRS", ((20, 32), (20, 2100)))
    monkeypatch.setattr(pareto_case, "FOR_GROUPS", (((1, 0.5),), (32, 128), (0, 1)))
    monkeypatch.setattr(pareto_case, "SLOW", 1e9)
    monkeypatch.setattr(pareto_case, "SMYRF", ((64, 2), (2100, 1)))
    points = [point for point in ladder(contest) if point[2].get("clustering") != "kmeans"]
    measurement = Measurement(contest.load(), points, 1)
    measurement.round(lambda: None)
    measurement.round(lambda: None)
    result = measurement.result()
    errors = {(p["curve"], *p["settings"].values()): p["errors"][0] for p in result["points"]}
    assert errors[("improved, lsh", "lsh", 20, 2100)] < 1e-5
    assert errors[("SMYRF", 2100, 1)] < 1e-5
    assert errors[("block-sparse", 64, "mean")] < 1e-5
    assert 1e-5 < errors[("co-clustered", 48, 23, 128)] < errors[("co-clustered", 48, 23, 32)] < 0.3
    assert len(measurement.exact["1 head"]) == 2
    assert {len(own) for own in measurement.seconds.values()} == {1, 2}
    assert result["shape"] == [1, 1, 2100, 64]


def test_captures_are_named_by_what_they_depend_on():
    first = Contest("saliency", 5330, 1022, ("0.self",))
    assert first.path != Contest("saliency", 5330, 1022, ("1.self",)).path
    assert first.path == Contest("saliency", 5330, 1022, ("0.self",)).path


def test_error_is_relative():
    assert pareto_case.error(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(1 / 34**0.5)
