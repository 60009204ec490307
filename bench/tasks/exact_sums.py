"""A model as it is written, with nothing lost in sums: float64 inside each operator, float32 between them.

Where activations are rounded to 8 bits, the last digit of a float32 sum now and then decides about a whole step. This
is the result that no order of adding up has a part in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyclattn.graph.planner import build, evaluate
from pyclattn.graph.program import Op
from pyclattn.graph.spec import Settings, Spec
from pyclattn_export import from_onnx


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of an ONNX file, operator by operator."""
    program = from_onnx(path)
    values = {**program.constants, **feeds}
    for op in program.ops:
        ins = [np.asarray(values[name], order="C") if name else None for name in op.inputs]
        values.update(zip(op.outputs, _evaluate(op, ins)))
    return {value.name: values[value.name] for value in program.outputs}


def _evaluate(op: Op, ins: list) -> list[np.ndarray]:
    if op.kind in SUMS and ins[0].dtype == np.float32:
        wide = [a.astype(np.float64) for a in ins]
        return [SUMS[op.kind](op, *wide).astype(np.float32)]
    specs = [False if a is None else Spec.of(a, value=True) for a in ins]
    return evaluate(build(op, specs, Settings()), ins)


def _softmax(op: Op, x: np.ndarray) -> np.ndarray:
    axis = op.attributes.get("axis", -1)
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _layer_norm(op: Op, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + op.attributes.get("epsilon", 1e-5)) * weight + bias


SUMS = {
    "MatMul": lambda op, a, b: a @ b,
    "Gemm": lambda op, a, b, c=0.0: (
        op.attributes.get("alpha", 1.0)
        * (a.T if op.attributes.get("transA") else a)
        @ (b.T if op.attributes.get("transB") else b)
        + op.attributes.get("beta", 1.0) * c
    ),
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
}
