"""The arithmetic of sizes, followed operator by operator: values that are lists of numbers and `Size`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyclattn.graph.passes.dims import MOST_VALUES, larger, product, smaller
from pyclattn.graph.passes.shape_rules import RULES, part, slice_bounds
from pyclattn.graph.program import Op

if TYPE_CHECKING:
    from pyclattn.graph.passes.shapes import Shapes


def _value_of_shape(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    if shape is None:
        return None
    return _object(list(shape[part(op)]))


def _object(items, shape=None) -> np.ndarray:
    result = np.empty(len(items), object)
    result[:] = items
    return result if shape is None else result.reshape(shape)


def _numbers(known: Shapes, op: Op, count: int | None = None):
    values = [known.value(name) for name in op.inputs[:count]]
    return None if any(value is None for value in values) else values


def _through(function) -> Callable[[Shapes, Op], np.ndarray | None]:
    def follow(known: Shapes, op: Op):
        values = _numbers(known, op)
        if values is None or known.dtype(op.inputs[0]) not in ("int64", "int32", "bool", ""):
            return None
        result = np.frompyfunc(function, len(values), 1)(*values)
        result = result if isinstance(result, np.ndarray) else _object([result], ())
        return None if any(item is None for item in result.reshape(-1)) else result

    return follow


def _divided(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if b else None  # ONNX divides whole numbers towards zero
    return a // b


def _equal(a, b):
    difference = a - b
    if isinstance(difference, int):
        return int(difference == 0)
    # Any size is at least 0: a sum of sizes and a number above 0 is not 0.
    return 0 if difference.positive() or (-difference).positive() else None


def _value_gather(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None or op.attributes.get("axis", 0) not in (0, -1) or values[0].ndim != 1:
        return None
    index = values[1].astype(np.int64)
    result = values[0][index]
    return result if isinstance(result, np.ndarray) else _object([result], ())


def _value_concat(known: Shapes, op: Op):
    values = _numbers(known, op)
    return None if values is None or any(value.ndim != 1 for value in values) else np.concatenate(values)


def _value_slice(known: Shapes, op: Op):
    data, bounds = known.value(op.inputs[0]), slice_bounds(known, op)
    if data is None or bounds is None or data.ndim != 1:
        return None
    ((_, *numbers),) = bounds
    return data[slice(*numbers)] if all(isinstance(n, int) for n in numbers) else None


def _value_reshaped(known: Shapes, op: Op):
    data, shapes = known.value(op.inputs[0]), RULES[op.kind](known, op)
    if data is None or not shapes or shapes[0] is None:
        return None
    return data.reshape(tuple(int(n) for n in shapes[0]))


def _value_cast(known: Shapes, op: Op):
    return known.value(op.inputs[0]) if op.attributes.get("to") in ("int64", "int32") else None


def _value_filled(known: Shapes, op: Op):
    sizes = known.ints(op.inputs[0])
    if sizes is None or not all(isinstance(n, int) for n in sizes) or not _whole(op):
        return None
    count = int(np.prod(sizes, dtype=np.int64))
    return _object([int(op.attributes["value"])] * count, tuple(sizes)) if count <= MOST_VALUES else None


def _whole(op: Op) -> bool:
    return op.attributes.get("dtype") in ("int64", "int32", "bool") and "value" in op.attributes


def _value_where(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None:
        return None
    condition = values[0].astype(bool)
    return np.where(condition, values[1], values[2]).astype(object)


def _value_product(known: Shapes, op: Op):
    data = known.value(op.inputs[0])
    if data is None or data.ndim != 1 or (len(op.inputs) > 1 and known.axes(op) not in ([0], [-1])):
        return None
    return _object([product(data)], (1,) if op.attributes.get("keepdims", 1) else ())


def _value_size(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    return None if shape is None or None in shape else _object([product(shape)], ())


def _value_range(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None or not all(isinstance(v.reshape(-1)[0], int) for v in values):
        return None
    numbers = range(*(v.reshape(-1)[0] for v in values))
    return _object(list(numbers)) if len(numbers) <= MOST_VALUES else None


VALUES: dict[str, Callable[[Shapes, Op], np.ndarray | None]] = {
    "Shape": _value_of_shape,
    "Size": _value_size,
    "Gather": _value_gather,
    "Concat": _value_concat,
    "Slice": _value_slice,
    "Cast": _value_cast,
    "ConstantOfShape": _value_filled,
    "Where": _value_where,
    "ReduceProd": _value_product,
    "Range": _value_range,
    "Identity": lambda known, op: known.value(op.inputs[0]),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Reshape"), _value_reshaped),
    "Add": _through(lambda a, b: a + b),
    "Sub": _through(lambda a, b: a - b),
    "Mul": _through(lambda a, b: a * b),
    "Div": _through(_divided),
    "Mod": _through(lambda a, b: a % b),
    "Neg": _through(lambda a: -a),
    "Equal": _through(_equal),
    "Max": _through(lambda *sizes: larger(*sizes)),
    "Min": _through(lambda *sizes: smaller(*sizes)),
    "Not": _through(lambda a: int(not a)),
}
