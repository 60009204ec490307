"""Planner and executor: buffers, views, data-dependent shapes, threads, memory, nested programs."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyclattn._blas import single
from pyclattn.errors import (
    ArgumentError,
    DTypeError,
    MemoryLimitError,
    ModelFormatError,
    ShapeError,
    UnsupportedOpError,
)
from pyclattn.graph import arena
from pyclattn.graph.executor import N_PLANS, Executor
from pyclattn.graph.memory import ALIGNMENT, Buffer, place
from pyclattn.graph.program import MAX_DEPTH, Op, Program, Value
from pyclattn.graph.spec import Settings, Spec
from tests.graph.build import mlp, mlp_result

ANY = ("...",)


def program(ops, inputs, outputs, constants=None):
    return Program(
        [Value(n, d, ANY) for n, d in inputs.items()],
        [Value(n, "", ANY) for n in outputs],
        [Op(*o) for o in ops],
        {n: np.asarray(a) for n, a in (constants or {}).items()},
    )


def chain(n=12, size=1000):
    """x -> Tanh -> Tanh ..., each of which may overwrite its input."""
    ops = [("Tanh", (f"v{i}",), (f"v{i + 1}",)) for i in range(n)]
    return program(ops, {"v0": "float32"}, [f"v{n}"])


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_buffers_alive_together_do_not_overlap(items):
    buffers = [Buffer(size, min(a, b), max(a, b)) for size, a, b in items]
    total = place(buffers)
    for i, a in enumerate(buffers):
        assert a.offset % ALIGNMENT == 0
        assert a.offset + a.size <= total
        for b in buffers[:i]:
            alive = a.first <= b.last and b.first <= a.last
            apart = a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
            assert apart or not alive
    at_once = [sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(21)]
    assert total >= max(at_once, default=0)


def test_mlp():
    model = mlp()
    executor = Executor(model)
    for rows in (1, 5, 700, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        np.testing.assert_allclose(executor({"x": x})["y"], mlp_result(model, x), rtol=1e-4, atol=1e-4)


def test_a_chain_of_elementwise_operators_needs_one_buffer():
    plan = Executor(chain()).plan({"v0": Spec((1000,), np.float32)})
    assert plan.arena == 4032  # 1,000 float32 in whole cache lines: the input's buffer, overwritten twelve times


def test_an_input_that_is_needed_later_is_not_overwritten():
    ops = [("Tanh", ("x",), ("a",)), ("Neg", ("a",), ("b",)), ("Add", ("a", "b"), ("c",)), ("Add", ("c", "x"), ("y",))]
    x = np.float32([0.5, -1, 2])
    np.testing.assert_allclose(Executor(program(ops, {"x": "float32"}, ["y"]))({"x": x})["y"], x)


def test_a_buffer_seen_through_a_view_is_not_overwritten():
    ops = [
        ("Tanh", ("x",), ("a",)),
        ("Transpose", ("a",), ("t",), {"perm": [1, 0]}),
        ("Neg", ("a",), ("b",)),  # may not take a's buffer: t still looks at it
        ("Add", ("b", "t"), ("y",)),
    ]
    x = np.float32([[0.1, 0.7], [-2, 0.3]])
    expected = -np.tanh(x) + np.tanh(x).T
    np.testing.assert_allclose(Executor(program(ops, {"x": "float32"}, ["y"]))({"x": x})["y"], expected, rtol=1e-6)


def test_an_operator_may_read_one_buffer_twice():
    ops = [("Tanh", ("x",), ("a",)), ("Transpose", ("a",), ("t",), {}), ("Sub", ("a", "t"), ("y",))]
    x = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)  # in blocks: NumPy sees no overlap
    expected = np.tanh(x) - np.tanh(x).T
    executor = Executor(program(ops, {"x": "float32"}, ["y"]), Settings(n_threads=2))
    np.testing.assert_allclose(executor({"x": x})["y"], expected, atol=1e-6)


def test_results_are_the_callers_own():
    executor = Executor(program([("Identity", ("x",), ("y",))], {"x": "float32"}, ["y", "x", "w"], {"w": np.ones(3)}))
    x = np.float32([1, 2])
    first = executor({"x": x})
    for array in first.values():
        array[...] = 9
    second = executor({"x": x})
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(second["y"], [1, 2])
    np.testing.assert_array_equal(second["w"], [1, 1, 1])


def test_shapes_are_computed_before_the_run():
    ops = [
        ("Shape", ("x",), ("s",)),
        ("Gather", ("s", "zero"), ("n",), {}),
        ("Div", ("n", "two"), ("half",)),
        ("Unsqueeze", ("half", "axes"), ("h",)),
        ("Concat", ("h", "minus"), ("shape",), {"axis": 0}),
        ("Reshape", ("x", "shape"), ("y",)),
    ]
    constants = {"zero": np.int64(0), "two": np.int64(2), "axes": [0], "minus": [-1]}
    executor = Executor(program(ops, {"x": "float32"}, ["y"], constants))
    plan = executor.plan({"x": Spec((6, 4), np.float32)})
    assert [step.op.kind for step in plan.steps] == ["Reshape"]
    assert plan.is_static
    assert executor({"x": np.zeros((10, 4), np.float32)})["y"].shape == (5, 8)


def test_what_depends_on_constants_alone_is_computed_once():
    weights = {"q": np.arange(6, dtype=np.int8).reshape(2, 3), "scale": np.float32(0.5)}
    ops = [("DequantizeLinear", ("q", "scale"), ("w",)), ("Mul", ("x", "w"), ("y",))]
    executor = Executor(program(ops, {"x": "float32"}, ["y"], weights))
    plans = [executor.plan({"x": Spec((n, 2, 3), np.float32)}) for n in (1, 2)]
    assert [[step.op.kind for step in plan.steps] for plan in plans] == [["Mul"]] * 2
    assert plans[0].specs["w"].value is plans[1].specs["w"].value
    assert plans[0].folded == 24
    x = np.ones((1, 2, 3), np.float32)
    np.testing.assert_array_equal(executor({"x": x})["y"], x * (weights["q"] * 0.5))


def test_an_error_among_constants_names_the_node():
    ops = [("Add", ("a", "b"), ("c",), {}, "sum"), ("Mul", ("x", "c"), ("y",))]
    constants = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    executor = Executor(program(ops, {"x": "float32"}, ["y"], constants))
    with pytest.raises(ShapeError, match=r"'sum' \(Add\)"):
        executor({"x": np.ones(2, np.float32)})


def test_shapes_that_depend_on_data_are_found_in_the_run():
    ops = [
        ("Tanh", ("x",), ("t",)),
        ("Greater", ("x", "zero"), ("g",)),
        ("NonZero", ("g",), ("at",)),
        ("Squeeze", ("at", "first"), ("i",)),
        ("Gather", ("t", "i"), ("picked",)),
        ("Reshape", ("t", "n"), ("view",)),  # a view of a buffer that others use again, kept beyond it
        ("Exp", ("t",), ("e",)),
        ("Neg", ("e",), ("f",)),
        ("Mul", ("picked", "two"), ("y",)),
    ]
    constants = {"zero": np.float32(0), "first": [0], "two": np.float32(2)}
    executor = Executor(program(ops, {"x": "float32", "n": "int64"}, ["y", "view", "f"], constants))
    assert not executor.plan({"x": Spec((4,), "float32"), "n": Spec((2,), "int64")}).is_static
    for x in ([1, -1, 2, -2], [-1, -1, -1, -1], [3, 1, 4, 1]):
        x = np.float32(x)
        result = executor({"x": x, "n": np.array([2, 2])})
        np.testing.assert_allclose(result["y"], 2 * np.tanh(x[x > 0]), rtol=1e-6)
        np.testing.assert_allclose(result["view"], np.tanh(x).reshape(2, 2), rtol=1e-6)
        np.testing.assert_allclose(result["f"], -np.exp(np.tanh(x)), rtol=1e-6)


def branch(kind):
    """A body that applies ``kind`` to the outer x."""
    return Program([], [Value("r", "float32", ANY)], [Op(kind, ("x",), ("r",))])


def test_if_reads_outer_values():
    ops = [("If", ("c",), ("y",), {"then_branch": branch("Neg"), "else_branch": branch("Abs")})]
    executor = Executor(program(ops, {"c": "bool", "x": "float32"}, ["y"]))
    x = np.float32([-1, 2])
    np.testing.assert_array_equal(executor({"c": np.array(True), "x": x})["y"], [1, -2])
    np.testing.assert_array_equal(executor({"c": np.array(False), "x": x})["y"], [1, 2])


def test_loop_carries_state_and_collects():
    body_ops = [
        Op("Add", ("state", "x"), ("next",)),
        Op("Identity", ("next",), ("seen",)),
        Op("Identity", ("go",), ("on",)),
    ]
    body = Program(
        [Value("i", "int64", ()), Value("go", "bool", ()), Value("state", "float32", ANY)],
        [Value("on", "bool", ()), Value("next", "float32", ANY), Value("seen", "float32", ANY)],
        body_ops,
    )
    ops = [("Loop", ("n", "", "start"), ("last", "all"), {"body": body})]
    executor = Executor(program(ops, {"n": "int64", "start": "float32", "x": "float32"}, ["last", "all"]))
    feeds = {"n": np.array(3), "start": np.float32([0, 0]), "x": np.float32([1, 2])}
    result = executor(feeds)
    np.testing.assert_array_equal(result["last"], [3, 6])
    np.testing.assert_array_equal(result["all"], [[1, 2], [2, 4], [3, 6]])
    result = executor({**feeds, "n": np.array(0)})
    np.testing.assert_array_equal(result["last"], [0, 0])


def test_many_threads_call_one_program():
    model = mlp(32, 64)
    executor = Executor(model, Settings(n_threads=2))
    inputs = [np.random.default_rng(i).standard_normal((1 + i % 7 * 40, 32)).astype(np.float32) for i in range(48)]
    alone = [executor({"x": x})["y"] for x in inputs]
    start = threading.Barrier(6)

    def work(part):
        start.wait()
        return [executor({"x": x})["y"] for x in inputs[part::6]]

    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(work, range(6)))
    for part, results in enumerate(parts):
        for expected, result in zip(alone[part::6], results):
            np.testing.assert_array_equal(result, expected)


def test_blas_threads_are_the_hosts_again_after_a_run():
    if not single.works:
        pytest.skip("this NumPy's BLAS has no thread setting")
    get, put = single._functions
    before = get()
    try:
        put(2)
        inside = []
        ops = [("Tanh", ("x",), ("y",))]
        executor = Executor(program(ops, {"x": "float32"}, ["y"]))
        executor({"x": np.ones(3, np.float32)})
        (frame,) = next(iter(executor._plans.values())).frames
        frame.calls.append(lambda: inside.append(get()))
        executor({"x": np.ones(3, np.float32)})
        assert inside == [1]
        assert get() == 2
    finally:
        put(before)


def test_a_blas_that_cannot_be_held_is_left_alone(monkeypatch):
    monkeypatch.setattr(single, "_found", [None])
    model = mlp(384, 700)
    x = np.random.default_rng(0).standard_normal((600, 384)).astype(np.float32)
    result = Executor(model, Settings(n_threads=3), max_memory=1 << 30)({"x": x})["y"]  # weights stay as they are
    np.testing.assert_allclose(result, mlp_result(model, x), rtol=1e-3, atol=1e-3)


def test_plans_do_not_pile_up():
    executor = Executor(chain(2))
    for n in range(1, N_PLANS + 20):
        executor({"v0": np.ones(n, np.float32)})
    assert len(executor._plans) == N_PLANS


def test_idle_arenas_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("pyclattn.graph.executor.IDLE_BYTES", 10_000)
    executor = Executor(chain(2))
    for n in (500, 1000, 1500, 100, 5000, 100):
        executor({"v0": np.ones(n, np.float32)})
        idle = [e.plan.arena for e in executor._plans.values() for _ in e.frames]
        assert sum(idle) == executor._idle <= 10_000
    assert min(idle) < 1000  # the last one was kept


@pytest.mark.skipif(not arena.CAN_LEND, reason="this system borrows no memory")
def test_the_last_large_arena_is_lent_and_taken_again(monkeypatch):
    monkeypatch.setattr("pyclattn.graph.executor.IDLE_BYTES", 10_000)
    executor, x = Executor(chain(2)), {"v0": np.linspace(-2, 2, 5000, dtype=np.float32)}
    want = executor(x)["v2"]
    _, frame = executor._lent
    frame.arena.bytes.fill(255)  # its content may be anything
    np.testing.assert_array_equal(executor(x)["v2"], want)
    assert executor._lent[1] is frame
    executor({"v0": np.ones(20_000, np.float32)})
    assert executor._lent[1].plan.arena > frame.plan.arena
    np.testing.assert_array_equal(executor(x)["v2"], want)
    executor({"v0": np.ones(100, np.float32)})
    assert executor._lent is None
    assert 0 < executor._idle <= 10_000


def test_a_large_arena_is_dropped_where_it_cannot_be_lent(monkeypatch):
    monkeypatch.setattr("pyclattn.graph.executor.IDLE_BYTES", 10_000)
    monkeypatch.setattr(arena, "CAN_LEND", False)
    executor = Executor(chain(2))
    executor({"v0": np.ones(5000, np.float32)})
    assert executor._lent is None
    assert executor._idle == 0


def test_memory_limit_is_kept_or_refused():
    """In float64, whose convolutions unfold blocks of the input; in float32 the tile needs no more than one panel."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 32, 3, 3))
    model = program([("Conv", ("x", "w"), ("y",), {"pads": [1, 1, 1, 1]})], {"x": "float64"}, ["y"], {"w": weight})
    shape = (1, 32, 96, 96)
    x = rng.standard_normal(shape)
    free = Executor(model)
    wanted = free.plan({"x": Spec(shape, np.float64)}).peak
    tight = Executor(model, max_memory=wanted - 500_000)
    plan = tight.plan({"x": Spec(shape, np.float64)})
    assert plan.peak <= wanted - 500_000
    np.testing.assert_allclose(tight({"x": x})["y"], free({"x": x})["y"], rtol=1e-4, atol=1e-4)
    with pytest.raises(MemoryLimitError, match=r"\(1, 32, 96, 96\)"):
        Executor(model, max_memory=1_000_000)({"x": x})


def test_all_unsupported_operators_are_named_at_once():
    ops = [("Nonsense", ("x",), ("a",)), ("other:Thing", ("a",), ("b",)), ("Nonsense", ("b",), ("y",))]
    with pytest.raises(UnsupportedOpError) as caught:
        Executor(program(ops, {"x": "float32"}, ["y"]))
    for word in ("Nonsense (2", "other:Thing (1", "'a'"):
        assert word in str(caught.value)


def test_unsupported_operators_in_bodies_are_found():
    ops = [("If", ("c",), ("y",), {"then_branch": branch("Neg"), "else_branch": branch("Nonsense")})]
    with pytest.raises(UnsupportedOpError, match="Nonsense"):
        Executor(program(ops, {"c": "bool", "x": "float32"}, ["y"]))


X = Value("x", "float32", ("n", 4))
M = Value("m", "int64", ("n",))


@pytest.mark.parametrize(
    ("feeds", "error", "words"),
    [
        ({}, ArgumentError, ["missing x, m"]),
        ({"x": np.ones((2, 4), np.float32)}, ArgumentError, ["missing m"]),
        ({"x": np.ones((2, 4), np.float32), "M": np.ones(2, int)}, ArgumentError, ["missing m", "unknown M", "x, m"]),
        ({"x": np.ones((2, 4)), "m": np.ones(2, int)}, DTypeError, ["'x'", "float32", "float64"]),
        ({"x": np.ones(4, np.float32), "m": np.ones(2, int)}, ShapeError, ["'x'", "('n', 4)", "(4,)"]),
        ({"x": np.ones((2, 5), np.float32), "m": np.ones(2, int)}, ShapeError, ["'x'", "(2, 5)"]),
        ({"x": np.ones((2, 4), np.float32), "m": np.ones(3, int)}, ShapeError, ["'n' is 2 in 'x' and 3 in 'm'"]),
    ],
)
def test_inputs_that_do_not_fit(feeds, error, words):
    ops = [
        Op("Cast", ("m",), ("f",), {"to": "float32"}),
        Op("Unsqueeze", ("f", "one"), ("g",)),
        Op("Mul", ("x", "g"), ("y",)),
    ]
    model = Program([X, M], [Value("y", "float32", ("n", 4))], ops, {"one": np.array([1])})
    with pytest.raises(error) as caught:
        Executor(model)(feeds)
    for word in words:
        assert word in str(caught.value)


def test_an_error_of_the_run_names_the_node():
    ops = [("Gather", ("w", "x"), ("y",), {}, "positions")]
    executor = Executor(program(ops, {"x": "int64"}, ["y"], {"w": np.ones((5, 2), np.float32)}))
    assert executor({"x": np.array([0, -5, 4])})["y"].shape == (3, 2)
    with pytest.raises(ShapeError, match=r"'positions' \(Gather\).*index 5.*5 rows"):
        executor({"x": np.array([5])})
    assert executor({"x": np.array([1])})["y"].shape == (1, 2)  # and the next run is well


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: program([("Neg", ("u",), ("y",), {}, "n1")], {"x": "float32"}, ["y"]), ["'n1'", "'u'"]),
        (lambda: program([("Neg", ("y",), ("y",))], {"x": "float32"}, ["y"]), ["'y'", "not defined"]),
        (lambda: program([("Neg", ("x",), ("x",))], {"x": "float32"}, ["x"]), ["'x'", "twice"]),
        (lambda: program([], {"x": "float32"}, ["y"]), ["'y'", "no operator"]),
        (lambda: program([("Neg", ("x",), ("y" * 20_000,))], {"x": "float32"}, ["x"]), ["20000"]),
    ],
)
def test_validation(make, words):
    with pytest.raises(ModelFormatError) as caught:
        make().validate()
    for word in words:
        assert word in str(caught.value)


def test_validation_of_nested_programs():
    inner = branch("Neg")
    for _ in range(MAX_DEPTH + 1):
        inner = Program(
            [], [Value("r", "", ANY)], [Op("If", ("c",), ("r",), {"then_branch": inner, "else_branch": inner})]
        )
    with pytest.raises(ModelFormatError, match="deep"):
        program([("If", ("c",), ("y",), {"then_branch": inner})], {"c": "bool", "x": "float32"}, ["y"]).validate()
    with pytest.raises(ModelFormatError, match="'x'"):
        program([("If", ("c",), ("y",), {"then_branch": branch("Neg")})], {"c": "bool"}, ["y"]).validate()


def test_an_executor_that_is_dropped_is_gone_at_once():
    """Weights do not wait for the collector of cycles."""
    executor = Executor(chain())
    executor({"v0": np.zeros(1000, np.float32)})
    gone = weakref.ref(executor)
    gc.disable()
    try:
        del executor
        assert gone() is None
    finally:
        gc.enable()
