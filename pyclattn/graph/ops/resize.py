"""Resize and grid sampling. Interpolation goes one axis after the other: weighted sums of a few neighbours."""

from __future__ import annotations

import math

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple

MODES = ("nearest", "linear", "cubic")


def source_positions(mode: str, n: int, out: int, scale: float, roi: tuple[float, float]) -> np.ndarray:
    """Where in an axis of length ``n`` each of ``out`` samples lies."""
    y = np.arange(out, dtype=np.float64)
    length = scale * n
    if abs(length - out) < 1e-6 * out:  # a ratio of whole numbers: positions that are whole come out whole
        length = float(out)
    if mode == "half_pixel":
        return (y + 0.5) * n / length - 0.5
    if mode == "pytorch_half_pixel":
        return (y + 0.5) * n / length - 0.5 if out > 1 else np.full(out, -0.5)
    if mode == "half_pixel_symmetric":
        return n / 2 * (1 - out / length) + (y + 0.5) * n / length - 0.5
    if mode == "align_corners":
        return y * (n - 1) / (length - 1) if length != 1 else np.zeros(out)
    if mode == "asymmetric":
        return y * n / length
    if mode == "tf_crop_and_resize":
        start, stop = roi
        if out > 1:
            return start * (n - 1) + y * (stop - start) * (n - 1) / (length - 1)
        return np.full(out, 0.5 * (start + stop) * (n - 1))
    raise ModelFormatError(f"coordinate_transformation_mode {mode!r} is not known")


def nearest(x: np.ndarray, mode: str) -> np.ndarray:
    """The whole position each sample takes."""
    if mode == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(x + 0.5)
    if mode in ("floor", "ceil"):
        return np.floor(x) if mode == "floor" else np.ceil(x)
    raise ModelFormatError(f"nearest_mode {mode!r} is not known")


def cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981)."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def taps(x: np.ndarray, n: int, mode: str, scale: float, antialias: bool, a: float, exclude: bool):
    """(index, weight), both (samples, taps): neighbours of each position and what they count."""
    reach = {"linear": 1, "cubic": 2}[mode]
    squeeze = min(scale, 1.0) if antialias else 1.0
    wide = math.ceil(reach / squeeze)
    base = np.floor(x)[:, None]
    index = base + np.arange(1 - wide, wide + 1)
    distance = (index - x[:, None]) * squeeze
    weight = cubic(distance, a) if mode == "cubic" else np.maximum(0, 1 - np.abs(distance))
    if exclude:
        weight = np.where((index < 0) | (index >= n), 0, weight)
    if exclude or antialias:
        weight = weight / weight.sum(1, keepdims=True)
    return np.clip(index, 0, n - 1).astype(np.int64), weight


def interpolate(x: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of neighbours along one axis."""
    weight = weight.astype(x.dtype)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    total = None
    for j in range(index.shape[1]):
        if not weight[:, j].any():
            continue
        part = np.take(x, index[:, j], axis)
        np.multiply(part, weight[:, j].reshape(shape), part)
        total = part if total is None else np.add(total, part, total)
    return np.take(x, index[:, 0], axis) * 0 if total is None else total


def _lengths(node: Node, x: Spec, axes: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """Output lengths and scales along ``axes``."""
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if node.has(3) and node.spec(3).size:
        sizes = node.ints(3)
        if len(sizes) != len(axes):
            raise ShapeError(f"sizes must have {len(axes)} numbers, got {sizes}")
        scales = [s / x.shape[a] for s, a in zip(sizes, axes)]
        if policy in ("not_larger", "not_smaller"):
            scale = (min if policy == "not_larger" else max)(scales)
            scales = [scale] * len(axes)
            sizes = [int(scale * x.shape[a] + 0.5) for a in axes]
        return sizes, scales
    if not node.has(2):
        raise ModelFormatError("scales or sizes must be given")
    scales = [float(s) for s in node.value(2).reshape(-1)]
    if len(scales) != len(axes) or min(scales) <= 0:
        raise ShapeError(f"scales must be {len(axes)} positive numbers, got {scales}")
    return [math.floor(x.shape[a] * s) for a, s in zip(axes, scales)], scales


@op("Resize", "Upsample")
def _resize(node: Node) -> Kernel:
    if node.kind == "Upsample":
        node.op = type(node.op)("Resize", (node.op.inputs[0], "", node.op.inputs[1]), node.op.outputs,
                                {**node.op.attributes, "coordinate_transformation_mode": "asymmetric",
                                 "nearest_mode": "floor"}, node.op.name)  # fmt: skip
        node.specs = [node.specs[0], False, node.specs[1]]
    x = node.spec(0)
    axes = node.axes(node.attr("axes", list(range(x.ndim))), x.ndim)
    sizes, scales = _lengths(node, x, axes)
    mode, where = node.attr("mode", "nearest"), node.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in MODES:
        raise ModelFormatError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    crop = where == "tf_crop_and_resize"
    roi = [float(v) for v in node.value(1)] if crop else [0.0] * len(axes) + [1.0] * len(axes)
    shape = list(x.shape)
    parts, outside = [], []
    for i, (axis, out, scale) in enumerate(zip(axes, sizes, scales)):
        n = x.shape[axis]
        shape[axis] = out
        if out == n and scale == 1 and not crop:
            continue
        at = source_positions(where, n, out, scale, (roi[i], roi[i + len(axes)]))
        if crop:
            outside.append((axis, (at < 0) | (at > n - 1)))
        if mode == "nearest":
            index = np.clip(nearest(at, node.attr("nearest_mode", "round_prefer_floor")), 0, n - 1)
            parts.append((axis, index.astype(np.int64)[:, None], None))
        else:
            a, exclude = node.attr("cubic_coeff_a", -0.75), bool(node.attr("exclude_outside", 0))
            parts.append((axis, *taps(at, n, mode, scale, bool(node.attr("antialias", 0)), a, exclude)))
    parts.sort(key=lambda p: len(p[1]) / x.shape[p[0]])  # shrink first
    fill = node.attr("extrapolation_value", 0.0)

    if not parts:
        return simple([Spec(shape, x.dtype)], lambda a, *_: a)

    def piece(a, rows):
        """The output at some places of the first axis that is resized."""
        for i, (axis, index, weight) in enumerate(parts):
            if i == 0:
                index, weight = index[rows], None if weight is None else weight[rows]
            a = np.take(a, index[:, 0], axis) if weight is None else interpolate(a, axis, index, weight)
        for axis, mask in outside:
            a[(slice(None),) * axis + (mask[rows] if axis == parts[0][0] else mask,)] = fill
        if a.dtype != x.dtype and x.dtype.kind in "iu":
            limits = np.iinfo(x.dtype)
            a = np.clip(np.rint(a), limits.min, limits.max)
        return a

    return _in_pieces(piece, parts[0][0], x, Spec(shape, x.dtype), mode != "nearest", node.settings.n_threads)


def _in_pieces(piece, axis: int, x: Spec, out: Spec, is_weighted: bool, n_threads: int) -> Kernel:
    """The kernel that fills its output by ``piece(input, places of the axis)``, in pieces that stay in cache."""
    n = out.shape[axis]
    step = max(1, blocks.BLOCK * n // max(1, out.size))
    n_pieces = -(-n // step)
    as_float = is_weighted and x.dtype.kind != "f"

    def bind(ins, outs, scratch):
        result = outs[0]

        def run():
            a = ins[0].astype(np.float32) if as_float else ins[0]

            def fill(i):
                rows = slice(i * step, (i + 1) * step)
                result[(slice(None),) * axis + (rows,)] = piece(a, rows)

            blocks.share(fill, n_pieces, n_threads if out.size >= blocks.PARALLEL else 1)()

        return run

    row = max(out.size // max(1, n), x.size // max(1, x.shape[axis]))
    held = 3 * step * row * max(4, x.dtype.itemsize) * min(n_threads, n_pieces)  # what is taken, its product, the sum
    return Kernel([out], bind, transient=held + (4 * x.size if as_float else 0))


@op("GridSample")
def _grid_sample(node: Node) -> Kernel:
    x, grid = node.spec(0), node.spec(1)
    mode, border = node.attr("mode", "linear"), node.attr("padding_mode", "zeros")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    corners = bool(node.attr("align_corners", 0))
    d = x.ndim - 2
    if grid.shape[-1] != d or grid.ndim != x.ndim:
        raise ShapeError(f"a grid for {x.shape} must have shape (N, ..., {d}), got {grid.shape}")
    shape = x.shape[:2] + grid.shape[1:-1]

    def run(a, places):
        result = np.zeros(shape, np.float64)
        at = []
        for i in range(d):
            n = x.shape[2 + i]
            p = places[..., d - 1 - i].astype(np.float64)
            p = (p + 1) / 2 * (n - 1) if corners else ((p + 1) * n - 1) / 2
            at.append(p if border == "zeros" or mode == "cubic" else _inside(p, n, border, corners))
        per_axis = []
        for p in at:
            if mode == "nearest":
                per_axis.append([(np.rint(p), np.ones_like(p))])
                continue
            reach = 1 if mode == "linear" else 2
            base = np.floor(p)
            offsets = range(1 - reach, reach + 1)
            weights = [1 - np.abs(base + o - p) if reach == 1 else cubic(base + o - p, -0.75) for o in offsets]
            per_axis.append([(base + o, w) for o, w in zip(offsets, weights)])
        for combination in _product(per_axis):
            weight, index = np.ones(shape[:1] + shape[2:]), []
            for i, (p, w) in enumerate(combination):
                n = x.shape[2 + i]
                weight = weight * w
                if border == "zeros":
                    weight = np.where((p < 0) | (p >= n), 0, weight)
                else:
                    p = _inside(p, n, border, corners)
                index.append(np.clip(p, 0, n - 1).astype(np.int64))
            batch = np.arange(x.shape[0]).reshape(-1, *(1,) * d)
            picked = a[(batch, slice(None)) + tuple(index)]  # (N, ..., C)
            result += np.moveaxis(picked * weight[..., None], -1, 1)
        return result

    kernel = simple([Spec(shape, x.dtype)], run)
    kernel.transient += 4 * kernel.outputs[0].nbytes
    return kernel


def _inside(p: np.ndarray, n: int, border: str, corners: bool) -> np.ndarray:
    """Positions brought into an axis of length ``n``."""
    if border == "border":
        return np.clip(p, 0, n - 1)
    if border != "reflection":
        raise ModelFormatError(f"padding_mode must be zeros, border or reflection, got {border!r}")
    low, high = (0, n - 1) if corners else (-0.5, n - 0.5)
    span = high - low
    if span == 0:
        return np.zeros_like(p)
    t = np.abs(p - low) % (2 * span)
    return low + np.where(t > span, 2 * span - t, t)


def _product(per_axis):
    if not per_axis:
        yield []
        return
    for first in per_axis[0]:
        for rest in _product(per_axis[1:]):
            yield [first, *rest]
