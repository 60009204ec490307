"""The globals a checkpoint may name and what a call of each builds: tensors, arrays, containers, numbers.

Each builder takes the machine and the arguments as the file has them, checks their types, and returns new data.
What is not in `ALLOWED` is refused, or stands as an inert `Unknown`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.weights import dtypes
from pyclattn.weights.pickled import Builder, Placeholder, Stateful, Unknown, shown
from pyclattn.weights.tensors import MAX_RANK, Refused, Storage, Tensor, are_counts
from pyclattn.weights.unpickler import CONTAINER, MAX_KEY_ITEMS, SLOT, Machine


class ElementType:
    """A torch dtype, or the class of storages of one: a name in the file, nothing to call.

    ``dtype`` is None where no array can hold its elements (quantised ones), or for a storage of plain bytes.
    """

    __slots__ = ("dtype", "itemsize", "name")

    def __init__(self, name: str, dtype: str | None, itemsize: int = 1):
        self.name, self.dtype = name, dtype
        self.itemsize = dtypes.ITEMSIZE[dtype] if dtype else itemsize

    def __repr__(self) -> str:
        return self.name


# NumPy


class NumpyType(Stateful):
    """A numpy.dtype being rebuilt: plain elements only."""

    __slots__ = ("dtype",)
    PATTERN = re.compile(r"[<>|=]?([biufcmM][0-9]{1,2}|[SU][0-9]{1,6}|\?)")

    def __init__(self, code: Any):
        if type(code) is not str or not self.PATTERN.fullmatch(code):
            raise ValueError(f"has the NumPy dtype {shown(code)}; plain numbers and text are read")
        self.dtype = np.dtype(code)

    def set_state(self, machine: Machine, state: Any) -> None:
        if type(state) is not tuple or not 5 <= len(state) <= 9 or any(part is not None for part in state[2:5]):
            raise ValueError("has a structured NumPy dtype; plain numbers and text are read")
        if type(state[1]) is not str or state[1] not in "<>|=" or len(state[1]) != 1:
            raise ValueError(f"has a NumPy dtype of byte order {shown(state[1])}")
        if len(state) > 8:  # the unit of a date
            raise ValueError("has a NumPy dtype with metadata; plain numbers and text are read")
        self.dtype = self.dtype.newbyteorder(state[1])  # type: ignore[arg-type]

    def array(self, raw: Any, shape: Any, is_fortran: bool = False) -> np.ndarray:
        if type(raw) is str:
            raw = raw.encode("ascii")  # Python 2
        if type(raw) is not bytes or type(shape) is not tuple or not are_counts(shape):
            raise ValueError("has a NumPy array whose data are not bytes or whose shape is not whole numbers")
        wanted = math.prod(shape) * self.dtype.itemsize
        if len(raw) != wanted:
            raise ValueError(f"has a NumPy array of shape {shape!s:.80}: {wanted} bytes, got {len(raw)}")
        array = np.frombuffer(raw, self.dtype) if raw else np.empty(0, self.dtype)
        array = array.reshape(shape, order="F" if is_fortran else "C")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        array.flags.writeable = False
        return array


class PickledArray(Stateful):
    """A numpy.ndarray being rebuilt: empty until its state comes."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        self._array: np.ndarray | None = None

    def set_state(self, machine: Machine, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not NumpyType:
            raise ValueError("has a NumPy array without shape, type and data; arrays of objects are not read")
        machine.charge(len(state[4]) if type(state[4]) in (bytes, str) else 0)
        self._array = state[2].array(state[4], state[1], bool(state[3]))

    def array(self, widen: bool = True) -> np.ndarray:
        if self._array is None:
            raise ModelFormatError("a NumPy array in the file was never given its data")
        return self._array


def _numpy_dtype(machine: Machine, code: Any, *_: Any) -> NumpyType:
    return NumpyType(code)


def _numpy_reconstruct(machine: Machine, *_: Any) -> PickledArray:
    return PickledArray()


def _numpy_scalar(machine: Machine, dtype: Any, raw: Any = b"") -> Any:
    if type(dtype) is not NumpyType:
        raise ValueError("has a NumPy number without a plain dtype")
    machine.charge(len(raw) if type(raw) in (bytes, str) else 0)
    return dtype.array(raw, ())[()]


def _numpy_frombuffer(machine: Machine, raw: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    machine.charge(len(raw) if type(raw) is bytes else 0)
    made = PickledArray()
    made.set_state(machine, (1, shape, dtype, order == "F", raw))
    return made


# PyTorch


def _tensor(machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """_rebuild_tensor and _v2; rest: requires_grad, backward_hooks, and metadata where there are any."""
    if type(storage) is not Storage or storage.dtype is None:
        raise ValueError(f"builds a tensor on {shown(storage)}, a storage with an element type is expected")
    return _with_bits(Tensor(storage, storage.dtype, offset, _plain(shape), _plain(strides)), rest[2:3])


def _tensor_v3(machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor | Refused:
    """As v2, with the element type as third of the rest: a storage of bytes lies below."""
    if type(storage) is not Storage or len(rest) < 3 or type(rest[2]) is not ElementType:
        raise ValueError("builds a tensor without a storage or an element type")
    if rest[2].dtype is None:
        return Refused(f"a tensor of {rest[2].name}, which no array can hold")
    return _with_bits(Tensor(storage, rest[2].dtype, offset, _plain(shape), _plain(strides)), rest[3:4])


def _with_bits(tensor: Tensor, metadata: tuple) -> Tensor:
    if metadata and type(metadata[0]) is dict:
        tensor.is_conjugate = metadata[0].get("conj") is True
        tensor.is_negative = metadata[0].get("neg") is True
    return tensor


def _plain(value: Any) -> tuple:
    """Lengths or strides; Tensor checks the rest."""
    return tuple(value[: MAX_RANK + 1]) if type(value) is list else value


def _first(machine: Machine, data: Any, *_: Any) -> Any:
    """A Parameter is its data."""
    return data


def _from_type(machine: Machine, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor that carries attributes, or of a subclass."""
    if type(function) is not Builder or type(args) is not tuple:
        raise ValueError(f"builds a tensor by {shown(function)}")
    if function.function is _from_type:  # as deep as the file likes
        raise ValueError("builds a tensor by way of itself")
    if type(kind) is Unknown:
        return Refused(f"a tensor of the class {kind.name}, whose meaning is not known")
    return function.function(machine, *args)


def _refused(kind: str) -> Any:
    def build(machine: Machine, *args: Any) -> Refused:
        return Refused(f"a {kind} tensor; dense ones are read")

    return build


def _device(machine: Machine, *parts: Any) -> str:
    return ":".join(str(part)[:MAX_KEY_ITEMS] for part in parts if type(part) in (str, int))


# Containers and numbers: copies are charged, or one opcode could double all there is


def _copied(machine: Machine, values: Any) -> list:
    if type(values) not in (list, tuple, set, frozenset, dict):
        raise ValueError(f"makes a container of a {type(values).__name__}")
    machine.charge(SLOT * len(values) + CONTAINER)
    return list(values)


def _list(machine: Machine, values: Any = ()) -> list:
    return _copied(machine, values)


def _tuple(machine: Machine, values: Any = ()) -> tuple:
    return tuple(_copied(machine, values))


def _set(machine: Machine, values: Any = ()) -> set:
    return {machine.key(value) for value in _copied(machine, values)}


def _frozenset(machine: Machine, values: Any = ()) -> frozenset:
    return frozenset(_set(machine, values))


def _dict(machine: Machine, values: Any = ()) -> dict:
    """dict, OrderedDict and Counter, of pairs or of another dict."""
    if type(values) is dict:
        machine.charge(SLOT * len(values))
        return dict(values)
    pairs = _copied(machine, values)
    if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise ValueError("makes a dict of something else than pairs")
    return {machine.key(key): value for key, value in pairs}


def _defaultdict(machine: Machine, factory: Any = None, values: Any = ()) -> dict:
    return _dict(machine, values)


def _bytes(machine: Machine, value: Any = b"", encoding: Any = "latin1") -> bytes:
    """Bytes as protocols 0 to 2 wrote them: text of Latin-1."""
    if type(value) not in (str, bytes) or encoding not in ("latin1", "latin-1", "ascii"):
        raise ValueError("makes bytes of something else than text")
    machine.charge(len(value))
    return value.encode("latin1") if type(value) is str else value


def _complex(machine: Machine, real: Any, imaginary: Any = 0.0) -> complex:
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        raise ValueError("makes a complex number of something else than two numbers")
    return complex(real, imaginary)


def _reconstructor(machine: Machine, kind: Any, *_: Any) -> Any:
    """An object of protocol 0 or 1: made without arguments, its state follows."""
    if type(kind) is Unknown:
        return Placeholder(kind.name)
    if type(kind) is Builder and kind.function in (_dict, _list, _set):
        return kind.function(machine)
    raise ValueError(f"makes an object of {shown(kind)}")


def _not_called(machine: Machine, *_: Any) -> Any:
    raise ValueError("calls a class that is only named")


_BUILDERS: dict[str, dict[str, Any]] = {
    "builtins": {
        "list": _list, "tuple": _tuple, "set": _set, "frozenset": _frozenset, "dict": _dict, "bytes": _bytes,
        "bytearray": _bytes, "complex": _complex, "object": _not_called, "int": _not_called, "float": _not_called,
        "str": _not_called, "bool": _not_called,
    },
    "collections": {"OrderedDict": _dict, "Counter": _dict, "defaultdict": _defaultdict},
    "_codecs": {"encode": _bytes},
    "copyreg": {"_reconstructor": _reconstructor},
    "numpy": {"dtype": _numpy_dtype, "ndarray": _not_called},
    "numpy._core.multiarray": {"_reconstruct": _numpy_reconstruct, "scalar": _numpy_scalar},
    "numpy._core.numeric": {"_frombuffer": _numpy_frombuffer},
    "torch": {"Size": _tuple, "device": _device, "Tensor": _not_called},
    "torch.serialization": {"_get_layout": _first},
    "torch.nn.parameter": {"Parameter": _first, "Buffer": _first},
    "torch._tensor": {"_rebuild_from_type_v2": _from_type},
    "torch._utils": {
        "_rebuild_tensor": _tensor, "_rebuild_tensor_v2": _tensor, "_rebuild_tensor_v3": _tensor_v3,
        "_rebuild_parameter": _first, "_rebuild_parameter_with_state": _first,
        "_rebuild_device_tensor_from_numpy": _first, "_rebuild_device_tensor_from_cpu_tensor": _first,
        "_rebuild_xla_tensor": _first,
        "_rebuild_qtensor": _refused("quantised"), "_rebuild_sparse_tensor": _refused("sparse"),
        "_rebuild_sparse_csr_tensor": _refused("sparse"), "_rebuild_nested_tensor": _refused("nested"),
        "_rebuild_meta_tensor_no_storage": _refused("meta (without data)"),
        "_rebuild_wrapper_subclass": _refused("wrapped"),
    },
}  # fmt: skip
_OLD_NAMES = {
    "__builtin__": "builtins",  # Python 2
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "torch.tensor": "torch._tensor",
}
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Byte": "uint8", "Char": "int8",
    "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
_QUANTISED = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_QUANTISED_STORAGES = {"QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1}

ALLOWED: dict[str, Builder | ElementType | Unknown] = {
    **{
        f"{module}.{name}": Builder(f"{module}.{name}", function)
        for module, names in _BUILDERS.items()
        for name, function in names.items()
    },
    **{
        f"{module}.{name}Storage": ElementType(f"{module}.{name}Storage", dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    **{
        f"torch.{name}Storage": ElementType(f"torch.{name}Storage", None, itemsize)
        for name, itemsize in _QUANTISED_STORAGES.items()
    },
    **{f"torch.{name}": ElementType(f"torch.{name}", name) for name in dtypes.STORED},
    **{f"torch.{name}": ElementType(f"torch.{name}", None, itemsize) for name, itemsize in _QUANTISED.items()},
    "torch.float4_e2m1fn_x2": ElementType("torch.float4_e2m1fn_x2", None),
    "torch.storage.UntypedStorage": ElementType("torch.storage.UntypedStorage", None),
    "torch.UntypedStorage": ElementType("torch.UntypedStorage", None),
    **{f"torch.{name}": Unknown(f"torch.{name}") for name in ("per_tensor_affine", "per_channel_affine", "strided")},
}


def find(module: str, name: str) -> Builder | ElementType | Unknown | None:
    """The allowed global of this name; None for any other."""
    return ALLOWED.get(f"{_OLD_NAMES.get(module, module)}.{name}")
