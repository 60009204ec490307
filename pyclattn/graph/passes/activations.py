"""Activations in any spelling, recognised by what they compute.

GELU alone is written in a dozen ways (0.5 before or after, x / sqrt(2) or x * 0.7071, x^3 as Pow or two Mul). So no
spelling is matched: the operators between a value and a candidate result are run on sample points, and the result is
compared with the activations we know.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.evaluate import evaluate
from pyclattn.graph.program import Op

POINTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Erf", "Tanh", "Sigmoid", "Exp", "Sqrt", "Reciprocal", "Cast"}
CORES = ("Erf", "Tanh", "Sigmoid")
# The longest spelling seen has nine operators from x to the result (tanh form with x^3 as two Mul).
DEEPEST = 9
# Dense near 0, where the forms differ most, and out to where they are flat.
SAMPLES = np.concatenate([np.linspace(-4, 4, 81), [-9.0, -6.5, 6.5, 9.0]]).astype(np.float32)


def _erf_gelu(x):
    return x * 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))


def _tanh_gelu(x):
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


KNOWN = {
    "none": _erf_gelu,
    "tanh": _tanh_gelu,
    "quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}
WANTED = {name: function(SAMPLES.astype(np.float64)) for name, function in KNOWN.items()}


def fuse_activations(editor: Editor) -> None:
    """Replace every spelling of GELU (exact, tanh, quick) and of x * sigmoid(x) by one operator."""
    for op in list(editor.program.ops):
        if op.kind == "Gelu":
            editor.remove(op)
            attributes = {"approximate": op.attributes.get("approximate", "none")}
            editor.emit("pyclattn:Gelu", op.inputs, op.outputs, attributes, op.name)
        elif op.kind in CORES and editor.producers.get(op.outputs[0]) is op:
            _from_core(editor, op)


def _from_core(editor: Editor, core: Op) -> None:
    leaves = _leaves(editor, core)
    result: Any = core
    for _ in range(DEEPEST):
        result = _next(editor, result)
        if result is None:
            return
        for leaf in leaves:
            region = _region(editor, result, leaf)
            name = _recognise(editor, region, leaf, result.outputs[0]) if region else None
            if name:
                editor.remove(result)
                kind, attributes = ("pyclattn:Gelu", {"approximate": name}) if name != "silu" else ("Swish", {})
                editor.emit(kind, (leaf,), result.outputs, attributes, core.name)
                return


def _leaves(editor: Editor, core: Op) -> list[str]:
    """Values the core's argument is made of, nearest first."""
    found, todo = [], [(core.inputs[0], 0)]
    while todo:
        name, depth = todo.pop(0)
        if name in found or editor.scalar(name) is not None:
            continue
        found.append(name)
        maker = editor.producer(name, *POINTWISE)
        if maker is not None and depth < DEEPEST:
            todo += [(source, depth + 1) for source in maker.inputs]
    return found


def _next(editor: Editor, op: Op) -> Op | None:
    users = [user for user in editor.users(op.outputs[0]) if user.kind in POINTWISE]
    return users[0] if len(users) == 1 and op.outputs[0] not in editor.outputs else None


def _region(editor: Editor, result: Op, leaf: str) -> list[Op] | None:
    """The operators from ``leaf`` to ``result``, in order; None if anything else than scalars comes in."""
    order: list[Op] = []
    seen: set[int] = set()

    def walk(name: str, depth: int) -> bool:
        if name == leaf or editor.scalar(name) is not None:
            return True
        op = editor.producer(name, *POINTWISE)
        if op is None or depth > DEEPEST:
            return False
        if id(op) not in seen:
            seen.add(id(op))
            if not all(walk(source, depth + 1) for source in op.inputs):
                return False
            order.append(op)
        return True

    return order if walk(result.outputs[0], 0) and leaf != result.outputs[0] else None


def _recognise(editor: Editor, region: list[Op], leaf: str, result: str) -> str | None:
    values = {leaf: SAMPLES}
    for op in region:
        with np.errstate(all="ignore"):
            arrays = [values[name] if name in values else editor.constant(name) for name in op.inputs]
            outputs = evaluate(op, arrays)
        if outputs is None or outputs[0].shape != SAMPLES.shape:
            return None
        values[op.outputs[0]] = outputs[0]
    for name, wanted in WANTED.items():
        # The erf and tanh forms differ by 5e-4: a tolerance of 1e-5 tells them apart and forgives rounded constants.
        if np.allclose(values[result], wanted, rtol=0, atol=1e-5):
            return name
    return None
