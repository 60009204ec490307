"""A method of attention and its parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyclattn.arrays import PANEL
from pyclattn.errors import ArgumentError

METHODS = ("exact", "clustered", "improved-clustered", "coclustered", "auto")
# The published settings of (improved) clustered attention (Vyas et al. 2020): 100 clusters, the 32 best keys of each.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "clustered": {"n_clusters": 100},
    "improved-clustered": {"n_clusters": 100, "topk": 32},
    "coclustered": {},
    "auto": {},
}
# Of every method but exact: the limit of the estimated error, and what is done above it.
CHECKING = ("max_error", "on_error")
PARAMETERS = {
    "exact": set(),
    "clustered": {"n_clusters", "cluster_factor", "n_bits", "n_iterations", "clustering", "seed", *CHECKING},
    "improved-clustered": {
        "n_clusters",
        "cluster_factor",
        "n_bits",
        "n_iterations",
        "clustering",
        "seed",
        "topk",
        *CHECKING,
    },
    "coclustered": {
        "n_query_clusters",
        "cluster_factor",
        "n_key_clusters",
        "key_cluster_factor",
        "n_exact",
        "rank",
        *CHECKING,
    },
}
PARAMETERS["auto"] = PARAMETERS["coclustered"]
CLUSTERINGS = ("lsh", "kmeans", "metric")
# The least and the most of what is counted.
_COUNTS: dict[str, tuple[int, float]] = {
    "n_clusters": (1, math.inf), "n_query_clusters": (1, math.inf), "n_key_clusters": (1, math.inf),
    "n_exact": (0, math.inf), "rank": (1, math.inf), "topk": (1, math.inf), "n_bits": (1, 63),
    "n_iterations": (1, 10_000), "seed": (0, math.inf),
}  # fmt: skip
_OPTIONAL = ("n_query_clusters", "n_key_clusters")  # None: as many as the length asks for
# The numbers of clusters that factors on the root of the number of queries, and of keys, stand for.
_FACTORS = {
    "cluster_factor": {
        "clustered": "n_clusters",
        "improved-clustered": "n_clusters",
        "coclustered": "n_query_clusters",
        "auto": "n_query_clusters",
    },
    "key_cluster_factor": {"coclustered": "n_key_clusters", "auto": "n_key_clusters"},
}


def parse_attention(text: str) -> Any:
    """What a command line says of attention: a method, a plan's file, or JSON for parameters and names."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"--attention is a method or JSON, got {text!r}: {error}") from None


@dataclass(frozen=True)
class Choice:
    """A method of attention and its parameters.

    Parameters
    ----------
    method : str
    parameters : mapping
        Arguments of the method. ``cluster_factor`` stands for that times the root of the number of queries, as the
        number of (query) clusters; of co-clustered attention the next multiple of 48. ``key_cluster_factor`` stands
        for that times the root of the number of keys, as the number of key clusters.
    heads : tuple of int, optional
        The heads that run so, ascending; None: all.
    """

    method: str = "exact"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[int, ...] | None = None

    def at(self, n_queries: int, n_keys: int) -> dict[str, Any]:
        """The method's arguments for this many queries and keys."""
        given = dict(self.parameters)
        for name, n_tokens in (("cluster_factor", n_queries), ("key_cluster_factor", n_keys)):
            factor = given.pop(name, None)
            if factor is not None:
                count, n_clusters = _FACTORS[name][self.method], max(1, round(factor * math.sqrt(n_tokens)))
                given[count] = PANEL * -(-n_clusters // PANEL) if count == "n_query_clusters" else n_clusters
        return given

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.parameters.items())])


def choice_of(value) -> Choice:
    """The choice a caller means by a method, or by a mapping of "method" and parameters."""
    if isinstance(value, Choice):
        return value
    parameters: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}
    method = value if isinstance(value, str) else parameters.pop("method", None)
    if method not in METHODS:
        raise ArgumentError(f"attention must be one of {', '.join(METHODS)}, got {method if method else value!r}")
    unknown = sorted(set(parameters) - PARAMETERS[method])
    if unknown:
        known = ", ".join(sorted(PARAMETERS[method])) or "none"
        raise ArgumentError(f"attention {method!r} has no parameter {', '.join(unknown)}; it has: {known}")
    _check_values(parameters)
    counted = []
    for name, counts in _FACTORS.items():
        factor = parameters.get(name)
        if factor is None:
            continue
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise ArgumentError(f"{name} must be a positive number, got {factor!r}")
        if counts[method] in parameters:
            raise ArgumentError(f"{name} and {counts[method]} both say how many clusters: give one")
        counted.append(counts[method])
    defaults = {name: value for name, value in DEFAULTS[method].items() if name not in counted}
    return Choice(method, {**defaults, **parameters})


def _check_values(parameters: Mapping[str, Any]) -> None:
    """What a method's function would refuse in a request is refused here."""
    for name, (least, most) in _COUNTS.items():
        value = parameters.get(name, least)
        if value is None and name in _OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ArgumentError(f"{name} must be a whole number {allowed}, got {value!r}")
    if parameters.get("clustering", "lsh") not in CLUSTERINGS:
        raise ArgumentError(f"clustering must be one of {', '.join(CLUSTERINGS)}, got {parameters['clustering']!r}")
    limit, action = parameters.get("max_error"), parameters.get("on_error", "exact")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0):
        raise ArgumentError(f"max_error must be a number of at least 0, got {limit!r}")
    if action not in ("exact", "warn", "raise"):
        raise ArgumentError(f"on_error must be 'exact', 'warn' or 'raise', got {action!r}")
