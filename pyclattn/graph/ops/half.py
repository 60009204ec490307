"""float16 computed in float32: NumPy has no fast products of halves, and their sums would overflow."""

from __future__ import annotations

import numpy as np

from pyclattn.graph.ops.registry import TABLE, Builder
from pyclattn.graph.spec import Kernel, Node, Spec

HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
WIDENED = (
    "MatMul", "Gemm", "Einsum", "com.microsoft:FusedMatMul", "pyclattn:Linear",
    "Conv", "ConvTranspose", "AveragePool", "GlobalAveragePool",
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
    "SimplifiedLayerNormalization", "pyclattn:LayerNorm", "pyclattn:RMSNorm",
    "com.microsoft:SkipLayerNormalization", "com.microsoft:SkipSimplifiedLayerNormalization",
    "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare",
    "Gelu", "pyclattn:Gelu", "com.microsoft:Gelu", "com.microsoft:BiasGelu", "com.microsoft:FastGelu", "Erf",
    "com.microsoft:Attention", "com.microsoft:MultiHeadAttention",
)  # fmt: skip


def widened(builder: Builder) -> Builder:
    """A builder that takes float16 as float32 and rounds the results."""

    def build(node: Node) -> Kernel:
        given = [s if isinstance(s, Spec) else None for s in node.specs]
        if not any(s is not None and s.dtype == HALF for s in given):
            return builder(node)
        specs = [_wide(s) if isinstance(s, Spec) else s for s in node.specs]
        kernel = builder(Node(node.op, specs, node.settings))
        inner = kernel.bind
        if inner is None:
            return builder(node)
        outputs = [Spec(s.shape, HALF if s.dtype == SINGLE else s.dtype) for s in kernel.outputs]

        def bind(ins, outs, scratch):
            def run():
                wide = [a if a is None or a.dtype != HALF else np.ascontiguousarray(a, SINGLE) for a in ins]
                results = [None if o is None else np.empty(s.shape, s.dtype) for o, s in zip(outs, kernel.outputs)]
                inner(wide, results, scratch)()
                for out, result in zip(outs, results):
                    if out is not None:
                        np.copyto(out, result, casting="same_kind")

            return run

        extra = sum(2 * s.nbytes for s in given if s is not None and s.dtype == HALF)
        extra += sum(s.nbytes for s in kernel.outputs)
        return Kernel(outputs, bind, scratch=kernel.scratch, transient=kernel.transient + extra)

    return build


def _wide(spec: Spec) -> Spec:
    if spec.dtype != HALF:
        return spec
    value = None if spec.value is None else np.ascontiguousarray(spec.value, SINGLE)
    return Spec(spec.shape, SINGLE, value=value)


def widen_all() -> None:
    """Put the wrapped builders in the table; called once, when all families are there."""
    for kind in WIDENED:
        TABLE[kind] = widened(TABLE[kind])
