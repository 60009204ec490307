"""Run one operator on constants, with the executor's own kernels, so that folding cannot disagree with running."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.graph.program import Op


def evaluate(op: Op, inputs: list[np.ndarray | None], most: int = 1 << 20) -> list[np.ndarray] | None:
    """The outputs of an operator for given inputs; None where it cannot be run before the run.

    Nothing is run that would take more than ``most`` bytes: a file may ask for any shape.

    Examples
    --------
    >>> evaluate(Op("Add", ("x", "y"), ("z",)), [np.ones(2), np.ones(2)])
    [array([2., 2.])]
    """
    # Imported late: the operators need the whole of functional/, which a program that is only read does not.
    from pyclattn.graph import planner
    from pyclattn.graph.ops.registry import TABLE
    from pyclattn.graph.spec import Settings, Spec, Unknown

    if op.kind not in TABLE:
        return None
    specs: list = [False if array is None else Spec.of(array, value=True) for array in inputs]
    try:
        kernel = planner.build(op, specs, Settings())
        if sum(s.nbytes for s in kernel.outputs) > most or max(kernel.scratch, kernel.transient) > 8 * most:
            return None
        outputs = planner.evaluate(kernel, inputs)
    except (Unknown, PyclattnError):
        return None  # it stays in the program, and the run says what is wrong with it
    # A view would keep the whole of its source alive.
    return [np.array(array) if array.base is not None else array for array in outputs]
