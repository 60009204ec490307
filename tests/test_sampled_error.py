"""Estimated errors against true ones, and what is done above a limit."""

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import AccuracyError, AccuracyWarning, ArgumentError, DTypeError
from pyclattn.functional import sampled_error
from pyclattn.functional._metric import axes_between, group_along
from pyclattn.functional._ragged import padded

METHODS = {
    "coclustered": (pyclattn.coclustered_attention, {"n_exact": 32}),
    "improved": (pyclattn.improved_clustered_attention, {"n_clusters": 40, "clustering": "metric"}),
    "lsh": (pyclattn.improved_clustered_attention, {"n_clusters": 40}),
    "clustered": (pyclattn.clustered_attention, {"n_clusters": 40}),
}
N = 1300


def inputs(batch=1, heads=3, length=N, seed=0, kv_heads=None, keys=None):
    """Rows in groups: what clusters well, and in the last head what does not."""
    rng = np.random.default_rng(seed)
    centers = 2 * rng.standard_normal((30, 16))
    kv_heads, keys = kv_heads or heads, keys or length
    arrays = []
    for n_heads, n in ((heads, length), (kv_heads, keys), (kv_heads, keys)):
        spread = np.full((n_heads, 1, 1), 0.5)
        spread[-1] = 1.5
        x = centers[rng.integers(0, 30, (batch, n_heads, n))] + spread * rng.standard_normal((batch, n_heads, n, 16))
        arrays.append(x.astype(np.float32))
    return arrays


def true_errors(near, q, k, v, **options):
    exact = pyclattn.scaled_dot_product_attention(q, k, v, **options).astype(np.float64)
    return np.sqrt(np.square(near - exact).sum((-1, -2)) / np.square(exact).sum((-1, -2)))


def assert_near_one(ratios):
    assert ratios.min() > 0.5, ratios
    assert ratios.max() < 2, ratios


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [{}, {"batch": 2, "kv_heads": 1}, {"keys": 1700}], ids=str)
def test_the_estimate_is_near_the_true_error(method, shape):
    function, options = METHODS[method]
    q, k, v = inputs(**shape)
    near, errors = function(q, k, v, return_error=True, **options)
    np.testing.assert_array_equal(near, function(q, k, v, **options))
    ratio = errors / true_errors(near, q, k, v)
    assert errors.shape == q.shape[:2]
    assert_near_one(ratio)


def test_few_bad_queries_are_found():
    """Five queries far from their clusters make nearly all of the error: 64 of 4,000 drawn evenly would find none."""
    q, k, v = inputs(heads=1, length=4000)
    q[0, 0, 137::800] *= 3
    tokens = padded(1, 4000, None).indexed()
    axes, _, _ = axes_between(q, tokens, k, tokens, 16, 1)
    grouping = group_along(q, tokens, axes, np.array([200]), 1)
    exact = pyclattn.scaled_dot_product_attention(q, k, v)
    near = exact.copy()
    near[0, 0, 137::800] += 10
    found = sampled_error.estimate(q, tokens, k, v, tokens, None, grouping, 0.25, near, 1)
    assert 0.6 < found[0, 0] / true_errors(near, q, k, v)[0, 0] < 1.6


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_for_any_number_of_threads(method):
    function, options = METHODS[method]
    q, k, v = inputs(batch=2)
    errors = [function(q, k, v, return_error=True, n_threads=n, **options)[1] for n in (1, 2, 5, 1)]
    for other in errors[1:]:
        np.testing.assert_array_equal(other, errors[0])


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_left_out(method):
    function, options = METHODS[method]
    q, k, v = inputs(batch=2)
    mask = np.zeros((2, N), bool)
    mask[1, 1100:] = True
    mask[0, 3:60:2] = True
    own = {"key_padding_mask": mask, "query_padding_mask": mask, "return_error": True, **options}
    near, errors = function(q, k, v, **own)
    for x in (q, k, v):
        x[np.broadcast_to(mask[:, None], x.shape[:3])] = np.nan
    again, others = function(q, k, v, **own)
    np.testing.assert_array_equal(errors, others)
    np.testing.assert_array_equal(near, again)
    for b in range(2):
        kept = [x[b : b + 1, :, ~mask[b]] for x in (q, k, v)]
        ratio = errors[b] / true_errors(near[b : b + 1, :, ~mask[b]], *kept)[0]
        assert_near_one(ratio)


@pytest.mark.parametrize("method", METHODS)
def test_packed_sequences_have_errors_of_their_own(method):
    function, options = METHODS[method]
    q, k, v = (x[0] for x in inputs(length=2700))
    offsets = np.array([0, 1200, 1200, 2700])
    near, errors = function(q, k, v, offsets=offsets, return_error=True, **options)
    assert errors.shape == (3, 3)
    assert (errors[1] == 0).all()
    for s in (0, 2):
        own = [x[None, :, offsets[s] : offsets[s + 1]] for x in (q, k, v)]
        ratio = errors[s] / true_errors(near[None, :, offsets[s] : offsets[s + 1]], *own)[0]
        assert_near_one(ratio)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("holes", [False, True])
def test_heads_above_the_limit_become_exact(method, holes):
    function, options = METHODS[method]
    q, k, v = inputs(batch=2, kv_heads=3)
    mask = np.zeros((2, N), bool)
    if holes:
        mask[:, 5:90:3] = True
    options = {**options, "key_padding_mask": mask, "query_padding_mask": mask}
    near, errors = function(q, k, v, return_error=True, **options)
    limit = np.sort(errors, axis=None)[2] * 1.0001
    mixed = function(q, k, v, max_error=limit, **options)
    exact = pyclattn.scaled_dot_product_attention(q, k, v, key_padding_mask=mask)
    exact[np.broadcast_to(mask[:, None], exact.shape[:3])] = 0
    above = errors > limit
    assert above.sum() == 3
    np.testing.assert_allclose(mixed[above], exact[above], atol=2e-6)
    np.testing.assert_array_equal(mixed[~above], near[~above])


def test_heads_that_share_keys_become_exact_one_by_one():
    q, k, v = inputs(heads=4, kv_heads=2)
    function, options = METHODS["improved"]
    _, errors = function(q, k, v, return_error=True, **options)
    limit = float(np.median(errors))
    mixed = function(q, k, v, max_error=limit, **options)
    exact = pyclattn.scaled_dot_product_attention(q, k, v)
    close = np.abs(mixed - exact).max((-1, -2)) < 2e-6
    np.testing.assert_array_equal(close, errors > limit)


def test_key_bias_is_seen():
    q, k, v = inputs(batch=2)
    bias = np.random.default_rng(1).standard_normal((2, N)).astype(np.float32)
    near, errors = pyclattn.coclustered_attention(q, k, v, n_exact=32, key_bias=bias, return_error=True)
    ratio = errors / true_errors(near, q, k, v, attn_mask=bias[:, None, None])
    assert_near_one(ratio)
    exact = pyclattn.coclustered_attention(q, k, v, n_exact=32, key_bias=bias, max_error=0)
    assert true_errors(exact, q, k, v, attn_mask=bias[:, None, None]).max() < 1e-6


def test_warn_and_raise():
    function, options = METHODS["improved"]
    q, k, v = inputs()
    near, errors = function(q, k, v, return_error=True, **options)
    limit = float(np.sort(errors[0])[1])
    worst = int(errors[0].argmax())
    with pytest.warns(AccuracyWarning, match=f"sequence 0 head {worst}: {errors[0, worst]:.2g}$"):
        warned = function(q, k, v, max_error=limit, on_error="warn", **options)
    np.testing.assert_array_equal(warned, near)
    with pytest.raises(AccuracyError, match=f"sequence 0 head {worst}: {errors[0, worst]:.2g}$"):
        function(q, k, v, max_error=limit, on_error="raise", **options)
    function(q, k, v, max_error=1e9, on_error="raise", **options)


def test_a_long_list_is_cut():
    function, options = METHODS["clustered"]
    q, k, v = inputs(batch=2, heads=12, length=300)
    with pytest.raises(AccuracyError, match=r"and 4 more$"):
        function(q, k, v, max_error=0, on_error="raise", **options)


def test_short_sequences_and_nothing_have_no_error():
    q, k, v = inputs(length=500)
    assert (pyclattn.coclustered_attention(q, k, v, return_error=True)[1] == 0).all()
    near, errors = pyclattn.coclustered_attention(q[:0], k[:0], v[:0], return_error=True)
    assert errors.shape == (0, 3)
    assert near.shape == (0, 3, 500, 16)
    near, errors = pyclattn.clustered_attention(q[:, :, :0], k, v, n_clusters=5, return_error=True)
    assert (errors == 0).all()


def test_fewer_queries_than_samples():
    q, k, v = inputs(length=40)
    near, errors = pyclattn.clustered_attention(q, k, v, n_clusters=5, return_error=True)
    np.testing.assert_allclose(errors, true_errors(near, q, k, v), rtol=1e-4)


def test_rows_that_are_all_alike():
    q, k, v = (np.ones((1, 1, 1200, 8), np.float32) for _ in range(3))
    for function, options in METHODS.values():
        near, errors = function(q, k, v, return_error=True, **options)
        assert errors[0, 0] < 1e-5
        assert np.isfinite(near).all()
        assert function(q, k, 0 * v, return_error=True, **options)[1] == 0


def test_numbers_that_are_none_are_above_any_limit():
    function, options = METHODS["improved"]
    q, k, v = inputs()
    v[0, 1, 7] = np.nan
    with pytest.raises(AccuracyError, match="head 1: nan"):
        function(q, k, v, max_error=1e9, on_error="raise", **options)


@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments(method):
    function, options = METHODS[method]
    q, k, v = inputs(length=100)
    for bad in (-0.1, float("nan")):
        with pytest.raises(ArgumentError, match="max_error must be at least 0, got"):
            function(q, k, v, max_error=bad, **options)
    with pytest.raises(DTypeError, match="max_error must be a number, got 'much'"):
        function(q, k, v, max_error="much", **options)
    with pytest.raises(ArgumentError, match="on_error must be one of 'exact', 'warn', 'raise', got 'stop'"):
        function(q, k, v, on_error="stop", **options)
    with pytest.raises(DTypeError, match="return_error must be True or False, got 1"):
        function(q, k, v, return_error=1, **options)


def test_the_causal_form_has_no_estimate():
    q, k, v = inputs(length=100)
    with pytest.raises(ArgumentError, match="is_causal was given with return_error or max_error"):
        pyclattn.improved_clustered_attention(q, k, v, n_clusters=5, is_causal=True, return_error=True)


@pytest.mark.parametrize("weights_of", [sampled_error.weigh, lambda x: sampled_error.weigh(x, x[::-1] / 500)])
@pytest.mark.parametrize("spreads", [np.ones(500), np.arange(500.0), np.eye(1, 500)[0], np.zeros(500)])
def test_chances_sum_to_the_sample(spreads, weights_of):
    chances = sampled_error.inclusion(weights_of(spreads), 64)
    assert chances.min() > 0
    assert chances.max() <= 1
    assert abs(chances.sum() - 64) < 1e-9
    places = sampled_error.systematic(chances, 64)
    assert len(np.unique(places)) == 64
    assert np.isin(np.flatnonzero(chances == 1), places).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_spoil_no_chance(wrong):
    spreads, shares = np.full(500, 2.0), np.full(500, 0.5)
    spreads[3] = shares[7] = wrong
    for weights in (sampled_error.weigh(spreads), sampled_error.weigh(spreads, shares)):
        np.testing.assert_allclose(weights, 1)


def test_few_queries_whose_tail_is_large_are_found():
    """A query in 500 needs a key that its cluster leaves in the tail, and is not far from that cluster."""
    spreads, shares = np.ones(4000), np.full(4000, 1e-6)
    spreads[::40] = 9
    bad = np.arange(137, 4000, 500)
    spreads[bad], shares[bad] = 4, 0.5
    chances = sampled_error.inclusion(sampled_error.weigh(spreads, shares), 64)
    assert chances[bad].min() > 0.9
    assert sampled_error.inclusion(sampled_error.weigh(spreads), 64)[bad].max() < 0.2


@pytest.mark.parametrize("shape", [{"batch": 2, "kv_heads": 1}, {"length": 1900}], ids=str)
def test_estimates_are_given_the_tail_of_every_query(monkeypatch, shape):
    """Whatever heads share keys and whatever rows are left out: each query has its own share and variance."""
    seen, estimate = [], sampled_error.estimate
    q, k, v = inputs(**shape)
    mask = np.zeros((len(q), q.shape[2]), bool)
    mask[0, 3:90:2] = True

    def noted(*given):
        seen.append(given[-1])
        return estimate(*given)

    monkeypatch.setattr(sampled_error, "estimate", noted)
    pyclattn.coclustered_attention(q, k, v, n_exact=32, query_padding_mask=mask, return_error=True)
    risks = np.concatenate(seen, axis=1)
    assert risks.shape == (*q.shape[:3], 2)
    shares, variances = np.moveaxis(risks[np.broadcast_to(~mask[:, None], q.shape[:3])], -1, 0)
    assert 0 < shares.min() < 0.5 < shares.max() <= 1
    assert 0 <= variances.min() < variances.max() < np.inf
    assert len(np.unique(variances)) > 0.9 * len(variances)
