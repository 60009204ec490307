"""Small programs for tests."""

import numpy as np

from pyclattn.graph.executor import Executor
from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.spec import Settings


def program_of(kind, inputs, attributes=None, constants=None, n_outputs=1, optional=()):
    """A program of one operator; ``optional`` are positions left out."""
    names = ["" if i in optional else f"x{i}" for i in range(len(inputs) + len(optional))]
    given = [n for n in names if n]
    arrays = dict(zip(given, inputs))
    constants = {n: arrays[n] for n in given if int(n[1:]) in (constants or ())}
    values = [Value(n, a.dtype.name, ("...",)) for n, a in arrays.items() if n not in constants]
    outputs = [f"y{i}" for i in range(n_outputs)]
    op = Op(kind, tuple(names), tuple(outputs), attributes or {}, name="the_node")
    program = Program(values, [Value(o, "", ("...",)) for o in outputs], [op], constants)
    return program, {n: a for n, a in arrays.items() if n not in constants}


def run(kind, inputs, attributes=None, n_threads=1, **more):
    """The outputs of one operator."""
    program, feeds = program_of(kind, inputs, attributes, **more)
    results = list(Executor(program, Settings(n_threads=n_threads))(feeds).values())
    return results[0] if len(results) == 1 else results


def mlp(n_in=8, n_hidden=16, seed=0):
    """relu(x w + b) v + x over any number of rows."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (n_in, n_hidden), "b": (n_hidden,), "v": (n_hidden, n_in)}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    ops = [
        Op("pyclattn:Linear", ("x", "w", "b"), ("h",), {"activation": "relu"}, name="up"),
        Op("MatMul", ("h", "v"), ("d",), name="down"),
        Op("Add", ("d", "x"), ("y",), name="residual"),
    ]
    x, y = Value("x", "float32", ("rows", n_in)), Value("y", "float32", ("rows", n_in))
    return Program([x], [y], ops, constants)


def mlp_result(program, x):
    """What `mlp` computes, in float64."""
    w, b, v = (program.constants[n].astype(np.float64) for n in ("w", "b", "v"))
    return np.maximum(x @ w + b, 0) @ v + x
