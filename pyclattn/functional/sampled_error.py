"""How far a clustered attention is from the exact one: estimated from exact outputs of a few queries of each head.

Few queries may carry most of an error, those far from their cluster's mean: 64 drawn evenly miss them. So a query's
chance grows with the spread dq gives its logits and, where that is known, with what the tail may come to at that
distance; its error counts by one over that chance (Horvitz and Thompson 1952). The farthest are always taken; the
others are drawn systematically, cluster by cluster. Nothing is random.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pyclattn.arrays import Float32, Float64, Given, Int64
from pyclattn.errors import AccuracyError, AccuracyWarning, ArgumentError
from pyclattn.functional import _check, exact
from pyclattn.functional._grouping import Grouping
from pyclattn.functional._metric import each
from pyclattn.functional._ragged import Spans, Tokens

# Queries of each sequence and head whose output is computed exactly.
N_SAMPLES = 64
# Keys, evenly spread, that the spread of a query's logits is taken over.
N_KEYS = 32
# Chances are a tenth even and else by the sixth power of the spread. On keypoint matching, where ten queries may carry
# all of the error, the fourth power misses it half as often again; on images and genes powers from 2 to 6 are alike.
EVEN = 0.1
# Where the tail's share is known, two thirds of what is not even go by what it may come to: at REACH standard
# deviations: of 1 to 3 those after which estimates are least often far too low.
BY_TAIL, REACH = 2 / 3, 2.0
# An exponent that is large enough to be anything's end.
MOST = 300.0
# Queries that are worked on at a time, to the end of a cluster: 2048 x 32 float32 are 256 kB.
CHUNK = 2048
# Estimates that a message names.
LISTED = 20
WHAT_TO_DO = ("exact", "warn", "raise")


class ErrorCheck:
    """The estimates of one call, and what is done about those above a limit.

    Attributes
    ----------
    errors : float64 array (n_sequences, H)
        Estimated relative Frobenius errors, 0 where attention ran exactly.
    """

    def __init__(self, n_sequences: int, n_heads: int, max_error: float | None, on_error: str):
        self.errors = np.zeros((n_sequences, n_heads))
        self.max_error, self.on_error = max_error, on_error

    @classmethod
    def of(
        cls, return_error: Given, max_error: Given, on_error: Given, n_sequences: int, n_heads: int
    ) -> ErrorCheck | None:
        """The check these arguments ask for, if they do."""
        wanted = _check.flag("return_error", return_error)
        on_error = _check.one_of("on_error", on_error, WHAT_TO_DO)
        if max_error is None:
            return cls(n_sequences, n_heads, None, on_error) if wanted else None
        return cls(n_sequences, n_heads, _limit(max_error), on_error)

    def add(
        self, sequences: Int64, heads: slice, q: Float32, tokens: Tokens, k: Float32, v: Float32, keys: Spans,
        bias: Float32 | None, grouping: Grouping, factor: float, out: Float32, n_threads: int,
        risks: Float32 | None = None,
    ) -> None:  # fmt: skip
        """Estimate the errors of ``out``, of these sequences and heads; make exact what is to be."""
        found = estimate(q, tokens, k, v, keys, bias, grouping, factor, out, n_threads, risks)
        self.errors[sequences[:, None], np.arange(self.errors.shape[1])[heads]] = found
        if self.max_error is None or self.on_error != "exact":
            return
        group = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            above = np.flatnonzero(~(found[:, head] <= self.max_error))
            if len(above):
                own, other = slice(head, head + 1), slice(head // group, head // group + 1)
                exact.attend_some(
                    above, q[:, own], tokens, k[:, other], v[:, other], keys, bias, factor, out[:, own], n_threads
                )

    def answer(self, out: Float32, return_error: bool) -> Float32 | tuple[Float32, Float64]:
        """What the call returns, after a warning or an error where those were asked for."""
        judge(self.errors, self.max_error, self.on_error)
        return (out, self.errors) if return_error else out


def judge(
    errors: Float64, max_error: float | None, on_error: str, heads: Sequence[int] | None = None, where: str = ""
) -> None:
    """Warn or raise, where that was asked for, if estimates (n_sequences, n_heads) are above the limit.

    ``heads`` are their numbers, if not 0, 1, ...; ``where`` opens the message.
    """
    if max_error is None or on_error == "exact":
        return
    above = np.argwhere(~(errors <= max_error)).tolist()
    if not above:
        return
    listed = ", ".join(
        f"sequence {s} head {h if heads is None else heads[h]}: {errors[s, h]:.2g}" for s, h in above[:LISTED]
    )
    more = f" and {len(above) - LISTED} more" if len(above) > LISTED else ""
    message = f"{where}estimated errors are above max_error = {max_error:g}: {listed}{more}"
    if on_error == "raise":
        raise AccuracyError(message)
    warnings.warn(message, AccuracyWarning, stacklevel=5)


def _limit(given: Given) -> float:
    number = _check.real("max_error", given)
    if not number >= 0:
        raise ArgumentError(f"max_error must be at least 0, got {number}")
    return number


def estimate(
    q: Float32, tokens: Tokens, k: Float32, v: Float32, keys: Spans, bias: Float32 | None, grouping: Grouping,
    factor: float, out: Float32, n_threads: int, risks: Float32 | None = None,
) -> Float64:  # fmt: skip
    """The relative Frobenius error (n_sequences, H) of ``out``, all queries of a sequence and head together.

    ``risks`` (B, H, L, 2), as of `tails.attend`: each query's share of the tail, and its logits' variance there.
    """
    errors = np.empty((len(tokens.spans), q.shape[1]))
    for s, (batch, start, stop) in enumerate(tokens.spans.tolist()):
        own_risks = None if risks is None else risks[batch]
        rows, chances = _drawn(q[batch], tokens, k, keys, grouping, s, factor, own_risks, n_threads)
        own = np.take_along_axis(q[batch], rows[..., None], axis=1)[None]
        truth = np.empty((*own.shape[:3], v.shape[3]), np.float32)
        side_by_side = Spans(np.array([[0, 0, rows.shape[1]]], np.int64))
        spread_bias = None if bias is None else np.broadcast_to(bias[batch], (*own.shape[:3], k.shape[2]))
        key_span = Spans(keys.spans[s : s + 1], keys.index)
        exact.attend(own, side_by_side, k, v, key_span, None, spread_bias, False, factor, truth, n_threads)
        given = np.take_along_axis(out[batch], rows[..., None], axis=1).astype(np.float64)
        squares = _squares(out[batch], tokens.index[start:stop], n_threads)
        off = np.square(given - truth[0]).sum(axis=-1) / chances
        longer = (np.square(truth[0], dtype=np.float64).sum(axis=-1) - np.square(given).sum(axis=-1)) / chances
        # the norm of the exact output: of the output, which is known, and of the sampled difference
        norms = np.maximum(squares + longer.sum(axis=-1), 0.25 * squares)
        errors[s] = np.sqrt(off.sum(axis=-1) / np.where(norms == 0, 1, norms))
    return errors


def working_bytes(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, n_threads: int) -> int:
    """What an estimate holds beside inputs and output: of one head a thread, and the sampled rows."""
    (batch, n_heads, length, depth), width = query, value[3]
    sampled = n_heads * (8 * batch * length + N_SAMPLES * (4 * depth + 40 * width + 32))
    head = length * (2 * 4 * N_KEYS + 8 * 8) + 4 * (CHUNK + N_KEYS) * (depth + width)
    return sampled + min(n_threads, n_heads) * head


def _squares(out: Float32, rows: Int64, n_threads: int) -> Float64:
    """Sum of squares of each head's outputs (H, L, E)."""
    sums = np.zeros(len(out))

    def add(head: int) -> None:
        for first in range(0, len(rows), CHUNK):
            own = rows[first : first + CHUNK]
            is_run = own[-1] - own[0] == len(own) - 1  # rows ascend
            part = out[head, own[0] : own[-1] + 1] if is_run else out[head, own]
            sums[head] += np.einsum("ne,ne->n", part, part).sum(dtype=np.float64)

    each(len(out), add, n_threads)
    return sums


def _drawn(
    q: Float32, tokens: Tokens, k: Float32, keys: Spans, grouping: Grouping, sequence: int, factor: float,
    risks: Float32 | None, n_threads: int,
) -> tuple[Int64, Float64]:  # fmt: skip
    """Rows drawn from each head of one sequence (H, n), and what their chances were."""
    _, start, stop = tokens.spans[sequence].tolist()
    first, last = grouping.cluster_offsets[sequence : sequence + 2].tolist()
    n, group = min(N_SAMPLES, stop - start), len(q) // k.shape[1]
    rows, chances = np.empty((len(q), n), np.int64), np.empty((len(q), n))

    def draw(head: int) -> None:
        order = grouping.order[head, start:stop]
        if risks is None:
            sizes = np.diff(grouping.member_offsets[head, first : last + 1])
            axes = _axes(k[:, head // group], keys, sequence) * np.float32(factor)
            weights = weigh(_spreads(q[head], order, sizes, axes))
        else:
            weights = weigh(*risks[head, order].T[::-1].astype(np.float64))
        all_chances = inclusion(weights, n)
        places = systematic(all_chances, n)
        rows[head], chances[head] = order[places], all_chances[places]

    each(len(q), draw, n_threads)
    return rows, chances


def _axes(k: Float32, keys: Spans, sequence: int) -> Float32:
    """Some keys less their mean, as columns: products with them vary as logits do."""
    batch, start, stop = keys.spans[sequence].tolist()
    n = min(N_KEYS, stop - start)
    at = start + np.arange(n) * (stop - start) // n
    sample = k[batch, at if keys.index is None else keys.index[at]]
    return np.ascontiguousarray((sample - sample.mean(axis=0)).T)


def _spreads(rows: Float32, order: Int64, sizes: Int64, axes: Float32) -> Float64:
    """Each row's square distance to the mean of its cluster, along the axes. In the order of the clusters."""
    first = int(order.min())
    with np.errstate(over="ignore", invalid="ignore"):  # padding between the rows may be anything
        on_axes = rows[first : int(order.max()) + 1] @ axes  # which is contiguous, as `take` wants it
    sizes = sizes[sizes > 0]
    stops, spreads = np.cumsum(sizes), np.empty(len(order))
    firsts = stops - sizes
    cuts = np.append(np.flatnonzero(np.diff(firsts // CHUNK, prepend=-1)), len(sizes))
    for start, stop in pairwise(cuts.tolist()):
        own, begin, end = sizes[start:stop], firsts[start], stops[stop - 1]
        part = on_axes.take(order[begin:end] - first, axis=0)
        means = np.add.reduceat(part, firsts[start:stop] - begin, axis=0) / own[:, None].astype(np.float32)
        part -= means.repeat(own, axis=0)
        np.einsum("na,na->n", part, part, out=spreads[begin:end])
    return spreads


def weigh(spreads: Float64, shares: Float64 | None = None) -> Float64:
    """What chances go by, 1 in the mean: the queries' variances ``spreads`` and, if known, shares of the tail.

    Examples
    --------
    >>> import numpy as np
    >>> weigh(np.array([1.0, 10.0, 1.0, 1.0])).round(3)
    array([0.104, 3.689, 0.104, 0.104])
    >>> weigh(np.array([1.0, 10.0, 1.0, 1.0]), np.array([0.5, 0.0, 0.0, 0.0])).round(3)
    array([2.501, 1.296, 0.101, 0.101])
    """
    by_spread = _in_the_mean(spreads * spreads * spreads)
    if shares is None:
        return EVEN + (1 - EVEN) * by_spread
    with np.errstate(invalid="ignore"):
        may_be = shares * np.expm1(np.minimum(REACH * np.sqrt(spreads), MOST))
        by_tail = _in_the_mean(may_be / (1 + may_be))
    return EVEN + (1 - EVEN) * ((1 - BY_TAIL) * by_spread + BY_TAIL * by_tail)


def _in_the_mean(weights: Float64) -> Float64:
    """Weights by their mean; all 1 where one is not finite, or none above 0."""
    mean = weights.mean()
    return weights / mean if 0 < mean < math.inf else np.ones(len(weights))


def inclusion(weights: Float64, n: int) -> Float64:
    """Each row's chance to be among ``n``. They sum to n; those that would be above 1 are certain.

    Examples
    --------
    >>> import numpy as np
    >>> inclusion(np.array([1.0, 100.0, 1.0, 1.0]), 2).round(3)
    array([0.333, 1.   , 0.333, 0.333])
    """
    if n >= len(weights):
        return np.ones(len(weights))
    top = np.sort(np.partition(weights, -n)[-n:])[::-1]
    rest = weights.sum() - np.cumsum(top) + top  # without the rows above
    n_certain = int(np.argmax((n - np.arange(n)) * top <= rest))
    return np.minimum(1.0, (n - n_certain) / rest[n_certain] * weights)


def systematic(chances: Float64, n: int) -> Int64:
    """``n`` places, evenly along the sum of the chances."""
    sums = np.cumsum(chances)
    places = np.searchsorted(sums, (np.arange(n) + 0.5) * (sums[-1] / n), side="right")
    return np.minimum(places, len(chances) - 1)
