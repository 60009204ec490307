"""Convolutions as products of matrices, in blocks of bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product as every
from typing import Any

import numpy as np

from pyclattn._blas import single
from pyclattn.errors import DTypeError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.filters import WinogradFilters, is_doubling
from pyclattn.graph.ops.conv_tile import doubled, is_tiled, tiled
from pyclattn.graph.ops.linear import SPLIT
from pyclattn.graph.ops.registry import op
from pyclattn.graph.ops.windows import Slots, Window, padded, sliding, window
from pyclattn.graph.phases import plain_phase, plane, remainder_phases, seen_at
from pyclattn.graph.spec import Kernel, Node, Spec, at

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
    m, n_terms = weight.shape[0] // groups, weight.shape[1] * int(np.prod(w.kernel))
    is_pointwise = set(w.kernel) == {1} and set(w.strides) == {1}
    if weight.packed is not None or (not is_pointwise and is_tiled(x, weight, m, n_terms)):
        out = Spec((x.shape[0], weight.shape[0], *w.outputs(x.shape[2:])), x.dtype)
        phase = plain_phase(w.kernel, w.dilations, w.begin)
        return tiled(node, out, groups, [phase], plane(w.strides, 1), False)
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
    # 8 parts at least, whatever the number of threads: the cut must not depend on it, since rounding may on the cut
    step = max(1, min(task // row_bytes, -(-outputs[0] // 8) if work >= SPLIT else outputs[0]))
    part = -(-step * row_bytes // 64) * 64
    pointwise = not w.is_padded and set(w.kernel) == {1} and set(w.strides) == {1}
    direct = pointwise or depthwise

    def bind(ins, outs, scratch):
        data, out_array = ins[0], outs[0]
        shift = ins[2] if bias else None
        border = scratch[:border_size].view(x.dtype).reshape(space) if border_size else None
        slots = Slots(scratch[pad_bytes:], threads) if not direct else None

        def one_image(image):
            flat_weight = ins[1].reshape(groups, m, k)
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
                piece = views[g][at(1 + d, slice(i, i + step))]
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
            factor = weight[(slice(i, i + each), 0) + place].reshape(-1, *(1,) * len(outputs))
            into += np.multiply(views[(slice(i, i + each),) + place], factor, dtype=into.dtype)
        if into.dtype != target.dtype:
            target[i : i + each] = into

    blocks.share(run, len(starts), n_threads)()


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Kernel:
    """With an attribute ``activation``, "relu", where `passes.lower` saw one behind."""
    x, weight = node.spec(0), node.spec(1)
    groups, d = _check(node, x, weight, True), x.ndim - 2
    strides, dilations = tuple(node.attr("strides", [1] * d)), tuple(node.attr("dilations", [1] * d))
    begin, outputs = _transposed_area(node, x.shape[2:], weight.shape[2:], strides, dilations)
    is_relu, out = (
        node.attr("activation", "") == "relu",
        Spec((x.shape[0], weight.shape[1] * groups, *outputs), x.dtype),
    )
    is_packed = isinstance(weight.packed, WinogradFilters) and min(begin) >= 0
    if is_packed and is_doubling(weight, groups, strides, dilations):
        return doubled(node, out, begin, is_relu)
    axes = [_axis(*of) for of in zip(x.shape[2:], weight.shape[2:], strides, dilations, begin, outputs)]
    n_terms = weight.shape[0] // groups * int(np.prod([max(map(len, a.taps)) for a in axes]))
    if weight.packed is not None or is_tiled(x, weight, weight.shape[1], n_terms):
        kernel = tiled(node, out, groups, remainder_phases([a.taps for a in axes], strides), (1, 1), True)
    else:
        kernel = _transposed(node, x, weight, groups, axes)
    return _rectified(kernel, node.settings.n_threads) if is_relu else kernel


def _transposed_area(node: Node, spatial, kernel, strides, dilations) -> tuple[list[int], tuple[int, ...]]:
    """What is cut off at the beginning of each axis, and the lengths that are left."""
    extra = tuple(node.attr("output_padding", [0] * len(spatial)))
    full = [(n - 1) * s + (k - 1) * dil + 1 + e for n, s, k, dil, e in zip(spatial, strides, kernel, dilations, extra)]
    auto, wanted = node.attr("auto_pad", "NOTSET"), node.attr("output_shape", None)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides)]
    if wanted is not None:
        wanted = wanted[-len(spatial) :]
        total = [max(0, f - n) for f, n in zip(full, wanted)]
        begin = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
        outputs = tuple(wanted)
    else:
        pads = node.attr("pads", [0] * (2 * len(spatial)))
        begin, end = pads[: len(spatial)], pads[len(spatial) :]
        outputs = tuple(f - b - e for f, b, e in zip(full, begin, end))
    if min(outputs) < 0:
        raise ShapeError(f"padding takes more than there is: output {outputs}")
    return begin, outputs


def _rectified(kernel: Kernel, n_threads: int) -> Kernel:
    """The same with negative outputs made 0 afterwards."""
    inner: Any = kernel.bind

    def bind(ins, outs, scratch):
        convolve = inner(ins, outs, scratch)
        rectify = blocks.elementwise(lambda a, o: np.maximum(a, 0, out=o), outs, outs[0], n_threads)

        def run():
            convolve()
            rectify()

        return run

    return replace(kernel, bind=bind)


@dataclass
class _Axis:
    """One spatial axis of a transposed convolution, cut by the remainder of the output position by the stride.

    Output ``q * stride + phase`` is a sum over kernel elements k of input ``q + shift(k)``: no position is visited in
    vain, and no output is written twice.
    """

    n: int
    out: int
    stride: int
    taps: list[list[tuple[int, int]]]  # for each phase: (kernel element, shift)

    @property
    def low(self) -> int:
        return min([shift for taps in self.taps for _, shift in taps], default=0)

    @property
    def high(self) -> int:
        return max([shift for taps in self.taps for _, shift in taps], default=0)

    @property
    def steps(self) -> int:
        """Positions q of the phase that has most."""
        return -(-self.out // self.stride)

    @property
    def wide(self) -> int:
        """Input positions that all q and shifts reach, padding included."""
        return self.steps + self.high - self.low


def _axis(n: int, kernel: int, stride: int, dilation: int, begin: int, out: int) -> _Axis:
    return _Axis(n, out, stride, seen_at(kernel, stride, dilation, begin, min(stride, max(out, 1))))


def _transposed(node: Node, x: Spec, weight: Spec, groups: int, axes: list[_Axis]) -> Kernel:
    """Blocks of output rows: a padded piece of the input, one product for each phase and kernel element."""
    c, m = weight.shape[0] // groups, weight.shape[1]
    first, rest = axes[0], axes[1:]
    line = int(np.prod([a.wide for a in rest], dtype=np.int64))  # padded input positions in a row
    outputs, item = tuple(a.out for a in axes), x.dtype.itemsize
    out = Spec((x.shape[0], m * groups, *outputs), x.dtype)
    work = x.size * m * int(np.prod(weight.shape[2:]))
    threads = node.settings.n_threads if single.works and work >= SPLIT else 1
    # a task holds input rows, their products and the sum of these; BLAS reads beyond a row's end by the shifts
    reach, tail = first.high - first.low, sum(a.wide for a in rest) + line
    task = min(2 * TASK_BYTES, node.settings.block_bytes)
    rows = max(1, min(first.steps, (task // item - c * (reach * line + tail)) // max(1, (c + 2 * m) * line)))
    part = -(-item * (c * ((rows + reach) * line + tail) + 2 * m * rows * line) // 64) * 64
    starts = range(0, first.steps, rows)
    spots = [(n, g, i) for n in range(x.shape[0]) for g in range(groups) for i in starts]
    phases = list(every(*(range(len(a.taps)) for a in axes)))
    has_bias = node.has(2)

    def bind(ins, outs, scratch):
        slots = Slots(scratch, threads)
        shift = ins[2] if has_bias else None

        def run(t, turned):
            n, g, start = spots[t]
            count = min(rows, first.steps - start)
            room = slots.take()
            try:
                numbers = room.view(x.dtype)
                size = (count + reach) * line + tail
                source, total, more = np.split(numbers[: c * size + 2 * m * count * line],
                                               [c * size, c * size + m * count * line])  # fmt: skip
                source = source.reshape(c, size)
                _fill(ins[0][n, g * c : (g + 1) * c], source, axes, start, count + reach)
                total, more = total.reshape(m, -1), more.reshape(m, -1)
                target = outs[0][n, g * m : (g + 1) * m]
                for phase in phases:
                    _phase(source, turned[g], total, more, axes, phase, line)
                    if shift is not None:
                        np.add(total, shift[g * m : (g + 1) * m, None], total)
                    _deal(total, target, axes, phase, start, count)
            finally:
                slots.give(room)

        def run_all():
            # (groups, *kernel, m, c): the left matrix of each kernel element
            turned = ins[1].reshape(groups, c, m, *weight.shape[2:])
            turned = np.ascontiguousarray(turned.transpose(0, *range(3, turned.ndim), 2, 1))
            blocks.share(lambda t: run(t, turned), len(spots), threads)()

        return run_all

    return Kernel([out], bind, scratch=part * threads, transient=weight.nbytes)


def _fill(image, source, axes: list[_Axis], start: int, count: int) -> None:
    """Copy ``count`` padded input rows to ``source`` (c, positions), from the row that output step ``start`` needs."""
    source[...] = 0
    shape = (count, *(a.wide for a in axes[1:]))
    area = source[:, : int(np.prod(shape))].reshape(len(source), *shape)
    lows = [start + axes[0].low, *(a.low for a in axes[1:])]
    into, of = [slice(None)], [slice(None)]
    for low, length, a in zip(lows, shape, axes):
        begin, end = max(0, low), min(a.n, low + length)
        into.append(slice(begin - low, max(begin, end) - low))
        of.append(slice(begin, max(begin, end)))
    area[tuple(into)] = image[tuple(of)]


def _phase(source, weights, total, more, axes: list[_Axis], phase, line: int) -> None:
    """Sum of the products of one phase, over all its kernel elements, to ``total`` (m, rows x line)."""
    n, is_first = total.shape[1], True
    for taps in every(*(a.taps[p] for a, p in zip(axes, phase))):
        offset, step = 0, line
        for i, (a, (_, shift)) in enumerate(zip(axes, taps)):
            offset += (shift - a.low) * step
            step //= axes[i + 1].wide if i + 1 < len(axes) else 1
        piece = source[:, offset : offset + n]
        np.matmul(weights[tuple(k for k, _ in taps)], piece, total if is_first else more)
        if not is_first:
            np.add(total, more, total)
        is_first = False
    if is_first:
        total[...] = 0


def _deal(total, target, axes: list[_Axis], phase, start: int, count: int) -> None:
    """Write the sums of one phase to the output positions they belong to."""
    area = total.reshape(len(total), count, *(a.wide for a in axes[1:]))
    into, of = [slice(None)], [slice(None)]
    for i, (a, p) in enumerate(zip(axes, phase)):
        begin, steps = (start, count) if i == 0 else (0, a.steps)
        have = max(0, min(steps, -(-(a.out - p) // a.stride) - begin))
        into.append(
            slice(begin * a.stride + p, (begin + have - 1) * a.stride + p + 1, a.stride) if have else slice(0, 0)
        )
        of.append(slice(0, have))
    target[tuple(into)] = area[tuple(of)]
