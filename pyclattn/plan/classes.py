"""What an attention was calibrated to: choices by length, heads shared among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyclattn.errors import ArgumentError
from pyclattn.plan.choice import Choice

# Lengths of one class differ by at most this factor: errors at equal settings change little with the length.
RATIO = 1.5


@dataclass(frozen=True)
class LengthClass:
    """What an attention runs as at lengths near those it was calibrated at.

    Parameters
    ----------
    shortest, longest : int
        Tokens of the samples: the larger number of queries and keys.
    choices : tuple of Choice
        Each head is in one of them.
    error : float, optional
        Largest relative error of the attention's output that is expected, as measured on the samples.
    speedup : float, optional
        Time of exact attention over that of the choices, as measured.
    """

    shortest: int
    longest: int
    choices: tuple[Choice, ...]
    error: float | None = None
    speedup: float | None = None

    def distance(self, n_tokens: int) -> float:
        """How far a length lies outside, as the logarithm of a ratio; 0 within."""
        return math.log(max(self.shortest / max(n_tokens, 1), n_tokens / self.longest, 1.0))

    def tells_of(self, n_tokens: int) -> bool:
        """Whether its errors are expected at this length: within it, or near enough that samples would be in it.

        Examples
        --------
        >>> here = LengthClass(4000, 5000, ())
        >>> [here.tells_of(n) for n in (3000, 3500, 5000, 6000, 6001)]
        [False, True, True, True, False]
        """
        return min(self.shortest, self.longest / RATIO) <= n_tokens <= max(self.longest, self.shortest * RATIO)


@dataclass(frozen=True)
class Calibrated:
    """The length classes of one attention, the shortest first."""

    n_heads: int
    classes: tuple[LengthClass, ...]

    def nearest(self, n_tokens: int) -> LengthClass:
        """The class of a length; one that lies in none gets the nearest, the shorter of two."""
        return min(self.classes, key=lambda c: c.distance(n_tokens))


def progressions(numbers: Sequence[int], step: int | None = None) -> list[slice]:
    """Ascending numbers as few slices, from the first on; ``step`` if only slices of that step will do.

    Examples
    --------
    >>> progressions([0, 2, 4, 5])
    [slice(0, 5, 2), slice(5, 6, 1)]
    """
    slices, start = [], 0
    while start < len(numbers):
        stop, stride = start + 1, step
        while stop < len(numbers):
            gap = numbers[stop] - numbers[stop - 1]
            stride = gap if stride is None else stride
            if gap != stride:
                break
            stop += 1
        slices.append(slice(numbers[start], numbers[stop - 1] + 1, (stride or 1) if stop - start > 1 else 1))
        start = stop
    return slices


def kv_heads(name: str, heads: Sequence[int], group: int) -> list[int]:
    """The heads of keys that these heads of queries are."""
    found = sorted({head // group for head in heads})
    if len(found) * group != len(heads):
        raise ArgumentError(f"the plan parts heads of attention {name!r} that share keys, {group} at a time")
    return found
