"""What is measured: a function of a case with its inputs in place, ours or a peer's, behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import pyclattn
from bench.cases import Case, Inputs


class NotInstalledError(ImportError):
    """A peer that is not on this machine."""


class NotSupportedError(ValueError):
    """A peer that has no such option."""


@dataclass
class Subject:
    """``run()`` computes once; ``output()`` is the last result as (B, H, L, E), or None where it is something else."""

    name: str
    run: Callable[[], Any]
    output: Callable[[], np.ndarray | None]


FUNCTIONS = ("exact", "clustered", "improved", "coclustered")


def call(function: str, case: Case, x: Inputs, n_threads: int | None, **more: Any) -> np.ndarray:
    """One call of a function of ours."""
    common = {"key_padding_mask": x.key_padding_mask, "n_threads": n_threads, **more}
    if function == "exact":
        return pyclattn.scaled_dot_product_attention(x.query, x.key, x.value, is_causal=case.is_causal, **common)
    if function == "clustered":
        return pyclattn.clustered_attention(x.query, x.key, x.value, **case.clustered, **common)
    if function == "improved":
        return pyclattn.improved_clustered_attention(
            x.query, x.key, x.value, topk=32, is_causal=case.is_causal, **case.clustered, **common
        )
    if function == "coclustered":
        return pyclattn.coclustered_attention(x.query, x.key, x.value, **common)
    raise ValueError(f"function must be one of {', '.join(FUNCTIONS)}, got {function!r}")


def ours(function: str, case: Case, x: Inputs, n_threads: int, **more: Any) -> Subject:
    """A function of ours as a subject."""
    last: list[np.ndarray] = []

    def run() -> None:
        last[:] = [call(function, case, x, n_threads, **more)]

    return Subject(function, run, lambda: last[0] if last else None)
