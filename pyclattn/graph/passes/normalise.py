"""Fused and unusual forms rewritten into the plain ones the other passes know.

ONNX Runtime's optimiser and newer exporters leave operators that stand for several: FusedMatMul, BiasGelu, FastGelu,
SkipLayerNormalization, whole attentions. Attentions become `pyclattn:Attention` at once, the rest becomes its pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyclattn.graph.passes.attention import COMPUTED, attention_name, emit_attention, operands_of
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.heads import Operand
from pyclattn.graph.passes.masks import MaskReader
from pyclattn.graph.passes.report import Report
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

MICROSOFT = "com.microsoft:"


def normalise(editor: Editor, known: Shapes, report: Report) -> None:
    """Rewrite every fused operator that has a plain form."""
    for op in list(editor.program.ops):
        rule = RULES.get(op.kind)
        if rule:
            rule(editor, known, op, report)


def _input(op: Op, index: int) -> str:
    return op.inputs[index] if index < len(op.inputs) else ""


def _used(editor: Editor, op: Op, index: int) -> bool:
    """Whether anything needs this output."""
    name = op.outputs[index] if index < len(op.outputs) else ""
    return bool(name) and (bool(editor.users(name)) or name in editor.outputs)


# -- pieces -----------------------------------------------------------------------------------------------------------


def _fused_matmul(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    get = op.attributes.get
    ranks = [known.rank(name) for name in op.inputs]
    if get("transBatchA") or get("transBatchB") or None in ranks:
        return
    inputs = []
    for name, rank, turned in zip(op.inputs, ranks, (get("transA"), get("transB"))):
        perm = [*range(rank - 2), rank - 1, rank - 2]
        inputs.append(editor.emit("Transpose", (name,), f"{name}_turned", {"perm": perm}, op.name) if turned else name)
    editor.remove(op)
    alpha = get("alpha", 1.0)
    if alpha == 1.0:
        editor.emit("MatMul", inputs, op.outputs, {}, op.name)
        return
    product = editor.emit("MatMul", inputs, f"{op.outputs[0]}_product", {}, op.name)
    editor.emit("Mul", (product, editor.add_constant(np.float32(alpha), "alpha")), op.outputs, {}, op.name)


def _skip_layer_norm(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    """input, skip, gamma, beta, bias -> norm(input + skip + bias), and the sum itself as the last output."""
    if _used(editor, op, 1) or _used(editor, op, 2):
        return
    simple = "Simplified" in op.kind
    beta, bias = ("", _input(op, 3)) if simple else (_input(op, 3), _input(op, 4))
    editor.remove(op)
    wants_sum = len(op.outputs) > 3 and op.outputs[3]
    first = editor.emit("Add", (op.inputs[0], bias), f"{op.outputs[0]}_biased") if bias else op.inputs[0]
    total = editor.emit("Add", (first, op.inputs[1]), (op.outputs[3],) if wants_sum else f"{op.outputs[0]}_sum")
    kind = "pyclattn:RMSNorm" if simple else "pyclattn:LayerNorm"
    inputs = (total, _input(op, 2), beta)
    editor.emit(kind, inputs, op.outputs[:1], {"epsilon": op.attributes.get("epsilon", 1e-12)}, op.name)


def _gelu(approximate: str):
    def rule(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
        editor.remove(op)
        x = op.inputs[0]
        if _input(op, 1):
            x = editor.emit("Add", op.inputs[:2], f"{op.outputs[0]}_biased", {}, op.name)
        editor.emit("pyclattn:Gelu", (x,), op.outputs, {"approximate": approximate}, op.name)

    return rule


def _quick_gelu(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    # Its alpha is 1.702 in every model that has it; another is not the quick form and stays.
    if abs(op.attributes.get("alpha", 1.702) - 1.702) < 1e-6:
        _gelu("quick")(editor, known, op, report)


def _einsum(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    """The two products of attention: ``bhid,bhjd->bhij`` and ``bhij,bhjd->bhid``, in any letters and order of axes."""
    left, _, right = op.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not right or "." in left or any(len(set(t)) != len(t) for t in (*terms, right)):
        return
    first, second = terms
    summed = [letter for letter in first if letter in second and letter not in right]
    batch = [letter for letter in right if letter in first and letter in second]
    rows = [letter for letter in right if letter in first and letter not in second]
    columns = [letter for letter in right if letter in second and letter not in first]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or not batch:
        return
    if len(first) != len(batch) + 2 or len(second) != len(batch) + 2:
        return
    a = _turned(editor, op, 0, first, [*batch, *rows, *summed])
    b = _turned(editor, op, 1, second, [*batch, *summed, *columns])
    order = [*batch, *rows, *columns]
    editor.remove(op)
    if "".join(order) == right:
        editor.emit("MatMul", (a, b), op.outputs, {}, op.name)
        return
    product = editor.emit("MatMul", (a, b), f"{op.outputs[0]}_product", {}, op.name)
    perm = [order.index(letter) for letter in right]
    editor.emit("Transpose", (product,), op.outputs, {"perm": perm}, op.name)


def _turned(editor: Editor, op: Op, index: int, letters: str, order: list[str]) -> str:
    perm = [letters.index(letter) for letter in order]
    if perm == sorted(perm):
        return op.inputs[index]
    return editor.emit("Transpose", (op.inputs[index],), f"{op.inputs[index]}_turned", {"perm": perm}, op.name)


# -- attentions -------------------------------------------------------------------------------------------------------


def _split(editor: Editor, known: Shapes, name: str, heads: int) -> Operand | None:
    """(batch, length, heads * width) as (batch, length, heads, width)."""
    shape = known.shape(name)
    if shape is None or len(shape) != 3 or not isinstance(shape[2], int) or not heads or shape[2] % heads:
        return None
    sizes = editor.add_constant(np.array([0, 0, heads, shape[2] // heads], np.int64), f"{name}_heads")
    made = editor.emit("Reshape", (name, sizes), f"{name}_split")
    known.shapes[made] = (*shape[:2], heads, shape[2] // heads)
    known.dtypes[made] = known.dtype(name)
    return Operand(made, "blhd")


def _finish(editor, known, report: Report, op: Op, operands, reader: MaskReader, scale: float, packed: bool) -> None:
    """Emit the attention; for packed heads a Reshape to (batch, length, heads * width) follows it."""
    name = attention_name(op.name, len(report.attentions), {found.name for found in report.attentions})
    if not packed:
        end = Op("Attention", (), op.outputs[:1])
        report.attentions.append(emit_attention(editor, known, operands, reader.mask, scale, name, end, True))
        return
    out = editor.fresh(f"{op.outputs[0]}_4d")
    end = Op("Attention", (), (out,))
    report.attentions.append(emit_attention(editor, known, operands, reader.mask, scale, name, end, True))
    maker = editor.producer(out)
    maker.attributes["out_layout"] = "blhd"
    sizes = editor.add_constant(np.array([0, 0, -1], np.int64), f"{op.outputs[0]}_merged")
    editor.emit("Reshape", (out, sizes), op.outputs[:1], {}, op.name)


def _onnx_attention(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    """ONNX 23 and 24, where neither cache nor scores are asked for."""
    get = op.attributes.get
    cached = any(_input(op, index) for index in (4, 5, 6)) or any(_used(editor, op, index) for index in (1, 2, 3))
    windows = (get("left_window_size", -1), get("right_window_size", -1))
    if cached or get("softcap", 0.0) or windows != (-1, -1) or known.dtype(op.inputs[0]) not in COMPUTED:
        return
    rank = known.rank(op.inputs[0])
    if rank == 3:
        heads = [get(key, 0) for key in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
        parts: list[Any] = [_split(editor, known, name, count) for name, count in zip(op.inputs, heads)]
    else:
        parts = [Operand(name) if known.rank(name) == 4 else None for name in op.inputs[:3]]
    if None in parts:
        return
    operands = operands_of(editor, known, parts[0], parts[1], parts[2])
    shapes = [known.shape(part.name) for part in (operands.query, operands.key)]
    at = [2 if part.layout == "bhld" else 1 for part in (operands.query, operands.key)]
    reader = MaskReader(editor, known, square=shapes[0][at[0]] == shapes[1][at[1]])
    mask = _input(op, 3)
    if mask and known.rank(mask) is None:
        return
    if mask and known.dtype(mask) == "bool":
        reader.keep(mask)
    elif mask:
        reader.add(mask)
    if get("is_causal", 0):
        reader.mask.causal = True
    width = shapes[0][-1]
    scale = get("scale")
    if scale is None:
        if not isinstance(width, int):
            return
        scale = width**-0.5
    editor.remove(op)
    scale *= operands.query.factor * operands.key.factor
    _finish(editor, known, report, op, operands, reader, scale, rank == 3)


def _multi_head(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    """com.microsoft MultiHeadAttention: query, key, value, bias, key_padding_mask, attention_bias."""
    heads = op.attributes.get("num_heads", 0)
    names = list(op.inputs[:3])
    shapes = [known.shape(name) for name in names]
    if len(names) < 3 or any(_input(op, index) for index in (6, 7)) or any(_used(editor, op, i) for i in (1, 2, 3)):
        return
    if any(shape is None or len(shape) != 3 or not isinstance(shape[2], int) for shape in shapes):
        return
    bias = editor.constant(_input(op, 3)) if _input(op, 3) else None
    if _input(op, 3) and bias is None:
        return
    if bias is not None:
        ends = np.cumsum([shape[2] for shape in shapes])
        for index, part in enumerate(np.split(bias, ends[:-1])):
            shape, dtype = shapes[index], known.dtype(names[index])
            part_name = editor.add_constant(np.ascontiguousarray(part), f"{op.outputs[0]}_bias")
            names[index] = editor.emit("Add", (names[index], part_name), f"{names[index]}_biased", {}, op.name)
            known.shapes[names[index]], known.dtypes[names[index]] = shape, dtype
    _packed(editor, known, op, report, names, heads, _input(op, 4), _input(op, 5))


def _packed_attention(editor: Editor, known: Shapes, op: Op, report: Report) -> None:
    """com.microsoft Attention: input, weights, bias, mask_index, past, attention_bias."""
    weight = editor.constant(op.inputs[1])
    shape, get = known.shape(op.inputs[0]), op.attributes.get
    if weight is None or shape is None or _input(op, 4) or _used(editor, op, 1) or get("do_rotary"):
        return
    sizes = get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    bias = editor.constant(_input(op, 2)) if _input(op, 2) else None
    if sum(sizes) != weight.shape[1] or (_input(op, 2) and bias is None):
        return
    names, ends = [], np.cumsum(sizes)[:-1]
    for index, part in enumerate(np.split(weight, ends, 1)):
        made = editor.add_constant(np.ascontiguousarray(part), f"{op.inputs[1]}_part")
        name = editor.emit("MatMul", (op.inputs[0], made), f"{op.outputs[0]}_in", {}, op.name)
        if bias is not None:
            vector = editor.add_constant(np.split(bias, ends)[index].copy(), f"{op.inputs[2]}_part")
            name = editor.emit("Add", (name, vector), f"{op.outputs[0]}_in", {}, op.name)
        known.shapes[name], known.dtypes[name] = (*shape[:2], sizes[index]), known.dtype(op.inputs[0])
        names.append(name)
    _packed(editor, known, op, report, names, get("num_heads", 0), _input(op, 3), _input(op, 5))


def _packed(editor, known, op: Op, report: Report, names: list[str], heads: int, padding: str, bias: str) -> None:
    parts: list[Any] = [_split(editor, known, name, heads) for name in names]
    shape: Any = known.shape(padding) if padding else ()
    # A mask is (batch, keys) of 0 and 1; lengths and masks of pairs stay with ONNX Runtime's own operator.
    if None in parts or shape is None or (padding and len(shape) != 2):
        return
    operands = operands_of(editor, known, parts[0], parts[1], parts[2])
    reader = MaskReader(editor, known, square=bool(op.attributes.get("unidirectional", 0)))
    if padding:
        axes = editor.add_constant(np.array([1, 2], np.int64), "mask_axes")
        kept = editor.emit("Cast", (padding,), f"{padding}_bool", {"to": "bool"})
        kept = editor.emit("Unsqueeze", (kept, axes), f"{padding}_keep")
        known.shapes[kept], known.dtypes[kept] = (shape[0], 1, 1, shape[1]), "bool"
        reader.keep(kept)
    if bias:
        reader.add(bias)
    reader.mask.causal = reader.mask.causal or bool(op.attributes.get("unidirectional", 0))
    scale = op.attributes.get("scale") or known.shape(parts[0].name)[3] ** -0.5
    editor.remove(op)
    _finish(editor, known, report, op, operands, reader, scale, True)


RULES = {
    f"{MICROSOFT}FusedMatMul": _fused_matmul,
    f"{MICROSOFT}SkipLayerNormalization": _skip_layer_norm,
    f"{MICROSOFT}SkipSimplifiedLayerNormalization": _skip_layer_norm,
    f"{MICROSOFT}BiasGelu": _gelu("none"),
    f"{MICROSOFT}Gelu": _gelu("none"),
    f"{MICROSOFT}FastGelu": _gelu("tanh"),
    f"{MICROSOFT}QuickGelu": _quick_gelu,
    "Einsum": _einsum,
    "Attention": _onnx_attention,
    f"{MICROSOFT}MultiHeadAttention": _multi_head,
    f"{MICROSOFT}Attention": _packed_attention,
}
