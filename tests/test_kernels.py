"""Each kernel of a fast room against the reference room, called with the same arguments.

Outputs lie between guards and are filled with a sentinel, so that a write out of place is seen.
"""

import compare
import inputs
import numpy as np
import pytest
import test_kernels_bfloat16  # noqa: F401  (adds to TESTED)
import test_kernels_cast  # noqa: F401  (adds to TESTED)
import test_kernels_centroid  # noqa: F401  (adds to TESTED)
import test_kernels_coclusters  # noqa: F401  (adds to TESTED)
import test_kernels_int8  # noqa: F401  (adds to TESTED)
import test_kernels_rows  # noqa: F401  (adds to TESTED)
from conftest import ISA_LEVELS, Room
from kernel_calls import (
    RAGGED,
    TESTED,
    Guarded,
    blocks_of,
    both,
    holes_index,
    kernel,
    packed_spans,
    spans,
    tasks_of,
)

from pyclattn import _dispatch
from pyclattn.functional.dense import ACTIVATIONS, pack_weight


def test_every_kernel_is_tested():
    assert set(_dispatch.OWNERS) == TESTED, "a kernel without a test"


# Attention


@kernel("attention.attend")
@pytest.mark.parametrize("dim", [1, 3, 16, 36, 64, 65, 128])
@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("packed", "none"),
        ("packed", "causal"),  # packed sequences take no other mask
        ("holes", "none"),
        ("holes", "causal"),
        ("holes", "allowed"),
        ("holes", "bias"),
        ("holes", "bias_causal"),
    ],
)
def test_attend(name, fast, layout, mask, dim):
    n = sum(RAGGED) if layout == "packed" else 300
    batch = 1 if layout == "packed" else 2
    query, key, value = inputs.tensors(batch=batch, heads=4, kv_heads=2, n=n, dim=dim, width=dim + 5, seed=dim)
    query_spans = packed_spans(RAGGED) if layout == "packed" else spans([0, 0, 300], [1, 0, 211])
    key_spans, index = (query_spans, None) if layout == "packed" else holes_index(2, 300)
    rng = np.random.default_rng(dim)
    allowed = (rng.random((batch, 4, n, n)) < 0.5).view(np.uint8) if mask == "allowed" else None
    bias = None
    if mask.startswith("bias"):
        bias = np.where(rng.random((batch, 1, n, n)) < 0.3, -np.inf, rng.standard_normal((batch, 1, n, n)))
        bias = np.broadcast_to(bias.astype(np.float32), (batch, 4, n, n))
    tasks = tasks_of(query_spans[:, 2] - query_spans[:, 1], 4, 96)[::2].copy()  # half of the rows are not asked for

    def make(new):
        out = new((batch, 4, n, dim + 5), np.float32, np.nan)
        arguments = (query, query_spans, key, value, key_spans, index, allowed, bias, "causal" in mask, 0.3)
        return (*arguments, tasks, 96, out), out

    want, got = both(name, fast, make)
    assert np.isnan(got).any()
    compare.assert_close(got, want, compare.EXACT)


def centroid_case(layout, dim, topk, split, repeats=0):
    """Arguments of attend_centroids for two sequences, the second with fewer keys."""
    query, key, value = inputs.tensors(batch=2, heads=4, kv_heads=2, n=70, n_keys=700, dim=dim, width=19, seed=topk)
    if repeats:  # a few keys again and again: equal logits, exactly
        key = key[:, :, np.random.default_rng(topk).integers(0, repeats, 700)]
    centroids = np.ascontiguousarray(query[0])
    cluster_offsets = np.array([0, 53, 70], np.int64)
    if layout == "padded":
        key_spans, index = spans([0, 0, 700], [1, 0, 130]), None
    elif layout == "packed":
        key_spans, index = spans([0, 0, 500], [0, 500, 700]), None
    else:
        key_spans, index = holes_index(2, 700)
    n_parts = -(-int((key_spans[:, 2] - key_spans[:, 1]).max()) // split)
    tasks = [
        [s, h, first, part]
        for s in range(2)
        for h in range(4)
        for first in range(int(cluster_offsets[s]), int(cluster_offsets[s + 1]), 48)
        for part in range(n_parts)
    ]

    def make(new):
        shape = (n_parts, 4, 70)
        outputs = (
            new(shape, np.float32, np.nan),
            new(shape, np.float32, np.nan),
            new((*shape, 19), np.float32, np.nan),
            new((*shape, topk), np.float32, np.nan),
            new((*shape, topk), np.int64, -7),
        )
        arguments = (centroids, cluster_offsets, key, value, key_spans, index, topk, 0.25)
        return (*arguments, np.array(tasks, np.int64), 48, split, *outputs), outputs

    def logits(part, head, c):
        """The rows of the part and their logits in base 2, in float64."""
        sequence = int(c >= 53)
        batch, start, stop = key_spans[sequence].tolist()
        rows = np.arange(start, stop) if index is None else index[start:stop]
        rows = rows[part * split : (part + 1) * split]
        k = key[batch, head // 2, rows].astype(np.float64)
        return rows, k @ centroids[head, c].astype(np.float64) * (0.25 * np.log2(np.e))

    return make, logits


@kernel("attention.attend_centroids")
@pytest.mark.parametrize("layout", ["padded", "packed", "holes"])
@pytest.mark.parametrize(
    ("dim", "topk", "split"), [(16, 32, 700), (64, 7, 300), (3, 1, 257), (36, 100, 100), (16, 0, 512)]
)
def test_attend_centroids(name, fast, layout, dim, topk, split):
    make, logits = centroid_case(layout, dim, topk, split)
    want, got = both(name, fast, make)
    filled = want[1] > 0
    assert ((got[1] > 0) == filled).all()
    assert (got[1][~filled] == 0).all()
    compare.assert_close(got[0][filled], want[0][filled], compare.EXACT)
    # sums are relative to the peak, which rounds on its own
    masses, values = (x[1] * 2.0 ** x[0].astype(np.float64) for x in (want, got)), (want, got)
    compare.assert_close(*(m[filled].astype(np.float32) for m in masses), 5e-6)
    compare.assert_close(*(x[2][filled] / x[1][filled][..., None] for x in values), 5e-6)
    for part, head, c in np.ndindex(filled.shape):
        rows, exact = logits(part, head, c)
        keys, scores = got[4][part, head, c], got[3][part, head, c]
        chosen = keys >= 0
        numbers = np.searchsorted(rows, keys[chosen])
        assert (rows[numbers] == keys[chosen]).all()
        compare.assert_same_topk(np.concatenate([numbers, keys[~chosen]]), exact, topk, tie=1e-5)
        assert np.abs(scores[chosen] - exact[numbers]).max(initial=0) < 1e-5 * (1 + np.abs(exact).max(initial=0))
        assert (scores[~chosen] == -np.inf).all()


TIED = [Room("reference"), *(Room("cython", level) for level in ISA_LEVELS)]


@pytest.mark.parametrize("room", TIED, ids=str)
@pytest.mark.parametrize("layout", ["padded", "holes"])
@pytest.mark.parametrize("topk", [1, 5, 33, 200])
def test_attend_centroids_ties_go_to_the_lowest_row(room, layout, topk):
    """Hundreds of equal keys, in blocks and remainders of blocks: the same logit wherever they lie."""
    make, logits = centroid_case(layout, 16, topk, 350, repeats=6)
    arguments, (*_, found) = make(Guarded().new)
    with room.forced():
        _dispatch.launch("attention.attend_centroids", 2, *arguments)
    for part, head, c in np.ndindex(found.shape[:3]):
        rows, exact = logits(part, head, c)
        order = np.lexsort((rows, -exact.round(9)))  # distinct keys differ by more, equal ones by less
        assert np.sort(found[part, head, c][found[part, head, c] >= 0]).tolist() == np.sort(rows[order[:topk]]).tolist()


@kernel("attention.merge_partials")
@pytest.mark.parametrize("n_parts", [1, 2, 5])
@pytest.mark.parametrize("topk", [0, 1, 8, 33])
def test_merge_partials(name, fast, n_parts, topk):
    rng = np.random.default_rng(topk)
    shape, n_keys = (n_parts, 3, 21), 40
    peaks = rng.standard_normal(shape).astype(np.float32) * 8
    masses = rng.uniform(1, 5, shape).astype(np.float32)
    values = rng.standard_normal((*shape, 6)).astype(np.float32)
    # whole scores, so that parts tie with each other; the rows of part p are p * n_keys and on
    top_scores = -np.sort(-rng.integers(-4, 4, (*shape, topk)), axis=-1).astype(np.float32)
    rows = np.sort(rng.permuted(np.broadcast_to(np.arange(n_keys), (*shape, n_keys)), axis=-1)[..., :topk], axis=-1)
    top_keys = np.ascontiguousarray(rows + np.arange(n_parts)[:, None, None, None] * n_keys)
    n_filled = rng.integers(0, topk + 1, shape)
    n_filled[0, :, 5:] = topk
    empty = np.arange(topk) >= n_filled[..., None]
    top_scores[empty], top_keys[empty] = -np.inf, -1
    masses[:, 1, 3] = 0  # a cluster without any key
    masses[1:, 1, 4] = 0  # keys in one part only
    top_keys[:, 1, 3] = top_keys[1:, 1, 4] = -1
    peaks[masses == 0] = -np.inf

    def make(new):
        outputs = (
            new((3, 21, 6), np.float32, np.nan),
            new((3, 21, topk), np.int64, -7),
            new((3, 21, topk), np.float32, np.nan),
        )
        return (peaks, masses, values, top_scores, top_keys, blocks_of(21, 3, 8), 8, *outputs), outputs

    want, got = both(name, fast, make)
    compare.assert_same_bits(got[1], want[1])
    compare.assert_close(got[0], want[0], 1e-6)
    compare.assert_close(got[2], want[2], 1e-6)
    assert not got[0][1, 3].any()


def member_case(seed, n, n_clusters, heads=4):
    """Clusters of two sequences of 2/3 and 1/3 of the clusters, some empty, with their sorted members."""
    rng = np.random.default_rng(seed)
    first = 2 * n_clusters // 3
    cluster_offsets = np.array([0, first, n_clusters], np.int64)
    batches = np.repeat([0, 1], [first, n_clusters - first]).astype(np.int64)
    label_spans, index = holes_index(2, n, seed)
    labels = np.zeros((heads, len(index)), np.int32)
    order = np.zeros((heads, len(index)), np.int64)
    member_offsets = np.zeros((heads, n_clusters + 1), np.int64)
    for h in range(heads):
        for s, (_, start, stop) in enumerate(label_spans.tolist()):
            size = int(cluster_offsets[s + 1] - cluster_offsets[s])
            labels[h, start:stop] = rng.choice(np.arange(0, size, 2) if size > 2 else [0], stop - start)
            order[h, start:stop] = index[start:stop][np.argsort(labels[h, start:stop], kind="stable")]
            counts = np.bincount(labels[h, start:stop], minlength=size)
            member_offsets[h, cluster_offsets[s] : cluster_offsets[s + 1] + 1] = start + np.cumsum([0, *counts])
    return label_spans, index, cluster_offsets, batches, labels, order, member_offsets


@kernel("attention.attend_members")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("dim", "width", "topk"), [(16, 16, 8), (64, 32, 32), (36, 7, 300), (3, 65, 1), (128, 16, 100)]
)
def test_attend_members(name, fast, dim, width, topk, is_causal):
    n = 330
    query, key, value = inputs.tensors(batch=2, heads=4, kv_heads=2, n=n, dim=dim, width=width, seed=topk)
    _, _, _, batches, _, order, member_offsets = member_case(topk, n, 15)
    rng = np.random.default_rng(1)
    selected = np.sort(rng.permuted(np.tile(np.arange(n), (4, 15, 1)), axis=-1)[..., :topk], axis=-1).astype(np.int64)
    selected[1, 2, topk // 2 :] = -1  # empty places come last
    weights = rng.uniform(0, 1, selected.shape).astype(np.float32) / (2 * topk)
    weights[selected < 0] = 0
    centroid_values = rng.standard_normal((4, 15, width)).astype(np.float32)
    shifts = np.where(batches == 0, 0, -3).astype(np.int64)

    def make(new):
        out = new((2, 4, n, width), np.float32, np.nan)
        arguments = (query, key, value, batches, shifts, order, member_offsets, selected, weights, centroid_values)
        return (*arguments, is_causal, dim**-0.5, blocks_of(15, 4, 4), 4, out), out

    want, got = both(name, fast, make)
    assert np.isnan(want).any()
    compare.assert_close(got, want, compare.EXACT)


@kernel("attention.spread_members")
def test_spread_members(name, fast):
    _, _, _, batches, _, order, member_offsets = member_case(2, 100, 15)
    values = np.random.default_rng(0).standard_normal((4, 15, 7)).astype(np.float32)

    def make(new):
        out = new((2, 4, 100, 7), np.float32, np.nan)
        return (batches, order, member_offsets, values, blocks_of(15, 4, 4), 4, out), out

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)


# Clustering


@kernel("clustering.hash_rows")
@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 65, 128])
def test_hash_rows(name, fast, dim, size):
    """Rows of every length, among them rows near a plane: their codes must be those of float64."""
    rows, _, _ = inputs.tensors(batch=2, heads=3, n=300, dim=dim, seed=dim)
    planes = np.random.default_rng(dim).standard_normal((61, dim + 1), dtype=np.float32)
    if dim > 1:  # put every other row within rounding of some plane
        near = rows[:, :, ::2].astype(np.float64)
        plane = planes[np.arange(near.shape[2]) % 61].astype(np.float64)
        normal, off = plane[:, :-1], plane[:, -1:] if size == 1.0 else 0.0
        step = (np.einsum("bhnd,nd->bhn", near, normal)[..., None] - off) / (normal * normal).sum(-1, keepdims=True)
        rows[:, :, ::2] = near - step * normal
    rows *= np.float32(size)
    if size != 1.0:
        planes[::2, -1] = 0
        planes[:, -1] *= np.float32(size)
    token_spans, index = holes_index(2, 300)
    tasks = tasks_of(token_spans[:, 2] - token_spans[:, 1], 3, 64)
    tasks[:, 2] += token_spans[tasks[:, 0], 1]

    def make(new):
        codes = new((3, len(index)), np.uint64, 99)
        return (rows, token_spans, index, planes, tasks, 64, codes), codes

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)


def code_case(n_bits, n_clusters):
    rng = np.random.default_rng(n_bits)
    codes = rng.integers(0, 1 << n_bits, (3, sum(RAGGED)), dtype=np.uint64)
    sizes = [min(n_clusters, n) for n in RAGGED]
    cluster_offsets = np.cumsum([0, *sizes]).astype(np.int64)
    token_spans = packed_spans(RAGGED)
    starts = np.concatenate([span[1] + np.arange(size) for span, size in zip(token_spans, sizes)])
    refill = rng.integers(0, 1 << n_bits, (6, n_clusters), dtype=np.uint64)
    return codes, token_spans, cluster_offsets, np.ascontiguousarray(codes[:, starts]), refill


FILLED = np.array([s for s, n in enumerate(RAGGED) if n])


@kernel("clustering.hamming_lloyd")
@pytest.mark.parametrize(("n_bits", "n_clusters"), [(63, 20), (4, 33), (1, 3), (64 - 1, 1), (20, 150)])
@pytest.mark.parametrize("n_iterations", [1, 2, 7])
def test_hamming_lloyd(name, fast, n_bits, n_clusters, n_iterations):
    codes, token_spans, cluster_offsets, opening, refill = code_case(n_bits, n_clusters)
    tasks = np.array([[s, h] for s in FILLED for h in range(3)], np.int64)
    refill = refill[: n_iterations - 1]

    def make(new):
        labels, centroids = new(codes.shape, np.int32, -7), new(opening.shape, np.uint64, 99)
        centroids[:] = opening
        arguments = (codes, token_spans, cluster_offsets, n_iterations, refill, tasks, labels, centroids)
        return arguments, (labels, centroids)

    want, got = both(name, fast, make)
    compare.assert_same_bits(got[0], want[0])
    compare.assert_same_bits(got[1], want[1])


def assign_tasks(token_spans, chunk):
    tasks = tasks_of(token_spans[:, 2] - token_spans[:, 1], 3, chunk)
    tasks[:, 2] += token_spans[tasks[:, 0], 1]
    return np.concatenate([tasks, np.arange(len(tasks))[:, None]], axis=1)


@kernel("clustering.hamming_assign")
@pytest.mark.parametrize(("n_bits", "n_clusters"), [(63, 20), (4, 33), (1, 3), (63, 1)])
def test_hamming_assign(name, fast, n_bits, n_clusters):
    codes, token_spans, cluster_offsets, opening, _ = code_case(n_bits, n_clusters)
    tasks = assign_tasks(token_spans, 50)

    def make(new):
        outputs = (
            new(codes.shape, np.int32, -7),
            new((len(tasks), n_clusters), np.int32, -7),
            new((len(tasks), n_clusters, 64), np.int32, -7),
        )
        return (codes, token_spans, cluster_offsets, opening, tasks, 50, *outputs), outputs

    want, got = both(name, fast, make)
    for mine, other in zip(got, want):
        compare.assert_same_bits(mine, other)


@kernel("clustering.hamming_update")
def test_hamming_update(name, fast):
    """Clusters with a majority, with exactly half, and with nobody."""
    codes, token_spans, cluster_offsets, opening, refill = code_case(5, 30)
    pieces = assign_tasks(token_spans, 16)
    sizes, bit_counts = np.zeros((len(pieces), 30), np.int32), np.zeros((len(pieces), 30, 64), np.int32)
    labels = np.zeros(codes.shape, np.int32)
    with _dispatch.forced("reference"):
        _dispatch.launch(
            "clustering.hamming_assign", 1, codes, token_spans, cluster_offsets, opening, pieces, 16, labels, sizes,
            bit_counts,
        )  # fmt: skip
    tasks = np.array([[s, h] for s in FILLED for h in range(3)], np.int64)
    parts = [np.flatnonzero((pieces[:, :2] == task).all(axis=1)) for task in tasks]
    parts = np.array([[own[0], own[-1] + 1] for own in parts], np.int64)
    totals = np.array([sizes[first:stop].sum(axis=0) for first, stop in parts])
    ones = np.array([bit_counts[first:stop].sum(axis=0) for first, stop in parts])
    assert (totals == 0).any()
    assert ((2 * ones == totals[..., None]) & (ones > 0)).any()

    def make(new):
        centroids = new(opening.shape, np.uint64, 99)
        return (sizes, bit_counts, parts, cluster_offsets, refill[0], tasks, centroids), centroids

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)


def near_ties(rows, centers):
    """Whether the nearest two centers of a row are as good as equally near."""
    distances = np.sort(((rows[:, None] - centers) ** 2).sum(axis=-1), axis=-1)
    sizes = (rows**2).sum(axis=-1) + (centers**2).sum(axis=-1).max()
    return (distances[:, 1] - distances[:, 0]) < 2e-6 * sizes if len(centers) > 1 else np.zeros(len(rows), bool)


@kernel("clustering.nearest_assign")
@pytest.mark.parametrize("kind", ["random", "blobs"])
@pytest.mark.parametrize(
    ("dim", "n_clusters", "rank"),
    [(16, 20, 0), (64, 300, 0), (3, 1, 0), (1, 7, 0), (65, 33, 0), (16, 20, 16), (64, 300, 16), (3, 1, 1), (65, 33, 7)],
)
def test_nearest_assign(name, fast, dim, n_clusters, rank, kind):
    rows, _, _ = inputs.tensors(kind, batch=2, heads=3, n=500, dim=dim, seed=dim)
    token_spans, index = holes_index(2, 500)
    cluster_offsets = np.array([0, n_clusters, n_clusters + max(1, n_clusters // 2)], np.int64)
    centroids = np.ascontiguousarray(rows[0][:, :: max(1, 500 // int(cluster_offsets[-1]))][:, : cluster_offsets[-1]])
    tasks = tasks_of(token_spans[:, 2] - token_spans[:, 1], 3, 64)
    tasks[:, 2] += token_spans[tasks[:, 0], 1]
    axes = np.random.default_rng(rank).standard_normal((2, 3, rank, dim), dtype=np.float32) if rank else None
    if rank:
        centroids = np.ascontiguousarray(np.einsum("hcd,hrd->hcr", centroids, axes[0]))

    def make(new):
        labels = new((3, len(index)), np.int32, -7)
        return (rows, token_spans, index, centroids, cluster_offsets, axes, tasks, 64, labels), labels

    want, got = both(name, fast, make)
    for s, (batch, start, stop) in enumerate(token_spans.tolist()):
        for h in range(3):
            x = rows[batch, h, index[start:stop]].astype(np.float64)
            centers = centroids[h, cluster_offsets[s] : cluster_offsets[s + 1]].astype(np.float64)
            if rank:
                x = x @ axes[s, h].T
            tied = near_ties(x, centers)
            assert tied.mean() < 0.05
            assert (got[h, start:stop] == want[h, start:stop])[~tied].all()


@kernel("clustering.nearest_assign")
def test_nearest_assign_ties_go_to_the_lowest(name, fast):
    """Whole numbers: every sum is exact, and a third of the rows is equally near to several centroids."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, (1, 2, 400, 5)).astype(np.float32)
    centroids = rng.integers(-3, 4, (2, 300, 5)).astype(np.float32)
    cluster_offsets, token_spans = np.array([0, 300], np.int64), spans([0, 0, 400])

    def make(new):
        labels = new((2, 400), np.int32, -7)
        tasks = tasks_of([400], 2, 100)
        return (rows, token_spans, np.arange(400), centroids, cluster_offsets, None, tasks, 100, labels), labels

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)


@kernel("clustering.lloyd_along")
@pytest.mark.parametrize(
    ("dim", "n_clusters", "rank"), [(16, 20, 16), (64, 130, 16), (3, 1, 1), (65, 33, 7), (40, 9, 40)]
)
def test_lloyd_along(name, fast, dim, n_clusters, rank):
    """Whole numbers on whole axes: nothing is rounded but means, so that a float64 reference decides alike."""
    rng = np.random.default_rng(dim)
    centers = 8 * rng.integers(-9, 10, (5, dim))
    rows = (centers[rng.integers(0, 5, (2, 3, 300))] + rng.integers(-2, 3, (2, 3, 300, dim))).astype(np.float32)
    axes = rng.integers(-1, 2, (3, 3, rank, dim)).astype(np.float32)
    token_spans, index = holes_index(2, 300)
    token_spans = np.concatenate([token_spans, [[1, len(index), len(index)]]])  # an empty sequence has no cluster
    counts = np.minimum([n_clusters, max(1, n_clusters // 2), 0], token_spans[:, 2] - token_spans[:, 1])
    cluster_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tasks = np.array([[s, h] for s in range(3) for h in range(3)], np.int64)

    def make(new):
        centroids = new((3, int(cluster_offsets[-1]), rank), np.float32, -7.0)
        return (rows, token_spans, index, axes, cluster_offsets, 3, tasks, centroids), centroids

    want, got = both(name, fast, make)
    compare.assert_close(got, want, 1e-6)


@kernel("clustering.lloyd_along")
def test_lloyd_along_keeps_empty_clusters(name, fast):
    """Equal rows are all of the first of equal centroids; the others stay where they began."""
    rows = np.ones((1, 1, 64, 4), np.float32)
    rows[0, 0, 60:] = 5

    def make(new):
        centroids = new((1, 4, 2), np.float32, -7.0)
        return (
            rows, spans([0, 0, 64]), np.arange(64), np.ones((1, 1, 2, 4), np.float32), np.array([0, 4]), 3,
            np.zeros((1, 2), np.int64), centroids,
        ), centroids  # fmt: skip

    want, got = both(name, fast, make)
    compare.assert_same_bits(got, want)
    assert (got[0, 1:] == 4).all()


@kernel("clustering.sort_by_label")
def test_sort_by_label(name, fast):
    token_spans, index, cluster_offsets, _, labels, order, member_offsets = member_case(4, 200, 15)
    tasks = np.array([[s, h] for s in range(2) for h in range(4)], np.int64)

    def make(new):
        outputs = new(order.shape, np.int64, -7), new(member_offsets.shape, np.int64, -7)
        return (labels, token_spans, index, cluster_offsets, tasks, *outputs), outputs

    for found in both(name, fast, make):
        compare.assert_same_bits(found[0], order)
        compare.assert_same_bits(found[1], member_offsets)
        for s, (_, start, stop) in enumerate(token_spans.tolist()):
            first, last = cluster_offsets[s : s + 2]
            for h in range(4):
                own = found[0][h, start:stop], found[1][h, first : last + 1]
                compare.assert_sorted_by_label(*own, labels[h, start:stop], index[start:stop])


@kernel("clustering.cluster_means")
@pytest.mark.parametrize("with_spreads", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 65])
def test_cluster_means(name, fast, dim, with_spreads):
    """Clusters of any size, on rows near 1000 whose differences are small; an empty one keeps what stands there."""
    rows, _, _ = inputs.tensors(batch=2, heads=4, n=700, dim=dim)
    rows += 1000
    _, _, _, batches, _, order, member_offsets = member_case(5, 700, 15)

    def make(new):
        means = new((4, 15, dim), np.float32, -7.0)
        spreads = new((4, 15), np.float32, -7.0) if with_spreads else None
        return (rows, batches, order, member_offsets, blocks_of(15, 4, 4), 4, means, spreads), (means, spreads)

    (want, want_spreads), (got, got_spreads) = both(name, fast, make)
    assert (want == -7).any()
    compare.assert_close(got, want, 1e-7)
    if with_spreads:
        assert (want_spreads == -7).any()
        compare.assert_close(got_spreads, want_spreads, 1e-6)


# Dense layers


@kernel("dense.multiply")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("n_rows", "depth", "width"), [(1, 1, 1), (9, 7, 65), (33, 64, 48), (70, 130, 150), (16, 2, 24)]
)
def test_multiply(name, fast, n_rows, depth, width, activation):
    """Rows of a wider array; every other task, so that what lies between is not written."""
    rng = np.random.default_rng(depth)
    rows = rng.standard_normal((n_rows, depth + 3), dtype=np.float32)[:, :depth]
    weight = rng.standard_normal((depth, width), dtype=np.float32) * np.float32(4 / depth**0.5)
    bias = rng.standard_normal(width, dtype=np.float32) if activation else None
    residual = rng.standard_normal((n_rows, width + 5), dtype=np.float32)[:, :width] if activation != "relu" else None
    with fast.forced():
        panels = pack_weight(weight).panels
    n_panels = len(panels)
    tasks = [(r, min(r + 20, n_rows), p, p + 1) for r in range(0, n_rows, 20) for p in range(n_panels)]
    tasks = np.array(tasks, np.int64)[::2].copy()

    def make(new):
        out = new((n_rows, width + 2), np.float32, np.nan)[:, :width]
        return (rows, panels, bias, activation, residual, tasks, out[None, :, None]), out

    def make_heads(new):
        batch, heads = n_rows // 10 or 1, 5 if width % 5 == 0 else 1
        shape = (batch, heads, n_rows // batch, width // heads)
        out = new(shape, np.float32, np.nan)
        return (rows[: batch * shape[2]], panels, bias, activation, residual, tasks, out.swapaxes(1, 2)), out

    if n_rows % (n_rows // 10 or 1) == 0:
        compare.assert_close(*reversed(both(name, fast, make_heads)), compare.EXACT)
    want, got = both(name, fast, make)
    assert np.isnan(got).any() == (len(tasks) < -(-n_rows // 20) * n_panels)
    compare.assert_close(got, want, compare.EXACT)


# The reference room itself, where its kernels are called as no public function calls them


def test_reference_writes_only_what_is_asked_for(reference):
    query, key, value = inputs.tensors(n=20, dim=4)
    out = np.full((1, 1, 20, 4), 7, np.float32)
    tasks = np.array([[0, 0, 8]], np.int64)
    span = spans([0, 0, 20])
    _dispatch.launch("attention.attend", 1, query, span, key, value, span, None, None, None, False, 0.5, tasks, 8, out)
    assert (out[0, 0, :8] == 7).all()
    assert (out[0, 0, 16:] == 7).all()
    assert (out[0, 0, 8:16] != 7).all()
