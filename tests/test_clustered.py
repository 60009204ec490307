"""Clustered and improved clustered attention against the definitions, in every room."""

from functools import cache

import compare
import inputs
import naive
import numpy as np
import pytest

from pyclattn import cluster_queries, clustered_attention, improved_clustered_attention, scaled_dot_product_attention

LENGTHS = (1, 2, 15, 16, 17, 47, 48, 49, 191, 193, 255, 257, 300)
DIMS = (1, 3, 16, 32, 36, 64, 65, 96, 128)

# name -> tensors, (n_clusters, topk)
SHAPES = {
    **{f"L{n}": ({"n": n, "dim": 16}, (6, 8)) for n in LENGTHS},
    **{f"S{n}": ({"n": 40, "n_keys": n, "dim": 8}, (5, 16)) for n in (1, 2, 16, 49, 300, 513)},
    **{f"D{dim}": ({"n": 49, "n_keys": 65, "dim": dim, "width": 16}, (7, 9)) for dim in DIMS},
    **{f"E{width}": ({"n": 50, "n_keys": 70, "dim": 16, "width": width}, (6, 10)) for width in DIMS},
    **{f"C{c}": ({"n": 257, "n_keys": 60, "dim": 16}, (c, 8)) for c in (1, 2, 16, 49, 100, 200)},
    **{f"K{k}": ({"n": 60, "n_keys": 150, "dim": 16}, (6, k)) for k in (1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 149)},
    "grouped": ({"batch": 2, "heads": 6, "kv_heads": 2, "n": 49, "n_keys": 33, "dim": 36, "width": 20}, (5, 6)),
    "batch": ({"batch": 3, "heads": 2, "n": 50, "n_keys": 61, "dim": 64, "width": 32}, (9, 12)),
}


@cache
def case(shape, kind):
    """Tensors, the call's arguments, and the definition's outputs, for planes and start that are given."""
    sizes, (n_clusters, topk) = SHAPES[shape]
    tensors = inputs.tensors(kind, seed=17, **sizes)
    n, dim = tensors[0].shape[2:]
    n_clusters = min(n_clusters, n)
    rng = np.random.default_rng(n + dim)
    options = {
        "n_clusters": n_clusters,
        "planes": rng.standard_normal((40, dim + 1), dtype=np.float32),
        "start": rng.choice(n, n_clusters, replace=False),
        "n_iterations": 5,
    }
    _, labels = naive.cluster(tensors[0], **options)
    return tensors, options, topk, labels, naive.clustered(*tensors, labels), naive.improved(*tensors, labels, topk)


@pytest.mark.parametrize("kind", ["random", "blobs"])
@pytest.mark.parametrize("shape", SHAPES)
def test_clustered(room, shape, kind):
    tensors, options, _, labels, want, _ = case(shape, kind)
    compare.assert_same_bits(cluster_queries(tensors[0], **options).labels, labels)
    compare.assert_close(clustered_attention(*tensors, **options), want, compare.CLUSTERED)


@pytest.mark.parametrize("kind", ["random", "blobs"])
@pytest.mark.parametrize("shape", SHAPES)
def test_improved(room, shape, kind):
    tensors, options, topk, _, _, (want, margin) = case(shape, kind)
    got = improved_clustered_attention(*tensors, topk=topk, **options)
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin)


@cache
def causal_case(n, kind):
    tensors = inputs.tensors(kind, heads=2, kv_heads=1, n=n, dim=16, seed=n)
    _, labels = naive.cluster(tensors[0], n_clusters=6)
    return tensors, naive.improved(*tensors, labels, 8, is_causal=True)


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("n", [1, 2, 16, 49, 193, 300])
def test_improved_causal(room, n, kind):
    tensors, (want, margin) = causal_case(n, kind)
    got = improved_clustered_attention(*tensors, n_clusters=6, topk=8, is_causal=True)
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin)
    nothing = ~want.any(axis=-1)
    assert not got[nothing].any()
    assert n < 16 or kind != "random" or nothing.any()  # the case has queries whose keys all lie in the future


@cache
def smooth_case():
    tensors = inputs.tensors("smooth", heads=2, n=300, n_keys=700, dim=32)
    _, labels = naive.cluster(tensors[0], n_clusters=20)
    return tensors, naive.clustered(*tensors, labels), naive.improved(*tensors, labels, 32)


def test_smooth_sequences_with_drawn_planes(room):
    tensors, clustered, (improved, margin) = smooth_case()
    compare.assert_close(clustered_attention(*tensors, n_clusters=20), clustered, compare.CLUSTERED)
    got = improved_clustered_attention(*tensors, n_clusters=20)
    compare.assert_rows_close(got, improved, compare.CLUSTERED, margin)


@cache
def padded_case(kind, dtype_scale):
    tensors = inputs.tensors(batch=3, heads=4, kv_heads=2, n=50, n_keys=61, dim=16, width=12, seed=8)
    if kind == "behind":
        queries, keys = inputs.padding(3, 50, lengths=[50, 9, 23]), inputs.padding(3, 61, lengths=[7, 61, 30])
    elif kind == "holes":
        queries, keys = inputs.padding(3, 50, holes=0.4, seed=1), inputs.padding(3, 61, holes=0.5, seed=2)
    else:  # nothing to ask, nothing to attend to, and an ordinary entry
        queries, keys = inputs.padding(3, 50, lengths=[0, 50, 50]), inputs.padding(3, 61, lengths=[61, 0, 61])
    _, labels = naive.cluster(tensors[0], n_clusters=7, query_padding=queries)
    clustered = naive.clustered(*tensors, labels, key_padding=keys, scale=dtype_scale)
    improved = naive.improved(*tensors, labels, 9, key_padding=keys, scale=dtype_scale)
    return tensors, queries, keys, clustered, improved


@pytest.mark.parametrize("scale", [None, 0.6, -0.5])
@pytest.mark.parametrize("kind", ["behind", "holes", "all"])
def test_padding(room, kind, scale):
    tensors, queries, keys, clustered, (improved, margin) = padded_case(kind, scale)
    options = {"n_clusters": 7, "query_padding_mask": queries, "key_padding_mask": keys, "scale": scale}
    got = clustered_attention(*tensors, **options)
    compare.assert_close(got, clustered, compare.CLUSTERED)
    assert not got.swapaxes(1, 2)[queries].any()
    got = improved_clustered_attention(*tensors, topk=9, **options)
    compare.assert_rows_close(got, improved, compare.CLUSTERED, margin)
    assert not got.swapaxes(1, 2)[queries].any()


def test_causal_with_padding(room):
    tensors = inputs.tensors(batch=2, heads=2, n=60, dim=16)
    mask = inputs.padding(2, 60, holes=0.3)
    _, labels = naive.cluster(tensors[0], n_clusters=5, query_padding=mask)
    want, margin = naive.improved(*tensors, labels, 10, key_padding=mask, is_causal=True)
    got = improved_clustered_attention(
        *tensors, n_clusters=5, topk=10, is_causal=True, query_padding_mask=mask, key_padding_mask=mask
    )
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin)


def test_scale_zero_takes_the_first_keys(room):
    """All logits are equal: every weight is the same, and ties go to the first keys."""
    tensors = inputs.tensors(n=40, n_keys=50, dim=8)
    _, labels = naive.cluster(tensors[0], n_clusters=4)
    mean = np.broadcast_to(tensors[2].astype(np.float64).mean(axis=2, keepdims=True), (1, 1, 40, 8))
    compare.assert_close(clustered_attention(*tensors, n_clusters=4, scale=0.0), mean, compare.CLUSTERED)
    got = improved_clustered_attention(*tensors, n_clusters=4, topk=7, scale=0.0)
    compare.assert_close(got, mean, compare.CLUSTERED)
    causal, _ = naive.improved(*tensors[:1], *(x[:, :, :40] for x in tensors[1:]), labels, 7, is_causal=True, scale=0.0)
    got = improved_clustered_attention(
        tensors[0], *(x[:, :, :40] for x in tensors[1:]), n_clusters=4, topk=7, scale=0.0, is_causal=True
    )
    compare.assert_close(got, causal, compare.CLUSTERED)  # shows which keys were chosen: 0 to 6


def test_equal_keys_tie_to_the_first(room):
    """Logits come in groups of exactly equal ones; the chosen of a group are its first."""
    rng = np.random.default_rng(2)
    few = rng.integers(-2, 3, (5, 4)).astype(np.float32)
    query = rng.integers(-2, 3, (1, 1, 33, 4)).astype(np.float32)
    key = few[rng.integers(0, 5, 90)][None, None]
    value = rng.standard_normal((1, 1, 90, 6), dtype=np.float32)
    start = [0, 5, 9]
    for topk in (3, 20, 50):
        _, labels = naive.cluster(query, n_clusters=3, start=start, n_iterations=1)
        # means of a power of two of members would be exact; labels of one member each are
        query_of_label = query.copy()
        for c in range(3):
            query_of_label[0, 0, labels[0, 0] == c] = query[0, 0, start[c]]
        want, _ = naive.improved(query_of_label, key, value, labels, topk)
        got = improved_clustered_attention(
            query_of_label, key, value, n_clusters=3, start=start, n_iterations=1, topk=topk
        )
        compare.assert_close(got, want, compare.CLUSTERED)


LENGTHS_PACKED = [5, 0, 1, 130, 49, 7]


@cache
def packed_case(key_lengths, is_causal):
    """Packed tensors and offsets, and for each sequence its slice and the definition's outputs for it alone."""
    query, _, _ = inputs.tensors(heads=4, n=sum(LENGTHS_PACKED), dim=16, seed=1)
    _, key, value = inputs.tensors(heads=2, n=sum(key_lengths), dim=16, width=12, seed=2)
    offsets, key_offsets = np.cumsum([0, *LENGTHS_PACKED]), np.cumsum([0, *key_lengths])
    alone = []
    for s in range(len(LENGTHS_PACKED)):
        own, keys = slice(*offsets[s : s + 2]), slice(*key_offsets[s : s + 2])
        tensors = query[:, :, own], key[:, :, keys], value[:, :, keys]
        _, labels = naive.cluster(tensors[0], n_clusters=6)
        clustered = None if is_causal else naive.clustered(*tensors, labels)
        alone.append((own, clustered, *naive.improved(*tensors, labels, 8, is_causal=is_causal)))
    return (query[0], key[0], value[0]), {"offsets": offsets, "key_offsets": key_offsets, "n_clusters": 6}, alone


def test_packed_is_each_sequence_alone(room):
    tensors, options, alone = packed_case((3, 9, 1, 200, 0, 16), False)
    clustered = clustered_attention(*tensors, **options)
    improved = improved_clustered_attention(*tensors, topk=8, **options)
    for own, want_clustered, want, margin in alone:
        compare.assert_close(clustered[None, :, own], want_clustered, compare.CLUSTERED)
        compare.assert_rows_close(improved[None, :, own], want, compare.CLUSTERED, margin)


@pytest.mark.parametrize("key_lengths", [(5, 0, 1, 130, 49, 7), (40, 5, 1, 60, 49, 3)])
def test_packed_causal(room, key_lengths):
    """Positions count from the start of each sequence, also where the keys' offsets differ from the queries'."""
    tensors, options, alone = packed_case(key_lengths, True)
    got = improved_clustered_attention(*tensors, topk=8, is_causal=True, **options)
    for own, _, want, margin in alone:
        compare.assert_rows_close(got[None, :, own], want, compare.CLUSTERED, margin)


@pytest.mark.parametrize("is_causal", [False, True])
def test_padding_behind_is_packed(room, is_causal):
    lengths = [0, 13, 70, 1]
    tensors = inputs.tensors(batch=4, heads=3, n=70, dim=16)
    mask = inputs.padding(4, 70, lengths=lengths)
    pack = lambda x: np.ascontiguousarray(x.swapaxes(1, 2)[~mask].swapaxes(0, 1))
    options = {"n_clusters": 5, "topk": 8, "is_causal": is_causal}
    padded = improved_clustered_attention(*tensors, query_padding_mask=mask, key_padding_mask=mask, **options)
    packed = improved_clustered_attention(*map(pack, tensors), offsets=np.cumsum([0, *lengths]), **options)
    compare.assert_close(pack(padded), packed, 1e-6)


def test_kmeans_clusters(room):
    tensors = inputs.tensors("blobs", heads=2, n=80, n_keys=90, dim=16, seed=4)
    labels = cluster_queries(tensors[0], n_clusters=7, clustering="kmeans").labels
    got = clustered_attention(*tensors, n_clusters=7, clustering="kmeans")
    compare.assert_close(got, naive.clustered(*tensors, labels), compare.CLUSTERED)
    want, margin = naive.improved(*tensors, labels, 9)
    got = improved_clustered_attention(*tensors, n_clusters=7, clustering="kmeans", topk=9)
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin)


def test_many_sequences_go_in_rounds(room):
    """More tokens than one round takes: each sequence is what it is alone."""
    tensors = inputs.tensors(batch=9, heads=1, n=8192, n_keys=24, dim=4)
    got = improved_clustered_attention(*tensors, n_clusters=6, topk=4, n_iterations=2)
    for b in (0, 7, 8):
        alone = improved_clustered_attention(*(x[b : b + 1] for x in tensors), n_clusters=6, topk=4, n_iterations=2)
        compare.assert_close(got[b : b + 1], alone, 1e-6)


@cache
def long_case():
    tensors = inputs.tensors(n=30, n_keys=12_500, dim=4, width=3, seed=3)
    _, labels = naive.cluster(tensors[0], n_clusters=4)
    return tensors, naive.clustered(*tensors, labels), naive.improved(*tensors, labels, 40)


def test_long_keys_go_in_parts(room):
    """Above 8,192 keys the centroids' work is cut over the keys: the parts must join to the definition."""
    tensors, clustered, (improved, margin) = long_case()
    compare.assert_close(clustered_attention(*tensors, n_clusters=4), clustered, compare.CLUSTERED)
    got = improved_clustered_attention(*tensors, n_clusters=4, topk=40)
    compare.assert_rows_close(got, improved, compare.CLUSTERED, margin, at_least=0.5)


@pytest.mark.parametrize("size", [1e-30, 30.0, 1e4])
def test_logits_of_every_size(room, size):
    query, key, value = inputs.tensors(heads=2, n=60, n_keys=200, dim=16)
    logits = np.einsum("bhld,bhsd->bhls", query, key) * 0.25
    query = (query * (size / np.abs(logits).max())).astype(np.float32)
    labels = cluster_queries(query, n_clusters=8).labels
    tolerance = compare.CLUSTERED + 1e-7 * size
    got = clustered_attention(query, key, value, n_clusters=8)
    compare.assert_close(got, naive.clustered(query, key, value, labels), tolerance)
    got = improved_clustered_attention(query, key, value, n_clusters=8, topk=11)
    want, margin = naive.improved(query, key, value, labels, 11)
    compare.assert_rows_close(got, want, tolerance, margin)


def test_topk_of_all_keys_is_exact(room):
    tensors = inputs.tensors(batch=2, heads=2, n=50, n_keys=33, dim=16)
    mask = inputs.padding(2, 33, holes=0.3)
    want = scaled_dot_product_attention(*tensors, key_padding_mask=mask)
    for topk in (33, 1000, 10**15):
        got = improved_clustered_attention(*tensors, n_clusters=5, topk=topk, key_padding_mask=mask)
        compare.assert_close(got, want, compare.CLUSTERED)
