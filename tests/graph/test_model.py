"""load, Model and the model file."""

import json
import pickle
import re
import warnings
from copy import deepcopy

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import (
    ArgumentError,
    DTypeError,
    MemoryLimitError,
    ModelFormatError,
    ModelWarning,
    UnsupportedOpError,
)
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.serial import load_program, save_program
from pyclattn.model import Model, load
from pyclattn.plan import Choice, Plan
from pyclattn.weights import SafeTensors, write_safetensors
from tests.graph.build import mlp, mlp_result


def attention_model(n_heads=2, d=16):
    """Self-attention of x with two attentions in a row."""
    ops = []
    for i, (x, y) in enumerate((("x", "h"), ("h", "y"))):
        ops += [
            Op("Reshape", (x, "heads"), (f"q{i}",)),
            Op("pyclattn:Attention", (f"q{i}",) * 3, (f"a{i}",), {"name": f"layer{i}", "layout": "blhd", "scale": 1.0}),
            Op("Reshape", (f"a{i}", "flat"), (y,)),
        ]
    shape = ("batch", "length", n_heads * d)
    constants = {"heads": np.array([0, 0, n_heads, d]), "flat": np.array([0, 0, n_heads * d])}
    return Program([Value("x", "float32", shape)], [Value("y", "float32", shape)], ops, constants)


@pytest.mark.parametrize("declared", [("batch", "length", 31), (1, "length", 32), ("batch", "length")])
def test_an_output_of_another_shape_than_declared(declared):
    """Said, and right all the same: many ONNX files are wrong about lengths."""
    program, x = attention_model(), np.ones((2, 7, 32), np.float32)
    want = Model(program)(x=x)["y"]
    program.outputs[0] = Value("y", "float32", declared)
    model = Model(program)
    told = re.escape(f"output 'y' has shape (2, 7, 32), the model declares it as {declared}")
    for call in (lambda: model(x=x)["y"], lambda: model.run(None, {"x": x})[0]):
        with pytest.warns(ModelWarning, match=told) as warned:
            np.testing.assert_array_equal(call(), want)
        assert warned[0].filename == __file__
    for fitting in (("batch", "length", 32), (2, 7, 32), ("...",)):
        program.outputs[0] = Value("y", "float32", fitting)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Model(program)(x=x)


def test_an_output_whose_type_only_the_run_tells():
    """The branches of an If differ: the one that was taken must be what callers are told."""
    x, flag = Value("x", "float32", ("n",)), Value("flag", "bool", ())
    branches = {
        name: Program([], [Value(name, "", ("...",))], [Op("Cast", ("x",), (name,), {"to": dtype})])
        for name, dtype in (("then_branch", "float32"), ("else_branch", "int64"))
    }
    model = Model(Program([x, flag], [Value("y", "float32", ("n",))], [Op("If", ("flag",), ("y",), branches)]))
    feeds = {"x": np.ones(3, np.float32), "flag": np.array(True)}
    assert model(**feeds)["y"].dtype == np.float32
    with pytest.raises(ModelFormatError, match="output 'y' is int64, the model declares it as float32"):
        model(**{**feeds, "flag": np.array(False)})


@pytest.mark.parametrize("read", [load, pyclattn.load_weights, Plan.load])
@pytest.mark.parametrize("given", [None, 3, b"model.safetensors"])
def test_what_is_no_path(read, given):
    with pytest.raises(DTypeError, match=f"path must be a path, as text or pathlib.Path, got {given!r}"):
        read(given)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    save_program(path, mlp())
    return path


def test_round_trip_of_everything_a_program_can_hold(tmp_path):
    inner = Program([], [Value("r", "", ("...",))], [Op("Add", ("x", "w"), ("r",))], {"w": np.float32([2])})
    other = Program([], [Value("r", "", ("...",))], [Op("Add", ("x", "w"), ("r",))], {"w": np.float32([3])})
    attributes = {"then_branch": inner, "else_branch": other}
    odd = {
        "inf": float("inf"),
        "nan": float("nan"),
        "list": [1, 2.5, "ü"],
        "array": np.arange(3),
        "yes": True,
        "no": None,
    }
    ops = [Op("If", ("c",), ("y",), attributes, name="if"), Op("Identity", ("y",), ("z",), odd)]
    inputs = [Value("c", "bool", ()), Value("x", "float32", ("n",))]
    program = Program(inputs, [Value("z", "float32", ("n",))], ops, {}, {"opset": 17, "source": "onnx"})
    save_program(tmp_path / "m.safetensors", program)
    again = load_program(tmp_path / "m.safetensors")
    assert again.inputs == program.inputs
    assert again.outputs == program.outputs
    assert again.metadata == program.metadata
    assert again.ops[0].attributes["then_branch"].constants["w"] == 2
    assert again.ops[0].attributes["else_branch"].constants["w"] == 3
    found = again.ops[1].attributes
    assert found["inf"] == float("inf")
    assert np.isnan(found["nan"])
    assert found["list"] == [1, 2.5, "ü"]
    np.testing.assert_array_equal(found["array"], [0, 1, 2])
    assert found["yes"] is True
    assert found["no"] is None


def test_a_shared_weight_is_stored_once(tmp_path):
    program = mlp()
    program.constants["w2"] = program.constants["w"]
    program.ops.append(Op("MatMul", ("x", "w2"), ("unused",)))
    save_program(tmp_path / "m.safetensors", program)
    assert sorted(SafeTensors(tmp_path / "m.safetensors")) == ["b", "v", "w"]
    assert set(load_program(tmp_path / "m.safetensors").constants) == {"b", "v", "w", "w2"}


def test_load_and_call(path):
    model = load(path)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    expected = mlp_result(mlp(), x)
    np.testing.assert_allclose(model(x=x)["y"], expected, rtol=1e-4, atol=1e-4)
    (result,) = model.run(None, {"x": x})
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert len(model.run(["y", "y"], {"x": x})) == 2
    with pytest.raises(ArgumentError, match=r"nothing.*y"):
        model.run(["nothing"], {"x": x})


def test_the_weights_stay_in_the_file(path):
    model = load(path)
    array = model.program.constants["w"]
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    assert isinstance(array, np.memmap) or "mmap" in type(array).__name__


def test_inputs_are_described_as_onnxruntime_does(path):
    (x,), (y,) = load(path).get_inputs(), load(path).get_outputs()
    assert (x.name, x.shape, x.type) == ("x", ["rows", 8], "tensor(float)")
    assert (y.name, y.type) == ("y", "tensor(float)")
    kinds = {
        "int64": "tensor(int64)",
        "float64": "tensor(double)",
        "bool": "tensor(bool)",
        "float16": "tensor(float16)",
    }
    for dtype, expected in kinds.items():
        value = Value("v", dtype, ())
        assert Model(Program([value], [value], [])).get_inputs()[0].type == expected


def test_attention_by_name():
    x = np.random.default_rng(0).standard_normal((1, 200, 32)).astype(np.float32)
    program = attention_model()
    exact = Model(program)
    assert exact.attentions == ["layer0", "layer1"]
    fast = {"method": "improved-clustered", "n_clusters": 10, "topk": 8}
    everywhere, first = Model(program, attention=fast), Model(program, attention={"layer0": fast})
    results = [m(x=x)["y"] for m in (exact, everywhere, first, Model(program, attention={"default": fast}))]
    np.testing.assert_array_equal(results[1], results[3])
    for i in range(3):
        for j in range(i):
            assert np.abs(results[i] - results[j]).max() > 1e-4
    heads = x.reshape(1, 200, 2, 16).transpose(0, 2, 1, 3)
    once = pyclattn.improved_clustered_attention(heads, heads, heads, n_clusters=10, topk=8, scale=1.0)
    twice = pyclattn.scaled_dot_product_attention(once, once, once, scale=1.0)
    np.testing.assert_allclose(results[2], twice.transpose(0, 2, 1, 3).reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("nonsense", ["nonsense", "improved-clustered"]),
        ({"method": "clustered", "topk": 3}, ["clustered", "topk", "n_clusters"]),
        ({"layer7": "exact"}, ["layer7", "layer0, layer1"]),
        ({"layer0": 3}, ["3"]),
        ({"method": "coclustered", "topk": 3}, ["coclustered", "topk", "n_exact"]),
        ({"method": "coclustered", "n_exact": -1}, ["n_exact must be a whole number of at least 0, got -1"]),
        ({"method": "auto", "rank": 2.0}, ["rank must be a whole number of at least 1, got 2.0"]),
        ({"method": "coclustered", "n_key_clusters": "all"}, ["n_key_clusters", "'all'"]),
        ({"method": "clustered", "n_bits": 64}, ["n_bits must be a whole number from 1 to 63, got 64"]),
        ({"method": "clustered", "n_clusters": None}, ["n_clusters", "None"]),
        ({"layer1": {"method": "improved-clustered", "topk": True}}, ["topk", "True"]),
        ({"method": "clustered", "clustering": "best"}, ["clustering", "lsh, kmeans, metric", "best"]),
    ],
)
def test_wrong_attention(attention, words):
    with pytest.raises(ArgumentError) as caught:
        Model(attention_model(), attention=attention)
    for word in words:
        assert word in str(caught.value)


def test_plan_of_a_plan():
    plan = Plan.of({"default": "clustered", "layer1": "exact"})
    assert Plan.of(plan, ["layer1"]) is plan
    assert plan.parts("layer1", 2, 2, 9, 9) == [(slice(0, 2, 1), "exact", {})]
    assert plan.parts("other", 2, 2, 9, 9) == [(slice(0, 2, 1), "clustered", {"n_clusters": 100})]
    plan = Plan.of({"method": "coclustered", "n_exact": 64})
    assert plan.parts("any", 2, 2, 9, 9) == [(slice(0, 2, 1), "coclustered", {"n_exact": 64})]


@pytest.mark.parametrize(
    "fields", [{"default": "coclustered"}, {"by_name": {"a": {}}}, {"calibrated": {"a": Choice()}}]
)
def test_a_plan_is_of_choices(fields):
    with pytest.raises(DTypeError, match=r"of Plan must be a (Choice|Calibrated), got .*; Plan\.of reads names"):
        Plan(**fields)


def test_coclustered_by_name():
    """Its parameters reach the function, and the mask as padding of keys."""
    x = np.random.default_rng(0).standard_normal((1, 1300, 32)).astype(np.float32)
    model = Model(attention_model(), attention={"layer0": {"method": "coclustered", "n_exact": 20, "rank": 4}})
    heads = x.reshape(1, 1300, 2, 16).transpose(0, 2, 1, 3)
    once = pyclattn.coclustered_attention(heads, heads, heads, n_exact=20, rank=4, scale=1.0)
    other = pyclattn.coclustered_attention(heads, heads, heads, n_exact=20, scale=1.0)
    twice, wrong = (pyclattn.scaled_dot_product_attention(y, y, y, scale=1.0) for y in (once, other))
    got = model(x=x)["y"].reshape(1, 1300, 2, 16).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(got, twice, rtol=1e-4, atol=1e-5)
    assert np.abs(got - wrong).max() > 1e-4


def test_estimate_holds_weights_inputs_and_buffers(path):
    model = load(path)
    weights = model.weight_bytes
    assert weights == (8 * 16 + 16 + 16 * 8) * 4
    rows = 1000
    low = weights + rows * (8 + 8 + 16 + 8) * 4  # the caller's x, ours, the hidden layer, and y
    assert low <= model.estimate(x=(rows, 8)) <= low + rows * 8 * 4 + 2**20
    with pytest.raises(ArgumentError, match="x"):
        model.estimate(y=(1, 8))
    with pytest.raises(ArgumentError, match="rows"):
        model.estimate(x=(1, 9))


def test_max_memory(path):
    model = load(path, max_memory=200_000)
    model(x=np.ones((10, 8), np.float32))
    with pytest.raises(MemoryLimitError, match=r"needs .* bytes"):
        model(x=np.ones((10_000, 8), np.float32))
    with pytest.raises(MemoryLimitError, match="weights"):
        load(path, max_memory=100)


@pytest.mark.parametrize("given", ["2GB", True, float("nan"), float("inf"), 0, -1])
def test_max_memory_is_a_number(path, given):
    """NaN would be no limit: nothing is larger."""
    with pytest.raises(ArgumentError, match="max_memory must be a "):
        load(path, max_memory=given)


@pytest.mark.parametrize("shape", ["5x8", 5, None, (5.5, 8), (-5, 8), (True, 8)])
def test_a_shape_is_of_whole_numbers(path, shape):
    model = load(path)
    for ask in (model.estimate, model.describe_attentions):
        with pytest.raises(ArgumentError, match="of 'x' must be a"):
            ask(x=shape)


def test_what_is_fed_is_checked(path):
    model, x = load(path), np.ones((5, 8), np.float32)
    with pytest.raises(ArgumentError, match="input 'x' must be an array"):
        model(x=[[1, 2], [3]])
    with pytest.raises(ArgumentError, match="input_feed must map input names to arrays, got ndarray"):
        model.run(None, x)
    with pytest.raises(ArgumentError, match="missing x; unknown 3; the model takes x"):
        model.run(None, {3: x})
    with pytest.raises(ArgumentError, match="output_names must be a list of names or None, got 'y'"):
        model.run("y", {"x": x})
    with pytest.raises(DTypeError, match="input 'x' must be an array, got None"):
        model(x=None)


@pytest.mark.parametrize("lay_out", [
    np.asfortranarray, lambda x: x.astype(">f4"), lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    lambda x: x[::-1].copy()[::-1],
], ids=["Fortran", "big-endian", "strided", "backwards"])  # fmt: skip
def test_numbers_in_any_order_of_memory(path, lay_out):
    model, x = load(path), np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_array_equal(model(x=lay_out(x))["y"], model(x=x)["y"])


def test_an_input_may_have_any_name():
    x, y = Value("self", "float32", ("n",)), Value("y", "float32", ("n",))
    model = Model(Program([x], [y], [Op("Relu", ("self",), ("y",))]))
    assert model(self=np.array([-1, 2], np.float32))["y"].tolist() == [0, 2]
    assert model.estimate(self=(2,)) == model.estimate(**{"self": (2,)}) > 0


@pytest.mark.parametrize("name", ["", "model.bin", "none/model.safetensors"])
def test_a_model_is_saved_where_it_can_be_loaded(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="path must "):
        load(path).save(name)


@pytest.mark.parametrize("copy", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_models_are_copied_and_pickled(copy, tmp_path):
    """As process pools do; with their weights, so the file need not be where the copy is."""
    save_program(tmp_path / "m.safetensors", mlp())
    model = load(tmp_path / "m.safetensors", "exact", n_threads=1, max_memory=1 << 30)
    twin, x = copy(model), np.ones((5, 8), np.float32)
    assert (twin.n_threads, twin.max_memory, twin.path) == (1, 1 << 30, model.path)
    np.testing.assert_array_equal(twin(x=x)["y"], model(x=x)["y"])
    clustered = Model(attention_model(), attention={"layer1": "clustered"})
    assert copy(clustered).plan == clustered.plan


def test_n_threads_is_checked(path):
    with pytest.raises(ArgumentError, match="n_threads"):
        load(path, n_threads=0)


def test_errors_name_the_file(path):
    model = load(path)
    with pytest.raises(ArgumentError, match=r"model\.safetensors.*missing x"):
        model()


def test_files_that_are_no_models(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"w": np.ones(3)})
    with pytest.raises(ModelFormatError, match=r"weights only.* by its folder"):
        load(tmp_path / "w.safetensors")
    with pytest.raises(ModelFormatError, match=r"bge-small-en-v1\.5: no such file or folder \(nothing is fetched"):
        load("BAAI/bge-small-en-v1.5")
    with pytest.raises(ModelFormatError, match=r"cannot be read"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(ModelFormatError, match="no such file"):
        load(tmp_path / "nothing.onnx")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"\.bin"):
        load(tmp_path / "x.bin")


def test_onnx_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"")
    monkeypatch.setattr("pyclattn.model.entry_points", lambda group: [])
    with pytest.raises(ModelFormatError, match=r"pip install pyclattn\[export\]"):
        load(tmp_path / "x.onnx")


def test_another_kind_of_file_goes_through_its_reader_and_the_passes(tmp_path, monkeypatch):
    program = mlp()
    program.ops[0] = Op("MatMul", ("x", "w"), ("m",))
    program.ops[1:1] = [Op("Add", ("m", "b"), ("s",)), Op("Relu", ("s",), ("h",))]

    class Point:
        name = ".other"

        def load(self):
            return lambda path: program

    monkeypatch.setattr("pyclattn.model.entry_points", lambda group: [Point()] * (group == "pyclattn.readers"))
    (tmp_path / "x.other").write_bytes(b"")
    model = load(tmp_path / "x.other")
    assert "pyclattn:Linear" in {op.kind for op in model.program.ops}
    x = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(model(x=x)["y"], mlp_result(mlp(), x), rtol=1e-4, atol=1e-4)


def test_attentions_are_described():
    model = Model(attention_model(), attention={"layer0": "clustered"})
    assert model.describe_attentions()[0] == {"name": "layer0", "mask": "none", "method": "clustered"}
    with_shapes = model.describe_attentions(x=(1, 50, 32))[1]
    assert with_shapes == {
        "name": "layer1", "mask": "none", "method": "exact",
        "heads": 2, "kv_heads": 2, "queries": 50, "keys": 50, "head_dim": 16,
    }  # fmt: skip


def changed(path, change):
    """The file with its program's JSON changed."""
    file = SafeTensors(path)
    data = json.loads(file.metadata["pyclattn.program"])
    metadata = dict(file.metadata)
    result = change(data, metadata)
    metadata["pyclattn.program"] = result if isinstance(result, str) else json.dumps(data)
    write_safetensors(path, {n: np.array(file[n]) for n in file}, metadata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, m: m.update(format_version="3"), "format_version 3"),
        (lambda d, m: m.update(format_version="x"), "weights only"),
        (lambda d, m: "{", "malformed"),
        (lambda d, m: "[" * 100_000, "nested"),
        (lambda d, m: "3", "object"),
        (lambda d, m: d.pop("ops") and None, "malformed"),
        (lambda d, m: d["constants"].update(w="other"), "'other'"),
        (lambda d, m: d["ops"][0].__setitem__(1, ["nothing"]), "'nothing'"),
        (lambda d, m: d["ops"][0].__setitem__(1, "xwb"), "list"),
        (lambda d, m: d["ops"][0].__setitem__(0, 3), "text"),
        (lambda d, m: d["ops"][0].__setitem__(3, {"a": {"evil": 1}}), "evil"),
        (lambda d, m: d["ops"][0].__setitem__(3, {"a": {"float": "1e9"}}), "1e9"),
        (lambda d, m: d["inputs"].__setitem__(0, ["x", "O", []]), "'O'"),
        (lambda d, m: d["inputs"].__setitem__(0, ["x", "float32", [-1]]), "shape"),
        (lambda d, m: d["inputs"].append(["x", "float32", []]), "twice"),
    ],
)
def test_altered_programs(path, change, words):
    changed(path, change)
    with pytest.raises(ModelFormatError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_unsupported_operators_name_the_file(path):
    changed(path, lambda d, m: d["ops"][0].__setitem__(0, "Nonsense"))
    with pytest.raises(UnsupportedOpError, match=r"model\.safetensors.*Nonsense"):
        load(path)


def test_a_nested_program_bomb_is_refused(path):
    deep = {"inputs": [], "outputs": [], "constants": {}, "ops": [], "metadata": {}}
    for _ in range(40):
        deep = {**deep, "ops": [["If", ["x"], ["y"], {"then_branch": {"program": deep}}, ""]]}
    changed(path, lambda d, m: json.dumps(deep))
    with pytest.raises(ModelFormatError, match="deep"):
        load(path)
