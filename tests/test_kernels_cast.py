"""Kernels of CAST against the reference room (see `test_kernels`)."""

import compare
import inputs
import numpy as np
import pytest
from kernel_calls import both, holes_index, kernel

N_HEADS, LENGTH = 3, 300


def rows_case(dim, n_clusters, width=4, seed=0):
    """Two sequences with holes; query, key and value as strided views; surrogates, gate; spans and index."""
    rng = np.random.default_rng([seed, dim])
    fused = rng.standard_normal((2, LENGTH, N_HEADS, 2 * dim + width), dtype=np.float32).swapaxes(1, 2)
    surrogates = rng.standard_normal((N_HEADS, n_clusters, dim), dtype=np.float32)
    spans, index = holes_index(2, LENGTH)
    tensors = fused[..., :dim], fused[..., dim : 2 * dim], fused[..., 2 * dim :]
    return *tensors, surrogates, rng.standard_normal((2, LENGTH), dtype=np.float32), spans, index


def token_tasks(spans, chunk):
    return np.array([[s, t] for s, (_, a, b) in enumerate(spans.tolist()) for t in range(a, b, chunk)], np.int64)


@kernel("memberships.affinities")
@pytest.mark.parametrize("is_laplace", [False, True])
@pytest.mark.parametrize(("dim", "n_clusters"), [(1, 1), (5, 7), (16, 70), (64, 33)])
def test_affinities(name, fast, dim, n_clusters, is_laplace):
    """A window of the tokens, by token, with the nearest clusters, and by cluster; a NaN is below all."""
    query, key, _, surrogates, _, spans, index = rows_case(dim, n_clusters)
    gate = np.random.default_rng(dim).standard_normal((2, LENGTH, 3), dtype=np.float32)[:, :, 1] * 8
    gate[1, index[60:64]] = -1e4, 1e4, 0, -0.0
    query = query.copy()
    query[0, 1, index[20]] = np.nan
    origin, chunk = 10, 96
    for by_cluster in (False, True):

        def make(new, by_cluster=by_cluster):
            n = len(index) - 2 * origin
            out = new((n_clusters, n), np.float32, np.nan).T if by_cluster else new((n, n_clusters), np.float32, np.nan)
            tasks = token_tasks(np.clip(spans, [0, origin, origin], [9, 9999, 9999]), chunk)
            surest = None if by_cluster else new((len(index),), np.float32, np.nan)
            labels = None if by_cluster else new((len(index),), np.int32, -5)
            logits = new((N_HEADS, len(index) * n_clusters), np.float32, np.nan) if by_cluster else None
            gains = new((2, 2, LENGTH), np.float32, np.nan) if by_cluster else None
            given = (query, key, surrogates, spans, index, gate, 0.3, is_laplace, tasks, chunk, origin, out)
            return (*given, surest, labels, logits, gains), (out, surest, labels, logits, gains)

        (want, *_, kept, wanted_gains), (got, surest, labels, logits, gains) = both(name, fast, make)
        assert (got[20 - origin] == -1).all()
        if by_cluster:
            compare.assert_close(logits, kept, 2e-6)
            np.testing.assert_allclose(gains, wanted_gains, 5e-7)
            assert np.isfinite(gains).sum() == 2 * (len(index) - 2 * origin)
            assert np.isnan(logits[:, : origin * n_clusters]).all()
        compare.assert_close(np.ascontiguousarray(got), want, 2e-6)
        if not by_cluster:
            inside = slice(origin, len(index) - origin)
            compare.assert_same_bits(surest[inside], got.max(axis=1))
            compare.assert_same_bits(labels[inside], got.argmax(axis=1).astype(np.int32))
            assert np.isnan(surest[:origin]).all()
            assert (labels[-origin:] == -5).all()


@kernel("memberships.select")
@pytest.mark.parametrize("topk", [1, 5, 40, 500])
@pytest.mark.parametrize("kind", ["random", "ties", "falling"])
def test_select(name, fast, topk, kind):
    """In two windows, the second going on with what the first found; other sequences' lists are left alone."""
    n, n_clusters = 400, 5
    affinity = np.random.default_rng(0).random((n_clusters, n), dtype=np.float32).T
    if kind == "ties":
        affinity = (affinity * 4).round() / 4
    elif kind == "falling":
        affinity = np.sort(affinity, axis=0)
    spans = np.array([[0, 0, 150], [1, 150, 150], [2, 150, n]], np.int64)
    tasks = np.array([[s, c] for s in (0, 2) for c in (0, 2, 4)], np.int64)
    windows = [(0, 200, tasks), (200, n, tasks[3:])]
    found = []
    for room_windows in (windows, [(0, n, tasks)]):
        scores, tokens, counts = (
            np.zeros((15, topk), np.float32),
            np.zeros((15, topk), np.int64),
            np.zeros(15, np.int64),
        )
        results = None
        for start, stop, own in room_windows:
            before = [x.copy() for x in (scores, tokens, counts)]

            def make(new, start=start, stop=stop, own=own, before=before):
                outs = [new(x.shape, x.dtype, 7) for x in before]
                for out, x in zip(outs, before):
                    out[...] = x
                return (affinity[start:stop], spans, start, own, 2, *outs), outs

            want, got = results = both(name, fast, make)
            for mine, other in zip(got, want):
                compare.assert_same_bits(mine, other)
            scores, tokens, counts = got
        found.append(results[1])
    for mine, other in zip(*found):
        compare.assert_same_bits(mine, other)
    assert found[0][2].tolist() == [min(topk, 150)] * 5 + [0] * 5 + [min(topk, 250)] * 5


@kernel("memberships.assign")
@pytest.mark.parametrize("spare", [0, 1, 100])
@pytest.mark.parametrize("kind", ["random", "ties", "one"])
def test_assign(name, fast, kind, spare):
    """Labels to the bit: `reference` is greedy as written."""
    n, n_clusters, origin = 300, 7, 20
    affinity = np.random.default_rng(1).random((n, n_clusters), dtype=np.float32)
    if kind == "ties":
        affinity = (affinity * 3).round() / 3
    elif kind == "one":
        affinity[:, 3] += 1  # all want the same
    affinity[50] = -1
    spans = np.array([[0, 20, 90], [1, 90, 90], [2, 90, 320]], np.int64)
    capacity = -(-230 // n_clusters) + spare
    surest = np.concatenate([np.zeros(origin, np.float32), affinity.max(axis=1)])

    def make(new):
        labels = new((origin + n,), np.int32, -5)
        labels[origin:] = affinity.argmax(axis=1)
        tokens, counts = new((origin + n,), np.int64, -5), new((3 * n_clusters,), np.int64, -5)
        given = (affinity, spans, origin, capacity, surest, np.array([[2], [0]]), labels, tokens, counts)
        return given, (labels, tokens, counts)

    want, got = both(name, fast, make)
    for mine, other in zip(got, want):
        compare.assert_same_bits(mine, other)
    labels, tokens, counts = got
    assert (labels[:origin] == -5).all()
    assert (tokens[:origin] == -5).all()
    assert (counts[n_clusters : 2 * n_clusters] == -5).all()
    assert (np.sort(tokens[origin:]) == np.arange(origin, origin + n)).all()


def clustered(spans, index, n_clusters, seed=0, empty=2):
    """Members: each token in none, one or several clusters, one cluster in none."""
    rng = np.random.default_rng(seed)
    tokens, counts = [], []
    for _, start, stop in spans.tolist():
        for c in range(n_clusters):
            share = 0 if c == empty else 0.9 if c == 0 else 0.3
            own = np.flatnonzero(rng.random(stop - start) < share) + start
            tokens.append(own)
            counts.append(len(own))
    tokens = np.concatenate(tokens).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return tokens, offsets, np.repeat(np.arange(len(counts)), counts)


@kernel("memberships.invert")
@pytest.mark.parametrize("n_clusters", [1, 4, 60])
def test_invert(name, fast, n_clusters):
    spans, index = holes_index(2, LENGTH)
    tokens, offsets, clusters = clustered(spans, index, n_clusters)

    def make(new):
        found = [new((n,), np.int64, -5) for n in (len(tokens), len(tokens), len(index) + 1)]
        return (tokens, offsets, *found), found

    want, got = both(name, fast, make)
    for mine, other in zip(got, want):
        compare.assert_same_bits(mine, other)
    places, place_clusters, place_offsets = got
    assert (tokens[places] == np.repeat(np.arange(len(index)), np.diff(place_offsets))).all()
    assert (clusters[places] == place_clusters).all()


@kernel("cast.attend_clusters")
@pytest.mark.parametrize(("is_laplace", "with_gains"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("dim", "width"), [(1, 1), (16, 5), (33, 64)])
def test_attend_clusters(name, fast, dim, width, is_laplace, with_gains):
    query, key, value, surrogates, gate, spans, index = rows_case(dim, 4, width)
    tokens, offsets, _ = clustered(spans, index, 4)
    batches = np.repeat(spans[:, 0], 4)
    gains = 1 + np.abs(np.tanh(gate)) if with_gains else None
    chunk = 60
    tasks = [
        [g, h, first] for g, n in enumerate(np.diff(offsets)) for h in range(N_HEADS) for first in range(0, n, chunk)
    ]

    def make(new):
        within = new((N_HEADS, len(tokens), width), np.float32, np.nan)
        summaries = new((N_HEADS, 8, width), np.float32, np.nan)
        given = (query, key, value, surrogates, batches, index[tokens], offsets, gains, 0.5, is_laplace)
        return (*given, np.array(tasks, np.int64), chunk, within, summaries), (within, summaries)

    want, got = both(name, fast, make)
    for mine, other in zip(got, want):
        compare.assert_close(mine, other, 2e-6)
    assert np.isnan(got[1][:, 2]).all()  # the cluster without members


def kept_logits(query, surrogates, spans, index, scale):
    """Blocks of (clusters, 48 tokens), as `affinities` leaves them."""
    kept = []
    for batch, start, stop in spans.tolist():
        for t in range(start, stop, 48):
            rows = index[t : min(t + 48, stop)]
            kept.append((scale * surrogates @ query[batch][:, rows].swapaxes(1, 2)).reshape(N_HEADS, -1))
    return np.ascontiguousarray(np.concatenate(kept, axis=1), np.float32)


@kernel("cast.mix")
@pytest.mark.parametrize(("is_laplace", "with_gains"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("dim", "width", "n_clusters"), [(1, 1, 3), (16, 5, 4), (8, 64, 60)])
@pytest.mark.parametrize("is_kept", [False, True])
def test_mix(name, fast, dim, width, n_clusters, is_laplace, with_gains, is_kept):
    """An output as a view; an infinite value of a cluster reaches who is not in it, and no one else."""
    query, _, _, surrogates, gate, spans, index = rows_case(dim, n_clusters)
    tokens, offsets, clusters = clustered(spans, index, n_clusters)
    rng = np.random.default_rng(3)
    within = rng.standard_normal((N_HEADS, len(tokens), width), dtype=np.float32)
    gains = 1 + np.abs(np.tanh(gate)) if with_gains else None
    places = np.argsort(tokens, kind="stable")
    inverted = places, clusters[places], np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=len(index)))])
    if is_laplace:
        surrogates *= 0.2  # far out weights round to 0, in float32 sooner than in float64
    chunk = 96
    tasks = [
        [s, h, first] for s, (_, a, b) in enumerate(spans.tolist()) for h in range(N_HEADS)
        for first in range(0, b - a, chunk)
    ]  # fmt: skip
    logits = None
    if is_kept:
        logits = kept_logits(query, surrogates, spans, index, 0.5 if is_laplace else 0.5 * np.log2(np.e))
        query = np.full_like(query, np.nan)
    for bad in (0, np.inf):
        summaries = rng.standard_normal((N_HEADS, 2 * n_clusters, width), dtype=np.float32)
        summaries[1, 0, 0] += bad
        summaries[:, 2] = 0

        def make(new):
            out = new((2, LENGTH, N_HEADS, width + 2), np.float32, np.nan).swapaxes(1, 2)[..., :width]
            given = (query, surrogates, spans, index, gains, 0.5, is_laplace, offsets, *inverted)
            return (*given, within, summaries, logits, np.array(tasks, np.int64), chunk, out), out  # noqa: B023

        want, got = both(name, fast, make)
        compare.assert_close(np.ascontiguousarray(got), want, 2e-6)
        inside = index[tokens[: offsets[1]]]
        assert np.isfinite(got[0, 1, inside]).all()
        there = index[spans[0, 1] : spans[0, 2]]
        assert np.isinf(got[0, 1, np.setdiff1d(there, inside), 0]).all() == bool(bad)
        hidden = inputs.padding(2, LENGTH, holes=0.4, seed=3)
        assert np.isnan(got.swapaxes(1, 2)[hidden]).all()
