"""Shapes, types and small whole-number values of a program, as far as they are known before a run.

``Shapes(program)`` goes through the operators once. A size is a number or a `Size`; a size that cannot be worked out is
an unknown of its own; an unknown rank makes the whole shape None. The arithmetic that exporters write around Reshape
and Expand is followed too: a ``Shape -> Gather -> Mul -> Concat`` chain has a value, a list of sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyclattn.graph.passes.dims import MOST_VALUES, Size
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.method_shapes import POSITIONS
from pyclattn.graph.passes.shape_rules import RULES
from pyclattn.graph.passes.size_values import VALUES
from pyclattn.graph.program import Op


class Shapes:
    """What is known of every value of a program.

    Parameters
    ----------
    editor : Editor
    outer : Shapes, optional
        Of the program around a body.
    """

    def __init__(self, editor: Editor, outer: Shapes | None = None):
        self.editor = editor
        self.outer = outer
        self.shapes: dict[str, tuple | None] = {}
        self.dtypes: dict[str, str] = {}
        self.values: dict[str, np.ndarray] = {}  # object arrays of int and Size
        for value in editor.program.inputs:
            dims = tuple(Size.named(n) if isinstance(n, str) else n for n in value.shape)
            self.shapes[value.name] = None if value.shape == ("...",) else dims
            self.dtypes[value.name] = value.dtype
        for name, array in editor.program.constants.items():
            self._constant(name, array)
        for op in editor.program.ops:
            self._visit(op)

    def _constant(self, name: str, array: np.ndarray) -> None:
        self.shapes[name] = array.shape
        self.dtypes[name] = array.dtype.name
        if array.dtype.kind in "iub" and array.size <= MOST_VALUES:
            self.values[name] = np.array([int(n) for n in array.reshape(-1)], object).reshape(array.shape)

    def _visit(self, op: Op) -> None:
        rule = RULES.get(op.kind)
        try:
            shapes = rule(self, op) if rule else None
        except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
            shapes = None  # the model does not fit together here: the run will say so, with real numbers
        for i, name in enumerate(op.outputs):
            if name:
                self.shapes[name] = self._named(name, shapes[i] if shapes and i < len(shapes) else None)
                self.dtypes[name] = _dtype(self, op, i)
        follow = VALUES.get(op.kind)
        if follow and op.outputs:
            try:
                value = follow(self, op)
            except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
                value = None
            if value is not None and value.size <= MOST_VALUES:
                self.values[op.outputs[0]] = value
                self.shapes[op.outputs[0]] = value.shape

    def _named(self, name: str, shape: tuple | None) -> tuple | None:
        """The shape with an unknown of its own for every size that is not known."""
        if shape is None:
            return None
        return tuple(Size.named(f"{name}[{i}]") if size is None else size for i, size in enumerate(shape))

    def shape(self, name: str) -> Any:
        """A tuple of int and Size, or None where not even the rank is known."""
        if name in self.shapes:
            return self.shapes[name]
        return self.outer.shape(name) if self.outer else None

    def sure(self, name: str) -> tuple:
        """The shape of a value, or KeyError where it is not known: what a rule of shapes gives up with."""
        shape = self.shape(name)
        if shape is None:
            raise KeyError(name)
        return shape

    def rank(self, name: str) -> Any:
        """How many axes, None where that is not known."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def dtype(self, name: str) -> str:
        if name in self.dtypes:
            return self.dtypes[name]
        return self.outer.dtype(name) if self.outer else ""

    def value(self, name: str) -> np.ndarray | None:
        """The content of a small whole-number value: an object array of int and Size."""
        if name in self.values:
            return self.values[name]
        return self.outer.value(name) if self.outer else None

    def ints(self, name: str) -> list | None:
        value = self.value(name)
        return None if value is None else list(value.reshape(-1))

    def last(self, name: str, axis: int) -> bool:
        """Whether ``axis`` of a value is surely its last."""
        rank = self.rank(name)
        return axis == -1 or (rank is not None and axis == rank - 1)

    def axes(self, op: Op, index: int = 1) -> list[int] | None:
        """Axes given as an operator's input, None where they are left out or unknown."""
        if len(op.inputs) <= index or not op.inputs[index]:
            return None
        axes = self.ints(op.inputs[index])
        return axes if axes is not None and all(isinstance(n, int) for n in axes) else None


# -- types ------------------------------------------------------------------------------------------------------------

BOOLEAN = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"}
INDEX = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin", *(f"pyclattn:{name}" for name in POSITIONS)}


def _dtype(known: Shapes, op: Op, index: int) -> str:
    if op.kind in BOOLEAN:
        return "bool"
    if op.kind in INDEX or (op.kind in ("TopK", "Unique") and index >= 1):
        return "int64"
    if op.kind in ("Cast", "ConstantOfShape"):
        return op.attributes.get("to") or op.attributes.get("dtype", "float32")
    if op.kind == "DynamicQuantizeLinear":
        return ("uint8", "float32", "uint8")[index]
    if op.kind in ("MatMulInteger", "ConvInteger"):
        return "int32"
    if op.kind in ("com.microsoft:MatMulIntegerToFloat", "com.microsoft:DynamicQuantizeMatMul", "pyclattn:Dequantize"):
        return "float32"
    if op.kind in ("Where", "CastLike"):
        return known.dtype(op.inputs[1])
    if op.kind == "DequantizeLinear":
        return known.dtype(op.inputs[1])
    if op.kind == "QuantizeLinear":
        return known.dtype(op.inputs[2]) if len(op.inputs) > 2 else op.attributes.get("output_dtype") or "uint8"
    if op.kind in ("If", "Loop", "Scan", "OneHot") or op.kind.startswith("QLinear"):
        return ""
    return known.dtype(op.inputs[0]) if op.inputs else ""
