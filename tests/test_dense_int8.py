"""Dense layers on int8 weights against the definition, in every room and at every instruction set."""

import compare
import naive
import numpy as np
import pytest
from test_dense_bfloat16 import assert_rough, check_rough_gelu

from pyclattn import _dispatch
from pyclattn.errors import ArgumentError, BackendError, DTypeError, ShapeError
from pyclattn.functional.dense import linear, pack_weight
from pyclattn.functional.dense_int8 import LARGEST_DEPTH, pack_int8, quantise_weight


def case(n_rows=11, depth=9, width=50, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (n_rows, depth), (depth, width), (width,), (n_rows, width)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


@pytest.mark.parametrize("activation", ["", "gelu"])
def test_against_the_definition(room, activation):
    x, weight, bias, residual = case()
    codes, scales = quantise_weight(weight)
    want = naive.dense_int8(x, codes, scales, bias, activation) + residual
    got = linear(x, pack_int8(codes, scales), bias, activation=activation, residual=residual)
    if activation == "gelu":
        assert_rough(got, want)
    else:
        compare.assert_close(got, want, compare.EXACT)


def test_gelu_is_rough_but_nowhere_far_off(room):
    check_rough_gelu(lambda weight: pack_int8(*quantise_weight(weight)))


def test_error_is_that_of_two_roundings(room):
    """Half a step of 127 in the row and in the column, beside the float32 product."""
    x, weight, bias, _ = case(40, 256, 96)
    want = x.astype(np.float64) @ weight + bias
    got = linear(x, pack_int8(*quantise_weight(weight)), bias)
    assert 0.001 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.02


def int8_sets():
    try:
        from pyclattn._ext import int8
    except ImportError:
        return []
    return int8.available()


@pytest.mark.parametrize("name", int8_sets())
def test_every_int8_instruction_set_gives_the_same_bits(name):
    """Also those that a wider one hides."""
    from pyclattn._ext import int8

    x, weight, bias, _ = case(70, 131, 100)
    codes, scales = quantise_weight(weight)
    with _dispatch.forced("reference"):
        want = linear(x, pack_int8(codes, scales), bias)
    with _dispatch.forced(isa={"avxvnni": "avx2", "avx512vnni": "avx512"}.get(name, name)):
        int8.select(name)
        try:
            assert int8.selected() == name
            got = linear(x, pack_int8(codes, scales), bias)
        finally:
            int8.select("auto")
    compare.assert_same_bits(got, want)


def test_instructions_that_are_not_there():
    from pyclattn._ext import int8

    with pytest.raises(BackendError, match=r"must be auto or one of baseline.*got 'amx'"):
        int8.select("amx")
    assert int8.asked() == "auto"
    int8.select("baseline")
    try:
        with _dispatch.forced(isa="baseline"):
            assert int8.selected() == "baseline"
        if int8.available() != ["baseline"]:
            with pytest.raises(BackendError, match="PYCLATTN_ISA and PYCLATTN_INT8_ISA must go together"):
                int8.selected()
    finally:
        int8.select("auto")


def test_the_same_bits_for_any_number_of_threads_and_rows(room):
    x, weight, bias, _ = case(300, 160, 200)
    packed = pack_int8(*quantise_weight(weight))
    want = linear(x, packed, bias, activation="gelu", n_threads=1)
    for n_threads in (2, 3, 7):
        compare.assert_same_bits(linear(x, packed, bias, activation="gelu", n_threads=n_threads), want)
    for first, last in ((0, 1), (3, 20), (255, 300)):
        compare.assert_same_bits(linear(x[first:last], packed, bias, activation="gelu"), want[first:last])


def test_what_is_not_finite_stays_in_its_row(room):
    x, weight, bias, _ = case()
    x[3, 2], x[5, 8] = np.nan, -np.inf
    got = linear(x, pack_int8(*quantise_weight(weight)), bias)
    assert np.isnan(got[[3, 5]]).all()
    assert np.isfinite(np.delete(got, [3, 5], axis=0)).all()


def test_rows_of_any_size(room):
    """Zeros and numbers near them give the bias; the largest ones are quantised as any."""
    x, weight, bias, _ = case(4, 16, 24)
    x[0], x[1] = 0, np.float32(1e-38) * x[1]
    x[2] *= np.float32(1e37)
    packed = pack_int8(*quantise_weight(weight))
    got = linear(x, packed, bias)
    compare.assert_same_bits(got[:2], np.stack([bias, bias]))
    compare.assert_close(got[2], linear(x[2:3] / np.float32(2.0**100), packed)[0] * np.float32(2.0**100), 1e-6)


def test_shapes_without_rows_columns_or_depth(room):
    for n_rows, depth, width in ((0, 9, 4), (3, 9, 0), (3, 0, 4)):
        packed = pack_int8(np.ones((depth, width), np.int8), np.ones(width, np.float32))
        got = linear(np.ones((n_rows, depth), np.float32), packed)
        assert got.shape == (n_rows, width)
        assert not got.any()
        assert packed.bind_sums(np.ones((n_rows, depth), np.uint8))().shape == (n_rows, width)


def test_sums_as_deep_as_they_may_be(room):
    """The largest numbers that can meet fill an int32 nearly."""
    codes = np.full((1, LARGEST_DEPTH), 255, np.uint8)
    packed = pack_int8(np.full((LARGEST_DEPTH, 1), -128, np.int8), np.ones(1, np.float32))
    assert packed.bind_sums(codes)()[0, 0] == -255 * 128 * LARGEST_DEPTH
    with pytest.raises(ShapeError, match="depth of at most 65536"):
        pack_int8(np.zeros((LARGEST_DEPTH + 1, 1), np.int8), np.ones(1, np.float32))


def test_memory_of_a_packed_weight():
    weight = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    packed = pack_int8(*quantise_weight(weight))
    assert packed.shape == (768, 768)
    assert packed.nbytes < 0.26 * pack_weight(weight).nbytes


def with_number(number, row=3, column=2):
    weight = np.random.default_rng(0).standard_normal((64, 5), dtype=np.float32)
    weight[row, column] = number
    return weight


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (with_number(np.nan), "NaN or an infinity"),
        (with_number(np.inf), "NaN or an infinity"),
        (np.zeros((4, 4), np.float32), "all of it is zero"),
        (with_number(1000), r"of the rest would be lost, more than 90%"),
        (with_number(1e9), r"that 100% of the rest would be lost"),
    ],
)
def test_weights_that_int8_cannot_hold(weight, message):
    with pytest.raises(ArgumentError, match=message):
        quantise_weight(weight)


def test_weights_that_int8_can_hold():
    """A column of zeros, and one of a single number, are exact."""
    weight = with_number(20)
    weight[:, 0] = 0
    weight[:, 1] = 0
    weight[7, 1] = 1e5
    codes, scales = quantise_weight(weight)
    np.testing.assert_allclose(codes[:, :2] * scales[:2], weight[:, :2], rtol=1e-6)
    assert np.abs(codes * scales - weight).max() <= 20 / 127 / 2 * 1.001


def test_bad_calls():
    x, weight, bias, _ = case()
    packed = pack_int8(*quantise_weight(weight))
    with pytest.raises(ShapeError, match=r"9, got shape \(11, 8\)"):
        linear(x[:, :8], packed)
    with pytest.raises(ShapeError, match=r"bias must have shape \(50,\), got \(49,\)"):
        linear(x, packed, bias[1:])
    with pytest.raises(DTypeError, match="codes must be int8, got float32"):
        pack_int8(weight, np.ones(50, np.float32))
    with pytest.raises(ShapeError, match=r"scales must have shape \(50,\), got \(9,\)"):
        pack_int8(np.zeros((9, 50), np.int8), np.ones(9, np.float32))
    with pytest.raises(DTypeError, match="x must be uint8, got float32"):
        packed.bind_sums(x)
    with pytest.raises(ShapeError, match=r"9, got shape \(11, 8\)"):
        packed.bind_sums(np.zeros((11, 8), np.uint8))
    with pytest.raises(ShapeError, match=r"out must be an int32 array of shape \(11, 50\), got int64"):
        packed.bind_sums(np.zeros((11, 9), np.uint8), out=np.zeros((11, 50), np.int64))
    with pytest.raises(ShapeError, match="weight must have rank 2"):
        quantise_weight(bias)


def test_a_weight_packed_for_other_instructions_is_refused():
    from pyclattn._ext import isa

    x, weight, _, _ = case()
    levels = isa.available()
    with _dispatch.forced(isa=levels[0]):
        packed = pack_int8(*quantise_weight(weight))
    if len(levels) > 1:
        with _dispatch.forced(isa=levels[-1]), pytest.raises(BackendError, match="pack it again"):
            linear(x, packed)


@pytest.mark.parametrize("head_dim", [20, 32])  # 32: whole vectors of every instruction set
def test_heads_are_written_where_they_belong(room, head_dim):
    x, weight, bias, _ = case(2 * 6, 9, 3 * head_dim)
    packed = pack_int8(*quantise_weight(weight))
    heads = np.zeros((2, 3, 6, head_dim), np.float32)
    packed.bind(x, bias, out=heads.swapaxes(1, 2))()
    compare.assert_same_bits(heads, linear(x, packed, bias).reshape(2, 6, 3, head_dim).swapaxes(1, 2).copy())
