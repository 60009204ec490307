"""Walk from a Softmax to the two products around it.

Backwards from the Softmax lie scores: scaled, masked, cast, until the product of query and key. Forwards lie
probabilities: guarded against NaN, cast, until the product with the value. Anything else on the way means that this is
not an attention we can replace, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyclattn.graph.passes.dims import product as total
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.masks import MASKED, MaskReader
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QLinearSoftmax")


class NotAttention(Exception):
    """Why a Softmax is not the middle of an attention."""


@dataclass
class Step:
    """A mask between product and Softmax. ``form`` is "add", "keep" or "drop"."""

    form: str
    name: str
    factor: float = 1.0
    fill: float = 0.0
    rank: int = 4  # axes of the scores where the mask comes in; some models merge batch and heads on the way


@dataclass
class Scores:
    """One attention as it stands in the program."""

    product: Op
    softmax: Op
    end: Op
    scale: float
    steps: list[Step] = field(default_factory=list)
    guarded: bool = False  # rows without any key come out as zeros


def read_scores(editor: Editor, known: Shapes, softmax: Op) -> Scores:
    """The attention around a Softmax.

    Raises
    ------
    NotAttention
    """
    if not known.last(softmax.inputs[0], softmax.attributes.get("axis", -1)):
        raise NotAttention("it is not over the last axis")
    end, guarded = _forward(editor, known, softmax)
    product, scale, steps = _backward(editor, known, softmax.inputs[0], 1.0, softmax)
    return Scores(product, softmax, end, scale, steps, guarded)


def _forward(editor: Editor, known: Shapes, softmax: Op) -> tuple[Op, bool]:
    value, guarded = softmax.outputs[0], False
    while True:
        if value in editor.outputs:
            raise NotAttention("its probabilities are an output of the model")
        users = editor.users(value)
        guard = _guard(editor, known, value, users, softmax)
        if guard is not None:
            value, guarded = guard.outputs[0], True
            continue
        if len(users) != 1:
            kinds = ", ".join(sorted({user.kind for user in users}))
            raise NotAttention(f"its probabilities have several users: {kinds}" if users else "nothing uses it")
        user = users[0]
        if user.kind == "MatMul":
            if user.inputs[0] != value:
                raise NotAttention("its probabilities are the right factor of a product")
            if user.inputs[1] == value:
                raise NotAttention("its probabilities are multiplied by themselves")
            return user, guarded
        if user.kind in QUANTISED:
            raise NotAttention("its probabilities are quantised")
        if (user.kind == "Cast" and user.attributes.get("to", "").startswith("float")) or user.kind == "Identity":
            value = user.outputs[0]
            continue
        if user.kind == "Reshape" and _regroups(known, user):
            value = user.outputs[0]
            continue
        raise NotAttention(f"its probabilities go into {user.kind}, not a product")


def _regroups(known: Shapes, op: Op) -> bool:
    """Whether a Reshape only merges or splits the axes before the last two: batch and heads."""
    source, target = known.shape(op.inputs[0]), known.shape(op.outputs[0])
    if source is None or target is None or source[-2:] != target[-2:]:
        return False
    return min(len(source), len(target)) > 2 and total(source[:-2]) == total(target[:-2])


def _guard(editor: Editor, known: Shapes, value: str, users: list[Op], softmax: Op) -> Op | None:
    """Where(bad row, 0, probabilities): zeros for rows without any key."""
    selects = [user for user in users if user.kind == "Where" and value in user.inputs[1:]]
    if len(selects) != 1:
        return None
    select = selects[0]
    condition, other = select.inputs[0], select.inputs[2 if select.inputs[1] == value else 1]
    if MaskReader(editor, known, False).filled(other) != 0.0:
        return None
    rest = [user for user in users if user is not select]
    if rest:
        ok = len(rest) == 1 and rest[0].kind == "IsNaN" and rest[0].outputs[0] == condition
        return select if ok and editor.only_user(condition) is select and select.inputs[2] == value else None
    return select if _asks_for_rows(editor, known, condition, softmax.inputs[0]) else None


def _asks_for_rows(editor: Editor, known: Shapes, condition: str, scores: str, depth: int = 8) -> bool:
    """Whether a condition has one entry per row and comes from comparing the scores with -inf."""
    shape = known.shape(condition)
    if depth == 8 and (shape is None or shape[-1] != 1):
        return False
    op = editor.producer(condition)
    if op is None or depth == 0:
        return False
    if op.kind in ("Equal", "IsInf"):
        bound = editor.scalar(op.inputs[1]) if op.kind == "Equal" else float("-inf")
        return op.inputs[0] == scores and bound == float("-inf")
    if op.kind in ("Not", "Cast", "ReduceMax", "ReduceMin", "ReduceSum", "Equal", "Greater", "Identity"):
        return _asks_for_rows(editor, known, op.inputs[0], scores, depth - 1)
    return False


def _single(editor: Editor, name: str, user: Op) -> bool:
    """Whether a value on the way is used by this way only, the guard's question aside."""
    others = [op for op in editor.users(name) if op is not user]
    return name not in editor.outputs and all(op.kind in ("Equal", "IsInf") for op in others)


def _backward(editor: Editor, known: Shapes, name: str, factor: float, user: Op) -> tuple[Op, float, list[Step]]:
    op = editor.producer(name)
    if op is None:
        raise NotAttention("its scores are not a product of two activations")
    if not _single(editor, name, user):
        raise NotAttention(f"its scores, the result of {op.kind}, are used elsewhere too")
    kind = op.kind
    if kind == "MatMul":
        if any(editor.constant(source) is not None for source in op.inputs):
            raise NotAttention("its scores are a product with a constant")
        return op, factor, []
    if kind in QUANTISED or kind == "DequantizeLinear":
        raise NotAttention("its scores are quantised")
    if kind in ("Cast", "Identity"):
        return _backward(editor, known, op.inputs[0], factor, op)
    if kind == "Reshape" and _regroups(known, op):
        return _backward(editor, known, op.inputs[0], factor, op)
    if kind in ("Mul", "Div"):
        return _scaled(editor, known, op, factor)
    if kind == "Where":
        return _selected(editor, known, op, factor)
    if kind in ("Add", "Sub"):
        return _added(editor, known, op, factor)
    if kind in ("Max", "Clip") and len(op.inputs) == 2:
        bound = editor.scalar(op.inputs[1])
        if bound is not None and bound * factor <= MASKED:  # keeps a sum of masks from running to -inf
            return _backward(editor, known, op.inputs[0], factor, op)
    raise NotAttention(f"{kind} stands between its scores and the product")


def _scaled(editor: Editor, known: Shapes, op: Op, factor: float):
    for side, other in ((0, 1), (1, 0))[: 2 if op.kind == "Mul" else 1]:
        number = MaskReader(editor, known, False).filled(op.inputs[other])
        if number is not None and number != 0:
            return _backward(editor, known, op.inputs[side], factor * (number if op.kind == "Mul" else 1 / number), op)
    raise NotAttention(f"its scores are scaled by a value that is not a constant ({op.kind})")


def _selected(editor: Editor, known: Shapes, op: Op, factor: float):
    condition, yes, no = op.inputs
    reader = MaskReader(editor, known, False)
    for side, other, form in ((yes, no, "keep"), (no, yes, "drop")):
        fill = reader.filled(other)
        if fill is None:
            continue
        if fill * factor > MASKED:
            raise NotAttention(f"its scores are filled with {fill:g}, which does not mask them")
        product, scale, steps = _backward(editor, known, side, factor, op)
        return product, scale, [*steps, Step(form, condition, factor, fill * factor, known.rank(op.outputs[0]) or 0)]
    raise NotAttention("its scores are chosen by Where from two values")


def _added(editor: Editor, known: Shapes, op: Op, factor: float):
    problem = None
    sides = ((0, 1, factor), (1, 0, factor)) if op.kind == "Add" else ((0, 1, -factor),)
    for side, other, mask_factor in sides:
        try:
            product, scale, steps = _backward(editor, known, op.inputs[side], factor, op)
        except NotAttention as error:
            problem = problem or error
            continue
        step = Step("add", op.inputs[other], mask_factor, rank=known.rank(op.outputs[0]) or 0)
        return product, scale, [*steps, step]
    raise problem or NotAttention("its scores are a sum without a product")
