"""The ONNX project's own node tests, for every operator we claim and every element type we hold."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pyclattn.graph.executor import Executor, kinds
from pyclattn.graph.ops import TABLE
from pyclattn.graph.ops.registry import ONNX_TYPES
from pyclattn_export.from_onnx import from_onnx

# Claimed operators with cases that cannot run, and why; a case that is none of these must pass.
TRAINING = ("training_dropout", "batchnorm_example_training_mode", "batchnorm_epsilon_training_mode")
# Scan of opset 8 is another operator (with a batch axis) than that of opset 9 and later; pyclattn takes 11 and up.
OLDER = ("test_scan_sum",)
HELD = set(ONNX_TYPES)


def load_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


def graph_types(graph):
    """Element types that a graph and all within it names; None for anything that is no tensor."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        form = value.type.WhichOneof("value")
        if form is not None:
            yield value.type.tensor_type.elem_type if form == "tensor_type" else None
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.type == onnx.AttributeProto.INT:
                yield attribute.i
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graph_types(attribute.g)


def graph_kinds(graph):
    for node in graph.node:
        yield f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graph_kinds(attribute.g)


def supported(case) -> bool:
    """Whether all operators and element types of a case are claimed."""
    own = set(graph_kinds(case.model.graph)) - {"Constant", "Dropout"} - {f.name for f in case.model.functions}
    if case.name in OLDER or any(word in case.name for word in TRAINING):
        return False
    types = {t for t in graph_types(case.model.graph) if t != TensorProto.UNDEFINED}
    return own <= set(TABLE) and types <= HELD


def relabelled(model):
    """A case names the opset its operator last changed in; the importer takes 11 to 24 and IR 4 and up.

    Later opsets added element types and attributes that the graph itself shows, so the number can be lowered.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.ir_version = min(max(model.ir_version, 4), onnx.IR_VERSION)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(max(entry.version, 11), 24)
    return model


def plain(array):
    """Test data as an array of a type NumPy has."""
    if isinstance(array, TensorProto):
        array = numpy_helper.to_array(array)
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


CASES = [case for case in load_cases() if supported(case)]


def test_most_cases_are_claimed():
    assert len(CASES) > 1300


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node(case):
    program = from_onnx(relabelled(case.model))
    assert set(kinds(program)) <= set(TABLE)
    executor = Executor(program)
    is_bfloat16 = TensorProto.BFLOAT16 in set(graph_types(case.model.graph))
    for inputs, outputs in case.data_sets:
        given = [plain(a) for a in inputs]
        results = executor({v.name: a for v, a in zip(program.inputs, given)})
        assert len(results) == len(outputs)
        for result, expected in zip(results.values(), outputs):
            expected = plain(expected)
            assert result.dtype == expected.dtype
            assert result.shape == expected.shape
            # bfloat16 is computed in float32, nearer to the truth than the expectation, which has 8 bits
            rtol, atol = (1e-2, 1e-2) if is_bfloat16 else (case.rtol, case.atol)
            if result.dtype == np.float16:  # computed in float32; the expectation, in halves, is off by a unit or two
                rtol = max(rtol, 2e-3)
            np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def test_subgraphs_are_searched_for_kinds():
    x = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "body", [], [x])
    node = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    assert set(graph_kinds(helper.make_graph([node], "g", [], []))) == {"If", "Relu"}
