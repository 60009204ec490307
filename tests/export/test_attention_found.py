"""Attention is found in every spelling, what is not attention stays, and results do not change."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import Builder, check, kinds, only

from pyclattn.graph.passes import optimize
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

B, H, L, S, D = 2, 4, 7, 7, 8
LOW = float(np.finfo(np.float32).min)
MASK = np.ones((B, S), np.int64)
MASK[1, 5:] = 0


def heads(g, x, n=H, d=D):
    """(batch, length, heads * width) to (batch, heads, length, width)."""
    split = g("Reshape", x, g.const([0, 0, n, d], np.int64))
    return g("Transpose", split, perm=[0, 2, 1, 3])


def merge(g, x, n=H, d=D):
    turned = g("Transpose", x, perm=[0, 2, 1, 3])
    return g("Reshape", turned, g.const([0, 0, n * d], np.int64))


def operands(g, length="l", keys="l"):
    query = g.input("query", ["b", length, H * D], g.rng.standard_normal((B, L, H * D)))
    source = query if keys == length else g.input("memory", ["b", keys, H * D], g.rng.standard_normal((B, S, H * D)))
    q, k, v = (g("MatMul", x, g.weight(H * D, H * D)) for x in (query, source, source))
    return heads(g, q), heads(g, k), heads(g, v)


def transposed(g, k):
    return g("Transpose", k, perm=[0, 1, 3, 2])


def scores_of(g, q, k):
    return g("Mul", g("MatMul", q, transposed(g, k)), g.const(np.float32(D**-0.5)))


def attention_mask(g):
    return g.input("attention_mask", ["b", "l"], MASK, "int64")


def finish(g, scores, v, guard=lambda g, p: p, **model):
    p = guard(g, g("Softmax", scores, axis=-1))
    return g.model(merge(g, g("MatMul", p, v)), **model)


def found_one(g, model):
    program, report = check(model, g.feeds)
    assert len(report.attentions) == 1, report
    assert not report.kept
    assert "Softmax" not in kinds(program)
    return only(program, "pyclattn:Attention"), report.attentions[0], program


# -- scale ------------------------------------------------------------------------------------------------------------


def no_scale(g, q, k):
    return g("MatMul", q, transposed(g, k))


def mul_after(g, q, k):
    return g("Mul", g.const(np.float32(0.3)), no_scale(g, q, k))


def div_after(g, q, k):
    return g("Div", no_scale(g, q, k), g.const([4.0]))


def on_query(g, q, k):
    return no_scale(g, g("Mul", q, g.const(np.float32(0.3))), k)


def on_both(g, q, k):
    root = g("Sqrt", g("Div", g.const(np.float32(1)), g("Sqrt", g.const(np.float32(D)))))
    return g("MatMul", g("Mul", q, root), g("Mul", transposed(g, k), root))


def on_key_before_its_transpose(g, q, k):
    return no_scale(g, q, g("Div", k, g.const(np.float32(3))))


def key_from_flat_heads(g, q, k):
    """The newer exporter turns the key with batch and heads merged."""
    flat = g("Reshape", k, g.const([-1, L, D], np.int64))
    turned = g("Transpose", flat, perm=[0, 2, 1])
    return g("MatMul", q, g("Reshape", turned, g.const([B, H, D, L], np.int64)))


SCALES = {
    no_scale: 1, mul_after: 0.3, div_after: 0.25, on_query: 0.3, on_both: D**-0.5, on_key_before_its_transpose: 1 / 3,
    key_from_flat_heads: 1,
}  # fmt: skip


@pytest.mark.parametrize("spelling", SCALES, ids=lambda f: f.__name__)
def test_scale(spelling):
    g = Builder()
    q, k, v = operands(g)
    op, found, _ = found_one(g, finish(g, spelling(g, q, k), v))
    assert op.attributes["scale"] == pytest.approx(SCALES[spelling], rel=1e-6)
    assert (found.n_heads, found.head_dim, found.mask) == (H, D, "none")


def test_heads_fold_into_strides():
    g = Builder()
    q, k, v = operands(g)
    op, _, program = found_one(g, finish(g, scores_of(g, q, k), v))
    assert [op.attributes[f"{which}_layout"] for which in ("q", "k", "v", "out")] == ["blhd"] * 4
    assert "Transpose" not in kinds(program)


def test_key_turned_at_once():
    """Transpose(0, 2, 3, 1) of the split key, as the older exporter writes it."""
    g = Builder()
    x = g.input("x", ["b", "l", H * D], g.rng.standard_normal((B, L, H * D)))
    q, v = (heads(g, g("MatMul", x, g.weight(H * D, H * D))) for _ in range(2))
    split = g("Reshape", g("MatMul", x, g.weight(H * D, H * D)), g.const([0, 0, H, D], np.int64))
    scores = g("MatMul", q, g("Transpose", split, perm=[0, 2, 3, 1]))
    op, _, program = found_one(g, finish(g, scores, v))
    assert op.attributes["k_layout"] == "blhd"
    assert "Transpose" not in kinds(program)


def test_key_that_is_already_turned():
    g = Builder()
    q = g.input("q", ["b", H, L, D])
    k = g.input("k", ["b", H, D, S])
    v = g.input("v", ["b", H, S, D])
    for name, shape in (("q", (B, H, L, D)), ("k", (B, H, D, S)), ("v", (B, H, S, D))):
        g.feeds[name] = g.rng.standard_normal(shape).astype(np.float32)
    model = g.model(g("MatMul", g("Softmax", g("MatMul", q, k), axis=-1), v))
    op, _, _ = found_one(g, model)
    assert op.attributes["k_layout"] == "bhdl"


def test_three_axes_without_heads():
    g = Builder()
    x = g.input("x", ["b", "l", D], g.rng.standard_normal((B, L, D)))
    scores = g("MatMul", x, g("Transpose", x, perm=[0, 2, 1]))
    model = g.model(g("MatMul", g("Softmax", scores, axis=2), x))
    _, found, _ = found_one(g, model)
    assert found.n_heads == 1


def merged_heads(g, x):
    """(batch, heads, length, width) to (batch * heads, length, width), as torch's older layers do."""
    return g("Reshape", x, g.const([-1, L, D], np.int64))


def test_batch_and_heads_merged():
    g = Builder()
    x = g.input("x", ["b", L, H * D], g.rng.standard_normal((B, L, H * D)))
    q, k, v = (merged_heads(g, heads(g, g("MatMul", x, g.weight(H * D, H * D)))) for _ in range(3))
    p = g("Softmax", g("MatMul", q, g("Transpose", k, perm=[0, 2, 1])), axis=-1)
    out = g("Reshape", g("MatMul", p, v), g.const([-1, H, L, D], np.int64))
    _, found, program = found_one(g, g.model(merge(g, out)))
    assert found.n_heads == H
    assert "Transpose" not in kinds(program)


def test_cross_attention_of_another_length():
    g = Builder()
    q, k, v = operands(g, "l", "s")
    op, found, _ = found_one(g, finish(g, scores_of(g, q, k), v))
    assert found.mask == "none"
    assert not op.attributes["is_self"]


def test_cross_attention_of_the_same_length():
    """Padding among the keys says nothing of the queries."""
    g = Builder()
    query, memory = (g.input(n, ["b", "l", H * D], g.rng.standard_normal((B, L, H * D))) for n in ("query", "memory"))
    q, k, v = (heads(g, g("MatMul", x, g.weight(H * D, H * D))) for x in (query, memory, memory))
    op, _, _ = found_one(g, finish(g, minus_ten_thousand(g, attention_mask(g), scores_of(g, q, k)), v))
    assert not op.attributes["is_self"]


@pytest.mark.parametrize(("memory", "is_self"), [("ids", True), ("others", False)])
def test_tokens_looked_up_in_a_table(memory, is_self):
    """The first layer of an encoder: tokens and positions are rows of tables, which are constants."""
    g = Builder()
    table, positions = g.weight(9, H * D), g("Gather", g.weight(20, H * D), g.const(np.arange(L)))
    tokens = {
        name: g("Add", g("Gather", table, g.input(name, ["b", "l"], g.rng.integers(0, 9, (B, L)), "int64")), positions)
        for name in {"ids", memory}
    }
    q, k, v = (heads(g, g("MatMul", tokens[name], g.weight(H * D, H * D))) for name in ("ids", memory, memory))
    op, _, _ = found_one(g, finish(g, minus_ten_thousand(g, attention_mask(g), scores_of(g, q, k)), v))
    assert op.attributes["is_self"] == is_self


def test_query_key_value_from_one_product():
    """One product for all three, split by Reshape, Transpose and Gather: entries become views, not copies."""
    g = Builder()
    x = g.input("x", ["b", "l", H * D], g.rng.standard_normal((B, L, H * D)))
    packed = g("Reshape", g("MatMul", x, g.weight(H * D, 3 * H * D)), g.const([0, 0, 3, H, D], np.int64))
    turned = g("Transpose", packed, perm=[2, 0, 3, 1, 4])
    q, k, v = (g("Gather", turned, g.const(i, np.int64), axis=0) for i in range(3))
    op, _, program = found_one(g, finish(g, scores_of(g, q, k), v))
    assert op.attributes["q_layout"] == "blhd"
    assert op.attributes["is_self"]
    assert "Transpose" not in kinds(program)


@pytest.mark.parametrize("repeat", ["Expand", "Tile"])
def test_grouped_heads(repeat):
    g = Builder()
    x = g.input("x", ["b", "l", H * D], g.rng.standard_normal((B, L, H * D)))
    q = heads(g, g("MatMul", x, g.weight(H * D, H * D)))
    grouped = []
    for _ in range(2):
        few = heads(g, g("MatMul", x, g.weight(H * D, 2 * D)), 2)
        wide = g("Unsqueeze", few, g.const([2], np.int64))
        count = g.const([1, 1, 2, 1, 1], np.int64)
        sizes = g("Shape", x, start=1, end=2)
        wide = g("Expand", wide, count) if repeat == "Expand" else g("Tile", wide, count)
        one = g.const([-1], np.int64)
        shape = g("Concat", one, g.const([H], np.int64), sizes, g.const([D], np.int64), axis=0)
        grouped.append(g("Reshape", wide, shape))
    _, found, program = found_one(g, finish(g, scores_of(g, q, grouped[0]), grouped[1]))
    assert (found.n_heads, found.n_kv_heads) == (H, 2)
    assert repeat not in kinds(program)


@pytest.mark.parametrize("opset", [11, 12])
def test_softmax_over_all_further_axes(opset):
    """Before opset 13 Softmax(axis=3) flattened its input; on the last axis it is the same."""
    g = Builder()
    q, k, v = operands(g)
    p = g("Softmax", scores_of(g, q, k), axis=3)
    found_one(g, g.model(merge(g, g("MatMul", p, v)), opset=opset, ir_version=6))


def test_einsum():
    g = Builder()
    x = g.input("x", ["b", "l", H * D], g.rng.standard_normal((B, L, H * D)))
    split = g.const([0, 0, H, D], np.int64)
    q, k, v = (g("Reshape", g("MatMul", x, g.weight(H * D, H * D)), split) for _ in range(3))
    p = g("Softmax", g("Einsum", q, k, equation="blhd,bshd->bhls"), axis=-1)
    out = g("Einsum", p, v, equation="bhls,bshd->blhd")
    found_one(g, g.model(g("Reshape", out, g.const([0, 0, H * D], np.int64))))


# -- padding ----------------------------------------------------------------------------------------------------------


def one_minus_mask_times_min(g, mask, scores):
    wide = g("Unsqueeze", mask, g.const([1, 2], np.int64))
    flipped = g("Sub", g.const(np.float32(1)), g("Cast", wide, to=TensorProto.FLOAT))
    return g("Add", scores, g("Mul", flipped, g.const(np.float32(LOW))))


def minus_ten_thousand(g, mask, scores):
    flipped = g("Sub", g.const(np.float32(1)), g("Cast", mask, to=TensorProto.FLOAT))
    added = g("Mul", flipped, g.const(np.float32(-10000)))
    return g("Add", g("Unsqueeze", added, g.const([1, 2], np.int64)), scores)


def expanded_over_queries(g, mask, scores):
    """The older exporter: Expand to B x 1 x L x S, flip, fill where it is set."""
    wide = g("Unsqueeze", mask, g.const([1, 2], np.int64))
    sizes = g("Concat", g("Shape", mask, start=0, end=1), g.const([1], np.int64), g("Shape", mask, start=1, end=2),
              g("Shape", mask, start=1, end=2), axis=0)  # fmt: skip
    flipped = g("Sub", g.const(np.float32(1)), g("Cast", g("Expand", wide, sizes), to=TensorProto.FLOAT))
    filled = g("Where", g("Cast", flipped, to=TensorProto.BOOL), g.const(np.float32(LOW)), flipped)
    return g("Add", scores, filled)


def where_on_scores(g, mask, scores):
    keep = g("Cast", g("Unsqueeze", mask, g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    return g("Where", keep, scores, g.const(np.float32("-inf")))


def filled_where_zero(g, mask, scores):
    drop = g("Equal", mask, g.const(0, np.int64))
    return g("Where", g("Unsqueeze", drop, g.const([1, 2], np.int64)), g.const(np.float32(LOW)), scores)


def where_to_additive(g, mask, scores):
    keep = g("Cast", g("Unsqueeze", mask, g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    return g("Add", scores, g("Where", keep, g.const(np.float32(0)), g.const(np.float32("-inf"))))


def gathered_by_grids(g, mask, scores):
    """The newer exporter: positions as grids, the mask looked up by GatherND, And with a check that is always true."""
    one, zero = g.const(1, np.int64), g.const(0, np.int64)
    batch, length = g("Shape", mask, start=0, end=1), g("Shape", mask, start=1, end=2)
    rows = g("Range", zero, g("Squeeze", batch, g.const([0], np.int64)), one)
    keys = g("Range", zero, g("Squeeze", length, g.const([0], np.int64)), one)
    rows = g("Unsqueeze", rows, g.const([1, 2, 3], np.int64))
    queries = g("Unsqueeze", keys, g.const([0, 1, 3], np.int64))
    keys = g("Unsqueeze", keys, g.const([0, 1, 2], np.int64))
    sizes = g("Shape", g("Max", rows, keys))
    index = [g("Unsqueeze", g("Expand", x, sizes), g.const([-1], np.int64)) for x in (rows, keys)]
    kept = g("GatherND", g("Cast", mask, to=TensorProto.BOOL), g("Concat", *index, axis=-1))
    kept = g("And", g("GreaterOrEqual", queries, zero), kept)
    return g("Where", kept, scores, g.const(np.float32("-inf")))


PADDINGS = [
    one_minus_mask_times_min, minus_ten_thousand, expanded_over_queries, where_on_scores, filled_where_zero,
    where_to_additive, gathered_by_grids,
]  # fmt: skip


@pytest.mark.parametrize("spelling", PADDINGS, ids=lambda f: f.__name__)
def test_padding(spelling):
    g = Builder()
    q, k, v = operands(g)
    mask = attention_mask(g)
    op, found, _ = found_one(g, finish(g, spelling(g, mask, scores_of(g, q, k)), v))
    assert found.mask == "key padding"
    assert len(op.inputs) == 5
    assert op.inputs[3] == ""
    assert op.attributes["is_self"]


@pytest.mark.parametrize("axes", [[], [S], [1, S], [1, 1, 1, S]], ids=str)
@pytest.mark.parametrize("kind", ["input", "constant"])
def test_padding_that_a_batch_shares(axes, kind):
    """One mask for all entries, of however many axes: the same in clusters."""
    g = Builder()
    q, k, v = operands(g)
    mask = np.ones(axes, bool)
    if axes:
        mask[..., 5:] = False
    name = g.input("mask", axes, mask, "bool") if kind == "input" else g.const(mask)
    model = finish(g, g("Where", name, scores_of(g, q, k), g.const(np.float32(LOW))), v)
    if kind == "constant" and not axes:  # a condition that always holds
        check(model, g.feeds)
        return
    _, found, program = found_one(g, model)
    assert found.mask == "key padding"
    clustered = {"method": "improved-clustered", "n_clusters": L, "topk": S}
    outputs = [Model(program, attention=how)(**g.feeds) for how in ("exact", clustered)]
    kept = 5 if axes else L  # padding is in no cluster
    for exact, other in zip(*(found.values() for found in outputs)):
        np.testing.assert_allclose(other[:, :kept], exact[:, :kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spelling", PADDINGS, ids=lambda f: f.__name__)
def test_padding_needs_no_array_of_pairs(spelling):
    """The promise behind it: nothing of size L x S in the whole program."""
    g = Builder()
    q, k, v = operands(g)
    mask = attention_mask(g)
    _, _, program = found_one(g, finish(g, spelling(g, mask, scores_of(g, q, k)), v))
    long = 512
    seen = sizes_seen(program, {"query": (1, long, H * D), "attention_mask": (1, long)})
    assert max(seen) <= 4 * long * H * D


def sizes_seen(program, shapes):
    """Elements of every value of a run at given input shapes."""
    from pyclattn.graph.executor import Executor

    every = Program(program.inputs, [], list(program.ops), program.constants)
    names = [name for op in program.ops for name in op.outputs if name]
    every.outputs = [Value(name, "", ("...",)) for name in names]
    feeds = {v.name: np.ones(shapes[v.name], v.dtype) for v in program.inputs}
    return [array.size for array in Executor(every)(feeds).values()]


# -- causality --------------------------------------------------------------------------------------------------------


def positions(g, x):
    length = g("Squeeze", g("Shape", x, start=2, end=3), g.const([0], np.int64))
    return g("Range", g.const(0, np.int64), length, g.const(1, np.int64))


def column(g, line):
    return g("Unsqueeze", line, g.const([1], np.int64))


def key_not_after_query(g, scores, q):
    line = positions(g, q)
    return g("Where", g("LessOrEqual", line, column(g, line)), scores, g.const(np.float32("-inf")))


def query_not_before_key(g, scores, q):
    line = positions(g, q)
    return g("Where", g("GreaterOrEqual", column(g, line), line), scores, g.const(np.float32(LOW)))


def key_after_query_dropped(g, scores, q):
    line = positions(g, q)
    return g("Where", g("Greater", line, column(g, line)), g.const(np.float32(LOW)), scores)


def key_before_next_query(g, scores, q):
    line = positions(g, q)
    shifted = g("Add", column(g, line), g.const(1, np.int64))
    return g("Where", g("Less", line, shifted), scores, g.const(np.float32("-inf")))


def upper_triangle_added(g, scores, q):
    sizes = g("Concat", g("Shape", q, start=2, end=3), g("Shape", q, start=2, end=3), axis=0)
    low = helper.make_tensor("value", TensorProto.FLOAT, [1], [LOW])
    full = g("ConstantOfShape", sizes, value=low)
    return g("Add", scores, g("Trilu", full, g.const(1, np.int64), upper=1))


def lower_triangle_not_zero(g, scores, q):
    """As torch's exporters write scaled_dot_product_attention(is_causal=True)."""
    sizes = g("Concat", g("Shape", q, start=2, end=3), g("Shape", q, start=2, end=3), axis=0)
    triangle = g("Trilu", g("Expand", g.const(np.float32(1)), sizes), upper=0)
    zero = g.const(np.float32(0))
    return g("Add", scores, g("Where", g("Equal", triangle, zero), g.const(np.float32("-inf")), zero))


def slice_of_a_stored_triangle(g, scores, q):
    stored = g.const(np.tri(64, dtype=bool)[None, None])
    length = g("Shape", q, start=2, end=3)
    ends = g("Concat", length, length, axis=0)
    zeros, axes = g.const([0, 0], np.int64), g.const([2, 3], np.int64)
    return g("Where", g("Slice", stored, zeros, ends, axes), scores, g.const(np.float32(LOW)))


TRIANGLES = [
    key_not_after_query, query_not_before_key, key_after_query_dropped, key_before_next_query, upper_triangle_added,
    slice_of_a_stored_triangle, lower_triangle_not_zero,
]  # fmt: skip


@pytest.mark.parametrize("spelling", TRIANGLES, ids=lambda f: f.__name__)
def test_causal(spelling):
    g = Builder()
    q, k, v = operands(g)
    op, found, _ = found_one(g, finish(g, spelling(g, scores_of(g, q, k), q), v))
    assert found.mask == "causal"
    assert op.attributes["is_causal"]
    assert len(op.inputs) == 3


def test_causal_and_padding_together():
    g = Builder()
    q, k, v = operands(g)
    line = positions(g, q)
    triangle = g("LessOrEqual", line, column(g, line))
    kept = g("Cast", g("Unsqueeze", attention_mask(g), g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    scores = g("Where", g("And", triangle, kept), scores_of(g, q, k), g.const(np.float32("-inf")))
    _, found, _ = found_one(g, finish(g, scores, v))
    assert found.mask == "causal + key padding"


def off_by_one(g, scores, q):
    line = positions(g, q)
    return g("Where", g("Less", line, column(g, line)), scores, g.const(np.float32(LOW)))


def a_window(g, scores, q):
    line = positions(g, q)
    near = g("LessOrEqual", g("Abs", g("Sub", line, column(g, line))), g.const(2, np.int64))
    return g("Where", near, scores, g.const(np.float32("-inf")))


def transposed_triangle(g, scores, q):
    line = positions(g, q)
    return g("Where", g("GreaterOrEqual", line, column(g, line)), scores, g.const(np.float32("-inf")))


def wider_triangle_not_zero(g, scores, q):
    sizes = g("Concat", g("Shape", q, start=2, end=3), g("Shape", q, start=2, end=3), axis=0)
    triangle = g("Trilu", g("Expand", g.const(np.float32(1)), sizes), g.const(1, np.int64), upper=0)
    return g("Where", g("Equal", triangle, g.const(np.float32(0))), g.const(np.float32("-inf")), scores)


PATTERNS = [off_by_one, a_window, transposed_triangle, wider_triangle_not_zero]


@pytest.mark.parametrize("spelling", PATTERNS, ids=lambda f: f.__name__)
def test_patterns_that_only_look_causal(spelling):
    """They stay exact, as masks of pairs."""
    g = Builder()
    q, k, v = operands(g)
    op, found, _ = found_one(g, finish(g, spelling(g, scores_of(g, q, k), q), v))
    assert found.mask == "pairs"
    assert not op.attributes["is_causal"]


def test_triangle_between_unequal_lengths_is_a_pattern():
    g = Builder()
    q, k, v = operands(g, "l", "s")
    queries, keys = positions(g, q), positions(g, k)
    kept = g("LessOrEqual", keys, column(g, queries))
    _, found, _ = found_one(g, finish(g, g("Where", kept, scores_of(g, q, k), g.const(np.float32("-inf"))), v))
    assert found.mask == "pairs"


# -- biases -----------------------------------------------------------------------------------------------------------


def test_bias_of_pairs_stays_exact():
    g = Builder()
    q, k, v = operands(g)
    bias = g.input("bias", [1, H, "l", "l"], g.rng.standard_normal((1, H, L, L)))
    op, found, _ = found_one(g, finish(g, g("Add", bias, scores_of(g, q, k)), v))
    assert found.mask == "bias"
    assert op.inputs[3] == "bias"


def test_bias_added_before_the_scale_is_scaled():
    g = Builder()
    q, k, v = operands(g)
    bias = g.input("bias", [1, H, "l", "l"], g.rng.standard_normal((1, H, L, L)))
    scores = g("Add", g("MatMul", q, transposed(g, k)), bias)
    found_one(g, finish(g, g("Mul", scores, g.const(np.float32(0.5))), v))


def test_bias_and_padding_come_apart():
    """T5: one sum of a position bias and a mask, added at once."""
    g = Builder()
    q, k, v = operands(g)
    bias = g.input("bias", [1, H, "l", "l"], g.rng.standard_normal((1, H, L, L)))
    wide = g("Cast", g("Unsqueeze", attention_mask(g), g.const([1, 2], np.int64)), to=TensorProto.FLOAT)
    masked = g("Mul", g("Sub", g.const(np.float32(1)), wide), g.const(np.float32(LOW)))
    op, found, _ = found_one(g, finish(g, g("Add", scores_of(g, q, k), g("Add", bias, masked)), v))
    assert found.mask == "key padding + bias"
    assert op.inputs[3] == "bias"


def test_constant_bias():
    g = Builder()
    q, k, v = operands(g)
    slopes = -np.abs(np.arange(L)[:, None] - np.arange(L)) * np.float32([0.5, 0.25, 0.125, 0.06])[:, None, None]
    _, found, _ = found_one(g, finish(g, g("Add", scores_of(g, q, k), g.const(slopes.astype(np.float32)[None])), v))
    assert found.mask == "bias"


# -- after the Softmax ------------------------------------------------------------------------------------------------


def nan_guard(g, p):
    return g("Where", g("IsNaN", p), g.const(np.float32(0)), p)


def cast_there_and_back(g, p):
    return g("Cast", g("Identity", p), to=TensorProto.FLOAT)


def dropout(g, p):
    return g("Dropout", p, g.const(np.float32(0.1)))


@pytest.mark.parametrize("guard", [nan_guard, cast_there_and_back, dropout], ids=lambda f: f.__name__)
def test_between_softmax_and_product(guard):
    g = Builder()
    q, k, v = operands(g)
    _, _, program = found_one(g, finish(g, scores_of(g, q, k), v, guard))
    assert not {"IsNaN", "Where", "Dropout", "Cast"} & set(kinds(program))


def test_rows_without_any_key_come_out_as_zeros():
    g = Builder()
    q, k, v = operands(g)
    kept = g("Cast", g("Unsqueeze", attention_mask(g), g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    g.feeds["attention_mask"] = MASK * [[1], [0]]
    scores = g("Where", kept, scores_of(g, q, k), g.const(np.float32("-inf")))
    found_one(g, finish(g, scores, v, nan_guard))


# -- what is not attention --------------------------------------------------------------------------------------------


def stays(g, model, reason):
    program, report = check(model, g.feeds)
    assert not report.attentions
    assert [reason in kept.reason for kept in report.kept] == [True], report
    assert "Softmax" in kinds(program)


def test_a_classifier_stays():
    g = Builder()
    x = g.input("x", ["b", "l", D], g.rng.standard_normal((B, L, D)))
    stays(g, g.model(g("Softmax", g("MatMul", x, g.weight(D, 5)), axis=-1)), "output of the model")


def test_pooling_with_a_learned_query_stays():
    g = Builder()
    x = g.input("x", ["b", "l", D], g.rng.standard_normal((B, L, D)))
    p = g("Softmax", g("Transpose", g("MatMul", x, g.weight(D, 1)), perm=[0, 2, 1]), axis=-1)
    stays(g, g.model(g("MatMul", p, x)), "between its scores and the product")


def test_softmax_over_queries_stays():
    g = Builder()
    q, k, v = operands(g)
    p = g("Softmax", scores_of(g, q, k), axis=-2)
    stays(g, g.model(merge(g, g("MatMul", p, v))), "not over the last axis")


def test_probabilities_that_are_shown_stay():
    g = Builder()
    q, k, v = operands(g)
    p = g("Softmax", scores_of(g, q, k), axis=-1)
    stays(g, g.model(merge(g, g("MatMul", p, v)), p), "output of the model")


def test_scores_that_are_shown_stay():
    g = Builder()
    q, k, v = operands(g)
    scores = scores_of(g, q, k)
    p = g("Softmax", scores, axis=-1)
    stays(g, g.model(merge(g, g("MatMul", p, v)), g("Relu", scores)), "used elsewhere")


def test_capped_scores_stay():
    g = Builder()
    q, k, v = operands(g)
    stays(g, finish(g, g("Tanh", scores_of(g, q, k)), v), "Tanh stands between")


def test_scores_scaled_by_an_input_stay():
    g = Builder()
    q, k, v = operands(g)
    temperature = g.input("temperature", [1], np.array([0.5]))
    stays(g, finish(g, g("Mul", scores_of(g, q, k), temperature), v), "not a constant")


def test_scores_filled_with_a_small_number_stay():
    g = Builder()
    q, k, v = operands(g)
    kept = g("Cast", g("Unsqueeze", attention_mask(g), g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    stays(g, finish(g, g("Where", kept, scores_of(g, q, k), g.const(np.float32(0))), v), "does not mask")


def test_reweighted_probabilities_stay():
    """Head masks, and probabilities divided by something else."""
    g = Builder()
    q, k, v = operands(g)
    weight = g.input("head_mask", [H, 1, 1], np.array([1, 0, 1, 0.5]).reshape(H, 1, 1))
    stays(g, finish(g, scores_of(g, q, k), v, lambda g, p: g("Mul", p, weight)), "go into Mul")


def test_product_with_a_constant_stays():
    g = Builder()
    x = g.input("x", ["b", H, "l", D], g.rng.standard_normal((B, H, L, D)))
    scores = g("MatMul", x, g.const(g.rng.standard_normal((H, D, 5)).astype(np.float32)))
    v = g.const(g.rng.standard_normal((H, 5, D)).astype(np.float32))
    stays(g, g.model(g("MatMul", g("Softmax", scores, axis=-1), v)), "product with a constant")


# -- types ------------------------------------------------------------------------------------------------------------


def halves(g):
    shape = ["b", H, "l", D]
    return [g.input(name, shape, g.rng.standard_normal((B, H, L, D)), "float16") for name in "qkv"]


def test_halves():
    """A model of float16: the lowest half masks padding."""
    g = Builder()
    q, k, v = halves(g)
    kept = g("Cast", g("Unsqueeze", attention_mask(g), g.const([1, 2], np.int64)), to=TensorProto.BOOL)
    scaled = g("Mul", g("MatMul", q, transposed(g, k)), g.const(np.float16(D**-0.5)))
    scores = g("Where", kept, scaled, g.const(np.float16(-65504)))
    _, found, _ = found_one(g, g.model(g("MatMul", g("Softmax", scores, axis=-1), v)))
    assert found.mask == "key padding"


def test_halves_in_one_operator():
    g = Builder()
    mask = g.const((g.rng.standard_normal((L, L)) - 1).astype(np.float16))
    _, found, _ = found_one(g, g.model(g("Attention", *halves(g), mask, scale=0.3), opset=23, ir_version=11))
    assert found.mask == "bias"


def test_query_and_value_of_two_types_stay():
    g = Builder()
    q, k, _ = operands(g)
    value = g.input("value", ["b", H, "l", D], g.rng.standard_normal((B, H, L, D)), "float16")
    p = g("Cast", g("Softmax", scores_of(g, q, k), axis=-1), to=TensorProto.FLOAT16)
    stays(g, g.model(g("MatMul", p, value)), "its query is float32, its value float16")


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_outputs_keep_theirs():
    g = Builder()
    q, k, v = operands(g)
    outputs = []
    for _ in range(3):
        outputs.append(g("MatMul", g("Softmax", scores_of(g, q, k), axis=-1), v))
    model = g.model(*outputs)
    program, report = check(model, g.feeds)
    assert len({found.name for found in report.attentions}) == len(report.attentions)
    assert [value.name for value in program.outputs] == outputs


def test_the_program_given_is_left_as_it_is():
    value = Value("x", "float32", ("n",))
    program = Program(
        [value], [Value("y", "float32", ("n",))], [Op("Identity", ("x",), ("t",)), Op("Relu", ("t",), ("y",))]
    )
    small, _ = optimize(program)
    assert [op.kind for op in program.ops] == ["Identity", "Relu"]
    assert [op.kind for op in small.ops] == ["Relu"]
