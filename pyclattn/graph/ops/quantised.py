"""Quantised operators. Products of 8-bit matrices are exact: by int8 tiles where the right one is a packed weight, else
through float32 products of few terms."""

from __future__ import annotations

import numpy as np

from pyclattn._blas import single
from pyclattn.errors import DTypeError, ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.conv import convolution
from pyclattn.graph.ops.linear import SPLIT, general_matmul
from pyclattn.graph.ops.registry import element_type, op
from pyclattn.graph.ops.windows import padded, sliding, window
from pyclattn.graph.spec import Kernel, Node, Spec, broadcast, simple

# 256 products of numbers up to 255 stay below 2^24, where float32 holds every whole number.
EXACT_TERMS = 256
INT32_DEPTH = (2**31 - 1) // 255**2  # so many products of numbers up to 255 fit in an int32


def along(array: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A vector of parameters shaped to broadcast along ``axis``; a single number stays one."""
    array = np.asarray(array)
    if array.size == 1:
        return array.reshape(())
    return array.reshape([-1 if i == axis else 1 for i in range(ndim)]) if array.ndim == 1 else array


def spread(array: np.ndarray, axis: int, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Scale or zero point of blocks along ``axis`` (block > 0), of an axis, or of the whole, for data of ``shape``."""
    if block and array.ndim == len(shape):
        return np.repeat(array, block, axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
    return along(array, axis, len(shape))


def quantise(x: np.ndarray, scale, zero, dtype: np.dtype) -> np.ndarray:
    """round(x / scale) + zero, ties to even, cut to the type's range."""
    limits = np.iinfo(dtype)
    y = np.divide(x, scale, dtype=np.float32 if x.dtype != np.float64 else None)
    np.rint(y, y)
    if np.ndim(zero) or zero:
        y = y + np.asarray(zero, y.dtype)
    return np.clip(y, limits.min, limits.max, y).astype(dtype)


def _scale_shape(node: Node, x: Spec, axis: int) -> None:
    scale = node.spec(1)
    if scale.size != 1 and scale.ndim == 1 and scale.size != x.shape[axis]:
        raise ShapeError(f"the scale must have one element or {x.shape[axis]}, got {scale.shape}")


@op("QuantizeLinear", "com.microsoft:QuantizeLinear")
def _quantize_linear(node: Node) -> Kernel:
    x, block = node.spec(0), node.attr("block_size", 0)
    axis = node.attr("axis", 1)
    axis = node.axis(axis, x.ndim) if node.spec(1).size > 1 else 0
    _scale_shape(node, x, axis)
    named = node.attr("output_dtype", None)
    dtype = node.dtype(2) if node.has(2) else element_type(named) if named else np.dtype(np.uint8)
    if dtype.kind not in "iu":
        raise DTypeError(f"the output type must be a whole number, got {dtype}")

    def run(a, scale, zero=None):
        if a.dtype.kind in "iu":
            a = a.astype(np.float32)
        zero = 0 if zero is None else spread(zero, axis, block, x.shape)
        return quantise(a, spread(scale, axis, block, x.shape), zero, dtype)

    kernel = simple([Spec(x.shape, dtype)], run)
    kernel.transient += 4 * x.size
    return kernel


@op("DequantizeLinear", "com.microsoft:DequantizeLinear")
def _dequantize_linear(node: Node) -> Kernel:
    x, block = node.spec(0), node.attr("block_size", 0)
    axis = node.axis(node.attr("axis", 1), x.ndim) if node.spec(1).size > 1 else 0
    _scale_shape(node, x, axis)
    dtype = node.dtype(1)
    if node.has(2):
        node.spec(2)

    def bind(ins, outs, scratch):
        def run():
            out = outs[0]
            if node.has(2):
                zero = spread(ins[2], axis, block, x.shape)
                np.subtract(ins[0], zero.astype(dtype), out, dtype=dtype, casting="unsafe")
            else:
                np.copyto(out, ins[0], casting="unsafe")
            np.multiply(out, spread(ins[1], axis, block, x.shape), out)

        return run

    return Kernel([Spec(x.shape, dtype)], bind)


@op("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node) -> Kernel:
    x = node.spec(0)

    def bind(ins, outs, scratch):
        def run():
            y, scale, zero = dynamic_quantise(ins[0])
            for out, value in zip(outs, (y, scale, zero)):
                if out is not None:
                    out[...] = value

        return run

    return Kernel([Spec(x.shape, np.uint8), Spec((), np.float32), Spec((), np.uint8)], bind, transient=5 * x.size)


def dynamic_quantise(x: np.ndarray) -> tuple[np.ndarray, np.float32, np.uint8]:
    """(uint8, scale, zero point) of an array by its own range, which is made to hold 0."""
    low = min(float(x.min(initial=0)), 0.0)
    high = max(float(x.max(initial=0)), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    if scale == 0:
        scale = np.float32(1)
    zero = np.uint8(np.clip(np.rint(np.float32(0 - np.float32(low)) / scale), 0, 255))
    return quantise(x, scale, int(zero), np.dtype(np.uint8)), scale, zero


def integer_matmul(a, b, zero_a=None, zero_b=None, n_threads: int = 1, weight: Spec | None = None) -> np.ndarray:
    """(a - zero_a) @ (b - zero_b), exact, as int32, or int64 where the sums could pass it.

    ``zero_a``: one number, or one a row; ``zero_b``: one number, or one a column. ``weight``: the spec of b, which is
    not looked at if that is packed.
    """
    if weight is not None and weight.packed is not None:
        return _by_tile(a, weight, zero_a, zero_b, n_threads)
    k = a.shape[-1]
    shape = broadcast(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1])
    total = np.zeros(shape, np.int32 if k <= INT32_DEPTH else np.int64)

    def minus(x, zero):
        x = x.astype(np.float32)
        if zero is not None and np.any(zero):
            x -= np.asarray(zero, np.float32)
        return x

    def columns(j: int, width: int) -> None:
        for i in range(0, k, EXACT_TERMS):
            left = minus(a[..., i : i + EXACT_TERMS], _part(zero_a, -1, i))
            right = minus(b[..., i : i + EXACT_TERMS, j : j + width], _columns(zero_b, j, width))
            total[..., j : j + width] += np.matmul(left, right).astype(np.int32)

    n = b.shape[-1]
    threads = n_threads if single.works and a.size * n >= SPLIT else 1
    width = max(1, -(-n // threads))
    starts = range(0, n, width)
    blocks.share(lambda t: columns(starts[t], width), len(starts), threads)()
    return total


def _by_tile(a: np.ndarray, weight: Spec, zero_a, zero_b, n_threads: int) -> np.ndarray:
    """The same on a packed weight: sums of what is stored, then what the zero points add to them.

    int32 wraps around on the way; the result fits.
    """
    packed, depth = weight.packed, a.shape[-1]
    if depth != weight.shape[0]:
        raise ShapeError(f"cannot multiply {a.shape} by {weight.shape}")
    rows = a.reshape(-1, depth)
    codes = rows if rows.dtype == np.uint8 else rows.view(np.uint8) ^ np.uint8(128)
    total = packed.bind_sums(codes, n_threads=n_threads)().reshape(*a.shape[:-1], weight.shape[1])
    zero_a = _int32(zero_a) + np.int32(0 if a.dtype == np.uint8 else 128)
    zero_b = _int32(zero_b) - np.int32(128 if weight.dtype == np.uint8 else 0)
    if np.any(zero_a):
        column_sums = packed.offsets[: weight.shape[1]] // 128
        total -= zero_a * (column_sums - np.int32(depth) * zero_b)
    if np.any(zero_b):
        total -= codes.sum(axis=1, dtype=np.int32).reshape(*a.shape[:-1], 1) * zero_b
    return total


def _int32(zero) -> np.ndarray:
    return np.asarray(0 if zero is None else zero, np.int32)


def with_product(kernel: Kernel, a: Spec, b: Spec, n_threads: int) -> Kernel:
    """A kernel whose call is an `integer_matmul` and the scaling of its result, with what these allocate."""
    k, size = max(1, a.shape[-1]), kernel.outputs[0].size
    of_a_block = (a.size // k * n_threads + b.size // k) * min(k, EXACT_TERMS)
    kernel.transient = 4 * (3 * size + of_a_block)  # sums, a block's product as float32 and int32; its two matrices
    return kernel


def _part(zero, axis: int, start: int):
    """The zero points of a block of terms, where they differ along these."""
    if zero is None or np.ndim(zero) == 0 or zero.shape[axis] == 1:
        return zero
    return zero[..., start : start + EXACT_TERMS]


def _columns(zero, start: int, width: int):
    if zero is None or np.ndim(zero) == 0 or zero.shape[-1] == 1:
        return zero
    return zero[..., start : start + width]


def row_zero(zero: np.ndarray | None):
    """Zero points of the left matrix: (M,) means one a row."""
    if zero is None or zero.size == 1:
        return None if zero is None else zero.reshape(())
    return zero[:, None] if zero.ndim == 1 else zero


def column_zero(zero: np.ndarray | None):
    if zero is None or zero.size == 1:
        return None if zero is None else zero.reshape(())
    return zero


def product_shape(a: Spec, b: Spec) -> tuple[int, ...]:
    return general_matmul(a, b, 1.0, 1).outputs[0].shape


def _matrices(a: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    return (a[None] if a.ndim == 1 else a), (b[:, None] if b is not None and b.ndim == 1 else b)


@op("MatMulInteger")
def _matmul_integer(node: Node) -> Kernel:
    a, b, threads = node.spec(0), node.spec(1), node.settings.n_threads
    out = Spec(product_shape(a, b), np.int32)
    for i in (2, 3):
        if node.has(i):
            node.spec(i)

    def run(*ins):
        x, y, zero_x, zero_y = (*ins, None, None)[:4]
        x, y = _matrices(x, y)
        return integer_matmul(x, y, row_zero(zero_x), column_zero(zero_y), threads, b).reshape(out.shape)

    return with_product(simple([out], run), a, b, threads)


@op("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Kernel:
    a, b, threads = node.spec(0), node.spec(3), node.settings.n_threads
    out = Spec(product_shape(a, b), node.dtype(7))
    for i in range(8):
        node.spec(i)

    def run(x, scale_x, zero_x, y, scale_y, zero_y, scale_out, zero_out):
        scale_x, (left, right) = row_zero(scale_x), _matrices(x, y)
        product = integer_matmul(left, right, row_zero(zero_x), column_zero(zero_y), threads, b)
        product = product.astype(np.float32)
        factor = scale_x * column_zero(scale_y) / row_zero(scale_out)
        y_out = np.rint(product * np.asarray(factor, np.float32)) + np.asarray(row_zero(zero_out), np.float32)
        limits = np.iinfo(out.dtype)
        return np.clip(y_out, limits.min, limits.max).astype(out.dtype).reshape(out.shape)

    return with_product(simple([out], run), a, b, threads)


def _integer_convolution(x, weight, zero_x, zero_w, w, groups: int) -> np.ndarray:
    """Exact integer convolution as int32, an image at a time."""
    outputs = w.outputs(x.shape[2:])
    m, c = weight.shape[0] // groups, weight.shape[1]
    weight = weight.astype(np.int32)
    if zero_w is not None and np.any(zero_w):
        weight -= np.asarray(zero_w, np.int32).reshape(-1, *(1,) * (weight.ndim - 1))
    k = c * int(np.prod(w.kernel))
    weight = weight.reshape(groups, m, k)
    result = np.empty((x.shape[0], weight.shape[0] * m, *outputs), np.int32)
    for n in range(x.shape[0]):
        image = x[n].astype(np.int32) - (0 if zero_x is None else int(np.asarray(zero_x).reshape(())))
        views = sliding(padded(image, w.begin, w.end, 0).reshape(groups, c, *_space(x, w)), w, outputs)
        for g in range(groups):
            columns = views[g].reshape(k, -1)
            result[n, g * m : (g + 1) * m] = integer_matmul(weight[g], columns).reshape(m, *outputs)
    return result


def _space(x: np.ndarray, w) -> tuple[int, ...]:
    return tuple(n + b + e for n, b, e in zip(x.shape[2:], w.begin, w.end))


@op("ConvInteger")
def _conv_integer(node: Node) -> Kernel:
    x, weight, groups = node.spec(0), node.spec(1), node.attr("group", 1)
    w = window(node, x.shape[2:], tuple(weight.shape[2:]))
    shape = convolution(x, weight, w, groups, False, node).outputs[0].shape
    for i in (2, 3):
        if node.has(i):
            node.spec(i)

    def run(*ins):
        a, b, zero_a, zero_b = (*ins, None, None)[:4]
        return _integer_convolution(a, b, zero_a, zero_b, w, groups)

    return simple([Spec(shape, np.int32)], run)


@op("QLinearConv", "com.microsoft:QLinearConv")
def _qlinear_conv(node: Node) -> Kernel:
    x, weight, groups = node.spec(0), node.spec(3), node.attr("group", 1)
    if node.attr("channels_last", 0):
        raise ModelFormatError("QLinearConv with channels_last is not supported")
    w = window(node, x.shape[2:], tuple(weight.shape[2:]))
    shape = convolution(x, weight, w, groups, False, node).outputs[0].shape
    dtype = node.dtype(7)
    for i in range(9):
        if node.has(i):
            node.spec(i)

    def run(a, scale_a, zero_a, b, scale_b, zero_b, scale_out, zero_out, bias=None):
        column = (-1, *(1,) * (x.ndim - 2))
        product = _integer_convolution(a, b, zero_a, zero_b, w, groups)
        if bias is not None:
            product += bias.reshape(column)
        factor = np.asarray(scale_a * scale_b / scale_out, np.float32)
        factor = factor.reshape(column) if factor.size > 1 else factor.reshape(())
        y = np.rint(product * factor) + np.float32(zero_out.reshape(()))
        limits = np.iinfo(dtype)
        return np.clip(y, limits.min, limits.max).astype(dtype)

    return simple([Spec(shape, dtype)], run)
