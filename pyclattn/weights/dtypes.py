"""Element types of weight files, and those NumPy lacks widened to float32.

An element type has PyTorch's name, which is also ml_dtypes' where NumPy has no such type.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError

# What NumPy has: the name -> the type, the same in the file and in memory.
PLAIN: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip
# What NumPy lacks: the name -> the bits as they lie in the file.
NARROW: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("uint16"),
    "float8_e4m3fn": np.dtype("uint8"),
    "float8_e4m3fnuz": np.dtype("uint8"),
    "float8_e5m2": np.dtype("uint8"),
    "float8_e5m2fnuz": np.dtype("uint8"),
    "float8_e8m0fnu": np.dtype("uint8"),
}
# Pairs of float16: widened to complex64 always, since no package has the type.
PAIRS: dict[str, np.dtype[Any]] = {"complex32": np.dtype("uint32")}
STORED: dict[str, np.dtype[Any]] = {**PLAIN, **NARROW, **PAIRS}
ITEMSIZE = {name: dtype.itemsize for name, dtype in STORED.items()}


def widened(bits: np.ndarray, name: str) -> np.ndarray:
    """Elements of a type NumPy lacks as float32 (complex64 for pairs); every value is kept.

    Examples
    --------
    >>> widened(np.array([0x3FC0, 0xC050], np.uint16), "bfloat16")
    array([ 1.5 , -3.25], dtype=float32)
    >>> widened(np.array([0x38, 0xC4, 0x7F], np.uint8), "float8_e4m3fn")
    array([ 1., -3., nan], dtype=float32)
    """
    if name == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if name == "complex32":
        return np.ascontiguousarray(bits).view(np.float16).astype(np.float32).view(np.complex64)
    return _values(name)[bits]


def kept(bits: np.ndarray, name: str) -> np.ndarray:
    """The same bits under ml_dtypes' type.

    Raises
    ------
    ArgumentError
        If ml_dtypes is not installed or does not have the type.
    """
    try:
        return bits.view(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"widen=False keeps {name} with the package ml_dtypes: {error}") from error


# The NaN of each type as PyTorch widens it, without its sign.
NANS = {
    "float8_e4m3fn": 0x7FF00000,
    "float8_e4m3fnuz": 0x7F800001,
    "float8_e5m2": 0x7FC00000,
    "float8_e5m2fnuz": 0x7F800001,
    "float8_e8m0fnu": 0x7F800001,
}


@functools.cache
def _values(name: str) -> np.ndarray:
    """What each of the 256 bit patterns of an 8-bit float means."""
    code = np.arange(256, dtype=np.uint32)
    n_mantissa, bias = {
        "float8_e4m3fn": (3, 7), "float8_e4m3fnuz": (3, 8), "float8_e5m2": (2, 15), "float8_e5m2fnuz": (2, 16),
        "float8_e8m0fnu": (0, 127),
    }[name]  # fmt: skip
    if n_mantissa == 0:  # a power of two, and nothing else
        values, nan, sign = np.ldexp(1.0, code.astype(int) - bias), code == 255, np.zeros(256, np.uint32)
    else:
        exponent, mantissa = ((code & 0x7F) >> n_mantissa).astype(int), code & ((1 << n_mantissa) - 1)
        fraction = mantissa.astype(np.float32) / (1 << n_mantissa)
        values = np.ldexp(np.where(exponent, 1 + fraction, fraction), np.maximum(exponent, 1) - bias)
        sign = (code >> 7 << 31).astype(np.uint32)
        if name == "float8_e5m2":  # as IEEE 754 has it; the others have no infinity
            values[exponent == 31] = np.inf
            nan = (exponent == 31) & (mantissa > 0)
        else:
            nan = code == 0x80 if name.endswith("uz") else code & 0x7F == 0x7F
            sign[code == 0x80] *= ~nan[0x80]
    values[nan] = 0
    bits = values.astype(np.float32).view(np.uint32) | sign.astype(np.uint32)
    bits[nan] = NANS[name] | sign[nan].astype(np.uint32)
    if name == "float8_e5m2":  # which keeps the payload
        bits[nan] |= (code[nan] & 1) << 21
    return bits.view(np.float32)
