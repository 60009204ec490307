"""What calibration tries: families of settings, each with one number that trades time for accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyclattn.plan import Choice

# On genes of 6,000 nucleotides 1,024 keys were too few for 2 %: with 2,048 plans were a tenth faster.
RUNGS = (32, 64, 128, 256, 512, 1024, 2048)
# Where the search in a family starts when nothing is known.
FIRST_RUNG = 128
# A family whose least time was above this many times the best's on one sample is not tried on the next.
PRUNED = 1.15


@dataclass(frozen=True)
class Family:
    """Settings that differ in one number, ``knob``: more of it takes longer and errs less."""

    method: str
    knob: str
    fixed: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def name(self) -> str:
        """For state files and tables."""
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.fixed)])

    def choice(self, level: int, heads: tuple[int, ...] | None = None) -> Choice:
        """The setting at this level of the knob."""
        return Choice(self.method, {**dict(self.fixed), self.knob: level}, heads)

    def rungs(self, n_keys: int) -> tuple[int, ...]:
        """Levels that are tried over this many keys: beyond half of them co-clustered attention is exact."""
        return tuple(rung for rung in RUNGS if 2 * rung < n_keys)


# Above this many times the target (or below one over it) the search takes two rungs at once.
FAR = 2.2
# Query and key clusters grow together, by factors on the roots of their numbers: more query clusters help every query,
# more key clusters what exact keys leave to the tail, most where attention is broad (genes, and small errors). The next
# in this list is tried as long as it is no slower. The pairs without the third came within 8 % of the best of twelve on
# images, keypoints and genes at errors of 10 to 1 %; with key clusters by default alone they took up to 40 % longer.
# The third takes back what key clusters cost where they help little: 2.5 % of an image's plan at 5 %, 1 % at 2 %.
COCLUSTERED = (
    Family("coclustered", "n_exact", (("cluster_factor", 1.5),)),
    Family("coclustered", "n_exact", (("cluster_factor", 2.5), ("key_cluster_factor", 1.5))),
    Family("coclustered", "n_exact", (("cluster_factor", 2.5),)),
    Family("coclustered", "n_exact", (("cluster_factor", 4.0), ("key_cluster_factor", 3.0))),
)
START = COCLUSTERED[0]
# A rival for very sharp heads, tried where co-clustering is slow. 5 sqrt(L) clusters: matching wants many small ones.
RIVAL = Family("improved-clustered", "topk", (("cluster_factor", 5.0), ("clustering", "metric")))
# The rival is tried where co-clustering takes more than this share of exact attention's time.
SLOW = 0.4
FAMILIES = {family.name: family for family in (*COCLUSTERED, RIVAL)}


def setting_of(choices: Iterable[Choice]) -> tuple[Family, int] | None:
    """The family and level that these choices for the heads of an attention are of, if not all are exact.

    Examples
    --------
    >>> family, level = setting_of([Choice("exact", {}, (0, 2)), START.choice(96, (1, 3, 4))])
    >>> family == START, level
    (True, 96)
    """
    for choice in reversed(tuple(choices)):  # heads set aside come first
        for family in FAMILIES.values():
            level = choice.parameters.get(family.knob)
            if level is not None and choice == family.choice(level, choice.heads):
                return family, level
    return None


def levels(low: int, high: int) -> list[int]:
    """Levels between two rungs, both among them, about a fifth apart: finer is within what samples differ by.

    Examples
    --------
    >>> levels(64, 128)
    [64, 72, 80, 96, 112, 128]
    """
    found = [low]
    while found[-1] < high:
        step = max(8, found[-1] // 5 // 8 * 8)
        found.append(min(high, found[-1] + step))
    return found
