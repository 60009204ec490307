"""Dense layers in bfloat16 against the definition; where a room cannot, it says so and the reference stands in."""

import compare
import naive
import naive_bfloat16
import numpy as np
import pytest
from conftest import ROOMS
from test_bfloat16 import whole

from pyclattn import _dispatch
from pyclattn.errors import BackendError
from pyclattn.functional.dense import ACTIVATIONS, linear
from pyclattn.functional.dense_bfloat16 import pack_bfloat16, rounded_bits
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.reference._rounding import to_bfloat16


def assert_rough(got, want):
    """What GELU is behind rounded products."""
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-4)


@pytest.fixture(params=ROOMS, ids=str)
def can_multiply(request):
    with request.param.forced():
        if not missing_bfloat16():
            yield request.param
            return
        with pytest.raises(BackendError, match="bfloat16"):
            linear(np.ones((2, 3), np.float32), pack_bfloat16(np.ones((3, 4), np.float32)))
    with _dispatch.forced("reference"):
        yield request.param


def case(n_rows=11, depth=9, width=50, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in ((n_rows, depth), (depth, width), (width,)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_the_definition(can_multiply, activation):
    x, weight, bias = case()
    want = naive_bfloat16.dense(x, weight, bias, activation)
    got = linear(x, pack_bfloat16(weight), bias, activation=activation)
    if activation == "gelu":
        assert_rough(got, want)
    else:
        compare.assert_close(got, want, compare.EXACT)
    assert compare.relative_error(got, naive.dense(x, weight, bias, activation)) > 1e-5, "nothing was rounded"


def test_gelu_is_rough_but_nowhere_far_off(can_multiply):
    check_rough_gelu(pack_bfloat16)


def check_rough_gelu(pack):
    """Of any number, here the bias; NaN stays, and what is very negative becomes 0."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e30, -300, 300, 1e30, np.nan]]).astype(np.float32)
    got = linear(np.zeros((1, 2), np.float32), pack(np.ones((2, len(x)), np.float32)), x, activation="gelu")[0]
    want = np.array([naive.activated(float(number), "gelu") for number in x])
    assert np.isnan(got[-1])
    assert_rough(got[:-1], want[:-1])


@pytest.mark.parametrize(
    ("n_rows", "depth", "width"), [(1, 1, 1), (1, 64, 48), (33, 5, 47), (300, 33, 97), (9, 2, 200)]
)
def test_sums_of_whole_numbers_are_exact(can_multiply, n_rows, depth, width):
    x, weight = whole(n_rows, depth, most=256, seed=1), whole(depth, width, most=256, seed=2)
    residual = whole(n_rows, width, most=1000, seed=3)
    want = (x.astype(np.int64) @ weight.astype(np.int64) + residual.astype(np.int64)).astype(np.float32)
    packed = pack_bfloat16(weight)
    assert packed.shape == (depth, width)
    for n_threads in (1, 3):
        compare.assert_same_bits(linear(x, packed, residual=residual, n_threads=n_threads), want)
    if width % 4 == 0:  # heads, dealt out
        out = np.full((1, 4, n_rows, width // 4), 7, np.float32).swapaxes(1, 2)
        packed.bind(x, residual=residual, out=out)()
        compare.assert_same_bits(out.reshape(n_rows, width), want)


def test_the_same_bits_for_any_number_of_threads_and_rows(can_multiply):
    x, weight, bias = case(600, 161, 200)
    packed = pack_bfloat16(weight)
    want = linear(x, packed, bias, activation="gelu", n_threads=1)
    for n_threads in (2, 3, 7):
        compare.assert_same_bits(linear(x, packed, bias, activation="gelu", n_threads=n_threads), want)
    for first, last in ((0, 1), (3, 20), (255, 600)):
        compare.assert_same_bits(linear(x[first:last], packed, bias, activation="gelu"), want[first:last])


def test_strides_and_nothing(can_multiply):
    x, weight, bias = case()
    want = linear(x, pack_bfloat16(weight), bias)
    wide = np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)
    compare.assert_same_bits(linear(wide[::2, ::2], pack_bfloat16(np.asfortranarray(weight)), bias), want)
    compare.assert_same_bits(linear(np.repeat(x, 2, axis=0)[::2], pack_bfloat16(weight), bias), want)
    for n_rows, depth, width in ((0, 9, 4), (3, 9, 0), (3, 0, 4)):
        got = linear(np.ones((n_rows, depth), np.float32), pack_bfloat16(np.ones((depth, width), np.float32)))
        assert got.shape == (n_rows, width)
        assert not got.any()


def test_nan_and_infinity_stay_in_their_row(can_multiply):
    x, weight, bias = case()
    x[3, 2], x[5, 8] = np.nan, 3.4e38  # rounds to infinity
    got = linear(x, pack_bfloat16(weight), bias)
    assert np.isnan(got[3]).all()
    assert np.isinf(got[5]).all()
    assert np.isfinite(np.delete(got, [3, 5], axis=0)).all()


def test_weights_are_rounded_as_the_reference_rounds():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 20000, dtype=np.uint32).view(np.float32)
    normal = ~(np.abs(x) < naive.TINY)
    np.testing.assert_array_equal(rounded_bits(x).view(np.float32)[normal], to_bfloat16(x)[normal])


def test_half_the_bytes():
    assert pack_bfloat16(np.ones((384, 96), np.float32)).nbytes == 2 * 384 * 96
