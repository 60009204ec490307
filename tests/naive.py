"""The definitions, as loops in float64: slow, and sharing no trick with the code they check.

Transcribed from Vyas, Katharopoulos, Fleuret 2020 (arXiv 2007.04825) and the authors' reference implementation. Arrays
are (B, H, L, D); keys and values may have fewer heads. Nothing here knows tasks, spans, tiles or running sums.
"""

import math

import numpy as np

TINY = float(np.finfo(np.float32).tiny)


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


def integer_product(codes, weight):
    """Whole numbers by whole numbers, as Python counts."""
    return [[sum(int(a) * int(b) for a, b in zip(row, column)) for column in weight.T] for row in codes]


def dense_int8(rows, codes, scales, bias, name):
    """A dense layer whose rows are rounded to steps of a 127th of their largest number; weights come rounded."""
    out = np.empty((len(rows), codes.shape[1]))
    for i, row in enumerate(rows):
        step = max(abs(float(x)) for x in row) / 127
        whole = [round(float(x) / step) if step else 0 for x in row]
        for j in range(codes.shape[1]):
            total = sum(a * int(b) for a, b in zip(whole, codes[:, j])) * step * float(scales[j])
            out[i, j] = activated(total + float(bias[j]), name)
    return out


# Co-clustered attention (docs/coclustered.md)

# Members from which a cluster of queries sums up slopes of its own; in small cases it is 10 instead of 256.
MANY = 10


def evenly(n, count):
    """``count`` places among n, evenly spread."""
    return [i * n // count for i in range(count)]


def covariance(rows):
    """Covariance of at most 1,024 of the rows, evenly spread."""
    rows = rows[evenly(len(rows), min(len(rows), 1024))]
    mean = weighted_sum([1.0 / len(rows)] * len(rows), rows)
    return sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)


def principal_axes(matrix, rank):
    """Leading eigenvectors, as columns."""
    return np.linalg.eigh(matrix)[1][:, ::-1][:, :rank]


def seen_by(rows, others, rank):
    """Leading principal coordinates of x C^(1/4), C the covariance of the others: |x|^2 there is x C^(1/2) x."""
    values, vectors = np.linalg.eigh(covariance(others))
    root = sum(max(value, 0.0) ** 0.25 * np.outer(v, v) for value, v in zip(values, vectors.T))
    return rows @ root @ principal_axes(root @ covariance(rows) @ root, rank)


def nearest(points, centers):
    """The label of each point, ties to the lowest, and the least margin as in `kmeans`."""
    labels, margin = [], math.inf
    size = max([float(p @ p) for p in points] + [1e-300])
    for p in points:
        squares = [float((p - c) @ (p - c)) for c in centers]
        labels.append(squares.index(min(squares)))
        if len(squares) > 1:
            first, second = sorted(squares)[:2]
            margin = min(margin, (second - first) / size)
    return labels, margin


def strided_kmeans(points, n_clusters):
    """Members of each cluster by three steps of k-means on 16 points a cluster, and one assignment; and the margin."""
    n_clusters = min(n_clusters, len(points))
    sample = points[evenly(len(points), min(len(points), 16 * n_clusters))]
    centers, margin = sample[evenly(len(sample), n_clusters)].copy(), math.inf
    for _ in range(3):
        labels, gap = nearest(sample, centers)
        margin = min(margin, gap)
        for c in range(n_clusters):
            members = sample[[label == c for label in labels]]
            if len(members):
                centers[c] = weighted_sum([1.0 / len(members)] * len(members), members)
    labels, gap = nearest(points, centers)
    return [[i for i, label in enumerate(labels) if label == c] for c in range(n_clusters)], min(margin, gap)


class CoclusteredHead:
    """One head of one sequence: its clusters, and what each key costs in the tail of each query cluster."""

    def __init__(self, q, k, v, bias, factor, n_query_clusters, n_key_clusters, rank):
        self.q, self.k, self.v, self.bias, self.factor = q, k, v, bias, factor
        groups, gap = strided_kmeans(seen_by(q, k, min(rank, 16)), n_query_clusters)
        self.key_groups, key_gap = strided_kmeans(seen_by(k, q, min(rank, 16)), n_key_clusters)
        self.groups, self.gap = [group for group in groups if group], min(gap, key_gap)
        self.centers = [weighted_sum([1.0 / len(g)] * len(g), q[g]) for g in self.groups]
        self.axes = principal_axes(covariance(k), rank)
        self._slopes_and_scores()
        self.logits = [[factor * float(center @ row) + b for row, b in zip(k, bias)] for center in self.centers]
        self.errors = [self._errors(c) for c in range(len(self.groups))]

    def _slopes_and_scores(self):
        on_axes, off = np.zeros((len(self.k), self.axes.shape[1])), np.zeros_like(self.v)
        self.slopes = []
        for group in self.key_groups:
            for i in group:
                on_axes[i] = (self.k[i] - self.k[group].mean(axis=0)) @ self.axes
                off[i] = self.v[i] - self.v[group].mean(axis=0)
            total = sum((np.outer(on_axes[i], off[i]) for i in group), np.zeros((self.axes.shape[1], off.shape[1])))
            self.slopes.append(total / max(len(group), 1))
        self.spread = (on_axes**2).mean(axis=0)
        radii = [float(x @ x) for x in on_axes], [float(x @ x) for x in off]
        floors = [1e-3 * max(sum(r) / len(r), TINY**2) for r in radii]
        self.scores = [sum(0.5 * math.log(r[i] + f) for r, f in zip(radii, floors)) for i in range(len(self.k))]

    def _errors(self, c):
        """Log of the error each key makes in the tail; its sampled keys' come with `sampled`."""
        group, center, logits = self.groups[c], self.centers[c], self.logits[c]
        radius = sum(float((self.q[i] - center) @ (self.q[i] - center)) for i in group) / len(group)
        sample = [logits[i] for i in self.sampled()]
        peak = max(sample)
        mass = peak + math.log(sum(math.exp(x - peak) for x in sample) / len(sample) * len(logits))
        return [x + score - mass + 0.5 * math.log(max(radius, TINY)) for x, score in zip(logits, self.scores)]

    def sampled(self):
        """512 keys, evenly spread over the sorted ones; fewer keys come several times."""
        ordered = [i for group in self.key_groups for i in group]
        return [ordered[place] for place in evenly(len(ordered), 512)]

    def listed(self, c, threshold, taken):
        """The keys of the tail with slopes of their own: in large clusters, those not far below the threshold."""
        limit = threshold - (4 * math.log(2) if len(self.groups[c]) >= MANY else 0)
        return {i for i, error in enumerate(self.errors[c]) if error > limit} - taken, limit

    def attend(self, c, taken, listed):
        """Outputs of the members of cluster c, with these keys exact, and of those the own slope."""
        center, logits, factor = self.centers[c], self.logits[c], self.factor
        peak, width = max(logits), self.v.shape[1]
        masses, keys, values, slope = [], [], [], np.zeros((self.axes.shape[1], width))
        own_slope, own_spread = np.zeros((self.k.shape[1], width)), np.zeros(self.k.shape[1])
        for group, own in zip(self.key_groups, self.slopes):
            left = [i for i in group if i not in taken]
            weights = [math.exp(logits[i] - peak) for i in left]
            if sum(weights) > 0:
                masses.append(sum(weights))
                keys.append(weighted_sum(weights, self.k[left]) / masses[-1])
                values.append(weighted_sum(weights, self.v[left]) / masses[-1])
                for i, w in zip(left, weights):
                    if i in listed:
                        off = self.k[i] - keys[-1]
                        own_slope = own_slope + w * np.outer(off, self.v[i] - values[-1])
                        own_spread = own_spread + w * off**2
                    else:
                        slope = slope + w * own
        order, rows = sorted(taken), []
        for i in self.groups[c]:
            step = factor * (self.q[i] - center)
            tail = [float(step @ k) + math.log(m) + peak for k, m in zip(keys, masses)]
            p = softmax([*tail, *(factor * float(self.q[i] @ self.k[j]) + self.bias[j] for j in order)])
            row = weighted_sum(p, np.array([*values, *self.v[order]]))
            if tail:
                u = step @ self.axes
                share = sum(p[: len(tail)])
                for x, own, spread, power in (
                    (u, slope, self.spread, 1),
                    (step, own_slope, own_spread / sum(masses), 2),
                ):
                    row = row + share / (1 + float(x**2 @ spread) ** power) * (x @ own) / sum(masses)
            rows.append(row)
        return rows


def coclustered(
    query, key, value, *, n_query_clusters=None, n_key_clusters=None, n_exact=128, rank=32, key_bias=None,
    key_padding=None, query_padding=None, scale=None,
):  # fmt: skip
    """Co-clustered attention and each row's margin: how far any key is from the threshold, 0 where k-means ties.

    One threshold is taken for the heads that have no key head in common: of H heads on H' key heads, every (H / H')th.
    """
    n_batch, n_heads, n_queries, _ = query.shape
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group, factor = n_heads // key.shape[1], scale_of(query, scale)
    out = np.zeros((n_batch, n_heads, n_queries, value.shape[3]))
    margin = np.full((n_batch, n_heads, n_queries), math.inf)
    for b in range(n_batch):
        bias = np.zeros(key.shape[2]) if key_bias is None else np.asarray(key_bias[b], np.float64)
        valid = [j for j in range(len(bias)) if bias[j] > -math.inf and (key_padding is None or not key_padding[b, j])]
        there = np.array([i for i in range(n_queries) if query_padding is None or not query_padding[b, i]])
        n_own = 48 * math.ceil(math.sqrt(len(there)) / 32) if n_query_clusters is None else n_query_clusters
        n_others = max(16, round(0.75 * math.sqrt(len(valid)))) if n_key_clusters is None else n_key_clusters
        for member in range(group):
            numbers = range(member, n_heads, group)
            heads = [
                CoclusteredHead(
                    query[b, h, there], key[b, h // group, valid], value[b, h // group, valid], bias[valid], factor,
                    n_own, n_others, rank,
                )
                for h in numbers
            ]  # fmt: skip
            threshold = common_threshold(heads, np.float32(n_exact / len(valid)))
            for h, head in zip(numbers, heads):
                for c, members in enumerate(head.groups):
                    taken = {i for i, error in enumerate(head.errors[c]) if error > threshold}
                    listed, limit = head.listed(c, threshold, taken)
                    out[b, h, there[members]] = head.attend(c, taken, listed)
                    gap = min(min(abs(error - threshold), abs(error - limit)) for error in head.errors[c])
                    margin[b, h, there[members]] = gap if head.gap > 2e-7 else 0.0
    return out, margin


def common_threshold(heads, share):
    """A hair above the least error that at most this share of the pairs of a query and a sampled key are above."""
    pairs = [
        (head.errors[c][i], len(members))
        for head in heads
        for c, members in enumerate(head.groups)
        for i in head.sampled()
    ]
    most, above = int(float(share) * sum(size for _, size in pairs)), 0
    for error, size in sorted(pairs, reverse=True):
        above += size
        if above > most:
            return error + 1e-4 * math.log(2)  # a hair above: rounding is not to decide about this very key
    return -math.inf
