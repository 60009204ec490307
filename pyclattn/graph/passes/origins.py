"""Where values come from: whether a query and a key are made of the same tokens."""

from __future__ import annotations

from pyclattn.graph.passes.edit import Editor

# Operators that leave a token where it is, followed through their first input only.
FIRST = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Expand", "Cast", "Identity", "Neg", "Gemm",
    "LayerNormalization", "RMSNormalization", "pyclattn:LayerNorm", "pyclattn:RMSNorm", "pyclattn:Rotary",
    "pyclattn:Linear", "DequantizeLinear", "QuantizeLinear",
}  # fmt: skip
# And those whose inputs all count: rows of a table are the tokens that its indices say.
ALL = {"MatMul", "Add", "Sub", "Mul", "Div", "Concat", "Gather"}


def share_tokens(editor: Editor, first: str, second: str) -> bool:
    """Whether both are made of the same values, token by token: self-attention, if they are a query and a key."""
    found = _origins(editor, first)
    return bool(found) and found == _origins(editor, second)


def _origins(editor: Editor, name: str) -> frozenset[str]:
    """The values behind one that no such operator made; constants left out."""
    found, seen, left = set(), {name}, [name]
    while left:
        value = left.pop()
        op = editor.producers.get(value)
        if op is not None and (op.kind in FIRST or op.kind in ALL):
            inputs = op.inputs[:1] if op.kind in FIRST else op.inputs
            left += [i for i in inputs if i and i not in seen]
            seen.update(inputs)
        elif editor.constant(value) is None:
            found.add(value)
    return frozenset(found)
