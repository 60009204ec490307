"""A progress bar where there is a terminal, and nothing where there is none."""

from __future__ import annotations

from typing import Any


class Progress:
    """A tqdm bar, if tqdm is installed; ``shown=None``: where there is a terminal.

    Examples
    --------
    >>> with Progress(3, False) as bar:
    ...     bar.step(3)
    """

    def __init__(self, total: int, shown: bool | None = None, unit: str = "attention"):
        self.bar: Any = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        # tqdm's None: quiet without a terminal
        self.bar = tqdm(total=total, desc="calibrating", unit=unit, disable=None if shown is None else not shown)

    def step(self, n: int) -> None:
        if self.bar is not None:
            self.bar.update(n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()
