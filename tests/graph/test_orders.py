"""Operators read inputs in whatever order they lie, as they are during the run: the views of transposed arrays."""

import numpy as np
import pytest
from test_onnx_node_cases import CASES, plain, relabelled

from pyclattn import Model
from pyclattn.graph.executor import Executor
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.quantise import quantise
from pyclattn_export.from_onnx import from_onnx

# bfloat16, whose expectations are off (see test_onnx_node_cases), and cases that only combine others.
LEFT_OUT = ("bfloat16", "bf16", "BFLOAT16", "_expanded")
CHOSEN = [case for case in CASES if not any(word in case.name for word in LEFT_OUT)]


def transposed(program, feeds):
    """The same program of inputs with their axes reversed, and these inputs."""
    turned = {v.name: v.shape for v in program.inputs if feeds[v.name].ndim > 1}
    inputs = [Value(f"{v.name}.T", v.dtype, v.shape[::-1]) if v.name in turned else v for v in program.inputs]
    ops = [
        Op("Transpose", (f"{name}.T",), (name,), {"perm": list(range(len(shape)))[::-1]})
        for name, shape in turned.items()
    ]
    plainly = {name: a for name, a in feeds.items() if name not in turned}
    given = plainly | {f"{name}.T": np.array(feeds[name].T, order="C") for name in turned}
    return Program(inputs, program.outputs, [*ops, *program.ops], program.constants), given


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_node(case):
    program = from_onnx(relabelled(case.model))
    for inputs, outputs in case.data_sets:
        turned, feeds = transposed(program, {v.name: plain(a) for v, a in zip(program.inputs, inputs)})
        for result, expected in zip(Executor(turned)(feeds).values(), outputs):
            rtol = 2e-3 if result.dtype == np.float16 else case.rtol
            np.testing.assert_allclose(result, plain(expected), rtol=rtol, atol=max(1e-6, case.atol))


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("activation", ["", "relu", "tanh"])  # the last is not one of the tile's
@pytest.mark.parametrize("batch", [1, 2])
def test_a_residual_in_another_order(batch, activation, weights):
    """A block of attention over an image: positions of channels last, as a view of channels first."""
    rng = np.random.default_rng(0)
    length, width = 64, 256
    x, y = Value("x", "float32", (batch, width, length)), Value("y", "float32", (batch, length, width))
    ops = [
        Op("Relu", ("x",), ("image",)),
        Op("Transpose", ("image",), ("tokens",), {"perm": [0, 2, 1]}),
        Op("Sigmoid", ("tokens",), ("s",)),
        Op("pyclattn:Linear", ("s", "w"), ("p",), {"activation": activation}),
        Op("Add", ("tokens", "p"), ("y",)),
    ]
    weight = rng.standard_normal((width, width), dtype=np.float32) / 16
    program = Program([x], [y], ops, {"w": weight})
    if weights != "fp32":
        program, _ = quantise(program, weights)
    model = Model(program, n_threads=2)
    given = rng.standard_normal((batch, width, length), dtype=np.float32)
    tokens = np.maximum(given, 0).transpose(0, 2, 1)
    made = 1 / (1 + np.exp(-tokens)) @ weight
    expected = tokens + {"": made, "relu": np.maximum(made, 0), "tanh": np.tanh(made)}[activation]
    for _ in range(2):
        np.testing.assert_allclose(model(x=given)["y"], expected, atol={"fp32": 1e-5}.get(weights, 0.05))


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
def test_a_norm_of_several_axes(kind):
    rng = np.random.default_rng(0)
    x, y = Value("x", "float32", (5, 4, 3)), Value("y", "float32", (3, 4, 5))
    ops = [Op("Transpose", ("x",), ("t",), {"perm": [2, 1, 0]}), Op(kind, ("t", "w"), ("y",), {"axis": 1})]
    weight, given = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 5), (5, 4, 3)))
    rows = given.transpose(2, 1, 0).astype(np.float64)
    rows = rows - rows.mean((1, 2), keepdims=True) * (kind == "LayerNormalization")
    expected = rows / np.sqrt((rows**2).mean((1, 2), keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(Model(Program([x], [y], ops, {"w": weight}))(x=given)["y"], expected, atol=1e-5)
