"""Pools: a reduction under a sliding window."""

from __future__ import annotations

from itertools import product as every

import numpy as np

from pyclattn.errors import ShapeError
from pyclattn.graph.ops.registry import op
from pyclattn.graph.ops.windows import Window, padded, sliding, window
from pyclattn.graph.spec import Kernel, Node, Spec, at, simple


def _windows(node: Node) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """(window, outputs, padding behind as far as the last window reaches)."""
    spatial = node.shape(0)[2:]
    w = window(node, spatial, tuple(node.attr("kernel_shape")))
    outputs = w.outputs(spatial, bool(node.attr("ceil_mode", 0)))
    reach = [
        max(e, (o - 1) * s + extent - n - b)
        for o, s, extent, n, b, e in zip(outputs, w.strides, w.extent, spatial, w.begin, w.end)
    ]
    return w, outputs, tuple(reach)


def _lowest(dtype: np.dtype):
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


@op("MaxPool")
def _max_pool(node: Node) -> Kernel:
    x = node.spec(0)
    w, outputs, reach = _windows(node)
    out = Spec(x.shape[:2] + outputs, x.dtype)
    d = len(outputs)

    def run(a):
        views = sliding(padded(a, w.begin, reach, _lowest(x.dtype)), w, outputs)
        result = np.full(out.shape, _lowest(x.dtype), x.dtype)
        for place in every(*(range(k) for k in w.kernel)):
            np.maximum(result, views[at(2, *place)], out=result)
        if not node.wants(1):
            return result
        flat = views.transpose(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d)).reshape(*out.shape, -1)
        best = np.unravel_index(np.argmax(flat, -1), w.kernel)
        index = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * d)
        spatial = list(x.shape[2:])
        places = [
            np.arange(o).reshape([-1 if i == j else 1 for j in range(d)]) * s + b * dil - p
            for i, (o, s, b, dil, p) in enumerate(zip(outputs, w.strides, best, w.dilations, w.begin))
        ]
        axes = range(d) if not node.attr("storage_order", 0) else range(d - 1, -1, -1)
        for i in axes:
            index = index * spatial[i] + places[i]
        return result, index

    if node.wants(1):
        return simple([out, Spec(out.shape, np.int64)], run)
    kernel = simple([out], run)
    kernel.transient += 2 * x.nbytes
    return kernel


@op("AveragePool", "LpPool")
def _average_pool(node: Node) -> Kernel:
    x = node.spec(0)
    w, outputs, reach = _windows(node)
    out = Spec(x.shape[:2] + outputs, x.dtype)
    p = node.attr("p", 2)
    spatial = x.shape[2:]
    ones = padded(np.ones(spatial, x.dtype), w.begin, w.end, 1 if node.attr("count_include_pad", 0) else 0)
    behind = [r - e for r, e in zip(reach, w.end)]
    ones = padded(ones, (0,) * len(spatial), behind, 0)
    count = sliding(ones, w, outputs).sum(tuple(range(len(spatial))))

    def run(a):
        views = sliding(padded(a, w.begin, reach, 0), w, outputs)
        result = np.zeros(out.shape, x.dtype)
        for place in every(*(range(k) for k in w.kernel)):
            part = views[at(2, *place)]
            result += part if node.kind == "AveragePool" else np.abs(part) ** p
        return result / count if node.kind == "AveragePool" else result ** (1 / p)

    kernel = simple([out], run)
    kernel.transient += 2 * x.nbytes
    return kernel


@op("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Kernel:
    x = node.spec(0)
    if x.ndim < 3:
        raise ShapeError(f"the input must have at least three dimensions, got {x.shape}")
    axes = tuple(range(2, x.ndim))
    function = np.mean if node.kind == "GlobalAveragePool" else np.max
    return simple([Spec(x.shape[:2] + (1,) * len(axes), x.dtype)], lambda a: function(a, axes, keepdims=True))
