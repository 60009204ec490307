"""Hashes, Hamming k-means and float k-means against the definitions, in every room: codes and labels exactly."""

from fractions import Fraction
from functools import cache

import compare
import inputs
import naive
import numpy as np
import pytest

from pyclattn import cluster_queries, hash_queries, kmeans

DIMS = (1, 3, 16, 32, 36, 64, 65, 96, 128)


@cache
def hash_case(dim, kind, n_bits):
    query, _, _ = inputs.tensors(kind, heads=2, n=40, dim=dim, seed=dim)
    planes = np.random.default_rng(dim).standard_normal((n_bits, dim + 1), dtype=np.float32)
    codes = np.array([[naive.sign_code(row, planes) for row in head] for head in query[0]], np.uint64)
    return query, planes, codes[None]


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dim", DIMS)
def test_codes(room, dim, kind):
    query, planes, want = hash_case(dim, kind, 63)
    compare.assert_same_bits(hash_queries(query, planes=planes), want)


@pytest.mark.parametrize("n_bits", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 48, 62, 63])
def test_codes_of_every_width(room, n_bits):
    query, planes, want = hash_case(16, "random", n_bits)
    compare.assert_same_bits(hash_queries(query, planes=planes), want)


def fractions_code(row, planes):
    code = 0
    for b, plane in enumerate(planes):
        total = sum((Fraction(float(x)) * Fraction(float(p)) for x, p in zip(row, plane[:-1])), Fraction(0))
        code |= int(total > Fraction(float(plane[-1]))) << b
    return code


def test_codes_on_the_plane_and_next_to_it(room):
    """Exact ties give 0; sums that float32 cannot tell from a tie give what exact arithmetic gives."""
    rng = np.random.default_rng(5)
    rows, planes = [], []
    for dim_sign in (1, -1):
        for _ in range(16):
            x = rng.integers(-5000, 5000, 6).astype(np.float64)
            p = rng.integers(-5000, 5000, 6).astype(np.float64)
            x[5], p[5] = 1.0, 0.0
            p[5] = -(x[:5] @ p[:5])  # about 1e7 to 1e8: the sum with it is 0
            if abs(p[5]) < 2**24:  # exactly a float32
                rows.append(x)
                planes.append([*p[:5], p[5], dim_sign * 0.0])
                planes.append([*p[:5], p[5], dim_sign * 0.5])
                planes.append([*p[:5], p[5], dim_sign * 2.0**-20])
    rows, planes = np.array(rows, np.float32), np.array(planes, np.float32)
    assert len(rows) >= 5
    for first in range(0, len(planes), 63):
        own = planes[first : first + 63]
        want = [fractions_code(row, own) for row in rows]
        assert [naive.sign_code(row, own) for row in rows] == want
        got = hash_queries(rows[None, None], planes=own)[0, 0]
        assert got.tolist() == want


def test_codes_of_rows_in_the_planes(room):
    """Thresholds that are the very product: float64 holds it exactly in one dimension, so the bit is 0."""
    rng = np.random.default_rng(6)
    x = np.float32(1.5)
    p = (rng.integers(1, 1000, 63) / 8).astype(np.float32)
    planes = np.stack([p, x * p], axis=1)
    rows = np.array([[x], [np.nextafter(x, np.float32(2))], [np.nextafter(x, np.float32(0))]], np.float32)
    got = hash_queries(rows[None, None], planes=planes)[0, 0].tolist()
    assert got == [0, (1 << 63) - 1, 0]


def test_codes_of_nan_and_infinity(room):
    """NaN is not above any threshold, nor is infinity less infinity; infinity is."""
    rows = np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [np.inf, -np.inf]], np.float32)
    planes = np.array([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]], np.float32)
    with np.errstate(invalid="ignore"):
        assert hash_queries(rows[None, None], planes=planes)[0, 0].tolist() == [0, 1, 2, 0]


def test_drawn_planes_are_those_of_the_seed(room):
    query, _, _ = inputs.tensors(heads=2, n=30, dim=16)
    for seed in (0, 7):
        want = hash_queries(query, planes=naive.drawn_planes(seed, 63, 16))
        compare.assert_same_bits(hash_queries(query, seed=seed), want)
    compare.assert_same_bits(
        hash_queries(query, seed=3, n_bits=20), hash_queries(query, planes=naive.drawn_planes(3, 20, 16))
    )


CLUSTER_CASES = {
    "plain": ({"heads": 2, "n": 120, "dim": 16}, {"n_clusters": 9}),
    "one_cluster": ({"n": 33, "dim": 8}, {"n_clusters": 1}),
    "one_row": ({"n": 1, "dim": 8}, {"n_clusters": 4}),
    "as_many_as_rows": ({"n": 17, "dim": 8}, {"n_clusters": 17}),
    "more_than_rows": ({"n": 16, "dim": 8}, {"n_clusters": 40}),
    "one_iteration": ({"n": 100, "dim": 8}, {"n_clusters": 8, "n_iterations": 1}),
    "two_iterations": ({"n": 100, "dim": 8}, {"n_clusters": 8, "n_iterations": 2}),
    "few_bits": ({"heads": 3, "n": 130, "dim": 8}, {"n_clusters": 40, "n_bits": 4}),  # clusters run empty
    "one_bit": ({"n": 65, "dim": 8}, {"n_clusters": 5, "n_bits": 1}),
    "batch": ({"batch": 3, "heads": 2, "n": 49, "dim": 36}, {"n_clusters": 7, "seed": 5}),
    "many_clusters": ({"n": 257, "dim": 16}, {"n_clusters": 100, "n_bits": 31}),
}


@cache
def cluster_case(name, kind):
    shape, options = CLUSTER_CASES[name]
    query, _, _ = inputs.tensors(kind, seed=11, **shape)
    return query, *naive.cluster(query, **options)


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("name", CLUSTER_CASES)
def test_labels(room, name, kind):
    query, codes, labels = cluster_case(name, kind)
    options = CLUSTER_CASES[name][1]
    given = {key: options[key] for key in ("n_bits", "seed") if key in options}
    compare.assert_same_bits(hash_queries(query, **given), codes)
    found = cluster_queries(query, **options)
    compare.assert_same_bits(found.labels, labels)
    check_counts_and_means(query, found)


def check_counts_and_means(x, clusters):
    for b, h in np.ndindex(x.shape[:2]):
        for c in range(clusters.counts.shape[2]):
            members = x[b, h, clusters.labels[b, h] == c].astype(np.float64)
            assert clusters.counts[b, h, c] == len(members)
            want = members.mean(axis=0) if len(members) else np.zeros(x.shape[3])
            compare.assert_close(clusters.centroids[b, h, c], want, 1e-6)


def test_given_planes_and_start(room):
    query, _, _ = inputs.tensors("blobs", heads=2, n=90, dim=16)
    planes = naive.drawn_planes(99, 50, 16)
    start = [80, 3, 41, 7, 8]
    _, want = naive.cluster(query, n_clusters=5, planes=planes, start=start)
    compare.assert_same_bits(cluster_queries(query, n_clusters=5, planes=planes, start=start).labels, want)


def test_ties_go_to_the_lowest_cluster_and_half_is_not_a_majority(room):
    """Codes 0b00 and 0b11 in one cluster have majority 0b00; 0b01 is as near to 0b00 as to 0b11."""
    planes = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    rows = np.array([[-1, -1], [1, 1], [1, -1], [-1, 1]], np.float32)  # codes 0, 3, 1, 2
    for start, want in (([0, 1], [0, 1, 0, 0]), ([1, 0], [1, 0, 0, 0])):
        found = cluster_queries(rows[None, None], n_clusters=2, planes=planes, start=start, n_iterations=1)
        assert found.labels[0, 0].tolist() == want
    # one cluster of 0 and 3: the update gives code 0; then 3 is nearer to the second center, 1
    pair = np.concatenate([rows[:2], rows[2:3]])[None, None]
    _, want = naive.cluster(pair, n_clusters=2, planes=planes, start=[0, 2], n_iterations=3)
    found = cluster_queries(pair, n_clusters=2, planes=planes, start=[0, 2], n_iterations=3)
    assert found.labels.tolist() == want.tolist()


@pytest.mark.parametrize("holes", [0.0, 0.4, "behind", "all"])
def test_labels_with_padding(room, holes):
    """Padded queries get no cluster; a start counts the tokens that are there."""
    query, _, _ = inputs.tensors(batch=3, heads=2, n=60, dim=16)
    mask = inputs.padding(3, 60, lengths=[60, 8, 31]) if holes == "behind" else inputs.padding(3, 60, holes=0.4)
    if holes == "all":
        mask[1] = True
    if holes == 0.0:
        mask[:] = False
    codes, want = naive.cluster(query, n_clusters=6, query_padding=mask)
    found = cluster_queries(query, n_clusters=6, query_padding_mask=mask)
    compare.assert_same_bits(found.labels, want)
    check_counts_and_means(query, found)
    compare.assert_same_bits(hash_queries(query, query_padding_mask=mask), codes)
    start = [5, 0, 7]
    _, want = naive.cluster(query, n_clusters=3, start=start, query_padding=mask)
    found = cluster_queries(query, n_clusters=3, start=start, query_padding_mask=mask)
    compare.assert_same_bits(found.labels, want)


def test_packed_labels_are_those_of_each_sequence_alone(room):
    lengths = [5, 0, 1, 130, 49]
    query, _, _ = inputs.tensors(heads=2, n=sum(lengths), dim=16)
    offsets = np.cumsum([0, *lengths])
    found = cluster_queries(query[0], n_clusters=8, offsets=offsets)
    codes = hash_queries(query[0], offsets=offsets)
    assert found.labels.shape == codes.shape == (2, sum(lengths))
    assert found.counts.shape == (5, 2, 8)
    for s in range(len(lengths)):
        own = slice(*offsets[s : s + 2])
        alone_codes, alone = naive.cluster(query[:, :, own], n_clusters=8)
        compare.assert_same_bits(found.labels[None, :, own], alone)
        compare.assert_same_bits(codes[None, :, own], alone_codes)
        counts = cluster_queries(query[:, :, own], n_clusters=8).counts[0]  # of fewer clusters where it is shorter
        compare.assert_same_bits(found.counts[s, :, : counts.shape[1]], counts)
        assert not found.counts[s, :, counts.shape[1] :].any()


KMEANS_SHAPES = {
    "plain": ({"heads": 2, "n": 120, "dim": 16}, 7),
    "one_dimension": ({"n": 61, "dim": 1}, 5),
    "one_row": ({"n": 1, "dim": 3}, 4),
    "one_cluster": ({"n": 40, "dim": 3}, 1),
    "wide": ({"n": 100, "dim": 65}, 20),
    "batch": ({"batch": 2, "heads": 2, "n": 50, "dim": 36}, 6),
    "as_many_as_rows": ({"n": 19, "dim": 5}, 19),
}


@cache
def kmeans_case(name, kind, seed):
    shape, n_clusters = KMEANS_SHAPES[name]
    x, _, _ = inputs.tensors(kind, seed=seed, **shape)
    start = naive.drawn_start(0, n_clusters, x.shape[2])
    found = [[naive.kmeans(head, start, 6) for head in heads] for heads in x]
    labels = np.array([[labels for labels, _ in heads] for heads in found], np.int32)
    return x, labels, min(margin for heads in found for _, margin in heads)


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("name", KMEANS_SHAPES)
def test_kmeans_labels(room, name, kind):
    """Exactly the definition's, for inputs where no assignment hangs on rounding."""
    seed, margin = 20, 0.0
    while margin < 1e-5:
        seed += 1
        x, labels, margin = kmeans_case(name, kind, seed)
    n_clusters = KMEANS_SHAPES[name][1]
    found = kmeans(x, n_clusters=n_clusters, n_iterations=6)
    compare.assert_same_bits(found.labels, labels)
    check_counts_and_means(x, found)
    same = cluster_queries(x, n_clusters=n_clusters, n_iterations=6, clustering="kmeans")
    compare.assert_same_bits(same.labels, labels)


def test_kmeans_given_start_and_padding(room):
    x, _, _ = inputs.tensors("blobs", batch=2, heads=2, n=70, dim=8, seed=3)
    mask = inputs.padding(2, 70, holes=0.3)
    start = [11, 2, 30]
    found = kmeans(x, n_clusters=3, start=start, padding_mask=mask, n_iterations=5)
    for b, h in np.ndindex(2, 2):
        there = np.flatnonzero(~mask[b])
        want, margin = naive.kmeans(x[b, h, there], start, 5)
        assert margin > 1e-6
        assert found.labels[b, h, there].tolist() == want
        assert (found.labels[b, h, mask[b]] == -1).all()


def test_kmeans_empty_cluster_keeps_its_centroid_and_ties_go_low(room):
    """Distances of whole numbers are exact: rows 1 and 2 open two clusters at one place, and one stays empty."""
    x = np.array([0.0, 10.0, 10.0, 12.0, -2.0], np.float32).reshape(1, 1, -1, 1)
    assert kmeans(x, n_clusters=3, start=[1, 2, 0], n_iterations=1).labels.tolist() == [[[2, 0, 0, 0, 2]]]
    found = kmeans(x, n_clusters=3, start=[1, 2, 0], n_iterations=2)
    want, _ = naive.kmeans(x[0, 0], [1, 2, 0], 2)
    assert found.labels.tolist() == [[want]]
    assert want == [2, 1, 1, 0, 2]  # 10 is nearer to 10, the empty cluster's centroid, than to 10.67
    middle = np.array([0.0, 4.0, 2.0], np.float32).reshape(1, 1, -1, 1)
    for start, label in (([0, 1], 0), ([1, 0], 0)):
        assert kmeans(middle, n_clusters=2, start=start, n_iterations=1).labels[0, 0, 2] == label
