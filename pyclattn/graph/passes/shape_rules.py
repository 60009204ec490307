"""The shape of every operator's outputs, by kind. A rule that cannot tell raises KeyError or gives None."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyclattn.graph.passes.dims import broadcast, divide, larger, product, smaller
from pyclattn.graph.passes.method_shapes import METHODS
from pyclattn.graph.passes.product_shapes import PRODUCTS
from pyclattn.graph.program import Op

if TYPE_CHECKING:
    from pyclattn.graph.passes.shapes import Shapes


def _same(known: Shapes, op: Op):
    return [known.sure(op.inputs[0])] + [None] * (len(op.outputs) - 1)


def _elementwise(known: Shapes, op: Op):
    shapes = [known.sure(name) for name in op.inputs if name]
    rank = max(map(len, shapes))
    result = (1,) * rank
    for shape in shapes:
        padded = (1,) * (rank - len(shape)) + shape
        result = tuple(broadcast(a, b) for a, b in zip(result, padded))
    return [result]


def _skip_norm(known: Shapes, op: Op):
    shape = known.sure(op.inputs[0])
    return [shape, None, None, shape]


def _transpose(known: Shapes, op: Op):
    shape = known.sure(op.inputs[0])
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
    shape = known.sure(op.inputs[0])
    axis = op.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return [(product(shape[:axis]), product(shape[axis:]))]


def _squeeze(known: Shapes, op: Op):
    shape, axes = known.sure(op.inputs[0]), known.axes(op)
    if axes is None:
        return [tuple(n for n in shape if n != 1) if all(isinstance(n, int) for n in shape) else None]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(n for i, n in enumerate(shape) if i not in gone)]


def _unsqueeze(known: Shapes, op: Op):
    shape, axes = known.sure(op.inputs[0]), known.axes(op)
    if axes is None:
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
    shape = known.sure(op.inputs[0])
    axis = op.attributes.get("axis", 0) % len(shape)
    sizes = known.ints(op.inputs[1]) if len(op.inputs) > 1 and op.inputs[1] else None
    if sizes is None and len(op.inputs) < 2:
        parts, whole = len(op.outputs), shape[axis]
        sizes = [divide(whole, parts)] * parts
        if isinstance(whole, int):
            each = -(-whole // parts)
            sizes = [each] * (parts - 1) + [whole - each * (parts - 1)]
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
        length = known.sure(op.inputs[1])
        axes = list(range(length[0])) if length and isinstance(length[0], int) else None
    if axes is None or rank is None:
        return None
    n = len(axes)
    starts, ends, steps = starts or [None] * n, ends or [None] * n, steps or [1 if len(op.inputs) < 5 else None] * n
    return [(axis % rank, *bounds) for axis, *bounds in zip(axes, starts, ends, steps)]


def _slice(known: Shapes, op: Op):
    shape, bounds = known.sure(op.inputs[0]), slice_bounds(known, op)
    if bounds is None:
        return [(None,) * len(shape)]
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
        start = larger(size + start, 0, 1)
    if isinstance(end, int) and end < 0:
        end = larger(size + end, 0, 1)
    # An axis that is sliced has at least one element.
    if isinstance(end, int) and smaller(end, size, 1) != end:
        return None
    # An end that is an unknown is the model's own arithmetic: it is taken to lie within the axis.
    return None if start is None or end is None else end - start


def _gather(known: Shapes, op: Op):
    data, index = known.sure(op.inputs[0]), known.sure(op.inputs[1])
    axis = op.attributes.get("axis", 0) % len(data)
    return [data[:axis] + index + data[axis + 1 :]]


def _gather_nd(known: Shapes, op: Op):
    data, index = known.sure(op.inputs[0]), known.sure(op.inputs[1])
    if not isinstance(index[-1], int):
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
    shape, repeats = known.sure(op.inputs[0]), known.ints(op.inputs[1])
    if repeats is None:
        return [(None,) * len(shape)]
    return [tuple(None if n is None else n * r for n, r in zip(shape, repeats))]


def _reduce(known: Shapes, op: Op):
    shape = known.sure(op.inputs[0])
    given = len(op.inputs) > 1 and bool(op.inputs[1])
    axes = known.axes(op) if given else None
    if given and axes is None:
        return [None]
    if not axes:
        axes = [] if op.attributes.get("noop_with_empty_axes") else list(range(len(shape)))
    return [_without(shape, axes, op.attributes.get("keepdims", 1))]


def _arg(known: Shapes, op: Op):
    return [_without(known.sure(op.inputs[0]), [op.attributes.get("axis", 0)], op.attributes.get("keepdims", 1))]


def _without(shape, axes, keep):
    gone = {axis % len(shape) for axis in axes}
    return tuple(1 if i in gone else n for i, n in enumerate(shape) if keep or i not in gone)


def _window(known: Shapes, op: Op):
    """Conv and pooling."""
    shape = known.sure(op.inputs[0])
    pool = "Pool" in op.kind
    kernel = op.attributes.get("kernel_shape")
    weight = () if pool else known.sure(op.inputs[3 if op.kind == "QLinearConv" else 1])
    kernel = kernel or weight[2:]
    n = len(kernel)
    strides, dilations = op.attributes.get("strides", [1] * n), op.attributes.get("dilations", [1] * n)
    pads, auto = op.attributes.get("pads", [0] * 2 * n), op.attributes.get("auto_pad", "NOTSET")
    result: list = []
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
    shape, weight = known.sure(op.inputs[0]), known.sure(op.inputs[1])
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
    shape = known.sure(op.inputs[0])
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
    shape, pads = known.sure(op.inputs[0]), known.ints(op.inputs[1])
    if pads is None or (len(op.inputs) > 3 and op.inputs[3] and known.axes(op, 3) is None):
        return [(None,) * len(shape)]
    axes = (known.axes(op, 3) if len(op.inputs) > 3 else None) or range(len(shape))
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = None if shape[axis] is None else shape[axis] + pads[i] + pads[i + len(pads) // 2]
    return [tuple(result)]


def _topk(known: Shapes, op: Op):
    shape, count = known.sure(op.inputs[0]), known.ints(op.inputs[1])
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
    return [None if rank is None else (len(range(rank)[part(op)]),)]


def part(op: Op) -> slice:
    return slice(op.attributes.get("start", 0), op.attributes.get("end"))


def _nonzero(known: Shapes, op: Op):
    return [(known.rank(op.inputs[0]), None)]


def _one_hot(known: Shapes, op: Op):
    shape, depth = known.sure(op.inputs[0]), known.ints(op.inputs[1])
    axis = op.attributes.get("axis", -1) % (len(shape) + 1)
    return [shape[:axis] + (depth[0] if depth else None,) + shape[axis:]]


def _index_shape(known: Shapes, op: Op):
    return [known.sure(op.inputs[1])]


def _recurrent(known: Shapes, op: Op):
    """RNN, GRU, LSTM: all outputs, then the last states."""
    (length, batch, _), (directions, _, width) = known.sure(op.inputs[0]), known.sure(op.inputs[2])
    if op.attributes.get("layout", 0):
        length, batch = batch, length
        return [(batch, length, directions, width), *[(batch, directions, width)] * 2]
    return [(length, directions, batch, width), *[(directions, batch, width)] * 2]


def _scalar(known: Shapes, op: Op):
    return [()]


_ELEMENTWISE = (
    "Add Sub Mul Div Pow Mod And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where Min Max Mean Sum PRelu "
    "BitwiseAnd BitwiseOr BitwiseXor BitShift"
)
_SAME = (
    "Identity Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization Cast CastLike Ceil Celu Clip Cos Cosh CumSum "
    "DequantizeLinear Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization "
    "IsInf IsNaN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not QuantizeLinear "
    "RMSNormalization Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh "
    "ThresholdedRelu Trilu ScatterElements ScatterND BitwiseNot DynamicQuantizeLinear RotaryEmbedding Swish "
    "ReverseSequence EyeLike pyclattn:LayerNorm pyclattn:RMSNorm pyclattn:Gelu pyclattn:Rotary com.microsoft:BiasGelu "
    "com.microsoft:FastGelu com.microsoft:Gelu com.microsoft:QuickGelu com.microsoft:RotaryEmbedding "
    "SimplifiedLayerNormalization pyclattn:Dequantize"
)
_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

RULES: dict[str, Callable[[Shapes, Op], list | None]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_SAME.split(), _same),
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    **dict.fromkeys(("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool", "QLinearConv"), _window),
    **PRODUCTS,
    **METHODS,
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
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
    "TopK": _topk,
    "Range": _range,
    "ConstantOfShape": _of_shape,
    "Shape": _shape_of,
    "Size": _scalar,
    "NonZero": _nonzero,
    "OneHot": _one_hot,
    "com.microsoft:SkipLayerNormalization": _skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_norm,
}
