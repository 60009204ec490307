"""The table: operator kind -> builder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn.errors import DTypeError, UnsupportedOpError
from pyclattn.graph.spec import Kernel, Node

Builder = Callable[[Node], Kernel]
TABLE: dict[str, Builder] = {}

# ONNX's numbers of element types. bfloat16 is widened: NumPy has no such type.
ONNX_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


def op(*kinds: str) -> Callable[[Builder], Builder]:
    """Enter a builder in the table."""

    def enter(builder: Builder) -> Builder:
        for kind in kinds:
            if kind in TABLE:
                raise ValueError(f"{kind} has a builder already")
            TABLE[kind] = builder
        return builder

    return enter


def builder(kind: str) -> Builder:
    """The builder of a kind."""
    try:
        return TABLE[kind]
    except KeyError:
        raise UnsupportedOpError(f"operator {kind} is not supported") from None


def element_type(to: int | str) -> np.dtype:
    """NumPy's dtype of an attribute that names an element type, as ONNX's number or NumPy's name."""
    name = to if isinstance(to, str) else ONNX_TYPES.get(to)
    if name == "bfloat16":
        name = "float32"
    if name not in ONNX_TYPES.values():
        raise DTypeError(f"element type {to!r} is not supported; known are {', '.join(ONNX_TYPES.values())}")
    return np.dtype(name)


def is_bfloat16(to: int | str) -> bool:
    """Whether an attribute names bfloat16."""
    return to in (16, "bfloat16")
