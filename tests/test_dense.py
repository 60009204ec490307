"""Dense layers against the definition, in every room and at every instruction set."""

import compare
import naive
import numpy as np
import pytest

from pyclattn import _dispatch
from pyclattn.errors import ArgumentError, BackendError, DTypeError, ShapeError
from pyclattn.functional.dense import ACTIVATIONS, aligned, linear, pack_weight


def case(n_rows=11, depth=9, width=50, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (n_rows, depth), (depth, width), (width,)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_the_definition(room, activation):
    x, weight, bias = case()
    want = naive.dense(x, weight, bias, activation)
    compare.assert_close(linear(x, pack_weight(weight), bias, activation=activation), want, compare.EXACT)


@pytest.mark.parametrize("depth", [1, 7, 16, 45, 160])
@pytest.mark.parametrize("width", [1, 49])
def test_a_column_alone(room, width, depth):
    """49 columns are panels of 48, 24 or 8 and one more, which is a product of whole rows."""
    x, weight, bias = case(38, depth, width)
    want = naive.dense(x, weight, bias, "relu")
    compare.assert_close(linear(x, pack_weight(weight), bias, activation="relu"), want, compare.EXACT)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_from_end_to_end(room, activation):
    """Relative to the largest of 1 and the value: what is nearly 0 may be 0."""
    x = np.concatenate([np.linspace(-40, 40, 1601), [-3e38, -1e5, -1e-30, 0, 1e-30, 1e5, 1e38]]).astype(np.float32)
    got = linear(x[:, None], pack_weight(np.ones((1, 1), np.float32)), activation=activation)[:, 0]
    want = np.array([naive.activated(max(float(v), -1e30), activation) for v in x])
    if activation in ("", "relu"):
        compare.assert_same_bits(got, (x if not activation else np.maximum(x, 0)))
    else:
        assert np.abs((got - want) / np.maximum(1, np.abs(want))).max() < 3e-7


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_where_it_is(room, activation):
    x, weight, bias = case()
    x[3, 2] = np.nan
    got = linear(x, pack_weight(weight), bias, activation=activation)
    assert np.isnan(got[3]).all()
    assert not np.isnan(np.delete(got, 3, axis=0)).any()


def test_the_same_bits_for_any_number_of_threads_and_rows(room):
    x, weight, bias = case(300, 160, 200)
    packed = pack_weight(weight)
    want = linear(x, packed, bias, activation="gelu", n_threads=1)
    for n_threads in (2, 3, 7):
        compare.assert_same_bits(linear(x, packed, bias, activation="gelu", n_threads=n_threads), want)
    for first, last in ((0, 1), (3, 20), (255, 300)):
        compare.assert_same_bits(linear(x[first:last], packed, bias, activation="gelu"), want[first:last])


@pytest.mark.parametrize("width", [48, 50])
def test_a_large_output_written_past_the_cache(width):
    """The same bits as of smaller ones, at aligned and other places."""
    x, weight, bias = case(90_000, 3, width)
    packed = pack_weight(weight)
    for shift in (0, 3):
        out = aligned((x.shape[0] * width + shift,))[shift:].reshape(-1, width)
        linear(x, packed, bias, n_threads=2, out=out)
        for rows in np.array_split(np.arange(len(x)), 3):
            compare.assert_same_bits(out[rows], linear(x[rows], packed, bias))


def test_types_strides_and_given_output(room):
    x, weight, bias = case()
    want = linear(x, pack_weight(weight), bias)
    wide = np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)
    compare.assert_same_bits(linear(wide[::2, ::2], pack_weight(np.asfortranarray(weight)), bias), want)
    compare.assert_same_bits(linear(x.astype(np.float64), pack_weight(weight.astype(np.float64)), bias), want)
    out = np.full((11, 60), 7, np.float32)
    assert linear(x, pack_weight(weight), bias, out=out[:, 5:55]).base is out
    compare.assert_same_bits(out[:, 5:55].copy(), want)
    assert (out[:, :5] == 7).all()
    assert (out[:, 55:] == 7).all()
    for shape in ((0, 9, 4), (3, 9, 0), (3, 0, 4)):
        n_rows, depth, width = shape
        got = linear(np.ones((n_rows, depth), np.float32), pack_weight(np.ones((depth, width), np.float32)))
        assert got.shape == (n_rows, width)
        assert not got.any()


@pytest.mark.parametrize("activation", ["", "gelu"])
def test_a_residual_is_added_last(room, activation):
    x, weight, bias = case()
    wide = np.random.default_rng(1).standard_normal((11, 70), dtype=np.float32)
    residual = wide[:, 10:60]
    want = naive.dense(x, weight, bias, activation) + residual
    packed = pack_weight(weight)
    got = linear(x, packed, bias, activation=activation, residual=residual)
    compare.assert_close(got, want, compare.EXACT)
    taken = residual.copy()
    assert linear(x, packed, bias, activation=activation, residual=taken, out=taken) is taken
    compare.assert_same_bits(taken, got)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "head_dim"),
    [(1, 40, 2, 32), (3, 7, 5, 10), (2, 33, 1, 50), (5, 15, 3, 64), (2, 41, 4, 16), (3, 11, 2, 80)],
)
def test_heads_are_dealt_out(room, batch, length, heads, head_dim):
    x, weight, bias = case(batch * length, 9, heads * head_dim)
    want = linear(x, pack_weight(weight), bias).reshape(batch, length, heads, head_dim)
    out = np.full((batch, heads, length, head_dim), 7, np.float32)
    linear(x, pack_weight(weight), bias, out=out.swapaxes(1, 2))
    compare.assert_same_bits(out, np.ascontiguousarray(want.swapaxes(1, 2)))
    residual = x @ weight
    want = linear(x, pack_weight(weight), bias, residual=residual).reshape(batch, length, heads, head_dim)
    linear(x, pack_weight(weight), bias, residual=residual, out=out.swapaxes(1, 2))
    compare.assert_same_bits(out, np.ascontiguousarray(want.swapaxes(1, 2)))
    with pytest.raises(ShapeError, match="out must have shape"):
        linear(x, pack_weight(weight), out=np.empty((batch, length, heads, head_dim + 1), np.float32))


def test_a_bound_call_reads_what_the_arrays_hold_then():
    x, weight, bias = case()
    packed, out = pack_weight(weight), np.empty((11, 50), np.float32)
    call = packed.bind(x, bias, out=out)
    x *= 2
    bias += 1
    call()
    compare.assert_same_bits(out, linear(x, packed, bias))


def test_bad_calls():
    x, weight, bias = case()
    packed = pack_weight(weight)
    with pytest.raises(ShapeError, match=r"9, got shape \(11, 8\)"):
        linear(x[:, :8], packed)
    with pytest.raises(ShapeError, match=r"bias must have shape \(50,\), got \(49,\)"):
        linear(x, packed, bias[1:])
    with pytest.raises(ShapeError, match=r"residual must have shape \(11, 50\), got \(1, 50\)"):
        linear(x, packed, residual=bias[None])
    with pytest.raises(ArgumentError, match=r"activation must be one of .* got 'mish'"):
        linear(x, packed, activation="mish")
    with pytest.raises(ShapeError, match="weight must have rank 2"):
        pack_weight(bias)
    with pytest.raises(DTypeError, match="x must be float32"):
        linear(x.astype(np.int64), packed)
    with pytest.raises(ShapeError, match=r"out must have shape \(11, 50\), got \(11, 51\)"):
        linear(x, packed, out=np.empty((11, 51), np.float32))


def test_a_weight_packed_for_other_instructions_is_refused():
    from pyclattn._ext import isa

    x, weight, _ = case()
    levels = isa.available()
    with _dispatch.forced(isa=levels[0]):
        packed = pack_weight(weight)
    with _dispatch.forced(isa=levels[-1]):
        if len(levels) > 1:
            with pytest.raises(BackendError, match="pack it again"):
                linear(x, packed)
        else:
            linear(x, packed)
