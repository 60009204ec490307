"""Weights made ready before a run: packed, computed from bytes once, counted, and left alone under a memory limit."""

import numpy as np
import pytest

from pyclattn import _dispatch
from pyclattn.functional.dense import PackedWeight
from pyclattn.graph.executor import Executor
from pyclattn.graph.ops import functions as f
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.spec import Settings, Spec
from pyclattn.model import Model

DEPTH, WIDTH = 256, 300
PACKED = 4 * DEPTH * (-(-WIDTH // _dispatch.panel_lanes()) * _dispatch.panel_lanes())
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((DEPTH, WIDTH), dtype=np.float32) / 16
X = RNG.standard_normal((2, 5, DEPTH), dtype=np.float32)


def program(ops, constants, outputs=("y",), inputs=(("x", "float32"),)):
    values = [Value(name, dtype, ("...",)) for name, dtype in inputs]
    return Program(values, [Value(name, "", ("...",)) for name in outputs], [Op(*op) for op in ops], constants)


def result(model, x=X, **more):
    return Executor(model, Settings(n_threads=2), **more)({"x": x})["y"]


def specs(x=X):
    return {"x": Spec(x.shape, x.dtype)}


@pytest.mark.parametrize("bias", [None, (WIDTH,), (1,), ()])
@pytest.mark.parametrize("activation", sorted(f.ACTIVATIONS))
def test_packed_and_plain_give_the_same(activation, bias):
    """On the tile, and by BLAS as a memory limit asks for."""
    constants, names = {"w": WEIGHT}, ("x", "w", "")
    if bias is not None:
        constants["b"], names = RNG.standard_normal(bias, dtype=np.float32), ("x", "w", "b")
    model = program([("pyclattn:Linear", names, ("y",), {"activation": activation})], constants)
    packed = result(model)
    want = (X.astype(np.float64) @ WEIGHT + constants.get("b", 0)).astype(np.float64)
    if activation:
        f.ACTIVATIONS[activation](want.copy(), want)
    for got in (packed, result(model, max_memory=1 << 30)):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(DEPTH,), (1, DEPTH), (3, 1, 2, DEPTH), (0, DEPTH)])
def test_matmul_of_any_rank(shape):
    x = RNG.standard_normal(shape, dtype=np.float32)
    got = result(program([("MatMul", ("x", "w"), ("y",))], {"w": WEIGHT}), x)
    assert got.shape == (*shape[:-1], WIDTH)
    np.testing.assert_allclose(got, x @ WEIGHT, rtol=0, atol=1e-5)


def test_input_in_another_order():
    model = program([("Transpose", ("x",), ("t",), {"perm": [1, 0]}), ("MatMul", ("t", "w"), ("y",))], {"w": WEIGHT})
    x = np.ascontiguousarray(X[0].T)
    np.testing.assert_allclose(result(model, x), X[0] @ WEIGHT, rtol=0, atol=1e-5)


def test_the_plain_weight_is_kept_where_it_is_read():
    """By another operator, as an output, in a body; and dropped where only dense layers read it."""
    dense = ("MatMul", ("x", "w"), ("p",))
    alone = Executor(program([dense], {"w": WEIGHT}, ["p"])).planner.constant_specs["w"]
    assert alone.value is None
    assert alone.packed.nbytes == PACKED
    both = program([dense, ("ReduceSum", ("w",), ("s",)), ("Add", ("p", "s"), ("y",))], {"w": WEIGHT})
    np.testing.assert_allclose(result(both), X @ WEIGHT + WEIGHT.sum(), rtol=0, atol=1e-3)
    out = Executor(program([dense], {"w": WEIGHT}, ["p", "w"]))({"x": X})
    assert (out["w"] == WEIGHT).all()
    then = Program([], [Value("n", "", ("...",))], [Op("Neg", ("w",), ("n",))])
    other = Program([], [Value("n", "", ("...",))], [Op("Abs", ("w",), ("n",))])
    branches = ("If", ("c",), ("y",), {"then_branch": then, "else_branch": other})
    body = program([dense, branches], {"w": WEIGHT}, ["y", "p"], (("x", "float32"), ("c", "bool")))
    assert (Executor(body)({"x": X, "c": np.array(True)})["y"] == -WEIGHT).all()


def test_operators_built_in_the_run_read_packed_weights():
    """Rows that only the data count: the operator is built in the run, with a weight that is there packed only."""
    ops = [("NonZero", ("m",), ("i",)), ("Squeeze", ("i", "axis"), ("j",)), ("Gather", ("x", "j"), ("g",)),
           ("MatMul", ("g", "w"), ("y",))]  # fmt: skip
    model = program(ops, {"w": WEIGHT, "axis": np.array([0])}, inputs=(("x", "float32"), ("m", "bool")))
    mask = np.array([True, False, True, True, False])
    got = Executor(model)({"x": X[0], "m": mask})["y"]
    np.testing.assert_allclose(got, X[0][mask] @ WEIGHT, rtol=0, atol=1e-5)


def test_float32_weights_of_any_size_are_packed():
    """But rounded to bfloat16 only where that saves something."""
    for shape in ((8, 9), (1, 1), (40, 1)):
        weight = RNG.standard_normal(shape, dtype=np.float32)
        model = program([("MatMul", ("x", "w"), ("y",))], {"w": weight})
        for precision in ("float32", "bfloat16"):
            packed = Executor(model, Settings(precision=precision)).planner.constant_specs["w"].packed
            assert isinstance(packed, PackedWeight)
        x = X[..., : shape[0]]
        np.testing.assert_allclose(result(model, x), x @ weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_weights_stay(shape):
    model = program([("MatMul", ("x", "w"), ("y",))], {"w": np.zeros(shape, np.float32)})
    assert Executor(model).planner.constant_specs["w"].packed is None
    np.testing.assert_array_equal(result(model, X[..., : shape[0]]), np.zeros((2, 5, shape[1]), np.float32))


def test_other_weights_stay():
    wide = WEIGHT.astype(np.float64)
    model = program([("MatMul", ("x", "w"), ("y",))], {"w": wide}, inputs=(("x", "float64"),))
    assert Executor(model).planner.constant_specs["w"].packed is None
    np.testing.assert_allclose(result(model, X.astype(np.float64)), X @ wide, rtol=0, atol=1e-5)
    model = program([("MatMul", ("x", "w"), ("y",))], {"w": WEIGHT})
    with _dispatch.forced("reference"):  # slower than BLAS
        assert Executor(model).planner.constant_specs["w"].packed is None


def quantised(depth=600, width=900):
    """y = x @ dequantised weight of 540 kB; and the weight in float32, 2.2 MB."""
    w8 = RNG.integers(-127, 128, (depth, width)).astype(np.int8)
    scale, zero = np.float32(0.01), np.int8(3)
    ops = [("DequantizeLinear", ("w8", "scale", "zero"), ("w",)), ("MatMul", ("x", "w"), ("y",))]
    model = program(ops, {"w8": w8, "scale": np.array(scale), "zero": np.array(zero)})
    return model, (w8.astype(np.float32) - zero) * scale


def test_bytes_become_a_packed_weight_once():
    model, weight = quantised()
    x = RNG.standard_normal((4, 600), dtype=np.float32)
    executor = Executor(model)
    np.testing.assert_allclose(executor({"x": x})["y"], x @ weight, rtol=0, atol=1e-3)
    profile = []
    executor({"x": x}, profile)
    assert [op.kind for op, _, _ in profile] == ["MatMul"]
    assert executor.planner.constant_specs["w"].value is None  # float32 only in panels
    lanes = _dispatch.panel_lanes()
    assert executor.planner.folded == 4 * 600 * (-(-900 // lanes) * lanes)


def test_what_is_prepared_is_counted():
    model, _ = quantised()
    x = RNG.standard_normal((4, 600), dtype=np.float32)
    free = Model(model, n_threads=1)
    lean = Model(model, n_threads=1, max_memory=64 << 20)
    assert free.estimate(x=x.shape) >= free.weight_bytes + 4 * 600 * 900
    assert lean._executor.planner.folded == 0
    np.testing.assert_allclose(lean(x=x)["y"], free(x=x)["y"], rtol=0, atol=1e-3)
    profile = lean.profile({"x": x})[1]
    assert [op.kind for op, _, _ in profile] == ["DequantizeLinear", "MatMul"]


def test_a_limit_holds_in_bodies_too():
    dense = Program([], [Value("n", "", ("...",))], [Op("MatMul", ("x", "w"), ("n",))], {"w": WEIGHT})
    other = Program([], [Value("n", "", ("...",))], [Op("MatMul", ("x", "v"), ("n",))], {"v": WEIGHT})
    ops = [("If", ("c",), ("y",), {"then_branch": dense, "else_branch": other})]
    model = program(ops, {}, inputs=(("x", "float32"), ("c", "bool")))
    for limit, is_packed in ((None, True), (1 << 30, False)):
        executor = Executor(model, max_memory=limit)
        np.testing.assert_allclose(executor({"x": X, "c": np.array(True)})["y"], X @ WEIGHT, rtol=0, atol=1e-5)
        (inner,) = executor._inner.values()
        assert (inner.planner.constant_specs["w"].packed is not None) == is_packed


def test_constants_of_constants_do_not_fill_the_memory():
    """Each operator could make four times its input; together they make at most four times the model's constants."""
    names = [f"c{i}" for i in range(4)]
    ops = [
        ("Concat", (before,) * 4, (name,), {"axis": 0}) for before, name in (("c0", "c1"), ("c0", "c2"), ("c1", "c3"))
    ]
    ops += [("Gather", (name, "n"), (f"one_of_{name}",)) for name in names]
    ops += [("Sum", ("x", *(f"one_of_{name}" for name in names)), ("y",))]
    model = program(ops, {"c0": np.ones(1 << 17, np.float32)}, inputs=(("x", "float32"), ("n", "int64")))
    executor = Executor(model)
    assert 4 * (1 << 19) <= executor.planner.folded <= 4 * (1 << 19) + 1000
    np.testing.assert_allclose(executor({"x": X, "n": np.array(5)})["y"], X + 4, rtol=1e-6)


def test_estimate_of_a_packed_model_counts_weights_twice():
    model = program([("MatMul", ("x", "w"), ("y",))], {"w": WEIGHT})
    wanted = WEIGHT.nbytes + PACKED + X.nbytes + 4 * 10 * WIDTH
    assert wanted <= Model(model, n_threads=1).estimate(x=X.shape) <= 1.15 * wanted
