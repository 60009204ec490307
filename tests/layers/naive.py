"""Layers as their papers write them: float64, loops over tokens and heads, no trick shared with the library."""

import math

import numpy as np


def linear(x, weight, bias=None):
    """Every output of every token as a sum of its own."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    rows = x.reshape(-1, x.shape[-1])
    out = np.array([[sum(a * b for a, b in zip(row, w)) for w in weight] for row in rows])
    return (out + (0 if bias is None else np.asarray(bias, np.float64))).reshape(*x.shape[:-1], len(weight))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
    "sigmoid": sigmoid,
}


def activate(name, x):
    return np.vectorize(ACTIVATIONS[name], otypes=[np.float64])(x)


def layer_norm(x, weight, bias, epsilon):
    x = np.asarray(x, np.float64)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weight + (0 if bias is None else bias)


def rms_norm(x, weight, epsilon):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotated(vector, turns, layout):
    """One head of one token, turned pair by pair."""
    out, half = np.array(vector, np.float64), len(turns)
    for i, turn in enumerate(turns):
        a, b = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
        out[a] = vector[a] * math.cos(turn) - vector[b] * math.sin(turn)
        out[b] = vector[b] * math.cos(turn) + vector[a] * math.sin(turn)
    return out


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attention(query, key, value, allowed=None, scale=None):
    """query (L, H, D), key (S, H', D), value (S, H', E) -> (L, H, E); ``allowed`` (L, S)."""
    (n_queries, n_heads, head_dim), n_kv = query.shape, key.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    out = np.zeros((n_queries, n_heads, value.shape[2]))
    for head in range(n_heads):
        of = head * n_kv // n_heads
        for i in range(n_queries):
            seen = [j for j in range(len(key)) if allowed is None or allowed[i, j]]
            if seen:
                weights = softmax(np.array([scale * float(query[i, head] @ key[j, of]) for j in seen]))
                out[i, head] = sum(w * value[j, of] for w, j in zip(weights, seen))
    return out


def multi_head(x, context, weights, n_heads, n_kv=None, turns=None, layout="half", allowed=None, scale=None):
    """One sequence x (L, width); ``weights``: (weight, bias) of query, key, value, out; ``turns`` (L, R / 2)."""
    n_kv = n_kv or n_heads
    query = linear(x, *weights["query"]).reshape(len(x), n_heads, -1)
    key = linear(context, *weights["key"]).reshape(len(context), n_kv, -1)
    value = linear(context, *weights["value"]).reshape(len(context), n_kv, -1)
    if turns is not None:
        for array in (query, key):
            for t in range(len(array)):
                for head in range(array.shape[1]):
                    array[t, head] = rotated(array[t, head], turns[t], layout)
    joined = attention(query, key, value, allowed, scale).reshape(len(x), -1)
    return joined if "out" not in weights else linear(joined, *weights["out"])


def encoder_layer(x, w, n_heads, activation, epsilon, is_pre_norm, allowed=None):
    """One sequence; ``w``: our names of tensors."""

    def pair(name):
        return w[f"{name}.weight"], w[f"{name}.bias"]

    def attend(y):
        return multi_head(y, y, {n: pair(f"attention.{n}") for n in ("query", "key", "value", "out")}, n_heads,
                          allowed=allowed)  # fmt: skip

    def feed(y):
        return linear(activate(activation, linear(y, *pair("feed_forward.up"))), *pair("feed_forward.down"))

    for part, inner in (("attention", attend), ("feed_forward", feed)):
        norm = (*pair(f"{part}_norm"), epsilon)
        x = x + inner(layer_norm(x, *norm)) if is_pre_norm else layer_norm(x + inner(x), *norm)
    return x
