"""CAST as loops in float64, from its definition (van Engelenhoven et al. 2024, arXiv 2402.04239; see docs/cast.md)."""

import math

import numpy as np

from tests.naive import scale_of, softmax, weighted_sum


def laplace(logits):
    """0.5 (1 + erf((x - mu) / (s sqrt 2))) of each logit."""
    mean, deviation = math.sqrt(0.5), math.sqrt(1 / (4 * math.pi))
    return [0.5 * (1 + math.erf((x - mean) / (deviation * math.sqrt(2)))) for x in logits]


FUNCTIONS = {"softmax": softmax, "laplace": laplace}


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus1(x):
    """1 + log(1 + exp x)."""
    return 1 + max(x, 0) + math.log1p(math.exp(-abs(x)))


def affinities(query, key, surrogates, gate, function, scale):
    """Of one sequence, query and key (H, N, D): each token's nearness to each cluster, over all heads (N, C)."""
    found = np.zeros((query.shape[1], len(surrogates)))
    for n in range(query.shape[1]):
        own = sigmoid(gate[n])
        for h in range(query.shape[0]):
            of_query = function([scale * (s[h] @ query[h, n]) for s in surrogates])
            of_key = function([scale * (s[h] @ key[h, n]) for s in surrogates])
            for c in range(len(surrogates)):
                found[n, c] += own * of_query[c] + (1 - own) * of_key[c]
    return found


def topk_members(affinity, valid, size):
    """For each cluster its tokens nearest to it, ties to the first; and the least margin of a choice."""
    members, margin = [], math.inf
    for c in range(affinity.shape[1]):
        ranked = sorted(valid, key=lambda n: (-affinity[n, c], n))
        members.append(sorted(ranked[:size]))
        if len(ranked) > size:
            margin = min(margin, affinity[ranked[size - 1], c] - affinity[ranked[size], c])
    return members, margin


def sa_topk_members(affinity, valid, size):
    """Tokens choose one after the other, the surest first; and the least margin of any decision."""
    n_clusters, margin = affinity.shape[1], math.inf
    ranked = sorted(valid, key=lambda n: (-affinity[n].max(), n))
    for before, after in zip(ranked, ranked[1:] if n_clusters > 1 else []):  # one cluster takes all in any order
        margin = min(margin, affinity[before].max() - affinity[after].max())
    members = [[] for _ in range(n_clusters)]
    for n in ranked:
        open_ones = [c for c in range(n_clusters) if len(members[c]) < size]
        wishes = sorted(open_ones, key=lambda c: (-affinity[n, c], c))
        members[wishes[0]].append(n)
        if len(wishes) > 1:
            margin = min(margin, affinity[n, wishes[0]] - affinity[n, wishes[1]])
    return [sorted(own) for own in members], margin


CLUSTERINGS = {"topk": topk_members, "sa_topk": sa_topk_members}


def cast_attention(
    query, key, value, surrogate_tokens, gate, *, cluster_size, clustering="topk", attention="softmax",
    gate_temperature=True, key_padding=None, scale=None, members=None,
):  # fmt: skip
    """Output (B, H, N, E), the members of each cluster of each sequence, and the least margin a choice hung on.

    ``members``, if given, are taken instead of chosen.
    """
    query, key, value, surrogates, gate = (
        np.asarray(x, np.float64) for x in (query, key, value, surrogate_tokens, gate)
    )
    n_batch, n_heads, length, _ = query.shape
    factor, function = scale_of(query, scale), FUNCTIONS[attention]
    out, found, margin = np.zeros((n_batch, n_heads, length, value.shape[3])), [], math.inf
    for b in range(n_batch):
        valid = [n for n in range(length) if key_padding is None or not key_padding[b, n]]
        if members is None:
            affinity = affinities(query[b], key[b], surrogates, gate[b], function, factor)
            own, least = CLUSTERINGS[clustering](affinity, valid, cluster_size)
            margin = min(margin, least)
        else:
            own = members[b]
        found.append(own)
        filled = [c for c in range(len(surrogates)) if own[c]]
        for h in range(n_heads):
            within, summaries = {}, {}
            for c in filled:
                rows, logits = value[b, h, own[c]], []
                for n in own[c]:
                    weights = function([factor * (key[b, h, m] @ query[b, h, n]) for m in own[c]])
                    within[c, n] = weighted_sum(weights, rows)
                    heat = softplus1(-gate[b, n]) if gate_temperature else 1
                    logits.append(factor * (surrogates[c, h] @ key[b, h, n]) * heat)
                summaries[c] = weighted_sum(function(logits), rows)
            for n in valid:
                heat = softplus1(gate[b, n]) if gate_temperature else 1
                shares = function([factor * (surrogates[c, h] @ query[b, h, n]) * heat for c in filled])
                out[b, h, n] = weighted_sum(shares, np.array([within.get((c, n), summaries[c]) for c in filled]))
    return out, found, margin
