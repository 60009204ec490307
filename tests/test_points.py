"""Points far apart, points near, pooled and drawn tokens: against the loops, exactly."""

import compare
import inputs
import naive_centroid as naive
import numpy as np
import pytest
from conftest import ISA_LEVELS, Room
from hypothesis import given
from hypothesis import strategies as st

import pyclattn
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional.centroid import random_positions


@st.composite
def clouds(draw):
    """Points (B, N, P), often on a coarse grid so that distances tie, with a mask or without."""
    batch, n, depth = draw(st.integers(1, 3)), draw(st.integers(1, 60)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    points = rng.standard_normal((batch, n, depth)).astype(np.float32)
    if draw(st.booleans()):
        points = np.round(points)
    padding = rng.random((batch, n)) < draw(st.sampled_from([0.3, 1.0])) if draw(st.booleans()) else None
    return points, padding


def is_padded(points, padding):
    return np.zeros(points.shape[:2], bool) if padding is None else padding


@given(clouds(), st.data())
def test_farthest_as_the_loops(room, cloud, data):
    points, padding = cloud
    m = data.draw(st.integers(1, min(12, points.shape[1])))
    got = pyclattn.farthest_point_sampling(points, m, key_padding_mask=padding)
    want = [naive.farthest_points(x, m, mask) for x, mask in zip(points, is_padded(points, padding))]
    assert got.dtype == np.int64
    assert got.tolist() == want


@given(clouds(), st.data())
def test_nearest_as_the_loops(room, cloud, data):
    points, padding = cloud
    k, rng = data.draw(st.integers(1, points.shape[1])), np.random.default_rng(0)
    queries = np.round(rng.standard_normal((len(points), 7, points.shape[2]))).astype(np.float32)
    got = pyclattn.nearest_neighbors(queries, points, k, key_padding_mask=padding)
    hidden = is_padded(points, padding)
    want = [[naive.nearest_points(q, points[b], k, hidden[b]) for q in queries[b]] for b in range(len(points))]
    assert got.tolist() == want


@pytest.mark.parametrize("isa", ISA_LEVELS)
@pytest.mark.parametrize("depth", [2, 3, 7])
def test_long_clouds_as_the_reference(isa, depth):
    """Many panels and blocks, ties among them, holes; the same for any number of threads."""
    rng = np.random.default_rng(depth)
    points = np.round(rng.standard_normal((2, 2001, depth)) * 8).astype(np.float32) / 7
    queries, holes = points[:, :301], inputs.padding(2, 2001, holes=0.3)
    for padding in (None, holes):
        with Room("reference").forced():
            far = pyclattn.farthest_point_sampling(points, 300, key_padding_mask=padding)
            near = pyclattn.nearest_neighbors(queries, points, 40, key_padding_mask=padding)
        for n_threads in (1, 2, 5):
            more = {"key_padding_mask": padding, "n_threads": n_threads}
            with Room("cython", isa).forced():
                compare.assert_same_bits(pyclattn.farthest_point_sampling(points, 300, **more), far)
                compare.assert_same_bits(pyclattn.nearest_neighbors(queries, points, 40, **more), near)


@given(clouds())
def test_all_points_once_and_ever_nearer(cloud):
    """All positions come, each once; the distance to those before never grows."""
    points, padding = cloud
    found = pyclattn.farthest_point_sampling(points, points.shape[1], key_padding_mask=padding)
    for x, chosen, mask in zip(points, found, is_padded(points, padding)):
        own = chosen[chosen >= 0].tolist()
        assert sorted(own) == np.flatnonzero(~mask).tolist()
        gaps = [min(naive.distance(x[own[i]], x[c]) for c in own[:i]) for i in range(1, len(own))]
        assert gaps == sorted(gaps, reverse=True)


def test_points_that_lie_on_one_another(room):
    """Every point the same: the positions in their order, none twice."""
    points = np.ones((1, 100, 3), np.float32)
    assert pyclattn.farthest_point_sampling(points, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert pyclattn.nearest_neighbors(points[:, :2], points, 3).tolist() == [[[0, 1, 2], [0, 1, 2]]]


def test_distances_are_rounded_step_by_step(room):
    """Coordinates swapped: the same squares added the other way round tie, unless a sum is fused with a product."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        points = rng.standard_normal((1, 400, 2)).astype(np.float32)
        points[0, 200:] = points[0, :200, ::-1]
        got = pyclattn.nearest_neighbors(np.zeros((1, 1, 2), np.float32), points, 400)[0, 0]
        place = np.argsort(got)
        assert (place[200:] == place[:200] + 1).all()


def test_huge_coordinates(room):
    """Squares that overflow: all equally far, the lowest position first."""
    points = np.array([[[0.0], [3e38], [-3e38], [1.0]]], np.float32)
    assert pyclattn.farthest_point_sampling(points, 4).tolist() == [[0, 1, 2, 3]]
    assert pyclattn.nearest_neighbors(points[:, :1], points, 4).tolist() == [[[0, 3, 1, 2]]]


@given(clouds(), st.data())
def test_mean_pool_as_the_loops(cloud, data):
    tokens, padding = cloud
    m = data.draw(st.integers(1, tokens.shape[1]))
    got = pyclattn.mean_pool_tokens(tokens, m, key_padding_mask=padding)
    want = [naive.mean_pool(x, m, None, mask) for x, mask in zip(tokens, is_padded(tokens, padding))]
    compare.assert_close(got, np.array(want), 1e-6)


@pytest.mark.parametrize(("grid", "m"), [((4, 6), 6), ((4, 6), 24), ((9, 3), 3), ((1, 1), 1), ((8, 8), 1)])
def test_mean_pool_on_a_grid(grid, m):
    tokens = np.random.default_rng(0).standard_normal((2, grid[0] * grid[1], 3)).astype(np.float32)
    padding = inputs.padding(2, tokens.shape[1], holes=0.3)
    for mask in (None, padding):
        got = pyclattn.mean_pool_tokens(tokens, m, grid=grid, key_padding_mask=mask)
        want = [naive.mean_pool(x, m, grid, hidden) for x, hidden in zip(tokens, is_padded(tokens, mask))]
        compare.assert_close(got, np.array(want), 1e-6)


def test_pooled_padding_is_never_read():
    tokens = np.random.default_rng(0).standard_normal((1, 10, 2)).astype(np.float32)
    padding = np.arange(10)[None] >= 4
    want = pyclattn.mean_pool_tokens(tokens, 5, key_padding_mask=padding)
    tokens[padding] = np.nan
    compare.assert_same_bits(pyclattn.mean_pool_tokens(tokens, 5, key_padding_mask=padding), want)
    assert (want[0, 2:] == 0).all()


def test_random_positions():
    padding = inputs.padding(3, 50, [50, 7, 0])
    found = random_positions(50, 20, seed=4, key_padding_mask=padding)
    compare.assert_same_bits(found[:1], random_positions(50, 20, seed=4))
    assert len(set(found[0].tolist())) == 20
    assert sorted(found[1].tolist()) == [-1] * 13 + list(range(7))
    assert (found[2] == -1).all()
    assert (random_positions(50, 20, seed=5) != found[0]).any()


POINTS = np.zeros((2, 10, 3), np.float32)
FAR, NEAR, POOL = pyclattn.farthest_point_sampling, pyclattn.nearest_neighbors, pyclattn.mean_pool_tokens
BAD = {
    "rank": (FAR, (POINTS[0], 3), {}, ShapeError, "points | rank 3"),
    "too_many": (FAR, (POINTS, 11), {}, ArgumentError, "n_centroids | 11 of 10"),
    "none": (FAR, (POINTS, 0), {}, ArgumentError, "n_centroids"),
    "fraction": (FAR, (POINTS, 2.5), {}, DTypeError, "n_centroids | 2.5"),
    "flat": (FAR, (POINTS[..., :0], 3), {}, ShapeError, "points | coordinate"),
    "nan": (FAR, (POINTS + np.nan, 3), {}, ArgumentError, "points | finite | [0, 0]"),
    "whole_numbers": (FAR, (POINTS.astype(int), 3), {}, DTypeError, "points | int64"),
    "mask": (FAR, (POINTS, 3), {"key_padding_mask": np.zeros((2, 9), bool)}, ShapeError, "key_padding_mask | (2, 9)"),
    "neighbors": (NEAR, (POINTS, POINTS, 11), {}, ArgumentError, "n_neighbors | 11"),
    "coordinates": (NEAR, (POINTS[..., :2], POINTS, 1), {}, ShapeError, "(2, 10, 2) | (2, 10, 3)"),
    "infinite": (NEAR, (POINTS + np.inf, POINTS, 1), {}, ArgumentError, "queries | finite"),
    "pools": (POOL, (POINTS, 11), {}, ArgumentError, "n_centroids | 11 of 10"),
    "grid_size": (POOL, (POINTS, 5), {"grid": (3, 3)}, ShapeError, "grid | 10 | 3 x 3"),
    "grid_parts": (POOL, (POINTS, 5), {"grid": (2, 5)}, ArgumentError, "2 x 5 | 5"),
    "grid_type": (POOL, (POINTS, 5), {"grid": 10}, DTypeError, "grid | 10"),
    "seed": (random_positions, (10, 3), {"seed": -1}, ArgumentError, "seed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    function, arguments, more, kind, said = BAD[name]
    with pytest.raises(kind) as error:
        function(*arguments, **more)
    for word in said.split(" | "):
        assert word in str(error.value), (word, str(error.value))


def test_masked_points_need_not_be_finite():
    points, padding = np.zeros((1, 4, 2), np.float32), np.array([[False, True, False, False]])
    points[0, 1], points[0, 3] = np.nan, 5
    assert pyclattn.farthest_point_sampling(points, 3, key_padding_mask=padding).tolist() == [[0, 3, 2]]
    assert pyclattn.nearest_neighbors(points[:, :1], points, 3, key_padding_mask=padding).tolist() == [[[0, 2, 3]]]
