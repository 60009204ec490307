"""The rivals of bench/pareto.py: exact where they should be, and what their papers say where they are not."""

import naive
import numpy as np
import pytest
from compare import EXACT, assert_close, assert_same_bits

from bench.rivals import block_sparse_attention, smyrf_attention
from pyclattn.errors import ArgumentError, ShapeError

SHAPES = {"self": (70, 70, 8, 8), "cross": (61, 130, 12, 5), "short": (3, 2, 4, 4)}


def inputs(length, n_keys, depth, width, n_heads=2, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    shapes = ((length, depth), (n_keys, depth), (n_keys, width))
    query, key, value = (rng.standard_normal((1, n_heads, *shape), dtype=np.float32) for shape in shapes)
    return query, key + np.float32(shift), value


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n_rounds", [1, 3])
def test_smyrf_with_one_cluster_is_exact(shape, n_rounds):
    given = inputs(*shape, shift=2.0)
    got = smyrf_attention(*given, cluster_size=shape[1], n_rounds=n_rounds)
    assert_close(got, naive.attention(*given), 5 * EXACT)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_smyrf_is_exact_within_its_clusters(scale):
    """The clusters, transcribed: ranks of lifted rows along each direction; over rounds, one softmax of all seen."""
    query, key, value = inputs(60, 90, 8, 6, seed=1, shift=0.5)
    n_rounds, seed, n_clusters = 3, 5, 3
    directions = np.random.default_rng(seed).standard_normal((n_rounds, 10), dtype=np.float32)
    want = np.zeros((1, 2, 60, 6))
    for h in range(2):
        q, k = query[0, h].astype(float), key[0, h] - key[0, h].mean(axis=0).astype(float)
        longest = (q**2).sum(1).max() + (k**2).sum(1).max()
        lifted = np.column_stack([q, np.zeros(60), np.sqrt(longest - (q**2).sum(1))])
        lifted_keys = np.column_stack([k, np.sqrt(longest - (k**2).sum(1)), np.zeros(90)])
        times_seen = np.zeros((60, 90))
        for direction in directions:
            cluster = np.argsort(np.argsort(lifted @ direction)) // (60 // n_clusters)
            key_cluster = np.argsort(np.argsort(lifted_keys @ direction)) // (90 // n_clusters)
            times_seen += cluster[:, None] == key_cluster
        with np.errstate(divide="ignore"):
            seen = np.log(times_seen)[None, None]
        one = (query[:, h : h + 1], key[:, h : h + 1], value[:, h : h + 1])
        want[:, h] = naive.attention(*one, attn_mask=seen, scale=scale)[:, 0]
    got = smyrf_attention(query, key, value, cluster_size=30, n_rounds=n_rounds, seed=seed, scale=scale)
    assert_close(got, want, 5 * EXACT)


@pytest.mark.parametrize("scoring", ["mean", "bounds"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_blocks_are_exact(shape, scoring):
    given = inputs(*shape)
    got = block_sparse_attention(*given, n_blocks=999, block_size=16, query_block_size=24, scoring=scoring)
    assert_close(got, naive.attention(*given), EXACT)


@pytest.mark.parametrize("scoring", ["mean", "bounds"])
def test_blocks_with_the_highest_scores_are_taken(scoring, monkeypatch):
    """Transcribed with masks; several launches, a short last block on both sides."""
    monkeypatch.setattr("bench.rivals.GATHERED_BYTES", 4096)
    query, key, value = inputs(70, 101, 8, 6, seed=2)
    size, key_size, n_blocks = 16, 20, 2
    allowed = np.zeros((1, 2, 70, 101), bool)
    for h in range(2):
        for start in range(0, 70, size):
            mean, scores = query[0, h, start : start + size].astype(float).mean(axis=0), []
            for first in range(0, 101, key_size):
                keys = key[0, h, first : first + key_size].astype(float)
                if scoring == "mean":
                    scores.append(mean @ keys.mean(axis=0))
                else:
                    scores.append(np.maximum(mean * keys.min(axis=0), mean * keys.max(axis=0)).sum())
            for block in np.argsort(scores)[-n_blocks:]:
                allowed[0, h, start : start + size, block * key_size : (block + 1) * key_size] = True
    got = block_sparse_attention(
        query, key, value, n_blocks=n_blocks, block_size=key_size, query_block_size=size, scoring=scoring
    )
    assert_close(got, naive.attention(query, key, value, attn_mask=allowed), EXACT)


@pytest.mark.parametrize("function", [smyrf_attention, block_sparse_attention])
def test_bits_do_not_depend_on_threads(function):
    given = inputs(300, 300, 16, 16, n_heads=3)
    assert_same_bits(function(*given, n_threads=1), function(*given, n_threads=3))


def test_smyrf_of_far_logits_is_finite():
    query, key, value = inputs(40, 40, 8, 8)
    assert np.isfinite(smyrf_attention(query, key, value, cluster_size=8, n_rounds=2, scale=300.0)).all()


@pytest.mark.parametrize("function", [smyrf_attention, block_sparse_attention])
def test_bad_input(function):
    query, key, value = inputs(20, 20, 4, 4)
    with pytest.raises(ShapeError, match=r"\(1, H, length, width\).*\(2, 20, 4\)"):
        function(query[0], key, value)
    with pytest.raises(ShapeError, match="query, key and value"):
        function(query, key[:, :1], value)
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        function(query, key, value, **{"cluster_size" if function is smyrf_attention else "n_blocks": 0})


def test_scoring_is_checked():
    with pytest.raises(ArgumentError, match="scoring must be 'mean' or 'bounds', got 'sum'"):
        block_sparse_attention(*inputs(20, 20, 4, 4), scoring="sum")
