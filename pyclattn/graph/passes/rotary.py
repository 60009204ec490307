"""Rotary embedding from its pieces: ``x * cos + rotate_half(x) * sin``, by halves or by pairs."""

from __future__ import annotations

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shape_rules import slice_bounds
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

# Between the angles and the products stand at most a Cos or Sin, a scale, a cast and some axes.
DEEPEST = 12
ELEMENTWISE = (
    "Cos",
    "Sin",
    "Cast",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Mul",
    "Gather",
    "Slice",
    "Reshape",
    "Transpose",
)


def fuse_rotary(editor: Editor, known: Shapes) -> None:
    """Replace every rotation whose angles stand twice in cos and sin, which is what one operator needs."""
    for op in list(editor.program.ops):
        if op.kind == "Add" and editor.producers.get(op.outputs[0]) is op:
            _from_sum(editor, known, op)


def _from_sum(editor: Editor, known: Shapes, op: Op) -> None:
    terms = [editor.producer(name, "Mul") for name in op.inputs]
    if None in terms:
        return
    for straight, turned in (terms, terms[::-1]):
        for x, cos in (straight.inputs, straight.inputs[::-1]):
            for half, sin in (turned.inputs, turned.inputs[::-1]):
                layout = _rotated(editor, known, half, x)
                if layout and all(_twice(editor, known, name, layout, known.shape(x)) for name in (cos, sin)):
                    editor.remove(op)
                    editor.emit("pyclattn:Rotary", (x, cos, sin), op.outputs, {"layout": layout}, op.name)
                    return


def _rotated(editor: Editor, known: Shapes, name: str, x: str) -> str | None:
    """How ``name`` is x with its halves (or pairs) swapped and the first negated; None if it is not."""
    shape = known.shape(x)
    if shape is None or len(shape) < 2 or not isinstance(shape[-1], int) or shape[-1] % 2:
        return None
    join = editor.producer(name, "Concat")
    if join is not None and len(join.inputs) == 2 and known.last(name, join.attributes["axis"]):
        negative = editor.producer(join.inputs[0], "Neg")
        second = negative and _part(editor, known, negative.inputs[0], x)
        first = _part(editor, known, join.inputs[1], x)
        width = shape[-1]
        return "half" if (first, second) == ((0, width // 2, 1), (width // 2, width, 1)) else None
    flat = editor.producer(name, "Reshape", "Flatten")
    join = editor.producer(flat.inputs[0], "Concat") if flat else None
    if join is None or len(join.inputs) != 2 or known.shape(name) != shape:
        return None
    columns = [editor.producer(source, "Unsqueeze", "Reshape") for source in join.inputs]
    if None in columns or known.shape(join.outputs[0]) != (*shape[:-1], shape[-1] // 2, 2):
        return None
    negative = editor.producer(columns[0].inputs[0], "Neg")
    second = negative and _part(editor, known, negative.inputs[0], x)
    first = _part(editor, known, columns[1].inputs[0], x)
    return "interleaved" if (first, second) == ((0, shape[-1], 2), (1, shape[-1], 2)) else None


def _part(editor: Editor, known: Shapes, name: str, x: str) -> tuple[int, int, int] | None:
    """(start, end, step) if ``name`` is this part of the last axis of x."""
    width = known.shape(x)[-1]
    op = editor.producer(name, "Slice", "Split")
    if op is None or op.inputs[0] != x:
        return None
    if op.kind == "Split":
        if not known.last(x, op.attributes.get("axis", 0)) or len(op.outputs) != 2:
            return None
        sizes = [known.shape(output)[-1] for output in op.outputs]
        if sizes != [width // 2, width // 2]:
            return None
        return (0, width // 2, 1) if op.outputs[0] == name else (width // 2, width, 1)
    bounds = slice_bounds(known, op)
    if bounds is None or len(bounds) != 1 or not known.last(x, bounds[0][0]):
        return None
    _, start, end, step = bounds[0]
    if not all(isinstance(n, int) for n in (start, end, step)) or step < 1:
        return None
    start, end, _ = slice(start, end).indices(width)
    return start, end, step


def _twice(editor: Editor, known: Shapes, name: str, layout: str, shape: tuple, depth: int = DEEPEST) -> bool:
    """Whether the last axis of cos or sin holds every angle twice: both halves, or each neighbour, alike."""
    array = editor.constant(name)
    if array is not None:
        if array.ndim == 0 or array.shape[-1] != shape[-1]:
            return False
        half = array.shape[-1] // 2
        first, second = (
            (array[..., :half], array[..., half:]) if layout == "half" else (array[..., ::2], array[..., 1::2])
        )
        return bool((first == second).all())
    op = editor.producer(name)
    own = known.shape(name)
    if op is None or depth == 0 or own is None or own[-1] != shape[-1]:
        return False
    if op.kind == "Concat" and known.last(name, op.attributes["axis"]):
        return layout == "half" and len(op.inputs) == 2 and op.inputs[0] == op.inputs[1]
    if op.kind == "Reshape" and layout == "interleaved" and _repeated_pairs(editor, known, op):
        return True
    if op.kind not in ELEMENTWISE:
        return False
    if op.kind == "Mul" and editor.scalar(op.inputs[1]) is None:
        return False
    # Whatever moves axes must leave the last one last.
    source = known.shape(op.inputs[0])
    if (
        source is None
        or source[-1] != own[-1]
        or (op.kind == "Gather" and op.attributes.get("axis", 0) == len(source) - 1)
    ):
        return False
    if op.kind == "Transpose" and list(op.attributes.get("perm", ()))[-1:] != [len(source) - 1]:
        return False
    return _twice(editor, known, op.inputs[0], layout, shape, depth - 1)


def _repeated_pairs(editor: Editor, known: Shapes, op: Op) -> bool:
    """Each angle next to itself: Unsqueeze to (..., n, 1), Expand or Concat to (..., n, 2), Reshape to (..., 2n)."""
    source = known.shape(op.inputs[0])
    if source is None or source[-1] != 2:
        return False
    spread = editor.producer(op.inputs[0], "Expand", "Tile", "Concat")
    if spread is None:
        return False
    if spread.kind == "Concat":
        return len(spread.inputs) == 2 and spread.inputs[0] == spread.inputs[1]
    before = known.shape(spread.inputs[0])
    return before is not None and before == (*source[:-1], 1)
