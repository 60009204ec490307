"""The five verbs as one command: what is written, what is compared, what is left when something goes wrong."""

import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import Builder, kinds

from pyclattn.errors import ArgumentError, ModelFormatError, UnsupportedOpError
from pyclattn.graph.padding import padded
from pyclattn.graph.serial import load_program
from pyclattn.model import load
from pyclattn_export import cli, convert
from pyclattn_export.verify import Difference, compare, difference

D = 16


def encoder(path, opset=18, mask="attention_mask", dtype="int64", token=1):
    """Embedding, one self-attention with padding, a feed-forward: everything a conversion touches."""
    g = Builder()
    ids = g.input("input_ids", ["batch", "sequence"], np.zeros((2, 7)), "int64")
    mask = g.input(mask, ["batch", "sequence"], np.full((2, 7), token), dtype)
    x = g("Gather", g.weight(50, D), ids)
    split = g.const([0, 0, 2, D // 2], np.int64)
    q, k, v = (g("Transpose", g("Reshape", g("MatMul", x, g.weight(D, D)), split), perm=[0, 2, 1, 3]) for _ in range(3))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    wide = g("Cast", g("Unsqueeze", mask, g.const([1, 2], np.int64)), to=9)
    masked = g.const(np.float32("-inf"))
    scores = g("Where", wide, *((scores, masked) if token else (masked, scores)))
    out = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = g("Add", x, g("Reshape", out, g.const([0, 0, D], np.int64)))
    y = g("MatMul", g("Relu", g("MatMul", y, g.weight(D, 2 * D))), g.weight(2 * D, 5))
    onnx.save(g.model(y, opset=opset), path)
    return path


@pytest.fixture
def source(tmp_path):
    return encoder(tmp_path / "encoder.onnx")


def test_written_and_run(source, tmp_path):
    target = tmp_path / "encoder.safetensors"
    result = convert(source, target, verify=True)
    assert [found.mask for found in result.report.attentions] == ["key padding"]
    assert result.comparison.passed
    model = load(target)
    (out,) = model(input_ids=np.ones((1, 9), np.int64), attention_mask=np.ones((1, 9), np.int64)).values()
    assert out.shape == (1, 9, 5)
    assert "pyclattn:Attention" in kinds(load_program(target))


def test_any_safetensors_tool_opens_it(source, tmp_path):
    from safetensors import numpy as safetensors

    convert(source, tmp_path / "m.safetensors")
    weights = safetensors.load_file(tmp_path / "m.safetensors")
    assert any(array.shape == (50, D) for array in weights.values())


def test_verify_with_other_sizes_and_input(source, tmp_path):
    convert(source, tmp_path / "m.safetensors")
    longer = compare(source, tmp_path / "m.safetensors", sizes={"batch": 3, "sequence": 61})
    assert longer.differences[0].shape == (3, 61, 5)
    given = {"input_ids": np.full((1, 4), 49), "attention_mask": np.ones((1, 4), np.int64)}
    assert compare(source, tmp_path / "m.safetensors", inputs=given).differences[0].shape == (1, 4, 5)


def test_verify_sees_a_difference(source, tmp_path):
    """A weight changed after conversion is found out."""
    target = tmp_path / "m.safetensors"
    convert(source, target)
    data = bytearray(target.read_bytes())
    data[-40:] = bytes(40)
    target.write_bytes(bytes(data))
    assert not compare(source, target).passed


def test_golden(source, tmp_path):
    golden = tmp_path / "golden.npz"
    convert(source, tmp_path / "m.safetensors", golden=golden)
    with np.load(golden) as file:
        assert {name.partition(".")[0] for name in file.files} == {"input", "output"}
        inputs = {name.removeprefix("input."): file[name] for name in file.files if name.startswith("input.")}
        outputs = [file[name] for name in file.files if name.startswith("output.")]
    np.testing.assert_allclose(load(tmp_path / "m.safetensors").run(None, inputs)[0], outputs[0], atol=1e-5)


def test_dynamic_axes_are_verified_at_their_old_size(tmp_path):
    g = Builder()
    x = g.input("x", [1, 3, 4], np.ones((1, 3, 4)))
    onnx.save(g.model(g("Relu", x)), tmp_path / "m.onnx")
    result = convert(tmp_path / "m.onnx", tmp_path / "m.safetensors", dynamic={"x": (1,)}, verify=True)
    assert result.comparison.differences[0].shape == (1, 3, 4)
    assert load(tmp_path / "m.safetensors")(x=np.ones((1, 8, 4), np.float32))


MASKS = [
    ("attention_mask", "int64", 1), ("src_mask_valid", "int64", 1), ("valid", "bool", 1), ("valid", "float32", 1),
    ("src_key_padding_mask", "bool", 0), ("is_pad", "int64", 0),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "dtype", "token"), MASKS)
def test_padding_is_found_by_what_it_does(tmp_path, mask, dtype, token):
    """Rows at padding, which clustering leaves zero, are not compared; the random mask has some, and few."""
    source = encoder(tmp_path / "m.onnx", mask=mask, dtype=dtype, token=token)
    result = convert(source, tmp_path / "m.safetensors", attention="coclustered", golden=tmp_path / "golden.npz")
    with np.load(tmp_path / "golden.npz") as file:
        feeds = {name.removeprefix("input."): file[name] for name in file.files if name.startswith("input.")}
        (wanted,) = (file[name] for name in file.files if name.startswith("output."))
    (padding,) = padded(load_program(tmp_path / "m.safetensors"), feeds)
    np.testing.assert_array_equal(padding, feeds[mask] != token)
    assert padding[-1].sum() == 10
    assert padding.sum() == 10
    found = load(tmp_path / "m.safetensors", attention="coclustered").run(None, feeds)[0]
    assert not np.allclose(found[padding], wanted[padding], atol=1e-3)
    assert result.comparison.passed


# -- the measure of difference ----------------------------------------------------------------------------------------


def test_difference_is_relative_to_the_range():
    wanted, found = np.array([[-1.0, 3.0]]), np.array([[-1.0, 3.2]])
    result = difference("y", wanted, found)
    assert result == Difference("y", (1, 2), pytest.approx(0.2), pytest.approx(0.05), 1.0)


def test_padding_does_not_count():
    wanted = np.zeros((2, 2, 3))
    wanted[..., 1] = 1
    found = wanted.copy()
    found[1, 1] = 7
    assert difference("y", wanted, found, np.array([[False, False], [False, True]])).largest == 0
    assert difference("y", wanted, found).largest == 7


@pytest.mark.parametrize(("wanted", "found", "same"), [
    ([np.nan, 1.0], [np.nan, 1.0], True), ([np.nan, 1.0], [0.0, 1.0], False), ([np.inf, 1.0], [np.inf, 1.0], True),
    ([np.inf, 1.0], [-np.inf, 1.0], False), ([2.0, 2.0], [2.0, 2.0], True), ([2.0, 2.0], [2.0, 2.1], False),
])  # fmt: skip
def test_infinities_and_constants(wanted, found, same):
    assert (difference("y", np.array(wanted), np.array(found)).relative == 0) == same


def test_another_shape_is_an_error():
    with pytest.raises(ModelFormatError, match="has shape"):
        difference("y", np.zeros(2), np.zeros(3))


# -- when something goes wrong ----------------------------------------------------------------------------------------


def unknown(path):
    node = helper.make_node("Frobnicate", ["x"], ["y"], "odd")
    value = helper.make_tensor_value_info("x", 1, [3])
    graph = helper.make_graph([node], "g", [value], [helper.make_empty_tensor_value_info("y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_nothing_is_written_for_a_model_that_does_not_run(tmp_path):
    with pytest.raises(UnsupportedOpError, match=r"odd\.onnx.*Frobnicate"):
        convert(unknown(tmp_path / "odd.onnx"), tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


def graph_file(path, nodes, inputs, outputs):
    """A file of a graph with a weight ``w``; inputs and outputs by name, all of four numbers."""
    values = [[helper.make_tensor_value_info(name, 1, [4]) for name in names] for names in (inputs, outputs)]
    weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node(*node) for node in nodes], "g", *values, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


RELU = ("Relu", ["x"], ["y"])


@pytest.mark.parametrize(("nodes", "inputs", "outputs", "told"), [
    ([RELU], ["x"], [], "the graph has no outputs"),
    ([], [], [], "the graph has no outputs"),
    ([RELU], ["x"], ["z"], "output 'z' is made by no node"),
    ([RELU], ["x", "x"], ["y"], "'x' is defined twice"),
    ([("Relu", ["x"], ["w"])], ["x"], ["w"], "'w' is defined twice"),
])  # fmt: skip
def test_nothing_is_written_for_a_graph_of_no_use(tmp_path, nodes, inputs, outputs, told):
    path = graph_file(tmp_path / "odd.onnx", nodes, inputs, outputs)
    with pytest.raises(ModelFormatError, match=rf"odd\.onnx: .*{told}"):
        convert(path, tmp_path / "m.safetensors", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


@pytest.mark.parametrize(("nodes", "inputs", "outputs"), [
    ([], ["x"], ["x"]), ([], ["x"], ["w"]), ([RELU], ["x"], ["y", "w"]), ([RELU], ["x", "unused"], ["y"]),
    ([("Relu", ["w"], ["y"])], [], ["y"]), ([RELU], ["x"], ["y", "y"]),
], ids=["no nodes", "only a weight", "a weight too", "an unused input", "no inputs", "an output twice"])  # fmt: skip
def test_graphs_of_unusual_shape(tmp_path, nodes, inputs, outputs):
    path = graph_file(tmp_path / "odd.onnx", nodes, inputs, outputs)
    assert convert(path, tmp_path / "m.safetensors", verify=True).comparison.passed
    feeds = {name: np.array([1.0, -1, 2, -2], np.float32) for name in inputs}
    assert len(load(tmp_path / "m.safetensors").run(None, feeds)) == len(outputs)


def test_an_older_file_survives_a_failure(source, tmp_path, monkeypatch):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"the older one")
    written = []

    def fails(file, *rest):
        written.append(True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="No space"):
        convert(source, target)
    assert written
    assert target.read_bytes() == b"the older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "m.safetensors"]


@pytest.mark.parametrize("target", ["m.onnx", "missing/m.safetensors", "m"])
def test_targets_that_cannot_be(source, tmp_path, target):
    with pytest.raises(ArgumentError, match="target"):
        convert(source, tmp_path / target)


# -- the command line -------------------------------------------------------------------------------------------------


def test_command_line(source, tmp_path, capsys):
    target, golden = tmp_path / "m.safetensors", tmp_path / "golden.npz"
    code = cli.main(["onnx", str(source), "-o", str(target), "--verify", "--golden", str(golden), "--size", "batch=1"])
    printed = capsys.readouterr()
    assert code == 0
    assert printed.err == ""  # the progress bar is quiet without a terminal
    assert "key padding" in printed.out
    assert "largest difference" in printed.out
    assert "within 0.0001 of the range" in printed.out
    assert target.exists()
    assert golden.exists()


def test_command_line_verifies_another_attention(source, tmp_path, capsys):
    attention = '{"method": "improved-clustered", "n_clusters": 4, "topk": 2}'
    code = cli.main(["onnx", str(source), "-o", str(tmp_path / "m.safetensors"), "--verify", "--attention", attention])
    assert code == 1
    assert "NOT within" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ["--dynamic", "x"], ["--dynamic", "x:a"], ["--size", "batch"], ["--size", "batch=0"], ["--dynamic", "ghost:1"],
    ["--verify", "--attention", "{"], ["--verify", "--attention", "sideways"],
])  # fmt: skip
def test_command_line_errors_are_one_line(source, tmp_path, capsys, arguments):
    assert cli.main(["onnx", str(source), "-o", str(tmp_path / "m.safetensors"), *arguments]) == 1
    text = capsys.readouterr().err
    assert text.startswith("pyclattn-export: ")
    assert text.count("\n") == 1


def test_command_line_names_a_missing_file(tmp_path, capsys):
    assert cli.main(["onnx", str(tmp_path / "gone.onnx"), "-o", str(tmp_path / "m.safetensors")]) == 1
    assert "gone.onnx: cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "words", "is_written"),
    [
        ({"attention": "nonsense"}, "nonsense", False),
        ({"n_threads": 0}, "n_threads", False),
        ({"golden": "none/g.npz"}, "golden must lie in a folder that exists", False),
        ({"golden": "m.onnx"}, "golden must be a file of its own, got 'm.onnx'", False),
        ({"golden": "m.safetensors"}, "golden must be a file of its own, got 'm.safetensors'", False),
        ({"inputs": {"ids": np.ones((1, 3), np.int64)}}, "inputs: missing .*; unknown ids; the model takes", True),
        ({"sizes": {"token": 3}}, "size names no open axis: token; they are batch, sequence", True),
    ],
)
def test_what_verification_is_given_is_checked(tmp_path, monkeypatch, given, words, is_written):
    monkeypatch.chdir(tmp_path)
    encoder(tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(ArgumentError, match=words):
        convert(tmp_path / "m.onnx", tmp_path / "m.safetensors", verify=True, **given)
    assert (tmp_path / "m.safetensors").exists() == is_written
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_without_its_extra_the_command_says_what_to_install(tmp_path):
    """The plain wheel installs the script too."""
    blocked = "import sys; sys.modules['onnx'] = sys.modules['tqdm'] = None; from pyclattn_export.cli import main; "
    ran = subprocess.run(
        [sys.executable, "-c", blocked + "sys.exit(main(['onnx', 'x.onnx', '-o', 'x.safetensors']))"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 1
    assert re.fullmatch(r"pyclattn-export: convert needs (onnx|tqdm): pip install pyclattn\[export\]\n", ran.stderr)
