"""Which model a program is, whoever converted it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np

from pyclattn.graph.program import Program, walk

ATTENTION = "pyclattn:Attention"
# In the metadata of a program whose weights are stored in fewer bits: fingerprints of those it was made from.
ORIGINS_KEY = "pyclattn.origins"
# Constants of fewer elements are shapes, axes and scales, which passes fold away and make anew.
LEAST = 4096


def fingerprint(program: Program) -> str:
    """32 hexadecimal digits of what makes a model this one: inputs, outputs, names of attentions, large weights.

    Weights count by the sum of their elements' bits, so their order, names, shapes and partition do not matter: the
    same model has the same fingerprint after a conversion that transposes or joins weights, and another one after
    training. Operators do not count, since a newer pyclattn may fuse more of them.

    Parameters
    ----------
    program : Program

    Returns
    -------
    str

    Examples
    --------
    >>> from pyclattn.graph.program import Op, Value
    >>> x, y = Value("x", "float32", ("n", 64)), Value("y", "float32", ("n", 64))
    >>> def product(weight):
    ...     return Program([x], [y], [Op("MatMul", ("x", "w"), ("y",))], {"w": weight})
    >>> weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    >>> fingerprint(product(weight)) == fingerprint(product(weight.T))
    True
    >>> fingerprint(product(weight)) == fingerprint(product(weight + 1))
    False
    """
    totals: dict[str, list[int]] = {}
    for dtype, size, bits in sorted(_weights(program)):
        total = totals.setdefault(dtype, [0, 0])
        total[0] += size
        total[1] = (total[1] + bits) % (1 << 64)
    about = {
        "inputs": [[v.name, v.dtype, len(v.shape)] for v in program.inputs],
        "outputs": [[v.name, v.dtype, len(v.shape)] for v in program.outputs],
        "attentions": [op.attributes.get("name", op.name) for op in walk(program) if op.kind == ATTENTION],
        "weights": totals,
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def origins(program: Program) -> tuple[str, ...]:
    """Fingerprints of the programs that this one was made from by storing weights in fewer bits, the first one first.

    Examples
    --------
    >>> origins(Program([], [], [], metadata={ORIGINS_KEY: ["3f" * 16]})) == ("3f" * 16,)
    True
    """
    found = program.metadata.get(ORIGINS_KEY)
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, (list, tuple)) else ()


def derived(program: Program, source: Program) -> Program:
    """The program, told to come from another one.

    Parameters
    ----------
    program : Program
        The same network as ``source``, its weights rounded.
    source : Program
    """
    known = [*origins(source), fingerprint(source)]
    return replace(program, metadata={**source.metadata, ORIGINS_KEY: known})


def _weights(program: Program):
    """(dtype, elements, sum of bits) of each large constant, nested programs' too; shared arrays once."""
    seen: set[int] = set()
    programs = [program, *(a for op in walk(program) for a in op.attributes.values() if isinstance(a, Program))]
    for array in (array for p in programs for array in p.constants.values()):
        if array.size >= LEAST and array.dtype.kind in "fiub" and id(array) not in seen:
            seen.add(id(array))
            bits = np.ravel(array, order="K").view(f"u{array.dtype.itemsize}")
            yield array.dtype.name, array.size, int(bits.sum(dtype=np.uint64))
