"""Products of 8-bit whole numbers: each kernel bit for bit against the reference, at every instruction set."""

from functools import partial

import compare
import naive
import numpy as np
import pytest
from kernel_calls import both, kernel
from test_dense_bfloat16 import assert_rough

from pyclattn.functional.dense import ACTIVATIONS
from pyclattn.functional.dense_int8 import pack_int8

SIZES = [(1, 1, 1), (9, 7, 65), (33, 64, 48), (70, 130, 150), (16, 2, 24)]


def whole(rng, shape, dtype):
    """Whole numbers to the ends of their range, so that a sum that saturates or wraps is seen."""
    numbers = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    ends = rng.random(shape) < 0.5
    return np.where(ends, np.where(numbers > numbers.mean(), np.iinfo(dtype).max, np.iinfo(dtype).min), numbers).astype(
        dtype
    )


def tasks_of(n_rows, n_panels):
    """Of 20 rows; every other one, so that what lies between is not written."""
    tasks = [(r, min(r + 20, n_rows), p, p + 1) for r in range(0, n_rows, 20) for p in range(n_panels)]
    return np.array(tasks, np.int64)[::2].copy()


@kernel("int8.sum_products")
@pytest.mark.parametrize(("n_rows", "depth", "width"), SIZES)
def test_sum_products(name, fast, n_rows, depth, width):
    rng = np.random.default_rng(depth)
    rows = whole(rng, (n_rows, depth + 3), np.uint8)[:, :depth]
    weight = whole(rng, (depth, width), np.int8)
    with fast.forced():
        panels = pack_int8(weight, np.ones(width, np.float32)).panels
    tasks = tasks_of(n_rows, len(panels))

    def make(new):
        out = new((n_rows, width + 2), np.int32, 77)[:, :width]
        return (rows, panels, tasks, out), out

    want, got = both(name, fast, make)
    np.testing.assert_array_equal(got, want)
    if len(panels) == 1 and n_rows <= 20:
        np.testing.assert_array_equal(want, naive.integer_product(rows, weight))


@kernel("int8.multiply")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("n_rows", "depth", "width"), SIZES)
def test_multiply_int8(name, fast, n_rows, depth, width, activation):
    """Without an activation every room gives the same bits."""
    rng = np.random.default_rng(depth)
    rows = rng.standard_normal((n_rows, depth + 3), dtype=np.float32)[:, :depth]
    rows[n_rows // 2] = 0
    rows[-1] *= np.float32(1e-35)
    weight = whole(rng, (depth, width), np.int8)
    scales = (rng.random(width) * 4 / 127 / depth**0.5).astype(np.float32)
    bias = residual = None
    if activation:
        bias = rng.standard_normal(width, dtype=np.float32)
        residual = rng.standard_normal((n_rows, width + 1), dtype=np.float32)[:, 1:]
    with fast.forced():
        packed = pack_int8(weight, scales)
    weight_of = packed.panels, packed.offsets, packed.scales
    tasks = tasks_of(n_rows, len(packed.panels))

    close = assert_rough if activation == "gelu" else partial(compare.assert_close, tolerance=compare.EXACT)

    def make(new):
        out = new((n_rows, width + 2), np.float32, np.nan)[:, :width]
        return (rows, *weight_of, bias, activation, residual, tasks, out[None, :, None]), out

    def make_heads(new):
        batch, heads = n_rows // 10 or 1, 5 if width % 5 == 0 else 1
        out = new((batch, heads, n_rows // batch, width // heads), np.float32, np.nan)
        return (rows, *weight_of, bias, activation, residual, tasks, out.swapaxes(1, 2)), out

    if n_rows % (n_rows // 10 or 1) == 0:
        close(*reversed(both(name, fast, make_heads)))
    want, got = both(name, fast, make)
    if activation:
        close(got, want)
    else:
        compare.assert_same_bits(got, want)
