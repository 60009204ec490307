"""Operators along axes: reductions, softmax, sorting, running sums."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import DTypeError, ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, at, simple


def _log_sum_exp(x, axis, keepdims, out):
    highest = np.max(x, axis, keepdims=True, initial=-np.inf)
    highest[~np.isfinite(highest)] = 0
    total = np.log(np.sum(np.exp(x - highest), axis, keepdims=True))
    np.add(total, highest, out if keepdims else out.reshape(total.shape))


def _maximum(x, axis, keepdims, out):
    empty = False if x.dtype == bool else -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    np.max(x, axis, out=out, keepdims=keepdims, initial=empty)


def _minimum(x, axis, keepdims, out):
    empty = True if x.dtype == bool else np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).max
    np.min(x, axis, out=out, keepdims=keepdims, initial=empty)


def _mean(x, axis, keepdims, out):
    n = x.size // max(out.size, 1)
    np.add.reduce(x, axis, x.dtype, out, keepdims=keepdims)
    if x.dtype.kind == "f":
        np.multiply(out, 1 / max(n, 1), out)
    else:
        np.floor_divide(out, max(n, 1), out)


# So few neighbours take NumPy longer to begin than to add; their columns, one after the other, take a sixth of the time
# and give the same bits.
FEW, MANY = 7, 4096


def _sum(x, axis, keepdims, out):
    if axis == (x.ndim - 1,) and 1 < x.shape[-1] <= FEW and x.size >= MANY:
        total = out[..., 0] if keepdims else out
        np.add(x[..., 0], x[..., 1], total)
        for i in range(2, x.shape[-1]):
            np.add(total, x[..., i], total)
        return out
    return np.add.reduce(x, axis, x.dtype, out, keepdims=keepdims)


def _norm2(x, axis, keepdims, out):
    wide = np.float64 if x.dtype.kind in "iu" else x.dtype
    out[...] = np.sqrt(np.sum(np.square(x, dtype=wide), axis, wide, keepdims=keepdims))


REDUCTIONS = {
    "ReduceSum": _sum,
    "ReduceProd": lambda x, axis, keepdims, out: np.multiply.reduce(x, axis, x.dtype, out, keepdims=keepdims),
    "ReduceMean": _mean,
    "ReduceMax": _maximum,
    "ReduceMin": _minimum,
    "ReduceL1": lambda x, axis, keepdims, out: _sum(np.abs(x), axis, keepdims, out),
    "ReduceL2": _norm2,
    "ReduceSumSquare": lambda x, axis, keepdims, out: np.add.reduce(
        np.square(x), axis, x.dtype, out, keepdims=keepdims
    ),
    "ReduceLogSum": lambda x, axis, keepdims, out: np.log(_sum(x, axis, keepdims, out), out),
    "ReduceLogSumExp": _log_sum_exp,
}
# these make a temporary as large as the input
_WIDE = {"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"}


@op(*REDUCTIONS)
def _reduce(node: Node) -> Kernel:
    x = node.spec(0)
    axes = node.ints(1) if node.has(1) else []
    keepdims = bool(node.attr("keepdims", 1))
    if not axes and node.attr("noop_with_empty_axes", 0):
        axis: tuple[int, ...] | None = ()
    else:
        axis = node.axes(axes, x.ndim) or tuple(range(x.ndim))
    shape = [1 if i in (axis or ()) else n for i, n in enumerate(x.shape)]
    if not keepdims:
        shape = [n for i, n in enumerate(x.shape) if i not in (axis or ())]
    if axis == () and x.ndim == 0:
        axis = None
    function = REDUCTIONS[node.kind]

    def bind(ins, outs, scratch):
        array, out = ins[0], outs[0]
        return lambda: function(array, axis, keepdims, out)

    return Kernel([Spec(shape, x.dtype)], bind, transient=x.nbytes if node.kind in _WIDE else 0)


@op("ArgMax", "ArgMin")
def _arg(node: Node) -> Kernel:
    x = node.spec(0)
    axis, keepdims = node.axis(node.attr("axis", 0), x.ndim), bool(node.attr("keepdims", 1))
    function = np.argmax if node.kind == "ArgMax" else np.argmin
    last, n = node.attr("select_last_index", 0), x.shape[axis]
    shape = list(x.shape)
    shape[axis : axis + 1] = [1] if keepdims else []

    def run(a):
        if last:
            return n - 1 - function(np.flip(a, axis), axis, keepdims=keepdims)
        return function(a, axis, keepdims=keepdims)

    return simple([Spec(shape, np.int64)], run)


def softmax(x, axis, out):
    """Softmax of one block, in place if ``out`` is ``x``."""
    np.subtract(x, np.max(x, axis, keepdims=True, initial=-np.inf), out)
    np.exp(out, out)
    np.divide(out, np.sum(out, axis, keepdims=True), out)


def log_softmax(x, axis, out):
    """Logarithm of softmax of one block."""
    np.subtract(x, np.max(x, axis, keepdims=True, initial=-np.inf), out)
    np.subtract(out, np.log(np.sum(np.exp(out), axis, keepdims=True)), out)


def hardmax(x, axis, out):
    """1 at the first maximum, else 0."""
    best = np.expand_dims(np.argmax(x, axis), axis)
    out[...] = 0
    np.put_along_axis(out, best, 1, axis)


@op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node) -> Kernel:
    x = node.spec(0)
    if x.dtype.kind != "f":
        raise DTypeError(f"the input must be floating point, got {x.dtype}")
    axis = node.axis(node.attr("axis", -1), x.ndim)
    function = {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": hardmax}[node.kind]
    threads = node.settings.n_threads

    def bind(ins, outs, scratch):
        a, out = np.moveaxis(ins[0], axis, -1), np.moveaxis(outs[0], axis, -1)
        return rows(lambda a, out: function(a, -1, out), a, out, threads)

    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,) if node.kind == "Softmax" else ())


def rows(function, x, out, n_threads):
    """A call of ``function(x, out)`` in blocks that keep the last axis whole."""
    if x.size <= blocks.BLOCK or x.ndim == 1:
        return lambda: function(x, out)
    longest = max(range(x.ndim - 1), key=lambda i: x.shape[i])
    x, out = np.moveaxis(x, longest, 0), np.moveaxis(out, longest, 0)
    step = max(1, blocks.BLOCK * x.shape[0] // x.size)
    pieces = [(x[i : i + step], out[i : i + step]) for i in range(0, x.shape[0], step)]
    return blocks.share(lambda i: function(*pieces[i]), len(pieces), n_threads if x.size >= blocks.PARALLEL else 1)


@op("CumSum", "CumProd")
def _cumulative(node: Node) -> Kernel:
    x, axis = node.spec(0), node.axis(int(node.scalar(1)), node.spec(0).ndim)
    exclusive, reverse = node.attr("exclusive", 0), node.attr("reverse", 0)
    ufunc, empty = (np.add, 0) if node.kind == "CumSum" else (np.multiply, 1)

    def run(a, *_):
        if reverse:
            a = np.flip(a, axis)
        total = ufunc.accumulate(a, axis, x.dtype)
        if exclusive:
            shifted = np.full_like(total, empty)
            shifted[at(axis, slice(1, None))] = total[at(axis, slice(None, -1))]
            total = shifted
        return np.flip(total, axis) if reverse else total

    return simple([Spec(x.shape, x.dtype)], run)


@op("TopK")
def _top_k(node: Node) -> Kernel:
    x, k = node.spec(0), int(node.scalar(1))
    axis = node.axis(node.attr("axis", -1), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"k must be in [0, {x.shape[axis]}], got {k}")
    largest = node.attr("largest", 1)
    shape = list(x.shape)
    shape[axis] = k

    def run(a, *_):
        # descending and stable, so that of equals the lower index comes first
        order = np.argsort(-a if largest and a.dtype.kind == "f" else a, axis, kind="stable")
        if largest and a.dtype.kind != "f":
            order = a.shape[axis] - 1 - np.flip(np.argsort(np.flip(a, axis), axis, kind="stable"), axis)
        order = np.take(order, np.arange(k), axis)
        return np.take_along_axis(a, order, axis), order

    if node.n_outputs == 1:
        return simple([Spec(shape, x.dtype)], lambda *ins: run(*ins)[0])
    return simple([Spec(shape, x.dtype), Spec(shape, np.int64)], run)


@op("LpNormalization")
def _lp_normalization(node: Node) -> Kernel:
    x, p = node.spec(0), node.attr("p", 2)
    axis = node.axis(node.attr("axis", -1), x.ndim)
    if p not in (1, 2):
        raise ModelFormatError(f"p must be 1 or 2, got {p}")

    def run(a):
        norm = np.sum(np.abs(a), axis, keepdims=True) if p == 1 else np.sqrt(np.sum(a * a, axis, keepdims=True))
        return np.divide(a, norm, np.zeros_like(a), where=norm != 0)

    return simple([Spec(x.shape, x.dtype)], run)
