"""Queries, keys and values of a model's attentions while it runs, for benchmarks and research."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pyclattn.graph.ops.attention import METHODS


def captured(run: Callable[[], object], names: Iterable[str | None]) -> dict[str, np.ndarray]:
    """Run a model with exact attention and keep what its attentions are given.

    Parameters
    ----------
    run : callable
    names : iterable of str or None
        One for each attention in the order they run; None: not kept.

    Returns
    -------
    dict of str to float32 array
        ``"<name>.q"``, ``"<name>.k"``, ``"<name>.v"``, each (H, N, D) of the first sequence. The model's own scale is
        in the queries, so that the default scale gives its logits.
    """
    found: dict[str, np.ndarray] = {}
    left = iter(names)
    exact = METHODS["exact"]

    def noted(query, key, value, *, scale=None, **options):
        name = next(left)
        if name is not None:
            factor = 1.0 if scale is None else scale * query.shape[-1] ** 0.5
            found[f"{name}.q"] = np.array(query[0] * np.float32(factor), np.float32, order="C")
            found[f"{name}.k"], found[f"{name}.v"] = (np.array(a[0], np.float32, order="C") for a in (key, value))
        return exact(query, key, value, scale=scale, **options)

    METHODS["exact"] = noted
    try:
        run()
    finally:
        METHODS["exact"] = exact
    return found
