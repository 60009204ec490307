"""Storages and tensors of a checkpoint: where they lie in the file, and their arrays once someone wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.weights import dtypes
from pyclattn.weights.source import Source
from pyclattn.weights.strict_json import short

MAX_RANK = 64  # NumPy's
# A tensor expanded with stride 0 shows more bytes than it has. A copy of one is kept below this and twice the file.
MAX_SHOWN = 64 << 20


class Leaf(Protocol):
    """What becomes an array."""

    def array(self, widen: bool = True) -> np.ndarray:
        """The array, or a ModelFormatError whose text the caller completes with file and name."""


class Storage:
    """A run of elements in the file; tensors are views of it.

    Parameters
    ----------
    source : Source
    key : str
        Its name in the file.
    dtype : str or None
        Element type; None for bytes whose type each tensor says.
    n_bytes : int
    start : int or None
        Where it begins; None until known (in a legacy file the storages follow the objects).
    byteorder : str
        "<" or ">".
    """

    __slots__ = ("_arrays", "byteorder", "dtype", "key", "n_bytes", "source", "start")

    def __init__(self, source: Source, key: str, dtype: str | None, n_bytes: int, start: int | None, byteorder="<"):
        self.source, self.key, self.dtype = source, key, dtype
        self.n_bytes, self.start, self.byteorder = n_bytes, start, byteorder
        self._arrays: dict[tuple[str, bool], np.ndarray] = {}

    def array(self, dtype: str, widen: bool = True) -> np.ndarray:
        """All elements, read-only: a view of the file where it has them aligned and in this machine's order.

        Made once, so tensors that share a storage share memory whatever was done to it.
        """
        known = self._arrays.get((dtype, widen))
        if known is None:
            known = self._arrays[dtype, widen] = self._made(dtype, widen)
        return known

    def _made(self, dtype: str, widen: bool) -> np.ndarray:
        stored = dtypes.STORED[dtype]
        if self.start is None:
            raise ModelFormatError(f"storage {self.key!r}: the file names it but does not hold it")
        # Pairs are swapped number by number.
        unit: np.dtype = np.dtype("uint16") if dtype in dtypes.PAIRS else stored
        array = np.ndarray(
            (self.n_bytes // unit.itemsize,), unit.newbyteorder(self.byteorder), self.source.view, self.start
        )
        if not array.dtype.isnative or not array.flags.aligned:
            array = array.astype(unit)
        if dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
            raise ModelFormatError(f"bool must be bytes 0 and 1, got {int(array.view(np.uint8).max())}")
        if dtype in dtypes.PAIRS:
            array = dtypes.widened(array.view(stored), dtype)
        elif dtype in dtypes.NARROW and widen:
            others = [d for d, is_wide in self._arrays if is_wide and d in dtypes.NARROW]
            if others:  # each would cost up to four times the storage
                raise ModelFormatError(f"storage {self.key!r} is both {others[0]} and {dtype}, one of them is expected")
            array = dtypes.widened(array, dtype)
        array.flags.writeable = False
        return array


class Tensor:
    """A view of a storage, checked against its size; `array` makes it.

    Raises
    ------
    ModelFormatError
        If it reaches beyond its storage, or shows far more than the file holds.
    """

    __slots__ = ("dtype", "is_conjugate", "is_negative", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, dtype: str, offset: int, shape: tuple, strides: tuple):
        self.storage, self.dtype, self.offset = storage, dtype, offset
        self.shape, self.strides = shape, strides
        self.is_conjugate = self.is_negative = False
        self._check()

    def _check(self) -> None:
        where = f"{self.storage.source.name}: tensor in storage {self.storage.key!r}"
        if not (is_count(self.offset) and _are_counts(self.shape) and _are_counts(self.strides)):
            raise ModelFormatError(f"{where}: offset, shape and strides must be whole numbers of at least 0")
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_RANK:
            raise ModelFormatError(
                f"{where}: shape and strides must be of one length of at most {MAX_RANK}, "
                f"got {len(self.shape)} and {len(self.strides)}"
            )
        itemsize = dtypes.ITEMSIZE[self.dtype]
        count = math.prod(self.shape)
        end = self.offset + (1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides)) if count else 0)
        if end * itemsize > self.storage.n_bytes:
            raise ModelFormatError(
                f"{where}: {self.dtype} of shape {_short(self.shape)}, strides {_short(self.strides)} and offset "
                f"{self.offset} ends at element {end}, the storage has {self.storage.n_bytes // itemsize}"
            )
        if count * itemsize > max(self.storage.n_bytes, 2 * self.storage.source.size + MAX_SHOWN):
            raise ModelFormatError(
                f"{where}: shape {_short(self.shape)} shows {count * itemsize} bytes of a storage of "
                f"{self.storage.n_bytes}; at most twice the file and {MAX_SHOWN} are allowed"
            )

    def array(self, widen: bool = True) -> np.ndarray:
        """The array: read-only, and a view of the file where `Storage.array` is."""
        flat = self.storage.array(self.dtype, widen)
        step = flat.itemsize
        if math.prod(self.shape) == 0:
            array = self._empty(flat.dtype)
        else:
            strides = tuple(s * step if n > 1 else step for n, s in zip(self.shape, self.strides))
            array = np.ndarray(self.shape, flat.dtype, flat, self.offset * step, strides)
        if self.dtype in dtypes.NARROW and not widen:
            array = dtypes.kept(array, self.dtype)
        if self.is_conjugate or self.is_negative:  # PyTorch's lazy views: the bits in the file are not the values yet
            array = np.conj(array) if self.is_conjugate else array
            array = np.negative(array) if self.is_negative else array
            array.flags.writeable = False
        return array

    def _empty(self, dtype: np.dtype) -> np.ndarray:
        try:
            array = np.empty(self.shape, dtype)
        except (ValueError, MemoryError) as error:  # lengths beside the zero may still be beyond NumPy's
            raise ModelFormatError(f"shape {_short(self.shape)} is beyond any array") from error
        array.flags.writeable = False
        return array


class Refused:
    """A leaf that no array can stand for: quantised, sparse. It raises when its array is asked for."""

    __slots__ = ("why",)

    def __init__(self, why: str):
        self.why = why

    def array(self, widen: bool = True) -> np.ndarray:
        raise ModelFormatError(self.why)


def named(leaf: Leaf, name: str, where: str, widen: bool = True) -> np.ndarray:
    """The leaf's array; an error names the file and the tensor."""
    try:
        return leaf.array(widen)
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: tensor {short(name)}: {error}") from error


def is_count(value) -> bool:
    """A whole number that fits 64 bits and is not negative."""
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(values: Iterable) -> bool:
    return type(values) is tuple and all(is_count(v) for v in values)


def _short(values: tuple) -> str:
    return str(values) if len(values) <= 8 else f"({', '.join(map(str, values[:8]))}, ...)"
