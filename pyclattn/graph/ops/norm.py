"""Normalisations, and the embedding that ends in one."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.functional import rows as functional_rows
from pyclattn.graph import blocks
from pyclattn.graph.ops.reduction import rows
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple


def layer_norm(x, weight, bias, epsilon, out):
    """Rows of ``x`` (M, D) with mean 0 and variance 1, times ``weight`` plus ``bias``; not in place of ``x``."""
    d = x.shape[1]
    mean = np.add.reduce(x, 1, keepdims=True)
    np.multiply(mean, 1 / d, mean)
    np.subtract(x, mean, out)
    scale = np.einsum("ij,ij->i", out, out)[:, None]
    np.multiply(scale, 1 / d, scale)
    np.add(scale, epsilon, scale)
    np.sqrt(scale, scale)
    np.reciprocal(scale, scale)
    np.multiply(out, scale, out)
    if weight is not None:
        np.multiply(out, weight, out)
    if bias is not None:
        np.add(out, bias, out)
    return mean, scale


def rms_norm(x, weight, epsilon, out):
    """Rows of ``x`` (M, D) with mean square 1, times ``weight``."""
    scale = np.einsum("ij,ij->i", x, x)[:, None]
    np.multiply(scale, 1 / x.shape[1], scale)
    np.add(scale, epsilon, scale)
    np.sqrt(scale, scale)
    np.reciprocal(scale, scale)
    np.multiply(x, scale, out)
    if weight is not None:
        np.multiply(out, weight, out)


def _row_weight(a):
    """A vector of weights, or one that stands for all; a view, since its content may not be there yet."""
    return None if a is None else a.reshape(-1)


def _over_rows(node: Node, x: Spec, axis: int, epsilon: float, is_rms: bool) -> Kernel:
    """Kernel of a norm of rows that join the axes from ``axis`` on."""
    d = int(np.prod(x.shape[axis:], dtype=np.int64))
    threads = node.settings.n_threads
    for i in (1, 2):
        if node.has(i) and node.spec(i).size not in (d, 1):
            raise ShapeError(f"input {i} must have the shape {x.shape[axis:]}, got {node.shape(i)}")
    if _is_compiled(node, x, d):
        return _compiled(node, x, d, epsilon, is_rms)

    def function(a, weight, bias, out):
        if is_rms:
            rms_norm(a, weight, epsilon, out)
        else:
            layer_norm(a, weight, bias, epsilon, out)

    given = [node.spec(i) for i in range(3) if node.has(i)]
    if axis != x.ndim - 1 and any(spec.strides is not None for spec in given):  # the axes cannot be joined in place
        return simple([Spec(x.shape, x.dtype)], lambda *ins: _joined(function, ins, d))

    def bind(ins, outs, scratch):
        a, out = ins[0], outs[0]
        if a.flags.c_contiguous:
            a, out = a.reshape(-1, d), out.reshape(-1, d)
        weight = _row_weight(ins[1]) if node.has(1) else None
        bias = _row_weight(ins[2]) if node.has(2) else None
        if a.ndim == 2:
            return rows(lambda p, o: function(p, weight, bias, o), a, out, threads)
        return rows(lambda p, o: o.__setitem__(..., _reshaped(function, p, weight, bias)), a, out, threads)

    return Kernel([Spec(x.shape, x.dtype)], bind)


def _is_compiled(node: Node, x: Spec, d: int) -> bool:
    """Whether the compiled norm can read the inputs as they are."""
    vectors = [node.spec(i) for i in (1, 2) if node.has(i)]
    return (
        x.strides is None
        and all(s.dtype == np.float32 for s in (x, *vectors))
        and all(s.size == d and s.strides is None for s in vectors)
        and functional_rows.is_fast()
    )


def _compiled(node: Node, x: Spec, d: int, epsilon: float, is_rms: bool) -> Kernel:
    def bind(ins, outs, scratch):
        weight = ins[1].reshape(-1) if node.has(1) else None
        bias = ins[2].reshape(-1) if node.has(2) and not is_rms else None
        return functional_rows.bound_normalise(
            ins[0].reshape(-1, d), weight, bias, epsilon=epsilon, is_rms=is_rms,
            n_threads=node.settings.n_threads, out=outs[0].reshape(-1, d),
        )  # fmt: skip

    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,))


def _reshaped(function, p, weight, bias):
    return _joined(function, [p, weight, bias], p.shape[-1])


def _joined(function, given, d: int):
    """The norm of rows of ``d`` numbers, whatever order they lie in."""
    x, weight, bias = (*given, None, None)[:3]
    flat = np.ascontiguousarray(x).reshape(-1, d)
    out = np.empty_like(flat)
    function(flat, _row_weight(weight), _row_weight(bias), out)
    return out.reshape(x.shape)


@op("LayerNormalization", "pyclattn:LayerNorm")
def _layer_norm(node: Node) -> Kernel:
    x, epsilon = node.spec(0), node.attr("epsilon", 1e-5)
    axis = node.axis(node.attr("axis", -1), x.ndim)
    if node.wants(1) or node.wants(2):
        return _layer_norm_with_moments(node, x, axis, epsilon)

    return _over_rows(node, x, axis, epsilon, False)


def _layer_norm_with_moments(node: Node, x: Spec, axis: int, epsilon: float) -> Kernel:
    moment = Spec(x.shape[:axis] + (1,) * (x.ndim - axis), np.float32)
    d = int(np.prod(x.shape[axis:], dtype=np.int64))

    def run(a, *rest):
        flat = np.ascontiguousarray(a).reshape(-1, d)
        out = np.empty_like(flat)
        weight, bias = (_row_weight(r) for r in (*rest, None, None)[:2])
        mean, scale = layer_norm(flat, weight, bias, epsilon, out)
        return [out.reshape(x.shape), mean.reshape(moment.shape), scale.reshape(moment.shape)][: node.n_outputs]

    return simple([Spec(x.shape, x.dtype), moment, moment][: node.n_outputs], run)


@op("RMSNormalization", "SimplifiedLayerNormalization", "pyclattn:RMSNorm")
def _rms_norm(node: Node) -> Kernel:
    x, epsilon = node.spec(0), node.attr("epsilon", 1e-5)
    axis = node.axis(node.attr("axis", -1), x.ndim)
    return _over_rows(node, x, axis, epsilon, True)


@op("com.microsoft:SkipLayerNormalization", "com.microsoft:SkipSimplifiedLayerNormalization")
def _skip_layer_norm(node: Node) -> Kernel:
    """(x + skip + bias) normalised; output 3 is the sum."""
    x, skip, plain = node.spec(0), node.spec(1), "Simplified" in node.kind
    if skip.shape != x.shape and x.shape[-skip.ndim :] != skip.shape and skip.shape[0] != 1:
        raise ShapeError(f"the skip input must have the shape {x.shape}, got {skip.shape}")
    epsilon, d = node.attr("epsilon", 1e-5 if plain else 1e-12), x.shape[-1]
    shift, bias = (None, 3) if plain else (3, 4)
    threads = node.settings.n_threads
    outputs = [Spec(x.shape, x.dtype)]
    if node.n_outputs > 1:
        small = Spec((*x.shape[:-1], 1), np.float32)
        outputs = [outputs[0], small, small, outputs[0]][: node.n_outputs]
        if node.wants(1) or node.wants(2):
            raise ModelFormatError(f"outputs 1 and 2 (mean, deviation) of {node.kind} are not supported")

    def bind(ins, outs, scratch):
        given = [*ins, None, None, None, None, None]
        total = outs[3] if node.wants(3) else scratch.view(x.dtype).reshape(x.shape)
        weight, beta = given[2], given[shift] if shift is not None else None
        extra, out = given[bias], outs[0].reshape(-1, d)

        def add(p, q, o):
            np.add(p, q, o)
            if extra is not None:
                np.add(o, extra, o)

        sums = blocks.elementwise(add, [ins[0], ins[1]], total, threads)

        def normalise(p, o):
            if plain:
                rms_norm(p, weight, epsilon, o)
            else:
                layer_norm(p, weight, beta, epsilon, o)

        norm = rows(normalise, total.reshape(-1, d), out, threads)

        def run():
            sums()
            norm()

        return run

    return Kernel(outputs, bind, scratch=0 if node.wants(3) else x.nbytes)


@op("BatchNormalization")
def _batch_norm(node: Node) -> Kernel:
    x, epsilon = node.spec(0), node.attr("epsilon", 1e-5)
    if node.attr("training_mode", 0):
        raise ModelFormatError("BatchNormalization in training mode is not supported")
    shape = (-1,) + (1,) * (x.ndim - 2)
    threads = node.settings.n_threads

    def function(a, scale, shift, out):
        np.multiply(a, scale, out)
        np.add(out, shift, out)

    def bind(ins, outs, scratch):
        weight, bias, mean, variance = ins[1:5]
        if all(node.known(i) for i in (1, 2, 3, 4)):
            scale = weight / np.sqrt(variance + variance.dtype.type(epsilon))
            shift = bias - mean * scale
            parts = [v.astype(x.dtype).reshape(shape) for v in (scale, shift)]
            return blocks.elementwise(function, [ins[0], *parts], outs[0], threads)

        def run():
            scale = weight / np.sqrt(variance + epsilon)
            function(ins[0], scale.reshape(shape), (bias - mean * scale).reshape(shape), outs[0])

        return run

    for i in (1, 2, 3, 4):
        node.spec(i)
    return Kernel([Spec(x.shape, x.dtype)], bind, inplace=(0,))


@op("InstanceNormalization", "GroupNormalization")
def _group_norm(node: Node) -> Kernel:
    x, epsilon = node.spec(0), node.attr("epsilon", 1e-5)
    n, c = x.shape[:2]
    groups = c if node.kind == "InstanceNormalization" else node.attr("num_groups")
    if groups < 1 or c % groups:
        raise ShapeError(f"{c} channels cannot be split into {groups} groups")
    if node.spec(1).size != c or node.spec(2).size != c:
        raise ShapeError(f"scale and bias must have {c} elements, got {node.shape(1)} and {node.shape(2)}")
    d = x.size // max(1, n * groups)
    shape = (c,) + (1,) * (x.ndim - 2)

    def run(a, scale, bias):
        flat = np.ascontiguousarray(a).reshape(n * groups, d)
        out = np.empty_like(flat)
        layer_norm(flat, None, None, epsilon, out)
        out = out.reshape(x.shape)
        np.multiply(out, scale.reshape(shape), out)
        return np.add(out, bias.reshape(shape), out)

    return simple([Spec(x.shape, x.dtype)], run)


@op("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Kernel:
    x = node.spec(0)
    axes = node.axes(node.attr("axes", [0, 2, 3]), x.ndim)

    def run(a):
        centred = a - a.mean(axes, keepdims=True)
        return centred / (np.sqrt((centred * centred).mean(axes, keepdims=True)) + x.dtype.type(1e-9))

    return simple([Spec(x.shape, x.dtype)], run)


@op("LRN")
def _local_response(node: Node) -> Kernel:
    x, size = node.spec(0), node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    low, high = (size - 1) // 2, -(-(size - 1) // 2)

    def run(a):
        square = np.pad(a * a, [(0, 0), (low, high)] + [(0, 0)] * (x.ndim - 2))
        total = sum(square[:, i : i + x.shape[1]] for i in range(size))
        return a / (bias + alpha / size * total) ** x.dtype.type(beta)

    return simple([Spec(x.shape, x.dtype)], run)


@op("com.microsoft:EmbedLayerNormalization")
def _embed_layer_norm(node: Node) -> Kernel:
    """input_ids, segment_ids, word, position and segment embedding, gamma, beta, mask, position_ids."""
    ids, words = node.spec(0), node.spec(2)
    if node.attr("mask_index_type", 0) or node.wants(2):
        raise ModelFormatError("EmbedLayerNormalization with mask_index_type or its sum as output is not supported")
    shape, d = (*ids.shape, words.shape[1]), words.shape[1]
    for i in range(1, node.n_inputs):
        if node.has(i):
            node.spec(i)
    if ids.shape[1] > node.shape(3)[0] and not node.has(8):
        raise ShapeError(f"length {ids.shape[1]} is beyond the position table of {node.shape(3)[0]} rows")

    def run(*ins):
        ids, segments, words, places, kinds, gamma, beta, mask, at = (*ins, *(None,) * 9)[:9]
        x = words[ids] + (places[: ids.shape[1]] if at is None else places[at])
        if segments is not None:
            x += kinds[segments]
        out = np.empty_like(x)
        layer_norm(x.reshape(-1, d), gamma, beta, node.attr("epsilon", 1e-12), out.reshape(-1, d))
        lengths = np.zeros(ids.shape[0], np.int32) if mask is None else mask.sum(1, dtype=np.int32)
        return [out, lengths] if node.n_outputs > 1 else out

    outputs = [Spec(shape, words.dtype), Spec(shape[:1], np.int32)][: min(2, node.n_outputs)]
    return simple(outputs, run)
