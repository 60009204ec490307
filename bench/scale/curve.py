"""Throughput beyond the actors that were measured: a simulation of the run, batch by batch.

Assumptions, all written here and in the report:

* compute: a batch takes what a batch took on one actor, drawn from those measured (their spread is the skew of
  lengths), times the slowdown that two actors on one machine were measured to have. A node has `NODE_ACTORS` actors;
  that more actors than two on a node are slowed no further is an assumption in favour.
* engine: one driver hands out batches one after the other, each taking what an actor without work was measured to wait.
* network: every batch comes in and every result goes out over one link of `LINK` bytes a second, that of the node that
  holds the data: the worst place for it. Data on every node, or in object storage, makes it wider.
* start: all actors load the model at once, in the seconds that were measured.
* stragglers: one batch in `1 / STRAGGLERS` takes `SLOW` times as long (a busy neighbour, a page cache gone), and
  nothing runs it a second time elsewhere, as Ray Data does not.
* failures: none. A killed actor costs its batch and a start.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NODE_ACTORS = 8
LINK = 10e9 / 8  # 10 Gbit/s
STRAGGLERS, SLOW = 0.01, 5.0


@dataclass(frozen=True)
class Measured:
    """What the simulation draws on.

    Attributes
    ----------
    seconds : sequence of float
        Of a batch on one actor.
    slowdown : float
        Of a batch where two actors share a machine, at least 1.
    hand_out : float
        Seconds of the engine for a batch.
    start : float
        Seconds until an actor takes its first batch.
    batch_bytes : float
        Of a batch, in and out.
    """

    seconds: Sequence[float]
    slowdown: float
    hand_out: float
    start: float
    batch_bytes: float


def simulate(measured: Measured, n_batches: int, n_actors: int, *, has_stragglers: bool = True, seed: int = 0) -> float:
    """Seconds from the first batch handed out to the last result.

    Examples
    --------
    Ten batches of a second on two actors; then with an engine that takes as long as the work.

    >>> simulate(Measured([1.0], 1.0, 0.0, 0.0, 0.0), 10, 2, has_stragglers=False)
    5.0
    >>> simulate(Measured([1.0], 1.0, 1.0, 0.0, 0.0), 10, 2, has_stragglers=False)
    11.0
    """
    rng = np.random.default_rng(seed)
    seconds = rng.choice(np.asarray(measured.seconds), n_batches) * (measured.slowdown if n_actors > 1 else 1.0)
    if has_stragglers:
        seconds = np.where(rng.random(n_batches) < STRAGGLERS, SLOW * seconds, seconds)
    free = [measured.start] * n_actors  # a heap: when each actor can take the next batch
    driver = link = end = 0.0
    for taken in seconds:
        driver += measured.hand_out
        link = max(link, driver) + measured.batch_bytes / LINK
        done = max(heapq.heappop(free), link) + float(taken)
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def limits(measured: Measured) -> dict[str, float]:
    """Batches a second that each shared part can do, whatever the number of actors."""
    return {
        "engine": 1 / measured.hand_out if measured.hand_out else np.inf,
        "network": LINK / measured.batch_bytes if measured.batch_bytes else np.inf,
    }


def curve(measured: Measured, n_batches: int, actors: Sequence[int]) -> list[dict[str, float]]:
    """For each number of actors: batches a second, and what share of as many single actors that is."""
    alone = float(np.mean(measured.seconds))
    found = []
    for n in actors:
        rate = n_batches / simulate(measured, n_batches, n)
        found.append({"actors": n, "nodes": -(-n // NODE_ACTORS), "rate": rate, "efficiency": rate * alone / n})
    return found
