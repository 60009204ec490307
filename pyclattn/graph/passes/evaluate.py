"""Run one operator on constants, with the executor's own kernels, so that folding cannot disagree with running."""

from __future__ import annotations

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.graph.program import Op


def evaluate(op: Op, inputs: list[np.ndarray | None]) -> list[np.ndarray] | None:
    """The outputs of an operator for given inputs; None where it cannot be run before the run.

    Examples
    --------
    >>> evaluate(Op("Add", ("x", "y"), ("z",)), [np.ones(2), np.ones(2)])
    [array([2., 2.])]
    """
    from pyclattn.graph.ops.registry import TABLE
    from pyclattn.graph.spec import Node, Spec, Unknown

    if op.kind not in TABLE:
        return None
    specs = [False if array is None else Spec.of(array, value=True) for array in inputs]
    try:
        kernel = TABLE[op.kind](Node(op, specs))
        if all(spec.value is not None for spec in kernel.outputs):
            return [np.array(spec.value) for spec in kernel.outputs]
        if kernel.view is not None:
            return [np.array(kernel.view(inputs))]
        outputs = [np.empty(spec.shape, spec.dtype) for spec in kernel.outputs]
        if kernel.bind is None:
            return None
        kernel.bind(inputs, outputs, np.empty(kernel.scratch, np.uint8))()
    except (Unknown, PyclattnError):
        return None  # it stays in the program, and the run says what is wrong with it
    return outputs
