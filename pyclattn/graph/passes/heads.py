"""Query, key and value behind an attention's products: scale, transposes and repeated heads taken off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes


@dataclass
class Operand:
    """A value that goes into an attention, and how its axes stand."""

    name: str
    layout: str = "bhld"
    factor: float = 1.0


def query_or_value(editor: Editor, known: Shapes, name: str, scaled: bool) -> Operand:
    """The operand behind a value of axes (batch, heads, length, head_dim)."""
    operand = Operand(name)
    if scaled:
        _unscale(editor, known, operand)
    op = editor.producer(operand.name, "Transpose")
    if op is not None and tuple(op.attributes.get("perm", ())) == (0, 2, 1, 3):
        operand.name, operand.layout = op.inputs[0], "blhd"
        if scaled:
            _unscale(editor, known, operand)
    return operand


def key(editor: Editor, known: Shapes, name: str) -> Operand:
    """The operand behind the right factor of query @ key^T, of axes (batch, heads, head_dim, length)."""
    operand = Operand(name, "bhdl")
    _unscale(editor, known, operand)
    op = editor.producer(operand.name, "Transpose")
    perm = tuple(op.attributes.get("perm", ())) if op is not None else ()
    if perm == (0, 2, 3, 1):
        operand.name, operand.layout = op.inputs[0], "blhd"
    elif perm in ((0, 1, 3, 2), (0, 2, 1)):
        inner = query_or_value(editor, known, op.inputs[0], scaled=True)
        operand.name, operand.layout = inner.name, inner.layout
        operand.factor *= inner.factor
    _unscale(editor, known, operand)
    return operand


def _unscale(editor: Editor, known: Shapes, operand: Operand) -> None:
    """Move a multiplication by a number into the attention's scale."""
    while (op := editor.producer(operand.name, "Mul", "Div")) is not None:
        sides = ((0, 1), (1, 0)) if op.kind == "Mul" else ((0, 1),)
        for side, other in sides:
            number = editor.scalar(op.inputs[other])
            if number and known.shape(op.inputs[side]) == known.shape(operand.name):
                operand.name = op.inputs[side]
                operand.factor *= number if op.kind == "Mul" else 1 / number
                break
        else:
            return


def ungroup(editor: Editor, known: Shapes, operand: Operand) -> None:
    """Grouped heads: take off the repetition of each key and value head (Unsqueeze, Expand or Tile, Reshape)."""
    if operand.layout != "bhld":
        return
    source = repeated_heads(editor, known, operand.name)
    if source is not None:
        operand.name = source
        op = editor.producer(source, "Transpose")
        if op is not None and tuple(op.attributes.get("perm", ())) == (0, 2, 1, 3):
            operand.name, operand.layout = op.inputs[0], "blhd"


def repeated_heads(editor: Editor, known: Shapes, name: str) -> str | None:
    """The value of fewer heads behind one whose heads are each repeated in place."""
    shape, merge = known.shape(name), editor.producer(name, "Reshape")
    repeat: Any = editor.producer(merge.inputs[0], "Expand", "Tile") if merge else None
    spread = known.shape(repeat.outputs[0]) if repeat else None
    before = known.shape(repeat.inputs[0]) if repeat else None
    if not shape or not spread or not before or len(spread) != 5 or len(before) != 5 or len(shape) != 4:
        return None
    batch, heads, times, length, width = spread
    if shape != (batch, heads * times, length, width) or before != (batch, heads, 1, length, width):
        return None
    split = editor.producer(repeat.inputs[0], "Unsqueeze", "Reshape")
    source = known.shape(split.inputs[0]) if split else None
    return split.inputs[0] if source == (batch, heads, length, width) else None
