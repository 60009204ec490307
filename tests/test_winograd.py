"""Transposed convolutions from Winograd's products against sums written out, in every room, at every set."""

import compare
import naive_bfloat16
import numpy as np
import pytest
from conftest import ROOMS
from test_conv import normal

from pyclattn import _dispatch
from pyclattn.errors import ArgumentError, BackendError, DTypeError, ShapeError
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.functional.winograd import bound_upsampling, winograd_filters

CASES = [
    # images, groups, channels, pads, output: odd sizes, one tile, several panels, rows of less than a tile
    ((1, 3, 5, 7), 1, 5, (1, 1), (10, 14)),
    ((2, 4, 9, 60), 2, 9, (1, 1), (18, 120)),
    ((1, 17, 1, 1), 1, 2, (0, 0), (4, 4)),
    ((1, 2, 3, 100), 1, 3, (0, 3), (8, 197)),
    ((1, 2, 30, 2), 1, 1, (5, 1), (55, 3)),
    ((1, 2, 3, 4), 1, 2, (0, 0), (10, 13)),  # more than is reached
    ((1, 0, 3, 4), 1, 2, (1, 1), (6, 8)),
]


def naive_upsampling(images, kernel, bias, pads, size):
    """Each input number times the kernel, added where it goes, in float64; kernel (G, M, C, 4, 4)."""
    groups, channels, depth = kernel.shape[:3]
    n, _, height, width = images.shape
    whole = np.zeros(
        (n, groups * channels, max(2 * height + 2, size[0] + pads[0]), max(2 * width + 2, size[1] + pads[1]))
    )
    for i, g, m, c in np.ndindex(n, groups, channels, depth):
        for y, x in np.ndindex(height, width):
            part = np.float64(images[i, g * depth + c, y, x]) * kernel[g, m, c].astype(np.float64)
            whole[i, g * channels + m, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4] += part
    if bias is not None:
        whole += bias[:, None, None]
    return whole[:, :, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]


@pytest.mark.parametrize(("shape", "groups", "channels", "pads", "size"), CASES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_against_the_definition(room, shape, groups, channels, pads, size, has_bias):
    images, kernel = normal(*shape), normal(groups, channels, shape[1] // groups, 4, 4)
    bias = normal(groups * channels) if has_bias else None
    wide = np.full((shape[0], groups * channels, 2 * size[0], size[1] + 3), 7, np.float32)
    out = wide[:, :, 1::2, 2:-1]
    bound_upsampling(images, winograd_filters(kernel), bias, pads=pads, out=out)()
    compare.assert_close(np.ascontiguousarray(out), naive_upsampling(images, kernel, bias, pads, size), 1e-5)
    assert (wide[:, :, ::2] == 7).all()
    assert (wide[:, :, :, :2] == 7).all()
    assert (wide[:, :, :, -1] == 7).all()


@pytest.fixture(params=ROOMS, ids=str)
def can_round(request):
    with request.param.forced():
        if not missing_bfloat16():
            yield request.param
            return
        filters = winograd_filters(normal(1, 5, 2, 4, 4), is_paired=True)
        with pytest.raises(BackendError, match="bfloat16"):
            bound_upsampling(normal(1, 2, 3, 4), filters, out=np.empty((1, 5, 6, 8), np.float32))()
    with _dispatch.forced("reference"):
        yield request.param


@pytest.mark.parametrize(("shape", "groups", "channels", "pads", "size"), CASES)
def test_in_bfloat16(can_round, shape, groups, channels, pads, size):
    """Of numbers whose differences and sums bfloat16 can hold nothing is lost; of others a few roundings."""
    whole = [np.round(8 * normal(*of)) for of in (shape, (groups, channels, shape[1] // groups, 4, 4))]
    plain = [normal(*shape), normal(groups, channels, shape[1] // groups, 4, 4)]
    bias = normal(groups * channels)
    for (images, kernel), bound in ((whole, 1e-5), (plain, 2e-2)):
        out = np.empty((shape[0], groups * channels, *size), np.float32)
        bound_upsampling(images, winograd_filters(kernel, is_paired=True), bias, pads=pads, out=out)()
        want = naive_upsampling(images, kernel, bias, pads, size)
        compare.assert_close(out, want, bound)
    if shape[1] > 1:
        rounded = naive_upsampling(*(naive_bfloat16.all_rounded(x) for x in plain), bias, pads, size)
        assert 1e-4 < compare.relative_error(out, want) < 6 * compare.relative_error(rounded, want)


def test_negative_numbers_become_zero(room):
    images, kernel, bias = normal(1, 6, 5, 30), normal(1, 9, 6, 4, 4), normal(9)
    plain, out = np.empty((2, 1, 9, 10, 60), np.float32)
    images[0, 3, 2, 20] = np.nan
    for is_relu, into in ((False, plain), (True, out)):
        bound_upsampling(images, winograd_filters(kernel), bias, pads=(1, 1), is_relu=is_relu, out=into)()
    assert 0 < np.isnan(plain).sum() <= 4 * 4 * 4 * 9
    compare.assert_same_bits(out, np.where(plain < 0, 0, plain).astype(np.float32))


@pytest.mark.parametrize("is_paired", [False, True])
def test_the_same_bits_for_any_number_of_threads(is_paired):
    images, kernel = normal(2, 40, 40, 50), normal(2, 16, 20, 4, 4)
    results = []
    with _dispatch.forced("reference" if is_paired and missing_bfloat16() else None):
        for n_threads in (1, 2, 5):
            out = np.empty((2, 32, 80, 100), np.float32)
            filters = winograd_filters(kernel, is_paired)
            bound_upsampling(images, filters, pads=(1, 1), n_threads=n_threads, out=out)()
            results.append(out)
    for result in results[1:]:
        compare.assert_same_bits(result, results[0])


def test_bad_calls():
    images, kernel, out = normal(1, 2, 3, 4), normal(1, 5, 2, 4, 4), np.empty((1, 5, 6, 8), np.float32)
    filters = winograd_filters(kernel)
    with pytest.raises(ShapeError, match=r"kernel must have shape \(groups, M, C, 4, 4\), got \(1, 5, 2, 4, 3\)"):
        winograd_filters(kernel[..., :3])
    with pytest.raises(ShapeError, match=r"filters \(1, 2, 18, 5, 2\) do not fit images \(1, 1, 3, 4\)"):
        bound_upsampling(images[:, :1], filters, out=out)
    with pytest.raises(ShapeError, match=r"filters must have shape \(groups, 2, 18, M, C\), got \(1, 1, 18, 5, 2\)"):
        bound_upsampling(images, filters[:, :1], out=out)
    with pytest.raises(ShapeError, match=r"out must have shape \(1, 5, ...\), got \(1, 4, 6, 8\)"):
        bound_upsampling(images, filters, out=out[:, :4])
    with pytest.raises(ShapeError, match=r"bias must have shape \(5,\), got \(4,\)"):
        bound_upsampling(images, filters, normal(4), out=out)
    with pytest.raises(DTypeError, match="images must be float32"):
        bound_upsampling(images.astype(int), filters, out=out)
    with pytest.raises(ArgumentError, match="pads must be at least 0, got -1"):
        bound_upsampling(images, filters, pads=(0, -1), out=out)
    with pytest.raises(ArgumentError, match="out must have contiguous rows"):
        bound_upsampling(images, filters, out=np.empty((1, 5, 6, 16), np.float32)[..., ::2])
