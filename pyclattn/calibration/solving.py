"""From what was measured to what each attention runs as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pyclattn.calibration.ladder import FAMILIES, RIVAL, Family, levels
from pyclattn.calibration.records import Probe, Record
from pyclattn.plan import Calibrated, Choice, LengthClass
from pyclattn.plan.classes import RATIO, progressions

# How the logarithms of errors on inputs spread about their mean, where few samples say: the prior standard deviation
# (measured: 0.3 between five photographs, 0.6 between twelve, drawings and textures among them) and the degrees of
# freedom it counts for.
SPREAD, PRIOR = 0.3, 3
# The share of unseen inputs that are to stay within the bound, were errors log-normal.
CONFIDENCE = 0.95
# Settings are searched for this share of what is left of the target where samples agree: they do not quite.
SEARCHED = 0.9
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
        return float(expected_error(self.errors))


def expected_error(errors) -> Any:
    """What errors on samples (last axis) let expect of inputs unseen: their prediction limit, or the largest.

    Examples
    --------
    >>> round(float(expected_error([0.01, 0.01, 0.01, 0.01])), 4)
    0.0159
    >>> round(float(expected_error([0.01, 0.02])), 4)
    0.0359
    """
    errors = np.asarray(errors, np.float64)
    with np.errstate(invalid="ignore"):
        logs = np.log(np.maximum(errors, 1e-12))
        means = logs.mean(axis=-1)
        squares = ((logs - means[..., None]) ** 2).sum(axis=-1)
        n, freedom = errors.shape[-1], PRIOR + errors.shape[-1] - 1
        spread = np.sqrt((PRIOR * SPREAD**2 + squares) / freedom * (1 + 1 / n))
        found = np.maximum(np.exp(means + _student(freedom) * spread), errors.max(axis=-1))
    return np.where(np.isfinite(found), found, np.inf)


def goal(target: float, n_samples: int) -> float:
    """The error that settings are searched for, so that what was measured reaches beyond what the limit takes off.

    Examples
    --------
    >>> [round(goal(0.02, n), 4) for n in (1, 4, 20)]
    [0.0066, 0.0114, 0.0148]
    """
    return SEARCHED * target / float(expected_error(np.ones(n_samples)))


def _student(freedom: int) -> float:
    """The quantile CONFIDENCE of Student's t, from 3 degrees of freedom to 0.1 % (Abramowitz and Stegun 26.7.5)."""
    x = NormalDist().inv_cdf(CONFIDENCE)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


class Curve:
    """Errors of heads and time of one family over its levels, on all samples of a length class.

    Attributes
    ----------
    levels : list of int
        Those for which every sample tells an error; none if one has not been measured at all.
    shares : float array (levels,)
        Time of all heads, of exact attention's.
    errors : float array (levels, samples, heads of keys)
        Squared.
    """

    def __init__(self, family: Family, records: Sequence[Record]):
        self.family = family
        probes = [record.probes.get(family.name, {}) for record in records]
        self.levels: list[int] = []
        if all(probes):
            self.levels = levels(max(min(own) for own in probes), max(max(own) for own in probes))
        self.shares = self._shares(records, probes)
        self.errors = np.empty((0, len(records), records[0].n_kv_heads))
        if self.levels:
            self.errors = np.stack([self._errors(own) for own in probes], axis=1)

    def _shares(self, records: Sequence[Record], probes: Sequence[Mapping[int, Probe]]) -> np.ndarray:
        """Other work on the machine only adds time: the least counts, and less accuracy never takes more."""
        sizes = [record.n_queries * record.n_keys for record in records]
        exact = min(record.seconds / size for record, size in zip(records, sizes))
        least: dict[int, float] = {}
        for own, size in zip(probes, sizes):
            for level, probe in own.items():
                least[level] = min(least.get(level, np.inf), probe.seconds / size / max(exact, 1e-30))
        known = sorted(least)
        shares = np.minimum.accumulate([least[level] for level in reversed(known)])[::-1]
        return np.interp(np.log(self.levels), np.log(known), shares) if self.levels else np.empty(0)

    def _errors(self, probes: Mapping[int, Probe]) -> np.ndarray:
        """Of one sample (levels, heads), between what was measured by interpolation; beyond, falling slowly."""
        known = sorted(probes)
        logs = np.log(np.maximum([probes[level].errors for level in known], 1e-30))
        at = np.log(self.levels)
        beyond = np.maximum(1.0, np.array(self.levels) / known[-1]) ** (-2 * SLOPE)
        return beyond[:, None] * np.exp(np.stack([np.interp(at, np.log(known), column) for column in logs.T], axis=1))


def solve(records: Sequence[Record], target: float) -> Option:
    """The fastest choices whose expected error on the samples stays within the target.

    All heads together in one family; or the heads that err most exactly or by the rival, the rest in a family.
    """
    exact = Option((Choice(),), 1.0, (0.0,) * len(records))
    if any(record.is_fixed for record in records):
        return exact
    curves = {name: Curve(family, records) for name, family in FAMILIES.items()}
    norms, n_heads, best = np.array([sum(record.norms) for record in records]), records[0].n_kv_heads, exact
    # what heads set aside run by: exact attention, or the rival at some level
    rival = curves[RIVAL.name]
    rests = [Choice(), *(RIVAL.choice(level) for level in rival.levels)]
    rest_shares = np.concatenate([[1.0], rival.shares])
    rest_errors = np.zeros((1, len(records), n_heads))
    if rival.levels:
        rest_errors = np.concatenate([rest_errors, rival.errors])
    for curve in curves.values():
        for level, share, errors in zip(curve.levels, curve.shares, curve.errors):
            for aside, kept in _splits(errors, norms):
                shares = (len(kept) * share + len(aside) * rest_shares) / n_heads + CALL * _calls(aside, kept)
                open_ = np.flatnonzero(shares < best.share)[: len(rests) if aside else 1]
                if not len(open_):
                    continue
                sums = rest_errors[open_][..., aside].sum(axis=-1) + _apart(kept) * errors[:, kept].sum(axis=1)
                found = np.sqrt(sums / np.maximum(norms, 1e-300))
                good = np.flatnonzero(expected_error(found) <= target)
                if len(good):
                    at = good[np.argmin(shares[open_[good]])]
                    choices = _choices(curve.family.choice(level), kept, rests[open_[at]], aside, records[0])
                    best = Option(choices, float(shares[open_[at]]), tuple(found[at].tolist()))
    return best if best.share <= WORTH else exact


def _apart(heads: list[int]) -> float:
    """What it adds to squared errors that heads lie in several slices."""
    return APART**2 if len(progressions(heads)) > 1 else 1.0


def _splits(errors: np.ndarray, norms: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
    """(heads set aside, heads kept): none, the one that errs most, the two that do, ..."""
    weight = (errors / np.maximum(norms[:, None], 1e-30)).mean(axis=0)
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
