"""Storages and tensors of a checkpoint: where they lie in the file, and their arrays once someone wants them."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.weights import dtypes
from pyclattn.weights.source import Source
from pyclattn.weights.strict_json import short

MAX_RANK = 64  # NumPy's
# A tensor expanded with stride 0 shows more bytes than it has. A copy of one is kept below this and twice the file.
MAX_SHOWN = 64 << 20
# Of one storage, in its sizes: 8 bits widened are four, of a file in the other byte order five.
MAX_COPIES = 5


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
    root : Storage, optional
        The storage it is a part of; ``start`` is then a place in that.
    """

    __slots__ = ("_arrays", "_copied", "byteorder", "dtype", "key", "n_bytes", "root", "source", "start")

    def __init__(
        self, source: Source, key: str, dtype: str | None, n_bytes: int, start: int | None, byteorder: str = "<",
        root: Storage | None = None,
    ):  # fmt: skip
        self.source, self.key, self.dtype = source, key, dtype
        self.n_bytes, self.start, self.byteorder, self.root = n_bytes, start, byteorder, root
        self._arrays: dict[tuple, np.ndarray] = {}
        self._copied = 0

    def array(self, dtype: str, widen: bool = True, conjugate: bool = False, negative: bool = False) -> np.ndarray:
        """All elements, read-only: a view of the file where it has them aligned and in this machine's order.

        Made once, so tensors that share a storage share memory whatever was done to it, and copies are few.
        """
        how = dtype, widen, conjugate, negative
        if how not in self._arrays:
            array = self._part(*how) if self.root else self._made(*how)
            array.flags.writeable = False
            self._arrays[how] = array
        return self._arrays[how]

    def _part(self, dtype: str, widen: bool, conjugate: bool, negative: bool) -> np.ndarray:
        first, rest = divmod(self.start or 0, dtypes.ITEMSIZE[dtype])
        if rest or self.root is None:
            raise ModelFormatError(f"storage {short(self.key)}: begins in the middle of an element of its root")
        whole = self.root.array(dtype, widen, conjugate, negative)
        return whole[first : first + self.n_bytes // dtypes.ITEMSIZE[dtype]]

    def _made(self, dtype: str, widen: bool, conjugate: bool, negative: bool) -> np.ndarray:
        if conjugate or negative:  # PyTorch's lazy views: the bits in the file are not the values yet
            return self._changed(self.array(dtype, widen), conjugate, negative)
        if self.start is None:
            raise ModelFormatError(f"storage {short(self.key)}: the file names it but does not hold it")
        stored = dtypes.STORED[dtype]
        # Pairs are swapped number by number.
        unit: np.dtype = np.dtype("uint16") if dtype in dtypes.PAIRS else stored
        count = self.n_bytes // unit.itemsize
        array = np.ndarray((count,), unit.newbyteorder(self.byteorder), self.source.view, self.start)  # type: ignore[arg-type]
        if not array.dtype.isnative or not array.flags.aligned:
            self._spend(array.nbytes)
            array = array.astype(unit)
        if dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
            raise ModelFormatError(f"bool must be bytes 0 and 1, got {int(array.view(np.uint8).max())}")
        if dtype in dtypes.PAIRS:
            self._spend(4 * count)
            array = dtypes.widened(array[: count // 2 * 2].view(stored), dtype)
        elif dtype in dtypes.NARROW and widen:
            self._spend(4 * count)
            array = dtypes.widened(array, dtype)
        return array

    def _changed(self, array: np.ndarray, conjugate: bool, negative: bool) -> np.ndarray:
        self._spend(array.nbytes)
        if negative and array.dtype.kind not in "iufc":
            raise ModelFormatError(f"{array.dtype} has no negative")
        array = np.conj(array) if conjugate else array
        return np.negative(array) if negative else array.copy()

    def _spend(self, n_bytes: int) -> None:
        """Account for a copy: a storage of bytes could be named with each type there is."""
        self._copied += n_bytes
        if self._copied > MAX_COPIES * max(self.n_bytes, 64):
            raise ModelFormatError(
                f"storage {short(self.key)} is needed in more types than {MAX_COPIES} copies of it hold"
            )


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
        if not (is_count(self.offset) and are_counts(self.shape) and are_counts(self.strides)):
            raise ModelFormatError(
                f"{where}: offset, shape and strides must be whole numbers of at least 0, at most {MAX_RANK} of them"
            )
        if len(self.shape) != len(self.strides):
            raise ModelFormatError(
                f"{where}: shape and strides must be of one length, got {len(self.shape)} and {len(self.strides)}"
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
        flat = self.storage.array(self.dtype, widen, self.is_conjugate, self.is_negative)
        step = flat.itemsize
        if math.prod(self.shape) == 0:
            array = self._empty(flat.dtype)
        else:
            strides = tuple(s * step if n > 1 else step for n, s in zip(self.shape, self.strides))
            array = np.ndarray(self.shape, flat.dtype, flat, self.offset * step, strides)
        if self.dtype in dtypes.NARROW and not widen:
            array = dtypes.kept(array, self.dtype)
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


def are_counts(values: object) -> bool:
    """A tuple of at most MAX_RANK whole numbers."""
    return type(values) is tuple and len(values) <= MAX_RANK and all(is_count(v) for v in values)


def _short(values: tuple) -> str:
    return str(values) if len(values) <= 8 else f"({', '.join(map(str, values[:8]))}, ...)"
