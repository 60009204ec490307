"""Small valid files for mutations to start from, and tokens worth inserting."""

import json

import numpy as np
from torch_files import ORDERED, Call, Global, Storages, legacy_file, opcodes, pickled, zip_file


def trees(legacy=False):
    """Checkpoints with all that a reader has a branch for: (tree, storages)."""
    storages = Storages()
    w = storages.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), legacy=legacy)
    key = next(iter(storages.known))
    yield {"w": w}, storages
    bits = storages.tensor(np.array([0x3F80, 0xC000], np.uint16), "bfloat16", legacy)
    tied = storages.view(key, 1, (2, 2), (1, 2), legacy)
    tree = {"epoch": 3, "state_dict": {"a.w": w, "a.t": tied, "b": bits}, "lr": 0.5, "names": ["x", ("y", None, True)]}
    yield tree, storages
    storages = Storages()
    w = storages.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), legacy=legacy)
    dtype = Call(Global("numpy", "dtype"), ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    array = Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"),
                 (1, (2,), dtype, False, b"\0\0\x80?\0\0\0@"))  # fmt: skip
    scalar = Call(Global("numpy.core.multiarray", "scalar"), (dtype, b"\0\0\x80?"))
    space = Call(Global("argparse", "Namespace"), (), {"lr": 0.1, "steps": 10**12})
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (w, True, Call(ORDERED)))
    yield {"n": array, "s": scalar, "args": space, "p": parameter, "set": {1, 2}, "size": Call(
        Global("torch", "Size"), ((2, 3),)), "dev": Call(Global("torch", "device"), ("cuda", 0))}, storages  # fmt: skip
    module = Call(Global("net", "Net"), (), {"_parameters": {"w": parameter}, "_buffers": {}, "_modules": {}})
    quantised = Call(Global("torch._utils", "_rebuild_qtensor"), (w.args[0], 0, (2, 3), (3, 1), (1, 0.1, 0), False, {}))
    yield {"model": module, "q": quantised, "bare": w.args[0]}, storages


def pytorch():
    eight = Storages()
    tree = {"f": eight.bits(np.arange(4, dtype=np.uint8), "float8_e4m3fn"), "c": eight.tensor(np.array([1 + 2j]))}
    made = [zip_file(tree, eight, byteorder=b"big"), zip_file({"x": 1}, None, None), legacy_file({"x": [1.5]})]
    made += [zip_file(*pair) for pair in trees()] + [legacy_file(*pair) for pair in trees(legacy=True)]
    return made


def pickles():
    texts = [b"(lp0\nI1\naF2.5\naS'a'\np1\naL3L\na.", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94."]
    texts += [pickled(tree) for tree, _ in trees(legacy=True)]
    texts += [b"\x80\x05" + opcodes({"b": b"bytes", "neg": -70000, "big": 2**70, "nested": [[[()]]]}) + b"."]
    return texts


def safetensors():
    def file(header, data=b""):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def entry(dtype, shape, start, stop):
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}

    return [
        file({}),
        file({"w": entry("F32", [2, 1], 0, 8), "b": entry("BOOL", [3], 8, 11)}, bytes(8) + b"\0\1\1"),
        file({"__metadata__": {"a": "b"}, "e": entry("F8_E4M3", [2], 0, 2), "h": entry("BF16", [], 2, 4)}, b"1234"),
        file({"z": entry("I64", [0, 5], 0, 0), "c": entry("C64", [1], 0, 8)}, bytes(8)),
    ]


def onnx():
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def model(nodes, weights, opset=18, inputs=("x",), outputs=("y",), functions=()):
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in (*inputs, *outputs)]
        graph = helper.make_graph(nodes, "g", infos[: len(inputs)], infos[len(inputs) :], weights)
        imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid("f", 1)] * bool(functions)
        made = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)
        return made.SerializeToString()

    w = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    shape = numpy_helper.from_array(np.array([0, 2], np.int64), "s")
    listed = helper.make_tensor("l", TensorProto.FLOAT, [2], [1.0, 2.0])
    half = helper.make_tensor("h", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    node = helper.make_node
    branch = helper.make_graph([node("Relu", ["x"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    truth = numpy_helper.from_array(np.array(True), "t")
    function = helper.make_function("f", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)])
    return [
        model([node("MatMul", ["x", "w"], ["y"])], [w]),
        model([node("Reshape", ["x", "s"], ["z"]), node("Add", ["z", "l"], ["y"])], [shape, listed]),
        model([node("Cast", ["h"], ["c"], to=1), node("Mul", ["x", "c"], ["y"])], [half]),
        model([node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)], [truth]),
        model([node("F", ["x"], ["y"], domain="f")], [], functions=[function]),
        model([node("ConstantOfShape", ["s"], ["k"]), node("Softmax", ["x"], ["y"], axis=1)], [shape], opset=11),
    ]


SEEDS = {"pytorch": pytorch, "pickles": pickles, "safetensors": safetensors, "onnx": onnx}
TOKENS = {
    "pytorch": [
        b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"archive/data/0", b"big",
        b"data.pkl", b"\xff\xff\xff\xff",
    ],
    "pickles": [
        b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
        b"cnumpy\ndtype\n", b"cbuiltins\nlist\n", b"cos\nsystem\n", b")R", b"(", b"t", b"}", b"]", b"e", b"u", b"b",
        b"Q", b"0", b"2", b"h\x00", b"q\x00", b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"\x85", b"\x93", b"\x94",
    ],
    "safetensors": [
        b'"shape"', b'"dtype"', b'"data_offsets"', b"[", b"]", b"{", b"}", b",", b"1e999", b"-1", b"F8_E5M2",
        b"99999999999999999999", b'"w":', b"null", b"NaN",
    ],
    "onnx": [
        b"\x0a", b"\x12", b"\x08\x01", b"\x22\x00", b"MatMul", b"Loop", b"Expand", b"Range", b"Gather", b"location",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"axis",
    ],
}  # fmt: skip
