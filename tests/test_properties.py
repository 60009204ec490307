"""What is true of clustered attention for any input (Vyas et al. 2020, sections 3.2 to 3.4), drawn by hypothesis."""

from itertools import pairwise

import compare
import inputs
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyclattn import (
    cluster_queries,
    clustered_attention,
    coclustered_attention,
    hash_queries,
    improved_clustered_attention,
    kmeans,
    scaled_dot_product_attention,
)
from pyclattn.functional import coclustered


@st.composite
def cases(draw, least=1):
    """Tensors of a drawn shape and kind, and how to cluster the queries."""
    heads = draw(st.integers(1, 3))
    tensors = inputs.tensors(
        draw(st.sampled_from(inputs.KINDS)),
        batch=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=draw(st.sampled_from([1, heads])),
        n=draw(st.integers(least, 60)),
        n_keys=draw(st.integers(least, 60)),
        dim=draw(st.integers(1, 20)),
        width=draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 10**6)),
    )
    how = {
        "n_clusters": draw(st.integers(1, 20)),
        "n_iterations": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 5)),
        "clustering": draw(st.sampled_from(["lsh", "kmeans"])),
        "n_bits": draw(st.integers(1, 63)),
    }
    return tensors, how


TOPK = st.integers(1, 40)
COCLUSTERS = st.fixed_dictionaries(
    {"n_exact": st.integers(0, 12), "rank": st.integers(1, 20)},
    optional={"n_query_clusters": st.integers(1, 60), "n_key_clusters": st.integers(1, 60)},
)


@pytest.fixture(autouse=True)
def short_sequences_too(monkeypatch):
    """Co-clustered attention takes those drawn here exactly otherwise."""
    monkeypatch.setattr(coclustered, "SHORTEST", 2)


def implied(function, query, key, **options):
    """The matrix a call multiplies the values with, seen with the identity as values."""
    n_keys = key.shape[2]
    identity = np.broadcast_to(np.eye(n_keys, dtype=np.float32), (*key.shape[:2], n_keys, n_keys))
    return function(query, key, identity, **options)


@given(case=cases(), topk=TOPK, coclusters=COCLUSTERS)
def test_rows_sum_to_one(room, case, topk, coclusters):
    (query, key, _), how = case
    for matrix in (
        implied(scaled_dot_product_attention, query, key),
        implied(clustered_attention, query, key, **how),
        implied(improved_clustered_attention, query, key, topk=topk, **how),
        implied(coclustered_attention, query, key, **coclusters),
    ):
        np.testing.assert_allclose(matrix.astype(np.float64).sum(axis=-1), 1, atol=1e-5)


@given(case=cases(), topk=TOPK, coclusters=COCLUSTERS)
def test_constant_values_come_back(room, case, topk, coclusters):
    (query, key, value), how = case
    value[:] = np.arange(value.shape[3]) - 7.5
    want = np.broadcast_to(value[:1, :1, :1], (*query.shape[:3], value.shape[3]))
    compare.assert_close(scaled_dot_product_attention(query, key, value), want, compare.CLUSTERED)
    compare.assert_close(clustered_attention(query, key, value, **how), want, compare.CLUSTERED)
    compare.assert_close(improved_clustered_attention(query, key, value, topk=topk, **how), want, compare.CLUSTERED)
    compare.assert_close(coclustered_attention(query, key, value, **coclusters), want, compare.CLUSTERED)


@given(case=cases(), coclusters=COCLUSTERS)
def test_coclusters_of_one_query_each_are_exact(room, case, coclusters):
    (query, key, value), _ = case
    got = coclustered_attention(query, key, value, **{**coclusters, "n_query_clusters": 60, "rank": 20})
    compare.assert_close(got, scaled_dot_product_attention(query, key, value), compare.CLUSTERED)


@given(case=cases())
def test_exact_and_clustered_weights_are_not_negative(room, case):
    (query, key, _), how = case
    assert implied(scaled_dot_product_attention, query, key).min() >= 0
    assert implied(clustered_attention, query, key, **how).min() >= 0


@given(case=cases(), more=st.integers(0, 5), holes=st.floats(0, 0.9))
def test_topk_of_all_valid_keys_is_exact_for_any_clustering(room, case, more, holes):
    (query, key, value), how = case
    mask = inputs.padding(*key.shape[::2], holes=holes)
    n_valid = int((~mask).sum(axis=1).max())
    got = improved_clustered_attention(query, key, value, topk=max(1, n_valid + more), key_padding_mask=mask, **how)
    compare.assert_close(got, scaled_dot_product_attention(query, key, value, key_padding_mask=mask), compare.CLUSTERED)


@given(case=cases(), topk=TOPK)
def test_causal_with_all_keys_is_exact(room, case, topk):
    (query, key, value), how = case
    n = min(query.shape[2], key.shape[2])
    query, key, value = query[:, :, :n], key[:, :, :n], value[:, :, :n]
    got = improved_clustered_attention(query, key, value, topk=n + topk, is_causal=True, **how)
    want = scaled_dot_product_attention(query, key, value, is_causal=True)
    compare.assert_close(got, want, compare.CLUSTERED)


@given(case=cases(), topk=TOPK)
def test_row_error_never_exceeds_the_clustered_variants(room, case, topk):
    """In L1, row by row: what improvement moves, it moves towards the exact row."""
    (query, key, _), how = case
    exact = implied(scaled_dot_product_attention, query, key).astype(np.float64)
    clustered = np.abs(implied(clustered_attention, query, key, **how) - exact).sum(axis=-1)
    improved = np.abs(implied(improved_clustered_attention, query, key, topk=topk, **how) - exact).sum(axis=-1)
    assert (improved <= clustered + 1e-5).all()


@given(case=cases(least=2))
def test_as_many_clusters_as_distinct_codes_is_exact(room, case):
    """Every query opens its own cluster; where codes are distinct nothing moves, and each mean is its query."""
    (query, key, value), how = case
    n = query.shape[2]
    planes = naive.drawn_planes(1, 63, query.shape[3])
    codes = hash_queries(query, planes=planes)
    got = clustered_attention(
        query, key, value, n_clusters=n, planes=planes, start=np.arange(n), n_iterations=how["n_iterations"]
    )
    want = scaled_dot_product_attention(query, key, value)
    for b, h in np.ndindex(codes.shape[:2]):
        if len(set(codes[b, h].tolist())) == n:
            compare.assert_close(got[b, h], want[b, h], compare.CLUSTERED)
    got = clustered_attention(query, key, value, n_clusters=n, clustering="kmeans")  # rows are always distinct
    compare.assert_close(got, want, compare.CLUSTERED)


@given(case=cases(), topk=TOPK, seed=st.integers(0, 100))
def test_permuting_keys_and_values_together_changes_nothing(room, case, topk, seed):
    (query, key, value), how = case
    order = np.random.default_rng(seed).permutation(key.shape[2])
    moved = query, key[:, :, order], value[:, :, order]
    want = scaled_dot_product_attention(query, key, value)
    compare.assert_close(scaled_dot_product_attention(*moved), want, compare.EXACT)
    want = clustered_attention(query, key, value, **how)
    compare.assert_close(clustered_attention(*moved, **how), want, compare.CLUSTERED)
    labels = cluster_queries(query, **how).labels
    _, margin = naive.improved(query, key, value, labels, topk)
    want = improved_clustered_attention(query, key, value, topk=topk, **how)
    got = improved_clustered_attention(*moved, topk=topk, **how)
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin, at_least=0)


@given(case=cases(), topk=TOPK, seed=st.integers(0, 100))
def test_permuting_queries_permutes_rows(room, case, topk, seed):
    """With the start moved along: position p of the queries is position place[p] of the moved ones."""
    (query, key, value), how = case
    n = query.shape[2]
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    place = np.argsort(order)
    n_clusters = min(how["n_clusters"], n)
    start = rng.choice(n, n_clusters, replace=False)
    how = {**how, "n_clusters": n_clusters, "clustering": "lsh"}
    labels = cluster_queries(query, start=start, **how).labels
    moved = cluster_queries(query[:, :, order], start=place[start], **how).labels
    compare.assert_same_bits(moved, labels[:, :, order])
    compare.assert_same_partition(moved, labels[:, :, order])
    want = clustered_attention(query, key, value, start=start, **how)[:, :, order]
    got = clustered_attention(query[:, :, order], key, value, start=place[start], **how)
    compare.assert_close(got, want, compare.CLUSTERED)
    _, margin = naive.improved(query, key, value, labels, topk)
    want = improved_clustered_attention(query, key, value, start=start, topk=topk, **how)[:, :, order]
    got = improved_clustered_attention(query[:, :, order], key, value, start=place[start], topk=topk, **how)
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin[:, :, order], at_least=0)


@given(case=cases(), seed=st.integers(0, 100))
def test_renumbering_clusters_changes_nothing(room, case, seed):
    """Another order of the same starting rows: the same partition, up to the order of equals, and the same output."""
    (query, key, value), how = case
    n_clusters = min(how["n_clusters"], query.shape[2])
    rng = np.random.default_rng(seed)
    start = rng.choice(query.shape[2], n_clusters, replace=False)
    how = {"n_clusters": n_clusters, "n_iterations": how["n_iterations"], "clustering": "kmeans"}
    margin = min(naive.kmeans(head, start, how["n_iterations"])[1] for entry in query for head in entry)
    if margin > 1e-5:  # no ties, which go to the lowest number
        other = rng.permutation(start)
        labels, again = (cluster_queries(query, start=s, **how).labels for s in (start, other))
        compare.assert_same_partition(again, labels)
        got, want = (clustered_attention(query, key, value, start=s, **how) for s in (other, start))
        compare.assert_close(got, want, compare.CLUSTERED)


@given(case=cases())
def test_nearby_queries_attend_alike(room, case):
    """||softmax(Q_i K^T) - softmax(Q_j K^T)||_2 <= ||Q_i - Q_j||_2 ||K||_2, the bound clustering rests on."""
    (query, key, _), _ = case
    key = key[:, np.repeat(np.arange(key.shape[1]), query.shape[1] // key.shape[1])]
    rows = implied(scaled_dot_product_attention, query, key, scale=1.0).astype(np.float64)
    for b, h in np.ndindex(query.shape[:2]):
        norm = np.linalg.norm(key[b, h].astype(np.float64), 2)
        apart = np.linalg.norm(rows[b, h][:, None] - rows[b, h][None], axis=-1)
        far = np.linalg.norm(query[b, h].astype(np.float64)[:, None] - query[b, h].astype(np.float64)[None], axis=-1)
        assert (apart <= far * norm * (1 + 1e-5) + 1e-5).all()


@given(case=cases())
def test_each_row_is_nearest_to_its_kmeans_start(room, case):
    """One assignment: no other starting row is nearer, up to the rounding of |x|^2 - 2 x.c + |c|^2."""
    (x, _, _), how = case
    n_clusters = min(how["n_clusters"], x.shape[2])
    start = np.random.default_rng(how["seed"]).choice(x.shape[2], n_clusters, replace=False)
    labels = kmeans(x, n_clusters=n_clusters, n_iterations=1, start=start).labels
    for b, h in np.ndindex(x.shape[:2]):
        rows = x[b, h].astype(np.float64)
        distances = ((rows[:, None] - rows[start]) ** 2).sum(axis=-1)
        mine = distances[np.arange(len(rows)), labels[b, h]]
        assert (mine <= distances.min(axis=1) + 2e-6 * (rows**2).sum(axis=-1).max()).all()


@given(case=cases())
def test_kmeans_never_gets_worse(room, case):
    """The sum of squared distances to the centroids falls, or stays, with each iteration."""
    (x, _, _), how = case
    errors = []
    for n_iterations in (1, 2, 3, 6):
        found = kmeans(x, n_clusters=how["n_clusters"], n_iterations=n_iterations, seed=how["seed"])
        own = np.take_along_axis(found.centroids, found.labels[..., None].astype(np.int64), axis=2)
        errors.append(((x.astype(np.float64) - own) ** 2).sum())
    assert all(after <= before * (1 + 1e-5) + 1e-5 for before, after in pairwise(errors))


@given(case=cases(), scale=st.floats(0.1, 10))
def test_scale_is_a_factor_on_the_queries(room, case, scale):
    (query, key, value), _ = case
    want = scaled_dot_product_attention(query * np.float32(scale), key, value, scale=1.0)
    got = scaled_dot_product_attention(query, key, value, scale=scale)
    logits = np.abs(np.einsum("bhld,bgsd->bhgls", query, key)).max() * scale
    compare.assert_close(got, want, compare.EXACT + 3e-7 * logits)
