"""Timing: rounds that take every function in turn, medians, and ratios of pairs from the same round."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Peers' pools spin for a while after a call and would take half of the next function's cores.
REST = 0.1
# A sample of a short function repeats it: one call of some milliseconds would measure waking up.
LEAST_SAMPLE = 0.06
MOST_REPEATS = 12
# Seconds one set of functions may take in all; fewer rounds where they are slow, but never under LEAST_ROUNDS.
BUDGET = 100.0
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios, with the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass
class Timings:
    """Seconds of each function in each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

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
            name: {"median": self.median(name), "low": min(own), "high": max(own), "rounds": len(own)}
            for name, own in self.seconds.items()
        }


def spread(values: Sequence[float]) -> Ratio:
    """Median, smallest and largest."""
    return Ratio(statistics.median(values), min(values), max(values))


def clock(function: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of a call, the median of ``repeats`` calls on end."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


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
    timings = Timings({name: [] for name in functions})
    for _ in range(rounds):
        for name, function in functions.items():
            timings.seconds[name].append(clock(function, repeats[name]))
            time.sleep(REST)
    return timings


def fma_peak(isa: str, n_threads: int, seconds: float = 0.15) -> float:
    """FLOP/s of a loop of fused multiply-adds in registers, ``n_threads`` at once."""
    from pyclattn._ext.isa import fma_peak as loop

    rates = [0.0] * n_threads
    start = threading.Barrier(n_threads)

    def work(number: int) -> None:
        start.wait()
        rates[number] = loop(isa, seconds)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)
