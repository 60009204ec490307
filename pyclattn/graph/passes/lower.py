"""What joins dense layers to their neighbours, done when a program is made ready to run, whoever wrote it.

A sum behind a dense layer is added as the product is written, and heads are dealt out there; ReLU behind a convolution
is applied as its sums are written. A program on file keeps
the plain operators, which other settings (a memory limit, another room) run as they are.
"""

from __future__ import annotations

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op, Program

LINEAR = "pyclattn:Linear"


def lower(program: Program) -> Program:
    """The program with residuals and head splits folded into its dense layers, and ReLU into its convolutions.

    Its own bodies stay as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.graph.program import Value
    >>> x, y = Value("x", "float32", ("n", 4)), Value("y", "float32", ("n", 4))
    >>> ops = [Op("pyclattn:Linear", ("x", "w"), ("p",)), Op("Add", ("x", "p"), ("y",))]
    >>> [op.inputs for op in lower(Program([x], [y], ops, {"w": np.eye(4, dtype=np.float32)})).ops]
    [('x', 'w', '', 'x')]
    """
    result = Program(program.inputs, program.outputs, list(program.ops), dict(program.constants), program.metadata)
    editor = Editor(result)
    for op in list(result.ops):
        if op.kind == "Relu":
            _fold_relu(editor, op)
    if not any(op.kind == LINEAR for op in result.ops):
        if editor.changed:
            editor.finish()
        return result
    known = Shapes(editor)
    for op in list(result.ops):
        if op.kind == "Add" and editor.producers.get(op.outputs[0]) is op:
            _fold_residual(editor, known, op)
    for op in list(result.ops):
        if op.kind == "pyclattn:Attention":
            _fold_heads(editor, known, op)
    editor.finish()
    return result


def _fold_relu(editor: Editor, relu: Op) -> None:
    """``Relu(ConvTranspose(x))``."""
    conv = editor.producer(relu.inputs[0], "ConvTranspose")
    if conv is not None and editor.only_user(conv.outputs[0]) is relu:
        editor.remove(conv, relu)
        editor.emit(conv.kind, conv.inputs, relu.outputs, {**conv.attributes, "activation": "relu"}, conv.name)


def _fold_residual(editor: Editor, known: Shapes, add: Op) -> None:
    """``Linear(x) + residual``, both of one shape."""
    for name, residual in (add.inputs, add.inputs[::-1]):
        linear, shape = editor.producer(name, LINEAR), known.shape(name)
        if linear is None or editor.only_user(name) is not add or residual == name:
            continue
        if len(linear.inputs) > 3 or shape is None or known.shape(residual) != shape:
            continue
        inputs = (*linear.inputs, *("",) * (3 - len(linear.inputs)), residual)
        editor.remove(linear, add)
        editor.emit(LINEAR, inputs, add.outputs, linear.attributes, linear.name)
        return


def _fold_heads(editor: Editor, known: Shapes, attention: Op) -> None:
    """``Reshape(Linear(x), (batch, length, heads, width))`` that an attention reads: written head by head instead."""
    get, inputs, layouts = attention.attributes.get, list(attention.inputs), {}
    for i, which in enumerate(("q_layout", "k_layout", "v_layout")):
        split = editor.producer(inputs[i], "Reshape")
        linear = editor.producer(split.inputs[0], LINEAR) if split else None
        if linear is None or get(which, get("layout", "bhld")) != "blhd" or len(linear.inputs) > 3:
            continue
        before, after = known.shape(linear.outputs[0]), known.shape(split.outputs[0])
        is_split = before and after and len(before) == 3 and len(after) == 4 and before[:2] == after[:2]
        own = editor.only_user(split.outputs[0]) is attention and editor.only_user(linear.outputs[0]) is split
        if not is_split or not own or not isinstance(after[2], int) or inputs.count(inputs[i]) > 1:
            continue
        editor.remove(linear, split)
        inputs[i] = editor.emit(
            LINEAR, linear.inputs, split.outputs, {**linear.attributes, "heads": after[2]}, linear.name
        )
        layouts[which] = "bhld"
    if layouts:
        kept = get("layout", "bhld")
        named = {which: get(which, kept) for which in ("q_layout", "k_layout", "v_layout", "out_layout")}
        rest = {name: value for name, value in attention.attributes.items() if name != "layout"}
        editor.remove(attention)
        editor.emit(attention.kind, tuple(inputs), attention.outputs, {**rest, **named, **layouts}, attention.name)
