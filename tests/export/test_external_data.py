"""Weights in files of their own: read where they may be, refused where a file points elsewhere."""

import os
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx_models import Builder, run

import pyclattn
from pyclattn.errors import ModelFormatError
from pyclattn_export import from_onnx

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)


@pytest.fixture
def folder(tmp_path):
    """A model directory with a secret beside it."""
    (tmp_path / "secret.bin").write_bytes(b"\x00\x00\x80?" * 64)
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(WEIGHT.tobytes())
    return directory


def write(path, location="weights.bin", dims=(8, 8), data_type=1, **keys):
    g = Builder()
    x = g.input("x", ["n", 8])
    tensor = onnx.TensorProto(name="w", data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=str(value))
    g.nodes.append(onnx.helper.make_node("MatMul", [x, "w"], ["y"], "product"))
    graph = onnx.helper.make_graph(g.nodes, "g", g.inputs, [onnx.helper.make_empty_tensor_value_info("y")], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def refused(path, match):
    with pytest.raises(ModelFormatError, match=match) as caught:
        from_onnx(path)
    assert path.name in str(caught.value)
    assert "'w'" in str(caught.value)


def test_read_and_memory_mapped(folder):
    program = from_onnx(write(folder / "m.onnx", offset=0, length=256))
    weight = program.constants["w"]
    assert isinstance(weight.base, np.memmap) or isinstance(weight, np.memmap)
    np.testing.assert_array_equal(weight, WEIGHT)
    np.testing.assert_array_equal(run(program, {"x": np.eye(8, dtype=np.float32)})[0], WEIGHT)


def test_offset(folder):
    (folder / "weights.bin").write_bytes(b"abcd" * 5 + WEIGHT.tobytes() + b"rest")
    np.testing.assert_array_equal(from_onnx(write(folder / "m.onnx", offset=20)).constants["w"], WEIGHT)


def test_a_model_above_2_gb(folder):
    """A table of 2.2 GB, mostly a hole in a file, and a weight behind it: read where they lie, by rows."""
    rows, offset = 1_100_000, 1_100_000 * 512 * 4
    own, weight = (np.random.default_rng(i).standard_normal((n, 512), dtype=np.float32) for i, n in ((0, 3), (1, 512)))
    with (folder / "weights.bin").open("wb") as file:
        file.seek(offset - own.nbytes)
        file.write(own.tobytes() + weight.tobytes())
    weights = [("table", (rows, 512), 0), ("w", (512, 512), offset)]
    tensors = [onnx.TensorProto(name=name, data_type=1, dims=dims, data_location=1) for name, dims, _ in weights]
    for tensor, (_, _, start) in zip(tensors, weights):
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.external_data.add(key="offset", value=str(start))
    g = Builder()
    g.nodes += [
        onnx.helper.make_node("Gather", ["table", g.input("ids", ["n"], [rows - 2, 5, rows - 1], "int64")], ["found"]),
        onnx.helper.make_node("MatMul", ["found", "w"], ["y"]),
    ]
    graph = onnx.helper.make_graph(g.nodes, "g", g.inputs, [onnx.helper.make_empty_tensor_value_info("y")], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    tracemalloc.start()
    try:
        result = pyclattn.load(folder / "m.onnx")(**g.feeds)["y"]
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(result, np.stack([own[1], 0 * own[0], own[2]]) @ weight, rtol=1e-4, atol=1e-4)
    assert allocated < 32e6


def test_a_folder_below(folder):
    (folder / "parts").mkdir()
    os.replace(folder / "weights.bin", folder / "parts" / "w.bin")
    np.testing.assert_array_equal(from_onnx(write(folder / "m.onnx", "parts/w.bin")).constants["w"], WEIGHT)


def test_as_saved_by_onnx(folder):
    g = Builder()
    x = g.input("x", ["n", 64])
    model = g.model(g("MatMul", x, g.weight(64, 64)))
    wanted = onnx.numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, folder / "saved.onnx", save_as_external_data=True, location="all.data", size_threshold=0)
    np.testing.assert_array_equal(from_onnx(folder / "saved.onnx").constants["c0"], wanted)


def test_a_cache_of_links(tmp_path):
    """How hubs keep files: names link into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write(blobs / "1111", "model.onnx_data")
    (blobs / "2222").write_bytes(WEIGHT.tobytes())
    (snapshot / "model.onnx").symlink_to("../../blobs/1111")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/2222")
    np.testing.assert_array_equal(from_onnx(snapshot / "model.onnx").constants["w"], WEIGHT)


@pytest.mark.parametrize("location", ["../secret.bin", "parts/../../secret.bin", "../model/../secret.bin"])
def test_up_and_out(folder, location):
    (folder / "parts").mkdir()
    refused(write(folder / "m.onnx", location), "outside the model's directory")


def test_absolute(folder):
    refused(write(folder / "m.onnx", str(folder.parent / "secret.bin")), "must be a relative path")
    refused(write(folder / "m.onnx", str(folder / "weights.bin")), "must be a relative path")


def test_a_link_that_leads_out(folder):
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("../secret.bin")
    refused(write(folder / "m.onnx"), "outside the model's directory")


def test_a_folder_with_the_same_beginning(folder):
    (folder.parent / "model-secret").mkdir()
    (folder.parent / "model-secret" / "w.bin").write_bytes(WEIGHT.tobytes())
    refused(write(folder / "m.onnx", "../model-secret/w.bin"), "outside the model's directory")


def test_a_pipe(folder):
    os.mkfifo(folder / "pipe")
    refused(write(folder / "m.onnx", "pipe"), "not a regular file")


def test_missing(folder):
    refused(write(folder / "m.onnx", "gone.bin"), "is missing")


@pytest.mark.parametrize("location", ["", "a\0b"])
def test_no_location(folder, location):
    refused(write(folder / "m.onnx", location), "must be a relative path")


def test_truncated(folder):
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes()[:-1])
    refused(write(folder / "m.onnx"), "needs bytes 0 to 256 of 'weights.bin', which has 255: truncated or altered")


@pytest.mark.parametrize("keys", [{"offset": 4}, {"offset": -4}, {"offset": 2**62}])
def test_beyond_the_end(folder, keys):
    refused(write(folder / "m.onnx", **keys), "truncated or altered")


def test_a_length_that_does_not_fit_the_shape(folder):
    refused(write(folder / "m.onnx", length=128), "needs 256 bytes, the model says 128")


@pytest.mark.parametrize("keys", [{"offset": "x"}, {"length": "1e3"}])
def test_numbers_that_are_none(folder, keys):
    refused(write(folder / "m.onnx", **keys), "whole numbers")


def test_a_shape_beyond_all_memory(folder):
    """The size is compared with the file before anything is allocated."""
    refused(write(folder / "m.onnx", dims=(2**31, 2**31)), "truncated or altered")


def test_a_negative_dimension(folder):
    refused(write(folder / "m.onnx", dims=(-8, -8)), "negative dimension")


def test_checksum(folder):
    import hashlib

    right = hashlib.sha1(WEIGHT.tobytes(), usedforsecurity=False).hexdigest()
    np.testing.assert_array_equal(from_onnx(write(folder / "m.onnx", checksum=right)).constants["w"], WEIGHT)
    refused(write(folder / "m.onnx", checksum=right[::-1]), "altered")


def test_keys_that_are_attributes_set_nothing(folder):
    """onnx once set whatever key a file offered as an attribute."""
    path = write(folder / "m.onnx", basepath="/", file_exists="1", __class__="x")
    np.testing.assert_array_equal(from_onnx(path).constants["w"], WEIGHT)


def test_text_is_no_external_data(folder):
    refused(write(folder / "m.onnx", data_type=8), "text cannot be external")


def test_bools_hold_only_bools(folder):
    (folder / "weights.bin").write_bytes(bytes([0, 1, 2, 1]))
    refused(write(folder / "m.onnx", dims=(2, 2), data_type=9), "other than 0 and 1")


def test_without_a_path(folder):
    model = onnx.load(write(folder / "m.onnx"), load_external_data=False)
    with pytest.raises(ModelFormatError, match="not given as a path"):
        from_onnx(model)


@pytest.mark.parametrize(("data_type", "stored", "wanted"), [
    (22, bytes([0x21, 0xF8]), [1, 2, -8, -1]),  # int4: two to a byte, the lower half first
    (21, bytes([0x21, 0xF8]), [1, 2, 8, 15]),
    (16, b"\xc0\x3f\x00\xc0", [1.5, -2.0]),  # bfloat16
])  # fmt: skip
def test_types_numpy_does_not_have(folder, data_type, stored, wanted):
    (folder / "weights.bin").write_bytes(stored)
    program = from_onnx(write(folder / "m.onnx", dims=(len(wanted),), data_type=data_type))
    assert program.constants["w"].tolist() == wanted
