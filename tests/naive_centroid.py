"""Centroid attention and its starts as loops in float64, from their definition (Wu, Liu, Liu 2021, arXiv 2102.08606).

Distances alone are float32, step by step, as they are defined.
"""

import math

import numpy as np


def centroid_attention(
    query, key, value, *, normalize="centroids", neighbors=None, key_padding=None, centroid_padding=None, scale=None
):
    """Each pair of a centroid and an input it may hold gets a weight; each centroid the sum of what it weighs."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    n_batch, n_heads, n_centroids, _ = query.shape
    group, factor = n_heads // key.shape[1], 1 / math.sqrt(query.shape[3]) if scale is None else scale
    out = np.zeros((n_batch, n_heads, n_centroids, value.shape[3]))
    for b in range(n_batch):
        pairs = held(n_centroids, key.shape[2], None if neighbors is None else neighbors[b])
        if key_padding is not None:
            pairs = [(j, i) for j, i in pairs if not key_padding[b, i]]
        if centroid_padding is not None:
            pairs = [(j, i) for j, i in pairs if not centroid_padding[b, j]]
        for h in range(n_heads):
            logits = {(j, i): factor * float(query[b, h, j] @ key[b, h // group, i]) for j, i in pairs}
            weights = shares(logits, by=0 if normalize == "inputs" else 1)
            for j in range(n_centroids):
                mass = math.fsum(w for (own, _), w in weights.items() if own == j)
                for (own, i), weight in weights.items():
                    if own == j:
                        weight = weight / mass if normalize == "both" else weight
                        out[b, h, j] += weight * value[b, h // group, i]
    return out


def held(n_centroids, n_inputs, neighbors):
    """Pairs (centroid, input): all, or those of the neighbours."""
    if neighbors is None:
        return [(j, i) for j in range(n_centroids) for i in range(n_inputs)]
    return [(j, int(i)) for j in range(n_centroids) for i in neighbors[j] if i >= 0]


def shares(logits, by):
    """Softmax among the pairs that agree in their place ``by``."""
    found = {}
    for which in sorted({pair[by] for pair in logits}):
        own = [pair for pair in logits if pair[by] == which]
        peak = max(logits[pair] for pair in own)
        total = math.fsum(math.exp(logits[pair] - peak) for pair in own)
        found.update({pair: math.exp(logits[pair] - peak) / total for pair in own})
    return found


def distance(a, b):
    """Squared differences in the order of the coordinates, every step rounded to float32."""
    total = np.float32(0)
    for x, y in zip(a, b):
        difference = np.float32(x) - np.float32(y)
        total = total + difference * difference
    return total


def farthest_points(points, n_centroids, padding):
    """Of one sequence (N, P): each next one as far as can be from its nearest chosen one, the lowest of equals."""
    valid = [i for i in range(len(points)) if not padding[i]]
    chosen = valid[:1]
    while len(chosen) < min(n_centroids, len(valid)):
        best, place = None, None
        for i in valid:
            if i not in chosen:
                nearest = min(distance(points[i], points[c]) for c in chosen)
                if best is None or nearest > best:
                    best, place = nearest, i
        chosen.append(place)
    return chosen + [-1] * (n_centroids - len(chosen))


def nearest_points(query, points, n_neighbors, padding):
    """Of one query: the positions with the least distance, the lowest of equals."""
    found = sorted((distance(query, points[i]), i) for i in range(len(points)) if not padding[i])
    return [i for _, i in found[:n_neighbors]] + [-1] * max(0, n_neighbors - len(found))


def mean_pool(tokens, n_centroids, grid, padding):
    """Of one sequence (N, width): means of groups of neighbours."""
    n_tokens = len(tokens)
    side = 0 if grid is None else math.isqrt(n_tokens // n_centroids)
    groups = [[] for _ in range(n_centroids)]
    for i in range(n_tokens):
        if grid is None:
            number = next(
                j for j in range(n_centroids) if j * n_tokens // n_centroids <= i < (j + 1) * n_tokens // n_centroids
            )
        else:
            row, column = divmod(i, grid[1])
            number = row // side * (grid[1] // side) + column // side
        if not padding[i]:
            groups[number].append(i)
    zero = np.zeros(tokens.shape[1])
    return np.array([sum((tokens[i].astype(np.float64) for i in own), zero) / max(1, len(own)) for own in groups])
