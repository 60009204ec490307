"""From what was measured to what each attention runs as."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyclattn.calibration.ladder import COCLUSTERED, FAMILIES, RIVAL, Family, levels
from pyclattn.calibration.records import Record, relative
from pyclattn.plan import Calibrated, Choice, LengthClass
from pyclattn.plan.classes import progressions

# Lengths of one class differ by at most this factor: errors at equal settings change little with the length.
RATIO = 1.5
# How the logarithms of errors on inputs spread about their mean, where few samples say: the prior standard deviation
# and the samples it counts for; and how many deviations above the mean an unseen input is taken to lie.
SPREAD, PRIOR, DEVIATIONS = 0.12, 3, 1.7
# Settings are searched for this share of the target, so that what was measured reaches beyond what spread takes off.
SEARCHED = 0.75
# Above the levels a sample was measured at its errors are taken to fall as level ** -SLOPE: measured were 0.45 to 0.9.
SLOPE = 0.3
# Heads of a choice that lie in several slices share no threshold: measured 8 to 12 % more error.
APART = 1.1
# What another call costs, of the time of exact attention.
CALL = 0.01
# A choice must be this much faster than exact attention to be worth its error.
WORTH = 0.9


@dataclass(frozen=True)
class Option:
    """Choices for all heads, with what is expected of them."""

    choices: tuple[Choice, ...]
    share: float  # of exact attention's time
    errors: tuple[float, ...]  # of each sample

    @property
    def expected(self) -> float:
        return expected_error(self.errors)


def expected_error(errors: Sequence[float]) -> float:
    """What errors on samples let expect of inputs unseen: the largest, or a spread above their mean.

    Examples
    --------
    >>> round(expected_error([0.01, 0.01, 0.01, 0.01]), 4)
    0.0116
    >>> round(expected_error([0.01, 0.02]), 4)
    0.0222
    """
    if not all(math.isfinite(e) for e in errors):
        return math.inf
    logs = np.log(np.maximum(errors, 1e-12))
    variance = (PRIOR * SPREAD**2 + ((logs - logs.mean()) ** 2).sum()) / (PRIOR + len(logs) - 1)
    return float(max(np.exp(logs.mean() + DEVIATIONS * np.sqrt(variance)), max(errors)))


class Curve:
    """Errors of heads and time of one family over its levels, on all samples of a length class."""

    def __init__(self, family: Family, records: Sequence[Record]):
        self.family, self.records = family, records
        measured = [sorted(record.probes.get(family.name, {})) for record in records]
        self.low = max((own[0] if own else math.inf) for own in measured)
        self.high = max((own[-1] if own else 0) for own in measured)
        shares: dict[int, list[float]] = {}
        for record, own in zip(records, measured):
            for level in own:
                shares.setdefault(level, []).append(record.probes[family.name][level].seconds / record.seconds)
        self._levels = sorted(shares)
        # more exact keys never take less time: what noise says otherwise is levelled
        self._shares = np.maximum.accumulate([np.median(shares[level]) for level in self._levels])

    def levels(self) -> list[int]:
        """Levels for which every sample has an error."""
        return levels(int(self.low), self.high) if self.low <= self.high else []

    def share(self, level: int) -> float:
        """Of exact attention's time, all heads."""
        return float(np.interp(np.log(level), np.log(self._levels), self._shares))

    def errors(self, level: int) -> np.ndarray:
        """Squared errors (samples, heads of keys), between a sample's levels by interpolation."""
        found = []
        for record in self.records:
            probes = record.probes[self.family.name]
            known = sorted(probes)
            logs = np.log(np.maximum([probes[n].errors for n in known], 1e-30))
            beyond = max(1.0, level / known[-1]) ** (-2 * SLOPE)
            found.append(beyond * np.exp([np.interp(np.log(level), np.log(known), column) for column in logs.T]))
        return np.array(found)


def solve(records: Sequence[Record], target: float) -> Option:
    """The fastest choices whose expected error on the samples stays within the target.

    All heads together in one family; or the heads that err most exactly or by the rival, the rest in a family.
    """
    first = records[0]
    n_heads = first.n_kv_heads
    exact = Option((Choice(),), 1.0, (0.0,) * len(records))
    if any(record.is_fixed for record in records):
        return exact
    norms = [sum(record.norms) for record in records]
    best = exact
    curves = {name: Curve(family, records) for name, family in FAMILIES.items()}
    rivals: list[tuple[Family | None, int, float, np.ndarray]] = [(None, 0, 1.0, np.zeros((len(records), n_heads)))]
    rival = curves[RIVAL.name]
    rivals += [(RIVAL, level, rival.share(level), rival.errors(level)) for level in rival.levels()]
    for family in (*COCLUSTERED, RIVAL):
        curve = curves[family.name]
        for level in curve.levels():
            errors, share = curve.errors(level), curve.share(level)
            for aside, kept in _splits(errors, norms):
                for other, other_level, other_share, other_errors in rivals if aside else rivals[:1]:
                    time = (len(kept) * share + len(aside) * other_share) / n_heads + CALL * _calls(aside, kept)
                    if time >= best.share:
                        continue
                    apart = APART**2 if len(progressions(kept)) > 1 else 1.0
                    sums = errors[:, kept].sum(axis=1) * apart + other_errors[:, aside].sum(axis=1)
                    found = tuple(relative(e, norm) for e, norm in zip(sums, norms))
                    if expected_error(found) <= target:
                        rest = other.choice(other_level) if other else Choice()
                        best = Option(_choices(family.choice(level), kept, rest, aside, first), time, found)
    return best if best.share <= WORTH else exact


def _splits(errors: np.ndarray, norms: Sequence[float]) -> Iterator[tuple[list[int], list[int]]]:
    """(heads set aside, heads kept): none, the one that errs most, the two that do, ..."""
    weight = (errors / np.maximum(np.array(norms)[:, None], 1e-30)).mean(axis=0)
    order = np.argsort(-weight, kind="stable").tolist()
    for n in range(len(order)):
        yield sorted(order[:n]), sorted(order[n:])


def _calls(aside: list[int], kept: list[int]) -> int:
    """Calls more than one."""
    return len(progressions(aside)) + len(progressions(kept)) - 1


def _choices(choice: Choice, kept: list[int], rest: Choice, aside: list[int], record: Record) -> tuple[Choice, ...]:
    if not aside:
        return (choice,)
    group = record.n_heads // record.n_kv_heads

    def queries(heads: list[int]) -> tuple[int, ...]:
        return tuple(head * group + member for head in heads for member in range(group))

    return (
        Choice(rest.method, rest.parameters, queries(aside)),
        Choice(choice.method, choice.parameters, queries(kept)),
    )


def length_classes(records: Sequence[Record]) -> list[list[Record]]:
    """Records by length, those of one class within `RATIO`."""
    classes: list[list[Record]] = []
    for record in sorted(records, key=lambda r: r.n_tokens):
        if not classes or record.n_tokens > RATIO * classes[-1][0].n_tokens:
            classes.append([])
        classes[-1].append(record)
    return classes


def solve_attention(records: Sequence[Record], target: float) -> Calibrated:
    """Length classes of one attention."""
    classes = []
    for own in length_classes(records):
        option = solve(own, target)
        found = LengthClass(
            own[0].n_tokens, own[-1].n_tokens, option.choices, round(option.expected, 5), round(1 / option.share, 2)
        )
        if option.choices == (Choice(),):
            found = LengthClass(own[0].n_tokens, own[-1].n_tokens, option.choices, 0.0, 1.0)
        classes.append(found)
    return Calibrated(records[0].n_heads, tuple(classes))
