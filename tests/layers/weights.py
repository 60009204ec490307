"""Random tensors of layers, by our names."""

import numpy as np


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def linear(name, n_out, n_in, seed=0):
    return {
        f"{name}.weight": random(n_out, n_in, seed=seed, scale=n_in**-0.5),
        f"{name}.bias": random(n_out, seed=seed + 1, scale=0.1),
    }


def norm(name, width, seed=0):
    return {f"{name}.weight": 1 + random(width, seed=seed, scale=0.1), f"{name}.bias": random(width, seed=seed + 1)}


def encoder_layer(width=16, hidden=24, seed=0):
    found = {}
    for i, name in enumerate(("query", "key", "value", "out")):
        found |= linear(f"attention.{name}", width, width, seed + 10 * i)
    found |= linear("feed_forward.up", hidden, width, seed + 41) | linear("feed_forward.down", width, hidden, seed + 42)
    return found | norm("attention_norm", width, seed + 43) | norm("feed_forward_norm", width, seed + 44)


def encoder(n_layers=2, **more):
    return {
        f"layers.{i}.{name}": array
        for i in range(n_layers)
        for name, array in encoder_layer(**more, seed=100 * i).items()
    }
