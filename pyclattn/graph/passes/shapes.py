"""Shapes, types and small whole-number values of a program, as far as they are known before a run.

``Shapes(program)`` goes through the operators once. A size is a number or a `Size`; a size that cannot be
worked out is an unknown of its own; an unknown rank makes the whole shape None. The arithmetic that exporters write around Reshape and Expand is followed too: a
``Shape -> Gather -> Mul -> Concat`` chain has a value, a list of sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn.graph.passes.dims import Size, broadcast, divide, product
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.program import Op

# Longer lists of numbers are data, not sizes.
MOST_VALUES = 64


class Shapes:
    """What is known of every value of a program.

    Parameters
    ----------
    editor : Editor
    outer : Shapes, optional
        Of the program around a body.
    """

    def __init__(self, editor: Editor, outer: Shapes | None = None):
        self.editor = editor
        self.outer = outer
        self.shapes: dict[str, tuple | None] = {}
        self.dtypes: dict[str, str] = {}
        self.values: dict[str, np.ndarray] = {}  # object arrays of int and Size
        for value in editor.program.inputs:
            dims = tuple(Size.named(n) if isinstance(n, str) else n for n in value.shape)
            self.shapes[value.name] = None if value.shape == ("...",) else dims
            self.dtypes[value.name] = value.dtype
        for name, array in editor.program.constants.items():
            self._constant(name, array)
        for op in editor.program.ops:
            self._visit(op)

    def _constant(self, name: str, array: np.ndarray) -> None:
        self.shapes[name] = array.shape
        self.dtypes[name] = array.dtype.name
        if array.dtype.kind in "iub" and array.size <= MOST_VALUES:
            self.values[name] = np.array([int(n) for n in array.reshape(-1)], object).reshape(array.shape)

    def _visit(self, op: Op) -> None:
        rule = RULES.get(op.kind)
        try:
            shapes = rule(self, op) if rule else None
        except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
            shapes = None  # the model does not fit together here: the run will say so, with real numbers
        for i, name in enumerate(op.outputs):
            if name:
                self.shapes[name] = self._named(name, shapes[i] if shapes and i < len(shapes) else None)
                self.dtypes[name] = _dtype(self, op, i)
        follow = VALUES.get(op.kind)
        if follow and op.outputs:
            try:
                value = follow(self, op)
            except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
                value = None
            if value is not None and value.size <= MOST_VALUES:
                self.values[op.outputs[0]] = value
                self.shapes[op.outputs[0]] = value.shape

    def _named(self, name: str, shape: tuple | None) -> tuple | None:
        """The shape with an unknown of its own for every size that is not known."""
        if shape is None:
            return None
        return tuple(Size.named(f"{name}[{i}]") if size is None else size for i, size in enumerate(shape))

    def shape(self, name: str) -> tuple | None:
        if name in self.shapes:
            return self.shapes[name]
        return self.outer.shape(name) if self.outer else None

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def dtype(self, name: str) -> str:
        if name in self.dtypes:
            return self.dtypes[name]
        return self.outer.dtype(name) if self.outer else ""

    def value(self, name: str) -> np.ndarray | None:
        """The content of a small whole-number value: an object array of int and Size."""
        if name in self.values:
            return self.values[name]
        return self.outer.value(name) if self.outer else None

    def ints(self, name: str) -> list | None:
        value = self.value(name)
        return None if value is None else list(value.reshape(-1))

    def last(self, name: str, axis: int) -> bool:
        """Whether ``axis`` of a value is surely its last."""
        rank = self.rank(name)
        return axis == -1 or (rank is not None and axis == rank - 1)

    def axes(self, op: Op, index: int = 1) -> list[int] | None:
        """Axes given as an operator's input, None where they are left out or unknown."""
        if len(op.inputs) <= index or not op.inputs[index]:
            return None
        axes = self.ints(op.inputs[index])
        return axes if axes is not None and all(isinstance(n, int) for n in axes) else None


# -- types ------------------------------------------------------------------------------------------------------------

BOOLEAN = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"}
INDEX = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin"}


def _dtype(known: Shapes, op: Op, index: int) -> str:
    if op.kind in BOOLEAN:
        return "bool"
    if op.kind in INDEX or (op.kind in ("TopK", "Unique") and index >= 1):
        return "int64"
    if op.kind in ("Cast", "ConstantOfShape"):
        return op.attributes.get("to") or op.attributes.get("dtype", "float32")
    if op.kind == "DynamicQuantizeLinear":
        return ("uint8", "float32", "uint8")[index]
    if op.kind in ("MatMulInteger", "ConvInteger"):
        return "int32"
    if op.kind in ("Where", "CastLike"):
        return known.dtype(op.inputs[1])
    if op.kind == "DequantizeLinear":
        return known.dtype(op.inputs[1])
    if op.kind == "QuantizeLinear":
        return known.dtype(op.inputs[2]) if len(op.inputs) > 2 else op.attributes.get("output_dtype") or "uint8"
    if op.kind in ("If", "Loop", "Scan", "OneHot") or op.kind.startswith("QLinear"):
        return ""
    return known.dtype(op.inputs[0]) if op.inputs else ""


# -- shapes -----------------------------------------------------------------------------------------------------------


def _same(known: Shapes, op: Op):
    return [known.shape(op.inputs[0])] + [None] * (len(op.outputs) - 1)


def _elementwise(known: Shapes, op: Op):
    shapes = [known.shape(name) for name in op.inputs if name]
    if any(shape is None for shape in shapes):
        return [None]
    rank = max(map(len, shapes))
    result = (1,) * rank
    for shape in shapes:
        padded = (1,) * (rank - len(shape)) + shape
        result = tuple(broadcast(a, b) for a, b in zip(result, padded))
    return [result]


def _matmul(known: Shapes, op: Op):
    a, b = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    if a is None or b is None:
        return [None]
    left, right = ((1,) + a if len(a) == 1 else a), (b + (1,) if len(b) == 1 else b)
    rank = max(len(left), len(right)) - 2
    head = [(1,) * (rank - len(s) + 2) + s[:-2] for s in (left, right)]
    dims = tuple(broadcast(x, y) for x, y in zip(*head))
    return [dims + (() if len(a) == 1 else (left[-2],)) + (() if len(b) == 1 else (right[-1],))]


def _fused_matmul(known: Shapes, op: Op):
    shapes, get = [known.shape(name) for name in op.inputs[:2]], op.attributes.get
    if None in shapes or get("transBatchA") or get("transBatchB"):
        return [None]
    turned = [s[:-2] + s[:-3:-1] if get(flag) else s for s, flag in zip(shapes, ("transA", "transB"))]
    rank = max(map(len, turned)) - 2
    heads = [(1,) * (rank - len(s) + 2) + s[:-2] for s in turned]
    return [tuple(broadcast(x, y) for x, y in zip(*heads)) + (turned[0][-2], turned[1][-1])]


def _packed_attention(known: Shapes, op: Op):
    """ONNX Runtime's Attention and MultiHeadAttention: (batch, length, width of all values)."""
    x, other = known.shape(op.inputs[0]), known.shape(op.inputs[1 if op.kind.endswith(":Attention") else 2])
    if len(x) != 3:
        return [None]
    if op.kind.endswith(":Attention"):
        sizes = op.attributes.get("qkv_hidden_sizes")
        return [(*x[:2], sizes[2] if sizes else other[-1] // 3)]
    return [(*x[:2], other[-1])]


def _onnx_attention(known: Shapes, op: Op):
    q, v = known.shape(op.inputs[0]), known.shape(op.inputs[2])
    if len(q) == 4:
        return [(*q[:3], v[3])]
    return [(*q[:2], v[2] // op.attributes["kv_num_heads"] * op.attributes["q_num_heads"])]


def _skip_norm(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    return [shape, None, None, shape]


def _gemm(known: Shapes, op: Op):
    a, b = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    return [(a[1 if op.attributes.get("transA") else 0], b[0 if op.attributes.get("transB") else 1])]


def _transpose(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    if shape is None:
        return [None]
    perm = op.attributes.get("perm") or list(range(len(shape)))[::-1]
    return [tuple(shape[i] for i in perm)]


def _reshape(known: Shapes, op: Op):
    source, wanted = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    if wanted is None:
        length = known.shape(op.inputs[1])
        return [(None,) * length[0] if length and isinstance(length[0], int) else None]
    if not op.attributes.get("allowzero"):
        wanted = [source[i] if n == 0 and source else (None if n == 0 else n) for i, n in enumerate(wanted)]
    return [resolve_minus_one(source, wanted)]


def resolve_minus_one(source, wanted):
    """The shape a Reshape gives, its -1 worked out."""
    rest = [n for n in wanted if n != -1]
    if len(rest) == len(wanted):
        return tuple(wanted)
    missing = None
    if source is not None and None not in rest and 0 not in rest:
        missing = product(source) // product(rest)
    return tuple(missing if n == -1 else n for n in wanted)


def _flatten(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    axis = op.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return [(product(shape[:axis]), product(shape[axis:]))]


def _squeeze(known: Shapes, op: Op):
    shape, axes = known.shape(op.inputs[0]), known.axes(op)
    if shape is None:
        return [None]
    if axes is None:
        return [tuple(n for n in shape if n != 1) if all(isinstance(n, int) for n in shape) else None]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(n for i, n in enumerate(shape) if i not in gone)]


def _unsqueeze(known: Shapes, op: Op):
    shape, axes = known.shape(op.inputs[0]), known.axes(op)
    if shape is None or axes is None:
        return [None]
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(shape)
    return [tuple(1 if i in new else next(rest) for i in range(rank))]


def _concat(known: Shapes, op: Op):
    shapes = [known.shape(name) for name in op.inputs]
    axis = op.attributes["axis"]
    first = next((shape for shape in shapes if shape is not None), None)
    if first is None:
        return [None]
    axis %= len(first)
    result = list(first)
    for i in range(len(first)):
        known_sizes = [shape[i] for shape in shapes if shape is not None and shape[i] is not None]
        result[i] = known_sizes[0] if known_sizes else None
    if any(shape is None or shape[axis] is None for shape in shapes):
        result[axis] = None
    else:
        total = 0
        for shape in shapes:
            total = total + shape[axis]
        result[axis] = total
    return [tuple(result)]


def _split(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    if shape is None:
        return None
    axis = op.attributes.get("axis", 0) % len(shape)
    sizes = known.ints(op.inputs[1]) if len(op.inputs) > 1 and op.inputs[1] else None
    if sizes is None and len(op.inputs) < 2:
        parts, whole = len(op.outputs), shape[axis]
        each = -(-whole // parts) if isinstance(whole, int) else divide(whole, parts)
        sizes = [each] * parts
        if isinstance(whole, int):
            sizes[-1] = whole - each * (parts - 1)
    sizes = sizes or [None] * len(op.outputs)
    return [shape[:axis] + (size,) + shape[axis + 1 :] for size in sizes]


def slice_bounds(known: Shapes, op: Op):
    """(axis, start, end, step) of a Slice; start and end may be Sizes; None where they are unknown."""
    rank = known.rank(op.inputs[0])
    starts, ends = known.ints(op.inputs[1]), known.ints(op.inputs[2])
    steps = known.ints(op.inputs[4]) if len(op.inputs) > 4 and op.inputs[4] else None
    if len(op.inputs) > 3 and op.inputs[3]:
        axes = known.axes(op, 3)
    else:
        length = known.shape(op.inputs[1])
        axes = list(range(length[0])) if length and isinstance(length[0], int) else None
    if axes is None or rank is None:
        return None
    n = len(axes)
    starts, ends, steps = starts or [None] * n, ends or [None] * n, steps or [1 if len(op.inputs) < 5 else None] * n
    return [(axis % rank, *bounds) for axis, *bounds in zip(axes, starts, ends, steps)]


def _slice(known: Shapes, op: Op):
    shape, bounds = known.shape(op.inputs[0]), slice_bounds(known, op)
    if shape is None or bounds is None:
        return [None if shape is None else (None,) * len(shape)]
    result = list(shape)
    for axis, start, end, step in bounds:
        result[axis] = slice_length(shape[axis], start, end, step)
    return [tuple(result)]


def slice_length(size, start, end, step):
    """How many elements a Slice takes of an axis; None where that is not known."""
    if all(isinstance(n, int) for n in (size, start, end, step)):
        return len(range(*slice(start, end, step).indices(size)))
    if start is None or end is None or step != 1:
        return None
    if isinstance(end, int) and end >= 2**31 - 1:
        end = size
    if isinstance(start, int) and start < 0:
        start = _larger(size + start, 0, 1)
    if isinstance(end, int) and end < 0:
        end = _larger(size + end, 0, 1)
    # An axis that is sliced has at least one element.
    if isinstance(end, int) and _smaller(end, size, 1) != end:
        return None
    # An end that is an unknown is the model's own arithmetic: it is taken to lie within the axis.
    return None if start is None or end is None else end - start


def _gather(known: Shapes, op: Op):
    data, index = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    if data is None or index is None:
        return [None]
    axis = op.attributes.get("axis", 0) % len(data)
    return [data[:axis] + index + data[axis + 1 :]]


def _gather_nd(known: Shapes, op: Op):
    data, index = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    if data is None or index is None or not isinstance(index[-1], int):
        return [None]
    return [index[:-1] + data[op.attributes.get("batch_dims", 0) + index[-1] :]]


def _expand(known: Shapes, op: Op):
    shape, wanted = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    if shape is None or wanted is None:
        length = known.shape(op.inputs[1])
        rank = max(len(shape or ()), length[0]) if shape is not None and length and isinstance(length[0], int) else None
        return [None if rank is None else (None,) * rank]
    rank = max(len(shape), len(wanted))
    pairs = zip((1,) * (rank - len(shape)) + shape, [1] * (rank - len(wanted)) + wanted)
    return [tuple(broadcast(a, b) for a, b in pairs)]


def _tile(known: Shapes, op: Op):
    shape, repeats = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    return [tuple(None if n is None else n * r for n, r in zip(shape, repeats))]


def _reduce(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    if shape is None:
        return [None]
    given = len(op.inputs) > 1 and bool(op.inputs[1])
    axes = known.axes(op) if given else None
    if given and axes is None:
        return [None]
    if not axes:
        axes = [] if op.attributes.get("noop_with_empty_axes") else list(range(len(shape)))
    return [_without(shape, axes, op.attributes.get("keepdims", 1))]


def _arg(known: Shapes, op: Op):
    return [_without(known.shape(op.inputs[0]), [op.attributes.get("axis", 0)], op.attributes.get("keepdims", 1))]


def _without(shape, axes, keep):
    gone = {axis % len(shape) for axis in axes}
    return tuple(1 if i in gone else n for i, n in enumerate(shape) if keep or i not in gone)


def _window(known: Shapes, op: Op):
    """Conv and pooling."""
    shape = known.shape(op.inputs[0])
    pool = "Pool" in op.kind
    kernel = op.attributes.get("kernel_shape")
    weight = None if pool else known.shape(op.inputs[3 if op.kind == "QLinearConv" else 1])
    kernel = kernel or weight[2:]
    n = len(kernel)
    strides, dilations = op.attributes.get("strides", [1] * n), op.attributes.get("dilations", [1] * n)
    pads, auto = op.attributes.get("pads", [0] * 2 * n), op.attributes.get("auto_pad", "NOTSET")
    result = []
    for i, size in enumerate(shape[2:]):
        if size is None or op.attributes.get("ceil_mode"):
            result.append(None)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            result.append(-(-size // strides[i]) if isinstance(size, int) else (size + strides[i] - 1) // strides[i])
        else:
            padding = 0 if auto == "VALID" else pads[i] + pads[n + i]
            # floor((size - reach) / stride) + 1, written so that a multiple of the stride divides evenly.
            span = size + padding - ((kernel[i] - 1) * dilations[i] + 1) + strides[i]
            result.append(span // strides[i])
    return [(shape[0], shape[1] if pool else weight[0], *result)]


def _conv_transpose(known: Shapes, op: Op):
    shape, weight = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    n = len(shape) - 2
    if "output_shape" in op.attributes or op.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return [(None,) * len(shape)]
    get = op.attributes.get
    strides, dilations, extra = get("strides", [1] * n), get("dilations", [1] * n), get("output_padding", [0] * n)
    pads = get("pads", [0] * 2 * n)
    result = [
        (size - 1) * strides[i] + extra[i] + (weight[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[n + i]
        for i, size in enumerate(shape[2:])
    ]
    return [(shape[0], weight[1] * op.attributes.get("group", 1), *result)]


def _resize(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    sizes = known.ints(op.inputs[3]) if len(op.inputs) > 3 and op.inputs[3] else None
    if sizes is not None and len(sizes) == len(shape):
        return [tuple(sizes)]
    scales = known.editor.constant(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else None
    if scales is not None and len(scales) == len(shape):
        sizes = []
        for size, scale in zip(shape, scales.tolist()):
            exact = size is not None and float(scale).is_integer()
            sizes.append(size * int(scale) if exact else (int(size * scale) if isinstance(size, int) else None))
        return [tuple(sizes)]
    return [(None,) * len(shape)]


def _pad(known: Shapes, op: Op):
    shape, pads = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    if pads is None or (len(op.inputs) > 3 and op.inputs[3] and known.axes(op, 3) is None):
        return [(None,) * len(shape)]
    axes = (known.axes(op, 3) if len(op.inputs) > 3 else None) or range(len(shape))
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = None if shape[axis] is None else shape[axis] + pads[i] + pads[i + len(pads) // 2]
    return [tuple(result)]


def _einsum(known: Shapes, op: Op):
    left, _, right = op.attributes["equation"].replace(" ", "").partition("->")
    sizes: dict[str, object] = {}
    for letters, name in zip(left.split(","), op.inputs):
        shape = known.shape(name)
        for letter, size in zip(letters, shape):
            sizes[letter] = broadcast(sizes[letter], size) if letter in sizes else size
    return [tuple(sizes[letter] for letter in right)] if "." not in left and right else [None]


def _topk(known: Shapes, op: Op):
    shape, count = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    axis = op.attributes.get("axis", -1) % len(shape)
    result = shape[:axis] + (count[0] if count else None,) + shape[axis + 1 :]
    return [result, result]


def _range(known: Shapes, op: Op):
    start, limit, delta = (known.ints(name) for name in op.inputs)
    if start is None or limit is None or delta is None:
        return [(None,)]
    if all(isinstance(n[0], int) for n in (start, limit, delta)):
        return [(max(0, -(-(limit[0] - start[0]) // delta[0])),)]
    return [(limit[0] - start[0] if delta[0] == 1 else None,)]


def _of_shape(known: Shapes, op: Op):
    sizes = known.ints(op.inputs[0])
    if sizes is not None:
        return [tuple(sizes)]
    length = known.shape(op.inputs[0])
    return [(None,) * length[0] if length and isinstance(length[0], int) else None]


def _shape_of(known: Shapes, op: Op):
    rank = known.rank(op.inputs[0])
    return [None if rank is None else (len(range(rank)[_part(op)]),)]


def _part(op: Op) -> slice:
    return slice(op.attributes.get("start", 0), op.attributes.get("end"))


def _nonzero(known: Shapes, op: Op):
    return [(known.rank(op.inputs[0]), None)]


def _one_hot(known: Shapes, op: Op):
    shape, depth = known.shape(op.inputs[0]), known.ints(op.inputs[1])
    axis = op.attributes.get("axis", -1) % (len(shape) + 1)
    return [shape[:axis] + (depth[0] if depth else None,) + shape[axis:]]


def _index_shape(known: Shapes, op: Op):
    return [known.shape(op.inputs[1])]


def _linear(known: Shapes, op: Op):
    x, weight = known.shape(op.inputs[0]), known.shape(op.inputs[1])
    return [None if x is None else (*x[:-1], weight[-1])]


def _attention(known: Shapes, op: Op):
    """Output as the query, with the value's head size."""
    q, v = known.shape(op.inputs[0]), known.shape(op.inputs[2])
    get = op.attributes.get
    if get("q_layout", "bhld") == "blhd":
        q = (q[0], q[2], q[1], q[3])
    out = (*q[:3], v[3])
    return [(out[0], out[2], out[1], out[3]) if get("out_layout", "bhld") == "blhd" else out]


def _scalar(known: Shapes, op: Op):
    return [()]


def _flat_matmul(known: Shapes, op: Op):
    """QLinearMatMul: the matrices are inputs 0 and 3."""
    return _matmul(known, Op("MatMul", (op.inputs[0], op.inputs[3]), op.outputs))


_ELEMENTWISE = (
    "Add Sub Mul Div Pow Mod And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where Min Max Mean Sum PRelu "
    "BitwiseAnd BitwiseOr BitwiseXor BitShift"
)
_SAME = (
    "Identity Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization Cast CastLike Ceil Celu Clip Cos Cosh CumSum "
    "DequantizeLinear Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization IsInf "
    "IsNaN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not QuantizeLinear RMSNormalization "
    "Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Trilu "
    "ScatterElements ScatterND BitwiseNot DynamicQuantizeLinear RotaryEmbedding Swish ReverseSequence EyeLike "
    "pyclattn:LayerNorm pyclattn:RMSNorm pyclattn:Gelu pyclattn:Rotary com.microsoft:BiasGelu com.microsoft:FastGelu "
    "com.microsoft:Gelu com.microsoft:QuickGelu com.microsoft:RotaryEmbedding SimplifiedLayerNormalization"
)
_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

RULES: dict[str, Callable[[Shapes, Op], list | None]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_SAME.split(), _same),
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    **dict.fromkeys(("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool", "QLinearConv"), _window),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    "QLinearMatMul": _flat_matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _index_shape,
    "Expand": _expand,
    "Tile": _tile,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Pad": _pad,
    "Einsum": _einsum,
    "TopK": _topk,
    "Range": _range,
    "ConstantOfShape": _of_shape,
    "Shape": _shape_of,
    "Size": _scalar,
    "NonZero": _nonzero,
    "OneHot": _one_hot,
    "pyclattn:Linear": _linear,
    "pyclattn:Attention": _attention,
    "Attention": _onnx_attention,
    "com.microsoft:Attention": _packed_attention,
    "com.microsoft:MultiHeadAttention": _packed_attention,
    "com.microsoft:FusedMatMul": _fused_matmul,
    "com.microsoft:SkipLayerNormalization": _skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_norm,
}


# -- values -----------------------------------------------------------------------------------------------------------


def _value_of_shape(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    if shape is None:
        return None
    part = shape[_part(op)]
    return None if None in part else _object(list(part))


def _object(items, shape=None) -> np.ndarray:
    result = np.empty(len(items), object)
    result[:] = items
    return result if shape is None else result.reshape(shape)


def _numbers(known: Shapes, op: Op, count: int | None = None):
    values = [known.value(name) for name in op.inputs[:count]]
    return None if any(value is None for value in values) else values


def _through(function) -> Callable[[Shapes, Op], np.ndarray | None]:
    def follow(known: Shapes, op: Op):
        values = _numbers(known, op)
        if values is None or known.dtype(op.inputs[0]) not in ("int64", "int32", "bool", ""):
            return None
        result = np.frompyfunc(function, len(values), 1)(*values)
        result = result if isinstance(result, np.ndarray) else _object([result], ())
        return None if any(item is None for item in result.reshape(-1)) else result

    return follow


def _divided(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if b else None  # ONNX divides whole numbers towards zero
    return a // b


def _equal(a, b):
    difference = a - b
    if isinstance(difference, int):
        return int(difference == 0)
    # Any size is at least 0: a sum of sizes and a number above 0 is not 0.
    return 0 if difference.positive() or (-difference).positive() else None


def _larger(a, b, least: int = 0):
    """The larger of two sizes where all unknowns are at least ``least``; None where that is not known."""
    difference = a - b
    if isinstance(difference, int):
        return a if difference > 0 else b
    if difference.not_negative(least):
        return a
    return b if (-difference).not_negative(least) else None


def _smaller(a, b, least: int = 0):
    difference = a - b
    if isinstance(difference, int):
        return b if difference > 0 else a
    if difference.not_negative(least):
        return b
    return a if (-difference).not_negative(least) else None


def _value_gather(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None or op.attributes.get("axis", 0) not in (0, -1) or values[0].ndim != 1:
        return None
    index = values[1].astype(np.int64)
    result = values[0][index]
    return result if isinstance(result, np.ndarray) else _object([result], ())


def _value_concat(known: Shapes, op: Op):
    values = _numbers(known, op)
    return None if values is None or any(value.ndim != 1 for value in values) else np.concatenate(values)


def _value_slice(known: Shapes, op: Op):
    data, bounds = known.value(op.inputs[0]), slice_bounds(known, op)
    if data is None or bounds is None or data.ndim != 1:
        return None
    ((_, *numbers),) = bounds
    return data[slice(*numbers)] if all(isinstance(n, int) for n in numbers) else None


def _value_reshaped(known: Shapes, op: Op):
    data, (shape,) = known.value(op.inputs[0]), RULES[op.kind](known, op)
    return None if data is None or shape is None else data.reshape(tuple(int(n) for n in shape))


def _value_cast(known: Shapes, op: Op):
    return known.value(op.inputs[0]) if op.attributes.get("to") in ("int64", "int32") else None


def _value_filled(known: Shapes, op: Op):
    sizes = known.ints(op.inputs[0])
    if sizes is None or not all(isinstance(n, int) for n in sizes) or not _whole(op):
        return None
    count = int(np.prod(sizes, dtype=np.int64))
    return _object([int(op.attributes["value"])] * count, tuple(sizes)) if count <= MOST_VALUES else None


def _whole(op: Op) -> bool:
    return op.attributes.get("dtype") in ("int64", "int32", "bool") and "value" in op.attributes


def _value_where(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None:
        return None
    condition = values[0].astype(bool)
    return np.where(condition, values[1], values[2]).astype(object)


def _value_product(known: Shapes, op: Op):
    data = known.value(op.inputs[0])
    if data is None or data.ndim != 1 or (len(op.inputs) > 1 and known.axes(op) not in ([0], [-1])):
        return None
    return _object([product(data)], (1,) if op.attributes.get("keepdims", 1) else ())


def _value_size(known: Shapes, op: Op):
    shape = known.shape(op.inputs[0])
    return None if shape is None or None in shape else _object([product(shape)], ())


def _value_range(known: Shapes, op: Op):
    values = _numbers(known, op)
    if values is None or not all(isinstance(v.reshape(-1)[0], int) for v in values):
        return None
    numbers = range(*(v.reshape(-1)[0] for v in values))
    return _object(list(numbers)) if len(numbers) <= MOST_VALUES else None


VALUES: dict[str, Callable[[Shapes, Op], np.ndarray | None]] = {
    "Shape": _value_of_shape,
    "Size": _value_size,
    "Gather": _value_gather,
    "Concat": _value_concat,
    "Slice": _value_slice,
    "Cast": _value_cast,
    "ConstantOfShape": _value_filled,
    "Where": _value_where,
    "ReduceProd": _value_product,
    "Range": _value_range,
    "Identity": lambda known, op: known.value(op.inputs[0]),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Reshape"), _value_reshaped),
    "Add": _through(lambda a, b: a + b),
    "Sub": _through(lambda a, b: a - b),
    "Mul": _through(lambda a, b: a * b),
    "Div": _through(_divided),
    "Mod": _through(lambda a, b: a % b),
    "Neg": _through(lambda a: -a),
    "Equal": _through(_equal),
    "Max": _through(lambda *sizes: _larger(*sizes)),
    "Min": _through(lambda *sizes: _smaller(*sizes)),
    "Not": _through(lambda a: int(not a)),
}
