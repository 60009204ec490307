"""The safetensors format: 8 bytes of header length, a JSON header, tensors in one block without gaps.

Reading maps the file into memory, so tensors cost nothing until they are used and processes on a host share them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyclattn.errors import DTypeError, ModelFormatError

# The format's own limit; also far above what a large model needs (about 150 bytes a tensor).
MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_RANK = 64  # NumPy's
# header -> entry -> shape: deeper nesting is not safetensors
MAX_DEPTH = 3
# Data begin at a multiple of a cache line, and tensors are sorted by the size of their elements.
ALIGNMENT = 64

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
_NAMES = {numpy: name for name, numpy in DTYPES.items()}
_SIZES = {**{name: np.dtype(numpy).itemsize for name, numpy in DTYPES.items()}, "BF16": 2}


class SafeTensors(Mapping[str, np.ndarray]):
    """A safetensors file, memory-mapped: a mapping of names to read-only arrays.

    bfloat16 is widened to float32, which copies.

    Parameters
    ----------
    path : path-like

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

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            if not self.path.is_file():
                raise ModelFormatError(f"{path}: not a file")
            with self.path.open("rb") as file:
                start = file.read(8)
                if len(start) < 8:
                    raise ModelFormatError(f"{path}: {size} bytes are too few for a safetensors file: truncated")
                length = int.from_bytes(start, "little")
                if length > min(MAX_HEADER, size - 8):
                    raise ModelFormatError(
                        f"{path}: the header says it has {length} bytes, the file has {size - 8} "
                        f"(at most {MAX_HEADER} are read): truncated, altered, or not safetensors"
                    )
                text = file.read(length)
        except OSError as error:
            raise ModelFormatError(f"{path}: cannot be read ({error.strerror})") from error
        header = self._parse(text)
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        room = size - 8 - length
        self._entries = self._checked(header, room)
        self._data = np.memmap(self.path, np.uint8, "r", 8 + length, (room,)) if room else np.empty(0, np.uint8)

    def _parse(self, text: bytes) -> dict:
        # the nesting outside strings, before a parser recurses into it
        depth = deepest = 0
        quoted = False
        for byte in _brackets(text):
            if byte == 0x22:
                quoted = not quoted
            elif not quoted:
                depth += 1 if byte in b"[{" else -1
                deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            raise ModelFormatError(f"{self.path}: the header is nested {deepest} deep, at most {MAX_DEPTH} is expected")
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=self._unique, parse_constant=self._refuse)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ModelFormatError):
                raise
            raise ModelFormatError(f"{self.path}: the header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise ModelFormatError(f"{self.path}: the header must be a JSON object, got {type(header).__name__}")
        return header

    def _unique(self, pairs: list) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise ModelFormatError(f"{self.path}: tensor {twice!r}: named twice in the header")
        return result

    def _refuse(self, text: str):
        raise ModelFormatError(f"{self.path}: the header holds {text}, which is not JSON")

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
            where = f"{self.path}: tensor {name!r}"
            if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise ModelFormatError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(dtype, str) or dtype not in _SIZES:
                raise ModelFormatError(f"{where}: dtype {dtype!r} is not supported; known are {', '.join(_SIZES)}")
            if not _are_counts(shape) or len(shape) > MAX_RANK:
                raise ModelFormatError(f"{where}: shape must be at most {MAX_RANK} whole numbers of at least 0")
            if not _are_counts(offsets) or len(offsets) != 2:
                raise ModelFormatError(f"{where}: data_offsets must be two whole numbers, got {offsets!r}")
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
                raise ModelFormatError(f"{self.path}: tensor {name!r}: {what} (starts at {start}, expected {end})")
            end = stop
        if end != room:
            raise ModelFormatError(f"{self.path}: {room} bytes of data, the header describes {end}: altered")
        return entries

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start = self._entries[name]
        count = math.prod(shape)
        raw = self._data[start : start + count * _SIZES[dtype]]
        if dtype == "BF16":
            wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
        if dtype == "BOOL" and count and int(raw.max()) > 1:
            raise ModelFormatError(f"{self.path}: tensor {name!r}: BOOL must be bytes 0 and 1, got {int(raw.max())}")
        array = np.frombuffer(raw, np.dtype(DTYPES[dtype]).newbyteorder("<")).reshape(shape)
        if sys.byteorder == "big" or not array.flags.aligned:
            array = array.astype(DTYPES[dtype])
        return array

    def __iter__(self):
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _brackets(text: bytes) -> bytes:
    """Only the brackets and the quotes that open or close a string."""
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.translate(None, bytes(b for b in range(256) if b not in b'[]{}"'))


def _are_counts(values) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Replaced in one step when everything is written; a failure leaves what was there.
    tensors : mapping of str to array
    metadata : mapping of str to str, optional

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
            "dtype": _NAMES[array.dtype.name],
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


def write_atomically(path: str | os.PathLike, write) -> None:
    """Call ``write(file)`` on a new file beside ``path`` and move it there when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
