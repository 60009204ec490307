"""Which outputs of a convolution see the input alike, and where: what its operator and its packed weight agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as every

from pyclattn.functional import conv

# With fewer channels filling the panel costs more than the product saves.
LEAST_CHANNELS = 8
Places = tuple[tuple[int, int], ...]  # row and column of each


@dataclass(frozen=True)
class Phase:
    """Outputs that see the input alike.

    Attributes
    ----------
    elements : tuple of (int, int)
        Kernel elements, row and column.
    taps : tuple of (int, int)
        Where in the input each is, beside position x steps.
    first : (int, int)
        The first output row and column; every ``every``-th from there belongs to the phase.
    """

    elements: Places
    taps: Places
    first: tuple[int, int] = (0, 0)
    every: tuple[int, int] = (1, 1)


def plain_phase(kernel: Sequence[int], dilations: Sequence[int], begin: Sequence[int]) -> Phase:
    """Of a convolution: every output sees the input alike."""
    (rows, columns), (down, right), (top, left) = plane(kernel, 1), plane(dilations, 1), plane(begin, 0)
    elements = tuple(every(range(rows), range(columns)))
    return Phase(elements, tuple((r * down - top, c * right - left) for r, c in elements))


def remainder_phases(axes: Sequence[Sequence[Sequence[tuple[int, int]]]], strides: Sequence[int]) -> list[Phase]:
    """Of a transposed convolution: one for each remainder of the output position by the strides.

    ``axes`` has for each axis, for each remainder, the kernel elements that are seen and where, as of `seen_at`.
    """
    rows, columns = plane(axes, [[(0, 0)]])
    steps = plane(strides, 1)
    phases = []
    for r, row_taps in enumerate(rows):
        for c, column_taps in enumerate(columns):
            both = list(every(row_taps, column_taps))
            elements, taps = (tuple((a[i], b[i]) for a, b in both) for i in (0, 1))
            phases.append(Phase(elements, taps, (r, c), steps))
    return phases


def seen_at(kernel: int, stride: int, dilation: int, begin: int, n_phases: int) -> list[list[tuple[int, int]]]:
    """For each remainder below ``n_phases``: (kernel element, shift of the input it sees)."""
    taps: list[list[tuple[int, int]]] = [[] for _ in range(n_phases)]
    for phase, found in enumerate(taps):
        for k in range(kernel):
            shift, rest = divmod(phase + begin - k * dilation, stride)
            if rest == 0:
                found.append((k, shift))
    return taps


def plane(numbers: Sequence, row) -> tuple:
    """One entry an axis, of rows too where there is one axis."""
    return (row, *numbers) if len(numbers) == 1 else tuple(numbers)


def fits_tile(channels: int, n_terms: int) -> bool:
    """Whether the tile takes a convolution to ``channels`` of one group, each a sum of so many terms."""
    return channels >= LEAST_CHANNELS and 1 < n_terms <= conv.MOST_TERMS and conv.is_fast()
