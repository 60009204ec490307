"""Operators beside ONNX's own node cases: fused kinds, ONNX Runtime's kinds, blocks and threads, layouts."""

import math
from pathlib import Path

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import DTypeError, ModelFormatError, ShapeError
from pyclattn.graph.ops import supported_ops
from pyclattn.graph.ops.functions import GELU, erf
from pyclattn.graph.ops.shape import viewable
from pyclattn.graph.spec import Spec
from tests.graph.build import run

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(result, expected, tolerance=1e-5):
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def gelu64(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel().astype(float)]).reshape(x.shape)


def test_erf_is_right_to_float32():
    x = np.linspace(-6, 6, 200_001).astype(np.float32)
    y = np.empty_like(x)
    erf(x, y)
    assert np.abs(y - np.vectorize(math.erf)(x.astype(float))).max() < 3e-7


def test_erf_at_the_ends():
    y = np.empty(4, np.float32)
    with np.errstate(all="ignore"):  # as the executor does
        erf(np.array([-np.inf, np.inf, 1e30, np.nan], np.float32), y)
    np.testing.assert_array_equal(y, [-1, 1, 1, np.nan])


@pytest.mark.parametrize("name", GELU)
def test_gelu(name):
    x = normal(70, 700)  # more than one block
    double = x.astype(float)
    expected = {
        "none": lambda: gelu64(x),
        "tanh": lambda: 0.5 * double * (1 + np.tanh(math.sqrt(2 / math.pi) * (double + 0.044715 * double**3))),
        "quick": lambda: double / (1 + np.exp(-1.702 * double)),
    }[name]()
    close(run("pyclattn:Gelu", [x], {"approximate": name}), expected, 2e-6)


@pytest.mark.parametrize("activation", ["", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid"])
@pytest.mark.parametrize("rows", [1, 3, 1100])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_linear(activation, rows, n_threads):
    x, w, b = normal(2, rows, 64), normal(64, 96), normal(96)
    y = (x.astype(float) @ w + b) / 4
    y = y * 4
    expected = {
        "": lambda: y,
        "relu": lambda: np.maximum(y, 0),
        "gelu": lambda: gelu64(y),
        "gelu_tanh": lambda: 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))),
        "quick_gelu": lambda: y / (1 + np.exp(-1.702 * y)),
        "silu": lambda: y / (1 + np.exp(-y)),
        "tanh": lambda: np.tanh(y),
        "sigmoid": lambda: 1 / (1 + np.exp(-y)),
    }[activation]()
    close(run("pyclattn:Linear", [x, w, b], {"activation": activation}, n_threads), expected, 1e-4)


def test_a_mask_of_pairs_is_computed_exactly_whatever_was_asked():
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.spec import Settings
    from tests.graph.build import program_of

    q, k, v = (normal(1, 2, 64, 16) for _ in range(3))
    settings = Settings(attention=lambda *_: [(slice(0, 2), "clustered", {"n_clusters": 4})])
    for attributes, mask in (({}, normal(64, 64)), ({"is_causal": True}, None)):
        inputs = [q, k, v] if mask is None else [q, k, v, mask]
        program, feeds = program_of("pyclattn:Attention", inputs, attributes)
        (result,) = Executor(program, settings)(feeds).values()
        close(result, naive_attention(q, k, v, mask, causal=mask is None))


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("pyclattn:Linear", [normal(1500, 256), normal(256, 512), normal(512)], {"activation": "gelu"}),
        ("pyclattn:Linear", [normal(257, 128), normal(128, 512), normal(512)], {"activation": "silu"}),
        ("pyclattn:Linear", [normal(17, 384), normal(384, 1536), normal(1536)], {}),
        ("pyclattn:Linear", [normal(200, 384), normal(384, 300), normal(300)], {}),
        ("MatMul", [normal(16, 200), normal(200, 1300)], {}),  # a seventh of it would go to BLAS's small kernel
        ("MatMul", [normal(6, 90, 200), normal(6, 200, 70)], {}),
        ("Conv", [normal(1, 16, 61, 67), normal(32, 16, 3, 3), normal(32)], {"pads": [1, 1, 1, 1]}),
        ("ConvTranspose", [normal(1, 16, 61, 67), normal(16, 8, 4, 4), normal(8)], {"strides": [2, 2]}),
        ("pyclattn:LayerNorm", [normal(3000, 100), normal(100), normal(100)], {}),
        ("Softmax", [normal(5, 333, 201)], {}),
        ("Tanh", [normal(999, 321)], {}),
        ("Sigmoid", [normal(999, 321)], {}),
        ("Erf", [normal(999, 321)], {}),
    ],
)
def test_the_same_bits_for_any_number_of_threads(kind, inputs, attributes):
    results = [run(kind, inputs, attributes, n) for n in (1, 2, 3, 7)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_linear_reads_a_transposed_view():
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.program import Op, Program, Value

    x, w = normal(16, 40), normal(16, 8)
    ops = [Op("Transpose", ("x",), ("t",), {"perm": [1, 0]}), Op("pyclattn:Linear", ("t", "w"), ("y",))]
    program = Program([Value("x", "float32", ("a", "b"))], [Value("y", "float32", ("b", 8))], ops, {"w": w})
    close(Executor(program)({"x": x})["y"], x.T.astype(float) @ w)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(0, 4, 3), (3, 0, 4), (3, 4, 0), (300, 0, 4), (0, 0, 0)])
def test_products_of_nothing(rows, inner, columns):
    x, w = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    for kind in ("MatMul", "pyclattn:Linear"):
        np.testing.assert_array_equal(run(kind, [x, w], n_threads=2), np.zeros((rows, columns)))
    biased = run("pyclattn:Linear", [x, w, np.ones(columns, np.float32)], {"activation": "gelu"}, 2)
    close(biased, np.full((rows, columns), 0.8413447))


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (300, 384)])
def test_layer_norm(shape):
    x, w, b = normal(*shape), normal(shape[-1]), normal(shape[-1])
    double = x.astype(float)
    z = (double - double.mean(-1, keepdims=True)) / np.sqrt(double.var(-1, keepdims=True) + 1e-6)
    close(run("pyclattn:LayerNorm", [x, w, b], {"epsilon": 1e-6}), z * w + b)
    close(run("pyclattn:LayerNorm", [x], {"epsilon": 1e-6}), z)
    rms = double / np.sqrt((double**2).mean(-1, keepdims=True) + 1e-6)
    close(run("pyclattn:RMSNorm", [x, w], {"epsilon": 1e-6}), rms * w)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("width", ["half", "full"])
def test_rotary(layout, width):
    x, angles = normal(2, 3, 50, 8), RNG.uniform(0, 6, (50, 4))
    a, b = (x[..., :4], x[..., 4:]) if layout == "half" else (x[..., 0::2], x[..., 1::2])
    first, second = a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)
    expected = np.empty(x.shape)
    if layout == "half":
        expected[..., :4], expected[..., 4:] = first, second
    else:
        expected[..., 0::2], expected[..., 1::2] = first, second
    if width == "full":
        angles = np.concatenate([angles, angles], 1) if layout == "half" else np.repeat(angles, 2, 1)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    close(run("pyclattn:Rotary", [x, cos, sin], {"layout": layout}), expected)


def naive_attention(q, k, v, mask=None, padding=None, causal=False, scale=None):
    """softmax(scale q k^T + mask) v in float64, by the definition."""
    q, k, v = (a.astype(float) for a in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = (scale or q.shape[-1] ** -0.5) * q @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if padding is not None:
        scores = np.where(padding[:, None, None], -np.inf, scores)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("layout", ["bhld", "blhd", "bhdl keys", "mixed out"])
@pytest.mark.parametrize("mask", ["none", "padding", "bool", "float", "causal", "both"])
def test_attention(layout, mask):
    q, k, v = normal(2, 4, 19, 16), normal(2, 2, 23, 16), normal(2, 2, 23, 8)
    padding = np.zeros((2, 23), bool)
    padding[1, 17:] = True
    given, options = [], {}
    if mask in ("bool", "both"):
        given = [RNG.random((19, 23)) < 0.7]
        given[0][:, 0] = True
    if mask == "float":
        given = [normal(1, 4, 19, 23)]
    attn = given[0] if given else None
    optional = []
    inputs = [q, k, v, *given]
    if mask in ("padding", "both"):
        optional = [] if given else [3]
        inputs.append(padding)
    if mask == "causal":
        options["is_causal"] = True
    expected = naive_attention(q, k, v, attn, padding if mask in ("padding", "both") else None, mask == "causal", 0.3)
    if layout == "blhd":
        inputs[:3] = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for a in inputs[:3]]
        options["layout"] = "blhd"
        expected = expected.transpose(0, 2, 1, 3)
    if layout == "bhdl keys":
        inputs[1] = np.ascontiguousarray(k.swapaxes(2, 3))
        options["k_layout"] = "bhdl"
    if layout == "mixed out":
        options["out_layout"] = "blhd"
        expected = expected.transpose(0, 2, 1, 3)
    close(run("pyclattn:Attention", inputs, {"scale": 0.3, **options}, 2, optional=optional), expected)


def test_attention_runs_the_method_of_its_name():
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.spec import Settings
    from tests.graph.build import program_of

    q, k, v = (normal(1, 2, 64, 16) for _ in range(3))
    program, feeds = program_of("pyclattn:Attention", [q, k, v], {"name": "a1"})
    asked = []

    def choose(name, *counts):
        asked.append((name, counts))
        return [(slice(0, 2), "improved-clustered", {"n_clusters": 8, "topk": 4})]

    (result,) = Executor(program, Settings(attention=choose))(feeds).values()
    assert asked == [("a1", (2, 2, 64, 64))]
    expected = pyclattn.improved_clustered_attention(q, k, v, n_clusters=8, topk=4)
    np.testing.assert_array_equal(result, expected)
    assert np.abs(result - naive_attention(q, k, v)).max() > 1e-3  # it was not exact


@pytest.mark.parametrize("is_self", [False, True])
def test_padded_tokens_are_in_no_cluster(is_self):
    """In self-attention what stands at a padded token changes nothing; of other queries the mask does not tell."""
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.spec import Settings
    from tests.graph.build import program_of

    settings = Settings(attention=lambda *_: [(slice(0, 2), "clustered", {"n_clusters": 4, "clustering": "kmeans"})])
    q, k, v = (normal(1, 2, 64, 16) for _ in range(3))
    padding, found = np.arange(64)[None] >= 40, []
    for fill in (0.0, 50.0):
        inputs = [np.where(padding[:, None, :, None], np.float32(fill), x) for x in (q, k, v)]
        program, feeds = program_of("pyclattn:Attention", [*inputs, padding], {"is_self": is_self}, optional=[3])
        found.append(Executor(program, settings)(feeds)["y0"][:, :, :40])
    assert (found[0].tobytes() == found[1].tobytes()) == is_self


def test_padding_is_not_that_of_queries_where_only_some_tokens_ask():
    """Queries of a slice of the tokens share their origin, but no longer their places."""
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.spec import Settings
    from tests.graph.build import program_of

    q, k, v = normal(1, 2, 24, 16), normal(1, 2, 64, 16), normal(1, 2, 64, 16)
    padding = np.arange(64)[None] >= 40
    settings = Settings(attention=lambda *_: [(slice(0, 2), "clustered", {"n_clusters": 4})])
    program, feeds = program_of("pyclattn:Attention", [q, k, v, padding], {"is_self": True}, optional=[3])
    expected = pyclattn.clustered_attention(q, k, v, n_clusters=4, key_padding_mask=padding)
    np.testing.assert_array_equal(Executor(program, settings)(feeds)["y0"], expected)


@pytest.mark.parametrize(("axis", "kept"), [(0, (3, 9, 4)), (1, (3, 5, 4)), (1, (2, 5, 3)), (2, (3, 9, 6))])
def test_rows_at_an_expanded_index(axis, kept):
    """One index for a whole row, and one for each element."""
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.program import Op, Program, Value

    x = normal(3, 9, 4)
    small = np.random.default_rng(0).integers(-x.shape[axis], x.shape[axis], kept[: axis + 1])
    single = small.reshape(*small.shape, *(1,) * (2 - axis))
    index = np.broadcast_to(single, kept)
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(kept))
    expected = np.take_along_axis(x[cut], index, axis)
    np.testing.assert_array_equal(run("GatherElements", [x, index.copy()], {"axis": axis}), expected)
    gather = Op("GatherElements", ("x", "e"), ("y",), {"axis": axis})
    given = [Value("x", "float32", ("...",)), Value("i", "int64", ("...",))]
    ops = [Op("Expand", ("i", "n"), ("e",)), gather]
    program = Program(given, [Value("y", "float32", ("...",))], ops, {"n": np.array(kept)})
    np.testing.assert_array_equal(Executor(program)({"x": x, "i": single})["y"], expected)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8])
def test_sums_of_few(width, keepdims):
    """The bits of NumPy's own sum, by its columns or not."""
    x = normal(5, 1024, width)
    got = run("ReduceSum", [x, np.array([-1])], {"keepdims": keepdims}, constants=[1])
    np.testing.assert_array_equal(got, x.sum(-1, keepdims=bool(keepdims)))


@pytest.mark.parametrize("kind", ["MatMul", "pyclattn:Linear", "pyclattn:LayerNorm", "Softmax", "ReduceSum"])
def test_halves_are_computed_in_float32(kind):
    x, w = (100 * normal(40, 3000)).astype(np.float16), normal(3000, 8).astype(np.float16) / np.float16(100)
    second = {"MatMul": [w], "pyclattn:Linear": [w], "ReduceSum": [np.array([1])]}
    result = run(kind, [x, *second.get(kind, [])])
    double = x.astype(float)
    expected = {
        "MatMul": lambda: double @ w.astype(float),
        "pyclattn:Linear": lambda: double @ w.astype(float),
        "pyclattn:LayerNorm": lambda: (double - double.mean(1, keepdims=True)) / double.std(1, keepdims=True),
        "Softmax": lambda: (
            np.exp(double - double.max(1, keepdims=True))
            / np.exp(double - double.max(1, keepdims=True)).sum(1, keepdims=True)
        ),
        "ReduceSum": lambda: double.sum(1, keepdims=True),
    }[kind]()
    assert result.dtype == np.float16
    close(result, expected, 2e-3)


def test_integer_products_are_exact_beyond_float32():
    a, b = np.full((3, 3000), 255, np.uint8), np.full((3000, 2), -128, np.int8)
    np.testing.assert_array_equal(run("MatMulInteger", [a, b]), np.full((3, 2), 3000 * 255 * -128))


LARGE = normal(3, 260, 384)


@pytest.mark.parametrize(
    ("kind", "inputs", "function"),
    [
        ("Add", [LARGE, LARGE], lambda x, y: x + y),
        ("Mul", [LARGE, normal(384)], lambda x, y: x * y),
        ("Sub", [LARGE, normal(3, 1, 1)], lambda x, y: x - y),
        ("Sigmoid", [LARGE], lambda x: 1 / (1 + np.exp(-x))),
        ("Erf", [LARGE], lambda x: np.vectorize(math.erf)(x)),
        ("Softmax", [LARGE], lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        ("Where", [LARGE > 0, LARGE, normal(384)], lambda c, x, y: np.where(c, x, y)),
    ],
)
def test_large_arrays_go_in_blocks_over_threads(kind, inputs, function):
    double = [a if a.dtype == bool else a.astype(float) for a in inputs]
    close(run(kind, inputs, n_threads=3), function(*double), 1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_of_any_axis_in_blocks(axis):
    x = LARGE.astype(float)
    close(run("Softmax", [LARGE], {"axis": axis}, 2), np.exp(x) / np.exp(x).sum(axis, keepdims=True))


def test_matmul_of_layouts_blas_cannot_read():
    a, b = normal(2, 3, 17, 5), normal(17, 4, 3, 2)
    from pyclattn.graph.executor import Executor
    from pyclattn.graph.program import Op, Program, Value

    ops = [Op("Transpose", ("b",), ("t",), {"perm": [3, 2, 1, 0]}), Op("MatMul", ("t", "a"), ("y",))]
    program = Program([Value(n, "float32", ("...",)) for n in "ab"], [Value("y", "float32", ("...",))], ops)
    result = Executor(program)({"a": a, "b": b})["y"]
    close(result, b.transpose(3, 2, 1, 0).astype(float) @ a, 1e-4)


@pytest.mark.parametrize(
    ("shape", "perm", "target"),
    [
        ((4, 6), (1, 0), (24,)),
        ((4, 6), (1, 0), (2, 3, 4)),
        ((4, 6, 5), (0, 2, 1), (4, 5, 2, 3)),
        ((1, 4, 6), (0, 2, 1), (6, 2, 2)),
        ((3, 4, 5), (1, 0, 2), (12, 5)),
        ((3, 4, 5), (1, 0, 2), (4, 15)),
        ((2, 3), (0, 1), (1, 6, 1)),
    ],
)
def test_a_reshape_is_a_view_exactly_where_numpy_makes_one(shape, perm, target):
    x = normal(*shape).transpose(perm)
    strides = viewable(Spec.of(x), target)
    y = x.reshape(target)
    assert (strides is not None) == np.shares_memory(x, y)
    if strides is not None:
        real = [s for s, n in zip(strides, target) if n > 1]
        assert real == [s for s, n in zip(y.strides, target) if n > 1]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "error", "words"),
    [
        ("Add", [normal(2, 3), normal(4, 3)], {}, ShapeError, ["the_node", "Add", "(2, 3)", "(4, 3)"]),
        ("Add", [normal(2), np.ones(2)], {}, DTypeError, ["float32", "float64"]),
        ("MatMul", [normal(2, 3), normal(4, 5)], {}, ShapeError, ["(2, 3)", "(4, 5)"]),
        ("pyclattn:Linear", [normal(2, 3), normal(4, 5)], {}, ShapeError, ["the_node", "(2, 3)", "(4, 5)"]),
        ("pyclattn:Linear", [normal(2, 3), normal(3, 5)], {"activation": "x"}, ModelFormatError, ["activation", "'x'"]),
        ("Gather", [normal(4, 2), np.array([5])], {}, ShapeError, ["the_node", "5", "4 rows"]),
        ("Reshape", [normal(6), np.array([4, 2])], {}, ShapeError, ["(6,)", "(4, 2)"]),
        ("Reshape", [normal(6), np.array([-1, 4])], {}, ShapeError, ["[-1, 4]"]),
        ("Concat", [normal(2, 3), normal(3, 3)], {"axis": 1}, ShapeError, ["(2, 3)", "(3, 3)", "axis 1"]),
        ("Transpose", [normal(2, 3)], {"perm": [0, 0]}, ShapeError, ["[0, 0]"]),
        ("Softmax", [normal(2, 3)], {"axis": 2}, ShapeError, ["axis", "2"]),
        ("Softmax", [np.arange(3)], {}, DTypeError, ["int64"]),
        ("Conv", [normal(1, 3, 5, 5), normal(2, 4, 3, 3)], {}, ShapeError, ["(1, 3, 5, 5)", "(2, 4, 3, 3)"]),
        ("pyclattn:Attention", [normal(1, 2, 3, n) for n in (4, 5, 4)], {}, ShapeError, ["(1, 2, 3, 5)"]),
        ("TopK", [normal(3), np.array([4])], {}, ShapeError, ["k", "4"]),
        ("Split", [normal(5), np.array([2, 2])], {}, ShapeError, ["5", "[2, 2]"]),
    ],
)  # fmt: skip
def test_errors_name_the_node_and_both_sides(kind, inputs, attributes, error, words):
    with pytest.raises(error) as caught:
        run(kind, inputs, attributes)
    for word in words:
        assert word in str(caught.value)


def test_supported_ops_are_sorted_names():
    names = supported_ops()
    assert names == sorted(names)
    assert {"MatMul", "com.microsoft:Attention", "pyclattn:Attention"} <= set(names)


def test_the_docs_list_what_runs():
    text = (Path(__file__).parents[2] / "docs" / "graph.md").read_text()
    listed = set()
    for section in text.split("\n### ")[1:]:
        head, _, names = section.partition("\n")
        domain = head.split()[0]
        prefix = "" if domain == "ONNX" else f"{domain}:"
        listed |= {prefix + name.strip() for name in names.replace("\n", " ").split(",")}
    assert listed == set(supported_ops())
