"""The definitions with what is multiplied rounded to bfloat16, as loops; the sums are exact."""

import math

import naive
import numpy as np

LOG2E = 1.4426950408889634


def rounded(x):
    """The bfloat16 nearest to a float32, of two equally near the one with an even last digit."""
    x = float(np.float32(x))
    if math.isnan(x) or math.isinf(x) or abs(x) < naive.TINY:
        return x if abs(x) >= naive.TINY or math.isnan(x) else 0.0
    _, exponent = math.frexp(x)
    unit = math.ldexp(1.0, exponent - 8)  # of 8 digits
    near = unit * round(x / unit)  # Python rounds halves to even
    return near if abs(near) < 2.0**128 else math.copysign(math.inf, x)


def all_rounded(x):
    return np.array([rounded(v) for v in np.ravel(x)]).reshape(np.shape(x))


def attention(query, key, value, *, scale=None):
    """softmax(scale Q K^T) V in base 2: rounded are Q scale log2(e), K, V and 2^(logit - largest)."""
    factor = np.float32(naive.scale_of(query, scale) * LOG2E)
    query, key, value = all_rounded(np.float32(query) * factor), all_rounded(key), all_rounded(value)
    n_batch, n_heads, n_queries, _ = query.shape
    out = np.zeros((n_batch, n_heads, n_queries, value.shape[3]))
    for b in range(n_batch):
        for h in range(n_heads):
            for i in range(n_queries):
                logits = [math.fsum(query[b, h, i] * k) for k in key[b, h]]
                weights = [rounded(2.0 ** (x - max(logits))) for x in logits]
                out[b, h, i] = naive.weighted_sum([w / math.fsum(weights) for w in weights], value[b, h])
    return out


def dense(x, weight, bias, activation):
    """activation(x @ weight + bias)."""
    return naive.dense(all_rounded(x), all_rounded(weight), bias, activation)
