"""RNN, GRU and LSTM against ONNX Runtime; ONNX's own cases are in `test_onnx_node_cases`."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pyclattn.errors import PyclattnError
from pyclattn.graph.executor import Executor
from pyclattn.graph.passes import optimize
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn_export import from_onnx

LENGTH, BATCH, WIDTH, HIDDEN = 7, 3, 5, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def model_of(kind, lengths=False, states=False, peepholes=False, **attributes):
    """A model of one layer, its feeds; weights large enough to bend the activations."""
    rng = np.random.default_rng(3)
    d = 2 if attributes.get("direction") == "bidirectional" else 1
    g = GATES[kind] * HIDDEN
    weights = [(d, g, WIDTH), (d, g, HIDDEN), (d, 2 * g)]
    arrays = {f"w{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(weights)}
    inputs = ["x", "w0", "w1", "w2", "lengths" if lengths else "", "h" if states else ""]
    feeds = {"x": rng.standard_normal((LENGTH, BATCH, WIDTH)).astype(np.float32)}
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["l", "b", WIDTH])]
    if lengths:
        arrays["lengths"] = np.array([7, 2, 5], np.int32)
    n_states = 2 if kind == "LSTM" else 1
    for name in ("h", "c")[: n_states if states else 0]:
        arrays[name] = rng.standard_normal((d, BATCH, HIDDEN)).astype(np.float32)
    if kind == "LSTM":
        inputs += ["c" if states else "", "p" if peepholes else ""]
        arrays["p"] = rng.standard_normal((d, 3 * HIDDEN)).astype(np.float32)
    outputs = ["y", "y_h", "y_c"][: 1 + n_states]
    node = helper.make_node(kind, inputs, outputs, "layer", hidden_size=HIDDEN, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in inputs]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(n) for n in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), feeds


CASES = {
    "rnn": ("RNN", {"direction": "bidirectional", "lengths": True, "activations": ["Relu", "Tanh"]}),
    "gru": ("GRU", {"states": True}),
    "gru reset behind": ("GRU", {"linear_before_reset": 1, "direction": "reverse", "lengths": True, "states": True}),
    "lstm": ("LSTM", {}),
    "lstm both ways": ("LSTM", {"direction": "bidirectional", "lengths": True, "states": True}),
    "lstm reverse": ("LSTM", {"direction": "reverse", "lengths": True}),
    "lstm peepholes": ("LSTM", {"peepholes": True, "states": True, "clip": 0.7}),
    "lstm coupled": ("LSTM", {"input_forget": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_against_onnxruntime(name):
    kind, more = CASES[name]
    model, feeds = model_of(kind, **more)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    program, _ = optimize(from_onnx(model))
    for value, found in zip(wanted, Executor(program)(feeds).values(), strict=True):
        assert found.shape == value.shape
        np.testing.assert_allclose(found, value, rtol=5e-6, atol=2e-6)


@pytest.mark.parametrize("kind", GATES)
def test_shapes_are_known_before_the_run(kind):
    model, _ = model_of(kind, direction="bidirectional")
    program = from_onnx(model)
    known = Shapes(Editor(program))
    length, batch, _ = known.shape("x")
    assert known.shape("y") == (length, 2, batch, HIDDEN)
    assert known.shape("y_h") == (2, batch, HIDDEN)


@pytest.mark.parametrize(("more", "message"), [
    ({"activations": ["Sigmoid", "Affine", "Tanh"]}, "activations must be 3 of"),
    ({"activations": ["Sigmoid"]}, "activations must be 3 of"),
    ({"direction": "up"}, "direction must be one of forward"),
    ({"hidden": 5}, "input 1 must have shape"),
])  # fmt: skip
def test_what_does_not_fit(more, message):
    model, feeds = model_of("LSTM", **{k: v for k, v in more.items() if k != "hidden"})
    if "hidden" in more:
        model.graph.node[0].attribute[0].i = more["hidden"]
    with pytest.raises(PyclattnError, match=message):
        Executor(from_onnx(model))(feeds)
