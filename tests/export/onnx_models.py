"""Small ONNX models, written node by node, and their run in ONNX Runtime and in pyclattn."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pyclattn.graph.executor import Executor
from pyclattn.graph.passes import optimize
from pyclattn_export import from_onnx

TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL, "int32": TensorProto.INT32,
}  # fmt: skip


class Builder:
    """Collects nodes; every method returns the name of a value."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.inputs, self.weights, self.feeds, self.functions = [], [], [], {}, []

    def input(self, name, shape, array=None, dtype="float32"):
        """An input; ``shape`` may hold names. ``array`` is what it is run on."""
        if array is None:
            array = self.rng.standard_normal([n if isinstance(n, int) else 7 for n in shape]).astype(dtype)
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(shape)))
        self.feeds[name] = np.asarray(array, dtype)
        return name

    def const(self, array, dtype=None):
        name = f"c{len(self.weights)}"
        array = np.asarray(array, dtype)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape):
        return self.const((self.rng.standard_normal(shape) * 0.3).astype(np.float32))

    def __call__(self, kind, *inputs, outputs=1, domain="", **attributes):
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, *outputs, opset=18, ir_version=10):
        infos = []
        for name in outputs:
            infos.append(helper.make_empty_tensor_value_info(name))
        graph = helper.make_graph(self.nodes, "g", self.inputs, infos, self.weights)
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=self.functions)
        try:
            return onnx.shape_inference.infer_shapes(model)
        except onnx.shape_inference.InferenceError:
            return model


def onnxruntime_outputs(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Each operator as it stands: ONNX Runtime's own fusions are not what is compared with.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run(program, feeds):
    outputs = Executor(program)(feeds)
    return [outputs[value.name] for value in program.outputs]


def check(model, feeds, reference=True):
    """Run a model as it is and optimised, compare with ONNX Runtime; returns (optimised program, report)."""
    program = from_onnx(model)
    small, report = optimize(program)
    plain = run(program, feeds)
    wanted = onnxruntime_outputs(model, feeds) if reference else plain
    for expected, first, second in zip(wanted, plain, run(small, feeds)):
        assert first.dtype == second.dtype == expected.dtype
        rtol, atol = (4e-3, 4e-3) if expected.dtype == np.float16 else (1e-4, 2e-5)
        np.testing.assert_allclose(first, expected, rtol=rtol, atol=atol)
        np.testing.assert_allclose(second, expected, rtol=rtol, atol=atol)
    return small, report


def kinds(program):
    return [op.kind for op in program.ops]


def only(program, kind):
    """The one operator of a kind."""
    (found,) = [op for op in program.ops if op.kind == kind]
    return found
