"""Operators that rearrange: most are views and cost nothing in a run."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.registry import element_type, op
from pyclattn.graph.spec import Kernel, Node, Spec, at, constant, simple, view


def viewable(spec: Spec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of a reshaped view of a value, or None if that needs a copy."""
    if spec.strides is None or spec.size == 0:
        return Spec(shape, spec.dtype).dummy().strides
    old = [(n, s) for n, s in zip(spec.shape, spec.strides) if n != 1]
    merged: list[list[int]] = []  # runs of old dimensions that lie in one line
    for n, stride in old:
        if merged and merged[-1][1] == n * stride:
            merged[-1] = [merged[-1][0] * n, stride]
        else:
            merged.append([n, stride])
    strides, at = [0] * len(shape), len(merged) - 1
    left, step = merged[at] if merged else (1, spec.dtype.itemsize)
    for i in range(len(shape) - 1, -1, -1):
        if shape[i] == 1:
            strides[i] = step
            continue
        if left == 1 and at > 0:
            at -= 1
            left, step = merged[at]
        if left % shape[i]:
            return None
        strides[i] = step
        step, left = step * shape[i], left // shape[i]
    return tuple(strides) if left == 1 and at <= 0 else None


def reshaped(node: Node, shape: tuple[int, ...]) -> Kernel:
    """Input 0 in another shape: a view where its layout allows, else a copy."""
    x = node.spec(0)
    if int(np.prod(shape, dtype=np.int64)) != x.size:
        raise ShapeError(f"cannot reshape {x.shape} to {shape}: {x.size} elements")
    strides = viewable(x, shape)
    if strides is not None:
        out = Spec(shape, x.dtype, None if x.strides is None else strides)
        if out.strides is not None and out.dummy().flags.c_contiguous:
            out.strides = None
        return Kernel([out], view=lambda ins: ins[0].reshape(shape))
    threads = node.settings.n_threads

    def bind(ins, outs, scratch):
        return blocks.elementwise(_copy, [ins[0]], outs[0].reshape(x.shape), threads)

    return Kernel([Spec(shape, x.dtype)], bind)


def _copy(x, out):
    np.copyto(out, x)


@op("Reshape")
def _reshape(node: Node) -> Kernel:
    x, wanted = node.spec(0), node.ints(1)
    if any(n < -1 for n in wanted) or wanted.count(-1) > 1:
        raise ShapeError(f"a shape may hold one -1 and no other negative number, got {wanted}")
    shape = list(wanted)
    if not node.attr("allowzero", 0):
        for i, n in enumerate(shape):
            if n == 0:
                if i >= x.ndim:
                    raise ShapeError(f"shape {wanted} copies dimension {i} of an input of shape {x.shape}")
                shape[i] = x.shape[i]
    if -1 in shape:
        rest = int(np.prod([n for n in shape if n != -1], dtype=np.int64))
        if rest == 0 or x.size % rest:
            raise ShapeError(f"cannot reshape {x.shape} to {wanted}: {x.size} elements")
        shape[shape.index(-1)] = x.size // rest
    return reshaped(node, tuple(shape))


@op("Flatten")
def _flatten(node: Node) -> Kernel:
    shape, axis = node.shape(0), node.attr("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise ShapeError(f"axis must be in [{-len(shape)}, {len(shape)}], got {axis}")
    axis += len(shape) if axis < 0 else 0
    return reshaped(node, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


@op("Squeeze")
def _squeeze(node: Node) -> Kernel:
    shape = node.shape(0)
    if node.has(1):
        axes = node.axes(node.ints(1), len(shape))
    else:
        axes = tuple(i for i, n in enumerate(shape) if n == 1)
    if any(shape[a] != 1 for a in axes):
        raise ShapeError(f"axes {axes} of shape {shape} must have length 1")
    return view(node, lambda x: np.squeeze(x, axes))


@op("Unsqueeze")
def _unsqueeze(node: Node) -> Kernel:
    given = node.ints(1)
    axes = node.axes(given, len(node.shape(0)) + len(given))
    return view(node, lambda x: np.expand_dims(x, axes))


@op("Transpose")
def _transpose(node: Node) -> Kernel:
    ndim = node.spec(0).ndim
    perm = node.attr("perm", list(range(ndim))[::-1])
    if sorted(perm) != list(range(ndim)):
        raise ShapeError(f"perm must order {ndim} axes, got {perm}")
    return view(node, lambda x: x.transpose(perm))


@op("Expand")
def _expand(node: Node) -> Kernel:
    x, wanted = node.spec(0), node.ints(1)
    try:
        shape = np.broadcast_shapes(x.shape, tuple(wanted))
    except ValueError:
        raise ShapeError(f"cannot expand {x.shape} to {wanted}") from None
    return view(node, lambda a: np.broadcast_to(a, shape))


@op("Shape")
def _shape(node: Node) -> Kernel:
    shape = node.shape(0)
    start, end = node.attr("start", 0), node.attr("end", len(shape))
    return constant([np.array(shape[slice(start, end)], np.int64)])


@op("Size")
def _size(node: Node) -> Kernel:
    return constant([np.array(node.spec(0).size, np.int64)])


@op("Constant")
def _constant(node: Node) -> Kernel:
    for name, dtype in (("value_float", "f4"), ("value_floats", "f4"), ("value_int", "i8"), ("value_ints", "i8")):
        if node.attr(name, None) is not None:
            return constant([np.array(node.attr(name), dtype)])
    raise ModelFormatError("the attribute that holds the value must be a number or a list of numbers")


@op("ConstantOfShape")
def _constant_of_shape(node: Node) -> Kernel:
    shape = tuple(node.ints(0))
    dtype = element_type(node.attr("dtype", "float32"))
    fill = np.array(node.attr("value", 0)).astype(dtype).reshape(-1)[0]
    if any(n < 0 for n in shape):
        raise ShapeError(f"a shape cannot be negative, got {shape}")
    one = np.full((1,) * len(shape), fill, dtype)

    def bind(ins, outs, scratch):
        return lambda: np.copyto(outs[0], one)

    return Kernel([Spec(shape, dtype)], bind)


@op("Range")
def _range(node: Node) -> Kernel:
    start, limit, delta = (node.scalar(i) for i in range(3))
    if delta == 0:
        raise ShapeError("the step of Range must not be 0")
    n = max(0, int(np.ceil((limit - start) / delta)))
    dtype = node.dtype(0)

    def bind(ins, outs, scratch):
        def run():
            np.multiply(np.arange(n, dtype=dtype), dtype.type(delta), outs[0])
            np.add(outs[0], dtype.type(start), outs[0])

        return run

    return Kernel([Spec((n,), dtype)], bind)


@op("Concat")
def _concat(node: Node) -> Kernel:
    specs = [node.spec(i) for i in range(node.n_inputs)]
    axis = node.axis(node.attr("axis"), specs[0].ndim)
    shape = list(specs[0].shape)
    for s in specs[1:]:
        if s.ndim != len(shape) or any(a != b for i, (a, b) in enumerate(zip(s.shape, shape)) if i != axis):
            raise ShapeError(f"shapes must agree beside axis {axis}, got {', '.join(str(x.shape) for x in specs)}")
    ends = np.cumsum([s.shape[axis] for s in specs])
    shape[axis] = int(ends[-1])
    threads = node.settings.n_threads

    def bind(ins, outs, scratch):
        out = outs[0]
        if out.size < blocks.PARALLEL:
            return lambda: np.concatenate(ins, axis, out)
        starts = [0, *ends[:-1]]
        calls = [blocks.elementwise(_copy, [x], out[at(axis, slice(a, b))], threads)
                 for x, a, b in zip(ins, starts, ends) if a < b]  # fmt: skip

        def run():
            for call in calls:
                call()

        return run

    return Kernel([Spec(shape, specs[0].dtype)], bind)


@op("Split")
def _split(node: Node) -> Kernel:
    x = node.spec(0)
    axis = node.axis(node.attr("axis", 0), x.ndim)
    n, parts = x.shape[axis], node.n_outputs
    if node.has(1):
        lengths = node.ints(1)
    else:
        each = -(-n // node.attr("num_outputs", parts))
        lengths = [max(0, min(each, n - i * each)) for i in range(parts)]
    if sum(lengths) != n or len(lengths) != parts or min(lengths) < 0:
        raise ShapeError(f"cannot split {n} into {lengths} for {parts} outputs")
    ends = np.cumsum(lengths).tolist()
    where = [at(axis, slice(b - n, b)) for n, b in zip(lengths, ends)]
    dummy = x.dummy()
    return Kernel([Spec.of(dummy[w]) for w in where], view=lambda ins: [ins[0][w] for w in where])


@op("Slice")
def _slice(node: Node) -> Kernel:
    x = node.spec(0)
    starts, ends = node.ints(1), node.ints(2)
    axes = node.axes(node.ints(3) if node.has(3) else range(len(starts)), x.ndim)
    steps = node.ints(4) if node.has(4) else [1] * len(starts)
    where = [slice(None)] * x.ndim
    for a, start, end, step in zip(axes, starts, ends, steps):
        n = x.shape[a]
        if step == 0:
            raise ShapeError("the step of Slice must not be 0")
        low, high = (0, n) if step > 0 else (-1, n - 1)
        start = min(max(start + n if start < 0 else start, 0), n if step > 0 else n - 1)
        end = min(max(end + n if end < 0 else end, low), high + (step < 0))
        where[a] = slice(start, None if end < 0 else end, step)
    index = tuple(where)
    return view(node, lambda a: a[index])


@op("Tile")
def _tile(node: Node) -> Kernel:
    x, repeats = node.spec(0), node.ints(1)
    if len(repeats) != x.ndim or min(repeats, default=0) < 0:
        raise ShapeError(f"{x.ndim} repeats of at least 0 are needed, got {repeats}")
    shape = tuple(n * r for n, r in zip(x.shape, repeats))
    parted = [n for pair in zip(repeats, x.shape) for n in pair]
    source = [n for pair in zip([1] * x.ndim, x.shape) for n in pair]

    def bind(ins, outs, scratch):
        return lambda: np.copyto(outs[0].reshape(parted), ins[0].reshape(source))

    return Kernel([Spec(shape, x.dtype)], bind)


@op("Pad")
def _pad(node: Node) -> Kernel:
    x, pads = node.spec(0), node.ints(1)
    axes = node.axes(node.ints(3), x.ndim) if node.has(3) else tuple(range(x.ndim))
    if len(pads) != 2 * len(axes):
        raise ShapeError(f"{2 * len(axes)} pads are needed for axes {axes}, got {pads}")
    mode = node.attr("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ModelFormatError(f"mode must be constant, reflect, edge or wrap, got {mode!r}")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, a in enumerate(axes):
        before[a], after[a] = pads[i], pads[i + len(axes)]
    shape = tuple(n + b + a for n, b, a in zip(x.shape, before, after))
    if min(shape, default=0) < 0:
        raise ShapeError(f"pads {pads} take more than there is of {x.shape}")
    crop = tuple(slice(max(0, -b), n - max(0, -a)) for n, b, a in zip(x.shape, before, after))
    widths = [(max(0, b), max(0, a)) for b, a in zip(before, after)]
    out = Spec(shape, x.dtype)
    if mode != "constant":
        return simple([out], lambda *ins: np.pad(ins[0][crop], widths, mode))
    if node.has(2):
        node.spec(2)
    inner = tuple(slice(b, b + n) for (b, _), n in zip(widths, (c.stop - c.start for c in crop)))

    def bind(ins, outs, scratch):
        fill = ins[2] if node.has(2) else x.dtype.type(0)

        def run():
            outs[0][...] = fill if isinstance(fill, np.generic) else fill.reshape(-1)[0]
            outs[0][inner] = ins[0][crop]

        return run

    return Kernel([out], bind)


@op("CenterCropPad")
def _center_crop_pad(node: Node) -> Kernel:
    x, wanted = node.spec(0), node.ints(1)
    axes = node.axes(node.attr("axes", list(range(x.ndim))), x.ndim)
    source, target, shape = [slice(None)] * x.ndim, [slice(None)] * x.ndim, list(x.shape)
    for a, n in zip(axes, wanted):
        have, shape[a] = x.shape[a], n
        if n < have:
            source[a] = slice((have - n) // 2, (have - n) // 2 + n)
        else:
            target[a] = slice((n - have) // 2, (n - have) // 2 + have)

    def bind(ins, outs, scratch):
        def run():
            outs[0][...] = 0
            outs[0][tuple(target)] = ins[0][tuple(source)]

        return run

    return Kernel([Spec(shape, x.dtype)], bind)


@op("DepthToSpace", "SpaceToDepth")
def _depth_space(node: Node) -> Kernel:
    x, b = node.spec(0), node.attr("blocksize")
    n, c, h, w = x.shape
    if node.kind == "SpaceToDepth":
        shape, parts = (n, c * b * b, h // b, w // b), (n, c, h // b, b, w // b, b)
        perm = (0, 3, 5, 1, 2, 4) if node.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    elif node.attr("mode", "DCR") == "DCR":
        shape, parts, perm = (n, c // (b * b), h * b, w * b), (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, parts, perm = (n, c // (b * b), h * b, w * b), (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    if int(np.prod(parts)) != x.size:
        raise ShapeError(f"blocksize {b} does not divide the input {x.shape}")
    return simple([Spec(shape, x.dtype)], lambda a: a.reshape(parts).transpose(perm).reshape(shape))


@op("Trilu")
def _trilu(node: Node) -> Kernel:
    x, k = node.spec(0), node.scalar(1) if node.has(1) else 0
    if x.ndim < 2:
        raise ShapeError(f"Trilu needs at least two dimensions, got {x.shape}")
    function = np.triu if node.attr("upper", 1) else np.tril
    return simple([Spec(x.shape, x.dtype)], lambda a, *_: function(a, k))


@op("EyeLike")
def _eye_like(node: Node) -> Kernel:
    x = node.spec(0)
    dtype = element_type(node.attr("dtype", x.dtype.name))
    rows, columns = x.shape
    return simple([Spec(x.shape, dtype)], lambda a: np.eye(rows, columns, node.attr("k", 0), dtype))


@op("NonZero", "Compress", "Unique")
def _by_content(node: Node) -> Kernel:
    x = node.value(0)
    if node.kind == "NonZero":
        return constant([np.array(np.nonzero(np.atleast_1d(x)), np.int64)])
    axis = node.attr("axis", None)
    if node.kind == "Compress":
        return constant([np.compress(node.value(1), x, axis)])
    values, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not node.attr("sorted", 1):
        order = np.argsort(first, kind="stable")
        values = np.take(values, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    results = [values, *(a.astype(np.int64) for a in (first, inverse, counts))]
    return constant(results[: node.n_outputs])
