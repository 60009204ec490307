"""Linear, norms, Embedding, FeedForward beside plain loops."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from pyclattn.errors import ArgumentError, DTypeError, ShapeError
from pyclattn.layers import Embedding, FeedForward, LayerNorm, Linear, RMSNorm
from tests.layers import naive
from tests.layers.weights import random


@pytest.mark.parametrize("activation", [None, *naive.ACTIVATIONS])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear(shape, activation):
    x, weight, bias, residual = random(*shape), random(7, 5), random(7), random(*shape[:-1], 7, seed=3)
    expected = naive.linear(x, weight, bias) if x.size else np.zeros((0, 7))
    if activation and x.size:
        expected = naive.activate(activation, expected)
    layer = Linear(weight, bias)
    np.testing.assert_allclose(layer(x, activation=activation), expected, atol=1e-5)
    np.testing.assert_allclose(layer(x, activation=activation, add=residual), expected + residual, atol=1e-5)


def test_a_part_of_a_linear_is_a_view():
    layer = Linear(random(6, 4), random(6))
    x = random(3, 4)
    np.testing.assert_array_equal(layer.rows(2, 5)(x), layer(x)[:, 2:5])
    assert np.shares_memory(layer.rows(2, 5).weight, layer.weight)


@pytest.mark.parametrize("n_rows", [1, 40, 3000])
def test_norms(n_rows):
    x, weight, bias, residual = 3 * random(n_rows, 33) + 1, random(33), random(33, seed=1), random(n_rows, 33, seed=2)
    for add, total in ((None, x), (residual, x + residual)):
        for n_threads in (1, 2):
            np.testing.assert_allclose(
                LayerNorm(weight, bias, 1e-3)(x, add=add, n_threads=n_threads),
                naive.layer_norm(total, weight, bias, 1e-3), atol=2e-5,
            )  # fmt: skip
            np.testing.assert_allclose(
                RMSNorm(weight, 1e-3)(x, add=add, n_threads=n_threads), naive.rms_norm(total, weight, 1e-3), atol=2e-5
            )
    np.testing.assert_allclose(LayerNorm(weight)(x), naive.layer_norm(x, weight, None, 1e-5), atol=2e-5)


def test_embedding():
    table = random(9, 4)
    np.testing.assert_array_equal(Embedding(table)([[8, 0], [3, 3]]), [[table[8], table[0]], [table[3], table[3]]])


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize("is_gated", [False, True])
def test_feed_forward(is_gated, activation):
    up, down, gate = (
        Linear(random(a, b, seed=s) / 2, random(a, seed=s)) for a, b, s in ((9, 5, 1), (5, 9, 2), (9, 5, 3))
    )
    x = random(2, 6, 5)
    hidden = naive.linear(x, up.weight, up.bias)
    if is_gated:
        hidden = naive.activate(activation, naive.linear(x, gate.weight, gate.bias)) * hidden
    else:
        hidden = naive.activate(activation, hidden)
    layer = FeedForward(up, down, gate if is_gated else None, activation)
    expected = naive.linear(hidden, down.weight, down.bias)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    np.testing.assert_allclose(layer(x, add=x), expected + x, atol=1e-5)


def test_a_feed_forward_of_many_rows_is_that_of_each():
    layer = FeedForward(Linear(random(24, 8), random(24)), Linear(random(8, 24)), Linear(random(24, 8, seed=5)), "silu")
    x = random(2500, 8)
    together = layer(x, n_threads=2)
    np.testing.assert_array_equal(
        together, np.concatenate([layer(x[i : i + 500], n_threads=1) for i in range(0, 2500, 500)])
    )


def test_hidden_features_never_exist_all_at_once():
    up, down = Linear(random(256, 8)), Linear(random(8, 256))
    x, layer = random(16_384, 8), FeedForward(up, down)
    layer(x[:1])
    tracemalloc.start()
    layer(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_384 * 256 * 4 / 4


def test_weights_are_float32_and_stay():
    weight = random(3, 2)
    assert Linear(weight).weight is weight
    assert Linear(weight.astype(np.float64)).weight.dtype == np.float32
    assert Linear(weight.astype(np.float16))(random(2)).dtype == np.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linear(weight).weight = weight


def test_read_only_and_strided_input():
    layer = Linear(random(3, 4))
    x = random(6, 8)[:, ::2]
    x.flags.writeable = False
    np.testing.assert_allclose(layer(x), naive.linear(x, layer.weight), atol=1e-6)


W = np.ones((3, 2), np.float32)
X = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        (lambda: Linear(W[0]), ShapeError, ("weight of Linear", "(out, in)", "(2,)")),
        (lambda: Linear(None), ArgumentError, ("weight",)),
        (lambda: Linear(W[:0]), ShapeError, ("weight of Linear", "(out, in)", "(0, 2)")),
        (lambda: Linear(W.astype(int)), DTypeError, ("weight of Linear", "int64")),
        (lambda: Linear(W, np.ones(2)), ShapeError, ("bias of Linear", "(3,)", "(2,)")),
        (lambda: Linear(W)(np.ones((4, 3))), ShapeError, ("(..., 2)", "(4, 3)")),
        (lambda: Linear(W)([1, 2]), DTypeError, ("x of Linear", "int64")),
        (lambda: Linear(W)(X, activation="gelo"), ArgumentError, ("gelo", "gelu_tanh")),
        (lambda: Linear(W)(X, add=X), ShapeError, ("add of Linear", "(4, 3)", "(4, 2)")),
        (lambda: Linear(W)(X, n_threads=0), ArgumentError, ("n_threads",)),
        (lambda: LayerNorm(W), ShapeError, ("weight of LayerNorm", "(3, 2)")),
        (lambda: LayerNorm(W[0], W[:, 0]), ShapeError, ("bias of LayerNorm", "(3,)")),
        (lambda: LayerNorm(W[0], epsilon=-1), ArgumentError, ("epsilon", "-1")),
        (lambda: RMSNorm(W[0], epsilon="small"), DTypeError, ("epsilon", "small")),
        (lambda: RMSNorm(W[0])(np.ones((4, 3))), ShapeError, ("x of RMSNorm", "(4, 3)")),
        (lambda: Embedding(W)([0, 3]), ArgumentError, ("0 to 2", "3")),
        (lambda: Embedding(W)([-1]), ArgumentError, ("-1",)),
        (lambda: Embedding(W)([0.5]), DTypeError, ("float64",)),
        (lambda: FeedForward(Linear(W), Linear(W)), ShapeError, ("3", "2")),
        (lambda: FeedForward(Linear(W), Linear(W.T), Linear(W.T)), ShapeError, ("gate", "(2, 3)", "(3, 2)")),
        (lambda: FeedForward(Linear(W), Linear(W.T), activation="x"), ArgumentError, ("'x'",)),
    ],
)  # fmt: skip
def test_errors_say_what_was_given(call, kind, parts):
    with pytest.raises(kind) as found:
        call()
    assert all(part in str(found.value) for part in parts), found.value
