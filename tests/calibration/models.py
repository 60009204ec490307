"""Small models whose attentions can be clustered, and samples for them."""

import numpy as np

from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

HEADS, DEPTH = 3, 16


def attentions(names=("first", "second"), heads=HEADS, kv_heads=None, **attributes):
    """x (1, length, heads x depth) through attentions in a row, each with a residual."""
    kv_heads = kv_heads or heads
    ops, x = [], "x"
    constants = {
        "heads": np.array([0, 0, heads, DEPTH]),
        "kv_heads": np.array([0, 0, kv_heads, DEPTH]),
        "flat": np.array([0, 0, heads * DEPTH]),
        "w_kv": np.eye(heads * DEPTH, kv_heads * DEPTH, dtype=np.float32),
    }
    for i, name in enumerate(names):
        y = f"y{i}"
        ops += [
            Op("Reshape", (x, "heads"), (f"q{i}",)),
            Op("MatMul", (x, "w_kv"), (f"k{i}",)),
            Op("Reshape", (f"k{i}", "kv_heads"), (f"kh{i}",)),
            Op(
                "pyclattn:Attention", (f"q{i}", f"kh{i}", f"kh{i}"), (f"a{i}",),
                {"name": name, "layout": "blhd", **attributes},
            ),
            Op("Reshape", (f"a{i}", "flat"), (f"f{i}",)),
            Op("Add", (f"f{i}", x), (y,)),
        ]  # fmt: skip
        x = y
    value = [Value(n, "float32", ("batch", "length", heads * DEPTH)) for n in ("x", x)]
    return Program([value[0]], [value[1]], ops, constants)


def model(**options):
    return Model(attentions(**options), n_threads=2)


def sample(length, seed=0, heads=HEADS, spread=0.3):
    """Tokens of 40 kinds: what clustering is for. The larger the spread, the less it is."""
    rng = np.random.default_rng(seed)
    kinds = 1.5 * np.random.default_rng(100).standard_normal((40, heads * DEPTH))
    noise = rng.standard_normal((1, length, heads * DEPTH))
    return {"x": (kinds[rng.integers(0, 40, (1, length))] + spread * noise).astype(np.float32)}
