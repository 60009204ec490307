"""The definitions in float64, evaluated in chunks of rows: what agreement is measured against.

Written from the papers, sharing no code with the library but the draw of what opens the clusters.
"""

from __future__ import annotations

import numpy as np

from bench.cases import Case, Inputs
from pyclattn.arrays import Float64, Int64

ROWS = 512  # queries at once: 512 x 4096 logits in float64 are 16 MB


def _keys(case: Case, x: Inputs, batch: int, head: int) -> tuple[Int64, Float64, Float64]:
    """Positions of the keys to attend to, and their rows in float64."""
    group = x.query.shape[1] // x.key.shape[1]
    keep = np.arange(case.n_keys) if x.key_padding_mask is None else np.flatnonzero(~x.key_padding_mask[batch])
    rows = (a[batch, head // group, keep].astype(np.float64) for a in (x.key, x.value))
    return keep, *rows


def _softmax(logits: Float64) -> Float64:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def exact(case: Case, x: Inputs) -> Float64:
    """softmax(q k^T / sqrt(D)) v over the keys each query may see."""
    out = np.empty((*x.query.shape[:3], case.width))
    scale = 1 / np.sqrt(case.head_dim)
    for batch, head in np.ndindex(x.query.shape[:2]):
        positions, key, value = _keys(case, x, batch, head)
        for first in range(0, case.length, ROWS):
            rows = slice(first, min(first + ROWS, case.length))
            logits = x.query[batch, head, rows].astype(np.float64) @ key.T * scale
            if case.is_causal:
                logits[positions > np.arange(rows.start, rows.stop)[:, None]] = -np.inf
            out[batch, head, rows] = _softmax(logits) @ value
    return out


def labels(query: Float64, planes: Float64, start: Int64, refills: np.ndarray) -> Int64:
    """Lloyd's k-means of sign codes in Hamming distance; ``refills[update, c]`` is the code of an empty cluster."""
    bits = query @ planes[:, :-1].T > planes[:, -1]
    n_bits = bits.shape[1]
    centers = bits[start]
    for update in range(len(refills) + 1):
        # distance = bits that differ; in float64 a sum of at most 63 ones is exact
        signs, own = 1.0 - 2.0 * bits, 1.0 - 2.0 * centers
        label = np.argmin((n_bits - signs @ own.T) / 2, axis=-1)
        if update == len(refills):
            break
        for c in range(len(centers)):
            members = bits[label == c]
            if len(members):
                centers[c] = 2 * members.sum(axis=0) > len(members)
            else:
                centers[c] = refills[update, c] >> np.arange(n_bits, dtype=np.uint64) & np.uint64(1)
    return label


def clustered(case: Case, x: Inputs, start: Int64, refills: np.ndarray, topk: int) -> Float64:
    """Clustered attention, improved with the ``topk`` strongest keys of each cluster unless that is 0."""
    out = np.zeros((*x.query.shape[:3], case.width))
    scale = 1 / np.sqrt(case.head_dim)
    for batch, head in np.ndindex(x.query.shape[:2]):
        _, key, value = _keys(case, x, batch, head)
        query = x.query[batch, head].astype(np.float64)
        label = labels(query, case.planes.astype(np.float64), start, refills)
        for c in np.unique(label):
            members = np.flatnonzero(label == c)
            weights = _softmax(query[members].mean(axis=0) @ key.T * scale)
            top = np.argsort(-weights, kind="stable")[:topk]
            rest = weights.copy()
            rest[top] = 0
            result = np.broadcast_to(rest @ value, (len(members), case.width)).copy()
            if topk:
                result += weights[top].sum() * (_softmax(query[members] @ key[top].T * scale) @ value[top])
            out[batch, head, members] = result
    return out


def relative_error(found: np.ndarray, expected: Float64) -> float:
    """|found - expected| / |expected|, both as one long vector."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
