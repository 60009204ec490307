"""Products of bfloat16 against the definition: in the reference, where the processor has them, and where it has not."""

import math
import warnings
from functools import cache
from itertools import pairwise

import compare
import inputs
import ml_dtypes
import naive
import naive_bfloat16
import numpy as np
import pytest
import test_exact
from conftest import ROOMS

from pyclattn import _dispatch
from pyclattn import scaled_dot_product_attention as attend
from pyclattn.errors import ArgumentError, BackendError
from pyclattn.functional.precision import missing_bfloat16, resolved
from pyclattn.reference._rounding import to_bfloat16

# One rounding is off by up to 2^-9. Weights are rounded below the largest logit so far, by the definition below that
# of all: the errors of random rows stay under 2^-8, those of a row within the first block of keys under 2^-10.
BLOCK, FIRST_BLOCK = 2.0**-8, 2.0**-10
AGAINST_FLOAT32 = 5e-3


@pytest.fixture(params=ROOMS, ids=str)
def call(request):
    """Attention in bfloat16 in each room; a room that cannot says what it lacks, and the reference stands in."""
    with request.param.forced():
        missing = missing_bfloat16()
        assert not missing or request.param.backend in ("cython", "auto")
        if not missing:
            yield lambda *tensors, **options: attend(*tensors, precision="bfloat16", **options)
            return
        with pytest.raises(BackendError, match="bfloat16"):
            attend(*inputs.tensors(), precision="bfloat16")
    with _dispatch.forced("reference"):
        yield lambda *tensors, **options: attend(*tensors, precision="bfloat16", **options)


def test_rounding_is_to_nearest_even():
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.integers(0, 1 << 32, 20000, dtype=np.uint32).view(np.float32),
        (rng.integers(0, 1 << 16, 2000, dtype=np.uint32) << 16 | 0x8000).view(np.float32),  # halves
        np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-40, naive.TINY], np.float32),
    ])  # fmt: skip
    got = to_bfloat16(x)
    want = np.array([naive_bfloat16.rounded(v) for v in x])
    np.testing.assert_array_equal(got, want)
    normal = np.isfinite(x) & (np.abs(x) >= naive.TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what overflows
        np.testing.assert_array_equal(got[normal], x[normal].astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("dim", [1, 2, 3, 17, 32, 64, 65, 128])
def test_against_the_definition(call, dim):
    tensors = inputs.tensors(heads=2, n=49, n_keys=101, dim=dim, width=dim + 1, seed=dim)
    compare.assert_close(call(*tensors), naive_bfloat16.attention(*tensors), FIRST_BLOCK)


@cache
def long_case(kind):
    tensors, exact = test_exact.case("long", kind)
    return tensors, exact, naive_bfloat16.attention(*tensors)


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_many_blocks_of_keys(call, kind):
    tensors, exact, want = long_case(kind)
    got = call(*tensors)
    compare.assert_close(got, want, BLOCK)
    compare.assert_close(got, exact, AGAINST_FLOAT32)
    assert compare.relative_error(got, exact) > 1e-5, "no product was rounded"


def whole(*shape, most, seed):
    return np.random.default_rng(seed).integers(-most, most, shape, endpoint=True).astype(np.float32)


def powers_of_two(name):
    """A case of `test_exact.MASKS` whose logits are multiples of ln 2: every rounding is exact, so is the result."""
    b, h, n, n_keys = test_exact.B, test_exact.H, test_exact.L, test_exact.S
    query, key = whole(b, h, n, 21, most=1, seed=1), whole(b, 2, n_keys, 21, most=1, seed=2)
    value = whole(b, 2, n_keys, 23, most=9, seed=3)
    options = {**test_exact.MASKS[name], "scale": math.log(2)}
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype != np.bool_:
        options["attn_mask"] = (np.round(2 * mask.astype(np.float64)) * math.log(2)).astype(np.float32)
    return (query, key, value), options


@pytest.mark.parametrize("name", [name for name in test_exact.MASKS if "scale" not in name])
def test_masks_where_nothing_is_rounded(call, name):
    tensors, options = powers_of_two(name)
    want = {("key_padding" if k == "key_padding_mask" else k): v for k, v in options.items()}
    compare.assert_close(call(*tensors, **options), naive.attention(*tensors, **want), compare.EXACT)


def test_ragged_and_strided(call):
    query, key, value = inputs.tensors(heads=3, n=140, dim=33, seed=5)
    offsets = np.array([0, 1, 1, 90, 140])
    got = call(query[0], key[0], value[0], offsets=offsets, n_threads=2)
    for start, stop in pairwise(offsets):
        if stop > start:
            alone = call(*(x[:, :, start:stop] for x in (query, key, value)))
            compare.assert_same_bits(got[:, start:stop], alone[0])
    joined = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (query, key, value)]
    compare.assert_same_bits(call(*joined), call(query, key, value))


def test_the_same_bits_for_any_number_of_threads(call):
    tensors = inputs.tensors(batch=2, heads=3, n=500, dim=36)
    want = call(*tensors, n_threads=1)
    for n_threads in (2, 3, 7):
        compare.assert_same_bits(call(*tensors, n_threads=n_threads), want)


def test_nan_and_infinity(call):
    """They reach those who may see them, and nobody else."""
    query, key, value = inputs.tensors(n=60, n_keys=150, dim=20)
    query[0, 0, 3, 2], value[0, 0, 70, 1], value[0, 0, 71, 2] = np.nan, np.inf, np.nan
    value[0, 0, 72, 3] = 3.4e38  # rounds to infinity
    mask = np.ones((60, 150), bool)
    mask[:30, 70:73] = False
    for options in ({"attn_mask": mask}, {"attn_mask": np.where(mask, np.float32(0), np.float32(-np.inf))}):
        got = call(query, key, value, **options)[0, 0]
        assert np.isnan(got[3]).all()
        others = np.delete(got[:30], 3, axis=0)
        assert np.isfinite(others).all()
        assert (got[30:, 1] == np.inf).all()
        assert np.isnan(got[30:, 2]).all()
        assert (got[30:, 3] == np.inf).all()
    got = call(query, key, value)[0, 0]
    assert (np.delete(got, 3, axis=0)[:, 1] == np.inf).all()
    key[0, 0, 149] = np.nan
    assert np.isnan(call(query, key, value)).all()
    padding = np.zeros((1, 150), bool)
    padding[0, [70, 71, 72, 149]] = True
    assert np.isfinite(np.delete(call(query, key, value, key_padding_mask=padding)[0, 0], 3, axis=0)).all()


def test_a_constant_value_stays_what_it_is(call):
    """Weights are divided by the sum of the rounded ones."""
    query, key, value = inputs.tensors(n=60, n_keys=150, dim=20)
    compare.assert_close(call(query, key, np.full_like(value, 1.5)), np.full_like(query, 1.5), compare.EXACT)


def test_empty_and_unseen(call):
    query, key, value = inputs.tensors(n=5, n_keys=3, dim=4)
    assert not call(query, key[:, :, :0], value[:, :, :0]).any()
    assert call(query[:, :, :0], key, value).shape == (1, 1, 0, 4)
    assert not call(query, key, value, attn_mask=np.zeros((5, 3), bool)).any()


def test_large_numbers_stay_finite(call):
    query, key, value = (1e15 * x for x in inputs.tensors(n=20, n_keys=200, dim=8))
    assert np.isfinite(call(query, key, value, scale=1e-30)).all()
    tensors = inputs.tensors(n=20, n_keys=200, dim=8)
    compare.assert_close(call(*tensors, scale=-3.0), naive_bfloat16.attention(*tensors, scale=-3.0), BLOCK)


def test_what_is_missing_is_named():
    with pytest.raises(ArgumentError, match=r"precision must be one of 'float32', 'bfloat16', got 'float8'"):
        attend(*inputs.tensors(), precision="float8")
    from pyclattn._ext import isa

    levels = isa.available()
    for level in levels:
        with _dispatch.forced("cython", level):
            if not missing_bfloat16():
                assert level == "avx512"
                assert resolved("auto") == "bfloat16"
                continue
            assert resolved("auto") == "float32"
            with pytest.raises(BackendError, match=r"AVX512-BF16|need the instruction set avx512, but"):
                attend(*inputs.tensors(), precision="bfloat16")
    with _dispatch.forced("reference"):
        assert resolved("bfloat16") == "bfloat16"
        assert resolved("auto") == "float32"  # the reference has it for its meaning, not for speed
