"""Fusion and folding: every spelling becomes one operator, near misses stay, results do not change."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import Builder, check, kinds, only

from pyclattn.graph.passes.dims import Size, broadcast, divide, product
from pyclattn.graph.passes.edit import Editor
from pyclattn.graph.passes.shape_rules import slice_length
from pyclattn.graph.passes.shapes import Shapes

D = 16


def activations(g):
    return g.input("x", ["b", "l", D], g.rng.standard_normal((2, 7, D)) * 2)


# -- norms ------------------------------------------------------------------------------------------------------------


def mean(g, x):
    return g("ReduceMean", x, g.const([-1], np.int64))


def variance(g, centred, square):
    squared = g("Pow", centred, g.const(np.float32(2))) if square == "Pow" else g("Mul", centred, centred)
    return g("Add", mean(g, squared), g.const(np.float32(1e-6)))


def divided(g, top, spread, form):
    if form == "Div":
        return g("Div", top, g("Sqrt", spread))
    if form == "Reciprocal":
        return g("Mul", top, g("Reciprocal", g("Sqrt", spread)))
    if form == "one over":
        return g("Mul", g("Div", g.const(np.float32(1)), g("Sqrt", spread)), top)
    return g("Mul", top, g("Pow", spread, g.const(np.float32(-0.5))))


FORMS = ["Div", "Reciprocal", "one over", "Pow"]


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("form", FORMS)
def test_layer_norm_from_pieces(form, square):
    g = Builder()
    x = activations(g)
    centred = g("Sub", x, mean(g, x))
    normal = divided(g, centred, variance(g, centred, square), form)
    model = g.model(g("Add", g("Mul", normal, g.weight(D)), g.weight(D)))
    program, _ = check(model, g.feeds)
    assert kinds(program) == ["pyclattn:LayerNorm"]
    assert program.ops[0].attributes["epsilon"] == pytest.approx(1e-6)


def test_layer_norm_with_two_differences():
    """The older exporter subtracts the mean twice."""
    g = Builder()
    x = activations(g)
    normal = g("Div", g("Sub", x, mean(g, x)), g("Sqrt", variance(g, g("Sub", x, mean(g, x)), "Pow")))
    program, _ = check(g.model(g("Add", g.weight(D), g("Mul", g.weight(D), normal))), g.feeds)
    assert kinds(program) == ["pyclattn:LayerNorm"]


@pytest.mark.parametrize("form", FORMS)
def test_rms_norm_from_pieces(form):
    g = Builder()
    x = activations(g)
    program, _ = check(g.model(g("Mul", g.weight(D), divided(g, x, variance(g, x, "Pow"), form))), g.feeds)
    assert kinds(program) == ["pyclattn:RMSNorm"]


def test_norm_without_weight():
    g = Builder()
    x = activations(g)
    centred = g("Sub", x, mean(g, x))
    program, _ = check(g.model(divided(g, centred, variance(g, centred, "Mul"), "Div")), g.feeds)
    assert kinds(program) == ["pyclattn:LayerNorm"]
    assert len(program.ops[0].inputs) == 1


def test_norms_over_another_axis_stay():
    g = Builder()
    x = activations(g)
    axis = g.const([1], np.int64)
    centred = g("Sub", x, g("ReduceMean", x, axis))
    spread = g("Add", g("ReduceMean", g("Mul", centred, centred), axis), g.const(np.float32(1e-6)))
    program, _ = check(g.model(g("Div", centred, g("Sqrt", spread))), g.feeds)
    assert "pyclattn:LayerNorm" not in kinds(program)


def test_distance_over_deviation_of_another_value_stays():
    g = Builder()
    x = activations(g)
    y = g.input("y", ["b", "l", D], g.rng.standard_normal((2, 7, D)))
    centred = g("Sub", x, mean(g, x))
    program, _ = check(g.model(g("Div", y, g("Sqrt", variance(g, centred, "Mul")))), g.feeds)
    assert "pyclattn:LayerNorm" not in kinds(program)


# -- activations ------------------------------------------------------------------------------------------------------


def number(g, value):
    return g.const(np.float32(value))


def erf_half_last(g, x):
    e = g("Erf", g("Div", x, number(g, math.sqrt(2))))
    return g("Mul", g("Mul", x, g("Add", e, number(g, 1))), number(g, 0.5))


def erf_half_first(g, x):
    e = g("Erf", g("Mul", x, number(g, 0.7071067811865476)))
    return g("Mul", g("Mul", number(g, 0.5), x), g("Add", number(g, 1), e))


def erf_half_of_the_sum(g, x):
    e = g("Add", g("Erf", g("Div", x, number(g, 1.4142135))), number(g, 1))
    return g("Mul", g("Div", e, number(g, 2)), x)


def tanh_with_power(g, x):
    cubic = g("Mul", g("Pow", x, number(g, 3)), number(g, 0.044715))
    inner = g("Mul", g("Add", x, cubic), number(g, math.sqrt(2 / math.pi)))
    return g("Mul", g("Mul", x, number(g, 0.5)), g("Add", g("Tanh", inner), number(g, 1)))


def tanh_with_products(g, x):
    inner = g("Mul", g("Mul", number(g, 0.7978845608), x),
              g("Add", number(g, 1), g("Mul", g("Mul", number(g, 0.044715), x), x)))  # fmt: skip
    return g("Mul", number(g, 0.5), g("Mul", x, g("Add", number(g, 1), g("Tanh", inner))))


def quick(g, x):
    return g("Mul", x, g("Sigmoid", g("Mul", x, number(g, 1.702))))


GELUS = {
    erf_half_last: "none", erf_half_first: "none", erf_half_of_the_sum: "none", tanh_with_power: "tanh",
    tanh_with_products: "tanh", quick: "quick",
}  # fmt: skip


@pytest.mark.parametrize("spelling", GELUS, ids=lambda f: f.__name__)
def test_gelu(spelling):
    g = Builder()
    program, _ = check(g.model(spelling(g, activations(g))), g.feeds)
    assert kinds(program) == ["pyclattn:Gelu"]
    assert program.ops[0].attributes["approximate"] == GELUS[spelling]


def test_silu():
    g = Builder()
    x = activations(g)
    program, _ = check(g.model(g("Mul", g("Sigmoid", x), x)), g.feeds)
    assert kinds(program) == ["Swish"]


def test_gelu_of_a_scaled_value():
    """x itself comes out of a product with a number; the activation begins behind it."""
    g = Builder()
    x = g("Mul", activations(g), number(g, 0.25))
    program, _ = check(g.model(erf_half_last(g, x)), g.feeds)
    assert sorted(kinds(program)) == ["Mul", "pyclattn:Gelu"]


def other_constant(g, x):
    e = g("Erf", g("Div", x, number(g, 1.5)))
    return g("Mul", g("Mul", x, g("Add", e, number(g, 1))), number(g, 0.5))


def gate(g, x):
    return g("Mul", g("Sigmoid", x), g("Tanh", g("Mul", x, number(g, 2))))


@pytest.mark.parametrize("spelling", [other_constant, gate], ids=lambda f: f.__name__)
def test_other_functions_stay(spelling):
    g = Builder()
    program, _ = check(g.model(spelling(g, activations(g))), g.feeds)
    assert not {"pyclattn:Gelu", "Swish"} & set(kinds(program))


def test_an_inner_value_that_is_used_elsewhere_keeps_it():
    g = Builder()
    x = activations(g)
    e = g("Erf", g("Div", x, number(g, math.sqrt(2))))
    y = g("Mul", g("Mul", x, g("Add", e, number(g, 1))), number(g, 0.5))
    check(g.model(y, g("Neg", e)), g.feeds)


# -- linear layers ----------------------------------------------------------------------------------------------------


def relu(g, x):
    return g("Relu", x)


def sigmoid(g, x):
    return g("Sigmoid", x)


def tanh(g, x):
    return g("Tanh", x)


LINEAR = {relu: "relu", sigmoid: "sigmoid", tanh: "tanh", erf_half_last: "gelu", tanh_with_power: "gelu_tanh",
          quick: "quick_gelu"}  # fmt: skip


@pytest.mark.parametrize("activation", LINEAR, ids=lambda f: f.__name__)
def test_linear(activation):
    g = Builder()
    y = g("Add", g.weight(1, 1, 8), g("MatMul", activations(g), g.weight(D, 8)))
    program, _ = check(g.model(activation(g, y)), g.feeds)
    assert kinds(program) == ["pyclattn:Linear"]
    assert program.ops[0].attributes["activation"] == LINEAR[activation]


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned):
    g = Builder()
    x = g.input("x", ["b", D], g.rng.standard_normal((3, D)))
    weight = g.weight(8, D) if turned else g.weight(D, 8)
    program, _ = check(g.model(g("Relu", g("Gemm", x, weight, g.weight(8), transB=turned))), g.feeds)
    assert kinds(program) == ["pyclattn:Linear"]
    assert program.constants[program.ops[0].inputs[1]].shape == (D, 8)


def test_scale_of_outputs_goes_into_the_weight():
    g = Builder()
    y = g("Add", g("MatMul", activations(g), g.weight(D, 8)), g.weight(8))
    program, _ = check(g.model(g("Mul", y, g.weight(8))), g.feeds)
    assert kinds(program) == ["pyclattn:Linear"]


def test_sum_with_a_table_is_no_bias():
    g = Builder()
    x = g.input("x", ["b", 7, D], g.rng.standard_normal((2, 7, D)))
    program, _ = check(g.model(g("Add", g("MatMul", x, g.weight(D, 8)), g.weight(7, 8))), g.feeds)
    assert sorted(kinds(program)) == ["Add", "pyclattn:Linear"]


def test_a_product_that_is_an_output_too():
    g = Builder()
    product_ = g("MatMul", activations(g), g.weight(D, 8))
    program, _ = check(g.model(product_, g("Relu", g("Add", product_, g.weight(8)))), g.feeds)
    assert kinds(program).count("pyclattn:Linear") == 1


# -- convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_batch_norm_goes_into_the_convolution(kind, has_bias):
    g = Builder()
    x = g.input("x", ["b", 3, "h", "w"], g.rng.standard_normal((2, 3, 6, 5)))
    weight = g.weight(4, 3, 3, 3) if kind == "Conv" else g.weight(3, 4, 3, 3)
    y = g(kind, x, weight, *([g.weight(4)] if has_bias else []))
    y = g("BatchNormalization", y, g.weight(4), g.weight(4), g.weight(4), g.const(np.float32([0.5, 1, 2, 3])))
    program, _ = check(g.model(y), g.feeds)
    assert kinds(program) == [kind]


def test_batch_norm_of_a_shared_convolution_stays():
    g = Builder()
    x = g.input("x", ["b", 3, "h", "w"], g.rng.standard_normal((2, 3, 6, 5)))
    y = g("Conv", x, g.weight(4, 3, 3, 3))
    normal = g("BatchNormalization", y, g.weight(4), g.weight(4), g.weight(4), g.const(np.float32([0.5, 1, 2, 3])))
    program, _ = check(g.model(normal, g("Relu", y)), g.feeds)
    assert "BatchNormalization" in kinds(program)


# -- rotary embedding -------------------------------------------------------------------------------------------------


def angles(g, layout, twice=True):
    each = np.arange(7)[:, None] * (0.3 ** np.arange(D // 2))
    other = each if twice else each + 0.1
    full = np.concatenate([each, other], -1) if layout == "half" else np.stack([each, other], -1).reshape(7, D)
    return [g.const(part.astype(np.float32)[None, None]) for part in (np.cos(full), np.sin(full))]


def slices(g, x, start, end, step=1):
    return g("Slice", x, *(g.const([n], np.int64) for n in (start, end, -1, step)))


def rotated(g, x, layout):
    if layout == "half":
        return g("Concat", g("Neg", slices(g, x, D // 2, 2**63 - 1)), slices(g, x, 0, D // 2), axis=-1)
    odd, even = slices(g, x, 1, 2**63 - 1, 2), slices(g, x, 0, 2**63 - 1, 2)
    columns = [g("Unsqueeze", part, g.const([-1], np.int64)) for part in (g("Neg", odd), even)]
    return g("Reshape", g("Concat", *columns, axis=-1), g.const([0, 0, 0, D], np.int64))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary(layout):
    g = Builder()
    x = g.input("x", ["b", 4, 7, D], g.rng.standard_normal((2, 4, 7, D)))
    cos, sin = angles(g, layout)
    y = g("Add", g("Mul", x, cos), g("Mul", rotated(g, x, layout), sin))
    program, _ = check(g.model(y), g.feeds)
    assert kinds(program) == ["pyclattn:Rotary"]
    assert program.ops[0].attributes["layout"] == layout


def test_rotation_by_angles_made_in_the_graph():
    g = Builder()
    x = g.input("x", ["b", 4, "l", D], g.rng.standard_normal((2, 4, 7, D)))
    places = g.input("position_ids", ["b", "l"], np.tile(np.arange(7), (2, 1)), "int64")
    column = g("Cast", g("Unsqueeze", places, g.const([1, 3], np.int64)), to=TensorProto.FLOAT)
    each = g("Mul", column, g.const((0.3 ** np.arange(D // 2)).astype(np.float32)))
    full = g("Concat", each, each, axis=-1)
    y = g("Add", g("Mul", x, g("Cos", full)), g("Mul", rotated(g, x, "half"), g("Sin", full)))
    program, _ = check(g.model(y), g.feeds)
    assert "pyclattn:Rotary" in kinds(program)


def test_rotation_with_two_sets_of_angles_stays():
    g = Builder()
    x = g.input("x", ["b", 4, 7, D], g.rng.standard_normal((2, 4, 7, D)))
    cos, sin = angles(g, "half", twice=False)
    program, _ = check(g.model(g("Add", g("Mul", x, cos), g("Mul", rotated(g, x, "half"), sin))), g.feeds)
    assert "pyclattn:Rotary" not in kinds(program)


# -- folding ----------------------------------------------------------------------------------------------------------


def test_arithmetic_around_reshape_goes():
    """Shape, Gather, Mul, Unsqueeze, Concat around a Reshape say "as the input" and become a constant."""
    g = Builder()
    x = activations(g)
    sizes = g("Shape", x)
    batch, length = (g("Gather", sizes, g.const(i, np.int64), axis=0) for i in (0, 1))
    axis = g.const([0], np.int64)
    wanted = g(
        "Concat", g("Unsqueeze", batch, axis), g("Unsqueeze", length, axis), g.const([4, D // 4], np.int64), axis=0
    )
    program, _ = check(g.model(g("Neg", g("Reshape", x, wanted))), g.feeds)
    assert sorted(kinds(program)) == ["Neg", "Reshape"]
    assert program.constants[only(program, "Reshape").inputs[1]].tolist() == [0, 0, 4, D // 4]


def test_expand_to_the_same_sizes_goes():
    g = Builder()
    x = activations(g)
    program, _ = check(g.model(g("Neg", g("Expand", x, g("Shape", x)))), g.feeds)
    assert kinds(program) == ["Neg"]


def test_constants_are_computed_once():
    g = Builder()
    table = g("Mul", g("Sqrt", g.const([4.0, 9.0])), g.const([2.0, 2.0]))
    x = g.input("x", ["n", 2], np.ones((3, 2)))
    program, _ = check(g.model(g("Sub", x, table)), g.feeds)
    assert kinds(program) == ["Sub"]
    assert program.constants[program.ops[0].inputs[1]].tolist() == [4.0, 6.0]


def test_a_constant_does_not_grow_beyond_use():
    g = Builder()
    wide = g("Expand", g.const(np.ones((1, 1), np.float32)), g.const([2048, 2048], np.int64))
    x = g.input("x", [2048, 1], np.ones((2048, 1)))
    program, _ = check(g.model(g("ReduceSum", g("Mul", x, wide))), g.feeds)
    assert max(array.nbytes for array in program.constants.values()) < 1 << 20


def test_random_numbers_are_not_folded():
    g = Builder()
    x = g.input("x", [3], np.ones(3))
    noise = g("RandomNormal", shape=[3])
    from pyclattn.graph.passes import optimize
    from pyclattn_export import from_onnx

    program, _ = optimize(from_onnx(g.model(g("Add", x, noise))))
    assert "RandomNormal" in kinds(program)


def test_equal_expressions_are_computed_once():
    g = Builder()
    x = activations(g)
    pair = [g("Exp", g("Abs", x)) for _ in range(2)]
    program, _ = check(g.model(g("Add", *pair)), g.feeds)
    assert sorted(kinds(program)) == ["Abs", "Add", "Exp"]


def test_unused_operators_and_constants_go():
    g = Builder()
    x = activations(g)
    g("Mul", x, g.weight(D))
    program, _ = check(g.model(g("Neg", x)), g.feeds)
    assert kinds(program) == ["Neg"]
    assert not program.constants


def test_a_length_is_asked_of_the_input():
    """What is on the way there can then be fused away."""
    g = Builder()
    x = activations(g)
    y = g("Relu", g("Add", g("MatMul", x, g.weight(D, 8)), g.weight(8)))
    length = g("Gather", g("Shape", g("Softplus", y)), g.const(1, np.int64), axis=0)
    program, _ = check(g.model(y, g("Range", g.const(0, np.int64), length, g.const(1, np.int64))), g.feeds)
    assert only(program, "Shape").inputs == ("x",)
    assert "Softplus" not in kinds(program)


def test_an_identity_at_an_output():
    g = Builder()
    x = activations(g)
    inner = g("Neg", x)
    model = g.model(g("Identity", inner), g("Abs", inner))
    program, _ = check(model, g.feeds)
    assert sorted(kinds(program)) == ["Abs", "Neg"]


def test_an_input_that_is_an_output():
    g = Builder()
    x = activations(g)
    check(g.model(g("Identity", x)), g.feeds)


@pytest.mark.parametrize("how", ["rows", "columns", "no zero", "read twice"])
def test_rows_of_a_dequantised_table_are_dequantised_rows(how):
    """An embedding of 8 bits is read as it lies: 1.6 MB in float32, beyond the limit of folding."""
    g = Builder()
    table = g.const(g.rng.integers(-127, 128, (4000, 100)).astype(np.int8))
    ids = g.input("ids", ["n", 3], np.array([[0, 7, 39], [5, 5, -1]]), dtype="int64")
    zero = [] if how == "no zero" else [g.const(np.int8(-3))]
    dequantised = g("DequantizeLinear", table, g.const(np.float32(0.02)), *zero)
    taken = g("Gather", dequantised, ids, axis=1 if how == "columns" else 0)
    rest = [g("ReduceMax", dequantised, keepdims=0)] if how == "read twice" else []
    program, _ = check(g.model(taken, *rest), g.feeds)
    users = [op.kind for op in program.ops if only(program, "Gather").outputs[0] in op.inputs]
    assert users == ["DequantizeLinear"]
    assert kinds(program).count("DequantizeLinear") == 1 + len(rest)


def test_a_table_with_a_scale_a_row_is_dequantised_whole():
    g = Builder()
    table = g.const(g.rng.integers(-127, 128, (4000, 100)).astype(np.int8))
    ids = g.input("ids", ["n"], np.array([3, 17]), dtype="int64")
    scale = g.const(g.rng.random(4000).astype(np.float32))
    program, _ = check(g.model(g("Gather", g("DequantizeLinear", table, scale, axis=0), ids)), g.feeds)
    assert kinds(program) == ["DequantizeLinear", "Gather"]


# -- branches and loops -----------------------------------------------------------------------------------------------


def branch(name, kind, source):
    node = helper.make_node(kind, [source], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_that_is_known_is_taken(condition):
    g = Builder()
    x = activations(g)
    chosen = g("If", g.const(np.array(condition)), then_branch=branch("a", "Neg", x), else_branch=branch("b", "Abs", x))
    program, _ = check(g.model(g("Relu", chosen)), g.feeds)
    assert sorted(kinds(program)) == sorted(["Relu", "Neg" if condition else "Abs"])


def test_values_that_only_a_branch_reads_stay():
    g = Builder()
    x = activations(g)
    inner = g("Softplus", g("Identity", x))
    flag = g.input("flag", [], np.array(True), "bool")
    y = g("If", flag, then_branch=branch("a", "Neg", inner), else_branch=branch("b", "Abs", inner))
    program, _ = check(g.model(y), g.feeds)
    assert kinds(program) == ["Softplus", "If"]


# -- sizes ------------------------------------------------------------------------------------------------------------

UNKNOWN = {"b": 3, "n": 7, "m": 10}


@st.composite
def sizes(draw):
    """(size, its value for UNKNOWN)."""
    size, value = draw(st.integers(0, 5)), 0
    value = size
    for name, number_ in UNKNOWN.items():
        count = draw(st.integers(0, 3))
        size, value = size + count * Size.named(name), value + count * number_
    return size, value


def value_of(size):
    """A size worked out; the names of uneven divisions are Python expressions."""
    return eval(str(size), {}, UNKNOWN)


@given(sizes(), sizes(), st.integers(1, 6))
def test_arithmetic_of_sizes(first, second, number_):
    (a, x), (b, y) = first, second
    assert value_of(a + b) == x + y
    assert value_of(a * b) == x * y
    assert value_of(a - b) == x - y
    assert value_of(a // number_) == x // number_
    assert value_of((a // number_) // 2) == (x // number_) // 2
    assert (a == b) <= (x == y)


def number_of(value):
    return Size({(): value})


@given(sizes(), sizes())
def test_exact_division_of_sizes(first, second):
    (a, x), (b, y) = first, second
    if y:
        assert divide(number_of(y) * b, b) == y
        assert divide(a * b, b) in (a, None)
        quotient = divide(a, b)
        assert quotient is None or value_of(quotient) * y == x


@given(st.integers(0, 9), st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([1, 2, -1]))
def test_length_of_a_slice(size, start, end, step):
    assert slice_length(size, start, end, step) == len(range(size)[start:end:step])


def test_slices_of_unknown_lengths():
    n = Size.named("n")
    assert slice_length(n, 0, 2**63 - 1, 1) == n
    assert slice_length(n, 1, 2**63 - 1, 1) == n - 1
    assert slice_length(n, 0, 1, 1) == 1
    assert slice_length(n, -1, 2**63 - 1, 1) == 1
    assert slice_length(n, 0, 5, 1) is None
    assert slice_length(n, 0, n, 1) == n


def test_broadcast_of_sizes():
    n, m = Size.named("n"), Size.named("m")
    assert broadcast(n, 1) == n
    assert broadcast(n, n) == n
    assert broadcast(n, 5) == 5
    assert broadcast(n, m) is None
    assert product([n, 2, m]) == 2 * n * m


def test_shapes_through_a_convolution():
    """Strided convolutions over an unknown length: the length the model works out itself equals ours."""
    g = Builder()
    x = g.input("x", ["b", 1, "n"], np.ones((1, 1, 40)))
    y = g("Conv", x, g.weight(4, 1, 10), strides=[5])
    y = g("Conv", y, g.weight(4, 4, 3), strides=[2])
    from pyclattn_export import from_onnx

    editor = Editor(from_onnx(g.model(y)))
    n = Size.named("n")
    assert Shapes(editor).shape(y) == (Size.named("b"), 4, ((n - 10) // 5 + 1 - 3) // 2 + 1)
