"""LayerNorm and RMSNorm from their pieces."""

from __future__ import annotations

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op


def fuse_norms(editor: Editor, known: Shapes) -> None:
    """Find ``(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias``, in every spelling, and the RMS form."""
    for op in list(editor.program.ops):
        if op.kind == "Sqrt" and editor.producers.get(op.outputs[0]) is op:
            _from_root(editor, known, op)
        elif op.kind == "Pow" and editor.scalar(op.inputs[1]) == -0.5 and editor.producers.get(op.outputs[0]) is op:
            _from_root(editor, known, op, inverted=True)
        elif op.kind in ("LayerNormalization", "RMSNormalization"):
            _from_operator(editor, known, op)


def _from_operator(editor: Editor, known: Shapes, op: Op) -> None:
    """ONNX's own operator, where it is over the last axis."""
    if len([name for name in op.outputs if name and (editor.users(name) or name in editor.outputs)]) > 1:
        return
    if not known.last(op.inputs[0], op.attributes.get("axis", -1)):
        return
    kind = "pyclattn:LayerNorm" if op.kind == "LayerNormalization" else "pyclattn:RMSNorm"
    editor.remove(op)
    editor.emit(kind, op.inputs, op.outputs[:1], {"epsilon": op.attributes.get("epsilon", 1e-5)}, op.name)


def _from_root(editor: Editor, known: Shapes, root: Op, inverted: bool = False) -> None:
    spread = editor.producer(root.inputs[0], "Add")
    if spread is None:
        return
    for mean_name, epsilon_name in (spread.inputs, spread.inputs[::-1]):
        epsilon = editor.scalar(epsilon_name)
        mean = editor.producer(mean_name, "ReduceMean")
        if epsilon is not None and mean is not None and _over_last(known, mean):
            break
    else:
        return
    centred = _squared(editor, mean.inputs[0])
    quotient = _quotient(editor, root.outputs[0], centred, inverted)
    if centred is None or quotient is None:
        return
    x = _uncentred(editor, known, centred)
    kind, source = ("pyclattn:LayerNorm", x) if x is not None else ("pyclattn:RMSNorm", centred)
    width = (known.shape(source) or (None,))[-1]
    end, weight = _affine(editor, known, quotient, "Mul", width)
    bias = ""
    if kind == "pyclattn:LayerNorm" and weight:
        end, bias = _affine(editor, known, end, "Add", width)
    editor.remove(end)
    editor.emit(kind, (source, weight, bias), end.outputs, {"epsilon": float(epsilon)}, root.name)


def _over_last(known: Shapes, op: Op) -> bool:
    axes = known.axes(op)
    return (
        axes is not None and len(axes) == 1 and known.last(op.inputs[0], axes[0]) and op.attributes.get("keepdims", 1)
    )


def _squared(editor: Editor, name: str) -> str | None:
    """The value whose square ``name`` is."""
    op = editor.producer(name, "Pow", "Mul")
    if op is None:
        return None
    if op.kind == "Pow":
        return op.inputs[0] if editor.scalar(op.inputs[1]) == 2.0 else None
    return op.inputs[0] if op.inputs[0] == op.inputs[1] else None


def _quotient(editor: Editor, root: str, centred: str | None, inverted: bool) -> Op | None:
    """The operator that divides by the root, directly or through the reciprocal."""
    for user in editor.users(root):
        if not inverted and user.kind == "Div" and user.inputs == (centred, root):
            return user
        reciprocal = user.kind == "Reciprocal" or (user.kind == "Div" and editor.scalar(user.inputs[0]) == 1.0)
        if not inverted and reciprocal:
            found = _quotient(editor, user.outputs[0], centred, True)
            if found is not None:
                return found
        if inverted and user.kind == "Mul" and set(user.inputs) == {centred, root}:
            return user
    return None


def _uncentred(editor: Editor, known: Shapes, centred: str) -> str | None:
    """x, if ``centred`` is x minus its mean over the last axis."""
    op = editor.producer(centred, "Sub")
    mean = editor.producer(op.inputs[1], "ReduceMean") if op else None
    if mean is None or mean.inputs[0] != op.inputs[0] or not _over_last(known, mean):
        return None
    return op.inputs[0]


def _affine(editor: Editor, known: Shapes, op: Op, kind: str, width) -> tuple[Op, str]:
    """The following Mul or Add with a vector along the last axis; (last operator, the vector's name)."""
    user = editor.only_user(op.outputs[0], kind)
    if user is None or user.inputs[0] == user.inputs[1]:
        return op, ""
    vector = user.inputs[1] if user.inputs[0] == op.outputs[0] else user.inputs[0]
    shape = known.shape(vector)
    if editor.constant(vector) is None or shape is None or shape != (width,):
        return op, ""
    return user, vector
