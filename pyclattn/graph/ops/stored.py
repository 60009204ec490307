"""Weights that are stored in fewer bits, as float32."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import DTypeError, ShapeError
from pyclattn.graph import blocks
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, broadcast

# A weight stored in fewer bits, as float32 (graph/quantise.py).
DEQUANTIZE = "pyclattn:Dequantize"


@op(DEQUANTIZE)
def _dequantize(node: Node) -> Kernel:
    """int8 times a scale that broadcasts to it; float16; or bfloat16, held as its 16 bits."""
    x, has_scale = node.spec(0), node.has(1)
    if x.dtype.name not in ("int8", "float16", "uint16"):
        raise DTypeError(f"a stored weight must be int8, float16 or uint16 (bfloat16), got {x.dtype}")
    if has_scale != (x.dtype == np.int8):
        raise DTypeError(f"int8 has a scale and no other type has, got {x.dtype} {'with' if has_scale else 'without'}")
    if has_scale and (node.dtype(1) != np.float32 or broadcast(x.shape, node.shape(1)) != x.shape):
        raise ShapeError(f"the scale must be float32 and broadcast to {x.shape}, got {node.spec(1)}")
    function = {"int8": np.multiply, "float16": _copy, "uint16": _widen}[x.dtype.name]

    def bind(ins, outs, scratch):
        return blocks.elementwise(function, list(ins[: 1 + has_scale]), outs[0], node.settings.n_threads)

    return Kernel([Spec(x.shape, np.float32)], bind)


def _copy(x: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, x)


def _widen(bits: np.ndarray, out: np.ndarray) -> None:
    np.left_shift(bits, 16, out.view(np.uint32), dtype=np.uint32)
