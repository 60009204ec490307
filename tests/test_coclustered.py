"""Co-clustered attention against its definition, in every room; its exact limits, and what it does at the edges."""

import warnings
from functools import cache

import compare
import inputs
import naive
import numpy as np
import pytest

from pyclattn import coclustered_attention, improved_clustered_attention, scaled_dot_product_attention
from pyclattn.functional import coclustered

# Rows of clusters with a key this near the threshold (natural logarithms of float32 sums) are decided by rounding.
NEAR = 3e-5


@pytest.fixture(autouse=True)
def short_sequences_too(monkeypatch):
    """Else sequences that loops can follow would be attended to exactly."""
    monkeypatch.setattr(coclustered, "SHORTEST", 8)
    monkeypatch.setattr(coclustered, "MANY", naive.MANY)


def assert_decided_close(got, want, margin, tolerance=2e-5):
    compare.assert_rows_close(got, want, tolerance, margin / NEAR * compare.TIE, at_least=0.6)


# name -> tensors, options
SHAPES = {
    "plain": ({"n": 260, "n_keys": 300, "dim": 16}, {"n_exact": 12}),
    "heads": ({"heads": 3, "n": 150, "dim": 16}, {"n_exact": 8}),
    "grouped": ({"batch": 2, "heads": 4, "kv_heads": 2, "n": 70, "n_keys": 90, "dim": 16}, {"n_exact": 8}),
    "few queries": ({"n": 20, "n_keys": 600, "dim": 16}, {"n_exact": 40}),
    "few keys": ({"n": 300, "n_keys": 30, "dim": 16}, {"n_exact": 4}),
    "more keys than sampled": ({"n": 40, "n_keys": 1300, "dim": 8, "width": 4, "seed": 8}, {"n_exact": 20}),
    "none exact": ({"n": 120, "dim": 16}, {"n_exact": 0}),
    "nearly half exact": ({"n": 100, "dim": 16}, {"n_exact": 49}),
    "one cluster each": ({"heads": 3, "n": 90, "dim": 16}, {"n_exact": 9, "n_query_clusters": 1, "n_key_clusters": 1}),
    "many clusters": ({"n": 260, "dim": 16}, {"n_exact": 9, "n_query_clusters": 130, "n_key_clusters": 140}),
    "D1": ({"n": 100, "dim": 1, "width": 16, "seed": 8}, {"n_exact": 9, "n_query_clusters": 15}),
    "D80 E70": ({"n": 120, "dim": 80, "width": 70}, {"n_exact": 9, "rank": 24}),
    "E1": ({"n": 100, "dim": 16, "width": 1}, {"n_exact": 9}),
    "fewer axes for clusters than for slopes": ({"n": 120, "dim": 40}, {"n_exact": 9, "rank": 24}),
    "rank 3": ({"n": 120, "dim": 16, "width": 5}, {"n_exact": 9, "rank": 3}),
    "rank above D": ({"n": 120, "dim": 5, "width": 36}, {"n_exact": 9, "rank": 10**12}),
}


@cache
def case(shape, kind):
    sizes, options = SHAPES[shape]
    tensors = inputs.tensors(kind, **{"seed": 5, **sizes})
    return tensors, options, *naive.coclustered(*tensors, **options)


@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("shape", SHAPES)
def test_coclustered(room, shape, kind):
    tensors, options, want, margin = case(shape, kind)
    assert_decided_close(coclustered_attention(*tensors, **options), want, margin)


def test_groups_of_what_the_keys_see(room):
    """Improved clustered attention with the same k-means."""
    query, key, value = inputs.tensors(heads=2, n=160, n_keys=130, dim=20, seed=3)
    labels = np.full((1, 2, 160), -1)
    for h in range(2):
        groups, _ = naive.strided_kmeans(naive.seen_by(query[0, h], key[0, h], 16), 9)
        for c, members in enumerate(groups):
            labels[0, h, members] = c
    want, margin = naive.improved(query, key, value, labels, 12)
    got = improved_clustered_attention(query, key, value, n_clusters=9, topk=12, clustering="metric")
    compare.assert_rows_close(got, want, compare.CLUSTERED, margin)


@cache
def biased_case(kind):
    tensors = inputs.tensors(batch=2, heads=2, n=90, n_keys=110, dim=16, seed=6)
    options = {"n_exact": 9, "scale": 0.4}
    if kind != "padding":
        options["key_bias"] = np.random.default_rng(0).standard_normal((2, 110)).astype(np.float32)
    if kind == "bias and -inf":
        options["key_bias"][:, ::7] = -np.inf
    masks = {}
    if kind != "bias":
        masks = {"query": inputs.padding(2, 90, holes=0.3, seed=1), "key": inputs.padding(2, 110, holes=0.2, seed=2)}
    want = naive.coclustered(*tensors, **options, **{f"{name}_padding": mask for name, mask in masks.items()})
    return tensors, {**options, **{f"{name}_padding_mask": mask for name, mask in masks.items()}}, *want


@pytest.mark.parametrize("kind", ["bias", "padding", "bias and -inf"])
def test_bias_and_padding(room, kind):
    tensors, options, want, margin = biased_case(kind)
    got = coclustered_attention(*tensors, **options)
    assert_decided_close(got, want, margin)
    if kind != "bias":
        assert not got.swapaxes(1, 2)[options["query_padding_mask"]].any()


# Where it is exact


@pytest.mark.parametrize("kind", ["plain", "padding behind", "holes"])
def test_half_of_the_keys_is_exact_to_the_bit(room, kind):
    tensors = inputs.tensors(batch=2, heads=4, kv_heads=2, n=60, n_keys=70, dim=16)
    masks = {}
    if kind != "plain":
        behind = kind == "padding behind"
        masks["key_padding_mask"] = inputs.padding(2, 70, [50, 70] if behind else None, holes=0.3)
    for n_exact in (35, 10**12):
        got = coclustered_attention(*tensors, n_exact=n_exact, **masks)
        compare.assert_same_bits(got, scaled_dot_product_attention(*tensors, **masks))
    queries = inputs.padding(2, 60, holes=0.4)
    some = coclustered_attention(*tensors, n_exact=35, query_padding_mask=queries, **masks)
    there = np.broadcast_to(~queries[:, None], some.shape[:3])
    compare.assert_close(some[there], got[there], compare.EXACT)
    assert not some[~there].any()


def test_short_sequences_are_exact_to_the_bit(room, monkeypatch):
    monkeypatch.setattr(coclustered, "SHORTEST", 64)
    for n, n_keys in ((63, 64), (64, 63)):
        tensors = inputs.tensors(heads=2, n=n, n_keys=n_keys, dim=8)
        got = coclustered_attention(*tensors, n_exact=4)
        compare.assert_same_bits(got, scaled_dot_product_attention(*tensors))
    tensors = inputs.tensors(heads=2, n=64, dim=8)
    error = compare.relative_error(coclustered_attention(*tensors, n_exact=4), scaled_dot_product_attention(*tensors))
    assert error > 1e-3  # from here on it is not


def test_exact_part_of_a_batch_takes_its_own_bias(room):
    """The first and last entries are short, the others long; queries without holes and with."""
    tensors = inputs.tensors(batch=4, heads=2, n=80, dim=8)
    bias = np.random.default_rng(1).standard_normal((4, 80)).astype(np.float32)
    keys = inputs.padding(4, 80, lengths=[20, 80, 80, 15])
    for queries in (None, inputs.padding(4, 80, holes=0.3)):
        options = {"key_bias": bias, "key_padding_mask": keys}
        got = coclustered_attention(*tensors, n_exact=10, query_padding_mask=queries, **options)
        want = scaled_dot_product_attention(*tensors, attn_mask=bias[:, None, None], key_padding_mask=keys)
        for b in (0, 3):
            there = slice(None) if queries is None else ~queries[b]
            compare.assert_close(got[b][:, there], want[b][:, there], compare.EXACT)
        for b in (1, 2):
            own = {name: x[b : b + 1] for name, x in options.items()}
            own["query_padding_mask"] = None if queries is None else queries[b : b + 1]
            alone = coclustered_attention(*(x[b : b + 1] for x in tensors), n_exact=10, **own)
            compare.assert_same_bits(got[b : b + 1], alone)


@pytest.mark.parametrize("n_exact", [0, 7])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_a_cluster_for_each_query_is_exact(room, kind, n_exact):
    """The tail is exact at the centroid, whatever is in it."""
    tensors = inputs.tensors(kind, heads=2, n=90, n_keys=100, dim=16)
    got = coclustered_attention(*tensors, n_query_clusters=90, n_key_clusters=5, n_exact=n_exact)
    compare.assert_close(got, scaled_dot_product_attention(*tensors), compare.CLUSTERED)


def test_weights_sum_to_one(room):
    """Constant values come back."""
    query, key, value = inputs.tensors(heads=2, n=90, n_keys=120, dim=16)
    value[:] = np.linspace(-3, 3, 16)
    for n_exact in (0, 9):
        got = coclustered_attention(query, key, value, n_exact=n_exact)
        compare.assert_close(got, np.broadcast_to(value[:, :, :1], got.shape), 2e-6)


def test_no_variance(room):
    """One query for all positions, one key for all, or one row of values: exact."""
    tensors = inputs.tensors(heads=2, n=90, n_keys=120, dim=16)
    for which in range(3):
        same = [x.copy() for x in tensors]
        same[which][:] = same[which][:, :, :1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = coclustered_attention(*same, n_exact=9)
        compare.assert_close(got, scaled_dot_product_attention(*same), compare.CLUSTERED)
    zeros = [np.zeros_like(x) for x in tensors]
    assert not coclustered_attention(*zeros, n_exact=9).any()


def test_duplicated_rows(room):
    """Nine rows, each many times: as many clusters of queries as kinds of them, so exact; equal rows stay equal."""
    rng = np.random.default_rng(3)
    tensors = [x[:, :, rng.integers(0, 9, 150)] for x in inputs.tensors(heads=2, n=9, dim=16, seed=4)]
    got = coclustered_attention(*tensors, n_query_clusters=100, n_exact=9)
    compare.assert_close(got, scaled_dot_product_attention(*tensors), compare.CLUSTERED)
    for head, rows in zip(got[0], tensors[0][0]):
        _, first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        compare.assert_close(head, head[first[kind.ravel()]], 1e-6)


# The same numbers, given otherwise


def compact(x, mask):
    """The rows of one entry that the mask leaves, as a batch of one."""
    return np.ascontiguousarray(x[None, :, ~mask])


def test_holes_are_the_compacted_sequences(room):
    tensors = inputs.tensors(batch=3, heads=2, n=90, n_keys=110, dim=16, seed=2)
    queries, keys = inputs.padding(3, 90, holes=0.3, seed=1), inputs.padding(3, 110, holes=0.4, seed=2)
    bias = np.random.default_rng(0).standard_normal((3, 110)).astype(np.float32)
    masks = {"query_padding_mask": queries, "key_padding_mask": keys}
    got = coclustered_attention(*tensors, n_exact=9, key_bias=bias, **masks)
    for b in range(3):
        own = [compact(x[b], mask) for x, mask in zip(tensors, (queries[b], keys[b], keys[b]))]
        alone = coclustered_attention(*own, n_exact=9, key_bias=bias[b : b + 1, ~keys[b]])
        compare.assert_same_bits(compact(got[b], queries[b]), alone)


def test_minus_infinity_is_padding(room):
    tensors = inputs.tensors(batch=2, heads=2, n=90, dim=16)
    mask = inputs.padding(2, 90, holes=0.3)
    bias = np.where(mask, -np.inf, 0).astype(np.float32)
    want = coclustered_attention(*tensors, n_exact=9, key_padding_mask=mask)
    compare.assert_same_bits(coclustered_attention(*tensors, n_exact=9, key_bias=bias), want)
    other = inputs.padding(2, 90, holes=0.2, seed=5)
    want = coclustered_attention(*tensors, n_exact=9, key_padding_mask=mask | other)
    got = coclustered_attention(*tensors, n_exact=9, key_bias=bias, key_padding_mask=other)
    compare.assert_same_bits(got, want)


@pytest.mark.parametrize("round_bytes", [1, 30_000, 64 << 20])
def test_a_sequence_is_the_same_in_any_company(room, monkeypatch, round_bytes):
    """Bit for bit, however many sequences and heads are worked on together."""
    monkeypatch.setattr(coclustered, "ROUND_BYTES", round_bytes)
    lengths, key_lengths = [70, 0, 5, 90, 33, 64, 0, 150], [70, 9, 40, 100, 33, 64, 0, 60]
    query, _, _ = (x[0] for x in inputs.tensors(heads=4, n=sum(lengths), dim=8, seed=1))
    _, key, value = (x[0] for x in inputs.tensors(heads=2, n=sum(key_lengths), dim=8, width=12, seed=2))
    offsets, key_offsets = np.cumsum([0, *lengths]), np.cumsum([0, *key_lengths])
    got = coclustered_attention(query, key, value, n_exact=7, offsets=offsets, key_offsets=key_offsets)
    for s in range(len(lengths)):
        own, keys = slice(*offsets[s : s + 2]), slice(*key_offsets[s : s + 2])
        alone = coclustered_attention(query[None, :, own], key[None, :, keys], value[None, :, keys], n_exact=7)
        compare.assert_same_bits(got[None, :, own], alone)


def test_grouped_heads_share_a_threshold_with_their_like(room):
    """Heads 0 and 2 of four on two key heads are what they are alone, and so are heads 1 and 3."""
    query, key, value = inputs.tensors(heads=4, kv_heads=2, n=90, n_keys=80, dim=16)
    got = coclustered_attention(query, key, value, n_exact=7)
    for member in range(2):
        alone = coclustered_attention(query[:, member::2], key, value, n_exact=7)
        compare.assert_same_bits(got[:, member::2], alone)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_float_types_are_converted(room, dtype):
    tensors = [x.astype(dtype) for x in inputs.tensors(heads=2, n=90, dim=8)]
    want = coclustered_attention(*(x.astype(np.float32) for x in tensors), n_exact=7)
    compare.assert_same_bits(coclustered_attention(*tensors, n_exact=7), want)


def test_views_of_a_fused_projection(room):
    fused = np.random.default_rng(0).standard_normal((2, 90, 3, 4, 8), dtype=np.float32)
    views = [fused[:, :, i].swapaxes(1, 2) for i in range(3)]
    want = coclustered_attention(*(np.ascontiguousarray(x) for x in views), n_exact=7)
    got = coclustered_attention(*views, n_exact=7)
    compare.assert_same_bits(got, want)
    assert got.swapaxes(1, 2).flags.c_contiguous


# Extreme numbers


@pytest.mark.parametrize("size", [1e-30, 30.0, 1e3, 1e5, 1e30])
def test_logits_of_every_size(room, size):
    """Finite, and near the exact rows where each query has its own cluster."""
    query, key, value = inputs.tensors(heads=2, n=90, n_keys=120, dim=16)
    scale = size / np.abs(np.einsum("bhld,bhsd->bhls", query, key)).max()
    for n_exact in (0, 9):
        got = coclustered_attention(query, key, value, n_exact=n_exact, scale=scale)
        assert np.isfinite(got).all()
        assert np.abs(got).max() <= 2 * np.abs(value).max()
    if size < 1e4:
        got = coclustered_attention(query, key, value, n_query_clusters=90, n_exact=9, scale=scale)
        want = scaled_dot_product_attention(query, key, value, scale=scale)
        compare.assert_close(got, want, compare.CLUSTERED + 5e-7 * size)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e10, 1e30])
def test_values_of_every_size(room, size):
    query, key, value = inputs.tensors(heads=2, n=90, n_keys=120, dim=16)
    want = coclustered_attention(query, key, value, n_query_clusters=90, n_exact=9).astype(np.float64) * size
    with np.errstate(over="ignore"):
        got = coclustered_attention(query, key, (value * size).astype(np.float32), n_query_clusters=90, n_exact=9)
    compare.assert_close(got, want, compare.CLUSTERED)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_rows_that_are_not_finite(room, which, bad):
    """They may spoil the clusters of their head and sequence, and through the threshold its other heads: no more."""
    tensors = [x.copy() for x in inputs.tensors(batch=2, heads=2, n=90, dim=8)]
    clean = coclustered_attention(*tensors, n_exact=9)
    tensors[("query", "key", "value").index(which)][1, 0, 17, 3] = bad
    with np.errstate(all="ignore"):
        got = coclustered_attention(*tensors, n_exact=9)
    compare.assert_same_bits(got[0], clean[0])
    assert np.isfinite(got[1, 1]).all()
    assert np.isfinite(bad) or not np.isfinite(got[1, 0]).all()  # nothing is hidden


@pytest.mark.parametrize("n_exact", [9, 90])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e300, -1e300])
def test_bias_of_every_size(room, n_exact, bad):
    """As exact attention: NaN reaches all, the largest has all, the lowest nothing. No other entry moves."""
    tensors = inputs.tensors(batch=2, heads=2, n=90, dim=8)
    bias = np.zeros((2, 90))
    clean = coclustered_attention(*tensors, n_exact=n_exact, key_bias=bias)
    bias[1, 17] = bad
    got = coclustered_attention(*tensors, n_exact=n_exact, key_bias=bias)
    compare.assert_same_bits(got[0], clean[0])
    exact = scaled_dot_product_attention(*tensors, attn_mask=bias[:, None, None])
    if bad < 0:
        want = coclustered_attention(*tensors, n_exact=n_exact, key_padding_mask=bias < 0)
        compare.assert_same_bits(got[1], want[1])
        assert n_exact == 9 or np.allclose(got, exact, atol=1e-6)
    else:
        compare.assert_close(got[1], exact[1], 1e-6)
        assert np.isnan(got[1]).all() == np.isnan(bad)


@pytest.mark.parametrize("same", [1e-3, 5.0, 3e38, -3e38, -1e300, np.inf])
def test_a_bias_that_all_keys_share(room, same):
    """It changes no softmax, and no other entry's."""
    tensors = inputs.tensors(batch=2, heads=2, n=90, dim=8)
    bias = np.zeros((2, 90))
    want = coclustered_attention(*tensors, n_exact=9, key_bias=bias)
    bias[1] = same
    got = coclustered_attention(*tensors, n_exact=9, key_bias=bias)
    compare.assert_same_bits(got[0], want[0])
    compare.assert_close(got[1], want[1], 1e-5)


def test_padding_may_have_any_bias(room):
    tensors = inputs.tensors(batch=2, heads=2, n=90, dim=8)
    padding = inputs.padding(2, 90, holes=0.3)
    want = coclustered_attention(*tensors, n_exact=9, key_padding_mask=padding)
    for bad in (np.nan, np.inf, 3e38, -3e38):
        bias = np.where(padding, bad, 0)
        got = coclustered_attention(*tensors, n_exact=9, key_padding_mask=padding, key_bias=bias)
        compare.assert_same_bits(got, want)
