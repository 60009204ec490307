"""``python -m bench upsampling``: transposed convolutions of stride 2 by 4 x 4, as Winograd's and otherwise.

Against ONNX Runtime's and our own of four phases, which take any kernel. As a model runs them: weights are packed
before the clock runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import numpy as np

from bench.fresh import ROOT
from bench.measure import interleave
from bench.parts import run_parts
from bench.peers import onnxruntime_session
from bench.rows import Row
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

# Channels in and out, pixels a side: as heads that draw maps larger have them.
SHAPES = ((256, 128, 32), (256, 128, 64), (128, 64, 128), (64, 64, 128))
ATTRIBUTES = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
ROUNDS = 9
# Of the largest number: sums of up to 4 x 256 products in another order.
TOLERANCE = 1e-5
RESULTS = ROOT / "bench" / "results" / "upsampling.json"


def own(x: np.ndarray, weight: np.ndarray, n_threads: int, is_winograd: bool) -> Callable[[], np.ndarray]:
    """The convolution as a model of ours."""
    shape = (1, weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    ops = [Op("ConvTranspose", ("x", "w"), ("y",), ATTRIBUTES)]
    program = Program([Value("x", "float32", x.shape)], [Value("y", "float32", shape)], ops, {"w": weight})
    with mock.patch("pyclattn.graph.filters.is_doubling", return_value=is_winograd):
        model = Model(program, n_threads=n_threads)  # its weight is packed here
    return lambda: model.run(None, {"x": x})[0]


def theirs(x: np.ndarray, weight: np.ndarray, n_threads: int) -> Callable[[], np.ndarray]:
    """ONNX Runtime's ConvTranspose; its weight is an initialiser."""
    from onnx import TensorProto, helper, numpy_helper

    shape = (1, weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("y", shape))]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **ATTRIBUTES)
    graph = helper.make_graph([node], "upsampling", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime_session(model.SerializeToString(), n_threads)
    return lambda: session.run(None, {"x": x})[0]


def rows(n_threads: int) -> Iterator[Row]:
    """Each shape against both."""
    rng = np.random.default_rng(0)
    for depth, channels, side in SHAPES:
        x = rng.standard_normal((1, depth, side, side), dtype=np.float32)
        weight = rng.standard_normal((depth, channels, 4, 4), dtype=np.float32)
        calls = {"Winograd": own(x, weight, n_threads, True), "without": own(x, weight, n_threads, False)}
        calls["ONNX Runtime"] = theirs(x, weight, n_threads)
        want = calls["ONNX Runtime"]()
        for name, call in calls.items():
            difference = float(np.abs(call() - want).max() / np.abs(want).max())
            if not difference <= TOLERANCE:
                raise RuntimeError(f"{name} differs from ONNX Runtime by {difference:.1e} of the largest number")
        timings = interleave(calls, ROUNDS)
        note = ", ".join(f"{name} {1e3 * timings.median(name):.2f}" for name in calls) + " ms"
        note += "" if timings.is_quiet else "; others were busy"
        for name in ("ONNX Runtime", "without"):
            ratio = timings.ratio(name, "Winograd").median
            yield Row("upsampling", f"against {name}", f"{depth} to {channels}, {side} x {side}", ratio, note=note)


main = partial(run_parts, "upsampling", __doc__, {"upsampling": rows}, RESULTS)

if __name__ == "__main__":
    sys.exit(main())
