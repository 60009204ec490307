"""The definitions, as loops in float64: slow, and sharing no trick with the code they check.

Transcribed from Vyas, Katharopoulos, Fleuret 2020 (arXiv 2007.04825) and the authors' reference implementation. Arrays
are (B, H, L, D); keys and values may have fewer heads. Nothing here knows tasks, spans, tiles or running sums.
"""

import math

import numpy as np


def scale_of(query, scale):
    """The factor on the logits."""
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)


def softmax(logits):
    """exp(x) / sum(exp(x)) of a list of logits that is not empty."""
    peak = max(logits)
    weights = [math.exp(x - peak) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def weighted_sum(weights, rows):
    """sum_l weights[l] rows[l]."""
    total = np.zeros(rows.shape[1])
    for weight, row in zip(weights, rows):
        total = total + weight * row
    return total


def attention(query, key, value, *, attn_mask=None, key_padding=None, is_causal=False, scale=None):
    """softmax(scale Q K^T + mask) V, a query at a time; a query that may attend to nothing gets zeros."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    n_batch, n_heads, n_queries, _ = query.shape
    n_keys, group = key.shape[2], n_heads // max(1, key.shape[1])
    factor = scale_of(query, scale)
    if attn_mask is not None:
        attn_mask = np.broadcast_to(attn_mask, (n_batch, n_heads, n_queries, n_keys))
    out = np.zeros((n_batch, n_heads, n_queries, value.shape[3]))
    for b in range(n_batch):
        for h in range(n_heads):
            for i in range(n_queries):
                seen, logits = [], []
                scores = factor * (key[b, h // group] @ query[b, h, i])
                for j in range(n_keys):
                    if key_padding is not None and key_padding[b, j]:
                        continue
                    if is_causal and j > i:
                        continue
                    added = 0.0
                    if attn_mask is not None:
                        if attn_mask.dtype == np.bool_:
                            if not attn_mask[b, h, i, j]:
                                continue
                        else:
                            added = float(attn_mask[b, h, i, j])
                            if added == -math.inf:
                                continue
                    seen.append(j)
                    logits.append(scores[j] + added)
                if seen:
                    out[b, h, i] = weighted_sum(softmax(logits), value[b, h // group, seen])
    return out


def sign_code(row, planes):
    """Bit b is 1 iff row . planes[b, :D] > planes[b, D], in exact arithmetic.

    A product of two float32 is exact in float64, and fsum rounds only once, so its sign is that of the exact sum.
    """
    code = 0
    for b, plane in enumerate(planes):
        terms = [float(x) * float(p) for x, p in zip(row, plane[:-1])]
        if math.fsum([*terms, -float(plane[-1])]) > 0:
            code |= 1 << b
    return code


def hamming(a, b):
    """Bits in which two codes differ."""
    return bin(a ^ b).count("1")


def hamming_lloyd(codes, start, n_iterations, refills, n_bits=63):
    """Labels of codes (a list of int): n_iterations assignments with an update between each two.

    Ties go to the lowest cluster; a bit with exactly half of the members becomes 0; an empty cluster takes its code
    from ``refills[update][cluster]``.
    """
    centers = [codes[p] for p in start]
    labels = []
    for iteration in range(n_iterations):
        if iteration:
            for c in range(len(centers)):
                members = [code for code, label in zip(codes, labels) if label == c]
                if not members:
                    centers[c] = int(refills[iteration - 1][c])
                    continue
                centers[c] = 0
                for b in range(n_bits):
                    ones = sum((code >> b) & 1 for code in members)
                    if ones > len(members) - ones:
                        centers[c] |= 1 << b
        labels = []
        for code in codes:
            best = 0
            for c in range(len(centers)):
                if hamming(code, centers[c]) < hamming(code, centers[best]):
                    best = c
            labels.append(best)
    return labels


def kmeans(rows, start, n_iterations):
    """Labels of rows by Lloyd's k-means in Euclidean distance, and the least margin of any assignment.

    Ties go to the lowest cluster; an empty cluster keeps its centroid. The margin is the difference between the
    distances to the nearest and the second nearest centroid, relative to the largest norm: where it is tiny, float32
    may decide otherwise.
    """
    rows = np.asarray(rows, np.float64)
    centers = rows[list(start)].copy()
    labels, margin = np.zeros(len(rows), int), math.inf
    size = max([math.sqrt(float(row @ row)) for row in rows] + [1e-300])
    for iteration in range(n_iterations):
        if iteration:
            for c in range(len(centers)):
                members = rows[labels == c]
                if len(members):
                    centers[c] = weighted_sum([1.0 / len(members)] * len(members), members)
        for i, row in enumerate(rows):
            distances = [math.sqrt(float((row - center) @ (row - center))) for center in centers]
            labels[i] = distances.index(min(distances))
            if len(distances) > 1:
                first, second = sorted(distances)[:2]
                margin = min(margin, (second - first) / size)
    return labels.tolist(), margin


def drawn_planes(seed, n_bits, head_dim):
    """The planes of a seed; written down here so that results do not move between releases."""
    return np.random.default_rng([seed, 0]).standard_normal((n_bits, head_dim + 1), dtype=np.float32)


def drawn_start(seed, n_clusters, length):
    """The starting positions of a seed, for a sequence of this length."""
    return np.random.default_rng([seed, 1, length]).choice(length, min(n_clusters, length), replace=False).tolist()


def drawn_refills(seed, n_clusters, n_iterations, n_bits):
    """The codes that clusters take when they run empty, [update][cluster], drawn cluster by cluster."""
    rng = np.random.default_rng([seed, 2])
    return rng.integers(0, 1 << n_bits, (n_clusters, n_iterations - 1), dtype=np.uint64).T


def cluster(query, *, n_clusters, n_iterations=10, n_bits=63, planes=None, start=None, seed=0, query_padding=None):
    """Sign codes and labels, (B, H, L) each; a padded query has code 0 and label -1.

    ``start`` counts unpadded tokens: with holes in the padding, position p is the p-th token that is there.
    """
    n_batch, n_heads, n_queries, head_dim = query.shape
    if planes is None:
        planes = drawn_planes(seed, n_bits, head_dim)
    n_bits = len(planes)
    refills = drawn_refills(seed, n_clusters, n_iterations, n_bits)
    codes = np.zeros((n_batch, n_heads, n_queries), np.uint64)
    labels = np.full((n_batch, n_heads, n_queries), -1, np.int32)
    for b in range(n_batch):
        there = [i for i in range(n_queries) if query_padding is None or not query_padding[b, i]]
        first = drawn_start(seed, n_clusters, len(there)) if start is None else list(start)
        for h in range(n_heads):
            own = [sign_code(query[b, h, i], planes) for i in there]
            if own:
                codes[b, h, there] = own
                labels[b, h, there] = hamming_lloyd(own, first, n_iterations, refills, n_bits)
    return codes, labels


def members_of(labels):
    """The clusters of one head that have members: [(members, ...)], padding left out."""
    return [np.flatnonzero(labels == c) for c in sorted(set(labels.tolist()) - {-1})]


def clustered(query, key, value, labels, *, key_padding=None, scale=None):
    """Clustered attention for given labels: each query gets the row of its cluster's mean query."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    n_batch, n_heads, n_queries, _ = query.shape
    group, factor = n_heads // max(1, key.shape[1]), scale_of(query, scale)
    out = np.zeros((n_batch, n_heads, n_queries, value.shape[3]))
    for b in range(n_batch):
        valid = [j for j in range(key.shape[2]) if key_padding is None or not key_padding[b, j]]
        for h in range(n_heads):
            for members in members_of(labels[b, h]):
                center = weighted_sum([1.0 / len(members)] * len(members), query[b, h, members])
                if valid:
                    weights = softmax([factor * float(center @ key[b, h // group, j]) for j in valid])
                    out[b, h, members] = weighted_sum(weights, value[b, h // group, valid])
    return out


def improved(query, key, value, labels, topk, *, key_padding=None, is_causal=False, scale=None):
    """Improved clustered attention for given labels, and each row's margin.

    Not causal: ``out_i = m sum_{l in T} softmax_T(scale q_i . k_l) v_l + sum_{l not in T} A[c, l] v_l`` with
    ``m = sum_{l in T} A[c, l]``. Causal: only the softmax over the keys of T that are not after the query, or zeros.

    The margin is the gap between the smallest logit in T and the largest outside, relative to |center| max |k|: where
    it is tiny, float32 may choose another key, and the row may not be compared.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    n_batch, n_heads, n_queries, _ = query.shape
    group, factor = n_heads // max(1, key.shape[1]), scale_of(query, scale)
    out = np.zeros((n_batch, n_heads, n_queries, value.shape[3]))
    margin = np.full((n_batch, n_heads, n_queries), math.inf)
    for b in range(n_batch):
        valid = [j for j in range(key.shape[2]) if key_padding is None or not key_padding[b, j]]
        if not valid:
            continue
        for h in range(n_heads):
            k, v = key[b, h // group], value[b, h // group]
            for members in members_of(labels[b, h]):
                center = weighted_sum([1.0 / len(members)] * len(members), query[b, h, members])
                logits = {j: factor * float(center @ k[j]) for j in valid}
                ranked = sorted(valid, key=lambda j: (-logits[j], j))
                top, rest = sorted(ranked[:topk]), ranked[topk:]
                if rest:
                    size = abs(factor) * math.sqrt(float(center @ center) * max(float(k[j] @ k[j]) for j in valid))
                    gap = logits[ranked[topk - 1]] - logits[rest[0]]
                    margin[b, h, members] = gap / size if size else 0.0
                share = dict(zip(valid, softmax([logits[j] for j in valid])))
                mass = math.fsum(share[j] for j in top)
                for i in members:
                    seen = [j for j in top if not is_causal or j <= i]
                    if not seen:
                        continue
                    weights = softmax([factor * float(query[b, h, i] @ k[j]) for j in seen])
                    row = weighted_sum(weights, v[seen])
                    if not is_causal:
                        row = mass * row + weighted_sum([share[j] for j in rest], v[rest])
                    out[b, h, i] = row
    return out, margin


def activated(x, name):
    """One number through an activation, as textbooks write it."""
    if name == "relu":
        return max(x, 0.0)
    if name == "gelu":
        return x * 0.5 * math.erfc(-x / math.sqrt(2))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    slope = {"quick_gelu": 1.702, "silu": 1.0, "sigmoid": 1.0}.get(name)
    if slope is None:
        return x
    share = 1 / (1 + math.exp(-slope * x)) if x > -300 else 0.0
    return share if name == "sigmoid" else x * share


def dense(rows, weight, bias, name):
    """A dense layer: each number of the output on its own, in float64."""
    out = np.empty((len(rows), weight.shape[1]))
    for i, row in enumerate(rows):
        for j in range(weight.shape[1]):
            total = 0.0 if bias is None else float(bias[j])
            for x, w in zip(row, weight[:, j]):
                total += float(x) * float(w)
            out[i, j] = activated(total, name)
    return out
