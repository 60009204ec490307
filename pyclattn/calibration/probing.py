"""Try settings on what one attention was given in an exact run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import numpy as np

from pyclattn.calibration.ladder import COCLUSTERED, FAMILIES, FAR, FIRST_RUNG, PRUNED, RIVAL, SLOW, Family
from pyclattn.calibration.records import Probe, Record, relative, squares
from pyclattn.functional.coclustered import SHORTEST
from pyclattn.graph.ops.attention import METHODS as _METHODS
from pyclattn.graph.spec import Observed
from pyclattn.plan import Choice, Plan

METHODS: dict[str, Any] = _METHODS


def attend(seen: Observed, choices: Iterable[Choice], out: np.ndarray) -> float:
    """Run an attention by other choices, into ``out``; seconds."""
    _, n_heads, n_queries, _ = seen.query.shape
    n_kv_heads, n_keys = seen.key.shape[1:3]
    group = n_heads // max(1, n_kv_heads)
    parts = []
    for choice in choices:
        parts += Plan(choice).parts(seen.name, n_heads, n_kv_heads, n_queries, n_keys)
    start = perf_counter()
    for own, method, parameters in parts:
        heads = own if group == 1 else slice(own.start * group, own.stop * group)
        METHODS[method](
            seen.query[:, heads], seen.key[:, own], seen.value[:, own], out=out[:, heads], **seen.options, **parameters
        )
    return perf_counter() - start


def is_fixed(seen: Observed) -> bool:
    """Whether only exact attention will do."""
    masked = seen.options.get("attn_mask") is not None or bool(seen.options.get("is_causal"))
    return masked or min(seen.query.shape[2], seen.key.shape[2]) < SHORTEST


class Comparison:
    """One attention of one exact run, to compare other settings with.

    Rows of padded tokens of self-attention count neither in errors nor in norms.
    """

    def __init__(self, seen: Observed):
        self.seen, self.n_kv_heads = seen, seen.key.shape[1]
        self.out = np.empty_like(seen.output, dtype=np.float32)
        padding: Any = seen.options.get("key_padding_mask")
        is_self = seen.query.shape[2] == seen.key.shape[2]
        self.kept = None if padding is None or not is_self else ~np.asarray(padding, bool)
        self.norms = squares(seen.output, self.n_kv_heads, self.kept)

    def run(self, *choices: Choice) -> Probe:
        """Seconds and squared errors of heads."""
        seconds = attend(self.seen, choices, self.out)
        np.subtract(self.out, self.seen.output, out=self.out)
        return Probe(seconds, squares(self.out, self.n_kv_heads, self.kept))

    def relative(self, probe: Probe) -> float:
        """Relative error of the whole output."""
        return relative(sum(probe.errors), sum(self.norms))


def record_of(seen: Observed, comparison: Comparison) -> Record:
    """A record without probes."""
    _, n_heads, n_queries, _ = seen.query.shape
    return Record(
        n_heads, comparison.n_kv_heads, n_queries, seen.key.shape[2], seen.seconds, comparison.norms,
        is_fixed=is_fixed(seen),
    )  # fmt: skip


def search(record: Record, run: Callable[[Choice], Probe], target: float, others: list[Record]) -> None:
    """Add probes to a record: in each family worth it, two neighbouring rungs between which the error meets the target.

    Parameters
    ----------
    record : Record
        May have probes already; they are not repeated.
    run : callable
    target : float
        Relative error.
    others : list of Record
        Of the same attention on samples of like length: where to begin, and which families not to try.
    """
    tried: dict[str, float] = {}

    def take(family: Family) -> float:
        if family.name not in tried:
            tried[family.name] = _bracket(record, family, run, target, others) / max(record.seconds, 1e-9)
        return tried[family.name]

    for family in _promising(others, target):
        take(family)
    if not tried:
        _climb(take)
    if min(tried.values()) > SLOW and not others:
        take(RIVAL)


def _climb(take: Callable[[Family], float]) -> None:
    """Families of more and more clusters, as long as each is no slower than the one before."""
    last = np.inf
    for family in COCLUSTERED:
        now = take(family)
        if now > last:
            return
        last = now


def _promising(others: list[Record], target: float) -> list[Family]:
    """Families that were near the best on other samples."""
    times: dict[str, float] = {}
    for name in FAMILIES:
        known = [least_time(o, name, target) / max(o.seconds, 1e-9) for o in others if o.probes.get(name)]
        if known and len(known) == len(others):
            times[name] = float(np.mean(known))
    best = min(times.values(), default=np.inf)
    return [FAMILIES[name] for name, time in times.items() if time <= PRUNED * best]


def least_time(record: Record, family: str, target: float) -> float:
    """Seconds in which a family meets the target on a sample, between rungs by interpolation; or exact's own."""
    probes = record.probes[family]
    good = [level for level in probes if record.error(family, level) <= target]
    if not good:
        return record.seconds
    level = min(good)
    below = [other for other in probes if other < level]
    if not below:
        return probes[level].seconds
    low = max(below)
    ends = [max(record.error(family, n), 1e-12) for n in (low, level)]
    share = np.log(ends[0] / target) / max(np.log(ends[0] / ends[1]), 1e-9)
    return float(probes[low].seconds + min(share, 1.0) * (probes[level].seconds - probes[low].seconds))


def _bracket(
    record: Record, family: Family, run: Callable[[Choice], Probe], target: float, others: list[Record]
) -> float:
    """Walk the rungs from where others ended until the target lies between two; the least time."""
    rungs, probes = family.rungs(record.n_keys), record.probes.setdefault(family.name, {})
    i = min(_start(rungs, family, others, target), len(rungs) - 1)
    direction = 0
    while 0 <= i < len(rungs):
        if rungs[i] not in probes:
            probes[rungs[i]] = run(family.choice(rungs[i]))
        error = record.error(family.name, rungs[i])
        step = -1 if error <= target else 1
        too_slow = step > 0 and probes[rungs[i]].seconds > record.seconds
        if direction == -step or too_slow:
            break
        direction = step
        far = error > FAR * target or error * FAR < target
        i += 2 * step if far and 0 <= i + 2 * step < len(rungs) else step
    return least_time(record, family.name, target)


def _start(rungs: tuple[int, ...], family: Family, others: list[Record], target: float) -> int:
    """The rung that met the target on the last other sample."""
    for other in reversed(others):
        known = other.probes.get(family.name, {})
        good = [level for level in known if other.error(family.name, level) <= target]
        if known:
            return rungs.index(min(good)) if good and min(good) in rungs else len(rungs) - 1
    return rungs.index(FIRST_RUNG) if FIRST_RUNG in rungs else len(rungs) - 1
