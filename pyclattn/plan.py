"""Which attention runs how: the same method everywhere, or one for each attention by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyclattn.errors import ArgumentError

METHODS = ("exact", "clustered", "improved-clustered", "coclustered")
# The published settings of (improved) clustered attention (Vyas et al. 2020): 100 clusters, the 32 best keys of each.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "clustered": {"n_clusters": 100},
    "improved-clustered": {"n_clusters": 100, "topk": 32},
    "coclustered": {},
}
PARAMETERS = {
    "exact": set(),
    "clustered": {"n_clusters", "n_bits", "n_iterations", "clustering", "seed"},
    "improved-clustered": {"n_clusters", "n_bits", "n_iterations", "clustering", "seed", "topk"},
    "coclustered": {"n_query_clusters", "n_key_clusters", "n_exact", "rank"},
}


def parse_attention(text: str) -> Any:
    """What a command line says of attention: a method, or JSON for parameters and names."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"--attention is a method or JSON, got {text!r}: {error}") from None


@dataclass(frozen=True)
class Choice:
    """A method of attention and its parameters."""

    method: str = "exact"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What each attention of a model runs as.

    Attributes
    ----------
    default : Choice
    by_name : mapping of attention's name to Choice
    """

    default: Choice = field(default_factory=Choice)
    by_name: Mapping[str, Choice] = field(default_factory=dict)

    def choice(self, name: str) -> tuple[str, dict]:
        """(method, parameters) of the attention of this name."""
        chosen = self.by_name.get(name, self.default)
        return chosen.method, dict(chosen.parameters)

    @classmethod
    def of(cls, attention, names=None) -> Plan:
        """The plan a caller means.

        Parameters
        ----------
        attention : str, dict or Plan
            A method; ``{"method": ..., parameters}``; or a dict of attention's name to either, where ``"default"``
            stands for all that are not named (exact if it is left out).
        names : sequence of str, optional
            The model's attentions; a name beside these is an error.

        Raises
        ------
        ArgumentError
            For a method, a parameter or a name that does not exist.

        Examples
        --------
        >>> Plan.of({"method": "improved-clustered", "n_clusters": 256}).choice("any")
        ('improved-clustered', {'n_clusters': 256, 'topk': 32})
        """
        if isinstance(attention, Plan):
            plan = attention
        elif isinstance(attention, Mapping) and "method" not in attention:
            named = {name: _choice(value) for name, value in attention.items()}
            plan = cls(named.pop("default", Choice()), named)
        else:
            plan = cls(_choice(attention))
        unknown = [] if names is None else [n for n in plan.by_name if n not in names]
        if unknown:
            raise ArgumentError(
                f"attention names {', '.join(map(repr, unknown))}, the model's are {', '.join(names) or 'none'}"
            )
        return plan


def _choice(value) -> Choice:
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
    return Choice(method, {**DEFAULTS[method], **parameters})
