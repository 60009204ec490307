"""Operators that read or write at computed places."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, at, simple, view


def check_bounds(index: np.ndarray, n: int) -> None:
    """Raise unless all indices are in [-n, n)."""
    if index.size and (int(index.max()) >= n or int(index.min()) < -n):
        worst = int(index.max()) if int(index.max()) >= n else int(index.min())
        raise ShapeError(f"index {worst} is beyond a table of {n} rows")


@op("Gather")
def _gather(node: Node) -> Kernel:
    x, index = node.spec(0), node.spec(1)
    axis = node.axis(node.attr("axis", 0), x.ndim)
    n = x.shape[axis]
    if node.known(1):
        where = node.value(1)
        check_bounds(where, n)
        if where.ndim == 0:
            place = (*at(axis, int(where)), ...)  # with ..., a view even of a vector
            return view(node, lambda a: a[place])
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
    known = node.known(1)

    def bind(ins, outs, scratch):
        table, where, out = ins[0], ins[1], outs[0]

        def run():
            places = where
            if not known:
                check_bounds(where, n)
            if where.size and where.min() < 0:
                places = np.where(where < 0, where + n, where)
            np.take(table, places, axis, out, mode="clip")  # checked; with "raise" NumPy would buffer

        return run

    return Kernel([Spec(shape, x.dtype)], bind)


@op("GatherElements")
def _gather_elements(node: Node) -> Kernel:
    x, index = node.spec(0), node.spec(1)
    axis = node.axis(node.attr("axis", 0), x.ndim)
    if index.ndim != x.ndim:
        raise ShapeError(f"the indices must have {x.ndim} dimensions, got {index.shape}")
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape))

    def run(a, where):
        if where.size and not any(where.strides[axis + 1 :]):  # one index, expanded: rows as a whole
            where = where[at(axis + 1, *(0,) * (a.ndim - axis - 1))]
            check_bounds(where, a.shape[axis])
            return a[cut][tuple(_grid(where.shape, axis)) + (where,)]
        check_bounds(where, a.shape[axis])
        return np.take_along_axis(a[cut], where, axis)

    return simple([Spec(index.shape, x.dtype)], run)


@op("GatherND")
def _gather_nd(node: Node) -> Kernel:
    x, index, b = node.spec(0), node.spec(1), node.attr("batch_dims", 0)
    k = index.shape[-1]
    if b + k > x.ndim or x.shape[:b] != index.shape[:b]:
        raise ShapeError(f"indices of shape {index.shape} do not fit data of shape {x.shape}")

    def run(a, where):
        for i in range(k):
            check_bounds(where[..., i], a.shape[b + i])
        return a[tuple(_grid(index.shape[:-1], b)) + tuple(np.moveaxis(where, -1, 0))]

    return simple([Spec(index.shape[:-1] + x.shape[b + k :], x.dtype)], run)


def _grid(shape: tuple[int, ...], n: int) -> list[np.ndarray]:
    """Indices of the first ``n`` axes of an array of ``shape``, ready to broadcast."""
    return [np.arange(shape[i]).reshape([-1 if j == i else 1 for j in range(len(shape))]) for i in range(n)]


_AT = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _combine(node: Node):
    name = node.attr("reduction", "none")
    if name != "none" and name not in _AT:
        raise ModelFormatError(f"reduction must be none, add, mul, max or min, got {name!r}")
    return None if name == "none" else _AT[name].at


def _scatter_into(node: Node, index_of) -> Kernel:
    """Copy input 0 and write input 2 at ``index_of(input 1)``."""
    x, combine = node.spec(0), _combine(node)
    node.spec(2)

    def bind(ins, outs, scratch):
        data, where, updates, out = ins[0], ins[1], ins[2], outs[0]

        def run():
            places = index_of(where)
            if out is not data:
                np.copyto(out, data)
            if combine is None:
                out[places] = updates
            else:
                combine(out, places, updates)

        return run

    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,))


@op("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Kernel:
    x, index = node.spec(0), node.spec(1)
    axis = node.axis(node.attr("axis", 0), x.ndim)

    def index_of(where):
        check_bounds(where, x.shape[axis])
        grid = _grid(index.shape, x.ndim)
        grid[axis] = where
        return tuple(grid)

    return _scatter_into(node, index_of)


@op("ScatterND")
def _scatter_nd(node: Node) -> Kernel:
    x, index = node.spec(0), node.spec(1)
    k = index.shape[-1]
    if k > x.ndim:
        raise ShapeError(f"indices of shape {index.shape} do not fit data of shape {x.shape}")

    def index_of(where):
        for i in range(k):
            check_bounds(where[..., i], x.shape[i])
        return tuple(np.moveaxis(where, -1, 0))

    return _scatter_into(node, index_of)


@op("TensorScatter")
def _tensor_scatter(node: Node) -> Kernel:
    x, update = node.spec(0), node.spec(1)
    axis = node.axis(node.attr("axis", -2), x.ndim)
    circular = node.attr("mode", "linear") == "circular"
    if axis == 0:
        raise ShapeError("the axis of TensorScatter must not be the batch axis")
    n, new = x.shape[axis], update.shape[axis]

    def bind(ins, outs, scratch):
        def run():
            if outs[0] is not ins[0]:
                np.copyto(outs[0], ins[0])
            starts = ins[2] if node.has(2) else np.zeros(x.shape[0], np.int64)
            for b, start in enumerate(starts):
                places = (int(start) + np.arange(new)) % n if circular else int(start) + np.arange(new)
                check_bounds(places, n)
                np.moveaxis(outs[0][b], axis - 1, 0)[places] = np.moveaxis(ins[1][b], axis - 1, 0)

        return run

    if node.has(2):
        node.spec(2)
    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,))


@op("OneHot")
def _one_hot(node: Node) -> Kernel:
    index, depth, values = node.spec(0), int(node.scalar(1)), node.spec(2)
    axis = node.axis(node.attr("axis", -1), index.ndim + 1)
    shape = index.shape[:axis] + (depth,) + index.shape[axis:]

    def run(where, _, pair):
        where = where.astype(np.int64)
        where = np.expand_dims(np.where(where < 0, where + depth, where), axis)
        grid = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return np.where(where == grid, pair[1], pair[0])

    return simple([Spec(shape, values.dtype)], run)


@op("ReverseSequence")
def _reverse_sequence(node: Node) -> Kernel:
    x = node.spec(0)
    time, batch = node.attr("time_axis", 0), node.attr("batch_axis", 1)
    node.spec(1)

    def run(a, lengths):
        out = a.copy()
        source, target = np.moveaxis(a, (batch, time), (0, 1)), np.moveaxis(out, (batch, time), (0, 1))
        for b, n in enumerate(lengths):
            target[b, :n] = source[b, :n][::-1]
        return out

    return simple([Spec(x.shape, x.dtype)], run)
