"""CAST beside its loops, its properties, and what odd input gives."""

import tracemalloc

import compare
import inputs
import naive_cast
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyclattn
from pyclattn import _dispatch
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional import _scratch, cast
from pyclattn.functional.cast import cast_attention, memberships

# Affinities nearer than this are decided by rounding: they are sums over heads of at most 1 each.
TIE = 2e-6


def case(kind="random", *, batch=1, heads=2, n=40, dim=8, width=None, n_clusters=5, seed=0):
    """The five arrays of a call."""
    tensors = inputs.tensors(kind, batch=batch, heads=heads, n=n, dim=dim, width=width, seed=seed)
    rng = np.random.default_rng([seed, n])
    surrogates = rng.standard_normal((n_clusters, heads, dim), dtype=np.float32)
    return (*tensors, surrogates, rng.standard_normal((batch, n), dtype=np.float32))


def members_of(arrays, **options):
    """Lists of tokens, as the loops have them."""
    query, key, _, surrogates, gate = arrays
    options.pop("gate_temperature", None)
    found = memberships(query, key, surrogates, gate, **options)
    return [[np.flatnonzero(own[:, c]).tolist() for c in range(own.shape[1])] for own in found]


def check(arrays, key_padding_mask=None, **options):
    """The same members as the loops choose, up to ties, and the same outputs with them."""
    own = members_of(arrays, key_padding_mask=key_padding_mask, **options)
    want, members, margin = naive_cast.cast_attention(*arrays, key_padding=key_padding_mask, **options)
    if margin > TIE:
        assert own == members
    elif own != members:
        want, _, _ = naive_cast.cast_attention(*arrays, key_padding=key_padding_mask, members=own, **options)
    compare.assert_close(cast_attention(*arrays, key_padding_mask=key_padding_mask, **options), want, 5e-6)
    return margin > TIE


GRID = [
    (clustering, attention, gate_temperature)
    for clustering in cast.CLUSTERINGS
    for attention in cast.ATTENTIONS
    for gate_temperature in (True, False)
]


@pytest.mark.parametrize(("clustering", "attention", "gate_temperature"), GRID)
def test_beside_the_loops(room, clustering, attention, gate_temperature):
    options = {"clustering": clustering, "attention": attention, "gate_temperature": gate_temperature}
    decided = [
        check(case("blobs", batch=2, n=40, width=5), cluster_size=11, **options),
        check(case(n=31, heads=3, dim=5, n_clusters=4), cluster_size=8, scale=0.7, **options),
        check(case("smooth", batch=2, n=37), inputs.padding(2, 37, holes=0.3), cluster_size=9, **options),
        check(case(batch=2, n=20, n_clusters=1), inputs.padding(2, 20, lengths=[20, 7]), cluster_size=20, **options),
    ]
    assert sum(decided) >= 2


def test_more_than_one_panel_and_block():
    """Clusters of more members than a block of keys or a task holds, more clusters than a panel has lanes."""
    for clustering in cast.CLUSTERINGS:
        check(case(heads=1, n=450, dim=3, n_clusters=2), cluster_size=230, clustering=clustering)
        check(case(heads=1, n=130, dim=3, n_clusters=70), cluster_size=2, clustering=clustering)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 12), st.sampled_from(GRID), st.integers(0, 99))
def test_any_size(n, n_clusters, size, options, seed):
    clustering, attention, gate_temperature = options
    if clustering == "sa_topk":
        size = max(size, -(-n // n_clusters))
    holes = inputs.padding(1, n, holes=0.4, seed=seed)
    check(
        case(n=n, n_clusters=n_clusters, dim=1 + seed % 9, seed=seed), holes, cluster_size=size, clustering=clustering,
        attention=attention, gate_temperature=gate_temperature,
    )  # fmt: skip


@given(st.integers(1, 200), st.booleans(), st.integers(0, 99))
def test_one_cluster_of_all_is_exact_attention(n, gate_temperature, seed):
    arrays = case("blobs", n=n, n_clusters=1, seed=seed)
    want = pyclattn.scaled_dot_product_attention(*arrays[:3])
    for clustering in cast.CLUSTERINGS:
        got = cast_attention(*arrays, cluster_size=n, clustering=clustering, gate_temperature=gate_temperature)
        compare.assert_close(got, want, 2e-6)


@given(st.integers(1, 150), st.integers(1, 20), st.integers(1, 30), st.integers(0, 99))
def test_outputs_lie_within_the_values(n, n_clusters, size, seed):
    """Also where clusters are left without members."""
    arrays = case("blobs", n=n, n_clusters=n_clusters, seed=seed)
    value = arrays[2] + 5  # far from 0
    low, high = value.min(axis=2, keepdims=True), value.max(axis=2, keepdims=True)
    for clustering, own in (("topk", size), ("sa_topk", max(size, -(-n // n_clusters)))):
        out = cast_attention(*arrays[:2], value, *arrays[3:], cluster_size=own, clustering=clustering)
        assert (out >= low - 1e-4).all()
        assert (out <= high + 1e-4).all()


@given(st.integers(1, 150), st.integers(1, 12), st.integers(0, 5), st.integers(0, 99))
def test_single_assignment_is_a_partition(n, n_clusters, spare, seed):
    query, key, _, surrogates, gate = case(n=n, n_clusters=n_clusters, seed=seed)
    padding = inputs.padding(1, n, holes=0.3, seed=seed)
    size = -(-n // n_clusters) + spare
    found = memberships(
        query, key, surrogates, gate, cluster_size=size, clustering="sa_topk", key_padding_mask=padding
    )  # fmt: skip
    assert (found.sum(axis=2) == ~padding).all()
    assert found.sum(axis=1).max() <= size


@given(st.integers(1, 150), st.integers(1, 12), st.integers(1, 200), st.integers(0, 99))
def test_topk_clusters_are_full(n, n_clusters, size, seed):
    """Or hold every token there is."""
    query, key, _, surrogates, gate = case(n=n, n_clusters=n_clusters, seed=seed)
    padding = inputs.padding(1, n, holes=0.3, seed=seed)
    found = memberships(query, key, surrogates, gate, cluster_size=size, key_padding_mask=padding)
    assert (found.sum(axis=1) == min(size, int((~padding).sum()))).all()
    assert not found[padding].any()


def test_a_token_in_no_cluster_gets_the_summaries(room):
    query, key, value, surrogates, gate = case(n=30, n_clusters=2)
    found = memberships(query, key, surrogates, gate, cluster_size=1)[0]
    outside = ~found.any(axis=1)
    assert outside.sum() >= 28
    out = cast_attention(query, key, value, surrogates, gate, cluster_size=1)[0]
    members = [int(np.flatnonzero(found[:, c])[0]) for c in range(2)]  # a cluster of one: its value is the summary
    logits = np.einsum("hnd,chd->hnc", query[0], surrogates) / np.sqrt(8) * (1 + np.logaddexp(0, gate[0]))[:, None]
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    want = np.einsum("hnc,hce->hne", shares, value[0][:, members])
    compare.assert_close(out[:, outside], want[:, outside], 2e-6)


def test_the_order_of_tokens_and_of_clusters_changes_nothing():
    arrays = query, key, value, surrogates, gate = case("blobs", n=200, n_clusters=9)
    rng = np.random.default_rng(0)
    moved, renamed = rng.permutation(200), rng.permutation(9)
    for clustering, attention, _ in GRID[::2]:
        how = {"cluster_size": 30, "clustering": clustering, "attention": attention}
        want = cast_attention(*arrays, **how)
        got = cast_attention(
            query[:, :, moved], key[:, :, moved], value[:, :, moved], surrogates, gate[:, moved], **how
        )
        compare.assert_close(got, want[:, :, moved], 2e-6)
        compare.assert_close(cast_attention(query, key, value, surrogates[renamed], gate, **how), want, 2e-6)


def test_ties_go_to_the_first(room):
    query, key, value, surrogates, _ = case(n=20, n_clusters=4)
    same = (np.repeat(x[:, :, :1], 20, axis=2) for x in (query, key))
    arrays = (*same, value, np.repeat(surrogates[:1], 4, axis=0), np.zeros((1, 20)))
    assert members_of(arrays, cluster_size=3)[0] == [[0, 1, 2]] * 4
    wanted = [list(range(c, c + 6)) for c in (0, 6, 12)] + [[18, 19]]
    assert members_of(arrays, cluster_size=6, clustering="sa_topk")[0] == wanted


def test_one_window_or_many(monkeypatch, room):
    """Tokens seen some at a time, sequences a few at a time: the same bits."""
    arrays = case(batch=3, n=400, n_clusters=6)
    padding = inputs.padding(3, 400, holes=0.1)
    want = {c: cast_attention(*arrays, cluster_size=80, clustering=c) for c in cast.CLUSTERINGS}
    holed = {
        c: cast_attention(*arrays, cluster_size=80, clustering=c, key_padding_mask=padding) for c in cast.CLUSTERINGS
    }
    monkeypatch.setattr(cast, "CELLS", 6 * 100)
    monkeypatch.setattr(cast, "ROUND", 800)
    for clustering in cast.CLUSTERINGS:
        how = {"cluster_size": 80, "clustering": clustering}
        compare.assert_same_bits(cast_attention(*arrays, **how), want[clustering])
        got = cast_attention(*arrays, key_padding_mask=padding, **how)
        compare.assert_same_bits(got, holed[clustering])


@pytest.mark.parametrize("clustering", cast.CLUSTERINGS)
def test_packed_padded_and_alone(room, clustering):
    """A sequence gets the same bits in a packed batch, a padded one, with what holes hide, and alone."""
    lengths = [30, 1, 0, 17]
    query, key, value, surrogates, gate = case(batch=4, n=30)
    how = {"cluster_size": 7, "clustering": clustering}
    padding = inputs.padding(4, 30, lengths=lengths)
    padded = cast_attention(query, key, value, surrogates, gate, key_padding_mask=padding, **how)
    offsets = np.cumsum([0, *lengths])
    tokens = [np.concatenate([x[b, :, :n] for b, n in enumerate(lengths)], axis=1) for x in (query, key, value)]
    packed_gate = np.concatenate([gate[b, :n] for b, n in enumerate(lengths)])
    packed = cast_attention(*tokens, surrogates, packed_gate, offsets=offsets, **how)
    for b, n in enumerate(lengths):
        own = (x[b : b + 1, :, :n] for x in (query, key, value))
        alone = cast_attention(*own, surrogates, gate[b : b + 1, :n], **how)[0]
        compare.assert_same_bits(padded[b, :, :n], alone)
        compare.assert_same_bits(packed[:, offsets[b] : offsets[b + 1]], alone)
        assert not padded[b, :, n:].any()


def test_logits_kept_or_computed_again(monkeypatch, room):
    """The same bits."""
    arrays = case(batch=2, n=130)
    kept = cast_attention(*arrays, cluster_size=20)
    monkeypatch.setattr(cast, "LOGITS", 0)
    compare.assert_same_bits(cast_attention(*arrays, cluster_size=20), kept)


def test_padding_is_never_read(room):
    query, key, value, surrogates, gate = (x.copy() for x in case(batch=2, n=50))
    padding = inputs.padding(2, 50, holes=0.4)
    want = cast_attention(query, key, value, surrogates, gate, cluster_size=9, key_padding_mask=padding)
    for x in (query, key, value):
        x.swapaxes(1, 2)[padding] = np.nan
    gate[padding] = np.inf
    got = cast_attention(query, key, value, surrogates, gate, cluster_size=9, key_padding_mask=padding)
    compare.assert_same_bits(got, want)


@pytest.mark.parametrize("clustering", cast.CLUSTERINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_belongs(clustering, bad):
    """As in the reference: in its cluster, and in what that cluster's summary reaches."""
    arrays = case(n=60, n_clusters=4)
    for rows in arrays[:3]:
        kept = rows.copy()
        rows[0, 0, 7] = bad
        how = {"cluster_size": 20, "clustering": clustering}
        got = cast_attention(*arrays, **how)
        with _dispatch.forced("reference"), np.errstate(all="ignore"):
            compare.assert_close(got, cast_attention(*arrays, **how), 5e-6)
        assert np.isfinite(got[0, 1]).all()  # the other head
        rows[...] = kept


def test_a_nan_is_the_last_to_be_chosen(room):
    query, key, value, surrogates, gate = case(n=30, n_clusters=3)
    query[0, 1, 4] = np.nan
    with np.errstate(all="ignore"):
        assert not memberships(query, key, surrogates, gate, cluster_size=29)[0, 4].any()
        assert memberships(query, key, surrogates, gate, cluster_size=30)[0, 4].all()
        found = memberships(query, key, surrogates, gate, cluster_size=10, clustering="sa_topk")
        assert (found.sum(axis=2) == 1).all()
        assert np.isfinite(cast_attention(query, key, value, surrogates, gate, cluster_size=10)[0, 0]).all()


@pytest.mark.parametrize("clustering", cast.CLUSTERINGS)
def test_fewer_tokens_than_a_cluster_holds(room, clustering):
    arrays = case(batch=2, n=12, n_clusters=4)
    check(arrays, inputs.padding(2, 12, lengths=[3, 1]), cluster_size=10, clustering=clustering)
    nobody = np.ones((2, 12), bool)
    assert not cast_attention(*arrays, cluster_size=10, clustering=clustering, key_padding_mask=nobody).any()


@pytest.mark.parametrize("shape", [(0, 2, 9, 4, 4), (2, 0, 9, 4, 4), (2, 2, 0, 4, 4), (1, 2, 9, 4, 0)])
def test_nothing_to_do(room, shape):
    batch, heads, n, dim, width = shape
    x, value = np.zeros((batch, heads, n, dim), np.float32), np.zeros((batch, heads, n, width), np.float32)
    surrogates, gate = np.zeros((3, heads, dim), np.float32), np.zeros((batch, n), np.float32)
    for clustering in cast.CLUSTERINGS:
        out = cast_attention(x, x, value, surrogates, gate, cluster_size=5, clustering=clustering)
        assert out.shape == value.shape


def test_heads_as_views_of_a_projection():
    """Read where they lie, and the result in their memory order; other float types are converted."""
    arrays = case(batch=2, heads=3, n=70)
    want = cast_attention(*arrays, cluster_size=20)
    fused = np.ascontiguousarray(np.concatenate([x.swapaxes(1, 2) for x in arrays[:3]], axis=-1))
    views = [fused[..., i * 8 : (i + 1) * 8].swapaxes(1, 2) for i in range(3)]
    got = cast_attention(*views, *arrays[3:], cluster_size=20)
    compare.assert_same_bits(got, want)
    assert got.swapaxes(1, 2).flags.c_contiguous
    doubles = (x.astype(np.float64) for x in arrays)
    compare.assert_same_bits(cast_attention(*doubles, cluster_size=20), want)


@pytest.mark.parametrize("shape", [{"batch": 3, "n": 300}, {"heads": 1, "n": 2500, "n_clusters": 50}])
def test_same_bits_for_any_number_of_threads(shape):
    arrays = case(**shape)
    for clustering, attention, _ in GRID[::2]:
        how = {"cluster_size": 60, "clustering": clustering, "attention": attention}
        want = cast_attention(*arrays, n_threads=1, **how)
        for n_threads in (2, 3, 7):
            compare.assert_same_bits(cast_attention(*arrays, n_threads=n_threads, **how), want)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


GOOD = {
    "query": zeros(2, 3, 10, 8), "key": zeros(2, 3, 10, 8), "value": zeros(2, 3, 10, 6),
    "surrogate_tokens": zeros(4, 3, 8), "gate": zeros(2, 10), "cluster_size": 3,
}  # fmt: skip
PACKED = {**{n: GOOD[n][0] for n in ("query", "key", "value", "gate")}, "offsets": [0, 10]}
BAD = {
    "key_length": ({"key": zeros(2, 3, 9, 8), "value": zeros(2, 3, 9, 6)}, ShapeError, "(2, 3, 10, 8) | (2, 3, 9, 8)"),
    "key_heads": ({"key": zeros(2, 1, 10, 8), "value": zeros(2, 1, 10, 6)}, ShapeError, "heads | (2, 1, 10, 8)"),
    "surrogate_heads": ({"surrogate_tokens": zeros(4, 2, 8)}, ShapeError, "surrogate_tokens | 3, 8 | (4, 2, 8)"),
    "surrogate_dim": ({"surrogate_tokens": zeros(4, 3, 7)}, ShapeError, "surrogate_tokens | 3, 8 | (4, 3, 7)"),
    "no_clusters": ({"surrogate_tokens": zeros(0, 3, 8)}, ShapeError, "surrogate_tokens | at least 1 cluster"),
    "surrogate_rank": ({"surrogate_tokens": zeros(4, 24)}, ShapeError, "surrogate_tokens | rank 3 | (4, 24)"),
    "gate_length": ({"gate": zeros(2, 9)}, ShapeError, "gate | (2, 10) | (2, 9)"),
    "gate_rank": ({"gate": zeros(2, 10, 1)}, ShapeError, "gate | rank 2 | (2, 10, 1)"),
    "gate_packed": ({**PACKED, "gate": zeros(1, 10)}, ShapeError, "gate | rank 1 | (1, 10)"),
    "gate_ints": ({"gate": zeros(2, 10, dtype=int)}, DTypeError, "gate | float32 | int64"),
    "no_room": ({"cluster_size": 2, "clustering": "sa_topk"}, ArgumentError, "cluster_size | at least 3 | 4 | got 2"),
    "size_0": ({"cluster_size": 0}, ArgumentError, "cluster_size | at least 1 | 0"),
    "size_float": ({"cluster_size": 2.5}, DTypeError, "cluster_size | whole number | 2.5"),
    "clustering": ({"clustering": "kmeans"}, ArgumentError, "clustering | 'topk' | 'kmeans'"),
    "attention": ({"attention": "relu"}, ArgumentError, "attention | 'laplace' | 'relu'"),
    "gate_temperature": ({"gate_temperature": 1}, DTypeError, "gate_temperature | True or False | 1"),
    "mask": ({"key_padding_mask": zeros(2, 9, dtype=bool)}, ShapeError, "key_padding_mask | (2, 10) | (2, 9)"),
    "scale": ({"scale": np.nan}, ArgumentError, "scale | nan"),
    "offsets": ({**PACKED, "offsets": [0, 9]}, ArgumentError, "offsets | 10"),
    "out": ({"out": zeros(2, 3, 10, 8)}, ShapeError, "out | (2, 3, 10, 6) | (2, 3, 10, 8)"),
    "n_threads": ({"n_threads": 0}, ArgumentError, "n_threads | 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    bad, error, words = BAD[name]
    with pytest.raises(error) as raised:
        cast_attention(**{**GOOD, **bad})
    for word in words.split(" | "):
        assert word in str(raised.value)


def test_sa_topk_needs_room_for_what_is_there_only():
    """Padding takes no places."""
    padding = inputs.padding(2, 10, lengths=[8, 3])
    cast_attention(**{**GOOD, "cluster_size": 2}, clustering="sa_topk", key_padding_mask=padding)


def test_the_estimate_is_kept():
    """NumPy's allocations stay within what `working_bytes` says, and that is not far above."""
    arrays = case(heads=4, n=4096, dim=32, n_clusters=64)
    for clustering in cast.CLUSTERINGS:
        how = {"cluster_size": 64, "clustering": clustering}
        out = cast_attention(*arrays, n_threads=2, **how)
        _scratch._forget()  # what is kept from call to call is not seen again
        tracemalloc.start()
        cast_attention(*arrays, n_threads=2, out=out, **how)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        said = cast.working_bytes(*(x.shape for x in arrays[:3]), n_threads=2, n_clusters=64, **how)
        assert peak <= said <= 2 * peak
