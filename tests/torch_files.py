"""Files as torch.save writes them, made without PyTorch: the opcodes of pickles, the zip and the legacy layout.

Objects are described, not built: `Global`, `Call` and `Persistent` stand for what only a pickle can hold, so tests can
write what no PyTorch would.
"""

import io
import struct
import zipfile
from dataclasses import dataclass, field

import numpy as np

STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage",
    "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "bool": "BoolStorage", "complex64": "ComplexFloatStorage", "complex128": "ComplexDoubleStorage",
    "bfloat16": "BFloat16Storage",
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass
class Call:
    """A call of a global, with the state a BUILD sets and what is appended or set after."""

    function: object
    args: tuple = ()
    state: object = None


@dataclass
class Persistent:
    id: object


@dataclass
class Raw:
    """Opcodes as they are."""

    code: bytes


def pickled(value, protocol=2):
    """The pickle of a value."""
    return b"\x80" + bytes([protocol]) + opcodes(value) + b"."


def opcodes(value):
    if isinstance(value, Raw):
        return value.code
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, set):
        return b"\x8f(" + b"".join(map(opcodes, sorted(value))) + b"\x90"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, Global):
        return b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
    if isinstance(value, Persistent):
        return opcodes(value.id) + b"Q"
    if isinstance(value, Call):
        made = opcodes(value.function) + opcodes(value.args) + b"R"
        return made if value.state is None else made + opcodes(value.state) + b"b"
    raise TypeError(type(value))


@dataclass
class Storages:
    """The storages of a file under construction: key -> (class, elements as bytes, number of elements)."""

    known: dict = field(default_factory=dict)

    def add(self, raw, dtype, count, key=None):
        key = str(len(self.known)) if key is None else key
        self.known[key] = dtype, raw, count
        return key

    def reference(self, key, legacy=False):
        dtype, _, count = self.known[key]
        kind = Global("torch", STORAGES[dtype]) if dtype in STORAGES else Global("torch.storage", "UntypedStorage")
        return Persistent(("storage", kind, key, "cpu", count, *([None] if legacy else [])))

    def tensor(self, array, dtype=None, legacy=False, big=False):
        """A contiguous tensor in a storage of its own; ``dtype`` for types NumPy lacks, given as bits."""
        array = np.asarray(array)
        raw = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes()
        key = self.add(raw, dtype or array.dtype.name, array.size)
        return self.view(key, 0, array.shape, strides(array.shape), legacy)

    def view(self, key, offset, shape, steps, legacy=False):
        args = (self.reference(key, legacy), offset, tuple(shape), tuple(steps), False, Call(ORDERED))
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)

    def bits(self, array, dtype):
        """A tensor of a type PyTorch keeps in a storage of bytes."""
        key = self.add(array.tobytes(), "bytes", array.nbytes)
        shape = array.shape
        args = (self.reference(key), 0, shape, strides(shape), False, Call(ORDERED), Global("torch", dtype))
        return Call(Global("torch._utils", "_rebuild_tensor_v3"), args)


ORDERED = Global("collections", "OrderedDict")


def strides(shape):
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(steps[::-1])


def zip_file(tree, storages=None, byteorder=b"little", protocol=2, compression=zipfile.ZIP_STORED, extra=()):
    """A file of PyTorch 1.6 or later; elements at multiples of 64 bytes as its writer has them."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:

        def add(name, data):
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            gap = -(target.tell() + 30 + len(name) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
            archive.writestr(info, data)

        add("archive/data.pkl", tree if isinstance(tree, bytes) else pickled(tree, protocol))
        if byteorder is not None:
            add("archive/byteorder", byteorder)
        for key, (_, raw, _) in (storages or Storages()).known.items():
            add(f"archive/data/{key}", raw)
        add("archive/version", b"3\n")
        for name, data in extra:
            add(name, data)
    return target.getvalue()


def legacy_file(tree, storages=None, version=1001, keys=None):
    """A file of PyTorch before 1.6."""
    known = (storages or Storages()).known
    system = {"protocol_version": version, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(MAGIC), pickled(version), pickled(system), tree if isinstance(tree, bytes) else pickled(tree)]
    parts.append(pickled(list(known) if keys is None else keys))
    for _, raw, count in known.values():
        parts += [struct.pack("<q", count), raw]
    return b"".join(parts)
