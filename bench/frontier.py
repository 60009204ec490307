"""What measured points of error and time say: frontiers, speed within an error, error in the same time.

A result has ``exact``, seconds of each layer, and ``points``: curve, settings, and seconds and errors of each layer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Result = dict[str, Any]


def on_frontier(seconds: list[float], errors: list[float]) -> list[bool]:
    """Which points no other point is faster and better than.

    Examples
    --------
    >>> on_frontier([1, 2, 3, 4], [0.5, 0.7, 0.1, 0.1])
    [True, False, True, False]
    """
    order, best, kept = sorted(range(len(seconds)), key=lambda i: (seconds[i], errors[i])), float("inf"), set()
    for i in order:
        if errors[i] < best:
            best = errors[i]
            kept.add(i)
    return [i in kept for i in range(len(seconds))]


def curves(result: Result) -> list[str]:
    """Names of the curves, in the ladder's order."""
    return list(dict.fromkeys(point["curve"] for point in result["points"]))


def uniform(result: Result, curve: str) -> list[tuple[float, float, dict]]:
    """(speed, mean error, settings) of one setting for all layers, where no other is faster and better."""
    own = [point for point in result["points"] if point["curve"] == curve]
    seconds = [sum(point["seconds"]) for point in own]
    errors = [float(np.mean(point["errors"])) for point in own]
    found = zip(seconds, errors, own, on_frontier(seconds, errors))
    return sorted((sum(result["exact"]) / s, e, point["settings"]) for s, e, point, keep in found if keep)


def calibrated(result: Result, curve: str) -> list[tuple[float, float]]:
    """(seconds, mean error), fastest first, when each layer has its own setting, or is exact.

    For a price of error from none to all, every layer takes what is cheapest in time + price x error. Such prices only
    find what lies on a convex hull, so one setting for all layers counts as well.

    Examples
    --------
    >>> points = [{"curve": "a", "seconds": [1, 2], "errors": [0.1, 0.9]}]
    >>> calibrated({"exact": [8, 8], "points": points}, "a")
    [(3.0, 0.5), (9.0, 0.05), (16.0, 0.0)]
    """
    own = [point for point in result["points"] if point["curve"] == curve]
    seconds = np.array([point["seconds"] for point in own] + [result["exact"]], float)
    errors = np.array([point["errors"] for point in own] + [[0.0] * len(result["exact"])])
    layers = np.arange(seconds.shape[1])
    found = set(zip(seconds.sum(axis=1).tolist(), errors.mean(axis=1).tolist()))
    for price in np.append(0, np.logspace(-4, 4, 400)) * sum(result["exact"]):
        choice = np.argmin(seconds + price * errors, axis=0)
        found.add((float(seconds[choice, layers].sum()), float(errors[choice, layers].mean())))
    ordered = sorted(found)
    return [point for point, keep in zip(ordered, on_frontier(*map(list, zip(*ordered)))) if keep]


def speed_at(result: Result, curve: str, budget: float) -> float:
    """Speed with a mean error within the budget."""
    return sum(result["exact"]) / min(seconds for seconds, e in calibrated(result, curve) if e <= budget)


def uniform_at(result: Result, curve: str, budget: float) -> tuple[float, dict]:
    """Speed and settings of one setting for all layers within the budget; exact if there is none."""
    within = [(speed, settings) for speed, e, settings in uniform(result, curve) if e <= budget]
    return within[-1] if within else (1.0, {})


def error_ratio(result: Result, ours: str, other: str, n_times: int = 15) -> float | None:
    """Our error over another's in the same time: geometric mean over times that both have settings for.

    Examples
    --------
    >>> points = [{"curve": name, "seconds": [1], "errors": [e]} for name, e in (("a", 0.1), ("b", 0.2))]
    >>> round(error_ratio({"exact": [100], "points": points}, "a", "b"), 3)
    0.5
    """
    mine, theirs = (calibrated(result, curve)[:-1] for curve in (ours, other))  # the last is exact
    if not mine or not theirs:
        return None
    first = max(mine[0][0], theirs[0][0])
    last = max(first, min(max(s for s, _ in mine), max(s for s, _ in theirs)))
    logs = []
    for limit in np.geomspace(first, last, n_times) * (1 + 1e-9):
        best, bar = (min(e for s, e in points if s <= limit) for points in (mine, theirs))
        if best > 0 and bar > 0:
            logs.append(math.log(best / bar))
    return math.exp(sum(logs) / len(logs)) if logs else None
