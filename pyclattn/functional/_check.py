"""At the door: arrays become float32 rows the kernels can read; what does not fit is refused with both numbers."""

from __future__ import annotations

import math
import operator

import numpy as np

from pyclattn.arrays import Float32, Given, Int64
from pyclattn.errors import ArgumentError, DTypeError, ShapeError

# Steps of the search for an element that two arrays share; ordinary strides take none.
SEARCH = 10_000


def rows(name: str, given: Given, rank: int = 4) -> Float32:
    """``given`` as float32 of this rank with a contiguous last axis; copied only where its type or strides need it."""
    array = floats(name, given, rank)
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def floats(name: str, given: Given, rank: int) -> Float32:
    """``given`` as float32 of this rank, in any strides; copied only where its type or an odd address needs it."""
    array = array_of(f"{name} of rank {rank}", given)
    if array.dtype != np.float32:
        if not is_float(array):
            raise DTypeError(f"{name} must be float32 (float16 and float64 are converted), got {array.dtype}")
        array = array.astype(np.float32)
    if array.ndim != rank:
        raise ShapeError(f"{name} must have rank {rank}, got shape {array.shape}")
    return array if is_readable(array) else np.ascontiguousarray(array)


def is_float(array: np.ndarray) -> bool:
    """Whether it holds floats, of whatever width."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def logits(array: np.ndarray) -> Float32:
    """Floats that are added to logits, as float32: only -inf is -inf, not the lowest number of float64."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    np.copyto(found, np.finfo(np.float32).min, where=np.isneginf(found) & np.isfinite(array))
    return found


def is_readable(array: np.ndarray) -> bool:
    """Whether every element is a whole number of elements away from the first (a field of records is not)."""
    return array.flags.aligned and all(step % array.itemsize == 0 for step in array.strides)


def array_of(name: str, given: Given) -> np.ndarray:
    """``given`` as an array of this machine's byte order, if it is one."""
    if given is None:
        raise DTypeError(f"{name} must be an array, got None")
    if type(given) is not np.ndarray and np.ma.is_masked(given):
        raise ArgumentError(f"{name} must be an array of numbers, got a masked array: masks are arguments of their own")
    try:
        array = np.asarray(given)
    except ValueError as error:  # lists of unequal lengths
        raise ShapeError(f"{name} must be an array: {error}") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def attention_inputs(query: Given, key: Given, value: Given, is_packed: bool) -> tuple[Float32, Float32, Float32]:
    """Query, key and value as rank 4 (a packed batch gets a batch axis of 1) that fit each other."""
    rank = 3 if is_packed else 4
    q, k, v = rows("query", query, rank), rows("key", key, rank), rows("value", value, rank)
    shapes = f"query {q.shape}, key {k.shape}, value {v.shape}"
    if is_packed:
        q, k, v = q[None], k[None], v[None]
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ShapeError(f"query, key and value must have the same batch size, got {shapes}")
    if k.shape[2] != v.shape[2]:
        raise ShapeError(f"key and value must have the same length, got {shapes}")
    if k.shape[1] != v.shape[1]:
        raise ShapeError(f"key and value must have the same number of heads, got {shapes}")
    if q.shape[3] != k.shape[3]:
        raise ShapeError(f"query and key must have the same head_dim, got {shapes}")
    if q.shape[3] == 0:
        raise ShapeError(f"query and key must have a head_dim of at least 1, got {shapes}")
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    if n_heads != n_kv_heads and (n_kv_heads == 0 or n_heads % n_kv_heads):
        raise ShapeError(f"the heads of query must be a multiple of the heads of key and value, got {shapes}")
    return q, k, v


def writable(name: str, given: Given, shape: tuple[int, ...]) -> Float32:
    """An array of the caller's to write a result into: float32, this shape, contiguous rows."""
    if not isinstance(given, np.ndarray) or given.dtype != np.float32:
        raise DTypeError(f"{name} must be a float32 array, got {getattr(given, 'dtype', type(given).__name__)}")
    if given.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {given.shape}")
    if not given.flags.writeable:
        raise ArgumentError(f"{name} must be writable, got a read-only array")
    has_rows = is_readable(given) and (shape[-1] == 1 or given.strides[-1] == given.itemsize)
    if given.size and not has_rows:
        raise ArgumentError(f"{name} must have contiguous rows, got strides {given.strides}")
    if given.size and any(n > 1 and step == 0 for n, step in zip(shape, given.strides)):
        raise ArgumentError(f"{name} must have a place for each row, got shape {shape} with strides {given.strides}")
    return given


def apart(name: str, out: Float32, **inputs: Float32) -> None:
    """Raise if a result would be written over what is still read."""
    for other, array in inputs.items():
        try:
            is_shared = np.shares_memory(out, array, max_work=SEARCH)  # type: ignore[arg-type]  # any number will do
        except RuntimeError:  # strides for which that is hard to tell
            continue
        if is_shared:
            raise ArgumentError(f"{name} must not overlap {other}, got arrays that share memory")


def whole(name: str, given: Given, least: int, most: int | None = None) -> int:
    """``given`` as an int within [least, most]."""
    try:
        if isinstance(given, (bool, np.bool_)):
            raise TypeError
        number = operator.index(given)
    except TypeError:
        raise DTypeError(f"{name} must be a whole number, got {given!r}") from None
    if number < least or (most is not None and number > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"{name} must be {allowed}, got {number}")
    return number


def n_centroids(given: Given, n_inputs: int) -> int:
    """``given`` as a number of centroids, at most one for each input."""
    n = whole("n_centroids", given, 1)
    if n > n_inputs:
        raise ArgumentError(f"n_centroids must be at most the number of inputs, got {n} of {n_inputs}")
    return n


def flag(name: str, given: Given) -> bool:
    """``given`` as a bool."""
    if not isinstance(given, (bool, np.bool_)):
        raise DTypeError(f"{name} must be True or False, got {given!r}")
    return bool(given)


def one_of(name: str, given: Given, choices: tuple[str, ...]) -> str:
    """``given`` as one of the choices."""
    if not isinstance(given, str) or given not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {given!r}")
    return given


def real(name: str, given: Given) -> float:
    """``given`` as a float; infinite where that is too small for it."""
    try:
        if isinstance(given, (str, bytes, bool, np.bool_)):
            raise TypeError
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf
    except (TypeError, ValueError):
        raise DTypeError(f"{name} must be a number, got {given!r}") from None


def factor(scale: Given, head_dim: int) -> float:
    """The logits' factor: ``scale``, by default 1/sqrt(head_dim)."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    number = real("scale", scale)
    if not abs(number) <= 2.3e38:  # so too for NaN; times log2(e) it is still a float32
        raise ArgumentError(f"scale must be a number from -2.3e38 to 2.3e38, got {number}")
    return number


def bool_mask(name: str, given: Given, shape: tuple[int, ...]) -> np.ndarray:
    """A boolean mask of exactly this shape."""
    mask = array_of(name, given)
    if mask.dtype != np.bool_:
        raise DTypeError(f"{name} must be bool, got {mask.dtype}")
    if mask.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def integers(name: str, given: Given) -> Int64:
    """A vector of whole numbers."""
    array = array_of(name, given)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} must be whole numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ShapeError(f"{name} must have rank 1, got shape {array.shape}")
    return array.astype(np.int64)


def packed_offsets(name: str, given: Given, n_tokens: int) -> Int64:
    """Offsets of a packed batch: from 0 to its number of tokens, never falling."""
    offsets = integers(name, given)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n_tokens or (np.diff(offsets) < 0).any():
        raise ArgumentError(
            f"{name} must rise from 0 to the number of packed tokens, {n_tokens}; "
            f"got {np.array2string(offsets, threshold=8)}"
        )
    return offsets
