"""Arrays as callers have them: strided, read-only, foreign types, empty, and with NaN in places."""

import compare
import inputs
import ml_dtypes
import naive
import numpy as np
import pytest

import pyclattn
from pyclattn import cluster_queries, hash_queries, kmeans
from pyclattn.functional import coclustered

# name -> the function and what else it takes; all of query, key, value
ATTENTION = {
    "exact": (pyclattn.scaled_dot_product_attention, {}),
    "exact_causal": (pyclattn.scaled_dot_product_attention, {"is_causal": True}),
    "clustered": (pyclattn.clustered_attention, {"n_clusters": 5}),
    "kmeans": (pyclattn.clustered_attention, {"n_clusters": 5, "clustering": "kmeans"}),
    "improved": (pyclattn.improved_clustered_attention, {"n_clusters": 5, "topk": 6}),
    "improved_causal": (pyclattn.improved_clustered_attention, {"n_clusters": 5, "topk": 6, "is_causal": True}),
    "metric": (pyclattn.improved_clustered_attention, {"n_clusters": 5, "topk": 6, "clustering": "metric"}),
    "coclustered": (pyclattn.coclustered_attention, {"n_exact": 2}),
}
CLUSTERED = [name for name in ATTENTION if not name.startswith("exact")]
BY_KEYS = ("metric", "coclustered")  # their clusters are not those of `cluster_queries`


@pytest.fixture(params=ATTENTION)
def attention(request, monkeypatch):
    """One of the attention functions as a function of query, key, value and more."""
    monkeypatch.setattr(coclustered, "SHORTEST", 6)
    function, options = ATTENTION[request.param]
    call = lambda *tensors, **more: function(*tensors, **{**options, **more})
    call.name = request.param
    return call


def frozen(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def strided(x):
    """The same numbers in a view of a larger array, every second row and with room behind each."""
    wide = np.full((*x.shape[:2], 2 * x.shape[2], x.shape[3] + 3), np.nan, np.float32)
    wide[:, :, ::2, 2:-1] = x
    return wide[:, :, ::2, 2:-1]


def backwards(x):
    return np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    view = raw.view(np.uint8)[: x.nbytes].view(x.dtype).reshape(x.shape)
    view[:] = x
    assert not view.flags.aligned
    return view


LAYOUTS = {
    "read_only": frozen,
    "heads_inside": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),  # as a projection writes them
    "strided": strided,
    "backwards": backwards,
    "last_axis_backwards": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "last_axis_strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "big_endian": lambda x: x.astype(">f4"),
    "unaligned": unaligned,
    "field": lambda x: np.rec.fromarrays([np.zeros(x.shape, np.int8), x], names="a,b")["b"],  # strides of 5 bytes
    "subclass": lambda x: np.ma.masked_array(x),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room, attention, layout):
    """However the numbers lie in memory, the result is theirs, in float32, and they are as before."""
    tensors = inputs.tensors(batch=2, heads=4, kv_heads=2, n=23, dim=8)
    want = attention(*tensors)
    laid_out = [LAYOUTS[layout](x) for x in tensors]
    if layout == "list":
        laid_out = [np.array(x, np.float32).tolist() for x in laid_out]
        laid_out = [np.array(x) for x in laid_out]  # float64 of float32 numbers
    got = attention(*laid_out)
    assert type(got) is np.ndarray
    assert got.shape == want.shape
    compare.assert_close(got, want, 1e-6)
    for before, after in zip(tensors, laid_out):
        assert (before == np.asarray(after)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_clustered_rows(room, layout):
    x, _, _ = inputs.tensors("blobs", batch=2, heads=2, n=40, dim=8)
    laid_out = LAYOUTS[layout](x)
    compare.assert_same_bits(hash_queries(laid_out), hash_queries(x))
    for function in (cluster_queries, kmeans):
        got, want = function(laid_out, n_clusters=5), function(x, n_clusters=5)
        compare.assert_same_bits(got.labels, want.labels)
        compare.assert_close(got.centroids, want.centroids, 1e-6)


def test_the_output_has_the_querys_memory_order(room, attention):
    tensors = inputs.tensors(batch=2, heads=3, n=12, dim=8)
    inside = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in tensors]
    assert attention(*tensors).flags.c_contiguous
    assert attention(*inside).swapaxes(1, 2).flags.c_contiguous


def test_broadcast_views(room, attention):
    """Zero strides: one key and value for the batch, one query for all positions."""
    query, key, value = inputs.tensors(batch=3, heads=2, n=20, dim=8)
    key, value = (np.broadcast_to(x[:1], x.shape) for x in (key, value))
    query = np.broadcast_to(query[:, :, :1], query.shape)
    want = attention(*(np.ascontiguousarray(x) for x in (query, key, value)))
    compare.assert_close(attention(query, key, value), want, 1e-6)


def test_masks_of_any_layout(room):
    tensors = inputs.tensors(batch=2, heads=2, n=20, n_keys=30, dim=8)
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((2, 2, 20, 30)).astype(np.float32)
    allowed = rng.random((2, 2, 20, 30)) < 0.5
    for mask in (bias, allowed):
        want = pyclattn.scaled_dot_product_attention(*tensors, attn_mask=mask)
        for name in ("read_only", "heads_inside", "backwards", "last_axis_strided", "fortran", "field", "subclass"):
            got = pyclattn.scaled_dot_product_attention(*tensors, attn_mask=LAYOUTS[name](mask))
            compare.assert_close(got, want, 1e-6)
    want = pyclattn.scaled_dot_product_attention(*tensors, attn_mask=bias)
    for name in ("big_endian", "unaligned"):
        got = pyclattn.scaled_dot_product_attention(*tensors, attn_mask=LAYOUTS[name](bias))
        compare.assert_close(got, want, 1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.longdouble, ">f8"])
def test_float_types_are_converted(room, attention, dtype):
    tensors = [x.astype(dtype) for x in inputs.tensors(heads=2, n=20, dim=8)]
    want = attention(*(x.astype(np.float32) for x in tensors))
    compare.assert_same_bits(attention(*tensors), want)


def test_mixed_float_types(room):
    query, key, value = inputs.tensors(heads=2, n=20, dim=8)
    got = pyclattn.scaled_dot_product_attention(query.astype(np.float64), key.astype(np.float16), value)
    want = naive.attention(query, key.astype(np.float16), value)
    compare.assert_close(got, want, compare.EXACT)


# The caller's own array for the result


def caller_arrays(shape):
    """Float32 arrays of this shape, full of NaN, in the layouts a caller may have: (name, array, what holds it)."""
    plain = np.full(shape, np.nan, np.float32)
    swapped = np.full((*shape[:-3], shape[-2], shape[-3], shape[-1]), np.nan, np.float32)
    wide = np.full((*shape[:-1], shape[-1] + 7), np.nan, np.float32)
    upside = np.full(shape, np.nan, np.float32)
    return {
        "plain": (plain, plain),
        "heads_inside": (swapped.swapaxes(-3, -2), swapped),
        "columns": (wide[..., 3:-4], wide),
        "backwards": (upside[..., ::-1, :], upside),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_out(room, attention, packed):
    """The result lands in the array given, every row of it and nothing beside it, and that array is returned."""
    tensors = inputs.tensors(batch=2, heads=4, n=33, dim=8, width=6)
    if packed:
        tensors = [x[0] for x in tensors]
        options = {"offsets": [0, 5, 5, 33]}
    else:
        options = {"key_padding_mask": inputs.padding(2, 33, lengths=[0, 20])}  # rows that see nothing
    want = attention(*tensors, **options)
    for name, (out, holder) in caller_arrays(want.shape).items():
        got = attention(*tensors, out=out, **options)
        assert np.shares_memory(got, out), name
        compare.assert_same_bits(out, want)
        assert np.isnan(holder).sum() == holder.size - out.size, name


@pytest.mark.parametrize("shape", [(2, 3, 5, 0), (0, 3, 5, 4), (2, 3, 0, 4)])
def test_out_of_nothing(room, attention, shape):
    query, value = np.zeros((*shape[:3], 8), np.float32), np.zeros(shape, np.float32)
    out = np.empty(shape, np.float32)
    assert attention(query, query, value, out=out) is out


def test_out_where_there_are_no_keys(room, attention):
    query, key, value = inputs.tensors(n=6, dim=4)
    if attention.name != "improved_causal":
        out = np.full((1, 1, 6, 4), np.nan, np.float32)
        attention(query, key[:, :, :0], value[:, :, :0], out=out)
        assert not out.any()


# Empty and short


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0, "n": 5},
        {"n": 0},
        {"n": 0, "n_keys": 7},
        {"n": 7, "n_keys": 0},
        {"n": 5, "width": 0},
        {"batch": 0, "n": 0, "width": 0},
        {"heads": 0, "n": 5},
    ],
    ids=str,
)
def test_empty(room, attention, shape):
    """Nothing in, nothing out; no keys give zeros."""
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "n": 5, "dim": 8, "width": 8, **shape}
    sizes["n_keys"] = sizes.get("n_keys", sizes["n"])
    b, h, n, m, d, e = (sizes[name] for name in ("batch", "heads", "n", "n_keys", "dim", "width"))
    kv_heads = min(h, 2)
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal(s).astype(np.float32) for s in ((b, h, n, d), (b, kv_heads, m, d), (b, kv_heads, m, e))
    )
    if attention.name == "improved_causal" and n != m:
        with pytest.raises(pyclattn.errors.ShapeError):
            attention(query, key, value)
        return
    got = attention(query, key, value)
    assert got.shape == (b, h, n, e)
    assert got.dtype == np.float32
    if m == 0:
        assert not got.any()


def test_empty_clustering(room):
    for shape in ((0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)):
        x = np.zeros(shape, np.float32)
        assert hash_queries(x).shape == shape[:3]
        for found in (cluster_queries(x, n_clusters=3), kmeans(x, n_clusters=3)):
            assert found.labels.shape == shape[:3]
            n_clusters = found.counts.shape[2]
            assert n_clusters <= max(1, min(3, shape[2]))
            assert found.counts.shape == (*shape[:2], n_clusters)
            assert found.centroids.shape == (*shape[:2], n_clusters, 4)
            assert not found.counts.any()


def test_no_sequences_at_all(room, attention):
    x = np.zeros((2, 0, 4), np.float32)
    for offsets in ([0], [0, 0], [0, 0, 0]):
        assert attention(x, x, x, offsets=offsets).shape == (2, 0, 4)
        assert cluster_queries(x, n_clusters=3, offsets=offsets).counts.shape[:2] == (len(offsets) - 1, 2)


def test_one_token(room, attention):
    """Attention to a single key is its value."""
    query, key, value = inputs.tensors(batch=2, heads=2, n=1, dim=8, width=5)
    compare.assert_close(attention(query, key, value), value, 1e-6)


def test_no_keys_but_padding(room, attention):
    """Rows that may attend to nothing are zeros, in whole batches and in single entries."""
    tensors = inputs.tensors(batch=3, heads=2, n=12, dim=8)
    everything = np.ones((3, 12), bool)
    assert not attention(*tensors, key_padding_mask=everything).any()
    some = everything.copy()
    some[1, 3:] = False
    got = attention(*tensors, key_padding_mask=some)
    assert not got[[0, 2]].any()
    assert got[1].any()
    if attention.name in CLUSTERED:
        got = attention(*tensors, query_padding_mask=everything, key_padding_mask=some)
        assert not got.any()


def test_more_clusters_than_queries_and_more_topk_than_keys(room):
    tensors = inputs.tensors(batch=2, heads=2, n=9, n_keys=7, dim=8)
    few = pyclattn.clustered_attention(*tensors, n_clusters=9)
    exact = pyclattn.scaled_dot_product_attention(*tensors)
    compare.assert_close(few, exact, compare.CLUSTERED)
    for n_clusters in (10, 1000, 10**6):
        got = pyclattn.clustered_attention(*tensors, n_clusters=n_clusters, n_iterations=2)
        compare.assert_close(got, exact, compare.CLUSTERED)
    got = pyclattn.improved_clustered_attention(*tensors, n_clusters=100, topk=100)
    compare.assert_close(got, exact, compare.CLUSTERED)


def test_absurd_counts_take_no_memory(room):
    """At most the sequence's length is used: no array of the asked size is made."""
    tensors = inputs.tensors(n=9, dim=8)
    want = pyclattn.scaled_dot_product_attention(*tensors)
    got = pyclattn.improved_clustered_attention(*tensors, n_clusters=10**12, topk=10**12)
    compare.assert_close(got, want, compare.CLUSTERED)


def test_identical_queries(room):
    """All codes are equal: one cluster gets every row, and the others their codes from the seed."""
    query, key, value = inputs.tensors(heads=2, n=40, dim=8)
    query[:] = query[:, :, :1]
    want = pyclattn.scaled_dot_product_attention(query, key, value)
    for name in CLUSTERED:
        if not name.endswith("causal"):
            function, options = ATTENTION[name]
            compare.assert_close(function(query, key, value, **options), want, compare.CLUSTERED)


def test_zeros(room, attention):
    """Zero queries have no direction: every key weighs the same."""
    query, key, value = inputs.tensors(n=10, dim=8)
    got = attention(np.zeros_like(query), key, value)
    if not attention.name.endswith("causal"):
        mean = np.broadcast_to(value.astype(np.float64).mean(axis=2, keepdims=True), got.shape)
        compare.assert_close(got, mean, compare.CLUSTERED)
    assert not attention(query, key, np.zeros_like(value)).any()


# Extreme numbers


@pytest.mark.parametrize("scale", [1e30, -1e30, 2e38, 3.4e38])
def test_scale_takes_tiny_inputs_back(room, attention, scale):
    """The logits are ordinary, whatever the factor; one that float32 cannot hold in base 2 may be refused."""
    query, key, value = inputs.tensors(n=20, dim=8)
    small = np.float32(1 / np.sqrt(abs(scale)))
    options = {}
    if attention.name in CLUSTERED and attention.name not in ("kmeans", *BY_KEYS):  # no thresholds: codes of directions
        planes = naive.drawn_planes(0, 63, 8)
        planes[:, -1] = 0
        options = {"planes": planes}
    want = attention(query, key, value, scale=float(np.sign(scale)), **options)
    try:
        got = attention(query * small, key * small, value, scale=scale, **options)
    except pyclattn.errors.ArgumentError:
        if scale <= 2e38:
            raise
    else:
        compare.assert_close(got, want, 1e-5)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e37])
def test_values_of_every_size(room, attention, size):
    query, key, value = inputs.tensors(n=20, dim=8)
    want = attention(query, key, value).astype(np.float64) * size
    compare.assert_close(attention(query, key, (value * size).astype(np.float32)), want, 1e-5)


def test_a_huge_bias_decides(room):
    """finfo.max as a bias: its keys share everything."""
    tensors = inputs.tensors(n=8, n_keys=300, dim=8)
    bias = np.zeros((8, 300), np.float32)
    bias[:, [3, 290]] = np.finfo(np.float32).max
    got = pyclattn.scaled_dot_product_attention(*tensors, attn_mask=bias)
    want = np.broadcast_to(tensors[2][:, :, [3, 290]].astype(np.float64).mean(axis=2, keepdims=True), got.shape)
    compare.assert_close(got, want, 1e-5)


# NaN and infinity stay where they are


BAD = [np.nan, np.inf, -np.inf]


def unmoved(attention, other):
    """Entries and heads that keep their bits: co-clustered heads share a threshold with all heads of their entry."""
    return other.all(axis=1, keepdims=True) | (attention.name != "coclustered")


@pytest.mark.parametrize("bad", BAD)
def test_bad_query(room, attention, bad):
    """A query that is not finite reaches its own row; of clustered attention, the rows of its cluster.

    Clusters of what the keys see move all where a covariance is no number.
    """
    tensors = inputs.tensors(batch=2, heads=2, n=60, dim=8)
    clean = attention(*tensors)
    query = tensors[0].copy()
    query[1, 0, 17, 3] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        got = attention(query, *tensors[1:])
        reach = np.zeros(clean.shape[:3], bool)
        reach[1, 0, 17] = True
        if attention.name in BY_KEYS:
            reach[1, 0] = True
        elif attention.name in CLUSTERED:
            how = {"clustering": "kmeans"} if attention.name == "kmeans" else {}
            labels = cluster_queries(query, n_clusters=5, **how).labels
            reach[1, 0] = labels[1, 0] == labels[1, 0, 17]
    assert np.isfinite(got[~reach]).all()
    other = np.ones((2, 2), bool)
    other[1, 0] = False
    other &= unmoved(attention, other)
    compare.assert_same_bits(got[other], clean[other])
    if attention.name.startswith("exact"):
        compare.assert_close(got[~reach], clean[~reach], 1e-6)
        assert np.isnan(got[1, 0, 17]).any() or np.isinf(bad)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", ["key", "value"])
def test_bad_key_or_value_row(room, attention, which, bad):
    """It reaches the queries that may attend to it; other heads and entries are bit for bit as without it."""
    tensors = inputs.tensors(batch=2, heads=4, kv_heads=2, n=60, dim=8)
    clean = attention(*tensors)
    soiled = [x.copy() for x in tensors]
    soiled[1 if which == "key" else 2][1, 0, 23] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        got = attention(*soiled)
    other = np.ones((2, 4), bool)
    other[1, :2] = False
    assert np.isfinite(got[other]).all()
    other &= unmoved(attention, other)
    compare.assert_same_bits(got[other], clean[other])
    if attention.name.endswith("causal"):
        if attention.name == "exact_causal" or which == "value":
            compare.assert_close(got[1, :2, :23], clean[1, :2, :23], 1e-6)
        assert np.isfinite(got[1, :2, :23]).all() or attention.name == "improved_causal"
    if attention.name == "exact" and np.isnan(bad):
        assert np.isnan(got[1, :2]).any(axis=-1).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("kind", ["bool", "bias", "causal", "bool_keys"])
def test_bad_rows_behind_masks(room, which, bad, kind):
    """Queries that may not attend to row 23 or 300 never see what stands there."""
    tensors = inputs.tensors(heads=2, n=400, dim=8)
    may = np.random.default_rng(0).random((400, 400)) < 0.5
    may[:, [23, 300]] = (np.arange(400) % 3 == 0)[:, None]
    options = {"attn_mask": may}
    if kind == "bias":
        options = {"attn_mask": np.where(may, 0, -np.inf).astype(np.float32)}
    elif kind == "causal":
        options, may = {"is_causal": True}, np.tri(400, dtype=bool)
    elif kind == "bool_keys":
        may = np.broadcast_to((np.arange(400) != 23) & (np.arange(400) != 300), (400, 400))
        options = {"attn_mask": may[:1]}
    clean = pyclattn.scaled_dot_product_attention(*tensors, **options)
    soiled = [x.copy() for x in tensors]
    soiled[1 if which == "key" else 2][0, 1, [23, 300]] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        got = pyclattn.scaled_dot_product_attention(*soiled, **options)
    blind = ~may[:, [23, 300]].any(axis=1)
    assert blind.any()
    compare.assert_close(got[0, 1, blind], clean[0, 1, blind], 1e-6)
    compare.assert_same_bits(got[0, 0], clean[0, 0])
    if np.isnan(bad) and kind != "bool_keys":
        assert np.isnan(got[0, 1, ~blind]).all()


@pytest.mark.parametrize("bad", BAD)
def test_bad_padding_reaches_nothing(room, attention, bad):
    """What stands in padded rows is never read: the same bits as with zeros there."""
    tensors = inputs.tensors(batch=3, heads=2, n=40, dim=8)
    for mask in (inputs.padding(3, 40, lengths=[40, 11, 0]), inputs.padding(3, 40, holes=0.4)):
        options = {"key_padding_mask": mask}
        if attention.name in CLUSTERED:
            options["query_padding_mask"] = mask
        clean, soiled = ([x.copy() for x in tensors] for _ in range(2))
        for number in (0, 1, 2) if attention.name in CLUSTERED else (1, 2):
            clean[number].swapaxes(1, 2)[mask] = 0
            soiled[number].swapaxes(1, 2)[mask] = bad
        compare.assert_same_bits(attention(*soiled, **options), attention(*clean, **options))


def test_bad_padding_of_clustered_rows(room):
    x, _, _ = inputs.tensors(batch=2, heads=2, n=40, dim=8)
    mask = inputs.padding(2, 40, holes=0.4)
    soiled = x.copy()
    soiled.swapaxes(1, 2)[mask] = np.nan
    got, want = (cluster_queries(t, n_clusters=5, query_padding_mask=mask) for t in (soiled, x))
    compare.assert_same_bits(got.labels, want.labels)
    compare.assert_same_bits(got.centroids, want.centroids)
    got, want = (kmeans(t, n_clusters=5, padding_mask=mask) for t in (soiled, x))
    compare.assert_same_bits(got.labels, want.labels)
    compare.assert_same_bits(got.centroids, want.centroids)


def test_packed_neighbours_do_not_leak(room, attention):
    """A sequence full of NaN changes no bit of the sequences packed beside it."""
    query, key, value = (x[0] for x in inputs.tensors(heads=2, n=90, dim=8))
    offsets = [0, 30, 60, 90]
    clean = attention(query, key, value, offsets=offsets)
    soiled = [x.copy() for x in (query, key, value)]
    for x in soiled:
        x[:, 30:60] = np.nan
    with np.errstate(invalid="ignore"):
        got = attention(*soiled, offsets=offsets)
    compare.assert_same_bits(got[:, :30], clean[:, :30])
    compare.assert_same_bits(got[:, 60:], clean[:, 60:])


def test_all_nan_returns(room, attention):
    """No clustering or selection hangs or leaves its arrays on numbers that compare with nothing."""
    tensors = [np.full_like(x, np.nan) for x in inputs.tensors(heads=2, n=70, dim=8)]
    with np.errstate(invalid="ignore"):
        assert attention(*tensors).shape == (1, 2, 70, 8)
        found = kmeans(tensors[0], n_clusters=5)
    assert ((found.labels >= 0) & (found.labels < 5)).all()
    assert found.counts.sum() == 2 * 70
