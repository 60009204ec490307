"""Timing: rounds that take every function in turn, medians, and ratios of pairs from the same round."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.others import Others

# Peers' pools spin for a while after a call and would take half of the next function's cores.
REST = 0.1
# A sample of a short function repeats it: one call of some milliseconds would measure waking up.
LEAST_SAMPLE = 0.06
MOST_REPEATS = 12
# Seconds one set of functions may take in all; fewer rounds where they are slow, but never under LEAST_ROUNDS.
BUDGET = 100.0
LEAST_ROUNDS = 3
# A round in which others took more than this share of the CPUs is left out, whatever it measured; a machine that is
# hardly ever quiet gets up to PATIENCE times as many rounds, and then all of them count.
QUIET = 0.08
PATIENCE = 2


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios, with the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass
class Timings:
    """Seconds and result of each function in each round that counts; whether others left the machine alone in them."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, list[Any]] = field(default_factory=dict)
    is_quiet: bool = True

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def fastest(self, names: Sequence[str]) -> str:
        """The name with the smallest median."""
        return min(names, key=self.median)

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times longer ``slow`` took than ``fast``, round by round."""
        return spread([a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)])

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "median": self.median(name),
                "low": min(own),
                "high": max(own),
                "rounds": len(own),
                "quiet": self.is_quiet,
            }
            for name, own in self.seconds.items()
        }


def spread(values: Sequence[float]) -> Ratio:
    """Median, smallest and largest."""
    return Ratio(statistics.median(values), min(values), max(values))


def clock(function: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of a call, the median of ``repeats`` calls on end."""
    return _sample(function, repeats)[0]


def _sample(function: Callable[[], object], repeats: int) -> tuple[float, Any]:
    """Median seconds of ``repeats`` calls, and what the last returned."""
    taken, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), result


def interleave(functions: dict[str, Callable[[], object]], rounds: int, budget: float = BUDGET) -> Timings:
    """Time functions in rounds A B C A B C ..., each warmed up before and rested after."""
    estimates = {}
    for name, function in functions.items():
        estimates[name] = clock(function)
        if estimates[name] < 1.0:  # a long function is warm after one call
            estimates[name] = clock(function)
        time.sleep(REST)
    repeats = {n: min(MOST_REPEATS, max(1, math.ceil(LEAST_SAMPLE / max(t, 1e-6)))) for n, t in estimates.items()}
    a_round = sum(estimates[n] * repeats[n] + REST for n in functions)
    rounds = max(min(rounds, LEAST_ROUNDS), min(rounds, int(budget / a_round)))
    quiet, noisy = [], []
    while len(quiet) < rounds and len(quiet) + len(noisy) < PATIENCE * rounds:
        others, taken = Others(), {}
        for name, function in functions.items():
            taken[name] = _sample(function, repeats[name])
            time.sleep(REST)
        share = others.share()
        (quiet if share is None or share <= QUIET else noisy).append(taken)
        if len(quiet) + len(noisy) >= rounds and (len(quiet) >= LEAST_ROUNDS or a_round > 10):
            break
    kept = quiet if len(quiet) >= min(rounds, LEAST_ROUNDS) else quiet + noisy
    return Timings(
        {name: [taken[name][0] for taken in kept] for name in functions},
        {name: [taken[name][1] for taken in kept] for name in functions},
        is_quiet=len(kept) == len(quiet),
    )


def fma_peak(isa: str, n_threads: int, seconds: float = 0.15, tries: int = 3) -> float:
    """FLOP/s of a loop of fused multiply-adds in registers, ``n_threads`` at once; the best try, as new threads may
    share a CPU at first."""
    from pyclattn._ext.isa import fma_peak as loop

    best = 0.0
    for _ in range(tries):
        rates, start = [0.0] * n_threads, threading.Barrier(n_threads)

        def work(number: int, rates: list[float] = rates, start: threading.Barrier = start) -> None:
            start.wait()
            rates[number] = loop(isa, seconds)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(rates))
    return best
