"""Attention in its fused forms.

The kernels come from the public functions of pyclattn. An array in another head layout is read through a transposed
view; the functions take any strides and write in the memory order of the query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.functional import auto, clustered, coclustered, sampled_error
from pyclattn.functional.auto import auto_attention
from pyclattn.functional.clustered import clustered_attention, improved_clustered_attention
from pyclattn.functional.coclustered import coclustered_attention
from pyclattn.functional.exact import scaled_dot_product_attention
from pyclattn.graph.ops.registry import op
from pyclattn.graph.run_report import AttentionRun, records
from pyclattn.graph.spec import Kernel, Node, Observed, Spec, simple

METHODS: dict[str, Callable] = {
    "exact": scaled_dot_product_attention,
    "clustered": clustered_attention,
    "improved-clustered": improved_clustered_attention,
    "coclustered": coclustered_attention,
    "auto": auto_attention,
}
# Methods that take precision.
PRECISE = ("exact", "coclustered", "auto")
# Methods that take is_causal.
CAUSAL = ("exact", "improved-clustered")
# What a method takes beside inputs and output: of the shapes of query, key and value, n_threads=, **parameters.
WORKING_BYTES: dict[str, Callable[..., int]] = {
    "exact": lambda *shapes, **_: 1 << 20,  # tiles
    "clustered": clustered.working_bytes,
    "improved-clustered": clustered.working_bytes,
    "coclustered": coclustered.working_bytes,
    "auto": coclustered.working_bytes,
}
# (B, H, L, D) as a view of each layout
_VIEWS = {"bhld": (0, 1, 2, 3), "blhd": (0, 2, 1, 3), "bhdl": (0, 1, 3, 2)}


def _layout(node: Node, which: str) -> tuple[int, ...]:
    name = node.attr(f"{which}_layout", node.attr("layout", "bhld"))
    if name not in _VIEWS:
        raise ModelFormatError(f"{which}_layout must be one of {', '.join(_VIEWS)}, got {name!r}")
    return _VIEWS[name]


def _spreads(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be broadcast to the target, axis by axis."""
    return len(shape) == len(target) and all(n in (1, wanted) for n, wanted in zip(shape, target))


@op("pyclattn:Attention")
def _attention(node: Node) -> Kernel:
    orders = [_layout(node, which) for which in ("q", "k", "v")]
    out_order = _layout(node, "out")
    q, k, v = (node.spec(i).dummy().transpose(order) for i, order in enumerate(orders))
    (b, h, length, d), (_, heads, keys, _), width = q.shape, k.shape, v.shape[-1]
    if k.shape != (b, heads, keys, d) or v.shape[:3] != (b, heads, keys) or h % max(1, heads):
        raise ShapeError(f"query {q.shape}, key {k.shape} and value {v.shape} do not fit each other")
    masks = {}
    for i, name in ((3, "attn_mask"), (4, "key_padding_mask")):
        if node.has(i):
            node.spec(i)
            masks[name] = i
    if node.has(4) and not _spreads(node.shape(4), (b, keys)):
        raise ShapeError(f"key_padding_mask must have shape {(b, keys)}, got {node.shape(4)}")
    causal, name = bool(node.attr("is_causal", False)), node.attr("name", node.op.name)
    parts = _parts(node, name, (h, heads, length, keys), "attn_mask" in masks, causal)
    options = {"scale": node.attr("scale", None), "n_threads": node.settings.n_threads}
    if causal:
        options["is_causal"] = True
    shape = [0] * 4
    for at, n in zip(out_order, (b, h, length, width)):
        shape[at] = n
    # an array whose rows are not contiguous is copied by us, once
    copied = [a.strides[-1] != a.itemsize and a.shape[-1] > 1 for a in (q, k, v)]
    # other types are computed in float32 and converted; rows must lie side by side to be written in place
    is_direct = q.dtype == np.float32 and out_order[3] == 3
    precision = node.settings.precision
    observe = node.settings.observe
    is_self = bool(node.attr("is_self", False)) and length == keys  # not where only some tokens ask

    def bind(ins, outs, scratch):
        arrays = [a.transpose(order) for a, order in zip(ins, orders)]
        given = {name: ins[i] for name, i in masks.items()}
        padding = {}
        if "key_padding_mask" in masks:
            given["key_padding_mask"] = np.broadcast_to(ins[4], (b, keys))  # a batch may share one
            # padded tokens are in no cluster, so that what others get does not depend on them
            padding = {"query_padding_mask": given["key_padding_mask"]} if is_self else {}
        out = outs[0].transpose(out_order)  # either layout is its own inverse
        calls = []
        for part in parts:
            more = {**given, **options, **(padding if part.method != "exact" else {})}
            if precision != "float32" and part.method in PRECISE:
                more["precision"] = precision
            calls.append((part, {**more, "out": out[:, part.heads]} if is_direct else more))

        def run():
            start = perf_counter()
            query, key, value = (np.ascontiguousarray(a) if c else a for a, c in zip(arrays, copied))
            for part, more in calls:
                own = query[:, part.heads], key[:, part.kv_heads], value[:, part.kv_heads]
                found = part.attend(name, own, more)
                if not is_direct:
                    out[:, part.heads] = found
            if observe is not None:
                seconds, methods = perf_counter() - start, tuple(part.method for part in parts)
                observe(Observed(name, query, key, value, out, {**given, **options}, methods, seconds))

        return run

    extra = sum(a.size * 4 for a, c in zip((q, k, v), copied) if c)
    working = max(part.bytes(q.shape, k.shape, v.shape, is_direct, node.settings.n_threads) for part in parts)
    return Kernel([Spec(shape, q.dtype)], bind, transient=extra + working)


@dataclass(frozen=True)
class _Part:
    """Heads of one attention that run in one call: views, no copies."""

    heads: slice
    kv_heads: slice
    method: str
    parameters: dict

    def attend(self, name: str, arrays: tuple, options: dict) -> np.ndarray:
        """The call; what it did is recorded where the caller of the run wants to know."""
        found, function, parameters = records(), METHODS[self.method], self.parameters
        limit, action = parameters.get("max_error"), parameters.get("on_error", "exact")
        is_judged = limit is not None and action != "exact"  # here, where the attention has a name
        if found is None and not is_judged:
            return function(*arrays, **options, **parameters)
        if is_judged:
            parameters = {key: value for key, value in parameters.items() if key not in ("max_error", "on_error")}
        start, errors, method = perf_counter(), None, self.method
        if method == "auto":
            method = auto.method_for(*arrays, **{**options, **parameters})
        if method == "exact" or options.get("is_causal"):
            out = function(*arrays, **options, **parameters)
            errors = np.zeros(out.shape[:2]) if method == "exact" else None
        else:
            out, errors = function(*arrays, **options, **parameters, return_error=True)
        heads = tuple(range(self.heads.stop)[self.heads])
        if is_judged and errors is not None:
            sampled_error.judge(errors, limit, action, heads, f"attention {name!r}: ")
        if found is not None:
            told = self.parameters if method != "exact" else {}
            fell_back = self._above(errors, out.shape[:2])
            found.append(AttentionRun(name, method, told, heads, errors, fell_back, perf_counter() - start))
        return out

    def _above(self, errors: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        """Which estimates made their heads exact."""
        limit = self.parameters.get("max_error")
        if errors is None or limit is None or self.parameters.get("on_error", "exact") != "exact":
            return np.zeros(shape, bool)
        return ~(errors <= limit)

    def bytes(self, q: tuple, k: tuple, v: tuple, is_direct: bool, n_threads: int) -> int:
        """What the call holds beside inputs and output."""
        own = []
        for (batch, n_heads, length, width), taken in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads)):
            own.append((batch, len(range(*taken.indices(n_heads))), length, width))
        checking = 0
        if self.parameters.get("max_error") is not None:
            checking = sampled_error.working_bytes(*own, n_threads=n_threads)
        size = 0 if is_direct else own[0][0] * own[0][1] * own[0][2] * own[2][3] * 4
        return size + checking + WORKING_BYTES[self.method](*own, n_threads=n_threads, **self.parameters)


def _parts(node: Node, name: str, counts: tuple[int, int, int, int], is_masked: bool, causal: bool) -> list[_Part]:
    """The calls of an attention with these heads, heads of keys, queries and keys."""
    every = slice(0, counts[0], 1), slice(0, counts[1], 1)
    asked = [] if node.settings.attention is None else node.settings.attention(name, *counts)
    # what a method cannot mask is computed exactly
    if not asked or is_masked or (causal and any(not _is_causal(*how) for _, *how in asked)):
        return [_Part(*every, "exact", {})]
    group = counts[0] // max(1, counts[1])
    found = []
    for own, method, parameters in asked:
        if method == "auto" and min(counts[2:]) < coclustered.SHORTEST:  # known now: the run need not ask
            method, parameters = "exact", {}
        heads = own if group == 1 else slice(own.start * group, own.stop * group, 1)
        found.append(_Part(heads, own, method, parameters))
    return found


def _is_causal(method: str, parameters: dict) -> bool:
    """Whether a method can be causal; the estimate of its error, which a limit needs, cannot."""
    return method in CAUSAL and parameters.get("max_error") is None


def _speed(node: Node) -> dict:
    """Options of a call that no model knows."""
    return {"precision": node.settings.precision, "n_threads": node.settings.n_threads}


def split_heads(x: Spec, heads: int | None) -> tuple[int, ...]:
    """The shape (B, L, H, D) of packed heads (B, L, H x D)."""
    if not heads or x.shape[-1] % heads:
        raise ShapeError(f"{x.shape[-1]} features cannot be split into {heads} heads")
    return (*x.shape[:2], heads, x.shape[-1] // heads)


@op("Attention")
def _onnx_attention(node: Node) -> Kernel:
    """ONNX 23 and 24. Scores are made only where the model asks to see them or caps them."""
    q, k, v = (node.spec(i) for i in range(3))
    packed = q.ndim == 3
    if packed:
        n_q, n_kv = node.attr("q_num_heads"), node.attr("kv_num_heads")
        shapes = [split_heads(s, n) for s, n in ((q, n_q), (k, n_kv), (v, n_kv))]
        (b, length, h, d), (_, new, heads, _), width = shapes[0], shapes[1], shapes[2][-1]
    else:
        (b, h, length, d), (_, heads, new, _), width = q.shape, k.shape, v.shape[-1]
    past = node.shape(4)[2] if node.has(4) else 0
    total = past + new
    scale = node.attr("scale", None)
    scale = d**-0.5 if scale is None else scale
    causal, cap, mode = (
        bool(node.attr("is_causal", 0)),
        node.attr("softcap", 0.0),
        node.attr("qk_matmul_output_mode", 0),
    )
    windows = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    for i in (3, 5, 6):
        if node.has(i):
            node.spec(i)
    outputs = [
        Spec((b, length, h * width) if packed else (b, h, length, width), q.dtype),
        Spec((b, heads, total, d), k.dtype),
        Spec((b, heads, total, width), v.dtype),
        Spec((b, h, length, total), q.dtype),
    ][: max(1, node.n_outputs)]
    plain = not node.wants(3) and not cap and q.dtype == np.float32 and windows == (-1, -1)

    def unpack(x, shape):
        return x.reshape(shape).transpose(0, 2, 1, 3)

    def run(*ins):
        query, key, value, mask, past_key, past_value, lengths = (*ins, None, None, None, None)[:7]
        if packed:
            query, key, value = (unpack(x, s) for x, s in zip((query, key, value), shapes))
        if past_key is not None:
            key, value = np.concatenate([past_key, key], 2), np.concatenate([past_value, value], 2)
        bias = _bias(mask, total, lengths, causal, past, length, windows, query.dtype)
        if plain:
            y = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale,
                                             **_speed(node))  # fmt: skip
            scores = None
        else:
            y, scores = _with_scores(query, key, value, bias, scale, cap, mode)
        if packed:
            y = y.transpose(0, 2, 1, 3).reshape(b, length, h * width)
        return [y, key, value, scores][: len(outputs)] if len(outputs) > 1 else y

    kernel = simple(outputs, run)
    kernel.transient += length * total * 4 * (1 if plain else 3 * b * h)
    return kernel


def _bias(mask, total: int, lengths, causal: bool, past: int, length: int, windows, dtype):
    """All that keeps queries from keys as one mask: bool, or float with -inf; None if nothing does."""
    if mask is not None and mask.shape[-1] < total:
        wide = [(0, 0)] * (mask.ndim - 1) + [(0, total - mask.shape[-1])]
        mask = np.pad(mask, wide, constant_values=False if mask.dtype == bool else -np.inf)
    allowed = None
    i, j = np.arange(length)[:, None], np.arange(total)
    if causal or windows != (-1, -1):
        offset = np.asarray(past) if lengths is None or past else (lengths.reshape(-1, 1, 1, 1) - length)
        gap = i + offset - j
        allowed = gap >= 0 if causal else np.ones_like(gap, bool)
        if windows[0] >= 0:
            allowed = allowed & (gap <= windows[0])
        if windows[1] >= 0:
            allowed = allowed & (-gap <= windows[1])
    if lengths is not None:
        inside = j < lengths.reshape(-1, 1, 1, 1)
        allowed = inside if allowed is None else allowed & inside
    if mask is None or allowed is None:
        return mask if allowed is None else allowed
    return mask & allowed if mask.dtype == bool else np.where(allowed, mask, dtype.type(-np.inf))


def _with_scores(query, key, value, bias, scale, cap, mode):
    """(output, scores as ``mode`` asks): 0 raw, 1 capped, 2 with the mask, 3 after softmax."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = np.repeat(key, groups, 1), np.repeat(value, groups, 1)
    root = query.dtype.type(np.sqrt(scale))
    scores = np.matmul(query * root, (key * root).swapaxes(-1, -2))
    shown = {0: scores.copy()}
    if cap:
        scores = np.tanh(scores / query.dtype.type(cap)) * query.dtype.type(cap)
    shown[1] = scores
    if bias is not None:
        bias = np.where(bias, 0, -np.inf).astype(query.dtype) if bias.dtype == bool else bias
        scores = scores + bias.astype(query.dtype)
    shown[2] = scores
    highest = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(highest), 0, highest))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, np.where(total == 0, 1, total)).astype(query.dtype)
    shown[3] = weights
    return np.matmul(weights, value), shown[mode]


@op("com.microsoft:MultiHeadAttention")
def _multi_head_attention(node: Node) -> Kernel:
    """query, key, value (B, L, H x D), bias, key_padding_mask, attention_bias. No cache."""
    heads = node.attr("num_heads")
    if node.spec(0).ndim != 3 or not node.has(1) or not node.has(2) or node.spec(1).ndim != 3:
        raise ModelFormatError("MultiHeadAttention is supported with separate query, key and value of three dimensions")
    if any(node.has(i) for i in (6, 7)) or node.n_outputs > 1:
        raise ModelFormatError("MultiHeadAttention with past or present keys is not supported")
    shapes = [split_heads(node.spec(i), heads) for i in range(3)]
    (b, length, h, d), keys, width = shapes[0], shapes[1][1], shapes[2][-1]
    scale, causal = node.attr("scale", None) or d**-0.5, bool(node.attr("unidirectional", 0))
    ends = np.cumsum([h * d, h * d, h * width])
    for i in (3, 4, 5):
        if node.has(i):
            node.spec(i)

    def run(*ins):
        query, key, value, bias, mask, extra = (*ins, None, None, None)[:6]
        if bias is not None:
            parts = np.split(bias, ends[:-1])
            query, key, value = (x + p for x, p in zip((query, key, value), parts))
        query, key, value = (x.reshape(s).transpose(0, 2, 1, 3) for x, s in zip((query, key, value), shapes))
        padding, allowed = _padding(mask, b, keys, length)
        if allowed is not None and extra is not None:
            extra, allowed = np.where(allowed, extra, np.float32(-np.inf)), None
        y = scaled_dot_product_attention(query, key, value, attn_mask=allowed if extra is None else extra,
                                         key_padding_mask=padding, is_causal=causal, scale=scale,
                                         **_speed(node))  # fmt: skip
        return y.transpose(0, 2, 1, 3).reshape(b, length, h * width)

    kernel = simple([Spec((b, length, h * width), node.dtype(0))], run)
    kernel.transient += sum(node.spec(i).nbytes for i in range(3)) * (1 if node.has(3) else 0)
    return kernel


def _padding(mask, b: int, keys: int, length: int):
    """(key padding (B, S), allowed (B, 1, L, S)) from ONNX Runtime's masks: lengths, 0/1 a key, or 0/1 a pair."""
    if mask is None:
        return None, None
    if mask.ndim == 1:
        if mask.shape[0] != b:
            raise ModelFormatError(f"a mask of shape {mask.shape} for a batch of {b} is not supported")
        return np.arange(keys) >= mask[:, None], None
    if mask.ndim == 2:
        return mask == 0, None
    if mask.ndim == 3 and mask.shape[1:] == (length, keys):
        return None, (mask != 0)[:, None]
    raise ModelFormatError(f"a mask of shape {mask.shape} is not supported")


@op("com.microsoft:Attention")
def _packed_attention(node: Node) -> Kernel:
    """input (B, L, C), weights (C, 3 x hidden), bias, mask_index, past, attention_bias."""
    x, weight, heads = node.spec(0), node.spec(1), node.attr("num_heads")
    if node.has(4) or node.n_outputs > 1:
        raise ModelFormatError("Attention with past or present keys is not supported")
    sizes = node.attr("qkv_hidden_sizes", [weight.shape[1] // 3] * 3)
    b, length, c = x.shape
    if weight.shape != (c, sum(sizes)) or any(s % heads for s in sizes):
        raise ShapeError(f"input {x.shape} and weight {weight.shape} do not fit {heads} heads of {sizes}")
    ends, d = np.cumsum(sizes), sizes[0] // heads
    scale, causal = node.attr("scale", None) or d**-0.5, bool(node.attr("unidirectional", 0))
    for i in (2, 3, 5):
        if node.has(i):
            node.spec(i)

    def run(*ins):
        data, weights, bias, mask, _, extra = (*ins, None, None, None, None)[:6]
        fused = np.matmul(data.reshape(-1, c), weights)
        if bias is not None:
            fused += bias
        parts = np.split(fused.reshape(b, length, -1), ends[:-1], -1)
        query, key, value = (p.reshape(b, length, heads, -1).transpose(0, 2, 1, 3) for p in parts)
        padding, allowed = _padding(mask, b, length, length)
        if allowed is not None and extra is not None:
            extra, allowed = np.where(allowed, extra, np.float32(-np.inf)), None
        y = scaled_dot_product_attention(query, key, value, attn_mask=allowed if extra is None else extra,
                                         key_padding_mask=padding, is_causal=causal, scale=scale,
                                         **_speed(node))  # fmt: skip
        return y.transpose(0, 2, 1, 3).reshape(b, length, -1)

    kernel = simple([Spec((b, length, sizes[2]), x.dtype)], run)
    kernel.transient += b * length * sum(sizes) * 4
    return kernel
