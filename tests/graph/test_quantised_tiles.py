"""Quantised products of ONNX whose weight is packed for the int8 tile: to the bit what they are without."""

import numpy as np
import pytest

from pyclattn import _dispatch
from pyclattn.graph.executor import Executor
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.spec import Settings
from pyclattn.graph.weights import INT32_DEPTH, LEAST_PACKED

DEPTH, WIDTH = 330, 200
assert DEPTH * WIDTH >= LEAST_PACKED


def whole(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def run(op, feeds, constants, out_dtype, **settings):
    inputs = [Value(name, str(array.dtype), array.shape) for name, array in feeds.items()]
    executor = Executor(Program(inputs, [Value("y", out_dtype, ("...",))], [op], constants), Settings(**settings))
    (result,) = executor(feeds).values()
    return result, executor.planner.constant_specs["w"].packed


def both(op, feeds, constants, out_dtype):
    """With a packed weight and without; the reference kernels are enough for the latter."""
    plain, packed = run(op, feeds, constants, out_dtype, prepares=False)
    assert packed is None
    results = []
    for n_threads in (1, 2):
        found, packed = run(op, feeds, constants, out_dtype, n_threads=n_threads)
        assert packed is not None
        results.append(found)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], plain)
    return plain


TYPES = [(a, b) for a in (np.uint8, np.int8) for b in (np.uint8, np.int8)]


@pytest.mark.parametrize(("left", "right"), TYPES)
@pytest.mark.parametrize("zeros", ["none", "one", "a column", "a row"])
def test_matmul_integer(left, right, zeros):
    rng = np.random.default_rng(3)
    x, w = whole(rng, (2, 9, DEPTH), left), whole(rng, (DEPTH, WIDTH), right)
    constants, names, zero_x, zero_w = {"w": w}, ["x", "w"], 0, 0
    if zeros != "none":
        zero_x = whole(rng, (9, 1) if zeros == "a row" else (), left)
        zero_w = whole(rng, (WIDTH,) if zeros == "a column" else (), right)
        constants |= {"zx": zero_x, "zw": zero_w}
        names += ["zx", "zw"]
    got = both(Op("MatMulInteger", tuple(names), ("y",)), {"x": x}, constants, "int32")
    want = (x.astype(np.int64) - np.int64(zero_x)) @ (w.astype(np.int64) - np.int64(zero_w))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_matmul_integer_of_a_vector():
    rng = np.random.default_rng(4)
    x, w = whole(rng, (DEPTH,), np.int8), whole(rng, (DEPTH, WIDTH), np.int8)
    got = both(Op("MatMulInteger", ("x", "w"), ("y",)), {"x": x}, {"w": w}, "int32")
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))


def test_products_that_are_scaled():
    rng = np.random.default_rng(5)
    w, x = whole(rng, (DEPTH, WIDTH), np.int8), whole(rng, (7, DEPTH), np.uint8)
    scale = rng.random(WIDTH, dtype=np.float32)
    constants = {"w": w, "s": np.float32(0.02), "ws": scale, "zx": np.uint8(120), "zw": np.int8(0),
                 "b": rng.standard_normal(WIDTH, dtype=np.float32), "os": np.float32(90),
                 "zo": np.uint8(128)}  # fmt: skip
    to_float = Op("com.microsoft:MatMulIntegerToFloat", ("x", "w", "s", "ws", "zx", "zw", "b"), ("y",))
    assert both(to_float, {"x": x}, constants, "float32").std() > 1
    dynamic = Op("com.microsoft:DynamicQuantizeMatMul", ("x", "w", "ws", "zw", "b"), ("y",))
    assert both(dynamic, {"x": rng.standard_normal((7, DEPTH), dtype=np.float32)}, constants, "float32").std() > 1
    linear = Op("QLinearMatMul", ("x", "s", "zx", "w", "ws", "zw", "os", "zo"), ("y",))
    assert both(linear, {"x": x}, constants, "uint8").std() > 1


def test_the_largest_sums_an_int32_holds():
    x, w = np.full((1, INT32_DEPTH), 255, np.uint8), np.full((INT32_DEPTH, 2), 255, np.uint8)
    op = Op("MatMulInteger", ("x", "w"), ("y",))
    assert both(op, {"x": x}, {"w": w}, "int32")[0, 0] == 255**2 * INT32_DEPTH


def test_a_deeper_product_is_not_packed():
    w = np.ones((INT32_DEPTH + 1, 2), np.int8)
    _, packed = run(Op("MatMulInteger", ("x", "w"), ("y",)), {"x": w.T.copy()}, {"w": w}, "int32")
    assert packed is None


def test_without_compiled_kernels():
    with _dispatch.forced("reference"):
        w = np.ones((DEPTH, WIDTH), np.int8)
        _, packed = run(Op("MatMulInteger", ("x", "w"), ("y",)), {"x": w.T.copy()}, {"w": w}, "int32")
    assert packed is None
