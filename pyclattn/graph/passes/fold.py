"""Constant and shape folding: what can be computed before the run is, and what does nothing goes.

The arithmetic exporters write around Reshape and Expand mostly says "as the input": with symbolic shapes it turns into
constants such as ``[0, 0, 12, -1]``, and hundreds of small operators go.
"""

from __future__ import annotations

import numpy as np

from pyclattn.graph.passes.dims import Size
from pyclattn.graph.passes.edit import Editor, bodies
from pyclattn.graph.passes.evaluate import evaluate
from pyclattn.graph.passes.shape_rules import slice_bounds
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op, Program

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
# A folded constant may be this large, or twice what it is made from: int8 weights stay int8, an Expand stays an Expand.
LARGEST = 1 << 20


def fold(editor: Editor, known: Shapes) -> None:
    """Replace operators whose outputs are known, and take out those that do nothing."""
    sizes = _Sizes(editor, known)
    for op in list(editor.program.ops):
        if editor.producers.get(op.outputs[0] if op.outputs else "") is not op:
            continue  # removed by an earlier edit
        if sizes.replace(op):
            continue
        if op.kind == "If":
            _choose_branch(editor, op)
        elif not _fold_values(editor, known, op) and not _fold_constants(editor, op):
            rule = SIMPLER.get(op.kind)
            if rule:
                rule(editor, known, op)


class _Sizes:
    """The program's own sizes, read once from its inputs.

    Models ask any array on the way for its length; asking the input instead lets that array be fused away.
    """

    def __init__(self, editor: Editor, known: Shapes):
        self.editor, self.known = editor, known
        self.where: dict[Size, tuple[str, int, str]] = {}
        for value in editor.program.inputs if known.outer is None else ():
            for axis, size in enumerate(value.shape):
                if isinstance(size, str) and size != "...":
                    self.where.setdefault(Size.named(size), (value.name, axis, size))
        self.made: dict[tuple[Size, int], str] = {}

    def replace(self, op: Op) -> bool:
        """Replace an operator whose value is one size of an input."""
        value = self.known.values.get(op.outputs[0]) if len(op.outputs) == 1 else None
        if value is None or value.size != 1 or value.ndim > 1 or self.known.dtype(op.outputs[0]) != "int64":
            return False
        size = value.reshape(-1)[0]
        if size not in self.where or self._is_plain(op, size):
            return False
        return self.editor.replace(op.outputs[0], self._name(size, value.ndim))

    def _is_plain(self, op: Op, size: Size) -> bool:
        source, axis, _ = self.where[size]
        if op.kind == "Squeeze":
            op = self.editor.producer(op.inputs[0])
        wanted = {"start": axis, "end": axis + 1}
        return op is not None and op.kind == "Shape" and op.inputs == (source,) and op.attributes == wanted

    def _name(self, size: Size, ndim: int) -> str:
        if (size, ndim) not in self.made:
            source, axis, text = self.where[size]
            if ndim == 1:
                made = self.editor.emit("Shape", (source,), f"size_{text}", {"start": axis, "end": axis + 1})
            else:
                made = self.editor.emit("Squeeze", (self._name(size, 1),), f"size_{text}_scalar")
            self.made[size, ndim] = made
        return self.made[size, ndim]


def _fold_values(editor: Editor, known: Shapes, op: Op) -> bool:
    if len(op.outputs) != 1 or known.outer is not None:
        return False
    value, dtype = known.values.get(op.outputs[0]), known.dtype(op.outputs[0])
    if value is None or not dtype or any(isinstance(item, Size) for item in value.reshape(-1)):
        return False
    editor.define(op, [value.astype(dtype)])
    return True


def _fold_constants(editor: Editor, op: Op) -> bool:
    if op.kind in RANDOM or bodies(op) or (not op.inputs and op.kind != "Constant"):
        return False
    inputs = [editor.constant(name) if name else None for name in op.inputs]
    if any(array is None for array, name in zip(inputs, op.inputs) if name):
        return False
    if any(array is not None and array.dtype == object for array in inputs):
        return False
    size = sum(array.nbytes for array in inputs if array is not None)
    outputs = evaluate(op, inputs, min(max(LARGEST, 2 * size), editor.fold_room))
    if outputs is None:
        return False
    editor.fold_room -= sum(array.nbytes for array in outputs)
    editor.define(op, outputs)
    return True


def _choose_branch(editor: Editor, op: Op) -> None:
    """An If whose condition is known becomes the branch it takes."""
    condition = editor.scalar(op.inputs[0])
    if condition is None:
        return
    branch: Program = op.attributes["then_branch" if condition else "else_branch"]
    editor.remove(op)
    editor.program.constants.update(branch.constants)
    for inner in branch.ops:
        editor.emit(inner.kind, inner.inputs, inner.outputs, inner.attributes, inner.name)
    for value, name in zip(branch.outputs, op.outputs):
        if name:
            editor.emit("Identity", (value.name,), (name,), {}, op.name)


def pass_through(editor: Editor, op: Op, source: str | None = None) -> None:
    """Take an operator out whose first output is one of its inputs."""
    source = op.inputs[0] if source is None else source
    if editor.replace(op.outputs[0], source):
        editor.remove(op)
    elif op.kind != "Identity":
        editor.remove(op)
        editor.emit("Identity", (source,), op.outputs[:1], {}, op.name)


def _identity(editor: Editor, known: Shapes, op: Op) -> None:
    source, target = op.inputs[0], op.outputs[0]
    maker = editor.producer(source)
    if target in editor.outputs and maker and source not in editor.outputs and maker.outputs.count(source) == 1:
        # The output's name moves up to the operator that makes the value, unless a body reads the old name.
        users = [user for user in editor.users(source) if user is not op]
        if any(bodies(user) for user in users):
            return
        outputs = tuple(target if name == source else name for name in maker.outputs)
        editor.remove(op, maker)
        for user in users:
            editor.set_inputs(user, [target if name == source else name for name in user.inputs])
        editor.emit(maker.kind, maker.inputs, outputs, maker.attributes, maker.name)
    else:
        pass_through(editor, op)


def _same_shape(known: Shapes, first: str, second: str) -> bool:
    shape = known.shape(first)
    return shape is not None and shape == known.shape(second)


def _cast(editor: Editor, known: Shapes, op: Op) -> None:
    if known.dtype(op.inputs[0]) == op.attributes.get("to"):
        pass_through(editor, op)


def _if_same_shape(editor: Editor, known: Shapes, op: Op) -> None:
    if _same_shape(known, op.inputs[0], op.outputs[0]):
        pass_through(editor, op)


def _reshape(editor: Editor, known: Shapes, op: Op) -> None:
    x, y = op.inputs[0], op.outputs[0]
    if _same_shape(known, x, y):
        pass_through(editor, op)
        return
    if _unflattened_softmax(editor, known, op):
        return
    before = editor.producer(x, "Reshape", "Unsqueeze", "Squeeze", "Flatten")
    source, wanted = known.shape(before.inputs[0]) if before else None, known.shape(y)
    if before and source is not None and wanted is not None and sizes_as_constant(source, wanted) is not None:
        editor.set_inputs(op, (before.inputs[0], *op.inputs[1:]))
        x = before.inputs[0]
    source = known.shape(x)
    if source is None or wanted is None:
        return
    sizes = sizes_as_constant(source, wanted)
    constant = editor.constant(op.inputs[1])
    if sizes is not None and (constant is None or op.attributes.get("allowzero") or constant.tolist() != sizes):
        editor.set_inputs(op, (x, editor.add_constant(np.array(sizes, np.int64), f"{y}_shape")))
        op.attributes = {}


def sizes_as_constant(source: tuple, wanted: tuple) -> list[int] | None:
    """Reshape's sizes as numbers: 0 for a size taken over from the same axis, -1 for at most one other unknown."""
    sizes = []
    for i, size in enumerate(wanted):
        if isinstance(size, int):
            sizes.append(size)
        elif i < len(source) and source[i] == size:
            sizes.append(0)
        else:
            sizes.append(-1)
    # A real size of 0 would read as "take over", and leaves -1 undefined.
    return sizes if sizes.count(-1) <= 1 and not any(isinstance(n, int) and n == 0 for n in wanted) else None


def _unflattened_softmax(editor: Editor, known: Shapes, op: Op) -> bool:
    """Softmax of opset 11 and 12 on the last axis, which the importer wrote as Flatten, Softmax, Reshape."""
    soft = editor.producer(op.inputs[0], "Softmax", "LogSoftmax")
    flat = editor.producer(soft.inputs[0], "Flatten") if soft and editor.only_user(soft.outputs[0]) else None
    if flat is None or not _same_shape(known, flat.inputs[0], op.outputs[0]):
        return False
    rank = known.rank(flat.inputs[0])
    if flat.attributes.get("axis", 1) not in (rank - 1, -1):
        return False
    editor.remove(op, soft)
    editor.emit(soft.kind, flat.inputs[:1], op.outputs, {"axis": -1}, soft.name)
    return True


def _expand(editor: Editor, known: Shapes, op: Op) -> None:
    source, target = known.shape(op.inputs[0]), known.shape(op.outputs[0])
    if source is not None and source == target:
        pass_through(editor, op)
    elif target is not None and editor.constant(op.inputs[1]) is None and source is not None:
        # Sizes that are as the input's read 1, so that the arithmetic behind them goes.
        offset = len(target) - len(source)
        sizes = [1 if i >= offset and source[i - offset] == n else n for i, n in enumerate(target)]
        if all(isinstance(n, int) for n in sizes):
            sizes_name = editor.add_constant(np.array(sizes, np.int64), f"{op.outputs[0]}_shape")
            editor.set_inputs(op, (op.inputs[0], sizes_name))


def _slice(editor: Editor, known: Shapes, op: Op) -> None:
    bounds = slice_bounds(known, op)
    shape = known.shape(op.inputs[0])
    if bounds is None or shape is None or not _same_shape(known, op.inputs[0], op.outputs[0]):
        return
    # A symbolic end counts as the whole axis only where it is the axis' own size.
    whole = (start == 0 and step == 1 and (end == shape[axis] or _beyond(end)) for axis, start, end, step in bounds)
    if all(whole):
        pass_through(editor, op)


def _beyond(end) -> bool:
    return isinstance(end, int) and end >= 2**31 - 1


def _transpose(editor: Editor, known: Shapes, op: Op) -> None:
    perm = op.attributes.get("perm")
    before = editor.producer(op.inputs[0], "Transpose")
    if perm is not None and list(perm) == sorted(perm):
        pass_through(editor, op)
    elif before and perm and before.attributes.get("perm"):
        editor.set_inputs(op, before.inputs)
        op.attributes = {"perm": [before.attributes["perm"][i] for i in perm]}


def _gather(editor: Editor, known: Shapes, op: Op) -> None:
    if not _bytes_first(editor, op):
        _transposed_entry(editor, op)


def _bytes_first(editor: Editor, op: Op) -> bool:
    """Rows of a dequantised table are dequantised rows: a table of 8 bits stays one, and few rows are converted."""
    source = editor.producer(op.inputs[0], "DequantizeLinear", "com.microsoft:DequantizeLinear")
    if source is None or editor.constant(source.inputs[0]) is None:
        return False
    scale, zero = (editor.constant(name) if name else None for name in (*source.inputs[1:], "")[:2])
    if scale is None or scale.size != 1 or (zero is not None and zero.size != 1) or source.attributes.get("block_size"):
        return False
    editor.remove(op)
    entries = editor.emit("Gather", (source.inputs[0], op.inputs[1]), f"{op.outputs[0]}_bytes", op.attributes, op.name)
    attributes = {name: value for name, value in source.attributes.items() if name != "axis"}
    editor.emit(source.kind, (entries, *source.inputs[1:]), op.outputs, attributes, source.name)
    return True


def _transposed_entry(editor: Editor, op: Op) -> None:
    """One entry of a transposed array is a transposed entry: query, key and value of one product become views."""
    index, turn = editor.constant(op.inputs[1]), editor.producer(op.inputs[0], "Transpose")
    perm = turn.attributes.get("perm") if turn else None
    if index is None or index.ndim or not perm:
        return
    axis = perm[op.attributes.get("axis", 0) % len(perm)]
    rest = [n - (n > axis) for n in perm if n != axis]
    if rest == sorted(rest):
        editor.set_inputs(op, (turn.inputs[0], op.inputs[1]))
        op.attributes = {"axis": axis}
        return
    editor.remove(op)
    entry = editor.emit("Gather", (turn.inputs[0], op.inputs[1]), f"{op.outputs[0]}_entry", {"axis": axis}, op.name)
    editor.emit("Transpose", (entry,), op.outputs, {"perm": rest}, turn.name)


def _squeeze(editor: Editor, known: Shapes, op: Op) -> None:
    """One part of a Split into single entries, its axis taken off, is that entry."""
    if _same_shape(known, op.inputs[0], op.outputs[0]):
        pass_through(editor, op)
        return
    split, axes = editor.producer(op.inputs[0], "Split"), known.axes(op)
    shape = known.shape(op.inputs[0])
    if split is None or axes is None or len(axes) != 1 or shape is None:
        return
    axis = split.attributes.get("axis", 0) % len(shape)
    sizes = [known.shape(name) for name in split.outputs]
    if axes[0] % len(shape) != axis or any(size is None or size[axis] != 1 for size in sizes):
        return
    index = editor.add_constant(np.array(split.outputs.index(op.inputs[0]), np.int64), f"{op.outputs[0]}_index")
    editor.remove(op)
    editor.emit("Gather", (split.inputs[0], index), op.outputs, {"axis": axis}, op.name)


def _concat(editor: Editor, known: Shapes, op: Op) -> None:
    if len(op.inputs) == 1:
        pass_through(editor, op)


def _neutral(editor: Editor, known: Shapes, op: Op) -> None:
    """x + 0, x * 1, x / 1, x - 0, where the other side does not broadcast x."""
    neutral = 1.0 if op.kind in ("Mul", "Div") else 0.0
    sides = ((0, 1), (1, 0)) if op.kind in ("Mul", "Add") else ((0, 1),)
    for kept, other in sides:
        if editor.scalar(op.inputs[other]) == neutral and _same_shape(known, op.inputs[kept], op.outputs[0]):
            pass_through(editor, op, op.inputs[kept])
            return


def _where(editor: Editor, known: Shapes, op: Op) -> None:
    condition = editor.constant(op.inputs[0])
    if condition is None or condition.size == 0 or condition.all() != condition.any():
        return
    source = op.inputs[1 if condition.all() else 2]
    if _same_shape(known, source, op.outputs[0]):
        pass_through(editor, op, source)


def _and(editor: Editor, known: Shapes, op: Op) -> None:
    """x and True, x or False."""
    for kept, other in ((0, 1), (1, 0)):
        array = editor.constant(op.inputs[other])
        is_neutral = array is not None and array.size and bool((array == (op.kind == "And")).all())
        if is_neutral and _same_shape(known, op.inputs[kept], op.outputs[0]):
            pass_through(editor, op, op.inputs[kept])
            return


SIMPLER = {
    "Identity": _identity,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _if_same_shape,
    "Unsqueeze": _if_same_shape,
    "Flatten": _if_same_shape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Concat": _concat,
    "Where": _where,
    "Gather": _gather,
    "Squeeze": _squeeze,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _neutral),
    **dict.fromkeys(("And", "Or"), _and),
}


def share(editor: Editor) -> None:
    """Common subexpressions: operators of one kind on the same inputs, and equal constants, become one."""
    first: dict[tuple, str] = {}
    for name, array in list(editor.program.constants.items()):
        if array.nbytes > LARGEST or array.dtype == object:
            continue
        content = (array.dtype.str, array.shape, array.tobytes())
        if content in first and editor.replace(name, first[content]):
            del editor.program.constants[name]
        else:
            first.setdefault(content, name)
    seen: dict[tuple, Op] = {}
    for op in list(editor.program.ops):
        if op.kind in RANDOM or bodies(op):
            continue
        key = (op.kind, op.inputs, len(op.outputs), _frozen(op.attributes))
        twin = seen.setdefault(key, op)
        if twin is op:
            continue
        pairs = [(mine, theirs) for mine, theirs in zip(op.outputs, twin.outputs) if mine]
        if all(theirs and mine not in editor.outputs for mine, theirs in pairs):
            for mine, theirs in pairs:
                editor.replace(mine, theirs)
            editor.remove(op)


def _frozen(attributes: dict) -> str:
    return repr(sorted(attributes.items(), key=lambda item: item[0]))
