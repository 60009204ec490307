"""Programs made ready: sums and heads that dense layers write themselves."""

import numpy as np
import pytest

from pyclattn.graph.executor import Executor
from pyclattn.graph.ops import linear
from pyclattn.graph.passes.lower import lower
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.spec import Settings
from pyclattn.model import Model

rng = np.random.default_rng(0)
WIDTH, HEADS = 320, 5


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)


def block(activation="", layout=None):
    """Attention and a residual: x + attention(x) w."""
    names = ("q", "k", "v")
    constants = {f"w{n}": normal(WIDTH, WIDTH) for n in (*names, "o")} | {"b": normal(WIDTH)}
    constants["split"] = np.array([0, 0, HEADS, WIDTH // HEADS])
    constants["join"] = np.array([0, 0, -1])
    ops = []
    for n in names:
        ops.append(Op("pyclattn:Linear", ("x", f"w{n}", "b"), (f"{n}p",)))
        ops.append(Op("Reshape", (f"{n}p", "split"), (f"{n}h",)))
    layouts = {"layout": "blhd"} if layout is None else layout
    ops += [
        Op("pyclattn:Attention", ("qh", "kh", "vh"), ("a",), {"scale": 0.1, "name": "only", **layouts}),
        Op("Reshape", ("a", "join"), ("j",)),
        Op("pyclattn:Linear", ("j", "wo", "b"), ("p",), {"activation": activation}),
        Op("Add", ("x", "p"), ("y",)),
    ]
    values = [Value(n, "float32", ("b", "n", WIDTH)) for n in ("x", "y")]
    return Program(values[:1], values[1:], ops, constants)


@pytest.mark.parametrize("activation", ["", "gelu", "tanh"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_same_numbers_with_fewer_operators(activation, n_threads):
    program, x = block(activation), normal(2, 70, WIDTH)
    small = lower(program)
    assert [op.kind for op in small.ops] == [
        "pyclattn:Linear", "pyclattn:Linear", "pyclattn:Linear", "pyclattn:Attention", "Reshape", "pyclattn:Linear",
    ]  # fmt: skip
    assert len(program.ops) == 10  # untouched
    plain = Executor(program, Settings(n_threads=n_threads), max_memory=1 << 30)({"x": x})["y"]
    fused = Executor(program, Settings(n_threads=n_threads))({"x": x})["y"]
    np.testing.assert_allclose(fused, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("max_memory", [None, 1 << 30])
def test_attentions_are_described_as_they_run(max_memory):
    (found,) = Model(block(), max_memory=max_memory).describe_attentions(x=(2, 70, WIDTH))
    assert (found["heads"], found["queries"], found["head_dim"]) == (HEADS, 70, WIDTH // HEADS)


@pytest.mark.parametrize("is_fused", [True, False])
def test_without_packed_weights_or_what_the_tile_can_do(monkeypatch, is_fused):
    """The paths that deal heads and add residuals after the product."""
    program, x = lower(block("gelu")), normal(2, 70, WIDTH)
    want = Executor(program)({"x": x})["y"]
    if is_fused:
        monkeypatch.setattr("pyclattn.graph.weights.is_fast", lambda: False)
    else:
        monkeypatch.setattr(linear, "TILE_ACTIVATIONS", ())
    np.testing.assert_allclose(Executor(program)({"x": x})["y"], want, rtol=0, atol=2e-6)


def test_what_is_read_twice_or_broadcast_stays():
    w = {"w": normal(WIDTH, WIDTH), "one": np.ones(WIDTH, np.float32)}
    x, y, p = (Value(n, "float32", ("n", WIDTH)) for n in "xyp")
    linear_op = Op("pyclattn:Linear", ("x", "w"), ("p",))
    for add, outputs in (
        (Op("Add", ("p", "x"), ("y",)), [y, p]),  # the product is an output too
        (Op("Add", ("p", "one"), ("y",)), [y]),  # another shape
        (Op("Add", ("p", "p"), ("y",)), [y]),
    ):
        assert [op.kind for op in lower(Program([x], outputs, [linear_op, add], w)).ops] == ["pyclattn:Linear", "Add"]


def test_the_sum_takes_the_place_of_its_residual():
    """One buffer for x + ... through a chain of layers."""
    constants = {f"w{i}": normal(WIDTH, WIDTH) for i in range(4)} | {"s": np.float32(2)}
    ops = [Op("Mul", ("x", "s"), ("y0",))]
    for i in range(4):
        ops += [
            Op("pyclattn:Linear", (f"y{i}", f"w{i}"), (f"p{i}",)),
            Op("pyclattn:Linear", (f"p{i}", "w0"), (f"r{i}",)),
        ]
        ops.append(Op("Add", (f"y{i}", f"r{i}"), (f"y{i + 1}",)))
    x, y = (Value(n, "float32", ("n", WIDTH)) for n in ("x", "y4"))
    executor = Executor(Program([x], [y], ops, constants))
    given = normal(500, WIDTH)
    want = 2 * given.astype(float)
    for i in range(4):
        want = want + want @ constants[f"w{i}"] @ constants["w0"]
    np.testing.assert_allclose(executor({"x": given})["y4"], want, rtol=0, atol=2e-4)
    from pyclattn.graph.spec import Spec

    assert executor.plan({"x": Spec(given.shape, given.dtype)}).arena <= 3 * given.nbytes


def test_a_residual_of_another_shape_is_refused():
    from pyclattn.errors import ShapeError

    op = Op("pyclattn:Linear", ("x", "w", "", "r"), ("y",), name="sum")
    values = [Value(n, "float32", ("...",)) for n in ("x", "r", "y")]
    program = Program(values[:2], values[2:], [op], {"w": normal(8, 6)})
    with pytest.raises(ShapeError, match=r"sum.*residual must be float32 of shape \(3, 6\)"):
        Executor(program)({"x": normal(3, 8), "r": normal(6)})
