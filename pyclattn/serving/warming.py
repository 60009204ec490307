"""What the first request of a clustered model would wait for, before it comes: compiled kernels, imports."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.functional.coclustered import SHORTEST
from pyclattn.model import Model
from pyclattn.serving.batching import LARGEST_ROW, example, masks_of

# Long enough that no method falls back on exact attention.
LENGTHS = (SHORTEST + 64, 64)


def warm(model: Model) -> None:
    """Run an example that goes the ways requests will go; a model that is exact throughout has nothing to compile."""
    if all(model.plan.methods(name) == ["exact"] for name in model.attentions):
        return
    rng, tokens = np.random.default_rng(0), masks_of(model)
    for length in LENGTHS:
        feeds = example(model.program.inputs, length, 1, rng, tokens)
        if max(array.size for array in feeds.values()) > LARGEST_ROW:
            continue
        try:
            model.run(None, feeds, report=True)
            return
        except (PyclattnError, ValueError, IndexError):  # not a length this model takes
            continue
