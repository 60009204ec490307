"""At the door of a layer: weights and inputs as float32 arrays of the right shape, or an error that names them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyclattn.arrays import Float32, Given
from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.functional._check import array_of

# Names of axes as errors show them.
Axes = tuple[str, ...]


def floats(name: str, given: Given) -> Float32:
    """``given`` as a float32 array; copied only where its type needs it."""
    array = array_of(name, given)
    if array.dtype == np.float32:
        return array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{name} must be float32 (float16 and float64 are converted), got {array.dtype}")
    return array.astype(np.float32)


def set_weight(layer: Any, name: str, axes: Axes, optional: bool = False) -> None:
    """Check a field of a frozen layer and put it back as float32."""
    given = getattr(layer, name)
    if given is None and optional:
        return
    kind = type(layer).__name__
    if given is None:
        raise ArgumentError(f"{kind} needs {name} ({', '.join(axes)}), got None")
    array = floats(f"{name} of {kind}", given)
    if array.ndim != len(axes) or not array.size:
        raise ShapeError(f"{name} of {kind} must be ({', '.join(axes)}), got shape {array.shape}")
    object.__setattr__(layer, name, array)


def features(kind: str, given: Given, width: int, name: str = "x") -> Float32:
    """An input of a layer: (..., width)."""
    x = floats(f"{name} of {kind}", given)
    if x.ndim < 1 or x.shape[-1] != width:
        raise ShapeError(f"{name} of {kind} must have shape (..., {width}), got {x.shape}")
    return x


def tokens(kind: str, given: Given, width: int, is_packed: bool, name: str = "x") -> Float32:
    """An input of attention: (batch, length, width), or (tokens, width) where offsets are given."""
    x = features(kind, given, width, name)
    wanted = f"(tokens, {width}), as offsets are given" if is_packed else f"(batch, length, {width})"
    if x.ndim != (2 if is_packed else 3):
        raise ShapeError(f"{name} of {kind} must have shape {wanted}, got {x.shape}")
    return x


def residual(kind: str, given: Given, shape: tuple[int, ...]) -> Float32 | None:
    """What is added to a result of this shape, or None."""
    if given is None:
        return None
    array = floats(f"add of {kind}", given)
    if array.shape != shape:
        raise ShapeError(f"add of {kind} must have shape {shape}, got {array.shape}")
    return array


def positive(kind: str, name: str, given: Given) -> float:
    """A number of at least 0."""
    if isinstance(given, (bool, str)) or not isinstance(given, (int, float, np.number)):
        raise DTypeError(f"{name} of {kind} must be a number, got {given!r}")
    if not given >= 0 or given == float("inf"):
        raise ArgumentError(f"{name} of {kind} must be at least 0 and finite, got {given}")
    return float(given)
