"""Weight files made by code of our own: every branch of the readers, without PyTorch."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from torch_files import ORDERED, Call, Global, Raw, Storages, legacy_file, pickled, zip_file

import pyclattn
from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.weights import Placeholder, SafeTensors, load_weights, read_checkpoint, write_safetensors

W = np.arange(6, dtype=np.float32).reshape(2, 3)
EVERY = {
    "bool": np.array([True, False, True]),
    **{
        name: np.array([0, 1, 100], name)
        for name in ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    },
    "complex64": np.array([1 + 2j, -3j], np.complex64),
    "complex128": np.array([1 + 2j]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
FORMS = {"zip": zip_file, "legacy": legacy_file}


@pytest.fixture
def save(tmp_path):
    """Writes bytes to a file; returns its path."""

    def write(data, name="w.pt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def mapping_below(array):
    """The memory map an array is a view of, if any."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array


def test_public():
    assert pyclattn.load_weights is load_weights


def test_every_plain_type(save, form):
    storages = Storages()
    tree = {name: storages.tensor(array, legacy=form == "legacy") for name, array in EVERY.items()}
    found = load_weights(save(FORMS[form](tree, storages)))
    same(found, EVERY)
    assert not any(array.flags.writeable for array in found.values())
    assert all(array.flags.aligned for array in found.values())


def test_zip_is_mapped(save):
    storages = Storages()
    path = save(zip_file({"w": storages.tensor(W)}, storages))
    assert mapping_below(load_weights(path)["w"]) is not None
    assert mapping_below(load_weights(path, mmap=False)["w"]) is None
    same(load_weights(path, mmap=False), {"w": W})


def test_big_endian(save):
    storages = Storages()
    tree = {name: storages.tensor(array, big=True) for name, array in EVERY.items()}
    same(load_weights(save(zip_file(tree, storages, byteorder=b"big"))), EVERY)
    storages = Storages()
    bits = np.array([0x3FC0, 0xC050], ">u2")
    tree = {"w": storages.tensor(bits, "bfloat16", big=True)}
    same(load_weights(save(zip_file(tree, storages, byteorder=b"big"))), {"w": np.array([1.5, -3.25], np.float32)})


def test_without_a_byteorder_record_files_are_little(save):
    storages = Storages()
    same(load_weights(save(zip_file({"w": storages.tensor(W)}, storages, byteorder=None))), {"w": W})


def test_strided_expanded_and_part(save, form):
    storages, legacy = Storages(), form == "legacy"
    key = storages.add(W.tobytes(), "float32", 6)
    tree = {
        "turned": storages.view(key, 0, (3, 2), (1, 3), legacy),
        "part": storages.view(key, 1, (2, 2), (3, 1), legacy),
        "expanded": storages.view(key, 2, (100, 2), (0, 1), legacy),
    }
    wanted = {"turned": W.T, "part": W[:, 1:], "expanded": np.broadcast_to(W.ravel()[2:4], (100, 2))}
    same(load_weights(save(FORMS[form](tree, storages))), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_tensors_share_memory(save, form, dtype):
    storages, legacy = Storages(), form == "legacy"
    array = W if dtype == "float32" else (W.view(np.uint32) >> 16).astype(np.uint16)
    tensor = storages.tensor(array, dtype, legacy)
    key = next(iter(storages.known))
    tree = {"a": tensor, "b": tensor, "row": storages.view(key, 3, (3,), (1,), legacy)}
    found = load_weights(save(FORMS[form](tree, storages)))
    same(found, {"a": W, "b": W, "row": W[1]})
    assert np.shares_memory(found["a"], found["b"])
    assert np.shares_memory(found["a"], found["row"])


EIGHT_BITS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_eight_bit_floats_are_those_of_ml_dtypes(save, form, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits, storages = np.arange(256, dtype=np.uint8), Storages()
    tree = {"w": storages.bits(bits.reshape(16, 16), dtype)}
    path = save(FORMS[form](tree, storages))
    wanted = bits.view(getattr(ml_dtypes, dtype)).reshape(16, 16)
    np.testing.assert_array_equal(load_weights(path)["w"], wanted.astype(np.float32))
    kept = load_weights(path, widen=False)["w"]
    assert kept.dtype == wanted.dtype
    np.testing.assert_array_equal(kept.view(np.uint8), wanted.view(np.uint8))


def test_kept_bfloat16(save):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    storages = Storages()
    tensor = storages.tensor(np.array([[0x3FC0, 0xC050]], np.uint16), "bfloat16")
    turned = storages.view(next(iter(storages.known)), 0, (2, 1), (1, 2))
    found = load_weights(save(zip_file({"w": tensor, "t": turned}, storages)), widen=False)
    assert found["w"].dtype == ml_dtypes.bfloat16
    assert found["t"].astype(np.float32).tolist() == [[1.5], [-3.25]]


def test_pairs_of_half_precision(save):
    storages = Storages()
    halves = np.array([1, 2, -0.5, 0.25], np.float16)
    key = storages.add(halves.tobytes(), "bytes", 8)
    call = Call(
        Global("torch._utils", "_rebuild_tensor_v3"),
        (storages.reference(key), 0, (2,), (1,), False, Call(ORDERED), Global("torch", "complex32")),
    )
    same(load_weights(save(zip_file({"w": call}, storages))), {"w": np.array([1 + 2j, -0.5 + 0.25j], np.complex64)})


def test_unsigned_types_of_new_files(save):
    storages = Storages()
    arrays = {name: np.array([1, 2**15], name) for name in ("uint16", "uint32", "uint64")}
    tree = {name: storages.bits(array, name) for name, array in arrays.items()}
    for call in tree.values():  # a storage of bytes: element strides
        call.args = (*call.args[:2], (2,), (1,), *call.args[4:])
    same(load_weights(save(zip_file(tree, storages))), arrays)


def test_lazy_conjugate_and_negative(save):
    storages = Storages()
    z = np.array([1 + 2j, 3 - 4j])
    plain = storages.tensor(z)
    bits = [{"conj": True}, {"neg": True}, {"conj": True, "neg": True}]
    tree = {str(i): Call(plain.function, (*plain.args, flags)) for i, flags in enumerate(bits)}
    same(load_weights(save(zip_file(tree, storages))), {"0": z.conj(), "1": -z, "2": -z.conj()})


def test_parameters_and_tensors_with_attributes(save, form):
    storages = Storages()
    w = storages.tensor(W, legacy=form == "legacy")
    utils = "torch._utils"
    tree = {
        "a": Call(Global(utils, "_rebuild_parameter"), (w, True, Call(ORDERED))),
        "b": Call(Global(utils, "_rebuild_parameter_with_state"), (w, True, Call(ORDERED), {"x": 1})),
        "c": Call(
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (w.function, Global("torch", "Tensor"), w.args, {"note": "y"}),
        ),
    }
    same(load_weights(save(FORMS[form](tree, storages))), {"a": W, "b": W, "c": W})


def test_a_state_dict_with_metadata(save):
    storages = Storages()
    pairs = [["a", storages.tensor(W)], ["b", storages.tensor(W + 1)]]
    tree = Call(ORDERED, (pairs,), {"_metadata": Call(ORDERED)})
    same(load_weights(save(zip_file(tree, storages))), {"a": W, "b": W + 1})


def test_a_view_of_a_storage_in_old_files(save):
    storages = Storages()
    key = storages.add(W.tobytes(), "float32", 6)
    root = storages.reference(key, legacy=True)
    root.id = (*root.id[:5], ("view", 2, 3))
    tree = {"w": Call(Global("torch._utils", "_rebuild_tensor"), (root, 1, (2,), (1,)))}
    same(load_weights(save(legacy_file(tree, storages))), {"w": W.ravel()[3:5]})


def test_bare_tensor_list_and_storage(save, form):
    storages, legacy = Storages(), form == "legacy"
    w = storages.tensor(W, legacy=legacy)
    same(load_weights(save(FORMS[form](w, storages))), {"tensor": W})
    same(load_weights(save(FORMS[form]([w, (w,)], storages))), {"0": W, "1.0": W})
    same(load_weights(save(FORMS[form]({"s": w.args[0]}, storages))), {"s": W.ravel()})


# Which part of a checkpoint


def trained(storages, legacy=False):
    def t(i):
        return storages.tensor(W + i, legacy=legacy)

    state = {"model.encoder.w": t(0), "model.encoder.b": t(1), "model.head.w": t(2)}
    space = Call(Global("argparse", "Namespace"), (), {"lr": 0.1})
    return {"epoch": 3, "global_step": 10**10, "state_dict": state, "hyper_parameters": {"d": 8, "args": space},
            "optimizer_states": [{"state": {0: {"m": t(3)}}}], "ema": {"w": t(4)}}  # fmt: skip


STATE = {"model.encoder.w": W, "model.encoder.b": W + 1, "model.head.w": W + 2}


def test_lightning(save, form):
    storages = Storages()
    path = save(FORMS[form](trained(storages, form == "legacy"), storages))
    with pytest.raises(ModelFormatError, match=r"argparse.Namespace.*objects='placeholder'"):
        load_weights(path)
    same(load_weights(path, objects="placeholder"), STATE)
    found = load_weights(path, objects="placeholder", prefix="model.encoder.", strip="model.encoder.")
    same(found, {"w": W, "b": W + 1})
    same(
        load_weights(path, objects="placeholder", strip=("model.encoder.", "model.")),
        {"w": W, "b": W + 1, "head.w": W + 2},
    )
    same(load_weights(path, objects="placeholder", key="ema"), {"w": W + 4})
    same(load_weights(path, objects="placeholder", key="optimizer_states.0"), {"state.0.m": W + 3})
    assert list(load_weights(path, objects="placeholder", key=""))[-2:] == ["optimizer_states.0.state.0.m", "ema.w"]


def test_the_whole_checkpoint(save, form):
    storages = Storages()
    tree = read_checkpoint(save(FORMS[form](trained(storages, form == "legacy"), storages)))
    assert (tree["epoch"], tree["global_step"]) == (3, 10**10)
    same(tree["state_dict"], STATE)
    args = tree["hyper_parameters"]["args"]
    assert isinstance(args, Placeholder)
    assert (args.name, args.state) == ("argparse.Namespace", {"lr": 0.1})
    np.testing.assert_array_equal(tree["optimizer_states"][0]["state"][0]["m"], W + 3)


NESTS = {
    "flat": (lambda t: {"a": t}, ["a"]),
    "model": (lambda t: {"model": {"a": t}, "optimizer": {"state": {0: t}}}, ["a"]),
    "twice": (lambda t: {"model": {"state_dict": {"a": t}, "step": 1}}, ["a"]),
    "beside tensors": (lambda t: {"state_dict": {"a": t}, "mean": t}, ["a"]),
    "a layer called model": (lambda t: {"model": t, "b": t}, ["model", "b"]),
    "a setting called model": (lambda t: {"model": "vit", "state_dict": {"a": t}}, ["a"]),
    "an empty one first": (lambda t: {"state_dict": {}, "model": {"a": t}}, ["a"]),
    "parts": (lambda t: {"encoder": {"a": t}, "decoder": {"a": t}, "optimizer": {"m": t}}, ["encoder.a", "decoder.a"]),
    "lists": (lambda t: {"layers": [{"a": t}, {"a": t}]}, ["layers.0.a", "layers.1.a"]),
}


@pytest.mark.parametrize("nest", NESTS)
def test_where_the_weights_are(save, nest):
    make, names = NESTS[nest]
    storages = Storages()
    assert list(load_weights(save(zip_file(make(storages.tensor(W)), storages)))) == names


def test_modules_saved_whole(save, form):
    storages = Storages()

    def t(i):
        tensor = storages.tensor(W + i, legacy=form == "legacy")
        return Call(Global("torch._utils", "_rebuild_parameter"), (tensor, True, Call(ORDERED)))

    def module(name, parameters=None, buffers=None, modules=None, passing=()):
        state = {"training": True, "_parameters": parameters or {}, "_buffers": buffers or {},
                 "_modules": modules or {}, "_non_persistent_buffers_set": set(passing)}  # fmt: skip
        return Call(Global("net", name), (), state)

    layer = module("Layer", {"w": t(0), "none": None}, {"mean": t(1), "mask": t(2)}, passing=["mask"])
    path = save(FORMS[form]({"model": module("Net", {"scale": t(3)}, None, {"0": layer})}, storages))
    same(load_weights(path, objects="placeholder"), {"scale": W + 3, "0.w": W, "0.mean": W + 1})


def test_numpy_beside_tensors(save, form):
    def dtype(code, order="<"):
        return Call(Global("numpy", "dtype"), (code, False, True), (3, order, None, None, None, -1, -1, 0))

    def array(dtype, shape, raw, fortran=False, module="numpy.core.multiarray"):
        made = Call(Global(module, "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"))
        return Call(made.function, made.args, (1, shape, dtype, fortran, raw))

    tree = {
        "a": array(dtype("f4"), (2, 3), W.tobytes()),
        "fortran": array(dtype("f4"), (2, 3), W.tobytes("F"), True, "numpy._core.multiarray"),
        "big": array(dtype("i2", ">"), (2,), b"\x00\x01\x01\x00"),
        "text": array(dtype("U2"), (1,), "ab".encode("utf-32-le")),
        "none": array(dtype("f8"), (0, 3), b""),
        "buffer": Call(Global("numpy.core.numeric", "_frombuffer"), (W.tobytes(), dtype("f4"), (6,), "C")),
        "number": Call(Global("numpy.core.multiarray", "scalar"), (dtype("f8"), struct.pack("<d", 1.5))),
    }
    path = save(FORMS[form](tree))
    found = load_weights(path)
    number = read_checkpoint(path)["number"]
    assert (type(number), number) == (np.float64, 1.5)
    wanted = {"a": W, "fortran": W, "big": np.array([1, 256], np.int16), "text": np.array(["ab"]),
              "none": np.zeros((0, 3)), "buffer": W.ravel()}  # fmt: skip
    same(found, wanted)


def test_plain_values(save, form):
    values = {
        "int": -5, "long": 2**70, "float": 0.1, "text": "ü\ud800", "bytes": b"\x00\xff", "none": None, "yes": True,
        "list": [1, [2]], "tuple": (1, ("a",)), "set": {1, 2}, 7: "number", ("a", 1): "pair",
    }  # fmt: skip
    special = {
        "size": Call(Global("torch", "Size"), ((2, 3),)),
        "device": Call(Global("torch", "device"), ("cuda", 1)),
        "dtype": Global("torch", "float16"),
        "complex": Call(Global("builtins", "complex"), (1.0, 2.0)),
        "default": Call(Global("collections", "defaultdict"), (Global("__builtin__", "list"), {"a": 1})),
        "frozen": Call(Global("builtins", "frozenset"), ([1, 2],)),
        "array": Call(Global("builtins", "bytearray"), (b"ab",)),
        "encoded": Call(Global("_codecs", "encode"), ("\x00ÿ", "latin1")),
        "layout": Call(Global("torch.serialization", "_get_layout"), ("torch.strided",)),
    }
    wanted = {
        **values, "size": (2, 3), "device": "cuda:1", "dtype": "torch.float16", "complex": 1 + 2j, "default": {"a": 1},
        "frozen": frozenset({1, 2}), "array": b"ab", "encoded": b"\x00\xff", "layout": "torch.strided",
    }  # fmt: skip
    assert read_checkpoint(save(FORMS[form]({**values, **special}))) == wanted


PROTOCOLS = {
    "0": (b"(dp0\nVa\np1\n(lp2\nI1\naI01\naL-3L\naF0.5\naNag1\nas.", {"a": [1, True, -3, 0.5, None, "a"]}),
    "python 2 text": (b"\x80\x02}(U\x01aT\x01\x00\x00\x00bS'c\\x41'\nU\x01\xffu.", {"a": "b", "cA": b"\xff"}),
    "1": (b"}q\x00(U\x01aK\x01u.", {"a": 1}),
    "dict of a mark": (b"(U\x01xK\x02d.", {"x": 2}),
    "4 frames": (b"\x80\x04\x95\x08\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", {"a": 1}),
    "5": (b"\x80\x05}(C\x01aC\x01b\x96\x01\x00\x00\x00\x00\x00\x00\x00cNu.", {b"a": b"b", b"c": None}),
    "sets": (b"\x80\x04\x8f(K\x01K\x02\x90(K\x03\x91\x86.", ({1, 2}, frozenset({3}))),
    "stack": (b"\x80\x02K\x01K\x02\x30(K\x05\x312\x86.", (1, 1)),
    "tuples": (b"\x80\x02K\x01\x85K\x02K\x03\x87.", ((1,), 2, 3)),
    "memo": (b"\x80\x02]r\x00\x01\x00\x00j\x00\x01\x00\x00\x86.", ([], [])),
    "instance": (b"(I1\nicollections\nOrderedDict\n.", None),
    "object": (b"(cbuiltins\nlist\n(K\x01K\x02tq\x00o.", [1, 2]),
    "keywords": (b"\x80\x04cargparse\nNamespace\n)}\x8c\x01aK\x01s\x92.", "placeholder"),
    "old object": (b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR}b.", "placeholder"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_opcodes(save, name):
    code, wanted = PROTOCOLS[name]
    path = save(zip_file(code))
    if wanted is None:
        with pytest.raises(ModelFormatError):
            read_checkpoint(path)
    elif wanted == "placeholder":
        assert read_checkpoint(path).name == "argparse.Namespace"
    else:
        assert read_checkpoint(path) == wanted


def test_objects_that_are_containers(save):
    """Subclasses of list and dict: what was appended and set is kept."""
    tree = Raw(b"cconfig\nList\n)\x81(K\x01K\x02e")
    assert read_checkpoint(save(zip_file(tree.code + b"."))).items == [1, 2]
    tree = Raw(b"cconfig\nDict\n)\x81(K\x01K\x02u")
    assert read_checkpoint(save(zip_file(tree.code + b"."))).items == [(1, 2)]


@pytest.mark.parametrize(
    ("function", "word"),
    [("_rebuild_qtensor", "quantised"), ("_rebuild_sparse_tensor", "sparse"), ("_rebuild_nested_tensor", "nested"),
     ("_rebuild_meta_tensor_no_storage", "meta")],
)  # fmt: skip
def test_tensors_no_array_can_hold(save, function, word):
    """Refused by name where they are asked for; others are read around them."""
    storages = Storages()
    w = storages.tensor(W)
    path = save(zip_file({"q": Call(Global("torch._utils", function), (w,)), "w": w}, storages))
    with pytest.raises(ModelFormatError, match=rf"tensor 'q': a {word}"):
        load_weights(path)
    same(load_weights(path, prefix="w"), {"w": W})


# Several files, folders, safetensors


def sharded(folder, kind, names=None):
    storages = Storages()
    if kind == "bin":
        files = ["pytorch_model-1.bin", "pytorch_model-2.bin"]
        (folder / files[0]).write_bytes(zip_file({"a": storages.tensor(W)}, storages))
        storages = Storages()
        (folder / files[1]).write_bytes(legacy_file({"b": storages.tensor(W + 1, legacy=True)}, storages))
        index = folder / "pytorch_model.bin.index.json"
    else:
        files = ["model-1.safetensors", "model-2.safetensors"]
        write_safetensors(folder / files[0], {"a": W})
        write_safetensors(folder / files[1], {"b": W + 1, "spare": W})
        index = folder / "model.safetensors.index.json"
    weight_map = dict(zip("ab", files)) if names is None else names
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_sharded(tmp_path, kind):
    index = sharded(tmp_path, kind)
    same(load_weights(index), {"a": W, "b": W + 1})
    same(load_weights(tmp_path), {"a": W, "b": W + 1})
    same(load_weights(index, prefix="b"), {"b": W + 1})


def test_shards_in_a_cache_of_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index = sharded(blobs, "safetensors")
    for path in list(blobs.iterdir()):
        os.replace(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    same(load_weights(snapshot / index.name), {"a": W, "b": W + 1})


def test_a_shard_that_lacks_a_tensor(tmp_path):
    with pytest.raises(ModelFormatError, match=r"tensor 'c': not in 'model-1.safetensors'"):
        load_weights(sharded(tmp_path, "safetensors", {"c": "model-1.safetensors"}))


def test_folders(tmp_path):
    with pytest.raises(ModelFormatError, match="a folder without weights"):
        load_weights(tmp_path)
    storages = Storages()
    (tmp_path / "pytorch_model.bin").write_bytes(zip_file({"w": storages.tensor(W)}, storages))
    same(load_weights(tmp_path), {"w": W})
    write_safetensors(tmp_path / "model.safetensors", {"v": W})
    same(load_weights(tmp_path), {"v": W})


def test_safetensors_whatever_they_are_called(tmp_path):
    write_safetensors(tmp_path / "w.bin", {"m.a": W, "m.b": W + 1})
    same(load_weights(tmp_path / "w.bin", prefix="m.b", strip="m."), {"b": W + 1})
    with pytest.raises(ArgumentError, match="a safetensors file has no parts"):
        load_weights(tmp_path / "w.bin", key="model")


def test_every_safetensors_type(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "BF16": "bfloat16"}
    for code, name in codes.items():
        dtype = np.dtype(getattr(ml_dtypes, name))
        values = np.arange(1, 5).astype(dtype)
        header = json.dumps({"w": {"dtype": code, "shape": [4], "data_offsets": [0, values.nbytes]}}).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
        np.testing.assert_array_equal(load_weights(path)["w"], values.astype(np.float32))
        for kept in (load_weights(path, widen=False)["w"], SafeTensors(path, widen=False)["w"]):
            assert kept.dtype == dtype
            assert kept.tobytes() == values.tobytes()


# Arguments


def test_arguments_that_fit_nothing(save):
    storages = Storages()
    path = save(zip_file({"a.w": storages.tensor(W), "b.w": storages.tensor(W)}, storages))
    with pytest.raises(ArgumentError, match=r"prefix='c' begins no name.*a, b"):
        load_weights(path, prefix="c")
    with pytest.raises(ArgumentError, match=r"key='c' is not in.*a\.w, b\.w"):
        load_weights(path, key="c")
    with pytest.raises(ArgumentError, match=r"makes two tensors of .* one: 'w'"):
        load_weights(path, strip=("a.", "b."))
    with pytest.raises(ArgumentError, match="objects must be one of refuse, placeholder, got 'run'"):
        load_weights(path, objects="run")
    with pytest.raises(ArgumentError, match="strip must be"):
        load_weights(path, strip=[1])
    with pytest.raises(ArgumentError, match="prefix must be text"):
        load_weights(path, prefix=1)


def test_only_what_is_wanted_is_widened(save):
    """A prefix saves the memory of the rest."""
    import tracemalloc

    storages = Storages()
    bits = np.zeros(1 << 20, np.uint16)
    tree = {"big": storages.tensor(bits, "bfloat16"), "small": storages.tensor(bits[:4], "bfloat16")}
    path = save(zip_file(tree, storages))
    tracemalloc.start()
    load_weights(path, prefix="small")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_neither_torch_nor_pickle_is_imported(save):
    storages = Storages()
    path = save(zip_file({"w": storages.tensor(W)}, storages))
    program = (
        f"import pyclattn, sys; pyclattn.load_weights({str(path)!r}); "
        "print([m for m in ('torch', 'numba', 'scipy', 'ml_dtypes', 'zipfile') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# Files of another kind

OTHERS = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html>not found</html>", "HTML"),
    "xml": (b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "HTML or XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
    "json": (b'{"error": "not found"}', "JSON"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "numpy.load"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "pickle": (b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a", "plain pickle"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x051.9.0", "ONNX"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
    "zeros": (bytes(1000), "zeros"),
    "text": (b"404: Not Found", "text"),
    "tar": (b"sys_info".ljust(100, b"\0") + b"0000644\0" + bytes(48) + b"0" + bytes(100) + b"ustar  \0", "tar archive"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
    "npz": (zip_file(b"N.", extra=()).replace(b"archive/data.pkl", b"archive/data.npy"), "no data.pkl"),
    "unknown": (bytes(range(200, 250)), "not known"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_another_kind_are_recognised(save, name):
    data, words = OTHERS[name]
    path = save(data)
    with pytest.raises(ModelFormatError, match=words) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_other_zips_are_recognised(save, tmp_path):
    np.savez(tmp_path / "a.npz", w=W)
    with pytest.raises(ModelFormatError, match=r"numpy\.load"):
        load_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["html", "lfs", "empty"])
def test_another_kind_behind_the_name_safetensors(save, name):
    data, words = OTHERS[name]
    for read in (load_weights, SafeTensors):
        with pytest.raises(ModelFormatError, match=words):
            read(save(data, "model.safetensors"))


def test_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "gone", "a\0b"):
        with pytest.raises(ModelFormatError, match=r"not a file|cannot be read"):
            load_weights(path)


def test_cut_files(save, form):
    storages = Storages()
    whole = FORMS[form](trained(storages, form == "legacy"), storages)
    for cut in (*range(0, len(whole), 97), len(whole) - 1):
        with pytest.raises(ModelFormatError):
            load_weights(save(whole[:cut]), objects="placeholder")


def test_protocols_of_python(save):
    """What Python's own pickler writes, at every protocol."""
    import pickle

    value = {"a": [1, 2.5, "x", b"y", None, True], "t": (1, 2, 3, 4), "s": {1}, "big": 2**100, "neg": -(2**40)}
    for protocol in range(6):
        assert read_checkpoint(save(zip_file(pickle.dumps(value, protocol)))) == value
    arrays = {"w": W, "f": np.asfortranarray(W), "b": W.astype(">f4"), "n": np.float32(2), "t": np.array(["a", "bc"])}
    for protocol in range(5):
        found = read_checkpoint(save(zip_file(pickle.dumps(arrays, protocol))))
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    assert pickled(3) == b"\x80\x02K\x03."
