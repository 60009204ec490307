"""Operators against ONNX Runtime: its own kinds, convolutions, resizing."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from tests.graph.build import run

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(result, expected, tolerance=1e-5):
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def onnxruntime_result(kind, inputs, attributes):
    """What ONNX Runtime makes of one operator; None stands for an input that is left out."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    feeds = {n: a for n, a in zip(names, inputs) if n}
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in feeds.items()]  # fmt: skip
    domain, _, name = kind.rpartition(":")
    node = helper.make_node(name, names, ["y"], domain=domain, **attributes)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info("y")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("kind", ["com.microsoft:Attention", "com.microsoft:MultiHeadAttention"])
@pytest.mark.parametrize("mask", [None, "lengths", "keys"])
def test_attention(kind, mask):
    b, length, heads, hidden = 2, 7, 3, 12
    x, w, bias = normal(b, length, hidden), normal(hidden, 3 * hidden), normal(3 * hidden)
    index = {"lengths": np.array([7, 4], np.int32), "keys": np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)}
    if kind.endswith(":Attention"):
        inputs = [x, w, bias]
    else:
        inputs = [*(np.ascontiguousarray(p) for p in np.split(x @ w, 3, -1)), bias]
    if mask:
        inputs.append(index[mask])
    attributes = {"num_heads": heads}
    close(run(kind, inputs, attributes), onnxruntime_result(kind, inputs, attributes), 1e-4)


MICROSOFT = [
    ("FusedMatMul", [normal(2, 5, 4), normal(2, 6, 4)], {"alpha": 0.5, "transB": 1}),
    ("FusedMatMul", [normal(4, 5), normal(6, 4)], {"alpha": 2.0, "transA": 1, "transB": 1}),
    ("BiasGelu", [normal(3, 8), normal(8)], {}),
    ("FastGelu", [normal(3, 8), normal(8)], {}),
    ("Gelu", [normal(3, 8)], {}),
    ("QuickGelu", [normal(3, 8)], {"alpha": 1.702}),
    ("SkipLayerNormalization", [normal(2, 3, 8), normal(2, 3, 8), normal(8), normal(8), normal(8)], {"epsilon": 1e-5}),
    ("DynamicQuantizeMatMul", [normal(3, 300), RNG.integers(0, 255, (300, 5), np.uint8), normal(1) ** 2], {}),
    (
        "MatMulIntegerToFloat",
        [RNG.integers(0, 255, (4, 9), np.uint8), RNG.integers(-127, 127, (9, 5), np.int8), normal(1) ** 2,
         normal(5) ** 2, np.uint8([3]), np.int8([1, 2, 3, 4, 5]), normal(5)],
        {},
    ),
    (
        "QLinearAdd",
        [RNG.integers(0, 255, (2, 9), np.uint8), np.float32(0.1), np.uint8(9), RNG.integers(0, 255, (9,), np.uint8),
         np.float32(0.2), np.uint8(3), np.float32(0.25), np.uint8(100)],
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"), MICROSOFT, ids=[f"{i}-{m[0]}" for i, m in enumerate(MICROSOFT)]
)
def test_fused_kinds_of_onnxruntime(kind, inputs, attributes):
    inputs = [np.asarray(a) for a in inputs]
    expected = onnxruntime_result(f"com.microsoft:{kind}", inputs, attributes)
    result = run(f"com.microsoft:{kind}", inputs, attributes)
    assert result.dtype == expected.dtype
    if result.dtype.kind in "iu":  # one step where a sum lies between two
        assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1
        assert (result == expected).mean() > 0.8
    else:
        # ORT's FastGelu and QuickGelu use a coarser tanh
        close(result, expected, 2e-3 if "Gelu" in kind else 1e-4)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((2, 3, 40, 33), (8, 3, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ((1, 3, 56, 70), (16, 3, 14, 14), {"strides": [14, 14]}),
        ((2, 8, 30), (8, 1, 5), {"group": 8, "pads": [2, 2]}),
        ((1, 8, 50), (12, 4, 9), {"group": 2, "dilations": [3], "pads": [12, 12]}),
        ((1, 6, 9, 9), (4, 6, 1, 1), {}),
        ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), {"pads": [1, 1, 1, 0, 1, 1]}),
        ((1, 40, 90, 90), (48, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
    ],
)
def test_convolution(shape, weight, attributes, n_threads):
    inputs = [normal(*shape), normal(*weight), normal(weight[0])]
    expected = onnxruntime_result("Conv", inputs, attributes)
    close(run("Conv", inputs, attributes, n_threads), expected, 2e-4)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((2, 4, 9, 7), (4, 3, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((1, 4, 9, 7), (4, 2, 3, 2), {"strides": [3, 2], "group": 2, "output_padding": [1, 1]}),
        ((1, 4, 20), (4, 3, 5), {"strides": [1], "dilations": [2], "pads": [0, 3]}),
        ((1, 2, 4, 5, 3), (2, 3, 2, 2, 3), {"strides": [2, 1, 2]}),
        ((1, 24, 60, 50), (24, 16, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ],
)
def test_transposed_convolution(shape, weight, attributes, n_threads):
    inputs = [normal(*shape), normal(*weight), normal(weight[1] * attributes.get("group", 1))]
    expected = onnxruntime_result("ConvTranspose", inputs, attributes)
    close(run("ConvTranspose", inputs, attributes, n_threads), expected, 2e-4)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("where", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_resize(mode, where):
    x = normal(1, 2, 9, 6)
    attributes = {"mode": mode, "coordinate_transformation_mode": where, "nearest_mode": "floor"}
    sizes = np.array([1, 2, 21, 4])
    expected = onnxruntime_result("Resize", [x, None, None, sizes], attributes)
    close(run("Resize", [x, sizes], attributes, optional=(1, 2)), expected, 1e-4)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize(("shape", "sizes"), [((1, 24, 40, 30), (1, 24, 90, 71)), ((1, 1, 400, 200), (1, 1, 370, 500))])
def test_resize_in_pieces(mode, shape, sizes):
    """The same bits on any number of threads."""
    x, sizes = normal(*shape), np.array(sizes)
    expected = onnxruntime_result("Resize", [x, None, None, sizes], {"mode": mode})
    whole = run("Resize", [x, sizes], {"mode": mode}, 1, optional=(1, 2))
    close(whole, expected, 1e-4)
    for n_threads in (2, 3):
        shared = run("Resize", [x, sizes], {"mode": mode}, n_threads, optional=(1, 2))
        assert np.array_equal(shared[0], whole[0])
