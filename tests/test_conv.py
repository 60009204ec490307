"""Convolutions on the tile against sums written out, in every room and at every instruction set."""

import compare
import numpy as np
import pytest

from pyclattn.errors import DTypeError, ShapeError
from pyclattn.functional.conv import bound_convolution, ordered_filters

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def naive_convolution(images, filters, taps, bias, steps, shape):
    """Each number of the output on its own, in float64."""
    n, _, height, width = images.shape
    groups, channels, terms = filters.shape
    depth = terms // len(taps) if taps else 0
    out = np.zeros((n, groups * channels, *shape))
    for i, m, y, x in np.ndindex(*out.shape):
        g, own = divmod(m, channels)
        total = 0.0 if bias is None else float(bias[m])
        for t, (dy, dx) in enumerate(taps):
            row, column = y * steps[0] + dy, x * steps[1] + dx
            if 0 <= row < height and 0 <= column < width:
                for c in range(depth):
                    total += float(filters[g, own, t * depth + c]) * float(images[i, g * depth + c, row, column])
        out[i, m, y, x] = total
    return out


CASES = [
    # images, groups, channels, taps, steps, output
    ((1, 3, 9, 11), 1, 5, [(-1, -1), (-1, 0), (0, 1), (1, 1)], (1, 1), (9, 11)),
    ((2, 4, 7, 60), 2, 3, [(0, 0), (2, 3)], (1, 1), (7, 59)),
    ((1, 2, 12, 30), 1, 33, [(0, 0), (0, 2), (3, -2)], (3, 4), (5, 9)),
    ((1, 1, 1, 200), 1, 2, [(0, i) for i in range(-5, 6)], (1, 2), (1, 103)),
    ((1, 2, 3, 4), 1, 2, [(9, 9), (-9, 0)], (1, 1), (3, 4)),  # nothing but border
    ((1, 2, 3, 4), 1, 2, [], (1, 1), (3, 4)),
]


@pytest.mark.parametrize(("shape", "groups", "channels", "taps", "steps", "size"), CASES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_against_the_definition(room, shape, groups, channels, taps, steps, size, has_bias):
    images, filters = normal(*shape), normal(groups, channels, len(taps) * (shape[1] // groups))
    bias = normal(groups * channels) if has_bias else None
    wide = np.full((shape[0], groups * channels, 2 * size[0], 3 * size[1]), 7, np.float32)
    out = wide[:, :, 1::2, ::3]  # every second row, every third column
    bound_convolution(images, filters, taps, bias, steps=steps, out=out)()
    want = naive_convolution(images, filters, taps, bias, steps, size)
    compare.assert_close(np.ascontiguousarray(out), want, 1e-5)
    assert (wide[:, :, ::2] == 7).all()
    assert (wide[:, :, :, 1::3] == 7).all()


def test_a_position_sees_nothing_of_others(room):
    """A NaN reaches the outputs that see it, whatever lay in a lane before."""
    images, filters = normal(1, 2, 20, 30), normal(1, 8, 4)
    images[0, 1, 4, 5] = np.nan
    out = np.empty((1, 8, 20, 30), np.float32)
    bound_convolution(images, filters, [(0, 0), (1, 0)], out=out)()
    bad = np.isnan(out[0]).all(0)
    assert bad[3:5, 5].all()
    assert bad.sum() == 2
    assert np.isnan(out).sum() == 16


def test_the_same_bits_for_any_number_of_threads(room):
    images, filters = normal(2, 8, 40, 50), normal(2, 16, 12)
    results = []
    for n_threads in (1, 2, 5):
        out = np.empty((2, 32, 40, 50), np.float32)
        bound_convolution(images, filters, [(0, 0), (0, 1), (1, 0)], n_threads=n_threads, out=out)()
        results.append(out)
    for result in results[1:]:
        compare.assert_same_bits(result, results[0])


def test_ordered_filters():
    weight = normal(2, 3, 4, 5, 6)
    taps = [(0, 1), (4, 5)]
    got = ordered_filters(weight, taps)
    assert got.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(got[1, 2, 1], weight[1, 2, :, 4, 5])


def test_bad_calls():
    images, filters, out = normal(1, 2, 3, 4), normal(1, 5, 4), np.empty((1, 5, 3, 4), np.float32)
    taps = [(0, 0), (0, 1)]
    with pytest.raises(ShapeError, match=r"filters \(1, 5, 4\) do not fit images \(1, 2, 3, 4\) and 1 taps"):
        bound_convolution(images, filters, taps[:1], out=out)
    with pytest.raises(ShapeError, match=r"out must have shape \(1, 5, ...\), got \(1, 4, 3, 4\)"):
        bound_convolution(images, filters, taps, out=out[:, :4])
    with pytest.raises(ShapeError, match=r"bias must have shape \(5,\), got \(4,\)"):
        bound_convolution(images, filters, taps, normal(4), out=out)
    with pytest.raises(DTypeError, match="images must be float32"):
        bound_convolution(images.astype(int), filters, taps, out=out)
    with pytest.raises(ShapeError, match="out must be a float32 array of rank 4"):
        bound_convolution(images, filters, taps, out=out[0])
