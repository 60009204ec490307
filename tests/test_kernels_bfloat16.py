"""Kernels of bfloat16 against the reference, written between guards; where they cannot run they say so."""

import compare
import inputs
import numpy as np
import pytest
from kernel_calls import both, holes_index, kernel, spans, tasks_of
from test_dense_bfloat16 import assert_rough
from test_kernels_rows import upsampling

from pyclattn.errors import BackendError
from pyclattn.functional.dense_bfloat16 import pack_bfloat16
from pyclattn.functional.precision import missing_bfloat16
from pyclattn.reference._rounding import to_bfloat16


def compared(name, fast, make, tolerance):
    with fast.forced():
        missing = missing_bfloat16()
    if missing:
        with pytest.raises(BackendError, match="bfloat16"):
            both(name, fast, make)
        return
    want, got = both(name, fast, make)
    if tolerance is None:
        compare.assert_same_bits(got, want)
    elif tolerance == "rough":
        assert_rough(got, want)
    else:
        compare.assert_close(got, want, tolerance)


@kernel("attention.attend_bfloat16")
@pytest.mark.parametrize("dim", [1, 2, 36, 65, 128])
@pytest.mark.parametrize("mask", ["none", "causal", "allowed", "bias_causal"])
def test_attend(name, fast, mask, dim):
    query, key, value = inputs.tensors(batch=2, heads=4, kv_heads=2, n=300, dim=dim, width=dim + 5, seed=dim)
    query_spans, (key_spans, index) = spans([0, 0, 300], [1, 0, 211]), holes_index(2, 300)
    rng = np.random.default_rng(dim)
    allowed = (rng.random((2, 4, 300, 300)) < 0.5).view(np.uint8) if mask == "allowed" else None
    bias = None
    if mask.startswith("bias"):
        bias = np.where(rng.random((2, 4, 300, 300)) < 0.3, -np.inf, rng.standard_normal((2, 4, 300, 300)))
        bias = bias.astype(np.float32)
    tasks = tasks_of([300, 211], 4, 96)[::2].copy()  # half of the rows are not asked for

    def make(new):
        out = new((2, 4, 300, dim + 5), np.float32, np.nan)
        arguments = (query, query_spans, key, value, key_spans, index, allowed, bias, "causal" in mask, 0.3)
        return (*arguments, tasks, 96, out), out

    compared(name, fast, make, 2.0**-8)


@kernel("dense.multiply_bfloat16")
@pytest.mark.parametrize(("depth", "width"), [(1, 1), (7, 65), (64, 48), (130, 150)])
def test_multiply(name, fast, depth, width):
    rng = np.random.default_rng(depth)
    rows, weight, bias, residual = (
        rng.standard_normal(shape, dtype=np.float32) for shape in ((70, depth + 3), (depth, width), width, (70, width))
    )
    with fast.forced():
        panels = pack_bfloat16(weight).panels
    tasks = [(r, min(r + 20, 70), p, p + 1) for r in range(0, 70, 20) for p in range(len(panels))][::2]

    def make(new):
        out = new((70, width + 2), np.float32, np.nan)[:, :width]
        arguments = rows[:, :depth], panels, bias, "gelu", residual, np.array(tasks, np.int64)
        return (*arguments, out[None, :, None]), out

    compared(name, fast, make, "rough")


def words_of(pairs):
    """Words of two bfloat16 each, of an array (..., 2)."""
    bits = to_bfloat16(pairs).view(np.uint32)
    return (bits[..., 0] >> np.uint32(16) | bits[..., 1]).view(np.int32)


@kernel("conv.pair_channels")
@pytest.mark.parametrize(("depth", "positions"), [(1, 1), (5, 33), (64, 100)])
def test_pair_channels(name, fast, depth, positions):
    images = np.random.default_rng(depth).standard_normal((2, 2, depth, positions), dtype=np.float32)
    n_words = -(-depth // 2)
    tasks = [(i, g, w, min(w + 3, n_words)) for i in range(2) for g in range(2) for w in range(0, n_words, 3)][1:]

    def make(new):
        words = new((2, 2, n_words, positions), np.int32, 77)
        return (images, np.array(tasks, np.int64), words), words

    compared(name, fast, make, None)


@kernel("conv.convolve_bfloat16")
@pytest.mark.parametrize(("depth", "channels"), [(1, 3), (5, 33), (16, 40)])
def test_convolve(name, fast, depth, channels):
    rng, taps = np.random.default_rng(depth), np.array([(0, 0), (-1, 2), (3, 1)])
    shapes = (2, 2 * depth, 9, 30), (2, channels, 3 * depth)
    words = [words_of(rng.standard_normal((*shape, 2), dtype=np.float32)) for shape in shapes]
    bias = rng.standard_normal(2 * channels, dtype=np.float32)
    tasks = np.array([(i, g, p, min(p + 48, 150)) for i in range(2) for g in range(2) for p in range(0, 150, 48)][1:])

    def make(new):
        out = new((2, 2 * channels, 5, 30), np.float32, np.nan)
        return (*words, taps, bias, np.array([2, 1]), tasks, out), out

    compared(name, fast, make, compare.EXACT)


@kernel("winograd.upsample_bfloat16")
def test_upsample(name, fast):
    compared(name, fast, upsampling(True), compare.EXACT)
