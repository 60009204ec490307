"""Convolutions in bfloat16 against sums of rounded numbers; where a room cannot it says so."""

import compare
import naive_bfloat16
import numpy as np
import pytest
from conftest import ROOMS
from test_conv import CASES, naive_convolution, normal

from pyclattn import _dispatch
from pyclattn.errors import BackendError, DTypeError, ShapeError
from pyclattn.functional.conv import bound_convolution
from pyclattn.functional.conv_bfloat16 import bound_pairing, paired_filters
from pyclattn.functional.precision import missing_bfloat16


def convolved(images, filters, taps, bias, groups, **options):
    """Filters (groups, M, taps x C) over images of float32, both rounded."""
    n, channels, height, width = images.shape
    depth = channels // groups
    words = np.full((n, groups, -(-depth // 2), height * width), -1, np.int32)
    bound_pairing(images.reshape(n, groups, depth, -1), words, n_threads=options.get("n_threads"))()
    paired = paired_filters(filters.reshape(*filters.shape[:2], len(taps), depth))
    images = words.reshape(n, -1, height, width)
    bound_convolution(images, paired.reshape(*filters.shape[:2], -1), taps, bias, **options)()
    return options["out"]


@pytest.fixture(params=ROOMS, ids=str)
def can_convolve(request):
    with request.param.forced():
        if not missing_bfloat16():
            yield request.param
            return
        with pytest.raises(BackendError, match="bfloat16"):
            convolved(normal(1, 2, 3, 4), normal(1, 5, 2), [(0, 0)], None, 1, out=np.empty((1, 5, 3, 4), np.float32))
    with _dispatch.forced("reference"):
        yield request.param


@pytest.mark.parametrize(("shape", "groups", "channels", "taps", "steps", "size"), CASES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_against_the_definition(can_convolve, shape, groups, channels, taps, steps, size, has_bias):
    """Odd and even numbers of channels, of which one number alone is no pair."""
    images, filters = normal(*shape), normal(groups, channels, len(taps) * (shape[1] // groups))
    bias = normal(groups * channels) if has_bias else None
    out = np.full((shape[0], groups * channels, 2 * size[0], size[1]), 7, np.float32)
    convolved(images, filters, taps, bias, groups, steps=steps, out=out[:, :, 1::2])
    rounded = [naive_bfloat16.all_rounded(x) for x in (images, filters)]
    compare.assert_close(
        np.ascontiguousarray(out[:, :, 1::2]), naive_convolution(*rounded, taps, bias, steps, size), 1e-5
    )
    assert (out[:, :, ::2] == 7).all()
    if taps and shape[2] > 3:
        plain = naive_convolution(images, filters, taps, bias, steps, size)
        assert compare.relative_error(out[:, :, 1::2], plain) > 1e-5, "nothing was rounded"


def test_nan_infinity_and_what_is_too_small(can_convolve):
    images = np.ones((1, 3, 2, 40), np.float32)
    images[0, 0, 0, 3], images[0, 1, 0, 5], images[0, 2, 0, 7], images[0, 2, 1] = np.nan, np.inf, 3.4e38, 1e-40
    out = np.empty((1, 8, 2, 40), np.float32)
    convolved(images, np.ones((1, 8, 3), np.float32), [(0, 0)], None, 1, out=out)
    assert np.isnan(out[0, :, 0, 3]).all()
    assert np.isinf(out[0, :, 0, [5, 7]]).all()
    assert (np.delete(out[0, :, 0], [3, 5, 7], axis=1) == 3).all()
    assert (out[0, :, 1] == 2).all()


def test_the_same_bits_for_any_number_of_threads(can_convolve):
    images, filters = normal(2, 74, 60, 60), normal(2, 16, 3 * 37)
    taps = [(0, 0), (0, 1), (1, 0)]
    results = [
        convolved(images, filters, taps, None, 2, n_threads=n, out=np.empty((2, 32, 60, 60), np.float32))
        for n in (1, 2, 5)
    ]
    for result in results[1:]:
        compare.assert_same_bits(result, results[0])


def test_bad_calls():
    words, out = np.zeros((1, 2, 3, 4), np.int32), np.empty((1, 5, 3, 4), np.float32)
    with pytest.raises(DTypeError, match=r"images must be int32 words of rank 4, as the filters are, got float32"):
        bound_convolution(words.view(np.float32), np.zeros((1, 5, 2), np.int32), [(0, 0)], out=out)
    with pytest.raises(ShapeError, match=r"filters \(1, 5, 3\) do not fit images \(1, 2, 3, 4\) and 1 taps"):
        bound_convolution(words, np.zeros((1, 5, 3), np.int32), [(0, 0)], out=out)
    images = np.zeros((1, 1, 3, 4), np.float32)
    with pytest.raises(ShapeError, match=r"words must have shape \(1, 1, 2, 4\) in C order, got \(1, 2, 3, 4\)"):
        bound_pairing(images, words)
    with pytest.raises(DTypeError, match="words must be an int32 array, got float32"):
        bound_pairing(images, images)
