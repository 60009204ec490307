"""Products of dequantised matrices, as products of the whole numbers they were made from."""

from __future__ import annotations

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

BYTES = ("int8", "uint8")


def fuse_integer_products(editor: Editor, known: Shapes, *, of_weights: bool = False) -> None:
    """Turn ``DequantizeLinear(a) @ DequantizeLinear(b)`` of 8-bit values into one `MatMulIntegerToFloat`.

    ``of_weights``: only where b is a constant.

    The same number in exact arithmetic, and better rounded: the sum is exact, where a float32 sum's last digits depend
    on its order. What follows mostly rounds to 8 bits again, and there a last digit decides about a whole step.
    """
    for op in list(editor.program.ops):
        if op.kind != "MatMul":
            continue
        sides = [editor.producer(name, "DequantizeLinear") for name in op.inputs]
        if not all(side is not None and _is_plain(known, side) for side in sides) or not _scales_fit(known, *sides):
            continue
        if not of_weights or editor.constant(sides[1].inputs[0]) is not None:
            (a, scale_a, zero_a), (b, scale_b, zero_b) = ((*side.inputs, "")[:3] for side in sides)
            editor.remove(op)
            inputs = (a, b, scale_a, scale_b, zero_a, zero_b)
            editor.emit("com.microsoft:MatMulIntegerToFloat", inputs, op.outputs, {}, op.name)


def _is_plain(known: Shapes, op: Op) -> bool:
    """Whether a matrix (or several) of 8 bits becomes float32, with no blocks of scales."""
    return (
        known.dtype(op.inputs[0]) in BYTES
        and known.dtype(op.inputs[1]) == "float32"
        and not op.attributes.get("block_size", 0)
        and (known.rank(op.inputs[0]) or 0) >= 2
    )


def _scales_fit(known: Shapes, left: Op, right: Op) -> bool:
    """One scale on the left; one on the right, or one for each column of a matrix."""
    if not _is_single(known, left):
        return False
    axis = right.attributes.get("axis", 1)
    return _is_single(known, right) or (known.rank(right.inputs[0]) == 2 and axis in (1, -1))


def _is_single(known: Shapes, op: Op) -> bool:
    return known.shape(op.inputs[1]) in ((), (1,))
