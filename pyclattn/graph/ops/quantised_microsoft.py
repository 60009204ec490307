"""Quantised operators that ONNX Runtime's quantiser makes, by the definitions in its contrib documentation."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.graph.ops.quantised import (
    column_zero,
    dynamic_quantise,
    integer_matmul,
    product_shape,
    quantise,
    row_zero,
    with_product,
)
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, broadcast, simple


def _product(node: Node) -> tuple[Spec, Spec, Spec, int]:
    """Both matrices, their product in float32, and the threads; scales, zeros and bias are known then, too."""
    a, b, *_ = [node.spec(i) for i in range(node.n_inputs) if i < 2 or node.has(i)]
    return a, b, Spec(product_shape(a, b), np.float32), node.settings.n_threads


@op("com.microsoft:MatMulIntegerToFloat")
def _matmul_integer_to_float(node: Node) -> Kernel:
    """a, b, scale of a, scale of b, zero of a, zero of b, bias."""
    a, b, out, threads = _product(node)

    def run(*ins):
        x, y, scale_x, scale_y, zero_x, zero_y, bias = (*ins, None, None, None)[:7]
        product = integer_matmul(x, y, row_zero(zero_x), column_zero(zero_y), threads, b).astype(np.float32)
        product *= np.asarray(scale_x.reshape(()) * scale_y, np.float32)
        return product if bias is None else product + bias

    return with_product(simple([out], run), a, b, threads)


@op("com.microsoft:DynamicQuantizeMatMul")
def _dynamic_quantize_matmul(node: Node) -> Kernel:
    """a (float), b, scale of b, zero of b, bias."""
    a, b, out, threads = _product(node)

    def run(*ins):
        x, y, scale_y, zero_y, bias = (*ins, None, None)[:5]
        x, scale, zero = dynamic_quantise(x)
        product = integer_matmul(x, y, zero, column_zero(zero_y), threads, b).astype(np.float32)
        product *= np.asarray(scale * scale_y, np.float32)
        return product if bias is None else product + bias

    kernel = with_product(simple([out], run), a, b, threads)
    kernel.transient += 5 * a.size
    return kernel


def _dequantised(x, scale, zero) -> np.ndarray:
    x = x.astype(np.float32)
    if zero is not None:
        x -= np.asarray(zero, np.float32)
    return x * scale


@op("com.microsoft:QLinearAdd", "com.microsoft:QLinearMul")
def _qlinear_binary(node: Node) -> Kernel:
    """a, scale, zero, b, scale, zero, scale of the output, its zero."""
    shape = broadcast(node.shape(0), node.shape(3))
    dtype, ufunc = node.dtype(0), np.add if node.kind.endswith("Add") else np.multiply

    def run(*ins):
        a, scale_a, zero_a, b, scale_b, zero_b, scale, zero = (*ins, None)[:8]
        y = ufunc(_dequantised(a, scale_a, zero_a), _dequantised(b, scale_b, zero_b))
        return quantise(y, scale, 0 if zero is None else zero, dtype)

    return simple([Spec(shape, dtype)], run)


@op("com.microsoft:QLinearSigmoid", "com.microsoft:QLinearLeakyRelu", "com.microsoft:QLinearSoftmax",
    "com.microsoft:QLinearGlobalAveragePool")  # fmt: skip
def _qlinear_unary(node: Node) -> Kernel:
    """x, scale, zero, scale of the output, its zero."""
    x, shape, name = node.spec(0), node.shape(0), node.kind.rpartition("QLinear")[2]
    if name == "GlobalAveragePool":
        if node.attr("channels_last", 0):
            raise ModelFormatError("QLinearGlobalAveragePool with channels_last is not supported")
        shape = shape[:2] + (1,) * (len(shape) - 2)
    alpha, axis = node.attr("alpha", 0.01), node.attr("axis", -1)
    for i in range(1, node.n_inputs):
        if node.has(i):
            node.spec(i)

    def run(*ins):
        a, scale_a, zero_a, scale, zero = (*ins, None)[:5]
        y = _dequantised(a, scale_a, zero_a)
        if name == "Sigmoid":
            y = 1 / (1 + np.exp(-y))
        elif name == "LeakyRelu":
            y = np.where(y < 0, y * np.float32(alpha), y)
        elif name == "Softmax":
            y = np.exp(y - y.max(axis, keepdims=True))
            y /= y.sum(axis, keepdims=True)
        else:
            y = y.mean(tuple(range(2, y.ndim)), keepdims=True)
        return quantise(y, scale, 0 if zero is None else zero, x.dtype)

    return simple([Spec(shape, x.dtype)], run)


@op("com.microsoft:QLinearConcat")
def _qlinear_concat(node: Node) -> Kernel:
    """Scale and zero of the output, then (x, scale, zero) of each input."""
    parts = [node.spec(i) for i in range(2, node.n_inputs, 3)]
    axis = node.axis(node.attr("axis"), parts[0].ndim)
    shape = list(parts[0].shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    dtype = node.dtype(1)

    def run(scale, zero, *rest):
        groups = [rest[i : i + 3] for i in range(0, len(rest), 3)]
        return quantise(np.concatenate([_dequantised(*g) for g in groups], axis), scale, zero, dtype)

    return simple([Spec(shape, dtype)], run)


@op("com.microsoft:QGemm")
def _qgemm(node: Node) -> Kernel:
    """a, scale, zero, b, scale, zero, bias (int32), scale of the output, its zero; without these float32."""
    a, b = node.spec(0), node.spec(3)
    flip_a, flip_b, alpha = node.attr("transA", 0), node.attr("transB", 0), node.attr("alpha", 1.0)
    m, n = a.shape[1 if flip_a else 0], b.shape[0 if flip_b else 1]
    is_float, threads = not node.has(7), node.settings.n_threads
    dtype = np.dtype(np.float32) if is_float else node.dtype(8) if node.has(8) else a.dtype

    def run(*ins):
        x, scale_x, zero_x, y, scale_y, zero_y, bias, scale, zero = (*ins, None, None, None)[:9]
        x, y = x.T if flip_a else x, y.T if flip_b else y
        product = integer_matmul(x, y, zero_x, column_zero(zero_y), threads)
        if bias is not None:
            product = product + bias
        result = product * np.asarray(np.float32(alpha) * scale_x * scale_y, np.float32)
        return result if is_float else quantise(result, scale, 0 if zero is None else zero, dtype)

    turned = Spec((m, a.shape[0 if flip_a else 1]), a.dtype)
    return with_product(simple([Spec((m, n), dtype)], run), turned, b, threads)
