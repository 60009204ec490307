"""Products between DequantizeLinear operators: whole numbers, summed exactly."""

import numpy as np
import pytest
from onnx_models import Builder, kinds, onnxruntime_outputs, run

from pyclattn.graph.passes import optimize
from pyclattn_export import from_onnx

RNG = np.random.default_rng(5)
FUSED = "com.microsoft:MatMulIntegerToFloat"


def whole(shape, dtype):
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def scale(*shape):
    return (RNG.random(shape) * 0.02 + 0.01).astype(np.float32)


def product(left, right, **attributes):
    """A model of one product; each side is (whole numbers, scale, zero point or None), the left one an input."""
    build = Builder()
    build.input("a", left[0].shape, left[0].astype(np.int32), "int32")
    dtype = {np.int8: 3, np.uint8: 2}[left[0].dtype.type]
    sides = [build("Cast", "a", to=dtype), build.const(right[0])]
    for i, (_, factor, zero) in enumerate((left, right)):
        parameters = [build.const(factor)] + ([] if zero is None else [build.const(zero)])
        sides[i] = build("DequantizeLinear", sides[i], *parameters, **(attributes if factor.size > 1 else {}))
    return build.model(build("MatMul", *sides)), build.feeds


def optimized(model):
    program, _ = optimize(from_onnx(model))
    return program


def exact(left, right):
    a, b = ((x.astype(float) - (0 if zero is None else zero.astype(float))) for x, _, zero in (left, right))
    return (a @ b) * left[1].astype(float) * right[1].astype(float)


CASES = {
    "weights": ((whole((2, 9, 300), np.uint8), scale(), np.uint8(131)), (whole((300, 40), np.int8), scale(), None)),
    "scale of columns": ((whole((5, 64), np.int8), scale(1), np.int8([3])),
                         (whole((64, 7), np.int8), scale(7), whole((7,), np.int8))),
    "several matrices": ((whole((2, 3, 5, 8), np.uint8), scale(), np.uint8(7)),
                         (whole((2, 3, 8, 6), np.uint8), scale(), np.uint8(9))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_product_of_dequantised_is_exact(name):
    left, right = CASES[name]
    model, feeds = product(left, right)
    program = optimized(model)
    assert kinds(program) == ["Cast", FUSED]
    (result,) = run(program, feeds)
    wanted = exact(left, right)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, wanted, rtol=2e-7)  # a float32 sum is off by ten times that
    (theirs,) = onnxruntime_outputs(model, feeds)
    np.testing.assert_allclose(theirs, wanted, rtol=1e-4, atol=1e-4)


def test_sums_beyond_int32():
    left = whole((1, 40_000), np.uint8), scale(), None
    right = np.full((40_000, 1), 255, np.uint8), scale(), None
    left[0][:] = 255
    model, feeds = product(left, right)
    (result,) = run(optimized(model), feeds)
    np.testing.assert_allclose(result, exact(left, right), rtol=2e-7)


OTHERS = {
    "scale of rows": ((whole((5, 64), np.int8), scale(5), None), (whole((64, 7), np.int8), scale(), None), 0),
    "scale of the right's rows": ((whole((5, 8), np.int8), scale(), None), (whole((8, 7), np.int8), scale(8), None), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_scales_that_cannot_leave_the_sum(name):
    left, right, axis = OTHERS[name]
    model, feeds = product(left, right, axis=axis)
    program = optimized(model)
    assert FUSED not in kinds(program)
    (result,), (theirs,) = run(program, feeds), onnxruntime_outputs(model, feeds)
    np.testing.assert_allclose(result, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_linear_rounds_as_onnxruntime(dtype):
    """Bit for bit, ties and the ends of the range included: x / scale as float32, to even, plus zero, cut."""
    build, steps = Builder(), np.arange(-300, 300, dtype=np.float32)
    factor = np.float32(0.0237)
    ties = np.concatenate([(steps + np.float32(0.5)) * factor, steps * factor, [np.inf, -np.inf, 1e30, -1e30, 0.0]])
    ties = ties.astype(np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(s)) for s in (-np.inf, np.inf)])
    build.input("x", (3 * len(ties),), np.concatenate([ties, near]))
    quantised = build("QuantizeLinear", "x", build.const(factor), build.const(dtype(17)))
    model = build.model(quantised, build("DequantizeLinear", quantised, build.const(factor), build.const(dtype(17))))
    np.testing.assert_array_equal(run(optimized(model), build.feeds)[0], onnxruntime_outputs(model, build.feeds)[0])
