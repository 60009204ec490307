"""Convolutions as products of matrices, in blocks of bounded memory."""

from __future__ import annotations

from itertools import product as every

import numpy as np

from pyclattn.errors import DTypeError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.blas import single
from pyclattn.graph.ops.linear import SPLIT
from pyclattn.graph.ops.registry import op
from pyclattn.graph.ops.windows import Slots, Window, padded, sliding, window
from pyclattn.graph.spec import Kernel, Node, Spec

# Unfolded input of one task: with the weights and its part of the output about the size of an L2 cache (1 MB) or two.
TASK_BYTES = 1 << 20


def _check(node: Node, x: Spec, weight: Spec, transposed: bool) -> int:
    """Groups, after a look at the channels."""
    groups = node.attr("group", 1)
    if x.ndim < 3 or weight.ndim != x.ndim:
        raise ShapeError(f"input and weight must have one rank of at least 3, got {x.shape} and {weight.shape}")
    wanted = weight.shape[0] if transposed else weight.shape[1] * groups
    if x.shape[1] != wanted or weight.shape[0] % groups:
        raise ShapeError(f"input {x.shape} does not fit weight {weight.shape} in {groups} groups")
    if x.dtype != weight.dtype:
        raise DTypeError(f"input and weight must have one type, got {x.dtype} and {weight.dtype}")
    return groups


@op("Conv")
def _conv(node: Node) -> Kernel:
    x, weight = node.spec(0), node.spec(1)
    groups = _check(node, x, weight, False)
    w = window(node, x.shape[2:], tuple(node.attr("kernel_shape", weight.shape[2:])))
    if w.kernel != weight.shape[2:]:
        raise ShapeError(f"kernel_shape {w.kernel} does not fit weight {weight.shape}")
    if node.has(2) and node.shape(2) != (weight.shape[0],):
        raise ShapeError(f"the bias must have shape {(weight.shape[0],)}, got {node.shape(2)}")
    return convolution(x, weight, w, groups, node.has(2), node)


def convolution(x: Spec, weight: Spec, w: Window, groups: int, bias: bool, node: Node) -> Kernel:
    """Kernel of a convolution of (N, C, *spatial) by (M, C / groups, *kernel)."""
    settings = node.settings
    outputs = w.outputs(x.shape[2:])
    out = Spec((x.shape[0], weight.shape[0], *outputs), x.dtype)
    m, c = weight.shape[0] // groups, weight.shape[1]
    k, positions = c * int(np.prod(w.kernel)), int(np.prod(outputs, dtype=np.int64))
    space = (x.shape[1], *(n + b + e for n, b, e in zip(x.shape[2:], w.begin, w.end)))
    border_size = int(np.prod(space, dtype=np.int64)) * x.dtype.itemsize if w.is_padded else 0
    pad_bytes = -(-border_size // 64) * 64
    depthwise = c == 1 and m == 1 and groups > 1
    work = out.size * k
    threads = settings.n_threads if (single.works or depthwise) and work >= SPLIT else 1
    rest = int(np.prod(outputs[1:], dtype=np.int64))
    row_bytes = max(1, k * rest * x.dtype.itemsize)
    task = min(TASK_BYTES, settings.block_bytes)
    step = max(1, min(outputs[0] if outputs else 1, task // row_bytes, -(-outputs[0] // threads)))
    part = -(-step * row_bytes // 64) * 64
    pointwise = not w.is_padded and set(w.kernel) == {1} and set(w.strides) == {1}
    direct = pointwise or depthwise

    def bind(ins, outs, scratch):
        data, out_array = ins[0], outs[0]
        flat_weight = ins[1].reshape(groups, m, k)
        shift = ins[2] if bias else None
        border = scratch[:border_size].view(x.dtype).reshape(space) if border_size else None
        slots = Slots(scratch[pad_bytes:], threads) if not direct else None

        def one_image(image):
            source = data[image] if border is None else padded(data[image], w.begin, w.end, 0, border)
            target = out_array[image]
            if depthwise:
                return _depthwise(source, ins[1], shift, target, w, outputs, threads)
            views = sliding(source.reshape(groups, c, *source.shape[1:]), w, outputs)
            tasks = [(g, i) for g in range(groups) for i in range(0, outputs[0], step)]

            def run(t):
                g, i = tasks[t]
                into = target[g * m : (g + 1) * m].reshape(m, positions)[:, i * rest : (i + step) * rest]
                d = len(w.kernel)
                piece = views[(g, slice(None), *(slice(None),) * d, slice(i, i + step))]
                if pointwise:
                    np.matmul(flat_weight[g], piece.reshape(k, -1), into)
                else:
                    room = slots.take()
                    try:
                        n = piece.shape[1 + d] * rest
                        columns = room[: k * n * x.dtype.itemsize].view(x.dtype)
                        np.copyto(columns.reshape(piece.shape), piece)
                        np.matmul(flat_weight[g], columns.reshape(k, n), into)
                    finally:
                        slots.give(room)
                if shift is not None:
                    np.add(into, shift[g * m : (g + 1) * m, None], into)

            return blocks.share(run, len(tasks), threads)()

        def run_all():
            for image in range(x.shape[0]):
                one_image(image)

        return run_all

    return Kernel([out], bind, scratch=pad_bytes + (0 if direct else part * threads))


def _depthwise(source, weight, shift, target, w: Window, outputs, n_threads: int) -> None:
    """One kernel for each channel: a sum over the kernel's elements of shifted inputs."""
    channels = source.shape[0]
    views = sliding(source, w, outputs)
    each = max(1, blocks.BLOCK // max(1, int(np.prod(outputs))))
    starts = range(0, channels, each)

    def run(t):
        i = starts[t]
        into = target[i : i + each]
        if into.dtype == np.float16:  # sums of halves would lose what the product keeps
            into = into.astype(np.float32)
        into[...] = 0 if shift is None else shift[i : i + each].reshape(-1, *(1,) * len(outputs))
        for place in every(*(range(n) for n in w.kernel)):
            factor = weight[(slice(i, i + each), 0, *place)].reshape(-1, *(1,) * len(outputs))
            into += np.multiply(views[(slice(i, i + each), *place)], factor, dtype=into.dtype)
        if into.dtype != target.dtype:
            target[i : i + each] = into

    blocks.share(run, len(starts), n_threads)()


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Kernel:
    x, weight = node.spec(0), node.spec(1)
    groups = _check(node, x, weight, True)
    spatial, kernel = x.shape[2:], weight.shape[2:]
    d = len(spatial)
    strides, dilations = tuple(node.attr("strides", [1] * d)), tuple(node.attr("dilations", [1] * d))
    extra = tuple(node.attr("output_padding", [0] * d))
    full = [(n - 1) * s + (k - 1) * dil + 1 + e for n, s, k, dil, e in zip(spatial, strides, kernel, dilations, extra)]
    auto, wanted = node.attr("auto_pad", "NOTSET"), node.attr("output_shape", None)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides)]
    if wanted is not None:
        wanted = wanted[-d:]
        total = [max(0, f - n) for f, n in zip(full, wanted)]
        begin = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
        outputs = tuple(wanted)
    else:
        pads = node.attr("pads", [0] * (2 * d))
        begin = pads[:d]
        outputs = tuple(f - b - e for f, b, e in zip(full, pads[:d], pads[d:]))
    if min(outputs) < 0:
        raise ShapeError(f"padding takes more than there is: output {outputs}")
    geometry = _Spread(kernel, strides, dilations, tuple(begin), outputs)
    return _transposed(node, x, weight, groups, geometry)


class _Spread:
    """Where input rows and kernel elements of a transposed convolution fall in the output."""

    def __init__(self, kernel, strides, dilations, begin, outputs):
        self.kernel, self.strides, self.dilations = kernel, strides, dilations
        self.begin, self.outputs = begin, outputs

    def span(self, axis: int, k: int, start: int, stop: int) -> tuple[slice, slice]:
        """(input rows relative to ``start``, output rows) that kernel element ``k`` joins, within the output."""
        s, shift, n = self.strides[axis], k * self.dilations[axis] - self.begin[axis], self.outputs[axis]
        low = max(start, -(shift // s) if shift < 0 else 0)
        while low * s + shift < 0:
            low += 1
        high = min(stop, (n - 1 - shift) // s + 1)
        if high <= low:
            return slice(0, 0), slice(0, 0)
        return slice(low - start, high - start), slice(low * s + shift, (high - 1) * s + shift + 1, s)


def _transposed(node: Node, x: Spec, weight: Spec, groups: int, geometry: _Spread) -> Kernel:
    """Each task makes some output channels of one image: product, then a sum of shifted parts."""
    c, m = weight.shape[0] // groups, weight.shape[1]
    spatial, kernel, outputs = x.shape[2:], weight.shape[2:], geometry.outputs
    taps, item = int(np.prod(kernel)), x.dtype.itemsize
    out = Spec((x.shape[0], m * groups, *outputs), x.dtype)
    work = x.size * m * taps
    threads = node.settings.n_threads if single.works and work >= SPLIT else 1
    rest = int(np.prod(spatial[1:], dtype=np.int64))
    # 8 output channels a task leave work for every thread; rows as many as the scratch holds
    channels = max(1, min(8, -(-m // threads)))
    task = min(TASK_BYTES, node.settings.block_bytes)
    rows = max(1, min(spatial[0], task // max(1, channels * taps * rest * item)))
    part = -(-channels * taps * rows * rest * item // 64) * 64
    has_bias = node.has(2)

    def bind(ins, outs, scratch):
        slots = Slots(scratch, threads)
        data = np.ascontiguousarray(ins[0]).reshape(x.shape[0], groups, c, spatial[0], rest)
        # (groups, m, taps, c): rows of the product are the taps of an output channel
        weights = np.ascontiguousarray(ins[1].reshape(groups, c, m, taps).transpose(0, 2, 3, 1))
        shift = ins[2] if has_bias else None
        tasks = [(n, g, i) for n in range(x.shape[0]) for g in range(groups) for i in range(0, m, channels)]
        copied = not ins[0].flags.c_contiguous

        def run(t):
            n, g, i = tasks[t]
            some = weights[g, i : i + channels]
            target = outs[0][n, g * m + i : g * m + i + len(some)]
            target[...] = 0 if shift is None else shift[g * m + i :][: len(some)].reshape(-1, *(1,) * len(outputs))
            room = slots.take()
            try:
                for start in range(0, spatial[0], rows):
                    stop = min(start + rows, spatial[0])
                    piece = data[n, g, :, start:stop].reshape(c, -1)
                    size = len(some) * taps * piece.shape[1]
                    spread = room[: size * item].view(x.dtype).reshape(len(some) * taps, -1)
                    np.matmul(some.reshape(-1, c), piece, spread)
                    spread = spread.reshape(len(some), *kernel, stop - start, *spatial[1:])
                    _add_shifted(spread, target, geometry, start, stop, spatial)
            finally:
                slots.give(room)

        call = blocks.share(run, len(tasks), threads)
        if not copied:
            return call

        def fresh():
            np.copyto(data.reshape(x.shape), ins[0])
            call()

        return fresh

    copy = x.nbytes if x.strides is not None else 0
    return Kernel([out], bind, scratch=part * threads, transient=weight.nbytes + copy)


def _add_shifted(spread, target, geometry: _Spread, start: int, stop: int, spatial) -> None:
    """Add each kernel element's products to the output positions they belong to."""
    for place in every(*(range(n) for n in geometry.kernel)):
        pairs = [geometry.span(0, place[0], start, stop)]
        pairs += [geometry.span(a, place[a], 0, spatial[a]) for a in range(1, len(spatial))]
        source = (slice(None), *place, *(p[0] for p in pairs))
        into = target[(slice(None), *(p[1] for p in pairs))]
        np.add(into, spread[source], into)
