"""Products with constant weights, their scale, bias and activation, as one `pyclattn:Linear`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

ACTIVATIONS = {"Relu": "relu", "Swish": "silu", "Tanh": "tanh", "Sigmoid": "sigmoid"}
GELUS = {"none": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}


def fuse_linear(editor: Editor, known: Shapes) -> None:
    """Fuse ``activation(x @ weight + bias)``; a Gemm's transposed weight is turned once, here."""
    for op in list(editor.program.ops):
        if op.kind == "MatMul":
            _from_matmul(editor, known, op)
        elif op.kind == "Gemm":
            _from_gemm(editor, known, op)


def scale_weights(editor: Editor, known: Shapes) -> None:
    """Multiply a constant scale of each output (a transformer's layer scale) into weight and bias."""
    for op in list(editor.program.ops):
        if op.kind != "MatMul" or editor.producers.get(op.outputs[0]) is not op:
            continue
        weight = editor.constant(op.inputs[1])
        if not _is_weight(weight) or len(editor.users(op.inputs[1])) != 1:
            continue
        add, bias = _bias_of(editor, known, op, weight)
        end = add or op
        user: Any = editor.only_user(end.outputs[0], "Mul")
        scale = _vector(editor, known, user, end, weight.shape[1]) if user else None
        if scale is None or (bias and len(editor.users(bias)) != 1):
            continue
        name = editor.add_constant(weight * scale, f"{op.inputs[1]}_scaled")
        editor.remove(*([op, add, user] if add else [op, user]))
        if add:
            product = editor.emit("MatMul", (op.inputs[0], name), op.outputs, {}, op.name)
            scaled = editor.add_constant(editor.constant(bias).reshape(-1) * scale, f"{bias}_scaled")
            editor.emit("Add", (product, scaled), user.outputs, {}, add.name)
        else:
            editor.emit("MatMul", (op.inputs[0], name), user.outputs, {}, op.name)


def _is_weight(array) -> bool:
    return array is not None and array.ndim == 2 and array.dtype == np.float32 and array.size > 0


def _vector(editor: Editor, known: Shapes, user: Op, end: Op, width: int) -> np.ndarray | None:
    """The other side of ``user``, if it is a constant along the last axis: (1, 1, n) adds as (n,) does."""
    other = user.inputs[1] if user.inputs[0] == end.outputs[0] else user.inputs[0]
    vector = editor.constant(other)
    if vector is None or vector.dtype != np.float32 or vector.shape[-1:] != (width,) or vector.size != width:
        return None
    return vector.reshape(-1) if vector.ndim <= (known.rank(end.outputs[0]) or 0) else None


def _bias_of(editor: Editor, known: Shapes, op: Op, weight: np.ndarray) -> tuple[Any, str]:
    """(the Add of a constant vector behind a product, the vector's name), or (None, "")."""
    user = editor.only_user(op.outputs[0], "Add")
    if user is None or _vector(editor, known, user, op, weight.shape[1]) is None:
        return None, ""
    return user, user.inputs[1] if user.inputs[0] == op.outputs[0] else user.inputs[0]


def _from_matmul(editor: Editor, known: Shapes, op: Op) -> None:
    weight = editor.constant(op.inputs[1])
    if not _is_weight(weight) or (known.rank(op.inputs[0]) or 0) < 2:
        return
    add, bias = _bias_of(editor, known, op, weight)
    if bias and editor.constant(bias).ndim != 1:
        bias = editor.add_constant(editor.constant(bias).reshape(-1), bias)
    _emit(editor, [op, add] if add else [op], op.inputs[0], op.inputs[1], bias)


def _from_gemm(editor: Editor, known: Shapes, op: Op) -> None:
    weight, get = editor.constant(op.inputs[1]), op.attributes.get
    if not _is_weight(weight) or get("transA", 0) or get("alpha", 1.0) != 1.0:
        return
    name, bias = op.inputs[1], op.inputs[2] if len(op.inputs) > 2 else ""
    width = weight.shape[0 if get("transB", 0) else 1]
    if bias:
        vector = editor.constant(bias)
        if vector is None or vector.shape != (width,) or get("beta", 1.0) != 1.0 or vector.dtype != np.float32:
            return
    if get("transB", 0):
        name = _turned(editor, name, weight)
    _emit(editor, [op], op.inputs[0], name, bias)


def _turned(editor: Editor, name: str, weight: np.ndarray) -> str:
    """The transposed weight, made once for all that share it."""
    turned = f"{name}_turned"
    if turned not in editor.program.constants:
        return editor.add_constant(np.ascontiguousarray(weight.T), turned)
    return turned


def _emit(editor: Editor, ops: list[Op], x: str, weight: str, bias: str) -> None:
    activation = ""
    user = editor.only_user(ops[-1].outputs[0], *ACTIVATIONS, "pyclattn:Gelu")
    if user is not None and not (user.kind == "Swish" and user.attributes.get("alpha", 1.0) != 1.0):
        activation = ACTIVATIONS.get(user.kind) or GELUS[user.attributes["approximate"]]
        ops = [*ops, user]
    editor.remove(*ops)
    editor.emit("pyclattn:Linear", (x, weight, bias), ops[-1].outputs, {"activation": activation}, ops[0].name)
