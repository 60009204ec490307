"""The operators pyclattn runs: a builder for each kind, by family.

A builder looks at attributes and input shapes once and returns a `pyclattn.graph.spec.Kernel`. Meanings are those of
ONNX's newest opset; ``com.microsoft`` kinds are ONNX Runtime's, ``pyclattn`` kinds what the fusion passes make.
"""

from pyclattn.graph.ops import (  # noqa: F401  (importing a family enters it in the table)
    attention,
    cast,
    centroid,
    clustered,
    control,
    conv,
    elementwise,
    few_bits,
    index,
    linear,
    norm,
    pool,
    quantised,
    quantised_microsoft,
    recurrent,
    reduction,
    resize,
    rotary,
    shape,
    stored,
)
from pyclattn.graph.ops.half import widen_all
from pyclattn.graph.ops.registry import TABLE, builder, op

widen_all()


def supported_ops() -> list[str]:
    """Names of all operators that run, sorted; those of another domain as ``domain:Name``.

    Examples
    --------
    >>> "MatMul" in supported_ops(), "StringSplit" in supported_ops()
    (True, False)
    """
    return sorted(TABLE)


__all__ = ["TABLE", "builder", "op", "supported_ops"]
