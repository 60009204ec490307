"""Kernels of co-clustered attention against the reference room (see `test_kernels`)."""

import sys

import compare
import inputs
import numpy as np
import pytest
from kernel_calls import blocks_of, both, holes_index, kernel, tasks_of

from pyclattn import _dispatch
from pyclattn.errors import BackendError
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.reference.coclusters import NEVER, sample_places

N_HEADS, N_QUERY_CLUSTERS, N_KEY_CLUSTERS = 3, (61, 7), (9, 4)
LENGTHS, KEY_LENGTHS = (400, 150), (330, 170)


def sorted_side(lengths, n_clusters, seed, empty=1):
    """Spans, order and member offsets of two packed sequences; each has a cluster without members."""
    rng = np.random.default_rng(seed)
    cluster_offsets = np.concatenate([[0], np.cumsum(n_clusters)]).astype(np.int64)
    stops = np.cumsum(lengths)
    spans = np.array([[0, stop - n, stop] for n, stop in zip(lengths, stops)], np.int64)
    order = np.empty((N_HEADS, stops[-1]), np.int64)
    bounds = np.zeros((N_HEADS, cluster_offsets[-1] + 1), np.int64)
    for head in range(N_HEADS):
        for s, (_, start, stop) in enumerate(spans.tolist()):
            labels = rng.integers(0, n_clusters[s], stop - start)
            labels[labels == empty] = 0
            order[head, start:stop] = start + np.argsort(labels, kind="stable")
            counts = np.bincount(labels, minlength=n_clusters[s])
            bounds[head, cluster_offsets[s] : cluster_offsets[s + 1] + 1] = start + np.concatenate(
                [[0], counts.cumsum()]
            )
    return spans, cluster_offsets, np.repeat(np.arange(2), n_clusters), order, bounds


def rows_case(dim, width, rank, seed):
    """Sorted rows, their clusters, and axes for two sequences."""
    rng = np.random.default_rng(seed)
    spans, offsets, sequences, order, bounds = sorted_side(KEY_LENGTHS, N_KEY_CLUSTERS, seed)
    _, key, value = inputs.tensors("blobs", heads=N_HEADS, n=sum(KEY_LENGTHS), dim=dim, width=width, seed=seed)
    rows = np.concatenate([key, rng.standard_normal((*key.shape[:3], 1)), value], axis=-1)[0]
    rows = np.stack([rows[h, order[h]] for h in range(N_HEADS)]).astype(np.float32)
    axes = rng.standard_normal((2, N_HEADS, rank, dim)).astype(np.float32) / np.float32(dim**0.5)
    return rows, spans, offsets, sequences, bounds, axes


def means_of(rows, bounds):
    means = np.zeros((rows.shape[0], bounds.shape[1] - 1, rows.shape[2]), np.float32)
    for head in range(len(rows)):
        for c, (a, b) in enumerate(zip(bounds[head, :-1], bounds[head, 1:])):
            if b > a:
                means[head, c] = rows[head, a:b].mean(axis=0)
    return means


@kernel("coclusters.covariances")
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 65])
def test_covariances(name, fast, dim):
    """Rows with holes, far from the origin."""
    rows, _, _ = inputs.tensors("blobs", batch=2, heads=4, n=500, dim=dim)
    rows += 100
    spans, index = holes_index(2, 500)

    def make(new):
        out = new((2, 4, dim, dim), np.float32, np.nan)
        return (rows, spans, index, np.array([[0, 0], [1, 3], [0, 2]]), out), out

    want, got = both(name, fast, make)
    assert np.isnan(got[0, 1]).all()
    compare.assert_close(got, want, 1e-5)


@kernel("coclusters.eigenvectors")
@pytest.mark.parametrize("size", [1, 2, 3, 16, 64, 65])
@pytest.mark.parametrize("kind", ["usual", "zero", "equal", "few", "graded", "large", "small"])
def test_eigenvectors(name, fast, size, kind):
    """Of equal values, none, and such as rounding leaves of few; of matrices of any size."""
    rows = np.random.default_rng(size).standard_normal((2, {"few": size // 3 + 1}.get(kind, 200), size))
    rows *= np.logspace(0, -8, size) if kind == "graded" else 1
    matrices = rows.swapaxes(1, 2) @ rows * {"zero": 0.0, "large": 1e50, "small": 1e-50}.get(kind, 1.0)
    if kind == "equal":
        matrices[:] = np.eye(size)

    def make(new):
        outputs = new((2, size), np.float64, np.nan), new((2, size, size), np.float64, np.nan)
        return (matrices, np.array([[1]]), *outputs), outputs

    (want, _), (values, vectors) = both(name, fast, make)
    assert np.isnan(values[0]).all()
    assert np.isnan(vectors[0]).all()
    rounding = 1e-14 * max(np.abs(matrices[1]).max(), 1e-300) * size
    np.testing.assert_allclose(values[1], want[1], rtol=0, atol=rounding)
    assert (np.diff(values[1]) <= 0).all()
    np.testing.assert_allclose(vectors[1].T * values[1] @ vectors[1], matrices[1], rtol=0, atol=rounding)
    np.testing.assert_allclose(vectors[1] @ vectors[1].T, np.eye(size), rtol=0, atol=1e-14 * size)


@kernel("coclusters.sort_rows")
@pytest.mark.parametrize(("dim", "width", "with_bias"), [(1, 1, False), (16, 16, True), (36, 5, False), (64, 70, True)])
def test_sort_rows(name, fast, dim, width, with_bias):
    """Keys and values as strided views; an empty cluster keeps what stands there."""
    _, _, sequences, order, bounds = sorted_side(KEY_LENGTHS, N_KEY_CLUSTERS, 1)
    fused = np.random.default_rng(dim).standard_normal((1, sum(KEY_LENGTHS), N_HEADS, dim + width), dtype=np.float32)
    key, value = fused.swapaxes(1, 2)[..., :dim], fused.swapaxes(1, 2)[..., dim:]
    bias = None
    if with_bias:
        bias = np.random.default_rng(1).standard_normal((1, 1, key.shape[2]), dtype=np.float32)
        bias = np.broadcast_to(bias, (1, N_HEADS, key.shape[2]))
    n_clusters = len(sequences)

    def make(new):
        outputs = (
            new((N_HEADS, key.shape[2], dim + 1 + width), np.float32, np.nan),
            new((N_HEADS, n_clusters, dim + 1 + width), np.float32, -7.0),
        )
        arguments = (key, value, bias, np.zeros(n_clusters, np.int64), order, bounds)
        return (*arguments, blocks_of(n_clusters, N_HEADS, 4), 4, *outputs), outputs

    (want, want_means), (got, got_means) = both(name, fast, make)
    assert (want_means == -7).any()
    compare.assert_close(got, want, 1e-7)
    compare.assert_close(got_means, want_means, 1e-6)


@kernel("coclusters.moments")
@pytest.mark.parametrize(("dim", "width", "rank"), [(1, 1, 1), (16, 16, 16), (36, 5, 7), (64, 70, 16), (80, 64, 60)])
def test_moments(name, fast, dim, width, rank):
    rows, _, _, sequences, bounds, axes = rows_case(dim, width, rank, seed=dim)
    means, n_clusters = means_of(rows, bounds), len(sequences)

    def make(new):
        outputs = (
            new((N_HEADS, n_clusters, rank * width), np.float32, np.nan),
            new((N_HEADS, n_clusters, rank), np.float32, np.nan),
            new((N_HEADS, rows.shape[1], 2), np.float32, np.nan),
        )
        tasks = blocks_of(n_clusters, N_HEADS, 4)
        return (rows, bounds, means, sequences, axes, tasks, 4, *outputs), outputs

    want, got = both(name, fast, make)
    for found, expected in zip(got, want):
        compare.assert_close(found, expected, 5e-6)


@kernel("coclusters.score_keys")
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_score_keys(name, fast, size):
    """Distances of any size, many of them 0; a sequence without any; one with a NaN spoils itself alone."""
    rng = np.random.default_rng(0)
    radii = (size * rng.exponential(size=(2, 300, 2)) * rng.integers(0, 2, (2, 300, 2))).astype(np.float32)
    radii[1, 250, 1] = np.nan
    radii[0, :100] = 0
    spans = np.array([[0, 0, 100], [0, 100, 220], [1, 220, 220], [1, 220, 300]], np.int64)
    tasks = np.array([[s, h] for s in range(4) for h in range(2)], np.int64)

    def make(new):
        key_scores = new((2, 300), np.float32, -7.0)
        return (radii, spans, tasks, key_scores), key_scores

    want, got = both(name, fast, make)
    assert np.isnan(got[1, 220:]).all()
    assert not np.isnan(got[:, :220]).any()
    assert not np.isnan(got[0]).any()
    assert np.abs(got - want)[~np.isnan(want)].max() < 1e-5 * np.abs(want[~np.isnan(want)]).max()


def centroid_case(dim, seed):
    """Centroids [mean query, 1] in logits of base 2, for two sequences, and how queries belong to them."""
    spans, offsets, _, order, bounds = sorted_side(LENGTHS, N_QUERY_CLUSTERS, seed + 1)
    query, _, _ = inputs.tensors("blobs", heads=N_HEADS, n=sum(LENGTHS), dim=dim, seed=seed)
    sorted_queries = np.stack([query[0, h, order[h]] for h in range(N_HEADS)])
    means = means_of(sorted_queries, bounds) * np.float32(dim**-0.5 * np.log2(np.e))
    centroids = np.concatenate([means, np.ones_like(means[..., :1])], axis=-1)
    return query, spans, offsets, order, bounds, np.ascontiguousarray(centroids)


@kernel("coclusters.weigh")
@pytest.mark.parametrize(("dim", "n_samples"), [(1, 3), (16, 64), (36, 200), (64, 64)])
def test_weigh(name, fast, dim, n_samples):
    rows, spans, _, _, _, _ = rows_case(dim, 5, 1, seed=dim)
    _, _, offsets, _, _, centroids = centroid_case(dim, seed=dim)
    tasks = tasks_of(N_QUERY_CLUSTERS, N_HEADS, 24)
    tasks[:, 2] += offsets[tasks[:, 0]]

    def make(new):
        outputs = (
            new((*centroids.shape[:2], n_samples), np.float32, np.nan),
            new(centroids.shape[:2], np.float32, np.nan),
        )
        return (centroids, offsets, rows, spans, tasks, 24, *outputs), outputs

    (want_sample, want), (got_sample, got) = both(name, fast, make)
    compare.assert_close(got, want, 1e-6)
    compare.assert_close(got_sample, want_sample, 1e-6)


@kernel("coclusters.thresholds")
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.3, 1.0])
def test_thresholds(name, fast, share):
    """Ties are many: the numbers are few."""
    rng = np.random.default_rng(5)
    spans, _, _, _, _ = sorted_side(KEY_LENGTHS, N_KEY_CLUSTERS, 3)
    _, offsets, _, _, bounds = sorted_side(LENGTHS, N_QUERY_CLUSTERS, 4)
    shape = (N_HEADS, int(offsets[-1]))
    sample = rng.integers(-4, 4, (*shape, 40)).astype(np.float32)
    logs, spreads = rng.integers(-2, 2, (2, *shape)).astype(np.float32)
    key_scores = rng.integers(-2, 2, (N_HEADS, sum(KEY_LENGTHS))).astype(np.float32)
    shares = np.array([share, share / 2], np.float32)
    tasks = np.array([[0], [1]], np.int64)

    def make(new):
        limits = new(shape, np.float32, np.nan)
        return (sample, logs, spreads, key_scores, offsets, bounds, spans, shares, tasks, limits), limits

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)
    for s in range(2):  # at most that many pairs are above, and one step lower more
        start, stop = spans[s, 1:].tolist()
        own = slice(int(offsets[s]), int(offsets[s + 1]))
        sizes = np.diff(bounds[:, own.start : own.stop + 1], axis=1)
        errors = sample[:, own] + key_scores[:, None, start + sample_places(stop - start, 40)]
        most = int(float(shares[s]) * sizes.sum() * 40)
        limit = got[:, own][..., None]
        assert (got[:, own][sizes == 0] == np.float32(NEVER)).all()
        assert ((errors > limit).sum(axis=2) * sizes).sum() <= most
        if most < sizes.sum() * 40:
            assert ((errors >= limit).sum(axis=2) * sizes).sum() > most


def limit_of(wanted, errors):
    """In the widest gap near the one wanted, so that no key is on the border."""
    if wanted in ("none", "all"):
        return errors[-1] + 1 if wanted == "none" else errors[0] - 1
    near = {"few": range(-30, -5), "many": range(-150, -60)}[wanted]
    best = near[int(np.argmax([errors[i] - errors[i - 1] for i in near]))]
    return (errors[best] + errors[best - 1]) / 2


def attend_case(taken, dim, width, rank, listed="many", with_risks=False):
    """Arguments of a call, as a function of how outputs are made; which rows are taken, and which are listed."""
    rows, spans, key_offsets, sequences, key_bounds, axes = rows_case(dim, width, rank, seed=dim)
    query, query_spans, offsets, order, bounds, centroids = centroid_case(dim, seed=dim)
    rng = np.random.default_rng(dim)
    key_scores = rng.standard_normal(rows.shape[:2]).astype(np.float32)
    slopes = 0.3 * rng.standard_normal((N_HEADS, len(sequences), rank * width)).astype(np.float32)
    squares = rng.random((2, N_HEADS, rank)).astype(np.float32)
    limits = np.empty((2, *centroids.shape[:2]), np.float32)
    for s, (_, start, stop) in enumerate(spans.tolist()):
        for head in range(N_HEADS):
            for c in range(offsets[s], offsets[s + 1]):
                logits = rows[head, start:stop, : dim + 1].astype(np.float64) @ centroids[head, c]
                errors = np.sort(logits + key_scores[head, start:stop])
                limits[:, head, c] = [limit_of(taken, errors), limit_of(listed, errors)]
    limits[1] = np.minimum(limits[0], limits[1])
    tasks = tasks_of(N_QUERY_CLUSTERS, N_HEADS, 32)
    tasks[:, 2] += offsets[tasks[:, 0]]
    tasks = tasks[::2].copy()  # the others' rows stay as they are

    def make(new):
        out = new((1, N_HEADS, sum(LENGTHS), width), np.float32, np.nan)
        risks = new((1, N_HEADS, sum(LENGTHS), 2), np.float32, np.nan) if with_risks else None
        arguments = (query, query_spans, order, bounds, centroids, offsets, limits, rows, key_scores, key_bounds)
        factor = dim**-0.5 * np.log2(np.e)
        made = (out, risks) if with_risks else out
        return (*arguments, key_offsets, slopes, axes, squares, factor, tasks, 32, out, risks), made

    return make


SHAPES = [(1, 1, 1), (16, 16, 16), (36, 5, 7), (64, 70, 16), (80, 64, 60)]


@kernel("tails.attend")
@pytest.mark.parametrize(("dim", "width", "rank"), SHAPES)
@pytest.mark.parametrize(
    ("taken", "listed"), [("few", "many"), ("many", "none"), ("none", "all"), ("none", "few"), ("all", "all")]
)
def test_attend(name, fast, taken, listed, dim, width, rank):
    want, got = both(name, fast, attend_case(taken, dim, width, rank, listed))
    assert np.isnan(got).any()
    compare.assert_close(got, want, 1e-5)


@kernel("tails.attend")
@pytest.mark.parametrize("n_clusters", [(35, 16), (15, 5), (9, 3)])
def test_numbers_of_members(name, fast, monkeypatch, n_clusters):
    """Panels of any part of a vector, and of several: each query as in the reference."""
    monkeypatch.setattr(sys.modules[__name__], "N_QUERY_CLUSTERS", n_clusters)
    make = attend_case("few", 20, 12, 4)
    want, got = both(name, fast, make)
    compare.assert_close(got, want, 1e-5)
    with fast.forced():
        missing = missing_bfloat16()
    if not missing:
        want, got = both("tails.attend_bfloat16", fast, make)
        compare.assert_close(got, want, 2.0**-8)


@kernel("tails.attend")
@pytest.mark.parametrize(("dim", "width", "rank"), SHAPES)
@pytest.mark.parametrize("taken", ["few", "many", "none", "all"])
def test_risks(name, fast, taken, dim, width, rank):
    """The tail's share of each query's softmax, and the variance of its logits; the outputs are the same bits."""
    (_, want), (out, got) = both(name, fast, attend_case(taken, dim, width, rank, with_risks=True))
    np.testing.assert_array_equal(np.isnan(got).any(axis=-1), np.isnan(out).any(axis=-1))
    seen = ~np.isnan(out).any(axis=-1)
    compare.assert_close(got[seen], want[seen], 1e-5)
    assert (want[seen][:, 0] > 0).any() == (taken != "all")
    _, alone = both(name, fast, attend_case(taken, dim, width, rank))
    np.testing.assert_array_equal(alone, out)


@kernel("tails.attend_bfloat16")
@pytest.mark.parametrize(("dim", "width", "rank"), [*SHAPES, (33, 8, 4)])
@pytest.mark.parametrize("taken", ["few", "many", "none", "all"])
def test_attend_bfloat16(name, fast, taken, dim, width, rank):
    make = attend_case(taken, dim, width, rank)
    with fast.forced():
        missing = missing_bfloat16()
    if missing:
        with pytest.raises(BackendError, match="bfloat16"):
            both(name, fast, make)
        return
    want, got = both(name, fast, make)
    assert np.isnan(got).any()
    compare.assert_close(got, want, 1e-5 if taken == "none" else 2.0**-8)
    _, plain = both("tails.attend", fast, make)
    error = compare.relative_error(got[~np.isnan(got)], plain[~np.isnan(got)])
    assert error < 2e-2
    assert (error == 0) == (taken == "none"), "nothing but rows that are taken is rounded"


@pytest.mark.parametrize("logits", [(150.0, 0.0), (110.0, 150.0)])
def test_keys_far_below_those_taken(room, logits):
    """One key, and then a whole block, that weigh 2^100 times as much as the rest of their cluster: what is left in the
    tail is nothing, and divides nothing."""
    depth, width, n = 4, 3, 200
    rows = np.zeros((1, n, depth + 1 + width), np.float32)
    rows[..., depth + 1 :] = np.random.default_rng(0).standard_normal((n, width))
    rows[0, 100, 0], rows[0, 128:, 0] = logits
    query = np.zeros((1, 1, 7, depth), np.float32)
    query[..., 0] = 1
    centroids = np.array([[[1, 0, 0, 0, 1]]], np.float32)
    spans, out = np.array([[0, 0, 7]]), np.full((1, 1, 7, width), np.nan, np.float32)
    _dispatch.launch(
        "tails.attend", 1, query, spans, np.arange(7)[None].copy(), np.array([[0, 7]]), centroids,
        np.array([0, 1]), np.array([[[100]], [[-100]]], np.float32), rows, np.zeros((1, n), np.float32),
        np.array([[0, n]]),
        np.array([0, 1]), np.ones((1, 1, 2 * width), np.float32), np.ones((1, 1, 2, depth), np.float32),
        np.ones((1, 1, 2), np.float32), 1.0, np.array([[0, 0, 0]]), 48, out, None,
    )  # fmt: skip
    heaviest = slice(100, 101) if logits[1] == 0 else slice(128, n)
    expected = rows[0, heaviest, depth + 1 :].mean(axis=0)
    compare.assert_close(out, np.broadcast_to(expected, out.shape), 1e-6)
