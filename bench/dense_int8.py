"""Products with an int8 weight against ONNX Runtime's dynamic int8: the same shapes as ``python -m bench dense``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.measure import interleave
from bench.peers import onnxruntime_session
from bench.rows import Row
from pyclattn.functional.dense_int8 import pack_int8, quantise_weight

# Both round the rows, each in its own way (ONNX Runtime all rows by one scale): of the largest number in the product.
TOLERANCE = 0.05


def onnxruntime_dynamic(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, out: np.ndarray, n_threads: int):
    """What its quantiser makes of a MatMul: the runtime fuses it into one DynamicQuantizeMatMul; buffers are bound."""
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("y", out))]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "row_scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["row_scale", "scales"], ["scale"]),
        helper.make_node("Mul", ["product", "scale"], ["y"]),
    ]
    weights = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime_session(model.SerializeToString(), n_threads)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def is_exact(n_rows: int, depth: int, width: int) -> bool:
    """Whether sums of whole numbers over all their range are those of int32 arithmetic."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (n_rows, depth), np.uint8)
    codes = rng.integers(-128, 128, (depth, width), np.int8)
    sums = pack_int8(codes, np.ones(width, np.float32)).bind_sums(rows)()
    return bool(np.array_equal(sums, rows.astype(np.float64) @ codes.astype(np.float64)))  # exact below 2^53


def row(n_rows: int, depth: int, width: int, n_threads: int, rounds: int) -> Row:
    """ONNX Runtime's time over ours."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n_rows, depth), (depth, width)))
    codes, scales = quantise_weight(weight)
    mine, theirs = (np.zeros((n_rows, width), np.float32) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "pyclattn": pack_int8(codes, scales).bind(x, out=mine, n_threads=n_threads),
        "onnxruntime": onnxruntime_dynamic(x, codes, scales, theirs, n_threads),
    }
    timings = interleave(calls, rounds)
    difference = np.abs(mine - theirs).max() / np.abs(mine).max()
    if not difference <= TOLERANCE or not is_exact(min(n_rows, 64), depth, min(width, 100)):
        raise RuntimeError(f"({n_rows} x {depth}) x ({depth} x {width}): differs by {difference:.1e}, or is not exact")
    work = 2 * n_rows * depth * width / 1e9
    speeds = {name: work / timings.median(name) for name in calls}
    note = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items()) + " GOPS"
    return Row("int8 products", f"({n_rows} x {depth}) x ({depth} x {width})", "", timings.ratio(
        "onnxruntime", "pyclattn").median, note=note + ("" if timings.is_quiet else "; others were busy"),
        detail={"rows": n_rows, **speeds})  # fmt: skip
