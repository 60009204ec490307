"""Kernels of rows, single elements and convolutions against the reference (collected by test_kernels.py)."""

import compare
import numpy as np
import pytest
from kernel_calls import both, kernel

from pyclattn.functional.rows import FUNCTIONS
from pyclattn.functional.winograd import winograd_filters

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


@kernel("rows.apply")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_apply(name, fast, function):
    x = 4 * normal(1003)
    tasks = np.array([[0, 100], [307, 512], [900, 1003]], np.int64)

    def make(new):
        out = new((1003,), np.float32, np.nan)
        return (x, function, tasks, out), out

    want, got = both(name, fast, make)
    assert np.isnan(got).sum() == 1003 - 100 - 205 - 103
    compare.assert_close(got, want, compare.EXACT)


@kernel("rows.normalise")
@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize("width", [1, 17, 96, 200])
def test_normalise(name, fast, width, is_rms):
    x, residual = normal(30, width + 3)[:, :width], normal(30, width + 1)[:, :width]
    weight, bias = normal(width), normal(width)
    tasks = np.array([[0, 4], [9, 20]], np.int64)

    def make(new):
        total, out = (new((30, width + 2), np.float32, np.nan)[:, :width] for _ in range(2))
        return (x, residual, weight, bias, 1e-3, is_rms, tasks, total, out), (total, out)

    want, got = both(name, fast, make)
    for a, b in zip(want, got):
        assert np.isnan(b).sum() == 15 * width
        compare.assert_close(b, a, compare.EXACT)


@kernel("conv.convolve")
@pytest.mark.parametrize("steps", [(1, 1), (2, 3)])
def test_convolve(name, fast, steps):
    images, filters, bias = normal(2, 6, 13, 70)[:, :, :, 2:65], normal(2, 11, 9), normal(22)
    taps = np.array([(0, 0), (-1, 2), (3, -4)], np.int64)
    tasks = np.array([[0, 0, 0, 60], [1, 1, 60, 131], [1, 0, 200, 209]], np.int64)

    def make(new):
        out = new((2, 22, 11, 38), np.float32, np.nan)[:, :, :, ::2]
        return (images, filters, taps, bias, np.array(steps, np.int64), tasks, out), out

    want, got = both(name, fast, make)
    assert np.isnan(got).any()
    compare.assert_close(np.ascontiguousarray(got), np.ascontiguousarray(want), compare.EXACT)


def upsampling(is_paired):
    """What makes the arguments of a transposed convolution by Winograd's products; some tiles are left out."""
    images, bias = normal(2, 10, 5, 40)[:, :, :, 2:33], normal(14)
    filters = winograd_filters(normal(2, 7, 5, 4, 4), is_paired)
    tasks = np.array([[0, 0, 0, 20], [0, 1, 11, 24], [1, 1, 5, 6]], np.int64)

    def make(new):
        out = new((2, 14, 10, 64), np.float32, np.nan)[:, :, :, 1:63]
        return (images, filters, bias, True, np.array([1, 1], np.int64), 16, tasks, out), out

    return make


@kernel("winograd.upsample")
def test_upsample(name, fast):
    want, got = both(name, fast, upsampling(False))
    assert np.isnan(got).any()
    compare.assert_close(np.ascontiguousarray(got), np.ascontiguousarray(want), compare.EXACT)
