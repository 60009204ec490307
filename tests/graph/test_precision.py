"""Whole models in bfloat16: which operators take part, agreement, memory, and processors without it."""

import inputs
import numpy as np
import pytest

import pyclattn
from pyclattn import _dispatch
from pyclattn.cli import main
from pyclattn.errors import ArgumentError, BackendError
from pyclattn.functional.dense_bfloat16 import PackedBfloat16
from pyclattn.functional.precision import missing_bfloat16, resolved
from pyclattn.graph.identity import ATTENTION
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

WIDTH, HEADS = 256, 4


def program():
    """Queries, keys and values from three dense layers, attention, a dense layer behind it."""
    rng = np.random.default_rng(0)
    names = ("wq", "wk", "wv", "wo")
    constants = {n: rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(16) for n in names}
    constants["shape"] = np.array([0, 0, HEADS, WIDTH // HEADS])
    constants["joined"] = np.array([0, 0, WIDTH])
    ops = []
    for name in "qkv":
        ops.append(Op("pyclattn:Linear", ("x", f"w{name}"), (f"{name}0",)))
        ops.append(Op("Reshape", (f"{name}0", "shape"), (name,)))
    ops += [
        Op(ATTENTION, ("q", "k", "v"), ("a",), {"layout": "blhd"}, name="layer.attention"),
        Op("Reshape", ("a", "joined"), ("b",)),
        Op("pyclattn:Linear", ("b", "wo"), ("y",)),
    ]
    shape = ("batch", "length", WIDTH)
    return Program([Value("x", "float32", shape)], [Value("y", "float32", shape)], ops, constants)


@pytest.fixture
def room():
    """Where bfloat16 can be computed: as compiled, else in the reference."""
    with _dispatch.forced("reference" if missing_bfloat16() else None):
        yield


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_layers_and_attention_are_rounded(room):
    x = inputs.tensors(n=150, dim=WIDTH)[0][0]
    want = Model(program())(x=x)["y"]
    model = Model(program(), precision="bfloat16")
    got = model(x=x)["y"]
    assert 1e-4 < error(got, want) < 1e-2
    packed = [s.packed for s in model._executor.planner.constant_specs.values() if s.packed is not None]
    assert len(packed) == 4
    assert all(isinstance(p, PackedBfloat16) for p in packed)
    assert model.precision == "bfloat16"
    limited = Model(program(), precision="bfloat16", max_memory=1 << 26)(x=x)["y"]  # layers in float32, attention not
    assert 1e-5 < error(limited, want) < error(got, want)


@pytest.mark.parametrize("attention", ["exact", "auto", "coclustered"])
def test_methods(room, attention):
    x = inputs.tensors(n=60, dim=WIDTH)[0][0]
    want = Model(program(), attention="exact")(x=x)["y"]
    assert error(Model(program(), attention=attention, precision="bfloat16")(x=x)["y"], want) < 1e-2


def test_memory_is_less(room):
    sizes = {p: Model(program(), precision=p, n_threads=1) for p in ("float32", "bfloat16")}
    own = {p: m.estimate(x=(1, 64, WIDTH)) for p, m in sizes.items()}
    if _dispatch.room_of("dense.multiply") == "reference":
        return  # there float32 is not packed
    saved = 4 * (4 * 240 * WIDTH // 2)  # of four weights of 256 x 256 at least, in panels of up to 48
    assert own["float32"] - own["bfloat16"] > saved


def test_what_is_asked_for(tmp_path):
    path = tmp_path / "model.safetensors"
    Model(program()).save(path)
    for precision in ("float32", "auto"):
        assert pyclattn.load(path, precision=precision).precision == resolved(precision)
    with pytest.raises(ArgumentError, match="precision must be one of 'float32', 'bfloat16', 'auto', got 'float16'"):
        pyclattn.load(path, precision="float16")
    with _dispatch.forced("cython", isa="baseline"):
        assert pyclattn.load(path, precision="auto").precision == "float32"
        with pytest.raises(BackendError, match="bfloat16"):
            pyclattn.load(path, precision="bfloat16")


def test_command_line(tmp_path, capsys):
    path, x, y = tmp_path / "model.safetensors", tmp_path / "x.npy", tmp_path / "y.npy"
    Model(program()).save(path)
    np.save(x, inputs.tensors(n=40, dim=WIDTH)[0][0])
    given = ["run", str(path), "-i", str(x), "-o", str(y), "--precision"]
    assert main([*given, "auto"]) == 0
    got = np.load(y)
    np.testing.assert_array_equal(got, pyclattn.load(path, precision="auto")(x=np.load(x))["y"])
    with _dispatch.forced("cython", isa="baseline"):
        assert main([*given, "bfloat16"]) == 1
    assert "bfloat16 products need" in capsys.readouterr().err
