"""``out=``: the result lands in the caller's array, whatever its layout; one that cannot hold it is refused."""

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional import coclustered

FUNCTIONS = {
    "exact": pyclattn.scaled_dot_product_attention,
    "clustered": lambda *a, **k: pyclattn.clustered_attention(*a, n_clusters=8, **k),
    "improved": lambda *a, **k: pyclattn.improved_clustered_attention(*a, n_clusters=8, topk=5, **k),
    "metric": lambda *a, **k: pyclattn.improved_clustered_attention(*a, n_clusters=8, clustering="metric", **k),
    "coclustered": lambda *a, **k: pyclattn.coclustered_attention(*a, n_exact=5, **k),
    "cast": lambda *a, **k: _cast(*a, **k),
}


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def attention(request, monkeypatch):
    monkeypatch.setattr(coclustered, "SHORTEST", 8)
    return request.param


def _cast(query, key, value, *, query_padding_mask=None, **more):
    """Of itself, so what pads queries pads keys."""
    rng = np.random.default_rng(1)
    surrogates, gate = rng.standard_normal((5, 3, 16)), rng.standard_normal((2, 100))
    more = more if query_padding_mask is None else {**more, "key_padding_mask": query_padding_mask}
    gate = gate[0] if "offsets" in more else gate
    return pyclattn.cast_attention(query, key, value, surrogates, gate, cluster_size=9, **more)


def _inputs(width=16):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((2, 3, 100, w), dtype=np.float32) for w in (16, 16, width))


@pytest.mark.parametrize("width", [16, 5])
def test_every_layout_with_contiguous_rows(attention, width):
    tensors = _inputs(width)
    want = attention(*tensors)
    wide = np.full((2, 100, 3, 2 * width), np.nan, np.float32)
    for out in (
        np.empty_like(want),
        wide.swapaxes(1, 2)[..., :width],
        np.empty((100, 2, 3, width), "f4").transpose(1, 2, 0, 3),
    ):
        assert attention(*tensors, out=out) is out
        np.testing.assert_array_equal(out, want)
    assert np.isnan(wide[..., width:]).all()


def test_packed(attention):
    tensors = [x[0] for x in _inputs()]
    out = np.empty((3, 100, 16), np.float32)
    got = attention(*tensors, offsets=[0, 20, 20, 100], out=out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(out, attention(*tensors, offsets=[0, 20, 20, 100]))


def test_padded_queries_are_written_as_zeros(attention):
    if attention is FUNCTIONS["exact"]:
        return  # takes no padding of queries
    tensors = _inputs()
    out = np.full((2, 3, 100, 16), np.nan, np.float32)
    padding = np.zeros((2, 100), bool)
    padding[0, 40:] = True
    attention(*tensors, query_padding_mask=padding, out=out)
    assert not out[0, :, 40:].any()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("layout", ["the same", "one row", "packed"])
def test_inputs_are_not_overwritten(attention, which, layout):
    """A result over what other threads still read would be wrong, so it is refused; inputs stay as they are."""
    wide = [np.repeat(x, 2, axis=2) for x in _inputs()]
    tensors, own = [x[:, :, :100] for x in wide], wide[["query", "key", "value"].index(which)]
    out, options = own[:, :, 99:199] if layout == "one row" else own[:, :, :100], {}
    if layout == "packed":
        tensors, out, options = [x[0] for x in tensors], out[0], {"offsets": [0, 100]}
    before = [x.copy() for x in tensors]
    with pytest.raises(ArgumentError, match=f"out must not overlap {which}, got arrays that share memory"):
        attention(*tensors, **options, out=out)
    for x, y in zip(tensors, before):
        np.testing.assert_array_equal(x, y)


def test_out_beside_the_inputs_in_one_array(attention):
    """As a fused projection lays them out: between each other, without a number in common."""
    fused = np.empty((2, 100, 4, 3, 16), np.float32)
    views = [fused[:, :, i].swapaxes(1, 2) for i in range(4)]
    for view, x in zip(views, _inputs()):
        view[:] = x
    want = attention(*_inputs())
    np.testing.assert_array_equal(attention(*views[:3], out=views[3]), want)


@pytest.mark.parametrize(
    ("out", "error", "says"),
    [
        (
            np.empty((2, 3, 100, 15), np.float32),
            ShapeError,
            r"out must have shape \(2, 3, 100, 16\), got \(2, 3, 100, 15\)",
        ),
        (np.empty((2, 3, 100, 16)), DTypeError, "out must be a float32 array, got float64"),
        ([0.0], DTypeError, "out must be a float32 array, got list"),
        (np.empty((2, 3, 16, 100), np.float32).swapaxes(2, 3), ArgumentError, "out must have contiguous rows"),
        (np.broadcast_to(np.float32(0), (2, 3, 100, 16)), ArgumentError, "out must be writable"),
        (
            np.lib.stride_tricks.as_strided(np.empty((100, 16), np.float32), (2, 3, 100, 16), (0, 0, 64, 4)),
            ArgumentError,
            "out must have a place for each row",
        ),
    ],
)
def test_refused(attention, out, error, says):
    with pytest.raises(error, match=says):
        attention(*_inputs(), out=out)
