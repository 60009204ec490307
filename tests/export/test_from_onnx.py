"""Mapping: old opsets in today's meaning, and one clear error for every kind of bad file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import Builder, check, kinds, only, onnxruntime_outputs, run

from pyclattn.errors import ArgumentError, ModelFormatError, UnsupportedOpError
from pyclattn_export import from_onnx, read_program
from pyclattn_export.validate import validate

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def old(kind, *shapes_or_arrays, opset, outputs=1, **attributes):
    """A model of one old operator."""
    g = Builder()
    x = g.input("x", [2, "n", 4], X)
    made = g(kind, x, *shapes_or_arrays, outputs=outputs, **attributes)
    return g.model(*([made] if outputs == 1 else made), opset=opset, ir_version=7), g.feeds


OLD = [
    ("Unsqueeze", 11, {"axes": [0, 2]}),
    ("ReduceSum", 12, {"axes": [1], "keepdims": 0}),
    ("ReduceMean", 13, {"axes": [-1]}),
    ("ReduceMax", 17, {"axes": [1, 2]}),
    ("ReduceL2", 17, {"axes": [1], "keepdims": 0}),
    ("ReduceMean", 17, {}),
    ("Softmax", 12, {"axis": 1}),
    ("Softmax", 11, {"axis": 2}),
    ("Softmax", 12, {}),
    ("LogSoftmax", 12, {"axis": 1}),
    ("Flatten", 11, {"axis": 2}),
    ("Shape", 15, {"start": 1}),
]


@pytest.mark.parametrize(("kind", "opset", "attributes"), OLD, ids=lambda v: str(v))
def test_old_meaning(kind, opset, attributes):
    check(*old(kind, opset=opset, **attributes))


@pytest.mark.parametrize(("opset", "attributes"), [(11, {"split": [1, 3]}), (12, {}), (17, {})])
def test_split(opset, attributes):
    check(*old("Split", opset=opset, outputs=2, axis=2, **attributes))


def test_squeeze():
    g = Builder()
    x = g.input("x", [1, "n", 1], X[:1, :, :1])
    check(g.model(g("Squeeze", x, axes=[0, 2]), opset=12, ir_version=7), g.feeds)


def test_group_norm_of_opset_18():
    """One scale for each group, spread over its channels."""
    g = Builder()
    x = g.input("x", ["b", 6, "n"], np.random.default_rng(0).standard_normal((2, 6, 5)))
    scale, bias = g.const([0.5, 2.0, 1.0]), g.const([1.0, 0.0, -1.0])
    model = g.model(g("GroupNormalization", x, scale, bias, num_groups=3), opset=18)
    (found,) = run(from_onnx(model), g.feeds)
    groups = g.feeds["x"].reshape(2, 3, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    wanted = normal.reshape(2, 3, 2, 5) * np.array([0.5, 2, 1])[:, None, None] + np.array([1, 0, -1])[:, None, None]
    np.testing.assert_allclose(found, wanted.reshape(2, 6, 5), rtol=1e-5, atol=1e-6)


def test_dropout_with_its_mask():
    model, feeds = old("Dropout", opset=13, outputs=2)
    check(model, feeds)


def test_constants_of_every_form():
    g = Builder()
    x = g.input("x", [3], np.arange(3))
    total = g("Add", x, g("Constant", value_floats=[1.0, 2.0, 3.0]))
    total = g("Add", total, g("Constant", value_float=0.5))
    total = g("Gather", total, g("Constant", value_ints=[2, 0]))
    total = g("Gather", total, g("Constant", value_int=1))
    check(g.model(total), g.feeds)


def test_model_local_functions_are_inlined():
    g = Builder()
    x = g.input("x", [3], np.arange(3))
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Neg", ["s"], ["r"])]
    g.functions.append(helper.make_function("local", "Square", ["a"], ["r"], body, [helper.make_opsetid("", 18)]))
    y = g("Square", x, domain="local")
    model = g.model(g("Relu", y))
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert kinds(from_onnx(model)) == ["Mul", "Neg", "Relu"]
    check(model, g.feeds)


def test_bodies_are_programs():
    g = Builder()
    x = g.input("x", [3], np.arange(3))
    body = helper.make_graph(
        [helper.make_node("Add", ["carried", x], ["next"]), helper.make_node("Identity", ["keep"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [3]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [3]),
        ],
    )
    y = g("Loop", g.const(4, np.int64), g.const(np.array(True)), x, body=body)
    program, _ = check(g.model(y), g.feeds)
    assert [value.name for value in only(program, "Loop").attributes["body"].inputs] == ["step", "keep", "carried"]


def test_bfloat16_weights_become_float32():
    values = np.array([1.5, -2.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=halves)
    g = Builder()
    x = g.input("x", [2])
    g.weights.append(tensor)
    program = from_onnx(g.model(g("Mul", x, g("Cast", "w", to=TensorProto.FLOAT))))
    assert program.constants["w"].dtype == np.float32
    assert program.constants["w"].tolist() == [1.5, -2.0]


# -- axes left open ---------------------------------------------------------------------------------------------------


def fixed_model():
    g = Builder()
    x = g.input("x", [1, 4, 4], np.ones((1, 4, 4)))
    return g.model(g("Relu", x))


def test_dynamic_axes():
    program = from_onnx(fixed_model(), dynamic={"x": (1, -1)})
    assert program.inputs[0].shape == (1, "x_1", "x_2")
    feeds = {"x": -np.ones((1, 6, 9), np.float32)}
    assert run(program, feeds)[0].shape == (1, 6, 9)


def test_a_batch_left_open_is_open_in_the_outputs():
    """A length of 1 stays where no 1 was opened."""
    assert from_onnx(fixed_model(), dynamic={"x": (1,)}).outputs[0].shape == (1, "v0_0_1", "v0_0_2")
    assert from_onnx(fixed_model(), dynamic={"x": (0,)}).outputs[0].shape == ("v0_0_0", "v0_0_1", "v0_0_2")


@pytest.mark.parametrize("dynamic", [{"y": (0,)}, {"x": (3,)}, {"x": (-4,)}])
def test_dynamic_axes_that_do_not_exist(dynamic):
    with pytest.raises(ArgumentError, match="dynamic"):
        from_onnx(fixed_model(), dynamic=dynamic)


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    g = Builder()
    x = g.input("x", ["n", 16])
    onnx.save(g.model(g("Relu", g("MatMul", x, g.weight(16, 64)))), path)
    return path


def test_a_good_file_is_read_ready_to_run(file):
    assert kinds(read_program(file)) == ["pyclattn:Linear"]


def test_missing(tmp_path):
    with pytest.raises(ModelFormatError, match=r"gone\.onnx: cannot be read"):
        from_onnx(tmp_path / "gone.onnx")


def test_a_folder(tmp_path):
    with pytest.raises(ModelFormatError, match="not a file"):
        from_onnx(tmp_path)


def test_empty(file):
    file.write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"model\.onnx: no graph"):
        from_onnx(file)


def test_truncated_anywhere(file):
    data = file.read_bytes()
    for end in range(1, len(data), 97):
        file.write_bytes(data[:end])
        with pytest.raises(ModelFormatError, match=r"model\.onnx"):
            from_onnx(file)


def test_altered_bytes_never_surprise(file):
    """Any byte changed: the file is still read, or refused with our error; never another exception."""
    data = bytearray(file.read_bytes())
    named = []
    structure = [i for i in range(len(data)) if i < 60 or i > len(data) - 200]
    for position in structure:
        changed = bytearray(data)
        changed[position] ^= 0x55
        file.write_bytes(bytes(changed))
        try:
            read_program(file)
        except ModelFormatError as error:
            named.append("model.onnx" in str(error))
    assert named
    assert all(named)


def test_something_else(file):
    file.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    with pytest.raises(ModelFormatError, match=r"model\.onnx"):
        from_onnx(file)


@pytest.mark.parametrize("opset", [7, 10, 25, 99])
def test_opset_out_of_range(opset):
    model = fixed_model()
    model.opset_import[0].version = opset
    with pytest.raises(ModelFormatError, match=f"opset {opset} is not supported, expected 11 to 24"):
        from_onnx(model)


def test_no_opset_of_onnx():
    model = fixed_model()
    model.opset_import[0].domain = "elsewhere"
    with pytest.raises(ModelFormatError, match="opset none"):
        from_onnx(model)


@pytest.mark.parametrize("version", [1, 3, 99])
def test_ir_version_out_of_range(version):
    model = fixed_model()
    model.ir_version = version
    with pytest.raises(ModelFormatError, match=f"IR version {version}"):
        from_onnx(model)


@pytest.mark.parametrize("version", range(6, onnx.IR_VERSION + 1))
def test_ir_versions_of_the_last_years(version):
    model = fixed_model()
    model.ir_version = version
    assert kinds(from_onnx(model)) == ["Relu"]


def test_all_unknown_operators_at_once(tmp_path):
    g = Builder()
    x = g.input("x", [3])
    g.nodes.append(helper.make_node("Frobnicate", [x], ["a"], "first"))
    g.nodes.append(helper.make_node("Wobble", ["a"], ["b"], "second", domain="my.domain"))
    g.nodes.append(helper.make_node("Frobnicate", ["b"], ["c"], "third"))
    graph = helper.make_graph(g.nodes, "g", g.inputs, [helper.make_empty_tensor_value_info("c")])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    with pytest.raises(UnsupportedOpError) as caught:
        read_program(path)
    text = str(caught.value)
    assert "odd.onnx: 2 operators" in text
    assert "Frobnicate (at 'first', 'third')" in text
    assert "my.domain:Wobble (at 'second')" in text


def broken(**change):
    g = Builder()
    x = g.input("x", [3])
    node = helper.make_node("Relu", [change.get("source", x)], [change.get("target", "y")], "the_node")
    g.nodes += [node] * change.get("times", 1)
    graph = helper.make_graph(g.nodes, "g", g.inputs, [helper.make_empty_tensor_value_info("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_input_nothing_makes():
    with pytest.raises(ModelFormatError, match=r"node 'the_node' .*'ghost' is made by no node before it"):
        from_onnx(broken(source="ghost"))


def test_a_name_made_twice():
    with pytest.raises(ModelFormatError, match=r"node 'the_node' .*'y' is defined twice"):
        from_onnx(broken(times=2))


def test_an_output_nothing_makes():
    with pytest.raises(ModelFormatError, match="output 'y' is made by no node"):
        from_onnx(broken(target="z"))


def test_a_weight_with_too_few_bytes():
    model = broken()
    model.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[3, 5], raw_data=b"1234"))
    with pytest.raises(ModelFormatError, match=r"'w' of shape \[3, 5\] and type float32 needs 60 bytes, has 4"):
        from_onnx(model)


def test_training_is_refused():
    with pytest.raises(UnsupportedOpError, match="training mode"):
        from_onnx(training_model())


def training_model():
    g = Builder()
    x = g.input("x", [2, 3, 4], X)
    weights = [g.weight(3) for _ in range(4)]
    y = g("BatchNormalization", x, *weights, outputs=3, training_mode=1)
    return g.model(*y, opset=15)


def test_sequences_are_refused_by_name():
    g = Builder()
    x = g.input("x", [3])
    model = g.model(g("Relu", x))
    value = helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, [3])
    model.graph.input.append(value)
    with pytest.raises(ModelFormatError, match="'many' is a sequence"):
        from_onnx(model)


def test_a_weight_named_twice():
    g = Builder()
    model = g.model(g("MatMul", g.input("x", ["n", 4]), g.weight(4, 4)))
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelFormatError, match="weight 'c0' is defined twice"):
        from_onnx(model)


@pytest.mark.parametrize(
    ("kind", "n_inputs", "attributes", "match"),
    [
        ("MatMul", 1, {}, r"'n0' \(MatMul\): expected 2 inputs, got 1"),
        ("Clip", 4, {}, "expected 1 to 3 inputs, got 4"),
        ("Concat", 0, {"axis": 0}, "expected at least 1 inputs, got 0"),
        ("Concat", 2, {}, "attribute 'axis' is missing"),
        ("Relu", 1, {"slope": 0.1}, "attribute 'slope' is not one that ONNX knows"),
    ],
)
def test_operators_of_another_form(kind, n_inputs, attributes, match):
    g = Builder()
    x = g.input("x", [3, 3])
    model = g.model(g(kind, *[x] * n_inputs, **attributes))
    with pytest.raises(ModelFormatError, match=match):
        from_onnx(model)


def test_an_output_of_another_type_than_declared():
    g = Builder()
    model = g.model(g("Relu", g.input("x", ["n", 4])))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ModelFormatError, match="output 'v0_0' is float32, the model declares it as int64"):
        run(from_onnx(model), g.feeds)


def test_validate_accepts_what_runs(file):
    validate(from_onnx(file))


def test_reference_itself_runs():
    """The helper compares with ONNX Runtime, not with ourselves."""
    model = fixed_model()
    (found,) = onnxruntime_outputs(model, {"x": -np.ones((1, 4, 4), np.float32)})
    assert not found.any()
