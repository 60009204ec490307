"""How long each method takes for given lengths on this machine: counts of work times rates that are measured once.

A method's time is a sum of kinds of work, each in proportion to a count (multiply-adds, rows moved, heads, calls). The
seconds of one unit, the rates, are fitted to about twenty small runs, two seconds in all, and kept in the cache
directory (PYCLATTN_CACHE) by machine, version and number of threads. A prediction is a few products of numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np

from pyclattn import _config, _dispatch
from pyclattn.arrays import Float64
from pyclattn.errors import ArgumentError
from pyclattn.functional._metric import N_ITERATIONS, ROWS_PER_CLUSTER
from pyclattn.functional.clustered import improved_clustered_attention
from pyclattn.functional.coclustered import CLUSTER_AXES, SAMPLED_KEYS, SHORTEST, coclustered_attention, query_clusters
from pyclattn.functional.exact import SMALL, scaled_dot_product_attention

METHODS: dict[str, Callable[..., object]] = {
    "exact": scaled_dot_product_attention,
    "improved-clustered": improved_clustered_attention,
    "coclustered": coclustered_attention,
}
# Approximate attention must promise this much to be taken: what a prediction is wrong by.
MARGIN = 0.93
Rates = dict[str, tuple[float, ...]]
PUBLISHED = {"n_clusters": 100, "topk": 32}
# What is run to find the rates: length, heads, width, parameters. Kinds of work must come in different shares, or the
# fit cannot tell them apart: thin heads, many clusters of few keys, and one length where little but its tokens counts.
RUNS: dict[str, list[tuple[int, int, int, dict]]] = {
    "exact": [(512, 2, 64, {}), (1024, 4, 64, {}), (2048, 1, 96, {}), (2048, 2, 16, {}), (3072, 1, 32, {})],
    "improved-clustered": [
        (1024, 1, 64, PUBLISHED), (4096, 2, 32, PUBLISHED), (4096, 3, 16, PUBLISHED), (2048, 6, 64, PUBLISHED),
        (8192, 1, 64, PUBLISHED), (16384, 1, 32, PUBLISHED), (1024, 6, 64, PUBLISHED),
        (2048, 2, 64, {"n_clusters": 200, "topk": 64}), (2048, 2, 64, {"n_clusters": 400, "topk": 128}),
        (4096, 1, 64, {"n_clusters": 100, "topk": 256}),
    ],
    "coclustered": [
        (1024, 1, 64, {}), (1024, 4, 32, {}), (2048, 6, 64, {}), (4096, 2, 32, {}),
        (4096, 3, 16, {}), (2048, 1, 96, {}), (32768, 1, 32, {}), (4096, 1, 64, {"n_exact": 32}),
        (3072, 3, 64, {"n_exact": 256}), (4096, 1, 64, {"n_exact": 32, "n_query_clusters": 768}),
    ],
}  # fmt: skip
# All runs in turn, so often: whatever disturbs the machine for a while disturbs one time of each.
ROUNDS = 5


def predict(
    method: str, lengths: Sequence[int], key_lengths: Sequence[int], n_heads: int, head_dim: int, value_dim: int,
    n_threads: int, **parameters: int | None,
) -> float:  # fmt: skip
    """Seconds that a call is expected to take.

    Parameters
    ----------
    method : {"exact", "improved-clustered", "coclustered"}
    lengths, key_lengths : sequence of int
        Queries and keys of each sequence.
    n_heads, head_dim, value_dim, n_threads : int
    **parameters
        The method's counts: ``n_clusters``, ``topk``; ``n_query_clusters``, ``n_key_clusters``, ``n_exact``.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError
        For another method, or in a room without compiled kernels, whose rates are not measured.

    Examples
    --------
    >>> short, long = (predict("exact", [n], [n], 6, 64, 64, 2) for n in (2048, 16384))
    >>> 40 < long / short < 80
    True
    """
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    own = rates(n_threads)
    if own is None:
        raise ArgumentError("times are not predicted where compiled kernels are missing or another room is forced")
    return _seconds(own, method, lengths, key_lengths, n_heads, head_dim, value_dim, n_threads, parameters)


def faster(
    lengths: Sequence[int], key_lengths: Sequence[int], n_heads: int, head_dim: int, value_dim: int, n_threads: int,
    **parameters: int | None,
) -> str:  # fmt: skip
    """ "coclustered" where it is predicted to be clearly faster than "exact"."""
    n_exact = parameters.get("n_exact", 128)
    if not isinstance(n_exact, int) or not any(
        min(n, m) >= SHORTEST and 2 * n_exact < m for n, m in zip(lengths, key_lengths)
    ):
        return "exact"
    own = rates(n_threads)
    if own is None:
        return "exact"
    shape = (lengths, key_lengths, n_heads, head_dim, value_dim, n_threads)
    ratio = _seconds(own, "coclustered", *shape, parameters) / _seconds(own, "exact", *shape, {})
    return "coclustered" if ratio < MARGIN else "exact"


def _seconds(
    own: Rates, method: str, lengths: Sequence[int], key_lengths: Sequence[int], n_heads: int, depth: int, width: int,
    n_threads: int, parameters: dict,
) -> float:  # fmt: skip
    """A call's own cost once, and that of each sequence; sequences too short to be clustered are exact."""
    total = own[method][0]
    for (n, m), times in Counter(zip(lengths, key_lengths)).items():
        how, given = method, parameters
        if method == "coclustered" and (min(n, m) < SHORTEST or 2 * parameters.get("n_exact", 128) >= m):
            how, given = "exact", {}
        counts = COUNTS[how](n, m, n_heads, depth, width, n_threads, **given)
        total += times * sum(rate * count for rate, count in zip(own[how][1:], counts))
    return total


def _exact_counts(n: int, m: int, n_heads: int, depth: int, width: int, n_threads: int) -> tuple[float, ...]:
    """Multiply-adds, and logits."""
    pairs = float(n * m * n_heads)
    alone = n_threads if pairs * (depth + width) <= SMALL else 1  # one thread does it
    return pairs * (depth + width) * alone, pairs * alone


def _improved_counts(
    n: int, m: int, n_heads: int, depth: int, width: int, n_threads: int, *, n_clusters: int = 100, topk: int = 32,
    n_bits: int = 63, n_iterations: int = 10, **_: object,
) -> tuple[float, ...]:  # fmt: skip
    """Codes, their k-means, centroids with all keys, members with the chosen keys, and the choosing of those."""
    own, taken = min(n, n_clusters), min(topk, m)
    return (
        float(n_heads * n * n_bits * depth), float(n_heads * n * own * n_iterations),
        float(n_heads * own * m * (depth + width)), float(n_heads * n * taken * (depth + width)),
        float(n_heads * own * taken),
    )  # fmt: skip


def _coclustered_counts(
    n: int, m: int, n_heads: int, depth: int, width: int, n_threads: int, *, n_query_clusters: int | None = None,
    n_key_clusters: int | None = None, n_exact: int = 128, rank: int = 32, **_: object,
) -> tuple[float, ...]:  # fmt: skip
    """Work that is a head's own and cannot be shared, rows that are moved, k-means, centroids with all keys, members
    with the tail and what is exact."""
    own = min(n, n_query_clusters or query_clusters(n))
    others = min(m, n_key_clusters or max(16, round(0.75 * math.sqrt(m))))
    sampled = N_ITERATIONS * ROWS_PER_CLUSTER * (own * own + others * others)
    turns = -(-n_heads // n_threads)  # heads one after another
    return (
        float(turns * depth**3), float(turns * (n + m)), float(n_heads * own * SAMPLED_KEYS),
        float(n_heads * (n + m) * (depth + width)),
        float(n_heads * min(rank, depth, CLUSTER_AXES) * (n * own + m * others + sampled)),
        float(n_heads * own * m * (2 * depth + width)), float(n_heads * n * (n_exact + others) * (depth + width)),
    )  # fmt: skip


COUNTS: dict[str, Callable[..., tuple[float, ...]]] = {
    "exact": _exact_counts,
    "improved-clustered": _improved_counts,
    "coclustered": _coclustered_counts,
}
_known: dict[tuple, Rates | None] = {}
_lock = threading.Lock()


def rates(n_threads: int) -> Rates | None:
    """Seconds of a call and of each kind of work, by method: remembered, read from the cache directory, or measured.

    None where attention does not come from its fast room: nothing is worth a prediction there.
    """
    key = _key(n_threads)
    if key not in _known:
        with _lock:
            if key not in _known:
                _known[key] = None if key[1] == "reference" else _stored(n_threads) or _measured(n_threads)
    return _known[key]


def measure_again(n_threads: int) -> Rates | None:
    """The rates as they are now, in place of those that were kept: after a change of machine load, limits or kernels.

    None as of `rates`.
    """
    key = _key(n_threads)
    with _lock:
        _known[key] = None if key[1] == "reference" else _measured(n_threads)
    return _known[key]


def _key(n_threads: int) -> tuple:
    """Threads, and where the kernels of exact and of published clustered attention come from: Numba may be missing."""
    return n_threads, _dispatch.room_of("attention.attend"), _dispatch.room_of("attention.merge_partials")


def _file(n_threads: int) -> Path:
    text = f"{_version()} {_machine()} {_dispatch.panel_lanes()} {_key(n_threads)} {RUNS}"
    return _config.cache_dir() / f"rates-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


@cache
def _version() -> str:
    try:
        return version("pyclattn")
    except PackageNotFoundError:  # run from a checkout
        return ""


@cache
def _machine() -> str:
    """What tells machines of different speed apart."""
    try:
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    except OSError:
        names = []
    return f"{platform.system()} {platform.machine()} {names[0] if names else platform.processor()}"


def _stored(n_threads: int) -> Rates | None:
    """The rates in the cache directory, if they are there and whole."""
    try:
        given = json.loads(_file(n_threads).read_text())
        found = {method: tuple(float(x) for x in given[method]) for method in METHODS}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    lengths = {m: 1 + len(COUNTS[m](1, 1, 1, 1, 1, 1)) for m in METHODS}
    whole = all(len(r) == lengths[m] and all(0 <= x < math.inf for x in r) and any(r) for m, r in found.items())
    return found if whole else None


def _measured(n_threads: int) -> Rates:
    """Measure, and store where that can be done."""
    taken = _timed(n_threads)
    found = {method: _fitted(method, taken[method], n_threads) for method in METHODS}
    path = _file(n_threads)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(found))
        part.replace(path)
    except OSError:  # read-only: measured again next time
        pass
    return found


def _fitted(method: str, seconds: Float64, n_threads: int) -> tuple[float, ...]:
    """Rates that predict the runs best, relative to their times, none below zero."""
    counts = np.array([
        (1.0, *COUNTS[method](n, n, n_heads, depth, depth, n_threads, **parameters))
        for n, n_heads, depth, parameters in RUNS[method]
    ])  # fmt: skip
    weighted: Float64 = counts / seconds[:, None]
    size = weighted.max(axis=0)
    found = _nonnegative(weighted / size, np.ones(len(seconds)))
    return tuple((found / size).tolist())


def _nonnegative(a: Float64, b: Float64) -> Float64:
    """The x >= 0 of least |a x - b|: the best of the solutions on each choice of columns, of which there are few."""
    n = a.shape[1]
    best, least = np.zeros(n), float(b @ b)
    for chosen in product((False, True), repeat=n):
        columns = np.flatnonzero(chosen)
        some = np.linalg.lstsq(a[:, columns], b)[0]
        rest = b - a[:, columns] @ some
        if (some >= 0).all() and rest @ rest < least:
            least, best = float(rest @ rest), np.zeros(n)
            best[columns] = some
    return best


def _timed(n_threads: int) -> dict[str, Float64]:
    """The time of each method's runs, the second least of rounds: others may disturb most, and one may be luck.

    All methods in each round: they are compared, so that what disturbs one should disturb the others.
    """
    calls = {method: [_call(method, run, n_threads) for run in runs] for method, runs in RUNS.items()}
    rounds = [{method: list(map(_warm_seconds, own)) for method, own in calls.items()} for _ in range(ROUNDS)]
    return {method: np.sort([each[method] for each in rounds], axis=0)[1] for method in calls}


def _call(method: str, run: tuple[int, int, int, dict], n_threads: int) -> Callable[[], object]:
    n, n_heads, depth, parameters = run
    rng = np.random.default_rng(n)
    centers = rng.standard_normal((64, depth), dtype=np.float32)
    x = centers[rng.integers(0, 64, (1, n_heads, n))] + rng.standard_normal((1, n_heads, n, depth), np.float32)
    return partial(METHODS[method], x, x, x, n_threads=n_threads, **parameters)


def _warm_seconds(run: Callable[[], object]) -> float:
    """Of the second of two calls: the first finds caches and threads cold."""
    run()
    start = perf_counter()
    run()
    return perf_counter() - start
