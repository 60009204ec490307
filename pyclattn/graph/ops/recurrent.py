"""Recurrent layers: RNN, GRU, LSTM, in one or both directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyclattn.errors import ModelFormatError, ShapeError
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, simple

# Kind -> (gates, states, activations of a direction)
LAYERS = {"RNN": (1, 1, ("Tanh",)), "GRU": (3, 1, ("Sigmoid", "Tanh")), "LSTM": (4, 2, ("Sigmoid", "Tanh", "Tanh"))}
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _functions(node: Node, n_directions: int, default: tuple[str, ...]) -> list:
    """The activations of each direction."""
    names = node.attr("activations", list(default) * n_directions)
    names = [n.decode() if isinstance(n, bytes) else n for n in names]
    unknown = [n for n in names if n.lower() not in ACTIVATIONS]
    if unknown or len(names) != len(default) * n_directions:
        raise ModelFormatError(
            f"activations must be {len(default) * n_directions} of {', '.join(sorted(ACTIVATIONS))}, got {names}"
        )
    found = [ACTIVATIONS[n.lower()] for n in names]
    return [found[i : i + len(default)] for i in range(0, len(found), len(default))]


def _rnn(x, states, r, bias, peephole, functions, cut, options):
    (f,), (h,) = functions, states
    return (f(cut(x + h @ r.T + bias)),)


def _gru(x, states, r, bias, peephole, functions, cut, options):
    (f, g), (h,) = functions, states
    n = h.shape[1]
    gates = f(cut(x[:, : 2 * n] + h @ r[: 2 * n].T + bias[: 2 * n]))
    update, reset = gates[:, :n], gates[:, n:]
    if options["linear_before_reset"]:
        recurrent = reset * (h @ r[2 * n :].T + bias[2 * n :])
    else:
        recurrent = (reset * h) @ r[2 * n :].T + bias[2 * n :]
    return ((1 - update) * g(cut(x[:, 2 * n :] + recurrent)) + update * h,)


def _lstm(x, states, r, bias, peephole, functions, cut, options):
    (f, g, out), (h, c) = functions, states
    i, o, forget, new = np.split(x + h @ r.T + bias, 4, 1)
    to_i, to_o, to_forget = (0, 0, 0) if peephole is None else np.split(peephole, 3)
    i = f(cut(i + to_i * c))
    forget = 1 - i if options["input_forget"] else f(cut(forget + to_forget * c))
    c = forget * c + i * g(cut(new))
    return f(cut(o + to_o * c)) * out(c), c


STEPS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


@op("RNN", "GRU", "LSTM")
def _recurrent(node: Node) -> Kernel:
    """x (L, B, I), weights (directions, gates x H, I), recurrent weights, biases, lengths, first states, peepholes."""
    n_gates, n_states, default = LAYERS[node.kind]
    name = node.attr("direction", "forward")
    directions = DIRECTIONS.get(name.decode() if isinstance(name, bytes) else name)
    if directions is None:
        raise ModelFormatError(f"direction must be one of {', '.join(DIRECTIONS)}, got {name!r}")
    x, is_batch_first = node.spec(0), bool(node.attr("layout", 0))
    if x.ndim != 3:
        raise ShapeError(f"the input must have 3 dimensions, got {x.shape}")
    batch, length = (x.shape[0], x.shape[1]) if is_batch_first else (x.shape[1], x.shape[0])
    n, d = node.attr("hidden_size", node.shape(2)[-1]), len(directions)
    state = (batch, d, n) if is_batch_first else (d, batch, n)
    wanted = [(1, (d, n_gates * n, x.shape[2])), (2, (d, n_gates * n, n)), (3, (d, 2 * n_gates * n)), (4, (batch,)),
              (5, state), (6, state), (7, (d, 3 * n))]  # fmt: skip
    for i, shape in wanted:
        if node.has(i) and node.shape(i) != shape:
            raise ShapeError(f"input {i} must have shape {shape}, got {node.shape(i)}")
    functions, limit = _functions(node, d, default), node.attr("clip", None)
    options = {key: bool(node.attr(key, 0)) for key in ("linear_before_reset", "input_forget")}
    step = STEPS[node.kind]

    def cut(values):
        return values if limit is None else np.clip(values, -limit, limit)

    def run(*ins):
        given = list(ins) + [None] * (8 - len(ins))
        (a, w, r, bias, lengths), firsts, peephole = given[:5], given[5 : 5 + n_states], given[7]
        if is_batch_first:
            a, firsts = a.swapaxes(0, 1), [None if f is None else f.swapaxes(0, 1) for f in firsts]
        firsts = [np.zeros((d, batch, n), a.dtype) if f is None else f for f in firsts]
        bias = np.zeros((d, 2 * n_gates * n), a.dtype) if bias is None else bias
        y, last = np.zeros((length, d, batch, n), a.dtype), [np.empty((d, batch, n), a.dtype) for _ in firsts]
        for i, is_reverse in enumerate(directions):
            projected = a @ w[i].T + bias[i, : n_gates * n]
            states, own = tuple(f[i] for f in firsts), None if peephole is None else peephole[i]
            own_bias = bias[i, n_gates * n :]
            for t in range(length)[:: -1 if is_reverse else 1]:
                after = step(projected[t], states, r[i], own_bias, own, functions[i], cut, options)
                inside = True if lengths is None else (t < lengths)[:, None]
                states = tuple(np.where(inside, new, old) for new, old in zip(after, states))
                y[t, i] = np.where(inside, states[0], 0)
            for array, value in zip(last, states):
                array[i] = value
        if is_batch_first:
            return [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last)]
        return [y, *last]

    y_shape = (batch, length, d, n) if is_batch_first else (length, d, batch, n)
    outputs = [Spec(y_shape, x.dtype), *[Spec(state, x.dtype)] * n_states]
    kernel = simple(outputs, run)
    kernel.transient += length * batch * n_gates * n * x.dtype.itemsize
    return kernel
