"""The shapes of products, among them attention and Einsum: rules as those of `shape_rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyclattn.graph.passes.dims import broadcast
from pyclattn.graph.program import Op

if TYPE_CHECKING:
    from pyclattn.graph.passes.shapes import Shapes


def _matmul(known: Shapes, op: Op):
    a, b = known.sure(op.inputs[0]), known.sure(op.inputs[1])
    left, right = ((1,) + a if len(a) == 1 else a), (b + (1,) if len(b) == 1 else b)
    rank = max(len(left), len(right)) - 2
    head = [(1,) * (rank - len(s) + 2) + s[:-2] for s in (left, right)]
    dims = tuple(broadcast(x, y) for x, y in zip(*head))
    return [dims + (() if len(a) == 1 else (left[-2],)) + (() if len(b) == 1 else (right[-1],))]


def _fused_matmul(known: Shapes, op: Op):
    shapes, get = [known.sure(name) for name in op.inputs[:2]], op.attributes.get
    if get("transBatchA") or get("transBatchB"):
        return [None]
    turned = [s[:-2] + s[:-3:-1] if get(flag) else s for s, flag in zip(shapes, ("transA", "transB"))]
    rank = max(map(len, turned)) - 2
    heads = [(1,) * (rank - len(s) + 2) + s[:-2] for s in turned]
    return [tuple(broadcast(x, y) for x, y in zip(*heads)) + (turned[0][-2], turned[1][-1])]


def _flat_matmul(known: Shapes, op: Op):
    """QLinearMatMul: the matrices are inputs 0 and 3."""
    return _matmul(known, Op("MatMul", (op.inputs[0], op.inputs[3]), op.outputs))


def _gemm(known: Shapes, op: Op):
    a, b = known.sure(op.inputs[0]), known.sure(op.inputs[1])
    return [(a[1 if op.attributes.get("transA") else 0], b[0 if op.attributes.get("transB") else 1])]


def _linear(known: Shapes, op: Op):
    x, weight = known.sure(op.inputs[0]), known.sure(op.inputs[1])
    return [(*x[:-1], weight[-1])]


def _einsum(known: Shapes, op: Op):
    left, _, right = op.attributes["equation"].replace(" ", "").partition("->")
    sizes: dict[str, object] = {}
    for letters, name in zip(left.split(","), op.inputs):
        shape = known.sure(name)
        for letter, size in zip(letters, shape):
            sizes[letter] = broadcast(sizes[letter], size) if letter in sizes else size
    return [tuple(sizes[letter] for letter in right)] if "." not in left and right else [None]


def _attention(known: Shapes, op: Op):
    """Output as the query, with the value's head size."""
    q, v = known.sure(op.inputs[0]), known.sure(op.inputs[2])
    get = op.attributes.get
    if get("q_layout", "bhld") == "blhd":
        q = (q[0], q[2], q[1], q[3])
    out = (*q[:3], v[3])
    return [(out[0], out[2], out[1], out[3]) if get("out_layout", "bhld") == "blhd" else out]


def _onnx_attention(known: Shapes, op: Op):
    q, v = known.sure(op.inputs[0]), known.sure(op.inputs[2])
    if len(q) == 4:
        return [(*q[:3], v[3])]
    return [(*q[:2], v[2] // op.attributes["kv_num_heads"] * op.attributes["q_num_heads"])]


def _packed_attention(known: Shapes, op: Op):
    """ONNX Runtime's Attention and MultiHeadAttention: (batch, length, width of all values)."""
    x, other = known.sure(op.inputs[0]), known.sure(op.inputs[1 if op.kind.endswith(":Attention") else 2])
    if len(x) != 3:
        return [None]
    if op.kind.endswith(":Attention"):
        sizes = op.attributes.get("qkv_hidden_sizes")
        return [(*x[:2], sizes[2] if sizes else other[-1] // 3)]
    return [(*x[:2], other[-1])]


PRODUCTS: dict[str, Callable[[Shapes, Op], list | None]] = {
    **dict.fromkeys(("MatMul", "MatMulInteger", "com.microsoft:MatMulIntegerToFloat"), _matmul),
    "QLinearMatMul": _flat_matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "pyclattn:Linear": _linear,
    "pyclattn:Attention": _attention,
    "Attention": _onnx_attention,
    "com.microsoft:Attention": _packed_attention,
    "com.microsoft:MultiHeadAttention": _packed_attention,
    "com.microsoft:FusedMatMul": _fused_matmul,
    "com.microsoft:MatMulNBits": lambda known, op: [(*known.sure(op.inputs[0])[:-1], op.attributes["N"])],
}
