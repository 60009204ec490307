"""Kernels of centroid attention and of points against the reference, with outputs between guards."""

import compare
import inputs
import numpy as np
import pytest
from kernel_calls import RAGGED, both, holes_index, kernel, packed_spans, spans, tasks_of


@kernel("centroid.gather_inputs")
@pytest.mark.parametrize("layout", ["packed", "holes"])
@pytest.mark.parametrize(("m", "dim", "width"), [(1, 1, 1), (37, 16, 9), (150, 35, 4), (61, 3, 0)])
def test_gather_inputs(name, fast, layout, m, dim, width):
    chunk = 96
    if layout == "packed":  # inputs of one packed array for each of five sequences of centroids
        query, key, value = inputs.tensors(
            batch=1, heads=4, kv_heads=2, n=5 * m, n_keys=sum(RAGGED), dim=dim, width=width
        )
        key_spans, key_index = packed_spans(RAGGED), None
        query_spans, query_index = spans(*[[0, m * s, m * s + m] for s in range(5)]), None
    else:
        query, key, value = inputs.tensors(batch=2, heads=4, kv_heads=2, n=m, n_keys=300, dim=dim, width=width)
        key_spans, key_index = holes_index(2, 300)
        query_spans, query_index = holes_index(2, m, seed=4)
    tasks = tasks_of(key_spans[:, 2] - key_spans[:, 1], 4, chunk)[::2].copy()  # half of the inputs are not asked for

    for has_masses in (False, True):

        def make(new):
            shape = (4, *query.shape[:3])
            values = new((*shape, width), np.float32, np.nan)
            masses = new(shape, np.float32, np.nan) if has_masses else None  # noqa: B023
            given = (query, query_spans, query_index, key, value, key_spans, key_index, 0.3, tasks, chunk)
            return (*given, values, masses), [values, masses]

        want, got = both(name, fast, make)
        compare.assert_close(got[0], want[0], compare.EXACT)
        if has_masses:
            assert np.isfinite(got[1]).any()
            compare.assert_close(got[1], want[1], compare.EXACT)


def some_neighbors(rng, batch, n_centroids, n_inputs, k):
    """Neighbours of centroids, with empty places."""
    neighbors = np.argsort(rng.random((batch, n_centroids, n_inputs)), axis=-1)[..., :k]
    return np.where(rng.random(neighbors.shape) < 0.3, -1, neighbors)


@kernel("centroid.weigh_pairs")
@pytest.mark.parametrize("is_by_centroid", [False, True])
@pytest.mark.parametrize(("m", "k", "dim"), [(1, 1, 1), (20, 5, 16), (9, 40, 33)])
def test_weigh_pairs(name, fast, is_by_centroid, m, k, dim):
    query, key, _ = inputs.tensors(batch=2, heads=4, kv_heads=2, n=m, n_keys=60, dim=dim)
    neighbors = some_neighbors(np.random.default_rng(m), 2, m, 60, k)
    tasks = np.array([[0, 0], [0, 3], [1, 2]])  # the other heads are not asked for

    def make(new):
        weights = new((2, 4, m, k), np.float32, np.nan)
        return (query, key, neighbors, is_by_centroid, 0.4, tasks, weights), weights

    want, got = both(name, fast, make)
    compare.assert_close(got, want, compare.EXACT)


@kernel("centroid.gather_pairs")
@pytest.mark.parametrize("is_divided", [False, True])
@pytest.mark.parametrize(("m", "k", "width"), [(1, 1, 1), (20, 5, 16), (9, 40, 0)])
def test_gather_pairs(name, fast, is_divided, m, k, width):
    value = inputs.tensors(batch=2, heads=2, n=60, dim=8, width=width)[2]
    rng = np.random.default_rng(m)
    neighbors = some_neighbors(rng, 2, m, 60, k)
    weights = np.where(neighbors[:, None] < 0, 0, rng.random((2, 4, m, k))).astype(np.float32)
    weights[0, 0, 0] = 0  # a centroid that holds nothing
    tasks = tasks_of([m, m], 4, 6)

    def make(new):
        out = new((2, 4, m, width), np.float32, np.nan)
        return (value, neighbors, weights, is_divided, tasks, 6, out), out

    want, got = both(name, fast, make)
    compare.assert_close(got, want, compare.EXACT)


@kernel("centroid.find_repeated")
@pytest.mark.parametrize(("m", "k"), [(1, 1), (20, 5), (9, 60)])
def test_find_repeated(name, fast, m, k):
    """None, one that other centroids and places without a neighbour do not hide, and many."""
    neighbors = some_neighbors(np.random.default_rng(m), 3, m, 60, k)
    if k > 1:
        neighbors[1, m // 2, [0, 3]] = 0
        neighbors[2] = 7
    tasks = np.array([[1], [2], [0]])

    def make(new):
        repeated = new((3,), np.int64, -7)
        return (neighbors, 60, tasks, repeated), repeated

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)
    again = [len({*row[row >= 0]}) < np.count_nonzero(row >= 0) for rows in neighbors for row in rows]
    assert ((want >= 0) == np.reshape(again, (3, m)).any(axis=1)).all()
    if k > 1:
        assert want[2] == 1


@kernel("points.choose_farthest")
@pytest.mark.parametrize("layout", ["packed", "holes"])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_choose_farthest(name, fast, layout, depth):
    rng = np.random.default_rng(depth)
    n = sum(RAGGED) if layout == "packed" else 300
    points = np.round(rng.standard_normal((1 if layout == "packed" else 2, n, depth)) * 3).astype(np.float32)
    where, index = (packed_spans(RAGGED), None) if layout == "packed" else holes_index(2, 300)
    tasks = np.arange(len(where), dtype=np.int64)[:, None]

    def make(new):
        chosen = new((len(where), 50), np.int64, -7)
        return (points, where, index, tasks, chosen), chosen

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)
    assert (got == -1).any() == (layout == "packed")


@kernel("points.find_nearest")
@pytest.mark.parametrize("layout", ["padded", "holes"])
@pytest.mark.parametrize(("k", "depth"), [(1, 3), (20, 1), (170, 4), (299, 2)])
def test_find_nearest(name, fast, layout, k, depth):
    rng = np.random.default_rng(k)
    points = np.round(rng.standard_normal((2, 300, depth)) * 3).astype(np.float32)
    queries = np.round(rng.standard_normal((2, 61, depth)) * 3).astype(np.float32)
    where, index = (spans([0, 0, 300], [1, 0, 90]), None) if layout == "padded" else holes_index(2, 300)
    tasks = tasks_of([61, 61], 1, 50)[:, [0, 2]].copy()

    def make(new):
        neighbors = new((2, 61, k), np.int64, -7)
        return (queries, points, where, index, k, tasks, 50, neighbors), neighbors

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)
