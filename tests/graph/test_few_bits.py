"""MatMulNBits against its definition in float64 and against ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pyclattn.errors import PyclattnError
from pyclattn.graph.executor import Executor
from pyclattn.graph.passes import optimize
from pyclattn.graph.spec import Settings
from pyclattn_export import from_onnx
from tests.graph.build import run


def packed(values, bits):
    """Whole numbers to bytes along the last axis, one after the other, as the definition says."""
    per_byte = 8 // bits
    flat = values.reshape(-1, values.shape[-1])
    rows = np.zeros((len(flat), -(-flat.shape[1] // per_byte)), np.uint8)
    for i, row in enumerate(flat):
        for j, value in enumerate(row):
            rows[i, j // per_byte] |= int(value) << (bits * (j % per_byte))
    return rows.reshape(*values.shape[:-1], -1)


def case(bits=4, block=32, k=64, n=10, rows=(3,), zero=None, bias=False, group=False, dtype=np.float32):
    """Inputs of MatMulNBits, its attributes, and the product in float64."""
    rng = np.random.default_rng(bits + block + k)
    n_blocks = -(-k // block)
    a = rng.standard_normal((*rows, k)).astype(dtype)
    whole = rng.integers(0, 1 << bits, (n, n_blocks * block))
    scales = (rng.random((n, n_blocks)) + 0.1).astype(dtype)
    zeros = {
        None: np.full((n, n_blocks), 1 << (bits - 1)),
        "packed": rng.integers(0, 1 << bits, (n, n_blocks)),
        "float": rng.random((n, n_blocks)).astype(dtype) * 5,
    }[zero]
    own = rng.integers(0, n_blocks, k).astype(np.int32) if group else np.arange(k) // block
    weight = (whole[:, :k] - zeros[:, own].astype(float)) * scales[:, own].astype(float)
    shift = rng.standard_normal(n).astype(dtype) if bias else None
    given_zeros = {None: None, "packed": packed(zeros, bits), "float": zeros}[zero]
    weights = packed(whole.reshape(n, n_blocks, block), bits)
    inputs = [a, weights, scales, given_zeros, own if group else None, shift]
    wanted = a.astype(float) @ weight.T + (shift.astype(float) if bias else 0)
    return inputs, {"K": k, "N": n, "bits": bits, "block_size": block}, wanted


def close(result, wanted, tolerance=2e-6):
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, rtol=0, atol=tolerance * np.ptp(wanted))


CASES = {
    "4 bits": {},
    "zeros": {"zero": "packed", "k": 96},
    "float zeros": {"zero": "float"},
    "2 bits": {"bits": 2, "block": 16, "k": 80, "zero": "packed"},
    "8 bits": {"bits": 8, "zero": "packed", "bias": True},
    "rest of a block": {"k": 70, "block": 32, "zero": "packed"},
    "batch": {"rows": (2, 3), "bias": True},
    "many": {"n": 3000, "k": 256, "block": 128, "rows": (5,)},
}


def model_of(inputs, attributes):
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    weights = [numpy_helper.from_array(array, name) for name, array in zip(names[1:], inputs[1:]) if name]
    node = helper.make_node("MatMulNBits", names, ["y"], "n", domain="com.microsoft", **attributes)
    given = helper.make_tensor_value_info("x0", TensorProto.FLOAT, inputs[0].shape)
    graph = helper.make_graph([node], "g", [given], [helper.make_empty_tensor_value_info("y")], weights)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_against_onnxruntime_and_the_definition(name, n_threads):
    inputs, attributes, wanted = case(**CASES[name])
    model = model_of(inputs, attributes)
    program, _ = optimize(from_onnx(model))
    (result,) = Executor(program, Settings(n_threads=n_threads))({"x0": inputs[0]}).values()
    close(result, wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    close(session.run(None, {"x0": inputs[0]})[0], wanted, 1e-4)


def given(inputs):
    """(arrays, positions left out) as `run` takes them."""
    return [a for a in inputs if a is not None], tuple(i for i, a in enumerate(inputs) if a is None)


def test_groups():
    inputs, attributes, wanted = case(group=True, k=70, zero="packed")
    arrays, out = given(inputs)
    close(run("com.microsoft:MatMulNBits", arrays, attributes, optional=out, constants=range(1, 6)), wanted)


def test_half_precision():
    inputs, attributes, wanted = case(dtype=np.float16, bias=True)
    arrays, out = given(inputs)
    result = run("com.microsoft:MatMulNBits", arrays, attributes, optional=out)
    assert result.dtype == np.float16
    close(result, wanted, 1e-3)


@pytest.mark.parametrize(("changes", "message"), [
    ({"bits": 3}, "bits must be 2, 4 or 8"),
    ({"block_size": 24}, "power of 2"),
    ({"K": 65}, "do not fit"),
    ({"N": 11}, "do not fit"),
])  # fmt: skip
def test_what_does_not_fit(changes, message):
    inputs, attributes, _ = case()
    arrays, out = given(inputs)
    with pytest.raises(PyclattnError, match=message):
        run("com.microsoft:MatMulNBits", arrays, attributes | changes, optional=out)


def test_zeros_that_do_not_fit():
    inputs, attributes, _ = case(zero="packed")
    inputs[3] = inputs[3][:5]
    arrays, out = given(inputs)
    with pytest.raises(PyclattnError, match="input 3 must have 10 elements"):
        run("com.microsoft:MatMulNBits", arrays, attributes, optional=out)
