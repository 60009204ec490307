"""The safetensors format: 8 bytes of header length, a JSON header, tensors in one block without gaps.

Reading maps the file into memory, so tensors cost nothing until they are used and processes on a host share them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping

import numpy as np

from pyclattn.errors import DTypeError, ModelFormatError
from pyclattn.weights import dtypes, kinds
from pyclattn.weights.source import Source
from pyclattn.weights.strict_json import parse_json, short
from pyclattn.weights.targets import write_atomically
from pyclattn.weights.tensors import MAX_RANK, Storage, Tensor, named

# The format's own limit; also far above what a large model needs (about 150 bytes a tensor).
MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
# Data begin at a multiple of a cache line, and tensors are sorted by the size of their elements.
ALIGNMENT = 64

# The format's name -> PyTorch's. Elements of 4 and 6 bits, which the format knows too, are refused.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
_NAMES = {name: code for code, name in DTYPES.items() if name in dtypes.PLAIN}
_SIZES = {code: dtypes.ITEMSIZE[name] for code, name in DTYPES.items()}


class SafeTensors(Mapping[str, np.ndarray]):
    """A safetensors file, memory-mapped: a mapping of names to read-only arrays.

    Parameters
    ----------
    path : path-like
    widen : bool
        bfloat16 and 8-bit floats become float32, which copies. False keeps them, as types of the package ml_dtypes.

    Attributes
    ----------
    metadata : dict of str to str

    Raises
    ------
    ModelFormatError
        If the file is missing, truncated, altered or not safetensors; names the file, and the tensor at fault.

    Examples
    --------
    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
    >>> write_safetensors(path, {"w": np.arange(4, dtype=np.float32)}, {"made": "here"})
    >>> file = SafeTensors(path)
    >>> list(file), file["w"], file.metadata
    (['w'], array([0., 1., 2., 3.], dtype=float32), {'made': 'here'})
    """

    def __init__(self, path: str | os.PathLike, *, widen: bool = True):
        self._open(Source.open(path), widen)

    @classmethod
    def of(cls, source: Source, *, widen: bool = True) -> SafeTensors:
        """Of a file that is open already, or bytes."""
        made = cls.__new__(cls)
        made._open(source, widen)
        return made

    def _open(self, source: Source, widen: bool) -> None:
        self.path = source.name
        self._source, self._widen = source, widen
        length = int.from_bytes(source.view[:8], "little")
        if source.size < 8 or length > min(MAX_HEADER, source.size - 8):
            raise ModelFormatError(f"{self.path}: {_not_safetensors(source, length)}")
        self._start = 8 + length
        header = parse_json(bytes(source.view[8 : self._start]), self.path, source.size)
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        self._entries = self._checked(header, source.size - self._start)

    def _metadata(self, found) -> dict[str, str]:
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ModelFormatError(f"{self.path}: __metadata__ must map names to text")
        return found

    def _checked(self, header: dict, room: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """name -> (dtype, shape, offset), after every check the format asks for."""
        if len(header) > MAX_TENSORS:
            raise ModelFormatError(f"{self.path}: {len(header)} tensors, at most {MAX_TENSORS} are read")
        spans, entries = [], {}
        for name, entry in header.items():
            where = f"{self.path}: tensor {short(name)}"
            if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise ModelFormatError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(dtype, str) or dtype not in _SIZES:
                raise ModelFormatError(f"{where}: dtype {dtype!r:.60} is not supported; known are {', '.join(_SIZES)}")
            if not _are_counts(shape) or len(shape) > MAX_RANK:
                raise ModelFormatError(f"{where}: shape must be at most {MAX_RANK} whole numbers of at least 0")
            if not _are_counts(offsets) or len(offsets) != 2:
                raise ModelFormatError(f"{where}: data_offsets must be two whole numbers, got {offsets!r:.60}")
            start, stop = offsets
            wanted = math.prod(shape) * _SIZES[dtype]
            if not start <= stop <= room:
                raise ModelFormatError(
                    f"{where}: bytes {start} to {stop} are asked for, the file has {room}: truncated"
                )
            if stop - start != wanted:
                raise ModelFormatError(
                    f"{where}: shape {tuple(shape)} of {dtype} needs {wanted} bytes, got {stop - start}"
                )
            spans.append((start, stop, name))
            entries[name] = (dtype, tuple(shape), start)
        end = 0
        for start, stop, name in sorted(spans):
            if start != end:
                what = "overlaps another" if start < end else "leaves a gap before it"
                raise ModelFormatError(f"{self.path}: tensor {short(name)}: {what} (starts at {start}, expected {end})")
            end = stop
        if end != room:
            raise ModelFormatError(f"{self.path}: {room} bytes of data, the header describes {end}: altered")
        return entries

    def leaves(self) -> dict[str, Tensor]:
        """Name -> tensor, whose array is made when asked for."""
        return {name: self._tensor(name) for name in self._entries}

    def _tensor(self, name: str) -> Tensor:
        code, shape, start = self._entries[name]
        n_bytes = math.prod(shape) * _SIZES[code]
        strides, step = [], 1
        for n in reversed(shape):
            strides.append(step)
            step *= n
        strides = strides if n_bytes else [0] * len(shape)
        storage = Storage(self._source, name, DTYPES[code], n_bytes, self._start + start)
        return Tensor(storage, DTYPES[code], 0, shape, tuple(strides[::-1]))

    def __getitem__(self, name: str) -> np.ndarray:
        return named(self._tensor(name), name, self.path, self._widen)

    def bits(self, name: str) -> np.ndarray:
        """A bfloat16 tensor as it lies in the file, as uint16.

        Raises
        ------
        ModelFormatError
            If it is of another type.
        """
        code, shape, _ = self._entries[name]
        if code != "BF16":
            raise ModelFormatError(f"{self.path}: tensor {short(name)} must be BF16, is {code}")
        tensor = self._tensor(name)
        storage = Storage(self._source, name, "uint16", tensor.storage.n_bytes, tensor.storage.start)
        return named(Tensor(storage, "uint16", 0, shape, tensor.strides), name, self.path)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self._entries

    def __iter__(self):
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _not_safetensors(source: Source, length: int) -> str:
    kind = kinds.kind_of(source)
    if kind != kinds.UNKNOWN:
        return f"{kind}; expected safetensors"
    if source.size < 8:
        return f"{source.size} bytes are too few for a safetensors file: truncated"
    return (
        f"the header says it has {length} bytes, the file has {source.size - 8} "
        f"(at most {MAX_HEADER} are read): truncated, altered, or not safetensors"
    )


def _are_counts(values) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    bfloat16: Collection[str] = (),
) -> None:
    """Write a safetensors file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Replaced in one step when everything is written; a failure leaves what was there.
    tensors : mapping of str to array
    metadata : mapping of str to str, optional
    bfloat16 : collection of str
        Names of tensors that are given as the bits of bfloat16, in uint16.

    Raises
    ------
    DTypeError
        For an element type the format does not have.
    """
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    arrays = {name: np.asarray(a) for name, a in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise DTypeError(f"tensor {name!r} is {array.dtype}, safetensors holds {', '.join(_NAMES)}")
        if name == "__metadata__":
            raise ModelFormatError("a tensor cannot be named '__metadata__'")
    offset = 0
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": "BF16" if name in bfloat16 else _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ModelFormatError(f"{path}: the header would have {len(text)} bytes, at most {MAX_HEADER} are read")

    def write(file) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            array = arrays[name]
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            file.write(little.reshape(-1).view(np.uint8).data)

    write_atomically(path, write)
