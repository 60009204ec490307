"""Attention found by structure: one `pyclattn:Attention` in place of product, scale, mask, Softmax, product."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pyclattn.graph.passes.dims import product as total
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.heads import Operand, key, query_or_value, ungroup
from pyclattn.graph.passes.masks import Condition, Mask, MaskReader
from pyclattn.graph.passes.origins import share_tokens
from pyclattn.graph.passes.report import AttentionFound, Report, SoftmaxKept
from pyclattn.graph.passes.scores import NotAttention, Scores, Step, Walk
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op

SWAPPED = (0, 2, 1, 3)
COMPUTED = ("float32", "float16", "")  # types of scores; halves are computed in float32 and rounded at the end


def fuse_attention(editor: Editor, known: Shapes, report: Report, float_attention: bool = False) -> None:
    """Replace every attention; say of every other Softmax why it stays."""
    walk = Walk(editor, known, float_attention)
    for softmax in [op for op in editor.program.ops if op.kind == "Softmax"]:
        try:
            scores = walk.read(softmax)
            report.attentions.append(_replace(editor, known, scores, len(report.attentions), report))
        except NotAttention as reason:
            report.kept.append(SoftmaxKept(softmax.name or softmax.outputs[0], str(reason)))


@dataclass
class _Operands:
    """Query, key and value with four axes each, and how to get from there to what the program expects."""

    query: Operand
    key: Operand
    value: Operand
    merged: bool = False  # the program's arrays are (batch * heads, length, head_dim)
    added: tuple[int, ...] = ()  # axes of length 1 that were put in to make four


def _replace(editor: Editor, known: Shapes, scores: Scores, index: int, report: Report) -> AttentionFound:
    shape = known.shape(scores.product.outputs[0])
    if known.dtype(scores.product.outputs[0]) not in COMPUTED:
        raise NotAttention(f"its scores are {known.dtype(scores.product.outputs[0])}, not float32")
    types = [known.dtype(name) for name in (scores.product.inputs[0], scores.end.inputs[1])]
    if types[0] != types[1]:
        raise NotAttention(f"its query is {types[0] or 'of unknown type'}, its value {types[1] or 'of unknown type'}")
    if shape is None or not 2 <= len(shape) <= 4:
        raise NotAttention(f"its scores have {'unknown' if shape is None else len(shape)} axes, expected 2 to 4")
    operands, steps = _operands(editor, known, scores, len(shape))
    reader = MaskReader(editor, known, square=shape[-1] == shape[-2])
    for step in steps:
        if step.form == "add":
            reader.add(step.name, step.factor)
        elif step.form == "keep":
            reader.keep(step.name, step.fill)
        else:
            reader.drop(step.name, step.fill)
    name = attention_name(scores.softmax.name, index, {found.name for found in report.attentions})
    scale = scores.scale * operands.query.factor * operands.key.factor
    return emit_attention(editor, known, operands, reader.mask, scale, name, scores.end, scores.guarded)


def fold_output_layouts(editor: Editor) -> None:
    """Let an attention write (batch, length, heads, width) where that is what its only user turns it into."""
    for op in list(editor.program.ops):
        swap = editor.only_user(op.outputs[0], "Transpose") if op.kind == "pyclattn:Attention" else None
        if swap is not None and tuple(swap.attributes.get("perm", ())) == SWAPPED:
            turned = "blhd" if op.attributes["out_layout"] == "bhld" else "bhld"
            editor.remove(op, swap)
            editor.emit(op.kind, op.inputs, swap.outputs, {**op.attributes, "out_layout": turned}, op.name)


def attention_name(source: str, index: int, taken: set[str]) -> str:
    """A name for plans: the path that the exporter kept, else a number.

    Examples
    --------
    >>> attention_name("/encoder/layer.0/attention/Softmax", 0, set()), attention_name("node_softmax_3", 3, set())
    ('encoder.layer.0.attention', 'attention.3')
    """
    path = re.sub(r"[/.]?(node_)?softmax\w*$", "", source.strip("/"), flags=re.IGNORECASE).replace("/", ".")
    # Exporters repeat a module's name where it calls itself: attention.attention.
    parts = [part for part, before in zip(path.split("."), ["", *path.split(".")]) if part != before]
    name = ".".join(parts) if len(parts) > 1 else f"attention.{index}"
    return name if name not in taken else f"{name}.{index}"


# -- operands ---------------------------------------------------------------------------------------------------------


def _operands(editor: Editor, known: Shapes, scores: Scores, rank: int) -> tuple[_Operands, list[Step]]:
    q_name, k_name, v_name = *scores.product.inputs, scores.end.inputs[1]
    for part, name in (("query", q_name), ("key", k_name), ("value", v_name)):
        if known.rank(name) != rank:
            raise NotAttention(f"its {part} has {known.rank(name)} axes, its scores {rank}")
    query = query_or_value(editor, known, q_name, scaled=True)
    keys = key(editor, known, k_name)
    value = query_or_value(editor, known, v_name, scaled=False)
    operands = _Operands(query, keys, value)
    if rank == 4:
        if any(step.rank != 4 for step in scores.steps):
            raise NotAttention("its mask comes in where its scores have other axes than its product")
        _check_heads(known, operands)
        if known.shape(q_name)[1] == known.shape(k_name)[1]:
            grouped = [Operand(**vars(operand)) for operand in (keys, value)]
            for operand in grouped:
                ungroup(editor, known, operand)
            if all(new.name != old.name for new, old in zip(grouped, (keys, value))):
                operands.key, operands.value = grouped
        return operands, scores.steps
    unmerged = _unmerge(editor, known, operands, scores.steps) if rank == 3 else None
    if unmerged is not None:
        return unmerged
    return _with_axes(editor, known, operands, scores.steps, rank)


def operands_of(editor: Editor, known: Shapes, query: Operand, keys: Operand, value: Operand) -> _Operands:
    """Operands of an attention that was one operator already, their transposes taken off."""
    first, second, third = (
        query_or_value(editor, known, operand.name, scaled=operand is not value)
        if operand.layout == "bhld"
        else operand
        for operand in (query, keys, value)
    )
    return _Operands(first, second, third)


def _check_heads(known: Shapes, operands: _Operands) -> None:
    heads = [_heads(known, operand) for operand in (operands.query, operands.key, operands.value)]
    if heads[1] != heads[2]:
        raise NotAttention(f"its key has {heads[1]} heads, its value {heads[2]}")
    batches = {known.shape(operand.name)[0] for operand in (operands.query, operands.key, operands.value)}
    if 1 in batches and len(batches) > 1:
        raise NotAttention("its operands broadcast over the batch")
    if heads[0] != heads[1] and not (isinstance(heads[0], int) and heads[1] == 1):
        raise NotAttention(f"its query has {heads[0]} heads, its key {heads[1]}, which broadcast no other way than 1")


def _heads(known: Shapes, operand: Operand):
    return known.shape(operand.name)[2 if operand.layout == "blhd" else 1]


def _unmerge(editor: Editor, known: Shapes, operands: _Operands, steps: list[Step]):
    """Operands (batch * heads, length, width) as they were before batch and heads were merged."""
    found = []
    for operand in (operands.query, operands.key, operands.value):
        if operand.layout == "bhdl":
            return None
        name = _before_merge(editor, known, operand.name)
        if name is None:
            return None
        inner = query_or_value(editor, known, name, scaled=operand is not operands.value)
        found.append(Operand(inner.name, inner.layout, operand.factor * inner.factor))
    if len({_heads(known, operand) for operand in found}) != 1:
        return None
    heads = _heads(known, found[0])
    masks = [_split_mask(editor, known, step, heads) for step in steps]
    return None if None in masks else (_Operands(found[0], found[1], found[2], merged=True), masks)


def _split_mask(editor: Editor, known: Shapes, step: Step, heads) -> Step | None:
    """A mask for scores whose batch and heads are two axes."""
    shape, name = known.shape(step.name), step.name
    if shape is None or step.rank not in (3, 4):
        return None
    if step.rank == 3 and len(shape) == 3 and shape[0] != 1:
        before = _before_merge(editor, known, step.name)
        if before is None and not isinstance(heads, int):
            return None
        name = before or _split_batch(editor, known, step.name, heads)
    return Step(step.form, name, step.factor, step.fill)


def _split_batch(editor: Editor, known: Shapes, source: str, heads: int) -> str:
    """Reshape (batch * heads, length, keys) to (batch, heads, length, keys)."""
    count = editor.add_constant(np.array([heads], np.int64), "attention_heads")
    sizes = editor.emit("Shape", (source,), f"{source}_sizes", {"start": 1})
    both = editor.emit("Shape", (source,), f"{source}_merged", {"end": 1})
    batch = editor.emit("Div", (both, count), f"{source}_batch")
    sizes = editor.emit("Concat", (batch, count, sizes), f"{source}_split_sizes", {"axis": 0})
    made = editor.emit("Reshape", (source, sizes), f"{source}_split")
    shape = known.shape(source)
    known.shapes[made] = (shape[0] // heads, heads, *shape[1:])
    known.dtypes[made] = known.dtype(source)
    return made


def _before_merge(editor: Editor, known: Shapes, name: str) -> str | None:
    op, shape = editor.producer(name, "Reshape"), known.shape(name)
    source = known.shape(op.inputs[0]) if op else None
    if not source or len(source) != 4 or (total(source[:2]), *source[2:]) != shape:
        return None
    return op.inputs[0]


def _with_axes(editor: Editor, known: Shapes, operands: _Operands, steps: list[Step], rank: int):
    """Operands of two or three axes with heads, or batch and heads, of length 1 put in."""
    added = (1,) if rank == 3 else (0, 1)
    axes = editor.add_constant(np.array(added, np.int64), "attention_axes")

    def widened(name: str) -> str:
        shape = known.shape(name)
        new = editor.emit("Unsqueeze", (name, axes), f"{name}_4d")
        known.shapes[new] = tuple(shape[:1] if rank == 3 else ()) + (1,) * len(added) + tuple(shape[-2:])
        known.dtypes[new] = known.dtype(name)
        return new

    for operand in (operands.query, operands.key, operands.value):
        operand.name = widened(operand.name)
    masks = []
    for step in steps:
        shape = known.shape(step.name)
        if shape is None:
            raise NotAttention("its mask has an unknown number of axes")
        if step.rank != rank:
            raise NotAttention(f"its mask is for scores of {step.rank} axes, its product has {rank}")
        wide = rank == 3 and len(shape) == 3
        masks.append(Step(step.form, widened(step.name) if wide else step.name, step.factor, step.fill))
    operands.added = added
    return operands, masks


# -- writing it -------------------------------------------------------------------------------------------------------


def emit_attention(
    editor: Editor, known: Shapes, operands, mask: Mask, scale: float, name: str, end: Op, guarded: bool
) -> AttentionFound:
    """Put the fused operator in place of ``end``, whose output it makes."""
    q, k, v = operands.query, operands.key, operands.value
    target = end.outputs[0]
    attributes = {
        "name": name,
        "scale": float(scale),
        "is_causal": mask.causal,
        "q_layout": q.layout,
        "k_layout": k.layout,
        "v_layout": v.layout,
        "out_layout": "bhld",
        "is_self": share_tokens(editor, q.name, k.name),
    }
    inputs = (q.name, k.name, v.name, _pair_mask(editor, known, mask, guarded), _padding(editor, known, mask))
    if editor.producers.get(target) is end:
        editor.remove(end)
    if operands.merged:
        out = editor.emit("pyclattn:Attention", inputs, f"{target}_4d", attributes, name)
        sizes = editor.emit("Shape", (out,), f"{target}_sizes", {"start": 2})
        minus = editor.add_constant(np.array([-1], np.int64), f"{target}_merged")
        sizes = editor.emit("Concat", (minus, sizes), f"{target}_shape", {"axis": 0})
        editor.emit("Reshape", (out, sizes), (target,))
    elif operands.added:
        out = editor.emit("pyclattn:Attention", inputs, f"{target}_4d", attributes, name)
        axes = editor.add_constant(np.array(operands.added, np.int64), "attention_axes")
        editor.emit("Squeeze", (out, axes), (target,))
    else:
        editor.emit("pyclattn:Attention", inputs, (target,), attributes, name)
    shape = known.shape(q.name)
    return AttentionFound(
        name, _plain(_heads(known, q)), _plain(_heads(known, k)), _plain(shape[-1]), scale, mask.kind()
    )


def _plain(size) -> int | str:
    return size if isinstance(size, int) else str(size)


def _padding(editor: Editor, known: Shapes, mask: Mask) -> str:
    """Key padding of all conditions, (batch, length), True where a key is padding."""
    parts = [_two_axes(editor, known, condition) for condition in mask.padding]
    while len(parts) > 1:
        parts.append(editor.emit("Or", (parts.pop(0), parts.pop(0)), "key_padding"))
    return parts[0] if parts else ""


def _two_axes(editor: Editor, known: Shapes, condition: Condition) -> str:
    name = condition.name
    rank = known.rank(name)
    if known.dtype(name) != "bool":
        name = editor.emit("Cast", (name,), f"{name}_bool", {"to": "bool"})
    if not condition.drop_if:
        name = editor.emit("Not", (name,), f"{name}_padding")
    if rank == 2:
        return name
    kind = "Squeeze" if rank > 2 else "Unsqueeze"
    axes = {4: [1, 2], 3: [0], 1: [0], 0: [0, 1]}[rank]  # of three axes the first is heads: (1, 1, length)
    return editor.emit(kind, (name, editor.add_constant(np.array(axes, np.int64), "padding_axes")), f"{name}_2d")


def _pair_mask(editor: Editor, known: Shapes, mask: Mask, guarded: bool) -> str:
    """Conditions on pairs and added terms as one mask, boolean where nothing is added."""
    keep = ""
    for condition in mask.pairs:
        name = condition.name
        if known.dtype(name) != "bool":
            name = editor.emit("Cast", (name,), f"{name}_bool", {"to": "bool"})
        if condition.drop_if:
            name = editor.emit("Not", (name,), f"{name}_keep")
        keep = editor.emit("And", (keep, name), "attention_keep") if keep else name
    terms = _terms(editor, known, mask)
    fill = max((condition.fill for condition in mask.pairs), default=float("-inf"))
    if not keep:
        return terms
    if not terms and (guarded or fill == float("-inf")):
        return keep
    # A row that is masked everywhere is an even mean where the fill is finite, zeros where it is -inf: kept so.
    number = editor.add_constant(np.float32(fill), "attention_fill")
    return editor.emit(
        "Where", (keep, terms or editor.add_constant(np.float32(0), "attention_zero"), number), "pair_mask"
    )


def _terms(editor: Editor, known: Shapes, mask: Mask) -> str:
    result = ""
    for name, factor in mask.terms:
        if known.dtype(name) not in ("float32", ""):
            name = editor.emit("Cast", (name,), f"{name}_float", {"to": "float32"})
        if factor != 1.0:
            name = editor.emit("Mul", (name, editor.add_constant(np.float32(factor), "bias_factor")), f"{name}_scaled")
        result = editor.emit("Add", (result, name), "attention_bias") if result else name
    return result
