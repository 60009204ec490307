"""A converted model as data: operators, the values between them, and constants.

The operators are ONNX's, in the meaning of one canonical opset (importers translate older ones), plus the fused kinds
that `pyclattn.graph.passes` makes. A Program knows nothing of files, threads or memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Value:
    """A named input or output. A dimension is a number, or a name where it is known only at run time."""

    name: str
    dtype: str  # NumPy's name: "float32", "int64", "bool"
    shape: tuple[int | str, ...]


@dataclass
class Op:
    """One operator. An input that is left out is the empty name, as in ONNX."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict = field(default_factory=dict)
    name: str = ""  # the source's node name, for messages


@dataclass
class Program:
    """Operators in an order in which they can run."""

    inputs: list[Value]
    outputs: list[Value]
    ops: list[Op]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
