"""What is asked of a model's outputs: a number that tells how far they are from exact ones, within a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyclattn.calibration.samples import key_of
from pyclattn.errors import ArgumentError
from pyclattn.model import Model

Outputs = Mapping[str, np.ndarray]
Metric = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], float]


def correlation(exact: Outputs, found: Outputs) -> float:
    """One minus the correlation of an output's values: the largest over outputs that are numbers with a fraction.

    Examples
    --------
    >>> round(correlation({"y": np.array([1.0, 2.0, 3.0])}, {"y": np.array([2.0, 4.0, 6.0])}), 6)
    0.0
    """
    return _worst(_apart(a.ravel() - a.mean(), b.ravel() - b.mean()) for a, b in _pairs(exact, found))


def cosine(exact: Outputs, found: Outputs) -> float:
    """One minus the cosine between rows, along the last axis: the largest over rows and outputs.

    Examples
    --------
    >>> round(cosine({"y": np.array([[3.0, 4.0], [1.0, 0.0]])}, {"y": np.array([[3.0, 4.0], [3.0, 4.0]])}), 6)
    0.4
    """
    return _worst(_apart(np.atleast_1d(a), np.atleast_1d(b)).max() for a, b in _pairs(exact, found))


def top1(exact: Outputs, found: Outputs) -> float:
    """The share of rows, along the last axis, whose largest value is at another place: the largest over outputs.

    Examples
    --------
    >>> top1({"y": np.array([[0.1, 0.9], [0.6, 0.4]])}, {"y": np.array([[0.2, 0.8], [0.4, 0.6]])})
    0.5
    """
    return _worst(np.mean(np.argmax(a, axis=-1) != np.argmax(b, axis=-1)) for a, b in _pairs(exact, found))


METRICS: dict[str, Metric] = {"correlation": correlation, "cosine": cosine, "top-1": top1}


def _pairs(exact: Outputs, found: Outputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """In float64, outputs that are numbers with a fraction."""
    names = [name for name, array in exact.items() if array.dtype.kind == "f" and array.size]
    if not names:
        raise ArgumentError(f"metric: none of the outputs {', '.join(exact)} holds numbers with a fraction")
    return [(np.asarray(exact[n], np.float64), np.asarray(found[n], np.float64)) for n in names]


def _apart(a: np.ndarray, b: np.ndarray) -> Any:
    """One minus the cosine of rows: 0 if they are equal, else 1 where one of them is zero."""
    norms = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    cosines = (a * b).sum(axis=-1) / np.where(norms == 0, 1.0, norms)
    return np.where((a == b).all(axis=-1), 0.0, 1 - cosines)


def _worst(values: Iterable[Any]) -> float:
    """The largest, or NaN if there is one."""
    return float(np.max(list(values)))


def metric_of(metric: Any) -> Metric:
    """The function that a name, or a function, means.

    Raises
    ------
    ArgumentError
        For another name, and for what cannot be called.
    """
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    if not callable(metric):
        names = ", ".join(map(repr, METRICS))
        raise ArgumentError(f"metric must be one of {names}, or callable as metric(exact, found); got {metric!r}")
    return metric


@dataclass
class Demand:
    """A metric that is to stay within a bound on every sample.

    Attributes
    ----------
    metric : callable
    most : float
    exacts : dict of sample's key to outputs
    """

    metric: Metric
    most: float
    exacts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def keep(self, sample: str, outputs: dict[str, np.ndarray]) -> None:
        """Remember exact outputs, to compare with.

        Raises
        ------
        ArgumentError
            If the metric does not even take the exact outputs for themselves: then nothing can hold.
        """
        value = self._value(outputs, outputs)
        if not value <= self.most:
            raise ArgumentError(
                f"metric(exact, exact) is {value:g}, above max_metric = {self.most:g}: no plan could hold. It must "
                "grow with the difference: of a similarity give one minus it"
            )
        self.exacts[sample] = outputs

    def holds(self, model: Model, plan: Any, feeds: Sequence[Mapping[str, np.ndarray]]) -> bool:
        """Whether the model's outputs by the plan are within the bound on every sample."""
        fast = Model(model.program, attention=plan, n_threads=model.n_threads, max_memory=model.max_memory)
        # NaN is not within
        return all(self._value(self.exacts[key_of(feed)], fast(**feed)) <= self.most for feed in feeds)

    def _value(self, exact: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
        value = self.metric(exact, found)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ArgumentError(f"metric must return a number, got {value!r:.200}") from None
