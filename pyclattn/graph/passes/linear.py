"""Products with constant weights, their bias and activation, as one `pyclattn:Linear`."""

from __future__ import annotations

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


def _is_weight(array: np.ndarray | None) -> bool:
    return array is not None and array.ndim == 2 and array.dtype == np.float32 and array.size > 0


def _from_matmul(editor: Editor, known: Shapes, op: Op) -> None:
    weight = editor.constant(op.inputs[1])
    if not _is_weight(weight) or (known.rank(op.inputs[0]) or 0) < 2:
        return
    end, bias = op, ""
    user = editor.only_user(op.outputs[0], "Add")
    if user is not None:
        other = user.inputs[1] if user.inputs[0] == op.outputs[0] else user.inputs[0]
        vector = editor.constant(other)
        # (1, 1, n) adds as (n,) does, as long as it brings no axes of its own.
        rank = known.rank(op.outputs[0]) or 0
        if vector is not None and vector.shape[-1:] == (weight.shape[1],) and vector.size == weight.shape[1]:
            if vector.ndim <= rank and vector.dtype == np.float32:
                end, bias = user, other if vector.ndim == 1 else editor.add_constant(vector.reshape(-1), other)
    _emit(editor, op, end, op.inputs[0], op.inputs[1], bias)


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
    _emit(editor, op, op, op.inputs[0], name, bias)


def _turned(editor: Editor, name: str, weight: np.ndarray) -> str:
    """The transposed weight, made once for all that share it."""
    turned = f"{name}_turned"
    if turned not in editor.program.constants:
        return editor.add_constant(np.ascontiguousarray(weight.T), turned)
    return turned


def _emit(editor: Editor, op: Op, end: Op, x: str, weight: str, bias: str) -> None:
    activation = ""
    user = editor.only_user(end.outputs[0], *ACTIVATIONS, "pyclattn:Gelu")
    if user is not None and not (user.kind == "Swish" and user.attributes.get("alpha", 1.0) != 1.0):
        activation = ACTIVATIONS.get(user.kind) or GELUS[user.attributes["approximate"]]
        editor.remove(op, end, user) if end is not op else editor.remove(op, user)
        end = user
    else:
        editor.remove(op, end) if end is not op else editor.remove(op)
    editor.emit("pyclattn:Linear", (x, weight, bias), end.outputs, {"activation": activation}, op.name)
