"""Predicted times and what is chosen by them. No test here depends on how fast this machine is."""

import json
import threading
from itertools import product

import numpy as np
import pytest
from scipy.optimize import nnls

import pyclattn
from pyclattn import _dispatch
from pyclattn.errors import ArgumentError
from pyclattn.functional import auto, costs
from pyclattn.functional.auto import auto_attention
from pyclattn.functional.costs import predict

# Of a machine that never was: seconds by kind of work.
RATES = {
    "exact": (1e-4, 1e-11, 2e-10),
    "improved-clustered": (2e-3, 1e-12, 5e-10, 1e-11, 7e-11, 5e-8),
    "coclustered": (7e-3, 1e-9, 1e-9, 1e-9, 4e-9, 1e-12, 1e-11, 1.5e-11),
}


@pytest.fixture
def known(monkeypatch):
    """Rates without measuring."""
    monkeypatch.setattr(costs, "rates", lambda n_threads: RATES)


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """An empty cache, and a count of what is measured."""
    monkeypatch.setenv("PYCLATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "_known", {})
    seen = []

    def fitted(method, seconds, n_threads):
        seen.append((method, n_threads))
        return RATES[method]

    monkeypatch.setattr(costs, "_timed", lambda n_threads: dict.fromkeys(costs.METHODS))
    monkeypatch.setattr(costs, "_fitted", fitted)
    return seen


def rows(length, n_heads=2, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, n_heads, length, 16), dtype=np.float32)


def test_time_grows_with_the_work(known):
    for method in costs.METHODS:
        one = predict(method, [2000], [2000], 2, 64, 64, 2)
        assert predict(method, [4000], [4000], 2, 64, 64, 2) > one
        assert predict(method, [2000], [2000], 4, 64, 64, 2) > one
        assert predict(method, [2000], [2000], 2, 96, 96, 2) > one
        assert predict(method, [2000, 2000], [2000, 2000], 2, 64, 64, 2) > one
    assert predict("exact", [2000], [2000], 2, 64, 64, 2) == pytest.approx(1e-4 + 8e6 * (128e-11 + 2e-10))


def test_choosing_keys_takes_time_of_its_own(known):
    """For each cluster, however few queries it has."""
    few, many = (
        predict("improved-clustered", [1], [2000], 2, 1, 1, 1, n_clusters=100, topk=topk) for topk in (100, 1000)
    )
    assert many - few == pytest.approx(2 * 900 * (2 * 7e-11 + 5e-8))


def test_an_unknown_method(known):
    with pytest.raises(ArgumentError, match="method must be one of 'exact', 'improved-clustered', 'coclustered', got"):
        predict("sparse", [10], [10], 1, 8, 8, 1)


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ([500], {}, "exact"),
        ([1024], {}, "exact"),
        ([20_000], {}, "coclustered"),
        ([20_000], {"n_exact": 10_000}, "exact"),
        ([20_000, 3], {}, "coclustered"),
        ([], {}, "exact"),
    ],
)
def test_the_faster_is_taken(known, lengths, options, expected):
    assert costs.faster(lengths, lengths, 6, 64, 64, 2, **options) == expected


def test_short_sequences_need_no_rates(monkeypatch):
    monkeypatch.setattr(costs, "rates", lambda n_threads: pytest.fail("measured"))
    assert costs.faster([1023], [5000], 6, 64, 64, 2) == "exact"
    assert auto.method_for(rows(300), rows(300), rows(300)) == "exact"


def test_rates_are_measured_once_and_kept(measuring, monkeypatch):
    assert costs.rates(3) == RATES
    assert costs.rates(3) == RATES
    assert measuring == [(method, 3) for method in costs.METHODS]
    monkeypatch.setattr(costs, "_known", {})  # another process
    assert costs.rates(3) == RATES
    assert len(measuring) == 3
    costs.rates(2)  # other threads, other rates
    assert len(measuring) == 6


def test_rates_are_measured_again_where_that_is_asked_for(measuring, monkeypatch):
    costs.rates(3)
    faster = {method: tuple(x / 2 for x in own) for method, own in RATES.items()}
    monkeypatch.setattr(costs, "_fitted", lambda method, seconds, n_threads: faster[method])
    assert costs.measure_again(3) == costs.rates(3) == faster
    monkeypatch.setattr(costs, "_known", {})  # another process
    assert costs.rates(3) == faster
    with _dispatch.forced("reference"):
        assert costs.measure_again(3) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", json.dumps({**RATES, "exact": [1, 2]}), json.dumps({**RATES, "exact": [1, 2, -3]}),
     json.dumps({**RATES, "exact": [1, "x", 3]}), '{"exact": [NaN, 1, 1]}', json.dumps({**RATES, "exact": [0, 0, 0]})],
)  # fmt: skip
def test_a_file_that_is_no_good_is_measured_again(measuring, text):
    path = costs._file(3)
    path.parent.mkdir()
    path.write_text(text)
    assert costs.rates(3) == RATES
    assert len(measuring) == 3
    assert json.loads(path.read_text()) == {method: list(own) for method, own in RATES.items()}


def test_a_cache_that_cannot_be_written_costs_time_only(measuring, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYCLATTN_CACHE", str(tmp_path / "file"))
    assert costs.rates(3) == RATES
    assert len(measuring) == 3


def test_many_callers_measure_once(measuring):
    gate, found = threading.Barrier(6), []

    def ask():
        gate.wait()
        found.append(costs.rates(3))

    callers = [threading.Thread(target=ask) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [RATES] * 6
    assert len(measuring) == 3


def test_no_rates_without_compiled_kernels(measuring):
    with _dispatch.forced("reference"):
        assert costs.rates(3) is None
        assert costs.faster([50_000], [50_000], 1, 64, 64, 3) == "exact"
        with pytest.raises(ArgumentError, match="times are not predicted where compiled kernels are missing"):
            predict("exact", [10], [10], 1, 8, 8, 3)
    assert not measuring


def test_rates_without_numba_are_their_own(measuring):
    costs.rates(3)
    with _dispatch.forced("cython"):  # as where Numba is not installed: its kernels come from NumPy
        assert costs.rates(3) == RATES
    assert len(measuring) == 6
    assert len(list(costs._file(3).parent.glob("rates-*.json"))) == 2


def test_rates_are_fitted_to_the_times():
    times = np.array([predict_exact(n, h, d) for n, h, d, _ in costs.RUNS["exact"]])
    np.testing.assert_allclose(costs._fitted("exact", times, 2), RATES["exact"], rtol=1e-6)


def test_a_disturbed_machine_is_seen_through(monkeypatch):
    """Three of five rounds take twice as long: what is told is the second least."""
    now, slow = iter(range(10**6)), iter([1, 2, 2, 1.1, 2])
    n_runs = sum(map(len, costs.RUNS.values()))

    def seconds(_):
        if next(now) % n_runs == 0:
            seconds.factor = next(slow)
        return seconds.factor

    monkeypatch.setattr(costs, "_call", lambda *_: None)
    monkeypatch.setattr(costs, "_warm_seconds", seconds)
    found = costs._timed(2)
    assert {name: len(own) for name, own in found.items()} == {name: len(own) for name, own in costs.RUNS.items()}
    assert all((own == 1.1).all() for own in found.values())


# As measured on a quiet machine of two cores, over all lengths.
MEASURED = {
    "exact": (1.7e-4, 8.9e-12, 1.0e-10),
    "improved-clustered": (2.2e-3, 6e-11, 2.0e-10, 5.4e-12, 1.2e-11, 4.8e-8),
    "coclustered": (1.9e-3, 8.1e-9, 1.2e-7, 1.3e-8, 1e-10, 3e-12, 1.6e-11, 2.1e-11),
}


@pytest.mark.parametrize("method", costs.METHODS)
def test_short_runs_tell_of_long_ones(method):
    """Rates fitted to times that are wrong by 4 % predict from 2,048 to 131,072 tokens."""

    def seconds(n, n_heads, depth, parameters, own):
        return costs._seconds({method: own}, method, [n], [n], n_heads, depth, depth, 2, parameters)

    for seed in range(8):
        noise = np.random.default_rng(seed).uniform(0.96, 1.04, 99)
        taken = np.array([seconds(*run, MEASURED[method]) * x for run, x in zip(costs.RUNS[method], noise)])
        own = costs._fitted(method, taken, 2)
        for n, n_heads, depth in product([2**i for i in range(11, 18)], (1, 6), (16, 64)):
            given = {} if method != "improved-clustered" else costs.PUBLISHED
            ratio = seconds(n, n_heads, depth, given, own) / seconds(n, n_heads, depth, given, MEASURED[method])
            assert 0.85 < ratio < 1.2, (seed, n, n_heads, depth)


def predict_exact(n, h, d):
    counts = costs.COUNTS["exact"](n, n, h, d, d, 2)
    return RATES["exact"][0] + sum(rate * count for rate, count in zip(RATES["exact"][1:], counts))


@pytest.mark.parametrize("method", ["exact", "coclustered"])
def test_auto_is_the_method_it_takes(monkeypatch, method):
    monkeypatch.setattr(costs, "faster", lambda *args, **kwargs: method)
    q, k, v = (rows(1500, batch=2, seed=i) for i in range(3))
    mask = np.zeros((2, 1500), bool)
    mask[1, 1200:] = True
    bias = np.random.default_rng(3).standard_normal((2, 1500)).astype(np.float32)
    given = {"key_padding_mask": mask, "query_padding_mask": mask, "key_bias": bias}
    out, errors = auto_attention(q, k, v, n_exact=40, max_error=1e9, return_error=True, **given)
    if method == "coclustered":
        expected = pyclattn.coclustered_attention(q, k, v, n_exact=40, **given)
        assert (errors > 0).all()
    else:
        expected = pyclattn.scaled_dot_product_attention(q, k, v, key_padding_mask=mask, attn_mask=bias[:, None, None])
        expected[1, :, 1200:] = 0
        assert (errors == 0).all()
    np.testing.assert_array_equal(out, expected)


def test_auto_counts_the_tokens_that_are_there(monkeypatch):
    seen = []
    monkeypatch.setattr(costs, "faster", lambda *args, **kwargs: seen.append(args[:2]) or "exact")
    x = rows(2000, batch=2)
    mask = np.arange(2000) >= np.array([[1500], [2000]])
    auto_attention(x, x, x, key_padding_mask=mask)
    auto_attention(x[0], x[0], x[0], offsets=[0, 300, 2000])
    assert seen == [([2000, 2000], [1500, 2000]), ([300, 1700], [300, 1700])]


def test_auto_says_what_is_wrong():
    with pytest.raises(ArgumentError, match="query must have rank 4"):
        auto_attention(np.zeros((2, 2), np.float32), rows(9), rows(9))


def test_rates_are_the_best_that_are_not_negative():
    rng = np.random.default_rng(7)
    for n in (2, 5, 8):
        a, b = rng.random((n + 3, n)), rng.standard_normal(n + 3) + 0.5
        np.testing.assert_allclose(costs._nonnegative(a, b), nnls(a, b)[0], atol=1e-9)
