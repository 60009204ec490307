"""Rotary embedding: pairs of features turned by angles that grow with the position."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.attention import split_heads
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple


def rotate(x, cos, sin, interleaved: bool, out) -> None:
    """Rotate pairs of features of x (..., R); cos and sin broadcast to (..., R / 2). ``out`` may not be ``x``."""
    if interleaved:
        a, b, first, second = x[..., 0::2], x[..., 1::2], out[..., 0::2], out[..., 1::2]
    else:
        half = x.shape[-1] // 2
        a, b, first, second = x[..., :half], x[..., half:], out[..., :half], out[..., half:]
    np.multiply(a, cos, first)
    first -= b * sin
    np.multiply(a, sin, second)
    second += b * cos


@op("pyclattn:Rotary")
def _rotary(node: Node) -> Kernel:
    """x (..., D), cos and sin that broadcast to it, of D (each angle twice) or D / 2 columns."""
    x, layout, d = node.spec(0), node.attr("layout", "half"), node.shape(0)[-1]
    if layout not in ("half", "interleaved"):
        raise ModelFormatError(f"layout must be half or interleaved, got {layout!r}")
    for i in (1, 2):
        if node.shape(i)[-1] not in (d, d // 2) or d % 2:
            raise ShapeError(f"cos and sin for {d} features must have {d} or {d // 2} columns, got {node.shape(i)}")
    interleaved, threads = layout == "interleaved", node.settings.n_threads

    def half(a):
        if a.shape[-1] == d // 2:
            return a
        return a[..., 0::2] if interleaved else a[..., : d // 2]

    def bind(ins, outs, scratch):
        cos, sin = (np.broadcast_to(half(a), (*x.shape[:-1], d // 2)) for a in ins[1:3])
        pieces = blocks.slices([ins[0], cos, sin, outs[0]])
        # cut along any axis but the features
        if len(pieces) > 1 and pieces[0][-1].shape[-1] != d:
            pieces = [[ins[0], cos, sin, outs[0]]]
        return blocks.share(lambda i: rotate(*pieces[i][:3], interleaved, pieces[i][3]), len(pieces), threads)

    return Kernel([Spec(x.shape, x.dtype)], bind)


@op("RotaryEmbedding", "com.microsoft:RotaryEmbedding")
def _rotary_embedding(node: Node) -> Kernel:
    """ONNX: x, cos, sin, position_ids. ONNX Runtime: x, position_ids, cos, sin."""
    x, contrib = node.spec(0), node.kind != "RotaryEmbedding"
    for i in range(1, node.n_inputs):
        if node.has(i):
            node.spec(i)
    heads, interleaved = node.attr("num_heads", 0), bool(node.attr("interleaved", 0))
    b, length = (x.shape[0], x.shape[2]) if x.ndim == 4 else x.shape[:2]
    cos_at = 2 if contrib else 1
    width = node.shape(cos_at)[-1]
    rotated = node.attr("rotary_embedding_dim", 0) or 2 * width
    if x.ndim == 3:
        heads = heads or x.shape[2] // rotated
        split_heads(x, heads)
    if width * 2 != rotated:
        raise ShapeError(f"cos and sin must have {rotated // 2} columns, got {width}")

    def run(*ins):
        data, (cos, sin) = ins[0], (ins[2:4] if contrib else ins[1:3])
        places = ins[1] if contrib else (ins[3] if len(ins) > 3 else None)
        a = data.transpose(0, 2, 1, 3) if x.ndim == 4 else data.reshape(b, length, heads, -1)
        if places is not None:
            if contrib and places.size == 1:
                places = places.reshape(()) + np.arange(length)[None]
            cos, sin = cos[places], sin[places]
        out = np.array(a)
        rotate(a[..., :rotated], cos[..., None, :], sin[..., None, :], interleaved, out[..., :rotated])
        return out.transpose(0, 2, 1, 3) if x.ndim == 4 else out.reshape(x.shape)

    return simple([Spec(x.shape, x.dtype)], run)
