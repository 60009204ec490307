"""What each attention of one run did: asked for by the caller, written by the operators in the caller's thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pyclattn._tables import table
from pyclattn.arrays import Bool, Float64

# Heads that a line of a table names.
NAMED = 8


@dataclass(frozen=True)
class AttentionRun:
    """One call of one method.

    Attributes
    ----------
    name : str
        The attention's.
    method : str
        The one that ran: "exact" where what was asked for cannot be masked as the model wants.
    parameters : dict
    heads : tuple of int
        The attention's heads that this call made.
    errors : float64 array (B, number of heads), or None
        Estimated relative Frobenius errors; 0 for exact attention, None where there is no estimate (causal masks).
    fell_back : bool array (B, number of heads)
        Which were computed exactly since their estimate was above ``max_error``.
    seconds : float
        The estimate and what fell back included.
    """

    name: str
    method: str
    parameters: dict[str, Any]
    heads: tuple[int, ...]
    errors: Float64 | None
    fell_back: Bool
    seconds: float


@dataclass
class RunReport:
    """What each attention of a run did, in the order of the run. Printed as a table.

    Attributes
    ----------
    attentions : list of AttentionRun
    seconds : float
        Of the whole run.

    Examples
    --------
    >>> import numpy as np
    >>> errors = np.array([[0.012, 0.09]])
    >>> run = AttentionRun("0.self", "coclustered", {"n_exact": 64}, (0, 1), errors, errors > 0.05, 0.0123)
    >>> print(RunReport([run], 0.02))
    attention  heads  method       parameters  estimated error          made exact    ms
    0.self     0-1    coclustered  n_exact=64  0.0510 (largest 0.0900)           1  12.3
    attention 12.3 ms of 20.0 ms
    """

    attentions: list[AttentionRun] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        head = ("attention", "heads", "method", "parameters", "estimated error", "made exact", "ms")
        rows = [
            (run.name, _numbers(run.heads), run.method, " ".join(f"{n}={v}" for n, v in run.parameters.items()) or "-",
             _errors(run.errors), _fallen(run), f"{1e3 * run.seconds:.1f}")
            for run in self.attentions
        ]  # fmt: skip
        total = sum(run.seconds for run in self.attentions)
        return f"{table(rows, head)}\nattention {1e3 * total:.1f} ms of {1e3 * self.seconds:.1f} ms"


def _numbers(numbers: tuple[int, ...]) -> str:
    """Heads as people write them: 0-5, or 0 2 4."""
    if len(numbers) > 1 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    shown = " ".join(map(str, numbers[:NAMED]))
    return shown + (" ..." if len(numbers) > NAMED else "")


def _errors(errors: Float64 | None) -> str:
    """The mean and the largest over sequences and heads."""
    if errors is None:
        return "not known"
    if errors.size == 0:
        return "-"
    return f"{errors.mean():.4f} (largest {errors.max():.4f})"


def _fallen(run: AttentionRun) -> str:
    heads = tuple(h for h, fell in zip(run.heads, run.fell_back.T) if fell.any())
    return _numbers(heads) or "-"


_records: ContextVar[list[AttentionRun] | None] = ContextVar("pyclattn_records", default=None)


def records() -> list[AttentionRun] | None:
    """Where operators write what they did, if the caller of this run wants to know."""
    return _records.get()


@contextmanager
def recording() -> Iterator[list[AttentionRun]]:
    """Within the block, what this thread runs is recorded."""
    found: list[AttentionRun] = []
    token = _records.set(found)
    try:
        yield found
    finally:
        _records.reset(token)
