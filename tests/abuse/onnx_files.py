"""Attacks through ONNX files: name -> (what makes the file, what the answer must say).

"" as answer: the file is read (and running it is another matter: `max_memory=` bounds a run).
"""

import os

import numpy as np
from onnx import TensorProto, helper, numpy_helper

MANY = 1 << 20
node = helper.make_node
BIG = 2**40


def model(nodes, weights=(), opset=18, functions=(), imports=("f",), ir_version=8, **fields):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in imports if functions)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions, **fields)


def made(nodes, weights=(), **more):
    return lambda folder: model(nodes, weights, **more).SerializeToString()


def array(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def weight(**fields):
    """A model with one weight given field by field."""
    tensor = TensorProto(name="w", **{"data_type": 1, "dims": [2, 2], **fields})
    return made([node("MatMul", ["x", "w"], ["y"])], [tensor])


def outside(location="weights.bin", prepare=None, **keys):
    """A model whose weight lies in another file."""

    def build(folder):
        (folder / "weights.bin").write_bytes(np.eye(2, dtype=np.float32).tobytes())
        if prepare:
            prepare(folder)
        tensor = TensorProto(name="w", data_type=1, dims=[2, 2], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, **keys}.items():
            tensor.external_data.add(key=key, value=str(value))
        return model([node("MatMul", ["x", "w"], ["y"])], [tensor]).SerializeToString()

    return build


def linked(folder):
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("/etc/passwd")


def function(name, calls):
    body = [node(calls, ["a"], ["b"], domain="f" if calls != "Relu" else "")]
    return helper.make_function(
        "f", name, ["a"], ["b"], body, [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    )


def calls_twice(name, inner):
    domain = "f" if inner != "Relu" else ""
    body = [node(inner, ["a"], ["m"], domain=domain), node(inner, ["m"], ["b"], domain=domain)]
    return helper.make_function(
        "f", name, ["a"], ["b"], body, [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    )


def wrapped(field, data):
    """A message inside another, as it lies in a file."""
    length, size = b"", len(data)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + data


def in_graph(body):
    """A model with more bytes in its graph."""
    head = model([node("Relu", ["x"], ["y"])])
    graph = head.graph.SerializeToString() + body
    head.ClearField("graph")
    return head.SerializeToString() + wrapped(7, graph)


def no_text():
    """A node with two attributes that it does not know; the name of one is no UTF-8."""
    attributes = [wrapped(5, wrapped(1, name) + b"\x18\x01\xa0\x01\x02") for name in (b"\xff", b"alpha")]
    return wrapped(1, wrapped(1, b"x") + wrapped(2, b"z") + wrapped(4, b"Relu") + b"".join(attributes))


def nested(depth):
    """If inside If inside If."""

    def build(folder):
        inner = b""
        for _ in range(depth):
            branches = ((b"then_branch", inner), (b"else_branch", b""))
            attributes = [wrapped(5, wrapped(1, name) + wrapped(6, body) + b"\xa0\x01\x05") for name, body in branches]
            inner = wrapped(1, wrapped(1, b"x") + wrapped(4, b"If") + b"".join(attributes))
        return in_graph(inner)

    return build


def bomb(kind, *inputs, weights, **attributes):
    """An operator on constants whose result would fill any memory."""
    return made([node(kind, list(inputs), ["b"], **attributes), node("Add", ["x", "b"], ["y"])], weights)


def doubling(steps):
    nodes = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(steps)]
    return made([*nodes, node("Add", ["x", f"c{steps}"], ["y"])], [array("c0", np.ones(1024), np.float32)])


def chain(steps):
    """Each operator makes another copy of a weight of 1 MB."""
    nodes = [node("Neg", [f"c{i}"], [f"c{i + 1}"]) for i in range(steps)]
    users = [node("Add", ["x", f"c{i}"], [f"u{i}"]) for i in range(1, steps + 1)]
    total = node("Sum", [f"u{i}" for i in range(1, steps + 1)], ["y"])
    return made([*nodes, *users, total], [array("c0", np.ones((1, MANY // 4)), np.float32)])


def flood(field):
    """A graph of a million empty messages: two bytes each in the file."""
    return lambda folder: in_graph(wrapped(field, b"") * MANY)


OUT = "outside the model's directory"
FILES = {
    "weights above the folder": (outside("../secret.bin"), OUT),
    "weights above, by a detour": (outside("a/../../secret.bin"), OUT),
    "weights at an absolute path": (outside("/etc/passwd"), "relative path"),
    "weights at a UNC path": (outside("\\\\host\\share"), "relative path"),
    "weights behind a link": (outside(prepare=linked), OUT),
    "weights in a pipe": (outside("pipe", lambda f: os.mkfifo(f / "pipe")), "not a regular file"),
    "weights in a folder": (outside("."), "not a regular file"),
    "weights nowhere": (outside("gone"), "missing"),
    "weights before the file": (outside(offset=-16), "truncated or altered"),
    "weights behind the file": (outside(offset=2**62), "truncated or altered"),
    "weights of other length": (outside(length=2**62), "the model says"),
    "an offset of a million digits": (outside(offset="9" * MANY), "whole numbers"),
    "a checksum that is wrong": (outside(checksum="0" * 40), "checksum"),
    "attributes set by name": (outside(__class__="x", base_dir="/etc"), ""),
    "a shape beyond all memory": (weight(dims=[BIG, BIG], raw_data=b"0000"), "needs"),
    "a shape that overflows": (weight(dims=[2**62, 4], raw_data=b""), "needs"),
    "nothing times 2^62": (weight(dims=[0, 2**62, 2**62], raw_data=b""), "beyond any array"),
    "a negative shape": (weight(dims=[-2, -2], raw_data=bytes(16)), "negative dimension"),
    "rank 1,000": (weight(dims=[1] * 1000, raw_data=b"0000"), "dimension"),
    "too few floats": (weight(float_data=[1.0]), "cannot be read"),
    "a type that is none": (weight(data_type=99, raw_data=b"0000"), "element type"),
    "bool of other bytes": (weight(data_type=9, dims=[1], raw_data=b"\x07"), "altered"),
    "half the numbers of a bfloat16": (weight(data_type=16, raw_data=b"00"), "cannot be read"),
    "a shape beyond all memory, in halves": (weight(data_type=16, dims=[BIG, BIG], int32_data=[1]), "cannot be read"),
    "sparse weights": (
        lambda f: (lambda m: (m.graph.sparse_initializer.add(dims=[BIG]), m.SerializeToString())[1])(
            model([node("Relu", ["x"], ["y"])])), "sparse"),
    "a function that calls itself": (
        made([node("F", ["x"], ["y"], domain="f")], functions=[function("F", "F")]), "Cycle detected"),
    "functions that call each other": (
        made([node("F", ["x"], ["y"], domain="f")], functions=[function("F", "G"), function("G", "F")]),
        "Cycle detected"),
    "functions that double": (
        made([node("F30", ["x"], ["y"], domain="f")], functions=[
            calls_twice(f"F{i}", f"F{i - 1}" if i else "Relu") for i in range(31)]), "operators"),
    "graphs nested deep": (nested(5000), "not an ONNX model"),
    "graphs nested as deep as may be": (nested(30), ""),
    "a constant of 4 TB": (bomb("ConstantOfShape", "s", weights=[array("s", [BIG])]), ""),
    "a constant expanded": (
        bomb("Expand", "c", "s", weights=[array("c", [1.0], np.float32), array("s", [2**20, 2**20])]), ""),
    "a constant tiled": (bomb("Tile", "c", "s", weights=[array("c", [1.0], np.float32), array("s", [BIG])]), ""),
    "a range of 2^40": (
        bomb("Range", "a", "b0", "d", weights=[array("a", 0), array("b0", BIG), array("d", 1)]), ""),
    "a constant padded": (bomb("Pad", "c", "s", weights=[array("c", [1.0], np.float32), array("s", [0, BIG])]), ""),
    "one-hot of depth 2^40": (
        bomb("OneHot", "i", "d", "v", weights=[array("i", [1]), array("d", BIG), array("v", [0.0, 1.0], np.float32)]),
        ""),
    "triangles of 2^20": (bomb("EyeLike", "s2", weights=[array("s2", np.zeros((1, 1)), np.float32)]), ""),
    "constants by doubling": (doubling(40), ""),
    "copies of a weight": (chain(500), ""),
    "a flood of nodes": (flood(1), "messages"),
    "a flood of inputs": (flood(11), "messages"),
    "a flood of weights": (flood(5), "messages"),
    "a flood of value infos": (flood(13), "messages"),
    "a node without a kind": (made([node("", ["x"], ["y"])]), "does not run"),
    "an operator nobody has": (made([node("os.system", ["x"], ["y"])]), "does not run"),
    "a domain nobody has": (made([node("Relu", ["x"], ["y"], domain="evil")]), "evil"),
    "attributes of which one is no text": (lambda folder: in_graph(no_text()), "attribute"),
    "an operator without inputs": (made([node("Softmax", [], ["y"])]), "expected 1 inputs, got 0"),
    "nothing in 2^28 rows": (weight(dims=[2, 2**28, 0], data_type=7), "parts"),
    "a shape that is nothing in 2^28 rows": (  # found by atheris: its tolist() was 4 GB
        made([node("Reshape", ["x", "s"], ["y"])], [TensorProto(name="s", data_type=7, dims=[2**28, 0])]), "parts"),
    "a graph without outputs": (
        lambda f: (lambda m: (m.graph.ClearField("output"), m.SerializeToString())[1])(
            model([node("Relu", ["x"], ["y"])])), "no outputs"),
    "an operator without outputs": (made([node("Relu", ["x"], [])]), "made by no node"),
    "an input nobody makes": (made([node("Relu", ["gone"], ["y"])]), "made by no node"),
    "a ring of operators": (
        made([node("Add", ["x", "b"], ["a"]), node("Add", ["x", "a"], ["b"]), node("Relu", ["b"], ["y"])]),
        "made by no"),
    "one name made twice": (made([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])]), "defined twice"),
    "an attribute of another kind": (made([node("Softmax", ["x"], ["y"], axis="last")]), ""),
    "opset 99": (made([node("Relu", ["x"], ["y"])], opset=99), "opset 99"),
    "opset -1": (made([node("Relu", ["x"], ["y"])], opset=-1), "opset"),
    "IR version 2^62": (made([node("Relu", ["x"], ["y"])], ir_version=2**62), "IR version"),
    "cut in the middle": (lambda f: made([node("Relu", ["x"], ["y"])])(f)[:-9], "truncated"),
    "a page of HTML": (lambda f: b"<html>not found</html>", "not an ONNX model"),
    "an empty file": (lambda f: b"", "not an ONNX model"),
}  # fmt: skip
