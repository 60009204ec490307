"""Attacks through files of torch.save: name -> (what makes the file, what the answer must say).

Each maker gets the folder it may put more files in. "" as answer: the file is read, as what it is.
"""

import io
import json
import os
import struct
import zipfile

import numpy as np
from torch_files import ORDERED, Call, Global, Persistent, Storages, legacy_file, opcodes, pickled, zip_file

MANY = 1 << 20
W = np.arange(6, dtype=np.float32)
REFUSED = "nothing in a file is run"


def code(tail, protocol=2):
    """A zip whose pickle is these opcodes."""
    return lambda folder: zip_file(b"\x80" + bytes([protocol]) + tail)


def tree(make):
    """A zip of one tensor and whatever is made around it."""

    def build(folder):
        storages = Storages()
        return zip_file(make(storages, storages.tensor(W)), storages)

    return build


def tensor(**changes):
    """A zip whose only tensor has other arguments than it should."""
    names = ["storage", "offset", "shape", "strides", "grad", "hooks"]

    def make(storages, w):
        args = dict(zip(names, w.args), **changes)
        return {"w": Call(w.function, tuple(args[name] for name in names))}

    return tree(make)


def storage(**changes):
    """A zip whose only storage is named by another persistent id."""
    names = ["word", "kind", "key", "device", "count"]

    def make(storages, w):
        given = dict(zip(names, w.args[0].id), **changes)
        return {"w": Call(w.function, (Persistent(tuple(given[name] for name in names)), *w.args[1:]))}

    return tree(make)


def touch(folder):
    return f"touch {folder}/executed"


def run(function, *args):
    return lambda folder: zip_file({"x": Call(function, args or (touch(folder),))})


SYSTEM = Global("os", "system")
EXECUTED = {
    "os.system": (run(SYSTEM), REFUSED),
    "os.system, legacy": (lambda f: legacy_file({"x": Call(SYSTEM, (touch(f),))}), REFUSED),
    "in the magic number": (
        lambda f: legacy_file({}).replace(b"\x80\x02M\xe9\x03.", b"").replace(
            b"}(", b"cos\nsystem\n(X" + struct.pack("<I", len(touch(f))) + touch(f).encode() + b"tR}(", 1), REFUSED),
    "posix.system by INST": (
        lambda f: zip_file(b"(S'" + touch(f).encode() + b"'\niposix\nsystem\n."), REFUSED),
    "by OBJ": (lambda f: zip_file(b"(cos\nsystem\nS'" + touch(f).encode() + b"'\no."), REFUSED),
    "subprocess by NEWOBJ": (
        lambda f: zip_file(b"\x80\x02csubprocess\nPopen\n" + opcodes((touch(f),)) + b"\x81."), REFUSED),
    "eval by STACK_GLOBAL": (
        lambda f: zip_file(
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + opcodes((f"open('{f}/executed','w')",)) + b"R."),
        REFUSED),
    "a dotted name": (
        code(opcodes("collections") + opcodes("OrderedDict.fromkeys.__globals__") + b"\x93.", 4), REFUSED),
    "getattr": (run(Global("builtins", "getattr"), Global("os", "system"), "x"), REFUSED),
    "numpy's own exec": (run(Global("numpy.testing._private.utils", "runstring"), "import os", {}), REFUSED),
    "torch.load": (run(Global("torch", "load"), "x.pt"), REFUSED),
    "import by __import__": (run(Global("builtins", "__import__"), "antigravity"), REFUSED),
    "a tensor built by os.system": (
        lambda f: zip_file({"x": Call(Global("torch._tensor", "_rebuild_from_type_v2"),
                                      (SYSTEM, Global("torch", "Tensor"), (touch(f),), {}))}), REFUSED),
    "a storage of class os.system": (storage(kind=SYSTEM), REFUSED),
    "a codec with effects": (run(Global("_codecs", "encode"), "x", "rot13"), "makes bytes of something else"),
    "a reconstructed class": (
        run(Global("copyreg", "_reconstructor"), Global("subprocess", "Popen"), Global("builtins", "object"), None),
        REFUSED),
    "calling a dtype": (run(Global("torch", "float32"), "x"), "calls a ElementType"),
    "calling text": (code(b"X\x01\x00\x00\x00x)R."), "calls a str"),
    "state for a builder": (code(b"ccollections\nOrderedDict\n}b."), "sets the state of"),
    "state for a tensor": (tree(lambda s, w: {"w": Call(w.function, w.args, {"__class__": 1})}), "sets the state of"),
}  # fmt: skip
# The same, where the caller asked for placeholders: read, and nothing has happened.
INERT = {f"{name}, as placeholder": (EXECUTED[name][0], "") for name in (
    "os.system", "os.system, legacy", "posix.system by INST", "by OBJ", "subprocess by NEWOBJ", "eval by STACK_GLOBAL",
    "getattr", "torch.load", "import by __import__", "a reconstructed class")}  # fmt: skip


def doubled(n):
    """Dicts that hold the one before twice: 2^n names."""
    parts = [b"}q\x000"]
    for i in range(n):
        parts.append(b"}q" + bytes([i + 1]) + b"(K\x01h" + bytes([i]) + b"K\x02h" + bytes([i]) + b"u0")
    return b"".join(parts) + b"h" + bytes([n])


NESTED_KEY = b"}" + b")" + b"\x85" * (MANY // 4) + b"Ns."
COLLIDING = b"}(" + b"".join(
    b"\x8a\x0b" + (k * (2**61 - 1) << 3).to_bytes(11, "little") + b"N" for k in range(1, 50_000)
)
BOMBS = {
    "an integer of 2 GB": (code(b"\x8b\xff\xff\xff\x7f."), "at most 255"),
    "an integer of 1 MB": (code(b"\x8b" + struct.pack("<I", MANY) + b"\xff" * MANY + b"."), "at most 255"),
    "a million digits": (code(b"I" + b"9" * MANY + b"\n."), "digits"),
    "text of 2^62 bytes": (code(b"\x8d" + struct.pack("<Q", 2**62) + b"x."), "bytes follow"),
    "bytes of 4 GB": (code(b"B\xff\xff\xff\xff."), "bytes follow"),
    "a frame of 2^63 bytes": (code(b"\x95" + struct.pack("<Q", 2**63) + b"N.", 4), "frame"),
    "memo at 2^32 - 1": (code(b"}r\xff\xff\xff\xff."), ""),
    "a flood of memos": (code(b"N" + b"\x94" * MANY + b"."), "memory"),
    "a flood of dicts": (code(b"(" + b"}" * MANY + b"l."), "memory"),
    "a flood of sets": (code(b"(" + b"\x8f" * MANY + b"l.", 4), "memory"),
    "a flood of marks": (code(b"(" * MANY + b"."), "memory"),
    "a flood of calls": (code(b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R0" * MANY + b"N."), "memory"),
    "copies of copies": (
        code(b"cbuiltins\nlist\nq\x00](" + b"N" * 1000 + b"eq\x01" + b"0h\x00h\x01\x85R" * 2000 + b"."), "memory"),
    "wide text": (code(b"(" + (b"X\x04\x00\x00\x00" + "😀".encode()) * (MANY // 2) + b"l."), "memory"),
    "a key nested a million deep": (code(NESTED_KEY), "nested"),
    "a tuple nested a million deep": (code(b")" + b"\x85" * (MANY // 4) + b"."), "deep"),
    "a list nested deep": (code(b"]" * (MANY // 4) + b"a" * (MANY // 4 - 1) + b"."), "deep"),
    "a list in itself": (code(b"]q\x00h\x00a."), "holds itself"),
    "a dict in itself": (code(b"}q\x00(K\x01h\x00K\x02h\x00u."), "holds itself"),
    "names by doubling": (code(doubled(40) + b"."), "values in its containers"),
    "keys that collide": (code(COLLIDING + b"u."), "bits"),
    "a flood of tuple keys": (
        code(b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"\x85N" for k in range(100_000)) + b"u."), "neither"),
    "bytearray(10^12)": (run(Global("builtins", "bytearray"), 10**12), "makes bytes"),
    "list(range) of text": (run(Global("builtins", "list"), "x" * 100), "makes a container of a str"),
    "a line without an end": (code(b"V" + b"x" * MANY), "line without an end"),
    "many short lines": (code(b"(" + b"V\n" * (MANY // 8) + b"l."), ""),
    "no end": (code(b"}" * 10), "STOP"),
    "an empty stack": (code(b"s."), "stack"),
    "objects left behind": (code(b"NN."), "more than one"),
    "memo that is not there": (code(b"h\x07."), "not there"),
    "protocol 200": (lambda f: zip_file(b"\x80\xc8N."), "protocol 200"),
    "extension codes": (code(b"\x82\x01."), "extension"),
    "buffers from outside": (code(b"\x97.", 5), "extension"),
    "an opcode that is none": (code(b"\xff."), "not allowed"),
    "a list as key": (code(b"}]Ns."), "key that is a list"),
    "items of a number": (code(b"K\x01K\x02K\x03s."), "sets items"),
    "a global that is no text": (code(b"K\x01K\x02\x93.", 4), "something else than text"),
    "text that is not UTF-8": (code(b"X\x01\x00\x00\x00\xff."), "decode"),
    "a persistent id of text": (code(b"X\x01\x00\x00\x00xQ."), "no storage"),
}  # fmt: skip

BIG = 2**40
TENSORS = {
    "a shape beyond all memory": (tensor(shape=(BIG, BIG), strides=(BIG, 1)), "ends at element"),
    "a shape that overflows": (tensor(shape=(2**62, 4), strides=(4, 1)), "ends at element"),
    "expanded beyond all memory": (tensor(shape=(BIG, 6), strides=(0, 1)), "shows"),
    "a negative stride": (tensor(strides=(-1,)), "at least 0"),
    "a negative offset": (tensor(offset=-1), "at least 0"),
    "an offset beyond": (tensor(offset=1), "ends at element 7"),
    "a stride beyond": (tensor(strides=(2,)), "ends at element 11"),
    "strides of another rank": (tensor(strides=(1, 1)), "one length"),
    "rank 10,000": (tensor(shape=(1,) * 10_000, strides=(0,) * 10_000), "at most 64"),
    "a shape of fractions": (tensor(shape=(6.0,)), "whole numbers"),
    "a shape of truth": (tensor(shape=(True,)), "whole numbers"),
    "a shape that is text": (tensor(shape="6"), "whole numbers"),
    "nothing times 2^62": (tensor(shape=(0, 2**62, 2**62), strides=(0, 0, 0)), "beyond any array"),
    "a storage of 2^60 elements": (storage(count=2**60), "bytes are needed"),
    "a storage of other size": (storage(count=5), "bytes are needed"),
    "a storage that is not there": (storage(key="9"), "not in the file"),
    "a key that is a path": (storage(key="../../../etc/passwd"), "not in the file"),
    "a storage of a quantised type": (storage(kind=Global("torch", "QInt32Storage")), "element type"),
    "one storage of two types": (
        tree(lambda s, w: {"w": w, "v": Call(w.function, (Persistent(
            ("storage", Global("torch", "IntStorage"), "0", "cpu", 6)), *w.args[1:]))}), "two types"),
    "a tensor without a storage": (tensor(storage=7), "a storage with an element type"),
    "bool of other bytes": (
        lambda f: zip_file(*(lambda s: ({"w": s.tensor(np.array([2], np.uint8), "bool")}, s))(Storages())), "got 2"),
    "widened in many ways": (
        lambda f: (lambda s: zip_file({str(i): s.bits(np.zeros(4 * MANY, np.uint8), "float8_e5m2") if not i else Call(
            Global("torch._utils", "_rebuild_tensor_v3"), (s.reference("0"), 0, (4 * MANY,), (1,), False, Call(ORDERED),
            Global("torch", kind))) for i, kind in enumerate(["", "float8_e4m3fn", "float8_e8m0fnu"])}, s))(Storages()),
        "copies of it hold"),
    "a tensor by way of itself": (
        run(Global("torch._tensor", "_rebuild_from_type_v2"), Global("torch._tensor", "_rebuild_from_type_v2"),
            Global("torch", "Tensor"), (1, 2), {}), "by way of itself"),
}  # fmt: skip


def numpy_array(dtype, shape, raw):
    made = Call(Global("numpy", "dtype"), (dtype, False, True), (3, "<", None, None, None, -1, -1, 0))
    call = Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"))
    return lambda f: zip_file({"a": Call(call.function, call.args, (1, shape, made, False, raw))})


NUMPY = {
    "elements of 1 GB": (numpy_array("S999999999", (1,), b""), "NumPy dtype"),
    "an array of objects": (numpy_array("O", (1,), [Call(SYSTEM, ("true",))]), "NumPy dtype"),
    "an array of objects, harmless": (numpy_array("O8", (1,), [1]), "plain numbers"),
    "an array beyond all memory": (numpy_array("f8", (BIG, BIG), b"x"), "got 1"),
    "a negative shape": (numpy_array("f8", (-1,), b""), "whole numbers"),
    "a structured type": (numpy_array("V8", (1,), b"12345678"), "plain numbers"),
    "a type that is code": (numpy_array("os.system", (1,), b""), "plain numbers"),
    "an array without its data": (run(Global("numpy.core.multiarray", "_reconstruct"), 1, (0,), b"b"), "never given"),
}


def repeated(setup, each, count=200_000):
    """Something large is put into the memo once, and a short piece of code names it again and again."""
    return code(setup + b"0(" + each * count + b"l.", 4)


def many_views(folder):
    """Each view of an unaligned storage could be a copy of it."""
    storages = Storages()
    storages.add(b"x", "uint8", 1, "odd")
    storages.add(bytes(MANY), "float32", MANY // 4, "big")
    items = {"odd": storages.view("odd", 0, (1,), (1,), legacy=True)}
    for i in range(500):
        root = storages.reference("big", legacy=True)
        root.id = (*root.id[:5], (f"v{i}", 1, MANY // 4 - 1))
        items[f"v{i}"] = Call(Global("torch._utils", "_rebuild_tensor"), (root, 0, (MANY // 4 - 1,), (1,)))
    return legacy_file(items, storages)


def many_tensors(folder):
    storages = Storages()
    reference = opcodes(storages.tensor(W).args[0])
    start = b"\x80\x02" + reference + b"q\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010K\x01\x85q\x020("
    return zip_file(start + b"h\x01(h\x00K\x00h\x02h\x02tR" * 50_000 + b"l.", storages)


def many_conjugates(folder):
    storages = Storages()
    key = storages.add(bytes(MANY), "complex64", MANY // 8)
    items = {}
    for i in range(500):
        plain = storages.view(key, i, (MANY // 8 - 500,), (1,))
        items[str(i)] = Call(plain.function, (*plain.args, {"conj": True, "neg": bool(i % 2)}))
    return zip_file(items, storages)


def wrapped_in_aliases(folder):
    """Every key that could hold the weights holds the same large container without any, many times over."""
    keys = ["state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params"]
    large = b"}q\x00K\x00](" + b"N" * 400_000 + b"es0"
    level = b"}q\x010"
    for i in range(1, 60):
        aliases = b"".join(opcodes(key) + b"h\x00" for key in keys)
        level += b"}q" + bytes([i + 1]) + b"(" + opcodes("model") + b"h" + bytes([i]) + aliases + b"u0"
    return zip_file(b"\x80\x02" + large + level + b"h\x3c.")


LONG = opcodes("x" * (MANY // 2))
TEN = b"(" + b"K\x01" * 200_000 + b"tq\x00"
REPEATED = {
    "a message that would never end": (
        code(doubled(60)[:-2] + b"h\x3cQ."), "is no storage"),
    "a dtype that would never end": (
        code(doubled(60)[:-2] + b"cnumpy\ndtype\nh\x3c\x85R."), "has the NumPy dtype a dict"),
    "a call with 200,000 arguments": (
        repeated(TEN + b"0ctorch\ndevice\nq\x01", b"h\x01h\x00R"), "more than 64 arguments"),
    "shapes of 200,000 lengths": (
        repeated(TEN + b"0cnumpy.core.numeric\n_frombuffer\nq\x01cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85Rq\x02",
                 b"h\x01(C\x00h\x02h\x00X\x01\x00\x00\x00CtR"), "whose shape is not whole numbers"),
    "names of globals of a megabyte": (repeated(LONG + b"q\x00", b"h\x00h\x00\x93"), "at most 1024"),
    "numbers of a megabyte": (
        repeated(b"B" + struct.pack("<I", 999_999) + bytes(999_999) + b"q\x000cnumpy\ndtype\n"
                 b"X\x07\x00\x00\x00S999999\x85Rq\x010cnumpy.core.multiarray\nscalar\nq\x02",
                 b"h\x02h\x01h\x00\x86R"), "memory"),
    "bytes decoded again and again": (
        repeated(LONG + b"q\x000c_codecs\nencode\nq\x01", b"h\x01h\x00\x85R"), "memory"),
    "copies of arguments": (
        repeated(TEN + b"0}q\x02(K\x01K\x01u0cbuiltins\nlist\nq\x01", b"h\x01h\x00h\x02\x92"), "with keywords"),
    "tuples of a megabyte as keys": (
        code(LONG + b"q\x000}(" + b"".join(b"h\x00J" + struct.pack("<i", k) + b"\x86N" for k in range(4000)) + b"u."),
        "nested or long"),
    "a name of a megabyte above many": (
        code(b"}(" + LONG + b"](" + b"](Ne" * 1000 + b"eu."), "a name of more than"),
    "views of an unaligned storage": (many_views, ""),
    "conjugates of one storage": (many_conjugates, ""),
    "wrappers in wrappers": (wrapped_in_aliases, "values in its containers"),
    "50,000 tensors of one element": (many_tensors, ""),
}  # fmt: skip


# Containers of bytes


def plain():
    storages = Storages()
    return zip_file({"w": storages.tensor(W)}, storages)


def patched(place, value, count=1):
    """The plain file with bytes changed: place(data) -> where."""

    def build(folder):
        data = bytearray(plain())
        start = place(data)
        data[start : start + len(value)] = value
        return bytes(data)

    return build


def directory(data, n=0):
    """Where the n-th entry of the directory begins."""
    place = -1
    for _ in range(n + 1):
        place = data.find(b"PK\x01\x02", place + 1)
    return place


def end(data):
    return data.rfind(b"PK\x05\x06")


def one_body_many_names(folder):
    """A directory with 100,000 names for one member: a bomb for whoever reads them all."""
    data = bytearray(plain())
    begin, stop = directory(data), end(data)
    entry = bytes(data[begin : directory(data, 1)])
    entries = b"".join(entry.replace(b"archive/data.pkl", b"archive/%08d" % i) for i in range(20_000))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 20_000, 20_000, len(entries), begin, 0)
    return bytes(data[:begin]) + entries + tail if stop else b""


def member_in_a_member(folder):
    """The second storage's member lies inside the first's data, header and all."""
    name = b"archive/data/1"
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 4, 4, len(name), 0) + name
    storages = Storages()
    tree = {"a": storages.tensor(np.frombuffer(header + b"data", np.uint8))}
    tree["b"] = storages.tensor(np.frombuffer(b"data", np.uint8))
    data = bytearray(zip_file(tree, storages))
    place = directory(data, 3) + 42
    data[place : place + 4] = struct.pack("<I", data.find(header))
    return bytes(data)


def deflated(folder):
    storages = Storages()
    return zip_file({"w": storages.tensor(np.zeros(8 * MANY, np.float32))}, storages, compression=zipfile.ZIP_DEFLATED)


def many_members(folder):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"archive/data/{i}", b"")
    return target.getvalue()


ZIPS = {
    "a member inside another": (member_in_a_member, "overlap"),
    "members that overlap": (one_body_many_names, "its header names it"),
    "members laid over each other": (
        patched(lambda d: directory(d, 3) + 42, b"\0\0\0\0"), "its header names it"),
    "a compressed bomb": (deflated, "compressed"),
    "two checkpoints": (lambda f: zip_file(b"N.", extra=[("other/data.pkl", b"N.")]), "2 checkpoints"),
    "a member twice": (lambda f: zip_file(b"N.", extra=[("archive/a", b"1"), ("archive/b", b"2")]).replace(
        b"archive/b", b"archive/a"), "twice"),
    "more members than there are": (patched(lambda d: end(d) + 10, b"\xff\xff"), "members"),
    "a directory beyond the file": (patched(lambda d: end(d) + 16, b"\xff\xff\xff\x7f"), "reaches beyond"),
    "a directory in parts": (patched(lambda d: end(d) + 4, b"\x01\x00"), "several parts"),
    "an encrypted member": (patched(lambda d: directory(d) + 8, b"\x01\x00"), "encrypted"),
    "a member beyond the file": (patched(lambda d: directory(d) + 42, b"\xff\xff\xff\x7f"), "truncated or altered"),
    "a member larger than the file": (patched(lambda d: directory(d) + 20, b"\xff\xff\xff\x7f" * 2), "ends at byte"),
    "sizes that disagree": (patched(lambda d: directory(d) + 20, b"\x01\x00\x00\x00"), "are stored for"),
    "a ZIP64 field that is missing": (patched(lambda d: directory(d) + 20, b"\xff\xff\xff\xff" * 2), "ZIP64"),
    "an entry that is none": (patched(directory, b"XX"), "not one"),
    "a name of 65,535 bytes": (patched(lambda d: directory(d) + 28, b"\xff\xff"), "not one"),
    "another name in the member": (patched(lambda d: d.find(b"archive/data.pkl"), b"archive/data.pkX"), "names it"),
    "a ZIP64 locator into nowhere": (
        lambda f: (lambda d: d[: end(d)] + struct.pack("<4sIQI", b"PK\x06\x07", 0, 2**63, 1) + d[end(d) :])(plain()),
        "beyond the file"),
    "a byte order that is none": (lambda f: zip_file(b"N.", byteorder=b"middle"), "expected little or big"),
    "a byte order of 1 MB": (lambda f: zip_file(b"N.", byteorder=b"big" * MANY), "expected little or big"),
    "20,000 empty members": (many_members, "no data.pkl"),
    "a directory alone": (lambda f: b"PK\x05\x06" + bytes(18), "no data.pkl"),
}  # fmt: skip


def legacy(make=None, **changes):
    def build(folder):
        storages = Storages()
        w = storages.tensor(W, legacy=True)
        value = {"w": w} if make is None else make(storages, w)
        return legacy_file(value, storages, **changes)

    return build


def view_beyond(storages, w):
    root = storages.reference("0", legacy=True)
    root.id = (*root.id[:5], ("v", 4, 3))
    return {"w": Call(Global("torch._utils", "_rebuild_tensor"), (root, 0, (3,), (1,)))}


LEGACY = {
    "legacy: a storage of 2^62 elements": (
        lambda f: legacy()(f).replace(struct.pack("<q", 6) + W.tobytes()[:4], struct.pack("<q", 2**62) + b"\0\0\0\0"),
        "tensors expect"),
    "legacy: another version": (legacy(version=9999), "version 9999"),
    "legacy: a key twice": (legacy(keys=["0", "0"]), "not those its tensors name"),
    "legacy: a key nobody names": (legacy(keys=["7"]), "named by no tensor"),
    "legacy: keys that are no list": (legacy(keys="0"), "not those its tensors name"),
    "legacy: a view beyond its storage": (legacy(view_beyond), "reaches beyond"),
    "legacy: storages cut off": (lambda f: legacy()(f)[:-1], "truncated"),
    "legacy: a storage named in the header": (
        lambda f: legacy_file({}).replace(b"\x80\x02J\xe9\x03\x00\x00.", pickled(Persistent(("storage",)))),
        "where none may be"),
    "legacy: source code of a module": (
        legacy(lambda s, w: {"m": Persistent(("module", Global("os", "system"), "a.py", "import os")), "w": w}),
        REFUSED),
}  # fmt: skip


def index(weight_map, prepare=None):
    def build(folder):
        if prepare:
            prepare(folder)
        return json.dumps({"weight_map": weight_map}).encode() if isinstance(weight_map, dict) else weight_map

    return build


LEAD_OUT = "name of a file in the same folder"
INDICES = {
    "a shard above the folder": (index({"w": "../secret.pt"}), LEAD_OUT),
    "a shard at an absolute path": (index({"w": "/etc/passwd"}), LEAD_OUT),
    "a shard on another drive": (index({"w": "c:secret.pt"}), LEAD_OUT),
    "a shard with a NUL": (index({"w": "a\0b"}), LEAD_OUT),
    "a shard that is the folder": (index({"w": "."}), LEAD_OUT),
    "a shard without a name": (index({"w": ""}), LEAD_OUT),
    "a shard that is an index": (index({"w": "attack.index.json"}), "another index"),
    "a shard that is a pipe": (index({"w": "pipe"}, lambda f: os.mkfifo(f / "pipe")), "not a file"),
    "a shard that links out": (
        index({"w": "link"}, lambda f: (f / "link").symlink_to("/etc/passwd")), "leads out of the folder"),
    "a shard that is missing": (index({"w": "gone.pt"}), "cannot be read"),
    "an index nested deep": (index(b"[" * MANY), "nested"),
    "an index of a million empty dicts": (
        index(b'{"weight_map":{' + b",".join(b'"%d":{}' % i for i in range(MANY)) + b"}}"), "memory"),
    "an index without a map": (index(b'{"weight_map": ["a"]}'), "no weight_map"),
}  # fmt: skip
