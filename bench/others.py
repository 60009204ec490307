"""How much of the machine everyone else takes: the noise a time was measured in."""

from __future__ import annotations

import os
from pathlib import Path


class Others:
    """How much of the machine other processes (and other guests of its host) take from now on."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of all CPUs so far: busy, in all, and busy with this process and its finished children."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks), sum(os.times()[:4])

    def share(self) -> float | None:
        """Their share of the CPUs since this was made; None where the system does not tell."""
        now = self._now()
        if now is None or self._before is None or now[1] <= self._before[1]:
            return None
        busy, every, own = (a - b for a, b in zip(now, self._before))
        return max(0.0, (busy - own) / every)
