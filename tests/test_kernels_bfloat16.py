"""Kernels of bfloat16 against the reference, written between guards; where they cannot run they say so."""

import compare
import inputs
import numpy as np
import pytest
from kernel_calls import both, holes_index, kernel, spans, tasks_of

from pyclattn.errors import BackendError
from pyclattn.functional.dense_bfloat16 import pack_bfloat16
from pyclattn.functional.precision import missing_bfloat16


def compared(name, fast, make, tolerance):
    with fast.forced():
        missing = missing_bfloat16()
    if missing:
        with pytest.raises(BackendError, match="bfloat16"):
            both(name, fast, make)
        return
    want, got = both(name, fast, make)
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

    compared(name, fast, make, compare.EXACT)
