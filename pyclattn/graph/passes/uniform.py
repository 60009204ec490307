"""Proof that a value does not change along an axis, given by building the value with that axis of length 1.

A padding mask is expanded over the queries before it reaches the scores. `slim` walks back from it, through what
exporters put in between, and emits the same computation without the axis: what was B x 1 x L x S becomes B x 1 x 1 x S
and nothing of size L x S is ever made.
"""

from __future__ import annotations

import numpy as np

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Where", "Min", "Max", "Cast", "Neg", "Abs", "Identity", "IsNaN", "IsInf", "Pow", "Sqrt", "Sign",
    "Clip", "Mod",
}  # fmt: skip


def slim(editor: Editor, known: Shapes, name: str, axis: int, memo: dict[tuple[str, int], str | None] | None = None):
    """The name of a value that is ``name`` with ``axis`` (counted from the end, negative) cut to its first entry.

    None where the value may change along the axis. Operators emitted on a way that fails are dropped by
    `Editor.finish`.
    """
    memo = {} if memo is None else memo
    if (name, axis) not in memo:
        memo[name, axis] = None  # a cycle cannot be; this guards against deep recursion on shared values
        memo[name, axis] = _slim(editor, known, name, axis, memo)
        made = memo[name, axis]
        if made is not None and made != name and known.shape(made) is None:
            shape = list(known.shape(name))
            shape[axis] = 1
            known.shapes[made] = tuple(shape)
            known.dtypes[made] = known.dtype(name)
    return memo[name, axis]


def _slim(editor: Editor, known: Shapes, name: str, axis: int, memo: dict) -> str | None:
    shape = known.shape(name)
    if shape is None:
        return None
    if len(shape) < -axis or shape[axis] == 1:
        return name
    array = editor.constant(name)
    if array is not None:
        first = array.take([0], axis) if array.shape[axis] else array
        return editor.add_constant(first, name) if array.shape[axis] and (array == first).all() else None
    op = editor.producer(name)
    rule = RULES.get(op.kind) if op else None
    if op is None:
        return None
    if op.kind in ELEMENTWISE:
        inputs = [slim(editor, known, source, axis, memo) if source else "" for source in op.inputs]
        return None if None in inputs else editor.emit(op.kind, inputs, f"{name}_slim", op.attributes, op.name)
    return rule(editor, known, op, axis, len(shape), memo) if rule else None


def _again(editor: Editor, op: Op, *inputs: str) -> str:
    return editor.emit(op.kind, inputs, f"{op.outputs[0]}_slim", op.attributes, op.name)


def _with_one(editor: Editor, sizes: str, position: int) -> str:
    """A vector of sizes with one of them set to 1."""
    array = editor.constant(sizes)
    one = editor.add_constant(np.ones(1, np.int64), f"{sizes}_one")
    if array is not None:
        array = array.copy()
        array[position] = 1
        return editor.add_constant(array, sizes)
    start, at, after, end = (
        editor.add_constant(np.array([n], np.int64), f"{sizes}_at") for n in (0, position, position + 1, 2**62)
    )
    before = editor.emit("Slice", (sizes, start, at), f"{sizes}_before")
    behind = editor.emit("Slice", (sizes, after, end), f"{sizes}_behind")
    return editor.emit("Concat", (before, one, behind), f"{sizes}_slim", {"axis": 0})


def _expand(editor, known, op, axis, rank, memo):
    source = op.inputs[0]
    source_rank, length = known.rank(source), known.shape(op.inputs[1])
    if source_rank is None or not length or not isinstance(length[0], int):
        return None
    slimmer = slim(editor, known, source, axis, memo)
    if slimmer is None or length[0] < -axis:
        return slimmer
    return _again(editor, op, slimmer, _with_one(editor, op.inputs[1], length[0] + axis))


def _of_shape(editor, known, op, axis, rank, memo):
    return _again(editor, op, _with_one(editor, op.inputs[0], rank + axis))


def _unsqueeze(editor, known, op, axis, rank, memo):
    axes = known.axes(op)
    if axes is None:
        return None
    new = {a % rank for a in axes}
    position = rank + axis
    if position in new:
        return op.outputs[0]
    source_position = position - sum(a < position for a in new)
    source = slim(editor, known, op.inputs[0], source_position - (rank - len(new)), memo)
    return None if source is None else _again(editor, op, source, op.inputs[1])


def _squeeze(editor, known, op, axis, rank, memo):
    axes, source_rank = known.axes(op), known.rank(op.inputs[0])
    if axes is None or source_rank is None:
        return None
    kept = [a for a in range(source_rank) if a not in {b % source_rank for b in axes}]
    source = slim(editor, known, op.inputs[0], kept[rank + axis] - source_rank, memo)
    return None if source is None else _again(editor, op, source, op.inputs[1])


def _transpose(editor, known, op, axis, rank, memo):
    perm = op.attributes.get("perm") or list(range(rank))[::-1]
    source = slim(editor, known, op.inputs[0], perm[rank + axis] - rank, memo)
    return None if source is None else _again(editor, op, source)


def _concat(editor, known, op, axis, rank, memo):
    if op.attributes["axis"] % rank == rank + axis:
        return None
    inputs = [slim(editor, known, source, axis, memo) for source in op.inputs]
    return None if None in inputs else _again(editor, op, *inputs)


def _slice(editor, known, op, axis, rank, memo):
    axes = known.axes(op, 3)
    source_rank = known.rank(op.inputs[0])
    if axes is None or source_rank is None or any(a % rank == rank + axis for a in axes):
        return None
    source = slim(editor, known, op.inputs[0], axis, memo)
    return None if source is None else _again(editor, op, source, *op.inputs[1:])


def _gather_nd(editor, known, op, axis, rank, memo):
    index = known.shape(op.inputs[1])
    if op.attributes.get("batch_dims", 0) or index is None or known.rank(op.inputs[0]) is None:
        return None
    position = rank + axis
    if position >= len(index) - 1:
        return None
    indices = slim(editor, known, op.inputs[1], position - len(index), memo)
    return None if indices is None else _again(editor, op, op.inputs[0], indices)


def _gather(editor, known, op, axis, rank, memo):
    data, index = known.rank(op.inputs[0]), known.rank(op.inputs[1])
    if data is None or index is None:
        return None
    at, position = op.attributes.get("axis", 0) % data, rank + axis
    if at <= position < at + index:
        indices = slim(editor, known, op.inputs[1], position - at - index, memo)
        return None if indices is None else _again(editor, op, op.inputs[0], indices)
    source_position = position if position < at else position - index + 1
    source = slim(editor, known, op.inputs[0], source_position - data, memo)
    return None if source is None else _again(editor, op, source, op.inputs[1])


def _reshape(editor, known, op, axis, rank, memo):
    """A Reshape that only adds or removes axes of length 1."""
    source, target = known.shape(op.inputs[0]), known.shape(op.outputs[0])
    if source is None or [n for n in source if n != 1] != [n for n in target if n != 1]:
        return None
    order = [n for n, size in enumerate(target) if size != 1].index(rank + axis)
    position = [n for n, size in enumerate(source) if size != 1][order]
    slimmer = slim(editor, known, op.inputs[0], position - len(source), memo)
    if slimmer is None:
        return None
    sizes = editor.constant(op.inputs[1])
    if sizes is None or 0 in sizes:
        # Axes are squeezed to scalars and put back by position, which needs no sizes at all.
        gone = [n for n, size in enumerate(source) if size == 1 or n == position]
        new = [n for n, size in enumerate(target) if size == 1 or n == rank + axis]
        axes = [editor.add_constant(np.array(n, np.int64), f"{op.outputs[0]}_axes") for n in (gone, new)]
        small = editor.emit("Squeeze", (slimmer, axes[0]), f"{op.outputs[0]}_small")
        return editor.emit("Unsqueeze", (small, axes[1]), f"{op.outputs[0]}_slim")
    return _again(editor, op, slimmer, _with_one(editor, op.inputs[1], rank + axis))


RULES = {
    "Expand": _expand,
    "ConstantOfShape": _of_shape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "GatherND": _gather_nd,
    "Gather": _gather,
    "Reshape": _reshape,
}
