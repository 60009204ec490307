"""Operators of opset 11 to 24 in the one meaning of opset 24, so that nothing below has to know opset numbers.

Each translator gets a node whose meaning has changed since opset 11 and emits operators of today's meaning. Axes and
sizes that were attributes become constant inputs, as they are today.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyclattn.errors import ModelFormatError, UnsupportedOpError

if TYPE_CHECKING:
    from pyclattn_export.from_onnx import Mapper, Node

OLDEST, NEWEST = 11, 24


def _int64(mapper: Mapper, values, like: str) -> str:
    return mapper.constant(np.asarray(values, np.int64), like)


def axes_to_input(mapper: Mapper, node: Node) -> None:
    """Squeeze, Unsqueeze and the reductions: ``axes`` moves from the attributes to the second input."""
    axes = node.attributes.pop("axes", None)
    if axes is not None:
        node.inputs = (node.inputs[0], _int64(mapper, axes, f"{node.outputs[0]}_axes"))
    mapper.emit(node.kind, node.inputs, node.outputs, node.attributes, node.name)


def split(mapper: Mapper, node: Node) -> None:
    sizes = node.attributes.pop("split", None)
    if sizes is not None:
        node.inputs = (node.inputs[0], _int64(mapper, sizes, f"{node.outputs[0]}_split"))
    elif len(node.inputs) == 1 and "num_outputs" not in node.attributes:
        node.attributes["num_outputs"] = len(node.outputs)
    mapper.emit("Split", node.inputs, node.outputs, node.attributes, node.name)


def flattened_softmax(mapper: Mapper, node: Node) -> None:
    """Before opset 13 Softmax ran over all axes from ``axis`` on; on the last axis the two meanings agree."""
    axis = node.attributes.get("axis", 1)
    if axis == -1:
        mapper.emit(node.kind, node.inputs, node.outputs, {"axis": -1}, node.name)
        return
    (x,), (y,) = node.inputs, node.outputs
    shape = mapper.emit("Shape", (x,), (mapper.fresh(f"{y}_shape"),), {}, node.name)
    flat = mapper.emit("Flatten", (x,), (mapper.fresh(f"{y}_flat"),), {"axis": axis}, node.name)
    soft = mapper.emit(node.kind, (flat,), (mapper.fresh(f"{y}_soft"),), {"axis": -1}, node.name)
    mapper.emit("Reshape", (soft, shape), (y,), {"allowzero": 1}, node.name)


def dropout(mapper: Mapper, node: Node) -> None:
    """Inference: the data pass through, the mask keeps everything."""
    if len(node.inputs) > 2 and node.inputs[2]:
        training = mapper.known(node.inputs[2])
        if training is None or bool(training):
            raise UnsupportedOpError(f"{mapper.where}: node {node.name!r}: Dropout in training mode is not run")
    mapper.emit("Identity", node.inputs[:1], node.outputs[:1], {}, node.name)
    if len(node.outputs) > 1 and node.outputs[1]:
        shape = mapper.emit("Shape", node.inputs[:1], (mapper.fresh(f"{node.outputs[1]}_shape"),), {}, node.name)
        mapper.emit("ConstantOfShape", (shape,), node.outputs[1:2], {"value": True, "dtype": "bool"}, node.name)


def batch_norm(mapper: Mapper, node: Node) -> None:
    if node.attributes.pop("training_mode", 0):
        raise UnsupportedOpError(f"{mapper.where}: node {node.name!r}: BatchNormalization in training mode is not run")
    node.attributes.pop("spatial", None)
    node.attributes.pop("momentum", None)
    mapper.emit("BatchNormalization", node.inputs, node.outputs[:1], node.attributes, node.name)


def group_norm(mapper: Mapper, node: Node) -> None:
    """Opset 18 gave one scale and bias to each group, opset 21 to each channel."""
    x, groups = node.inputs[0], node.attributes["num_groups"]
    y = node.outputs[0]
    channels = mapper.emit("Shape", (x,), (mapper.fresh(f"{y}_channels"),), {"start": 1, "end": 2}, node.name)
    count = _int64(mapper, [groups], f"{y}_groups")
    each = mapper.emit("Div", (channels, count), (mapper.fresh(f"{y}_each"),), {}, node.name)
    shape = mapper.emit("Concat", (count, each), (mapper.fresh(f"{y}_shape"),), {"axis": 0}, node.name)
    inputs = [x]
    for source in node.inputs[1:]:
        column = mapper.emit(
            "Unsqueeze", (source, _int64(mapper, [1], f"{y}_one")), (mapper.fresh(f"{y}_column"),), {}, node.name
        )
        spread = mapper.emit("Expand", (column, shape), (mapper.fresh(f"{y}_spread"),), {}, node.name)
        flat = _int64(mapper, [-1], f"{y}_flat")
        inputs.append(mapper.emit("Reshape", (spread, flat), (mapper.fresh(f"{y}_affine"),), {}, node.name))
    mapper.emit("GroupNormalization", tuple(inputs), node.outputs, node.attributes, node.name)


def grid_sample(mapper: Mapper, node: Node) -> None:
    mode = node.attributes.get("mode", "bilinear")
    node.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    mapper.emit("GridSample", node.inputs, node.outputs, node.attributes, node.name)


def resize(mapper: Mapper, node: Node) -> None:
    """Exporters write an empty tensor where a later opset leaves roi or scales out."""
    inputs = list(node.inputs)
    for index in (1, 2):
        if index < len(inputs) and inputs[index]:
            array = mapper.known(inputs[index])
            if array is not None and array.size == 0:
                inputs[index] = ""
    mapper.emit("Resize", tuple(inputs), node.outputs, node.attributes, node.name)


def dft(mapper: Mapper, node: Node) -> None:
    axis = node.attributes.pop("axis", 1)
    length = node.inputs[1] if len(node.inputs) > 1 else ""
    inputs = (node.inputs[0], length, mapper.constant(np.asarray(axis, np.int64), f"{node.outputs[0]}_axis"))
    mapper.emit("DFT", inputs, node.outputs, node.attributes, node.name)


def constant(mapper: Mapper, node: Node) -> None:
    if len(node.attributes) != 1:
        raise ModelFormatError(f"{mapper.where}: node {node.name!r}: Constant must have one value")
    ((form, value),) = node.attributes.items()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if form == "value":
        array = value
    elif form in kinds:
        array = np.asarray(value, kinds[form])
    elif form in ("value_string", "value_strings"):
        array = np.asarray(value, object)
    else:
        raise UnsupportedOpError(f"{mapper.where}: node {node.name!r}: Constant given as {form} is not run")
    mapper.define(node.outputs[0], array)


def constant_of_shape(mapper: Mapper, node: Node) -> None:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise ModelFormatError(f"{mapper.where}: node {node.name!r}: ConstantOfShape needs one value, got {value.size}")
    attributes = {"value": value.reshape(()).item(), "dtype": str(value.dtype)}
    mapper.emit("ConstantOfShape", node.inputs, node.outputs, attributes, node.name)


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# kind -> (first opset with today's meaning, translator for the older ones)
CHANGED: dict[str, tuple[int, Callable[[Mapper, Node], None]]] = {
    "Squeeze": (13, axes_to_input),
    "Unsqueeze": (13, axes_to_input),
    "ReduceSum": (13, axes_to_input),
    **{f"Reduce{name}": (18, axes_to_input) for name in REDUCTIONS},
    "Split": (18, split),
    "Softmax": (13, flattened_softmax),
    "LogSoftmax": (13, flattened_softmax),
    "Hardmax": (13, flattened_softmax),
    "GroupNormalization": (21, group_norm),
    "GridSample": (20, grid_sample),
    "DFT": (20, dft),
    # The same in every opset: written in a plainer form.
    "Dropout": (NEWEST + 1, dropout),
    "BatchNormalization": (NEWEST + 1, batch_norm),
    "Resize": (NEWEST + 1, resize),
    "Constant": (NEWEST + 1, constant),
    "ConstantOfShape": (NEWEST + 1, constant_of_shape),
}


def translate(mapper: Mapper, node: Node, version: int) -> None:
    """Emit a node of the default domain in today's meaning."""
    first, translator = CHANGED.get(node.kind, (0, None))
    if translator is None or version >= first:
        mapper.emit(node.kind, node.inputs, node.outputs, node.attributes, node.name)
    else:
        translator(mapper, node)
