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

QUANTISED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul",
    "com.microsoft:QLinearSoftmax", "com.microsoft:QGemm",
)  # fmt: skip
# Comparisons of scores with -inf are questions about them, answered by the attention itself.
QUESTIONS = ("Equal", "IsInf")


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


class Walk:
    """Reads the attention around a Softmax.

    Parameters
    ----------
    editor, known
    float_attention : bool
        Whether roundings of scores and probabilities to 8 bits may be passed over, which changes results.
    """

    def __init__(self, editor: Editor, known: Shapes, float_attention: bool = False):
        self.editor, self.known, self.float_attention = editor, known, float_attention
        self.reader = MaskReader(editor, known, False)

    def read(self, softmax: Op) -> Scores:
        """The attention around ``softmax``, or NotAttention."""
        if not self.known.last(softmax.inputs[0], softmax.attributes.get("axis", -1)):
            raise NotAttention("it is not over the last axis")
        end, guarded = self._forward(softmax)
        product, scale, steps = self._backward(softmax.inputs[0], 1.0, softmax)
        return Scores(product, softmax, end, scale, steps, guarded)

    # -- probabilities ---------------------------------------------------------------------------------------------

    def _forward(self, softmax: Op) -> tuple[Op, bool]:
        value, guarded = softmax.outputs[0], False
        while True:
            if value in self.editor.outputs:
                raise NotAttention("its probabilities are an output of the model")
            users = self.editor.users(value)
            guard = self._guard(value, users, softmax)
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
            value = self._next(user)

    def _next(self, user: Op) -> str:
        """The value behind an operator that leaves probabilities as they are."""
        is_cast = user.kind == "Cast" and user.attributes.get("to", "").startswith("float")
        if is_cast or user.kind == "Identity" or (user.kind == "Reshape" and regroups(self.known, user)):
            return user.outputs[0]
        if user.kind == "QuantizeLinear" and self.float_attention:
            back = self.editor.only_user(user.outputs[0], "DequantizeLinear")
            if back is not None:
                return back.outputs[0]
        if user.kind in QUANTISED:
            raise NotAttention("its probabilities are quantised (float_attention=True passes over that)")
        raise NotAttention(f"its probabilities go into {user.kind}, not a product")

    def _guard(self, value: str, users: list[Op], softmax: Op) -> Op | None:
        """Where(bad row, 0, probabilities): zeros for rows without any key."""
        selects = [user for user in users if user.kind == "Where" and value in user.inputs[1:]]
        if len(selects) != 1:
            return None
        select = selects[0]
        condition, other = select.inputs[0], select.inputs[2 if select.inputs[1] == value else 1]
        if self.reader.filled(other) != 0.0:
            return None
        rest = [user for user in users if user is not select]
        if rest:
            asks = len(rest) == 1 and rest[0].kind == "IsNaN" and rest[0].outputs[0] == condition
            return select if asks and self.editor.only_user(condition) is select and select.inputs[2] == value else None
        shape = self.known.shape(condition)
        is_row = shape is not None and shape[-1:] == (1,)
        return select if is_row and self._asks_for_rows(condition, softmax.inputs[0]) else None

    def _asks_for_rows(self, condition: str, scores: str, depth: int = 8) -> bool:
        """Whether a condition comes from comparing the scores with -inf."""
        op = self.editor.producer(condition)
        if op is None or depth == 0:
            return False
        if op.kind in QUESTIONS and op.inputs[0] == scores:
            return op.kind == "IsInf" or self.editor.scalar(op.inputs[1]) == float("-inf")
        if op.kind in ("Not", "Cast", "ReduceMax", "ReduceMin", "ReduceSum", "Equal", "Greater", "Identity"):
            return self._asks_for_rows(op.inputs[0], scores, depth - 1)
        return False

    # -- scores ----------------------------------------------------------------------------------------------------

    def _backward(self, name: str, factor: float, user: Op) -> tuple[Op, float, list[Step]]:
        """(product, scale, masks) behind scores that are multiplied by ``factor`` later."""
        op = self.editor.producer(name)
        if op is None:
            raise NotAttention("its scores are not a product of two activations")
        others = [other for other in self.editor.users(name) if other is not user and other.kind not in QUESTIONS]
        if others or name in self.editor.outputs:
            raise NotAttention(f"its scores, the result of {op.kind}, are used elsewhere too")
        kind = op.kind
        if kind == "MatMul":
            if any(self.editor.constant(source) is not None for source in op.inputs):
                raise NotAttention("its scores are a product with a constant")
            return op, factor, []
        if kind in ("Cast", "Identity") or (kind == "Reshape" and regroups(self.known, op)):
            return self._backward(op.inputs[0], factor, op)
        if kind in ("Mul", "Div"):
            return self._scaled(op, factor)
        if kind == "Where":
            return self._selected(op, factor)
        if kind in ("Add", "Sub"):
            return self._added(op, factor)
        if kind in ("Max", "Clip") and len(op.inputs) == 2:
            bound = self.editor.scalar(op.inputs[1])
            if bound is not None and bound * factor <= MASKED:  # keeps a sum of masks from running to -inf
                return self._backward(op.inputs[0], factor, op)
        if kind == "DequantizeLinear" and self.float_attention:
            there = self.editor.producer(op.inputs[0], "QuantizeLinear")
            if there is not None:
                return self._backward(there.inputs[0], factor, there)
        if kind in QUANTISED:
            raise NotAttention("its scores are quantised (float_attention=True passes over that)")
        raise NotAttention(f"{kind} stands between its scores and the product")

    def _scaled(self, op: Op, factor: float):
        for side, other in ((0, 1), (1, 0))[: 2 if op.kind == "Mul" else 1]:
            number = self.reader.filled(op.inputs[other])
            if number is not None and number != 0:
                number = number if op.kind == "Mul" else 1 / number
                return self._backward(op.inputs[side], factor * number, op)
        raise NotAttention(f"its scores are scaled by a value that is not a constant ({op.kind})")

    def _selected(self, op: Op, factor: float):
        condition, yes, no = op.inputs
        for side, other, form in ((yes, no, "keep"), (no, yes, "drop")):
            fill = self.reader.filled(other)
            if fill is None:
                continue
            if fill * factor > MASKED:
                raise NotAttention(f"its scores are filled with {fill:g}, which does not mask them")
            product, scale, steps = self._backward(side, factor, op)
            step = Step(form, condition, factor, fill * factor, self.known.rank(op.outputs[0]) or 0)
            return product, scale, [*steps, step]
        raise NotAttention("its scores are chosen by Where from two values")

    def _added(self, op: Op, factor: float):
        problem = None
        sides = ((0, 1, factor), (1, 0, factor)) if op.kind == "Add" else ((0, 1, -factor),)
        for side, other, mask_factor in sides:
            try:
                product, scale, steps = self._backward(op.inputs[side], factor, op)
            except NotAttention as error:
                problem = problem or error
                continue
            step = Step("add", op.inputs[other], mask_factor, rank=self.known.rank(op.outputs[0]) or 0)
            return product, scale, [*steps, step]
        raise problem or NotAttention("its scores are a sum without a product")


def regroups(known: Shapes, op: Op) -> bool:
    """Whether a Reshape only merges or splits the axes before the last two: batch and heads."""
    source, target = known.shape(op.inputs[0]), known.shape(op.outputs[0])
    if source is None or target is None or source[-2:] != target[-2:]:
        return False
    return min(len(source), len(target)) > 2 and total(source[:-2]) == total(target[:-2])
