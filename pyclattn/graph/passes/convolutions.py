"""Batch norm behind a convolution, multiplied into its weight and bias."""

from __future__ import annotations

import numpy as np

from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.program import Op


def fold_batch_norms(editor: Editor) -> None:
    """Fold every BatchNormalization whose only source is a Conv or ConvTranspose with constant weights."""
    for op in list(editor.program.ops):
        if op.kind == "BatchNormalization":
            _fold(editor, op)


def _fold(editor: Editor, norm: Op) -> None:
    conv = editor.producer(norm.inputs[0], "Conv", "ConvTranspose")
    if conv is None or editor.only_user(conv.outputs[0]) is not norm:
        return
    weight, bias = (editor.constant(name) if name else None for name in (*conv.inputs[1:3], "")[:2])
    statistics = [editor.constant(name) for name in norm.inputs[1:5]]
    # The channels of a transposed convolution's output are the second axis of its weight, split by groups.
    axis = 0 if conv.kind == "Conv" else 1
    if weight is None or any(array is None for array in statistics) or (len(conv.inputs) > 2 and bias is None):
        return
    if weight.dtype != np.float32 or (axis == 1 and conv.attributes.get("group", 1) != 1):
        return
    gain, shift, mean, variance = (array.astype(np.float64) for array in statistics)
    if gain.shape != (weight.shape[axis],):
        return
    factor = gain / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
    offset = shift + factor * ((0.0 if bias is None else bias.astype(np.float64)) - mean)
    spread = factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    names = (
        editor.add_constant((weight * spread).astype(np.float32), f"{conv.inputs[1]}_normed"),
        editor.add_constant(offset.astype(np.float32), f"{norm.inputs[2]}_normed"),
    )
    editor.remove(conv, norm)
    editor.emit(conv.kind, (conv.inputs[0], *names), norm.outputs, conv.attributes, conv.name)
