"""What a mask on attention scores says: padding, a triangle, a pattern of pairs, or a bias.

Models write one mask in many ways: ``(1 - mask) * min``, Where, masked_fill, boolean And of grids of positions, each
expanded to B x H x L x S or not. `read_mask` takes the expression apart into conditions under which a score is dropped
and terms that are added. A condition that is the same for all queries is key padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shape_rules import slice_bounds
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.passes.uniform import slim
from pyclattn.graph.program import Op

# Scores of trained models stay below a few hundred; HF's masks begin at -10000, half precision's at -65504.
MASKED = -9000.0
THROUGH = ("Identity", "Cast", "Expand", "Unsqueeze", "Squeeze", "Reshape")


@dataclass
class Condition:
    """A boolean value: scores are dropped where it is ``drop_if``."""

    name: str
    drop_if: bool
    fill: float = float("-inf")


@dataclass
class Mask:
    """What masks on one attention come to."""

    padding: list[Condition] = field(default_factory=list)
    causal: bool = False
    pairs: list[Condition] = field(default_factory=list)
    terms: list[tuple[str, float]] = field(default_factory=list)  # additive values and their factors

    def kind(self) -> str:
        """For the report."""
        parts = [name for name, is_there in self._parts() if is_there]
        return " + ".join(parts) or "none"

    def _parts(self):
        return (
            ("causal", self.causal),
            ("key padding", bool(self.padding)),
            ("pairs", bool(self.pairs)),
            ("bias", bool(self.terms)),
        )


class MaskReader:
    """Takes masks on scores of one attention apart.

    Parameters
    ----------
    editor, known
    square : bool
        Whether queries and keys are equally many, so that a triangle is causality.
    """

    def __init__(self, editor: Editor, known: Shapes, square: bool):
        self.editor, self.known, self.square = editor, known, square
        self.mask = Mask()

    def add(self, name: str, factor: float = 1.0) -> None:
        """A value added to the scores."""
        if not self._additive(name, factor):
            self.mask.terms.append((name, factor))

    def keep(self, condition: str, fill: float = float("-inf")) -> None:
        """Scores stay where ``condition`` holds."""
        self._condition(condition, False, fill)

    def drop(self, condition: str, fill: float = float("-inf")) -> None:
        """Scores are filled where ``condition`` holds."""
        self._condition(condition, True, fill)

    # -- additive masks --------------------------------------------------------------------------------------------

    def _additive(self, name: str, factor: float) -> bool:
        """Read an additive value whose parts are all conditions; nothing is entered if one is not."""
        found: list[Condition] = []
        rest: list[tuple[str, float]] = []
        if not self._collect(name, factor, found, rest):
            return False
        if rest and not found:
            return False
        for condition in found:
            self._condition(condition.name, condition.drop_if, condition.fill)
        self.mask.terms += rest
        return True

    def _collect(self, name: str, factor: float, found: list, rest: list) -> bool:
        op, editor = self._source(name), self.editor
        if self.filled(name) == 0.0:
            return True
        if op is None:
            array = editor.constant(name)
            if array is not None and array.dtype.kind == "f" and _only_masks(array * factor):
                kept = editor.add_constant(array == 0, f"{name}_keep")
                self._know(kept, array.shape)
                found.append(Condition(kept, False, float((array * factor).min())))
                return True
            return self._leave(name, factor, rest)
        if op.kind == "Add":
            return all(self._collect(source, factor, found, rest) for source in op.inputs)
        if op.kind == "Where":
            condition, yes, no = op.inputs
            for side, other, drop_if in ((yes, no, True), (no, yes, False)):
                fill = self.filled(side)
                if fill is not None and fill * factor <= MASKED:
                    found.append(Condition(condition, drop_if, fill * factor))
                    cast = self.editor.producer(condition, "Cast")
                    if drop_if and cast is not None and cast.inputs[0] == other:
                        return True  # mask.masked_fill(mask.bool(), min): what is not filled is 0
                    return self._collect(other, factor, found, rest)
        if op.kind in ("Mul", "Div"):
            for at, scale in ((0, 1), (1, 0))[: 2 if op.kind == "Mul" else 1]:
                number = self.filled(op.inputs[scale])
                if not number:
                    continue
                number = number if op.kind == "Mul" else 1 / number
                if number * factor <= MASKED and self._zero_or_one(op.inputs[at], number * factor, found):
                    return True
                return self._collect(op.inputs[at], factor * number, found, rest)
        if op.kind == "Trilu":
            fill = self.filled(op.inputs[0])
            if fill is not None and fill * factor <= MASKED:
                found.append(Condition(self._trilu_condition(op), True, fill * factor))
                return True
        if op.kind in ("Unsqueeze", "Reshape", "Slice", "Transpose") and self._moved(op, factor, found):
            return True
        return self._leave(name, factor, rest)

    def _moved(self, op: Op, factor: float, found: list) -> bool:
        """Conditions behind an operator that moves axes: it is applied to them instead."""
        inner: list[Condition] = []
        rest: list[tuple[str, float]] = []
        self._collect(op.inputs[0], factor, inner, rest)
        shape, target = self.known.shape(op.inputs[0]), self.known.shape(op.outputs[0])
        if rest or not inner or any(self.known.shape(c.name) != shape for c in inner):
            return False
        for condition in inner:
            made = self.editor.emit(
                op.kind,
                (self._as_bool(condition.name), *op.inputs[1:]),
                f"{op.outputs[0]}_keep",
                op.attributes,
                op.name,
            )
            self._know(made, target)
            found.append(Condition(made, condition.drop_if, condition.fill))
        return True

    def _leave(self, name: str, factor: float, rest: list) -> bool:
        rest.append((name, factor))
        return True

    def _trilu_condition(self, op: Op) -> str:
        """Where a Trilu of a filled value is not zero, as a condition of its own."""
        shape = self.known.shape(op.outputs[0])
        ones = self.editor.emit("Cast", op.inputs[:1], f"{op.outputs[0]}_filled", {"to": "bool"})
        kept = self.editor.emit("Trilu", (ones, *op.inputs[1:]), f"{op.outputs[0]}_where", op.attributes)
        self._know(ones, shape)
        self._know(kept, shape)
        return kept

    def _zero_or_one(self, name: str, fill: float, found: list) -> bool:
        """A factor of a large negative number: 1 where scores are dropped, 0 where they stay."""
        op = self._source(name)
        if op is None:
            return False
        if op.kind == "Sub" and self.filled(op.inputs[0]) == 1.0:
            found.append(Condition(self._as_bool(op.inputs[1]), False, fill))
            return True
        if self.known.dtype(op.outputs[0]) == "bool":
            found.append(Condition(op.outputs[0], True, fill))
            return True
        return False

    def _as_bool(self, name: str) -> str:
        if self.known.dtype(name) == "bool":
            return name
        op = self.editor.producer(name, "Cast")
        # A Cast of a mask of 0 and 1 to float keeps which is which.
        if op is not None and self.known.dtype(op.inputs[0]) == "bool":
            return op.inputs[0]
        made = self.editor.emit("Cast", (name,), f"{name}_bool", {"to": "bool"})
        self._know(made, self.known.shape(name))
        return made

    def _source(self, name: str) -> Op | None:
        """The operator behind a value, past those that only change its type or add axes."""
        op = self.editor.producer(name)
        while op is not None and op.kind in THROUGH and self._adds_axes_only(op):
            if op.kind == "Cast" and self.known.dtype(op.inputs[0]) == "bool":
                inner = self.editor.producer(op.inputs[0])
                return inner
            op = self.editor.producer(op.inputs[0])
        return op

    def _adds_axes_only(self, op: Op) -> bool:
        """Whether the operator leaves every axis where it is, counted from the end, so masks still line up."""
        if op.kind in ("Identity", "Cast", "Expand"):
            return True
        source, target = self.known.shape(op.inputs[0]), self.known.shape(op.outputs[0])
        if source is None or target is None:
            return False
        longer, shorter = (target, source) if len(target) > len(source) else (source, target)
        extra = len(longer) - len(shorter)
        return all(n == 1 for n in longer[:extra]) and longer[extra:] == shorter

    def filled(self, name: str) -> float | None:
        """The number a value is filled with, if it is the same everywhere."""
        array = self.editor.constant(name)
        if array is not None:
            same = array.size and array.dtype.kind in "fiub" and (array == array.reshape(-1)[0]).all()
            return float(array.reshape(-1)[0]) if same else None
        op = self.editor.producer(name, "Expand", "Identity", "Cast", "Unsqueeze", "Reshape", "ConstantOfShape")
        if op is None:
            return None
        return float(op.attributes.get("value", 0)) if op.kind == "ConstantOfShape" else self.filled(op.inputs[0])

    # -- conditions ------------------------------------------------------------------------------------------------

    def _condition(self, name: str, drop_if: bool, fill: float) -> None:
        """Split a condition at And / Or, then say what each part is."""
        op = self._source(name)
        dtype = self.known.dtype(op.outputs[0]) if op is not None else self.known.dtype(name)
        inner = op.outputs[0] if op is not None and dtype == "bool" else name
        if self._always(inner, not drop_if):
            return
        if op is not None and dtype == "bool":
            if op.kind == "Not":
                return self._condition(op.inputs[0], not drop_if, fill)
            # Kept where both hold is dropped where either does not.
            if op.kind == ("Or" if drop_if else "And"):
                for source in op.inputs:
                    self._condition(source, drop_if, fill)
                return None
        self._leaf(inner, drop_if, fill)
        return None

    def _always(self, name: str, value: bool) -> bool:
        number = self.filled(name)
        if number is None and value:
            # Exporters keep a check that positions are not negative.
            op = self.editor.producer(name, "GreaterOrEqual")
            found = positions(self.editor, self.known, op.inputs[0]) if op else None
            bound = self.editor.scalar(op.inputs[1]) if found else None
            return found is not None and bound is not None and found[1] >= bound
        return number is not None and bool(number) == value

    def _leaf(self, name: str, drop_if: bool, fill: float) -> None:
        if self.square and is_triangle(self.editor, self.known, name, drop_if):
            self.mask.causal = True
            return
        slimmer = slim(self.editor, self.known, name, -2)
        slimmer = slim(self.editor, self.known, slimmer, -3) if slimmer else None
        if slimmer is not None and self.known.rank(name) is not None:
            self.mask.padding.append(Condition(slimmer, drop_if, fill))
        else:
            self.mask.pairs.append(Condition(name, drop_if, fill))

    def _know(self, name: str, shape) -> None:
        self.known.shapes[name] = shape
        self.known.dtypes[name] = "bool"


def _only_masks(array: np.ndarray) -> bool:
    return bool(array.size) and bool(((array == 0) | (array <= MASKED)).all()) and bool((array <= MASKED).any())


def is_triangle(editor: Editor, known: Shapes, name: str, drop_if: bool) -> bool:
    """Whether a condition surely drops the keys after each query and no others."""
    array = editor.constant(name)
    if array is not None:
        return _drops_later_keys(array.astype(bool) == drop_if)
    op = editor.producer(name)
    while op is not None and op.kind in ("Identity", "Expand", "Unsqueeze", "Reshape"):
        source, target = known.shape(op.inputs[0]), known.shape(name)
        # Axes may come and go in front; the last two are queries and keys and must stay.
        if source is None or target is None or source[-2:] != target[-2:]:
            return False
        name = op.inputs[0]
        op = editor.producer(name)
    if op is None:
        array = editor.constant(name)
        return array is not None and _drops_later_keys(array.astype(bool) == drop_if)
    if op.kind == "Cast":
        return is_triangle(editor, known, op.inputs[0], drop_if)
    if op.kind == "Not":
        return is_triangle(editor, known, op.inputs[0], not drop_if)
    if op.kind == "Equal":  # with 0, as torch's exporters write scaled_dot_product_attention(is_causal=True)
        numbers = [editor.scalar(name) for name in op.inputs]
        return 0 in numbers and is_triangle(editor, known, op.inputs[1 - numbers.index(0)], not drop_if)
    if op.kind == "Slice":
        array, bounds = editor.constant(op.inputs[0]), slice_bounds(known, op)
        whole = bounds is not None and all(start == 0 and step == 1 for _, start, _, step in bounds)
        return whole and array is not None and _drops_later_keys(array.astype(bool) == drop_if)
    if op.kind == "Trilu":
        return _trilu_is_triangle(editor, op, drop_if)
    return _compares_positions(editor, known, op, drop_if)


def _drops_later_keys(dropped: np.ndarray) -> bool:
    if dropped.ndim < 2 or dropped.shape[-1] != dropped.shape[-2] or any(n != 1 for n in dropped.shape[:-2]):
        return False
    n = dropped.shape[-1]
    return n > 1 and bool((dropped.reshape(n, n) == ~np.tri(n, dtype=bool)).all())


def _trilu_is_triangle(editor: Editor, op: Op, drop_if: bool) -> bool:
    offset = editor.scalar(op.inputs[1]) if len(op.inputs) > 1 and op.inputs[1] else 0
    upper = bool(op.attributes.get("upper", 1))
    source = op.inputs[0]
    while (maker := editor.producer(source, "Cast", "Expand", "Identity")) is not None:
        source = maker.inputs[0]
    maker, array = editor.producer(source, "ConstantOfShape"), editor.constant(source)
    filled = (maker is not None and bool(maker.attributes.get("value", 0))) or (array is not None and bool(array.all()))
    # What Trilu keeps is where the filled value stands: drop above the diagonal, or keep up to it.
    return filled and ((offset == 1 and upper and drop_if) or (offset == 0 and not upper and not drop_if))


def _compares_positions(editor: Editor, known: Shapes, op: Op, drop_if: bool) -> bool:
    """``key <= query`` and its other spellings, between grids of positions."""
    flipped = {"LessOrEqual": "GreaterOrEqual", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "Greater": "Less"}
    if op.kind not in flipped:
        return False
    first, second = (positions(editor, known, name) for name in op.inputs)
    if first is None or second is None or {first[0], second[0]} != {-1, -2}:
        return False
    kind = op.kind if first[0] == -1 else flipped[op.kind]
    key, query = (first[1], second[1]) if first[0] == -1 else (second[1], first[1])
    reach = query - key
    # key + a (kind) query + b, that is key (kind) query + reach
    wanted = {"LessOrEqual": (False, 0), "Less": (False, 1), "Greater": (True, 0), "GreaterOrEqual": (True, 1)}[kind]
    return (drop_if, reach) == wanted


def positions(editor: Editor, known: Shapes, name: str):
    """(axis, first) if a value counts up by one from ``first`` along axis -1 or -2 and along no other."""
    shape = known.shape(name)
    array = editor.constant(name)
    if array is not None:
        long = [axis - array.ndim for axis, n in enumerate(array.shape) if n != 1]
        if len(long) != 1 or long[0] < -2:
            return None
        line = array.reshape(-1)
        return (long[0], int(line[0])) if (np.diff(line) == 1).all() else None
    op = editor.producer(name)
    if op is None or shape is None:
        return None
    if op.kind == "Range":
        start, step = editor.scalar(op.inputs[0]), editor.scalar(op.inputs[2])
        return (-1, int(start)) if start is not None and step == 1 else None
    if op.kind in ("Cast", "Identity", "Expand"):
        return positions(editor, known, op.inputs[0])
    if op.kind in ("Add", "Sub"):
        number, found = editor.scalar(op.inputs[1]), positions(editor, known, op.inputs[0])
        if number is None or found is None:
            return None
        return found[0], found[1] + int(number) * (1 if op.kind == "Add" else -1)
    if op.kind in ("Unsqueeze", "Squeeze", "Reshape", "Transpose"):
        return _moved(editor, known, op)
    return None


def _moved(editor: Editor, known: Shapes, op: Op):
    """`positions` through operators that move axes of length 1 around."""
    found = positions(editor, known, op.inputs[0])
    source, target = known.shape(op.inputs[0]), known.shape(op.outputs[0])
    if found is None or source is None or target is None:
        return None
    if [n for n in source if n != 1] != [n for n in target if n != 1] or sum(n != 1 for n in target) != 1:
        return None
    axis = next(i for i, n in enumerate(target) if n != 1) - len(target)
    return (axis, found[1]) if axis >= -2 else None
