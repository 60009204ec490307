"""Made-up queries, keys and values: random, in clusters, and smooth along the sequence."""

import numpy as np

KINDS = ("random", "blobs", "smooth")


def _rows(kind, rng, shape, centers):
    noise = rng.standard_normal(shape)
    if kind == "blobs":  # rows scattered about a few centers
        return centers[rng.integers(0, len(centers), shape[:-1])] + 0.6 * shape[-1] ** -0.25 * noise
    if kind == "smooth":  # rows that drift: neighbours resemble each other
        time, pace = np.arange(shape[-2])[:, None] / 40.0, rng.uniform(0.2, 2.0, shape[-1])
        return np.sin(time * pace + rng.uniform(0, 6, (*shape[:-2], 1, shape[-1]))) + 0.2 * noise
    return noise


def tensors(kind="random", *, batch=1, heads=1, kv_heads=None, n=16, n_keys=None, dim=8, width=None, seed=0):
    """Query (batch, heads, n, dim), key and value (batch, kv_heads, n_keys, dim or width) in float32."""
    rng = np.random.default_rng(seed)
    kv_heads, n_keys, width = kv_heads or heads, n if n_keys is None else n_keys, dim if width is None else width
    # logits q . k / sqrt(dim) near 9 within a cluster, whatever the dim: larger ones cost float32 its digits
    centers = 3.0 * dim**-0.25 * rng.standard_normal((7, dim))
    query = _rows(kind, rng, (batch, heads, n, dim), centers)
    key = _rows(kind, rng, (batch, kv_heads, n_keys, dim), centers)
    value = _rows("smooth" if kind == "smooth" else "random", rng, (batch, kv_heads, n_keys, width), centers)
    return query.astype(np.float32), key.astype(np.float32), value.astype(np.float32)


def padding(batch, n, lengths=None, holes=0.0, seed=0):
    """A padding mask (batch, n), True = padding: behind ``lengths``, or with holes of this share."""
    if lengths is not None:
        return np.arange(n) >= np.asarray(lengths)[:, None]
    return np.random.default_rng(seed).random((batch, n)) < holes
