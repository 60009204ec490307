"""The protocol's names of element types, and numbers in JSON as arrays."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from pyclattn.serving.errors import RequestError

# Triton and KServe have BYTES and BF16 too; no model here takes them.
DATATYPES = {
    "BOOL": "bool",
    **{f"UINT{8 * n}": f"uint{8 * n}" for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": f"int{8 * n}" for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": f"float{8 * n}" for n in (2, 4, 8)},
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
MAX_RANK = 16
LONGEST = (1 << 40) - 1  # of an axis: no memory holds more, and products of a few stay small
# JSON types that each kind of element may have. True is no number, 1.0 no whole one.
_ALLOWED: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


def dtype_of(name: Any, where: str) -> np.dtype:
    """The dtype of a protocol's name."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise RequestError(
            400, f"{where}: datatype {_short(name)} is not supported; supported are {', '.join(DATATYPES)}"
        )
    return np.dtype(DATATYPES[name])


def shape_of(given: Any, where: str) -> tuple[int, ...]:
    """A shape as tuple, each dimension checked."""
    if not isinstance(given, list) or any(type(n) is not int or not 0 <= n <= LONGEST for n in given):
        raise RequestError(
            400, f"{where}: shape must be a list of whole numbers from 0 to {LONGEST:,}, got {_short(given)}"
        )
    if len(given) > MAX_RANK:
        raise RequestError(400, f"{where}: shape has {len(given)} dimensions, at most {MAX_RANK} are allowed")
    return tuple(given)


def from_json(data: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Numbers in a list, flat or nested as the shape says, as an array."""
    flat, nested = _flattened(data, where)
    count = 1
    for n in shape:
        count *= n
    if len(flat) != count or (len(nested) > 1 and nested != shape):
        raise RequestError(400, f"{where}: shape {list(shape)} has {count} elements, data has {list(nested)}")
    found = set(map(type, flat))
    if not found <= _ALLOWED[dtype.kind]:
        wanted = {"b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}[dtype.kind]
        others = ", ".join(sorted(kind.__name__ for kind in found - _ALLOWED[dtype.kind]))
        raise RequestError(400, f"{where}: data of datatype {NAMES[dtype.name]} must be {wanted}, got {others}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype).reshape(shape)
    except OverflowError:
        array = None
    if array is None or (dtype.kind == "f" and not np.isfinite(array).all()):
        raise RequestError(400, f"{where}: data has numbers that {NAMES[dtype.name]} cannot hold")
    return array


def _flattened(data: Any, where: str) -> tuple[list, tuple[int, ...]]:
    """All elements in order, and the lengths of the lists they were in."""
    if not isinstance(data, list):
        raise RequestError(400, f"{where}: data must be a list, got {_short(data)}")
    level, lengths = data, [len(data)]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(sizes := set(map(len, level))) != 1:
            raise RequestError(
                400, f"{where}: data is ragged: lists at depth {len(lengths) + 1} differ in length or kind"
            )
        if len(lengths) == MAX_RANK:
            raise RequestError(400, f"{where}: data is nested deeper than {MAX_RANK}")
        lengths.append(sizes.pop())
        level = list(chain.from_iterable(level))
    return level, tuple(lengths)


def from_bytes(data: memoryview, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Little-endian elements in row-major order as an array: a view, not a copy."""
    count = 1
    for n in shape:
        count *= n
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            400,
            f"{where}: shape {list(shape)} of {NAMES[dtype.name]} has {count * dtype.itemsize} bytes, got {len(data)}",
        )
    if dtype.kind == "b":
        codes = np.frombuffer(data, np.uint8)
        if codes.size and codes.max() > 1:
            raise RequestError(400, f"{where}: a BOOL is a byte of 0 or 1, got {codes.max()}")
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)


def to_bytes(array: np.ndarray) -> bytes:
    """Little-endian elements in row-major order."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
